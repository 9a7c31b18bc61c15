//! Every setting: its name, unit, default and meaning. The only reader of the environment.
//!
//! A value is taken from the command line, else from the environment, else from the TOML file, else it is the default
//! that stands here:
//!
//! - `ALIPAYPLUS_CANCEL__LIMITS__MAX_IN_FLIGHT=100` sets `limits.max_in_flight`: two underscores stand between levels,
//!   one belongs to a name. `…__CLIENTS__0__RATE__BURST=5` sets that of the first client, and the index after the last
//!   one adds one. An acquirer's id in `…__POLICY__CANCEL_WINDOWS__<acquirerId>__GRACE` keeps its case. A list is
//!   written `a,b` or `["a", "b"]`; a whole table or list of tables is written as TOML writes it on one line.
//! - What names no setting is an error, in the file as in the environment.
//! - Durations are texts with a unit (`"6500ms"`, `"5s"`, `"15m"`, `"1h"`, `"30d"`); sizes are bytes, and their names say so.
//! - The name of a file starts at the folder of the settings file; in a variable or a flag, at the current folder.
//! - Secrets stand in files that settings ending in `_file` name (or `identity.keys.file`, `tokens.hash_key_files`),
//!   never here; a database URL's password is never printed.
//!
//! Never panics on what it reads, and never names a secret in an error.

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use crate::domain::{
    consumer::ConsumerName,
    id::{AcquirerId, ClientId, PspId},
    key::Partitions,
    policy::Policy,
    time::Timestamp,
};

mod cores;
pub mod edit;
mod error;
mod load;
mod methods;
mod overlay;
mod print;
mod read;
mod role;
mod rules;
mod shape;
mod tree;
mod values;

pub use cores::{Core, CoreAddress};
pub use error::{ConfigError, Problem};
pub use load::Loaded;
pub use methods::MethodPattern;
pub use overlay::{ENVIRONMENT_PREFIX, environment, wants_no_colour};
pub use role::Role;
pub use tree::Origin;
pub use values::{
    Allowed, ConsoleAccess, DatabaseUrl, Durability, KeyState, LogFormat, PathPrefix, StoreUrl,
};

use read::{at_least_one, if_set, section, within};
use rules::{
    client_keys, collector, distinct_clients, distinct_consumers, distinct_prefixes, filled,
    header_name, key_id, named, names, ratio, signing_keys,
};
use values::{key_version, log_directive};

/// Shortest wait that means something.
const MS: Duration = Duration::from_millis(1);
/// Longest wait that means something.
const HOUR: Duration = Duration::from_hours(1);
/// The unit of retention.
const DAY: Duration = Duration::from_hours(24);
/// Most of anything that is counted.
const MANY: usize = 10_000_000;
/// Most bytes of anything: 1 TiB.
const BYTES: usize = 1 << 40;

section! {
    /// All of them.
    Settings {
        /// The gRPC front, for the wallet's own services and for bridges elsewhere.
        grpc: Grpc;
        /// The signed JSON front, for Alipay+.
        bridge: Bridge;
        /// Probes and metrics.
        admin: Admin;
        /// Pages for people.
        console: Console;
        /// The state.
        store: Store;
        /// Who we are.
        identity: Identity;
        /// How tokens are kept.
        tokens: Tokens;
        /// The feed of events.
        feed: Feed;
        /// Who may call the signed JSON front.
        clients: Vec<Client> where distinct_clients();
        /// The rules of decisions.
        policy: Policy;
        /// How much is taken on, and for how long.
        limits: Limits;
        /// What is told of what happens.
        telemetry: Telemetry;
        /// How changes of these settings are noticed.
        reload: Reload;
        /// How it ends.
        shutdown: Shutdown;
    }
}

