//! What a repository has: its packs as they were listed, and the moves that stand in for those that are gone.

use std::collections::{HashMap, HashSet};

use super::lease::{PacksSeen, is_void};
use super::moved::MOVES_LIMIT;
use super::moves::MoveList;
use super::prune::decide::Move;
use super::vault::Vault;
use super::{PackName, RepositoryError};

/// Packs and moves at one time.
pub(super) struct Stock {
    pub(super) packs: PacksSeen,
    pub(super) moves: MoveList,
    /// Keys below `moved`, without the marks of dead runs.
    pub(super) moved_files: HashSet<String>,
    records: HashMap<String, Option<Move<PackName, String>>>,
}

impl Stock {
    pub(super) fn look(vault: &Vault) -> Result<Self, RepositoryError> {
        // Moves after packs: what stands in for a pack that is gone was committed before it went.
        let packs = PacksSeen::look(vault)?;
        let mut entries = vault.store.list("moved")?;
        let moves = MoveList::of(vault, &entries);
        entries.retain(|entry| !is_void(entry));
        Ok(Self {
            packs,
            moves,
            moved_files: entries.into_iter().map(|entry| entry.key).collect(),
            records: HashMap::new(),
        })
    }

    /// What a run says of its moves; `None` when it is gone, or cannot be believed, which `verify` tells.
    pub(super) fn record(
        &mut self,
        vault: &Vault,
        run: &str,
    ) -> Result<Option<&Move<PackName, String>>, RepositoryError> {
        if !self.records.contains_key(run) {
            let record = match vault.move_record(run) {
                Ok(record) => Some(record),
                Err(RepositoryError::Missing(_)) => None,
                Err(err) if err.is_damage() || matches!(err, RepositoryError::Invalid(_)) => {
                    tracing::warn!("{err}; run `verify`");
                    None
                }
                Err(other) => return Err(other),
            };
            self.records.insert(run.to_owned(), record);
        }
        Ok(self.records.get(run).and_then(Option::as_ref))
    }

    /// The run whose pieces of a pack are all that `backup` wants of it: the one that a prune counts on.
    pub(super) fn covering(
        &mut self,
        vault: &Vault,
        pack: PackName,
        backup: &str,
    ) -> Result<Option<String>, RepositoryError> {
        let mut found: Option<String> = None;
        for run in self.moves.runs_of(pack).to_vec() {
            let covers = self.record(vault, &run)?.is_some_and(|record| {
                record.backups.contains(backup)
                    && record.packs.contains_key(&pack)
                    && !record.incomplete.contains(&pack)
            });
            if covers && found.as_ref().is_none_or(|found| *found < run) {
                found = Some(run);
            }
        }
        Ok(found)
    }

    /// The packs that hold what `run` moved of `pack`.
    pub(super) fn places(
        &mut self,
        vault: &Vault,
        run: &str,
        pack: PackName,
    ) -> Result<Vec<PackName>, RepositoryError> {
        let record = self.record(vault, run)?;
        let places = record.and_then(|record| record.packs.get(&pack));
        Ok(places.into_iter().flatten().copied().collect())
    }

    /// Whether all that `backup` wants of a pack `is_there`: in the pack itself, or where it moved to.
    pub(super) fn holds(
        &mut self,
        vault: &Vault,
        pack: PackName,
        backup: &str,
        is_there: fn(&PacksSeen, PackName) -> bool,
    ) -> Result<bool, RepositoryError> {
        let mut open = vec![(pack, MOVES_LIMIT)];
        while let Some((pack, moves_left)) = open.pop() {
            if is_there(&self.packs, pack) {
                continue;
            }
            let Some(run) = self.covering(vault, pack, backup)? else {
                return Ok(false);
            };
            if moves_left == 0 {
                // In a circle nothing is anywhere.
                return Ok(false);
            }
            let places = self.places(vault, &run, pack)?;
            open.extend(places.into_iter().map(|place| (place, moves_left - 1)));
        }
        Ok(true)
    }
}
