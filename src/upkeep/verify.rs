//! Whether states and feed of a store tell the same story: invariants 4, 5, 6 and 9 of docs/semantics.md, on all of it.
//!
//! States are found by key, events by position, and a store cannot look an event up by what it is about. So the events
//! of as many partitions as fit into memory are read first (some thirty bytes each, sorted by their ids, which follow
//! from key and kind), then every state asks for the events it must have, and what nobody asked for has no state. A feed
//! with more events than [`EVENTS_IN_MEMORY`] takes another walk through the states for each such part; cancels are few
//! beside payments, so that is rare. Nothing else grows with the store.
//!
//! A live database changes meanwhile. Events are read before states, and states never forget; what a state lacks is
//! looked for once more among the events that came since.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::Arc,
};

use super::{
    transact::transact,
    walk::{Kind as Walked, PAGE, Step, Walk},
};
use crate::{
    domain::{
        amount::Amount,
        authorization::Authorization,
        event::{Event, EventCause, EventId, EventKind},
        id::TraceId,
        key::{AuthorizationKey, PaymentKey, Subject, TokenKey},
        payment::{Money, Payment, RefundState, State},
        result::ResultCode,
        time::Timestamp,
        token::Token,
    },
    store::{Changes, Cursor, Error, Head, Page, Place, Positioned, Store, Wanted},
};

/// Events held at once: about 130 MB.
pub const EVENTS_IN_MEMORY: u64 = 4_000_000;
/// Findings told one by one; the rest are counted.
pub const FINDINGS_TOLD: usize = 100;
/// States that lack an event, kept until the events that came meanwhile are read.
const LACKS_KEPT: usize = 100_000;

/// What can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Wrong {
    /// The file of an embedded store: its pages, a row's checksum, its chain of commits.
    File,
    /// A row that cannot be read, or is not what was written.
    Damaged,
    /// A state that no command could have made.
    ImpossibleState,
    /// A cancelled payment without its PaymentCancelled.
    PaymentCancelledMissing,
    /// Money due or returned without its FundReturnDue.
    FundReturnDueMissing,
    /// A revoked authorization without its AuthorizationRevoked.
    AuthorizationRevokedMissing,
    /// An event of something that did not happen.
    EventWithoutState,
    /// An event that is there twice.
    EventTwice,
    /// An event or a state that tells of another amount than was debited.
    AmountDiffers,
    /// Positions of a partition are not 1, 2, 3 ….
    PositionGap,
    /// An event in another partition than its subject's.
    EventInOtherPartition,
    /// More events were purged than states could have had.
    PurgedTooMany,
    /// A token of an authorization that is not there.
    GrantMissing,
    /// A token that was replaced by one that is not there, or is another authorization's.
    ReplacementMissing,
    /// A cancelled token whose authorization stands.
    GrantStands,
    /// A consumer beyond the end of the feed.
    ConsumerAhead,
}

impl Wrong {
    /// Its name for machines.
    pub const fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Damaged => "damaged",
            Self::ImpossibleState => "impossible_state",
            Self::PaymentCancelledMissing => "payment_cancelled_missing",
            Self::FundReturnDueMissing => "fund_return_due_missing",
            Self::AuthorizationRevokedMissing => "authorization_revoked_missing",
            Self::EventWithoutState => "event_without_state",
            Self::EventTwice => "event_twice",
            Self::AmountDiffers => "amount_differs",
            Self::PositionGap => "position_gap",
            Self::EventInOtherPartition => "event_in_other_partition",
            Self::PurgedTooMany => "purged_too_many",
            Self::GrantMissing => "grant_missing",
            Self::ReplacementMissing => "replacement_missing",
            Self::GrantStands => "grant_stands",
            Self::ConsumerAhead => "consumer_ahead",
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What.
    pub wrong: Wrong,
    /// Where, in a sentence.
    pub told: String,
}

/// What a store was found to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Looked at.
    pub payments: u64,
    /// Looked at.
    pub authorizations: u64,
    /// Looked at.
    pub tokens: u64,
    /// Looked at.
    pub events: u64,
    /// Looked at.
    pub consumers: u64,
    /// Events that were purged: that many states may lack theirs.
    pub purged: u64,
    /// Why the store decides nothing until `reconcile`, if it does not.
    pub suspect: Option<String>,
    /// The first findings.
    pub findings: Vec<Finding>,
    /// All of them, by kind.
    pub counts: Vec<(Wrong, u64)>,
}

