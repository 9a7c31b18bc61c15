//! The feed, as an executor meets it.

use alipayplus_cancel::{
    domain::key::Partitions,
    engine::HashRing,
    store::{StandingChange, Store as _, sqlite::Sqlite},
};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::harness::{
    eventually,
    grpc::{Followed, Grant, Grpc, Payment, endpoint, wire},
    json::Connection,
    postgres,
    service::{Options, Service, Store, run},
    unique,
};

fn service() -> Service {
    Service::start(Options::set(["store.partitions=4"]))
}

/// A tombstone: one event.
fn cancel(grpc: &Grpc) -> Payment {
    let payment = Payment::new();
    grpc.cancel_payment(payment.cancel()).expect("a result");
    payment
}

/// A paid payment that is cancelled: two events.
fn cancel_paid(grpc: &Grpc) -> Payment {
    let payment = Payment::new();
    grpc.record(&payment, payment.succeeded());
    grpc.cancel_payment(payment.cancel()).expect("a result");
    payment
}

fn at(event: &wire::CancellationEvent) -> wire::PartitionPosition {
    wire::PartitionPosition { partition: event.partition, position: event.position }
}

fn acknowledging(consumer: &str, stream: &Followed<'_>) -> wire::AcknowledgeRequest {
    wire::AcknowledgeRequest {
        consumer: consumer.to_owned(),
        subscription_id: Some(stream.id.clone()),
        epoch: stream.epoch,
        ..wire::AcknowledgeRequest::default()
    }
}

fn acknowledge(
    grpc: &Grpc,
    consumer: &str,
    stream: &Followed<'_>,
    event: &wire::CancellationEvent,
) -> Result<wire::AcknowledgeResponse, Status> {
    let positions = vec![at(event)];
    grpc.acknowledge(wire::AcknowledgeRequest { positions, ..acknowledging(consumer, stream) })
}

fn parking(
    consumer: &str,
    stream: &Followed<'_>,
    event: &wire::CancellationEvent,
) -> wire::ParkRequest {
    wire::ParkRequest {
        consumer: consumer.to_owned(),
        event_id: event.event_id.clone(),
        reason: "no account".to_owned(),
        partition: event.partition,
        position: event.position,
        epoch: stream.epoch,
        subscription_id: Some(stream.id.clone()),
    }
}

fn lag(grpc: &Grpc, consumer: &str) -> wire::GetLagResponse {
    grpc.get_lag(wire::GetLagRequest { consumer: consumer.to_owned() }).expect("a consumer")
}

#[track_caller]
fn assert_refused(status: &Status, code: Code, reason: &str) {
    assert_eq!(status.code(), code, "{status}");
    let info = status.get_details_error_info().expect("ErrorInfo");
    assert_eq!((&*info.domain, &*info.reason), ("cancel.alipayplus", reason), "{status}");
}

#[test]
fn what_was_committed_comes_first_and_then_what_is_committed_live() {
    let service = service();
    let grpc = service.grpc();
    let payment = cancel_paid(&grpc);
    let mut stream = grpc.follow("executor");
    assert_eq!(stream.epoch, 1);
    let cancelled = stream.event();
    assert_eq!(cancelled.kind(), wire::EventKind::PaymentCancelled);
    assert_eq!(cancelled.cause(), wire::EventCause::CancelPayment);
    assert_eq!(cancelled.result_code(), wire::ResultCode::Success);
    assert_eq!(cancelled.payment_request_id.as_deref(), Some(&*payment.request));
    assert_eq!(cancelled.acquirer_id.as_deref(), Some(&*payment.acquirer));
    assert_eq!((cancelled.amount.as_ref(), cancelled.trace_id.len()), (None, 32));
    let due = stream.event();
    assert_eq!(due.kind(), wire::EventKind::FundReturnDue);
    assert_eq!(due.amount.as_ref().map(|amount| amount.value), Some(payment.amount));
    assert_eq!((due.partition, due.position), (cancelled.partition, cancelled.position + 1));
    stream.is_silent();

    let grant = Grant::new();
    grpc.record_token(grant.token("t")).expect("an answer");
    let pass_through_info = Some("bye".to_owned());
    let request = wire::CancelTokenRequest { pass_through_info, ..grant.cancel("t") };
    grpc.cancel_token(request).expect("a result");
    let revoked = stream.event();
    assert_eq!(revoked.kind(), wire::EventKind::AuthorizationRevoked);
    assert_eq!(revoked.authorization_id.as_deref(), Some(&*grant.id));
    assert_eq!(revoked.pass_through_info.as_deref(), Some("bye"));
}

