"""A rolling update rehearsed, for tests/helm/start: two old and two new pods as the manifests of the values file
`postgres-tls` say, under a signed load that goes through the JSON front's Service, which sends new connections where
readiness was a moment ago. Every request must be answered `S` with a signature that verifies; none is sent twice.

The order is the Deployment's: one new pod more, ready, then one old pod is told to end; and so on. Before it the hook
migrates, while the old pods serve. There is only one schema of PostgreSQL yet, so the newer one is made up: a column more,
`meta.schema` one higher, `meta.least_schema` as it was, which is what says that an older program may go on. Old pods
serve on it and the same binary starts on it; once `least_schema` is higher, it refuses to start.
"""

import base64
import datetime
import http.client
import json
import pathlib
import socket
import ssl
import threading
import time
import tomllib
import traceback
from urllib.parse import quote, unquote

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding

from cluster import Cluster, Database, Pod, eventually
from material import Fault

PODS = 2
CALLERS = 6
PAUSE_S = 0.02
CONFIG = "/etc/alipayplus-cancel/alipayplus-cancel.toml"


class Load:
    """Callers that never stop: half of them on one connection as long as it stays open, half on a new one each time."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.service = next(one for one in cluster.services if one.name.endswith("-json"))
        self.port = self.service.manifest["spec"]["ports"][0]["port"]
        settings = cluster.pods[0].settings
        self.client = settings["clients"][0]
        self.path = settings["bridge"]["path_prefixes"][0] + "/v1/payments/cancelPayment"
        material = cluster.material
        private = material.client(self.client["id"], self.client["keys"][0]["version"], 0)
        self.key = serialization.load_pem_private_key(private, None)
        active = next(key["version"] for key in settings["identity"]["keys"] if key.get("state", "active") == "active")
        self.peer = serialization.load_pem_public_key(material.rsa(f"wallet-{active}")[1].read_bytes())
        self.tls = ssl.create_default_context(cadata=material.authority.pem().decode())
        self.stop = threading.Event()
        self.lost, self.answered, self.longest = [], 0, 0.0
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self.call, args=(nth,)) for nth in range(CALLERS)]
        for thread in self.threads:
            thread.start()

    def connect(self):
        name = self.service.names[2]
        plain = socket.create_connection((self.service.address, self.port), timeout=8)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = http.client.HTTPConnection(name)
        # nothing is sent again behind our back
        connection.auto_open = 0
        connection.sock = self.tls.wrap_socket(plain, server_hostname=name)
        return connection

    def call(self, nth):
        connection, count = None, 0
        while not self.stop.is_set():
            count += 1
            request = f"rollout-{nth}-{count}"
            begun = time.monotonic()
            try:
                if connection is None or connection.sock is None:
                    connection = self.connect()
                self.exchange(connection, request)
                why = None
            except (OSError, http.client.HTTPException, InvalidSignature, KeyError, ValueError, Fault) as error:
                why = f"{request}: {type(error).__name__} {error}"
            if nth % 2 or why:
                if connection is not None:
                    connection.close()
                connection = None
            with self.lock:
                self.longest = max(self.longest, time.monotonic() - begun)
                self.answered += why is None
                self.lost += [why] if why else []
            time.sleep(PAUSE_S)

    def exchange(self, connection, request):
        body = json.dumps(
            {"acquirerId": "1022188000000000001", "pspId": self.client["psp_ids"][0], "paymentRequestId": request}
        ).encode()
        now = datetime.datetime.now(datetime.timezone.utc).astimezone(datetime.timezone(datetime.timedelta(hours=8)))
        sent = now.isoformat(timespec="seconds")
        signed = self.key.sign(self.string(sent, body), padding.PKCS1v15(), hashes.SHA256())
        version = self.client["keys"][0]["version"]
        connection.request("POST", self.path, body, {
            "Content-Type": "application/json; charset=UTF-8", "Client-Id": self.client["id"], "Request-Time": sent,
            "Signature": f"algorithm=RSA256,keyVersion={version},signature={quote(base64.b64encode(signed), safe='')}",
        })
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != 200 or json.loads(text)["result"]["resultStatus"] != "S":
            raise Fault(f"{answer.status} {text}")
        signature = answer.headers["signature"].rsplit("signature=", 1)[1]
        self.peer.verify(
            base64.b64decode(unquote(signature)), self.string(answer.headers["response-time"], text),
            padding.PKCS1v15(), hashes.SHA256(),
        )

    def string(self, when, body):
        return f"POST {self.path}\n{self.client['id']}.{when}.".encode() + body

    def wait_for_more(self, count):
        goal = self.answered + count
        eventually(f"{count} more answers", lambda: self.answered >= goal or self.lost, timeout=60)

    def end(self):
        self.stop.set()
        for thread in self.threads:
            thread.join()


def run(number, rendered, binary, image, work, failed):
    cluster = load = None
    try:
        cluster = Cluster("rollout", number, pathlib.Path(rendered) / "postgres-tls.yaml", binary, image, work / "rollout")
        (workload,) = cluster.manifests.workloads()
        load = rehearse(cluster, workload, binary)
    except Fault as fault:
        failed.append(f"rollout: {fault}")
    except Exception:
        failed.append(f"rollout: {traceback.format_exc()}")
    finally:
        if load:
            load.stop.set()
        if cluster:
            cluster.stop()


def rehearse(cluster, workload, binary):
    template = workload["spec"]["template"]
    if workload["spec"]["strategy"]["rollingUpdate"] != {"maxSurge": 1, "maxUnavailable": 0}:
        raise Fault(f"another way of rolling than is rehearsed here: {workload['spec']['strategy']}")
    if cluster.manifests.replicas(workload) < PODS:
        raise Fault("too few replicas")
    database = Database(cluster, tomllib.loads(cluster.manifests.settings(template["spec"])))
    cluster.serve()
    cluster.migrate()

    def start(name):
        pod = Pod(cluster, template, name)
        cluster.pods.append(pod)
        return pod

    def ready(pod):
        eventually(f"{pod.name} is ready", pod.is_ready_or_fails, timeout=60)

    old = [start(f"old-{nth}") for nth in range(PODS)]
    for pod in old:
        ready(pod)
    cluster.complete(old[0])

    load = Load(cluster)
    try:
        load.wait_for_more(100)
        # the hook, and what a newer version's would leave behind, while the old version serves
        cluster.migrate()
        database.sql("ALTER TABLE payment ADD COLUMN of_a_newer_version integer")
        database.sql("UPDATE meta SET schema = schema + 1")
        said = old[0].execute("migrate", "--config", CONFIG, "--check")
        cluster.say(f"a schema of a newer version under the old one: migrate --check says {said}")
        load.wait_for_more(100)

        begun, ends = time.monotonic(), []

        def terminate(pod):
            def work():
                try:
                    ends.append((pod.name, pod.terminate()))
                except Fault as fault:
                    load.lost.append(str(fault))

            thread = threading.Thread(target=work)
            thread.start()
            return thread

        new, ending = [], []
        for pod in old:
            new.append(start(f"new-{len(new)}"))
            ready(new[-1])
            ending.append(terminate(pod))
        for thread in ending:
            thread.join()
        took = time.monotonic() - begun
        load.wait_for_more(100)
    finally:
        load.end()
    cluster.check()
    if load.lost:
        raise Fault(f"{len(load.lost)} of {len(load.lost) + load.answered} requests lost: {load.lost[:5]}")
    idle = [pod.name for pod in old + new if not load.service.connections.get(pod.name)]
    if idle:
        raise Fault(f"no connection ever went to {idle}")
    kept = int(database.sql("SELECT count(*) FROM payment"))
    if kept != load.answered:
        raise Fault(f"{load.answered} payments were cancelled, and the database has {kept}")
    verified = new[0].execute("verify", "--config", CONFIG)
    cluster.say(
        f"{load.answered} requests through {PODS} old and {PODS} new pods in {took:.0f} s, none lost, each answered S; longest "
        f"{load.longest * 1000:.0f} ms; {', '.join(f'{name} ended after {ended:.1f} s' for name, ended in ends)}"
    )
    cluster.say(verified.splitlines()[-1])

    # a schema that a program must know does not let an older one start, and the message says what to do
    database.sql("UPDATE meta SET least_schema = 99")
    refused = Pod(cluster, template, "too-old", probed=False)
    status, log = refused.process.wait(timeout=60), refused.log
    if status == 0 or "99" not in log.read_text():
        raise Fault(f"an older program on a schema that it must not use ended with {status}: {log.read_text()}")
    asked = new[0].launch(["migrate", "--config", CONFIG, "--check"], cluster.folder / "too-old-check.log").wait(timeout=60)
    if (status, asked) != (2, 2):
        raise Fault(f"on a schema that an older program must not use: start {status}, migrate --check {asked}")
    cluster.say(f"on a schema that forbids it: status {status}, {log.read_text().strip().splitlines()[-1]}")
    return load
