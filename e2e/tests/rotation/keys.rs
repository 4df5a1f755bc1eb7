//! Rotation of a guest's keys on real VMs: the one that signs service-account tokens, and the one that Secrets are encrypted with.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::command::Run;
use lab::{Lab, wait_for};
use serde_json::{Value, json};

use super::support::{Guest, patience};
use super::{pass_the_overlap, rotate};

const MINUTE: Duration = Duration::from_secs(60);
const SECRET: &str = "before-the-rotation";
/// Asks the API with its own token, again and again, by the TLS client of its node, and says what it was answered: nothing is another
/// thing than a refusal.
const ASKS: &str = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "asks"}, "spec": {"nodeName": "master-0",
  "hostNetwork": true, "hostPID": true, "terminationGracePeriodSeconds": 0, "tolerations": [{"operator": "Exists"}],
  "containers": [{"name": "asks", "image": "giantnetes/toolbox:1", "imagePullPolicy": "Never",
    "securityContext": {"privileged": true}, "command": ["sh", "-c",
    "while sleep 1; do t=$(cat /var/run/secrets/kubernetes.io/serviceaccount/token); printf 'GET /api HTTP/1.0\\r\\nAuthorization: Bearer %s\\r\\n\\r\\n' $t | timeout 10 chroot /proc/1/root openssl s_client -quiet -verify_quiet -CAfile /etc/kubernetes/pki/ca.crt -connect 127.0.0.1:6443 2>/dev/null | head -n 1; done"]}]}}"#;
/// A pod with every right over the first node.
const ROOT: &str = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "root"}, "spec": {"nodeName": "master-0",
  "hostNetwork": true, "hostPID": true, "terminationGracePeriodSeconds": 0, "tolerations": [{"operator": "Exists"}],
  "containers": [{"name": "root", "image": "giantnetes/toolbox:1", "imagePullPolicy": "Never",
    "command": ["sleep", "86400"], "securityContext": {"privileged": true}}]}}"#;

/// A guest whose pods ask with their tokens, and that holds a Secret.
pub fn prepare(_: &Lab, guest: &Guest) -> Result<()> {
    guest.kubectl(&["create", "secret", "generic", SECRET, "--from-literal=word=kept"])?;
    for pod in [ASKS, ROOT] {
        guest.kubectl_input(&["apply", "-f", "-"], pod)?;
    }
    guest.kubectl(&["wait", "--for=condition=Ready", "pod/root", "pod/asks", "--timeout=300s"])?;
    wait_for(MINUTE * 2, "a pod's token to be taken", || {
        ensure!(guest.kubectl(&["logs", "asks"])?.contains(" 200 "), "it is not yet");
        Ok(())
    })
}

fn await_told(guest: &Guest, what: &str, is: impl Fn(&Value) -> bool) -> Result<Value> {
    let started = Instant::now();
    let told = wait_for(patience() * 2, what, || {
        let told = guest.object()?["status"]["rotation"].clone();
        ensure!(is(&told), "{told}");
        Ok(told)
    })?;
    println!("    {what} after {:.1?}", started.elapsed());
    Ok(told)
}

fn no_token_was_refused(guest: &Guest) -> Result<()> {
    let said = guest.kubectl(&["logs", "asks"])?;
    let refused = said.lines().filter(|line| line.contains(" 401 ")).count();
    ensure!(refused == 0, "{refused} requests of a pod were refused");
    ensure!(said.lines().filter(|line| line.contains(" 200 ")).count() > 10, "nobody asked");
    Ok(())
}

/// Whether a token is believed by the guest.
fn is_good(guest: &Guest, token: &str) -> Result<bool> {
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
    let said = guest.kubectl_input(&["create", "-o", "json", "-f", "-"], &review.to_string())?;
    Ok(serde_json::from_str::<Value>(&said)?["status"]["authenticated"] == json!(true))
}

