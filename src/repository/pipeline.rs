//! The way of new blocks: gathered into frames by the caller, compressed on the workers, written in order.
//!
//! ```text
//! caller ── frame ─▶ jobs (bounded) ─▶ workers ─▶ reply ┐
//!       └── order (bounded) ────────────────────────────┴▶ writer ─▶ pack ─▶ publisher ─▶ store, index
//! ```
//! Each archive has a writer, a publisher and packs of its own; the workers are shared. A pack is brought onto
//! the disk while the next one is written. Memory is the queues'
//! bound, whatever the data's size. A failure on any thread reaches the caller at its next call.

use std::num::NonZero;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::RepositoryError;
use super::frame::Encoder;
use super::index::IndexWriter;
use super::pack::{PackWriter, Published};
use super::table::BlockTable;
use super::vault::Vault;

/// Frames waiting for a worker, and frames of one archive under way.
const QUEUE_FRAMES: usize = 8;

/// Closed packs that wait while one is being published.
const PACKS_UNDER_WAY: usize = 1;

type Encoded = Result<Vec<u8>, RepositoryError>;
/// Published packs, each with the caller's number for it.
type Packs = Result<Vec<(i64, Published)>, RepositoryError>;

struct Job {
    raw: Vec<u8>,
    reply: SyncSender<(Encoded, Vec<u8>)>,
}

/// The compressing threads of one backup.
pub struct Workers {
    jobs: Option<SyncSender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// One thread a core.
    pub fn start(level: i32) -> Result<Self, RepositoryError> {
        let (jobs, queue) = sync_channel::<Job>(QUEUE_FRAMES);
        let queue = Arc::new(Mutex::new(queue));
        let count = std::thread::available_parallelism()
            .map_or(2, NonZero::get)
            .min(16);
        let mut threads = Vec::with_capacity(count);
        for number in 0..count {
            let queue = Arc::clone(&queue);
            // One encoder a thread; its errors answer the first job.
            let spawned = std::thread::Builder::new()
                .name(format!("compress-{number}"))
                .spawn(move || work(&queue, level));
            threads
                .push(spawned.map_err(|e| RepositoryError::io("start a compressing thread", e))?);
        }
        Ok(Self {
            jobs: Some(jobs),
            threads,
        })
    }

    fn sender(&self) -> Result<SyncSender<Job>, RepositoryError> {
        self.jobs.clone().ok_or_else(gone)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // A panicking worker has already failed the archive it worked for.
            if thread.join().is_err() {
                tracing::error!("a compressing thread panicked");
            }
        }
    }
}

fn work(queue: &Mutex<Receiver<Job>>, level: i32) {
    let mut encoder = Encoder::new(level);
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        let answer = match &mut encoder {
            Ok(encoder) => encoder.encode(&job.raw),
            Err(err) => Err(RepositoryError::Invalid(err.to_string())),
        };
        // The archive may have been given up meanwhile; then nobody waits for the answer.
        if job.reply.send((answer, job.raw)).is_err() {
            tracing::debug!("a frame of an abandoned archive was dropped");
        }
    }
}

enum Step {
    Frame {
        raw_len: usize,
        /// Counts the stored bytes of the frame's own pack.
        written: Arc<AtomicU64>,
        reply: Receiver<(Encoded, Vec<u8>)>,
    },
    Close {
        pack: i64,
        table: BlockTable,
    },
}

/// One archive's way into packs.
pub struct Pipeline {
    jobs: SyncSender<Job>,
    order: Option<SyncSender<Step>>,
    writer: Option<JoinHandle<Packs>>,
    /// Stored bytes of the pack being written.
    written: Arc<AtomicU64>,
    spare: Receiver<Vec<u8>>,
}

impl Pipeline {
    pub fn start(
        vault: Arc<Vault>,
        index: Arc<IndexWriter>,
        workers: &Workers,
    ) -> Result<Self, RepositoryError> {
        let (order, steps) = sync_channel(QUEUE_FRAMES);
        let (give_back, spare) = sync_channel(QUEUE_FRAMES);
        let written = Arc::new(AtomicU64::new(0));
        let writer = std::thread::Builder::new()
            .name("pack".to_owned())
            .spawn(move || write_packs(&vault, &index, &steps, &give_back))
            .map_err(|e| RepositoryError::io("start a writing thread", e))?;
        Ok(Self {
            jobs: workers.sender()?,
            order: Some(order),
            writer: Some(writer),
            written,
            spare,
        })
    }

