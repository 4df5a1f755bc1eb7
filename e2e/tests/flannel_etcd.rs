//! The client of Flannel's etcd, and the rights of guests in it, on a real etcd that asks whoever comes for a certificate.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use giantnetes::{
    flannel::{
        etcd::{
            Change, Client, Compare, EtcdError, Failure, Span, Target,
            api::{Permission, PermissionType},
            auth,
        },
        lease::{self, Config, Lease},
    },
    runtime::{CALL_TIMEOUT, chain, is_not_leading, lease::Leadership},
};
use support::flannel_etcd::{self, FlannelEtcd, timed};

/// What a machine that is busy may add to a limit.
const SLACK: Duration = Duration::from_secs(5);
/// How long two members may take to choose a leader of their own: elections of etcd take a second or two, three times.
const NEW_LEADER: Duration = Duration::from_secs(15);

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let _ = rustls::crypto::ring::default_provider().install_default();
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(work)
}

fn put<'a>(key: &'a str, value: &'a str) -> Change<'a> {
    Change::Put { key, value }
}

/// Everything that a guest has: user and role, config, and the guard of its network.
async fn make_guest(root: &Client, id: &str) {
    assert!(auth::ensure_guest(root, id).await.unwrap());
    let (config, network) = (lease::config_key(id), "172.26.0.0/20".parse().unwrap());
    let (guard, nobodys) = (lease::key(id, network), Lease::Guard.to_json());
    let value = Config::new(network, 1234).to_json();
    let changes = [put(&config, &value), put(&guard, &nobodys)];
    root.write(&[Compare::Absent(&config)], &changes).await.unwrap();
}

fn denied<T: std::fmt::Debug>(what: &str, answer: Result<T, EtcdError>) {
    let error = answer.expect_err(what);
    assert!(error.is_denied() && !error.is_unavailable(), "{what}: {}", chain(&error));
}

/// What has to stay when nothing is written: the revision of keys, and that of users and roles.
async fn revisions(root: &Client) -> (i64, u64) {
    (root.read(&Span::key("none")).await.unwrap().revision, root.auth_status().await.unwrap().revision)
}

fn ids(ids: &[&str]) -> BTreeSet<String> {
    ids.iter().map(|id| (*id).to_owned()).collect()
}

#[test]
fn a_guest_reaches_what_is_its_own_and_nothing_else() {
    let etcd = FlannelEtcd::start("rights", 1).unwrap();
    block_on(async {
        let root = etcd.client(auth::ROOT);
        assert!(auth::enable(&root).await.unwrap());
        assert!(!auth::enable(&root).await.unwrap(), "it asks for rights already");
        // Ids of which one is the other's beginning.
        for id in ["ab", "abc", "a"] {
            make_guest(&root, id).await;
        }
        let guest = etcd.client(&auth::user("ab"));
        reaches_its_own(&guest).await;
        for other in ["abc", "a"] {
            does_not_reach(&guest, &lease::prefix(other), &lease::config_key(other)).await;
        }
        // What is nobody's, all guests' together, and all that begins like its own.
        does_not_reach(&guest, lease::ROOT, "/giantnetes/other").await;
        does_not_reach(&guest, "", "other").await;
        denied("all that begins so", guest.read(&Span::prefix("/giantnetes/ab")).await);
        let (own, other) = (lease::key("ab", "172.26.1.0/30".parse().unwrap()), lease::config_key("abc"));
        denied("a look by comparing", guest.write(&[Compare::Exists(&other)], &[put(&own, "")]).await);
        denied("a list of users", guest.user_list().await);
        denied("a list of roles", guest.role_list().await);
        denied("another user", guest.user_get(&auth::user("abc")).await);
        denied("more rights", guest.user_grant_role(&auth::user("ab"), auth::ROOT).await);
        let everything = Permission { perm_type: PermissionType::Readwrite.into(), key: vec![0], range_end: vec![0] };
        denied("more rights of its role", guest.role_grant_permission(&auth::user("ab"), everything).await);
        let nobody = etcd.client("nobody");
        denied("a user that is none", nobody.read(&Span::key(&own)).await);
        // Nothing of that has done anything.
        for id in ["ab", "abc", "a"] {
            assert!(!auth::ensure_guest(&root, id).await.unwrap(), "{id}");
            assert_eq!(root.read(&Span::key(&lease::config_key(id))).await.unwrap().entries.len(), 1, "{id}");
        }
    });
}

