//! Accounts over a wire that leads to nobody: what is sent there, and how often.

use std::sync::atomic::{AtomicUsize, Ordering};

use aws_sdk_cloudformation::config::http::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::{
    client::http::{HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn},
    http::StatusCode,
};
use aws_smithy_types::body::SdkBody;
use secrecy::SecretString;

use super::*;
use crate::aws::calls::{
    Failure,
    identity::{Keys, Role},
};

/// From the name of a call, the access key and the request to a status and a body.
type Answer = dyn Fn(&str, &str, &str) -> (u16, String) + Send + Sync;

/// Answers calls.
#[derive(Clone)]
pub(in crate::aws) struct Wire {
    answer: Arc<Answer>,
    calls: Arc<Mutex<Vec<String>>>,
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Wire")
    }
}

impl HttpConnector for Wire {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let body = String::from_utf8(request.body().bytes().unwrap().to_vec()).unwrap();
        let action = body.split('&').find_map(|pair| pair.strip_prefix("Action=")).unwrap().to_owned();
        let signed = request.headers().get("authorization").unwrap();
        let key = signed.split_once("Credential=").unwrap().1.split('/').next().unwrap();
        self.calls.lock().unwrap().push(format!("{action} {key}"));
        let (status, body) = (self.answer)(&action, key, &body);
        let response = HttpResponse::new(StatusCode::try_from(status).unwrap(), SdkBody::from(body));
        HttpConnectorFuture::ready(Ok(response))
    }
}

impl Wire {
    pub(in crate::aws) fn new(answer: impl Fn(&str, &str) -> (u16, String) + Send + Sync + 'static) -> Self {
        Self::asked(move |action, key, _| answer(action, key))
    }

    pub(in crate::aws) fn asked(answer: impl Fn(&str, &str, &str) -> (u16, String) + Send + Sync + 'static) -> Self {
        Self { answer: Arc::new(answer), calls: Arc::default() }
    }

    pub(in crate::aws) fn accounts(&self) -> Accounts {
        let wire = self.clone();
        let http = http_client_fn(move |_, _| SharedHttpConnector::new(wire.clone()));
        Accounts::over(http, None, Intervals::default())
    }

    /// How often a call was made, by any key or by one.
    pub(in crate::aws) fn count(&self, call: &str) -> usize {
        self.calls.lock().unwrap().iter().filter(|made| made.starts_with(call)).count()
    }
}

pub(in crate::aws) fn identity(account: &str) -> (u16, String) {
    let it = format!("<Arn>a</Arn><UserId>b</UserId><Account>{account}</Account>");
    (
        200,
        format!(
            "<GetCallerIdentityResponse><GetCallerIdentityResult>{it}</GetCallerIdentityResult></GetCallerIdentityResponse>"
        ),
    )
}

fn stacks(names: &[&str], next: &str) -> (u16, String) {
    let of = |name: &&str| {
        format!(
            "<member><StackName>{name}</StackName><StackId>arn:{name}</StackId><StackStatus>CREATE_COMPLETE</StackStatus>\
             <CreationTime>2026-11-28T08:00:00Z</CreationTime></member>"
        )
    };
    let members: String = names.iter().map(of).collect();
    let next = if next.is_empty() { String::new() } else { format!("<NextToken>{next}</NextToken>") };
    (
        200,
        format!(
            "<DescribeStacksResponse><DescribeStacksResult><Stacks>{members}</Stacks>{next}</DescribeStacksResult></DescribeStacksResponse>"
        ),
    )
}

pub(in crate::aws) fn refusal(code: &str) -> (u16, String) {
    (
        403,
        format!(
            "<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>no</Message></Error></ErrorResponse>"
        ),
    )
}

pub(in crate::aws) fn way(key: &str) -> Way {
    let keys = Keys { id: key.into(), secret: SecretString::from("hush"), session: None };
    Way { region: "eu-central-1".into(), endpoint: None, keys, role: None }
}

fn view(session: &Session, stack: &str) -> &'static str {
    match session.account.view(stack) {
        Ok(View::Stale) => "stale",
        Ok(View::Absent) => "absent",
        Ok(View::There(_)) => "there",
        Err(_) => "trouble",
    }
}

