//! helm, without what it would leave in the home of who runs the tests.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use lab::command::Run;
use serde_json::Value;

use crate::support::{self, apiserver::ApiServer};

/// Where the chart is.
pub fn chart() -> String {
    support::root().join("charts/giantnetes").display().to_string()
}

pub struct Helm {
    binary: PathBuf,
    folder: PathBuf,
}

/// A command of helm that is being put together.
pub struct Command<'a> {
    helm: &'a Helm,
    words: Vec<String>,
    values: Option<String>,
    kubeconfig: Option<PathBuf>,
}

impl Helm {
    /// helm with a folder of the test `name`.
    pub fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("giantnetes-helm-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        Self { binary: support::helm(), folder }
    }

    pub fn run(&self, words: &[&str]) -> Command<'_> {
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        Command { helm: self, words, values: None, kubeconfig: None }
    }

    /// Every object of the release `giantnetes`, hooks too.
    pub fn rendered(&self, values: &str) -> Vec<Value> {
        // Without a cluster helm takes its own library's age for Kubernetes' version.
        let words =
            ["template", "giantnetes", &chart(), "--namespace", "giantnetes-system", "--kube-version", "1.36.3"];
        let text = self.run(&words).values(values).output().unwrap();
        let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
        documents.into_iter().filter(|document| document["kind"].is_string()).collect()
    }
}

impl Command<'_> {
    /// On a cluster.
    pub fn against(mut self, server: &ApiServer) -> Self {
        self.kubeconfig = Some(server.kubeconfig());
        self
    }

    /// With these values, in JSON.
    pub fn values(mut self, values: &str) -> Self {
        self.values = Some(values.into());
        self
    }

    pub fn output(self) -> Result<String> {
        let folder = self.helm.folder.display();
        let homes = ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME", "KUBECACHEDIR"];
        let mut run = Run::new("env")
            .args(homes.map(|home| format!("{home}={folder}")))
            .args(self.kubeconfig.map(|file| format!("KUBECONFIG={}", file.display())))
            .arg(&self.helm.binary)
            .args(self.words)
            .timeout(Duration::from_secs(90));
        if let Some(values) = self.values {
            run = run.args(["--values", "-"]).input(values);
        }
        run.output()
    }
}

impl Drop for Helm {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