section! {
    /// `[grpc]`
    Grpc {
        /// Where to listen. Port 0 takes a free one.
        listen: SocketAddr = "127.0.0.1:50051";
        /// Without it, plain text, and everybody who reaches the port is trusted.
        tls: Option<MutualTls>;
        /// Whether the reflection service answers.
        reflection: bool = "true";
        /// Who may call what, by certificate. None: whoever is let in may call everything.
        callers: Vec<Caller>;
        /// How many calls each caller may make. None: as many as there is room for.
        rates: Vec<CallRate>;
        /// Calls at once.
        max_in_flight: usize = "4096" where within(1, MANY);
        /// Calls at once of one caller: whom its certificate names, at one address; without a certificate, the address.
        max_in_flight_per_caller: usize = "2048" where within(1, MANY);
    }
}

section! {
    /// `[[grpc.rates]]`: how many calls of some methods together each caller may make. All that fit count.
    CallRate {
        /// Subject alternative names (DNS or URI) of the callers; empty: everybody. Each is counted apart.
        sans: Vec<String> = "" where filled();
        /// `Service/Method`, `Service/*` or `*`.
        methods: Vec<MethodPattern> where at_least_one("a rate of no method counts nothing");
        /// Calls a second, on average.
        per_second: NonZeroU32;
        /// Calls at once.
        burst: NonZeroU32;
    }
}

section! {
    /// `[[grpc.callers]]`: what whoever has one of these names may call. Several that fit add up; whom none fits may call
    /// nothing but health and reflection.
    Caller {
        /// Subject alternative names (DNS or URI), exactly as they stand in certificates.
        sans: Vec<String> where names();
        /// `Service/Method`, `Service/*` or `*`.
        methods: Vec<MethodPattern> where at_least_one("a caller that may call nothing needs no row");
        /// Whether it is a bridge of ours on another machine: only from one is it believed which client of Alipay+'s asks.
        bridge: bool = "false";
    }
}

section! {
    /// `[grpc.tls]`, `[console.tls]`: callers prove themselves by certificate.
    MutualTls {
        /// Our certificate chain, PEM.
        cert_file: PathBuf;
        /// Its private key, PEM.
        key_file: PathBuf;
        /// The authorities whose certificates are taken, PEM.
        client_ca_file: PathBuf;
        /// Subject alternative names (DNS or URI) of which a caller must have one; empty takes every certificate of
        /// these authorities.
        allowed_sans: Vec<String> = "" where filled();
    }
}

section! {
    /// `[bridge]`
    Bridge {
        /// Where to listen. Port 0 takes a free one.
        listen: SocketAddr = "127.0.0.1:8080";
        /// What stands before the tails that Alipay+ publishes (`/v1/payments/cancelPayment`); each is served.
        path_prefixes: Vec<PathPrefix> = "/aps/api" where distinct_prefixes();
        /// Without it, plain text: for a proxy in front that ends TLS and rewrites nothing.
        tls: Option<BridgeTls>;
        /// Whether HTTP/2 is offered beside HTTP/1.1.
        http2: bool = "false";
        /// Where the core is: `in-process`, or (`--role bridge`) one `https://host:port` or more, with commas between them.
        /// A name is asked for its addresses again and again, and each address is a core.
        core: Core = "in-process";
        /// How a bridge and the cores know each other. Needed for https.
        core_tls: Option<CoreTls>;
    }
}

section! {
    /// `[bridge.tls]`
    BridgeTls {
        /// Our certificate chain, PEM.
        cert_file: PathBuf;
        /// Its private key, PEM.
        key_file: PathBuf;
        /// The authorities one of which must have signed the caller's certificate, PEM. Unset: no certificate is asked.
        client_ca_file: Option<PathBuf>;
    }
}

section! {
    /// `[bridge.core_tls]`
    CoreTls {
        /// The authorities one of which must have signed a core's certificate, PEM.
        ca_file: PathBuf;
        /// The bridge's certificate chain, PEM.
        cert_file: PathBuf;
        /// Its private key, PEM.
        key_file: PathBuf;
        /// The name that a core's certificate must have; unset: the host that `bridge.core` names it by.
        server_name: Option<String>;
    }
}

