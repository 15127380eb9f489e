//! Leases: the word of a run under way that the packs it counts on must stay.
//!
//! A lease is worth 24 hours by the store's clock. A prune deletes a pack at the earliest 48 hours after it
//! put it into the trash, so a run that began before that has either committed or is void by then, and one
//! that began after it does not refer to the pack. Hence the two checks of [`Lease::check`]: before the
//! commit, and after it, for the machine may have slept in between.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::vault::Vault;
use super::{PackName, RepositoryError};

/// What a lease is worth.
pub const LEASE_LIFE: SignedDuration = SignedDuration::from_hours(24);
/// Held by whoever deletes without waiting.
pub const GC_LOCK_KEY: &str = "locks/gc";
const SMALL_FILE_LIMIT_BYTES: u64 = 1024 * 1024;
const TRASH_LIMIT_BYTES: u64 = 256 * 1024 * 1024;
const LOCK_POLL: Duration = Duration::from_millis(500);

/// What is written into a lease, for people.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LeaseNote {
    pub run: String,
    pub host: String,
    pub started: Timestamp,
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
        let note = LeaseNote {
            run: run.to_owned(),
            host: super::host_name(),
            started: Timestamp::now(),
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
            match vault.store.get(GC_LOCK_KEY, SMALL_FILE_LIMIT_BYTES) {
                Err(RepositoryError::Missing(_)) => return Ok(lease),
                Err(other) => return Err(other),
                Ok(_) if Instant::now() < deadline => {
                    drop(lease);
                    std::thread::sleep(LOCK_POLL);
                }
                Ok(_) => {
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
        if self.vault.now()?.duration_since(own.modified) >= LEASE_LIFE {
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

/// What a prune put into the trash: `trash/<prune>`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trash {
    pub packs: Vec<String>,
    #[serde(default)]
    pub index: Vec<String>,
    #[serde(default)]
    pub moved: Vec<String>,
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

fn names(vault: &Vault, prefix: &str, suffix: &str) -> Result<HashSet<PackName>, RepositoryError> {
    let entries = vault.store.list(prefix)?;
    Ok(entries
        .iter()
        .filter_map(|e| {
            let name = e.key.rsplit('/').next()?;
            name.strip_suffix(suffix)?.parse().ok()
        })
        .collect())
}
