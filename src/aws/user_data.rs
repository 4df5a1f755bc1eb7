//! What an instance is handed when it boots: a node's configuration for cloud-init, compressed, and no secret in it. Whoever
//! may describe the instance reads it, and so may every process on the node.

use std::{io::Write as _, net::IpAddr, time::Duration};

use flate2::{Compression, write::GzEncoder};

use super::{identity, template::MAX_USER_DATA};
use crate::{
    node_agent::config::{
        self as agent, AuthorityAt, Config, INSTANCE_ID, LOCAL_ADDRESS, Login, METADATA, Readers, STATE, Wanted,
    },
    node_config::{NodeConfig, cloud_init, paths},
    pki::{leaf::Leaf, vault::client::Address},
};

/// What parts are parted by. No line of theirs is `--` and this: cloud-config begins its lines with a key, `-` or spaces.
const BOUNDARY: &str = "==giantnetes==";

/// An address that stands in a [`Leaf`] for the node's own, which nobody knows before there is an instance.
pub const OWN_ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);

/// Name of a node that is called after its instance, as a [`Leaf`] has it.
pub const OWN_NAME: &str = INSTANCE_ID;

/// Why there is no user data.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each says what its fields are")]
pub enum UserDataError {
    #[error("the configuration of node {node} as YAML")]
    Render {
        node: String,
        #[source]
        source: serde_saphyr::ser::Error,
    },
    #[error("compress the user data of node {node}")]
    Compress {
        node: String,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "user data of node {node} has {bytes} bytes, {plain} before it was compressed: EC2 takes {MAX_USER_DATA}; shorten flags, policies or labels in the Cluster"
    )]
    TooBig { node: String, bytes: usize, plain: usize },
}

/// What nodes of one login have signed.
#[derive(Clone, Debug)]
pub struct Keys<'a> {
    /// The Vault.
    pub vault: Address,
    /// How they log in.
    pub login: Login,
    /// The id that Vault gave the role of that login.
    pub login_id: &'a str,
    /// The authorities.
    pub authorities: Vec<AuthorityAt>,
    /// The certificates, with [`OWN_NAME`] and [`OWN_ADDRESS`] where the node is to say what it is.
    pub leaves: &'a [Leaf],
    /// How long they live.
    pub ttl: Duration,
    /// Keys that are no certificates: of control-plane nodes alone.
    pub lasting: Option<agent::Keys>,
    /// What the machine has to have.
    pub machine: agent::Machine,
}

impl Keys<'_> {
    /// The agent's configuration.
    pub fn agent(&self) -> Config {
        Config {
            vault: self.vault.clone(),
            login: self.login.clone(),
            authorities: self.authorities.clone(),
            certificates: self.leaves.iter().map(|leaf| self.wanted(leaf)).collect(),
            keys: self.lasting.clone(),
            machine: self.machine.clone(),
            metadata: METADATA.into(),
            state: STATE.into(),
        }
    }

    fn wanted(&self, leaf: &Leaf) -> Wanted {
        let address = |address: &IpAddr| match *address {
            OWN_ADDRESS => LOCAL_ADDRESS.to_owned(),
            address => address.to_string(),
        };
        Wanted {
            name: leaf.name.to_owned(),
            authority: leaf.authority,
            role: identity::signer(self.login_id, leaf.name),
            common_name: leaf.common_name.clone(),
            organisations: leaf.organisations.clone(),
            dns: leaf.dns.clone(),
            addresses: leaf.addresses.iter().map(address).collect(),
            usage: leaf.usage,
            ttl_seconds: u32::try_from(self.ttl.as_secs()).unwrap_or(u32::MAX),
            certificate: paths::in_pki(paths::certificate(leaf.name)).into(),
            key: paths::in_pki(paths::key(leaf.name)).into(),
            readers: Readers::Owner,
            // What reads them hears of a file that was replaced from the kernel.
            reload: Vec::new(),
        }
    }
}

/// User data of a node, compressed and not encoded, as [`super::template::Machine::user_data`] takes it. The same
/// configuration gives the same bytes.
///
/// # Errors
/// [`UserDataError`], if it is more than EC2 takes.
pub fn render(config: NodeConfig, keys: &Keys) -> Result<Vec<u8>, UserDataError> {
    let node = config.hostname.clone().unwrap_or_else(|| keys.login.role.clone());
    let failed = |source| UserDataError::Render { node: node.clone(), source };
    let config = config.with_agent(&serde_saphyr::to_string(&keys.agent()).map_err(failed)?);
    // The rest of a seed is EC2's to say: instance id, network and host name's source.
    let text = multipart(&cloud_init::render(&config, "").map_err(failed)?.user_data);
    let bytes = compress(text.as_bytes()).map_err(|source| UserDataError::Compress { node: node.clone(), source })?;
    match bytes.len() {
        0..=MAX_USER_DATA => Ok(bytes),
        bytes => Err(UserDataError::TooBig { node, bytes, plain: text.len() }),
    }
}

