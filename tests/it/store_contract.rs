//! What every store promises, as one suite: each function takes a [`Fixture`] and is a test of every store named at the
//! end of this file. What is peculiar to one store (its files, its damages) stands behind that.

use std::{
    collections::{HashMap, HashSet},
    future::Future,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use alipayplus_cancel::{
    domain::{
        authorization::Authorization,
        event::Event,
        id::PassThroughInfo,
        key::{Partitions, PaymentKey, Subject},
        payment::{Payment, State},
        result::ResultCode,
        token::Token,
    },
    store::{Batch, Changes, Error, Known, Place, Positioned, StandingChange, Store, Wanted},
};
use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, TestRunner},
};

use crate::values::{
    any_event, any_family, any_payment, any_payment_key, at, authorization_key, cancelled, granted,
    initiated, live, payment_key, token_key, verdict,
};

/// An empty store of some kind, with everything it stands on.
pub trait Fixture: Sized + Send {
    /// Whether this machine has what it needs; if not, that was said.
    #[track_caller]
    fn can_run() -> bool {
        true
    }
    /// A new one.
    fn open() -> impl Future<Output = Self> + Send;
    /// The store.
    fn store(&self) -> Arc<dyn Store>;
    /// Closes the store in order and opens it again, as a restart does.
    fn reopen(self) -> impl Future<Output = Self> + Send;
}

/// A batch made of two values.
struct Plan<F> {
    wanted: Option<Wanted>,
    decide: F,
}

impl<F: FnMut(Known) -> Changes + Send> Batch for Plan<F> {
    fn wanted(&self) -> Wanted {
        let Some(wanted) = &self.wanted else { return Wanted::default() };
        Wanted {
            payments: wanted.payments.clone(),
            authorizations: wanted.authorizations.clone(),
            tokens: wanted.tokens.clone(),
        }
    }

    fn decide(&mut self, known: Known) -> Changes {
        (self.decide)(known)
    }

    fn deadline(&self) -> Instant {
        Instant::now() + Duration::from_secs(30)
    }
}

async fn commit(
    store: &Arc<dyn Store>,
    wanted: Wanted,
    decide: impl FnMut(Known) -> Changes + Send + 'static,
) -> Result<(), Error> {
    store.commit(Box::new(Plan { wanted: Some(wanted), decide })).await.1
}

/// Commits changes that hang on nothing.
async fn write(store: &Arc<dyn Store>, changes: Changes) -> Result<(), Error> {
    let wanted = everything(&changes);
    // a store may have to try again
    let again = move |_| Changes {
        payments: changes.payments.clone(),
        authorizations: changes.authorizations.clone(),
        tokens: changes.tokens.clone(),
        events: changes.events.clone(),
    };
    commit(store, wanted, again).await
}

/// Whatever changes: a batch changes only what it wants, and announces only what it is about.
fn everything(changes: &Changes) -> Wanted {
    let mut wanted = Wanted {
        payments: changes.payments.iter().map(|(key, _)| key.clone()).collect(),
        authorizations: changes.authorizations.iter().map(|(key, _)| key.clone()).collect(),
        tokens: changes.tokens.iter().map(|(key, _)| key.clone()).collect(),
    };
    for event in &changes.events {
        match event.subject.clone() {
            Subject::Payment(key) => wanted.payments.push(key),
            Subject::Authorization(key) => wanted.authorizations.push(key),
        }
    }
    wanted
}

/// What a batch is told of what it wants.
async fn known(store: &Arc<dyn Store>, wanted: Wanted) -> Known {
    let told = Arc::new(Mutex::new(None));
    let tell = Arc::clone(&told);
    let look = move |known| {
        *tell.lock().expect("no panic") = Some(known);
        Changes::default()
    };
    commit(store, wanted, look).await.expect("a batch that changes nothing");
    let known = told.lock().expect("no panic").take();
    known.expect("the batch was decided")
}

fn wants(payments: impl IntoIterator<Item = PaymentKey>) -> Wanted {
    Wanted { payments: payments.into_iter().collect(), ..Wanted::default() }
}

/// Events of one partition.
async fn events(
    store: &Arc<dyn Store>,
    partition: u16,
    position: u64,
    limit: u32,
) -> Result<Vec<Positioned>, Error> {
    store.events(vec![Place { partition, position }], limit).await
}

/// All events, partition by partition; asserts that positions are 1, 2, 3 … and that each is where it belongs.
async fn all_events(store: &Arc<dyn Store>) -> HashMap<u16, Vec<Positioned>> {
    let mut all = HashMap::new();
    for partition in 0..store.partitions().count() {
        let events = events(store, partition, 0, u32::MAX).await.expect("events");
        for (place, event) in (1..).zip(&events) {
            assert_eq!(event.position, place, "partition {partition} has a gap");
            assert_eq!(event.partition, partition);
            assert_eq!(event.event.subject.partition(store.partitions()), partition);
            assert_eq!(event.id, event.event.id());
        }
        all.insert(partition, events);
    }
    all
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(work)
}

