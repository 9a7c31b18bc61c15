//! What is peculiar to PostgreSQL as the store: migrations from many replicas, a replication that is not in force, and
//! servers that are gone, frozen, read-only or full.

use std::{fs, process::Command, sync::Arc, thread, time::Duration};

use alipayplus_cancel::{
    domain::{
        consumer::{Consumer, ConsumerName},
        key::Partitions,
    },
    store::{
        Changes, Error, Kept, StandingChange, Store,
        postgres::{ConnectError, Durability, OpenError, Options as Database, Postgres},
    },
};
use tonic::Code;

use crate::{
    harness::{
        eventually,
        grpc::{Grant, Payment, wire::ResultCode},
        json::Connection,
        postgres::{self, Cluster, Options as Settings},
        service::{self, Options, Service},
    },
    store_contract::{block_on, shared::options, write},
    values::{cancelled, initiated, payment_key},
};

const RING: [[u8; 16]; 2] = [[1; 16], [2; 16]];

async fn migrated(url: &str) -> Database {
    let options = options(url);
    Postgres::migrate(&options).await.expect("a schema");
    options
}

async fn opened(options: &Database) -> Arc<dyn Store> {
    Arc::new(Postgres::open(options, &RING[..1]).await.expect("a database").0)
}

fn on(url: &str) -> Options {
    Options { store: service::Store::Postgres(url.to_owned()), ..Options::default() }
}

fn some_event(name: &str) -> Changes {
    let key = payment_key(name);
    Changes {
        events: vec![cancelled(&key)],
        payments: vec![(key, initiated(1))],
        ..Changes::default()
    }
}

#[test]
fn any_number_of_replicas_migrate_an_empty_database_at_once() {
    let Some(cluster) = postgres::or_skip() else { return };
    let url = cluster.fresh_database();
    block_on(async {
        let mut replicas = tokio::task::JoinSet::new();
        for _ in 0..12 {
            let options = options(&url);
            replicas.spawn(async move {
                Postgres::migrate(&options).await.expect("a schema");
                let (store, primary) = Postgres::open(&options, &RING).await.expect("a database");
                assert_eq!(primary, 0);
                store.heads().await.expect("heads").len()
            });
        }
        while let Some(partitions) = replicas.join_next().await {
            assert_eq!(partitions.expect("no panic"), 64);
        }
        let (found, needed) = Postgres::schema(&options(&url)).await.expect("a schema");
        assert_eq!(found, needed);
        Postgres::migrate(&options(&url)).await.expect("it may be repeated");
    });
    assert_eq!(cluster.psql(&url, "SELECT count(*) FROM hash_key WHERE is_primary"), "1");
}

#[test]
fn half_a_migration_is_completed_by_the_next_one() {
    let Some(cluster) = postgres::or_skip() else { return };
    let url = cluster.fresh_database();
    let half = "CREATE TABLE meta (only_row integer PRIMARY KEY CHECK (only_row = 1), schema integer NOT NULL,
         least_schema integer NOT NULL, partitions integer NOT NULL, epoch bigint NOT NULL,
         onboarding boolean NOT NULL, filling boolean NOT NULL, suspect bytea);
         INSERT INTO meta VALUES (1, 0, 0, 64, 1, true, false, NULL); GRANT ALL ON meta TO wallet;
         ALTER TABLE meta OWNER TO wallet;";
    cluster.psql(&url, half);
    block_on(async {
        let store = opened(&migrated(&url).await).await;
        write(&store, some_event("p")).await.expect("it serves");
    });
}

