//! The embedded store's files, damaged, cut, copied and put together wrongly: it refuses them, or is suspect, or answers
//! right. A commit that was answered is never lost without a word.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use alipayplus_cancel::{
    domain::{
        consumer::{Consumer, Progress as Place},
        key::Partitions,
        result::ResultCode,
        token::Token,
    },
    store::{
        Changes, Error, Kept, StandingChange, Store, Wanted,
        sqlite::{BackupError, OpenError, Sqlite},
    },
};
use rusqlite::Connection;
use tempfile::TempDir;

use crate::{
    store_contract::{block_on, commit, following, keep, write},
    values::{
        authorization_key, cancelled, consumer_name, due, granted, initiated, live, payment_key,
        token_key, verdict,
    },
};

const KEY: [u8; 16] = [1; 16];
/// What belongs to a running store, its lock aside.
const FILES: [&str; 3] = ["state.db", "state.db-wal", "state.db.anchor"];

fn folder() -> TempDir {
    TempDir::new().expect("a folder")
}

fn file(dir: &TempDir) -> PathBuf {
    dir.path().join("state.db")
}

fn anchor(dir: &TempDir) -> PathBuf {
    dir.path().join("state.db.anchor")
}

fn open_at(path: &Path) -> Result<Arc<Sqlite>, OpenError> {
    Sqlite::open(path, Partitions::DEFAULT, &vec![KEY]).map(|(sqlite, _)| Arc::new(sqlite))
}

fn open(dir: &TempDir) -> Result<Arc<Sqlite>, OpenError> {
    open_at(&file(dir))
}

fn store(sqlite: &Arc<Sqlite>) -> Arc<dyn Store> {
    Arc::<Sqlite>::clone(sqlite)
}

/// Closes in order.
fn shut(sqlite: Arc<Sqlite>) {
    sqlite.close();
    drop(sqlite);
}

fn sql(path: &Path, text: &str) {
    let connection = Connection::open(path).expect("a database");
    connection.execute_batch(text).expect("legal SQL");
}

/// Commits one payment, with its event.
async fn add(sqlite: &Arc<Sqlite>, nth: usize) {
    let key = payment_key(&format!("p{nth}"));
    let events = vec![cancelled(&key)];
    let changes = Changes { payments: vec![(key, due(1_000))], events, ..Changes::default() };
    write(&store(sqlite), changes).await.expect("a commit");
}

/// A store with so many commits in its log, as a kill would leave it: its files are copied while it runs.
async fn killed(commits: usize) -> TempDir {
    let (running, left) = (folder(), folder());
    let sqlite = open(&running).expect("a new database");
    for nth in 0..commits {
        add(&sqlite, nth).await;
    }
    copy(&running, &left, &FILES);
    left
}

fn copy(from: &TempDir, to: &TempDir, names: &[&str]) {
    for name in names {
        fs::copy(from.path().join(name), to.path().join(name)).expect("a copy");
    }
}

/// How many of the payments are there, each as it was written.
async fn count(sqlite: &Arc<Sqlite>, commits: usize) -> Result<usize, Error> {
    let mut there = 0;
    for nth in 0..commits {
        if let Some(payment) = sqlite.payment(payment_key(&format!("p{nth}"))).await? {
            assert_eq!(payment, due(1_000), "p{nth} is not what was written");
            there += 1;
        }
    }
    Ok(there)
}

async fn suspect(sqlite: &Arc<Sqlite>) -> Option<String> {
    sqlite.standing().await.expect("a standing").suspect
}

async fn assert_decides_nothing(sqlite: &Arc<Sqlite>) {
    let refused = commit(&store(sqlite), Wanted::default(), |_| panic!("it must not")).await;
    assert!(matches!(refused, Err(Error::Suspect(_))), "{refused:?}");
}

fn findings(path: &Path) -> Vec<String> {
    Sqlite::check(path, |_| {}).expect("it can be read").findings
}

