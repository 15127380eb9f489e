//! One run at a time for one state directory.
//!
//! An flock(2) on `<state>/lock`: the kernel drops it when its holder dies, however it dies. The file's
//! content only says who holds it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::durable;

/// The right to run; given back when dropped.
#[derive(Debug)]
pub struct RunLock {
    /// Holds the flock until it is closed.
    _file: File,
}

/// Who holds the lock, as far as its file says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    pub pid: u32,
    pub command: String,
    pub since: Timestamp,
}

/// Why there is no lock.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another run holds it still.
    #[error("{0}")]
    Busy(String),
    #[error("cannot lock {path}: {source}; see that the state directory is mounted and writable")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

const MAX_HOLDER_BYTES: u64 = 64 * 1024;
const POLL: Duration = Duration::from_millis(200);

impl RunLock {
    /// Takes the lock, waiting up to `timeout` for its holder; cancel safe.
    ///
    /// `command` is what others are told, such as "backup". `on_wait` is called once when it has to wait.
    pub async fn acquire(
        state: &Path,
        command: &str,
        timeout: Duration,
        on_wait: impl FnOnce(Option<&Holder>) + Send,
    ) -> Result<Self, LockError> {
        let path = state.join("lock");
        let io_error = |source| LockError::Io {
            path: path.clone(),
            source,
        };
        let file = open(state, &path).map_err(io_error)?;
        let deadline = Instant::now().checked_add(timeout);
        let mut on_wait = Some(on_wait);
        loop {
            match file.try_lock() {
                Ok(()) => {
                    write_holder(&file, command).map_err(io_error)?;
                    return Ok(Self { _file: file });
                }
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(err)) => return Err(io_error(err)),
            }
            let holder = read_holder(&path);
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(LockError::Busy(busy(holder.as_ref(), timeout)));
            }
            if let Some(on_wait) = on_wait.take() {
                on_wait(holder.as_ref());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Who holds the lock at this moment; `None` when nobody does.
    ///
    /// Takes the lock for an instant to find out, so a run that tries in the same instant waits once more.
    pub fn holder(state: &Path) -> Result<Option<Holder>, LockError> {
        let path = state.join("lock");
        let io_error = |source| LockError::Io {
            path: path.clone(),
            source,
        };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(err) if err.kind() == ErrorKind::NotFound => return Ok(None),
            Err(err) => return Err(io_error(err)),
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(None),
            Err(TryLockError::WouldBlock) => Ok(Some(read_holder(&path).unwrap_or(Holder {
                pid: 0,
                command: "unknown".to_owned(),
                since: Timestamp::UNIX_EPOCH,
            }))),
            Err(TryLockError::Error(err)) => Err(io_error(err)),
        }
    }
}

fn open(state: &Path, path: &Path) -> io::Result<File> {
    durable::create_dir_all(state, 0o700)?;
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

fn write_holder(mut file: &File, command: &str) -> io::Result<()> {
    let holder = Holder {
        pid: std::process::id(),
        command: command.to_owned(),
        since: Timestamp::now(),
    };
    file.set_len(0)?;
    file.write_all(&serde_json::to_vec(&holder)?)
}

/// What the lock's file says; it may be read while it is written, so nonsense counts as nothing.
fn read_holder(path: &Path) -> Option<Holder> {
    let mut bytes = Vec::new();
    File::open(path)
        .ok()?
        .take(MAX_HOLDER_BYTES)
        .read_to_end(&mut bytes)
        .ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn busy(holder: Option<&Holder>, waited: Duration) -> String {
    let who = match holder {
        Some(holder) => format!(
            "{} (process {}, since {:.0})",
            holder.command, holder.pid, holder.since
        ),
        None => "it does not say which".to_owned(),
    };
    let waited = jiff::SignedDuration::try_from(waited).unwrap_or(jiff::SignedDuration::MAX);
    format!(
        "another run is still going on: {who}; waited {waited:#}. Wait for it to end, or allow more time with \
         LOCK_TIMEOUT"
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[tokio::test]
    async fn the_second_run_is_told_who_holds_the_lock() {
        let state = tempfile::tempdir().unwrap();
        let first = RunLock::acquire(state.path(), "backup", Duration::ZERO, |_| {})
            .await
            .unwrap();
        let held = RunLock::holder(state.path()).unwrap().unwrap();
        assert_eq!(held.command, "backup");
        let mut told = None;
        let err = RunLock::acquire(
            state.path(),
            "restore",
            Duration::from_millis(1),
            |holder| told = holder.cloned(),
        )
        .await
        .unwrap_err();
        assert_eq!(told, Some(held));
        let sentence = err.to_string();
        assert!(matches!(err, LockError::Busy(_)));
        let pid = format!("process {}", std::process::id());
        assert!(sentence.contains("backup"), "{sentence}");
        assert!(sentence.contains(&pid), "{sentence}");
        assert!(sentence.contains("LOCK_TIMEOUT"), "{sentence}");
        drop(first);
        assert_eq!(RunLock::holder(state.path()).unwrap(), None);
    }

    #[tokio::test]
    async fn a_waiting_run_goes_on_when_the_first_ends() {
        let state = tempfile::tempdir().unwrap();
        let first = RunLock::acquire(state.path(), "backup", Duration::ZERO, |_| {})
            .await
            .unwrap();
        let (waiting, waits) = tokio::sync::oneshot::channel();
        let dir = state.path().to_owned();
        let second = tokio::spawn(async move {
            RunLock::acquire(&dir, "restore", Duration::from_mins(1), |_| {
                waiting.send(()).unwrap();
            })
            .await
        });
        waits.await.unwrap();
        drop(first);
        second.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn an_unwritable_state_directory_is_named() {
        let state = tempfile::tempdir().unwrap();
        let file = state.path().join("file");
        std::fs::write(&file, "").unwrap();
        let err = RunLock::acquire(&file, "backup", Duration::ZERO, |_| {})
            .await
            .unwrap_err();
        assert!(err.to_string().contains("file/lock"), "{err}");
    }
}
