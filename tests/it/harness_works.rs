//! The fixture itself: a service starts, answers, dies, comes back; so does a database.

use std::{
    env,
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use crate::harness::{
    eventually,
    grpc::Payment,
    postgres::{self, Cluster},
    service::{Options, Service},
};

#[test]
fn a_payment_cancelled_before_a_kill_stays_cancelled_after_it() {
    let mut service = Service::start(Options::default());
    let payment = Payment::new();
    let cancel = |service: &Service| {
        service.json().cancel_payment(&payment.psp, &payment.acquirer, &payment.request)
    };
    cancel(&service).expect("SUCCESS").assert_signed();
    service.kill_nine();
    service.restart();
    cancel(&service).expect("SUCCESS").assert_signed();
    assert!(service.grpc().cancel_payment(payment.cancel()).unwrap().repeated);
    assert!(service.terminate().success(), "{}", service.stderr());
}

#[test]
fn each_fresh_database_is_empty_and_durable() {
    let Some(postgres) = postgres::or_skip() else { return };
    let (one, two) = (postgres.fresh_database(), postgres.fresh_database());
    postgres.psql(&one, "CREATE TABLE here (n integer); INSERT INTO here VALUES (1), (2)");
    assert_eq!(postgres.psql(&one, "SELECT n, n + 1 FROM here ORDER BY n"), "1|2\n2|3");
    assert!(!postgres.try_psql(&two, "SELECT n FROM here").status.success());
    assert_eq!(postgres.psql(&two, "SHOW fsync"), "on");
    assert_eq!(postgres.psql(&two, "SHOW synchronous_commit"), "on");
}

#[test]
fn a_database_that_was_killed_has_what_it_committed() {
    if !postgres::is_there_or_skip() {
        return;
    }
    let set = vec!["max_wal_senders=3".to_owned()];
    let postgres = Cluster::start(postgres::Options { set });
    assert_eq!(postgres.psql("postgres", "SHOW max_wal_senders"), "3");
    let database = postgres.fresh_database();
    postgres.psql(&database, "CREATE TABLE kept (n integer)");
    for round in 1..=3 {
        postgres.psql(&database, &format!("INSERT INTO kept VALUES ({round})"));
        postgres.kill_nine();
        assert!(!postgres.try_psql(&database, "SELECT 1").status.success());
        postgres.start_again();
        assert_eq!(postgres.psql(&database, "SELECT count(*) FROM kept"), round.to_string());
    }
}

#[test]
fn a_paused_database_keeps_its_connections_and_answers_when_it_is_resumed() {
    if !postgres::is_there_or_skip() {
        return;
    }
    let postgres = Cluster::start(postgres::Options::default());
    let address = SocketAddr::from(([127, 0, 0, 1], postgres.port()));
    // SSLRequest, which a server without TLS answers with one letter
    let ask = || {
        let mut socket = TcpStream::connect(address).expect("the kernel accepts");
        socket.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).expect("a request");
        socket
    };
    postgres.pause();
    let mut socket = ask();
    let mut letter = [0];
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let waited = socket.read(&mut letter).expect_err("it is frozen").kind();
    assert!(matches!(waited, ErrorKind::WouldBlock | ErrorKind::TimedOut), "{waited}");
    postgres.resume();
    socket.set_read_timeout(Some(crate::harness::PATIENCE)).unwrap();
    assert_eq!((socket.read(&mut letter).unwrap(), &letter), (1, b"N"));
    // it ends frozen as well
    postgres.pause();
}

const TELL: &str = "APC_TESTS_TELL_CLUSTER";

/// What the next test kills.
#[test]
fn a_process_that_has_a_database_and_waits_to_be_killed() {
    if env::var_os(TELL).is_none() {
        return;
    }
    let postgres = Cluster::start(postgres::Options::default());
    let mut stderr = std::io::stderr();
    writeln!(stderr, "cluster={}", postgres.dir().display()).expect("stderr");
    std::io::stdin().read_to_string(&mut String::new()).expect("a pipe");
}

#[test]
fn a_killed_test_process_leaves_no_database_behind() {
    if !postgres::is_there_or_skip() {
        return;
    }
    let name = "harness_works::a_process_that_has_a_database_and_waits_to_be_killed";
    let mut process = Command::new(env::current_exe().expect("this binary"))
        .args(["--exact", name, "--nocapture"])
        .env(TELL, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("this binary");
    let mut told = Vec::new();
    let stderr = process.stderr.as_mut().expect("a pipe");
    let dir = eventually("it has a database", || {
        let mut some = [0; 256];
        let length = stderr.read(&mut some).expect("a pipe");
        assert!(length > 0, "it ended: {}", String::from_utf8_lossy(&told));
        told.extend(&some[..length]);
        let text = String::from_utf8_lossy(&told);
        let line = text.strip_suffix('\n')?.lines().find_map(|line| line.strip_prefix("cluster="));
        line.map(str::to_owned)
    });
    let dir = Path::new(&dir);
    let pid = std::fs::read_to_string(dir.join("data/postmaster.pid")).expect("it runs");
    let server = Path::new("/proc").join(pid.lines().next().expect("a number"));
    assert!(server.exists());
    process.kill().expect("it runs");
    process.wait().expect("it ends");
    eventually("the folder is gone", || (!dir.exists()).then_some(()));
    // one that nobody reaps has no folder of its own any more
    eventually("the server is gone", || server.join("cwd").read_link().is_err().then_some(()));
}
