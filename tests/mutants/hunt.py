"""Builds the copy with the switches, sees which test comes to which mutant, and runs these until one of them fails.

See tests/mutants/run. What is known stays in target/mutants: which mutants the compiler refuses, how long each test takes and
what it comes to, and what became of each mutant.
"""

import argparse
import collections
import concurrent.futures
import hashlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
import tomllib

import switches

ROOT = pathlib.Path(__file__).resolve().parents[2]
HOME = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "mutants"
TREE = HOME / "tree"
ROOMS = {
    "domain": ["src/domain/**/*.rs"],
    # what decides whether a request is Alipay+'s and what is signed; the doctor's guesses (diagnose), the OpenAPI document
    # and what only counts and traces are not in it
    "bridge": [f"src/bridge/{it}.rs" for it in (
        "cancel_payment", "cancel_token", "checks", "commands", "envelope", "exchange", "front", "identity", "json", "keys",
        "keys/*", "media_type", "porter", "proof", "reply", "request_time", "seal", "sign_cache", "signature", "signer")],
    "engine": ["src/engine/**/*.rs"],
}
# Not run: they look at the sources, or they keep a database server that a killed run would leave behind.
NOT_RUN = re.compile(r"^(layering|documented|postgres|hsm|harness_works|failover|replicas|crash)::|postgres|softhsm|_hsm_")
# Tests that are tried of each room, beside all unit tests; `--every-test` tries the others too.
TESTS = {
    "domain": re.compile(
        r"^it (decisions|import|import_decisions|properties|reconcile_decisions|values)::|^it upkeep::every|^model "),
    "bridge": re.compile(
        r"^it (both_fronts|check_order|console|http_front|hostile_json|limits|openapi|reload|rotate|signatures|telemetry)::"),
    "engine": re.compile(r"^it (decisions|engine|import|properties|telemetry|both_fronts|console|limits|feed|asked)::|^simulation "),
}
AT_ONCE = 2
# Seconds of tests, by what they take without a mutant, that a mutant has to survive.
BUDGET_S = float(os.environ.get("BUDGET_S", "150"))
CHUNK_S = 4.0


def load(name, otherwise):
    file = HOME / name
    return json.loads(file.read_text()) if file.exists() else otherwise


def save(name, value):
    file = HOME / name
    new = file.with_suffix(".new")
    new.write_text(json.dumps(value, indent=1))
    new.replace(file)


def listed():
    files = [part for globs in ROOMS.values() for glob in globs for part in ("-f", glob)]
    sources = sorted((ROOT / "src").rglob("*.rs"))
    as_of = hashlib.sha256(b"".join(it.read_bytes() for it in sources) + repr(files).encode()).hexdigest()
    known = load("listed.json", {})
    if known.get("as_of") != as_of:
        said = subprocess.run(["cargo", "mutants", "--list", "--json", *files], cwd=ROOT, check=True, capture_output=True, text=True)
        known = {"as_of": as_of, "listed": json.loads(said.stdout)}
        save("listed.json", known)
    found = switches.mutants(ROOT, known["listed"])
    for number, mutant in enumerate(found):
        mutant.number = number
    return found


def room_of(mutant):
    return pathlib.PurePath(mutant.file).parts[1]


def equivalents(found):
    """Names of mutants that cannot be told from the original, with the reason; and entries that name none."""
    known, stale = {}, []
    for entry in tomllib.loads((ROOT / "tests/mutants/equivalent.toml").read_text()).get("equivalent", []):
        meant = [it for it in found if it.file == entry["file"] and it.text == entry["mutant"]
                 and it.source == entry.get("line", it.source) and it.which == entry.get("which", it.which)]
        assert entry["reason"].strip(), entry
        known.update((it.name, entry["reason"]) for it in meant)
        if not meant:
            stale.append(f'{entry["file"]}: {entry["mutant"]}')
    return known, stale


