//! Golden templates, and what has to hold in every one.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{check::MAX_USER_DATA, *};
use crate::aws::tags::Owner;

const SPEC_HASH_VALUE: &str = "0123456789abcdef";

fn owner() -> Owner {
    Owner { uid: "6f0c3b1e-8a53-4c55-9a11-0f5f3a3f1c2d".into(), id: "k3v7qzma".into(), name: "team-a/demo".into() }
}

fn machine() -> Machine {
    Machine {
        image: "ami-0123456789abcdef0".into(),
        instance_type: "m7i.large".into(),
        disk: 20,
        user_data: b"#cloud-config\n{}\n".to_vec(),
    }
}

/// A guest in the first `zones` zones, whose control-plane nodes are spread over them.
fn cluster(zones: usize, masters: usize) -> ClusterStack {
    let zones: Vec<_> = ["a", "b", "c"]
        .iter()
        .take(zones)
        .enumerate()
        .map(|(index, letter)| Zone {
            name: format!("eu-central-1{letter}"),
            public: format!("10.8.{}.0/24", index).parse().unwrap(),
            private: format!("10.8.{}.0/20", 16 * (index + 1)).parse().unwrap(),
        })
        .collect();
    let masters = (0..masters)
        .map(|index| Master { zone: zones[index % zones.len()].name.clone(), machine: machine(), etcd_disk: 8 })
        .collect();
    ClusterStack {
        owner: owner(),
        region: "eu-central-1".into(),
        network: "10.8.0.0/16".parse().unwrap(),
        zones,
        nat: Nat::PerZone,
        api: ApiAccess::default(),
        masters,
        spec_hash: SPEC_HASH_VALUE.into(),
        tags: BTreeMap::new(),
    }
}

/// A guest that asks for all there is.
fn everything() -> ClusterStack {
    let mut stack = cluster(3, 3);
    stack.api.private = vec!["10.0.0.0/16".parse().unwrap()];
    stack.api.public = vec!["0.0.0.0/0".parse().unwrap(), "203.0.113.0/24".parse().unwrap()];
    stack.tags = [("cost-center".to_owned(), "4711".to_owned())].into();
    stack
}

fn pool(purchase: Purchase) -> PoolStack {
    PoolStack {
        owner: owner(),
        pool: "default".into(),
        subnets: vec!["subnet-0a".into(), "subnet-0b".into()],
        security_group: "sg-0123456789abcdef0".into(),
        key_arn: "arn:aws:kms:eu-central-1:111122223333:key/0d6ea2f4-6d4c-4a0c-8d5a-9c2b5d0f5b11".into(),
        min: 1,
        max: 3,
        machine: machine(),
        purchase,
        drain_timeout: 600,
        spec_hash: SPEC_HASH_VALUE.into(),
        tags: BTreeMap::new(),
    }
}

fn spot() -> Purchase {
    Purchase::Spot { on_demand: 1, on_demand_percentage: 25, other_types: vec!["m6i.large".into(), "m5.large".into()] }
}

/// Every shape of template that there is.
fn bodies() -> Vec<(&'static str, Body)> {
    let single_nat = ClusterStack { nat: Nat::Single, ..cluster(3, 3) };
    vec![
        ("cluster-1-zone-1-master", cluster(1, 1).render().unwrap()),
        ("cluster-1-zone-3-masters", cluster(1, 3).render().unwrap()),
        ("cluster-3-zones-1-master", cluster(3, 1).render().unwrap()),
        ("cluster-3-zones-3-masters", cluster(3, 3).render().unwrap()),
        ("cluster-single-nat", single_nat.render().unwrap()),
        ("cluster-everything", everything().render().unwrap()),
        ("pool-on-demand", pool(Purchase::OnDemand).render().unwrap()),
        ("pool-spot", pool(spot()).render().unwrap()),
    ]
}

fn parsed(body: &Body) -> Value {
    serde_json::from_str(&body.json).unwrap()
}

