//! The tools that work on a whole store, through the binary: verify, migrate-store, reconcile, backup, migrate.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Output,
    sync::Arc,
};

use alipayplus_cancel::{
    domain::{
        key::Partitions,
        payment::{Funds, Payment as Known},
        reconcile::{self, Conflict, Kept, Outcome},
        result::ResultCode,
    },
    engine::HashRing,
    store::sqlite::Sqlite,
    upkeep::{lines, verify},
};
use rusqlite::Connection;
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    harness::{
        grpc::{Grant, Grpc, Payment, wire},
        postgres,
        service::{Options, Service, Store, command, furnish, run},
        unique,
    },
    values::granted,
};

fn folder() -> TempDir {
    tempfile::Builder::new().prefix("apc-it-").tempdir().unwrap()
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[track_caller]
fn ended_with(output: &Output, status: i32) -> String {
    let told = told(output);
    assert_eq!(output.status.code(), Some(status), "{told}");
    assert!(!told.contains("panicked"), "{told}");
    told
}

/// A service on a file, whatever the usual store is.
fn embedded() -> Options {
    // a client that is not asked anything does not hear that it should leave
    Options { store: Store::Embedded, ..Options::set(["shutdown.grace=100ms"]) }
}

/// A tool with the settings of a folder.
fn tool(dir: &Path, words: &[&str]) -> Output {
    let settings = dir.join("settings.toml");
    run(&[words, &["--config", settings.to_str().unwrap()]].concat())
}

/// What `verify --json` counts.
fn verified(dir: &Path) -> (bool, Value) {
    let output = tool(dir, &["verify", "--json"]);
    let report: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", told(&output)));
    assert_eq!(output.status.code(), Some(i32::from(report["clean"] != true)), "{report}");
    (report["clean"] == true, report)
}

#[track_caller]
fn clean(dir: &Path) {
    let (clean, report) = verified(dir);
    assert!(clean, "{report:#}");
}

/// One of everything: paid, cancelled in every way, money returned, tokens rotated, revoked and cancelled.
fn live(grpc: &Grpc) {
    for n in 0..20 {
        let payment = Payment::new();
        match n % 5 {
            0 => {}
            1 => drop(grpc.record(&payment, payment.initiated())),
            2 => drop(grpc.record(&payment, payment.failed())),
            _ => drop(grpc.record(&payment, payment.succeeded())),
        }
        grpc.cancel_payment(payment.cancel()).expect("SUCCESS");
        if n % 5 == 1 {
            grpc.record(&payment, payment.succeeded());
        }
        if n % 5 == 3 {
            grpc.record_fund_return(returned(&payment)).unwrap();
        }
    }
    let paid = Payment::new();
    grpc.record(&paid, paid.succeeded());
    for n in 0..5 {
        let grant = Grant::new();
        let [old, new] = ["old", "new"].map(unique);
        grpc.record_token(grant.token(&old)).unwrap();
        let mut exchange = grant.token(&new);
        exchange.replaces = Some(old.clone());
        grpc.record_token(exchange).unwrap();
        match n {
            0 => drop(grpc.cancel_token(grant.cancel(&old)).expect("SUCCESS")),
            1 => drop(grpc.revoke_authorization(grant.revoke()).unwrap()),
            _ => {}
        }
    }
    let stranger = Grant::new().cancel(&unique("stranger"));
    grpc.cancel_token(stranger).expect("INVALID_TOKEN");
}

fn returned(payment: &Payment) -> wire::RecordFundReturnRequest {
    wire::RecordFundReturnRequest {
        psp_id: payment.psp.clone(),
        payment_request_id: payment.request.clone(),
        reference: format!("T-{}", payment.request),
    }
}

/// The database of a service that has ended, in a folder with settings of its own.
fn copy(service: &Service) -> (TempDir, PathBuf) {
    let dir = folder();
    furnish(dir.path(), "");
    for file in ["state.db", "state.db-wal", "state.db.anchor"] {
        let from = service.dir().join(file);
        if from.exists() {
            fs::copy(from, dir.path().join(file)).unwrap();
        }
    }
    let path = dir.path().join("state.db");
    (dir, path)
}

#[test]
fn verify_finds_every_kind_of_contradiction() {
    let mut service = Service::start(embedded());
    live(&service.grpc());
    let output = ended_with(&tool(service.dir(), &["verify"]), 1);
    assert!(output.contains("a running service has the store"), "{output}");
    service.terminate();
    clean(service.dir());

    // a cancelled payment whose money is due, by its columns
    let due = "state = 4 AND money = 4 AND (psp_id, payment_request_id) IN (SELECT psp_id, payment_request_id FROM payment WHERE money = 4 LIMIT 1)";
    // the last event of some partition, of a kind
    let last = |kind: u8| {
        format!(
            "kind = {kind} AND (partition, position) IN (SELECT e.partition, h.position FROM partition_head h
             JOIN event e ON e.partition = h.partition AND e.position = h.position WHERE e.kind = {kind} LIMIT 1)"
        )
    };
    let removed = |kind: u8| {
        let last = last(kind);
        format!(
            "CREATE TEMP TABLE gone AS SELECT partition FROM event WHERE {last};
             DELETE FROM event WHERE {last};
             UPDATE partition_head SET position = position - 1 WHERE partition IN (SELECT partition FROM gone)"
        )
    };
    for (kind, tamper) in [
        ("damaged", format!("UPDATE payment SET return_since = return_since + 1 WHERE {due}")),
        (
            "impossible_state",
            format!("UPDATE payment SET verdict = 2, checksum = NULL WHERE {due}"),
        ),
        ("payment_cancelled_missing", removed(1)),
        ("fund_return_due_missing", removed(2)),
        ("authorization_revoked_missing", removed(3)),
        (
            "event_without_state",
            "UPDATE payment SET state = 2, verdict = NULL, verdict_at = NULL, verdict_by = NULL, verdict_trace = NULL,
             money = NULL, checksum = NULL WHERE money = 3"
                .to_owned(),
        ),
        (
            "event_twice",
            "CREATE TEMP TABLE two AS SELECT e.* FROM event e JOIN partition_head h ON e.partition = h.partition AND e.position = h.position LIMIT 1;
             UPDATE two SET position = position + 1, checksum = NULL;
             INSERT INTO event SELECT * FROM two;
             UPDATE partition_head SET position = position + 1 WHERE partition IN (SELECT partition FROM two)"
                .to_owned(),
        ),
        (
            "amount_differs",
            "UPDATE event SET amount = amount + 1, checksum = NULL WHERE (partition, position) IN
             (SELECT partition, position FROM event WHERE kind = 2 LIMIT 1)"
                .to_owned(),
        ),
        (
            "amount_differs",
            format!("UPDATE payment SET return_amount = return_amount + 1, checksum = NULL WHERE {due}"),
        ),
        (
            "position_gap",
            "UPDATE event SET position = position + 1, checksum = NULL WHERE (partition, position) IN
             (SELECT partition, position FROM partition_head WHERE position > 0 LIMIT 1)"
                .to_owned(),
        ),
        (
            "position_gap",
            "UPDATE partition_head SET position = position + 1 WHERE partition = 0".to_owned(),
        ),
        (
            "event_in_other_partition",
            "CREATE TEMP TABLE two AS SELECT e.* FROM event e JOIN partition_head h ON e.partition = h.partition AND e.position = h.position LIMIT 1;
             UPDATE partition_head SET position = position + 1 WHERE partition =
             (SELECT min(partition) FROM partition_head WHERE partition NOT IN (SELECT partition FROM two));
             INSERT INTO event SELECT h.partition, h.position, kind, psp_id, subject_id, acquirer_id, amount, currency,
             cause, decided_at, result, pass_through_info, trace, NULL FROM two, partition_head h WHERE h.partition =
             (SELECT min(partition) FROM partition_head WHERE partition NOT IN (SELECT partition FROM two))"
                .to_owned(),
        ),
        (
            "purged_too_many",
            "UPDATE partition_head SET position = position + 3, purged = position + 3 WHERE partition =
             (SELECT partition FROM partition_head WHERE position = 0 LIMIT 1)"
                .to_owned(),
        ),
        (
            "grant_missing",
            "DELETE FROM grants WHERE (psp_id, authorization_id) IN
             (SELECT psp_id, authorization_id FROM grants WHERE revoked_at IS NULL LIMIT 1)"
                .to_owned(),
        ),
        (
            "replacement_missing",
            "UPDATE token SET replaced_by = zeroblob(32), checksum = NULL WHERE replaced_by IS NOT NULL".to_owned(),
        ),
        (
            "grant_stands",
            "UPDATE grants SET revoked_at = NULL, revoked_cause = NULL, revoked_trace = NULL, checksum = NULL".to_owned(),
        ),
        (
            "consumer_ahead",
            "INSERT INTO consumer (name) VALUES ('executor');
             INSERT INTO consumer_progress (name, partition, acknowledged) VALUES ('executor', 0, 1000)"
                .to_owned(),
        ),
    ] {
        let (dir, path) = copy(&service);
        let database = Connection::open(&path).unwrap();
        database.pragma_update(None, "foreign_keys", false).unwrap();
        database.execute_batch(&tamper).unwrap_or_else(|error| panic!("{kind}: {error}"));
        drop(database);
        let (clean, report) = verified(dir.path());
        assert!(!clean && report["counts"][kind].as_u64().is_some_and(|count| count > 0), "{kind}: {report:#}");
        let output = ended_with(&tool(dir.path(), &["verify"]), 1);
        assert!(output.contains(&format!("{kind}: ")), "{output}");
    }
}

