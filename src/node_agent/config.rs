//! What user data hands over to the agent. Nothing in it is secret.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::pki::{
    leaf::{Authority, Leaf, Usage},
    vault::client::Address,
};

/// Where an instance finds its metadata service, whatever network it is in.
pub const METADATA: &str = "http://169.254.169.254";
/// Folder of what lasts until the next boot.
pub const STATE: &str = "/run/giantnetes/node-agent.json";

/// The agent's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// The Vault that keeps the guest's authorities.
    pub vault: Address,
    /// By what the node is known there.
    pub login: Login,
    /// The authorities that sign for this node.
    pub authorities: Vec<AuthorityAt>,
    /// What it has signed.
    pub certificates: Vec<Wanted>,
    /// Keys that are no certificates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<Keys>,
    /// What the machine has to have.
    #[serde(default)]
    pub machine: Machine,
    /// URL of the metadata service.
    #[serde(default = "metadata", skip_serializing_if = "is_usual_metadata")]
    pub metadata: String,
    /// File that says what there is, and whether it is all that is wanted.
    #[serde(default = "state", skip_serializing_if = "is_usual_state")]
    pub state: PathBuf,
}

/// How a node proves to Vault that it has an instance's role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Login {
    /// Path of the auth method.
    pub mount: String,
    /// Its role.
    pub role: String,
    /// What the signature names as the server that it is for, so that nobody else can log in with it.
    pub server_id: String,
    /// Region whose STS is asked who signed.
    pub region: String,
    /// URL of that STS. The signature is for it, and Vault hands it on to the STS that its own configuration names.
    pub sts: String,
}

/// An authority, and how it is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorityAt {
    /// Which of the guest's.
    pub name: Authority,
    /// Path of its mount.
    pub mount: String,
    /// SHA-256 of its certificate, as the guest's namespace records it. What has another is not this authority.
    pub fingerprint: String,
    /// Where its certificate is put.
    pub file: PathBuf,
}

/// A certificate that the node has to have. In its names the node puts in what it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Wanted {
    /// Name, for people, such as `kubelet`.
    pub name: String,
    /// Who signs it.
    pub authority: Authority,
    /// The role of Vault's by which it is signed.
    pub role: String,
    /// Common name, such as `system:node:{instance-id}`.
    pub common_name: String,
    /// Organisations.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub organisations: Vec<String>,
    /// Host names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<String>,
    /// Addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// What it is good for.
    pub usage: Usage,
    /// Seconds that it lives, unless its authority ends before.
    pub ttl_seconds: u32,
    /// Where it is put.
    pub certificate: PathBuf,
    /// Where its key is put.
    pub key: PathBuf,
    /// Who reads both.
    #[serde(default)]
    pub readers: Readers,
    /// What is run when it has changed: a program and its arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reload: Vec<String>,
}

/// What a machine has to have before anything runs on it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Machine {
    /// The node's name. None: its instance's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// A volume and an interface that outlive the instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attached: Option<Attached>,
}

/// A volume and an interface that the instance attaches to itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Attached {
    /// Their region.
    pub region: String,
    /// URL of its EC2.
    pub ec2: String,
    /// Tags that both of them have, and no others of their kind.
    pub tags: BTreeMap<String, String>,
}

/// Keys that nobody signs: Vault keeps them for the nodes of one login.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Keys {
    /// Where they are in Vault.
    pub path: String,
    /// Each of them.
    pub files: Vec<KeyFile>,
}

/// A file with a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeyFile {
    /// What Vault calls it.
    pub name: String,
    /// SHA-256 of its text. What has another is not this key. Of what nobody can guess it tells nothing.
    pub sha256: String,
    /// Where it is put. Nobody but root reads it.
    pub file: PathBuf,
}

/// Who reads a file besides root, to whom it belongs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Readers {
    /// Nobody: mode 0600.
    #[default]
    Owner,
    /// The group with this number: mode 0640.
    Group(u32),
}

/// What the node is, as its instance's identity document says it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Instance {
    /// Id, such as `i-0123456789abcdef0`.
    pub instance_id: String,
    /// Address of its first interface.
    pub private_ip: IpAddr,
    /// Availability zone.
    #[serde(default)]
    pub availability_zone: Option<String>,
}

/// What a node puts in for its instance's id.
pub const INSTANCE_ID: &str = "{instance-id}";
/// What a node puts in for its address.
pub const LOCAL_ADDRESS: &str = "{local-address}";

/// Why a configuration is of no use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "each says what its fields are")]
pub enum Problem {
    #[error("certificate {0} is of an authority that is not listed")]
    Authority(String),
    #[error("certificate {certificate}: {text} is no address")]
    Address { certificate: String, text: String },
    #[error("certificate {certificate}: nothing is known to be put in for {text}")]
    Placeholder { certificate: String, text: String },
    #[error("certificate {0} is to live for no time")]
    Ttl(String),
    #[error("{0} is to be written twice")]
    Path(String),
    #[error("no certificate is asked for")]
    Nothing,
}

impl Config {
    /// What is wrong with it, which no later try would mend.
    ///
    /// # Errors
    /// [`Problem`]
    pub fn check(&self) -> Result<(), Problem> {
        if self.certificates.is_empty() {
            return Err(Problem::Nothing);
        }
        let mut paths: Vec<_> = self.authorities.iter().map(|authority| &authority.file).collect();
        // Any instance shows whether there is something to be put in that nobody knows.
        let instance =
            Instance { instance_id: "i-0".into(), private_ip: IpAddr::from([127, 0, 0, 1]), availability_zone: None };
        for wanted in &self.certificates {
            if self.authority(wanted.authority).is_none() {
                return Err(Problem::Authority(wanted.name.clone()));
            }
            if wanted.ttl_seconds == 0 {
                return Err(Problem::Ttl(wanted.name.clone()));
            }
            wanted.leaf(&instance)?;
            paths.extend([&wanted.certificate, &wanted.key]);
        }
        paths.extend(self.keys.iter().flat_map(|keys| &keys.files).map(|key| &key.file));
        paths.extend([&self.state]);
        paths.sort_unstable();
        match paths.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(Problem::Path(pair[0].display().to_string())),
            None => Ok(()),
        }
    }

    /// An authority.
    pub fn authority(&self, name: Authority) -> Option<&AuthorityAt> {
        self.authorities.iter().find(|authority| authority.name == name)
    }
}

