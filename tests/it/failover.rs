//! Two replicas over a PostgreSQL that fails over: what was answered is not lost, nobody waits longer than a deadline,
//! and cancels go on by themselves. `tests/ha/run` makes the cluster (Patroni, synchronous replication) and runs this.

use std::{
    collections::{BTreeMap, HashMap},
    env,
    fmt::Write as _,
    pin::Pin,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::{runtime::Runtime, task::JoinSet};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

use crate::{
    follower::Follower,
    harness::{
        PATIENCE, eventually,
        grpc::{
            Grant, Payment,
            wire::{
                self, RecordPaymentAnswer, RecordTokenAnswer, ResultCode,
                cancel_service_client::CancelServiceClient,
                payment_service_client::PaymentServiceClient,
                token_service_client::TokenServiceClient,
            },
        },
        service::{Options, Service},
    },
    history,
    oracle::{Money, Text},
};

const CALLERS: usize = 32;
/// What a cancel's caller may be kept waiting: the service's own deadline, and some room for a busy machine.
const LONGEST_CALL: Duration = Duration::from_millis(6_500 + 1_000);

type Decided = Option<prost_types::Timestamp>;

/// A call under way.
type Calling<T> = Pin<Box<dyn Future<Output = Result<tonic::Response<T>, Status>> + Send>>;

/// What callers heard.
struct Heard {
    begun: Instant,
    /// SUCCESS of a payment: when it was decided, whether it had been debited.
    payments: Mutex<HashMap<String, (Payment, Decided, bool)>>,
    /// SUCCESS of a token: its grant.
    tokens: Mutex<HashMap<String, (Grant, Decided)>>,
    /// When each SUCCESS was heard, and at which replica.
    at: Mutex<Vec<(Duration, usize)>>,
    unknown: AtomicUsize,
    slowest_ms: AtomicU64,
    stop: AtomicBool,
}

impl Heard {
    fn success(&self, replica: usize) {
        self.at.lock().expect("no panic").push((self.begun.elapsed(), replica));
    }

    fn count(&self) -> usize {
        self.at.lock().expect("no panic").len()
    }

    /// Longest time without a success since then, at any replica or at one.
    fn gap(&self, since: Duration, replica: Option<usize>) -> Duration {
        let mut at: Vec<Duration> = (self.at.lock().expect("no panic").iter())
            .filter(|(at, by)| *at >= since && replica.is_none_or(|replica| replica == *by))
            .map(|(at, _)| *at)
            .collect();
        at.sort_unstable();
        at.insert(0, since);
        at.push(self.begun.elapsed());
        at.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).max().expect("two")
    }

    /// Calls until there is an answer, at one replica and then at the other; what it answers, and which one.
    async fn insist<T>(
        &self,
        nth: usize,
        channels: &[Channel],
        call: impl Fn(Channel) -> Calling<T> + Send + Sync,
    ) -> (T, usize) {
        let begun = Instant::now();
        for attempt in nth.. {
            let replica = attempt % channels.len();
            let sent = Instant::now();
            let answer = tokio::time::timeout(PATIENCE, call(channels[replica].clone())).await;
            let took = sent.elapsed();
            let took_ms = took.as_millis().try_into().expect("short");
            self.slowest_ms.fetch_max(took_ms, Ordering::SeqCst);
            assert!(took < LONGEST_CALL, "a caller was kept for {took:?}");
            match answer.expect("seen above") {
                Ok(answer) => return (answer.into_inner(), replica),
                Err(status) => {
                    let never = [Code::InvalidArgument, Code::PermissionDenied, Code::NotFound];
                    assert!(!never.contains(&status.code()), "{status:?}");
                    self.unknown.fetch_add(1, Ordering::SeqCst);
                }
            }
            assert!(begun.elapsed() < 3 * PATIENCE, "nobody answers");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        unreachable!("without end")
    }

    /// A payment, debited or not, and its cancel.
    async fn payment(&self, nth: usize, channels: &[Channel]) {
        let payment = Payment::new();
        let debited = nth.is_multiple_of(3);
        if debited {
            let succeeded = payment.record(payment.succeeded());
            let call = |channel| -> Calling<_> {
                let request = succeeded.clone();
                Box::pin(async { PaymentServiceClient::new(channel).record_payment(request).await })
            };
            let (answer, _) = self.insist(nth, channels, call).await;
            assert_eq!(answer.answer(), RecordPaymentAnswer::Accepted);
        }
        let call = |channel| -> Calling<_> {
            let request = payment.cancel();
            Box::pin(async { CancelServiceClient::new(channel).cancel_payment(request).await })
        };
        let (answer, replica) = self.insist(nth, channels, call).await;
        assert_eq!(answer.result.expect("set").result_code(), ResultCode::Success);
        self.success(replica);
        let kept = (payment.clone(), answer.decided_at, debited);
        self.payments.lock().expect("no panic").insert(payment.request, kept);
    }

    /// A token, its cancel, and what the other replica says of it.
    async fn token(&self, nth: usize, channels: &[Channel]) {
        let grant = Grant::new();
        let token = format!("token of {}", grant.id);
        let call = |channel| -> Calling<_> {
            let request = grant.token(&token);
            Box::pin(async { TokenServiceClient::new(channel).record_token(request).await })
        };
        let (answer, _) = self.insist(nth, channels, call).await;
        assert_eq!(answer.answer(), RecordTokenAnswer::Accepted);
        let call = |channel| -> Calling<_> {
            let request = grant.cancel(&token);
            Box::pin(async { CancelServiceClient::new(channel).cancel_token(request).await })
        };
        let (answer, replica) = self.insist(nth, channels, call).await;
        assert_eq!(answer.result.expect("set").result_code(), ResultCode::Success);
        self.success(replica);
        let decided = answer.decided_at;
        self.tokens.lock().expect("no panic").insert(token.clone(), (grant.clone(), decided));
        let call = |channel| -> Calling<_> {
            let request = grant.introspect(&token);
            Box::pin(async { TokenServiceClient::new(channel).introspect_token(request).await })
        };
        let (answer, _) = self.insist(replica + 1, channels, call).await;
        assert!(!answer.active, "invariant 7: active after its cancel was answered");
    }

    /// One caller.
    async fn call(self: Arc<Self>, caller: usize, channels: Vec<Channel>) {
        for nth in caller.. {
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            if nth.is_multiple_of(5) {
                self.token(nth, &channels).await;
            } else {
                self.payment(nth, &channels).await;
            }
        }
    }
}

/// The cluster, by the script that made it.
fn cluster(arguments: &[&str]) -> String {
    let script = env::var("ALIPAYPLUS_CANCEL_TESTS_HA_DO").expect("run tests/ha/run");
    let output = Command::new(script).arg("do").args(arguments).output().expect("the script");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {told}");
    String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
}

/// One thing that goes wrong, and what was seen meanwhile.
struct Scenario<'a> {
    heard: &'a Heard,
    table: String,
}

