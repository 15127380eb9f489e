//! Leaves the processors to the services while they want them.
//!
//! Priorities are not enough. Niceness tells only among the processes of one container; and whatever the weights
//! are, the kernel lets who runs finish a slice of milliseconds before a server that was just woken gets its turn,
//! which a database that wakes and sleeps thousands of times a second never makes good. So a backup pauses by
//! itself, and by what the machine tells of all its processors:
//!
//! ```text
//!  everything ── others take PLAIN, or NOTICED ─▶ LEAST
//!      ▲         twice running                     │
//!      └── others take less than FORGOTTEN ── 1 - RESERVE - what others take, LEAST or more
//! ```
//! Once alone, a little says nothing: it is also what the kernel does to write back what the backup stores, and
//! the checkpoint that the backup itself asks for. What was taken beyond what is allowed is a debt, and paid by pausing. Beside one who takes everything nobody
//! shows what he wants; so the least is allowed first, and what others leave beside that tells the rest.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Shares of all processors.
const LEAST: f64 = 0.05;
const RESERVE: f64 = 0.2;
const NOTICED: f64 = 0.1;
const PLAIN: f64 = 0.25;
const FORGOTTEN: f64 = 0.05;
/// What is measured over a shorter time says little: the kernel counts in hundredths of a second.
const WINDOW: Duration = Duration::from_millis(200);
/// How often it is looked at the counters at most.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The longest pause before it is looked again.
const LONGEST_PAUSE: Duration = Duration::from_millis(250);
/// More is not paid back: what was taken while nobody else wanted it.
const DEBT_LIMIT_TICKS: f64 = 100.0;

/// What one process takes of the machine.
#[derive(Debug)]
pub struct Throttle {
    began: Instant,
    state: Mutex<State>,
    /// Milliseconds, of all threads that paused.
    paused: AtomicU64,
}

#[derive(Debug)]
struct State {
    looked: Duration,
    /// `None` where the kernel does not tell.
    share: Option<Share>,
}

impl Throttle {
    /// Begins to measure. What the process does from here on counts.
    pub fn start() -> Self {
        let share = Usage::now().map(|usage| Share::new(Duration::ZERO, usage));
        if share.is_none() {
            tracing::debug!(
                "the kernel does not tell how busy its processors are: no pauses are made"
            );
        }
        Self {
            began: Instant::now(),
            state: Mutex::new(State {
                looked: Duration::ZERO,
                share,
            }),
            paused: AtomicU64::new(0),
        }
    }

    /// Pauses as long as others want what this process has taken, or until `given_up`.
    pub fn wait(&self, given_up: &dyn Fn() -> bool) {
        loop {
            let pause = self.look();
            if pause.is_zero() || given_up() {
                return;
            }
            std::thread::sleep(pause);
            let millis = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
            self.paused.fetch_add(millis, Ordering::Relaxed);
        }
    }

    /// How long the threads paused, added up.
    pub fn paused(&self) -> Duration {
        Duration::from_millis(self.paused.load(Ordering::Relaxed))
    }

    fn look(&self) -> Duration {
        let now = self.began.elapsed();
        // It is changed in one step, so it is whole.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_sub(state.looked) < LOOK_EVERY {
            return Duration::ZERO;
        }
        state.looked = now;
        match (&mut state.share, Usage::now()) {
            (Some(share), Some(usage)) => share.pause(now, usage),
            _ => Duration::ZERO,
        }
    }
}

/// Counters of the kernel, in hundredths of a second of one processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Usage {
    /// Of all processors together.
    capacity: u64,
    idle: u64,
    /// What this process took.
    own: u64,
}

impl Usage {
    fn now() -> Option<Self> {
        let machine = std::fs::read_to_string("/proc/stat").ok()?;
        Self::parse(&machine, &std::fs::read_to_string("/proc/self/stat").ok()?)
    }

