//! What the API has and this version does not do.

use super::{Valid, Violation};

/// Every field that asks for more than the controller manager can do. What it can do goes out of here with the change that
/// does it.
pub(super) fn of(valid: &Valid) -> Vec<Violation> {
    let asked = [(valid.mtu.overlay.is_some(), "spec.network.overlay.mtu", "another MTU is")];
    asked
        .into_iter()
        .filter(|(asked, _, _)| *asked)
        .map(|(_, field, what)| Violation::new(field, format!("{what} not supported by this version yet")))
        .collect()
}
