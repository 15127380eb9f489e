//! The steps of a backup that read files: the tree, the control file, the WAL.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::access::Access;
use super::control::{ControlError, ControlFile};
use super::facts::Owner;
use super::listing::Listing;
use super::pages::{DamagedPages, PageCheck, PageRules};
use super::room::Unkept;
use super::server::Server;
use super::tree::{DataTree, Entry, TreeError};
use super::wal::{self, Expected, SegmentError};
use crate::archive::{ArchiveError, ArchiveWriter, Cut, EntryMeta, FileOutcome, OnChange, Watch};
use crate::services::{ErrorKind, ServiceError};

/// How often the session is used while files are copied: its loss is noticed then, not hours later.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// A server and its data directory, as the server and as this process see it.
#[derive(Debug, Clone)]
pub struct Source {
    pub access: Access,
    pub server: Server,
    pub data: PathBuf,
}

/// What is noted of the files as they are copied.
pub struct Noted<'a> {
    pub listing: &'a mut Listing,
    pub damaged: &'a mut DamagedPages,
}

/// Why files could not be copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error("cannot keep the list of files in the scratch directory: {0}")]
    Listing(#[source] std::io::Error),
    #[error(transparent)]
    Service(#[from] ServiceError),
}

impl Source {
    /// Visits what a backup holds; see [`DataTree::walk`].
    pub fn walk<E: From<TreeError>>(
        &self,
        visit: &mut dyn FnMut(Entry) -> Result<(), E>,
    ) -> Result<(), E> {
        self.with_tree(|tree| tree.walk(visit))
    }

    /// Begins the list of the files that a backup holds.
    pub fn listing(&self, scratch: &Path) -> Result<Listing, ServiceError> {
        Listing::begin(scratch, self.server.major(), self.server.system_identifier)
            .map_err(|err| self.copy_error(CopyError::Listing(err)))
    }

    /// Copies the tree, all but `global/pg_control`, in a backup that began at `start`. `heartbeat` is called
    /// now and then. Blocks.
    pub fn copy(
        &self,
        archive: &mut ArchiveWriter,
        start: wal::Lsn,
        noted: &mut Noted<'_>,
        heartbeat: &mut dyn FnMut() -> Result<(), ServiceError>,
    ) -> Result<(), ServiceError> {
        let rules = PageRules {
            block_bytes: self.server.block_bytes,
            start,
        };
        let segment_blocks = self.control()?.segment_blocks;
        let mut beat = Instant::now();
        self.walk::<CopyError>(&mut |entry| {
            match entry {
                Entry::Directory { name, metadata } => {
                    archive.directory(&name, &EntryMeta::of(&metadata))?;
                }
                Entry::File {
                    name,
                    path,
                    shown,
                    pages,
                } => {
                    let checked = pages && self.server.page_checksums;
                    let mut check = checked.then(|| PageCheck::new(rules, &name, segment_blocks));
                    let cut = if pages {
                        Cut::Pages(rules.block_bytes)
                    } else {
                        Cut::Content
                    };
                    let watch = check.as_mut().map(|check| check as &mut dyn Watch);
                    // A file that vanished, grew or shrank is repaired by replaying the WAL.
                    let sum = archive
                        .summed_file(&name, &path, cut, OnChange::Repaired, watch)
                        .map_err(|err| err.shown_as(&shown))?;
                    if let Some(sum) = sum {
                        noted.listing.add(&name, &sum).map_err(CopyError::Listing)?;
                    }
                    if let Some(check) = check {
                        noted.damaged.add(&name, &check.damaged);
                    }
                }
            }
            if beat.elapsed() >= HEARTBEAT {
                heartbeat()?;
                beat = Instant::now();
            }
            Ok(())
        })
        .map_err(|err| self.copy_error(err))
    }

    /// The control file, checked to be this server's. Blocks.
    pub fn control(&self) -> Result<ControlFile, ServiceError> {
        read_control(&self.access.service, &self.data)
    }

    /// Writes the WAL between two segments, each checked before and after it is read. Blocks.
    ///
    /// Each segment is marked as archived: after a restore it must not be archived again.
    pub fn write_wal(
        &self,
        archive: &mut ArchiveWriter,
        segments: &SegmentRun,
        unkept: &dyn Fn() -> Option<Unkept>,
    ) -> Result<(), ServiceError> {
        let directory = self.wal_directory()?;
        let meta = self.small_file_meta()?;
        for segment in segments.first..=segments.last {
            let expected = segments.expected(segment, self.server.system_identifier);
            let name = segments.size.name(segments.timeline, segment);
            let path = directory.join(&name);
            self.check_segment(&path, &expected, unkept)?;
            let outcome = archive
                .file(
                    &format!("pg_wal/{name}"),
                    &path,
                    Cut::Content,
                    OnChange::Repaired,
                )
                .map_err(|err| self.copy_error(err.into()))?;
            if outcome == FileOutcome::Vanished {
                return Err(self.wal_gone(&path, unkept));
            }
            // Without a slot it may have been recycled under the reader's hands.
            self.check_segment(&path, &expected, unkept)?;
            self.mark_archived(archive, &name, &meta)?;
        }
        self.write_histories(archive, &directory, &meta)
    }

    /// Where the WAL lies, as this process sees it.
    pub fn wal_directory(&self) -> Result<PathBuf, ServiceError> {
        let found = self.with_tree(|tree| {
            let directory = tree.wal_directory();
            directory.map_err(CopyError::from)
        });
        found.map_err(|err| self.copy_error(err))
    }

    /// What small files that this program writes into the archive look like.
    pub fn small_file_meta(&self) -> Result<EntryMeta, ServiceError> {
        let owner = self.owner()?;
        let now = Timestamp::now();
        Ok(EntryMeta {
            // `initdb --allow-group-access` shows in the directory's mode.
            mode: 0o600 | (owner.mode & 0o040),
            uid: owner.uid,
            gid: owner.gid,
            mtime_secs: now.as_second(),
            mtime_nanos: 0,
            xattrs: Vec::new(),
        })
    }

    pub fn owner(&self) -> Result<Owner, ServiceError> {
        let metadata = std::fs::metadata(&self.data).map_err(|err| {
            self.access.error(
                ErrorKind::Io,
                format!("cannot read {}: {err}", self.data.display()),
            )
        })?;
        Ok(Owner {
            uid: metadata.uid(),
            gid: metadata.gid(),
            mode: metadata.mode() & 0o7777,
        })
    }

    fn write_histories(
        &self,
        archive: &mut ArchiveWriter,
        directory: &Path,
        meta: &EntryMeta,
    ) -> Result<(), ServiceError> {
        let mut names = Vec::new();
        let failed = |err: std::io::Error| {
            self.access.error(
                ErrorKind::Io,
                format!("cannot read {}: {err}", directory.display()),
            )
        };
        for entry in std::fs::read_dir(directory).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            if let Some(name) = name.to_str().filter(|name| wal::is_history_name(name)) {
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        for name in names {
            archive
                .file(
                    &format!("pg_wal/{name}"),
                    &directory.join(&name),
                    Cut::Content,
                    OnChange::ReadAgain,
                )
                .map_err(|err| self.copy_error(err.into()))?;
            self.mark_archived(archive, &name, meta)?;
        }
        Ok(())
    }

    fn mark_archived(
        &self,
        archive: &mut ArchiveWriter,
        name: &str,
        meta: &EntryMeta,
    ) -> Result<(), ServiceError> {
        archive
            .bytes(&format!("pg_wal/archive_status/{name}.done"), meta, b"")
            .map_err(|err| self.copy_error(err.into()))
    }

    fn check_segment(
        &self,
        path: &Path,
        expected: &Expected,
        unkept: &dyn Fn() -> Option<Unkept>,
    ) -> Result<(), ServiceError> {
        match wal::check_segment(path, expected) {
            Ok(()) => Ok(()),
            Err(SegmentError::Read(err)) if err.kind() == std::io::ErrorKind::NotFound => {
                Err(self.wal_gone(path, unkept))
            }
            Err(SegmentError::Read(err)) => Err(self.access.error(
                ErrorKind::Io,
                format!("cannot read {}: {err}", path.display()),
            )),
            Err(SegmentError::Foreign(why)) => Err(self.access.error(
                ErrorKind::Damaged,
                format!(
                    "the WAL segment {} is not what its name says: {why}. Is the right pg_wal mounted?",
                    path.display()
                ),
            )),
        }
    }

    fn wal_gone(&self, path: &Path, unkept: &dyn Fn() -> Option<Unkept>) -> ServiceError {
        let advice = unkept().map_or_else(
            || "max_slot_wal_keep_size lets the server drop WAL that the backup's slot needs: raise it".to_owned(),
            |unkept| unkept.advice(),
        );
        self.access.error(
            ErrorKind::Setup,
            format!(
                "the server removed the WAL segment {} before it could be copied, so this backup could not be restored; {advice}",
                path.display()
            ),
        )
    }

    fn with_tree<T>(&self, act: impl FnOnce(&DataTree<'_>) -> T) -> T {
        let theirs = PathBuf::from(&self.server.data_directory);
        let map = |path: &Path| self.access.local_path(path, Some((&theirs, &self.data)));
        act(&DataTree {
            root: &self.data,
            map: &map,
            version_directory: &self.server.version_directory(),
        })
    }

    pub fn copy_error(&self, err: CopyError) -> ServiceError {
        let (kind, message) = match &err {
            CopyError::Tree(TreeError::Refused(why)) => (ErrorKind::Setup, why.clone()),
            CopyError::Tree(TreeError::Read { source, .. })
            | CopyError::Archive(ArchiveError::Read { source, .. })
                if source.kind() == std::io::ErrorKind::PermissionDenied =>
            {
                (
                    ErrorKind::Denied,
                    format!(
                        "{err}: Lifeboat must run as root with the capability DAC_READ_SEARCH, or as the owner of the files"
                    ),
                )
            }
            _ => (ErrorKind::Io, err.to_string()),
        };
        match err {
            CopyError::Service(err) => err,
            err => self.access.error(kind, message).with_source(err),
        }
    }
}

/// Reads the control file of a data directory; failures are sentences.
pub fn read_control(service: &str, data: &Path) -> Result<ControlFile, ServiceError> {
    ControlFile::read(data).map_err(|err| {
        let path = data.join("global/pg_control");
        let (kind, message) = match &err {
            ControlError::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound => (
                ErrorKind::Setup,
                format!(
                    "{} is not there: {} is not PostgreSQL's data directory. Mount the server's data volume, or set POSTGRES_DATA",
                    path.display(),
                    data.display()
                ),
            ),
            ControlError::Read { .. } => (ErrorKind::Io, err.to_string()),
            ControlError::UnknownVersion(_) => (ErrorKind::Setup, format!("{}: {err}", path.display())),
            ControlError::Short(_) | ControlError::Checksum => {
                (ErrorKind::Damaged, format!("{}: {err}", path.display()))
            }
        };
        ServiceError::new(service, kind, message).with_source(err)
    })
}

/// The segments that a backup needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentRun {
    pub timeline: u32,
    pub size: wal::SegmentSize,
    pub first: u64,
    /// The one that holds the last byte before the stop.
    pub last: u64,
}

impl SegmentRun {
    pub const fn between(
        timeline: u32,
        size: wal::SegmentSize,
        start: wal::Lsn,
        stop: wal::Lsn,
    ) -> Self {
        Self {
            timeline,
            size,
            first: size.segment_at(start),
            last: size.segment_before(stop),
        }
    }

    pub const fn count(&self) -> u64 {
        (self.last + 1).saturating_sub(self.first)
    }

    const fn expected(&self, segment: u64, system_identifier: u64) -> Expected {
        Expected {
            timeline: self.timeline,
            segment,
            size: self.size,
            system_identifier,
        }
    }
}
