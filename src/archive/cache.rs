//! The local cache: which blocks the repository holds where, and which file had which identity and ranges.
//!
//! A hint, never needed: without it everything is read and stored once more. It is an SQLite database in
//! the state directory, one for each repository, written in one transaction that commits after the manifest
//! does, so it never names a pack that a failed backup left. Packs that are gone from the repository are
//! forgotten when it is opened, unless their pieces moved: then what the cache knows moves with them.
//!
//! Runs are numbered. A file's row carries the number of a run that met it, brought up to date only when it
//! is [`REFRESH_AFTER`] runs old, and is dropped when it is [`FORGET_AFTER`] runs old: a file that stays as
//! it is costs a look, not a write.
//!
//! What a run commits goes into SQLite's log. The next run reads all of the log before it reads anything else,
//! and appends to it, so a log that has grown is brought into the database and emptied at once: what a run
//! reads of the cache follows what it holds, not how many runs there were.

mod known;
mod packs;
mod parts;
mod rows;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use rusqlite::config::DbConfig;

use crate::repository::moved::WhereMoved;
use crate::repository::ranges::{Range, RangeList};
use crate::repository::table::{BlockId, BlockTable, PageId, Run};
use crate::repository::{PackName, RepositoryError};
use packs::Packs;
use parts::Parts;

/// Bump it when the tables change: an old cache is thrown away.
const VERSION: i64 = 4;

const REFRESH_AFTER: i64 = 4;
const FORGET_AFTER: i64 = 12;
/// How many runs apart old rows are looked for: that reads every row.
const FORGET_EVERY: i64 = 4;

/// How long the log may be that the next run finds. Less would cost every run the syncs of a checkpoint.
const LOG_LIMIT_BYTES: u64 = 64 * 1024;

/// New blocks kept in memory, to be written in the order of the table.
const PENDING_BLOCKS: usize = 32 * 1024;

/// A pack's number in this cache.
pub type PackRef = i64;

/// What identifies the content of a file without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileIdentity {
    pub inode: u64,
    pub ctime_ns: i64,
    pub mtime_ns: i64,
    pub size: u64,
}

/// A file as the parent backup holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedFile {
    /// `None` when the file was too fresh to be trusted without reading.
    pub identity: Option<FileIdentity>,
    /// Header, body and padding.
    pub ranges: RangeList<PackRef>,
    /// Bytes of the header at the front of `ranges`.
    pub header_bytes: u64,
    /// Of the body, where a service's own list of files wants it.
    pub crc32c: Option<u32>,
}

/// A file that was found in the cache.
#[derive(Debug, Clone)]
pub struct KnownFile {
    pub file: CachedFile,
    /// The run that last said it was there.
    met: i64,
}

/// The cache of one repository.
pub struct Cache {
    db: Connection,
    log: PathBuf,
    packs: Packs,
    parts: Parts,
    /// This run's number.
    run: i64,
    /// Whether blocks are in the database that this run did not put there.
    has_blocks: bool,
    pending: BTreeMap<BlockId, Range<PackRef>>,
}

