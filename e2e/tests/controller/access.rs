//! Users' access: what a ClusterAccess gives, what it refuses, and how it ends.

use anyhow::{Context as _, Result, ensure};
use giantnetes::{api::ClusterAccess, pki::roots};
use k8s_openapi::{api::core::v1::Secret, jiff::Timestamp};
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use x509_parser::pem::parse_x509_pem;

use lab::command::Run;

use crate::{
    manager::{Manager, Options},
    on_servers,
    servers::Servers,
    steady::home,
    support::giantnetes,
    told::no_key_is_told,
    world::{SECOND, World, eventually},
};

fn accesses(world: &World) -> Api<ClusterAccess> {
    Api::namespaced(world.client.clone(), "a")
}

async fn create(world: &World, name: &str, spec: Value) -> kube::Result<ClusterAccess> {
    let mut whole = json!({"clusterRef": {"name": "one"}, "user": "alice"});
    whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    let access = serde_json::from_value(json!({
        "apiVersion": "giantnetes.io/v1alpha1", "kind": "ClusterAccess", "metadata": {"name": name}, "spec": whole,
    }))
    .unwrap();
    accesses(world).create(&PostParams::default(), &access).await
}

/// Waits until its condition has this status and reason, for the spec as it is now. Answers its message.
async fn condition(world: &World, name: &str, status: &str, reason: &str) -> String {
    let (message, _) = eventually(SECOND * 15, &format!("{name}: Ready={status} {reason}"), || async {
        let access = accesses(world).get(name).await?;
        let told = access.status.as_ref().context("no status")?;
        ensure!(told.observed_generation == access.metadata.generation, "it is of an older spec");
        let found = told.conditions.first().context("no condition")?;
        ensure!(
            found.status == status && found.reason == reason,
            "{} {} {}",
            found.status,
            found.reason,
            found.message
        );
        Ok(found.message.clone())
    })
    .await
    .unwrap();
    message
}

/// What a kubeconfig says, as far as the tests look at it.
#[derive(Debug, PartialEq)]
struct Way {
    server: String,
    user: String,
    groups: Vec<String>,
    authority: Vec<u8>,
    /// From the moment of issue, in seconds.
    life: i64,
    serial: String,
}

fn way(secret: &Secret) -> Way {
    let text = &secret.data.as_ref().unwrap()["value"].0;
    let config: Value = serde_saphyr::from_slice(text).unwrap();
    let decoded = |value: &Value| {
        let text = json!({"data": {"value": value}});
        // Kubernetes' own type decodes base64.
        let secret: Secret = serde_json::from_value(text).unwrap();
        secret.data.unwrap()["value"].0.clone()
    };
    let authority = decoded(&config["clusters"][0]["cluster"]["certificate-authority-data"]);
    let pem = decoded(&config["users"][0]["user"]["client-certificate-data"]);
    let (_, pem) = parse_x509_pem(&pem).unwrap();
    let certificate = pem.parse_x509().unwrap();
    let (_, root) = parse_x509_pem(&authority).unwrap();
    certificate.verify_signature(Some(root.parse_x509().unwrap().public_key())).unwrap();
    let usage = certificate.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && !usage.server_auth && !certificate.is_ca());
    let subject = certificate.subject();
    let user = subject.iter_common_name().next().unwrap().as_str().unwrap().to_owned();
    assert_eq!(config["users"][0]["name"], user.as_str());
    Way {
        server: config["clusters"][0]["cluster"]["server"].as_str().unwrap().to_owned(),
        user,
        groups: subject.iter_organization().map(|group| group.as_str().unwrap().to_owned()).collect(),
        authority,
        // It is antedated by five minutes.
        life: certificate.validity().not_after.timestamp() - certificate.validity().not_before.timestamp() - 300,
        serial: certificate.raw_serial_as_string(),
    }
}

async fn secret(world: &World, name: &str) -> Result<Secret> {
    Ok(world.secrets("a").get(&format!("{name}-access")).await?)
}

/// Waits for a Secret that holds another certificate than this.
async fn another(world: &World, name: &str, old: &Way) -> Way {
    let looked = eventually(SECOND * 15, "another certificate", || async {
        let way = way(&secret(world, name).await?);
        ensure!(way.serial != old.serial, "it is the same");
        Ok(way)
    });
    looked.await.unwrap().0
}

