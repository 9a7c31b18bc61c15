//! Refusals as gRPC statuses, and statuses as refusals.
//!
//! A status of ours carries `google.rpc.ErrorInfo` with [`DOMAIN`] and Alipay+'s code as its reason. The way back is
//! stricter than the way out: only a status that carries it, with a reason that belongs to the command itself, is a
//! final refusal. A mesh's PERMISSION_DENIED, an older core's UNIMPLEMENTED or a refused certificate is "not known".

use std::{collections::HashMap, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};

use crate::{
    domain::{
        consumer::{self, Refusal},
        result::ResultCode,
    },
    engine, feed, layer, store,
};

/// `google.rpc.ErrorInfo.domain` of every status that is ours.
pub(super) const DOMAIN: &str = "cancel.alipayplus";

/// When a caller that met a full queue should come back.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What is said where it is not known what happened.
const RETRY: &str = "not known whether it happened; send the same request again";

/// The gRPC code of a request that was not decided; `None` for outcomes, which travel as responses.
const fn code_of(code: ResultCode) -> Option<Code> {
    match code {
        ResultCode::Success
        | ResultCode::CancelWindowExceed
        | ResultCode::InvalidToken
        | ResultCode::ProcessFail => None,
        ResultCode::ParamIllegal | ResultCode::MediaTypeNotAcceptable => {
            Some(Code::InvalidArgument)
        }
        ResultCode::AccessDenied => Some(Code::PermissionDenied),
        ResultCode::InvalidClient | ResultCode::InvalidSignature | ResultCode::KeyNotFound => {
            Some(Code::Unauthenticated)
        }
        ResultCode::NoInterfaceDef | ResultCode::MethodNotSupported => Some(Code::Unimplemented),
        ResultCode::RequestTrafficExceedLimit => Some(Code::ResourceExhausted),
        ResultCode::UnknownException => Some(Code::Unavailable),
    }
}

fn details(code: ResultCode) -> ErrorDetails {
    ErrorDetails::with_error_info(code.wire(), DOMAIN, HashMap::new())
}

/// A refusal with its code's own status and message.
pub(super) fn refuse(code: ResultCode) -> Status {
    unknown(code_of(code).unwrap_or(Code::Internal), code, code.message())
}

fn unknown(status: Code, code: ResultCode, message: &str) -> Status {
    let mut details = details(code);
    if code == ResultCode::RequestTrafficExceedLimit {
        details.set_retry_info(Some(RETRY_AFTER));
    }
    Status::with_error_details(status, message, details)
}

/// The reason for a caller whose certificate does not allow the method. Not a code of Alipay+'s: what is wrong is the
/// caller, not what it asks, so a bridge that meets it must take it for a fault (`U`), never for a refusal (`F`).
const CALLER_NOT_ALLOWED: &str = "CALLER_NOT_ALLOWED";

/// The refusal of a caller, whatever it asks.
pub(super) fn caller_not_allowed() -> Status {
    let details = ErrorDetails::with_error_info(CALLER_NOT_ALLOWED, DOMAIN, HashMap::new());
    let text = "no name of this certificate may call this method";
    Status::with_error_details(Code::PermissionDenied, text, details)
}

/// What never got as far as a service.
pub(super) fn turned_away(refusal: layer::Refusal) -> Status {
    let code = ResultCode::RequestTrafficExceedLimit;
    match refusal {
        layer::Refusal::Busy => refuse(code),
        layer::Refusal::OverRate { retry_after } => {
            let mut details = details(code);
            details.set_retry_info(Some(retry_after));
            Status::with_error_details(Code::ResourceExhausted, code.message(), details)
        }
        layer::Refusal::NotAllowed => caller_not_allowed(),
        layer::Refusal::OutOfTime => {
            unknown(Code::DeadlineExceeded, ResultCode::UnknownException, RETRY)
        }
        layer::Refusal::Panicked => unknown(Code::Internal, ResultCode::UnknownException, RETRY),
    }
}

/// Illegal parameters, each with what is wrong with it.
pub(super) fn illegal(violations: Vec<FieldViolation>) -> Status {
    let message = violations
        .first()
        .map(|violation| format!("{}: {}", violation.field, violation.description))
        .unwrap_or_default();
    let mut details = details(ResultCode::ParamIllegal);
    details.set_bad_request(violations);
    Status::with_error_details(Code::InvalidArgument, message, details)
}

