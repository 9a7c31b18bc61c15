//! What a caller sees: one binary of tests, through public doors.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::as_conversions,
    clippy::assigning_clones,
    clippy::format_collect,
    clippy::unnecessary_wraps,
    clippy::missing_panics_doc,
    clippy::new_without_default,
    clippy::return_self_not_must_use,
    clippy::unused_self
)]

mod harness;

use harness::grpc::wire;

mod asked;
mod attacks;
mod both_fronts;
mod certify;
mod check_order;
mod cli;
mod confusions;
mod console;
mod core_dumps;
mod corpora;
mod crash;
mod crash_loops;
mod cut_connections;
mod decisions;
mod dmz;
mod doctor;
mod documented;
mod drain;
mod engine;
mod failover;
mod feed;
mod follower;
mod grpc_front;
mod harness_works;
mod history;
mod hostile_json;
mod hsm;
mod http_front;
mod import;
mod import_decisions;
mod layering;
mod limits;
mod load;
mod mtls;
mod openapi;
mod oracle;
mod plain;
mod postgres;
mod power;
mod properties;
mod reconcile_decisions;
mod reference;
mod reload;
mod replicas;
mod rotate;
mod secrets;
mod signatures;
mod simulate;
mod smuggling;
mod smuggling_h2;
mod soak;
mod sqlite_files;
mod store_contract;
mod telemetry;
mod upkeep;
mod values;
mod wycheproof;
