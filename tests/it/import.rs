//! The cut-over: every row of docs/semantics.md's table of imports, and a wallet that moves in beside live traffic.

use std::{
    collections::HashMap,
    fmt::Write as _,
    fs,
    io::Write as _,
    path::Path,
    process::{Output, Stdio},
    thread,
};

use alipayplus_cancel::{
    domain::{
        Asked,
        event::{EventCause, EventKind},
        id::TraceId,
        import_payment::{self, Contradiction, FundReturn, ImportPayment, Outcome, Told},
        import_token::{self, ImportToken},
        payment::{Funds, Money, Payment, State},
        result::ResultCode,
        time::Timestamp,
        token::{Token, TokenKind},
    },
    upkeep::lines,
};
use proptest::prelude::*;
use serde_json::Value;

use crate::{
    harness::{
        grpc::{self, Grant, wire},
        service::{Options, Service, command, furnish, run},
        unique,
    },
    values::{acquirer, any_payment, authorization_key, granted, live, token_key},
};

// ---------------------------------------------------------------- the table

const NOW: Timestamp = Timestamp { unix_ms: 2_000_000_000_000 };

fn asked() -> Asked {
    Asked {
        now: NOW,
        clock_agrees: true,
        onboarding: true,
        tombstone_allowed: true,
        by: None,
        trace: None,
    }
}