/// Tries `cases` values; each is committed to a real disk, so there are not many.
fn for_all<S: Strategy>(
    cases: u32,
    strategy: S,
    check: impl Fn(S::Value) -> Result<(), TestCaseError>,
) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    if let Err(failure) = TestRunner::new(config).run(&strategy, check) {
        panic!("{failure}");
    }
}

fn every_kind_of_payment_reads_back_as_it_was_written<F: Fixture>() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let fixture = runtime.block_on(F::open());
    let store = fixture.store();
    let payments = vec((any_payment_key(), any_payment()), 1..12);
    for_all(48, payments, |payments| {
        let payments: HashMap<PaymentKey, Payment> = payments.into_iter().collect();
        runtime.block_on(async {
            let changes =
                Changes { payments: payments.clone().into_iter().collect(), ..Changes::default() };
            write(&store, changes).await.expect("a commit");
            for (key, payment) in &payments {
                let read = store.payment(key.clone()).await.expect("a read");
                prop_assert_eq!(read.as_ref(), Some(payment));
            }
            let known = known(&store, wants(payments.keys().cloned())).await;
            prop_assert_eq!(known.payments, payments);
            Ok(())
        })
    });
}

fn every_kind_of_token_and_authorization_reads_back_as_it_was_written<F: Fixture>() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let fixture = runtime.block_on(F::open());
    let store = fixture.store();
    for_all(48, any_family(), |family| {
        runtime.block_on(async {
            let changes = Changes {
                authorizations: vec![(family.key.clone(), family.authorization.clone())],
                tokens: family.tokens.clone().into_iter().collect(),
                ..Changes::default()
            };
            write(&store, changes).await.expect("a commit");
            let wanted =
                Wanted { tokens: family.tokens.keys().cloned().collect(), ..Wanted::default() };
            let known = known(&store, wanted).await;
            prop_assert_eq!(known.tokens.len(), family.tokens.len());
            for (key, token) in &family.tokens {
                prop_assert_eq!(known.tokens.get(&key.hash), Some(token));
                let read = store.token(vec![key.clone()]).await.expect("a read");
                let owner = match token {
                    Token::Recorded(_) => Some(family.authorization.clone()),
                    Token::DeadOnArrival(_) => None,
                };
                prop_assert_eq!(read, Some((token.clone(), owner)));
            }
            let any_recorded = family.tokens.values().any(|t| matches!(t, Token::Recorded(_)));
            let told = known.authorizations.get(&family.key);
            prop_assert_eq!(told, any_recorded.then_some(&family.authorization));
            Ok(())
        })
    });
}

fn every_event_reads_back_in_its_partition_under_its_id<F: Fixture>() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let fixture = runtime.block_on(F::open());
    let store = fixture.store();
    let written: Mutex<HashMap<u16, Vec<Event>>> = Mutex::default();
    for_all(32, vec(any_event(), 1..16), |events| {
        for event in &events {
            let partition = event.subject.partition(store.partitions());
            let mut written = written.lock().expect("no panic");
            written.entry(partition).or_default().push(event.clone());
        }
        runtime
            .block_on(write(&store, Changes { events, ..Changes::default() }))
            .expect("a commit");
        Ok(())
    });
    let read = runtime.block_on(all_events(&store));
    for (partition, events) in written.into_inner().expect("no panic") {
        let read: Vec<Event> = read[&partition].iter().map(|e| e.event.clone()).collect();
        assert_eq!(read, events, "in the order of the commits");
    }
}

fn what_was_never_written_is_unknown<F: Fixture>() {
    block_on(async {
        let fixture = F::open().await;
        let store = fixture.store();
        let wanted = Wanted {
            payments: vec![payment_key("none")],
            authorizations: vec![authorization_key("none")],
            tokens: vec![token_key(0, 0)],
        };
        let known = known(&store, wanted).await;
        assert!(known.payments.is_empty());
        assert!(known.authorizations.is_empty());
        assert!(known.tokens.is_empty());
        assert_eq!(store.payment(payment_key("none")).await.expect("a read"), None);
        assert_eq!(store.token(vec![token_key(0, 0)]).await.expect("a read"), None);
        assert!(all_events(&store).await.values().all(Vec::is_empty));
    });
}

fn a_token_is_found_under_any_of_its_keys_and_its_grant_comes_along<F: Fixture>() {
    block_on(async {
        let fixture = F::open().await;
        let store = fixture.store();
        let grant = authorization_key("grant");
        let changes = Changes {
            authorizations: vec![(grant.clone(), granted())],
            tokens: vec![(token_key(0, 2), live(&grant))],
            ..Changes::default()
        };
        write(&store, changes).await.expect("a commit");
        let keys = vec![token_key(0, 1), token_key(0, 2), token_key(0, 3)];
        let found = store.token(keys).await.expect("a read");
        assert_eq!(found, Some((live(&grant), Some(granted()))));
    });
}

