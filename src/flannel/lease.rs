//! Keys and values of a guest in etcd, letter for letter as flanneld reads and writes them. Pure.
//!
//! | key | value |
//! |---|---|
//! | `/giantnetes/<id>/config` | the network: [`Config`] |
//! | `/giantnetes/<id>/subnets/172.26.0.0-20` | [`Lease::Guard`], over the whole network |
//! | `/giantnetes/<id>/subnets/172.26.1.0-30` | [`Lease::Vxlan`], of the node that has this place |
//!
//! The names of fields are those of flanneld's `Config`, `LeaseAttrs`, `VXLANConfig` and `vxlanLeaseAttrs` (v0.28: `pkg/subnet`,
//! `pkg/lease`, `pkg/backend/vxlan`), which all have no JSON names of their own but for the config of the backend, where case is
//! ignored.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::network::addresses::Mac;

/// What all keys begin with.
pub const ROOT: &str = "/giantnetes/";
/// Prefix length of a node's subnet: its VTEP, its bridge, its VM. flanneld takes none that is smaller.
pub const SUBNET_LENGTH: u8 = 30;
/// UDP port of VXLAN between VM pods.
const VXLAN_PORT: u16 = 8472;
/// What flanneld calls a lease of its VXLAN backend.
const VXLAN: &str = "vxlan";
/// What the guard's lease says instead, so that every flanneld passes over it.
const GUARD: &str = "giantnetes";

/// What the keys of the guest with this id begin with: flanneld's `--etcd-prefix`, and a slash, which ends the id.
pub fn prefix(id: &str) -> String {
    format!("{ROOT}{id}/")
}

/// The key of a guest's [`Config`].
pub fn config_key(id: &str) -> String {
    format!("{}config", prefix(id))
}

/// What the keys of a guest's leases begin with.
pub fn subnets(id: &str) -> String {
    format!("{}subnets/", prefix(id))
}

/// The key of the lease of a subnet.
pub fn key(id: &str, subnet: Ipv4Net) -> String {
    format!("{}{}", subnets(id), name(subnet))
}

/// What flanneld calls a subnet, after the last slash of its key.
fn name(subnet: Ipv4Net) -> String {
    format!("{}-{}", subnet.addr(), subnet.prefix_len())
}

/// The id of the guest that a key belongs to. None: it is nobody's.
pub fn guest(key: &[u8]) -> Option<&str> {
    let (id, _) = std::str::from_utf8(key).ok()?.strip_prefix(ROOT)?.split_once('/')?;
    (!id.is_empty()).then_some(id)
}

/// The subnet of a guest's lease, by its key. None: neither we nor flanneld wrote a lease there, but flanneld may take it for
/// one: it looks at the end of keys alone.
pub fn subnet(id: &str, key: &[u8]) -> Option<Ipv4Net> {
    let found = std::str::from_utf8(key).ok()?.strip_prefix(&subnets(id))?;
    let (address, length) = found.split_once('-')?;
    let subnet = Ipv4Net::new(address.parse().ok()?, length.parse().ok()?).ok()?;
    (name(subnet) == found && subnet.trunc() == subnet).then_some(subnet)
}

/// A guest's network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Config {
    network: Ipv4Net,
    subnet_len: u8,
    /// flanneld's other way, iptables, wants a setting of the kernel that VM pods cannot make.
    #[serde(rename = "EnableNFTables")]
    enable_nftables: bool,
    backend: BackendConfig,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct BackendConfig {
    r#type: String,
    #[serde(rename = "VNI")]
    vni: u32,
    port: u16,
}