#[tokio::test(start_paused = true)]
async fn one_answer_serves_all_guests_of_an_account_page_by_page() {
    let page = Arc::new(AtomicUsize::new(0));
    let wire = Wire::new(move |action, _| match action {
        "GetCallerIdentity" => identity("111122223333"),
        _ if page.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) => stacks(&["g8s-a", "others"], "more"),
        _ => stacks(&["g8s-b"], ""),
    });
    let accounts = wire.accounts();
    let mut sessions = Vec::new();
    for number in 0..100 {
        sessions.push(accounts.enter(&way(&format!("key-{number}"))).await.unwrap());
    }
    sessions[0].account.looked().await;
    let before = wire.count("DescribeStacks");
    for session in &sessions {
        assert_eq!(
            ["g8s-a", "g8s-b", "g8s-c", "others"].map(|name| view(session, name)),
            ["there", "there", "absent", "absent"]
        );
    }
    // Nobody waits for anything: it is looked at once a minute, two pages each time.
    tokio::time::sleep(Duration::from_secs(70)).await;
    let before = (before, wire.count("DescribeStacks"));
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(wire.count("DescribeStacks") - before.1, 10);
    // All of them wait: it is looked at every five seconds.
    let before = wire.count("DescribeStacks");
    for _ in 0..30 {
        sessions.iter().for_each(|session| session.account.hurry());
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let looks = wire.count("DescribeStacks") - before;
    assert!((10..=14).contains(&looks), "{looks} pages in 30 s");
    // Nobody has it any more.
    drop(sessions);
    tokio::time::sleep(Duration::from_secs(120)).await;
    let before = wire.count("DescribeStacks");
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(wire.count("DescribeStacks"), before);
}

#[tokio::test(start_paused = true)]
async fn what_was_done_to_a_stack_is_not_judged_by_an_older_look() {
    let wire = Wire::new(|action, _| match action {
        "GetCallerIdentity" => identity("111122223333"),
        _ => stacks(&["g8s-a"], ""),
    });
    let session = wire.accounts().enter(&way("key")).await.unwrap();
    assert_eq!(view(&session, "g8s-a"), "stale", "nobody has looked yet");
    session.account.looked().await;
    assert_eq!(view(&session, "g8s-a"), "there");
    session.account.touch("g8s-a");
    assert_eq!((view(&session, "g8s-a"), view(&session, "g8s-b")), ("stale", "absent"));
    session.account.looked().await;
    assert_eq!(view(&session, "g8s-a"), "there");
}

#[tokio::test(start_paused = true)]
async fn keys_that_are_not_taken_any_more_trouble_nobody_else() {
    let wire = Wire::new(|action, key| match (action, key) {
        ("GetCallerIdentity", _) => identity("111122223333"),
        (_, "revoked") => refusal("InvalidClientTokenId"),
        _ => stacks(&["g8s-a"], ""),
    });
    let accounts = wire.accounts();
    let revoked = accounts.enter(&way("revoked")).await.unwrap();
    revoked.account.looked().await;
    assert_eq!(view(&revoked, "g8s-a"), "trouble");
    let good = accounts.enter(&way("good")).await.unwrap();
    assert!(Arc::ptr_eq(&revoked.account, &good.account));
    good.account.looked().await;
    assert_eq!(view(&good, "g8s-a"), "there");
    // It is asked last from then on, and so no more.
    let before = wire.count("DescribeStacks revoked");
    for _ in 0..5 {
        good.account.looked().await;
    }
    assert!(wire.count("DescribeStacks revoked") <= before + 1);
    assert!(wire.count("DescribeStacks good") >= 5);
}

#[tokio::test(start_paused = true)]
async fn what_was_seen_is_served_for_a_while_when_nothing_can_be_seen() {
    let fails = Arc::new(AtomicUsize::new(0));
    let failing = fails.clone();
    let wire = Wire::new(move |action, _| match action {
        "GetCallerIdentity" => identity("111122223333"),
        _ if failing.load(Ordering::SeqCst) == 0 => stacks(&["g8s-a"], ""),
        _ => (503, "<html>".to_owned()),
    });
    let session = wire.accounts().enter(&way("key")).await.unwrap();
    session.account.looked().await;
    fails.store(1, Ordering::SeqCst);
    session.account.looked().await;
    assert_eq!(view(&session, "g8s-a"), "there");
    // What was done since is not known, and why is told.
    session.account.touch("g8s-b");
    assert_eq!(view(&session, "g8s-b"), "trouble");
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(view(&session, "g8s-a"), "trouble");
    fails.store(0, Ordering::SeqCst);
    session.account.looked().await;
    assert_eq!((view(&session, "g8s-a"), view(&session, "g8s-b")), ("there", "absent"));
}

