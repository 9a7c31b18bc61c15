//! What a request is answered with, and its JSON.

use std::borrow::Cow;

use serde::Serialize;

use crate::{
    domain::{id::PassThroughInfo, result::ResultCode},
    layer::{Refusal, Refuse},
};

/// Longest `resultMessage`, in characters. Source: Alipay+ API reference, `resultMessage`.
pub(super) const MESSAGE_CHARS_MAX: usize = 256;

/// An answer before it is an envelope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The code; its status comes with it.
    pub code: ResultCode,
    /// What is wrong, where the code's own message does not say it. Never holds what the caller sent.
    pub message: Option<Cow<'static, str>>,
    /// What the wallet tells the acquirer (cancelToken).
    pub pass_through_info: Option<PassThroughInfo>,
    /// Why it was turned away before anything was decided, if it was.
    pub refusal: Option<Refusal>,
}

impl Reply {
    /// A code with its own message.
    pub fn of(code: ResultCode) -> Self {
        Self { code, message: None, pass_through_info: None, refusal: None }
    }

    /// A code with a message that says more.
    pub fn saying(code: ResultCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self { message: Some(message.into()), ..Self::of(code) }
    }

    /// Whether its code is all that it says.
    pub fn is_bare(&self) -> bool {
        self.message.is_none() && self.pass_through_info.is_none()
    }

    /// Compact JSON, in the order of the official samples.
    pub fn json(&self) -> Vec<u8> {
        let message = self.message.as_deref().unwrap_or(self.code.message());
        let message = message
            .char_indices()
            .nth(MESSAGE_CHARS_MAX)
            .map_or(message, |(end, _)| &message[..end]);
        let body = Body {
            result: Result {
                result_code: self.code.wire(),
                result_status: self.code.status().wire(),
                result_message: message,
            },
            pass_through_info: self.pass_through_info.as_ref().map(PassThroughInfo::as_str),
        };
        serde_json::to_vec(&body).expect("texts are always JSON")
    }
}

impl Refuse for Reply {
    fn refuse(refusal: Refusal) -> Self {
        let code = match refusal {
            Refusal::Busy | Refusal::OverRate { .. } => ResultCode::RequestTrafficExceedLimit,
            Refusal::NotAllowed => ResultCode::AccessDenied,
            Refusal::OutOfTime | Refusal::Panicked => ResultCode::UnknownException,
        };
        Self { refusal: Some(refusal), ..Self::of(code) }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    result: Result<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pass_through_info: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(clippy::struct_field_names, reason = "the names of Alipay+'s wire")]
struct Result<'a> {
    result_code: &'a str,
    result_status: &'a str,
    result_message: &'a str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_success_is_the_official_sample_in_compact_form() {
        let sample =
            r#"{"result":{"resultCode":"SUCCESS","resultStatus":"S","resultMessage":"Success"}}"#;
        assert_eq!(Reply::of(ResultCode::Success).json(), sample.as_bytes());
    }

    #[test]
    fn a_message_is_at_most_256_characters() {
        let reply = Reply::saying(ResultCode::ParamIllegal, "é".repeat(300));
        let json: serde_json::Value = serde_json::from_slice(&reply.json()).unwrap();
        assert_eq!(
            json["result"]["resultMessage"].as_str().map(|text| text.chars().count()),
            Some(256)
        );
    }
}
