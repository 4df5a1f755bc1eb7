//! The guest's key, and what its nodes may ask of AWS.

use serde_json::{Value, json};

use super::{
    ClusterStack, Kind, Resource, Template,
    resource::{Policy, attribute, reference, substitute},
};
use crate::{api::names, aws::tags::Owner};

pub(super) const KEY: &str = "Key";
pub(super) const MASTER_ROLE: &str = "MasterRole";
pub(super) const MASTER_PROFILE: &str = "MasterProfile";

/// Name of the managed policy that bounds the rights of every node's role. The operator of an account makes it once, and
/// the manager may make no role without it: so whoever takes over the manager cannot give himself more.
pub const BOUNDARY: &str = "giantnetes-nodes";

/// Version of AWS's policy language.
const LANGUAGE: &str = "2012-10-17";

/// Adds the guest's key. It outlives the stack: without it the last snapshots of etcd are noise.
pub(super) fn add_key(template: &mut Template, stack: &ClusterStack) {
    let key = json!({
        "Description": format!("Disks of guest {}", stack.owner.name),
        "EnableKeyRotation": true,
        "KeyPolicy": {"Statement": [owners_of_the_account(), disks()], "Version": LANGUAGE},
        // The longest: whoever deletes it by mistake has a month to notice.
        "PendingWindowInDays": 30,
    });
    template.add(KEY, Resource::new(Kind::Key, key).leaves(Policy::Retain));
    let alias = json!({
        "AliasName": format!("alias/{}", stack.owner.cluster_stack()),
        "TargetKeyId": reference(KEY),
    });
    template.add("KeyAlias", Resource::new(Kind::KeyAlias, alias));
    template.output("KeyArn", "Key of the guest's disks", attribute(KEY, "Arn"));
}

/// AWS's own default: the account's IAM policies decide who administers the key. A key that lacks it can be lost to all.
fn owners_of_the_account() -> Value {
    json!({
        "Action": "kms:*",
        "Effect": "Allow",
        "Principal": {"AWS": substitute("arn:${AWS::Partition}:iam::${AWS::AccountId}:root")},
        "Resource": "*",
        "Sid": "AccountAdministers",
    })
}

/// As the key that AWS has for disks by default: whoever may use disks in this account, and by way of EC2 alone. Auto
/// Scaling needs it for root disks; its role cannot be named, since an account that never used it does not have it yet.
fn disks() -> Value {
    json!({
        "Action": ["kms:CreateGrant", "kms:Decrypt", "kms:DescribeKey", "kms:Encrypt", "kms:GenerateDataKeyWithoutPlaintext", "kms:ReEncryptFrom", "kms:ReEncryptTo"],
        "Condition": {"StringEquals": {
            "kms:CallerAccount": reference("AWS::AccountId"),
            "kms:ViaService": substitute("ec2.${AWS::Region}.amazonaws.com"),
        }},
        "Effect": "Allow",
        "Principal": {"AWS": "*"},
        "Resource": "*",
        "Sid": "DisksByWayOfEc2",
    })
}

/// Adds the role of control-plane nodes: they attach the control plane's volumes and interfaces, and that is all.
pub(super) fn add_master_role(template: &mut Template, stack: &ClusterStack) {
    let attach = json!({
        "PolicyDocument": {"Statement": [find(), take(&stack.owner), open()], "Version": LANGUAGE},
        "PolicyName": "attach",
    });
    template.add(MASTER_ROLE, Resource::new(Kind::Role, role("Control-plane nodes of a guest", vec![attach])));
    template.add(MASTER_PROFILE, Resource::new(Kind::InstanceProfile, profile(MASTER_ROLE)));
    template.output("MasterRoleArn", "Role of control-plane nodes", attribute(MASTER_ROLE, "Arn"));
}

/// EC2 limits none of these to single resources.
fn find() -> Value {
    json!({
        "Action": ["ec2:DescribeInstances", "ec2:DescribeNetworkInterfaces", "ec2:DescribeVolumes"],
        "Effect": "Allow",
        "Resource": "*",
        "Sid": "Find",
    })
}

/// Volumes and interfaces of this guest's control plane, to instances of it.
fn take(owner: &Owner) -> Value {
    let of_ours = |tag: &str| format!("aws:ResourceTag/{tag}");
    let arn =
        |what: &str| substitute(format!("arn:${{AWS::Partition}}:ec2:${{AWS::Region}}:${{AWS::AccountId}}:{what}/*"));
    json!({
        "Action": ["ec2:AttachNetworkInterface", "ec2:AttachVolume"],
        "Condition": {"StringEquals": {
            of_ours(names::OWNER_UID_ANNOTATION): owner.uid,
            of_ours(names::ROLE_LABEL): names::ROLE_CONTROL_PLANE,
        }},
        "Effect": "Allow",
        "Resource": [arn("instance"), arn("network-interface"), arn("volume")],
        "Sid": "TakeWhatIsTheirs",
    })
}

/// The key of their volume, as far as attaching it asks for it: EC2 uses it in their name.
fn open() -> Value {
    json!({
        "Action": ["kms:CreateGrant", "kms:Decrypt", "kms:DescribeKey"],
        "Condition": {"StringEquals": {"kms:ViaService": substitute("ec2.${AWS::Region}.amazonaws.com")}},
        "Effect": "Allow",
        "Resource": attribute(KEY, "Arn"),
        "Sid": "OpenTheirVolume",
    })
}

/// A role of nodes. Its name begins as the stack's.
pub(super) fn role(description: &str, policies: Vec<Value>) -> Value {
    let mut role = json!({
        "AssumeRolePolicyDocument": {
            "Statement": [{
                "Action": "sts:AssumeRole",
                "Effect": "Allow",
                "Principal": {"Service": substitute("ec2.${AWS::URLSuffix}")},
            }],
            "Version": LANGUAGE,
        },
        "Description": description,
        "PermissionsBoundary": substitute(format!("arn:${{AWS::Partition}}:iam::${{AWS::AccountId}}:policy/{BOUNDARY}")),
    });
    if !policies.is_empty() {
        role["Policies"] = json!(policies);
    }
    role
}

/// What hands a role to instances.
pub(super) fn profile(role: &str) -> Value {
    json!({"Roles": [reference(role)]})
}
