//! The index: which blocks are in which pack, for hosts that did not write them themselves.
//!
//! A writer (a backup, a repack) puts its packs' block tables into parts of some megabytes:
//!
//! ```text
//! index/<writer>-<part>.<epoch>   zstd over (pack name [32], u32 length, block table)*, then a skippable frame
//!                         0x184D2A51 with the 32 bytes of the seal of all bytes before it
//! ```
//! It can be rebuilt from the packs alone, whose trailers hold the same tables. Nothing is lost with it but
//! the knowledge of what need not be stored again.

use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};

use super::crypto::Sealed;
use super::table::BlockTable;
use super::vault::Vault;
use super::{PackName, RepositoryError};

/// A part is put when its tables are this long.
const PART_RAW_BYTES: usize = 8 * 1024 * 1024;
const PART_LIMIT_BYTES: u64 = 64 * 1024 * 1024;
const TABLE_LIMIT_BYTES: u32 = 32 * 1024 * 1024;

/// Collects the tables of one writer's packs, and puts them part by part.
pub struct IndexWriter {
    vault: Arc<Vault>,
    writer: String,
    open: Mutex<Part>,
}

#[derive(Default)]
struct Part {
    number: u32,
    raw: Vec<u8>,
    /// Names of the parts before it.
    put: Vec<String>,
}

impl IndexWriter {
    pub fn new(vault: Arc<Vault>, writer: &str) -> Self {
        Self {
            vault,
            writer: writer.to_owned(),
            open: Mutex::default(),
        }
    }

    /// Adds a published pack.
    pub fn add(&self, pack: PackName, table: &BlockTable) -> Result<(), RepositoryError> {
        let table = table.encode();
        let length = u32::try_from(table.len())
            .ok()
            .filter(|length| *length <= TABLE_LIMIT_BYTES)
            .ok_or_else(|| RepositoryError::Invalid("a block table is too large".to_owned()))?;
        let mut part = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        part.raw.extend_from_slice(&pack.0);
        part.raw.extend_from_slice(&length.to_le_bytes());
        part.raw.extend_from_slice(&table);
        if part.raw.len() >= PART_RAW_BYTES {
            self.put(&mut part)?;
        }
        Ok(())
    }

    /// Puts what is left: every pack added is in the index when this returns.
    pub fn flush(&self) -> Result<(), RepositoryError> {
        let mut part = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if part.raw.is_empty() {
            return Ok(());
        }
        self.put(&mut part)
    }

    fn put(&self, part: &mut Part) -> Result<(), RepositoryError> {
        let body = zstd::bulk::compress(&part.raw, 3)
            .map_err(|e| RepositoryError::io("compress the index", e))?;
        loop {
            part.number += 1;
            let name = format!("{}-{:04}.{}", self.writer, part.number, self.vault.epoch());
            let bytes = self.vault.sealed_frames(Sealed::Index(&name), &body);
            match self.vault.put(&key(&name), &bytes) {
                // Of a copy that was killed: what it names is there.
                Err(RepositoryError::Exists(_)) => {}
                other => {
                    other?;
                    part.put.push(name);
                    break;
                }
            }
        }
        part.raw.clear();
        Ok(())
    }

    /// Names of the parts that were put.
    pub fn parts(&self) -> Vec<String> {
        let part = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        part.put.clone()
    }
}

pub(super) fn key(part: &str) -> String {
    format!("index/{part}")
}

/// Names of the parts whose packs a new run may refer to.
pub fn current_parts(vault: &Vault) -> Result<Vec<String>, RepositoryError> {
    let end = format!(".{}", vault.epoch());
    let mut parts = parts(vault)?;
    parts.retain(|part| part.ends_with(&end));
    Ok(parts)
}

/// Names of all parts in the store.
pub fn parts(vault: &Vault) -> Result<Vec<String>, RepositoryError> {
    let entries = vault.store.list("index")?;
    Ok(entries
        .iter()
        .filter_map(|e| part_of(vault, &e.key))
        .map(str::to_owned)
        .collect())
}

/// The part that a key names.
pub fn part_of<'a>(vault: &Vault, key: &'a str) -> Option<&'a str> {
    key.strip_prefix("index/")?
        .strip_suffix(vault.mode.suffix())
}

/// Whether a part names a pack that `wanted` says yes to; reads only as far as the first. What is not wanted is
/// told by a part whose seal is right.
pub fn names_any(
    vault: &Vault,
    part: &str,
    wanted: impl Fn(PackName) -> bool,
) -> Result<bool, RepositoryError> {
    let key = vault.key(&key(part));
    let mut plain = vault.mode.open(&key, vault.store.open(&key)?)?;
    let mut first = [0u8; 32];
    let early = plain
        .stream()
        .and_then(zstd::stream::Decoder::new)
        .and_then(|mut input| input.read_exact(&mut first));
    if early.is_ok() && wanted(PackName(first)) {
        return Ok(true);
    }
    let mut found = false;
    read(vault, part, |pack, _| {
        found |= wanted(pack);
        Ok(())
    })?;
    Ok(found)
}

/// Reads one part; `visit` gets each pack with its table.
pub fn read(
    vault: &Vault,
    part: &str,
    mut visit: impl FnMut(PackName, BlockTable) -> Result<(), RepositoryError>,
) -> Result<(), RepositoryError> {
    let key = key(part);
    let bytes = vault.get(&key, PART_LIMIT_BYTES)?;
    let body = vault.unsealed_frames(Sealed::Index(part), &key, &bytes)?;
    let failed = |e| RepositoryError::io(format!("read {key}"), e);
    let mut input = zstd::stream::Decoder::new(body).map_err(failed)?;
    loop {
        let mut pack = [0u8; 32];
        match input.read_exact(&mut pack) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            other => other.map_err(failed)?,
        }
        let mut length = [0u8; 4];
        input.read_exact(&mut length).map_err(failed)?;
        let length = u32::from_le_bytes(length);
        if length > TABLE_LIMIT_BYTES {
            return Err(RepositoryError::Invalid(format!(
                "{key} claims a table of {length} bytes: it is damaged"
            )));
        }
        let mut table = Vec::new();
        let read = (&mut input)
            .take(u64::from(length))
            .read_to_end(&mut table)
            .map_err(failed)?;
        if read as u64 != u64::from(length) {
            return Err(RepositoryError::Invalid(format!(
                "{key} ends in the middle of a table: it is damaged"
            )));
        }
        visit(PackName(pack), BlockTable::decode(&table)?)?;
    }
}
