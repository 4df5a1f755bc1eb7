//! The main job as a user does it: `make demo` turns one Cluster object into a running guest, may be run again, and
//! `make demo-down` leaves the machine as it was.
//!
//! It raises and removes the machine's one lab, so none may be running.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::path::Path;

use anyhow::{Context, Result};
use lab::{Lab, snapshot};
use serde_json::Value;
use support::{STATE, assert_unchanged, in_time, make};

/// Removes what the test raised, whatever happened.
struct Demo;

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = make("demo-down");
    }
}

#[test]
fn the_demo_runs_twice_and_leaves_nothing() {
    assert!(!Path::new(STATE).exists(), "a lab is on this machine, and this test raises its own: run `lab down` first");
    let before = snapshot().unwrap();
    let demo = Demo;
    // Four minutes are aimed at; most of them are an emulated boot, so a test waits three times as long.
    let said = in_time("make demo with warm caches (aim: 240 s)", 3 * 240, || make("demo").unwrap());
    shows_progress(&said);
    shows_the_guest(&said);
    let lab = Lab::running().expect("the lab of the demo runs");
    let first = guest(&lab).unwrap();
    shows_the_guest(&make("demo").unwrap());
    assert_eq!(guest(&lab).unwrap(), first, "the second make demo has changed the guest");

    make("demo-down").unwrap();
    assert_unchanged(&before);
    make("demo-down").expect("nothing is there any more, which is no error");
    assert_unchanged(&before);
    drop(demo);
}

/// A person sees the Cluster's phases and what it waits for, until it is Ready.
fn shows_progress(said: &str) {
    let lines = said.lines().filter_map(|line| line.strip_prefix("demo: ")?.split_once(" s: "));
    let told: Vec<_> = lines.map(|(_, told)| told).collect();
    assert!(told.len() >= 3 && told.last().is_some_and(|last| last.starts_with("Ready")), "{told:?}");
}

/// The demo ends with the guest's node, its pod and what a command in it says.
fn shows_the_guest(said: &str) {
    let (_, guest) = said.split_once("demo: the guest cluster:").unwrap_or_else(|| panic!("it shows no guest: {said}"));
    for words in [[" Ready ", "v1.36."], ["hello", "Running"], ["uname -a", ": Linux"]] {
        let shown = guest.lines().any(|line| words.iter().all(|word| line.contains(word)));
        assert!(shown, "no line has {words:?}: {guest}");
    }
}

/// What is another one if it was made anew: ids of the Cluster and of its VM pod, and how often its container started.
fn guest(lab: &Lab) -> Result<[Value; 3]> {
    let get = |args: &[&str]| -> Result<Value> {
        Ok(serde_json::from_str(&lab.kubectl(&[&["get", "-o", "json"], args].concat())?)?)
    };
    let cluster = get(&["-n", "demo", "clusters.giantnetes.io", "demo"])?;
    let id = cluster["status"]["id"].as_str().context("the Cluster has no id")?;
    let pod = get(&["-n", &format!("g8s-{id}"), "pod", "master-0"])?;
    let restarts = pod["status"]["containerStatuses"][0]["restartCount"].clone();
    Ok([cluster["metadata"]["uid"].clone(), pod["metadata"]["uid"].clone(), restarts])
}
