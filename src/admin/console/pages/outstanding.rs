//! Payments that people have to look after, oldest first.

use std::fmt::Display;

use maud::{Markup, html};

use super::{amount, link, ms, payment::since};
use crate::{
    admin::console::page,
    grpc::client::look::Look,
    grpc::wire::{ListOutstandingPaymentsResponse, OutstandingKind},
};

/// The page.
pub(super) async fn body(look: &Look) -> Markup {
    let due = look.outstanding(OutstandingKind::FundReturnDue).await;
    let unresolved = look.outstanding(OutstandingKind::Unresolved).await;
    html! {
        h2 { "Money that is due back" }
        p.hint { "Cancelled and debited; the executor has not reported that the money went back." }
        (list(&due, "Money that is due back"))
        h2 { "Cancelled before the payment core said what became of it" }
        p.hint { "Nothing is known to be taken. Should the core report a success, the money is due back at once." }
        (list(&unresolved, "Unresolved payments"))
    }
}

fn list(told: &Result<ListOutstandingPaymentsResponse, impl Display>, name: &str) -> Markup {
    let told = match told {
        Ok(told) => told,
        Err(why) => return page::blind(why),
    };
    let shown = told.payments.len();
    let more = u64::try_from(shown).is_ok_and(|shown| told.total > shown);
    html! {
        @if told.payments.is_empty() { p { "None." } } @else {
            div.wide tabindex="0" role="region" aria-label=(name) {
                table {
                    caption { (told.total) " in all" @if more { "; the oldest " (shown) } "." }
                    thead {
                        tr {
                            th scope="col" { "Payment" } th scope="col" { "Wallet" } th scope="col" { "Since" }
                            th.number scope="col" { "Amount" }
                        }
                    }
                    tbody {
                        @for payment in &told.payments {
                            @let target = link("payment", &payment.psp_id, &payment.payment_request_id);
                            @let at = ms(payment.since.as_ref());
                            tr {
                                td.id { a href=(target) { (payment.payment_request_id) } }
                                td.id { (payment.psp_id) }
                                td {
                                    @if let Some(at) = at { (page::moment(at)) " " }
                                    span.ago { "(" (since(at)) ")" }
                                }
                                td.number { @if let Some(it) = &payment.amount { (amount(it)) } }
                            }
                        }
                    }
                }
            }
        }
    }
}
