//! HTTP/1.1 as a stranger may speak it: what hyper takes and a proxy may read otherwise is refused, every wait ends.

use std::{
    net::TcpStream,
    sync::{Arc, OnceLock},
};

use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, crypto::aws_lc_rs,
    pki_types::ServerName,
};

use crate::harness::{
    PATIENCE,
    json::{Api, Connection, Framing, Json, Request, payment_body},
    service::{Options, Service},
    unique,
};

const PATH: &str = Api::CancelPayment.path();

fn right(json: &Json) -> Request {
    json.request().body(payment_body("psp", "acquirer", &unique("http")))
}

fn shared() -> Json {
    Service::shared().json()
}

#[test]
fn an_absolute_form_target_is_routed_and_verified_by_its_path_and_query() {
    for query in ["", "?x=1", "?"] {
        let path = format!("{PATH}{query}");
        for origin in
            ["https://wallet.example", "http://wallet.example:8443", "HTTPS://Wallet.Example"]
        {
            let request = right(&shared()).target(&format!("{origin}{path}")).signed_target(&path);
            request.send().expect("SUCCESS").assert_signed();
        }
    }
    // what is signed is the path, not the whole target
    let target = format!("https://wallet.example{PATH}");
    right(&shared()).target(&target).send().expect("INVALID_SIGNATURE");
    let other = right(&shared()).target("https://wallet.example/").signed_target("/");
    other.send().expect("NO_INTERFACE_DEF").assert_unsigned();
}

#[test]
fn a_connection_is_kept_for_the_next_request_whatever_the_answer_was() {
    let json = shared();
    let mut connection = json.connect();
    for framing in [Framing::Length, Framing::Chunked(7), Framing::Length, Framing::Chunked(1_000)]
    {
        right(&json).framing(framing.clone()).send_on(&mut connection).expect("SUCCESS");
        let wrong = right(&json).framing(framing.clone()).body("[]");
        wrong.send_on(&mut connection).expect("PARAM_ILLEGAL").assert_signed();
        let pretty = payment_body("psp", "acquirer", &unique("http")).replace(',', ",\n  ");
        right(&json).framing(framing).body(pretty).send_on(&mut connection).expect("SUCCESS");
        right(&json).signatures(&[]).send_on(&mut connection).expect("INVALID_SIGNATURE");
        right(&json).times(&[]).send_on(&mut connection).expect("PARAM_ILLEGAL");
    }
}

#[test]
fn requests_that_come_at_once_are_answered_in_their_order() {
    for framing in [Framing::Length, Framing::Chunked(7)] {
        let json = shared();
        let requests: Vec<Request> = (0..6)
            .map(|n| {
                let request = right(&json).framing(framing.clone());
                if n % 2 == 0 { request } else { request.body("[\n]") }
            })
            .collect();
        let mut connection = json.connect();
        let bytes: Vec<u8> = requests.iter().flat_map(Request::bytes).collect();
        connection.write(&bytes);
        for (n, request) in requests.iter().enumerate() {
            let answer = request.answer_on(&mut connection).expect("an answer");
            answer.expect(if n % 2 == 0 { "SUCCESS" } else { "PARAM_ILLEGAL" }).assert_signed();
        }
    }
}

#[test]
fn a_request_is_read_however_it_is_cut_into_packets() {
    let json = shared();
    let mut connection = json.connect();
    let pretty = payment_body("psp", "acquirer", &unique("http")).replace(',', ",\n  ");
    for framing in [Framing::Length, Framing::Chunked(9)] {
        let request = right(&json).framing(framing).body(pretty.clone());
        for byte in request.bytes() {
            connection.write(&[byte]);
        }
        request.answer_on(&mut connection).expect("an answer").expect("SUCCESS").assert_signed();
    }
}

