//! Steps over a wire that leads to nobody: what is written down, what is looked at, and what is sent.

use std::sync::Mutex;

use super::*;
use crate::aws::{
    accounts::tests::{Wire, identity, refusal, way},
    driver::Failure as Why,
};

const UID: &str = "6f0c3b1e-8a53-4c55-9a11-0f5f3a3f1c2d";
const NAME: &str = "g8s-k3v7qzma";

/// A status that can be written, or cannot.
#[derive(Default)]
struct Paper {
    record: Mutex<Option<Record>>,
    is_full: bool,
}

impl Paper {
    fn with(id: Option<&str>) -> Self {
        let record = Record { attempt: 1, goal: "present/new".into(), id: id.map(str::to_owned) };
        Self { record: Mutex::new(Some(record)), is_full: false }
    }
}

impl Ledger for Paper {
    fn read(&self) -> Option<Record> {
        self.record.lock().unwrap().clone()
    }

    async fn write(&self, record: &Record) -> Result<(), Box<dyn Error + Send + Sync>> {
        if self.is_full {
            return Err("there is no room".into());
        }
        *self.record.lock().unwrap() = Some(record.clone());
        Ok(())
    }
}

fn answer(action: &str, inside: &str) -> (u16, String) {
    (200, format!("<{action}Response><{action}Result>{inside}</{action}Result></{action}Response>"))
}

/// The only stack that there is.
fn stack(status: &str, more: &str) -> (u16, String) {
    let it = format!(
        "<StackName>{NAME}</StackName><StackId>arn:1</StackId><StackStatus>{status}</StackStatus>\
         <CreationTime>2026-11-28T08:00:00Z</CreationTime>{more}"
    );
    answer("DescribeStacks", &format!("<Stacks><member>{it}</member></Stacks>"))
}

fn tags(uid: &str) -> String {
    format!("<Tags><member><Key>giantnetes.io/cluster-uid</Key><Value>{uid}</Value></member></Tags>")
}

fn change_set(name: &str, uid: &str) -> (u16, String) {
    let it = format!(
        "<ChangeSetId>arn:set</ChangeSetId><ChangeSetName>{name}</ChangeSetName><Status>CREATE_COMPLETE</Status>\
         <ExecutionStatus>AVAILABLE</ExecutionStatus>{}",
        tags(uid)
    );
    answer("DescribeChangeSet", &it)
}

fn body() -> Body {
    Body { stack: NAME.into(), json: "{}".into(), tags: [].into(), resources: 0 }
}

