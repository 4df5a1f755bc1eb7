//! The network of a guest: per zone a subnet that faces the world and one for nodes, which leave by a NAT gateway.

use serde_json::{Value, json};

use super::{
    ClusterStack, Kind, Nat, Resource, Template, Zone,
    resource::{attribute, joined, reference, substitute, tags},
};

pub(super) const VPC: &str = "Vpc";
const INTERNET_GATEWAY: &str = "InternetGateway";
const INTERNET_ATTACHMENT: &str = "InternetAttachment";
const PUBLIC_ROUTES: &str = "PublicRoutes";
const PUBLIC_DEFAULT_ROUTE: &str = "PublicDefaultRoute";
const ANYWHERE: &str = "0.0.0.0/0";

/// What a zone adds to logical ids: the part of its name after the region, `A` for `eu-central-1a`.
pub(super) fn suffix(stack: &ClusterStack, zone: &str) -> String {
    let word = zone.strip_prefix(&stack.region).unwrap_or(zone);
    let mut suffix = String::new();
    for part in word.split(|c: char| !c.is_ascii_alphanumeric()) {
        let mut letters = part.chars();
        suffix.extend(letters.next().map(|first| first.to_ascii_uppercase()));
        suffix.push_str(letters.as_str());
    }
    suffix
}

pub(super) fn private_subnet(suffix: &str) -> String {
    format!("PrivateSubnet{suffix}")
}

pub(super) fn public_subnet(suffix: &str) -> String {
    format!("PublicSubnet{suffix}")
}

/// What has to be there before the first node of a zone starts, or its first download fails.
pub(super) fn way_out(suffix: &str) -> [String; 2] {
    [format!("PrivateDefaultRoute{suffix}"), format!("PrivateAssociation{suffix}")]
}

/// Adds the network.
pub(super) fn add(template: &mut Template, stack: &ClusterStack) {
    let vpc = json!({
        "CidrBlock": stack.network,
        "EnableDnsHostnames": true,
        "EnableDnsSupport": true,
        "Tags": name(stack, "network"),
    });
    template.add(VPC, Resource::new(Kind::Vpc, vpc));
    template.add(INTERNET_GATEWAY, Resource::new(Kind::InternetGateway, json!({"Tags": name(stack, "internet")})));
    let attachment = json!({"InternetGatewayId": reference(INTERNET_GATEWAY), "VpcId": reference(VPC)});
    template.add(INTERNET_ATTACHMENT, Resource::new(Kind::VpcGatewayAttachment, attachment));
    add_routes(template, stack, PUBLIC_ROUTES, "public");
    let to_the_world = json!({
        "DestinationCidrBlock": ANYWHERE,
        "GatewayId": reference(INTERNET_GATEWAY),
        "RouteTableId": reference(PUBLIC_ROUTES),
    });
    let route = Resource::new(Kind::Route, to_the_world).after([INTERNET_ATTACHMENT.to_owned()]);
    template.add(PUBLIC_DEFAULT_ROUTE, route);
    for (index, zone) in stack.zones.iter().enumerate() {
        add_zone(template, stack, zone, index == 0);
    }
    add_s3_endpoint(template, stack);
    template.output("VpcId", "Network of the guest", reference(VPC));
    let subnets = |id: fn(&str) -> String| joined(suffixes(stack).map(|suffix| reference(&id(&suffix))).collect());
    template.output("PublicSubnets", "Subnets that face the world, in the order of zones", subnets(public_subnet));
    template.output("PrivateSubnets", "Subnets of nodes, in the order of zones", subnets(private_subnet));
}

/// What the guest's zones add to logical ids.
pub(super) fn suffixes(stack: &ClusterStack) -> impl Iterator<Item = String> {
    stack.zones.iter().map(|zone| suffix(stack, &zone.name))
}