#[test]
fn header_names_are_read_in_any_case() {
    let bytes = String::from_utf8(right(&shared()).bytes()).unwrap();
    let (head, body) = bytes.split_once("\r\n\r\n").unwrap();
    let change: [fn(&str) -> String; 2] = [str::to_ascii_lowercase, str::to_ascii_uppercase];
    for change in change {
        let lines = head.split("\r\n").map(|line| match line.split_once(": ") {
            // white space around values is none of theirs
            Some((name, value)) => format!("{}:  {value} \t", change(name)),
            None => line.to_owned(),
        });
        let head = lines.collect::<Vec<_>>().join("\r\n");
        let mut connection = shared().connect();
        connection.write(format!("{head}\r\n\r\n{body}").as_bytes());
        let answer = connection.answer(true).expect("an answer");
        assert_eq!(answer.code(), "SUCCESS");
    }
}

/// A service that waits for nobody long, so that every connection ends by itself.
fn brisk() -> &'static Service {
    static BRISK: OnceLock<Service> = OnceLock::new();
    BRISK.get_or_init(|| {
        Service::start(Options::set([
            "limits.first_byte_timeout=1s",
            "limits.head_timeout=1s",
            "limits.body_timeout=1s",
            "limits.idle_timeout=1s",
        ]))
    })
}

/// Sends bytes on a connection of their own.
fn sent(bytes: &[u8]) -> Connection {
    let mut connection = brisk().json().connect();
    connection.write(bytes);
    connection
}

/// Reads whatever comes, to the end: no answer in it is a success. The codes, as they came.
#[track_caller]
fn never_succeeded(what: &str, connection: &mut Connection) -> Vec<String> {
    let mut codes = Vec::new();
    while let Some(answer) = connection.answer(true) {
        let code = if answer.status == 200 { answer.code() } else { answer.status.to_string() };
        assert_ne!(code, "SUCCESS", "{what}");
        codes.push(code);
    }
    codes
}

/// All at once, because each waits for the end of its connection.
#[track_caller]
fn never_succeed<T: AsRef<[u8]>>(cases: impl IntoIterator<Item = (String, T)>) {
    let sent: Vec<_> =
        cases.into_iter().map(|(what, bytes)| (what, sent(bytes.as_ref()))).collect();
    for (what, mut connection) in sent {
        never_succeeded(&what, &mut connection);
    }
}

#[track_caller]
fn never_succeeds(what: &str, bytes: &[u8]) -> Vec<String> {
    never_succeeded(what, &mut sent(bytes))
}

#[test]
fn a_version_other_than_http_1_1_is_refused() {
    let versions = ["HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/1.2", "http/1.1", "HTTP/1", ""];
    never_succeed(
        versions.map(|version| (version.to_owned(), right(&shared()).version(version).bytes())),
    );
    let answer = right(&shared()).version("HTTP/1.0").send();
    assert_eq!(answer.code(), "PARAM_ILLEGAL");
}

#[test]
fn a_host_stands_once() {
    for hosts in [&[][..], &["a", "b"], &["a", "a"]] {
        let answer = right(&shared()).hosts(hosts).send();
        answer.expect("PARAM_ILLEGAL").assert_signed();
        assert!(answer.message().starts_with("Host"), "{}", answer.message());
    }
}

