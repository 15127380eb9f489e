//! What this host remembers of committed backups, so that a night does not read all of them once more.
//!
//! Two files in the state directory: what was made of manifests, which is what retention decides from
//! ([`Manifests`]), and which packs backups name, which is what a prune decides from ([`PackUses`]).
//!
//! # When it is believed
//!
//! The repository stays the truth. A committed backup's files never change; they only go, and then a copy may
//! commit another backup under the same id. So:
//!
//! 1. What is remembered counts for files that are listed with the size and the time that they had when they
//!    were read, to the store's last digit. It is only remembered of files that were [`SETTLED`] before they
//!    were listed: whatever comes in their place later has a later time, however coarse the store's clock is.
//!    A keyed mark of id, sizes and times stands for all of them.
//! 2. A memory is sealed with the repository's key. A torn, damaged or foreign one, and one that was written
//!    without the keys, is as good as none.
//! 3. Without it everything is read from the repository, and that is all that is lost.
//!
//! It tells what the files said when they were read. Whether they are still whole is noticed by whoever needs
//! them: `list`, `show`, `restore` and `verify` read the store, and retention does before it drops anything.

mod manifests;
mod pack_uses;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::crypto::Sealed;
use super::lease::is_void;
use super::store::Entry;
use super::vault::Vault;
use super::{RepositoryError, manifest_name, packs_key};
use crate::durable;

pub use manifests::Manifests;
pub use pack_uses::PackUses;

/// How old a file must be to be told from one that comes in its place: more than any store's clock is coarse.
pub const SETTLED: SignedDuration = SignedDuration::from_secs(3);

/// Decompressed; a longer memory is none.
const MEMORY_LIMIT_BYTES: u64 = 1024 * 1024 * 1024;

/// A file as it was listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    pub size: u64,
    pub modified: Timestamp,
}

impl Seen {
    fn is_settled(&self, now: Timestamp) -> bool {
        now.duration_since(self.modified) > SETTLED
    }
}

/// A committed backup as it was listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Committed {
    pub id: String,
    pub manifest: Seen,
    /// Its list of packs.
    pub packs: Option<Seen>,
}

/// The committed backups in a listing of `backups`, oldest first.
pub(super) fn committed(vault: &Vault, entries: &[Entry]) -> Vec<Committed> {
    let mut found: BTreeMap<&str, (Option<Seen>, Option<Seen>)> = BTreeMap::new();
    for entry in entries.iter().filter(|entry| !is_void(entry)) {
        let Some(id) = id_of(&entry.key) else {
            continue;
        };
        let seen = Some(Seen {
            size: entry.size,
            modified: entry.modified,
        });
        if entry.key == vault.key(&manifest_name(id)) {
            found.entry(id).or_default().0 = seen;
        } else if entry.key == packs_key(id) {
            found.entry(id).or_default().1 = seen;
        }
    }
    let backups = found.into_iter().filter_map(|(id, (manifest, packs))| {
        Some(Committed {
            id: id.to_owned(),
            manifest: manifest?,
            packs,
        })
    });
    backups.collect()
}

fn id_of(key: &str) -> Option<&str> {
    let (id, _) = key.strip_prefix("backups/")?.rsplit_once('/')?;
    Some(id)
}

/// A file of the state directory that only who has the repository's keys can have written.
struct Memory<'a> {
    vault: &'a Vault,
    /// What is in it and in which form: another form has another name.
    what: &'static str,
    path: PathBuf,
}

impl<'a> Memory<'a> {
    fn of(vault: &'a Vault, state: &Path, what: &'static str) -> Self {
        let path = state.join(format!("{what}-{}.zst", vault.secrets.id()));
        Self { vault, what, path }
    }

    /// Tells a backup from any other that has its id, as it is listed: short, and under the repository's key.
    fn mark(&self, backup: &Committed) -> Result<u64, RepositoryError> {
        let text =
            serde_json::to_vec(backup).map_err(|e| RepositoryError::Invalid(e.to_string()))?;
        let mark = self.vault.secrets.seal(Sealed::Memory("mark"), &text);
        let front = mark.as_bytes().first_chunk().copied().unwrap_or_default();
        Ok(u64::from_be_bytes(front))
    }

    fn load<T: DeserializeOwned>(&self) -> Option<T> {
        match self.read() {
            Ok(found) => Some(found),
            Err(RepositoryError::Missing(_)) => None,
            Err(err) => {
                tracing::warn!(
                    "{} is not used, and what it held is read from the repository: {err}",
                    self.path.display()
                );
                None
            }
        }
    }

    fn read<T: DeserializeOwned>(&self) -> Result<T, RepositoryError> {
        let name = self.path.display().to_string();
        let failed = |e: io::Error| match e.kind() {
            io::ErrorKind::NotFound => RepositoryError::Missing(name.clone()),
            _ => RepositoryError::io(format!("read {name}"), e),
        };
        let bytes = std::fs::read(&self.path).map_err(failed)?;
        let sealed = Sealed::Memory(self.what);
        let text = self
            .vault
            .unsealed_either(sealed, &name, bytes, MEMORY_LIMIT_BYTES)?;
        serde_json::from_str(&text)
            .map_err(|e| RepositoryError::Invalid(format!("it cannot be understood: {e}")))
    }

    /// A failure costs the next run time.
    fn save<T: Serialize>(&self, value: &T) {
        let written = serde_json::to_string(value)
            .map_err(|e| RepositoryError::Invalid(e.to_string()))
            .and_then(|text| {
                let sealed = Sealed::Memory(self.what);
                let bytes = self.vault.sealed_compressed(sealed, &text)?;
                durable::write_hint(&self.path, &bytes, 0o600)
                    .map_err(|e| RepositoryError::io("remember it", e))
            });
        if let Err(err) = written {
            tracing::warn!("what was read of backups is read again the next time: {err}");
        }
    }
}
