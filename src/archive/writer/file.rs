//! A regular file from disk: spliced in unread when it is the parent's, else read.

use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};

use super::{ArchiveWriter, READ_BYTES, check_name, lossy, padding};
use crate::archive::cache::{CachedFile, FileIdentity, KnownFile};
use crate::archive::entry::{ArchiveError, Cut, EntryMeta, FileOutcome, OnChange};
use crate::archive::header::{self, Kind};
use crate::archive::walk;
use crate::repository::cutter::{self, Cutter};
use crate::repository::sink::OldPages;

/// How often a file that changes is read before giving up.
const ATTEMPTS: u32 = 4;
/// A file younger than this when it is read may change again without its times telling.
const FRESH: Duration = Duration::from_secs(2);

/// Sees the body of a file as it is archived: padded or cut to the size its header tells.
pub trait Watch {
    /// The body begins, perhaps for another time.
    fn begin(&mut self);

    /// The next bytes of the body and where they begin; all but the last are whole multiples of a page that
    /// 256 KiB is a multiple of.
    fn piece(&mut self, file: &File, offset: u64, bytes: &[u8]);

    /// Whether the next backup may splice the file in unread while it stays as it is.
    fn approves(&self) -> bool;
}

/// How a file is taken.
pub struct Taking<'a> {
    pub cut: Cut,
    pub on_change: OnChange,
    /// What the file must hash to when it is read.
    pub sha256: Option<&'a [u8; 32]>,
    /// What `lstat` told a moment ago, where somebody looked already.
    pub seen: Option<&'a Metadata>,
    /// Whether the body's CRC-32C is wanted.
    pub summed: bool,
    pub watch: Option<&'a mut dyn Watch>,
}

impl Taking<'_> {
    pub const fn new(cut: Cut, on_change: OnChange) -> Self {
        Self {
            cut,
            on_change,
            sha256: None,
            seen: None,
            summed: false,
            watch: None,
        }
    }

    /// Whether the parent's entry will do unread.
    fn splices(&self, known: &KnownFile, meta: &Metadata) -> bool {
        known.file.identity == Some(identity(meta))
            && !is_fresh(meta)
            && (!self.summed || known.file.crc32c.is_some())
    }
}

/// What a list of an archive's files says of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSum {
    pub bytes: u64,
    pub mtime_secs: i64,
    /// Of exactly the bytes that were archived.
    pub crc32c: u32,
}

/// What became of a file, and its sum when that was wanted and it was not gone.
type Taken = (FileOutcome, Option<FileSum>);

impl ArchiveWriter {
    pub(super) fn take_file(
        &mut self,
        name: &[u8],
        path: &Path,
        mut taking: Taking<'_>,
    ) -> Result<Taken, ArchiveError> {
        check_name(name)?;
        let failed = |source| ArchiveError::Read {
            path: path.to_owned(),
            source,
        };
        let looked = || {
            taking
                .seen
                .cloned()
                .map_or_else(|| std::fs::symlink_metadata(path), Ok)
        };
        let meta = match looked() {
            Ok(meta) => meta,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Ok((FileOutcome::Vanished, None));
            }
            Err(e) => return Err(failed(e)),
        };
        let parent = self.sink.cached_file(name)?;
        if let Some(known) = parent.as_ref().filter(|known| taking.splices(known, &meta)) {
            self.sink.splice(name, known)?;
            let bytes = meta.size();
            let sum = sum_of(&meta, known.file.crc32c);
            return Ok((FileOutcome::Spliced { bytes }, sum));
        }
        for _ in 0..ATTEMPTS {
            let Some(mut file) = open(path).map_err(failed)? else {
                return Ok((FileOutcome::Vanished, None));
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
            let parent = parent.as_ref().map(|known| &known.file);
            let read = self.read_file(name, path, &mut file, &before, &mut taking, parent)?;
            let after = file.metadata().map_err(failed)?;
            let held_still = identity(&before) == identity(&after) && !read.short;
            let only_grew = after.size() > before.size() && !read.short;
            if held_still || only_grew || taking.on_change == OnChange::Repaired {
                if let (Some(expected), Some(found)) = (taking.sha256, read.sha256)
                    && found != *expected
                {
                    self.sink.rewind(mark);
                    return Err(ArchiveError::Digest {
                        path: path.to_owned(),
                        found: crate::repository::hex(&found),
                    });
                }
                let approved = taking.watch.as_ref().is_none_or(|watch| watch.approves());
                let trusted = held_still && !fresh && approved;
                let file = CachedFile {
                    identity: trusted.then(|| identity(&before)),
                    ranges: self.sink.since(&mark),
                    header_bytes: read.header_bytes,
                    crc32c: read.crc32c,
                };
                self.sink.remember(name, &file, &read.pages)?;
                let bytes = before.size();
                let sum = sum_of(&before, read.crc32c);
                return Ok((FileOutcome::Read { bytes }, sum));
            }
            self.sink.rewind(mark);
        }
        Err(ArchiveError::KeepsChanging(path.to_owned()))
    }