#[test]
fn a_body_whose_end_is_ambiguous_is_refused() {
    let json = shared();
    let body = payment_body("psp", "acquirer", &unique("http"));
    let chunked = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let length = body.len().to_string();
    let chunked_length = chunked.len().to_string();
    let both = |first: (&str, &str), second: (&str, &str), body: &str| {
        // the signature is over the body that a reader of chunks sees
        let right = json.request().body(payment_body("psp", "acquirer", "x"));
        let request = right.body(body.as_bytes());
        request.header(first.0, first.1).header(second.0, second.1)
    };
    let (te, cl) = ("Transfer-Encoding", "Content-Length");
    let heads = [
        ((te, "chunked"), (cl, &*length)),
        ((cl, &*length), (te, "chunked")),
        ((te, "chunked"), (cl, &*chunked_length)),
        ((cl, &*chunked_length), (te, "chunked")),
        ((cl, "0"), (te, "chunked")),
        ((te, "gzip, chunked"), ("X-Other", "1")),
        ((te, "chunked, gzip"), ("X-Other", "1")),
        ((te, "identity"), ("X-Other", "1")),
        ((te, "chunked"), (te, "chunked")),
        ((te, "gzip"), (te, "chunked")),
        ((te, "chunked, chunked"), ("X-Other", "1")),
        ((te, "xchunked"), ("X-Other", "1")),
        ((te, "chunked;q=1"), ("X-Other", "1")),
        ((te, " \u{b}chunked"), ("X-Other", "1")),
        ((cl, &*length), (cl, "0")),
        ((cl, "0"), (cl, &*length)),
        ((cl, &*format!("+{length}")), ("X-Other", "1")),
        ((cl, &*format!("{length}, {length}")), ("X-Other", "1")),
        ((cl, "-1"), ("X-Other", "1")),
        ((cl, "0x10"), ("X-Other", "1")),
        ((cl, ""), ("X-Other", "1")),
    ];
    never_succeed(heads.iter().flat_map(|&(first, second)| {
        let head = both(first, second, &body).framing(Framing::Unsaid).head();
        [&body, &chunked]
            .map(|body| (format!("{first:?}, {second:?}"), [&head, body.as_bytes()].concat()))
    }));
}

#[test]
fn content_length_beside_transfer_encoding_closes_the_connection() {
    let chunked = right(&shared()).framing(Framing::Chunked(10)).header("Content-Length", "5");
    assert_eq!(never_succeeds("both", &chunked.bytes()), ["400"]);
}

#[test]
fn a_line_of_a_head_ends_in_cr_lf() {
    let bytes = right(&shared()).bytes();
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let broken = [
        format!("{}\n\n{body}", head.replace("\r\n", "\n")),
        format!("{}\r\n\r\n{body}", head.replacen("\r\n", "\n", 1)),
        format!("{head}\n\r\n{body}"),
        format!("{head}\r\n\n{body}"),
        format!("\n{head}\r\n\r\n{body}"),
        format!("{}\r\n\r\n{body}", head.replacen("Host", "X-A: 1\nHost", 1)),
        format!("{}\r\n\r\n{body}", head.replacen("Host", "X-A: 1\rHost", 1)),
        format!("{}\r\n\r\n{body}", head.replacen("Host", "X-A: 1\r\n folded\r\nHost", 1)),
        format!("{}\r\n\r\n{body}", head.replacen("Client-Id:", "Client-Id :", 1)),
        format!("{}\r\n\r\n{body}", head.replacen("Host: ", "Host: \0", 1)),
        format!("{}\r\n\r\n{body}", head.replacen(" HTTP", "  HTTP", 1)),
        format!("{}\r\n\r\n{body}", head.replacen("POST ", "POST\t", 1)),
    ];
    never_succeed(broken.map(|broken| (broken.clone(), broken)));
}

#[test]
fn a_bare_lf_is_refused_in_the_second_request_of_a_connection_too() {
    for framing in [Framing::Length, Framing::Chunked(10)] {
        let json = shared();
        let first = right(&json).framing(framing.clone());
        let second = String::from_utf8(right(&json).bytes()).unwrap();
        let second = second.replacen("\r\n", "\n", 1);
        // at once, and after the first was answered
        let mut connection = json.connect();
        connection.write(&[&first.bytes()[..], second.as_bytes()].concat());
        first.answer_on(&mut connection).expect("an answer").expect("SUCCESS");
        let answer = connection.answer(true);
        assert!(answer.is_none_or(|answer| answer.status == 400), "at once, {framing:?}");

        let mut connection = json.connect();
        first.send_on(&mut connection).expect("SUCCESS");
        connection.write(second.as_bytes());
        let answer = connection.answer(true);
        assert!(answer.is_none_or(|answer| answer.status == 400), "then, {framing:?}");
    }
}

