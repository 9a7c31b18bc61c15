//! What the wallet's own services must hear of, committed together with the state it tells of.

use std::fmt;

use super::{
    Asked,
    amount::Amount,
    id::{AcquirerId, PassThroughInfo, TraceId},
    key::Subject,
    result::ResultCode,
    time::Timestamp,
};

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// A payment was cancelled with SUCCESS.
    PaymentCancelled,
    /// Money has to go back to the user.
    FundReturnDue(Amount),
    /// An authorization was revoked.
    AuthorizationRevoked,
}

impl EventKind {
    /// Its tag in event ids and in the database: never change one.
    pub const fn tag(self) -> &'static str {
        match self {
            Self::PaymentCancelled => "payment-cancelled",
            Self::FundReturnDue(_) => "fund-return-due",
            Self::AuthorizationRevoked => "authorization-revoked",
        }
    }
}

/// Why it happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventCause {
    /// CancelPayment.
    CancelPayment,
    /// A success reported after the cancel.
    LateSuccess,
    /// CancelToken.
    CancelToken,
    /// RevokeAuthorization.
    RevokeAuthorization,
}

/// A function of key and kind alone, so that it is the same after any replay or restore and an executor can recognise a
/// repeat by it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct EventId(pub [u8; 16]);

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EventId({self})")
    }
}

/// One event; its position is the store's to give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// To what.
    pub subject: Subject,
    /// The acquirer, if one was ever named.
    pub acquirer: Option<AcquirerId>,
    /// Why.
    pub cause: EventCause,
    /// When.
    pub at: Timestamp,
    /// The result that was recorded; absent if the wallet itself caused it.
    pub result: Option<ResultCode>,
    /// What the acquirer passed through.
    pub pass_through_info: Option<PassThroughInfo>,
    /// The trace of the request that caused it.
    pub trace: Option<TraceId>,
}

impl Event {
    /// An event of now.
    pub(super) fn new(
        kind: EventKind,
        subject: Subject,
        acquirer: Option<AcquirerId>,
        cause: EventCause,
        asked: &Asked,
    ) -> Self {
        let result = match cause {
            EventCause::CancelPayment | EventCause::LateSuccess | EventCause::CancelToken => {
                Some(ResultCode::Success)
            }
            EventCause::RevokeAuthorization => None,
        };
        Self {
            kind,
            subject,
            acquirer,
            cause,
            at: asked.now,
            result,
            pass_through_info: None,
            trace: asked.trace,
        }
    }

    /// Its id: the first 16 bytes of the subject's digest salted with the kind.
    pub fn id(&self) -> EventId {
        let digest = self.subject.digest(self.kind.tag());
        EventId(digest.as_ref().first_chunk::<16>().copied().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_printed_as_consumers_keep_it() {
        let mut id = [0; 16];
        (id[0], id[15]) = (0xa0, 7);
        assert_eq!(EventId(id).to_string(), "a0000000000000000000000000000007");
        assert_eq!(format!("{:?}", EventId(id)), "EventId(a0000000000000000000000000000007)");
    }
}
