//! Copies backups to a repository with keys of its own: everything is decrypted here and encrypted anew.
//!
//! Packs are rewritten one by one: the compressed frames stay as they are, block ids are made with the
//! target's key, and so is the name. Which pack became which is kept in the state directory, so that a copy
//! that was cut short, or is made again, rewrites only what is new; without it everything is sent once more.
//! Ranges name the new packs, pieces that moved where they are now; the target has no moves from here.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::claims::Claims;
use super::{CopyReport, Halt, LOOKS, not_taken, unreadable, wal};
use crate::repository::frame::Decoder;
use crate::repository::lease;
use crate::repository::manifest::{ArchiveRecord, Manifest};
use crate::repository::moved::Moved;
use crate::repository::pack::{PackReader, PackWriter};
use crate::repository::ranges::RangeList;
use crate::repository::session::{Backup, Origin, Session};
use crate::repository::sink::{SealedArchive, Sink};
use crate::repository::stock::Stock;
use crate::repository::table::{BlockTable, Run};
use crate::repository::vault::Vault;
use crate::repository::{PackName, Repository, RepositoryError, manifest_name};

/// Copies every backup of `source` that is not in `target` yet. For whoever holds the lock of `state`.
pub fn reencrypt(
    source: &Repository,
    target: &Repository,
    state: &Path,
    level: i32,
    progress: impl FnMut(&str, u64),
) -> Result<CopyReport, RepositoryError> {
    if !source.vault().mode.can_read() {
        return Err(RepositoryError::NoIdentity);
    }
    if source.id() == target.id() {
        return Err(RepositoryError::Invalid(format!(
            "{} is a copy of this repository with the same keys: copy without --reencrypt, or give an empty place",
            target.store().describe()
        )));
    }
    Claims::begin(target, state)?;
    let zstd = |e| RepositoryError::io("set up zstd", e);
    let mut rewriter = Rewriter {
        source,
        target,
        state,
        stock: Stock::look(source.vault())?,
        whole: HashSet::new(),
        moved: HashMap::new(),
        renamed: Renamed::load(state, source.id(), target.id())?,
        decoder: Decoder::new().map_err(zstd)?,
        report: CopyReport::default(),
        progress,
    };
    rewriter.note_whole();
    let there: HashSet<String> = target.backups()?.into_iter().collect();
    for id in source.backups()? {
        let known = there.contains(&id);
        let outcome = if known {
            Ok(())
        } else {
            rewriter.backup(&id, level)
        };
        rewriter.report.note(source, id, known, outcome)?;
    }
    let mut report = rewriter.report;
    wal::send_anew(source, target, &mut report)?;
    Ok(report)
}

struct Rewriter<'a, P> {
    source: &'a Repository,
    target: &'a Repository,
    state: &'a Path,
    stock: Stock,
    /// Packs of the source that are there, as far as is known whole.
    whole: HashSet<PackName>,
    moved: HashMap<PackName, Moved>,
    renamed: Renamed,
    decoder: Decoder,
    report: CopyReport,
    progress: P,
}