#[test]
fn a_database_that_does_not_fit_is_refused_with_what_to_do() {
    let Some(cluster) = postgres::or_skip() else { return };
    block_on(async {
        let url = cluster.fresh_database();
        let refused = Postgres::open(&options(&url), &RING).await.err().expect("no schema");
        assert!(matches!(refused, OpenError::NotMigrated { found: 0, .. }), "{refused:?}");
        assert!(refused.is_configuration() && refused.to_string().contains("migrate"));
        assert_eq!(Postgres::schema(&options(&url)).await.expect("none").0, 0);

        let database = migrated(&url).await;
        opened(&database).await;
        let more = Partitions::new(128).expect("a number");
        let other = Database { partitions: more, ..database.clone() };
        let refused = Postgres::open(&other, &RING).await.err().expect("another number");
        assert!(matches!(refused, OpenError::Partitions { found: 64, wanted: 128 }), "{refused:?}");
        let refused = Postgres::open(&database, &RING[1..]).await.err().expect("a lost key");
        assert!(matches!(refused, OpenError::HashKeyMissing { .. }), "{refused:?}");
        let grown = [RING[1], RING[0]];
        let (_, primary) = Postgres::open(&database, &grown).await.expect("a ring that grew");
        assert_eq!(primary, 1, "a new key does not become primary");

        cluster.psql(&url, "UPDATE meta SET schema = 7");
        opened_with(&database, &grown).await;
        cluster.psql(&url, "UPDATE meta SET least_schema = 7");
        let refused = Postgres::open(&database, &grown).await.err().expect("a newer schema");
        assert!(matches!(refused, OpenError::TooNew { schema: 7, .. }), "{refused:?}");

        let absent = options(&cluster.url("no_such_database"));
        let refused = Postgres::open(&absent, &RING).await.err().expect("no database");
        assert!(refused.is_configuration(), "{refused:?}");
        let nobody = options("postgres://wallet@127.0.0.1:1/test");
        let refused = Postgres::open(&nobody, &RING).await.err().expect("no server");
        assert!(!refused.is_configuration(), "it may come yet: {refused:?}");
    });
}

async fn opened_with(options: &Database, ring: &[[u8; 16]]) {
    Postgres::open(options, ring).await.expect("an older program runs beside a newer one");
}

#[test]
fn durability_that_was_asked_for_is_in_force_or_nothing_is_decided() {
    let Some(cluster) = postgres::or_skip() else { return };
    block_on(async {
        let url = cluster.fresh_database();
        let local = migrated(&url).await;
        let replicated = Database { durability: Durability::Replicated, ..local.clone() };
        // there is no standby
        let store = opened(&replicated).await;
        let refused = write(&store, some_event("p")).await;
        assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");

        let name = url.rsplit('/').next().expect("a name");
        cluster.psql(&url, &format!("ALTER DATABASE {name} SET synchronous_commit = off"));
        let refused = Postgres::open(&replicated, &RING).await.err().expect("commits do not wait");
        let why = matches!(refused, OpenError::Connect(ConnectError::NotReplicated { .. }));
        assert!(why && refused.is_configuration(), "{refused:?}");
        // on the disk at least, whatever the database's default is
        let store = opened(&local).await;
        write(&store, some_event("p")).await.expect("a commit");
    });
}

#[test]
fn a_commit_whose_wait_for_its_standby_was_cancelled_is_unknown() {
    if !postgres::is_there_or_skip() {
        return;
    }
    let cluster = Cluster::start(Settings::default());
    let url = cluster.fresh_database();
    let store = block_on(async { opened(&migrated(&url).await).await });
    waiting_for_nobody(&cluster);
    block_on(async {
        let committing = Arc::clone(&store);
        let commit = tokio::spawn(async move { write(&committing, some_event("p")).await });
        // the server then answers COMMIT with success and a warning
        let cancelled = tokio::task::spawn_blocking(move || {
            let cancel = "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
            eventually("it waits for a standby", || {
                (cluster.psql("postgres", cancel) != "0").then_some(())
            });
            cluster
        });
        let answered = commit.await.expect("no panic");
        assert!(matches!(answered, Err(Error::CommitUnknown(_))), "{answered:?}");
        let cluster = cancelled.await.expect("no panic");
        // and whoever asks again waits as well, for what can be seen there already
        assert_eq!(cluster.psql(&url, "SELECT count(*) FROM payment"), "1");
        let reading = Arc::clone(&store);
        let mut read = tokio::spawn(async move { reading.payment(payment_key("p")).await });
        let early = tokio::time::timeout(Duration::from_millis(300), &mut read).await;
        assert!(early.is_err(), "not answered before a standby has it: {early:?}");
        cluster.psql("postgres", "ALTER SYSTEM RESET synchronous_standby_names");
        cluster.psql("postgres", "SELECT pg_reload_conf()");
        assert_eq!(read.await.expect("no panic").expect("a read"), Some(initiated(1)));
    });
}

/// A server with a standby in its settings that is none, and a way to call the wait off.
fn waiting_for_nobody(cluster: &Cluster) {
    cluster.psql("postgres", "ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
    cluster.psql("postgres", "SELECT pg_reload_conf()");
    // another process of the server's hears of it, in its own time
    let waiting =
        "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    eventually("a standby is waited for", || {
        std::thread::scope(|scope| {
            let write = scope
                .spawn(|| cluster.psql("postgres", "SELECT pg_logical_emit_message(true, '', '')"));
            loop {
                let is_over = write.is_finished();
                if cluster.psql("postgres", waiting) != "0" {
                    return Some(());
                }
                if is_over {
                    return None;
                }
            }
        })
    });
}

