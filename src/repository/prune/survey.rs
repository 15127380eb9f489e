//! What a prune looks at, in the order that makes its decisions safe.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;

use jiff::{SignedDuration, Timestamp};

use super::RunSeen;
use super::decide::{self, Move, Moves};
use super::needed::Needed;
use crate::repository::history::PackUses;
use crate::repository::lease::{
    LEASE_LIMIT_BYTES, LeaseNote, TRASH_LIMIT_BYTES, Trash, close_run, is_void,
};
use crate::repository::store::Entry;
use crate::repository::uses::Uses;
use crate::repository::vault::Vault;
use crate::repository::{PackName, Repository, RepositoryError, moves, reader};

/// What becomes of runs whose leases are dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Close {
    /// They can never commit afterwards.
    DeadRuns,
    /// Nothing is written.
    Nobody,
}

/// A pack as it was listed.
#[derive(Debug, Clone, Copy)]
pub struct PackSeen {
    pub size: u64,
    pub age: SignedDuration,
}

/// A trash file as it was listed.
#[derive(Debug)]
pub struct TrashFile {
    pub key: String,
    pub age: SignedDuration,
    pub packs: BTreeSet<PackName>,
}

/// Packs that no backup needs and that are in no trash file.
#[derive(Debug, Default)]
pub struct Dead {
    pub packs: BTreeSet<PackName>,
    /// Those that a run under way may have written.
    pub fresh: BTreeSet<PackName>,
}

impl Dead {
    /// All of them: for who knows that no run is under way.
    pub fn drain_all(&mut self) -> BTreeSet<PackName> {
        let mut all = std::mem::take(&mut self.packs);
        all.append(&mut self.fresh);
        all
    }
}

/// Everything a prune decides from.
pub struct Survey {
    pub packs: BTreeMap<PackName, PackSeen>,
    pub trash: Vec<TrashFile>,
    pub damaged: BTreeSet<PackName>,
    /// Small files as they were before leases were listed.
    pub index: Vec<Entry>,
    pub moved_files: Vec<Entry>,
    pub backup_files: Vec<Entry>,
    pub runs: Vec<RunSeen>,
    /// Committed runs that moved packs.
    pub moves: BTreeMap<String, Move<PackName, String>>,
    /// Committed backups.
    pub backups: BTreeSet<String>,
    /// Packs that a backup is read from.
    pub live: HashSet<PackName>,
    /// The most of a pack's decompressed bytes that one backup names.
    pub used_bytes: HashMap<PackName, u64>,
}

impl Survey {
    /// `state` is where packs that backups name are remembered.
    pub fn look(
        repository: &Repository,
        close: Close,
        state: Option<&Path>,
    ) -> Result<Self, RepositoryError> {
        let vault = repository.vault();
        let store = &vault.store;
        let now = vault.now()?;
        // Trash before packs: what a trash file names that is gone already is not looked for.
        let trash = read_trash(vault, now)?;
        let packs = list_packs(vault, now)?;
        let damaged = crate::repository::lease::names(vault, "damaged", "")?
            .into_iter()
            .collect();
        let index = store.list("index")?;
        let moved_files = store.list("moved")?;
        let backup_files = store.list("backups")?;
        // Leases before moves and backups: a run that ended in between has committed, and is seen.
        let runs = look_at_leases(vault, close)?;
        let mut survey = Self {
            packs,
            trash,
            damaged,
            index,
            moved_files,
            backup_files,
            runs,
            moves: read_moves(vault)?,
            backups: BTreeSet::new(),
            live: HashSet::new(),
            used_bytes: HashMap::new(),
        };
        survey.read_backups(repository, now, state)?;
        Ok(survey)
    }

    pub fn size(&self, pack: PackName) -> u64 {
        self.packs.get(&pack).map_or(0, |seen| seen.size)
    }

    pub fn is_leased(&self, run: &str) -> bool {
        self.runs.iter().any(|seen| seen.run == run)
    }