impl Report {
    /// Whether nothing was found.
    pub fn is_clean(&self) -> bool {
        self.counts.is_empty()
    }

    /// Adds a finding.
    pub fn find(&mut self, wrong: Wrong, told: impl fmt::Display) {
        match self.counts.iter_mut().find(|(known, _)| *known == wrong) {
            Some((_, count)) => *count += 1,
            None => self.counts.push((wrong, 1)),
        }
        if self.findings.len() < FINDINGS_TOLD {
            self.findings.push(Finding { wrong, told: told.to_string() });
        }
    }
}

/// Hears how far the walk is: what is walked through, and how much of it.
pub type Hear<'a> = &'a mut (dyn FnMut(&'static str, u64) + Send);

/// Walks through all of a store.
pub async fn verify(store: &Arc<dyn Store>, hear: Hear<'_>) -> Result<Report, Error> {
    verify_within(store, EVENTS_IN_MEMORY, hear).await
}

/// The same, holding so many events at once.
pub async fn verify_within(
    store: &Arc<dyn Store>,
    events_in_memory: u64,
    hear: Hear<'_>,
) -> Result<Report, Error> {
    let mut report = Report { suspect: store.standing().await?.suspect, ..Report::default() };
    let heads = store.heads().await?;
    consumers(store, &mut report).await?;
    let mut from = 0;
    while from < heads.len() || from == 0 {
        let to = part(&heads, from, events_in_memory);
        let first = from == 0;
        let mut part = Part::read(store, &heads, from..to, &mut report, hear).await?;
        part.ask_states(store, first, &mut report, hear).await?;
        part.end(store, &heads, &mut report).await?;
        if to == from {
            break; // a store has at least one partition
        }
        from = to;
    }
    tokens(store, &mut report, hear).await?;
    Ok(report)
}

/// As many partitions as fit, at least one.
fn part(heads: &[Head], from: usize, most: u64) -> usize {
    let mut sum = 0u64;
    let fits = |head: &&Head| {
        sum = sum.saturating_add(head.position.saturating_sub(head.purged));
        sum <= most
    };
    let count = heads.iter().skip(from).take_while(fits).count();
    from.saturating_add(count.max(1)).min(heads.len())
}

/// An event, as far as it is compared.
struct Entry {
    id: EventId,
    amount: Option<Amount>,
    by_cancel: bool,
    asked: bool,
    place: Place,
}

/// The events of some partitions, and what the states of these lack.
struct Part {
    partitions: std::ops::Range<usize>,
    entries: Vec<Entry>,
    /// Of partitions that were purged: states without their event, that must have had it and that may not have had it.
    unseen: HashMap<usize, (u64, u64)>,
    lacks: Vec<Lack>,
    /// A walk was cut short by a damaged row, so what is left over says nothing.
    cut: bool,
}

/// An event that a state must have and that is not there.
struct Lack {
    id: EventId,
    wrong: Wrong,
    told: String,
}

impl Part {
    async fn read(
        store: &Arc<dyn Store>,
        heads: &[Head],
        partitions: std::ops::Range<usize>,
        report: &mut Report,
        hear: Hear<'_>,
    ) -> Result<Self, Error> {
        let mut part = Self {
            entries: Vec::new(),
            unseen: HashMap::new(),
            lacks: Vec::new(),
            cut: false,
            partitions: partitions.clone(),
        };
        let mut next: Vec<u64> = heads.iter().map(|head| head.purged.saturating_add(1)).collect();
        let begin = u16::try_from(partitions.start).ok().and_then(|start| start.checked_sub(1));
        // behind everything of the partition before
        let behind = begin.map(|partition| Place { partition, position: i64::MAX.unsigned_abs() });
        let mut walk = Walk::<Positioned>::behind(store, behind);
        let last_part = partitions.end == heads.len();
        'walk: loop {
            let events = match walk.step().await? {
                Step::Entries(events) => events,
                Step::End => break,
                Step::Damaged(behind) => {
                    report.damaged::<Positioned>(
                        behind.map(|at| format!("{}/{}", at.partition, at.position)),
                    );
                    part.cut = true;
                    break;
                }
            };
            for event in events {
                let place = usize::from(event.partition);
                if place >= partitions.end && !last_part {
                    break 'walk;
                }
                part.take(store, &event, heads, &mut next, report);
            }
            hear("events", report.events);
        }
        for at in partitions {
            let (Some(head), Some(next)) = (heads.get(at), next.get(at)) else { continue };
            report.purged = report.purged.saturating_add(head.purged);
            if *next <= head.position && !part.cut {
                let told = format!(
                    "partition {at}: its head is {}, and its events end before {next}",
                    head.position
                );
                report.find(Wrong::PositionGap, told);
            }
        }
        part.entries.sort_unstable_by_key(|entry| entry.id.0);
        for pair in part.entries.windows(2) {
            if let [one, two] = pair
                && one.id == two.id
            {
                let told = format!(
                    "event {} stands at {}/{} and at {}/{}",
                    one.id,
                    one.place.partition,
                    one.place.position,
                    two.place.partition,
                    two.place.position
                );
                report.find(Wrong::EventTwice, told);
            }
        }
        Ok(part)
    }

    fn take(
        &mut self,
        store: &Arc<dyn Store>,
        event: &Positioned,
        heads: &[Head],
        next: &mut [u64],
        report: &mut Report,
    ) {
        let (partition, position) = (event.partition, event.position);
        let Some(head) = heads.get(usize::from(partition)) else {
            let told =
                format!("event {} stands in partition {partition}, which there is not", event.id);
            return report.find(Wrong::EventInOtherPartition, told);
        };
        if let Some(next) = next.get_mut(usize::from(partition)) {
            if *next != position && position <= head.position {
                let told = format!("partition {partition}: {position} stands where {next} must");
                report.find(Wrong::PositionGap, told);
            }
            *next = position.saturating_add(1);
        }
        if position > head.position {
            if !store.shared() {
                let told = format!(
                    "partition {partition}: {position} stands behind its head, {}",
                    head.position
                );
                report.find(Wrong::PositionGap, told);
            }
            return;
        }
        report.events += 1;
        let own = event.event.subject.partition(store.partitions());
        if own != partition {
            let told = format!(
                "event {} of {} stands in partition {partition} and belongs into {own}",
                event.id,
                subject(&event.event.subject)
            );
            report.find(Wrong::EventInOtherPartition, told);
        }
        let amount = match event.event.kind {
            EventKind::FundReturnDue(amount) => Some(amount),
            EventKind::PaymentCancelled | EventKind::AuthorizationRevoked => None,
        };
        self.entries.push(Entry {
            id: event.id,
            amount,
            by_cancel: event.event.cause == EventCause::CancelPayment,
            asked: false,
            place: Place { partition, position },
        });
    }

    async fn ask_states(
        &mut self,
        store: &Arc<dyn Store>,
        first: bool,
        report: &mut Report,
        hear: Hear<'_>,
    ) -> Result<(), Error> {
        let heads = store.heads().await?;
        let mut walk = Walk::<(PaymentKey, Payment)>::behind(store, None);
        let mut walked = 0u64;
        loop {
            match walk.step().await? {
                Step::End => break,
                Step::Damaged(behind) => {
                    self.cut = true;
                    if first {
                        report.damaged::<(PaymentKey, Payment)>(behind.as_ref().map(payment_name));
                    }
                    break;
                }
                Step::Entries(payments) => {
                    walked += u64::try_from(payments.len()).unwrap_or(0);
                    for (key, payment) in payments {
                        self.ask_payment(store, &heads, key, &payment, first, report);
                    }
                }
            }
            hear("payments", walked);
        }
        if first {
            report.payments = walked;
        }
        let mut walk = Walk::<(AuthorizationKey, Authorization)>::behind(store, None);
        let mut walked = 0u64;
        loop {
            match walk.step().await? {
                Step::End => break,
                Step::Damaged(behind) => {
                    self.cut = true;
                    if first {
                        let name = behind.as_ref().map(authorization_name);
                        report.damaged::<(AuthorizationKey, Authorization)>(name);
                    }
                    break;
                }
                Step::Entries(authorizations) => {
                    walked += u64::try_from(authorizations.len()).unwrap_or(0);
                    for (key, authorization) in authorizations {
                        self.ask_authorization(store, &heads, key, &authorization, report);
                    }
                }
            }
            hear("authorizations", walked);
        }
        if first {
            report.authorizations = walked;
        }
        Ok(())
    }

    fn ask_payment(
        &mut self,
        store: &Arc<dyn Store>,
        heads: &[Head],
        key: PaymentKey,
        payment: &Payment,
        first: bool,
        report: &mut Report,
    ) {
        if first && let Some(why) = impossible(payment) {
            report.find(Wrong::ImpossibleState, format!("{}: {why}", payment_name(&key)));
        }
        let State::Cancelled(cancelled) = &payment.state else { return };
        let subject = Subject::Payment(key);
        let at = usize::from(subject.partition(store.partitions()));
        if !self.partitions.contains(&at) {
            return;
        }
        let here = cancelled.verdict.trace.is_some() || cancelled.verdict.by.is_some();
        let asked = Asked { subject, at, purged: heads.get(at).map_or(0, |head| head.purged) };
        self.ask(&asked, EventKind::PaymentCancelled, here, report);
        let (amount, must) = match &cancelled.money {
            Money::Untouched(_) => return,
            Money::Due { amount, .. } => (*amount, true),
            Money::Returned { amount, .. } => (*amount, here),
        };
        let Some(entry) = self.ask(&asked, EventKind::FundReturnDue(amount), must, report) else {
            return;
        };
        let debited = cancelled.terms.map(|terms| terms.amount);
        let (announced, by_cancel) = (entry.amount, entry.by_cancel);
        if announced != Some(amount) {
            let told =
                format!("{}: {amount:?} is due, and {announced:?} was announced", asked.name());
            report.find(Wrong::AmountDiffers, told);
        } else if by_cancel && debited.is_some_and(|debited| debited != amount) {
            let told = format!("{}: {amount:?} is due, and {debited:?} was debited", asked.name());
            report.find(Wrong::AmountDiffers, told);
        }
    }

    fn ask_authorization(
        &mut self,
        store: &Arc<dyn Store>,
        heads: &[Head],
        key: AuthorizationKey,
        authorization: &Authorization,
        report: &mut Report,
    ) {
        let Some(revoked) = &authorization.revoked else { return };
        let subject = Subject::Authorization(key);
        let at = usize::from(subject.partition(store.partitions()));
        if !self.partitions.contains(&at) {
            return;
        }
        let asked = Asked { subject, at, purged: heads.get(at).map_or(0, |head| head.purged) };
        self.ask(&asked, EventKind::AuthorizationRevoked, revoked.trace.is_some(), report);
    }

    /// Looks for an event. `must`: it was announced here; what was decided before an import may have been announced
    /// elsewhere.
    fn ask(
        &mut self,
        asked: &Asked,
        kind: EventKind,
        must: bool,
        report: &mut Report,
    ) -> Option<&Entry> {
        let id = event_id(kind, &asked.subject);
        if let Ok(place) = self.entries.binary_search_by_key(&id.0, |entry| entry.id.0) {
            let entry = self.entries.get_mut(place)?;
            entry.asked = true;
            return Some(entry);
        }
        if asked.purged > 0 {
            let (sure, perhaps) = self.unseen.entry(asked.at).or_default();
            *(if must { sure } else { perhaps }) += 1;
            return None;
        }
        if !must {
            return None;
        }
        let (wrong, told) = match kind {
            EventKind::PaymentCancelled => (
                Wrong::PaymentCancelledMissing,
                "is cancelled, and no event PaymentCancelled tells of it",
            ),
            EventKind::FundReturnDue(_) => (
                Wrong::FundReturnDueMissing,
                "has money due or returned, and no event FundReturnDue tells of it",
            ),
            EventKind::AuthorizationRevoked => (
                Wrong::AuthorizationRevokedMissing,
                "is revoked, and no event AuthorizationRevoked tells of it",
            ),
        };
        let told = format!("{} {told}", asked.name());
        if self.lacks.len() < LACKS_KEPT {
            self.lacks.push(Lack { id, wrong, told });
        } else {
            report.find(wrong, told);
        }
        None
    }

    async fn end(
        self,
        store: &Arc<dyn Store>,
        heads: &[Head],
        report: &mut Report,
    ) -> Result<(), Error> {
        let since = if self.lacks.is_empty() {
            HashSet::new()
        } else {
            since(store, heads, &self.partitions).await?
        };
        for lack in self.lacks.into_iter().filter(|lack| !since.contains(&lack.id.0)) {
            report.find(lack.wrong, lack.told);
        }
        if self.cut {
            return Ok(());
        }
        for entry in self.entries.iter().filter(|entry| !entry.asked) {
            // of two with one id, one is asked for; the other was told already
            let id = entry.id;
            let twin = |other: &&Entry| other.id == id && other.asked;
            let place = self.entries.partition_point(|other| other.id.0 < id.0);
            let mut same = self.entries.iter().skip(place).take_while(|other| other.id == id);
            if same.any(|other| twin(&other)) {
                continue;
            }
            let Place { partition, position } = entry.place;
            let told = format!("event {id} at {partition}/{position} tells of what no state knows");
            report.find(Wrong::EventWithoutState, told);
        }
        for at in self.partitions {
            let purged = heads.get(at).map_or(0, |head| head.purged);
            let (sure, perhaps) = self.unseen.get(&at).copied().unwrap_or_default();
            if sure > purged {
                let told = format!(
                    "partition {at}: {sure} states have no event, and only {purged} were purged"
                );
                report.find(Wrong::PaymentCancelledMissing, told);
            } else if !store.shared() && purged > sure.saturating_add(perhaps) {
                let told = format!(
                    "partition {at}: {purged} events were purged, and only {} states have none",
                    sure.saturating_add(perhaps)
                );
                report.find(Wrong::PurgedTooMany, told);
            }
        }
        Ok(())
    }
}

/// What an event is looked for by.
struct Asked {
    subject: Subject,
    at: usize,
    purged: u64,
}

impl Asked {
    fn name(&self) -> String {
        subject(&self.subject)
    }
}

/// An id follows from key and kind.
fn event_id(kind: EventKind, subject: &Subject) -> EventId {
    let event = Event {
        kind,
        subject: subject.clone(),
        acquirer: None,
        cause: EventCause::CancelPayment,
        at: Timestamp { unix_ms: 0 },
        result: None,
        pass_through_info: None,
        trace: None::<TraceId>,
    };
    event.id()
}

/// Ids of the events that came while the states were walked through.
async fn since(
    store: &Arc<dyn Store>,
    heads: &[Head],
    partitions: &std::ops::Range<usize>,
) -> Result<HashSet<[u8; 16]>, Error> {
    let mut ids = HashSet::new();
    for at in partitions.clone() {
        let (Some(head), Ok(partition)) = (heads.get(at), u16::try_from(at)) else { continue };
        let mut place = Place { partition, position: head.position };
        loop {
            let events = store.events(vec![place], PAGE).await?;
            let Some(last) = events.last() else { break };
            place.position = last.position;
            ids.extend(events.iter().map(|event| event.id.0));
        }
    }
    Ok(ids)
}

fn subject(subject: &Subject) -> String {
    match subject {
        Subject::Payment(key) => payment_name(key),
        Subject::Authorization(key) => authorization_name(key),
    }
}

fn payment_name(key: &PaymentKey) -> String {
    format!("payment {} of {}", key.payment_request, key.psp)
}

fn authorization_name(key: &AuthorizationKey) -> String {
    format!("authorization {} of {}", key.authorization, key.psp)
}

impl Report {
    fn damaged<T: Walked>(&mut self, behind: Option<String>) {
        let what = T::NAME;
        let place =
            behind.map_or("the first one".to_owned(), |behind| format!("the one behind {behind}"));
        let told = format!(
            "{what}: {place} cannot be read, or is not what was written; those behind it were not looked at"
        );
        self.find(Wrong::Damaged, told);
    }
}

/// What no command could have made of a payment.
fn impossible(payment: &Payment) -> Option<&'static str> {
    let open = payment.refunds().iter().any(|refund| refund.state != RefundState::Released);
    match &payment.state {
        State::Initiated(_) | State::Failed(_) => None,
        State::Succeeded(succeeded) => {
            let code = succeeded.refused.as_ref().map(|verdict| verdict.code);
            let refused = [ResultCode::CancelWindowExceed, ResultCode::ProcessFail];
            if code.is_some_and(|code| !refused.contains(&code)) {
                return Some(
                    "it was debited and is not cancelled, and its cancel was answered otherwise than F",
                );
            }
            let taken = succeeded
                .refunds
                .iter()
                .filter(|refund| refund.state != RefundState::Released)
                .fold(0u64, |sum, refund| sum.saturating_add(refund.amount.minor_units()));
            (taken > succeeded.terms.amount.minor_units())
                .then_some("its refunds are more than was paid")
        }
        State::Cancelled(cancelled) if cancelled.verdict.code != ResultCode::Success => {
            Some("it is cancelled, and its cancel was answered otherwise than SUCCESS")
        }
        State::Cancelled(_) => open.then_some("it is cancelled and refunded"),
    }
}

