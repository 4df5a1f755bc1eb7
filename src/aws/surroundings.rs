//! What the operator has each of a guest's nodes handed, from what it knows of the world around them. Pure.

use std::{collections::BTreeMap, time::Duration};

use super::{
    identity::Nodes,
    nodes::Services,
    tags::Owner,
    user_data::{self, Keys, OWN_ADDRESS, OWN_NAME, UserDataError},
};
use crate::{
    api::names,
    cluster::{
        Identity, Valid,
        valid::{Aws, NodePool},
    },
    node_agent::config::{Attached, AuthorityAt, Login, Machine},
    node_config::{self, Blank, Ec2, paths},
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

impl Surroundings<'_> {
    /// What all nodes are told of where they are. No cloud controller is among the add-ons.
    fn ec2(&self) -> Ec2 {
        Ec2 { domain: self.owner.domain(), has_cloud_controller: false }
    }

    /// By what a control-plane node finds the volume and the interface that outlive it.
    fn machine(&self, index: u32) -> Machine {
        let name = names::master(index);
        let tags = [
            (names::OWNER_UID_ANNOTATION, self.owner.uid.as_str()),
            (names::ROLE_LABEL, names::ROLE_CONTROL_PLANE),
            (names::NODE_LABEL, name.as_str()),
        ];
        let attached = Attached {
            region: self.aws.region.clone(),
            ec2: Services::of(&self.aws.region).ec2,
            tags: tags.map(|(tag, value)| (tag.to_owned(), value.to_owned())).into(),
        };
        Machine { name: Some(name), attached: Some(attached) }
    }
}

/// User data of all control-plane nodes, in their order.
///
/// # Errors
/// [`UserDataError`], if that of one is more than EC2 takes.
pub fn of_masters(valid: &Valid, around: Surroundings<'_>) -> Result<Vec<Vec<u8>>, UserDataError> {
    let of = |index| {
        let forms = index == 0 && !around.etcd_formed;
        let blank = if forms { Blank::Forms } else { Blank::Joins };
        let leaves = leaf::of_master_on_ec2(valid, index, &around.ec2(), OWN_ADDRESS);
        let mut keys = keys(valid, around, Nodes::ControlPlane, &leaves, &Authority::ALL);
        keys.machine = around.machine(index);
        user_data::render(node_config::control_plane_on_ec2(valid, index, blank, &around.ec2()), &keys)
    };
    (0..valid.control_plane.replicas).map(of).collect()
}

/// User data of all nodes of a pool.
///
/// # Errors
/// [`UserDataError`], if it is more than EC2 takes.
pub fn of_pool(valid: &Valid, pool: &NodePool, around: Surroundings<'_>) -> Result<Vec<u8>, UserDataError> {
    let leaves = leaf::of_node(OWN_NAME, OWN_ADDRESS);
    let keys = keys(valid, around, Nodes::Pool(pool.name.as_str()), &leaves, &[Authority::Kubernetes]);
    user_data::render(node_config::worker_on_ec2(valid, pool, &around.ec2()), &keys)
}

fn keys<'a>(
    valid: &Valid,
    around: Surroundings<'a>,
    nodes: Nodes<'_>,
    leaves: &'a [Leaf],
    trusted: &[Authority],
) -> Keys<'a> {
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
            sts: Services::of(&around.aws.region).sts,
        },
        login_id,
        authorities: authorities(&valid.identity, around, trusted),
        leaves,
        ttl: valid.pki.leaf_ttl.max(Duration::from_secs(600)),
        lasting: None,
        machine: Machine::default(),
    }
}

fn authorities(identity: &Identity, around: Surroundings<'_>, trusted: &[Authority]) -> Vec<AuthorityAt> {
    let at = |authority: &Authority| AuthorityAt {
        name: *authority,
        mount: role::mount(&around.vault.prefix, identity, *authority),
        fingerprint: around.roots.get(&Root::Ca(*authority).record()).cloned().unwrap_or_default(),
        file: paths::in_pki(match authority {
            Authority::Kubernetes => paths::CA,
            Authority::Etcd => paths::ETCD_CA,
            Authority::FrontProxy => paths::FRONT_PROXY_CA,
        })
        .into(),
    };
    trusted.iter().map(at).collect()
}
