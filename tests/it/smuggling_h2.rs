//! The same over HTTP/2, where nothing is read line by line, and a proxy that speaks HTTP/1.1 behind would make lines of it:
//! heads and frames that are no HTTP/2 are never decided, and end their stream or their connection.

use std::sync::OnceLock;

use crate::harness::{
    grpc::{Payment, wire::GetPaymentRequest},
    h2::{
        self, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, H2, HEADERS, PRIORITY,
        RST_STREAM, SETTINGS, WINDOW_UPDATE, frame,
    },
    json::{Request, payment_body},
    service::{Options, Service},
};

const PADDED: u8 = 8;
const WITH_PRIORITY: u8 = 32;
const PUSH_PROMISE: u8 = 5;

struct Front {
    service: Service,
    root: Vec<u8>,
}

/// A bridge that speaks HTTP/2.
fn front() -> &'static Front {
    static FRONT: OnceLock<Front> = OnceLock::new();
    FRONT.get_or_init(|| {
        let dir = tempfile::Builder::new().prefix("apc-it-").tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(["wallet.example".to_owned()]).unwrap();
        std::fs::write(dir.path().join("bridge.crt"), made.cert.pem()).unwrap();
        std::fs::write(dir.path().join("bridge.key"), made.signing_key.serialize_pem()).unwrap();
        let mut options = Options::set([
            "bridge.http2=true",
            "limits.body_timeout=1s",
            "limits.head_timeout=1s",
            "limits.idle_timeout=2s",
            "limits.unproven_per_source={ per_second = 100000, burst = 100000 }",
        ]);
        "[bridge.tls]\ncert_file = \"bridge.crt\"\nkey_file = \"bridge.key\"\n"
            .clone_into(&mut options.toml);
        let service = Service::start_in(dir, options);
        Front { service, root: made.cert.der().to_vec() }
    })
}

fn connect() -> H2 {
    let front = front();
    let mut h2 = H2::tls(front.service.ports().bridge, &front.root, &[]);
    h2.settle();
    h2
}

type Fields = Vec<(String, String)>;

/// A right request for a payment of its own, its fields in order.
fn right() -> (Payment, Fields, Vec<u8>) {
    let payment = Payment::new();
    let body = payment_body(&payment.psp, &payment.acquirer, &payment.request);
    let request: Request = front().service.json().request().body(body.clone());
    let own = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let fields = vec![
        own(":method", "POST"),
        own(":scheme", "https"),
        own(":path", &request.target),
        own(":authority", "wallet.example"),
        own("content-type", "application/json; charset=UTF-8"),
        own("client-id", &request.client_ids[0]),
        own("request-time", &request.times[0]),
        own("signature", &request.signature()),
    ];
    (payment, fields, body.into_bytes())
}

fn block(fields: &Fields) -> Vec<u8> {
    fields.iter().flat_map(|(name, value)| h2::field(name, value)).collect()
}

/// How a request ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// What its answer says.
    Answer(String),
    /// Its stream was reset, or its connection told to go, with this code.
    Refused(u32),
    /// The connection closed.
    Closed,
}

/// Waits for the end of stream 1.
fn end(h2: &mut H2) -> End {
    let mut body = Vec::new();
    while let Some(next) = h2.next_answering() {
        let code = |at: usize| {
            let bytes = next.payload.get(at..at + 4).expect("a code");
            u32::from_be_bytes(bytes.try_into().expect("four bytes"))
        };
        match next.kind {
            RST_STREAM if next.stream == 1 => return End::Refused(code(0)),
            GOAWAY if code(4) != 0 => return End::Refused(code(4)),
            DATA if next.stream == 1 => body.extend_from_slice(&next.payload),
            _ => {}
        }
        if next.stream == 1 && matches!(next.kind, DATA | HEADERS) && next.flags & END_STREAM != 0 {
            let json: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
            return End::Answer(json["result"]["resultCode"].as_str().unwrap_or("").to_owned());
        }
    }
    End::Closed
}

