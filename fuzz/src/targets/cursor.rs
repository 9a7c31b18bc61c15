//! Consumers of the feed: whatever they send, in whatever order, none gets ahead of the feed, goes backwards, takes over
//! what is another's, or loses what it set aside.

use std::collections::BTreeMap;

use alipayplus_cancel::{
    domain::{
        consumer::{
            Consumer, Follower, Ground, Head, Place, Refusal, StreamId,
            acknowledge::{self, Acknowledge},
            forget::{self, Forget},
            park::{self, Park, Reach, Stood},
            redrive::{self, Redrive},
            subscribe::{self, Start, Subscribe},
        },
        event::EventId,
        id::{PaymentRequestId, PspId},
        key::{Partitions, PaymentKey, Subject},
        time::Timestamp,
    },
    grpc::fuzzing as doors,
};

use super::bytes::Bytes;

const PARTITIONS: u8 = 3;
const EPOCH: u64 = 2;

/// Choices, then commands, as domain values or as messages.
pub fn run(data: &[u8]) {
    let mut choices = Bytes(data);
    let mut world = World::new(&mut choices);
    for step in 0..64 {
        if choices.is_empty() {
            break;
        }
        world.at = Timestamp { unix_ms: 1_790_000_000_000 + step };
        world.step(&mut choices);
    }
}

struct World {
    heads: Vec<Head>,
    consumer: Option<Consumer>,
    at: Timestamp,
}

/// Which event stands at a place: the same each time, with a subject that others share.
fn stood(place: Place) -> Stood {
    let number = u128::from(place.partition) << 64 | u128::from(place.position);
    let psp = PspId::parse("psp").expect("an id");
    let name = format!("{}-{}", place.partition, place.position % 3);
    let payment_request = PaymentRequestId::parse(&name).expect("an id");
    Stood {
        place,
        event: EventId(number.to_be_bytes()),
        subject: Subject::Payment(PaymentKey { psp, payment_request }),
    }
}

fn identity(choices: &mut Bytes<'_>) -> Option<Box<str>> {
    [None, Some("a"), Some("b")][usize::from(choices.below(3))].map(Box::from)
}

fn stream(choices: &mut Bytes<'_>) -> StreamId {
    StreamId([choices.below(3); 16])
}

fn follower(choices: &mut Bytes<'_>) -> Follower {
    let identity = identity(choices);
    Follower { identity, stream: choices.coin().then(|| stream(choices)) }
}

fn place(choices: &mut Bytes<'_>) -> Place {
    let partition = u16::from(choices.below(PARTITIONS));
    let position = match choices.byte() {
        255 => u64::MAX,
        position => u64::from(position) % 24,
    };
    Place { partition, position }
}

fn places(choices: &mut Bytes<'_>) -> Vec<Place> {
    (0..choices.below(4)).map(|_| place(choices)).collect()
}

fn epoch(choices: &mut Bytes<'_>) -> u64 {
    // mostly the right one
    [EPOCH, EPOCH, EPOCH, EPOCH, EPOCH, 0, 1, 3][usize::from(choices.below(8))]
}

impl World {
    fn new(choices: &mut Bytes<'_>) -> Self {
        let head = |_| {
            let position = u64::from(choices.below(20));
            Head { position, purged: u64::from(choices.below(20)).min(position) }
        };
        let heads = (0..PARTITIONS).map(head).collect();
        Self { heads, consumer: None, at: Timestamp { unix_ms: 0 } }
    }

