//! What settings name, read: keys, clients, certificates, hash keys.

use std::{fs, num::NonZeroU32, path::Path, sync::Arc};

use governor::{Quota, RateLimiter};
use rustls::pki_types::ServerName;
use zeroize::Zeroizing;

use super::{StartError, store::database};
use crate::{
    bridge::{Client, ClientKey, Clients, Identity, keys},
    config::{self, Allowed, KeyState, Role, Settings, StoreUrl},
    engine::{HashRing, Tombstones},
    grpc::channel::{self, Channel, NoName, Place},
    tls,
};

/// Reads everything that the settings name for the role, except the store, and uses nothing of it.
pub fn check(settings: &Settings, role: Role) -> Result<(), StartError> {
    if role.has_bridge() {
        identity(settings)?;
        clients(settings)?;
        bridge_tls(settings)?;
    }
    if !role.has_core() {
        return core_tls(settings).map(drop);
    }
    grpc_tls(settings)?;
    if let StoreUrl::Postgres(_) = settings.store.url {
        database(settings)?;
    }
    hash_ring(settings).map(drop)
}

pub(super) fn read(setting: &str, path: &Path) -> Result<Zeroizing<Vec<u8>>, StartError> {
    let failed =
        |source| StartError::Read { setting: setting.to_owned(), path: path.to_owned(), source };
    fs::read(path).map(Zeroizing::new).map_err(failed)
}

/// Reads every key of ours, so that a bad staged one is found now and not when it is promoted.
pub(super) fn identity(settings: &Settings) -> Result<Identity, StartError> {
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

pub(super) fn clients(settings: &Settings) -> Result<Clients, StartError> {
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
        let rate = quota(client.rate.per_second, client.rate.burst);
        clients.push(Client::new(
            client.id.clone(),
            only(&client.psp_ids),
            only(&client.acquirer_ids),
            public,
            rate,
        ));
    }
    Clients::new(clients).map_err(StartError::Identity)
}

/// Who has a quota of tombstones.
pub(super) fn tombstones(settings: &Settings) -> Tombstones {
    let limited = |client: &config::Client| {
        let limit = client.tombstones.as_ref()?;
        let limiter = RateLimiter::direct(quota(limit.per_second, limit.burst));
        Some((client.id.clone(), Arc::new(limiter)))
    };
    settings.clients.iter().filter_map(limited).collect()
}

fn quota(per_second: NonZeroU32, burst: NonZeroU32) -> Quota {
    Quota::per_second(per_second).allow_burst(burst)
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

pub(super) type Tls = Option<Arc<rustls::ServerConfig>>;

pub(super) fn grpc_tls(settings: &Settings) -> Result<Tls, StartError> {
    let Some(files) = &settings.grpc.tls else { return Ok(None) };
    let clients = tls::Clients { ca: &files.client_ca_file, allowed_sans: &files.allowed_sans };
    let config = tls::server(&files.cert_file, &files.key_file, Some(clients), &["h2"]);
    config.map(Some).map_err(|source| StartError::Tls { setting: "grpc.tls", source })
}

pub(super) fn bridge_tls(settings: &Settings) -> Result<Tls, StartError> {
    let Some(files) = &settings.bridge.tls else { return Ok(None) };
    let protocols: &[&str] =
        if settings.bridge.http2 { &["h2", "http/1.1"] } else { &["http/1.1"] };
    let clients = files.client_ca_file.as_deref().map(|ca| tls::Clients { ca, allowed_sans: &[] });
    let config = tls::server(&files.cert_file, &files.key_file, clients, protocols);
    config.map(Some).map_err(|source| StartError::Tls { setting: "bridge.tls", source })
}

/// How a bridge and its cores know each other; `None`: in plain text.
pub(super) fn core_tls(settings: &Settings) -> Result<Option<channel::Tls>, StartError> {
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
pub(super) fn channel(settings: &Settings) -> Result<Channel, StartError> {
    let tls = core_tls(settings)?;
    let places = match &settings.bridge.core {
        config::Core::InProcess => Vec::new(),
        config::Core::Remote(cores) => {
            cores.iter().map(|core| Place { host: core.host.clone(), port: core.port }).collect()
        }
    };
    Channel::start(places, tls)
        .map_err(|wrong| StartError::CoreName { setting: "bridge.core", wrong })
}
