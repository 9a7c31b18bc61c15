//! The two bodies of a request: what is received, within a time and a budget, and what is sent, watched until the peer
//! has taken it.

use std::{
    future::Future as _,
    io::IoSlice,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep_until};

use super::streams::{Due, Open};
use crate::layer::budget::{Budget, Share, Source};

/// How much time and room request bodies have.
#[derive(Clone, Copy, Debug)]
pub struct BodyRoom {
    /// For a body, all of it, or until it is answered.
    pub timeout: Duration,
    /// Bytes of those that are not answered yet.
    pub bytes: usize,
    /// The same, of one source.
    pub bytes_per_source: usize,
}

/// How request bodies are bounded where the service behind reads them whole and bounds nothing. Clones share it.
#[derive(Clone, Debug)]
pub struct Bodies {
    timeout_ms: Arc<AtomicU64>,
    bytes: Arc<Budget>,
}

impl Bodies {
    /// Bounded so.
    pub fn new(room: BodyRoom) -> Self {
        let timeout_ms = Arc::new(AtomicU64::new(milliseconds(room.timeout)));
        Self { timeout_ms, bytes: Budget::new(room.bytes, room.bytes_per_source) }
    }

    /// Bounded so from now on; a body that is being received keeps its time.
    pub fn resize(&self, room: BodyRoom) {
        self.timeout_ms.store(milliseconds(room.timeout), Ordering::Relaxed);
        self.bytes.resize(room.bytes, room.bytes_per_source);
    }

    fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms.load(Ordering::Relaxed))
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Why a body could not be received.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// It broke off.
    #[error("the body broke off")]
    Broken(#[source] hyper::Error),
    /// It did not come in time.
    #[error("the body did not come in time")]
    Late,
    /// Too many bytes of too many bodies wait already.
    #[error("too many bytes are being received")]
    TooMany,
}

/// A request's body.
pub struct Received<B = Incoming> {
    body: B,
    bound: Bounded,
    /// Told once the peer has broken it off; of HTTP/2.
    broken: Option<Arc<AtomicBool>>,
}

enum Bounded {
    /// By whoever reads it.
    Elsewhere,
    Here(Bound),
    /// There is no room for any more of its source, not even for its first byte.
    Refused,
}

struct Bound {
    share: Share,
    until: Instant,
    /// Only once it is waited for.
    timer: Option<Pin<Box<Sleep>>>,
    /// From then on a body is one side of a conversation that may last.
    answered: Arc<AtomicBool>,
}

impl<B> Received<B> {
    /// Not bounded here.
    pub(super) fn plain(body: B) -> Self {
        Self { body, bound: Bounded::Elsewhere, broken: None }
    }

    /// Tells there once the peer has broken it off.
    pub(super) fn telling(self, broken: Option<&Arc<AtomicBool>>) -> Self {
        Self { broken: broken.cloned(), ..self }
    }

    /// Bounded until `answered`.
    pub(super) fn bounded(
        body: B,
        bodies: &Bodies,
        source: Source,
        answered: &Arc<AtomicBool>,
    ) -> Self {
        let bound = bodies.bytes.take(source, 0).map_or(Bounded::Refused, |share| {
            let until = Instant::now() + bodies.timeout();
            Bounded::Here(Bound { share, until, timer: None, answered: Arc::clone(answered) })
        });
        Self { body, bound, broken: None }
    }
}

impl Bound {
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.answered.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        let until = self.until;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(until)));
        ready!(timer.as_mut().poll(cx));
        if self.answered.load(Ordering::Acquire) { Poll::Pending } else { Poll::Ready(()) }
    }
}

