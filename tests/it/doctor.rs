//! `doctor signature` names the cause of prepared captures, through the binary. tests/captures has them, as fixed files:
//! messages signed with throwaway keys of which only the public halves were kept.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use alipayplus_cancel::bridge::{keys::PrivateKey, signature};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{
    service::{Service, command, run},
    vectors,
};

const PATH: &str = "/aps/api/v1/payments/cancelPayment";
const CLIENT: &str = "ALIPAYPLUS_1";
const TIME: &str = "2026-11-23T08:00:00+08:00";
const BODY: &str = r#"{"acquirerId":"1022188000000000001","pspId":"1022172000000000001","paymentRequestId":"2026112310110070010011","accessToken":"SECRET-TOKEN"}"#;

/// The capture, the code of its cause, and what the verdict says.
const CAPTURES: [(&str, &str, &str); 8] = [
    (
        "swapped-key",
        "swapped-key",
        "signed with the key of client OTHER_2, while Client-Id says ALIPAYPLUS_1",
    ),
    ("rewritten-body", "body-rewritten", "signed indented by 2"),
    ("encoded-twice", "signature-encoding", "percent-encoded twice"),
    ("stripped-prefix", "path", "`/v1/payments/cancelPayment`"),
    ("unknown-version", "unknown-version", "keyVersion 2024-old is not known here"),
    ("time-respelt", "time", "`1795392000417`"),
    ("sha1", "hash", "made with SHA-1, and SHA-256 is due"),
    ("other-content", "content", "the key is right, the content differs"),
];

fn captures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/captures")
}

fn capture(name: &str) -> String {
    captures().join(format!("{name}.http")).to_str().unwrap().to_owned()
}

fn key(name: &str) -> String {
    captures().join(format!("{name}.pem")).to_str().unwrap().to_owned()
}

/// Settings with the two clients of the captures, and the wallet's key.
fn settings() -> (TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    write("wallet.pem", vectors::pem("test_mpp", "pkcs8_pem"));
    let client = |id: &str, key: &str, version: &str| {
        format!(
            "[[clients]]\nid = \"{id}\"\npsp_ids = [\"*\"]\n[[clients.keys]]\nversion = \"{version}\"\n\
             public_key_file = \"{key}\"\n"
        )
    };
    write(
        "settings.toml",
        &[
            "tokens.hash_key_files = [\"h\"]\n".to_owned(),
            "bridge.path_prefixes = [\"/aps/api\", \"/wallet\"]\n".to_owned(),
            "[[identity.keys]]\nversion = \"w1\"\nfile = \"wallet.pem\"\n".to_owned(),
            client(CLIENT, &key("alipayplus"), "1"),
            client("OTHER_2", &key("other"), "1"),
        ]
        .concat(),
    );
    let file = dir.path().join("settings.toml").to_str().unwrap().to_owned();
    (dir, file)
}

