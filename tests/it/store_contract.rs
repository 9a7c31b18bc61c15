//! What every store promises, as one suite: each function takes a [`Fixture`] and is a test of every store named at the
//! end of this file. What is peculiar to one store (its files, its damages) stands behind that.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    future::Future,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use alipayplus_cancel::{
    domain::{
        authorization::Authorization,
        consumer::{Consumer, ConsumerName, Progress, StreamId},
        event::Event,
        id::PassThroughInfo,
        key::{AuthorizationKey, Partitions, PaymentKey, Subject, TokenKey},
        payment::{Payment, State},
        result::ResultCode,
        time::Timestamp,
        token::Token,
    },
    store::{
        Backlog, Batch, Changes, Cursor, Error, Following, Head, Kept, Known, Outstanding,
        OutstandingPayment, Page, Place, Positioned, Standing, StandingChange, Store, Takeover,
        Wanted,
    },
};
use proptest::{
    collection::vec,
    prelude::*,
    strategy::ValueTree as _,
    test_runner::{Config, TestRunner},
};

use crate::values::{
    amount, any_consumer, any_consumer_name, any_event, any_family, any_payment, any_payment_key,
    at, authorization_key, cancelled, consumer_name, due, granted, initiated, live, payment_key,
    returned, token_key, unresolved, verdict,
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

pub async fn commit(
    store: &Arc<dyn Store>,
    wanted: Wanted,
    decide: impl FnMut(Known) -> Changes + Send + 'static,
) -> Result<(), Error> {
    store.commit(Box::new(Plan { wanted: Some(wanted), decide })).await.1
}

/// Commits changes that hang on nothing.
pub async fn write(store: &Arc<dyn Store>, changes: Changes) -> Result<(), Error> {
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
pub async fn known(store: &Arc<dyn Store>, wanted: Wanted) -> Known {
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

pub fn wants(payments: impl IntoIterator<Item = PaymentKey>) -> Wanted {
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

pub fn block_on<T>(work: impl Future<Output = T>) -> T {
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
        let payments: foldhash::HashMap<PaymentKey, Payment> = payments.into_iter().collect();
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

/// What a consumer is decided by.
pub async fn following(store: &Arc<dyn Store>, name: &ConsumerName) -> Following {
    let told = Arc::new(Mutex::new(None));
    let tell = Arc::clone(&told);
    let look = move |following| {
        *tell.lock().expect("no panic") = Some(following);
        Kept::AsItIs
    };
    store.follow(name.clone(), Box::new(look)).await.expect("a change that changes nothing");
    let following = told.lock().expect("no panic").take();
    following.expect("it was decided")
}

pub async fn keep(store: &Arc<dyn Store>, name: &ConsumerName, consumer: &Consumer) {
    let consumer = consumer.clone();
    let decide = move |_| Kept::Consumer(consumer.clone());
    store.follow(name.clone(), Box::new(decide)).await.expect("a change of a consumer");
}

fn consumers_are_created_changed_and_forgotten_whole<F: Fixture>() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let fixture = runtime.block_on(F::open());
    let store = fixture.store();
    let partitions = store.partitions().count();
    let consumers = || (any_consumer_name(), any_consumer(partitions), any_consumer(partitions));
    for_all(32, vec(consumers(), 1..4), |changes| {
        runtime.block_on(async {
            let mut all = BTreeMap::new();
            for (name, first, second) in changes {
                for consumer in [first, second] {
                    keep(&store, &name, &consumer).await;
                    let told = following(&store, &name).await.consumer;
                    prop_assert_eq!(told.as_ref(), Some(&consumer));
                    all.insert(name.clone(), consumer);
                }
            }
            let read = store.consumers().await.expect("consumers");
            prop_assert_eq!(read, all.clone().into_iter().collect::<Vec<_>>(), "by name");
            for name in all.keys() {
                store.follow(name.clone(), Box::new(|_| Kept::Nothing)).await.expect("forgotten");
                prop_assert!(following(&store, name).await.consumer.is_none());
                // one that was forgotten comes back as a new one
                keep(&store, name, &Consumer::default()).await;
                let told = following(&store, name).await.consumer;
                prop_assert_eq!(told, Some(Consumer::default()));
                for _ in 0..2 {
                    let forget = Box::new(|_| Kept::Nothing);
                    store.follow(name.clone(), forget).await.expect("it may be repeated");
                }
            }
            prop_assert!(store.consumers().await.expect("consumers").is_empty());
            Ok(())
        })
    });
}

fn a_change_of_a_consumer_is_whole_or_not_at_all<F: Fixture>() {
    block_on(async {
        let fixture = F::open().await;
        let store = fixture.store();
        let name = consumer_name("executor");
        let progress = |acknowledged| Progress { acknowledged, stream: Some(StreamId([3; 16])) };
        let before = Consumer {
            owner: Some("spiffe://wallet/executor".into()),
            progress: BTreeMap::from([(0, progress(7)), (1, progress(8))]),
            parked: Vec::new(),
        };
        keep(&store, &name, &before).await;
        let panics = store.follow(name.clone(), Box::new(|_| panic!("a defect in a rule"))).await;
        assert!(matches!(panics, Err(Error::Data(_))), "{panics:?}");
        assert_eq!(following(&store, &name).await.consumer.as_ref(), Some(&before));
        // no database counts that far, so the second of the two rows cannot be kept
        let mut beyond = before.clone();
        beyond.progress = BTreeMap::from([(0, progress(9)), (1, progress(u64::MAX))]);
        let refused = store.follow(name.clone(), Box::new(move |_| Kept::Consumer(beyond.clone())));
        let refused = refused.await;
        assert!(matches!(refused, Err(Error::Data(_))), "{refused:?}");
        assert_eq!(following(&store, &name).await.consumer.as_ref(), Some(&before));
        drop(store);
        let fixture = fixture.reopen().await;
        let kept = fixture.store().consumers().await.expect("consumers");
        assert_eq!(kept, [(name, before)], "a restart forgets nobody");
    });
}

/// Each adds one to what it finds; a lost update would leave the count short.
fn changes_of_one_consumer_run_one_after_the_other<F: Fixture>() {
    const TASKS: u64 = 8;
    const EACH: u64 = 12;
    block_on(async {
        let fixture = F::open().await;
        let store = fixture.store();
        let mut tasks = tokio::task::JoinSet::new();
        for task in 0..TASKS {
            let store = Arc::clone(&store);
            tasks.spawn(async move {
                for nth in 0..EACH {
                    let add = |following: Following| {
                        let mut consumer = following.consumer.unwrap_or_default();
                        consumer.progress.entry(5).or_default().acknowledged += 1;
                        Kept::Consumer(consumer)
                    };
                    let shared = consumer_name("shared");
                    store.follow(shared, Box::new(add)).await.expect("a change");
                    let own = consumer_name(&format!("own-{task}"));
                    store.follow(own, Box::new(add)).await.expect("a change");
                    // events go on being decided meanwhile
                    let event = cancelled(&payment_key(&format!("{task}/{nth}")));
                    let changes = Changes { events: vec![event], ..Changes::default() };
                    write(&store, changes).await.expect("a commit");
                }
            });
        }
        while let Some(task) = tasks.join_next().await {
            task.expect("no panic");
        }
        let shared =
            following(&store, &consumer_name("shared")).await.consumer.expect("it is known");
        assert_eq!(shared.progress[&5].acknowledged, TASKS * EACH);
        for task in 0..TASKS {
            let own = following(&store, &consumer_name(&format!("own-{task}"))).await;
            assert_eq!(own.consumer.expect("it is known").progress[&5].acknowledged, EACH);
        }
    });
}

fn a_consumer_is_decided_by_the_heads_and_the_standing_of_now<F: Fixture>() {
    block_on(async {
        let fixture = F::open().await;
        let store = fixture.store();
        let name = consumer_name("executor");
        let key = payment_key("p");
        let partition = key.partition(store.partitions());
        for count in 1..=3 {
            let changes = Changes { events: vec![cancelled(&key)], ..Changes::default() };
            write(&store, changes).await.expect("a commit");
            let told = following(&store, &name).await;
            assert_eq!(told.consumer, None);
            assert_eq!(told.heads.len(), usize::from(store.partitions().count()));
            let head = Head { position: count, purged: 0 };
            assert_eq!(told.heads[usize::from(partition)], head);
            assert_eq!(told.heads, store.heads().await.expect("heads"));
        }
        let standing = Standing { epoch: 1, onboarding: true, suspect: None };
        assert_eq!(following(&store, &name).await.standing, standing);
        store.change_standing(StandingChange::ImportComplete).await.expect("a change");
        assert!(!following(&store, &name).await.standing.onboarding);
    });
}

/// A reason is for people, so it may hold anything.
const REASON: &str = "restored;\u{0} '--\u{202e}";

fn a_suspect_store_decides_nothing_until_it_is_reconciled<F: Fixture>() {
    block_on(async {
        let fixture = F::open().await;
        let store = fixture.store();
        let grant = authorization_key("grant");
        let changes = Changes {
            payments: vec![(payment_key("p"), initiated(1))],
            authorizations: vec![(grant.clone(), granted())],
            tokens: vec![(token_key(0, 1), live(&grant))],
            events: vec![cancelled(&payment_key("p"))],
        };
        write(&store, changes).await.expect("a commit");
        for reason in [REASON, "another one"] {
            let change = StandingChange::Suspect(reason.to_owned());
            let standing = store.change_standing(change).await.expect("a change");
            let first = Some(REASON.to_owned());
            assert_eq!(standing, Standing { epoch: 1, onboarding: true, suspect: first });
        }
        drop(store);
        let fixture = fixture.reopen().await;
        let store = fixture.store();
        assert_eq!(store.standing().await.expect("a read").suspect.as_deref(), Some(REASON));

        let refused = commit(&store, wants([payment_key("p")]), |_| panic!("it decides nothing"));
        let refused = refused.await;
        assert!(matches!(&refused, Err(Error::Suspect(why)) if why == REASON), "{refused:?}");
        // a revocation that was lost must not look active, nor a token that was recorded unknown
        for key in [token_key(0, 1), token_key(0, 2)] {
            let refused = store.token(vec![key]).await;
            assert!(matches!(&refused, Err(Error::Suspect(why)) if why == REASON), "{refused:?}");
        }
        let payment = store.payment(payment_key("p")).await.expect("people look at payments");
        assert_eq!(payment, Some(initiated(1)));
        let events = all_events(&store).await;
        assert_eq!(events.values().map(Vec::len).sum::<usize>(), 1, "executors go on");
        let name = consumer_name("executor");
        assert_eq!(following(&store, &name).await.standing.suspect.as_deref(), Some(REASON));
        keep(&store, &name, &Consumer::default()).await;

        let done = StandingChange::Reconciled("compared\u{0} with the executor".to_owned());
        let standing = store.change_standing(done).await.expect("a change");
        let epoch = standing.epoch;
        assert!(epoch > 1_700_000_000, "the time, so that it never was: {epoch}");
        assert_eq!(standing, Standing { epoch, onboarding: true, suspect: None });
        let changes =
            Changes { payments: vec![(payment_key("p"), initiated(2))], ..Changes::default() };
        write(&store, changes).await.expect("it decides again");
        let token = store.token(vec![token_key(0, 1)]).await.expect("a read");
        assert_eq!(token, Some((live(&grant), Some(granted()))));
        assert_eq!(store.consumers().await.expect("consumers").len(), 1, "nobody was forgotten");

        let again = StandingChange::Suspect("again".to_owned());
        store.change_standing(again).await.expect("a change");
        let done = StandingChange::Reconciled(String::new());
        let last = store.change_standing(done).await.expect("a change").epoch;
        assert!(last > epoch);
        drop(store);
        let fixture = fixture.reopen().await;
        let standing = fixture.store().standing().await.expect("a read");
        assert_eq!(standing, Standing { epoch: last, onboarding: true, suspect: None });
    });
}

fn what_is_outstanding_is_counted_and_listed_longest_first<F: Fixture>() {
    use Outstanding::{FundReturnDue, Unresolved};
    block_on(async {
        let fixture = F::open().await;
        let store = fixture.store();
        for kind in [FundReturnDue, Unresolved] {
            assert_eq!(store.backlog(kind).await.expect("a backlog"), Backlog::default());
            assert!(store.outstanding(kind, 9).await.expect("a list").is_empty());
        }
        let put = async |payments: &[(&str, Payment)]| {
            let payments =
                payments.iter().map(|(id, payment)| (payment_key(id), payment.clone())).collect();
            write(&store, Changes { payments, ..Changes::default() }).await.expect("a commit");
        };
        let ids = async |kind, limit| -> Vec<String> {
            let list = store.outstanding(kind, limit).await.expect("a list");
            list.into_iter().map(|one| one.key.payment_request.as_str().to_owned()).collect()
        };
        put(&[
            ("b", due(300)),
            ("c", due(100)),
            ("a", due(-200)),
            ("v", unresolved(50)),
            ("u", unresolved(20)),
            ("initiated", initiated(1)),
            ("returned", returned(1)),
        ])
        .await;
        let backlog = |count, oldest| Backlog { count, oldest: Some(at(oldest)) };
        assert_eq!(store.backlog(FundReturnDue).await.expect("a backlog"), backlog(3, -200));
        assert_eq!(store.backlog(Unresolved).await.expect("a backlog"), backlog(2, 20));
        assert_eq!(ids(FundReturnDue, 9).await, ["a", "c", "b"]);
        assert_eq!(ids(FundReturnDue, 2).await, ["a", "c"]);
        assert_eq!(ids(Unresolved, 9).await, ["u", "v"]);
        assert_eq!(
            store.outstanding(FundReturnDue, 1).await.expect("a list"),
            [OutstandingPayment {
                key: payment_key("a"),
                since: at(-200),
                amount: Some(amount(1_999)),
            }]
        );
        let unresolved = store.outstanding(Unresolved, 1).await.expect("a list");
        assert_eq!((unresolved[0].since, unresolved[0].amount), (at(20), None));

        // one returns, and of another the core reports that it was debited after all
        put(&[("a", returned(-200)), ("u", due(400))]).await;
        assert_eq!(store.backlog(FundReturnDue).await.expect("a backlog"), backlog(3, 100));
        assert_eq!(store.backlog(Unresolved).await.expect("a backlog"), backlog(1, 50));
        assert_eq!(ids(FundReturnDue, 9).await, ["c", "b", "u"]);
        assert_eq!(ids(Unresolved, 9).await, ["v"]);
    });
}

/// Events of some payments of different partitions, each payment's at the times of `at`.
async fn aged(store: &Arc<dyn Store>, ids: &[&str], times: &[i64]) -> Vec<u16> {
    let mut partitions = Vec::new();
    for id in ids {
        let key = payment_key(id);
        let events = times.iter().map(|time| Event { at: at(*time), ..cancelled(&key) }).collect();
        write(store, Changes { events, ..Changes::default() }).await.expect("a commit");
        partitions.push(key.partition(store.partitions()));
    }
    assert_eq!(partitions.iter().collect::<HashSet<_>>().len(), ids.len(), "each its own");
    partitions
}

async fn positions(store: &Arc<dyn Store>, partition: u16, behind: u64) -> Vec<u64> {
    let events = events(store, partition, behind, u32::MAX).await.expect("events");
    events.iter().map(|event| event.position).collect()
}

fn a_purge_takes_the_oldest_events_without_a_gap_and_tells_how_far<F: Fixture>() {
    block_on(async {
        let fixture = F::open().await;
        let store = fixture.store();
        // the fourth is young, the fifth old again: clocks step back
        let partitions = aged(&store, &["a", "b"], &[10, 20, 30, 500, 40, 50]).await;
        let [one, other] = partitions[..] else { unreachable!("two") };
        let upto = |partition, position| vec![Place { partition, position }];

        // up to a place and with it
        assert_eq!(store.purge(upto(one, 2), at(1_000), 100).await.expect("a purge"), 2);
        assert_eq!(positions(&store, one, 0).await, [3, 4, 5, 6]);
        assert_eq!(positions(&store, one, 3).await, [4, 5, 6]);
        assert_eq!(positions(&store, other, 0).await, [1, 2, 3, 4, 5, 6]);
        let heads = store.heads().await.expect("heads");
        assert_eq!(heads[usize::from(one)], Head { position: 6, purged: 2 });
        assert_eq!(heads[usize::from(other)], Head { position: 6, purged: 0 });
        // again: nothing is left there
        assert_eq!(store.purge(upto(one, 2), at(1_000), 100).await.expect("a purge"), 0);
        assert_eq!(store.purge(upto(one, 0), at(1_000), 100).await.expect("a purge"), 0);

        // of before a time, exclusively, and never past one that is younger
        assert_eq!(store.purge(upto(one, 6), at(30), 100).await.expect("a purge"), 0);
        assert_eq!(store.purge(upto(one, 6), at(31), 100).await.expect("a purge"), 1);
        assert_eq!(store.purge(upto(one, 6), at(100), 100).await.expect("a purge"), 0);
        assert_eq!(positions(&store, one, 0).await, [4, 5, 6]);
        // beyond the head is no place
        assert_eq!(store.purge(upto(one, u64::MAX), at(501), 100).await.expect("a purge"), 3);
        assert_eq!(positions(&store, one, 0).await, [0; 0]);

        // what comes next goes on counting
        let changes = Changes { events: vec![cancelled(&payment_key("a"))], ..Changes::default() };
        write(&store, changes).await.expect("a commit");
        assert_eq!(positions(&store, one, 0).await, [7]);
        drop(store);
        let fixture = fixture.reopen().await;
        let heads = fixture.store().heads().await.expect("heads");
        assert_eq!(heads[usize::from(one)], Head { position: 7, purged: 6 });
    });
}

fn a_purge_is_as_large_as_it_may_be_and_no_larger<F: Fixture>() {
    block_on(async {
        let fixture = F::open().await;
        let store = fixture.store();
        let partitions = aged(&store, &["a", "b", "d"], &[1, 2, 3, 4]).await;
        let upto: Vec<_> =
            partitions.iter().map(|&partition| Place { partition, position: 3 }).collect();
        let mut removed = Vec::new();
        loop {
            let count = store.purge(upto.clone(), at(100), 4).await.expect("a purge");
            removed.push(count);
            if count < 4 {
                break;
            }
            for &partition in &partitions {
                let head = store.heads().await.expect("heads")[usize::from(partition)];
                let left = positions(&store, partition, 0).await;
                assert_eq!(left, (head.purged + 1..=head.position).collect::<Vec<_>>());
            }
        }
        assert_eq!(removed, [4, 4, 1]);
        for partition in partitions {
            assert_eq!(positions(&store, partition, 0).await, [4]);
        }
        assert_eq!(store.purge(upto, at(100), 0).await.expect("a purge"), 0);
    });
}

/// All that a store keeps.
#[derive(Debug, Default, PartialEq)]
struct Everything {
    payments: Vec<(PaymentKey, Payment)>,
    authorizations: Vec<(AuthorizationKey, Authorization)>,
    tokens: Vec<(TokenKey, Token)>,
    events: Vec<Positioned>,
    consumers: Vec<(ConsumerName, Consumer)>,
}

impl Everything {
    /// The first difference alone: all of it would be a book.
    fn assert_is(&self, other: &Self) {
        fn same<T: std::fmt::Debug + PartialEq>(ours: &[T], theirs: &[T]) {
            for (ours, theirs) in ours.iter().zip(theirs) {
                assert_eq!(ours, theirs);
            }
            assert_eq!(ours.len(), theirs.len());
        }
        same(&self.payments, &other.payments);
        same(&self.authorizations, &other.authorizations);
        same(&self.tokens, &other.tokens);
        same(&self.events, &other.events);
        same(&self.consumers, &other.consumers);
    }
}

/// Walks through a store, page by page.
async fn walk(store: &Arc<dyn Store>, limit: u32) -> (Vec<Page>, Everything) {
    let (mut pages, mut all) = (Vec::new(), Everything::default());
    let mut cursor = Some(Cursor::Payments(None));
    while let Some(at) = cursor {
        let page = store.page(at, limit).await.expect("a page");
        pages.push(page.clone());
        let full = |length: usize| {
            assert!(length <= usize::try_from(limit).expect("few"), "a page is too long");
            length > 0
        };
        cursor = match page {
            Page::Payments(page) => {
                let last = page.last().map(|(key, _)| key.clone());
                full(page.len());
                all.payments.extend(page);
                Some(last.map_or(Cursor::Authorizations(None), |key| Cursor::Payments(Some(key))))
            }
            Page::Authorizations(page) => {
                let last = page.last().map(|(key, _)| key.clone());
                full(page.len());
                all.authorizations.extend(page);
                Some(last.map_or(Cursor::Tokens(None), |key| Cursor::Authorizations(Some(key))))
            }
            Page::Tokens(page) => {
                let last = page.last().map(|(key, _)| key.hash);
                full(page.len());
                all.tokens.extend(page);
                Some(last.map_or(Cursor::Events(None), |hash| Cursor::Tokens(Some(hash))))
            }
            Page::Events(page) => {
                let place = |event: &Positioned| Place {
                    partition: event.partition,
                    position: event.position,
                };
                let last = page.last().map(place);
                full(page.len());
                all.events.extend(page);
                Some(last.map_or(Cursor::Consumers, |place| Cursor::Events(Some(place))))
            }
            Page::Consumers(page) => {
                all.consumers = page;
                None
            }
        };
    }
    (pages, all)
}

fn some<T: std::fmt::Debug>(runner: &mut TestRunner, of: impl Strategy<Value = T>) -> T {
    of.new_tree(runner).expect("a value").current()
}

/// A store with something of everything, purged and suspect.
async fn furnished<F: Fixture>() -> (F, Everything) {
    let fixture = F::open().await;
    let store = fixture.store();
    let mut runner = TestRunner::deterministic();
    let payments = some(&mut runner, vec((any_payment_key(), any_payment()), 20..30));
    let payments: BTreeMap<PaymentKey, Payment> = payments.into_iter().collect();
    let mut families = BTreeMap::new();
    let mut tokens = BTreeMap::new();
    for family in some(&mut runner, vec(any_family(), 6..9)) {
        if families.insert(family.key, family.authorization).is_none() {
            tokens.extend(family.tokens);
        }
    }
    let changes = Changes {
        payments: payments.clone().into_iter().collect(),
        authorizations: families.clone().into_iter().collect(),
        tokens: tokens.clone().into_iter().collect(),
        events: some(&mut runner, vec(any_event(), 30..40)),
    };
    write(&store, changes).await.expect("a commit");
    let partitions = aged(&store, &["a"], &[1, 2, 3]).await;
    let upto = vec![Place { partition: partitions[0], position: 1 }];
    // the partition may have had an event of some other time before
    store.purge(upto, Timestamp::MAX, 5).await.expect("a purge");
    for change in [
        StandingChange::Reconciled("a drill".to_owned()),
        StandingChange::ImportComplete,
        StandingChange::Suspect(REASON.to_owned()),
    ] {
        store.change_standing(change).await.expect("a change");
    }
    // after the new epoch: it may bring back whoever is ahead of the heads
    let partitions = store.partitions().count();
    let consumers = vec((any_consumer_name(), any_consumer(partitions)), 2..5);
    let consumers: BTreeMap<_, _> = some(&mut runner, consumers).into_iter().collect();
    for (name, consumer) in &consumers {
        keep(&store, name, consumer).await;
    }
    let mut events = Vec::new();
    for (partition, head) in (0..).zip(store.heads().await.expect("heads")) {
        let behind = Place { partition, position: head.purged };
        events.extend(store.events(vec![behind], u32::MAX).await.expect("events"));
    }
    let mut tokens: Vec<_> = tokens.into_iter().collect();
    tokens.sort_by_key(|(key, _)| key.hash.0);
    let sample = Everything {
        payments: payments.into_iter().collect(),
        authorizations: families.into_iter().collect(),
        tokens,
        events,
        consumers: consumers.into_iter().collect(),
    };
    (fixture, sample)
}

fn a_walk_meets_everything_once_in_order_whatever_the_size_of_a_page<F: Fixture>() {
    block_on(async {
        let (fixture, sample) = furnished::<F>().await;
        let store = fixture.store();
        assert!(sample.payments.len() > 7 && sample.tokens.len() > 7 && sample.events.len() > 7);
        for limit in [1, 2, 7, 1_000_000] {
            let (_, all) = walk(&store, limit).await;
            all.assert_is(&sample);
        }
    });
}

fn a_store_that_took_over_equals_the_other<F: Fixture>() {
    block_on(async {
        let (from, sample) = furnished::<F>().await;
        let (from_store, into) = (from.store(), F::open().await);
        let store = into.store();
        let (pages, _) = walk(&from_store, 7).await;
        for page in &pages {
            // an answer may be lost, and the page sent again
            for _ in 0..2 {
                store.fill(page.clone()).await.expect("a fresh store is filled");
            }
            let early = commit(&store, Wanted::default(), |_| panic!("half of it is here")).await;
            assert!(matches!(early, Err(Error::Unavailable(_))), "{early:?}");
        }
        // an interrupted run begins anew, after a restart too
        drop(store);
        let into = into.reopen().await;
        let store = into.store();
        let early = commit(&store, Wanted::default(), |_| panic!("it was not ended")).await;
        assert!(matches!(early, Err(Error::Unavailable(_))), "{early:?}");
        for page in &pages {
            store.fill(page.clone()).await.expect("it may be repeated");
        }
        let takeover = Takeover {
            standing: from_store.standing().await.expect("a standing"),
            heads: from_store.heads().await.expect("heads"),
        };
        store.take_over(takeover.clone()).await.expect("it is filled");

        let again = store.take_over(takeover.clone()).await;
        assert!(matches!(again, Err(Error::Data(_))), "{again:?}");
        for page in pages {
            let late = store.fill(page).await;
            assert!(matches!(late, Err(Error::Data(_))), "{late:?}");
        }
        let assert_equal = async |store: &Arc<dyn Store>| {
            assert_eq!(store.standing().await.expect("a standing"), takeover.standing);
            assert_eq!(store.heads().await.expect("heads"), takeover.heads);
            walk(store, 1_000).await.1.assert_is(&sample);
            for kind in [Outstanding::FundReturnDue, Outstanding::Unresolved] {
                let backlog = store.backlog(kind).await.expect("a backlog");
                assert_eq!(backlog, from_store.backlog(kind).await.expect("a backlog"));
            }
        };
        assert_equal(&store).await;
        assert_eq!(takeover.standing.suspect.as_deref(), Some(REASON), "doubts are taken over too");
        drop(store);
        let into = into.reopen().await;
        let store = into.store();
        assert_equal(&store).await;
        let done = StandingChange::Reconciled("compared".to_owned());
        store.change_standing(done).await.expect("a change");
        let partitions = aged(&store, &["a"], &[9]).await;
        let partition = usize::from(partitions[0]);
        let head = store.heads().await.expect("heads")[partition];
        assert_eq!(head.position, takeover.heads[partition].position + 1, "it goes on counting");
        assert_eq!(head.purged, takeover.heads[partition].purged);
    });
}

fn an_empty_store_is_taken_over_too<F: Fixture>() {
    block_on(async {
        let (from, into) = (F::open().await, F::open().await);
        from.store().change_standing(StandingChange::ImportComplete).await.expect("a change");
        let takeover = Takeover {
            standing: from.store().standing().await.expect("a standing"),
            heads: from.store().heads().await.expect("heads"),
        };
        let store = into.store();
        store.take_over(takeover.clone()).await.expect("there is nothing to fill");
        assert_eq!(store.standing().await.expect("a standing"), takeover.standing);
        let late = store.fill(Page::Payments(Vec::new())).await;
        assert!(matches!(late, Err(Error::Data(_))), "{late:?}");
        let changes =
            Changes { payments: vec![(payment_key("p"), initiated(1))], ..Changes::default() };
        write(&store, changes).await.expect("it serves");
    });
}

fn a_store_that_has_decided_is_not_filled<F: Fixture>() {
    block_on(async {
        let one = || payment_key("p");
        let payment = Changes { payments: vec![(one(), initiated(1))], ..Changes::default() };
        let event = Changes { events: vec![cancelled(&one())], ..Changes::default() };
        let dead = Token::DeadOnArrival(verdict(ResultCode::InvalidToken));
        let token = Changes { tokens: vec![(token_key(0, 1), dead)], ..Changes::default() };
        for changes in [payment, event, token] {
            let fixture = F::open().await;
            let store = fixture.store();
            write(&store, changes).await.expect("a commit");
            let before = walk(&store, 9).await.1;
            let other = Page::Payments(vec![(one(), initiated(2))]);
            let refused = store.fill(other).await;
            assert!(matches!(refused, Err(Error::Data(_))), "{refused:?}");
            let takeover = Takeover {
                standing: store.standing().await.expect("a standing"),
                heads: store.heads().await.expect("heads"),
            };
            let refused = store.take_over(takeover).await;
            assert!(matches!(refused, Err(Error::Data(_))), "{refused:?}");
            assert_eq!(walk(&store, 9).await.1, before);
            write(&store, Changes::default()).await.expect("it serves as before");
        }
    });
}

/// A head without its events would be a gap for ever.
fn a_take_over_that_lacks_events_is_refused_and_can_be_completed<F: Fixture>() {
    block_on(async {
        let (from, into) = (F::open().await, F::open().await);
        let (from, store) = (from.store(), into.store());
        aged(&from, &["a", "b"], &[1, 2, 3]).await;
        let takeover = Takeover {
            standing: from.standing().await.expect("a standing"),
            heads: from.heads().await.expect("heads"),
        };
        let Page::Events(events) = from.page(Cursor::Events(None), 100).await.expect("a page")
        else {
            panic!("events were asked for")
        };
        for missing in 0..events.len() {
            let some = events.iter().enumerate().filter(|(nth, _)| *nth < missing);
            let some = some.map(|(_, event)| event.clone()).collect();
            store.fill(Page::Events(some)).await.expect("a page");
            let refused = store.take_over(takeover.clone()).await;
            assert!(matches!(refused, Err(Error::Data(_))), "{refused:?}");
        }
        store.fill(Page::Events(events)).await.expect("a page");
        store.take_over(takeover.clone()).await.expect("now it is whole");
        assert_eq!(store.heads().await.expect("heads"), takeover.heads);
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
            consumers_are_created_changed_and_forgotten_whole,
            a_change_of_a_consumer_is_whole_or_not_at_all,
            changes_of_one_consumer_run_one_after_the_other,
            a_consumer_is_decided_by_the_heads_and_the_standing_of_now,
            a_suspect_store_decides_nothing_until_it_is_reconciled,
            what_is_outstanding_is_counted_and_listed_longest_first,
            a_purge_takes_the_oldest_events_without_a_gap_and_tells_how_far,
            a_purge_is_as_large_as_it_may_be_and_no_larger,
            a_walk_meets_everything_once_in_order_whatever_the_size_of_a_page,
            a_store_that_took_over_equals_the_other,
            an_empty_store_is_taken_over_too,
            a_store_that_has_decided_is_not_filled,
            a_take_over_that_lacks_events_is_refused_and_can_be_completed,
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
            for name in ["state.db", "state.db-wal", "state.db.anchor"] {
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
