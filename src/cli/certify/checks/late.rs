//! Payments that the wallet's own side records: before, after and beside the cancel. After a cancel's SUCCESS no money may
//! be kept, whatever the payment does then.

use std::thread;

use super::{Checks, Source};
use crate::{
    cli::certify::wallet::{Stop, Verdict, Wallet, failed, must},
    grpc::recorder::{Fact, Funds, Payment, RecordPaymentAnswer as Answer},
};

const PAYMENTS: &str = "docs/semantics.md § CancelPayment";
const RECORDS: &str = "docs/semantics.md § RecordPayment";

/// A payment of this moment, to be told of by the wallet's side.
fn payment(wallet: &Wallet) -> Result<Payment, Stop> {
    wallet.recorder()?;
    Ok(wallet.target.new_payment(jiff::Timestamp::now().as_millisecond()))
}

fn record(wallet: &Wallet, payment: &Payment, fact: Fact, due: Answer) -> Verdict {
    let shown = format!("{fact:?}");
    let got = wallet.wallet_side(wallet.recorder()?.record(payment, fact))?;
    must(
        got == due,
        format!("the wallet's side, told {shown}, answered {got:?} instead of {due:?}"),
    )
}

/// The wallet owes all of it, and says so to whoever inquires.
fn owes(wallet: &Wallet, payment: &Payment, funds: Funds, due: Option<i64>) -> Verdict {
    let story = wallet.wallet_side(wallet.recorder()?.story(payment))?;
    let Some(story) = story else {
        return failed("the wallet's side knows nothing of the payment");
    };
    must(
        story.funds == funds && story.due == due,
        format!("its money is {:?}, {:?} due; expected {funds:?}, {due:?}", story.funds, story.due),
    )?;
    must(
        story.inquiry.as_deref() == Some("ORDER_IS_CLOSED"),
        format!("inquiryPayment would answer {:?}, not ORDER_IS_CLOSED", story.inquiry),
    )
}

fn cancel(wallet: &Wallet, payment: &Payment) -> Verdict {
    wallet.succeeds(&wallet.payment_of(&payment.id)).map(drop)
}

pub(super) fn checks(checks: &mut Checks) {
    late(checks);
    states(checks);
    refunds(checks);
    races(checks);
}

fn late(checks: &mut Checks) {
    checks.rule(Source::Published, RECORDS);
    checks.add("begins-after", "A payment that begins after its cancel is refused", |wallet| {
        let payment = payment(wallet)?;
        cancel(wallet, &payment)?;
        record(wallet, &payment, Fact::Initiated, Answer::RefusedCancelled)?;
        owes(wallet, &payment, Funds::None, None)
    });
    checks.add(
        "succeeds-after",
        "A success that is told after the cancel of an unknown payment means money back",
        |wallet| {
            let payment = payment(wallet)?;
            cancel(wallet, &payment)?;
            record(wallet, &payment, Fact::Succeeded, Answer::ReturnFunds)?;
            record(wallet, &payment, Fact::Succeeded, Answer::ReturnFunds)?;
            owes(wallet, &payment, Funds::ReturnDue, Some(payment.amount))?;
            cancel(wallet, &payment)
        },
    );
    checks.add(
        "amid",
        "A payment that is cancelled while it is under way, and then succeeds, means money back",
        |wallet| {
            let payment = payment(wallet)?;
            record(wallet, &payment, Fact::Initiated, Answer::Proceed)?;
            cancel(wallet, &payment)?;
            record(wallet, &payment, Fact::Succeeded, Answer::ReturnFunds)?;
            owes(wallet, &payment, Funds::ReturnDue, Some(payment.amount))?;
            cancel(wallet, &payment)
        },
    );
    checks.add(
        "fails-then-succeeds",
        "A payment that failed, was cancelled, and turns out to have succeeded means money back",
        |wallet| {
            let payment = payment(wallet)?;
            record(wallet, &payment, Fact::Initiated, Answer::Proceed)?;
            record(wallet, &payment, Fact::Failed, Answer::Accepted)?;
            cancel(wallet, &payment)?;
            record(wallet, &payment, Fact::Succeeded, Answer::ReturnFunds)?;
            owes(wallet, &payment, Funds::ReturnDue, Some(payment.amount))?;
            cancel(wallet, &payment)
        },
    );
}

