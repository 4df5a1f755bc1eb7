//! What tests share: budgets, and on a running lab the installed chart, and a Cluster that goes when its test ends.

// Each test binary uses a part of it.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod apart;
pub mod apiserver;
pub mod aws;
pub mod flannel_etcd;
pub mod hosts;
pub mod instances;
pub mod monitoring;
pub mod node;
pub mod pods;
pub mod processes;
pub mod requests;
pub mod throughput;
pub mod traces;
pub mod vault;
pub mod workload;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::jiff::Timestamp;
use lab::command::Run;
use lab::{Lab, Snapshot, snapshot, wait_every, wait_for};
use serde_json::Value;

/// The lab's state folder: there is a lab, or what is left of one, as long as it exists.
pub const STATE: &str = "/var/lib/giantnetes-lab";
pub const SYSTEM: &str = "giantnetes-system";

/// Names of what kubectl lists.
pub const NAMED: &str = "jsonpath={.items[*].metadata.name}";

/// Runs the steps of a test one after the other, telling what they are and how long each takes. The first that fails is the
/// last, unless `KEEP_GOING` is set: then all run that follow the first one, on which the others build.
pub fn in_steps<S>(steps: &[(&str, S)], run: impl Fn(&S) -> Result<()>) {
    let keep_going = std::env::var_os("KEEP_GOING").is_some();
    let mut failed = Vec::new();
    for (place, (name, step)) in steps.iter().enumerate() {
        let started = Instant::now();
        println!("--- {name}");
        match run(step) {
            Ok(()) => println!("    ok, {:.1?}", started.elapsed()),
            Err(error) if keep_going && place > 0 => {
                println!("    FAILED after {:.1?}: {error:#}", started.elapsed());
                failed.push(*name);
            }
            Err(error) => panic!("{name}: {error:#}"),
        }
    }
    assert!(failed.is_empty(), "failed: {failed:?}");
}

/// How long tests wait for an emulated guest: 15 minutes, or as many seconds as `PATIENCE` says.
pub fn patience() -> Duration {
    let chosen = std::env::var("PATIENCE").ok().map(|seconds| seconds.parse().expect("PATIENCE in seconds"));
    Duration::from_secs(chosen.unwrap_or(900))
}

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The binary of the product, as it is built beside the tests.
pub fn giantnetes() -> PathBuf {
    let binary = Path::new(env!("CARGO_BIN_EXE_lab")).with_file_name("giantnetes");
    assert!(binary.exists(), "{} is missing: `make build` makes it", binary.display());
    binary
}

fn script(path: &str, args: &[&str]) -> String {
    let output = Run::new(root().join(path)).args(args.iter().copied()).timeout(Duration::from_secs(60)).output();
    output.unwrap().trim().to_owned()
}

/// For `env`: without what cargo says to tests of their own crate. Build scripts that look at it would run again, and all that
/// depends on their crates would be built anew, here and at the next build outside of a test.
fn of_no_test(env: Run) -> Run {
    let of_the_test = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"];
    let names = std::env::vars().map(|(name, _)| name);
    let unset = names.filter(|name| of_the_test.iter().any(|start| name.starts_with(start)));
    env.args(unset.flat_map(|name| ["-u".to_owned(), name]))
}

/// `make TARGET` as a person runs it.
pub fn make(target: &str) -> Result<String> {
    of_no_test(Run::new("env"))
        .args(["make", "--no-print-directory", "-C", &root().display().to_string(), target])
        .timeout(Duration::from_secs(900))
        .output()
}

/// Path of an image's archive, or of the node image's folder.
pub fn image_path(name: &str) -> PathBuf {
    script("images/build.sh", &["--path", name]).into()
}

/// The reference that an image's archive carries.
pub fn image_ref(name: &str) -> String {
    script("images/build.sh", &["--ref", name])
}

/// What was released last, as it was built (e2e/release.sh).
pub struct Release {
    pub version: String,
    folder: PathBuf,
}