impl Config {
    /// The config of a guest with this overlay and this VNI.
    pub fn new(overlay: Ipv4Net, vni: u32) -> Self {
        let backend = BackendConfig { r#type: VXLAN.into(), vni, port: VXLAN_PORT };
        Self { network: overlay, subnet_len: SUBNET_LENGTH, enable_nftables: true, backend }
    }

    /// As it is written.
    pub fn to_json(&self) -> String {
        json(self)
    }

    /// What is written there, if it is a config of ours.
    ///
    /// # Errors
    /// If it is not.
    pub fn parse(value: &[u8]) -> Result<Self, LeaseError> {
        Ok(serde_json::from_slice(value)?)
    }
}

/// A lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lease {
    /// Nobody's: it overlaps every subnet that flanneld could choose by itself, and so lets it choose none.
    Guard,
    /// A node's.
    Vxlan(Vtep),
}

/// Where a node's packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vtep {
    /// Address of the VM pod.
    pub public_ip: Ipv4Addr,
    /// The guest's VNI.
    pub vni: u32,
    /// Ethernet address of the VXLAN device in the VM pod.
    pub mac: Mac,
}

/// What was found is no lease of ours or flanneld's.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// It is not made so.
    #[error("read a value of flanneld's")]
    Json(#[from] serde_json::Error),
    /// It is another backend's.
    #[error("a lease of the backend {0:?}")]
    Backend(String),
    /// It does not say where packets go.
    #[error("a lease of VXLAN without BackendData")]
    NoData,
}

/// flanneld's `LeaseAttrs`, without what only IPv6 has.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Attributes {
    #[serde(rename = "PublicIP")]
    public_ip: Ipv4Addr,
    #[serde(rename = "PublicIPv6")]
    public_ipv6: Option<Ipv6Addr>,
    #[serde(default)]
    backend_type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    backend_data: Option<BackendData>,
}

/// flanneld's `vxlanLeaseAttrs`.
#[derive(Serialize, Deserialize)]
struct BackendData {
    #[serde(rename = "VNI")]
    vni: u32,
    #[serde(rename = "VtepMAC")]
    vtep_mac: Mac,
}

impl Lease {
    /// As it is written.
    pub fn to_json(&self) -> String {
        let (public_ip, backend_type, backend_data) = match *self {
            Self::Guard => (Ipv4Addr::UNSPECIFIED, GUARD, None),
            Self::Vxlan(Vtep { public_ip, vni, mac }) => (public_ip, VXLAN, Some(BackendData { vni, vtep_mac: mac })),
        };
        json(&Attributes { public_ip, public_ipv6: None, backend_type: backend_type.into(), backend_data })
    }

    /// What is written there, by us or by flanneld.
    ///
    /// # Errors
    /// If it is no lease of either.
    pub fn parse(value: &[u8]) -> Result<Self, LeaseError> {
        let Attributes { public_ip, backend_type, backend_data, .. } = serde_json::from_slice(value)?;
        match backend_type.as_str() {
            GUARD => Ok(Self::Guard),
            VXLAN => {
                let BackendData { vni, vtep_mac: mac } = backend_data.ok_or(LeaseError::NoData)?;
                Ok(Self::Vxlan(Vtep { public_ip, vni, mac }))
            }
            _ => Err(LeaseError::Backend(backend_type)),
        }
    }
}

