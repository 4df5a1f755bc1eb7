//! Programs that a test starts, and that end with it.

use std::ffi::OsStr;
use std::fs::File;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

/// Ends a process when it is dropped.
#[derive(Debug)]
pub struct Process(pub Child);

impl Process {
    pub fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A command that runs this program. Should the test be killed, the kernel kills the program.
pub fn tied(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// Starts a program; what it writes goes into a file.
pub fn spawn(command: &mut Command, log: &Path) -> Result<Process> {
    let file = File::options().create(true).append(true).open(log)?;
    let child = command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).spawn();
    Ok(Process(child.with_context(|| format!("start {:?}", command.get_program()))?))
}

/// A port of the loopback address that nobody listens on now. Another process may take it before our server does; the server
/// then says so.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
