#!/usr/bin/env python3
"""Makes the tables of docs/benchmarks.md of the raw data beside this script.

    tables.py                write them
    tables.py --check        fail if the page differs from its data
    tables.py --take FILE    add what `make bench` wrote into FILE, with machine, date and commit, and write them

NAME.csv is a table of single figures: all values that are known of each, in their unit. `a..b` are the ends of more values that
nobody kept. bench.jsonl is what `make bench` measured, one run of one benchmark a line; of each the table shows the runs of the
commit that was measured last: the median and, of several, the least and the most.
"""
import csv, datetime, json, os, pathlib, re, statistics, subprocess, sys

HERE = pathlib.Path(__file__).resolve().parent
PAGE = HERE.parent / "benchmarks.md"
MARK = re.compile(r"(<!-- table: ([a-z]+) -->\n)(.*?)(<!-- end -->\n)", re.S)
# More values than these are told by median and ends.
FEW = 8


def number(text):
    value = float(text)
    return int(value) if value == int(value) else value


def ends(values):
    """Values of a cell, and whether they are all that there were."""
    found, whole = [], True
    for word in values.split():
        low, _, high = word.partition("..")
        whole &= not high
        found += [number(part) for part in (low, high) if part]
    return found, whole


def measured(row):
    values, whole = ends(row["values"])
    if not values:
        return row["remark"]
    unit = f" {row['unit']}" if row["unit"] else ""
    if not whole:
        told = f"{min(values)}–{max(values)}{unit}"
    elif len(values) > FEW:
        told = f"median {number(statistics.median(values))}{unit}, {min(values)}–{max(values)} ({len(values)} values)"
    else:
        told = ", ".join(map(str, values)) + unit
        if len(values) > 2:
            told += f"; median {number(statistics.median(values))}{unit}"
    return f"{told}; {row['remark']}" if row["remark"] else told


def budget(row):
    """The budget, and whether the median misses it, where both are the same thing in the same unit."""
    told = row["budget"]
    values, _ = ends(row["values"])
    plain = re.fullmatch(r"([\d.]+) ?(.*)", told)
    if plain and values and plain[2] == row["unit"] and statistics.median(values) > float(plain[1]):
        return f"{told}: **missed**"
    return told


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    shown = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join(line.replace("|  |", "| |").replace("| --- |", "|---|").replace("--- |", "---|").replace("| ---", "|---") for line in shown) + "\n"


