//! A real Vault keeps the authorities: what a Cluster gets of it, and what becomes of Clusters on its bad days.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use giantnetes::pki::{escrow::seal, roots};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use lab::command::Run;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

use crate::{
    escrow::{counted, exports_told, key},
    manager::{Manager, Options},
    on_servers,
    people::g8s,
    servers::{Record, Servers},
    steady::home,
    support::{giantnetes, traces::key_words, vault::VaultServer},
    told::no_key_is_told,
    world::{SECOND, World, eventually},
};

/// How soon all goes on when Vault is back.
const RECOVERY: Duration = Duration::from_secs(60);

/// A Vault that the API server's ServiceAccount tokens log in to, and a manager's settings for it.
pub fn vault(servers: &Servers, name: &str) -> (VaultServer, Value) {
    let vault = VaultServer::start(name).unwrap();
    servers.kubectl(&["create", "serviceaccount", "giantnetes"]).output().unwrap();
    // Vault has the API server judge tokens, with the token itself.
    let binding = ["create", "clusterrolebinding", "vault", "--clusterrole=system:auth-delegator"];
    servers.kubectl(&[binding.as_slice(), &["--serviceaccount=default:giantnetes"]].concat()).output().unwrap();
    vault.trust(&servers.url(), &servers.folder().join("pki/ca.crt")).unwrap();
    let token = servers.kubectl(&["create", "token", "giantnetes"]).output().unwrap();
    let file = servers.folder().join("token");
    std::fs::write(&file, token.trim()).unwrap();
    let settings = vault.settings(&json!({"kubernetes": {"role": "giantnetes", "tokenFile": file}}));
    (vault, settings)
}

fn in_vault() -> Value {
    json!({"pki": {"backend": "Vault"}})
}

fn exportable() -> Value {
    json!({"pki": {"backend": "Vault", "exportable": true}})
}

/// Who wants the keys is told why there are none, and what to do.
async fn keys_stay_there(servers: &Servers, world: &World) {
    let (_, recipient) = key(servers.folder(), "any.key");
    let export = ["pki", "export", "one", "-n", "a", "--recipient", recipient.as_str()];
    let refused = g8s(&servers.kubeconfig(), &export).output().unwrap_err().to_string();
    for word in ["are in Vault (", "never leave it", "snapshots of that Vault"] {
        assert!(refused.contains(word), "{refused}");
    }
    assert!(exports_told(world).await.is_empty(), "an export that there was not is told");
}

/// Has new certificates issued, and answers the one of the API server before.
async fn ask_for_another(world: &World, name: &str, host: &str) -> Secret {
    let before = world.secrets(&home(world, name).await).get("master-0-pki").await.unwrap();
    let spec = json!({"spec": {"pki": {"apiServer": {"altNames": [host]}}}});
    world.clusters("a").patch(name, &PatchParams::default(), &Patch::Merge(spec)).await.unwrap();
    before
}

/// Waits until other certificates are there.
async fn another(world: &World, name: &str, before: &Secret, limit: Duration) -> Duration {
    let home = home(world, name).await;
    let (_, took) = eventually(limit, "certificates to be issued anew", || async {
        let now = world.secrets(&home).get("master-0-pki").await?;
        ensure!(now.data != before.data, "they are the same");
        Ok(())
    })
    .await
    .unwrap();
    took
}

/// The roots, as Vault has them, by mount: one issuer each.
fn all_roots(vault: &VaultServer) -> BTreeMap<String, String> {
    let root = |mount: &String| {
        let issuers: Vec<String> =
            serde_json::from_str(&vault.root(&["list", "-format=json", &format!("{mount}issuers")])?)?;
        ensure!(issuers.len() == 1, "{mount} has {issuers:?}");
        Ok((mount.clone(), vault.root(&["read", "-field=certificate", &format!("{mount}cert/ca")])?))
    };
    let all: Result<_> =
        vault.mounts().unwrap().iter().filter(|mount| !mount.ends_with("/escrow/")).map(root).collect();
    all.unwrap()
}

