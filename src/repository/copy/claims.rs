//! The leases that a copy holds in the target, which carry the names of what it commits there.
//!
//! Those names come again: when a copy was killed, the next one commits the same backup. So this host notes in
//! its state directory which leases it takes, and the next copy removes just these. A lease of another host that
//! is more than a day old is closed, as a prune would: nobody else may ever prune the target.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::durable;
use crate::repository::lease::{self, LEASE_LIMIT_BYTES, Lease, LeaseNote};
use crate::repository::prune::decide;
use crate::repository::{Repository, RepositoryError};

const LOCK_PATIENCE: Duration = Duration::from_mins(10);

/// Leases that are noted in the state directory.
pub(super) struct Claims<'a> {
    target: &'a Repository,
    note: PathBuf,
    taken: String,
}

impl<'a> Claims<'a> {
    /// Removes what a killed copy of this host left in the target. For whoever holds the lock of `state`.
    pub(super) fn begin(target: &'a Repository, state: &Path) -> Result<Self, RepositoryError> {
        let place = blake3::hash(target.store().describe().as_bytes()).to_hex();
        let claims = Self {
            target,
            note: state.join(format!("copying-{}", place.get(..16).unwrap_or(&place))),
            taken: String::new(),
        };
        let noted = match std::fs::read_to_string(&claims.note) {
            Ok(noted) => noted,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(claims),
            Err(err) => {
                return Err(RepositoryError::io(
                    "read which backup was being copied",
                    err,
                ));
            }
        };
        for line in noted.lines() {
            claims.remove(line)?;
        }
        claims.forget()?;
        Ok(claims)
    }

    /// Removes a lease that reads as it was noted.
    fn remove(&self, noted: &str) -> Result<(), RepositoryError> {
        let Ok(note) = serde_json::from_str::<LeaseNote>(noted) else {
            return Ok(());
        };
        let store = self.target.store();
        match store.get(&note.key(), LEASE_LIMIT_BYTES) {
            Ok(found) if found == noted.as_bytes() => store.delete(&note.key()),
            Ok(_) | Err(RepositoryError::Missing(_)) => Ok(()),
            Err(other) => Err(other),
        }
    }

    /// Takes a lease under the name of a backup, or of a run that moved packs; `Exists` when another run has it.
    pub(super) fn take(&mut self, run: &str, moves: bool) -> Result<Lease, RepositoryError> {
        let vault = self.target.vault();
        let note = LeaseNote::new(run, moves);
        self.taken.push_str(&note.encode()?);
        self.taken.push('\n');
        durable::write_replace(&self.note, self.taken.as_bytes(), 0o600).map_err(|e| {
            RepositoryError::io("note in the state directory which backup is copied", e)
        })?;
        match Lease::take_as(vault, &note, LOCK_PATIENCE) {
            Err(RepositoryError::Exists(_)) if self.close_dead(&note)? => {
                Lease::take_as(vault, &note, LOCK_PATIENCE)
            }
            other => other,
        }
    }

    /// Closes the run that has the name of `note`, if its lease is worth nothing any more.
    fn close_dead(&self, note: &LeaseNote) -> Result<bool, RepositoryError> {
        let vault = self.target.vault();
        let entries = vault.store.list("leases")?;
        let Some(entry) = entries.iter().find(|entry| entry.key == note.key()) else {
            return Ok(true);
        };
        if !decide::is_dead(vault.now()?.duration_since(entry.modified)) {
            return Ok(false);
        }
        lease::close_run(vault, &note.run, Some(note), &entry.key)?;
        Ok(true)
    }

    /// Forgets the leases, which were given back; one that could not be is removed now.
    pub(super) fn finish(self) -> Result<(), RepositoryError> {
        for noted in self.taken.lines() {
            self.remove(noted)?;
        }
        self.forget()
    }

    fn forget(&self) -> Result<(), RepositoryError> {
        durable::remove(&self.note)
            .map(drop)
            .map_err(|e| RepositoryError::io("remove the note of a copy that is complete", e))
    }
}
