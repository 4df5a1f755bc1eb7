//! What of the management cluster a VM pod has to reach, and so no overlay may cover. Pure.
//!
//! In a VM pod's network namespace everything within the overlay's range leads to the VM and the other nodes, and nothing of it
//! leaves by the pod's own interface. What has its address there is cut off: the guest's other VM pods, the host whose kubelet
//! asks how the pod is, DNS, the Service in front of the guest's API, resolvers.
//!
//! The ranges of a guest's pods and Services are known inside its VMs alone, which reach nothing of the management cluster but
//! by their pod's own connections, so these may be equal to the management cluster's. What the operator lets guests reach
//! ([`crate::settings::NetworkSettings::egress_allowed`]) says what may be there, not what is: it is not looked at.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

use crate::{api::Cluster, settings::Settings};

/// A part of the management cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Part {
    range: Ipv4Net,
    /// What lies there, for people.
    what: String,
}

/// What is known of the management cluster's addresses, the best known first. Of IPv6 nothing is kept: overlays have none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Underlay {
    parts: Vec<Part>,
}

impl Underlay {
    /// What the operator's settings say.
    pub fn of_settings(settings: &Settings) -> Self {
        let network = &settings.network;
        let mut underlay = Self::default();
        for (ranges, what) in [
            (&network.pod_cidrs, "pods (settings.network.podCIDRs)"),
            (&network.service_cidrs, "Services (settings.network.serviceCIDRs)"),
            (&network.host_cidrs, "hosts (settings.network.hostCIDRs)"),
        ] {
            ranges.iter().for_each(|range| underlay.add_range(*range, format!("the management cluster's {what}")));
        }
        if let Some(dns) = network.cluster_dns {
            underlay.add_address(dns, "the management cluster's DNS server (settings.network.clusterDNS)");
        }
        for resolver in &settings.kvm.resolvers {
            underlay.add_address(*resolver, "a resolver of guests (settings.kvm.resolvers)");
        }
        underlay
    }

    /// Something lies in this range.
    pub fn add_range(&mut self, range: IpNet, what: impl Into<String>) {
        if let IpNet::V4(range) = range {
            self.parts.push(Part { range: range.trunc(), what: what.into() });
        }
    }

    /// Something has this address.
    pub fn add_address(&mut self, address: IpAddr, what: impl Into<String>) {
        self.add_range(address.into(), what);
    }

    /// What is wrong with an overlay of this range, if something lies within.
    pub fn clash(&self, overlay: Ipv4Net) -> Option<String> {
        let overlaps = |part: &&Part| part.range.contains(&overlay) || overlay.contains(&part.range);
        let Part { range, what } = self.parts.iter().find(overlaps)?;
        Some(format!(
            "{overlay} overlaps {range}, {what}: VM pods would not reach what lies in both; make the Cluster with another range"
        ))
    }
}

/// Whether ranges are still to be judged. A guest that is made already cannot get others, and has to be cared for whatever the
/// operator says or hosts come later.
pub fn judges(cluster: &Cluster) -> bool {
    cluster.status.as_ref().is_none_or(|status| status.vni.is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::settings;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    #[test]
    fn what_vm_pods_have_to_reach_is_not_covered() {
        let mut settings = settings();
        settings.network.pod_cidrs = vec!["10.244.0.0/16".parse().unwrap(), "fd00:1::/48".parse().unwrap()];
        settings.network.service_cidrs = vec!["10.96.0.0/12".parse().unwrap()];
        settings.network.host_cidrs = vec!["192.168.7.0/24".parse().unwrap()];
        settings.network.cluster_dns = Some([172, 30, 0, 10].into());
        settings.kvm.resolvers = vec![[172, 31, 0, 2].into(), "fd00::2".parse().unwrap()];
        let underlay = Underlay::of_settings(&settings);
        for (overlay, part) in [
            // Larger, smaller, and equal.
            ("10.244.16.0/20", "10.244.0.0/16, the management cluster's pods (settings.network.podCIDRs)"),
            ("10.244.0.0/16", "10.244.0.0/16, the management cluster's pods"),
            ("192.168.0.0/20", "192.168.7.0/24, the management cluster's hosts (settings.network.hostCIDRs)"),
            ("10.96.0.0/20", "10.96.0.0/12, the management cluster's Services (settings.network.serviceCIDRs)"),
            ("172.30.0.0/20", "172.30.0.10/32, the management cluster's DNS server (settings.network.clusterDNS)"),
            ("172.31.0.0/24", "172.31.0.2/32, a resolver of guests (settings.kvm.resolvers)"),
        ] {
            let problem = underlay.clash(net(overlay)).unwrap();
            assert!(problem.starts_with(&format!("{overlay} overlaps {part}")), "{problem}");
        }
        for beside in ["10.245.0.0/16", "192.168.8.0/24", "10.112.0.0/20", "172.26.0.0/20", "172.31.1.0/24"] {
            assert_eq!(underlay.clash(net(beside)), None);
        }
    }

    #[test]
    fn what_may_be_reached_is_not_taken_for_what_is_there() {
        let mut settings = settings();
        settings.network.egress_allowed = vec![net("0.0.0.0/0")];
        assert_eq!(Underlay::of_settings(&settings).clash(net("172.26.0.0/20")), None);
    }

    #[test]
    fn a_range_with_host_bits_is_its_network() {
        let mut underlay = Underlay::default();
        underlay.add_range("10.1.2.3/16".parse().unwrap(), "pods");
        assert!(underlay.clash(net("10.1.200.0/24")).unwrap().contains("10.1.0.0/16"));
    }
}
