#!/usr/bin/env python3
"""What surrounds one instance, in a network namespace of the test's: ministack, where stacks are made and whose STS says who signed a
request; the metadata service at its own address, which hands out the user data that lies in ministack's launch template; and the load
balancer of the API. The first argument is a file for every secret that is handed out, the second says where packets go: a list of
[address, port, where to].

It reads questions, a line of JSON each, and answers likewise; it ends when its input does."""
import base64
import datetime
import http.server
import ipaddress
import json
import pathlib
import secrets
import socket
import socketserver
import sys
import threading

import peers

METADATA = ("169.254.169.254", 80)
TOKEN_HEADER = "X-aws-ec2-metadata-token"
TTL_HEADER = "X-aws-ec2-metadata-token-ttl-seconds"


class Account:
    """The account, as ministack has it."""

    def __init__(self, address, handed_out):
        self.address, self.handed_out = address, handed_out
        self.cloudformation, self.ec2, self.iam, self.sts = (
            peers.client(name, address) for name in ("cloudformation", "ec2", "iam", "sts"))
        self.autoscaling = peers.client("autoscaling", address)

    def make(self, name, template, tags):
        """Makes a stack, as the controller manager does: by a change set. Its outputs."""
        self.cloudformation.create_change_set(
            StackName=name, ChangeSetName="first", ChangeSetType="CREATE", TemplateBody=template,
            Capabilities=["CAPABILITY_IAM"], Tags=[{"Key": key, "Value": value} for key, value in tags.items()])
        describe = lambda: self.cloudformation.describe_change_set(StackName=name, ChangeSetName="first")
        peers.wait(lambda: describe()["Status"] == "CREATE_COMPLETE", "a change set")
        self.cloudformation.execute_change_set(StackName=name, ChangeSetName="first")

        def made():
            stack = self.cloudformation.describe_stacks(StackName=name)["Stacks"][0]
            assert not stack["StackStatus"].endswith("FAILED") and "ROLLBACK" not in stack["StackStatus"], stack
            return stack if stack["StackStatus"] == "CREATE_COMPLETE" else None
        return {it["OutputKey"]: it["OutputValue"] for it in peers.wait(made, f"stack {name}", 60)["Outputs"]}

    def instance(self, tag, value):
        """The one instance that has this tag, as the Auto Scaling group made it."""
        found = [it for reservation in self.ec2.describe_instances()["Reservations"] for it in reservation["Instances"]
                 if {"Key": tag, "Value": value} in it.get("Tags", []) and it["State"]["Name"] == "running"]
        assert len(found) == 1, found
        return Instance(self, found[0])