/// A line of history: the word of its state, and what else it says.
fn line(state: &str, more: &str) -> ImportPayment {
    let terms = if state == "unknown" {
        ""
    } else {
        r#","acquirerId":"a","paymentAmount":{"value":"1999","currency":"EUR"},"initiatedAt":"2026-05-28T12:00:00Z""#
    };
    let more = if more.is_empty() { String::new() } else { format!(",{more}") };
    let text = format!(r#"{{"pspId":"p","paymentRequestId":"r","state":"{state}"{terms}{more}}}"#);
    lines::payment(&text).expect(&text)
}

const CANCELLED: &str = r#""cancelledAt":"2026-05-28T13:00:00Z""#;
const DUE: &str = r#""cancelledAt":"2026-05-28T13:00:00Z","fundReturn":{"state":"due"}"#;
const RETURNED: &str = r#""cancelledAt":"2026-05-28T13:00:00Z","fundReturn":{"state":"returned","returnedAt":"2026-05-28T13:00:01Z","reference":"T-1"}"#;
const RETURNED_ELSE: &str = r#""cancelledAt":"2026-05-28T13:00:00Z","fundReturn":{"state":"returned","returnedAt":"2026-05-28T13:00:01Z","reference":"T-2"}"#;
const REFUSED: &str = r#""cancelledAt":"2026-05-28T13:00:00Z","resultCode":"CANCEL_WINDOW_EXCEED""#;
const RESERVED: &str =
    r#""refunds":[{"refundId":"1","amount":{"value":"5","currency":"EUR"},"state":"reserved"}]"#;
const REFUNDED: &str =
    r#""refunds":[{"refundId":"1","amount":{"value":"5","currency":"EUR"},"state":"succeeded"}]"#;
const RELEASED: &str =
    r#""refunds":[{"refundId":"1","amount":{"value":"5","currency":"EUR"},"state":"failed"}]"#;
const ALL_REFUNDED: &str = r#""refunds":[{"refundId":"2","amount":{"value":"1999","currency":"EUR"},"state":"succeeded"}]"#;

/// The same payment as if this service had decided it.
fn here(state: &str, more: &str) -> Payment {
    let mut payment = line(state, more).history;
    let trace = Some(TraceId([7; 16]));
    match &mut payment.state {
        State::Cancelled(cancelled) => cancelled.verdict.trace = trace,
        State::Succeeded(succeeded) => {
            if let Some(refused) = &mut succeeded.refused {
                refused.trace = trace;
            }
        }
        State::Initiated(_) | State::Failed(_) => {}
    }
    payment
}

#[test]
fn every_row_of_an_imported_payment() {
    use Contradiction::{
        AnsweredOtherwise, CancelledAndRefunded, OtherAcquirer, OtherAmount, RefundEndedOtherwise,
        RefundsTooMuch, ReturnedTwice,
    };
    use Outcome::{AlreadyThere, Kept, Rejected, Taken};

    let other = |member: &str, value: &str| {
        let mut object: Value = serde_json::from_str(
            r#"{"pspId":"p","paymentRequestId":"r","acquirerId":"a","paymentAmount":{"value":"1999","currency":"EUR"},"initiatedAt":"2026-05-28T12:00:00Z","state":"succeeded"}"#,
        )
        .unwrap();
        object[member] = serde_json::from_str(value).unwrap();
        lines::payment(&object.to_string()).unwrap()
    };
    let less = r#"{"value":"1998","currency":"EUR"}"#;
    let (none, due, late) = (None, Some(EventCause::CancelPayment), Some(EventCause::LateSuccess));
    let (nothing, held, return_due, returned) =
        (Funds::None, Funds::Held, Funds::ReturnDue, Funds::Returned);
    for (row, known, line, outcome, funds, event) in vec![
        // 1: unknown here
        (1, None, line("initiated", ""), Taken, nothing, none),
        (1, None, line("failed", ""), Taken, nothing, none),
        (1, None, line("succeeded", REFUNDED), Taken, held, none),
        (1, None, line("succeeded", REFUSED), Taken, held, none),
        (1, None, line("unknown", CANCELLED), Taken, nothing, none),
        (1, None, line("succeeded", RETURNED), Taken, returned, none),
        (1, None, line("succeeded", DUE), Taken, return_due, due),
        // 2: cancelled here, nothing debited as far as was known, and the line says it was
        (2, Some(here("unknown", CANCELLED)), line("succeeded", ""), Taken, return_due, late),
        (2, Some(here("unknown", CANCELLED)), line("succeeded", DUE), Taken, return_due, late),
        (2, Some(here("failed", CANCELLED)), line("succeeded", REFUSED), Taken, return_due, late),
        (
            2,
            Some(here("initiated", CANCELLED)),
            other("acquirerId", "\"b\""),
            Taken,
            return_due,
            late,
        ),
        (
            2,
            Some(here("initiated", CANCELLED)),
            other("paymentAmount", less),
            Taken,
            return_due,
            late,
        ),
        (
            2,
            Some(here("initiated", CANCELLED)),
            line("succeeded", REFUNDED),
            Rejected(CancelledAndRefunded),
            nothing,
            none,
        ),
        (2, Some(here("succeeded", DUE)), other("acquirerId", "\"b\""), Kept, return_due, none),
        // 3, 4: contradictions of what never changes
        (
            3,
            Some(here("succeeded", "")),
            other("acquirerId", "\"b\""),
            Rejected(OtherAcquirer),
            held,
            none,
        ),
        (
            4,
            Some(here("succeeded", "")),
            other("paymentAmount", less),
            Rejected(OtherAmount),
            held,
            none,
        ),
        // 5: the same
        (
            5,
            Some(here("succeeded", REFUNDED)),
            line("succeeded", REFUNDED),
            AlreadyThere,
            held,
            none,
        ),
        // 6 to 8: both cancelled
        (6, Some(here("succeeded", DUE)), line("succeeded", RETURNED), Taken, returned, none),
        (7, Some(here("unknown", CANCELLED)), line("succeeded", RETURNED), Taken, returned, none),
        (
            8,
            Some(here("succeeded", RETURNED)),
            line("succeeded", RETURNED_ELSE),
            Rejected(ReturnedTwice),
            returned,
            none,
        ),
        (8, Some(here("succeeded", RETURNED)), line("succeeded", DUE), Kept, returned, none),
        (8, Some(here("succeeded", DUE)), line("initiated", CANCELLED), Kept, return_due, none),
        // 9: cancelled here alone
        (9, Some(here("succeeded", DUE)), line("succeeded", ""), Kept, return_due, none),
        (9, Some(here("succeeded", DUE)), line("initiated", ""), Kept, return_due, none),
        (9, Some(here("unknown", CANCELLED)), line("initiated", ""), Kept, nothing, none),
        (
            9,
            Some(here("succeeded", DUE)),
            line("succeeded", REFUNDED),
            Rejected(CancelledAndRefunded),
            return_due,
            none,
        ),
        // 10: cancelled by the line alone
        (
            10,
            Some(here("succeeded", REFUSED)),
            line("succeeded", RETURNED),
            Rejected(AnsweredOtherwise),
            held,
            none,
        ),
        (
            10,
            Some(here("succeeded", RESERVED)),
            line("succeeded", RETURNED),
            Rejected(CancelledAndRefunded),
            held,
            none,
        ),
        (10, Some(here("succeeded", "")), line("unknown", CANCELLED), Taken, return_due, late),
        (10, Some(here("succeeded", "")), line("succeeded", DUE), Taken, return_due, due),
        (10, Some(here("succeeded", "")), line("succeeded", RETURNED), Taken, returned, none),
        (10, Some(here("initiated", "")), line("initiated", CANCELLED), Taken, nothing, none),
        // 11: both succeeded
        (11, Some(here("succeeded", "")), line("succeeded", REFUNDED), Taken, held, none),
        (11, Some(here("succeeded", RESERVED)), line("succeeded", REFUNDED), Taken, held, none),
        (11, Some(here("succeeded", REFUNDED)), line("succeeded", RESERVED), Kept, held, none),
        (11, Some(here("succeeded", REFUNDED)), line("succeeded", ""), Kept, held, none),
        (11, Some(here("succeeded", "")), line("succeeded", REFUSED), Taken, held, none),
        (11, Some(here("succeeded", REFUSED)), line("succeeded", ""), Kept, held, none),
        (
            11,
            Some(here("succeeded", REFUNDED)),
            line("succeeded", RELEASED),
            Rejected(RefundEndedOtherwise),
            held,
            none,
        ),
        (
            11,
            Some(here("succeeded", REFUNDED)),
            line("succeeded", ALL_REFUNDED),
            Rejected(RefundsTooMuch),
            held,
            none,
        ),
        // 12: the line is later
        (12, Some(here("initiated", "")), line("failed", ""), Taken, nothing, none),
        (12, Some(here("initiated", "")), line("succeeded", ""), Taken, held, none),
        (12, Some(here("failed", "")), line("succeeded", ""), Taken, held, none),
        // 13: what is here is later
        (13, Some(here("succeeded", "")), line("initiated", ""), Kept, held, none),
        (13, Some(here("succeeded", "")), line("failed", ""), Kept, held, none),
        (13, Some(here("failed", "")), line("initiated", ""), Kept, nothing, none),
    ] {
        let name = format!("row {row}: {known:?}\n<- {:?}", line.history);
        let decision = import_payment::decide(known.as_ref(), &line, &asked());
        assert_eq!(decision.outcome, outcome, "{name}");
        // the line is the payment core's word, so it came now
        let told_at = decision.next.as_ref().map(|next| next.recorded_at);
        assert!(told_at.is_none_or(|at| at == Some(NOW)), "{name}: {told_at:?}");
        let after = decision.next.or(known).expect("a payment");
        assert_eq!(after.funds(), funds, "{name}\n-> {after:?}");
        let events: Vec<_> =
            decision.events.iter().map(|event| (event.kind, event.cause)).collect();
        match (event, &*events) {
            (None, []) => {}
            (Some(cause), [(EventKind::FundReturnDue(_), announced)]) if *announced == cause => {}
            _ => panic!("{name}: {events:?}"),
        }
    }
}

#[test]
fn the_answer_of_a_cancel_that_was_imported_is_its_answer_for_ever() {
    let line = line("succeeded", REFUSED);
    let payment = import_payment::decide(None, &line, &asked()).next.expect("a payment");
    assert_eq!(payment.verdict().map(|verdict| verdict.code), Some(ResultCode::CancelWindowExceed));
}

/// The payment as a line could tell it, if one could; without its refunds where those are more than was paid.
fn as_told(payment: &Payment) -> Option<Payment> {
    let terms = payment.terms();
    let (code, fund_return) = match &payment.state {
        State::Cancelled(cancelled) => (
            ResultCode::Success,
            match cancelled.money.clone() {
                Money::Untouched(_) => None,
                Money::Due { since, .. } => Some(FundReturn::Due { since: Some(since) }),
                Money::Returned { since, at, reference, .. } => {
                    Some(FundReturn::Returned { since: Some(since), at, reference })
                }
            },
        ),
        State::Initiated(_) | State::Failed(_) | State::Succeeded(_) => {
            (ResultCode::CancelWindowExceed, None)
        }
    };
    let told = |refunds| Told {
        acquirer: payment.acquirer.clone(),
        amount: terms.map(|terms| terms.amount),
        initiated_at: terms.map(|terms| terms.initiated_at),
        life: payment.life(),
        refunds,
        cancel: payment.verdict().map(|verdict| (code, verdict.at)),
        fund_return: fund_return.clone(),
    };
    let whole = told(payment.refunds().to_vec()).payment();
    whole.or_else(|_| told(Vec::new()).payment()).ok()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, max_global_rejects: 100_000, ..ProptestConfig::default() })]

    /// What a line may never do, whatever is known.
    #[test]
    fn history_never_takes_back_a_decision_nor_announces_money_twice(
        known in proptest::option::of(any_payment()),
        history in any_payment(),
    ) {
        let known = known.as_ref().and_then(as_told);
        let history = as_told(&history);
        prop_assume!(history.is_some());
        let history = history.expect("assumed");
        let command = ImportPayment { key: line("unknown", CANCELLED).key, history };
        let first = import_payment::decide(known.as_ref(), &command, &asked());
        let before = known.as_ref().map(Payment::funds);
        if let Some(verdict) = known.as_ref().and_then(Payment::verdict) {
            let after = first.next.as_ref().or(known.as_ref()).and_then(Payment::verdict);
            prop_assert_eq!(after.map(|after| after.code), Some(verdict.code));
        }
        if let Outcome::Rejected(_) = first.outcome {
            prop_assert!(first.next.is_none() && first.events.is_empty());
        }
        let after = first.next.clone().or(known).expect("something is known, or taken");
        let became_due = after.funds() == Funds::ReturnDue && before != Some(Funds::ReturnDue);
        prop_assert_eq!(first.events.len(), usize::from(became_due));
        if before == Some(Funds::Returned) {
            prop_assert_eq!(after.funds(), Funds::Returned);
        }
        let again = import_payment::decide(Some(&after), &command, &asked());
        prop_assert!(again.events.is_empty());
        prop_assert!(again.next.is_none_or(|next| next == after));
        if !matches!(first.outcome, Outcome::Rejected(_)) {
            prop_assert!(!matches!(again.outcome, Outcome::Rejected(_)), "{:?}", again.outcome);
        }
    }
}