    fn living(&self) -> impl Iterator<Item = SignedDuration> + '_ {
        self.runs
            .iter()
            .filter(|run| run.alive)
            .map(|run| SignedDuration::from_secs(run.age_seconds))
    }

    /// Trash files whose packs may be deleted.
    pub fn due(&self, waits: bool) -> Vec<&TrashFile> {
        self.trash
            .iter()
            .filter(|file| decide::is_due(file.age, self.living(), waits))
            .collect()
    }

    /// What of trash files is still there and still dead.
    pub fn doomed(&self, files: &[&TrashFile]) -> BTreeSet<PackName> {
        files
            .iter()
            .flat_map(|file| &file.packs)
            .copied()
            .filter(|pack| self.packs.contains_key(pack) && !self.live.contains(pack))
            .collect()
    }

    pub fn trashed_and_dead(&self) -> BTreeSet<PackName> {
        self.doomed(&self.trash.iter().collect::<Vec<_>>())
    }

    pub fn is_trashed(&self, pack: PackName) -> bool {
        self.trash.iter().any(|file| file.packs.contains(&pack))
    }

    /// Whether a run that is under way may have written it.
    pub fn is_fresh(&self, pack: PackName) -> bool {
        let seen = self.packs.get(&pack);
        seen.is_none_or(|seen| decide::may_be_fresh(seen.age, self.living().max()))
    }

    /// What can go into the trash.
    pub fn dead(&self) -> Dead {
        let trashed: HashSet<&PackName> = self.trash.iter().flat_map(|f| &f.packs).collect();
        let mut dead = Dead::default();
        for pack in self.packs.keys() {
            if self.live.contains(pack) || trashed.contains(pack) {
                continue;
            }
            if self.is_fresh(*pack) {
                dead.fresh.insert(*pack);
            } else {
                dead.packs.insert(*pack);
            }
        }
        dead
    }

    /// Backups are listed here, after leases. What is remembered of one that is listed is what its list of packs
    /// says now, for that never changes; of the others the lists are read.
    fn read_backups(
        &mut self,
        repository: &Repository,
        now: Timestamp,
        state: Option<&Path>,
    ) -> Result<(), RepositoryError> {
        let moves = Moves::new(&self.moves);
        let mut needed = Needed::new(&moves, &self.damaged);
        let listed = repository.committed()?;
        let away = self.moves.values().flat_map(|one| &one.packs);
        let away = away.flat_map(|(pack, places)| std::iter::once(pack).chain(places));
        let packs = self.packs.keys().chain(away).copied();
        let mut memory = PackUses::load(repository, state, &listed, packs);
        needed.add_remembered(&memory);
        let remembered: HashSet<String> = memory.ids().into_iter().map(str::to_owned).collect();
        for backup in &listed {
            let id = &backup.id;
            if !remembered.contains(id) {
                match repository.uses(id) {
                    Ok(uses) => {
                        needed.add(id, uses.packs());
                        memory.learn(backup, &uses, now);
                    }
                    Err(failed) => match uses_of_ranges(repository, id, failed)? {
                        Some(uses) => needed.add(id, uses.packs()),
                        None => continue,
                    },
                }
            }
            self.backups.insert(id.clone());
        }
        memory.save();
        (self.live, self.used_bytes) = needed.into_parts();
        self.keep_what_moved_nowhere();
        Ok(())
    }

    /// A pack whose pieces should be elsewhere stays when the other place is not there: it should not happen.
    fn keep_what_moved_nowhere(&mut self) {
        let lost: Vec<PackName> = self
            .moves
            .values()
            .flat_map(|one| &one.packs)
            .filter(|(_, places)| {
                places
                    .iter()
                    .any(|place| self.live.contains(place) && !self.packs.contains_key(place))
            })
            .map(|(pack, _)| *pack)
            .collect();
        self.live.extend(lost);
    }
}

/// Keys of all trash files.
pub fn trash_keys(repository: &Repository) -> Result<BTreeSet<String>, RepositoryError> {
    let entries = repository.store().list("trash")?;
    Ok(entries.into_iter().map(|entry| entry.key).collect())
}

fn read_trash(vault: &Vault, now: Timestamp) -> Result<Vec<TrashFile>, RepositoryError> {
    let mut files = Vec::new();
    for entry in vault.store.list("trash")? {
        let bytes = match vault.store.get(&entry.key, TRASH_LIMIT_BYTES) {
            // Another prune was faster.
            Err(RepositoryError::Missing(_)) => continue,
            other => other?,
        };
        let trash: Trash = serde_json::from_slice(&bytes).map_err(|e| {
            RepositoryError::Invalid(format!(
                "{} cannot be understood, so nothing is deleted: {e}",
                entry.key
            ))
        })?;
        files.push(TrashFile {
            key: entry.key,
            age: now.duration_since(entry.modified),
            packs: trash
                .packs
                .iter()
                .map(|name| name.parse())
                .collect::<Result<_, _>>()?,
        });
    }
    Ok(files)
}