async fn consumers(store: &Arc<dyn Store>, report: &mut Report) -> Result<(), Error> {
    let Page::Consumers(consumers) = store.page(Cursor::Consumers, PAGE).await? else {
        return Ok(());
    };
    // read after the consumers: nobody acknowledges what is not there
    let heads = store.heads().await?;
    for (name, consumer) in consumers {
        report.consumers += 1;
        let places = consumer.progress.iter().map(|(at, progress)| (*at, progress.acknowledged));
        let parked = consumer.parked.iter().map(|parked| (parked.partition, parked.position));
        for (partition, position) in places.chain(parked) {
            let head = heads.get(usize::from(partition)).map_or(0, |head| head.position);
            if position > head {
                let told = format!(
                    "consumer {} is at {position} of partition {partition}, whose head is {head}: were commits lost?",
                    name.as_str()
                );
                report.find(Wrong::ConsumerAhead, told);
            }
        }
    }
    Ok(())
}

async fn tokens(store: &Arc<dyn Store>, report: &mut Report, hear: Hear<'_>) -> Result<(), Error> {
    let mut walk = Walk::<(TokenKey, Token)>::behind(store, None);
    loop {
        match walk.step().await? {
            Step::End => return Ok(()),
            Step::Damaged(behind) => {
                let name = behind.map(|key| format!("{} of {}", key.hash, key.psp));
                report.damaged::<(TokenKey, Token)>(name);
                return Ok(());
            }
            Step::Entries(tokens) => {
                report.tokens += u64::try_from(tokens.len()).unwrap_or(0);
                look_up(store, &tokens, report).await?;
                hear("tokens", report.tokens);
            }
        }
    }
}