#[test]
fn every_row_of_an_imported_token() {
    use import_token::{Contradiction as C, Outcome as O};

    let grant = authorization_key("g");
    let command = ImportToken {
        key: token_key(1, 1),
        authorization: grant.clone(),
        acquirer: granted().acquirer,
        kind: TokenKind::Access,
        expires_at: None,
        replaces: None,
        cancelled_at: None,
        revoked_at: None,
        pass_through_info: None,
    };
    let plain = live(&grant);
    let with = |change: &dyn Fn(&mut ImportToken)| {
        let mut command = command.clone();
        change(&mut command);
        command
    };
    let rotated = |by| {
        let Token::Recorded(token) = live(&grant) else { unreachable!() };
        let by = token_key(by, by).hash;
        Token::Recorded(alipayplus_cancel::domain::token::Recorded {
            replaced_by: Some(by),
            ..token
        })
    };
    let dead = Token::DeadOnArrival(crate::values::verdict(ResultCode::InvalidToken));
    let elsewhere = live(&authorization_key("h"));
    let replaces = with(&|it| it.replaces = Some(token_key(9, 9)));
    for (row, token, replaced, authorization, command, outcome) in [
        (
            1,
            None,
            None,
            Some(granted()),
            with(&|it| it.acquirer = acquirer("b")),
            O::Rejected(C::OtherAcquirer),
        ),
        (2, Some(dead), None, None, command.clone(), O::Rejected(C::Dead)),
        (
            3,
            Some(elsewhere.clone()),
            None,
            Some(granted()),
            command.clone(),
            O::Rejected(C::OtherToken),
        ),
        (
            3,
            Some(plain.clone()),
            None,
            Some(granted()),
            with(&|it| it.kind = TokenKind::Refresh),
            O::Rejected(C::OtherToken),
        ),
        (4, None, None, Some(granted()), replaces.clone(), O::Rejected(C::ReplacedUnknown)),
        (
            4,
            None,
            Some(elsewhere),
            Some(granted()),
            replaces.clone(),
            O::Rejected(C::ReplacedElsewhere),
        ),
        (
            4,
            None,
            Some(rotated(8)),
            Some(granted()),
            replaces.clone(),
            O::Rejected(C::ReplacedAlready),
        ),
        (5, None, Some(plain.clone()), Some(granted()), replaces, O::Taken),
        (5, None, None, None, command.clone(), O::Taken),
        (
            5,
            Some(plain.clone()),
            None,
            Some(granted()),
            with(&|it| it.cancelled_at = Some(NOW)),
            O::Taken,
        ),
        (
            5,
            Some(plain.clone()),
            None,
            Some(granted()),
            with(&|it| it.revoked_at = Some(NOW)),
            O::Taken,
        ),
        (6, Some(plain.clone()), None, Some(granted()), command.clone(), O::AlreadyThere),
        (7, Some(plain), None, Some(granted()), with(&|it| it.expires_at = Some(NOW)), O::Kept),
    ] {
        let decision = import_token::decide(
            token.as_ref(),
            replaced.as_ref(),
            authorization.as_ref(),
            &command,
        );
        assert_eq!(decision.outcome, outcome, "row {row}");
        assert_eq!(decision.next.is_some(), outcome == O::Taken, "row {row}");
        assert!(decision.events.is_empty(), "row {row}");
        let Some(next) = decision.next else { continue };
        let token = next.token.or(token);
        let authorization = next.authorization.or(authorization);
        let replaced = next.replaced.map(|(_, token)| token).or(replaced);
        let again = import_token::decide(
            token.as_ref(),
            replaced.as_ref(),
            authorization.as_ref(),
            &command,
        );
        assert_eq!((again.outcome, again.next), (O::AlreadyThere, None), "row {row} again");
    }
}