impl Release {
    /// Builds it, if it is not in the cache.
    ///
    /// # Errors
    /// If its commit cannot be had, or does not build.
    pub fn build() -> Result<Self> {
        let build = of_no_test(Run::new("env")).arg(root().join("e2e/release.sh"));
        build.timeout(Duration::from_secs(3600)).output().context("build what was released")?;
        Ok(Self {
            version: script("e2e/release.sh", &["--version"]),
            folder: script("e2e/release.sh", &["--dir"]).into(),
        })
    }

    pub fn giantnetes(&self) -> PathBuf {
        self.folder.join("giantnetes")
    }

    /// The reference of an image with it: `controller` or `vm`.
    pub fn image(&self, name: &str) -> Result<String> {
        let words =
            [format!("GIANTNETES_RELEASE={}", self.version), format!("GIANTNETES_BIN={}", self.giantnetes().display())];
        let build = Run::new("env").args(words).arg(root().join("images/build.sh")).args(["--ref", name]);
        Ok(build.timeout(Duration::from_secs(60)).output()?.trim().to_owned())
    }

    /// The tree that it was built of.
    pub fn tree(&self) -> PathBuf {
        self.folder.join("source")
    }
}

/// Keeps what a benchmark measured: as a line of the file that `GIANTNETES_BENCH` names, if it does. docs/benchmarks/tables.py
/// takes it from there.
pub fn keep(bench: &str, measured: Value) {
    use std::io::Write as _;
    let Some(path) = std::env::var_os("GIANTNETES_BENCH") else { return };
    let mut run = measured;
    run["bench"] = bench.into();
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    run["load"] = load.split(' ').next().and_then(|load| load.parse::<f64>().ok()).into();
    let mut file = std::fs::File::options().create(true).append(true).open(path).unwrap();
    writeln!(file, "{run}").unwrap();
}

/// The folder of a tools product.
pub fn tool(product: &str) -> PathBuf {
    script("e2e/tools/build.sh", &["--dir", product]).into()
}

/// The binary of helm.
pub fn helm() -> PathBuf {
    tool("helm").join("helm")
}

/// `helm template` of the chart, for a release of this name.
pub fn helm_template(release: &str) -> Run {
    helm_template_of(&root(), release)
}

/// The same of the chart in another tree.
pub fn helm_template_of(tree: &Path, release: &str) -> Run {
    Run::new(helm())
        .args(["template", release, &tree.join("charts/giantnetes").display().to_string()])
        // Without a cluster helm takes its own library's age for Kubernetes' version.
        .args(["--kube-version", "1.36.3"])
        .timeout(Duration::from_secs(60))
}

/// One template of the chart, rendered for a release of this name in namespace `default`.
pub fn rendered(release: &str, template: &str) -> String {
    let words = ["--namespace", "default", "--show-only", &format!("templates/{template}")];
    helm_template(release).args(words).output().unwrap()
}

/// The running lab with the chart installed.
pub fn installed() -> Lab {
    installed_with("")
}

/// The same, with further values in the words of helm's `--set`, each after a comma.
pub fn installed_with(values: &str) -> Lab {
    let lab = Lab::running().expect("no lab is running: `make lab-up` raises one");
    install(&lab, &root(), &image_ref("controller"), values).expect("helm installs the chart");
    lab
}

