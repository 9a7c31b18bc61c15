//! What settings name, read: keys, clients, certificates, hash keys.

use std::{fs, num::NonZeroU32, path::Path, sync::Arc};

use zeroize::Zeroizing;

use super::{StartError, store::database};
use crate::{
    bridge::{Client, ClientKey, Clients, Identity, Limits, Rates, Setup, keys},
    config::{self, Allowed, KeyState, MethodPattern, Settings, StoreUrl},
    engine::{HashRing, Tombstones},
    layer::{
        identity::{Methods, Permissions, Row},
        overload::InFlight,
        rate_limit::{Bucket, Rate},
    },
    tls,
};

/// Everything that the settings name, except the store: read, checked, and not used yet.
pub(super) struct Material {
    pub(super) setup: Setup,
    pub(super) tombstones: Tombstones,
    pub(super) permissions: Permissions,
    pub(super) grpc_tls: Tls,
    pub(super) bridge_tls: Tls,
    pub(super) ring: HashRing,
}

impl Material {
    /// Reads all of it.
    pub(super) fn read(settings: &Settings) -> Result<Self, StartError> {
        Ok(Self {
            setup: Setup::new(clients(settings)?, identity(settings)?, bridge_limits(settings)),
            tombstones: tombstones(settings),
            permissions: permissions(settings),
            grpc_tls: grpc_tls(settings)?,
            bridge_tls: bridge_tls(settings)?,
            ring: hash_ring(settings)?,
        })
    }
}

/// Reads everything that the settings name, except the store, and uses nothing of it.
pub fn check(settings: &Settings) -> Result<(), StartError> {
    Material::read(settings)?;
    if let StoreUrl::Postgres(_) = settings.store.url {
        database(settings)?;
    }
    Ok(())
}

pub(super) fn read(setting: &str, path: &Path) -> Result<Zeroizing<Vec<u8>>, StartError> {
    let failed =
        |source| StartError::Read { setting: setting.to_owned(), path: path.to_owned(), source };
    fs::read(path).map(Zeroizing::new).map_err(failed)
}

/// Reads every key of ours, so that a bad staged one is found now and not when it is promoted.
fn identity(settings: &Settings) -> Result<Identity, StartError> {
    let mut active = None;
    for (place, key) in settings.identity.keys.iter().enumerate() {
        let setting = format!("identity.keys.{place}.file");
        let text = read(&setting, &key.file)?;
        let parsed = keys::PrivateKey::parse(&*text).map_err(|wrong| StartError::Key {
            setting,
            path: key.file.clone(),
            wrong,
        })?;
        if key.state == KeyState::Active {
            active = Some(Identity { version: key.version.clone(), key: parsed });
        }
    }
    Ok(active.expect("the settings have exactly one active key: config checks it"))
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
                version: key.version.clone(),
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
    let methods = |pattern: &MethodPattern| match *pattern {
        MethodPattern::All => Methods::All,
        MethodPattern::Service(service) => Methods::Service(service.into()),
        MethodPattern::Method(service, method) => Methods::Method(service.into(), method.into()),
    };
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

pub(super) type Tls = Option<Arc<rustls::ServerConfig>>;

fn grpc_tls(settings: &Settings) -> Result<Tls, StartError> {
    let Some(files) = &settings.grpc.tls else { return Ok(None) };
    let clients = tls::Clients { ca: &files.client_ca_file, allowed_sans: &files.allowed_sans };
    let config = tls::server(&files.cert_file, &files.key_file, Some(clients), &["h2"]);
    config.map(Some).map_err(|source| StartError::Tls { setting: "grpc.tls", source })
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
