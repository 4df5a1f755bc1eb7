//! A guest's keys: exported with a word, sealed, and brought back to another Cluster; and what is refused.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use age::x25519::Identity;
use anyhow::{Context as _, Result, ensure};
use giantnetes::pki::{embedded, roots};
use k8s_openapi::{
    ByteString,
    api::{
        core::v1::Secret,
        events::v1::Event,
        rbac::v1::{Role, RoleBinding},
    },
    jiff::Timestamp,
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams, ObjectMeta, PostParams},
    config::Kubeconfig,
};
use secrecy::ExposeSecret as _;
use serde_json::json;

use crate::{
    manager::{Manager, Options},
    on_servers,
    people::g8s,
    proxy::Held,
    servers::Servers,
    steady::home,
    told::no_key_is_told,
    world::{SECOND, World, eventually},
};

const FAILED: (&str, &str, &str) = ("PKIReady", "False", "ImportFailed");
const TYPE: &str = "giantnetes.io/roots";

/// Somebody's kubeconfig, who has no rights yet.
fn kubeconfig_of(servers: &Servers, user: &str) -> PathBuf {
    let mut kubeconfig = Kubeconfig::read_from(servers.kubeconfig()).unwrap();
    for info in &mut kubeconfig.auth_infos {
        info.auth_info.get_or_insert_default().impersonate = Some(user.into());
    }
    let file = servers.folder().join(format!("{user}.kubeconfig"));
    fs::write(&file, serde_json::to_string(&kubeconfig).unwrap()).unwrap();
    file
}

/// Gives somebody a right in a namespace.
async fn allow(world: &World, user: &str, namespace: &str, rule: serde_json::Value) {
    let name = format!("{user}-{}", rule["resources"][0].as_str().unwrap());
    let role = json!({"metadata": {"name": name}, "rules": [rule]});
    let binding = json!({
        "metadata": {"name": name}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
    });
    let params = PostParams::default();
    let roles = Api::<Role>::namespaced(world.client.clone(), namespace);
    roles.create(&params, &serde_json::from_value(role).unwrap()).await.unwrap();
    let bindings = Api::<RoleBinding>::namespaced(world.client.clone(), namespace);
    bindings.create(&params, &serde_json::from_value(binding).unwrap()).await.unwrap();
}

pub async fn exports_told(world: &World) -> Vec<Event> {
    let all = Api::<Event>::all(world.client.clone()).list(&ListParams::default()).await.unwrap();
    all.items.into_iter().filter(|event| event.reason.as_deref() == Some("PKIExport")).collect()
}

pub async fn counted(manager: &Manager, count: u32) {
    let look = async || {
        let metrics = manager.get("/metrics").await?;
        let found = metrics.lines().find(|line| line.starts_with("giantnetes_pki_exports_total "));
        ensure!(found == Some(&format!("giantnetes_pki_exports_total {count}")), "{found:?}");
        Ok(())
    };
    eventually(SECOND * 10, &format!("{count} exports to be counted"), look).await.unwrap();
}

/// A new identity in a file, and its recipient.
pub fn key(folder: &Path, name: &str) -> (String, String) {
    let (identity, file) = (Identity::generate(), folder.join(name));
    fs::write(&file, format!("# a key of this test\n{}\n", identity.to_string().expose_secret())).unwrap();
    (file.display().to_string(), identity.to_public().to_string())
}

async fn roots_of(world: &World, home: &str) -> Result<Secret> {
    world.secrets(home).get_opt(roots::SECRET).await?.context("no roots")
}

/// Makes a Secret that a Cluster may name, or replaces it.
async fn keep(world: &World, type_: &str, data: std::collections::BTreeMap<String, ByteString>) {
    let (api, name) = (world.secrets("a"), "kept");
    if api.get_opt(name).await.unwrap().is_some() {
        api.delete(name, &DeleteParams::default()).await.unwrap();
    }
    let metadata = ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() };
    let secret = Secret { metadata, type_: Some(type_.into()), data: Some(data), ..Secret::default() };
    api.create(&PostParams::default(), &secret).await.unwrap();
}

/// Waits until `a/NAME` says this of its import. Answers the whole message.
async fn told(world: &World, name: &str, words: &str) -> String {
    let look = async || {
        let (message, _) = world.condition(Duration::ZERO, ("a", name), FAILED).await?;
        ensure!(message.contains(words), "{message}");
        Ok(message)
    };
    let (message, took) = eventually(SECOND * 40, &format!("a/{name} to say: {words}"), look).await.unwrap();
    assert!(message.contains("spec.pki.importFrom.secretName: "), "{message}");
    println!("    told after {took:.1?}: {message}");
    message
}