async fn reaches_its_own(guest: &Client) {
    let (config, subnets) = (lease::config_key("ab"), Span::prefix(&lease::subnets("ab")));
    let read = guest.read(&Span::key(&config)).await.unwrap();
    let expected = Config::new("172.26.0.0/20".parse().unwrap(), 1234);
    assert_eq!(Config::parse(&read.entries[0].value).unwrap(), expected);
    denied("its config", guest.write(&[], &[put(&config, "{}")]).await);
    denied("its config", guest.delete(&Span::key(&config)).await);
    denied("all of its keys", guest.delete(&Span::prefix(&lease::prefix("ab"))).await);
    let key = lease::key("ab", "172.26.1.0/30".parse().unwrap());
    let value = Lease::Guard.to_json();
    let written = guest.write(&[Compare::Absent(&key), Compare::Exists(&config)], &[put(&key, &value)]).await.unwrap();
    let read = guest.read(&subnets).await.unwrap();
    let [guard, place] = &read.entries[..] else { panic!("{read:?}") };
    assert_eq!(lease::subnet("ab", &guard.key), Some("172.26.0.0/20".parse().unwrap()));
    assert_eq!((place.key.as_slice(), place.value.as_slice()), (key.as_bytes(), value.as_bytes()));
    assert_eq!((place.mod_revision, place.lease, read.revision), (written, 0, written));
    // A guard that does not hold.
    for compare in
        [Compare::Absent(&key), Compare::ModRevision(&key, written - 1), Compare::Exists("/giantnetes/ab/none")]
    {
        let error = guest.write(std::slice::from_ref(&compare), &[put(&key, "x")]).await.unwrap_err();
        assert!(error.is_guard() && !error.is_denied() && !error.is_unavailable(), "{compare:?}: {}", chain(&error));
    }
    assert_eq!(guest.read(&subnets).await.unwrap(), read, "a guard did not hold, and something was written");
    guest.write(&[Compare::ModRevision(&key, written)], &[Change::Delete(Span::key(&key))]).await.unwrap();
    assert_eq!(guest.count(&subnets).await.unwrap(), 1);
}

async fn does_not_reach(guest: &Client, prefix: &str, key: &str) {
    for span in [Span::prefix(prefix), Span::key(key)] {
        denied(&format!("read {span}"), guest.read(&span).await);
        denied(&format!("count {span}"), guest.count(&span).await);
        denied(&format!("delete {span}"), guest.delete(&span).await);
    }
    denied(&format!("put {key}"), guest.write(&[], &[put(key, "")]).await);
}

#[test]
fn what_is_as_it_should_be_is_not_written_and_what_is_not_is_mended() {
    let etcd = FlannelEtcd::start("mended", 1).unwrap();
    block_on(async {
        let root = etcd.client(auth::ROOT);
        auth::enable(&root).await.unwrap();
        for id in ["ab", "abc"] {
            make_guest(&root, id).await;
        }
        let before = revisions(&root).await;
        assert!(!auth::ensure_guest(&root, "ab").await.unwrap());
        assert!(!auth::enable(&root).await.unwrap());
        assert_eq!(auth::remove_guest(&root, "gone").await.unwrap(), Vec::<String>::new());
        assert_eq!(auth::guests(&root).await.unwrap(), ids(&["ab", "abc"]));
        assert_eq!(revisions(&root).await, before, "something was written");

        // As a crash leaves it, and as others do.
        let name = auth::user("ab");
        let everything = Permission { perm_type: PermissionType::Readwrite.into(), key: vec![0], range_end: vec![0] };
        root.role_grant_permission(&name, everything).await.unwrap();
        let guest = etcd.client(&name);
        guest.read(&Span::key(&lease::config_key("abc"))).await.expect("more rights than it should have");
        assert!(auth::ensure_guest(&root, "ab").await.unwrap());
        denied("rights that were taken back", guest.read(&Span::key(&lease::config_key("abc"))).await);
        guest.read(&Span::key(&lease::config_key("ab"))).await.unwrap();
        root.user_grant_role(&name, auth::ROOT).await.unwrap();
        assert!(auth::ensure_guest(&root, "ab").await.unwrap());
        assert_eq!(root.user_get(&name).await.unwrap(), Some(vec![name.clone()]));
        root.role_delete(&name).await.unwrap();
        assert!(auth::ensure_guest(&root, "ab").await.unwrap());
        root.user_delete(&name).await.unwrap();
        assert!(auth::ensure_guest(&root, "ab").await.unwrap());
        assert!(!auth::ensure_guest(&root, "ab").await.unwrap());
        guest.read(&Span::key(&lease::config_key("ab"))).await.unwrap();

        is_removed(&root, &guest, &etcd.client(&auth::user("abc"))).await;
    });
}