impl Wanted {
    /// What this instance asks for.
    ///
    /// # Errors
    /// [`Problem`] if the subject holds something that no instance has.
    pub fn leaf(&self, instance: &Instance) -> Result<Leaf, Problem> {
        let filled = |text: &String| {
            let filled = text
                .replace(INSTANCE_ID, &instance.instance_id)
                .replace(LOCAL_ADDRESS, &instance.private_ip.to_string());
            match filled.contains(['{', '}']) {
                true => Err(Problem::Placeholder { certificate: self.name.clone(), text: text.clone() }),
                false => Ok(filled),
            }
        };
        let all = |texts: &[String]| texts.iter().map(filled).collect::<Result<Vec<_>, _>>();
        let address = |text: String| match text.parse::<IpAddr>() {
            Ok(address) => Ok(address),
            Err(_) => Err(Problem::Address { certificate: self.name.clone(), text }),
        };
        Ok(Leaf {
            name: "node's certificate",
            authority: self.authority,
            common_name: filled(&self.common_name)?,
            organisations: all(&self.organisations)?,
            dns: all(&self.dns)?,
            addresses: all(&self.addresses)?.into_iter().map(address).collect::<Result<_, _>>()?,
            usage: self.usage,
        })
    }
}

fn metadata() -> String {
    METADATA.into()
}

fn is_usual_metadata(text: &str) -> bool {
    text == METADATA
}

fn state() -> PathBuf {
    STATE.into()
}

fn is_usual_state(path: &std::path::Path) -> bool {
    path == std::path::Path::new(STATE)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::node_agent) const TEXT: &str = "\
vault: {address: 'https://vault.example.com:8200', caCertificate: CERTIFICATES}
login:
  mount: giantnetes-aws
  role: g8s-abc-web
  serverId: vault.example.com
  region: eu-central-1
  sts: https://sts.eu-central-1.amazonaws.com/
authorities:
- {name: kubernetes, mount: giantnetes/abc/kubernetes, fingerprint: 0a, file: /pki/ca.crt}
certificates:
- name: kubelet
  authority: kubernetes
  role: pool.web.kubelet
  commonName: system:node:{instance-id}
  organisations: [system:nodes]
  usage: client
  ttlSeconds: 7776000
  certificate: /pki/kubelet.crt
  key: /pki/kubelet.key
- name: kubelet-server
  authority: kubernetes
  role: pool.web.kubelet-server
  commonName: system:node:{instance-id}
  organisations: [system:nodes]
  dns: ['{instance-id}']
  addresses: ['{local-address}']
  usage: server
  ttlSeconds: 7776000
  certificate: /pki/kubelet-server.crt
  key: /pki/kubelet-server.key
  readers: {group: 107}
  reload: [systemctl, try-restart, kubelet]
";

    pub(in crate::node_agent) fn instance() -> Instance {
        Instance { instance_id: "i-0123".into(), private_ip: [10, 1, 32, 4].into(), availability_zone: None }
    }

    fn parsed(text: &str) -> Config {
        serde_saphyr::from_str(text).unwrap()
    }

    #[test]
    fn a_configuration_is_read_and_what_the_node_is_is_put_in() {
        let config = parsed(TEXT);
        config.check().unwrap();
        assert_eq!((config.metadata.as_str(), config.state.to_str()), (METADATA, Some(STATE)));
        let [client, server] = [0, 1].map(|index: usize| config.certificates[index].leaf(&instance()).unwrap());
        assert_eq!(client.common_name, "system:node:i-0123");
        assert_eq!((client.dns.len(), client.usage), (0, Usage::Client));
        assert_eq!(server.dns, ["i-0123"]);
        assert_eq!(server.addresses, [IpAddr::from([10, 1, 32, 4])]);
        assert_eq!(config.certificates[1].readers, Readers::Group(107));
        let again = serde_saphyr::to_string(&config).unwrap();
        assert_eq!(parsed(&again), config);
        assert!(!again.contains("metadata") && !again.contains("state"), "{again}");
    }

    #[test]
    fn what_cannot_come_true_is_told() {
        let problem = |from: &str, to: &str| {
            let text = TEXT.replacen(from, to, 1);
            assert_ne!(text, TEXT);
            parsed(&text).check().unwrap_err().to_string()
        };
        assert!(problem("authority: kubernetes", "authority: etcd").contains("authority that is not listed"));
        assert!(problem("'{local-address}'", "'{public-address}'").contains("put in for {public-address}"));
        assert!(problem("'{local-address}'", "'here'").contains("here is no address"));
        assert!(problem("{instance-id}", "{instance-id").contains("nothing is known"));
        assert!(problem("ttlSeconds: 7776000", "ttlSeconds: 0").contains("no time"));
        assert!(problem("/pki/kubelet.key", "/pki/ca.crt").contains("/pki/ca.crt is to be written twice"));
        let mut config = parsed(TEXT);
        config.certificates.clear();
        assert_eq!(config.check(), Err(Problem::Nothing));
        assert!(serde_saphyr::from_str::<Config>(&TEXT.replace("serverId", "serverID")).is_err());
    }
}