impl Cache {
    /// Opens or makes the cache called `name` (a repository and its epoch) and forgets packs that are not among `packs`.
    pub fn open(
        state: &Path,
        name: &str,
        packs: &HashSet<PackName>,
        where_moved: &WhereMoved<'_>,
    ) -> Result<Self, RepositoryError> {
        remove_other_epochs(state, name);
        let path = state.join(format!("cache-{name}.sqlite"));
        let db = match Self::try_open(&path) {
            Ok(db) => db,
            Err(err) => {
                tracing::warn!(
                    "the cache {} is unusable ({err}): everything is read once more",
                    path.display()
                );
                for suffix in ["", "-wal", "-shm"] {
                    let part = state.join(format!("cache-{name}.sqlite{suffix}"));
                    match std::fs::remove_file(&part) {
                        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                            return Err(RepositoryError::io(
                                format!("remove {}", part.display()),
                                e,
                            ));
                        }
                        _ => {}
                    }
                }
                Self::try_open(&path).map_err(failed)?
            }
        };
        Ok(Self {
            packs: Packs::open(&db, packs, where_moved)?,
            parts: Parts::default(),
            db,
            log: state.join(format!("cache-{name}.sqlite-wal")),
            run: 0,
            has_blocks: true,
            pending: BTreeMap::new(),
        })
    }

    fn try_open(path: &Path) -> rusqlite::Result<Connection> {
        let db = Connection::open(path)?;
        db.pragma_update(None, "journal_mode", "wal")?;
        // A lost last transaction costs reading once more; a torn one would cost trust.
        db.pragma_update(None, "synchronous", "normal")?;
        // What was committed stays in the log, which is checked when it is read, until there is much of it.
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        // Pages of at most 16 MiB stay in memory, whatever the cache's size.
        db.pragma_update(None, "cache_size", -16384)?;
        let version: i64 = db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if version != VERSION {
            db.execute_batch(
                "DROP TABLE IF EXISTS packs; DROP TABLE IF EXISTS blocks; DROP TABLE IF EXISTS files;
                 DROP TABLE IF EXISTS parts; DROP TABLE IF EXISTS pages; DROP TABLE IF EXISTS runs;
                 CREATE TABLE runs (newest INTEGER NOT NULL);
                 INSERT INTO runs VALUES (0);
                 CREATE TABLE parts (name TEXT PRIMARY KEY) WITHOUT ROWID;
                 CREATE TABLE packs (id INTEGER PRIMARY KEY AUTOINCREMENT, name BLOB UNIQUE);
                 CREATE TABLE blocks (id BLOB PRIMARY KEY, pack INTEGER NOT NULL, at INTEGER NOT NULL, length INTEGER NOT NULL) WITHOUT ROWID;
                 CREATE TABLE files (archive TEXT NOT NULL, name BLOB NOT NULL, met INTEGER NOT NULL,
                     inode INTEGER, ctime INTEGER, mtime INTEGER, size INTEGER,
                     header INTEGER NOT NULL, ranges BLOB NOT NULL, crc32c INTEGER,
                     PRIMARY KEY (archive, name)) WITHOUT ROWID;
                 CREATE TABLE pages (archive TEXT NOT NULL, name BLOB NOT NULL, ids BLOB NOT NULL,
                     PRIMARY KEY (archive, name)) WITHOUT ROWID;",
            )?;
            db.execute_batch("DROP TABLE IF EXISTS digests")?;
            db.pragma_update(None, "user_version", VERSION)?;
        }
        db.execute_batch(
            "CREATE TABLE IF NOT EXISTS digests (what TEXT PRIMARY KEY, digest BLOB NOT NULL) WITHOUT ROWID",
        )?;
        Ok(db)
    }

    /// Index parts that were not learnt yet, and forgets those that are gone.
    pub fn unknown_parts(&mut self, parts: &[String]) -> Result<Vec<String>, RepositoryError> {
        self.parts.unknown(&self.db, parts).map_err(failed)
    }

    pub fn note_part(&mut self, part: &str) -> Result<(), RepositoryError> {
        self.transaction()?;
        self.parts.learn(&self.db, part).map_err(failed)
    }

    /// Learns which blocks a pack holds that another writer published. Pages are known by their place in a
    /// file, not by their id, and are passed over.
    pub fn learn_pack(
        &mut self,
        name: PackName,
        table: &BlockTable,
    ) -> Result<(), RepositoryError> {
        self.transaction()?;
        let pack = self.packs.number_of(&self.db, name).map_err(failed)?;
        let mut offset = 0;
        for run in table.runs() {
            match run {
                Run::Pages { unit, ids } => offset += u64::from(*unit) * ids.len() as u64,
                Run::Blocks(blocks) => {
                    for (length, id) in blocks {
                        let length = u64::from(*length);
                        self.add_block(
                            id,
                            Range {
                                pack,
                                offset,
                                length,
                            },
                        )?;
                        offset += length;
                    }
                }
            }
        }
        Ok(())
    }

    /// Begins the run's transaction.
    pub fn begin(&mut self) -> Result<(), RepositoryError> {
        self.db.execute_batch("BEGIN IMMEDIATE").map_err(failed)?;
        let newest: i64 = self
            .db
            .query_row("SELECT newest FROM runs", [], |row| row.get(0))
            .map_err(failed)?;
        self.run = newest + 1;
        self.has_blocks = self
            .db
            .query_row("SELECT EXISTS (SELECT 1 FROM blocks)", [], |row| row.get(0))
            .map_err(failed)?;
        Ok(())
    }

    /// The run's transaction, which must still be open: what SQLite cannot write makes it roll back all that the
    /// run wrote, its packs' numbers too, and each row that was written after that would stand for itself.
    fn transaction(&self) -> Result<&Connection, RepositoryError> {
        if self.run > 0 && self.db.is_autocommit() {
            return Err(RepositoryError::Invalid(
                "the local cache lost what this run wrote to it: see above why, or check that the state directory (LIFEBOAT_STATE) has space"
                    .to_owned(),
            ));
        }
        Ok(&self.db)
    }

    /// Writes what is only remembered into the run's transaction, as the commit does at the latest.
    pub fn write_out(&mut self) -> Result<(), RepositoryError> {
        self.write_pending()
    }

    /// Makes the run's entries the cache's, and drops files of `archives` that no run met for long.
    pub fn commit(&mut self, archives: &[String]) -> Result<(), RepositoryError> {
        self.write_pending()?;
        self.transaction()?;
        self.packs
            .note(&self.db)
            .and_then(|()| self.parts.note(&self.db))
            .map_err(failed)?;
        if self.run % FORGET_EVERY == 0 {
            for archive in archives {
                rows::forget(&self.db, archive, self.run - FORGET_AFTER).map_err(failed)?;
            }
        }
        self.db
            .execute("UPDATE runs SET newest = ?1", [self.run])
            .and_then(|_| self.db.execute_batch("COMMIT"))
            .and_then(|()| self.shorten_log())
            .map_err(failed)
    }

    /// SQLite itself begins a log anew only in a process that has already brought all of it into the database,
    /// which no run is: each writes once.
    fn shorten_log(&self) -> rusqlite::Result<()> {
        let is_long = std::fs::metadata(&self.log).is_ok_and(|log| log.len() > LOG_LIMIT_BYTES);
        if !is_long {
            return Ok(());
        }
        // The row tells whether somebody else was reading: then the next run does it.
        self.db
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
    }

    /// A number for a pack that has no name yet.
    pub fn new_pack(&mut self) -> Result<PackRef, RepositoryError> {
        self.transaction()?;
        self.packs.add(&self.db).map_err(failed)
    }

    /// The number of a pack that is in the repository.
    pub fn adopt_pack(&mut self, name: PackName) -> Result<PackRef, RepositoryError> {
        self.transaction()?;
        self.packs.number_of(&self.db, name).map_err(failed)
    }

    /// Names a published pack.
    pub fn name_pack(&mut self, pack: PackRef, name: PackName) -> Result<(), RepositoryError> {
        self.transaction()?;
        self.packs.set_name(&self.db, pack, name).map_err(failed)
    }

    pub fn pack_name(&self, pack: PackRef) -> Option<PackName> {
        self.packs.name(&self.db, pack)
    }

    pub fn block(&self, id: &BlockId) -> Result<Option<Range<PackRef>>, RepositoryError> {
        if let Some(range) = self.pending.get(id) {
            return Ok(Some(*range));
        }
        if !self.has_blocks {
            return Ok(None);
        }
        let range = rows::block(&self.db, id).map_err(failed)?;
        Ok(range.filter(|range| self.packs.is_live(&self.db, range.pack)))
    }

    pub fn add_block(&mut self, id: &BlockId, at: Range<PackRef>) -> Result<(), RepositoryError> {
        self.pending.insert(*id, at);
        if self.pending.len() >= PENDING_BLOCKS {
            self.write_pending()?;
        }
        Ok(())
    }

    /// What fails stays to be written.
    fn write_pending(&mut self) -> Result<(), RepositoryError> {
        self.has_blocks |= !self.pending.is_empty();
        for (id, at) in &self.pending {
            rows::put_block(self.transaction()?, id, *at).map_err(failed)?;
        }
        self.pending.clear();
        Ok(())
    }

    /// The file as the newest backup that held it has it; `None` when any of its packs is gone.
    pub fn file(&self, archive: &str, name: &[u8]) -> Result<Option<KnownFile>, RepositoryError> {
        let Some(mut known) = rows::file(&self.db, archive, name).map_err(failed)? else {
            return Ok(None);
        };
        let Some(ranges) = self.packs.translate(&self.db, known.file.ranges) else {
            return Ok(None);
        };
        known.file.ranges = ranges;
        Ok(Some(known))
    }

    /// Ids of the pages of a file's body; none when it was not cut into pages.
    pub fn pages(&self, archive: &str, name: &[u8]) -> Result<Vec<PageId>, RepositoryError> {
        rows::pages(&self.db, archive, name).map_err(failed)
    }

    pub fn put_file(
        &self,
        archive: &str,
        name: &[u8],
        file: &CachedFile,
        pages: &[PageId],
    ) -> Result<(), RepositoryError> {
        let db = self.transaction()?;
        rows::put_file(db, archive, name, self.run, file)
            .and_then(|()| rows::put_pages(db, archive, name, pages))
            .map_err(failed)
    }

    /// An unchanged file is the run's too.
    pub fn keep_file(
        &self,
        archive: &str,
        name: &[u8],
        known: &KnownFile,
    ) -> Result<(), RepositoryError> {
        if self.run - known.met < REFRESH_AFTER {
            return Ok(());
        }
        rows::meet(self.transaction()?, archive, name, self.run).map_err(failed)
    }
}

