//! `certify` against our own service, which passes everything, and against wallets with one fault each: exactly the checks
//! that the table of faults names turn red.

pub mod faults;
pub mod proxy;

use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    path::Path,
    process::{Output, Stdio},
    sync::{Arc, Mutex, OnceLock},
    thread,
};

use alipayplus_cancel::bridge::keys::PrivateKey;
use serde_json::Value;
use tempfile::TempDir;

use self::proxy::Proxy;
use crate::harness::{
    eventually,
    pki::Authority,
    service::{OTHER_ACQUIRER, OTHER_CLIENT, OTHER_PSP, Options, Service, command, run},
    vectors::{self, CLIENT_ID},
};

const PSP: &str = "1022172000000000001";
const ACQUIRER: &str = "1022188000000000001";

fn folder() -> TempDir {
    tempfile::Builder::new().prefix("apc-it-").tempdir().expect("a folder")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

#[track_caller]
fn ended_with(output: &Output, status: i32) {
    assert_eq!(output.status.code(), Some(status), "{}{}", out(output), err(output));
    assert!(!err(output).contains("panicked"), "{}", err(output));
}

/// The key that Alipay+ changes to next.
pub fn next_key() -> &'static PrivateKey {
    static KEY: OnceLock<PrivateKey> = OnceLock::new();
    KEY.get_or_init(|| PrivateKey::generate(2048).expect("a key"))
}

/// A service that knows the next key as well.
fn start() -> Service {
    let dir = folder();
    fs::write(dir.path().join("next.pub"), next_key().public().spki_pem()).expect("a file");
    fs::write(dir.path().join("next.pem"), next_key().pkcs8_pem().expect("a key").as_bytes())
        .expect("a file");
    fs::write(
        dir.path().join("other.pem"),
        vectors::other().pkcs8_pem().expect("a key").as_bytes(),
    )
    .expect("a file");
    let file = dir.path().join("next.pub").display().to_string();
    let next = [
        "clients.0.keys.2.version=2".to_owned(),
        format!("clients.0.keys.2.public_key_file={file}"),
    ];
    Service::start_in(dir, Options { set: next.into(), ..Options::default() })
}

/// The service that the faults stand before.
pub fn shared() -> &'static Service {
    static SHARED: OnceLock<Service> = OnceLock::new();
    SHARED.get_or_init(start)
}

/// Flags of a run against an address, which may be a proxy's before the service.
pub fn flags(service: &Service, port: u16) -> Vec<String> {
    let file = |name: &str| service.dir().join(name).display().to_string();
    let mut flags: Vec<String> = [
        ("--url", format!("http://127.0.0.1:{port}/aps/api")),
        ("--client-id", CLIENT_ID.to_owned()),
        ("--key", file("alipayplus.pem")),
        ("--next-key", file("next.pem")),
        ("--peer-key", file("wallet.pub")),
        ("--psp-id", PSP.to_owned()),
        ("--acquirer-id", ACQUIRER.to_owned()),
    ]
    .into_iter()
    .flat_map(|(flag, value)| [flag.to_owned(), value])
    .collect();
    // a pair's core wants certificates
    for argument in service.grpc_arguments() {
        flags.push(match argument.strip_prefix("--") {
            Some("url") => "--wallet-grpc".to_owned(),
            Some(name) => format!("--wallet-{name}"),
            None => argument,
        });
    }
    flags
}

fn certify(flags: &[String], more: &[&str]) -> Output {
    let mut arguments = vec!["certify"];
    arguments.extend(flags.iter().map(String::as_str));
    arguments.extend(more);
    run(&arguments)
}

/// The report that a run has written.
fn read(file: &Path) -> Value {
    serde_json::from_slice(&fs::read(file).expect("a report")).expect("JSON")
}

fn with_outcome(report: &Value, outcome: &str) -> BTreeSet<String> {
    let checks = report["checks"].as_array().expect("checks");
    let of = checks.iter().filter(|check| check["outcome"] == outcome);
    of.map(|check| check["id"].as_str().expect("an id").to_owned()).collect()
}

fn set(ids: &[&str]) -> BTreeSet<String> {
    ids.iter().map(|&id| id.to_owned()).collect()
}

