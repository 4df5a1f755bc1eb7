//! flanneld's process, and the routes that it leaves to the kernel.

use std::{
    collections::BTreeSet,
    fs, io,
    net::Ipv4Addr,
    process::{ExitStatus, Stdio},
};

use ipnet::Ipv4Net;
use serde::Deserialize;
use tokio::process::{Child, Command};

use super::{Error, Places, files};
use crate::supervisor::network::{self, INTERFACE, run};

/// What it writes in [`Places::run`]: the subnet that it has, and would take at its next start.
const SUBNET_FILE: &str = "subnet.env";
/// Minutes before the end of its lease, which is a day long, at which it renews it.
const RENEW_MARGIN: u32 = 12 * 60;

/// flanneld while it runs. It is killed when this is dropped: the device and the routes that it made stay.
pub(super) struct Flanneld(Child);

impl Flanneld {
    /// Starts it for a guest.
    pub(super) fn start(places: &Places, guest: &str, endpoint: &str, own: Ipv4Addr) -> io::Result<Self> {
        match fs::remove_file(places.run.join(SUBNET_FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let child = Command::new(&places.program)
            .args(arguments(places, guest, endpoint, own))
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        Ok(Self(child))
    }

    /// Waits for its end, and says what that was.
    pub(super) async fn ended(&mut self) -> String {
        match self.0.wait().await {
            Ok(status) => ExitStatus::to_string(&status),
            Err(error) => error.to_string(),
        }
    }
}

fn arguments(places: &Places, guest: &str, endpoint: &str, own: Ipv4Addr) -> Vec<String> {
    let file = |name| places.secret.join(name).display().to_string();
    vec![
        format!("--etcd-endpoints={endpoint}"),
        format!("--etcd-prefix={}{guest}", crate::flannel::lease::ROOT),
        format!("--etcd-cafile={}", file(files::AUTHORITY)),
        format!("--etcd-certfile={}", file(files::CERTIFICATE)),
        format!("--etcd-keyfile={}", file(files::KEY)),
        format!("--iface={INTERFACE}"),
        format!("--public-ip={own}"),
        format!("--subnet-file={}", places.run.join(SUBNET_FILE).display()),
        format!("--subnet-lease-renew-margin={RENEW_MARGIN}"),
        // What may be forwarded, the supervisor's rules say; and no address is another's here.
        "--ip-masq=false".into(),
        "--iptables-forward-rules=false".into(),
    ]
}

#[derive(Deserialize)]
struct Route {
    dst: String,
}

/// The networks that the kernel has a route to, by this device.
pub(super) async fn routes(device: &str) -> Result<BTreeSet<Ipv4Net>, Error> {
    let shown = run("ip", &["-4", "-json", "route", "show", "dev", device], "").await.map_err(Error::Routes)?;
    parse(&shown).map_err(Error::Shown)
}

fn parse(shown: &str) -> Result<BTreeSet<Ipv4Net>, serde_json::Error> {
    // Without a route some versions write nothing at all.
    let shown = if shown.trim().is_empty() { "[]" } else { shown };
    let routes: Vec<Route> = serde_json::from_str(shown)?;
    // Single addresses and the default have no prefix length: neither is a node's.
    Ok(routes.iter().filter_map(|route| route.dst.parse().ok()).collect())
}

/// Takes a route away. It may be gone already.
pub(super) async fn forget(device: &str, subnet: Ipv4Net) -> Result<(), network::Error> {
    run("ip", &["route", "flush", &subnet.to_string(), "dev", device], "").await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flanneld_is_told_what_it_may_not_find_out_by_itself() {
        insta::assert_snapshot!(
            arguments(&Places::default(), "x1", "https://10.96.0.7:2379", [10, 1, 1, 5].into()).join("\n")
        );
    }

    #[test]
    fn routes_are_read_as_ip_shows_them() {
        let shown = r#"[{"dst":"172.26.1.0/30","gateway":"172.26.1.0","flags":["onlink"]},{"dst":"172.26.0.40/30","gateway":"172.26.0.40","flags":["onlink"]},{"dst":"default","flags":[]}]"#;
        let nets: Vec<_> = parse(shown).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(nets, ["172.26.0.40/30", "172.26.1.0/30"]);
        assert!(parse("").unwrap().is_empty() && parse("x").is_err());
    }
}
