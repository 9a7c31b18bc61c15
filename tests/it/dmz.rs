//! Two tiers: a bridge whose cores are elsewhere. What the bridge does when they are killed, frozen, drained, slow,
//! overloaded, or not who they should be.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    net::{SocketAddr, TcpListener, ToSocketAddrs as _},
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use alipayplus_cancel::{
    grpc::channel::{Channel, Place, Tls},
    tls,
};
use tokio::runtime::Runtime;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::harness::{
    eventually,
    fake_core::{Answer, FakeCore},
    grpc::{Grant, Payment},
    json::{Request, payment_body},
    pair::{self, Authority, bridge_settings, core_settings},
    service::{Options, Role, Service, Store, admin, run},
};

fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("apc-it-").tempdir().expect("a folder")
}

/// A core with a store of its own.
fn core(authority: &Authority, set: &[&str]) -> Service {
    let dir = folder();
    authority.write(dir.path(), "core", &pair::CORE);
    let mut settings = core_settings(dir.path(), "core");
    settings.extend(set.iter().map(|&setting| setting.to_owned()));
    let options =
        Options { role: Role::Core, store: Store::Embedded, set: settings, ..Options::default() };
    Service::start_in(dir, options)
}

fn bridge_at(authority: &Authority, cores: &str, set: &[&str]) -> Service {
    let dir = folder();
    authority.write(dir.path(), "bridge", &[pair::BRIDGE]);
    let mut settings = bridge_settings(dir.path(), "bridge", cores);
    settings.extend(set.iter().map(|&setting| setting.to_owned()));
    Service::start_in(dir, Options { role: Role::Bridge, set: settings, ..Options::default() })
}

/// A bridge before these cores.
fn bridge(authority: &Authority, cores: &[&Service]) -> Service {
    let urls: Vec<_> = cores.iter().map(|core| format!("https://{}", core.ports().grpc)).collect();
    let bridge = bridge_at(authority, &urls.join(","), &[]);
    knows(&bridge, cores.len());
    bridge
}

fn metric(service: &Service, name: &str) -> u64 {
    let scrape = admin(service.ports().admin, "/metrics");
    let text = String::from_utf8(scrape.body).expect("text");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().expect("a number")
}

fn healthy(bridge: &Service) -> u64 {
    metric(bridge, "alipayplus_cancel_cores{state=\"healthy\"}")
}

/// Waits until so many cores are healthy.
fn knows(bridge: &Service, cores: usize) {
    let is_so = || (healthy(bridge) == cores as u64).then_some(());
    eventually(&format!("{cores} cores are healthy"), is_so);
}

fn request(bridge: &Service) -> Request {
    let payment = Payment::new();
    bridge.json().request().body(payment_body(&payment.psp, &payment.acquirer, &payment.request))
}

/// A cancel of a payment that nobody knows: SUCCESS wherever it is decided. Its code, and how long it took.
fn cancel(bridge: &Service) -> (String, Duration) {
    let begun = Instant::now();
    let answer = request(bridge).send();
    let took = begun.elapsed();
    answer.assert_signed();
    (answer.code(), took)
}

fn readiness(bridge: &Service) -> (u16, String) {
    let answer = admin(bridge.ports().admin, "/readyz");
    (answer.status, String::from_utf8(answer.body).expect("text"))
}

/// Callers that never stop while something happens; how often each code was answered, and the longest wait.
fn under_load(
    bridge: &Service,
    for_long: Duration,
    happens: impl FnOnce(),
) -> (BTreeMap<String, usize>, Duration) {
    let (stop, seen) = (AtomicBool::new(false), Mutex::new((BTreeMap::new(), Duration::ZERO)));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut connection = bridge.json().connect();
                while !stop.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    let answer = request(bridge).send_on(&mut connection);
                    let mut seen = seen.lock().unwrap();
                    *seen.0.entry(answer.code()).or_default() += 1;
                    seen.1 = seen.1.max(begun.elapsed());
                }
            });
        }
        let answered = || seen.lock().unwrap().0.values().sum::<usize>();
        eventually("the load runs", || (answered() > 50).then_some(()));
        happens();
        let until = Instant::now() + for_long;
        eventually("the load has seen it", || (Instant::now() > until).then_some(()));
        stop.store(true, Ordering::Relaxed);
    });
    let (codes, longest) = seen.into_inner().unwrap();
    println!("{codes:?}, at most {longest:?}");
    (codes, longest)
}

const SUCCESS: &str = "SUCCESS";
const UNKNOWN: &str = "UNKNOWN_EXCEPTION";

