//! Clusters on AWS: their object drives stacks on ministack, with no other rights than the chart ships.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

use crate::{
    manager::{Manager, Options},
    on_servers,
    servers::Servers,
    support::{
        aws::{Moment, Peer, Proxy, User},
        vault::VaultServer,
    },
    vault::vault,
    world::{SECOND, World, condition, eventually},
};

/// How long what is done to a stack may take, beside builds.
const PATIENCE: Duration = Duration::from_secs(90);
/// How soon what is amiss is told.
const TOLD: Duration = Duration::from_secs(30);
/// Most calls that a stack may cost until it is as it should be, apart from looks at all stacks.
const BUDGET: usize = 6;

const READS: [&str; 8] = [
    "DescribeStacks",
    "DescribeStackEvents",
    "DescribeChangeSet",
    "ListChangeSets",
    "DescribeInstanceTypeOfferings",
    "DescribeVolumes",
    "DescribeLoadBalancers",
    "DescribeTags",
];

/// An account, a way into it, and a Vault.
struct Site {
    peer: Peer,
    proxy: Proxy,
    _vault: VaultServer,
    vault: Value,
}

impl Site {
    async fn new(servers: &Servers, world: &World, name: &str) -> Self {
        let peer = Peer::start().unwrap();
        let proxy = Proxy::start(&peer).await.unwrap();
        let (server, settings) = vault(servers, name);
        world.namespace("a").await.unwrap();
        let site = Self { peer, proxy, _vault: server, vault: settings };
        site.keys(world, "aws", User::Manager).await;
        site
    }

    fn options(&self) -> Options {
        let aws = json!({"endpoint": self.proxy.address, "poll": "200ms"});
        Options { vault: Some(self.vault.clone()), aws: Some(aws), ..Options::default() }
    }

    /// A Secret with somebody's keys, or another's in its place.
    async fn keys(&self, world: &World, name: &str, user: User) {
        let keys = self.peer.way(user, "").keys;
        let secret: Secret = serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "a"},
            "type": "giantnetes.io/aws-credentials",
            "stringData": {"accessKeyID": keys.id, "secretAccessKey": keys.secret.expose_secret()},
        }))
        .unwrap();
        let _ = world.secrets("a").delete(name, &DeleteParams::default()).await;
        world.secrets("a").create(&PostParams::default(), &secret).await.unwrap();
    }

    /// What a Cluster says, with more of it.
    fn spec(&self, more: &Value) -> Value {
        let region = self.peer.region();
        let mut spec = json!({
            "provider": {"aws": {
                "region": region, "zones": [format!("{region}a")], "image": "ami-0123456789abcdef0",
                "credentials": {"secretName": "aws"},
            }},
            "pki": {"backend": "Vault"},
        });
        merge(&mut spec, more);
        spec
    }

    /// Names of the calls that came since the last time.
    fn calls(&self) -> Vec<String> {
        self.proxy.calls().into_iter().map(|call| call.action).collect()
    }
}

fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            from.iter().for_each(|(key, value)| merge(into.entry(key.clone()).or_insert(Value::Null), value));
        }
        (into, from) => *into = from.clone(),
    }
}

fn changes(calls: &[String]) -> Vec<&str> {
    calls.iter().map(String::as_str).filter(|call| !READS.contains(call)).collect()
}

async fn patch(world: &World, name: &str, spec: Value) {
    let patch = Patch::Merge(json!({"spec": spec}));
    world.clusters("a").patch(name, &PatchParams::default(), &patch).await.unwrap();
}

/// What is recorded of a Cluster's stacks: names, goals and ARNs.
async fn records(world: &World, name: &str) -> Vec<(String, String, Option<String>)> {
    let status = world.clusters("a").get(name).await.unwrap().status.unwrap_or_default();
    let stacks = status.aws.unwrap_or_default().stacks;
    stacks.into_iter().map(|(name, record)| (name, record.goal, record.id)).collect()
}

