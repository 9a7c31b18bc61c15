//! Frames of HTTP/2 that leave together.
//!
//! An answer wakes its connection, which runs next and writes it: a system call for each of forty bytes, and a packet. So a
//! connection on which more is under way lets every task run that can, and writes what they all answered.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker, ready},
};

use futures_util::task::AtomicWaker;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task,
};

use super::streams::Streams;

/// What hyper's HTTP/2 has buffered, in bytes, from which on it takes little more before it is written: its buffer has 16 KiB.
const FULL_BYTES: usize = 12 * 1024;

/// The stream below hyper's HTTP/2, which waits its turn before it writes.
pub(super) struct Gathered<I> {
    io: I,
    streams: Arc<Streams>,
    turn: Turn,
    bell: Arc<Bell>,
    waker: Waker,
}

/// Where it stands with the others.
enum Turn {
    /// Nothing is to be written.
    None,
    /// They run first.
    Theirs(Pin<Box<dyn Future<Output = ()> + Send>>),
    /// Until all is written that there is.
    Ours,
}

/// Rings when the others had their turn. Only that lets us write: an answer wakes the connection too, and is not the last.
#[derive(Default)]
struct Bell {
    rang: AtomicBool,
    connection: AtomicWaker,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.rang.store(true, Ordering::Release);
        self.connection.wake();
    }
}

impl<I> Gathered<I> {
    pub(super) fn new(io: I, streams: Arc<Streams>) -> Self {
        let bell = Arc::<Bell>::default();
        Self { io, streams, turn: Turn::None, waker: Arc::clone(&bell).into(), bell }
    }

    /// Whether this may be written now. `more` says that the writer would take more, too.
    fn poll_turn(&mut self, cx: &mut Context<'_>, more: bool) -> Poll<()> {
        if !more || matches!(self.turn, Turn::Ours) || !self.streams.several() {
            self.turn = Turn::Ours;
            return Poll::Ready(());
        }
        self.bell.connection.register(cx.waker());
        let mut theirs = match std::mem::replace(&mut self.turn, Turn::None) {
            Turn::Theirs(theirs) if !self.bell.rang.load(Ordering::Acquire) => {
                self.turn = Turn::Theirs(theirs);
                return Poll::Pending;
            }
            Turn::Theirs(theirs) => theirs,
            Turn::None | Turn::Ours => Box::pin(task::yield_now()),
        };
        self.bell.rang.store(false, Ordering::Release);
        let polled = theirs.as_mut().poll(&mut Context::from_waker(&self.waker));
        self.turn = if polled.is_ready() { Turn::Ours } else { Turn::Theirs(theirs) };
        polled
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Gathered<I> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_read(cx, out)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Gathered<I> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_turn(cx, bytes.len() < FULL_BYTES));
        Pin::new(&mut this.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        // behind a large frame, which has a slice of its own, nothing more is buffered
        let more = matches!(slices, [only] if only.len() < FULL_BYTES);
        ready!(this.poll_turn(cx, more));
        Pin::new(&mut this.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // all is written
        if let Turn::Ours = this.turn {
            this.turn = Turn::None;
        }
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, io::IoSlice, net::IpAddr};

    use tokio_util::sync::CancellationToken;

    use super::{super::streams::Answers, *};
    use crate::layer::budget::{Budget, Source};

    /// Keeps each write.
    #[derive(Default)]
    struct Peer(Vec<usize>);

    impl AsyncWrite for Peer {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.get_mut().0.push(bytes.len());
            Poll::Ready(Ok(bytes.len()))
        }

        fn is_write_vectored(&self) -> bool {
            true
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn stream() -> (Gathered<Peer>, Arc<Streams>) {
        let room = Budget::new(9, 9);
        let source = Source::from(IpAddr::from([127, 0, 0, 1]));
        let streams = Streams::new(Answers { room, source }, CancellationToken::new());
        (Gathered::new(Peer::default(), Arc::clone(&streams)), streams)
    }

    /// One attempt, as hyper makes one whenever something wakes it.
    async fn wrote(stream: &mut Gathered<Peer>, lengths: &[usize]) -> bool {
        let bytes: Vec<_> = lengths.iter().map(|length| vec![0; *length]).collect();
        let slices: Vec<_> = bytes.iter().map(|bytes| IoSlice::new(bytes)).collect();
        poll_fn(|cx| {
            let written = Pin::new(&mut *stream).poll_write_vectored(cx, &slices);
            Poll::Ready(written.is_ready())
        })
        .await
    }

    async fn flush(stream: &mut Gathered<Peer>) {
        poll_fn(|cx| Pin::new(&mut *stream).poll_flush(cx)).await.unwrap();
    }

    #[tokio::test]
    async fn answers_wait_until_every_other_task_has_run_and_leave_in_one_write() {
        let (mut stream, streams) = stream();
        for _ in 0..2 {
            stream.io.0.clear();
            let _open = [streams.open(), streams.open()];
            assert!(!wrote(&mut stream, &[10]).await);
            // another answer, whose wake is not the others' turn
            assert!(!wrote(&mut stream, &[20]).await);
            let before = tokio::spawn(async {});
            let mut last = 30;
            poll_fn(|cx| {
                let bytes = vec![0; last];
                last += 1;
                Pin::new(&mut stream).poll_write(cx, &bytes).map(|written| written.unwrap())
            })
            .await;
            assert!(before.is_finished(), "it could run");
            // what comes while it writes goes at once
            assert!(wrote(&mut stream, &[5]).await);
            assert_eq!(stream.io.0, [31, 5]);
            flush(&mut stream).await;
        }
    }

    #[tokio::test]
    async fn an_answer_that_nobody_follows_and_one_that_fills_the_buffer_leave_at_once() {
        let (mut stream, streams) = stream();
        let _only = streams.open();
        assert!(wrote(&mut stream, &[10]).await);
        flush(&mut stream).await;

        let more = streams.open();
        for lengths in [&[FULL_BYTES][..], &[10, 10]] {
            assert!(wrote(&mut stream, lengths).await, "{lengths:?}");
            flush(&mut stream).await;
        }
        // also one that waited, once nobody follows
        assert!(!wrote(&mut stream, &[10]).await);
        drop(more);
        assert!(wrote(&mut stream, &[10]).await);
        flush(&mut stream).await;
    }

    #[tokio::test]
    async fn a_turn_that_was_given_up_is_not_taken_for_the_next_one() {
        let (mut stream, streams) = stream();
        let open = [streams.open(), streams.open()];
        assert!(!wrote(&mut stream, &[10]).await);
        // the buffer fills up meanwhile, and all of it goes
        assert!(wrote(&mut stream, &[FULL_BYTES]).await);
        flush(&mut stream).await;
        task::yield_now().await;
        assert!(!wrote(&mut stream, &[10]).await);
        drop(open);
    }
}
