//! Gives way to the services whose data is read.
//!
//! Only the CPU's niceness is set, which needs no right: the kernel derives the priority of a process's disk
//! requests from it when none was set, `(niceness + 20) / 5` within the class "best effort" (ionice(1),
//! ioprio_set(2)). The class "idle" is not used: on a busy disk it may never get its turn, and a backup that
//! does not end keeps the server's WAL.

use std::io;

/// The least that comes out as the lowest priority of "best effort", 7.
const NICENESS: i32 = 15;

/// Lowers the calling thread, and those that it will start. More than asked for already stays.
pub fn lower() -> io::Result<()> {
    if rustix::process::getpriority_process(None)? < NICENESS {
        rustix::process::setpriority_process(None, NICENESS)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_lowered_thread_hands_its_priority_on() {
        let (own, started) = std::thread::spawn(|| {
            lower().unwrap();
            // And once more, which changes nothing.
            lower().unwrap();
            let niceness = || rustix::process::getpriority_process(None).unwrap();
            (niceness(), std::thread::spawn(niceness).join().unwrap())
        })
        .join()
        .unwrap();
        assert!(own >= NICENESS);
        assert_eq!(own, started);
    }
}