    /// See proc_stat(5) and proc_pid_stat(5).
    fn parse(machine: &str, own: &str) -> Option<Self> {
        let all = machine.lines().next()?.strip_prefix("cpu ")?;
        // user, nice, system, idle, iowait, irq, softirq, steal; guests are in the first two.
        let all: Vec<u64> = all
            .split_whitespace()
            .take(8)
            .map_while(|n| n.parse().ok())
            .collect();
        let [_, _, _, idle, iowait, ..] = all.as_slice() else {
            return None;
        };
        // The program's name may hold anything, in brackets; user and system time are fields 14 and 15.
        let mut own = own.rsplit_once(')')?.1.split_whitespace().skip(11);
        let mut ticks = || own.next()?.parse::<u64>().ok();
        Some(Self {
            capacity: all.iter().sum(),
            idle: idle + iowait,
            own: ticks()? + ticks()?,
        })
    }

    fn since(self, earlier: Self) -> Taken {
        #[allow(clippy::cast_precision_loss)]
        let between = |now: u64, then: u64| now.saturating_sub(then) as f64;
        Taken {
            capacity: between(self.capacity, earlier.capacity).max(1.0),
            idle: between(self.idle, earlier.idle),
            own: between(self.own, earlier.own),
        }
    }
}

/// Ticks in a stretch of time.
#[derive(Debug, Clone, Copy)]
struct Taken {
    capacity: f64,
    idle: f64,
    own: f64,
}

/// Decides how long to pause: no clock and no counters of its own.
#[derive(Debug)]
struct Share {
    since: Duration,
    usage: Usage,
    allowed: f64,
    /// The last time, others took a little.
    noticed: bool,
    /// Own ticks beyond what was allowed before `since`.
    debt: f64,
}

impl Share {
    const fn new(now: Duration, usage: Usage) -> Self {
        Self {
            since: now,
            usage,
            allowed: 1.0,
            noticed: false,
            debt: 0.0,
        }
    }

    fn pause(&mut self, now: Duration, usage: Usage) -> Duration {
        let taken = usage.since(self.usage);
        let window = now.saturating_sub(self.since);
        let whole = window >= WINDOW;
        if whole {
            self.allowed = self.allowed_after(taken);
        }
        if self.allowed >= 1.0 {
            self.debt = 0.0;
        }
        let owed = (self.debt + taken.own - self.allowed * taken.capacity).min(DEBT_LIMIT_TICKS);
        if whole {
            (self.since, self.usage, self.debt) = (now, usage, owed.max(0.0));
        }
        let a_second = taken.capacity / window.as_secs_f64().max(0.001);
        let pause = (owed / (self.allowed * a_second)).max(0.0);
        Duration::try_from_secs_f64(pause).map_or(LONGEST_PAUSE, |pause| pause.min(LONGEST_PAUSE))
    }

    fn allowed_after(&mut self, taken: Taken) -> f64 {
        let others = 1.0 - (taken.idle + taken.own) / taken.capacity;
        let takes_all = self.allowed >= 1.0;
        let again = std::mem::replace(&mut self.noticed, others >= NOTICED);
        match others {
            ..FORGOTTEN => 1.0,
            ..NOTICED if takes_all => 1.0,
            ..PLAIN if takes_all && !again => 1.0,
            _ if takes_all => LEAST,
            _ => (1.0 - RESERVE - others).max(LEAST),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss
    )]
    use super::*;

    impl Usage {
        const fn of(capacity: u64, idle: u64, own: u64) -> Self {
            Self {
                capacity,
                idle,
                own,
            }
        }
    }

    /// A machine of two processors, on which others want so much: what a backup gets and what they get.
    ///
    /// While it works, it gets what the kernel gave in a measurement: 45 % whoever else wants some.
    fn run(wanted: f64) -> (f64, f64) {
        const STEP: Duration = Duration::from_millis(50);
        const TICKS: f64 = 10.0;
        let mut ticks = (0.0, 0.0, 0.0);
        let usage = |(capacity, idle, own): (f64, f64, f64)| Usage {
            capacity: capacity as u64,
            idle: idle as u64,
            own: own as u64,
        };
        let mut share = Share::new(Duration::ZERO, usage(ticks));
        let (mut now, mut until) = (Duration::ZERO, Duration::ZERO);
        let (mut late, mut served) = (0.0, 0.0);
        for step in 0..1200 {
            let own = match until <= now {
                true if wanted < 0.55 => 1.0 - wanted,
                true => 0.45,
                false => 0.0,
            };
            let others = wanted.min(1.0 - own);
            ticks.0 += TICKS;
            ticks.1 += TICKS * (1.0 - own - others);
            ticks.2 += TICKS * own;
            now += STEP;
            if until <= now {
                until = now + share.pause(now, usage(ticks));
            }
            if step >= 600 {
                late += own / 600.0;
                served += others / 600.0;
            }
        }
        (late, served)
    }