/// Not known yet: the same request will be answered later.
pub(super) fn undecided(message: &str) -> Status {
    unknown(Code::Aborted, ResultCode::UnknownException, message)
}

/// No answer from the engine. Peers hear the code's text; the log has the cause.
pub(super) fn failed(error: &engine::Error) -> Status {
    match error {
        engine::Error::Full => refuse(ResultCode::RequestTrafficExceedLimit),
        engine::Error::DeadlinePassed => {
            unknown(Code::DeadlineExceeded, ResultCode::UnknownException, RETRY)
        }
        engine::Error::Stopping => unknown(
            Code::Unavailable,
            ResultCode::UnknownException,
            "the service is stopping; send the same request again",
        ),
        engine::Error::Store(source) => match **source {
            store::Error::Suspect(_) => unknown(
                Code::Unavailable,
                ResultCode::UnknownException,
                "the store may have lost commits; nothing is decided until `reconcile`",
            ),
            store::Error::Unavailable(_)
            | store::Error::Closed
            | store::Error::CommitUnknown(_) => {
                unknown(Code::Unavailable, ResultCode::UnknownException, RETRY)
            }
            store::Error::Data(_) | store::Error::Damaged(_) => {
                unknown(Code::Internal, ResultCode::UnknownException, RETRY)
            }
        },
    }
}

/// Of how many partitions a status tells where one may begin: it travels in a header.
const LEAST_MAX: usize = 64;

/// No answer from the feed, or the end of a stream.
pub(super) fn feed_failed(error: &feed::Error) -> Status {
    match error {
        feed::Error::Refused(refusal) => feed_refused(refusal),
        feed::Error::Stopping => unknown(
            Code::Unavailable,
            ResultCode::UnknownException,
            "the service is stopping; begin anew at another replica, or after the restart",
        ),
        feed::Error::DeadlinePassed => {
            unknown(Code::DeadlineExceeded, ResultCode::UnknownException, "out of time; try again")
        }
        feed::Error::Store(store) => match store {
            store::Error::Suspect(_) => {
                let text = format!("the store may have lost commits; {SUSPECT}");
                feed_status(Code::FailedPrecondition, "SUSPECT", text, HashMap::new())
            }
            store::Error::Unavailable(_)
            | store::Error::Closed
            | store::Error::CommitUnknown(_) => unknown(
                Code::Unavailable,
                ResultCode::UnknownException,
                "the store failed; try again",
            ),
            store::Error::Data(_) | store::Error::Damaged(_) => {
                unknown(Code::Internal, ResultCode::UnknownException, "the store failed")
            }
        },
    }
}

const SUSPECT: &str = "cancels are answered U until an operator has compared what was done with the feed and run \
                       `reconcile`, which begins a new epoch";

fn feed_status(
    code: Code,
    reason: &str,
    message: String,
    metadata: HashMap<String, String>,
) -> Status {
    let details = ErrorDetails::with_error_info(reason, DOMAIN, metadata);
    Status::with_error_details(code, message, details)
}

