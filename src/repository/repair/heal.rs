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

use super::needs::{Bad, Needs};
use super::saved::{OwnFrames, Saved};
use crate::repository::crypto::Mode;
use crate::repository::frame::Decoder;
use crate::repository::index::{self, IndexWriter};
use crate::repository::lease::{self, Lease};
use crate::repository::moved::Moved;
use crate::repository::pack::PackReader;
use crate::repository::ranges::Range;
use crate::repository::reader::Packs;
use crate::repository::session::new_id;
use crate::repository::stock::Stock;
use crate::repository::table::{BlockTable, Run};
use crate::repository::{PackName, Repository, RepositoryError, damaged_key};

const LOCK_PATIENCE: Duration = Duration::from_mins(10);
/// Bad packs whose tables, and lost blocks that are looked for, in one pass over the index: both keep memory
/// bounded.
const BATCH_PACKS: usize = 128;
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
    /// Bytes that backups want and that are nowhere.
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
    let mut stock = Stock::look(vault)?;
    let mut needs = Needs::look(repository, &mut stock)?;
    let mut healer = Healer::new(repository, &run, dry_run, stock)?;
    let mut outcomes = Vec::new();
    for pack in &needs.reached {
        if healer.is_whole_again(*pack)? {
            needs.bad.remove(pack);
            outcomes.push(Healed {
                pack: pack.to_string(),
                is_whole: true,
                ..Healed::default()
            });
        }
    }
    let open: Vec<(PackName, Bad)> = std::mem::take(&mut needs.bad).into_iter().collect();
    for (at, group) in open.chunks(BATCH_PACKS).enumerate() {
        progress((at * BATCH_PACKS) as u64, open.len() as u64);
        outcomes.extend(healer.group(group, needs.wants_all)?);
    }
    if let Some(lease) = lease.filter(|_| !healer.moved.is_empty()) {
        healer.index.flush()?;
        lease.check()?;
        vault
            .commit_moves(&run, &healer.moved, healer.incomplete, needs.backups)
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

/// A bad pack, what is known of it, and what has to be found.
struct Task {
    pack: PackName,
    is_uncovered: bool,
    /// Where earlier moves lead.
    earlier: Moved,
    lost: Vec<Block>,
}

struct Healer<'a> {
    repository: &'a Repository,
    dry_run: bool,
    stock: Stock,
    usable: HashSet<PackName>,
    index: IndexWriter,
    packs: Packs,
    decoder: Decoder,
    /// What is to be committed: of each pack everything that is known, for the newest move of one stands alone.
    moved: BTreeMap<PackName, Moved>,
    incomplete: BTreeSet<PackName>,
}

impl<'a> Healer<'a> {
    fn new(
        repository: &'a Repository,
        run: &str,
        dry_run: bool,
        stock: Stock,
    ) -> Result<Self, RepositoryError> {
        let vault = repository.vault();
        let zstd = |e| RepositoryError::io("set up zstd", e);
        let listed = stock.packs.listed.iter().copied();
        Ok(Self {
            repository,
            dry_run,
            usable: listed.filter(|pack| stock.packs.is_usable(*pack)).collect(),
            stock,
            index: IndexWriter::new(vault.clone(), run),
            packs: Packs::new(vault.clone()).map_err(zstd)?,
            decoder: Decoder::new().map_err(zstd)?,
            moved: BTreeMap::new(),
            incomplete: BTreeSet::new(),
        })
    }

    /// Reads a marked pack again: somebody may have put the file back, or the disk was at fault for a while.
    fn is_whole_again(&mut self, pack: PackName) -> Result<bool, RepositoryError> {
        if !self.stock.packs.listed.contains(&pack) {
            return Ok(false);
        }
        let vault = self.repository.vault();
        let read = PackReader::open(vault, pack, true)
            .and_then(|mut reader| reader.decode_all(&mut self.decoder));
        match read {
            Ok(()) if self.dry_run => Ok(true),
            Ok(()) => {
                vault.store.delete(&damaged_key(pack))?;
                self.stock.packs.damaged.remove(&pack);
                if self.stock.packs.is_usable(pack) {
                    self.usable.insert(pack);
                }
                Ok(true)
            }
            Err(err @ RepositoryError::Remote { .. }) => Err(err),
            Err(_) => Ok(false),
        }
    }

