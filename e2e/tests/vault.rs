//! Both authorities behind one suite: what is planned is what the certificate says. And of a real Vault, that it signs
//! nothing else, with no other rights than the chart's policy.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use std::{collections::BTreeSet, time::Duration};

use giantnetes::{
    api::Cluster,
    cluster::{Identity, Valid},
    network::places::Place,
    pki::{
        self,
        embedded::{self, Pair},
        leaf::{self, Authority, Leaf, REQUESTED, Usage},
        request::{Signer, Unfit},
        roots::Root,
        vault::{
            self, InVault, Request, Vault, VaultError,
            client::{Address, Connection},
            escrow, role,
        },
    },
    settings::{Settings, VaultAuth, VaultSettings},
};
use k8s_openapi::jiff::Timestamp;
use rcgen::PublicKeyData as _;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use support::{
    requests::{EC, request},
    vault::VaultServer,
};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, pem::parse_x509_pem};

const DAY: Duration = Duration::from_secs(24 * 3600);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

fn valid(name: &str, uid: &str) -> Valid {
    let cluster: Cluster = serde_json::from_value(json!({
        "apiVersion": "giantnetes.io/v1alpha1", "kind": "Cluster", "spec": {"nodePools": [{"name": "a"}]},
        "metadata": {"name": name, "namespace": "team", "uid": uid, "generation": 1},
    }))
    .unwrap();
    let settings: Settings = serde_json::from_value(json!({
        "kubernetes": {"defaultVersion": "v1.36.3", "images": {"v1.36.3": "vm"}},
    }))
    .unwrap();
    Valid::new(&cluster, &settings).unwrap()
}

/// Every certificate that a guest has, each with its holder.
fn planned(cluster: &Valid) -> Vec<(String, Leaf)> {
    let of = |holder: &'static str| move |leaf| (holder.to_owned(), leaf);
    let mut all: Vec<_> = leaf::of_master(cluster, 0).into_iter().map(of("master-0")).collect();
    all.extend(leaf::of_worker(cluster, "a-0", Place(64)).into_iter().map(of("a-0")));
    all.push(of("administrator")(leaf::administrator()));
    all.push(of("manager")(leaf::bootstrapper()));
    for (holder, user, groups) in [
        ("one", "alice", vec![]),
        ("two", "bob@example.com", vec!["dev".to_owned()]),
        ("three", "carol", vec!["ops".to_owned(), "dev".to_owned(), "audit".to_owned()]),
    ] {
        all.push(of(holder)(leaf::user(user, &groups)));
    }
    all
}

fn read<T>(pem: &str, look: impl FnOnce(&X509Certificate) -> T) -> T {
    let (_, pem) = parse_x509_pem(pem.as_bytes()).unwrap();
    look(&pem.parse_x509().unwrap())
}

/// Fails where a certificate is another than the one that was planned.
fn is_as_planned(root: &str, leaf: &Leaf, pair: &Pair, now: Timestamp, ttl: Duration) {
    read(&pair.certificate, |certificate| {
        let words = |attribute: &x509_parser::x509::AttributeTypeAndValue| attribute.as_str().unwrap().to_owned();
        let subject = certificate.subject();
        let names: Vec<_> = subject.iter_common_name().map(words).collect();
        assert_eq!(names, std::slice::from_ref(&leaf.common_name));
        assert_eq!(subject.iter_organization().map(words).collect::<BTreeSet<_>>(), groups(leaf));
        assert_eq!(subject.iter_attributes().count(), 1 + leaf.organisations.len(), "{subject}");
        let found = certificate.subject_alternative_name().unwrap();
        let mut found: Vec<_> =
            found.map_or_else(Vec::new, |names| names.value.general_names.iter().map(shown).collect());
        let mut wanted: Vec<_> = leaf.dns.clone();
        wanted.extend(leaf.addresses.iter().map(ToString::to_string));
        found.sort();
        wanted.sort();
        assert_eq!(found, wanted, "{}", leaf.name);
        let usage = certificate.extended_key_usage().unwrap().unwrap().value;
        assert_eq!((usage.client_auth, usage.server_auth), (leaf.usage != Usage::Server, leaf.usage != Usage::Client));
        assert!(!usage.any && !usage.code_signing && !usage.email_protection && usage.other.is_empty());
        let key_usage = certificate.key_usage().unwrap().unwrap().value;
        assert!(key_usage.digital_signature() && !key_usage.key_cert_sign() && !key_usage.crl_sign());
        assert!(!certificate.is_ca());
        let (from, to) = (certificate.validity().not_before.timestamp(), certificate.validity().not_after.timestamp());
        let (now, ttl) = (now.as_second(), i64::try_from(ttl.as_secs()).unwrap());
        // Who signs looks at its own clock, a little later.
        assert!((now - 300..now - 240).contains(&from), "valid from {from}, now {now}");
        assert!((now + ttl..now + ttl + 60).contains(&to), "valid to {to}, now {now} and {ttl}");
        read(root, |root| certificate.verify_signature(Some(root.public_key())).unwrap());
    });
}

