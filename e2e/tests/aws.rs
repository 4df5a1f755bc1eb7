//! Stacks of guests, made, changed and deleted by the product's own calls on ministack, over HTTP, with no other rights than the
//! chart ships.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use std::{collections::BTreeSet, error::Error, sync::Mutex, time::Duration};

use anyhow::Result;
use futures::{StreamExt as _, TryStreamExt as _};
use giantnetes::{
    aws::{
        accounts::{Accounts, Intervals, Session},
        calls::{AwsError, Failure},
        deploy::{AdvanceError, Goal, Ledger, Order, Told, advance, record::Record},
        driver::{self, Step, Wanted},
        tags::Owner,
        template::{ApiAccess, Body, ClusterStack, Machine, Master, Nat, PoolStack, Purchase, SPEC_HASH, Zone},
    },
    runtime::chain,
};
use support::aws::{Moment, Peer, Proxy, User};

/// As in production, but for a peer that needs no seconds for anything. Not so often that tokens run out.
const INTERVALS: Intervals =
    Intervals { change_set: Duration::from_millis(50), busy: Duration::from_millis(200), idle: Duration::from_secs(1) };
/// How long a stack may take, on a machine that builds something at the same time.
const PATIENCE: Duration = Duration::from_secs(60);
/// Most calls that a stack may cost until it is as it should be, apart from looks at all stacks.
const BUDGET: usize = 6;

/// What would be in the status of a Cluster: it outlives the controller manager.
#[derive(Default)]
struct Status(Mutex<(Option<Record>, usize)>);

impl Ledger for Status {
    fn read(&self) -> Option<Record> {
        self.0.lock().unwrap().0.clone()
    }

    async fn write(&self, record: &Record) -> Result<(), Box<dyn Error + Send + Sync>> {
        let mut held = self.0.lock().unwrap();
        *held = (Some(record.clone()), held.1 + 1);
        Ok(())
    }
}

/// A stack that a test wants.
struct Stack {
    uid: String,
    name: String,
    status: Status,
}

impl Stack {
    fn new(owner: &Owner, name: String) -> Self {
        Self { uid: owner.uid.clone(), name, status: Status::default() }
    }

    /// Takes steps until there is none to take.
    async fn drive(&self, session: &Session, goal: &Goal<'_>, again: bool) -> Result<Told, AdvanceError> {
        let order = |again| Order { uid: &self.uid, stack: &self.name, goal: goal.clone(), again };
        let steps = async {
            let mut again = again;
            loop {
                let told = advance(session, &order(again), &self.status).await?;
                again = false;
                match told.again {
                    None => return Ok(told),
                    Some(pause) => tokio::time::sleep(pause).await,
                }
            }
        };
        tokio::time::timeout(PATIENCE, steps).await.unwrap_or_else(|_| panic!("stack {} is not settled", self.name))
    }

    async fn make(&self, session: &Session, body: &Body, wanted: &Wanted) -> Told {
        let told = self.drive(session, &Goal::Present { body, wanted }, false).await;
        told.unwrap_or_else(|error| panic!("{}", chain(&error)))
    }

    async fn delete(&self, session: &Session) -> Told {
        let told = self.drive(session, &Goal::Absent { force: false }, false).await;
        told.unwrap_or_else(|error| panic!("{}", chain(&error)))
    }
}

fn owner(number: usize) -> Owner {
    Owner {
        uid: format!("6f0c3b1e-8a53-4c55-9a11-{number:012}"),
        id: format!("guest{number:03}"),
        name: format!("team-a/demo-{number}"),
    }
}

fn machine() -> Machine {
    Machine {
        image: "ami-0123456789abcdef0".into(),
        instance_type: "m7i.large".into(),
        disk: 20,
        user_data: b"#cloud-config\n{}\n".to_vec(),
    }
}