/// Logical id, type and properties of all resources.
fn resources(body: &Body) -> Vec<(String, Kind, Value)> {
    let template = parsed(body);
    let resource = |(id, it): (&String, &Value)| {
        (id.clone(), Kind::parse(it["Type"].as_str().unwrap()).unwrap(), it["Properties"].clone())
    };
    template["Resources"].as_object().unwrap().iter().map(resource).collect()
}

/// Every value below, with the path to it.
fn leaves(value: &Value, path: &str, found: &mut Vec<(String, Value)>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| leaves(value, &format!("{path}.{key}"), found)),
        Value::Array(list) => list.iter().for_each(|value| leaves(value, &format!("{path}[]"), found)),
        _ => found.push((path.to_owned(), value.clone())),
    }
}

#[test]
fn templates_are_golden() {
    for (name, body) in bodies() {
        // The test against a stand-in for AWS reads these files, tags and all.
        let shown = json!({"Stack": body.stack, "Tags": body.tags, "Template": parsed(&body)});
        insta::assert_snapshot!(name, serde_json::to_string_pretty(&shown).unwrap());
    }
}

#[test]
fn the_same_input_gives_the_same_sorted_bytes() {
    for ((name, body), (_, again)) in bodies().into_iter().zip(bodies()) {
        assert_eq!(body, again, "{name}");
        let mut sorted = parsed(&body);
        sorted.sort_all_objects();
        assert_eq!(body.json, sorted.to_string(), "{name}");
    }
}

#[test]
fn templates_fit_into_a_request_with_user_data_of_usual_size() {
    let sized = |masters: usize, bytes: usize| {
        let mut stack = everything();
        stack.masters = (0..masters).map(|index| stack.masters[index % 3].clone()).collect();
        stack.masters.iter_mut().for_each(|master| master.machine.user_data = vec![0; bytes]);
        stack.render()
    };
    let body = sized(3, 4096).unwrap();
    assert!(body.json.len() <= MAX_BYTES, "{} bytes", body.json.len());
    assert!(body.resources > 70 && body.resources < 120, "{} resources", body.resources);
    // All five have theirs in one template, so that each has less room.
    assert!(sized(5, 1536).is_ok());
    assert!(matches!(sized(5, 4096), Err(InputError::TemplateTooBig { .. })));
}

#[test]
fn every_rule_is_described_and_the_world_reaches_public_load_balancers_alone() {
    let mut rules = 0;
    for (name, body) in bodies() {
        for (id, kind, properties) in resources(&body) {
            // EC2 takes no other characters there: no apostrophe, for one.
            let is_text = |text: &str| {
                let is_taken = |c: char| c.is_ascii_alphanumeric() || " ._-:/()#,@[]+=&;{}!$*".contains(c);
                (3..256).contains(&text.len()) && text.chars().all(is_taken)
            };
            let described = |rule: &Value| assert!(rule["Description"].as_str().is_some_and(is_text), "{name}: {id}");
            match kind {
                Kind::SecurityGroupIngress => {
                    rules += 1;
                    described(&properties);
                    let is_open = properties["CidrIp"] == json!("0.0.0.0/0");
                    let of = properties["GroupId"]["Fn::GetAtt"][0].as_str().unwrap();
                    assert!(!is_open || of == "PublicApiSecurityGroup", "{name}: {id} opens {of} to the world");
                }
                Kind::SecurityGroup => {
                    assert!(properties["GroupDescription"].as_str().is_some_and(is_text), "{name}: {id}");
                    assert!(properties.get("SecurityGroupIngress").is_none(), "{name}: {id} hides rules");
                    // Without one EC2 lets everything out.
                    let egress = properties["SecurityGroupEgress"].as_array().unwrap();
                    assert!(!egress.is_empty(), "{name}: {id}");
                    egress.iter().for_each(described);
                }
                _ => {}
            }
        }
    }
    assert!(rules > 60, "only {rules} rules were seen");
    let closed = cluster(3, 3).render().unwrap();
    assert!(!closed.json.contains("internet-facing"), "nobody asked for a way in");
}

