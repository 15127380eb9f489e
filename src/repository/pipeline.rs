//! The way of new blocks: gathered into frames by the caller, compressed on the workers, written in order.
//!
//! ```text
//! caller ── frame ─▶ queue ─▶ workers ─▶ lane ── in order ─▶ pack ─▶ publisher ─▶ store, index
//! ```
//! Each archive has a lane, a publisher and packs of its own; the workers are shared. A worker compresses a
//! frame and puts into the pack what has its turn by then ([`lane`]). A pack is brought onto the disk while
//! the next one is written. Memory is the lanes' bound, whatever the data's size. A failure on any thread
//! reaches the caller at its next call.
//!
//! Nobody sleeps while there is something to do for it: a caller whose lane is full compresses ([`workers`]).

mod lane;
#[cfg(test)]
mod tests;
mod workers;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;

pub use workers::Workers;

use super::RepositoryError;
use super::frame::RawFrame;
use super::index::IndexWriter;
use super::pack::{PackWriter, Published};
use super::table::BlockTable;
use super::vault::Vault;
use lane::Lane;
use workers::Helper;

/// Published packs, each with the caller's number for it.
type Packs = Vec<(i64, Published)>;

/// One archive's way into packs.
pub struct Pipeline {
    helper: Helper,
    lane: Arc<Lane>,
    publisher: Option<JoinHandle<Packs>>,
    /// Stored bytes of the pack being written.
    written: Arc<AtomicU64>,
}

impl Pipeline {
    pub fn start(
        vault: Arc<Vault>,
        index: Arc<IndexWriter>,
        workers: &Workers,
    ) -> Result<Self, RepositoryError> {
        let (closed, packs) = channel();
        let lane = Arc::new(Lane::new(Arc::clone(&vault), closed, workers.at_once()));
        let publisher = std::thread::Builder::new()
            .name("publish".to_owned())
            .spawn({
                let lane = Arc::clone(&lane);
                move || publish(&vault, &index, &lane, &packs)
            })
            .map_err(|e| RepositoryError::io("start a publishing thread", e))?;
        Ok(Self {
            helper: workers.helper(&lane),
            lane,
            publisher: Some(publisher),
            written: Arc::default(),
        })
    }

    /// Hands over one frame of the current pack; returns an empty buffer to fill next.
    pub fn frame(&mut self, raw: RawFrame) -> Result<RawFrame, RepositoryError> {
        self.check_open()?;
        while self.lane.is_full() && self.helper.help() {}
        let (job, buffer) = self.lane.enter(raw, &self.written)?;
        self.helper.push(job)?;
        Ok(buffer)
    }

    /// Closes the current pack, known to the caller as `pack`; the next frame begins another.
    pub fn close(&mut self, pack: i64, table: BlockTable) -> Result<(), RepositoryError> {
        self.check_open()?;
        self.written = Arc::default();
        self.lane.close(pack, table)
    }

    fn check_open(&self) -> Result<(), RepositoryError> {
        match self.publisher {
            Some(_) => Ok(()),
            None => Err(gone()),
        }
    }

    /// Stored bytes of the current pack, as far as it is written.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Waits until every pack is published; nothing can be handed over afterwards.
    pub fn finish(&mut self) -> Result<Packs, RepositoryError> {
        self.check_open()?;
        self.end()
    }

    fn end(&mut self) -> Result<Packs, RepositoryError> {
        while self.helper.help() {}
        let appended = self.lane.drain();
        let packs = self.publisher.take().map(JoinHandle::join);
        // The first failure of all; the publisher may have failed when all was appended.
        appended.and_then(|()| self.lane.check())?;
        packs.and_then(Result::ok).ok_or_else(gone)
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        // An abandoned archive: nothing more is appended or published, and unpublished packs are removed.
        if self.publisher.is_some() {
            self.lane.fail(gone());
            if let Err(err) = self.end() {
                tracing::debug!("an abandoned archive was ended: {err}");
            }
        }
    }
}

fn gone() -> RepositoryError {
    RepositoryError::Invalid(
        "a thread of the backup ended unexpectedly: see the log above".to_owned(),
    )
}

/// A pack whose frames are all in it.
struct ClosedPack {
    number: i64,
    writer: PackWriter,
    table: BlockTable,
}

/// Brings closed packs into the store until no more come. After a failure they are removed.
fn publish(vault: &Vault, index: &IndexWriter, lane: &Lane, packs: &Receiver<ClosedPack>) -> Packs {
    let _watch = lane.watch();
    let mut published = Vec::new();
    while let Ok(closed) = packs.recv() {
        if lane.has_failed() {
            break;
        }
        let brought = closed
            .writer
            .publish(vault, &closed.table)
            .and_then(|pack| index.add(pack.name, &closed.table).map(|()| pack));
        match brought {
            Ok(pack) => published.push((closed.number, pack)),
            Err(failure) => {
                lane.fail(failure);
                break;
            }
        }
        lane.published();
    }
    published
}
