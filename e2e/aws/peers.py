"""Stand-ins for AWS from PyPI, in $GIANTNETES_CACHE/aws, and clients that talk to them."""
import contextlib
import hashlib
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CACHE = pathlib.Path(os.environ.get("GIANTNETES_CACHE", pathlib.Path.home() / ".cache/giantnetes"))
REQUIREMENTS = HERE / "requirements.txt"
POLICIES = ROOT / "charts/giantnetes/files/aws"
REGION = "eu-central-1"
# Of the account that ministack makes up: for it, twelve digits are the key of an account's root.
ACCOUNT = "111122223333"
ROOT_KEY = (ACCOUNT, "test")
START_SECONDS = 60


def enter():
    """Runs the script anew by the Python that has the peers; they are installed, if they are not there. What is there is complete:
    the mark comes last."""
    key = hashlib.sha256(REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = CACHE / "aws" / key
    if pathlib.Path(sys.prefix) == folder:
        return
    mark = folder / "complete"
    if not mark.exists():
        print("aws: installing peers", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([folder / "bin/pip", "install", "--quiet", "--requirement", REQUIREMENTS], check=True)
        mark.touch()
    os.execv(folder / "bin/python", [folder / "bin/python", *sys.argv])


@contextlib.contextmanager
def serving(**settings):
    """ministack with our overlay on a port of its own; its address. What it says is shown if something fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(
            [sys.executable, HERE / "overlay.py"], stdout=log, stderr=log,
            env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", "BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port),
                 "MINISTACK_REGION": REGION, **settings},
        )
        try:
            wait(lambda: answers(address, server), "ministack to answer", START_SECONDS)
            yield address
        except BaseException:
            log.seek(0)
            print("\n".join(log.read().splitlines()[-30:]))
            raise
        finally:
            server.kill()
            server.wait()


def answers(address, server):
    assert server.poll() is None, "ministack ended"
    with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/_ministack/health", timeout=5) as answer:
        return answer.status == 200


def wait(condition, what, seconds=30):
    """What a condition comes to, as soon as that is something."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.05)
    return found


def client(service, address, identity=ROOT_KEY):
    import botocore.config
    import botocore.session
    key, secret = identity
    # One attempt: what a peer cannot do shows at once.
    config = botocore.config.Config(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=30)
    return botocore.session.get_session().create_client(
        service, region_name=REGION, endpoint_url=address, aws_access_key_id=key, aws_secret_access_key=secret, config=config)


def manager(address):
    """A user that has the rights that the chart ships, and no other; the account has the policy that bounds nodes."""
    iam = client("iam", address)
    iam.create_user(UserName="manager")
    boundary = (POLICIES / "nodes-boundary.json").read_text()
    iam.create_policy(PolicyName="giantnetes-nodes", PolicyDocument=boundary)
    for path in sorted(POLICIES.glob("manager-*.json")):
        text = path.read_text()
        size = len("".join(text.split()))
        assert size <= 6144, f"{path.name} has {size} characters: AWS takes 6144 in a managed policy"
        policy = iam.create_policy(PolicyName=f"giantnetes-{path.stem}", PolicyDocument=text)["Policy"]["Arn"]
        iam.attach_user_policy(UserName="manager", PolicyArn=policy)
    key = iam.create_access_key(UserName="manager")["AccessKey"]
    return key["AccessKeyId"], key["SecretAccessKey"]
