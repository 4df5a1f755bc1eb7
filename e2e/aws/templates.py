#!/usr/bin/env python3
"""The golden templates of src/aws, judged by cfn-lint, cloudformation-validate and checkov, and deployed, changed and deleted on ministack:
by change sets alone, as the controller manager would, and with no other rights than those that the chart ships.

    templates.py            all of it
    templates.py WORD…      only what has one of the words in its name
"""
import contextlib
import json
import pathlib
import subprocess
import sys
import tempfile
import traceback

sys.dont_write_bytecode = True

import peers

sys.path.append(str(peers.HERE.parent))
import checkov

SNAPSHOTS = peers.ROOT / "src/aws/template/snapshots"
TEMPLATES_AT_LEAST = 8
CFN_LINT = pathlib.Path(sys.prefix) / "bin/cfn-lint"
# Why a finding stays, of the linters and of checkov.
JUSTIFIED = {
    "W3010": "zones are listed, as a user asks for them: a template serves one guest",
    "W3005": "DependsOn names a resource that properties refer to, too: it says what is waited for",
}
JUSTIFIED_TO_CHECKOV = {
    "CKV_AWS_33": "as AWS's own key for disks: conditions keep it to this account, by way of EC2",
    "CKV_AWS_91": "a network load balancer logs TLS listeners alone, and TLS ends in the guest",
}


def golden():
    """Name: stack, tags and template, by the files that the product's own tests hold it to."""
    found = {}
    for path in sorted(SNAPSHOTS.glob("*__cluster-*.snap")) + sorted(SNAPSHOTS.glob("*__pool-*.snap")):
        _, _, text = path.read_text().split("---\n", 2)
        found[path.stem.split("__")[-1]] = json.loads(text)
    assert len(found) >= TEMPLATES_AT_LEAST, f"only {list(found)} are in {SNAPSHOTS}"
    return found


class Stack:
    """One stack, worked on as the controller manager would."""

    def __init__(self, address, body, identity=peers.ROOT_KEY):
        self.cloudformation = peers.client("cloudformation", address, identity)
        self.name, self.tags = body["Stack"], [{"Key": key, "Value": value} for key, value in body["Tags"].items()]
        self.attempt = 0

    def described(self):
        return self.cloudformation.describe_stacks(StackName=self.name)["Stacks"][0]

    def propose(self, template):
        """A change set: its name and what it says of itself."""
        self.attempt += 1
        name, kind = f"g8s-{self.attempt}", "UPDATE" if self.exists() else "CREATE"
        more = {"OnStackFailure": "DO_NOTHING"} if kind == "CREATE" else {}
        self.cloudformation.create_change_set(
            StackName=self.name, ChangeSetName=name, ChangeSetType=kind, ClientToken=name, Tags=self.tags,
            TemplateBody=json.dumps(template, separators=(",", ":"), sort_keys=True), Capabilities=["CAPABILITY_IAM"], **more)

        def made():
            told = self.cloudformation.describe_change_set(StackName=self.name, ChangeSetName=name)
            return told["Status"] in ("CREATE_COMPLETE", "FAILED") and told
        return name, peers.wait(made, f"change set {name}")

    def exists(self):
        try:
            return self.described()["StackStatus"] != "REVIEW_IN_PROGRESS"
        except self.cloudformation.exceptions.ClientError as error:
            assert "does not exist" in str(error), error
            return False

    def execute(self, name, expected):
        self.cloudformation.execute_change_set(StackName=self.name, ChangeSetName=name, ClientRequestToken=name)
        return self.settled(expected)

    def apply(self, template, expected):
        name, told = self.propose(template)
        assert told["Status"] == "CREATE_COMPLETE", told.get("StatusReason")
        return self.execute(name, expected)

    def settled(self, expected, name=None):
        """What the stack says of itself in the state that is expected; every test brings a stack to a state once."""
        told = {}

        def settled():
            told.update(self.cloudformation.describe_stacks(StackName=name or self.name)["Stacks"][0])
            return told["StackStatus"] == expected
        try:
            peers.wait(settled, f"stack {self.name} to become {expected}")
        except AssertionError as error:
            raise AssertionError(f"{error}: it is {told['StackStatus']}: {self.failures(name)}") from None
        return told

    def failures(self, name=None):
        events = self.cloudformation.describe_stack_events(StackName=name or self.name)["StackEvents"]
        failed = [event for event in events if event["ResourceStatus"].endswith("_FAILED")]
        return [(event["LogicalResourceId"], event.get("ResourceStatusReason")) for event in failed]

    def protect(self, on):
        self.cloudformation.update_termination_protection(StackName=self.name, EnableTerminationProtection=on)

    def delete(self, expected="DELETE_COMPLETE"):
        identity = self.described()["StackId"]
        self.cloudformation.delete_stack(StackName=self.name)
        return self.settled(expected, identity)


