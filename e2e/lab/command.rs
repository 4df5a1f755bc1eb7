//! Commands of the machine (`ip`, `mount`, `ctr`, `kubectl`, …), every one of them bounded in time.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{OnceLock, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::wait::POLL;

/// The lock that commands hold while they run.
static LOCK: OnceLock<File> = OnceLock::new();

/// Makes every command of this process hold a lock, as its standard input, while it runs.
///
/// If this process is killed, the command that it was waiting for goes on for a moment; the next `lab` command must not
/// act before that has ended.
pub(crate) fn hold_in_children(lock: File) {
    let _ = LOCK.set(lock);
}

/// One command that is going to be run to its end.
#[derive(Debug)]
pub struct Run {
    program: String,
    args: Vec<String>,
    timeout: Duration,
    input: Option<String>,
}

impl Run {
    /// A command with a timeout of ten seconds.
    pub fn new(program: impl AsRef<Path>) -> Self {
        let program = program.as_ref().display().to_string();
        Self { program, args: Vec::new(), timeout: Duration::from_secs(10), input: None }
    }

    /// A command given as a line of words: `Run::line("ip link show")`. No quoting: for constant lines only.
    pub fn line(line: &str) -> Self {
        let mut words = line.split_whitespace();
        Self::new(words.next().unwrap_or_default()).args(words)
    }

    /// Adds one argument.
    pub fn arg(mut self, arg: impl AsRef<Path>) -> Self {
        self.args.push(arg.as_ref().display().to_string());
        self
    }

    /// Adds arguments.
    pub fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets how long the command may take before it is killed.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// What the command reads from its standard input (nothing by default).
    pub fn input(mut self, input: impl Into<String>) -> Self {
        self.input = Some(input.into());
        self
    }

    /// Runs the command and returns what it printed. A failure's message holds what it said on standard error.
    ///
    /// # Errors
    /// If it cannot be started, does not end in time, or ends with a status other than 0.
    pub fn output(self) -> Result<String> {
        let (status, stdout, stderr) = self.finish()?;
        match status {
            Some(0) => Ok(stdout),
            status => {
                let status = status.map_or("a signal".to_owned(), |code| format!("status {code}"));
                bail!("{self} ended with {status}: {}", said(&stderr, &stdout))
            }
        }
    }

    /// Whether the command ends with status 0 (in time).
    pub fn succeeds(self) -> bool {
        self.output().is_ok()
    }

    fn finish(&self) -> Result<(Option<i32>, String, String)> {
        use std::os::unix::process::CommandExt;
        let mut child = Command::new(&self.program)
            .args(&self.args)
            .stdin(self.stdin()?)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own: the timeout then ends what the command itself started, too.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}; is it installed?", self.program))?;
        if let (Some(input), Some(mut stdin)) = (self.input.clone(), child.stdin.take()) {
            // In a thread, since a child that prints before it has read everything would block both of us.
            std::thread::spawn(move || stdin.write_all(input.as_bytes()));
        }
        let stdout = collect(child.stdout.take());
        let stderr = collect(child.stderr.take());
        let status = self.await_end(&mut child)?;
        // A daemon that the command left behind may hold the pipes open for ever: what is there by now must do.
        let text = |from: mpsc::Receiver<String>| from.recv_timeout(Duration::from_secs(1)).unwrap_or_default();
        Ok((status, text(stdout), text(stderr)))
    }

    fn stdin(&self) -> Result<Stdio> {
        Ok(match LOCK.get() {
            _ if self.input.is_some() => Stdio::piped(),
            Some(lock) => Stdio::from(lock.try_clone().context("cannot duplicate the lock")?),
            None => Stdio::null(),
        })
    }

    fn await_end(&self, child: &mut Child) -> Result<Option<i32>> {
        let deadline = Instant::now() + self.timeout;
        let mut pause = Duration::from_millis(1);
        loop {
            if let Some(status) = child.try_wait().with_context(|| format!("cannot wait for {self}"))? {
                return Ok(status.code());
            }
            if Instant::now() >= deadline {
                if let Some(group) = rustix::process::Pid::from_raw(child.id().cast_signed()) {
                    let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
                }
                let _ = child.wait();
                bail!("{self} did not end within {:?} and was killed", self.timeout);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(POLL);
        }
    }
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = Path::new(&self.program).file_name().unwrap_or_default().to_string_lossy();
        write!(f, "`{name}")?;
        for arg in &self.args {
            write!(f, " {arg}")?;
        }
        write!(f, "`")
    }
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receiver
}

fn said(stderr: &str, stdout: &str) -> String {
    let text = if stderr.trim().is_empty() { stdout } else { stderr };
    let text = text.trim();
    if text.is_empty() { "it said nothing".to_owned() } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_tells_what_the_command_said() {
        let error = Run::new("sh").args(["-c", "echo no such bridge >&2; exit 3"]).output().unwrap_err();
        assert_eq!(error.to_string(), "`sh -c echo no such bridge >&2; exit 3` ended with status 3: no such bridge");
    }

    #[test]
    fn a_command_that_hangs_is_killed_with_its_children() {
        let started = Instant::now();
        let run = Run::new("sh").args(["-c", "sleep 60 & wait"]).timeout(Duration::from_millis(200));
        let error = run.output().unwrap_err().to_string();
        assert!(error.contains("did not end within 200ms"), "{error}");
        assert!(started.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn input_reaches_the_command() {
        assert_eq!(Run::new("cat").input("hello").output().unwrap(), "hello");
    }
}
