//! Who is turned away when there is too much, on both fronts, and who is not.

use tonic::Code;
use tonic_types::StatusExt as _;

use crate::harness::{
    eventually,
    grpc::{Grant, Payment},
    json::{Answer, Api, Connection, Json, Request, payment_body, token_body},
    service::{OTHER_ACQUIRER, OTHER_PSP, Options, Service},
    unique, vectors,
};
use crate::reload::metric;

const PSP: &str = "1022172000000000001";
const ACQUIRER: &str = "1022188000000000001";

fn cancel(json: &Json) -> Request {
    json.request().body(payment_body(PSP, ACQUIRER, &unique("pay")))
}

/// Sends all of a request but the last byte, and waits until the service has asked for the body.
fn held(request: &Request) -> Connection {
    let mut connection = Connection::to(request.address);
    connection.write(&request.clone().header("Expect", "100-continue").head());
    assert_eq!(connection.answer(false).expect("100 Continue").status, 100);
    connection
}

#[test]
fn one_clients_flood_leaves_room_for_another_of_the_same_address() {
    let service = Service::start(Options::set(["limits.max_in_flight_per_client=2"]));
    let (flooding, other) = (service.json(), service.other_json());
    let first = cancel(&flooding);
    let mut connections = [held(&first), held(&first)];
    cancel(&flooding).send().expect("REQUEST_TRAFFIC_EXCEED_LIMIT").assert_signed();
    let body = payment_body(OTHER_PSP, OTHER_ACQUIRER, &unique("pay"));
    other.request().body(body).send().expect("SUCCESS").assert_signed();
    for connection in &mut connections {
        connection.write(&first.body);
        first.answer_on(connection).expect("an answer").expect("SUCCESS");
    }
    cancel(&flooding).send().expect("SUCCESS");
}

#[test]
fn a_request_that_is_turned_away_keeps_its_connection() {
    let service = Service::start(Options::set(["limits.max_in_flight=1"]));
    let json = service.json();
    let first = cancel(&json);
    let mut inside = held(&first);
    let mut connection = json.connect();
    for _ in 0..50 {
        let refused = cancel(&json).send_on(&mut connection);
        refused.expect("REQUEST_TRAFFIC_EXCEED_LIMIT").assert_signed();
        assert_eq!(refused.header("connection"), None);
    }
    inside.write(&first.body);
    first.answer_on(&mut inside).expect("an answer").expect("SUCCESS");
    cancel(&json).send_on(&mut connection).expect("SUCCESS");
}

#[test]
fn what_is_turned_away_before_the_front_hears_what_the_front_says_in_its_turn() {
    // the front has a line for each of its answers there
    let lines =
        "telemetry.log_level=warn,alipayplus_cancel::cli=info,alipayplus_cancel::bridge=debug";
    let service = Service::start(Options::set(["limits.max_in_flight=1", lines]));
    let json = service.json();
    let first = cancel(&json);
    let mut inside = held(&first);
    let mut connection = json.connect();
    let mut refused = 0u64;
    // what has more to say of how HTTP goes on is for the front, a plain request is not let in
    let (front, door) = (cancel(&json).header("TE", "trailers"), cancel(&json));
    let both = eventually("both in one second", || {
        let both = [&front, &door, &front, &door].map(|request| request.send_on(&mut connection));
        refused += 4;
        let time = |answer: &Answer| answer.header("response-time").map(str::to_owned);
        both.iter().all(|answer| time(answer) == time(&both[0])).then_some(both)
    });
    for answer in &both {
        answer.expect("REQUEST_TRAFFIC_EXCEED_LIMIT").assert_signed();
        assert_eq!((answer.status, &answer.body), (200, &both[0].body));
        let known = |answer: &Answer| {
            let dated = |(name, value): &(String, String)| {
                (name.clone(), if name == "date" { String::new() } else { value.clone() })
            };
            answer.headers.iter().map(dated).collect::<Vec<_>>()
        };
        assert_eq!(known(answer), known(&both[0]), "header by header");
    }
    // one behind the other they are answered in their order, by whomever
    let unknown = cancel(&json).client_ids(&["NOBODY"]);
    let (door, unknown) = ((&door, true), (&unknown, false));
    for pair in [[door, unknown], [unknown, door], [door, door]] {
        connection.write(&pair.map(|(request, _)| request.bytes()).concat());
        for (request, signed) in pair {
            let answer = request.answer_on(&mut connection).expect("an answer");
            answer.expect("REQUEST_TRAFFIC_EXCEED_LIMIT");
            if signed {
                answer.assert_signed();
            } else {
                answer.assert_unsigned();
            }
            refused += 1;
        }
    }
    let shed = "alipayplus_cancel_shed_total{front=\"bridge\",reason=\"in_flight\"}";
    assert_eq!(metric(&service, shed), refused);
    let of_front = service.stderr().matches("\"request answered\"").count() as u64;
    // two of the four that came alone in one second were answered before it, and no line tells of them
    assert!(of_front + 2 <= refused, "{of_front} of {refused}");
    inside.write(&first.body);
    first.answer_on(&mut inside).expect("an answer").expect("SUCCESS");
    door.0.send_on(&mut connection).expect("SUCCESS");
}

