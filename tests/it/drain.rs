//! SIGTERM: what was accepted is answered, then the process ends well.

use std::{
    env,
    fs::File,
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::{Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use prost::Message as _;
use tonic::Code;

use crate::harness::{
    eventually,
    grpc::{Payment, wire::cancel_service_client::CancelServiceClient},
    h2::{self, H2, frame},
    json::{Connection, Request, payment_body},
    postgres::{self, Cluster},
    service::{self, Options, Service},
};

fn request(service: &Service, payment: &Payment) -> Request {
    let body = payment_body(&payment.psp, &payment.acquirer, &payment.request);
    service.json().request().body(body)
}

/// A request whose body the service is reading.
fn accepted(request: &Request) -> Connection {
    let mut connection = Connection::to(request.address);
    connection.write(&request.clone().header("Expect", "100-continue").head());
    assert_eq!(connection.answer(false).expect("100 Continue").status, 100);
    connection
}

fn is_draining(service: &Service) {
    eventually("the service drains", || service.stderr().contains("draining").then_some(()));
}

#[test]
fn told_to_end_the_service_answers_what_it_accepted_and_ends_well() {
    let mut service = Service::start(Options::default());
    let payments = [(); 5].map(|()| Payment::new());
    let requests: Vec<Request> =
        payments.iter().map(|payment| request(&service, payment)).collect();
    let mut connections: Vec<Connection> = requests.iter().map(accepted).collect();
    // one that is idle does not hold it up
    let mut idle = service.json().connect();
    request(&service, &Payment::new()).send_on(&mut idle).expect("SUCCESS");

    service.signal("TERM");
    is_draining(&service);
    assert!(idle.is_closed());
    for (request, connection) in requests.iter().zip(&mut connections) {
        connection.write(&request.body);
        let answer = request.answer_on(connection).expect("an answer");
        answer.expect("SUCCESS").assert_signed();
        assert_eq!(answer.header("connection"), Some("close"));
        assert!(connection.is_closed());
    }
    let ended = service.wait();
    assert_eq!(ended.code(), Some(0), "{}", service.stderr());
    assert!(service.stderr().contains("stopped"));

    service.restart();
    for payment in &payments {
        assert!(service.grpc().cancel_payment(payment.cancel()).unwrap().repeated);
    }
}

#[test]
fn what_does_not_end_within_the_grace_is_dropped_and_a_second_signal_ends_at_once() {
    let mut service = Service::start(Options::set(["shutdown.grace=200ms"]));
    let held = accepted(&request(&service, &Payment::new()));
    assert_eq!(service.terminate().code(), Some(0), "{}", service.stderr());
    drop(held);

    let mut service = Service::start(Options::set(["shutdown.grace=1h"]));
    let held = accepted(&request(&service, &Payment::new()));
    service.signal("TERM");
    is_draining(&service);
    // until the second signal is listened for, it may go unheard
    eventually("a second signal ends it", || {
        service.signal("INT");
        service.has_ended().then_some(())
    });
    assert_eq!(service.wait().code(), Some(1));
    drop(held);
}

#[test]
fn readiness_goes_before_the_ports_do() {
    let mut service = Service::start(Options::set(["shutdown.drain_delay=1h"]));
    let mut kept = service.json().connect();
    request(&service, &Payment::new()).send_on(&mut kept).expect("SUCCESS");
    let ready = |service: &Service| probe(service.ports().admin, "/readyz");
    assert_eq!(ready(&service), (200, "ready\n".to_owned()));
    service.signal("TERM");
    let draining = (503, "not ready: draining\n".to_owned());
    eventually("it is not ready", || (ready(&service) == draining).then_some(()));
    assert_eq!(probe(service.ports().admin, "/livez").0, 200);
    request(&service, &Payment::new()).send().expect("SUCCESS").assert_signed();
    // whoever has a connection is told to go elsewhere with the next request
    let last = request(&service, &Payment::new()).send_on(&mut kept);
    assert_eq!(last.expect("SUCCESS").header("connection"), Some("close"));
    assert!(kept.is_closed());
    service.kill_nine();
}

#[test]
fn a_draining_service_refuses_new_connections_so_that_they_go_elsewhere() {
    let service = Service::start(Options::default());
    let payment = Payment::new();
    let request = request(&service, &payment);
    let mut connection = accepted(&request);
    service.signal("TERM");
    eventually("the port is closed", || {
        std::net::TcpStream::connect(service.ports().bridge).is_err().then_some(())
    });
    connection.write(&request.body);
    request.answer_on(&mut connection).expect("an answer").expect("SUCCESS");
}

/// What a probe says.
fn probe(admin: SocketAddr, path: &str) -> (u16, String) {
    let mut connection = Connection::to(admin);
    connection.write(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
    let answer = connection.answer(true).expect("an answer");
    (answer.status, String::from_utf8(answer.body).expect("a text"))
}

#[test]
fn a_request_on_its_way_when_the_ports_close_is_answered() {
    let mut service = Service::start(Options::default());
    let mut kept = service.json().connect();
    request(&service, &Payment::new()).send_on(&mut kept).expect("SUCCESS");
    // asked before anybody can take it: the process stands still
    service.signal("STOP");
    let waiting = request(&service, &Payment::new());
    let mut newcomer = service.json().connect();
    newcomer.write(&waiting.bytes());
    service.signal("TERM");
    service.signal("CONT");
    waiting.answer_on(&mut newcomer).expect("an answer").expect("SUCCESS");
    eventually("the port is closed", || {
        TcpStream::connect(service.ports().bridge).is_err().then_some(())
    });
    // idle, and not closed under what comes now
    let last = request(&service, &Payment::new()).send_on(&mut kept);
    assert_eq!(last.expect("SUCCESS").header("connection"), Some("close"));
    assert!(kept.is_closed());
    assert_eq!(service.wait().code(), Some(0), "{}", service.stderr());
}

/// What the callers of one round saw.
#[derive(Default)]
struct Seen {
    /// Answered S.
    heard: Mutex<Vec<Payment>>,
    /// Neither answered, nor ever taken: a connect was refused, or the connection ended before a byte of an answer.
    unanswered: Mutex<Vec<Payment>>,
    /// Of them, sent on a connection that was in use: those must be answered.
    lost: AtomicUsize,
    count: AtomicUsize,
}

impl Seen {
    fn hear(&self, payment: Payment) {
        self.heard.lock().unwrap().push(payment);
        self.count.fetch_add(1, Ordering::AcqRel);
    }

    fn miss(&self, payment: Payment) {
        self.unanswered.lock().unwrap().push(payment);
    }

    /// A client that keeps its connection, and opens the next when it is told to.
    fn ask_json(&self, service: &Service) {
        let mut kept: Option<(Connection, Instant)> = None;
        loop {
            let payment = Payment::new();
            let request = request(service, &payment);
            let (mut connection, used) = match kept.take() {
                Some((connection, used)) => (connection, Some(used)),
                None => match TcpStream::connect(service.ports().bridge) {
                    Ok(socket) => {
                        socket.set_read_timeout(Some(crate::harness::PATIENCE)).unwrap();
                        (Connection::over(Box::new(socket)), None)
                    }
                    Err(_) => return self.miss(payment),
                },
            };
            let bytes = request.bytes();
            // a client that itself stood still for long met the end of an idle connection
            let in_use = used.is_some_and(|used| used.elapsed() < Duration::from_millis(500));
            connection.write(&bytes);
            let Some(answer) = request.answer_on(&mut connection) else {
                if in_use {
                    self.lost.fetch_add(1, Ordering::AcqRel);
                }
                self.miss(payment);
                continue;
            };
            // a machine that stands still may make it U, which is an answer: ask again
            if answer.result_status() == "U" {
                self.miss(payment);
            } else {
                answer.expect("SUCCESS").assert_signed();
                self.hear(payment);
            }
            if answer.header("connection") != Some("close") {
                kept = Some((connection, Instant::now()));
            }
        }
    }

    /// Eight calls at once on one connection, until none can be made any more.
    fn ask_grpc(&self, service: &Service) {
        let grpc = service.grpc();
        let channel = grpc.channel();
        let ask = || async {
            loop {
                let payment = Payment::new();
                let mut client = CancelServiceClient::new(channel.clone());
                match client.cancel_payment(payment.cancel()).await {
                    Ok(_) => self.hear(payment),
                    Err(status) => {
                        let text = format!("{status:?}");
                        // never sent: nobody listens, or the connection was told to end before
                        let unsent = text.contains("ConnectError") || text.contains("Canceled");
                        assert!(unsent, "a call was lost: {text}");
                        self.miss(payment);
                        if text.contains("ConnectError") {
                            return;
                        }
                    }
                }
            }
        };
        grpc.block_on(async {
            tokio::join!(ask(), ask(), ask(), ask(), ask(), ask(), ask(), ask())
        });
    }
}

#[test]
fn told_to_end_under_load_again_and_again_it_loses_nothing() {
    let rounds = env::var("ALIPAYPLUS_CANCEL_TESTS_DRAINS").ok();
    let rounds: usize = rounds.map_or(8, |rounds| rounds.parse().expect("a number"));
    let mut service = Service::start(Options::default());
    let (mut all, mut all_unanswered) = (0, 0);
    for round in 0..rounds {
        if round > 0 {
            let delay = format!("shutdown.drain_delay={}ms", 150 * (round % 2));
            service.restart_with(&[&delay]);
        }
        let seen = Seen::default();
        let follower = service.grpc();
        let mut followed = follower.follow(&format!("drain-{round}"));
        let told = thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| seen.ask_json(&service));
            }
            scope.spawn(|| seen.ask_grpc(&service));
            scope.spawn(|| assert_eq!(followed.end().code(), Code::Unavailable));
            let enough = 60 + 17 * (round % 5);
            eventually("there is load", || {
                (seen.count.load(Ordering::Acquire) > enough).then_some(())
            });
            service.signal("TERM");
            Instant::now()
        });
        let ended = service.wait();
        assert_eq!(ended.code(), Some(0), "round {round}: {}", service.stderr());
        assert!(told.elapsed() < Duration::from_secs(25), "round {round}: {:?}", told.elapsed());
        assert!(!service.stderr().contains("are dropped"), "round {round}");
        assert_eq!(seen.lost.into_inner(), 0, "round {round}: asked, and not answered");

        service.restart();
        let grpc = service.grpc();
        let heard = seen.heard.into_inner().unwrap();
        for payment in &heard {
            let again = grpc.cancel_payment(payment.cancel()).expect("S");
            assert!(again.repeated, "round {round}: {payment:?} was forgotten");
        }
        let unanswered = seen.unanswered.into_inner().unwrap();
        for payment in &unanswered {
            request(&service, payment).send().expect("SUCCESS");
        }
        all += heard.len();
        all_unanswered += unanswered.len();
        service.terminate();
    }
    println!("{rounds} rounds: {all} answered and found again, {all_unanswered} asked elsewhere");
}

