//! The way into the core, for the bridge: domain values in and out, over the generated code.
//!
//! In one process it calls the generated trait of the service (`InProcess`); elsewhere the generated client goes over a
//! [`Channel`]. Message and status are the same either way, and so are the checks that they meet; what metadata tells
//! elsewhere is handed over as it is.

pub mod look;

use std::{sync::Arc, time::Duration};

use tonic::{Code, Request, metadata::MetadataValue};

use super::{
    CLIENT_ID, TRACEPARENT,
    channel::{Channel, Connection},
    convert,
    observe::told,
    server::{InProcess, Server},
    status,
    wire::{self, cancel_service_client::CancelServiceClient},
};
use crate::{
    domain::{
        cancel_payment::CancelPayment,
        id::{AcquirerId, ClientId, PassThroughInfo, PspId, Token},
        result::ResultCode,
    },
    engine::{self, Caller},
    layer::deadline,
    telemetry::{Span, span::Kind},
};

/// A client of the core's CancelService.
#[derive(Clone)]
pub struct Client {
    core: Core,
}

#[derive(Clone)]
enum Core {
    Here(Arc<InProcess>),
    Elsewhere(Channel),
}

/// One method of the service, wherever the core is.
macro_rules! ask {
    ($core:expr, $name:literal, $method:ident, $message:expr, $call:expr) => {{
        const METHOD: &str = concat!("alipayplus.cancel.v1.CancelService/", $name);
        let (message, call): (_, &Call) = ($message, $call);
        match &$core {
            Core::Here(core) => {
                let span = calling(call, METHOD);
                let answered = core.$method(message, here(call), span.context()).await;
                called(&span, answered.as_ref().err());
                answered.map(tonic::Response::into_inner)
            }
            Core::Elsewhere(channel) => {
                let ask = |connection: Connection, left: Duration| {
                    // each core that is asked has a span of its own
                    let span = calling(call, METHOD);
                    let request = asking(message.clone(), call, of_core(left), &span);
                    async move {
                        let answered = CancelServiceClient::new(connection).$method(request).await;
                        called(&span, answered.as_ref().err());
                        answered.map(tonic::Response::into_inner)
                    }
                };
                channel.call(call.timeout, ask).await
            }
        }
    }};
}

/// On whose behalf, how long, in which trace.
#[derive(Clone, Debug)]
pub struct Call {
    /// Alipay+'s client.
    pub client: ClientId,
    /// What is left of its time.
    pub timeout: Duration,
    /// The request's place in its trace.
    pub trace: Span,
}

/// A CancelToken to ask for.
#[derive(Clone, Debug)]
pub struct CancelToken {
    /// The wallet.
    pub psp: PspId,
    /// Who asks.
    pub acquirer: AcquirerId,
    /// The token.
    pub token: Token,
    /// What the acquirer tells the wallet.
    pub pass_through_info: Option<PassThroughInfo>,
}

/// What the core answered: a code with its message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Decided, refused for what the command asks, or not known.
    pub code: ResultCode,
    /// What is wrong, where the code alone does not say it.
    pub message: Option<String>,
    /// What the wallet tells the acquirer (cancelToken).
    pub pass_through_info: Option<PassThroughInfo>,
}

impl Client {
    /// A client of a server in this process.
    pub fn in_process(server: &Server) -> Self {
        Self { core: Core::Here(Arc::new(server.in_process())) }
    }

    /// A client of cores elsewhere.
    pub fn over(channel: Channel) -> Self {
        Self { core: Core::Elsewhere(channel) }
    }

    /// CancelPayment. Always has an answer: a fault is `UNKNOWN_EXCEPTION`.
    pub async fn cancel_payment(&self, command: CancelPayment, call: &Call) -> Answer {
        let request = wire::CancelPaymentRequest {
            acquirer_id: command.acquirer.as_str().to_owned(),
            psp_id: command.key.psp.as_str().to_owned(),
            payment_request_id: command.key.payment_request.as_str().to_owned(),
        };
        match ask!(self.core, "CancelPayment", cancel_payment, request, call) {
            Ok(response) => decided(convert::decided(response.result.as_ref()), None),
            Err(status) => refused(&status),
        }
    }

    /// CancelToken. Always has an answer: a fault is `UNKNOWN_EXCEPTION`.
    pub async fn cancel_token(&self, command: CancelToken, call: &Call) -> Answer {
        let request = wire::CancelTokenRequest {
            psp_id: command.psp.as_str().to_owned(),
            acquirer_id: command.acquirer.as_str().to_owned(),
            access_token: command.token.expose().to_owned(),
            pass_through_info: command.pass_through_info.map(|info| info.as_str().to_owned()),
        };
        match ask!(self.core, "CancelToken", cancel_token, request, call) {
            Ok(response) => {
                let info = response
                    .pass_through_info
                    .as_deref()
                    .and_then(|info| PassThroughInfo::parse(info).ok());
                decided(convert::decided(response.result.as_ref()), info)
            }
            Err(status) => refused(&status),
        }
    }
}

/// The span of a call, which the core's is a child of.
fn calling(call: &Call, method: &'static str) -> Span {
    let span = call.trace.child(Kind::Client, method);
    span.set("rpc.system.name", "grpc");
    span.set("rpc.method", method);
    span
}

fn called(span: &Span, refused: Option<&tonic::Status>) {
    let (status, _) = told(refused.map_or(Code::Ok, tonic::Status::code));
    span.set("rpc.response.status_code", status);
    // to a client every status but OK is an error, says the convention
    if refused.is_some() {
        span.failed(status);
    }
    span.end();
}

/// The time of a core elsewhere, of what is left here: somewhat less, so that its word that the time is over is here before
/// we give up. Giving up resets the stream, and a core cuts the connection of whoever resets too many.
fn of_core(left: Duration) -> Duration {
    left.saturating_sub((left / 20).max(Duration::from_millis(50)).min(left / 2))
}

/// What a core in this process is told beside the message; elsewhere, [`asking`] puts the same into metadata.
fn here(call: &Call) -> Caller {
    let deadline = engine::now() + call.timeout.min(deadline::LONGEST);
    Caller { deadline, client: Some(call.client.clone()), trace: None }
}

fn asking<T>(message: T, call: &Call, wait: Duration, span: &Span) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(wait);
    let metadata = request.metadata_mut();
    if let Ok(client) = MetadataValue::try_from(call.client.as_str()) {
        metadata.insert(CLIENT_ID, client);
    }
    if let Ok(trace) = MetadataValue::try_from(span.context().to_string()) {
        metadata.insert(TRACEPARENT, trace);
    }
    request
}

/// A code this program does not know is a newer core's: not known, so asked again.
fn decided(code: Option<ResultCode>, pass_through_info: Option<PassThroughInfo>) -> Answer {
    match code {
        Some(code) => Answer { code, message: None, pass_through_info },
        None => not_known(),
    }
}

fn not_known() -> Answer {
    Answer { code: ResultCode::UnknownException, message: None, pass_through_info: None }
}

fn refused(status: &tonic::Status) -> Answer {
    if let Some((code, message)) = status::refusal(status) {
        return Answer { code, message: Some(message), pass_through_info: None };
    }
    let message = status::explanation(status);
    if message.is_none() {
        tracing::warn!(grpc_code = ?status.code(), message = status.message(), "core did not decide");
    }
    Answer { message, ..not_known() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_core_has_somewhat_less_time_than_is_left() {
        for (left, due) in [(10_000, 9_500), (1_000, 950), (400, 350), (60, 30), (0, 0)] {
            assert_eq!(of_core(Duration::from_millis(left)), Duration::from_millis(due));
        }
    }
}
