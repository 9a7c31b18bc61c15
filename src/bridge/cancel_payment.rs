//! cancelPayment's JSON.
//!
//! Source: Alipay+ API reference, cancelPayment, "Request parameters".

use super::{envelope::Verified, json, reply::Reply};
use crate::domain::{
    cancel_payment::CancelPayment,
    id::{AcquirerId, PaymentRequestId, PspId},
    key::PaymentKey,
    result::ResultCode,
};

/// Reads the request.
pub(super) fn read(body: &Verified) -> Result<CancelPayment, Reply> {
    let illegal =
        |error: json::ParamError| Reply::saying(ResultCode::ParamIllegal, error.to_string());
    let fields = json::parse(body.bytes())
        .map_err(|error| Reply::saying(ResultCode::ParamIllegal, error.to_string()))?;
    let acquirer = fields.required_as("acquirerId", AcquirerId::parse).map_err(illegal)?;
    let psp = fields.required_as("pspId", PspId::parse).map_err(illegal)?;
    let payment_request =
        fields.required_as("paymentRequestId", PaymentRequestId::parse).map_err(illegal)?;
    Ok(CancelPayment { key: PaymentKey { psp, payment_request }, acquirer })
}
