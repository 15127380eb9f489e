//! The local cache: which blocks the repository holds where, and which file had which identity and ranges.
//!
//! A hint, never needed: without it everything is read and stored once more. It is an SQLite database in
//! the state directory, one for each repository, written in one transaction that commits after the manifest
//! does, so it never names a pack that a failed backup left. Packs that are gone from the repository are
//! forgotten when it is opened, unless their pieces moved: then what the cache knows moves with them.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use rusqlite::{Connection, OptionalExtension, params};

use crate::repository::moved::{Moved, WhereMoved};
use crate::repository::ranges::{Range, RangeList};
use crate::repository::table::{BlockId, BlockTable, PageId, Run};
use crate::repository::{PackName, RepositoryError};

/// Bump it when the tables change: an old cache is thrown away.
const VERSION: i64 = 2;

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
    /// Ids of the body's pages, for files cut into pages.
    pub pages: Vec<PageId>,
}

/// The cache of one repository.
pub struct Cache {
    db: Connection,
    names: HashMap<PackRef, PackName>,
    numbers: HashMap<PackName, PackRef>,
    live: HashSet<PackRef>,
    /// Where packs went that are not live.
    moved: HashMap<PackRef, Moved>,
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
        let mut cache = Self {
            db,
            names: HashMap::new(),
            numbers: HashMap::new(),
            live: HashSet::new(),
            moved: HashMap::new(),
        };
        cache.forget_missing(packs, where_moved)?;
        Ok(cache)
    }

    fn try_open(path: &Path) -> rusqlite::Result<Connection> {
        let db = Connection::open(path)?;
        db.pragma_update(None, "journal_mode", "wal")?;
        // A lost last transaction costs reading once more; a torn one would cost trust.
        db.pragma_update(None, "synchronous", "normal")?;
        // Pages of at most 16 MiB stay in memory, whatever the cache's size.
        db.pragma_update(None, "cache_size", -16384)?;
        let version: i64 = db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if version != VERSION {
            db.execute_batch(
                "DROP TABLE IF EXISTS packs; DROP TABLE IF EXISTS blocks; DROP TABLE IF EXISTS files;
                 DROP TABLE IF EXISTS parts;
                 CREATE TABLE parts (name TEXT PRIMARY KEY) WITHOUT ROWID;
                 CREATE TABLE packs (id INTEGER PRIMARY KEY AUTOINCREMENT, name BLOB UNIQUE);
                 CREATE TABLE blocks (id BLOB PRIMARY KEY, pack INTEGER NOT NULL, at INTEGER NOT NULL, length INTEGER NOT NULL) WITHOUT ROWID;
                 CREATE TABLE files (archive TEXT NOT NULL, name BLOB NOT NULL, run TEXT NOT NULL,
                     inode INTEGER, ctime INTEGER, mtime INTEGER, size INTEGER,
                     header INTEGER NOT NULL, ranges BLOB NOT NULL, pages BLOB NOT NULL,
                     PRIMARY KEY (archive, name)) WITHOUT ROWID;",
            )?;
            db.pragma_update(None, "user_version", VERSION)?;
        }
        Ok(db)
    }

    fn forget_missing(
        &mut self,
        packs: &HashSet<PackName>,
        where_moved: &WhereMoved<'_>,
    ) -> Result<(), RepositoryError> {
        let (mut gone, mut away) = (Vec::new(), Vec::new());
        let known = |db: &Connection| -> rusqlite::Result<Vec<(PackRef, Option<[u8; 32]>)>> {
            db.prepare("SELECT id, name FROM packs")?
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect()
        };
        for (id, name) in known(&self.db).map_err(failed)? {
            match name.map(PackName) {
                Some(name) if packs.contains(&name) => {
                    self.live(id, name);
                }
                Some(name) => away.push((id, name)),
                None => gone.push(id),
            }
        }
        for (id, name) in away {
            let moved = where_moved(name).and_then(|moved| {
                moved
                    .map(|moved| moved.settle(packs, where_moved))
                    .transpose()
            });
            match moved {
                Ok(Some(moved)) => self.follow(id, moved).map_err(failed)?,
                Ok(None) => gone.push(id),
                // This host cannot read, or the file is damaged: what was in the pack is stored once more.
                Err(err) if !matches!(err, RepositoryError::Io { .. }) => gone.push(id),
                Err(err) => return Err(err),
            }
        }
        for id in gone {
            self.forget_blocks(id)
                .and_then(|()| self.db.execute("DELETE FROM packs WHERE id = ?1", [id]))
                .map_err(failed)?;
        }
        Ok(())
    }

    /// Blocks of a moved pack are learnt from the index of whoever moved them; files are translated as they
    /// are looked up.
    fn follow(&mut self, id: PackRef, moved: Moved) -> rusqlite::Result<()> {
        self.forget_blocks(id)?;
        for piece in moved.pieces() {
            self.number_of(piece.place.pack)?;
        }
        self.moved.insert(id, moved);
        Ok(())
    }

    fn forget_blocks(&self, id: PackRef) -> rusqlite::Result<()> {
        self.db
            .execute("DELETE FROM blocks WHERE pack = ?1", [id])
            .map(drop)
    }

    fn live(&mut self, id: PackRef, name: PackName) {
        self.live.insert(id);
        self.names.insert(id, name);
        self.numbers.insert(name, id);
    }

    /// The number of a pack of the repository.
    fn number_of(&mut self, name: PackName) -> rusqlite::Result<PackRef> {
        if let Some(id) = self.numbers.get(&name) {
            return Ok(*id);
        }
        self.db
            .execute("INSERT INTO packs (name) VALUES (?1)", [name.0])?;
        let id = self.db.last_insert_rowid();
        self.live(id, name);
        Ok(id)
    }

    /// Index parts that were not learnt yet, and forgets those that are gone.
    pub fn unknown_parts(&self, parts: &[String]) -> Result<Vec<String>, RepositoryError> {
        let known = |db: &Connection| -> rusqlite::Result<HashSet<String>> {
            db.prepare("SELECT name FROM parts")?
                .query_map([], |row| row.get(0))?
                .collect()
        };
        let known = known(&self.db).map_err(failed)?;
        let there: HashSet<&String> = parts.iter().collect();
        for part in known.iter().filter(|part| !there.contains(part)) {
            self.db
                .execute("DELETE FROM parts WHERE name = ?1", [part])
                .map_err(failed)?;
        }
        Ok(parts
            .iter()
            .filter(|part| !known.contains(*part))
            .cloned()
            .collect())
    }

    pub fn note_part(&self, part: &str) -> Result<(), RepositoryError> {
        self.db
            .execute("INSERT OR IGNORE INTO parts VALUES (?1)", [part])
            .map(drop)
            .map_err(failed)
    }

    /// Learns which blocks a pack holds that another writer published. Pages are known by their place in a
    /// file, not by their id, and are passed over.
    pub fn learn_pack(
        &mut self,
        name: PackName,
        table: &BlockTable,
    ) -> Result<(), RepositoryError> {
        let pack = self.number_of(name).map_err(failed)?;
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

    /// The ranges with moved pieces where they are now; `None` when any is gone.
    fn translate(&self, ranges: RangeList<PackRef>) -> Option<RangeList<PackRef>> {
        let stays = |pack: &PackRef| self.live.contains(pack);
        if ranges.as_slice().iter().all(|r| stays(&r.pack)) {
            return Some(ranges);
        }
        let mut out = RangeList::default();
        for range in ranges.as_slice() {
            if stays(&range.pack) {
                out.push(*range);
                continue;
            }
            let moved = self.moved.get(&range.pack)?;
            for piece in moved.locate(range.offset, range.length)?.as_slice() {
                out.push(Range {
                    pack: *self.numbers.get(&piece.pack)?,
                    offset: piece.offset,
                    length: piece.length,
                });
            }
        }
        Some(out)
    }

    /// Begins the run's transaction.
    pub fn begin(&mut self) -> Result<(), RepositoryError> {
        self.db.execute_batch("BEGIN IMMEDIATE").map_err(failed)
    }

    /// Makes the run's entries the cache's, and drops files of `archives` that the run did not meet.
    pub fn commit(&mut self, run: &str, archives: &[String]) -> Result<(), RepositoryError> {
        for archive in archives {
            self.db
                .prepare_cached("DELETE FROM files WHERE archive = ?1 AND run <> ?2")
                .and_then(|mut q| q.execute(params![archive, run]))
                .map_err(failed)?;
        }
        self.db.execute_batch("COMMIT").map_err(failed)
    }

    /// A number for a pack that has no name yet.
    pub fn new_pack(&mut self) -> Result<PackRef, RepositoryError> {
        self.db
            .execute("INSERT INTO packs (name) VALUES (NULL)", [])
            .map_err(failed)?;
        let id = self.db.last_insert_rowid();
        self.live.insert(id);
        Ok(id)
    }

    /// The number of a pack that is in the repository.
    pub fn adopt_pack(&mut self, name: PackName) -> Result<PackRef, RepositoryError> {
        self.number_of(name).map_err(failed)
    }

    /// Names a published pack.
    pub fn name_pack(&mut self, pack: PackRef, name: PackName) -> Result<(), RepositoryError> {
        self.db
            .execute(
                "UPDATE packs SET name = ?2 WHERE id = ?1",
                params![pack, name.0],
            )
            .map_err(failed)?;
        self.live(pack, name);
        Ok(())
    }

    pub fn pack_name(&self, pack: PackRef) -> Option<PackName> {
        self.names.get(&pack).copied()
    }

    pub fn block(&self, id: &BlockId) -> Result<Option<Range<PackRef>>, RepositoryError> {
        self.db
            .prepare_cached("SELECT pack, at, length FROM blocks WHERE id = ?1")
            .and_then(|mut q| {
                q.query_row([id.as_slice()], |row| {
                    Ok(Range {
                        pack: row.get(0)?,
                        offset: row.get::<_, i64>(1)?.cast_unsigned(),
                        length: row.get::<_, i64>(2)?.cast_unsigned(),
                    })
                })
                .optional()
            })
            .map_err(failed)
    }

    pub fn add_block(&self, id: &BlockId, at: Range<PackRef>) -> Result<(), RepositoryError> {
        self.db
            .prepare_cached("INSERT OR REPLACE INTO blocks VALUES (?1, ?2, ?3, ?4)")
            .and_then(|mut q| {
                q.execute(params![
                    id.as_slice(),
                    at.pack,
                    at.offset.cast_signed(),
                    at.length.cast_signed()
                ])
            })
            .map(drop)
            .map_err(failed)
    }

    /// The file as the newest backup that held it has it; `None` when any of its packs is gone.
    pub fn file(&self, archive: &str, name: &[u8]) -> Result<Option<CachedFile>, RepositoryError> {
        let found = self
            .db
            .prepare_cached("SELECT inode, ctime, mtime, size, header, ranges, pages FROM files WHERE archive = ?1 AND name = ?2")
            .and_then(|mut q| {
                q.query_row(params![archive, name], |row| {
                    let identity = match row.get::<_, Option<i64>>(0)? {
                        Some(inode) => Some(FileIdentity {
                            inode: inode.cast_unsigned(),
                            ctime_ns: row.get(1)?,
                            mtime_ns: row.get(2)?,
                            size: row.get::<_, i64>(3)?.cast_unsigned(),
                        }),
                        None => None,
                    };
                    Ok((identity, row.get::<_, i64>(4)?.cast_unsigned(), row.get::<_, Vec<u8>>(5)?, row.get::<_, Vec<u8>>(6)?))
                })
                .optional()
            })
            .map_err(failed)?;
        let Some((identity, header_bytes, ranges, pages)) = found else {
            return Ok(None);
        };
        let Some(ranges) = self.translate(decode_ranges(&ranges)) else {
            return Ok(None);
        };
        let pages = pages.as_chunks::<8>().0.to_vec();
        Ok(Some(CachedFile {
            identity,
            ranges,
            header_bytes,
            pages,
        }))
    }

    pub fn put_file(
        &self,
        run: &str,
        archive: &str,
        name: &[u8],
        file: &CachedFile,
    ) -> Result<(), RepositoryError> {
        let id = file.identity;
        self.db
            .prepare_cached(
                "INSERT OR REPLACE INTO files VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            )
            .and_then(|mut q| {
                q.execute(params![
                    archive,
                    name,
                    run,
                    id.map(|i| i.inode.cast_signed()),
                    id.map(|i| i.ctime_ns),
                    id.map(|i| i.mtime_ns),
                    id.map(|i| i.size.cast_signed()),
                    file.header_bytes.cast_signed(),
                    encode_ranges(&file.ranges),
                    file.pages.as_flattened(),
                ])
            })
            .map(drop)
            .map_err(failed)
    }

    /// An unchanged file is the run's too.
    pub fn keep_file(&self, run: &str, archive: &str, name: &[u8]) -> Result<(), RepositoryError> {
        self.db
            .prepare_cached("UPDATE files SET run = ?1 WHERE archive = ?2 AND name = ?3")
            .and_then(|mut q| q.execute(params![run, archive, name]))
            .map(drop)
            .map_err(failed)
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

fn encode_ranges(ranges: &RangeList<PackRef>) -> Vec<u8> {
    let mut out = Vec::with_capacity(ranges.as_slice().len() * 24);
    for range in ranges.as_slice() {
        out.extend_from_slice(&range.pack.to_le_bytes());
        out.extend_from_slice(&range.offset.to_le_bytes());
        out.extend_from_slice(&range.length.to_le_bytes());
    }
    out
}

fn decode_ranges(bytes: &[u8]) -> RangeList<PackRef> {
    let mut list = RangeList::default();
    for [pack, offset, length] in bytes.as_chunks::<8>().0.as_chunks::<3>().0 {
        list.push(Range {
            pack: PackRef::from_le_bytes(*pack),
            offset: u64::from_le_bytes(*offset),
            length: u64::from_le_bytes(*length),
        });
    }
    list
}