/// What an earlier epoch of the repository knew is of no use any more.
fn remove_other_epochs(state: &Path, name: &str) {
    let Some((repository, _)) = name.rsplit_once('-') else {
        return;
    };
    let (of_repository, own) = (format!("cache-{repository}-"), format!("cache-{name}."));
    let Ok(entries) = std::fs::read_dir(state) else {
        // Opening the cache is about to say why.
        return;
    };
    for entry in entries.flatten() {
        let file = entry.file_name();
        let other = file
            .to_str()
            .is_some_and(|file| file.starts_with(&of_repository) && !file.starts_with(&own));
        if other && let Err(err) = std::fs::remove_file(entry.path()) {
            tracing::warn!("{} cannot be removed: {err}", entry.path().display());
        }
    }
}

// By value: it is what `map_err` hands over.
#[allow(clippy::needless_pass_by_value)]
fn failed(err: rusqlite::Error) -> RepositoryError {
    RepositoryError::Invalid(format!(
        "the local cache cannot be used: {err}. Check that the state directory (LIFEBOAT_STATE) is writable and has space"
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn open(dir: &Path) -> Cache {
        Cache::open(dir, "id-1", &HashSet::new(), &|_| Ok(None)).unwrap()
    }

    #[test]
    fn a_run_whose_rows_were_rolled_back_leaves_none() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path()));
        let mut cache = open(dir.path());
        cache.begin().unwrap();
        let pack = cache.new_pack().unwrap();
        let place = |number: u64| Range {
            pack,
            offset: number * 100,
            length: 100,
        };
        let id = |number: u64| *blake3::hash(&number.to_le_bytes()).as_bytes();
        for number in 0..20_000 {
            cache.add_block(&id(number), place(number)).unwrap();
        }
        // As on a disk that is full.
        let limit = |cache: &Cache, pages: i64| {
            let set = format!("PRAGMA max_page_count = {pages}");
            cache.db.query_row(&set, [], |_| Ok(())).unwrap();
        };
        limit(&cache, 30);
        cache.write_out().unwrap_err();
        // And space again: what was written is gone, and nothing must be written in its place.
        limit(&cache, 1_000_000);
        assert!(cache.db.is_autocommit());
        cache.write_out().unwrap_err();
        cache.new_pack().unwrap_err();
        cache.note_part("part").unwrap_err();
        let file = CachedFile {
            identity: None,
            ranges: RangeList::default(),
            header_bytes: 0,
            crc32c: None,
        };
        cache.put_file("n8n", b"file", &file, &[]).unwrap_err();
        cache.commit(&[]).unwrap_err();
        drop(cache);
        let cache = open(dir.path());
        for table in ["blocks", "packs", "files", "parts"] {
            let count = format!("SELECT count(*) FROM {table}");
            let count: i64 = cache.db.query_row(&count, [], |row| row.get(0)).unwrap();
            assert_eq!(count, 0, "{table}");
        }
    }
}