#[test]
fn what_a_kill_leaves_is_whole_and_known_as_an_unclean_stop() {
    block_on(async {
        let left = killed(20).await;
        let sqlite = open(&left).expect("nothing is lost");
        assert!(sqlite.stopped_uncleanly());
        assert_eq!(suspect(&sqlite).await, None);
        assert_eq!(count(&sqlite, 20).await.expect("reads"), 20);
        shut(sqlite);
        let sqlite = open(&left).expect("nothing is lost");
        assert!(!sqlite.stopped_uncleanly());
        shut(sqlite);
    });
}

#[test]
fn a_log_that_is_cut_or_gone_is_refused_and_left_as_it_is() {
    const COMMITS: usize = 12;
    let whole = block_on(killed(COMMITS));
    let log = fs::read(whole.path().join("state.db-wal")).expect("a log");
    let mut refused = 0;
    for part in 0..8 {
        let left = folder();
        copy(&whole, &left, &FILES);
        let cut = &log[..log.len() * part / 8];
        let name = left.path().join("state.db-wal");
        fs::write(&name, cut).expect("a log");
        if part == 0 {
            fs::remove_file(&name).expect("the log");
        }
        for _ in 0..2 {
            let error = open(&left).map(drop).expect_err("commits are lost");
            let OpenError::Lost { last, noted, .. } = &error else { panic!("{part}: {error:?}") };
            assert!(last < noted, "{error}");
            assert!(error.to_string().contains("reconcile"), "{error}");
            // people may find more in it than SQLite does
            if part > 0 {
                assert_eq!(fs::read(&name).expect("the log").get(..cut.len()), Some(cut));
            }
        }
        if part > 0 {
            let found = findings(&file(&left));
            assert!(found.iter().any(|finding| finding.contains("are lost")), "{found:?}");
        }
        refused += 1;
    }
    assert_eq!(refused, 8);
}

/// One flipped bit in the middle of the log makes SQLite drop all that follows, without a word.
#[test]
fn a_flipped_bit_in_the_log_never_loses_a_commit_without_a_word() {
    const COMMITS: usize = 8;
    let whole = block_on(killed(COMMITS));
    let log = fs::read(whole.path().join("state.db-wal")).expect("a log");
    let (mut refused, mut right) = (0, 0);
    for part in 0..48 {
        let left = folder();
        copy(&whole, &left, &FILES);
        let mut flipped = log.clone();
        flipped[log.len() * part / 48 + part % 7] ^= 1 << (part % 8);
        fs::write(left.path().join("state.db-wal"), flipped).expect("a log");
        match open(&left) {
            Err(error) => {
                assert!(matches!(error, OpenError::Lost { .. }), "{part}: {error:?}");
                refused += 1;
            }
            Ok(sqlite) => block_on(async {
                assert_eq!(count(&sqlite, COMMITS).await.expect("reads"), COMMITS, "{part}");
                assert_eq!(suspect(&sqlite).await, None);
                right += 1;
            }),
        }
    }
    println!("{refused} refused, {right} unharmed");
    assert!(refused > 24, "most of the log is commits");
}

#[test]
fn a_store_that_was_refused_opens_as_suspect_once_its_anchor_is_moved_away() {
    block_on(async {
        let left = killed(6).await;
        fs::remove_file(left.path().join("state.db-wal")).expect("a log");
        let lost = open(&left).map(drop).expect_err("commits are lost");
        assert!(matches!(lost, OpenError::Lost { .. }), "{lost:?}");
        // `reconcile` does not go past it either
        let done = StandingChange::Reconciled("nobody looked".to_owned());
        let lost = Sqlite::change_standing_of(&file(&left), &done).expect_err("commits are lost");
        assert!(matches!(lost, OpenError::Lost { .. }), "{lost:?}");

        fs::rename(anchor(&left), left.path().join("evidence")).expect("the anchor");
        let sqlite = open(&left).expect("people want to see what is there");
        let why = suspect(&sqlite).await.expect("it is suspect");
        assert!(why.contains("anchor"), "{why}");
        assert_decides_nothing(&sqlite).await;
        shut(sqlite);
        let sqlite = open(&left).expect("a restart changes nothing");
        assert_eq!(suspect(&sqlite).await, Some(why));
        sqlite.change_standing(done).await.expect("a change");
        add(&sqlite, 0).await;
        shut(sqlite);
        let sqlite = open(&left).expect("it has an anchor again");
        assert_eq!(suspect(&sqlite).await, None);
        shut(sqlite);
        assert!(findings(&file(&left)).is_empty());
    });
}

