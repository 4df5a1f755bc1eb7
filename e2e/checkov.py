#!/usr/bin/env python3
"""Has checkov judge the chart with everything switched on. What it finds must be in charts/giantnetes/findings.txt, with the
reason why it stays, and nothing may be there that it does not find.

checkov comes from PyPI into $GIANTNETES_CACHE/checkov, in the version below.
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile

VERSION = "3.3.30"
ROOT = pathlib.Path(__file__).resolve().parent.parent
CACHE = pathlib.Path(os.environ.get("GIANTNETES_CACHE", pathlib.Path.home() / ".cache/giantnetes"))
EVERYTHING = {
    "serviceMonitor": {"enabled": True},
    "prometheusRule": {"enabled": True},
    "dashboards": {"enabled": True},
    "networkPolicy": {"ports": [443, 6443]},
    "quotas": {"team-a": {"clusters": 3}},
    "flannel": {"enabled": True, "etcd": {"replicas": 3}},
}


def checkov():
    """Its program; installed, if it is not there. What is there is complete: the mark comes last."""
    folder = CACHE / "checkov" / VERSION
    mark = folder / "complete"
    if not mark.exists():
        print(f"checkov: installing {VERSION}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([folder / "bin/pip", "install", "--quiet", f"checkov=={VERSION}"], check=True)
        mark.touch()
    return folder / "bin/checkov"


def rendered(folder):
    helm = subprocess.check_output([ROOT / "e2e/tools/build.sh", "--dir", "helm"], text=True).strip() + "/helm"
    homes = {home: str(folder) for home in ("HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME")}
    words = ["template", "giantnetes", ROOT / "charts/giantnetes", "--namespace", "giantnetes-system",
             "--kube-version", "1.36.3", "--values", "-"]
    return subprocess.run(
        [helm, *words], input=json.dumps(EVERYTHING), stdout=subprocess.PIPE, text=True, check=True,
        env={**os.environ, **homes},
    ).stdout


def findings():
    """`CHECK RESOURCE` of each finding, and what the check is about."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = pathlib.Path(folder) / "chart.yaml"
        manifest.write_text(rendered(folder))
        words = ["--file", manifest, "--framework", "kubernetes", "--output", "json", "--quiet", "--soft-fail"]
        # What it would look up about its checks is not needed, and not reached everywhere.
        said = subprocess.run([checkov(), *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    report = json.loads(said.stdout)
    assert report["summary"]["passed"] > 200, report["summary"]
    found = {}
    for check in report["results"]["failed_checks"]:
        kind, _, name = check["resource"].split(".")[:3]
        found[f"{check['check_id']} {kind}/{name}"] = check["check_name"]
    return found


def justified():
    lines = (ROOT / "charts/giantnetes/findings.txt").read_text().splitlines()
    lines = [line.split(None, 2) for line in lines if line.strip() and not line.startswith("#")]
    assert all(len(line) == 3 for line in lines), "findings.txt: a line without a reason"
    return {f"{check} {resource}" for check, resource, _ in lines}


def main():
    found, known = findings(), justified()
    for finding in sorted(found.keys() - known):
        print(f"{finding}   <- not in charts/giantnetes/findings.txt: {found[finding]}")
    for finding in sorted(known - found.keys()):
        print(f"{finding}   <- in charts/giantnetes/findings.txt, but checkov does not find it")
    print(f"checkov: {len(found)} findings, {len(found.keys() - known)} of them without a reason, {len(known - found.keys())} needless reasons")
    return 1 if found.keys() != known else 0


if __name__ == "__main__":
    sys.exit(main())
