//! `giantnetes metrics`: docs/metrics.md, from what the code declares.

use crate::{
    cluster, device_plugin, flannel, isolation, pki,
    runtime::telemetry::{self, metric::Metric},
    supervisor,
};

const HEAD: &str = "# Metrics

What `/metrics` shows, in Prometheus' text format. Names, labels and the meaning of both do not change within a version of the
API. This page is what `giantnetes metrics` prints; `make docs` writes it.

Values of labels come from closed lists, but for names of objects, whose series go with the object. What the leader counts is
of one replica, what is told of Clusters of each: `max by (namespace, name)` makes one series of them. Where Prometheus
has a target's namespace in the label `namespace` already, it must let ours stand (`honorLabels` in a ServiceMonitor; the
chart's does).
";

/// The whole page.
pub(super) fn page() -> String {
    let mut page = HEAD.to_owned();
    for (title, text, metrics) in [
        ("The controller manager", "Served by every replica, at port 8080.", telemetry::of_operators()),
        (
            "Clusters",
            "Served by every replica, too. Together they are less than 2 MB at 10,000 Clusters whose name and \
             namespace have 21 letters together; each further letter makes it 20 kB more.",
            cluster::metrics::metrics(),
        ),
        ("Exports of keys", "Counted by every replica from its start on.", pki::escrow::exports::metrics()),
        ("Isolation", "What the leader counts.", isolation::metrics()),
        ("Flannel", "Of the leader, where the operator has Flannel's etcd.", flannel::install::metrics()),
        #[cfg(feature = "aws")]
        (
            "AWS",
            "What each replica counts of its own calls. Nothing makes any yet but tests.",
            crate::aws::calls::metrics(),
        ),
        (
            "A VM pod",
            "Served by each VM pod at port 8080, to pods of the controller manager and of the namespaces that \
             `settings.network.monitoringNamespaces` names: the guest's NetworkPolicy keeps others out.",
            [supervisor::health::metrics(), supervisor::path_mtu::metrics()].concat(),
        ),
        (
            "A guest's components",
            "VM pods serve what the guest's own API server, etcd, kubelets and containers count, at port 8080 under \
             `/guest/apiserver/metrics`, `/guest/etcd/metrics` (control-plane nodes), `/guest/kubelet/metrics` and \
             `/guest/containers/metrics` (all nodes). It is the guest's word: whoever is root there can count as he likes. So \
             supervisors pass on these alone, under names of their own, and sum up what differs in other labels. The \
             chart's PodMonitors (value `podMonitor`) add `cluster_namespace`, `cluster_name`, `node` and `guest_part` \
             (apiserver, etcd, kubelet, containers, supervisor).",
            supervisor::scrape::metrics(),
        ),
        ("The device plugin", "Served by its pod on each host, at port 8080.", device_plugin::probing::metrics()),
        (
            "Every process",
            "Of the process itself, by the library that serves all of them.",
            telemetry::of_every_process(),
        ),
    ] {
        page.push_str(&section(title, text, &metrics));
    }
    page
}

fn section(title: &str, text: &str, metrics: &[&Metric]) -> String {
    let rows: String = metrics.iter().map(|metric| metric.row()).collect();
    format!("\n## {title}\n\n{text}\n\n| Metric | Type | Labels | What it says |\n|---|---|---|---|\n{rows}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docs_hold_the_table_of_the_code() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text == page(), "docs/metrics.md is stale: `make docs` writes it");
    }

    #[test]
    fn no_name_means_two_things() {
        let mut names: Vec<_> = page().lines().filter_map(|line| Some(line.strip_prefix("| `")?.to_owned())).collect();
        let count = names.len();
        names.sort();
        names.dedup_by(|a, b| a.split('`').next() == b.split('`').next());
        assert!(count > 20 && names.len() == count, "{names:?}");
    }
}
