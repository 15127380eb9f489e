//! Reads a stream ahead of whoever takes it: frames are found by one thread and decoded by as many as there
//! are cores.
//!
//! ```text
//! ranges ─▶ finder (opens and proves packs, reads frames) ── frame ─▶ jobs (bounded) ─▶ decoders ┐
//!                └── pieces, in order (bounded) ───────────────────────────────────────────────┴▶ reader
//! ```
//! What cannot be found or decoded this way, the reader fetches itself at its turn: it looks where a damaged
//! pack moved, and it alone says what is wrong. A thread that ends early shows as bytes that are missing.

use std::io::{self, Read};
use std::num::NonZero;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;

use super::kept::Kept;
use super::packs::{Finder, KEPT_FRAMES_BYTES, Packs, piece};
use crate::repository::frame::Decoder;
use crate::repository::pack::StoredFrame;
use crate::repository::ranges::Range;
use crate::repository::{PackName, RepositoryError};

/// Frames that wait to be decoded, and pieces on their way to the reader.
const QUEUE: usize = 16;
const MAX_DECODERS: usize = 8;

/// Where a frame's bytes appear; `None` when it does not decode.
type Slot = Arc<OnceLock<Option<Vec<u8>>>>;

/// A frame on its way to a decoder. Its slot is filled whatever becomes of it.
struct Job {
    frame: StoredFrame,
    slot: Slot,
}

impl Drop for Job {
    fn drop(&mut self) {
        // Filled already, unless the decoder died over it.
        self.slot.get_or_init(|| None);
    }
}

/// A part of the stream.
struct Piece {
    /// As the stream names it.
    range: Range<PackName>,
    /// Its frame, where that begins, and where in it the piece lies; none when it was not found.
    frame: Option<(Slot, u64, Range<PackName>)>,
}

/// The rest of a stream, being read.
pub struct ReadAhead {
    packs: Packs,
    left: u64,
    current: Option<Piece>,
    pieces: Option<Receiver<Piece>>,
    threads: Vec<JoinHandle<()>>,
}

impl ReadAhead {
    pub fn start(packs: Packs, ranges: Vec<Range<PackName>>) -> Result<Self, RepositoryError> {
        let (jobs, queue) = sync_channel(QUEUE);
        let (out, pieces) = sync_channel(QUEUE);
        let finder = Finder::new(Arc::clone(packs.vault()));
        let mut ahead = Self {
            packs,
            left: ranges.iter().map(|range| range.length).sum(),
            current: None,
            pieces: Some(pieces),
            threads: Vec::new(),
        };
        ahead.spawn("find", move || find(finder, ranges, &jobs, &out))?;
        let queue = Arc::new(Mutex::new(queue));
        let cores = std::thread::available_parallelism().map_or(2, NonZero::get);
        for _ in 0..cores.min(MAX_DECODERS) {
            let queue = Arc::clone(&queue);
            let decoder = Decoder::new().map_err(|e| RepositoryError::io("set up zstd", e))?;
            ahead.spawn("decode", move || decode(decoder, &queue))?;
        }
        Ok(ahead)
    }

    fn spawn(
        &mut self,
        name: &str,
        work: impl FnOnce() + Send + 'static,
    ) -> Result<(), RepositoryError> {
        let spawned = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(work);
        self.threads
            .push(spawned.map_err(|e| RepositoryError::io("start a reading thread", e))?);
        Ok(())
    }

    fn next_piece(&mut self) -> io::Result<Piece> {
        let received = match (self.current.take(), &self.pieces) {
            (Some(piece), _) => Some(piece),
            (None, Some(pieces)) => pieces.recv().ok(),
            (None, None) => None,
        };
        received.ok_or_else(|| {
            io::Error::other("a thread of the reader ended unexpectedly: see the log above")
        })
    }
}

impl Read for ReadAhead {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while self.left > 0 && done < buf.len() {
            let mut next = self.next_piece()?;
            let out = buf.get_mut(done..).unwrap_or_default();
            let copied = match next.bytes() {
                Some(bytes) => {
                    let count = bytes.len().min(out.len());
                    if let (Some(to), Some(from)) = (out.get_mut(..count), bytes.get(..count)) {
                        to.copy_from_slice(from);
                    }
                    count
                }
                None => self.packs.copy(next.range, out).map_err(io::Error::other)?,
            };
            next.advance(copied as u64);
            done += copied;
            self.left -= copied as u64;
            self.current = Some(next).filter(|piece| piece.range.length > 0);
        }
        Ok(done)
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        // The finder ends at its next piece, and the decoders with it.
        self.pieces = None;
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a reading thread panicked");
            }
        }
    }
}

impl Piece {
    /// What the frame holds of it, once it is decoded.
    fn bytes(&self) -> Option<&[u8]> {
        let (slot, start, place) = self.frame.as_ref()?;
        let bytes = piece(slot.wait().as_ref()?, *start, *place);
        (!bytes.is_empty()).then_some(bytes)
    }

    fn advance(&mut self, bytes: u64) {
        let on = |range: &mut Range<PackName>| {
            range.offset += bytes;
            range.length -= bytes;
        };
        on(&mut self.range);
        if let Some((_, _, place)) = &mut self.frame {
            on(place);
        }
    }
}

/// Finds the frames of the ranges in order. Ends when nobody takes the pieces any more.
fn find(
    mut finder: Finder,
    ranges: Vec<Range<PackName>>,
    jobs: &SyncSender<Job>,
    out: &SyncSender<Piece>,
) {
    let mut recent = Kept::new(KEPT_FRAMES_BYTES);
    for mut range in ranges {
        while range.length > 0 {
            let Some(frame) = locate(&mut finder, range, &mut recent, jobs) else {
                // The rest of the range is the reader's: it finds out why.
                if out.send(Piece { range, frame: None }).is_err() {
                    return;
                }
                break;
            };
            let length = frame.2.length;
            let piece = Piece {
                range: Range { length, ..range },
                frame: Some(frame),
            };
            if out.send(piece).is_err() {
                return;
            }
            range.offset += length;
            range.length -= length;
        }
    }
}

/// The frame at the front of `range`, handed to a decoder unless it was just before: its slot, its start,
/// and how much of the range it holds.
fn locate(
    finder: &mut Finder,
    range: Range<PackName>,
    recent: &mut Kept<Slot>,
    jobs: &SyncSender<Job>,
) -> Option<(Slot, u64, Range<PackName>)> {
    let mut place = finder.place(range).ok()?;
    if recent.get(place.pack, place.offset).is_none() {
        let (frame, now) = finder.stored(range).ok()?;
        place = now;
        let (at, length) = ((frame.pack, frame.start), frame.raw_len());
        let slot = Slot::default();
        recent.insert(at, length, length, Arc::clone(&slot));
        jobs.send(Job { frame, slot }).ok()?;
    }
    let (start, raw_len, slot) = recent.get(place.pack, place.offset)?;
    let length = place.length.min(start + raw_len - place.offset);
    Some((Arc::clone(slot), start, Range { length, ..place }))
}

fn decode(mut zstd: Decoder, queue: &Mutex<Receiver<Job>>) {
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        let mut bytes = Vec::new();
        let decoded = job.frame.decode(&mut zstd, &mut bytes).is_ok();
        job.slot.get_or_init(|| decoded.then_some(bytes));
    }
}