#[test]
fn etcd_is_reached_by_the_control_plane_alone() {
    for (_, kind, rule) in resources(&everything().render().unwrap()) {
        let opens = |port: u64| {
            kind == Kind::SecurityGroupIngress
                && rule["GroupId"]["Fn::GetAtt"][0] == json!("MasterSecurityGroup")
                && rule["FromPort"].as_u64().is_none_or(|from| from <= port)
                && rule["ToPort"].as_u64().is_none_or(|to| port <= to)
        };
        for port in [2379, 2380] {
            assert!(
                !opens(port) || rule["SourceSecurityGroupId"]["Fn::GetAtt"][0] == json!("MasterSecurityGroup"),
                "{rule}"
            );
        }
        assert!(!opens(22), "{rule}");
    }
}

#[test]
fn every_disk_is_encrypted_with_the_guests_key() {
    let mut disks = 0;
    for (name, body) in bodies() {
        for (id, kind, properties) in resources(&body) {
            let found = match kind {
                Kind::Volume => vec![&properties],
                Kind::LaunchTemplate => {
                    let mappings = properties["LaunchTemplateData"]["BlockDeviceMappings"].as_array().unwrap();
                    assert!(!mappings.is_empty(), "{name}: {id} leaves its root disk to the image");
                    mappings.iter().map(|mapping| &mapping["Ebs"]).collect()
                }
                _ => continue,
            };
            for disk in found {
                disks += 1;
                assert_eq!(disk["Encrypted"], json!(true), "{name}: {id}");
                let key = &disk["KmsKeyId"];
                assert!(
                    *key == json!({"Fn::GetAtt": ["Key", "Arn"]}) || key.as_str().unwrap().starts_with("arn:"),
                    "{name}: {id}"
                );
                assert_eq!(disk["VolumeType"], json!("gp3"), "{name}: {id}");
            }
        }
    }
    assert!(disks > 20, "only {disks} disks were seen");
}

#[test]
fn what_does_not_come_back_is_kept() {
    for (name, body) in bodies() {
        for (id, resource) in parsed(&body)["Resources"].as_object().unwrap() {
            let kept = |word: &str| {
                assert_eq!(resource["DeletionPolicy"], json!(word), "{name}: {id}");
                assert_eq!(resource["UpdateReplacePolicy"], json!(word), "{name}: {id}");
            };
            match Kind::parse(resource["Type"].as_str().unwrap()).unwrap() {
                Kind::Volume => kept("Snapshot"),
                Kind::Key => {
                    assert_eq!(resource["DeletionPolicy"], json!("RetainExceptOnCreate"), "{name}: {id}");
                    assert_eq!(resource["UpdateReplacePolicy"], json!("Retain"), "{name}: {id}");
                }
                _ => {}
            }
        }
    }
}

#[test]
fn metadata_is_asked_for_by_token_and_from_the_node_itself() {
    let mut seen = 0;
    for (name, body) in bodies() {
        for (id, kind, properties) in resources(&body) {
            if kind == Kind::LaunchTemplate {
                seen += 1;
                let data = &properties["LaunchTemplateData"];
                assert_eq!(data["MetadataOptions"]["HttpTokens"], json!("required"), "{name}: {id}");
                assert_eq!(data["MetadataOptions"]["HttpPutResponseHopLimit"], json!(1), "{name}: {id}");
                assert!(data.get("KeyName").is_none(), "{name}: {id} lets somebody log in");
                assert_eq!(data["NetworkInterfaces"][0]["AssociatePublicIpAddress"], json!(false), "{name}: {id}");
            }
        }
    }
    assert!(seen >= 16, "only {seen} launch templates were seen");
}

