//! What settings name, read: keys, clients, certificates, hash keys.

use std::{fs, io, num::NonZeroU32, path::Path, sync::Arc};

use rustls::pki_types::ServerName;
use zeroize::Zeroizing;

use super::{StartError, store::database};
use crate::{
    bridge::{
        Client, ClientKey, Clients, Identity, Limits, Rates, Setup, keys,
        signer::{
            Signer,
            pkcs11::{About, AuthPin, KeyName, Location, TokenKey},
        },
    },
    config::{
        self, Allowed, IdentityKey, KeyState, LogFormat, MethodPattern, Role, Settings, StoreUrl,
    },
    engine::{HashRing, Tombstones},
    grpc::channel::{self, Channel, NoName, Place},
    layer::{
        caller_rate::Rule,
        identity::{Methods, Permissions, Row},
        overload::InFlight,
        rate_limit::{Bucket, Rate},
    },
    listen::BodyRoom,
    telemetry::{self, Metrics, Telemetry, label},
    tls,
};

/// Everything that the settings name for a role, except the store: read, checked, and not used yet.
pub(super) struct Material {
    /// The JSON front's.
    pub(super) front: Option<FrontMaterial>,
    /// The core's.
    pub(super) core: Option<CoreMaterial>,
    /// How cores elsewhere are reached; `None`: in plain text, or not at all.
    pub(super) core_tls: Option<channel::Tls>,
    /// Whose certificates the console takes, and its own.
    pub(super) console_tls: Tls,
    /// When the certificates end, in seconds since 1970, by the setting that names their file.
    pub(super) ends: Vec<(&'static str, i64)>,
}

/// What the JSON front needs.
pub(super) struct FrontMaterial {
    pub(super) setup: Setup,
    pub(super) tls: Tls,
}

/// What the core and the gRPC front need.
pub(super) struct CoreMaterial {
    pub(super) tombstones: Tombstones,
    pub(super) permissions: Permissions,
    pub(super) rates: Vec<Rule>,
    pub(super) room: InFlight,
    pub(super) bodies: BodyRoom,
    pub(super) tls: Tls,
    pub(super) ring: HashRing,
}

impl Material {
    /// Reads all of it. Blocks for as long as files and tokens take.
    pub(super) fn read(settings: &Settings, role: Role) -> Result<Self, StartError> {
        let ends = ends(settings, role);
        let console_tls = console_tls(settings)?;
        let mut material = Self { front: None, core: None, core_tls: None, console_tls, ends };
        if role.has_bridge() {
            let setup =
                Setup::new(clients(settings)?, identity(settings)?, bridge_limits(settings));
            material.front = Some(FrontMaterial { setup, tls: bridge_tls(settings)? });
        }
        if role.has_core() {
            material.core = Some(CoreMaterial {
                tombstones: tombstones(settings),
                permissions: permissions(settings),
                rates: call_rates(settings),
                room: call_room(settings),
                bodies: body_room(settings),
                tls: grpc_tls(settings)?,
                ring: hash_ring(settings)?,
            });
        } else {
            material.core_tls = core_tls(settings)?;
        }
        Ok(material)
    }
}

/// Reads everything that the settings name for the role, except the store, and uses nothing of it.
pub fn check(settings: &Settings, role: Role) -> Result<(), StartError> {
    endpoint(settings)?;
    Material::read(settings, role)?;
    if let (StoreUrl::Postgres(_), true) = (&settings.store.url, role.has_core()) {
        database(settings)?;
    }
    Ok(())
}

/// Starts what is told of what happens, and the process's log lines.
pub fn telemetry(settings: &Settings) -> Result<Telemetry, StartError> {
    let config = &settings.telemetry;
    let format = match config.log_format {
        LogFormat::Json => telemetry::Format::Json,
        LogFormat::Text => telemetry::Format::Text,
    };
    let told = telemetry::Settings {
        format,
        directives: &config.log_level,
        endpoint: endpoint(settings)?,
        sample_ratio: config.sample_ratio,
    };
    Telemetry::start(&told).map_err(StartError::Telemetry)
}

fn endpoint(settings: &Settings) -> Result<Option<telemetry::Endpoint>, StartError> {
    let config = &settings.telemetry;
    let Some(url) = config.otlp_endpoint.clone() else { return Ok(None) };
    let ca = config.otlp_ca_file.as_ref().map(|path| read("telemetry.otlp_ca_file", path));
    let ca = ca.transpose()?.map(|pem| pem.to_vec());
    Ok(Some(telemetry::Endpoint { url, ca }))
}

/// What the settings in use say about clients and their keys, and when the certificates in use end.
pub(super) fn observe(
    settings: &Settings,
    role: Role,
    ends: &[(&'static str, i64)],
    metrics: &Metrics,
) {
    let end = |&(setting, seconds): &(_, i64)| (vec![label("setting", setting)], seconds);
    metrics.certificate_not_after.tell(ends.iter().map(end).collect());
    if role.has_bridge() {
        observe_clients(&settings.clients, metrics);
    }
}

fn observe_clients(clients: &[config::Client], metrics: &Metrics) {
    let (mut keys, mut last_keys) = (Vec::new(), Vec::new());
    // a series that is not there yet cannot be seen to grow
    metrics.signature_failures.add(0, &[label("client", "unknown")]);
    for client in clients {
        let name = || label("client", client.id.as_str().to_owned());
        metrics.signature_failures.add(0, &[name()]);
        metrics.rate_limited.add(0, &[name(), label("front", "bridge")]);
        let ends = client.keys.iter().map(|key| {
            let version = label("version", key.version.clone());
            metrics.signature_verified.add(0, &[name(), version.clone()]);
            let end = key.not_after.map(|end| end.unix_ms.div_euclid(1_000));
            keys.extend(end.map(|end| (vec![name(), version], end)));
            end
        });
        let ends: Vec<Option<i64>> = ends.collect();
        // one that has no end makes all of it none
        let last = ends.into_iter().collect::<Option<Vec<_>>>().and_then(|it| it.into_iter().max());
        last_keys.extend(last.map(|last| (vec![name()], last)));
    }
    metrics.key_not_after.tell(keys);
    metrics.last_key_not_after.tell(last_keys);
}

/// When the certificates end that this role presents or trusts others by. One that does not say so is left out: what
/// uses it will tell.
fn ends(settings: &Settings, role: Role) -> Vec<(&'static str, i64)> {
    let mut ends = Vec::new();
    let mut tell = |setting, end: Option<i64>| ends.extend(end.map(|end| (setting, end)));
    if let Some(files) = settings.bridge.tls.as_ref().filter(|_| role.has_bridge()) {
        tell("bridge.tls.cert_file", tls::first_end(&files.cert_file));
        let ca = files.client_ca_file.as_deref();
        tell("bridge.tls.client_ca_file", ca.and_then(tls::last_end));
    }
    if let Some(files) = settings.grpc.tls.as_ref().filter(|_| role.has_core()) {
        tell("grpc.tls.cert_file", tls::first_end(&files.cert_file));
        tell("grpc.tls.client_ca_file", tls::last_end(&files.client_ca_file));
    }
    if let Some(files) = &settings.console.tls {
        tell("console.tls.cert_file", tls::first_end(&files.cert_file));
        tell("console.tls.client_ca_file", tls::last_end(&files.client_ca_file));
    }
    if let Some(files) = settings.bridge.core_tls.as_ref().filter(|_| !role.has_core()) {
        tell("bridge.core_tls.cert_file", tls::first_end(&files.cert_file));
        tell("bridge.core_tls.ca_file", tls::last_end(&files.ca_file));
    }
    ends
}

pub(super) fn read(setting: &str, path: &Path) -> Result<Zeroizing<Vec<u8>>, StartError> {
    let failed =
        |source| StartError::Read { setting: setting.to_owned(), path: path.to_owned(), source };
    fs::read(path).map(Zeroizing::new).map_err(failed)
}

/// Reads every key of ours, so that a bad staged one is found now and not when it is promoted. Blocks for as long as a
/// token takes.
fn identity(settings: &Settings) -> Result<Identity, StartError> {
    let mut active = None;
    for (place, key) in settings.identity.keys.iter().enumerate() {
        let signer = signer(place, key)?;
        if key.state == KeyState::Active {
            active = Some(Identity { version: key.version.clone(), signer });
        }
    }
    Ok(active.expect("the settings have exactly one active key: config checks it"))
}

/// One of our keys, from its file or its token.
///
/// # Panics
///
/// With a key that is in neither, which no settings have.
pub fn signer(place: usize, key: &IdentityKey) -> Result<Arc<dyn Signer>, StartError> {
    if let Some(token) = &key.pkcs11 {
        return token_key(place, token);
    }
    let path = key.file.as_ref().expect("a key is in a file or a token: config checks it");
    let setting = format!("identity.keys.{place}.file");
    let text = read(&setting, path)?;
    let parsed = keys::PrivateKey::parse(&*text);
    let parsed = parsed.map_err(|wrong| StartError::Key { setting, path: path.clone(), wrong })?;
    Ok(Arc::new(parsed))
}

fn token_key(place: usize, token: &config::Pkcs11) -> Result<Arc<dyn Signer>, StartError> {
    let setting = |name: &str| format!("identity.keys.{place}.pkcs11.{name}");
    let key = match (&token.key_label, &token.key_id) {
        (Some(label), _) => KeyName::Label(label.clone()),
        (None, id) => KeyName::Id(bytes_of(id.as_deref().unwrap_or_default())),
    };
    let location = Location {
        module: token.module.clone(),
        token_label: token.token_label.clone(),
        key,
        pin: pin(setting("pin_file"), &token.pin_file)?,
        sessions: token.sessions,
    };
    let opened = TokenKey::open(location).map_err(|source| {
        let name = match source.about() {
            About::Module => "module",
            About::Token => "token_label",
            About::Pin => "pin_file",
            About::Key if token.key_label.is_some() => "key_label",
            About::Key => "key_id",
        };
        StartError::Token { setting: setting(name), source }
    });
    Ok(Arc::new(opened?))
}

/// Of hex digits in pairs: config checks it.
fn bytes_of(hex: &str) -> Vec<u8> {
    let digits = hex.as_bytes().chunks(2).filter_map(|pair| std::str::from_utf8(pair).ok());
    digits.filter_map(|pair| u8::from_str_radix(pair, 16).ok()).collect()
}

/// A line of text; wiped when it is dropped.
fn pin(setting: String, path: &Path) -> Result<AuthPin, StartError> {
    let bytes = read(&setting, path)?;
    let not_text = |_| StartError::Read {
        setting,
        path: path.to_owned(),
        source: io::Error::other("it is not text"),
    };
    let line = std::str::from_utf8(&bytes).map_err(not_text)?.trim_end_matches(['\r', '\n']);
    Ok(AuthPin::from(line))
}

fn clients(settings: &Settings) -> Result<Clients, StartError> {
    let mut clients = Vec::new();
    for (place, client) in settings.clients.iter().enumerate() {
        let mut public = Vec::new();
        for (nth, key) in client.keys.iter().enumerate() {
            let setting = format!("clients.{place}.keys.{nth}.public_key_file");
            let text = read(&setting, &key.public_key_file)?;
            let parsed = keys::PublicKey::parse(&*text).map_err(|wrong| StartError::Key {
                setting,
                path: key.public_key_file.clone(),
                wrong,
            })?;
            public.push(ClientKey {
                version: key.version.as_str().into(),
                key: parsed,
                not_after: key.not_after,
            });
        }
        let rates = Rates {
            all: share(client.rate.per_second, client.rate.burst, settings),
            cancel_payment: client.cancel_payment_rate.as_ref().map(|it| quota(it, settings)),
            cancel_token: client.cancel_token_rate.as_ref().map(|it| quota(it, settings)),
        };
        clients.push(Client::new(
            client.id.clone(),
            only(&client.psp_ids),
            only(&client.acquirer_ids),
            public,
            rates,
        ));
    }
    Clients::new(clients).map_err(StartError::Identity)
}

/// Who has a quota of tombstones.
fn tombstones(settings: &Settings) -> Tombstones {
    let limited = |client: &config::Client| {
        let limit = client.tombstones.as_ref()?;
        Some((client.id.clone(), Bucket::new(quota(limit, settings))))
    };
    settings.clients.iter().filter_map(limited).collect()
}

fn quota(limit: &config::Quota, settings: &Settings) -> Rate {
    share(limit.per_second, limit.burst, settings)
}

/// This replica's share of a limit.
fn share(per_second: NonZeroU32, burst: NonZeroU32, settings: &Settings) -> Rate {
    Rate { per_second, burst }.shared_by(settings.limits.replicas)
}

fn only<T: Clone + Ord>(allowed: &Allowed<T>) -> Option<std::collections::BTreeSet<T>> {
    match allowed {
        Allowed::Any => None,
        Allowed::Only(ids) => Some(ids.clone()),
    }
}

/// A hash key's file holds raw bytes, or a line of printable text, which is taken without the line's end.
pub fn hash_ring(settings: &Settings) -> Result<HashRing, StartError> {
    let mut ring = Vec::new();
    for (place, path) in settings.tokens.hash_key_files.iter().enumerate() {
        let bytes = read(&format!("tokens.hash_key_files.{place}"), path)?;
        let line = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let text = line.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ');
        ring.push(Zeroizing::new(if text { line.to_vec() } else { bytes.to_vec() }));
    }
    HashRing::new(&ring.iter().map(|key| key.as_slice()).collect::<Vec<_>>())
        .map_err(StartError::HashKey)
}

/// Who may call what of gRPC.
fn permissions(settings: &Settings) -> Permissions {
    let row = |caller: &config::Caller| Row {
        sans: caller.sans.iter().map(|san| san.as_str().into()).collect(),
        methods: caller.methods.iter().map(methods).collect(),
        bridge: caller.bridge,
    };
    match settings.grpc.callers.as_slice() {
        [] => Permissions::Everybody,
        callers => Permissions::Rows(callers.iter().map(row).collect()),
    }
}

fn methods(pattern: &MethodPattern) -> Methods {
    match *pattern {
        MethodPattern::All => Methods::All,
        MethodPattern::Service(service) => Methods::Service(service.into()),
        MethodPattern::Method(service, method) => Methods::Method(service.into(), method.into()),
    }
}

/// How many calls each caller of gRPC may make.
fn call_rates(settings: &Settings) -> Vec<Rule> {
    let rule = |it: &config::CallRate| Rule {
        sans: it.sans.iter().map(|san| san.as_str().into()).collect(),
        methods: it.methods.iter().map(methods).collect(),
        rate: share(it.per_second, it.burst, settings),
    };
    settings.grpc.rates.iter().map(rule).collect()
}

/// How much room the gRPC front has.
fn call_room(settings: &Settings) -> InFlight {
    let (total, of_caller) = (settings.grpc.max_in_flight, settings.grpc.max_in_flight_per_caller);
    // callers behind one address are told apart by certificate; without one they share
    InFlight { total, per_source: total, per_client: of_caller }
}

/// How much time and room the messages have that come to the gRPC front.
fn body_room(settings: &Settings) -> BodyRoom {
    let limits = &settings.limits;
    BodyRoom {
        timeout: limits.body_timeout,
        bytes: limits.body_bytes_in_flight,
        bytes_per_source: limits.body_bytes_in_flight_per_source,
    }
}

pub(super) type Tls = Option<Arc<rustls::ServerConfig>>;

fn grpc_tls(settings: &Settings) -> Result<Tls, StartError> {
    mutual_tls(settings.grpc.tls.as_ref(), "grpc.tls", "h2")
}

fn console_tls(settings: &Settings) -> Result<Tls, StartError> {
    mutual_tls(settings.console.tls.as_ref(), "console.tls", "http/1.1")
}

fn mutual_tls(
    files: Option<&config::MutualTls>,
    setting: &'static str,
    protocol: &str,
) -> Result<Tls, StartError> {
    let Some(files) = files else { return Ok(None) };
    let clients = tls::Clients { ca: &files.client_ca_file, allowed_sans: &files.allowed_sans };
    let config = tls::server(&files.cert_file, &files.key_file, Some(clients), &[protocol]);
    config.map(Some).map_err(|source| StartError::Tls { setting, source })
}

fn bridge_tls(settings: &Settings) -> Result<Tls, StartError> {
    let Some(files) = &settings.bridge.tls else { return Ok(None) };
    let protocols: &[&str] =
        if settings.bridge.http2 { &["h2", "http/1.1"] } else { &["http/1.1"] };
    let clients = files.client_ca_file.as_deref().map(|ca| tls::Clients { ca, allowed_sans: &[] });
    let config = tls::server(&files.cert_file, &files.key_file, clients, protocols);
    config.map(Some).map_err(|source| StartError::Tls { setting: "bridge.tls", source })
}

fn bridge_limits(settings: &Settings) -> Limits {
    let limits = &settings.limits;
    let unproven = &limits.unproven_per_source;
    Limits {
        in_flight: InFlight {
            total: limits.max_in_flight,
            per_source: limits.max_in_flight_per_source,
            per_client: limits.max_in_flight_per_client,
        },
        unproven: Rate { per_second: unproven.per_second, burst: unproven.burst },
        trusted_proxies: limits.trusted_proxies,
        body_bytes: limits.body_bytes,
        body_bytes_in_flight: limits.body_bytes_in_flight,
        body_bytes_in_flight_per_source: limits.body_bytes_in_flight_per_source,
        body_timeout: limits.body_timeout,
        cancel_payment_deadline: limits.cancel_payment_deadline,
        cancel_token_deadline: limits.cancel_token_deadline,
        request_time_skew: limits.request_time_skew,
    }
}

/// How a bridge and its cores know each other; `None`: in plain text.
fn core_tls(settings: &Settings) -> Result<Option<channel::Tls>, StartError> {
    let config::Core::Remote(cores) = &settings.bridge.core else { return Ok(None) };
    let Some(files) =
        settings.bridge.core_tls.as_ref().filter(|_| cores[..].iter().any(|core| core.tls))
    else {
        return Ok(None);
    };
    let config = tls::client(&files.ca_file, &files.cert_file, &files.key_file, &["h2"])
        .map_err(|source| StartError::Tls { setting: "bridge.core_tls", source })?;
    let named = |name: &String| {
        let named = ServerName::try_from(name.clone());
        named.map_err(|_| StartError::CoreName {
            setting: "bridge.core_tls.server_name",
            wrong: NoName(name.clone()),
        })
    };
    let server_name = files.server_name.as_ref().map(named).transpose()?;
    Ok(Some(channel::Tls { config, server_name }))
}

/// The way to the cores elsewhere.
pub(super) fn channel(
    settings: &Settings,
    tls: Option<channel::Tls>,
) -> Result<Channel, StartError> {
    let places = match &settings.bridge.core {
        config::Core::InProcess => Vec::new(),
        config::Core::Remote(cores) => {
            cores.iter().map(|core| Place { host: core.host.clone(), port: core.port }).collect()
        }
    };
    Channel::start(places, tls)
        .map_err(|wrong| StartError::CoreName { setting: "bridge.core", wrong })
}
