//! A node on AWS really boots: the image for EC2 in an emulated machine with EC2's firmware identity, by exactly the user data that
//! lies in the launch template of a stack on ministack. It proves to a real Vault what it is, by the peer's STS, gets its
//! certificates, and joins a real control plane.
//!
//! All of it is in a network namespace, where the metadata service, the resolver and the API's load balancer have the addresses
//! that they have in a network of AWS's. QEMU's user-mode network carries the machine's packets there.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod support;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use giantnetes::{
    api::names,
    aws::{
        admission::{Admission, plan::Group},
        nodes::{Guest, Services},
        tags::Owner,
        template::{ApiAccess, Body, ClusterStack, Machine, Master, Nat, PoolStack, Purchase, Zone},
    },
    cluster::Valid,
    node_config::Blank,
    pki::{
        authority::Kept,
        embedded,
        leaf::{self, Authority, Leaf},
        roots::Roots,
        vault::{Vault, client::Address},
    },
    settings::VaultSettings,
};
use ipnet::Ipv4Net;
use k8s_openapi::jiff::Timestamp;
use lab::{command::Run, wait_for};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use secrecy::ExposeSecret as _;
use serde::Deserialize;
use serde_json::{Value, json};
use support::{
    apiserver::ApiServer,
    node::{cluster, ip},
    processes::{Process, spawn, tied},
    vault::{SERVER_ID, VaultServer},
};

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// The API's load balancer, in the guest's network.
const BALANCER: &str = "10.8.0.100";
/// Where Vault is, and what stands in for AWS, outside of it: the certificate of the lab's servers names it.
const OUTSIDE: &str = "10.231.0.2";
const VAULT_PORT: u16 = 8200;
/// What `e2e/aws/node.py` answers there in the name of all of AWS's services.
const AWS_PORT: u16 = 8080;
/// Every network of AWS's has its resolver and its metadata service there.
const RESOLVER: &str = "169.254.169.253";
const METADATA: &str = "169.254.169.254";

/// Runs a test in a network namespace of its own, with what a network of AWS's has.
fn in_a_network(test: impl FnOnce() + Send) {
    let name = format!("giantnetes-aws-{}", std::process::id());
    ip(&format!("netns add {name}"));
    ip(&format!("-n {name} link set lo up"));
    for address in [BALANCER, OUTSIDE, RESOLVER, METADATA] {
        ip(&format!("-n {name} addr add {address}/32 dev lo"));
    }
    let place = File::open(format!("/run/netns/{name}")).unwrap();
    let inside = || {
        move_into_link_name_space(place.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        test();
    };
    // A thread of its own: what it starts is inside, and ends with it.
    let ended = thread::scope(|scope| scope.spawn(inside).join());
    let _ = Run::new("ip").args(["netns", "del", &name]).output();
    if let Err(panic) = ended {
        std::panic::resume_unwind(panic);
    }
}

/// `e2e/aws/node.py`, which ends when its input does.
struct Around {
    process: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    handed_out: PathBuf,
    aws: String,
}

/// An instance, as ministack has it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Instance {
    id: String,
    address: String,
    arn: String,
    mac: String,
    subnet: Ipv4Net,
    /// What its launch template says, as base64.
    user_data: String,
    /// What it has to attach to itself: an interface's Ethernet address and address, and a volume's id.
    lasting: Vec<(String, String, String)>,
}

impl Around {
    fn start(folder: &Path, ways: &Value) -> Result<Self> {
        let handed_out = folder.join("handed-out");
        fs::write(&handed_out, "")?;
        let mut process = tied(support::root().join("e2e/aws/node.py"))
            .arg(&handed_out)
            .arg(ways.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(folder.join("around.log"))?)
            .spawn()
            .context("start e2e/aws/node.py")?;
        let (input, output) = (process.stdin.take(), process.stdout.take().context("its output")?);
        let mut around = Self { process, input, output: BufReader::new(output), handed_out, aws: String::new() };
        around.aws = around.hear()?["aws"].as_str().context("where it is")?.to_owned();
        Ok(around)
    }

