//! Where the repository's files lie: one trait, one file a backend.

mod file_blob;
mod local;
mod s3;

pub use local::LocalStore;
pub use s3::{Patience, S3Options, S3Store};

use std::io::{self, Read, Write};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::RepositoryError;
use crate::config::{Config, RepositoryPlace};

/// The store that `LIFEBOAT_REPOSITORY` names. Nothing is read or written yet.
pub fn connect(config: &Config) -> Result<Arc<dyn Store>, RepositoryError> {
    connect_to(config, &config.repository)
}

/// The store at another place, reached with the same settings.
pub fn connect_to(
    config: &Config,
    place: &RepositoryPlace,
) -> Result<Arc<dyn Store>, RepositoryError> {
    Ok(match place {
        RepositoryPlace::Directory(dir) => Arc::new(LocalStore::new(dir)),
        RepositoryPlace::S3 { bucket, prefix } => Arc::new(S3Store::connect(S3Options {
            bucket: bucket.clone(),
            prefix: prefix.clone(),
            access: config.s3.clone(),
            scratch: config.state.join("spool"),
            patience: Patience::default(),
        })?),
    })
}

/// Keys are plain relative paths: what a file system and a bucket both take as they are.
fn check_key(key: &str) -> Result<(), RepositoryError> {
    let plain = !key.is_empty()
        && key
            .split('/')
            .all(|part| !part.is_empty() && part != "." && part != "..");
    if plain {
        Ok(())
    } else {
        Err(RepositoryError::Invalid(format!("\"{key}\" is not a key")))
    }
}

/// No backup lives longer than its lease.
const ABANDONED_AFTER: SignedDuration = SignedDuration::from_hours(24);

/// A flat space of immutable files, named by relative `/`-separated keys.
///
/// Contract: when `put`, `publish` or `replace` returns, the file is durable and complete under its key; before
/// that nothing of it is visible there. `put` and `publish` never overwrite: of several writers of one key one
/// succeeds, and the others get [`RepositoryError::Exists`]. Times are the store's own: the clock of this
/// machine has no part in them. All methods block.
pub trait Store: Send + Sync {
    /// Stores a small file under a new key.
    fn put(&self, key: &str, bytes: &[u8]) -> Result<(), RepositoryError>;

    /// Stores small files under new keys; all of them are durable and complete when it returns. When it fails,
    /// some may be there.
    fn put_all(&self, files: Vec<(String, Vec<u8>)>) -> Result<(), RepositoryError> {
        files
            .iter()
            .try_for_each(|(key, bytes)| self.put(key, bytes))
    }

    /// Stores a small file in place of one that may exist: a reader sees the old content or the new one. For
    /// the configuration, wrapped keys and locks; nothing else ever changes.
    fn replace(&self, key: &str, bytes: &[u8]) -> Result<(), RepositoryError>;

    /// Opens a place to write a large file to before its name is known.
    fn spool(&self) -> Result<Box<dyn Spool>, RepositoryError>;

    /// Reads a whole small file; refuses one larger than `limit_bytes`.
    fn get(&self, key: &str, limit_bytes: u64) -> Result<Vec<u8>, RepositoryError>;

    /// Opens a file for reading at positions.
    fn open(&self, key: &str) -> Result<Box<dyn Blob>, RepositoryError>;

    /// The whole file near by, for many reads at positions; what is read of it was checked to be all of it.
    fn fetch(&self, key: &str) -> Result<Box<dyn Blob>, RepositoryError> {
        self.open(key)
    }

    /// Every key below `prefix` (a directory) with its size and time, in no particular order.
    fn list(&self, prefix: &str) -> Result<Vec<Entry>, RepositoryError>;

    /// Removes a file; one that is not there is fine.
    fn delete(&self, key: &str) -> Result<(), RepositoryError>;

    /// Removes unfinished files that no living backup can still be writing. Leases are the prune's business.
    fn remove_abandoned(&self) -> Result<(), RepositoryError>;

    /// The store's own clock: what a file written now would have as its time of modification.
    fn now(&self) -> Result<Timestamp, RepositoryError>;

    /// Proves that files can be created and removed.
    fn check_writable(&self) -> Result<(), RepositoryError>;

    /// Free bytes, where the backend has such a limit.
    fn free_bytes(&self) -> Option<u64>;

    /// Whether it is at the other end of a network: a read costs a round trip, and others keep the disks.
    fn is_remote(&self) -> bool;

    /// How messages name it.
    fn describe(&self) -> String;
}

/// One stored file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub size: u64,
    /// When it was written, by the store's clock.
    pub modified: Timestamp,
}

/// A file being written; dropping it leaves nothing behind.
pub trait Spool: Write + Send {
    /// Makes what was written durable under `key`, which must be free.
    fn publish(self: Box<Self>, key: &str) -> Result<(), RepositoryError>;
}

/// A stored file, read at positions.
pub trait Blob: Send {
    fn size(&self) -> u64;

    /// Fills `buf` from `offset`; fewer bytes than that are an error.
    fn read_exact_at(&mut self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// The whole file from the start.
    fn stream(&mut self) -> io::Result<Box<dyn Read + '_>>;
}