#[test]
fn our_own_service_passes_every_check_and_the_reports_say_so() {
    let (service, dir) = (shared(), folder());
    let file = |name: &str| dir.path().join(name);
    let (json, junit, html) = (file("r.json"), file("r.xml"), file("r.html"));
    let reports = ["--json", text(&json), "--junit", text(&junit), "--html", text(&html)];
    let output = certify(&flags(service, service.ports().bridge.port()), &reports);
    let report = read(&json);
    assert_eq!(with_outcome(&report, "failed"), set(&[]), "{}", out(&output));
    ended_with(&output, 0);
    // between 00:25 and 00:40 UTC+8 the edge cannot be told
    let mut skipped = with_outcome(&report, "skipped");
    skipped.retain(|id| !id.starts_with("window.yesterday-"));
    let foreign = ["order.access-psp", "order.access-acquirer", "order.access-after-parameters"];
    assert_eq!(skipped, set(&foreign));
    let passed = with_outcome(&report, "passed").len();
    assert!(passed > 220, "{passed}");
    assert_eq!(report["passed"], passed);
    assert!(report["requests"].as_u64().is_some_and(|requests| requests < 2_000), "{report:.200}");
    let told = out(&output);
    assert_eq!(told.matches("\n  pass  ").count(), passed);
    assert!(told.contains(&format!("all {passed} checks passed")), "{told}");
    for (file, whole) in [(&junit, "</testsuites>\n"), (&html, "</html>\n")] {
        let written = fs::read_to_string(file).expect("a report");
        assert!(written.ends_with(whole));
        assert!(written.contains("form.signature-spaces"));
    }
    for secret in ["alipayplus.pem", "next.pem", "wallet.pem"] {
        let key = fs::read_to_string(service.dir().join(secret)).expect("a key");
        let line = key.lines().nth(3).expect("a key's line");
        for file in [&json, &junit, &html] {
            assert!(!fs::read_to_string(file).expect("a report").contains(line), "{secret}");
        }
        assert!(!told.contains(line), "{secret}");
    }
}

#[test]
fn a_client_with_limits_is_asked_for_what_it_may_not_do() {
    let (service, dir) = (shared(), folder());
    let json = dir.path().join("r.json");
    let mut flags = flags(service, service.ports().bridge.port());
    let at =
        |flags: &[String], flag: &str| flags.iter().position(|known| known == flag).unwrap() + 1;
    for (flag, value) in [
        ("--client-id", OTHER_CLIENT.to_owned()),
        ("--key", service.dir().join("other.pem").display().to_string()),
        ("--psp-id", OTHER_PSP.to_owned()),
        ("--acquirer-id", OTHER_ACQUIRER.to_owned()),
    ] {
        let at = at(&flags, flag);
        flags[at] = value;
    }
    let more = [
        "--key-version",
        "other-1",
        "--foreign-psp-id",
        "2088",
        "--foreign-acquirer-id",
        "1020",
        "--only",
        "order,form.payment,idempotency.other-acquirer",
        "--json",
        text(&json),
    ];
    ended_with(&certify(&flags, &more), 0);
    let report = read(&json);
    assert_eq!(with_outcome(&report, "skipped"), set(&["idempotency.other-acquirer"]));
    let passed = with_outcome(&report, "passed");
    assert!(passed.contains("order.access-psp") && passed.contains("order.access-acquirer"));
    // and who may, fails there
    let more =
        ["--key-version", "other-1", "--foreign-psp-id", OTHER_PSP, "--only", "order.access-psp"];
    let output = certify(&flags, &more);
    ended_with(&output, 1);
    assert!(out(&output).contains("expected ACCESS_DENIED, got SUCCESS"), "{}", out(&output));
}

#[test]
fn without_the_wallets_own_side_its_checks_are_skipped_and_say_what_they_need() {
    let (service, dir) = (shared(), folder());
    let json = dir.path().join("r.json");
    let mut flags = flags(service, service.ports().bridge.port());
    let grpc = flags.iter().position(|flag| flag == "--wallet-grpc").unwrap();
    flags.truncate(grpc);
    let next = flags.iter().position(|flag| flag == "--next-key").unwrap();
    flags.drain(next..next + 2);
    let more = ["--only", "late,window,token,rotation", "--json", text(&json)];
    let output = certify(&flags, &more);
    ended_with(&output, 0);
    let report = read(&json);
    assert_eq!(with_outcome(&report, "passed"), set(&["window.old-unknown"]));
    let told = out(&output);
    for needed in ["skipped: needs --wallet-grpc", "skipped: needs --next-key"] {
        assert!(told.contains(needed), "{told}");
    }
}

