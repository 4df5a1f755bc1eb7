//! What a machine has to have and to know before anything runs on it that is a node.
//!
//! ```text
//!  metadata service ─► who the instance is ──────────────────────────────► facts, which units read
//!  EC2 ─► volume and interface with these tags ─► attach ─► disk, by its serial number ─► link
//!                                                        └► interface, by its Ethernet address ─► networkd
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::Ipv4Net;
use k8s_openapi::jiff::Timestamp;
use tracing::{info, warn};

use super::{
    config::{Attached, Instance, Machine},
    ec2::{Ec2, Ec2Error},
    files::{self, Access},
    imds::{Metadata, MetadataError},
};
use crate::node_config::machine::{ADDRESS, ETCD_DISK, NODE, PROVIDER_ID};

/// Where the kernel shows NVMe controllers.
const CONTROLLERS: &str = "/sys/class/nvme";
/// What networkd is told of the lasting interface, before what others tell it of all interfaces.
const NETWORK: &str = "/run/systemd/network/05-giantnetes-lasting.network";
/// Routes from the lasting address have a table of their own: by the first interface its packets would be dropped.
const TABLE: u32 = 101;
/// How long what was attached may take to appear.
const APPEARS: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// Why a machine is not ready.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// Who the instance is.
    #[error("{0}")]
    Metadata(#[from] MetadataError),
    /// What is to be attached to it.
    #[error("{0}")]
    Ec2(#[from] Ec2Error),
    /// What was attached is not there.
    #[error("{0} was attached, and no disk has its serial number")]
    NoDisk(String),
    /// A subnet that cannot be read.
    #[error("the metadata service names no subnet of interface {0}")]
    NoSubnet(String),
    /// A file, or a program.
    #[error("{action} {what}")]
    System {
        /// What was tried.
        action: &'static str,
        /// With what.
        what: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

fn system(action: &'static str, what: impl Into<String>) -> impl FnOnce(io::Error) -> MachineError {
    let what = what.into();
    move |source| MachineError::System { action, what, source }
}

/// What units are told, as an environment.
pub fn facts(machine: &Machine, instance: &Instance) -> String {
    let zone = instance.availability_zone.as_deref().unwrap_or_default();
    let name = machine.name.as_ref().unwrap_or(&instance.instance_id);
    format!("{NODE}={name}\n{ADDRESS}={}\n{PROVIDER_ID}=aws:///{zone}/{}\n", instance.private_ip, instance.instance_id)
}

/// Has attached what is the machine's own, and writes down what it is.
///
/// # Errors
/// [`MachineError`]; another try may go well.
pub async fn ready(machine: &Machine, metadata: &Metadata, path: &Path) -> Result<(), MachineError> {
    let instance = metadata.instance().await?;
    if let Some(attached) = &machine.attached {
        attach(attached, &instance, metadata).await?;
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(system("make", folder.display().to_string()))?;
    }
    let text = facts(machine, &instance);
    files::write(path, text.as_bytes(), Access::All).map_err(system("write", path.display().to_string()))?;
    info!(instance = instance.instance_id, address = %instance.private_ip, "the machine is ready");
    Ok(())
}

async fn attach(attached: &Attached, instance: &Instance, metadata: &Metadata) -> Result<(), MachineError> {
    let keys = metadata.keys(Timestamp::now()).await?;
    let ec2 = Ec2::new(attached, &keys)?;
    let volume = ec2.volume(&instance.instance_id).await?;
    link(&volume, Path::new(CONTROLLERS), Path::new(ETCD_DISK)).await?;
    let interface = ec2.interface(&instance.instance_id).await?;
    let subnet = metadata.subnet(&interface.mac).await?;
    let subnet: Ipv4Net = subnet.parse().map_err(|_| MachineError::NoSubnet(interface.id.clone()))?;
    let text = network(&interface.mac, interface.address, subnet);
    if fs::read_to_string(NETWORK).ok().as_deref() != Some(&text) {
        fs::create_dir_all("/run/systemd/network").map_err(system("make", "/run/systemd/network"))?;
        files::write(Path::new(NETWORK), text.as_bytes(), Access::All).map_err(system("write", NETWORK))?;
        reload().await?;
    }
    Ok(())
}

/// What networkd is told of the lasting interface: both interfaces are in one subnet, and only what comes from its address may leave
/// by this one. EC2's router has the first address of a subnet.
fn network(mac: &str, address: std::net::Ipv4Addr, subnet: Ipv4Net) -> String {
    let router = crate::network::addresses::nth(subnet, 1);
    format!(
        "[Match]\nMACAddress={mac}\n\n[Network]\nLinkLocalAddressing=no\n\n[Address]\nAddress={address}/{}\nAddPrefixRoute=no\n\n[Route]\nDestination={subnet}\nTable={TABLE}\n\n[Route]\nGateway={router}\nTable={TABLE}\n\n[RoutingPolicyRule]\nFrom={address}\nTable={TABLE}\n",
        subnet.prefix_len()
    )
}

async fn reload() -> Result<(), MachineError> {
    let mut command = tokio::process::Command::new("networkctl");
    let run = command.arg("reload").stdin(std::process::Stdio::null()).kill_on_drop(true).status();
    let status = tokio::time::timeout(APPEARS, run).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(system("run", "networkctl reload")(io::Error::other(status.to_string()))),
        Err(error) => Err(system("run", "networkctl reload")(error)),
    }
}

/// Links the disk of a volume, as soon as there is one. A volume's serial number is its id without the hyphen.
async fn link(volume: &str, controllers: &Path, link: &Path) -> Result<(), MachineError> {
    let began = tokio::time::Instant::now();
    let disk = loop {
        match disk_of(volume, controllers) {
            Some(disk) => break disk,
            None if began.elapsed() > APPEARS => return Err(MachineError::NoDisk(volume.to_owned())),
            None => tokio::time::sleep(LOOK).await,
        }
    };
    let of = |action| system(action, link.display().to_string());
    if let Some(folder) = link.parent() {
        fs::create_dir_all(folder).map_err(of("make the folder of"))?;
    }
    if fs::read_link(link).ok().as_deref() == Some(&disk) {
        return Ok(());
    }
    match fs::remove_file(link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(of("remove")(error)),
        _ => {}
    }
    std::os::unix::fs::symlink(&disk, link).map_err(of("make"))?;
    info!(volume, disk = %disk.display(), "found its disk");
    Ok(())
}

fn disk_of(volume: &str, controllers: &Path) -> Option<PathBuf> {
    let serial = volume.replace('-', "");
    for controller in fs::read_dir(controllers).ok()?.filter_map(Result::ok) {
        let folder = controller.path();
        match fs::read_to_string(folder.join("serial")) {
            Ok(found) if found.trim() == serial => {}
            Ok(_) => continue,
            Err(error) => {
                warn!(controller = %folder.display(), "its serial number: {error}");
                continue;
            }
        }
        // Its namespaces are called after it; EC2's volumes have one.
        let name = controller.file_name().into_string().ok()?;
        return Some(Path::new("/dev").join(format!("{name}n1")));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node_agent::config::tests::instance;

    #[test]
    fn units_are_told_what_the_instance_is() {
        let named = Machine { name: Some("master-0".into()), attached: None };
        let one = Instance { availability_zone: Some("eu-central-1a".into()), ..instance() };
        let text = "GIANTNETES_NODE=i-0123\nGIANTNETES_ADDRESS=10.1.32.4\nGIANTNETES_PROVIDER_ID=aws:///eu-central-1a/i-0123\n";
        assert_eq!(facts(&Machine::default(), &one), text);
        assert_eq!(facts(&named, &one), text.replace("NODE=i-0123", "NODE=master-0"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_volumes_disk_is_found_by_its_serial_number_and_linked() {
        let folder = std::env::temp_dir().join(format!("giantnetes-machine-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        for (controller, serial) in [("nvme0", "vol0aaa"), ("nvme1", "vol0bbb  ")] {
            fs::create_dir_all(folder.join("class").join(controller)).unwrap();
            fs::write(folder.join("class").join(controller).join("serial"), serial).unwrap();
        }
        let (class, place) = (folder.join("class"), folder.join("run/disk"));
        link("vol-0bbb", &class, &place).await.unwrap();
        assert_eq!(fs::read_link(&place).unwrap(), Path::new("/dev/nvme1n1"));
        // After another boot it has another name.
        link("vol-0aaa", &class, &place).await.unwrap();
        assert_eq!(fs::read_link(&place).unwrap(), Path::new("/dev/nvme0n1"));
        let error = link("vol-0ccc", &class, &place).await.unwrap_err();
        assert!(error.to_string().contains("vol-0ccc"), "{error}");
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn packets_from_the_lasting_address_leave_by_its_own_interface() {
        let text = network("0a:00:00:00:00:01", [10, 1, 17, 9].into(), "10.1.16.0/20".parse().unwrap());
        assert!(text.starts_with("[Match]\nMACAddress=0a:00:00:00:00:01\n"));
        assert!(text.contains("Address=10.1.17.9/20\n") && text.contains("Gateway=10.1.16.1\nTable=101\n"), "{text}");
        assert!(text.ends_with("[RoutingPolicyRule]\nFrom=10.1.17.9\nTable=101\n"), "{text}");
    }
}