class Copy:
    """The tree with all mutants in it."""

    def __init__(self, found):
        self.found = found
        by_file = collections.defaultdict(list)
        for mutant in found:
            by_file[mutant.file].append(mutant)
        self.files = {file: switches.File((ROOT / file).read_text(), mutants) for file, mutants in by_file.items()}
        self.places = switches.Places()
        # name -> why it is not in the copy
        self.refused = {it.name: why for file in self.files.values() for it, why in file.refused}

    def write(self, made=None):
        said = subprocess.run(["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True).stdout
        wanted = {}
        for name in said.decode().split("\0"):
            if name and (ROOT / name).is_file() and not name.startswith("tests/mutants/"):
                wanted[name] = (ROOT / name).read_bytes()
        left_out = {it.number for it in self.found if it.name in self.refused}
        for name, file in self.files.items():
            text, places = file.written(left_out, made if made and made.file == name else None)
            wanted[name] = text.encode()
            self.places.set(name, places)
        wanted["src/lib.rs"] += b"pub mod mutant;\n"
        wanted["src/mutant.rs"] = switches.MODULE.replace("COUNT", str(len(self.found))).encode()
        TREE.mkdir(parents=True, exist_ok=True)
        for old in TREE.rglob("*"):
            if old.is_file() and str(old.relative_to(TREE)) not in wanted and old.name != "Cargo.lock":
                old.unlink()
        for name, text in wanted.items():
            file = TREE / name
            if not file.exists() or file.read_bytes() != text:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(text)
                file.chmod((ROOT / name).stat().st_mode & 0o777 if (ROOT / name).exists() else 0o644)

    def cargo(self, *arguments):
        """Runs it in the copy; its messages, and its status."""
        environment = {**os.environ, "CARGO_TARGET_DIR": str(HOME / "build")}
        run = subprocess.Popen(
            ["nice", "-n", os.environ.get("NICE", "5"), "cargo", *arguments, "--message-format=json"], cwd=TREE, env=environment, stdout=subprocess.PIPE, text=True)
        messages = [json.loads(line) for line in run.stdout if line.startswith("{")]
        return messages, run.wait()

    def build(self, made=None):
        """Builds it, without what the compiler refuses; the binaries of tests."""
        known = load("refused.json", {})
        self.refused.update((it.name, known[it.name]) for it in self.found if it.name in known)
        while True:
            self.write(made)
            # not `cargo check`: that would check all dependencies, beside building them
            targets = os.environ.get("TARGETS", "it model simulation").split()
            messages, status = self.cargo("test", "--no-run", "--lib", *(part for it in targets for part in ("--test", it)))
            if status == 0:
                break
            before = len(self.refused)
            other = []
            for message in (it["message"] for it in messages if it["reason"] == "compiler-message"):
                if message["level"] != "error" or not message["spans"]:
                    continue
                for span in sorted(message["spans"], key=lambda it: not it["is_primary"]):
                    about = self.places.around(span["file_name"], span["byte_start"], span["byte_end"])
                    if about:
                        for it in about:
                            self.refused.setdefault(it.name, message["message"].split("\n")[0])
                        break
                else:
                    other.append(message["rendered"])
            print(f"{len(self.refused)} mutants do not compile", flush=True)
            save("refused.json", {it.name: self.refused[it.name] for it in self.found if it.name in self.refused})
            if len(self.refused) == before:
                raise SystemExit("".join(other) or "the copy does not compile")
        binaries = {
            it["target"]["name"]: it["executable"] for it in messages
            if it["reason"] == "compiler-artifact" and it["profile"]["test"] and it["executable"]}
        save("built.json", {"mutants": [it.name for it in self.found], "binaries": binaries})
        return binaries

    def as_built(self):
        """The binaries of last time, whatever the tree has become since: as long as the mutants are the same."""
        built = load("built.json", {})
        if built.get("mutants") != [it.name for it in self.found]:
            raise SystemExit("these are other mutants than those that were built")
        self.refused = load("refused.json", {})
        return built["binaries"]


ALIVE = set()
LOCK = threading.Lock()


def run(binary, arguments, seconds, **environment):
    """What it said, or nothing if it had to be killed; and how long it took."""
    environment = {**os.environ, "RUST_BACKTRACE": "0", "ALIPAYPLUS_CANCEL_SIMULATION_SCHEDULES": "40", **environment}
    environment.pop("CI", None)
    begun = time.monotonic()
    started = subprocess.Popen(
        ["nice", "-n", os.environ.get("NICE", "5"), binary, *arguments], cwd=TREE, env=environment, start_new_session=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    with LOCK:
        ALIVE.add(started.pid)
    try:
        said, _ = started.communicate(timeout=seconds)
        return started.returncode, said, time.monotonic() - begun
    except subprocess.TimeoutExpired:
        kill(started.pid)
        started.wait()
        return None, "", time.monotonic() - begun
    finally:
        # nothing it started may stay
        kill(started.pid)
        with LOCK:
            ALIVE.discard(started.pid)


def kill(group):
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass


def measure(binaries, found, rooms, afresh):
    """Of each test, which mutants it comes to and how long it takes: {test: {seconds, reached}}."""
    known = {} if afresh else load("reached.json", {})
    tests = {}
    for target, binary in binaries.items():
        said = subprocess.run([binary, "--list", "--format", "terse"], cwd=TREE, check=True, capture_output=True, text=True).stdout
        names = [line.removesuffix(": test") for line in said.splitlines() if line.endswith(": test")]
        tests.update((f"{target} {name}", (binary, name)) for name in names if not NOT_RUN.search(name))
    known = {name: it for name, it in known.items() if name in tests}
    tests = {name: it for name, it in tests.items()
             if not rooms or not name.startswith("it ") and not name.startswith("simulation ") and not name.startswith("model ")
             or any(TESTS[room].search(name) for room in rooms)}
    # a test may come to more than it did when it was built last; those that are quick are asked again
    built = {binary: pathlib.Path(binary).stat().st_mtime for binary in binaries.values()}
    missing = [name for name, (binary, _) in tests.items() if name not in known
               or known[name]["seconds"] < 0.5 and known[name].get("built") != built[binary]]
    (HOME / "hits").mkdir(exist_ok=True)

    def one(name):
        binary, test = tests[name]
        file = HOME / "hits" / hashlib.sha256(name.encode()).hexdigest()[:16]
        file.unlink(missing_ok=True)
        status, said, seconds = run(binary, ["--exact", test], 240, MUTANT_REACHED=str(file))
        hits = {int(it) for it in file.read_text().split()} if file.exists() else set()
        file.unlink(missing_ok=True)
        return name, {"built": built[binary], "good": status == 0 and "1 passed" in said, "seconds": round(seconds, 3),
                      "reached": sorted(found[it].name for it in hits)}

    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        for done, (name, it) in enumerate(pool.map(one, missing), 1):
            known[name] = it
            if done % 100 == 0:
                print(f"{done} of {len(missing)} tests measured", flush=True)
                save("reached.json", known)
    save("reached.json", known)
    for name, it in known.items():
        if not it["good"]:
            print(f"left out, because it does not pass without a mutant: {name}")
    return tests, {name: it for name, it in known.items() if it["good"] and name in tests}


def chunks(names, known):
    """The tests in the order to run them, cheap ones first, some at a time: of one binary, and not for long."""
    open_, order = {}, []
    for name in sorted(names, key=lambda it: known[it]["seconds"]):
        target, seconds = name.split(" ")[0], known[name]["seconds"]
        chunk = open_.get(target)
        if chunk is None or chunk[1] + seconds > CHUNK_S:
            chunk = open_[target] = [[], 0.0]
            order.append(chunk)
        chunk[0].append(name)
        chunk[1] += seconds
    return order


def hunt(mutant, tests, known, reaching, wins):
    """What became of a mutant: (outcome, by what, seconds)."""
    names = reaching.get(mutant.name, [])
    if not names:
        return {"outcome": "not found", "by": "no test comes to it", "seconds": 0}
    begun, spent, cut = time.monotonic(), 0.0, ""
    order = chunks(names, known)
    # what found others of this file, first
    favourites = [it for it, _ in wins[mutant.file].most_common(12) if it in set(names) and known[it]["seconds"] < 5]
    for name in favourites[:6]:
        order.insert(0, [[name], known[name]["seconds"]])
    if favourites:
        order[:min(6, len(favourites))] = chunks(favourites[:6], known)
    for chunk, seconds in order:
        if spent > BUDGET_S:
            cut = f", {len(names)} tests come to it, stopped after {BUDGET_S:.0f} s of them"
            break
        spent += seconds
        binary = tests[chunk[0]][0]
        status, said, _ = run(
            binary, ["--exact", *(tests[it][1] for it in chunk), "--test-threads", "2"], 30 + 8 * seconds, MUTANT=str(mutant.number))
        if status == 0:
            continue
        target = chunk[0].split(" ")[0]
        failed = [f"{target} {it}" for it in re.findall(r"^test (\S+) .*?FAILED$", said, re.M)]
        failed = [it for it in failed if it in chunk] or ([] if status is None else chunk[:1])
        if not failed:
            return {"outcome": "found", "by": f"{chunk[0]}, which hangs", "seconds": round(time.monotonic() - begun, 1)}
        by = failed[0]
        # what came from a busy machine does not come twice
        if target != "alipayplus_cancel" and len(failed) < 3:
            again, _, _ = run(binary, ["--exact", tests[by][1]], 30 + 8 * known[by]["seconds"], MUTANT=str(mutant.number))
            if again == 0:
                continue
        with LOCK:
            wins[mutant.file][by] += 1
        return {"outcome": "found", "by": by, "seconds": round(time.monotonic() - begun, 1)}
    return {"outcome": "not found", "by": f"{len(names)} tests{cut}", "seconds": round(time.monotonic() - begun, 1)}


def score(found, outcomes, equal, refused):
    print(f"\n{'room':8} {'mutants':>7} {'do not compile':>14} {'equivalent':>10} {'found':>6} {'score':>8}")
    for room in ROOMS:
        mine = [it for it in found if room_of(it) == room]
        unviable = [it for it in mine if it.name in refused and it.name not in outcomes and it.name not in equal]
        alike = [it for it in mine if it.name in equal]
        tried = [it for it in mine if it.name not in equal and it.name in outcomes]
        good = [it for it in tried if outcomes[it.name]["outcome"] == "found"]
        open_ = len(mine) - len(unviable) - len(alike) - len(tried)
        if tried:
            rest = f"  ({open_} not tried)" if open_ else ""
            print(f"{room:8} {len(mine):7} {len(unviable):14} {len(alike):10} {len(good):6} {100 * len(good) / len(tried):7.1f}%{rest}")


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("rooms", nargs="*", metavar="ROOM")
    arguments.add_argument("--again", action="store_true")
    arguments.add_argument("--afresh", action="store_true")
    arguments.add_argument("--match", default="")
    arguments.add_argument("--check", action="store_true")
    arguments.add_argument("--as-built", action="store_true")
    arguments.add_argument("--every-test", action="store_true")
    arguments.add_argument("--refused", action="store_true")
    arguments.add_argument("--constants", action="store_true")
    given = arguments.parse_args()
    rooms = given.rooms or list(ROOMS)
    if unknown := set(rooms) - set(ROOMS):
        arguments.error(f"no such room: {', '.join(unknown)}; there are {', '.join(ROOMS)}")

    HOME.mkdir(parents=True, exist_ok=True)
    found = listed()
    equal, stale = equivalents(found)
    for it in stale:
        print(f"equivalent.toml names a mutant that is not there: {it}", file=sys.stderr)
    if stale:
        raise SystemExit(1)
    copy = Copy(found)
    if given.check:
        copy.write()
        unswitched = [it for it in found if copy.refused.get(it.name) == "no switch"]
        print(f"{len(found)} mutants, {len(equal)} of them equivalent, {len(unswitched)} cannot be switched")
        for it in unswitched:
            print(f"  {it}")
        raise SystemExit(1 if len(unswitched) * 20 > len(found) else 0)
    binaries = copy.as_built() if given.as_built else copy.build()
    print(f"{len(found)} mutants in one copy, {len(copy.refused)} of them do not compile", flush=True)
    if given.refused:
        for it in found:
            if it.name in copy.refused:
                print(f"{it}: {copy.refused[it.name]}")
        return
    tests, known = measure(binaries, found, [] if given.every_test else rooms, given.afresh)
    reaching = collections.defaultdict(list)
    for name, it in known.items():
        for reached in it["reached"]:
            reaching[reached].append(name)

    outcomes = load("outcomes.json", {})
    wins = collections.defaultdict(collections.Counter)
    if given.constants:
        missed = 0
        for mutant in found:
            if "in constants" not in copy.refused.get(mutant.name, "") or room_of(mutant) not in rooms or mutant.name in equal \
                    or given.match not in str(mutant) or given.again and outcomes.get(mutant.name, {}).get("outcome") == "found":
                continue
            # no switch tells who comes to it
            copy.build(mutant)
            outcomes[mutant.name] = outcome = hunt(mutant, tests, known, {mutant.name: list(known)}, wins)
            print(f"{outcome['outcome']}: {mutant}\n    {mutant.source}\n    {outcome['by']}", flush=True)
            missed += outcome["outcome"] != "found"
            save("outcomes.json", outcomes)
        copy.build()
        score(found, outcomes, equal, copy.refused)
        raise SystemExit(1 if missed else 0)
    todo = [it for it in found if room_of(it) in rooms and it.name not in copy.refused and it.name not in equal
            and given.match in str(it) and not (given.again and outcomes.get(it.name, {}).get("outcome") == "found")]
    # those that cost least first: what is long known to be found must not wait behind what nobody finds
    todo.sort(key=lambda it: min((known[name]["seconds"] for name in reaching.get(it.name, ())), default=0))
    print(f"{len(todo)} mutants to try, {len(known)} tests", flush=True)
    begun = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        running = {pool.submit(hunt, it, tests, known, reaching, wins): it for it in todo}
        try:
            for done, future in enumerate(concurrent.futures.as_completed(running), 1):
                mutant, outcome = running[future], future.result()
                outcomes[mutant.name] = outcome
                if outcome["outcome"] != "found":
                    print(f"NOT FOUND {mutant}\n          {mutant.source}\n          {outcome['by']}", flush=True)
                if done % 50 == 0 or done == len(todo):
                    print(f"{done} of {len(todo)}, {time.monotonic() - begun:.0f} s", flush=True)
                save("outcomes.json", outcomes)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            with LOCK:
                for pid in ALIVE:
                    kill(pid)
            raise
    outcomes = {it.name: outcomes[it.name] for it in found if it.name in outcomes}
    save("outcomes.json", outcomes)
    score(found, outcomes, equal, copy.refused)
    missed = [it for it in todo if outcomes[it.name]["outcome"] != "found"]
    raise SystemExit(1 if missed else 0)


if __name__ == "__main__":
    main()
