//! How long a request may take: the layer that ends it, and how gRPC's callers say it (the `grpc-timeout` header).
//!
//! tonic reads that too, but ends such a call as CANCELLED; ours ends as DEADLINE_EXCEEDED, where the wait is.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep_until};
use tower::{Layer, Service};

use super::{Refusal, Refuse};

/// A request whose answer is due.
pub trait Timed {
    /// When nobody waits for its answer any more.
    fn deadline(&self) -> Instant;
}

/// The layer.
#[derive(Clone, Copy, Debug)]
pub struct DeadlineLayer;

impl<S> Layer<S> for DeadlineLayer {
    type Service = Deadline<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Deadline(inner)
    }
}

/// The service.
#[derive(Clone, Copy, Debug)]
pub struct Deadline<S>(S);

impl<S, R> Service<R> for Deadline<S>
where
    R: Timed,
    S: Service<R>,
    S::Response: Refuse,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Timely<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let end = sleep_until(request.deadline().into());
        Timely { answering: self.0.call(request), end }
    }
}

pin_project! {
    /// An answer in time.
    #[derive(Debug)]
    pub struct Timely<F> {
        #[pin]
        answering: F,
        #[pin]
        end: Sleep,
    }
}

impl<F, A, E> Future for Timely<F>
where
    F: Future<Output = Result<A, E>>,
    A: Refuse,
{
    type Output = Result<A, E>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        // an answer that is there counts, however late it is looked at
        if let Poll::Ready(answer) = this.answering.poll(context) {
            return Poll::Ready(answer);
        }
        this.end.poll(context).map(|()| Ok(A::refuse(Refusal::OutOfTime)))
    }
}

/// Longest wait that is honoured: a caller that asks for more gets this.
pub const LONGEST: Duration = Duration::from_mins(1);

/// Reads at most eight digits and a unit (`H`, `M`, `S`, `m`, `u`, `n`); `None` if it is not that.
///
/// Source: "gRPC over HTTP2", Timeout.
pub fn parse(value: &str) -> Option<Duration> {
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|digit| digit.is_ascii_digit())
    {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    let wait = match unit {
        "H" => Duration::from_secs(count.checked_mul(3_600)?),
        "M" => Duration::from_secs(count.checked_mul(60)?),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    };
    Some(wait.min(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_digits_and_a_unit() {
        assert_eq!(parse("100m"), Some(Duration::from_millis(100)));
        assert_eq!(parse("5S"), Some(Duration::from_secs(5)));
        assert_eq!(parse("99999999n"), Some(Duration::from_nanos(99_999_999)));
        assert_eq!(parse("99999999H"), Some(LONGEST));
        for bad in ["", "S", "5", "-5S", "5s", "123456789S", "5é", "é"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
