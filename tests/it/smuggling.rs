//! Request smuggling over HTTP/1.1: one request that a proxy in front lets through holds another one, signed and right.
//!
//! What is hidden is complete, so whoever reads a byte of the one as the other decides it. One request in is at most one
//! answer out; where its end could be read in two ways, the connection closes behind that.

use std::sync::OnceLock;

use crate::harness::{
    grpc::{Payment, wire::GetPaymentRequest},
    json::{Api, Connection, Framing, Request, payment_body},
    service::{Options, Service},
};

const PATH: &str = Api::CancelPayment.path();

/// A service that waits for nobody long, so that every connection ends by itself, and turns nobody away.
fn brisk() -> &'static Service {
    static BRISK: OnceLock<Service> = OnceLock::new();
    BRISK.get_or_init(|| {
        Service::start(Options::set([
            "limits.first_byte_timeout=1s",
            "limits.head_timeout=1s",
            "limits.body_timeout=1s",
            "limits.idle_timeout=1s",
            "limits.unproven_per_source={ per_second = 100000, burst = 100000 }",
        ]))
    })
}

/// A right request for a payment that nobody else names.
fn right() -> (Payment, Request) {
    let payment = Payment::new();
    let body = payment_body(&payment.psp, &payment.acquirer, &payment.request);
    (payment, brisk().json().request().body(body))
}

fn is_decided(service: &Service, payment: &Payment) -> bool {
    let (psp_id, payment_request_id) = (payment.psp.clone(), payment.request.clone());
    service.grpc().get_payment(GetPaymentRequest { psp_id, payment_request_id }).is_ok()
}

/// One that is under way: what goes out, and the payment that must not be decided by it.
struct Sent {
    what: String,
    hidden: Payment,
    connection: Connection,
}

/// Sends what `outer` makes of the bytes of a hidden request.
fn send(what: impl Into<String>, outer: impl FnOnce(&[u8]) -> Vec<u8>) -> Sent {
    let (hidden, request) = right();
    let mut connection = brisk().json().connect();
    connection.write(&outer(&request.bytes()));
    Sent { what: what.into(), hidden, connection }
}

/// The codes of the answers to the end of the connection, or their HTTP status.
fn answers(connection: &mut Connection) -> Vec<String> {
    let mut codes = Vec::new();
    while let Some(answer) = connection.answer(true) {
        codes.push(match answer.status {
            // none yet
            100 => continue,
            200 => answer.code(),
            status => status.to_string(),
        });
    }
    codes
}

/// At most one answer, to the outer request; nothing decided of the hidden one. Returns what was answered.
#[track_caller]
fn stays_hidden(sent: Vec<Sent>) -> Vec<(String, Vec<String>)> {
    let ended = sent.into_iter().map(|mut sent| {
        let codes = answers(&mut sent.connection);
        assert!(codes.len() <= 1, "{}: {codes:?}", sent.what);
        (sent.what, sent.hidden, codes)
    });
    let ended: Vec<_> = ended.collect();
    let decided = |(_, hidden, _): &&(String, Payment, _)| is_decided(brisk(), hidden);
    let decided: Vec<&String> = ended.iter().filter(decided).map(|(what, ..)| what).collect();
    assert!(decided.is_empty(), "the hidden request was decided: {decided:#?}");
    ended.into_iter().map(|(what, _, codes)| (what, codes)).collect()
}

/// The same, and the outer request is refused below or at its head.
#[track_caller]
fn is_refused(sent: Vec<Sent>) {
    for (what, codes) in stays_hidden(sent) {
        let refused = match codes.first().map(String::as_str) {
            None | Some("400" | "408" | "431") => true,
            // half a body, or a head that we read and refuse
            Some(code) => ["UNKNOWN_EXCEPTION", "PARAM_ILLEGAL"].contains(&code),
        };
        assert!(refused, "{what}: {codes:?}");
    }
}

/// A head of an outer request with these lines, which brings nothing that verifies.
fn head(lines: &[&str]) -> Vec<u8> {
    let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    format!("POST {PATH} HTTP/1.1\r\nHost: wallet.example\r\n{lines}\r\n").into_bytes()
}

