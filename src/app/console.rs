//! The console, out of what runs in this process.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc};

use crate::{
    admin::console::{Access, ClientKey, Console, Standing},
    bridge::Bridge,
    config::{Allowed, ConsoleAccess, Settings},
    grpc::client::look::Look,
    telemetry::Telemetry,
    watch_list::WatchList,
};

/// Where it listens, if it is shown and not beside the probes.
pub(super) fn listens_at(settings: &Settings) -> Option<SocketAddr> {
    settings.console.listen.filter(|_| settings.console.access != ConsoleAccess::Off)
}

/// The console, if somebody may look: into the core of this process, and at the clients of its bridge.
pub(super) fn build(
    settings: &Settings,
    core: Option<(Look, WatchList)>,
    bridge: Option<Bridge>,
    telemetry: &Telemetry,
) -> Option<Arc<Console>> {
    let config = &settings.console;
    let access = match config.access {
        ConsoleAccess::Off => return None,
        ConsoleAccess::Local => Access::Local,
        ConsoleAccess::Proxy => Access::Proxy {
            user_header: config.user_header.parse().ok()?,
            proxies: config.proxies.clone(),
        },
        ConsoleAccess::Certificate => Access::Certificate,
    };
    let (look, watch_list) = core.unzip();
    let keys = move || {
        bridge.as_ref().map_or_else(Vec::new, |bridge| {
            let key = |(client, version, not_after_ms)| ClientKey { client, version, not_after_ms };
            bridge.client_keys().into_iter().map(key).collect()
        })
    };
    let standing = move || {
        let standing = watch_list.as_ref()?.standing()?;
        let (epoch, onboarding) = (standing.epoch, standing.onboarding);
        Some(Standing { epoch, onboarding, suspect: standing.suspect })
    };
    Some(Arc::new(Console {
        access,
        look,
        recent: telemetry.recent.clone(),
        standing: Box::new(standing),
        keys: Box::new(keys),
        psp_ids: psp_ids(settings),
    }))
}

/// The wallets that the settings name.
fn psp_ids(settings: &Settings) -> Vec<String> {
    let of_clients = settings.clients.iter().filter_map(|client| match &client.psp_ids {
        Allowed::Any => None,
        Allowed::Only(ids) => Some(ids),
    });
    let all: BTreeSet<_> = settings.console.psp_ids.iter().chain(of_clients.flatten()).collect();
    all.into_iter().map(|psp| psp.as_str().to_owned()).collect()
}
