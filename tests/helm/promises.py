"""What the chart promises of its objects, beyond that Kubernetes takes them. Each is a sentence that is true when it passes.

Most look at what the values files of ci/ render; some render a variation of one of them.
"""

import re
import tomllib

import pss

PROMISES = []
SECRET_SOURCES = {
    "the store": {"cancel-database", "database-authorities"}, "hash keys": {"wallet-token-hash"},
    "signing keys": {"wallet-signing"}, "Alipay+'s keys": {"alipayplus-public"},
}
RECOMMENDED = {f"app.kubernetes.io/{name}" for name in ("name", "instance", "component", "version", "part-of", "managed-by")}


def promise(sentence):
    def add(function):
        PROMISES.append((sentence, function))
        return function
    return add


def of_kind(objects, *kinds):
    return [it for it in objects if it["kind"] in kinds]


def named(objects, kind, name):
    return next(it for it in objects if it["kind"] == kind and it["metadata"]["name"] == name)


def workloads(objects):
    """Deployments and StatefulSets, by component."""
    return {it["metadata"]["labels"]["app.kubernetes.io/component"]: it for it in of_kind(objects, "Deployment", "StatefulSet")}


def pod_of(workload):
    return workload["spec"]["template"]


def sources(spec):
    """The projected sources of a pod's settings: kind, and what it says."""
    for volume in spec.get("volumes") or []:
        for source in (volume.get("projected") or {}).get("sources") or []:
            yield from source.items()


def names_in(spec):
    """Everything that a pod takes from Secrets, ConfigMaps and CSI volumes, by name."""
    return {of["name"] for _, of in sources(spec)} | {
        volume["csi"]["volumeAttributes"]["secretProviderClass"] for volume in spec.get("volumes") or [] if "csi" in volume}


def settings_of(objects, spec):
    """The settings that a pod is given, read as TOML."""
    name = next(of["name"] for kind, of in sources(spec) if kind == "configMap" and "items" not in of)
    return tomllib.loads(named(objects, "ConfigMap", name)["data"]["alipayplus-cancel.toml"])


def tiers(c):
    for name, objects in c.rendered.items():
        for component, workload in workloads(objects).items():
            yield f"{name}: {component}", objects, workload, pod_of(workload)["spec"]


def seconds(duration):
    number, unit = re.fullmatch(r"(\d+)(ms|s|m|h|d)", duration).groups()
    return int(number) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}[unit]


def selects(selector, labels):
    return selector.items() <= labels.items()


def wrong_if(*pairs):
    return [text for is_wrong, text in pairs if is_wrong]


@promise("no Secret is rendered, and nothing rendered holds a private key")
def no_secrets(c):
    return [f"{name}: {it['kind']} {it['metadata']['name']}" for name, it in c.objects()
            if it["kind"] == "Secret" or "PRIVATE KEY" in str(it)]


@promise("no pod has a service account's token")
def no_tokens(c):
    wrong = []
    for name, objects in c.rendered.items():
        for it, _, spec in c.pods(objects):
            projected = any("serviceAccountToken" in source for volume in spec.get("volumes") or []
                            for source in (volume.get("projected") or {}).get("sources") or [])
            if spec.get("automountServiceAccountToken") is not False or projected:
                wrong.append(f"{name}: {it['kind']} {it['metadata']['name']}")
        wrong += [f"{name}: {it['metadata']['name']}" for it in of_kind(objects, "ServiceAccount")
                  if it.get("automountServiceAccountToken") is not False]
    return wrong


@promise("the bridge's pod mounts no secret of the database and no hash key, and its settings name no store")
def bridge_has_no_state(c):
    wrong = []
    for name in ("two-tier-mtls", "everything"):
        objects = c.rendered[name]
        spec = pod_of(workloads(objects)["bridge"])["spec"]
        mounted, settings = names_in(spec), settings_of(objects, spec)
        wrong += [f"{name}: {what}: {mounted & of}" for what, of in SECRET_SOURCES.items()
                  if what in ("the store", "hash keys") and mounted & of]
        wrong += [f"{name}: settings have {section}" for section in ("store", "tokens", "grpc", "feed", "policy") if section in settings]
    return wrong


