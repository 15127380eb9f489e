//! Holds the reading of data back to a rate, for disks that the services need themselves.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What was not read in time may be made up for up to here; beyond, a pause would be followed by a rush.
const SLACK: Duration = Duration::from_millis(200);
/// The longest wait before it is asked whether to go on at all.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// What the archives of one backup read together.
#[derive(Debug)]
pub struct Pace {
    started: Instant,
    timetable: Mutex<Timetable>,
}

impl Pace {
    pub fn new(bytes_per_second: u64) -> Self {
        Self {
            started: Instant::now(),
            timetable: Mutex::new(Timetable::new(bytes_per_second)),
        }
    }

    /// Waits until so many more bytes may have been read, or `given_up`.
    pub fn wait(&self, bytes: u64, given_up: &dyn Fn() -> bool) {
        let now = self.started.elapsed();
        let due = now + self.lock().read(bytes, now);
        loop {
            let left = due.saturating_sub(self.started.elapsed());
            if left.is_zero() || given_up() {
                return;
            }
            std::thread::sleep(left.min(ASK_EVERY));
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Timetable> {
        // It is changed in one step, so it is whole.
        self.timetable
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// When bytes are due: decisions only, by a clock that somebody else reads.
#[derive(Debug)]
struct Timetable {
    bytes_per_second: u64,
    /// When what was read so far would have been read at the rate.
    due: Duration,
}

impl Timetable {
    fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second: bytes_per_second.max(1),
            due: Duration::ZERO,
        }
    }

    /// Notes that bytes were read; how long to wait before the next.
    fn read(&mut self, bytes: u64, now: Duration) -> Duration {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second);
        let takes = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let since = self.due.max(now.saturating_sub(SLACK));
        self.due = since.saturating_add(takes);
        self.due.saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn bytes_take_as_long_as_the_rate_says_however_they_come() {
        for piece in [4096, 256 * 1024, 7 * MIB] {
            let mut timetable = Timetable::new(10 * MIB);
            let (mut now, mut read) = (Duration::ZERO, 0);
            while read < 70 * MIB {
                read += piece;
                // Reading itself takes no time here.
                now += timetable.read(piece, now);
            }
            let expected = Duration::from_millis(read * 1000 / (10 * MIB));
            let off = now.abs_diff(expected);
            assert!(off < Duration::from_millis(2), "{now:?} {expected:?}");
        }
    }

    #[test]
    fn who_reads_slower_than_the_rate_never_waits() {
        let mut timetable = Timetable::new(MIB);
        for quarter in 1..100 {
            let now = Duration::from_millis(250) * quarter;
            assert_eq!(timetable.read(MIB / 8, now), Duration::ZERO, "{now:?}");
        }
    }

    #[test]
    fn a_pause_is_not_followed_by_a_rush() {
        let mut timetable = Timetable::new(MIB);
        let later = Duration::from_hours(1);
        assert_eq!(timetable.read(MIB, later), Duration::from_millis(800));
        assert_eq!(timetable.read(MIB, later), Duration::from_millis(1800));
    }

    #[test]
    fn a_backup_that_is_given_up_does_not_wait() {
        let pace = Pace::new(1);
        pace.wait(1 << 40, &|| true);
    }
}
