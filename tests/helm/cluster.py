"""As much of a cluster as rendered manifests need to be started: pods, probes, Services, a database.

Everything runs in one network namespace that has nothing but loopback: each pod, Service and database has an address of
127.0.0.0/8 there, names are told by /etc/hosts. A pod's front listens on 0.0.0.0 in a namespace of its own; here the
pods share one, so each is told its own address by a variable (ALIPAYPLUS_CANCEL__…__LISTEN), with the manifest's port.
What else a manifest says of a pod and is not used, is refused: see `Pod.__init__` and `realize`.
"""

import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import tomllib
from urllib.parse import urlsplit

import yaml

from material import SETTINGS, SETTINGS_FILE, Fault, Material

HERE = pathlib.Path(__file__).parent
PROGRAM = "/usr/local/bin/alipayplus-cancel"
# how long a Service goes on sending to a pod whose readiness has changed: EndpointSlices, kube-proxy, balancers
PROPAGATION_S = 1.0


def loopback_up():
    """The one interface of a new network namespace is down."""
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, 0x8914, struct.pack("16sh14x", b"lo", 0x1 | 0x40))  # SIOCSIFFLAGS, UP and RUNNING


def eventually(what, ask, timeout=30.0, step=0.05):
    end = time.monotonic() + timeout
    while True:
        answer = ask()
        if answer:
            return answer
        if time.monotonic() > end:
            raise Fault(f"not within {timeout:.0f} s: {what}")
        time.sleep(step)


