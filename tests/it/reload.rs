//! Settings, keys and clients that change while the service runs; and changes that are refused.

use std::{fs, path::Path};

use alipayplus_cancel::bridge::keys::PrivateKey;

use crate::harness::{
    eventually,
    grpc::{Grant, Payment, wire::CancelTokenRequest},
    json::{Answer, Connection, Json, payment_body},
    pki::Authority,
    service::{OTHER_CLIENT, Options, Service},
    unique,
    vectors::{self, CLIENT_ID},
};

/// A service that looks at its files often.
fn attentive() -> Service {
    Service::start(Options::set(["reload.interval=20ms"]))
}

/// A service that reloads when it is told to, and only then.
fn told() -> Service {
    Service::start(Options::set(["reload.interval=0s"]))
}

pub fn read(service: &Service) -> String {
    fs::read_to_string(service.settings()).unwrap()
}

pub fn write(service: &Service, text: &str) {
    fs::write(service.settings(), text).unwrap();
}

/// The settings, one text of them replaced.
pub fn change(service: &Service, from: &str, to: &str) {
    let text = read(service);
    assert!(text.contains(from), "{from} is not in {text}");
    write(service, &text.replacen(from, to, 1));
}

/// The value of a metric.
pub fn metric(service: &Service, name: &str) -> u64 {
    let mut connection = Connection::to(service.ports().admin);
    connection.write(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n");
    let answer = connection.answer(true).expect("an answer");
    let text = String::from_utf8(answer.body).unwrap();
    let line = text.lines().find(|line| line.starts_with(&format!("{name} ")));
    let line = line.unwrap_or_else(|| panic!("no {name} in {text}"));
    line.rsplit_once(' ').unwrap().1.parse().unwrap()
}

pub fn applied(service: &Service) -> u64 {
    metric(service, "alipayplus_cancel_reloads_total{result=\"applied\"}")
}

pub fn refused(service: &Service) -> u64 {
    metric(service, "alipayplus_cancel_reloads_total{result=\"refused\"}")
}

pub fn is_stale(service: &Service) -> bool {
    metric(service, "alipayplus_cancel_settings_stale") == 1
}

/// Waits for the next reload to be counted, whatever comes of it.
#[track_caller]
pub fn after<T>(service: &Service, what: &str, act: impl FnOnce() -> T) -> (u64, u64) {
    let before = (applied(service), refused(service));
    act();
    eventually(what, || {
        let now = (applied(service), refused(service));
        (now != before).then_some((now.0 - before.0, now.1 - before.1))
    })
}

#[track_caller]
pub fn reload(service: &Service) {
    let outcome = after(service, "the reload", || service.signal("HUP"));
    assert_eq!(outcome, (1, 0), "{}", service.stderr());
    assert!(!is_stale(service));
}

/// Tells it to reload, and why it does not.
#[track_caller]
pub fn reload_refused(service: &Service) -> String {
    let from = service.stderr().len();
    let outcome = after(service, "the refusal", || service.signal("HUP"));
    assert_eq!(outcome, (0, 1), "{}", service.stderr());
    assert!(is_stale(service));
    let log = service.stderr();
    let lines = log[from..].lines().map(serde_json::from_str::<serde_json::Value>);
    let error = lines.flatten().find(|line| line["level"] == "ERROR").expect("an error is logged");
    assert_eq!(error["message"], "the new settings are refused; the old ones keep serving");
    error["reason"].as_str().expect("a reason").to_owned()
}

fn cancel(json: &Json) -> Answer {
    let payment = Payment::new();
    json.cancel_payment(&payment.psp, &payment.acquirer, &payment.request)
}

#[track_caller]
fn assert_serves(service: &Service) {
    cancel(&service.json()).expect("SUCCESS").assert_signed();
}

fn new_client(dir: &Path) -> (Json, String, PrivateKey) {
    let key = PrivateKey::generate(2048).unwrap();
    fs::write(dir.join("third.pub"), key.public().spki_pem()).unwrap();
    let toml = "[[clients]]\nid = \"THIRD\"\npsp_ids = [\"*\"]\n[[clients.keys]]\nversion = \"1\"\n\
                public_key_file = \"third.pub\"\n";
    let nowhere = ([127, 0, 0, 1], 0).into();
    (Json::new(nowhere, "THIRD", "1", &key), toml.to_owned(), key)
}

#[test]
fn a_client_comes_and_goes_with_the_file_or_with_a_signal_and_no_connection_ends() {
    for (service, by_signal) in [(attentive(), false), (told(), true)] {
        let (mut third, toml, _) = new_client(service.dir());
        third.address = service.ports().bridge;
        cancel(&third).expect("INVALID_CLIENT");
        let mut open = service.json().connect();
        let old = read(&service);
        let payment = Payment::new();
        let body = payment_body(&payment.psp, &payment.acquirer, &payment.request);
        let request = service.json().request().body(body);
        request.send_on(&mut open).expect("SUCCESS");
        let put = |text: &str| {
            let outcome = after(&service, "the change", || {
                write(&service, text);
                if by_signal {
                    service.signal("HUP");
                }
            });
            assert_eq!(outcome, (1, 0), "{}", service.stderr());
        };

        put(&format!("{old}{toml}"));
        cancel(&third).expect("SUCCESS").assert_signed();
        assert_serves(&service);
        request.send_on(&mut open).expect("SUCCESS");

        put(&old);
        cancel(&third).expect("INVALID_CLIENT").assert_unsigned();
        assert_serves(&service);
        request.send_on(&mut open).expect("SUCCESS");
        assert_eq!((refused(&service), is_stale(&service)), (0, false));
    }
}

#[test]
fn whatever_is_wrong_is_refused_with_the_reason_and_the_old_settings_serve_until_it_is_mended() {
    let service = told();
    Authority::new("tls").issue(&["127.0.0.1"]).write(service.dir(), "tls");
    let text = read(&service);
    let file = |name: &str| fs::read(service.dir().join(name)).unwrap();
    let replaced = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        text.replacen(from, to, 1)
    };
    let shown = service.settings().display().to_string();
    for (what, settings, reason) in [
        ("no TOML", format!("{text}\n[[clients"), "this is not TOML".to_owned()),
        ("half of it", text[..text.len() / 2].to_owned(), shown.clone()),
        ("empty", String::new(), "identity.keys".to_owned()),
        ("an unknown setting", format!("{text}\n[limit]\n"), "limits".to_owned()),
        (
            "a file that is not there",
            replaced("\"alipayplus.pub\"", "\"absent.pub\""),
            format!("{shown}:19: clients.0.keys.0.public_key_file: cannot read "),
        ),
        (
            "a key of ours where theirs belongs",
            replaced("\"alipayplus.pub\"", "\"wallet.pem\""),
            "clients.0.keys.0.public_key_file".to_owned(),
        ),
        (
            "one key for two clients",
            replaced("\"other.pub\"", "\"alipayplus.pub\""),
            "either could then speak for the other".to_owned(),
        ),
        (
            "no active key",
            replaced("file = \"wallet.pem\"", "file = \"wallet.pem\"\nstate = \"retired\""),
            "none is active".to_owned(),
        ),
        (
            "another address",
            replaced("admin.listen = \"127.0.0.1:0\"", "admin.listen = \"127.0.0.2:0\""),
            format!("only a restart can change admin.listen ({shown}:4)"),
        ),
        (
            "another store",
            replaced("state.db\"", "other.db\""),
            "only a restart can change store.url".to_owned(),
        ),
        (
            "one more hash key",
            replaced("[\"token-hash.hex\"]", "[\"token-hash.hex\", \"other.pub\"]"),
            "only a restart can change tokens.hash_key_files".to_owned(),
        ),
        (
            "TLS",
            format!("{text}\n[bridge.tls]\ncert_file = \"tls.pem\"\nkey_file = \"tls.key\"\n"),
            "only a restart can change bridge.tls".to_owned(),
        ),
    ] {
        write(&service, &settings);
        let told = reload_refused(&service);
        assert!(told.contains(&reason), "{what}: {told}");
        assert_serves(&service);
        write(&service, &text);
        reload(&service);
        assert_serves(&service);
    }

    // PKCS#1 in DER, of 1024 bits
    let mut small = vec![0x30, 0x81, 0x89, 0x02, 0x81, 0x81, 0x00];
    small.extend([0xc3; 128]);
    small.extend([0x02, 0x03, 0x01, 0x00, 0x01]);
    for (name, content, reason) in [
        ("alipayplus.pub", small, "has 1024 bits"),
        ("alipayplus.pub", Vec::new(), "clients.0.keys.0.public_key_file"),
        ("wallet.pem", file("other.pub"), "identity.keys.0.file"),
        ("other.pub", file("alipayplus.pub"), "have the same public key"),
        // every token would look unknown
        ("token-hash.hex", "6b".repeat(32).into_bytes(), "tokens.hash_key_files"),
    ] {
        let right = file(name);
        fs::write(service.dir().join(name), content).unwrap();
        let told = reload_refused(&service);
        assert!(told.contains(reason), "{name}: {told}");
        assert_serves(&service);
        fs::write(service.dir().join(name), right).unwrap();
        reload(&service);
    }
}

