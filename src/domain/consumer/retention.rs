//! What may be purged: only what every required consumer has behind it.

use std::collections::BTreeMap;

use super::{Consumer, ConsumerName, Head, Place};

/// Up to where events may go, for their age to be looked at; empty if nothing may.
///
/// Nothing may as long as no consumer is required, or one of them does not exist. An event that a required consumer set
/// aside is not handled, and stays.
pub fn purgeable(
    required: &[ConsumerName],
    consumers: &BTreeMap<ConsumerName, Consumer>,
    heads: &[Head],
) -> Vec<Place> {
    let required: Option<Vec<&Consumer>> =
        required.iter().map(|name| consumers.get(name)).collect();
    let required = required.unwrap_or_default();
    let place = |(partition, head): (u16, &Head)| {
        let position = required.iter().map(|it| behind(it, partition)).min()?;
        let position = position.min(head.position);
        (position > head.purged).then_some(Place { partition, position })
    };
    (0u16..).zip(heads).filter_map(place).collect()
}

fn behind(consumer: &Consumer, partition: u16) -> u64 {
    let acknowledged = consumer.progress.get(&partition).map_or(0, |it| it.acknowledged);
    let parked = consumer.parked.iter().find(|parked| parked.partition == partition);
    parked.map_or(acknowledged, |parked| acknowledged.min(parked.position.saturating_sub(1)))
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Progress,
            fixtures::{HEADS, consumer, parked, place},
        },
        *,
    };

    fn name(name: &str) -> ConsumerName {
        ConsumerName::parse(name).expect("a name")
    }

    #[test]
    fn nothing_goes_that_a_required_consumer_lacks() {
        let mut other = consumer();
        other.progress.insert(0, Progress { acknowledged: 9, stream: None });
        other.progress.insert(1, Progress { acknowledged: 5, stream: None });
        let known = BTreeMap::from([(name("a"), consumer()), (name("b"), other)]);
        let purgeable = |names: &[&str]| {
            purgeable(&names.iter().map(|it| name(it)).collect::<Vec<_>>(), &known, &HEADS)
        };
        assert_eq!(purgeable(&["b"]), [place(0, 9), place(1, 5)]);
        // a never followed partition 1
        assert_eq!(purgeable(&["a", "b"]), [place(0, 4)]);
        assert_eq!(purgeable(&["b", "c"]), [], "c does not exist");
        assert_eq!(purgeable(&[]), [], "nobody is required");
    }

    #[test]
    fn what_is_set_aside_stays() {
        let mut holding = consumer();
        holding.parked = vec![parked(4, "a"), parked(9, "b")];
        let known = BTreeMap::from([(name("a"), holding)]);
        assert_eq!(purgeable(&[name("a")], &known, &HEADS), [place(0, 3)]);
    }
}
