//! RevokeAuthorization: the user or the wallet ends an authorization.

use super::{
    Asked, Decision,
    authorization::{Authorization, Revocation, RevocationCause},
    event::{Event, EventCause, EventKind},
    key::{AuthorizationKey, Subject},
};

/// The request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevokeAuthorization {
    /// Which one.
    pub key: AuthorizationKey,
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// No such authorization.
    Unknown,
    /// Revoked, or revoked before.
    Accepted,
}

/// Decides.
pub fn decide(
    authorization: Option<&Authorization>,
    command: &RevokeAuthorization,
    asked: &Asked,
) -> Decision<Authorization, Outcome> {
    let Some(known) = authorization else { return Decision::answer(Outcome::Unknown) };
    if known.revoked.is_some() {
        return Decision::answer(Outcome::Accepted);
    }
    let event = Event::new(
        EventKind::AuthorizationRevoked,
        Subject::Authorization(command.key.clone()),
        Some(known.acquirer.clone()),
        EventCause::RevokeAuthorization,
        asked,
    );
    let revoked = Revocation {
        at: asked.now,
        cause: RevocationCause::RevokeAuthorization,
        trace: asked.trace,
    };
    let next = Authorization { revoked: Some(revoked), ..known.clone() };
    Decision::keep(next, Outcome::Accepted).announce(vec![event])
}
