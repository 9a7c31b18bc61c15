//! A layer that decides at once whether a request goes in, and holds something until its answer is made.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use futures_util::future::{Either, Ready, ready};
use pin_project_lite::pin_project;
use tower::{Layer, Service};

use super::{Refusal, Refuse};

/// What lets requests in.
pub trait Gate<R>: Clone {
    /// What is held as long as the request is inside.
    type Held;

    /// Lets it in, or says why not. Never waits.
    fn enter(&self, request: &R) -> Result<Self::Held, Refusal>;
}

/// The layer of a gate.
#[derive(Clone, Copy, Debug)]
pub struct GateLayer<G>(pub G);

impl<G: Clone, S> Layer<S> for GateLayer<G> {
    type Service = Gated<G, S>;

    fn layer(&self, inner: S) -> Self::Service {
        Gated { gate: self.0.clone(), inner }
    }
}

/// A service behind a gate.
#[derive(Clone, Copy, Debug)]
pub struct Gated<G, S> {
    gate: G,
    inner: S,
}

impl<G, S, R> Service<R> for Gated<G, S>
where
    G: Gate<R>,
    S: Service<R>,
    S::Response: Refuse,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<Ready<Result<S::Response, S::Error>>, Inside<G::Held, S::Future>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: R) -> Self::Future {
        match self.gate.enter(&request) {
            Ok(held) => Either::Right(Inside { held, answering: self.inner.call(request) }),
            Err(refusal) => Either::Left(ready(Ok(S::Response::refuse(refusal)))),
        }
    }
}

pin_project! {
    /// A request that was let in; what is held goes with it.
    #[derive(Debug)]
    pub struct Inside<H, F> {
        held: H,
        #[pin]
        answering: F,
    }
}

impl<H, F: Future> Future for Inside<H, F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        self.project().answering.poll(context)
    }
}
