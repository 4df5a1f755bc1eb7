//! A launch template: how a node's machine is made.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::Machine;
use crate::{api::names, aws::tags::Owner};

/// The root disk, as images of AWS call it.
const ROOT_DEVICE: &str = "/dev/xvda";

/// What a launch template says besides its machine.
pub(super) struct Launch<'a> {
    pub(super) machine: &'a Machine,
    pub(super) profile_arn: Value,
    pub(super) security_group: Value,
    pub(super) key: Value,
    /// Tags of the root disk.
    pub(super) tags: &'a BTreeMap<String, String>,
}

impl Launch<'_> {
    /// Properties of the launch template. There is no key pair in it, and no port open for one.
    pub(super) fn template(&self) -> Value {
        let mut data = json!({
            "BlockDeviceMappings": [{
                "DeviceName": ROOT_DEVICE,
                "Ebs": {
                    "DeleteOnTermination": true,
                    "Encrypted": true,
                    "KmsKeyId": self.key,
                    "VolumeSize": self.machine.disk,
                    "VolumeType": "gp3",
                },
            }],
            "IamInstanceProfile": {"Arn": self.profile_arn},
            "ImageId": self.machine.image,
            "InstanceType": self.machine.instance_type,
            // Asked by token alone, and from the node itself: not from pods, nor by what forwards requests. Tags are not shown
            // there, since Kubernetes' have slashes, with which no instance would start.
            "MetadataOptions": {
                "HttpEndpoint": "enabled",
                "HttpPutResponseHopLimit": 1,
                "HttpTokens": "required",
                "InstanceMetadataTags": "disabled",
            },
            "NetworkInterfaces": [{
                "AssociatePublicIpAddress": false,
                "DeleteOnTermination": true,
                "DeviceIndex": 0,
                "Groups": [self.security_group],
            }],
            // An instance has its tags from the group.
            "TagSpecifications": [{"ResourceType": "volume", "Tags": list(self.tags)}],
        });
        if !self.machine.user_data.is_empty() {
            data["UserData"] = json!(STANDARD.encode(&self.machine.user_data));
        }
        json!({"LaunchTemplateData": data})
    }
}

/// Tags of a node's machine, for which CloudFormation's own do not reach.
pub(super) fn tags(
    owner: &Owner,
    users: &BTreeMap<String, String>,
    role: &str,
    name: &str,
) -> BTreeMap<String, String> {
    let mut tags = users.clone();
    tags.extend(owner.tags());
    tags.insert(names::ROLE_LABEL.into(), role.into());
    tags.insert("Name".into(), format!("{}-{name}", owner.cluster_stack()));
    tags
}

/// Tags as resources take them.
pub(super) fn list(tags: &BTreeMap<String, String>) -> Value {
    super::resource::tags(tags.iter().map(|(key, value)| (key.as_str(), value.as_str())))
}

/// Tags of an Auto Scaling group, which it gives its instances.
pub(super) fn passed_on(tags: &BTreeMap<String, String>) -> Value {
    tags.iter().map(|(key, value)| json!({"Key": key, "PropagateAtLaunch": true, "Value": value})).collect()
}