    fn ground(&self) -> Ground<'_> {
        Ground { heads: &self.heads, epoch: EPOCH }
    }

    fn head(&self, partition: u16) -> Head {
        self.heads.get(usize::from(partition)).copied().unwrap_or_default()
    }

    fn step(&mut self, choices: &mut Bytes<'_>) {
        match choices.below(14) {
            0 => {
                let command = Subscribe {
                    identity: identity(choices),
                    stream: stream(choices),
                    partitions: (0..PARTITIONS).map(u16::from).filter(|_| choices.coin()).collect(),
                    start: [Start::Acknowledged, Start::Earliest, Start::End]
                        [usize::from(choices.below(3))],
                    from: places(choices),
                    epoch: choices.coin().then(|| epoch(choices)),
                    last_seen: places(choices),
                };
                self.subscribe(&command);
            }
            1 | 2 => {
                let follower = follower(choices);
                let (epoch, positions) = (epoch(choices), places(choices));
                let events = places(choices).into_iter().map(|place| stood(place).event).collect();
                self.acknowledge(&Acknowledge { follower, epoch, positions, events });
            }
            3 => {
                let (follower, epoch) = (follower(choices), epoch(choices));
                let event = stood(place(choices));
                self.park(&Park { follower, epoch, event, reason: "r".into(), at: self.at });
            }
            4 => {
                let follower = follower(choices);
                // the service looks up what stands there, so it does stand there
                let there = |place: &Place| {
                    (1..=self.head(place.partition).position).contains(&place.position)
                };
                let events = places(choices).into_iter().filter(there).map(stood).collect();
                self.reach(&Reach { follower, events, at: self.at });
            }
            5 => {
                let events = places(choices).into_iter().map(|place| stood(place).event).collect();
                let all = choices.coin();
                self.redrive(&if all { Redrive::All } else { Redrive::Events(events) });
            }
            6 => self.forget(&Forget {
                follower: follower(choices),
                identity: identity(choices),
                required: choices.coin(),
            }),
            7 => {
                let partition = usize::from(choices.below(PARTITIONS));
                self.heads[partition].position += u64::from(choices.below(4));
            }
            8 => {
                let partition = usize::from(choices.below(PARTITIONS));
                let head = &mut self.heads[partition];
                head.purged = head.position.min(head.purged + u64::from(choices.below(4)));
            }
            message => self.message(message, choices),
        }
        self.check();
    }

    /// The same as a message, if it is one.
    fn message(&mut self, message: u8, choices: &mut Bytes<'_>) {
        let identity = ["a", "b"][usize::from(choices.below(2))];
        let bytes = choices.slice();
        let all = Partitions::new(u16::from(PARTITIONS)).expect("in range");
        match message {
            9 => {
                if let Some((_, command)) = read(doors::subscribe(bytes, identity, all)) {
                    let known = |partition: &u16| *partition < all.count();
                    assert!(command.partitions.iter().all(known));
                    assert!(command.partitions.is_sorted_by(|a, b| a < b), "each once");
                    self.subscribe(&command);
                }
            }
            10 => {
                if let Some((_, command)) = read(doors::acknowledge(bytes, identity, all)) {
                    self.acknowledge(&command);
                }
            }
            11 => {
                let park = read(doors::park(bytes, identity, all));
                if let Some((_, follower, epoch, place, _, reason)) = park {
                    assert!(place.position > 0 && !reason.contains(char::is_control));
                    assert!((1..=256).contains(&reason.chars().count()));
                    // the service looks up what stands there
                    self.park(&Park { follower, epoch, event: stood(place), reason, at: self.at });
                }
            }
            12 => {
                if let Some((_, command)) = read(doors::redrive(bytes)) {
                    self.redrive(&command);
                }
                if let Some((_, command)) = read(doors::forget(bytes, identity)) {
                    assert!(!command.required, "the settings say so, not the caller");
                    self.forget(&command);
                }
            }
            _ => {
                if let Some((_, _, size)) = read(doors::list_parked(bytes)) {
                    assert!((1..=1_000).contains(&size));
                }
            }
        }
    }

    fn subscribe(&mut self, command: &Subscribe) {
        let before = self.consumer.clone();
        let Ok(begun) = subscribe::decide(before.as_ref(), command, &self.ground()) else {
            return;
        };
        assert_eq!(begun.places.len(), command.partitions.len());
        for place in &begun.places {
            let head = self.head(place.partition);
            assert!((head.purged..=head.position).contains(&place.position), "{place:?}");
            let progress = begun.consumer.progress[&place.partition];
            assert_eq!(progress.stream, Some(command.stream), "it reads now");
        }
        let theirs = |place: &Place| place.position > self.head(place.partition).position;
        let known = command.epoch == Some(EPOCH);
        assert!(!(known && command.last_seen.iter().any(theirs)), "a restore is noticed");
        self.next(Some(begun.consumer));
    }

    fn acknowledge(&mut self, command: &Acknowledge) {
        let decided = acknowledge::decide(self.consumer.as_ref(), command, &self.ground());
        let Ok(decided) = decided else { return };
        assert_eq!(command.epoch, EPOCH);
        if let Some(next) = decided.next {
            let kept = self.consumer.iter().flat_map(|before| &before.parked);
            for parked in kept.filter(|parked| !command.events.contains(&parked.event)) {
                assert!(next.parked.contains(parked), "set aside, and lost: {parked:?}");
            }
            self.next(Some(next));
        }
        let again = acknowledge::decide(self.consumer.as_ref(), command, &self.ground())
            .expect("a repeat is answered");
        assert_eq!(again.next, None, "and changes nothing");
        assert_eq!(again.positions, decided.positions);
        for told in &decided.positions {
            let named = command.positions.iter().filter(|it| it.partition == told.partition);
            assert!(named.into_iter().all(|it| it.position <= told.position));
        }
    }

    fn park(&mut self, command: &Park) {
        let decided = park::decide(self.consumer.as_ref(), command, &self.ground());
        let Ok(next) = decided else { return };
        let place = command.event.place;
        assert!(place.position > self.head(place.partition).purged, "it can come again");
        let parked = next.parked.iter().find(|it| it.event == command.event.event);
        assert!(parked.is_some_and(|parked| !parked.redrive && parked.reason.is_some()));
        self.next(Some(next));
        let again = park::decide(self.consumer.as_ref(), command, &self.ground());
        assert_eq!(again.as_ref().ok(), self.consumer.as_ref(), "a repeat changes nothing");
    }

    fn reach(&mut self, command: &Reach) {
        let decided = park::reach(self.consumer.as_ref(), command, &self.ground());
        let Ok(decided) = decided else { return };
        for place in &decided.waiting {
            assert!(command.events.iter().any(|event| event.place == *place));
        }
        if let Some(next) = decided.next {
            self.next(Some(next));
        }
    }

    fn redrive(&mut self, command: &Redrive) {
        let decided = redrive::decide(self.consumer.as_ref(), command, &self.ground());
        let Ok(decided) = decided else { return };
        if let Some(next) = decided.next {
            let places = |consumer: &Consumer| -> Vec<(u16, u64)> {
                consumer.parked.iter().map(|it| (it.partition, it.position)).collect()
            };
            assert_eq!(self.consumer.as_ref().map(places), Some(places(&next)), "none is lost");
            assert!(decided.count > 0);
            self.next(Some(next));
        }
    }

    fn forget(&mut self, command: &Forget) {
        match forget::decide(self.consumer.as_ref(), command) {
            Ok(()) => {
                assert!(!command.required);
                self.consumer = None;
            }
            Err(refusal) => {
                assert!(matches!(
                    refusal,
                    Refusal::Unknown | Refusal::NotYours | Refusal::Required
                ));
            }
        }
    }

    /// Keeps it, if it may be what the one before becomes.
    fn next(&mut self, next: Option<Consumer>) {
        if let (Some(before), Some(next)) = (&self.consumer, &next) {
            assert!(before.owner.is_none() || before.owner == next.owner, "an owner stays");
            for (partition, progress) in &before.progress {
                let after = next.progress[partition].acknowledged;
                assert!(after >= progress.acknowledged, "partition {partition} goes backwards");
            }
        }
        self.consumer = next;
    }

    fn check(&self) {
        let Some(consumer) = &self.consumer else { return };
        for (partition, progress) in &consumer.progress {
            assert!(*partition < u16::from(PARTITIONS));
            assert!(progress.acknowledged <= self.head(*partition).position, "ahead of the feed");
        }
        let place = |parked: &alipayplus_cancel::domain::consumer::Parked| {
            (parked.partition, parked.position)
        };
        assert!(consumer.parked.is_sorted_by(|a, b| place(a) < place(b)), "in order, each once");
        let lag: u64 = self.heads.iter().map(|head| head.position - head.purged).sum();
        assert!(consumer.lag(&self.heads) <= lag);
        let behind: BTreeMap<u16, u64> = consumer
            .behind(&self.heads)
            .into_iter()
            .map(|place| (place.partition, place.position))
            .collect();
        let left = behind.iter().map(|(partition, at)| self.head(*partition).position - at);
        assert_eq!(left.sum::<u64>(), consumer.lag(&self.heads));
    }
}

/// What a message asks for; what is refused is refused as ours.
fn read<T>(read: doors::Read<T>) -> Option<T> {
    match read? {
        Ok(value) => Some(value),
        Err(status) => {
            let code = doors::refusal(&status);
            assert_eq!(code, Some(alipayplus_cancel::domain::result::ResultCode::ParamIllegal));
            None
        }
    }
}