#[test]
fn a_user_gets_a_kubeconfig_that_is_renewed_and_ends_with_the_cluster() {
    on_servers("access", async |servers, world| {
        let manager = Manager::start(servers, "one", Options { log: "trace", ..Options::default() }).await;
        world.namespace("a").await.unwrap();
        create(&world, "early", json!({"groups": ["dev"], "ttl": "1h"})).await.unwrap();
        let message = condition(&world, "early", "False", "Waiting").await;
        assert_eq!(message, "waits for Cluster one");
        world.create("a", "one", json!({})).await.unwrap();
        world.converged(SECOND * 30, "a", "one").await.unwrap();
        condition(&world, "early", "True", "AsExpected").await;

        let first = secret(&world, "early").await.unwrap();
        let status = world.clusters("a").get("one").await.unwrap().status.unwrap();
        let ca = world.secrets(&home(&world, "one").await).get(roots::SECRET).await.unwrap();
        let found = way(&first);
        let wanted = Way {
            server: status.endpoint.unwrap(),
            user: "alice".into(),
            groups: vec!["dev".into()],
            authority: ca.data.unwrap()["kubernetes.crt"].0.clone(),
            life: 3600,
            serial: found.serial.clone(),
        };
        assert_eq!(found, wanted);
        let access = accesses(&world).get("early").await.unwrap();
        let owner = &first.metadata.owner_references.as_ref().unwrap()[0];
        assert_eq!((Some(&owner.uid), owner.controller), (access.metadata.uid.as_ref(), Some(true)));
        let told = access.status.unwrap();
        assert_eq!(told.secret.as_deref(), Some("early-access"));
        let ends: Timestamp = told.certificate_ends_at.unwrap().parse().unwrap();
        assert!((Timestamp::now().as_second() + 3600 - ends.as_second()).abs() < 60, "it ends at {ends}");

        // Nothing more is written.
        manager.settled().await;
        let before = servers.audit().len();
        tokio::time::sleep(SECOND * 8).await;
        let writes = servers.audit().split_off(before);
        let writes: Vec<_> = writes.iter().filter(|write| !write.uri.contains("/leases")).collect();
        assert!(writes.is_empty(), "{writes:?}");

        it_is_issued_anew(&world, &found).await;
        the_command_makes_one(servers, &world).await;
        no_key_is_told(&world, &[&manager]).await;
        it_ends_with_the_cluster(&world).await;
    });
}

async fn it_is_issued_anew(world: &World, first: &Way) {
    // For another wish, and what was issued stays where the wish is none.
    let change = |spec: Value| {
        let patch = Patch::Merge(json!({"spec": spec}));
        async move { accesses(world).patch("early", &PatchParams::default(), &patch).await }
    };
    change(json!({"groups": ["ops"]})).await.unwrap();
    let second = another(world, "early", first).await;
    assert_eq!(second.groups, ["ops"]);
    change(json!({"ttl": "48h"})).await.unwrap();
    let message = condition(world, "early", "False", "InvalidSpec").await;
    assert!(message.starts_with("spec.ttl: must be at most 1440m"), "{message}");
    assert_eq!(way(&secret(world, "early").await.unwrap()), second);
    change(json!({"ttl": "10m"})).await.unwrap();
    let third = another(world, "early", &second).await;
    assert_eq!(third.life, 600);
    // When its time comes.
    condition(world, "early", "True", "AsExpected").await;
    let past = "2020-01-01T00:00:00Z";
    world.annotate(&world.secrets("a"), "early-access", "giantnetes.io/renew-at", past).await.unwrap();
    let fourth = another(world, "early", &third).await;
    // When somebody edits or deletes it.
    let edit = Patch::Merge(json!({"stringData": {"value": "mine"}}));
    world.secrets("a").patch("early-access", &PatchParams::default(), &edit).await.unwrap();
    let looked = eventually(SECOND * 15, "the edit to be undone", || async {
        let secret = secret(world, "early").await?;
        ensure!(secret.data.as_ref().unwrap()["value"].0 != b"mine", "it is not");
        Ok(secret)
    });
    let fifth = way(&looked.await.unwrap().0);
    assert_ne!(fifth.serial, fourth.serial);
    world.secrets("a").delete("early-access", &DeleteParams::default()).await.unwrap();
    let looked = eventually(SECOND * 15, "the Secret to return", || secret(world, "early"));
    assert_ne!(way(&looked.await.unwrap().0).serial, fifth.serial);

    // A Secret of this name that is somebody else's is left alone.
    let foreign: Secret =
        serde_json::from_value(json!({"metadata": {"name": "bob-access"}, "stringData": {"value": "x"}})).unwrap();
    world.secrets("a").create(&PostParams::default(), &foreign).await.unwrap();
    create(world, "bob", json!({"user": "bob"})).await.unwrap();
    condition(world, "bob", "False", "ForeignObject").await;
    assert_eq!(secret(world, "bob").await.unwrap().data.unwrap()["value"].0, b"x");
}

