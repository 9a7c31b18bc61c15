//! Subscribe: a new stream takes partitions over, and learns where it begins.

use super::{Consumer, Follower, Ground, Place, Progress, Refusal, StreamId, same_epoch, within};

/// Where a stream begins in partitions that it does not name a place for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// Behind what is acknowledged; a new consumer at the earliest event there is.
    #[default]
    Acknowledged,
    /// At the earliest event there is.
    Earliest,
    /// Behind the last event.
    End,
}

/// The request.
#[derive(Clone, Debug, Default)]
pub struct Subscribe {
    /// Who calls; its stream is the new one's id.
    pub identity: Option<Box<str>>,
    /// The new stream.
    pub stream: StreamId,
    /// The partitions to read.
    pub partitions: Vec<u16>,
    /// Where to begin, elsewhere than in `from`.
    pub start: Start,
    /// Where to begin, by partition.
    pub from: Vec<Place>,
    /// The epoch that `from` and `last_seen` belong to.
    pub epoch: Option<u64>,
    /// The last places the caller keeps on its own side.
    pub last_seen: Vec<Place>,
}

/// A stream that may begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscribed {
    /// The consumer to keep.
    pub consumer: Consumer,
    /// Where the stream begins, by partition.
    pub places: Vec<Place>,
}

/// Decides, in the order of precedence.
pub fn decide(
    consumer: Option<&Consumer>,
    command: &Subscribe,
    ground: &Ground<'_>,
) -> Result<Subscribed, Refusal> {
    let mut consumer = consumer.cloned().unwrap_or_default();
    Follower { identity: command.identity.clone(), stream: None }.owns(&consumer)?;
    no_restore(&consumer, command, ground)?;
    if let Some(epoch) = command.epoch {
        same_epoch(epoch, ground)?;
    }
    command.from.iter().try_for_each(|place| within(*place, ground))?;
    let places = begin(&consumer, command, ground)?;

    // a name that nobody with an identity used becomes that of the first who does
    consumer.owner = consumer.owner.or_else(|| command.identity.clone());
    for place in &places {
        let head = ground.head(place.partition);
        let acknowledged = consumer.acknowledged(place.partition, head);
        // whoever begins here knows that what was purged is gone
        let progress =
            Progress { acknowledged: acknowledged.max(head.purged), stream: Some(command.stream) };
        consumer.progress.insert(place.partition, progress);
    }
    Ok(Subscribed { consumer, places })
}

/// A consumer was told durable events only. If it knows more of them than we do, we lost them.
fn no_restore(
    consumer: &Consumer,
    command: &Subscribe,
    ground: &Ground<'_>,
) -> Result<(), Refusal> {
    if let Some(epoch) = command.epoch.filter(|epoch| *epoch > ground.epoch) {
        let ours = ground.epoch;
        return Err(Refusal::Restored(format!("it knows epoch {epoch}, the store {ours}")));
    }
    let seen = command.last_seen.iter().filter(|_| command.epoch == Some(ground.epoch)).copied();
    let kept = consumer
        .progress
        .iter()
        .map(|(&partition, progress)| Place { partition, position: progress.acknowledged });
    for Place { partition, position } in seen.chain(kept) {
        let head = ground.head(partition).position;
        if position > head {
            return Err(Refusal::Restored(format!(
                "partition {partition}: it was told of {position}, the store ends at {head}"
            )));
        }
    }
    Ok(())
}

/// Where each partition begins, if all of it is still there.
fn begin(
    consumer: &Consumer,
    command: &Subscribe,
    ground: &Ground<'_>,
) -> Result<Vec<Place>, Refusal> {
    let place = |&partition: &u16| {
        let head = ground.head(partition);
        let named = command.from.iter().find(|from| from.partition == partition);
        let position = match (named, command.start) {
            (Some(from), _) => from.position,
            (None, Start::Acknowledged) => consumer.acknowledged(partition, head),
            (None, Start::Earliest) => head.purged,
            (None, Start::End) => head.position,
        };
        Place { partition, position }
    };
    let places: Vec<Place> = command.partitions.iter().map(place).collect();
    let gone = |place: &&Place| place.position < ground.head(place.partition).purged;
    let least = |place: &Place| Place { position: ground.head(place.partition).purged, ..*place };
    let least: Vec<Place> = places.iter().filter(gone).map(least).collect();
    if least.is_empty() { Ok(places) } else { Err(Refusal::Purged { least }) }
}

#[cfg(test)]
mod tests {
    use super::{
        super::fixtures::{EPOCH, GROUND, consumer, place, stream},
        *,
    };

    fn right() -> Subscribe {
        Subscribe {
            identity: Some("executor.wallet".into()),
            stream: stream(2),
            partitions: vec![0, 1],
            ..Subscribe::default()
        }
    }