#[test]
fn a_request_that_comes_in_pieces_behind_a_chunked_one_is_read() {
    let json = shared();
    let first = right(&json).framing(Framing::Chunked(10));
    let pretty = payment_body("psp", "acquirer", &unique("http")).replace(',', ",\n  ");
    let second = right(&json).body(pretty);
    let bytes = second.bytes();
    let head = second.head().len();
    // inside the first line's end, before the empty line, inside it, and somewhere in a header
    for cut in [PATH.len() + 15, head - 2, head - 1, 100] {
        let (before, rest) = bytes.split_at(cut);
        let mut connection = json.connect();
        connection.write(&[&first.bytes()[..], before].concat());
        first.answer_on(&mut connection).expect("an answer").expect("SUCCESS");
        connection.write(rest);
        let answer = second.answer_on(&mut connection);
        answer.unwrap_or_else(|| panic!("no answer, cut at {cut}")).expect("SUCCESS");
    }
}

#[test]
fn empty_lines_before_a_request_are_passed_over_however_they_are_cut() {
    let json = shared();
    let request = right(&json);
    let mut connection = json.connect();
    connection.write(b"\r");
    // a packet of its own
    std::thread::sleep(std::time::Duration::from_millis(50));
    connection.write(&[b"\n", &request.bytes()[..]].concat());
    request.answer_on(&mut connection).expect("an answer").expect("SUCCESS");
}

#[test]
fn what_is_no_http_is_refused_and_the_connection_closes() {
    let cases = [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"hello\r\n\r\n",
        b"\0\0\0\0\r\n\r\n",
        b"POST\r\n\r\n",
        b"GET /\r\n\r\n",
        b"\r\n\r\n\r\n",
        b"POST / HTTP/1.1\r\nnocolon\r\n\r\n",
        b"POST / HTTP/1.1\r\n: empty\r\n\r\n",
        b"",
    ];
    never_succeed(cases.map(|bytes| (format!("{bytes:?}"), bytes)));
}

#[test]
fn a_broken_chunk_is_never_a_success() {
    let json = shared();
    let request = right(&json).framing(Framing::Chunked(1_000));
    let head = request.head();
    let body = String::from_utf8(request.body.clone()).unwrap();
    let bodies = [
        format!("zz\r\n{body}\r\n0\r\n\r\n"),
        format!("-1\r\n{body}\r\n0\r\n\r\n"),
        format!("{:x}\r\n{body}", body.len()),
        format!("{:x}\r\n{body}0\r\n\r\n", body.len()),
        format!("{:x}\r\n{body}\r\n", body.len()),
        format!("ffffffffffffffffff\r\n{body}\r\n0\r\n\r\n"),
        format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len() + 1),
        format!("{:x}\n{body}\n0\n\n", body.len()),
    ];
    never_succeed(bodies.map(|chunks| {
        let bytes = [&head[..], chunks.as_bytes()].concat();
        (chunks, bytes)
    }));
}

#[test]
fn a_body_that_breaks_off_is_never_a_success() {
    let request = right(&shared());
    let bytes = request.bytes();
    for half in [&bytes[..bytes.len() - 1], &request.head()] {
        assert_eq!(never_succeeds("half", half), ["UNKNOWN_EXCEPTION"]);
        let mut connection = sent(half);
        connection.finish();
        never_succeeded("half, then the end", &mut connection);
    }
}

#[test]
fn two_hundred_header_lines_or_a_huge_one_are_refused_and_fifty_are_not() {
    let many = |count: usize| {
        let request = right(&shared());
        (0..count).fold(request, |request, n| request.header(&format!("X-{n}"), "x"))
    };
    many(50).send().expect("SUCCESS").assert_signed();
    assert_eq!(never_succeeds("200 lines", &many(200).bytes()), ["431"]);
    right(&shared()).header("X-Large", &"x".repeat(30_000)).send().expect("SUCCESS");
    let huge = right(&shared()).header("X-Huge", &"x".repeat(300_000));
    assert_eq!(never_succeeds("a huge line", &huge.bytes()), ["431"]);
    let target = format!("{PATH}?{}", "x".repeat(300_000));
    let codes = never_succeeds("a huge target", &right(&shared()).target(&target).bytes());
    assert!(matches!(&*codes.concat(), "431" | "414"), "{codes:?}");
}