/// A wallet with one fault, certified: the checks that turned red.
fn reds_of(fault: &'static faults::Wrong) -> (BTreeSet<String>, String) {
    let (service, dir) = (shared(), folder());
    let json = dir.path().join("r.json");
    let proxy = Proxy::start(service.ports().bridge, Arc::new(faults::Running::of(fault)));
    let mut more = vec!["--json", text(&json)];
    more.extend(fault.flags);
    let output = certify(&flags(service, proxy.address.port()), &more);
    let told = format!("{}{}", out(&output), err(&output));
    assert!(json.exists(), "{}: {told}", fault.name);
    let reds = with_outcome(&read(&json), "failed");
    let due = i32::from(!reds.is_empty());
    assert_eq!(output.status.code(), Some(due), "{}: {told}", fault.name);
    (reds, told)
}

/// Ids of `--list`, so that a row may name a chapter or a beginning by `*`.
fn every_id() -> Vec<String> {
    let listed = out(&run(&["certify", "--list"]));
    let ids = listed.lines().filter_map(|line| line.strip_prefix("  ")?.split("  ").next());
    ids.filter(|id| !id.is_empty() && !id.starts_with(' ')).map(str::to_owned).collect()
}

fn expanded(reds: &[&str], ids: &[String]) -> BTreeSet<String> {
    let mut due = BTreeSet::new();
    for red in reds {
        let (but, word) = red.strip_prefix('!').map_or((false, *red), |word| (true, word));
        let meant: Vec<&String> = match word.strip_suffix('*') {
            Some(begin) => ids.iter().filter(|id| id.starts_with(begin)).collect(),
            None => ids.iter().filter(|id| *id == word).collect(),
        };
        assert!(!meant.is_empty(), "the table names {red}, which is no check");
        for id in meant {
            if but {
                due.remove(id);
            } else {
                due.insert(id.clone());
            }
        }
    }
    due
}

/// What is not as the table has it.
fn difference(fault: &'static faults::Wrong, ids: &[String]) -> Option<String> {
    let (mut reds, told) = reds_of(fault);
    let mut due = expanded(fault.reds, ids);
    // these expect another answer by the time of day
    for ids in [&mut reds, &mut due] {
        ids.retain(|id| !id.starts_with("window.yesterday-"));
    }

    assert!(!due.is_empty(), "{}: a fault that nobody sees", fault.name);
    if reds == due {
        return None;
    }
    println!("{told}");
    let more: Vec<_> = reds.difference(&due).collect();
    let fewer: Vec<_> = due.difference(&reds).collect();
    Some(format!("{}: red beside what is due {more:?}, not red {fewer:?}", fault.name))
}