/// Waits until the stacks are as they should be, at this generation.
async fn made(world: &World, name: &str, limit: Duration) -> Result<Duration> {
    let (_, took) = eventually(limit, &format!("the stacks of {name}"), || async {
        let cluster = world.clusters("a").get(name).await?;
        let seen = cluster.status.as_ref().and_then(|status| status.observed_generation);
        ensure!(seen == cluster.metadata.generation, "its generation is not seen");
        for type_ in ["NetworkReady", "NodePoolsReady"] {
            let found = condition(&cluster, type_).with_context(|| format!("no {type_}"))?;
            ensure!(found.0 == "True" || found.2.contains("to register with"), "{type_}: {found:?}");
        }
        let found = condition(&cluster, "ControlPlaneReady").context("no ControlPlaneReady")?;
        ensure!(found.2.contains("API to answer at https://"), "{found:?}");
        Ok(())
    })
    .await?;
    Ok(took)
}

/// Nothing is called, and nothing written, but what looks on.
async fn rests(site: &Site, manager: &Manager) {
    manager.settled().await;
    let _ = (site.calls(), manager.proxy.writes());
    let before = manager.proxy.writes().len();
    tokio::time::sleep(SECOND * 4).await;
    assert_eq!(site.calls(), Vec::<String>::new(), "it costs calls that nothing is to be done");
    assert_eq!(manager.proxy.writes().len(), before, "{:?}", manager.proxy.writes());
}

/// Every step of a guest's life on AWS, with what it costs.
#[test]
fn a_cluster_drives_its_stacks() {
    on_servers("aws-life", async |servers, world| {
        let site = Site::new(servers, &world, "aws-life").await;
        let manager = Manager::start(servers, "one", site.options()).await;
        let pool = |more: Value| {
            let mut pool = json!({"name": "web", "replicas": 1});
            merge(&mut pool, &more);
            json!({"nodePools": [pool]})
        };

        println!("--- create");
        world.create("a", "one", site.spec(&pool(json!({})))).await.unwrap();
        let took = made(&world, "one", PATIENCE).await.unwrap();
        let calls = site.calls();
        println!("    {took:.1?}: {calls:?}");
        assert!(calls.len() <= 2 * BUDGET, "{calls:?}");
        let one = ["CreateChangeSet", "ExecuteChangeSet", "UpdateTerminationProtection"];
        assert_eq!(changes(&calls), [one, one].concat());
        let first = records(&world, "one").await;
        assert_eq!(first.len(), 2, "{first:?}");
        assert!(first.iter().all(|(_, _, id)| id.is_some()), "{first:?}");
        let status = world.clusters("a").get("one").await.unwrap().status.unwrap();
        assert_eq!((status.provider.as_deref(), status.vni), (Some("aws"), None));
        assert_eq!(status.aws.unwrap().image.as_deref(), Some("ami-0123456789abcdef0"));
        assert!(status.endpoint.unwrap().ends_with(":6443"));

        println!("--- nothing to do");
        rests(&site, &manager).await;

        println!("--- scale");
        patch(&world, "one", pool(json!({"replicas": 3}))).await;
        eventually(PATIENCE, "the pool's change", || async {
            let now = records(&world, "one").await;
            ensure!(now[1].1 != first[1].1, "{now:?}");
            Ok(())
        })
        .await
        .unwrap();
        manager.settled().await;
        made(&world, "one", PATIENCE).await.unwrap();
        let calls = site.calls();
        println!("    {calls:?}");
        assert_eq!(changes(&calls), ["CreateChangeSet", "ExecuteChangeSet"]);
        assert_eq!(records(&world, "one").await[0], first[0], "the cluster's stack is the same");

        println!("--- another instance type");
        let other = json!({"provider": {"aws": {"controlPlane": {"instanceType": "m7i.xlarge"}}}});
        patch(&world, "one", other).await;
        made_anew(&world, &manager, &first[0].1).await;
        let calls = site.calls();
        println!("    {calls:?}");
        assert_eq!(changes(&calls), ["CreateChangeSet", "ExecuteChangeSet"]);

        println!("--- a change that would lose the volume is held back, and taken back");
        let region = site.peer.region();
        patch(&world, "one", json!({"provider": {"aws": {"zones": [format!("{region}b")]}}})).await;
        let wanted = ("NetworkReady", "False", "ChangeBlocked");
        let (message, took) = world.condition(TOLD, ("a", "one"), wanted).await.unwrap();
        println!("    {took:.1?}: {message}");
        for word in ["PrivateSubnetA", "giantnetes.io/aws-give-up"] {
            assert!(message.contains(word), "{message}");
        }
        tokio::time::sleep(SECOND * 3).await;
        assert_eq!(changes(&site.calls()), ["CreateChangeSet"], "it tries over and over");
        patch(&world, "one", json!({"provider": {"aws": {"zones": [format!("{region}a")]}}})).await;
        made(&world, "one", PATIENCE).await.unwrap();
        assert_eq!(changes(&site.calls()), Vec::<&str>::new(), "it was as it should be");
        rests(&site, &manager).await;

        println!("--- a pool goes");
        patch(&world, "one", json!({"nodePools": []})).await;
        eventually(PATIENCE, "its stack to go", || async {
            let calls = records(&world, "one").await;
            ensure!(calls[1].1 == "absent", "{calls:?}");
            Ok(())
        })
        .await
        .unwrap();
        manager.settled().await;
        made(&world, "one", PATIENCE).await.unwrap();
        let calls = site.calls();
        println!("    {calls:?}");
        assert_eq!(changes(&calls), ["UpdateTerminationProtection", "DeleteStack"]);
        rests(&site, &manager).await;

        println!("--- delete");
        world.delete("a", "one").await.unwrap();
        let took = world.gone(PATIENCE, "a", "one").await.unwrap();
        let calls = site.calls();
        println!("    {took:.1?}: {calls:?}");
        assert_eq!(changes(&calls), ["UpdateTerminationProtection", "DeleteStack"]);
        assert_eq!(stacks(&site).await, Vec::<String>::new());
        assert_eq!(world.labelled().await.unwrap().len(), 0);
    });
}

