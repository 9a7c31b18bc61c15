//! The cancel window: until 00:30:00 UTC+8 of the day after the payment began. Its edges are tried by payments that began
//! at the first and last millisecond of a day of UTC+8.

use super::{Checks, Source};
use crate::{
    cli::certify::wallet::{Stop, Verdict, Wallet, must},
    grpc::recorder::{Fact, Payment, RecordPaymentAnswer as Answer},
};

const WINDOW: &str = "docs/semantics.md § The window";
const DAY_MS: i64 = 86_400_000;
const OFFSET_MS: i64 = 8 * 3_600_000;
const MINUTE_MS: i64 = 60_000;

/// The beginning of a day of UTC+8, so many days ago; and milliseconds since today's.
fn day(ago: i64) -> (i64, i64) {
    let local = jiff::Timestamp::now().as_millisecond() + OFFSET_MS;
    let today = local - local.rem_euclid(DAY_MS);
    (today - ago * DAY_MS - OFFSET_MS, local - today)
}

/// A payment that began then.
fn payment(
    wallet: &Wallet,
    initiated_at_ms: i64,
    fact: Fact,
    due: Answer,
) -> Result<Payment, Stop> {
    let payment = wallet.target.new_payment(initiated_at_ms);
    let got = wallet.wallet_side(wallet.recorder()?.record(&payment, fact))?;
    must(got == due, format!("the wallet's side answered {got:?} instead of {due:?}"))?;
    Ok(payment)
}

/// Cancels it twice: whatever the verdict is, it is for ever.
fn twice(wallet: &Wallet, payment: &Payment, code: &str) -> Verdict {
    for _ in 0..2 {
        wallet.refuses(&wallet.payment_of(&payment.id), code)?;
    }
    Ok(())
}

pub(super) fn checks(checks: &mut Checks) {
    checks.rule(Source::Published, WINDOW);
    checks.add(
        "today",
        "A payment of the first moment of today (UTC+8) is in the window",
        |wallet| {
            let payment = payment(wallet, day(0).0, Fact::Succeeded, Answer::Accepted)?;
            twice(wallet, &payment, "SUCCESS")
        },
    );
    for (name, what, after_ms) in [
        ("yesterday-first", "the first moment", 0),
        ("yesterday-last", "the last millisecond", DAY_MS - 1),
    ] {
        let title = format!(
            "A payment of {what} of yesterday is in the window until 00:30, and past it then"
        );
        checks.add(name, title, move |wallet| {
            let (began, now) = day(1);
            // the wallet may grant some seconds on top, and two clocks differ
            if (25 * MINUTE_MS..40 * MINUTE_MS).contains(&now) {
                return Err(Stop::Skipped(
                    "needs another time of day than 00:25 to 00:40 UTC+8".to_owned(),
                ));
            }
            let due = if now < 30 * MINUTE_MS { "SUCCESS" } else { "CANCEL_WINDOW_EXCEED" };
            let payment = payment(wallet, began + after_ms, Fact::Succeeded, Answer::Accepted)?;
            twice(wallet, &payment, due)
        });
    }
    checks.add(
        "before-last",
        "A payment of the last millisecond of the day before yesterday is past it",
        |wallet| {
            let payment = payment(wallet, day(1).0 - 1, Fact::Succeeded, Answer::Accepted)?;
            twice(wallet, &payment, "CANCEL_WINDOW_EXCEED")
        },
    );
    checks.add("old", "A payment of last year is past it", |wallet| {
        let payment = payment(wallet, day(365).0, Fact::Succeeded, Answer::Accepted)?;
        twice(wallet, &payment, "CANCEL_WINDOW_EXCEED")
    });
    checks.add("old-unknown", "A payment that nobody knows has no window", |wallet| {
        wallet.succeeds(&wallet.payment()).map(drop)
    });
    checks.add("old-failed", "A payment that failed has no window", |wallet| {
        let initiated = day(5).0;
        let payment = payment(wallet, initiated, Fact::Initiated, Answer::Proceed)?;
        let told = wallet.wallet_side(wallet.recorder()?.record(&payment, Fact::Failed))?;
        must(told == Answer::Accepted, format!("the wallet's side answered {told:?}"))?;
        twice(wallet, &payment, "SUCCESS")
    });
    checks.add("old-under-way", "A payment that is not decided has no window", |wallet| {
        let payment = payment(wallet, day(5).0, Fact::Initiated, Answer::Proceed)?;
        twice(wallet, &payment, "SUCCESS")
    });
    checks.rule(Source::Published, "docs/semantics.md § CancelPayment");
    checks.add(
        "past-then-refunded",
        "What was past the window stays so, whatever the payment does",
        |wallet| {
            let payment = payment(wallet, day(3).0, Fact::Succeeded, Answer::Accepted)?;
            twice(wallet, &payment, "CANCEL_WINDOW_EXCEED")?;
            let refund = Fact::RefundStarted("refund-1", 500);
            wallet.wallet_side(wallet.recorder()?.record(&payment, refund))?;
            wallet.wallet_side(
                wallet.recorder()?.record(&payment, Fact::RefundSucceeded("refund-1")),
            )?;
            twice(wallet, &payment, "CANCEL_WINDOW_EXCEED")
        },
    );
}