fn is_decided(payment: &Payment) -> bool {
    let (psp_id, payment_request_id) = (payment.psp.clone(), payment.request.clone());
    let asked = GetPaymentRequest { psp_id, payment_request_id };
    front().service.grpc().get_payment(asked).is_ok()
}

/// Sends frames made of a right request and waits for its end.
fn send(frames: impl FnOnce(Fields, Vec<u8>) -> Vec<u8>) -> (Payment, End) {
    let (payment, fields, body) = right();
    let mut h2 = connect();
    h2.send(&frames(fields, body));
    (payment, end(&mut h2))
}

/// With other fields: whatever the answer is, nothing is decided.
#[track_caller]
fn is_not_decided(what: &str, change: impl FnOnce(&mut Fields, &mut Vec<u8>)) -> End {
    let (payment, end) = send(|mut fields, mut body| {
        change(&mut fields, &mut body);
        let head = frame(HEADERS, END_HEADERS, 1, &block(&fields));
        [head, frame(DATA, END_STREAM, 1, &body)].concat()
    });
    assert_ne!(end, End::Answer("SUCCESS".to_owned()), "{what}");
    assert!(!is_decided(&payment), "{what}: {end:?}");
    end
}

/// The same, refused as no HTTP/2 at all.
#[track_caller]
fn is_no_http(what: &str, change: impl FnOnce(&mut Fields, &mut Vec<u8>)) {
    let end = is_not_decided(what, change);
    assert!(matches!(end, End::Refused(_) | End::Closed), "{what}: {end:?}");
}

fn set(fields: &mut Fields, name: &str, value: &str) {
    let field = fields.iter_mut().find(|(known, _)| known == name).expect("it is there");
    value.clone_into(&mut field.1);
}

fn add(fields: &mut Fields, name: &str, value: &str) {
    fields.push((name.to_owned(), value.to_owned()));
}

#[test]
fn a_right_request_is_decided_so_that_wrong_ones_mean_something() {
    for padded in [false, true] {
        let (payment, end) = send(|fields, body| {
            let block = block(&fields);
            if !padded {
                let head = frame(HEADERS, END_HEADERS, 1, &block);
                return [head, frame(DATA, END_STREAM, 1, &body)].concat();
            }
            // in pieces, with padding, the length said
            let mut fields = fields;
            add(&mut fields, "content-length", &body.len().to_string());
            let block = self::block(&fields);
            let (first, rest) = block.split_at(20);
            let padding = |bytes: &[u8]| [&[7], bytes, &[0; 7]].concat();
            let (begin, remains) = body.split_at(10);
            [
                frame(HEADERS, PADDED, 1, &padding(first)),
                frame(CONTINUATION, END_HEADERS, 1, rest),
                frame(DATA, PADDED, 1, &padding(begin)),
                frame(DATA, 0, 1, &[]),
                frame(DATA, PADDED | END_STREAM, 1, &padding(remains)),
            ]
            .concat()
        });
        assert_eq!(end, End::Answer("SUCCESS".to_owned()));
        assert!(is_decided(&payment));
    }
}

#[test]
fn a_pseudo_header_stands_once_and_in_front() {
    for name in [":method", ":scheme", ":path", ":authority"] {
        is_no_http(&format!("{name} twice"), |fields, _| {
            let field = fields.iter().find(|(known, _)| known == name).expect("it").clone();
            fields.insert(1, field);
        });
        is_no_http(&format!("{name} behind the others"), |fields, _| {
            let at = fields.iter().position(|(known, _)| known == name).expect("it");
            let field = fields.remove(at);
            fields.push(field);
        });
    }
    for name in [":method", ":scheme", ":path"] {
        is_no_http(&format!("no {name}"), |fields, _| fields.retain(|(known, _)| known != name));
    }
    for (name, value) in [(":status", "200"), (":protocol", "websocket"), (":x", "y"), (":", "y")] {
        is_no_http(&format!("{name:?}"), |fields, _| {
            fields.insert(0, (name.to_owned(), value.to_owned()));
        });
    }
}

