//! One archive's frames on their way: handed over in order, compressed in any, appended in order again.
//!
//! Each thing handed over is a step:
//!
//! ```text
//!               compressed                   its turn has come
//! Awaited ───────────────────────▶ Ready ─────────────────────▶ in the pack
//!                                  Close ─────────────────────▶ the pack goes to the publisher
//! ```
//! - Steps leave from the front only, and one thread at a time takes them (`appending`): whichever made the
//!   first step ready. The others leave their frames and go on compressing.
//! - Raw bytes of frames that are not in a pack yet are less than the lane's limit and a frame. Who finds no
//!   room and nothing to compress sleeps until there is much of it: half, or a quarter when the workers are
//!   about to have nothing left of this lane.
//! - The first failure, also a thread's panic, is kept; after it nothing more is appended, and whoever hands
//!   over or waits gets it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::{ClosedPack, gone};
use crate::repository::RepositoryError;
use crate::repository::frame::{Encoder, MODEL_FRAME_RAW_BYTES, RawFrame};
use crate::repository::pack::PackWriter;
use crate::repository::table::BlockTable;
use crate::repository::vault::Vault;

/// Raw bytes of frames under way, for each that is compressed at the same time: what the largest are closed at.
const FRAME_BYTES: usize = MODEL_FRAME_RAW_BYTES;
/// Of so many frames at once one thread has enough to do with appending them.
const AT_ONCE_LIMIT: usize = 8;
/// Closed packs that are not published yet before the next frame waits: one on its way, one behind it.
const UNPUBLISHED_PACKS: usize = 2;
/// Buffers kept to be filled again.
const SPARE_BUFFERS: usize = 16;

pub(super) struct Lane {
    vault: Arc<Vault>,
    state: Mutex<State>,
    changed: Condvar,
    /// Where closed packs go; `None` once no more will come.
    closed: Mutex<Option<Sender<ClosedPack>>>,
}

struct State {
    /// Raw bytes of frames under way, and as many again when they do not compress.
    limit_bytes: usize,
    steps: VecDeque<Step>,
    /// The number of the first of them.
    first: u64,
    /// Frames that a worker has or will get.
    jobs: usize,
    under_way_bytes: usize,
    unpublished: usize,
    /// A thread is appending; it has the pack.
    appending: bool,
    pack: Option<PackWriter>,
    /// Who hands over, or waits for the end, sleeps until there is as much room as this.
    wanted: Option<Room>,
    failure: Option<RepositoryError>,
    failed: bool,
    spare_raw: Vec<RawFrame>,
    spare_frames: Vec<Vec<u8>>,
}

enum Step {
    Awaited,
    Ready {
        frame: Vec<u8>,
        raw_len: usize,
        /// Counts the stored bytes of the frame's own pack.
        written: Arc<AtomicU64>,
    },
    Close {
        pack: i64,
        table: BlockTable,
    },
}

/// What somebody waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Room {
    /// For some more frames.
    Much,
    /// Nothing is under way.
    Empty,
}

impl State {
    fn is_idle(&self) -> bool {
        self.jobs == 0 && !self.appending && (self.failed || self.steps.is_empty())
    }

    fn is_full(&self) -> bool {
        self.under_way_bytes >= self.limit_bytes || self.unpublished > UNPUBLISHED_PACKS
    }

    fn has(&self, room: Room) -> bool {
        match room {
            Room::Much => {
                let limit = match self.jobs {
                    ..=1 => self.limit_bytes / 4 * 3,
                    _ => self.limit_bytes / 2,
                };
                let room = self.under_way_bytes <= limit && self.unpublished <= UNPUBLISHED_PACKS;
                self.failed || room
            }
            Room::Empty => self.is_idle(),
        }
    }

    fn keep_raw(&mut self, mut raw: RawFrame) {
        if self.spare_raw.len() < SPARE_BUFFERS {
            raw.clear();
            self.spare_raw.push(raw);
        }
    }

    fn keep_frame(&mut self, frame: Vec<u8>) {
        if frame.capacity() > 0 && self.spare_frames.len() < SPARE_BUFFERS {
            self.spare_frames.push(frame);
        }
    }

    fn fail(&mut self, failure: RepositoryError) {
        if !self.failed {
            self.failed = true;
            self.failure = Some(failure);
        }
    }