#[test]
fn positions_have_no_gap_however_many_cancel_at_once() {
    let service = service();
    let live = service.grpc();
    let mut stream = live.follow("live");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let grpc = service.grpc();
                for _ in 0..25 {
                    cancel(&grpc);
                }
            });
        }
    });
    let mut later = live.follow("later");
    for stream in [&mut stream, &mut later] {
        let mut heads = [0u64; 4];
        for _ in 0..100 {
            let event = stream.event();
            let head = &mut heads[event.partition as usize];
            assert_eq!(event.position, *head + 1);
            *head = event.position;
        }
        stream.is_silent();
    }
}

#[test]
fn who_was_killed_before_it_acknowledged_sees_the_event_again_and_others_are_not_disturbed() {
    let mut service = service();
    let grpc = service.grpc();
    let payments = [(); 3].map(|()| cancel(&grpc));
    let mut other = grpc.follow("other");
    let others: Vec<String> = payments.iter().map(|_| other.event().event_id).collect();

    let mut stream = grpc.follow("executor");
    let (first, second) = (stream.event(), stream.event());
    acknowledge(&grpc, "executor", &stream, &first).unwrap();
    drop(stream);
    service.kill_nine();
    service.restart();

    let grpc = service.grpc();
    let mut stream = grpc.follow("executor");
    let mut again = vec![stream.event().event_id, stream.event().event_id];
    assert!(again.contains(&second.event_id), "handled, and not acknowledged");
    again.push(first.event_id);
    again.sort_unstable();
    let mut all = others.clone();
    all.sort_unstable();
    assert_eq!(again, all);
    stream.is_silent();
    let mut other = grpc.follow("other");
    let heard: Vec<String> = payments.iter().map(|_| other.event().event_id).collect();
    assert_eq!(heard, others, "it never acknowledged, so it sees all of them");
}

#[test]
fn an_acknowledgement_is_monotone_and_may_be_repeated() {
    let service = Service::start(Options::set(["store.partitions=1"]));
    let grpc = service.grpc();
    let payments = [(); 3].map(|()| cancel(&grpc));
    let mut stream = grpc.follow("executor");
    let events = payments.map(|_| stream.event());
    for (event, expected) in [(&events[1], 2), (&events[1], 2), (&events[0], 2), (&events[2], 3)] {
        let answer = acknowledge(&grpc, "executor", &stream, event).unwrap();
        let expected = wire::PartitionPosition { partition: 0, position: expected };
        assert_eq!(answer.positions, [expected]);
    }
    assert_eq!(lag(&grpc, "executor").events, 0);

    let ahead = wire::CancellationEvent { position: 4, ..events[2].clone() };
    let refused = acknowledge(&grpc, "executor", &stream, &ahead).unwrap_err();
    assert_refused(&refused, Code::OutOfRange, "AHEAD_OF_FEED");
    let refused = acknowledge(&grpc, "nobody", &stream, &events[0]).unwrap_err();
    assert_refused(&refused, Code::NotFound, "UNKNOWN_CONSUMER");
    stream.epoch = 7;
    let refused = acknowledge(&grpc, "executor", &stream, &events[0]).unwrap_err();
    assert_refused(&refused, Code::FailedPrecondition, "EPOCH_CHANGED");
    stream.epoch = 0;
    let refused = acknowledge(&grpc, "executor", &stream, &events[0]).unwrap_err();
    assert_refused(&refused, Code::InvalidArgument, "PARAM_ILLEGAL");
}