#[test]
fn a_broken_file_heals_by_itself_once_it_is_mended() {
    let service = attentive();
    let (text, started) = (read(&service), last_success(&service));
    let outcome = after(&service, "it is refused", || write(&service, "= = =\n"));
    assert_eq!((outcome, is_stale(&service)), ((0, 1), true));
    assert_serves(&service);
    let (mut third, toml, _) = new_client(service.dir());
    third.address = service.ports().bridge;
    let outcome = after(&service, "it is mended", || write(&service, &format!("{text}{toml}")));
    assert_eq!((outcome, is_stale(&service)), ((1, 0), false));
    cancel(&third).expect("SUCCESS");
    assert!(last_success(&service) >= started);

    // the file that a key stands in counts as the settings do
    let key = service.dir().join("third.pub");
    let outcome = after(&service, "the key is gone", || fs::remove_file(&key).unwrap());
    assert_eq!(outcome, (0, 1));
    cancel(&third).expect("SUCCESS");
    let other = PrivateKey::generate(2048).unwrap();
    let outcome =
        after(&service, "another key", || fs::write(&key, other.public().spki_pem()).unwrap());
    assert_eq!(outcome, (1, 0), "{}", service.stderr());
    cancel(&third).expect("INVALID_SIGNATURE");
    third.key = other;
    cancel(&third).expect("SUCCESS");
}

