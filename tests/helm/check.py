"""Everything that tests/helm/run checks, once its tools are there. Each check has a sentence that is true when it passes.
"""

import argparse
import concurrent.futures
import pathlib
import re
import subprocess
import sys
import traceback

import kubernetes_validate
import yaml

import generate
import promises
import pss
import settings

KUBERNETES = "1.36"
OLDEST = "1.27"  # as Chart.yaml has it
HERE = pathlib.Path(__file__).parent
CHART = HERE.parent.parent / "helm" / "alipayplus-cancel"
# No schema of these is at hand: they are other projects' kinds.
CUSTOM = {
    ("monitoring.coreos.com/v1", "ServiceMonitor"), ("monitoring.coreos.com/v1", "PrometheusRule"),
    ("gateway.networking.k8s.io/v1", "HTTPRoute"), ("gateway.networking.k8s.io/v1", "GRPCRoute"),
    ("gateway.networking.k8s.io/v1", "TLSRoute"), ("external-secrets.io/v1", "ExternalSecret"),
    ("secrets-store.csi.x-k8s.io/v1", "SecretProviderClass"),
}
CHECKS = []


def check(sentence):
    """A check of this name: a function that returns what is wrong, as a list."""
    def add(function):
        CHECKS.append((sentence, function))
        return function
    return add


class Context:
    """The tools, and what was rendered: by the name of its values file, the objects."""

    def __init__(self, args):
        self.helm_binary, self.binary = args.helm, args.binary
        self.work, self.rendered_dir = pathlib.Path(args.work), pathlib.Path(args.rendered)
        self.values = {file.name.removesuffix("-values.yaml"): file for file in sorted((CHART / "ci").glob("*-values.yaml"))}
        self.rendered = {}
        self.material = settings.Material(self.binary, self.work / "material")
        self.chart, self.pods = CHART, pods

    def helm(self, *args):
        # none takes a second, and one that asks a cluster or hangs must not hold CI
        return subprocess.run([self.helm_binary, *map(str, args)], capture_output=True, text=True, timeout=60)

    def template(self, *args, chart=CHART):
        return self.helm("template", "cancel", chart, "--namespace", "payments", "--kube-version", f"{KUBERNETES}.0", *args)

    def variation(self, name, values, release="cancel"):
        """The objects of a values file of ci/, or of none, with other values over it; they have to render."""
        file = self.work / "variation.yaml"
        file.write_text(yaml.safe_dump(values))
        run = self.helm("template", release, CHART, "--namespace", "payments", "--kube-version", f"{KUBERNETES}.0",
                        *(["--values", self.values[name]] if name else []), "--values", file)
        if run.returncode:
            raise RuntimeError(run.stderr)
        objects = [it for it in yaml.safe_load_all(run.stdout) if it]
        for it in objects:
            if (it["apiVersion"], it["kind"]) not in CUSTOM:
                kubernetes_validate.validate(it, KUBERNETES, strict=True)
        return objects

    def notes(self, name):
        """What an install says; a dry run, since only that prints it."""
        run = self.helm("install", "cancel", CHART, "--namespace", "payments", "--dry-run=client", "--values", self.values[name])
        return run.stdout[run.stdout.find("NOTES:"):] if run.returncode == 0 else run.stderr

    def signs(self, spec):
        """The call of a test's pod, its files in place, but printed instead of sent."""
        folder = self.work / "test-call"
        settings.lay_out_files(spec, folder, self.material)
        args = [arg.replace(f"{settings.CONFIG}/", f"{folder}/config/") for arg in spec["containers"][0]["args"]]
        return subprocess.run([self.binary, *args, "--curl"], capture_output=True, text=True, timeout=60)

    def objects(self):
        for name, objects in self.rendered.items():
            for it in objects:
                yield name, it


def pods(objects):
    """Every pod that the objects make: what makes it, its labels, its spec."""
    for it in objects:
        if it["kind"] == "Pod":
            yield it, it["metadata"].get("labels") or {}, it["spec"]
        elif "template" in (it.get("spec") or {}) and it["kind"] in ("Deployment", "StatefulSet", "Job"):
            template = it["spec"]["template"]
            yield it, template["metadata"].get("labels") or {}, template["spec"]


def called(name, it):
    return f"{name}: {it['kind']} {it['metadata']['name']}"


@check("every values file of ci/ renders")
def renders(c):
    wrong = [f"there are {len(c.values)} of them, and five are promised"] if len(c.values) < 5 else []
    for name, file in c.values.items():
        run = c.template("--values", file)
        if run.returncode:
            wrong.append(f"{name}: {run.stderr}")
            continue
        (c.rendered_dir / f"{name}.yaml").write_text(run.stdout)
        c.rendered[name] = [it for it in yaml.safe_load_all(run.stdout) if it]
    return wrong