#[test]
fn a_pseudo_header_holds_no_second_line_and_no_second_request() {
    for (name, value) in [
        (":method", "POST / HTTP/1.1\r\nX: y"),
        (":method", "POST\0"),
        (":method", "PO ST"),
        (":method", ""),
        (":path", ""),
        (":path", "/ HTTP/1.1\r\nHost: a\r\n\r\n"),
        (":path", "/a b"),
        (":path", "/a\0"),
        (":path", "/a\n"),
        (":authority", "wallet.example\r\nX: y"),
        (":authority", "a b"),
        (":scheme", "https://x/\r\n"),
    ] {
        is_no_http(&format!("{name}: {value:?}"), |fields, _| set(fields, name, value));
    }
    // read, and not ours or not what was signed
    for (name, value) in [
        (":path", "*"),
        (":path", "aps/api/v1/payments/cancelPayment"),
        (":path", "https://wallet.example/aps/api/v1/payments/cancelPayment"),
        (":path", "//aps/api/v1/payments/cancelPayment"),
        (":path", "/aps/api/v1/payments/cancelPayment?"),
        (":path", "/aps/api/v1/payments/cancelPayment/"),
        (":path", "/aps/api/v1/payments/%63ancelPayment"),
        (":method", "post"),
        (":method", "GET"),
        (":method", "CONNECT"),
    ] {
        is_not_decided(&format!("{name}: {value:?}"), |fields, _| set(fields, name, value));
    }
}

#[test]
fn a_name_is_in_lower_case_and_a_value_is_one_line() {
    for name in ["Client-Id", "SIGNATURE", "x y", "x:y", "x\r\ny", "x\0", "x\ny: z", "\u{e9}", ""] {
        is_no_http(&format!("{name:?}"), |fields, _| add(fields, name, "z"));
    }
    for value in ["a\r\nb: c", "a\nb", "a\rb", "a\0b", "\r\n\r\nPOST / HTTP/1.1", "\n", "\u{7f}"] {
        is_no_http(&format!("{value:?}"), |fields, _| add(fields, "x-a", value));
    }
}

#[test]
fn what_is_about_one_connection_does_not_stand_in_a_head() {
    for (name, value) in [
        ("connection", "keep-alive"),
        ("connection", "client-id"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("transfer-encoding", "chunked"),
        ("transfer-encoding", "identity"),
        ("upgrade", "h2c"),
        ("te", "gzip"),
        ("te", "trailers, deflate"),
    ] {
        is_no_http(&format!("{name}: {value}"), |fields, _| add(fields, name, value));
    }
}

#[test]
fn a_length_is_that_of_the_body() {
    let lengths: [fn(usize) -> String; 9] = [
        |length| (length + 1).to_string(),
        |length| (length - 1).to_string(),
        |_| "0".to_owned(),
        |length| format!("+{length}"),
        |length| format!("-{length}"),
        |length| format!("0x{length:x}"),
        |length| format!("{length}, {length}"),
        |_| "18446744073709551616".to_owned(),
        |_| "x".to_owned(),
    ];
    for length in lengths {
        let said = length(100);
        is_not_decided(&format!("content-length {said} for 100"), |fields, body| {
            add(fields, "content-length", &length(body.len()));
        });
    }
    for (first, second) in [(0, 1), (1, 0)] {
        is_not_decided("two lengths", |fields, body| {
            add(fields, "content-length", &(body.len() + first).to_string());
            add(fields, "content-length", &(body.len() + second).to_string());
        });
    }
}

#[test]
fn what_stands_once_in_http_1_stands_once_here() {
    for name in ["client-id", "request-time", "signature"] {
        let end = is_not_decided(&format!("{name} twice"), |fields, _| {
            let field = fields.iter().find(|(known, _)| known == name).expect("it").clone();
            fields.push(field);
        });
        assert!(matches!(end, End::Answer(_)), "{name}: {end:?}");
    }
    // in trailers it counts for nothing
    let (payment, end) = send(|mut fields, body| {
        let at = fields.iter().position(|(name, _)| name == "signature").expect("it");
        let signature = vec![fields.remove(at)];
        [
            frame(HEADERS, END_HEADERS, 1, &block(&fields)),
            frame(DATA, 0, 1, &body),
            frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&signature)),
        ]
        .concat()
    });
    assert_eq!(end, End::Answer("INVALID_SIGNATURE".to_owned()));
    assert!(!is_decided(&payment));
    // nor does anything else there, pseudo-headers among it, which h2 lets pass
    let (payment, end) = send(|fields, body| {
        let trailers =
            h2::fields(&[(":path", "/x"), (":method", "GET"), ("client-id", "x"), ("x", "y")]);
        [
            frame(HEADERS, END_HEADERS, 1, &block(&fields)),
            frame(DATA, 0, 1, &body),
            frame(HEADERS, END_HEADERS | END_STREAM, 1, &trailers),
        ]
        .concat()
    });
    assert_eq!(end, End::Answer("SUCCESS".to_owned()), "what its head says");
    assert!(is_decided(&payment));
}