fn last_success(service: &Service) -> u64 {
    metric(service, "alipayplus_cancel_reload_last_success_timestamp_seconds")
}

#[test]
fn a_folder_that_is_swapped_as_kubernetes_does_is_noticed() {
    let service = attentive();
    let dir = service.dir();
    let put = |version: &str, key: &PrivateKey| {
        fs::create_dir(dir.join(version)).unwrap();
        fs::write(dir.join(version).join("key.pub"), key.public().spki_pem()).unwrap();
        std::os::unix::fs::symlink(version, dir.join("next")).unwrap();
        fs::rename(dir.join("next"), dir.join("..data")).unwrap();
    };
    put("..1", vectors::alipayplus());
    std::os::unix::fs::symlink("..data/key.pub", dir.join("mounted.pub")).unwrap();
    // the same key from elsewhere
    after(&service, "the file has another name", || {
        change(&service, "\"alipayplus.pub\"", "\"mounted.pub\"");
    });
    assert_serves(&service);
    let new = PrivateKey::generate(2048).unwrap();
    assert_eq!(after(&service, "the folder is another", || put("..2", &new)), (1, 0));
    cancel(&service.json()).expect("INVALID_SIGNATURE");
    let mut json = service.json();
    json.key = new;
    cancel(&json).expect("SUCCESS").assert_signed();
}