/// The guest `ab` leaves nothing, and `abc` keeps everything.
async fn is_removed(root: &Client, guest: &Client, other: &Client) {
    // More keys than are looked at in one call.
    for hundred in 0..12 {
        let keys: Vec<_> = (0..100).map(|key| format!("{}{hundred}-{key}", lease::subnets("ab"))).collect();
        let changes: Vec<_> = keys.iter().map(|key| put(key, "")).collect();
        guest.write(&[], &changes).await.unwrap();
    }
    assert_eq!(auth::guests(root).await.unwrap(), ids(&["ab", "abc"]));
    assert_eq!(auth::remove_guest(root, "ab").await.unwrap(), Vec::<String>::new());
    let name = auth::user("ab");
    assert_eq!((root.user_get(&name).await.unwrap(), root.role_get(&name).await.unwrap()), (None, None));
    assert_eq!(root.count(&Span::prefix(&lease::prefix("ab"))).await.unwrap(), 0);
    assert_eq!(auth::guests(root).await.unwrap(), ids(&["abc"]));
    denied("a guest that was removed", guest.read(&Span::key(&lease::config_key("ab"))).await);
    denied("a lease after that", guest.write(&[], &[put(&lease::subnets("ab"), "")]).await);
    assert_eq!(other.count(&Span::prefix(&lease::prefix("abc"))).await.unwrap(), 2);
    let before = revisions(root).await;
    assert_eq!(auth::remove_guest(root, "ab").await.unwrap(), Vec::<String>::new());
    assert_eq!(revisions(root).await, before, "it was gone already");
    // What a removal left halfway is a guest, too: its role, its user, its keys.
    root.role_add(&auth::user("role")).await.unwrap();
    root.user_add(&auth::user("user")).await.unwrap();
    root.write(&[], &[put(&lease::config_key("keys"), "")]).await.unwrap();
    assert_eq!(auth::guests(root).await.unwrap(), ids(&["abc", "keys", "role", "user"]));
    for id in ["keys", "role", "user"] {
        assert_eq!(auth::remove_guest(root, id).await.unwrap(), Vec::<String>::new());
    }
    assert_eq!(auth::guests(root).await.unwrap(), ids(&["abc"]));
}

#[test]
fn who_does_not_lead_reads_and_does_not_write() {
    let etcd = FlannelEtcd::start("leads", 1).unwrap();
    block_on(async {
        let root = etcd.client(auth::ROOT);
        auth::enable(&root).await.unwrap();
        make_guest(&root, "ab").await;
        let before = revisions(&root).await;
        let follower = etcd.client_of(0, &etcd.certificate(auth::ROOT), Some(Leadership::default()));
        assert!(!auth::ensure_guest(&follower, "ab").await.unwrap());
        assert_eq!(auth::guests(&follower).await.unwrap(), ids(&["ab"]));
        let everything =
            || Permission { perm_type: PermissionType::Readwrite.into(), key: vec![0], range_end: vec![0] };
        let writes = [
            follower.write(&[], &[put("/giantnetes/ab/config", "")]).await.map(drop),
            follower.delete(&Span::prefix("/giantnetes/")).await.map(drop),
            follower.auth_enable().await,
            follower.user_add("g8s-new").await,
            follower.user_delete("g8s-ab").await,
            follower.user_grant_role("g8s-ab", "root").await,
            follower.role_add("g8s-new").await,
            follower.role_delete("g8s-ab").await,
            follower.role_grant_permission("g8s-ab", everything()).await,
            auth::ensure_guest(&follower, "new").await.map(drop),
            auth::remove_guest(&follower, "ab").await.map(drop),
        ];
        for (number, answer) in writes.into_iter().enumerate() {
            let error = answer.unwrap_err();
            assert!(is_not_leading(&error) && !error.is_unavailable(), "{number}: {}", chain(&error));
        }
        assert_eq!(revisions(&root).await, before, "something was written");
        let metrics = String::from_utf8(giantnetes::runtime::telemetry::metrics_text().unwrap()).unwrap();
        let reads = "giantnetes_api_requests_total{code=\"2xx\",server=\"flannel-etcd\",verb=\"get\"}";
        assert!(metrics.contains(reads), "{metrics}");
    });
}

