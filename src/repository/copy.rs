//! Copies backups to a second repository, file by file: names, id and keys stay what they are.
//!
//! For each backup, oldest first: a lease in the target, packs → index → moves → ranges → list of packs →
//! manifest. What is there is not sent again, so a copy that was cut short goes on where it was. Each pack's
//! SHA-256 is compared with its name on the way; a pack that the target knows to be damaged is replaced. The
//! write-ahead log comes last ([`wal`]).
//!
//! # Beside a prune of the source
//!
//! Nothing is held in the source, which may be read-only here. A pack that goes while it is wanted has moved, or
//! its backup was dropped: the source is looked at again.
//!
//! # Beside a prune of the target
//!
//! A backup's lease carries the backup's id, and the moves that it needs are committed under leases that carry
//! the names of the runs that made them. So a prune can close their places to a copy that slept
//! ([`super::lease`]); what it left there is taken away by the next copy, once everything else is in place.
//!
//! Only a copy brings a pack back under a name that was there before. While a trash file names the pack, it
//! waits: whoever empties the trash looks for that file before it deletes anything ([`super::prune`]).

mod claims;
mod copier;
mod keys;
mod reencrypt;
mod wal;

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use super::keys::Keys;
use super::store::Store;
use super::{Repository, RepositoryError};
use claims::Claims;
use copier::Copier;

pub use reencrypt::reencrypt;

/// How often the source is looked at again when packs go while they are copied.
const LOOKS: usize = 8;

/// What a copy did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CopyReport {
    pub copied: Vec<String>,
    /// Backups that were there.
    pub there: u64,
    pub packs: u64,
    pub pack_bytes: u64,
    /// Files of the write-ahead log.
    pub wal_files: u64,
    pub wal_bytes: u64,
    /// Backups that could not be copied because they are damaged here, as sentences.
    pub faults: Vec<String>,
    /// Backups that could not be copied because something in the target is in the way, as sentences.
    pub waiting: Vec<String>,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// Why a backup is not copied.
enum Halt {
    /// It is damaged in the source.
    Damaged(String),
    /// Something in the target is in the way of this backup.
    Waits(String),
    /// Nothing more can be copied.
    Failed(RepositoryError),
}

impl From<RepositoryError> for Halt {
    fn from(err: RepositoryError) -> Self {
        if err.is_damage() {
            Self::Damaged(err.to_string())
        } else {
            Self::Failed(err)
        }
    }
}

/// Of a file of the source: that it does not decrypt or is not what it should be is damage, too.
fn unreadable(err: RepositoryError) -> Halt {
    match err {
        RepositoryError::Invalid(why) => Halt::Damaged(why),
        other => other.into(),
    }
}

/// Of a lease in the target.
fn not_taken(err: RepositoryError, target: &Repository) -> Halt {
    match err {
        RepositoryError::Exists(key) => Halt::Waits(format!(
            "another host copies it to {}, or died there less than a day ago: {key} says which",
            target.store().describe()
        )),
        other => other.into(),
    }
}

/// Copies every backup of `source` that is not in `target` yet. For whoever holds the lock of `state`.
pub fn copy(
    source: &Repository,
    target: Arc<dyn Store>,
    keys: &Keys,
    state: &Path,
    progress: impl FnMut(&str, u64),
) -> Result<CopyReport, RepositoryError> {
    let notes = keys::send(source, &*target, keys)?;
    let target = Repository::open(target, keys)?;
    target.store().remove_abandoned()?;
    Claims::begin(&target, state)?;
    let mut copier = Copier::new(source, &target, state, progress)?;
    copier.report.notes = notes;
    let there: HashSet<String> = target.backups()?.into_iter().collect();
    for id in source.backups()? {
        let known = there.contains(&id);
        let outcome = copier.backup(&id, known);
        copier.report.note(source, id, known, outcome)?;
    }
    let mut report = copier.report;
    wal::send(source, &target, &mut report)?;
    Ok(report)
}

impl CopyReport {
    /// Notes what became of a backup.
    fn note(
        &mut self,
        source: &Repository,
        id: String,
        known: bool,
        outcome: Result<(), Halt>,
    ) -> Result<(), RepositoryError> {
        match outcome {
            Ok(()) if known => self.there += 1,
            Ok(()) => self.copied.push(id),
            Err(Halt::Waits(why)) => {
                self.waiting
                    .push(format!("backup {id} was not copied: {why}"));
            }
            // Retention dropped it while it was copied: nobody wants it any more.
            Err(Halt::Damaged(_)) if !source.backups()?.contains(&id) => {}
            Err(Halt::Damaged(why)) => {
                self.faults
                    .push(format!("backup {id} was not copied: {why}"));
            }
            Err(Halt::Failed(err)) => return Err(err),
        }
        Ok(())
    }
}
