//! A manager that is killed at every one of its writes ends where an undisturbed one ends.

use serde_json::json;

use crate::{
    asked_for,
    manager::{Manager, Options},
    on_servers,
    proxy::{Crash, Moment},
    servers::Servers,
    world::{SECOND, World, eventually},
};

/// What an undisturbed life comes to.
struct Undisturbed {
    created: Vec<String>,
    writes_to_create: usize,
    writes_to_delete: usize,
}

async fn undisturbed(manager: &Manager, world: &World) -> Undisturbed {
    manager.proxy.forget();
    world.create("a", "life", json!({})).await.unwrap();
    world.converged(SECOND * 30, "a", "life").await.unwrap();
    manager.settled().await;
    let created = world.inventory().await.unwrap();
    let writes_to_create = manager.proxy.writes().len();
    manager.proxy.forget();
    world.delete("a", "life").await.unwrap();
    world.gone(SECOND * 30, "a", "life").await.unwrap();
    no_claims(world).await;
    let writes = manager.proxy.writes();
    println!("    undisturbed: {writes_to_create} writes to create, {} to delete", writes.len());
    Undisturbed { created, writes_to_create, writes_to_delete: writes.len() }
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
    let mut few: Vec<_> = (1..=steps).step_by(steps.div_ceil(4).max(1)).collect();
    few.push(steps);
    few
}

/// Kills the manager at its `at`-th write from now on and starts it again. Answers whether it came so far.
async fn killed(manager: &mut Manager, at: usize, moment: Moment, trigger: impl AsyncFnOnce()) -> bool {
    manager.proxy.crash(Crash { at, moment, process: manager.id() });
    trigger().await;
    let ended = tokio::task::block_in_place(|| manager.ended(SECOND * 8)).is_ok();
    manager.proxy.spare();
    manager.restart();
    ended
}

async fn crashed_in_creation(manager: &mut Manager, world: &World, whole: &Undisturbed, at: usize, moment: Moment) {
    let create = async || drop(world.create("a", "life", json!({})).await.unwrap());
    let ended = killed(manager, at, moment, create).await;
    let roots = world.roots().await.unwrap();
    world
        .converged(SECOND * 30, "a", "life")
        .await
        .unwrap_or_else(|error| panic!("killed at write {at} {moment:?}: {error:#}"));
    manager.settled().await;
    let after = world.roots().await.unwrap();
    for (name, root) in &roots {
        assert_eq!(after.get(name), Some(root), "killed at write {at} {moment:?}: {name} was made anew");
    }
    assert_eq!(world.inventory().await.unwrap(), whole.created, "killed at write {at} {moment:?}");
    // Coalescing makes the last status write come or not.
    assert!(ended || at + 2 >= whole.writes_to_create, "write {at} of {} never came", whole.writes_to_create);
}

async fn crashed_in_deletion(manager: &mut Manager, world: &World, whole: &Undisturbed, at: usize, moment: Moment) {
    let ended = killed(manager, at, moment, async || world.delete("a", "life").await.unwrap()).await;
    world
        .gone(SECOND * 30, "a", "life")
        .await
        .unwrap_or_else(|error| panic!("killed at write {at} {moment:?}: {error:#}"));
    no_claims(world).await;
    assert_eq!(world.inventory().await.unwrap(), Vec::<String>::new(), "killed at write {at} {moment:?}");
    assert!(ended || at + 3 >= whole.writes_to_delete, "write {at} of {} never came", whole.writes_to_delete);
}

async fn every_crash(servers: &Servers, world: World) {
    let mut manager = Manager::start(servers, "mortal", Options::default()).await;
    world.namespace("a").await.unwrap();
    let whole = undisturbed(&manager, &world).await;
    let steps = whole.writes_to_create.max(whole.writes_to_delete);
    for at in points(steps) {
        for moment in [Moment::BeforeForwarding, Moment::BeforeAnswering] {
            println!("    killed at write {at} {moment:?}");
            if at <= whole.writes_to_create {
                crashed_in_creation(&mut manager, &world, &whole, at, moment).await;
            } else {
                world.create("a", "life", json!({})).await.unwrap();
                world.converged(SECOND * 30, "a", "life").await.unwrap();
            }
            crashed_in_deletion(&mut manager, &world, &whole, at.min(whole.writes_to_delete), moment).await;
        }
    }
}

#[test]
fn a_manager_killed_at_any_write_ends_as_an_undisturbed_one() {
    on_servers("crash", every_crash);
}