/// Installs the chart of this tree with this image of the controller manager, or upgrades what is installed to it.
pub fn install(lab: &Lab, tree: &Path, image: &str, values: &str) -> Result<String> {
    let (repository, tag) = image.rsplit_once(':').context("a reference with a tag")?;
    helm_in(lab)
        .args(["upgrade", "--install", "giantnetes", &tree.join("charts/giantnetes").display().to_string()])
        .args(["--namespace", SYSTEM, "--create-namespace", "--wait", "--timeout", "2m"])
        .args(["--set", &format!("image.repository={repository},image.tag={tag},log.filter=info\\,giantnetes=debug")])
        // One replica, of which a test may end the process, and short times to wait for.
        .args([
            "--set",
            &format!("replicas=1,leaseDuration=5s,kvm.devicePlugin.enabled=false,settings.network.quarantine=2s,settings.network.egressAllowed={{10.231.0.1/32}}{values}"),
        ])
        // Braces mean lists to --set.
        .args([
            "--set-json",
            r#"settings.exposure={"hostTemplate":"{name}.{namespace}.guests.test","className":"nginx","port":10443,"gateway":{"namespace":"ingress","name":"public","port":10443}}"#,
        ])
        .args(["--set-json", &format!("settings.vault={}", vault_settings(lab))])
        .output()
}

/// helm on the lab, up to the words of what it is to do.
pub fn helm_in(lab: &Lab) -> Run {
    // Its cache of the API goes with the lab, not into the home of who runs the tests.
    Run::new("env")
        .args([format!("KUBECACHEDIR={}", lab.state().join("kubectl-cache").display())])
        .arg(helm())
        .args(["--kubeconfig", &lab.kubeconfig().display().to_string()])
        .timeout(Duration::from_secs(200))
}

/// The chart's settings for the lab's Vault.
fn vault_settings(lab: &Lab) -> Value {
    let vault = lab.vault();
    serde_json::json!({
        "address": vault.url(),
        "caCertificate": std::fs::read_to_string(vault.ca()).unwrap(),
        "auth": {"kubernetes": {"mount": lab::vault::LOGIN, "role": lab::vault::MANAGER}},
    })
}

/// The PKI mounts of guests in the lab's Vault.
pub fn mounts_in_vault(lab: &Lab) -> Result<Vec<String>> {
    let vault = lab.vault();
    let all = vault.ask(Some(&vault.root_token()?), "GET", "sys/mounts", &Value::Null)?;
    let all = all["data"].as_object().context("a list of mounts")?;
    Ok(all.keys().filter(|path| path.starts_with("giantnetes/")).cloned().collect())
}

/// A Cluster of a test, in a namespace of its own. Dropping it deletes it, whatever happened.
pub struct Guest<'a> {
    pub lab: &'a Lab,
    pub namespace: &'static str,
    pub name: &'static str,
    /// What [`manager_writes`] said before the Cluster was created.
    pub writes_before: usize,
    folder: PathBuf,
}

impl<'a> Guest<'a> {
    /// Creates the Cluster `name` with this spec.
    pub fn create(lab: &'a Lab, namespace: &'static str, name: &'static str, spec: &str) -> Self {
        let manifest =
            format!("{{apiVersion: giantnetes.io/v1alpha1, kind: Cluster, metadata: {{name: {name}}}, spec: {spec}}}");
        Self::apply(lab, namespace, name, &manifest)
    }

    /// Creates the Cluster of a manifest, whose name is `name`.
    pub fn apply(lab: &'a Lab, namespace: &'static str, name: &'static str, manifest: &str) -> Self {
        let guest = Self::expected(lab, namespace, name);
        lab.apply_in(namespace, manifest).unwrap();
        guest
    }

    /// The Cluster that somebody else is going to create in `namespace`, which is made.
    pub fn expected(lab: &'a Lab, namespace: &'static str, name: &'static str) -> Self {
        let folder = std::env::temp_dir().join(format!("giantnetes-{namespace}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        lab.apply(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {namespace}}}}}")).unwrap();
        Self { lab, namespace, name, writes_before: manager_writes(lab).unwrap(), folder }
    }

    /// The Cluster as it is.
    pub fn object(&self) -> Result<Value> {
        let text =
            self.lab.kubectl(&["-n", self.namespace, "get", "clusters.giantnetes.io", self.name, "-o", "json"])?;
        Ok(serde_json::from_str(&text)?)
    }

