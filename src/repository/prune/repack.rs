//! Copies the live part of packs that are mostly dead, so that the rest of them can go.
//!
//! Which packs look mostly dead is told by the backups' lists of packs: an estimate, for two backups may want the
//! same half of a pack, or both halves. What exactly is live is the union of all ranges of all backups; it is read
//! under a lease, decides what is copied, and the moves hold for just these backups.

mod live;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::decide::{self, Share};
use super::sizes::Sizes;
use super::survey::{Close, Survey};
use super::{Options, Report, new_run};
use crate::repository::frame::{Decoder, FRAME_RAW_BYTES, MODEL_FRAME_RAW_BYTES, RawFrame};
use crate::repository::index::IndexWriter;
use crate::repository::lease::{self, Lease};
use crate::repository::moved::Moved;
use crate::repository::pack::{MODEL_PACK_BYTES, PACK_BYTES, PACK_RAW_LIMIT, PackReader};
use crate::repository::pipeline::{Pipeline, Workers};
use crate::repository::ranges::Range;
use crate::repository::table::{BlockId, BlockTable, PageId, Run};
use crate::repository::vault::Vault;
use crate::repository::{PackName, Repository, RepositoryError};
use live::LiveParts;

/// Decompressed bytes that one run copies at the most; the next prune goes on.
const COPY_LIMIT_BYTES: u64 = 4 * 1024 * 1024 * 1024;
/// Decompressed bytes of the packs that one run looks at closely: of every second page it may note 32 bytes.
const LOOK_LIMIT_BYTES: u64 = 32 * 1024 * 1024 * 1024;