#[test]
fn roots_are_made_in_vault_once_and_go_with_the_cluster() {
    on_servers("vault", async |servers, world| {
        let (vault, settings) = vault(servers, "roots");
        let options = Options { log: "trace", vault: Some(settings), ..Options::default() };
        let mut manager = Manager::start(servers, "one", options).await;
        world.namespace("a").await.unwrap();
        world.create("a", "one", in_vault()).await.unwrap();
        // Killed whenever another mount is there: its root may be made, or not, and nothing of it is stored here.
        for count in 1..=3 {
            let there = || async {
                let there = vault.mounts()?.len();
                ensure!(there >= count, "{there} mounts");
                Ok(())
            };
            eventually(SECOND * 30, "another mount", there).await.unwrap();
            manager.restart();
        }
        world.converged(SECOND * 60, "a", "one").await.unwrap();
        world.create("a", "here", json!({})).await.unwrap();
        world.converged(SECOND * 60, "a", "here").await.unwrap();

        let (made, home_one) = (all_roots(&vault), home(&world, "one").await);
        assert_eq!(made.len(), 3, "{made:?}");
        let data = world.secrets(&home_one).get(roots::SECRET).await.unwrap().data.unwrap();
        let files: Vec<_> = data.keys().map(String::as_str).collect();
        let held = [
            "encryption.yaml",
            "etcd.crt",
            "etcd.vault-mount",
            "front-proxy.crt",
            "front-proxy.vault-mount",
            "kubernetes.crt",
            "kubernetes.vault-mount",
            "service-account.key",
            "service-account.pub",
        ];
        assert_eq!(files, held, "no key of an authority is here");
        for root in ["kubernetes", "etcd", "front-proxy"] {
            let kept = String::from_utf8(data[&format!("{root}.crt")].0.clone()).unwrap();
            let (_, in_vault) = made.iter().find(|(path, _)| path.ends_with(&format!("/{root}/"))).unwrap();
            assert_eq!(kept.trim(), in_vault.trim());
        }
        is_signed_by_vault(&world, "one", &made).await;
        keys_stay_there(servers, &world).await;
        users_are_let_in(&world, &vault).await;
        no_key_is_told(&world, &[&manager]).await;
        let token = std::fs::read_to_string(servers.folder().join("token")).unwrap();
        let log = manager.log_text();
        assert!(!log.contains(&token) && !log.contains("hvs."), "a token is in the log");

        // Whatever a new manager looks at, it makes nothing anew.
        manager.restart();
        let before = ask_for_another(&world, "one", "api.example.com").await;
        another(&world, "one", &before, SECOND * 30).await;
        assert_eq!(all_roots(&vault), made);

        world.delete("a", "one").await.unwrap();
        let took = world.gone(SECOND * 60, "a", "one").await.unwrap();
        assert_eq!(vault.mounts().unwrap(), Vec::<String>::new());
        println!("    gone, with its mounts, after {took:.1?}");
    });
}

async fn is_signed_by_vault(world: &World, name: &str, made: &BTreeMap<String, String>) {
    let secret = world.secrets(&home(world, name).await).get("master-0-pki").await.unwrap();
    let data = secret.data.unwrap();
    let (_, root) = made.iter().find(|(path, _)| path.ends_with("/kubernetes/")).unwrap();
    let (_, root) = x509_parser::pem::parse_x509_pem(root.as_bytes()).unwrap();
    let root = root.parse_x509().unwrap();
    for file in ["apiserver.crt", "kubelet.crt", "controller-manager.crt"] {
        let (_, pem) = x509_parser::pem::parse_x509_pem(&data[file].0).unwrap();
        pem.parse_x509().unwrap().verify_signature(Some(root.public_key())).unwrap();
    }
}

async fn users_are_let_in(world: &World, vault: &VaultServer) {
    let access = serde_json::from_value(json!({
        "apiVersion": "giantnetes.io/v1alpha1", "kind": "ClusterAccess", "metadata": {"name": "alice"},
        "spec": {"clusterRef": {"name": "one"}, "user": "alice", "groups": ["dev"]},
    }))
    .unwrap();
    let accesses = Api::<giantnetes::api::ClusterAccess>::namespaced(world.client.clone(), "a");
    // Its endpoint is made of the Service's address, which is there.
    accesses.create(&PostParams::default(), &access).await.unwrap();
    eventually(SECOND * 30, "alice's kubeconfig", || async {
        let secret = accesses.get("alice").await?.status.and_then(|status| status.secret).context("no Secret yet")?;
        world.secrets("a").get(&secret).await?;
        Ok(())
    })
    .await
    .unwrap();
    let (mount, _) = all_roots(vault).into_iter().find(|(path, _)| path.ends_with("/kubernetes/")).unwrap();
    let roles = vault.root(&["list", "-format=json", &format!("{mount}roles")]).unwrap();
    assert!(!roles.contains(".user"), "a user's role is left: {roles}");
}

