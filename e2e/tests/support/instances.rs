//! Instances as far as a node's agent knows them: `e2e/aws/instances.py`, with an STS that verifies signatures.

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde::Deserialize;

/// Running stand-ins. They end when their standard input does, so with this, and with the test however it ends.
pub struct Instances {
    process: Child,
    handed_out: PathBuf,
    /// What there is.
    pub here: Here,
}

/// What there is.
#[derive(Debug, Deserialize)]
pub struct Here {
    /// URL of STS.
    pub sts: String,
    /// An instance of each role, in their order.
    pub instances: Vec<Instance>,
}

/// An instance.
#[derive(Debug, Deserialize)]
pub struct Instance {
    /// ARN of its role.
    pub arn: String,
    /// Its id.
    pub id: String,
    /// Its address.
    pub address: String,
    /// URL of its metadata service.
    pub metadata: String,
}

impl Instances {
    /// Starts them, one for each of these roles. `folder` takes their log.
    ///
    /// # Errors
    /// If they do not come up.
    pub fn start(folder: &Path, roles: &[&str]) -> Result<Self> {
        let handed_out = folder.join("handed-out");
        std::fs::write(&handed_out, "")?;
        let log = std::fs::File::create(folder.join("instances.log"))?;
        let mut process = Command::new(super::root().join("e2e/aws/instances.py"))
            .arg(&handed_out)
            .args(roles)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .context("start e2e/aws/instances.py")?;
        let output = BufReader::new(process.stdout.take().context("its output")?);
        // What it says of installing comes before.
        let line = output.lines().map_while(Result::ok).find(|line| line.starts_with('{'));
        let line = line.with_context(|| format!("e2e/aws/instances.py ended; why is in {}", folder.display()))?;
        Ok(Self { process, handed_out, here: serde_json::from_str(&line)? })
    }

    /// Every secret that they handed out up to now.
    pub fn secrets(&self) -> Result<Vec<String>> {
        Ok(std::fs::read_to_string(&self.handed_out)?.lines().map(ToOwned::to_owned).collect())
    }
}

impl Drop for Instances {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(10) {
            if matches!(self.process.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
