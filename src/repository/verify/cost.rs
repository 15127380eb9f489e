//! What bad packs cost: which backups, archives and files have pieces in them that are nowhere else.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Range as Span;

use super::{Damage, Look, files};
use crate::repository::manifest::{ArchiveRecord, Manifest};
use crate::repository::moved::{MOVES_LIMIT, Moved};
use crate::repository::ranges::{Range, RangeList};
use crate::repository::{PackName, RepositoryError};

/// How many files are named.
const NAMED_FILES: usize = 20;

/// Bytes of an archive's stream that are lost, and with which pack.
pub(super) struct Lost {
    pub bytes: Span<u64>,
    pub pack: PackName,
}

/// What one bad pack costs.
#[derive(Default)]
struct Cost {
    backups: BTreeSet<String>,
    archives: BTreeSet<String>,
    files: BTreeSet<String>,
    /// Files are counted once, however many backups have them.
    counted: HashSet<[u8; 32]>,
}

impl Cost {
    fn add_file(&mut self, name: String) {
        if self.counted.insert(blake3::hash(name.as_bytes()).into()) {
            self.files.insert(name);
            if self.files.len() > NAMED_FILES {
                self.files.pop_last();
            }
        }
    }

    fn damage(self, fault: String) -> Damage {
        Damage {
            fault,
            more_files: (self.counted.len() - self.files.len()) as u64,
            backups: self.backups,
            archives: self.archives,
            files: self.files.into_iter().collect(),
        }
    }
}

impl Look<'_> {
    /// Turns bad packs into damage, each with what it costs; those that are replaced are only counted.
    pub(super) fn what_bad_packs_cost(&mut self) -> Result<(), RepositoryError> {
        if self.bad.is_empty() {
            return Ok(());
        }
        let mut costs: BTreeMap<PackName, Cost> = BTreeMap::new();
        if self.repository.vault().mode.can_read() {
            self.walk_archives(&mut costs)?;
        } else {
            self.count_lists(&mut costs)?;
        }
        for (pack, fault) in std::mem::take(&mut self.bad) {
            match costs.remove(&pack) {
                Some(cost) => self.report.damage.push(cost.damage(fault.to_string())),
                None if self.moves.holds(pack) => self.report.replaced_packs += 1,
                // It is there and its bytes are wrong: nobody needs it yet, and nobody may.
                None if self.there.contains_key(&pack) => {
                    let fault = format!("{fault}; no backup needs it now");
                    self.report.damage.push(Cost::default().damage(fault));
                }
                // Pruned while we looked, or listed only by a backup that cannot be read.
                None => self.report.damage.extend(self.unexplained(pack, &fault)),
            }
        }
        Ok(())
    }

    /// A missing pack in which no archive's bytes are: it held a list of ranges, or is not needed any more.
    fn unexplained(&self, pack: PackName, fault: &RepositoryError) -> Option<Damage> {
        let mut cost = Cost::default();
        for id in self.repository.backups().unwrap_or_default() {
            let uses = self.repository.uses(&id);
            if uses.is_ok_and(|uses| uses.packs().any(|(named, _)| named == pack)) {
                cost.backups.insert(id);
            }
        }
        (!cost.backups.is_empty()).then(|| cost.damage(fault.to_string()))
    }

    fn walk_archives(&self, costs: &mut BTreeMap<PackName, Cost>) -> Result<(), RepositoryError> {
        let mut finder = Finder {
            look: self,
            moved: HashMap::new(),
        };
        // Archives that did not change from one backup to the next are walked once.
        let mut walked: HashMap<String, Vec<(PackName, String)>> = HashMap::new();
        for manifest in &self.manifests {
            for record in manifest
                .archives
                .iter()
                .filter(|a| self.scope.holds(&a.name))
            {
                // One whose ranges cannot be read was reported.
                let Ok(ranges) = self.repository.archive_ranges(manifest, record) else {
                    continue;
                };
                let lost = finder.lost(&ranges)?;
                for piece in &lost {
                    let cost = costs.entry(piece.pack).or_default();
                    cost.backups.insert(manifest.id.clone());
                    cost.archives.insert(record.name.clone());
                }
                if lost.is_empty() {
                    continue;
                }
                let key = format!("{}/{}", record.name, record.ranges_sha256);
                let touched = match walked.get(&key) {
                    Some(touched) => touched.clone(),
                    None => self.touched(manifest, record, &ranges, &lost)?,
                };
                for (pack, name) in &touched {
                    let file = format!("{}: {name}", record.name);
                    costs.entry(*pack).or_default().add_file(file);
                }
                walked.insert(key, touched);
            }
        }
        Ok(())
    }

    fn touched(
        &self,
        manifest: &Manifest,
        record: &ArchiveRecord,
        ranges: &RangeList<PackName>,
        lost: &[Lost],
    ) -> Result<Vec<(PackName, String)>, RepositoryError> {
        if ranges.length() != record.raw_bytes {
            return Ok(Vec::new());
        }
        let reader = self.repository.archive(manifest, record)?;
        let mut touched = Vec::new();
        files::touched(reader, lost, |pack, name| touched.push((pack, name)));
        Ok(touched)
    }

    /// Where nothing can be decrypted, the lists of packs tell the backups.
    fn count_lists(&self, costs: &mut BTreeMap<PackName, Cost>) -> Result<(), RepositoryError> {
        let vault = self.repository.vault();
        let mut moved: HashMap<PackName, BTreeSet<String>> = HashMap::new();
        let entries = vault.store.list("moved")?;
        for run in crate::repository::moves::runs(&entries) {
            // One that cannot be read was reported.
            let Ok(record) = vault.move_record(run) else {
                continue;
            };
            for (pack, places) in record.packs {
                let is_whole = !record.incomplete.contains(&pack);
                if is_whole && places.iter().all(|place| self.there.contains_key(place)) {
                    moved
                        .entry(pack)
                        .or_default()
                        .extend(record.backups.clone());
                }
            }
        }
        for (id, packs) in &self.listed {
            for pack in packs.iter().filter(|pack| self.bad.contains_key(pack)) {
                if !moved.get(pack).is_some_and(|backups| backups.contains(id)) {
                    costs.entry(*pack).or_default().backups.insert(id.clone());
                }
            }
        }
        Ok(())
    }
}

