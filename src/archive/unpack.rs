//! Writes a tar stream below one directory and nowhere else.
//!
//! The stream is data from outside: it may be damaged or forged. So each entry is checked before anything
//! of it reaches the disk (`entry`), and the disk is written only relative to directories that were opened
//! component by component without following links (`tree`).
//!
//! - Refused with a sentence: absolute names, `..`, `.` inside a name, empty names and components, NUL, names
//!   given twice, devices, pipes, sparse files, global PAX headers, hard links to anything but a file
//!   unpacked before, and a stream without its end mark. A leading `./`, which other tar writers put, is
//!   dropped; the entry `./` itself describes the target.
//! - Symbolic links are made after every file, so nothing can be written through one. They are put back as
//!   they were recorded, also when they lead out of the target: nothing here follows them.
//! - Owner, mode (with setuid and setgid, as recorded), times to the nanosecond and extended attributes are
//!   put back. An attribute that the filesystem or the kernel refuses is counted, not fatal. Directories get
//!   theirs last, the deepest first. A directory that has files but no entry of its own becomes 0755.
//! - Headers are bounded to [`HEADER_LIMIT`]; space is never reserved by a size that an entry claims.
//! - Memory is constant: directories and links that wait for the end are spooled to an unlinked temporary
//!   file in the target when they outgrow a few megabytes.
//! - One `syncfs` makes everything durable, instead of an fsync a file, and large files are brought onto the disk
//!   while others are written; then the `publish_last` entries are renamed into place and their directories
//!   synced.
//!
//! On any error the target is left half written, nothing else has changed, and the caller removes the target.

mod deferred;
mod disk;
mod entry;
mod flusher;
mod header_limit;
mod members;
mod tree;

use std::path::{Path, PathBuf};

use futures_util::StreamExt;
use tokio::io::{AsyncRead, AsyncReadExt, BufReader};
use tokio::sync::mpsc;
use tokio_tar::{Archive, Entry};

use entry::{EntryKind, Member};
use header_limit::HeaderLimit;

pub use header_limit::HEADER_LIMIT;
pub use members::Members;

/// How much of a file travels from the reader to the writing thread at once.
const CHUNK: u64 = 256 * 1024;
/// How many of them wait between the two.
const QUEUE: usize = 16;
/// Headers are read 512 bytes at a time; this keeps each from becoming a read of its own.
const READ_AHEAD: usize = 64 * 1024;