@promise("the core's pod mounts no signing key and none of Alipay+'s keys")
def core_has_no_keys(c):
    wrong = []
    for name in ("two-tier-mtls", "everything"):
        objects = c.rendered[name]
        spec = pod_of(workloads(objects)["core"])["spec"]
        mounted, settings = names_in(spec), settings_of(objects, spec)
        config = named(objects, "ConfigMap", workloads(objects)["core"]["metadata"]["name"])
        wrong += [f"{name}: {what}: {mounted & of}" for what, of in SECRET_SOURCES.items()
                  if what in ("signing keys", "Alipay+'s keys") and mounted & of]
        wrong += [f"{name}: settings have {section}" for section in ("identity", "bridge") if section in settings]
        wrong += [f"{name}: keys of {client['id']}" for client in settings["clients"] if "keys" in client]
        wrong += [f"{name}: {key}" for key in config["data"] if key.endswith(".pem")]
    return wrong


@promise("the migration's pod mounts the database's secrets and the hash keys, and nothing else")
def migration_has_little(c):
    wrong = []
    for name in ("postgres-tls", "two-tier-mtls", "everything"):
        job, = of_kind(c.rendered[name], "Job")
        spec = job["spec"]["template"]["spec"]
        others = names_in(spec) - SECRET_SOURCES["the store"] - SECRET_SOURCES["hash keys"] - {job["metadata"]["name"]}
        wrong += [f"{name}: {others}"] if others else []
        wrong += wrong_if((job["spec"]["template"]["spec"]["containers"][0]["args"][0] != "migrate", f"{name}: does not migrate"))
    return wrong


@promise("of a Secret a pod gets the keys that its settings name, and no others")
def only_named_keys(c):
    wrong = []
    for name, objects, workload, spec in tiers(c):
        text = str(settings_of(objects, spec))
        for kind, of in sources(spec):
            if "items" not in of:
                wrong += wrong_if((kind == "secret" or of["name"] != workload["metadata"]["name"], f"{name}: all of {of['name']}"))
                continue
            wrong += [f"{name}: {item['path']} is in no setting" for item in of["items"] if item["path"] not in text]
    return wrong


@promise("the settings are one volume, so that a reload never sees new settings beside old keys")
def one_volume(c):
    return [name for name, _, _, spec in tiers(c)
            if [v["name"] for v in spec["volumes"] if {"projected", "secret", "configMap"} & set(v)] != ["config"]
            or any("subPath" in mount for mount in spec["containers"][0]["volumeMounts"])]


@promise("every container has a read-only root, and runs our binary with arguments alone")
def only_our_binary(c):
    wrong = []
    for name, objects in c.rendered.items():
        images = set()
        for it, _, spec in c.pods(objects):
            for container in spec["containers"]:
                images.add(container["image"])
                at = f"{name}: {it['kind']} {it['metadata']['name']}"
                wrong += wrong_if(
                    (container["securityContext"].get("readOnlyRootFilesystem") is not True, f"{at}: root can be written"),
                    ("command" in container or "lifecycle" in container, f"{at}: runs something else"),
                    (not container["resources"].get("requests") or "memory" not in container["resources"].get("limits", {}),
                     f"{at}: resources"))
        wrong += wrong_if((len(images) != 1, f"{name}: {images}"))
    return wrong


@promise("the kubelet waits longer than a drain takes, and a drain waits for endpoints")
def drain_fits(c):
    wrong = []
    for name, objects, _, spec in tiers(c):
        shutdown = settings_of(objects, spec)["shutdown"]
        delay, grace = seconds(shutdown["drain_delay"]), seconds(shutdown["grace"])
        wrong += wrong_if(
            (spec["terminationGracePeriodSeconds"] < delay + grace + 5, f"{name}: {spec['terminationGracePeriodSeconds']} s"),
            (delay < 5, f"{name}: drain_delay {delay} s"))
    return wrong


@promise("a pod listens where its ports and probes say")
def ports_fit(c):
    wrong = []
    for name, objects, _, spec in tiers(c):
        settings, container = settings_of(objects, spec), spec["containers"][0]
        declared = {port["name"]: port["containerPort"] for port in container["ports"]}
        sections = {"bridge": "json", "grpc": "grpc", "admin": "admin"}
        listens = {sections[section]: int(of["listen"].rsplit(":", 1)[1]) for section, of in settings.items()
                   if section in sections and "listen" in of}
        paths = {probe: container[f"{probe}Probe"]["httpGet"] for probe in ("startup", "liveness", "readiness")}
        wrong += wrong_if(
            (declared != listens, f"{name}: ports {declared}, listens {listens}"),
            ({of["port"] for of in paths.values()} != {"admin"}, f"{name}: probes {paths}"),
            ([of["path"] for of in paths.values()] != ["/livez", "/livez", "/readyz"], f"{name}: probes {paths}"),
            (container["args"][:3] != ["serve", "--config", "/etc/alipayplus-cancel/alipayplus-cancel.toml"], f"{name}: arguments"))
    return wrong