def outputs(told):
    return {it["OutputKey"]: it["OutputValue"] for it in told["Outputs"]}


def pool_in(body, of_cluster):
    """A pool's template in the network of a cluster's stack."""
    text = json.dumps(body)
    subnets = of_cluster["PrivateSubnets"].split(",")
    for golden_value, real in (("subnet-0a", subnets[0]), ("subnet-0b", subnets[-1]),
                               ("sg-0123456789abcdef0", of_cluster["WorkerSecurityGroup"])):
        assert golden_value in text, golden_value
        text = text.replace(golden_value, real)
    return json.loads(text)


def instances(ec2):
    found = [it for page in ec2.describe_instances()["Reservations"] for it in page["Instances"]]
    return [it for it in found if it["State"]["Name"] in ("pending", "running")]


def etcds_volumes(ec2, body):
    wanted = [{"Name": f"tag:{key}", "Values": [value]} for key, value in body["Tags"].items()]
    return ec2.describe_volumes(Filters=[*wanted, {"Name": "tag-key", "Values": ["giantnetes.io/node"]}])["Volumes"]


def left(ec2, of_services):
    """What of a guest is still there."""
    found = {
        "addresses": ec2.describe_addresses()["Addresses"],
        "instances": instances(ec2),
        "interfaces": ec2.describe_network_interfaces()["NetworkInterfaces"],
        "launch templates": ec2.describe_launch_templates()["LaunchTemplates"],
        "NAT gateways": [it for it in ec2.describe_nat_gateways()["NatGateways"] if it["State"] != "deleted"],
        "networks": [it for it in ec2.describe_vpcs()["Vpcs"] if not it["IsDefault"]],
        # Root disks of ministack's own making have no tags, and stay when their instances go.
        "volumes": [it for it in ec2.describe_volumes()["Volumes"] if it.get("Tags")],
        "groups": of_services["autoscaling"].describe_auto_scaling_groups()["AutoScalingGroups"],
        "load balancers": of_services["elbv2"].describe_load_balancers()["LoadBalancers"],
        "roles": [it for it in of_services["iam"].list_roles()["Roles"] if it["RoleName"].startswith("g8s-")],
        "zones": of_services["route53"].list_hosted_zones()["HostedZones"],
    }
    return {what: its for what, its in found.items() if its}


def services(address):
    return {name: peers.client(name, address) for name in ("autoscaling", "ec2", "elbv2", "iam", "kms", "route53")}


@contextlib.contextmanager
def on_disk():
    """The templates as files in a folder."""
    with tempfile.TemporaryDirectory() as folder:
        for name, body in golden().items():
            (pathlib.Path(folder) / f"{name}.json").write_text(json.dumps(body["Template"], indent=1))
        yield pathlib.Path(folder)


def test_cfn_lint(_address):
    with on_disk() as folder:
        ignored = [word for check in JUSTIFIED for word in ("--ignore-checks", check)]
        words = [CFN_LINT, "--regions", peers.REGION, *ignored, "--format", "parseable", "--template", *sorted(folder.glob("*.json"))]
        said = subprocess.run(words, text=True, capture_output=True)
        assert said.returncode == 0 and not said.stdout.strip(), said.stdout + said.stderr


def test_checkov(_address):
    with on_disk() as folder:
        words = [checkov.checkov(), "--directory", folder, "--framework", "cloudformation", "--output", "json", "--quiet",
                 "--soft-fail", "--skip-download"]
        said = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    report = json.loads(said.stdout)
    assert report["summary"]["passed"] > 300, report["summary"]
    failed = {it["check_id"]: f"{it['file_path']}: {it['resource']}: {it['check_name']}" for it in report["results"]["failed_checks"]}
    assert failed.keys() == JUSTIFIED_TO_CHECKOV.keys(), failed