/// How entries are written.
#[derive(Debug, Clone, Default)]
pub struct UnpackOptions {
    /// Entries that are written under a temporary name and renamed after everything else is on disk,
    /// such as `global/pg_control`: until then the result must not be usable.
    pub publish_last: Vec<String>,
    /// Replaces recorded owners when set.
    pub owner: Option<(u32, u32)>,
    /// Only entries whose name starts with one of these (and their parents); all when empty.
    pub only: Vec<String>,
    /// Left out: entries of these names, and what is in them.
    pub except: Vec<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UnpackReport {
    pub files: u64,
    pub bytes: u64,
    pub directories: u64,
    pub symlinks: u64,
    pub hard_links: u64,
    /// Extended attributes that the target's filesystem or the kernel did not take.
    pub xattrs_refused: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error(
        "entry {name} would land outside its target or is not a kind a backup holds: {why}. The archive is damaged or forged; nothing of it was used"
    )]
    Unsafe { name: String, why: String },
    #[error("cannot write {}: {source}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot read the archive: {0}")]
    Archive(#[source] std::io::Error),
}

/// What the reader asks of the writing thread. A file's [`Op::Data`] follow its [`Op::File`] until its size
/// is reached.
enum Op {
    Member(Member),
    Data(Vec<u8>),
    /// The stream ended with its end mark: complete the tree and make it durable.
    Finish,
}

/// Unpacks `archive` into the existing, empty directory `target` and syncs it to disk.
///
/// Dropping the future stops the writing thread at its next chunk.
pub async fn unpack(
    archive: impl AsyncRead + Unpin + Send,
    target: &Path,
    options: &UnpackOptions,
) -> Result<UnpackReport, UnpackError> {
    let (ops, received) = mpsc::channel(QUEUE);
    let writer = {
        let (target, options) = (target.to_owned(), options.clone());
        tokio::task::spawn_blocking(move || disk::write(&target, &options, received))
    };
    let read = read_entries(archive, options, &ops).await;
    drop(ops);
    let written = writer.await.map_err(|e| UnpackError::Write {
        path: target.to_owned(),
        source: std::io::Error::other(e),
    })?;
    match read {
        Ok(()) => written,
        Err(Stopped::Reading(error)) => Err(error),
        // The writer went first: its error is the reason.
        Err(Stopped::WriterGone) => Err(written.err().unwrap_or_else(|| UnpackError::Write {
            path: target.to_owned(),
            source: std::io::Error::other("the writing thread stopped early"),
        })),
    }
}

enum Stopped {
    Reading(UnpackError),
    WriterGone,
}

impl From<UnpackError> for Stopped {
    fn from(error: UnpackError) -> Self {
        Self::Reading(error)
    }
}

fn unreadable(error: std::io::Error) -> Stopped {
    Stopped::Reading(UnpackError::Archive(error))
}

async fn read_entries(
    archive: impl AsyncRead + Unpin + Send,
    options: &UnpackOptions,
    ops: &mpsc::Sender<Op>,
) -> Result<(), Stopped> {
    let (limited, limit) = HeaderLimit::new(BufReader::with_capacity(READ_AHEAD, archive));
    let mut archive = Archive::new(limited);
    let mut entries = archive.entries().map_err(unreadable)?;
    loop {
        limit.header();
        let Some(entry) = entries.next().await else {
            break;
        };
        let mut entry = entry.map_err(unreadable)?;
        limit.body();
        let member = Member::check(&mut entry).await?;
        let name = member.name.as_bytes();
        if !wanted(name, &options.only) || is_within(name, &options.except) {
            tokio::io::copy(&mut entry, &mut tokio::io::sink())
                .await
                .map_err(unreadable)?;
            continue;
        }
        let size = match member.kind {
            EntryKind::File { size } => size,
            _ => 0,
        };
        send(ops, Op::Member(member)).await?;
        send_body(&mut entry, size, ops).await?;
    }
    let cut_off = limit.ended();
    drop(entries);
    limit.body();
    read_end(archive, cut_off).await?;
    send(ops, Op::Finish).await
}

async fn send_body<R: AsyncRead + Unpin>(
    entry: &mut Entry<R>,
    size: u64,
    ops: &mpsc::Sender<Op>,
) -> Result<(), Stopped> {
    let mut left = size;
    while left > 0 {
        let wanted = left.min(CHUNK);
        let mut chunk = Vec::with_capacity(usize::try_from(wanted).unwrap_or_default());
        let read = (&mut *entry)
            .take(wanted)
            .read_to_end(&mut chunk)
            .await
            .map_err(unreadable)? as u64;
        if read < wanted {
            return Err(unreadable(std::io::ErrorKind::UnexpectedEof.into()));
        }
        left -= read;
        send(ops, Op::Data(chunk)).await?;
    }
    Ok(())
}

/// Requires the end mark and nothing but zeros after it, so that a stream cut between two entries shows.
async fn read_end<R: AsyncRead + Unpin>(archive: Archive<R>, cut_off: bool) -> Result<(), Stopped> {
    if cut_off {
        return Err(unreadable(std::io::Error::new(
            std::io::ErrorKind::UnexpectedEof,
            "it ends without its end mark, so its last entries are missing",
        )));
    }
    let Ok(mut rest) = archive.into_inner() else {
        return Err(unreadable(std::io::Error::other(
            "an entry outlived its archive",
        )));
    };
    let mut block = Vec::with_capacity(64 * 1024);
    loop {
        block.clear();
        if rest.read_buf(&mut block).await.map_err(unreadable)? == 0 {
            return Ok(());
        }
        if block.iter().any(|byte| *byte != 0) {
            return Err(unreadable(std::io::Error::new(
                std::io::ErrorKind::InvalidData,
                "data follows its end mark",
            )));
        }
    }
}

async fn send(ops: &mpsc::Sender<Op>, op: Op) -> Result<(), Stopped> {
    ops.send(op).await.map_err(|_| Stopped::WriterGone)
}

/// Whether a name is one of these directories, or in one.
fn is_within(name: &[u8], directories: &[String]) -> bool {
    directories.iter().any(|directory| {
        name.strip_prefix(directory.as_bytes())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
    })
}

/// Whether a name is asked for: it starts with a prefix, or is a parent of one.
fn wanted(name: &[u8], only: &[String]) -> bool {
    only.is_empty()
        || name.is_empty()
        || only.iter().any(|prefix| {
            let prefix = prefix.as_bytes();
            name.starts_with(prefix)
                || prefix
                    .strip_prefix(name)
                    .is_some_and(|rest| rest.starts_with(b"/"))
        })
}
