//! From places to addresses, again and again: in a cluster a name has as many addresses as there are cores now.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use tokio::{
    net,
    task::{AbortHandle, JoinSet},
    time,
};

use super::{Place, Shared, member::Member};

/// How often names are asked for their addresses.
const EVERY: Duration = Duration::from_secs(5);
/// The same while no core is healthy.
const SOON: Duration = Duration::from_secs(1);
/// For one name.
const LOOKUP_WAIT: Duration = Duration::from_secs(2);

/// A place, and what its name last said; when it says nothing, that stays.
struct Said {
    place: Place,
    addresses: Vec<SocketAddr>,
    /// Whether its silence was told.
    told: bool,
}

impl Said {
    fn note(&mut self, found: io::Result<Vec<SocketAddr>>) {
        let some = |found: Vec<SocketAddr>| {
            if found.is_empty() { Err(io::Error::other("it has no address")) } else { Ok(found) }
        };
        let found = found.and_then(some);
        match found {
            Ok(found) => (self.addresses, self.told) = (found, false),
            Err(error) if !self.told => {
                let host = &self.place.host;
                tracing::warn!(host, %error, "the core's name is not answered; what it last said stays");
                self.told = true;
            }
            Err(_) => {}
        }
    }
}

/// Keeps the members what the places say, for ever. An address that moves from one place to another is a new member: it is
/// another name that its certificate must have. Their tasks end with this one.
pub(super) async fn keep<F>(
    places: Vec<Place>,
    ask: impl Fn(Place) -> F + Send,
    shared: Arc<Shared>,
) where
    F: Future<Output = io::Result<Vec<SocketAddr>>> + Send,
{
    let mut tasks = JoinSet::new();
    let mut running: HashMap<SocketAddr, (Arc<Member>, AbortHandle)> = HashMap::new();
    let begun = |place| Said { place, addresses: Vec::new(), told: false };
    let mut said: Vec<Said> = places.into_iter().map(begun).collect();
    loop {
        for said in &mut said {
            said.note(ask(said.place.clone()).await);
        }
        let wanted: BTreeMap<SocketAddr, &Place> = said
            .iter()
            .flat_map(|said| said.addresses.iter().map(|address| (*address, &said.place)))
            .collect();
        running.retain(|address, (member, task)| {
            let stays = said
                .iter()
                .any(|said| said.addresses.contains(address) && member.is_of(&said.place));
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

/// Every address of a place now.
pub(super) async fn ask(place: Place) -> io::Result<Vec<SocketAddr>> {
    let Place { host, port } = &place;
    let found = time::timeout(LOOKUP_WAIT, net::lookup_host((host.as_str(), *port))).await;
    Ok(found.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??.collect())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::grpc::channel::Channel;

    #[test]
    fn members_are_what_the_name_says_and_stay_when_it_says_nothing() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let channel = Channel::start(Vec::new(), None).unwrap();
            let shared = Arc::clone(&channel.shared);
            drop(channel);
            let (asked, at) = (Arc::new(AtomicUsize::new(0)), |last| {
                // nobody listens there
                SocketAddr::from(([127, 0, 0, last], 1))
            });
            let ask = {
                let asked = Arc::clone(&asked);
                move |_| {
                    let count = asked.fetch_add(1, Ordering::SeqCst);
                    async move {
                        match count {
                            0 => Err(io::Error::other("no DNS yet")),
                            1 => Ok(vec![at(1), at(2)]),
                            2 => Ok(vec![]),
                            3 => Err(io::Error::other("DNS is down")),
                            _ => Ok(vec![at(2), at(3)]),
                        }
                    }
                }
            };
            let place = Place { host: "core".to_owned(), port: 1 };
            let keeping = tokio::spawn(keep(vec![place], ask, Arc::clone(&shared)));
            let members = || {
                let mut names: Vec<_> =
                    shared.members.load().iter().map(|member| format!("{member:?}")).collect();
                names.sort();
                (asked.load(Ordering::SeqCst), names)
            };
            let core = |last: u8| format!("core:1 at 127.0.0.{last}:1");
            for (asked, expected) in [
                (1, vec![]),
                (2, vec![core(1), core(2)]),
                (3, vec![core(1), core(2)]),
                (4, vec![core(1), core(2)]),
                (5, vec![core(2), core(3)]),
            ] {
                let seen = async {
                    while members().0 < asked {
                        tokio::task::yield_now().await;
                    }
                };
                time::timeout(Duration::from_secs(20), seen).await.expect("asked again");
                assert_eq!(members(), (asked, expected));
            }
            keeping.abort();
        });
    }

    #[test]
    fn an_address_that_moves_to_another_place_has_that_places_name() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let channel = Channel::start(Vec::new(), None).unwrap();
            let shared = Arc::clone(&channel.shared);
            drop(channel);
            let asked = Arc::new(AtomicUsize::new(0));
            let ask = {
                let asked = Arc::clone(&asked);
                move |place: Place| {
                    let round = asked.fetch_add(1, Ordering::SeqCst) / 2;
                    let at = |last| SocketAddr::from(([127, 0, 0, last], 1));
                    let found = match (round, place.host.as_str()) {
                        // both have it, which changes nothing
                        (0, "a") | (1 | 2, "b") => vec![at(1)],
                        (1, "a") => vec![at(1), at(2)],
                        _ => vec![at(2)],
                    };
                    async move { Ok(found) }
                }
            };
            let place = |host: &str| Place { host: host.to_owned(), port: 1 };
            let keeping =
                tokio::spawn(keep(vec![place("a"), place("b")], ask, Arc::clone(&shared)));
            let mut first = None;
            for (round, expected) in [
                (1, ["a:1 at 127.0.0.1:1", "b:1 at 127.0.0.2:1"]),
                (2, ["a:1 at 127.0.0.1:1", "a:1 at 127.0.0.2:1"]),
                (3, ["a:1 at 127.0.0.2:1", "b:1 at 127.0.0.1:1"]),
            ] {
                let seen = async {
                    while asked.load(Ordering::SeqCst) < 2 * round {
                        tokio::task::yield_now().await;
                    }
                };
                time::timeout(Duration::from_secs(20), seen).await.expect("asked again");
                let members = shared.members.load_full();
                let mut names: Vec<_> = members.iter().map(|it| format!("{it:?}")).collect();
                names.sort();
                assert_eq!(names, expected, "{round}");
                let kept = members.iter().find(|it| format!("{it:?}") == expected[0]).cloned();
                if round == 2 {
                    let same = first.zip(kept.clone()).is_some_and(|(a, b)| Arc::ptr_eq(&a, &b));
                    assert!(same, "a place that still has its address keeps its connection");
                }
                first = kept;
            }
            keeping.abort();
        });
    }
}
