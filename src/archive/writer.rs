//! Entries in, tar bytes out: the writer of one archive.

mod file;
mod member;

use std::collections::HashSet;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::entry::{ArchiveError, Cut, EntryMeta, FileOutcome, OnChange};
use super::header::{self, Kind};
use super::walk::{self, EntryKind, Rules, TreeCounts};
use crate::repository::RepositoryError;
use crate::repository::cutter::Cutter;
use crate::repository::sink::{EndedSink, Sink};

pub use crate::repository::sink::SealedArchive;
pub use file::{FileSum, Taking, Watch};
pub use member::Member;

const RECORD: usize = 512;
const READ_BYTES: usize = 256 * 1024;

/// One archive being written. Every method blocks: call it inside `block_in_place` or on a blocking thread.
///
/// Names are relative, `/`-separated, without `.` or `..`. Entries appear in the order of the calls.
pub struct ArchiveWriter {
    sink: Sink,
    buffer: Vec<u8>,
    /// A member was begun and not finished: the stream is broken.
    torn: bool,
}

impl ArchiveWriter {
    pub(crate) fn new(sink: Sink) -> Self {
        Self {
            sink,
            buffer: vec![0; READ_BYTES],
            torn: false,
        }
    }

    pub fn directory(&mut self, name: &str, meta: &EntryMeta) -> Result<(), ArchiveError> {
        self.plain_entry(name.as_bytes(), meta, Kind::Directory, &[])
    }

    pub fn symlink(
        &mut self,
        name: &str,
        target: &Path,
        meta: &EntryMeta,
    ) -> Result<(), ArchiveError> {
        self.plain_entry(
            name.as_bytes(),
            meta,
            Kind::Symlink {
                target: target.as_os_str().as_bytes(),
            },
            &[],
        )
    }

    /// `existing` is the name of an entry written before.
    pub fn hard_link(
        &mut self,
        name: &str,
        existing: &str,
        meta: &EntryMeta,
    ) -> Result<(), ArchiveError> {
        check_name(existing.as_bytes())?;
        self.plain_entry(
            name.as_bytes(),
            meta,
            Kind::HardLink {
                existing: existing.as_bytes(),
            },
            &[],
        )
    }

    /// A small file from memory.
    pub fn bytes(&mut self, name: &str, meta: &EntryMeta, body: &[u8]) -> Result<(), ArchiveError> {
        self.plain_entry(
            name.as_bytes(),
            meta,
            Kind::File {
                size: body.len() as u64,
            },
            body,
        )
    }

    /// A regular file from disk, or its ranges when `(path, inode, ctime, mtime, size)` are the parent's.
    pub fn file(
        &mut self,
        name: &str,
        path: &Path,
        cut: Cut,
        on_change: OnChange,
    ) -> Result<FileOutcome, ArchiveError> {
        let taking = Taking::new(cut, on_change);
        Ok(self.take_file(name.as_bytes(), path, taking)?.0)
    }

    /// Like [`Self::file`], with the CRC-32C of the body; `None` when the file was gone.
    ///
    /// `watch` sees the body when it is read. What it approved of once, it does not see again while the file
    /// stays as it is.
    pub fn summed_file(
        &mut self,
        name: &str,
        path: &Path,
        cut: Cut,
        on_change: OnChange,
        watch: Option<&mut dyn Watch>,
    ) -> Result<Option<FileSum>, ArchiveError> {
        let taking = Taking {
            summed: true,
            watch,
            ..Taking::new(cut, on_change)
        };
        Ok(self.take_file(name.as_bytes(), path, taking)?.1)
    }

    /// Like [`Self::file`] for a file that must hash to `sha256` when it is read.
    pub fn file_with_digest(
        &mut self,
        name: &str,
        path: &Path,
        cut: Cut,
        sha256: &[u8; 32],
    ) -> Result<FileOutcome, ArchiveError> {
        let taking = Taking {
            sha256: Some(sha256),
            ..Taking::new(cut, OnChange::ReadAgain)
        };
        Ok(self.take_file(name.as_bytes(), path, taking)?.0)
    }