#[test]
fn an_error_tells_an_etcd_that_is_silent_from_one_that_refuses() {
    let etcd = FlannelEtcd::start("errors", 1).unwrap();
    block_on(async {
        let root = etcd.client(auth::ROOT);
        auth::enable(&root).await.unwrap();
        let (identity, stranger) = (etcd.certificate(auth::ROOT), flannel_etcd::authority());
        let client = |endpoint: &str, authority: &str| {
            Client::new(&Target { endpoint, authority, identity: &identity }, None).unwrap()
        };

        denied("a server of another authority", client(&etcd.url(0), &stranger.certificate).auth_status().await);
        let unavailable = |what: &str, endpoint: &str, (answer, took): (Result<_, EtcdError>, Duration)| {
            let error = answer.map(drop).expect_err(what);
            let text = chain(&error);
            println!("    {what}, after {took:.1?}: {text}");
            assert!(error.is_unavailable() && !error.is_denied(), "{what}: {text}");
            assert!(text.starts_with(&format!("etcd at {endpoint}: Range /giantnetes/*: ")), "{text}");
            assert!(took < CALL_TIMEOUT + SLACK, "{what}: {took:.1?}");
        };
        let all = Span::prefix(lease::ROOT);
        let nobody = format!("https://127.0.0.1:{}", support::processes::free_port().unwrap());
        unavailable("nobody listens", &nobody, timed(client(&nobody, etcd.authority()).read(&all)).await);
        // It takes connections, as the kernel does for it, and never says a word.
        let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mute = (format!("https://{}", mute.local_addr().unwrap()), mute);
        unavailable("one that is mute", &mute.0, timed(client(&mute.0, etcd.authority()).read(&all)).await);
        etcd.signal(0, "STOP").unwrap();
        unavailable("one that was frozen", &etcd.url(0), timed(root.read(&all)).await);
        let fresh = client(&etcd.url(0), etcd.authority());
        unavailable("one that was frozen before", &etcd.url(0), timed(fresh.read(&all)).await);
        etcd.signal(0, "CONT").unwrap();
        // The same clients go on.
        for client in [&root, &fresh] {
            client.read(&all).await.unwrap();
        }

        // etcd says so after its own handshake, and ends the connection: what comes first is seen.
        let foreign = flannel_etcd::certificate(&stranger, auth::ROOT);
        let foreign = etcd.client_of(0, &foreign, None).auth_status().await.unwrap_err();
        println!("    a certificate of another authority: {}", chain(&foreign));
        assert!(foreign.is_denied() || foreign.is_unavailable());
    });
}

