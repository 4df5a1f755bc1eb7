//! Lifetimes, names and renewal of certificates, as `spec.pki` asks for them.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::{api::core::v1::Secret, jiff::Timestamp};
use kube::{
    ResourceExt as _,
    api::{Patch, PatchParams},
};
use serde_json::json;
use x509_parser::{extensions::GeneralName, pem::parse_x509_pem};

use crate::{
    manager::{Manager, Options},
    on_servers,
    steady::home,
    world::{SECOND, World, eventually},
};

const RENEW_AT: &str = "giantnetes.io/renew-at";

/// What of a certificate the tests look at.
#[derive(Clone, Debug, PartialEq)]
struct Certificate {
    serial: String,
    not_before: i64,
    not_after: i64,
    names: Vec<String>,
}

fn parse(pem: &[u8]) -> Certificate {
    let (_, pem) = parse_x509_pem(pem).unwrap();
    let certificate = pem.parse_x509().unwrap();
    let names = certificate.subject_alternative_name().unwrap();
    let names = names.map_or_else(Vec::new, |names| names.value.general_names.clone());
    let shown = |name: &GeneralName| match name {
        GeneralName::DNSName(name) => (*name).to_owned(),
        GeneralName::IPAddress(bytes) => bytes.iter().map(u8::to_string).collect::<Vec<_>>().join("."),
        other => format!("{other}"),
    };
    Certificate {
        serial: certificate.raw_serial_as_string(),
        not_before: certificate.validity().not_before.timestamp(),
        not_after: certificate.validity().not_after.timestamp(),
        names: names.iter().map(shown).collect(),
    }
}

/// Every certificate of a Secret, by file. Its authorities' are not leaves.
fn leaves(secret: &Secret) -> BTreeMap<String, Certificate> {
    let data = secret.data.as_ref().unwrap();
    let is_leaf =
        |file: &str| file.strip_suffix(".crt").is_some_and(|leaf| !["ca", "etcd-ca", "front-proxy-ca"].contains(&leaf));
    data.iter().filter(|(file, _)| is_leaf(file)).map(|(file, bytes)| (file.clone(), parse(&bytes.0))).collect()
}

fn authorities(secret: &Secret) -> Vec<Vec<u8>> {
    let data = secret.data.as_ref().unwrap();
    ["ca.crt", "etcd-ca.crt", "front-proxy-ca.crt", "sa.key", "encryption.yaml"].map(|file| data[file].0.clone()).into()
}

/// Seconds between the moment of issue, which a certificate antedates by five minutes, and its end.
fn life(certificate: &Certificate) -> i64 {
    certificate.not_after - certificate.not_before - 300
}

fn renews_at(secret: &Secret) -> i64 {
    secret.annotations()[RENEW_AT].parse::<k8s_openapi::jiff::Timestamp>().unwrap().as_second()
}

/// Waits for a node's Secret that is another than `old`.
async fn another(world: &World, home: &str, old: &Secret) -> Result<(Secret, Duration)> {
    eventually(SECOND * 30, "the node's certificates to be issued anew", || async {
        let secret = world.secrets(home).get("master-0-pki").await?;
        ensure!(secret.data != old.data, "they are the same");
        Ok(secret)
    })
    .await
}

async fn set(world: &World, pki: serde_json::Value) {
    let patch = Patch::Merge(json!({"spec": {"pki": pki}}));
    world.clusters("a").patch("one", &PatchParams::default(), &patch).await.unwrap();
}