    /// The guest's namespace in the management cluster.
    pub fn home(&self) -> Result<String> {
        let object = self.object()?;
        let id = object["status"]["id"].as_str().context("the Cluster has no id yet")?;
        Ok(format!("g8s-{id}"))
    }

    /// Waits until a condition has a status; tells the Cluster's message if it does not.
    pub fn await_condition(&self, limit: Duration, type_: &str, status: &str) -> Result<()> {
        let mut last = String::new();
        // Each look starts a kubectl, on the CPUs that the guest comes up on.
        wait_every(Duration::from_secs(3), limit, &format!("{}: {type_}={status}", self.name), || {
            let object = self.object()?;
            let message = format!("{} {}", object["status"]["phase"], object["status"]["message"]);
            if message != last {
                println!("    {message}");
                last = message;
            }
            let conditions = object["status"]["conditions"].as_array().context("no conditions yet")?;
            let found = conditions.iter().find(|condition| condition["type"] == type_);
            let found = found.with_context(|| format!("no condition {type_} yet"))?;
            ensure!(found["status"] == status, "{} {}", found["status"], found["message"]);
            Ok(())
        })
    }

    /// Waits until the guest is Ready, up to [`patience`].
    pub fn await_ready(&self) -> Result<()> {
        self.await_condition(patience(), "Ready", "True")
    }

    /// The same, and tells how many of the seconds that the design has for it were taken. They are an aim: what an emulated
    /// boot takes is the machine's to say, and differs by half within an hour (docs/benchmarks.md).
    pub fn await_first_ready(&self, aim: u64) -> Result<()> {
        let started = Instant::now();
        self.await_ready()?;
        let took = started.elapsed();
        let verdict = if took <= Duration::from_secs(3 * aim) { "within" } else { "not within" };
        println!("    Ready after {took:.1?}: {verdict} three times the aim of {aim} s");
        println!("    {} s after the last VM pod was started", self.seconds_since_the_start()?);
        Ok(())
    }

    /// Seconds from the start of the last VM pod until the Cluster was Ready.
    fn seconds_since_the_start(&self) -> Result<i64> {
        let starts =
            self.lab.kubectl(&["-n", &self.home()?, "get", "pods", "-o", "jsonpath={.items[*].status.startTime}"])?;
        // All in one form, so that their order is that of their letters.
        let last: Timestamp = starts.split_whitespace().max().context("no VM pod was started")?.parse()?;
        let object = self.object()?;
        let conditions = object["status"]["conditions"].as_array().context("no conditions")?;
        let ready = conditions.iter().find(|condition| condition["type"] == "Ready").context("no condition Ready")?;
        let ready: Timestamp = ready["lastTransitionTime"].as_str().context("no time")?.parse()?;
        Ok(ready.duration_since(last).as_secs())
    }