/// Looks for pieces of bad packs in the places that they moved to.
struct Finder<'a> {
    look: &'a Look<'a>,
    moved: HashMap<PackName, Option<Moved>>,
}

impl Finder<'_> {
    /// The parts of an archive's stream that are nowhere, in order.
    fn lost(&mut self, ranges: &RangeList<PackName>) -> Result<Vec<Lost>, RepositoryError> {
        let (mut lost, mut at) = (Vec::new(), 0);
        for range in ranges.as_slice() {
            self.trace(*range, at, range.pack, MOVES_LIMIT, &mut lost)?;
            at += range.length;
        }
        Ok(lost)
    }

    /// Follows a range that lies at `at` in the stream; the pack that is to blame is the first bad one.
    fn trace(
        &mut self,
        mut range: Range<PackName>,
        mut at: u64,
        blamed: PackName,
        moves_left: u32,
        lost: &mut Vec<Lost>,
    ) -> Result<(), RepositoryError> {
        if !self.look.bad.contains_key(&range.pack) {
            return Ok(());
        }
        let moved = self.moved(range.pack)?;
        while range.length > 0 {
            let found = moved
                .as_ref()
                .filter(|_| moves_left > 0)
                .and_then(|moved| moved.find(range.offset, range.length));
            let step = if let Some(place) = found {
                self.trace(place, at, blamed, moves_left - 1, lost)?;
                place.length
            } else {
                // Up to the next piece that was saved.
                let next = moved.as_ref().and_then(|moved| {
                    let pieces = moved.pieces();
                    let after = pieces.partition_point(|piece| piece.offset <= range.offset);
                    Some(pieces.get(after)?.offset - range.offset)
                });
                let length = next.unwrap_or(range.length).min(range.length);
                lost.push(Lost {
                    bytes: at..at + length,
                    pack: blamed,
                });
                length
            };
            range.offset += step;
            range.length -= step;
            at += step;
        }
        Ok(())
    }

    fn moved(&mut self, pack: PackName) -> Result<Option<Moved>, RepositoryError> {
        if let Some(moved) = self.moved.get(&pack) {
            return Ok(moved.clone());
        }
        let vault = self.look.repository.vault();
        let moved = match self.look.moves.find(vault, pack) {
            Ok(moved) => moved,
            Err(err) => {
                super::believable(err)?;
                None
            }
        };
        self.moved.insert(pack, moved.clone());
        Ok(moved)
    }
}
