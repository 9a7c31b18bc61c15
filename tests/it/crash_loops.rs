//! The binary is killed again and again under load from both fronts, and after every restart all that was answered since
//! the last one is asked again, and some of what was answered before; in the end all of it.
//!
//! The suite does a few rounds. `ALIPAYPLUS_CANCEL_TESTS_KILLS=500` is acceptance, for each store.

use std::{env, fs::File, thread, time::Duration};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use crate::{
    harness::{
        postgres::{self, Cluster},
        service::{Options, Service},
    },
    load,
};

const CALLERS: usize = 16;
/// Keys of earlier rounds that are asked again in each.
const OLDER: usize = 40;

/// How many times something is killed.
fn kills() -> usize {
    let set = env::var("ALIPAYPLUS_CANCEL_TESTS_KILLS").ok();
    set.map_or(5, |text| text.parse().expect("ALIPAYPLUS_CANCEL_TESTS_KILLS: a number"))
}

/// Starts it on what the kill left, with a new log: after hundreds of rounds it would be long.
fn again(service: &mut Service) {
    let log = service.stderr();
    assert!(!log.contains("panicked"), "{log}");
    File::create(service.dir().join("stderr.log")).expect("a log file");
    service.restart();
}

fn crash_loop(mut options: Options, database: Option<&Cluster>) {
    // a line a request is too much for so many
    options.set.push("telemetry.log_level=warn,alipayplus_cancel::cli::serve=info".to_owned());
    let mut service = Service::start(options);
    let mut load = load::start(&service, CALLERS, None);
    let mut rng = StdRng::seed_from_u64(7);
    let (mut of_service, mut of_database, mut freezes) = (0, 0, 0);
    for nth in 0.. {
        if of_service + of_database >= kills() {
            break;
        }
        // now early, now late in the load; sometimes before anybody was answered
        let more = if nth % 7 == 6 { 0 } else { rng.random_range(1..300) };
        load.wait_for(load.load.answers() + more);
        match database {
            Some(database) if nth % 12 == 3 => {
                // its recovery runs before it answers, and the service goes on
                database.kill_nine();
                database.start_again();
                of_database += 1;
            }
            _ if nth % 5 == 4 => {
                service.signal("STOP");
                thread::sleep(Duration::from_millis(rng.random_range(1..100)));
                if rng.random_bool(0.5) {
                    service.signal("CONT");
                    freezes += 1;
                } else {
                    // out of a freeze into death
                    service.kill_nine();
                    again(&mut service);
                    of_service += 1;
                }
            }
            _ => {
                service.kill_nine();
                again(&mut service);
                of_service += 1;
            }
        }
        load.load.moved(&service);
        if nth % 50 == 49 {
            println!("round {}: {} answers", nth + 1, load.load.answers());
        }
        load.ask_again(usize::MAX, OLDER);
    }
    load.finish(usize::MAX);
    println!("{of_service} kills of the service, {of_database} of its database, {freezes} freezes");
    assert!(service.terminate().success(), "{}", service.stderr());
}

#[test]
fn what_was_answered_on_the_embedded_store_is_answered_again_after_every_kill() {
    crash_loop(Options::embedded(), None);
}

#[test]
fn what_was_answered_on_postgresql_is_answered_again_after_every_kill_of_either() {
    if !postgres::is_there_or_skip() {
        return;
    }
    let database = Cluster::start(postgres::Options::default());
    let url = database.fresh_database();
    crash_loop(Options::on(&url), Some(&database));
}
