//! The nodes of a guest: what their instances are handed, and what of certificates and keys is theirs. Pure.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use super::{
    admission::plan::{self, Group},
    identity::Nodes,
    tags::Owner,
    user_data::{self, Keys, OWN_ADDRESS, OWN_NAME, UserDataError},
};
use crate::{
    api::names,
    cluster::{Valid, valid::NodePool},
    node_agent::config::{self, Attached, AuthorityAt, KeyFile, Login, Machine},
    node_config::{self, Blank, Ec2, paths},
    pki::{
        embedded,
        leaf::{self, Authority, Leaf},
        roots::Roots,
        vault::client::Address,
    },
};

/// URLs of services of a region that nodes ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Services {
    /// STS. Nodes sign for it, and Vault sends what they signed.
    pub sts: String,
    /// EC2.
    pub ec2: String,
}

impl Services {
    /// Those of a region of AWS's. Names of its partition in China end otherwise.
    pub fn of(region: &str) -> Self {
        let end = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
        let [sts, ec2] = ["sts", "ec2"].map(|name| format!("https://{name}.{region}.{end}/"));
        Self { sts, ec2 }
    }
}

/// What the nodes of one guest share.
#[derive(Clone, Debug)]
pub struct Guest<'a> {
    /// The guest.
    pub cluster: &'a Valid,
    /// Whose its stacks are.
    pub owner: &'a Owner,
    /// Whether a cloud controller runs inside it.
    pub has_cloud_controller: bool,
    /// The Vault, as nodes reach it.
    pub vault: Address,
    /// What the signature of a login names, so that nobody else can log in with it: as Vault's auth method is told.
    pub server_id: String,
    /// Region of the guest.
    pub region: String,
    /// URLs of its services, as nodes reach them.
    pub services: Services,
    /// Its authorities in Vault: mounts and certificates (PEM).
    pub authorities: BTreeMap<Authority, (String, String)>,
    /// How long certificates live.
    pub ttl: Duration,
}

impl Guest<'_> {
    /// What all of its nodes are told of where they are.
    pub fn ec2(&self) -> Ec2 {
        Ec2 { domain: self.owner.domain(), has_cloud_controller: self.has_cloud_controller }
    }

    /// The control plane, as Vault is to know it.
    pub fn control_plane<'a>(&self, role_arn: Option<&'a str>) -> Group<'a> {
        let leaves = (0..self.cluster.control_plane.replicas).map(|index| self.of_master(index, OWN_ADDRESS)).collect();
        Group { nodes: Nodes::ControlPlane, role_arn, leaves, ttl: self.ttl }
    }

    /// A pool, as Vault is to know it while it has these instances.
    pub fn pool<'a>(&self, pool: &'a str, role_arn: Option<&'a str>, instances: &[String]) -> Group<'a> {
        let leaves = instances.iter().map(|id| leaf::of_node(id, OWN_ADDRESS).into()).collect();
        Group { nodes: Nodes::Pool(pool), role_arn, leaves, ttl: self.ttl }
    }

    fn of_master(&self, index: u32, address: IpAddr) -> Vec<Leaf> {
        leaf::of_master_on_ec2(self.cluster, index, &self.ec2(), address)
    }

    /// User data of the `index`-th control-plane node, whose login has this id. `roots` are the guest's.
    ///
    /// # Errors
    /// [`UserDataError`], if it is more than EC2 takes.
    pub fn user_data_of_master(
        &self,
        index: u32,
        blank: Blank,
        login_id: &str,
        roots: &Roots,
    ) -> Result<Vec<u8>, UserDataError> {
        let name = names::master(index);
        let tags = [
            (names::OWNER_UID_ANNOTATION, self.owner.uid.as_str()),
            (names::ROLE_LABEL, names::ROLE_CONTROL_PLANE),
            (names::NODE_LABEL, name.as_str()),
        ];
        let attached = Attached {
            region: self.region.clone(),
            ec2: self.services.ec2.clone(),
            tags: tags.map(|(tag, value)| (tag.to_owned(), value.to_owned())).into(),
        };
        let leaves = self.of_master(index, OWN_ADDRESS);
        let mut keys = self.keys(Nodes::ControlPlane, login_id, &leaves, &Authority::ALL);
        keys.lasting = Some(lasting(login_id, roots));
        keys.machine = Machine { name: Some(name), attached: Some(attached) };
        user_data::render(node_config::control_plane_on_ec2(self.cluster, index, blank, &self.ec2()), &keys)
    }

    /// User data of all workers of a pool, whose login has this id.
    ///
    /// # Errors
    /// [`UserDataError`], if it is more than EC2 takes.
    pub fn user_data_of_pool(&self, pool: &NodePool, login_id: &str) -> Result<Vec<u8>, UserDataError> {
        let leaves = leaf::of_node(OWN_NAME, OWN_ADDRESS);
        let keys = self.keys(Nodes::Pool(pool.name.as_str()), login_id, &leaves, &[Authority::Kubernetes]);
        user_data::render(node_config::worker_on_ec2(self.cluster, pool, &self.ec2()), &keys)
    }

    fn keys<'a>(&self, nodes: Nodes, login_id: &'a str, leaves: &'a [Leaf], authorities: &[Authority]) -> Keys<'a> {
        let at = |of: &Authority| {
            let (mount, certificate) = self.authorities.get(of)?;
            let file = match of {
                Authority::Kubernetes => paths::CA,
                Authority::Etcd => paths::ETCD_CA,
                Authority::FrontProxy => paths::FRONT_PROXY_CA,
            };
            let fingerprint = embedded::fingerprint(certificate);
            Some(AuthorityAt { name: *of, mount: mount.clone(), fingerprint, file: paths::in_pki(file).into() })
        };
        Keys {
            vault: self.vault.clone(),
            login: Login {
                mount: super::identity::METHOD.into(),
                role: nodes.login(self.owner),
                server_id: self.server_id.clone(),
                region: self.region.clone(),
                sts: self.services.sts.clone(),
            },
            login_id,
            authorities: authorities.iter().filter_map(at).collect(),
            leaves,
            ttl: self.ttl,
            lasting: None,
            machine: Machine::default(),
        }
    }
}

