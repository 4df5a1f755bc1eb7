//! A whole operator on `giantnetes::runtime` alone: every namespace with the label `welcome` gets a ConfigMap `welcome`
//! that greets by the label's value. One replica leads; nothing is written twice; edits are undone. With a kubeconfig:
//! `cargo run --example welcome`, then `kubectl label namespace default welcome=Ada`.

use std::{fmt, sync::Arc, time::Duration};

use giantnetes::runtime::{
    apply::{Applier, ApplyError, Memory, Owner},
    cache::{self, Watches},
    lease::Elector,
    link,
    operator::{self, Reconciler, Shift},
    queue::{Key, Outcome, Queue},
    telemetry::{self, LogFormat},
};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::{Api, Client, Config, ResourceExt as _, api::PartialObjectMeta, runtime::reflector::Store};
use tokio_util::sync::CancellationToken;

const LABEL: &str = "welcome";

/// A namespace's name.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Name(String);

impl Key for Name {
    fn group(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

struct Welcome {
    client: Client,
    namespaces: Store<PartialObjectMeta<Namespace>>,
    greetings: Store<PartialObjectMeta<ConfigMap>>,
    applier: Applier,
}

impl Reconciler for Welcome {
    const NAME: &'static str = "welcome";
    type Key = Name;
    type Error = ApplyError;

    async fn reconcile(&self, Name(name): &Name) -> Result<Outcome, ApplyError> {
        let Some(namespace) = cache::get(&self.namespaces, None, name) else { return Ok(Outcome::AwaitChange) };
        let whom = &namespace.labels()[LABEL];
        let mut greeting =
            ConfigMap { data: Some([("text".into(), format!("Welcome, {whom}!"))].into()), ..ConfigMap::default() };
        greeting.metadata.name = Some("welcome".into());
        greeting.metadata.namespace = Some(name.clone());
        greeting.labels_mut().insert(LABEL.into(), whom.clone());
        let owner = Owner { annotation: "welcome/namespace-uid", uid: namespace.uid().unwrap_or_default() };
        let cached = cache::get(&self.greetings, Some(name), "welcome");
        let api = Api::namespaced(self.client.clone(), name);
        self.applier.ensure(&api, &owner, &greeting, cached.as_ref().map(|object| &object.metadata)).await?;
        Ok(Outcome::AwaitChange)
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    telemetry::init_logs(LogFormat::Text, "info");
    let config = Config::infer().await?;
    let leases = Api::namespaced(link::connect(config.clone(), None)?, &config.default_namespace);
    let elector = Elector::new(leases, "welcome", &format!("{}", std::process::id()), Duration::from_secs(15));
    let leadership = elector.leadership();
    let client = link::connect(config, Some(leadership.clone()))?;
    let (stop, queue, memory) = (CancellationToken::new(), Queue::new(4), Memory::default());
    let watches = Watches::new(client.clone(), stop.clone());
    let (on_namespace, on_greeting, forgetful) = (queue.clone(), queue.clone(), memory.clone());
    let namespaces =
        watches.metadata("namespaces", Some(LABEL), move |object, _| on_namespace.add(Name(object.name_any())));
    let greetings =
        watches.metadata("configmaps", Some(LABEL), move |object: &PartialObjectMeta<ConfigMap>, change| {
            if change == cache::Change::Gone {
                forgetful.forget(&object.metadata);
            }
            on_greeting.add(Name(object.namespace().unwrap_or_default()));
        });
    let welcome = Welcome { client, namespaces, greetings, applier: Applier::new("welcome", "welcome/hash", &memory) };
    let election = tokio::spawn(elector.run(stop.clone()));
    leadership.gained().await;
    let shift = Shift::default();
    operator::start(Arc::new(welcome), &queue, &shift);
    tokio::select! {
        () = leadership.lost() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    leadership.close();
    shift.end(leadership.idle(Duration::from_secs(5))).await;
    stop.cancel();
    Ok(election.await?)
}