fn a_batch_whose_decision_panics_changes_nothing_and_uses_up_no_position<F: Fixture>() {
    block_on(async {
        let fixture = F::open().await;
        let store = fixture.store();
        let key = payment_key("p");
        let change = |recorded_at| Changes {
            payments: vec![(payment_key("p"), initiated(recorded_at))],
            events: vec![cancelled(&payment_key("p"))],
            ..Changes::default()
        };
        write(&store, change(1)).await.expect("a commit");
        let panics = commit(&store, wants([key.clone()]), |_| panic!("a defect in a rule")).await;
        assert!(matches!(panics, Err(Error::Data(_))), "{panics:?}");
        assert_eq!(store.payment(key.clone()).await.expect("a read"), Some(initiated(1)));
        write(&store, change(2)).await.expect("the store lives on");
        assert_eq!(store.payment(key.clone()).await.expect("a read"), Some(initiated(2)));
        let partition = Subject::Payment(key).partition(store.partitions());
        assert_eq!(all_events(&store).await[&partition].len(), 2);
    });
}

/// A batch that has a defect even before its decision.
struct Senseless;

impl Batch for Senseless {
    fn wanted(&self) -> Wanted {
        panic!("a defect in a command")
    }

    fn decide(&mut self, _: Known) -> Changes {
        panic!("nobody knows what for")
    }

    fn deadline(&self) -> Instant {
        Instant::now()
    }
}

fn a_batch_that_panics_when_asked_what_it_wants_harms_nobody_else<F: Fixture>() {
    block_on(async {
        let fixture = F::open().await;
        let store = fixture.store();
        let panics = store.commit(Box::new(Senseless)).await.1;
        assert!(matches!(panics, Err(Error::Data(_))), "{panics:?}");
        let changes =
            || Changes { payments: vec![(payment_key("p"), initiated(1))], ..Changes::default() };
        write(&store, changes()).await.expect("the store lives on");
        assert_eq!(store.payment(payment_key("p")).await.expect("a read"), Some(initiated(1)));
    });
}

/// The last write of the batch is the one that cannot be kept, so that all others were made before.
fn a_batch_with_something_that_cannot_be_kept_changes_nothing_and_uses_up_no_position<
    F: Fixture,
>() {
    block_on(async {
        let fixture = F::open().await;
        let store = fixture.store();
        let orphan = live(&authorization_key("nobody recorded this grant"));
        let changes = Changes {
            payments: vec![(payment_key("p"), initiated(1))],
            authorizations: vec![(authorization_key("other"), granted())],
            tokens: vec![
                (token_key(0, 1), Token::DeadOnArrival(verdict(ResultCode::InvalidToken))),
                (token_key(0, 2), orphan),
            ],
            events: vec![cancelled(&payment_key("p"))],
        };
        let refused = write(&store, changes).await;
        assert!(matches!(refused, Err(Error::Data(_))), "{refused:?}");
        assert_eq!(store.payment(payment_key("p")).await.expect("a read"), None);
        assert_eq!(store.token(vec![token_key(0, 1)]).await.expect("a read"), None);
        let wanted =
            Wanted { authorizations: vec![authorization_key("other")], ..Wanted::default() };
        assert!(known(&store, wanted).await.authorizations.is_empty());
        assert!(all_events(&store).await.values().all(Vec::is_empty));

        let changes = Changes { events: vec![cancelled(&payment_key("p"))], ..Changes::default() };
        write(&store, changes).await.expect("a commit");
        all_events(&store).await;
    });
}

fn a_batch_that_changes_nothing_commits<F: Fixture>() {
    block_on(async {
        let fixture = F::open().await;
        let store = fixture.store();
        write(&store, Changes::default()).await.expect("nothing to write");
        assert!(all_events(&store).await.values().all(Vec::is_empty));
    });
}

fn a_second_write_of_a_key_replaces_the_first<F: Fixture>() {
    block_on(async {
        let fixture = F::open().await;
        let store = fixture.store();
        let grant = authorization_key("grant");
        let revoked = || Authorization {
            pass_through_info: Some(PassThroughInfo::parse("\u{0}").expect("legal")),
            ..granted()
        };
        for (recorded_at, authorization) in [(1, granted()), (2, revoked())] {
            let changes = Changes {
                payments: vec![(payment_key("p"), initiated(recorded_at))],
                authorizations: vec![(grant.clone(), authorization.clone())],
                tokens: vec![(token_key(0, 1), live(&grant))],
                events: Vec::new(),
            };
            write(&store, changes).await.expect("a commit");
            let read = store.payment(payment_key("p")).await.expect("a read");
            assert_eq!(read, Some(initiated(recorded_at)));
            let read = store.token(vec![token_key(0, 1)]).await.expect("a read");
            assert_eq!(read, Some((live(&grant), Some(authorization))));
        }
    });
}

fn a_reader_takes_up_where_it_stopped<F: Fixture>() {
    block_on(async {
        let fixture = F::open().await;
        let store = fixture.store();
        let key = payment_key("p");
        for _ in 0..3 {
            let changes =
                Changes { events: vec![cancelled(&key), cancelled(&key)], ..Changes::default() };
            write(&store, changes).await.expect("a commit");
        }
        let partition = Subject::Payment(key).partition(store.partitions());
        let places = async |behind, limit| -> Vec<u64> {
            let events = events(&store, partition, behind, limit).await.expect("events");
            events.iter().map(|event| event.position).collect()
        };
        assert_eq!(places(0, 4).await, [1, 2, 3, 4]);
        assert_eq!(places(4, 4).await, [5, 6]);
        assert_eq!(places(6, 4).await, [0; 0]);
        assert_eq!(places(u64::MAX, 4).await, [0; 0]);
        assert_eq!(places(0, 0).await, [0; 0]);
    });
}