    /// Hands over one frame of the current pack; returns an empty buffer to fill next.
    pub fn frame(&mut self, raw: Vec<u8>) -> Result<Vec<u8>, RepositoryError> {
        let (reply, answer) = sync_channel(1);
        let raw_len = raw.len();
        if self.jobs.send(Job { raw, reply }).is_err()
            || !self.send(Step::Frame {
                raw_len,
                written: Arc::clone(&self.written),
                reply: answer,
            })
        {
            return Err(self.failure());
        }
        let mut buffer = self.spare.try_recv().unwrap_or_default();
        buffer.clear();
        Ok(buffer)
    }

    /// Closes the current pack, known to the caller as `pack`; the next frame begins another.
    pub fn close(&mut self, pack: i64, table: BlockTable) -> Result<(), RepositoryError> {
        self.written = Arc::default();
        if self.send(Step::Close { pack, table }) {
            Ok(())
        } else {
            Err(self.failure())
        }
    }

    /// Stored bytes of the current pack, as far as it is written.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Waits until every pack is published; nothing can be handed over afterwards.
    pub fn finish(&mut self) -> Packs {
        self.join()
    }

    fn send(&self, step: Step) -> bool {
        self.order
            .as_ref()
            .is_some_and(|order| order.send(step).is_ok())
    }

    fn join(&mut self) -> Packs {
        self.order = None;
        match self.writer.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            _ => Err(gone()),
        }
    }

    /// Why a send failed: the writer thread's own error.
    fn failure(&mut self) -> RepositoryError {
        self.join().err().unwrap_or_else(gone)
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        // An abandoned archive: the writer ends, its unpublished pack is removed with its spool.
        if self.writer.is_some() && self.join().is_err() {
            tracing::debug!("an abandoned archive's writer ended with an error");
        }
    }
}

fn gone() -> RepositoryError {
    RepositoryError::Invalid(
        "a thread of the backup ended unexpectedly: see the log above".to_owned(),
    )
}

/// Appends frames in their order; a pack that is closed goes on to the publisher.
fn write_packs(
    vault: &Arc<Vault>,
    index: &Arc<IndexWriter>,
    steps: &Receiver<Step>,
    give_back: &SyncSender<Vec<u8>>,
) -> Packs {
    let (closed, packs) = sync_channel(PACKS_UNDER_WAY);
    let publisher = std::thread::Builder::new()
        .name("publish".to_owned())
        .spawn({
            let (vault, index) = (Arc::clone(vault), Arc::clone(index));
            move || publish(&vault, &index, &packs)
        });
    let publisher = publisher.map_err(|e| RepositoryError::io("start a publishing thread", e))?;
    let written = append_frames(vault, steps, give_back, &closed);
    // No more will come: the publisher ends with the last.
    drop(closed);
    // Its failure is the cause of the writer's.
    let packs = publisher.join().unwrap_or_else(|_| Err(gone()))?;
    written?;
    Ok(packs)
}

fn append_frames(
    vault: &Vault,
    steps: &Receiver<Step>,
    give_back: &SyncSender<Vec<u8>>,
    closed: &SyncSender<ClosedPack>,
) -> Result<(), RepositoryError> {
    let mut open: Option<PackWriter> = None;
    while let Ok(step) = steps.recv() {
        match step {
            Step::Frame {
                raw_len,
                written,
                reply,
            } => {
                let (frame, buffer) = reply.recv().map_err(|_| gone())?;
                let pack = match &mut open {
                    Some(pack) => pack,
                    None => open.insert(PackWriter::new(vault)?),
                };
                written.store(pack.append(&frame?, raw_len)?, Ordering::Relaxed);
                // A full pool just lets the buffer go.
                drop(give_back.try_send(buffer));
            }
            Step::Close { pack, table } => {
                if let Some(writer) = open.take() {
                    let number = pack;
                    let sent = closed.send(ClosedPack {
                        number,
                        writer,
                        table,
                    });
                    sent.map_err(|_| gone())?;
                }
            }
        }
    }
    Ok(())
}

struct ClosedPack {
    number: i64,
    writer: PackWriter,
    table: BlockTable,
}

fn publish(vault: &Vault, index: &IndexWriter, packs: &Receiver<ClosedPack>) -> Packs {
    let mut published = Vec::new();
    while let Ok(ClosedPack {
        number,
        writer,
        table,
    }) = packs.recv()
    {
        let pack = writer.publish(vault, &table)?;
        index.add(pack.name, &table)?;
        published.push((number, pack));
    }
    Ok(published)
}