/// The groups of a certificate: Vault has an order of its own for them.
fn groups(leaf: &Leaf) -> BTreeSet<String> {
    leaf.organisations.iter().cloned().collect()
}

fn shown(name: &GeneralName) -> String {
    match name {
        GeneralName::DNSName(name) => (*name).to_owned(),
        GeneralName::IPAddress(bytes) => bytes.iter().map(u8::to_string).collect::<Vec<_>>().join("."),
        other => panic!("{other} is in a certificate"),
    }
}

fn is_a_root(certificate: &str, now: Timestamp, ttl: Duration) {
    read(certificate, |root| {
        assert!(root.is_ca());
        let usage = root.key_usage().unwrap().unwrap().value;
        assert!(usage.key_cert_sign() && usage.crl_sign());
        assert_eq!(root.basic_constraints().unwrap().unwrap().value.path_len_constraint, Some(0));
        let end = now.as_second() + i64::try_from(ttl.as_secs()).unwrap();
        assert!((end..end + 60).contains(&root.validity().not_after.timestamp()));
        root.verify_signature(None).unwrap();
    });
}

fn client_of(server: &VaultServer) -> Vault {
    let settings: VaultSettings = serde_json::from_value(server.settings(&server.app_role())).unwrap();
    assert!(matches!(settings.auth, VaultAuth::AppRole { .. }));
    Vault::new(settings, None).unwrap()
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let _ = rustls::crypto::ring::default_provider().install_default();
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(work)
}

#[test]
fn the_built_in_authority_issues_what_is_planned() {
    let (cluster, now) = (valid("cp-a", "1"), Timestamp::now());
    let root = embedded::root("kubernetes", "team/cp-a", now, YEAR).unwrap();
    is_a_root(&root.certificate, now, YEAR);
    let planned = planned(&cluster);
    for (_, leaf) in &planned {
        let pair = embedded::sign(&root, leaf, now, DAY).unwrap();
        is_as_planned(&root.certificate, leaf, &pair, now, DAY);
    }
    println!("    {} certificates", planned.len());
}

#[test]
fn vault_issues_what_is_planned_and_nothing_else() {
    let server = VaultServer::start("conformance").unwrap();
    // Names of which one is the other's beginning.
    let [one, two] = [("cp-a", "1"), ("cp-aa", "2")].map(|(name, uid)| valid(name, uid));
    block_on(async {
        let vault = client_of(&server);
        let now = Timestamp::now();
        let mut roots = Vec::new();
        for cluster in [&one, &two] {
            for authority in Authority::ALL {
                let root = vault.make(&cluster.identity, authority, YEAR).await.unwrap();
                is_a_root(&root, now, YEAR);
                // Whoever asks again gets the same.
                assert_eq!(vault.make(&cluster.identity, authority, YEAR).await.unwrap(), root);
                roots.push(root);
            }
        }
        roots.sort();
        roots.dedup();
        assert_eq!(roots.len(), 6, "each authority has a root of its own");
        signs_what_is_planned(&vault, &one).await;
        signs_what_others_have_the_keys_of(&server, &vault, &one).await;
        is_cut_short_by_its_root(&vault, &one).await;
        asked_for_something_else(&server, &vault, &one, &two);
        rights_are_those_that_are_needed(&server, &one.identity);
        a_foreign_mount_is_left_alone(&server, &vault).await;
        is_removed(&server, &vault, &one.identity, &two.identity).await;
    });
}

async fn signs_what_is_planned(vault: &Vault, cluster: &Valid) {
    let planned = planned(cluster);
    let began = std::time::Instant::now();
    for (holder, leaf) in &planned {
        let mount = vault.mount(&cluster.identity, leaf.authority);
        let certificate = vault.make(&cluster.identity, leaf.authority, YEAR).await.unwrap();
        let authority = InVault { mount: &mount, certificate: &certificate };
        let now = Timestamp::now();
        let pair = vault.sign(authority, holder, leaf, now, DAY).await.unwrap();
        is_as_planned(&certificate, leaf, &pair, now, DAY);
        // Until it is stored it is the same, and then another.
        assert_eq!(vault.sign(authority, holder, leaf, now, DAY).await.unwrap().certificate, pair.certificate);
        vault.stored(&cluster.identity, holder);
        let now = Timestamp::now();
        let second = vault.sign(authority, holder, leaf, now, DAY).await.unwrap();
        assert_ne!(second.certificate, pair.certificate);
        is_as_planned(&certificate, leaf, &second, now, DAY);
        vault.verify(authority).await.unwrap();
        let other = embedded::root("kubernetes", "nobody", Timestamp::now(), YEAR).unwrap().certificate;
        let exchanged = InVault { mount: &mount, certificate: &other };
        assert!(vault.verify(exchanged).await.unwrap_err().to_string().contains("another root"));
        let error = vault.sign(exchanged, holder, leaf, Timestamp::now(), DAY).await.unwrap_err();
        assert!(error.to_string().contains("another root"), "{error}");
        vault.stored(&cluster.identity, holder);
    }
    println!("    {} certificates, each twice, in {:.1?}", planned.len(), began.elapsed());
}

