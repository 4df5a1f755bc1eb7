//! What Vault is to have for the nodes of a guest. Pure.

use std::time::Duration;

use secrecy::SecretString;
use serde_json::Value;

use crate::{
    aws::{
        identity::{self, Nodes, NotARole},
        tags::Owner,
    },
    node_config::paths,
    pki::{leaf::Leaf, roots::Roots, vault::role},
};

/// A role that nobody has: the login is there, and lets nobody in.
const NOBODY: &str = "arn:aws:iam::000000000000:role/nobody";
/// Fields of a login's role that say who gets in, and what for.
const FIELDS: [&str; 5] =
    ["auth_type", "bound_iam_principal_arn", "resolve_aws_unique_ids", "token_policies", "token_no_default_policy"];

/// Nodes that log in by one role.
#[derive(Clone, Debug)]
pub struct Group<'a> {
    /// Which of the guest's.
    pub nodes: Nodes<'a>,
    /// ARN of their instances' role, an output of their stack. None: there is no such stack yet, and nobody logs in.
    pub role_arn: Option<&'a str>,
    /// The certificates of each of the nodes that there are, in one order.
    pub leaves: Vec<Vec<Leaf>>,
    /// How long certificates live.
    pub ttl: Duration,
}

/// A role that signs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signer {
    /// The authority by which it does.
    pub authority: crate::pki::leaf::Authority,
    /// Its name.
    pub name: String,
    /// What Vault is told of it.
    pub role: Value,
}

/// Path of a login's role.
pub fn login_path(owner: &Owner, nodes: Nodes) -> String {
    format!("auth/{}/role/{}", identity::METHOD, nodes.login(owner))
}

/// A login's role.
///
/// # Errors
/// If the ARN is of no role that Vault could compare.
pub fn login(group: &Group) -> Result<Value, NotARole> {
    identity::login(group.role_arn.unwrap_or(NOBODY))
}

/// Whether a role that Vault has lets in who is to come in, and for what.
pub fn is_as_wanted(found: &Value, wanted: &Value) -> bool {
    // Vault answers lists where it takes one word, too.
    let words = |value: &Value| match value {
        Value::Array(all) => all.clone(),
        one => vec![one.clone()],
    };
    FIELDS.iter().all(|field| words(&found[field]) == words(&wanted[field]))
}

/// Roles that sign the certificates of these nodes. While there is no node there is none.
pub fn signers(group: &Group, login_id: &str) -> Vec<Signer> {
    let Some(first) = group.leaves.first() else { return vec![] };
    let of = |index: usize| {
        let leaves: Vec<_> = group.leaves.iter().filter_map(|leaves| leaves.get(index).cloned()).collect();
        let (leaf, role) = (leaves.first()?, identity::signs(&leaves, group.ttl)?);
        Some(Signer { authority: leaf.authority, name: identity::signer(login_id, leaf.name), role })
    };
    (0..first.len()).filter_map(of).collect()
}

/// Path of the keys that nobody signs, of control-plane nodes.
pub fn keys_path(login_id: &str) -> String {
    format!("{}/{login_id}", identity::KEYS)
}

/// Those keys, by the names of their files.
pub fn keys(roots: &Roots) -> [(&'static str, SecretString); 3] {
    [
        (paths::SERVICE_ACCOUNT_PUB, roots.service_account.certificate.clone().into()),
        (paths::SERVICE_ACCOUNT_KEY, roots.service_account.key.clone()),
        (paths::ENCRYPTION, roots.encryption.clone()),
    ]
}

/// Path of a role that signs.
pub fn signer_path(mount: &str, login_id: &str, certificate: &str) -> String {
    format!("{mount}/roles/{}", role::name(login_id, certificate))
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;
    use serde_json::json;

    use super::*;
    use crate::pki::{authority::Kept, embedded::Pair, leaf};

    const ARN: &str = "arn:aws:iam::111122223333:role/g8s-abc-web-Role-1A2B3C";

    fn group(nodes: &[&str], role_arn: Option<&'static str>) -> Group<'static> {
        let leaves = nodes.iter().map(|node| leaf::of_node(node, [10, 1, 0, 4].into()).into()).collect();
        Group { nodes: Nodes::Pool("web"), role_arn, leaves, ttl: Duration::from_secs(3600) }
    }

    #[test]
    fn before_there_is_a_stack_a_login_lets_nobody_in() {
        let owner = Owner { uid: "u".into(), id: "abcde".into(), name: "a/b".into() };
        assert_eq!(login_path(&owner, Nodes::Pool("web")), "auth/giantnetes-aws/role/g8s-abcde-web");
        let (early, late) = (login(&group(&[], None)).unwrap(), login(&group(&[], Some(ARN))).unwrap());
        assert_eq!(early["bound_iam_principal_arn"], json!([NOBODY]));
        assert_eq!(late["bound_iam_principal_arn"], json!([ARN]));
        // As Vault answers it, with lists in the place of words, and more than was written.
        let mut answer = late.clone();
        (answer["token_policies"], answer["role_id"]) = (json!([identity::POLICY]), json!("x"));
        assert!(is_as_wanted(&answer, &late) && !is_as_wanted(&answer, &early));
        answer["token_policies"] = json!([identity::POLICY, "more"]);
        assert!(!is_as_wanted(&answer, &late));
    }

    #[test]
    fn what_signs_is_called_after_the_login_and_names_every_node_that_there_is() {
        assert_eq!(signers(&group(&[], Some(ARN)), "ID"), []);
        let signers = signers(&group(&["i-0a", "i-0b"], Some(ARN)), "ID");
        let names: Vec<_> = signers.iter().map(|signer| signer.name.as_str()).collect();
        assert_eq!(names, leaf::OF_WORKER.map(|name| format!("ID.{name}")));
        let users = &signers[0].role["allowed_domains"];
        assert_eq!(users, &json!(["system:node:i-0a", "system:node:i-0b"]));
    }

    #[test]
    fn keys_that_nobody_signs_lie_under_the_login_and_are_no_authoritys() {
        assert_eq!(keys_path("ID"), "giantnetes-keys/ID");
        let pair = |name: &str| Pair { certificate: format!("{name}.pub"), key: format!("{name}.key").into() };
        let roots = Roots {
            kubernetes: Kept::Here(pair("kubernetes")),
            etcd: Kept::Here(pair("etcd")),
            front_proxy: Kept::Here(pair("front-proxy")),
            service_account: pair("sa"),
            encryption: "encryption".to_owned().into(),
            rotated_for: 0,
            keys_for: crate::pki::keys::Wishes::default(),
        };
        let keys = keys(&roots).map(|(name, key)| (name, key.expose_secret().to_owned()));
        let wanted = [("sa.pub", "sa.pub"), ("sa.key", "sa.key"), ("encryption.yaml", "encryption")];
        assert_eq!(keys, wanted.map(|(name, key)| (name, key.to_owned())));
    }
}