/// Compares tokens with what they refer to.
async fn look_up(
    store: &Arc<dyn Store>,
    tokens: &[(TokenKey, Token)],
    report: &mut Report,
) -> Result<(), Error> {
    let mut look = Wanted::default();
    for (key, token) in tokens {
        let Token::Recorded(recorded) = token else { continue };
        look.authorizations.push(grant(key, recorded));
        let by = recorded.replaced_by.map(|hash| TokenKey { psp: key.psp.clone(), hash });
        look.tokens.extend(by);
    }
    look.authorizations.sort_unstable();
    look.authorizations.dedup();
    let known = transact(store, look, |known| (known, Changes::default())).await?;
    for (key, token) in tokens {
        let name = || format!("token {} of {}", key.hash, key.psp);
        let recorded = match token {
            Token::Recorded(recorded) => recorded,
            Token::DeadOnArrival(verdict) if verdict.code == ResultCode::InvalidToken => continue,
            Token::DeadOnArrival(_) => {
                let told = format!(
                    "{}: it is dead on arrival, and its cancel was answered otherwise",
                    name()
                );
                report.find(Wrong::ImpossibleState, told);
                continue;
            }
        };
        let Some(authorization) = known.authorizations.get(&grant(key, recorded)) else {
            let told =
                format!("{}: its authorization {} is not there", name(), recorded.authorization);
            report.find(Wrong::GrantMissing, told);
            continue;
        };
        if recorded.cancelled.is_some() && authorization.revoked.is_none() {
            let told = format!(
                "{}: its cancel was answered SUCCESS, and its authorization {} stands",
                name(),
                recorded.authorization
            );
            report.find(Wrong::GrantStands, told);
        }
        let Some(by) = recorded.replaced_by else { continue };
        let replaced = match known.tokens.get(&by) {
            Some(Token::Recorded(by)) => by.authorization == recorded.authorization,
            Some(Token::DeadOnArrival(_)) | None => false,
        };
        if !replaced {
            let told = format!(
                "{}: the token {by} that replaced it is not there, or is another authorization's",
                name()
            );
            report.find(Wrong::ReplacementMissing, told);
        }
    }
    Ok(())
}

fn grant(key: &TokenKey, recorded: &crate::domain::token::Recorded) -> AuthorizationKey {
    AuthorizationKey { psp: key.psp.clone(), authorization: recorded.authorization.clone() }
}
