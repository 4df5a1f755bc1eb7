//! The plugin and a kubelet of the tests', on real sockets.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use futures::StreamExt as _;
use tokio::{
    net::UnixListener,
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Response, Status,
    transport::{Channel, Endpoint, Server},
};

use super::{
    api::{
        AllocateRequest, ContainerAllocateRequest, Empty, HEALTHY, KUBELET_SOCKET, RegisterRequest, UNHEALTHY, VERSION,
        device_plugin_client::DevicePluginClient,
        registration_server::{Registration, RegistrationServer},
    },
    kubelet::{Offer, SOCKET},
    probing::Verdict,
};

/// Everything here takes milliseconds; the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(20);

struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("g8s-plugin-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

async fn connect(socket: &Path) -> Channel {
    Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap().connect().await.unwrap()
}

async fn plugin(folder: &Folder) -> DevicePluginClient<Channel> {
    DevicePluginClient::new(connect(&folder.0.join(SOCKET)).await)
}

/// Like kubelet it connects to who registers before it answers.
struct FakeKubelet {
    folder: PathBuf,
    said: mpsc::UnboundedSender<RegisterRequest>,
}

#[tonic::async_trait]
impl Registration for FakeKubelet {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let request = request.into_inner();
        let mut plugin = DevicePluginClient::new(connect(&self.folder.join(&request.endpoint)).await);
        plugin.get_device_plugin_options(Empty {}).await?;
        let _ = self.said.send(request);
        Ok(Response::new(Empty {}))
    }
}

/// A kubelet that starts: it removes all sockets and makes its own.
fn kubelet(folder: &Folder) -> (JoinHandle<()>, mpsc::UnboundedReceiver<RegisterRequest>) {
    for entry in std::fs::read_dir(&folder.0).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let listener = UnixListener::bind(folder.0.join(KUBELET_SOCKET)).unwrap();
    let (said, heard) = mpsc::unbounded_channel();
    let service = RegistrationServer::new(FakeKubelet { folder: folder.0.clone(), said });
    let connections = futures::stream::try_unfold(listener, |listener| async move {
        let (connection, _) = listener.accept().await?;
        Ok::<_, std::io::Error>(Some((connection, listener)))
    });
    let serving = async move {
        let never = std::future::pending();
        Server::builder().serve_with_incoming_shutdown(service, connections, never).await.unwrap();
    };
    (tokio::spawn(serving), heard)
}

async fn heard(kubelet: &mut mpsc::UnboundedReceiver<RegisterRequest>) -> RegisterRequest {
    tokio::time::timeout(PATIENCE, kubelet.recv()).await.expect("nobody registers").unwrap()
}

#[tokio::test]
async fn a_host_where_guests_start_offers_its_device_and_takes_the_offer_back() {
    let folder = Folder::new();
    let (_serving, mut kubelet) = kubelet(&folder);
    let (verdict, seen) = watch::channel(Verdict::Works);
    let (offer, stop) = (Offer::new(&folder.0, 3, seen), CancellationToken::new());
    let ready = offer.readiness();
    assert_eq!(ready(), ["the registration with kubelet"]);
    let offering = tokio::spawn(offer.keep(stop.clone()));
    let request = heard(&mut kubelet).await;
    assert_eq!((request.version.as_str(), request.endpoint.as_str()), (VERSION, SOCKET));
    assert_eq!(request.resource_name, "giantnetes.io/kvm");

    let mut plugin = plugin(&folder).await;
    let mut lists = plugin.list_and_watch(Empty {}).await.unwrap().into_inner();
    let mut health = async || {
        let list = tokio::time::timeout(PATIENCE, lists.next()).await.expect("no list comes")?.ok()?;
        Some(list.devices.into_iter().map(|device| (device.id, device.health)).collect::<Vec<_>>())
    };
    let all = |health: &str| Some((0..3).map(|index| (format!("kvm-{index}"), health.to_owned())).collect());
    assert_eq!(health().await, all(HEALTHY));
    assert!(ready().is_empty(), "{:?}", ready());

    let one = ContainerAllocateRequest { devices_ids: vec!["kvm-1".into()] };
    let request = AllocateRequest { container_requests: vec![one.clone(), one] };
    let answer = plugin.allocate(request.clone()).await.unwrap().into_inner();
    assert_eq!(answer.container_responses.len(), 2);
    for container in answer.container_responses {
        let files: Vec<_> = container.devices.iter().map(|d| (&*d.container_path, &*d.permissions)).collect();
        assert_eq!(files, [("/dev/kvm", "rw")]);
    }

    verdict.send_replace(Verdict::Broken("it hangs".into()));
    assert_eq!(health().await, all(UNHEALTHY));
    assert_eq!(ready(), ["a guest to start on KVM here: it hangs"]);
    assert!(plugin.allocate(request.clone()).await.unwrap_err().message().contains("it hangs"));
    verdict.send_replace(Verdict::Works);
    assert_eq!(health().await, all(HEALTHY));
    plugin.allocate(request).await.unwrap();

    stop.cancel();
    tokio::time::timeout(PATIENCE, offering).await.expect("it does not stop").unwrap();
    assert!(!folder.0.join(SOCKET).exists(), "the socket is left behind");
    assert_eq!(health().await, None, "kubelet is not told that the plugin went");
}

#[tokio::test]
async fn a_kubelet_that_restarted_hears_of_it_again() {
    let folder = Folder::new();
    let (first, mut heard_first) = kubelet(&folder);
    let (_verdict, seen) = watch::channel(Verdict::Works);
    let stop = CancellationToken::new();
    tokio::spawn(Offer::new(&folder.0, 1, seen).keep(stop.clone()));
    heard(&mut heard_first).await;
    for _ in 0..2 {
        first.abort();
        let (_serving, mut heard_next) = kubelet(&folder);
        heard(&mut heard_next).await;
        plugin(&folder).await.list_and_watch(Empty {}).await.unwrap();
    }
    stop.cancel();
}

#[tokio::test]
async fn nothing_is_offered_where_no_guest_starts() {
    let folder = Folder::new();
    let (_serving, mut kubelet) = kubelet(&folder);
    let (verdict, seen) = watch::channel(Verdict::Unknown);
    let (offer, stop) = (Offer::new(&folder.0, 1, seen), CancellationToken::new());
    let ready = offer.readiness();
    tokio::spawn(offer.keep(stop.clone()));
    assert_eq!(ready(), ["the first probe"]);
    verdict.send_replace(Verdict::Broken("there is no /dev/kvm".into()));
    assert!(tokio::time::timeout(Duration::from_millis(300), kubelet.recv()).await.is_err(), "it registered");
    assert!(!folder.0.join(SOCKET).exists());
    assert_eq!(ready(), ["a guest to start on KVM here: there is no /dev/kvm"]);
    // Somebody repaired it.
    verdict.send_replace(Verdict::Works);
    heard(&mut kubelet).await;
    stop.cancel();
}

#[tokio::test]
async fn an_absent_kubelet_is_waited_for() {
    let folder = Folder::new();
    let (_verdict, seen) = watch::channel(Verdict::Works);
    let (offer, stop) = (Offer::new(&folder.0, 1, seen), CancellationToken::new());
    let ready = offer.readiness();
    tokio::spawn(offer.keep(stop.clone()));
    let said = async {
        while !ready().concat().contains("kubelet.sock is not there") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, said).await.expect("it does not say what it waits for");
    let (_serving, mut kubelet) = kubelet(&folder);
    heard(&mut kubelet).await;
    stop.cancel();
}
