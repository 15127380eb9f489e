//! How far a backup is.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters, in bytes, that a progress bar reads while the backup runs.
#[derive(Debug, Default)]
pub struct Progress {
    raw: AtomicU64,
    read: AtomicU64,
    stored: AtomicU64,
}

impl Progress {
    pub(super) fn add_raw(&self, bytes: u64) {
        self.raw.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn add_read(&self, bytes: u64) {
        self.read.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn add_stored(&self, bytes: u64) {
        self.stored.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes of tar streams written so far.
    pub fn raw_bytes(&self) -> u64 {
        self.raw.load(Ordering::Relaxed)
    }

    pub fn read_bytes(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    pub fn stored_bytes(&self) -> u64 {
        self.stored.load(Ordering::Relaxed)
    }
}