/// Some at once: most of a run is waiting for commits.
fn each_fault_turns_its_checks_red(chosen: impl Fn(usize, &faults::Wrong) -> bool) {
    let ids = every_id();
    let faults = faults::FAULTS.iter().enumerate().filter(|(at, fault)| chosen(*at, fault));
    let left = Mutex::new(faults.map(|(_, fault)| fault).collect::<Vec<_>>());
    let wrong = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let Some(fault) = left.lock().unwrap().pop() else { return };
                    let differs = difference(fault, &ids);
                    wrong.lock().unwrap().extend(differs);
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Every eighth of the table; with `ALIPAYPLUS_CANCEL_TESTS_FAULTS=1` all of it, with any other value those of whose name
/// it is a part.
#[test]
fn each_fault_of_a_wallet_turns_exactly_its_checks_red() {
    let asked = std::env::var("ALIPAYPLUS_CANCEL_TESTS_FAULTS").ok();
    each_fault_turns_its_checks_red(|at, fault| match asked.as_deref() {
        None => at.is_multiple_of(8),
        Some("1") => true,
        Some(part) => fault.name.contains(part),
    });
}

#[test]
fn the_table_of_faults_names_each_fault_once() {
    let names: BTreeSet<&str> = faults::FAULTS.iter().map(|fault| fault.name).collect();
    assert_eq!(names.len(), faults::FAULTS.len());
    assert!(names.len() >= 40, "{}", names.len());
}

#[test]
fn a_failed_check_shows_the_request_and_the_answer_that_prove_it() {
    let (service, dir) = (shared(), folder());
    let fault = faults::FAULTS.iter().find(|fault| fault.name == "get is done").unwrap();
    let proxy = Proxy::start(service.ports().bridge, Arc::new(faults::Running::of(fault)));
    let file = |name: &str| dir.path().join(name);
    let (junit, html) = (file("r.xml"), file("r.html"));
    let more = ["--only", "refuse.method", "--junit", text(&junit), "--html", text(&html)];
    let output = certify(&flags(service, proxy.address.port()), &more);
    ended_with(&output, 1);
    let told = out(&output);
    for line in [
        "  FAIL  refuse.method-get",
        "        expected METHOD_NOT_SUPPORTED, got SUCCESS",
        "        GET /aps/api/v1/payments/cancelPayment HTTP/1.1",
        "        HTTP/1.1 200 OK",
        "1 of 6 checks failed",
    ] {
        assert!(told.contains(line), "{line}: {told}");
    }
    let xml = fs::read_to_string(junit).unwrap();
    assert!(xml.contains("tests=\"6\" failures=\"1\" skipped=\"0\""), "{xml}");
    assert!(xml.contains("<failure message=\"expected METHOD_NOT_SUPPORTED, got SUCCESS\">"));
    let page = fs::read_to_string(html).unwrap();
    assert!(page.contains("<h1 class=\"verdict failed\">1 of 6 checks failed</h1>"));
    assert!(page.contains("class=\"check failed\" open>") && page.contains("GET /aps/api/"));
    // a page that is handed on asks for nothing and does nothing
    for strange in ["<script", "<link", "<img", "src=", "@import", "url("] {
        assert!(!page.contains(strange), "{strange}");
    }
}

#[test]
fn verbose_shows_what_passes_too() {
    let service = shared();
    let flags = flags(service, service.ports().bridge.port());
    let quiet = out(&certify(&flags, &["--only", "form.payment"]));
    let verbose = out(&certify(&flags, &["--only", "form.payment", "--verbose"]));
    assert!(!quiet.contains("HTTP/1.1"), "{quiet}");
    assert!(verbose.contains("POST /aps/api/v1/payments/cancelPayment HTTP/1.1"), "{verbose}");
    assert!(verbose.contains("\"resultCode\":\"SUCCESS\""), "{verbose}");
}

#[test]
fn what_cannot_be_run_is_exit_status_2_with_a_message() {
    let (service, dir) = (shared(), folder());
    let good = flags(service, service.ports().bridge.port());
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let at_nobody = flags(service, nobody);
    let missing = dir.path().join("no/such/folder/r.json");
    let mut wrong_grpc = good.clone();
    let grpc = wrong_grpc.iter().position(|flag| flag == "--wallet-grpc").unwrap();
    wrong_grpc.truncate(grpc);
    wrong_grpc.extend(["--wallet-grpc".to_owned(), format!("http://127.0.0.1:{nobody}")]);
    for (flags, more, word) in [
        (&at_nobody, &[][..], "cannot connect"),
        (&wrong_grpc, &[], "--wallet-grpc"),
        (&good, &["--only", "no-such"], "there is no check `no-such`"),
        (&good, &["--only", "form", "--skip", "form"], "no check is left"),
        (&good, &["--json", text(&missing)], "cannot write"),
        (&good, &["--time-limit", "soon"], "expected seconds"),
        (&good, &["--ca-file", "/no/such/file", "--url", "https://127.0.0.1:1/a"], ""),
        (&vec![], &[], "--url is missing"),
        (&vec![], &["--sandbox", text(dir.path())], "no sandbox has served there"),
    ] {
        let output = certify(flags, more);
        ended_with(&output, 2);
        assert!(err(&output).contains(word), "{word}: {}", err(&output));
    }
}

#[test]
fn a_run_is_bounded_in_requests() {
    let (service, dir) = (shared(), folder());
    let json = dir.path().join("r.json");
    let flags = flags(service, service.ports().bridge.port());
    let more = ["--only", "form.time", "--max-requests", "3", "--json", text(&json)];
    let output = certify(&flags, &more);
    // what was left out is no pass
    ended_with(&output, 1);
    assert_eq!(with_outcome(&read(&json), "passed").len(), 3);
    assert!(out(&output).contains("needs more requests than --max-requests allows"));
    assert!(out(&output).contains("incomplete: 3 checks passed"), "{}", out(&output));
}

/// Whatever answers: no panic, no end of memory, nothing that steers a terminal.
#[test]
fn an_endpoint_that_means_harm_fails_and_does_no_more() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for (nth, socket) in listener.incoming().flatten().enumerate() {
            thread::spawn(move || {
                let mut socket = socket;
                drop(socket.read(&mut [0; 8192]));
                let hostile = "x: \u{1b}[2J\u{202e}\r\n";
                let answer = match nth % 3 {
                    0 => format!(
                        "HTTP/1.1 200 OK\r\n{hostile}transfer-encoding: chunked\r\n\r\n1\r\na\r\n{:x}\r\n",
                        usize::MAX
                    ),
                    1 => format!(
                        "HTTP/1.1 200 \u{1b}[31m\r\n{hostile}content-length: {}\r\n\r\n",
                        usize::MAX
                    ),
                    _ => format!(
                        "HTTP/1.1 200 OK\r\n{hostile}signature: \u{1b}[1A\r\ncontent-length: 59\r\n\r\n\
                         {{\"result\":{{\"resultCode\":\"\\u001b[2Jx\",\"resultStatus\":\"S\"}}}}   "
                    ),
                };
                drop(socket.write_all(answer.as_bytes()));
            });
        }
    });
    let output = certify(&flags(shared(), port), &["--only", "form", "--verbose"]);
    ended_with(&output, 1);
    let said = out(&output);
    assert!(said.contains("FAIL") && !said.contains(['\u{1b}', '\u{202e}']), "{said:.2000}");
}

