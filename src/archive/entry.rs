//! What is told of an entry, and what may go wrong with it.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::repository::RepositoryError;

/// How the body of an entry is cut into blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Fixed pages of this many bytes, compared position by position with the parent's: database files.
    Pages(u32),
    /// Fixed blocks of this many bytes, looked up among all others: small database files.
    Blocks(u32),
    /// A tar inside the archive (a Qdrant snapshot): blocks begin anew at each of its members.
    Members,
    /// Content-defined chunks: everything else.
    Content,
    /// Large files that never change and do not compress: model blobs.
    Model,
}

/// Below it, pages are worth looking up among all others: the catalogs of a cluster's databases are copies of
/// one template's, megabytes each, in files smaller than this.
const SMALL_PAGED_BYTES: u64 = 1024 * 1024;

impl Cut {
    /// How a file of this size is cut.
    #[must_use]
    pub const fn for_size(self, size: u64) -> Self {
        match self {
            Self::Pages(unit) if size <= SMALL_PAGED_BYTES => Self::Blocks(unit),
            other => other,
        }
    }
}

/// What to do when a file changes while it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnChange {
    /// Pad or cut it to its header's size: the service's own recovery repairs it (PostgreSQL).
    Repaired,
    /// Read it again, and fail when it never holds still. A file that only grows (a log) is taken as long
    /// as it was when it was opened.
    ReadAgain,
}

/// Owner, mode, times and extended attributes of an entry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EntryMeta {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime_secs: i64,
    pub mtime_nanos: u32,
    pub xattrs: Vec<(String, Vec<u8>)>,
}

impl EntryMeta {
    /// Owner, mode and time as `stat` tells them, without extended attributes.
    pub fn of(meta: &std::fs::Metadata) -> Self {
        Self {
            mode: meta.mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
            mtime_secs: meta.mtime(),
            mtime_nanos: u32::try_from(meta.mtime_nsec()).unwrap_or(0),
            xattrs: Vec::new(),
        }
    }
}

/// How a file got into the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileOutcome {
    /// Unchanged since the parent: its ranges were spliced in, nothing was read.
    Spliced {
        bytes: u64,
    },
    Read {
        bytes: u64,
    },
    /// It was gone when it was opened; nothing was written.
    Vanished,
}

#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("cannot read {}: {source}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} kept changing while it was read: stop what writes to it during the backup, or exclude it", .0.display())]
    KeepsChanging(PathBuf),
    #[error("{} does not match its own name: SHA-256 is {found}", path.display())]
    Digest { path: PathBuf, found: String },
    #[error("entry {name}: {why}")]
    Entry { name: String, why: String },
    #[error(transparent)]
    Repository(#[from] RepositoryError),
}

impl ArchiveError {
    /// Names a file that was opened through its directory's descriptor as people know it.
    #[must_use]
    pub fn shown_as(mut self, shown: &Path) -> Self {
        match &mut self {
            Self::Read { path, .. } | Self::KeepsChanging(path) | Self::Digest { path, .. } => {
                shown.clone_into(path);
            }
            Self::Entry { .. } | Self::Repository(_) => {}
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_small_files_are_looked_up_among_all() {
        assert_eq!(Cut::Pages(8192).for_size(8192), Cut::Blocks(8192));
        assert_eq!(
            Cut::Pages(8192).for_size(SMALL_PAGED_BYTES),
            Cut::Blocks(8192)
        );
        assert_eq!(
            Cut::Pages(8192).for_size(SMALL_PAGED_BYTES + 1),
            Cut::Pages(8192)
        );
        assert_eq!(Cut::Content.for_size(8192), Cut::Content);
    }
}
