//! CancelToken: revoke the authorization a token belongs to.

use super::{
    Alarm, Asked, Decision, Verdict,
    authorization::{Authorization, Revocation, RevocationCause},
    event::{Event, EventCause, EventKind},
    id::{AcquirerId, PassThroughInfo},
    key::{AuthorizationKey, Subject, TokenKey},
    result::ResultCode,
    token::{Recorded, Token},
};

/// The request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CancelToken {
    /// Which token: access or refresh, live, expired or rotated out.
    pub key: TokenKey,
    /// Who asks.
    pub acquirer: AcquirerId,
    /// What the acquirer tells the wallet.
    pub pass_through_info: Option<PassThroughInfo>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The authorization belongs to another acquirer. Not recorded.
    NotYours,
    /// Decided, now or by an earlier request.
    Decided {
        /// The recorded result.
        verdict: Verdict,
        /// What the wallet tells the acquirer.
        pass_through_info: Option<PassThroughInfo>,
        /// Recorded by an earlier request.
        repeated: bool,
    },
    /// The token is unknown, and the client left as many tombstones as it may for now. Not recorded.
    TooManyTombstones,
    /// The token is unknown, and the wallet's tokens are not imported yet. Not recorded: acquirers switch a user's auto
    /// debit off at once on INVALID_TOKEN.
    Onboarding,
}

impl Outcome {
    /// What Alipay+ hears.
    pub const fn code(&self) -> ResultCode {
        match self {
            Self::NotYours => ResultCode::AccessDenied,
            Self::Decided { verdict, .. } => verdict.code,
            Self::TooManyTombstones => ResultCode::RequestTrafficExceedLimit,
            Self::Onboarding => ResultCode::UnknownException,
        }
    }
}

/// What is written: the token's own row, and its authorization where that changes too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Next {
    /// The token.
    pub token: Token,
    /// The authorization, if it changes.
    pub authorization: Option<(AuthorizationKey, Authorization)>,
}

/// What the store knows of a token.
#[derive(Clone, Copy, Debug)]
pub enum Known<'a> {
    /// Nothing.
    Unknown,
    /// Declared dead.
    Dead(&'a Verdict),
    /// It belongs to a grant.
    Granted(&'a Recorded, &'a Authorization),
}

/// Decides, in the order of precedence.
pub fn decide(known: Known<'_>, command: &CancelToken, asked: &Asked) -> Decision<Next, Outcome> {
    let (token, authorization) = match known {
        Known::Unknown if asked.onboarding => return Decision::answer(Outcome::Onboarding),
        Known::Unknown if !asked.tombstone_allowed => {
            return Decision::answer(Outcome::TooManyTombstones);
        }
        Known::Unknown => return dead_on_arrival(asked),
        Known::Dead(verdict) => return repeat(verdict, None),
        Known::Granted(token, authorization) => (token, authorization),
    };
    if authorization.acquirer != command.acquirer {
        return Decision::answer(Outcome::NotYours).alarm(Alarm::AcquirerMismatch);
    }
    if let Some(verdict) = &token.cancelled {
        return repeat(verdict, authorization.pass_through_info.clone());
    }

    let verdict = asked.verdict(ResultCode::Success);
    let outcome = Outcome::Decided {
        verdict: verdict.clone(),
        pass_through_info: authorization.pass_through_info.clone(),
        repeated: false,
    };
    let token_next = Token::Recorded(Recorded { cancelled: Some(verdict), ..token.clone() });
    if authorization.revoked.is_some() {
        return Decision::keep(Next { token: token_next, authorization: None }, outcome);
    }

    let key = AuthorizationKey {
        psp: command.key.psp.clone(),
        authorization: token.authorization.clone(),
    };
    let mut event = Event::new(
        EventKind::AuthorizationRevoked,
        Subject::Authorization(key.clone()),
        Some(authorization.acquirer.clone()),
        EventCause::CancelToken,
        asked,
    );
    event.pass_through_info.clone_from(&command.pass_through_info);
    let revoked =
        Revocation { at: asked.now, cause: RevocationCause::CancelToken, trace: asked.trace };
    let authorization = Authorization { revoked: Some(revoked), ..authorization.clone() };
    Decision::keep(Next { token: token_next, authorization: Some((key, authorization)) }, outcome)
        .announce(vec![event])
}

fn repeat(
    verdict: &Verdict,
    pass_through_info: Option<PassThroughInfo>,
) -> Decision<Next, Outcome> {
    Decision::answer(Outcome::Decided {
        verdict: verdict.clone(),
        pass_through_info,
        repeated: true,
    })
}

/// Recording it later would make a token good that Alipay+ was told is not.
fn dead_on_arrival(asked: &Asked) -> Decision<Next, Outcome> {
    let verdict = asked.verdict(ResultCode::InvalidToken);
    let next = Next { token: Token::DeadOnArrival(verdict.clone()), authorization: None };
    Decision::keep(next, Outcome::Decided { verdict, pass_through_info: None, repeated: false })
}