#[test]
fn a_bridge_without_its_core_answers_u_at_once_and_s_when_it_is_back() {
    let authority = Authority::new();
    let mut core = core(&authority, &[]);
    let bridge = bridge(&authority, &[&core]);
    let payment = Payment::new();
    let cancel_it =
        || bridge.json().cancel_payment(&payment.psp, &payment.acquirer, &payment.request);
    cancel_it().expect(SUCCESS).assert_signed();
    eventually("it is ready", || (readiness(&bridge) == (200, "ready\n".to_owned())).then_some(()));

    let at = core.ports().grpc;
    core.kill_nine();
    eventually("the loss is noticed", || (healthy(&bridge) == 0).then_some(()));
    for _ in 0..5 {
        let (code, took) = cancel(&bridge);
        assert_eq!(code, UNKNOWN);
        assert!(took < Duration::from_secs(1), "{took:?}");
    }
    let not_ready = (503, "not ready: no core is reachable\n".to_owned());
    eventually("it is not ready", || (readiness(&bridge) == not_ready).then_some(()));

    let dir = core.dir().to_owned();
    let here = format!("grpc.listen={at}");
    let settings = core_settings(&dir, "core");
    let settings: Vec<&str> = settings.iter().map(String::as_str).chain([&*here]).collect();
    core.restart_with(&settings);
    eventually("its core is found again", || (cancel(&bridge).0 == SUCCESS).then_some(()));
    cancel_it().expect(SUCCESS);
    eventually("it is ready", || (readiness(&bridge).0 == 200).then_some(()));
}

#[test]
fn a_bridge_starts_without_its_core_and_is_not_ready() {
    let authority = Authority::new();
    let core = core(&authority, &[]);
    let url = format!("https://{}", core.ports().grpc);
    drop(core);
    let bridge = bridge_at(&authority, &url, &[]);
    assert_eq!(readiness(&bridge).0, 503);
    let health = |path| {
        let url = format!("http://{}/{path}", bridge.ports().admin);
        let output = run(&["health", "--timeout", "20s", "--url", &url]);
        (output.status.code(), String::from_utf8(output.stderr).expect("text"))
    };
    let (status, why) = health("readyz");
    assert!(status == Some(1) && why.contains("503: not ready: no core is reachable"), "{why}");
    assert_eq!(health("livez").0, Some(0));
    assert_eq!(cancel(&bridge).0, UNKNOWN);
    assert_eq!(admin(bridge.ports().admin, "/livez").status, 200);
}

#[test]
fn a_core_killed_under_load_costs_no_answer() {
    let authority = Authority::new();
    let (mut one, two) = (core(&authority, &[]), core(&authority, &[]));
    let bridge = bridge(&authority, &[&one, &two]);
    let (codes, longest) = under_load(&bridge, Duration::from_secs(1), || one.kill_nine());
    assert_eq!(codes.keys().collect::<Vec<_>>(), [SUCCESS], "asked again of the other");
    assert!(longest < Duration::from_millis(6_500), "{longest:?}");
    assert_eq!(healthy(&bridge), 1);
}

#[test]
fn a_core_frozen_under_load_costs_no_answer() {
    let authority = Authority::new();
    let (one, two) = (core(&authority, &[]), core(&authority, &[]));
    let bridge = bridge(&authority, &[&one, &two]);
    let (codes, longest) = under_load(&bridge, Duration::from_secs(5), || one.signal("STOP"));
    assert_eq!(codes.keys().collect::<Vec<_>>(), [SUCCESS], "asked again of the other");
    assert!(longest < Duration::from_millis(6_500), "{longest:?}");
    assert_eq!(healthy(&bridge), 1, "it was noticed");
    one.signal("CONT");
    knows(&bridge, 2);
}

#[test]
fn a_core_drained_under_load_costs_no_answer_and_ends_soon() {
    let authority = Authority::new();
    let (mut one, two) = (core(&authority, &[]), core(&authority, &[]));
    let bridge = bridge(&authority, &[&one, &two]);
    let begun = Instant::now();
    let (codes, _) = under_load(&bridge, Duration::from_millis(500), || {
        assert_eq!(one.terminate().code(), Some(0), "{}", one.stderr());
    });
    assert_eq!(codes.keys().collect::<Vec<_>>(), [SUCCESS]);
    assert!(begun.elapsed() < Duration::from_secs(15), "nothing of the bridge's holds it up");
    assert!(!one.stderr().contains("shutdown.grace"), "{}", one.stderr());
}

