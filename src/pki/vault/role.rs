//! What Vault may sign for whom: a role per certificate, pinned to exactly its names. Pure.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    api::names,
    cluster::Identity,
    pki::{
        embedded::BACKDATE,
        leaf::{Authority, BOOTSTRAPPER, Leaf, REQUESTED, Usage},
        roots::Root,
    },
};

/// Path of the PKI mount that is a guest's authority: `<prefix>/<id>/<authority>`. Ids have one length, so none is the beginning
/// of another's.
pub fn mount(prefix: &str, identity: &Identity, authority: Authority) -> String {
    format!("{prefix}/{}/{}", identity.id, Root::Ca(authority).name())
}

/// What says whose a mount is.
pub fn description(identity: &Identity) -> String {
    format!("{}: {} {}", names::MANAGER, identity.key, identity.uid)
}

/// Name of the role for a certificate of `holder`, such as `master-0.kubelet`.
pub fn name(holder: &str, certificate: &str) -> String {
    format!("{holder}.{certificate}")
}

/// A role that signs this certificate and no other. What Vault cannot pin are the addresses: a server's role takes any, a
/// client's none.
pub fn role(leaf: &Leaf, ttl: Duration) -> Value {
    let mut names = vec![leaf.common_name.as_str()];
    names.extend(leaf.dns.iter().map(String::as_str).filter(|name| *name != leaf.common_name));
    // Who makes his key himself chooses of which sort it is; Vault refuses weak ones.
    let (key_type, key_bits) = if leaf.name == REQUESTED { ("any", 0) } else { ("ec", 256) };
    json!({
        "allowed_domains": names,
        "allow_bare_domains": true,
        "allow_any_name": false,
        "allow_subdomains": false,
        "allow_glob_domains": false,
        "allow_wildcard_certificates": false,
        "allow_localhost": false,
        // Users and components are no host names; they are compared with the list all the same.
        "enforce_hostnames": false,
        // Who is called like an e-mail address is asked for by that whole name; else Vault would sign any@NAME, too.
        "cn_validations": [if leaf.common_name.contains('@') { "email" } else { "hostname" }],
        "allow_ip_sans": !leaf.addresses.is_empty(),
        "allowed_uri_sans": [],
        "allowed_other_sans": [],
        "require_cn": true,
        "use_csr_common_name": true,
        "use_csr_sans": true,
        "organization": leaf.organisations,
        "ou": [],
        "key_type": key_type,
        "key_bits": key_bits,
        "key_usage": ["DigitalSignature"],
        "ext_key_usage": [],
        "server_flag": leaf.usage != Usage::Client,
        "client_flag": leaf.usage != Usage::Server,
        "code_signing_flag": false,
        "email_protection_flag": false,
        "basic_constraints_valid_for_non_ca": false,
        "ttl": ttl.as_secs(),
        "max_ttl": ttl.as_secs(),
        "not_before_duration": BACKDATE.as_secs(),
        // Vault keeps a list, from which one can be revoked by hand; not of ours, of which there are eight an hour and guest.
        "no_store": leaf.name == BOOTSTRAPPER,
        "generate_lease": false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{pki::leaf, testing::valid};

    #[test]
    fn a_role_names_its_certificate_and_no_other() {
        let cluster = valid(json!({}));
        let leaves = leaf::of_master(&cluster, 0);
        for leaf in &leaves {
            let role = role(leaf, Duration::from_secs(60));
            let names: Vec<_> = role["allowed_domains"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
            assert_eq!(names[0], leaf.common_name);
            assert!(leaf.dns.iter().all(|name| names.contains(&name.as_str())), "{names:?}");
            assert!(names[1..].iter().all(|name| leaf.dns.iter().any(|dns| dns == name)), "{names:?}");
            assert_eq!(role["organization"], json!(leaf.organisations));
            assert_eq!(role["allow_ip_sans"], json!(!leaf.addresses.is_empty()));
            assert_eq!((&role["ttl"], &role["max_ttl"]), (&json!(60), &json!(60)));
        }
        let mut roles: Vec<_> = leaves.iter().map(|leaf| name("master-0", leaf.name)).collect();
        roles.sort();
        roles.dedup();
        assert_eq!(roles.len(), leaves.len());
    }

    #[test]
    fn a_mount_is_the_guests_own() {
        let one = valid(json!({})).identity;
        let two = Identity::new(one.key.clone(), "another".into());
        assert_eq!(mount("g", &one, Authority::FrontProxy), format!("g/{}/front-proxy", one.id));
        assert_ne!(mount("g", &one, Authority::Etcd), mount("g", &two, Authority::Etcd));
        assert_ne!(description(&one), description(&two));
    }
}