#[test]
fn frames_that_are_none_end_the_connection_and_nothing_is_decided() {
    type Make = fn(&[u8], &[u8]) -> Vec<u8>;
    let cases: &[(&str, Make)] = &[
        ("padding longer than a head", |head, _| {
            frame(HEADERS, END_HEADERS | END_STREAM | PADDED, 1, &[&[255], &head[..100]].concat())
        }),
        ("padding longer than the data", |head, body| {
            let data = [&[255], &body[..20]].concat();
            [frame(HEADERS, END_HEADERS, 1, head), frame(DATA, PADDED | END_STREAM, 1, &data)]
                .concat()
        }),
        ("a frame larger than allowed", |head, _| {
            let data = vec![b' '; 16_385];
            [frame(HEADERS, END_HEADERS, 1, head), frame(DATA, END_STREAM, 1, &data)].concat()
        }),
        ("a stream of the server's", |head, body| {
            [frame(HEADERS, END_HEADERS, 2, head), frame(DATA, END_STREAM, 2, body)].concat()
        }),
        ("a head on no stream", |head, _| frame(HEADERS, END_HEADERS | END_STREAM, 0, head)),
        ("data on a stream that was never opened", |_, body| frame(DATA, END_STREAM, 1, body)),
        ("data on no stream", |head, body| {
            [frame(HEADERS, END_HEADERS, 1, head), frame(DATA, END_STREAM, 0, body)].concat()
        }),
        ("a head that another frame interrupts", |head, body| {
            let (first, rest) = head.split_at(30);
            [
                frame(HEADERS, 0, 1, first),
                frame(DATA, END_STREAM, 1, body),
                frame(CONTINUATION, END_HEADERS, 1, rest),
            ]
            .concat()
        }),
        ("a head that goes on in another stream", |head, body| {
            let (first, rest) = head.split_at(30);
            [
                frame(HEADERS, 0, 1, first),
                frame(CONTINUATION, END_HEADERS, 3, rest),
                frame(DATA, END_STREAM, 1, body),
            ]
            .concat()
        }),
        ("a head that goes on and never began", |head, _| {
            frame(CONTINUATION, END_HEADERS, 1, head)
        }),
        ("a second head that is no trailer", |head, body| {
            [
                frame(HEADERS, END_HEADERS, 1, head),
                frame(HEADERS, END_HEADERS, 1, head),
                frame(DATA, END_STREAM, 1, body),
            ]
            .concat()
        }),
        ("a promise of a client", |head, body| {
            let promise = [&[0, 0, 0, 2][..], head].concat();
            [
                frame(HEADERS, END_HEADERS, 1, head),
                frame(PUSH_PROMISE, END_HEADERS, 1, &promise),
                frame(DATA, END_STREAM, 1, body),
            ]
            .concat()
        }),
        ("settings of no whole number", |head, body| {
            [
                frame(HEADERS, END_HEADERS, 1, head),
                frame(SETTINGS, 0, 0, &[0, 4, 0]),
                frame(DATA, END_STREAM, 1, body),
            ]
            .concat()
        }),
        ("a window that grows by nothing", |head, body| {
            [
                frame(HEADERS, END_HEADERS, 1, head),
                frame(WINDOW_UPDATE, 0, 1, &[0; 4]),
                frame(DATA, END_STREAM, 1, body),
            ]
            .concat()
        }),
        ("a window beyond its end", |head, body| {
            [
                frame(HEADERS, END_HEADERS, 1, head),
                frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]),
                frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]),
                frame(DATA, END_STREAM, 1, body),
            ]
            .concat()
        }),
        ("a stream that depends on itself", |head, body| {
            let head = [&[0, 0, 0, 1, 16], head].concat();
            [
                frame(HEADERS, END_HEADERS | WITH_PRIORITY, 1, &head),
                frame(DATA, END_STREAM, 1, body),
            ]
            .concat()
        }),
        ("a priority of a wrong length", |head, body| {
            [
                frame(HEADERS, END_HEADERS, 1, head),
                frame(PRIORITY, 0, 1, &[0; 4]),
                frame(DATA, END_STREAM, 1, body),
            ]
            .concat()
        }),
        ("a field of a table that has none", |head, body| {
            let head = [head, &[0xff, 0xff, 0x7f]].concat();
            [frame(HEADERS, END_HEADERS, 1, &head), frame(DATA, END_STREAM, 1, body)].concat()
        }),
        ("a field that is cut off", |head, body| {
            let head = &head[..head.len() - 3];
            [frame(HEADERS, END_HEADERS, 1, head), frame(DATA, END_STREAM, 1, body)].concat()
        }),
        ("a table larger than allowed", |head, body| {
            let head = [&[0x3f, 0xff, 0xff, 0x7f], head].concat();
            [frame(HEADERS, END_HEADERS, 1, &head), frame(DATA, END_STREAM, 1, body)].concat()
        }),
    ];
    for (what, make) in cases {
        let (payment, end) = send(|fields, body| make(&block(&fields), &body));
        assert!(matches!(end, End::Refused(_) | End::Closed), "{what}: {end:?}");
        assert!(!is_decided(&payment), "{what}: {end:?}");
    }
}

