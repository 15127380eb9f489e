//! Which packs backups name, each told by what differs from another backup.
//!
//! From one night to the next little changes, so a backup is remembered by its difference from its *base*,
//! another one that is remembered, or from nothing. What any backup names is then the union of all differences:
//! it need not be worked out backup by backup. When a base goes, those that were told by it are told anew.
//!
//! Packs are written by the beginnings of their names, which the packs that there are complete. One that is not
//! there gets a name that no pack has, and nobody asks for it; when two packs begin alike, nothing is believed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Committed, Memory, Seen};
use crate::repository::uses::Uses;
use crate::repository::{PackName, Repository, RepositoryError};

/// Its name tells its form.
const WHAT: &str = "pack-uses-1";
/// Enough to tell packs apart, as long as nobody looks for two that begin alike.
const SHORT_BYTES: usize = 8;
/// How many backups are tried as a base: as many hosts and projects can take turns at little cost.
const BASES_TRIED: usize = 8;

/// Packs and how many of their bytes a backup names.
type Named = BTreeMap<PackName, u64>;
/// The same for packs that differ; `None` where the backup does not name one that its base does.
type Changes = BTreeMap<PackName, Option<u64>>;

/// What is remembered of lists of packs.
pub struct PackUses<'a> {
    /// Absent where nothing is to be kept.
    memory: Option<Memory<'a>>,
    names: Names,
    /// Bases come before those that are told by them.
    known: Vec<Known>,
    /// The youngest backups that are nobody's base, as far as they were asked for.
    ends: Option<Vec<(usize, Named)>>,
    is_changed: bool,
}

struct Known {
    backup: Committed,
    base: Option<usize>,
    changes: Changes,
}

/// The packs that there are, by how their names begin.
#[derive(Default)]
struct Names(BTreeMap<[u8; SHORT_BYTES], PackName>);

impl Names {
    /// `None` when two begin alike.
    fn of(packs: impl IntoIterator<Item = PackName>) -> Option<Self> {
        let mut names = BTreeMap::new();
        for pack in packs {
            if names
                .insert(short(pack), pack)
                .is_some_and(|other| other != pack)
            {
                return None;
            }
        }
        Some(Self(names))
    }

    fn complete(&self, short: [u8; SHORT_BYTES]) -> PackName {
        self.0.get(&short).copied().unwrap_or_else(|| {
            let mut name = [0; 32];
            for (to, from) in name.iter_mut().zip(short) {
                *to = from;
            }
            PackName(name)
        })
    }
}

fn short(pack: PackName) -> [u8; SHORT_BYTES] {
    pack.0.first_chunk().copied().unwrap_or_default()
}

/// As it is written: packs are named once, and backups by their marks.
#[derive(Default, Serialize, Deserialize)]
struct Written {
    packs: Vec<u64>,
    backups: Vec<WrittenBackup>,
}

#[derive(Serialize, Deserialize)]
struct WrittenBackup {
    mark: u64,
    base: Option<usize>,
    changes: Vec<(usize, Option<u64>)>,
}

impl<'a> PackUses<'a> {
    /// What is remembered in `state` of the backups that are listed; `packs` are all that there are, and those
    /// that moved.
    pub fn load(
        repository: &'a Repository,
        state: Option<&Path>,
        listed: &[Committed],
        packs: impl IntoIterator<Item = PackName>,
    ) -> Self {
        let names = Names::of(packs);
        let state = state.filter(|_| names.is_some());
        let names = names.unwrap_or_default();
        let memory = state.map(|state| Memory::of(repository.vault(), state, WHAT));
        let known = memory.as_ref().and_then(|memory| {
            let written: Written = memory.load()?;
            let marks = listed.iter().map(|one| Some((memory.mark(one).ok()?, one)));
            written.decode(&names, &marks.collect::<Option<_>>()?)
        });
        let known = known.unwrap_or_default();
        let mut uses = Self {
            memory,
            names,
            known,
            ends: None,
            is_changed: false,
        };
        uses.forget_all_but(listed);
        uses
    }

