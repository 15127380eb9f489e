//! The cache's rows: one small function a statement.

use rusqlite::{Connection, OptionalExtension, Result, Row, params};

use super::{CachedFile, FileIdentity, KnownFile, PackRef};
use crate::repository::ranges::{Range, RangeList};
use crate::repository::table::{BlockId, PageId};

pub(super) fn block(db: &Connection, id: &BlockId) -> Result<Option<Range<PackRef>>> {
    db.prepare_cached("SELECT pack, at, length FROM blocks WHERE id = ?1")?
        .query_row([id.as_slice()], |row| {
            Ok(Range {
                pack: row.get(0)?,
                offset: row.get::<_, i64>(1)?.cast_unsigned(),
                length: row.get::<_, i64>(2)?.cast_unsigned(),
            })
        })
        .optional()
}

pub(super) fn put_block(db: &Connection, id: &BlockId, at: Range<PackRef>) -> Result<()> {
    db.prepare_cached("INSERT OR REPLACE INTO blocks VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![
            id.as_slice(),
            at.pack,
            at.offset.cast_signed(),
            at.length.cast_signed()
        ])
        .map(drop)
}

pub(super) fn file(db: &Connection, archive: &str, name: &[u8]) -> Result<Option<KnownFile>> {
    db.prepare_cached(
        "SELECT met, inode, ctime, mtime, size, header, ranges, crc32c FROM files WHERE archive = ?1 AND name = ?2",
    )?
    .query_row(params![archive, name], known_file)
    .optional()
}

fn known_file(row: &Row<'_>) -> Result<KnownFile> {
    let identity = match row.get::<_, Option<i64>>(1)? {
        Some(inode) => Some(FileIdentity {
            inode: inode.cast_unsigned(),
            ctime_ns: row.get(2)?,
            mtime_ns: row.get(3)?,
            size: row.get::<_, i64>(4)?.cast_unsigned(),
        }),
        None => None,
    };
    Ok(KnownFile {
        met: row.get(0)?,
        file: CachedFile {
            identity,
            header_bytes: row.get::<_, i64>(5)?.cast_unsigned(),
            ranges: decode_ranges(row.get_ref(6)?.as_blob()?),
            crc32c: row.get(7)?,
        },
    })
}

pub(super) fn put_file(
    db: &Connection,
    archive: &str,
    name: &[u8],
    run: i64,
    file: &CachedFile,
) -> Result<()> {
    let id = file.identity;
    db.prepare_cached(
        "INSERT OR REPLACE INTO files VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
    )?
    .execute(params![
        archive,
        name,
        run,
        id.map(|i| i.inode.cast_signed()),
        id.map(|i| i.ctime_ns),
        id.map(|i| i.mtime_ns),
        id.map(|i| i.size.cast_signed()),
        file.header_bytes.cast_signed(),
        encode_ranges(&file.ranges),
        file.crc32c,
    ])
    .map(drop)
}

pub(super) fn meet(db: &Connection, archive: &str, name: &[u8], run: i64) -> Result<()> {
    db.prepare_cached("UPDATE files SET met = ?3 WHERE archive = ?1 AND name = ?2")?
        .execute(params![archive, name, run])
        .map(drop)
}

pub(super) fn pages(db: &Connection, archive: &str, name: &[u8]) -> Result<Vec<PageId>> {
    let ids = db
        .prepare_cached("SELECT ids FROM pages WHERE archive = ?1 AND name = ?2")?
        .query_row(params![archive, name], |row| {
            Ok(row.get_ref(0)?.as_blob()?.as_chunks::<8>().0.to_vec())
        })
        .optional()?;
    Ok(ids.unwrap_or_default())
}

/// Files without pages have no row, whatever they were before.
pub(super) fn put_pages(db: &Connection, archive: &str, name: &[u8], ids: &[PageId]) -> Result<()> {
    if ids.is_empty() {
        return db
            .prepare_cached("DELETE FROM pages WHERE archive = ?1 AND name = ?2")?
            .execute(params![archive, name])
            .map(drop);
    }
    db.prepare_cached("INSERT OR REPLACE INTO pages VALUES (?1, ?2, ?3)")?
        .execute(params![archive, name, ids.as_flattened()])
        .map(drop)
}

/// Drops the files of an archive that were last met before a run.
pub(super) fn forget(db: &Connection, archive: &str, before: i64) -> Result<()> {
    db.execute(
        "DELETE FROM pages WHERE archive = ?1 AND name IN
             (SELECT name FROM files WHERE archive = ?1 AND met < ?2)",
        params![archive, before],
    )?;
    db.execute(
        "DELETE FROM files WHERE archive = ?1 AND met < ?2",
        params![archive, before],
    )
    .map(drop)
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
