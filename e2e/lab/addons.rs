//! Add-ons: what of a usable cluster runs in its pods. Their manifests are kustomizations in e2e/addons; Calico's build on
//! those of its release, which came with its source (e2e/tools).

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use crate::Lab;
use crate::command::Run;
use crate::paths::{make_folder, write_whole};
use crate::tools::{Image, repository};
use crate::topology::HOSTS;

/// How long pods that were just made may take to serve (the machine may be busy with builds).
const PATIENCE: Duration = Duration::from_secs(150);

const MINUTE: Duration = Duration::from_secs(60);

/// Folder of the Gateway API's kinds, beside Traefik's manifests.
const KINDS: &str = "kinds";
/// Those of them that Traefik watches.
const GATEWAY_KINDS: [&str; 8] = [
    "backendtlspolicies",
    "gatewayclasses",
    "gateways",
    "grpcroutes",
    "httproutes",
    "referencegrants",
    "tcproutes",
    "tlsroutes",
];

/// One add-on.
#[derive(Debug)]
pub struct Addon {
    /// Its folder in e2e/addons, and its image.
    pub name: &'static str,
    /// Namespace and name of each workload that must have rolled out.
    workloads: &'static [(&'static str, &'static str)],
}

/// All add-ons, in the order of need: without Calico no host takes a pod.
pub const ADDONS: &[Addon] = &[
    Addon {
        name: "calico",
        workloads: &[("kube-system", "daemonset/calico-node"), ("kube-system", "deployment/calico-kube-controllers")],
    },
    Addon { name: "coredns", workloads: &[("kube-system", "deployment/coredns")] },
    Addon { name: "traefik", workloads: &[("ingress", "deployment/traefik")] },
];

impl Addon {
    /// Applies the manifests.
    ///
    /// # Errors
    /// If a file cannot be written or the API server refuses.
    pub fn apply(&self, lab: &Lab, image: &Image) -> Result<()> {
        let folder = self.stage(lab, image)?;
        let words = ["apply", "--server-side", "--force-conflicts", "--field-manager=lab"];
        if self.name == "traefik" {
            // An object is taken when its kind is served, and not before.
            let kinds = folder.join(KINDS);
            let run =
                |words: &[&str]| lab.control_plane().kubectl(words).arg("-f").arg(&kinds).timeout(MINUTE).output();
            run(&words)?;
            run(&["wait", "--for=condition=Established", "--timeout=50s"])?;
        }
        lab.control_plane().kubectl(&words).arg("-k").arg(folder).timeout(MINUTE).output().map(drop)
    }

    /// A folder with the add-on's own files and, in `upstream/`, those of its release: kustomize reads nothing from
    /// outside of the folder that it is given.
    fn stage(&self, lab: &Lab, image: &Image) -> Result<PathBuf> {
        let folder = lab.paths.state.join("addons").join(self.name);
        let _ = std::fs::remove_dir_all(&folder);
        make_folder(&folder)?;
        let own = repository().join("e2e/addons").join(self.name);
        copy(&own.join("."), &folder)?;
        if self.name == "calico" {
            copy(&lab.settings.tools.calico.join("share"), &folder.join("upstream"))?;
        }
        if self.name == "traefik" {
            let (kinds, source) =
                (folder.join(KINDS), lab.settings.tools.gateway_api.join("share/config/crd/experimental"));
            make_folder(&kinds)?;
            for kind in GATEWAY_KINDS {
                copy(&source.join(format!("gateway.networking.k8s.io_{kind}.yaml")), &kinds)?;
            }
        }
        let (_, tag) = image.reference.rsplit_once(':').context("an image without a tag")?;
        let file = folder.join("kustomization.yaml");
        let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        write_whole(&file, &text.replace("VERSION", tag), 0o644)?;
        Ok(folder)
    }

    /// Waits until all of it serves.
    ///
    /// # Errors
    /// If that takes too long; the message says what the pods wait for.
    pub fn await_ready(&self, lab: &Lab) -> Result<()> {
        for (namespace, workload) in self.workloads {
            let timeout = format!("--timeout={}s", PATIENCE.as_secs());
            let words = ["rollout", "status", "--namespace", namespace, workload, &timeout];
            let ready = lab.kubectl_within(PATIENCE + Duration::from_secs(10), &words);
            ready.with_context(|| {
                let pods = lab.kubectl(&["get", "pods", "--all-namespaces", "--output=wide"]).unwrap_or_default();
                let events = lab.kubectl(&["get", "events", "--all-namespaces", "--field-selector=type=Warning"]);
                format!("{workload} does not serve\n{pods}\n{}", events.unwrap_or_default())
            })?;
        }
        Ok(())
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    Run::line("cp -r --no-preserve=mode").arg(from).arg(to).output().map(drop)
}

/// Tells Calico which addresses each host's pods get. A pool per host, so that who is no host knows the way to a pod
/// without asking Calico (see [`routes`](crate::topology::routes)).
///
/// # Errors
/// If the API server refuses, for example because it does not know pools yet.
pub fn apply_pools(lab: &Lab) -> Result<()> {
    let pool = |host: &crate::topology::Host| {
        json!({
            "apiVersion": "crd.projectcalico.org/v1", "kind": "IPPool", "metadata": {"name": host.name()},
            "spec": {
                "cidr": host.pods, "blockSize": 26, "nodeSelector": format!("kubernetes.io/hostname == '{}'", host.name()),
                "ipipMode": "Never", "vxlanMode": "CrossSubnet", "natOutgoing": true,
                "allowedUses": ["Workload", "Tunnel"],
            },
        })
    };
    let pools = json!({"apiVersion": "v1", "kind": "List", "items": HOSTS.iter().map(pool).collect::<Vec<_>>()});
    lab.apply(&pools.to_string()).map(drop)
}
