//! What backups need of packs that are not whole.
//!
//! A pack that moved is not bad, whatever became of it, where a complete move covers every backup that is read
//! from it: that is how a prune sees it, too. Of a bad one only the bytes that some backup's ranges name matter.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::repository::moved::{MOVES_LIMIT, Moved};
use crate::repository::ranges::{PARTS_MERGED_AT, Range, RangeList, merge_parts};
use crate::repository::stock::Stock;
use crate::repository::vault::Vault;
use crate::repository::{PackName, Repository, RepositoryError, reader};

/// A pack that is not whole, and that no complete move stands in for.
#[derive(Default)]
pub(super) struct Bad {
    /// Begin and end of each part of its bytes that backups want, in order.
    pub(super) parts: Vec<(u64, u64)>,
    /// A backup is read from it that no move of it looked at.
    pub(super) is_uncovered: bool,
}

impl Bad {
    pub(super) fn wants(&self, begin: u64, end: u64) -> bool {
        let at = self.parts.partition_point(|(_, reach)| *reach <= begin);
        self.parts.get(at).is_some_and(|(from, _)| *from < end)
    }
}

/// What all backups together need.
#[derive(Default)]
pub(super) struct Needs {
    /// The backups that were looked at.
    pub(super) backups: BTreeSet<String>,
    /// Packs that are not whole, and that backups name or pieces moved to.
    pub(super) reached: BTreeSet<PackName>,
    pub(super) bad: BTreeMap<PackName, Bad>,
    /// The ranges of some backup cannot be read: it may want anything.
    pub(super) wants_all: bool,
}

impl Needs {
    pub(super) fn look(
        repository: &Repository,
        stock: &mut Stock,
    ) -> Result<Self, RepositoryError> {
        let (mut needs, mut hurt) = (Self::default(), Vec::new());
        for id in repository.backups()? {
            let Some(packs) = named(repository, &id)? else {
                continue;
            };
            if needs.follow(repository.vault(), stock, &id, packs)? {
                hurt.push(id.clone());
            }
            needs.backups.insert(id);
        }
        let mut moved = HashMap::new();
        for id in hurt {
            let want = |list: &RangeList<PackName>| {
                for range in list.as_slice() {
                    needs.want(repository.vault(), stock, &mut moved, *range)?;
                }
                Ok(())
            };
            match visit_ranges(repository, &id, want) {
                Ok(()) => {}
                Err(err @ RepositoryError::Remote { .. }) => return Err(err),
                Err(err) => {
                    tracing::warn!("not all ranges of backup {id} can be read: {err}");
                    needs.wants_all = true;
                }
            }
        }
        for bad in needs.bad.values_mut() {
            merge_parts(&mut bad.parts);
        }
        Ok(needs)
    }

    /// Follows the packs that a backup names to where their pieces are; whether one of them is bad.
    fn follow(
        &mut self,
        vault: &Vault,
        stock: &mut Stock,
        id: &str,
        mut open: Vec<PackName>,
    ) -> Result<bool, RepositoryError> {
        let (mut seen, mut is_hurt) = (BTreeSet::new(), false);
        while let Some(pack) = open.pop() {
            if stock.packs.is_whole(pack) || !seen.insert(pack) {
                continue;
            }
            if let Some(run) = stock.covering(vault, pack, id)? {
                open.extend(stock.places(vault, &run, pack)?);
                continue;
            }
            is_hurt = true;
            let mut is_uncovered = true;
            for run in stock.moves.runs_of(pack).to_vec() {
                open.extend(stock.places(vault, &run, pack)?);
                let record = stock.record(vault, &run)?;
                is_uncovered &= !record.is_some_and(|record| record.backups.contains(id));
            }
            self.bad.entry(pack).or_default().is_uncovered |= is_uncovered;
        }
        self.reached.append(&mut seen);
        Ok(is_hurt)
    }

    /// Notes which part of which bad pack a range wants.
    fn want(
        &mut self,
        vault: &Vault,
        stock: &Stock,
        moved: &mut HashMap<PackName, Option<Moved>>,
        range: Range<PackName>,
    ) -> Result<(), RepositoryError> {
        let mut open = vec![(range, MOVES_LIMIT)];
        while let Some((range, moves_left)) = open.pop() {
            if stock.packs.is_whole(range.pack) || moves_left == 0 {
                continue;
            }
            if let Some(bad) = self.bad.get_mut(&range.pack) {
                bad.parts.push((range.offset, range.offset + range.length));
                if bad.parts.len() >= PARTS_MERGED_AT {
                    merge_parts(&mut bad.parts);
                }
            }
            let pieces = match moved.entry(range.pack) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => entry.insert(stock.moves.find(vault, range.pack)?),
            };
            let places = pieces
                .as_ref()
                .map(|pieces| pieces.within(range.offset, range.length));
            let places = places.unwrap_or_default().into_iter();
            open.extend(places.map(|place| (place, moves_left - 1)));
        }
        Ok(())
    }
}

/// The packs that a backup names; `None` when it cannot be told, or the backup was dropped.
fn named(repository: &Repository, id: &str) -> Result<Option<Vec<PackName>>, RepositoryError> {
    match repository.uses(id) {
        Ok(uses) => return Ok(Some(uses.packs().map(|(pack, _)| pack).collect())),
        Err(err @ RepositoryError::Remote { .. }) => return Err(err),
        Err(_) => {}
    }
    let mut packs = BTreeSet::new();
    let visited = visit_ranges(repository, id, |list| {
        packs.extend(list.as_slice().iter().map(|range| range.pack));
        Ok(())
    });
    match visited {
        Ok(()) => Ok(Some(packs.into_iter().collect())),
        Err(err @ RepositoryError::Remote { .. }) => Err(err),
        Err(err) => {
            tracing::warn!("what backup {id} needs is not known: {err}");
            Ok(None)
        }
    }
}

/// Visits the ranges of all archives, lists that are kept as blocks included.
fn visit_ranges(
    repository: &Repository,
    id: &str,
    mut visit: impl FnMut(&RangeList<PackName>) -> Result<(), RepositoryError>,
) -> Result<(), RepositoryError> {
    let manifest = repository.manifest(id)?;
    for record in &manifest.archives {
        let file = repository.ranges_file(&manifest, record)?;
        reader::resolve_visiting(repository.vault(), file, &mut visit)?;
    }
    Ok(())
}
