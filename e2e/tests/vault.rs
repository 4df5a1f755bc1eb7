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
        vault::{InVault, Request, Vault, role},
    },
    settings::{Settings, VaultAuth, VaultSettings},
};
use k8s_openapi::jiff::Timestamp;
use rcgen::PublicKeyData as _;
use secrecy::SecretString;
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
