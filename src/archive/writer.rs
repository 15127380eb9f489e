//! Entries in, tar bytes out: the writer of one archive.

mod member;

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};

use super::cache::{CachedFile, FileIdentity};
use super::entry::{ArchiveError, Cut, EntryMeta, FileOutcome, OnChange};
use super::header::{self, Kind};
use super::walk::{self, EntryKind, Rules, TreeCounts};
use crate::repository::cutter::Cutter;
use crate::repository::sink::{EndedSink, OldPages, Sink};

pub use crate::repository::sink::SealedArchive;
pub use member::Member;

const RECORD: usize = 512;
const READ_BYTES: usize = 256 * 1024;
/// How often a file that changes is read before giving up.
const ATTEMPTS: u32 = 4;
/// A file younger than this when it is read may change again without its times telling.
const FRESH: Duration = Duration::from_secs(2);

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
        self.file_by_bytes(name.as_bytes(), path, cut, on_change, None, None)
    }

    /// Like [`Self::file`] for a file that must hash to `sha256` when it is read.
    pub fn file_with_digest(
        &mut self,
        name: &str,
        path: &Path,
        cut: Cut,
        sha256: &[u8; 32],
    ) -> Result<FileOutcome, ArchiveError> {
        self.file_by_bytes(
            name.as_bytes(),
            path,
            cut,
            OnChange::ReadAgain,
            Some(sha256),
            None,
        )
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
                    let (again, seen) = (OnChange::ReadAgain, Some(&entry.stat));
                    let outcome = self
                        .file_by_bytes(&name, &entry.path, cut, again, None, seen)
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

    /// `seen` is what `lstat` told a moment ago, where somebody looked already.
    pub(super) fn file_by_bytes(
        &mut self,
        name: &[u8],
        path: &Path,
        cut: Cut,
        on_change: OnChange,
        digest: Option<&[u8; 32]>,
        seen: Option<&std::fs::Metadata>,
    ) -> Result<FileOutcome, ArchiveError> {
        check_name(name)?;
        let failed = |source| ArchiveError::Read {
            path: path.to_owned(),
            source,
        };
        let looked = || {
            seen.cloned()
                .map_or_else(|| std::fs::symlink_metadata(path), Ok)
        };
        let meta = match looked() {
            Ok(meta) => meta,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(FileOutcome::Vanished),
            Err(e) => return Err(failed(e)),
        };
        let parent = self.sink.cached_file(name)?;
        if let Some(known) = &parent
            && known.file.identity == Some(identity(&meta))
            && !is_fresh(&meta)
        {
            self.sink.splice(name, known)?;
            return Ok(FileOutcome::Spliced { bytes: meta.size() });
        }
        for _ in 0..ATTEMPTS {
            let file = std::fs::OpenOptions::new()
                .read(true)
                .custom_flags(
                    (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK)
                        .bits()
                        .cast_signed(),
                )
                .open(path);
            let mut file = match file {
                Ok(file) => file,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                    return Ok(FileOutcome::Vanished);
                }
                Err(e) => return Err(failed(e)),
            };
            let before = file.metadata().map_err(failed)?;
            // Judged now: reading a large file takes longer than it stays fresh.
            let fresh = is_fresh(&before);
            if !before.is_file() {
                return Err(ArchiveError::Entry {
                    name: lossy(name),
                    why: "is not a regular file".to_owned(),
                });
            }
            let mark = self.sink.mark();
            let read = self.read_file(
                name,
                path,
                &mut file,
                &before,
                cut,
                parent.as_ref().map(|known| &known.file),
                digest.is_some(),
            )?;
            let after = file.metadata().map_err(failed)?;
            let held_still = identity(&before) == identity(&after) && !read.short;
            let only_grew = after.size() > before.size() && !read.short;
            if held_still || only_grew || on_change == OnChange::Repaired {
                if let (Some(expected), Some(found)) = (digest, read.sha256)
                    && found != *expected
                {
                    self.sink.rewind(mark);
                    return Err(ArchiveError::Digest {
                        path: path.to_owned(),
                        found: crate::repository::hex(&found),
                    });
                }
                let trusted = held_still && !fresh;
                let file = CachedFile {
                    identity: trusted.then(|| identity(&before)),
                    ranges: self.sink.since(&mark),
                    header_bytes: read.header_bytes,
                };
                self.sink.remember(name, &file, &read.pages)?;
                return Ok(FileOutcome::Read {
                    bytes: before.size(),
                });
            }
            self.sink.rewind(mark);
        }
        Err(ArchiveError::KeepsChanging(path.to_owned()))
    }

    /// Writes header and body of an open file; the body is exactly as long as `meta` says.
    #[allow(clippy::too_many_arguments)]
    fn read_file(
        &mut self,
        name: &[u8],
        path: &Path,
        file: &mut File,
        meta: &std::fs::Metadata,
        cut: Cut,
        parent: Option<&CachedFile>,
        hash: bool,
    ) -> Result<ReadFile, ArchiveError> {
        let size = meta.size();
        let cut = cut.for_size(size);
        let failed = |source| ArchiveError::Read {
            path: path.to_owned(),
            source,
        };
        let entry = EntryMeta {
            xattrs: match walk::xattrs(path) {
                // Gone since it was opened: its content is still ours.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
                other => other.map_err(failed)?,
            },
            ..EntryMeta::of(meta)
        };
        let header = header::encode(name, &entry, Kind::File { size });
        self.sink.begin_body(cut);
        self.sink.block(&header)?;
        let old_ids = match (cut, parent) {
            (Cut::Pages(_), Some(_)) => self.sink.cached_pages(name)?,
            _ => Vec::new(),
        };
        let mut old = match (cut, parent) {
            (Cut::Pages(unit), Some(parent)) => OldPages::new(unit, parent, &old_ids),
            _ => OldPages::none(),
        };
        let mut pages = Vec::new();
        let mut sha256 = hash.then(Sha256::new);
        let mut cutter = Cutter::new(cut, size);
        let mut left = size;
        let mut short = false;
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(READ_BYTES).min(READ_BYTES);
            let piece = self.buffer.get_mut(..want).unwrap_or_default();
            let got = read_full(file, piece).map_err(failed)?;
            if got < want {
                // Shorter than its header says: pad, so that the stream stays whole.
                short = true;
                piece.iter_mut().skip(got).for_each(|byte| *byte = 0);
            }
            if let Some(sha256) = &mut sha256 {
                sha256.update(&*piece);
            }
            self.sink.count_read(got as u64);
            let sink = &mut self.sink;
            cutter.feed(piece, |block| {
                sink.body_block(cut, block, &mut old, &mut pages)
            })?;
            left -= want as u64;
        }
        let padding = padding(size);
        let sink = &mut self.sink;
        cutter.feed(&padding, |block| {
            sink.body_block(cut, block, &mut old, &mut pages)
        })?;
        cutter.finish(|block| sink.body_block(cut, block, &mut old, &mut pages))?;
        Ok(ReadFile {
            header_bytes: header.len() as u64,
            pages,
            sha256: sha256.map(|hash| hash.finalize().into()),
            short,
        })
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

