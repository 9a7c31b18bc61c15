//! Tokens, marked so that they can be found, go down every path; then everything that was written is searched for them.

use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    path::Path,
    process::{Output, Stdio},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use rand::RngCore as _;
use serde_json::json;

use crate::harness::{
    collector::Collector,
    grpc::{
        Grant, Grpc,
        wire::{CancelTokenRequest, IntrospectTokenRequest, RecordTokenRequest},
    },
    json::{Answer, Api, Json},
    service::{Options, Service, Store, admin, command},
    unique,
    vectors::{CLIENT_ID, pem},
};

/// A token with letters that nothing else has, and ends that encodings change.
#[derive(Clone)]
struct Marked {
    core: String,
    token: String,
}

/// Every token that was made, and everything that came back.
#[derive(Default)]
struct Traces {
    tokens: Vec<Marked>,
    /// What was answered, with the path it came down.
    answers: Vec<(String, String)>,
}

impl Traces {
    /// A token nobody else has, with a tail.
    fn token_with(&mut self, tail: &str) -> String {
        let mut random = [0u8; 12];
        rand::rng().fill_bytes(&mut random);
        let core = random.iter().fold("Tkn".to_owned(), |mut text, byte| {
            write!(text, "{byte:02X}").expect("a text");
            text
        });
        let token = format!("{core}{tail}");
        self.tokens.push(Marked { core, token: token.clone() });
        token
    }

    fn token(&mut self) -> String {
        self.token_with("+/=é")
    }

    fn json(&mut self, path: &str, answer: &Answer) {
        let text = format!("{:?} {}", answer.headers, String::from_utf8_lossy(&answer.body));
        self.answers.push((path.to_owned(), text));
    }

    fn grpc<T: std::fmt::Debug>(&mut self, path: &str, answer: &Result<T, tonic::Status>) {
        let text = match answer {
            Ok(response) => format!("{response:?}"),
            Err(status) => {
                let details = String::from_utf8_lossy(status.details()).into_owned();
                format!("{status:?} {} {details} {:?}", status.message(), status.metadata())
            }
        };
        self.answers.push((path.to_owned(), text));
    }

    fn output(&mut self, path: &str, output: &Output) {
        for text in [&output.stdout, &output.stderr] {
            self.answers.push((path.to_owned(), String::from_utf8_lossy(text).into_owned()));
        }
    }
}

impl Marked {
    /// What the token may look like: as it is, in Base64 of either alphabet at each of three offsets, in hex, as a list
    /// of bytes. Percent-encoding and JSON leave the core as it is.
    fn shapes(&self) -> Vec<String> {
        let mut shapes = vec![self.core.clone()];
        for offset in 0..3 {
            let shifted = format!("{}{}", "x".repeat(offset), self.core);
            let encoded = BASE64_STANDARD.encode(shifted);
            // the first and the last group depend on what stands around
            shapes.push(encoded[4..encoded.len() - 4].to_owned());
        }
        let hex = self.core.bytes().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
        shapes.push(hex.to_ascii_uppercase());
        shapes.push(hex);
        let list: Vec<String> = self.core.bytes().map(|byte| byte.to_string()).collect();
        shapes.push(list.join(", "));
        shapes.push(list.join(","));
        shapes
    }
}

/// Every file in a folder, the settings' own secrets apart.
fn files(dir: &Path) -> Vec<(String, String)> {
    let entries = fs::read_dir(dir).expect("a folder").map(|entry| entry.expect("an entry"));
    entries
        .map(|entry| (entry.file_name().into_string().expect("a plain name"), entry.path()))
        .filter(|(name, path)| path.is_file() && !GIVEN.contains(&name.as_str()))
        // what is not text is of no interest: all that is searched for is
        .map(|(name, path)| (name, fs::read(path).expect("a file")))
        .map(|(name, bytes)| (name, String::from_utf8_lossy(&bytes).into_owned()))
        .collect()
}

/// What the test itself put there.
const GIVEN: [&str; 8] = [
    "wallet.pem",
    "wallet.pub",
    "alipayplus.pem",
    "alipayplus.pub",
    "other.pub",
    "ended.pub",
    "token-hash.hex",
    "token.txt",
];