// ---------------------------------------------------------------- the tool

fn import(what: &str, file: &Path, more: &[&str]) -> Output {
    run(&[&["import", what, file.to_str().unwrap()], more].concat())
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

const PSP: &str = "1022172000000000001";
const ACQUIRER: &str = "1022188000000000001";

fn history(request: &str, state: &str, more: &str) -> String {
    let now = jiff::Timestamp::now();
    format!(
        r#"{{"pspId":"{PSP}","paymentRequestId":"{request}","acquirerId":"{ACQUIRER}","paymentAmount":{{"value":"1999","currency":"EUR"}},"initiatedAt":"{now}","state":"{state}"{more}}}"#
    )
}

fn wire_payment(request: &str) -> grpc::Payment {
    grpc::Payment {
        psp: PSP.to_owned(),
        acquirer: ACQUIRER.to_owned(),
        request: request.to_owned(),
        amount: 1_999,
        days_ago: 0,
    }
}

#[test]
fn a_file_is_brought_in_directly_and_again_and_what_is_wrong_is_told_by_line() {
    let dir = tempfile::tempdir().unwrap();
    furnish(dir.path(), "");
    let settings = dir.path().join("settings.toml");
    let config = ["--config", settings.to_str().unwrap()];
    let file = dir.path().join("payments.jsonl");
    let good = [history("one", "succeeded", ""), history("two", "failed", "")].join("\n");
    fs::write(&file, &good).unwrap();
    let output = ended_with(&import("payments", &file, &config), 0);
    assert!(output.contains("payments: 2 lines, 2 taken, 0 already there"), "{output}");
    let output = ended_with(&import("payments", &file, &config), 0);
    assert!(output.contains("payments: 2 lines, 0 taken, 2 already there"), "{output}");

    let other = history("one", "succeeded", "").replace("1999", "5");
    let long = "x".repeat(2_000_000);
    let bad =
        format!("{good}\n\nnonsense\n{other}\r\n{long}\n{}", history("three", "initiated", ""));
    fs::write(&file, bad).unwrap();
    let output = ended_with(&import("payments", &file, &config), 1);
    assert!(
        output.contains("6 lines, 1 taken, 2 already there, 0 kept as known here, 3 rejected"),
        "{output}"
    );
    let rejects = fs::read_to_string(dir.path().join("payments.jsonl.rejects.jsonl")).unwrap();
    let rejects: HashMap<u64, String> = rejects
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|line| (line["line"].as_u64().unwrap(), line["reason"].as_str().unwrap().to_owned()))
        .collect();
    assert!(rejects[&4].contains("is not JSON"), "{rejects:?}");
    assert!(rejects[&5].contains("another amount"), "{rejects:?}");
    assert!(rejects[&6].contains("longer than"), "{rejects:?}");
    let output =
        ended_with(&import("payments", &file, &[&config[..], &["--from-line", "7"]].concat()), 0);
    assert!(output.contains("payments: 1 lines, 0 taken, 1 already there"), "{output}");

    // wrong usage
    ended_with(&import("payments", &file, &[]), 2);
    ended_with(&import("payments", &file, &["--url", "nowhere"]), 2);
    ended_with(&import("payments", &file, &["--url", "https://127.0.0.1:1"]), 2);
    ended_with(&import("payments", Path::new("/no/such/file"), &config), 2);
    ended_with(&import("payments", dir.path(), &config), 2);
}

