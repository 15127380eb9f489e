//! A file that takes space so that a prune has some when the disk is full.

use crate::repository::RepositoryError;
use crate::repository::store::Store;

const KEY: &str = "reserve";
const BYTES: usize = 8 * 1024 * 1024;
/// With less than this free, even small files may not fit.
const FULL_BELOW_BYTES: u64 = 4 * 1024 * 1024;

/// Gives the reserve up when the disk is full.
pub fn give(store: &dyn Store) -> Result<(), RepositoryError> {
    if !store.is_remote()
        && store
            .free_bytes()
            .is_some_and(|free| free < FULL_BELOW_BYTES)
    {
        tracing::info!("the disk is full: the reserve is given up for the prune");
        store.delete(KEY)?;
    }
    Ok(())
}

/// Makes the reserve where there is none and space allows.
pub fn put_back(store: &dyn Store) -> Result<(), RepositoryError> {
    let room = BYTES as u64 * 4;
    if store.is_remote() || store.free_bytes().is_none_or(|free| free < room) {
        return Ok(());
    }
    match store.open(KEY) {
        Err(RepositoryError::Missing(_)) => {}
        other => return other.map(drop),
    }
    // A file system that compresses or knows copies must not make nothing of it.
    let mut bytes = vec![0; BYTES];
    rand::fill(&mut bytes);
    match store.put(KEY, &bytes) {
        Err(RepositoryError::Exists(_)) => Ok(()),
        other => other,
    }
}