/// Tells what would be repacked.
pub fn plan(
    repository: &Repository,
    survey: &Survey,
    options: &Options,
    report: &mut Report,
) -> Result<(), RepositoryError> {
    let shares = estimate(repository, survey, options, None, report)?;
    let (_, chosen) = choose(repository, survey, shares)?;
    for pack in chosen {
        report.repacked.add(survey.size(pack));
        if options.now {
            report.deleted.add(survey.size(pack));
        } else {
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
    let shares = estimate(repository, survey, options, None, report)?;
    if decide::sparse(shares).is_empty() {
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
    let survey = Survey::look(repository, Close::Nobody, options.state.as_deref())?;
    let shares = estimate(repository, &survey, options, Some(&run), report)?;
    let (live, chosen) = choose(repository, &survey, shares)?;
    if chosen.is_empty() {
        return Ok(false);
    }
    let mut copier = Copier::start(repository, &run, options.level)?;
    let parts = live.named.iter().filter(|(pack, _)| chosen.contains(*pack));
    for (pack, parts) in parts {
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
    if somebody_began(repository, &run)? {
        // It may refer to the packs themselves, and then they stay and everything lies there twice.
        say(report, BUSY);
        return Ok(false);
    }
    let committed = lease.check().and_then(|()| {
        repository
            .vault()
            .commit_moves(&run, &moved, BTreeSet::new(), live.backups)
            .map_err(lease::overtaken)
    });
    match committed {
        Ok(()) => {}
        // It took too long. The rest of the prune goes on.
        Err(RepositoryError::Invalid(why)) => {
            report.notes.push(format!("nothing was repacked: {why}"));
            return Ok(false);
        }
        Err(other) => return Err(other),
    }
    for pack in moved.keys() {
        report.repacked.add(survey.size(*pack));
    }
    for bytes in written {
        report.rewritten.add(bytes);
    }
    Ok(true)
}

const BUSY: &str = "packs that are mostly dead wait until no run is under way";

/// Whether another run has begun since this one looked.
fn somebody_began(repository: &Repository, own_run: &str) -> Result<bool, RepositoryError> {
    let vault = repository.vault();
    let own = format!("leases/{own_run}");
    let now = vault.now()?;
    let leases = vault.store.list("leases")?;
    Ok(leases
        .iter()
        .any(|lease| lease.key != own && !decide::is_dead(now.duration_since(lease.modified))))
}

/// How much of each pack that can be moved looks live; empty when this is not the time to repack.
fn estimate(
    repository: &Repository,
    survey: &Survey,
    options: &Options,
    own_run: Option<&str>,
    report: &mut Report,
) -> Result<Vec<Share<PackName>>, RepositoryError> {
    let vault = repository.vault();
    if !vault.mode.can_read() {
        say(
            report,
            "this host cannot decrypt, so it cannot repack: packs that are mostly dead stay",
        );
        return Ok(Vec::new());
    }
    let can_move = |pack: &PackName| {
        survey.packs.contains_key(pack)
            && !survey.damaged.contains(pack)
            && !survey.is_trashed(*pack)
            // A fresh one cannot be put into the trash yet, and the next backup would refer to it again.
            && (options.now || !survey.is_fresh(*pack))
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
    let shares: Vec<_> = shares.collect();
    let others = survey
        .runs
        .iter()
        .any(|run| run.alive && Some(run.run.as_str()) != own_run);
    if others && !decide::sparse(shares.clone()).is_empty() {
        // They may come to refer to a pack's dead part, and then all of it stays.
        say(report, BUSY);
        return Ok(Vec::new());
    }
    Ok(shares)
}

/// The packs to copy, and what is live in all that were looked at closely: those that are dead enough by
/// `shares`. Where it is less dead than it looked, others may take its place.
fn choose(
    repository: &Repository,
    survey: &Survey,
    mut shares: Vec<Share<PackName>>,
) -> Result<(LiveParts, BTreeSet<PackName>), RepositoryError> {
    if decide::sparse(shares.clone()).is_empty() {
        return Ok((LiveParts::default(), BTreeSet::new()));
    }
    let live = LiveParts::read(repository, survey, worth_a_look(&shares))?;
    for share in &mut shares {
        if let (Some(needed), Some(named)) =
            (live.needed.get(&share.pack), live.named.get(&share.pack))
        {
            share.live_bytes = bytes_of(named);
            // Otherwise a copy would be as large as the pack is.
            if share.is_worth_copying() {
                share.live_bytes = bytes_of(needed);
            }
        }
    }
    let free = repository.store().free_bytes().unwrap_or(u64::MAX) / 2;
    let mut left = COPY_LIMIT_BYTES.min(free);
    let mut chosen = BTreeSet::new();
    for share in decide::sparse(shares) {
        let Some(parts) = live.named.get(&share.pack) else {
            continue;
        };
        let Some(rest) = left.checked_sub(bytes_of(parts)) else {
            break;
        };
        left = rest;
        chosen.insert(share.pack);
    }
    Ok((live, chosen))
}

fn bytes_of(parts: &[(u64, u64)]) -> u64 {
    parts.iter().map(|(begin, end)| end - begin).sum()
}

/// Packs that may be worth copying. Where there are very many of them, the next prune looks at others.
fn worth_a_look(shares: &[Share<PackName>]) -> BTreeSet<PackName> {
    let mut candidates: Vec<&Share<PackName>> =
        shares.iter().filter(|s| s.is_worth_copying()).collect();
    if !candidates.is_empty() {
        let begin = rand::random::<u64>() % candidates.len() as u64;
        candidates.rotate_left(usize::try_from(begin).unwrap_or(0));
    }
    let mut left = LOOK_LIMIT_BYTES;
    let within = candidates.into_iter().take_while(|share| {
        let rest = left.checked_sub(share.raw_bytes);
        left = rest.unwrap_or(0);
        rest.is_some()
    });
    within.map(|share| share.pack).collect()
}

fn say(report: &mut Report, note: &str) {
    if !report.notes.iter().any(|said| said == note) {
        report.notes.push(note.to_owned());
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
    frame: RawFrame,
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
            frame: RawFrame::default(),
            frame_limit: FRAME_RAW_BYTES,
            pack_limit: PACK_BYTES,
            pack: 0,
            pack_raw: 0,
            table: BlockTable::default(),
            moved: BTreeMap::new(),
        })
    }

    /// Copies the blocks of a pack that `parts` touch.
    fn copy(
        &mut self,
        pack: PackName,
        parts: &[(u64, u64)],
        stored_bytes: u64,
    ) -> Result<(), RepositoryError> {
        let mut source = PackReader::open(&self.vault, pack, true)?;
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
            self.frame.push(bytes);
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
