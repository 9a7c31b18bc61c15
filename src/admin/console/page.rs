//! What every page has around it: its head, the way around, the search, what holds for the store; and small parts.

use maud::{DOCTYPE, Markup, html};

use super::{Console, text};

/// The one style, for light and dark, wide and narrow.
pub(super) const CSS: &str = include_str!("style.css");

/// A page of the console.
pub(super) fn page(console: &Console, who: &str, title: &str, here: &str, body: &Markup) -> Markup {
    let tabs = [
        ("/console", "Overview"),
        ("/console/outstanding", "Outstanding"),
        ("/console/consumers", "Consumers"),
        ("/console/clients", "Clients"),
    ];
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="robots" content="noindex";
                title { (title) " · alipayplus-cancel" }
                link rel="stylesheet" href="/console/style.css";
            }
            body {
                a.skip href="#main" { "Skip to the page" }
                header {
                    a.name href="/console" { "alipayplus-cancel" }
                    nav aria-label="Pages" {
                        @for (target, name) in tabs {
                            @if target == here {
                                a href=(target) aria-current="page" { (name) }
                            } @else {
                                a href=(target) { (name) }
                            }
                        }
                    }
                }
                (standing(console))
                main id="main" {
                    h1 { (title) }
                    (body)
                }
                footer {
                    "Version " (env!("CARGO_PKG_VERSION")) ", read by " (who) " at "
                    (moment(text::now_ms())) ". This page only reads."
                }
            }
        }
    }
}

/// What is wrong with the store as a whole, before anything else.
fn standing(console: &Console) -> Markup {
    let seen = (console.standing)();
    html! {
        @if let Some(seen) = seen {
            @if let Some(why) = &seen.suspect {
                p.alarm role="alert" {
                    strong { "The store is suspect: nothing is decided. " }
                    "Every cancel is answered U until " code { "reconcile" } " was run. " (why)
                }
            } @else if seen.onboarding {
                p.notice role="status" {
                    strong { "Onboarding: " }
                    "the wallet's history is not imported yet, so unknown payments and tokens are answered U. "
                    code { "import complete" } " ends that."
                }
            }
        }
    }
}

/// The form that everything begins with.
pub(super) fn search(psp_ids: &[String], id: &str, psp: &str) -> Markup {
    html! {
        form.search action="/console/find" method="get" role="search" {
            div {
                label for="id" { "paymentRequestId, or id of an authorization" }
                input id="id" name="id" type="text" value=(id) required maxlength="64" autocomplete="off" spellcheck="false";
            }
            div {
                label for="psp" { "Wallet (pspId)" @if !psp_ids.is_empty() { ", if it is none of the usual" } }
                input id="psp" name="psp" type="text" value=(psp) maxlength="64" list="psps" autocomplete="off" spellcheck="false";
                datalist id="psps" { @for psp in psp_ids { option value=(psp) {} } }
            }
            button type="submit" { "Find" }
        }
    }
}

/// A moment, with how long ago it was.
pub(super) fn moment(unix_ms: i64) -> Markup {
    html! { time datetime=(text::machine(unix_ms)) { (text::moment(unix_ms)) } }
}

/// The same, with how long ago.
pub(super) fn moment_ago(unix_ms: i64) -> Markup {
    html! { (moment(unix_ms)) " " span.ago { "(" (text::ago(unix_ms, text::now_ms())) ")" } }
}

/// What could not be read, and that it may be read later.
pub(super) fn blind(why: &dyn std::fmt::Display) -> Markup {
    html! {
        p.alarm role="alert" { strong { "This could not be read: " } (why) ". Load the page again in a moment." }
    }
}

/// A result's letter, in its colour and as a word.
pub(super) fn status(letter: &str) -> Markup {
    let (class, word) = match letter {
        "S" => ("s", "S, successful"),
        "F" => ("f", "F, failed for good"),
        _ => ("u", "U, not known"),
    };
    html! { span class={ "badge " (class) } { (word) } }
}
