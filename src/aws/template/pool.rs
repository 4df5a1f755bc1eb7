//! The stack of a node pool. An update makes a new version of its launch template and touches no machine: replacing nodes is
//! the rollout's, which drains them. So the group has no update policy, and no desired capacity, which an update would set back.

use serde_json::{Value, json};

use super::{
    Body, Head, InputError, Kind, PoolStack, Purchase, Resource, Template,
    machine::{self, Launch},
    resource::{attribute, reference},
    rights,
};
use crate::api::names;

const ROLE: &str = "Role";
const PROFILE: &str = "Profile";
const LAUNCH_TEMPLATE: &str = "LaunchTemplate";
const GROUP: &str = "Group";

/// Seconds before a machine's health counts: it has to boot.
const GRACE_SECONDS: u32 = 300;

/// The lifecycle hook by which a machine that goes is drained first.
pub const DRAIN_HOOK: &str = "drain";

impl PoolStack {
    /// Its template.
    pub fn render(&self) -> Result<Body, InputError> {
        self.check()?;
        let mut tags = machine::tags(&self.owner, &self.tags, names::ROLE_WORKER, &self.pool);
        tags.insert(names::POOL_LABEL.into(), self.pool.clone());

        let mut template = Template::default();
        // A node needs no right: that it is itself it proves by its signature alone, which nobody has to allow.
        let role = rights::role("Workers of a guest's node pool", Vec::new());
        template.add(ROLE, Resource::new(Kind::Role, role));
        template.add(PROFILE, Resource::new(Kind::InstanceProfile, rights::profile(ROLE)));
        let launch = Launch {
            machine: &self.machine,
            profile_arn: attribute(PROFILE, "Arn"),
            security_group: json!(self.security_group),
            key: json!(self.key_arn),
            tags: &tags,
        };
        template.add(LAUNCH_TEMPLATE, Resource::new(Kind::LaunchTemplate, launch.template()));
        template.add(GROUP, Resource::new(Kind::AutoScalingGroup, self.group(&tags)));
        template.output("RoleArn", "Role of the pool's nodes", attribute(ROLE, "Arn"));
        template.output("GroupName", "Auto Scaling group of the pool", reference(GROUP));
        template.output("LaunchTemplateVersion", "What new nodes are made by", version());

        let mut of_the_stack = self.tags.clone();
        of_the_stack.extend(self.owner.tags());
        of_the_stack.insert(names::POOL_LABEL.into(), self.pool.clone());
        template.render(Head {
            stack: self.owner.pool_stack(&self.pool),
            description: format!("Node pool {} of guest {}", self.pool, self.owner.name),
            spec_hash: self.spec_hash.clone(),
            tags: of_the_stack,
        })
    }

    fn group(&self, tags: &std::collections::BTreeMap<String, String>) -> Value {
        let mut group = json!({
            "HealthCheckGracePeriod": GRACE_SECONDS,
            "HealthCheckType": "EC2",
            // A manager that is down blocks nobody: when the time is over the machine goes.
            "LifecycleHookSpecificationList": [{
                "DefaultResult": "CONTINUE",
                "HeartbeatTimeout": self.drain_timeout,
                "LifecycleHookName": DRAIN_HOOK,
                "LifecycleTransition": "autoscaling:EC2_INSTANCE_TERMINATING",
            }],
            "MaxSize": self.max.to_string(),
            "MinSize": self.min.to_string(),
            "Tags": machine::passed_on(tags),
            "VPCZoneIdentifier": self.subnets,
        });
        let launch_template = json!({"LaunchTemplateId": reference(LAUNCH_TEMPLATE), "Version": version()});
        match &self.purchase {
            Purchase::OnDemand => group["LaunchTemplate"] = launch_template,
            Purchase::Spot { on_demand, on_demand_percentage, other_types } => {
                let types = std::iter::once(&self.machine.instance_type).chain(other_types);
                let overrides: Vec<_> = types.map(|name| json!({"InstanceType": name})).collect();
                // A successor is started as soon as AWS expects to take a spot machine back.
                group["CapacityRebalance"] = json!(true);
                group["MixedInstancesPolicy"] = json!({
                    "InstancesDistribution": {
                        "OnDemandAllocationStrategy": "prioritized",
                        "OnDemandBaseCapacity": on_demand,
                        "OnDemandPercentageAboveBaseCapacity": on_demand_percentage,
                        "SpotAllocationStrategy": "price-capacity-optimized",
                    },
                    "LaunchTemplate": {"LaunchTemplateSpecification": launch_template, "Overrides": overrides},
                });
            }
        }
        group
    }
}

fn version() -> Value {
    attribute(LAUNCH_TEMPLATE, "LatestVersionNumber")
}