#[test]
fn no_right_is_wider_than_it_has_to_be() {
    let mut statements = 0;
    for (name, body) in bodies() {
        for (id, kind, properties) in resources(&body) {
            let documents: Vec<Value> = match kind {
                Kind::Role => {
                    assert!(properties["PermissionsBoundary"].is_object(), "{name}: {id} is not bounded");
                    let policies = properties["Policies"].as_array().cloned().unwrap_or_default();
                    policies.into_iter().map(|policy| policy["PolicyDocument"].clone()).collect()
                }
                Kind::Key => vec![properties["KeyPolicy"].clone()],
                _ => continue,
            };
            for statement in documents.iter().flat_map(|document| document["Statement"].as_array().unwrap()) {
                statements += 1;
                let actions = match &statement["Action"] {
                    Value::Array(actions) => actions.clone(),
                    action => vec![action.clone()],
                };
                let has_condition = statement.get("Condition").is_some();
                for action in actions {
                    let action = action.as_str().unwrap();
                    // AWS's own default, without which a key can be lost to everybody.
                    let administers = action == "kms:*" && statement["Sid"] == json!("AccountAdministers");
                    assert!(administers || !action.contains('*'), "{name}: {id} may do {action}");
                    let only_looks = action.starts_with("ec2:Describe");
                    let everywhere = statement["Resource"] == json!("*") && kind == Kind::Role;
                    assert!(!everywhere || only_looks, "{name}: {id} may do {action} to everything");
                    assert!(only_looks || administers || has_condition, "{name}: {id} may do {action} unconditionally");
                }
                let anybody = statement["Principal"] == json!({"AWS": "*"});
                let of_the_account = &statement["Condition"]["StringEquals"]["kms:CallerAccount"];
                assert!(
                    !anybody || *of_the_account == json!({"Ref": "AWS::AccountId"}),
                    "{name}: {id} is open to other accounts"
                );
            }
        }
    }
    assert!(statements > 20, "only {statements} statements were seen");
}

#[test]
fn nothing_in_a_template_is_called_like_a_secret() {
    for (name, body) in bodies() {
        let mut found = Vec::new();
        leaves(&parsed(&body), "", &mut found);
        for (path, value) in found {
            let text = format!("{path}={value}").to_lowercase();
            // That tokens are asked for, and a key that never leaves AWS, are no secrets.
            let text = text.replace("httptokens", "").replace("kmskeyid", "").replace("enablekeyrotation", "");
            for word in ["password", "secret", "token", "private_key", "begin ", "accesskey", "credential"] {
                assert!(!text.contains(word), "{name}: {path} = {value}");
            }
        }
    }
}

#[test]
fn no_update_of_a_pool_touches_its_machines() {
    for purchase in [Purchase::OnDemand, spot()] {
        let body = pool(purchase).render().unwrap();
        let group = &parsed(&body)["Resources"]["Group"];
        assert!(group.get("UpdatePolicy").is_none() && group.get("CreationPolicy").is_none());
        assert!(group["Properties"].get("DesiredCapacity").is_none(), "an update would undo what scaled the pool");
        assert_eq!(group["Properties"]["LifecycleHookSpecificationList"][0]["DefaultResult"], json!("CONTINUE"));
    }
}

#[test]
fn every_reference_leads_somewhere() {
    for (name, body) in bodies() {
        let ids: BTreeSet<_> = resources(&body).into_iter().map(|(id, ..)| id).collect();
        let mut found = Vec::new();
        leaves(&parsed(&body), "", &mut found);
        let mut referred = 0;
        for (path, value) in found {
            let text = value.as_str().unwrap_or_default();
            let refers = path.ends_with(".Ref") && !text.starts_with("AWS::") || path.contains(".DependsOn");
            if refers {
                referred += 1;
                assert!(ids.contains(text), "{name}: {path} = {text}");
            }
        }
        assert!(referred > 0, "{name}");
    }
}