#[test]
fn a_stale_anchor_is_harmless() {
    block_on(async {
        let (dir, early) = (folder(), folder());
        let sqlite = open(&dir).expect("a new database");
        for nth in 0..10 {
            add(&sqlite, nth).await;
            if nth == 3 {
                copy(&dir, &early, &["state.db.anchor"]);
            }
        }
        shut(sqlite);
        copy(&early, &dir, &["state.db.anchor"]);
        let sqlite = open(&dir).expect("all that the anchor notes is there");
        assert_eq!(suspect(&sqlite).await, None);
        assert_eq!(count(&sqlite, 10).await.expect("reads"), 10);
        shut(sqlite);
    });
}

#[test]
fn an_older_database_beside_a_newer_anchor_is_refused() {
    block_on(async {
        let (dir, early) = (folder(), folder());
        let sqlite = open(&dir).expect("a new database");
        add(&sqlite, 0).await;
        shut(sqlite);
        copy(&dir, &early, &["state.db"]);
        let sqlite = open(&dir).expect("a database");
        add(&sqlite, 1).await;
        shut(sqlite);
        copy(&early, &dir, &["state.db"]);
        let lost = open(&dir).map(drop).expect_err("a commit is lost");
        assert!(matches!(lost, OpenError::Lost { .. }), "{lost:?}");
        // nor does a new one begin in its place
        fs::remove_file(file(&dir)).expect("the database");
        let lost = open(&dir).map(drop).expect_err("all commits are lost");
        assert!(matches!(lost, OpenError::Lost { .. }), "{lost:?}");
    });
}

#[test]
fn the_anchor_of_another_history_is_refused() {
    block_on(async {
        let (dir, other) = (folder(), folder());
        for dir in [&dir, &other] {
            let sqlite = open(dir).expect("a new database");
            for nth in 0..5 {
                add(&sqlite, nth).await;
            }
            shut(sqlite);
        }
        copy(&other, &dir, &["state.db.anchor"]);
        let error = open(&dir).map(drop).expect_err("the same commits of another store");
        assert!(matches!(error, OpenError::OtherHistory { .. }), "{error:?}");
    });
}

#[test]
fn a_copy_without_its_anchor_and_one_with_a_damaged_anchor_are_suspect() {
    block_on(async {
        for damage in [None, Some(Vec::new()), Some(vec![0xa5; 8192])] {
            let dir = folder();
            let sqlite = open(&dir).expect("a new database");
            add(&sqlite, 0).await;
            shut(sqlite);
            match damage {
                None => fs::remove_file(anchor(&dir)).expect("the anchor"),
                Some(bytes) => fs::write(anchor(&dir), bytes).expect("the anchor"),
            }
            assert_eq!(findings(&file(&dir)).len(), 1);
            let sqlite = open(&dir).expect("people want to see what is there");
            assert!(suspect(&sqlite).await.expect("a reason").contains("anchor"));
            assert_decides_nothing(&sqlite).await;
            assert_eq!(count(&sqlite, 1).await.expect("a read"), 1);
            shut(sqlite);
        }
    });
}

