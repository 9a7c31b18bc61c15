//! A panic in one request is that request's "not known", and nobody else's.

use std::{
    panic::AssertUnwindSafe,
    pin::Pin,
    task::{Context, Poll},
};

use futures_util::{
    FutureExt as _,
    future::{CatchUnwind, Either, Ready, ready},
};
use pin_project_lite::pin_project;
use tower::{Layer, Service};

use super::{Refusal, Refuse};

/// The layer.
#[derive(Clone, Copy, Debug)]
pub struct CatchPanicLayer;

impl<S> Layer<S> for CatchPanicLayer {
    type Service = CatchPanic<S>;

    fn layer(&self, inner: S) -> Self::Service {
        CatchPanic(inner)
    }
}

/// The service.
#[derive(Clone, Copy, Debug)]
pub struct CatchPanic<S>(S);

impl<S, R> Service<R> for CatchPanic<S>
where
    S: Service<R>,
    S::Response: Refuse,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<Ready<Result<S::Response, S::Error>>, Answering<S::Future>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: R) -> Self::Future {
        // layers inside may decide here already
        match std::panic::catch_unwind(AssertUnwindSafe(|| self.0.call(request))) {
            Ok(answering) => {
                Either::Right(Answering { inner: AssertUnwindSafe(answering).catch_unwind() })
            }
            Err(_) => Either::Left(ready(Ok(S::Response::refuse(Refusal::Panicked)))),
        }
    }
}

pin_project! {
    /// An answer that comes, whatever happens.
    pub struct Answering<F> {
        #[pin]
        inner: CatchUnwind<AssertUnwindSafe<F>>,
    }
}

impl<F, A, E> Future for Answering<F>
where
    F: Future<Output = Result<A, E>>,
    A: Refuse,
{
    type Output = Result<A, E>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let polled = self.project().inner.poll(context);
        // the hook has logged it
        polled.map(|caught| caught.unwrap_or_else(|_| Ok(A::refuse(Refusal::Panicked))))
    }
}
