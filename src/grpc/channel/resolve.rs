//! From places to addresses, again and again: in a cluster a name has as many addresses as there are cores now.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use tokio::{net, task::JoinSet, time};

use super::{Place, Shared, member::Member};

/// How often names are asked for their addresses.
const EVERY: Duration = Duration::from_secs(5);
/// The same while no core is healthy.
const SOON: Duration = Duration::from_secs(1);
/// For one name.
const LOOKUP_WAIT: Duration = Duration::from_secs(2);

/// Keeps the members what the places say, for ever. Their tasks end with this one.
pub(super) async fn keep(places: Vec<Place>, shared: Arc<Shared>) {
    let mut tasks = JoinSet::new();
    let mut running = HashMap::new();
    // what a name last said; when it says nothing, that stays
    let mut said: Vec<(Place, Vec<SocketAddr>)> =
        places.into_iter().map(|place| (place, Vec::new())).collect();
    loop {
        for (place, addresses) in &mut said {
            if let Some(found) = look_up(place).await {
                *addresses = found;
            }
        }
        let wanted: BTreeMap<SocketAddr, &Place> = said
            .iter()
            .flat_map(|(place, addresses)| addresses.iter().map(move |address| (*address, place)))
            .collect();
        running.retain(|address, (member, task): &mut (Arc<Member>, tokio::task::AbortHandle)| {
            let stays = wanted.contains_key(address);
            if !stays {
                tracing::info!(core = ?member, "a core is not there any more");
                task.abort();
            }
            stays
        });
        for (address, place) in wanted {
            if running.contains_key(&address) {
                continue;
            }
            let Some(member) = Member::new(place, address).map(Arc::new) else { continue };
            let keeping = Arc::clone(&member).keep(Arc::clone(&shared));
            running.insert(address, (member, tasks.spawn(keeping)));
        }
        // ended ones are of no use
        while tasks.try_join_next().is_some() {}
        let members: Vec<_> = running.values().map(|(member, _)| Arc::clone(member)).collect();
        let is_healthy = members.iter().any(|member| member.is_healthy());
        shared.members.store(Arc::new(members));
        time::sleep(if is_healthy { EVERY } else { SOON }).await;
    }
}

async fn look_up(place: &Place) -> Option<Vec<SocketAddr>> {
    let Place { host, port } = place;
    let looking = net::lookup_host((host.as_str(), *port));
    let found = match time::timeout(LOOKUP_WAIT, looking).await {
        Ok(Ok(found)) => found.collect::<Vec<_>>(),
        Ok(Err(error)) => {
            tracing::warn!(host, %error, "the core's name has no address");
            return None;
        }
        Err(_) => {
            tracing::warn!(host, "the core's name was not answered in time");
            return None;
        }
    };
    (!found.is_empty()).then_some(found)
}