#[test]
fn a_newer_stream_ends_the_older_whose_acknowledgements_no_longer_count() {
    let service = service();
    let (old, new) = (service.grpc(), service.grpc());
    cancel(&old);
    let mut older = old.follow("executor");
    let event = older.event();
    let mut newer = new.follow("executor");
    assert_refused(&older.end(), Code::Aborted, "SUPERSEDED");
    let refused = acknowledge(&old, "executor", &older, &event).unwrap_err();
    assert_refused(&refused, Code::Aborted, "SUPERSEDED");
    let refused = old.park(parking("executor", &older, &event)).unwrap_err();
    assert_refused(&refused, Code::Aborted, "SUPERSEDED");
    assert_eq!(newer.event(), event);
    acknowledge(&new, "executor", &newer, &event).unwrap();
}

#[test]
fn a_parked_event_holds_up_its_key_alone_and_comes_again_in_order() {
    let service = Service::start(Options::set(["store.partitions=1"]));
    let grpc = service.grpc();
    let paid = cancel_paid(&grpc);
    let late = Payment::new();
    grpc.record(&late, late.initiated());
    grpc.cancel_payment(late.cancel()).expect("a result");
    let mut stream = grpc.follow("executor");
    let [cancelled, due, cancelled_late] = [(); 3].map(|()| stream.event());
    assert_eq!(due.payment_request_id.as_deref(), Some(&*paid.request));

    let mut request = parking("executor", &stream, &cancelled);
    request.event_id.clone_from(&due.event_id);
    let refused = grpc.park(request).unwrap_err();
    assert_refused(&refused, Code::NotFound, "UNKNOWN_EVENT");
    for _ in 0..2 {
        let parked = grpc.park(parking("executor", &stream, &cancelled)).unwrap();
        assert_eq!(parked.waiting, [at(&due)], "sent already, and told");
    }
    grpc.park(parking("executor", &stream, &cancelled_late)).unwrap();
    grpc.record(&late, late.succeeded());
    let free = cancel(&grpc);
    assert_eq!(stream.event().payment_request_id, Some(free.request), "nobody else is held up");

    let list = |page_size, page_token| {
        let consumer = "executor".to_owned();
        grpc.list_parked(wire::ListParkedRequest { consumer, page_size, page_token }).unwrap()
    };
    let parked = list(0, String::new());
    let told: Vec<(u64, Option<&str>)> =
        parked.events.iter().map(|it| (it.position, it.reason.as_deref())).collect();
    let why = Some("no account");
    assert_eq!(told, [(1, why), (2, None), (3, why), (4, None)]);
    let first = list(3, String::new());
    let second = list(3, first.next_page_token.clone());
    assert_eq!([first.events, second.events].concat(), parked.events);
    assert_eq!(second.next_page_token, "");
    let behind = lag(&grpc, "executor");
    assert_eq!((behind.events, behind.parked_events), (1, 4), "what is parked is passed");

    let redrive = |event: &wire::CancellationEvent| {
        let event_ids = vec![event.event_id.clone()];
        let request =
            wire::RedriveRequest { consumer: "executor".to_owned(), event_ids, all: false };
        grpc.redrive(request).unwrap().events
    };
    assert_eq!(redrive(&due), 2, "with all of its key");
    let mut again = Vec::new();
    for _ in 0..2 {
        let step = stream.next().unwrap();
        assert!(step.redriven);
        again.extend(step.event);
    }
    assert_eq!(again, [cancelled, due]);
    let event_ids = again.iter().map(|event| event.event_id.clone()).collect();
    let request = wire::AcknowledgeRequest { event_ids, ..acknowledging("executor", &stream) };
    for _ in 0..2 {
        grpc.acknowledge(request.clone()).unwrap();
    }
    assert_eq!(list(0, String::new()).events.len(), 2);
    // a consumer that begins anew is told of what is redriven first
    assert_eq!(redrive(&cancelled_late), 2);
    let mut stream = grpc.follow("executor");
    let steps = [(); 3].map(|()| stream.next().unwrap());
    assert_eq!(
        steps.map(|step| (step.redriven, step.event.unwrap().position)),
        [(true, 3), (true, 4), (false, 5)]
    );
}