fn chunk(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

const LAST: &[u8] = b"0\r\n\r\n";

#[test]
fn two_requests_that_both_ends_see_are_two() {
    // what the other tests hide is decided where it is not hidden: they can fail
    let lengths = |hidden: &[u8]| [&head(&["Content-Length: 2"])[..], b"{}", hidden].concat();
    let chunks = |hidden: &[u8]| {
        [&head(&["Transfer-Encoding: chunked"])[..], &chunk(b"{}"), LAST, hidden].concat()
    };
    let sizes = |size: &'static str| {
        move |hidden: &[u8]| {
            let chunk = format!("{size}\r\n{{}}\r\n");
            [&head(&["Transfer-Encoding: chunked"])[..], chunk.as_bytes(), LAST, hidden].concat()
        }
    };
    let trailers = |hidden: &[u8]| {
        let last = b"0\r\nContent-Length: 400\r\nHost: x\r\nSignature: y\r\n\r\n";
        [&head(&["Transfer-Encoding: chunked"])[..], &chunk(b"{}"), last, hidden].concat()
    };
    for sent in [
        send("a length", lengths),
        send("chunks", chunks),
        send("zeros before a size", sizes("00002")),
        send("an extension", sizes("2;a=b")),
        send("trailers", trailers),
    ] {
        let Sent { what, hidden, mut connection } = sent;
        let codes = answers(&mut connection);
        assert_eq!(codes, ["INVALID_CLIENT", "SUCCESS"], "{what}");
        assert!(is_decided(brisk(), &hidden), "{what}");
    }
}

#[test]
fn a_length_beside_chunks_is_refused_whichever_of_them_hides_something() {
    let mut sent = Vec::new();
    for coding in [
        "Transfer-Encoding: chunked",
        "transfer-encoding:chunked",
        "Transfer-Encoding: \tchunked \t",
        "TRANSFER-ENCODING: CHUNKED",
        "Transfer-Encoding: chunked,",
        "Transfer-Encoding: identity, chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: x\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: x",
    ] {
        // who reads the length sees one body; who reads chunks sees its end, and a request
        sent.push(send(format!("CL.TE, {coding:?}"), |hidden| {
            let body = [LAST, hidden].concat();
            let length = format!("Content-Length: {}", body.len());
            [head(&[&length, coding]), body].concat()
        }));
        // and the other way round
        sent.push(send(format!("TE.CL, {coding:?}"), |hidden| {
            let first = format!("{:x}\r\n", hidden.len());
            let length = format!("Content-Length: {}", first.len());
            [head(&[coding, &length]), chunk(hidden), LAST.to_vec()].concat()
        }));
        // a length of nothing at all
        sent.push(send(format!("0.TE, {coding:?}"), |hidden| {
            [head(&["Content-Length: 0", coding]), chunk(hidden), LAST.to_vec()].concat()
        }));
    }
    is_refused(sent);
}

#[test]
fn a_coding_that_only_some_would_read_never_moves_the_end_of_a_body() {
    let mut sent = Vec::new();
    for coding in [
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunkedx",
        "Transfer-Encoding: \"chunked\"",
        "Transfer-Encoding: 'chunked'",
        "Transfer-Encoding: chunked;a=b",
        "Transfer-Encoding: chunked chunked",
        "Transfer-Encoding: \u{b}chunked",
        "Transfer-Encoding: \u{c}chunked",
        "Transfer-Encoding: \u{a0}chunked",
        "Transfer-Encoding: chun\u{212a}ed",
        "Transfer-Encoding: chunked\0",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding\t: chunked",
        "Transfer-Encoding:\r\n chunked",
        "Transfer-Encoding:\r\n\tchunked",
        "X: y\r\n Transfer-Encoding: chunked",
        " Transfer-Encoding: chunked",
        "X: y\rTransfer-Encoding: chunked",
        "X: y\nTransfer-Encoding: chunked",
        "X\n: y\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding\r\n: chunked",
        "Transfer_Encoding: chunked",
        "Transfer-Encoding: ",
        "Content-Encoding: chunked",
        "TE: chunked",
        "Trailer: Transfer-Encoding",
    ] {
        // its length is right: if the coding were taken, or took the length away, the hidden one would be next
        sent.push(send(format!("beside a length, {coding:?}"), |hidden| {
            let body = [LAST, hidden].concat();
            [head(&[&format!("Content-Length: {}", body.len()), coding]), body].concat()
        }));
    }
    for (what, codes) in stays_hidden(sent) {
        assert!(!codes.contains(&"SUCCESS".to_owned()), "{what}: {codes:?}");
    }
}

