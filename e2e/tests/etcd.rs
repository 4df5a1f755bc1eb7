//! The members of a control plane's etcd: how they find each other, and what becomes of one whose volume is lost. Real etcd, by
//! the command lines and the script that are rendered for its nodes; instead of a VM each has a network namespace, and instead
//! of systemd this test, which does what the unit says.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::{fs::PermissionsExt, net::UnixDatagram},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use giantnetes::{
    cluster::Valid,
    node_config::{self, Blank},
    pki::{
        embedded::{self, Pair},
        leaf::{self, Authority},
    },
    settings::Settings,
};
use k8s_openapi::jiff::Timestamp;
use lab::{command::Run, tools::Tools, wait_for};
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use support::processes::{Process, spawn};

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// How long a member is watched that must not do something.
const WATCHED: Duration = Duration::from_secs(8);

fn cluster(masters: u32) -> Valid {
    let settings: Settings =
        serde_saphyr::from_str("kubernetes: {defaultVersion: v1.36.3, images: {v1.36.3: a}}").unwrap();
    let cluster = serde_json::from_value(json!({
        "apiVersion": "giantnetes.io/v1alpha1", "kind": "Cluster", "spec": {"controlPlane": {"replicas": masters}},
        "metadata": {"name": "demo", "namespace": "a", "uid": "9f2c6a50-6f3e-4a39-9e0b-0d9f4c1f7a11"},
    }))
    .unwrap();
    Valid::new(&cluster, &settings).unwrap()
}

fn ip(index: u32) -> String {
    format!("172.26.0.{}", 10 + index)
}

/// A network with a namespace for each of three nodes. It goes when this is dropped, and all that runs there with it.
struct World {
    prefix: String,
    folder: PathBuf,
    etcd: PathBuf,
    authority: Pair,
    /// Those that were booted, by their index.
    members: BTreeMap<u32, Member>,
}

/// One node's etcd.
struct Member {
    /// Its unit's ExecStartPre, and then etcd itself. It ends when this is dropped.
    _process: Process,
    /// Where etcd says that it is up.
    notify: UnixDatagram,
}

impl World {
    fn new(name: &str) -> Self {
        let prefix = format!("etcd{}{}", name.chars().next().unwrap(), std::process::id() % 10_000);
        let folder = std::env::temp_dir().join(format!("giantnetes-{prefix}"));
        let authority = embedded::root("etcd", "a/demo", Timestamp::now(), 10 * DAY).unwrap();
        let etcd = Tools::locate().unwrap().etcd;
        let world = Self { prefix, folder, etcd, authority, members: BTreeMap::new() };
        let net = world.namespace("net");
        world.ip(&format!("-n {net} link add name net0 type bridge"));
        world.ip(&format!("-n {net} link set net0 up"));
        for index in 0..3 {
            let namespace = world.namespace(&index.to_string());
            world.ip(&format!("-n {net} link add name p{index} type veth peer name overlay netns {namespace}"));
            world.ip(&format!("-n {net} link set dev p{index} master net0 up"));
            world.ip(&format!("-n {namespace} addr add {}/20 dev overlay", ip(index)));
            world.ip(&format!("-n {namespace} link set overlay up"));
            world.give_keys(index);
        }
        world
    }

    fn namespace(&self, name: &str) -> String {
        let namespace = format!("{}-{name}", self.prefix);
        self.ip(&format!("netns add {namespace}"));
        self.ip(&format!("-n {namespace} link set lo up"));
        namespace
    }

    fn ip(&self, words: &str) {
        Run::new("ip").args(words.split(' ')).output().unwrap();
    }

    fn path(&self, index: u32, name: &str) -> PathBuf {
        self.folder.join(index.to_string()).join(name)
    }

    fn give_keys(&self, index: u32) {
        let pki = self.path(index, "pki");
        fs::create_dir_all(&pki).unwrap();
        fs::write(pki.join("etcd-ca.crt"), &self.authority.certificate).unwrap();
        for leaf in leaf::of_master(&cluster(3), index).iter().filter(|leaf| leaf.authority == Authority::Etcd) {
            let pair = embedded::sign(&self.authority, leaf, Timestamp::now(), DAY).unwrap();
            fs::write(pki.join(format!("{}.crt", leaf.name)), pair.certificate).unwrap();
            fs::write(pki.join(format!("{}.key", leaf.name)), pair.key.expose_secret()).unwrap();
        }
    }

    /// What is rendered, with this node's folder in the place of a VM's paths.
    fn here(&self, index: u32, text: &str) -> String {
        let of = |name: &str| self.path(index, name).display().to_string();
        text.replace("/etc/kubernetes/pki", &of("pki"))
            .replace("/var/lib/etcd/data", &of("data"))
            .replace("/run/giantnetes-etcd-place", &of("environment"))
            .replace("/usr/local/bin/etcd", &self.etcd.join("etcd").display().to_string())
    }