#[test]
fn events_go_once_every_required_consumer_acknowledged_them_and_a_gap_is_out_of_range() {
    let service = Service::start(Options::set([
        "store.partitions=1",
        "feed.required_consumers=executor,audit",
        "feed.retention=1ms",
        "feed.purge_interval=20ms",
    ]));
    let grpc = service.grpc();
    for _ in 0..5 {
        cancel(&grpc);
    }
    let mut idle = grpc.follow("idle");
    let events = [(); 5].map(|()| idle.event());
    let executor = grpc.follow("executor");
    acknowledge(&grpc, "executor", &executor, &events[3]).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert_eq!(lag(&grpc, "idle").partitions[0].purged, 0, "audit does not exist yet");
    let audit = grpc.follow("audit");
    acknowledge(&grpc, "audit", &audit, &events[2]).unwrap();
    eventually("three events are purged", || {
        (lag(&grpc, "idle").partitions[0].purged == 3).then_some(())
    });

    let name = |consumer: &str| wire::SubscribeRequest {
        consumer: consumer.to_owned(),
        ..wire::SubscribeRequest::default()
    };
    let refused = grpc.subscribe(name("idle")).err().unwrap();
    assert_refused(&refused, Code::OutOfRange, "PURGED");
    let told = refused.get_details_error_info().unwrap().metadata;
    assert_eq!((&*told["partition"], &*told["earliest"], &*told["from"]), ("0", "4", "0:3"));
    let start = wire::SubscribeStart::Earliest.into();
    let mut accepting = grpc.subscribe(wire::SubscribeRequest { start, ..name("idle") }).unwrap();
    assert_eq!(accepting.event(), events[3]);
    assert_eq!(grpc.follow("new").event(), events[3], "a new name begins at the earliest there is");

    let forget = |consumer: &str| wire::DeleteConsumerRequest {
        consumer: consumer.to_owned(),
        identity: None,
    };
    let refused = grpc.delete_consumer(forget("audit")).unwrap_err();
    assert_refused(&refused, Code::FailedPrecondition, "REQUIRED_CONSUMER");
    grpc.delete_consumer(forget("idle")).unwrap();
    assert_refused(&accepting.end(), Code::NotFound, "UNKNOWN_CONSUMER");
    let consumers = grpc.list_consumers(wire::ListConsumersRequest {}).unwrap().consumers;
    let told: Vec<_> = consumers.iter().map(|it| (&*it.name, it.required, it.lag_events)).collect();
    assert_eq!(told, [("audit", true, 2), ("executor", true, 1), ("new", false, 2)]);
}

#[test]
fn a_stream_begins_where_it_is_told_to() {
    let service = Service::start(Options::set(["store.partitions=1"]));
    let grpc = service.grpc();
    for _ in 0..3 {
        cancel(&grpc);
    }
    let request = |start: wire::SubscribeStart, from: &[u64]| wire::SubscribeRequest {
        consumer: "executor".to_owned(),
        start: start.into(),
        from: from
            .iter()
            .map(|position| wire::PartitionPosition { partition: 0, position: *position })
            .collect(),
        ..wire::SubscribeRequest::default()
    };
    let mut stream = grpc.subscribe(request(wire::SubscribeStart::End, &[])).unwrap();
    stream.is_silent();
    let mut stream = grpc.subscribe(request(wire::SubscribeStart::Unspecified, &[2])).unwrap();
    assert_eq!(stream.event().position, 3);
    let mut stream = grpc.subscribe(request(wire::SubscribeStart::Earliest, &[])).unwrap();
    assert_eq!(stream.event().position, 1);
    let refused = grpc.subscribe(request(wire::SubscribeStart::Earliest, &[4])).err().unwrap();
    assert_refused(&refused, Code::OutOfRange, "AHEAD_OF_FEED");
}

/// What `reconcile` ends with, by whoever has the embedded store while the service is down.
fn reconcile(service: &Service) {
    let key = "5a".repeat(32);
    let ring = HashRing::new(&[key.as_bytes()]).expect("a key");
    let partitions = Partitions::new(1).expect("a number");
    let opened = Sqlite::open(&service.db_path(), partitions, ring.fingerprints());
    let (store, _) = opened.expect("a store");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let change = StandingChange::Reconciled("by a test".to_owned());
    runtime.block_on(store.change_standing(change)).expect("a new epoch");
    store.close();
}