/// What somebody asks for inside a guest, with a key of his own: each gets what he asked for, one after the other by one role.
async fn signs_what_others_have_the_keys_of(server: &VaultServer, vault: &Vault, cluster: &Valid) {
    let root = vault.make(&cluster.identity, Authority::Kubernetes, YEAR).await.unwrap();
    let mount = vault.mount(&cluster.identity, Authority::Kubernetes);
    let authority = InVault { mount: &mount, certificate: &root };
    let (rsa, p384) = (["-newkey", "rsa:2048"], EC[3].replace("prime256v1", "secp384r1"));
    let p384 = ["-newkey", "ec", "-pkeyopt", &p384];
    let serving = Some("subjectAltName=DNS:a-0,IP:192.0.2.1");
    let [client, server_auth] =
        ["client auth", "server auth"].map(|usage| [usage.to_owned(), "digital signature".to_owned()]);
    let node = "/O=system:nodes/CN=system:node:a-0";
    for (name, key, subject, names, signer, usages) in [
        ("user", rsa.as_slice(), "/CN=alice/O=dev/O=ops", None, Signer::Client, client.clone()),
        ("mail", &p384, "/CN=bob@example.com", None, Signer::Client, client.clone()),
        ("kubelet", &EC, node, None, Signer::Kubelet, client.clone()),
        ("serving", &EC, node, serving, Signer::KubeletServing, server_auth),
    ] {
        let (csr, key) = request(server.folder(), name, key, subject, names).unwrap();
        let [csr, key] = [csr, key].map(|file| std::fs::read_to_string(file).unwrap());
        let asked = pki::request::read(signer, csr.as_bytes(), &usages).unwrap();
        let now = Timestamp::now();
        let request = Request { leaf: &asked.leaf, pem: &asked.pem, key: asked.key.der_bytes() };
        let certificate = vault.sign_request(authority, REQUESTED, request, now, DAY).await.unwrap();
        let key = SecretString::from(key);
        is_as_planned(&root, &asked.leaf, &Pair { certificate, key: key.clone() }, now, DAY);
        let here = embedded::root("kubernetes", "here", now, YEAR).unwrap();
        let certificate = embedded::certify(&here, &asked.leaf, &asked.key, now, DAY).unwrap();
        is_as_planned(&here.certificate, &asked.leaf, &Pair { certificate, key }, now, DAY);
    }
    // The role is the last one's alone, whatever Vault is handed.
    let (token, path) =
        (server.managers_token().unwrap(), format!("{mount}/sign/{}", role::name(REQUESTED, REQUESTED)));
    for (name, key, subject, names) in [
        ("weak-node", ["-newkey", "rsa:1024"].as_slice(), node, serving),
        ("other-user", &EC, "/CN=system:node:a-1", serving),
        ("other-host", &EC, node, Some("subjectAltName=DNS:kubernetes")),
        ("other-kind", &EC, node, Some("subjectAltName=URI:spiffe://x/y")),
    ] {
        let (csr, _) = request(server.folder(), name, key, subject, names).unwrap();
        let answer = server.as_holder(&token, &["write", &path, &format!("csr=@{}", csr.display())]).output();
        assert!(answer.is_err(), "{path} signed {name}");
    }
    // What the authority never signs is told apart from one that is not there now.
    let (csr, _) = request(server.folder(), "star", &EC, "/CN=*.example.com", None).unwrap();
    let asked = pki::request::read(Signer::Client, &std::fs::read(csr).unwrap(), &client).unwrap();
    let star = Request { leaf: &asked.leaf, pem: &asked.pem, key: asked.key.der_bytes() };
    let refused = vault.sign_request(authority, REQUESTED, star, Timestamp::now(), DAY).await.unwrap_err();
    assert!(pki::reconcile::Error::from(refused).is_refusal());
    let (csr, _) = request(server.folder(), "weak", &["-newkey", "rsa:1024"], "/CN=alice", None).unwrap();
    let weak = pki::request::read(Signer::Client, &std::fs::read(csr).unwrap(), &client);
    assert_eq!(weak.unwrap_err(), Unfit::Signature);
    vault.forget(&mount, REQUESTED, &[REQUESTED]).await.unwrap();
}

/// What is to live longer than its root ends with it.
async fn is_cut_short_by_its_root(vault: &Vault, cluster: &Valid) {
    let short = valid("short", "3");
    let root = vault.make(&short.identity, Authority::Kubernetes, DAY).await.unwrap();
    let mount = vault.mount(&short.identity, Authority::Kubernetes);
    let authority = InVault { mount: &mount, certificate: &root };
    let leaf = &leaf::of_worker(cluster, "a-0", Place(64))[0];
    let pair = vault.sign(authority, "a-0", leaf, Timestamp::now(), YEAR).await.unwrap();
    let ends = |pem: &str| read(pem, |certificate| certificate.validity().not_after.timestamp());
    assert!((ends(&root) - 120..=ends(&root)).contains(&ends(&pair.certificate)));
    let over = Timestamp::from_second(ends(&root)).unwrap();
    let error = vault.sign(authority, "a-0", leaf, over, DAY).await.unwrap_err();
    assert!(error.to_string().contains("expired"), "{error}");
    assert_eq!(vault.remove(&short.identity).await.unwrap(), [mount]);
}

