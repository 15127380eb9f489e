//! How far a restore is, for whoever shows it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::sync::CancellationToken;

/// Counters to poll, and events as they happen.
pub struct Progress {
    done_bytes: AtomicU64,
    total_bytes: AtomicU64,
    tell: Box<dyn Fn(&Event) + Send + Sync>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Phase(Phase),
    Step {
        service: String,
        what: &'static str,
    },
    /// A person has to start these now, in this order.
    StartByHand(Vec<String>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    Preflight,
    Stop,
    Stage,
    Prepare,
    Swap,
    Start,
    Online,
    RollBack,
    Finish,
}

impl Progress {
    pub fn new(tell: impl Fn(&Event) + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            done_bytes: AtomicU64::new(0),
            total_bytes: AtomicU64::new(0),
            tell: Box::new(tell),
        })
    }

    /// Bytes of archives that have been read.
    pub fn done_bytes(&self) -> u64 {
        self.done_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of all archives.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn expect(&self, bytes: u64) {
        self.total_bytes.store(bytes, Ordering::Relaxed);
    }

    pub(super) fn advance(&self, bytes: u64) {
        self.done_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn tell(&self, event: &Event) {
        (self.tell)(event);
    }
}

/// Counts what is read, and fails once the restore is interrupted.
pub struct Counted<R> {
    inner: R,
    progress: Arc<Progress>,
    cancel: CancellationToken,
}

impl<R> Counted<R> {
    pub fn new(inner: R, progress: Arc<Progress>, cancel: CancellationToken) -> Self {
        Self {
            inner,
            progress,
            cancel,
        }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Counted<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.cancel.is_cancelled() {
            let interrupted = io::Error::other("the restore was interrupted");
            return Poll::Ready(Err(interrupted));
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        self.progress
            .advance(buf.filled().len().saturating_sub(before) as u64);
        polled
    }
}