#[test]
fn a_consumer_that_knows_more_than_the_store_stops_all_decisions_until_reconcile() {
    let one = Options::set(["store.partitions=1"]);
    let mut service = Service::start(Options { store: Store::Embedded, ..one });
    let grpc = service.grpc();
    let before = cancel(&grpc);
    let mut stream = grpc.follow("executor");
    let seen = at(&stream.event());
    let subscribing = |epoch, position| wire::SubscribeRequest {
        consumer: "executor".to_owned(),
        epoch: Some(epoch),
        last_seen: vec![wire::PartitionPosition { position, ..seen }],
        ..wire::SubscribeRequest::default()
    };
    grpc.subscribe(subscribing(1, 1)).expect("what is known on both sides proves nothing");
    let refused = grpc.subscribe(subscribing(1, 2)).err().unwrap();
    assert_refused(&refused, Code::FailedPrecondition, "SUSPECT");
    assert!(refused.message().contains("reconcile"), "{refused}");

    let payment = Payment::new();
    let undecided = |service: &Service| {
        let (grpc, json) = (service.grpc(), service.json());
        let status = grpc.cancel_payment(payment.cancel()).unwrap_err();
        assert_refused(&status, Code::Unavailable, "UNKNOWN_EXCEPTION");
        let answer = json.cancel_payment(&payment.psp, &payment.acquirer, &payment.request);
        answer.expect("UNKNOWN_EXCEPTION");
    };
    undecided(&service);
    service.restart();
    undecided(&service);
    assert_eq!(service.terminate().code(), Some(0));
    reconcile(&service);
    service.restart();

    let grpc = service.grpc();
    grpc.cancel_payment(payment.cancel()).expect("decided again");
    assert!(grpc.cancel_payment(before.cancel()).expect("a result").repeated);
    let refused = grpc.subscribe(subscribing(1, 1)).err().unwrap();
    assert_refused(&refused, Code::FailedPrecondition, "EPOCH_CHANGED");
    let epoch = grpc.follow("executor").epoch;
    assert!(epoch > 1);
    assert_eq!(refused.get_details_error_info().unwrap().metadata["epoch"], epoch.to_string());
}

#[test]
fn an_illegal_parameter_names_its_field() {
    let grpc = Service::shared().grpc();
    let consumer = unique("c");
    let right = || wire::SubscribeRequest {
        consumer: consumer.clone(),
        ..wire::SubscribeRequest::default()
    };
    let place = |partition| vec![wire::PartitionPosition { partition, position: 1 }];
    for (field, request) in [
        ("consumer", wire::SubscribeRequest { consumer: String::new(), ..right() }),
        ("consumer", wire::SubscribeRequest { consumer: "a b".to_owned(), ..right() }),
        ("partitions", wire::SubscribeRequest { partitions: vec![64], ..right() }),
        ("from", wire::SubscribeRequest { from: place(70_000), ..right() }),
        ("epoch", wire::SubscribeRequest { last_seen: place(0), ..right() }),
    ] {
        let status = grpc.subscribe(request).err().unwrap();
        assert_refused(&status, Code::InvalidArgument, "PARAM_ILLEGAL");
        let violations = status.get_error_details().bad_request().unwrap().field_violations.clone();
        assert_eq!(violations[0].field, field);
    }
    let redrive = wire::RedriveRequest { consumer, ..wire::RedriveRequest::default() };
    let status = grpc.redrive(redrive).unwrap_err();
    assert_refused(&status, Code::InvalidArgument, "PARAM_ILLEGAL");
}

#[test]
fn open_streams_end_in_order_and_do_not_hold_a_stop() {
    let mut service = Service::start(Options::set(["shutdown.grace=1h"]));
    let (grpc, silent) = (service.grpc(), service.grpc());
    let mut stream = grpc.follow("executor");
    // it has a stream, and never looks at its connection again
    let held = silent.follow("silent");
    service.signal("TERM");
    let end = stream.end();
    assert_refused(&end, Code::Unavailable, "UNKNOWN_EXCEPTION");
    assert!(end.message().contains("the service is stopping"), "{end}");
    drop(stream);
    drop(grpc);
    assert_eq!(service.wait().code(), Some(0), "{}", service.stderr());
    drop(held);
}

/// Resident memory of a process, in bytes.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1024
}