/// Each role, asked by the controller manager's own token for what it must not give.
fn asked_for_something_else(server: &VaultServer, vault: &Vault, one: &Valid, two: &Valid) {
    let file_of = |name: &str, key: &[&str], subject: &str, extension: Option<&str>| {
        request(server.folder(), name, key, subject, extension).unwrap().0.display().to_string()
    };
    let token = server.managers_token().unwrap();
    let mut asked = 0;
    for (holder, leaf) in planned(one) {
        let mount = vault.mount(&one.identity, leaf.authority);
        let path = format!("{mount}/sign/{}", role::name(&holder, leaf.name));
        let subject = format!("/CN={}", leaf.common_name);
        let others = leaf::of_master(two, 0).remove(0).dns;
        let others = others.into_iter().find(|name| name.contains(&two.identity.namespace)).unwrap();
        let refused = [
            ("another-name", EC.as_slice(), "/CN=system:admin".to_owned(), None),
            ("no-name", &EC, "/O=nobody".to_owned(), None),
            ("wildcard", &EC, format!("/CN=*.{}", leaf.common_name), None),
            ("wildcard-host", &EC, subject.clone(), Some("subjectAltName=DNS:*.example.com".to_owned())),
            (
                "below",
                &EC,
                subject.clone(),
                Some(format!("subjectAltName=DNS:x.{}", leaf.common_name.replace([':', '@'], "-"))),
            ),
            ("others-host", &EC, subject.clone(), Some(format!("subjectAltName=DNS:{others}"))),
            ("uri", &EC, subject.clone(), Some("subjectAltName=URI:spiffe://x/y".to_owned())),
            ("rsa-1024", &["-newkey", "rsa:1024"], subject.clone(), None),
            ("rsa-2048", &["-newkey", "rsa:2048"], subject.clone(), None),
        ];
        for (what, key, subject, extension) in refused {
            let csr = file_of(what, key, &subject, extension.as_deref());
            let answer = server.as_holder(&token, &["write", "-format=json", &path, &format!("csr=@{csr}")]).output();
            assert!(answer.is_err(), "{path} signed {what}: {}", answer.unwrap());
            asked += 1;
        }
        if leaf.addresses.is_empty() {
            let csr = file_of("address", &EC, &subject, Some("subjectAltName=IP:192.0.2.1"));
            let answer = server.as_holder(&token, &["write", &path, &format!("csr=@{csr}")]).output();
            assert!(answer.is_err(), "{path} signed an address");
            asked += 1;
        }
        // What is not refused is left out: groups, being an authority, a longer life.
        let subject = format!("/O=system:masters{subject}");
        let csr = file_of("greedy", &EC, &subject, Some("basicConstraints=critical,CA:TRUE"));
        let args =
            ["write", "-field=certificate", &path, &format!("csr=@{csr}"), "ttl=8760h", "exclude_cn_from_sans=true"];
        let certificate = server.as_holder(&token, &args).output().unwrap();
        read(&certificate, |certificate| {
            assert!(!certificate.is_ca(), "{path} signed an authority");
            let found = certificate.subject().iter_organization().map(|name| name.as_str().unwrap().to_owned());
            assert_eq!(found.collect::<BTreeSet<_>>(), groups(&leaf), "{path}");
            let life = certificate.validity().not_after.timestamp() - Timestamp::now().as_second();
            assert!(life <= i64::try_from(DAY.as_secs()).unwrap(), "{path} signed for {life} s");
        });
        asked += 3;
    }
    println!("    asked {asked} times for what must not be signed");
    assert!(asked >= 40);
}

/// What the controller manager's token may not do.
fn rights_are_those_that_are_needed(server: &VaultServer, identity: &Identity) {
    let token = server.managers_token().unwrap();
    let mount = role::mount("giantnetes", identity, Authority::Kubernetes);
    let (exported, existing) = (format!("{mount}/root/generate/exported"), format!("{mount}/root/generate/existing"));
    let (sign_any, issue) = (format!("{mount}/sign-verbatim"), format!("{mount}/issue/administrator.administrator"));
    let (intermediate, keys) = (format!("{mount}/root/sign-intermediate"), format!("{mount}/keys"));
    server.root(&["secrets", "enable", "-path=secret", "kv"]).unwrap();
    server.root(&["write", "secret/a", "b=c"]).unwrap();
    for refused in [
        ["write", &exported, "common_name=x"],
        ["write", &existing, "common_name=x"],
        ["write", &sign_any, "csr=x"],
        ["write", &issue, "common_name=giantnetes:administrator"],
        ["write", &intermediate, "csr=x"],
        ["list", "-format=json", &keys],
        ["read", "-format=json", "secret/a"],
        ["secrets", "list", "-detailed"],
        ["policy", "list", "-format=json"],
        ["read", "-format=json", "sys/policies/acl/giantnetes"],
        ["write", "sys/mounts/other", "type=pki"],
        ["write", "sys/mounts/giantnetes", "type=pki"],
        ["write", "sys/mounts/giantnetesx/a/b", "type=pki"],
        ["write", "sys/mounts/giantnetes/a/b", "type=kv"],
        ["auth", "list", "-detailed"],
        ["token", "create", "-format=json"],
    ] {
        let answer = server.as_holder(&token, &refused).output();
        let error = answer.map_or_else(|error| format!("{error:#}"), |said| panic!("{refused:?} was allowed: {said}"));
        assert!(error.contains("permission denied") || error.contains("403"), "{refused:?}: {error}");
    }
}

