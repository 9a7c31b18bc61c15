//! Methods of gRPC as settings name them: `TokenService/IntrospectToken`, `FeedService/*`, or `*`.

use std::path::Path;

use super::{
    read::{Leaf, Refused, leaf, text},
    shape::nearest,
    tree::{Value, quoted},
};

/// What a caller may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MethodPattern {
    /// Everything.
    All,
    /// Every method of a service.
    Service(&'static str),
    /// One method of a service.
    Method(&'static str, &'static str),
}

/// The contract's services and methods; a test compares them with `proto/`.
const SERVICES: &[(&str, &[&str])] = &[
    ("CancelService", &["CancelPayment", "CancelToken"]),
    (
        "FeedService",
        &[
            "Subscribe",
            "Acknowledge",
            "Park",
            "ListParked",
            "Redrive",
            "GetLag",
            "ListConsumers",
            "DeleteConsumer",
        ],
    ),
    ("ImportService", &["ImportPayments", "ImportTokens"]),
    (
        "PaymentService",
        &["RecordPayment", "GetPayment", "RecordFundReturn", "ListOutstandingPayments"],
    ),
    (
        "TokenService",
        &["RecordToken", "IntrospectToken", "RevokeAuthorization", "GetAuthorization"],
    ),
];

/// Says what there is instead of a name that there is not.
fn no_such(what: &str, name: &str, known: &[&'static str]) -> Refused {
    // with its package in front it is still the same name
    let bare = name.rsplit('.').next().unwrap_or(name);
    let hint = match nearest(bare, known.iter().copied(), 0.5) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None => format!("there are {}", known.join(", ")),
    };
    Refused::Because(format!("there is no {what} {}; {hint}", quoted(name)))
}

impl Leaf for MethodPattern {
    const EXPECTED: &'static str =
        "\"Service/Method\", \"Service/*\" or \"*\", as \"TokenService/IntrospectToken\"";

    fn parse(value: &Value, _: Option<&Path>) -> Result<Self, Refused> {
        let pattern = text(value)?;
        if pattern == "*" {
            return Ok(Self::All);
        }
        let (service, method) = pattern.split_once('/').ok_or(Refused::Unexpected)?;
        let Some((service, methods)) = SERVICES.iter().find(|(known, _)| *known == service) else {
            let known: Vec<_> = SERVICES.iter().map(|(known, _)| *known).collect();
            return Err(no_such("service", service, &known));
        };
        if method == "*" {
            return Ok(Self::Service(service));
        }
        match methods.iter().find(|known| **known == method) {
            Some(method) => Ok(Self::Method(service, method)),
            None => Err(no_such(&format!("method of {service}"), method, methods)),
        }
    }

    fn print(&self) -> String {
        match self {
            Self::All => quoted("*"),
            Self::Service(service) => quoted(&format!("{service}/*")),
            Self::Method(service, method) => quoted(&format!("{service}/{method}")),
        }
    }
}

leaf!(MethodPattern);

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs};

    use super::*;

    #[test]
    fn the_names_are_those_of_the_contract() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto/alipayplus/cancel/v1");
        let mut contract = BTreeSet::new();
        for entry in fs::read_dir(folder).unwrap() {
            let text = fs::read_to_string(entry.unwrap().path()).unwrap();
            let mut service = String::new();
            for line in text.lines().map(str::trim) {
                let name = |rest: &str| rest.split([' ', '(', '{']).next().unwrap().to_owned();
                if let Some(rest) = line.strip_prefix("service ") {
                    service = name(rest);
                } else if let Some(rest) = line.strip_prefix("rpc ") {
                    contract.insert(format!("{service}/{}", name(rest)));
                }
            }
        }
        let of = |(service, methods): &(&str, &[&str])| -> Vec<String> {
            methods.iter().map(|method| format!("{service}/{method}")).collect()
        };
        assert_eq!(SERVICES.iter().flat_map(of).collect::<BTreeSet<_>>(), contract);
    }

    #[test]
    fn a_pattern_reads_back_and_a_misspelt_one_is_told_what_was_meant() {
        let parse = |text: &str| MethodPattern::parse(&Value::Text(text.to_owned()), None);
        for text in ["*", "FeedService/*", "TokenService/IntrospectToken"] {
            assert_eq!(parse(text).unwrap().print(), quoted(text));
        }
        let why = |text: &str| match parse(text) {
            Err(Refused::Because(why)) => why,
            other => panic!("{text}: {other:?}"),
        };
        assert!(why("TokenServices/*").contains("did you mean `TokenService`?"));
        assert!(why("TokenService/Introspect").contains("did you mean `IntrospectToken`?"));
        assert!(why("Xyz/*").contains("there are CancelService, "));
        assert!(why("alipayplus.cancel.v1.FeedService/*").contains("did you mean `FeedService`?"));
        for text in ["", "TokenService", "/", "**"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
