//! An e-wallet's service for Alipay+ cancelPayment and cancelToken.
//!
//! This page is the architecture as the compiler sees it; ARCHITECTURE.md says more of the why, docs/semantics.md is the
//! law of the decisions, docs/wire.md the JSON that is spoken.
//!
//! # The picture
//!
//! ```text
//! Alipay+ ── signed JSON ──▶ bridge ──▶ grpc::client ── in process ──▶ grpc::server ──▶ engine ──▶ store
//!                                                                          ▲              │          │
//! wallet's services ── gRPC ───────────────────────────────────────────────┘              ▼          ▼
//!                                                                                       domain   SQLite file, PostgreSQL
//! ```
//!
//! A cancelPayment comes in through [`listen`] (accept loop, time-outs), is checked by [`bridge::front`] in the order of
//! its table, becomes [`bridge::envelope::Verified`] if its signature holds, is asked of the core through
//! [`grpc::client::Client`], is checked again by [`grpc::server::Server`], and waits in [`engine::Engine`] for the next
//! transaction of the [`store::Store`]. There [`domain::cancel_payment::decide`] decides. The answer leaves after the
//! commit, and is signed on its way out.
//!
//! With `serve --role bridge` the client goes over a [`grpc::channel::Channel`] to cores elsewhere; see [`config::Role`].
//!
//! # The rings
//!
//! A room names only rooms further in. `tests/it/layering.rs` checks it.
//!
//! | room | is | names |
//! |---|---|---|
//! | [`domain`] | what every command decides: plain functions, no clock, no I/O, no async | nobody |
//! | [`store`] | the contract of a store, SQLite and PostgreSQL | `domain` |
//! | [`feed`] | committed events in order, for consumers that follow them | `domain`, `store` |
//! | [`engine`] | queue → batch → transaction → answer | `domain`, `store`, [`feed::Wake`], [`layer::rate_limit::Bucket`], `telemetry` |
//! | [`upkeep`] | what people do with a whole store: its history, its walks, its mending | `domain`, `store`, `engine` |
//! | [`layer`] | what both fronts need around a request, as tower layers: room, rates, permissions, deadlines, panics | `domain`, `telemetry` |
//! | [`listen`] | the accept loop under every front | `layer`, `telemetry`, `tls` |
//! | [`grpc`] | the contract of `proto/`, served and called | `domain`, `store`, `feed`, `engine`, `layer`, `listen::{Cut, Identity, Patient, Peer}`, `telemetry` |
//! | [`bridge`] | the signed JSON front, a client of gRPC | `domain`, `layer`, [`grpc::client`], `listen::{Peer, Porter}`, `telemetry` |
//! | [`watch_list`] | what people have to look at, for metrics and the log | `domain`, `store`, `telemetry` |
//! | [`admin`] | probes and metrics | `domain`, [`grpc::client`], `telemetry` |
//! | [`config`] | every setting; the only reader of the environment | `domain` |
//! | [`tls`] | TLS set-ups | nobody |
//! | [`telemetry`] | log lines, metrics, traces, and their way to a collector | `domain` |
//! | [`app`] | the composition root: builds, binds, serves, reloads, drains | all but `upkeep`, `cli` |
//! | [`cli`] | one file per subcommand | all |
//!
//! An operation has one name in every ring: search `cancel_payment` and its whole way shows.
//!
//! # The invariants
//!
//! - The first recorded result of a key is the result of every repeat ([`domain::Verdict`]).
//! - State and events are one commit ([`store::Changes`]), and no answer leaves before it is durable.
//! - A fault is never a final refusal: from [`store::Error`] and [`engine::Error`] there is a way to
//!   [`domain::result::ResultStatus::U`] and to no other status.
//! - JSON is read from [`bridge::envelope::Verified`] alone, and only the check of a signature makes one.
//! - A token is a [`domain::id::TokenHash`] behind the engine's door ([`engine::HashRing`]); no store sees the token.
//! - Positions of a partition are 1, 2, 3 … in the order of the commits ([`store::Positioned`]).
//!
//! # Where do I add …?
//!
//! | … | there |
//! |---|---|
//! | a rule about payments or tokens | [`domain`], the file of the command; then its row in docs/semantics.md |
//! | a fact that a rule needs | a field in [`domain::payment::Payment`] or [`domain::authorization::Authorization`]; then the store's records |
//! | a result code, its status, its message | [`domain::result::ResultCode`]; the compiler then asks for its gRPC code |
//! | a field or header of Alipay+ | the API's file in [`bridge`], or [`bridge::envelope`] |
//! | a field of the proto | `proto/`, then `grpc/convert.rs` |
//! | a setting | [`config::Settings`], then alipayplus-cancel.example.toml (a test compares them) |
//! | a second database | [`store::Store`], beside [`store::sqlite`] |
//! | a subcommand | [`cli`], and `main.rs` |
//! | what two places need | the innermost ring that both may name |
pub mod admin;
pub mod app;
pub mod bridge;
pub mod cli;
pub mod config;
pub mod domain;
pub mod engine;
pub mod feed;
pub mod grpc;
pub mod layer;
pub mod listen;
pub mod store;
pub mod telemetry;
pub mod tls;
pub mod upkeep;
pub mod watch_list;
