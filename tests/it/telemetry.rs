//! What a collector and Prometheus get of a running service; and that neither can hurt it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use alipayplus_cancel::telemetry::metrics::{Kind, Row, TABLE};
use opentelemetry_proto::tonic::{
    metrics::v1::{Metric, metric::Data},
    trace::v1::{Span, Status, span::SpanKind, status::StatusCode},
};
use serde_json::Value;

use crate::harness::{
    collector::{Collector, attribute, hex, text},
    eventually,
    grpc::{Grant, Payment},
    json::Api,
    pair::{self, Authority, bridge_settings, core_settings},
    service::{Options, Role, Service, Store, admin},
    unique,
    vectors::CLIENT_ID,
};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";
const PSP: &str = "1022172000000000001";
const ACQUIRER: &str = "1022188000000000001";

fn exporting(collector: &Collector) -> Service {
    let endpoint = format!("telemetry.otlp_endpoint={}", collector.url());
    Service::start(Options { set: vec![endpoint], ..Options::default() })
}

/// A cancelPayment with a traceparent.
fn cancel(service: &Service, payment_request: &str, flags: &str) {
    let body = crate::harness::json::payment_body(PSP, ACQUIRER, payment_request);
    let mut request = service.json().request().api(Api::CancelPayment).body(body);
    request.headers.push(("traceparent".to_owned(), format!("00-{TRACE}-{CALLER}-{flags}")));
    request.send().expect("SUCCESS");
}

/// `/metrics`.
fn scrape(service: &Service) -> String {
    String::from_utf8(admin(service.ports().admin, "/metrics").body).expect("text")
}

fn value(scrape: &str, series: &str) -> u64 {
    let line = scrape.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {series} in {scrape}")).parse().expect("a number")
}

/// Lines of the log with this message.
fn lines(service: &Service, message: &str) -> Vec<Value> {
    let log = service.stderr();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["message"] == message).collect()
}

/// The names on the way from a span to the root.
fn way(spans: &[Span], from: &Span) -> Vec<String> {
    let mut way = vec![from.name.clone()];
    let mut parent = &from.parent_span_id;
    while let Some(span) = spans.iter().find(|span| span.span_id == *parent) {
        way.push(span.name.clone());
        parent = &span.parent_span_id;
    }
    way.push(hex(parent));
    way
}

