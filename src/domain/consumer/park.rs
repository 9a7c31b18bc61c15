//! Park: an event is set aside with a reason, and later ones of its subject wait with it.

use std::collections::BTreeSet;

use super::{
    Consumer, Follower, Ground, PARKED_MAX, Parked, Place, Progress, Refusal, same_epoch, within,
};
use crate::domain::{event::EventId, key::Subject, time::Timestamp};

/// An event by its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stood {
    /// Where it stands.
    pub place: Place,
    /// Its id.
    pub event: EventId,
    /// What it is about.
    pub subject: Subject,
}

impl Stood {
    fn parked(&self, reason: Option<Box<str>>, at: Timestamp) -> Parked {
        Parked {
            partition: self.place.partition,
            position: self.place.position,
            event: self.event,
            subject: self.subject.clone(),
            reason,
            at,
            redrive: false,
        }
    }
}

/// The request.
#[derive(Clone, Debug)]
pub struct Park {
    /// Who calls.
    pub follower: Follower,
    /// The epoch of the position.
    pub epoch: u64,
    /// The event that cannot be handled.
    pub event: Stood,
    /// Why, for people.
    pub reason: Box<str>,
    /// Now.
    pub at: Timestamp,
}

/// Decides, in the order of precedence.
pub fn decide(
    consumer: Option<&Consumer>,
    command: &Park,
    ground: &Ground<'_>,
) -> Result<Consumer, Refusal> {
    let mut consumer = consumer.ok_or(Refusal::Unknown)?.clone();
    let Place { partition, position } = command.event.place;
    command.follower.owns(&consumer)?;
    same_epoch(command.epoch, ground)?;
    command.follower.reads(&consumer, partition)?;
    within(command.event.place, ground)?;
    // what is gone could never be delivered again
    let purged = ground.head(partition).purged;
    if position <= purged {
        return Err(Refusal::Purged { least: vec![Place { partition, position: purged }] });
    }

    // what comes again and is set aside again holds up the rest once more, under a time of its own: that tells a stream
    // that the next time it comes is another one
    let of_it = |it: &&mut Parked| it.partition == partition && it.subject == command.event.subject;
    let mut again: Vec<&mut Parked> = consumer.parked.iter_mut().filter(of_it).collect();
    let before = again.iter().find(|it| it.position == position).map(|it| (it.redrive, it.at));
    let last = again.iter().map(|it| it.at.unix_ms).max().unwrap_or(i64::MIN);
    let at = match before {
        Some((false, at)) => at,
        Some((true, _)) => command.at.max(Timestamp { unix_ms: last.saturating_add(1) }),
        None => command.at,
    };
    for later in again.iter_mut().filter(|it| it.position > position && it.redrive) {
        (later.redrive, later.at) = (false, at);
    }
    consumer.set_aside(command.event.parked(Some(command.reason.clone()), at));
    if consumer.parked.len() > PARKED_MAX {
        return Err(Refusal::TooManyParked);
    }
    let acknowledged = consumer.acknowledged(partition, ground.head(partition));
    consumer.progress.entry(partition).or_insert(Progress { acknowledged, stream: None });
    consumer.pass_parked();
    Ok(consumer)
}

/// A stream comes to events whose subjects may be held up, or there are such behind one that was set aside now.
#[derive(Clone, Debug)]
pub struct Reach {
    /// Who asks; its ownership is known.
    pub follower: Follower,
    /// The events, in order.
    pub events: Vec<Stood>,
    /// Now.
    pub at: Timestamp,
}

/// Which of them are not to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reached {
    /// The consumer to keep; absent if it stays as it is.
    pub next: Option<Consumer>,
    /// Those that wait.
    pub waiting: BTreeSet<Place>,
}

/// Decides, in the order of precedence: an event waits if one of its subject is set aside, and what is acknowledged is
/// handled and need not wait.
pub fn reach(
    consumer: Option<&Consumer>,
    command: &Reach,
    ground: &Ground<'_>,
) -> Result<Reached, Refusal> {
    let before = consumer.ok_or(Refusal::Unknown)?;
    let mut consumer = before.clone();
    let mut waiting = BTreeSet::new();
    for stood in &command.events {
        let Place { partition, position } = stood.place;
        command.follower.reads(before, partition)?;
        let acknowledged = before.acknowledged(partition, ground.head(partition));
        if consumer.is_parked(partition, position) {
            waiting.insert(stood.place);
        } else if position > acknowledged && consumer.is_held(&stood.subject) {
            waiting.insert(stood.place);
            consumer.set_aside(stood.parked(None, command.at));
        }
    }
    if consumer.parked.len() > PARKED_MAX {
        return Err(Refusal::TooManyParked);
    }
    consumer.pass_parked();
    Ok(Reached { next: (consumer != *before).then_some(consumer), waiting })
}

#[cfg(test)]
mod tests {
    use super::{
        super::fixtures::{
            AT, EPOCH, GROUND, consumer, event, owner, parked, place, stranger, stream, subject,
        },
        *,
    };

    fn stood(position: u64, name: &str) -> Stood {
        Stood { place: place(0, position), event: event(position), subject: subject(name) }
    }

    fn right(position: u64, name: &str) -> Park {
        Park {
            follower: owner(),
            epoch: EPOCH,
            event: stood(position, name),
            reason: "no account".into(),
            at: AT,
        }
    }

    fn waits(position: u64, name: &str) -> Parked {
        Parked { reason: None, ..parked(position, name) }
    }