/// The smallest guest.
fn cluster(owner: &Owner, region: &str, hash: &str) -> ClusterStack {
    let zone = Zone {
        name: format!("{region}a"),
        public: "10.8.0.0/24".parse().unwrap(),
        private: "10.8.16.0/20".parse().unwrap(),
    };
    ClusterStack {
        owner: owner.clone(),
        region: region.to_owned(),
        network: "10.8.0.0/16".parse().unwrap(),
        masters: vec![Master { zone: zone.name.clone(), machine: machine(), etcd_disk: 8 }],
        zones: vec![zone],
        nat: Nat::Single,
        api: ApiAccess::default(),
        spec_hash: hash.to_owned(),
        tags: [].into(),
    }
}

fn wanted(hash: &str) -> Wanted {
    Wanted { spec_hash: hash.to_owned(), ..Wanted::default() }
}

fn accounts() -> Accounts {
    Accounts::new(None, INTERVALS)
}

/// Names of the calls that came since the last time.
fn actions(proxy: &Proxy) -> Vec<String> {
    proxy.calls().into_iter().map(|call| call.action).collect()
}

const READS: [&str; 4] = ["DescribeStacks", "DescribeStackEvents", "DescribeChangeSet", "ListChangeSets"];

fn changes(actions: &[String]) -> Vec<&str> {
    actions.iter().map(String::as_str).filter(|action| !READS.contains(action)).collect()
}