/// A batch reads, adds one and writes; a lost update would leave the count short.
fn batches_of_the_same_key_run_one_after_the_other<F: Fixture>() {
    const TASKS: i64 = 16;
    const EACH: i64 = 12;
    block_on(async {
        let fixture = F::open().await;
        let store = fixture.store();
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..TASKS {
            let store = Arc::clone(&store);
            tasks.spawn(async move {
                for _ in 0..EACH {
                    let add = |known: Known| {
                        let key = payment_key("p");
                        let count = known
                            .payments
                            .get(&key)
                            .and_then(|payment| payment.recorded_at)
                            .map_or(0, |at| at.unix_ms);
                        Changes {
                            events: vec![Event { at: at(count + 1), ..cancelled(&key) }],
                            payments: vec![(key, initiated(count + 1))],
                            ..Changes::default()
                        }
                    };
                    commit(&store, wants([payment_key("p")]), add).await.expect("a commit");
                }
            });
        }
        while let Some(task) = tasks.join_next().await {
            task.expect("no panic");
        }
        let last = store.payment(payment_key("p")).await.expect("a read");
        assert_eq!(last, Some(initiated(TASKS * EACH)));
        let partition = Subject::Payment(payment_key("p")).partition(store.partitions());
        let events = all_events(&store).await.remove(&partition).expect("its partition");
        let counts: Vec<i64> = events.iter().map(|event| event.event.at.unix_ms).collect();
        assert_eq!(counts, (1..=TASKS * EACH).collect::<Vec<_>>(), "in the order of the commits");
    });
}

/// Readers run beside the writers, and a position that was passed must never be filled later.
fn what_a_reader_has_passed_never_gains_an_earlier_event<F: Fixture>() {
    const TASKS: usize = 8;
    const EACH: usize = 16;
    block_on(async {
        let fixture = F::open().await;
        let store = fixture.store();
        let mut writers = tokio::task::JoinSet::new();
        for task in 0..TASKS {
            let store = Arc::clone(&store);
            writers.spawn(async move {
                for nth in 0..EACH {
                    let events = (0..3)
                        .map(|part| cancelled(&payment_key(&format!("{task}-{nth}-{part}"))))
                        .collect();
                    write(&store, Changes { events, ..Changes::default() })
                        .await
                        .expect("a commit");
                }
            });
        }
        let partitions = store.partitions().count();
        let mut passed: Vec<u64> = vec![0; usize::from(partitions)];
        let mut seen = 0;
        while seen < TASKS * EACH * 3 {
            for partition in 0..partitions {
                let passed = &mut passed[usize::from(partition)];
                for event in events(&store, partition, *passed, 64).await.expect("events") {
                    assert_eq!(event.position, *passed + 1, "a reader was led past an event");
                    *passed += 1;
                    seen += 1;
                }
            }
        }
        while let Some(task) = writers.join_next().await {
            task.expect("no panic");
        }
    });
}

fn a_read_that_begins_after_a_commit_was_answered_sees_it<F: Fixture>() {
    block_on(async {
        let fixture = F::open().await;
        let store = fixture.store();
        let mut tasks = tokio::task::JoinSet::new();
        for task in 0..8u8 {
            let store = Arc::clone(&store);
            tasks.spawn(async move {
                let key = payment_key(&format!("fresh-{task}"));
                let grant = authorization_key(&format!("fresh-{task}"));
                for count in 1..=12 {
                    let changes = Changes {
                        payments: vec![(key.clone(), initiated(count))],
                        authorizations: vec![(grant.clone(), granted())],
                        tokens: vec![(token_key(task, 0), live(&grant))],
                        events: vec![cancelled(&key)],
                    };
                    write(&store, changes).await.expect("a commit");
                    let read = store.payment(key.clone()).await.expect("a read");
                    assert_eq!(read, Some(initiated(count)));
                    assert!(store.token(vec![token_key(task, 0)]).await.expect("read").is_some());
                    let known = known(&store, wants([key.clone()])).await;
                    assert_eq!(known.payments.get(&key), Some(&initiated(count)));
                    let partition = Subject::Payment(key.clone()).partition(store.partitions());
                    let events = events(&store, partition, 0, u32::MAX).await.expect("events");
                    let ours = events.iter().filter(|event| event.id == cancelled(&key).id());
                    assert_eq!(i64::try_from(ours.count()).expect("few"), count);
                }
            });
        }
        while let Some(task) = tasks.join_next().await {
            task.expect("no panic");
        }
    });
}