#[test]
fn an_export_is_accounted_for_and_brings_a_guest_back() {
    on_servers("escrow", async |servers, world| {
        // Whoever looks for a fault turns the log up, and no key may come with it.
        let mut manager = Manager::start(servers, "one", Options { log: "trace", ..Options::default() }).await;
        for namespace in ["a", "b"] {
            world.namespace(namespace).await.unwrap();
        }
        let cluster = world.create("a", "one", json!({})).await.unwrap();
        world.converged(SECOND * 30, "a", "one").await.unwrap();
        let first_home = home(&world, "one").await;
        let ((key_file, recipient), (other_file, other)) =
            (key(servers.folder(), "one.key"), key(servers.folder(), "other.key"));
        let bundle = servers.folder().join("one.age").display().to_string();
        let export = ["pki", "export", "one", "-n", "a", "--recipient", &recipient, "--output", &bundle];
        let mut said = String::new();

        // Nothing leaves before somebody may say so.
        let ann = kubeconfig_of(servers, "ann");
        let mut refused = |kubeconfig: &Path, words: &[&str]| {
            let error = g8s(kubeconfig, words).output().unwrap_err().to_string();
            println!("    {}", error.rsplit_once("giantnetes: ").unwrap().1.trim());
            assert!(!error.contains("AGE ENCRYPTED"), "{error}");
            said.push_str(&error);
            error
        };
        let rule = |group: &str, resource: &str, verbs: &[&str]| json!({"apiGroups": [group], "resources": [resource], "verbs": verbs});
        allow(&world, "ann", "a", rule("giantnetes.io", "clusters", &["get"])).await;
        let unread = refused(&ann, &export);
        assert!(unread.contains(&format!("rights to get and patch Secret {first_home}/roots-1")), "{unread}");
        allow(&world, "ann", &first_home, rule("", "secrets", &["get", "patch"])).await;
        let untold = refused(&ann, &export);
        assert!(untold.contains("create Event PKIExport") && untold.contains("nothing was exported"), "{untold}");
        assert!(!Path::new(&bundle).exists() && exports_told(&world).await.is_empty());
        let nothing = refused(&ann, &[&export[..5], &["--recipient", "age1x"]].concat());
        assert!(nothing.contains("recipient \"age1x\" is none"), "{nothing}");
        counted(&manager, 0).await;

        // Who may is told of, and gets what only the recipients open.
        allow(&world, "ann", "a", rule("events.k8s.io", "events", &["create"])).await;
        assert_eq!(g8s(&ann, &export).output().unwrap().trim(), bundle);
        let sealed = fs::read_to_string(&bundle).unwrap();
        assert!(sealed.starts_with("-----BEGIN AGE ENCRYPTED FILE-----") && !sealed.contains("PRIVATE"), "{sealed}");
        assert_eq!(fs::metadata(&bundle).unwrap().permissions().mode() & 0o777, 0o600);
        counted(&manager, 1).await;
        let again = refused(&ann, &export);
        assert!(again.contains("is there already, and is not overwritten"), "{again}");
        let events = exports_told(&world).await;
        let [event] = &events[..] else { panic!("{events:?}") };
        assert_eq!(event.regarding.as_ref().unwrap().uid, cluster.uid());
        let note = event.note.as_deref().unwrap();
        assert!(note.contains("by ann") && note.contains(&recipient), "{note}");
        let printed = ["pki", "export", "one", "-n", "a", "--recipient", &recipient, "--recipient", &other];
        let printed = g8s(&servers.kubeconfig(), &printed).output().unwrap();
        assert!(printed.starts_with("-----BEGIN AGE ENCRYPTED FILE-----"), "{printed}");
        counted(&manager, 2).await;
        let before = roots_of(&world, &first_home).await.unwrap();
        assert_eq!(before.annotations()["giantnetes.io/pki-exports"], "2");
        manager.settled().await;

        // It comes back elsewhere, when its former place is empty.
        let import = ["pki", "import", "--file", &bundle, "-n", "b", "--secret", "kept", "--identity", &key_file];
        let wrong = refused(&servers.kubeconfig(), &[&import[..9], &[other_file.as_str()]].concat());
        assert!(wrong.contains("sealed for other recipients"), "{wrong}");
        assert!(world.secrets("b").get_opt("kept").await.unwrap().is_none());
        let made = g8s(&servers.kubeconfig(), &import).output().unwrap();
        assert!(made.contains("the roots of Cluster a/one"), "{made}");
        let twice = refused(&servers.kubeconfig(), &import);
        assert!(twice.contains("is there already, and is not changed"), "{twice}");
        world.create("b", "two", json!({"pki": {"importFrom": {"secretName": "kept"}}})).await.unwrap();
        let (message, _) = world.condition(SECOND * 20, ("b", "two"), FAILED).await.unwrap();
        assert!(message.contains("another guest of this management cluster lives by"), "{message}");
        let second = world.clusters("b").get("two").await.unwrap().status.unwrap();
        let second_home = format!("g8s-{}", second.id.unwrap());
        assert!(roots_of(&world, &second_home).await.is_err(), "two guests live by the same roots");
        world.delete("a", "one").await.unwrap();
        world.gone(SECOND * 30, "a", "one").await.unwrap();
        let took = world.converged(SECOND * 30, "b", "two").await.unwrap();
        println!("    the guest was brought back {took:.1?} after the other one was gone");
        let after = roots_of(&world, &second_home).await.unwrap();
        assert!(after.data == before.data && before.data.is_some(), "they are others");
        assert_eq!(after.immutable, Some(true));
        let node = world.secrets(&second_home).get("master-0-pki").await.unwrap().data.unwrap();
        let authorities =
            [("ca.crt", "kubernetes.crt"), ("etcd-ca.crt", "etcd.crt"), ("front-proxy-ca.crt", "front-proxy.crt")];
        for (of_node, root) in authorities {
            assert!(node[of_node] == before.data.as_ref().unwrap()[root], "{of_node}");
        }

        // From then on the Secret is nothing to it.
        world.secrets("b").delete("kept", &DeleteParams::default()).await.unwrap();
        manager.restart();
        world.create("b", "three", json!({})).await.unwrap();
        world.converged(SECOND * 30, "b", "three").await.unwrap();
        world.converged(SECOND * 30, "b", "two").await.unwrap();
        assert!(roots_of(&world, &second_home).await.unwrap().uid() == after.uid());
        g8s(&servers.kubeconfig(), &import).output().unwrap();
        world.secrets(&second_home).delete(roots::SECRET, &DeleteParams::default()).await.unwrap();
        let lost = ("PKIReady", "False", "CALost");
        world.condition(SECOND * 20, ("b", "two"), lost).await.unwrap();
        manager.settled().await;
        assert!(roots_of(&world, &second_home).await.is_err(), "it was imported a second time");

        no_key_is_told(&world, &[&manager]).await;
        assert!(!manager.log_text().contains("panicked") && !said.contains("PRIVATE KEY"));
        for word in crate::support::traces::key_words(&String::from_utf8_lossy(&before.data.unwrap()["etcd.key"].0)) {
            assert!(!said.contains(word) && !manager.log_text().contains(word), "a key was told");
        }
    });
}

