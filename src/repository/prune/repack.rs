//! Copies the live part of packs that are mostly dead, so that the rest of them can go.
//!
//! Which packs look mostly dead is told by the backups' lists of packs. What exactly is live is the union of
//! all ranges of all backups; it is read under a lease, after which the moves hold for just these backups.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::decide::{self, Share};
use super::sizes::Sizes;
use super::survey::{self, Close, Survey};
use super::{Options, Report, new_run};
use crate::repository::frame::{Decoder, FRAME_RAW_BYTES, MODEL_FRAME_RAW_BYTES};
use crate::repository::index::IndexWriter;
use crate::repository::lease::{self, Lease};
use crate::repository::moved::{MOVES_LIMIT, Moved};
use crate::repository::pack::{MODEL_PACK_BYTES, PACK_BYTES, PACK_RAW_LIMIT, PackReader};
use crate::repository::pipeline::{Pipeline, Workers};
use crate::repository::ranges::Range;
use crate::repository::table::{BlockId, BlockTable, PageId, Run};
use crate::repository::vault::Vault;
use crate::repository::{PackName, Repository, RepositoryError};

/// Decompressed bytes that one run copies at the most; the next prune goes on.
const COPY_LIMIT_BYTES: u64 = 4 * 1024 * 1024 * 1024;

/// Tells what would be repacked.
pub fn plan(
    repository: &Repository,
    survey: &Survey,
    options: &Options,
    report: &mut Report,
) -> Result<(), RepositoryError> {
    for pack in worth(repository, survey, options, None, report)? {
        report.repacked.add(survey.size(pack));
        if !survey.is_fresh(pack) {
            report.trashed.add(survey.size(pack));
        }
    }
    Ok(())
}

/// Repacks what is worth it; `false` when nothing was.
pub fn repack(
    repository: &Repository,
    survey: &Survey,
    options: &Options,
    report: &mut Report,
) -> Result<bool, RepositoryError> {
    if worth(repository, survey, options, None, report)?.is_empty() {
        return Ok(false);
    }
    let run = new_run();
    let lease = match Lease::take_to_move(repository.vault(), &run, Duration::ZERO) {
        Ok(lease) => lease,
        // Whoever has the repository for itself repacks too.
        Err(RepositoryError::Invalid(why)) => {
            report.notes.push(format!("nothing was repacked: {why}"));
            return Ok(false);
        }
        Err(other) => return Err(other),
    };
    // Under the lease: what is there now stays.
    let survey = Survey::look(repository, Close::Nobody)?;
    let packs = worth(repository, &survey, options, Some(&run), report)?;
    if packs.is_empty() {
        return Ok(false);
    }
    let live = LiveParts::read(repository, &survey, packs)?;
    let mut copier = Copier::start(repository, &run, options.level)?;
    for (pack, parts) in &live.parts {
        match copier.copy(*pack, parts, survey.size(*pack)) {
            Ok(()) => {}
            Err(RepositoryError::Damaged { pack: damaged, why }) if damaged == *pack => {
                copier.forget(*pack);
                repository.mark_damaged(damaged, &why)?;
                report
                    .notes
                    .push(format!("pack {damaged} is damaged ({why}): run `verify`"));
            }
            Err(other) => return Err(other),
        }
    }
    let (moved, written) = copier.finish()?;
    if moved.is_empty() {
        return Ok(false);
    }
    lease.check()?;
    repository
        .vault()
        .commit_moves(&run, &moved, live.backups)
        .map_err(lease::overtaken)?;
    for pack in moved.keys() {
        report.repacked.add(survey.size(*pack));
    }
    for bytes in written {
        report.rewritten.add(bytes);
    }
    Ok(true)
}