const PSP: &str = "102208800000001230";
const ACQUIRER: &str = "102218800000001234";

fn over_json(traces: &mut Traces, json: &Json, grpc: &Grpc) {
    let body = |token: &str| json!({"pspId": PSP, "acquirerId": ACQUIRER, "accessToken": token});
    let cancel = |body: String| json.request().api(Api::CancelToken).body(body);

    let token = traces.token();
    let recorded = grpc.record_token(Grant::new().token(&token));
    traces.grpc("RecordToken of a token for JSON", &recorded);
    assert!(recorded.is_ok());
    for (path, code) in [("cancelToken", "SUCCESS"), ("cancelToken again", "SUCCESS")] {
        traces.json(path, cancel(body(&token).to_string()).send().expect(code));
    }
    let token = traces.token();
    traces.json("unknown", cancel(body(&token).to_string()).send().expect("INVALID_TOKEN"));

    let long = traces.token_with(&"x".repeat(128));
    let control = traces.token_with("\u{1}");
    let white = traces.token_with(" ");
    for (path, token) in [("too long", long), ("control", control), ("white space", white)] {
        traces.json(path, cancel(body(&token).to_string()).send().expect("PARAM_ILLEGAL"));
    }
    let token = traces.token();
    for (path, text) in [
        ("no acquirer", json!({"pspId": PSP, "accessToken": token}).to_string()),
        (
            "wrong case",
            json!({"pspId": PSP, "acquirerId": ACQUIRER, "accesstoken": token}).to_string(),
        ),
        (
            "unknown field",
            json!({"pspId": PSP, "acquirerId": ACQUIRER, "token": token}).to_string(),
        ),
        (
            "a list",
            json!({"pspId": PSP, "acquirerId": ACQUIRER, "accessToken": [token]}).to_string(),
        ),
        ("an object", json!({"accessToken": {"a": token}}).to_string()),
        ("the body itself", json!(token).to_string()),
        ("a key", json!({(token.as_str()): 1}).to_string()),
        ("twice", format!(r#"{{"accessToken":"{token}","accessToken":"{token}"}}"#)),
        ("cut off", format!(r#"{{"accessToken":"{token}"#)),
        ("a bad escape", format!(r#"{{"accessToken":"{token}\q"}}"#)),
        ("no JSON", token.clone()),
    ] {
        let answer = cancel(text).send();
        assert_ne!(answer.result_status(), "S", "{path}");
        traces.json(path, &answer);
    }
    let token = traces.token();
    let request = cancel(body(&token).to_string());
    for (path, request, code) in [
        ("wrong signature", request.clone().signed_target("/elsewhere"), "INVALID_SIGNATURE"),
        ("no signature", request.clone().signatures(&[]), "INVALID_SIGNATURE"),
        ("unknown key", request.clone().key_version(Some("77")), "KEY_NOT_FOUND"),
        ("unknown client", request.clone().client_ids(&["NOBODY"]), "INVALID_CLIENT"),
    ] {
        traces.json(path, request.send().expect(code));
    }
    for (path, request) in [
        ("other media type", request.clone().content_types(&["text/plain"])),
        ("other method", request.clone().method("PUT")),
        ("other API", request.clone().target("/aps/api/v1/nothing")),
        ("cancelPayment", request.api(Api::CancelPayment)),
    ] {
        let answer = request.send();
        assert_ne!(answer.result_status(), "S", "{path}");
        traces.json(path, &answer);
    }
}

fn over_grpc(traces: &mut Traces, grpc: &Grpc) {
    let grant = Grant::new();
    let (first, second, third) = (traces.token(), traces.token(), traces.token());
    traces.grpc("RecordToken", &grpc.record_token(grant.token(&first)));
    let exchange = |token: &str, replaces: &str| RecordTokenRequest {
        replaces: Some(replaces.to_owned()),
        ..grant.token(token)
    };
    traces.grpc("exchange", &grpc.record_token(exchange(&second, &first)));
    traces.grpc("exchange, conflict", &grpc.record_token(exchange(&third, &first)));
    let unknown = traces.token();
    traces.grpc("exchange, unknown", &grpc.record_token(exchange(&third, &unknown)));
    let other = RecordTokenRequest { acquirer_id: "other".to_owned(), ..grant.token(&second) };
    traces.grpc("RecordToken, other acquirer", &grpc.record_token(other));
    for token in [&first, &second, &third] {
        traces.grpc("Introspect", &grpc.introspect_token(grant.introspect(token)));
    }
    let other = CancelTokenRequest { acquirer_id: "other".to_owned(), ..grant.cancel(&second) };
    traces.grpc("CancelToken, other acquirer", &grpc.cancel_token(other));
    traces.grpc("CancelToken", &grpc.cancel_token(grant.cancel(&first)));
    traces.grpc("CancelToken, sibling", &grpc.cancel_token(grant.cancel(&second)));
    traces.grpc("RecordToken, revoked", &grpc.record_token(grant.token(&third)));
    traces.grpc("CancelToken, unknown", &grpc.cancel_token(grant.cancel(&unknown)));
    traces.grpc("RecordToken, dead", &grpc.record_token(Grant::new().token(&unknown)));
    traces.grpc("Introspect, dead", &grpc.introspect_token(grant.introspect(&unknown)));

    let long = traces.token_with(&"x".repeat(128));
    let control = traces.token_with("\u{0}");
    let white = traces.token_with("\u{3000}");
    for token in [long, control, white] {
        let refused = grpc.cancel_token(grant.cancel(&token));
        assert!(refused.is_err());
        traces.grpc("CancelToken, illegal", &refused);
        traces.grpc("RecordToken, illegal", &grpc.record_token(grant.token(&token)));
        traces.grpc("replaces, illegal", &grpc.record_token(exchange("fine", &token)));
        traces.grpc("Introspect, illegal", &grpc.introspect_token(grant.introspect(&token)));
    }
    let token = traces.token();
    let nobody = CancelTokenRequest { psp_id: String::new(), ..grant.cancel(&token) };
    traces.grpc("CancelToken, no wallet", &grpc.cancel_token(nobody));
    let nobody = IntrospectTokenRequest { psp_id: String::new(), token: token.clone() };
    traces.grpc("Introspect, no wallet", &grpc.introspect_token(nobody));
    let mut late = tonic::Request::new(grant.cancel(&token));
    late.set_timeout(std::time::Duration::ZERO);
    traces.grpc("CancelToken, too late", &grpc.cancel_token(late));
}

/// The binary's own client: what it prints may be kept by a terminal or a pipeline.
fn over_call(traces: &mut Traces, service: &Service) {
    let url = format!("http://{}/aps/api", service.ports().bridge);
    let dir = service.dir();
    let call = |url: &str, more: &[&str], input: &str| {
        let mut call = command(&["call", "cancel-token", "--url", url, "--client-id", CLIENT_ID]);
        call.arg("--key").arg(dir.join("alipayplus.pem"));
        call.arg("--peer-key").arg(dir.join("wallet.pub"));
        call.args(["--psp-id", PSP, "--acquirer-id", ACQUIRER]).args(more);
        call.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        call.env("RUST_LOG", "trace");
        let mut child = call.spawn().expect("the binary starts");
        // it may have ended before it read
        drop(child.stdin.take().expect("a pipe").write_all(input.as_bytes()));
        child.wait_with_output().expect("it ends")
    };
    let token = traces.token();
    let output = call(&url, &[], &format!("{token}\n"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("INVALID_TOKEN") && text.contains("verified"), "{text}");
    traces.output("call", &output);
    traces.output("call --json", &call(&url, &["--json"], &token));
    let file = dir.join("token.txt");
    fs::write(&file, &token).expect("a file");
    let file = file.to_str().expect("a plain path");
    traces.output("call, from a file", &call(&url, &["--access-token-file", file], ""));
    let long = traces.token_with(&"x".repeat(128));
    traces.output("call, too long", &call(&url, &[], &long));
    traces.output("call, nobody there", &call("http://127.0.0.1:1/aps/api", &[], &token));
    traces.output("call, no such URL", &call("nothing", &[], &token));
    traces.output("call, wrong flag", &call(&url, &["--access-token", "x"], &token));
    fs::remove_file(file).expect("the file");
}

#[test]
fn no_token_or_key_is_ever_written_anywhere() {
    let collector = Collector::start();
    let endpoint = format!("telemetry.otlp_endpoint={}", collector.url());
    let trace = Options::set(["telemetry.log_level=trace", &endpoint]);
    let mut service = Service::start(Options { store: Store::Embedded, ..trace });
    let mut traces = Traces::default();
    let (json, grpc) = (service.json(), service.grpc());
    over_json(&mut traces, &json, &grpc);
    let denied = service.other_json().cancel_token(PSP, ACQUIRER, &traces.token());
    traces.json("a client of another wallet", denied.expect("ACCESS_DENIED"));
    over_grpc(&mut traces, &grpc);
    over_call(&mut traces, &service);
    // the search below finds what is there
    let witness = unique("witness");
    let answer = json.cancel_payment(PSP, ACQUIRER, &witness);
    traces.json("witness", answer.expect("SUCCESS"));

    let mut written = files(service.dir());
    let scrape = admin(service.ports().admin, "/metrics");
    written.push(("/metrics".to_owned(), String::from_utf8_lossy(&scrape.body).into_owned()));
    let names: Vec<&str> = written.iter().map(|(name, _)| name.as_str()).collect();
    for name in ["state.db", "state.db-wal", "stderr.log"] {
        assert!(names.contains(&name), "{name} is searched, too: {names:?}");
    }
    // once more when what the WAL had is in the database
    drop(grpc);
    assert!(service.terminate().success());
    written.extend(files(service.dir()));
    // raw bytes are told as lists of numbers, which is one of the shapes
    collector.look(|received| {
        assert!(!received.metrics.is_empty());
        written.push(("spans".to_owned(), format!("{:?}", received.spans)));
        written.push(("metrics".to_owned(), format!("{:?}", received.metrics)));
        written.push(("exported lines".to_owned(), format!("{:?}", received.logs)));
        written.push(("resources".to_owned(), format!("{:?}", received.resources)));
    });
    let all = |needle: &str| {
        let written = written.iter().filter(|(_, text)| text.contains(needle));
        let answered = traces.answers.iter().filter(|(_, text)| text.contains(needle));
        written
            .map(|(name, _)| name.clone())
            .chain(answered.map(|(path, text)| format!("answer to {path}: {text}")))
            .collect::<Vec<String>>()
    };
    let found = all(&witness);
    for name in ["state.db", "state.db-wal", "stderr.log", "spans", "exported lines"] {
        assert!(found.iter().any(|place| place == name), "the search is blind: {found:?}");
    }
    let log = service.stderr();
    assert!(log.contains("cancel_token answered"), "{log}");

    for marked in &traces.tokens {
        assert!(marked.token.starts_with(&marked.core));
        for shape in marked.shapes() {
            let found = all(&shape);
            assert!(found.is_empty(), "{shape} in {found:?}");
        }
    }
    let hash_key = "5a".repeat(32);
    for needle in [hash_key.clone(), BASE64_STANDARD.encode(&hash_key)[..40].to_owned()] {
        // the file holds the key as text, so half of it is the raw key too
        let found = all(&needle[..32]);
        assert!(found.is_empty(), "the hash key in {found:?}");
    }
    for key in ["test_mpp", "test_alipayplus"] {
        let pem = pem(key, "pkcs8_pem");
        for line in pem.lines().filter(|line| !line.starts_with('-') && line.len() > 32).skip(1) {
            let found = all(line);
            assert!(found.is_empty(), "a private key in {found:?}");
        }
    }
}

/// Whoever looks for a token finds it if it is there, in each shape that the test above looks for.
#[test]
fn the_search_for_tokens_sees_every_shape() {
    let mut traces = Traces::default();
    let token = traces.token();
    let marked = &traces.tokens[0];
    let found = |text: &str| marked.shapes().iter().any(|shape| text.contains(shape));
    assert!(found(&token));
    assert!(found(&format!("{:?}", token.as_bytes())));
    for around in ["", "a", "ab", "abc"] {
        assert!(found(&BASE64_STANDARD.encode(format!("{around}{token}{around}"))));
    }
    assert!(!found("Tkn"));
}