fn list_packs(
    vault: &Vault,
    now: Timestamp,
) -> Result<BTreeMap<PackName, PackSeen>, RepositoryError> {
    let suffix = vault.key(".zst");
    let entries = vault.store.list("packs")?;
    Ok(entries
        .iter()
        .filter_map(|entry| {
            let name = entry.key.rsplit('/').next()?.strip_suffix(&suffix)?;
            let pack: PackName = name.parse().ok()?;
            let seen = PackSeen {
                size: entry.size,
                age: now.duration_since(entry.modified),
            };
            (entry.key == vault.pack_key(pack)).then_some((pack, seen))
        })
        .collect())
}

/// Lists leases, and keeps runs whose leases are dead from ever committing.
fn look_at_leases(vault: &Vault, close: Close) -> Result<Vec<RunSeen>, RepositoryError> {
    let entries = vault.store.list("leases")?;
    let now = vault.now()?;
    let mut runs = Vec::with_capacity(entries.len());
    for entry in entries {
        let Some(run) = entry.key.strip_prefix("leases/") else {
            continue;
        };
        let note = match vault.store.get(&entry.key, LEASE_LIMIT_BYTES) {
            // It ended since the listing; what it committed is seen later on. It still counts as listed.
            Err(RepositoryError::Missing(_)) => None,
            other => serde_json::from_slice::<LeaseNote>(&other?).ok(),
        };
        let age = now.duration_since(entry.modified);
        let alive = !decide::is_dead(age);
        if !alive && close == Close::DeadRuns {
            close_run(vault, run, note.as_ref(), &entry.key)?;
        }
        runs.push(RunSeen {
            run: run.to_owned(),
            host: note.map_or_else(|| "an unknown host".to_owned(), |note| note.host),
            age_seconds: age.as_secs(),
            alive,
        });
    }
    Ok(runs)
}

fn read_moves(vault: &Vault) -> Result<BTreeMap<String, Move<PackName, String>>, RepositoryError> {
    let entries = vault.store.list("moved")?;
    let mut found = BTreeMap::new();
    for run in moves::runs(&entries) {
        match vault.move_record(run) {
            Ok(record) => {
                found.insert(run.to_owned(), record);
            }
            // Another prune found that no backup needs it any more.
            Err(RepositoryError::Missing(_)) => {}
            Err(other) => return Err(other),
        }
    }
    Ok(found)
}

/// The packs a backup names; `None` when it was dropped since it was listed.
pub fn uses(repository: &Repository, id: &str) -> Result<Option<Uses>, RepositoryError> {
    match repository.uses(id) {
        Ok(uses) => Ok(Some(uses)),
        Err(failed) => uses_of_ranges(repository, id, failed),
    }
}

/// The same from the backup's ranges, when its list of packs `failed` to tell.
fn uses_of_ranges(
    repository: &Repository,
    id: &str,
    failed: RepositoryError,
) -> Result<Option<Uses>, RepositoryError> {
    if !(failed.is_damage() || matches!(failed, RepositoryError::Invalid(_))) {
        return Err(failed);
    }
    let mut uses = Uses::default();
    let told = visit_ranges(repository, id, |list| {
        uses.add(list);
        Ok(())
    });
    match told {
        Ok(()) => Ok(Some(uses)),
        Err(_) if !is_there(repository, id)? => Ok(None),
        Err(err) => Err(RepositoryError::Invalid(format!(
            "it is not known which packs backup {id} needs, so nothing is deleted: {failed}; and its own lists do not tell: {err}. Run `verify`"
        ))),
    }
}

/// Whether the backup is still committed: retention drops the manifest first.
pub fn is_there(repository: &Repository, id: &str) -> Result<bool, RepositoryError> {
    let key = repository
        .vault()
        .key(&crate::repository::manifest_name(id));
    let entries = repository.store().list(&format!("backups/{id}"))?;
    Ok(entries
        .iter()
        .any(|entry| entry.key == key && !is_void(entry)))
}

/// Visits the ranges of all archives of a backup, lists that are kept as blocks included.
pub fn visit_ranges(
    repository: &Repository,
    id: &str,
    mut visit: impl FnMut(
        &crate::repository::ranges::RangeList<PackName>,
    ) -> Result<(), RepositoryError>,
) -> Result<(), RepositoryError> {
    let manifest = repository.manifest(id)?;
    for record in &manifest.archives {
        let file = repository.ranges_file(&manifest, record)?;
        reader::resolve_visiting(repository.vault(), file, &mut visit)?;
    }
    Ok(())
}
