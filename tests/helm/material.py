"""What the manifests only refer to: the contents of Secrets, of ConfigMaps that are not the chart's, of CSI volumes.

Nobody tells what a Secret's key should hold but the setting that names its file. So the settings are read out of the
rendered ConfigMaps, each file that one names is followed through the pod's volumes to its source, and the source gets
what that setting needs: keys by the binary's `keys generate`, certificates of one authority. A source that no setting
names, and a file that no volume has, are faults of the chart.
"""

import datetime
import ipaddress
import pathlib
import secrets
import subprocess
import tomllib
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

SETTINGS = "/etc/alipayplus-cancel"
SETTINGS_FILE = "alipayplus-cancel.toml"


class Fault(Exception):
    """The manifests are wrong, or what was started with them does not do what it should."""


class Authority:
    """One authority, and its certificates by what they are for."""

    def __init__(self):
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._make("authority", [], self.key, issuer=None)
        self.made = {}

    def pem(self):
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def _make(self, name, names, key, issuer):
        now = datetime.datetime.now(datetime.timezone.utc)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer.subject if issuer else subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName([general(name) for name in names]), critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def pair(self, purpose, names):
        """Certificate and key in PEM; the same ones for the same purpose."""
        if purpose not in self.made:
            key = ec.generate_private_key(ec.SECP256R1())
            certificate = self._make(purpose, names, key, self.certificate)
            pkcs8 = key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            self.made[purpose] = certificate.public_bytes(serialization.Encoding.PEM), pkcs8
        return self.made[purpose]


def general(name):
    if "://" in name:
        return x509.UniformResourceIdentifier(name)
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


class Material:
    def __init__(self, binary, folder):
        self.binary, self.folder = binary, pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.authority = Authority()
        self.by_source = {}
        self.names = {"grpc": [], "bridge": [], "core_tls": []}
        self.password = secrets.token_urlsafe(16)
        self.pin = "4711"

    def rsa(self, name):
        """The paths of a private and a public key, by `keys generate`; the same ones for the same name."""
        prefix = self.folder / name
        private, public = pathlib.Path(f"{prefix}.private.pem"), pathlib.Path(f"{prefix}.public.pem")
        if not private.exists():
            subprocess.run([self.binary, "keys", "generate", "--out", prefix], check=True, capture_output=True)
        return private, public

    def client(self, client, version, half):
        return self.rsa(f"client-{client}-{version}")[half].read_bytes()

    def learn(self, source, content, why):
        """source: what a file is read from, as ("secret", name, key)."""
        known = self.by_source.setdefault(source, content)
        if known != content:
            raise Fault(f"{source} is named for {why} and for something else, too")

    def of(self, source):
        if source not in self.by_source:
            raise Fault(f"{source} is mounted, and no setting or argument names it")
        return self.by_source[source]

    def files_of_settings(self, text):
        """Each file that a settings file names: its absolute path, what it must hold, and which setting says so."""
        settings = tomllib.loads(text)
        found = []

        def add(path, content, why):
            if path is not None:
                found.append((path if path.startswith("/") else f"{SETTINGS}/{path}", content, why))

        def pair(table, purpose):
            names = self.names[purpose]
            certificate, key = self.authority.pair(purpose, names)
            add(table.get("cert_file"), certificate, f"{purpose} cert_file")
            add(table.get("key_file"), key, f"{purpose} key_file")
            for name in ("client_ca_file", "ca_file"):
                add(table.get(name), self.authority.pem(), f"{purpose} {name}")

        for key in settings.get("identity", {}).get("keys", []):
            private = self.rsa(f"wallet-{key['version']}")[0]
            add(key.get("file"), private.read_bytes(), "identity.keys file")
            add(key.get("pkcs11", {}).get("pin_file"), self.pin.encode(), "identity.keys pkcs11.pin_file")
        for nth, path in enumerate(settings.get("tokens", {}).get("hash_key_files", [])):
            hash_key = self.folder / f"token-hash-{nth}"
            if not hash_key.exists():
                hash_key.write_text(secrets.token_hex(32))
            add(path, hash_key.read_bytes(), "tokens.hash_key_files")
        for client in settings.get("clients", []):
            for key in client.get("keys", []):
                content = self.client(client["id"], key["version"], 1)
                add(key["public_key_file"], content, "clients.keys public_key_file")
        pair(settings.get("grpc", {}).get("tls", {}), "grpc")
        pair(settings.get("bridge", {}).get("tls", {}), "bridge")
        pair(settings.get("bridge", {}).get("core_tls", {}), "core_tls")
        store = settings.get("store", {})
        add(store.get("password_file"), self.password.encode(), "store.password_file")
        query = parse_qs(urlsplit(store.get("url", "")).query)
        certificate, key = self.authority.pair("database-client", [])
        contents = {"sslrootcert": self.authority.pem(), "sslcert": certificate, "sslkey": key}
        for name, content in contents.items():
            add(query.get(name, [None])[0], content, f"store.url {name}")
        add(settings.get("telemetry", {}).get("otlp_ca_file"), self.authority.pem(), "telemetry.otlp_ca_file")
        return found

    def files_of_arguments(self, args):
        """The same of `call`'s arguments."""
        after = dict(zip(args, args[1:]))
        if "call" not in args:
            return []
        client, version = after["--client-id"], after.get("--key-version", "1")
        wallet = self.rsa("wallet-1")[1].read_bytes()
        contents = {
            "--key": self.client(client, version, 0), "--peer-key": wallet, "--ca-file": self.authority.pem()
        }
        return [(after[flag], content, flag) for flag, content in contents.items() if flag in after]
