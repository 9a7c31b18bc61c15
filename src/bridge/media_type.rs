//! Whether a Content-Type says JSON in UTF-8.

/// True for `application/json` with no charset or UTF-8; other parameters are ignored. Takes one header value: official
/// Go clients send the header twice, so every value must pass.
///
/// `utf8` without the hyphen passes too: it can only mean UTF-8, the body is checked anyway, and a refusal here is
/// final for Alipay+.
pub fn is_json_utf8(value: &[u8]) -> bool {
    let Ok(value) = std::str::from_utf8(value) else { return false };
    let (media_type, parameters) = value.split_once(';').unwrap_or((value, ""));
    trim(media_type).eq_ignore_ascii_case("application/json") && charset_is_utf8(parameters)
}

fn charset_is_utf8(mut parameters: &str) -> bool {
    while !trim(parameters).is_empty() {
        let Some((parameter, rest)) = next_parameter(parameters) else { return false };
        parameters = rest;
        let Some((name, charset)) = parameter.split_once('=') else { continue };
        if trim(name).eq_ignore_ascii_case("charset") && !is_utf8(trim(charset)) {
            return false;
        }
    }
    true
}

/// Cuts at the next `;` outside quotes; `None` if a quote stays open.
fn next_parameter(parameters: &str) -> Option<(&str, &str)> {
    let mut quoted = false;
    let mut escaped = false;
    for (at, byte) in parameters.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b';' if !quoted => return Some((parameters.get(..at)?, parameters.get(at + 1..)?)),
            _ => {}
        }
    }
    (!quoted).then_some((parameters, ""))
}

fn is_utf8(charset: &str) -> bool {
    let quoted = charset.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let charset = quoted.unwrap_or(charset);
    charset.eq_ignore_ascii_case("utf-8") || charset.eq_ignore_ascii_case("utf8")
}

/// Without the optional white space of RFC 9110: spaces and tabs.
fn trim(text: &str) -> &str {
    text.trim_matches([' ', '\t'])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn json_in_utf8_passes_however_it_is_spelled() {
        for value in [
            "application/json",
            "application/json; charset=UTF-8",
            "application/json;charset=utf-8",
            "Application/JSON ;\tCharset=\"utf-8\"",
            "application/json; charset=utf8",
            "application/json;",
            "application/json; ; charset=UTF-8",
            "application/json; profile=\"a;charset=latin1\"; charset=UTF-8",
            "application/json; profile=\"a\\\";charset=latin1\"",
            "application/json; version",
        ] {
            assert!(is_json_utf8(value.as_bytes()), "{value}");
        }
    }

    #[test]
    fn another_type_or_charset_does_not_pass() {
        for value in [
            "",
            ";",
            "text/json",
            "application/jsonp",
            "application/json, application/json",
            "application/problem+json",
            "application/json charset=UTF-8",
            "application/json; charset=GBK",
            "application/json; charset=",
            "application/json; charset=\"UTF-8",
            "application/json; charset=UTF-8; charset=ISO-8859-1",
            "application/json; charset='utf-8'",
            "application/json; version=1; charset=GBK",
            "application/json; version=\\; charset=GBK",
            "application/json; profile=\"\\\\\"; charset=GBK",
        ] {
            assert!(!is_json_utf8(value.as_bytes()), "{value}");
        }
        assert!(!is_json_utf8(b"application/json; a=\xff"));
    }

    proptest! {
        #[test]
        fn no_header_value_panics(value in prop::collection::vec(any::<u8>(), 0..80)) {
            is_json_utf8(&value);
            is_json_utf8(&[b"application/json;".as_slice(), &value].concat());
        }
    }
}