    /// Ids of the backups that are remembered.
    pub fn ids(&self) -> BTreeSet<&str> {
        let ids = self.known.iter().map(|known| known.backup.id.as_str());
        ids.collect()
    }

    /// Every pack that any of them names, some several times, with how many of its bytes one names.
    pub fn named(&self) -> impl Iterator<Item = (PackName, u64)> + '_ {
        let changes = self.known.iter().flat_map(|known| &known.changes);
        changes.filter_map(|(pack, bytes)| Some((*pack, (*bytes)?)))
    }

    /// What each backup names of the packs that `asked` says yes to.
    pub fn of_each(&self, asked: impl Fn(PackName) -> bool) -> Vec<(&str, Named)> {
        let mut found: Vec<(&str, Named)> = Vec::with_capacity(self.known.len());
        for known in &self.known {
            let base = known.base.and_then(|at| found.get(at));
            let mut named = base.map(|(_, named)| named.clone()).unwrap_or_default();
            let changes = known.changes.iter().filter(|(pack, _)| asked(**pack));
            apply(&mut named, changes);
            found.push((&known.backup.id, named));
        }
        found
    }

    /// Remembers a backup's list, which was read after `now` and after it was listed so.
    pub fn learn(&mut self, backup: &Committed, uses: &Uses, now: Timestamp) {
        let is_settled = |packs: Seen| packs.is_settled(now);
        if !(backup.manifest.is_settled(now) && backup.packs.is_some_and(is_settled)) {
            return;
        }
        let named = uses.packs();
        let named = named.map(|(pack, bytes)| (self.names.complete(short(pack)), bytes));
        let wanted: Named = named.collect();
        let mut ends = self.ends.take().unwrap_or_else(|| self.youngest_ends());
        let told = |at: usize, end: &(usize, Named)| (Some(at), difference(&end.1, &wanted));
        let from_nothing = (None, difference(&Named::new(), &wanted));
        let by_ends = ends.iter().enumerate().map(|(at, end)| told(at, end));
        let (best, changes) = std::iter::once(from_nothing)
            .chain(by_ends)
            .min_by_key(|(_, changes)| changes.len())
            .unwrap_or_default();
        let base = best.map(|at| ends.remove(at).0);
        ends.insert(0, (self.known.len(), wanted));
        ends.truncate(BASES_TRIED);
        self.ends = Some(ends);
        self.known.push(Known {
            backup: backup.clone(),
            base,
            changes,
        });
        self.is_changed = true;
    }

    /// Keeps it for the next run.
    pub fn save(&mut self) {
        if let Some(memory) = &self.memory
            && std::mem::take(&mut self.is_changed)
        {
            match Written::encode(&self.known, |backup| memory.mark(backup)) {
                Ok(written) => memory.save(&written),
                Err(err) => tracing::warn!("lists of packs are read again the next time: {err}"),
            }
        }
    }

    fn forget_all_but(&mut self, listed: &[Committed]) {
        let listed: BTreeMap<&str, &Committed> =
            listed.iter().map(|one| (one.id.as_str(), one)).collect();
        let stays = |known: &Known| listed.get(known.backup.id.as_str()) == Some(&&known.backup);
        if self.known.iter().all(stays) {
            return;
        }
        self.ends = None;
        let before = std::mem::take(&mut self.known);
        // The new number of each, or of the nearest base of it that stays.
        let mut numbers: Vec<Option<usize>> = Vec::with_capacity(before.len());
        for (at, known) in before.iter().enumerate() {
            let base = known
                .base
                .and_then(|base| numbers.get(base).copied().flatten());
            if !stays(known) {
                numbers.push(base);
                continue;
            }
            let base_stays = known
                .base
                .is_none_or(|base| before.get(base).is_some_and(stays));
            let changes = if base_stays {
                known.changes.clone()
            } else {
                difference(&named_by(&self.known, base), &named_by(&before, Some(at)))
            };
            numbers.push(Some(self.known.len()));
            self.known.push(Known {
                backup: known.backup.clone(),
                base,
                changes,
            });
        }
        self.is_changed = true;
    }

    fn youngest_ends(&self) -> Vec<(usize, Named)> {
        let bases: BTreeSet<usize> = self.known.iter().filter_map(|known| known.base).collect();
        (0..self.known.len())
            .rev()
            .filter(|at| !bases.contains(at))
            .take(BASES_TRIED)
            .map(|at| (at, named_by(&self.known, Some(at))))
            .collect()
    }
}