#[tokio::test(start_paused = true)]
async fn accounts_regions_and_stand_ins_are_places_of_their_own() {
    let wire = Wire::new(|action, key| match action {
        "GetCallerIdentity" => identity(key),
        _ => stacks(&[], ""),
    });
    let accounts = wire.accounts();
    let here = accounts.enter(&way("1")).await.unwrap();
    let ways = [
        way("2"),
        Way { region: "eu-west-1".into(), ..way("1") },
        Way { endpoint: Some("http://127.0.0.1:1".into()), ..way("1") },
    ];
    for way in ways {
        assert!(!Arc::ptr_eq(&here.account, &accounts.enter(&way).await.unwrap().account));
    }
    assert!(Arc::ptr_eq(&here.account, &accounts.enter(&way("1")).await.unwrap().account));
}

fn assumed(key: &str, minutes: i64) -> (u16, String) {
    let ends = k8s_openapi::jiff::Timestamp::now() + k8s_openapi::jiff::SignedDuration::from_mins(minutes);
    let it = format!(
        "<AccessKeyId>{key}</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken>\
         <Expiration>{}</Expiration>",
        ends.strftime("%Y-%m-%dT%H:%M:%SZ")
    );
    (
        200,
        format!(
            "<AssumeRoleResponse><AssumeRoleResult><Credentials>{it}</Credentials></AssumeRoleResult></AssumeRoleResponse>"
        ),
    )
}

fn in_role() -> Way {
    let role = Role { arn: "arn:aws:iam::1:role/a".into(), external_id: None, session: "g8s-a".into() };
    Way { role: Some(role), ..way("user") }
}

#[tokio::test(start_paused = true)]
async fn a_role_is_assumed_once_for_as_long_as_it_lasts() {
    let wire = Wire::new(|action, key| match (action, key) {
        ("AssumeRole", "user") => assumed("temporary", 60),
        ("GetCallerIdentity", "temporary") => identity("111122223333"),
        ("DescribeStacks", "temporary") => stacks(&["g8s-a"], ""),
        _ => refusal("AccessDenied"),
    });
    let session = wire.accounts().enter(&in_role()).await.unwrap();
    let look = || session.cloudformation.stack("g8s-a");
    futures::future::join_all((0..5).map(|_| look()))
        .await
        .into_iter()
        .for_each(|seen| assert!(seen.unwrap().is_some()));
    assert_eq!(wire.count("AssumeRole"), 1);
    tokio::time::sleep(Duration::from_secs(56 * 60)).await;
    futures::future::join_all((0..5).map(|_| look()))
        .await
        .into_iter()
        .for_each(|seen| assert!(seen.unwrap().is_some()));
    assert_eq!(wire.count("AssumeRole"), 2);
}

#[tokio::test(start_paused = true)]
async fn a_role_that_expired_early_is_assumed_once_more_and_keys_are_not() {
    let expired = Arc::new(AtomicUsize::new(0));
    let left = expired.clone();
    let wire = Wire::new(move |action, _| match action {
        "AssumeRole" => assumed("temporary", 60),
        "GetCallerIdentity" => identity("111122223333"),
        _ if left.load(Ordering::SeqCst) > 0 => {
            left.fetch_sub(1, Ordering::SeqCst);
            refusal("ExpiredToken")
        }
        _ => stacks(&["g8s-a"], ""),
    });
    let accounts = wire.accounts();
    let session = accounts.enter(&in_role()).await.unwrap();
    session.account.looked().await;
    expired.store(1, Ordering::SeqCst);
    assert!(session.cloudformation.stack("g8s-a").await.unwrap().is_some());
    assert_eq!(wire.count("AssumeRole"), 2);
    expired.store(2, Ordering::SeqCst);
    let error = session.cloudformation.stack("g8s-a").await.unwrap_err();
    assert!(matches!(error.source, Failure::Expired(_)), "{error:?}");
    let session = accounts.enter(&way("user")).await.unwrap();
    expired.store(1, Ordering::SeqCst);
    let before = wire.count("DescribeStacks");
    assert!(session.cloudformation.stack("g8s-a").await.is_err());
    assert_eq!(wire.count("DescribeStacks"), before + 1);
}