fn add_zone(template: &mut Template, stack: &ClusterStack, zone: &Zone, is_first: bool) {
    let suffix = &suffix(stack, &zone.name);
    let word = |what: &str| format!("{what}-{}", zone.name);
    // The tags tell the guest's cloud controller where load balancers of Services go.
    add_subnet(template, stack, &public_subnet(suffix), zone, zone.public, "kubernetes.io/role/elb");
    add_subnet(template, stack, &private_subnet(suffix), zone, zone.private, "kubernetes.io/role/internal-elb");
    associate(template, &format!("PublicAssociation{suffix}"), &public_subnet(suffix), PUBLIC_ROUTES);

    let routes = &format!("PrivateRoutes{suffix}");
    let [default_route, association] = way_out(suffix);
    add_routes(template, stack, routes, &word("private"));
    associate(template, &association, &private_subnet(suffix), routes);
    let gateway = match stack.nat {
        Nat::PerZone => nat(suffix),
        Nat::Single => nat(&suffixes(stack).next().unwrap_or_default()),
    };
    let by_nat = json!({
        "DestinationCidrBlock": ANYWHERE,
        "NatGatewayId": reference(&gateway),
        "RouteTableId": reference(routes),
    });
    template.add(default_route, Resource::new(Kind::Route, by_nat));

    if is_first || stack.nat == Nat::PerZone {
        let address = &format!("NatAddress{suffix}");
        let ip = json!({"Domain": "vpc", "Tags": name(stack, &word("nat"))});
        template.add(address, Resource::new(Kind::ElasticIp, ip).after([INTERNET_ATTACHMENT.to_owned()]));
        let gateway = json!({
            "AllocationId": attribute(address, "AllocationId"),
            "SubnetId": reference(&public_subnet(suffix)),
            "Tags": name(stack, &word("nat")),
        });
        // It is of no use, and its creation fails, before its own subnet reaches the world.
        let before = [PUBLIC_DEFAULT_ROUTE.to_owned(), format!("PublicAssociation{suffix}")];
        template.add(nat(suffix), Resource::new(Kind::NatGateway, gateway).after(before));
    }
}

fn nat(suffix: &str) -> String {
    format!("Nat{suffix}")
}

fn add_subnet(template: &mut Template, stack: &ClusterStack, id: &str, zone: &Zone, range: ipnet::Ipv4Net, role: &str) {
    let name = format!("{}-{id}", stack.owner.cluster_stack());
    let subnet = json!({
        "AvailabilityZone": zone.name,
        "CidrBlock": range,
        // Nothing gets a public address unasked.
        "MapPublicIpOnLaunch": false,
        "Tags": tags([("Name", name.as_str()), (role, "1"), (&stack.owner.kubernetes_tag(), "owned")]),
        "VpcId": reference(VPC),
    });
    template.add(id, Resource::new(Kind::Subnet, subnet));
}

fn add_routes(template: &mut Template, stack: &ClusterStack, id: &str, what: &str) {
    let table = json!({"Tags": name(stack, what), "VpcId": reference(VPC)});
    template.add(id, Resource::new(Kind::RouteTable, table));
}

fn associate(template: &mut Template, id: &str, subnet: &str, routes: &str) {
    let association = json!({"RouteTableId": reference(routes), "SubnetId": reference(subnet)});
    template.add(id, Resource::new(Kind::SubnetRouteTableAssociation, association));
}

/// Images and snapshots lie in S3: by this they cost no NAT traffic.
fn add_s3_endpoint(template: &mut Template, stack: &ClusterStack) {
    let tables: Vec<Value> = suffixes(stack).map(|suffix| reference(&format!("PrivateRoutes{suffix}"))).collect();
    let endpoint = json!({
        "RouteTableIds": tables,
        "ServiceName": substitute("com.amazonaws.${AWS::Region}.s3"),
        "VpcEndpointType": "Gateway",
        "VpcId": reference(VPC),
    });
    template.add("S3Endpoint", Resource::new(Kind::VpcEndpoint, endpoint));
}

/// The one tag that people look for.
fn name(stack: &ClusterStack, what: &str) -> Value {
    tags([("Name", format!("{}-{what}", stack.owner.cluster_stack()).as_str())])
}