/// Every step of a guest's life, with what it costs.
#[tokio::test(flavor = "multi_thread")]
async fn stacks_come_change_and_go() -> Result<()> {
    let peer = Peer::start()?;
    let proxy = Proxy::start(&peer).await?;
    let enter = async || accounts().enter(&peer.way(User::Manager, &proxy.address)).await.unwrap();
    let session = enter().await;
    let owner = owner(1);
    let guest = Stack::new(&owner, owner.cluster_stack());
    let small = cluster(&owner, peer.region(), "first");

    println!("--- a cluster's stack comes");
    let told = guest.make(&session, &small.render()?, &wanted("first")).await;
    let calls = actions(&proxy);
    println!("    {calls:?}");
    assert_eq!(told.step, Step::Done);
    let seen = told.stack.unwrap();
    assert!(seen.stack.as_ref().unwrap().is_protected && seen.outputs[SPEC_HASH] == "first", "{seen:?}");
    assert!(calls.len() <= BUDGET, "{calls:?}");
    assert_eq!(changes(&calls), ["CreateChangeSet", "ExecuteChangeSet", "UpdateTerminationProtection"],);
    assert_eq!(guest.status.read().unwrap().id.as_ref(), Some(&seen.id));
    assert_eq!(guest.status.0.lock().unwrap().1, 2, "the attempt and the stack's id are written down, and no more");

    println!("--- a pool's stack comes into its network");
    let pool = Stack::new(&owner, owner.pool_stack("default"));
    let workers = PoolStack {
        owner: owner.clone(),
        pool: "default".into(),
        subnets: seen.outputs["PrivateSubnets"].split(',').map(str::to_owned).collect(),
        security_group: seen.outputs["WorkerSecurityGroup"].clone(),
        key_arn: seen.outputs["KeyArn"].clone(),
        min: 1,
        max: 3,
        machine: machine(),
        purchase: Purchase::OnDemand,
        drain_timeout: 600,
        spec_hash: "first".into(),
        tags: [].into(),
    };
    let told = pool.make(&session, &workers.render()?, &wanted("first")).await;
    let calls = actions(&proxy);
    println!("    {calls:?}");
    assert!(told.step == Step::Done && calls.len() <= BUDGET, "{told:?} {calls:?}");

    println!("--- nothing is to be done, for a manager that comes anew either");
    proxy.polls();
    let another = enter().await;
    for session in [&session, &another] {
        for _ in 0..5 {
            assert_eq!(guest.make(session, &small.render()?, &wanted("first")).await.step, Step::Done);
            assert_eq!(pool.make(session, &workers.render()?, &wanted("first")).await.step, Step::Done);
        }
    }
    assert!(actions(&proxy).is_empty(), "it costs calls that nothing is to be done");

    println!("--- a change is made");
    let mut grown = cluster(&owner, peer.region(), "second");
    grown.masters[0].etcd_disk = 16;
    let formed = Wanted { formed: true, ..wanted("second") };
    let told = guest.make(&another, &grown.render()?, &formed).await;
    let calls = actions(&proxy);
    println!("    {calls:?}");
    assert_eq!((&told.step, told.stack.unwrap().outputs[SPEC_HASH].as_str()), (&Step::Done, "second"));
    assert_eq!(calls, ["CreateChangeSet", "DescribeChangeSet", "ExecuteChangeSet"]);

    println!("--- one that would lose the network is held back");
    let mut moved = cluster(&owner, peer.region(), "third");
    moved.network = "10.8.0.0/17".parse().unwrap();
    for round in 0..3 {
        let told = guest.make(&another, &moved.render()?, &Wanted { formed: true, ..wanted("third") }).await;
        let Step::Failed(driver::Failure::Blocked(losses)) = &told.step else { panic!("{:?}", told.step) };
        let lost: BTreeSet<_> = losses.iter().map(|loss| loss.id.as_str()).collect();
        assert!(lost.contains("Vpc") && lost.contains("PrivateSubnetA"), "{losses:?}");
        let calls = actions(&proxy);
        println!("    {calls:?}");
        assert_eq!(changes(&calls), if round == 0 { vec!["CreateChangeSet"] } else { vec![] });
    }

    println!("--- one that AWS refuses is undone, and says why");
    let mut elsewhere = cluster(&owner, peer.region(), "fourth");
    elsewhere.masters[0].etcd_disk = 16;
    let zone = format!("{}b", peer.region());
    let body = elsewhere.render()?;
    let json = body.json.replace(
        &format!("\"AvailabilityZone\":\"{}a\",\"Encrypted\"", peer.region()),
        &format!("\"AvailabilityZone\":\"{zone}\",\"Encrypted\""),
    );
    assert_ne!(json, body.json, "the volume's zone is not where it was");
    let body = Body { json, ..body };
    for again in [false, false, true] {
        let wanted = Wanted { formed: true, ..wanted("fourth") };
        let told = guest.drive(&another, &Goal::Present { body: &body, wanted: &wanted }, again).await?;
        assert_eq!(told.step, Step::Failed(driver::Failure::Undone));
        let cause = told.cause.unwrap();
        assert!(
            cause.starts_with("Master0Volume (AWS::EC2::Volume): ") && cause.contains("AvailabilityZone"),
            "{cause}"
        );
        println!("    {:?}: {cause}", actions(&proxy));
    }
    let told = guest.make(&another, &grown.render()?, &formed).await;
    assert_eq!(told.step, Step::Done);
    assert_eq!(changes(&actions(&proxy)), Vec::<&str>::new(), "it was as it should be");

    println!("--- somebody else's is left alone");
    let foreign = Stack { uid: "another".into(), name: guest.name.clone(), status: Status::default() };
    let told = foreign.make(&another, &grown.render()?, &wanted("second")).await;
    assert_eq!(told.step, Step::Failed(driver::Failure::Foreign(Some(owner.uid.clone()))));
    assert_eq!(foreign.delete(&another).await.step, Step::Done);
    assert_eq!(changes(&actions(&proxy)), Vec::<&str>::new());

    println!("--- both go");
    for stack in [&pool, &guest] {
        assert_eq!(stack.delete(&another).await.step, Step::Done);
        let calls = actions(&proxy);
        println!("    {calls:?}");
        assert_eq!(changes(&calls), ["UpdateTerminationProtection", "DeleteStack"]);
    }
    assert_eq!(another.cloudformation.stacks().await?, []);
    let told = guest.make(&another, &grown.render()?, &formed).await;
    assert_eq!(told.step, Step::Failed(driver::Failure::Lost), "a guest with data is made anew");
    Ok(())
}

