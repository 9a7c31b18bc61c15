//! An e-wallet's service for Alipay+ cancelPayment and cancelToken.
pub mod cli;
pub mod config;
pub mod domain;
