//! Alipay+'s clients, their keys, and when each was last used.

use maud::{Markup, html};

use crate::admin::console::{Console, page, text};

/// The page.
pub(super) fn body(console: &Console) -> Markup {
    let keys = (console.keys)();
    let now = text::now_ms();
    html! {
        @if keys.is_empty() {
            p.notice {
                "No client is registered with this process. A core has none of its own: open the console of a bridge."
            }
        } @else {
            div.wide tabindex="0" role="region" aria-label="Clients and their keys" {
                table {
                    caption { "When a key was last used is what this process saw since it began." }
                    thead {
                        tr {
                            th scope="col" { "Client" } th scope="col" { "Key version" }
                            th scope="col" { "Ends" } th scope="col" { "Last used" }
                        }
                    }
                    tbody {
                        @for key in &keys {
                            tr {
                                td.id { (key.client) }
                                td.id { (key.version) }
                                td {
                                    @match key.not_after_ms {
                                        None => { "never" }
                                        Some(end) if end <= now => {
                                            span class="badge f" { "ended" } " " (page::moment(end))
                                        }
                                        Some(end) => { (page::moment_ago(end)) }
                                    }
                                }
                                td {
                                    @match console.recent.last_signed(&key.client, &key.version) {
                                        Some(at) => { (page::moment_ago(at.saturating_mul(1_000))) }
                                        None => { "not since this process began" }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