section! {
    /// `[admin]`
    Admin {
        /// Where to listen, always in plain text. Port 0 takes a free one.
        listen: SocketAddr = "127.0.0.1:9090";
    }
}

section! {
    /// `[console]`: pages for people, which only read.
    Console {
        /// Who may look: nobody (`off`); whoever comes from this very machine, as `kubectl port-forward` does (`local`);
        /// whom a proxy names that lets in only users it knows (`proxy`); whoever has a certificate (`certificate`).
        access: ConsoleAccess = "off";
        /// Where to listen. Unset: beside the probes, at `admin.listen`, in plain text. Must be set for `certificate`.
        listen: Option<SocketAddr>;
        /// Of `certificate`: whose.
        tls: Option<MutualTls>;
        /// Of `proxy`: the header in which it names the user.
        user_header: String = "x-forwarded-email" where header_name();
        /// Of `proxy`: the addresses that it comes from. From anywhere else nobody is let in, whatever the header says.
        proxies: Vec<IpAddr> = "127.0.0.1,::1" where at_least_one("or nobody comes through it");
        /// The wallets that are searched when nobody says which, beside those of `clients.psp_ids`.
        psp_ids: Vec<PspId> = "";
    }
}

section! {
    /// `[store]`
    Store {
        /// `sqlite:///` and an absolute file name; or `postgres://user@host1:5432,host2:5432/database`, of which one host is
        /// the primary, with `?sslmode=verify-full&sslrootcert=…` where the network is not our own.
        url: StoreUrl = "sqlite:///var/lib/alipayplus-cancel/state.db";
        /// The database user's password, a line of text; counts before one in the URL.
        password_file: Option<PathBuf>;
        /// 1 to 1024; fixed at the first migration.
        partitions: Partitions = "64";
        /// What a commit must survive before it is answered: `local`, a crash of the database's server; `replicated`, its
        /// loss: where commits do not wait for a synchronous standby, nothing is decided. PostgreSQL only.
        durability: Durability = "local";
        /// Whether the service brings the schema up to date when it starts; if not, `migrate` does. The embedded store
        /// always does.
        migrate_at_start: bool = "true";
        /// Transactions side by side, each with a connection of its own. PostgreSQL only.
        workers: usize = "3" where within(1, 256);
        /// Connections for everything else: the feed, probes, upkeep. PostgreSQL only.
        spare_connections: usize = "4" where within(1, 256);
    }
}

section! {
    /// `[identity]`
    Identity {
        /// The keys that sign our answers.
        keys: Vec<IdentityKey> where signing_keys().of_bridges();
    }
}

section! {
    /// `[[identity.keys]]`
    IdentityKey {
        /// What `keyVersion` says of it; 1 to 64 of `[A-Za-z0-9_.-]`, unique.
        version: String where key_version();
        /// The private key, PEM or base64; RSA of 2048 bits or more. Either this or `pkcs11`.
        file: Option<PathBuf>;
        /// A key that stays in its token.
        pkcs11: Option<Pkcs11>;
        /// Exactly one is active.
        state: KeyState = "active";
    }
}

section! {
    /// `[identity.keys.pkcs11]`: an RSA key of 2048 bits or more in an HSM, a smart card or SoftHSM.
    Pkcs11 {
        /// The vendor's PKCS#11 library.
        module: PathBuf;
        /// The token's label.
        token_label: String where named();
        /// The key's label (`CKA_LABEL`). Either this or `key_id`.
        key_label: Option<String> where if_set(named());
        /// The key's id (`CKA_ID`), in hex.
        key_id: Option<String> where if_set(key_id());
        /// The user's PIN, a line of text.
        pin_file: PathBuf;
        /// Sessions at once, and so signatures.
        sessions: usize = "4" where within(1, 256);
    }
}

section! {
    /// `[tokens]`
    Tokens {
        /// The keys under which tokens are hashed, at least 32 bytes each. Add at the end; never take one out.
        hash_key_files: Vec<PathBuf> = "" where at_least_one(
            "tokens are only stored as hashes under such a key; `openssl rand -hex 32` makes one"
        ).of_cores();
    }
}