#[test]
fn a_frozen_grpc_client_does_not_hold_the_end() {
    let mut service = Service::start(Options::set(["shutdown.grace=30s"]));
    let mut frozen = H2::plain(service.ports().grpc, &[]);
    frozen.settle();
    let call = h2::call("/alipayplus.cancel.v1.CancelService/CancelPayment");
    frozen.send(&frame(h2::HEADERS, h2::END_HEADERS, 1, &call));
    let message = h2::message(&Payment::new().cancel().encode_to_vec());
    frozen.send(&frame(h2::DATA, h2::END_STREAM, 1, &message));
    while frozen.next().expect("an answer").kind != h2::DATA {}
    // from here on it reads nothing and answers no ping
    let silent = TcpStream::connect(service.ports().grpc).unwrap();
    let told = Instant::now();
    assert_eq!(service.terminate().code(), Some(0));
    assert!(told.elapsed() < Duration::from_secs(15), "{:?}", told.elapsed());
    drop((frozen, silent));
}

#[test]
fn told_to_end_while_it_waits_for_the_database_it_ends_at_once() {
    let dir = tempfile::Builder::new().prefix("apc-it-").tempdir().unwrap();
    // a port that nobody listens on
    service::furnish_on(dir.path(), "", "postgres://nobody@127.0.0.1:1/nothing");
    let log = dir.path().join("stderr.log");
    let mut child = service::command(&["serve", "--config"])
        .arg(dir.path().join("settings.toml"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&log).unwrap())
        .spawn()
        .expect("the binary starts");
    eventually("it waits", || {
        std::fs::read_to_string(&log).unwrap().contains("cannot be used yet").then_some(())
    });
    let ports = listening(child.id());
    let probes: Vec<String> = ports
        .iter()
        .flatten()
        .filter_map(|&port| {
            // the other fronts listen already, and do not speak yet
            let mut socket = TcpStream::connect(("127.0.0.1", port)).ok()?;
            socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            socket
                .write_all(b"GET /readyz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                .ok()?;
            let mut text = String::new();
            match socket.read_to_string(&mut text) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => None,
                _ => Some(text),
            }
        })
        .collect();
    let told = |text: &String| text.contains("503") && text.contains("not ready: starting");
    assert!(ports.is_none() || probes.iter().any(told), "{probes:?}");
    let told = Instant::now();
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-s", "TERM", &pid]).status().unwrap().success());
    let ended = eventually("it ends", || child.try_wait().unwrap());
    assert_eq!(ended.code(), Some(0), "{}", std::fs::read_to_string(&log).unwrap());
    assert!(told.elapsed() < Duration::from_secs(5), "{:?}", told.elapsed());
}

