//! Connections to PostgreSQL that are cut, silent or late just when a COMMIT is under way ([`crate::harness::proxy`]):
//! nobody knows whether it happened, so whoever asked hears `U`, and asking again tells what is true.

use crate::{
    harness::{
        eventually, postgres,
        proxy::{FAULTS, Proxy},
        service::{Options, Service},
    },
    load,
};

const CALLERS: usize = 24;
/// Each fault is met as often.
const EACH: usize = 3;

#[test]
fn whatever_becomes_of_a_commits_answer_every_caller_hears_what_is_true() {
    let Some(postgres) = postgres::or_skip() else { return };
    let url = postgres.fresh_database();
    let proxy = Proxy::before(postgres.port(), 5);
    let quiet = "telemetry.log_level=warn,alipayplus_cancel::cli::serve=info".to_owned();
    let mut service = Service::start(Options { set: vec![quiet], ..Options::on(&proxy.url(&url)) });
    let mut load = load::start(&service, CALLERS, None);
    load.wait_for(100);
    proxy.fail(60);
    eventually("every fault is met", || {
        load.assert_sound();
        proxy.met().iter().all(|met| *met >= EACH).then_some(())
    });
    proxy.fail(0);
    let unanswered = load.load.unanswered();
    load.wait_for(load.load.answers() + 100);
    load.finish(usize::MAX);
    println!("{} commits, of which {FAULTS:?} met {:?}", proxy.commits(), proxy.met());
    assert!(unanswered > 0, "nobody noticed");
    assert!(service.terminate().success(), "{}", service.stderr());
}
