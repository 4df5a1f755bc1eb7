//! Whether a Cluster may become another: the transition rules of the CRD once more.

use serde_json::Value;

use super::{Violation, kubernetes::numbers, machine::parse_bytes, network::parse_lifetime};
use crate::api::{
    Cluster,
    fixed::{FIXED, Fixed, Unset},
};

/// What forbids that `old` becomes `new`. The status is `old`'s: an update of a spec does not touch it.
pub fn update(old: &Cluster, new: &Cluster) -> Vec<Violation> {
    let mut violations = version(old, new);
    let replicas = |cluster: &Cluster| cluster.spec.control_plane.replicas.unwrap_or(1);
    if replicas(new) < replicas(old) {
        let problem = format!("{} must not be fewer than before, {}", replicas(new), replicas(old));
        violations.push(Violation::new("spec.controlPlane.replicas", problem));
    }
    for ((place, before), (_, after)) in old.rotations_asked().into_iter().zip(new.rotations_asked()) {
        if after < before {
            let problem = format!("{after} must not be less than before, {before}");
            violations.push(Violation::new(format!("spec.pki.{place}.rotate"), problem));
        }
    }
    let [old, new] = [old, new].map(|cluster| serde_json::to_value(&cluster.spec).unwrap_or_default());
    let changed = FIXED.iter().filter(|fixed| comparable(fixed, &old) != comparable(fixed, &new));
    violations.extend(changed.map(|fixed| Violation::new(fixed.field(), fixed.why)));
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
        if skips_a_minor(before, after) {
            violations.push(Violation::new(field, "must not skip a minor version"));
        }
    }
    // The next minor may be asked for when the control plane has arrived at this one.
    if let (Some(runs), Some(after)) = (pinned.and_then(numbers), numbers(&after))
        && violations.is_empty()
        && skips_a_minor(runs, after)
    {
        let problem = "must not skip a minor version: the control plane is still replaced for the one before";
        violations.push(Violation::new(field, problem));
    }
    violations
}

fn skips_a_minor(before: [u32; 3], after: [u32; 3]) -> bool {
    after[0] > before[0] || (after[0] == before[0] && after[1] > before[1] + 1)
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
