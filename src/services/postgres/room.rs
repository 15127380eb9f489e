//! Watches the disk that the WAL lies on, for as long as a backup's slot keeps WAL there.
//!
//! The slot of a backup has no cap of its own, and a server that finds no room for its WAL stops with a PANIC. So
//! the slot goes before the server does; the backup fails with a sentence when WAL that it needs went with it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::server;
use super::session::Line;
use crate::services::ServiceError;

/// A disk of some hundred megabytes fills in seconds.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Why nothing but the server's own settings keeps a backup's WAL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unkept {
    /// The server or its role cannot have a slot, in the server's words.
    Refused(String),
    /// The slot was dropped to save the server.
    GivenUp(GivenUp),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GivenUp {
    kept_bytes: u64,
    free_bytes: u64,
}

impl Unkept {
    /// What to do when WAL was gone before it could be copied.
    pub fn advice(&self) -> String {
        match self {
            Self::Refused(why) => format!(
                "no replication slot could keep it ({why}): give the role the REPLICATION attribute and the server a free slot, or raise wal_keep_size"
            ),
            Self::GivenUp(given_up) => {
                format!("{given_up}: make room where pg_wal lies, or back up when less is written")
            }
        }
    }

    /// For a backup that is whole all the same.
    pub fn warning(&self) -> String {
        match self {
            Self::Refused(why) => format!(
                "no replication slot kept the WAL during the backup ({why}); it was complete nevertheless"
            ),
            Self::GivenUp(given_up) => {
                format!("{given_up}; it was complete nevertheless. Make room where pg_wal lies")
            }
        }
    }
}

impl fmt::Display for GivenUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the backup's replication slot kept {} MB of WAL while the disk had {} MB left, and was given up before the server ran out of room",
            self.kept_bytes >> 20,
            self.free_bytes >> 20
        )
    }
}

/// Watches until it is dropped.
pub struct RoomWatch {
    given_up: Arc<OnceLock<Unkept>>,
    _until: mpsc::Sender<()>,
}

/// A slot and the disk that it keeps WAL on.
struct Room {
    line: Line,
    slot: String,
    directory: PathBuf,
    /// Less free space than this is too little: the server writes about as much until its next checkpoint.
    reserve_bytes: u64,
}

impl RoomWatch {
    /// Watches over the slot of the session that `line` leads to; `max_wal_bytes` is the server's `max_wal_size`.
    pub fn begin(
        line: Line,
        slot: &str,
        directory: PathBuf,
        max_wal_bytes: u64,
    ) -> std::io::Result<Self> {
        let room = Room {
            line,
            slot: slot.to_owned(),
            reserve_bytes: reserve(free_bytes(&directory)?, max_wal_bytes),
            directory,
        };
        let given_up = Arc::new(OnceLock::new());
        let (until, ended) = mpsc::channel();
        let told = Arc::clone(&given_up);
        std::thread::Builder::new()
            .name("postgres-room".to_owned())
            .spawn(move || room.watch(&ended, &told))?;
        Ok(Self {
            given_up,
            _until: until,
        })
    }

    pub fn given_up(&self) -> Option<&Unkept> {
        self.given_up.get()
    }
}

impl Room {
    fn watch(&self, ended: &mpsc::Receiver<()>, told: &OnceLock<Unkept>) {
        while ended.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
            let free = match free_bytes(&self.directory) {
                Ok(free) if free < self.reserve_bytes => free,
                Ok(_) => continue,
                Err(err) => {
                    tracing::warn!(
                        service = self.line.service(),
                        "the free space where pg_wal lies is not known: {err}"
                    );
                    continue;
                }
            };
            match self.give_up(free) {
                Ok(None) => {}
                Ok(Some(given_up)) => {
                    tracing::error!(service = self.line.service(), "{given_up}");
                    // Nobody else sets it.
                    told.set(Unkept::GivenUp(given_up)).ok();
                    self.checkpoint();
                    return;
                }
                // With the session goes the slot.
                Err(err) => {
                    tracing::debug!("{err}");
                    return;
                }
            }
        }
    }

    /// Drops the slot where it keeps more than is left; otherwise the disk is filled by something else, and there
    /// is little to gain.
    fn give_up(&self, free_bytes: u64) -> Result<Option<GivenUp>, ServiceError> {
        let slot = self.slot.clone();
        self.line
            .run_blocking("look after the backup's replication slot", move |client| {
                let kept_bytes = server::kept_by_slot(client, &slot)?;
                if kept_bytes <= free_bytes {
                    return Ok(None);
                }
                server::drop_slot(client, &slot)?;
                Ok(Some(GivenUp {
                    kept_bytes,
                    free_bytes,
                }))
            })
    }

    /// WAL is removed at checkpoints; without the right to one, at the server's own next.
    fn checkpoint(&self) {
        let done = self.line.run_blocking("have WAL removed", |client| {
            client.batch_execute("CHECKPOINT")
        });
        if let Err(err) = done {
            tracing::debug!("{err}");
        }
    }
}

const fn reserve(free_bytes: u64, max_wal_bytes: u64) -> u64 {
    let half = free_bytes / 2;
    if max_wal_bytes < half {
        max_wal_bytes
    } else {
        half
    }
}

fn free_bytes(directory: &Path) -> std::io::Result<u64> {
    let space = rustix::fs::statvfs(directory)?;
    Ok(space.f_bavail.saturating_mul(space.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_to_the_server_is_what_it_writes_between_checkpoints() {
        let gb = 1 << 30;
        assert_eq!(reserve(100 * gb, gb), gb);
        // Where that is never free, half of what is.
        assert_eq!(reserve(gb, 4 * gb), gb / 2);
    }
}