    /// Boots a node of a control plane of so many.
    fn boot(&mut self, masters: u32, index: u32, blank: Blank) {
        let config = node_config::control_plane(&cluster(masters), index, blank);
        let unit = &config.file("/etc/systemd/system/etcd.service").unwrap().content;
        let script = self.path(index, "place");
        let find = match config.file("/usr/local/sbin/giantnetes-etcd-place") {
            None => "true".to_owned(),
            Some(file) => {
                for line in ["ExecStartPre=/usr/local/sbin/giantnetes-etcd-place find\n", "EnvironmentFile=-/run/gian"]
                {
                    assert!(unit.contains(line), "{unit}");
                }
                fs::write(&script, self.here(index, &file.content)).unwrap();
                fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
                format!("{} find", script.display())
            }
        };
        // What is in /run goes when a machine does.
        let environment = self.path(index, "environment");
        let _ = fs::remove_file(&environment);
        let socket = self.path(index, "notify");
        let _ = fs::remove_file(&socket);
        let notify = UnixDatagram::bind(&socket).unwrap();
        notify.set_nonblocking(true).unwrap();
        let read = format!("[ ! -e {0} ] || . {0}", environment.display());
        let argv: Vec<_> = config.argv("etcd").unwrap().iter().map(|word| self.here(index, word)).collect();
        let mut command = self.command(index, "sh");
        command
            .args(["-c", &format!("{find} && set -a && {{ {read}; }} && set +a && exec \"$@\"")])
            .args([&["sh".to_owned()], &argv[..]].concat());
        command.env("NOTIFY_SOCKET", &socket);
        let process = spawn(&mut command, &self.path(index, "log")).unwrap();
        self.members.insert(index, Member { _process: process, notify });
    }

