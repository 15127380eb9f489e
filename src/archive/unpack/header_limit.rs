//! Bounds what a header may make the tar reader hold in memory.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};

/// The most bytes one entry's headers (long names, PAX records with extended attributes) may take.
///
/// The tar reader collects them in memory, however large they say they are. Linux keeps names below 4 KiB
/// and one extended attribute below 64 KiB.
pub const HEADER_LIMIT: u64 = 1024 * 1024;

const UNLIMITED: u64 = u64::MAX;

/// A reader that fails when more than [`HEADER_LIMIT`] bytes are read between two entries.
pub struct HeaderLimit<R> {
    inner: R,
    limit: Limit,
}

/// Says which part of the stream is being read.
#[derive(Clone)]
pub struct Limit(Arc<State>);

struct State {
    left: AtomicU64,
    ended: AtomicBool,
}

impl<R> HeaderLimit<R> {
    pub fn new(inner: R) -> (Self, Limit) {
        let limit = Limit(Arc::new(State {
            left: AtomicU64::new(HEADER_LIMIT),
            ended: AtomicBool::new(false),
        }));
        let shared = limit.clone();
        (Self { inner, limit }, shared)
    }
}

impl Limit {
    /// What follows is the next entry's headers.
    pub fn header(&self) {
        self.0.left.store(HEADER_LIMIT, Ordering::Relaxed);
    }

    /// What follows is a body, which is never held as a whole.
    pub fn body(&self) {
        self.0.left.store(UNLIMITED, Ordering::Relaxed);
    }

    /// Whether the stream itself has come to its end.
    pub fn ended(&self) -> bool {
        self.0.ended.load(Ordering::Relaxed)
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for HeaderLimit<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (asked, before) = (buf.remaining(), buf.filled().len());
        match Pin::new(&mut self.inner).poll_read(cx, buf) {
            Poll::Ready(Ok(())) => {}
            other => return other,
        }
        let read = buf.filled().len() - before;
        let state = &self.limit.0;
        if read == 0 && asked > 0 {
            state.ended.store(true, Ordering::Relaxed);
        }
        let left = state.left.load(Ordering::Relaxed);
        if left == UNLIMITED {
            return Poll::Ready(Ok(()));
        }
        let Some(left) = left.checked_sub(read as u64) else {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("an entry's headers take more than {HEADER_LIMIT} bytes"),
            )));
        };
        state.left.store(left, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}
