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
pub(super) const LEASE_LIMIT_BYTES: u64 = 64 * 1024;
const LOCK_POLL: Duration = Duration::from_millis(500);

/// What is written into a lease: for people, and to tell whose it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseNote {
    pub run: String,
    pub host: String,
    pub started: Timestamp,
    /// It moves pieces of packs, and makes no backup.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub moves: bool,
}

impl LeaseNote {
    /// A note of this host and moment: no two are the same, also of runs with one name.
    pub(super) fn new(run: &str, moves: bool) -> Self {
        Self {
            run: run.to_owned(),
            host: super::host_name(),
            started: Timestamp::now(),
            moves,
        }
    }

    pub(super) fn encode(&self) -> Result<String, RepositoryError> {
        serde_json::to_string(self).map_err(|e| RepositoryError::Invalid(e.to_string()))
    }

    pub(super) fn key(&self) -> String {
        format!("leases/{}", self.run)
    }

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
    text: String,
}

impl Lease {
    /// Takes a lease; waits up to `patience` for a prune that deletes at once to end.
    pub fn take(
        vault: &Arc<Vault>,
        run: &str,
        patience: Duration,
    ) -> Result<Self, RepositoryError> {
        Self::take_as(vault, &LeaseNote::new(run, false), patience)
    }

    /// Takes a lease for a run that commits moves.
    pub fn take_to_move(
        vault: &Arc<Vault>,
        run: &str,
        patience: Duration,
    ) -> Result<Self, RepositoryError> {
        Self::take_as(vault, &LeaseNote::new(run, true), patience)
    }

    /// Takes the lease that `note` describes; `Exists` when another run of that name has one.
    pub(super) fn take_as(
        vault: &Arc<Vault>,
        note: &LeaseNote,
        patience: Duration,
    ) -> Result<Self, RepositoryError> {
        let deadline = Instant::now() + patience;
        loop {
            // First the lease, then the look at the lock; who locks does it the other way round.
            let lease = Self {
                vault: Arc::clone(vault),
                key: note.key(),
                text: note.encode()?,
            };
            vault.store.put(&lease.key, lease.text.as_bytes())?;
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
        // Of a copy there may be another run with the same name.
        if !self.is_own()? {
            return Err(void("another run has taken its place"));
        }
        Ok(())
    }

    /// Takes away what a prune put under `key`, where an earlier run of this name was to commit. All that the
    /// commit refers to must be in place: that run may wake up and be faster.
    pub(super) fn reopen(&self, key: &str) -> Result<(), RepositoryError> {
        self.check()?;
        let store = &self.vault.store;
        let directory = key.rsplit_once('/').map_or(key, |(directory, _)| directory);
        let entries = store.list(directory)?;
        if !entries.iter().any(|e| e.key == key && is_void(e)) {
            return Ok(());
        }
        store.delete(key)?;
        let Err(closed) = self.check() else {
            return Ok(());
        };
        // It was meant for this run.
        match store.put(key, VOID) {
            Ok(()) | Err(RepositoryError::Exists(_)) => Err(closed),
            Err(other) => Err(other),
        }
    }

    fn is_own(&self) -> Result<bool, RepositoryError> {
        match self.vault.store.get(&self.key, LEASE_LIMIT_BYTES) {
            Ok(text) => Ok(text == self.text.as_bytes()),
            Err(RepositoryError::Missing(_)) => Ok(false),
            Err(other) => Err(other),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let removed = self.is_own().and_then(|own| {
            if own {
                self.vault.store.delete(&self.key)
            } else {
                Ok(())
            }
        });
        if let Err(err) = removed {
            tracing::warn!("the lease {} could not be removed: {err}", self.key);
        }
    }
}

/// Keeps a run from ever committing, and removes its lease.
pub(super) fn close_run(
    vault: &Vault,
    run: &str,
    note: Option<&LeaseNote>,
    lease: &str,
) -> Result<(), RepositoryError> {
    let keys = match note {
        Some(note) if note.run == run => vec![note.commit_key(vault)],
        // Who cannot be asked what it is may be either.
        _ => vec![vault.key(&manifest_name(run)), moves::record_key(run)],
    };
    for key in keys {
        match vault.store.put(&key, VOID) {
            // It has committed, or another has closed it.
            Ok(()) | Err(RepositoryError::Exists(_)) => {}
            Err(other) => return Err(other),
        }
    }
    match vault.store.delete(lease) {
        // It is found dead again the next time.
        Err(err) if err.is_refused() => Ok(()),
        other => other,
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

/// Packs as a run sees them that looks after it took its lease.
#[derive(Debug, Clone, Default)]
pub(super) struct PacksSeen {
    pub(super) listed: HashSet<PackName>,
    /// Known to be damaged; some of them may be gone.
    pub(super) damaged: HashSet<PackName>,
    /// Named by a trash file; some of them may be gone.
    pub(super) trashed: HashSet<PackName>,
}

impl PacksSeen {
    pub(super) fn look(vault: &Vault) -> Result<Self, RepositoryError> {
        // Trash before packs: what was swept in between is not listed.
        let trashed = trashed_packs(vault)?;
        let damaged = names(vault, "damaged", "")?;
        Ok(Self {
            listed: names(vault, "packs", &vault.key(".zst"))?,
            damaged,
            trashed,
        })
    }

    /// It can be read, as far as is known.
    pub(super) fn is_whole(&self, pack: PackName) -> bool {
        self.listed.contains(&pack) && !self.damaged.contains(&pack)
    }

    /// A new run may refer to it.
    pub(super) fn is_usable(&self, pack: PackName) -> bool {
        self.is_whole(pack) && !self.trashed.contains(&pack)
    }
}

/// The packs that a new run may refer to: there, not known to be damaged, and not in the trash.
pub fn usable_packs(vault: &Vault) -> Result<HashSet<PackName>, RepositoryError> {
    let seen = PacksSeen::look(vault)?;
    let listed = seen.listed.iter().copied();
    Ok(listed.filter(|pack| seen.is_usable(*pack)).collect())
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
