"""What each value may be: the source of values.schema.json. `tests/helm/run --write` makes that file of this one and of the
comments in values.yaml.

Every table is closed, so a typo is refused, and told what would have been right. What hangs on several values, or deserves
a better sentence, is in templates/_validate.tpl. There is no place for a secret in here, on purpose.
"""

DNS_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
DNS_NAME = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
FILE_KEY = r"^[-._a-zA-Z0-9]+$"
PATH = r"^[-._a-zA-Z0-9][-._/a-zA-Z0-9]*$"
VERSION = r"^[A-Za-z0-9_.-]{1,64}$"


def table(required=(), **properties):
    """A closed table; a name ends in _ where it is a word of Python."""
    properties = {name.removesuffix("_"): schema for name, schema in properties.items()}
    # propertyNames beside additionalProperties: only the first says which names there are
    closed = {"type": "object", "additionalProperties": False, "propertyNames": {"enum": sorted(properties)}}
    return closed | ({"required": list(required)} if required else {}) | {"properties": properties}


def entries(of, **more):
    return {"type": "array", "items": of} | more


def text(pattern=None, **more):
    return {"type": "string"} | ({"pattern": pattern} if pattern else {}) | more


def choice(*of):
    return {"enum": list(of)}


def count(least=0, most=None):
    return {"type": "integer", "minimum": least} | ({"maximum": most} if most is not None else {})


def by_name(of):
    return {"type": "object", "additionalProperties": of}


def quota(required=("per_second", "burst")):
    return table(required, per_second=count(1), burst=count(1))


FLAG = {"type": "boolean"}
DURATION = text(r"^[0-9]+(ms|s|m|h|d)$")
TEXTS = entries(text(minLength=1))
STRING_MAP = by_name({"type": "string"})
# as Kubernetes has them; the API server and the strict check of the rendered objects look inside
KUBERNETES = {"type": "object"}
KUBERNETES_LIST = entries(KUBERNETES)
# a number is refused with a sentence by _validate.tpl
QUANTITY = {"type": ["string", "number"]}
QUANTITIES = table(cpu=QUANTITY, memory=QUANTITY, **{"ephemeral-storage": QUANTITY})
NO_PRIVATE_KEY = {"not": {"pattern": "PRIVATE KEY"}}

IN_SECRET = table(("name", "key"), name=text(DNS_NAME), key=text(FILE_KEY))
# no path leaves its volume
IN_CSI = table(("volume", "path"), volume=text(DNS_LABEL), path=text(PATH) | {"not": {"pattern": r"\.\."}})
PEM = text(r"^-----BEGIN (CERTIFICATE|PUBLIC KEY|RSA PUBLIC KEY)-----\n") | NO_PRIVATE_KEY


DEFS = {}


def define(name, schema):
    """A schema that many places have, once; each place refers to it."""
    DEFS[name] = schema
    return {"$ref": f"#/$defs/{name}"}


def reference(name, least=1, **kinds):
    return define(name, table(**kinds) | {"minProperties": least, "maxProperties": 1})


IN_SECRET, IN_CSI = define("inSecret", IN_SECRET), define("inCsi", IN_CSI)
SECRET = dict(secret=IN_SECRET, csi=IN_CSI)
PUBLIC = SECRET | dict(configMap=IN_SECRET, pem=PEM)
# what only Secrets and CSI volumes may hold
SECRET_FILE, MAYBE_SECRET_FILE = reference("secretFile", **SECRET), reference("maybeSecretFile", 0, **SECRET)
# certificates and public keys
PUBLIC_FILE, MAYBE_PUBLIC_FILE = reference("publicFile", **PUBLIC), reference("maybePublicFile", 0, **PUBLIC)
# a test's pod has no ConfigMap of ours for what stands in the values
TESTS_FILE = reference("testsFile", 0, **SECRET, configMap=IN_SECRET)


RESOURCES = define("resources", table(requests=QUANTITIES, limits=QUANTITIES))
WINDOW = define("window", table(
    day_offset=count(0, 365), time=text(r"^[0-2][0-9]:[0-5][0-9]:[0-5][0-9]$"), utc_offset=text(r"^[+-][0-1][0-9]:[0-5][0-9]$"),
    grace=DURATION, duration=DURATION))
METHODS = entries(text(r"^(\*|[A-Za-z]+/(\*|[A-Za-z]+))$"), minItems=1)