fn wait_until_somebody_waits(cluster: &Cluster) {
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    eventually("it waits for a standby", || {
        (cluster.psql("postgres", waiting) != "0").then_some(())
    });
}

#[test]
fn a_commit_that_was_let_go_because_nobody_is_waited_for_any_more_is_unknown() {
    if !postgres::is_there_or_skip() {
        return;
    }
    let cluster = Cluster::start(Settings::default());
    let url = cluster.fresh_database();
    let store = block_on(async {
        let options = Database { durability: Durability::Replicated, ..migrated(&url).await };
        opened(&options).await
    });
    waiting_for_nobody(&cluster);
    block_on(async {
        let commit = tokio::spawn(async move { write(&store, some_event("p")).await });
        let let_go = tokio::task::spawn_blocking(move || {
            wait_until_somebody_waits(&cluster);
            // as Patroni does when the last standby is gone; the server then answers success, without a warning
            cluster.psql("postgres", "ALTER SYSTEM RESET synchronous_standby_names");
            cluster.psql("postgres", "SELECT pg_reload_conf()");
            cluster
        });
        let answered = commit.await.expect("no panic");
        assert!(matches!(answered, Err(Error::CommitUnknown(_))), "{answered:?}");
        drop(let_go.await);
    });
}

#[test]
fn a_warning_cannot_be_silenced_and_the_durability_not_be_turned_off_later() {
    let Some(cluster) = postgres::or_skip() else { return };
    let url = cluster.fresh_database();
    let name = url.rsplit('/').next().expect("a name");
    cluster.psql(&url, &format!("ALTER DATABASE {name} SET client_min_messages = error"));
    let seen = "SELECT string_agg(DISTINCT setting, ',') FROM seen";
    cluster.psql(&url, "CREATE TABLE seen (setting text); GRANT ALL ON seen TO wallet");
    block_on(async {
        let store = opened(&migrated(&url).await).await;
        write(&store, some_event("p")).await.expect("a commit");
        // what a session of the store's has, as its own trigger sees it
        let function = "CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             INSERT INTO seen VALUES (current_setting('client_min_messages')), (current_setting('synchronous_commit'));
             RETURN NEW; END $$; CREATE TRIGGER see BEFORE INSERT ON event FOR EACH ROW EXECUTE FUNCTION see()";
        cluster.psql(&url, function);
        cluster.psql(&url, &format!("ALTER DATABASE {name} SET synchronous_commit = off"));
        write(&store, some_event("q")).await.expect("a commit");
    });
    assert_eq!(cluster.psql(&url, seen), "on,warning");
}

#[test]
fn a_store_that_ends_before_what_was_durable_is_suspect_until_it_is_reconciled() {
    let Some(cluster) = postgres::or_skip() else { return };
    let url = cluster.fresh_database();
    block_on(async {
        let store = opened(&migrated(&url).await).await;
        for _ in 0..3 {
            write(&store, some_event("p")).await.expect("a commit");
        }
        // as a restore under a running replica does, or a failover to a standby that was behind
        cluster.psql(&url, "UPDATE partition_head SET position = 1 WHERE position = 3");
        cluster.psql(&url, "DELETE FROM event WHERE position > 1");
        let refused = write(&store, some_event("p")).await;
        assert!(matches!(refused, Err(Error::Suspect(_))), "{refused:?}");
        assert!(matches!(store.heads().await, Err(Error::Suspect(_))));
        let other = opened(&options(&url)).await;
        let refused = write(&other, some_event("q")).await;
        assert!(
            matches!(refused, Err(Error::Suspect(_))),
            "every replica hears of it: {refused:?}"
        );
        let change = StandingChange::Reconciled("looked at".to_owned());
        assert!(store.change_standing(change).await.expect("a change").epoch > 1);
        for store in [&store, &other] {
            write(store, some_event("p")).await.expect("it serves again");
            let heads = store.heads().await.expect("heads");
            assert!(heads.iter().all(|head| head.position <= 3), "{heads:?}");
        }
    });
}