/// A batch of many keys is all there or not at all, to whoever looks.
fn nobody_sees_half_a_batch<F: Fixture>() {
    block_on(async {
        let fixture = F::open().await;
        let store = fixture.store();
        let grant = authorization_key("whole");
        let writer = {
            let (store, grant) = (Arc::clone(&store), grant.clone());
            tokio::spawn(async move {
                for count in 0..24u8 {
                    let info = PassThroughInfo::parse(&count.to_string()).expect("legal");
                    let authorization =
                        Authorization { pass_through_info: Some(info), ..granted() };
                    let Token::Recorded(mut token) = live(&grant) else { unreachable!() };
                    token.expires_at = Some(at(i64::from(count)));
                    let changes = Changes {
                        authorizations: vec![(grant.clone(), authorization)],
                        tokens: vec![(token_key(0, 1), Token::Recorded(token))],
                        ..Changes::default()
                    };
                    write(&store, changes).await.expect("a commit");
                }
            })
        };
        while !writer.is_finished() {
            let Some((token, authorization)) =
                store.token(vec![token_key(0, 1)]).await.expect("a read")
            else {
                continue;
            };
            let Token::Recorded(token) = token else { panic!("it was recorded") };
            let count = token.expires_at.map(|at| at.unix_ms.to_string());
            let info = authorization.expect("its grant").pass_through_info;
            assert_eq!(count.as_deref(), info.as_ref().map(PassThroughInfo::as_str));
        }
        writer.await.expect("no panic");
    });
}

fn a_new_store_is_onboarding_until_the_import_is_complete_and_never_again<F: Fixture>() {
    block_on(async {
        let fixture = F::open().await;
        let store = fixture.store();
        assert!(store.standing().await.expect("a read").onboarding);
        assert!(known(&store, Wanted::default()).await.onboarding);
        for _ in 0..2 {
            store
                .change_standing(StandingChange::ImportComplete)
                .await
                .expect("it may be repeated");
            assert!(!store.standing().await.expect("a read").onboarding);
            assert!(!known(&store, Wanted::default()).await.onboarding);
        }
        drop(store);
        let fixture = fixture.reopen().await;
        let store = fixture.store();
        assert!(!store.standing().await.expect("a read").onboarding);
        assert!(!known(&store, Wanted::default()).await.onboarding);
    });
}

fn reopening_keeps_everything_and_goes_on_counting<F: Fixture>() {
    block_on(async {
        let mut fixture = F::open().await;
        let grant = authorization_key("grant");
        for start in 1..=3u8 {
            let store = fixture.store();
            let changes = Changes {
                payments: vec![(payment_key(&format!("p{start}")), initiated(i64::from(start)))],
                authorizations: vec![(grant.clone(), granted())],
                tokens: vec![(token_key(start, 0), live(&grant))],
                events: vec![cancelled(&payment_key("same"))],
            };
            write(&store, changes).await.expect("a commit");
            let before = all_events(&store).await;
            drop(store);
            fixture = fixture.reopen().await;
            let store = fixture.store();
            assert_eq!(all_events(&store).await, before);
            for nth in 1..=start {
                let read = store.payment(payment_key(&format!("p{nth}"))).await.expect("a read");
                assert_eq!(read, Some(initiated(i64::from(nth))));
                let read = store.token(vec![token_key(nth, 0)]).await.expect("a read");
                assert_eq!(read, Some((live(&grant), Some(granted()))));
            }
        }
    });
}

fn commits_of_many_tasks_are_all_there<F: Fixture>() {
    const TASKS: usize = 32;
    const EACH: usize = 8;
    block_on(async {
        let fixture = F::open().await;
        let store = fixture.store();
        let mut tasks = tokio::task::JoinSet::new();
        for task in 0..TASKS {
            let store = Arc::clone(&store);
            tasks.spawn(async move {
                for nth in 0..EACH {
                    let key = payment_key(&format!("{task}/{nth}"));
                    let changes = Changes {
                        events: vec![cancelled(&key)],
                        payments: vec![(key, initiated(1))],
                        ..Changes::default()
                    };
                    write(&store, changes).await.expect("a commit");
                }
            });
        }
        while let Some(task) = tasks.join_next().await {
            task.expect("no panic");
        }
        let events: Vec<Positioned> = all_events(&store).await.into_values().flatten().collect();
        assert_eq!(events.len(), TASKS * EACH);
        assert_eq!(events.iter().map(|e| e.id).collect::<HashSet<_>>().len(), TASKS * EACH);
        for task in 0..TASKS {
            for nth in 0..EACH {
                let read = store.payment(payment_key(&format!("{task}/{nth}"))).await;
                assert_eq!(read.expect("a read"), Some(initiated(1)));
            }
        }
    });
}

/// Makes a test of every function for a fixture.
macro_rules! contract {
    ($store:ident, $fixture:ty: $($test:ident,)*) => {
        mod $store {
            $(
                #[test]
                fn $test() {
                    if <$fixture as super::Fixture>::can_run() {
                        super::$test::<$fixture>();
                    }
                }
            )*
        }
    };
}

