//! RecordToken: the authorization server records a token before it leaves the wallet.

use super::{
    Alarm, Decision,
    authorization::Authorization,
    id::{AcquirerId, PassThroughInfo},
    key::{AuthorizationKey, TokenKey},
    time::Timestamp,
    token::{Recorded, Token, TokenKind},
};

/// The request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordToken {
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
    /// In a refresh exchange: the token whose place it takes.
    pub replaces: Option<TokenKey>,
    /// What the answer to cancelToken will carry back.
    pub pass_through_info: Option<PassThroughInfo>,
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It contradicts what is recorded.
    Conflict(Conflict),
    /// The authorization is revoked.
    RefusedRevoked,
    /// The token was declared dead.
    RefusedDead,
    /// Recorded, or recorded before.
    Accepted,
}

/// What contradicts what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// The grant is another acquirer's.
    #[error("the authorization is recorded with another acquirer_id")]
    OtherAcquirer,
    /// The token is another grant's, or of another kind.
    #[error("the token is recorded for another authorization_id or with another kind")]
    OtherToken,
    /// The replaced token is not recorded.
    #[error("the token to replace is not recorded")]
    ReplacedUnknown,
    /// The replaced token is another grant's.
    #[error("the token to replace belongs to another authorization_id")]
    ReplacedElsewhere,
    /// The replaced token was rotated out by another one.
    #[error("the token to replace was replaced by another token already")]
    ReplacedAlready,
    /// The token was recorded before, and not in place of that one.
    #[error("the token is recorded already, and not in the place of the token to replace")]
    RecordedOtherwise,
}

/// What is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Next {
    /// The new token.
    pub token: Token,
    /// The token that was rotated out.
    pub replaced: Option<(TokenKey, Token)>,
    /// The authorization, if it is new or changes.
    pub authorization: Option<Authorization>,
}

type Decided = Decision<Next, Outcome>;

fn conflict(conflict: Conflict) -> Decided {
    Decision::answer(Outcome::Conflict(conflict)).alarm(Alarm::RecordConflict)
}

/// Decides, in the order of precedence. `replaced` is what is known of the token that `replaces` names.
pub fn decide(
    token: Option<&Token>,
    replaced: Option<&Token>,
    authorization: Option<&Authorization>,
    command: &RecordToken,
) -> Decided {
    if let Some(known) = authorization {
        if known.acquirer != command.acquirer {
            return Decision::answer(Outcome::Conflict(Conflict::OtherAcquirer))
                .alarm(Alarm::AcquirerMismatch);
        }
        if known.revoked.is_some() {
            return Decision::answer(Outcome::RefusedRevoked);
        }
    }
    let token = match token {
        Some(Token::DeadOnArrival(_)) => return Decision::answer(Outcome::RefusedDead),
        Some(Token::Recorded(token)) => Some(token),
        None => None,
    };
    let rotated = match rotation(replaced, command) {
        Err(contradiction) => return conflict(contradiction),
        Ok(rotated) => rotated,
    };
    let Some(token) = token else {
        return record(rotated, authorization, command);
    };

    if token.authorization != command.authorization.authorization || token.kind != command.kind {
        return conflict(Conflict::OtherToken);
    }
    match rotated {
        None | Some(Rotated::Before) => Decision::answer(Outcome::Accepted),
        Some(Rotated::Now(..)) => conflict(Conflict::RecordedOtherwise),
    }
}

/// What becomes of the replaced token.
enum Rotated {
    /// It was rotated out for this very token before.
    Before,
    /// It is rotated out now.
    Now(TokenKey, Token),
}

fn rotation(replaced: Option<&Token>, command: &RecordToken) -> Result<Option<Rotated>, Conflict> {
    let Some(replaces) = &command.replaces else { return Ok(None) };
    let Some(Token::Recorded(old)) = replaced else { return Err(Conflict::ReplacedUnknown) };
    if old.authorization != command.authorization.authorization {
        return Err(Conflict::ReplacedElsewhere);
    }
    match old.replaced_by {
        Some(by) if by == command.key.hash => Ok(Some(Rotated::Before)),
        Some(_) => Err(Conflict::ReplacedAlready),
        None => {
            let next = Recorded { replaced_by: Some(command.key.hash), ..old.clone() };
            Ok(Some(Rotated::Now(replaces.clone(), Token::Recorded(next))))
        }
    }
}

fn record(
    rotated: Option<Rotated>,
    authorization: Option<&Authorization>,
    command: &RecordToken,
) -> Decided {
    let authorization = match authorization {
        Some(_) if command.pass_through_info.is_none() => None,
        Some(known) if known.pass_through_info == command.pass_through_info => None,
        Some(known) => Some(Authorization {
            pass_through_info: command.pass_through_info.clone(),
            ..known.clone()
        }),
        None => Some(Authorization {
            acquirer: command.acquirer.clone(),
            pass_through_info: command.pass_through_info.clone(),
            revoked: None,
        }),
    };
    let replaced = match rotated {
        Some(Rotated::Now(key, token)) => Some((key, token)),
        // it was rotated out for a token that is no longer there: no store forgets a token, so there is nothing to mend
        Some(Rotated::Before) | None => None,
    };
    let token = Token::Recorded(Recorded {
        authorization: command.authorization.authorization.clone(),
        kind: command.kind,
        expires_at: command.expires_at,
        replaced_by: None,
        cancelled: None,
    });
    Decision::keep(Next { token, replaced, authorization }, Outcome::Accepted)
}