/// Waits until the cluster's stack is made for something else than this.
async fn made_anew(world: &World, manager: &Manager, goal: &str) {
    eventually(PATIENCE, "another goal", || async {
        let now = records(world, "one").await;
        ensure!(now[0].1 != goal, "{now:?}");
        Ok(())
    })
    .await
    .unwrap();
    manager.settled().await;
    made(world, "one", PATIENCE).await.unwrap();
}

/// Names of all stacks in the account.
async fn stacks(site: &Site) -> Vec<String> {
    use giantnetes::aws::accounts::{Accounts, Intervals};
    let accounts = Accounts::new(None, Intervals::default());
    let session = accounts.enter(&site.peer.way(User::Root, &site.proxy.address)).await.unwrap();
    let seen = session.cloudformation.stacks().await.unwrap();
    let _ = site.calls();
    seen.into_iter().map(|seen| seen.name).collect()
}

/// A manager that is killed at each of its calls, and comes again.
#[test]
fn a_kill_at_any_call_leaves_nothing_unaccounted() {
    on_servers("aws-kill", async |servers, world| {
        let site = Site::new(servers, &world, "aws-kill").await;
        let mut manager = Manager::start(servers, "one", site.options()).await;
        let most: usize = if crate::asked_for("all") { 10 } else { 4 };
        for at in 1..=most {
            for moment in [Moment::BeforeForwarding, Moment::BeforeAnswering] {
                let name = format!("k{at}-{}", if moment == Moment::BeforeForwarding { "lost" } else { "done" });
                let began = Instant::now();
                let mut kills = 0;
                let mut id = None;
                for (word, spec) in [
                    ("create", Some(site.spec(&json!({})))),
                    (
                        "update",
                        Some(
                            json!({"provider": {"aws": {"nat": "PerZone", "controlPlane": {"instanceType": "m7i.xlarge"}}}}),
                        ),
                    ),
                    ("delete", None),
                ] {
                    site.proxy.cut(at, moment);
                    match (word, spec) {
                        ("create", Some(spec)) => drop(world.create("a", &name, spec).await.unwrap()),
                        (_, Some(spec)) => patch(&world, &name, spec).await,
                        _ => world.delete("a", &name).await.unwrap(),
                    }
                    kills += usize::from(finished(&site, &world, &mut manager, &name, word).await);
                    let all = stacks(&site).await;
                    let expected = usize::from(word != "delete");
                    assert_eq!(all.len(), expected, "{name} {word}: {all:?}");
                    if expected == 1 {
                        let record = records(&world, &name).await.remove(0);
                        assert!(record.2.is_some(), "{name} {word}: {record:?}");
                        assert_eq!(*id.get_or_insert_with(|| record.2.clone()), record.2, "a second stack was made");
                    }
                }
                println!("    {name}: {kills} kills, {:.1?}", began.elapsed());
                // An update has four calls, with that about instance types.
                assert!(kills == 3 || at > 4, "{name}: {kills} times only it was come to that call");
            }
        }
    });
}