#[test]
fn an_address_that_proves_nothing_is_turned_away_and_what_proves_itself_is_not_counted() {
    let limit = "limits.unproven_per_source={ per_second = 1, burst = 3 }";
    let service = Service::start(Options::set([limit, "limits.trusted_proxies=1"]));
    let json = service.json();
    let from = |request: Request, address: &str| request.header("X-Forwarded-For", address);
    let forged = || cancel(&json).key(vectors::wallet());
    // whatever is said on the left of it, the proxy's word counts
    let bad = "198.51.100.7, 192.0.2.1";
    for _ in 0..20 {
        from(cancel(&json), bad).send().expect("SUCCESS");
    }
    // refused for good, and yet of somebody who is known
    for _ in 0..20 {
        from(cancel(&json).body("{}"), bad).send().expect("PARAM_ILLEGAL").assert_signed();
    }
    let mut refused = 0;
    for nth in 0..20 {
        let answer = from(forged(), &format!("10.0.0.{nth}, 192.0.2.1")).send();
        match answer.code().as_str() {
            "INVALID_SIGNATURE" => {}
            "REQUEST_TRAFFIC_EXCEED_LIMIT" => refused += 1,
            other => panic!("{other}"),
        }
    }
    assert!(refused >= 10, "{refused} of 20 were turned away");
    from(forged(), "198.51.100.7").send().expect("INVALID_SIGNATURE");
    from(cancel(&json), "192.0.2.2").send().expect("SUCCESS");
    // whoever is over is let in again, a little each second
    eventually("it is let in again", || {
        (from(cancel(&json), bad).send().code() == "SUCCESS").then_some(())
    });
}

#[test]
fn an_api_may_have_a_rate_of_its_own() {
    let rate = "clients.0.cancel_token_rate={ per_second = 1, burst = 1 }";
    let service = Service::start(Options::set([rate]));
    let json = service.json();
    let token =
        || json.request().api(Api::CancelToken).body(token_body(PSP, ACQUIRER, &unique("token")));
    token().send().expect("INVALID_TOKEN");
    let codes: Vec<String> = (0..10).map(|_| token().send().code()).collect();
    assert!(codes.iter().any(|code| code == "REQUEST_TRAFFIC_EXCEED_LIMIT"), "{codes:?}");
    for _ in 0..10 {
        cancel(&json).send().expect("SUCCESS");
    }
}

#[test]
fn replicas_share_a_rate() {
    let set = ["clients.0.rate={ per_second = 4, burst = 4 }", "limits.replicas=4"];
    let service = Service::start(Options::set(set));
    let json = service.json();
    cancel(&json).send().expect("SUCCESS");
    let codes: Vec<String> = (0..20).map(|_| cancel(&json).send().code()).collect();
    assert!(codes.iter().any(|code| code == "REQUEST_TRAFFIC_EXCEED_LIMIT"), "{codes:?}");
}

#[test]
fn a_caller_of_grpc_over_its_rate_is_told_when_to_come_back() {
    let rule =
        r#"grpc.rates=[{ methods = ["TokenService/IntrospectToken"], per_second = 1, burst = 2 }]"#;
    let service = Service::start(Options::set([rule]));
    let grpc = service.grpc();
    let grant = Grant::new();
    let refused = (0..10).find_map(|_| grpc.introspect_token(grant.introspect("unknown")).err());
    let refused = refused.expect("10 calls are over 2 at once and 1 a second");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let info = refused.get_details_error_info().expect("ErrorInfo");
    assert_eq!(
        (&*info.domain, &*info.reason),
        ("cancel.alipayplus", "REQUEST_TRAFFIC_EXCEED_LIMIT")
    );
    let retry = refused.get_details_retry_info().expect("RetryInfo").retry_delay;
    assert!(retry.is_some_and(|delay| delay.as_millis() <= 1_000), "{retry:?}");
    // of other methods nothing is said
    for _ in 0..10 {
        grpc.cancel_payment(Payment::new().cancel()).expect("an answer");
    }
}

#[test]
fn calls_over_the_room_are_refused_and_health_is_not() {
    let service =
        Service::start(Options { onboarding: false, ..Options::set(["grpc.max_in_flight=1"]) });
    let grpc = service.grpc();
    let refused = grpc.block_on(async {
        use crate::harness::grpc::wire::cancel_service_client::CancelServiceClient;
        let client = CancelServiceClient::new(grpc.channel());
        let calls: Vec<_> = (0..200)
            .map(|_| {
                let mut client = client.clone();
                tokio::spawn(async move { client.cancel_payment(Payment::new().cancel()).await })
            })
            .collect();
        let (mut refused, mut health) =
            (Vec::new(), tonic_health::pb::health_client::HealthClient::new(grpc.channel()));
        for call in calls {
            let asked = health.check(tonic_health::pb::HealthCheckRequest::default()).await;
            asked.expect("health has room");
            refused.extend(call.await.expect("a call").err());
        }
        refused
    });
    assert!(!refused.is_empty(), "200 at once do not fit");
    for status in refused {
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        assert!(status.get_details_retry_info().is_some());
    }
    grpc.cancel_payment(Payment::new().cancel()).expect("there is room again");
}

#[test]
fn connections_over_the_cap_are_closed_and_counted() {
    let service = Service::start(Options::set(["limits.connections_per_source=2"]));
    let json = service.json();
    let mut open = [json.connect(), json.connect()];
    for connection in &mut open {
        cancel(&json).send_on(connection).expect("SUCCESS");
    }
    let mut third = json.connect();
    assert!(third.answer(true).is_none(), "it is closed");
    let shed = "alipayplus_cancel_shed_total{front=\"bridge\",reason=\"connections\"}";
    assert_eq!(metric(&service, shed), 1);
    cancel(&json).send_on(&mut open[0]).expect("SUCCESS");
}
