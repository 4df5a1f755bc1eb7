//! By what nodes on AWS are known to Vault, and what it signs for them.
//!
//! ```text
//!  role of a pool's instances ──► role of auth/aws, which Vault gives an id ──► alias of who logs in: that id
//!                                                                                 │ policy, the same for all nodes
//!                                                    roles ID.CERTIFICATE ◄───────┘ of the guest's authorities
//! ```
//!
//! One policy, which the operator of Vault writes once, lets every node sign by the roles that begin with the id of its own
//! login, and by no others. So the controller manager needs no right to write policies, which would be a right to everything.

use std::time::Duration;

use serde_json::{Value, json};

use super::tags::Owner;
use crate::pki::{leaf::Leaf, vault::role};

/// Name of the policy of nodes: the chart's `files/aws/vault-nodes-policy.hcl`.
pub const POLICY: &str = "giantnetes-nodes";
/// Path of the auth method by which nodes log in.
pub const METHOD: &str = "giantnetes-aws";
/// Path of the secrets engine (`kv`, version 1) with keys that nobody signs.
pub const KEYS: &str = "giantnetes-keys";
/// How long a login is good for: a node uses it at once.
const TOKEN: Duration = Duration::from_secs(600);

/// Nodes that are one to AWS and to Vault: their instances have one role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nodes<'a> {
    /// Those of the control plane.
    ControlPlane,
    /// Those of a pool.
    Pool(&'a str),
}

/// Why there is no role of Vault's for a role of AWS's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not the ARN of one IAM role without a path, which Vault could compare")]
pub struct NotARole(String);

impl Nodes<'_> {
    /// Name of their role in Vault's auth method: their stack's, so no other guest or pool has it.
    pub fn login(self, owner: &Owner) -> String {
        match self {
            Self::ControlPlane => owner.cluster_stack(),
            Self::Pool(pool) => owner.pool_stack(pool),
        }
    }
}

/// The role of Vault's auth method for who has the IAM role with this ARN: an output of their stack.
///
/// # Errors
/// If the ARN is not one that Vault finds in the word of STS, or fits more than one role.
pub fn login(arn: &str) -> Result<Value, NotARole> {
    if !is_role(arn) {
        return Err(NotARole(arn.to_owned()));
    }
    Ok(json!({
        "auth_type": "iam",
        "bound_iam_principal_arn": [arn],
        // Vault would have to be let into each account to ask for it. The role's name has a part that CloudFormation made up,
        // and this role goes with it.
        "resolve_aws_unique_ids": false,
        // One word, as policies of Vault compare it.
        "token_policies": POLICY,
        "token_no_default_policy": true,
        // Nothing of it is stored, however many nodes log in.
        "token_type": "batch",
        "token_ttl": TOKEN.as_secs(),
        "token_max_ttl": TOKEN.as_secs(),
    }))
}

/// `arn:PARTITION:iam::ACCOUNT:role/NAME`. STS tells no paths, and a wildcard makes Vault ask IAM.
fn is_role(arn: &str) -> bool {
    let parts: Vec<_> = arn.split(':').collect();
    let ["arn", partition, "iam", "", account, resource] = parts.as_slice() else { return false };
    let is_account = account.len() == 12 && account.bytes().all(|byte| byte.is_ascii_digit());
    let is_partition =
        partition.starts_with("aws") && partition.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
    // IAM's own letters.
    let is_name = |name: &str| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+=,.@_-".contains(&byte))
    };
    is_account && is_partition && resource.strip_prefix("role/").is_some_and(is_name)
}

/// Name of the role that signs a certificate of the nodes whose login has this id.
pub fn signer(login_id: &str, certificate: &str) -> String {
    role::name(login_id, certificate)
}