    #[test]
    fn the_first_thing_wrong_is_the_answer() {
        let ahead = Refusal::AheadOfFeed { head: place(0, 10) };
        let mut command = Subscribe {
            identity: Some("other.wallet".into()),
            epoch: Some(EPOCH + 1),
            from: vec![place(0, 11), place(1, 0)],
            ..right()
        };
        let answer = |command: &Subscribe| decide(Some(&consumer()), command, &GROUND).err();
        assert_eq!(answer(&command), Some(Refusal::NotYours));
        command.identity = right().identity;
        assert!(matches!(answer(&command), Some(Refusal::Restored(_))));
        command.epoch = Some(EPOCH - 1);
        assert_eq!(answer(&command), Some(Refusal::EpochChanged { epoch: EPOCH }));
        command.epoch = Some(EPOCH);
        assert_eq!(answer(&command), Some(ahead));
        command.from[0] = place(0, 1);
        assert_eq!(answer(&command), Some(Refusal::Purged { least: vec![place(0, 2)] }));
        command.from[0] = place(0, 2);
        assert_eq!(answer(&command), None);
    }

    #[test]
    fn a_new_name_begins_at_the_earliest_there_is_and_takes_every_partition() {
        let begun = decide(None, &right(), &GROUND).unwrap();
        assert_eq!(begun.places, [place(0, 2), place(1, 0)]);
        assert_eq!(begun.consumer.owner.as_deref(), Some("executor.wallet"));
        let progress = Progress { acknowledged: 2, stream: Some(stream(2)) };
        assert_eq!(begun.consumer.progress[&0], progress);
    }

    #[test]
    fn a_known_name_goes_on_behind_what_it_acknowledged_and_the_older_stream_is_replaced() {
        let begun = decide(Some(&consumer()), &right(), &GROUND).unwrap();
        assert_eq!(begun.places, [place(0, 4), place(1, 0)]);
        let progress = Progress { acknowledged: 4, stream: Some(stream(2)) };
        assert_eq!(begun.consumer.progress[&0], progress);
    }

    #[test]
    fn a_start_is_where_the_caller_says_and_changes_no_acknowledgement() {
        for (start, from, places) in [
            (Start::Earliest, vec![], [place(0, 2), place(1, 0)]),
            (Start::End, vec![], [place(0, 10), place(1, 5)]),
            (Start::End, vec![place(1, 3)], [place(0, 10), place(1, 3)]),
        ] {
            let command = Subscribe { start, from, ..right() };
            let begun = decide(Some(&consumer()), &command, &GROUND).unwrap();
            assert_eq!(begun.places, places);
            assert_eq!(begun.consumer.progress[&0].acknowledged, 4);
        }
    }

    #[test]
    fn a_place_that_was_purged_is_told_and_naming_a_later_one_accepts_the_gap() {
        let mut consumer = consumer();
        consumer.progress.insert(0, Progress { acknowledged: 1, stream: None });
        let gone = decide(Some(&consumer), &right(), &GROUND).unwrap_err();
        assert_eq!(gone, Refusal::Purged { least: vec![place(0, 2)] });
        let command = Subscribe { from: vec![place(0, 2)], ..right() };
        let begun = decide(Some(&consumer), &command, &GROUND).unwrap();
        assert_eq!(begun.consumer.progress[&0].acknowledged, 2);
        assert!(decide(Some(&begun.consumer), &right(), &GROUND).is_ok(), "from then on");
    }

    #[test]
    fn knowing_more_than_the_store_proves_a_restore_in_this_epoch_only() {
        let told = |epoch, position| Subscribe {
            epoch: Some(epoch),
            last_seen: vec![place(1, position)],
            ..right()
        };
        assert!(decide(None, &told(EPOCH, 5), &GROUND).is_ok());
        let proof = decide(None, &told(EPOCH, 6), &GROUND).unwrap_err();
        assert_eq!(
            proof,
            Refusal::Restored("partition 1: it was told of 6, the store ends at 5".to_owned())
        );
        let old = decide(None, &told(EPOCH - 1, 6), &GROUND).unwrap_err();
        assert_eq!(old, Refusal::EpochChanged { epoch: EPOCH });
        // what it acknowledged counts as well
        let mut consumer = consumer();
        consumer.progress.insert(1, Progress { acknowledged: 6, stream: None });
        let proof = decide(Some(&consumer), &right(), &GROUND).unwrap_err();
        assert!(matches!(proof, Refusal::Restored(_)));
    }

    #[test]
    fn a_name_used_without_an_identity_becomes_that_of_the_first_who_has_one() {
        let unowned = Consumer { owner: None, ..consumer() };
        let begun = decide(Some(&unowned), &right(), &GROUND).unwrap();
        assert_eq!(begun.consumer.owner.as_deref(), Some("executor.wallet"));
        let nameless = Subscribe { identity: None, ..right() };
        assert_eq!(decide(Some(&begun.consumer), &nameless, &GROUND), Err(Refusal::NotYours));
        assert!(decide(Some(&unowned), &nameless, &GROUND).is_ok());
    }
}
