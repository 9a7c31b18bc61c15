//! The pages, by path.

mod authorization;
mod clients;
mod consumers;
mod outstanding;
mod overview;
mod payment;

use maud::{Markup, html};

use super::{Answer, Asked, Console, STYLE, page};
use crate::grpc::client::look::Look;

/// Every page, by its path.
pub(super) const ALL: [&str; 8] = [
    "/console",
    "/console/find",
    "/console/payment",
    "/console/authorization",
    "/console/outstanding",
    "/console/consumers",
    "/console/parked",
    "/console/clients",
];

/// The page at a path.
pub(super) async fn answer(console: &Console, who: &str, path: &str, asked: &Asked) -> Answer {
    let text = |name: &str| asked.get(name).map(|value| value.trim()).unwrap_or_default();
    let (title, body) = match path {
        STYLE => return Answer::Style,
        "/console" => ("Overview".to_owned(), overview::body(console).await),
        "/console/find" => return find(console, who, text("id"), text("psp")).await,
        "/console/clients" => ("Clients and their keys".to_owned(), clients::body(console)),
        _ => match (path, &console.look) {
            ("/console/payment", Some(look)) => {
                let (id, psp) = (text("id"), text("psp"));
                let Some(body) = payment::body(look, psp, id).await else {
                    return nothing(console, who, id, psp);
                };
                (format!("Payment {id}"), body)
            }
            ("/console/authorization", Some(look)) => {
                let (id, psp) = (text("id"), text("psp"));
                let Some(body) = authorization::body(look, psp, id).await else {
                    return nothing(console, who, id, psp);
                };
                (format!("Authorization {id}"), body)
            }
            ("/console/outstanding", Some(look)) => {
                ("Outstanding payments".to_owned(), outstanding::body(look).await)
            }
            ("/console/consumers", Some(look)) => {
                ("Consumers of the feed".to_owned(), consumers::body(look).await)
            }
            ("/console/parked", Some(look)) => {
                let consumer = text("consumer");
                (format!("Parked by {consumer}"), consumers::parked(look, consumer).await)
            }
            (
                "/console/payment"
                | "/console/authorization"
                | "/console/outstanding"
                | "/console/consumers"
                | "/console/parked",
                None,
            ) => ("Not here".to_owned(), core_is_elsewhere()),
            _ => {
                let body =
                    html! { p { "There is no such page. " a href="/console" { "Overview" } } };
                let page = page::page(console, who, "No such page", path, &body);
                return Answer::NotThere(page);
            }
        },
    };
    Answer::Page(page::page(console, who, &title, path, &body))
}

/// A bridge knows nothing of payments.
fn core_is_elsewhere() -> Markup {
    html! {
        p.notice {
            "This process is a bridge: payments, authorizations and the feed are with its cores. Open the console of one of them."
        }
    }
}

/// Where an id leads: to the one thing that has it, or to a choice.
async fn find(console: &Console, who: &str, id: &str, psp: &str) -> Answer {
    let Some(look) = &console.look else {
        let page = page::page(console, who, "Not here", "/console/find", &core_is_elsewhere());
        return Answer::Page(page);
    };
    let psps: Vec<&str> = if psp.is_empty() {
        console.psp_ids.iter().map(String::as_str).collect()
    } else {
        vec![psp]
    };
    if psps.is_empty() {
        let body = html! {
            p.notice {
                "Say which wallet (pspId), or name those to search in " code { "console.psp_ids" }
                ": the settings name none, neither there nor in " code { "clients.psp_ids" } "."
            }
            (page::search(&console.psp_ids, id, psp))
        };
        return Answer::Page(page::page(console, who, "Which wallet?", "/console/find", &body));
    }
    let (hits, blind) = search(look, &psps, id).await;
    if let ([target], None) = (&hits[..], &blind) {
        return Answer::Elsewhere(target.0.clone());
    }
    if hits.is_empty() && blind.is_none() {
        return nothing(console, who, id, psp);
    }
    let body = html! {
        @if let Some(why) = &blind { (page::blind(why)) }
        @if !hits.is_empty() {
            p { "More than one thing has this id:" }
            ul { @for (target, name) in &hits { li { a href=(target) { (name) } } } }
        }
        (page::search(&console.psp_ids, id, psp))
    };
    Answer::Page(page::page(console, who, "Found", "/console/find", &body))
}

/// All that has this id, as links with names; and what could not be read.
async fn search(look: &Look, psps: &[&str], id: &str) -> (Vec<(String, String)>, Option<String>) {
    let (mut hits, mut blind) = (Vec::new(), None);
    for psp in psps {
        match look.payment(psp, id).await {
            Ok(Some(_)) => hits.push((link("payment", psp, id), format!("a payment of {psp}"))),
            Ok(None) => {}
            Err(why) => blind = Some(why.to_string()),
        }
        match look.authorization(psp, id).await {
            Ok(Some(_)) => {
                hits.push((link("authorization", psp, id), format!("an authorization of {psp}")));
            }
            Ok(None) => {}
            Err(why) => blind = Some(why.to_string()),
        }
    }
    (hits, blind)
}

/// The address of a page about one thing.
fn link(page: &str, psp: &str, id: &str) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("psp", psp).append_pair("id", id);
    format!("/console/{page}?{}", query.finish())
}

fn nothing(console: &Console, who: &str, id: &str, psp: &str) -> Answer {
    let body = html! {
        p class="answer u" {
            "Nothing is known of " span.id { (id) }
            @if !psp.is_empty() { " at the wallet " span.id { (psp) } }
            @else if !console.psp_ids.is_empty() { " at the wallets that are searched: " (console.psp_ids.join(", ")) }
            "."
        }
        @if psp.is_empty() {
            p { "If it is another wallet's, say which: its pspId belongs to the name of a payment." }
        }
        p {
            "Neither a payment nor an authorization of this id was recorded, and no cancel of such a payment was answered. "
            "Compare it letter by letter: ids are matched exactly. A cancel that was refused before it was decided "
            "(a wrong signature, say) leaves nothing here; metrics count it by its code."
        }
        (page::search(&console.psp_ids, id, psp))
    };
    Answer::NotThere(page::page(console, who, "Nothing found", "/console/find", &body))
}

/// A moment of the wire's, in milliseconds since 1970.
fn ms(time: Option<&Time>) -> Option<i64> {
    let time = time?;
    time.seconds.checked_mul(1_000)?.checked_add(i64::from(time.nanos) / 1_000_000)
}

/// What the contract tells moments by.
type Time = crate::grpc::wire::Time;

fn amount(amount: &crate::grpc::wire::Amount) -> Markup {
    let text = super::text::amount(amount.value, &amount.currency);
    html! { span title={ (amount.value) " minor units of " (amount.currency) } { (text) } }
}

fn trace(id: &str) -> Markup {
    html! { @if !id.is_empty() { " Trace " span.id { (id) } "." } }
}