#[test]
fn what_comes_behind_the_end_of_a_stream_is_not_its_body() {
    // the body is what came before its end; what follows is an error of the stream's, and decides nothing else
    let (first, fields, body) = right();
    let (second, _, other) = right();
    let mut h2 = connect();
    let head = frame(HEADERS, END_HEADERS, 1, &block(&fields));
    let late = frame(DATA, END_STREAM, 1, &other);
    h2.send(&[head, frame(DATA, END_STREAM, 1, &body), late].concat());
    drop(end(&mut h2));
    assert!(!is_decided(&second));
    // and a stream that was reset amid its body decides nothing either
    let (third, fields, body) = right();
    let mut h2 = connect();
    let head = frame(HEADERS, END_HEADERS, 1, &block(&fields));
    let reset = frame(RST_STREAM, 0, 1, &8_u32.to_be_bytes());
    let (begin, _) = body.split_at(body.len() - 1);
    h2.send(&[head, frame(DATA, 0, 1, begin), reset].concat());
    // the next on the same connection has a body of its own
    let (fourth, fields, body) = right();
    let head = frame(HEADERS, END_HEADERS, 3, &block(&fields));
    h2.send(&[head, frame(DATA, END_STREAM, 3, &body)].concat());
    while let Some(next) = h2.next_answering() {
        if next.stream == 3 && next.flags & END_STREAM != 0 {
            break;
        }
    }
    assert!(is_decided(&fourth) && !is_decided(&third));
    drop(first);
}