/// All that a backup names: what its bases say, the first of them first.
fn named_by(known: &[Known], at: Option<usize>) -> Named {
    let bases = std::iter::successors(at.and_then(|at| known.get(at)), |one| {
        one.base.and_then(|base| known.get(base))
    });
    let chain: Vec<&Known> = bases.collect();
    let mut named = Named::new();
    for one in chain.into_iter().rev() {
        apply(&mut named, &one.changes);
    }
    named
}

fn apply<'c>(
    named: &mut Named,
    changes: impl IntoIterator<Item = (&'c PackName, &'c Option<u64>)>,
) {
    for (pack, bytes) in changes {
        match bytes {
            Some(bytes) => named.insert(*pack, *bytes),
            None => named.remove(pack),
        };
    }
}

fn difference(base: &Named, wanted: &Named) -> Changes {
    let gone = base.keys().filter(|pack| !wanted.contains_key(pack));
    let other = wanted
        .iter()
        .filter(|(pack, bytes)| base.get(pack) != Some(bytes));
    gone.map(|pack| (*pack, None))
        .chain(other.map(|(pack, bytes)| (*pack, Some(*bytes))))
        .collect()
}

impl Written {
    fn encode(
        known: &[Known],
        mark: impl Fn(&Committed) -> Result<u64, RepositoryError>,
    ) -> Result<Self, RepositoryError> {
        let mut written = Self::default();
        let mut numbers: BTreeMap<PackName, usize> = BTreeMap::new();
        for one in known {
            let mut changes = Vec::with_capacity(one.changes.len());
            for (pack, bytes) in &one.changes {
                let number = *numbers.entry(*pack).or_insert_with(|| {
                    written.packs.push(u64::from_be_bytes(short(*pack)));
                    written.packs.len() - 1
                });
                changes.push((number, *bytes));
            }
            written.backups.push(WrittenBackup {
                mark: mark(&one.backup)?,
                base: one.base,
                changes,
            });
        }
        Ok(written)
    }

    /// `None` when it does not fit together. Whose mark is not among `marks` is not listed, and is about to be
    /// forgotten.
    fn decode(self, names: &Names, marks: &BTreeMap<u64, &Committed>) -> Option<Vec<Known>> {
        let nobody = Committed {
            id: String::new(),
            manifest: Seen {
                size: 0,
                modified: Timestamp::UNIX_EPOCH,
            },
            packs: None,
        };
        let packs = self.packs.iter();
        let packs: Vec<PackName> = packs
            .map(|begin| names.complete(begin.to_be_bytes()))
            .collect();
        let known = self.backups.into_iter().enumerate().map(|(at, one)| {
            let changes = one.changes.into_iter();
            let changes = changes.map(|(number, bytes)| Some((*packs.get(number)?, bytes)));
            let is_after_base = one.base.is_none_or(|base| base < at);
            is_after_base.then_some(Known {
                backup: marks
                    .get(&one.mark)
                    .map_or(&nobody, |listed| *listed)
                    .clone(),
                base: one.base,
                changes: changes.collect::<Option<_>>()?,
            })
        });
        known.collect()
    }
}

#[cfg(test)]
mod tests;
