//! Whether answers are signed, over what, and who gets no signature.

use super::{Checks, Source};
use crate::cli::{
    certify::wallet::{Seal, Verdict, Wallet, failed, must},
    wire::{Request, signature_of},
};

const SIGNED: &str = "docs/wire.md § What is signed";
const WHO: &str = "docs/wire.md § Who gets a signature";

fn signed(wallet: &Wallet, request: &Request) -> Verdict {
    wallet.look(request, |answer| wallet.judge_seal(request, answer, Seal::Signed))
}

/// No signature, and nothing that could be taken for a part of one.
fn unsigned(wallet: &Wallet, request: &Request) -> Verdict {
    wallet.look(request, |answer| {
        let found = ["signature", "client-id", "response-time"]
            .into_iter()
            .find(|name| answer.header(name).is_some());
        found.map_or(Ok(()), |name| failed(format!("the answer has a {name}")))
    })
}

pub(super) fn checks(checks: &mut Checks) {
    checks.rule(Source::Published, SIGNED);
    checks.add("done", "An S is signed", |wallet| signed(wallet, &wallet.payment()));
    checks.add("token", "An F of cancelToken is signed", |wallet| signed(wallet, &wallet.token()));
    checks.add("repeated", "A repeated answer is signed", |wallet| {
        let request = wallet.payment();
        signed(wallet, &request)?;
        signed(wallet, &request)
    });
    checks.add("body", "A refused body is answered signed", |wallet| {
        signed(wallet, &wallet.payment().body("not JSON"))
    });
    checks.add("parameter", "A refused parameter is answered signed", |wallet| {
        signed(wallet, &wallet.payment_of(&"x".repeat(65)))
    });
    checks.rule(Source::Advice, SIGNED);
    checks.add("query", "A query is in what the answer's signature is over", |wallet| {
        let request = wallet.payment();
        let target = format!("{}?x=1", request.target);
        signed(wallet, &request.target(target))
    });
    checks.add("one-version", "All answers name one keyVersion", |wallet| {
        let mut versions = Vec::new();
        for request in [wallet.payment(), wallet.token(), wallet.payment().body("[]")] {
            let answer = wallet.send(&request)?;
            versions.push(signature_of(&answer).and_then(|header| header.key_version));
        }
        versions.dedup();
        must(versions.len() == 1 && versions[0].is_some(), format!("they name {versions:?}"))
    });
    checks.add(
        "own-time",
        "The signature is over response-time, not over the request's time",
        |wallet| {
            let request = wallet.payment().times(&["2019-05-28T12:12:12+08:00"]);
            wallet.look(&request, |answer| {
                let time = answer.header("response-time").unwrap_or_default();
                must(!time.starts_with("2019"), "response-time is the request's")?;
                wallet.judge_seal(&request, answer, Seal::Signed)
            })
        },
    );
    checks.rule(Source::Advice, WHO);
    let unproven = |wallet: &Wallet| wallet.payment().sealed().times(&["2019-05-28T12:12:12Z"]);
    checks.add(
        "registered",
        "A registered client that proved nothing is answered signed on a served path",
        move |wallet| signed(wallet, &unproven(wallet)),
    );
    checks.add("none-unknown-client", "Who is not registered gets no signature", |wallet| {
        unsigned(wallet, &wallet.payment().client_ids(&["NOBODY_KNOWS_IT"]))
    });
    checks.add("none-no-client", "Who says no Client-Id gets no signature", |wallet| {
        unsigned(wallet, &wallet.payment().client_ids(&[]))
    });
    checks.add("none-unknown-path", "A path that is not served gets no signature", |wallet| {
        let path = wallet.target.path("/v1/payments/pay");
        unsigned(wallet, &wallet.payment().target(path))
    });
    checks.add("none-method", "Another method gets no signature", |wallet| {
        unsigned(wallet, &wallet.payment().method("PUT"))
    });
    checks.add(
        "none-unproven-query",
        "A query that is not proven gets no signature",
        move |wallet| {
            let request = unproven(wallet);
            let target = format!("{}?text=of%20my%20choosing", request.target);
            unsigned(wallet, &request.target(target))
        },
    );
}