#[test]
fn the_answer_to_a_head_request_has_no_body_and_the_next_answer_follows_it() {
    let json = shared();
    let mut connection = json.connect();
    let head = right(&json).method("HEAD").body("").send_on(&mut connection);
    assert_eq!(head.status, 200);
    head.assert_unsigned();
    right(&json).send_on(&mut connection).expect("SUCCESS").assert_signed();
}

#[test]
fn an_upgrade_is_not_taken() {
    let request = right(&shared())
        .header("Connection", "Upgrade, HTTP2-Settings")
        .header("Upgrade", "h2c")
        .header("HTTP2-Settings", "AAMAAABkAAQCAAAAAAIAAAAA");
    request.send().expect("SUCCESS").assert_signed();
}

#[test]
fn agent_token_and_accept_are_ignored_and_no_agent_token_is_logged() {
    let service = Service::start(Options::set(["telemetry.log_level=debug"]));
    for value in ["", "AGENT-SECRET"] {
        let request = right(&service.json()).header("Agent-Token", value);
        let request = request.header("Accept", "text/plain,text/xml,text/javascript,text/html");
        request.send().expect("SUCCESS").assert_signed();
    }
    assert!(!service.stderr().contains("AGENT-SECRET"));
}

/// Every wait is short here.
fn impatient() -> Service {
    Service::start(Options::set([
        "limits.first_byte_timeout=600ms",
        "limits.head_timeout=600ms",
        "limits.body_timeout=600ms",
        "limits.idle_timeout=600ms",
    ]))
}

#[test]
fn whoever_says_nothing_or_half_a_head_or_half_a_body_is_not_waited_for() {
    let service = impatient();
    let json = service.json();
    assert!(json.connect().is_closed(), "silence");

    let request = right(&json);
    let head = request.head();
    for half in [1, 20, head.len() - 2] {
        let mut connection = json.connect();
        connection.write(&head[..half]);
        let answer = connection.answer(true);
        assert!(answer.is_none_or(|answer| answer.status == 408), "half a head");
        assert!(connection.is_closed());
    }
    for framing in [Framing::Length, Framing::Chunked(10)] {
        let request = right(&json).framing(framing);
        let bytes = request.bytes();
        for missing in [1, 40] {
            let mut connection = json.connect();
            connection.write(&bytes[..bytes.len() - missing]);
            let answer = request.answer_on(&mut connection).expect("an answer");
            answer.expect("UNKNOWN_EXCEPTION").assert_signed();
            assert_eq!(answer.header("connection"), Some("close"));
        }
    }
    let mut connection = json.connect();
    right(&json).send_on(&mut connection).expect("SUCCESS");
    assert!(connection.is_closed(), "an idle connection");
    // it still serves
    right(&json).send().expect("SUCCESS").assert_signed();
}

#[test]
fn a_head_that_drips_is_not_waited_for() {
    let service = impatient();
    let json = service.json();
    let mut connection = json.connect();
    let drip = std::thread::spawn({
        let mut socket = TcpStream::connect(json.address).unwrap();
        move || {
            use std::io::Write as _;
            let begun = std::time::Instant::now();
            let mut sent = socket.write_all(format!("POST {PATH} HTTP/1.1\r\n").as_bytes());
            while sent.is_ok() && begun.elapsed() < PATIENCE {
                std::thread::sleep(std::time::Duration::from_millis(50));
                sent = socket.write_all(b"x-a: b\r\n");
            }
            sent.is_err()
        }
    });
    assert!(connection.is_closed());
    assert!(drip.join().unwrap(), "the connection ended under the drip");
}

#[test]
fn a_deadline_counts_from_the_end_of_the_head_and_answers_u() {
    let service = Service::start(Options::set([
        "limits.cancel_payment_deadline=300ms",
        "limits.cancel_token_deadline=300ms",
    ]));
    let json = service.json();
    for api in [Api::CancelPayment, Api::CancelToken] {
        let request = json.request().api(api).body("{ \"pspId\": \"p\" }");
        let mut connection = json.connect();
        connection.write(&request.head());
        let answer = request.answer_on(&mut connection).expect("an answer");
        answer.expect("UNKNOWN_EXCEPTION").assert_signed();
    }
}

