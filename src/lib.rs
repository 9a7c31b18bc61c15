//! An e-wallet's service for Alipay+ cancelPayment and cancelToken.
pub mod admin;
pub mod app;
pub mod bridge;
pub mod cli;
pub mod config;
pub mod domain;
pub mod engine;
pub mod grpc;
pub mod layer;
pub mod listen;
pub mod store;
pub mod telemetry;
pub mod tls;
