//! etcd, and how its members find each other.
//!
//! A lone member forms a cluster of its own. Of several the first one does, and the others join it one after the other, as
//! learners until they have all that is known: so what there is keeps its quorum, whoever comes late or not at all. The same
//! way back takes a member whose volume was lost.

use super::{
    File, Node,
    agent::MACHINE,
    component::{Component, Started},
    machine::Machine,
    paths::{ETCD_CA, certificate, in_pki, key},
};
use crate::api::names;

/// Who has a place in etcd's cluster, and who gets one.
const PLACE: &str = "/usr/local/sbin/giantnetes-etcd-place";
/// What etcd is told by [`PLACE`]: its environment.
const ENVIRONMENT: &str = "/run/giantnetes-etcd-place";
const DATA: &str = "/var/lib/etcd/data";

/// What a member does whose disk is blank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blank {
    /// It forms a cluster, unless another member knows of one.
    Forms,
    /// It waits for another member to let it in: there is a cluster, or another member forms it.
    Joins,
}

pub(super) fn component(node: &Node) -> Component {
    let (name, host) = (&node.name, node.host());
    let alone = node.cluster.has_one_master();
    let mut argv = vec![
        "/usr/local/bin/etcd".into(),
        format!("--name={name}"),
        format!("--data-dir={DATA}"),
        format!("--listen-client-urls={}", node.machine.etcd_listens(2379, true)),
        format!("--advertise-client-urls=https://{host}:2379"),
        format!("--listen-peer-urls={}", node.machine.etcd_listens(2380, false)),
        format!("--initial-advertise-peer-urls={}", peer(&host)),
    ];
    if alone {
        argv.push(format!("--initial-cluster={name}={}", peer(&host)));
        argv.push(format!("--initial-cluster-token={}", node.cluster.identity.id));
        argv.push("--initial-cluster-state=new".into());
    } else {
        // What hosts share with others may be late: etcd's 100 ms and 1 s would make an election of a busy moment. Who leads no
        // more is missed after five seconds at most.
        argv.extend(["--heartbeat-interval=500".into(), "--election-timeout=5000".into()]);
    }
    argv.extend([
        format!("--cert-file={}", in_pki(certificate("etcd-server"))),
        format!("--key-file={}", in_pki(key("etcd-server"))),
        "--client-cert-auth".into(),
        format!("--trusted-ca-file={}", in_pki(ETCD_CA)),
        format!("--peer-cert-file={}", in_pki(certificate("etcd-peer"))),
        format!("--peer-key-file={}", in_pki(key("etcd-peer"))),
        "--peer-client-cert-auth".into(),
        format!("--peer-trusted-ca-file={}", in_pki(ETCD_CA)),
        "--tls-min-version=TLS1.2".into(),
        "--listen-metrics-urls=http://127.0.0.1:2381".into(),
        "--auto-compaction-retention=8h".into(),
        "--quota-backend-bytes=4294967296".into(),
    ]);
    let mut service = vec!["OOMScoreAdjust=-999", "LimitNOFILE=65536"];
    if !alone {
        service.extend([
            "EnvironmentFile=-/run/giantnetes-etcd-place",
            "ExecStartPre=/usr/local/sbin/giantnetes-etcd-place find",
            "ExecStartPost=/usr/local/sbin/giantnetes-etcd-place vote",
            // Others may have to come up first. The API server would not be started after a failure.
            "TimeoutStartSec=infinity",
        ]);
    }
    Component {
        name: "etcd",
        description: "etcd",
        argv,
        started: Started::Notify,
        after: vec!["var-lib-etcd.mount", "giantnetes-pki.service"],
        waits_for: None,
        service,
        flags: vec![],
    }
}

pub(super) fn files(node: &Node, blank: Blank) -> Vec<File> {
    let mut files = vec![
        File::new("/etc/systemd/system/giantnetes-etcd-disk.service", disk_unit(&node.machine)),
        File::new("/etc/systemd/system/var-lib-etcd.mount", mount_unit(&node.machine)),
    ];
    if !node.cluster.has_one_master() {
        files.push(File::script(PLACE, place(node, blank)));
    }
    files
}

/// All members, and by what they are reached.
fn members(node: &Node) -> Vec<(String, String)> {
    (0..node.cluster.control_plane.replicas).map(|index| (names::master(index), node.host_of(index))).collect()
}

