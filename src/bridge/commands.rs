//! What a proven request asks for: its parameters, whether its client may, and the core's answer.

use std::{
    convert::Infallible,
    task::{Context, Poll},
    time::Instant,
};

use futures_util::future::BoxFuture;
use tower::Service;

use super::{
    cancel_payment, cancel_token, exchange::Proven, front::Api, identity::Client, reply::Reply,
};
use crate::{
    domain::{
        id::{AcquirerId, PspId},
        result::ResultCode,
    },
    grpc::client::{self, Answer, Call},
    telemetry::Span,
};

/// The service in the middle of the front.
#[derive(Clone)]
pub(super) struct Commands(pub(super) client::Client);

impl Service<Proven> for Commands {
    type Response = Reply;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Reply, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, proven: Proven) -> Self::Future {
        let core = self.0.clone();
        Box::pin(async move { Ok(decide(&core, &proven).await.unwrap_or_else(|refused| refused)) })
    }
}

async fn decide(core: &client::Client, proven: &Proven) -> Result<Reply, Reply> {
    let Proven { exchange, api, client, body } = proven;
    let timeout = exchange.deadline.saturating_duration_since(Instant::now());
    let span = exchange.span.clone();
    let call = Call { client: client.id.clone(), timeout, trace: span.clone() };
    let answer = match api {
        Api::CancelPayment => {
            let command = cancel_payment::read(body)?;
            mark(&span, &command.key.psp, &command.acquirer);
            if span.is_recorded() {
                let id = command.key.payment_request.as_str().to_owned();
                span.set("alipayplus.payment_request_id", id);
            }
            allowed(client, &command.key.psp, &command.acquirer)?;
            core.cancel_payment(command, &call).await
        }
        Api::CancelToken => {
            let command = cancel_token::read(body)?;
            mark(&span, &command.psp, &command.acquirer);
            allowed(client, &command.psp, &command.acquirer)?;
            core.cancel_token(command, &call).await
        }
    };
    let Answer { code, message, pass_through_info } = answer;
    Ok(Reply { message: message.map(Into::into), pass_through_info, ..Reply::of(code) })
}

/// What people search traces for; of a token only the core tells, because its hash is made there.
fn mark(span: &Span, psp: &PspId, acquirer: &AcquirerId) {
    if span.is_recorded() {
        span.set("alipayplus.psp_id", psp.as_str().to_owned());
        span.set("alipayplus.acquirer_id", acquirer.as_str().to_owned());
    }
}

fn allowed(client: &Client, psp: &PspId, acquirer: &AcquirerId) -> Result<(), Reply> {
    if client.may_act_for(psp, acquirer) {
        Ok(())
    } else {
        Err(Reply::of(ResultCode::AccessDenied))
    }
}