/// cloud-init is told what it is handed, and need not guess by how it begins.
fn multipart(cloud_config: &str) -> String {
    format!(
        "Content-Type: multipart/mixed; boundary=\"{BOUNDARY}\"\nMIME-Version: 1.0\n\n--{BOUNDARY}\nContent-Type: text/cloud-config; charset=\"utf-8\"\nMIME-Version: 1.0\nContent-Disposition: attachment; filename=\"node.yaml\"\n\n{cloud_config}\n--{BOUNDARY}--\n"
    )
}

/// As gzip does, without a time or a name.
fn compress(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes)?;
    encoder.finish()
}

#[cfg(test)]
pub(super) mod tests {
    use std::{collections::BTreeMap, io::Read as _};

    use serde_json::{Value, json};

    use super::*;
    use crate::{
        cluster::Valid,
        node_config::{Blank, Ec2, control_plane_on_ec2, worker_on_ec2},
        pki::leaf::{self, Authority},
        testing::{example, valid},
    };

    fn keys(leaves: &[Leaf]) -> Keys<'_> {
        let authority = |name, mount: &str, file: &str| AuthorityAt {
            name,
            mount: format!("giantnetes/abcde/{mount}"),
            fingerprint: "0123456789abcdef".repeat(4),
            file: paths::in_pki(file).into(),
        };
        Keys {
            vault: Address {
                address: "https://vault.example.com:8200".into(),
                ca_certificate: crate::testing::certificate(),
                namespace: None,
            },
            login: Login {
                mount: "giantnetes-aws".into(),
                role: "g8s-abcde-web".into(),
                server_id: "vault.example.com".into(),
                region: "eu-central-1".into(),
                sts: "https://sts.eu-central-1.amazonaws.com/".into(),
            },
            login_id: "0f4a7c1e-3b5d-4a9e-8c2f-6d7e8f901234",
            authorities: vec![
                authority(Authority::Kubernetes, "kubernetes", paths::CA),
                authority(Authority::Etcd, "etcd", paths::ETCD_CA),
                authority(Authority::FrontProxy, "front-proxy", paths::FRONT_PROXY_CA),
            ],
            leaves,
            ttl: Duration::from_secs(2160 * 3600),
            lasting: None,
            machine: agent::Machine::default(),
        }
    }

    fn unpacked(bytes: &[u8]) -> String {
        let mut text = String::new();
        flate2::read::GzDecoder::new(bytes).read_to_string(&mut text).unwrap();
        text
    }

    /// The cloud-config of user data, read as MIME and YAML.
    fn parsed(bytes: &[u8]) -> Value {
        let text = unpacked(bytes);
        let (head, rest) = text.split_once("\n\n").unwrap();
        assert!(head.starts_with("Content-Type: multipart/mixed;"), "{head}");
        let boundary = head.split('"').nth(1).unwrap();
        let parts: Vec<_> = rest.split(&format!("--{boundary}")).collect();
        // Before the first, the one part, and what ends the last.
        assert_eq!((parts.len(), parts[0], parts[2]), (3, "", "--\n"));
        let (head, cloud_config) = parts[1].split_once("\n\n").unwrap();
        assert!(head.contains("Content-Type: text/cloud-config"), "{head}");
        assert!(cloud_config.starts_with("#cloud-config\n"));
        serde_saphyr::from_str(cloud_config).unwrap()
    }

    /// The files that cloud-init writes of it.
    pub(in crate::aws) fn files(bytes: &[u8]) -> BTreeMap<String, String> {
        let text = |file: &Value, field: &str| file[field].as_str().unwrap().to_owned();
        let parsed = parsed(bytes);
        parsed["write_files"]
            .as_array()
            .unwrap()
            .iter()
            .map(|file| (text(file, "path"), text(file, "content")))
            .collect()
    }

    fn ec2() -> Ec2 {
        Ec2 { domain: "abcde.giantnetes.internal".into(), has_cloud_controller: true }
    }

    fn of_master(cluster: &Valid) -> (NodeConfig, Vec<Leaf>) {
        let leaves = leaf::of_master_on_ec2(cluster, 0, &ec2(), OWN_ADDRESS);
        (control_plane_on_ec2(cluster, 0, Blank::Forms, &ec2()), leaves)
    }

    fn of_worker(cluster: &Valid) -> (NodeConfig, Vec<Leaf>) {
        let pool = &cluster.pools[0];
        (worker_on_ec2(cluster, pool, &ec2()), leaf::of_node(OWN_NAME, OWN_ADDRESS).into())
    }

    #[test]
    fn cloud_init_is_handed_the_nodes_files_and_the_agents() {
        let cluster = valid(json!({"nodePools": [{"name": "a"}]}));
        for (config, leaves) in [of_master(&cluster), of_worker(&cluster)] {
            let keys = keys(&leaves);
            let bytes = render(config.clone(), &keys).unwrap();
            assert_eq!(bytes, render(config.clone(), &keys).unwrap());
            let parsed = parsed(&bytes);
            let files: BTreeMap<_, _> = parsed["write_files"]
                .as_array()
                .unwrap()
                .iter()
                .map(|file| (file["path"].as_str().unwrap(), file["content"].as_str().unwrap()))
                .collect();
            let expected = config.with_agent(&serde_saphyr::to_string(&keys.agent()).unwrap());
            assert_eq!(files.len(), expected.files.len());
            assert!(expected.files.iter().all(|file| files[file.path.as_str()] == file.content));
            // What the agent is handed is what it understands.
            let agent: Config = serde_saphyr::from_str(files["/etc/giantnetes/node-agent.yaml"]).unwrap();
            assert_eq!(agent, keys.agent());
            agent.check().unwrap();
            println!("{:?}: {} bytes", expected.hostname, bytes.len());
        }
    }

    #[test]
    fn a_worker_says_itself_what_it_is_and_asks_by_the_roles_of_its_login() {
        let leaves = leaf::of_node(OWN_NAME, OWN_ADDRESS);
        let agent = keys(&leaves).agent();
        let names: Vec<_> = agent.certificates.iter().map(|wanted| wanted.name.as_str()).collect();
        assert_eq!(names, leaf::OF_WORKER);
        let instance = serde_json::from_value(json!({"instanceId": "i-0a", "privateIp": "10.1.0.4"})).unwrap();
        let real = leaf::of_node("i-0a", [10, 1, 0, 4].into());
        for (wanted, leaf) in agent.certificates.iter().zip(&real) {
            let asked = wanted.leaf(&instance).unwrap();
            assert_eq!(Leaf { name: leaf.name, ..asked }, *leaf);
            assert_eq!(wanted.role, format!("0f4a7c1e-3b5d-4a9e-8c2f-6d7e8f901234.{}", leaf.name));
        }
    }

    #[test]
    fn no_secret_is_in_it() {
        for name in ["minimal.yaml", "typical.yaml", "maximal.yaml"] {
            let cluster = example(name);
            let mut nodes = vec![of_master(&cluster)];
            if !cluster.pools.is_empty() {
                nodes.push(of_worker(&cluster));
            }
            for (config, leaves) in nodes {
                let text = unpacked(&render(config, &keys(&leaves)).unwrap());
                // Of certificates there is the one by which the node knows Vault.
                assert_eq!(text.matches("BEGIN CERTIFICATE").count(), 1, "{name}");
                // Keys, Vault's tokens, AWS's keys, Kubernetes' tokens, passwords, and what encryption at rest has.
                for word in [
                    "PRIVATE KEY",
                    "hvs.",
                    "hvb.",
                    "AKIA",
                    "ASIA",
                    "aws_secret",
                    "eyJ",
                    "token:",
                    " token=",
                    "password",
                    "passwd",
                    "client-key-data",
                    "secret:",
                    "secret_id",
                    "secretbox",
                ] {
                    assert_eq!(text.lines().find(|line| line.contains(word)), None, "{name}: {word}");
                }
                // Nor anything else that looks as keys do: long, and of letters of both cases and digits.
                let (before, rest) = text.split_once("-----BEGIN CERTIFICATE-----").unwrap();
                let (_, after) = rest.split_once("-----END CERTIFICATE-----").unwrap();
                let is_word = |letter: char| letter.is_ascii_alphanumeric() || "+/=".contains(letter);
                let looks_so = |word: &&str| {
                    let has = |what: fn(&u8) -> bool| word.as_bytes().iter().any(what);
                    word.len() >= 32
                        && !word.starts_with('/')
                        && has(u8::is_ascii_uppercase)
                        && has(u8::is_ascii_lowercase)
                        && has(u8::is_ascii_digit)
                };
                let found =
                    [before, after].iter().flat_map(|text| text.split(|letter| !is_word(letter))).find(looks_so);
                assert_eq!(found, None, "{name}");
            }
        }
    }

    #[test]
    fn more_than_ec2_takes_is_refused_with_its_size() {
        let cluster = valid(json!({}));
        let (mut config, leaves) = of_master(&cluster);
        // What no compression makes smaller.
        let noise: String =
            (0_u32..16_000).map(|index| crate::aws::hex(&index.wrapping_mul(2_654_435_761).to_be_bytes())).collect();
        let mut file = config.files[0].clone();
        (file.path, file.content) = ("/noise".into(), noise);
        config.files.push(file);
        let error = render(config, &keys(&leaves)).unwrap_err();
        let UserDataError::TooBig { bytes, plain, .. } = &error else { panic!("{error}") };
        assert!(*bytes > MAX_USER_DATA && plain > bytes);
        let text = error.to_string();
        assert!(
            text.contains("node master-0") && text.contains(&bytes.to_string()) && text.contains("16384"),
            "{text}"
        );
    }
}