/// `reconcile` before the first start must not leave the start to find out.
#[test]
fn a_copy_that_is_reconciled_while_nothing_runs_was_suspect_before() {
    block_on(async {
        let dir = folder();
        let sqlite = open(&dir).expect("a new database");
        add(&sqlite, 0).await;
        shut(sqlite);
        fs::remove_file(anchor(&dir)).expect("the anchor");
        let done = StandingChange::Reconciled("compared".to_owned());
        let standing = Sqlite::change_standing_of(&file(&dir), &done).expect("a change");
        assert!(standing.epoch > 1 && standing.suspect.is_none(), "{standing:?}");
        let lines: Vec<i64> = {
            let connection = Connection::open(file(&dir)).expect("a database");
            let mut select = connection.prepare("SELECT change FROM journal ORDER BY id").unwrap();
            select.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
        };
        assert_eq!(lines, [2, 3], "suspect, then reconciled");
        let sqlite = open(&dir).expect("a database");
        assert_eq!(suspect(&sqlite).await, None);
        add(&sqlite, 1).await;
        shut(sqlite);
    });
}

#[test]
fn standing_changed_by_another_process_is_noticed_with_the_next_commit() {
    block_on(async {
        let dir = folder();
        let sqlite = open(&dir).expect("a new database");
        let change = |change| Sqlite::change_standing_of(&file(&dir), &change).expect("a change");
        change(StandingChange::Suspect("an operator said so".to_owned()));
        assert_decides_nothing(&sqlite).await;
        assert!(change(StandingChange::Reconciled("it was a drill".to_owned())).epoch > 1);
        add(&sqlite, 0).await;
        shut(sqlite);
        let sqlite = open(&dir).expect("the chain goes on across processes");
        assert_eq!(count(&sqlite, 1).await.expect("a read"), 1);
        shut(sqlite);
        assert!(findings(&file(&dir)).is_empty());
    });
}

#[test]
fn a_consumer_ahead_of_its_partition_makes_the_store_suspect_until_it_is_brought_back() {
    block_on(async {
        let dir = folder();
        let sqlite = open(&dir).expect("a new database");
        let name = consumer_name("executor");
        let place = |acknowledged| Place { acknowledged, stream: None };
        let consumer =
            Consumer { progress: [(3, place(0))].into_iter().collect(), ..Consumer::default() };
        keep(&store(&sqlite), &name, &consumer).await;
        shut(sqlite);
        sql(&file(&dir), "UPDATE consumer_progress SET acknowledged = 7;");
        assert_eq!(findings(&file(&dir)).len(), 1);
        let sqlite = open(&dir).expect("people want to see what is there");
        let why = suspect(&sqlite).await.expect("an event that was acknowledged is lost");
        assert!(why.contains("executor") && why.contains('7'), "{why}");
        let done = StandingChange::Reconciled("compared".to_owned());
        sqlite.change_standing(done).await.expect("a change");
        let consumer = following(&store(&sqlite), &name).await.consumer.expect("it is known");
        assert_eq!(consumer.progress[&3].acknowledged, 0);
        shut(sqlite);
        let sqlite = open(&dir).expect("a database");
        assert_eq!(suspect(&sqlite).await, None);
        shut(sqlite);
    });
}

/// A store with a row of every kind, closed.
async fn furnished() -> TempDir {
    let dir = folder();
    let sqlite = open(&dir).expect("a new database");
    let grant = authorization_key("grant");
    let dead = Token::DeadOnArrival(verdict(ResultCode::InvalidToken));
    let changes = Changes {
        payments: vec![(payment_key("good"), due(1_000)), (payment_key("bad"), initiated(1))],
        authorizations: vec![(grant.clone(), granted())],
        tokens: vec![(token_key(0, 1), live(&grant)), (token_key(0, 2), dead)],
        events: vec![cancelled(&payment_key("good"))],
    };
    write(&store(&sqlite), changes).await.expect("a commit");
    shut(sqlite);
    dir
}

