//! A manager that is killed at every one of its writes ends where an undisturbed one ends.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde_json::{Value, json};

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::{Api, ResourceExt as _, api::ListParams};

use crate::{
    asked_for,
    manager::{Manager, Options},
    on_servers,
    proxy::{Crash, Moment},
    servers::Servers,
    steady::the_plan_has_nothing_to_do,
    world::{SECOND, World, condition, eventually},
};

/// What an undisturbed life comes to.
struct Undisturbed {
    /// Whether it had VM pods.
    machines: bool,
    created: Vec<String>,
    writes_to_create: usize,
    writes_to_delete: usize,
}

/// With a host name: its claim and its Ingress are two more of the writes after which a manager may die; and a worker, whose
/// place, keys and VM pod are more where there is a provider.
fn spec(machines: bool) -> Value {
    let mut spec = json!({"exposure": {"type": "Ingress", "host": "life.example.com"}});
    if machines {
        spec["nodePools"] = json!([{"name": "x", "replicas": 1}]);
    }
    spec
}

async fn create(world: &World, machines: bool) {
    world.create("a", "life", spec(machines)).await.unwrap();
}

/// Waits until all is made. Of VMs, whose pods nobody runs here, that is the pods.
async fn converged(world: &World, machines: bool) -> Result<()> {
    if !machines {
        return world.converged(SECOND * 30, "a", "life").await.map(drop);
    }
    let made = async || {
        let cluster = world.clusters("a").get("life").await?;
        for type_ in ["NetworkReady", "PKIReady"] {
            let found = condition(&cluster, type_);
            ensure!(found.as_ref().is_some_and(|(status, ..)| status == "True"), "{type_} is {found:?}");
        }
        let pods = world.inventory().await?.iter().filter(|object| object.starts_with("Pod ")).count();
        ensure!(pods == 2, "there are {pods} VM pods");
        Ok(())
    };
    eventually(SECOND * 30, "the Cluster to have all", made).await.map(drop)
}

/// What a life comes to: the objects that are there, and what is said of the Cluster.
async fn outcome(world: &World) -> Result<Vec<String>> {
    let mut found = world.inventory().await?;
    let status = world.clusters("a").get("life").await?.status.unwrap_or_default();
    found.extend(status.conditions.iter().map(|said| format!("{} {} {}", said.type_, said.status, said.reason)));
    Ok(found)
}

/// Roots and etcd's volumes with their UIDs: what is lost if it is made a second time.
async fn irreplaceable(world: &World) -> BTreeMap<String, String> {
    let mut found = world.roots().await.unwrap();
    let volumes = Api::<PersistentVolumeClaim>::all(world.client.clone()).list(&ListParams::default()).await.unwrap();
    found.extend(volumes.iter().map(|volume| (volume.name_any(), volume.uid().unwrap_or_default())));
    found
}

async fn undisturbed(manager: &Manager, world: &World, machines: bool) -> Undisturbed {
    manager.proxy.forget();
    create(world, machines).await;
    converged(world, machines).await.unwrap();
    manager.settled().await;
    let created = outcome(world).await.unwrap();
    let writes_to_create = manager.proxy.writes().len();
    manager.proxy.forget();
    world.delete("a", "life").await.unwrap();
    world.gone(SECOND * 30, "a", "life").await.unwrap();
    no_claims(world).await;
    let writes = manager.proxy.writes();
    println!("    undisturbed: {writes_to_create} writes to create, {} to delete", writes.len());
    Undisturbed { machines, created, writes_to_create, writes_to_delete: writes.len() }
}

async fn no_claims(world: &World) {
    let none = || async {
        let left = world.claims().await?;
        anyhow::ensure!(left.is_empty(), "{left:?}");
        Ok(())
    };
    eventually(SECOND * 20, "the claims' quarantine to end", none).await.unwrap();
}

/// Of `steps` writes those that this run takes.
fn points(steps: usize) -> Vec<usize> {
    // In a sample, the first and the last, and a few between.
    if asked_for("all") {
        return (1..=steps).collect();
    }
    let mut few: Vec<_> = (1..=steps).step_by(steps.div_ceil(6).max(1)).collect();
    few.push(steps);
    few
}

/// The moments at which a manager is still to be killed, of one half of a life.
struct Deaths {
    what: &'static str,
    left: VecDeque<(usize, Moment, u32)>,
    missed: Vec<(usize, Moment)>,
}

impl Deaths {
    fn new(what: &'static str, steps: usize) -> Self {
        let moments = [Moment::BeforeForwarding, Moment::BeforeAnswering];
        let left = points(steps).into_iter().flat_map(|at| moments.map(|moment| (at, moment, 1))).collect();
        Self { what, left, missed: Vec::new() }
    }

    /// Takes note of a write that did not come: status writes that come together are one. It is tried twice more.
    fn missed(&mut self, (at, moment, tries): (usize, Moment, u32)) {
        println!("    {}: write {at} did not come, for the {tries}. time", self.what);
        if tries < 3 {
            self.left.push_back((at, moment, tries + 1));
        } else {
            self.missed.push((at, moment));
        }
    }

