//! docs/quick-start.md, word by word, on a fresh lab: five commands lead to a guest. Then what becomes of it when the chart
//! is upgraded, uninstalled and installed again: nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::command::Run;
use lab::{Lab, wait_for};
use serde_json::Value;
use support::traces::{fingerprints, nothing_is_left};
use support::{Guest, SYSTEM, giantnetes, helm, image_ref, in_steps, list, patience, root};

const MINUTE: Duration = Duration::from_secs(60);
/// Where the newcomer's kubeconfig leads; the documents name no namespace.
const NAMESPACE: &str = "e2e-quick-start";

type Step = fn(&Newcomer) -> Result<()>;

#[test]
fn the_quick_start_leads_to_a_guest_that_outlives_the_chart() {
    let lab = Lab::running().expect("no lab is running: `make lab-up` raises one");
    let newcomer = Newcomer::arrive(&lab).unwrap();
    let steps: [(&str, Step); 8] = [
        ("the commands of the quick start lead to a guest", follows_the_quick_start),
        ("`helm test` passes", tests_the_release),
        ("the console of its node is read", reads_the_console),
        ("of the controller manager's replicas one at a time may be evicted", keeps_a_replica),
        ("an upgrade of the chart changes no guest, and sets a quota", upgrades),
        ("a guest runs on without the chart", uninstalls),
        ("a chart that is installed anew goes on with it", installs_anew),
        ("the last command leaves nothing", leaves_nothing),
    ];
    in_steps(&steps, |step| step(&newcomer));
}

/// Somebody with a shell, the repository and a kubeconfig.
struct Newcomer<'a> {
    lab: &'a Lab,
    guest: Guest<'a>,
    /// The shell's folder.
    folder: PathBuf,
    /// The commands of the quick start, a block each.
    blocks: Vec<String>,
}

impl<'a> Newcomer<'a> {
    fn arrive(lab: &'a Lab) -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("giantnetes-quick-start-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("bin"))?;
        // Not the repository itself: the commands write into the folder that they are run in.
        for part in ["charts", "manifests"] {
            symlink(root().join(part), folder.join(part))?;
        }
        for (name, program) in [("kubectl", lab.kubectl_binary()), ("helm", helm()), ("kubectl-g8s", giantnetes())] {
            symlink(program, folder.join("bin").join(name))?;
        }
        std::fs::copy(lab.kubeconfig(), folder.join("kubeconfig"))?;
        let guest = Guest::expected(lab, NAMESPACE, "demo");
        let text = std::fs::read_to_string(root().join("docs/quick-start.md"))?;
        let newcomer = Self { lab, guest, folder, blocks: blocks(&with_images_of_the_lab(&text)) };
        newcomer.run(&format!("kubectl config set-context --current --namespace={NAMESPACE}"))?;
        // What other tests left on a lab that is kept.
        newcomer.run(&format!("helm uninstall giantnetes -n {SYSTEM} --ignore-not-found --wait --timeout 3m"))?;
        Ok(newcomer)
    }

    /// What a command prints, or a block of them up to the first that fails.
    fn run(&self, commands: &str) -> Result<String> {
        let folder = self.folder.display();
        let path = std::env::var("PATH").unwrap_or_default();
        Run::new("env")
            .args([format!("PATH={folder}/bin:{path}"), format!("KUBECONFIG={folder}/kubeconfig")])
            .args([format!("KUBECACHEDIR={folder}/kubectl-cache"), format!("HELM_CACHE_HOME={folder}/helm-cache")])
            .args(["bash", "-euo", "pipefail", "-c"])
            .arg(format!("cd {folder}\n{commands}"))
            // Longer than the commands themselves wait.
            .timeout(patience() + MINUTE)
            .output()
    }

    /// What is another one if the guest was made anew, or only its machine started again.
    fn machine(&self) -> Result<String> {
        self.guest.vm_pod("master-0", "{.metadata.uid} {.status.containerStatuses[0].containerID}")
    }

    /// Changes the Cluster, and waits until a controller manager has looked at what was changed.
    fn is_looked_at_after(&self, patch: &str) -> Result<()> {
        self.guest.change(patch)?;
        let generation = self.guest.object()?["metadata"]["generation"].clone();
        wait_for(MINUTE, "the controller manager to look at it", || {
            let object = self.guest.object()?;
            ensure!(object["status"]["observedGeneration"] == generation, "{}", object["status"]);
            Ok(())
        })
    }
}