#[test]
fn a_secret_that_is_no_roots_makes_no_guest() {
    on_servers("no-roots", async |servers, world| {
        let manager = Manager::start(servers, "one", Options::default()).await;
        world.namespace("a").await.unwrap();
        world.create("a", "source", json!({})).await.unwrap();
        world.converged(SECOND * 30, "a", "source").await.unwrap();
        let good = roots_of(&world, &home(&world, "source").await).await.unwrap().data.unwrap();
        let with = |changes: &[(&str, &[u8])]| {
            let mut data = good.clone();
            data.extend(changes.iter().map(|(key, value)| ((*key).to_owned(), ByteString(value.to_vec()))));
            data
        };
        world.create("a", "one", json!({"pki": {"importFrom": {"secretName": "kept"}}})).await.unwrap();
        let missing = told(&world, "one", "there is no Secret a/kept of type giantnetes.io/roots").await;
        // What stands in another Secret is nobody's business.
        keep(&world, "Opaque", good.clone()).await;
        tokio::time::sleep(SECOND * 12).await;
        assert_eq!(told(&world, "one", "there is no Secret").await, missing);
        keep(&world, TYPE, with(&[("etcd.key", b"")])).await;
        told(&world, "one", "lacks some of a guest's roots").await;
        let other = embedded::root("etcd", "a/other", Timestamp::now(), SECOND * 3600).unwrap();
        keep(&world, TYPE, with(&[("etcd.crt", other.certificate.as_bytes())])).await;
        told(&world, "one", "the key of etcd does not belong to its certificate").await;
        let past = embedded::root("etcd", "a/other", Timestamp::now() - SECOND * 7200, SECOND * 3600).unwrap();
        let expired: &[(&str, &[u8])] =
            &[("etcd.crt", past.certificate.as_bytes()), ("etcd.key", past.key.expose_secret().as_bytes())];
        keep(&world, TYPE, with(expired)).await;
        told(&world, "one", "the certificate of etcd expired at").await;
        keep(&world, TYPE, with(&[("etcd.vault-mount", b"guests/x/etcd")])).await;
        told(&world, "one", "is in Vault").await;
        keep(&world, TYPE, good.clone()).await;
        told(&world, "one", "another guest of this management cluster").await;
        // In another form they are no others.
        let crlf = |text: &ByteString| String::from_utf8_lossy(&text.0).replace('\n', "\r\n");
        let others: Vec<_> = good
            .iter()
            .filter(|(key, _)| !key.ends_with(".yaml"))
            .map(|(key, value)| (key.as_str(), crlf(value)))
            .collect();
        let others: Vec<_> = others.iter().map(|(key, value)| (*key, value.as_bytes())).collect();
        let comment = format!("# other\n{}", String::from_utf8_lossy(&good["encryption.yaml"].0));
        keep(&world, TYPE, with(&[others, vec![("encryption.yaml", comment.as_bytes())]].concat())).await;
        told(&world, "one", "another guest of this management cluster").await;
        keep(&world, TYPE, with(&[("etcd.crt", &good["service-account.pub"].0)])).await;
        told(&world, "one", "the certificate of etcd cannot be read").await;
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let open = params.self_signed(&key).unwrap().pem();
        keep(&world, TYPE, with(&[("etcd.crt", open.as_bytes()), ("etcd.key", key.serialize_pem().as_bytes())])).await;
        told(&world, "one", "basicConstraints of the certificate of etcd does not say pathLenConstraint 0").await;
        keep(&world, TYPE, good.clone()).await;
        let half = world.secrets(&home(&world, "one").await).list_metadata(&ListParams::default()).await.unwrap();
        assert!(half.items.is_empty(), "something was made of it: {:?}", half.items);

        // With roots of nobody there is a guest.
        world.delete("a", "source").await.unwrap();
        world.gone(SECOND * 30, "a", "source").await.unwrap();
        world.converged(SECOND * 30, "a", "one").await.unwrap();
        assert!(roots_of(&world, &home(&world, "one").await).await.unwrap().data.unwrap() == good);
        no_key_is_told(&world, &[&manager]).await;
        assert!(!manager.log_text().contains("panicked"));
    });
}

