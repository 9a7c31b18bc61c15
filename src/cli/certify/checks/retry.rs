//! Alipay+ waits 8 s for cancelPayment and 5 s for cancelToken, and then sends the same request again: what was on its way
//! meanwhile must not make a second result.

use std::{thread, time::Duration};

use super::{Checks, Source};
use crate::cli::{
    certify::wallet::{Seal, Stop, Verdict, Wallet, must, told},
    target::{seconds, unique},
    wire::Request,
};

const EXCHANGE: &str = "docs/wire.md § Exchange";
const PAYMENTS: &str = "docs/semantics.md § CancelPayment";

/// Whether the slowest of some answers is in time.
fn in_time(wallet: &Wallet, requests: &[Request]) -> Verdict {
    let answers = wallet.at_once(requests)?;
    for (request, answer) in requests.iter().zip(&answers) {
        let wait = wallet.wait(request);
        must(answer.took <= wait, format!("an answer took {}", seconds(answer.took)))?;
    }
    Ok(())
}

pub(super) fn checks(checks: &mut Checks) {
    checks.rule(Source::Published, EXCHANGE);
    checks.add(
        "in-time-payment",
        "cancelPayment is answered before Alipay+ gives up, 8 s",
        |wallet| in_time(wallet, &(0..8).map(|_| wallet.payment()).collect::<Vec<_>>()),
    );
    checks.add("in-time-token", "cancelToken is answered before Alipay+ gives up, 5 s", |wallet| {
        in_time(wallet, &(0..8).map(|_| wallet.token()).collect::<Vec<_>>())
    });
    checks.add("burst", "Forty requests at once are all answered", |wallet| {
        let requests: Vec<_> = (0..40).map(|_| wallet.payment()).collect();
        let answers = wallet.at_once(&requests)?;
        for (request, answer) in requests.iter().zip(&answers) {
            wallet.judge(request, answer, "SUCCESS", Seal::Signed)?;
        }
        Ok(())
    });
    checks.rule(Source::Published, PAYMENTS);
    checks.add(
        "abandoned",
        "A request whose answer nobody waited for is answered the same when it comes again",
        |wallet| {
            let request = wallet.payment().sealed();
            wallet.abandon(&request, usize::MAX)?;
            wallet.succeeds(&request)?;
            wallet.succeeds(&request).map(drop)
        },
    );
    checks.add("abandoned-token", "The same of cancelToken", |wallet| {
        let request = wallet.token().sealed();
        wallet.abandon(&request, usize::MAX)?;
        wallet.refuses(&request, "INVALID_TOKEN")?;
        wallet.refuses(&request, "INVALID_TOKEN")
    });
    checks.add(
        "half-sent",
        "A request that broke off is not done, and is answered when it comes whole",
        |wallet| {
            let request = wallet.payment().sealed();
            let most = request.bytes().len();
            wallet.abandon(&request, most - 5)?;
            wallet.succeeds(&request).map(drop)
        },
    );
    checks.add("beside", "A retry beside the first request gets the same result as it", |wallet| {
        let id = unique("certify");
        let first = wallet.payment_of(&id);
        let mut connection = wallet.connect()?;
        let bytes = first.bytes();
        let (begin, end) = bytes.split_at(bytes.len() - 5);
        connection.write(begin);
        let retry = wallet.payment_of(&id);
        wallet.succeeds(&retry)?;
        connection.write(end);
        let answer = wallet.answer_on(&mut connection, &first);
        let answer = answer.map_err(|error| Stop::Failed(told(&error)))?;
        wallet.judge(&first, &answer, "SUCCESS", Seal::Signed)
    });
    checks.add("new-signature", "A retry that is signed anew gets the same result", |wallet| {
        let request = wallet.payment();
        wallet.succeeds(&request)?;
        wallet.succeeds(&request.clone().times(&["2019-05-28T12:12:12.5Z"]))?;
        wallet.succeeds(&request.times(&["1559016732000"])).map(drop)
    });
    checks.add(
        "storm",
        "Retries that come while earlier ones are given up get one result",
        |wallet| {
            let request = wallet.payment().sealed();
            for _ in 0..10 {
                wallet.abandon(&request, usize::MAX)?;
                thread::sleep(Duration::from_millis(2));
            }
            wallet.succeeds(&request)?;
            wallet.succeeds(&request).map(drop)
        },
    );
}