/// Waits until what was asked for has come about, killing the manager when the line is cut: whether it was.
async fn finished(site: &Site, world: &World, manager: &mut Manager, name: &str, word: &str) -> bool {
    let began = Instant::now();
    let mut killed = false;
    loop {
        if site.proxy.is_cut() {
            manager.restart();
            site.proxy.mend();
            killed = true;
        }
        let done = match word {
            "delete" => world.clusters("a").get_opt(name).await.unwrap().is_none(),
            _ => {
                let is_new = word == "create" || {
                    let cluster = world.clusters("a").get(name).await.unwrap();
                    cluster.status.is_some_and(|status| status.observed_generation == cluster.metadata.generation)
                };
                is_new
                    && made(world, name, Duration::ZERO).await.is_ok()
                    && (word == "create" || is_updated(world, name).await)
            }
        };
        if done {
            // A cut that comes no more.
            site.proxy.cut(usize::MAX, Moment::BeforeForwarding);
            return killed;
        }
        assert!(began.elapsed() < PATIENCE, "{name} {word}: {:?}", world.clusters("a").get_opt(name).await.unwrap());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Whether the last attempt is another than the first.
async fn is_updated(world: &World, name: &str) -> bool {
    let status = world.clusters("a").get(name).await.unwrap().status.unwrap_or_default();
    status.aws.is_some_and(|aws| aws.stacks.values().all(|record| record.attempt > 1))
}

/// What is amiss is told by its reason, soon, and costs others nothing.
#[test]
fn what_is_amiss_is_told_and_troubles_nobody_else() {
    on_servers("aws-amiss", async |servers, world| {
        let site = Site::new(servers, &world, "aws-amiss").await;
        let manager = Manager::start(servers, "one", site.options()).await;
        world.create("a", "good", site.spec(&json!({}))).await.unwrap();
        made(&world, "good", PATIENCE).await.unwrap();
        let told = async |name: &str, reason: &str| {
            let wanted = ("ControlPlaneReady", "False", reason);
            let (message, took) = world.condition(TOLD, ("a", name), wanted).await.unwrap();
            println!("    {name}: {took:.1?}: {reason}: {message}");
            message
        };
        let with = |secret: &str| json!({"provider": {"aws": {"credentials": {"secretName": secret}}}});

        println!("--- no Secret, and then one with keys that nobody has");
        world.create("a", "keyless", site.spec(&with("keyless"))).await.unwrap();
        let message = told("keyless", "AWSCredentialsRefused").await;
        assert!(message.contains("Secret a/keyless"), "{message}");
        site.keys(&world, "keyless", User::Stranger).await;
        eventually(TOLD, "the refusal", || async {
            let cluster = world.clusters("a").get("keyless").await?;
            let found = condition(&cluster, "ControlPlaneReady").context("none")?;
            ensure!(found.2.contains("does not take the credentials"), "{found:?}");
            Ok(())
        })
        .await
        .unwrap();

        println!("--- the keys come, and all goes on");
        site.keys(&world, "keyless", User::Manager).await;
        made(&world, "keyless", PATIENCE).await.unwrap();

        println!("--- a right is missing");
        site.keys(&world, "powerless", User::Nobody).await;
        world.create("a", "powerless", site.spec(&with("powerless"))).await.unwrap();
        let message = told("powerless", "AWSDenied").await;
        assert!(message.contains("cloudformation:CreateChangeSet"), "{message}");

        println!("--- a quota");
        site.proxy.refuse(Some(("CreateChangeSet", "LimitExceededException", "Limit for stack has been exceeded")));
        world.create("a", "quota", site.spec(&json!({}))).await.unwrap();
        told("quota", "AWSQuotaExceeded").await;
        site.proxy.refuse(None);
        made(&world, "quota", PATIENCE).await.unwrap();

        println!("--- an instance type that there is not");
        let type_ = json!({"provider": {"aws": {"controlPlane": {"instanceType": "m99.large"}}}});
        world.create("a", "typeless", site.spec(&type_)).await.unwrap();
        let message = told("typeless", "InstanceTypeUnavailable").await;
        assert!(message.contains("m99.large in"), "{message}");

        println!("--- keys expire");
        site.proxy.refuse(Some(("CreateChangeSet", "ExpiredToken", "The security token is expired")));
        patch(&world, "quota", json!({"provider": {"aws": {"controlPlane": {"instanceType": "m7i.xlarge"}}}})).await;
        told("quota", "AWSCredentialsRefused").await;
        site.proxy.refuse(None);
        site.keys(&world, "aws", User::Manager).await;
        made(&world, "quota", PATIENCE).await.unwrap();

        println!("--- user data too big");
        let noise: String = (0_u32..6_000).map(|index| format!("{:08x}", index.wrapping_mul(2_654_435_761))).collect();
        let args: serde_json::Map<_, _> = noise
            .as_bytes()
            .chunks(1000)
            .enumerate()
            .take(30)
            .map(|(index, part)| (format!("x{index}"), json!(String::from_utf8_lossy(part))))
            .collect();
        let args = json!({"kubernetes": {"apiServer": {"extraArgs": args}}});
        world.create("a", "big", site.spec(&args)).await.unwrap();
        let message = told("big", "UserDataTooBig").await;
        assert!(message.contains("16384"), "{message}");

        println!("--- no hot loop, and the others are untouched");
        manager.settled().await;
        let _ = site.calls();
        tokio::time::sleep(SECOND * 5).await;
        let calls = site.calls();
        println!("    {calls:?}");
        // Who is refused tries now and then.
        assert!(calls.len() <= 10, "{calls:?}");
        let cluster = world.clusters("a").get("good").await.unwrap();
        assert_eq!(condition(&cluster, "NetworkReady").unwrap().0, "True");
        let names: BTreeSet<_> = ["good", "keyless", "quota", "big", "typeless"].into();
        // Without rights nobody can tell whether something is left.
        world.delete("a", "powerless").await.unwrap();
        let what = ("Deleting", "True", "Deleting");
        let (message, _) = world.condition(TOLD, ("a", "powerless"), what).await.unwrap();
        println!("    {message}");
        site.keys(&world, "powerless", User::Manager).await;
        world.gone(PATIENCE, "a", "powerless").await.unwrap();
        for name in names {
            world.delete("a", name).await.unwrap();
            world.gone(PATIENCE, "a", name).await.unwrap();
        }
        assert_eq!(stacks(&site).await, Vec::<String>::new());
    });
}

/// What a stand-in's account has beside stacks, after the script of `e2e/aws` made something.
fn leftovers(site: &Site, args: &[&str]) -> Value {
    let script = crate::support::root().join("e2e/aws/leftovers.py");
    let output = std::process::Command::new(script).arg(site.peer.address()).args(args).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let told = text.lines().rfind(|line| line.starts_with('{'));
    serde_json::from_str(told.unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)))).unwrap()
}

