//! The client against an etcd of the tests', which turns calls away as the real one does when users and roles change.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures::{Stream, stream};
use tokio::net::{TcpListener, TcpStream};
use tonic::{
    Code, Request, Response, Status,
    transport::{Endpoint, Server},
};

use super::{
    Client, TRIES,
    api::{
        DeleteRangeRequest, DeleteRangeResponse, RangeRequest, RangeResponse, ResponseHeader, TxnRequest, TxnResponse,
        k_v_server::{KV, KVServer},
    },
    *,
};
use crate::runtime::chain;

/// An etcd with nothing in it.
struct Etcd {
    /// How many calls it turns away.
    stale: usize,
    calls: Arc<AtomicUsize>,
}

impl Etcd {
    fn judge(&self) -> Result<Option<ResponseHeader>, Status> {
        match self.calls.fetch_add(1, Ordering::SeqCst) {
            call if call < self.stale => {
                Err(Status::new(Code::InvalidArgument, "etcdserver: revision of auth store is old"))
            }
            _ => Ok(Some(ResponseHeader { revision: 7 })),
        }
    }
}

#[tonic::async_trait]
impl KV for Etcd {
    async fn range(&self, _: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        Ok(Response::new(RangeResponse { header: self.judge()?, ..RangeResponse::default() }))
    }

    async fn delete_range(&self, _: Request<DeleteRangeRequest>) -> Result<Response<DeleteRangeResponse>, Status> {
        self.judge().map(|_| Response::new(DeleteRangeResponse { deleted: 0 }))
    }

    async fn txn(&self, _: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        Ok(Response::new(TxnResponse { header: self.judge()?, succeeded: true }))
    }
}

fn connections(listener: TcpListener) -> impl Stream<Item = io::Result<TcpStream>> {
    stream::try_unfold(listener, |listener| async move {
        let (connection, _) = listener.accept().await?;
        Ok(Some((connection, listener)))
    })
}

/// A client of an etcd that turns so many calls away, and how many came.
async fn client(stale: usize) -> (Client, Arc<AtomicUsize>) {
    let calls = Arc::new(AtomicUsize::new(0));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let service = KVServer::new(Etcd { stale, calls: calls.clone() });
    let forever = std::future::pending();
    tokio::spawn(Server::builder().serve_with_incoming_shutdown(service, connections(listener), forever));
    let channel = Endpoint::from_shared(endpoint.clone()).unwrap().connect_lazy();
    (Client::over(channel, endpoint, None), calls)
}

#[tokio::test]
async fn what_was_judged_by_rights_of_before_is_asked_anew_and_not_for_ever() {
    let change = [Change::Put { key: "/a", value: "" }];
    for stale in [0, 1, TRIES - 1] {
        let (client, calls) = client(stale).await;
        assert_eq!(client.write(&[], &change).await.unwrap(), 7);
        assert_eq!(calls.load(Ordering::SeqCst), stale + 1);
    }
    let (client, calls) = client(usize::MAX).await;
    let error = client.read(&Span::key("/a")).await.unwrap_err();
    assert_eq!(calls.load(Ordering::SeqCst), TRIES);
    assert!(chain(&error).contains("Range /a: users and roles changed"), "{}", chain(&error));
    assert!(!error.is_denied() && !error.is_unavailable() && !error.is_guard());
}

#[tokio::test]
async fn a_write_of_nothing_is_an_error() {
    let (client, calls) = client(0).await;
    assert!(client.write(&[Compare::Exists("/a")], &[]).await.is_err());
    assert_eq!(calls.load(Ordering::SeqCst), 0);
}

#[test]
fn guards_are_etcds_comparisons() {
    let of = |guard| {
        let api::Compare { result, target, key, target_union } = compare(&guard);
        assert_eq!(key, b"/a");
        (target, result, target_union.unwrap())
    };
    // Targets: version 0, last write 2. Results: equal 0, greater 1.
    assert_eq!(of(Compare::Exists("/a")), (0, 1, Compared::Version(0)));
    assert_eq!(of(Compare::Absent("/a")), (0, 0, Compared::Version(0)));
    assert_eq!(of(Compare::ModRevision("/a", 7)), (2, 0, Compared::ModRevision(7)));
}
