//! A hot copy of a live SQLite database, without writing a byte beside it.
//!
//! SQLite's backup API in one step holds one read transaction, so the copy is one instant, page for page as
//! the original (no VACUUM: unchanged pages stay where they are). The database is opened with `mode=ro` and
//! `readonly_shm=1`: nothing is created or locked for writing, and the connection cannot checkpoint, neither
//! while it is open nor when it is closed.
//!
//! Without a `-shm` file nobody has the database open (wal.c: every WAL connection creates it), and on a
//! read-only mount SQLite cannot make one. Then database and `-wal` are copied as files and opened there.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::services::support::regular;

/// How long a writer may keep the database to itself.
const BUSY_LIMIT: Duration = Duration::from_mins(1);
const PAUSE: Duration = Duration::from_millis(100);
/// Free scratch space that is left to others.
const MARGIN_BYTES: u64 = 64 << 20;

#[derive(Debug, thiserror::Error)]
pub(super) enum SqliteError {
    #[error("{what} {}: {source}", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot copy {}: {source}", path.display())]
    Copy {
        path: PathBuf,
        #[source]
        source: rusqlite::Error,
    },
    #[error("{} stayed in use for {} seconds: see what writes to it", path.display(), BUSY_LIMIT.as_secs())]
    Locked { path: PathBuf },
    #[error(
        "{} has {free} bytes free, and the copy of {} needs {needed}: make room, or put LIFEBOAT_STATE on a larger disk",
        scratch.display(), path.display()
    )]
    Space {
        path: PathBuf,
        scratch: PathBuf,
        free: u64,
        needed: u64,
    },
    #[error("the copy of {} is damaged, and so is the database: {found}", path.display())]
    Damaged { path: PathBuf, found: String },
    #[error("{} is not an SQLite database", .0.display())]
    NotSqlite(PathBuf),
}

/// Copies the live database `from` to `to`, which must not exist; its page size.
pub(super) fn hot_copy(from: &Path, to: &Path) -> Result<u32, SqliteError> {
    check_files(from)?;
    check_space(from, to)?;
    // A missing right is no lock: it does not pass by waiting.
    regular(from).map_err(|source| SqliteError::Io {
        what: "cannot read",
        path: from.to_owned(),
        source,
    })?;
    let deadline = Instant::now() + BUSY_LIMIT;
    loop {
        match attempt(from, to) {
            Ok(()) => break,
            Err(e) if is_passing(&e) && Instant::now() < deadline => {}
            Err(e) => return Err(e),
        }
        std::thread::sleep(PAUSE);
    }
    keep_looks(from, to)?;
    page_bytes(to)
}

/// Opens a finished copy that nothing writes to.
pub(super) fn open_copy(path: &Path) -> Result<Connection, SqliteError> {
    open(path, "mode=ro&immutable=1").map_err(|source| SqliteError::Copy {
        path: path.to_owned(),
        source,
    })
}

/// Checks the structure of a copy of `from`.
pub(super) fn check_copy(copy: &Connection, from: &Path) -> Result<(), SqliteError> {
    let found = copy.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
    let found = found.unwrap_or_else(|e| e.to_string());
    if found == "ok" {
        return Ok(());
    }
    Err(SqliteError::Damaged {
        path: from.to_owned(),
        found,
    })
}

fn attempt(from: &Path, to: &Path) -> Result<(), SqliteError> {
    remove_all(to)?;
    check_files(from)?;
    let header = header(from)?;
    // Without a log there is no shared memory: locks on the file itself are all there is.
    if !is_wal(&header) {
        return backup(from, "mode=ro", to);
    }
    if with_suffix(from, "-shm").exists() {
        return backup(from, "mode=ro&readonly_shm=1", to);
    }
    // Nobody has it open: a copy of its files is whole, if that is still so afterwards.
    let side = with_suffix(to, ".files");
    remove_all(&side)?;
    let before = looks(from);
    copy_file(from, &side)?;
    let wal = with_suffix(from, "-wal");
    if wal.exists() {
        copy_file(&wal, &with_suffix(&side, "-wal"))?;
    }
    if with_suffix(from, "-shm").exists() || looks(from) != before {
        return Err(SqliteError::Locked {
            path: from.to_owned(),
        });
    }
    // Ours alone, so it may recover its log there.
    let copied = backup(&side, "mode=rw", to);
    remove_all(&side)?;
    copied
}