/// The suite, for each store.
macro_rules! suite {
    ($($store:ident: $fixture:ty,)*) => {$(
        contract! {
            $store, $fixture:
            every_kind_of_payment_reads_back_as_it_was_written,
            every_kind_of_token_and_authorization_reads_back_as_it_was_written,
            every_event_reads_back_in_its_partition_under_its_id,
            what_was_never_written_is_unknown,
            a_token_is_found_under_any_of_its_keys_and_its_grant_comes_along,
            a_batch_whose_decision_panics_changes_nothing_and_uses_up_no_position,
            a_batch_that_panics_when_asked_what_it_wants_harms_nobody_else,
            a_batch_with_something_that_cannot_be_kept_changes_nothing_and_uses_up_no_position,
            a_batch_that_changes_nothing_commits,
            a_second_write_of_a_key_replaces_the_first,
            a_reader_takes_up_where_it_stopped,
            batches_of_the_same_key_run_one_after_the_other,
            what_a_reader_has_passed_never_gains_an_earlier_event,
            a_read_that_begins_after_a_commit_was_answered_sees_it,
            nobody_sees_half_a_batch,
            a_new_store_is_onboarding_until_the_import_is_complete_and_never_again,
            reopening_keeps_everything_and_goes_on_counting,
            commits_of_many_tasks_are_all_there,
        }
    )*};
}

suite! {
    sqlite: crate::store_contract::embedded::Folder,
    postgres: crate::store_contract::shared::Database,
    postgres_serializable: crate::store_contract::shared::Serializable,
}

/// What is peculiar to PostgreSQL.
pub mod shared {
    use alipayplus_cancel::store::postgres::{Dsn, Durability, Options, Postgres};

    use super::{Arc, Fixture, Partitions, Store};
    use crate::harness::postgres::{self, Cluster};

    const KEYS: [[u8; 16]; 1] = [[1; 16]];

    /// A database of its own in the cluster that all tests share.
    pub struct Database {
        url: String,
        postgres: Arc<Postgres>,
    }

    impl Database {
        async fn at(url: String) -> Self {
            let options = options(&url);
            Postgres::migrate(&options).await.expect("a schema");
            let opened = Postgres::open(&options, &KEYS).await;
            let (postgres, primary) = opened.expect("a database");
            assert_eq!(primary, 0);
            Self { url, postgres: Arc::new(postgres) }
        }
    }

    /// How tests open a database.
    pub fn options(url: &str) -> Options {
        Options {
            dsn: Dsn::parse(url, None).expect("a URL"),
            partitions: Partitions::DEFAULT,
            durability: Durability::Local,
            lanes: 4,
            spare_connections: 4,
        }
    }

    impl Fixture for Database {
        fn can_run() -> bool {
            postgres::is_there_or_skip()
        }

        async fn open() -> Self {
            Self::at(Cluster::shared().fresh_database()).await
        }

        fn store(&self) -> Arc<dyn Store> {
            Arc::<Postgres>::clone(&self.postgres)
        }

        async fn reopen(self) -> Self {
            Self::at(self.url).await
        }
    }

    /// The same, where every transaction may end in a serialization failure.
    pub struct Serializable(Database);

    impl Fixture for Serializable {
        fn can_run() -> bool {
            postgres::is_there_or_skip()
        }

        async fn open() -> Self {
            let url = Cluster::shared().fresh_database();
            let with = if url.contains('?') { '&' } else { '?' };
            let isolation = "options=-c%20default_transaction_isolation%3Dserializable";
            Self(Database::at(format!("{url}{with}{isolation}")).await)
        }

        fn store(&self) -> Arc<dyn Store> {
            self.0.store()
        }

        async fn reopen(self) -> Self {
            Self(self.0.reopen().await)
        }
    }
}

/// What is peculiar to the embedded store.
pub mod embedded {
    use std::{fs, path::PathBuf};

    use alipayplus_cancel::store::sqlite::{OpenError, Sqlite};
    use rusqlite::Connection;
    use tempfile::TempDir;

    use super::{
        Arc, Changes, Error, Fixture, Partitions, StandingChange, State, Store, Wanted, block_on,
        initiated, known, payment_key, wants, write,
    };

    /// A database in a folder of its own.
    pub struct Folder {
        dir: TempDir,
        sqlite: Arc<Sqlite>,
    }

    const KEYS: [[u8; 16]; 2] = [[1; 16], [2; 16]];

    impl Folder {
        pub fn file(&self) -> PathBuf {
            self.dir.path().join("state.db")
        }

        /// Closes the store and keeps its files.
        fn shut(self) -> TempDir {
            self.sqlite.close();
            self.dir
        }
    }

    fn open(dir: &TempDir) -> Result<(Sqlite, usize), OpenError> {
        Sqlite::open(&dir.path().join("state.db"), Partitions::DEFAULT, &vec![KEYS[0]])
    }

    impl Fixture for Folder {
        async fn open() -> Self {
            let dir = TempDir::new().expect("a folder");
            let (sqlite, _) = open(&dir).expect("a new database");
            Self { dir, sqlite: Arc::new(sqlite) }
        }

        fn store(&self) -> Arc<dyn Store> {
            Arc::<Sqlite>::clone(&self.sqlite)
        }