impl<B: Body<Data = Bytes, Error = hyper::Error> + Unpin> Body for Received<B> {
    type Data = Bytes;
    type Error = ReceiveError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ReceiveError>>> {
        let this = self.get_mut();
        let mut bound = match &mut this.bound {
            Bounded::Elsewhere => None,
            Bounded::Here(bound) => Some(bound),
            Bounded::Refused => return Poll::Ready(Some(Err(ReceiveError::TooMany))),
        };
        let frame = match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                let Some(bound) = bound else { return Poll::Pending };
                ready!(bound.poll_late(cx));
                return Poll::Ready(Some(Err(ReceiveError::Late)));
            }
        };
        let frame = match frame {
            None => return Poll::Ready(None),
            Some(Ok(frame)) => Ok(frame),
            Some(Err(error)) => {
                if let Some(broken) = &this.broken {
                    broken.store(true, Ordering::Release);
                }
                Err(ReceiveError::Broken(error))
            }
        };
        let length = frame.as_ref().ok().and_then(Frame::data_ref).map_or(0, Bytes::len);
        let fits = bound.as_mut().is_none_or(|bound| bound.share.grow(length));
        Poll::Ready(Some(if fits { frame } else { Err(ReceiveError::TooMany) }))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// On a response: its peer may take it as slowly as it likes. For streams, whose reader's pace is their own.
#[derive(Clone, Copy, Debug)]
pub struct Patient;

/// An answer's body; of HTTP/2 it is watched.
pub(super) struct Sent<B> {
    body: Pin<Box<B>>,
    watch: Option<Watch>,
}

struct Watch {
    open: Open,
    patient: bool,
    /// While hyper could send and does not ask: the peer has closed its window.
    due: Option<Due>,
}

impl<B> Sent<B> {
    pub(super) fn new(body: B, open: Option<Open>, patient: bool) -> Self {
        let watch = open.map(|open| {
            let due = (!patient).then(|| open.streams().due());
            Watch { open, patient, due }
        });
        Self { body: Box::pin(body), watch }
    }
}

impl<B: Body> Body for Sent<B> {
    type Data = Piece<B::Data>;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Piece<B::Data>>, B::Error>>> {
        let this = self.get_mut();
        let frame = this.body.as_mut().poll_frame(cx);
        let Some(watch) = this.watch.as_mut() else {
            return frame
                .map_ok(|frame| frame.map_data(|data| Piece { data, _open: None, due: None }));
        };
        let due = || (!watch.patient).then(|| watch.open.streams().due());
        // a body that is pending waits for us
        watch.due = if frame.is_ready() { due() } else { None };
        frame.map_ok(|frame| {
            frame.map_data(|data| Piece {
                data,
                _open: Some(watch.open.streams().open()),
                due: (!watch.patient).then(|| watch.open.streams().due()),
            })
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A piece of an answer, dropped once it is written.
pub(super) struct Piece<D> {
    data: D,
    _open: Option<Open>,
    due: Option<Due>,
}

impl<D: Buf> Buf for Piece<D> {
    fn remaining(&self) -> usize {
        self.data.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.data.chunk()
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        self.data.chunks_vectored(slices)
    }

    fn advance(&mut self, count: usize) {
        self.data.advance(count);
        if let Some(due) = &mut self.due {
            due.renew();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, net::IpAddr};

    use http_body_util::{BodyExt as _, Full};

    use super::*;

    fn of(bodies: &Bodies, length: usize) -> impl Body<Data = Bytes, Error = ReceiveError> + use<> {
        let body = Full::new(Bytes::from(vec![b'x'; length]));
        let body = body.map_err(|never: Infallible| -> hyper::Error { match never {} });
        let source = Source::from(IpAddr::from([192, 0, 2, 1]));
        Received::bounded(body, bodies, source, &Arc::default())
    }

    #[tokio::test]
    async fn a_body_for_which_there_is_no_room_at_all_is_refused() {
        let room = |timeout, bytes| BodyRoom { timeout, bytes, bytes_per_source: bytes };
        let bodies = Bodies::new(room(Duration::from_secs(10), 10));
        let mut first = Box::pin(of(&bodies, 10));
        assert!(first.frame().await.unwrap().is_ok());
        assert!(matches!(of(&bodies, 1).collect().await, Err(ReceiveError::TooMany)));
        // less than what is taken already
        bodies.resize(room(Duration::from_secs(5), 5));
        assert_eq!(bodies.timeout(), Duration::from_secs(5));
        for length in [1, 100] {
            assert!(matches!(of(&bodies, length).collect().await, Err(ReceiveError::TooMany)));
        }
        drop(first);
        assert!(of(&bodies, 5).collect().await.is_ok());
        assert!(of(&bodies, 6).collect().await.is_err());
    }
}