@check("helm lint --strict has nothing to say")
def lint(c):
    wrong = []
    for name, file in c.values.items():
        run = c.helm("lint", "--strict", "--quiet", "--namespace", "payments", "--values", file, CHART)
        if run.returncode or "[WARNING]" in run.stdout:
            wrong.append(f"{name}: {run.stdout}{run.stderr}")
    return wrong


@check(f"every object fits the schemas of Kubernetes {OLDEST} and {KUBERNETES}, strictly")
def schemas(c):
    wrong = [] if f'">={OLDEST}.0-0"' in (CHART / "Chart.yaml").read_text() else [f"Chart.yaml has another kubeVersion than {OLDEST}"]
    for name, it in c.objects():
        if (it["apiVersion"], it["kind"]) in CUSTOM:
            continue
        for version in (OLDEST, KUBERNETES):
            try:
                kubernetes_validate.validate(it, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                wrong.append(f"{called(name, it)}, {version}: {'.'.join(map(str, error.path))}: {error.message}")
            except kubernetes_validate.SchemaNotFoundError as error:
                wrong.append(f"{called(name, it)}: {error.message}")
    return wrong


@check("every pod satisfies the restricted Pod Security Standard")
def restricted(c):
    return [f"{called(name, it)}: {wrong}"
            for name, objects in c.rendered.items() for it, _, spec in pods(objects) for wrong in pss.wrong_with(spec)]


@check("a pod that breaks one rule of that Standard is found")
def restricted_finds(c):
    good = next(spec for it, _, spec in pods(c.rendered["default"]) if it["kind"] == "StatefulSet")
    return [f"not found: {text}" for text, bad in pss.violations(good)
            if not any(text in wrong for wrong in pss.wrong_with(bad))]


@check("the binary takes every rendered settings file")
def taken(c):
    wrong = []
    for name, objects in c.rendered.items():
        for it, _, spec in pods(objects):
            if it["kind"] == "Pod":
                continue  # a test's pod has no settings
            folder = c.work / f"{name}-{it['kind']}-{it['metadata']['name']}"
            content, said = settings.check(c.binary, spec, objects, folder, c.material)
            if not content:
                wrong.append(f"{called(name, it)}: {said}")
    return wrong


@check("each wrong mix is refused with a sentence that says what to do, and every such sentence is tried")
def refused(c):
    wrong, said = [], []

    def attempt(case):
        file, nth, case = case
        values = c.work / f"refused-{file.stem}-{nth}.yaml"
        values.write_text(yaml.safe_dump(case["values"]))
        return file, nth, case, c.template("--values", c.values[case["from"]], "--values", values)

    cases = [(file, nth, case) for file in sorted((HERE / "refusals").glob("*.yaml"))
             for nth, case in enumerate(yaml.safe_load(file.read_text()), 1)]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for file, nth, case, run in pool.map(attempt, cases):
            said.append(run.stderr)
            if run.returncode == 0:
                wrong.append(f"{file.name}, case {nth} renders: {case['values']}")
            elif case["says"] not in run.stderr:
                wrong.append(f"{file.name}, case {nth} does not say: {case['says']}\nbut: {run.stderr}")
    # without the keys that nobody can choose for its user, the chart alone is refused, and says which
    run = c.template()
    if run.returncode == 0 or "settings.identity.keys is empty" not in run.stderr:
        wrong.append(f"the chart without values: {run.stderr}")
    sentences = re.findall(r'"text" (?:\(printf )?"((?:[^"\\]|\\.)*)"', (CHART / "templates" / "_validate.tpl").read_text())
    if len(sentences) < 40:
        wrong.append(f"{len(sentences)} sentences were found in _validate.tpl: is that all?")
    for sentence in sentences:
        pattern = re.sub(r"%[sdqv]", ".*", re.escape(sentence.replace('\\"', '"')).replace("%%", "%"))
        if not any(re.search(pattern, text) for text in said):
            wrong.append(f"no case of refusals/ is refused with: {sentence}")
    return wrong


@check("README.md and values.schema.json are what values.yaml and schema.py make of them")
def generated(_):
    return generate.stale()


@check("every setting of the service has its place under `settings`, or is the chart's to set")
def reachable(_):
    return generate.settings_missing()


CHECKS += promises.PROMISES


def main():
    parser = argparse.ArgumentParser()
    for name in ("helm", "binary", "rendered", "work"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    if args.write:
        generate.write()
    context = Context(args)
    failed = 0
    for sentence, function in CHECKS:
        try:
            wrong = function(context)
        except Exception:  # a check that breaks has failed, and the others still run
            wrong = [traceback.format_exc()]
        print("ok     " if not wrong else "FAILED ", sentence)
        for text in wrong:
            print("       ", text.strip().replace("\n", "\n        "))
        failed += bool(wrong)
    objects = sum(len(objects) for objects in context.rendered.values())
    print(f"{objects} objects of {len(context.rendered)} values files; {len(CHECKS) - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