        async fn reopen(self) -> Self {
            let Self { dir, sqlite } = self;
            sqlite.close();
            drop(sqlite);
            let (sqlite, _) = open(&dir).expect("the same database");
            Self { dir, sqlite: Arc::new(sqlite) }
        }
    }

    /// A closed database, for tests that tamper with it.
    fn made() -> TempDir {
        block_on(async { Folder::open().await.shut() })
    }

    fn sql(dir: &TempDir, text: &str) {
        let connection = Connection::open(dir.path().join("state.db")).expect("a database");
        connection.execute_batch(text).expect("legal SQL");
    }

    fn refused(dir: &TempDir) -> OpenError {
        open(dir).map(|_| ()).expect_err("it must not open")
    }

    #[test]
    fn the_number_of_partitions_is_fixed_at_the_first_start() {
        let dir = made();
        let file = dir.path().join("state.db");
        let other = Partitions::new(65).expect("a number of partitions");
        let error = Sqlite::open(&file, other, &vec![KEYS[0]]).map(|_| ()).expect_err("refused");
        assert!(matches!(error, OpenError::Partitions { found: 64, wanted: 65, .. }), "{error:?}");
        open(&dir).expect("it is unharmed");
    }

    #[test]
    fn a_database_of_another_program_is_refused_and_left_as_it_is() {
        let dir = TempDir::new().expect("a folder");
        sql(&dir, "CREATE TABLE theirs (x); INSERT INTO theirs VALUES (1);");
        assert!(matches!(refused(&dir), OpenError::Foreign(_)));
        sql(&dir, "SELECT x FROM theirs;");
        let tables: i64 = Connection::open(dir.path().join("state.db"))
            .and_then(|db| db.query_row("SELECT count(*) FROM sqlite_schema", [], |r| r.get(0)))
            .expect("a count");
        assert_eq!(tables, 1);
    }

    #[test]
    fn a_database_of_another_program_with_its_own_application_id_is_refused() {
        let dir = TempDir::new().expect("a folder");
        sql(&dir, "PRAGMA application_id = 77; PRAGMA user_version = 3; CREATE TABLE t (x);");
        assert!(matches!(refused(&dir), OpenError::Foreign(_)));
    }

    #[test]
    fn a_file_that_is_no_database_is_refused_and_left_as_it_is() {
        let dir = TempDir::new().expect("a folder");
        let file = dir.path().join("state.db");
        let garbage = b"payments of the year, as text\n".repeat(100);
        fs::write(&file, &garbage).expect("a file");
        assert!(matches!(refused(&dir), OpenError::NotSound { .. }), "{:?}", refused(&dir));
        assert_eq!(fs::read(&file).expect("the file"), garbage);
    }

    #[test]
    fn a_newer_schema_is_refused_only_if_it_says_that_it_needs_a_newer_program() {
        let dir = made();
        // an older program runs beside a newer one …
        sql(&dir, "PRAGMA user_version = 7;");
        let (sqlite, _) = open(&dir).expect("the newer schema allows this program");
        sqlite.close();
        drop(sqlite);
        // … until a migration really forbids it
        sql(&dir, "UPDATE meta SET value = 7 WHERE key = 'least_schema';");
        let error = refused(&dir);
        assert!(matches!(error, OpenError::TooNew { schema: 7, .. }), "{error:?}");
    }

    #[test]
    fn a_ring_that_lacks_a_hash_key_in_use_is_refused_and_a_new_key_does_not_become_primary() {
        let dir = made();
        let file = dir.path().join("state.db");
        let with = |ring: &[[u8; 16]]| {
            Sqlite::open(&file, Partitions::DEFAULT, &ring.to_vec()).map(|(_, primary)| primary)
        };
        let error = with(&[KEYS[1]]).expect_err("the first key is in use");
        assert!(matches!(error, OpenError::HashKeyMissing { .. }), "{error:?}");
        assert_eq!(with(&[KEYS[1], KEYS[0]]).expect("a ring that grew"), 1);
        let error = with(&[KEYS[0]]).expect_err("the second key is in use now");
        assert!(matches!(error, OpenError::HashKeyMissing { .. }), "{error:?}");
    }

    #[test]
    fn a_second_opener_is_refused_while_the_first_lives() {
        block_on(async {
            let folder = Folder::open().await;
            let error = refused(&folder.dir);
            assert!(matches!(error, OpenError::InUse(_)), "{error:?}");
            folder.reopen().await;
        });
    }

    #[test]
    fn a_folder_that_is_not_there_is_refused() {
        let dir = TempDir::new().expect("a folder");
        let file = dir.path().join("absent").join("state.db");
        let error =
            Sqlite::open(&file, Partitions::DEFAULT, &vec![KEYS[0]]).map(|_| ()).expect_err("no");
        assert!(matches!(error, OpenError::Open { .. }), "{error:?}");
    }

    #[test]
    fn a_closed_store_commits_nothing_and_says_so() {
        block_on(async {
            let folder = Folder::open().await;
            folder.sqlite.close();
            let changes =
                Changes { payments: vec![(payment_key("p"), initiated(1))], ..Changes::default() };
            let closed = write(&folder.store(), changes).await;
            assert!(matches!(closed, Err(Error::Closed)), "{closed:?}");
            let closed = folder.store().change_standing(StandingChange::ImportComplete).await;
            assert!(matches!(closed, Err(Error::Closed)), "{closed:?}");
        });
    }