#[test]
fn bad_days_of_vault_are_told_and_end() {
    on_servers("vault-bad-days", async |servers, world| {
        let (mut vault, settings) = vault(servers, "bad-days");
        let options = Options { vault: Some(settings), ..Options::default() };
        let _manager = Manager::start(servers, "one", options).await;
        world.namespace("a").await.unwrap();
        world.create("a", "one", in_vault()).await.unwrap();
        world.converged(SECOND * 60, "a", "one").await.unwrap();
        let made = all_roots(&vault);

        vault.seal().unwrap();
        let before = ask_for_another(&world, "one", "sealed.example.com").await;
        let message = not_ready(&world, "VaultUnavailable").await;
        assert!(message.contains("Vault is sealed"), "{message}");
        // Nobody else has to wait, and a Cluster that asks for Vault gets there later.
        world.create("a", "here", json!({})).await.unwrap();
        let took = world.converged(SECOND * 30, "a", "here").await.unwrap();
        println!("    another converged in {took:.1?} while Vault was sealed");
        world.create("a", "later", in_vault()).await.unwrap();
        vault.unseal().unwrap();
        let took = another(&world, "one", &before, RECOVERY * 3).await;
        println!("    sealed: {took:.1?} after it was unsealed");
        world.converged(RECOVERY * 3, "a", "later").await.unwrap();
        world.delete("a", "later").await.unwrap();
        world.gone(RECOVERY, "a", "later").await.unwrap();

        vault.kill();
        let before = ask_for_another(&world, "one", "away.example.com").await;
        let message = not_ready(&world, "VaultUnavailable").await;
        assert!(message.contains("Vault does not serve") || message.contains("connection"), "{message}");
        vault.run().unwrap();
        vault.unseal().unwrap();
        let took = another(&world, "one", &before, RECOVERY * 3).await;
        println!("    away: {took:.1?} after it was back");

        vault.root(&["lease", "revoke", "-prefix", "auth/kubernetes/login"]).unwrap();
        let before = ask_for_another(&world, "one", "revoked.example.com").await;
        let took = another(&world, "one", &before, SECOND * 45).await;
        println!("    token revoked: {took:.1?}");

        let policy = vault.root(&["policy", "read", "giantnetes"]).unwrap();
        let narrow = vault.folder().join("narrow.hcl");
        std::fs::write(&narrow, policy.replace("giantnetes/+/+/sign/+", "giantnetes/+/+/sign/none")).unwrap();
        vault.root(&["policy", "write", "giantnetes", &narrow.display().to_string()]).unwrap();
        let before = ask_for_another(&world, "one", "narrow.example.com").await;
        let message = not_ready(&world, "VaultDenied").await;
        assert!(message.contains("/sign/master-0.apiserver"), "{message}");
        std::fs::write(&narrow, policy).unwrap();
        vault.root(&["policy", "write", "giantnetes", &narrow.display().to_string()]).unwrap();
        let took = another(&world, "one", &before, RECOVERY * 3).await;
        println!("    policy narrowed: {took:.1?} after it was put right");
        assert_eq!(all_roots(&vault), made, "no root was made anew on the way");

        a_mount_that_is_gone_is_not_made_anew(&world, &vault, &made).await;
        // What is left of it goes all the same.
        world.delete("a", "one").await.unwrap();
        world.gone(SECOND * 60, "a", "one").await.unwrap();
        assert_eq!(vault.mounts().unwrap(), Vec::<String>::new());
    });
}

/// As when Vault is restored from a snapshot that is older than the guest.
async fn a_mount_that_is_gone_is_not_made_anew(world: &World, vault: &VaultServer, made: &BTreeMap<String, String>) {
    let gone = made.keys().find(|path| path.ends_with("/kubernetes/")).unwrap();
    vault.root(&["secrets", "disable", gone]).unwrap();
    let before = ask_for_another(world, "one", "lost.example.com").await;
    let message = not_ready(world, "CALost").await;
    assert!(message.contains(gone.trim_end_matches('/')) && message.contains("never made anew"), "{message}");
    // Somebody else's root in the same place is not the guest's.
    vault.root(&["secrets", "enable", &format!("-path={gone}"), "-max-lease-ttl=87600h", "pki"]).unwrap();
    vault
        .root(&["write", &format!("{gone}root/generate/internal"), "common_name=other", "ttl=80000h", "key_type=ec"])
        .unwrap();
    let (_, took) = eventually(RECOVERY * 3, "the exchanged root to be told", || async {
        let cluster = world.clusters("a").get("one").await?;
        let message = cluster.status.and_then(|status| status.message).unwrap_or_default();
        ensure!(message.contains("another root than the recorded one"), "{message}");
        Ok(())
    })
    .await
    .unwrap();
    println!("    an exchanged root is told after {took:.1?}");
    let now = world.secrets(&home(world, "one").await).get("master-0-pki").await.unwrap();
    assert_eq!(now.data, before.data, "nothing is issued from another root");
    // It is not ours to delete, and in the way of nothing.
    vault.root(&["secrets", "disable", gone]).unwrap();
}