/// Where control-plane nodes find keys that nobody signs, and by what they know them.
fn lasting(login_id: &str, roots: &Roots) -> config::Keys {
    use secrecy::ExposeSecret as _;
    let file = |(name, key): (&str, secrecy::SecretString)| KeyFile {
        name: name.to_owned(),
        sha256: embedded::fingerprint(key.expose_secret()),
        file: paths::in_pki(name).into(),
    };
    config::Keys { path: plan::keys_path(login_id), files: plan::keys(roots).map(file).into() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        pki::{authority::Kept, embedded::Pair},
        testing::valid,
    };

    fn roots() -> Roots {
        let pair = || Pair { certificate: "public".into(), key: "s3cr3t-of-tokens".to_owned().into() };
        let kept = || Kept::InVault { certificate: "ca".into(), mount: "giantnetes/abcde/x".into() };
        let (kubernetes, etcd, front_proxy) = (kept(), kept(), kept());
        let encryption = "s3cr3t-at-rest".to_owned().into();
        Roots {
            kubernetes,
            etcd,
            front_proxy,
            service_account: pair(),
            encryption,
            rotated_for: 0,
            keys_for: crate::pki::keys::Wishes::default(),
        }
    }

    fn guest<'a>(cluster: &'a Valid, owner: &'a Owner) -> Guest<'a> {
        let at = |of| (of, (format!("giantnetes/abcde/{of}"), crate::testing::certificate()));
        Guest {
            cluster,
            owner,
            has_cloud_controller: false,
            vault: Address {
                address: "https://vault.example.com".into(),
                ca_certificate: crate::testing::certificate(),
                namespace: None,
            },
            server_id: "vault.example.com".into(),
            region: "eu-central-1".into(),
            services: Services::of("eu-central-1"),
            authorities: Authority::ALL.map(at).into(),
            ttl: Duration::from_secs(3600),
        }
    }

    fn agent(user_data: &[u8]) -> config::Config {
        let text = user_data::tests::files(user_data)["/etc/giantnetes/node-agent.yaml"].clone();
        let config: config::Config = serde_saphyr::from_str(&text).unwrap();
        config.check().unwrap();
        config
    }

    #[test]
    fn a_master_is_handed_what_it_is_and_hashes_of_keys_that_nobody_signs() {
        let owner = Owner { uid: "u".into(), id: "abcde".into(), name: "a/b".into() };
        let cluster = valid(json!({}));
        let guest = guest(&cluster, &owner);
        let user_data = guest.user_data_of_master(0, Blank::Forms, "ID", &roots()).unwrap();
        for text in user_data::tests::files(&user_data).values() {
            assert!(!text.contains("s3cr3t"), "{text}");
        }
        let agent = agent(&user_data);
        let keys = agent.keys.unwrap();
        assert_eq!(keys.path, "giantnetes-keys/ID");
        assert_eq!(keys.files[1].sha256, embedded::fingerprint("s3cr3t-of-tokens"));
        assert_eq!(keys.files[1].file.to_str(), Some("/etc/kubernetes/pki/sa.key"));
        assert_eq!(agent.machine.name.as_deref(), Some("master-0"));
        let attached = agent.machine.attached.unwrap();
        assert_eq!(attached.ec2, "https://ec2.eu-central-1.amazonaws.com/");
        assert_eq!(attached.tags["giantnetes.io/node"], "master-0");
        // What it asks for is what its login's roles sign.
        let group = guest.control_plane(None);
        let signers = plan::signers(&group, "ID");
        assert_eq!(agent.certificates.len(), signers.len());
        for (wanted, signer) in agent.certificates.iter().zip(&signers) {
            assert_eq!((&wanted.role, wanted.authority), (&signer.name, signer.authority));
            let names: Vec<_> =
                signer.role["allowed_domains"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
            assert!(wanted.dns.iter().chain([&wanted.common_name]).all(|name| names.contains(&name.as_str())));
        }
        let etcd = agent.certificates.iter().find(|wanted| wanted.name == "etcd-peer").unwrap();
        assert!(etcd.dns.contains(&"master-0.abcde.giantnetes.internal".to_owned()), "{:?}", etcd.dns);
    }

    #[test]
    fn workers_of_a_pool_are_handed_the_same_and_none_of_the_control_planes_keys() {
        let owner = Owner { uid: "u".into(), id: "abcde".into(), name: "a/b".into() };
        let cluster = valid(json!({"nodePools": [{"name": "web"}]}));
        let guest = guest(&cluster, &owner);
        let agent = agent(&guest.user_data_of_pool(&cluster.pools[0], "ID").unwrap());
        assert_eq!((agent.keys, &agent.machine), (None, &Machine::default()));
        assert_eq!((agent.authorities.len(), agent.login.role.as_str()), (1, "g8s-abcde-web"));
        let names: Vec<_> = agent.certificates.iter().map(|wanted| wanted.role.clone()).collect();
        let group = guest.pool("web", None, &["i-0a".into()]);
        assert_eq!(names, plan::signers(&group, "ID").into_iter().map(|signer| signer.name).collect::<Vec<_>>());
    }
}