async fn the_command_makes_one(servers: &Servers, world: &World) {
    let ask = |words: &str| {
        Run::new("env")
            .arg(format!("KUBECONFIG={}", servers.kubeconfig().display()))
            .arg(giantnetes())
            .args(["kubeconfig", "one", "--namespace", "a"])
            .args(words.split(' '))
            .timeout(SECOND * 60)
            .output()
    };
    let printed = ask("--user carol@example.com --group dev --ttl 30m").unwrap();
    let made = accesses(world).list(&ListParams::default()).await.unwrap();
    let made = made.items.into_iter().find(|access| access.spec.user == "carol@example.com").unwrap();
    let secret = secret(world, made.metadata.name.as_deref().unwrap()).await.unwrap();
    assert_eq!(secret.data.as_ref().unwrap()["value"].0, printed.into_bytes());
    let way = way(&secret);
    assert_eq!((way.groups, way.life), (vec!["dev".to_owned()], 1800));
    for (words, problem) in [
        ("--user carol --ttl 48h", "spec.ttl: must be at most 1440m"),
        ("--user system:admin", "must not begin with system:"),
        ("--group dev", "--user"),
    ] {
        let refused = format!("{:#}", ask(words).unwrap_err());
        assert!(refused.contains(problem), "{words}: {refused}");
    }
}

async fn it_ends_with_the_cluster(world: &World) {
    world.delete("a", "one").await.unwrap();
    world.gone(SECOND * 30, "a", "one").await.unwrap();
    condition(world, "early", "False", "Waiting").await;
    eventually(SECOND * 15, "the Secret to be gone", || async {
        ensure!(world.secrets("a").get_opt("early-access").await?.is_none(), "it is there");
        let access = accesses(world).get("early").await?;
        ensure!(access.status.unwrap().secret.is_none(), "the status names it");
        Ok(())
    })
    .await
    .unwrap();
    // The next Cluster of that name has another authority.
    world.create("a", "one", json!({})).await.unwrap();
    condition(world, "early", "True", "AsExpected").await;
    let ca = world.secrets(&home(world, "one").await).get(roots::SECRET).await.unwrap();
    assert_eq!(way(&secret(world, "early").await.unwrap()).authority, ca.data.unwrap()["kubernetes.crt"].0);
}

#[test]
fn the_api_server_refuses_what_nobody_may_have() {
    on_servers("access-rules", async |_, world| {
        world.namespace("a").await.unwrap();
        for (spec, problem) in [
            (json!({"user": "system:admin"}), "spec.user: Invalid value"),
            (json!({"user": "giantnetes:administrator"}), "must not begin with system: or giantnetes:"),
            (json!({"user": ""}), "spec.user"),
            (json!({"user": "al ice"}), "spec.user"),
            (json!({"user": "a".repeat(65)}), "spec.user"),
            (json!({"groups": ["system:masters"]}), "spec.groups"),
            (json!({"groups": ["dev", "system:masters"]}), "must not contain a group that begins with system:"),
            (json!({"groups": ["dev", "dev"]}), "spec.groups[1]: Duplicate value"),
            (
                json!({"groups": (0..17).map(|number| format!("group-{number}")).collect::<Vec<_>>()}),
                "spec.groups: Too many",
            ),
            (json!({"ttl": "9m"}), "must be between 10m and 720h"),
            (json!({"ttl": "1000h"}), "must be between 10m and 720h"),
            (json!({"ttl": "1d"}), "spec.ttl"),
            (json!({"clusterRef": {"name": "--help"}}), "spec.clusterRef.name"),
            (json!({"rights": {"clusterRole": "a/b"}}), "spec.rights.clusterRole"),
            (json!({"rights": {"clusterRole": "view", "namespaces": []}}), "spec.rights.namespaces"),
            (
                json!({"rights": {"clusterRole": "view", "namespaces": ["a", "a"]}}),
                "spec.rights.namespaces[1]: Duplicate",
            ),
            (json!({"rights": {"clusterRole": "view", "namespaces": ["A"]}}), "spec.rights.namespaces[0]"),
        ] {
            let refused = create(&world, "bad", spec.clone()).await.expect_err(&spec.to_string()).to_string();
            assert!(refused.contains(problem), "{spec}: {refused}");
        }
        let long = create(&world, &"a".repeat(247), json!({})).await.unwrap_err().to_string();
        assert!(long.contains("at most 246 characters"), "{long}");
        create(&world, "good", json!({"user": "alice@example.com", "groups": ["oidc:dev"], "ttl": "720h"}))
            .await
            .unwrap();
        let other = Patch::Merge(json!({"spec": {"clusterRef": {"name": "two"}}}));
        let refused = accesses(&world).patch("good", &PatchParams::default(), &other).await.unwrap_err().to_string();
        assert!(refused.contains("is immutable"), "{refused}");
    });
}
