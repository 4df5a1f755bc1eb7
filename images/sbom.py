#!/usr/bin/env python3
"""sbom.py OUT   Writes what the images that were built are made of into OUT/controller.cdx.json and OUT/vm.cdx.json (CycloneDX).

Debian's packages are those that the images themselves say they have, Go modules what the binaries in them say, and crates
what Cargo builds the binary from. Nothing is guessed from names of files.
"""
import json
import pathlib
import re
import subprocess
import sys
import tarfile

HERE = pathlib.Path(__file__).resolve().parent
TOOLS = HERE.parent / "e2e/tools/build.sh"
# What must be among the components: a source of ours that falls silent would pass for a smaller image.
NEEDED = {
    "controller": ["pkg:cargo/giantnetes@", "pkg:cargo/kube@", "pkg:deb/debian/libc6@", "pkg:deb/debian/ca-certificates@"],
    "vm": [
        "pkg:cargo/giantnetes@", "pkg:deb/debian/qemu-system-x86@", "pkg:deb/debian/containerd@",
        "pkg:golang/k8s.io/kubernetes@", "pkg:golang/go.etcd.io/etcd/server/v3@", "pkg:golang/github.com/coredns/coredns@",
        "pkg:golang/github.com/traefik/traefik/v3@",
        "pkg:golang/github.com/flannel-io/flannel@", "pkg:deb/debian/iptables@",
    ],
}
# Products whose binaries lie in the VM image: on the node disk, those of the add-ons' images too, and beside it.
IN_THE_VM_IMAGE = ["kubernetes", "etcd", "cni", "calico", "coredns", "traefik", "flannel"]


def output(*command):
    return subprocess.check_output([str(word) for word in command], text=True, cwd=HERE.parent).strip()


def component(kind, name, version, purl):
    return {"type": kind, "bom-ref": purl, "name": name, "version": version, "purl": purl}


def crate(name, version):
    return component("library", name, version, f"pkg:cargo/{name}@{version}")


def package(name, version, suite):
    # An epoch's colon and a tilde or plus sign are not what an address has as they are.
    quoted = version.replace("%", "%25").replace("+", "%2B").replace(":", "%3A")
    return component("library", name, version, f"pkg:deb/debian/{name}@{quoted}?arch=amd64&distro={suite}")


def module(path, version):
    return component("library", path, version, f"pkg:golang/{path}@{version}")


def crates():
    """What the binary is linked of, by Cargo: name and version on each line."""
    lines = output("cargo", "tree", "--package", "giantnetes", "--edges", "normal", "--prefix", "none", "--format", "{p}")
    found = set(re.findall(r"^(\S+) v(\S+)", lines, re.MULTILINE))
    return [crate(name, version) for name, version in sorted(found)]


def modules(binary):
    """What a Go binary says that it was built of."""
    found, last = [], None
    for line in output("go", "version", "-m", binary).splitlines():
        words = line.split()
        if words and words[0] in ("mod", "dep") and len(words) >= 3:
            last = words[1:3]
            found.append(last)
        elif words and words[0] == "=>" and last:
            # Another module took its place.
            last[:] = words[1:3]
    return {(path, version) for path, version in found}


def packages_of_archive(path, suite):
    """Debian's packages of an image, by its dpkg's own record; later layers win."""
    status = ""
    with tarfile.open(path) as archive:
        for layer in json.load(archive.extractfile("manifest.json"))[0]["Layers"]:
            with tarfile.open(fileobj=archive.extractfile(layer)) as files:
                for file in files:
                    if file.isreg() and file.name.strip("./") == "var/lib/dpkg/status":
                        status = files.extractfile(file).read().decode()
    found = []
    for paragraph in status.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if re.match(r"[A-Z][\w-]*: ", line))
        if fields.get("Status", "").endswith(" installed"):
            found.append(package(fields["Package"], fields["Version"], suite))
    return found


def packages_of_disk():
    lines = (pathlib.Path(path_of("node")) / "packages.txt").read_text().splitlines()
    return [package(name.split(":")[0], version, "bookworm") for name, version in (line.split("\t") for line in lines)]


def path_of(image):
    return output(HERE / "build.sh", "--path", image)


def document(image, components):
    reference = output(HERE / "build.sh", "--ref", image)
    name, version = reference.rsplit(":", 1)
    unique = {one["bom-ref"]: one for one in components}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": component("container", name, version, f"pkg:oci/{name.split('/')[-1]}?tag={version}")},
        "components": [unique[key] for key in sorted(unique)],
    }


def main():
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    ours = crates()
    go = set()
    for product in IN_THE_VM_IMAGE:
        for binary in pathlib.Path(output(TOOLS, "--dir", product)).iterdir():
            if binary.is_file():
                go |= modules(binary)
    images = {
        "controller": ours + packages_of_archive(path_of("controller"), "bookworm"),
        "vm": ours + packages_of_archive(path_of("vm"), "trixie") + packages_of_disk() + [module(*one) for one in sorted(go)],
    }
    for image, components in images.items():
        lacks = [start for start in NEEDED[image] if not any(one["purl"].startswith(start) for one in components)]
        if lacks:
            sys.exit(f"sbom: nothing of image {image} begins with {', '.join(lacks)}")
        file = out / f"{image}.cdx.json"
        made = document(image, components)
        file.write_text(json.dumps(made, indent=1) + "\n")
        print(f"{file}: {len(made['components'])} components")


main()
