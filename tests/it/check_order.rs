//! wire.md § Order of checks: the first failure answers, and who gets a signature for it.

use crate::harness::{
    eventually,
    json::{Answer, Api, Connection, Framing, Json, Request, payment_body, token_body},
    service::{OTHER_ACQUIRER, OTHER_PSP, Options, Service},
    unique, vectors,
};

const PSP: &str = "1022172000000000001";
const ACQUIRER: &str = "1022188000000000001";
const BODY_BYTES_MAX: usize = 512 * 1024;

/// A cancelPayment that is right, of a payment nobody knows.
fn right(json: &Json) -> Request {
    json.request().body(payment_body(PSP, ACQUIRER, &unique("order")))
}

fn shared() -> Json {
    Service::shared().json()
}

/// The table of wire.md, in its order: what breaks a request, and the answer to it.
const BROKEN: [(&str, &str, &str); 13] = [
    ("path", "NO_INTERFACE_DEF", "API is not defined"),
    ("method", "METHOD_NOT_SUPPORTED", "method"),
    ("content type", "MEDIA_TYPE_NOT_ACCEPTABLE", "media type"),
    ("content encoding", "MEDIA_TYPE_NOT_ACCEPTABLE", "media type"),
    ("body size", "PARAM_ILLEGAL", "body: longer than"),
    ("Client-Id", "INVALID_CLIENT", "client"),
    ("Request-Time", "PARAM_ILLEGAL", "Request-Time"),
    ("Signature form", "INVALID_SIGNATURE", "algorithm"),
    ("keyVersion", "KEY_NOT_FOUND", "key"),
    ("signature", "INVALID_SIGNATURE", "signature"),
    ("JSON", "PARAM_ILLEGAL", "body"),
    ("parameter", "PARAM_ILLEGAL", "acquirerId: longer than 64 characters"),
    ("access", "ACCESS_DENIED", "denied"),
];

/// A request whose first `repaired` rules hold and whose others are all broken.
fn broken(json: &Json, repaired: usize, registered: bool) -> Request {
    let holds =
        |rule: &str| BROKEN.iter().position(|(name, ..)| *name == rule).expect("a rule") < repaired;
    let acquirer = match (holds("parameter"), holds("access")) {
        (false, _) => "x".repeat(65),
        (true, false) => "another acquirer".to_owned(),
        (true, true) => OTHER_ACQUIRER.to_owned(),
    };
    let mut body = payment_body(OTHER_PSP, &acquirer, &unique("order"));
    if !holds("JSON") {
        body = format!("[{body}]");
    }
    if !holds("body size") {
        body.push_str(&" ".repeat(BODY_BYTES_MAX));
    }
    let mut request = json.request().body(body);
    if !holds("path") {
        request = request.target("/aps/api/v1/payments/pay");
    }
    if !holds("method") {
        request = request.method("PUT");
    }
    if !holds("content type") {
        request = request.content_types(&["text/plain"]);
    }
    if !holds("content encoding") {
        request = request.header("Content-Encoding", "gzip");
    }
    if !holds("Client-Id") && !registered {
        request = request.client_ids(&["NOBODY"]);
    }
    if !holds("Request-Time") {
        request = request.times(&["soon"]);
    }
    if !holds("keyVersion") {
        request = request.key_version(Some("9"));
    }
    if !holds("signature") {
        request = request.key(vectors::wallet());
    }
    if !holds("Signature form") {
        request = request.signatures(&["algorithm=NONE,keyVersion=9,signature=AAAA"]);
    }
    request
}

#[test]
fn the_first_broken_rule_answers_and_only_then_the_next() {
    let json = Service::shared().other_json();
    for (repaired, (rule, code, message)) in BROKEN.iter().enumerate() {
        let answer = broken(&json, repaired, false).send();
        answer.expect(code);
        assert!(answer.message().contains(message), "{rule}: {}", answer.message());
        if repaired <= 5 {
            answer.assert_unsigned();
        } else {
            answer.assert_signed();
        }
    }
    broken(&json, BROKEN.len(), false).send().expect("SUCCESS").assert_signed();
}

#[test]
fn a_registered_client_id_is_answered_signed_from_the_first_rule_about_a_served_path_and_post() {
    let json = Service::shared().other_json();
    for (repaired, (rule, code, message)) in BROKEN.iter().enumerate() {
        if *rule == "Client-Id" {
            continue;
        }
        let answer = broken(&json, repaired, true).send();
        answer.expect(code);
        assert!(answer.message().contains(message), "{rule}: {}", answer.message());
        if repaired < 2 {
            answer.assert_unsigned();
        } else {
            answer.assert_signed();
        }
    }
}