    /// The next line that is an answer. What it says of installing comes before.
    fn hear(&mut self) -> Result<Value> {
        loop {
            let mut line = String::new();
            ensure!(self.output.read_line(&mut line)? > 0, "e2e/aws/node.py ended; why is in around.log");
            if line.starts_with('{') {
                return Ok(serde_json::from_str(&line)?);
            }
        }
    }

    fn ask(&mut self, question: &Value) -> Result<Value> {
        let input = self.input.as_mut().context("its input")?;
        writeln!(input, "{question}")?;
        self.hear()
    }

    /// Makes a stack; its outputs.
    fn make(&mut self, body: &Body) -> Result<BTreeMap<String, String>> {
        let question = json!({"stack": body.stack, "template": body.json, "tags": body.tags});
        Ok(serde_json::from_value(self.ask(&question)?)?)
    }

    /// The instance with this tag. From now on the metadata service answers for it.
    fn instance(&mut self, tag: &str, value: &str) -> Result<Instance> {
        Ok(serde_json::from_value(self.ask(&json!({"tag": tag, "value": value}))?)?)
    }
}

impl Drop for Around {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.process.wait();
    }
}

/// A guest with its authorities in Vault, and what surrounds its nodes.
struct World {
    // Ended first: it asks the others.
    around: Around,
    server: VaultServer,
    vault: Vault,
    cluster: Valid,
    owner: Owner,
    roots: Roots,
    runtime: tokio::runtime::Runtime,
    _resolver: Option<Process>,
}

impl World {
    fn new(name: &str, spec: &Value, api_port: u16) -> Result<Self> {
        let server = VaultServer::start(name)?;
        let ways = json!([[OUTSIDE, VAULT_PORT, server.port()], [BALANCER, names::API_PORT, api_port]]);
        let around = Around::start(server.folder(), &ways)?;
        server.await_nodes(&around.aws)?;
        let cluster = cluster(name, spec);
        let identity = &cluster.identity;
        let owner = Owner { uid: identity.uid.clone(), id: identity.id.clone(), name: format!("a/{name}") };
        let settings: VaultSettings = serde_json::from_value(server.settings(&server.app_role()))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let vault = runtime.block_on(async { Vault::new(settings, None) })?;
        let kept = |of| -> Result<Kept> {
            let certificate = runtime.block_on(vault.make(identity, of, YEAR))?;
            Ok(Kept::InVault { certificate, mount: vault.mount(identity, of) })
        };
        let roots = Roots {
            kubernetes: kept(Authority::Kubernetes)?,
            etcd: kept(Authority::Etcd)?,
            front_proxy: kept(Authority::FrontProxy)?,
            service_account: embedded::key_pair()?,
            encryption: embedded::encryption_config("key1")?,
            rotated_for: 0,
            keys_for: giantnetes::pki::keys::Wishes::default(),
        };
        Ok(Self { around, server, vault, cluster, owner, roots, runtime, _resolver: None })
    }

    fn folder(&self) -> &Path {
        self.server.folder()
    }

    /// The guest's zone, as Route 53 answers for it.
    fn resolve(&mut self, names: &[(&str, String)]) -> Result<()> {
        let hosts: String = names.iter().map(|(address, name)| format!("    {address} {name}\n")).collect();
        let text = format!(".:53 {{\n  bind {RESOLVER}\n  hosts {{\n{hosts}  }}\n  log\n}}\n");
        fs::write(self.folder().join("Corefile"), text)?;
        let mut command = tied(support::tool("coredns").join("coredns"));
        command.arg("-conf").arg(self.folder().join("Corefile"));
        self._resolver = Some(spawn(&mut command, &self.folder().join("coredns.log"))?);
        Ok(())
    }