async fn step(wire: &Wire, paper: &Paper, is_present: bool) -> Result<Told, AdvanceError> {
    let session = wire.accounts().enter(&way("key")).await.unwrap();
    session.account.looked().await;
    let (body, wanted) = (body(), Wanted { spec_hash: "new".into(), ..Wanted::default() });
    let goal = if is_present { Goal::Present { body: &body, wanted: &wanted } } else { Goal::Absent { force: false } };
    advance(&session, &Order { uid: UID, stack: NAME, goal, again: false }, paper).await
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_written_down_is_not_tried() {
    let wire = Wire::new(|action, _| match action {
        "GetCallerIdentity" => identity("111122223333"),
        "DescribeStacks" => answer(action, "<Stacks/>"),
        _ => refusal("SomebodyCalled"),
    });
    let error = step(&wire, &Paper { is_full: true, ..Paper::default() }, true).await.unwrap_err();
    assert!(matches!(error, AdvanceError::Record { .. }), "{error:?}");
    assert_eq!(wire.count("CreateChangeSet"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_stack_is_written_down_as_soon_as_it_has_an_identity() {
    let wire = Wire::new(|action, _| match action {
        "GetCallerIdentity" => identity("111122223333"),
        "DescribeStacks" => answer(action, "<Stacks/>"),
        _ => answer(action, "<Id>arn:set</Id><StackId>arn:1</StackId>"),
    });
    let paper = Paper::default();
    let told = step(&wire, &paper, true).await.unwrap();
    assert!(matches!(told.step, Step::CreateChangeSet { creates: true, .. }), "{told:?}");
    let record = Record { attempt: 1, goal: "present/new".into(), id: Some("arn:1".into()) };
    assert_eq!(paper.read(), Some(record));
    assert_eq!(wire.count("DescribeChangeSet"), 0, "of a stack that is not there");
}

/// A stack with nothing but a change set, of this owner, or without one.
fn in_review(owner: Option<&'static str>) -> Wire {
    Wire::new(move |action, _| match (action, owner) {
        ("GetCallerIdentity", _) => identity("111122223333"),
        ("DescribeStacks", _) => stack("REVIEW_IN_PROGRESS", ""),
        ("ListChangeSets", None) => answer(action, "<Summaries/>"),
        ("ListChangeSets", _) => {
            answer(action, "<Summaries><member><ChangeSetName>g8s-1</ChangeSetName></member></Summaries>")
        }
        ("DescribeChangeSet", Some(owner)) => change_set("g8s-1", owner),
        _ => answer(action, "<Id>arn:set</Id><StackId>arn:1</StackId>"),
    })
}

#[tokio::test(start_paused = true)]
async fn a_stack_without_tags_is_ours_by_what_was_written_down_or_by_a_change_set() {
    let wire = in_review(None);
    let told = step(&wire, &Paper::with(Some("arn:1")), false).await.unwrap();
    assert!(matches!(told.step, Step::Delete { .. }), "{told:?}");
    assert_eq!((wire.count("ListChangeSets"), wire.count("DeleteStack")), (0, 1));

    let wire = in_review(Some(UID));
    let paper = Paper::with(None);
    let told = step(&wire, &paper, false).await.unwrap();
    assert!(matches!(told.step, Step::Delete { .. }), "{told:?}");
    assert_eq!(paper.read().unwrap().id.as_deref(), Some("arn:1"));

    for (owner, id) in [(Some("another"), None), (None, None), (None, Some("arn:of-another-stack"))] {
        let wire = in_review(owner);
        let told = step(&wire, &Paper::with(id), true).await.unwrap();
        assert_eq!(told.step, Step::Failed(Why::Foreign(owner.map(str::to_owned))));
        assert_eq!(step(&wire, &Paper::with(id), false).await.unwrap().step, Step::Done);
        for change in ["CreateChangeSet", "ExecuteChangeSet", "DeleteStack", "UpdateTerminationProtection"] {
            assert_eq!(wire.count(change), 0, "{change} on a stack of {owner:?}");
        }
    }
}

/// Whoever made another stack died before he wrote its ARN down.
#[tokio::test(start_paused = true)]
async fn that_an_older_stack_is_gone_says_nothing_of_one_of_its_name() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let told = asked.clone();
    let wire = Wire::asked(move |action, _, body| match action {
        "GetCallerIdentity" => identity("111122223333"),
        "DescribeStacks" if !body.contains("StackName") => answer(action, "<Stacks/>"),
        "DescribeStacks" => {
            told.lock().unwrap().push(body.to_owned());
            if body.contains(NAME) { stack("CREATE_COMPLETE", &tags(UID)) } else { answer(action, "<Stacks/>") }
        }
        _ => answer(action, ""),
    });
    let told = step(&wire, &Paper::with(Some("arn:0")), false).await.unwrap();
    assert!(matches!(told.step, Step::Delete { .. }), "{told:?}");
    assert_eq!(asked.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_in_another_state_than_was_seen_is_looked_at_again() {
    for (code, is_error) in
        [("AlreadyExistsException", false), ("OperationInProgressException", false), ("LimitExceededException", true)]
    {
        let wire = Wire::new(move |action, _| match action {
            "GetCallerIdentity" => identity("111122223333"),
            "DescribeStacks" => answer(action, "<Stacks/>"),
            _ => refusal(code),
        });
        match step(&wire, &Paper::default(), true).await {
            Ok(told) => assert!(!is_error && told.again.is_some(), "{code}: {told:?}"),
            Err(error) => assert!(is_error, "{code}: {error:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_account_without_the_nodes_boundary_is_told_so() {
    let wire = Wire::new(|action, _| match action {
        "GetCallerIdentity" => identity("111122223333"),
        "DescribeStacks" => stack("CREATE_FAILED", &tags(UID)),
        _ => {
            let subject = driver::Subject { uid: UID.into(), stack: NAME.into(), attempt: 1 };
            let event = format!(
                "<StackEvents><member><StackId>arn:1</StackId><StackName>{NAME}</StackName><EventId>1</EventId>\
                 <Timestamp>2026-11-28T08:00:00Z</Timestamp><ClientRequestToken>{}</ClientRequestToken>",
                subject.apply_token("new")
            );
            let of = |physical: &str, kind: &str, reason: &str| {
                format!(
                    "{event}<PhysicalResourceId>{physical}</PhysicalResourceId><LogicalResourceId>MasterRole</LogicalResourceId>\
                     <ResourceType>{kind}</ResourceType><ResourceStatus>CREATE_FAILED</ResourceStatus>\
                     <ResourceStatusReason>{reason}</ResourceStatusReason></member></StackEvents>"
                )
            };
            let events = of("arn:1", "AWS::CloudFormation::Stack", "")
                + &of(
                    "",
                    "AWS::IAM::Role",
                    "Scope ARN: arn:aws:iam::111122223333:policy/giantnetes-nodes does not exist or is not attachable.",
                );
            answer(action, &events.replace("</StackEvents><StackEvents>", ""))
        }
    });
    let told = step(&wire, &Paper::with(None), true).await.unwrap();
    assert!(matches!(told.step, Step::Failed(Why::Creation(_))), "{told:?}");
    let cause = told.cause.unwrap();
    assert!(cause.starts_with("MasterRole (AWS::IAM::Role): Scope ARN") && cause.contains("make it once"), "{cause}");
    assert_eq!(told.again, None, "it does not change by itself");
}
