//! Several processes, one call to the store at a time: whose is next, and what time it is, a seed decides.

use std::fs::{self, File, FileTimes};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// SplitMix64.
#[derive(Debug, Clone)]
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap()
    }

    /// One time in `n`.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Running,
    Waiting,
    Ended,
}

/// Who may call the store.
pub struct Schedule {
    roots: Vec<PathBuf>,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    chance: Chance,
    processes: Vec<Status>,
    /// How often each comes next: with a slow one among fast ones, whole runs pass between two of its calls.
    pace: Vec<usize>,
    /// Hours by which the store's clock was put forward.
    jumps: Vec<usize>,
}

impl Schedule {
    pub fn new(roots: Vec<PathBuf>, seed: u64, processes: usize) -> Arc<Self> {
        let mut chance = Chance::new(seed);
        let pace = (0..processes).map(|_| 1 << (2 * chance.below(4))).collect();
        Arc::new(Self {
            roots,
            state: Mutex::new(State {
                chance,
                pace,
                processes: vec![Status::Running; processes],
                jumps: Vec::new(),
            }),
            changed: Condvar::new(),
        })
    }

    pub fn turns(self: &Arc<Self>, process: usize) -> Turns {
        Turns {
            schedule: Arc::clone(self),
            process,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Once nobody runs, one of those who wait goes on.
    fn pick(&self, state: &mut State) {
        let waiting: Vec<usize> = (0..state.processes.len())
            .filter(|at| state.processes[*at] == Status::Waiting)
            .collect();
        if waiting.is_empty() || state.processes.contains(&Status::Running) {
            return;
        }
        if state.chance.one_in(40) {
            // Mostly hours, now and then days: leases end at 24 hours, the trash is emptied at 48.
            let most = if state.chance.one_in(3) { 60 } else { 12 };
            let hours = 1 + state.chance.below(most);
            for root in &self.roots {
                grow_older(root, Duration::from_mins(hours as u64 * 60 + 7));
            }
            state.jumps.push(hours);
        }
        let all = waiting.iter().map(|at| state.pace[*at]).sum();
        let mut lot = state.chance.below(all);
        let drawn = waiting.iter().find(|at| {
            let passed = lot >= state.pace[**at];
            lot = lot.saturating_sub(if passed { state.pace[**at] } else { 0 });
            !passed
        });
        let next = *drawn.expect("the lot is below the sum");
        state.processes[next] = Status::Running;
        self.changed.notify_all();
    }
}

/// One process's place in the schedule.
#[derive(Clone)]
pub struct Turns {
    schedule: Arc<Schedule>,
    process: usize,
}

impl Turns {
    /// Returns when it is the process's turn; nobody else goes on until its next call.
    pub fn wait(&self) {
        let schedule = &self.schedule;
        let mut state = schedule.state();
        assert_eq!(
            state.processes[self.process],
            Status::Running,
            "two calls at once"
        );
        state.processes[self.process] = Status::Waiting;
        schedule.pick(&mut state);
        while state.processes[self.process] == Status::Waiting {
            state = schedule
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Takes the process out of the schedule, however it ends.
pub struct Ends(pub Turns);

impl Drop for Ends {
    fn drop(&mut self) {
        let schedule = &self.0.schedule;
        let mut state = schedule.state();
        state.processes[self.0.process] = Status::Ended;
        schedule.pick(&mut state);
    }
}

/// The store's clock goes forward: every file in it is `by` older than before.
pub fn grow_older(root: &Path, by: Duration) {
    for entry in fs::read_dir(root).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            grow_older(&entry.path(), by);
        } else {
            let modified = entry.metadata().unwrap().modified().unwrap();
            File::open(entry.path())
                .and_then(|file| file.set_times(FileTimes::new().set_modified(modified - by)))
                .unwrap();
        }
    }
}
