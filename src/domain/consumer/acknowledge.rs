//! Acknowledge: everything up to these places is handled, and these events that were set aside.

use super::{Consumer, Follower, Ground, Place, Progress, Refusal, same_epoch, within};
use crate::domain::event::EventId;

/// The request.
#[derive(Clone, Debug, Default)]
pub struct Acknowledge {
    /// Who calls.
    pub follower: Follower,
    /// The epoch of the positions.
    pub epoch: u64,
    /// What is handled, by partition.
    pub positions: Vec<Place>,
    /// Events that were set aside and are handled now.
    pub events: Vec<EventId>,
}

/// What holds from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    /// The consumer to keep; absent if it stays as it is.
    pub next: Option<Consumer>,
    /// Its places, of the partitions asked about.
    pub positions: Vec<Place>,
}

/// Decides, in the order of precedence. Monotone, and a repeat changes nothing.
pub fn decide(
    consumer: Option<&Consumer>,
    command: &Acknowledge,
    ground: &Ground<'_>,
) -> Result<Acknowledged, Refusal> {
    let before = consumer.ok_or(Refusal::Unknown)?;
    command.follower.owns(before)?;
    same_epoch(command.epoch, ground)?;
    let handled = |parked: &&super::Parked| command.events.contains(&parked.event);
    let partitions = command
        .positions
        .iter()
        .map(|place| place.partition)
        .chain(before.parked.iter().filter(handled).map(|parked| parked.partition));
    for partition in partitions {
        command.follower.reads(before, partition)?;
    }
    command.positions.iter().try_for_each(|place| within(*place, ground))?;

    let mut consumer = before.clone();
    for place in &command.positions {
        let acknowledged = consumer.acknowledged(place.partition, ground.head(place.partition));
        let progress = consumer
            .progress
            .entry(place.partition)
            .or_insert(Progress { acknowledged, stream: None });
        progress.acknowledged = progress.acknowledged.max(place.position);
    }
    // first, so that what is handled now still counts as passed
    consumer.pass_parked();
    consumer.parked.retain(|parked| !command.events.contains(&parked.event));
    let place = |place: &Place| {
        let head = ground.head(place.partition);
        Place { position: consumer.acknowledged(place.partition, head), ..*place }
    };
    let positions = command.positions.iter().map(place).collect();
    Ok(Acknowledged { next: (consumer != *before).then_some(consumer), positions })
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            fixtures::{EPOCH, GROUND, consumer, event, owner, parked, place, stranger, stream},
            *,
        },
        *,
    };

    fn right(position: u64) -> Acknowledge {
        Acknowledge {
            follower: owner(),
            epoch: EPOCH,
            positions: vec![place(0, position)],
            events: vec![],
        }
    }

    #[test]
    fn the_first_thing_wrong_is_the_answer() {
        let mut command = Acknowledge { follower: stranger(), epoch: 1, ..right(11) };
        assert_eq!(decide(None, &command, &GROUND), Err(Refusal::Unknown));
        let answer = |command: &Acknowledge| decide(Some(&consumer()), command, &GROUND).err();
        assert_eq!(answer(&command), Some(Refusal::NotYours));
        command.follower = Follower { stream: Some(stream(9)), ..owner() };
        assert_eq!(answer(&command), Some(Refusal::EpochChanged { epoch: EPOCH }));
        command.epoch = EPOCH;
        assert_eq!(answer(&command), Some(Refusal::Superseded));
        command.follower = owner();
        assert_eq!(answer(&command), Some(Refusal::AheadOfFeed { head: place(0, 10) }));
        command.positions = vec![place(0, 10)];
        assert_eq!(answer(&command), None);
    }

    #[test]
    fn it_is_monotone_and_a_repeat_changes_nothing() {
        let forth = decide(Some(&consumer()), &right(7), &GROUND).unwrap();
        let after = forth.next.unwrap();
        assert_eq!((after.progress[&0].acknowledged, forth.positions), (7, vec![place(0, 7)]));
        for position in [7, 5, 0] {
            let again = decide(Some(&after), &right(position), &GROUND).unwrap();
            assert_eq!(again, Acknowledged { next: None, positions: vec![place(0, 7)] });
        }
    }

    #[test]
    fn a_caller_that_names_no_stream_may_acknowledge_any_partition() {
        let positions = vec![place(1, 3)];
        let follower = Follower { stream: None, ..owner() };
        let command = Acknowledge { follower, positions, ..right(0) };
        let after = decide(Some(&consumer()), &command, &GROUND).unwrap().next.unwrap();
        assert_eq!(after.progress[&1], Progress { acknowledged: 3, stream: None });
        let by_stream = Acknowledge { follower: owner(), ..command };
        assert_eq!(decide(Some(&consumer()), &by_stream, &GROUND), Err(Refusal::Superseded));
    }

    #[test]
    fn an_event_that_was_set_aside_is_acknowledged_by_its_id() {
        let mut before = consumer();
        before.parked = vec![parked(5, "a"), parked(8, "a")];
        let command = Acknowledge { positions: vec![], events: vec![event(5)], ..right(0) };
        let after = decide(Some(&before), &command, &GROUND).unwrap().next.unwrap();
        assert_eq!(after.parked, [parked(8, "a")]);
        assert_eq!(after.progress[&0].acknowledged, 5, "it stays passed");
        assert_eq!(decide(Some(&after), &command, &GROUND).unwrap().next, None);
        let other = Follower { stream: Some(stream(9)), ..owner() };
        let command = Acknowledge { follower: other, ..command };
        assert_eq!(decide(Some(&before), &command, &GROUND), Err(Refusal::Superseded));
    }
}