#[test]
fn a_length_is_digits_and_nothing_else() {
    let mut sent = Vec::new();
    for length in [
        "+N",
        "-N",
        "-0",
        "0xN",
        "0oN",
        "N_0",
        "N 0",
        "0 N",
        "N,N",
        "N, N",
        "0,N",
        "N;",
        "N.0",
        "Ne0",
        "\"N\"",
        "N\u{b}",
        "\u{ff11}",
        "",
        "18446744073709551616",
        "18446744073709551615",
        "9223372036854775808",
        "99999999999999999999999999999999",
        "-1",
        "NaN",
    ] {
        sent.push(send(format!("Content-Length: {length:?}"), |hidden| {
            let length = length.replace('N', &hidden.len().to_string());
            [&head(&[&format!("Content-Length: {length}")])[..], hidden].concat()
        }));
    }
    for lines in [
        "Content-Length: N\r\nContent-Length: 0",
        "Content-Length: 0\r\nContent-Length: N",
        "Content-Length: N\r\nX: y\r\ncontent-length: 1",
        "Content-Length : N",
        " Content-Length: N",
        "Content-Length\t: N",
        "Content-Length\0: N",
        "X: y\rContent-Length: N",
        "X: y\r\n Content-Length: N",
        "Content-Length:\r\n N",
    ] {
        sent.push(send(format!("{lines:?}"), |hidden| {
            let lines = lines.replace('N', &hidden.len().to_string());
            [&head(&[&lines])[..], hidden].concat()
        }));
    }
    is_refused(sent);
}

#[test]
fn the_size_of_a_chunk_is_hex_digits_and_its_end_is_where_it_says() {
    let mut sent = Vec::new();
    let chunked =
        |bytes: &[&[u8]]| [&head(&["Transfer-Encoding: chunked"])[..], &bytes.concat()].concat();
    // what stands behind is next for whoever reads these as two
    for size in [
        "0x2",
        "0X2",
        "+2",
        "-2",
        "2_",
        "_2",
        " 2",
        "\t2",
        "2h",
        "\u{ff12}",
        "2,2",
        "2 2",
        "",
        ";",
        "2\0",
        "2\u{b}",
        "10000000000000002",
        "ffffffffffffffff",
        "fffffffffffffffe",
        "80000000000000000000000000000002",
        "-ffffffe",
    ] {
        let first = format!("{size}\r\n{{}}\r\n");
        sent.push(send(format!("a chunk of size {size:?}"), |hidden| {
            chunked(&[first.as_bytes(), LAST, hidden])
        }));
    }
    for (what, first) in [
        ("a bare LF behind a size", "2\n{}\r\n"),
        ("a bare CR behind a size", "2\r{}\r\n"),
        ("a bare LF in an extension", "2;a\n=b\r\n{}\r\n"),
        ("a bare LF that ends an extension", "2;\n{}\r\n"),
        ("a bare CR in an extension", "2;a\rb\r\n{}\r\n"),
        ("a line end in a quoted extension", "2;a=\"\r\n{}\r\n\"\r\n"),
        ("no end behind the data", "2\r\n{}"),
        ("two other bytes behind the data", "2\r\n{}xx"),
        ("a bare LF behind the data", "2\r\n{}\n"),
        ("a bare CR behind the data", "2\r\n{}\r"),
        ("LF CR behind the data", "2\r\n{}\n\r"),
        ("more data than it says", "2\r\n{}}\r\n"),
        ("an empty line first", "\r\n2\r\n{}\r\n"),
    ] {
        sent.push(send(what, |hidden| chunked(&[first.as_bytes(), LAST, hidden])));
    }
    for (what, last) in [
        ("a last chunk that is none", "00x0\r\n\r\n"),
        ("a bare LF behind the last chunk", "0\n\n"),
        ("a bare LF behind the last line", "0\r\n\n"),
        ("a bare CR behind the last line", "0\r\n\r"),
        ("two other bytes behind the last chunk", "0\r\nxx"),
        ("a trailer with a bare LF", "0\r\nX: y\nZ: w\r\n\r\n"),
        ("a trailer with a bare CR", "0\r\nX: y\rZ: w\r\n\r\n"),
    ] {
        sent.push(send(what, |hidden| chunked(&[&chunk(b"{}"), last.as_bytes(), hidden])));
    }
    is_refused(sent);
}