    /// All but one of the writes must have come.
    fn judge(&self) {
        let writes: BTreeSet<_> = self.missed.iter().map(|(at, _)| at).collect();
        println!("    {}: never came to {:?}", self.what, self.missed);
        assert!(writes.len() <= 1, "{}: writes {writes:?} never came, so nothing was tried there", self.what);
    }
}

/// Kills the manager at its `at`-th write from now on and starts it again. Answers whether it came so far, and what was there
/// when it was dead.
async fn killed(
    manager: &mut Manager,
    world: &World,
    at: usize,
    moment: Moment,
    trigger: impl AsyncFnOnce(),
) -> (bool, BTreeMap<String, String>) {
    manager.proxy.crash(Crash { at, moment, process: manager.id() });
    trigger().await;
    let ended = tokio::task::block_in_place(|| manager.ended(SECOND * 8)).is_ok();
    manager.proxy.spare();
    let there = irreplaceable(world).await;
    if ended {
        manager.restart();
    }
    (ended, there)
}

/// Creates the Cluster, with a death on the way if one is given. Answers whether it came to that.
async fn live(
    servers: &Servers,
    manager: &mut Manager,
    world: &World,
    whole: &Undisturbed,
    death: Option<(usize, Moment, u32)>,
) -> bool {
    let machines = whole.machines;
    let Some((at, moment, _)) = death else {
        create(world, machines).await;
        converged(world, machines).await.unwrap();
        return true;
    };
    let what = format!("killed at write {at} {moment:?}");
    let (ended, before) = killed(manager, world, at, moment, async || create(world, machines).await).await;
    converged(world, machines).await.unwrap_or_else(|error| panic!("{what}: {error:#}"));
    let is_whole = async || {
        let now = outcome(world).await?;
        ensure!(now == whole.created, "there are {now:?}, an undisturbed one has {:?}", whole.created);
        Ok(())
    };
    eventually(SECOND * 30, &what, is_whole).await.unwrap();
    manager.settled().await;
    let after = irreplaceable(world).await;
    for (name, id) in &before {
        assert_eq!(after.get(name), Some(id), "{what}: {name} was made anew");
    }
    assert_eq!(outcome(world).await.unwrap(), whole.created, "{what}");
    // What they hold is what a plan asks for that knows nothing of this life.
    let parts: &[&str] = if machines { &["cluster", "network", "pki", "kvm"] } else { &["cluster", "network", "pki"] };
    the_plan_has_nothing_to_do(servers, manager, "life", &spec(machines), parts);
    ended
}

/// Deletes the Cluster, with a death on the way if one is given. Answers whether it came to that.
async fn die(manager: &mut Manager, world: &World, death: Option<(usize, Moment, u32)>) -> bool {
    let delete = async || world.delete("a", "life").await.unwrap();
    let ended = match death {
        Some((at, moment, _)) => killed(manager, world, at, moment, delete).await.0,
        None => {
            delete().await;
            true
        }
    };
    world.gone(SECOND * 30, "a", "life").await.unwrap_or_else(|error| panic!("{death:?}: {error:#}"));
    no_claims(world).await;
    assert_eq!(world.inventory().await.unwrap(), Vec::<String>::new(), "{death:?}");
    ended
}

async fn every_crash(servers: &Servers, world: World, machines: bool) {
    let options = Options { kvm: machines, ..Options::default() };
    let mut manager = Manager::start(servers, "mortal", options).await;
    world.namespace("a").await.unwrap();
    let mut whole = undisturbed(&manager, &world, machines).await;
    // How many status writes come together differs from life to life: what every life has is few enough.
    for _ in 0..2 {
        let again = undisturbed(&manager, &world, machines).await;
        assert_eq!(again.created, whole.created);
        whole.writes_to_create = whole.writes_to_create.min(again.writes_to_create);
        whole.writes_to_delete = whole.writes_to_delete.min(again.writes_to_delete);
    }
    let mut creations = Deaths::new("creation", whole.writes_to_create);
    let mut deletions = Deaths::new("deletion", whole.writes_to_delete);
    let mut lives = 0;
    while !creations.left.is_empty() || !deletions.left.is_empty() {
        let (birth, death) = (creations.left.pop_front(), deletions.left.pop_front());
        println!("    killed in creation at {birth:?}, in deletion at {death:?}");
        if !live(servers, &mut manager, &world, &whole, birth).await {
            creations.missed(birth.unwrap());
        }
        if !die(&mut manager, &world, death).await {
            deletions.missed(death.unwrap());
        }
        lives += 1;
    }
    println!("    {lives} lives");
    creations.judge();
    deletions.judge();
}

#[test]
fn networks_and_keys_of_a_manager_killed_at_any_write_are_those_of_an_undisturbed_one() {
    on_servers("crash", async |servers, world| every_crash(servers, world, false).await);
}

#[test]
fn nodes_of_a_manager_killed_at_any_write_are_those_of_an_undisturbed_one() {
    on_servers("crash-nodes", async |servers, world| every_crash(servers, world, true).await);
}
