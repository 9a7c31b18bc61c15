//! ImportToken: the wallet's history of one token, told at the cut-over beside live traffic.
//!
//! Unlike RecordToken it takes tokens of revoked authorizations and tokens that were cancelled: they left the wallet
//! long ago, and a cancel of one must not be answered as if nobody had ever known it. None of them becomes active by it.

use super::{
    Decision, Verdict,
    authorization::{Authorization, Revocation, RevocationCause},
    id::{AcquirerId, PassThroughInfo},
    key::{AuthorizationKey, TokenKey},
    result::ResultCode,
    time::Timestamp,
    token::{Recorded, Token, TokenKind},
};

/// The request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportToken {
    /// The token.
    pub key: TokenKey,
    /// The authorization it belongs to.
    pub authorization: AuthorizationKey,
    /// Whom that was granted to.
    pub acquirer: AcquirerId,
    /// What the token is good for.
    pub kind: TokenKind,
    /// When it expires by itself; absent: never.
    pub expires_at: Option<Timestamp>,
    /// The token whose place it took in a refresh exchange.
    pub replaces: Option<TokenKey>,
    /// When a cancel that named this very token was answered SUCCESS.
    pub cancelled_at: Option<Timestamp>,
    /// When the authorization was revoked; absent while it stands.
    pub revoked_at: Option<Timestamp>,
    /// What the answer to cancelToken will carry back.
    pub pass_through_info: Option<PassThroughInfo>,
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is kept as the line says.
    Taken,
    /// It was there before, with the same content.
    AlreadyThere,
    /// What is known here is later than the line, and stays.
    Kept,
    /// Both cannot be true. Nothing changes.
    Rejected(Contradiction),
}

/// What contradicts what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Contradiction {
    /// The grant is another acquirer's.
    #[error("the authorization is recorded here with another acquirerId")]
    OtherAcquirer,
    /// Its cancel was answered INVALID_TOKEN.
    #[error(
        "a cancel of the token was answered INVALID_TOKEN, so it can never be good again; the user has to bind anew"
    )]
    Dead,
    /// Another grant's, or of another kind.
    #[error("the token is recorded here for another authorizationId or with another kind")]
    OtherToken,
    /// The replaced token is not recorded.
    #[error("the token that it replaces is not recorded; its line must stand before this one")]
    ReplacedUnknown,
    /// The replaced token is another grant's.
    #[error("the token that it replaces belongs to another authorizationId")]
    ReplacedElsewhere,
    /// The replaced token was rotated out by another one.
    #[error("the token that it replaces was replaced by another token")]
    ReplacedAlready,
}

/// What is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Next {
    /// The token, if it is new or changes.
    pub token: Option<Token>,
    /// The token that was rotated out.
    pub replaced: Option<(TokenKey, Token)>,
    /// The authorization, if it is new or changes.
    pub authorization: Option<Authorization>,
}

type Decided = Decision<Next, Outcome>;

/// Decides, in the order of precedence. `replaced` is what is known of the token that `replaces` names.
pub fn decide(
    token: Option<&Token>,
    replaced: Option<&Token>,
    authorization: Option<&Authorization>,
    command: &ImportToken,
) -> Decided {
    let reject = |contradiction| Decision::answer(Outcome::Rejected(contradiction));

    if authorization.is_some_and(|known| known.acquirer != command.acquirer) {
        return reject(Contradiction::OtherAcquirer);
    }
    let token = match token {
        Some(Token::DeadOnArrival(_)) => return reject(Contradiction::Dead),
        Some(Token::Recorded(token)) => Some(token),
        None => None,
    };
    let of_another = |token: &Recorded| {
        token.authorization != command.authorization.authorization || token.kind != command.kind
    };
    if token.is_some_and(of_another) {
        return reject(Contradiction::OtherToken);
    }
    let replaced = match rotation(replaced, command) {
        Err(contradiction) => return reject(contradiction),
        Ok(replaced) => replaced,
    };

    let next = Next {
        token: next_token(token, command).map(Token::Recorded),
        replaced,
        authorization: next_authorization(authorization, command),
    };
    if next.token.is_some() || next.replaced.is_some() || next.authorization.is_some() {
        return Decision::keep(next, Outcome::Taken);
    }
    let same = token.is_some_and(|token| {
        token.expires_at == command.expires_at
            && token.cancelled.is_some() == command.cancelled_at.is_some()
    });
    let revoked = authorization.is_some_and(|known| known.revoked.is_some());
    let said = command.revoked_at.or(command.cancelled_at).is_some();
    Decision::answer(if same && revoked == said { Outcome::AlreadyThere } else { Outcome::Kept })
}

fn rotation(
    replaced: Option<&Token>,
    command: &ImportToken,
) -> Result<Option<(TokenKey, Token)>, Contradiction> {
    let Some(replaces) = &command.replaces else { return Ok(None) };
    let Some(Token::Recorded(old)) = replaced else { return Err(Contradiction::ReplacedUnknown) };
    if old.authorization != command.authorization.authorization {
        return Err(Contradiction::ReplacedElsewhere);
    }
    match old.replaced_by {
        Some(by) if by == command.key.hash => Ok(None),
        Some(_) => Err(Contradiction::ReplacedAlready),
        None => {
            let next = Recorded { replaced_by: Some(command.key.hash), ..old.clone() };
            Ok(Some((replaces.clone(), Token::Recorded(next))))
        }
    }
}

/// The first `expires_at` stays, and so does a recorded result.
fn next_token(token: Option<&Recorded>, command: &ImportToken) -> Option<Recorded> {
    let success = |at| Verdict { code: ResultCode::Success, at, by: None, trace: None };
    let cancelled = command.cancelled_at.map(success);
    match token {
        None => Some(Recorded {
            authorization: command.authorization.authorization.clone(),
            kind: command.kind,
            expires_at: command.expires_at,
            replaced_by: None,
            cancelled,
        }),
        Some(known) if known.cancelled.is_none() && cancelled.is_some() => {
            Some(Recorded { cancelled, ..known.clone() })
        }
        Some(_) => None,
    }
}

/// A revocation is taken and never taken back. No event: whoever revoked it announced it.
fn next_authorization(
    authorization: Option<&Authorization>,
    command: &ImportToken,
) -> Option<Authorization> {
    let revoked = match (command.cancelled_at, command.revoked_at) {
        (Some(at), None) => Some((at, RevocationCause::CancelToken)),
        (_, at) => at.map(|at| (at, RevocationCause::RevokeAuthorization)),
    };
    let revoked = revoked.map(|(at, cause)| Revocation { at, cause, trace: None });
    let Some(known) = authorization else {
        return Some(Authorization {
            acquirer: command.acquirer.clone(),
            pass_through_info: command.pass_through_info.clone(),
            revoked,
        });
    };
    if known.revoked.is_some() {
        return None;
    }
    let pass_through_info =
        known.pass_through_info.clone().or_else(|| command.pass_through_info.clone());
    let next = Authorization { pass_through_info, revoked, ..known.clone() };
    (next != *known).then_some(next)
}