#[test]
fn a_row_that_is_not_what_was_written_is_damage_though_it_makes_sense() {
    block_on(async {
        let dir = furnished().await;
        assert!(findings(&file(&dir)).is_empty());
        let event = cancelled(&payment_key("good"));
        let partition = payment_key("good").partition(Partitions::DEFAULT);
        for damage in [
            "UPDATE payment SET amount = amount + 1 WHERE payment_request_id = 'bad'",
            "UPDATE grants SET acquirer_id = 'another'",
            "UPDATE token SET expires_at = 9 WHERE kind = 1",
            "UPDATE token SET verdict_at = 1 WHERE kind IS NULL",
            "UPDATE event SET decided_at = 1",
            "UPDATE payment SET checksum = checksum + 1 WHERE payment_request_id = 'bad'",
            // rows of other keys, each whole in itself
            "UPDATE payment SET checksum = (SELECT checksum FROM payment WHERE payment_request_id = 'good')
             WHERE payment_request_id = 'bad'",
        ] {
            let left = folder();
            copy(&dir, &left, &["state.db", "state.db.anchor"]);
            sql(&file(&left), damage);
            let found = findings(&file(&left));
            assert_eq!(found.len(), 1, "{damage}: {found:?}");
            let sqlite = open(&left).expect("rows are read when they are wanted");
            let read = [
                sqlite.payment(payment_key("bad")).await.map(drop),
                sqlite.token(vec![token_key(0, 1)]).await.map(drop),
                sqlite.token(vec![token_key(0, 2)]).await.map(drop),
                sqlite
                    .events(vec![alipayplus_cancel::store::Place { partition, position: 0 }], 9)
                    .await
                    .map(|events| assert_eq!(events[0].event, event)),
            ];
            let damaged = read.iter().filter(|read| matches!(read, Err(Error::Damaged(_)))).count();
            assert_eq!(damaged, 1, "{damage}: {read:?}");
            assert_eq!(read.iter().filter(|read| read.is_ok()).count(), 3);
            assert!(sqlite.payment(payment_key("good")).await.expect("a read").is_some());
            shut(sqlite);
        }
    });
}

/// Every byte of the values is flipped in the file itself; what is read is right, or known to be damaged.
#[test]
fn a_flipped_byte_of_a_row_is_never_answered_from() {
    block_on(async {
        let dir = furnished().await;
        let whole = fs::read(file(&dir)).expect("a database");
        let value = b"EUR";
        let places: Vec<usize> = whole
            .windows(value.len())
            .enumerate()
            .filter(|(_, window)| window == value)
            .map(|(place, _)| place)
            .collect();
        assert!(places.len() >= 3, "two payments have a currency, one of them two");
        for place in places {
            for bit in 0..8 {
                let left = folder();
                copy(&dir, &left, &["state.db.anchor"]);
                let mut flipped = whole.clone();
                flipped[place] ^= 1 << bit;
                fs::write(file(&left), flipped).expect("a database");
                let sqlite = open(&left).expect("rows are read when they are wanted");
                let mut damaged = 0;
                for (id, written) in [("good", due(1_000)), ("bad", initiated(1))] {
                    match sqlite.payment(payment_key(id)).await {
                        Ok(payment) => assert_eq!(payment, Some(written)),
                        Err(Error::Damaged(_)) => damaged += 1,
                        Err(error) => panic!("{error:?}"),
                    }
                }
                assert_eq!(damaged, 1, "byte {place}");
                shut(sqlite);
                assert!(!findings(&file(&left)).is_empty());
            }
        }
    });
}

/// What no start can see: a key that is flipped makes its row unknown.
#[test]
fn a_flipped_key_is_found_by_a_check() {
    let dir = block_on(furnished());
    let whole = fs::read(file(&dir)).expect("a database");
    // the payment's own row is the last of them: its index entry stands elsewhere
    let places = whole.windows(4).enumerate().filter(|(_, window)| window == b"good");
    let mut seen = 0;
    for (place, _) in places {
        let left = folder();
        copy(&dir, &left, &["state.db.anchor"]);
        let mut flipped = whole.clone();
        flipped[place + 3] ^= 1;
        fs::write(file(&left), flipped).expect("a database");
        assert!(!findings(&file(&left)).is_empty(), "byte {place}");
        seen += 1;
    }
    assert!(seen >= 3, "row, index and event");
}

