//! What is known of an authorization (grant): one consent, which owns access and refresh tokens.

use super::{
    id::{AcquirerId, PassThroughInfo, TraceId},
    time::Timestamp,
};

/// A grant. Revoking it ends every token of it at once, because a token is good only while its grant stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authorization {
    /// Whom it was granted to.
    pub acquirer: AcquirerId,
    /// What the answer to cancelToken carries back; fixed once the grant is revoked.
    pub pass_through_info: Option<PassThroughInfo>,
    /// Absent while it stands.
    pub revoked: Option<Revocation>,
}

/// The end of a grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// When.
    pub at: Timestamp,
    /// Who asked.
    pub cause: RevocationCause,
    /// The trace of the request.
    pub trace: Option<TraceId>,
}

/// Who ended a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RevocationCause {
    /// Alipay+, with cancelToken.
    CancelToken,
    /// The user or the wallet.
    RevokeAuthorization,
}
