//! Which parts of packs any backup wants: the union of all ranges of all backups.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::repository::moved::{MOVES_LIMIT, Moved};
use crate::repository::prune::decide::Moves;
use crate::repository::prune::survey::{self, Survey};
use crate::repository::ranges::{PARTS_MERGED_AT, Range, merge_parts};
use crate::repository::vault::Vault;
use crate::repository::{PackName, Repository, RepositoryError};

/// Begin and end of parts of packs, in order.
pub type Parts = BTreeMap<PackName, Vec<(u64, u64)>>;

/// Which parts of some packs are live.
#[derive(Default)]
pub struct LiveParts {
    /// What backups name, wherever they find it by now: all of it must be found where a pack moves.
    pub named: Parts,
    /// What backups find in the pack itself: the rest of it is dead weight.
    pub needed: Parts,
    /// The backups that were looked at.
    pub backups: BTreeSet<String>,
}

impl LiveParts {
    pub fn read(
        repository: &Repository,
        survey: &Survey,
        packs: BTreeSet<PackName>,
    ) -> Result<Self, RepositoryError> {
        let named: Parts = packs.into_iter().map(|pack| (pack, Vec::new())).collect();
        let mut live = Self {
            needed: named.clone(),
            named,
            backups: BTreeSet::new(),
        };
        let mut pieces = Pieces::new(repository.vault(), survey);
        for id in &survey.backups {
            let Some(uses) = survey::uses(repository, id)? else {
                continue;
            };
            live.backups.insert(id.clone());
            let concerned =
                |pack: &PackName| live.named.contains_key(pack) || pieces.moves.holds(pack);
            if !uses.packs().any(|(pack, _)| concerned(&pack)) {
                continue;
            }
            let read = survey::visit_ranges(repository, id, |list| {
                for range in list.as_slice() {
                    live.add(id, *range, &mut pieces)?;
                }
                Ok(())
            });
            match read {
                // It was dropped meanwhile: what was noted of it is copied in vain.
                Err(err) if err.is_damage() && !survey::is_there(repository, id)? => {}
                other => other?,
            }
        }
        for parts in live.named.values_mut().chain(live.needed.values_mut()) {
            merge_parts(parts);
        }
        Ok(live)
    }

    fn add(
        &mut self,
        backup: &str,
        range: Range<PackName>,
        pieces: &mut Pieces<'_>,
    ) -> Result<(), RepositoryError> {
        let mut open = vec![(range, 0, true)];
        while let Some((range, moves, is_needed)) = open.pop() {
            let (itself, runs) = pieces.moves.needs(backup, range.pack, pieces.damaged);
            add_part(&mut self.named, range);
            if is_needed && itself {
                add_part(&mut self.needed, range);
            }
            if moves < MOVES_LIMIT {
                for (run, next) in pieces.of(range)? {
                    open.push((next, moves + 1, is_needed && runs.contains(&run)));
                }
            }
        }
        Ok(())
    }
}

fn add_part(parts: &mut Parts, range: Range<PackName>) {
    if let Some(parts) = parts.get_mut(&range.pack) {
        parts.push((range.offset, range.offset + range.length));
        if parts.len() >= PARTS_MERGED_AT {
            merge_parts(parts);
        }
    }
}

/// Where pieces went, whichever run moved them.
struct Pieces<'a> {
    vault: &'a Vault,
    damaged: &'a BTreeSet<PackName>,
    moves: Moves<'a, PackName, String>,
    runs: HashMap<PackName, Vec<&'a String>>,
    read: HashMap<(&'a str, PackName), Moved>,
}

impl<'a> Pieces<'a> {
    fn new(vault: &'a Vault, survey: &'a Survey) -> Self {
        let mut runs: HashMap<_, Vec<_>> = HashMap::new();
        for (run, record) in &survey.moves {
            for pack in record.packs.keys() {
                runs.entry(*pack).or_default().push(run);
            }
        }
        Self {
            vault,
            damaged: &survey.damaged,
            moves: Moves::new(&survey.moves),
            runs,
            read: HashMap::new(),
        }
    }

    fn of(
        &mut self,
        range: Range<PackName>,
    ) -> Result<Vec<(&'a String, Range<PackName>)>, RepositoryError> {
        let mut found = Vec::new();
        for run in self.runs.get(&range.pack).into_iter().flatten() {
            let moved = match self.read.entry((run.as_str(), range.pack)) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => match self.vault.pieces(run, range.pack) {
                    Ok(moved) => entry.insert(moved),
                    // Nobody needed it any more.
                    Err(RepositoryError::Missing(_)) => entry.insert(Moved::default()),
                    Err(other) => return Err(other),
                },
            };
            let pieces = moved.within(range.offset, range.length);
            found.extend(pieces.into_iter().map(|piece| (*run, piece)));
        }
        Ok(found)
    }
}