@promise("an embedded store has one replica with a volume that outlives it, and nothing that makes two")
def sqlite_is_alone(c):
    wrong = []
    for name in ("default", "sqlite"):
        objects = c.rendered[name]
        it, = of_kind(objects, "StatefulSet")
        spec, mounts = it["spec"], pod_of(it)["spec"]["containers"][0]["volumeMounts"]
        wrong += wrong_if(
            (spec["replicas"] != 1, f"{name}: {spec['replicas']} replicas"),
            (set(spec["persistentVolumeClaimRetentionPolicy"].values()) != {"Retain"}, f"{name}: the volume goes"),
            (not any(m["mountPath"] == "/var/lib/alipayplus-cancel" and m["name"] == "state" for m in mounts), f"{name}: no volume"),
            (of_kind(objects, "HorizontalPodAutoscaler", "PodDisruptionBudget", "Deployment"), f"{name}: more than one"))
    return wrong


@promise("a rollout takes no pod away before another is ready, and an autoscaled tier names no number of pods")
def rollouts(c):
    wrong = []
    for name, objects in c.rendered.items():
        scaled = {it["spec"]["scaleTargetRef"]["name"] for it in of_kind(objects, "HorizontalPodAutoscaler")}
        for it in of_kind(objects, "Deployment"):
            own = it["metadata"]["name"]
            wrong += wrong_if(
                (it["spec"]["strategy"]["rollingUpdate"] != {"maxSurge": 1, "maxUnavailable": 0}, f"{name}: {own}"),
                (("replicas" in it["spec"]) == (own in scaled), f"{name}: {own}: replicas beside an autoscaler, or neither"))
    return wrong


@promise("limits.replicas is the least number of pods, so that rates are shared among them")
def rates_are_shared(c):
    wrong = []
    for name, objects, workload, spec in tiers(c):
        scalers = [it["spec"]["minReplicas"] for it in of_kind(objects, "HorizontalPodAutoscaler")
                   if it["spec"]["scaleTargetRef"]["name"] == workload["metadata"]["name"]]
        least = scalers[0] if scalers else workload["spec"]["replicas"]
        found = settings_of(objects, spec)["limits"]["replicas"]
        wrong += wrong_if((found != least, f"{name}: {found}, and there are {least} pods"))
    return wrong


@promise("every pod is under a policy for both directions, and no rule admits everybody")
def policies(c):
    wrong = []
    for name, objects in c.rendered.items():
        held = of_kind(objects, "NetworkPolicy")
        for it, labels, _ in c.pods(objects):
            over = [p for p in held if selects(p["spec"]["podSelector"]["matchLabels"], labels)]
            wrong += wrong_if((len(over) != 1, f"{name}: {it['kind']} {it['metadata']['name']} is under {len(over)}"))
        for p in held:
            at = f"{name}: {p['metadata']['name']}"
            wrong += wrong_if((p["spec"]["policyTypes"] != ["Ingress", "Egress"], f"{at}: {p['spec']['policyTypes']}"))
            wrong += [f"{at}: {rule}" for rule in p["spec"].get("ingress") or [] if not rule.get("from") or not rule.get("ports")]
            wrong += [f"{at}: {rule}" for rule in p["spec"].get("egress") or [] if not rule.get("ports") and not rule.get("to")]
    return wrong


