//! The lock of a prune that does not wait.
//!
//! It keeps runs from beginning, and only that: whoever holds it makes sure that it held until the trash file
//! was there ([`GcLock::check`]). From then on every run sees the trash file.

use std::sync::Arc;

use jiff::Timestamp;

use super::{decide, new_run};
use crate::repository::lease::{GC_LOCK_KEY, LeaseNote, lock_age};
use crate::repository::vault::Vault;
use crate::repository::{RepositoryError, host_name};

const LOCK_LIMIT_BYTES: u64 = 64 * 1024;

/// The lock; given back when dropped.
pub struct GcLock {
    vault: Arc<Vault>,
    content: Vec<u8>,
}

impl GcLock {
    /// Takes the lock, or says who has it. One that is a day old is taken over.
    pub fn take(vault: &Arc<Vault>) -> Result<Self, RepositoryError> {
        let note = LeaseNote {
            run: new_run(),
            host: host_name(),
            started: Timestamp::now(),
            moves: false,
        };
        let lock = Self {
            vault: Arc::clone(vault),
            content: serde_json::to_vec(&note)
                .map_err(|e| RepositoryError::Invalid(e.to_string()))?,
        };
        if let Some(age) = lock_age(vault)?
            && !decide::lock_is_heeded(age)
        {
            vault.store.delete(GC_LOCK_KEY)?;
        }
        match vault.store.put(GC_LOCK_KEY, &lock.content) {
            Ok(()) => Ok(lock),
            Err(RepositoryError::Exists(_)) => {
                let holder = lock.read()?;
                Err(held(vault, holder.as_deref()))
            }
            Err(other) => Err(other),
        }
    }

    /// The lock is this prune's and was all the time.
    pub fn check(&self) -> Result<(), RepositoryError> {
        let own = self.read()?.is_some_and(|content| content == self.content);
        let age = lock_age(&self.vault)?;
        if age.is_some_and(|age| decide::lock_holds(own, age)) {
            return Ok(());
        }
        Err(RepositoryError::Invalid(format!(
            "the prune took so long that it lost {GC_LOCK_KEY}; nothing was deleted, what is dead lies in the trash"
        )))
    }

    fn read(&self) -> Result<Option<Vec<u8>>, RepositoryError> {
        match self.vault.store.get(GC_LOCK_KEY, LOCK_LIMIT_BYTES) {
            Ok(content) => Ok(Some(content)),
            Err(RepositoryError::Missing(_)) => Ok(None),
            Err(other) => Err(other),
        }
    }
}

impl Drop for GcLock {
    fn drop(&mut self) {
        let given_back = self.read().and_then(|content| {
            if content.is_some_and(|content| content == self.content) {
                self.vault.store.delete(GC_LOCK_KEY)
            } else {
                Ok(())
            }
        });
        if let Err(err) = given_back {
            tracing::warn!(
                "{GC_LOCK_KEY} could not be removed, so backups wait for it up to a day: {err}"
            );
        }
    }
}

fn held(vault: &Vault, holder: Option<&[u8]>) -> RepositoryError {
    let holder = holder.and_then(|content| serde_json::from_slice::<LeaseNote>(content).ok());
    let (host, since) = holder.map_or_else(
        || ("an unknown host".to_owned(), "some time".to_owned()),
        |note| (note.host, format!("{:.0}", note.started)),
    );
    RepositoryError::Invalid(format!(
        "{} is being pruned by {host} since {since}: wait for it to end. A prune that died is out of the way after a day",
        vault.store.describe()
    ))
}
