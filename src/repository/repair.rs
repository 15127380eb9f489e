//! Repairs what can be repaired, and never pretends: the index from the packs, lost pieces from wherever else
//! they are.
//!
//! Nothing that is committed changes. What is saved of a pack is found through a move ([`super::moves`]), as
//! after a repack; bytes that are nowhere stay lost, and `verify` goes on telling so.

mod heal;
mod needs;
mod saved;

use std::collections::{BTreeSet, HashSet};

use jiff::Timestamp;
use serde::Serialize;

use super::index::{self, IndexWriter};
use super::lease;
use super::pack::PackReader;
use super::session::new_id;
use super::vault::Vault;
use super::{PackName, Repository, RepositoryError};

pub use heal::{Healed, heal};

/// What became of the index.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct IndexRepair {
    /// Packs that are in it again.
    pub packs_added: u64,
    /// Parts that could not be believed and are gone.
    pub parts_removed: Vec<String>,
    /// Packs whose own tables cannot be believed, for they are damaged.
    pub packs_damaged: Vec<String>,
}

/// Puts every pack that no believable part of the index names into new parts, and removes the others.
///
/// The tables are the packs' own; a pack is read whole first, for a wrong table would make later backups wrong.
pub fn rebuild_index(
    repository: &Repository,
    dry_run: bool,
    mut progress: impl FnMut(u64, u64),
) -> Result<IndexRepair, RepositoryError> {
    let vault = repository.vault();
    if !vault.mode.can_read() {
        return Err(RepositoryError::NoIdentity);
    }
    let mut report = IndexRepair::default();
    let mut indexed = HashSet::new();
    for part in index::parts(vault)? {
        let mut packs = Vec::new();
        let read = index::read(vault, &part, |pack, _| {
            packs.push(pack);
            Ok(())
        });
        match read {
            Ok(()) => indexed.extend(packs),
            // Pruned meanwhile.
            Err(RepositoryError::Missing(_)) => {}
            Err(err @ RepositoryError::Remote { .. }) => return Err(err),
            // It may be readable another time, and may be all that tells what a lost pack held.
            Err(err @ RepositoryError::Io { .. }) => {
                tracing::warn!("index/{part} is kept, and what it names is added anew: {err}");
            }
            Err(err) => {
                tracing::warn!("index/{part} is made anew: {err}");
                report.parts_removed.push(part);
            }
        }
    }
    let missing: BTreeSet<PackName> = lease::usable_packs(vault)?
        .into_iter()
        .filter(|pack| !indexed.contains(pack))
        .collect();
    let writer = IndexWriter::new(vault.clone(), &new_id(Timestamp::now()));
    for (done, pack) in missing.iter().enumerate() {
        progress(done as u64 + 1, missing.len() as u64);
        let table = PackReader::open(vault, *pack, true).and_then(|mut reader| reader.table());
        match table {
            Ok(table) => {
                report.packs_added += 1;
                if !dry_run {
                    writer.add(*pack, &table)?;
                }
            }
            Err(RepositoryError::Missing(_)) => {}
            // That this host cannot read it now is no damage.
            Err(err @ (RepositoryError::Remote { .. } | RepositoryError::Io { .. })) => {
                return Err(err);
            }
            Err(err) => {
                report.packs_damaged.push(pack.to_string());
                if !dry_run {
                    repository.mark_damaged(*pack, &err.to_string())?;
                }
            }
        }
    }
    if !dry_run {
        writer.flush()?;
        remove_parts(vault, &report.parts_removed)?;
    }
    Ok(report)
}

fn remove_parts(vault: &Vault, parts: &[String]) -> Result<(), RepositoryError> {
    for part in parts {
        vault.store.delete(&vault.key(&index::key(part)))?;
    }
    Ok(())
}
