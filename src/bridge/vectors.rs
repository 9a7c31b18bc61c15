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

/// The cases under `positive` or `negative`.
pub(super) fn cases(list: &str) -> Vec<Case> {
    let cases = VECTORS[list].as_array().expect("a list");
    assert!(!cases.is_empty());
    cases.iter().map(Case).collect()
}

/// One signed message.
#[derive(Clone, Copy)]
pub(super) struct Case(&'static Value);

impl Case {
    /// A text of the case.
    pub(super) fn text(self, name: &str) -> &'static str {
        self.0[name].as_str().unwrap_or_else(|| panic!("no {name}"))
    }

    /// A header of the case; names in any case.
    pub(super) fn header(self, name: &str) -> &'static str {
        let headers = self.0["headers"].as_object().expect("headers");
        let found = headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.and_then(|(_, value)| value.as_str()).unwrap_or_else(|| panic!("no {name}"))
    }

    /// The time that was signed: a request's or a response's.
    pub(super) fn time(self) -> &'static str {
        match self.text("kind") {
            "request" => self.header("Request-Time"),
            _ => self.header("Response-Time"),
        }
    }

    /// Further spellings of the same signature: name and text.
    pub(super) fn accept_also(self) -> Vec<(&'static str, &'static str)> {
        let spellings = self.0["accept_also"].as_object().expect("accept_also");
        assert!(!spellings.is_empty());
        spellings.iter().map(|(name, text)| (name.as_str(), text.as_str().unwrap())).collect()
    }
}
