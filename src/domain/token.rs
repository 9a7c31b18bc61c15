//! What is known of a token; the token itself is known to nobody.

use super::{
    Verdict,
    id::{AuthorizationId, TokenHash},
    time::Timestamp,
};

/// A token that was recorded, or declared dead before it ever was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    /// It belongs to an authorization.
    Recorded(Recorded),
    /// Its cancel was answered INVALID_TOKEN: it can never be recorded.
    DeadOnArrival(Verdict),
}

/// A token of an authorization.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Which one.
    pub authorization: AuthorizationId,
    /// What it is good for.
    pub kind: TokenKind,
    /// When it expires by itself; absent: never.
    pub expires_at: Option<Timestamp>,
    /// The token that took its place in a refresh exchange; absent while it is live.
    pub replaced_by: Option<TokenHash>,
    /// The recorded SUCCESS of a cancel that named this very token.
    pub cancelled: Option<Verdict>,
}

/// What a token is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// Opens the user's resources.
    Access,
    /// Is exchanged for a new access token.
    Refresh,
}