#[test]
fn verify_wants_a_store_that_is_there() {
    let dir = folder();
    furnish(dir.path(), "");
    let output = ended_with(&tool(dir.path(), &["verify"]), 1);
    assert!(output.contains("there is no such file"), "{output}");
    assert!(!dir.path().join("state.db").exists());
    ended_with(&run(&["verify"]), 2);
}

// ---------------------------------------------------------------- backup, restore, reconcile

const TERMS: &str = r#""acquirerId":"a","paymentAmount":{"value":"1999","currency":"EUR"},"initiatedAt":"2026-05-28T12:00:00Z""#;

/// A payment as a backup has it.
fn known(state: &str, more: &str) -> Known {
    let terms = if state == "unknown" { String::new() } else { format!(",{TERMS}") };
    let more = if more.is_empty() { String::new() } else { format!(",{more}") };
    let text = format!(r#"{{"pspId":"p","paymentRequestId":"r","state":"{state}"{terms}{more}}}"#);
    lines::payment(&text).expect(&text).history
}

/// An event as a consumer kept it.
fn event(kind: &str, more: &str) -> Kept {
    let more = if more.is_empty() { String::new() } else { format!(",{more}") };
    let text = format!(
        r#"{{"kind":"{kind}","pspId":"p","paymentRequestId":"r","authorizationId":"r","decidedAt":"2026-05-28T13:00:00Z"{more}}}"#
    );
    lines::event(&text).expect(&text)
}

#[test]
fn every_row_of_a_reconciled_payment() {
    use Conflict::{AnsweredOtherwise, OtherAcquirer, OtherAmount, Refunded, ReturnedTwice};
    use Outcome::{Conflict as No, Restored, True};

    let cancelled = r#""cancelledAt":"2026-05-28T13:00:00Z""#;
    let due = &*format!(r#"{cancelled},"fundReturn":{{"state":"due"}}"#);
    let back = &*format!(
        r#"{cancelled},"fundReturn":{{"state":"returned","returnedAt":"2026-05-28T13:00:01Z","reference":"T-1"}}"#
    );
    let refused = &*format!(r#"{cancelled},"resultCode":"CANCEL_WINDOW_EXCEED""#);
    let refund = |state: &str| {
        format!(
            r#""refunds":[{{"refundId":"1","amount":{{"value":"5","currency":"EUR"}},"state":"{state}"}}]"#
        )
    };
    let (done, reserved) = (&*refund("succeeded"), &*refund("reserved"));
    let (sum, less) = (
        r#""amount":{"value":"1999","currency":"EUR"}"#,
        r#""amount":{"value":"5","currency":"EUR"}"#,
    );
    let one = &*format!(r#"{sum},"fundReturn":{{"reference":"T-1"}}"#);
    let two = &*format!(r#"{sum},"fundReturn":{{"reference":"T-2"}}"#);
    let (cancel, money) = ("PaymentCancelled", "FundReturnDue");
    let (none, held, return_due, returned) =
        (Funds::None, Funds::Held, Funds::ReturnDue, Funds::Returned);
    // what the backup knows; what was kept; what comes of it, and how many events are appended
    for (row, before, kept, outcome, funds, appended) in vec![
        (
            1,
            Some(known("succeeded", "")),
            event(cancel, r#""acquirerId":"b""#),
            No(OtherAcquirer),
            held,
            0,
        ),
        (2, None, event(cancel, ""), Restored, none, 1),
        (2, Some(known("initiated", "")), event(cancel, ""), Restored, none, 1),
        (2, Some(known("failed", "")), event(cancel, ""), Restored, none, 1),
        (3, Some(known("succeeded", refused)), event(cancel, ""), No(AnsweredOtherwise), held, 0),
        (4, Some(known("succeeded", done)), event(cancel, ""), No(Refunded), held, 0),
        (5, Some(known("succeeded", "")), event(money, less), No(OtherAmount), held, 0),
        (6, Some(known("succeeded", "")), event(cancel, ""), Restored, return_due, 2),
        (6, Some(known("succeeded", reserved)), event(cancel, ""), Restored, return_due, 2),
        (6, Some(known("succeeded", "")), event(money, sum), Restored, return_due, 2),
        (6, Some(known("succeeded", "")), event(money, one), Restored, returned, 2),
        (7, None, event(money, sum), Restored, return_due, 2),
        (7, Some(known("initiated", "")), event(money, less), Restored, return_due, 2),
        (7, Some(known("unknown", cancelled)), event(money, sum), Restored, return_due, 1),
        (7, Some(known("unknown", cancelled)), event(money, one), Restored, returned, 1),
        (8, Some(known("succeeded", due)), event(money, less), No(OtherAmount), return_due, 0),
        (9, Some(known("succeeded", due)), event(money, one), Restored, returned, 0),
        (10, Some(known("succeeded", back)), event(money, two), No(ReturnedTwice), returned, 0),
        (11, Some(known("succeeded", back)), event(money, one), True, returned, 0),
        (11, Some(known("succeeded", due)), event(cancel, ""), True, return_due, 0),
        (11, Some(known("unknown", cancelled)), event(cancel, ""), True, none, 0),
    ] {
        let name = format!("row {row}: {before:?}\n<- {kept:?}");
        let decision = reconcile::decide_payment(before.as_ref(), &kept);
        assert_eq!(decision.outcome, outcome, "{name}");
        assert_eq!(decision.events.len(), appended, "{name}");
        let after = decision.next.or(before).expect("a payment");
        assert_eq!(after.funds(), funds, "{name}\n-> {after:?}");
        if let No(_) = outcome {
            continue;
        }
        let answer = after.verdict().expect("a recorded result");
        assert_eq!(answer.code, ResultCode::Success, "{name}");
        assert_eq!(answer.at, kept.event.at, "{name}");
        let again = reconcile::decide_payment(Some(&after), &kept);
        assert_eq!((again.outcome, again.next, again.events.len()), (True, None, 0), "{name}");
    }
}

#[test]
fn every_row_of_a_reconciled_authorization() {
    let kept = event("AuthorizationRevoked", r#""acquirerId":"102218800000001234""#);
    let (nobodys, others) =
        (event("AuthorizationRevoked", ""), event("AuthorizationRevoked", r#""acquirerId":"b""#));
    for (known, kept, outcome) in [
        (Some(granted()), &others, Outcome::Conflict(Conflict::OtherAcquirer)),
        (None, &nobodys, Outcome::Conflict(Conflict::NobodysAuthorization)),
        (Some(granted()), &nobodys, Outcome::Restored),
        (Some(granted()), &kept, Outcome::Restored),
        (None, &kept, Outcome::Restored),
    ] {
        let decision = reconcile::decide_authorization(known.as_ref(), kept);
        assert_eq!(decision.outcome, outcome);
        let Some(next) = decision.next else { continue };
        assert_eq!(next.revoked.as_ref().map(|revoked| revoked.at), Some(kept.event.at));
        assert_eq!(decision.events, std::slice::from_ref(&kept.event));
        let again = reconcile::decide_authorization(Some(&next), kept);
        assert_eq!((again.outcome, again.next), (Outcome::True, None));
    }
}

/// The events as a consumer keeps them, with what its executor did.
fn follow(service: &Service, returned: &[&Payment]) -> Vec<String> {
    let to = service.grpc_arguments();
    let to: Vec<&str> = to.iter().map(String::as_str).collect();
    let words = ["feed", "tail", "--consumer", "audit", "--from", "start", "--json", "--once"];
    let output = run(&[&words[..], &to].concat());
    assert_eq!(output.status.code(), Some(0), "{}", told(&output));
    let add = |line: &str| {
        let mut event: Value = serde_json::from_str(line).expect(line);
        let id = event["paymentRequestId"].as_str().unwrap_or_default().to_owned();
        let due = event["kind"] == "EVENT_KIND_FUND_RETURN_DUE";
        if due && returned.iter().any(|payment| payment.request == id) {
            event["fundReturn"] = serde_json::json!({ "reference": format!("T-{id}") });
        }
        event.to_string()
    };
    String::from_utf8_lossy(&output.stdout).lines().map(add).collect()
}

/// The events of a database, without their places.
fn kept(db: &Path) -> BTreeSet<String> {
    let columns = "kind, psp_id, subject_id, acquirer_id, amount, currency, cause, decided_at, result, hex(trace),
         hex(pass_through_info)";
    let database = Connection::open(db).unwrap();
    let mut select = database.prepare(&format!("SELECT {columns} FROM event")).unwrap();
    let rows = select.query_map([], |row| {
        let column =
            |at| row.get::<_, rusqlite::types::Value>(at).map(|value| format!("{value:?}"));
        Ok((0..11).map(column).collect::<Result<Vec<_>, _>>()?.join("|"))
    });
    rows.unwrap().collect::<Result<_, _>>().unwrap()
}

fn funds(grpc: &Grpc, payment: &Payment) -> wire::Funds {
    grpc.story(payment).payment.unwrap().funds()
}

#[test]
fn after_a_restore_and_reconcile_every_earlier_answer_is_given_again_and_no_money_is_due_twice() {
    let mut service = Service::start(embedded());
    let grpc = service.grpc();
    live(&grpc);
    let [paid, reserved, initiated, due, late] = [(); 5].map(|()| Payment::new());
    for payment in [&paid, &reserved, &due] {
        grpc.record(payment, payment.succeeded());
    }
    grpc.record(&reserved, reserved.refund_started("r", 5));
    grpc.record(&initiated, initiated.initiated());
    grpc.cancel_payment(due.cancel()).expect("SUCCESS");
    grpc.cancel_payment(late.cancel()).expect("SUCCESS");
    let [standing, ended] = [(); 2].map(|()| Grant::new());
    grpc.record_token(standing.token("reconcile-1")).unwrap();
    grpc.record_token(ended.token("reconcile-2")).unwrap();

    let backup = service.dir().join("backup.db");
    let words = ["backup", "--to", backup.to_str().unwrap()];
    ended_with(&tool(service.dir(), &words), 0);
    let again = ended_with(&tool(service.dir(), &words), 1);
    assert!(again.contains("is there already"), "{again}");
    // a copy whose tokens nobody can look up with these settings is not called good
    let settings = fs::read_to_string(service.settings()).unwrap();
    let settings = settings.replace("token-hash.hex", "another-hash.hex");
    fs::write(service.dir().join("another.toml"), settings).unwrap();
    fs::write(service.dir().join("another-hash.hex"), "6b".repeat(32)).unwrap();
    let (another, useless) = (service.dir().join("another.toml"), service.dir().join("useless.db"));
    let told =
        run(&["backup", "--config", another.to_str().unwrap(), "--to", useless.to_str().unwrap()]);
    let told = ended_with(&told, 1);
    assert!(told.contains("tokens.hash_key_files lacks") && useless.exists(), "{told}");

    // decided since, answered, and lost
    let [new, unknown] = [(); 2].map(|()| Payment::new());
    grpc.record(&new, new.succeeded());
    grpc.record(&reserved, reserved.refund_failed("r"));
    for payment in [&paid, &reserved, &initiated, &new, &unknown] {
        grpc.cancel_payment(payment.cancel()).expect("SUCCESS");
    }
    grpc.record(&late, late.succeeded());
    for payment in [&due, &paid] {
        grpc.record_fund_return(returned(payment)).unwrap();
    }
    grpc.cancel_token(standing.cancel("reconcile-1")).expect("SUCCESS");
    grpc.revoke_authorization(ended.revoke()).unwrap();
    let all = [&paid, &reserved, &initiated, &due, &late, &new, &unknown];
    let before: Vec<_> = all.iter().map(|payment| funds(&grpc, payment)).collect();
    let events = follow(&service, &[&due, &paid]);
    service.terminate();
    let lost = kept(&service.db_path());
    assert_eq!(events.len(), lost.len());
    clean(service.dir());

    // the disk is lost, the backup is put in its place
    for file in ["state.db", "state.db-wal", "state.db-shm", "state.db.anchor"] {
        drop(fs::remove_file(service.dir().join(file)));
    }
    fs::copy(&backup, service.db_path()).unwrap();
    service.restart();
    let grpc = service.grpc();
    for payment in all {
        assert!(grpc.cancel_payment(payment.cancel()).is_err(), "suspect: U");
    }
    service.terminate();
    clean(service.dir());

    // what the wallet's own books say of the time since the backup
    let books = service.dir().join("books.jsonl");
    let line = serde_json::json!({
        "pspId": new.psp, "paymentRequestId": new.request, "acquirerId": new.acquirer, "state": "succeeded",
        "paymentAmount": { "value": new.amount.to_string(), "currency": "EUR" },
        "initiatedAt": jiff::Timestamp::now().to_string(),
    });
    fs::write(&books, line.to_string()).unwrap();
    ended_with(&tool(service.dir(), &["import", "payments", books.to_str().unwrap()]), 0);

    let file = service.dir().join("events.jsonl");
    let reconcile = |more: &[&str]| {
        let words = ["reconcile", "--events", file.to_str().unwrap()];
        tool(service.dir(), &[&words[..], more].concat())
    };
    fs::write(&file, events.join("\n")).unwrap();
    ended_with(&reconcile(&[]), 2);

    // a contradiction stops it before anything is written
    let other = |line: &String| line.replace(r#""value":"1999""#, r#""value":"5""#);
    let wrong: Vec<_> = events.iter().map(other).chain(["{}".to_owned()]).collect();
    fs::write(&file, wrong.join("\n")).unwrap();
    let output = ended_with(&reconcile(&["--yes"]), 1);
    assert!(
        output.contains("another amount") && output.contains("nothing was written"),
        "{output}"
    );
    assert!(
        output.contains(&format!("events.jsonl:{}: kind: must be set", wrong.len())),
        "{output}"
    );

    // nothing, or one event less than a consumer was told of, and it stops too
    fs::write(&file, "").unwrap();
    let output = ended_with(&reconcile(&["--yes"]), 1);
    assert!(output.contains("every event") && output.contains("--accept-gaps"), "{output}");

    fs::write(&file, events.join("\n")).unwrap();
    let output = ended_with(&reconcile(&["--dry-run"]), 0);
    assert!(output.contains("would do: ") && output.contains("2 revocations restored"), "{output}");
    let output = ended_with(&reconcile(&["--yes"]), 0);
    let done = "5 cancels, 4 fund returns due, 2 fund returns made and 2 revocations restored, \
                11 events appended, 0 passed over";
    assert!(output.contains(done), "{output}");
    assert!(output.contains("of the feed begins"), "{output}");
    assert!(output.contains("the store is suspect"), "{output}");
    clean(service.dir());
    assert_eq!(kept(&service.db_path()), lost, "the same events, each once");

    // again: everything is true
    let output = ended_with(&reconcile(&["--yes"]), 0);
    assert!(
        output.contains("0 cancels, 0 fund returns due, 0 fund returns made and 0 revocations"),
        "{output}"
    );

    service.restart();
    let grpc = service.grpc();
    for (payment, before) in all.into_iter().zip(before) {
        let answer = grpc.cancel_payment(payment.cancel()).expect("SUCCESS");
        assert!(answer.repeated, "{payment:?}");
        assert_eq!(funds(&grpc, payment), before, "{payment:?}");
    }
    for (grant, token) in [(&standing, "reconcile-1"), (&ended, "reconcile-2")] {
        assert!(!grpc.introspect_token(grant.introspect(token)).unwrap().active);
        grpc.cancel_token(grant.cancel(token)).expect("SUCCESS");
    }
    service.terminate();
    clean(service.dir());
}

// ---------------------------------------------------------------- migrate-store, migrate

fn sqlite(path: &Path) -> String {
    format!("sqlite://{}", path.display())
}

#[test]
fn a_store_is_moved_into_another_which_answers_as_it_did() {
    let mut service = Service::start(embedded());
    let grpc = service.grpc();
    live(&grpc);
    let paid = Payment::new();
    grpc.record(&paid, paid.succeeded());
    grpc.cancel_payment(paid.cancel()).expect("SUCCESS");
    let grant = Grant::new();
    grpc.record_token(grant.token("moved-1")).unwrap();

    let new = folder();
    furnish(new.path(), "");
    let to = new.path().join("state.db");
    let [from_url, to_url] = [service.db_path(), to.clone()].map(|path| sqlite(&path));
    let words = ["migrate-store", "--from", &from_url, "--to", &to_url];
    let output = ended_with(&tool(service.dir(), &words), 1);
    assert!(output.contains("a running service has the store"), "{output}");
    service.terminate();
    ended_with(&tool(service.dir(), &["migrate-store", "--from", &from_url, "--to", &from_url]), 2);
    ended_with(&tool(service.dir(), &["migrate-store", "--from", "nothing", "--to", &to_url]), 2);

    // one that was interrupted goes on
    begin_to_fill(service.dir(), &service.db_path(), &to);
    let output = ended_with(&tool(service.dir(), &words), 0);
    assert!(
        output.contains("moved and compared: 22 payments, 6 authorizations, 12 tokens"),
        "{output}"
    );
    assert!(output.contains(&format!("store.url = \"{to_url}\"")), "{output}");
    clean(new.path());
    let output = ended_with(&tool(service.dir(), &words), 1);
    assert!(output.contains("not fresh"), "{output}");
    let (_, report) = verified(service.dir());
    assert!(
        report["suspect"].as_str().is_some_and(|why| why.contains("migrate-store")),
        "{report}"
    );

    let moved = Service::start_in(new, Options { onboarding: true, ..embedded() });
    let grpc = moved.grpc();
    assert!(grpc.cancel_payment(paid.cancel()).expect("SUCCESS").repeated);
    assert_eq!(funds(&grpc, &paid), wire::Funds::ReturnDue);
    assert!(grpc.introspect_token(grant.introspect("moved-1")).unwrap().active);
    // no onboarding: it was complete
    grpc.cancel_payment(Payment::new().cancel()).expect("SUCCESS");
}

/// The store itself, of a folder's settings.
fn open(dir: &Path, path: &Path) -> Sqlite {
    let key = fs::read(dir.join("token-hash.hex")).unwrap();
    let ring = HashRing::new(&[key]).unwrap();
    Sqlite::open(path, Partitions::DEFAULT, ring.fingerprints()).unwrap().0
}

#[test]
fn verify_comes_to_the_same_however_few_events_it_may_hold_at_once() {
    let mut service = Service::start(embedded());
    live(&service.grpc());
    service.terminate();
    let database = Connection::open(service.db_path()).unwrap();
    let tamper = "UPDATE event SET amount = amount + 1, checksum = NULL WHERE kind = 2;
         UPDATE partition_head SET position = position + 1 WHERE partition IN (0, 63)";
    database.execute_batch(tamper).unwrap();
    drop(database);
    let sqlite = Arc::new(open(service.dir(), &service.db_path()));
    let store: Arc<dyn alipayplus_cancel::store::Store> = Arc::<Sqlite>::clone(&sqlite);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let report = |most| {
        let mut report =
            runtime.block_on(verify::verify_within(&store, most, &mut |_, _| {})).unwrap();
        report.findings.sort_by_key(|finding| finding.told.clone());
        report.counts.sort_unstable();
        report
    };
    let whole = report(verify::EVENTS_IN_MEMORY);
    assert!(whole.events > 20 && !whole.is_clean());
    for most in [0, 1, 3, 10] {
        assert_eq!(report(most), whole, "{most} at once");
    }
    sqlite.close();
}

/// What a copy that was interrupted leaves: the first page.
fn begin_to_fill(dir: &Path, from: &Path, to: &Path) {
    use alipayplus_cancel::store::{Cursor, Store as _};

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (from, to) = (open(dir, from), open(dir, to));
        let page = from.page(Cursor::Payments(None), 5).await.unwrap();
        to.fill(page).await.unwrap();
        from.close();
        to.close();
    });
}

#[test]
fn a_store_is_moved_to_postgres_and_back() {
    let Some(cluster) = postgres::or_skip() else { return };
    let mut service = Service::start(embedded());
    live(&service.grpc());
    let paid = Payment::new();
    service.grpc().cancel_payment(paid.cancel()).expect("SUCCESS");
    service.terminate();
    let (from, there) = (sqlite(&service.db_path()), cluster.fresh_database());
    let output =
        ended_with(&tool(service.dir(), &["migrate-store", "--from", &from, "--to", &there]), 0);
    assert!(output.contains("22 payments"), "{output}");
    let verify = ["verify", "--json"];
    let settings = service.settings();
    let on_postgres = |words: &[&str]| {
        command(words)
            .args(["--config", settings.to_str().unwrap()])
            .env("ALIPAYPLUS_CANCEL__STORE__URL", &there)
            .output()
            .unwrap()
    };
    ended_with(&on_postgres(&verify), 0);
    ended_with(&on_postgres(&["migrate", "--check"]), 0);
    ended_with(&on_postgres(&["backup", "--to", "/nowhere"]), 2);

    let new = folder();
    furnish(new.path(), "");
    let back = sqlite(&new.path().join("state.db"));
    ended_with(&tool(service.dir(), &["migrate-store", "--from", &there, "--to", &back]), 0);
    clean(new.path());
    let moved = Service::start_in(new, Options { onboarding: true, ..embedded() });
    assert!(moved.grpc().cancel_payment(paid.cancel()).expect("SUCCESS").repeated);
}

#[test]
fn migrate_says_whether_the_schema_is_up_to_date_and_brings_it_there() {
    let dir = folder();
    furnish(dir.path(), "");
    let output = ended_with(&tool(dir.path(), &["migrate", "--check"]), 1);
    assert!(output.contains("there is no schema yet"), "{output}");
    assert!(!dir.path().join("state.db").exists());
    let output = ended_with(&tool(dir.path(), &["migrate"]), 0);
    assert!(output.contains("it is 2 now") || output.contains("now"), "{output}");
    ended_with(&tool(dir.path(), &["migrate", "--check"]), 0);
    ended_with(&tool(dir.path(), &["migrate"]), 0);
    clean(dir.path());
    fs::write(dir.path().join("state.db"), "no database, but text".repeat(100)).unwrap();
    ended_with(&tool(dir.path(), &["migrate", "--check"]), 1);
}