/// The packs that look mostly dead, those with the least to copy first.
fn worth(
    repository: &Repository,
    survey: &Survey,
    options: &Options,
    own_run: Option<&str>,
    report: &mut Report,
) -> Result<BTreeSet<PackName>, RepositoryError> {
    let vault = repository.vault();
    if !vault.mode.can_read() {
        say(
            report,
            "this host cannot decrypt, so it cannot repack: packs that are mostly dead stay",
        );
        return Ok(BTreeSet::new());
    }
    let moved: BTreeSet<PackName> = survey
        .moves
        .values()
        .flat_map(|one| one.packs.keys())
        .copied()
        .collect();
    let can_move = |pack: &PackName| {
        survey.packs.contains_key(pack)
            && !moved.contains(pack)
            && !survey.damaged.contains(pack)
            && !survey.is_trashed(*pack)
            // It could not be put into the trash yet, and the next backup would refer to it again.
            && !survey.is_fresh(*pack)
    };
    let names = survey
        .used_bytes
        .keys()
        .filter(|pack| can_move(pack))
        .copied()
        .collect();
    let is_there = |pack| survey.packs.contains_key(&pack);
    let mut sizes = Sizes::load(options.state.as_deref(), repository.id(), is_there);
    sizes.read(vault, &names)?;
    let shares = names.iter().filter_map(|pack| {
        Some(Share {
            pack: *pack,
            live_bytes: *survey.used_bytes.get(pack)?,
            raw_bytes: sizes.get(*pack)?,
        })
    });
    let free = vault.store.free_bytes().unwrap_or(u64::MAX) / 2;
    let mut left = COPY_LIMIT_BYTES.min(free);
    let mut chosen = BTreeSet::new();
    for share in decide::sparse(shares.collect()) {
        let Some(rest) = left.checked_sub(share.live_bytes) else {
            break;
        };
        left = rest;
        chosen.insert(share.pack);
    }
    let others = survey
        .runs
        .iter()
        .any(|run| run.alive && Some(run.run.as_str()) != own_run);
    if !chosen.is_empty() && others {
        // They may come to refer to a pack's dead part, and then all of it stays.
        say(
            report,
            "packs that are mostly dead wait until no run is under way",
        );
        chosen.clear();
    }
    Ok(chosen)
}

fn say(report: &mut Report, note: &str) {
    if !report.notes.iter().any(|said| said == note) {
        report.notes.push(note.to_owned());
    }
}

/// Which parts of the chosen packs are live.
struct LiveParts {
    /// Begin and end of each part, in order.
    parts: BTreeMap<PackName, Vec<(u64, u64)>>,
    /// The backups that were looked at.
    backups: BTreeSet<String>,
}

/// Parts that are gathered before they are merged.
const MERGE_AT: usize = 1 << 20;

impl LiveParts {
    fn read(
        repository: &Repository,
        survey: &Survey,
        packs: BTreeSet<PackName>,
    ) -> Result<Self, RepositoryError> {
        let mut live = Self {
            parts: packs.into_iter().map(|pack| (pack, Vec::new())).collect(),
            backups: BTreeSet::new(),
        };
        let mut pieces = Pieces::new(repository.vault(), survey);
        for id in &survey.backups {
            let Some(uses) = survey::uses(repository, id)? else {
                continue;
            };
            live.backups.insert(id.clone());
            let concerned =
                |pack: &PackName| live.parts.contains_key(pack) || pieces.runs.contains_key(pack);
            if !uses.packs().any(|(pack, _)| concerned(&pack)) {
                continue;
            }
            let read = survey::visit_ranges(repository, id, |list| {
                for range in list.as_slice() {
                    live.add(*range, &mut pieces)?;
                }
                Ok(())
            });
            match read {
                // It was dropped meanwhile: what was noted of it is copied in vain.
                Err(err) if err.is_damage() && survey::uses(repository, id)?.is_none() => {}
                other => other?,
            }
        }
        for parts in live.parts.values_mut() {
            merge(parts);
        }
        Ok(live)
    }

    fn add(
        &mut self,
        range: Range<PackName>,
        pieces: &mut Pieces<'_>,
    ) -> Result<(), RepositoryError> {
        let mut open = vec![(range, 0)];
        while let Some((range, moves)) = open.pop() {
            if let Some(parts) = self.parts.get_mut(&range.pack) {
                parts.push((range.offset, range.offset + range.length));
                if parts.len() >= MERGE_AT {
                    merge(parts);
                }
            }
            if moves < MOVES_LIMIT {
                for next in pieces.of(range)? {
                    open.push((next, moves + 1));
                }
            }
        }
        Ok(())
    }
}

