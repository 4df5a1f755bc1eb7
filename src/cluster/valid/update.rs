//! Whether a Cluster may become another: the transition rules of the CRD once more.

use serde_json::Value;

use super::{Violation, kubernetes::numbers, machine::parse_bytes, network::parse_lifetime};
use crate::api::{
    Cluster,
    fixed::{ALWAYS, Fixed, UNTIL_ROLLOUT, Unset},
};

/// What forbids that `old` becomes `new`. The status is `old`'s: an update of a spec does not touch it.
pub fn update(old: &Cluster, new: &Cluster) -> Vec<Violation> {
    let mut violations = version(old, new);
    let replicas = |cluster: &Cluster| cluster.spec.control_plane.replicas.unwrap_or(1);
    if replicas(new) < replicas(old) {
        let problem = format!("{} must not be fewer than before, {}", replicas(new), replicas(old));
        violations.push(Violation::new("spec.controlPlane.replicas", problem));
    }
    let [old, new] = [old, new].map(|cluster| serde_json::to_value(&cluster.spec).unwrap_or_default());
    let why = [Fixed::FOR_GOOD, Fixed::NOT_YET];
    for (table, why) in [ALWAYS.as_slice(), UNTIL_ROLLOUT.as_slice()].into_iter().zip(why) {
        let changed = table.iter().filter(|fixed| comparable(fixed, &old) != comparable(fixed, &new));
        violations.extend(changed.map(|fixed| Violation::new(fixed.field(), why)));
    }
    violations
}

fn version(old: &Cluster, new: &Cluster) -> Vec<Violation> {
    let field = "spec.kubernetes.version";
    let pinned = old.status.as_ref().and_then(|status| status.version.as_deref());
    let effective =
        |cluster: &Cluster| cluster.spec.kubernetes.version.as_deref().or(pinned).unwrap_or_default().to_owned();
    let (before, after) = (effective(old), effective(new));
    let mut violations = Vec::new();
    if let (Some(before), Some(after)) = (numbers(&before), numbers(&after)) {
        if after < before {
            violations.push(Violation::new(field, "must not go back to an older version"));
        }
        if after[0] > before[0] || (after[0] == before[0] && after[1] > before[1] + 1) {
            violations.push(Violation::new(field, "must not skip a minor version"));
        }
    }
    if before != after {
        violations.push(Violation::new(field, Fixed::NOT_YET));
    }
    violations
}

/// A value in the form in which equal ones are equal.
fn comparable(fixed: &Fixed, spec: &Value) -> Value {
    let value = fixed.value(spec);
    let number = match (fixed.unset, value.as_str()) {
        (Unset::Size(_), Some(text)) => parse_bytes(text),
        (Unset::Lifetime(_), Some(text)) => parse_lifetime(text).map(|lifetime| lifetime.as_secs()),
        _ => None,
    };
    number.map_or(value, Value::from)
}