section! {
    /// `[feed]`
    Feed {
        /// Names of consumers without whose acknowledgement nothing is purged; empty: nothing is.
        required_consumers: Vec<ConsumerName> = "" where distinct_consumers();
        /// How old an event is at least when it is purged.
        retention: Duration = "30d" where within(MS, DAY.saturating_mul(3_650));
        /// How often there is a look at what may be purged.
        purge_interval: Duration = "1m" where within(MS, HOUR);
        /// How long a stream says nothing at most: then it says that it lives.
        keep_alive: Duration = "15s" where within(MS, HOUR);
    }
}

section! {
    /// `[[clients]]`
    Client {
        /// Alipay+'s Client-Id: 1 to 64 of `[A-Za-z0-9_-]`, unique.
        id: ClientId;
        /// The wallets that it may act for; `["*"]` is any.
        psp_ids: Allowed<PspId>;
        /// The acquirers that it may act for; `["*"]` is any.
        acquirer_ids: Allowed<AcquirerId> = "*";
        /// How many requests it may make, of all APIs together.
        rate: Rate;
        /// How many cancelPayment beside that. Unset: as many as `rate` allows.
        cancel_payment_rate: Option<Quota>;
        /// How many cancelToken beside that. Unset: as many as `rate` allows.
        cancel_token_rate: Option<Quota>;
        /// How many payments and tokens it may cancel that nobody told us of: each leaves a tombstone for ever. Unset: as
        /// many as its rate allows.
        tombstones: Option<Quota>;
        /// Its public keys; at least one, at most three that have not ended.
        keys: Vec<ClientKey> where client_keys().of_bridges();
    }
}

section! {
    /// `[clients.rate]`
    Rate {
        /// Requests a second, on average.
        per_second: NonZeroU32 = "500";
        /// Requests at once.
        burst: NonZeroU32 = "1000";
    }
}

section! {
    /// `[limits.unproven_per_source]`
    UnprovenRate {
        /// Requests a second, on average.
        per_second: NonZeroU32 = "1000";
        /// Requests at once.
        burst: NonZeroU32 = "10000";
    }
}

section! {
    /// `[clients.tombstones]`, `[clients.cancel_payment_rate]`, `[clients.cancel_token_rate]`
    Quota {
        /// How many a second, on average.
        per_second: NonZeroU32;
        /// How many at once.
        burst: NonZeroU32;
    }
}

section! {
    /// `[[clients.keys]]`
    ClientKey {
        /// The `keyVersion` that Alipay+ sends; 1 to 64 of `[A-Za-z0-9_.-]`, unique within the client.
        version: String where key_version();
        /// The public key, PEM or base64; RSA of 2048 bits or more.
        public_key_file: PathBuf;
        /// From then on it is retired. Unset: it does not end.
        not_after: Option<Timestamp>;
    }
}

