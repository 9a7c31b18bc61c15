//! The same request gets the same result, without a time limit: one after the other, at once, and written differently.

use serde_json::json;

use super::{Checks, Source};
use crate::cli::{
    certify::wallet::{Seal, Stop, Verdict, Wallet, must},
    target::unique,
    wire::Request,
};

const PAYMENTS: &str = "docs/semantics.md § CancelPayment";
const TOKENS: &str = "docs/semantics.md § CancelToken";
const PAGE: &str = "Alipay+ cancelPayment § Request parameters";

/// How many are sent at once.
const AT_ONCE: usize = 16;

fn all(wallet: &Wallet, requests: &[Request], code: &str) -> Verdict {
    let answers = wallet.at_once(requests)?;
    for (request, answer) in requests.iter().zip(&answers) {
        wallet.judge(request, answer, code, Seal::Signed)?;
    }
    Ok(())
}

/// The same fields in another order.
fn reordered(wallet: &Wallet, id: &str) -> String {
    let [id, psp, acquirer] =
        [id, &wallet.target.psp, &wallet.target.acquirer].map(|text| json!(text));
    format!(r#"{{ "paymentRequestId": {id}, "pspId": {psp}, "acquirerId": {acquirer} }}"#)
}

pub(super) fn checks(checks: &mut Checks) {
    checks.rule(Source::Published, PAGE);
    checks.add("payment", "cancelPayment five times gets one result", |wallet| {
        let id = unique("certify");
        for _ in 0..5 {
            wallet.succeeds(&wallet.payment_of(&id))?;
        }
        Ok(())
    });
    checks.add("payment-bytes", "The very same bytes again get the same result", |wallet| {
        let request = wallet.payment().sealed();
        for _ in 0..3 {
            wallet.succeeds(&request)?;
        }
        Ok(())
    });
    checks.add(
        "payment-rewritten",
        "The same payment in another body gets the same result",
        |wallet| {
            let id = unique("certify");
            wallet.succeeds(&wallet.payment_of(&id))?;
            wallet.succeeds(&wallet.payment().body(reordered(wallet, &id))).map(drop)
        },
    );
    checks.add("payment-parallel", "Sixteen at once get one result", |wallet| {
        let id = unique("certify");
        let requests: Vec<_> = (0..AT_ONCE).map(|_| wallet.payment_of(&id)).collect();
        all(wallet, &requests, "SUCCESS")?;
        wallet.succeeds(&wallet.payment_of(&id)).map(drop)
    });
    checks.add(
        "payment-parallel-distinct",
        "Sixteen payments at once are sixteen results",
        |wallet| {
            let requests: Vec<_> = (0..AT_ONCE).map(|_| wallet.payment()).collect();
            all(wallet, &requests, "SUCCESS")
        },
    );
    checks.add(
        "payment-parallel-bodies",
        "The same payment at once in two kinds of bodies gets one result",
        |wallet| {
            let id = unique("certify");
            let request = |n: usize| {
                let request = wallet.payment_of(&id);
                if n.is_multiple_of(2) { request } else { request.body(reordered(wallet, &id)) }
            };
            all(wallet, &(0..AT_ONCE).map(request).collect::<Vec<_>>(), "SUCCESS")
        },
    );
    checks.rule(Source::Published, TOKENS);
    checks.add("token", "cancelToken of an unknown token five times gets one result", |wallet| {
        let token = unique("certify-token");
        for _ in 0..5 {
            wallet.refuses(&wallet.token_of(&token), "INVALID_TOKEN")?;
        }
        Ok(())
    });
    checks.add("token-parallel", "Sixteen at once get one result", |wallet| {
        let token = unique("certify-token");
        let requests: Vec<_> = (0..AT_ONCE).map(|_| wallet.token_of(&token)).collect();
        all(wallet, &requests, "INVALID_TOKEN")
    });
    checks.rule(Source::Advice, PAYMENTS);
    checks.add(
        "other-acquirer",
        "Another acquirer's cancel is ACCESS_DENIED, and changes nothing",
        |wallet| {
            let id = unique("certify");
            wallet.succeeds(&wallet.payment_of(&id))?;
            let mut target = wallet.target.clone();
            target.acquirer = "certify-other-acquirer".into();
            if wallet.foreign_acquirer.is_some() {
                return Err(Stop::Skipped(
                    "needs a client that may act for other acquirers".to_owned(),
                ));
            }
            wallet.refuses(&wallet.payment().body(target.payment_body(&id)), "ACCESS_DENIED")?;
            wallet.succeeds(&wallet.payment_of(&id)).map(drop)
        },
    );
    checks.add(
        "case",
        "Ids are compared byte for byte: another case is another payment",
        |wallet| {
            let id = unique("Certify");
            wallet.succeeds(&wallet.payment_of(&id))?;
            let mut target = wallet.target.clone();
            target.acquirer = "certify-other-acquirer".into();
            if wallet.foreign_acquirer.is_some() {
                return Err(Stop::Skipped(
                    "needs a client that may act for other acquirers".to_owned(),
                ));
            }
            // it belongs to nobody yet, so another acquirer may have it
            let body = target.payment_body(&id.to_ascii_uppercase());
            wallet.succeeds(&wallet.payment().body(body)).map(drop)
        },
    );
    checks.add("refused-unrecorded", "A refused parameter is not remembered", |wallet| {
        let id = unique("certify");
        let refused =
            json!({ "acquirerId": "", "pspId": wallet.target.psp, "paymentRequestId": id });
        wallet.refuses(&wallet.payment().body(refused.to_string()), "PARAM_ILLEGAL")?;
        wallet.succeeds(&wallet.payment_of(&id)).map(drop)
    });
    checks.add(
        "unproven-unrecorded",
        "A request that did not prove itself is not remembered",
        |wallet| {
            let token = unique("certify-token");
            let forged = wallet.token_of(&token).key(super::super::stranger());
            wallet.turns_away(&forged, "INVALID_SIGNATURE")?;
            let answer = wallet.send(&wallet.token_of(&token))?;
            must(
                answer.result("resultCode").as_deref() == Some("INVALID_TOKEN"),
                "it was remembered",
            )
        },
    );
}