#[test]
fn who_never_reads_costs_bounded_memory_and_holds_up_nobody() {
    const EVENTS: usize = 300;
    const SILENT: usize = 60;
    let service = Service::start(Options::set(["store.partitions=1"]));
    let grpc = service.grpc();
    // the largest events there are: 80 KB each, 24 MB in all, 1.4 GB if each silent consumer had them in memory
    let pass_through_info = Some("💳".repeat(20_000));
    for _ in 0..EVENTS {
        let grant = Grant::new();
        grpc.record_token(grant.token(&grant.id)).unwrap();
        let pass_through_info = pass_through_info.clone();
        let request = wire::CancelTokenRequest { pass_through_info, ..grant.cancel(&grant.id) };
        grpc.cancel_token(request).unwrap();
    }
    let before = resident(service.pid());
    // their connections live, they only never look at the stream
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let streams: Vec<_> = (0..SILENT)
        .map(|number| {
            let endpoint = endpoint(service.ports().grpc);
            let channel = runtime.block_on(endpoint.initial_stream_window_size(65_535).connect());
            let mut client = wire::feed_service_client::FeedServiceClient::new(channel.unwrap());
            let consumer = format!("silent-{number}");
            let request = wire::SubscribeRequest { consumer, ..Default::default() };
            let mut stream = runtime.block_on(client.subscribe(request)).unwrap().into_inner();
            runtime.block_on(stream.message()).unwrap();
            stream
        })
        .collect();
    let mut reader = grpc.follow("reader");
    for _ in 0..EVENTS {
        assert_eq!(reader.event().pass_through_info, pass_through_info);
    }
    let grown = resident(service.pid()).saturating_sub(before);
    assert!(grown < 150_000_000, "{grown} bytes for {SILENT} silent consumers");
    drop(streams);
}

#[test]
fn a_silent_stream_lives() {
    let service = Service::start(Options::set(["feed.keep_alive=50ms"]));
    let grpc = service.grpc();
    let mut stream = grpc.follow("executor");
    for _ in 0..2 {
        let alive = stream.next().unwrap();
        assert_eq!((alive.event, alive.epoch), (None, 1));
    }
}