section! {
    /// `[limits]`
    Limits {
        /// Requests at once.
        max_in_flight: usize = "4096" where within(1, MANY);
        /// Requests at once from one address.
        max_in_flight_per_source: usize = "3584" where within(1, MANY);
        /// Requests at once of one client at one address, so that one client's flood leaves room for another's.
        max_in_flight_per_client: usize = "3072" where within(1, MANY);
        /// Requests of one address that prove nothing: no client, or a signature that does not verify. Beyond it, what
        /// comes from there is turned away before any RSA work, for as long.
        unproven_per_source: UnprovenRate;
        /// Proxies in front that add to `X-Forwarded-For` whom they see: the address of a request is that many from the
        /// right. 0: its connection's.
        trusted_proxies: usize = "0" where within(0, 16);
        /// Replicas that share the rates of clients and their APIs, `tombstones` and `grpc.rates`: each takes its part,
        /// rounded up. With an autoscaler set the least number.
        replicas: NonZeroU32 = "1";
        /// Longest body, in bytes. A legal request can have 240 KB, its `passThroughInfo` being escaped.
        body_bytes: usize = "524288" where within(1024, BYTES);
        /// Bytes of all bodies at once.
        body_bytes_in_flight: usize = "67108864" where within(1024, BYTES);
        /// Bytes of all bodies at once from one address.
        body_bytes_in_flight_per_source: usize = "16777216" where within(1024, BYTES);
        /// Connections at once.
        connections: usize = "10000" where within(1, MANY);
        /// Connections at once from one address.
        connections_per_source: usize = "1024" where within(1, MANY);
        /// From the end of a request's head to its answer. Alipay+ waits 8 s.
        cancel_payment_deadline: Duration = "6500ms" where within(MS, HOUR);
        /// From the end of a request's head to its answer. Alipay+ waits 5 s.
        cancel_token_deadline: Duration = "3500ms" where within(MS, HOUR);
        /// For any other gRPC method whose caller names no deadline of its own (at most a minute).
        default_deadline: Duration = "5s" where within(MS, HOUR);
        /// From accepting a connection to its first byte.
        first_byte_timeout: Duration = "5s" where within(MS, HOUR);
        /// For a request's head.
        head_timeout: Duration = "10s" where within(MS, HOUR);
        /// For a request's body, all of it.
        body_timeout: Duration = "5s" where within(MS, HOUR);
        /// For sending an answer.
        write_timeout: Duration = "10s" where within(MS, HOUR);
        /// For the next request on a connection.
        idle_timeout: Duration = "75s" where within(MS, HOUR);
        /// Longest head, in bytes.
        head_bytes: usize = "65536" where within(8192, 1 << 24);
        /// Commands that wait for a commit; one more is turned away.
        queue: usize = "8192" where within(1, MANY);
        /// How long a command waits for its commit to begin; one that waited longer is turned away. Well below the
        /// deadlines, so that what is answered is answered in time.
        queue_wait: Duration = "3s" where within(MS, HOUR);
        /// Most commands in one commit.
        batch: usize = "512" where within(1, 65_536);
        /// How far `Request-Time` may be from now, either way. Unset: as far as it likes.
        request_time_skew: Option<Duration> where if_set(within(MS, HOUR.saturating_mul(24)));
    }
}

section! {
    /// `[telemetry]`
    Telemetry {
        /// How log lines look.
        log_format: LogFormat = "json";
        /// A level, or directives such as `info,alipayplus_cancel::store=debug`.
        log_level: String = "info" where log_directive();
        /// Where traces, metrics and logs go by OTLP over gRPC: `http://host:4317` or `https://host:4317`. Unset: nowhere.
        otlp_endpoint: Option<String> where if_set(collector());
        /// The authorities of the collector's certificate, PEM. Unset: the system's.
        otlp_ca_file: Option<PathBuf>;
        /// How many of the traces that begin here are recorded, 0 to 1; one that comes in with a request is, if its
        /// caller says so.
        sample_ratio: f64 = "1.0" where ratio();
    }
}

section! {
    /// `[reload]`
    Reload {
        /// How often there is a look whether the settings file or a file it names has changed. `0s`: never, only SIGHUP
        /// reloads.
        interval: Duration = "10s" where within(Duration::ZERO, HOUR);
    }
}

section! {
    /// `[shutdown]`
    Shutdown {
        /// From failing readiness to accepting no more: as long as the balancer takes to notice.
        drain_delay: Duration = "0s" where within(Duration::ZERO, HOUR);
        /// From then on, for what was accepted; what is left then is dropped.
        grace: Duration = "25s" where within(Duration::ZERO, HOUR);
    }
}

impl ClientKey {
    /// Whether it is retired by then.
    pub fn has_ended(&self, now: Timestamp) -> bool {
        self.not_after.is_some_and(|end| end <= now)
    }
}

fn now() -> Timestamp {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let unix_ms = i64::try_from(since_1970.as_millis()).unwrap_or(i64::MAX);
    Timestamp { unix_ms }
}

#[cfg(test)]
mod tests;