#[test]
fn connections_over_the_cap_are_closed() {
    let service = Service::start(Options::set(["limits.connections_per_source=2"]));
    let json = service.json();
    let mut held = [json.connect(), json.connect()];
    for connection in &mut held {
        right(&json).send_on(connection).expect("SUCCESS");
    }
    assert!(json.connect().is_closed());
    for connection in &mut held {
        right(&json).send_on(connection).expect("SUCCESS");
    }
}

#[test]
fn every_configured_prefix_is_served_and_no_other() {
    let service = Service::start(Options::set([r#"bridge.path_prefixes=["/wallet/v2", ""]"#]));
    let json = service.json();
    for prefix in ["/wallet/v2", ""] {
        let target = format!("{prefix}/v1/payments/cancelPayment");
        right(&json).target(&target).send().expect("SUCCESS").assert_signed();
    }
    right(&json).send().expect("NO_INTERFACE_DEF").assert_unsigned();
}

#[test]
fn over_tls_the_front_speaks_http_1_1_and_offers_nothing_else() {
    let dir = tempfile::Builder::new().prefix("apc-it-").tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["wallet.example".to_owned()]).unwrap();
    std::fs::write(dir.path().join("bridge.crt"), made.cert.pem()).unwrap();
    std::fs::write(dir.path().join("bridge.key"), made.signing_key.serialize_pem()).unwrap();
    let toml = "[bridge.tls]\ncert_file = \"bridge.crt\"\nkey_file = \"bridge.key\"\n";
    let options = Options { toml: toml.to_owned(), ..Options::default() };
    let service = Service::start_in(dir, options);
    let json = service.json();

    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let connect = |protocols: &[&str]| {
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let mut config = builder.with_root_certificates(roots.clone()).with_no_client_auth();
        config.alpn_protocols =
            protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        let name = ServerName::try_from("wallet.example").unwrap();
        let client = ClientConnection::new(Arc::new(config), name).unwrap();
        let socket = TcpStream::connect(json.address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut stream = StreamOwned::new(client, socket);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        let protocol = stream.conn.alpn_protocol().map(<[u8]>::to_vec);
        std::io::Result::Ok((Connection::over(Box::new(stream)), protocol))
    };
    for (offered, chosen) in [
        (&["h2", "http/1.1"][..], Some(b"http/1.1".to_vec())),
        (&["http/1.1"], Some(b"http/1.1".to_vec())),
        (&[], None),
    ] {
        let (mut connection, protocol) = connect(offered).unwrap();
        assert_eq!(protocol, chosen);
        for _ in 0..2 {
            right(&json).send_on(&mut connection).expect("SUCCESS").assert_signed();
        }
    }
    assert!(connect(&["h2"]).is_err(), "no protocol in common");
    // plain text on the TLS port
    let mut plain = json.connect();
    plain.write(&right(&json).bytes());
    let mut alert = Vec::new();
    plain.read_to_end(&mut alert);
    assert!(!String::from_utf8_lossy(&alert).contains("HTTP"));
}

#[test]
fn probes_and_metrics_are_on_a_port_of_their_own() {
    let service = Service::shared();
    let get = |path: &str| {
        let mut connection = Connection::to(service.ports().admin);
        connection.write(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
        connection.answer(true).expect("an answer")
    };
    assert_eq!((get("/livez").status, get("/readyz").status), (200, 200));
    let metrics = get("/metrics");
    assert_eq!(metrics.status, 200);
    assert!(String::from_utf8_lossy(&metrics.body).contains("alipayplus_cancel_commits_total"));
    for path in ["/livez", "/readyz", "/metrics"] {
        let answer = service.json().request().method("GET").target(path).send();
        answer.expect("NO_INTERFACE_DEF").assert_unsigned();
    }
}
