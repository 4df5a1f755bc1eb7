#!/usr/bin/env python3
"""compare.py ONE OTHER   Lists the files in which two builds of all images differ, a line each.

ONE and OTHER are $GIANTNETES_CACHE of two builds; every image must be in both. Compared are, in each image's archive,
every file's type, mode, owner and content (times and the order of layers' entries are not), and in the node disk the
same. What may differ is in differences.txt, a pattern and its reason on each line; the exit status is 1 if the builds
differ in anything else, or if a pattern of that list matches nothing.
"""
import fnmatch
import hashlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile


HERE = os.path.dirname(os.path.abspath(__file__))


def result(cache, name):
    """The archive of an image, or the folder of the node disk, as build.sh of now would make it."""
    build = [os.path.join(HERE, "build.sh"), "--path", name]
    path = subprocess.check_output(build, env={**os.environ, "GIANTNETES_CACHE": cache}, text=True).strip()
    assert os.path.exists(path), f"{name} is not in {cache}: there is no {path}"
    return path


def digest(stream):
    sha = hashlib.sha256()
    while chunk := stream.read(1 << 20):
        sha.update(chunk)
    return sha.hexdigest()


def of_archive(path):
    """What a docker archive holds: path in the image -> a description of the file; later layers win."""
    found = {}
    with tarfile.open(path) as archive:
        manifest = json.load(archive.extractfile("manifest.json"))
        config = json.load(archive.extractfile(manifest[0]["Config"]))
        found["(config)"] = json.dumps(config["config"], sort_keys=True)
        for layer in manifest[0]["Layers"]:
            with tarfile.open(fileobj=archive.extractfile(layer)) as files:
                for file in files:
                    content = digest(files.extractfile(file)) if file.isreg() else file.linkname
                    found["/" + file.name.strip("/")] = f"{file.type!r} {file.mode:o} {file.uid}:{file.gid} {content}"
    return found


def of_tree(root):
    """The same of a folder."""
    found = {}
    for folder, folders, files in os.walk(root):
        for name in folders + files:
            path = os.path.join(folder, name)
            stat = os.lstat(path)
            if os.path.islink(path):
                content = os.readlink(path)
            elif os.path.isfile(path):
                with open(path, "rb") as stream:
                    content = digest(stream)
            else:
                content = ""
            found["/" + os.path.relpath(path, root)] = f"{stat.st_mode:o} {stat.st_uid}:{stat.st_gid} {content}"
    return found


def of_disk(folder):
    """What the node image holds: the files beside the disk, and those in it."""
    found = {}
    for name in os.listdir(folder):
        if name != "disk.qcow2":
            with open(os.path.join(folder, name), "rb") as stream:
                found["(folder)/" + name] = digest(stream)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        raw, root = os.path.join(work, "disk.raw"), os.path.join(work, "root")
        os.mkdir(root)
        subprocess.run(["qemu-img", "convert", "-O", "raw", os.path.join(folder, "disk.qcow2"), raw], check=True)
        # debugfs says on standard error what it does; -R takes one command.
        subprocess.run(["debugfs", "-R", f"rdump / {root}", raw], check=True, stderr=subprocess.DEVNULL)
        found.update(of_tree(root))
    return found


def contents(cache, name):
    path = result(cache, name)
    return of_disk(path) if name == "node" else of_archive(path)


def differences(one, other, name):
    first, second = contents(one, name), contents(other, name)
    return sorted(f"{name}:{path}" for path in first.keys() | second.keys() if first.get(path) != second.get(path))


def justified():
    with open(os.path.join(HERE, "differences.txt")) as stream:
        lines = [line.split(None, 1) for line in stream if line.strip() and not line.startswith("#")]
    assert all(len(line) == 2 for line in lines), "differences.txt: a line without a reason"
    return [pattern for pattern, _ in lines]


def main():
    one, other = sys.argv[1:]
    # Every folder beside this script is an image's.
    names = sorted(entry.name for entry in os.scandir(HERE) if entry.is_dir() and entry.name[0] not in "._")
    patterns, unused, wrong = justified(), set(justified()), []
    for name in names:
        for line in differences(one, other, name):
            matching = [pattern for pattern in patterns if fnmatch.fnmatchcase(line, pattern)]
            unused.difference_update(matching)
            print(line, "" if matching else "   <- not in differences.txt")
            wrong += [] if matching else [line]
    for pattern in sorted(unused):
        print(f"{pattern}   <- in differences.txt, but the builds do not differ there")
    print(f"compared: {', '.join(names)}; {len(wrong)} unexpected differences, {len(unused)} needless lines")
    return 1 if wrong or unused else 0


sys.exit(main())
