//! What the embedded store costs: bytes on the disk for each key, and commits a second.
//!
//! `cargo bench --bench store -- [KEYS]`, by default 1000000 keys of each kind, in commits of 512 keys, then commits of one
//! key and of 64.
//! Ids are of the length of Alipay+'s samples and in no order, which is the worst for a B-tree. Sizes are the same
//! everywhere; the times are of one machine at one moment.

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use alipayplus_cancel::{
    domain::{
        Verdict,
        amount::{Amount, Currency},
        authorization::Authorization,
        event::{Event, EventCause, EventKind},
        id::{
            AcquirerId, AuthorizationId, ClientId, FundReturnReference, PaymentRequestId, PspId,
            TokenHash, TraceId,
        },
        key::{AuthorizationKey, Partitions, PaymentKey, Subject, TokenKey},
        payment::{Cancelled, Money, Payment, State, Succeeded, Terms, Untouched},
        result::ResultCode,
        time::Timestamp,
        token::{Recorded, Token, TokenKind},
    },
    store::{Batch, Changes, Known, Store, Wanted, sqlite::Sqlite},
};

const NOW: Timestamp = Timestamp { unix_ms: 1_780_000_000_000 };
const BATCH: u64 = 512;

/// Changes that hang on nothing.
struct Plan(Option<Changes>);

impl Batch for Plan {
    fn wanted(&self) -> Wanted {
        let changes = self.0.as_ref();
        let payments = changes.map(|changes| &changes.payments).into_iter().flatten();
        Wanted { payments: payments.map(|(key, _)| key.clone()).collect(), ..Wanted::default() }
    }

    fn decide(&mut self, _: Known) -> Changes {
        self.0.take().unwrap_or_default()
    }

    fn deadline(&self) -> Instant {
        Instant::now() + Duration::from_mins(1)
    }
}

/// A permutation of numbers that looks like none.
fn scattered(nth: u64) -> u64 {
    let mixed = nth.wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (mixed ^ (mixed >> 31)).wrapping_mul(0x94d0_49bb_1331_11eb)
}

fn psp() -> PspId {
    PspId::parse("1022172000000000001").expect("an id")
}

fn acquirer() -> AcquirerId {
    AcquirerId::parse("1022188000000000001").expect("an id")
}

fn payment_key(nth: u64) -> PaymentKey {
    let id = format!("{:020}", scattered(nth));
    PaymentKey { psp: psp(), payment_request: PaymentRequestId::parse(&id).expect("an id") }
}

fn verdict() -> Verdict {
    let by = ClientId::parse("TEST_5X00000000000000");
    Verdict { code: ResultCode::Success, at: NOW, by, trace: Some(TraceId([7; 16])) }
}

fn event(key: &PaymentKey, kind: EventKind) -> Event {
    Event {
        kind,
        subject: Subject::Payment(key.clone()),
        acquirer: Some(acquirer()),
        cause: EventCause::CancelPayment,
        at: NOW,
        result: Some(ResultCode::Success),
        pass_through_info: None,
        trace: Some(TraceId([7; 16])),
    }
}

fn amount() -> Amount {
    Amount::new(1_999, Currency::parse("EUR").expect("a currency")).expect("an amount")
}

fn terms() -> Terms {
    Terms { amount: amount(), initiated_at: NOW }
}

fn tombstone(nth: u64, events: bool, changes: &mut Changes) {
    let key = payment_key(nth);
    if events {
        changes.events.push(event(&key, EventKind::PaymentCancelled));
    }
    let money = Money::Untouched(Untouched::Unknown);
    let cancelled = Cancelled { verdict: verdict(), terms: None, refunds: Vec::new(), money };
    let state = State::Cancelled(cancelled);
    let payment = Payment { acquirer: Some(acquirer()), recorded_at: None, state };
    changes.payments.push((key, payment));
}

fn recorded(key: PaymentKey, state: State) -> (PaymentKey, Payment) {
    (key, Payment { acquirer: Some(acquirer()), recorded_at: Some(NOW), state })
}

fn paid(nth: u64, _: bool, changes: &mut Changes) {
    let succeeded = Succeeded { terms: terms(), refunds: Vec::new(), refused: None };
    changes.payments.push(recorded(payment_key(nth), State::Succeeded(succeeded)));
}

fn due(nth: u64, events: bool, changes: &mut Changes) {
    let key = payment_key(nth);
    if events {
        changes.events.push(event(&key, EventKind::PaymentCancelled));
        changes.events.push(event(&key, EventKind::FundReturnDue(amount())));
    }
    changes.payments.push(cancelled(key, Money::Due { amount: amount(), since: NOW }));
}

