//! Every Alipay+ result code with its wire name, status and message: the one table.
//!
//! Source: Alipay+ API reference, "Result/Error codes" of cancelPayment and cancelToken.

/// What a call is answered with. The variants are the union of both APIs' tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResultCode {
    /// Done.
    Success,
    /// The caller may not act for this wallet or acquirer.
    AccessDenied,
    /// A succeeded payment, too late to cancel.
    CancelWindowExceed,
    /// `Client-Id` is missing or not registered.
    InvalidClient,
    /// The signature is missing, malformed or wrong.
    InvalidSignature,
    /// No such token was ever recorded.
    InvalidToken,
    /// `keyVersion` is not one of the client's.
    KeyNotFound,
    /// Not JSON in UTF-8.
    MediaTypeNotAcceptable,
    /// Not POST.
    MethodNotSupported,
    /// No such API.
    NoInterfaceDef,
    /// A parameter is missing or malformed.
    ParamIllegal,
    /// A business rule forbids it for ever.
    ProcessFail,
    /// Too many requests now.
    RequestTrafficExceedLimit,
    /// Not known whether it happened.
    UnknownException,
}

/// What Alipay+ makes of a code: final success, final failure, or "ask again".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ResultStatus {
    /// Successful.
    S,
    /// Failed; never retried.
    F,
    /// Unknown; retried.
    U,
}

impl ResultStatus {
    /// The letter on the wire.
    pub const fn wire(self) -> &'static str {
        match self {
            Self::S => "S",
            Self::F => "F",
            Self::U => "U",
        }
    }
}

impl ResultCode {
    /// Every code, in the order of the variants.
    pub const ALL: [Self; 14] = [
        Self::Success,
        Self::AccessDenied,
        Self::CancelWindowExceed,
        Self::InvalidClient,
        Self::InvalidSignature,
        Self::InvalidToken,
        Self::KeyNotFound,
        Self::MediaTypeNotAcceptable,
        Self::MethodNotSupported,
        Self::NoInterfaceDef,
        Self::ParamIllegal,
        Self::ProcessFail,
        Self::RequestTrafficExceedLimit,
        Self::UnknownException,
    ];

    /// The row of the table: wire name, status, message.
    const fn row(self) -> (&'static str, ResultStatus, &'static str) {
        use ResultStatus::{F, S, U};
        match self {
            Self::Success => ("SUCCESS", S, "Success"),
            Self::AccessDenied => ("ACCESS_DENIED", F, "Access is denied."),
            Self::CancelWindowExceed => ("CANCEL_WINDOW_EXCEED", F, "Exceed Cancel window."),
            Self::InvalidClient => ("INVALID_CLIENT", F, "The client is invalid."),
            Self::InvalidSignature => ("INVALID_SIGNATURE", F, "The signature is invalid."),
            Self::InvalidToken => ("INVALID_TOKEN", F, "The access token is invalid."),
            Self::KeyNotFound => ("KEY_NOT_FOUND", F, "The key is not found."),
            Self::MediaTypeNotAcceptable => (
                "MEDIA_TYPE_NOT_ACCEPTABLE",
                F,
                "The server does not implement the media type that is acceptable to the client.",
            ),
            Self::MethodNotSupported => (
                "METHOD_NOT_SUPPORTED",
                F,
                "The server does not implement the requested HTTPS method.",
            ),
            Self::NoInterfaceDef => ("NO_INTERFACE_DEF", F, "API is not defined."),
            Self::ParamIllegal => (
                "PARAM_ILLEGAL",
                F,
                "Illegal parameters. For example, non-numeric input, invalid date.",
            ),
            Self::ProcessFail => {
                ("PROCESS_FAIL", F, "A general business failure occurred. Do not retry.")
            }
            Self::RequestTrafficExceedLimit => {
                ("REQUEST_TRAFFIC_EXCEED_LIMIT", U, "The request traffic exceeds the limit.")
            }
            Self::UnknownException => {
                ("UNKNOWN_EXCEPTION", U, "An API call failed, which is caused by unknown reasons.")
            }
        }
    }

    /// The code as Alipay+ spells it.
    pub const fn wire(self) -> &'static str {
        self.row().0
    }

    /// What Alipay+ makes of it.
    pub const fn status(self) -> ResultStatus {
        self.row().1
    }

    /// The message of the official page; a more telling one may replace it.
    pub const fn message(self) -> &'static str {
        self.row().2
    }

    /// The code that Alipay+ spells so.
    pub fn from_wire(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.wire() == name)
    }
}
