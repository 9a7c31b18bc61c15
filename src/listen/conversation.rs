//! One connection's place in its conversation, so that each wait has its bound: first byte, head, next request, write.
//!
//! The stream below hyper knows bytes, the service above it knows when a request begins and its answer is made; they
//! share a [`Conversation`]. While a head is read, hyper gets bytes up to its end and no further, so that what follows
//! is known to be body or the next head, and every head is watched for what a proxy may read otherwise.

use std::{
    future::Future as _,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
};

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, header};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

use super::{
    Bounds,
    chunks::{self, Chunks},
    head::{Found, Head},
    porter::Posted,
};

/// What comes next on the wire.
#[derive(Clone, Copy, Debug)]
enum Reading {
    /// A request's head.
    Head(Head),
    /// The head is read, and the service has not said yet what follows.
    HeadRead,
    /// So many bytes of body.
    Body(u64),
    /// A chunked body.
    Chunked(Chunks),
}

/// What is waited for.
#[derive(Clone, Copy, Debug)]
enum Waiting {
    /// A request's first byte, until then.
    Request(Instant),
    /// The rest of its head, until then.
    Head(Instant),
    /// Our own answer: the service bounds that.
    Answer,
}

#[derive(Debug)]
struct State {
    reading: Reading,
    waiting: Waiting,
    /// hyper holds no byte of a request that is not answered.
    fresh: bool,
    /// hyper has an answer that it has not sent.
    owed: bool,
    /// Woken when the state changes under a reader that waits.
    reader: Option<Waker>,
}

/// Shared by the stream below hyper and the service above it.
#[derive(Debug)]
pub(super) struct Conversation {
    bounds: Bounds,
    state: Mutex<State>,
}

impl Conversation {
    pub(super) fn new(bounds: Bounds) -> Arc<Self> {
        let waiting = Waiting::Request(Instant::now() + bounds.first_byte);
        let reading = Reading::Head(Head::START);
        let state = State { reading, waiting, fresh: true, owed: false, reader: None };
        Arc::new(Self { bounds, state: Mutex::new(state) })
    }

    /// Whether nothing of a request has come yet.
    pub(super) fn is_silent(&self) -> bool {
        matches!(self.state().waiting, Waiting::Request(_))
    }

    /// Whether what comes next is a new request, and everything before it is answered and sent.
    fn is_fresh(&self) -> bool {
        let state = self.state();
        state.fresh
            && !state.owed
            && matches!(state.waiting, Waiting::Request(_))
            && matches!(state.reading, Reading::Head(Head::Before { cr: false }))
    }

    /// A request was answered beside hyper.
    fn answered_beside(&self) {
        self.state().waiting = Waiting::Request(Instant::now() + self.bounds.idle);
    }