    fn guest(&self) -> Guest<'_> {
        let settings: VaultSettings = serde_json::from_value(self.server.settings(&self.server.app_role())).unwrap();
        let at = |of: Authority| {
            let kept = self.roots.authority(of);
            (of, (self.vault.mount(&self.cluster.identity, of), kept.certificate().to_owned()))
        };
        Guest {
            cluster: &self.cluster,
            owner: &self.owner,
            has_cloud_controller: false,
            vault: Address { address: format!("https://{OUTSIDE}:{VAULT_PORT}"), ..Address::from(&settings) },
            server_id: SERVER_ID.into(),
            region: "eu-central-1".into(),
            services: Services { ec2: format!("http://{OUTSIDE}:{AWS_PORT}/"), ..Services::of("eu-central-1") },
            authorities: Authority::ALL.map(at).into(),
            ttl: DAY,
        }
    }

    /// What the operator does: the id of the login.
    fn admit(&self, group: &Group<'_>) -> String {
        let admission = Admission { vault: &self.vault, identity: &self.cluster.identity, owner: &self.owner };
        self.runtime.block_on(admission.ensure(group, Some(&self.roots))).unwrap()
    }

    /// A certificate of the guest's, signed in Vault, as files.
    fn sign(&self, leaf: &Leaf) -> [String; 2] {
        let authority = self.roots.authority(leaf.authority).in_vault().unwrap();
        let signed = self.vault.sign(authority, "test", leaf, Timestamp::now(), DAY);
        let pair = self.runtime.block_on(signed).unwrap();
        let [certificate, key] = ["crt", "key"].map(|end| self.folder().join(format!("{}.{end}", leaf.name)));
        fs::write(&certificate, &pair.certificate).unwrap();
        fs::write(&key, pair.key.expose_secret()).unwrap();
        [certificate, key].map(|path| path.display().to_string())
    }

    fn authority_file(&self) -> PathBuf {
        let file = self.folder().join("guest-ca.crt");
        fs::write(&file, self.roots.authority(Authority::Kubernetes).certificate()).unwrap();
        file
    }

    /// The guest's network and control plane, as a stack.
    fn cluster_stack(&self, master: Vec<u8>) -> Body {
        let zone = Zone {
            name: "eu-central-1a".into(),
            public: "10.8.0.0/24".parse().unwrap(),
            private: "10.8.16.0/20".parse().unwrap(),
        };
        let stack = ClusterStack {
            owner: self.owner.clone(),
            region: "eu-central-1".into(),
            network: "10.8.0.0/16".parse().unwrap(),
            masters: vec![Master { zone: zone.name.clone(), machine: machine(master), etcd_disk: 8 }],
            zones: vec![zone],
            nat: Nat::Single,
            api: ApiAccess::default(),
            spec_hash: "1".into(),
            tags: [].into(),
        };
        stack.render().unwrap()
    }

    fn pool_stack(&self, cluster: &BTreeMap<String, String>, user_data: Vec<u8>) -> Body {
        let stack = PoolStack {
            owner: self.owner.clone(),
            pool: "web".into(),
            subnets: cluster["PrivateSubnets"].split(',').map(ToOwned::to_owned).collect(),
            security_group: cluster["WorkerSecurityGroup"].clone(),
            key_arn: cluster["KeyArn"].clone(),
            min: 1,
            max: 1,
            machine: machine(user_data),
            purchase: Purchase::OnDemand,
            drain_timeout: 300,
            spec_hash: "1".into(),
            tags: [].into(),
        };
        stack.render().unwrap()
    }

    /// Nothing secret was told by the machine's console, by the user data or by any log.
    fn tells_no_secret(&self, console: &str) {
        let handed_out = fs::read_to_string(&self.around.handed_out).unwrap();
        let keys = [&self.roots.service_account.key, &self.roots.encryption];
        let keys: String = keys.iter().map(|key| key.expose_secret()).collect();
        let lines = handed_out.lines().chain(keys.lines().filter(|line| line.len() > 30));
        let mut count = 0;
        for secret in lines.chain(["hvb.", "hvs.", "PRIVATE KEY"]) {
            assert!(!console.contains(secret.trim()), "the console tells a secret");
            count += 1;
        }
        assert!(count > 6, "only {count} secrets are known");
    }
}

fn machine(user_data: Vec<u8>) -> Machine {
    Machine { image: "ami-0123456789abcdef0".into(), instance_type: "m7i.large".into(), disk: 20, user_data }
}

/// An emulated machine that takes itself for this instance.
struct Vm {
    _process: Process,
    console: PathBuf,
    began: Instant,
}