class Image:
    """What the image's root is: the binary, the libraries that it and an HSM's library need, authorities."""

    def __init__(self, binary, folder):
        self.root = pathlib.Path(folder)
        for name in ["usr/local/bin", "etc/ssl/certs", "proc", "dev", "tmp", "var/lib"]:
            (self.root / name).mkdir(parents=True, exist_ok=True)
        program = self.root / PROGRAM.lstrip("/")
        shutil.copy2(binary, program)
        self.libraries(program)
        (self.root / "etc/hosts").touch()
        (self.root / "etc/passwd").write_text("nonroot:x:65532:65532:nonroot:/:/sbin/nologin\n")

    def libraries(self, program):
        for line in subprocess.run(["ldd", program], capture_output=True, text=True).stdout.splitlines():
            for word in line.split():
                if word.startswith("/") and not (self.root / word.lstrip("/")).exists():
                    (self.root / word.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(word, self.root / word.lstrip("/"))

    def mount_point(self, at, is_file):
        """A runtime makes the places of mounts; here before the root is read-only."""
        place = self.root / at.lstrip("/")
        if is_file:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()
        else:
            place.mkdir(parents=True, exist_ok=True)


class Manifests:
    def __init__(self, file):
        self.all = [one for one in yaml.safe_load_all(pathlib.Path(file).read_text()) if one]

    def of(self, *kinds):
        return [one for one in self.all if one["kind"] in kinds]

    def config_map(self, name):
        return next((one for one in self.of("ConfigMap") if one["metadata"]["name"] == name), None)

    def hooked(self, one, hook):
        hooks = one["metadata"].get("annotations", {}).get("helm.sh/hook", "")
        return hook in hooks.split(",")

    def workloads(self):
        return self.of("Deployment", "StatefulSet")

    def replicas(self, workload):
        for scaler in self.of("HorizontalPodAutoscaler"):
            if scaler["spec"]["scaleTargetRef"]["name"] == workload["metadata"]["name"]:
                return scaler["spec"]["minReplicas"]
        return workload["spec"]["replicas"]

    def settings(self, spec):
        """The text of the settings file that a pod mounts, if it mounts one."""
        for volume in spec.get("volumes", []):
            for source in volume.get("projected", {}).get("sources", []):
                found = self.config_map(source.get("configMap", {}).get("name"))
                if found and SETTINGS_FILE in found["data"]:
                    return found["data"][SETTINGS_FILE]
        return None


class Cluster:
    """One installed release. `number` gives it addresses of its own: 127.NUMBER.0.0/16."""

    def __init__(self, name, number, file, binary, image, folder):
        self.name, self.number, self.image = name, number, image
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True)
        self.manifests = Manifests(file)
        self.material = Material(binary, self.folder / "material")
        self.pods, self.services, self.databases, self.used = [], [], [], {}
        self.claims = {}
        self.headless = []
        self.hsm = []
        self.hosts = self.folder / "hosts"
        self.hosts.write_text("127.0.0.1 localhost\n")
        self.lock = threading.Lock()
        self.faults = []
        self.namespace = self.manifests.workloads()[0]["metadata"]["namespace"]
        self.name_certificates()
        self.learn()

    def say(self, text):
        print(f"{self.name}: {text}", flush=True)

    def address(self, kind):
        """kind: 1 pods, 2 Services, 3 databases."""
        self.used[kind] = self.used.get(kind, 0) + 1
        return f"127.{self.number}.{kind}.{self.used[kind]}"

    def names_of(self, service):
        name, namespace = service["metadata"]["name"], self.namespace
        return [name, f"{name}.{namespace}", f"{name}.{namespace}.svc", f"{name}.{namespace}.svc.cluster.local"]

    def pod_specs(self):
        for one in self.manifests.workloads() + self.manifests.of("Job"):
            yield one, one["spec"]["template"]["spec"]
        for one in self.manifests.of("Pod"):
            yield one, one["spec"]

    def name_certificates(self):
        names = self.material.names
        for service in self.manifests.of("Service"):
            for port in service["spec"]["ports"]:
                if port["targetPort"] in ("grpc", "json"):
                    names["grpc" if port["targetPort"] == "grpc" else "bridge"] += self.names_of(service)
        for _, spec in self.pod_specs():
            settings = tomllib.loads(self.manifests.settings(spec) or "")
            for caller in settings.get("grpc", {}).get("callers", []):
                if caller.get("bridge"):
                    names["core_tls"] += [san for san in caller["sans"] if san not in names["core_tls"]]
            server = settings.get("bridge", {}).get("core_tls", {}).get("server_name")
            names["grpc"] += [server] if server else []

    def learn(self):
        """What every source has to hold, by what the settings and arguments name."""
        for one, spec in self.pod_specs():
            sources = self.sources(spec)
            text = self.manifests.settings(spec)
            files = self.material.files_of_settings(text) if text else []
            files += self.material.files_of_arguments(spec["containers"][0]["args"])
            for path, content, why in files:
                source = sources.get(path) or next(
                    (of + (path.removeprefix(at),) for at, of in sources.items() if at.endswith("/") and path.startswith(at)),
                    None,
                )
                if source is None:
                    raise Fault(f"{one['metadata']['name']}: {why} is {path}, and no volume has it")
                self.material.learn(source, content, why)

    def sources(self, spec):
        """Each path in a pod that a Secret or ConfigMap is behind; of CSI volumes the folder, with a slash at its end."""
        found = {}
        for mount in spec["containers"][0].get("volumeMounts", []):
            volume = next(one for one in spec["volumes"] if one["name"] == mount["name"]) if not self.is_claimed(
                mount["name"]
            ) else {}
            at = mount["mountPath"]
            for kind, name, key, path in self.projected(volume):
                found[f"{at}/{path}"] = (kind, name, key)
            if "csi" in volume:
                found[f"{at}/"] = ("csi", volume["name"])
        return found

    def is_claimed(self, name):
        templates = [t for one in self.manifests.of("StatefulSet") for t in one["spec"].get("volumeClaimTemplates", [])]
        return any(template["metadata"]["name"] == name for template in templates)

    def projected(self, volume):
        """Kind, name, key and path of every file of a projected volume."""
        for source in volume.get("projected", {}).get("sources", []):
            (kind, reference), = source.items()
            if kind not in ("secret", "configMap"):
                raise Fault(f"a projected {kind} is not known here")
            ours = self.manifests.config_map(reference["name"]) if kind == "configMap" else None
            items = reference.get("items")
            if items is None and ours is None:
                raise Fault(f"all keys of {kind} {reference['name']} are mounted, and here nobody knows which there are")
            for item in items or [{"key": key, "path": key} for key in ours["data"]]:
                yield kind, reference["name"], item["key"], item["path"]

    def content(self, source):
        kind, name, key = source
        ours = self.manifests.config_map(name) if kind == "configMap" else None
        # a public key that stands in the values: its private half is not here, so the test's own is put in its place
        if source in self.material.by_source or ours is None:
            return self.material.of(source)
        return ours["data"][key].encode()

    def realize(self, volume, pod, group):
        """A folder with what a volume holds."""
        name = volume["name"]
        folder = self.folder / "volumes" / pod / name
        if "projected" in volume:
            folder.mkdir(parents=True)
            mode = volume["projected"].get("defaultMode", 0o644)
            for kind, of, key, path in self.projected(volume):
                self.write(folder / path, self.content((kind, of, key)), mode, group)
        elif "csi" in volume:
            folder.mkdir(parents=True)
            for source, content in self.material.by_source.items():
                if source[:2] == ("csi", name):
                    # drivers make them readable to all in the pod
                    self.write(folder / source[2], content, 0o444, group)
        elif "emptyDir" in volume:
            folder.mkdir(parents=True)
            self.own(folder, group)
        elif "persistentVolumeClaim" in volume:
            claim = volume["persistentVolumeClaim"]["claimName"]
            if claim not in self.claims:
                raise Fault(f"no volume {claim} here")
            return self.claims[claim]
        else:
            raise Fault(f"a volume of an unknown kind: {volume}")
        return folder

    @staticmethod
    def write(path, content, mode, group):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.chown(path, 0, group)
        path.chmod(mode)

    @staticmethod
    def own(folder, group):
        os.chown(folder, 0, group)
        folder.chmod(0o2770)

    def tell_names(self):
        """Headless Services have the addresses of their pods, others one of their own."""
        lines = ["127.0.0.1 localhost"]
        lines += [f"{service.address} {' '.join(service.names)}" for service in self.services]
        for database in self.databases:
            lines += [f"{address} {host}" for host, address in database.hosts.items()]
        for service in self.headless:
            for pod in list(self.pods):
                published = service["spec"].get("publishNotReadyAddresses") or pod.ready
                if published and pod.process.poll() is None and matches(service, pod):
                    lines.append(f"{pod.address} {' '.join(self.names_of(service))}")
        with self.lock:
            # in place: the pods have this very file as theirs
            text = ("\n".join(lines) + "\n").encode()
            with open(self.hosts, "r+b") as hosts:
                hosts.write(text)
                hosts.truncate()

    def serve(self):
        for service in self.manifests.of("Service"):
            if service["spec"].get("clusterIP") == "None":
                self.headless.append(service)
            else:
                self.services.append(Service(self, service))
        self.tell_names()

    def run_pod(self, spec, name):
        """A pod that ends by itself: its output, if it ends with 0."""
        pod = Pod(self, {"spec": spec, "metadata": {"labels": {}}}, name, probed=False)
        status = pod.process.wait(timeout=60)
        if status != 0:
            raise Fault(f"{name} ended with {status}: {pod.log.read_text()}")
        pod.read.close()
        return pod.log.read_text().strip()

    def run_job(self, job):
        """A Job tries again, as often as it says."""
        for left in reversed(range(job["spec"]["backoffLimit"] + 1)):
            try:
                return self.run_pod(job["spec"]["template"]["spec"], f"{job['metadata']['name']}-{next_number()}")
            except Fault as fault:
                if not left:
                    raise
                self.say(f"the Job tries again: {fault}")
                time.sleep(1)

    def migrate(self):
        """The hook before install and upgrade; it is run twice, because it says that this is safe."""
        for job in self.manifests.of("Job"):
            if not (self.manifests.hooked(job, "pre-install") and self.manifests.hooked(job, "pre-upgrade")):
                raise Fault(f"the Job {job['metadata']['name']} is no hook")
            said = [self.run_job(job) for _ in range(2)]
            self.say(f"migration Job: {said[0]}; again: {said[1]}")

    def complete(self, core):
        """What a person does once, and says again if the database is too busy."""
        for left in reversed(range(5)):
            try:
                return core.execute("import", "complete", "--config", f"{SETTINGS}/{SETTINGS_FILE}")
            except Fault:
                if not left:
                    raise
                time.sleep(1)

    def start(self, most):
        """Every workload's pods, at most `most(name)` of each; waits until all are ready."""
        for workload in self.manifests.workloads():
            name = workload["metadata"]["name"]
            for nth in range(min(self.manifests.replicas(workload), most(name))):
                self.pods.append(Pod(self, workload["spec"]["template"], f"{name}-{nth}"))
        self.tell_names()
        for pod in self.pods:
            eventually(f"{pod.name} is ready", lambda pod=pod: pod.is_ready_or_fails(), timeout=60)

    def call(self, request_id, expected="S"):
        """A signed cancelPayment, as Alipay+ makes it, through the Service of the JSON front."""
        service = next(one for one in self.services if one.name.endswith("-json"))
        front = next(p for p in self.pods if p.settings.get("bridge"))
        client = front.settings["clients"][0]
        port = service.manifest["spec"]["ports"][0]
        url = f"{port['appProtocol']}://{service.names[2]}:{port['port']}{front.settings['bridge']['path_prefixes'][0]}"
        version = client["keys"][0]["version"]
        active = next(k["version"] for k in front.settings["identity"]["keys"] if k.get("state", "active") == "active")
        authority = self.folder / "material/authority.pem"
        authority.write_bytes(self.material.authority.pem())
        private = self.material.rsa(f"client-{client['id']}-{version}")[0]
        argv = [
            PROGRAM, "call", "cancel-payment", "--json", "--url", url, "--client-id", client["id"],
            "--key", f"/material/{private.name}", "--key-version", version,
            "--peer-key", f"/material/wallet-{active}.public.pem", "--ca-file", "/material/authority.pem",
            "--psp-id", client["psp_ids"][0].replace("*", "1022172000000000001"),
            "--acquirer-id", "1022188000000000001", "--payment-request-id", request_id,
        ]
        mounts = [[str(self.hosts), "/etc/hosts", True], [str(self.folder / "material"), "/material", True]]
        done = subprocess.run(
            [sys.executable, HERE / "pod.py"], capture_output=True, text=True, timeout=30,
            input=self.description(argv, {}, mounts, (0, 0, [])),
        )
        answer = json.loads(done.stdout) if done.stdout else {"error": done.stderr}
        status = answer.get("body", {}).get("result", {}).get("resultStatus")
        if status != expected or answer["signature"] != "verified":
            raise Fault(f"cancelPayment through {url}: {answer}, and {expected} is due")
        return url

    def description(self, argv, env, mounts, user):
        for source, at, _ in mounts:
            self.image.mount_point(at, pathlib.Path(source).is_file())
        uid, gid, groups = user
        return json.dumps(
            {"root": str(self.image.root), "readonly": True, "mounts": mounts, "uid": uid, "gid": gid, "groups": groups,
             "argv": argv, "env": env}
        )

    def check(self):
        for pod in self.pods:
            if pod.fault:
                raise Fault(pod.fault)

    def stop(self):
        for pod in self.pods:
            pod.kill()
        for database in self.databases:
            database.stop()