#[test]
fn no_line_of_a_head_is_read_as_two_and_no_two_as_one() {
    let mut sent = Vec::new();
    for first in [
        "GET / HTTP/1.1 \r\n",
        "GET / HTTP/1.1\t\r\n",
        "GET /  HTTP/1.1\r\n",
        "GET / HTTP/1.1 HTTP/1.1\r\n",
        "GET /\tHTTP/1.1\r\n",
        "GET /a b HTTP/1.1\r\n",
        "GET /\u{b}x HTTP/1.1\r\n",
        "GET /\0 HTTP/1.1\r\n",
        "G\tET / HTTP/1.1\r\n",
        "GET\0 / HTTP/1.1\r\n",
        "GET / HTTP/1.1\r",
        "GET / HTTP/1.1\n",
        "GET /\r\n",
        "GET / HTTP/0.9\r\n",
        "GET / HTTP/1.1\r\r\n",
        "\0GET / HTTP/1.1\r\n",
        "{}GET / HTTP/1.1\r\n",
        " GET / HTTP/1.1\r\n",
        "GET / HTTP/1.1\r\n folded: x\r\n",
    ] {
        // the hidden request is the body by the length, and next without it
        sent.push(send(format!("{first:?}"), |hidden| {
            let rest = format!("Host: a\r\nContent-Length: {}\r\n\r\n", hidden.len());
            [first.as_bytes(), rest.as_bytes(), hidden].concat()
        }));
    }
    for line in [
        "X",
        "X y",
        ": y",
        "\u{e9}: y",
        "X(: y",
        "X\0: y",
        "X: \0",
        "X: y\r",
        "X: y\rz",
        "X: y\n",
        "X: y\r\n z",
        "X: y\r\n\tz",
        "X: y\r\n \r\n z",
        "X : y",
        "X\r: y",
        "\tX: y",
        "X: \u{1b}[2J",
        "X: \u{7f}",
    ] {
        sent.push(send(format!("a line {line:?}"), |hidden| {
            let length = format!("Content-Length: {}", hidden.len());
            [&head(&[line, &length])[..], hidden].concat()
        }));
    }
    is_refused(sent);
}

#[test]
fn a_host_and_a_target_are_one_each() {
    let mut sent = Vec::new();
    for host in [
        "Host: a\r\nHost: b",
        "Host: a\r\nhost: a",
        "Host: a, b\r\nHost: c",
        "X-Forwarded-Host: b\r\nHost: a\r\nHOST: b",
        "Host: a\r\n Host: b",
        "Host : a",
        "X: y",
    ] {
        // right in all else, so that only its host is in the way
        sent.push(send(format!("{host:?}"), |hidden| {
            let text = String::from_utf8(hidden.to_vec()).expect("ASCII");
            text.replace("Host: wallet.example", host).into_bytes()
        }));
    }
    for (what, codes) in stays_hidden(sent) {
        assert!(!codes.contains(&"SUCCESS".to_owned()), "{what}: {codes:?}");
    }

    // a target with another authority than Host is routed by its path alone, and verified as such
    for target in ["http://other.example", "http://user@wallet.example", "http://[::1]:1"] {
        let (payment, request) = right();
        let target = format!("{target}{PATH}");
        let mut connection = brisk().json().connect();
        let request = request.target(&target).signed_target(PATH);
        connection.write(&request.bytes());
        let code = request.answer_on(&mut connection).map(|answer| answer.status);
        let codes = answers(&mut connection);
        assert!(codes.is_empty(), "{target}: {code:?}, {codes:?}");
        assert_eq!(is_decided(brisk(), &payment), code == Some(200), "{target}");
    }
}