#[test]
fn what_is_outstanding_is_listed_oldest_first() {
    let service = service();
    let grpc = service.grpc();
    let list = |kind: wire::OutstandingKind, page_size| {
        let request = wire::ListOutstandingPaymentsRequest { kind: kind.into(), page_size };
        grpc.list_outstanding_payments(request).unwrap()
    };
    let due = [cancel_paid(&grpc), cancel_paid(&grpc)];
    let unresolved = Payment::new();
    grpc.record(&unresolved, unresolved.initiated());
    grpc.cancel_payment(unresolved.cancel()).unwrap();

    let listed = list(wire::OutstandingKind::FundReturnDue, 1);
    assert_eq!((listed.total, listed.payments.len()), (2, 1));
    let first = &listed.payments[0];
    assert!(due.iter().any(|it| it.request == first.payment_request_id));
    assert_eq!(first.amount.as_ref().map(|amount| amount.value), Some(1_999));
    assert!(first.since.is_some());
    let listed = list(wire::OutstandingKind::Unresolved, 0);
    assert_eq!((listed.total, &listed.payments[0].payment_request_id), (1, &unresolved.request));
    let returned = wire::RecordFundReturnRequest {
        psp_id: first.psp_id.clone(),
        payment_request_id: first.payment_request_id.clone(),
        reference: "r".to_owned(),
    };
    grpc.record_fund_return(returned).unwrap();
    grpc.record(&unresolved, unresolved.failed());
    assert_eq!(list(wire::OutstandingKind::FundReturnDue, 0).total, 1);
    assert_eq!(list(wire::OutstandingKind::Unresolved, 0).total, 0);
    let request = wire::ListOutstandingPaymentsRequest::default();
    let status = grpc.list_outstanding_payments(request).unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[test]
fn metrics_tell_what_people_have_to_look_at() {
    let service = Service::start(Options::set(["feed.required_consumers=executor,audit"]));
    let grpc = service.grpc();
    cancel_paid(&grpc);
    let unresolved = Payment::new();
    grpc.record(&unresolved, unresolved.initiated());
    grpc.cancel_payment(unresolved.cancel()).unwrap();
    let mut stream = grpc.follow("executor");
    let event = stream.event();
    grpc.park(parking("executor", &stream, &event)).unwrap();
    let parked = lag(&grpc, "executor");
    let expected = [
        "outstanding_payments{kind=\"fund_return_due\"} 1".to_owned(),
        "outstanding_payments{kind=\"unresolved\"} 1".to_owned(),
        format!("consumer_lag_events{{consumer=\"executor\"}} {}", parked.events),
        format!("consumer_parked_events{{consumer=\"executor\"}} {}", parked.parked_events),
        "consumer_missing{consumer=\"audit\"} 1".to_owned(),
        "feed_epoch 1".to_owned(),
        "store_suspect 0".to_owned(),
        "store_onboarding 0".to_owned(),
    ];
    eventually("the figures are read", || {
        let mut connection = Connection::to(service.ports().admin);
        connection.write(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n");
        let answer = connection.answer(true).expect("an answer");
        let text = String::from_utf8(answer.body).expect("text");
        expected
            .iter()
            .all(|line| text.contains(&format!("alipayplus_cancel_{line}\n")))
            .then_some(())
    });
}

/// `feed …` against a service; what it printed.
#[track_caller]
fn told(service: &Service, arguments: &[&str]) -> String {
    let to = service.grpc_arguments();
    let to: Vec<&str> = to.iter().map(String::as_str).collect();
    let output = run(&[&["feed"], arguments, &to[..]].concat());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn people_see_the_feed_and_look_after_its_consumers() {
    let service = Service::start(Options::set(["store.partitions=1"]));
    let grpc = service.grpc();
    let payment = cancel_paid(&grpc);
    let all = ["tail", "--consumer", "me", "--once"];
    let printed = told(&service, &[&all[..], &["--json"]].concat());
    let lines: Vec<serde_json::Value> =
        printed.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), 2);
    let due = &lines[1];
    let expected = serde_json::json!({
        "eventId": due["eventId"], "epoch": "1", "partition": 0, "position": "2",
        "kind": "EVENT_KIND_FUND_RETURN_DUE", "cause": "EVENT_CAUSE_CANCEL_PAYMENT",
        "pspId": payment.psp, "acquirerId": payment.acquirer, "paymentRequestId": payment.request,
        "amount": { "value": "1999", "currency": "EUR" }, "resultCode": "RESULT_CODE_SUCCESS",
        "decidedAt": due["decidedAt"], "traceId": due["traceId"],
    });
    assert_eq!(*due, expected);
    let text = told(&service, &[&all[..], &["--ack"]].concat());
    assert!(text.contains("fund return due") && text.contains("1999 EUR (minor units)"), "{text}");
    assert_eq!(told(&service, &all), "", "what was acknowledged");
    assert_eq!(told(&service, &[&all[..], &["--from", "0:1"]].concat()).lines().count(), 1);
    assert_eq!(told(&service, &[&all[..], &["--from", "start"]].concat()).lines().count(), 2);
    assert_eq!(told(&service, &[&all[..], &["--from", "end"]].concat()), "");

    let mut stream = grpc.follow("executor");
    let first = stream.event();
    grpc.park(parking("executor", &stream, &first)).unwrap();
    let consumers = told(&service, &["consumers"]);
    assert!(consumers.contains("executor") && consumers.contains("me"), "{consumers}");
    assert!(
        told(&service, &["lag", "--consumer", "executor"]).contains("0 events behind, 2 parked")
    );
    let parked = told(&service, &["parked", "--consumer", "executor"]);
    assert!(parked.contains("no account") && parked.contains("(waits with"), "{parked}");
    let redrive = ["redrive", "--consumer", "executor", "--event", &*first.event_id];
    assert_eq!(told(&service, &redrive), "2 events are delivered again\n");
    assert_eq!(told(&service, &["forget", "--consumer", "me"]), "me is forgotten\n");
    let consumers = told(&service, &["consumers", "--json"]);
    assert_eq!(consumers.lines().count(), 1, "{consumers}");

    let to = service.grpc_arguments();
    let to: Vec<&str> = to.iter().map(String::as_str).collect();
    let failed = run(&[&["feed", "lag", "--consumer", "me"], &to[..]].concat());
    let errors = String::from_utf8_lossy(&failed.stderr);
    assert_eq!(failed.status.code(), Some(1));
    assert!(errors.contains("UNKNOWN_CONSUMER"), "{errors}");
    let wrong = run(&[&["feed", "tail", "--consumer", "me", "--from", "3"], &to[..]].concat());
    assert_eq!(wrong.status.code(), Some(2));
}

#[test]
fn a_name_belongs_to_the_certificate_that_used_it_first() {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let dir = tempfile::Builder::new().prefix("apc-it-").tempdir().expect("a folder");
    let write = |name: &str, pem: &str| std::fs::write(dir.path().join(name), pem).unwrap();
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(vec![]).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    write("ca.pem", &ca.self_signed(&ca_key).unwrap().pem());
    let issuer = Issuer::new(ca, ca_key);
    for (file, name) in [("core", "127.0.0.1"), ("a", "executor.wallet"), ("b", "notifier.wallet")]
    {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        write(&format!("{file}.pem"), &params.signed_by(&key, &issuer).unwrap().pem());
        write(&format!("{file}.key"), &key.serialize_pem());
    }
    let toml = "[grpc.tls]\ncert_file = \"core.pem\"\nkey_file = \"core.key\"\nclient_ca_file = \"ca.pem\"\n";
    let options = Options { toml: toml.to_owned(), ..Options::default() };
    let service = Service::start_in(dir, options);
    let url = format!("https://{}", service.ports().grpc);
    let file = |name: &str| service.dir().join(name).to_str().unwrap().to_owned();
    let feed = |who: &str, arguments: &[&str]| {
        let (ca, cert, key) =
            (file("ca.pem"), file(&format!("{who}.pem")), file(&format!("{who}.key")));
        let tls = ["--url", &url, "--ca-file", &ca, "--cert-file", &cert, "--key-file", &key];
        let output = run(&[&["feed"], arguments, &tls[..]].concat());
        let printed = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&printed).into_owned())
    };
    let tail = ["tail", "--consumer", "executor", "--once"];
    assert_eq!(feed("a", &tail), (Some(0), String::new()));
    let (status, said) = feed("b", &tail);
    assert_eq!(status, Some(1));
    assert!(said.contains("CONSUMER_OF_ANOTHER"), "{said}");
    let (_, consumers) = feed("b", &["consumers"]);
    assert!(consumers.contains("executor  of executor.wallet"), "{consumers}");
    let forget = ["forget", "--consumer", "executor"];
    assert_eq!(feed("b", &forget).0, Some(1));
    let looked = [&forget[..], &["--identity", "executor.wallet"]].concat();
    assert_eq!(feed("b", &looked).0, Some(0));
    assert_eq!(feed("b", &tail).0, Some(0));
}

