//! Files that a reload, a start or a check refuses: why they are refused is told, what they hold is not.

use std::{
    fs,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};

use super::mark::{Mark, Traces, random};
use crate::{
    harness::{
        collector::Collector,
        service::{Options, Service, Store, command},
    },
    reload::{read, reload_refused, write},
};

/// What a refusal is told by: the running service, and commands that read the same files.
fn refused(traces: &mut Traces, service: &Service, what: &str) {
    let reason = reload_refused(service);
    assert!(!reason.is_empty());
    traces.text(&format!("reload: {what}"), &reason);
    for arguments in [&["config", "check"][..], &["config", "print"], &["serve"]] {
        let mut tool = command(arguments);
        tool.arg("--config").arg(service.settings()).env("RUST_LOG", "trace");
        let mut child = tool
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        // one that only cannot reach its database goes on trying
        let until = Instant::now() + Duration::from_secs(2);
        while Instant::now() < until && child.try_wait().expect("a child").is_none() {
            thread::sleep(Duration::from_millis(10));
        }
        drop(child.kill());
        let output = child.wait_with_output().expect("it ends");
        traces.output(&format!("{}: {what}", arguments.join(" ")), &output);
    }
}

fn line(text: &str, name: &str) -> String {
    text.lines().find(|line| line.starts_with(name)).expect("a setting").to_owned()
}

#[test]
fn no_refusal_of_a_reload_repeats_what_a_file_holds() {
    let mut traces = Traces::default();
    let collector = Collector::start();
    let set = vec![
        "reload.interval=0s".to_owned(),
        "telemetry.log_level=trace".to_owned(),
        format!("telemetry.otlp_endpoint={}", collector.url()),
    ];
    let mut service = Service::start(Options { store: Store::Embedded, set, ..Options::default() });
    let good = read(&service);
    let (store, hash, key) =
        (line(&good, "store.url"), line(&good, "tokens.hash"), line(&good, "file ="));
    let url = |traces: &mut Traces, text: &str| {
        let password = traces.secret(&format!("the password of {text}"));
        text.replace('*', &password)
    };
    let settings: Vec<(&String, String)> = vec![
        (&store, url(&mut traces, "store.url = \"postgres://wallet:*@127.0.0.1:1/db")),
        (&store, url(&mut traces, "store.url = postgres://wallet:*@127.0.0.1:1/db")),
        (&store, url(&mut traces, "store.url = \"postgres://wallet:*\\q@127.0.0.1:1/db\"")),
        (&store, url(&mut traces, "store.url = [\"postgres://wallet:*@127.0.0.1:1/db\"]")),
        (&store, url(&mut traces, "store.url = { of = \"postgres://wallet:*@127.0.0.1:1/db\" }")),
        (&store, url(&mut traces, "store.url = \"mysql://wallet:*@127.0.0.1:1/db\"")),
        (&store, url(&mut traces, "store.url = \"wallet:*@127.0.0.1:1/db\"")),
        (&store, url(&mut traces, "store.url = \"host=127.0.0.1 user=wallet password=*\"")),
        (&store, url(&mut traces, "store.url = \"postgres://wallet:*@127.0.0.1:port/db\"")),
        (
            &store,
            url(&mut traces, "store.url = \"postgres://wallet:*@127.0.0.1:1/db?sslmode=allow\""),
        ),
        (&store, url(&mut traces, "store.url = \"postgres://wallet:a@*@127.0.0.1:1/db\"")),
        (&store, url(&mut traces, "store.url = \"postgres://wallet:a/*@127.0.0.1:1/db\"")),
        (
            &store,
            url(&mut traces, "store.url = \"postgres://wallet@127.0.0.1:1/db?password=*&x=1\""),
        ),
        (&store, url(&mut traces, "store.url = \"sqlite:///a\"\nstore.password = \"*\"")),
        (&hash, url(&mut traces, "tokens.hash_key_files = [[\"*\"]]")),
        (&hash, url(&mut traces, "tokens.hash_keys = [\"*\"]")),
        (&key, url(&mut traces, "file = [\"*\"]")),
        (&key, url(&mut traces, "private_key = \"*\"")),
        (
            &key,
            url(
                &mut traces,
                "file = \"\"\"-----BEGIN PRIVATE KEY-----\n*\n-----END PRIVATE KEY-----\"\"\"",
            ),
        ),
        (
            &key,
            url(
                &mut traces,
                "pkcs11 = { module = \"/nowhere\", token_label = \"a\", key_label = \"b\", pin = \"*\" }",
            ),
        ),
    ];
    for (from, to) in &settings {
        write(&service, &good.replacen(*from, to, 1));
        refused(&mut traces, &service, to.split("Tkn").next().expect("a text"));
    }
    write(&service, &good);

    let der = random::<600>();
    traces.marks.push(Mark::of("what is no DER", &der[100..130]));
    let base64 = BASE64_STANDARD.encode(der);
    let pem = |label: &str, text: &str| {
        format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
    };
    let other: String = random::<32>().iter().map(|byte| format!("{byte:02x}")).collect();
    traces.marks.push(Mark::of("another hash key", other.as_bytes()));
    let plain = |traces: &mut Traces, what: &str| traces.secret(&format!("what {what} holds"));
    let files: Vec<(&str, String)> = vec![
        ("wallet.pem", plain(&mut traces, "no key")),
        ("wallet.pem", base64.clone()),
        ("wallet.pem", pem("PRIVATE KEY", &base64)),
        ("wallet.pem", pem("RSA PRIVATE KEY", &base64)),
        ("wallet.pem", pem("PRIVATE KEY", &plain(&mut traces, "broken PEM"))),
        ("wallet.pem", pem(&plain(&mut traces, "a label"), &base64)),
        ("wallet.pem", format!("-----BEGIN PRIVATE KEY-----\n{}", plain(&mut traces, "half"))),
        ("token-hash.hex", plain(&mut traces, "a short hash key")),
        ("token-hash.hex", plain(&mut traces, "a hash key that is no hex").repeat(3)),
        ("token-hash.hex", other),
        ("alipayplus.pub", plain(&mut traces, "a key of Alipay+'s")),
    ];
    for (name, text) in &files {
        let file = service.dir().join(name);
        let old = fs::read(&file).expect("a file");
        fs::write(&file, text).expect("a writable folder");
        refused(&mut traces, &service, name);
        fs::write(&file, old).expect("a writable folder");
    }

    traces.service("", &service, &super::operator::GIVEN, true);
    assert!(service.terminate().success());
    traces.service("", &service, &super::operator::GIVEN, false);
    traces.collector("", &collector);
    traces.assert_sees("the new settings are refused", &["stderr.log", "exported lines"]);
    traces.assert_sees(
        "store.url",
        &[
            "stderr.log",
            "exported lines",
            "output of config check: store.url = [\"postgres://wallet:",
        ],
    );
    traces.assert_sees(
        "wallet.pem",
        &["stderr.log", "reload: wallet.pem", "output of serve: wallet.pem"],
    );
    traces.assert_clean();
}
