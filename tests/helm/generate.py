"""The chart's README.md (between its marks) and values.schema.json, from values.yaml, its comments and schema.py.

Written with `tests/helm/run --write`; otherwise only compared.
"""

import copy
import json
import pathlib
import re

import yaml

import schema

HERE = pathlib.Path(__file__).parent
CHART = HERE.parent.parent / "helm" / "alipayplus-cancel"
BEGIN, END = "<!-- values: made by tests/helm/run --write -->\n", "<!-- end of values -->\n"


class Value:
    """A documented value: its way, its comment, its default."""

    def __init__(self, way, comment, default):
        self.way, self.comment, self.default = way, comment, default


def read_values():
    """Every value that has a `# --` line, in order, and what is wrong with the file."""
    lines = (CHART / "values.yaml").read_text().splitlines()
    defaults = yaml.safe_load("\n".join(lines))
    values, wrong, way, comment = [], [], [], None
    leaf_depth = None  # below a documented value nothing needs a comment
    for number, line in enumerate(lines, 1):
        depth = (len(line) - len(line.lstrip())) // 2
        stripped = line.strip()
        if stripped.startswith("# -- "):
            comment = stripped.removeprefix("# -- ")
            continue
        key = re.match(r"^([A-Za-z][\w.-]*):(.*)$", stripped)
        if not key or stripped.startswith("#"):
            comment = None if not stripped.startswith("#") else comment
            continue
        if leaf_depth is not None and depth > leaf_depth:
            continue
        leaf_depth = None
        way = way[:depth] + [key[1]]
        if comment:
            default = defaults
            for name in way:
                default = default[name]
            values.append(Value(list(way), comment, default))
            leaf_depth, comment = depth, None
        elif key[2].strip():
            wrong.append(f"values.yaml:{number}: {'.'.join(way)} has no `# --` line that says what it is")
    return values, wrong


def at(root, way):
    for name in way:
        root = root.get("properties", {}).get(name) if root else None
    return root


def documented(values):
    """The schema with the comments as descriptions, and what does not fit together."""
    made, wrong = copy.deepcopy(schema.VALUES), []
    for value in values:
        found = at(made, value.way)
        if found is None:
            wrong.append(f"schema.py has no {'.'.join(value.way)}, and values.yaml has")
            continue
        found["description"] = value.comment
        if not isinstance(value.default, (dict, list)) or not value.default:
            found["default"] = value.default
    known = {tuple(value.way) for value in values}
    parents = {way[:n] for way in known for n in range(len(way))}

    def walk(node, way):
        for name, child in node.get("properties", {}).items():
            here = (*way, name)
            if here == ("global",) or any(here[:n] in known for n in range(1, len(here) + 1)):
                continue
            if here not in parents and here[:1] != ("settings",):
                wrong.append(f"values.yaml has no {'.'.join(here)}, and schema.py has")
            walk(child, here)

    walk(made, ())
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Values of the chart alipayplus-cancel"}
    return head | made | {"$defs": schema.DEFS}, wrong


def cell(text):
    return text.replace("|", "\\|")


def readme(values):
    lines = []
    group = None
    for value in values:
        top = value.way[0]
        if top != group:
            single = [v for v in values if v.way[0] == top] == [value]
            if not (single and group == ""):
                lines += ["", "| value | default | is |", "|---|---|---|"] if lines else ["| value | default | is |", "|---|---|---|"]
            group = "" if single else top
        default = json.dumps(value.default, ensure_ascii=False)
        lines.append(f"| `{'.'.join(value.way)}` | `{cell(default)}` | {cell(value.comment)} |")
    return "\n".join(lines) + "\n"


def everything():
    """Each generated file with what it should hold, and what is wrong with the sources."""
    values, wrong = read_values()
    made, more = documented(values)
    schema_file, readme_file = CHART / "values.schema.json", CHART / "README.md"
    text = readme_file.read_text()
    if BEGIN not in text or END not in text:
        return {}, [*wrong, *more, f"README.md lacks its marks {BEGIN.strip()} and {END.strip()}"]
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    return {
        schema_file: json.dumps(made, indent=2, ensure_ascii=False) + "\n",
        readme_file: before + BEGIN + readme(values) + END + after,
    }, [*wrong, *more]


def stale():
    """What is wrong with sources and files."""
    files, wrong = everything()
    for file, text in files.items():
        if not file.exists() or file.read_text() != text:
            wrong.append(f"{file.name} is stale: run `tests/helm/run --write`")
    return wrong


def write():
    files, _ = everything()
    for file, text in files.items():
        file.write_text(text)


# the settings that the chart sets itself; every other one of the service must have its place under `settings`
CHART_SETS = {
    "grpc.listen", "bridge.listen", "admin.listen", "bridge.core", "store.url", "store.password_file", "store.migrate_at_start",
    # a port of its own, which the chart's Services do not have
    "console.listen", "console.tls.cert_file", "console.tls.key_file", "console.tls.client_ca_file", "console.tls.allowed_sans",
}


def settings_missing():
    """How `settings` and the service's commented example differ."""
    example, section = set(), ""
    for line in (HERE.parent.parent / "alipayplus-cancel.example.toml").read_text().splitlines():
        if header := re.match(r"^(?:# )?\[+([a-z0-9_.]+(?:\.\"\d+\")?)\]+", line):
            section = re.sub(r'"\d+"', "*", header[1])
        elif key := re.match(r"^(?:# )?([a-z][a-z0-9_]*) = ", line):
            example.add(f"{section}.{key[1]}")

    def leaves(node, way):
        node = resolved(node)
        if "items" in node and "properties" in node["items"]:
            node = node["items"]
        if "properties" not in node and isinstance(node.get("additionalProperties"), dict):
            yield from leaves(node["additionalProperties"], f"{way}.*")
        elif "properties" in node and not is_reference(node):
            for name, child in node["properties"].items():
                yield from leaves(child, f"{way}.{name}".lstrip("."))
        else:
            yield way

    def resolved(node):
        name = node.get("$ref", "").removeprefix("#/$defs/")
        return schema.DEFS[name] if name else node

    def is_reference(node):
        return "secret" in node["properties"]

    of_chart = set(leaves(schema.SETTINGS, ""))
    # an acquirer's window has the keys of the window; the example shows some of them
    example |= {way.replace("cancel_window.", "cancel_windows.*.") for way in example if ".cancel_window." in way}
    return ([f"schema.py lacks settings.{way}" for way in sorted(example - of_chart - CHART_SETS)] +
            [f"settings.{way} is none of the service's" for way in sorted(of_chart - example)])