#[test]
fn a_json_cancel_is_one_connected_trace_and_one_line_with_its_metrics() {
    let collector = Collector::start();
    let mut service = exporting(&collector);
    let id = unique("traced");
    cancel(&service, &id, "01");
    assert!(service.terminate().success());

    let core = "alipayplus.cancel.v1.CancelService/CancelPayment";
    let front = format!("POST {}", Api::CancelPayment.path());
    let system = if crate::harness::postgres::is_usual() { "postgresql" } else { "sqlite" };
    collector.look(|received| {
        let spans = &received.spans;
        assert!(spans.iter().all(|span| hex(&span.trace_id) == TRACE), "{spans:#?}");
        assert_eq!(spans.len(), 5, "{spans:#?}");
        let kinds: BTreeMap<_, _> = spans.iter().map(|it| ((&*it.name, it.kind()), it)).collect();
        let span = |name: &str, kind| {
            *kinds.get(&(name, kind)).unwrap_or_else(|| panic!("{name} {kind:?} in {spans:#?}"))
        };
        for (name, kind, expected) in [
            ("store commit", SpanKind::Client, vec![core, core, &front, CALLER]),
            ("engine wait", SpanKind::Internal, vec![core, core, &front, CALLER]),
            (core, SpanKind::Server, vec![core, &front, CALLER]),
            (core, SpanKind::Client, vec![&*front, CALLER]),
            (&*front, SpanKind::Server, vec![CALLER]),
        ] {
            let span = span(name, kind);
            assert_eq!(way(spans, span)[1..], expected, "{name}");
            assert!(span.start_time_unix_nano <= span.end_time_unix_nano);
            let status = span.status.as_ref().map(Status::code);
            assert_ne!(status, Some(StatusCode::Error), "{span:?}");
        }
        for (name, kind, attributes) in [
            (
                &*front,
                SpanKind::Server,
                &[
                    ("http.request.method", "POST"),
                    ("http.route", Api::CancelPayment.path()),
                    ("url.scheme", "http"),
                    ("http.response.status_code", "200"),
                    ("alipayplus.client_id", CLIENT_ID),
                    ("alipayplus.payment_request_id", &id),
                    ("alipayplus.result_code", "SUCCESS"),
                ][..],
            ),
            (
                core,
                SpanKind::Client,
                &[
                    ("rpc.system.name", "grpc"),
                    ("rpc.method", core),
                    ("rpc.response.status_code", "OK"),
                ],
            ),
            (
                core,
                SpanKind::Server,
                &[
                    ("rpc.system.name", "grpc"),
                    ("rpc.method", core),
                    ("rpc.response.status_code", "OK"),
                    ("alipayplus.psp_id", PSP),
                    ("alipayplus.acquirer_id", ACQUIRER),
                    ("alipayplus.payment_request_id", &id),
                    ("alipayplus.result_code", "SUCCESS"),
                ],
            ),
            (
                "store commit",
                SpanKind::Client,
                &[("db.system.name", system), ("db.operation.batch.size", "1")],
            ),
        ] {
            for (attribute_name, expected) in attributes {
                let found = attribute(&span(name, kind).attributes, attribute_name);
                assert_eq!(found, *expected, "{attribute_name} of {name} {kind:?}");
            }
        }

        let answered: Vec<_> = received
            .logs
            .iter()
            .filter(|line| {
                line.body.as_ref().map(text).as_deref() == Some("cancel_payment answered")
            })
            .collect();
        let [line] = answered[..] else { panic!("one line: {answered:#?}") };
        assert_eq!(hex(&line.trace_id), TRACE);
        assert_eq!(line.span_id, span(core, SpanKind::Server).span_id);
        assert_eq!(attribute(&line.attributes, "payment_request_id"), id);
        assert_eq!(attribute(&line.attributes, "result_code"), "SUCCESS");

        let names: BTreeSet<&str> = received.metrics.iter().map(|it| &*it.name).collect();
        for name in [
            "http.server.request.duration",
            "rpc.server.call.duration",
            "alipayplus.cancel.requests",
            "alipayplus.cancel.commit.duration",
            "alipayplus.cancel.queue.wait",
            "alipayplus.cancel.batch.size",
            "process.cpu.time",
        ] {
            assert!(names.contains(name), "{name} in {names:?}");
        }
        let one = [("api", "cancelPayment"), ("front", "bridge"), ("result_code", "SUCCESS")];
        assert_eq!(sum(&received.metrics, "alipayplus.cancel.requests", &one), 1);

        for resource in &received.resources {
            let of = |name| attribute(&resource.attributes, name);
            assert_eq!(of("service.name"), "alipayplus-cancel");
            assert_eq!(of("service.version"), env!("CARGO_PKG_VERSION"));
            assert_eq!(of("service.instance.id").len(), 32);
        }
    });
    let [line] = &lines(&service, "cancel_payment answered")[..] else { panic!("one line") };
    assert_eq!((&line["trace_id"], &line["payment_request_id"]), (&TRACE.into(), &id.into()));
    assert_eq!(line["api"], "cancelPayment");
    assert!(line["duration_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{line}");
    assert_eq!(line["span_id"].as_str().map(str::len), Some(16));
}

fn sum(metrics: &[Metric], name: &str, labels: &[(&str, &str)]) -> i64 {
    let metric = metrics.iter().rfind(|metric| metric.name == name).expect("it was sent");
    sum_of(metric, labels).expect("a series")
}

fn sum_of(metric: &Metric, labels: &[(&str, &str)]) -> Option<i64> {
    use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value::AsInt;

    let Some(Data::Sum(sum)) = &metric.data else { panic!("{metric:?}") };
    let point = sum.data_points.iter().find(|point| {
        labels.iter().all(|(name, value)| attribute(&point.attributes, name) == *value)
    });
    match point?.value {
        Some(AsInt(value)) => Some(value),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_call_over_grpc_continues_its_callers_trace_and_tells_no_token() {
    let collector = Collector::start();
    let mut service = exporting(&collector);
    let grpc = service.grpc();
    let (grant, token) = (Grant::new(), unique("token"));
    grpc.record_token(grant.token(&token)).expect("recorded");
    let mut request = tonic::Request::new(grant.cancel(&token));
    let traceparent = format!("00-{TRACE}-{CALLER}-01");
    request.metadata_mut().insert("traceparent", traceparent.parse().unwrap());
    grpc.cancel_token(request).expect("SUCCESS");
    drop(grpc);
    assert!(service.terminate().success());
    collector.look(|received| {
        let ours: Vec<_> =
            received.spans.iter().filter(|span| hex(&span.trace_id) == TRACE).cloned().collect();
        let commit = ours.iter().find(|span| span.name == "store commit").expect("a commit");
        let core = "alipayplus.cancel.v1.CancelService/CancelToken";
        assert_eq!(way(&ours, commit), ["store commit", core, CALLER]);
        let server = ours.iter().find(|span| span.name == core).expect("a call");
        let hash = attribute(&server.attributes, "alipayplus.token_hash");
        assert_eq!(hash.len(), 8, "{server:?}");
        let log = lines(&service, "cancel_token answered");
        assert_eq!(log[0]["token_hash"], hash);
        assert!(!format!("{received:?}").contains(&token));
        let one = [("api", "cancelToken"), ("front", "grpc"), ("result_code", "SUCCESS")];
        assert_eq!(sum(&received.metrics, "alipayplus.cancel.requests", &one), 1);
    });
}

#[test]
fn a_revocation_has_a_line_with_the_grant_and_what_became_of_it() {
    let service = Service::start(Options::embedded());
    let (grpc, grant) = (service.grpc(), Grant::new());
    grpc.record_token(grant.token(&unique("token"))).expect("recorded");
    grpc.revoke_authorization(grant.revoke()).expect("revoked");
    let [line] = &lines(&service, "revoke_authorization answered")[..] else { panic!("one line") };
    assert_eq!(line["authorization_id"], grant.id.as_str());
    assert_eq!(
        (&line["psp_id"], &line["outcome"]),
        (&grant.psp.as_str().into(), &"Accepted".into())
    );
    assert!(line["duration_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{line}");
}

#[test]
fn the_callers_flag_decides_and_else_the_ratio() {
    let collector = Collector::start();
    let endpoint = format!("telemetry.otlp_endpoint={}", collector.url());
    let ratio = "telemetry.sample_ratio=0".to_owned();
    let options = Options { set: vec![endpoint, ratio], ..Options::default() };
    let mut service = Service::start(options);
    let (sampled, unsampled, own) = (unique("yes"), unique("no"), unique("own"));
    cancel(&service, &unsampled, "00");
    service.json().cancel_payment(PSP, ACQUIRER, &own).expect("SUCCESS");
    cancel(&service, &sampled, "01");
    assert!(service.terminate().success());
    collector.look(|received| {
        let of = |span: &Span| attribute(&span.attributes, "alipayplus.payment_request_id");
        let told: BTreeSet<String> =
            received.spans.iter().map(of).filter(|id| !id.is_empty()).collect();
        assert_eq!(told, BTreeSet::from([sampled]));
        assert_eq!(received.spans.len(), 5, "{:#?}", received.spans);
    });
    // unsampled or not, its line leads to the trace that the caller knows
    let of_unsampled: Vec<_> = lines(&service, "cancel_payment answered")
        .into_iter()
        .filter(|line| line["payment_request_id"] == unsampled.as_str())
        .collect();
    assert_eq!(of_unsampled[0]["trace_id"], TRACE);
    assert_eq!(of_unsampled[0]["span_id"], CALLER);
}

#[test]
fn a_repeat_has_a_line_and_a_trace_of_its_own() {
    let collector = Collector::start();
    let mut service = exporting(&collector);
    let id = unique("repeated");
    for _ in 0..3 {
        service.json().cancel_payment(PSP, ACQUIRER, &id).expect("SUCCESS");
    }
    assert!(service.terminate().success());
    let log = lines(&service, "cancel_payment answered");
    let repeated: Vec<bool> = log.iter().filter_map(|line| line["repeated"].as_bool()).collect();
    assert_eq!(repeated, [false, true, true]);
    let traces: BTreeSet<&str> = log.iter().filter_map(|line| line["trace_id"].as_str()).collect();
    assert_eq!(traces.len(), 3);
    collector.look(|received| {
        let told: BTreeSet<String> =
            received.spans.iter().map(|span| hex(&span.trace_id)).collect();
        assert!(traces.iter().all(|trace| told.contains(*trace)), "{traces:?} in {told:?}");
    });
}

#[test]
fn a_trace_goes_on_from_the_bridge_to_a_core_elsewhere() {
    let authority = Authority::new();
    let collector = Collector::start();
    let endpoint = format!("telemetry.otlp_endpoint={}", collector.url());
    let start = |role, name: &str, names: &[&str], cores: Option<String>| {
        let dir = tempfile::Builder::new().prefix("apc-it-").tempdir().expect("a folder");
        authority.write(dir.path(), name, names);
        let mut set = match &cores {
            Some(cores) => bridge_settings(dir.path(), name, cores),
            None => core_settings(dir.path(), name),
        };
        set.push(endpoint.clone());
        Service::start_in(dir, Options { role, store: Store::Embedded, set, ..Options::default() })
    };
    let mut core = start(Role::Core, "core", &pair::CORE, None);
    let url = format!("https://{}", core.ports().grpc);
    let mut bridge = start(Role::Bridge, "bridge", &[pair::BRIDGE], Some(url));
    let id = unique("two-tiers");
    eventually("the bridge knows its core", || {
        (admin(bridge.ports().admin, "/readyz").status == 200).then_some(())
    });
    cancel(&bridge, &id, "01");
    assert!(bridge.terminate().success() && core.terminate().success());
    collector.look(|received| {
        let commit = received.spans.iter().find(|span| span.name == "store commit");
        let method = "alipayplus.cancel.v1.CancelService/CancelPayment";
        let front = format!("POST {}", Api::CancelPayment.path());
        let expected = ["store commit", method, method, &front, CALLER];
        assert_eq!(way(&received.spans, commit.expect("a commit")), expected);
        let instances: BTreeSet<String> = received
            .resources
            .iter()
            .map(|resource| attribute(&resource.attributes, "service.instance.id"))
            .collect();
        assert_eq!(instances.len(), 2, "two processes");
        let one = [("api", "cancelPayment"), ("front", "bridge"), ("result_code", "SUCCESS")];
        let counted = received.metrics.iter().filter(|it| it.name == "alipayplus.cancel.requests");
        let counted: i64 = counted.map(|it| sum_of(it, &one).unwrap_or(0)).sum();
        assert_eq!(counted, 1, "the core leaves it to the bridge to count");
    });
}

#[test]
fn a_collector_with_a_certificate_is_known_by_its_authority_alone() {
    let authority = Authority::new();
    let dir = tempfile::tempdir().expect("a folder");
    let settings = |known: &Authority, collector: &Collector| {
        let file = dir.path().join("collector.ca");
        fs::write(&file, &known.ca_pem).expect("a file");
        let set = vec![
            format!("telemetry.otlp_endpoint=https://{}", collector.address),
            format!("telemetry.otlp_ca_file={}", file.display()),
        ];
        Options { set, ..Options::default() }
    };
    for (known, sent) in [(&authority, true), (&Authority::new(), false)] {
        let collector = Collector::secure(authority.issue(&pair::CORE));
        let mut service = Service::start(settings(known, &collector));
        cancel(&service, &unique("secure"), "01");
        assert!(service.terminate().success());
        assert_eq!(collector.look(|received| !received.spans.is_empty()), sent);
    }
}

/// Requests are answered, and the process ends in time, whatever the collector does.
fn does_not_mind(service: &mut Service) {
    for _ in 0..50 {
        service.json().cancel_payment(PSP, ACQUIRER, &unique("free")).expect("SUCCESS");
    }
    let slow = "alipayplus_cancel_shed_total";
    assert!(!scrape(service).lines().any(|line| line.starts_with(slow) && !line.ends_with(" 0")));
    let begun = Instant::now();
    assert!(service.terminate().success());
    let took = begun.elapsed();
    // a flush waits 2.5 s, and the rest takes next to nothing, even on a busy machine
    assert!(took < Duration::from_secs(10), "{took:?}");
    let told = lines(
        service,
        "telemetry cannot be exported, and is dropped until it can; requests do not wait for it",
    );
    let signals: BTreeSet<String> = told.iter().map(|line| line["signal"].to_string()).collect();
    assert_eq!(signals.len(), told.len(), "once each: {told:?}");
}

#[test]
fn a_collector_that_is_down_costs_requests_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let endpoint = format!("telemetry.otlp_endpoint=http://{}", listener.local_addr().unwrap());
    drop(listener);
    let mut service = Service::start(Options { set: vec![endpoint], ..Options::default() });
    does_not_mind(&mut service);
}

#[test]
fn a_collector_that_hangs_costs_requests_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let endpoint = format!("telemetry.otlp_endpoint=http://{}", listener.local_addr().unwrap());
    // the kernel accepts, and nobody ever answers
    let mut service = Service::start(Options { set: vec![endpoint], ..Options::default() });
    does_not_mind(&mut service);
    drop(listener);
}

#[test]
fn the_log_says_once_that_the_collector_is_gone_and_once_that_it_is_back() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let endpoint = format!("telemetry.otlp_endpoint=http://{}", listener.local_addr().unwrap());
    let gone = listener.try_clone().expect("a listener");
    let (back, closing) = std::sync::mpsc::channel::<()>();
    gone.set_nonblocking(true).expect("a listener");
    let closing = thread::spawn(move || {
        while closing.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            // whoever comes is sent away
            drop::<Option<TcpStream>>(gone.accept().ok().map(|(socket, _)| socket));
            thread::sleep(Duration::from_millis(5));
        }
    });
    let mut service = Service::start(Options { set: vec![endpoint], ..Options::default() });
    let gone =
        "telemetry cannot be exported, and is dropped until it can; requests do not wait for it";
    let of = |service: &Service, message: &str, signal: &str| {
        lines(service, message).iter().filter(|line| line["signal"] == signal).count()
    };
    eventually("the log says that it is gone", || {
        cancel(&service, &unique("lost"), "01");
        (of(&service, gone, "traces") == 1).then_some(())
    });
    drop(back);
    closing.join().expect("it ends");
    let collector = Collector::listening(listener);
    eventually("the log says that it is back", || {
        cancel(&service, &unique("told"), "01");
        (of(&service, "telemetry is exported again", "traces") == 1).then_some(())
    });
    assert_eq!(of(&service, gone, "traces"), 1);
    let text = scrape(&service);
    let batches = |result: &str| {
        let labels = format!("{{result=\"{result}\",signal=\"traces\"}}");
        value(&text, &format!("alipayplus_cancel_telemetry_exported_total{labels}"))
    };
    assert!(batches("failed") >= 1 && batches("ok") >= 1, "{text}");
    collector.look(|received| assert!(!received.spans.is_empty()));
    assert!(service.terminate().success());
}

