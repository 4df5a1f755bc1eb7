//! Being registered with kubelet, whatever becomes of it.
//!
//! A kubelet that starts removes every plugin's socket, makes its own anew and knows of nobody: both are signs to register
//! again.

use std::{
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use futures::{Stream, stream};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::watch,
};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Endpoint, Server};
use tracing::{info, warn};

use super::{
    api::{
        self, KUBELET_SOCKET, RegisterRequest, device_plugin_server::DevicePluginServer,
        registration_client::RegistrationClient,
    },
    probing::Verdict,
    service::Service,
};
use crate::{
    api::names,
    runtime::{chain, http::Check},
};

/// File name of our socket.
pub const SOCKET: &str = "giantnetes-kvm.sock";
/// Longest time that a call may take, in either direction.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How often is looked whether kubelet is still the one that knows us.
const LOOK: Duration = Duration::from_secs(1);
/// Pause before a registration that failed is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// Why nothing is registered.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("kubelet's socket {0} is not there")]
    NoKubelet(String),
    #[error("make the socket {path}")]
    Socket {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("serve kubelet")]
    Serve(#[source] tonic::transport::Error),
    #[error("connect to kubelet")]
    Connect(#[source] tonic::transport::Error),
    #[error("register with kubelet: {0}")]
    Register(String),
    #[error("register with kubelet: no answer in {} s", CALL_TIMEOUT.as_secs())]
    TimedOut,
}

/// The offer of the device to one kubelet.
#[derive(Debug)]
pub struct Offer {
    folder: PathBuf,
    devices: u16,
    verdict: watch::Receiver<Verdict>,
    /// Why kubelet does not know of us.
    missing: watch::Sender<Option<String>>,
}

impl Offer {
    /// An offer of `devices` devices, by a socket in `folder`, as long as the verdict is good.
    pub fn new(folder: &Path, devices: u16, verdict: watch::Receiver<Verdict>) -> Self {
        let missing = watch::Sender::new(Some("the registration with kubelet".to_owned()));
        Self { folder: folder.to_owned(), devices, verdict, missing }
    }

    /// What keeps the device from being offered.
    pub fn readiness(&self) -> Check {
        let (verdict, missing) = (self.verdict.clone(), self.missing.subscribe());
        std::sync::Arc::new(move || match &*verdict.borrow() {
            Verdict::Unknown => vec!["the first probe".into()],
            Verdict::Broken(why) => vec![format!("a guest to start on KVM here: {why}")],
            Verdict::Works => missing.borrow().iter().cloned().collect(),
        })
    }

    /// Keeps the offer up until `stop`, from the first good verdict on. After a bad one the devices are there, and unhealthy.
    pub async fn keep(mut self, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => return,
            seen = self.verdict.wait_for(|verdict| *verdict == Verdict::Works) => if seen.is_err() { return },
        }
        loop {
            let served = tokio::select! {
                () = stop.cancelled() => return,
                served = self.serve() => served,
            };
            let pause = match served {
                Ok(()) => {
                    info!("kubelet is another one: registering again");
                    self.missing.send_replace(Some("the registration with kubelet".to_owned()));
                    Duration::ZERO
                }
                Err(error) => {
                    let error = chain(&error);
                    if self.missing.send_replace(Some(error.clone())) != Some(error.clone()) {
                        warn!(error, "not registered; it is tried again");
                    }
                    RETRY
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Serves and registers. Returns when kubelet is another one.
    async fn serve(&self) -> Result<(), Error> {
        let kubelet = self.folder.join(KUBELET_SOCKET);
        let known = Fingerprint::of(&kubelet).ok_or_else(|| Error::NoKubelet(kubelet.display().to_string()))?;
        let socket = Socket::bind(self.folder.join(SOCKET))?;
        let end = CancellationToken::new();
        let _end_streams = end.clone().drop_guard();
        let service = Service { devices: self.devices, verdict: self.verdict.clone(), end: end.clone() };
        let server = Server::builder().timeout(CALL_TIMEOUT).serve_with_incoming_shutdown(
            DevicePluginServer::new(service),
            socket.connections(),
            end.cancelled(),
        );
        let registered = async {
            // kubelet connects back before it answers, so the server runs beside this.
            register(&kubelet).await?;
            self.missing.send_replace(None);
            info!(resource = names::KVM_RESOURCE, devices = self.devices, "registered with kubelet");
            while Fingerprint::of(&kubelet) == Some(known) && socket.is_there() {
                tokio::time::sleep(LOOK).await;
            }
            Ok(())
        };
        tokio::select! {
            served = server => served.map_err(Error::Serve),
            registered = registered => registered,
        }
    }
}

async fn register(kubelet: &Path) -> Result<(), Error> {
    let call = async {
        let endpoint = Endpoint::from_shared(format!("unix://{}", kubelet.display())).map_err(Error::Connect)?;
        let channel = endpoint.connect().await.map_err(Error::Connect)?;
        let request = RegisterRequest {
            version: api::VERSION.into(),
            endpoint: SOCKET.into(),
            resource_name: names::KVM_RESOURCE.into(),
            options: None,
        };
        let answer = RegistrationClient::new(channel).register(request).await;
        answer.map_err(|status| Error::Register(format!("{}: {}", status.code(), status.message())))
    };
    tokio::time::timeout(CALL_TIMEOUT, call).await.map_err(|_| Error::TimedOut)?.map(drop)
}

/// What tells a file from another of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fingerprint {
    device: u64,
    inode: u64,
    /// Inodes are used again.
    changed: (i64, i64),
}

impl Fingerprint {
    fn of(path: &Path) -> Option<Self> {
        let meta = std::fs::metadata(path).ok()?;
        Some(Self { device: meta.dev(), inode: meta.ino(), changed: (meta.ctime(), meta.ctime_nsec()) })
    }
}

/// Our socket. Dropping it removes the file.
#[derive(Debug)]
struct Socket {
    path: PathBuf,
    listener: UnixListener,
}

impl Socket {
    fn bind(path: PathBuf) -> Result<Self, Error> {
        let failed = |source| Error::Socket { path: path.display().to_string(), source };
        match std::fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let listener = UnixListener::bind(&path).map_err(failed)?;
        Ok(Self { path, listener })
    }

    fn is_there(&self) -> bool {
        self.path.exists()
    }

    fn connections(&self) -> impl Stream<Item = io::Result<UnixStream>> {
        stream::try_unfold(&self.listener, |listener| async move {
            let (connection, _) = listener.accept().await?;
            Ok(Some((connection, listener)))
        })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