/// What somebody changed past CloudFormation is told, and that it was changed back.
#[test]
fn what_somebody_changed_is_told() {
    on_servers("aws-drift", async |servers, world| {
        let site = Site::new(servers, &world, "aws-drift").await;
        let aws = json!({"endpoint": site.proxy.address, "poll": "200ms", "driftInterval": "4s"});
        let _manager = Manager::start(servers, "one", Options { aws: Some(aws), ..site.options() }).await;
        world.create("a", "one", site.spec(&json!({}))).await.unwrap();
        made(&world, "one", PATIENCE).await.unwrap();
        eventually(TOLD, "a look for changes", || async {
            ensure!(site.calls().contains(&"DetectStackDrift".to_owned()), "none");
            Ok(())
        })
        .await
        .unwrap();
        made(&world, "one", PATIENCE).await.unwrap();
        let before = {
            let told = leftovers(&site, &["describe"]);
            told["role"].as_str().unwrap().to_owned()
        };
        leftovers(&site, &["change", "by hand"]);
        let wanted = ("ControlPlaneReady", "False", "StackDrifted");
        let (message, took) = world.condition(TOLD, ("a", "one"), wanted).await.unwrap();
        println!("    {took:.1?}: {message}");
        assert!(message.contains("MasterRole (AWS::IAM::Role) has another /Description"), "{message}");
        leftovers(&site, &["change", &before]);
        made(&world, "one", TOLD).await.unwrap();
        world.delete("a", "one").await.unwrap();
        world.gone(PATIENCE, "a", "one").await.unwrap();
    });
}

