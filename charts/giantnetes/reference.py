#!/usr/bin/env python3
"""Brings what values.yaml says of each value into values.schema.json and README.md, and the list of images into the latter.

    reference.py            write both
    reference.py --check    fail if they differ, or if schema and values have not the same values
"""
import json, pathlib, re, sys

CHART = pathlib.Path(__file__).resolve().parent
VALUES, IMAGES = "values", "images"
LINE = re.compile(r"( *)([A-Za-z0-9_.-]+):(?: (.*))?$")


class Value:
    """A value with what was said right above it."""

    def __init__(self, indent, name, default, comment):
        self.indent, self.name, self.default, self.comment, self.parts = indent, name, default, comment, []

    def is_section(self):
        return any(part.comment for part in self.parts)

    def flow(self):
        """Its default on one line."""
        if not self.parts:
            return self.default
        return "{" + ", ".join(f"{part.name}: {part.flow()}" for part in self.parts) + "}"


def read(text):
    """The tree of values. Only what our own file uses of YAML: maps in blocks, everything else on one line."""
    root, comment = Value(-1, "", None, ""), []
    path = [root]
    for line in text.splitlines():
        if not line.strip():
            comment = []
        elif line.lstrip().startswith("#"):
            comment.append(line.strip().removeprefix("#").strip())
        else:
            found = LINE.fullmatch(line)
            if not found:
                sys.exit(f"reference: values.yaml: not understood: {line}")
            value = Value(len(found[1]), found[2], found[3], " ".join(comment))
            comment = []
            while path[-1].indent >= value.indent:
                path.pop()
            path[-1].parts.append(value)
            path.append(value)
    return root


def at(value, path):
    for name in path.split("."):
        value = next(part for part in value.parts if part.name == name)
    return value


def images(values):
    """The image of each value that names one, by default: hosts pull no others."""
    controller = (at(values, f"image.{part}").flow().strip('"') for part in ("repository", "tag"))
    yield f"- `{':'.join(controller)}` (`image`)"
    etcd = (at(values, f"flannel.etcd.image.{part}").flow().strip('"') for part in ("repository", "tag"))
    yield f"- `{':'.join(etcd)}` (`flannel.etcd.image`, if `flannel.enabled`)"
    for version in at(values, "settings.kubernetes.images").parts:
        yield f"- `{version.flow()}` (`settings.kubernetes.images`, {version.name})"


def put(text, name, content):
    """The text with this between its two marks."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    before, rest = text.split(begin)
    return before + begin + content + end + rest.split(end)[1]


def rows(value, path=""):
    for part in value.parts:
        name = f"{path}.{part.name}".lstrip(".")
        if part.is_section():
            yield f"| **`{name}`** | | {part.comment} |"
            yield from rows(part, name)
        else:
            yield f"| `{name}` | `{part.flow()}` | {part.comment} |"


def describe(value, schema, path, problems):
    """Writes what is said of each part into its schema."""
    known = schema.get("properties", {})
    problems += [f"{path}{name} is in the schema alone" for name in known.keys() - {part.name for part in value.parts}]
    for part in value.parts:
        name = f"{path}{part.name}"
        if not part.comment:
            problems.append(f"{name} has no comment in values.yaml")
        if part.name not in known:
            problems.append(f"{name} is not in the schema")
            continue
        known[part.name]["description"] = part.comment
        if part.is_section():
            describe(part, known[part.name], f"{name}.", problems)


def untyped(schema, path, problems):
    """Everything has a type and a description, and no object takes what it does not know unless all its values are alike."""
    if "type" not in schema and "enum" not in schema:
        problems.append(f"{path} has no type")
    further = schema.get("additionalProperties")
    if "properties" in schema and further is not False:
        problems.append(f"{path} takes unknown properties")
    for name, part in schema.get("properties", {}).items():
        if not part.get("description"):
            problems.append(f"{path}.{name} has no description")
        untyped(part, f"{path}.{name}", problems)
    for part in (further, schema.get("items")):
        if isinstance(part, dict):
            untyped(part, f"{path}[]", problems)


def main():
    values = read((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    problems = []
    describe(values, schema, "", problems)
    untyped(schema, "values", problems)
    table = "\n".join(["| Value | Default | What it is |", "|---|---|---|", *rows(values)]) + "\n"
    readme = put((CHART / "README.md").read_text(), VALUES, table)
    readme = put(readme, IMAGES, "\n".join(images(values)) + "\n")
    wanted = {"values.schema.json": json.dumps(schema, indent=2) + "\n", "README.md": readme}
    for name, text in wanted.items():
        if "--check" not in sys.argv:
            (CHART / name).write_text(text)
        elif (CHART / name).read_text() != text:
            problems.append(f"{name} is stale: `make docs` writes it")
    for problem in problems:
        print(f"reference: {problem}", file=sys.stderr)
    sys.exit(bool(problems))


main()