impl Scenario<'_> {
    fn run(&mut self, name: &str, fault: impl FnOnce(&str)) {
        let heard = self.heard;
        let before = cluster(&["primary"]);
        let (since, count) = (heard.begun.elapsed(), heard.count());
        heard.unknown.store(0, Ordering::SeqCst);
        heard.slowest_ms.store(0, Ordering::SeqCst);
        fault(&before);
        // Patroni tells what it saw a moment ago
        thread::sleep(Duration::from_secs(5));
        cluster(&["healthy"]);
        let enough = heard.count() + 200;
        eventually("cancels go on by themselves", || (heard.count() >= enough).then_some(()));
        let gaps = [None, Some(0), Some(1)].map(|replica| heard.gap(since, replica).as_secs_f64());
        let took = heard.begun.elapsed().saturating_sub(since).as_secs_f64();
        let successes = heard.count() - count;
        let rate = f64::from(u32::try_from(successes).expect("few")) / took;
        writeln!(
            self.table,
            "{name:<42} {:>7.2} {:>7.2} {:>7.2} {:>9} {:>9} {:>7.2} {rate:>7.0}   {before} to {}",
            gaps[0],
            gaps[1],
            gaps[2],
            successes,
            heard.unknown.load(Ordering::SeqCst),
            f64::from(u32::try_from(heard.slowest_ms.load(Ordering::SeqCst)).expect("few")) / 1e3,
            cluster(&["primary"]),
        )
        .expect("a text");
    }
}

/// Everything that was answered is asked again of both, and is what it was.
async fn assert_remembered(heard: &Heard, channels: &[Channel]) {
    let mut asking = JoinSet::new();
    let payments = heard.payments.lock().expect("no panic").clone();
    let tokens = heard.tokens.lock().expect("no panic").clone();
    for replica in channels {
        for (payment, decided, debited) in payments.values().cloned() {
            let replica = replica.clone();
            asking.spawn(async move {
                let mut client = CancelServiceClient::new(replica.clone());
                let again = client.cancel_payment(payment.cancel()).await.expect("an answer");
                let again = again.into_inner();
                let result = again.result.expect("set");
                assert_eq!(result.result_code(), ResultCode::Success);
                assert_eq!((again.repeated, again.decided_at), (true, decided), "{payment:?}");
                let get = wire::GetPaymentRequest {
                    psp_id: payment.psp.clone(),
                    payment_request_id: payment.request.clone(),
                };
                let told = PaymentServiceClient::new(replica).get_payment(get).await;
                let told = told.expect("an answer").into_inner().payment.expect("set");
                let funds = if debited { wire::Funds::ReturnDue } else { wire::Funds::None };
                assert_eq!(told.funds(), funds, "{payment:?}");
            });
            if asking.len() >= 64 {
                asking.join_next().await.expect("one").expect("nothing is lost");
            }
        }
        for (token, (grant, decided)) in tokens.clone() {
            let mut client = CancelServiceClient::new(replica.clone());
            asking.spawn(async move {
                let again = client.cancel_token(grant.cancel(&token)).await.expect("an answer");
                let again = again.into_inner();
                assert_eq!((again.repeated, again.decided_at), (true, decided), "{grant:?}");
            });
            if asking.len() >= 64 {
                asking.join_next().await.expect("one").expect("nothing is lost");
            }
        }
    }
    while let Some(asked) = asking.join_next().await {
        asked.expect("nothing is lost");
    }
}

