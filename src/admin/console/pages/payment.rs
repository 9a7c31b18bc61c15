//! One payment: what to tell the customer, then its timeline, then the facts.

use maud::{Markup, html};

use super::{amount, ms, trace};
use crate::{
    admin::console::{page, text},
    grpc::client::look::Look,
    grpc::wire::{self, Funds, PaymentLife, RefundState, ResultCode, ResultStatus},
};

/// The page, if anything is known of the payment.
pub(super) async fn body(look: &Look, psp: &str, id: &str) -> Option<Markup> {
    let told = match look.payment(psp, id).await {
        Ok(told) => told?,
        Err(why) => return Some(page::blind(&why)),
    };
    let payment = told.payment.as_ref()?;
    let (class, words) = verdict(payment);
    Some(html! {
        p class={ "answer " (class) } { (words) }
        h2 { "What happened" }
        (timeline(payment))
        h2 { "What is known" }
        (facts(payment, told.inquiry.as_ref()))
        @if !payment.refunds.is_empty() { h2 { "Refunds" } (refunds(&payment.refunds)) }
    })
}

/// The one sentence that the customer's question is answered by.
fn verdict(payment: &wire::Payment) -> (&'static str, Markup) {
    let Some(cancellation) = &payment.cancellation else {
        let words = match payment.life() {
            PaymentLife::Succeeded => "Paid, and nobody asked to cancel it.",
            PaymentLife::Failed => "It failed: nothing was taken. Nobody asked to cancel it.",
            PaymentLife::Initiated => "Begun, and not reported since. Nobody asked to cancel it.",
            PaymentLife::Unknown | PaymentLife::Unspecified => "Nobody asked to cancel it.",
        };
        return ("u", html! { (words) });
    };
    match code(cancellation) {
        ResultCode::CancelWindowExceed => (
            "f",
            html! {
                "Not cancelled: Alipay+ asked after the time in which it may. The payment stands; what is left is a refund."
            },
        ),
        ResultCode::ProcessFail => (
            "f",
            html! { "Not cancelled: it had been refunded, in part or whole, before Alipay+ asked." },
        ),
        ResultCode::Success => ("s", html! { "Cancelled. " (money(payment)) }),
        ResultCode::InvalidToken | ResultCode::Unspecified => {
            ("u", html! { "A cancel was decided." })
        }
    }
}

/// Where the money of a cancelled payment is.
fn money(payment: &wire::Payment) -> Markup {
    let back = payment.fund_return.as_ref();
    let sum = back.and_then(|it| it.amount.as_ref());
    match payment.funds() {
        Funds::ReturnDue => html! {
            @if let Some(sum) = sum { (amount(sum)) " has" } @else { "The money has" }
            " to go back to the user, and no return was reported yet."
        },
        Funds::Returned => html! {
            @if let Some(sum) = sum { (amount(sum)) } @else { "The money" }
            " went back to the user"
            @if let Some(at) = back.and_then(|it| ms(it.returned_at.as_ref())) { " on " (page::moment(at)) }
            "."
        },
        Funds::None | Funds::Held | Funds::Unspecified => html! {
            @if payment.life() == PaymentLife::Initiated {
                "Nothing was taken as far as is known: the payment core has not said yet what became of it."
            } @else {
                "Nothing was taken, and nothing will be."
            }
        },
    }
}

fn code(cancellation: &wire::Cancellation) -> ResultCode {
    cancellation.result.as_ref().map_or(ResultCode::Unspecified, wire::Result::result_code)
}

