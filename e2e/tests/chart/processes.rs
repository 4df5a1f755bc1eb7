//! A controller manager and a Prometheus on the loopback device, and promtool. They end with the test that started them.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};
use lab::command::Run;

use crate::support::{
    self,
    apiserver::ApiServer,
    processes::{Process, free_port, spawn, tied},
    tool,
};

/// Starts a program, with the kubeconfig of `server`.
fn start(server: &ApiServer, name: &str, program: impl AsRef<OsStr>, words: &[String]) -> Process {
    let log = server.folder().join(format!("{name}.log"));
    spawn(tied(program).args(words).env("KUBECONFIG", server.kubeconfig()), &log).unwrap()
}

pub struct Manager {
    _process: Process,
    address: SocketAddr,
}

impl Manager {
    /// Starts one with these settings.
    pub fn start(server: &ApiServer, settings: &str) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port().unwrap()));
        let file = server.folder().join("settings.yaml");
        std::fs::write(&file, settings).unwrap();
        let words = [
            "run".into(),
            format!("--settings={}", file.display()),
            format!("--listen={address}"),
            "--namespace=default".into(),
            "--lease-duration=5s".into(),
        ];
        Self { _process: start(server, "manager", support::giantnetes(), &words), address }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What Prometheus gets.
    pub fn metrics(&self) -> Result<String> {
        let limit = Duration::from_secs(5);
        let mut stream = TcpStream::connect_timeout(&self.address, limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (_, body) = answer.split_once("\r\n\r\n").context("it does not speak HTTP")?;
        Ok(body.to_owned())
    }
}

/// promtool, with a minute.
pub fn promtool() -> Run {
    Run::new(tool("prometheus").join("promtool")).timeout(Duration::from_secs(60))
}

pub struct Prometheus {
    _process: Process,
    url: String,
}

impl Prometheus {
    /// Starts one that asks the manager every second, as the chart's ServiceMonitor has it asked.
    pub fn start(server: &ApiServer, manager: &Manager) -> Self {
        let address = format!("127.0.0.1:{}", free_port().unwrap());
        let config = server.folder().join("prometheus.yaml");
        let text = serde_json::json!({
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "scrape_configs": [{
                "job_name": "giantnetes", "honor_labels": true,
                "static_configs": [{"targets": [manager.address], "labels": {"namespace": "giantnetes-system"}}],
            }],
        });
        // JSON is YAML too.
        std::fs::write(&config, text.to_string()).unwrap();
        let words = [
            format!("--config.file={}", config.display()),
            format!("--storage.tsdb.path={}", server.folder().join("prometheus").display()),
            format!("--web.listen-address={address}"),
        ];
        Self {
            _process: start(server, "prometheus", tool("prometheus").join("prometheus"), &words),
            url: format!("http://{address}"),
        }
    }

    /// What an expression comes to: nothing, or a line for each series.
    pub fn query(&self, expression: &str) -> Result<String> {
        promtool().args(["query", "instant", &self.url, expression]).output()
    }
}