async fn a_foreign_mount_is_left_alone(server: &VaultServer, vault: &Vault) {
    let cluster = valid("foreign", "4");
    let mount = vault.mount(&cluster.identity, Authority::Etcd);
    server.root(&["secrets", "enable", &format!("-path={mount}"), "-description=somebody's", "pki"]).unwrap();
    let error = vault.make(&cluster.identity, Authority::Etcd, YEAR).await.unwrap_err();
    assert!(error.to_string().contains(&mount) && error.to_string().contains("not this Cluster's"), "{error}");
    assert_eq!(vault.remove(&cluster.identity).await.unwrap(), Vec::<String>::new());
    assert!(server.mounts().unwrap().contains(&format!("{mount}/")));
    server.root(&["secrets", "disable", &mount]).unwrap();
}

async fn is_removed(server: &VaultServer, vault: &Vault, one: &Identity, two: &Identity) {
    assert_eq!(server.mounts().unwrap().len(), 6);
    assert_eq!(vault.remove(one).await.unwrap().len(), 3);
    assert_eq!(vault.remove(one).await.unwrap(), Vec::<String>::new());
    let left = server.mounts().unwrap();
    assert!(left.len() == 3 && left.iter().all(|mount| mount.contains(&two.id)), "{left:?}");
}

/// The mounts' issuers: one each.
fn has_one_issuer(server: &VaultServer, mount: &str) {
    let issuers: Vec<String> =
        serde_json::from_str(&server.root(&["list", "-format=json", &format!("{mount}/issuers")]).unwrap()).unwrap();
    assert_eq!(issuers.len(), 1, "{mount}");
}

/// Paths of the keys that are written down for a guest's authority.
fn written_down(server: &VaultServer, identity: &Identity, of: &str) -> Vec<String> {
    let folder = format!("giantnetes/{}/escrow/metadata/{of}", identity.id);
    let Ok(list) = server.root(&["list", "-format=json", &folder]) else { return Vec::new() };
    let entries: Vec<String> = serde_json::from_str(&list).unwrap();
    entries.iter().map(|entry| format!("giantnetes/{}/escrow/data/{of}/{entry}", identity.id)).collect()
}

fn name_of(authority: Authority) -> &'static str {
    Root::Ca(authority).name()
}