    /// Runs kubectl against the guest, as its administrator, through the Ingress if the guest has one.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.kubectl_input(args, "")
    }

    /// The same, with something on its standard input.
    pub fn kubectl_input(&self, args: &[&str], input: &str) -> Result<String> {
        self.run_kubectl(&self.kubeconfig("administrator", &[])?, args, input)
    }

    /// Runs kubectl as a user whom [`Guest::kubeconfig`] let in.
    pub fn kubectl_as(&self, user: &str, args: &[&str]) -> Result<String> {
        self.run_kubectl(&self.folder.join(user), args, "")
    }

    fn run_kubectl(&self, kubeconfig: &Path, args: &[&str], input: &str) -> Result<String> {
        let words = self.kubectl_words(kubeconfig)?;
        let [program, words @ ..] = &words[..] else { bail!("no kubectl") };
        Run::new(program)
            .args(words.iter().cloned())
            .arg("--request-timeout=60s")
            .args(args.iter().copied())
            .timeout(Duration::from_secs(200))
            .input(input)
            .output()
    }

    /// kubectl against the guest, as a command that the caller runs and ends.
    pub fn command(&self, args: &[&str]) -> Result<std::process::Command> {
        self.command_as("administrator", args)
    }

    /// The same, as a user whom [`Guest::kubeconfig`] lets in.
    pub fn command_as(&self, user: &str, args: &[&str]) -> Result<std::process::Command> {
        let words = self.kubectl_words(&self.kubeconfig(user, &[])?)?;
        let [program, words @ ..] = &words[..] else { bail!("no kubectl") };
        let mut command = std::process::Command::new(program);
        command.args(words).args(args);
        Ok(command)
    }

    /// What `giantnetes kubeconfig` prints with these further words, in a file that is kept for as long as the guest.
    pub fn kubeconfig(&self, user: &str, words: &[&str]) -> Result<PathBuf> {
        let file = self.folder.join(user);
        if !file.exists() || !words.is_empty() {
            let kubeconfig = Run::new("env")
                .args([format!("KUBECONFIG={}", self.lab.kubeconfig().display())])
                .arg(giantnetes())
                .args(["kubeconfig", self.name, "-n", self.namespace])
                .args(words.iter().copied())
                // It waits for what it made by itself, and says what for.
                .timeout(Duration::from_secs(60))
                .output()?;
            std::fs::write(&file, kubeconfig)?;
        }
        Ok(file)
    }

    /// kubectl and what leads it to the guest.
    fn kubectl_words(&self, kubeconfig: &Path) -> Result<Vec<String>> {
        // No DNS knows the lab's names: the ingress controller is told what a resolver would lead to it for.
        let text = std::fs::read_to_string(kubeconfig)?;
        let host = text.split_once("server: https://").and_then(|(_, rest)| rest.split_once(":10443"));
        let mut words = vec![
            self.lab.kubectl_binary().display().to_string(),
            format!("--kubeconfig={}", kubeconfig.display()),
            format!("--cache-dir={}", self.folder.join("kubectl-cache").display()),
        ];
        if let Some((host, _)) = host {
            words.extend(["--server=https://127.0.0.1:10443".to_owned(), format!("--tls-server-name={host}")]);
        }
        Ok(words)
    }

    /// Runs a command in the VM pod's container.
    pub fn in_vm_pod(&self, command: &str) -> Result<String> {
        let home = self.home()?;
        self.lab.kubectl(&["-n", &home, "exec", "master-0", "--", "sh", "-c", command])
    }

    /// One value of a VM pod.
    pub fn vm_pod(&self, name: &str, path: &str) -> Result<String> {
        self.lab.kubectl(&["-n", &self.home()?, "get", "pod", name, "-o", &format!("jsonpath={path}")])
    }

    /// Merges `patch` into the Cluster.
    pub fn change(&self, patch: &str) -> Result<String> {
        let args = ["-n", self.namespace, "patch", "clusters.giantnetes.io", self.name, "--type=merge", "-p", patch];
        self.lab.kubectl(&args)
    }

    /// Deletes the Cluster and waits until it is gone. Answers how long that took.
    pub fn delete(&self, limit: Duration) -> Result<Duration> {
        let started = Instant::now();
        let args = ["-n", self.namespace, "delete", "clusters.giantnetes.io", self.name, "--ignore-not-found"];
        self.lab.kubectl_within(limit, &args)?;
        Ok(started.elapsed())
    }
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.explain();
        }
        let _ = self.delete(Duration::from_secs(120));
        let _ = self.lab.kubectl_within(Duration::from_secs(60), &["delete", "namespace", self.namespace]);
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Guest<'_> {
    /// Prints what a person would look at first.
    fn explain(&self) {
        let home = self.home().unwrap_or_default();
        for args in [
            vec!["-n", self.namespace, "get", "clusters.giantnetes.io", self.name, "-o", "yaml"],
            vec!["-n", &home, "get", "pods,events"],
            vec!["-n", &home, "logs", "master-0", "--tail=60"],
            vec!["-n", SYSTEM, "logs", "deployment/giantnetes", "--tail=60"],
        ] {
            println!("--- kubectl {}", args.join(" "));
            match self.lab.kubectl(&args) {
                Ok(text) => println!("{text}"),
                Err(error) => println!("{error:#}"),
            }
        }
    }
}