/// The service-account key: tokens of the former one go on until the overlap is over, and are refused after it.
pub fn service_account_key(lab: &Lab, guest: &Guest) -> Result<()> {
    let former = guest.kubectl(&["create", "token", "default", "--duration=10h"])?;
    rotate(lab, guest, "service-account-key")?;
    let told = await_told(guest, "the overlap of service-account keys", |told| {
        told["subject"] == "ServiceAccountKey" && told["stage"] == "Overlap"
    })?;
    ensure!(told["until"].is_string(), "{told}");
    let renewed = guest.kubectl(&["create", "token", "default", "--duration=10h"])?;
    ensure!(is_good(guest, former.trim())? && is_good(guest, renewed.trim())?, "a token is refused in the overlap");
    no_token_was_refused(guest)?;
    // Kubelets have had their time when a pod has a token of the new key: a new one has at once.
    guest.kubectl(&["delete", "pod", "asks", "--wait"])?;
    guest.kubectl_input(&["apply", "-f", "-"], ASKS)?;
    guest.kubectl(&["wait", "--for=condition=Ready", "pod/asks", "--timeout=300s"])?;
    pass_the_overlap(lab, guest)?;
    await_told(guest, "the former service-account key dropped", |told| {
        told["serviceAccountKeyCarriedOut"] == 1 && told["stage"].is_null()
    })?;
    ensure!(!is_good(guest, former.trim())? && is_good(guest, renewed.trim())?, "the former key is believed still");
    no_token_was_refused(guest)
}

/// What etcd holds of an object, read in the node by etcd's own API.
fn stored(guest: &Guest) -> Result<String> {
    let key = base64(&format!("/registry/secrets/default/{SECRET}"), &[])?;
    let body = format!(r#"{{"key":"{key}"}}"#);
    let pki = "/etc/kubernetes/pki";
    let ask = format!(
        "printf 'POST /v3/kv/range HTTP/1.0\\r\\nContent-Length: {}\\r\\n\\r\\n{body}' | timeout 20 openssl s_client -quiet -verify_quiet \
         -CAfile {pki}/etcd-ca.crt -cert {pki}/apiserver-etcd-client.crt -key {pki}/apiserver-etcd-client.key -connect 127.0.0.1:2379 2>/dev/null",
        body.len()
    );
    let said = guest.kubectl(&["exec", "root", "--", "chroot", "/proc/1/root", "sh", "-c", &ask])?;
    let json = said.find("{\"header\"").map(|at| &said[at..]).with_context(|| format!("etcd said {said:?}"))?;
    let found: Value = serde_json::from_str(json.trim())?;
    let value = found["kvs"][0]["value"].as_str().context("it is not stored")?;
    // Its begin is text, and enough. Of base64 four letters are three bytes.
    base64(&value[..40], &["-d"])
}

fn base64(text: &str, words: &[&str]) -> Result<String> {
    Ok(Run::new("base64").args(["-w", "0"]).args(words.iter().copied()).input(text).output()?.trim().to_owned())
}

/// The encryption key: what was written before is read after it, and lies in etcd under the new key's name.
pub fn encryption_key(lab: &Lab, guest: &Guest) -> Result<()> {
    let before = stored(guest)?;
    ensure!(before.starts_with("k8s:enc:secretbox:v1:key1:"), "it lies there as {before}");
    rotate(lab, guest, "encryption-key")?;
    let told = await_told(guest, "the encryption key rotated", |told| {
        told["encryptionKeyCarriedOut"] == 1 && told["stage"].is_null()
    })?;
    let after = stored(guest)?;
    ensure!(after.starts_with(&format!("k8s:enc:secretbox:v1:key{}:", told["generation"])), "it lies there as {after}");
    let word = guest.kubectl(&["get", "secret", SECRET, "-o", "jsonpath={.data.word}"])?;
    ensure!(base64(&word, &["-d"])? == "kept", "it holds something else");
    no_token_was_refused(guest)?;
    let left = lab.kubectl(&["-n", &guest.home()?, "get", "secrets", "-o", "name"])?;
    let roots = left.lines().filter(|name| name.starts_with("secret/roots-")).count();
    ensure!(roots == 1, "{left}");
    guest.await_condition(patience(), "Ready", "True")
}