impl Vm {
    /// Starts the image for EC2. What comes to the loopback address at these ports gets to it.
    fn start(folder: &Path, instance: &Instance, ports: &[u16]) -> Self {
        let image = support::image_path("ami");
        let at = |name: &str| folder.join(name).display().to_string();
        let overlay = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"];
        let disk = image.join("disk.qcow2").display().to_string();
        Run::new("qemu-img").args(overlay).args([disk, at("root.qcow2"), "12G".into()]).output().unwrap();
        fs::copy("/usr/share/OVMF/OVMF_VARS_4M.fd", folder.join("firmware.fd")).unwrap();
        // EC2's: both begin so, and are one.
        let uuid = format!("ec2{:0>5}-6f3e-4a39-9e0b-000000000001", std::process::id() % 100_000);
        let (host, dns) = (nth(instance.subnet, 1), nth(instance.subnet, 2));
        let forwarded: String =
            ports.iter().map(|port| format!(",hostfwd=tcp:127.0.0.1:{port}-{}:{port}", instance.address)).collect();
        let mut command = tied("qemu-system-x86_64");
        let words = "-nodefaults -no-user-config -display none -vga none \
            -machine q35,usb=off,vmport=off,smbus=off,sata=off,hpet=off,i8042=off,graphics=off \
            -accel tcg,thread=multi -cpu max,la57=off,svm=off,avx=off,avx2=off,smap=off,smep=off -smp 2 -m 2048M \
            -drive if=pflash,format=raw,unit=0,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd \
            -object rng-random,id=rng,filename=/dev/urandom -device virtio-rng-pci,rng=rng \
            -chardev stdio,id=console,signal=off -serial chardev:console";
        command.args(words.split_whitespace());
        command.args(["-drive", &format!("if=pflash,format=raw,unit=1,file={}", at("firmware.fd"))]);
        let manufacturer = "manufacturer=Amazon EC2,product=m7i.large";
        command.args(["-smbios", &format!("type=1,{manufacturer},uuid={uuid},serial={uuid}")]);
        // As on Nitro: disks are NVMe, and a volume's serial number is its id.
        let root = format!("if=none,id=root,format=qcow2,cache=unsafe,file={}", at("root.qcow2"));
        command.args(["-drive", &root, "-device", "nvme,drive=root,serial=vol00000000000000001"]);
        let network = format!(
            "user,id=first,net={},host={host},dns={dns},dhcpstart={}{forwarded}",
            instance.subnet, instance.address
        );
        let card = format!("virtio-net-pci,netdev=first,mac={},romfile=", instance.mac);
        command.args(["-netdev", &network, "-device", &card]);
        for (index, (mac, _, volume)) in instance.lasting.iter().enumerate() {
            let (disk, serial) = (at(&format!("volume-{index}.raw")), volume.replace('-', ""));
            File::create(&disk).unwrap().set_len(8 << 30).unwrap();
            let drive = format!("if=none,id=volume{index},format=raw,cache=unsafe,file={disk}");
            command.args(["-drive", &drive, "-device", &format!("nvme,drive=volume{index},serial={serial}")]);
            let card = format!("virtio-net-pci,netdev=lasting{index},mac={mac},romfile=");
            command.args(["-netdev", &format!("user,id=lasting{index},restrict=on"), "-device", &card]);
        }
        let console = folder.join("console.log");
        let process = spawn(&mut command, &console).unwrap();
        Self { _process: process, console, began: Instant::now() }
    }

    fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap()).into_owned()
    }

    /// Waits for something that the machine is to come to.
    fn comes_to<T>(&self, what: &str, look: impl FnMut() -> Result<T>) -> T {
        let came = wait_for(support::patience(), what, look).unwrap_or_else(|error| {
            let console = self.console();
            let end: Vec<_> = console.lines().rev().take(60).collect();
            panic!("{error:#}\n{}", end.into_iter().rev().collect::<Vec<_>>().join("\n"))
        });
        println!("    {what}: {} s after it was started", self.began.elapsed().as_secs());
        came
    }
}

fn nth(net: Ipv4Net, n: u32) -> std::net::Ipv4Addr {
    std::net::Ipv4Addr::from(u32::from(net.network()) + n)
}

