//! What `giantnetes` tells people at their terminals, on a real API server.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::ensure;
use giantnetes::pki::roots;
use k8s_openapi::api::{core::v1::ConfigMap, events::v1::Event};
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, PostParams},
    config::Kubeconfig,
};
use lab::command::Run;
use serde_json::json;

use crate::{
    manager::{Manager, Options},
    nodes::tenant,
    on_servers,
    rollout::Guest,
    support::giantnetes,
    world::{SECOND, World, eventually},
};

/// Runs `giantnetes` for whom this kubeconfig is of.
pub fn g8s(kubeconfig: &Path, words: &[&str]) -> Run {
    let kubeconfig = format!("KUBECONFIG={}", kubeconfig.display());
    Run::new("env").arg(kubeconfig).arg(giantnetes()).args(words.iter().copied()).timeout(SECOND * 60)
}

/// Unpacks a bundle: its files by name.
fn unpacked(archive: &Path) -> BTreeMap<String, String> {
    let folder = archive.with_extension("unpacked");
    fs::create_dir_all(&folder).unwrap();
    Run::new("tar").arg("-xzf").arg(archive).arg("-C").arg(&folder).output().unwrap();
    let root = folder.join("demo-support");
    let list = Run::new("find").arg(&root).args(["-type", "f"]).output().unwrap();
    let files = list.lines().map(|path| {
        let name = Path::new(path).strip_prefix(&root).unwrap().display().to_string();
        (name, fs::read_to_string(path).unwrap())
    });
    files.collect()
}

/// Everything secret that a guest has, in the forms in which it could be somewhere: words of keys.
async fn secret_words(world: &World, guest: &Guest<'_>) -> Vec<String> {
    let secrets = world.secrets(&guest.namespace).list(&ListParams::default()).await.unwrap();
    let mut words = Vec::new();
    for secret in secrets {
        for (name, value) in secret.data.unwrap_or_default() {
            let text = String::from_utf8(value.0).unwrap();
            if name.ends_with("key") || name.ends_with("encryption.yaml") {
                words.extend(text.lines().filter(|line| line.len() > 40 && !line.contains("-----")).map(str::to_owned));
            }
        }
    }
    words
}

#[test]
fn a_support_bundle_has_what_helps_and_nothing_secret() {
    on_servers("bundle", async |servers, world| {
        let _manager = Manager::start(servers, "one", Options { kvm: true, ..Options::default() }).await;
        let guest = Guest::of(&world, json!({}), &["master-0"]).await;
        let words = secret_words(&world, &guest).await;
        assert!(words.len() > 10, "{words:?}");
        // Somebody has put a key where none belongs.
        let maps = Api::<ConfigMap>::namespaced(world.client.clone(), &guest.namespace);
        let key = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", words[0]);
        let odd =
            json!({"metadata": {"name": "odd"}, "data": {"key": key, "token": "hvs.0123456789abcdefghijklmnopq"}});
        maps.create(&PostParams::default(), &serde_json::from_value(odd).unwrap()).await.unwrap();

        let archive = servers.folder().join("bundle.tar.gz");
        let output = archive.display().to_string();
        let bundle = ["support-bundle", "demo", "-n", "a", "-o", output.as_str()];
        let said = g8s(&servers.kubeconfig(), &bundle).output().unwrap();
        println!("    {}", said.trim());
        let files = unpacked(&archive);
        for name in ["cluster.yaml", "tree.txt", "claims.yaml", "guest/pods.yaml", "guest/config-maps.yaml"] {
            assert!(files[name].len() > 40, "{name}: {}", files[name]);
        }
        let secrets = &files["guest/secrets.yaml"];
        assert!(secrets.contains(roots::SECRET) && !secrets.contains("\ndata:"), "{secrets}");
        for (name, text) in &files {
            assert!(!text.contains("PRIVATE KEY") && !text.contains("hvs.0"), "{name}: {text}");
            for word in &words {
                assert!(!text.contains(word), "{name} has a key");
            }
        }
        assert!(files["guest/config-maps.yaml"].contains("<left out>"));
        assert!(files.contains_key("guest/logs/master-0.log"), "{:?}", files.keys());

        let again = g8s(&servers.kubeconfig(), &bundle).output().unwrap_err().to_string();
        assert!(again.contains("File exists"), "{again}");
    });
}

