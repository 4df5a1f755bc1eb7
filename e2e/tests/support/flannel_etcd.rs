//! The etcd of the Flannel overlay on free ports of the loopback device: one member or several, with certificates that are made
//! here, asking whoever comes for one.
//!
//! It leaves nothing behind: what it wrote lies in a temporary folder, and it dies with the thread that started it.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use giantnetes::{
    flannel::etcd::{Client, Target, auth::ROOT},
    pki::{
        embedded::{self, Pair},
        leaf::{Authority, Leaf, Usage},
    },
    runtime::lease::Leadership,
};
use k8s_openapi::jiff::Timestamp;
use lab::{command::Run, tools::Tools, wait_for};
use secrecy::ExposeSecret as _;

use super::processes::{Process, free_port, spawn, tied};

/// How long members may take to serve, on a machine that builds something at the same time.
const START: Duration = Duration::from_secs(90);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A running etcd. Dropping it ends it and removes its folder, unless the test failed.
pub struct FlannelEtcd {
    folder: PathBuf,
    authority: Pair,
    members: Vec<Member>,
}

struct Member {
    port: u16,
    /// None: it was killed.
    process: Option<Process>,
}

/// An authority that signs certificates for etcd and its clients.
pub fn authority() -> Pair {
    embedded::root("flannel", "test", Timestamp::now(), 10 * DAY).unwrap()
}

/// A client's certificate for this user.
pub fn certificate(authority: &Pair, user: &str) -> Pair {
    sign(authority, user, Usage::Client)
}

fn sign(authority: &Pair, common_name: &str, usage: Usage) -> Pair {
    let addresses = if usage == Usage::Client { vec![] } else { vec![[127, 0, 0, 1].into()] };
    let leaf = Leaf {
        name: "flannel",
        // It says which root of a guest signs; this one is no guest's.
        authority: Authority::Etcd,
        common_name: common_name.into(),
        organisations: vec![],
        dns: vec![],
        addresses,
        usage,
    };
    embedded::sign(authority, &leaf, Timestamp::now(), DAY).unwrap()
}

impl FlannelEtcd {
    /// Starts so many members and waits until all serve.
    ///
    /// # Errors
    /// If they do not come up in time.
    pub fn start(name: &str, members: usize) -> Result<Self> {
        let tools = Tools::locate()?;
        let program = tools.etcd.join("etcd");
        ensure!(program.is_file(), "{} is missing: `make tools` builds it", program.display());
        let folder = std::env::temp_dir().join(format!("giantnetes-flannel-etcd-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder)?;
        let mut etcd = Self { folder, authority: authority(), members: Vec::new() };
        let server = sign(&etcd.authority, "flannel-etcd", Usage::Server);
        fs::write(etcd.file("ca.crt"), &etcd.authority.certificate)?;
        fs::write(etcd.file("tls.crt"), &server.certificate)?;
        fs::write(etcd.file("tls.key"), server.key.expose_secret())?;
        let ports = (0..members).map(|_| Ok((free_port()?, free_port()?))).collect::<Result<Vec<_>>>()?;
        let peers = ports.iter().enumerate().map(|(index, (_, peer))| format!("m{index}=http://127.0.0.1:{peer}"));
        let cluster = peers.collect::<Vec<_>>().join(",");
        for (index, (port, peer)) in ports.into_iter().enumerate() {
            let (client, peer) = (format!("https://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer}"));
            let of = |name: &str| etcd.file(name).display().to_string();
            let mut command = tied(&program);
            command.args([
                format!("--name=m{index}"),
                format!("--data-dir={}", of(&format!("m{index}"))),
                format!("--listen-client-urls={client}"),
                format!("--advertise-client-urls={client}"),
                format!("--listen-peer-urls={peer}"),
                format!("--initial-advertise-peer-urls={peer}"),
                format!("--initial-cluster={cluster}"),
                format!("--initial-cluster-token={name}"),
                "--client-cert-auth".into(),
                format!("--trusted-ca-file={}", of("ca.crt")),
                format!("--cert-file={}", of("tls.crt")),
                format!("--key-file={}", of("tls.key")),
                "--enable-grpc-gateway=false".into(),
                "--max-txn-ops=4096".into(),
                "--log-level=warn".into(),
            ]);
            let process = Some(spawn(&mut command, &etcd.file(&format!("m{index}.log")))?);
            etcd.members.push(Member { port, process });
        }
        for index in 0..members {
            etcd.await_member(index)?;
        }
        Ok(etcd)
    }

    fn await_member(&mut self, index: usize) -> Result<()> {
        wait_for(START, &format!("member {index} of etcd to serve"), || {
            let process = self.members[index].process.as_mut().context("it was killed")?;
            let ended = process.0.try_wait()?;
            ensure!(ended.is_none(), "it ended: {}", fs::read_to_string(self.file(&format!("m{index}.log")))?);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async { self.client_of(index, &self.certificate(ROOT), None).auth_status().await })?;
            Ok(())
        })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The URL of a member.
    pub fn url(&self, member: usize) -> String {
        format!("https://127.0.0.1:{}", self.members[member].port)
    }

    /// What signs its certificates and its clients' (PEM).
    pub fn authority(&self) -> &str {
        &self.authority.certificate
    }

    /// A certificate for this user.
    pub fn certificate(&self, user: &str) -> Pair {
        certificate(&self.authority, user)
    }

    /// A client of the first member, as this user. It lives in the runtime that it is made in.
    pub fn client(&self, user: &str) -> Client {
        self.client_of(0, &self.certificate(user), None)
    }

    /// A client of a member.
    pub fn client_of(&self, member: usize, identity: &Pair, leadership: Option<Leadership>) -> Client {
        let target = Target { endpoint: &self.url(member), authority: self.authority(), identity };
        Client::new(&target, leadership).unwrap()
    }

    /// Kills a member, as nothing but `kill -9` does.
    pub fn kill(&mut self, member: usize) {
        self.members[member].process = None;
    }

    /// Sends a member a signal, such as `STOP`.
    ///
    /// # Errors
    /// If there is no such process.
    pub fn signal(&self, member: usize, signal: &str) -> Result<()> {
        let process = self.members[member].process.as_ref().context("it was killed")?;
        Run::new("kill").args([format!("-{signal}"), process.id().to_string()]).output().map(drop)
    }
}

impl Drop for FlannelEtcd {
    fn drop(&mut self) {
        self.members.clear();
        if std::thread::panicking() {
            println!("    what etcd wrote is kept in {}", self.folder.display());
        } else {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// What something comes to, and how long it takes.
pub async fn timed<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let began = Instant::now();
    let done = work.await;
    (done, began.elapsed())
}