struct ReadFile {
    header_bytes: u64,
    pages: Vec<crate::repository::table::PageId>,
    sha256: Option<[u8; 32]>,
    short: bool,
}

/// Zeros that fill the last record of a body.
fn padding(size: u64) -> Vec<u8> {
    let record = RECORD as u64;
    vec![0; usize::try_from(size.next_multiple_of(record) - size).unwrap_or(0)]
}

fn identity(meta: &std::fs::Metadata) -> FileIdentity {
    let nanos = |secs: i64, nanos: i64| secs.saturating_mul(1_000_000_000).saturating_add(nanos);
    FileIdentity {
        inode: meta.ino(),
        ctime_ns: nanos(meta.ctime(), meta.ctime_nsec()),
        mtime_ns: nanos(meta.mtime(), meta.mtime_nsec()),
        size: meta.size(),
    }
}

/// Changed within the last two seconds, or in the future: its times prove nothing.
fn is_fresh(meta: &std::fs::Metadata) -> bool {
    let trusted_until = SystemTime::now()
        .checked_sub(FRESH)
        .and_then(|t| t.duration_since(UNIX_EPOCH).ok())
        .map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX));
    let id = identity(meta);
    id.mtime_ns > trusted_until || id.ctime_ns > trusted_until
}

fn read_full(file: &mut File, buf: &mut [u8]) -> std::io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read(rest) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
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
