//! cancelToken's JSON.
//!
//! Source: Alipay+ API reference, cancelToken, "Request parameters".

use super::{envelope::Verified, json, reply::Reply};
use crate::{
    domain::{
        id::{AcquirerId, PassThroughInfo, PspId, Token},
        result::ResultCode,
    },
    grpc::client::CancelToken,
};

/// Reads the request.
pub(super) fn read(body: &Verified) -> Result<CancelToken, Reply> {
    let illegal =
        |error: json::ParamError| Reply::saying(ResultCode::ParamIllegal, error.to_string());
    let fields = json::parse(body.bytes())
        .map_err(|error| Reply::saying(ResultCode::ParamIllegal, error.to_string()))?;
    let psp = fields.required_as("pspId", PspId::parse).map_err(illegal)?;
    let acquirer = fields.required_as("acquirerId", AcquirerId::parse).map_err(illegal)?;
    let token = fields.required_as("accessToken", Token::parse).map_err(illegal)?;
    let pass_through_info =
        fields.optional_as("passThroughInfo", PassThroughInfo::parse).map_err(illegal)?;
    Ok(CancelToken { psp, acquirer, token, pass_through_info })
}