#[test]
fn a_gap_in_the_events_and_a_broken_chain_are_found_by_a_check() {
    block_on(async {
        let dir = folder();
        let sqlite = open(&dir).expect("a new database");
        for nth in 0..6 {
            add(&sqlite, nth).await;
        }
        shut(sqlite);
        for damage in [
            "DELETE FROM event WHERE subject_id = 'p3'",
            "UPDATE partition_head SET position = position + 1 WHERE partition = 5",
            "DELETE FROM chain WHERE id = 3",
            "UPDATE chain SET changes = zeroblob(32) WHERE id = 4",
            "UPDATE chain SET hash = zeroblob(32) WHERE id = 2",
            "DROP INDEX payment_outstanding; CREATE INDEX payment_outstanding ON payment (money);
             DELETE FROM meta WHERE key = 'nothing';
             UPDATE event SET psp_id = 'another' WHERE subject_id = 'p1'",
        ] {
            let left = folder();
            copy(&dir, &left, &["state.db", "state.db.anchor"]);
            sql(&file(&left), damage);
            assert!(!findings(&file(&left)).is_empty(), "{damage}");
        }
        let mut steps = Vec::new();
        let checked = Sqlite::check(&file(&dir), |at| steps.push(at.step)).expect("a check");
        assert!(checked.findings.is_empty(), "{:?}", checked.findings);
        assert_eq!((checked.rows, checked.without_checksum), (12, 0));
        assert_eq!(checked.last_commit, 7, "the hash key, and six");
        assert_eq!(checked.commits, 7);
        assert!(!checked.open_or_stopped_uncleanly);
        steps.dedup();
        assert_eq!(steps.len(), 8, "{steps:?}");
    });
}

/// What holds for the store as a whole has no row's checksum; its journal says what it has to be.
#[test]
fn a_standing_that_was_changed_and_a_hash_key_that_is_primary_no_more_are_found() {
    block_on(async {
        let dir = folder();
        let sqlite = open(&dir).expect("a new database");
        add(&sqlite, 0).await;
        let found = || findings(&file(&dir));
        assert_eq!(found(), Vec::<String>::new());
        // onboarding, suspect, reconciled, and each of them found as it should be
        for change in [
            StandingChange::ImportComplete,
            StandingChange::Suspect("a test".to_owned()),
            StandingChange::Reconciled("nothing".to_owned()),
            StandingChange::Suspect("again".to_owned()),
        ] {
            sqlite.change_standing(change).await.expect("a change");
            assert_eq!(found(), Vec::<String>::new());
        }
        shut(sqlite);
        let flip = |name: &str, sql_of_value: &str, what: &str| {
            let set = format!("UPDATE meta SET value = {sql_of_value} WHERE key = '{name}'");
            let before: i64 = Connection::open(file(&dir))
                .and_then(|database| {
                    let select = "SELECT value FROM meta WHERE key = ?1";
                    database.query_row(select, [name], |row| row.get(0))
                })
                .expect("an entry");
            sql(&file(&dir), &set);
            let told = found();
            assert!(told.len() == 1 && told[0].contains(what), "{told:?}");
            sql(&file(&dir), &format!("UPDATE meta SET value = {before} WHERE key = '{name}'"));
            assert_eq!(found(), Vec::<String>::new());
        };
        flip("epoch", "value + 4096", "epoch is");
        flip("onboarding", "1", "onboarding is 1");
        flip("suspect", "0", "suspect is 0");
        sql(&file(&dir), "UPDATE journal SET change = 9 WHERE change = 1");
        assert!(found().iter().any(|finding| finding.contains("change 9")), "{:?}", found());
        sql(&file(&dir), "UPDATE journal SET change = 1 WHERE change = 9");

        sql(&file(&dir), "UPDATE hash_key SET is_primary = 0");
        let told = found();
        assert!(told.len() == 1 && told[0].contains("primary"), "{told:?}");
        let to = dir.path().join("backup.db");
        let refused = Sqlite::backup(&file(&dir), &to, |_| {}).expect_err("it is damaged");
        assert!(matches!(refused, BackupError::Damaged(_)), "{refused:?}");
        assert!(!to.exists());
    });
}