    #[test]
    fn everything_that_was_sent_before_the_close_is_committed() {
        block_on(async {
            let folder = Folder::open().await;
            let store = folder.store();
            let keys: Vec<_> = (0..64).map(|nth| payment_key(&format!("p{nth}"))).collect();
            let mut commits = Vec::new();
            for key in keys.clone() {
                let changes = Changes { payments: vec![(key, initiated(1))], ..Changes::default() };
                let mut commit = Box::pin(write(&store, changes));
                // the first poll sends it
                assert!(futures_util::poll!(commit.as_mut()).is_pending());
                commits.push(commit);
            }
            folder.sqlite.close();
            for commit in commits {
                commit.await.expect("it was sent before");
            }
            drop(store);
            let folder = folder.reopen().await;
            let known = known(&folder.store(), wants(keys)).await;
            assert_eq!(known.payments.len(), 64);
        });
    }

    #[test]
    fn a_row_that_does_not_read_back_is_damage_and_its_neighbours_are_well() {
        block_on(async {
            let folder = Folder::open().await;
            let keys = [payment_key("good"), payment_key("bad")];
            let payments = keys.iter().map(|key| (key.clone(), initiated(1))).collect();
            write(&folder.store(), Changes { payments, ..Changes::default() })
                .await
                .expect("a commit");
            let dir = folder.shut();
            for damage in [
                "UPDATE payment SET state = 99 WHERE payment_request_id = 'bad';",
                "UPDATE payment SET state = 3, money = 4 WHERE payment_request_id = 'bad';",
                "UPDATE payment SET state = 1, money = NULL, amount = -1 WHERE payment_request_id = 'bad';",
                "UPDATE payment SET amount = 1, currency = 'eur' WHERE payment_request_id = 'bad';",
                "UPDATE payment SET currency = 'EUR', refunds = '[[' WHERE payment_request_id = 'bad';",
                "UPDATE payment SET refunds = NULL, verdict = 9 WHERE payment_request_id = 'bad';",
            ] {
                sql(&dir, damage);
                let (sqlite, _) = open(&dir).expect("rows are read when they are wanted");
                let store: Arc<dyn Store> = Arc::new(sqlite);
                let read = store.payment(keys[1].clone()).await;
                assert!(matches!(read, Err(Error::Damaged(_))), "{damage}: {read:?}");
                let wanted = wants(keys.clone());
                let batch = super::commit(&store, wanted, |_| panic!("must not be decided")).await;
                assert!(matches!(batch, Err(Error::Damaged(_))), "{damage}: {batch:?}");
                let good = store.payment(keys[0].clone()).await.expect("a read").expect("known");
                assert!(matches!(good.state, State::Initiated(_)));
            }
        });
    }

    #[test]
    fn what_a_killed_process_left_in_its_log_is_in_the_database_before_it_is_answered_from() {
        block_on(async {
            let running = Folder::open().await;
            let changes =
                Changes { payments: vec![(payment_key("p"), initiated(1))], ..Changes::default() };
            write(&running.store(), changes).await.expect("a commit");
            // what a kill leaves behind: the files as they are, nothing closed in order
            let left = TempDir::new().expect("a folder");
            for name in ["state.db", "state.db-wal"] {
                fs::copy(running.dir.path().join(name), left.path().join(name)).expect("a copy");
            }
            let log = |dir: &TempDir| {
                fs::metadata(dir.path().join("state.db-wal")).map_or(0, |file| file.len())
            };
            assert!(log(&left) > 0, "the commit is still in the log");

            let (sqlite, _) = open(&left).expect("the database");
            assert_eq!(log(&left), 0, "the log was synced, moved into the database, and cut");
            let payment = sqlite.payment(payment_key("p")).await.expect("a read");
            assert_eq!(payment, Some(initiated(1)));
        });
    }

    #[test]
    fn an_import_completed_by_another_process_is_noticed_with_the_next_commit() {
        block_on(async {
            let folder = Folder::open().await;
            let store = folder.store();
            assert!(known(&store, Wanted::default()).await.onboarding);
            Sqlite::complete_import_of(&folder.file()).expect("beside a running service");
            assert!(!known(&store, Wanted::default()).await.onboarding);
            assert!(!store.standing().await.expect("a read").onboarding);
        });
    }

    #[test]
    fn an_import_of_a_database_that_is_not_there_or_not_ours_is_refused() {
        let dir = TempDir::new().expect("a folder");
        let file = dir.path().join("state.db");
        let absent = Sqlite::complete_import_of(&file).expect_err("it is not there");
        assert!(matches!(absent, OpenError::Open { .. }), "{absent:?}");
        assert!(!file.exists(), "and was not made");
        sql(&dir, "CREATE TABLE meta (key, value);");
        let foreign = Sqlite::complete_import_of(&file).expect_err("it is not ours");
        assert!(matches!(foreign, OpenError::Foreign(_)), "{foreign:?}");
    }
}