    #[test]
    fn the_first_thing_wrong_is_the_answer() {
        let mut command = Park { follower: stranger(), epoch: 1, ..right(11, "a") };
        assert_eq!(decide(None, &command, &GROUND), Err(Refusal::Unknown));
        let answer = |command: &Park| decide(Some(&consumer()), command, &GROUND).err();
        assert_eq!(answer(&command), Some(Refusal::NotYours));
        command.follower = Follower { stream: Some(stream(9)), ..owner() };
        assert_eq!(answer(&command), Some(Refusal::EpochChanged { epoch: EPOCH }));
        command.epoch = EPOCH;
        assert_eq!(answer(&command), Some(Refusal::Superseded));
        command.follower = owner();
        assert_eq!(answer(&command), Some(Refusal::AheadOfFeed { head: place(0, 10) }));
    }

    #[test]
    fn what_is_set_aside_right_behind_the_place_is_passed() {
        let after = decide(Some(&consumer()), &right(5, "a"), &GROUND).unwrap();
        assert_eq!(after.parked, [parked(5, "a")]);
        assert_eq!(after.progress[&0].acknowledged, 5);
        assert_eq!(decide(Some(&after), &right(5, "a"), &GROUND), Ok(after.clone()));
        let after = decide(Some(&after), &right(3, "b"), &GROUND).unwrap();
        assert_eq!(after.progress[&0].acknowledged, 5, "never backwards");
    }

    #[test]
    fn what_comes_again_and_is_set_aside_again_holds_up_what_was_to_follow() {
        let mut before = consumer();
        let again = |parked: Parked| Parked { redrive: true, ..parked };
        before.parked = vec![again(parked(5, "a")), again(waits(7, "a")), again(parked(8, "b"))];
        let after = decide(Some(&before), &right(5, "a"), &GROUND).unwrap();
        let later = |parked| Parked { at: Timestamp { unix_ms: AT.unix_ms + 1 }, ..parked };
        assert_eq!(
            after.parked,
            [later(parked(5, "a")), later(waits(7, "a")), again(parked(8, "b"))]
        );
    }

    #[test]
    fn what_is_set_aside_again_keeps_its_time_and_leaves_others_theirs() {
        let at = |ago: i64| Timestamp { unix_ms: AT.unix_ms - ago };
        let since = |parked: Parked, ago| Parked { at: at(ago), ..parked };
        let again = |parked: Parked| Parked { redrive: true, ..parked };
        let mut before = consumer();
        before.parked = vec![again(since(parked(5, "a"), 9)), since(parked(7, "a"), 5)];
        // told twice, it is set aside since it first was, and what comes again comes all the same
        let after = decide(Some(&before), &right(7, "a"), &GROUND).unwrap();
        assert_eq!(after.parked, before.parked);
        // a new one is set aside now, whatever became of those before it
        let after = decide(Some(&before), &right(8, "a"), &GROUND).unwrap();
        assert_eq!(after.parked[..2], before.parked);
        assert_eq!(after.parked[2], parked(8, "a"));
        // one that came again holds up what was to follow, not what stood still
        let after = decide(Some(&before), &right(5, "a"), &GROUND).unwrap();
        assert_eq!(after.parked, [parked(5, "a"), before.parked[1].clone()]);
    }

    #[test]
    fn an_event_waits_if_an_earlier_one_of_its_subject_does() {
        let mut before = consumer();
        before.parked = vec![parked(5, "a")];
        let events = vec![stood(4, "a"), stood(6, "b"), stood(7, "a"), stood(8, "a")];
        let command = Reach { follower: owner(), events, at: AT };
        let reached = reach(Some(&before), &command, &GROUND).unwrap();
        assert_eq!(reached.waiting, BTreeSet::from([place(0, 7), place(0, 8)]));
        let after = reached.next.unwrap();
        assert_eq!(after.parked, [parked(5, "a"), waits(7, "a"), waits(8, "a")]);
        // once more, it is only said again
        let again = reach(Some(&after), &command, &GROUND).unwrap();
        assert_eq!((again.next, again.waiting), (None, reached.waiting));
    }

    #[test]
    fn what_follows_an_event_that_comes_again_does_not_wait() {
        let mut before = consumer();
        before.parked = vec![Parked { redrive: true, ..parked(6, "a") }];
        let command = Reach { follower: owner(), events: vec![stood(7, "a")], at: AT };
        let reached = reach(Some(&before), &command, &GROUND).unwrap();
        assert_eq!(reached, Reached { next: None, waiting: BTreeSet::new() });
    }

    #[test]
    fn a_stream_that_was_replaced_sets_nothing_aside() {
        let mut before = consumer();
        before.parked = vec![parked(5, "a")];
        let follower = Follower { identity: None, stream: Some(stream(9)) };
        let command = Reach { follower, events: vec![stood(7, "a")], at: AT };
        assert_eq!(reach(Some(&before), &command, &GROUND), Err(Refusal::Superseded));
        assert_eq!(reach(None, &command, &GROUND), Err(Refusal::Unknown));
    }

    #[test]
    fn there_is_an_end_to_what_may_be_set_aside() {
        let mut before = consumer();
        let many = u64::try_from(PARKED_MAX).unwrap() + 11;
        before.parked = (11..many).map(|position| parked(position, "a")).collect();
        let last = before.parked.pop();
        let one_more = decide(Some(&before), &right(5, "b"), &GROUND).unwrap();
        assert_eq!(one_more.parked.len(), PARKED_MAX);
        let waits = Reach { follower: owner(), events: vec![stood(many, "a")], at: AT };
        let one_more = reach(Some(&before), &waits, &GROUND).unwrap().next.unwrap();
        assert_eq!(one_more.parked.len(), PARKED_MAX);

        before.parked.extend(last);
        let full = decide(Some(&before), &right(5, "b"), &GROUND);
        assert_eq!(full, Err(Refusal::TooManyParked));
        assert_eq!(reach(Some(&before), &waits, &GROUND), Err(Refusal::TooManyParked));
    }
}
