//! What each of a guest's nodes is handed: its configuration, and by what it is known to Vault. Pure.

use std::{collections::BTreeMap, time::Duration};

use super::{
    identity::Nodes,
    tags::Owner,
    user_data::{self, Keys, OWN_ADDRESS, OWN_NAME, UserDataError},
};
use crate::{
    cluster::{
        Identity, Valid,
        valid::{Aws, NodePool},
    },
    network::places::Place,
    node_agent::config::{AuthorityAt, Login},
    node_config::{self, Blank, paths},
    pki::{
        leaf::{self, Authority, Leaf},
        roots::Root,
        vault::role,
    },
    settings::{AwsSettings, VaultSettings},
};

/// What nodes are told of the world around them.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'a> {
    /// Whose they are.
    pub owner: &'a Owner,
    /// Where.
    pub aws: &'a Aws,
    /// The Vault.
    pub vault: &'a VaultSettings,
    /// The operator's settings of the provider.
    pub settings: &'a AwsSettings,
    /// Fingerprints of the guest's roots, by [`Root::record`].
    pub roots: &'a BTreeMap<String, String>,
    /// Whether etcd has held the guest's objects.
    pub etcd_formed: bool,
    /// Ids that Vault gave the roles by which nodes log in, by the roles' names. One that is missing is called by its name.
    pub logins: &'a BTreeMap<String, String>,
}

/// User data of all control-plane nodes, in their order.
///
/// # Errors
/// [`UserDataError`], if that of one is more than EC2 takes.
pub fn of_masters(valid: &Valid, around: Surroundings<'_>) -> Result<Vec<Vec<u8>>, UserDataError> {
    let of = |index| {
        let forms = index == 0 && !around.etcd_formed;
        let config = node_config::control_plane(valid, index, if forms { Blank::Forms } else { Blank::Joins });
        let leaves = leaf::of_master(valid, index);
        user_data::render(config, &keys(valid, around, Nodes::ControlPlane, &leaves))
    };
    (0..valid.control_plane.replicas).map(of).collect()
}

/// User data of all nodes of a pool.
///
/// # Errors
/// [`UserDataError`], if it is more than EC2 takes.
pub fn of_pool(valid: &Valid, pool: &NodePool, around: Surroundings<'_>) -> Result<Vec<u8>, UserDataError> {
    let name = pool.name.as_str();
    let config = node_config::worker(valid, pool, name, Place(0));
    let leaves = leaf::of_node(OWN_NAME, OWN_ADDRESS);
    user_data::render(config, &keys(valid, around, Nodes::Pool(name), &leaves))
}

fn keys<'a>(valid: &Valid, around: Surroundings<'a>, nodes: Nodes<'_>, leaves: &'a [Leaf]) -> Keys<'a> {
    let login = nodes.login(around.owner);
    let login_id = around.logins.get(&login).map_or(
        // Nothing is signed by it: a node waits until its user data has the id.
        "unknown",
        String::as_str,
    );
    Keys {
        vault: around.vault.into(),
        login: Login {
            mount: around.settings.vault_mount.clone(),
            role: login,
            server_id: around.settings.vault_server_id.clone(),
            region: around.aws.region.clone(),
            sts: sts(&around.aws.region),
        },
        login_id,
        authorities: authorities(&valid.identity, around),
        leaves,
        ttl: valid.pki.leaf_ttl.max(Duration::from_secs(600)),
    }
}

fn authorities(identity: &Identity, around: Surroundings<'_>) -> Vec<AuthorityAt> {
    let at = |authority| AuthorityAt {
        name: authority,
        mount: role::mount(&around.vault.prefix, identity, authority),
        fingerprint: around.roots.get(&Root::Ca(authority).record()).cloned().unwrap_or_default(),
        file: paths::in_pki(match authority {
            Authority::Kubernetes => paths::CA,
            Authority::Etcd => paths::ETCD_CA,
            Authority::FrontProxy => paths::FRONT_PROXY_CA,
        })
        .into(),
    };
    Authority::ALL.map(at).into()
}

/// The STS of a region. In China it is under another name.
fn sts(region: &str) -> String {
    let domain = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
    format!("https://sts.{region}.{domain}/")
}