/// Refuses a database whose files are links, pipes or devices: whoever runs n8n may put them there, and SQLite
/// follows a link from the log's name.
fn check_files(database: &Path) -> Result<(), SqliteError> {
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let path = with_suffix(database, suffix);
        match fs::symlink_metadata(&path) {
            Ok(stat) if !stat.is_file() => {
                return Err(SqliteError::Io {
                    what: "cannot read",
                    path,
                    source: io::Error::new(
                        io::ErrorKind::InvalidInput,
                        "it is no regular file, and links are not followed here: put the file itself there",
                    ),
                });
            }
            _ => {}
        }
    }
    Ok(())
}

fn backup(from: &Path, mode: &str, to: &Path) -> Result<(), SqliteError> {
    let failed = |source| SqliteError::Copy {
        path: from.to_owned(),
        source,
    };
    let source = open(from, mode).map_err(failed)?;
    let mut copy = Connection::open(to).map_err(failed)?;
    // It is a scratch file: what counts is on disk when the archive is.
    copy.pragma_update(None, "synchronous", "OFF")
        .map_err(failed)?;
    let step = Backup::new(&source, &mut copy)
        .and_then(|backup| backup.step(-1))
        .map_err(failed)?;
    if step != StepResult::Done {
        return Err(SqliteError::Locked {
            path: from.to_owned(),
        });
    }
    Ok(())
}

fn open(path: &Path, mode: &str) -> Result<Connection, rusqlite::Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_URI
        | OpenFlags::SQLITE_OPEN_NOFOLLOW
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    // SQLITE_OPEN_NOFOLLOW refuses links in the whole path; those to the directory are the owner's choice.
    let directory = path.parent().and_then(|dir| fs::canonicalize(dir).ok());
    let direct = directory
        .zip(path.file_name())
        .map_or_else(|| path.to_owned(), |(dir, name)| dir.join(name));
    let connection = Connection::open_with_flags(uri(&direct, mode), flags)?;
    connection.busy_timeout(PAUSE)?;
    Ok(connection)
}

/// An SQLite URI (<https://www.sqlite.org/uri.html>): whatever is not plain is escaped.
fn uri(path: &Path, parameters: &str) -> String {
    use std::os::unix::ffi::OsStrExt;
    let mut uri = String::from("file:");
    for &byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/._-".contains(&byte) {
            uri.push(char::from(byte));
        } else {
            uri.push('%');
            uri.push_str(&crate::services::support::hex(&[byte]));
        }
    }
    uri.push('?');
    uri.push_str(parameters);
    uri
}

/// What passes when one tries again: a lock, or the moment in which the last user closes the database.
fn is_passing(error: &SqliteError) -> bool {
    match error {
        SqliteError::Locked { .. } => true,
        SqliteError::Copy { source, .. } => matches!(
            source.sqlite_error_code(),
            Some(
                ErrorCode::DatabaseBusy
                    | ErrorCode::DatabaseLocked
                    | ErrorCode::ReadOnly
                    | ErrorCode::CannotOpen
                    | ErrorCode::FileLockingProtocolFailed
            )
        ),
        _ => false,
    }
}

fn check_space(from: &Path, to: &Path) -> Result<(), SqliteError> {
    let scratch = to.parent().unwrap_or(to);
    let size = |path: &Path| fs::metadata(path).map_or(0, |stat| stat.len());
    let needed = size(from) + size(&with_suffix(from, "-wal")) + MARGIN_BYTES;
    let stat = rustix::fs::statvfs(scratch).map_err(|e| SqliteError::Io {
        what: "cannot see the free space of",
        path: scratch.to_owned(),
        source: e.into(),
    })?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free < needed {
        return Err(SqliteError::Space {
            path: from.to_owned(),
            scratch: scratch.to_owned(),
            free,
            needed,
        });
    }
    Ok(())
}