async fn not_ready(world: &World, reason: &str) -> String {
    let (message, took) = world.condition(SECOND * 90, ("a", "one"), ("PKIReady", "False", reason)).await.unwrap();
    println!("    {reason} after {took:.1?}");
    message
}

/// Who asks for a Vault that is not there, or no more, is told so; and what was never made is no reason to stay.
#[test]
fn where_the_authorities_are_is_remembered() {
    on_servers("vault-place", async |servers, world| {
        let (vault, settings) = vault(servers, "place");
        let none = Manager::start(servers, "none", Options::default()).await;
        world.namespace("a").await.unwrap();
        world.create("a", "never", in_vault()).await.unwrap();
        let invalid = ("Degraded", "True", "InvalidSpec");
        let (message, _) = world.condition(SECOND * 20, ("a", "never"), invalid).await.unwrap();
        assert!(message.contains("spec.pki.backend: Vault is not set up"), "{message}");
        world.delete("a", "never").await.unwrap();
        world.gone(SECOND * 30, "a", "never").await.unwrap();
        drop(none);

        let one = Manager::start(servers, "one", Options { vault: Some(settings.clone()), ..Options::default() }).await;
        world.create("a", "one", in_vault()).await.unwrap();
        world.converged(SECOND * 60, "a", "one").await.unwrap();
        let place = world.clusters("a").get("one").await.unwrap().status.unwrap().vault.unwrap();
        assert!(vault.mounts().unwrap().iter().all(|mount| mount.starts_with(&place.path)), "{place:?}");
        drop(one);

        // Elsewhere nothing is signed, and the Cluster does not go without what is here.
        let mut elsewhere = settings.clone();
        elsewhere["prefix"] = "other".into();
        let two = Manager::start(servers, "two", Options { vault: Some(elsewhere), ..Options::default() }).await;
        let message = not_ready(&world, "VaultUnavailable").await;
        assert!(message.contains(&place.path) && message.contains("other/"), "{message}");
        world.delete("a", "one").await.unwrap();
        tokio::time::sleep(SECOND * 5).await;
        assert_eq!(vault.mounts().unwrap().len(), 3);
        drop(two);
        let _three = Manager::start(servers, "three", Options { vault: Some(settings), ..Options::default() }).await;
        world.gone(SECOND * 60, "a", "one").await.unwrap();
        assert_eq!(vault.mounts().unwrap(), Vec::<String>::new());
    });
}

/// What Vault signed and the API server did not take is stored later, and not signed again and again.
#[test]
fn what_could_not_be_stored_is_not_signed_again() {
    on_servers("vault-unstored", async |servers, world| {
        let (vault, settings) = vault(servers, "unstored");
        let manager = Manager::start(servers, "one", Options { vault: Some(settings), ..Options::default() }).await;
        world.namespace("a").await.unwrap();
        world.create("a", "one", in_vault()).await.unwrap();
        world.converged(SECOND * 60, "a", "one").await.unwrap();
        manager.settled().await;
        let (mount, _) = all_roots(&vault).into_iter().find(|(path, _)| path.ends_with("/etcd/")).unwrap();
        let signed = || {
            let all = vault.root(&["list", "-format=json", &format!("{mount}certs")]).unwrap();
            serde_json::from_str::<Vec<String>>(&all).unwrap().len()
        };
        let count = signed();
        manager.proxy.refuse(Some("secrets/master-0-pki"));
        let before = ask_for_another(&world, "one", "unstored.example.com").await;
        not_ready(&world, "Error").await;
        let tries = manager.proxy.refused();
        eventually(SECOND * 60, "several tries", || async {
            ensure!(manager.proxy.refused() >= tries + 3, "{} so far", manager.proxy.refused());
            Ok(())
        })
        .await
        .unwrap();
        manager.proxy.refuse(None);
        another(&world, "one", &before, RECOVERY * 3).await;
        // Three certificates of etcd's authority: two of etcd, one of its client.
        assert_eq!(signed() - count, 3, "each was signed once");
        let list = world.secrets(&home(&world, "one").await).list(&ListParams::default()).await.unwrap();
        assert!(list.iter().any(|secret| secret.name_any() == "master-0-pki"));
    });
}

