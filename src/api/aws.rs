//! `spec.provider.aws` and what node pools say of AWS.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::rules;

/// Instance type of machines that name none.
pub const DEFAULT_INSTANCE_TYPE: &str = "m7i.large";
/// Addresses of a guest's network that names none.
pub const DEFAULT_NETWORK: &str = "10.8.0.0/16";

/// Settings of the AWS provider: nodes are EC2 instances, made by CloudFormation. It needs `pki.backend: Vault`.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::zones_of_the_region())]
pub struct AwsSpec {
    /// Region, such as `eu-central-1`. Changing it: immutable.
    #[schemars(regex(pattern = rules::AWS_REGION), length(max = 32))]
    pub region: String,
    /// Availability zones of that region, one to three, such as `eu-central-1a`. Control-plane nodes are spread over them in this
    /// order. Changing them: in place, as far as nothing that holds data has to move.
    #[schemars(length(min = 1, max = 3), inner(regex(pattern = rules::AWS_ZONE), length(max = 40)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub zones: Vec<String>,
    /// Addresses of the guest's network, /16 to /22. Default: 10.8.0.0/16. Changing it: immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 18))]
    #[x_kube(
        validation = rules::ipv4_range(),
        validation = rules::no_host_bits(),
        validation = rules::prefix(16, 22),
        validation = rules::unicast(),
    )]
    pub network: Option<String>,
    /// How private subnets reach the world: `Single` (default) by one NAT gateway in the first zone, `PerZone` by one in each.
    /// Changing it: in place.
    #[serde(default, skip_serializing_if = "NatGateways::is_default")]
    pub nat: NatGateways,
    /// Image of the nodes, such as `ami-0123456789abcdef0`. Default: the operator's for this version and region, which is pinned
    /// in `status.aws.image`. Changing it: in place for instances that come from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = rules::AWS_IMAGE), length(max = 32))]
    pub image: Option<String>,
    /// The control plane's machines.
    #[serde(default)]
    pub control_plane: AwsControlPlaneSpec,
    /// Who reaches the guest's API, beside its nodes.
    #[serde(default)]
    pub api_access: AwsApiAccessSpec,
    /// As whom its account is entered.
    pub credentials: AwsCredentialsSpec,
}

/// How private subnets reach the world.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum NatGateways {
    /// By one gateway, in the first zone.
    #[default]
    Single,
    /// By a gateway in each zone.
    PerZone,
}

impl NatGateways {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The control plane's machines.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AwsControlPlaneSpec {
    /// Instance type. Default: m7i.large. Changing it: in place for instances that come from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = rules::INSTANCE_TYPE), length(max = 32))]
    pub instance_type: Option<String>,
}

/// Who reaches a guest's API, beside its nodes.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AwsApiAccessSpec {
    /// IPv4 ranges that reach it by a private way, such as a peering; at most 50. Default: none. Changing them: in place.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 50), inner(length(max = 18), regex(pattern = rules::IPV4_RANGE)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub private: Vec<String>,
    /// IPv4 ranges that reach it over the internet, by a load balancer of its own; at most 50. Default: none, and no such load
    /// balancer. Changing them: in place.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 50), inner(length(max = 18), regex(pattern = rules::IPV4_RANGE)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub public: Vec<String>,
}

/// As whom an account is entered.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AwsCredentialsSpec {
    /// A Secret beside the Cluster, of type `giantnetes.io/aws-credentials`, with the keys `accessKeyID`, `secretAccessKey` and, of
    /// keys that are for a while, `sessionToken`. Changing it, or what it holds: in place.
    #[schemars(regex(pattern = rules::OBJECT_NAME), length(max = 253))]
    pub secret_name: String,
    /// ARN of the role that these keys assume. Default: none; they are used as they are. Changing it: in place.
    #[serde(default, rename = "roleARN", skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = rules::ROLE_ARN), length(max = 256))]
    pub role_arn: Option<String>,
    /// External id that the role's trust policy asks for; no secret. Default: none. Changing it: in place.
    #[serde(default, rename = "externalID", skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = rules::EXTERNAL_ID), length(min = 2, max = 1224))]
    pub external_id: Option<String>,
}

/// What a node pool says of AWS.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AwsPoolSpec {
    /// Instance type. Default: m7i.large. Changing it: in place for instances that come from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = rules::INSTANCE_TYPE), length(max = 32))]
    pub instance_type: Option<String>,
    /// Spot machines beside such at the list price. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spot: Option<SpotSpec>,
}

/// Spot machines beside such at the list price.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SpotSpec {
    /// So many nodes at the list price first, 0 to 100. Default: 0. Changing it: in place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub on_demand: Option<i32>,
    /// Of the others this percentage at the list price, too, 0 to 100. Default: 0. Changing it: in place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub on_demand_percentage: Option<i32>,
    /// Instance types that may stand in for the pool's own, which is preferred; at most 10. Default: none. Changing them: in place.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10), inner(regex(pattern = rules::INSTANCE_TYPE), length(max = 32)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub other_types: Vec<String>,
}

/// What is recorded of a guest on AWS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AwsStatus {
    /// Image of the guest's nodes. Pinned, as the version is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The CloudFormation stacks, by name: written before each attempt at one, so that no second one is made.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub stacks: std::collections::BTreeMap<String, StackRecord>,
}

/// What is recorded of a stack.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StackRecord {
    /// Number of the attempt. It never goes back.
    pub attempt: i64,
    /// What the attempt is to bring about.
    pub goal: String,
    /// ARN of the stack, as soon as it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}
