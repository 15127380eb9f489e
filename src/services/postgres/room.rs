//! Watches the disk that the WAL lies on, for as long as a slot keeps WAL there.
//!
//! The slot of a backup has no cap of its own, that of point-in-time recovery may have one that the disk is too small
//! for, and a server that finds no room for its WAL stops with a PANIC. So the slot goes before the server does: the
//! backup fails with a sentence when WAL that it needs went with it, and recovery has a gap.

use std::fmt;
use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::server;
use super::session::{Line, Session};
use crate::services::{ErrorKind, ServiceError};

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

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivenUp {
    slot: String,
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
            "the replication slot {} kept {} MB of WAL while the disk had {} MB left, and was given up before the server ran out of room",
            self.slot,
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
    max_wal_bytes: u64,
}

impl RoomWatch {
    /// Watches over a slot, through a session that has nothing else to do for long.
    pub async fn begin(
        session: &Session,
        directory: PathBuf,
        slot: &str,
    ) -> Result<Self, ServiceError> {
        let room = Room {
            line: session.line(),
            slot: slot.to_owned(),
            directory,
            max_wal_bytes: session
                .run("ask for max_wal_size", server::max_wal_bytes)
                .await?,
        };
        let given_up = Arc::new(OnceLock::new());
        let (until, ended) = mpsc::channel();
        let told = Arc::clone(&given_up);
        std::thread::Builder::new()
            .name("postgres-room".to_owned())
            .spawn(move || room.watch(&ended, &told))
            .map_err(|err| {
                ServiceError::new(
                    session.service(),
                    ErrorKind::Io,
                    format!("cannot start a thread: {err}"),
                )
            })?;
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
        let service = self.line.service();
        while ended.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
            let given_up = match self.look() {
                Ok(None) => continue,
                Ok(Some(given_up)) => given_up,
                // A session that ended takes a backup's slot along; another one is begun for the others.
                Err(err) => {
                    tracing::debug!(service, "{err}");
                    continue;
                }
            };
            tracing::error!(service, "{given_up}");
            // Of a slot that is begun anew nobody asks.
            told.set(Unkept::GivenUp(given_up)).ok();
            self.checkpoint();
        }
    }

    fn look(&self) -> Result<Option<GivenUp>, ServiceError> {
        let space = rustix::fs::statvfs(&self.directory).map_err(|err| {
            ServiceError::new(
                self.line.service(),
                ErrorKind::Io,
                format!(
                    "cannot tell how much room is left in {}: {err}",
                    self.directory.display()
                ),
            )
        })?;
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        let all = space.f_blocks.saturating_mul(space.f_frsize);
        if free >= reserve(all, self.max_wal_bytes) {
            return Ok(None);
        }
        self.give_up(free)
    }

    /// Drops the slot where it keeps more than is left; otherwise the disk is filled by something else, and there
    /// is little to gain.
    fn give_up(&self, free_bytes: u64) -> Result<Option<GivenUp>, ServiceError> {
        let slot = self.slot.clone();
        self.line
            .run_blocking("look after the replication slot", move |client| {
                let kept_bytes = server::kept_by_slot(client, &slot)?;
                if kept_bytes <= free_bytes {
                    return Ok(None);
                }
                server::drop_slot(client, &slot)?;
                Ok(Some(GivenUp {
                    slot,
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

/// Less free space is too little. WAL goes at the end of a checkpoint, and one may be at work when it is asked for:
/// until then the server writes as much as from one to the next, twice.
const fn reserve(all_bytes: u64, max_wal_bytes: u64) -> u64 {
    let (half, twice) = (all_bytes / 2, max_wal_bytes.saturating_mul(2));
    if twice < half { twice } else { half }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_to_the_server_is_what_it_writes_before_wal_goes() {
        let gb = 1 << 30;
        assert_eq!(reserve(100 * gb, gb), 2 * gb);
        // On a disk that is small for that, half of it.
        assert_eq!(reserve(2 * gb, gb), gb);
    }
}
