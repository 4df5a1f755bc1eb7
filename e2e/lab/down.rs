//! `lab down`: removes the lab, however much of it is there. It ends what was recorded and what is in the lab's cgroup,
//! and nothing else. The state folder goes last, and only when all else is gone: until then it says what is left.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::command::{Run, hold_in_children};
use crate::host::HostServers;
use crate::paths::Paths;
use crate::process::{Record, records, stop};
use crate::state::{Lock, Trace, traces};
use crate::tools::Tools;
use crate::topology::{CGROUP, HOSTS, Host};
use crate::{cgroup, images, mounts, network};

/// Removes the lab, and tells about each step on standard error.
///
/// # Errors
/// If something is left; a second run goes on with it.
pub fn down() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("not root: run `lab down` as root");
    }
    let started = Instant::now();
    let paths = Paths::of_machine()?;
    // Longer than the lock's other holders may take to become a server (see `Server::start`), which then is ended too.
    let lock = Lock::take(&paths, Duration::from_secs(60))?;
    hold_in_children(lock.share()?);
    let mut failed = Vec::new();
    let mut step = |name: &str, action: &dyn Fn() -> Result<()>| {
        let started = Instant::now();
        match action().with_context(|| format!("step \"{name}\" failed")) {
            Ok(()) => eprintln!("lab: {name} ({:.1} s)", started.elapsed().as_secs_f32()),
            Err(error) => failed.push(error),
        }
    };
    // kubelet first, or it would start anew whatever ends.
    step("kubelets end", &|| end(&paths, |record| record.name.ends_with("-kubelet")));
    for host in HOSTS {
        step(&format!("containers of {} end", host.name()), &|| end_containers(&paths, host));
    }
    step("servers end", &|| end(&paths, |_| true));
    step("all else ends", &|| cgroup::kill_all(CGROUP, Duration::from_secs(5)));
    step("mounts go", &|| mounts::unmount_below(&paths.state));
    step("network goes", &network::remove);
    step("cgroups go", &|| cgroup::remove(Duration::from_secs(5)));
    step("traces go", &|| traces(&paths).iter().try_for_each(remove_trace));
    match failed.into_iter().reduce(|all, next| all.context(format!("{next:#}"))) {
        Some(error) => {
            return Err(error.context("the lab is not quite down; `lab down` again goes on with what is left"));
        }
        None => std::fs::remove_dir_all(&paths.state).context("cannot remove the state folder")?,
    }
    eprintln!("lab: down in {:.1} s", started.elapsed().as_secs_f32());
    Ok(())
}

fn end(paths: &Paths, which: impl Fn(&Record) -> bool) -> Result<()> {
    let records: Vec<_> = records(paths).into_iter().filter(which).collect();
    // Their data is thrown away: there is nothing to wait for that a server might want to finish.
    stop(&records, Duration::from_secs(2))
}

/// Ends a host's containers and removes them from its image store, as far as containerd still answers: what stays
/// behind is removed by the next `lab up`.
fn end_containers(paths: &Paths, host: &Host) -> Result<()> {
    cgroup::kill_all(&format!("{CGROUP}/{}/kubepods", host.name()), Duration::from_secs(5))?;
    let containerd = format!("{}-containerd", host.name());
    if !records(paths).iter().any(|record| record.name == containerd && record.alive()) {
        return Ok(());
    }
    // `ctr` is all that is asked of the host's programs.
    let none = Tools::default();
    let servers = HostServers { paths, tools: &none, host, pause: "" };
    let deadline = Instant::now() + Duration::from_secs(4);
    // containerd removes ended tasks at the same time: what it was faster with is missing at the first attempt.
    while let Err(error) = images::purge(&servers, Duration::from_secs(2)) {
        if Instant::now() >= deadline {
            eprintln!("lab: note: containers of {} are left to the next `lab up`: {error:#}", host.name());
            break;
        }
        std::thread::sleep(crate::wait::POLL);
    }
    Ok(())
}

/// Undoes a trace unless somebody else uses the folder by now.
fn remove_trace(trace: &Trace) -> Result<()> {
    let (Trace::Folder(path) | Trace::Mount(path)) = trace;
    let empty = std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
    if !empty {
        return Ok(());
    }
    match trace {
        Trace::Mount(path) if mounts::is_mounted(path)? => Run::line("umount -n").arg(path).output().map(drop),
        Trace::Mount(_) => Ok(()),
        Trace::Folder(path) => std::fs::remove_dir(path).with_context(|| format!("cannot remove {}", path.display())),
    }
}
