//! Which parts of packs any backup wants: the union of all ranges of all backups.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::repository::moved::{MOVES_LIMIT, Moved};
use crate::repository::prune::survey::{self, Survey};
use crate::repository::ranges::{PARTS_MERGED_AT, Range, merge_parts};
use crate::repository::vault::Vault;
use crate::repository::{PackName, Repository, RepositoryError};

/// Which parts of the chosen packs are live.
pub struct LiveParts {
    /// Begin and end of each part, in order.
    pub parts: BTreeMap<PackName, Vec<(u64, u64)>>,
    /// The backups that were looked at.
    pub backups: BTreeSet<String>,
}

impl LiveParts {
    pub fn read(
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
                Err(err) if err.is_damage() && !survey::is_there(repository, id)? => {}
                other => other?,
            }
        }
        for parts in live.parts.values_mut() {
            merge_parts(parts);
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
                if parts.len() >= PARTS_MERGED_AT {
                    merge_parts(parts);
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