fn doctor(arguments: &[&str]) -> Output {
    run(&[&["doctor", "signature"], arguments].concat())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn each_prepared_capture_has_its_cause_named() {
    let (_dir, settings) = settings();
    for (name, code, part) in CAPTURES {
        let file = capture(name);
        let told = doctor(&["--request", &file, "--config", &settings]);
        let out = text(&told.stdout);
        assert_eq!(told.status.code(), Some(1), "{name}: {out}{}", text(&told.stderr));
        assert!(out.starts_with("does not verify: "), "{name}: {out}");
        assert!(out.lines().next().unwrap().contains(part), "{name}: {out}");
        assert!(out.contains("  the signer"), "{name}: {out}");
        assert!(!out.contains("SECRET") && !out.contains("accessToken"), "{name}: {out}");

        let json = doctor(&["--request", &file, "--config", &settings, "--json"]);
        let json: Value = serde_json::from_slice(&json.stdout).unwrap();
        let codes: Vec<_> = json["causes"].as_array().unwrap().iter().map(|c| &c["code"]).collect();
        assert_eq!(codes, [code], "{name}: {json:#}");
        assert_eq!(json["verifies"], false);
    }
}

#[test]
fn a_capture_that_verifies_is_exit_status_0_from_a_file_standard_input_and_parts() {
    let good = capture("good");
    let key = key("alipayplus");
    let told = doctor(&["--request", &good, "--key", &key]);
    assert!(told.status.success(), "{}", text(&told.stdout));
    assert!(text(&told.stdout).starts_with("verifies with the given key"));

    let mut piped = command(&["doctor", "signature", "--request", "-", "--key", &key]);
    piped.stdin(fs::File::open(&good).unwrap());
    assert!(piped.output().unwrap().status.success());

    let message = fs::read_to_string(&good).unwrap();
    let (head, body) = message.split_once("\r\n\r\n").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("body");
    fs::write(&file, body).unwrap();
    let mut arguments = vec!["--path", PATH, "--key", &key, "--body-file", file.to_str().unwrap()];
    for line in head.lines().skip(1) {
        arguments.extend(["--header", line]);
    }
    let told = doctor(&arguments);
    assert!(told.status.success(), "{}{}", text(&told.stdout), text(&told.stderr));
}

#[test]
fn a_version_that_the_key_is_not_registered_under_is_named_without_settings() {
    let told =
        doctor(&["--request", &capture("good"), "--key", &key("alipayplus"), "--version", "9"]);
    assert_eq!(told.status.code(), Some(1));
    assert!(
        text(&told.stdout).contains("keyVersion 1 is not known here"),
        "{}",
        text(&told.stdout)
    );
}

#[test]
fn our_own_answers_verify_with_the_path_that_was_asked() {
    let service = Service::shared();
    let answer = service.json().cancel_payment("1022172000000000001", "A", "doctor-answer");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("answer.http");
    let head = answer.headers.iter().fold(answer.status_line.clone(), |head, (name, value)| {
        format!("{head}\r\n{name}: {value}")
    });
    fs::write(&file, [head.as_bytes(), b"\r\n\r\n", &answer.body].concat()).unwrap();
    let file = file.to_str().unwrap();
    let settings = service.settings();
    let told = |path: &str| {
        let config = settings.to_str().unwrap();
        doctor(&["--response", "--request", file, "--path", path, "--config", config])
    };
    let good = told(&answer.target);
    assert!(good.status.success(), "{}{}", text(&good.stdout), text(&good.stderr));
    assert!(text(&good.stdout).contains("our own key, version 1"));
    let prefixed = told(&format!("/proxy{}", answer.target));
    assert_eq!(prefixed.status.code(), Some(1));
    assert!(text(&prefixed.stdout).contains("another path was signed"));
}

#[test]
fn wrong_usage_is_exit_status_2_and_says_what_is_due() {
    let (good, key) = (capture("good"), key("alipayplus"));
    let missing = "/nowhere/x.http";
    for (arguments, part) in [
        (&["--request", &good][..], "--key"),
        (&["--key", &key], "--request"),
        (&["--request", missing, "--key", &key], "cannot be read"),
        (&["--request", &key, "--key", &key], "does not begin with a line such as"),
        (&["--request", &good, "--key", &good], "is not valid base64"),
        (&["--request", &good, "--key", &key, "--response", "--path", "/x"], "this is a request"),
        (&["--header", "a: b", "--key", &key], "--path is due"),
    ] {
        let told = doctor(arguments);
        assert_eq!(told.status.code(), Some(2), "{arguments:?}");
        assert!(text(&told.stderr).contains(part), "{arguments:?}: {}", text(&told.stderr));
    }
    let help = text(&run(&["doctor", "signature", "--help"]).stdout);
    assert!(help.contains("Examples:") && help.contains("Exit status: 0 if it verifies"), "{help}");
}

/// Makes every file of tests/captures anew: `cargo test --test it make_the_captures -- --ignored`.
#[test]
#[ignore = "the captures are fixed; this says how they were made"]
fn make_the_captures() {
    let [alipayplus, other] = [(); 2].map(|()| PrivateKey::generate(2048).unwrap());
    for (name, pair) in [("alipayplus", &alipayplus), ("other", &other)] {
        fs::write(key(name), pair.public().spki_pem()).unwrap();
    }
    let string = |path: &str, time: &str, body: &str| {
        signature::signed_string("POST", path, CLIENT, time, body.as_bytes())
    };
    let due = string(PATH, TIME, BODY);
    let write = |name: &str, header: &str| {
        let length = BODY.len();
        let message = format!(
            "POST {PATH} HTTP/1.1\r\nHost: wallet.example\r\nContent-Type: application/json; charset=UTF-8\r\n\
             Client-Id: {CLIENT}\r\nRequest-Time: {TIME}\r\nSignature: {header}\r\nContent-Length: {length}\r\n\r\n{BODY}"
        );
        fs::write(capture(name), message).unwrap();
    };
    let sign =
        |pair: &PrivateKey, string: &[u8]| signature::header("1", &pair.sign(string).unwrap());
    let good = sign(&alipayplus, &due);
    write("good", &good);
    write("swapped-key", &sign(&other, &due));
    let pretty = BODY
        .replace('{', "{\n  ")
        .replace(",\"", ",\n  \"")
        .replace("\":", "\": ")
        .replace('}', "\n}");
    write("rewritten-body", &sign(&alipayplus, &string(PATH, TIME, &pretty)));
    write("encoded-twice", &good.replace('%', "%25"));
    write("stripped-prefix", &sign(&alipayplus, &string("/v1/payments/cancelPayment", TIME, BODY)));
    write("unknown-version", &good.replace("keyVersion=1", "keyVersion=2024-old"));
    write("time-respelt", &sign(&alipayplus, &string(PATH, "1795392000417", BODY)));
    write(
        "other-content",
        &sign(&alipayplus, &string(PATH, TIME, &BODY.replace("2026112310", "2026112399"))),
    );
    let dir = tempfile::tempdir().unwrap();
    let [private, signed] = ["private.pem", "signed"].map(|name| dir.path().join(name));
    fs::write(&private, alipayplus.pkcs8_pem().unwrap().as_bytes()).unwrap();
    fs::write(&signed, &due).unwrap();
    let sha1 = Command::new("openssl")
        .args(["dgst", "-sha1", "-sign"])
        .args([&private, &signed])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(BASE64_STANDARD.encode(&sha1.stdout).len() == 344);
    write("sha1", &signature::header("1", &sha1.stdout));
}