    #[test]
    fn a_backup_takes_what_others_leave_and_little_where_they_leave_nothing() {
        let (own, _) = run(0.0);
        assert!(own > 0.99, "{own}");
        let (own, others) = run(0.5);
        assert!(
            (0.2..0.35).contains(&own) && others > 0.49,
            "{own} {others}"
        );
        // As little as is noticed is left to others, too.
        let (own, others) = run(0.15);
        assert!(
            (0.5..0.7).contains(&own) && others > 0.149,
            "{own} {others}"
        );
        for wanted in [1.0, 1.5] {
            let (own, others) = run(wanted);
            assert!(
                (0.03..0.06).contains(&own) && others > 0.94,
                "{own} {others}"
            );
        }
    }

    #[test]
    fn a_little_is_believed_when_it_is_seen_twice_and_much_at_once() {
        let mut share = Share::new(Duration::ZERO, Usage::of(0, 0, 0));
        let mut now = (0, 0, 0);
        let mut pause = |second, others: u64| {
            now = (now.0 + 200, now.1 + 100, now.2 + 100 - others);
            share.pause(Duration::from_secs(second), Usage::of(now.0, now.1, now.2))
        };
        assert_eq!(pause(1, 30), Duration::ZERO);
        assert_eq!(pause(2, 0), Duration::ZERO);
        assert_eq!(pause(3, 30), Duration::ZERO);
        assert_eq!(pause(4, 30), LONGEST_PAUSE);
        assert_eq!(pause(5, 0), Duration::ZERO);
        assert_eq!(pause(6, 60), LONGEST_PAUSE);
    }

    #[test]
    fn what_was_taken_while_nobody_wanted_it_is_not_owed() {
        let usage = Usage::of;
        let mut share = Share::new(Duration::ZERO, usage(0, 0, 0));
        assert_eq!(
            share.pause(Duration::from_secs(10), usage(2000, 0, 2000)),
            Duration::ZERO
        );
        // Then somebody comes.
        let pause = share.pause(Duration::from_secs(11), usage(2200, 0, 2100));
        assert_eq!(pause, LONGEST_PAUSE);
        // And goes: counters that stand still, or go back as they may on some machines, are no reason to wait.
        assert_eq!(
            share.pause(Duration::from_secs(12), usage(2400, 100, 2200)),
            Duration::ZERO
        );
        assert_eq!(
            share.pause(Duration::from_secs(13), usage(2000, 90, 2200)),
            Duration::ZERO
        );
    }

    #[test]
    fn the_kernels_counters_are_read() {
        let machine = "cpu  10 1 5 70 4 1 2 7 3 0\ncpu0 10 1 5 70 4 1 2 7 3 0\n";
        let own = "77 (a) b (c)) S 1 77 77 0 -1 4194560 1 0 0 0 21 13 0 0 20 0 1 0";
        assert_eq!(
            Usage::parse(machine, own),
            Some(Usage {
                capacity: 100,
                idle: 74,
                own: 34
            })
        );
        assert_eq!(Usage::parse("", own), None);
        assert_eq!(Usage::parse(machine, "77 (a"), None);
        // The two files are not counted in the same instant: each must grow, in whichever order.
        let (before, began) = (Usage::now().unwrap(), Instant::now());
        let grew = |now: Usage| now.own >= before.own + 2 && now.capacity > before.capacity;
        while !grew(Usage::now().unwrap()) {
            assert!(began.elapsed() < Duration::from_mins(1), "{before:?}");
        }
    }

    #[test]
    fn a_backup_that_is_given_up_does_not_wait() {
        let throttle = Throttle::start();
        throttle.wait(&|| true);
        assert_eq!(throttle.paused(), Duration::ZERO);
    }
}
