//! Who follows the feed, how far behind they are, and what they have set aside.

use maud::{Markup, html};

use super::{link, ms, payment::since};
use crate::{admin::console::page, grpc::client::look::Look};

/// Everybody who follows.
pub(super) async fn body(look: &Look) -> Markup {
    let told = match look.consumers().await {
        Ok(told) => told,
        Err(why) => return page::blind(&why),
    };
    let mut rows = Vec::with_capacity(told.consumers.len());
    for consumer in told.consumers {
        let lag = look.lag(&consumer.name).await.ok();
        let oldest = lag.and_then(|lag| ms(lag.oldest_decided_at.as_ref()));
        rows.push((consumer, oldest));
    }
    html! {
        p.hint { "Epoch " (told.epoch) ". Each event stays until every required consumer has acknowledged it." }
        @if rows.is_empty() {
            p.notice {
                "Nobody has ever followed the feed. Money that is due back goes back through a consumer: see "
                code { "FeedService.Subscribe" } "."
            }
        } @else {
            div.wide tabindex="0" role="region" aria-label="Consumers" {
                table {
                    thead {
                        tr {
                            th scope="col" { "Consumer" } th scope="col" { "Required" }
                            th.number scope="col" { "Events behind" } th scope="col" { "Oldest of them" }
                            th.number scope="col" { "Parked" } th scope="col" { "Bound to" }
                        }
                    }
                    tbody {
                        @for (consumer, oldest) in &rows {
                            tr {
                                td.id { (consumer.name) }
                                td { (if consumer.required { "yes" } else { "no" }) }
                                td.number { (consumer.lag_events) }
                                td { @if consumer.lag_events > 0 { (since(*oldest)) } @else { "none" } }
                                td.number {
                                    @if consumer.parked_events > 0 {
                                        a href={ "/console/parked?" (query(&consumer.name)) } { (consumer.parked_events) }
                                    } @else { "0" }
                                }
                                td.id { @if let Some(it) = &consumer.identity { (it) } @else { "nobody" } }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn query(consumer: &str) -> String {
    form_urlencoded::Serializer::new(String::new()).append_pair("consumer", consumer).finish()
}

/// What one of them has set aside.
pub(super) async fn parked(look: &Look, consumer: &str) -> Markup {
    let told = match look.parked(consumer).await {
        Ok(told) => told,
        Err(why) => return page::blind(&why),
    };
    html! {
        @if told.events.is_empty() { p { "Nothing is parked." } } @else {
            p {
                "It comes again with " code { "alipayplus-cancel feed redrive" } ", once what was wrong is mended."
                @if !told.next_page_token.is_empty() { " There is more than these; " code { "feed parked" } " lists all." }
            }
            div.wide tabindex="0" role="region" aria-label="Parked events" {
                table {
                    thead {
                        tr {
                            th scope="col" { "About" } th scope="col" { "Why" } th scope="col" { "Since" }
                            th scope="col" { "Event" }
                        }
                    }
                    tbody {
                        @for event in &told.events {
                            tr {
                                td.id {
                                    @if let Some(id) = &event.payment_request_id {
                                        a href=(link("payment", &event.psp_id, id)) { (id) }
                                    } @else if let Some(id) = &event.authorization_id {
                                        a href=(link("authorization", &event.psp_id, id)) { (id) }
                                    }
                                }
                                td {
                                    @if let Some(why) = &event.reason { (why) } @else { "waits with an earlier one" }
                                    @if event.redriven { " (to be delivered again)" }
                                }
                                td { (since(ms(event.parked_at.as_ref()))) }
                                td.id { (event.event_id) }
                            }
                        }
                    }
                }
            }
        }
    }
}
