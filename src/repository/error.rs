//! What can go wrong with a repository, as sentences.

use std::io;

use super::PackName;

/// What went wrong with the repository.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    #[error("{0}")]
    Invalid(String),
    #[error("{what}: {source}")]
    Io {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error(
        "there is no repository in {0} yet: the first backup makes it. If there should be one, check the mount and LIFEBOAT_REPOSITORY"
    )]
    NoRepository(String),
    #[error("{0} is not in the repository")]
    Missing(String),
    #[error("{0} exists already")]
    Exists(String),
    /// The store did not do it: unreachable, refusing, or out of order.
    #[error("{what}: {why}")]
    Remote {
        what: String,
        why: String,
        transient: bool,
    },
    #[error("{0} was kept: the store lets nobody delete it, or not with these credentials")]
    Refused(String),
    #[error("the run was asked to stop; nothing was committed")]
    Stopped,
    #[error("pack {pack} is damaged: {why}")]
    Damaged { pack: PackName, why: String },
    #[error(
        "{0} was not written by a holder of the repository's keys, or it is damaged: its seal is wrong"
    )]
    Forged(String),
    #[error(
        "this host holds only public keys (AGE_PUBLIC_KEYS), so it can write backups and not read them: set AGE_IDENTITY_FILE, or run this where the identity is"
    )]
    NoIdentity,
}

impl RepositoryError {
    pub(crate) fn io(what: impl Into<String>, source: io::Error) -> Self {
        let mut what = what.into();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                what.push_str(" (the disk is full: free some space, or lower BACKUP_KEEP_*; nothing was committed)");
            }
            io::ErrorKind::ReadOnlyFilesystem => {
                what.push_str(" (it is mounted read-only: mount it writable)");
            }
            io::ErrorKind::PermissionDenied => {
                what.push_str(" (check the owner and mode of the mounted directory)");
            }
            _ => {}
        }
        Self::Io { what, source }
    }

    /// Whether the same may succeed a while later.
    pub const fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Remote {
                transient: true,
                ..
            }
        )
    }

    /// Whether a deletion was refused (credentials without the right, object lock): the file is still there.
    pub const fn is_refused(&self) -> bool {
        matches!(self, Self::Refused(_))
    }

    /// The repository's content, not the way to it, is at fault.
    pub const fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::Damaged { .. } | Self::Missing(_) | Self::Forged(_)
        )
    }
}