/// How many writes of the controller manager the management API has on record.
pub fn manager_writes(lab: &Lab) -> Result<usize> {
    let manager = format!("\"username\":\"system:serviceaccount:{SYSTEM}:giantnetes\"");
    Ok(writes_on_record(lab)?.lines().filter(|line| line.contains(&manager)).count())
}

/// What the management API has on record of everybody's writes, in no order: the record goes on in another file now and then.
pub fn writes_on_record(lab: &Lab) -> Result<String> {
    let mut all = String::new();
    for entry in std::fs::read_dir(lab.state().join("logs"))? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("audit")) {
            all += &std::fs::read_to_string(path)?;
        }
    }
    Ok(all)
}

/// Kills the controller manager as nothing but `kill -9` does. Answers its process id.
pub fn kill_manager(lab: &Lab) -> Result<i32> {
    let manager = wait_for(Duration::from_secs(60), "a running controller manager", || {
        let pods = lab.kubectl(&["-n", SYSTEM, "get", "pods", "-o", "jsonpath={.items[*].status.phase}"])?;
        ensure!(pods == "Running", "its pod is {pods}");
        processes("giantnetes\0run\0")?.first().copied().context("there is no process of it")
    })?;
    Run::new("kill").args(["-9", &manager.to_string()]).output()?;
    // Dead it is; a pod of another name comes at once, where kubelet would restart this one after a longer pause each time.
    lab.kubectl(&["-n", SYSTEM, "delete", "pods", "--all", "--force", "--grace-period=0"])?;
    Ok(manager)
}

/// Ids of processes whose command line (words ended by NUL) starts so, after the folder of the program.
pub fn processes(command: &str) -> Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse::<i32>() else { continue };
        let Ok(line) = std::fs::read_to_string(format!("/proc/{pid}/cmdline")) else { continue };
        let program = line.split('\0').next().unwrap_or_default();
        let folder = program.rfind('/').map_or(0, |slash| slash + 1);
        if line[folder..].starts_with(command) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Processes of guests' machines.
pub fn machines() -> Result<Vec<i32>> {
    processes("qemu-system-x86_64\0-nodefaults\0")
}

/// Runs `lab` with these words.
pub fn lab_command(words: &str) -> Result<String> {
    Run::new(env!("CARGO_BIN_EXE_lab")).args(words.split(' ')).timeout(Duration::from_secs(240)).output()
}

/// Prints how long something took, which may be its budget at most. Waiting for it ends later, by its own deadline.
pub fn in_time<T>(what: &str, budget: u64, action: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let value = action();
    let took = started.elapsed();
    println!("    {what}: {took:.1?} (budget {budget} s)");
    assert!(took <= Duration::from_secs(budget), "{what} took {took:.1?}, its budget is {budget} s");
    value
}

/// Fails unless the machine is as it was: nothing has come and nothing has gone.
#[track_caller]
pub fn assert_unchanged(before: &Snapshot) {
    // The kernel frees network namespaces and their devices some time after they were given up.
    wait_for(Duration::from_secs(5), "the machine being as before", || {
        let differences = before.differences(&snapshot()?);
        ensure!(differences.is_empty(), "\n{}", differences.join("\n"));
        Ok(())
    })
    .unwrap();
    assert!(!Path::new(STATE).exists(), "{STATE} is there");
}

/// All objects of a kind, as JSON.
pub fn list(lab: &Lab, args: &[&str]) -> Result<Vec<Value>> {
    let text = lab.kubectl(&[&["get"], args, &["-o", "json"]].concat())?;
    let list: Value = serde_json::from_str(&text)?;
    match list["items"].as_array() {
        Some(items) => Ok(items.clone()),
        None => bail!("{args:?} is no list"),
    }
}
