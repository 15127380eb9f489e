//! Leases: the word of a run under way that the packs it counts on must stay.
//!
//! A lease is worth 24 hours by the store's clock. A prune that means to delete what it put into the trash
//! 48 hours ago first *fences* runs whose leases are older than that: under the one key that a run commits
//! with (a backup's manifest, a repack's list of packs) it puts [`VOID`], and then removes the lease. Nothing
//! is ever overwritten, so such a run has committed, or it never will, however long its machine slept. Why
//! that is enough: [`super::prune::decide`].

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::prune::decide;
use super::store::Entry;
use super::vault::Vault;
use super::{PackName, RepositoryError, manifest_name, moves};

/// What lies where a run that is taken for dead would commit. No manifest or list of packs is so short.
pub const VOID: &[u8] = b"void\n";
/// Held by whoever deletes without waiting.
pub const GC_LOCK_KEY: &str = "locks/gc";
pub(super) const TRASH_LIMIT_BYTES: u64 = 256 * 1024 * 1024;
const LOCK_POLL: Duration = Duration::from_millis(500);

/// What is written into a lease, for people.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LeaseNote {
    pub run: String,
    pub host: String,
    pub started: Timestamp,
    /// It moves pieces of packs, and makes no backup.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub moves: bool,
}

impl LeaseNote {
    /// The key that the run commits with.
    pub fn commit_key(&self, vault: &Vault) -> String {
        if self.moves {
            moves::record_key(&self.run)
        } else {
            vault.key(&manifest_name(&self.run))
        }
    }
}

/// Whether a file only keeps a run from committing.
pub fn is_void(entry: &Entry) -> bool {
    entry.size == VOID.len() as u64
}

/// Says why a run cannot commit when something is in its place.
pub fn overtaken(err: RepositoryError) -> RepositoryError {
    match err {
        RepositoryError::Exists(_) => RepositoryError::Invalid(
            "the run took more than a day and a prune has closed it: what it refers to may be gone; nothing was committed"
                .to_owned(),
        ),
        other => other,
    }
}

/// A run's lease; removed when dropped.
pub struct Lease {
    vault: Arc<Vault>,
    key: String,
}

impl Lease {
    /// Takes a lease; waits up to `patience` for a prune that deletes at once to end.
    pub fn take(
        vault: &Arc<Vault>,
        run: &str,
        patience: Duration,
    ) -> Result<Self, RepositoryError> {
        Self::take_for(vault, run, false, patience)
    }

    /// Takes a lease for a run that commits moves.
    pub fn take_to_move(
        vault: &Arc<Vault>,
        run: &str,
        patience: Duration,
    ) -> Result<Self, RepositoryError> {
        Self::take_for(vault, run, true, patience)
    }

    fn take_for(
        vault: &Arc<Vault>,
        run: &str,
        moves: bool,
        patience: Duration,
    ) -> Result<Self, RepositoryError> {
        let note = LeaseNote {
            run: run.to_owned(),
            host: super::host_name(),
            started: Timestamp::now(),
            moves,
        };
        let text =
            serde_json::to_vec(&note).map_err(|e| RepositoryError::Invalid(e.to_string()))?;
        let deadline = Instant::now() + patience;
        loop {
            // First the lease, then the look at the lock; who locks does it the other way round.
            let lease = Self {
                vault: Arc::clone(vault),
                key: format!("leases/{run}"),
            };
            vault.store.put(&lease.key, &text)?;
            match lock_age(vault)? {
                None => return Ok(lease),
                // Its holder checks the lock's age before it deletes anything, and gives up.
                Some(age) if !decide::lock_is_heeded(age) => return Ok(lease),
                Some(_) if Instant::now() < deadline => {
                    drop(lease);
                    std::thread::sleep(LOCK_POLL);
                }
                Some(_) => {
                    return Err(RepositoryError::Invalid(format!(
                        "{GC_LOCK_KEY} is held in {}: a prune or repair that needs the repository for itself is under way, or died there less than a day ago",
                        vault.store.describe()
                    )));
                }
            }
        }
    }

    /// The lease is there and young enough by the store's clock.
    pub fn check(&self) -> Result<(), RepositoryError> {
        let void = |why: &str| {
            RepositoryError::Invalid(format!(
                "the run took too long: {why}, so what it refers to may be gone; nothing was committed"
            ))
        };
        let entries = self.vault.store.list("leases")?;
        let own = entries
            .iter()
            .find(|entry| entry.key == self.key)
            .ok_or_else(|| void("its lease was removed"))?;
        if decide::is_dead(self.vault.now()?.duration_since(own.modified)) {
            return Err(void("its lease is older than a day"));
        }
        Ok(())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Err(err) = self.vault.store.delete(&self.key) {
            tracing::warn!("the lease {} could not be removed: {err}", self.key);
        }
    }
}

/// The age of the lock of whoever deletes without waiting, when there is one.
pub fn lock_age(vault: &Vault) -> Result<Option<jiff::SignedDuration>, RepositoryError> {
    let entries = vault.store.list("locks")?;
    let Some(lock) = entries.iter().find(|entry| entry.key == GC_LOCK_KEY) else {
        return Ok(None);
    };
    Ok(Some(vault.now()?.duration_since(lock.modified)))
}

/// What a prune put into the trash: `trash/<prune>`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trash {
    pub packs: Vec<String>,
}

/// The packs that a new run may refer to: there, not known to be damaged, and not in the trash.
pub fn usable_packs(vault: &Vault) -> Result<HashSet<PackName>, RepositoryError> {
    let mut barred = trashed_packs(vault)?;
    barred.extend(names(vault, "damaged", "")?);
    let suffix = vault.key(".zst");
    Ok(names(vault, "packs", &suffix)?
        .into_iter()
        .filter(|pack| !barred.contains(pack))
        .collect())
}

fn trashed_packs(vault: &Vault) -> Result<HashSet<PackName>, RepositoryError> {
    let mut packs = HashSet::new();
    for entry in vault.store.list("trash")? {
        let bytes = match vault.store.get(&entry.key, TRASH_LIMIT_BYTES) {
            // Swept meanwhile: its packs are gone from the listing that follows.
            Err(RepositoryError::Missing(_)) => continue,
            other => other?,
        };
        let trash: Trash = serde_json::from_slice(&bytes).map_err(|e| {
            RepositoryError::Invalid(format!("{} cannot be understood: {e}", entry.key))
        })?;
        for name in trash.packs {
            packs.insert(name.parse()?);
        }
    }
    Ok(packs)
}

pub(super) fn names(
    vault: &Vault,
    prefix: &str,
    suffix: &str,
) -> Result<HashSet<PackName>, RepositoryError> {
    let entries = vault.store.list(prefix)?;
    Ok(entries
        .iter()
        .filter_map(|e| {
            let name = e.key.rsplit('/').next()?;
            name.strip_suffix(suffix)?.parse().ok()
        })
        .collect())
}