fn is_refused(server: &VaultServer, token: &str, args: &[&str]) {
    // What a KV engine would take.
    let answer = server.as_holder(token, args).input(r#"{"data": {"key": "x"}}"#).output();
    let error = answer.map_or_else(|error| format!("{error:#}"), |said| panic!("{args:?} was allowed: {said}"));
    assert!(error.contains("permission denied") || error.contains("403"), "{args:?}: {error}");
}

#[test]
fn keys_that_can_be_exported_are_written_once_and_read_by_officers_alone() {
    let server = VaultServer::start("escrow").unwrap();
    let [one, two, three] = [("one", "1"), ("two", "2"), ("three", "3")].map(|(name, uid)| valid(name, uid));
    block_on(async {
        let now = Timestamp::now();
        let mut roots = Vec::new();
        for authority in Authority::ALL {
            // Whoever comes later, in another life, finds the same.
            let root = client_of(&server).make_exportable(&one.identity, authority, now, YEAR).await.unwrap();
            is_a_root(&root, now, YEAR);
            let again = client_of(&server).make_exportable(&one.identity, authority, now, YEAR).await.unwrap();
            assert_eq!(again, root);
            let mount = role::mount("giantnetes", &one.identity, authority);
            has_one_issuer(&server, &mount);
            let entries = written_down(&server, &one.identity, name_of(authority));
            let [entry] = &entries[..] else { panic!("{entries:?}") };
            assert!(entry.ends_with(&embedded::fingerprint(&root)), "{entry}");
            officers_read(&server, &mount, authority, &root, entry).await;
            roots.push((authority, root));
        }
        let vault = client_of(&server);
        signs_what_is_planned(&vault, &one).await;
        neither_does_more_than_it_has_to(&server, &one.identity);
        a_lost_mount_comes_back_of_its_key(&server, &one, &roots).await;
        a_death_between_writing_down_and_importing_leaves_one_authority(&server, &two).await;
        what_comes_from_elsewhere_is_brought_once(&server, &three).await;
        // Somebody else's mount is not written into, and stays.
        let four = valid("four", "4");
        let escrow = format!("giantnetes/{}/escrow", four.identity.id);
        server.root(&["secrets", "enable", &format!("-path={escrow}"), "-version=2", "kv"]).unwrap();
        let error = vault.make_exportable(&four.identity, Authority::Etcd, now, YEAR).await.unwrap_err().to_string();
        assert!(error.contains(&escrow) && error.contains("not this Cluster's"), "{error}");
        // It goes with the guest, and that of others does not.
        let mut gone = vault.remove(&one.identity).await.unwrap();
        assert_eq!((gone.len(), gone.pop().unwrap()), (4, format!("giantnetes/{}/escrow", one.identity.id)));
        assert_eq!(vault.remove(&one.identity).await.unwrap(), Vec::<String>::new());
        vault.remove(&four.identity).await.unwrap();
        let left = server.mounts().unwrap();
        assert!(left.iter().all(|mount| !mount.contains(&one.identity.id)) && left.contains(&format!("{escrow}/")));
    });
}

/// What was written down is what Vault signs by.
async fn officers_read(server: &VaultServer, mount: &str, authority: Authority, root: &str, entry: &str) {
    let token = server.officers_token().unwrap();
    let [address, file, _] = server.variables("").map(|text| text.split_once('=').unwrap().1.to_owned());
    let at = Address { address, ca_certificate: std::fs::read_to_string(file).unwrap(), namespace: None };
    let kept = InVault { mount, certificate: root };
    let connection = Connection::with_token(at.clone(), token.clone().into()).unwrap();
    let pair = escrow::read(&connection, authority, kept).await.unwrap().unwrap();
    assert_eq!(pair.certificate, root);
    let key = rcgen::KeyPair::from_pem(pair.key.expose_secret()).unwrap();
    read(root, |root| assert_eq!(root.public_key().raw, key.subject_public_key_info()));
    let other = embedded::root("kubernetes", "nobody", Timestamp::now(), YEAR).unwrap().certificate;
    let none = escrow::read(&connection, authority, InVault { certificate: &other, ..kept }).await.unwrap();
    assert!(none.is_none());
    let managers = Connection::with_token(at.clone(), server.managers_token().unwrap().into()).unwrap();
    let refused = giantnetes::runtime::chain(&escrow::read(&managers, authority, kept).await.unwrap_err());
    assert!(refused.contains(&format!("refuses to read {entry}")), "{refused}");
    let nobody = Connection::with_token(at, "hvs.nobody".to_owned().into()).unwrap();
    let refused = giantnetes::runtime::chain(&escrow::read(&nobody, authority, kept).await.unwrap_err());
    assert!(refused.contains("not known to Vault"), "{refused}");
}

/// The controller manager does not come by what it wrote down, and an officer by nothing else.
fn neither_does_more_than_it_has_to(server: &VaultServer, identity: &Identity) {
    let guest = format!("giantnetes/{}", identity.id);
    let entry = written_down(server, identity, "etcd").remove(0);
    let below = |part: &str| entry.replace("/data/", &format!("/{part}/"));
    let (escrow, other) = (format!("{guest}/escrow"), format!("{guest}/escrow/data/etcd/other"));
    let manager = server.managers_token().unwrap();
    for refused in [
        ["read", "-format=json", &entry],
        ["read", "-format=json", &below("subkeys")],
        ["list", "-format=json", &format!("{escrow}/metadata/etcd")],
        ["list", "-format=json", &format!("{escrow}/metadata")],
        ["write", &entry, "-"],
        ["write", &below("metadata"), "max_versions=1"],
        ["write", &below("destroy"), "versions=1"],
        ["write", &below("delete"), "versions=1"],
        ["delete", "-format=json", &entry],
        ["delete", "-format=json", &below("metadata")],
        ["write", &format!("{escrow}/config"), "max_versions=1"],
        ["write", &format!("sys/mounts/{escrow}/tune"), "description=x"],
        ["write", &format!("sys/mounts/{guest}x/escrow"), "type=pki"],
        ["write", &format!("sys/mounts/{guest}x/etcd"), "type=kv"],
        ["list", "-format=json", &format!("{guest}/etcd/keys")],
        ["write", &format!("{guest}/etcd/root/generate/exported"), "common_name=x"],
        ["write", &format!("{guest}/etcd/config/issuers"), "default=x"],
        ["write", &format!("{guest}/etcd/issuers/import/bundle"), "key_name=x"],
    ] {
        is_refused(server, &manager, &refused);
    }
    let officer = server.officers_token().unwrap();
    server.as_holder(&officer, &["read", "-format=json", &entry]).output().unwrap();
    for refused in [
        ["write", &entry, "-"],
        ["write", &other, "-"],
        ["delete", "-format=json", &entry],
        ["read", "-format=json", &below("metadata")],
        ["list", "-format=json", &format!("{escrow}/metadata/etcd")],
        ["write", &below("destroy"), "versions=1"],
        ["read", "-format=json", &format!("{guest}/etcd/roles/master-0.etcd-server")],
        ["write", &format!("{guest}/etcd/sign/master-0.etcd-server"), "csr=x"],
        ["list", "-format=json", &format!("{guest}/etcd/keys")],
        ["read", "-format=json", &format!("sys/mounts/{escrow}")],
        ["secrets", "list", "-detailed"],
        ["policy", "list", "-format=json"],
        ["token", "create", "-format=json"],
    ] {
        is_refused(server, &officer, &refused);
    }
}

/// As docs/vault.md says it.
async fn a_lost_mount_comes_back_of_its_key(server: &VaultServer, cluster: &Valid, roots: &[(Authority, String)]) {
    let (vault, guest) = (client_of(server), format!("giantnetes/{}", cluster.identity.id));
    let (mount, entry) = (format!("{guest}/etcd"), written_down(server, &cluster.identity, "etcd").remove(0));
    let (_, root) = roots.iter().find(|(authority, _)| *authority == Authority::Etcd).unwrap();
    let authority = InVault { mount: &mount, certificate: root };
    vault.verify(authority).await.unwrap();
    server.root(&["secrets", "disable", &mount]).unwrap();
    assert!(matches!(
        vault.verify(authority).await,
        Err(vault::Error::Vault(VaultError::NoMount(_)) | vault::Error::Exchanged(_))
    ));
    let (escrow, path) = entry.split_once("/data/").unwrap();
    let get = |field: &str| {
        server.root(&["kv", "get", &format!("-mount={escrow}"), &format!("-field={field}"), path]).unwrap()
    };
    let file = server.folder().join("etcd.pem");
    std::fs::write(&file, format!("{}\n{}\n", get("key"), get("certificate"))).unwrap();
    let description = format!("-description=giantnetes: team/one {}", cluster.identity.uid);
    let enable = ["secrets", "enable", &format!("-path={mount}"), "-max-lease-ttl=8760h", &description, "pki"];
    server.root(&enable).unwrap();
    let bundle = format!("pem_bundle=@{}", file.display());
    server.root(&["write", &format!("{mount}/issuers/import/bundle"), &bundle]).unwrap();
    vault.verify(authority).await.unwrap();
    let (_, leaf) = planned(cluster).into_iter().find(|(_, leaf)| leaf.authority == Authority::Etcd).unwrap();
    let now = Timestamp::now();
    let pair = client_of(server).sign(authority, "master-0", &leaf, now, DAY).await.unwrap();
    is_as_planned(root, &leaf, &pair, now, DAY);
}

/// As if it died there: what it wrote down is of no use, and the next one makes another, whose key is there as well.
async fn a_death_between_writing_down_and_importing_leaves_one_authority(server: &VaultServer, cluster: &Valid) {
    let policy = server.root(&["policy", "read", "giantnetes"]).unwrap();
    let file = server.folder().join("without-import.hcl");
    let set = |policy: &str| {
        std::fs::write(&file, policy).unwrap();
        server.root(&["policy", "write", "giantnetes", &file.display().to_string()]).unwrap();
    };
    set(&policy.replace("issuers/import/bundle", "issuers/import/none"));
    let (identity, now) = (&cluster.identity, Timestamp::now());
    let first = client_of(server);
    for _ in 0..3 {
        let error = first.make_exportable(identity, Authority::Etcd, now, YEAR).await.unwrap_err().to_string();
        assert!(error.contains("issuers/import/bundle"), "{error}");
        assert_eq!(written_down(server, identity, "etcd").len(), 1, "a try writes no other one down");
    }
    set(&policy);
    let root = client_of(server).make_exportable(identity, Authority::Etcd, now, YEAR).await.unwrap();
    let entries = written_down(server, identity, "etcd");
    assert_eq!(entries.len(), 2);
    assert!(entries.iter().any(|entry| entry.ends_with(&embedded::fingerprint(&root))), "its key is not there");
    // The one that was thought dead comes too late.
    assert_eq!(first.make_exportable(identity, Authority::Etcd, now, YEAR).await.unwrap(), root);
    has_one_issuer(server, &role::mount("giantnetes", identity, Authority::Etcd));
}

async fn what_comes_from_elsewhere_is_brought_once(server: &VaultServer, cluster: &Valid) {
    let (identity, now) = (&cluster.identity, Timestamp::now());
    for (authority, exportable) in [(Authority::Kubernetes, false), (Authority::Etcd, true)] {
        let pair = embedded::root(name_of(authority), "elsewhere/one", now, YEAR).unwrap();
        for _ in 0..2 {
            let vault = client_of(server);
            vault.bring(identity, authority, &pair, YEAR, exportable).await.unwrap();
        }
        let mount = role::mount("giantnetes", identity, authority);
        has_one_issuer(server, &mount);
        assert_eq!(written_down(server, identity, name_of(authority)).len(), usize::from(exportable));
        let other = embedded::root(name_of(authority), "elsewhere/two", now, YEAR).unwrap();
        let vault = client_of(server);
        let error = vault.bring(identity, authority, &other, YEAR, exportable).await.unwrap_err().to_string();
        assert!(error.contains(&mount) && error.contains("another root already"), "{error}");
        has_one_issuer(server, &mount);
        let leaves = planned(cluster).into_iter().filter(|(_, leaf)| leaf.authority == authority);
        for (holder, leaf) in leaves {
            let authority = InVault { mount: &mount, certificate: &pair.certificate };
            let now = Timestamp::now();
            let signed = vault.sign(authority, &holder, &leaf, now, DAY).await.unwrap();
            is_as_planned(&pair.certificate, &leaf, &signed, now, DAY);
        }
    }
}

/// A token that was revoked, or that a restored Vault never heard of, costs no certificate.
#[test]
fn a_revoked_token_is_given_up_for_another() {
    let server = VaultServer::start("tokens").unwrap();
    let cluster = valid("one", "1");
    block_on(async {
        let vault = client_of(&server);
        vault.make(&cluster.identity, Authority::Kubernetes, YEAR).await.unwrap();
        server.root(&["lease", "revoke", "-prefix", "auth/approle/login"]).unwrap();
        let certificate = vault.make(&cluster.identity, Authority::Kubernetes, YEAR).await.unwrap();
        let mount = vault.mount(&cluster.identity, Authority::Kubernetes);
        let authority = InVault { mount: &mount, certificate: &certificate };
        let leaf = leaf::administrator();
        // A role that somebody took away, or changed, is written again at the next try.
        let sign = async || {
            vault.stored(&cluster.identity, "administrator");
            let signed = vault.sign(authority, "administrator", &leaf, Timestamp::now(), DAY).await;
            signed.map(drop).map_err(|error| giantnetes::runtime::chain(&error))
        };
        let role = format!("{mount}/roles/administrator.administrator");
        sign().await.unwrap();
        server.root(&["delete", &role]).unwrap();
        let error = sign().await.unwrap_err();
        assert!(error.contains("unknown role"), "{error}");
        sign().await.unwrap();
        server.root(&["patch", &role, "organization=system:masters"]).unwrap();
        let error = sign().await.unwrap_err();
        assert!(error.contains("has another subject"), "{error}");
        sign().await.unwrap();
        // Wrong credentials are told, and not which.
        let settings = server.settings(&json!({"appRole": {"roleIdFile": "/dev/null", "secretIdFile": "/dev/null"}}));
        let stranger = Vault::new(serde_json::from_value::<VaultSettings>(settings).unwrap(), None).unwrap();
        let error = stranger.verify(authority).await.unwrap_err();
        assert!(
            giantnetes::runtime::chain(&error).contains("auth/approle/login"),
            "{}",
            giantnetes::runtime::chain(&error)
        );
        let nobody: Value = json!({"kubernetes": {"role": "a", "tokenFile": "/nowhere"}});
        let stranger = Vault::new(serde_json::from_value::<VaultSettings>(server.settings(&nobody)).unwrap(), None);
        let error = stranger.unwrap().verify(authority).await.unwrap_err();
        assert!(error.to_string().contains("read /nowhere"), "{error}");
    });
}

/// Certificates a second, and what they cost this process, beside Vault's own client with requests that are ready.
#[test]
#[ignore = "takes the whole machine: make bench"]
fn bench_certificates() {
    const AT_ONCE: usize = 8;
    const CERTIFICATES: usize = AT_ONCE * 50;
    // Each of theirs is a process.
    const THEIRS: usize = AT_ONCE * 12;
    let server = VaultServer::start("bench").unwrap();
    let cluster = valid("bench", "1");
    let leaf = leaf::administrator();
    let mount = role::mount("giantnetes", &cluster.identity, leaf.authority);
    let (took, cpu) = block_on(async {
        let vault = client_of(&server);
        let certificate = vault.make(&cluster.identity, leaf.authority, YEAR).await.unwrap();
        let authority = InVault { mount: &mount, certificate: &certificate };
        let sign = async || {
            vault.stored(&cluster.identity, "administrator");
            drop(vault.sign(authority, "administrator", &leaf, Timestamp::now(), DAY).await.unwrap());
        };
        sign().await;
        let (began, cpu) = (std::time::Instant::now(), cpu_time());
        let lane = async || {
            for _ in 0..CERTIFICATES / AT_ONCE {
                sign().await;
            }
        };
        futures::future::join_all((0..AT_ONCE).map(|_| lane())).await;
        (began.elapsed(), cpu_time() - cpu)
    });
    let (request, _) = embedded::request(&leaf).unwrap();
    let file = server.folder().join("bench.csr");
    std::fs::write(&file, request).unwrap();
    let token = server.managers_token().unwrap();
    let write = || {
        let path = format!("{mount}/sign/administrator.administrator");
        let csr = format!("csr=@{}", file.display());
        server
            .as_holder(&token, &["write", "-field=certificate", &path, &csr, "exclude_cn_from_sans=true"])
            .output()
            .unwrap()
    };
    let began = std::time::Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                for _ in 0..THEIRS / AT_ONCE {
                    write();
                }
            });
        }
    });
    let (ours, theirs) = (rate(CERTIFICATES, took), rate(THEIRS, began.elapsed()));
    let each = cpu.as_secs_f64() * 1000.0 / CERTIFICATES as f64;
    support::keep("vault", serde_json::json!({"certificates_per_s": ours, "theirs_per_s": theirs, "cpu_ms": each}));
    println!("    {ours:.0} certificates/s, `vault write` {theirs:.0}/s; {each:.2} ms of CPU each (aim: 2 ms)");
}

fn rate(count: usize, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

/// CPU time of this process, in hundredths of a second as Linux counts them for people (proc_pid_stat(5), 14 and 15).
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks: u64 = [11, 12].iter().map(|field| fields[*field].parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}