#[test]
fn what_a_client_took_of_its_rate_stays_taken_unless_the_rate_changes() {
    let toml = "[limits]\nbody_bytes = 4096\n";
    let service = Service::start(Options {
        toml: toml.to_owned(),
        set: vec!["reload.interval=0s".to_owned()],
        ..Options::default()
    });
    change(&service, "per_second = 100000, burst = 100000", "per_second = 1, burst = 9");
    reload(&service);
    let json = service.json();
    let use_up = || {
        let answers = (0..9).map(|_| cancel(&json).code());
        answers.filter(|code| code == "SUCCESS").count()
    };
    assert_eq!(use_up(), 9);
    change(&service, "body_bytes = 4096", "body_bytes = 2048");
    reload(&service);
    // one a second comes back
    assert!(use_up() < 9, "the rate is the same, and so is what was taken of it");
    change(&service, "burst = 9", "burst = 10");
    reload(&service);
    assert_eq!(use_up(), 9, "another rate begins anew");
    change(&service, "per_second = 1, burst = 10", "per_second = 1000, burst = 1000");
    reload(&service);

    // the limit that was changed meanwhile counts
    let long = |length: usize| {
        let body = payment_body("1022172000000000001", "1022188000000000001", &unique("pay"));
        let filled = format!("{}{}", " ".repeat(length - body.len()), body);
        json.request().body(filled).send()
    };
    long(2048).expect("SUCCESS");
    long(2049).expect("PARAM_ILLEGAL");
}

#[test]
fn whom_a_client_may_act_for_and_its_quota_of_tombstones_change() {
    let service = told();
    let other = service.other_json();
    cancel(&other).expect("ACCESS_DENIED");
    change(&service, "acquirer_ids = [\"ONLY-THIS-ACQUIRER\"]", "acquirer_ids = [\"*\"]");
    reload(&service);
    cancel(&other).expect("SUCCESS");
    let quota = "acquirer_ids = [\"*\"]\ntombstones = { per_second = 1, burst = 1 }";
    change(&service, "acquirer_ids = [\"*\"]", quota);
    reload(&service);
    let turned_away = || (0..10).any(|_| cancel(&other).code() == "REQUEST_TRAFFIC_EXCEED_LIMIT");
    assert!(turned_away());
    reload(&service);
    assert!(turned_away());
    // others have none
    assert_serves(&service);
    assert!(read(&service).contains(OTHER_CLIENT) && CLIENT_ID != OTHER_CLIENT);
    let grant = Grant::new();
    service.grpc().record_token(grant.token(&unique("token"))).expect("gRPC goes on");
}

#[test]
fn how_much_the_grpc_front_receives_at_once_changes() {
    let toml = "[limits]\nbody_bytes = 1024\n";
    let service = Service::start(Options {
        toml: toml.to_owned(),
        set: vec!["reload.interval=0s".to_owned()],
        ..Options::default()
    });
    let grpc = service.grpc();
    let info = Some("x".repeat(10_000));
    let long = || CancelTokenRequest {
        pass_through_info: info.clone(),
        ..Grant::new().cancel(&unique("token"))
    };
    grpc.cancel_token(long()).expect("there is room");
    let room = "body_bytes = 1024\nbody_bytes_in_flight_per_source = 1024";
    change(&service, "body_bytes = 1024", room);
    reload(&service);
    grpc.cancel_token(long()).expect_err("10,000 bytes are too many now");
    change(&service, room, "body_bytes = 1024");
    reload(&service);
    grpc.cancel_token(long()).expect("there is room again");
}