def test_cloudformation_validate(_address):
    import cloudformation_validate
    engine, found = cloudformation_validate.CompositeEngine(), []
    for name, body in golden().items():
        report = engine.validate_template(json.dumps(body["Template"]).encode())
        # What is wrong in an enumeration it takes for a warning.
        for it in report.diagnostics:
            if it.severity.name in ("FATAL", "ERROR", "WARN") and it.rule_id not in JUSTIFIED:
                found.append(f"{name}: {it.rule_id} {it.entity}: {it.message}")
    assert not found, "\n".join(found)


def test_the_judges_find_what_is_wrong(_address):
    """Or their silence about our templates would say nothing."""
    import cloudformation_validate
    template = golden()["pool-on-demand"]["Template"]
    template["Resources"]["Group"]["Properties"]["MinSise"] = "1"
    template["Resources"]["Group"]["Properties"]["VPCZoneIdentifier"] = {"Ref": "Nowhere"}
    report = cloudformation_validate.CompositeEngine().validate_template(json.dumps(template).encode())
    said = " ".join(it.message for it in report.diagnostics)
    assert "MinSise" in said and "Nowhere" in said, said
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(json.dumps(template))
        file.flush()
        words = [CFN_LINT, "--regions", peers.REGION, "--template", file.name]
        said = subprocess.run(words, text=True, capture_output=True)
    assert said.returncode and "MinSise" in said.stdout and "Nowhere" in said.stdout, said.stdout


def test_templates_live_and_go(address):
    """Every shape of a guest comes, is found again as it was made, and goes; a pool with it."""
    of_services = services(address)
    ec2, bodies = of_services["ec2"], golden()
    for name, body in bodies.items():
        if not name.startswith("cluster-"):
            continue
        cluster = Stack(address, body)
        assert not left(ec2, of_services), (name, left(ec2, of_services))
        made = cluster.apply(body["Template"], "CREATE_COMPLETE")
        told, resources = outputs(made), body["Template"]["Resources"]
        count = lambda kind: sum(it["Type"] == kind for it in resources.values())
        assert told["SpecHash"] == body["Template"]["Outputs"]["SpecHash"]["Value"]
        assert {"Key": "giantnetes.io/cluster-uid", "Value": body["Tags"]["giantnetes.io/cluster-uid"]} in made["Tags"]
        # Those of etcd: ministack gives instances root disks of its own making. Their owner is told by the stack's tags.
        volumes = etcds_volumes(ec2, body)
        assert len(volumes) == count("AWS::EC2::Volume") > 0
        assert all(it["Encrypted"] and it["VolumeType"] == "gp3" for it in volumes), volumes
        gateways = ec2.describe_nat_gateways()["NatGateways"]
        assert len([it for it in gateways if it["State"] != "deleted"]) == count("AWS::EC2::NatGateway") > 0
        assert len(instances(ec2)) == count("AWS::AutoScaling::AutoScalingGroup")
        for machine in instances(ec2):
            tags = {it["Key"]: it["Value"] for it in machine["Tags"]}
            assert tags["giantnetes.io/cluster-uid"] == body["Tags"]["giantnetes.io/cluster-uid"], tags
        balancers = of_services["elbv2"].describe_load_balancers()["LoadBalancers"]
        assert len(balancers) == count("AWS::ElasticLoadBalancingV2::LoadBalancer")
        assert all(it["Type"] == "network" and it["SecurityGroups"] for it in balancers), balancers
        for pool_name in [it for it in bodies if it.startswith("pool-")]:
            there = pool_in(bodies[pool_name], told)
            pool = Stack(address, there)
            pool.apply(there["Template"], "CREATE_COMPLETE")
            assert len(instances(ec2)) == count("AWS::AutoScaling::AutoScalingGroup") + 1, pool_name
            pool.delete()
        cluster.delete()
        remains = left(ec2, of_services)
        assert not remains, (name, remains)
        # The last data of etcd, and the key to them.
        assert len(ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]) >= count("AWS::EC2::Volume")
        key = of_services["kms"].describe_key(KeyId=told["KeyArn"])["KeyMetadata"]
        assert key["KeyState"] == "Enabled", key
        print(f"    {name}: {len(resources)} resources, {len(json.dumps(body['Template'], separators=(',', ':')))} bytes")


def changes(told):
    found = [it["ResourceChange"] for it in told["Changes"]]
    return {it["LogicalResourceId"]: (it["Action"], it.get("Replacement")) for it in found}