#[test]
fn what_a_consumer_is_told_waits_for_the_standby_although_nothing_changes() {
    if !postgres::is_there_or_skip() {
        return;
    }
    let cluster = Cluster::start(Settings::default());
    let url = cluster.fresh_database();
    let store = block_on(async { opened(&migrated(&url).await).await });
    let name = || ConsumerName::parse("executor").expect("a name");
    block_on(async {
        let keep = Box::new(|_| Kept::Consumer(Consumer::default()));
        store.follow(name(), keep).await.expect("a change");
        waiting_for_nobody(&cluster);
        let looking = Arc::clone(&store);
        let look = async move { looking.follow(name(), Box::new(|_| Kept::AsItIs)).await };
        let mut look = tokio::spawn(look);
        wait_until_somebody_waits(&cluster);
        let early = tokio::time::timeout(Duration::from_millis(300), &mut look).await;
        assert!(early.is_err(), "not told before a standby has it: {early:?}");
        cluster.psql("postgres", "ALTER SYSTEM RESET synchronous_standby_names");
        cluster.psql("postgres", "SELECT pg_reload_conf()");
        look.await.expect("no panic").expect("a look");
    });
}

fn ready(service: &Service) -> bool {
    let mut connection = Connection::to(service.ports().admin);
    connection.write(b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n");
    connection.answer(true).expect("an answer").status == 200
}

fn json_code(service: &Service, payment: &Payment) -> String {
    let json = service.json();
    let answer = json.cancel_payment(&payment.psp, &payment.acquirer, &payment.request);
    answer.assert_signed();
    assert!(answer.code() == "SUCCESS" || answer.result_status() == "U", "{}", answer.code());
    answer.code()
}

/// Answers S again at some time, and the same to everybody who was told so before.
fn recovers(service: &Service, before: &[Payment]) {
    let payment = Payment::new();
    eventually("it decides again", || (json_code(service, &payment) == "SUCCESS").then_some(()));
    eventually("it is ready", || ready(service).then_some(()));
    for payment in before {
        let again = service.grpc().cancel_payment(payment.cancel()).expect("it is remembered");
        assert!(again.repeated);
        assert_eq!(again.result.expect("a result").result_code(), ResultCode::Success);
    }
}

fn some_successes(service: &Service) -> Vec<Payment> {
    let cancel = |_| {
        let payment = Payment::new();
        service.grpc().cancel_payment(payment.cancel()).expect("SUCCESS");
        payment
    };
    (0..5).map(cancel).collect()
}

#[test]
fn a_frozen_server_holds_nobody_and_a_killed_one_loses_nothing() {
    if !postgres::is_there_or_skip() {
        return;
    }
    let cluster = Cluster::start(Settings::default());
    let service = Service::start(on(&cluster.fresh_database()));
    let before = some_successes(&service);

    // its host still acknowledges every packet
    cluster.pause();
    let asked: Vec<_> = (0..8).map(|_| Payment::new()).collect();
    thread::scope(|scope| {
        for payment in &asked {
            scope.spawn(|| assert_eq!(json_code(&service, payment), "UNKNOWN_EXCEPTION"));
        }
    });
    eventually("it is not ready", || (!ready(&service)).then_some(()));
    let token = Grant::new().introspect("token");
    let status = service.grpc().introspect_token(token).expect_err("nobody knows");
    assert!(matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded), "{status:?}");
    cluster.resume();
    recovers(&service, &before);
    for payment in &asked {
        eventually("it is decided", || (json_code(&service, payment) == "SUCCESS").then_some(()));
    }

    cluster.kill_nine();
    assert_eq!(json_code(&service, &Payment::new()), "UNKNOWN_EXCEPTION");
    cluster.start_again();
    recovers(&service, &before);
    recovers(&service, &asked);
}

#[test]
fn a_service_waits_for_its_database_alive_and_not_ready() {
    if !postgres::is_there_or_skip() {
        return;
    }
    let cluster = Cluster::start(Settings::default());
    let url = cluster.fresh_database();
    let mut service = Service::start(on(&url));
    cluster.kill_nine();
    service.terminate();
    let dir = tempfile::tempdir().expect("a folder");
    service::furnish(dir.path(), "");
    let log = fs::File::create(dir.path().join("log")).expect("a log");
    let mut waiting = service::command(&["serve", "--config"])
        .arg(dir.path().join("settings.toml"))
        .args(["--set", &format!("store.url={url}")])
        .stderr(log)
        .spawn()
        .expect("the binary starts");
    let says = |what: &str| {
        let text = fs::read_to_string(dir.path().join("log")).expect("the log");
        text.contains(what).then_some(())
    };
    eventually("it says what it waits for", || says("the database cannot be used yet"));
    assert!(waiting.try_wait().expect("a child").is_none(), "it lives");
    cluster.start_again();
    eventually("it is ready", || says("\"message\":\"ready\""));
    // and one that waits ends when it is told to
    let id = waiting.id().to_string();
    assert!(Command::new("kill").arg(&id).status().expect("kill").success());
    assert!(waiting.wait().expect("it ends").success());
}