    /// A file of known size that arrives in pieces; exactly `size` bytes must be written before `finish`.
    pub fn member(
        &mut self,
        name: &str,
        meta: &EntryMeta,
        size: u64,
        cut: Cut,
    ) -> Result<Member<'_>, ArchiveError> {
        check_name(name.as_bytes())?;
        self.torn = true;
        self.sink.begin_body(cut);
        self.sink
            .block(&header::encode(name.as_bytes(), meta, Kind::File { size }))?;
        Ok(Member {
            cutter: Cutter::new(cut, size),
            name: name.to_owned(),
            left: size,
            size,
            counted: true,
            writer: self,
        })
    }

    /// Copies a whole directory tree below `prefix` (empty for the archive's root) by the rules of `walk`.
    pub fn tree(
        &mut self,
        prefix: &str,
        root: &Path,
        rules: &Rules,
    ) -> Result<TreeCounts, ArchiveError> {
        let full = |name: &[u8]| match prefix {
            "" => name.to_vec(),
            _ => [prefix.as_bytes(), b"/", name].concat(),
        };
        if !prefix.is_empty() {
            self.directory(prefix, &walk::meta_of(root)?)?;
        }
        let mut vanished = HashSet::new();
        let mut walk = walk::walk(root, rules);
        for entry in walk.by_ref() {
            let entry = entry?;
            let name = full(&entry.name);
            match &entry.kind {
                EntryKind::Directory => {
                    self.plain_entry(&name, &entry.meta, Kind::Directory, &[])?;
                }
                EntryKind::Symlink { target } => {
                    let target = target.as_os_str().as_bytes();
                    self.plain_entry(&name, &entry.meta, Kind::Symlink { target }, &[])?;
                }
                EntryKind::HardLink { existing } if !vanished.contains(existing) => {
                    let existing = &full(existing);
                    self.plain_entry(&name, &entry.meta, Kind::HardLink { existing }, &[])?;
                }
                EntryKind::File | EntryKind::HardLink { .. } => {
                    let cut = rules
                        .page_bytes(&entry.name)
                        .map_or(Cut::Content, Cut::Pages);
                    let taking = Taking {
                        seen: Some(&entry.stat),
                        ..Taking::new(cut, OnChange::ReadAgain)
                    };
                    let (outcome, _) = self
                        .take_file(&name, &entry.path, taking)
                        .map_err(|e| e.shown_as(&entry.shown))?;
                    // A later link must not point to an entry that was never written.
                    if outcome == FileOutcome::Vanished && entry.stat.nlink() > 1 {
                        vanished.insert(entry.name);
                    }
                }
            }
        }
        Ok(walk.counts())
    }

    /// Ends and seals an archive that was written alone.
    pub fn seal(self) -> Result<SealedArchive, ArchiveError> {
        self.end()?.seal()
    }

    /// Writes the end of the tar stream and publishes the last pack.
    ///
    /// Of archives that were written at the same time, each must be ended before any is sealed.
    pub fn end(mut self) -> Result<EndedArchive, ArchiveError> {
        if self.torn {
            return Err(ArchiveError::Entry {
                name: "(last)".to_owned(),
                why: "was not written to its end: the archive is incomplete".to_owned(),
            });
        }
        self.sink.block(&[0; 2 * RECORD])?;
        Ok(EndedArchive(self.sink.end()?))
    }

    /// Ends several at once; their order stays. The first failure, when all have ended.
    pub fn end_all(archives: Vec<Self>) -> Result<Vec<EndedArchive>, ArchiveError> {
        std::thread::scope(|scope| {
            let end = |archive: Self| {
                std::thread::Builder::new()
                    .name("end".to_owned())
                    .spawn_scoped(scope, || archive.end())
                    .map_err(|e| RepositoryError::io("start a thread", e))
            };
            let ending: Vec<_> = archives.into_iter().map(end).collect();
            let ended: Vec<_> = ending
                .into_iter()
                .map(|ending| {
                    ending?
                        .join()
                        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
                .collect();
            ended.into_iter().collect()
        })
    }

    /// An entry whose body, if any, is in memory.
    pub(super) fn plain_entry(
        &mut self,
        name: &[u8],
        meta: &EntryMeta,
        kind: Kind<'_>,
        body: &[u8],
    ) -> Result<(), ArchiveError> {
        check_name(name)?;
        self.sink.begin_body(Cut::Content);
        self.sink.block(&header::encode(name, meta, kind))?;
        let mut cutter = Cutter::new(Cut::Content, body.len() as u64);
        let mut padded = body.to_vec();
        padded.resize(body.len().next_multiple_of(RECORD), 0);
        cutter.feed(&padded, |block| self.sink.block(block))?;
        cutter.finish(|block| self.sink.block(block))?;
        Ok(())
    }
}

/// An archive whose stream is whole and in the store.
pub struct EndedArchive(EndedSink);

impl EndedArchive {
    /// Says where its bytes are, which may be in packs of other archives of the backup.
    pub fn seal(self) -> Result<SealedArchive, ArchiveError> {
        Ok(self.0.seal()?)
    }
}

/// Zeros that fill the last record of a body.
fn padding(size: u64) -> Vec<u8> {
    let record = RECORD as u64;
    vec![0; usize::try_from(size.next_multiple_of(record) - size).unwrap_or(0)]
}

fn check_name(name: &[u8]) -> Result<(), ArchiveError> {
    let plain = !name.is_empty()
        && !name.contains(&0)
        && name
            .split(|b| *b == b'/')
            .all(|part| !part.is_empty() && part != b"." && part != b"..");
    if plain {
        return Ok(());
    }
    Err(ArchiveError::Entry {
        name: lossy(name),
        why: "is not a relative path without `.` and `..`".to_owned(),
    })
}

fn lossy(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}