fn merge(parts: &mut Vec<(u64, u64)>) {
    parts.sort_unstable();
    let mut merged: Vec<(u64, u64)> = Vec::new();
    for (begin, end) in parts.drain(..) {
        match merged.last_mut() {
            Some(last) if begin <= last.1 => last.1 = last.1.max(end),
            _ => merged.push((begin, end)),
        }
    }
    *parts = merged;
}

/// Where pieces went, whichever run moved them.
struct Pieces<'a> {
    vault: &'a Vault,
    runs: HashMap<PackName, Vec<String>>,
    read: HashMap<(String, PackName), Moved>,
}

impl<'a> Pieces<'a> {
    fn new(vault: &'a Vault, survey: &Survey) -> Self {
        let mut runs: HashMap<_, Vec<String>> = HashMap::new();
        for (run, record) in &survey.moves {
            for pack in record.packs.keys() {
                runs.entry(*pack).or_default().push(run.clone());
            }
        }
        Self {
            vault,
            runs,
            read: HashMap::new(),
        }
    }

    fn of(&mut self, range: Range<PackName>) -> Result<Vec<Range<PackName>>, RepositoryError> {
        let mut found = Vec::new();
        for run in self.runs.get(&range.pack).into_iter().flatten() {
            let moved = match self.read.entry((run.clone(), range.pack)) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => match self.vault.pieces(run, range.pack) {
                    Ok(moved) => entry.insert(moved),
                    // Nobody needed it any more.
                    Err(RepositoryError::Missing(_)) => entry.insert(Moved::default()),
                    Err(other) => return Err(other),
                },
            };
            found.extend(moved.within(range.offset, range.length));
        }
        Ok(found)
    }
}

/// Writes live blocks into new packs.
struct Copier {
    /// Before the workers, which end when no pipeline can send them jobs any more.
    pipeline: Pipeline,
    _workers: Workers,
    vault: Arc<Vault>,
    index: Arc<IndexWriter>,
    decoder: Decoder,
    frame: Vec<u8>,
    frame_limit: usize,
    pack_limit: u64,
    /// The number of the pack being written.
    pack: i64,
    pack_raw: u64,
    table: BlockTable,
    moved: BTreeMap<PackName, Vec<(u64, Range<i64>)>>,
}

impl Copier {
    fn start(repository: &Repository, run: &str, level: i32) -> Result<Self, RepositoryError> {
        let vault = repository.vault();
        let workers = Workers::start(level)?;
        let index = Arc::new(IndexWriter::new(Arc::clone(vault), run));
        Ok(Self {
            pipeline: Pipeline::start(Arc::clone(vault), Arc::clone(&index), &workers)?,
            _workers: workers,
            vault: Arc::clone(vault),
            index,
            decoder: Decoder::new().map_err(|e| RepositoryError::io("set up zstd", e))?,
            frame: Vec::new(),
            frame_limit: FRAME_RAW_BYTES,
            pack_limit: PACK_BYTES,
            pack: 0,
            pack_raw: 0,
            table: BlockTable::default(),
            moved: BTreeMap::new(),
        })
    }

    /// Copies the blocks of a pack that `parts` touch, unless the pack is not mostly dead after all.
    fn copy(
        &mut self,
        pack: PackName,
        parts: &[(u64, u64)],
        stored_bytes: u64,
    ) -> Result<(), RepositoryError> {
        let mut source = PackReader::open(&self.vault, pack, true)?;
        let share = Share {
            pack,
            live_bytes: parts.iter().map(|(begin, end)| end - begin).sum(),
            raw_bytes: source.raw_bytes(),
        };
        if !share.is_worth_copying() {
            return Ok(());
        }
        (self.frame_limit, self.pack_limit) = if stored_bytes > 2 * PACK_BYTES {
            (MODEL_FRAME_RAW_BYTES, MODEL_PACK_BYTES)
        } else {
            (FRAME_RAW_BYTES, PACK_BYTES)
        };
        let table = source.table()?;
        let (mut decoded, mut begin) = (Vec::new(), 0u64);
        let mut wanted = parts.iter().peekable();
        let mut offset = 0u64;
        for block in blocks(&table) {
            let (at, end) = (offset, offset + u64::from(block.length()));
            offset = end;
            while wanted.next_if(|(_, part_end)| *part_end <= at).is_some() {}
            if wanted
                .peek()
                .is_none_or(|(part_begin, _)| *part_begin >= end)
            {
                continue;
            }
            if decoded.is_empty() || at < begin || at >= begin + decoded.len() as u64 {
                decoded.clear();
                begin = source.frame_at(at, &mut self.decoder, &mut decoded)?;
            }
            let bytes = usize::try_from(at - begin)
                .ok()
                .and_then(|from| decoded.get(from..from + block.length() as usize))
                .ok_or_else(|| RepositoryError::Damaged {
                    pack,
                    why: format!("its block table does not fit its frames at byte {at}"),
                })?;
            self.frame.extend_from_slice(bytes);
            let place = Range {
                pack: self.pack,
                offset: self.pack_raw,
                length: end - at,
            };
            self.pack_raw += end - at;
            match block {
                Block::Page(unit, id) => self.table.push_page(unit, id),
                Block::Other(length, id) => self.table.push_block(length, id),
            }
            self.moved.entry(pack).or_default().push((at, place));
            self.settle_frame()?;
        }
        Ok(())
    }