/// A step of the timeline: when, of what colour, what.
type Step = (i64, &'static str, Markup);

fn timeline(payment: &wire::Payment) -> Markup {
    let mut steps: Vec<Step> = Vec::new();
    if let Some(at) = ms(payment.initiated_at.as_ref()) {
        let what = html! {
            strong { "The payment began" } ", says the payment core."
            @if let Some(it) = &payment.amount { " " (amount(it)) "." }
        };
        steps.push((at, "n", what));
    }
    if let Some(at) = ms(payment.recorded_at.as_ref()) {
        let told = match payment.life() {
            PaymentLife::Initiated => "is about to be taken",
            PaymentLife::Succeeded => "was taken, the payment succeeded",
            PaymentLife::Failed => "was not taken, the payment failed",
            PaymentLife::Unknown | PaymentLife::Unspecified => "was told of",
        };
        let what = html! { strong { "The payment core reported" } ": the money " (told) "." };
        steps.push((at, "n", what));
    }
    if let Some(cancellation) = &payment.cancellation {
        steps.extend(decided(cancellation));
    }
    if let Some(back) = &payment.fund_return {
        if let Some(at) = ms(back.due_at.as_ref()) {
            let what = html! {
                strong { "Money is due back" }
                @if let Some(it) = &back.amount { ": " (amount(it)) } "."
                " Announced to the feed as " code { "FundReturnDue" } "."
            };
            steps.push((at, "u", what));
        }
        if let Some(at) = ms(back.returned_at.as_ref()) {
            let what = html! {
                strong { "The money went back" } ", reports the executor."
                @if let Some(reference) = &back.reference { " Reference " span.id { (reference) } "." }
            };
            steps.push((at, "s", what));
        }
    }
    // what happened at one moment stays in the order in which it must have happened
    steps.sort_by_key(|(at, _, _)| *at);
    html! {
        ol.timeline {
            @for (at, class, what) in steps {
                li class=(class) { div.when { (page::moment_ago(at)) } div { (what) } }
            }
        }
    }
}

fn decided(cancellation: &wire::Cancellation) -> Option<Step> {
    let at = ms(cancellation.decided_at.as_ref())?;
    let code = code(cancellation);
    let (letter, class) = match cancellation.result.as_ref().map(wire::Result::result_status) {
        Some(ResultStatus::S) => ("S", "s"),
        Some(ResultStatus::F) => ("F", "f"),
        Some(ResultStatus::U | ResultStatus::Unspecified) | None => ("U", "u"),
    };
    let what = html! {
        strong { "A cancel was decided" } ": " (page::status(letter)) " "
        code { (code.as_str_name().trim_start_matches("RESULT_CODE_")) } ". Asked by "
        @if cancellation.client_id.is_empty() { "a service of the wallet's" } @else {
            "Alipay+'s client " span.id { (cancellation.client_id) }
        }
        "." (trace(&cancellation.trace_id))
        @if code == ResultCode::Success { " Announced to the feed as " code { "PaymentCancelled" } "." }
    };
    Some((at, class, what))
}

fn facts(payment: &wire::Payment, inquiry: Option<&wire::InquiryPaymentResult>) -> Markup {
    let life = match payment.life() {
        PaymentLife::Unknown | PaymentLife::Unspecified => "never told of by the payment core",
        PaymentLife::Initiated => "begun, outcome not reported",
        PaymentLife::Succeeded => "succeeded",
        PaymentLife::Failed => "failed",
    };
    let funds = match payment.funds() {
        Funds::None | Funds::Unspecified => "none taken, as far as is known",
        Funds::Held => "taken from the user",
        Funds::ReturnDue => "due back to the user",
        Funds::Returned => "back with the user",
    };
    let result = payment.cancellation.as_ref().and_then(|it| it.result.as_ref());
    html! {
        dl.facts {
            dt { "paymentRequestId" } dd.id { (payment.payment_request_id) }
            dt { "Wallet (pspId)" } dd.id { (payment.psp_id) }
            dt { "Acquirer" }
            dd.id { @if let Some(it) = &payment.acquirer_id { (it) } @else { "none named yet" } }
            dt { "Amount" }
            dd { @if let Some(it) = &payment.amount { (amount(it)) } @else { "not told" } }
            dt { "Payment" } dd { (life) }
            dt { "Money" } dd { (funds) }
            dt { "inquiryPayment answers" }
            dd {
                @if let Some(inquiry) = inquiry {
                    (page::status(match inquiry.result_status() {
                        ResultStatus::S => "S",
                        ResultStatus::F => "F",
                        ResultStatus::U | ResultStatus::Unspecified => "U",
                    }))
                    " " code { (inquiry.result_code) } ", whatever was notified before"
                } @else { "what the payment core says: no cancel changes it" }
            }
            @if let Some(result) = result {
                dt { "Message to Alipay+" } dd { (result.result_message) }
            }
        }
    }
}

fn refunds(refunds: &[wire::Refund]) -> Markup {
    let state = |refund: &wire::Refund| match refund.state() {
        RefundState::Reserved => "under way",
        RefundState::Succeeded => "made",
        RefundState::Failed => "not made",
        RefundState::Unspecified => "not told",
    };
    html! {
        div.wide tabindex="0" role="region" aria-label="Refunds" {
            table {
                thead {
                    tr {
                        th scope="col" { "Refund" } th scope="col" { "State" }
                        th.number scope="col" { "Amount" }
                    }
                }
                tbody {
                    @for refund in refunds {
                        tr {
                            td.id { (refund.refund_id) }
                            td { (state(refund)) }
                            td.number { @if let Some(it) = &refund.amount { (amount(it)) } }
                        }
                    }
                }
            }
        }
    }
}

/// How long something is outstanding.
pub(super) fn since(at: Option<i64>) -> String {
    at.map_or_else(|| "not told".to_owned(), |at| text::ago(at, text::now_ms()))
}
