#!/usr/bin/env python3
"""ministack with what its CloudFormation lacks of a guest: types of EC2, and Auto Scaling groups that run instances. Every handler asks
ministack's own EC2, so all other calls see what comes of it. It reaches into what ministack never promised to keep, so the version is
pinned, and templates.py tries every handler.
"""
import importlib.metadata
import re

import registry
from ministack import app
from ministack.services import autoscaling, ec2
from ministack.services.cloudformation import provisioners

VERSION = "1.5.33"
# Type: what makes it, EC2's word for it, parameters (CloudFormation's name: EC2's), attributes (Ref first), what deletes it by what.
MADE_BY_ONE_ACTION = {
    "AWS::EC2::EIP": ("AllocateAddress", "elastic-ip", {"Domain": "Domain"},
                      {"PublicIp": "publicIp", "AllocationId": "allocationId"}, "ReleaseAddress", "AllocationId"),
    "AWS::EC2::NatGateway": ("CreateNatGateway", "natgateway", {"SubnetId": "SubnetId", "AllocationId": "AllocationId"},
                             {"NatGatewayId": "natGatewayId"}, "DeleteNatGateway", "NatGatewayId"),
    "AWS::EC2::NetworkInterface": (
        "CreateNetworkInterface", "network-interface", {"SubnetId": "SubnetId", "Description": "Description", "GroupSet": "SecurityGroupId"},
        {"Id": "networkInterfaceId", "PrimaryPrivateIpAddress": "privateIpAddress"}, "DeleteNetworkInterface", "NetworkInterfaceId"),
    "AWS::EC2::Volume": (
        "CreateVolume", "volume", {it: it for it in ("AvailabilityZone", "Size", "VolumeType", "Encrypted", "KmsKeyId")},
        {"VolumeId": "volumeId"}, "DeleteVolume", "VolumeId"),
}


def ask(action, **parameters):
    """An action of ministack's EC2, by the query protocol, as clients speak it."""
    def flat(key, value):
        if isinstance(value, (list, dict)):
            items = enumerate(value, 1) if isinstance(value, list) else value.items()
            return {name: text for part, item in items for name, text in flat(f"{key}.{part}" if key else part, item).items()}
        return {} if value is None else {key: [str(value).lower() if isinstance(value, bool) else str(value)]}

    status, _, body = ec2._ACTION_MAP[action](flat("", parameters))[:3]
    body = body.decode()
    if status >= 400:
        raise ValueError(f"{action}: {said(body, 'Code')}: {said(body, 'Message')}")
    return body


def said(body, name):
    return (re.search(f"<{name}>(.*?)</{name}>", body) or [None, None])[1]


def handlers(make, kind, parameters, attributes, delete, name_of_id):
    def create(_logical_id, properties, _stack):
        tags = [{"ResourceType": kind, "Tag": properties["Tags"]}] if properties.get("Tags") else None
        body = ask(make, TagSpecification=tags, **{theirs: properties.get(name) for name, theirs in parameters.items()})
        made = {name: said(body, theirs) for name, theirs in attributes.items()}
        return next(iter(made.values())), made

    def remove(it, _properties):
        if kind == "elastic-ip":
            it = next(key for key, address in ec2._addresses.items() if address["PublicIp"] == it)
        ask(delete, **{name_of_id: it})
    return {"create": create, "delete": remove}


def resize(volume, old, new, _stack):
    fixed = [key for key in ("AvailabilityZone", "Encrypted", "KmsKeyId") if old.get(key) != new.get(key)]
    assert not fixed, f"Updates to {fixed} are not supported"
    ask("ModifyVolume", VolumeId=volume, Size=new["Size"])
    return volume, {"VolumeId": volume}


def rule(properties):
    permission = {key: properties.get(key) for key in ("IpProtocol", "FromPort", "ToPort")}
    group = properties.get("SourceSecurityGroupId")
    permission |= {"Groups": [{"GroupId": group}]} if group else {"IpRanges": [{"CidrIp": properties["CidrIp"]}]}
    return {"GroupId": properties["GroupId"], "IpPermissions": [permission]}


def run_instances(made, properties):
    """As many as a group wants, made by its launch template. An update touches none that runs."""
    group, running = autoscaling._asgs[made[0]], autoscaling._asgs[made[0]]["Instances"]
    wanted = properties.get("LaunchTemplate") or properties["MixedInstancesPolicy"]["LaunchTemplate"]["LaunchTemplateSpecification"]
    group.update(TargetGroupARNs=properties.get("TargetGroupARNs", []), LaunchTemplate=provisioners._asg_launch_template(wanted))
    versions = ec2._launch_templates[wanted["LaunchTemplateId"]]["Versions"]
    data = next(it for it in versions if it["VersionNumber"] == int(wanted["Version"]))["LaunchTemplateData"]
    tags = [{"Key": it["Key"], "Value": it["Value"]} for it in group["Tags"] if it["PropagateAtLaunch"]]
    machine = {key: data.get(key) for key in ("ImageId", "InstanceType", "UserData", "IamInstanceProfile", "MetadataOptions")}
    for subnet in group["VPCZoneIdentifier"].split(",")[len(running):group["DesiredCapacity"]]:
        body = ask("RunInstances", **machine, MinCount=1, MaxCount=1, SubnetId=subnet,
                   TagSpecification=[{"ResourceType": "instance", "Tag": tags}])
        running.append({"InstanceId": said(body, "instanceId"), "LifecycleState": "InService", "HealthStatus": "Healthy",
                        "AvailabilityZone": ec2._subnets[subnet]["AvailabilityZone"], "ProtectedFromScaleIn": False,
                        "LaunchTemplate": group["LaunchTemplate"], "LaunchConfigurationName": ""})
    return made


def remove_group(name, properties):
    for instance in autoscaling._asgs[name]["Instances"]:
        ask("TerminateInstances", InstanceId=[instance["InstanceId"]])
    provisioners._asg_delete(name, properties)


def main():
    assert importlib.metadata.version("ministack") == VERSION, f"this fits ministack {VERSION} alone"
    known, added = provisioners._RESOURCE_HANDLERS, {kind: handlers(*how) for kind, how in MADE_BY_ONE_ACTION.items()}
    added["AWS::EC2::Volume"] |= {"update": resize, "snapshot": lambda it, _: ask("CreateSnapshot", VolumeId=it)}
    added["AWS::EC2::SecurityGroupIngress"] = {
        "create": lambda name, it, _: (ask("AuthorizeSecurityGroupIngress", **rule(it)) and f"{it['GroupId']}|{name}", {}),
        "delete": lambda _, it: ask("RevokeSecurityGroupIngress", **rule(it)),
    }
    assert not added.keys() & known.keys(), f"ministack knows {added.keys() & known.keys()} itself now"
    known.update(added)
    known["AWS::AutoScaling::AutoScalingGroup"] |= {
        "create": lambda *given: run_instances(provisioners._asg_create(*given), given[1]), "delete": remove_group,
        "update": lambda *given: run_instances(provisioners._asg_update(*given), given[2])}
    provisioners._STACK_TAG_PROPERTY.update(dict.fromkeys(MADE_BY_ONE_ACTION, ("Tags", "list")))
    registry.teach(provisioners)
    app.main()


main()