fn json(value: &impl Serialize) -> String {
    // These have no maps and no numbers that JSON lacks: nothing can fail.
    serde_json::to_string(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"{"Network":"172.26.0.0/20","SubnetLen":30,"EnableNFTables":true,"Backend":{"Type":"vxlan","VNI":1234,"Port":8472}}"#;
    const GUARD: &str = r#"{"PublicIP":"0.0.0.0","PublicIPv6":null,"BackendType":"giantnetes"}"#;
    /// Also what flanneld writes back: it writes the fields of its `LeaseAttrs` in their order.
    const LEASE: &str = r#"{"PublicIP":"10.1.1.5","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1234,"VtepMAC":"06:ab:cd:ef:01:02"}}"#;

    fn vtep() -> Vtep {
        Vtep { public_ip: [10, 1, 1, 5].into(), vni: 1234, mac: Mac([0x06, 0xab, 0xcd, 0xef, 1, 2]) }
    }

    #[test]
    fn keys_are_flannelds() {
        let net = |text: &str| text.parse::<Ipv4Net>().unwrap();
        assert_eq!(config_key("ab"), "/giantnetes/ab/config");
        assert_eq!(key("ab", net("172.26.0.0/20")), "/giantnetes/ab/subnets/172.26.0.0-20");
        assert_eq!(key("ab", net("172.26.1.0/30")), "/giantnetes/ab/subnets/172.26.1.0-30");
        for subnet in [net("172.26.0.0/20"), net("172.26.1.0/30")] {
            assert_eq!(super::subnet("ab", key("ab", subnet).as_bytes()), Some(subnet));
        }
        for strange in [
            // flanneld takes the first four for leases, too.
            "/giantnetes/ab/subnets/x172.26.1.0-30",
            "/giantnetes/ab/subnets/172.26.1.1-30",
            "/giantnetes/ab/subnets/172.26.1.0-030",
            "/giantnetes/ab/subnets/172.26.1.0-30&fc00::-64",
            "/giantnetes/ab/subnets/172.26.1.0-33",
            "/giantnetes/ab/subnets/172.26.1.0",
            "/giantnetes/ab/config",
            "/giantnetes/abc/subnets/172.26.1.0-30",
        ] {
            assert_eq!(subnet("ab", strange.as_bytes()), None, "{strange}");
        }
        assert_eq!(subnet("ab", b"/giantnetes/ab/subnets/\xff"), None);
    }

    #[test]
    fn a_key_belongs_to_one_guest() {
        assert_eq!(guest(b"/giantnetes/ab/subnets/172.26.1.0-30"), Some("ab"));
        assert_eq!(guest(b"/giantnetes/abc/config"), Some("abc"));
        for nobodys in
            [b"/giantnetes/ab".as_slice(), b"/giantnetes//config", b"/other/ab/config", b"/giantnetes/\xff/a"]
        {
            assert_eq!(guest(nobodys), None, "{}", String::from_utf8_lossy(nobodys));
        }
    }

    #[test]
    fn a_config_is_written_and_read() {
        let config = Config::new("172.26.0.0/20".parse().unwrap(), 1234);
        assert_eq!(config.to_json(), CONFIG);
        assert_eq!(Config::parse(CONFIG.as_bytes()).unwrap(), config);
        let other = CONFIG.replace("1234", "1235");
        assert_ne!(Config::parse(other.as_bytes()).unwrap(), config);
        for changed in [CONFIG.replace("8472}", "8472,\"DirectRouting\":true}"), "{}".into(), String::new()] {
            assert!(Config::parse(changed.as_bytes()).is_err(), "{changed}");
        }
    }

    #[test]
    fn a_lease_is_written_and_read() {
        assert_eq!((Lease::Guard.to_json(), Lease::Vxlan(vtep()).to_json()), (GUARD.to_owned(), LEASE.to_owned()));
        assert_eq!(Lease::parse(GUARD.as_bytes()).unwrap(), Lease::Guard);
        assert_eq!(Lease::parse(LEASE.as_bytes()).unwrap(), Lease::Vxlan(vtep()));
        // With more than we know of.
        let dual = LEASE.replace("null", "\"fc00::1\"").replace("}}", "},\"BackendV6Data\":{\"VNI\":1}}");
        assert_eq!(Lease::parse(dual.as_bytes()).unwrap(), Lease::Vxlan(vtep()));
        let without_data = r#"{"PublicIP":"10.1.1.5","PublicIPv6":null,"BackendType":"vxlan"}"#;
        assert!(matches!(Lease::parse(without_data.as_bytes()), Err(LeaseError::NoData)));
        let of_another = without_data.replace("vxlan", "udp");
        assert!(matches!(Lease::parse(of_another.as_bytes()), Err(LeaseError::Backend(name)) if name == "udp"));
        for broken in ["", "{}", "[]", &LEASE.replace("10.1.1.5", "10.1.1"), &LEASE.replace(":02", "")] {
            assert!(matches!(Lease::parse(broken.as_bytes()), Err(LeaseError::Json(_))), "{broken}");
        }
    }
}
