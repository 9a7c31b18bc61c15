//! Secrets, marked so that they can be found, go down every path; then everything that was written is searched for them.
//!
//! Here are tokens; [`operator`] has what an operator keeps and what callers' headers hold, [`refused`] files that a reload
//! refuses, [`tiers`] a bridge and its core, [`panics`] the text of a panic.

use std::{fs, io::Write as _, process::Stdio};

use serde_json::json;

mod mark;
mod operator;
mod panics;
mod refused;
mod tiers;

use self::mark::{Mark, Traces};

use crate::harness::{
    collector::Collector,
    grpc::{
        Grant, Grpc,
        wire::{CancelTokenRequest, IntrospectTokenRequest, RecordTokenRequest},
    },
    json::{Api, Json},
    service::{Options, Service, Store, command},
    unique,
    vectors::{CLIENT_ID, pem},
};

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

    traces.service("", &service, &GIVEN, true);
    // once more when what the WAL had is in the database
    drop(grpc);
    assert!(service.terminate().success());
    traces.service("", &service, &GIVEN, false);
    traces.collector("", &collector);
    traces.assert_sees(
        &witness,
        &["state.db", "state.db-wal", "stderr.log", "spans", "exported lines"],
    );
    traces.assert_sees("alipayplus_cancel_commits_total", &["/metrics"]);
    let log = service.stderr();
    assert!(log.contains("cancel_token answered"), "{log}");

    // the file holds the hash key as text, so half of it is the raw key too
    traces.marks.push(Mark::of("the hash key", "5a".repeat(16).as_bytes()));
    traces.marks.push(Mark::of("the hash key", &[0x5a; 32]));
    for key in ["test_mpp", "test_alipayplus"] {
        traces.private_key(key, pem(key, "pkcs8_pem"));
    }
    traces.assert_clean();
}