/// Two leaders of old could have taken the same roots for two guests, of which no cache knew: it is asked again before they count.
#[test]
fn imported_roots_are_asked_for_again_before_they_are_recorded() {
    on_servers("two-imports", async |servers, world| {
        let options = Options { call_timeout: "10s", ..Options::default() };
        let manager = Manager::start(servers, "one", options).await;
        world.namespace("a").await.unwrap();
        world.create("a", "source", json!({})).await.unwrap();
        world.converged(SECOND * 30, "a", "source").await.unwrap();
        let source = roots_of(&world, &home(&world, "source").await).await.unwrap();
        world.delete("a", "source").await.unwrap();
        world.gone(SECOND * 30, "a", "source").await.unwrap();
        // In another form, which makes no others of them.
        let crlf = |(key, value): (String, ByteString)| {
            let text = String::from_utf8(value.0).unwrap();
            let text = if key.ends_with(".yaml") { text } else { text.replace('\n', "\r\n") };
            (key, ByteString(text.into_bytes()))
        };
        keep(&world, TYPE, source.data.clone().unwrap().into_iter().map(crlf).collect()).await;

        // It is stored, and nobody has heard that it is, when the other one's appears.
        let spec = json!({"pki": {"importFrom": {"secretName": "kept"}}});
        manager.proxy.hold(Some(Held { method: hyper::Method::POST, path: "/secrets" }));
        world.create("a", "one", spec).await.unwrap();
        let stored = || async { roots_of(&world, &home_of(&world, "one").await?).await };
        let (stored, _) = eventually(SECOND * 30, "the roots to be stored", stored).await.unwrap();
        world.namespace("g8s-other").await.unwrap();
        let mut other = stored.clone();
        other.metadata = ObjectMeta {
            name: Some(roots::SECRET.into()),
            labels: Some([("giantnetes.io/cluster".to_owned(), "other".to_owned())].into()),
            annotations: stored.metadata.annotations.clone(),
            ..ObjectMeta::default()
        };
        other.annotations_mut().insert("giantnetes.io/cluster-uid".into(), "another".into());
        world.secrets("g8s-other").create(&PostParams::default(), &other).await.unwrap();
        manager.proxy.hold(None);
        let message = told(&world, "one", "another guest of this management cluster has the same roots").await;
        assert!(message.contains("delete one of both Clusters"), "{message}");
        let secrets = world.secrets(&home(&world, "one").await).list_metadata(&ListParams::default()).await.unwrap();
        assert_eq!(secrets.items.len(), 1, "something was issued by them");

        world.secrets("g8s-other").delete(roots::SECRET, &DeleteParams::default()).await.unwrap();
        world.converged(SECOND * 30, "a", "one").await.unwrap();
        let kept = roots_of(&world, &home(&world, "one").await).await.unwrap();
        assert!(kept.data == source.data, "they are not encoded as they were");
        assert!(!manager.log_text().contains("panicked"));
    });
}

async fn home_of(world: &World, name: &str) -> Result<String> {
    let status = world.clusters("a").get(name).await?.status.context("no status")?;
    Ok(format!("g8s-{}", status.id.context("no id")?))
}