fn returned(nth: u64, _: bool, changes: &mut Changes) {
    let reference = FundReturnReference::parse(&format!("{:020}", scattered(nth))).expect("legal");
    let money = Money::Returned { amount: amount(), since: NOW, at: NOW, reference };
    changes.payments.push(cancelled(payment_key(nth), money));
}

fn cancelled(key: PaymentKey, money: Money) -> (PaymentKey, Payment) {
    let (verdict, terms) = (verdict(), Some(terms()));
    recorded(key, State::Cancelled(Cancelled { verdict, terms, refunds: Vec::new(), money }))
}

/// An access and a refresh token of one grant.
fn tokens(nth: u64, _: bool, changes: &mut Changes) {
    let authorization = AuthorizationId::parse(&format!("{:020}", scattered(nth))).expect("an id");
    let grant = Authorization { acquirer: acquirer(), pass_through_info: None, revoked: None };
    let key = AuthorizationKey { psp: psp(), authorization: authorization.clone() };
    changes.authorizations.push((key, grant));
    for kind in [TokenKind::Access, TokenKind::Refresh] {
        let mut hash = [0; 32];
        let seed = nth.wrapping_mul(2).wrapping_add(u64::from(kind == TokenKind::Refresh));
        for (place, part) in hash.chunks_mut(8).enumerate() {
            let place = u64::try_from(place).unwrap_or_default();
            part.copy_from_slice(&scattered(seed ^ place.wrapping_shl(60)).to_be_bytes());
        }
        let recorded = Recorded {
            authorization: authorization.clone(),
            kind,
            expires_at: Some(NOW),
            replaced_by: None,
            cancelled: None,
        };
        let key = TokenKey { psp: psp(), hash: TokenHash(hash) };
        changes.tokens.push((key, Token::Recorded(recorded)));
    }
}

type Fill = fn(u64, bool, &mut Changes);

fn open(dir: &Path) -> Arc<Sqlite> {
    let file = dir.join("state.db");
    let opened = Sqlite::open(&file, Partitions::DEFAULT, &vec![[1; 16]]).expect("a new database");
    Arc::new(opened.0)
}

/// Commits all stages of so many keys, so many keys at once; few are between two stages, as in life.
fn fill(store: &Sqlite, keys: u64, at_once: u64, stages: &[Fill], events: bool) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let mut first = 0;
    while first < keys {
        for stage in stages {
            let mut changes = Changes::default();
            (first..keys.min(first + at_once)).for_each(|nth| stage(nth, events, &mut changes));
            let (_, result) = runtime.block_on(store.commit(Box::new(Plan(Some(changes)))));
            result.expect("a commit");
        }
        first += at_once;
    }
}

fn main() {
    let keys = std::env::args().skip(1).find_map(|argument| argument.parse().ok());
    let keys: u64 = keys.unwrap_or(1_000_000);
    let kinds: [(&str, &[Fill]); 4] = [
        ("payment cancelled while unknown", &[tombstone]),
        ("payment succeeded", &[paid]),
        ("payment succeeded, cancelled, returned", &[paid, due, returned]),
        ("grant with two tokens", &[tokens]),
    ];
    println!("{keys} keys of each kind, bytes a key:");
    println!("{:<40} {:>12} {:>14} {:>10}", "", "with events", "events purged", "keys/s");
    for (name, stages) in kinds {
        let mut bytes = Vec::new();
        let mut rate = 0;
        for events in [true, false] {
            let dir = tempfile::tempdir().expect("a folder");
            let store = open(dir.path());
            let begun = Instant::now();
            fill(&store, keys, BATCH, stages, events);
            if events {
                rate = u128::from(keys) * 1_000_000 / begun.elapsed().as_micros().max(1);
            }
            store.close();
            drop(store);
            let size = fs::metadata(dir.path().join("state.db")).expect("the file").len();
            bytes.push(size / keys.max(1));
        }
        println!("{name:<40} {:>12} {:>14} {rate:>10}", bytes[0], bytes[1]);
    }

    println!("commits a second, of cancels of unknown payments:");
    for at_once in [1, 64] {
        let dir = tempfile::tempdir().expect("a folder");
        let store = open(dir.path());
        let commits = 1_000;
        let begun = Instant::now();
        fill(&store, commits * at_once, at_once, &[tombstone], true);
        let took = begun.elapsed();
        let rate = u128::from(commits) * 1_000_000 / took.as_micros().max(1);
        println!("{at_once:>4} at once: {rate:>6}");
        store.close();
    }
}