def test_a_change_set_says_what_an_update_would_lose(address):
    body = golden()["cluster-1-zone-1-master"]
    cluster, ec2 = Stack(address, body), peers.client("ec2", address)
    cluster.apply(body["Template"], "CREATE_COMPLETE")

    def proposed(change):
        template = json.loads(json.dumps(body["Template"]))
        change(template["Resources"])
        return cluster.propose(template)

    _, nothing = proposed(lambda _: None)
    assert nothing["Status"] == "FAILED" and nothing["StatusReason"].startswith("The submitted information didn't contain changes."), nothing

    _, renamed = proposed(lambda it: it["Domain"]["Properties"].update(Name="other.giantnetes.internal"))
    assert changes(renamed)["Domain"] == ("Modify", "True"), changes(renamed)
    _, wider = proposed(lambda it: it["Vpc"]["Properties"].update(CidrBlock="10.0.0.0/16"))
    assert changes(wider)["Vpc"] == ("Modify", "True"), changes(wider)
    # What follows from it is lost, too, or might be.
    assert changes(wider)["PrivateSubnetA"][1] in ("True", "Conditional"), changes(wider)
    _, gone = proposed(lambda it: it.pop("Master0Volume") and it["Master0Group"]["DependsOn"].remove("Master0Volume"))
    assert changes(gone)["Master0Volume"][0] == "Remove", changes(gone)

    # A bigger disk and other user data lose nothing: the volume grows, and the next machine is made otherwise.
    before = [it["InstanceId"] for it in instances(ec2)]

    def harmless(it):
        it["Master0Volume"]["Properties"]["Size"] = 16
        it["Master0LaunchTemplate"]["Properties"]["LaunchTemplateData"]["UserData"] = "I2Nsb3VkLWNvbmZpZwo="
    name, told = proposed(harmless)
    assert changes(told)["Master0Volume"] == ("Modify", "False"), changes(told)
    stateful = ("AWS::EC2::Volume", "AWS::EC2::VPC", "AWS::EC2::Subnet", "AWS::KMS::Key", "AWS::Route53::HostedZone")
    lost = [it for it in told["Changes"] if it["ResourceChange"]["ResourceType"] in stateful and it["ResourceChange"]["Replacement"] != "False"]
    assert not lost, lost
    cluster.execute(name, "UPDATE_COMPLETE")
    assert [it["Size"] for it in etcds_volumes(ec2, body)] == [16]
    assert [it["InstanceId"] for it in instances(ec2)] == before, "an update replaced a machine"
    assert max(it["LatestVersionNumber"] for it in ec2.describe_launch_templates()["LaunchTemplates"]) == 2
    cluster.delete()


def test_a_change_that_aws_refuses_is_undone(address):
    """A volume cannot move, nor get another key. CloudFormation says so when it tries, so no change set warns of it."""
    body = golden()["cluster-1-zone-1-master"]
    cluster, ec2 = Stack(address, body), peers.client("ec2", address)
    cluster.apply(body["Template"], "CREATE_COMPLETE")
    volume = etcds_volumes(ec2, body)
    template = json.loads(json.dumps(body["Template"]))
    template["Resources"]["Master0Volume"]["Properties"]["AvailabilityZone"] = "eu-central-1b"
    template["Outputs"]["SpecHash"]["Value"] = "another"
    undone = cluster.apply(template, "UPDATE_ROLLBACK_COMPLETE")
    assert outputs(undone)["SpecHash"] == body["Template"]["Outputs"]["SpecHash"]["Value"], "it does not say what it is"
    name, reason = cluster.failures()[-1]
    assert name == "Master0Volume" and "AvailabilityZone" in reason, cluster.failures()
    assert etcds_volumes(ec2, body) == volume
    # The stack's latest operation is told by its token.
    events = cluster.cloudformation.describe_stack_events(StackName=cluster.name)["StackEvents"]
    latest = next(it for it in events if it["PhysicalResourceId"] == it["StackId"])
    assert latest["ClientRequestToken"] == f"g8s-{cluster.attempt}", latest
    cluster.delete()


