"""Starts the real binary out of rendered manifests, as a cluster would: migration Job, pods, probes, `helm test`, a signed
cancelPayment through the Service, and the end of every pod. For tests/helm/start.

Of workloads with many replicas two cores and one of the others are started; tests/helm/rollout.py has two of each.
"""

import pathlib
import sys
import threading
import time
import tomllib
import traceback

import rollout
from cluster import Cluster, Database, Image, hsm, loopback_up
from material import Fault


CONFIG = "/etc/alipayplus-cancel/alipayplus-cancel.toml"
# a small machine: the clusters come up one after the other, and drain side by side
TURNS = threading.Semaphore(2)


def install(cluster):
    """What `helm install` does, with what the cluster has to have before."""
    hsm(cluster)
    for workload in cluster.manifests.workloads():
        text = cluster.manifests.settings(workload["spec"]["template"]["spec"]) or ""
        if "postgres://" in text and not cluster.databases:
            Database(cluster, tomllib.loads(text))
    cluster.serve()
    cluster.migrate()
    cluster.start(most=lambda name: 2 if name.endswith("-core") else 1)
    core = next(pod for pod in cluster.pods if pod.settings.get("tokens"))
    cluster.call("before-import", expected="U")
    cluster.complete(core)
    return core


def back_up(cluster, core):
    """As docs/operations.md has it for a cluster: a copy in the volume, made in the running pod."""
    core.execute("backup", "--config", CONFIG, "--to", "/var/lib/alipayplus-cancel/backup.db")
    copies = list((cluster.folder / "claims").glob("*/backup.db"))
    if len(copies) != 1 or not copies[0].stat().st_size:
        raise Fault(f"backup left {copies}")
    cluster.say(f"backup in the running pod: {copies[0].stat().st_size} bytes")


def move(cluster, core, kept):
    """As docs/upgrade.md has it: from the volume of the stopped pod into a database, by a pod with both."""
    folder = cluster.folder / "move"
    at = "/move/"
    url = f"postgres://cancel@db.move:5432/cancel?sslmode=verify-full&sslrootcert={at}ca.crt"
    database = Database(cluster, {"store": {"url": url}})
    for name, content in {"ca.crt": cluster.material.authority.pem(), "password": cluster.material.password.encode()}.items():
        cluster.write(folder / name, content, 0o440, core.user[1])
    core.mounts.append([str(folder), at.rstrip("/"), True])
    core.env["ALIPAYPLUS_CANCEL__STORE__PASSWORD_FILE"] = f"{at}password"
    said = core.execute(
        "migrate-store", "--config", CONFIG, "--from", "sqlite:///var/lib/alipayplus-cancel/state.db", "--to", url
    )
    found = int(database.sql("SELECT count(*) FROM payment"))
    if found != kept:
        raise Fault(f"{kept} payments were decided, and {found} are in the database: {said}")
    cluster.say(f"moved to PostgreSQL: {said.splitlines()[-1]}")


def helm_test(cluster):
    def weight(pod):
        return int(pod["metadata"]["annotations"].get("helm.sh/hook-weight", "0"))

    tests = [pod for pod in cluster.manifests.of("Pod") if cluster.manifests.hooked(pod, "test")]
    for test in sorted(tests, key=weight):
        name = test["metadata"]["name"]
        said = cluster.run_pod(test["spec"], name).splitlines()
        cluster.say(f"helm test {name}: {said[-1] if said else 'ended with 0'}")
    return len(tests)


def drain(cluster, pod, next_ones):
    """While it drains it is alive, not ready, and still answers who comes."""

    def meanwhile():
        end = time.monotonic() + 5
        while (asked := pod.ask("readiness"))[0] != 503:
            if time.monotonic() > end:
                raise Fault(f"{pod.name}: readiness answers {asked} after SIGTERM")
        if "draining" not in asked[1]:
            raise Fault(f"{pod.name}: readiness answers {asked}")
        if pod.ask("liveness")[0] != 200:
            raise Fault(f"{pod.name}: it is not alive while it drains: a kubelet would kill it")
        if "json" in pod.ports:
            # its Service does not know yet
            cluster.call(f"draining-{pod.name}", expected="S")
        next_ones.release(len(cluster.pods))

    try:
        took = pod.terminate(meanwhile)
    finally:
        # of a failure nobody waits
        next_ones.release(len(cluster.pods))
    cluster.say(f"{pod.name}: ended with 0, {took:.1f} s after SIGTERM, of {pod.spec['terminationGracePeriodSeconds']} s")


def all_at_once(work, items):
    failed = []

    def run(item):
        try:
            work(item)
        except Exception as error:  # told below, of all of them
            failed.append(error)

    threads = [threading.Thread(target=run, args=(item,)) for item in items]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def one(cluster):
    begun = time.monotonic()
    with TURNS:
        core = install(cluster)
    url = cluster.call("start-1")
    cluster.call("start-1")
    tested = helm_test(cluster)
    if not tested:
        raise Fault("no pods for helm test")
    unowned = [pod.name for pod in cluster.pods if pod.ask("startup")[0] != 200 or pod.ask("readiness")[0] != 200]
    if unowned:
        raise Fault(f"not ready: {unowned}")
    embedded = not cluster.databases
    if embedded:
        back_up(cluster, core)
    cluster.check()
    cluster.say(
        f"{len(cluster.pods)} pods ready, cancelPayment S through {url}, {tested} test pods, {time.monotonic() - begun:.1f} s"
    )
    # from the outside in: a bridge whose cores all drain has nobody to ask
    next_ones = threading.Semaphore(0)
    bridges = [pod for pod in cluster.pods if "json" in pod.ports]

    def end(pod):
        if pod not in bridges:
            next_ones.acquire()
        drain(cluster, pod, next_ones)

    all_at_once(end, cluster.pods)
    if core.fault:
        raise Fault(core.fault)
    if embedded:
        # start-1, and one while it drained; in onboarding nothing is decided
        move(cluster, core, kept=2)


def main(rendered, binary, work):
    loopback_up()
    work = pathlib.Path(work)
    image = Image(binary, work / "image")
    files = sorted(pathlib.Path(rendered).glob("*.yaml"))
    failed, clusters = [], []

    def run(number, file):
        cluster = None
        try:
            cluster = Cluster(file.stem, number, file, binary, image, work / file.stem)
            clusters.append(cluster)
            one(cluster)
        except Fault as fault:
            failed.append(f"{file.stem}: {fault}")
        except Exception:
            failed.append(f"{file.stem}: {traceback.format_exc()}")
        finally:
            if cluster:
                cluster.stop()

    # the longest one first
    threads = [threading.Thread(target=rollout.run, args=(len(files) + 1, rendered, binary, image, work, failed))]
    threads += [threading.Thread(target=run, args=item) for item in enumerate(files, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for fault in failed:
        print(f"FAULT {fault}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