    /// Writes header and body of an open file; the body is exactly as long as `meta` says.
    fn read_file(
        &mut self,
        name: &[u8],
        path: &Path,
        file: &mut File,
        meta: &Metadata,
        taking: &mut Taking<'_>,
        parent: Option<&CachedFile>,
    ) -> Result<ReadFile, ArchiveError> {
        let size = meta.size();
        let cut = taking.cut.for_size(size);
        let failed = |source| ArchiveError::Read {
            path: path.to_owned(),
            source,
        };
        let entry = EntryMeta {
            xattrs: walk::xattrs_of(file).map_err(failed)?,
            ..EntryMeta::of(meta)
        };
        let header = header::encode(name, &entry, Kind::File { size });
        self.sink.begin_body(cut);
        self.sink.block(&header)?;
        let unit = cutter::unit(cut);
        let is_paged = matches!(cut, Cut::Pages(_));
        let parent = parent.filter(|_| is_paged);
        let old_ids = match parent {
            Some(_) => self.sink.cached_pages(name)?,
            None => Vec::new(),
        };
        let mut old = match (unit, parent) {
            (Some(unit), Some(parent)) => OldPages::new(unit, parent, &old_ids),
            _ => OldPages::none(),
        };
        let mut pages = Vec::new();
        let mut body = Body::begin(file, size, taking);
        if let Some(unit) = unit {
            while body.left >= unit as u64 {
                let room = self.sink.room(unit, body.left);
                let length = room.len();
                let mut got = 0;
                for piece in room.chunks_mut(READ_BYTES) {
                    got += body.read(piece).map_err(failed)?;
                }
                self.sink.count_read(got);
                self.sink
                    .take_room(cut, (unit, length), &mut old, &mut pages)?;
            }
        }
        let mut cutter = Cutter::new(cut, size);
        let sink = &mut self.sink;
        while body.left > 0 {
            let want = usize::try_from(body.left).map_or(READ_BYTES, |left| left.min(READ_BYTES));
            let piece = self.buffer.get_mut(..want).unwrap_or_default();
            sink.count_read(body.read(piece).map_err(failed)?);
            cutter.feed(piece, |block| {
                sink.body_block(cut, block, &mut old, &mut pages)
            })?;
        }
        let padding = padding(size);
        cutter.feed(&padding, |block| {
            sink.body_block(cut, block, &mut old, &mut pages)
        })?;
        cutter.finish(|block| sink.body_block(cut, block, &mut old, &mut pages))?;
        Ok(ReadFile {
            header_bytes: header.len() as u64,
            pages,
            sha256: body.sums.sha256.map(|hash| hash.finalize().into()),
            crc32c: body.sums.crc32c,
            short: body.short,
        })
    }
}

/// The body of a file that is being read, as long as its header tells.
struct Body<'f, 't, 'w> {
    file: &'f mut File,
    size: u64,
    left: u64,
    /// The file was shorter.
    short: bool,
    sums: Sums,
    taking: &'t mut Taking<'w>,
}

impl<'f, 't, 'w> Body<'f, 't, 'w> {
    fn begin(file: &'f mut File, size: u64, taking: &'t mut Taking<'w>) -> Self {
        Self {
            file,
            size,
            left: size,
            short: false,
            sums: Sums::begin(taking),
            taking,
        }
    }

    /// Fills a piece, with zeros where the file is shorter, so that the stream stays whole; returns how much
    /// was read.
    fn read(&mut self, piece: &mut [u8]) -> std::io::Result<u64> {
        let got = read_full(self.file, piece)?;
        if got < piece.len() {
            self.short = true;
            piece.iter_mut().skip(got).for_each(|byte| *byte = 0);
        }
        self.sums.update(piece);
        if let Some(watch) = &mut self.taking.watch {
            watch.piece(self.file, self.size - self.left, piece);
        }
        self.left -= piece.len() as u64;
        Ok(got as u64)
    }
}

struct ReadFile {
    header_bytes: u64,
    pages: Vec<crate::repository::table::PageId>,
    sha256: Option<[u8; 32]>,
    crc32c: Option<u32>,
    short: bool,
}

/// The sums of a body that are wanted.
struct Sums {
    sha256: Option<Sha256>,
    crc32c: Option<u32>,
}

impl Sums {
    fn begin(taking: &mut Taking<'_>) -> Self {
        if let Some(watch) = &mut taking.watch {
            watch.begin();
        }
        Self {
            sha256: taking.sha256.map(|_| Sha256::new()),
            crc32c: taking.summed.then_some(0),
        }
    }

    fn update(&mut self, piece: &[u8]) {
        if let Some(sha256) = &mut self.sha256 {
            sha256.update(piece);
        }
        if let Some(crc) = &mut self.crc32c {
            *crc = crc32c::crc32c_append(*crc, piece);
        }
    }
}

fn sum_of(meta: &Metadata, crc32c: Option<u32>) -> Option<FileSum> {
    crc32c.map(|crc32c| FileSum {
        bytes: meta.size(),
        mtime_secs: meta.mtime(),
        crc32c,
    })
}

/// `None` when it is gone.
fn open(path: &Path) -> std::io::Result<Option<File>> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let opened = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path);
    match opened {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

fn identity(meta: &Metadata) -> FileIdentity {
    let nanos = |secs: i64, nanos: i64| secs.saturating_mul(1_000_000_000).saturating_add(nanos);
    FileIdentity {
        inode: meta.ino(),
        ctime_ns: nanos(meta.ctime(), meta.ctime_nsec()),
        mtime_ns: nanos(meta.mtime(), meta.mtime_nsec()),
        size: meta.size(),
    }
}

/// Changed within the last two seconds, or in the future: its times prove nothing.
fn is_fresh(meta: &Metadata) -> bool {
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