class Instance:
    def __init__(self, account, made):
        self.account, self.id, self.address = account, made["InstanceId"], made["PrivateIpAddress"]
        self.zone, self.tokens, self.tags = made["Placement"]["AvailabilityZone"], set(), made["Tags"]
        subnet = account.ec2.describe_subnets(SubnetIds=[made["SubnetId"]])["Subnets"][0]
        self.subnet = subnet["CidrBlock"]
        # ministack makes addresses up that are not in the subnet. The first four of a subnet are AWS's own.
        net = ipaddress.ip_network(self.subnet)
        if ipaddress.ip_address(self.address) not in net:
            self.address = str(net[4])
        self.mac = "0a:" + ":".join(f"{int(part):02x}" for part in self.address.split(".")) + ":01"
        group = next(it for it in account.autoscaling.describe_auto_scaling_groups()["AutoScalingGroups"]
                     if any(one["InstanceId"] == self.id for one in it["Instances"]))
        wanted = group["LaunchTemplate"]
        version = account.ec2.describe_launch_template_versions(
            LaunchTemplateId=wanted["LaunchTemplateId"], Versions=[str(wanted["Version"])])["LaunchTemplateVersions"][0]
        data = version["LaunchTemplateData"]
        self.user_data = base64.b64decode(data["UserData"])
        profile = data["IamInstanceProfile"]["Arn"].rsplit("/", 1)[1]
        role = account.iam.get_instance_profile(InstanceProfileName=profile)["InstanceProfile"]["Roles"][0]
        self.role, self.arn = role["RoleName"], role["Arn"]
        # EC2 gives an instance its role's keys; here it is the account that asks for them.
        trust = {"Version": "2012-10-17", "Statement": [{
            "Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"AWS": f"arn:aws:iam::{peers.ACCOUNT}:root"}}]}
        account.iam.update_assume_role_policy(RoleName=self.role, PolicyDocument=json.dumps(trust))

    def hand_out(self, *texts):
        with self.account.handed_out.open("a") as file:
            file.writelines(f"{text}\n" for text in texts)

    def keys(self):
        made = self.account.sts.assume_role(RoleArn=self.arn, RoleSessionName=self.id, DurationSeconds=3600)["Credentials"]
        self.hand_out(made["SecretAccessKey"], made["SessionToken"])
        ends = made["Expiration"].astimezone(datetime.timezone.utc)
        return {"Code": "Success", "Type": "AWS-HMAC", "AccessKeyId": made["AccessKeyId"], "SecretAccessKey": made["SecretAccessKey"],
                "Token": made["SessionToken"], "Expiration": ends.strftime("%Y-%m-%dT%H:%M:%SZ")}

    def document(self):
        return json.dumps({"instanceId": self.id, "privateIp": self.address, "availabilityZone": self.zone, "region": peers.REGION,
                           "accountId": peers.ACCOUNT, "instanceType": "m7i.large", "architecture": "x86_64"})

    def lasting(self):
        """What its node has that outlives it: Ethernet addresses of interfaces, addresses, and ids of volumes, in pairs."""
        tags = {it["Key"]: it["Value"] for it in self.tags}
        if "giantnetes.io/node" not in tags:
            return []
        wanted = [{"Name": f"tag:{key}", "Values": [tags[key]]} for key in ("giantnetes.io/cluster-uid", "giantnetes.io/node")]
        interfaces = self.account.ec2.describe_network_interfaces(Filters=wanted)["NetworkInterfaces"]
        volumes = [it for it in self.account.ec2.describe_volumes(Filters=wanted)["Volumes"] if it["Size"] == 8]
        return [(one["MacAddress"], one["PrivateIpAddress"], other["VolumeId"]) for one, other in zip(interfaces, volumes, strict=True)]

    def attached(self):
        """Interfaces that it attached to itself, as its metadata shows them."""
        found = self.account.ec2.describe_network_interfaces()["NetworkInterfaces"]
        return {it["MacAddress"]: {"device-number": "1", "interface-id": it["NetworkInterfaceId"], "mac": it["MacAddress"],
                                   "local-ipv4s": it["PrivateIpAddress"], "subnet-ipv4-cidr-block": self.subnet}
                for it in found if it.get("Attachment", {}).get("InstanceId") == self.id}

    def tree(self):
        """Everything below an API's version. What a folder lists is there: cloud-init reads it all."""
        host = "ip-" + self.address.replace(".", "-") + f".{peers.REGION}.compute.internal"
        first = {"device-number": "0", "interface-id": "eni-0", "local-hostname": host, "local-ipv4s": self.address, "mac": self.mac,
                     "subnet-ipv4-cidr-block": self.subnet}
        return {
            "dynamic": {"instance-identity": {"document": self.document}},
            "user-data": self.user_data,
            "meta-data": {
                "ami-id": "ami-0123456789abcdef0", "ami-launch-index": "0", "hostname": host, "instance-id": self.id,
                "instance-type": "m7i.large", "local-hostname": host, "local-ipv4": self.address, "mac": self.mac,
                "iam": {"security-credentials": {self.role: lambda: json.dumps(self.keys())}},
                "network": {"interfaces": {"macs": {self.mac: first, **self.attached()}}},
                "placement": {"availability-zone": self.zone, "region": peers.REGION},
                "services": {"domain": "amazonaws.com", "partition": "aws"},
            },
        }

    def answer(self, path):
        _version, *parts = [part for part in path.split("/") if part]
        found = self.tree()
        for part in parts:
            found = found.get(part) if isinstance(found, dict) else None
            if found is None:
                return None
        if isinstance(found, dict):
            found = "\n".join(name + ("/" if isinstance(it, dict) else "") for name, it in found.items())
        found = found() if callable(found) else found
        return found if isinstance(found, bytes) else found.encode()


def serve_metadata(instance):
    """Version 2 alone, as the launch template asks for."""
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def say(self, status, body=b"", **headers):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def do_PUT(self):
            seconds = int(self.headers.get(TTL_HEADER, 0))
            if self.path != "/latest/api/token" or not 1 <= seconds <= 21600:
                return self.say(400)
            token = secrets.token_urlsafe(40)
            instance.tokens.add(token)
            instance.hand_out(token)
            self.say(200, token.encode(), **{TTL_HEADER: str(seconds)})

        def do_GET(self):
            if self.headers.get(TOKEN_HEADER) not in instance.tokens:
                return self.say(401)
            body = instance.answer(self.path)
            self.say(404) if body is None else self.say(200, body)

        def log_message(self, *words):
            print("metadata:", words[0] % words[1:], file=sys.stderr, flush=True)

    server = http.server.ThreadingHTTPServer(METADATA, Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()


def forward(address, port, to):
    """A load balancer that knows nothing but TCP."""
    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            def pump(source, sink):
                try:
                    while data := source.recv(1 << 16):
                        sink.sendall(data)
                    sink.shutdown(socket.SHUT_WR)
                except OSError:
                    for one in (source, sink):
                        one.close()
            with socket.create_connection(("127.0.0.1", to)) as other:
                back = threading.Thread(target=pump, args=(other, self.request), daemon=True)
                back.start()
                pump(self.request, other)
                back.join()

    server = socketserver.ThreadingTCPServer((address, port), Handler, bind_and_activate=False)
    server.allow_reuse_address = server.daemon_threads = True
    server.server_bind()
    server.server_activate()
    threading.Thread(target=server.serve_forever, daemon=True).start()


def main():
    handed_out, ways = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
    for address, port, to in ways:
        forward(address, port, to)
    with peers.serving(AUTH="true") as address:
        peers.manager(address)
        account = Account(address, handed_out)
        forward("10.231.0.2", 8080, int(address.rsplit(":", 1)[1]))
        print(json.dumps({"aws": address}), flush=True)
        for line in sys.stdin:
            question = json.loads(line)
            if "stack" in question:
                answer = account.make(question["stack"], question["template"], question["tags"])
            else:
                instance = account.instance(question["tag"], question["value"])
                serve_metadata(instance)
                answer = {"id": instance.id, "address": instance.address, "arn": instance.arn, "mac": instance.mac,
                          "subnet": instance.subnet, "lasting": instance.lasting(), "userData": base64.b64encode(instance.user_data).decode()}
            print(json.dumps(answer), flush=True)


peers.enter()
main()