/// The ports that a process listens on; `None` if nobody here may look.
fn listening(pid: u32) -> Option<Vec<u16>> {
    let sockets: Vec<String> = service::sockets(pid)?
        .iter()
        .filter_map(|name| Some(name.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap();
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let ours = rows.filter(|row| row[3] == "0A" && sockets.iter().any(|inode| *inode == row[9]));
    let port = |row: Vec<&str>| u16::from_str_radix(row[1].split_once(':').unwrap().1, 16).unwrap();
    Some(ours.map(port).collect())
}

#[test]
fn a_frozen_database_holds_the_end_no_longer_than_the_grace() {
    if !postgres::is_there_or_skip() {
        return;
    }
    let cluster = Cluster::start(postgres::Options::default());
    let mut options = Options::on(&cluster.fresh_database());
    options.set.push("shutdown.grace=2s".to_owned());
    let mut service = Service::start(options);
    request(&service, &Payment::new()).send().expect("SUCCESS");
    cluster.pause();
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let waiting = request(&service, &Payment::new());
        let mut connection = service.json().connect();
        connection.write(&waiting.bytes());
        let ended = &ended;
        scope.spawn(move || {
            // dropped with the grace, or U: never anything else
            if let Some(answer) = waiting.answer_on(&mut connection) {
                answer.expect("UNKNOWN_EXCEPTION");
            }
            assert!(ended.load(Ordering::Acquire) || connection.is_closed());
        });
        let told = Instant::now();
        service.signal("TERM");
        let status = service.wait();
        ended.store(true, Ordering::Release);
        assert_eq!(status.code(), Some(0), "{}", service.stderr());
        // the grace and a second, and what a busy machine adds
        assert!(told.elapsed() < Duration::from_secs(8), "{:?}", told.elapsed());
        println!("ended {:?} after it was told, with a grace of 2 s", told.elapsed());
    });
    cluster.resume();
}