/// A controller manager that is killed at every one of its calls, and one that comes after it.
#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_call_leaves_nothing_unaccounted() -> Result<()> {
    /// Four make a stack, three change it, three remove it.
    const CALLS: usize = 10;
    let peer = Peer::start()?;
    let lives =
        (1..=CALLS + 1).flat_map(|at| [Moment::BeforeForwarding, Moment::BeforeAnswering].map(|moment| (at, moment)));
    let lives = lives.enumerate().map(async |(number, (at, moment))| {
        let was_cut = life(&peer, number, at, moment).await?;
        assert_eq!(was_cut, at <= CALLS, "call {at}, {moment:?}");
        anyhow::Ok(())
    });
    futures::stream::iter(lives).buffer_unordered(4).try_collect().await
}

/// A stack's whole life, with a kill at the call of this number: whether it was come to.
async fn life(peer: &Peer, number: usize, at: usize, moment: Moment) -> Result<bool> {
    let proxy = Proxy::start(peer).await?;
    let owner = owner(number);
    let guest = Stack::new(&owner, owner.cluster_stack());
    let mut grown = cluster(&owner, peer.region(), "second");
    grown.masters[0].etcd_disk = 16;
    let bodies = [cluster(&owner, peer.region(), "first").render()?, grown.render()?];
    let wishes = [wanted("first"), Wanted { formed: true, ..wanted("second") }];
    let [first, second] = [0, 1].map(|index| Goal::Present { body: &bodies[index], wanted: &wishes[index] });
    let goals = [(&first, Some("first")), (&second, Some("second")), (&Goal::Absent { force: false }, None)];
    proxy.cut(at, moment);
    let (mut was_cut, mut id) = (false, None);
    for (goal, hash) in goals {
        let told = loop {
            // Of a manager that was killed nothing is left but what it wrote down.
            let accounts = accounts();
            let session = accounts.enter(&peer.way(User::Manager, &proxy.address)).await?;
            let told = guest.drive(&session, goal, false).await;
            if !proxy.mend() {
                break told?;
            }
            was_cut = true;
            println!("    killed at call {at}, {moment:?}: {:?}", actions(&proxy).last());
        };
        assert_eq!(told.step, Step::Done, "{at} {moment:?}");
        if was_cut && id.is_none() {
            let calls = actions(&proxy);
            // Whose it is, is not to be seen on the stack, nor was its ARN written down: the change set says it.
            let asked = calls.iter().any(|call| call == "ListChangeSets");
            assert_eq!(asked, at == 1 && moment == Moment::BeforeAnswering, "{at} {moment:?}: {calls:?}");
        }
        let session = accounts().enter(&peer.way(User::Manager, &proxy.address)).await?;
        let stacks = session.cloudformation.stacks().await?;
        let ours: Vec<_> = stacks.iter().filter(|seen| seen.name.starts_with(&guest.name)).collect();
        assert_eq!(ours.len(), usize::from(hash.is_some()), "{at} {moment:?}: {ours:?}");
        if let (Some(seen), Some(hash)) = (ours.first(), hash) {
            assert!(seen.stack.as_ref().unwrap().is_protected && seen.outputs[SPEC_HASH] == hash, "{seen:?}");
            assert_eq!(guest.status.read().unwrap().id.as_ref(), Some(&seen.id));
            assert_eq!(*id.get_or_insert_with(|| seen.id.clone()), seen.id, "another stack took its place");
        }
    }
    Ok(was_cut)
}