#[test]
fn checks_are_listed_with_their_rules_and_chosen_by_id() {
    let ids = every_id();
    assert!(ids.len() > 220 && ids.iter().any(|id| id == "window.today"), "{ids:?}");
    let listed = |more: &[&str]| {
        let output = run(&[&["certify", "--list"], more].concat());
        ended_with(&output, 0);
        out(&output)
    };
    assert!(listed(&[]).contains("published: docs/semantics.md § The window"));
    let window = listed(&["--only", "window", "--skip", "window.today"]);
    assert!(window.contains("window.old") && !window.contains("window.today"));
    assert!(!window.contains("form."), "{window}");
    assert!(!listed(&["--skip-advice"]).contains("advice:"));
    // whoever reads a line of it does not see a panic
    let mut child = command(&["certify", "--list"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn a_wallet_over_tls_is_certified_with_its_authority() {
    let (authority, dir) = (Authority::new("certify"), folder());
    fs::write(dir.path().join("ca.pem"), &authority.pem).unwrap();
    authority.issue(&["127.0.0.1"]).write(dir.path(), "bridge");
    let toml = "[bridge.tls]\ncert_file = \"bridge.pem\"\nkey_file = \"bridge.key\"\n";
    let options = Options { toml: toml.to_owned(), ..Options::embedded() };
    let service = Service::start_in(dir, options);
    let file = |name: &str| service.dir().join(name).display().to_string();
    let url = format!("https://127.0.0.1:{}/aps/api", service.ports().bridge.port());
    let flags: Vec<String> = [
        ["--url".to_owned(), url],
        ["--client-id".to_owned(), CLIENT_ID.to_owned()],
        ["--key".to_owned(), file("alipayplus.pem")],
        ["--peer-key".to_owned(), file("wallet.pub")],
        ["--psp-id".to_owned(), PSP.to_owned()],
        ["--acquirer-id".to_owned(), ACQUIRER.to_owned()],
    ]
    .concat();
    let only = ["--only", "form,http,idempotency,retry"];
    let ca = file("ca.pem");
    ended_with(&certify(&flags, &[&only[..], &["--ca-file", &ca]].concat()), 0);
    let output = certify(&flags, &only);
    ended_with(&output, 2);
    assert!(err(&output).contains("cannot connect"), "{}", err(&output));
}

#[test]
fn against_the_sandbox_it_is_one_short_command() {
    let dir = folder();
    let sandbox = dir.path().join("sandbox");
    let log = fs::File::create(dir.path().join("out")).unwrap();
    let mut child = command(&["sandbox", "--dir", text(&sandbox)])
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("commands to try are printed", || {
        assert!(child.try_wait().unwrap().is_none(), "it ended");
        fs::read_to_string(dir.path().join("out")).unwrap().contains("grpcurl").then_some(())
    });
    let output = run(&[
        "certify",
        "--sandbox",
        text(&sandbox),
        "--only",
        "form.payment,rotation,late,token",
    ]);
    let simulated = run(&["simulate", "--sandbox", text(&sandbox), "--for", "1", "--rate", "20"]);
    child.kill().unwrap();
    child.wait().unwrap();
    ended_with(&output, 0);
    assert!(out(&output).contains(" checks passed: "), "{}", out(&output));
    ended_with(&simulated, 0);
}