#[test]
fn zones_come_and_go_without_moving_others() {
    let three = resources(&cluster(3, 1).render().unwrap());
    let one: Vec<_> = resources(&cluster(1, 1).render().unwrap());
    let shared = ["InternalApi", "S3Endpoint"]; // these list the zones
    for (id, kind, properties) in one {
        let same = three.iter().any(|(other, _, its)| *other == id && *its == properties);
        assert!(same || shared.contains(&id.as_str()), "{id} ({kind:?}) moves with a zone that comes");
    }
}

#[test]
fn a_guest_with_one_nat_gateway_leaves_by_it_from_all_zones() {
    let body = ClusterStack { nat: Nat::Single, ..cluster(3, 3) }.render().unwrap();
    let gateways: Vec<_> = resources(&body).into_iter().filter(|(_, kind, _)| *kind == Kind::NatGateway).collect();
    assert_eq!(gateways.len(), 1);
    let ways: Vec<_> = resources(&body)
        .into_iter()
        .filter_map(|(_, _, it)| it["NatGatewayId"]["Ref"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(ways, ["NatA"; 3]);
}

#[test]
fn logical_ids_are_what_cloudformation_takes() {
    let mut stack = cluster(1, 1);
    stack.region = "us-west-2".into();
    stack.zones[0].name = "us-west-2-lax-1a".into();
    stack.masters[0].zone = stack.zones[0].name.clone();
    let local = stack.render().unwrap();
    assert!(resources(&local).iter().any(|(id, ..)| id == "NatLax1a"));
    for (name, body) in bodies().into_iter().chain([("local", local)]) {
        for (id, ..) in resources(&body) {
            assert!(id.chars().all(|c| c.is_ascii_alphanumeric()) && id.len() <= 255, "{name}: {id}");
        }
    }
}

#[test]
fn what_cannot_be_is_said_before_aws_is_asked() {
    let told = |error: InputError| error.to_string();
    let change = |change: fn(&mut ClusterStack)| {
        let mut stack = cluster(3, 3);
        change(&mut stack);
        told(stack.render().unwrap_err())
    };
    let of_pool = |change: fn(&mut PoolStack)| {
        let mut stack = pool(spot());
        change(&mut stack);
        told(stack.render().unwrap_err())
    };
    let said = [
        change(|it| it.zones.clear()),
        change(|it| it.zones[1] = it.zones[0].clone()),
        change(|it| it.region = "eu-west-1".into()),
        change(|it| it.network = "10.0.0.0/8".parse().unwrap()),
        change(|it| it.zones[1].private = "10.9.0.0/20".parse().unwrap()),
        change(|it| it.zones[1].private = "10.8.16.0/24".parse().unwrap()),
        change(|it| it.api.public = vec!["10.0.0.1/8".parse().unwrap()]),
        change(|it| it.masters.truncate(2)),
        change(|it| it.masters[2].zone = "eu-central-1d".into()),
        change(|it| it.masters[1].machine.user_data = vec![0; MAX_USER_DATA + 1]),
        change(|it| it.masters[0].machine.image.clear()),
        change(|it| it.tags = [("giantnetes.io/cluster-uid".to_owned(), "another".to_owned())].into()),
        change(|it| it.tags = (0..41).map(|i| (i.to_string(), String::new())).collect()),
        of_pool(|it| it.machine.user_data = vec![0; MAX_USER_DATA + 1]),
        of_pool(|it| it.min = 4),
        of_pool(|it| it.purchase = Purchase::Spot { on_demand: 0, on_demand_percentage: 101, other_types: vec![] }),
        of_pool(|it| {
            it.purchase =
                Purchase::Spot { on_demand: 0, on_demand_percentage: 0, other_types: vec!["m7i.large".into()] };
        }),
        of_pool(|it| it.drain_timeout = 7201),
        of_pool(|it| it.subnets.clear()),
    ];
    insta::assert_snapshot!("errors", said.join("\n"));
    // What is just possible is.
    let mut stack = pool(spot());
    stack.machine.user_data = vec![0; MAX_USER_DATA];
    assert!(stack.render().is_ok());
}

const MANAGER: [&str; 2] = [
    include_str!("../../../charts/giantnetes/files/aws/manager-stacks.json"),
    include_str!("../../../charts/giantnetes/files/aws/manager-resources.json"),
];
const NODES: &str = include_str!("../../../charts/giantnetes/files/aws/nodes-boundary.json");

fn statements(policy: &str) -> Vec<Value> {
    let policy: Value = serde_json::from_str(policy).unwrap();
    policy["Statement"].as_array().unwrap().clone()
}

/// The actions of a statement.
fn actions(statement: &Value) -> Vec<&str> {
    match &statement["Action"] {
        Value::Array(actions) => actions.iter().map(|action| action.as_str().unwrap()).collect(),
        action => vec![action.as_str().unwrap()],
    }
}

#[test]
fn the_managers_rights_are_listed_one_by_one_and_makes_nothing_past_its_stacks() {
    let mut seen = BTreeSet::new();
    for policy in MANAGER {
        // AWS counts characters of a managed policy without white space.
        let size = policy.chars().filter(|c| !c.is_whitespace()).count();
        assert!(size <= 6144, "{size} characters");
        for statement in statements(policy) {
            assert_eq!(statement["Effect"], json!("Allow"));
            let by_stacks = statement["Condition"]["ForAnyValue:StringEquals"]["aws:CalledVia"]
                == json!("cloudformation.amazonaws.com");
            for action in actions(&statement) {
                let (_, verb) = action.split_once(':').unwrap();
                assert!(!action.contains('*'), "{action}");
                let looks = ["Describe", "List", "Get"].iter().any(|word| verb.starts_with(word));
                let everywhere = statement["Resource"] == json!("*");
                assert!(looks || by_stacks || !everywhere, "{action} on everything");
                seen.insert(action.to_owned());
            }
        }
    }
    assert!(seen.len() > 100, "only {} actions were seen", seen.len());
    for never in [
        "iam:CreateUser",
        "iam:CreateAccessKey",
        "iam:AttachRolePolicy",
        "iam:DeleteRolePermissionsBoundary",
        "iam:UpdateAssumeRolePolicy",
        "sts:AssumeRole",
        "ec2:CreateKeyPair",
        "ec2:ImportKeyPair",
        "cloudformation:CreateStack",
        "cloudformation:UpdateStack",
    ] {
        assert!(!seen.contains(never), "{never}");
    }
}

#[test]
fn roles_are_made_within_the_boundary_alone() {
    let boundary = json!(format!("arn:aws:iam::*:policy/{}", super::rights::BOUNDARY));
    for statement in MANAGER.iter().flat_map(|policy| statements(policy)) {
        if actions(&statement)
            .iter()
            .any(|action| ["iam:CreateRole", "iam:PutRolePolicy", "iam:PutRolePermissionsBoundary"].contains(action))
        {
            assert_eq!(statement["Condition"]["ArnLike"]["iam:PermissionsBoundary"], boundary, "{statement}");
        }
    }
    // And what a role of ours allows, the boundary has to allow, or it is worth nothing.
    let statements = statements(NODES);
    let bounds: BTreeSet<_> = statements.iter().flat_map(actions).collect();
    let mut seen = 0;
    for (_, kind, properties) in bodies().iter().flat_map(|(_, body)| resources(body)) {
        for policy in properties["Policies"].as_array().into_iter().flatten().filter(|_| kind == Kind::Role) {
            for statement in policy["PolicyDocument"]["Statement"].as_array().unwrap() {
                for action in actions(statement) {
                    seen += 1;
                    assert!(bounds.contains(action), "{action}");
                }
            }
        }
    }
    assert!(seen > 10, "only {seen} rights were seen");
}