#[test]
fn a_series_that_counts_is_there_before_it_counts() {
    let service = Service::start(Options::default());
    let text = scrape(&service);
    for series in [
        "alipayplus_cancel_requests_total{api=\"cancelPayment\",front=\"bridge\",result_code=\"UNKNOWN_EXCEPTION\"}",
        "alipayplus_cancel_requests_total{api=\"cancelToken\",front=\"grpc\",result_code=\"SUCCESS\"}",
        "alipayplus_cancel_commits_total",
        "alipayplus_cancel_commit_failures_total",
        "alipayplus_cancel_alarms_total{alarm=\"acquirer_mismatch\"}",
        "alipayplus_cancel_signature_cache_total{result=\"hit\"}",
        &format!("alipayplus_cancel_signature_failures_total{{client=\"{CLIENT_ID}\"}}"),
        &format!(
            "alipayplus_cancel_signature_verified_total{{client=\"{CLIENT_ID}\",version=\"1\"}}"
        ),
        &format!("alipayplus_cancel_rate_limited_total{{client=\"{CLIENT_ID}\",front=\"bridge\"}}"),
    ] {
        value(&text, series);
    }
    assert_eq!(value(&text, "alipayplus_cancel_queue_depth{queue=\"cancels\"}"), 0);
}

#[test]
fn what_callers_make_up_never_becomes_a_series() {
    let service = Service::start(Options::default());
    let json = service.json();
    for n in 0..20 {
        let made_up = unique("made-up");
        let request = json.request().body("{}");
        request.clone().target(&format!("/aps/api/{made_up}")).send();
        request.clone().method(&format!("M{n}")).send();
        request.client_ids(&[&made_up]).send();
        let payment = Payment::new();
        service.grpc().cancel_payment(payment.cancel()).expect("SUCCESS");
    }
    let text = scrape(&service);
    assert!(!text.contains("made-up") && !text.contains("M1"), "{text}");
    let failures = value(&text, "alipayplus_cancel_signature_failures_total{client=\"unknown\"}");
    assert_eq!(failures, 20);
    assert!(text.lines().count() < 1_500, "{} lines", text.lines().count());
}

