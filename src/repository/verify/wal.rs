//! The write-ahead log: is it genuine, and is it all there?

use super::Depth;
use crate::repository::{Repository, RepositoryError};

/// How many of the newest stretches are read when only a sample is.
const SAMPLE: usize = 16;

/// What is wrong, as sentences, and how many bytes were read.
pub(super) fn faults(
    repository: &Repository,
    depth: Depth,
) -> Result<(Vec<String>, u64), RepositoryError> {
    let mut faults = Vec::new();
    let mut read = 0;
    if !repository.vault().can_read() {
        return Ok((faults, read));
    }
    let list = repository.wal()?;
    let mut note = |result: Result<(), RepositoryError>| {
        match result {
        // Replaced by a whole one, or retired, while we looked.
        Ok(()) | Err(RepositoryError::Missing(_)) => Ok(()),
        Err(err) => super::believable(err).map(|fault| {
            faults.push(format!(
                "{fault}: no moment that recovery reaches through this WAL can be restored; backups are not touched by it"
            ));
        }),
    }
    };
    for (system, timelines) in &list.histories {
        for timeline in timelines {
            note(repository.wal_history(*system, *timeline).map(drop))?;
        }
    }
    for system in &list.systems {
        note(repository.wal_seen(*system).map(drop))?;
    }
    note(repository.marks(&list).map(drop))?;
    let count = match depth {
        Depth::Structure => 0,
        Depth::Sample { .. } => SAMPLE,
        Depth::Full => usize::MAX,
    };
    for stretch in list.stretches.iter().rev().take(count) {
        note(
            repository
                .read_wal(stretch)
                .map(|bytes| read += bytes.len() as u64),
        )?;
    }
    Ok((faults, read))
}