#[test]
fn a_database_of_the_first_schema_is_brought_up_to_date_and_keeps_everything() {
    block_on(async {
        let dir = folder();
        {
            let connection = Connection::open(file(&dir)).expect("a database");
            connection
                .execute_batch(include_str!("../../src/store/sqlite/schema_1.sql"))
                .expect("the first schema");
            connection
                .execute_batch(
                    "PRAGMA application_id = 0x41502b43; PRAGMA user_version = 1;
                     INSERT INTO meta VALUES ('least_schema', 1), ('partitions', 64), ('epoch', 1), ('onboarding', 0);
                     INSERT INTO payment (psp_id, payment_request_id, state, acquirer_id, recorded_at, amount, currency,
                     initiated_at) VALUES ('1022172000000000001', 'p', 1, '1022188000000000001', 1, 1999, 'EUR', 5);",
                )
                .expect("a store of the first schema");
            for partition in 0..64 {
                let insert = "INSERT INTO partition_head (partition, position) VALUES (?1, 0)";
                connection.execute(insert, [partition]).expect("a head");
            }
        }
        let old = Sqlite::check(&file(&dir), |_| {}).expect_err("a check changes nothing");
        assert!(matches!(old, OpenError::TooOld { schema: 1, .. }), "{old:?}");
        let sqlite = open(&dir).expect("it is brought up to date");
        assert_eq!(suspect(&sqlite).await, None);
        assert!(!sqlite.standing().await.expect("a standing").onboarding);
        let read = sqlite.payment(payment_key("p")).await.expect("a read");
        assert_eq!(read, Some(initiated(1)));
        shut(sqlite);
        let checked = Sqlite::check(&file(&dir), |_| {}).expect("a check");
        assert!(checked.findings.is_empty(), "{:?}", checked.findings);
        assert_eq!((checked.rows, checked.without_checksum), (1, 1));
        let sqlite = open(&dir).expect("a database");
        let changes =
            Changes { payments: vec![(payment_key("p"), initiated(2))], ..Changes::default() };
        write(&store(&sqlite), changes).await.expect("a commit");
        shut(sqlite);
        let checked = Sqlite::check(&file(&dir), |_| {}).expect("a check");
        assert_eq!((checked.rows, checked.without_checksum), (1, 0));
    });
}

#[test]
fn a_backup_of_a_busy_store_is_whole_and_suspect_until_it_is_reconciled() {
    block_on(async {
        let (dir, safe) = (folder(), folder());
        let to = safe.path().join("backup.db");
        let sqlite = open(&dir).expect("a new database");
        for nth in 0..40 {
            add(&sqlite, nth).await;
        }
        let busy = {
            let sqlite = Arc::clone(&sqlite);
            tokio::spawn(async move {
                for nth in 40..400 {
                    add(&sqlite, nth).await;
                }
            })
        };
        let (from, into) = (file(&dir), to.clone());
        let made = tokio::task::spawn_blocking(move || {
            let mut steps = Vec::new();
            Sqlite::backup(&from, &into, |at| steps.push(at)).map(|()| steps)
        });
        let steps = made.await.expect("no panic").expect("a backup");
        let copied = steps.iter().rfind(|at| at.step == "copy").expect("progress");
        assert_eq!(Some(copied.done), copied.total);
        busy.await.expect("the service goes on");
        shut(sqlite);

        assert_eq!(fs::read_dir(safe.path()).expect("a folder").count(), 1, "one file");
        let mode = fs::metadata(&to).expect("the backup").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(findings(&to).is_empty(), "a backup has no anchor until it is opened");
        let before = fs::read(&to).expect("the backup");
        let again = Sqlite::backup(&file(&dir), &to, |_| {}).expect_err("it is there already");
        assert!(matches!(again, BackupError::Exists(_)), "{again:?}");
        assert!(fs::read(&to).expect("the backup") == before, "no file is overwritten");

        let sqlite = open_at(&to).expect("a store");
        let why = suspect(&sqlite).await.expect("it lacks what was decided since");
        assert!(why.contains("backup of 20"), "{why}");
        assert_decides_nothing(&sqlite).await;
        assert!(count(&sqlite, 400).await.expect("reads") >= 40, "all of before it began");
        assert!(!sqlite.stopped_uncleanly());
        let done = StandingChange::Reconciled("the executor was asked".to_owned());
        assert!(sqlite.change_standing(done).await.expect("a change").epoch > 1);
        add(&sqlite, 400).await;
        shut(sqlite);
        let sqlite = open_at(&to).expect("a store");
        assert_eq!(suspect(&sqlite).await, None);
        shut(sqlite);
    });
}

