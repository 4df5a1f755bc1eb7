//! What must not leave in a bundle is taken out of it: keys, tokens and what carries them. Pure.
//!
//! Secrets are never read. This is for what they may have been copied into: an object's annotations, a log line, an event.

use serde_json::Value;

/// What stands in the place of something that was taken out.
pub(super) const LEFT_OUT: &str = "<left out>";

/// Begins of words that are credentials: tokens of service accounts and others (a JSON object in base64), tokens of Vault, and
/// PEM in base64.
const TOKENS: [&str; 6] = ["eyJ", "hvs.", "hvb.", "hvr.", "s.", "LS0tLS1CRUdJTi"];
/// Shortest word that passes for a token.
const SHORTEST_TOKEN: usize = 20;
/// Keys of kubeconfigs and of Secrets whose value is a credential, as YAML has them.
const KEYS: [&str; 7] =
    ["client-key-data", "client-certificate-data", "token", "password", "secret", "secret-id", "tls.key"];

/// An object without what its managers and kubectl keep beside it: the latter is a copy of the object as it was applied.
pub(super) fn object(object: &mut Value) {
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.remove("managedFields");
        if let Some(annotations) = meta.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
        }
    }
}

/// A text without private keys, tokens and the values of keys that name a credential.
pub(super) fn text(text: &str) -> String {
    // Where a key begins, and how deep a value that was left out stands, whose further lines stand deeper.
    let (mut kept, mut in_key, mut under) = (Vec::new(), false, None);
    for line in text.lines() {
        let depth = line.len() - line.trim_start_matches([' ', '-']).len();
        if under.is_some_and(|least| depth > least && !line.trim().is_empty()) {
            continue;
        }
        under = credential(line).map(|_| depth);
        let begins = line.contains("-----BEGIN ") && line.contains("PRIVATE KEY-----");
        let ends = line.contains("-----END ") && line.contains("PRIVATE KEY-----");
        if ends && !in_key && !begins {
            // Whatever stands before it may be the rest of a key.
            kept = vec![LEFT_OUT.to_owned()];
            continue;
        }
        match (in_key, begins) {
            (false, false) => kept.push(words(&value(line))),
            // One word for the whole key.
            (false, true) => kept.push(LEFT_OUT.to_owned()),
            (true, _) => {}
        }
        in_key = (in_key || begins) && !ends;
    }
    let mut kept = kept.join("\n");
    if text.ends_with('\n') {
        kept.push('\n');
    }
    kept
}

/// Where the value of a key begins that names a credential; in a log, anywhere in the line.
fn credential(line: &str) -> Option<usize> {
    let value_of = |key: &&str| {
        line.match_indices(*key).find_map(|(at, _)| {
            let stands_alone = line[..at].chars().next_back().is_none_or(|c| " -\"{,".contains(c));
            let rest = &line[at + key.len()..];
            let value = rest.strip_prefix('"').unwrap_or(rest).strip_prefix(':')?;
            (stands_alone && !value.trim().is_empty()).then(|| line.len() - value.len())
        })
    };
    KEYS.iter().filter_map(value_of).min()
}

/// A line whose key names a credential, without the value.
fn value(line: &str) -> String {
    credential(line).map_or_else(|| line.to_owned(), |at| format!("{} {LEFT_OUT}", &line[..at]))
}

/// A line without words that are tokens.
fn words(line: &str) -> String {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "._-+".contains(c);
    let (mut out, mut rest) = (String::with_capacity(line.len()), line);
    while let Some(begin) = rest.find(is_part) {
        let end = rest[begin..].find(|c| !is_part(c)).map_or(rest.len(), |length| begin + length);
        let word = &rest[begin..end];
        out.push_str(&rest[..begin]);
        let is_token = word.len() >= SHORTEST_TOKEN && TOKENS.iter().any(|start| word.starts_with(start));
        out.push_str(if is_token { LEFT_OUT } else { word });
        rest = &rest[end..];
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_and_tokens_are_left_out_and_the_rest_stays() {
        let given = "\
a: -----BEGIN PRIVATE KEY-----
MIIEvQIBADANBgkqhkiG9w0BAQEFAASC
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
public
-----END CERTIFICATE-----
login with hvs.CAESIJ0123456789abcdefghij failed
authorization: Bearer eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl,
- token: abc
  client-key-data: TFMwdExTMUNSVWRKVGc9PQ==
  \"password\": \"x\"
token: >-
  abc
  def
kept: yes
2026-11-27T03:00:00Z console: password: geheim
VAULT_TOKEN=hvs.CAESIJ0123456789abcdefghij access_token=eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl
certificate LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0t
token:
a sentence. No token is in its words.
";
        let expected = "\
<left out>
-----BEGIN CERTIFICATE-----
public
-----END CERTIFICATE-----
login with <left out> failed
authorization: Bearer <left out>,
- token: <left out>
  client-key-data: <left out>
  \"password\": <left out>
token: <left out>
kept: yes
2026-11-27T03:00:00Z console: password: <left out>
VAULT_TOKEN=<left out> access_token=<left out>
certificate <left out>
token:
a sentence. No token is in its words.
";
        assert_eq!(text(given), expected);
        assert_eq!(
            text("-----BEGIN EC PRIVATE KEY----- all in one -----END EC PRIVATE KEY----- x\ny"),
            "<left out>\ny"
        );
        // What begins or ends in the middle of a key.
        assert_eq!(text("MIIE\n-----END PRIVATE KEY-----\nx"), "<left out>\nx");
        assert_eq!(text("x\n-----BEGIN PRIVATE KEY-----\nMIIE"), "x\n<left out>");
    }

    #[test]
    fn what_was_applied_is_no_part_of_an_object() {
        let kubectl = "kubectl.kubernetes.io/last-applied-configuration";
        let mut given = json!({
            "kind": "Cluster",
            "metadata": {"name": "a", "managedFields": [{}], "annotations": {kubectl: "{}", "b": "c"}},
        });
        object(&mut given);
        assert_eq!(given, json!({"kind": "Cluster", "metadata": {"name": "a", "annotations": {"b": "c"}}}));
        let mut odd = json!([1]);
        object(&mut odd);
        assert_eq!(odd, json!([1]));
    }
}
