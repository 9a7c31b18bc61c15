//! The first page: the search, what is outstanding, the last hour as a picture.

use maud::{Markup, html};

use super::{ms, payment::since};
use crate::{
    admin::console::{Console, page},
    grpc::client::look::Look,
    grpc::wire::{ListOutstandingPaymentsResponse, OutstandingKind},
    telemetry::recent::{MINUTES, Minute},
};

/// The page.
pub(super) async fn body(console: &Console) -> Markup {
    let standing = (console.standing)();
    html! {
        @if let Some(look) = &console.look {
            (page::search(&console.psp_ids, "", ""))
            (tiles(look, standing.map(|it| it.epoch)).await)
        } @else {
            p.notice { "This process is a bridge. What became of a payment is told by the console of a core." }
        }
        h2 { "Answers of the last hour" }
        (hour(&console.recent.hour()))
        p.hint { "Of this process, minute by minute, since it began. /metrics has all of it, of every process." }
    }
}

async fn tiles(look: &Look, epoch: Option<u64>) -> Markup {
    let due = look.outstanding(OutstandingKind::FundReturnDue).await;
    let unresolved = look.outstanding(OutstandingKind::Unresolved).await;
    let consumers = look.consumers().await;
    let backlog = |told: &ListOutstandingPaymentsResponse| {
        let oldest = told.payments.first().and_then(|first| ms(first.since.as_ref()));
        html! {
            strong { (told.total) }
            @if let Some(at) = oldest { div.hint { "the oldest since " (since(Some(at))) } }
        }
    };
    html! {
        ul.tiles {
            li {
                @match &due { Ok(told) => { (backlog(told)) } Err(why) => { (page::blind(why)) } }
                a href="/console/outstanding" { "payments whose money is due back" }
            }
            li {
                @match &unresolved { Ok(told) => { (backlog(told)) } Err(why) => { (page::blind(why)) } }
                a href="/console/outstanding" { "cancelled payments without an outcome" }
            }
            li {
                @match &consumers {
                    Ok(told) => {
                        strong { (told.consumers.iter().map(|it| it.lag_events).max().unwrap_or(0)) }
                        div.hint {
                            (told.consumers.len()) " consumers, "
                            (told.consumers.iter().map(|it| it.parked_events).sum::<u64>()) " events parked"
                            @if let Some(epoch) = epoch { ", epoch " (epoch) }
                        }
                        a href="/console/consumers" { "events that the slowest consumer is behind" }
                    }
                    Err(why) => { (page::blind(why)) }
                }
            }
        }
    }
}

/// Height of the bars, width of one, and what is left for words.
const HIGH: u64 = 140;
const BAR: u64 = 12;
const LEFT: u64 = 44;
const WIDE: u64 = LEFT + MINUTES * BAR;

fn hour(minutes: &[Minute]) -> Markup {
    let sum = |of: fn(&Minute) -> u64| minutes.iter().map(of).sum::<u64>();
    let (s, f, u) = (sum(|it| it.s), sum(|it| it.f), sum(|it| it.u));
    let words = format!(
        "{s} S (successful), {f} F (failed for good) and {u} U (not known) in the last {MINUTES} minutes"
    );
    let all = |it: &Minute| it.s.saturating_add(it.f).saturating_add(it.u);
    let most = minutes.iter().map(all).max().unwrap_or(0).max(1);
    let bars = minutes.iter().zip(0_u64..).map(|(minute, nth)| bar(*minute, nth, most));
    html! {
        svg.hour viewBox={ "0 -8 " (WIDE) " " (HIGH + 28) } role="img" aria-label=(words) {
            line.axis x1=(LEFT) y1=(HIGH) x2=(WIDE) y2=(HIGH) {}
            text x="4" y="8" { (most) }
            text x="4" y=(HIGH) { "0" }
            @for bar in bars { (bar) }
            text x=(LEFT) y=(HIGH + 15) { "an hour ago" }
            text x=(WIDE - 4) y=(HIGH + 15) text-anchor="end" { "now" }
        }
        p {
            span class="badge s" { (s) " S, successful" } " "
            span class="badge f" { (f) " F, failed for good" } " "
            span class="badge u" { (u) " U, not known" }
        }
    }
}

/// From below: what is well, then what needs a look, on top of it.
fn bar(minute: Minute, nth: u64, most: u64) -> Markup {
    let x = LEFT.saturating_add(nth.saturating_mul(BAR));
    let high = |count: u64| count.saturating_mul(HIGH).checked_div(most).unwrap_or(0);
    let (s, f, u) = (high(minute.s), high(minute.f), high(minute.u));
    let on_s = HIGH.saturating_sub(s);
    let on_f = on_s.saturating_sub(f);
    let on_u = on_f.saturating_sub(u);
    let ago = MINUTES.saturating_sub(nth).saturating_sub(1);
    let when = if ago == 0 { "this minute".to_owned() } else { format!("{ago} min ago") };
    html! {
        g {
            title { (when) ": " (minute.s) " S, " (minute.f) " F, " (minute.u) " U" }
            @for (class, y, high) in [("s", on_s, s), ("f", on_f, f), ("u", on_u, u)] {
                @if high > 0 { rect class=(class) x=(x) y=(y) width=(BAR - 2) height=(high) {} }
            }
        }
    }
}
