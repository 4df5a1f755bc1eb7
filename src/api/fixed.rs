//! What of a spec may not change: tables from which both the CEL rules and [`crate::cluster::valid`]'s verdict on an
//! update follow.
//!
//! Rules on the fields themselves would not run when a field comes or goes. These sit on `spec` and compare the value, or
//! the default where there is none, so writing a default down is no change.

use serde_json::{Value, json};

use super::rules::given;

/// A field that may not change.
#[derive(Clone, Copy, Debug)]
pub struct Fixed {
    /// Where it is, below `spec`.
    pub path: &'static [&'static str],
    /// What a missing value means.
    pub unset: Unset,
    /// Why, as it is told.
    pub why: &'static str,
}

/// What a missing value means, and so how values are compared.
#[derive(Clone, Copy, Debug)]
pub enum Unset {
    /// This text.
    Text(&'static str),
    /// This number.
    Number(i64),
    /// No.
    False,
    /// This amount of bytes; `1Gi` equals `1024Mi`.
    Size(&'static str),
    /// This lifetime; `1h` equals `60m`.
    Lifetime(&'static str),
}

const fn fixed(path: &'static [&'static str], unset: Unset) -> Fixed {
    Fixed { path, unset, why: "is immutable" }
}

/// What is fixed for a Cluster's whole life. (A provider that has a region is another than one that has none.)
pub const FIXED: [Fixed; 14] = [
    fixed(&["provider", "aws", "region"], Unset::Text("")),
    fixed(&["provider", "aws", "network"], Unset::Text("10.8.0.0/16")),
    fixed(&["kubernetes", "podCIDR"], Unset::Text("10.200.0.0/16")),
    fixed(&["kubernetes", "serviceCIDR"], Unset::Text("10.96.0.0/16")),
    fixed(&["network", "overlay", "backend"], Unset::Text("Native")),
    fixed(&["network", "overlay", "cidr"], Unset::Text("172.26.0.0/20")),
    fixed(&["network", "overlay", "vni"], Unset::Number(0)),
    fixed(&["etcd", "mode"], Unset::Text("Stacked")),
    fixed(&["etcd", "storage", "size"], Unset::Size("8Gi")),
    fixed(&["etcd", "storage", "className"], Unset::Text("")),
    fixed(&["pki", "backend"], Unset::Text("Embedded")).because(
        "is immutable: keys that were made in Vault never leave it, and a guest lives by the authorities that it began with; make \
         a new Cluster",
    ),
    fixed(&["pki", "exportable"], Unset::False).because(
        "is immutable: whether the keys of authorities can be exported is decided when they are made; make a new Cluster",
    ),
    fixed(&["pki", "importFrom", "secretName"], Unset::Text("")).because(
        "is immutable: a guest lives by the authorities that it began with; make a new Cluster",
    ),
    fixed(&["pki", "ca", "ttl"], Unset::Lifetime("87600h")),
];

impl Fixed {
    const fn because(self, why: &'static str) -> Self {
        Self { why, ..self }
    }

    /// The whole path, such as `spec.etcd.mode`.
    pub fn field(&self) -> String {
        format!("spec.{}", self.path.join("."))
    }

    /// The path as rules on `spec` give it.
    pub(super) fn field_path(&self) -> String {
        format!(".{}", self.path.join("."))
    }

    /// The rule.
    pub(super) fn cel(&self) -> String {
        let [new, old] = ["self", "oldSelf"].map(|whose| {
            let given = given(whose, self.path);
            match self.unset {
                Unset::Text(text) => format!("({given} : '{text}')"),
                Unset::Number(number) => format!("({given} : {number})"),
                Unset::False => format!("({given} : false)"),
                Unset::Size(size) => format!("quantity({given} : '{size}')"),
                Unset::Lifetime(lifetime) => format!("duration({given} : '{lifetime}')"),
            }
        });
        match self.unset {
            Unset::Size(_) => format!("{new}.compareTo({old}) == 0"),
            _ => format!("{new} == {old}"),
        }
    }

    /// The value of a spec, or what its absence means.
    pub fn value(&self, spec: &Value) -> Value {
        let found = self.path.iter().try_fold(spec, |value, step| value.get(step)).filter(|value| !value.is_null());
        match (found, self.unset) {
            (Some(value), _) => value.clone(),
            (None, Unset::Text(text) | Unset::Size(text) | Unset::Lifetime(text)) => json!(text),
            (None, Unset::Number(number)) => json!(number),
            (None, Unset::False) => json!(false),
        }
    }
}
