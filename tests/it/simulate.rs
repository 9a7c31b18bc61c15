//! `simulate`: a day of traffic ends with one result for each request, or says what did not.

use std::{process::Output, sync::Arc};

use crate::{
    certify::{
        faults::{self, Running, Wrong},
        flags,
        proxy::{Proxy, answer_as},
        shared,
    },
    harness::service::run,
};

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

#[track_caller]
fn ended_with(output: &Output, status: i32) {
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{}{told}", out(output));
    assert!(!told.contains("panicked"), "{told}");
}

/// Against our own service, or a wrong one.
fn simulate(fault: Option<&'static Wrong>, more: &[&str]) -> Output {
    let service = shared();
    let proxy =
        fault.map(|fault| Proxy::start(service.ports().bridge, Arc::new(Running::of(fault))));
    let port = proxy.as_ref().map_or(service.ports().bridge, |proxy| proxy.address).port();
    let mut flags = flags(service, port);
    let next = flags.iter().position(|flag| flag == "--next-key").unwrap();
    flags.drain(next..next + 2);
    let mut arguments = vec!["simulate"];
    arguments.extend(flags.iter().map(String::as_str));
    arguments.extend(more);
    run(&arguments)
}

#[test]
fn a_day_ends_with_one_result_for_each_request_and_is_told_in_plain_lines() {
    let output = simulate(None, &["--for", "4", "--rate", "60", "--every", "1"]);
    ended_with(&output, 0);
    let told = out(&output);
    assert!(told.contains("every request got S or F, always the same, signed"), "{told}");
    assert!(told.contains("  SUCCESS\n") && told.contains("  p50 "), "{told}");
    assert!(told.lines().filter(|line| line.contains("/s  S ")).count() >= 2, "{told}");
    // it is no terminal
    assert!(!told.contains('\x1b'), "{told}");
}

#[test]
fn an_outage_holds_requests_back_and_what_was_due_comes_behind_it() {
    let more = [
        "--from",
        "13:59",
        "--speed",
        "60",
        "--for",
        "6",
        "--outage",
        "14:00+3",
        "--rate",
        "40",
        "--every",
        "1",
        "--duplicates",
        "0",
    ];
    let output = simulate(None, &more);
    ended_with(&output, 0);
    let told = out(&output);
    assert!(told.contains("  OUTAGE"), "{told}");
    // four fifths of forty in a second, for six seconds, are not far from two hundred
    let first = told.lines().find(|line| line.contains(" new, ")).expect("a summary");
    let new = first.split(": ").nth(1).unwrap().split(' ').next().unwrap();
    assert!(new.parse::<u64>().unwrap() > 80, "{told}");
}

#[test]
fn u_is_asked_again_and_ends_with_a_result() {
    static U_FIRST: Wrong = faults::wrong(
        "cancelToken is U at first",
        |memory, request, answer| {
            let token = request.text("/accessToken");
            let first = !token.is_empty() && memory.seen.before(&token) == 0;
            if first {
                answer_as(request, answer, "UNKNOWN_EXCEPTION", "U");
            }
            first
        },
        &[],
    );
    let more = ["--for", "1", "--rate", "10", "--from", "12:00", "--speed", "1", "--tokens", "100"];
    let output = simulate(Some(&U_FIRST), &more);
    ended_with(&output, 0);
    let told = out(&output);
    assert!(told.contains("  UNKNOWN_EXCEPTION\n") && !told.contains(", 0 retries"), "{told}");
}

#[test]
fn two_results_for_one_request_fail() {
    let fault = faults::FAULTS
        .iter()
        .find(|fault| fault.name == "what is cancelled cannot be cancelled again")
        .unwrap();
    let more = [
        "--for",
        "2",
        "--rate",
        "20",
        "--from",
        "12:00",
        "--speed",
        "1",
        "--tokens",
        "0",
        "--duplicates",
        "100",
    ];
    let output = simulate(Some(fault), &more);
    ended_with(&output, 1);
    assert!(out(&output).contains("requests that got two different results"), "{}", out(&output));
}

#[test]
fn another_host_needs_its_owners_word_and_bounds_are_kept() {
    for (more, word) in [
        (&["--url", "http://192.0.2.1/aps/api"][..], "is not on this machine"),
        (&["--for", "0"], "--for"),
        (&["--for", "86401"], "--for"),
        (&["--rate", "2001"], "--rate"),
        (&["--outage", "25:00+5"], "expected a time of day"),
    ] {
        let output = run(&[
            &["simulate", "--client-id", "C", "--psp-id", "p", "--acquirer-id", "a"],
            &["--key", &*shared().dir().join("alipayplus.pem").display().to_string()][..],
            &["--peer-key", &*shared().dir().join("wallet.pub").display().to_string()],
            more,
        ]
        .concat());
        ended_with(&output, 2);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(told.contains(word), "{word}: {told}");
    }
}