/// What is amiss is told by what it is, and does not disturb others in the account.
#[tokio::test(flavor = "multi_thread")]
async fn keys_and_rights_that_are_amiss_are_told() -> Result<()> {
    let peer = Peer::start()?;
    let proxy = Proxy::start(&peer).await?;
    let accounts = accounts();
    let of = |user| peer.way(user, &proxy.address);

    let refused = accounts.enter(&of(User::Stranger)).await.unwrap_err();
    assert!(matches!(refused.source, Failure::Credentials(_)), "{}", chain(&refused));
    let nowhere = peer.way(User::Manager, "http://127.0.0.1:1");
    let silent = accounts.enter(&nowhere).await.unwrap_err();
    assert!(matches!(silent.source, Failure::Call(_)), "{}", chain(&silent));

    // Who has no rights gets in, and sees nothing.
    let owner = owner(1);
    let guest = Stack::new(&owner, owner.cluster_stack());
    let body = cluster(&owner, peer.region(), "first").render()?;
    let wanted = wanted("first");
    let goal = Goal::Present { body: &body, wanted: &wanted };
    let nobody = accounts.enter(&of(User::Nobody)).await?;
    let error = guest.drive(&nobody, &goal, false).await.unwrap_err();
    println!("    {}", chain(&error));
    let AdvanceError::Look { source, .. } = &error else { panic!("{}", chain(&error)) };
    assert!(is_denied(source, "cloudformation:DescribeStacks"), "{}", chain(&error));
    assert_eq!(actions(&proxy), Vec::<String>::new());

    // With somebody in the account who has them, all see its stacks; what one may not do, he may not.
    let manager = accounts.enter(&of(User::Manager)).await?;
    manager.account.looked().await;
    let error = guest.drive(&nobody, &goal, false).await.unwrap_err();
    println!("    {}", chain(&error));
    let AdvanceError::Call { source, .. } = &error else { panic!("{}", chain(&error)) };
    assert!(is_denied(source, "cloudformation:CreateChangeSet"), "{}", chain(&error));
    assert_eq!(guest.make(&manager, &body, &wanted).await.step, Step::Done);

    // As whom a role says, in the same account.
    let in_role = accounts.enter(&of(User::InRole)).await?;
    assert!(std::sync::Arc::ptr_eq(&in_role.account, &manager.account), "one account is followed twice");
    assert_eq!(guest.delete(&in_role).await.step, Step::Done);
    let root = accounts.enter(&of(User::Root)).await?;
    assert_eq!(root.cloudformation.stacks().await?, []);
    assert_eq!(peer.account().len(), 12);
    Ok(())
}

fn is_denied(error: &AwsError, right: &str) -> bool {
    matches!(&error.source, Failure::Denied { action, .. } if action == right)
}

/// Many guests in one account: each costs what one costs, and all of them together no more looks than one.
#[tokio::test(flavor = "multi_thread")]
async fn guests_share_looks_at_their_account() -> Result<()> {
    const GUESTS: usize = 8;
    let peer = Peer::start()?;
    let proxy = Proxy::start(&peer).await?;
    let accounts = accounts();
    let way = peer.way(User::Manager, &proxy.address);
    let began = tokio::time::Instant::now();
    let guests = (0..GUESTS).map(async |number| {
        let session = accounts.enter(&way).await?;
        let owner = owner(number);
        let guest = Stack::new(&owner, owner.cluster_stack());
        let body = cluster(&owner, peer.region(), "first").render()?;
        assert_eq!(guest.make(&session, &body, &wanted("first")).await.step, Step::Done);
        anyhow::Ok(session)
    });
    let sessions = futures::future::try_join_all(guests).await?;
    let (calls, polls) = (actions(&proxy), proxy.polls());
    let most = began.elapsed().as_millis() / INTERVALS.busy.as_millis() + 2;
    println!("    {} calls and {polls} looks for {GUESTS} guests in {:.1?}", calls.len(), began.elapsed());
    assert!(calls.len() <= GUESTS * BUDGET, "{calls:?}");
    assert!((polls as u128) <= most, "{polls} looks");
    assert_eq!(sessions[0].cloudformation.stacks().await?.len(), GUESTS);
    Ok(())
}
