//! Network namespaces, and what is done inside of them.

use std::{
    fs::File,
    io::Write as _,
    os::fd::AsFd as _,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A network namespace, which goes when this is dropped.
pub struct Namespace(String);

impl Namespace {
    pub fn new(name: String) -> Self {
        run(&format!("ip netns add {name}"));
        let namespace = Self(name);
        namespace.ip("link set lo up");
        namespace
    }

    pub fn name(&self) -> &str {
        &self.0
    }

    /// What `work` answers inside. A socket stays where it was made, whoever uses it afterwards.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        inside(&self.0, work)
    }

    /// Sets a value under `/proc/sys/net`.
    pub fn set(&self, key: &str, value: &str) {
        self.inside(|| std::fs::write(format!("/proc/sys/net/{key}"), value)).unwrap();
    }

    #[track_caller]
    pub fn ip(&self, line: &str) -> String {
        run(&format!("ip -n {} {line}", self.0))
    }

    #[track_caller]
    pub fn run(&self, line: &str) -> String {
        run(&format!("ip netns exec {} {line}", self.0))
    }

    /// Runs a script of bash's with something to read, as this user, and answers whether it succeeded.
    pub fn feed(&self, user: u32, script: &str, input: &[u8]) -> bool {
        let user = user.to_string();
        let mut child = Command::new("ip")
            .args(["netns", "exec", &self.0, "setpriv", "--reuid", &user, "--regid", &user, "--clear-groups"])
            .args(["bash", "-c", script])
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // It may end without having read.
        let _ = child.stdin.take().unwrap().write_all(input);
        child.wait().unwrap().success()
    }
}

/// What `work` answers inside of a namespace with this name.
pub fn inside<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> T {
    let place = File::open(format!("/run/netns/{name}")).unwrap();
    // A thread of its own: threads that other tests use stay outside.
    let in_thread = || {
        move_into_link_name_space(place.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        work()
    };
    thread::scope(|scope| scope.spawn(in_thread).join()).unwrap()
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = try_run(&format!("ip netns del {}", self.0));
    }
}

/// Runs a program and answers whether it succeeded, and what it said.
pub fn try_run(line: &str) -> (bool, String) {
    let words: Vec<_> = line.split_whitespace().collect();
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[track_caller]
pub fn run(line: &str) -> String {
    let (well, text) = try_run(line);
    assert!(well, "{line}: {text}");
    text
}

#[track_caller]
pub fn until(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}");
        thread::sleep(Duration::from_millis(50));
    }
    start.elapsed()
}
