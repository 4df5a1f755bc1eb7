//! What the API has and this version does not do.

use super::{
    Exposure, Valid, Violation,
    network::{DEFAULT_CA_TTL, DEFAULT_LEAF_TTL},
};
use crate::api::AuditPolicy;

/// Every field that asks for more than the controller manager can do. What it can do goes out of here with the change that
/// does it.
pub(super) fn of(valid: &Valid) -> Vec<Violation> {
    let kubernetes = &valid.kubernetes;
    let asked = [
        (valid.control_plane.replicas > 1, "spec.controlPlane.replicas", "more than one control-plane node is"),
        (!kubernetes.feature_gates.is_empty(), "spec.kubernetes.featureGates", "feature gates are"),
        (!kubernetes.api_server.flags.is_empty(), "spec.kubernetes.apiServer.extraArgs", "flags are"),
        (kubernetes.api_server.oidc.is_some(), "spec.kubernetes.apiServer.oidc", "OpenID Connect is"),
        (
            kubernetes.api_server.audit != AuditPolicy::Metadata,
            "spec.kubernetes.apiServer.audit.policy",
            "another policy than Metadata is",
        ),
        (!kubernetes.controller_manager.is_empty(), "spec.kubernetes.controllerManager.extraArgs", "flags are"),
        (!kubernetes.scheduler.is_empty(), "spec.kubernetes.scheduler.extraArgs", "flags are"),
        (!kubernetes.kubelet.is_empty(), "spec.kubernetes.kubelet.extraArgs", "flags are"),
        (!kubernetes.proxy.is_empty(), "spec.kubernetes.proxy.extraArgs", "flags are"),
        (valid.mtu.overlay.is_some(), "spec.network.overlay.mtu", "another MTU is"),
        (valid.mtu.pods.is_some(), "spec.network.calico.mtu", "Calico is"),
        (valid.exposure != Exposure::None, "spec.exposure.type", "an Ingress is"),
        (valid.pki.ca_ttl != DEFAULT_CA_TTL, "spec.pki.ca.ttl", "another lifetime is"),
        (valid.pki.leaf_ttl != DEFAULT_LEAF_TTL, "spec.pki.leaf.ttl", "another lifetime is"),
        (!valid.pki.alt_names.is_empty(), "spec.pki.apiServer.altNames", "further names are"),
    ];
    asked
        .into_iter()
        .filter(|(asked, _, _)| *asked)
        .map(|(_, field, what)| Violation::new(field, format!("{what} not supported by this version yet")))
        .collect()
}
