//! An event as a line: text for people, or the JSON form of its proto message.

use serde_json::{Value, json};

use crate::grpc::follower::{CancellationEvent, EventKind, ResultCode};

/// A moment as ISO 8601 in UTC.
pub(super) fn time(seconds: i64, nanos: i32) -> String {
    jiff::Timestamp::new(seconds, nanos).map_or_else(|_| String::new(), |at| at.to_string())
}

fn decided_at(event: &CancellationEvent) -> String {
    event.decided_at.as_ref().map(|at| time(at.seconds, at.nanos)).unwrap_or_default()
}

/// The message's JSON form (64-bit numbers are texts there), with the epoch, and `redriven` if it comes again.
pub(super) fn machine(event: &CancellationEvent, epoch: u64, redriven: bool) -> String {
    let mut line = json!({
        "eventId": event.event_id,
        "epoch": epoch.to_string(),
        "partition": event.partition,
        "position": event.position.to_string(),
        "kind": event.kind().as_str_name(),
        "pspId": event.psp_id,
        "cause": event.cause().as_str_name(),
        "decidedAt": decided_at(event),
    });
    let mut put = |name: &str, value: Value| line[name] = value;
    let texts = [
        ("acquirerId", event.acquirer_id.as_ref()),
        ("paymentRequestId", event.payment_request_id.as_ref()),
        ("authorizationId", event.authorization_id.as_ref()),
        ("passThroughInfo", event.pass_through_info.as_ref()),
        ("traceId", Some(&event.trace_id).filter(|trace| !trace.is_empty())),
    ];
    for (name, value) in texts {
        if let Some(value) = value {
            put(name, value.as_str().into());
        }
    }
    if let Some(amount) = &event.amount {
        put("amount", json!({ "value": amount.value.to_string(), "currency": amount.currency }));
    }
    if event.result_code() != ResultCode::Unspecified {
        put("resultCode", event.result_code().as_str_name().into());
    }
    if redriven {
        put("redriven", true.into());
    }
    line.to_string()
}

/// What people want to see of it. The ids in it have no control characters; a `passThroughInfo` may, and is not shown.
pub(super) fn text(event: &CancellationEvent, redriven: bool) -> String {
    let what = match event.kind() {
        EventKind::PaymentCancelled => "payment cancelled",
        EventKind::FundReturnDue => "fund return due",
        EventKind::AuthorizationRevoked => "authorization revoked",
        EventKind::Unspecified => "an event of a newer version",
    };
    let id = event.payment_request_id.as_ref().or(event.authorization_id.as_ref());
    let cause = event.cause().as_str_name().strip_prefix("EVENT_CAUSE_").unwrap_or_default();
    let amount = event.amount.as_ref();
    let amount = amount.map(|it| format!("  {} {} (minor units)", it.value, it.currency));
    let acquirer = event.acquirer_id.as_ref().map(|id| format!("  acquirer {id}"));
    format!(
        "{}  {}:{}  {what:<21}  {}{}  {}{}  {}{}",
        decided_at(event),
        event.partition,
        event.position,
        id.map_or("", |id| id.as_str()),
        amount.unwrap_or_default(),
        cause.to_ascii_lowercase().replace('_', " "),
        acquirer.unwrap_or_default(),
        event.event_id,
        if redriven { "  (again)" } else { "" },
    )
}
