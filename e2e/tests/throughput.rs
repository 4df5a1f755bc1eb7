//! How fast virtual machines of a guest reach each other on two hosts, as a share of what pods of the management cluster reach
//! there, in the same run. `make bench` runs it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use anyhow::{Context, Result, ensure};
use lab::Lab;
use lab::tools::Image;
use support::throughput::{Management, Network, Rate, measure};
use support::{Guest, in_steps, installed};

const NAMESPACE: &str = "e2e-throughput";
/// What the design has for a guest of 1 + 1 nodes to become Ready, in seconds.
const READY_AIM: u64 = 180;
const NODES: [&str; 2] = ["master-0", "default-0"];
const SPEC: &str = r#"{"nodePools": [{"name": "default", "replicas": 1, "machine": {"memory": "2Gi"}}]}"#;
/// As much as takes seconds, by way of emulated CPUs and without them.
const OF_MACHINES: u32 = 64;
const OF_PODS: u32 = 2048;

type Step = fn(&Lab, &Guest) -> Result<()>;

#[test]
fn machines_reach_each_other_at_a_share_of_what_pods_do() {
    let image = Image::build("toolbox").unwrap();
    let lab = installed();
    lab.load(&image.archive).unwrap();
    let guest = Guest::create(&lab, NAMESPACE, "measured", SPEC);
    let steps: [(&str, Step); 2] =
        [("two nodes on two hosts become Ready", become_ready), ("bytes go from one to the other", bytes_go)];
    in_steps(&steps, |step| step(&lab, &guest));
}

fn become_ready(_: &Lab, guest: &Guest) -> Result<()> {
    guest.await_first_ready(READY_AIM)
}

fn bytes_go(lab: &Lab, guest: &Guest) -> Result<()> {
    let toolbox = support::image_ref("toolbox");
    let home = guest.home()?;
    let host = |pod: &str| lab.kubectl(&["-n", &home, "get", "pod", pod, "-o", "jsonpath={.spec.nodeName}"]);
    let (from, to) = (host(NODES[0])?, host(NODES[1])?);
    ensure!(from != to, "both VM pods are on {from}");
    let inside = "giantnetes/toolbox:1";
    let pods = measure(&Management(lab, NAMESPACE), &toolbox, Network::Own, [&from, &to], OF_PODS);
    let pods = pods.context("pods of the management cluster")?;
    let machines = measure(guest, inside, Network::Node, NODES, OF_MACHINES).context("virtual machines")?;
    let inner = measure(guest, inside, Network::Own, NODES, OF_MACHINES).context("pods of the guest")?;
    let ends = |rate: Rate| [rate.least, rate.most];
    support::keep(
        "throughput",
        serde_json::json!({
            "pods_mib_s": pods.median, "machines_mib_s": machines.median, "inner_mib_s": inner.median,
            "pods_ends": ends(pods), "machines_ends": ends(machines), "inner_ends": ends(inner),
        }),
    );
    let share = |rate: Rate| 100.0 * rate.median / pods.median;
    println!("    pods of the management cluster on two hosts: {pods}");
    println!("    virtual machines there, emulated: {machines}, {:.2} %", share(machines));
    println!("    pods in them: {inner}, {:.2} %", share(inner));
    Ok(())
}
