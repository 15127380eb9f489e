//! Where the repository's files lie: one trait, one file a backend.

mod local;

pub use local::LocalStore;

use std::io::{self, Read, Write};

use super::RepositoryError;

/// A flat space of immutable files, named by relative `/`-separated keys.
///
/// Contract: when `put` or `publish` returns, the file is durable and complete under its key; before that
/// nothing is visible there. A key that exists is never overwritten: `put` fails with
/// [`RepositoryError::Exists`], `publish` of a content-named file takes the one that is there as its own.
/// All methods block.
pub trait Store: Send + Sync {
    /// Stores a small file under a new key.
    fn put(&self, key: &str, bytes: &[u8]) -> Result<(), RepositoryError>;

    /// Opens a place to write a large file to before its name is known.
    fn spool(&self) -> Result<Box<dyn Spool>, RepositoryError>;

    /// Reads a whole small file; refuses one larger than `limit_bytes`.
    fn get(&self, key: &str, limit_bytes: u64) -> Result<Vec<u8>, RepositoryError>;

    /// Opens a file for reading at positions.
    fn open(&self, key: &str) -> Result<Box<dyn Blob>, RepositoryError>;

    /// Every key below `prefix` (a directory), with its size, in no particular order.
    fn list(&self, prefix: &str) -> Result<Vec<Entry>, RepositoryError>;

    /// Removes a file; one that is not there is fine.
    fn delete(&self, key: &str) -> Result<(), RepositoryError>;

    /// Removes unfinished files that no living backup can still be writing.
    fn remove_abandoned(&self) -> Result<(), RepositoryError>;

    /// Proves that files can be created and removed.
    fn check_writable(&self) -> Result<(), RepositoryError>;

    /// Free bytes, where the backend has such a limit.
    fn free_bytes(&self) -> Option<u64>;

    /// How messages name it.
    fn describe(&self) -> String;
}

/// One stored file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub size: u64,
}

/// A file being written; dropping it leaves nothing behind.
pub trait Spool: Write + Send {
    /// Makes what was written durable under `key`.
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
