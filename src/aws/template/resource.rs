//! One resource of a template, and the functions that refer to others.

use serde_json::{Value, json};

/// Declares [`Kind`]: every type of resource that a guest is made of, under CloudFormation's name for it.
macro_rules! kinds {
    ($($kind:ident = $name:literal,)*) => {
        /// A type of resource.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[allow(missing_docs, reason = "each is called as AWS calls it")]
        pub enum Kind {
            $($kind,)*
        }

        impl Kind {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$kind),*];

            /// CloudFormation's name.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)*
                }
            }
        }
    };
}

kinds! {
    AutoScalingGroup = "AWS::AutoScaling::AutoScalingGroup",
    ElasticIp = "AWS::EC2::EIP",
    InternetGateway = "AWS::EC2::InternetGateway",
    LaunchTemplate = "AWS::EC2::LaunchTemplate",
    NatGateway = "AWS::EC2::NatGateway",
    NetworkInterface = "AWS::EC2::NetworkInterface",
    Route = "AWS::EC2::Route",
    RouteTable = "AWS::EC2::RouteTable",
    SecurityGroup = "AWS::EC2::SecurityGroup",
    SecurityGroupIngress = "AWS::EC2::SecurityGroupIngress",
    Subnet = "AWS::EC2::Subnet",
    SubnetRouteTableAssociation = "AWS::EC2::SubnetRouteTableAssociation",
    Volume = "AWS::EC2::Volume",
    Vpc = "AWS::EC2::VPC",
    VpcEndpoint = "AWS::EC2::VPCEndpoint",
    VpcGatewayAttachment = "AWS::EC2::VPCGatewayAttachment",
    Listener = "AWS::ElasticLoadBalancingV2::Listener",
    LoadBalancer = "AWS::ElasticLoadBalancingV2::LoadBalancer",
    TargetGroup = "AWS::ElasticLoadBalancingV2::TargetGroup",
    InstanceProfile = "AWS::IAM::InstanceProfile",
    Role = "AWS::IAM::Role",
    KeyAlias = "AWS::KMS::Alias",
    Key = "AWS::KMS::Key",
    HostedZone = "AWS::Route53::HostedZone",
    RecordSet = "AWS::Route53::RecordSet",
}

impl Kind {
    /// The type of this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.name() == name)
    }

    /// Whether what is lost with such a resource does not come back by making another one: data, the key to data, or
    /// what everything else stands in.
    pub fn is_stateful(self) -> bool {
        match self {
            Self::Volume | Self::Vpc | Self::Subnet | Self::Key | Self::HostedZone => true,
            Self::AutoScalingGroup
            | Self::ElasticIp
            | Self::InternetGateway
            | Self::LaunchTemplate
            | Self::NatGateway
            | Self::NetworkInterface
            | Self::Route
            | Self::RouteTable
            | Self::SecurityGroup
            | Self::SecurityGroupIngress
            | Self::SubnetRouteTableAssociation
            | Self::VpcEndpoint
            | Self::VpcGatewayAttachment
            | Self::Listener
            | Self::LoadBalancer
            | Self::TargetGroup
            | Self::InstanceProfile
            | Self::Role
            | Self::KeyAlias
            | Self::RecordSet => false,
        }
    }
}

/// What becomes of a resource that its stack gives up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Policy {
    /// It stays, and is nobody's; unless its creation is undone, for then it never was anybody's.
    Retain,
    /// It goes, and its data stays as a snapshot.
    Snapshot,
}

/// A resource.
#[derive(Clone, Debug)]
pub(super) struct Resource {
    kind: Kind,
    properties: Value,
    depends_on: Vec<String>,
    policy: Option<Policy>,
}

impl Resource {
    pub(super) fn new(kind: Kind, properties: Value) -> Self {
        Self { kind, properties, depends_on: Vec::new(), policy: None }
    }

    /// Makes it after others that its properties do not refer to.
    pub(super) fn after(self, others: impl IntoIterator<Item = String>) -> Self {
        Self { depends_on: others.into_iter().collect(), ..self }
    }

    /// What becomes of it when it is removed or replaced.
    pub(super) fn leaves(self, policy: Policy) -> Self {
        Self { policy: Some(policy), ..self }
    }

    pub(super) fn json(&self) -> Value {
        let mut resource = json!({"Type": self.kind.name(), "Properties": self.properties});
        if !self.depends_on.is_empty() {
            resource["DependsOn"] = json!(self.depends_on);
        }
        if let Some(policy) = self.policy {
            let (deleted, replaced) = match policy {
                Policy::Retain => ("RetainExceptOnCreate", "Retain"),
                Policy::Snapshot => ("Snapshot", "Snapshot"),
            };
            resource["DeletionPolicy"] = json!(deleted);
            resource["UpdateReplacePolicy"] = json!(replaced);
        }
        resource
    }
}

/// What identifies another resource: an id for most, an ARN or a name for some.
pub(super) fn reference(id: &str) -> Value {
    json!({"Ref": id})
}

/// An attribute of another resource.
pub(super) fn attribute(id: &str, name: &str) -> Value {
    json!({"Fn::GetAtt": [id, name]})
}

/// A text in which CloudFormation replaces `${…}`.
pub(super) fn substitute(text: impl Into<String>) -> Value {
    json!({"Fn::Sub": text.into()})
}

/// A list as one text, which is all that an output can be.
pub(super) fn joined(values: Vec<Value>) -> Value {
    json!({"Fn::Join": [",", values]})
}

/// Tags, as most resources take them.
pub(super) fn tags<'a>(tags: impl IntoIterator<Item = (&'a str, &'a str)>) -> Value {
    tags.into_iter().map(|(key, value)| json!({"Key": key, "Value": value})).collect()
}
