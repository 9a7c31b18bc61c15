//! `tests/vectors/vectors.json`: keys and signatures that official clients made.

use std::sync::OnceLock;

use alipayplus_cancel::bridge::keys::PrivateKey;
use serde_json::Value;

/// The Client-Id of the vectors.
pub const CLIENT_ID: &str = "SANDBOX_5YC47N2ZQHJ004124";

/// The whole file.
pub fn vectors() -> &'static Value {
    static VECTORS: OnceLock<Value> = OnceLock::new();
    VECTORS.get_or_init(|| {
        serde_json::from_str(include_str!("../../vectors/vectors.json")).expect("vectors are JSON")
    })
}

/// A pair of the vectors, as text.
pub fn pem(pair: &str, form: &str) -> &'static str {
    vectors()["keys"][pair][form].as_str().expect("the vectors have this key")
}

fn private(pair: &str) -> PrivateKey {
    PrivateKey::parse(pem(pair, "pkcs8_pem")).expect("a key")
}

/// Alipay+'s key.
pub fn alipayplus() -> &'static PrivateKey {
    static KEY: OnceLock<PrivateKey> = OnceLock::new();
    KEY.get_or_init(|| private("test_alipayplus"))
}

/// The wallet's key.
pub fn wallet() -> &'static PrivateKey {
    static KEY: OnceLock<PrivateKey> = OnceLock::new();
    KEY.get_or_init(|| private("test_mpp"))
}

/// The key of the second client, [`super::service::OTHER_CLIENT`]; made for this run.
pub fn other() -> &'static PrivateKey {
    static KEY: OnceLock<PrivateKey> = OnceLock::new();
    KEY.get_or_init(|| PrivateKey::generate(2048).expect("a new key"))
}

/// A key of Alipay+'s that has ended (`keyVersion=ended`); made for this run.
pub fn ended() -> &'static PrivateKey {
    static KEY: OnceLock<PrivateKey> = OnceLock::new();
    KEY.get_or_init(|| PrivateKey::generate(2048).expect("a new key"))
}