#[test]
fn a_core_that_says_that_it_drains_gets_nothing_new_long_before_it_ends() {
    let authority = Authority::new();
    let (one, two) = (core(&authority, &["shutdown.drain_delay=1h"]), core(&authority, &[]));
    let bridge = bridge(&authority, &[&one, &two]);
    one.signal("TERM");
    knows(&bridge, 1);
    let commits = || metric(&one, "alipayplus_cancel_commits_total");
    let before = commits();
    for _ in 0..10 {
        assert_eq!(cancel(&bridge).0, SUCCESS);
    }
    assert_eq!(commits(), before);
}

#[test]
fn both_sides_want_the_right_authority() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let core = core(&ours, &[]);
    let url = format!("https://{}", core.ports().grpc);
    // the bridge has another authority's certificate, and trusts that one
    let stranger = bridge_at(&theirs, &url, &[]);
    let told = |service: &Service, what: &str| {
        eventually(what, || service.stderr().contains(what).then_some(()));
    };
    told(&stranger, "invalid peer certificate");
    assert_eq!(cancel(&stranger).0, UNKNOWN);
    // it trusts the right one, but has no certificate of it
    let dir = folder();
    theirs.write(dir.path(), "bridge", &[pair::BRIDGE]);
    fs::write(dir.path().join("bridge.ca"), &ours.ca_pem).unwrap();
    let set = bridge_settings(dir.path(), "bridge", &url);
    let stranger =
        Service::start_in(dir, Options { role: Role::Bridge, set, ..Options::default() });
    told(&stranger, "a core cannot be reached");
    assert_eq!(cancel(&stranger).0, UNKNOWN);
    // and a core whose certificate has another name
    let set = ["bridge.core_tls.server_name=core.elsewhere.example"];
    let mistaken = bridge_at(&ours, &url, &set);
    told(&mistaken, "invalid peer certificate");
    assert_eq!(cancel(&mistaken).0, UNKNOWN);
    assert_eq!(healthy(&mistaken), 0);
}

fn tls_of(dir: &Path, name: &str) -> Tls {
    let file = |ending: &str| dir.join(format!("{name}.{ending}"));
    let config = tls::client(&file("ca"), &file("crt"), &file("key"), &["h2"]).unwrap();
    Tls { config, server_name: None }
}

