//! What a failure of the database means: try again, somebody's data, or not now. Never a final refusal.

use tokio_postgres::error::SqlState;

use super::super::{Error, Source};

/// What becomes of a transaction that failed before it was asked to commit.
#[derive(Debug)]
pub(super) enum Failure {
    /// Nothing was committed, and the next try may do better: a deadlock, a conflict, a timed-out lock.
    Again(Error),
    /// The same, but this connection is of no use any more: lost, to a server that is going or cannot write.
    Reconnect(Error),
    /// Trying again will not help.
    Final(Error),
}

impl Failure {
    pub(super) fn error(self) -> Error {
        match self {
            Self::Again(error) | Self::Reconnect(error) | Self::Final(error) => error,
        }
    }
}

/// The state of the server's answer, if it gave one.
pub(super) fn state(error: &tokio_postgres::Error) -> Option<&SqlState> {
    error.as_db_error().map(tokio_postgres::error::DbError::code)
}

/// A statement failed before COMMIT.
pub(super) fn before_commit(error: tokio_postgres::Error) -> Failure {
    let Some(code) = state(&error).map(SqlState::code) else {
        // parameters that cannot be written are somebody's data; everything else is the connection
        return if error.is_closed() || std::error::Error::source(&error).is_some_and(is_io) {
            Failure::Reconnect(Error::Unavailable(told(error)))
        } else {
            Failure::Final(Error::Data(told(error)))
        };
    };
    match code {
        // serialization failure, deadlock, lock not available, statement timed out
        "40001" | "40P01" | "55P03" | "57014" => Failure::Again(Error::Unavailable(told(error))),
        // a read-only server, an administrator's shutdown, a server that starts
        "25006" | "25P03" | "25P04" | "26000" | "57P01" | "57P02" | "57P03" | "57P04" | "57P05" => {
            Failure::Reconnect(Error::Unavailable(told(error)))
        }
        "XX001" | "XX002" => Failure::Final(Error::Damaged("database page")),
        _ => match code.get(..2) {
            Some("08") => Failure::Reconnect(Error::Unavailable(told(error))),
            Some("22" | "23") => Failure::Final(Error::Data(told(error))),
            // full, out of memory, no such table, no permission …
            _ => Failure::Final(Error::Unavailable(told(error))),
        },
    }
}

/// COMMIT itself failed. Only an answer that says "rolled back" means that nothing was committed.
pub(super) fn at_commit(error: tokio_postgres::Error) -> Failure {
    match state(&error).map(SqlState::code) {
        Some("40001" | "40P01") => Failure::Again(Error::Unavailable(told(error))),
        Some(code) if code.starts_with("23") => Failure::Final(Error::Data(told(error))),
        _ => Failure::Final(Error::CommitUnknown(told(error))),
    }
}

/// An error without the row it is about: the server's DETAIL quotes it, and this one ends in a log.
fn told(error: tokio_postgres::Error) -> Source {
    match error.as_db_error() {
        Some(refused) => Box::new(Refused {
            code: refused.code().code().to_owned(),
            message: refused.message().to_owned(),
        }),
        None => error.into(),
    }
}

/// What the server said, as far as it is fit for a log.
#[derive(Debug, thiserror::Error)]
#[error("{message} (SQLSTATE {code})")]
struct Refused {
    code: String,
    message: String,
}

fn is_io(source: &(dyn std::error::Error + 'static)) -> bool {
    source.is::<std::io::Error>()
}
