#!/usr/bin/env python3
"""leftovers.py ADDRESS make ID: makes what the guest of this id would make in its network: a volume of a claim, and a load balancer of a
Service, with the tags of its CSI driver and its cloud controller. Prints as a line of JSON what they are called.
leftovers.py ADDRESS: prints those that are there. leftovers.py ADDRESS change TEXT: describes a role otherwise than its stack did.
"""
import json
import sys

sys.dont_write_bytecode = True

import peers


def make(address, guest):
    ec2, balancers = peers.client("ec2", address), peers.client("elbv2", address)
    owned = {f"kubernetes.io/cluster/{guest}": "owned"}
    tags = [{"Key": key, "Value": value} for key, value in {**owned, "ebs.csi.aws.com/cluster": "true"}.items()]
    ec2.create_volume(AvailabilityZone=f"{peers.REGION}a", Size=1, TagSpecifications=[{"ResourceType": "volume", "Tags": tags}])
    # Of another cluster in the same account.
    other = [{"Key": "kubernetes.io/cluster/other", "Value": "owned"}, {"Key": "ebs.csi.aws.com/cluster", "Value": "true"}]
    ec2.create_volume(AvailabilityZone=f"{peers.REGION}a", Size=2, TagSpecifications=[{"ResourceType": "volume", "Tags": other}])
    ours = [{"Name": "tag:giantnetes.io/cluster", "Values": [guest]}]
    subnets = [it["SubnetId"] for it in ec2.describe_subnets(Filters=ours)["Subnets"]]
    tags = [{"Key": key, "Value": value} for key, value in {**owned, "kubernetes.io/service-name": "a/web"}.items()]
    balancers.create_load_balancer(Name="a-web", Subnets=subnets[:1], Type="network", Tags=tags)


def there(address):
    """But for what stacks made of load balancers."""
    ec2, balancers = peers.client("ec2", address), peers.client("elbv2", address)
    volumes = [it["Size"] for it in ec2.describe_volumes()["Volumes"]]
    roles = [it.get("Description", "") for it in peers.client("iam", address).list_roles()["Roles"] if it["RoleName"].startswith("g8s-")]
    names = [it["LoadBalancerName"] for it in balancers.describe_load_balancers()["LoadBalancers"]]
    return {"volumes": sorted(volumes), "balancers": names, "role": (roles or [None])[0]}


def change(address, what):
    """As somebody does who was called at night, or undoes it."""
    iam = peers.client("iam", address)
    role = next(it for it in iam.list_roles()["Roles"] if it["RoleName"].startswith("g8s-"))
    iam.update_role(RoleName=role["RoleName"], Description=what)


if __name__ == "__main__":
    peers.enter()
    address, *rest = sys.argv[1:]
    if rest[:1] == ["change"]:
        change(address, rest[1])
    elif rest[:1] == ["make"]:
        make(address, rest[1])
    print(json.dumps(there(address)))