#[test]
fn every_metric_has_its_row_in_the_documentation() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md");
    let docs = fs::read_to_string(path).expect("the documentation");
    for row in TABLE {
        let labels = row.labels.join("`, `");
        let labels = if labels.is_empty() { String::new() } else { format!("`{labels}`") };
        let kind = match row.kind {
            Kind::Count | Kind::Read => "counter",
            Kind::Level | Kind::Gauge => "gauge",
            Kind::Seconds | Kind::Sizes => "histogram",
        };
        let expected = format!(
            "| `{}` | `{}` | {kind} | {labels} | {} |",
            row.name,
            row.prometheus(),
            row.help
        );
        assert!(docs.lines().any(|line| line == expected), "docs/operations.md has no\n{expected}");
    }
    let told = docs.lines().filter(|line| {
        let name = line.strip_prefix("| `").and_then(|rest| rest.split('`').next());
        name.is_some_and(|name| name.contains('.') && line.matches(" | ").count() == 4)
            && [" counter ", " gauge ", " histogram "].iter().any(|kind| line.contains(kind))
    });
    assert_eq!(told.count(), TABLE.len(), "a row of something that is no metric");
}

#[test]
fn what_is_scraped_has_the_names_of_the_table() {
    let service = Service::start(Options::default());
    cancel(&service, &unique("scraped"), "01");
    service.grpc().cancel_payment(Payment::new().cancel()).expect("SUCCESS");
    let known: BTreeSet<String> =
        TABLE.iter().map(Row::prometheus).chain(["target_info".to_owned()]).collect();
    let text = scrape(&service);
    let by_key = format!("{{client=\"{CLIENT_ID}\",version=\"1\"}}");
    assert_eq!(value(&text, &format!("alipayplus_cancel_signature_verified_total{by_key}")), 1);
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let found: BTreeSet<String> =
        types.filter_map(|line| line.split(' ').next()).map(str::to_owned).collect();
    assert!(found.is_subset(&known), "{:?}", found.difference(&known));
    assert!(found.len() > 20, "{found:?}");
}