fn feed_refused(refusal: &Refusal) -> Status {
    let (code, reason) = match refusal {
        Refusal::Unknown => (Code::NotFound, "UNKNOWN_CONSUMER"),
        Refusal::NotYours => (Code::PermissionDenied, "CONSUMER_OF_ANOTHER"),
        Refusal::Required => (Code::FailedPrecondition, "REQUIRED_CONSUMER"),
        Refusal::Restored(_) => (Code::FailedPrecondition, "SUSPECT"),
        Refusal::EpochChanged { .. } => (Code::FailedPrecondition, "EPOCH_CHANGED"),
        Refusal::Superseded => (Code::Aborted, "SUPERSEDED"),
        Refusal::AheadOfFeed { .. } => (Code::OutOfRange, "AHEAD_OF_FEED"),
        Refusal::Purged { .. } => (Code::OutOfRange, "PURGED"),
        Refusal::OtherEvent => (Code::NotFound, "UNKNOWN_EVENT"),
        Refusal::TooManyParked => (Code::ResourceExhausted, "TOO_MANY_PARKED"),
        Refusal::TooManyConsumers => (Code::ResourceExhausted, "TOO_MANY_CONSUMERS"),
    };
    let said = refusal.to_string();
    let pairs: Vec<(&str, String)>;
    let message = match refusal {
        Refusal::Restored(_) => {
            pairs = Vec::new();
            format!("{said}; {SUSPECT}")
        }
        Refusal::EpochChanged { epoch } => {
            pairs = vec![("epoch", epoch.to_string())];
            format!(
                "{said}: the store was reconciled after a restore. Compare what was done with the feed by event_id, \
                 drop the kept positions, and subscribe with epoch {epoch} and neither `from` nor `last_seen`"
            )
        }
        Refusal::AheadOfFeed { head } => {
            pairs = vec![
                ("partition", head.partition.to_string()),
                ("head", head.position.to_string()),
            ];
            format!("{said}; if it told of more before, subscribe with `epoch` and `last_seen`")
        }
        Refusal::Purged { least } => {
            let from = |place: &consumer::Place| format!("{}:{}", place.partition, place.position);
            let from: Vec<String> = least.iter().take(LEAST_MAX).map(from).collect();
            let first = least.first().copied().unwrap_or_default();
            let earliest = first.position.saturating_add(1).to_string();
            let partition = first.partition.to_string();
            let message = format!(
                "{said}: the earliest of partition {partition} is {earliest}; to accept the gap, subscribe with \
                 `from`, or with `start` EARLIEST"
            );
            pairs =
                vec![("partition", partition), ("earliest", earliest), ("from", from.join(","))];
            message
        }
        Refusal::Unknown
        | Refusal::NotYours
        | Refusal::Required
        | Refusal::Superseded
        | Refusal::OtherEvent
        | Refusal::TooManyParked
        | Refusal::TooManyConsumers => {
            pairs = Vec::new();
            said
        }
    };
    let metadata = pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    feed_status(code, reason, message, metadata)
}

/// The final refusal a status carries, if it is one of ours about the command itself, with its message.
pub(super) fn refusal(status: &Status) -> Option<(ResultCode, String)> {
    let info = status.get_details_error_info()?;
    if info.domain != DOMAIN {
        return None;
    }
    let code = ResultCode::from_wire(&info.reason)?;
    let about_the_command = matches!(
        code,
        ResultCode::ParamIllegal | ResultCode::AccessDenied | ResultCode::RequestTrafficExceedLimit
    );
    about_the_command.then(|| (code, status.message().to_owned()))
}

/// The sentence of a status that is ours: a constant of this program, so it may be passed on.
pub(super) fn explanation(status: &Status) -> Option<String> {
    let ours = status.get_details_error_info().is_some_and(|info| info.domain == DOMAIN);
    ours.then(|| status.message().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_survives_the_way_back_and_nobody_elses_status_is_one() {
        assert_eq!(
            refusal(&refuse(ResultCode::AccessDenied)).map(|(code, _)| code),
            Some(ResultCode::AccessDenied)
        );
        for foreign in [
            Status::permission_denied("RBAC: access denied"),
            Status::invalid_argument("bad"),
            Status::unimplemented("an older core"),
            Status::with_error_details(
                Code::PermissionDenied,
                "",
                ErrorDetails::with_error_info("ACCESS_DENIED", "mesh.example", HashMap::new()),
            ),
            caller_not_allowed(),
            refuse(ResultCode::InvalidSignature),
            refuse(ResultCode::NoInterfaceDef),
            refuse(ResultCode::UnknownException),
        ] {
            assert_eq!(refusal(&foreign), None, "{foreign:?}");
        }
    }

    #[test]
    fn a_fault_is_never_a_final_refusal() {
        use std::sync::Arc;
        let store = |error| engine::Error::Store(Arc::new(error));
        for error in [
            engine::Error::Full,
            engine::Error::DeadlinePassed,
            engine::Error::Stopping,
            store(store::Error::Unavailable("disk full".into())),
            store(store::Error::CommitUnknown("gone".into())),
            store(store::Error::Data("refused".into())),
            store(store::Error::Damaged("payment")),
            store(store::Error::Closed),
        ] {
            let status = failed(&error);
            let codes = [
                Code::Unavailable,
                Code::DeadlineExceeded,
                Code::Aborted,
                Code::Internal,
                Code::ResourceExhausted,
            ];
            assert!(codes.contains(&status.code()), "{error:?}");
            assert!(!status.message().contains("disk full"), "the cause is for the log");
        }
    }
}
