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
mod crash;
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
mod layering;
mod limits;
mod mtls;
mod openapi;
mod oracle;
mod plain;
mod postgres;
mod properties;
mod reload;
mod replicas;
mod rotate;
mod secrets;
mod signatures;
mod simulate;
mod sqlite_files;
mod store_contract;
mod telemetry;
mod upkeep;
mod values;