#[test]
#[ignore = "needs a cluster that fails over: tests/ha/run"]
fn no_answered_success_is_lost_by_a_failover_and_cancels_go_on_by_themselves() {
    let url = env::var("ALIPAYPLUS_CANCEL_TESTS_HA_URL").expect("run tests/ha/run");
    let options = || {
        let set = vec!["store.durability=replicated".to_owned()];
        Options { set, ..Options::on(&url) }
    };
    let mut replicas = [(); 2].map(|()| Service::start(options()));
    let heard = Arc::new(Heard {
        begun: Instant::now(),
        payments: Mutex::default(),
        tokens: Mutex::default(),
        at: Mutex::default(),
        unknown: AtomicUsize::new(0),
        slowest_ms: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    });
    let runtime = Runtime::new().expect("a runtime");
    let entered = runtime.enter();
    let channels = || {
        let connect = |replica: &Service| {
            let address = format!("http://{}", replica.ports().grpc);
            Endpoint::from_shared(address).expect("an address").connect_lazy()
        };
        replicas.iter().map(connect).collect::<Vec<Channel>>()
    };
    let addresses: Vec<_> = replicas.iter().map(|replica| replica.ports().grpc).collect();
    let follower = Follower::start(&runtime, addresses.len(), move |replica| addresses[replica]);
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| runtime.spawn(Arc::clone(&heard).call(caller * 1_000_003, channels())))
        .collect();
    let channels = channels();
    drop(entered);

    let table = format!(
        "{:<42} {:>7} {:>7} {:>7} {:>9} {:>9} {:>7} {:>7}   primary\n{:<42} {:>7} {:>7} {:>7} {:>9} {:>9} {:>7} {:>7}\n",
        "seconds without a success at",
        "either",
        "one",
        "other",
        "successes",
        "unknown",
        "slowest",
        "a second",
        "",
        "",
        "",
        "",
        "",
        "",
        "call, s",
        "",
    );
    let mut scenario = Scenario { heard: &heard, table };
    scenario.run("nothing wrong", |_| thread::sleep(Duration::from_secs(5)));
    scenario.run("postmaster of the primary killed", |primary| drop(cluster(&["kill", primary])));
    scenario.run("primary stands still for 15 s", |primary| {
        cluster(&["freeze", primary]);
        thread::sleep(Duration::from_secs(15));
        cluster(&["thaw", primary]);
    });
    scenario.run("primary stands still until it is deposed", |primary| {
        cluster(&["freeze", primary]);
        eventually("another one is primary", || {
            let now = cluster(&["primary"]);
            (!now.is_empty() && now != primary).then_some(())
        });
        // it goes on as if it were the primary, until it finds out
        thread::sleep(Duration::from_secs(5));
        cluster(&["thaw", primary]);
    });
    scenario.run("switchover", |_| drop(cluster(&["switchover"])));
    let table = scenario.table;
    heard.stop.store(true, Ordering::SeqCst);
    for caller in callers {
        let ended = runtime.block_on(async { tokio::time::timeout(3 * PATIENCE, caller).await });
        ended.expect("callers come to an end").expect("no caller heard what it must not");
    }
    println!("\n{table}");

    runtime.block_on(assert_remembered(&heard, &channels));
    let mut expected = BTreeMap::<(Text, String), Option<Money>>::new();
    for (request, (payment, _, debited)) in heard.payments.lock().expect("no panic").iter() {
        expected.insert(("PaymentCancelled", request.clone()), None);
        if *debited {
            let amount = (payment.amount.try_into().expect("minor units"), "EUR");
            expected.insert(("FundReturnDue", request.clone()), Some(amount));
        }
    }
    for (grant, _) in heard.tokens.lock().expect("no panic").values() {
        expected.insert(("AuthorizationRevoked", grant.id.clone()), None);
    }
    let events = follower.finish(&runtime, expected.len());
    history::check_events(&events, &expected).unwrap_or_else(|told| panic!("{told}"));
    println!(
        "{} events, {} successes, all of them remembered by both",
        events.len(),
        heard.count()
    );
    for replica in &mut replicas {
        assert!(replica.terminate().success(), "{}", replica.stderr());
    }
}