    /// What was copied of a pack does not count.
    fn forget(&mut self, pack: PackName) {
        self.moved.remove(&pack);
    }

    fn settle_frame(&mut self) -> Result<(), RepositoryError> {
        if self.frame.len() < self.frame_limit {
            return Ok(());
        }
        self.hand_over_frame()?;
        if self.pipeline.written() >= self.pack_limit || self.pack_raw >= PACK_RAW_LIMIT {
            self.close_pack()?;
        }
        Ok(())
    }

    fn hand_over_frame(&mut self) -> Result<(), RepositoryError> {
        if !self.frame.is_empty() {
            let raw = std::mem::take(&mut self.frame);
            self.frame = self.pipeline.frame(raw)?;
        }
        Ok(())
    }

    fn close_pack(&mut self) -> Result<(), RepositoryError> {
        self.hand_over_frame()?;
        if self.pack_raw > 0 {
            self.pipeline
                .close(self.pack, std::mem::take(&mut self.table))?;
            self.pack += 1;
        }
        self.pack_raw = 0;
        Ok(())
    }

    /// Publishes what is open; returns where everything went, and the new packs' sizes.
    fn finish(mut self) -> Result<(BTreeMap<PackName, Moved>, Vec<u64>), RepositoryError> {
        self.close_pack()?;
        let published: HashMap<i64, _> = self.pipeline.finish()?.into_iter().collect();
        self.index.flush()?;
        let mut all = BTreeMap::new();
        for (pack, pieces) in &self.moved {
            let mut moved = Moved::default();
            for (offset, place) in pieces {
                let written = published.get(&place.pack).ok_or_else(|| {
                    RepositoryError::Invalid(
                        "a repacked pack was never published: nothing was moved".to_owned(),
                    )
                })?;
                moved.push(
                    *offset,
                    Range {
                        pack: written.name,
                        offset: place.offset,
                        length: place.length,
                    },
                );
            }
            all.insert(*pack, moved);
        }
        Ok((all, published.values().map(|p| p.stored_bytes).collect()))
    }
}

#[derive(Clone, Copy)]
enum Block {
    Page(u32, PageId),
    Other(u32, BlockId),
}

impl Block {
    const fn length(self) -> u32 {
        match self {
            Self::Page(length, _) | Self::Other(length, _) => length,
        }
    }
}

fn blocks(table: &BlockTable) -> impl Iterator<Item = Block> + '_ {
    table.runs().iter().flat_map(|run| {
        let (pages, others) = match run {
            Run::Pages { unit, ids } => (Some((*unit, ids)), None),
            Run::Blocks(blocks) => (None, Some(blocks)),
        };
        let pages = pages
            .into_iter()
            .flat_map(|(unit, ids)| ids.iter().map(move |id| Block::Page(unit, *id)));
        let others = others
            .into_iter()
            .flatten()
            .map(|(length, id)| Block::Other(*length, *id));
        pages.chain(others)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_that_touch_are_one() {
        let mut parts = vec![(10, 20), (0, 5), (5, 7), (15, 18), (30, 31)];
        merge(&mut parts);
        assert_eq!(parts, [(0, 7), (10, 20), (30, 31)]);
    }
}