fn decoded(text: &str) -> Vec<u8> {
    let mut child = tied("base64").arg("-d").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let text = text.to_owned();
    let feed = thread::spawn(move || input.write_all(text.as_bytes()));
    let output = child.wait_with_output().unwrap();
    feed.join().unwrap().unwrap();
    output.stdout
}

#[test]
fn a_worker_boots_and_joins_by_what_its_launch_template_says() {
    in_a_network(|| {
        // The control plane: a real one, that knows the guest's authority, behind the load balancer's name.
        let port = support::processes::free_port().unwrap();
        let spec = json!({"nodePools": [{"name": "web", "labels": {"example.com/disk": "fast"}}]});
        let mut world = World::new("worker", &spec, port).unwrap();
        let ec2 = world.guest().ec2();
        world.resolve(&[(BALANCER, ec2.api())]).unwrap();
        let serving = leaf::of_master_on_ec2(&world.cluster, 0, &ec2, [127, 0, 0, 1].into()).remove(0);
        let [certificate, key] = world.sign(&serving);
        let api = ApiServer::start_at(
            "aws-node",
            port,
            world.roots.authority(Authority::Kubernetes).certificate(),
            &[
                // There is no route by which it could find out.
                &format!("--advertise-address={BALANCER}"),
                // Beside RBAC.
                "--authorization-mode=Node",
                "--enable-admission-plugins=NodeRestriction",
                &format!("--tls-sni-cert-key={certificate},{key}:{}", ec2.api()),
            ],
        )
        .unwrap();

        println!("--- stacks");
        let master = world.admit(&world.guest().control_plane(None));
        let user_data = world.guest().user_data_of_master(0, Blank::Forms, &master, &world.roots).unwrap();
        let body = world.cluster_stack(user_data);
        let cluster_outputs = world.around.make(&body).unwrap();
        let login = world.admit(&world.guest().pool("web", None, &[]));
        let user_data = world.guest().user_data_of_pool(&world.cluster.pools[0], &login).unwrap();
        let body = world.pool_stack(&cluster_outputs, user_data.clone());
        let outputs = world.around.make(&body).unwrap();
        let instance = world.around.instance(names::POOL_LABEL, "web").unwrap();
        assert_eq!(instance.arn, outputs["RoleArn"]);
        assert_eq!(decoded(&instance.user_data), user_data, "the launch template has other user data");
        println!("    {} at {}, {} bytes of user data", instance.id, instance.address, user_data.len());

        println!("--- the machine");
        let vm = Vm::start(world.folder(), &instance, &[names::KUBELET_PORT]);
        // The manager sees an instance of the pool, and lets its name in. The login is the one of the user data.
        let group = world.guest().pool("web", Some(&outputs["RoleArn"]), std::slice::from_ref(&instance.id));
        assert_eq!(world.admit(&group), login);
        vm.comes_to("its kernel", || {
            ensure!(vm.console().contains("giantnetes: guest is up"));
            Ok(())
        });
        let node: Value = vm.comes_to("its Node", || {
            Ok(serde_json::from_str(&api.kubectl(&["get", "node", &instance.id, "-o", "json"]).output()?)?)
        });
        assert_eq!(node["spec"]["providerID"], format!("aws:///eu-central-1a/{}", instance.id));
        let labels = &node["metadata"]["labels"];
        assert_eq!((&labels[names::POOL_LABEL], &labels["example.com/disk"]), (&json!("web"), &json!("fast")));
        assert_eq!(node["status"]["nodeInfo"]["kubeletVersion"], world.cluster.version.name);
        let addresses = node["status"]["addresses"].as_array().unwrap();
        assert!(addresses.contains(&json!({"type": "InternalIP", "address": instance.address})), "{addresses:?}");
        // Its kubelet serves by a certificate of the guest's authority, for the address that the instance has.
        vm.comes_to("its kubelet's certificate", || {
            let target = format!("127.0.0.1:{}", names::KUBELET_PORT);
            let authority = world.authority_file().display().to_string();
            let address = &instance.address;
            let ask = format!(
                "openssl s_client -brief -verify_return_error -CAfile {authority} -verify_ip {address} -connect {target} 2>&1 </dev/null"
            );
            let said = Run::new("sh").args(["-c", &ask]).output()?;
            ensure!(said.contains("Verification: OK"), "{said}");
            ensure!(said.contains(&format!("system:node:{}", instance.id)), "{said}");
            Ok(())
        });
        // What keeps it from being Ready is the network inside the guest alone, which is nobody's yet.
        vm.comes_to("word of its kubelet", || {
            let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].message}";
            let said = api.kubectl(&["get", "node", &instance.id, "-o", path]).output()?;
            ensure!(said.contains("cni plugin not initialized") || said.contains("posting ready status"), "{said}");
            Ok(())
        });
        world.tells_no_secret(&vm.console());
    });
}