    fn sent(&self) {
        self.state().owed = false;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that was heard and is being answered; dropped when its answer is made.
#[derive(Debug)]
pub struct Heard {
    conversation: Arc<Conversation>,
}

impl Heard {
    /// Tells the stream what follows the head.
    pub(super) fn new(conversation: &Arc<Conversation>, headers: &HeaderMap) -> Self {
        let length = || headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok();
        let mut state = conversation.state();
        state.waiting = Waiting::Answer;
        state.reading =
            match (headers.contains_key(header::TRANSFER_ENCODING), length().unwrap_or(0)) {
                (true, _) => Reading::Chunked(Chunks::START),
                (false, 0) => Reading::Head(Head::START),
                (false, length) => Reading::Body(length),
            };
        wake(&mut state);
        drop(state);
        Self { conversation: Arc::clone(conversation) }
    }
}

impl Drop for Heard {
    fn drop(&mut self) {
        let mut state = self.conversation.state();
        // As we set hyper up it does not read on while an answer is made. Should it, a pipelined request may have begun, and
        // its whole head may have been read: then what follows is not a head.
        let bounds = &self.conversation.bounds;
        state.waiting = if let Reading::Head(Head::Inside(_)) = state.reading {
            Waiting::Head(Instant::now() + bounds.head)
        } else {
            Waiting::Request(Instant::now() + bounds.idle)
        };
        state.fresh = matches!(state.reading, Reading::Head(Head::Before { cr: false }));
        state.owed = true;
        wake(&mut state);
    }
}

fn wake(state: &mut State) {
    if let Some(reader) = state.reader.take() {
        reader.wake();
    }
}

/// The stream below hyper.
pub(super) struct Stream<I> {
    io: I,
    conversation: Arc<Conversation>,
    /// HTTP/2 frames are not watched, only timed until the connection has said that it speaks HTTP/2.
    watched: bool,
    /// How much of that is still due, in bytes.
    preface_left: usize,
    /// Read from the peer, not yet given to hyper.
    held: BytesMut,
    /// Bytes given to hyper since others had their turn.
    turn: usize,
    read_timer: Pin<Box<Sleep>>,
    write_timer: Option<Pin<Box<Sleep>>>,
    porter: Option<Posted>,
    /// What is left to send of the porter's answer.
    parting: Option<Bytes>,
    /// hyper has written since all was sent.
    wrote: bool,
}

/// What every HTTP/2 connection begins with: `PRI * HTTP/2.0 …`. From then on hyper pings an idle peer.
const PREFACE_BYTES: usize = 24;
/// How many bytes hyper gets before other connections have their turn. It works for as long as there are bytes, and a
/// flood of the smallest frames or chunks makes much work of few.
const TURN_BYTES: usize = 64 * 1024;

impl<I> Stream<I> {
    pub(super) fn new(
        io: I,
        conversation: Arc<Conversation>,
        watched: bool,
        porter: Option<Posted>,
    ) -> Self {
        let read_timer = Box::pin(sleep_until(Instant::now()));
        let preface_left = if watched { 0 } else { PREFACE_BYTES };
        let held = BytesMut::new();
        Self {
            io,
            conversation,
            watched,
            preface_left,
            held,
            turn: 0,
            read_timer,
            write_timer: None,
            porter: porter.filter(|_| watched),
            parting: None,
            wrote: false,
        }
    }
}

impl Conversation {
    /// How many of these bytes, in the order of the wire, hyper may have now; those that it must not have are spoilt.
    fn admit(&self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut state = self.state();
        state.fresh = false;
        let taken = match state.reading {
            Reading::HeadRead => 0,
            Reading::Chunked(chunks) => match chunks.read(bytes) {
                chunks::Found::More(chunks) => {
                    state.reading = Reading::Chunked(chunks);
                    bytes.len()
                }
                chunks::Found::End(length) => {
                    state.reading = Reading::Head(Head::START);
                    length
                }
                chunks::Found::Illegal => return Err(io::ErrorKind::InvalidData.into()),
            },
            Reading::Body(left) => {
                let taken = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                let left = left.saturating_sub(u64::try_from(taken).unwrap_or(u64::MAX));
                state.reading =
                    if left == 0 { Reading::Head(Head::START) } else { Reading::Body(left) };
                taken
            }
            Reading::Head(head) => {
                if let Waiting::Request(_) = state.waiting {
                    state.waiting = Waiting::Head(Instant::now() + self.bounds.head);
                }
                match head.read(bytes) {
                    Found::More(head) => {
                        state.reading = Reading::Head(head);
                        bytes.len()
                    }
                    Found::End(length) => {
                        state.reading = Reading::HeadRead;
                        length
                    }
                    Found::BareLf(at) | Found::Fragment(at) | Found::TwoEnds(at) => {
                        // hyper takes these but no NUL: it answers 400 and closes
                        if let Some(lf) = bytes.get_mut(at) {
                            *lf = 0;
                        }
                        at.saturating_add(1)
                    }
                }
            }
        };
        Ok(taken)
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> Stream<I> {
    /// Gives hyper what it may have of the held bytes; `false` if that is nothing.
    fn give(&mut self, out: &mut ReadBuf<'_>) -> io::Result<bool> {
        let most = self.held.len().min(out.remaining());
        let Some(held) = self.held.get_mut(..most) else { return Ok(false) };
        if held.is_empty() {
            return Ok(false);
        }
        let taken = self.conversation.admit(held)?;
        if let Some(bytes) = held.get(..taken) {
            out.put_slice(bytes);
        }
        self.held.advance(taken);
        Ok(taken > 0)
    }

    /// Reads to where hyper wants it, and holds what it must not have yet; what it got is nothing at the end.
    fn poll_direct(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<Direct>> {
        let before = out.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, out))?;
        let Some(bytes) = out.filled_mut().get_mut(before..).filter(|read| !read.is_empty()) else {
            return Poll::Ready(Ok(Direct::End));
        };
        if let Some(porter) = &self.porter
            && self.conversation.is_fresh()
            && let Some(answer) = porter.turn_away(bytes)
        {
            out.set_filled(before);
            self.parting = Some(answer);
            return Poll::Ready(Ok(Direct::TurnedAway));
        }
        let taken = self.conversation.admit(bytes)?;
        if let Some(rest) = bytes.get(taken..) {
            self.held.extend_from_slice(rest);
        }
        out.set_filled(before.saturating_add(taken));
        Poll::Ready(Ok(if taken > 0 { Direct::Given } else { Direct::Held }))
    }
}

/// What became of bytes that were read.
enum Direct {
    /// There are no more.
    End,
    /// Hyper has some.
    Given,
    /// All are held.
    Held,
    /// They were a request that is not let in.
    TurnedAway,
}

impl<I: AsyncRead + Unpin> Stream<I> {
    fn poll_unwatched(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, out);
        if self.preface_left == 0 {
            return read;
        }
        let length = out.filled().len().saturating_sub(before);
        self.preface_left = self.preface_left.saturating_sub(length);
        let waiting = self.conversation.state().waiting;
        let (Poll::Pending, Waiting::Request(until)) = (&read, waiting) else { return read };
        self.poll_deadline(cx, until)
    }

    /// Fails once the time is over; wakes the task then.
    fn poll_deadline(&mut self, cx: &mut Context<'_>, until: Instant) -> Poll<io::Result<()>> {
        // to move a timer costs more than to let it ring too early now and then, and idle connections wait ever longer
        if self.read_timer.deadline() > until {
            self.read_timer.as_mut().reset(until);
        }
        ready!(self.read_timer.as_mut().poll(cx));
        while self.read_timer.deadline() < until {
            self.read_timer.as_mut().reset(until);
            ready!(self.read_timer.as_mut().poll(cx));
        }
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncRead for Stream<I> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.turn >= TURN_BYTES {
            this.turn = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = out.filled().len();
        let read = this.poll_some(cx, out);
        let length = out.filled().len().saturating_sub(before);
        this.turn = if read.is_ready() { this.turn.saturating_add(length) } else { 0 };
        read
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> Stream<I> {
    /// Sends the porter's answer. hyper has nothing to send meanwhile: it has not heard of the request.
    fn poll_parting(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(left) = self.parting.as_mut().filter(|left| !left.is_empty()) {
            let written = Pin::new(&mut self.io).poll_write(cx, left);
            if let Poll::Ready(Ok(length)) = &written {
                if *length == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                left.advance(*length);
            }
            ready!(self.timed(cx, written))?;
        }
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        ready!(self.timed(cx, flushed))?;
        self.parting = None;
        self.conversation.answered_beside();
        Poll::Ready(Ok(()))
    }

    fn poll_some(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self;
        if !this.watched {
            return this.poll_unwatched(cx, out);
        }
        loop {
            if this.parting.is_some() {
                ready!(this.poll_parting(cx))?;
            }
            if this.give(out)? {
                return Poll::Ready(Ok(()));
            }
            if this.held.is_empty() {
                // an idle connection keeps no buffer
                this.held = BytesMut::new();
                match this.poll_direct(cx, out)? {
                    Poll::Ready(Direct::End | Direct::Given) => return Poll::Ready(Ok(())),
                    Poll::Ready(Direct::Held | Direct::TurnedAway) => continue,
                    Poll::Pending => {}
                }
            }
            let waiting = {
                let mut state = this.conversation.state();
                if state.reader.as_ref().is_none_or(|reader| !reader.will_wake(cx.waker())) {
                    state.reader = Some(cx.waker().clone());
                }
                state.waiting
            };
            let (Waiting::Request(until) | Waiting::Head(until)) = waiting else {
                return Poll::Pending;
            };
            return this.poll_deadline(cx, until);
        }
    }
}

impl<I: Unpin> Stream<I> {
    /// Bounds how long the peer takes nothing.
    fn timed<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.write_timer = None;
            return written;
        }
        let until = Instant::now() + self.conversation.bounds.write;
        let timer = self.write_timer.get_or_insert_with(|| Box::pin(sleep_until(until)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Stream<I> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.io).poll_write(cx, bytes);
        this.wrote = true;
        this.timed(cx, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.io).poll_write_vectored(cx, slices);
        this.wrote = true;
        this.timed(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.parting.is_some() {
            // hyper has nothing to send then, and what the reader waits to send keeps its time
            return Poll::Ready(Ok(()));
        }
        let flushed = Pin::new(&mut this.io).poll_flush(cx);
        // hyper flushes once it has written all that it has. Answers whose bodies came piece by piece would need more than
        // that: the bridge's are one piece.
        if this.wrote && flushed.is_ready() {
            this.wrote = false;
            this.conversation.sent();
        }
        this.timed(cx, flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let shut = Pin::new(&mut this.io).poll_shutdown(cx);
        this.timed(cx, shut)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, net::SocketAddr, time::Duration};

    use tokio_util::sync::CancellationToken;

    use super::{super::porter::Porter, *};

    const BOUNDS: Bounds = Bounds {
        first_byte: Duration::from_secs(10),
        head: Duration::from_secs(10),
        idle: Duration::from_mins(1),
        write: Duration::from_secs(10),
        head_bytes: 16 * 1024,
    };

    /// A peer that sends these pieces, one each time it is read, and takes what it is sent, or nothing.
    struct Peer {
        sends: VecDeque<&'static [u8]>,
        takes: bool,
    }

    impl AsyncRead for Peer {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            out: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            match self.get_mut().sends.pop_front() {
                Some(piece) => out.put_slice(piece),
                None => return Poll::Pending,
            }
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Peer {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            if self.takes { Poll::Ready(Ok(bytes.len())) } else { Poll::Pending }
        }

        /// A socket has nothing to flush, whoever reads.
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// Lets nobody in.
    struct Closed;

    impl Porter for Closed {
        fn is_pressed(&self) -> bool {
            true
        }

        fn turn_away(&self, _: SocketAddr, _: &[u8]) -> Option<Bytes> {
            Some(Bytes::from_static(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"))
        }
    }

    fn stream(
        sends: impl IntoIterator<Item = &'static [u8]>,
        porter: Option<Posted>,
    ) -> (Stream<Peer>, Arc<Conversation>) {
        let conversation = Conversation::new(BOUNDS);
        let peer = Peer { sends: sends.into_iter().collect(), takes: porter.is_none() };
        (Stream::new(peer, Arc::clone(&conversation), true, porter), conversation)
    }

    /// What hyper gets now; `None` if it has to wait.
    fn read(stream: &mut Stream<Peer>) -> Option<io::Result<Vec<u8>>> {
        let mut bytes = [0; 256];
        let mut out = ReadBuf::new(&mut bytes);
        let mut cx = Context::from_waker(Waker::noop());
        match Pin::new(stream).poll_read(&mut cx, &mut out) {
            Poll::Ready(read) => Some(read.map(|()| out.filled().to_vec())),
            Poll::Pending => None,
        }
    }

    fn heard(conversation: &Arc<Conversation>, length: &'static str) -> Heard {
        let length = [(header::CONTENT_LENGTH, http::HeaderValue::from_static(length))];
        Heard::new(conversation, &length.into_iter().collect())
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_is_body_also_behind_a_request_that_was_still_being_answered() {
        let pipelined: &[u8] = b"{}POST /b HTTP/1.1\r\nContent-Length: 3\r\n\r\na\nb";
        let (mut stream, conversation) =
            stream([b"POST /a HTTP/1.1\r\nContent-Length: 2\r\n\r\n", pipelined], None);
        assert!(read(&mut stream).unwrap().unwrap().ends_with(b"\r\n\r\n"));
        let first = heard(&conversation, "2");
        assert_eq!(read(&mut stream).unwrap().unwrap(), b"{}");
        assert!(read(&mut stream).unwrap().unwrap().starts_with(b"POST /b"));
        drop(first);
        assert!(read(&mut stream).is_none(), "before the service says what follows the head");
        let _second = heard(&conversation, "3");
        assert_eq!(read(&mut stream).unwrap().unwrap(), b"a\nb");
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_was_begun_behind_another_request_has_no_more_time_than_any() {
        let begun: &[u8] = b"{}POST /b HT";
        let (mut stream, conversation) =
            stream([b"POST /a HTTP/1.1\r\nContent-Length: 2\r\n\r\n", begun], None);
        read(&mut stream).unwrap().unwrap();
        let first = heard(&conversation, "2");
        assert_eq!(read(&mut stream).unwrap().unwrap(), b"{}");
        assert_eq!(read(&mut stream).unwrap().unwrap(), b"POST /b HT");
        drop(first);
        assert!(read(&mut stream).is_none());
        tokio::time::advance(BOUNDS.head + Duration::from_millis(1)).await;
        assert_eq!(read(&mut stream).unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_takes_nothing_at_the_door_is_left_in_time_however_often_hyper_flushes() {
        let porter = Posted {
            porter: Arc::new(Closed),
            peer: ([127, 0, 0, 1], 1).into(),
            soon: Arc::new(CancellationToken::new()),
        };
        let request: &[u8] = b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";
        let (mut stream, _) = stream([request], Some(porter));
        let mut waited = Duration::ZERO;
        let end = loop {
            if let Some(end) = read(&mut stream) {
                break end;
            }
            assert!(waited <= BOUNDS.write, "it may stay for ever");
            let mut cx = Context::from_waker(Waker::noop());
            assert!(Pin::new(&mut stream).poll_flush(&mut cx).is_ready());
            tokio::time::advance(Duration::from_secs(1)).await;
            waited += Duration::from_secs(1);
        };
        assert_eq!(end.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
