//! IntrospectToken: whether a token is good at this moment.

use super::{
    authorization::Authorization,
    time::Timestamp,
    token::{Recorded, Token},
};

/// A token that is good, with what a resource server may know of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Active {
    /// The token.
    pub token: Recorded,
    /// Its authorization.
    pub authorization: Authorization,
}

/// Decides. Unknown, expired, rotated and revoked look alike: `None`.
pub fn decide(found: Option<(Token, Option<Authorization>)>, now: Timestamp) -> Option<Active> {
    let (Token::Recorded(token), Some(authorization)) = found? else { return None };
    let expired = token.expires_at.is_some_and(|expires_at| now >= expires_at);
    let good = authorization.revoked.is_none() && token.replaced_by.is_none() && !expired;
    good.then_some(Active { token, authorization })
}