#[test]
fn beside_a_service_the_embedded_store_is_refused_with_the_way_to_go() {
    let service = Service::start(Options { onboarding: true, ..Options::embedded() });
    let file = service.dir().join("payments.jsonl");
    fs::write(&file, history("one", "succeeded", "")).unwrap();
    let settings = service.settings();
    let output =
        ended_with(&import("payments", &file, &["--config", settings.to_str().unwrap()]), 1);
    assert!(output.contains("--url"), "{output}");
}

#[test]
fn a_token_of_the_file_is_in_no_output_and_in_no_other_file() {
    let service = Service::start(Options { onboarding: true, ..Options::default() });
    let file = service.dir().join("tokens.jsonl");
    let line = |token: &str, more: &str| {
        format!(
            r#"{{"pspId":"p","authorizationId":"g","acquirerId":"a","token":"{token}","kind":"access"{more}}}"#
        )
    };
    let text = [
        line("IMPORT-SECRET-1", ""),
        line("IMPORT-SECRET-2", r#","replaces":"IMPORT-SECRET-1""#),
        line("IMPORT-SECRET-3", r#","replaces":"IMPORT-SECRET-9""#),
        line("IMPORT-SECRET-4", r#","kind":"IMPORT-SECRET""#),
        "IMPORT-SECRET".to_owned(),
    ]
    .join("\n");
    fs::write(&file, text).unwrap();
    let to = service.grpc_arguments();
    let to: Vec<&str> = to.iter().map(String::as_str).collect();
    let output = ended_with(&import("tokens", &file, &to), 1);
    assert!(
        output.contains(
            "tokens: 5 lines, 2 taken, 0 already there, 0 kept as known here, 3 rejected"
        ),
        "{output}"
    );
    assert!(!output.contains("IMPORT-SECRET"), "{output}");
    fs::remove_file(&file).unwrap();
    for entry in fs::read_dir(service.dir()).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        assert!(!bytes.windows(13).any(|part| part == b"IMPORT-SECRET"), "{}", path.display());
    }
    let grpc = service.grpc();
    let grant = Grant { psp: "p".to_owned(), acquirer: "a".to_owned(), id: "g".to_owned() };
    let active = |token: &str| grpc.introspect_token(grant.introspect(token)).unwrap().active;
    assert!(!active("IMPORT-SECRET-1") && active("IMPORT-SECRET-2"));
    // the rotated one revokes the whole grant
    grpc.cancel_token(grant.cancel("IMPORT-SECRET-1")).unwrap();
    assert!(!active("IMPORT-SECRET-2"));
}

#[test]
fn tokens_that_are_brought_in_again_revive_nothing_that_was_revoked_since() {
    let service = Service::start(Options { onboarding: true, ..Options::default() });
    let grpc = service.grpc();
    let grants = [(); 3].map(|()| (Grant::new(), unique("token")));
    let [(cancelled, of_cancelled), (revoked, of_revoked), (kept, of_kept)] = &grants;
    let lines = grants.each_ref().map(|(grant, token)| {
        let Grant { psp, acquirer, id } = grant;
        format!(
            r#"{{"pspId":"{psp}","authorizationId":"{id}","acquirerId":"{acquirer}","token":"{token}","kind":"access"}}"#
        )
    });
    let file = service.dir().join("tokens.jsonl");
    fs::write(&file, lines.join("\n")).unwrap();
    let to = service.grpc_arguments();
    let to: Vec<&str> = to.iter().map(String::as_str).collect();
    let output = ended_with(&import("tokens", &file, &to), 0);
    assert!(output.contains("tokens: 3 lines, 3 taken, 0 already there"), "{output}");
    grpc.cancel_token(cancelled.cancel(of_cancelled)).expect("SUCCESS");
    grpc.revoke_authorization(revoked.revoke()).expect("revoked");
    let output = ended_with(&import("tokens", &file, &to), 0);
    assert!(output.contains("tokens: 3 lines, 0 taken"), "{output}");
    let active = |(grant, token): (&Grant, &str)| {
        grpc.introspect_token(grant.introspect(token)).unwrap().active
    };
    assert!(!active((cancelled, of_cancelled)) && !active((revoked, of_revoked)));
    assert!(active((kept, of_kept)));
    assert!(grpc.cancel_token(cancelled.cancel(of_cancelled)).expect("SUCCESS").repeated);
}

/// What the wallet that moves in knows, 100,000 in all.
const PAYMENTS: usize = 60_000;
const TOKENS: usize = 40_000;

#[test]
fn a_wallet_moves_in_beside_live_traffic_without_one_wrong_answer() {
    let service = Service::start(Options { onboarding: true, ..Options::default() });
    let grpc = service.grpc();
    let states = ["succeeded", "initiated", "failed"];
    let id = |n: usize| format!("history-{n}");
    let state = |n: usize| states[n % 3];

    // the wallet's own core already tells this service of new payments, and some are cancelled before the history comes
    let early: Vec<usize> = (0..30).map(|n| n * 2_000).collect();
    for n in &early {
        let payment = wire_payment(&id(*n));
        grpc.record(&payment, payment.succeeded());
        grpc.cancel_payment(payment.cancel()).expect("SUCCESS");
    }
    let file = service.dir().join("payments.jsonl");
    let mut text = String::new();
    for n in 0..PAYMENTS {
        // the history was taken before the early ones were cancelled
        writeln!(text, "{}", history(&id(n), state(n), "")).unwrap();
    }
    fs::write(&file, text).unwrap();
    let tokens = service.dir().join("tokens.jsonl");
    let mut text = String::new();
    for n in 0..TOKENS {
        let line = format!(
            r#"{{"pspId":"{PSP}","authorizationId":"g-{}","acquirerId":"{ACQUIRER}","token":"t-{n}","kind":"access"}}"#,
            n / 2
        );
        writeln!(text, "{line}").unwrap();
    }
    fs::write(&tokens, text).unwrap();

    let to = service.grpc_arguments();
    let arguments = |what: &'static str, file: &Path| {
        let file = file.to_str().unwrap().to_owned();
        let mut command = command(&["import", what, &file]);
        command.args(&to);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let begun = std::time::Instant::now();
    let importing = arguments("payments", &file);
    let waiting = thread::spawn(move || importing.wait_with_output().unwrap());

    // cancels beside it: of what is not there yet, U; of what is, S with the money due
    let (mut undecided, mut cancelled) = (0, 0);
    let mut answered: HashMap<usize, bool> = early.iter().map(|n| (*n, true)).collect();
    let mut n = 0;
    while !waiting.is_finished() {
        n = (n + 7_919) % PAYMENTS;
        let payment = wire_payment(&id(n));
        match grpc.cancel_payment(payment.cancel()) {
            Ok(response) => {
                assert_eq!(response.repeated, answered.contains_key(&n), "{n}");
                let story = grpc.story(&payment).payment.unwrap();
                let due = state(n) == "succeeded" || early.contains(&n);
                let funds = if due { wire::Funds::ReturnDue } else { wire::Funds::None };
                assert_eq!(story.funds(), funds, "{n}");
                answered.insert(n, due);
                cancelled += 1;
            }
            Err(status) => {
                assert_eq!(status.code(), tonic::Code::Aborted, "{status}");
                assert!(!answered.contains_key(&n), "{n} was answered SUCCESS before");
                undecided += 1;
            }
        }
        let unknown = grpc.cancel_payment(wire_payment(&unique("nobody-knows")).cancel());
        assert!(unknown.is_err(), "unknown is no answer yet");
    }
    let output = ended_with(&waiting.join().unwrap(), 0);
    assert!(output.contains(&format!("payments: {PAYMENTS} lines")), "{output}");
    assert!(output.contains(" 0 rejected"), "{output}");
    println!("payments in {:?}: {cancelled} S, {undecided} U beside them", begun.elapsed());
    let output = ended_with(&arguments("tokens", &tokens).wait_with_output().unwrap(), 0);
    assert!(output.contains(&format!("tokens: {TOKENS} lines, {TOKENS} taken")), "{output}");
    println!("all in {:?}", begun.elapsed());

    let unknown = wire_payment(&unique("nobody-knows"));
    assert!(grpc.cancel_payment(unknown.cancel()).is_err());
    service.import_complete();
    let result = grpc.cancel_payment(unknown.cancel()).expect("SUCCESS").result.unwrap();
    assert_eq!(result.result_code(), wire::ResultCode::Success);

    // every answer stands, and every payment of the history is known
    for (n, due) in &answered {
        let payment = wire_payment(&id(*n));
        assert!(grpc.cancel_payment(payment.cancel()).expect("SUCCESS").repeated);
        let funds = if *due { wire::Funds::ReturnDue } else { wire::Funds::None };
        assert_eq!(grpc.story(&payment).payment.unwrap().funds(), funds, "{n}");
    }
    for n in (0..PAYMENTS).step_by(997) {
        let life = grpc.story(&wire_payment(&id(n))).payment.unwrap().life();
        let expected =
            [wire::PaymentLife::Succeeded, wire::PaymentLife::Initiated, wire::PaymentLife::Failed];
        if !early.contains(&n) {
            assert_eq!(life, expected[n % 3], "{n}");
        }
    }
    // a token by the signed front: both of its grant end
    let json = service.json();
    json.cancel_token(PSP, ACQUIRER, "t-10").expect("SUCCESS");
    let grant = Grant { psp: PSP.to_owned(), acquirer: ACQUIRER.to_owned(), id: "g-5".to_owned() };
    assert!(!grpc.introspect_token(grant.introspect("t-11")).unwrap().active);
    assert!(grpc.introspect_token(grant.introspect("t-12")).unwrap().active);
    json.cancel_token(PSP, ACQUIRER, &unique("no-such-token")).expect("INVALID_TOKEN");
}

#[test]
fn a_file_may_come_from_standard_input() {
    let dir = tempfile::tempdir().unwrap();
    furnish(dir.path(), "");
    let settings = dir.path().join("settings.toml");
    let mut child = command(&["import", "payments", "-", "--config", settings.to_str().unwrap()])
        .current_dir(dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    writeln!(stdin, "\u{feff}{}", history("one", "succeeded", "")).unwrap();
    drop(stdin);
    let output = ended_with(&child.wait_with_output().unwrap(), 0);
    assert!(output.contains("payments: 1 lines, 1 taken"), "{output}");
}
