//! How fast bytes come from one place to another: one TCP stream, from a web server's file of zeros to a client that throws
//! them away.

use std::{fmt, time::Duration};

use anyhow::{Context, Result, ensure};

use lab::Lab;

use super::Guest;

/// No other test's, since a server on a node's network has the node's ports.
const PORT: u16 = 8099;
/// Copies of which the median counts.
const COPIES: usize = 5;

/// Whose network a pod has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    Own,
    Node,
}

/// MiB per second, of several copies.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    pub least: f64,
    pub median: f64,
    pub most: f64,
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} MiB/s ({:.1}–{:.1} in {COPIES} copies)", self.median, self.least, self.most)
    }
}

/// A namespace of a cluster, by its kubectl.
pub trait Namespace {
    fn apply(&self, manifest: &str) -> Result<String>;
    fn kubectl(&self, args: &[&str]) -> Result<String>;
}

/// The default namespace inside.
impl Namespace for Guest<'_> {
    fn apply(&self, manifest: &str) -> Result<String> {
        self.kubectl_input(&["apply", "-f", "-"], manifest)
    }

    fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.kubectl(args)
    }
}

/// One of the management cluster.
pub struct Management<'a>(pub &'a Lab, pub &'a str);

impl Namespace for Management<'_> {
    fn apply(&self, manifest: &str) -> Result<String> {
        self.0.apply_in(self.1, manifest)
    }

    fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.0.kubectl_within(Duration::from_secs(200), &[&["-n", self.1][..], args].concat())
    }
}

/// Between pods on these two nodes, from the first to the second, `mib` at a time.
pub fn measure(
    namespace: &impl Namespace,
    image: &str,
    network: Network,
    [from, to]: [&str; 2],
    mib: u32,
) -> Result<Rate> {
    let pods = pod("source", image, network, from, mib) + &pod("sink", image, network, to, 0);
    namespace.apply(&pods)?;
    let rate = copies(namespace, mib);
    // They have the names and ports of the next pair.
    namespace.kubectl(&["delete", "pod", "source", "sink", "--wait=true"])?;
    rate
}

fn copies(namespace: &impl Namespace, mib: u32) -> Result<Rate> {
    namespace.kubectl(&["wait", "--for=condition=Ready", "pod/source", "pod/sink", "--timeout=180s"])?;
    let address = namespace.kubectl(&["get", "pod", "source", "-o", "jsonpath={.status.podIP}"])?;
    // Measured beside the client: how long it takes to get into the pod is no matter here.
    let now = "cut -d ' ' -f 1 /proc/uptime";
    let copy = format!("{now}; wget -q -O - http://{address}:{PORT}/zeros | wc -c; {now}");
    let mut rates = Vec::new();
    for _ in 0..COPIES {
        let said = namespace.kubectl(&["exec", "sink", "--", "sh", "-c", &copy])?;
        rates.push(rate(&said, mib)?);
    }
    rates.sort_by(f64::total_cmp);
    Ok(Rate { least: rates[0], median: rates[COPIES / 2], most: rates[COPIES - 1] })
}

/// Of the seconds before, the bytes that came, and the seconds after.
fn rate(said: &str, mib: u32) -> Result<f64> {
    let words: Vec<_> = said.split_whitespace().collect();
    let [before, bytes, after] = words[..] else { anyhow::bail!("the client said {said:?}") };
    ensure!(bytes == (u64::from(mib) << 20).to_string(), "{bytes} bytes came, and not {mib} MiB");
    let took = after.parse::<f64>().context(said.to_owned())? - before.parse::<f64>().context(said.to_owned())?;
    ensure!(took > 0.0, "{mib} MiB take no time: more is to be copied at once");
    Ok(f64::from(mib) / took)
}

/// A pod that serves so much; also the one that asks, so that both are of one kind.
fn pod(name: &str, image: &str, network: Network, node: &str, mib: u32) -> String {
    let of_node = network == Network::Node;
    format!(
        r#"---
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  nodeName: {node}
  hostNetwork: {of_node}
  terminationGracePeriodSeconds: 0
  tolerations: [{{operator: Exists}}]
  containers:
  - name: {name}
    image: {image}
    imagePullPolicy: Never
    command: [sh, -c, "mkdir /www; truncate -s {mib}M /www/zeros; exec httpd -f -p {port} -h /www"]
    readinessProbe: {{tcpSocket: {{port: {port}}}, periodSeconds: 2}}
"#,
        port = PORT,
    )
}