@promise("a bridge reaches cores, and no database; the wallet's services do not reach a bridge's gRPC, for it has none")
def bridge_is_outside(c):
    wrong = []
    for name in ("two-tier-mtls", "everything"):
        objects = c.rendered[name]
        policy = named(objects, "NetworkPolicy", workloads(objects)["bridge"]["metadata"]["name"])["spec"]
        out = {port["port"] for rule in policy["egress"] for port in rule["ports"]}
        core = workloads(objects)["core"]
        to_core = [rule for rule in policy["egress"] for to in rule.get("to", [])
                   if selects((to.get("podSelector") or {}).get("matchLabels") or {"": ""}, pod_of(core)["metadata"]["labels"])]
        wrong += wrong_if(
            (out & {5432, 6432, "5432", "6432"}, f"{name}: reaches {out}"),
            (len(to_core) != 1 or to_core[0]["ports"] != [{"port": 50051, "protocol": "TCP"}], f"{name}: to the core {to_core}"),
            (any(port["port"] == "grpc" for rule in policy["ingress"] for port in rule["ports"]), f"{name}: gRPC from outside"))
    return wrong


@promise("each Service finds the pods of one tier, at a port that they have")
def services_find(c):
    wrong = []
    for name, objects in c.rendered.items():
        templates = [pod_of(it) for it in workloads(objects).values()]
        for it in of_kind(objects, "Service"):
            found = [t for t in templates if selects(it["spec"]["selector"], t["metadata"]["labels"])]
            at = f"{name}: {it['metadata']['name']}"
            wrong += wrong_if((len(found) != 1, f"{at} finds {len(found)} tiers"))
            for template in found:
                ports = {port["name"] for port in template["spec"]["containers"][0]["ports"]}
                wrong += [f"{at}: {port['targetPort']}" for port in it["spec"]["ports"] if port["targetPort"] not in ports]
        for it in of_kind(objects, "Deployment", "StatefulSet", "PodDisruptionBudget"):
            found = [t for t in templates if selects(it["spec"]["selector"]["matchLabels"], t["metadata"]["labels"])]
            wrong += wrong_if((len(found) != 1, f"{name}: {it['kind']} {it['metadata']['name']} finds {len(found)} tiers"))
    return wrong


@promise("the bridges are told a name that has every core's address")
def bridges_know_cores(c):
    wrong = []
    for name in ("two-tier-mtls", "everything"):
        objects = c.rendered[name]
        core = settings_of(objects, pod_of(workloads(objects)["bridge"])["spec"])["bridge"]["core"]
        host, namespace, port = re.fullmatch(r"https://([^.]+)\.([^.]+)\.svc:(\d+)", core).groups()
        service = named(objects, "Service", host)
        found = selects(service["spec"]["selector"], pod_of(workloads(objects)["core"])["metadata"]["labels"])
        wrong += wrong_if((service["spec"].get("clusterIP") != "None" or not found or namespace != "payments", f"{name}: {core}"),
                          (service["spec"]["ports"][0]["port"] != int(port), f"{name}: port {port}"))
    return wrong


@promise("Ingress and routes lead to the paths that are served, each exactly, and change nothing")
def routes(c):
    wrong = []
    served = {f"{prefix}/v1/{api}" for prefix in ("/aps/api", "/v2/aps")
              for api in ("payments/cancelPayment", "authorizations/cancelToken")}
    objects = c.rendered["everything"]
    ingress, = of_kind(objects, "Ingress")
    paths = [path for rule in ingress["spec"]["rules"] for path in rule["http"]["paths"]]
    wrong += wrong_if(({path["path"] for path in paths} != served, f"Ingress: {paths}"),
                      ({path["pathType"] for path in paths} != {"Exact"}, "Ingress: not exactly"))
    route, = of_kind(objects, "HTTPRoute")
    rule, = route["spec"]["rules"]
    wrong += wrong_if(({match["path"]["value"] for match in rule["matches"]} != served, f"HTTPRoute: {rule}"),
                      ({match["path"]["type"] for match in rule["matches"]} != {"Exact"}, "HTTPRoute: not exactly"),
                      ("filters" in rule, "HTTPRoute: has filters"))
    services = {it["metadata"]["name"]: [port["port"] for port in it["spec"]["ports"]] for it in of_kind(objects, "Service")}
    for it in of_kind(objects, "HTTPRoute", "TLSRoute"):
        for rule in it["spec"]["rules"]:
            wrong += [f"{it['kind']}: {to}" for to in rule["backendRefs"] if to["port"] not in services.get(to["name"], [])]
    return wrong