/// What a newcomer gets wrong, and is told with what helps.
#[test]
fn a_wrong_place_and_a_missing_right_are_told() {
    on_servers("mistaken", async |servers, world| {
        for namespace in ["a", "b"] {
            world.namespace(namespace).await.unwrap();
        }
        world.create("a", "demo", json!({})).await.unwrap();
        let refusal = |kubeconfig: &Path, words: &str| {
            let words: Vec<_> = words.split(' ').collect();
            let said = g8s(kubeconfig, &words).output().unwrap_err().to_string();
            println!("    giantnetes {}: {}", words.join(" "), said.rsplit_once("giantnetes: ").unwrap().1);
            said
        };
        let operator = servers.kubeconfig();
        for command in ["describe", "kubeconfig", "events"] {
            let elsewhere = refusal(&operator, &format!("{command} demo -n b"));
            assert!(
                elsewhere.contains("there is no Cluster demo in namespace b, but in a: name it by `-n a`"),
                "{elsewhere}"
            );
        }
        let nowhere = refusal(&operator, "describe dmeo -n a");
        assert!(
            nowhere.contains("no Cluster dmeo in namespace a; `kubectl get clusters.giantnetes.io -A`"),
            "{nowhere}"
        );
        let early = refusal(&operator, "kubeconfig demo -n a");
        assert!(early.contains("has no kubeconfig yet"), "{early}");
        // Who may see the Clusters of one namespace, and no Secrets.
        let tenant = tenant(servers, &world).await;
        let secret = refusal(&tenant, "kubeconfig demo -n a");
        assert!(secret.contains("forbidden") && secret.contains("by a Role for its Secret"), "{secret}");
        let other = refusal(&tenant, "describe demo -n b");
        assert!(other.contains("forbidden") && other.contains("<release>-cluster-admin and -viewer"), "{other}");
        // A management cluster that does not answer.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut kubeconfig = Kubeconfig::read_from(&operator).unwrap();
        for cluster in &mut kubeconfig.clusters {
            let url = format!("http://{}", silent.local_addr().unwrap());
            cluster.cluster.get_or_insert_default().server = Some(url);
        }
        let file = servers.folder().join("silent.kubeconfig");
        std::fs::write(&file, serde_json::to_string(&kubeconfig).unwrap()).unwrap();
        let waited = refusal(&file, "describe demo -n a");
        assert!(
            waited.contains("describe: ") && waited.contains(" s so far\n") && waited.contains("get Cluster a/demo"),
            "{waited}"
        );
        // A management cluster without the chart.
        for crd in ["clusters", "clusteraccesses", "networkclaims"] {
            servers.kubectl(&["delete", "crd", &format!("{crd}.giantnetes.io")]).output().unwrap();
        }
        eventually(SECOND * 30, "the kind to be gone", || async {
            let bare = refusal(&operator, "describe demo -n a");
            ensure!(bare.contains("this cluster has no kind Cluster: install the chart here"), "{bare}");
            Ok(())
        })
        .await
        .unwrap();
    });
}

#[test]
fn events_are_told_in_order_and_what_a_tenant_may_not_see_is_said() {
    on_servers("told-events", async |servers, world| {
        let _manager = Manager::start(servers, "one", Options { kvm: true, ..Options::default() }).await;
        let guest = Guest::of(&world, json!({}), &["master-0"]).await;
        let cluster = world.clusters("a").get("demo").await.unwrap();
        let put = async |namespace: &str, name: &str, time: &str, regarding: serde_json::Value| {
            let event = json!({
                "metadata": {"name": name}, "eventTime": time, "action": "Test", "reason": name, "type": "Normal",
                "reportingController": "test", "reportingInstance": "test", "note": "as it is", "regarding": regarding,
            });
            let events = Api::<Event>::namespaced(world.client.clone(), namespace);
            events.create(&PostParams::default(), &serde_json::from_value(event).unwrap()).await.unwrap();
        };
        let about = json!({"kind": "Cluster", "namespace": "a", "name": "demo", "uid": cluster.uid()});
        put("a", "second", "2026-01-02T00:00:00.000000Z", about).await;
        let pod = json!({"kind": "Pod", "namespace": guest.namespace, "name": "master-0"});
        put(&guest.namespace, "first", "2026-01-01T00:00:00.000000Z", pod).await;
        let other = json!({"kind": "Cluster", "namespace": "a", "name": "other", "uid": "other"});
        put("a", "another", "2026-01-03T00:00:00.000000Z", other).await;

        let words = ["events", "demo", "-n", "a"];
        let said = g8s(&servers.kubeconfig(), &words).output().unwrap();
        let lines: Vec<_> = said.lines().collect();
        assert!(lines[0].contains(" first ") && lines[0].ends_with("Pod/master-0: as it is"), "{said}");
        assert!(lines[1].contains(" second ") && lines[1].ends_with("Cluster/demo: as it is"), "{said}");
        assert!(!said.contains("another"), "{said}");

        let kubeconfig = tenant(servers, &world).await;
        let refused = g8s(&kubeconfig, &words).output().unwrap_err().to_string();
        assert!(refused.contains("list Events of a") && refused.contains("forbidden"), "{refused}");
    });
}