NUMBERS = iter(range(1_000_000))


def next_number():
    return next(NUMBERS)


def matches(service, pod):
    return service["spec"]["selector"].items() <= pod.labels.items()


class Pod:
    """One pod of one container, as a kubelet runs it: volumes, variables, user, probes, termination."""

    # what is used of a container and a pod, or needs no node to be true
    CONTAINER = {
        "name", "image", "imagePullPolicy", "securityContext", "args", "env", "ports", "startupProbe", "livenessProbe",
        "readinessProbe", "resources", "volumeMounts", "lifecycle",
    }
    SPEC = {
        "serviceAccountName", "automountServiceAccountToken", "enableServiceLinks", "securityContext",
        "terminationGracePeriodSeconds", "topologySpreadConstraints", "containers", "volumes", "restartPolicy",
        "priorityClassName", "tolerations", "nodeSelector", "affinity", "imagePullSecrets",
    }

    def __init__(self, cluster, template, name, probed=True):
        spec = template["spec"]
        (container,) = spec["containers"]
        for unknown in (set(container) - self.CONTAINER) | (set(spec) - self.SPEC):
            raise Fault(f"{name}: nothing here knows what {unknown} does")
        if spec.get("enableServiceLinks", True) or spec.get("automountServiceAccountToken", True):
            raise Fault(f"{name}: has service links, or a token")
        self.cluster, self.name, self.container, self.spec = cluster, name, container, spec
        self.labels = template["metadata"]["labels"]
        self.address = cluster.address(1)
        self.ready, self.fault, self.terminating = False, None, False
        self.ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
        self.settings = tomllib.loads(cluster.manifests.settings(spec) or "")
        self.mounts = self.realize()
        self.env = self.variables()
        security = {**spec["securityContext"], **container["securityContext"]}
        if not (security["runAsNonRoot"] and security["readOnlyRootFilesystem"] and "ALL" in security["capabilities"]["drop"]):
            raise Fault(f"{name}: may be root, write to its root, or has capabilities")
        self.user = (security["runAsUser"], security["runAsGroup"], [security["fsGroup"]])
        self.log = cluster.folder / f"{name}.log"
        self.process = self.launch(container["args"], self.log)
        self.read = open(self.log, "rb")
        if probed:
            self.probes = {kind: container[f"{kind}Probe"] for kind in ("startup", "liveness", "readiness")}
            for probe in self.probes.values():
                self.probe_port(probe)
            threading.Thread(target=self.keep, daemon=True).start()

    def realize(self):
        mounts = [[str(self.cluster.hosts), "/etc/hosts", True]]
        group = self.spec["securityContext"]["fsGroup"]
        volumes = {volume["name"]: volume for volume in self.spec.get("volumes", [])}
        for mount in self.container.get("volumeMounts", []):
            if set(mount) - {"name", "mountPath", "readOnly"}:
                raise Fault(f"{self.name}: nothing here knows {mount}")
            if mount["name"] in volumes:
                source = self.cluster.realize(volumes[mount["name"]], self.name, group)
            else:
                # of volumeClaimTemplates: stays when the pod goes
                source = self.cluster.folder / "claims" / f"{mount['name']}-{self.name}"
                if not source.exists():
                    source.mkdir(parents=True)
                    self.cluster.own(source, group)
            mounts.append([str(source), mount["mountPath"], mount.get("readOnly", False)])
        if "/opt/hsm" in [at for _, at, _ in mounts]:
            mounts += self.cluster.hsm
        return mounts

    def variables(self):
        env = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        for one in self.container.get("env", []):
            reference = one.get("valueFrom", {})
            if "value" in one:
                value = one["value"]
                for known, text in env.items():
                    value = value.replace(f"$({known})", text)
            elif "fieldRef" in reference:
                fields = {"metadata.name": self.name, "metadata.namespace": self.cluster.namespace, "status.podIP": self.address}
                value = fields[reference["fieldRef"]["fieldPath"]]
            elif "secretKeyRef" in reference:
                value = "authorization=Bearer%20test"
            else:
                raise Fault(f"{self.name}: nothing here knows {one}")
            env[one["name"]] = value
        # see the top of this file
        for section in ("bridge", "grpc", "admin"):
            listen = self.settings.get(section, {}).get("listen")
            if listen:
                host, port = listen.rsplit(":", 1)
                if host not in ("0.0.0.0", "[::]"):
                    raise Fault(f"{self.name}: {section}.listen is {listen}, which no other pod reaches")
                name = {"bridge": "json"}.get(section, section)
                if self.ports.get(name) != int(port):
                    raise Fault(f"{self.name}: {section}.listen is {listen}, and the port {name} is {self.ports.get(name)}")
                env[f"ALIPAYPLUS_CANCEL__{section.upper()}__LISTEN"] = f"{self.address}:{port}"
        if any(at == "/opt/hsm" for _, at, _ in self.mounts):
            env["SOFTHSM2_CONF"] = "/hsm-device/softhsm2.conf"
        return env

    def launch(self, args, log):
        description = self.cluster.description([PROGRAM, *args], self.env, self.mounts, self.user)
        with open(log, "ab") as output:
            process = subprocess.Popen(
                [sys.executable, HERE / "pod.py"], stdin=subprocess.PIPE, stdout=output, stderr=output, text=True
            )
        process.stdin.write(description)
        process.stdin.close()
        return process

    def execute(self, *args):
        """As `kubectl exec` does: in the same place, beside the running process."""
        log = self.cluster.folder / f"{self.name}-exec-{next_number()}.log"
        status = self.launch(list(args), log).wait(timeout=60)
        if status != 0:
            raise Fault(f"{self.name}: {' '.join(args)} ended with {status}: {log.read_text()}")
        return log.read_text().strip()

    # ---- probes

    def probe_port(self, probe):
        if set(probe) - {"httpGet", "periodSeconds", "timeoutSeconds", "failureThreshold", "initialDelaySeconds"}:
            raise Fault(f"{self.name}: nothing here knows {probe}")
        port = probe["httpGet"]["port"]
        if port not in self.ports:
            raise Fault(f"{self.name}: a probe asks the port {port}, and the container has {sorted(self.ports)}")
        return self.ports[port]

    def ask(self, kind):
        """One probe: status, body; status 0 for no answer."""
        probe = self.probes[kind]
        if probe["httpGet"].get("scheme", "HTTP") != "HTTP":
            raise Fault(f"{self.name}: the admin port speaks plain HTTP")
        connection = http.client.HTTPConnection(
            self.address, self.probe_port(probe), timeout=probe.get("timeoutSeconds", 1)
        )
        try:
            connection.request("GET", probe["httpGet"]["path"], headers={"User-Agent": "kube-probe/1.36"})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except (OSError, http.client.HTTPException) as error:
            return 0, str(error)
        finally:
            connection.close()

    def keep(self):
        """What a kubelet does while the container runs: startup first, then readiness and liveness side by side."""
        failures = {"startup": 0, "readiness": 0, "liveness": 0}
        due = {kind: time.monotonic() for kind in failures}
        started = False
        while self.process.poll() is None:
            for kind in ["readiness", "liveness"] if started else ["startup"]:
                if time.monotonic() < due[kind]:
                    continue
                probe = self.probes[kind]
                due[kind] = time.monotonic() + probe["periodSeconds"]
                good = 200 <= self.ask(kind)[0] < 400
                failures[kind] = 0 if good else failures[kind] + 1
                failed = failures[kind] >= probe["failureThreshold"]
                if kind == "readiness" and (good or failed) and good != self.ready:
                    self.ready = good
                    threading.Timer(PROPAGATION_S, self.cluster.tell_names).start()
                elif kind == "startup":
                    started = good
                    due["readiness"] = 0
                if failed and kind != "readiness" and not self.terminating:
                    self.fault = f"{self.name}: a kubelet would restart it: {kind}"
            time.sleep(0.02)
        self.ready = False
        if not self.terminating:
            self.fault = f"{self.name} ended by itself with {self.process.returncode}: {self.log.read_text()[-2000:]}"

    def is_ready_or_fails(self):
        if self.fault:
            raise Fault(self.fault)
        return self.ready

    # ---- termination

    def terminate(self, meanwhile=None):
        """preStop, SIGTERM, and the grace period. Returns how long it took; it must end by itself, with 0."""
        begun = time.monotonic()
        self.terminating = True
        grace = self.spec["terminationGracePeriodSeconds"]
        stop = self.container.get("lifecycle", {}).get("preStop")
        if stop:
            if "sleep" in stop:
                time.sleep(stop["sleep"]["seconds"])
            else:
                raise Fault(f"{self.name}: nothing here knows {stop}")
        self.process.send_signal(signal.SIGTERM)
        if meanwhile:
            meanwhile()
        try:
            status = self.process.wait(timeout=max(0.1, begun + grace - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise Fault(f"{self.name}: a kubelet kills it after {grace} s") from None
        took = time.monotonic() - begun
        if status != 0:
            raise Fault(f"{self.name} ended with {status} after SIGTERM: {self.log.read_text()[-2000:]}")
        self.cluster.tell_names()
        return took

    def kill(self):
        self.terminating = True
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Service:
    """A ClusterIP: each new connection goes to the next pod that was ready a moment ago, and stays there."""

    def __init__(self, cluster, manifest):
        self.cluster, self.manifest = cluster, manifest
        self.name = manifest["metadata"]["name"]
        self.names = cluster.names_of(manifest)
        self.address = cluster.address(2)
        self.turn = 0
        self.seen = {}
        self.connections = {}
        for port in manifest["spec"]["ports"]:
            listener = socket.create_server((self.address, port["port"]), backlog=512)
            threading.Thread(target=self.accept, args=(listener, port["targetPort"]), daemon=True).start()

    def endpoints(self):
        now, ready = time.monotonic(), []
        for pod in list(self.cluster.pods):
            if not matches(self.manifest, pod):
                continue
            state, since, before = self.seen.get(pod, (False, 0, False))
            if pod.ready != state:
                state, since, before = pod.ready, now, state
                self.seen[pod] = state, since, before
            # a pod becomes ready at once, and is forgotten late: the worse of both
            if state or (before and now - since < PROPAGATION_S):
                ready.append(pod)
        return ready

    def accept(self, listener, target):
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            ready = self.endpoints()
            if not ready:
                client.close()
                continue
            self.turn += 1
            pod = ready[self.turn % len(ready)]
            self.connections[pod.name] = self.connections.get(pod.name, 0) + 1
            threading.Thread(target=self.join, args=(client, pod.address, pod.ports[target]), daemon=True).start()

    def join(self, client, address, port):
        try:
            server = socket.create_connection((address, port), timeout=5)
        except OSError:
            # as kube-proxy's packets are answered: a reset
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            return
        server.settimeout(None)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        other = threading.Thread(target=copy, args=(server, client), daemon=True)
        other.start()
        copy(client, server)
        other.join()
        client.close()
        server.close()


def copy(source, to):
    try:
        while data := source.recv(65536):
            to.sendall(data)
        to.shutdown(socket.SHUT_WR)
    except OSError:
        for one in (source, to):
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


class Database:
    """A PostgreSQL as store.url asks for it: its names, port, user, password, TLS, a client certificate if one is
    given; and with store.durability = "replicated" a standby that commits wait for (pg_receivewal)."""

    def __init__(self, cluster, settings):
        url = urlsplit(settings["store"]["url"])
        user, hosts = url.netloc.rsplit("@", 1)
        hosts = [host.rsplit(":", 1) for host in hosts.split(",")]
        self.cluster, self.port = cluster, int(hosts[0][1])
        # the first is the primary; at the addresses of the others nobody listens
        self.hosts = {host: cluster.address(3) for host, _ in hosts}
        self.address = self.hosts[hosts[0][0]]
        self.folder = cluster.folder / "database"
        self.name = url.path.lstrip("/")
        self.programs = programs()
        self.processes = []
        folder = self.folder
        folder.mkdir()
        certificate, key = cluster.material.authority.pair("database", self.hosts)
        for name, content in {
            "server.crt": certificate, "server.key": key, "ca.crt": cluster.material.authority.pem(),
            "password": cluster.material.password.encode(),
        }.items():
            (folder / name).write_bytes(content)
            (folder / name).chmod(0o600)
        shutil.chown(folder, "postgres", "postgres")
        for path in folder.iterdir():
            shutil.chown(path, "postgres", "postgres")
        data = folder / "data"
        self.run("initdb", "-D", data, "-U", user, "--pwfile", folder / "password", "--auth", "scram-sha-256", "--no-sync",
                 "--encoding", "UTF8", "--locale", "C")
        clients = "clientcert=verify-ca" if "sslcert=" in url.query else ""
        (data / "pg_hba.conf").write_text(
            f"local all all trust\nlocal replication all trust\nhostssl all all all scram-sha-256 {clients}\n"
        )
        self.user = user
        server = [
            self.programs / "postgres", "-D", data, "-k", folder, "-p", str(self.port), "-c", f"listen_addresses={self.address}",
            "-c", "ssl=on", "-c", f"ssl_cert_file={folder}/server.crt", "-c", f"ssl_key_file={folder}/server.key",
            "-c", f"ssl_ca_file={folder}/ca.crt", "-c", "max_connections=60",
        ]
        self.spawn(server, "postgres.log")
        eventually("the database answers", lambda: self.try_sql("SELECT 1", "postgres") == "1", timeout=60)
        self.sql(f"CREATE DATABASE {self.name}", "postgres")
        if settings["store"].get("durability") == "replicated":
            wal = folder / "wal"
            wal.mkdir()
            shutil.chown(wal, "postgres", "postgres")
            self.spawn(
                [self.programs / "pg_receivewal", "-D", wal, "-h", folder, "-p", str(self.port), "-U", user, "--synchronous",
                 "--no-password"], "standby.log",
            )
            self.sql("ALTER SYSTEM SET synchronous_standby_names = '*'", "postgres")
            self.sql("SELECT pg_reload_conf()", "postgres")
            eventually(
                "commits wait for a standby",
                lambda: self.try_sql("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'", "postgres") == "1",
            )
        cluster.databases.append(self)
        cluster.tell_names()

    def spawn(self, argv, log):
        with open(self.folder / log, "ab") as output:
            self.processes.append(
                subprocess.Popen([str(word) for word in argv], user="postgres", group="postgres", extra_groups=[],
                                 stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd="/")
            )

    def run(self, program, *args):
        done = subprocess.run(
            [str(self.programs / program), *map(str, args)], user="postgres", group="postgres", extra_groups=[],
            capture_output=True, text=True, cwd="/",
        )
        if done.returncode != 0:
            raise Fault(f"{program}: {done.stdout}{done.stderr}")
        return done.stdout.strip()

    def sql(self, text, database=None):
        return self.run("psql", "-h", self.folder, "-p", self.port, "-U", self.user, "-d", database or self.name, "-AtXq",
                        "-v", "ON_ERROR_STOP=1", "-c", text)

    def try_sql(self, text, database=None):
        try:
            return self.sql(text, database)
        except Fault:
            return None

    def stop(self):
        for process in reversed(self.processes):
            # QUIT would do for a server, but what a shell starts in the background ignores it, and so does pg_receivewal then
            process.send_signal(signal.SIGQUIT)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def programs():
    found = [path.parent for path in pathlib.Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if not found:
        raise Fault("no PostgreSQL in /usr/lib/postgresql")
    return max(found, key=lambda path: int(path.parent.name))


def hsm(cluster):
    """A SoftHSM behind the module that the settings name, with the key that they name."""
    for _, spec in cluster.pod_specs():
        settings = tomllib.loads(cluster.manifests.settings(spec) or "")
        for key in settings.get("identity", {}).get("keys", []):
            if "pkcs11" in key:
                break
        else:
            continue
        pkcs11 = key["pkcs11"]
        device = cluster.folder / "hsm-device"
        (device / "tokens").mkdir(parents=True)
        configuration = device / "softhsm2.conf"
        tool = shutil.which("softhsm2-util")
        library = next(pathlib.Path("/usr/lib").glob("**/libsofthsm2.so"))
        configuration.write_text(f"directories.tokendir = {device}/tokens\nobjectstore.backend = file\n")
        env = {"SOFTHSM2_CONF": str(configuration), "PATH": os.environ["PATH"]}
        pin = cluster.material.pin
        private = cluster.material.rsa(f"wallet-{key['version']}")[0]
        for words in (
            ["--init-token", "--free", "--label", pkcs11["token_label"], "--pin", pin, "--so-pin", pin],
            ["--import", str(private), "--token", pkcs11["token_label"], "--label", pkcs11["key_label"], "--id", "02",
             "--pin", pin],
        ):
            subprocess.run([tool, *words], env=env, check=True, capture_output=True)
        configuration.write_text("directories.tokendir = /hsm-device/tokens\nobjectstore.backend = file\n")
        subprocess.run(["chown", "-R", "65532:65532", device], check=True)
        volume = cluster.folder / "hsm-library"
        volume.mkdir()
        shutil.copy2(library, volume / pathlib.Path(pkcs11["module"]).name)
        (volume / pathlib.Path(pkcs11["module"]).name).chmod(0o755)
        cluster.image.libraries(library)
        cluster.claims["hsm-library"] = volume
        cluster.hsm = [[str(device), "/hsm-device", False]]
        return True
    return False