@promise("who ends TLS decides the kind of route: TLSRoute for the service itself, HTTPRoute and GRPCRoute otherwise")
def kinds_of_routes(c):
    on = {"gateway": {front: {"enabled": True, "parentRefs": [{"name": "g"}], "hostnames": ["a.example"]} for front in ("json", "grpc")}}
    kinds = lambda name: sorted(it["kind"] for it in c.variation(name, on) if it["kind"].endswith("Route"))
    return wrong_if((kinds("default") != ["GRPCRoute", "HTTPRoute"], f"in plain text: {kinds('default')}"),
                    (kinds("sqlite") != ["TLSRoute", "TLSRoute"], f"with TLS: {kinds('sqlite')}"))


@promise("a change that the service takes over by itself restarts no pod, and one that needs a restart does")
def restarts(c):
    before = c.rendered["sqlite"]
    template = lambda objects: pod_of(workloads(objects)["service"])
    def client(objects_of):
        return {"settings": {"clients": [{"id": "NEW", "psp_ids": ["1"], "rate": {"per_second": 7, "burst": 8}, "keys": [
            {"version": "1", "public_key_file": {"secret": {"name": "alipayplus-public", "key": "alipayplus-1.pem"}}}]}]}}
    wrong = []
    for what, values, restarts in [
        ("another client", client(before), False),
        ("a limit", {"settings": {"limits": {"max_in_flight": 99}}}, False),
        ("callers", {"settings": {"grpc": {"callers": [{"sans": ["a"], "methods": ["*"]}]}}}, False),
        ("names of callers", {"settings": {"grpc": {"tls": {"allowed_sans": ["a"]}}}}, False),
        ("no TLS", {"settings": {"bridge": {"tls": None}}}, True),
        ("the policy", {"settings": {"policy": {"acquirer_check": "observe"}}}, True),
        ("a deadline", {"settings": {"limits": {"queue_wait": "2s"}}}, True),
        ("the log's level", {"settings": {"telemetry": {"log_level": "debug"}}}, True),
        ("another path", {"settings": {"bridge": {"path_prefixes": ["/x"]}}}, True),
    ]:
        after = c.variation("sqlite", values)
        settings = [settings_of(objects, template(objects)["spec"]) for objects in (before, after)]
        wrong += wrong_if((settings[0] == settings[1], f"{what}: changes nothing"),
                          ((template(before) != template(after)) != restarts, f"{what}: {'no ' * restarts}restart"))
    return wrong


@promise("what is left out of that checksum is what the service says it takes over, but for bodies")
def live(c):
    source = (c.chart.parent.parent / "src" / "app" / "reload.rs").read_text()
    taken = set(re.findall(r'"([a-z_.]+)"', re.search(r"const LIVE: .*?= \[(.*?)\];", source, re.DOTALL)[1]))
    template = (c.chart / "templates" / "_settings.tpl").read_text().split('define "alipayplus-cancel.checksum"')[1]
    words = lambda pattern: re.findall(r'"([a-z_]+)"', re.search(pattern, template)[1])
    left = {f"{section}." for section in words(r"omit \.settings ([^)]*)\)")}
    left |= {f"grpc.{name}" for name in words(r'dict "grpc" \(list ([^)]*)\)')}
    left |= {f"{section}.{name}." for section in ("grpc", "bridge") for name in words(r"range list ([^}]*)}}")}
    left |= {f"limits.{name}" for name in words(r'"limits" \(omit \. ([^)]*)\)')}
    covered = lambda name, by: any(name.startswith(other) or other.startswith(name) for other in by)
    return [f"the service takes over {name}, and pods restart for it" for name in taken - {"limits.body_", "console.tls."} if not covered(name, left)] + [
        f"{name} is left out, and the service does not take it over" for name in left - {"grpc.core_tls."} if not covered(name, taken)]