    /// A program in a node's namespace, which ends with this test.
    fn command(&self, index: u32, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &format!("{}-{index}", self.prefix), "setpriv", "--pdeathsig", "KILL", "--"]);
        let path = format!("{}:{}", self.etcd.display(), std::env::var("PATH").unwrap());
        command.arg(program).env("PATH", path);
        command
    }

    /// Waits until a member is up and has a vote, as its unit does.
    fn is_up(&self, index: u32) -> Result<()> {
        let socket = &self.members.get(&index).context("it was not booted")?.notify;
        wait_for(MINUTE, &format!("etcd {index} to be up"), || {
            let mut said = [0; 256];
            let length = socket.recv(&mut said)?;
            let said = String::from_utf8_lossy(&said[..length]);
            ensure!(said.contains("READY=1"), "{said}");
            Ok(())
        })
        .with_context(|| self.last_words(index))?;
        if self.path(index, "place").exists() {
            let script = self.path(index, "place");
            let mut vote = self.command(index, "timeout");
            let output = vote.arg("60").arg(script).arg("vote").output()?;
            ensure!(output.status.success(), "no vote for {index}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// All at once, as units of several nodes are.
    fn are_up(&self, indices: std::ops::Range<u32>) -> Result<()> {
        std::thread::scope(|scope| {
            let all: Vec<_> = indices.map(|index| scope.spawn(move || self.is_up(index))).collect();
            all.into_iter().try_for_each(|one| one.join().unwrap())
        })
    }

    fn last_words(&self, index: u32) -> String {
        let log = fs::read_to_string(self.path(index, "log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().rev().take(12).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    fn kill(&mut self, index: u32) {
        self.members.remove(&index);
    }

    fn lose_volume(&mut self, index: u32) {
        self.kill(index);
        fs::remove_dir_all(self.path(index, "data")).unwrap();
    }

    fn has_data(&self, index: u32) -> bool {
        self.path(index, "data").exists()
    }

    /// etcdctl, asking one member.
    fn ask(&self, index: u32, words: &[&str]) -> Result<String> {
        let mut command = self.command(index, "etcdctl");
        let (pki, url) = (self.path(index, "pki"), format!("https://{}:2379", ip(index)));
        for (option, value) in [("endpoints", Path::new(&url)), ("cacert", &pki.join("etcd-ca.crt"))] {
            command.arg(format!("--{option}={}", value.display()));
        }
        command.arg(format!("--cert={}", pki.join("apiserver-etcd-client.crt").display()));
        command.arg(format!("--key={}", pki.join("apiserver-etcd-client.key").display()));
        let output = command.args(["--command-timeout=10s"]).args(words).stdin(Stdio::null()).output()?;
        if !output.status.success() {
            bail!("etcdctl {words:?} at {index}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The cluster's id, and names of its members that have a vote.
    fn voters(&self, index: u32) -> Result<(u64, Vec<String>)> {
        let list: Value = serde_json::from_str(&self.ask(index, &["member", "list", "-w", "json"])?)?;
        let members = list["members"].as_array().context("no members")?;
        let voters = members.iter().filter(|member| member["isLearner"] != true);
        let mut names: Vec<_> = voters.filter_map(|member| Some(member["name"].as_str()?.to_owned())).collect();
        names.sort();
        Ok((list["header"]["cluster_id"].as_u64().context("no id")?, names))
    }

    fn are_three(&self) -> Result<u64> {
        let (id, names) = self.voters(0)?;
        ensure!(names == ["master-0", "master-1", "master-2"], "{names:?}");
        for index in 1..3 {
            ensure!(self.voters(index)? == (id, names.clone()), "{index} is in another cluster");
        }
        Ok(id)
    }

    fn get(&self, index: u32, key: &str) -> Result<String> {
        Ok(self.ask(index, &["get", "--print-value-only", key])?.trim().to_owned())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.members.clear();
        for name in ["0", "1", "2", "net"] {
            let _ = Run::new("ip").args(["netns", "del", &format!("{}-{name}", self.prefix)]).output();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn timed<T>(what: &str, work: impl FnOnce() -> Result<T>) -> T {
    let started = Instant::now();
    let done = work().unwrap_or_else(|error| panic!("{what}: {error:#}"));
    println!("    {what}: {:.1?}", started.elapsed());
    done
}

#[test]
fn three_find_each_other_and_a_lost_volume_comes_back_empty_handed() {
    let mut world = World::new("three");
    // The others are there first, and wait.
    for index in [2, 1] {
        world.boot(3, index, Blank::Joins);
    }
    world.boot(3, 0, Blank::Forms);
    let id = timed("three members of one cluster", || {
        world.are_up(0..3)?;
        world.are_three()
    });
    world.ask(1, &["put", "kept", "by all"]).unwrap();

    timed("all of them killed, and back", || {
        (0..3).for_each(|index| world.kill(index));
        (0..3).for_each(|index| world.boot(3, index, Blank::Joins));
        world.are_up(0..3)?;
        ensure!(world.are_three()? == id && world.get(2, "kept")? == "by all");
        Ok(())
    });

    timed("a member whose volume is lost", || {
        world.lose_volume(2);
        world.boot(3, 2, Blank::Joins);
        world.is_up(2)?;
        ensure!(world.are_three()? == id && world.get(2, "kept")? == "by all");
        Ok(())
    });

    // That it was formed may not be recorded yet: then the others know.
    timed("the first member's volume is lost at once", || {
        world.lose_volume(0);
        world.boot(3, 0, Blank::Forms);
        world.is_up(0)?;
        ensure!(world.are_three()? == id && world.get(0, "kept")? == "by all");
        Ok(())
    });

    // Killed between the word that it comes and its start.
    timed("a member that died on its way in", || {
        world.lose_volume(1);
        let script = world.path(1, "place");
        let found = world.command(1, "timeout").arg("60").arg(script).arg("find").output()?;
        ensure!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
        let list = world.ask(0, &["member", "list"])?;
        ensure!(list.contains(", unstarted, ") && !world.has_data(1), "{list}");
        world.boot(3, 1, Blank::Joins);
        world.is_up(1)?;
        ensure!(world.are_three()? == id && world.get(1, "kept")? == "by all");
        Ok(())
    });

    timed("the first one's volume is lost while the others are away", || {
        // With the next entries a member's disk says that those before are settled. Without them, who dies at once remembers the
        // votes of before.
        for value in ["by", "all"] {
            world.ask(1, &["put", "later", value])?;
        }
        (0..3).for_each(|index| world.kill(index));
        world.lose_volume(0);
        world.boot(3, 0, Blank::Joins);
        // An absence can only be watched for a while.
        std::thread::sleep(WATCHED);
        ensure!(!world.has_data(0), "it began anew");
        for index in 1..3 {
            world.boot(3, index, Blank::Joins);
        }
        world.are_up(0..3)?;
        ensure!(world.are_three()? == id && world.get(0, "kept")? == "by all");
        Ok(())
    });
}

#[test]
fn a_lone_member_becomes_one_of_three() {
    let mut world = World::new("grown");
    world.boot(1, 0, Blank::Forms);
    world.is_up(0).unwrap();
    world.ask(0, &["put", "kept", "alone"]).unwrap();
    let (id, names) = world.voters(0).unwrap();
    assert_eq!(names, ["master-0"]);
    // As it is replaced, and with it comes what it needs to know of others.
    world.kill(0);
    world.boot(3, 0, Blank::Joins);
    timed("the lone one, made for three", || world.is_up(0));
    for index in 1..3 {
        world.boot(3, index, Blank::Joins);
    }
    timed("two more", || {
        world.are_up(1..3)?;
        ensure!(world.are_three()? == id && world.get(2, "kept")? == "alone");
        Ok(())
    });
}
