#!/usr/bin/env python3
"""ministack with our overlay, for a test that is no Python: it verifies signatures and evaluates policies. Prints as a line of JSON where
it is, the keys of users, and a role; ends when its input does. "manager" has the rights that the chart ships, "nobody" has none, and
"root" may do all; the role has the manager's rights, and asks for an external id.
"""
import json
import sys

sys.dont_write_bytecode = True

import peers


def nobody(address):
    iam = peers.client("iam", address)
    iam.create_user(UserName="nobody")
    key = iam.create_access_key(UserName="nobody")["AccessKey"]
    return key["AccessKeyId"], key["SecretAccessKey"]


def role(address):
    """A role with the policies that the manager's user has."""
    iam = peers.client("iam", address)
    trust = {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"AWS": f"arn:aws:iam::{peers.ACCOUNT}:root"},
             "Condition": {"StringEquals": {"sts:ExternalId": "of-a-guest"}}}
    made = iam.create_role(RoleName="giantnetes", AssumeRolePolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [trust]}))
    for policy in iam.list_attached_user_policies(UserName="manager")["AttachedPolicies"]:
        iam.attach_role_policy(RoleName="giantnetes", PolicyArn=policy["PolicyArn"])
    return made["Role"]["Arn"]


def main():
    with peers.serving(AUTH="true") as address:
        told = {"address": address, "region": peers.REGION, "account": peers.ACCOUNT, "manager": peers.manager(address),
                "nobody": nobody(address), "root": peers.ROOT_KEY, "role": role(address)}
        print(json.dumps(told), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    peers.enter()
    main()
