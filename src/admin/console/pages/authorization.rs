//! One authorization: whether it stands, and if not, why. Nothing of its tokens.

use maud::{Markup, html};

use super::{ms, trace};
use crate::{
    admin::console::page,
    grpc::{client::look::Look, wire::RevocationCause},
};

/// The page, if anything is known of the authorization.
pub(super) async fn body(look: &Look, psp: &str, id: &str) -> Option<Markup> {
    let told = match look.authorization(psp, id).await {
        Ok(told) => told?,
        Err(why) => return Some(page::blind(&why)),
    };
    let asked = |cause| match cause {
        RevocationCause::CancelToken => "Alipay+ asked to cancel one of its tokens",
        RevocationCause::RevokeAuthorization => "the user or the wallet revoked it",
        RevocationCause::Unspecified => "the cause was not told",
    };
    Some(html! {
        @if let Some(end) = &told.revocation {
            p class="answer s" {
                "Revoked: " (asked(end.cause())) ". Every token of it is dead, and no new one can be recorded."
            }
            h2 { "What happened" }
            ol.timeline {
                li.s {
                    @if let Some(at) = ms(end.revoked_at.as_ref()) { div.when { (page::moment_ago(at)) } }
                    div {
                        strong { "Revoked" } ": " (asked(end.cause())) "." (trace(&end.trace_id))
                        " Announced to the feed as " code { "AuthorizationRevoked" } "."
                    }
                }
            }
        } @else {
            p class="answer u" { "It stands: its tokens are good until they expire or are replaced." }
        }
        h2 { "What is known" }
        dl.facts {
            dt { "Authorization" } dd.id { (told.authorization_id) }
            dt { "Wallet (pspId)" } dd.id { (told.psp_id) }
            dt { "Acquirer" } dd.id { (told.acquirer_id) }
        }
        p.hint { "Tokens are kept as keyed hashes, and are never shown." }
    })
}
