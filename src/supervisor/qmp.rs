//! QEMU's monitor: one JSON object a line, a greeting, then a command and its answer at a time, events in between.

use std::{io, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
};

/// Longest wait for an answer. Under emulation on a busy host QEMU's main loop is slow.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why the monitor gave no good answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection.
    #[error("monitor connection")]
    Io(#[from] io::Error),
    /// It is closed.
    #[error("QEMU closed its monitor")]
    Closed,
    /// Not JSON.
    #[error("unreadable answer of the monitor")]
    Answer(#[from] serde_json::Error),
    /// QEMU refused the command.
    #[error("{command}: {message}")]
    Refused {
        /// The command.
        command: &'static str,
        /// QEMU's words.
        message: String,
    },
    /// Too slow.
    #[error("no answer in {} s", TIMEOUT.as_secs())]
    TimedOut,
}

/// A connection to QEMU's monitor.
#[derive(Debug)]
pub struct Monitor {
    lines: Lines<BufReader<OwnedReadHalf>>,
    writer: OwnedWriteHalf,
}

impl Monitor {
    /// Reads the greeting and opens the session.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn open(stream: UnixStream) -> Result<Self, Error> {
        let (reader, writer) = stream.into_split();
        let mut monitor = Self { lines: BufReader::new(reader).lines(), writer };
        within(monitor.message()).await?;
        monitor.execute("qmp_capabilities").await?;
        Ok(monitor)
    }

    /// Whether the virtual machine runs.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn is_running(&mut self) -> Result<bool, Error> {
        Ok(self.execute("query-status").await?["status"] == "running")
    }

    /// Presses the power button.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn power_button(&mut self) -> Result<(), Error> {
        self.execute("system_powerdown").await.map(drop)
    }

    /// Ends QEMU at once.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn quit(&mut self) -> Result<(), Error> {
        self.execute("quit").await.map(drop)
    }

    async fn execute(&mut self, command: &'static str) -> Result<Value, Error> {
        within(async {
            let line = format!("{}\n", json!({"execute": command}));
            self.writer.write_all(line.as_bytes()).await?;
            loop {
                let mut message = self.message().await?;
                if let Some(answer) = message.get_mut("return") {
                    return Ok(answer.take());
                }
                if let Some(error) = message.get("error") {
                    let message = error["desc"].as_str().unwrap_or("refused").to_owned();
                    return Err(Error::Refused { command, message });
                }
            }
        })
        .await
    }

    async fn message(&mut self) -> Result<Value, Error> {
        let line = self.lines.next_line().await?.ok_or(Error::Closed)?;
        Ok(serde_json::from_str(&line)?)
    }
}

async fn within<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(TIMEOUT, work).await.unwrap_or(Err(Error::TimedOut))
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    async fn answering(script: &'static str) -> UnixStream {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        tokio::spawn(async move {
            theirs.write_all(b"{\"QMP\": {}}\n{\"return\": {}}\n").await.unwrap();
            theirs.write_all(script.as_bytes()).await.unwrap();
            let mut sink = Vec::new();
            let _ = theirs.read_to_end(&mut sink).await;
        });
        ours
    }

    #[tokio::test]
    async fn events_between_are_skipped() {
        let script = "{\"event\": \"RESET\"}\n{\"return\": {\"status\": \"running\"}}\n";
        let mut monitor = Monitor::open(answering(script).await).await.unwrap();
        assert!(monitor.is_running().await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn refusal_silence_and_rubbish_are_errors() {
        let mut refused = Monitor::open(answering("{\"error\": {\"desc\": \"no\"}}\n").await).await.unwrap();
        assert!(matches!(refused.quit().await, Err(Error::Refused { .. })));
        let mut rubbish = Monitor::open(answering("rubbish\n").await).await.unwrap();
        assert!(matches!(rubbish.quit().await, Err(Error::Answer(_))));
        let mut silent = Monitor::open(answering("").await).await.unwrap();
        assert!(matches!(silent.quit().await, Err(Error::TimedOut)));
    }
}