SETTINGS = table(
    grpc=table(
        reflection=FLAG, max_in_flight=count(1), max_in_flight_per_caller=count(1),
        tls=table(cert_file=PUBLIC_FILE, key_file=SECRET_FILE, client_ca_file=PUBLIC_FILE, allowed_sans=TEXTS),
        callers=entries(table(("sans", "methods"), sans=entries(text(minLength=1), minItems=1), methods=METHODS, bridge=FLAG)),
        rates=entries(table(("methods", "per_second", "burst"), sans=TEXTS, methods=METHODS, per_second=count(1), burst=count(1)))),
    bridge=table(
        path_prefixes=entries(text(r"^(/[-A-Za-z0-9._~!$&'()*+,;=:@]+)*$"), minItems=1, uniqueItems=True), http2=FLAG,
        tls=table(cert_file=PUBLIC_FILE, key_file=SECRET_FILE, client_ca_file=PUBLIC_FILE),
        core_tls=table(ca_file=PUBLIC_FILE, cert_file=PUBLIC_FILE, key_file=SECRET_FILE, server_name=text(DNS_NAME))),
    # `certificate` wants a port of its own, which the chart's Services do not have
    console=table(access=choice("off", "local", "proxy"), user_header=text(r"^[-!#$%&'*+.^_`|~0-9A-Za-z]+$"),
                  proxies=entries(text(minLength=1), minItems=1), psp_ids=TEXTS),
    store=table(partitions=count(1, 1024), durability=choice("local", "replicated"), workers=count(1, 256),
                spare_connections=count(1, 256)),
    identity=table(keys=entries(table(
        ("version",), version=text(VERSION), state=choice("active", "staged", "retired"), file=SECRET_FILE,
        pkcs11=table(("module", "token_label", "pin_file"), module=text("^/"), token_label=text(minLength=1),
                     key_label=text(minLength=1), key_id=text("^([0-9a-fA-F]{2})+$"), pin_file=SECRET_FILE,
                     sessions=count(1, 256)))), ),
    tokens=table(hash_key_files=entries(SECRET_FILE)),
    feed=table(required_consumers=entries(text(VERSION), uniqueItems=True), retention=DURATION, purge_interval=DURATION,
               keep_alive=DURATION),
    clients=entries(table(
        ("id", "psp_ids"), id=text(r"^[A-Za-z0-9_-]{1,64}$"), psp_ids=TEXTS | {"minItems": 1}, acquirer_ids=TEXTS | {"minItems": 1},
        rate=quota(()), cancel_payment_rate=quota(), cancel_token_rate=quota(), tombstones=quota(),
        keys=entries(table(("version", "public_key_file"), version=text(VERSION), public_key_file=PUBLIC_FILE,
                           not_after=text(r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T"))))),
    policy=table(acquirer_check=choice("enforce", "observe"), cancel_window=WINDOW, cancel_windows=by_name(WINDOW)),
    limits=table(
        **{name: count(1) for name in (
            "max_in_flight", "max_in_flight_per_source", "max_in_flight_per_client", "replicas", "connections",
            "connections_per_source", "queue")},
        **{name: count(1024) for name in ("body_bytes", "body_bytes_in_flight", "body_bytes_in_flight_per_source")},
        **{name: DURATION for name in (
            "cancel_payment_deadline", "cancel_token_deadline", "default_deadline", "first_byte_timeout", "head_timeout",
            "body_timeout", "write_timeout", "idle_timeout", "queue_wait", "request_time_skew")},
        trusted_proxies=count(0, 16), head_bytes=count(8192, 1 << 24), batch=count(1, 65_536),
        unproven_per_source=quota(())),
    telemetry=table(
        log_format=choice("json", "text"), log_level=text(minLength=1), otlp_endpoint=text(r"^https?://[-A-Za-z0-9._:\[\]]+/?$"),
        otlp_ca_file=PUBLIC_FILE, sample_ratio={"type": "number", "minimum": 0, "maximum": 1}),
    reload=table(interval=DURATION),
    shutdown=table(drain_delay=DURATION, grace=DURATION),
)

POD_VALUES = dict(
    replicas=count(), resources=RESOURCES,
    autoscaling=table(enabled=FLAG, minReplicas=count(1), maxReplicas=count(1), cpuPercent=count(0, 1000), inFlight=count()),
    disruptionBudget=table(enabled=FLAG, maxUnavailable={"anyOf": [count(1), text(r"^[0-9]+%$")]}),
    topologySpread=table(whenUnsatisfiable=choice("ScheduleAnyway", "DoNotSchedule"), keys=TEXTS),
    terminationGracePeriodSeconds=count(), labels=STRING_MAP, annotations=STRING_MAP, nodeSelector=STRING_MAP,
    tolerations=KUBERNETES_LIST, affinity=KUBERNETES, priorityClassName=text(), runtimeClassName=text(),
    extraEnv=entries(table(("name",), name=text(r"^[A-Za-z_][A-Za-z0-9_]*$"), value=text() | NO_PRIVATE_KEY, valueFrom=KUBERNETES)),
    extraVolumes=entries({"type": "object", "required": ["name"]}),
    extraVolumeMounts=entries({"type": "object", "required": ["name", "mountPath"]}),
)
# of a tier, over those of `pods`
TIER_PODS = define("pods", table(**POD_VALUES))
ROUTE = table(enabled=FLAG, parentRefs=KUBERNETES_LIST, hostnames=TEXTS, annotations=STRING_MAP)
PORT = count(1, 65_535)

VALUES = table(
    # Helm's own, where the chart is another one's part
    global_=KUBERNETES,
    nameOverride=text(), fullnameOverride=text(), commonLabels=STRING_MAP,
    mode=choice("single", "two-tier"),
    image=table(repository=text(minLength=1), tag=text(), digest=text(r"^(sha256:[0-9a-f]{64})?$"),
                pullPolicy=choice("IfNotPresent", "Always", "Never")),
    imagePullSecrets=entries(table(("name",), name=text(DNS_NAME))),
    store=table(
        kind=choice("sqlite", "postgres"),
        sqlite=table(size=text(r"^[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti)$"), storageClass=text(),
                     accessMode=choice("ReadWriteOnce", "ReadWriteOncePod")),
        postgres=table(
            # what needs no escaping in a URL, and has no room for a password
            hosts=entries(text(r"^[-A-Za-z0-9.]+:[0-9]+$")), database=text(r"^[A-Za-z0-9_.-]*$"), user=text(r"^[A-Za-z0-9_.-]*$"),
            password=MAYBE_SECRET_FILE, sslmode=choice("verify-full", "disable"), sslrootcert=MAYBE_PUBLIC_FILE,
            sslcert=MAYBE_PUBLIC_FILE, sslkey=MAYBE_SECRET_FILE)),
    allowPlaintextGrpc=FLAG,
    settings=SETTINGS,
    pods=table(**POD_VALUES),
    core=table(enabled=FLAG, pods=TIER_PODS),
    bridge=table(enabled=FLAG, coreUrls=entries(text(r"^https://[-A-Za-z0-9._]+:[0-9]+$")), pods=TIER_PODS),
    podSecurity=table(runAsUser=count(1), runAsGroup=count(1), fsGroup=count(1)),
    serviceAccount=table(create=FLAG, name=text(), annotations=STRING_MAP),
    service=table(
        listenAddress=choice("0.0.0.0", "[::]"),
        json=table(type=choice("ClusterIP", "NodePort", "LoadBalancer"), port=PORT, annotations=STRING_MAP,
                   loadBalancerSourceRanges=TEXTS, externalTrafficPolicy=choice("", "Cluster", "Local")),
        grpc=table(type=choice("ClusterIP", "NodePort", "LoadBalancer"), port=PORT, headless=FLAG, annotations=STRING_MAP)),
    networkPolicy=table(
        enabled=FLAG, **{name: KUBERNETES_LIST for name in (
            "jsonFrom", "grpcFrom", "adminFrom", "dnsTo", "databaseTo", "otlpTo", "coreTo", "extraIngress", "extraEgress")}),
    ingress=table(enabled=FLAG, className=text(), annotations=STRING_MAP, hosts=TEXTS, tls=KUBERNETES_LIST),
    gateway=table(json=ROUTE, grpc=ROUTE, tlsRouteApiVersion=choice(
        "gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1alpha3", "gateway.networking.k8s.io/v1alpha2")),
    migration=table(enabled=FLAG, activeDeadlineSeconds=count(1), backoffLimit=count(), resources=RESOURCES),
    externalSecrets=entries(table(
        ("name", "storeRef", "data"), name=text(DNS_NAME),
        storeRef=table(("name",), name=text(DNS_NAME), kind=choice("SecretStore", "ClusterSecretStore")),
        refreshInterval=text(r"^[0-9]+[smh]$"),
        data=entries(table(("key", "remoteKey"), key=text(FILE_KEY), remoteKey=text(minLength=1), property=text()), minItems=1))),
    csi=table(driver=text(DNS_NAME), volumes=entries(table(
        ("name",), name=text(DNS_LABEL), secretProviderClass=text(DNS_NAME), provider=text(DNS_LABEL),
        parameters=by_name(text() | NO_PRIVATE_KEY)))),
    metrics=table(
        annotations=FLAG,
        serviceMonitor=table(enabled=FLAG, labels=STRING_MAP, interval=DURATION, scrapeTimeout=DURATION),
        prometheusRule=table(enabled=FLAG, runbookUrlBase=text(), labels=STRING_MAP),
        dashboards=table(enabled=FLAG, labels=STRING_MAP, annotations=STRING_MAP)),
    tests=table(enabled=FLAG, call=table(
        enabled=FLAG, clientId=text(), keyVersion=text(VERSION), key=MAYBE_SECRET_FILE, peerKey=TESTS_FILE,
        ca=TESTS_FILE, pspId=text(), acquirerId=text(), paymentRequestId=text(minLength=1, maxLength=64))),
)