#[test]
fn a_backup_of_a_stopped_store_a_damaged_one_and_none_at_all() {
    block_on(async {
        let (dir, safe) = (furnished().await, folder());
        let to = |name: &str| safe.path().join(name);
        Sqlite::backup(&file(&dir), &to("stopped"), |_| {}).expect("a backup");
        // from what a kill left
        let left = killed(7).await;
        Sqlite::backup(&file(&left), &to("killed"), |_| {}).expect("a backup");
        let sqlite = open_at(&to("killed")).expect("a store");
        assert_eq!(count(&sqlite, 7).await.expect("reads"), 7);
        shut(sqlite);
        // and it took nothing from there
        let sqlite = open(&left).expect("what a kill left");
        assert_eq!(count(&sqlite, 7).await.expect("reads"), 7);
        shut(sqlite);

        sql(&file(&dir), "UPDATE payment SET amount = 1 WHERE payment_request_id = 'bad'");
        let damaged = Sqlite::backup(&file(&dir), &to("damaged"), |_| {}).expect_err("damage");
        assert!(matches!(&damaged, BackupError::Damaged(found) if found.len() == 1), "{damaged:?}");
        let lost = killed(3).await;
        fs::remove_file(lost.path().join("state.db-wal")).expect("a log");
        let lost = Sqlite::backup(&file(&lost), &to("lost"), |_| {}).expect_err("commits are lost");
        assert!(matches!(lost, BackupError::Store(OpenError::Lost { .. })), "{lost:?}");
        let none = Sqlite::backup(&to("none"), &to("of none"), |_| {}).expect_err("nothing");
        assert!(matches!(none, BackupError::Store(OpenError::Open { .. })), "{none:?}");
        let nowhere = safe.path().join("absent").join("backup");
        let nowhere = Sqlite::backup(&file(&dir), &nowhere, |_| {}).expect_err("no such folder");
        assert!(matches!(nowhere, BackupError::Write { .. }), "{nowhere:?}");

        let mut names: Vec<_> = fs::read_dir(safe.path())
            .expect("a folder")
            .map(|entry| entry.expect("a file").file_name().into_string().expect("a name"))
            .filter(|name| !name.starts_with("killed"))
            .collect();
        names.sort();
        assert_eq!(names, ["stopped"], "what failed leaves nothing");
    });
}

#[test]
fn an_acknowledgement_is_anchored_like_any_commit() {
    block_on(async {
        let running = folder();
        let sqlite = open(&running).expect("a new database");
        let name = consumer_name("executor");
        let decide = Box::new(|_| Kept::Consumer(Consumer::default()));
        sqlite.follow(name, decide).await.expect("a change");
        let left = folder();
        copy(&running, &left, &["state.db", "state.db.anchor"]);
        let lost = open(&left).map(drop).expect_err("the consumer is lost with the log");
        assert!(matches!(lost, OpenError::Lost { .. }), "{lost:?}");
        shut(sqlite);
    });
}
