//! An e-wallet's service for Alipay+ cancelPayment and cancelToken.
pub mod config;
pub mod domain;
