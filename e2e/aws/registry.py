"""What ministack does not know of AWS: which property of a resource replaces it (it says of every change that it might, and replaces
nothing), by AWS's own registry of resource types, which cfn-lint carries; tags of instances and volumes, when a policy asks for them; which
network a load balancer is in; and that a stack
has no tags before its first change set is executed.
"""
import json
import pathlib

import cfnlint
from ministack.core.responses import get_account_id, get_region
from ministack.services import alb, cloudformation, ec2, tagging

SCHEMAS = pathlib.Path(cfnlint.__file__).parent / "data/schemas"


def schemas():
    files = json.loads((SCHEMAS / "providers/us-east-1.json").read_text())
    return {kind: SCHEMAS / f"resources/{name}.json" for kind, name in files.items()}


def teach(provisioners):
    """Adds what is not known yet of the types that ministack makes."""
    known = schemas()
    for kind in provisioners._RESOURCE_HANDLERS.keys() & known.keys() - provisioners._REPLACING_PROPERTIES.keys():
        schema = json.loads(known[kind].read_text())
        for word, table in (("createOnlyProperties", provisioners._REPLACING_PROPERTIES),
                            ("conditionalCreateOnlyProperties", provisioners._CONDITIONALLY_REPLACING_PROPERTIES)):
            # Properties of properties are not told apart.
            table[kind] = tuple(path.split("/")[2] for path in schema.get(word, []))
    tagging._RESOURCE_TAG_COLLECTORS["ec2"] = instances
    tagging._RESOURCE_TAG_COLLECTORS["elasticloadbalancing"] = lambda: alb._tags.items()
    tell = alb._lb_xml
    alb._lb_xml = lambda it: tell(it | {"VpcId": next((ec2._subnets[subnet]["VpcId"] for subnet in it["Subnets"]), "")})
    propose = cloudformation._ACTION_HANDLERS["CreateChangeSet"]
    cloudformation._ACTION_HANDLERS["CreateChangeSet"] = lambda params: untagged(propose(params))


def instances():
    for identity, tags in ec2._tags.items():
        kind = {"i": "instance", "vol": "volume"}.get(identity.split("-")[0])
        if kind:
            yield f"arn:aws:ec2:{get_region()}:{get_account_id()}:{kind}/{identity}", tags


def untagged(answer):
    for stack in cloudformation._stacks.values():
        if stack["StackStatus"] == "REVIEW_IN_PROGRESS":
            stack["Tags"] = []
    return answer