/// How many calls Vault has answered, by its own record.
fn calls(record: &Path) -> usize {
    let text = std::fs::read_to_string(record).unwrap_or_default();
    text.lines().filter(|line| line.contains("\"type\":\"response\"")).count()
}

/// Waits until Vault has answered so many calls more, or all is done. Answers whether it was the calls.
async fn has_answered(record: &Path, count: usize, is_done: impl AsyncFn() -> bool) -> bool {
    let before = calls(record);
    for look in 0_usize.. {
        if calls(record) >= before + count {
            return true;
        }
        if look % 50 == 0 && is_done().await {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    unreachable!("looks do not end");
}

/// In creation, after every k-th call. (In deletion Vault has a limit of its own, which docs/vault.md tells.)
#[test]
fn a_manager_that_dies_after_any_call_to_vault_makes_nothing_twice() {
    on_servers("vault-crash", async |servers, world| {
        let (vault, settings) = vault(servers, "crash");
        let record = servers.folder().join("vault-audit.log");
        vault.root(&["audit", "enable", "file", &format!("file_path={}", record.display())]).unwrap();
        let mut manager = Manager::start(servers, "one", Options { vault: Some(settings), ..Options::default() }).await;
        world.namespace("a").await.unwrap();
        let step = if crate::asked_for("all") { 1 } else { 9 };
        let mut deaths = 0;
        for k in (1..).step_by(step) {
            let name = format!("c{k}");
            let converged = async || world.converged(Duration::ZERO, "a", &name).await.is_ok();
            world.create("a", &name, in_vault()).await.unwrap();
            let dies = has_answered(&record, k, converged).await;
            if dies {
                manager.restart();
                deaths += 1;
            }
            world.converged(SECOND * 60, "a", &name).await.unwrap();
            assert_eq!(all_roots(&vault).len(), 3, "after {k} calls");
            world.delete("a", &name).await.unwrap();
            world.gone(SECOND * 60, "a", &name).await.unwrap();
            assert_eq!(vault.mounts().unwrap(), Vec::<String>::new(), "after {k} calls");
            if !dies {
                break;
            }
        }
        println!("    died {deaths} times");
        assert!(deaths >= 30 / step, "{deaths}");
    });
}

/// `giantnetes` as somebody who has this token of Vault's.
fn as_officer(servers: &Servers, vault: &VaultServer, token: &str, words: &[&str]) -> Run {
    let kubeconfig = format!("KUBECONFIG={}", servers.kubeconfig().display());
    Run::new("env")
        .args(["-u", "VAULT_NAMESPACE"])
        .arg(kubeconfig)
        .args(vault.variables(token))
        .arg(giantnetes())
        .args(words.iter().copied())
        .timeout(SECOND * 60)
}

fn mounts(vault: &VaultServer) -> Vec<String> {
    vault.mounts().unwrap()
}

/// The keys that are written down, as Vault's administrator sees them, by what the path says of their authority.
fn written_down(vault: &VaultServer) -> BTreeMap<String, Vec<String>> {
    let mut keys = BTreeMap::new();
    for mount in mounts(vault).into_iter().filter(|mount| mount.ends_with("/escrow/")) {
        for authority in ["kubernetes", "etcd", "front-proxy"] {
            let list = vault.root(&["list", "-format=json", &format!("{mount}metadata/{authority}")]);
            let entries: Vec<String> = list.map_or_else(|_| Vec::new(), |list| serde_json::from_str(&list).unwrap());
            let read = |entry: &String| {
                let path = format!("{mount}data/{authority}/{entry}");
                let entry: Value =
                    serde_json::from_str(&vault.root(&["read", "-format=json", &path]).unwrap()).unwrap();
                entry["data"]["data"]["certificate"].as_str().unwrap().to_owned()
                    + entry["data"]["data"]["key"].as_str().unwrap()
            };
            keys.insert(format!("{mount}{authority}"), entries.iter().map(read).collect());
        }
    }
    keys
}

/// What a bundle holds, by its recipient.
fn opened(bundle: &str, key_file: &str) -> Value {
    let keys = seal::identities(&std::fs::read_to_string(key_file).unwrap().into()).unwrap();
    let text = seal::open(&std::fs::read(bundle).unwrap(), &keys).unwrap();
    serde_json::from_str(text.expose_secret()).unwrap()
}

/// No word of keys is in a Secret, nor in what a manager says.
async fn is_nowhere(world: &World, managers: &[&Manager], keys: &[String]) {
    let all = Api::<Secret>::all(world.client.clone()).list(&ListParams::default()).await.unwrap();
    let data = all.into_iter().flat_map(|secret| secret.data.unwrap_or_default());
    let mut text: String = data.map(|(_, value)| String::from_utf8_lossy(&value.0).into_owned()).collect();
    managers.iter().for_each(|manager| text.push_str(&manager.log_text()));
    for key in keys {
        let (_, key) = key.split_once("-----BEGIN PRIVATE KEY-----").unwrap();
        // The end of it is of the public key, which certificates have, too.
        let words = &key_words(key)[..2];
        assert!(words.iter().all(|word| !text.contains(word)), "a key is in Kubernetes or in a log");
    }
}

#[test]
fn an_officer_exports_keys_of_vault_and_the_guest_comes_back_elsewhere() {
    on_servers("vault-escrow", async |servers, world| {
        let (vault, settings) = vault(servers, "escrow");
        let options = Options { log: "trace", vault: Some(settings), ..Options::default() };
        let manager = Manager::start(servers, "one", options).await;
        world.namespace("a").await.unwrap();
        world.create("a", "one", exportable()).await.unwrap();
        world.converged(SECOND * 90, "a", "one").await.unwrap();
        let (made, keys) = (all_roots(&vault), written_down(&vault));
        assert_eq!((made.len(), mounts(&vault).len(), keys.len()), (3, 4, 3));
        let keys: Vec<String> = keys.into_values().flatten().collect();
        assert_eq!(keys.len(), 3, "a key of each is written down, once");
        is_signed_by_vault(&world, "one", &made).await;
        no_key_is_told(&world, &[&manager]).await;
        is_nowhere(&world, &[&manager], &keys).await;

        let (key_file, recipient) = key(servers.folder(), "one.key");
        let bundle = servers.folder().join("one.age").display().to_string();
        let export = ["pki", "export", "one", "-n", "a", "--recipient", recipient.as_str(), "--output", &bundle];
        let refused = |run: Run, words: &[&str]| {
            let error = run.output().unwrap_err().to_string();
            assert!(words.iter().all(|word| error.contains(word)) && !error.contains("PRIVATE"), "{error}");
        };
        let home_less = ["-u", "VAULT_CACERT", "-u", "VAULT_TOKEN", "HOME=/nonexistent"];
        let plain = |more: &[String]| {
            let kubeconfig = format!("KUBECONFIG={}", servers.kubeconfig().display());
            Run::new("env").args(home_less).arg(kubeconfig).args(more.to_vec()).arg(giantnetes()).args(export)
        };
        refused(plain(&[]), &["VAULT_CACERT"]);
        refused(plain(&vault.variables("")[..2]), &["log in to Vault first"]);
        let managers = vault.managers_token().unwrap();
        refused(as_officer(servers, &vault, &managers, &export), &["refuses to read", "vault-escrow-policy.hcl"]);
        refused(as_officer(servers, &vault, "hvs.nobody", &export), &["not known to Vault", "nothing was exported"]);
        assert!(exports_told(&world).await.is_empty() && !Path::new(&bundle).exists());
        let officer = vault.officers_token().unwrap();
        assert_eq!(as_officer(servers, &vault, &officer, &export).output().unwrap().trim(), bundle);
        counted(&manager, 1).await;
        let events = exports_told(&world).await;
        assert!(events.len() == 1 && events[0].note.as_deref().unwrap().contains(&recipient), "{events:?}");
        let exported = opened(&bundle, &key_file);
        for (mount, root) in &made {
            let name = mount.trim_end_matches('/').rsplit('/').next().unwrap();
            let text = |part: &str| exported["roots"][format!("{name}.{part}")].as_str().unwrap().to_owned();
            assert_eq!(text("crt").trim(), root.trim(), "it is not what Vault's issuer serves");
            assert!(keys.contains(&(text("crt") + &text("key"))));
        }
        let home_one = home(&world, "one").await;
        let before = world.secrets(&home_one).get("master-0-pki").await.unwrap().data.unwrap();
        let rest = world.secrets(&home_one).get(roots::SECRET).await.unwrap().data.unwrap();
        for file in ["service-account.key", "encryption.yaml"] {
            assert_eq!(exported["roots"][file].as_str().unwrap().as_bytes(), rest[file].0);
        }

        // One that did not ask for it has none.
        world.create("a", "two", in_vault()).await.unwrap();
        world.converged(SECOND * 90, "a", "two").await.unwrap();
        let of_two = ["pki", "export", "two", "-n", "a", "--recipient", recipient.as_str()];
        refused(as_officer(servers, &vault, &officer, &of_two), &["not spec.pki.exportable", "never leave it"]);
        assert_eq!(mounts(&vault).len(), 7);

        comes_back(&vault, &bundle, &key_file, &exported, &before, &keys).await;
        for name in ["one", "two"] {
            world.delete("a", name).await.unwrap();
            world.gone(SECOND * 60, "a", name).await.unwrap();
        }
        assert_eq!(mounts(&vault), Vec::<String>::new());
    });
}

/// On another management cluster, with the same Vault for both: the guest has mounts of its own there.
async fn comes_back(
    vault: &VaultServer,
    bundle: &str,
    key_file: &str,
    exported: &Value,
    before: &BTreeMap<String, ByteString>,
    keys: &[String],
) {
    let servers = Servers::start("vault-elsewhere", Record::Writes).unwrap();
    let world = World { client: servers.client().await };
    let options = Options { log: "trace", vault: Some(vault.settings(&vault.app_role())), ..Options::default() };
    let mut manager = Manager::start(&servers, "elsewhere", options).await;
    world.namespace("b").await.unwrap();
    for (name, exportable) in [("again", true), ("for-good", false)] {
        let import = ["pki", "import", "--file", bundle, "--identity", key_file, "-n", "b", "--secret", name];
        g8s(&servers.kubeconfig(), &import).output().unwrap();
        let spec = json!({"backend": "Vault", "exportable": exportable, "importFrom": {"secretName": name}});
        world.create("b", name, json!({"pki": spec})).await.unwrap();
        // Dead in the midst of it, it goes on with the same.
        let begun = || async {
            ensure!(mounts(vault).len() > 7, "nothing yet");
            Ok(())
        };
        eventually(SECOND * 60, "the first mount", begun).await.unwrap();
        manager.restart();
        world.converged(SECOND * 90, "b", name).await.unwrap();
        world.secrets("b").delete(name, &DeleteParams::default()).await.unwrap();
        let status = world.clusters("b").get(name).await.unwrap().status.unwrap();
        let home = format!("g8s-{}", status.id.unwrap());
        let after = world.secrets(&home).get("master-0-pki").await.unwrap().data.unwrap();
        for file in ["ca.crt", "etcd-ca.crt", "front-proxy-ca.crt"] {
            assert!(after[file] == before[file], "{file} is another");
        }
        // Each takes what the other's authority signed.
        for (one, two) in [(before, &after), (&after, before)] {
            for (leaf, root) in [("kubelet.crt", "ca.crt"), ("etcd-server.crt", "etcd-ca.crt")] {
                is_signed_by(&one[leaf].0, &two[root].0);
            }
        }
        let kept = world.secrets(&home).get(roots::SECRET).await.unwrap().data.unwrap();
        assert!(kept.keys().all(|file| !file.ends_with(".key") || file == "service-account.key"), "a key is here");
        is_nowhere(&world, &[&manager], keys).await;
        let (other, recipient) = key(servers.folder(), &format!("{name}.key"));
        let again = servers.folder().join(format!("{name}.age")).display().to_string();
        let export = ["pki", "export", name, "-n", "b", "--recipient", recipient.as_str(), "--output", &again];
        let said = as_officer(&servers, vault, &vault.officers_token().unwrap(), &export).output();
        if exportable {
            said.unwrap();
            assert!(opened(&again, &other)["roots"] == exported["roots"], "other roots came out of it");
            assert_eq!(exports_told(&world).await.len(), 1);
        } else {
            assert!(said.unwrap_err().to_string().contains("not spec.pki.exportable"));
        }
        world.delete("b", name).await.unwrap();
        world.gone(SECOND * 60, "b", name).await.unwrap();
        assert_eq!(mounts(vault).len(), 7, "those of the other management cluster");
    }
}

fn is_signed_by(leaf: &[u8], root: &[u8]) {
    let [(_, leaf), (_, root)] = [leaf, root].map(|pem| x509_parser::pem::parse_x509_pem(pem).unwrap());
    let (leaf, root) = (leaf.parse_x509().unwrap(), root.parse_x509().unwrap());
    leaf.verify_signature(Some(root.public_key())).unwrap();
}

/// In creation, after every k-th call, where roots are made outside of Vault.
#[test]
fn a_manager_that_dies_while_it_brings_keys_to_vault_leaves_one_authority_with_its_key() {
    on_servers("vault-escrow-crash", async |servers, world| {
        let (vault, settings) = vault(servers, "escrow-crash");
        let record = servers.folder().join("vault-audit.log");
        vault.root(&["audit", "enable", "file", &format!("file_path={}", record.display())]).unwrap();
        let mut manager = Manager::start(servers, "one", Options { vault: Some(settings), ..Options::default() }).await;
        world.namespace("a").await.unwrap();
        // Of the first authority every moment, since each is made as the others; of the rest a sample.
        let (first, step) = (14, if crate::asked_for("all") { 1 } else { 9 });
        let mut deaths = 0;
        for k in (1..).filter(|k| *k <= first || k % step == 0) {
            let name = format!("c{k}");
            let converged = async || world.converged(Duration::ZERO, "a", &name).await.is_ok();
            world.create("a", &name, exportable()).await.unwrap();
            let dies = has_answered(&record, k, converged).await;
            if dies {
                manager.restart();
                deaths += 1;
            }
            world.converged(SECOND * 90, "a", &name).await.unwrap();
            let (made, keys) = (all_roots(&vault), written_down(&vault));
            assert_eq!(made.len(), 3, "after {k} calls");
            for (mount, root) in made {
                let (guest, authority) = mount.trim_end_matches('/').rsplit_once('/').unwrap();
                let there = &keys[&format!("{guest}/escrow/{authority}")];
                assert!(there.iter().any(|key| key.starts_with(root.trim())), "{mount} has no key after {k} calls");
                assert!(there.len() <= 2, "{} keys of {mount} after {k} calls", there.len());
            }
            world.delete("a", &name).await.unwrap();
            world.gone(SECOND * 60, "a", &name).await.unwrap();
            assert_eq!(mounts(&vault), Vec::<String>::new(), "after {k} calls");
            if !dies {
                break;
            }
        }
        println!("    died {deaths} times");
        assert!(deaths >= first, "{deaths}");
    });
}

/// A line to Vault that can fall silent: what is said then is taken, and never answered.
struct Line {
    address: SocketAddr,
    silent: Arc<AtomicBool>,
}

impl Line {
    fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, silent) = (listener.local_addr().unwrap(), Arc::new(AtomicBool::new(false)));
        let quiet = silent.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let Ok((client, server)) =
                    client.and_then(|client| Ok((client, TcpStream::connect(("127.0.0.1", port))?)))
                else {
                    continue;
                };
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (from, to, quiet) = (from.try_clone().unwrap(), to.try_clone().unwrap(), quiet.clone());
                    std::thread::spawn(move || pass(from, to, &quiet));
                }
            }
        });
        Self { address, silent }
    }
}