#[test]
fn new_certificates_are_used_without_a_restart_and_bad_ones_end_nothing() {
    let (authority, other) = (Authority::new(), Authority::new());
    let core = core(&authority, &[]);
    let dir = folder();
    other.write(dir.path(), "wrong", &[pair::BRIDGE]);
    authority.write(dir.path(), "right", &[pair::BRIDGE]);
    let runtime = Runtime::new().unwrap();
    let _entered = runtime.enter();
    let SocketAddr::V4(at) = core.ports().grpc else { panic!("IPv4") };
    let place = Place { host: at.ip().to_string(), port: at.port() };
    let channel = Channel::start(vec![place], Some(tls_of(dir.path(), "wrong"))).unwrap();
    eventually("the core is known", || (channel.cores().1 == 1).then_some(()));
    assert_eq!(channel.cores().0, 0);
    channel.set_tls(tls_of(dir.path(), "right"));
    eventually("the new certificate is taken", || (channel.cores().0 == 1).then_some(()));
    channel.set_tls(tls_of(dir.path(), "wrong"));
    for _ in 0..20 {
        assert_eq!(channel.cores().0, 1, "the connection there is serves on");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn both_sides_move_to_another_authority_under_load_and_no_answer_is_lost() {
    let (old, new) = (Authority::new(), Authority::new());
    let core = core(&old, &[]);
    let bridge = bridge(&old, &[&core]);
    let both = format!("{}{}", old.ca_pem, new.ca_pem);
    let count = |service: &Service, line: &str| service.stderr().matches(line).count();
    let reload = |service: &Service, line: &str, files: &[(&str, &str)]| {
        let before = count(service, line);
        for (name, pem) in files {
            fs::write(service.dir().join(name), pem).unwrap();
        }
        service.signal("HUP");
        eventually(line, || (count(service, line) > before).then_some(()));
    };
    let (read, anew) = ("settings were reloaded", "connected anew, with the new certificates");
    let (codes, _) = under_load(&bridge, Duration::from_millis(200), || {
        reload(&core, read, &[("core.ca", &both)]);
        reload(&bridge, anew, &[("bridge.ca", &both)]);
        let (cert, key) = new.issue(&pair::CORE);
        reload(&core, read, &[("core.crt", &cert), ("core.key", &key)]);
        let (cert, key) = new.issue(&[pair::BRIDGE]);
        reload(&bridge, anew, &[("bridge.crt", &cert), ("bridge.key", &key)]);
        reload(&core, read, &[("core.ca", &new.ca_pem)]);
        reload(&bridge, anew, &[("bridge.ca", &new.ca_pem)]);
    });
    assert_eq!(codes.keys().collect::<Vec<_>>(), [SUCCESS]);
    // the old one counts on neither side any more
    let url = format!("https://{}", core.ports().grpc);
    let stranger = bridge_at(&old, &url, &[]);
    assert_eq!((cancel(&stranger).0, healthy(&stranger)), (UNKNOWN.to_owned(), 0));
}

#[test]
fn a_bridge_that_is_no_caller_is_answered_u() {
    let authority = Authority::new();
    let core = core(
        &authority,
        &["grpc.callers.0.sans=somebody.else.example", "grpc.callers.0.methods=*"],
    );
    let bridge = bridge(&authority, &[&core]);
    assert_eq!(cancel(&bridge).0, UNKNOWN, "a mistake of ours is no refusal of the payment");
}

#[test]
fn a_name_with_two_addresses_is_two_cores() {
    let authority = Authority::new();
    let one = core(&authority, &[]);
    let port = one.ports().grpc.port();
    let addresses = ("localhost", port).to_socket_addrs().expect("localhost").count();
    if addresses < 2 || TcpListener::bind(("::1", 0)).is_err() {
        println!("SKIPPED localhost has one address here");
        return;
    }
    let mut two = core(&authority, &[&format!("grpc.listen=[::1]:{port}")]);
    let bridge = bridge_at(&authority, &format!("https://localhost:{port}"), &[]);
    knows(&bridge, 2);
    two.kill_nine();
    knows(&bridge, 1);
    assert_eq!(cancel(&bridge).0, SUCCESS);
}

#[test]
fn each_role_says_what_it_lacks() {
    let dir = folder();
    let file = dir.path().join("settings.toml");
    fs::write(&file, "").unwrap();
    let file = file.to_str().unwrap();
    let check = |role: &str| {
        let output = run(&["config", "check", "--role", role, "--config", file]);
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8(output.stderr).unwrap()
    };
    let core = check("core");
    assert!(core.contains("tokens.hash_key_files") && !core.contains("identity"), "{core}");
    let bridge = check("bridge");
    assert!(bridge.contains("identity.keys") && !bridge.contains("tokens"), "{bridge}");
}

#[test]
fn a_token_is_cancelled_through_both_tiers() {
    let authority = Authority::shared();
    let core = core(authority, &[]);
    let bridge = bridge(authority, &[&core]);
    let grpc = crate::harness::grpc::Grpc::by_tls(core.ports().grpc);
    let grant = Grant::new();
    grpc.record_token(grant.token("a-token")).unwrap();
    let json = bridge.json();
    json.cancel_token(&grant.psp, &grant.acquirer, "a-token").expect(SUCCESS).assert_signed();
    json.cancel_token(&grant.psp, &grant.acquirer, "no-token").expect("INVALID_TOKEN");
    assert!(!grpc.introspect_token(grant.introspect("a-token")).unwrap().active);
}

/// A bridge before fakes, each of which it has found healthy.
fn before(fakes: &[&FakeCore], set: &[&str]) -> Service {
    let urls: Vec<_> = fakes.iter().map(|fake| format!("http://{}", fake.address)).collect();
    let core = format!("bridge.core={}", urls.join(","));
    let set = [&[&*core], set].concat().into_iter().map(str::to_owned).collect();
    let bridge = Service::start(Options { role: Role::Bridge, set, ..Options::default() });
    knows(&bridge, fakes.len());
    bridge
}

fn ours(code: Code, reason: &str) -> Answer {
    let details = ErrorDetails::with_error_info(reason, "cancel.alipayplus", HashMap::new());
    Answer::Refuse(Status::with_error_details(code, "as told", details))
}

fn retries(bridge: &Service, reason: &str) -> u64 {
    metric(bridge, &format!("alipayplus_cancel_core_retries_total{{reason=\"{reason}\"}}"))
}

#[test]
fn what_a_core_refuses_is_passed_on_and_asked_of_no_other() {
    let fakes = [(); 2].map(|()| FakeCore::new(Answer::Success));
    let bridge = before(&[&fakes[0], &fakes[1]], &[]);
    for (answer, code) in [
        (
            ours(Code::ResourceExhausted, "REQUEST_TRAFFIC_EXCEED_LIMIT"),
            "REQUEST_TRAFFIC_EXCEED_LIMIT",
        ),
        (ours(Code::InvalidArgument, "PARAM_ILLEGAL"), "PARAM_ILLEGAL"),
        (ours(Code::PermissionDenied, "ACCESS_DENIED"), "ACCESS_DENIED"),
        (ours(Code::Aborted, "UNKNOWN_EXCEPTION"), UNKNOWN),
        // a mesh, a proxy, an older core: whatever they say, it is not known
        (Answer::Refuse(Status::resource_exhausted("mesh")), UNKNOWN),
        (Answer::Refuse(Status::permission_denied("mesh")), UNKNOWN),
        (Answer::Refuse(Status::unauthenticated("mesh")), UNKNOWN),
        (Answer::Refuse(Status::unimplemented("older")), UNKNOWN),
        (Answer::Refuse(Status::invalid_argument("proxy")), UNKNOWN),
        (Answer::Refuse(Status::internal("proxy")), UNKNOWN),
        (Answer::Refuse(Status::deadline_exceeded("proxy")), UNKNOWN),
    ] {
        let calls = || fakes.iter().map(|fake| fake.calls().len()).sum::<usize>();
        let before = calls();
        for fake in &fakes {
            fake.answer(answer.clone());
        }
        assert_eq!(cancel(&bridge).0, code, "{answer:?}");
        assert_eq!(calls(), before + 1, "{answer:?}");
    }
}

#[test]
fn a_core_that_is_unavailable_is_no_reason_to_fail_as_long_as_another_is_there() {
    let fakes = [(); 2].map(|()| FakeCore::new(Answer::Success));
    let bridge = before(&[&fakes[0], &fakes[1]], &[]);
    for (broken, whole) in [(0, 1), (1, 0)] {
        fakes[broken].answer(Answer::Refuse(Status::unavailable("no store")));
        fakes[whole].answer(Answer::Success);
        for _ in 0..10 {
            assert_eq!(cancel(&bridge).0, SUCCESS);
        }
    }
    assert!(retries(&bridge, "failed") > 0);
}

#[test]
fn a_core_that_does_not_answer_leaves_time_for_another() {
    let (silent, other) = (FakeCore::new(Answer::Never), FakeCore::new(Answer::Never));
    let bridge = before(&[&silent, &other], &["limits.cancel_payment_deadline=2s"]);
    // neither does: U, when the time is over
    let (code, took) = cancel(&bridge);
    assert_eq!(code, UNKNOWN);
    assert!(took >= Duration::from_millis(1_850) && took < Duration::from_secs(4), "{took:?}");
    assert_eq!((silent.calls().len(), other.calls().len()), (1, 1));
    assert_eq!(retries(&bridge, "slow"), 1);
    // the second had what was left
    let us =
        |call: &str| call.trim_end_matches('u').parse::<u64>().unwrap_or_else(|_| panic!("{call}"));
    let mut waits = [us(&silent.calls()[0]), us(&other.calls()[0])];
    waits.sort_unstable();
    assert!(waits[0] <= 1_000_000 && waits[1] > 1_500_000, "{waits:?}");

    other.answer(Answer::Success);
    for _ in 0..4 {
        let (code, took) = cancel(&bridge);
        assert_eq!(code, SUCCESS);
        assert!(took < Duration::from_millis(1_900), "{took:?}");
    }
}

#[test]
fn a_core_that_only_hangs_is_passed_over() {
    let (silent, other) = (FakeCore::new(Answer::Never), FakeCore::new(Answer::Success));
    let bridge = before(&[&silent, &other], &["limits.cancel_payment_deadline=1s"]);
    let mut hung = 0;
    while hung < 5 {
        let (code, took) = cancel(&bridge);
        assert_eq!(code, SUCCESS);
        hung += usize::from(took >= Duration::from_millis(400));
    }
    assert_eq!(silent.calls().len(), 5);
    for _ in 0..10 {
        assert_eq!(cancel(&bridge).0, SUCCESS);
    }
    assert_eq!(silent.calls().len(), 5, "for some seconds nobody asks it");
}

#[test]
fn trouble_of_all_cores_is_not_multiplied() {
    const CALLS: u64 = 400;
    let unavailable = || FakeCore::new(Answer::Refuse(Status::unavailable("no store")));
    let (one, two) = (unavailable(), unavailable());
    let bridge = before(&[&one, &two], &[]);
    let mut connection = bridge.json().connect();
    for _ in 0..CALLS {
        request(&bridge).send_on(&mut connection).expect(UNKNOWN);
    }
    let again = retries(&bridge, "failed");
    // ten a second of ten seconds, and a fifth of the calls
    assert!((1..=100 + CALLS / 5 + 20).contains(&again), "{again}");
}