@promise("the hooks of the migration need nothing of the release but hooks of a lower weight")
def hooks(c):
    wrong = []
    weight = lambda it: int(it["metadata"]["annotations"]["helm.sh/hook-weight"])
    for name in ("postgres-tls", "two-tier-mtls", "everything"):
        objects = c.rendered[name]
        job, = of_kind(objects, "Job")
        spec = job["spec"]["template"]["spec"]
        needed = [("ConfigMap", job["metadata"]["name"]), ("ServiceAccount", spec["serviceAccountName"]), ("NetworkPolicy", job["metadata"]["name"])]
        for kind, of in needed:
            it = named(objects, kind, of)
            hook = (it["metadata"].get("annotations") or {}).get("helm.sh/hook")
            wrong += wrong_if((hook != "pre-install,pre-upgrade" or weight(it) >= weight(job), f"{name}: {kind} {of}"))
        wrong += wrong_if((job["metadata"]["annotations"]["helm.sh/hook"] != "pre-install,pre-upgrade", f"{name}: {job}"),
                          ("before-hook-creation" not in job["metadata"]["annotations"]["helm.sh/hook-delete-policy"], f"{name}: not twice"))
        for _, objects, _, spec in tiers(c):
            store = settings_of(objects, spec).get("store", {})
            if store.get("url", "").startswith("postgres"):
                wrong += wrong_if((store["migrate_at_start"] is not False, f"{name}: pods migrate, too"))
    off = c.variation("postgres-tls", {"migration": {"enabled": False}})
    store = settings_of(off, pod_of(workloads(off)["service"])["spec"])["store"]
    return wrong + wrong_if((of_kind(off, "Job") or store["migrate_at_start"] is not True, "without the Job nobody migrates"))


@promise("bridges and cores can be two releases")
def two_releases(c):
    bridges = c.variation("two-tier-mtls", {"core": {"enabled": False}, "bridge": {"coreUrls": ["https://a.example:50051", "https://b.example:50052"]}})
    spec = pod_of(workloads(bridges)["bridge"])["spec"]
    policy = named(bridges, "NetworkPolicy", workloads(bridges)["bridge"]["metadata"]["name"])["spec"]
    core = settings_of(bridges, spec)["bridge"]["core"]
    cores = c.variation("two-tier-mtls", {"bridge": {"enabled": False}})
    reference = {"secret": {"name": "wallet-signing", "key": "tls.crt"}}
    # what a release of bridges has to say, and no word about a store
    c.variation(None, {"mode": "two-tier", "core": {"enabled": False}, "bridge": {"coreUrls": ["https://a.example:50051"]}, "settings": {
        "bridge": {"core_tls": {name: reference for name in ("ca_file", "cert_file", "key_file")}},
        "identity": {"keys": [{"version": "1", "file": reference}]}}})
    out = {port["port"] for rule in policy["egress"] for port in rule["ports"]}
    return wrong_if((set(workloads(bridges)) != {"bridge"} or of_kind(bridges, "Job"), "bridges alone"),
                    (core != "https://a.example:50051,https://b.example:50052" or not {50051, 50052} <= out, f"{core}, {out}"),
                    (set(workloads(cores)) != {"core"} or not of_kind(cores, "Job"), "cores alone"))


@promise("every object has the recommended labels and stands in the release's namespace; two releases share no name")
def metadata(c):
    wrong = []
    for name, it in c.objects():
        labels = it["metadata"].get("labels") or {}
        wrong += wrong_if((not RECOMMENDED <= set(labels), f"{name}: {it['kind']} {it['metadata']['name']}: {RECOMMENDED - set(labels)}"),
                          (it["metadata"].get("namespace") != "payments", f"{name}: {it['kind']} {it['metadata']['name']}: namespace"))
    ids = lambda objects: {(it["kind"], it["metadata"]["name"]) for it in objects}
    both = ids(c.rendered["postgres-tls"]) & ids(c.variation("postgres-tls", {}, release="other"))
    long = c.variation("two-tier-mtls", {}, release="a-release-whose-name-is-as-long-as-helm-allows-it-t")
    return wrong + wrong_if((both, f"two releases: {both}"),
                            (any(len(it["metadata"]["name"]) > 63 for it in long), "a name is longer than 63"))


@promise("helm test asks every tier's readiness and makes a signed call that the binary can sign")
def tests(c):
    wrong = []
    for name, objects in c.rendered.items():
        asked = {arg for it in of_kind(objects, "Pod") for arg in it["spec"]["containers"][0]["args"] if "/readyz" in arg}
        due = {f"http://{it['metadata']['name']}-admin:9090/readyz" for it in workloads(objects).values()}
        services = {it["metadata"]["name"] for it in of_kind(objects, "Service")}
        wrong += wrong_if((asked != due, f"{name}: asks {asked}"),
                          (not {url.split("/")[2].split(":")[0] for url in asked} <= services, f"{name}: no such Service"))
    call, = (it for it in of_kind(c.rendered["everything"], "Pod") if "call" in it["spec"]["containers"][0]["args"])
    run = c.signs(call["spec"])
    return wrong + wrong_if((run.returncode != 0 or "signature: algorithm=RSA256,keyVersion=1" not in run.stdout, run.stdout + run.stderr))


