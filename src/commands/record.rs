//! How the last runs went: kept in the state directory for `status` and the container's health.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::durable;

/// What is remembered between runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// When the backup that is under way began; still set at a start, it was killed.
    #[serde(default)]
    pub running: Option<Timestamp>,
    pub last_backup: Option<Run>,
    pub last_good_backup: Option<Run>,
    pub last_restore: Option<Run>,
    /// The newest backup when a person last agreed to a shrink.
    #[serde(default)]
    pub shrink_accepted: Option<String>,
    /// Tells this state directory from any other; made with the first backup.
    #[serde(default)]
    pub machine: Option<String>,
    /// The repository that backups were made to.
    #[serde(default)]
    pub repository: Option<String>,
    /// Why retention drops nothing at the moment.
    pub retention_frozen: Option<String>,
    /// Why the last backup was not copied to the second repository, as it should have been.
    #[serde(default)]
    pub copy_failed: Option<String>,
    /// Space was not given back after so many backups, the last among them, and why.
    #[serde(default)]
    pub prune_failed: Option<(u32, String)>,
    /// When the scheduler means to run next; in the past, it did not.
    pub next_run: Option<Timestamp>,
}

/// One run's end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    pub finished: Timestamp,
    /// The backup made or restored.
    pub backup: Option<String>,
    /// Why it failed.
    pub error: Option<String>,
}

impl Record {
    /// Reads the record; none yet is an empty one, and one that cannot be read is said and begun anew.
    pub fn load(state: &Path) -> Self {
        let path = path(state);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Self::default(),
            Err(e) => {
                tracing::warn!(
                    "{} cannot be read ({e}): how earlier runs went is not known",
                    path.display()
                );
                return Self::default();
            }
        };
        serde_json::from_slice(&bytes).unwrap_or_else(|e| {
            tracing::warn!(
                "{} cannot be understood ({e}): how earlier runs went is not known",
                path.display()
            );
            Self::default()
        })
    }

    /// Changes the record on disk.
    pub fn update(state: &Path, change: impl FnOnce(&mut Self)) {
        let before = Self::load(state);
        let mut record = before.clone();
        change(&mut record);
        if record == before {
            return;
        }
        let saved = serde_json::to_vec_pretty(&record)
            .map_err(std::io::Error::other)
            .and_then(|bytes| durable::write_replace(&path(state), &bytes, 0o600));
        if let Err(err) = saved {
            tracing::error!(
                "how this run went cannot be remembered: {err}; see that the state directory is writable and has space"
            );
        }
    }

    /// What tells this state directory from others; `None` where it cannot be remembered.
    pub fn machine(state: &Path) -> Option<String> {
        Self::update(state, |record| {
            let new = || crate::repository::hex(&rand::random::<[u8; 8]>());
            record.machine.get_or_insert_with(new);
        });
        Self::load(state).machine
    }

    /// Notes a backup's beginning.
    pub fn note_begin(state: &Path) {
        Self::update(state, |record| record.running = Some(Timestamp::now()));
    }

    /// Notes that a backup which never ended was killed. For whoever holds the lock.
    pub fn note_killed(state: &Path) {
        if let Some(begun) = Self::load(state).running {
            Self::note_backup(
                state,
                Err(&format!(
                    "the backup begun at {begun:.0} did not end: the process was killed"
                )),
                &[],
            );
        }
    }

    /// Notes a backup's end, and what in it was damaged in the services already: then it is not a good one.
    pub fn note_backup(state: &Path, result: Result<&str, &str>, damage: &[String]) {
        let damaged = (!damage.is_empty()).then(|| damage.join("; "));
        let run = Run {
            finished: Timestamp::now(),
            backup: result.ok().map(str::to_owned),
            error: result.err().map(str::to_owned).or(damaged),
        };
        Self::update(state, |record| {
            if run.error.is_none() {
                record.last_good_backup = Some(run.clone());
            }
            record.running = None;
            record.last_backup = Some(run);
        });
    }
}

fn path(state: &Path) -> PathBuf {
    state.join("record.json")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_backup_of_damaged_data_is_remembered_and_no_good_one() {
        let state = tempfile::tempdir().unwrap();
        Record::note_backup(state.path(), Ok("one"), &[]);
        Record::note_backup(state.path(), Ok("two"), &["db: 1 page".to_owned()]);
        let record = Record::load(state.path());
        let last = record.last_backup.unwrap();
        assert_eq!(last.backup.as_deref(), Some("two"));
        assert_eq!(last.error.as_deref(), Some("db: 1 page"));
        let good = record.last_good_backup.unwrap();
        assert_eq!(good.backup.as_deref(), Some("one"));
    }

    #[test]
    fn a_backup_that_never_ended_is_noted_as_killed() {
        let state = tempfile::tempdir().unwrap();
        Record::note_backup(state.path(), Ok("one"), &[]);
        Record::note_killed(state.path());
        assert_eq!(Record::load(state.path()).last_backup.unwrap().error, None);
        Record::note_begin(state.path());
        Record::note_killed(state.path());
        let record = Record::load(state.path());
        assert!(
            record
                .last_backup
                .unwrap()
                .error
                .unwrap()
                .contains("was killed")
        );
        assert_eq!(
            record.last_good_backup.unwrap().backup.as_deref(),
            Some("one")
        );
        assert_eq!(record.running, None);
    }
}