#[test]
fn two_of_three_members_serve() {
    let mut etcd = FlannelEtcd::start("three", 3).unwrap();
    let root = etcd.certificate(auth::ROOT);
    block_on(async { auth::enable(&etcd.client_of(0, &root, None)).await.unwrap() });
    etcd.kill(0);
    block_on(async {
        // If it was the leader that went, what was handed to it before the others chose a new one is lost: etcd says so
        // after 7 s (its `ReqTimeout`), and who asked asks again, as the manager does.
        let client = etcd.client_of(1, &root, None);
        let begun = Instant::now();
        loop {
            match auth::ensure_guest(&client, "ab").await {
                Ok(made) => break assert!(made),
                Err(error) if error.is_unavailable() && begun.elapsed() < NEW_LEADER => {
                    println!("    {}", chain(&error))
                }
                Err(error) => panic!("{}", chain(&error)),
            }
        }
        println!("    a guest of two of three members, after {:.1?}", begun.elapsed());
        let key = lease::key("ab", "172.26.1.0/30".parse().unwrap());
        client.write(&[], &[put(&key, "x")]).await.unwrap();
        let other = etcd.client_of(2, &etcd.certificate(&auth::user("ab")), None);
        assert_eq!(other.read(&Span::key(&key)).await.unwrap().entries[0].value, b"x");
    });
    etcd.kill(1);
    block_on(async {
        let (answer, took) = timed(etcd.client_of(2, &root, None).read(&Span::prefix(lease::ROOT))).await;
        let error = answer.unwrap_err();
        println!("    one of three members, after {took:.1?}: {}", chain(&error));
        assert!(error.is_unavailable() && took < CALL_TIMEOUT + SLACK);
    });
}

/// Each change of users and roles makes etcd look at all of them anew, and turns away what it judged by those of before.
#[test]
fn a_thousand_guests() {
    const GUESTS: usize = 1000;
    let etcd = FlannelEtcd::start("thousand", 1).unwrap();
    block_on(async {
        let root = etcd.client(auth::ROOT);
        auth::enable(&root).await.unwrap();
        let id = |number: usize| format!("guest{number}");
        let make = |range: std::ops::Range<usize>| {
            let made = futures::stream::iter(range).map(|number| {
                let (root, id) = (root.clone(), id(number));
                async move { auth::ensure_guest(&root, &id).await.map(drop) }
            });
            made.buffer_unordered(8).collect::<Vec<_>>()
        };
        make(0..10).await.into_iter().for_each(Result::unwrap);
        measure(&root, 10).await;
        // Beside them keys are written all the time: by this process, which waits for its turn, and by a guest, which cannot.
        let done = tokio_util::sync::CancellationToken::new();
        let writer = |client: Client| {
            let done = done.clone();
            tokio::spawn(async move {
                let key = lease::key("guest0", "172.26.1.0/30".parse().unwrap());
                let (mut written, mut turned_away) = (0, 0);
                while !done.is_cancelled() {
                    match client.write(&[], &[put(&key, "")]).await {
                        Ok(_) => written += 1,
                        Err(EtcdError::Failed { source: Failure::Stale, .. }) => turned_away += 1,
                        Err(error) => panic!("{}", chain(&error)),
                    }
                }
                (written, turned_away)
            })
        };
        let writers = [writer(root.clone()), writer(etcd.client(&auth::user(&id(0))))];
        let (made, took) = timed(make(10..GUESTS)).await;
        made.into_iter().for_each(Result::unwrap);
        done.cancel();
        let [ours, guests] = writers;
        let (ours, guests): ((u32, u32), (u32, u32)) = (ours.await.unwrap(), guests.await.unwrap());
        println!("    {} guests more, eight at a time: {took:.1?}", GUESTS - 10);
        println!("    written meanwhile, given up after several tries: by us {ours:?}, by a guest {guests:?}");
        assert!(ours.0 > 0 && ours.1 == 0, "{ours:?}");
        measure(&root, GUESTS).await;
        let (found, took) = timed(auth::guests(&root)).await;
        assert_eq!(found.unwrap().len(), GUESTS);
        println!("    all of them listed: {took:.1?}");
    });
}

/// What one guest more costs beside so many.
async fn measure(root: &Client, guests: usize) {
    let (made, make) = timed(auth::ensure_guest(root, "more")).await;
    let (again, look) = timed(auth::ensure_guest(root, "more")).await;
    assert!(made.unwrap() && !again.unwrap());
    let (left, removal) = timed(auth::remove_guest(root, "more")).await;
    assert_eq!(left.unwrap(), Vec::<String>::new());
    println!("    beside {guests} guests: made in {make:.1?}, looked at in {look:.1?}, removed in {removal:.1?}");
}
