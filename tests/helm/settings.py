"""Rendered settings, read by the real binary as the kubelet would hand them to it: the pod's volumes are laid out in a
folder, with keys and certificates made for the purpose, and `config check` has to be content.
"""

import hashlib
import os
import pathlib
import re
import subprocess

CONFIG = "/etc/alipayplus-cancel"
CSI = "/mnt/secrets-store"
# A key in an HSM needs the HSM: it is asked for by the tests of the service (tests/it/hsm.rs), so here a file stands in.
PKCS11 = re.compile(r"\n\[identity\.keys\.pkcs11\]\n(?:[^\[\n].*\n)*")


class Material:
    """Keys and certificates by the name of what they are for; each is made once."""

    def __init__(self, binary, folder):
        self.binary, self.folder = binary, folder
        folder.mkdir()
        self._made = {}

    def of(self, key, other=""):
        """What the file `key` of a Secret or ConfigMap holds; `other` tells apart two of one name."""
        if key.endswith((".crt", ".key")):
            return self._certificate(key.removesuffix(".crt").removesuffix(".key"))[key.rsplit(".", 1)[1] == "key"]
        if "token-hash" in key:
            return hashlib.sha256(key.encode()).hexdigest()
        if key in ("password", "pin"):
            return "not-a-secret"
        if key.endswith(".pem"):
            private, public = self._pair(f"{other}-{key.removesuffix('.pem').removesuffix('.private').removesuffix('.public')}")
            return private if key.endswith(".private.pem") else public
        raise ValueError(f"what is in {key}?")

    def _pair(self, name):
        def make(prefix):
            subprocess.run([self.binary, "keys", "generate", "--out", prefix], check=True, capture_output=True)
            return tuple(pathlib.Path(f"{prefix}.{part}.pem").read_text() for part in ("private", "public"))

        return self._once("pair", name, make)

    def _certificate(self, _):
        # one that signs itself will do for all: `config check` reads them and asks nobody
        def make(prefix):
            subprocess.run(
                ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
                 "-subj", "/CN=test", "-addext", "subjectAltName=DNS:test", "-keyout", f"{prefix}.key", "-out", f"{prefix}.crt"],
                check=True, capture_output=True)
            return tuple(pathlib.Path(f"{prefix}.{part}").read_text() for part in ("crt", "key"))

        return self._once("certificate", "all", make)

    def _once(self, kind, name, make):
        if (kind, name) not in self._made:
            self._made[kind, name] = make(str(self.folder / f"{kind}-{name}"))
        return self._made[kind, name]


def lay_out_files(spec, folder, material):
    """Writes what the pod's projected volume `config` has of Secrets and ConfigMaps that are not of the release."""
    volume = next(v for v in spec["volumes"] if v["name"] == "config")
    for source in volume["projected"]["sources"]:
        (_, of), = source.items()
        for item in of.get("items", []):
            write(folder / "config" / item["path"], material.of(item["key"], of["name"]))


def lay_out(spec, objects, folder, material):
    """Writes that, the settings, and what the pod's CSI volumes hold; returns the settings file."""
    lay_out_files(spec, folder, material)
    config = folder / "config"
    volume = next(v for v in spec["volumes"] if v["name"] == "config")
    own = next(of["name"] for source in volume["projected"]["sources"] for of in source.values() if "items" not in of)
    data = next(o for o in objects if o["kind"] == "ConfigMap" and o["metadata"]["name"] == own)["data"]
    for name, text in data.items():
        write(config / name, text)
    settings = config / "alipayplus-cancel.toml"
    text = PKCS11.sub('\nfile = "stand-in.private.pem"\n', settings.read_text())
    if "stand-in" in text:
        write(config / "stand-in.private.pem", material.of("stand-in.private.pem"))
    for path in re.findall(rf'"{CSI}/([^"]+)"', text):
        write(folder / "csi" / path, material.of(os.path.basename(path)))
    write(settings, text.replace(f"{CONFIG}/", f"{config}/").replace(f"{CSI}/", f"{folder}/csi/"))
    return settings


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def check(binary, spec, objects, folder, material):
    """What `config check` says, and whether it is content."""
    settings = lay_out(spec, objects, folder, material)
    args = spec["containers"][0]["args"]
    role = args[args.index("--role") + 1] if "--role" in args else ("core" if args[0] == "migrate" else "all")
    run = subprocess.run([binary, "config", "check", "--config", settings, "--role", role], capture_output=True, text=True, timeout=60)
    return run.returncode == 0, run.stdout + run.stderr