#[test]
fn replicas_over_one_database_are_one_feed() {
    let Some(cluster) = postgres::or_skip() else { return };
    let options =
        Options { store: Store::Postgres(cluster.fresh_database()), ..Options::default() };
    let (here, there) = (Service::start(options.clone()), Service::start(options));
    let (here, there) = (here.grpc(), there.grpc());
    let mut stream = here.follow("executor");
    for _ in 0..3 {
        let payment = cancel_paid(&there);
        let heard = [stream.event(), stream.event()];
        for event in &heard {
            assert_eq!(event.payment_request_id.as_deref(), Some(&*payment.request));
        }
        // set aside there, it holds up its key here
        let at = [at(&heard[1])];
        assert_eq!(there.park(parking("executor", &stream, &heard[0])).unwrap().waiting, at);
    }
    let redrive =
        wire::RedriveRequest { consumer: "executor".to_owned(), all: true, ..Default::default() };
    assert_eq!(there.redrive(redrive).unwrap().events, 6);
    for _ in 0..6 {
        assert!(stream.next().unwrap().redriven);
    }
    let mut newer = there.follow("executor");
    assert_refused(&stream.end(), Code::Aborted, "SUPERSEDED");
    for _ in 0..6 {
        assert!(newer.next().unwrap().redriven, "not acknowledged");
    }
}