def test_a_stack_resists_and_what_stands_in_its_way_is_told(address):
    body = golden()["cluster-1-zone-1-master"]
    cluster, ec2 = Stack(address, body), peers.client("ec2", address)
    told = outputs(cluster.apply(body["Template"], "CREATE_COMPLETE"))
    cluster.protect(True)
    try:
        cluster.delete()
        raise AssertionError("a protected stack was deleted")
    except cluster.cloudformation.exceptions.ClientError as error:
        assert "TerminationProtection is enabled" in str(error), error
    cluster.protect(False)
    # As a load balancer of a Service would leave it.
    stray = ec2.create_security_group(GroupName="k8s-elb-1", Description="of a Service", VpcId=told["VpcId"])["GroupId"]
    cluster.delete("DELETE_FAILED")
    assert any(name == "Vpc" and "DependencyViolation" in reason for name, reason in cluster.failures()), cluster.failures()
    ec2.delete_security_group(GroupId=stray)
    cluster.delete()


def test_a_failed_creation_shows_its_cause_and_goes(address):
    body = golden()["cluster-1-zone-1-master"]
    broken = json.loads(json.dumps(body["Template"]))
    broken["Resources"]["MastersEtcd"]["Properties"]["GroupId"] = "sg-0badbadbadbadbad0"
    cluster = Stack(address, body)
    cluster.apply(broken, "CREATE_FAILED")
    name, reason = cluster.failures()[-1]
    assert name == "MastersEtcd" and "InvalidGroup" in reason, cluster.failures()
    cluster.delete()
    assert not left(peers.client("ec2", address), services(address))


def refused(call, **arguments):
    try:
        call(**arguments)
    except call.__self__.exceptions.ClientError as error:
        assert error.response["Error"]["Code"] in ("AccessDenied", "UnauthorizedOperation", "AccessDeniedException"), error
        return
    raise AssertionError(f"{call.__name__} was allowed")


def test_the_shipped_rights_are_enough_and_no_more(_address):
    """ministack verifies signatures and evaluates policies here. What CloudFormation does it does not ask again: that the rights by way
    of CloudFormation are enough is not shown."""
    with peers.serving(AUTH="true") as address:
        identity = peers.manager(address)
        bodies = golden()
        cluster = Stack(address, bodies["cluster-3-zones-3-masters"], identity)
        told = outputs(cluster.apply(bodies["cluster-3-zones-3-masters"]["Template"], "CREATE_COMPLETE"))
        cluster.protect(True)
        pool = Stack(address, bodies["pool-spot"], identity)
        pool.apply(pool_in(bodies["pool-spot"], told)["Template"], "CREATE_COMPLETE")
        ec2 = peers.client("ec2", address, identity)
        worker = [it for it in instances(ec2) if {"Key": "giantnetes.io/role", "Value": "worker"} in it["Tags"]][0]
        ec2.terminate_instances(InstanceIds=[worker["InstanceId"]])

        # Past CloudFormation nothing is made, and what is not ours is not touched.
        foreign = peers.client("ec2", address).run_instances(ImageId="ami-0", MinCount=1, MaxCount=1)["Instances"][0]["InstanceId"]
        refused(ec2.terminate_instances, InstanceIds=[foreign])
        refused(ec2.create_vpc, CidrBlock="10.9.0.0/16")
        refused(ec2.run_instances, ImageId="ami-0", MinCount=1, MaxCount=1)
        refused(ec2.delete_vpc, VpcId=told["VpcId"])
        iam = peers.client("iam", address, identity)
        trust = json.dumps({"Version": "2012-10-17", "Statement": []})
        refused(iam.create_role, RoleName="g8s-more", AssumeRolePolicyDocument=trust)
        refused(iam.create_user, UserName="more")
        kms = peers.client("kms", address, identity)
        refused(kms.schedule_key_deletion, KeyId=told["KeyArn"])
        foreign_stack = Stack(address, {**bodies["pool-spot"], "Stack": "somebody-elses"}, identity)
        refused(foreign_stack.cloudformation.delete_stack, StackName="somebody-elses")

        pool.delete()
        cluster.protect(False)
        cluster.delete()


def main():
    words = sys.argv[1:]
    tests = [it for name, it in globals().items() if name.startswith("test_") and (not words or any(word in name for word in words))]
    assert tests, f"no test has one of {words} in its name"
    failed = []
    for test in tests:
        print(test.__name__, flush=True)
        try:
            # Each has a stand-in to itself.
            with peers.serving() as address:
                test(address)
        except Exception:
            traceback.print_exc()
            failed.append(test.__name__)
    print(f"aws: {len(tests) - len(failed)} of {len(tests)} tests passed" + "".join(f"\n  FAILED: {name}" for name in failed))
    return 1 if failed else 0


if __name__ == "__main__":
    peers.enter()
    sys.exit(main())