/// The role that signs one certificate for each of these nodes, of which `leaves` has theirs. None: there is no node.
///
/// What tells them apart is theirs to say: each of them is signed any of these names.
pub fn signs(leaves: &[Leaf], ttl: Duration) -> Option<Value> {
    let (first, others) = leaves.split_first()?;
    let mut all = first.clone();
    for leaf in others {
        let names = std::iter::once(&leaf.common_name).chain(&leaf.dns);
        let new: Vec<_> = names.filter(|name| **name != all.common_name && !all.dns.contains(name)).cloned().collect();
        all.dns.extend(new);
    }
    Some(role::role(&all, ttl))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::leaf::{self, Usage};

    fn owner(id: &str) -> Owner {
        Owner { uid: "u".into(), id: id.into(), name: "a/b".into() }
    }

    const ARN: &str = "arn:aws:iam::111122223333:role/g8s-abc-web-Role-1A2B3C";

    #[test]
    fn a_login_is_for_one_role_of_one_account_and_gives_the_policy_of_nodes_alone() {
        let login = login(ARN).unwrap();
        assert_eq!((&login["auth_type"], &login["bound_iam_principal_arn"]), (&json!("iam"), &json!([ARN])));
        assert_eq!((&login["token_policies"], &login["token_no_default_policy"]), (&json!(POLICY), &json!(true)));
        assert_eq!(login["token_ttl"], login["token_max_ttl"]);
        for arn in ["arn:aws-cn:iam::111122223333:role/a", "arn:aws-us-gov:iam::111122223333:role/a.b@c"] {
            assert!(is_role(arn), "{arn}");
        }
        for arn in [
            "",
            "*",
            "arn:aws:iam::111122223333:role/*",
            "arn:aws:iam::111122223333:role/path/name",
            "arn:aws:iam::111122223333:role/",
            "arn:aws:iam::111122223333:user/a",
            "arn:aws:iam::*:role/a",
            "arn:aws:iam::11112222333:role/a",
            "arn:aws:sts::111122223333:assumed-role/a/i-0",
            "arn:aws:iam:eu-central-1:111122223333:role/a",
        ] {
            assert_eq!(super::login(arn), Err(NotARole(arn.to_owned())));
        }
    }

    #[test]
    fn logins_of_other_nodes_and_guests_have_other_names() {
        let (one, two) = (owner("aaaaa"), owner("bbbbb"));
        let mut names =
            vec![Nodes::ControlPlane.login(&one), Nodes::Pool("web").login(&one), Nodes::Pool("db").login(&one)];
        names.extend([Nodes::ControlPlane.login(&two), Nodes::Pool("web").login(&two)]);
        assert!(names.iter().all(|name| name.starts_with("g8s-")), "{names:?}");
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn the_policy_lets_a_node_sign_by_the_roles_of_its_own_login_alone() {
        let policy = include_str!("../../charts/giantnetes/files/aws/vault-nodes-policy.hcl");
        let paths: Vec<_> =
            policy.lines().filter_map(|line| line.strip_prefix("path \"")?.strip_suffix("\" {")).collect();
        let own = "{{identity.entity.aliases.ACCESSOR.name}}";
        let keys = format!("giantnetes-keys/{own}");
        assert_eq!(paths, [&format!("giantnetes/+/+/sign/{own}.*"), "giantnetes/+/+/cert/ca", &keys]);
        // What the path ends with is what a signer begins with.
        assert_eq!(signer("ID", "kubelet"), "ID.kubelet");
        let capabilities: Vec<_> = policy.lines().filter(|line| line.contains("capabilities")).map(str::trim).collect();
        let (sign, read) = (r#"capabilities = ["update"]"#, r#"capabilities = ["read"]"#);
        assert_eq!(capabilities, [sign, read, read]);
    }

    #[test]
    fn a_pools_role_signs_the_names_of_its_nodes_and_no_others() {
        let day = Duration::from_secs(24 * 3600);
        let nodes: Vec<_> = ["i-0a", "i-0b"].map(|node| leaf::of_node(node, [10, 1, 0, 4].into())).into();
        for (index, first) in nodes[0].iter().enumerate() {
            let leaves: Vec<_> = nodes.iter().map(|leaves| leaves[index].clone()).collect();
            let role = signs(&leaves, day).unwrap();
            let mut wanted: Vec<_> =
                leaves.iter().flat_map(|leaf| std::iter::once(&leaf.common_name).chain(&leaf.dns)).collect();
            wanted.sort();
            wanted.dedup();
            let mut names: Vec<_> =
                role["allowed_domains"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
            names.sort_unstable();
            assert_eq!(names, wanted, "{}", first.name);
            assert_eq!(role["organization"], json!(first.organisations));
            assert_eq!(role["server_flag"], json!(first.usage != Usage::Client));
            assert_eq!(role["allow_any_name"], json!(false));
        }
        assert_eq!(signs(&[], day), None);
        // Of one node it is the role that it would have by itself.
        assert_eq!(signs(&nodes[0][..1], day), Some(role::role(&nodes[0][0], day)));
    }
}
