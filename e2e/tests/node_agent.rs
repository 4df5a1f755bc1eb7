//! The agent of a node on AWS, against a real Vault, an STS that verifies signatures, and a metadata service.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use std::{
    fs,
    net::IpAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use giantnetes::{
    api::names,
    aws::{
        admission::{
            Admission,
            plan::{self, Group},
        },
        identity::{self, Nodes},
        tags::Owner,
        user_data::{Keys, OWN_ADDRESS, OWN_NAME},
    },
    cluster::{ClusterKey, Identity},
    node_agent::config::{AuthorityAt, Config, KeyFile, Keys as Kept, Login, Machine, Readers, Wanted},
    pki::{
        authority::Kept as PkiKept,
        embedded::{self, fingerprint},
        leaf::{self, Authority, Leaf},
        roots::Roots,
        vault::{Vault, check, client::Address},
    },
    settings::VaultSettings,
};
use k8s_openapi::jiff::Timestamp;
use lab::{command::Run, wait_for};
use rcgen::{KeyPair, PublicKeyData as _};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use support::{
    instances::{Instance, Instances},
    processes::{Process, spawn, tied},
    vault::{SERVER_ID, VaultServer},
};
use x509_parser::pem::parse_x509_pem;

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
const METHOD: &str = identity::METHOD;
/// The metadata service's stand-in is a process, Vault asks another one, and the machine builds something: that takes a while.
const PATIENCE: Duration = Duration::from_secs(60);

/// A guest with a control plane and two pools, an instance of each, and a Vault that knows them.
struct World {
    instances: Instances,
    vault: VaultServer,
    /// Its three logins, and the ids that Vault gave them.
    logins: Vec<(String, String)>,
    mount: String,
    root: String,
    cluster: Identity,
    owner: Owner,
}

impl World {
    fn new(name: &str) -> Self {
        let vault = VaultServer::start(name).unwrap();
        let roles = ["g8s-Masters-1A", "g8s-web-Role-2B", "g8s-db-Role-3C"];
        let instances = Instances::start(vault.folder(), &roles).unwrap();
        let cluster = Identity::new(ClusterKey { namespace: "team".into(), name: "demo".into() }, "uid".into());
        let owner = Owner { uid: "uid".into(), id: cluster.id.clone(), name: "team/demo".into() };
        vault.await_nodes(&instances.here.sts).unwrap();
        let (mount, root) = authority(&vault, &cluster);
        let mut world = Self { instances, vault, logins: Vec::new(), mount, root, cluster, owner: owner.clone() };
        let nodes = [Nodes::ControlPlane, Nodes::Pool("web"), Nodes::Pool("db")];
        for (index, nodes) in nodes.into_iter().enumerate() {
            let login = nodes.login(&owner);
            let id = world.admit(&login, &identity::login(&world.instance(index).arn).unwrap()).unwrap();
            world.logins.push((login, id));
        }
        world
    }

    fn instance(&self, index: usize) -> &Instance {
        &self.instances.here.instances[index]
    }

    fn manager(&self, args: &[&str]) -> Result<String> {
        self.vault.as_holder(&self.vault.managers_token()?, args).output()
    }

    /// Writes something into Vault by the rights of the controller manager.
    fn write(&self, path: &str, body: &Value) -> Result<()> {
        let file = self.vault.folder().join("body.json");
        fs::write(&file, body.to_string())?;
        self.manager(&["write", path, &format!("@{}", file.display())]).map(drop)
    }

    /// Lets an instance's role log in; the id that Vault gave that.
    fn admit(&self, login: &str, body: &Value) -> Result<String> {
        let path = format!("auth/{METHOD}/role/{login}");
        self.write(&path, body)?;
        Ok(self.manager(&["read", "-field=role_id", &path])?.trim().to_owned())
    }

    /// Lets nodes of a login have their certificates signed: those of every worker that has one of these names.
    fn allow(&self, login: usize, nodes: &[&str], ttl: Duration) {
        let all: Vec<_> = nodes.iter().map(|node| leaf::of_node(node, OWN_ADDRESS)).collect();
        for index in 0..all[0].len() {
            let leaves: Vec<_> = all.iter().map(|leaves| leaves[index].clone()).collect();
            let signer = identity::signer(&self.logins[login].1, leaves[0].name);
            self.write(&format!("{}/roles/{signer}", self.mount), &identity::signs(&leaves, ttl).unwrap()).unwrap();
        }
    }

