//! Bodies that were signed and are not one plain JSON object: two readers would read them differently.

use serde_json::json;

use super::{Checks, Source, form::with};
use crate::cli::{
    certify::wallet::{Seal, Wallet, failed},
    target::unique,
    wire::Framing,
};

const BODY: &str = "docs/wire.md § The body";
const ORDER: &str = "docs/wire.md § Order of checks";
const BODY_BYTES_MAX: usize = 512 * 1024;

/// Writes a header or a body from its parts.
type Write = fn(&str, &str, &str) -> Vec<u8>;

/// A right body, written by hand from its three values.
fn written(wallet: &Wallet, write: impl Fn(&str, &str, &str) -> Vec<u8>) -> Vec<u8> {
    write(&wallet.target.acquirer, &wallet.target.psp, &unique("certify"))
}

pub(super) fn checks(checks: &mut Checks) {
    checks.rule(Source::Published, BODY);
    let bodies: [(&str, &str, &[u8]); 9] = [
        ("empty", "An empty body", b""),
        ("blank", "A blank body", b"  \n"),
        ("words", "A body that is no JSON", b"cancel it, please"),
        ("null", "null", b"null"),
        ("number", "A number", b"1"),
        ("string", "A string", b"\"cancel\""),
        ("form", "A form", b"acquirerId=a&pspId=p&paymentRequestId=r"),
        ("empty-object", "An empty object", b"{}"),
        ("cut", "A body that breaks off", b"{\"acquirerId\":\"a\",\"pspId\":\"p\",\"paymentReq"),
    ];
    for (name, what, body) in bodies {
        checks.add(name, format!("{what} is PARAM_ILLEGAL, signed"), move |wallet| {
            wallet.refuses(&wallet.payment().body(body), "PARAM_ILLEGAL")
        });
    }
    let object = |a: &str, p: &str, r: &str| {
        format!(r#"{{"acquirerId":"{a}","pspId":"{p}","paymentRequestId":"{r}"}}"#)
    };
    checks.rule(Source::Advice, BODY);
    let written_ones: [(&str, &str, Write); 17] = [
        ("array", "An array of the values in their order", |a, p, r| {
            format!(r#"["{a}","{p}","{r}"]"#).into_bytes()
        }),
        ("array-around", "An array around the object", |a, p, r| {
            format!(r#"[{{"acquirerId":"{a}","pspId":"{p}","paymentRequestId":"{r}"}}]"#)
                .into_bytes()
        }),
        ("two", "Two objects", |a, p, r| {
            format!(r#"{{"acquirerId":"{a}","pspId":"{p}","paymentRequestId":"{r}"}}{{}}"#)
                .into_bytes()
        }),
        ("trailing", "Something behind the object", |a, p, r| {
            format!(r#"{{"acquirerId":"{a}","pspId":"{p}","paymentRequestId":"{r}"}} x"#)
                .into_bytes()
        }),
        ("bom", "A byte order mark", |a, p, r| {
            format!(
                "\u{feff}{{\"acquirerId\":\"{a}\",\"pspId\":\"{p}\",\"paymentRequestId\":\"{r}\"}}"
            )
            .into_bytes()
        }),
        ("not-utf-8", "A parameter that is not UTF-8", |a, p, r| {
            let begin = format!(r#"{{"acquirerId":"{a}","pspId":"{p}","paymentRequestId":"{r}"#);
            [begin.as_bytes(), b"\xff\"}"].concat()
        }),
        ("not-utf-8-unknown", "An unknown field that is not UTF-8", |a, p, r| {
            let begin =
                format!(r#"{{"acquirerId":"{a}","pspId":"{p}","paymentRequestId":"{r}","x":""#);
            [begin.as_bytes(), b"\xc3\x28\"}"].concat()
        }),
        ("overlong", "A character in more bytes than it needs", |a, p, r| {
            let begin = format!(r#"{{"acquirerId":"{a}","pspId":"{p}","paymentRequestId":"{r}"#);
            [begin.as_bytes(), b"\xc0\xaf\"}"].concat()
        }),
        ("utf-16", "UTF-16", |a, p, r| {
            let text = format!(r#"{{"acquirerId":"{a}","pspId":"{p}","paymentRequestId":"{r}"}}"#);
            text.encode_utf16().flat_map(u16::to_le_bytes).collect()
        }),
        ("lone-surrogate", "Half a surrogate pair", |a, p, r| {
            format!(r#"{{"acquirerId":"{a}","pspId":"{p}","paymentRequestId":"{r}\ud83d"}}"#)
                .into_bytes()
        }),
        ("duplicate", "A parameter twice", |a, p, r| {
            format!(r#"{{"acquirerId":"{a}","pspId":"{p}","paymentRequestId":"other","paymentRequestId":"{r}"}}"#).into_bytes()
        }),
        ("duplicate-escaped", "A parameter twice, once with an escape", |a, p, r| {
            format!(r#"{{"acquirerId":"{a}","pspId":"{p}","paymentRequestI\u0064":"other","paymentRequestId":"{r}"}}"#).into_bytes()
        }),
        ("duplicate-unknown", "An unknown field twice", |a, p, r| {
            format!(r#"{{"acquirerId":"{a}","pspId":"{p}","paymentRequestId":"{r}","x":{{"y":1,"y":2}}}}"#).into_bytes()
        }),
        ("single-quotes", "Single quotes", |a, p, r| {
            format!("{{'acquirerId':'{a}','pspId':'{p}','paymentRequestId':'{r}'}}").into_bytes()
        }),
        ("trailing-comma", "A comma behind the last field", |a, p, r| {
            format!(r#"{{"acquirerId":"{a}","pspId":"{p}","paymentRequestId":"{r}",}}"#)
                .into_bytes()
        }),
        ("comment", "A comment", |a, p, r| {
            format!(r#"{{"acquirerId":"{a}","pspId":"{p}","paymentRequestId":"{r}"/* now */}}"#)
                .into_bytes()
        }),
        ("nan", "NaN in an unknown field", |a, p, r| {
            format!(r#"{{"acquirerId":"{a}","pspId":"{p}","paymentRequestId":"{r}","x":NaN}}"#)
                .into_bytes()
        }),
    ];
    for (name, what, write) in written_ones {
        checks.add(name, format!("{what} is PARAM_ILLEGAL, signed"), move |wallet| {
            let body = written(wallet, write);
            wallet.refuses(&wallet.payment().body(body), "PARAM_ILLEGAL")
        });
    }
    checks.add(
        "huge-number",
        "A number beyond a double in an unknown field is PARAM_ILLEGAL, signed",
        move |wallet| {
            let body = written(wallet, |a, p, r| {
                object(a, p, r).replace('}', ",\"x\":1e999}").into_bytes()
            });
            wallet.refuses(&wallet.payment().body(body), "PARAM_ILLEGAL")
        },
    );
    checks.add(
        "deep",
        "A hundred levels in an unknown field are PARAM_ILLEGAL, signed",
        move |wallet| {
            let deep = format!(",\"x\":{}{}}}", "[".repeat(100), "]".repeat(100));
            let body = written(wallet, |a, p, r| object(a, p, r).replace('}', &deep).into_bytes());
            wallet.refuses(&wallet.payment().body(body), "PARAM_ILLEGAL")
        },
    );
    checks.add(
        "very-deep",
        "A hundred thousand levels are PARAM_ILLEGAL, and harm nobody",
        move |wallet| {
            let deep = format!(",\"x\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
            let body = written(wallet, |a, p, r| object(a, p, r).replace('}', &deep).into_bytes());
            wallet.refuses(&wallet.payment().body(body), "PARAM_ILLEGAL")?;
            wallet.succeeds(&wallet.payment()).map(drop)
        },
    );
    checks.add("many-keys", "A thousand fields are PARAM_ILLEGAL, signed", |wallet| {
        let more: serde_json::Map<String, serde_json::Value> =
            (0..1_000).map(|n| (format!("field{n}"), json!("x"))).collect();
        wallet.refuses(&with(wallet, &more.into()), "PARAM_ILLEGAL")
    });
    checks.rule(Source::Advice, ORDER);
    checks.add("longest", "A body of 512 KiB is read", |wallet| {
        let request = sized(wallet, BODY_BYTES_MAX);
        wallet.succeeds(&request).map(drop)
    });
    checks.add("too-long", "A body of a byte more is PARAM_ILLEGAL", |wallet| {
        wallet.turns_away(&sized(wallet, BODY_BYTES_MAX + 1), "PARAM_ILLEGAL")
    });
    checks.add("too-long-chunked", "A chunked body of a byte more is PARAM_ILLEGAL", |wallet| {
        let request = sized(wallet, BODY_BYTES_MAX + 1).framing(Framing::Chunked(60_000));
        wallet.turns_away(&request, "PARAM_ILLEGAL")
    });
    checks.add(
        "far-too-long",
        "A body that is announced to be a terabyte is refused without waiting for it",
        |wallet| {
            let request =
                wallet.payment().framing(Framing::Unsaid).line("Content-Length: 1099511627776");
            let mut connection = wallet.connect()?;
            connection.write(&request.head());
            match wallet.answer_on(&mut connection, &request) {
                Ok(answer) => wallet.judge(&request, &answer, "PARAM_ILLEGAL", Seal::IfAny),
                Err(_) => failed("there is no answer"),
            }
        },
    );
}

/// A right request whose body has exactly so many bytes.
fn sized(wallet: &Wallet, bytes: usize) -> crate::cli::wire::Request {
    let mut body = wallet.target.payment_body(&unique("certify"));
    body.push_str(&" ".repeat(bytes.saturating_sub(body.len())));
    wallet.payment().body(body)
}
