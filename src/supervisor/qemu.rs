//! QEMU's arguments and process.
//!
//! Files that QEMU's user may not open are inherited: the monitor's socket, the tap device and etcd's disk.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Stdio,
};

use command_fds::{CommandFdExt as _, FdMapping};
use tokio::process::{Child, Command};

use super::{QEMU_ID, accelerator::Accel, config::VmConfig, disks::Disks, network::Network, paths};
use crate::node_config::paths::{ETCD_DISK_SERIAL, PKI_MOUNT_TAG};

/// File descriptors as QEMU sees them.
const MONITOR_FD: i32 = 3;
const TAP_FD: i32 = 4;
const ETCD_FD: i32 = 5;

/// Why QEMU does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It did not start.
    #[error("start {program}")]
    Start {
        /// The program.
        program: &'static str,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The inherited files collide.
    #[error("hand open files to QEMU: {0}")]
    Files(String),
    /// The monitor's socket.
    #[error("make the monitor's socket")]
    Socket(#[source] std::io::Error),
}

/// A command that runs `program` as user and group `id`, without capabilities and without a way to get any.
pub fn unprivileged(program: &str, id: u32) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args([format!("--reuid={id}"), format!("--regid={id}")])
        .args(["--clear-groups", "--inh-caps=-all", "--no-new-privs", "--"])
        .arg(program)
        .stdin(Stdio::null());
    command
}

/// The parts of the node image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeImage {
    /// Kernel, as any boot loader takes it.
    pub kernel: PathBuf,
    /// The same kernel unpacked, for QEMU's direct entry (PVH): under emulation that saves the seconds of unpacking, at
    /// the price of a kernel whose addresses are not random.
    pub unpacked: PathBuf,
    /// Initial RAM disk.
    pub initrd: PathBuf,
}

impl NodeImage {
    /// The node image in `folder`.
    pub fn in_folder(folder: &Path) -> Self {
        Self { kernel: folder.join("vmlinuz"), unpacked: folder.join("vmlinux"), initrd: folder.join("initrd.img") }
    }
}

/// Arguments that every machine of ours has: nothing that is not asked for, and the console on standard output.
pub fn machine(accel: Accel, image: &NodeImage, cpus: u32, memory_mib: u64, append: &str) -> Vec<String> {
    let (cpu, kernel, append) = match accel {
        Accel::Kvm => ("host", &image.kernel, append.to_owned()),
        // Five-level paging crashed user space under QEMU 7.2's emulation; nested virtualisation is useless there, emulated
        // AVX is slower than the code that programs fall back to, and the guards against a kernel's stray access to user
        // memory (SMAP, SMEP) cost at every system call. Emulation needs no mitigation of a real CPU's faults and keeps its
        // own time. Its high-resolution timers interrupt it, and QEMU, more than they are worth. The Go programs that
        // systemd starts spend a fifth of their start on collecting garbage, so they do it half as often; and they interrupt
        // by signals what runs for 10 ms, which is everything here, so they leave that. The last word tells the initial RAM
        // disk to make time slices longer.
        Accel::Tcg => (
            "max,la57=off,svm=off,avx=off,avx2=off,smap=off,smep=off",
            &image.unpacked,
            format!(
                "{append} no_timer_check tsc=reliable mitigations=off highres=off systemd.setenv=GOGC=200 \
                 systemd.setenv=GODEBUG=asyncpreemptoff=1 giantnetes.emulated"
            ),
        ),
    };
    [
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-vga",
        "none",
        "-machine",
        "q35,usb=off,vmport=off,smbus=off,sata=off,hpet=off,i8042=off,graphics=off",
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        "-accel",
        &accel.argument(),
        "-cpu",
        cpu,
        "-smp",
        &cpus.to_string(),
        "-m",
        &format!("{memory_mib}M"),
        "-kernel",
        &kernel.to_string_lossy(),
        "-initrd",
        &image.initrd.to_string_lossy(),
        "-append",
        &append,
        "-chardev",
        "stdio,id=console,signal=off",
        "-serial",
        "chardev:console",
    ]
    .map(str::to_owned)
    .into()
}

