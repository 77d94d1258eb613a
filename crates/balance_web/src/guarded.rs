//! A connection whose client has to keep going: a request comes within a time, and what is sent is taken
//! within a time.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

/// The time limits of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// For the whole request to be there.
    pub(crate) request: Duration,
    /// For everything that was written to be taken, so that a client that takes a byte now and then holds
    /// nothing.
    pub(crate) taken: Duration,
}

/// A connection with time limits.
pub(crate) struct Guarded {
    stream: TcpStream,
    limits: Limits,
    /// Set once the request is there.
    pub(crate) is_asked: Rc<Cell<bool>>,
    until_asked: Pin<Box<Sleep>>,
    until_taken: Pin<Box<Sleep>>,
    /// Whether something was written and not flushed.
    is_sending: bool,
}

impl Guarded {
    pub(crate) fn new(stream: TcpStream, limits: Limits) -> Self {
        Self {
            stream,
            limits,
            is_asked: Rc::default(),
            until_asked: Box::pin(sleep(limits.request)),
            until_taken: Box::pin(sleep(limits.taken)),
            is_sending: false,
        }
    }

    fn begin_sending(&mut self) {
        if !self.is_sending {
            self.is_sending = true;
            self.until_taken.as_mut().reset(Instant::now() + self.limits.taken);
        }
    }
}

fn give_up<T>(sleep: &mut Pin<Box<Sleep>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
    use std::future::Future;
    sleep.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
}

impl Read for Guarded {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // The cursor's own memory could only be filled in place by unsafe code.
        let mut room = [0; 4096];
        let most = room.len().min(buffer.remaining());
        let Some(room) = room.get_mut(..most) else { return Poll::Ready(Ok(())) };
        let mut part = ReadBuf::new(room);
        match Pin::new(&mut this.stream).poll_read(context, &mut part) {
            Poll::Ready(Ok(())) => {
                buffer.put_slice(part.filled());
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending if this.is_asked.get() => Poll::Pending,
            Poll::Pending => give_up(&mut this.until_asked, context),
        }
    }
}

impl Write for Guarded {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.begin_sending();
        if !this.until_taken.is_elapsed() {
            match Pin::new(&mut this.stream).poll_write(context, bytes) {
                Poll::Pending => {}
                ready => return ready,
            }
        }
        let given_up = give_up(&mut this.until_taken, context);
        if given_up.is_ready() {
            // What the kernel still has for this client goes too; if not, it goes later.
            let _ = this.stream.set_zero_linger();
        }
        given_up
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.stream).poll_flush(context);
        this.is_sending &= flushed.is_pending();
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}
