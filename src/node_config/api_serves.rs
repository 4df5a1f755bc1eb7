//! What a node's components wait for: that the guest's API serves.
//!
//! The API server tells systemd that it is up as soon as it listens, but is ready only when its own first objects are made.
//! What is started before then, on its node or another, takes the CPU that it needs, and most of it ends and starts anew.

use super::{
    File, Node,
    paths::{CA, in_pki},
};

/// The unit that has started when the API serves.
pub(super) const UNIT: &str = "giantnetes-api.service";
const ASK: &str = "/usr/local/sbin/giantnetes-ask-api";

pub(super) fn files(node: &Node) -> Vec<File> {
    vec![File::script(ASK, ask(node)), File::new(format!("/etc/systemd/system/{UNIT}"), unit(node))]
}

/// Asks as everybody may, with the one TLS client on a node that starts in no time where the CPU is emulated.
fn ask(node: &Node) -> String {
    let address = node.api.trim_start_matches("https://");
    let ca = in_pki(CA);
    format!(
        r#"#!/bin/sh
ask() {{
  printf 'GET /readyz HTTP/1.0\r\n\r\n' |
    timeout 10 openssl s_client -quiet -verify_quiet -verify_return_error -CAfile {ca} -connect {address} 2>/dev/null |
    tail -n 1
}}
until [ "$(ask)" = ok ]; do sleep 2; done
"#
    )
}

/// Where the API does not come up, the others start all the same: kubelet runs what it knows.
fn unit(node: &Node) -> String {
    // On a worker it is another node's.
    let after = if node.pool.is_none() { "kube-apiserver.service" } else { "giantnetes-pki.service" };
    format!(
        "[Unit]\nDescription=The guest's API serves\nRequires={after}\nAfter={after}\n\n[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart={ASK}\nTimeoutStartSec=600\n"
    )
}