    /// The first who asks gets the failure itself.
    fn check(&mut self) -> Result<(), RepositoryError> {
        if self.failed {
            return Err(self.failure.take().unwrap_or_else(gone));
        }
        Ok(())
    }
}

impl Lane {
    /// A lane of which so many frames are compressed at once.
    pub(super) fn new(vault: Arc<Vault>, closed: Sender<ClosedPack>, at_once: usize) -> Self {
        Self {
            vault,
            state: Mutex::new(State {
                limit_bytes: at_once.clamp(2, AT_ONCE_LIMIT) * FRAME_BYTES,
                steps: VecDeque::new(),
                first: 0,
                jobs: 0,
                under_way_bytes: 0,
                unpublished: 0,
                appending: false,
                pack: None,
                wanted: None,
                failure: None,
                failed: false,
                spare_raw: Vec::new(),
                spare_frames: Vec::new(),
            }),
            changed: Condvar::new(),
            closed: Mutex::new(Some(closed)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes who waits, if there is what it waits for now.
    fn tell(&self, state: &mut State) {
        if state.wanted.is_some_and(|room| state.has(room)) {
            state.wanted = None;
            self.changed.notify_one();
        }
    }

    fn wait<'s>(&self, mut state: MutexGuard<'s, State>, room: Room) -> MutexGuard<'s, State> {
        while !state.has(room) {
            state.wanted = Some(room);
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.wanted = None;
        state
    }

    /// Whether the next frame would have to wait.
    pub(super) fn is_full(&self) -> bool {
        let state = self.lock();
        !state.failed && state.is_full()
    }

    /// Takes the place of the next frame, once there is room. Returns the frame's job and an empty buffer.
    pub(super) fn enter(
        self: &Arc<Self>,
        raw: RawFrame,
        written: &Arc<AtomicU64>,
    ) -> Result<(Job, RawFrame), RepositoryError> {
        let mut state = self.lock();
        if state.is_full() {
            state = self.wait(state, Room::Much);
        }
        state.check()?;
        let number = state.first + state.steps.len() as u64;
        state.steps.push_back(Step::Awaited);
        state.jobs += 1;
        state.under_way_bytes += raw.len();
        debug_assert!(state.under_way_bytes < state.limit_bytes + raw.len());
        let buffer = state.spare_raw.pop().unwrap_or_default();
        let job = Job {
            lane: Arc::clone(self),
            number,
            raw,
            written: Arc::clone(written),
            settled: false,
        };
        Ok((job, buffer))
    }

    /// The pack so far is closed when its last frame is in it.
    pub(super) fn close(&self, pack: i64, table: BlockTable) -> Result<(), RepositoryError> {
        let mut state = self.lock();
        state.check()?;
        state.unpublished += 1;
        state.steps.push_back(Step::Close { pack, table });
        self.advance(state);
        Ok(())
    }

    /// A pack has left for good.
    pub(super) fn published(&self) {
        let mut state = self.lock();
        state.unpublished = state.unpublished.saturating_sub(1);
        self.tell(&mut state);
    }

    pub(super) fn fail(&self, failure: RepositoryError) {
        let mut state = self.lock();
        state.fail(failure);
        self.tell(&mut state);
    }

    /// Waits until nothing is under way, and lets the publisher end. A pack that was not closed is removed.
    pub(super) fn drain(&self) -> Result<(), RepositoryError> {
        let mut state = self.wait(self.lock(), Room::Empty);
        state.steps.clear();
        let unclosed = state.pack.take();
        let outcome = state.check();
        drop(state);
        drop(unclosed);
        *self.closed.lock().unwrap_or_else(PoisonError::into_inner) = None;
        outcome
    }

    /// The failure, if there was one that nobody was told of.
    pub(super) fn check(&self) -> Result<(), RepositoryError> {
        self.lock().check()
    }

    /// Whether what is under way is wanted no more.
    pub(super) fn has_failed(&self) -> bool {
        self.lock().failed
    }

    /// Fails the lane if the publishing thread, which holds this, panics.
    pub(super) fn watch(&self) -> Watch<'_> {
        Watch {
            lane: self,
            appends: false,
        }
    }

    /// Puts what is ready into the pack, as far as no frame is missing.
    fn advance<'l>(&'l self, state: MutexGuard<'l, State>) {
        // Outlives the guard, which a panic drops before the watch takes the lock.
        let mut watch = self.watch();
        let mut state = state;
        if state.appending {
            return self.tell(&mut state);
        }
        state.appending = true;
        watch.appends = true;
        while let Some(step) = next_ready(&mut state) {
            let mut pack = state.pack.take();
            drop(state);
            let raw_len = step.raw_len();
            let result = self.take(step, &mut pack);
            state = self.lock();
            state.pack = pack;
            state.under_way_bytes -= raw_len;
            match result {
                Ok(buffer) => state.keep_frame(buffer),
                Err(failure) => state.fail(failure),
            }
            self.tell(&mut state);
        }
        state.appending = false;
        self.tell(&mut state);
    }