    /// What user data hands to the node of a login, but for where things are on a node.
    fn config(&self, login: usize, folder: &Path, ttl: Duration) -> Config {
        let leaves = leaf::of_node(OWN_NAME, OWN_ADDRESS);
        let settings: VaultSettings = serde_json::from_value(self.vault.settings(&self.vault.app_role())).unwrap();
        let keys = Keys {
            vault: Address::from(&settings),
            login: Login {
                mount: METHOD.into(),
                role: self.logins[login].0.clone(),
                server_id: SERVER_ID.into(),
                region: "eu-central-1".into(),
                sts: "https://sts.eu-central-1.amazonaws.com/".into(),
            },
            login_id: &self.logins[login].1,
            authorities: vec![AuthorityAt {
                name: Authority::Kubernetes,
                mount: self.mount.clone(),
                fingerprint: fingerprint(&self.root),
                file: folder.join("ca.crt"),
            }],
            leaves: &leaves,
            ttl,
            lasting: None,
            machine: Machine::default(),
        };
        let mut config = keys.agent();
        config.metadata.clone_from(&self.instance(login).metadata);
        config.state = folder.join("state.json");
        for wanted in &mut config.certificates {
            (wanted.certificate, wanted.key) = (file(folder, &wanted.name, "crt"), file(folder, &wanted.name, "key"));
        }
        config
    }

    /// The certificates that the instance of a login is to have.
    fn leaves(&self, login: usize) -> [Leaf; 4] {
        let instance = self.instance(login);
        leaf::of_node(&instance.id, instance.address.parse::<IpAddr>().unwrap())
    }
}

fn file(folder: &Path, name: &str, end: &str) -> PathBuf {
    folder.join(format!("{name}.{end}"))
}

/// The guest's authority for Kubernetes: its mount and its certificate.
fn authority(vault: &VaultServer, cluster: &Identity) -> (String, String) {
    let settings = serde_json::from_value(vault.settings(&vault.app_role())).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = Vault::new(settings, None).unwrap();
        let root = client.make(cluster, Authority::Kubernetes, YEAR).await.unwrap();
        (client.mount(cluster, Authority::Kubernetes), root)
    })
}

/// A running agent, and what it writes.
struct Agent {
    process: Process,
    folder: PathBuf,
}

impl Agent {
    fn folder(world: &World, name: &str) -> PathBuf {
        let folder = world.vault.folder().join(name);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    /// An agent with this configuration, at the level of logs at which there is most to give away.
    fn start(folder: &Path, config: &Config, arguments: &[&str]) -> Self {
        fs::write(folder.join("agent.yaml"), serde_saphyr::to_string(config).unwrap()).unwrap();
        let mut command = tied(support::giantnetes());
        command.args(["--log", "trace", "node-agent", "--config"]).arg(folder.join("agent.yaml")).args(arguments);
        Self { process: spawn(&mut command, &folder.join("agent.log")).unwrap(), folder: folder.to_owned() }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("agent.log")).unwrap()
    }

    fn state(&self) -> Result<Value> {
        Ok(serde_json::from_str(&fs::read_to_string(self.folder.join("state.json"))?)?)
    }

    fn is_ready(&self) -> Result<()> {
        let state = self.state()?;
        ensure!(state["ready"] == true, "{state}");
        Ok(())
    }

    fn becomes_ready(&self) {
        wait_for(PATIENCE, "all certificates", || self.is_ready())
            .unwrap_or_else(|error| panic!("{error:#}\n{}", self.log()));
    }