#[test]
fn a_read_only_server_answers_u_and_heals() {
    if !postgres::is_there_or_skip() {
        return;
    }
    let cluster = Cluster::start(Settings::default());
    let url = cluster.fresh_database();
    let service = Service::start(on(&url));
    let before = some_successes(&service);
    let alter = |sql: &str| {
        cluster.psql("postgres", sql);
        cluster.psql("postgres", "SELECT pg_reload_conf()");
    };
    alter("ALTER SYSTEM SET default_transaction_read_only = on");
    eventually("it cannot write", || {
        (json_code(&service, &Payment::new()) == "UNKNOWN_EXCEPTION").then_some(())
    });
    alter("ALTER SYSTEM RESET default_transaction_read_only");
    recovers(&service, &before);
}

struct Mounted(std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
    }
}

#[test]
fn a_full_disk_answers_u_and_room_heals_it() {
    if !postgres::is_there_or_skip() {
        return;
    }
    let cluster = Cluster::start(Settings::default());
    let at = cluster.dir().join("small");
    fs::create_dir(&at).expect("a folder");
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=16m", "tmpfs"]).arg(&at).status();
    if !mounted.is_ok_and(|status| status.success()) {
        println!("skipped: no mount here");
        return;
    }
    let small = Mounted(at);
    assert!(Command::new("chmod").arg("777").arg(&small.0).status().expect("chmod").success());
    let own = Command::new("chown").arg("--reference").arg(cluster.dir()).arg(&small.0).status();
    assert!(own.expect("chown").success());
    let url = cluster.fresh_database();
    let name = url.rsplit('/').next().expect("a name").to_owned();
    cluster.psql("postgres", &format!("CREATE TABLESPACE small LOCATION '{}'", small.0.display()));
    cluster.psql("postgres", &format!("ALTER DATABASE {name} SET TABLESPACE small"));
    let service = Service::start(on(&url));
    let before = some_successes(&service);
    for _ in 0..2 {
        let filled = Command::new("sh")
            .args(["-c", "head -c 64m /dev/zero > \"$0/filler\" 2>/dev/null"])
            .arg(&small.0)
            .status();
        assert!(!filled.expect("sh").success(), "it is full");
        let grpc = service.grpc();
        let mut unknown = 0;
        // rows still fit into the last page of a table
        while unknown < 20 {
            let Err(status) = grpc.cancel_payment(Payment::new().cancel()) else { continue };
            assert_eq!(status.code(), Code::Unavailable, "{status:?}");
            unknown += 1;
        }
        fs::remove_file(small.0.join("filler")).expect("the filler");
        recovers(&service, &before);
    }
}

#[test]
fn a_replica_that_is_frozen_in_its_transactions_keeps_nobody_from_deciding() {
    let Some(cluster) = postgres::or_skip() else { return };
    let url = cluster.fresh_database();
    let frozen = Service::start(on(&url));
    let other = Service::start(on(&url));
    for _ in 0..4 {
        thread::scope(|scope| {
            let load: Vec<_> = (0..16)
                .map(|_| {
                    scope.spawn(|| {
                        let grpc = frozen.grpc();
                        for _ in 0..200 {
                            let request = Payment::new().cancel();
                            let mut request = tonic::Request::new(request);
                            request.set_timeout(Duration::from_secs(4));
                            if grpc.cancel_payment(request).is_err() {
                                break;
                            }
                        }
                    })
                })
                .collect();
            thread::sleep(Duration::from_millis(150));
            frozen.signal("STOP");
            let grpc = other.grpc();
            // of every partition, most likely; the shorter of the two deadlines of Alipay+'s
            for _ in 0..128 {
                let mut request = tonic::Request::new(Payment::new().cancel());
                request.set_timeout(Duration::from_millis(3_500));
                grpc.cancel_payment(request).expect("decided in spite of the frozen one");
            }
            frozen.signal("CONT");
            for load in load {
                load.join().expect("no panic");
            }
        });
    }
}
