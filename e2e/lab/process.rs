//! Servers: started so that a record of them exists before they run, found again by it, and ended by it.
//!
//! ```text
//!   lab up ── lab exec-recorded ── joins the cgroup, writes {pid, start time} ── exec nsenter ── exec server
//! ```
//! The process id stays the same through all of it. A process id alone may be another process tomorrow; with the start
//! time it is unique until the machine restarts.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::cgroup;
use crate::network::netns_file;
use crate::paths::{Paths, write_whole};
use crate::state::Lock;
use crate::topology::{MACHINE, Room};
use crate::wait::wait_for;

/// A server as it should run.
#[derive(Debug, Clone)]
pub struct Server {
    /// Name of its record and its log: `etcd`, `host1-kubelet`.
    pub name: String,
    /// Where it runs.
    pub room: Room,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Files it reads at its start only: another content needs another start.
    pub config: Vec<PathBuf>,
}

/// What is remembered about a server that was started.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// The server's name.
    pub name: String,
    /// Its process id.
    pub pid: i32,
    /// When it started, in the kernel's ticks since boot.
    pub start: u64,
    /// Hash of the arguments and configuration it was started with.
    pub fingerprint: String,
}

impl Record {
    /// Whether that very process still runs.
    pub fn alive(&self) -> bool {
        start_time(self.pid) == Some(self.start)
    }

    /// Stops that very process where it is, as if the machine had forgotten it.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Sends a signal to that very process. It having ended is no error.
    fn signal(&self, signal: Signal) {
        let Some(pid) = Pid::from_raw(self.pid) else { return };
        // The descriptor pins the process; only then is it looked at. So no other process can be hit, however fast
        // the number is used again.
        if let Ok(process) = pidfd_open(pid, PidfdFlags::empty())
            && self.alive()
        {
            let _ = pidfd_send_signal(&process, signal);
        }
    }
}