@promise("a listening address for IPv6 is in every setting")
def ipv6(c):
    objects = c.variation("default", {"service": {"listenAddress": "[::]"}})
    settings = settings_of(objects, pod_of(workloads(objects)["service"])["spec"])
    return [f"{section}: {settings[section]['listen']}" for section in ("grpc", "bridge", "admin")
            if not settings[section]["listen"].startswith("[::]:")]


@promise("where the platform gives user and group ids, none is set")
def openshift(c):
    objects = c.variation("default", {"podSecurity": {"runAsUser": None, "runAsGroup": None, "fsGroup": None}})
    spec = pod_of(workloads(objects)["service"])["spec"]
    return wrong_if(({"runAsUser", "runAsGroup", "fsGroup"} & set(spec["securityContext"]), str(spec["securityContext"]))) + pss.wrong_with(spec)


@promise("alerts and dashboards are those of the files, unchanged but for where runbooks are read")
def watched(c):
    import json
    import yaml
    objects = c.rendered["everything"]
    rule, = of_kind(objects, "PrometheusRule")
    based, = of_kind(c.variation("everything", {"metrics": {"prometheusRule": {"runbookUrlBase": "https://git.example.com/"}}}), "PrometheusRule")
    urls = lambda it: [r["annotations"]["runbook_url"] for group in it["spec"]["groups"] or [] for r in group["rules"] if "alert" in r]
    groups = [group for file in sorted((c.chart / "rules").glob("*.yaml")) for group in yaml.safe_load(file.read_text())["groups"]]
    boards = {file.name: json.loads(file.read_text()) for file in (c.chart / "dashboards").glob("*.json")}
    held = next(it for it in of_kind(objects, "ConfigMap") if it["metadata"]["name"].endswith("-dashboards")).get("data") or {}
    return wrong_if(((rule["spec"]["groups"] or []) != groups, "rules differ"),
                    (urls(based) != [f"https://git.example.com/{url}" for url in urls(rule)], f"runbooks: {urls(based)}"),
                    ({name: json.loads(text) for name, text in held.items()} != boards, "dashboards differ"))


@promise("NOTES say what to do next, and warn of what is open")
def notes(c):
    wrong = []
    for name, due in {
        "default": ["rollout status statefulset/", "keys show --config", "import complete", "plain text", "networkPolicy.grpcFrom is empty"],
        "two-tier-mtls": ["rollout status deployment/cancel-alipayplus-cancel-core", "cancel-alipayplus-cancel-cores.payments.svc"],
        "everything": ["https://alipayplus.wallet.example/aps/api", "helm -n payments test cancel"],
    }.items():
        said = c.notes(name)
        wrong += [f"{name}: does not say {text!r}: {said}" for text in due if text not in said]
    return wrong


@promise("the package has templates, schema, rules and dashboards, and no values of ci/")
def package(c):
    import tarfile
    run = c.helm("package", c.chart, "--destination", c.work)
    if run.returncode:
        return [run.stderr]
    with tarfile.open(next(c.work.glob("alipayplus-cancel-*.tgz"))) as archive:
        names = {name.removeprefix("alipayplus-cancel/") for name in archive.getnames()}
    due = {"Chart.yaml", "values.yaml", "values.schema.json", "README.md", "templates/workload.yaml", "templates/NOTES.txt"}
    due |= {str(file.relative_to(c.chart)) for folder in ("rules", "dashboards") for file in (c.chart / folder).glob("*.*")}
    return wrong_if((due - names, f"lacks {due - names}"), (any(name.startswith("ci/") for name in names), "has ci/"))


@promise("the values in docs/install.md render")
def documented(c):
    import yaml
    wrong = []
    text = (c.chart.parent.parent / "docs" / "install.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    for nth, block in enumerate(blocks, 1):
        values = yaml.safe_load(block)
        # a part of values stands over those of its kind
        whole = "tokens" in values.get("settings", {})
        try:
            c.variation(None if whole else "everything" if "tests" in values else "postgres-tls", values)
        except RuntimeError as error:
            wrong.append(f"block {nth}: {error}")
    return wrong + wrong_if((len(blocks) < 6, f"{len(blocks)} blocks"))