#[test]
fn a_query_gets_no_signature_before_the_request_has_proven_itself_and_one_after() {
    let with_query = || right(&shared()).target(&format!("{}?x=1", Api::CancelPayment.path()));
    with_query().send().expect("SUCCESS").assert_signed();
    with_query().body("[]").send().expect("PARAM_ILLEGAL").assert_signed();
    with_query().key(vectors::wallet()).send().expect("INVALID_SIGNATURE").assert_unsigned();
    with_query().times(&[]).send().expect("PARAM_ILLEGAL").assert_unsigned();
    let empty = right(&shared()).target(&format!("{}?", Api::CancelPayment.path()));
    empty.send().expect("SUCCESS").assert_signed();
    empty.key(vectors::wallet()).send().expect("INVALID_SIGNATURE").assert_unsigned();
}

#[test]
fn a_path_is_ours_only_byte_for_byte() {
    for target in [
        "/",
        "/aps/api/v1/payments/cancelPayment/",
        "/aps/api//v1/payments/cancelPayment",
        "//aps/api/v1/payments/cancelPayment",
        "/aps/api/v1/payments/cancelPayment;v=1",
        "/aps/api/v1/payments/%63ancelPayment",
        "/aps/api/v1/payments%2FcancelPayment",
        "/aps/api/./v1/payments/cancelPayment",
        "/aps/api/%2e/v1/payments/cancelPayment",
        "/aps/api/v1/authorizations/../payments/cancelPayment",
        "/aps/api/v1/payments/cancelpayment",
        "/APS/api/v1/payments/cancelPayment",
        "/v1/payments/cancelPayment",
        "/aps/api/v1/payments/cancelPayment%00",
        "/aps/api/v1/payments/cancelPayment%3Fx=1",
        "*",
    ] {
        let answer = right(&shared()).target(target).send();
        answer.expect("NO_INTERFACE_DEF").assert_unsigned();
    }
}

#[test]
fn every_method_but_post_is_refused_unsigned() {
    for method in ["GET", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "post", "Post", "POSTS"] {
        let answer = right(&shared()).method(method).send();
        answer.expect("METHOD_NOT_SUPPORTED").assert_unsigned();
    }
    let head = right(&shared()).method("HEAD").send();
    assert_eq!((head.status, head.body.len()), (200, 0));
    head.assert_unsigned();
}

#[test]
fn a_content_type_is_json_in_utf8_or_absent() {
    let send = |types: &[&str]| right(&shared()).content_types(types).send();
    for types in [
        &[][..],
        &["application/json"],
        &["application/json", "application/json"],
        &["application/json; charset=UTF-8", "application/json;charset=utf-8"],
        &["application/json;charset=utf-8"],
        &["APPLICATION/JSON ; CHARSET=\"UTF-8\""],
    ] {
        send(types).expect("SUCCESS").assert_signed();
    }
    for types in [
        &["text/plain"][..],
        &["application/json; charset=gbk"],
        &["application/x-www-form-urlencoded"],
        &["application/json", "text/plain"],
        &["text/plain", "application/json"],
        &[""],
        &["multipart/form-data; boundary=application/json"],
    ] {
        send(types).expect("MEDIA_TYPE_NOT_ACCEPTABLE").assert_signed();
    }
}

#[test]
fn a_content_encoding_is_identity_or_absent() {
    let send = |coding: &str| right(&shared()).header("Content-Encoding", coding).send();
    send("identity").expect("SUCCESS").assert_signed();
    for coding in ["gzip", "br", "deflate", "zstd", "identity, gzip"] {
        send(coding).expect("MEDIA_TYPE_NOT_ACCEPTABLE").assert_signed();
    }
    let answer = right(&shared()).header("Accept-Encoding", "gzip, br").send();
    answer.expect("SUCCESS").assert_signed();
}