impl Drop for Newcomer<'_> {
    fn drop(&mut self) {
        // Or the guest could not be deleted, if a step failed that had protected it.
        let _ = self.guest.change(r#"{"spec": {"deletionProtection": false}}"#);
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// The lab's hosts have the images that a user has in a registry.
fn with_images_of_the_lab(text: &str) -> String {
    let controller = image_ref("controller");
    let (repository, tag) = controller.rsplit_once(':').expect("a reference with a tag");
    text.replace("REGISTRY/giantnetes/controller", &format!("docker.io/{repository} --set image.tag={tag}"))
        .replace("REGISTRY/giantnetes/vm", "docker.io/giantnetes/vm")
}

/// The indented blocks of a document.
fn blocks(text: &str) -> Vec<String> {
    let mut found = vec![String::new()];
    for line in text.lines() {
        match (line.strip_prefix("    "), found.last_mut()) {
            (Some(command), Some(block)) => block.push_str(&format!("{command}\n")),
            (None, Some(block)) if !block.is_empty() => found.push(String::new()),
            _ => {}
        }
    }
    found.retain(|block| !block.is_empty());
    found
}

fn follows_the_quick_start(newcomer: &Newcomer) -> Result<()> {
    let [install, ask, .., use_it, _] = &newcomer.blocks[..] else {
        anyhow::bail!("the quick start has other blocks: {:?}", newcomer.blocks)
    };
    let five = [install, ask, use_it].map(|block| block.replace("\\\n", " ")).concat();
    let five: Vec<_> = five.lines().collect();
    let beginnings = ["helm install ", "kubectl apply ", "kubectl wait ", "kubectl g8s kubeconfig ", "kubectl "];
    ensure!(five.len() == beginnings.len(), "{} commands, not five: {five:?}", five.len());
    let mut said = String::new();
    for (command, beginning) in five.iter().zip(beginnings) {
        ensure!(command.starts_with(beginning), "{command}: expected {beginning}…");
        println!("    $ {command}");
        said = newcomer.run(command)?;
        said.lines().for_each(|line| println!("    {line}"));
    }
    ensure!(said.contains(" Ready ") && said.contains("v1.36."), "{said}");
    let tree = newcomer.run("kubectl g8s describe demo")?;
    ensure!(tree.contains("master-0") && tree.contains("Ready"), "{tree}");
    let events = newcomer.run("kubectl g8s events demo")?;
    ensure!(events.contains("demo"), "{events}");
    Ok(())
}

fn tests_the_release(newcomer: &Newcomer) -> Result<()> {
    let said = newcomer.run(&format!("helm test giantnetes -n {SYSTEM} --timeout 3m"))?;
    ensure!(said.contains("Phase:          Succeeded"), "{said}");
    Ok(())
}

fn reads_the_console(newcomer: &Newcomer) -> Result<()> {
    let said = newcomer.run("kubectl g8s console demo")?;
    for words in ["SeaBIOS", "giantnetes: guest is up"] {
        ensure!(said.contains(words), "{words} is not in {said}");
    }
    // What the supervisor says of itself is in the same log.
    let log = newcomer.run(&format!("kubectl -n {} logs master-0", newcomer.guest.home()?))?;
    let own = "accelerator is chosen";
    ensure!(log.contains(own) && !said.contains(own), "{said}");
    let nobody = newcomer.run("kubectl g8s console demo master-7").unwrap_or_else(|error| format!("{error:#}"));
    ensure!(nobody.contains("the console of node master-7"), "{nobody}");
    Ok(())
}

fn keeps_a_replica(newcomer: &Newcomer) -> Result<()> {
    let replicas = || -> Result<Vec<String>> {
        let select = "-l app.kubernetes.io/name=giantnetes";
        let names = newcomer.run(&format!("kubectl -n {SYSTEM} get pods {select} -o name"))?;
        Ok(names.lines().map(|name| name.trim_start_matches("pod/").to_owned()).collect())
    };
    let before = replicas()?;
    ensure!(before.len() == 2, "{before:?}");
    let evict = |pod: &str| {
        let eviction = serde_json::json!({
            "apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": SYSTEM},
        });
        let url = format!("/api/v1/namespaces/{SYSTEM}/pods/{pod}/eviction");
        newcomer.run(&format!("echo '{eviction}' | kubectl create --raw {url} -f -"))
    };
    evict(&before[0])?;
    let refusal = evict(&before[1]).map_or_else(|error| format!("{error:#}"), |said| format!("it is evicted: {said}"));
    ensure!(refusal.contains("disruption budget"), "{refusal}");
    newcomer.run(&format!("kubectl -n {SYSTEM} rollout status deployment/giantnetes --timeout=2m"))?;
    Ok(())
}

fn upgrades(newcomer: &Newcomer) -> Result<()> {
    let (machine, roots) = (newcomer.machine()?, fingerprints(&newcomer.guest)?);
    let values = format!("log.filter=debug,replicas=1,settings.rollout.drainTimeout=5m,quotas.{NAMESPACE}.clusters=1");
    let release = format!("giantnetes charts/giantnetes -n {SYSTEM} --reuse-values --set {values}");
    newcomer.run(&format!("helm upgrade {release} --wait --timeout 3m"))?;
    let second = "kubectl create --dry-run=server -f - <<< \
                  '{apiVersion: giantnetes.io/v1alpha1, kind: Cluster, metadata: {name: second}, spec: {}}'";
    wait_for(MINUTE * 2, "a second Cluster to be one too many", || {
        let refusal = newcomer.run(second).unwrap_or_else(|error| format!("{error:#}"));
        ensure!(refusal.contains("exceeded quota"), "{refusal}");
        Ok(())
    })?;
    newcomer.is_looked_at_after(r#"{"spec": {"deletionProtection": true}}"#)?;
    ensure!(newcomer.machine()? == machine, "the guest's machine is another");
    ensure!(fingerprints(&newcomer.guest)? == roots, "the guest's roots are others");
    Ok(())
}

fn uninstalls(newcomer: &Newcomer) -> Result<()> {
    let machine = newcomer.machine()?;
    newcomer.run(&format!("helm uninstall giantnetes -n {SYSTEM} --wait --timeout 3m"))?;
    wait_for(MINUTE * 2, "the chart's pods to go", || {
        let left = list(newcomer.lab, &["-n", SYSTEM, "pods"])?.len();
        ensure!(left == 0, "{left} are left");
        Ok(())
    })?;
    let clusters = newcomer.run("kubectl get clusters.giantnetes.io demo -o name")?;
    ensure!(clusters.contains("demo"), "{clusters}");
    let nodes = newcomer.run("kubectl --kubeconfig demo.kubeconfig get nodes")?;
    ensure!(nodes.contains(" Ready "), "{nodes}");
    ensure!(newcomer.machine()? == machine, "the guest's machine is another");
    Ok(())
}

fn installs_anew(newcomer: &Newcomer) -> Result<()> {
    let (machine, roots) = (newcomer.machine()?, fingerprints(&newcomer.guest)?);
    newcomer.run(newcomer.blocks.first().context("a block")?)?;
    newcomer.is_looked_at_after(r#"{"spec": {"deletionProtection": false}}"#)?;
    newcomer.guest.await_ready()?;
    ensure!(newcomer.machine()? == machine, "the guest's machine is another");
    ensure!(fingerprints(&newcomer.guest)? == roots, "the guest's roots are others");
    Ok(())
}

fn leaves_nothing(newcomer: &Newcomer) -> Result<()> {
    let home = newcomer.guest.home()?;
    newcomer.run(newcomer.blocks.last().context("a block")?)?;
    // With it go the probes of KVM, whose machines are no guest's.
    newcomer.run(&format!("helm uninstall giantnetes -n {SYSTEM} --wait --timeout 3m"))?;
    let claims = list(newcomer.lab, &["networkclaims"])?;
    let kept: Vec<&Value> = claims.iter().filter(|claim| !claim["spec"]["releasedAt"].is_string()).collect();
    ensure!(kept.is_empty(), "not released: {kept:?}");
    // Their quarantine is an hour.
    newcomer.lab.kubectl(&["delete", "networkclaims", "--all"])?;
    nothing_is_left(newcomer.lab, &newcomer.guest, &home)
}