/// Passes on what comes, unless the line is silent: what was connected then never hears anything again.
fn pass(mut from: TcpStream, mut to: TcpStream, silent: &AtomicBool) {
    let (mut buffer, mut fell_silent) = ([0; 16 << 10], false);
    while let Ok(length) = from.read(&mut buffer) {
        fell_silent |= silent.load(Ordering::Relaxed);
        if length == 0 || (!fell_silent && to.write_all(&buffer[..length]).is_err()) {
            break;
        }
    }
    if !fell_silent {
        let _ = to.shutdown(Shutdown::Both);
    }
}

#[test]
fn a_silent_vault_is_told_and_holds_up_nobody_else() {
    on_servers("vault-silent", async |servers, world| {
        let (vault, mut settings) = vault(servers, "silent");
        let port = settings["address"].as_str().unwrap().rsplit(':').next().unwrap().parse().unwrap();
        let line = Line::to(port);
        settings["address"] = json!(format!("https://{}", line.address));
        let options = Options { vault: Some(settings), ..Options::default() };
        let _manager = Manager::start(servers, "one", options).await;
        world.namespace("a").await.unwrap();
        world.create("a", "one", in_vault()).await.unwrap();
        world.converged(SECOND * 60, "a", "one").await.unwrap();
        let made = all_roots(&vault);

        line.silent.store(true, Ordering::Relaxed);
        let (before, asked) = (ask_for_another(&world, "one", "silent.example.com").await, Instant::now());
        let message = not_ready(&world, "VaultUnavailable").await;
        println!("    told after {:.1?}: {message}", asked.elapsed());
        world.create("a", "later", in_vault()).await.unwrap();
        world.create("a", "here", json!({})).await.unwrap();
        let took = world.converged(SECOND * 30, "a", "here").await.unwrap();
        println!("    another converged in {took:.1?} while Vault was silent");
        line.silent.store(false, Ordering::Relaxed);
        let took = another(&world, "one", &before, RECOVERY * 3).await;
        println!("    silent: {took:.1?} after it spoke again");
        world.converged(RECOVERY * 3, "a", "later").await.unwrap();
        let now = all_roots(&vault);
        assert!(made.iter().all(|(mount, root)| now.get(mount) == Some(root)), "a root was made anew");
    });
}