    /// Waits until the log says this.
    fn says(&self, words: &str) {
        wait_for(PATIENCE, &format!("{words:?} in the log"), || {
            ensure!(
                self.log().contains(words),
                "{}",
                self.log().lines().filter(|line| line.contains("WARN")).collect::<Vec<_>>().join("\n")
            );
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error:#}"));
    }

    fn certificate(&self, name: &str) -> String {
        fs::read_to_string(file(&self.folder, name, "crt")).unwrap()
    }

    fn key(&self, name: &str) -> String {
        fs::read_to_string(file(&self.folder, name, "key")).unwrap()
    }

    /// Asks it to end, as systemd does.
    fn ends(&mut self) {
        Run::new("kill").args(["-TERM".to_owned(), self.process.id().to_string()]).output().unwrap();
        let began = Instant::now();
        let status =
            wait_for(Duration::from_secs(10), "the agent's end", || self.process.0.try_wait()?.context("it runs"));
        assert!(status.unwrap().success(), "{}", self.log());
        println!("    ended in {:.2?}", began.elapsed());
    }
}

/// What is waited for.
fn so(is: bool) -> Result<()> {
    ensure!(is, "it is not so yet");
    Ok(())
}

/// Serial number, beginning and end of a certificate.
fn facts(pem: &str) -> Option<(String, i64, i64)> {
    let (_, pem) = parse_x509_pem(pem.as_bytes()).ok()?;
    let certificate = pem.parse_x509().ok()?;
    let (from, to) = (certificate.validity().not_before.timestamp(), certificate.validity().not_after.timestamp());
    Some((certificate.raw_serial_as_string(), from, to))
}

/// Whether a file's certificate is this one, of this authority and for the file's key, as openssl judges the chain, too.
fn is_the_nodes(world: &World, agent: &Agent, leaf: &Leaf) {
    let key = KeyPair::from_pem(&agent.key(leaf.name)).unwrap();
    let certificate = agent.certificate(leaf.name);
    let problem = check::problem(&certificate, &world.root, leaf, key.der_bytes(), Timestamp::now());
    assert_eq!(problem, None, "{}", leaf.name);
    let authority = agent.folder.join("ca.crt");
    assert_eq!(fs::read_to_string(&authority).unwrap(), world.root);
    let file = file(&agent.folder, leaf.name, "crt");
    Run::new("openssl")
        .args(["verify", "-x509_strict", "-CAfile"])
        .args([authority, file].map(|path| path.display().to_string()))
        .output()
        .unwrap();
}

/// Nothing of these is in a log: keys, Vault's tokens, and what the metadata service handed out.
fn tells_no_secret(world: &World, agents: &[&Agent], keys: &[String]) {
    let mut secrets: Vec<String> = keys
        .iter()
        .flat_map(|key| key.lines().filter(|line| !line.starts_with("---")))
        .map(ToOwned::to_owned)
        .collect();
    let handed_out = world.instances.secrets().unwrap();
    assert!(secrets.len() > 8 && handed_out.len() > 2, "{} and {}", secrets.len(), handed_out.len());
    secrets.extend(handed_out);
    // Vault's own tokens begin so: of a batch, of a service.
    secrets.extend(["hvb.".into(), "hvs.".into(), "PRIVATE KEY".into(), "BEGIN CERTIFICATE REQUEST".into()]);
    assert!(
        agents.iter().filter(|agent| agent.log().contains("TRACE")).count() * 2 >= agents.len(),
        "there is no trace"
    );
    for agent in agents {
        let log = agent.log();
        assert!(log.contains("WARN") || log.contains("TRACE"), "{} is empty", agent.folder.display());
        for secret in &secrets {
            let line = log.lines().find(|line| line.contains(secret.as_str()));
            assert_eq!(line, None, "{}", agent.folder.display());
        }
    }
}

#[test]
fn a_node_gets_its_own_certificates_and_nobody_elses() {
    let world = World::new("agent");
    let (web, master) = (1, 0);
    let day = Duration::from_secs(24 * 3600);
    for login in 0..3 {
        world.allow(login, &[&world.instance(login).id], day);
    }
    let folder = Agent::folder(&world, "web");
    let mut config = world.config(web, &folder, day);
    let told = folder.join("told");
    config.certificates[1].readers = Readers::Group(fs::metadata(&folder).unwrap().gid());
    config.certificates[1].reload = vec!["sh".into(), "-c".into(), format!("echo x >>{}", told.display())];
    let mut agent = Agent::start(&folder, &config, &[]);
    agent.becomes_ready();
    for leaf in &world.leaves(web) {
        is_the_nodes(&world, &agent, leaf);
        let mode = |end| fs::metadata(file(&folder, leaf.name, end)).unwrap().mode() & 0o777;
        let expected = if leaf.name == config.certificates[1].name { 0o640 } else { 0o600 };
        assert_eq!((mode("key"), mode("crt")), (expected, expected), "{}", leaf.name);
    }
    assert_eq!(fs::read_to_string(&told).unwrap(), "x\n");
    println!("--- what is there is kept over kill -9, and by a second agent that is to end at once");
    let before: Vec<_> = world.leaves(web).map(|leaf| agent.certificate(leaf.name)).into();
    drop(agent);
    let mut once = Agent::start(&folder, &config, &["--once"]);
    let status = wait_for(PATIENCE, "the end of --once", || once.process.0.try_wait()?.context("it runs")).unwrap();
    assert!(status.success(), "{}", once.log());
    agent = Agent::start(&folder, &config, &[]);
    wait_for(PATIENCE, "a look", || {
        ensure!(agent.log().matches("this is the node").count() == 3, "it did not look yet");
        agent.is_ready()
    })
    .unwrap();
    assert_eq!(before, world.leaves(web).map(|leaf| agent.certificate(leaf.name)));
    println!("--- a file that is removed is had again, and whoever uses it is told");
    fs::remove_file(file(&folder, &config.certificates[1].name, "key")).unwrap();
    let mut keys: Vec<_> = [0, 2, 3].map(|index: usize| agent.key(world.leaves(web)[index].name)).into();
    drop(agent);
    agent = Agent::start(&folder, &config, &[]);
    wait_for(PATIENCE, "the file", || so(fs::read_to_string(&told)? == "x\nx\n")).unwrap();
    is_the_nodes(&world, &agent, &world.leaves(web)[1]);
    keys.push(agent.key(world.leaves(web)[1].name));
    agent.ends();

    println!("--- refused");
    let mut refused = Vec::new();
    let mut refuse = |name: &str, words: &str, change: &dyn Fn(&mut Config)| {
        let folder = Agent::folder(&world, name);
        let mut config = world.config(web, &folder, day);
        config.certificates.truncate(1);
        change(&mut config);
        let agent = Agent::start(&folder, &config, &[]);
        agent.says(words);
        let files = [&config.certificates[0].certificate, &config.certificates[0].key];
        assert!(files.iter().all(|file| !file.exists()), "{name}: there are files");
        wait_for(PATIENCE, "word of it", || so(agent.state()?["ready"] == false)).unwrap();
        println!("    {name}");
        refused.push(agent);
    };
    let another = |login: usize| {
        let role = identity::signer(&world.logins[login].1, "kubelet");
        let name = world.instance(login).id.clone();
        move |config: &mut Config| {
            let wanted: &mut Wanted = &mut config.certificates[0];
            (wanted.role, wanted.common_name) = (role.clone(), format!("system:node:{name}"));
        }
    };
    refuse("a-master's-certificate", "permission denied", &another(master));
    refuse("another-pool's-certificate", "permission denied", &another(2));
    refuse("another-node's-name", "not allowed by this role", &|config| {
        config.certificates[0].common_name = format!("system:node:{}", world.instance(master).id);
    });
    refuse("a-group-of-its-own-choice", "has another subject", &|config| {
        config.certificates[0].organisations = vec!["system:masters".into()];
    });
    refuse("a-master's-login", "does not belong to the role", &|config| {
        config.login.role = world.logins[master].0.clone();
    });
    refuse("a-signature-for-another-vault", "error validating X-Vault-AWS-IAM-Server-ID", &|config| {
        config.login.server_id = "another.example.com".into();
    });
    refuse("another-authority", "is not the guest's authority", &|config| {
        config.authorities[0].fingerprint = "00".repeat(32);
    });
    refuse("an-instance-without-metadata", "ask the metadata service", &|config| {
        config.metadata = "http://127.0.0.1:9".into();
    });
    let mut all: Vec<&Agent> = refused.iter().collect();
    all.push(&agent);
    tells_no_secret(&world, &all, &keys);
}

#[test]
fn certificates_are_renewed_without_a_gap_and_after_vault_was_away() {
    const TTL: Duration = Duration::from_secs(24);
    let mut world = World::new("renewal");
    let web = 1;
    world.allow(web, &[&world.instance(web).id], TTL);
    let folder = Agent::folder(&world, "web");
    let mut config = world.config(web, &folder, TTL);
    config.certificates.truncate(1);
    let leaf = world.leaves(web)[0].clone();
    let mut agent = Agent::start(&folder, &config, &[]);
    agent.becomes_ready();
    let (mut keys, mut serials) = (vec![agent.key(leaf.name)], Vec::new());
    let began = Instant::now();
    let (mut last, mut looks) = (String::new(), 0);
    while serials.len() < 4 {
        assert!(began.elapsed() < TTL * 5, "{serials:?}\n{}", agent.log());
        let (serial, _, to) = facts(&agent.certificate(leaf.name)).unwrap();
        let now = Timestamp::now().as_second();
        assert!(now < to, "it ended at {to}, and it is {now}");
        if serial != last {
            // Two thirds of a life apart, and no renewal more.
            serials.push(began.elapsed().as_secs());
            keys.push(agent.key(leaf.name));
            last = serial;
        }
        looks += 1;
        std::thread::sleep(Duration::from_millis(50));
    }
    println!("    renewed after {serials:?} s; looked {looks} times");
    for pair in serials.windows(2).skip(1) {
        assert!((14..=20).contains(&(pair[1] - pair[0])), "{serials:?}");
    }
    is_the_nodes(&world, &agent, &leaf);

    println!("--- without Vault");
    world.vault.kill();
    let (before, _, end) = facts(&agent.certificate(leaf.name)).unwrap();
    agent.says("Vault: write");
    // Nothing is lost meanwhile, and it does not ask all the time.
    let over = Timestamp::from_second(end).unwrap();
    wait_for(TTL * 2, "the certificate's end", || so(Timestamp::now() > over)).unwrap();
    assert_eq!(facts(&agent.certificate(leaf.name)).unwrap().0, before);
    wait_for(PATIENCE, "word of it", || so(agent.state()?["ready"] == false)).unwrap();
    let tries = agent.log().lines().filter(|line| line.contains("WARN")).count();
    assert!((1..=8).contains(&tries), "it tried {tries} times");
    world.vault.run().unwrap();
    world.vault.unseal().unwrap();
    agent.becomes_ready();
    is_the_nodes(&world, &agent, &leaf);
    keys.push(agent.key(leaf.name));
    agent.ends();
    tells_no_secret(&world, &[&agent], &keys);
}

/// Who takes over the controller manager cannot let anybody into Vault by more than a node's rights.
#[test]
fn the_manager_says_who_logs_in_and_not_what_for() {
    let world = World::new("agent-rights");
    let arn = world.instance(1).arn.clone();
    let login = identity::login(&arn).unwrap();
    let path = |name: &str| format!("auth/{METHOD}/role/{name}");
    let with = |field: &str, value: Value| {
        let mut body = login.clone();
        body[field] = value;
        body
    };
    for (what, name, body) in [
        ("another policy", "g8s-x", with("token_policies", json!("giantnetes"))),
        ("one more policy", "g8s-x", with("token_policies", json!(["giantnetes-nodes", "giantnetes"]))),
        ("the older word for policies", "g8s-x", with("policies", json!("giantnetes"))),
        ("default policy", "g8s-x", with("token_no_default_policy", json!(false))),
        ("another sort of login", "g8s-x", with("auth_type", json!("ec2"))),
        ("another's name", "root", login.clone()),
    ] {
        let error = world.write(&path(name), &body).expect_err(what);
        assert!(format!("{error:#}").contains("permission denied"), "{what}: {error:#}");
    }
    for refused in [
        ["read", &format!("auth/{METHOD}/config/client")],
        ["list", &format!("auth/{METHOD}/roles")],
        ["read", "sys/policies/acl/giantnetes-nodes"],
    ] {
        let error = world.manager(&refused).expect_err("it was allowed");
        assert!(format!("{error:#}").contains("permission denied"), "{refused:?}: {error:#}");
    }
    world.write(&path("g8s-x"), &login).unwrap();
    world.manager(&["delete", &path("g8s-x")]).unwrap();
    assert_eq!(names::guest_namespace("x"), "g8s-x");
}

/// What the operator calls, by the rights of the controller manager alone.
#[test]
fn nodes_are_let_in_and_shut_out_and_masters_alone_have_keys_that_nobody_signs() {
    let world = World::new("admission");
    let day = Duration::from_secs(24 * 3600);
    let settings: VaultSettings = serde_json::from_value(world.vault.settings(&world.vault.app_role())).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let vault = runtime.block_on(async { Vault::new(settings, None) }).unwrap();
    let admission = Admission { vault: &vault, identity: &world.cluster, owner: &world.owner };
    let kept = |key| PkiKept::InVault { certificate: "a".into(), mount: key };
    let [kubernetes, etcd, front_proxy] = ["a", "b", "c"].map(|mount| kept(mount.to_owned()));
    let (service_account, encryption) = (embedded::key_pair().unwrap(), embedded::encryption_config("key1").unwrap());
    let roots = Roots {
        kubernetes,
        etcd,
        front_proxy,
        service_account,
        encryption,
        rotated_for: 0,
        keys_for: giantnetes::pki::keys::Wishes::default(),
    };
    let arns: Vec<_> = (0..2).map(|index| world.instance(index).arn.clone()).collect();
    let group = |nodes, index: usize, may_come: bool| Group {
        nodes,
        role_arn: may_come.then_some(arns[index].as_str()),
        leaves: vec![leaf::of_node(&world.instance(index).id, OWN_ADDRESS).into()],
        ttl: day,
    };
    let ensure = |group: &Group<'_>| runtime.block_on(admission.ensure(group, Some(&roots))).unwrap();
    let audit = world.vault.folder().join("audit.log");
    world.vault.root(&["audit", "enable", "file", &format!("file_path={}", audit.display())]).unwrap();
    let writes = || {
        let text = fs::read_to_string(&audit).unwrap();
        let is_write = |line: &&str| {
            line.contains("\"type\":\"response\"")
                && !line.contains("/login\"")
                && ["create", "update", "delete"].iter().any(|what| line.contains(&format!("\"operation\":\"{what}\"")))
        };
        text.lines().filter(is_write).count()
    };

    println!("--- before there is a stack");
    let id = ensure(&group(Nodes::ControlPlane, 0, false));
    assert_eq!(id, world.logins[0].1, "a login that is changed gets another id");
    let config = |index: usize, folder: &str, id: &str| {
        let folder = Agent::folder(&world, folder);
        let mut config = world.config(index, &folder, day);
        let file = |(name, key): (&str, SecretString)| KeyFile {
            name: name.into(),
            sha256: fingerprint(key.expose_secret()),
            file: folder.join(name),
        };
        config.keys = Some(Kept { path: plan::keys_path(id), files: plan::keys(&roots).map(file).into() });
        (folder, config)
    };
    let (folder, of_master) = config(0, "master", &id);
    let mut agent = Agent::start(&folder, &of_master, &[]);
    agent.says("does not belong to the role");

    println!("--- after it");
    assert_eq!(ensure(&group(Nodes::ControlPlane, 0, true)), id);
    agent.becomes_ready();
    for (name, key) in plan::keys(&roots) {
        let path = folder.join(name);
        assert_eq!(fs::read_to_string(&path).unwrap(), key.expose_secret(), "{name}");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600, "{name}");
    }
    fs::write(folder.join("sa.key"), "torn").unwrap();
    let whole = roots.service_account.key.expose_secret();
    drop(agent);
    agent = Agent::start(&folder, &of_master, &[]);
    wait_for(PATIENCE, "the key", || so(fs::read_to_string(folder.join("sa.key"))? == whole)).unwrap();
    agent.becomes_ready();
    let before = writes();
    assert!(before > 4, "only {before} writes were noted");
    let _ = ensure(&group(Nodes::ControlPlane, 0, true));
    // A manager that just started has written nothing that it knows of.
    assert_eq!(writes(), before, "something is written where nothing changed");

    println!("--- a worker");
    ensure(&group(Nodes::Pool("web"), 1, true));
    let (folder, of_worker) = config(1, "worker", &id);
    let worker = Agent::start(&folder, &of_worker, &[]);
    worker.says("permission denied");
    wait_for(PATIENCE, "word of it", || so(worker.state()?["lacksKeys"] == true)).unwrap();
    assert!(worker.state().unwrap()["ready"] == false && !folder.join("sa.key").exists());
    let error = world.manager(&["read", &plan::keys_path(&id)]).expect_err("the manager reads keys");
    assert!(format!("{error:#}").contains("permission denied"), "{error:#}");

    println!("--- another key than the one that the node was told of");
    let (folder, mut other) = config(0, "other", &id);
    other.keys.as_mut().unwrap().files[1].sha256 = "00".repeat(32);
    let other = Agent::start(&folder, &other, &[]);
    other.says("is not the key that this node was told of");
    assert!(!folder.join("sa.key").exists() && !folder.join("encryption.yaml").exists());

    println!("--- shut out");
    let certificates = leaf::OF_WORKER.map(|name| (Authority::Kubernetes, name));
    for _ in 0..2 {
        runtime.block_on(admission.remove(Nodes::ControlPlane, &certificates)).unwrap();
    }
    let gone = |path: &str| {
        let error = world.vault.root(&["read", path]).expect_err(path);
        assert!(format!("{error:#}").contains("No value found"), "{error:#}");
    };
    gone(&plan::login_path(&world.owner, Nodes::ControlPlane));
    gone(&plan::keys_path(&id));
    gone(&plan::signer_path(&world.mount, &id, "kubelet"));
    assert!(world.vault.root(&["read", &plan::login_path(&world.owner, Nodes::Pool("web"))]).is_ok());
    let keys: Vec<_> = plan::keys(&roots).iter().map(|(_, key)| key.expose_secret().to_owned()).collect();
    tells_no_secret(&world, &[&agent, &worker, &other], &[agent.key("kubelet"), keys[1].clone(), keys[2].clone()]);
}