/// Gives the copy the original's mode and modification time, which the archive records.
fn keep_looks(from: &Path, to: &Path) -> Result<(), SqliteError> {
    let failed = |source| SqliteError::Io {
        what: "cannot set the times of",
        path: to.to_owned(),
        source,
    };
    let stat = regular(from)
        .and_then(|file| file.metadata())
        .map_err(failed)?;
    fs::set_permissions(to, stat.permissions()).map_err(failed)?;
    let file = File::options().append(true).open(to).map_err(failed)?;
    stat.modified()
        .and_then(|time| file.set_modified(time))
        .map_err(failed)
}

/// The page size by bytes 16 and 17 of the header (<https://www.sqlite.org/fileformat.html>).
fn page_bytes(path: &Path) -> Result<u32, SqliteError> {
    let header = header(path)?;
    match u16::from_be_bytes([header[16], header[17]]) {
        1 => Ok(65536),
        size => Ok(u32::from(size)),
    }
}

/// Byte 18, the write version: 2 with a write-ahead log.
const fn is_wal(header: &[u8; 20]) -> bool {
    header[18] == 2
}

fn header(path: &Path) -> Result<[u8; 20], SqliteError> {
    let mut header = [0; 20];
    match regular(path).and_then(|file| file.read_exact_at(&mut header, 0)) {
        Ok(()) if header.starts_with(b"SQLite format 3\0") => Ok(header),
        Ok(()) => Err(SqliteError::NotSqlite(path.to_owned())),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
            Err(SqliteError::NotSqlite(path.to_owned()))
        }
        Err(source) => Err(SqliteError::Io {
            what: "cannot read",
            path: path.to_owned(),
            source,
        }),
    }
}

type Looks = Option<(u64, u64, i64, i64)>;

/// Identity, size and time of database and log: whether somebody wrote.
fn looks(database: &Path) -> [Looks; 2] {
    [database.to_owned(), with_suffix(database, "-wal")].map(|path| {
        let stat = fs::symlink_metadata(path).ok()?;
        Some((stat.ino(), stat.len(), stat.mtime(), stat.mtime_nsec()))
    })
}

fn copy_file(from: &Path, to: &Path) -> Result<(), SqliteError> {
    let failed = |source| SqliteError::Io {
        what: "cannot copy",
        path: from.to_owned(),
        source,
    };
    let mut source = regular(from).map_err(failed)?;
    let mut target = File::create_new(to).map_err(failed)?;
    io::copy(&mut source.by_ref(), &mut target).map_err(failed)?;
    Ok(())
}

/// Removes a scratch database with what belongs to it.
pub(super) fn remove_all(path: &Path) -> Result<(), SqliteError> {
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let path = with_suffix(path, suffix);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(SqliteError::Io {
                    what: "cannot remove",
                    path,
                    source,
                });
            }
            _ => {}
        }
    }
    Ok(())
}

pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use super::*;

    #[test]
    fn odd_names_are_escaped_in_uris() {
        let path = Path::new("/data/n8n #1?x=%/database.sqlite");
        let expected = "file:/data/n8n%20%231%3fx%3d%25/database.sqlite?mode=ro";
        assert_eq!(uri(path, "mode=ro"), expected);
    }

    #[test]
    fn page_sizes_are_read_and_other_files_refused() {
        let dir = tempfile::tempdir().unwrap();
        for size in [512_u32, 4096, 65536] {
            let path = dir.path().join(size.to_string());
            let made = Connection::open(&path).unwrap();
            made.execute_batch(&format!("PRAGMA page_size={size}; CREATE TABLE t(x);"))
                .unwrap();
            assert_eq!(page_bytes(&path).unwrap(), size);
        }
        let text = dir.path().join("text");
        fs::write(&text, "this is no database at all").unwrap();
        assert!(matches!(page_bytes(&text), Err(SqliteError::NotSqlite(_))));
    }
}