/// Start time of a process that has not ended.
fn start_time(pid: i32) -> Option<u64> {
    read_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Start time (field 22 of `/proc/PID/stat`, see proc(5)), unless the process has ended.
fn read_stat(stat: &str) -> Option<u64> {
    // The name, in parentheses, may hold anything: fields are counted after its end.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    let threads: u32 = fields.nth(16)?.parse().ok()?;
    // A process that is killed shows its first thread as a zombie while others still hold its files and ports.
    if state == "X" || (state == "Z" && threads <= 1) {
        return None;
    }
    fields.nth(1)?.parse().ok()
}

impl Server {
    /// The server's record, if it was ever started.
    pub fn record(&self, paths: &Paths) -> Option<Record> {
        read_record(&record_file(paths, &self.name))
    }

    /// Starts the server unless it runs already as it should. Says whether it started it.
    ///
    /// # Errors
    /// If it cannot be started; the log's end is in the message.
    pub fn ensure(&self, paths: &Paths, lock: &Lock) -> Result<bool> {
        let fingerprint = self.fingerprint()?;
        if let Some(record) = self.record(paths).filter(Record::alive) {
            if record.fingerprint == fingerprint {
                return Ok(false);
            }
            stop(std::slice::from_ref(&record), Duration::from_secs(5))?;
        }
        self.start(paths, lock, &fingerprint)?;
        Ok(true)
    }

    /// Ends the server if it runs, and starts it.
    ///
    /// # Errors
    /// If it cannot be ended or started.
    pub fn restart(&self, paths: &Paths, lock: &Lock) -> Result<()> {
        if let Some(record) = self.record(paths) {
            stop(std::slice::from_ref(&record), Duration::from_secs(5))?;
        }
        self.start(paths, lock, &self.fingerprint()?)
    }

    fn start(&self, paths: &Paths, lock: &Lock, fingerprint: &str) -> Result<()> {
        let log = self.log(paths);
        std::fs::create_dir_all(paths.logs())?;
        let out = OpenOptions::new().create(true).append(true).open(&log).context("cannot open the log")?;
        let file = record_file(paths, &self.name);
        let _ = std::fs::remove_file(&file);
        let mut child = Command::new(std::env::current_exe().context("cannot find this program's own file")?)
            .args(["exec-recorded", "--name", &self.name, "--fingerprint", fingerprint, "--room", self.room.name, "--"])
            .args(&self.argv)
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .envs(["HOME", "GIANTNETES_CACHE"].iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
            .current_dir("/")
            // Should this process be killed now, the lock is free only when the child has become the server.
            .stdin(Stdio::from(lock.share()?))
            .stderr(Stdio::from(out.try_clone()?))
            .stdout(Stdio::from(out))
            .spawn()
            .with_context(|| format!("cannot start {}", self.name))?;
        wait_for(Duration::from_secs(10), &format!("the start of {}", self.name), || {
            self.check_child(paths, &mut child)?;
            read_record(&file).map(drop).context("it is not recorded yet")
        })
    }

    fn check_child(&self, paths: &Paths, child: &mut Child) -> Result<()> {
        match child.try_wait()? {
            Some(status) => bail!("{} ended with {status}; {}", self.name, self.log_end(paths)),
            None => Ok(()),
        }
    }

    /// Fails if the server has ended, with the end of its log.
    ///
    /// # Errors
    /// If it does not run.
    pub fn check(&self, paths: &Paths) -> Result<()> {
        match self.record(paths) {
            Some(record) if record.alive() => Ok(()),
            _ => bail!("{} does not run; {}", self.name, self.log_end(paths)),
        }
    }

    fn log(&self, paths: &Paths) -> PathBuf {
        paths.logs().join(format!("{}.log", self.name))
    }

    /// The last lines of the log, for an error message.
    pub fn log_end(&self, paths: &Paths) -> String {
        let log = self.log(paths);
        let text = std::fs::read(&log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        let lines: Vec<_> = text.lines().rev().take(5).collect();
        let lines: Vec<_> = lines.into_iter().rev().collect();
        format!("the end of {}:\n{}", log.display(), lines.join("\n"))
    }

    fn fingerprint(&self) -> Result<String> {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hasher = DefaultHasher::new();
        self.argv.hash(&mut hasher);
        for file in &self.config {
            std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?.hash(&mut hasher);
        }
        Ok(format!("{:016x}", hasher.finish()))
    }
}

/// Becomes a server: what `lab exec-recorded` does. Returns only if that fails.
///
/// # Errors
/// If a step on the way fails.
pub fn exec_recorded(paths: &Paths, name: &str, fingerprint: &str, room: &Room, argv: &[String]) -> Result<()> {
    use std::os::unix::process::CommandExt;
    // A session of its own: Ctrl-C at the lab is not for the servers.
    rustix::process::setsid().context("cannot make a session")?;
    cgroup::join(&room.cgroup())?;
    let pid = std::process::id().cast_signed();
    let start = start_time(pid).context("cannot read this process's start time")?;
    let record = Record { name: name.to_owned(), pid, start, fingerprint: fingerprint.to_owned() };
    write_whole(&record_file(paths, name), &serde_json::to_string(&record)?, 0o600)?;
    // Lets go of the lock (see `Server::start`).
    let nothing = std::fs::File::open("/dev/null").context("cannot open /dev/null")?;
    rustix::stdio::dup2_stdin(&nothing).context("cannot replace the standard input")?;
    let mut command = Command::new("nsenter");
    if *room != MACHINE {
        command.arg(format!("--net={}", netns_file(room).display()));
        command.arg(format!("--mount={}", paths.mount_namespace(room).display()));
    }
    Err(command.arg("--").args(argv).exec()).context("cannot execute nsenter")
}

/// All records.
pub fn records(paths: &Paths) -> Vec<Record> {
    let entries = std::fs::read_dir(paths.processes()).into_iter().flatten().flatten();
    let mut records: Vec<_> = entries.filter_map(|entry| read_record(&entry.path())).collect();
    records.sort_by(|a, b| a.name.cmp(&b.name));
    records
}

/// Ends processes: asks them, and kills those that are left after `patience`.
///
/// # Errors
/// If one is left even then.
pub fn stop(records: &[Record], patience: Duration) -> Result<()> {
    let gone = |limit: Duration| {
        wait_for(limit, "the end of servers", || {
            let left: Vec<_> = records.iter().filter(|record| record.alive()).map(|record| &record.name).collect();
            if left.is_empty() { Ok(()) } else { bail!("{left:?} still run") }
        })
    };
    records.iter().for_each(|record| record.signal(Signal::TERM));
    if gone(patience).is_ok() {
        return Ok(());
    }
    records.iter().for_each(|record| record.signal(Signal::KILL));
    gone(Duration::from_secs(3))
}

fn record_file(paths: &Paths, name: &str) -> PathBuf {
    paths.processes().join(format!("{name}.json"))
}

fn read_record(file: &Path) -> Option<Record> {
    serde_json::from_str(&std::fs::read_to_string(file).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_ended_when_its_last_thread_has() {
        let stat = |state: &str, threads: u32| {
            format!("7 (a) Z) {state} 1 7 7 0 -1 4194304 100 0 0 0 12 3 0 0 20 0 {threads} 0 4711 1000 50")
        };
        assert_eq!(read_stat(&stat("S", 9)), Some(4711));
        assert_eq!(read_stat(&stat("Z", 9)), Some(4711), "other threads still hold its ports");
        assert_eq!(read_stat(&stat("Z", 1)), None);
        assert_eq!(read_stat(&stat("X", 0)), None);
    }

    #[test]
    fn another_process_of_the_same_number_is_not_ours() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id().cast_signed();
        let start = start_time(pid).unwrap();
        let record = |start| Record { name: "x".into(), pid, start, fingerprint: String::new() };
        assert!(record(start).alive());
        assert!(!record(start + 1).alive());
        stop(&[record(start + 1)], Duration::from_secs(1)).unwrap();
        assert!(child.try_wait().unwrap().is_none(), "a foreign process was ended");
        stop(&[record(start)], Duration::from_secs(1)).unwrap();
        assert!(!record(start).alive());
        child.wait().unwrap();
    }
}
