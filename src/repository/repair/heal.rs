//! Healing: for each pack that is gone or damaged, finds its blocks elsewhere, and saves those that its own
//! frames still give.
//!
//! Which blocks a pack held is taken from the index, which is sealed. A damaged pack's own table is believed
//! only where nothing is encrypted: there the seals' key lies open anyway. Every block is read and compared
//! with its id before a move names it; a page by 64 bits of its keyed hash.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::saved::{OwnFrames, Saved};
use crate::repository::crypto::Mode;
use crate::repository::frame::Decoder;
use crate::repository::index::{self, IndexWriter};
use crate::repository::lease::{self, Lease};
use crate::repository::moved::Moved;
use crate::repository::moves::MoveList;
use crate::repository::pack::PackReader;
use crate::repository::ranges::Range;
use crate::repository::reader::Packs;
use crate::repository::session::new_id;
use crate::repository::table::{BlockTable, Run};
use crate::repository::{PackName, Repository, RepositoryError, damaged_key};

const LOCK_PATIENCE: Duration = Duration::from_mins(10);
/// Lost blocks that are looked for in one pass over the index: keeps memory bounded.
const BATCH_BLOCKS: usize = 1 << 20;
/// Places that are tried for one block.
const PLACES: usize = 3;

/// What became of one pack that is gone or damaged.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Healed {
    pub pack: String,
    /// It was read again, and nothing is wrong with it.
    pub is_whole: bool,
    /// What it held is not known: it is in no part of the index.
    pub is_unknown: bool,
    /// Bytes that were found in other packs.
    pub found_bytes: u64,
    /// Bytes that its own frames still gave.
    pub saved_bytes: u64,
    /// Bytes that are nowhere, whether a backup needs them or not: `verify` tells.
    pub lost_bytes: u64,
}

/// Heals every pack that backups need and that is gone or marked as damaged.
pub fn heal(
    repository: &Repository,
    dry_run: bool,
    mut progress: impl FnMut(u64, u64),
) -> Result<Vec<Healed>, RepositoryError> {
    let vault = repository.vault();
    if !vault.mode.can_read() {
        return Err(RepositoryError::NoIdentity);
    }
    let run = new_id(Timestamp::now());
    // First the lease: what is usable now stays until it ends.
    let lease = if dry_run {
        None
    } else {
        Some(Lease::take_to_move(vault, &run, LOCK_PATIENCE)?)
    };
    let mut healer = Healer::new(repository, &run, dry_run)?;
    let (backups, needed) = healer.needed()?;
    let mut outcomes = Vec::new();
    let mut open = Vec::new();
    for pack in needed {
        if healer.listed.contains(&pack) && !healer.marked.contains(&pack) {
            continue;
        }
        if healer.is_whole_again(pack)? {
            outcomes.push(Healed {
                pack: pack.to_string(),
                is_whole: true,
                ..Healed::default()
            });
        } else {
            open.push(pack);
        }
    }
    let (total, mut moves) = (open.len() as u64, BTreeMap::new());
    let mut tables = healer.tables(&open)?;
    while !open.is_empty() {
        progress(total - open.len() as u64, total);
        outcomes.extend(healer.batch(&mut open, &mut tables, &mut moves)?);
    }
    if let Some(lease) = lease.filter(|_| !moves.is_empty()) {
        healer.index.flush()?;
        lease.check()?;
        vault
            .commit_moves(&run, &moves, backups)
            .map_err(lease::overtaken)?;
    }
    Ok(outcomes)
}

/// What identifies a block well enough to look for it: its length, and the front of its id.
type Clue = (u32, [u8; 8]);

/// A block that a bad pack held.
pub(super) struct Block {
    pub(super) offset: u64,
    pub(super) length: u32,
    /// Eight bytes for a page.
    pub(super) id: Vec<u8>,
}

impl Block {
    fn clue(&self) -> Clue {
        (self.length, clue(&self.id))
    }

    fn range(&self, pack: PackName) -> Range<PackName> {
        Range {
            pack,
            offset: self.offset,
            length: u64::from(self.length),
        }
    }
}

pub(super) fn clue(id: &[u8]) -> [u8; 8] {
    id.first_chunk().copied().unwrap_or_default()
}

struct Healer<'a> {
    repository: &'a Repository,
    dry_run: bool,
    usable: HashSet<PackName>,
    listed: HashSet<PackName>,
    marked: HashSet<PackName>,
    moves: MoveList,
    index: IndexWriter,
    packs: Packs,
    decoder: Decoder,
}