impl<P: FnMut(&str, u64)> Rewriter<'_, P> {
    fn note_whole(&mut self) {
        let packs = &self.stock.packs;
        let listed = packs.listed.iter().copied();
        self.whole = listed.filter(|pack| packs.is_whole(*pack)).collect();
        self.moved.clear();
    }

    fn backup(&mut self, id: &str, level: i32) -> Result<(), Halt> {
        let manifest = self.source.manifest(id).map_err(unreadable)?;
        let mut claims = Claims::begin(self.target, self.state)?;
        self.target.store().remove_abandoned()?;
        let taken = claims.take(id, false);
        let lease = taken.map_err(|err| not_taken(err, self.target))?;
        if self.clear_place(id)? {
            return Ok(());
        }
        let backup = self
            .target
            .begin_under(lease, Origin::Stack, id, self.state, level)?;
        // After the lease: what is usable now stays until it ends. What an earlier lease guarded may go.
        let usable = lease::usable_packs(self.target.vault())?;
        self.renamed.new.clear();
        let mut archives = Vec::new();
        for record in &manifest.archives {
            archives.push(self.archive(&backup, &usable, &manifest, record)?);
        }
        backup.commit_copy(&manifest, archives)?;
        claims.finish()?;
        Ok(())
    }

    /// Removes what an earlier copy left half done: its files hold other bytes than the ones to come. `true` when
    /// another host's copy was faster.
    fn clear_place(&self, id: &str) -> Result<bool, RepositoryError> {
        let (store, vault) = (self.target.store(), self.target.vault());
        let manifest = vault.key(&manifest_name(id));
        let entries = store.list(&format!("backups/{id}"))?;
        if entries
            .iter()
            .any(|entry| entry.key == manifest && !lease::is_void(entry))
        {
            return Ok(true);
        }
        for entry in entries.iter().filter(|entry| entry.key != manifest) {
            store.delete(&entry.key)?;
        }
        Ok(false)
    }

    fn archive(
        &mut self,
        backup: &Backup<'_>,
        usable: &HashSet<PackName>,
        manifest: &Manifest,
        record: &ArchiveRecord,
    ) -> Result<SealedArchive, Halt> {
        let ranges = self.source.archive_ranges(manifest, record);
        let ranges = ranges.map_err(unreadable)?;
        let before = self.report.pack_bytes;
        let renamed = self.packs(backup.session(), usable, &ranges)?;
        let mut sink = Sink::new(backup.session().clone(), record.name.clone())?;
        sink.adopt(&renamed, record)?;
        let mut sealed = sink.end()?.seal()?;
        sealed.stream_xxh3.clone_from(&record.stream_xxh3);
        sealed.read_bytes = record.read_bytes;
        sealed.stored_bytes += self.report.pack_bytes - before;
        Ok(sealed)
    }

    /// Sends the packs that hold some ranges; returns the ranges in the target's packs. Where they are in the
    /// source may change meanwhile.
    fn packs(
        &mut self,
        session: &Session,
        usable: &HashSet<PackName>,
        ranges: &RangeList<PackName>,
    ) -> Result<RangeList<PackName>, Halt> {
        let mut looks = 0;
        loop {
            let tried = match self.settled(ranges) {
                Ok(settled) => self.rename(session, usable, &settled),
                Err(err) => Err(err),
            };
            match tried {
                Ok(renamed) => return Ok(renamed),
                // It may have moved before it was damaged.
                Err(RepositoryError::Damaged { pack, why }) if self.whole.remove(&pack) => {
                    tracing::warn!("pack {pack} of the source is damaged: {why}");
                    self.moved.clear();
                    continue;
                }
                Err(RepositoryError::Missing(_)) if looks < LOOKS => {}
                // It may be newer than the last look at the source, or have moved since.
                Err(RepositoryError::Damaged { .. }) if looks == 0 => {}
                Err(other) => return Err(other.into()),
            }
            looks += 1;
            self.stock = Stock::look(self.source.vault())?;
            self.note_whole();
        }
    }

    fn rename(
        &mut self,
        session: &Session,
        usable: &HashSet<PackName>,
        ranges: &RangeList<PackName>,
    ) -> Result<RangeList<PackName>, RepositoryError> {
        let mut names = HashMap::new();
        for range in ranges.as_slice() {
            if let Entry::Vacant(entry) = names.entry(range.pack) {
                entry.insert(self.pack(session, usable, range.pack)?);
            }
        }
        let renamed = ranges.map(|pack| names.get(&pack).copied());
        Ok(renamed.unwrap_or_default())
    }

    /// The same bytes, in packs that are there.
    fn settled(
        &mut self,
        ranges: &RangeList<PackName>,
    ) -> Result<RangeList<PackName>, RepositoryError> {
        let mut out = RangeList::default();
        for range in ranges.as_slice() {
            if self.whole.contains(&range.pack) {
                out.push(*range);
                continue;
            }
            if !self.moved.contains_key(&range.pack) {
                let find = |pack| self.stock.moves.find(self.source.vault(), pack);
                let moved = find(range.pack)?.unwrap_or_default();
                let moved = moved.settle(&self.whole, &find)?;
                self.moved.insert(range.pack, moved);
            }
            let places = self
                .moved
                .get(&range.pack)
                .and_then(|moved| moved.locate(range.offset, range.length));
            out.extend(&places.ok_or_else(|| RepositoryError::Damaged {
                pack: range.pack,
                why: "it is missing or damaged, and what was found of it elsewhere is not all; run `repair` first"
                    .to_owned(),
            })?);
        }
        Ok(out)
    }

    /// The target's name of a pack, which is rewritten if it is not there.
    fn pack(
        &mut self,
        session: &Session,
        usable: &HashSet<PackName>,
        pack: PackName,
    ) -> Result<PackName, RepositoryError> {
        if let Some(name) = self.renamed.get(pack)
            && (usable.contains(&name) || self.renamed.is_new(name))
        {
            return Ok(name);
        }
        let opened = PackReader::open(self.source.vault(), pack, true);
        let mut reader = match opened {
            Err(err @ RepositoryError::Damaged { .. }) => {
                // The source may be read-only here.
                if let Err(unmarked) = self.source.mark_damaged(pack, &err.to_string()) {
                    tracing::warn!("{unmarked}: the next backup may refer to the damaged pack");
                }
                return Err(err);
            }
            other => other?,
        };
        let table = reader.table()?;
        let mut writer = PackWriter::new(self.target.vault())?;
        let mut hashed = Rehashed::new(&table, self.target.vault());
        let mut raw = Vec::new();
        reader.each_frame(&mut self.decoder, &mut raw, |stored, raw| {
            hashed.feed(raw)?;
            writer.append(stored, raw.len()).map(drop)
        })?;
        let table = hashed.finish()?;
        let published = writer.publish(self.target.vault(), &table)?;
        session.adopt_pack(published.name, &table)?;
        self.renamed.add(pack, published.name)?;
        self.report.packs += 1;
        self.report.pack_bytes += published.stored_bytes;
        (self.progress)(&pack.key(), published.stored_bytes);
        Ok(published.name)
    }
}

