#!/usr/bin/env python3
"""Instances as far as a node's agent knows them: ministack as the STS that says who signed a request, and for each role that is
named a metadata service of ours. ministack verifies signatures; keys of a role it gives whoever may assume it, and in EC2's place
that is the account.

Prints one line of JSON when all is there, serves until standard input ends, and writes every secret that it hands out into a file."""
import datetime
import http.server
import json
import pathlib
import secrets
import sys
import threading

import peers

TOKEN_HEADER = "X-aws-ec2-metadata-token"
TTL_HEADER = "X-aws-ec2-metadata-token-ttl-seconds"
ROLES = "/latest/meta-data/iam/security-credentials/"


class Instance:
    """One instance: its id, its role, and the tokens that its metadata service gave."""

    def __init__(self, sts, number, role, arn, handed_out):
        self.sts, self.role, self.arn, self.handed_out = sts, role, arn, handed_out
        self.id, self.address, self.tokens = f"i-{number:017x}", f"10.1.32.{number}", set()

    def keys(self):
        made = self.sts.assume_role(RoleArn=self.arn, RoleSessionName=self.id, DurationSeconds=900)["Credentials"]
        with self.handed_out.open("a") as file:
            file.write(f"{made['SecretAccessKey']}\n{made['SessionToken']}\n")
        ends = made["Expiration"].astimezone(datetime.timezone.utc)
        return {"Code": "Success", "Type": "AWS-HMAC", "AccessKeyId": made["AccessKeyId"], "SecretAccessKey": made["SecretAccessKey"],
                "Token": made["SessionToken"], "Expiration": ends.strftime("%Y-%m-%dT%H:%M:%SZ")}

    def answer(self, path):
        if path == "/latest/dynamic/instance-identity/document":
            return json.dumps({"instanceId": self.id, "privateIp": self.address, "region": peers.REGION, "accountId": peers.ACCOUNT})
        return {ROLES: lambda: self.role, ROLES + self.role: lambda: json.dumps(self.keys())}.get(path, lambda: None)()


def metadata(instance):
    """Serves an instance's metadata, version 2 alone; its address."""
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def say(self, status, body=""):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def do_PUT(self):
            if self.path != "/latest/api/token" or not 1 <= int(self.headers.get(TTL_HEADER, 0)) <= 21600:
                return self.say(400)
            token = secrets.token_urlsafe(40)
            instance.tokens.add(token)
            with instance.handed_out.open("a") as file:
                file.write(token + "\n")
            self.say(200, token)

        def do_GET(self):
            if self.headers.get(TOKEN_HEADER) not in instance.tokens:
                return self.say(401)
            body = instance.answer(self.path)
            self.say(404) if body is None else self.say(200, body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


def main():
    handed_out, roles = pathlib.Path(sys.argv[1]), sys.argv[2:]
    may_assume = {"Version": "2012-10-17", "Statement": [{
        "Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"AWS": f"arn:aws:iam::{peers.ACCOUNT}:root"}}]}
    with peers.serving(AUTH="true") as address:
        iam, sts = peers.client("iam", address), peers.client("sts", address)
        made = []
        for number, role in enumerate(roles, 1):
            arn = iam.create_role(RoleName=role, AssumeRolePolicyDocument=json.dumps(may_assume))["Role"]["Arn"]
            instance = Instance(sts, number, role, arn, handed_out)
            made.append({"arn": arn, "id": instance.id, "address": instance.address, "metadata": metadata(instance)})
        print(json.dumps({"sts": address, "instances": made}), flush=True)
        sys.stdin.read()


peers.enter()
main()
