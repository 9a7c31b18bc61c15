//! Redrive: what was set aside is delivered again, in order.

use super::{Consumer, Ground, Place, Refusal};
use crate::domain::{event::EventId, key::Subject};

/// Which events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Redrive {
    /// All that are set aside.
    All,
    /// These, each with all of its subject: a later one must not overtake an earlier one.
    Events(Vec<EventId>),
}

/// What will come again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redriven {
    /// The consumer to keep; absent if it stays as it is.
    pub next: Option<Consumer>,
    /// How many events.
    pub count: usize,
}

/// Decides, in the order of precedence. Anybody may ask: it makes nobody miss anything.
pub fn decide(
    consumer: Option<&Consumer>,
    command: &Redrive,
    ground: &Ground<'_>,
) -> Result<Redriven, Refusal> {
    let before = consumer.ok_or(Refusal::Unknown)?;
    let named: Vec<&Subject> = match command {
        Redrive::All => before.parked.iter().map(|parked| &parked.subject).collect(),
        Redrive::Events(events) => {
            let named = before.parked.iter().filter(|parked| events.contains(&parked.event));
            named.map(|parked| &parked.subject).collect()
        }
    };
    let mut consumer = before.clone();
    let mut count = 0usize;
    let mut least = Vec::new();
    for parked in &mut consumer.parked {
        let all = matches!(command, Redrive::All);
        if !all && !named.contains(&&parked.subject) {
            continue;
        }
        let purged = ground.head(parked.partition).purged;
        if parked.position <= purged {
            least.push(Place { partition: parked.partition, position: purged });
            continue;
        }
        parked.redrive = true;
        count = count.saturating_add(1);
    }
    if count == 0 && !least.is_empty() {
        return Err(Refusal::Purged { least });
    }
    Ok(Redriven { next: (consumer != *before).then_some(consumer), count })
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Parked,
            fixtures::{GROUND, consumer, event, parked, place},
        },
        *,
    };

    fn redriven(parked: Parked) -> Parked {
        Parked { redrive: true, ..parked }
    }

    #[test]
    fn an_event_comes_again_with_all_of_its_subject() {
        let mut before = consumer();
        before.parked = vec![parked(5, "a"), parked(6, "b"), parked(7, "a")];
        for named in [5, 7] {
            let command = Redrive::Events(vec![event(named)]);
            let Redriven { next, count } = decide(Some(&before), &command, &GROUND).unwrap();
            let expected = [redriven(parked(5, "a")), parked(6, "b"), redriven(parked(7, "a"))];
            assert_eq!((next.as_ref().unwrap().parked.as_slice(), count), (&expected[..], 2));
            let again = decide(next.as_ref(), &command, &GROUND).unwrap();
            assert_eq!(again, Redriven { next: None, count: 2 });
        }
        let all = decide(Some(&before), &Redrive::All, &GROUND).unwrap();
        assert_eq!(all.count, 3);
    }

    #[test]
    fn an_event_that_is_not_set_aside_is_no_event() {
        let command = Redrive::Events(vec![event(5)]);
        let none = Redriven { next: None, count: 0 };
        assert_eq!(decide(Some(&consumer()), &command, &GROUND), Ok(none));
        assert_eq!(decide(None, &command, &GROUND), Err(Refusal::Unknown));
    }

    #[test]
    fn an_event_that_was_purged_cannot_come_again() {
        let mut before = consumer();
        before.parked = vec![parked(2, "a")];
        let purged = decide(Some(&before), &Redrive::All, &GROUND);
        assert_eq!(purged, Err(Refusal::Purged { least: vec![place(0, 2)] }));
        before.parked.push(parked(5, "b"));
        assert_eq!(decide(Some(&before), &Redrive::All, &GROUND).unwrap().count, 1);
    }
}