    /// What the packs held.
    fn tables(
        &self,
        packs: &HashSet<PackName>,
    ) -> Result<HashMap<PackName, BlockTable>, RepositoryError> {
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

    /// Heals some packs, as many at a time as their blocks fit into memory.
    fn group(
        &mut self,
        group: &[(PackName, Bad)],
        wants_all: bool,
    ) -> Result<Vec<Healed>, RepositoryError> {
        let mut tables = self.tables(&group.iter().map(|(pack, _)| *pack).collect())?;
        let (mut healed, mut batch, mut count) = (Vec::new(), Vec::new(), 0);
        for (pack, bad) in group {
            let mut task = Task {
                pack: *pack,
                is_uncovered: bad.is_uncovered,
                earlier: self.earlier(*pack)?,
                lost: Vec::new(),
            };
            let is_known = |begin: u64, end: u64| task.earlier.locate(begin, end - begin).is_some();
            if wants_all || !bad.parts.iter().all(|(begin, end)| is_known(*begin, *end)) {
                let Some(table) = tables.remove(pack) else {
                    healed.push(Healed {
                        pack: pack.to_string(),
                        is_unknown: true,
                        ..Healed::default()
                    });
                    continue;
                };
                let mut lost = blocks(&table);
                lost.retain(|block| {
                    let (begin, end) = (block.offset, block.offset + u64::from(block.length));
                    (wants_all || bad.wants(begin, end)) && !is_known(begin, end)
                });
                task.lost = lost;
            }
            count += task.lost.len();
            batch.push(task);
            if count >= BATCH_BLOCKS {
                healed.extend(self.batch(std::mem::take(&mut batch))?);
                count = 0;
            }
        }
        healed.extend(self.batch(batch)?);
        Ok(healed)
    }

    /// The pieces that earlier moves lead to, where they are in the end.
    fn earlier(&self, pack: PackName) -> Result<Moved, RepositoryError> {
        let vault = self.repository.vault();
        let find = |pack| self.stock.moves.find(vault, pack);
        let moved = find(pack)?.unwrap_or_default();
        moved.settle(&self.usable, &find)
    }

    fn batch(&mut self, batch: Vec<Task>) -> Result<Vec<Healed>, RepositoryError> {
        let places = self.places(&batch)?;
        let mut healed = Vec::new();
        for task in batch {
            let (outcome, found) = self.heal_pack(task.pack, &task.lost, &places)?;
            let (is_new, is_complete) = (!found.pieces().is_empty(), outcome.lost_bytes == 0);
            if !task.lost.is_empty() {
                healed.push(outcome);
            }
            let mut pieces = task.earlier;
            pieces.fill(&found);
            let is_told = is_new || is_complete || task.is_uncovered;
            if self.dry_run || pieces.pieces().is_empty() || !is_told {
                continue;
            }
            self.moved.insert(task.pack, pieces);
            if !is_complete {
                self.incomplete.insert(task.pack);
            }
        }
        Ok(healed)
    }

    /// Where usable packs have blocks that look like the lost ones.
    fn places(
        &self,
        batch: &[Task],
    ) -> Result<HashMap<Clue, Vec<Range<PackName>>>, RepositoryError> {
        let mut places: HashMap<Clue, Vec<Range<PackName>>> = HashMap::new();
        for block in batch.iter().flat_map(|task| &task.lost) {
            places.entry(block.clue()).or_default();
        }
        if places.is_empty() {
            return Ok(places);
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