#[test]
fn certificates_live_as_long_and_name_what_was_asked_for_and_are_renewed() {
    on_servers("certificates", async |servers, world| {
        let manager = Manager::start(servers, "one", Options::default()).await;
        world.namespace("a").await.unwrap();
        let names = json!(["192.0.2.10", "api.one.example.com"]);
        let pki = json!({"ca": {"ttl": "24h"}, "leaf": {"ttl": "10m"}, "apiServer": {"altNames": names}});
        world.create("a", "one", json!({"pki": pki})).await.unwrap();
        world.converged(SECOND * 30, "a", "one").await.unwrap();
        let home = home(&world, "one").await;
        let first = world.secrets(&home).get("master-0-pki").await.unwrap();
        let issued = leaves(&first);
        assert!(issued.len() >= 11, "{:?}", issued.keys());
        for (file, certificate) in &issued {
            assert_eq!(life(certificate), 600, "{file}");
            let named = ["192.0.2.10", "api.one.example.com"].map(|name| certificate.names.iter().any(|n| n == name));
            assert_eq!(named, [file == "apiserver.crt"; 2], "{file}: {:?}", certificate.names);
        }
        let end = issued["apiserver.crt"].not_after;
        assert!((end - 200 - renews_at(&first)).abs() <= 1, "it is renewed at two thirds of its life");
        let authority = parse(&authorities(&first)[0]);
        assert_eq!(life(&authority), 24 * 3600);
        let kubeconfig = world.secrets("a").get("one-kubeconfig").await.unwrap();
        assert!((renews_at(&kubeconfig) - renews_at(&first)).abs() <= 2);
        // What ends first of all is told in the status and to Prometheus.
        let first_end = issued.values().map(|certificate| certificate.not_after).min().unwrap();
        let told = async || {
            let status = world.clusters("a").get("one").await?.status.context("no status")?;
            let end = status.certificates_end_at.context("no end")?.parse::<Timestamp>()?.as_second();
            ensure!((end - first_end).abs() <= 2, "{end} is told, and {first_end} is the first end");
            let series = format!(
                "giantnetes_cluster_certificate_expiry_timestamp_seconds{{namespace=\"a\",name=\"one\"}} {end}"
            );
            ensure!(manager.get("/metrics").await?.lines().any(|line| line == series), "no series {series}");
            Ok(())
        };
        eventually(SECOND * 30, "the end to be told", told).await.unwrap();

        // Its time comes, and nothing but the clock says so. (A certificate cannot live for less than ten minutes.)
        let before = world.roots().await.unwrap();
        manager.settled().await;
        let due = Timestamp::from_second(Timestamp::now().as_second() + 9).unwrap();
        world.annotate(&world.secrets(&home), "master-0-pki", RENEW_AT, &due.to_string()).await.unwrap();
        let (second, _) = another(&world, &home, &first).await.unwrap();
        let late = Timestamp::now().duration_since(due).as_secs_f64();
        println!("    renewed {late:.1} s after its time");
        assert!((0.0..=24.0).contains(&late), "renewed {late:.1} s after its time");
        for (file, certificate) in leaves(&second) {
            assert_ne!(certificate.serial, issued[&file].serial, "{file}");
            assert_eq!((certificate.names.clone(), life(&certificate)), (issued[&file].names.clone(), 600), "{file}");
        }
        assert_eq!(authorities(&second), authorities(&first), "the authorities are others");
        assert_eq!(world.roots().await.unwrap(), before);
        manager.settled().await;
        let rested = world.secrets(&home).get("master-0-pki").await.unwrap();
        assert_eq!(rested.metadata.resource_version, second.metadata.resource_version, "it is renewed again and again");

        // Another lifetime is there at once; one that the authorities do not reach is cut.
        set(&world, json!({"leaf": {"ttl": "24h"}})).await;
        let (third, _) = another(&world, &home, &second).await.unwrap();
        for (file, certificate) in leaves(&third) {
            assert!(certificate.not_after <= authority.not_after, "{file} outlives what signed it");
            assert!(certificate.not_after + 60 >= authority.not_after, "{file} is shorter than it need be");
        }
        set(&world, json!({"apiServer": {"altNames": ["api.one.example.com"]}})).await;
        let (fourth, _) = another(&world, &home, &third).await.unwrap();
        assert!(!leaves(&fourth)["apiserver.crt"].names.contains(&"192.0.2.10".to_owned()));
        assert_eq!(world.roots().await.unwrap(), before);

        // The authorities' lifetime is theirs from the beginning.
        let patch = Patch::Merge(json!({"spec": {"pki": {"ca": {"ttl": "48h"}}}}));
        let refused = world.clusters("a").patch("one", &PatchParams::default(), &patch).await;
        let message = refused.map(drop).err().context("it may change").unwrap().to_string();
        assert!(message.contains("is immutable"), "{message}");
        assert!(!manager.log_text().contains("panicked"));
    });
}