/// What the guest made itself goes with it, and nothing of others.
#[test]
fn what_the_guest_made_goes_first() {
    on_servers("aws-sweep", async |servers, world| {
        let site = Site::new(servers, &world, "aws-sweep").await;
        let _manager = Manager::start(servers, "one", site.options()).await;
        world.create("a", "one", site.spec(&json!({}))).await.unwrap();
        made(&world, "one", PATIENCE).await.unwrap();
        let before = leftovers(&site, &[]);
        let id = world.clusters("a").get("one").await.unwrap().status.unwrap().id.unwrap();
        let made = leftovers(&site, &["make", &id]);
        println!("    {made}");
        assert_ne!(made, before);
        let _ = site.calls();
        world.delete("a", "one").await.unwrap();
        let took = world.gone(PATIENCE, "a", "one").await.unwrap();
        let calls = site.calls();
        println!("    {took:.1?}: {calls:?}");
        let place = |call: &str| calls.iter().position(|made| made == call).unwrap_or(usize::MAX);
        assert!(place("DeleteLoadBalancer") < place("DeleteStack"), "{calls:?}");
        assert!(place("DeleteVolume") < usize::MAX, "{calls:?}");
        let left = leftovers(&site, &[]);
        // Those of the claim and of another cluster; what the peer makes of etcd's, whose policy is a snapshot, is its own.
        let volumes = left["volumes"].as_array().unwrap();
        assert!(!volumes.contains(&json!(1)) && volumes.contains(&json!(2)), "{left}");
        assert_eq!(left["balancers"], json!([]), "{left}");
    });
}

/// Many Clusters in one account: each costs what one costs, and all of them together no more looks than one.
#[test]
fn clusters_share_looks_at_their_account() {
    on_servers("aws-many", async |servers, world| {
        let count = if crate::asked_for("all") { 100 } else { 10 };
        let site = Site::new(servers, &world, "aws-many").await;
        let aws = json!({"endpoint": site.proxy.address, "poll": "1s"});
        let manager = Manager::start(servers, "one", Options { aws: Some(aws), ..site.options() }).await;
        let began = Instant::now();
        for number in 0..count {
            world.create("a", &format!("c{number}"), site.spec(&json!({}))).await.unwrap();
        }
        for number in 0..count {
            made(&world, &format!("c{number}"), SECOND * 600).await.unwrap();
        }
        let (took, calls, polls) = (began.elapsed(), site.calls(), site.proxy.polls());
        println!("    {count} Clusters in {took:.1?}: {} calls, {polls} looks", calls.len());
        assert!(calls.len() <= count * BUDGET, "{calls:?}");
        assert!(polls as u64 <= took.as_secs() + 5, "{polls} looks");
        manager.settled().await;
        // For twelve looks after somebody last waited the account is looked at often.
        tokio::time::sleep(SECOND * 15).await;
        let _ = (site.calls(), site.proxy.polls());
        tokio::time::sleep(SECOND * 15).await;
        let (calls, polls) = (site.calls(), site.proxy.polls());
        println!("    at rest, in 15 s: {calls:?}, {polls} looks");
        // An account that is idle is looked at every twelve seconds here.
        assert!(calls.is_empty() && polls <= 3, "{calls:?} {polls}");
        assert_eq!(stacks(&site).await.len(), count);
    });
}

