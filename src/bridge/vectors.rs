//! The signature vectors of tests/vectors, for the tests of this ring.

use std::sync::LazyLock;

use serde_json::Value;

static VECTORS: LazyLock<Value> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../../tests/vectors/vectors.json")).expect("vectors")
});

/// The two pairs of test keys.
pub(super) const SIGNERS: [&str; 2] = ["test_alipayplus", "test_mpp"];

/// The text at a JSON pointer into the whole file.
pub(super) fn text(pointer: &str) -> &'static str {
    VECTORS.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("no {pointer}"))
}