#[test]
fn a_control_plane_node_boots_with_what_outlives_it_and_serves_its_api() {
    in_a_network(|| {
        let mut world = World::new("master", &json!({}), support::processes::free_port().unwrap()).unwrap();
        let ec2 = world.guest().ec2();
        println!("--- its stack");
        let login = world.admit(&world.guest().control_plane(None));
        let user_data = world.guest().user_data_of_master(0, Blank::Forms, &login, &world.roots).unwrap();
        let body = world.cluster_stack(user_data.clone());
        let outputs = world.around.make(&body).unwrap();
        let instance = world.around.instance(names::NODE_LABEL, "master-0").unwrap();
        assert_eq!(instance.arn, outputs["MasterRoleArn"]);
        assert_eq!(decoded(&instance.user_data), user_data, "the launch template has other user data");
        let [(_, lasting, volume)] = instance.lasting.as_slice() else { panic!("{:?}", instance.lasting) };
        println!(
            "    {} at {}, lasting {lasting} and {volume}, {} bytes",
            instance.id,
            instance.address,
            user_data.len()
        );
        world.resolve(&[(BALANCER, ec2.api()), (lasting, ec2.master(0))]).unwrap();

        println!("--- the machine");
        let vm = Vm::start(world.folder(), &instance, &[names::API_PORT]);
        assert_eq!(world.admit(&world.guest().control_plane(Some(&outputs["MasterRoleArn"]))), login);
        vm.comes_to("its kernel", || {
            ensure!(vm.console().contains("giantnetes: guest is up"));
            Ok(())
        });
        let [certificate, key] = world.sign(&leaf::bootstrapper());
        let authority = world.authority_file().display().to_string();
        let kubectl = |args: &[&str]| {
            Run::new(support::tool("kubernetes").join("kubectl"))
                .args(["--kubeconfig=/dev/null".to_owned(), format!("--server=https://127.0.0.1:{}", names::API_PORT)])
                .args([format!("--certificate-authority={authority}"), format!("--client-certificate={certificate}")])
                .args([format!("--client-key={key}"), "--request-timeout=20s".to_owned()])
                .args(args.iter().copied())
                .timeout(Duration::from_secs(30))
        };
        vm.comes_to("its API", || {
            let said = kubectl(&["get", "--raw", "/readyz"]).output()?;
            ensure!(said.trim() == "ok", "{said}");
            Ok(())
        });
        let node: Value = vm.comes_to("its Node", || {
            Ok(serde_json::from_str(&kubectl(&["get", "node", "master-0", "-o", "json"]).output()?)?)
        });
        assert_eq!(node["spec"]["providerID"], format!("aws:///eu-central-1a/{}", instance.id));
        // It signs tokens by the key that Vault has for it: the API calls that by its hash.
        let file = world.folder().join("sa.pub");
        fs::write(&file, &world.roots.service_account.certificate).unwrap();
        let hash = format!(
            "openssl pkey -pubin -in {} -outform DER | openssl dgst -sha256 -binary | base64 | tr '+/' '-_' | tr -d '=\n'",
            file.display()
        );
        let hash = Run::new("sh").args(["-c", &hash]).output().unwrap();
        let keys = kubectl(&["get", "--raw", "/openid/v1/jwks"]).output().unwrap();
        assert!(keys.contains(&format!("\"kid\":\"{hash}\"")), "{hash} is not in {keys}");
        // Its etcd has the volume: that is no blank file any more.
        let blocks = fs::metadata(world.folder().join("volume-0.raw")).unwrap().blocks();
        assert!(blocks > 0, "nothing was written to {volume}");
        world.tells_no_secret(&vm.console());
    });
}