impl<'a> Healer<'a> {
    fn new(repository: &'a Repository, run: &str, dry_run: bool) -> Result<Self, RepositoryError> {
        let vault = repository.vault();
        let zstd = |e| RepositoryError::io("set up zstd", e);
        Ok(Self {
            repository,
            dry_run,
            usable: lease::usable_packs(vault)?,
            listed: lease::names(vault, "packs", &vault.key(".zst"))?,
            marked: lease::names(vault, "damaged", "")?,
            moves: vault.moves()?,
            index: IndexWriter::new(vault.clone(), run),
            packs: Packs::new(vault.clone()).map_err(zstd)?,
            decoder: Decoder::new().map_err(zstd)?,
        })
    }

    /// All backups, and the packs that they name, with those that pieces of bad ones moved to.
    fn needed(&self) -> Result<(BTreeSet<String>, BTreeSet<PackName>), RepositoryError> {
        let mut backups = BTreeSet::new();
        let mut open = Vec::new();
        for id in self.repository.backups()? {
            match self.repository.uses(&id) {
                Ok(uses) => open.extend(uses.packs().map(|(pack, _)| pack)),
                Err(err @ RepositoryError::Remote { .. }) => return Err(err),
                Err(err) => tracing::warn!("what backup {id} needs is not known: {err}"),
            }
            backups.insert(id);
        }
        let mut needed = BTreeSet::new();
        while let Some(pack) = open.pop() {
            if !needed.insert(pack) || self.usable.contains(&pack) {
                continue;
            }
            if let Some(moved) = self.moves.find(self.repository.vault(), pack)? {
                open.extend(moved.pieces().iter().map(|piece| piece.place.pack));
            }
        }
        Ok((backups, needed))
    }

    /// Reads a marked pack again: somebody may have put the file back, or the disk was at fault for a while.
    fn is_whole_again(&mut self, pack: PackName) -> Result<bool, RepositoryError> {
        if !self.listed.contains(&pack) {
            return Ok(false);
        }
        let vault = self.repository.vault();
        let read = PackReader::open(vault, pack, true)
            .and_then(|mut reader| reader.decode_all(&mut self.decoder));
        match read {
            Ok(()) if self.dry_run => Ok(true),
            Ok(()) => {
                vault.store.delete(&damaged_key(pack))?;
                Ok(true)
            }
            Err(err @ RepositoryError::Remote { .. }) => Err(err),
            Err(_) => Ok(false),
        }
    }

    /// What the packs held.
    fn tables(&self, packs: &[PackName]) -> Result<HashMap<PackName, BlockTable>, RepositoryError> {
        let mut tables = HashMap::new();
        self.each_table(|pack, table| {
            if packs.contains(&pack) {
                tables.insert(pack, table);
            }
            Ok(())
        })?;
        let vault = self.repository.vault();
        for pack in packs {
            if matches!(vault.mode, Mode::Plain)
                && !tables.contains_key(pack)
                && let Ok(table) =
                    PackReader::open(vault, *pack, false).and_then(|mut reader| reader.table())
            {
                tables.insert(*pack, table);
            }
        }
        Ok(tables)
    }

    fn each_table(
        &self,
        mut visit: impl FnMut(PackName, BlockTable) -> Result<(), RepositoryError>,
    ) -> Result<(), RepositoryError> {
        let vault = self.repository.vault();
        for part in index::parts(vault)? {
            match index::read(vault, &part, &mut visit) {
                Ok(()) | Err(RepositoryError::Missing(_)) => {}
                Err(err @ RepositoryError::Remote { .. }) => return Err(err),
                Err(err) => tracing::warn!("index/{part} is not used: {err}; run `repair index`"),
            }
        }
        Ok(())
    }

    /// Heals some packs of `open`, so many that their blocks fit into memory.
    fn batch(
        &mut self,
        open: &mut Vec<PackName>,
        tables: &mut HashMap<PackName, BlockTable>,
        moves: &mut BTreeMap<PackName, Moved>,
    ) -> Result<Vec<Healed>, RepositoryError> {
        let mut healed = Vec::new();
        let (mut batch, mut count) = (Vec::new(), 0);
        while count < BATCH_BLOCKS
            && let Some(pack) = open.pop()
        {
            let Some(table) = tables.remove(&pack) else {
                healed.push(Healed {
                    pack: pack.to_string(),
                    is_unknown: true,
                    ..Healed::default()
                });
                continue;
            };
            let lost = self.not_moved(pack, blocks(&table))?;
            count += lost.len();
            if !lost.is_empty() {
                batch.push((pack, lost));
            }
        }
        let places = self.places(&batch)?;
        for (pack, lost) in batch {
            let (outcome, pieces) = self.heal_pack(pack, &lost, &places)?;
            if !pieces.pieces().is_empty() {
                moves.insert(pack, pieces);
            }
            healed.push(outcome);
        }
        Ok(healed)
    }