/// Half of all calls are throttled: all is made nevertheless, and AWS is not stormed.
#[test]
fn throttling_slows_down_and_stops_nothing() {
    on_servers("aws-throttled", async |servers, world| {
        let site = Site::new(servers, &world, "aws-throttled").await;
        let aws = json!({"endpoint": site.proxy.address, "poll": "2s"});
        let _manager = Manager::start(servers, "one", Options { aws: Some(aws), ..site.options() }).await;
        site.proxy.throttle(true);
        let began = Instant::now();
        for name in ["one", "two", "three"] {
            world.create("a", name, site.spec(&json!({}))).await.unwrap();
        }
        for name in ["one", "two", "three"] {
            made(&world, name, SECOND * 240).await.unwrap();
        }
        let (calls, throttled, polls) = (site.calls(), site.proxy.throttled(), site.proxy.polls());
        println!("    {:.1?}: {} calls, {polls} looks, {throttled} throttled", began.elapsed(), calls.len());
        assert!(throttled > 5, "{throttled}");
        assert!(calls.len() + throttled <= 150, "{calls:?} {throttled}");
        site.proxy.throttle(false);
        assert_eq!(stacks(&site).await.len(), 3);
    });
}

/// Two managers, of which the one that leads is frozen in the middle of its work, or killed.
#[test]
fn a_leader_that_changes_makes_no_second_stack() {
    on_servers("aws-leaders", async |servers, world| {
        let site = Site::new(servers, &world, "aws-leaders").await;
        let mut managers = [
            Manager::start(servers, "one", site.options()).await,
            Manager::start(servers, "two", site.options()).await,
        ];
        let pool = json!({"nodePools": [{"name": "web"}]});
        world.create("a", "one", site.spec(&pool)).await.unwrap();
        for round in 0..4 {
            tokio::time::sleep(Duration::from_millis(700)).await;
            let frozen = &managers[round % 2];
            frozen.signal("STOP");
            tokio::time::sleep(SECOND * 4).await;
            frozen.signal("CONT");
        }
        managers[0].restart();
        made(&world, "one", PATIENCE).await.unwrap();
        let first = records(&world, "one").await;
        assert_eq!((first.len(), stacks(&site).await.len()), (2, 2), "{first:?}");
        patch(
            &world,
            "one",
            json!({"provider": {"aws": {"nat": "PerZone"}}, "nodePools": [{"name": "web", "replicas": 2}]}),
        )
        .await;
        for round in 0..3 {
            tokio::time::sleep(Duration::from_millis(500)).await;
            managers[round % 2].restart();
        }
        eventually(PATIENCE, "the change", || async {
            let now = records(&world, "one").await;
            ensure!(now.iter().zip(&first).all(|(now, first)| now.1 != first.1), "{now:?}");
            Ok(())
        })
        .await
        .unwrap();
        managers[0].settled().await;
        made(&world, "one", PATIENCE).await.unwrap();
        let second = records(&world, "one").await;
        assert!(second.iter().zip(&first).all(|(now, first)| now.2 == first.2), "{first:?} {second:?}");
        world.delete("a", "one").await.unwrap();
        managers[1].restart();
        world.gone(PATIENCE, "a", "one").await.unwrap();
        assert_eq!(stacks(&site).await, Vec::<String>::new());
    });
}
