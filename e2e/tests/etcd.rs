//! The members of a control plane's etcd: how they find each other, and what becomes of one whose volume is lost. Real etcd, by
//! the command lines and the script that are rendered for its nodes; instead of a VM each has a network namespace, and instead
//! of systemd this test, which does what the unit says.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::{fs::PermissionsExt, net::UnixDatagram},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use giantnetes::node_config::{self, Blank};
use lab::{command::Run, wait_for};
use serde_json::{Value, json};
use support::{
    node::{Authorities, NodeHome, cluster, ip},
    processes::{Process, spawn},
};

const MINUTE: Duration = Duration::from_secs(60);
/// How long a member is watched that must not do something.
const WATCHED: Duration = Duration::from_secs(8);

fn control_plane(masters: u32) -> Value {
    json!({"controlPlane": {"replicas": masters}})
}

fn address(index: u32) -> String {
    format!("172.26.0.{}", 10 + index)
}

/// A network with a namespace for each of three nodes. It goes when this is dropped, and all that runs there with it.
struct World {
    /// Those that were booted, by their index.
    members: BTreeMap<u32, Member>,
    homes: Vec<NodeHome>,
    net: String,
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
        let prefix = format!("etcd-{name}-{}", std::process::id());
        let net = format!("{prefix}-net");
        ip(&format!("netns add {net}"));
        ip(&format!("-n {net} link add name net0 type bridge"));
        ip(&format!("-n {net} link set net0 up"));
        let homes = (0..3).map(|index| NodeHome::new(&format!("{prefix}-{index}"))).collect();
        let world = Self { members: BTreeMap::new(), homes, net };
        let (net, authorities) = (&world.net, Authorities::new("a/demo"));
        for (index, home) in (0..).zip(&world.homes) {
            let namespace = &home.namespace;
            ip(&format!("-n {net} link add name p{index} type veth peer name overlay netns {namespace}"));
            ip(&format!("-n {net} link set dev p{index} master net0 up"));
            ip(&format!("-n {namespace} addr add {}/20 dev overlay", address(index)));
            ip(&format!("-n {namespace} link set overlay up"));
            home.keep_masters_keys(&cluster("demo", &control_plane(3)), index, &authorities);
        }
        world
    }

    fn home(&self, index: u32) -> &NodeHome {
        &self.homes[usize::try_from(index).unwrap()]
    }

    /// Boots a node of a control plane of so many.
    fn boot(&mut self, masters: u32, index: u32, blank: Blank) {
        let home = self.home(index);
        let config = node_config::control_plane(&cluster("demo", &control_plane(masters)), index, blank);
        let unit = &config.file("/etc/systemd/system/etcd.service").unwrap().content;
        let script = home.path("place");
        let find = match config.file("/usr/local/sbin/giantnetes-etcd-place") {
            None => "true".to_owned(),
            Some(file) => {
                for line in [
                    "EnvironmentFile=-/run/giantnetes-etcd-place\n",
                    "ExecStartPre=/usr/local/sbin/giantnetes-etcd-place find\n",
                    "ExecStartPost=/usr/local/sbin/giantnetes-etcd-place vote\n",
                    "TimeoutStartSec=infinity\n",
                ] {
                    assert!(unit.contains(line), "{unit}");
                }
                fs::write(&script, home.here(&file.content)).unwrap();
                fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
                format!("{} find", script.display())
            }
        };
        // What is in /run goes when a machine does.
        let environment = home.path("environment");
        let _ = fs::remove_file(&environment);
        let socket = home.path("notify");
        let _ = fs::remove_file(&socket);
        let notify = UnixDatagram::bind(&socket).unwrap();
        notify.set_nonblocking(true).unwrap();
        let read = format!("[ ! -e {0} ] || . {0}", environment.display());
        let argv: Vec<_> = config.argv("etcd").unwrap().iter().map(|word| home.here(word)).collect();
        let mut command = home.command("sh");
        command
            .args(["-c", &format!("{find} && set -a && {{ {read}; }} && set +a && exec \"$@\"")])
            .args([&["sh".to_owned()], &argv[..]].concat());
        command.env("NOTIFY_SOCKET", &socket);
        let process = spawn(&mut command, &home.path("log")).unwrap();
        self.members.insert(index, Member { _process: process, notify });
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
        let script = self.home(index).path("place");
        if script.exists() {
            let output = self.home(index).command("timeout").arg("60").arg(script).arg("vote").output()?;
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
        let log = fs::read_to_string(self.home(index).path("log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().rev().take(12).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    fn kill(&mut self, index: u32) {
        self.members.remove(&index);
    }

    fn lose_volume(&mut self, index: u32) {
        self.kill(index);
        fs::remove_dir_all(self.home(index).path("data")).unwrap();
    }

    fn has_data(&self, index: u32) -> bool {
        self.home(index).path("data").exists()
    }

    /// etcdctl, asking one member.
    fn ask(&self, index: u32, words: &[&str]) -> Result<String> {
        let mut command = self.home(index).etcdctl(&address(index));
        let output = command.args(words).stdin(Stdio::null()).output()?;
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
        let _ = Run::new("ip").args(["netns", "del", &self.net]).output();
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
        let script = world.home(1).path("place");
        let found = world.home(1).command("timeout").arg("60").arg(script).arg("find").output()?;
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