    /// Returns a buffer that can be filled again.
    fn take(&self, step: Step, open: &mut Option<PackWriter>) -> Result<Vec<u8>, RepositoryError> {
        match step {
            Step::Awaited => Err(gone()),
            Step::Ready {
                frame,
                raw_len,
                written,
            } => {
                let pack = match open {
                    Some(pack) => pack,
                    None => open.insert(PackWriter::new(&self.vault)?),
                };
                written.store(pack.append(&frame, raw_len)?, Ordering::Relaxed);
                Ok(frame)
            }
            Step::Close {
                pack: number,
                table,
            } => {
                let writer = open.take().ok_or_else(|| {
                    RepositoryError::Invalid("a pack without frames was closed".to_owned())
                })?;
                let pack = ClosedPack {
                    number,
                    writer,
                    table,
                };
                let closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
                let publisher = closed.as_ref().ok_or_else(gone)?;
                publisher.send(pack).map_err(|_| gone())?;
                Ok(Vec::new())
            }
        }
    }
}

impl Step {
    const fn raw_len(&self) -> usize {
        match self {
            Self::Ready { raw_len, .. } => *raw_len,
            Self::Awaited | Self::Close { .. } => 0,
        }
    }
}

/// The first step, when its turn has come.
fn next_ready(state: &mut State) -> Option<Step> {
    if state.failed || matches!(state.steps.front(), None | Some(Step::Awaited)) {
        return None;
    }
    state.first += 1;
    state.steps.pop_front()
}

/// Of a thread that others wait for.
pub(super) struct Watch<'l> {
    lane: &'l Lane,
    /// It is the one that appends.
    appends: bool,
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut state = self.lane.lock();
            if self.appends {
                state.appending = false;
            }
            state.fail(gone());
            self.lane.tell(&mut state);
        }
    }
}

/// A frame to compress; one that is dropped before it was fails its lane.
pub(super) struct Job {
    lane: Arc<Lane>,
    number: u64,
    raw: RawFrame,
    written: Arc<AtomicU64>,
    settled: bool,
}

impl Job {
    pub(super) fn is_of(&self, lane: &Arc<Lane>) -> bool {
        Arc::ptr_eq(&self.lane, lane)
    }

    pub(super) fn work(mut self, encoder: &mut Result<Encoder, RepositoryError>) {
        let lane = Arc::clone(&self.lane);
        let mut state = lane.lock();
        let mut frame = state.spare_frames.pop().unwrap_or_default();
        let unwanted = state.failed;
        drop(state);
        let answer = match encoder {
            _ if unwanted => Ok(()),
            Ok(encoder) => encoder.encode(self.raw.as_slice(), &mut frame),
            Err(err) => Err(RepositoryError::Invalid(err.to_string())),
        };
        let raw = std::mem::take(&mut self.raw);
        let raw_len = raw.len();
        let mut state = lane.lock();
        self.settled = true;
        state.jobs -= 1;
        state.keep_raw(raw);
        let index = usize::try_from(self.number - state.first).unwrap_or(usize::MAX);
        match answer {
            Ok(()) => {
                if let Some(step) = state.steps.get_mut(index) {
                    *step = Step::Ready {
                        frame,
                        raw_len,
                        written: Arc::clone(&self.written),
                    };
                }
            }
            Err(failure) => state.fail(failure),
        }
        lane.tell(&mut state);
        lane.advance(state);
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if !self.settled {
            let mut state = self.lane.lock();
            state.jobs -= 1;
            state.fail(gone());
            self.lane.tell(&mut state);
        }
    }
}
