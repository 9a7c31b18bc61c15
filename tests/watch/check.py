"""Whether dashboard, alerts and runbooks hold, asked of a Prometheus that scrapes a service under traffic.

The structure of the dashboard; a unit test, a runbook section and annotations for each alert; every metric and label
that is named is one that the service exports; every query of every panel finds something, and more than zeros where
the traffic made the condition happen. tests/watch/run makes all of that and runs this.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

# Panels whose queries are all zero when the traffic is what tests/watch/run makes of it: what cannot be made here
# without breaking what the others show, or without minutes.
MAY_BE_ZERO = {
    "Store suspect": "needs lost commits: tests/it/sqlite_files.rs",
    "Onboarding": "ended before the traffic; the first requests met it",
    "Queue, how many wait": "nothing waits at the moment of a scrape",
    "Asked of another core": "needs a core that dies within a call: tests/it/dmz.rs",
    "Running since": "seconds since the start may be 0 in the first one",
    "Age of these figures": "a second old or less",
}
PANELS = {"timeseries", "stat", "table", "heatmap"}
UNITS = {"none", "s", "percentunit", "reqps", "ops", "bytes"}
KEYWORDS = {"vector", "time", "on", "by", "and", "or", "unless", "group", "absent"}

wrong = []


def check(holds, what):
    if not holds:
        wrong.append(what)
    return holds


def get(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


class Prometheus:
    """Its HTTP API."""

    def __init__(self, url):
        self.url = url

    def query(self, text):
        url = f"{self.url}/api/v1/query?query={urllib.parse.quote(text)}"
        try:
            return json.loads(get(url))["data"]["result"]
        except urllib.error.HTTPError as error:
            raise SystemExit(f"Prometheus refuses {text}: {error.read().decode()}") from error

    def groups(self):
        return json.loads(get(f"{self.url}/api/v1/rules"))["data"]["groups"]

    def values(self, variable):
        """Of a query variable of the dashboard: label_values(metric, label)."""
        metric, label = re.fullmatch(r"label_values\((.*), (\w+)\)", plain(variable)).groups()
        return {series["metric"].get(label) for series in self.query(metric)} - {None}


def plain(expression):
    """A query as Grafana sends it, with All chosen for every variable."""
    return re.sub(r"\$(namespace|job|instance)\b", ".*", expression).replace("$__rate_interval", "30s")


def numbers(found):
    """The values of a result that are numbers."""
    values = [float(series["value"][1]) for series in found]
    return [value for value in values if value == value]


def panels_of(dashboard):
    """The structure: what Grafana needs, and what we promise of each panel."""
    check(dashboard.get("schemaVersion", 0) >= 41, "schemaVersion is old")
    check(dashboard.get("uid") and dashboard.get("title"), "uid and title must be set")
    check(not dashboard.get("id"), "an id belongs to one Grafana")
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    check(list(variables) == ["datasource", "namespace", "job", "instance"], f"variables: {list(variables)}")
    check(variables["datasource"]["type"] == "datasource", "the data source must be chosen")
    ids, taken, seen = set(), set(), []
    for panel in dashboard["panels"]:
        title = panel.get("title", "?")
        check(panel["id"] not in ids, f"{title}: its id is taken")
        ids.add(panel["id"])
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        check(at["x"] + at["w"] <= 24 and not cells & taken, f"{title}: it lies over another, or beside the grid")
        taken |= cells
        if panel["type"] == "row":
            continue
        seen.append(panel)
        check(panel["type"] in PANELS, f"{title}: type {panel['type']}")
        described = panel.get("description", "")
        check("Healthy:" in described, f"{title}: its description does not say what healthy looks like")
        unit = panel["fieldConfig"]["defaults"].get("unit")
        check(unit in UNITS, f"{title}: unit {unit}")
        check(panel["targets"], f"{title}: it asks nothing")
        refs = [target["refId"] for target in panel["targets"]]
        check(len(set(refs)) == len(refs), f"{title}: a refId twice")
        for part in [panel, *panel["targets"]]:
            check(part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, f"{title}: data source")
        for target in panel["targets"]:
            for selector in re.findall(r"\{([^}]*)\}", target["expr"]):
                of_all = 'namespace=~"$namespace",job=~"$job",instance=~"$instance"'
                check(selector.startswith(of_all), f"{title}: not of the chosen ones: {selector}")
    return seen, variables


def selectors(expression):
    """Each metric that a query names, with its matchers."""
    bare = re.sub(r'"[^"]*"', lambda text: text.group().replace("{", "(").replace("}", ")"), expression)
    found = set(re.findall(r"\b([a-z_]\w*)(\{[^}]*\})?(?=[\[\s),]|$)", re.sub(r"\b(by|on) \([^)]*\)", "", bare)))
    return {(name, matchers) for name, matchers in found if "_" in name and not name.startswith("__") or name == "up"}


def exported(scrapes):
    """The names of the series that the running service has."""
    text = "\n".join(get(url) for url in scrapes)
    return {re.split(r"[{ ]", line)[0] for line in text.splitlines() if line and not line.startswith("#")}


def documented(text):
    """The names of docs/operations.md, which a test of the crate compares with its table."""
    names = set(re.findall(r"^\| `[a-z._]+` \| `(\w+)` \| (?:counter|gauge|histogram) \|", text, re.M))
    return names | {"target_info"}


def check_order(groups, tests):
    """promtool puts a group that is not listed anywhere, so each test lists all of them."""
    names = {group["name"] for group in groups}
    for test in tests:
        listed = re.search(r"^group_eval_order:\n((?:  - \S+\n)+)", test, re.M)
        ordered = set(re.findall(r"  - (\S+)", listed[1])) if listed else set()
        check(ordered == names, f"group_eval_order of a rules test: {sorted(ordered ^ names)} missing or too many")


def check_alerts(rules, tests, runbooks):
    alerts = [rule for rule in rules if rule["type"] == "alerting"]
    check(len(alerts) > 20, f"only {len(alerts)} alerts are loaded")
    for rule in rules:
        check(rule["health"] == "ok", f"{rule['name']}: {rule.get('lastError')}")
    fires = set(re.findall(r"alertname: (\w+)\n\s+exp_alerts:\n", tests))
    silent = set(re.findall(r"alertname: (\w+), exp_alerts: \[\]", tests))
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", runbooks, re.M | re.S))
    for rule in alerts:
        name = rule["name"]
        check(name in fires, f"{name}: no unit test in which it fires")
        check(name in silent, f"{name}: no unit test in which it is silent")
        check(rule["labels"].get("severity") in ("critical", "warning"), f"{name}: severity")
        annotations = rule["annotations"]
        check(annotations.get("summary") and annotations.get("description"), f"{name}: summary, description")
        check(annotations.get("runbook_url") == f"docs/runbooks.md#{name.lower()}", f"{name}: runbook_url")
        section = sections.get(name, "")
        for part in ("**Means**", "**Hurts**", "**Check**", "**Do**", "**Escalate**"):
            check(part in section, f"{name}: docs/runbooks.md has no {part} for it")
    names = {rule["name"] for rule in alerts}
    ours = {name for name in sections if name.startswith("Alipayplus")}
    check(ours <= names, f"docs/runbooks.md: of no alert: {ours - names}")
    return alerts


def check_commands(runbooks, binary, present, sources):
    """What a runbook tells to type exists: commands and their options, metrics and log lines that are grepped for."""
    helps = {}

    def help_of(words):
        key = tuple(words)
        if key not in helps:
            helps[key] = subprocess.run([binary, *words, "--help"], capture_output=True, text=True, check=False)
        return helps[key]

    known = re.findall(r"^  ([a-z-]+)  ", help_of([]).stdout, re.M)
    typed = re.findall(r"(?:alipayplus-cancel |`)((?:%s)\b[^`\n#|;]*)" % "|".join(known), runbooks)
    for line in typed:
        words = re.match(r"[a-z-]+(?: [a-z]+(?:-[a-z]+)*)*", line).group().split()
        check(help_of(words).returncode == 0, f"docs/runbooks.md: there is no command {' '.join(words)}")
        for option in re.findall(r"--[a-z-]+", line):
            check(option in help_of(words).stdout, f"docs/runbooks.md: {' '.join(words)} has no {option}")
    for pattern in re.findall(r"/metrics \| grep (?:-E )?'?([^'\n`]+?)'?(?: |`|;|\n)", runbooks):
        for name in pattern.split("|"):
            series = re.sub(r"\\|[{(].*", "", name)
            check(any(series in one for one in present), f"docs/runbooks.md: no metric is like {name}")
    for pattern in re.findall(r"grep (?:-E )?'([^']+)' log", runbooks):
        for text in re.sub(r'"(?:level|message)":|[()"]', "", pattern).split("|"):
            check(text in sources or text in ("ERROR", "WARN"), f"docs/runbooks.md: no log line says {text}")
    return len(set(typed))


def check_names(queries, rules, present, table, prometheus):
    """Every metric is one that the service exports now, and every matcher finds a series of it."""
    recorded = {rule["name"] for rule in rules if rule["type"] == "recording"}
    named = set()
    for where, expression in queries:
        for name, matchers in selectors(re.sub(r"job:\w+:\w+", "", expression)):
            base = re.sub(r"_(bucket|sum|count)$", "", name)
            if name == "up":
                continue
            named.add(base if base in table else name)
            check(name in present, f"{where}: {name} is not exported by the running service")
            check({name, base} & table, f"{where}: {name} is not in docs/operations.md")
            check(numbers(prometheus.query(name + plain(matchers))), f"{where}: nothing is {name}{matchers}")
        for name in re.findall(r"job:\w+:\w+", expression):
            check(name in recorded, f"{where}: {name} is recorded by no rule")
    return named


def ask(panels, prometheus):
    """Every query of every panel, until each finds something; a row for each."""
    rows, pending = [], [(panel, target) for panel in panels for target in panel["targets"]]
    end = time.monotonic() + 40
    while pending:
        left = []
        for panel, target in pending:
            found = prometheus.query(plain(target["expr"]))
            values = numbers(found)
            enough = values and (any(values) or panel["title"] in MAY_BE_ZERO)
            # a panel with a zero beside others is fine: failed commits beside those that succeeded
            if values and not enough:
                beside = [numbers(prometheus.query(plain(other["expr"]))) for other in panel["targets"]]
                enough = any(any(values) for values in beside)
            if enough:
                rows.append((panel, target, len(found), max(values)))
            else:
                left.append((panel, target))
        pending = left
        if pending and time.monotonic() > end:
            for panel, target in pending:
                found = numbers(prometheus.query(plain(target["expr"])))
                check(False, f"{panel['title']}: {'only zeros' if found else 'nothing'} of {plain(target['expr'])}")
            break
        if pending:
            time.sleep(0.5)
    order = {panel["id"]: place for place, panel in enumerate(panels)}
    return sorted(rows, key=lambda row: (order[row[0]["id"]], row[1]["refId"]))


def main():
    arguments = argparse.ArgumentParser()
    for name in ("prometheus", "dashboard", "runbooks", "metrics", "binary", "sources"):
        arguments.add_argument(f"--{name}", required=True)
    arguments.add_argument("--rules-test", action="append", required=True)
    arguments.add_argument("--scrape", action="append", required=True)
    arguments.add_argument("--table")
    given = arguments.parse_args()
    read = lambda path: open(path, encoding="utf-8").read()

    prometheus = Prometheus(given.prometheus)
    panels, variables = panels_of(json.loads(read(given.dashboard)))
    rows = ask(panels, prometheus)
    for name in ("namespace", "job", "instance"):
        check(prometheus.values(variables[name]["query"]["query"]), f"variable {name} offers nothing")
    groups = prometheus.groups()
    rules = [rule for group in groups for rule in group["rules"]]
    tests = list(map(read, given.rules_test))
    check_order(groups, tests)
    alerts = check_alerts(rules, "\n".join(tests), read(given.runbooks))
    table = documented(read(given.metrics))
    queries = [(panel["title"], target["expr"]) for panel in panels for target in panel["targets"]]
    queries += [(rule["name"], rule["query"]) for rule in rules]
    present = exported(given.scrape)
    named = check_names(queries, rules, present, table, prometheus)
    sources = "".join(path.read_text(encoding="utf-8") for path in pathlib.Path(given.sources).rglob("*.rs"))
    commands = check_commands(read(given.runbooks), given.binary, present, sources)
    firing = sorted({rule["name"] for rule in alerts if rule["state"] != "inactive"})

    lines = ["| panel | query | series | highest |", "|---|---|---|---|"]
    for panel, target, series, highest in rows:
        expression = plain(target["expr"]).replace('namespace=~".*",job=~".*",instance=~".*"', "").replace("{,", "{")
        expression = expression.replace("{}", "").replace("|", "\\|")
        lines.append(f"| {panel['title']} | `{expression}` | {series} | {highest:.6g} |")
    if given.table:
        with open(given.table, "w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
    if wrong:
        sys.exit("\n".join(wrong))
    print(f"{len(panels)} panels, {len(rows)} queries, none empty; {len(named)} of {len(table)} metrics are looked at")
    print(f"not looked at: {', '.join(sorted(table - named))}")
    print(f"{len(alerts)} alerts, each with unit tests and a runbook ({commands} commands); here {len(firing)} were pending or fired: {', '.join(firing)}")


main()
