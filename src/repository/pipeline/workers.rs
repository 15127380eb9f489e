//! The threads that do the work of all pipelines: one queue, and one thread fewer than there are processors,
//! but at least one.
//!
//! For whoever hands frames over works too: when the lane is full, the caller compresses what waits of it
//! instead of sleeping. So one archive alone keeps every processor busy without a thread too many: on two
//! processors, a backup of one large database was a tenth slower with two threads here.
//!
//! A caller never works for another's lane: it would have to append there too, for as long as the other hands
//! frames over, while its own lane runs dry.

use std::collections::VecDeque;
use std::num::NonZero;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::gone;
use super::lane::{Job, Lane};
use crate::repository::RepositoryError;
use crate::repository::frame::Encoder;

/// More threads than this are no help: a pack is written by one at a time.
const THREADS_LIMIT: usize = 16;

/// The compressing threads of one backup.
pub struct Workers {
    queue: Arc<Queue>,
    level: i32,
    threads: Vec<JoinHandle<()>>,
}

/// Frames that wait for a thread. How many there may be is bounded by those who hand them over.
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    /// Threads that sleep until they are woken.
    asleep: usize,
    ended: bool,
}

impl Workers {
    /// One thread for each processor but one.
    pub fn start(level: i32) -> Result<Self, RepositoryError> {
        let processors = std::thread::available_parallelism().map_or(2, NonZero::get);
        Self::with_threads(level, processors.saturating_sub(1).clamp(1, THREADS_LIMIT))
    }

    /// Without any thread, the callers do it all.
    pub(super) fn with_threads(level: i32, count: usize) -> Result<Self, RepositoryError> {
        let queue = Arc::new(Queue {
            waiting: Mutex::default(),
            changed: Condvar::new(),
        });
        let mut workers = Self {
            queue,
            level,
            threads: Vec::with_capacity(count),
        };
        for number in 0..count {
            let queue = Arc::clone(&workers.queue);
            let spawned = std::thread::Builder::new()
                .name(format!("compress-{number}"))
                .spawn(move || work(&queue, level));
            workers
                .threads
                .push(spawned.map_err(|e| RepositoryError::io("start a compressing thread", e))?);
        }
        Ok(workers)
    }

    /// How many frames are compressed at once for one lane: on each thread one, and one by its caller.
    pub(super) fn at_once(&self) -> usize {
        self.threads.len() + 1
    }

    /// What the caller of a lane needs: the frames that wait, and how to compress them.
    pub(super) fn helper(&self, lane: &Arc<Lane>) -> Helper {
        Helper {
            queue: Arc::clone(&self.queue),
            lane: Arc::clone(lane),
            level: self.level,
            encoder: None,
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.queue.lock().ended = true;
        self.queue.changed.notify_all();
        for thread in self.threads.drain(..) {
            // A panicking worker has already failed the archive it worked for.
            if thread.join().is_err() {
                tracing::error!("a compressing thread panicked");
            }
        }
    }
}

/// Somebody who hands frames over to a lane.
pub(super) struct Helper {
    queue: Arc<Queue>,
    lane: Arc<Lane>,
    level: i32,
    /// Made when it is needed first.
    encoder: Option<Result<Encoder, RepositoryError>>,
}

impl Helper {
    pub(super) fn push(&self, job: Job) -> Result<(), RepositoryError> {
        self.queue.push(job)
    }

    /// Compresses one frame of the lane that waits; `false` when there is none.
    pub(super) fn help(&mut self) -> bool {
        let Some(job) = self.queue.take(&self.lane) else {
            return false;
        };
        let level = self.level;
        job.work(self.encoder.get_or_insert_with(|| Encoder::new(level)));
        true
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a frame to the threads; fails, and with it the job's archive, when they have ended.
    fn push(&self, job: Job) -> Result<(), RepositoryError> {
        let mut waiting = self.lock();
        if waiting.ended {
            drop(waiting);
            drop(job);
            return Err(gone());
        }
        waiting.jobs.push_back(job);
        let wake = waiting.asleep > 0;
        drop(waiting);
        if wake {
            self.changed.notify_one();
        }
        Ok(())
    }

    /// The first frame of one lane, if any waits.
    fn take(&self, lane: &Arc<Lane>) -> Option<Job> {
        let mut waiting = self.lock();
        let first = waiting.jobs.iter().position(|job| job.is_of(lane))?;
        waiting.jobs.remove(first)
    }

    /// The next frame, waited for; `None` when no more will come.
    fn next(&self) -> Option<Job> {
        let mut waiting = self.lock();
        loop {
            if let Some(job) = waiting.jobs.pop_front() {
                return Some(job);
            }
            if waiting.ended {
                return None;
            }
            waiting.asleep += 1;
            waiting = self
                .changed
                .wait(waiting)
                .unwrap_or_else(PoisonError::into_inner);
            waiting.asleep -= 1;
        }
    }
}

/// A thread that panics fails all that waits: nobody else may be there to take it.
struct Watch<'q>(&'q Queue);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut waiting = self.0.lock();
            waiting.ended = true;
            let jobs = std::mem::take(&mut waiting.jobs);
            drop(waiting);
            self.0.changed.notify_all();
            drop(jobs);
        }
    }
}

fn work(queue: &Queue, level: i32) {
    let _watch = Watch(queue);
    // One encoder a thread; its error answers every job.
    let mut encoder = Encoder::new(level);
    while let Some(job) = queue.next() {
        job.work(&mut encoder);
    }
}