/// Arguments of a node's machine.
fn arguments(vm: &VmConfig, accel: Accel, disks: &Disks, mtu: u32) -> Vec<String> {
    let image = NodeImage::in_folder(Path::new(paths::NODE));
    let append =
        "root=/dev/vda console=ttyS0 quiet loglevel=3 systemd.show_status=false panic=10 audit=0 8250.nr_uarts=1";
    let mut arguments = machine(accel, &image, vm.cpus, vm.memory_mib, append);
    let mut add = |name: &str, value: String| {
        arguments.push(name.to_owned());
        arguments.push(value);
    };
    add("-name", vm.node.clone());
    add("-chardev", format!("socket,id=monitor,fd={MONITOR_FD}"));
    add("-mon", "chardev=monitor,mode=control".into());
    add("-object", "rng-random,id=rng,filename=/dev/urandom".into());
    add("-device", "virtio-rng-pci,rng=rng".into());
    // The overlay is made anew at every start: nothing of it needs to survive a crash of the host.
    add("-drive", format!("if=none,id=root,format=qcow2,discard=unmap,cache=unsafe,file={}", disks.root.display()));
    add("-device", "virtio-blk-pci,drive=root,serial=root".into());
    if disks.etcd.is_some() {
        add("-add-fd", format!("fd={ETCD_FD},set=1"));
        add("-drive", "if=none,id=etcd,format=raw,discard=unmap,auto-read-only=off,file=/dev/fdset/1".into());
        add("-device", format!("virtio-blk-pci,drive=etcd,serial={ETCD_DISK_SERIAL}"));
    }
    add(
        "-drive",
        format!(
            "if=none,id=seed,format=raw,readonly=on,file.driver=vvfat,file.label=CIDATA,file.dir={}",
            disks.seed.display()
        ),
    );
    add("-device", "virtio-blk-pci,drive=seed,serial=seed".into());
    add("-fsdev", format!("local,id=pki,path={},security_model=none,readonly=on", paths::PKI));
    add("-device", format!("virtio-9p-pci,fsdev=pki,mount_tag={PKI_MOUNT_TAG}"));
    add("-netdev", format!("tap,id=overlay,fd={TAP_FD}"));
    add("-device", format!("virtio-net-pci,netdev=overlay,mac={},host_mtu={mtu},romfile=", vm.overlay.node.mac));
    add("-netdev", "user,id=egress,ipv6=off".into());
    add("-device", format!("virtio-net-pci,netdev=egress,mac={},romfile=", vm.egress_mac));
    arguments
}

/// Starts a node's machine. Answers the process, with its console on standard output, and our end of the monitor.
///
/// # Errors
/// [`Error`]
pub fn start(
    vm: &VmConfig,
    accel: Accel,
    disks: Disks,
    network: Network,
) -> Result<(Child, std::os::unix::net::UnixStream), Error> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(Error::Socket)?;
    ours.set_nonblocking(true).map_err(Error::Socket)?;
    let mut command = unprivileged("qemu-system-x86_64", QEMU_ID);
    command.args(arguments(vm, accel, &disks, network.mtu)).stdout(Stdio::piped()).kill_on_drop(true);
    let mut inherited = vec![(MONITOR_FD, OwnedFd::from(theirs)), (TAP_FD, network.tap)];
    inherited.extend(disks.etcd.map(|file| (ETCD_FD, OwnedFd::from(file))));
    let mappings = inherited.into_iter().map(|(child_fd, parent_fd)| FdMapping { parent_fd, child_fd }).collect();
    command.fd_mappings(mappings).map_err(|error| Error::Files(error.to_string()))?;
    let child = command.spawn().map_err(|source| Error::Start { program: "qemu-system-x86_64", source })?;
    Ok((child, ours))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        kvm::plan::{Surroundings, control_plane_node},
        supervisor::config,
        testing::{settings, valid},
    };

    #[test]
    fn the_arguments_are_golden() {
        let settings = settings();
        let api_address = [10, 96, 7, 7].into();
        let around =
            Surroundings { vni: 1234, api_address, namespace_uid: "ns", etcd_formed: false, settings: &settings };
        let objects = control_plane_node(&valid(serde_json::json!({})), 0, around).unwrap();
        let vm: VmConfig = serde_json::from_str(&objects.config.data.unwrap()[config::FILE]).unwrap();
        let etcd = std::fs::File::open("/dev/null").unwrap();
        let disks = Disks { root: "/work/root.qcow2".into(), etcd: Some(etcd), seed: "/work/seed".into() };
        insta::assert_snapshot!(arguments(&vm, Accel::Tcg, &disks, 1450).join("\n"));
    }
}