/// A right body of exactly so many bytes.
fn padded(length: usize) -> String {
    let mut body = payment_body(PSP, ACQUIRER, &unique("size"));
    body.pop();
    body.push_str(r#","unknown":""#);
    let pad = length - body.len() - 2;
    format!("{body}{}\"}}", "x".repeat(pad))
}

#[test]
fn a_body_of_512_kib_is_read_and_one_of_a_byte_more_is_not() {
    for framing in [Framing::Length, Framing::Chunked(8_000), Framing::Chunked(1_000_000)] {
        let send = |length| {
            let mut connection = shared().connect();
            let request = shared().request().framing(framing.clone()).body(padded(length));
            (request.send_on(&mut connection), connection)
        };
        let (answer, _) = send(BODY_BYTES_MAX);
        answer.expect("SUCCESS").assert_signed();
        let (answer, mut connection) = send(BODY_BYTES_MAX + 1);
        answer.expect("PARAM_ILLEGAL").assert_signed();
        assert!(answer.message().starts_with("body"), "{}", answer.message());
        // either it was all read, and the connection goes on, or it says that it closes and does
        if answer.header("connection") == Some("close") {
            assert!(connection.is_closed());
        }
    }
}

#[test]
fn the_answer_to_ten_megabytes_arrives_and_the_connection_closes() {
    for framing in [Framing::Length, Framing::Chunked(60_000)] {
        let mut connection = shared().connect();
        let request = shared().request().framing(framing).body(padded(10 * 1024 * 1024));
        let answer = request.send_on(&mut connection);
        answer.expect("PARAM_ILLEGAL").assert_signed();
        assert_eq!(answer.header("connection"), Some("close"));
        assert!(connection.is_closed());
    }
}

#[test]
fn a_refusal_does_not_wait_for_a_body_that_is_announced_too_long() {
    let mut connection = shared().connect();
    let request =
        right(&shared()).framing(Framing::Unsaid).header("Content-Length", "99999999999999");
    connection.write(&request.head());
    request.answer_on(&mut connection).unwrap().expect("PARAM_ILLEGAL").assert_signed();
}

#[test]
fn a_client_id_stands_once_and_is_registered() {
    let own = vectors::CLIENT_ID;
    let lower = own.to_ascii_lowercase();
    let long = "A".repeat(65);
    let quoted = format!("\"{own}\"");
    for ids in [
        &[][..],
        &[""],
        &["NOBODY"],
        &[own, own],
        &[own, "NOBODY"],
        &["NOBODY", own],
        &[&lower],
        &[&long],
        &[&quoted],
        &["é"],
        &["a b"],
        &["<script>"],
    ] {
        let answer = right(&shared()).client_ids(ids).send();
        answer.expect("INVALID_CLIENT").assert_unsigned();
        for id in ids.iter().filter(|id| id.len() > 2) {
            let shown = answer.headers.iter().any(|(_, value)| value.contains(id));
            assert!(!shown && !answer.message().contains(id), "{id} is reflected");
        }
    }
}

#[test]
fn a_request_time_is_read_in_every_form_met_in_the_wild() {
    let send = |times: &[&str]| right(&shared()).times(times).send();
    for time in [
        "2019-05-28T12:12:12+08:00",
        "2019-05-28T12:12:12+0000",
        "2019-05-28T12:12:12Z",
        "2019-05-28T12:12:12.1Z",
        "2019-05-28T12:12:12.12+08:00",
        "2019-05-28T12:12:12.123-0530",
        "2019-05-28T12:12:12.123456Z",
        "2019-05-28T12:12:12.1234567+08:00",
        "1559016732000",
        "2099-12-31T23:59:59Z",
    ] {
        send(&[time]).expect("SUCCESS").assert_signed();
    }
    for times in [
        &[][..],
        &[""],
        &["soon"],
        &["2019-05-28"],
        &["2019-05-28T12:12:12"],
        &["2019-02-30T12:12:12Z"],
        &["2019-05-28T25:12:12Z"],
        &["-1559016732000"],
        &["99999999999999999999"],
        &["2019-05-28T12:12:12+08:00", "2019-05-28T12:12:12+08:00"],
        &["Tue, 28 May 2019 12:12:12 GMT"],
    ] {
        let answer = send(times);
        answer.expect("PARAM_ILLEGAL").assert_signed();
        assert!(answer.message().starts_with("Request-Time"), "{}", answer.message());
    }
}

#[test]
fn a_request_time_too_far_away_is_refused_only_where_the_settings_ask_for_it() {
    let service = Service::start(Options::set(["limits.request_time_skew=15m"]));
    let answer = right(&service.json()).send();
    answer.expect("PARAM_ILLEGAL").assert_signed();
    assert!(answer.message().starts_with("Request-Time"), "{}", answer.message());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let now = now.as_millis().to_string();
    right(&service.json()).times(&[&now]).send().expect("SUCCESS").assert_signed();
}

#[test]
fn requests_over_a_clients_rate_are_answered_u_and_signed_once_they_have_proven_themselves() {
    let service =
        Service::start(Options::set(["clients.0.rate.per_second=1", "clients.0.rate.burst=2"]));
    let json = service.json();
    let mut connection = json.connect();
    // what is not proven drains nobody's bucket
    for _ in 0..20 {
        let answer = right(&json).key(vectors::wallet()).send_on(&mut connection);
        answer.expect("INVALID_SIGNATURE").assert_signed();
    }
    let answers: Vec<Answer> =
        (0..50).map(|_| json.request().body("[]").send_on(&mut connection)).collect();
    answers[0].expect("PARAM_ILLEGAL");
    let limited: Vec<&Answer> =
        answers.iter().filter(|answer| answer.code() != "PARAM_ILLEGAL").collect();
    assert!(!limited.is_empty(), "50 requests are not over 2 at once and 1 a second");
    for answer in limited {
        answer.expect("REQUEST_TRAFFIC_EXCEED_LIMIT").assert_signed();
    }
    // another client has a bucket of its own
    let body = token_body(OTHER_PSP, OTHER_ACQUIRER, &unique("token"));
    let other = service.other_json().request().api(Api::CancelToken).body(body);
    other.send().expect("INVALID_TOKEN").assert_signed();
}

/// Sends a head and waits until the service asks for its body: from then on the request is in flight.
fn in_flight(request: &Request) -> Connection {
    let mut connection = Connection::to(request.address);
    connection.write(&request.clone().header("Expect", "100-continue").head());
    let asked = connection.answer(false).expect("100 Continue");
    assert_eq!(asked.status, 100);
    connection
}

#[test]
fn a_request_over_the_in_flight_limit_is_answered_u_at_once() {
    for setting in ["limits.max_in_flight=1", "limits.max_in_flight_per_source=1"] {
        let service = Service::start(Options::set([setting]));
        let json = service.json();
        let first = right(&json);
        let mut connection = in_flight(&first);
        right(&json).send().expect("REQUEST_TRAFFIC_EXCEED_LIMIT").assert_signed();
        // first of all checks: before the path, and before any body is read
        let nowhere = json.request().target("/nowhere").send();
        nowhere.expect("REQUEST_TRAFFIC_EXCEED_LIMIT").assert_unsigned();
        connection.write(&first.body);
        first.answer_on(&mut connection).unwrap().expect("SUCCESS").assert_signed();
        right(&json).send().expect("SUCCESS").assert_signed();
    }
}

#[test]
fn bodies_over_the_budget_are_answered_u() {
    for setting in
        ["limits.body_bytes_in_flight=2000", "limits.body_bytes_in_flight_per_source=2000"]
    {
        // no less than one longest body, or the settings are refused
        let service = Service::start(Options::set([setting, "limits.body_bytes=2000"]));
        let json = service.json();
        let first = json.request().body(padded(1_500));
        let announced = in_flight(&first);
        // what is only announced shuts nobody out
        json.request().body(padded(2_000)).send().expect("SUCCESS").assert_signed();
        drop(announced);
        // whichever of the two arrives last is refused: once it is the second, the first is counted
        let mut connection = eventually("what has arrived counts", || {
            let mut connection = in_flight(&first);
            connection.write(&first.body[..1_450]);
            let code = json.request().body(padded(600)).send().code();
            (code == "REQUEST_TRAFFIC_EXCEED_LIMIT").then_some(connection)
        });
        let second = json.request().body(padded(600)).send();
        second.expect("REQUEST_TRAFFIC_EXCEED_LIMIT").assert_signed();
        // before the client is looked at
        let nobody = json.request().client_ids(&["NOBODY"]).body(padded(600)).send();
        nobody.expect("REQUEST_TRAFFIC_EXCEED_LIMIT").assert_unsigned();
        let second = json.request().framing(Framing::Chunked(100)).body(padded(600)).send();
        second.expect("REQUEST_TRAFFIC_EXCEED_LIMIT").assert_signed();
        json.request().body(padded(300)).send().expect("SUCCESS");
        connection.write(&first.body[1_450..]);
        first.answer_on(&mut connection).unwrap().expect("SUCCESS").assert_signed();
        json.request().body(padded(2_000)).send().expect("SUCCESS").assert_signed();
    }
}

#[test]
fn a_target_with_a_fragment_is_refused_because_it_is_not_what_was_signed() {
    let json = Service::shared().json();
    let request = right(&json).target("/aps/api/v1/payments/cancelPayment#x");
    let refused = request.send();
    assert_eq!(refused.status, 400);
}

#[test]
fn connect_is_no_request_and_opens_no_tunnel() {
    let json = Service::shared().json();
    let refused = json.request().method("CONNECT").target("wallet:443").send();
    assert_eq!(refused.status, 400);
}

#[test]
fn a_client_over_its_quota_of_tombstones_may_cancel_what_is_known() {
    let quota = "clients.0.tombstones={ per_second = 1, burst = 2 }";
    let service = Service::start(Options::set([quota]));
    let json = service.json();
    let token = || token_body(PSP, ACQUIRER, &unique("token"));
    let first = right(&json);
    first.send().expect("SUCCESS");
    json.request().api(Api::CancelToken).body(token()).send().expect("INVALID_TOKEN");
    // a burst of two is used up, and one comes back each second: of five at once, four are refused
    let mut refused = 0;
    for nth in 0..6 {
        let unknown = if nth % 2 == 0 {
            right(&json).send()
        } else {
            json.request().api(Api::CancelToken).body(token()).send()
        };
        refused += usize::from(unknown.code() == "REQUEST_TRAFFIC_EXCEED_LIMIT");
    }
    assert!(refused >= 3, "{refused} of 6 were refused");
    first.send().expect("SUCCESS").assert_signed();
}