/// URL at which members reach one of them.
fn peer(host: &str) -> String {
    format!("https://{host}:2380")
}

/// Makes a file system only where there is none: what systemd-makefs promises.
fn disk_unit(machine: &Machine) -> String {
    // An instance has its volume attached by the agent.
    let after = match machine {
        Machine::Qemu(_) => String::new(),
        Machine::Ec2(_) => format!("Requires={MACHINE}\nAfter={MACHINE}\n"),
    };
    format!(
        "[Unit]\nDescription=A file system for etcd, if its disk is blank\n{after}\n[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/lib/systemd/systemd-makefs ext4 {}\nTimeoutStartSec=300\n",
        machine.etcd_disk()
    )
}

fn mount_unit(machine: &Machine) -> String {
    format!(
        "[Unit]\nDescription=etcd's data\nRequires=giantnetes-etcd-disk.service\nAfter=giantnetes-etcd-disk.service\n\n[Mount]\nWhat={}\nWhere=/var/lib/etcd\nType=ext4\nOptions=noatime,nosuid,nodev,noexec\nDirectoryMode=0700\n",
        machine.etcd_disk()
    )
}

/// Of `etcdctl member list` a line is: id, `started` or `unstarted`, name (of those that have started), URL for members, URL for
/// clients, whether it only learns.
fn place(node: &Node, blank: Blank) -> String {
    let (name, peer) = (&node.name, peer(&node.host()));
    let others = members(node).into_iter().filter(|(other, _)| other != name);
    let others: Vec<_> = others.map(|(_, host)| format!("https://{host}:2379")).collect();
    let alone = match blank {
        // Once is not enough: the others may be late, or the network.
        Blank::Forms => "unheard=$((unheard + 1))\n    [ \"$unheard\" -ge 3 ] && begin \"$name=$peer\" new",
        Blank::Joins => "return 1",
    };
    format!(
        r#"#!/bin/sh
# find: before etcd starts, a place in its cluster for a member whose disk is blank.
# vote: after it has started, a vote for a member that only learns yet.
name={name} peer={peer} others={others}
data={DATA} environment={ENVIRONMENT} unheard=0

# ask URLS COMMAND...
ask() {{
  urls=$1
  shift
  etcdctl --endpoints="$urls" --cacert={ca} --cert={certificate} --key={key} --command-timeout=8s "$@"
}}
# members: fails where no quorum of them answers; mine is the line of this one, if they know it.
members() {{
  all=$(ask "$others" member list) || return
  mine=$(printf '%s\n' "$all" | grep -F ", $peer, ")
  id=${{mine%%,*}}
  [ -n "$all" ]
}}
# begin MEMBERS STATE: what is here without a log was never a member. The token makes a cluster that is formed another than
# any that was formed before, so members of two never take each other for their own.
begin() {{
  rm -rf "$data"
  printf 'ETCD_INITIAL_CLUSTER=%s\nETCD_INITIAL_CLUSTER_STATE=%s\nETCD_INITIAL_CLUSTER_TOKEN=%s\n' \
    "$1" "$2" "$(cat /proc/sys/kernel/random/uuid)" >"$environment"
}}
urls_by_name() {{
  printf '%s\n' "$all" |
    awk -F ', ' -v peer="$peer" -v name="$name" \
      '{{ printf "%s%s=%s", comma, ($4 == peer ? name : ($3 == "" ? $1 : $3)), $4; comma = "," }}'
}}
find() {{
  if ! members; then
    {alone}
    return
  fi
  case $mine in
    *', unstarted, '*) begin "$(urls_by_name)" existing ;;
    # It had another disk; with that it is gone.
    ?*) ask "$others" member remove "$id"; return 1 ;;
    '') ask "$others" member add "$name" --learner --peer-urls="$peer"; return 1 ;;
  esac
}}
vote() {{
  own=$(ask https://127.0.0.1:2379 endpoint status -w json) || return
  case $own in
    *'"isLearner":true'*) members && ask "$others" member promote "$id"; return 1 ;;
  esac
}}
case $1 in
  find) [ -e "$data/member/wal" ] || until find; do sleep 2; done ;;
  vote) until vote; do sleep 2; done ;;
esac
"#,
        others = others.join(","),
        ca = in_pki(ETCD_CA),
        certificate = in_pki(certificate("etcd-peer")),
        key = in_pki(key("etcd-peer")),
    )
}