    /// The blocks that no earlier move leads to.
    fn not_moved(&self, pack: PackName, blocks: Vec<Block>) -> Result<Vec<Block>, RepositoryError> {
        let vault = self.repository.vault();
        let find = |pack| self.moves.find(vault, pack);
        let Some(moved) = find(pack)? else {
            return Ok(blocks);
        };
        let moved = moved.settle(&self.usable, &find)?;
        Ok(blocks
            .into_iter()
            .filter(|block| {
                moved
                    .locate(block.offset, u64::from(block.length))
                    .is_none()
            })
            .collect())
    }

    /// Where usable packs have blocks that look like the lost ones.
    fn places(
        &self,
        batch: &[(PackName, Vec<Block>)],
    ) -> Result<HashMap<Clue, Vec<Range<PackName>>>, RepositoryError> {
        let mut places: HashMap<Clue, Vec<Range<PackName>>> = HashMap::new();
        for block in batch.iter().flat_map(|(_, blocks)| blocks) {
            places.entry(block.clue()).or_default();
        }
        self.each_table(|pack, table| {
            if self.usable.contains(&pack) {
                for block in blocks(&table) {
                    if let Some(found) = places.get_mut(&block.clue())
                        && found.len() < PLACES
                    {
                        found.push(block.range(pack));
                    }
                }
            }
            Ok(())
        })?;
        Ok(places)
    }

    fn heal_pack(
        &mut self,
        pack: PackName,
        lost: &[Block],
        places: &HashMap<Clue, Vec<Range<PackName>>>,
    ) -> Result<(Healed, Moved), RepositoryError> {
        let mut healed = Healed {
            pack: pack.to_string(),
            ..Healed::default()
        };
        let mut own = OwnFrames::open(self.repository, pack)?;
        let mut saved = Saved::default();
        let mut found = Vec::new();
        for block in lost {
            let length = u64::from(block.length);
            let elsewhere = places.get(&block.clue()).map(Vec::as_slice);
            if let Some(place) = self.genuine(block, elsewhere.unwrap_or_default())? {
                healed.found_bytes += length;
                found.push((block.offset, Place::There(place)));
            } else if let Some(bytes) = own.block(block, &mut self.decoder)
                && self.is(block, bytes)
            {
                healed.saved_bytes += length;
                let offset = saved.raw_bytes;
                found.push((block.offset, Place::Saved { offset, length }));
                if !self.dry_run {
                    saved.add(self.repository, block, bytes)?;
                }
            } else {
                healed.lost_bytes += length;
            }
        }
        let mut moved = Moved::default();
        if self.dry_run {
            return Ok((healed, moved));
        }
        let saved = saved.publish(self.repository, &self.index)?;
        for (at, place) in found {
            match (place, saved) {
                (Place::There(range), _) => moved.push(at, range),
                (Place::Saved { offset, length }, Some(pack)) => moved.push(
                    at,
                    Range {
                        pack,
                        offset,
                        length,
                    },
                ),
                (Place::Saved { .. }, None) => {}
            }
        }
        Ok((healed, moved))
    }

    /// The first place that reads as the block.
    fn genuine(
        &mut self,
        block: &Block,
        places: &[Range<PackName>],
    ) -> Result<Option<Range<PackName>>, RepositoryError> {
        let mut bytes = Vec::new();
        for place in places {
            match self.packs.read(*place, &mut bytes) {
                Ok(()) if self.is(block, &bytes) => return Ok(Some(*place)),
                Err(err @ (RepositoryError::Remote { .. } | RepositoryError::Io { .. })) => {
                    return Err(err);
                }
                _ => {}
            }
        }
        Ok(None)
    }

    fn is(&self, block: &Block, bytes: &[u8]) -> bool {
        let hash = self.repository.vault().secrets.block_hash(bytes);
        bytes.len() as u64 == u64::from(block.length) && hash.as_bytes().starts_with(&block.id)
    }
}

#[derive(Clone, Copy)]
enum Place {
    There(Range<PackName>),
    Saved { offset: u64, length: u64 },
}

fn blocks(table: &BlockTable) -> Vec<Block> {
    let (mut blocks, mut offset) = (Vec::new(), 0);
    let mut push = |length: u32, id: &[u8]| {
        blocks.push(Block {
            offset,
            length,
            id: id.to_vec(),
        });
        offset += u64::from(length);
    };
    for run in table.runs() {
        match run {
            Run::Pages { unit, ids } => ids.iter().for_each(|id| push(*unit, id)),
            Run::Blocks(entries) => entries.iter().for_each(|(length, id)| push(*length, id)),
        }
    }
    blocks
}