/// A pack's table with ids of another key, made as the pack's bytes go by. No block crosses a frame.
struct Rehashed<'a> {
    lengths: Box<dyn Iterator<Item = (bool, u32)> + 'a>,
    vault: &'a Vault,
    table: BlockTable,
}

impl<'a> Rehashed<'a> {
    fn new(table: &'a BlockTable, vault: &'a Vault) -> Self {
        let lengths = table.runs().iter().flat_map(|run| {
            let (pages, blocks) = match run {
                Run::Pages { unit, ids } => (Some((*unit, ids.len())), None),
                Run::Blocks(blocks) => (None, Some(blocks)),
            };
            let pages = pages.map(|(unit, count)| std::iter::repeat_n((true, unit), count));
            let blocks = blocks.map(|blocks| blocks.iter().map(|(length, _)| (false, *length)));
            pages
                .into_iter()
                .flatten()
                .chain(blocks.into_iter().flatten())
        });
        Self {
            lengths: Box::new(lengths),
            vault,
            table: BlockTable::default(),
        }
    }

    fn feed(&mut self, mut raw: &[u8]) -> Result<(), RepositoryError> {
        while !raw.is_empty() {
            let (is_page, length) = self.lengths.next().ok_or_else(no_match)?;
            let (block, rest) = raw.split_at_checked(length as usize).ok_or_else(no_match)?;
            let id = *self.vault.secrets.block_hash(block).as_bytes();
            if is_page {
                let id = id.first_chunk().copied().unwrap_or_default();
                self.table.push_page(length, id);
            } else {
                self.table.push_block(length, id);
            }
            raw = rest;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<BlockTable, RepositoryError> {
        match self.lengths.next() {
            None => Ok(self.table),
            Some(_) => Err(no_match()),
        }
    }
}

fn no_match() -> RepositoryError {
    RepositoryError::Invalid("a pack's frames do not hold the blocks its table names".to_owned())
}

/// Which pack became which.
struct Renamed {
    path: PathBuf,
    names: HashMap<PackName, PackName>,
    new: HashSet<PackName>,
}

impl Renamed {
    fn load(state: &Path, source: &str, target: &str) -> Result<Self, RepositoryError> {
        let path = state.join(format!("copied-{source}-{target}"));
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(failed(e)),
        };
        // A last line that was cut short names nothing.
        let line = |line: &str| {
            let (from, to) = line.split_once(' ')?;
            Some((from.parse().ok()?, to.parse().ok()?))
        };
        Ok(Self {
            path,
            names: text.lines().filter_map(line).collect(),
            new: HashSet::new(),
        })
    }

    fn get(&self, pack: PackName) -> Option<PackName> {
        self.names.get(&pack).copied()
    }

    /// Published under the lease that stands.
    fn is_new(&self, name: PackName) -> bool {
        self.new.contains(&name)
    }

    fn add(&mut self, from: PackName, to: PackName) -> Result<(), RepositoryError> {
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.path)
            .and_then(|mut file| {
                file.write_all(format!("\n{from} {to}").as_bytes())?;
                file.sync_data()
            })
            .map_err(failed)?;
        self.names.insert(from, to);
        self.new.insert(to);
        Ok(())
    }
}

fn failed(err: std::io::Error) -> RepositoryError {
    RepositoryError::io(
        "keep in the state directory (LIFEBOAT_STATE) which packs were copied",
        err,
    )
}