fn states(checks: &mut Checks) {
    checks.rule(Source::Published, PAYMENTS);
    checks.add(
        "succeeded",
        "A payment that succeeded is cancelled, and all of its money is due back",
        |wallet| {
            let payment = payment(wallet)?;
            record(wallet, &payment, Fact::Initiated, Answer::Proceed)?;
            record(wallet, &payment, Fact::Succeeded, Answer::Accepted)?;
            cancel(wallet, &payment)?;
            cancel(wallet, &payment)?;
            owes(wallet, &payment, Funds::ReturnDue, Some(payment.amount))
        },
    );
    checks.add("failed", "A payment that failed is cancelled, and nothing is due", |wallet| {
        let payment = payment(wallet)?;
        record(wallet, &payment, Fact::Initiated, Answer::Proceed)?;
        record(wallet, &payment, Fact::Failed, Answer::Accepted)?;
        cancel(wallet, &payment)?;
        owes(wallet, &payment, Funds::None, None)
    });
    checks.add(
        "amid-then-fails",
        "A payment that is cancelled while it is under way, and fails, owes nothing",
        |wallet| {
            let payment = payment(wallet)?;
            record(wallet, &payment, Fact::Initiated, Answer::Proceed)?;
            cancel(wallet, &payment)?;
            record(wallet, &payment, Fact::Failed, Answer::Accepted)?;
            owes(wallet, &payment, Funds::None, None)
        },
    );
    checks.rule(Source::Advice, PAYMENTS);
    checks.add(
        "other-acquirer",
        "A payment of another acquirer is ACCESS_DENIED, and stays as it is",
        |wallet| {
            let mut payment = payment(wallet)?;
            payment.acquirer = "certify-other-acquirer".into();
            record(wallet, &payment, Fact::Succeeded, Answer::Accepted)?;
            wallet.refuses(&wallet.payment_of(&payment.id), "ACCESS_DENIED")?;
            let story = wallet.wallet_side(wallet.recorder()?.story(&payment))?;
            must(
                story.is_some_and(|story| story.funds == Funds::Held),
                "its money is no longer held",
            )
        },
    );
}

fn refunds(checks: &mut Checks) {
    checks.rule(Source::Advice, PAYMENTS);
    checks.add(
        "refunded",
        "A payment that was refunded in part is PROCESS_FAIL, for ever",
        |wallet| {
            let payment = payment(wallet)?;
            record(wallet, &payment, Fact::Succeeded, Answer::Accepted)?;
            record(wallet, &payment, Fact::RefundStarted("refund-1", 500), Answer::Accepted)?;
            record(wallet, &payment, Fact::RefundSucceeded("refund-1"), Answer::Accepted)?;
            for _ in 0..2 {
                wallet.refuses(&wallet.payment_of(&payment.id), "PROCESS_FAIL")?;
            }
            Ok(())
        },
    );
    checks.add(
        "refund-under-way",
        "While a refund is under way the answer is U, and a retry finds it decided",
        |wallet| {
            let payment = payment(wallet)?;
            record(wallet, &payment, Fact::Succeeded, Answer::Accepted)?;
            record(wallet, &payment, Fact::RefundStarted("refund-1", 500), Answer::Accepted)?;
            wallet.refuses(&wallet.payment_of(&payment.id), "UNKNOWN_EXCEPTION")?;
            record(wallet, &payment, Fact::RefundFailed("refund-1"), Answer::Accepted)?;
            cancel(wallet, &payment)?;
            owes(wallet, &payment, Funds::ReturnDue, Some(payment.amount))
        },
    );
    checks.add("refund-after", "No refund begins after a cancel", |wallet| {
        let payment = payment(wallet)?;
        record(wallet, &payment, Fact::Succeeded, Answer::Accepted)?;
        cancel(wallet, &payment)?;
        record(wallet, &payment, Fact::RefundStarted("refund-1", 500), Answer::RefusedCancelled)
    });
}

fn races(checks: &mut Checks) {
    checks.rule(Source::Published, PAYMENTS);
    checks.add(
        "race-success",
        "However a cancel and a success race, the money is due back",
        |wallet| {
            for _ in 0..4 {
                let payment = payment(wallet)?;
                record(wallet, &payment, Fact::Initiated, Answer::Proceed)?;
                let (cancelled, told) = thread::scope(|scope| {
                    let cancelled = scope.spawn(|| cancel(wallet, &payment));
                    let told =
                        wallet.wallet_side(wallet.recorder()?.record(&payment, Fact::Succeeded));
                    Ok::<_, Stop>((cancelled.join(), told))
                })?;
                cancelled.unwrap_or_else(|_| failed("a sender failed"))?;
                let told = told?;
                must(
                    matches!(told, Answer::Accepted | Answer::ReturnFunds),
                    format!("the success was answered {told:?}"),
                )?;
                owes(wallet, &payment, Funds::ReturnDue, Some(payment.amount))?;
            }
            Ok(())
        },
    );
    checks.add("race-begin", "However a cancel and a beginning race, nothing is kept", |wallet| {
        for _ in 0..4 {
            let payment = payment(wallet)?;
            let (cancelled, told) = thread::scope(|scope| {
                let cancelled = scope.spawn(|| cancel(wallet, &payment));
                let told = wallet.wallet_side(wallet.recorder()?.record(&payment, Fact::Initiated));
                Ok::<_, Stop>((cancelled.join(), told))
            })?;
            cancelled.unwrap_or_else(|_| failed("a sender failed"))?;
            let told = told?;
            must(
                matches!(told, Answer::Proceed | Answer::RefusedCancelled),
                format!("the beginning was answered {told:?}"),
            )?;
            owes(wallet, &payment, Funds::None, None)?;
        }
        Ok(())
    });
}