def of_csv(name):
    with open(HERE / f"{name}.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return table(["What", "Measured", "Budget"], [[row["what"], measured(row), budget(row)] for row in rows])


def runs():
    with open(HERE / "bench.jsonl") as stream:
        return [json.loads(line) for line in stream if line.strip()]


def newest(found):
    """Of runs in the order in which they were taken, those of the commit of the last."""
    return [run for run in found if run["commit"] == found[-1]["commit"] and run["written"] == found[-1]["written"]]


def spread(values, form):
    """Median and ends; nothing where it was not measured."""
    values = sorted(value for value in values if value is not None)
    if not values:
        return ""
    middle = form.format(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({form.format(values[0])}–{form.format(values[-1])})"


def of_core():
    """What many Clusters cost: a column for each number of them."""
    found = [run for run in runs() if run["bench"] == "core"]
    cases = {count: newest([run for run in found if run["clusters"] == count]) for count in (10, 100, 1000)}

    def row(what, fields, aim="", missed=lambda count, value: False):
        cells = []
        for count, taken in cases.items():
            parts = [spread([run.get(field) for run in taken], form) for field, form in fields]
            middle = [run[fields[0][0]] for run in taken if run.get(fields[0][0]) is not None]
            bad = middle and missed(count, statistics.median(middle))
            cells.append("; ".join(part for part in parts if part) + (": **missed**" if bad else ""))
        return [what, *cells, aim]

    rows = [
        row("Until all converged; raw creator", [("converged_s", "{:.1f} s"), ("raw_s", "{:.1f} s")]),
        row("Share of the raw creator's speed", [("speed_percent", "{:.0f} %")], "60 %", lambda _, share: share < 60),
        row("Writes for each; raw creator", [("writes", "{:.1f}"), ("raw_writes", "{:.1f}")]),
        row("Reads for each", [("reads", "{:.1f}")]),
        row("CPU for each", [("cpu_ms", "{:.0f} ms")]),
        row("CPU of etcd and API server for each; raw creator", [("servers_ms", "{:.0f} ms"), ("raw_servers_ms", "{:.0f} ms")]),
        row("Resident; of it the process' own", [("resident_mb", "{:.1f} MB"), ("own_mb", "{:.1f} MB")],
            "25 MB + 40 kB each", lambda count, resident: resident > 25 + 0.04 * count),
        row("While nothing happens, share of a core; writes in 30 s", [("steady_percent", "{:.2f} %"), ("steady_writes", "{:.0f}")],
            "0.2 %; 0", lambda count, share: count == 1000 and share > 0.2),
        row("CPU of one change", [("change_cpu_ms", "{:.1f} ms")], "flat"),
        row("From start to caught up", [("caught_up_ms", "{:.0f} ms")]),
    ]
    return table(["Clusters", *map(str, cases), "Aim"], rows) + "\n" + origin(cases[1000])


def origin(taken):
    """Where runs come from, in a sentence."""
    last, count = taken[-1], len(taken)
    many = "One run" if count == 1 else f"{count} runs"
    if last["commit"] is None:
        return f"{many}, {last['machine']['remark']}; commit and day were not kept, they were written down by {last['written']}.\n"
    machine = last["machine"]
    commit, _, changes = last["commit"].partition("+")
    commit = commit[:7] + (" with changes" if changes else "")
    return (f"{many} of commit {commit} on {last['date']}: {machine['cpus']} CPUs ({machine['model']}), "
            f"{machine['memory_gib']} GiB, load of {machine['load']} when it began.\n")


def of_others():
    """What is measured beside it: one row for each figure."""
    rows = []
    for bench, fields in {
        "change": [("CPU of one change among 1000 Clusters, of that among 10; aim 1.5", "times", "{:.2f} times")],
        "vault": [
            ("Certificates by Vault, eight at once", "certificates_per_s", "{:.0f} a second"),
            ("the same by `vault write`, a process each", "theirs_per_s", "{:.0f} a second"),
            ("CPU of the manager for each; aim 2 ms", "cpu_ms", "{:.2f} ms"),
        ],
        "throughput": [
            ("One TCP stream between two hosts: pods of the management cluster", "pods_mib_s", "{:.0f} MiB/s"),
            ("emulated virtual machines there", "machines_mib_s", "{:.1f} MiB/s"),
            ("pods in these", "inner_mib_s", "{:.1f} MiB/s"),
        ],
    }.items():
        found = [run for run in runs() if run["bench"] == bench]
        if found:
            taken = newest(found)
            where = taken[-1]["commit"][:7] if taken[-1]["commit"] else f"written down by {taken[-1]['written']}"
            rows += [[what, spread([run.get(field) for run in taken], form), str(len(taken)), where] for what, field, form in fields]
    return table(["What", "Median (least–most)", "Runs", "Commit"], rows)


def content(name):
    return {"bench": of_core, "others": of_others}[name]() if name in ("bench", "others") else of_csv(name)


def made(text):
    return MARK.sub(lambda found: found[1] + content(found[2]) + found[4], text)


def machine():
    """The machine that this runs on, as far as it changes what is measured."""
    with open("/proc/cpuinfo") as stream:
        model = next((line.split(":", 1)[1].strip() for line in stream if line.startswith("model name")), "unknown")
    with open("/proc/meminfo") as stream:
        memory = int(stream.readline().split()[1]) / 2**20
    return {"cpus": os.cpu_count(), "model": model, "memory_gib": round(memory), "kernel": os.uname().release}


def take(path):
    """Adds runs with where they come from."""
    git = ["git", "-C", str(HERE)]
    commit = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()
    changed = subprocess.check_output([*git, "status", "--porcelain", "--", "../../src", "../../e2e", "../../Cargo.lock"], text=True)
    if changed.strip():
        commit += "+changes"
    today = datetime.date.today().isoformat()
    with open(path) as stream, open(HERE / "bench.jsonl", "a") as out:
        for line in stream:
            run = json.loads(line)
            about = {**machine(), "load": run.pop("load", None)}
            out.write(json.dumps({"date": today, "commit": commit, "written": today, "machine": about, **run}) + "\n")


def main(args):
    if args[:1] == ["--take"]:
        take(args[1])
    text = PAGE.read_text()
    now = made(text)
    if args == ["--check"]:
        if now != text:
            sys.exit("docs/benchmarks.md differs from docs/benchmarks: `make docs` writes it")
        named = [found[2] for found in MARK.finditer(text)]
        lacking = {path.stem for path in HERE.glob("*.csv")} | {"bench", "others"}
        if sorted(named) != sorted(lacking):
            sys.exit(f"docs/benchmarks.md shows {sorted(named)}, and there is data for {sorted(lacking)}")
    else:
        PAGE.write_text(now)


main(sys.argv[1:])
