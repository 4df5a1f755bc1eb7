//! `spec.ingressController`: what leads HTTP from outside to the guest's own workloads.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An ingress controller inside the guest, Traefik, which serves the guest's Ingresses. Its version is that of the VM image.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IngressControllerSpec {
    /// Whether there is one. Default: false. Changing it: in place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Its pods, 1 to 10. Default: 1. Changing it: in place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10))]
    pub replicas: Option<i32>,
    /// The Service in the management cluster that leads to it. Default: `ClusterIP`. Changing it: in place; `status.ingress`
    /// follows.
    #[serde(default, skip_serializing_if = "IngressService::is_default")]
    pub service: IngressService,
}

/// The sort of Service that leads to a guest's ingress controller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum IngressService {
    /// Reached from the management cluster alone.
    #[default]
    ClusterIP,
    /// A load balancer that the management cluster's provider makes.
    LoadBalancer,
}

impl IngressService {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}