#[test]
fn headers_that_are_for_one_hop_do_not_take_a_body_away() {
    let mut sent = Vec::new();
    for line in [
        "Connection: Content-Length",
        "Connection: close, Content-Length",
        "Connection: Transfer-Encoding, Content-Length",
        "Connection: keep-alive",
        "Proxy-Connection: close",
        "Keep-Alive: timeout=0",
        "Expect: 100-continue",
        "Expect: 100-continue, 100-continue",
        "Expect:\t100-Continue",
        "Expect: y 100-continue",
        "Expect: 200-ok",
        "Upgrade: h2c\r\nConnection: Upgrade",
        "Upgrade: websocket\r\nConnection: Upgrade",
        "X-HTTP-Method-Override: GET",
        "Max-Forwards: 0",
        "Content-Type: multipart/form-data; boundary=x",
    ] {
        for method in ["POST", "GET", "DELETE", "OPTIONS", "TRACE"] {
            sent.push(send(format!("{method}, {line:?}"), |hidden| {
                let length = format!("Content-Length: {}", hidden.len());
                let head = String::from_utf8(head(&[line, &length])).unwrap();
                [head.replacen("POST", method, 1).as_bytes(), hidden].concat()
            }));
        }
    }
    for (what, codes) in stays_hidden(sent) {
        // 100 is no answer yet
        assert!(codes.iter().all(|code| code != "SUCCESS"), "{what}: {codes:?}");
    }
}

#[test]
fn an_older_version_does_not_carry_a_second_request() {
    let mut sent = Vec::new();
    for version in ["HTTP/1.0", "HTTP/1.2", "HTTP/2.0", "HTTP/0.9"] {
        for lines in [
            &["Content-Length: 2", "Connection: keep-alive"][..],
            &["Transfer-Encoding: chunked", "Connection: keep-alive"],
            &["Transfer-Encoding: chunked", "Content-Length: 2"],
        ] {
            sent.push(send(format!("{version}, {lines:?}"), |hidden| {
                let head = String::from_utf8(head(lines)).unwrap();
                let head = head.replacen("HTTP/1.1", version, 1);
                // by its length the hidden one is next; by chunks it is the body
                let body = if lines[0].starts_with("Transfer") {
                    [&chunk(hidden)[..], LAST].concat()
                } else {
                    [&b"{}"[..], hidden].concat()
                };
                [head.as_bytes(), &body].concat()
            }));
        }
    }
    let kept = "HTTP/1.0, [\"Content-Length: 2\", \"Connection: keep-alive\"]";
    let (plain, rest): (Vec<_>, Vec<_>) = sent.into_iter().partition(|sent| sent.what == kept);
    is_refused(rest);
    // that one is no trick: both ends see two
    for mut sent in plain {
        assert!(answers(&mut sent.connection).len() <= 2, "{}", sent.what);
    }
}

#[test]
fn a_request_that_is_cut_anywhere_is_not_completed_by_the_next() {
    // the first breaks off; what follows it on another connection is another one's
    let (first, request) = right();
    let bytes = request.framing(Framing::Chunked(7)).bytes();
    let mut open: Vec<Connection> = Vec::new();
    for cut in (1..bytes.len()).step_by(37) {
        let mut connection = brisk().json().connect();
        connection.write(&bytes[..cut]);
        connection.finish();
        open.push(connection);
    }
    let (second, request) = right();
    request.send().expect("SUCCESS");
    for mut connection in open {
        let codes = answers(&mut connection);
        assert!(codes.iter().all(|code| code != "SUCCESS"), "{codes:?}");
    }
    assert!(is_decided(brisk(), &second));
    assert!(!is_decided(brisk(), &first));
}
