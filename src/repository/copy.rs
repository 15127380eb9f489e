//! Copies backups to a second repository, file by file: names, id and keys stay what they are.
//!
//! For each backup, oldest first: a lease in the target, packs → index → moves → ranges → list of packs →
//! manifest. What is there is not sent again, so a copy that was cut short goes on where it was. Each pack's
//! SHA-256 is compared with its name on the way; a pack that the target knows to be damaged is replaced.
//!
//! A backup's lease in the target carries the backup's id, so that a prune there can close the place of its
//! manifest to a copy that slept ([`super::lease`]). What such a prune left there is taken away again by the
//! next copy, which holds a lease of its own and has put everything else in place.

mod reencrypt;

use std::collections::{BTreeSet, HashSet};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::keys::Keys;
use super::lease::{self, Lease};
use super::moves::MoveList;
use super::store::Store;
use super::{
    CONFIG_KEY, CONFIG_LIMIT_BYTES, PackName, Repository, RepositoryError, damaged_key, index,
    manifest_name, packs_key, recover,
};
use crate::durable;

pub use reencrypt::reencrypt;

const LOCK_PATIENCE: Duration = Duration::from_mins(10);
/// Index parts, ranges, moves and manifests are smaller.
const FILE_LIMIT_BYTES: u64 = 320 * 1024 * 1024;

/// What a copy did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CopyReport {
    pub copied: Vec<String>,
    /// Backups that were there.
    pub there: u64,
    pub packs: u64,
    pub pack_bytes: u64,
    /// Backups that could not be copied because they are damaged here, as sentences.
    pub faults: Vec<String>,
}

/// Copies every backup of `source` that is not in `target` yet. For whoever holds the lock of `state`.
pub fn copy(
    source: &Repository,
    target: Arc<dyn Store>,
    keys: &Keys,
    state: &Path,
    progress: impl FnMut(&str, u64),
) -> Result<CopyReport, RepositoryError> {
    send_keys(source, &*target)?;
    let target = Repository::open(target, keys)?;
    target.store().remove_abandoned()?;
    let mut copier = Copier::new(source, &target, state, progress)?;
    let there: HashSet<String> = target.backups()?.into_iter().collect();
    for id in source.backups()? {
        let known = there.contains(&id);
        match copier.backup(&id, known) {
            Ok(true) if !known => copier.report.copied.push(id),
            Ok(_) => copier.report.there += 1,
            Err(err) if err.is_damage() => copier
                .report
                .faults
                .push(format!("backup {id} was not copied: {err}")),
            Err(err) => return Err(err),
        }
    }
    Ok(copier.report)
}

/// Makes the target a clone of the source that holds no backups; the source's newest keys count.
fn send_keys(source: &Repository, target: &dyn Store) -> Result<(), RepositoryError> {
    #[derive(Deserialize)]
    struct Id {
        id: String,
    }
    let config = source.store().get(CONFIG_KEY, CONFIG_LIMIT_BYTES)?;
    let there = match target.get(CONFIG_KEY, CONFIG_LIMIT_BYTES) {
        Ok(there) => Some(there),
        Err(RepositoryError::Missing(_)) => None,
        Err(other) => return Err(other),
    };
    if let Some(there) = &there {
        let id = serde_json::from_slice::<Id>(there).map(|config| config.id);
        if id.as_deref().ok() != Some(source.id()) {
            return Err(RepositoryError::Invalid(format!(
                "{} holds another repository than the one to copy ({}): give an empty place, or copy with --reencrypt",
                target.describe(),
                source.id()
            )));
        }
    } else if !target.list("packs")?.is_empty() || !target.list("backups")?.is_empty() {
        return Err(RepositoryError::Invalid(format!(
            "{} holds packs or backups but no config.json: it is not an empty place; nothing was changed",
            target.describe()
        )));
    }
    for (key, text) in [
        ("README.txt", recover::README),
        ("RECOVER.sh", recover::SCRIPT),
    ] {
        match target.put(key, text.as_bytes()) {
            Ok(()) | Err(RepositoryError::Exists(_)) => {}
            Err(other) => return Err(other),
        }
    }
    for entry in source.store().list("keys")? {
        let bytes = source.store().get(&entry.key, CONFIG_LIMIT_BYTES)?;
        match target.get(&entry.key, CONFIG_LIMIT_BYTES) {
            Ok(there) if there == bytes => {}
            Ok(_) | Err(RepositoryError::Missing(_)) => target.replace(&entry.key, &bytes)?,
            Err(other) => return Err(other),
        }
    }
    if there.as_ref() != Some(&config) {
        target.replace(CONFIG_KEY, &config)?;
    }
    Ok(())
}

struct Copier<'a, P> {
    source: &'a Repository,
    target: &'a Repository,
    state: &'a Path,
    moves: MoveList,
    source_usable: HashSet<PackName>,
    target_listed: HashSet<PackName>,
    target_marked: HashSet<PackName>,
    target_usable: HashSet<PackName>,
    report: CopyReport,
    progress: P,
}

impl<'a, P: FnMut(&str, u64)> Copier<'a, P> {
    fn new(
        source: &'a Repository,
        target: &'a Repository,
        state: &'a Path,
        progress: P,
    ) -> Result<Self, RepositoryError> {
        let (from, to) = (source.vault(), target.vault());
        Ok(Self {
            source,
            target,
            state,
            moves: from.moves()?,
            source_usable: lease::names(from, "packs", &from.key(".zst"))?
                .difference(&lease::names(from, "damaged", "")?)
                .copied()
                .collect(),
            target_listed: lease::names(to, "packs", &to.key(".zst"))?,
            target_marked: lease::names(to, "damaged", "")?,
            target_usable: HashSet::new(),
            report: CopyReport::default(),
            progress,
        })
    }

    /// Copies one backup, or what is missing of one that is there; `false` when nothing was to be done.
    fn backup(&mut self, id: &str, known: bool) -> Result<bool, RepositoryError> {
        if self.source.vault().mode.can_read() {
            // Nothing that is not genuine goes on its way.
            let manifest = self.source.manifest(id)?;
            for record in &manifest.archives {
                self.source.ranges_file(&manifest, record)?;
            }
        }
        let packs: Vec<PackName> = self
            .source
            .uses(id)?
            .packs()
            .map(|(pack, _)| pack)
            .collect();
        let is_whole =
            |pack| self.target_listed.contains(pack) && !self.target_marked.contains(pack);
        if known
            && packs
                .iter()
                .all(|pack| is_whole(pack) || self.moves.holds(*pack))
        {
            return Ok(false);
        }
        let note = note_lease(self.target, self.state, id)?;
        let lease = self.take_lease(id)?;
        // After the lease: what is usable now stays until it ends.
        self.target_usable = lease::usable_packs(self.target.vault())?;
        let runs = self.packs(packs)?;
        for writer in runs.iter().map(String::as_str).chain([id]) {
            self.index(writer)?;
        }
        for run in &runs {
            self.files(&format!("moved/{run}"), "packs")?;
        }
        if !known {
            let manifest = self.source.vault().key(&manifest_name(id));
            self.files_but_last(&format!("backups/{id}"), &[&packs_key(id), &manifest])?;
            self.file(&packs_key(id))?;
            lease.check()?;
            self.manifest(id, &manifest, &lease)?;
            tracing::info!(backup = id, "copied to {}", self.target.store().describe());
        }
        drop(lease);
        forget_note(&note)?;
        Ok(true)
    }

    /// Takes the backup's lease in the target.
    fn take_lease(&self, id: &str) -> Result<Lease, RepositoryError> {
        let vault = self.target.vault();
        Lease::take(vault, id, LOCK_PATIENCE).map_err(|err| match err {
            RepositoryError::Exists(_) => RepositoryError::Invalid(format!(
                "another host copies backup {id} to {}, or died there: leases/{id} says which; a prune there removes it after a day",
                vault.store.describe()
            )),
            other => other,
        })
    }

    /// Sends packs, and for those that moved the places they moved to; returns the runs whose moves are needed.
    fn packs(&mut self, packs: Vec<PackName>) -> Result<BTreeSet<String>, RepositoryError> {
        let (mut open, mut seen, mut runs) = (packs, HashSet::new(), BTreeSet::new());
        while let Some(pack) = open.pop() {
            if !seen.insert(pack) || self.target_usable.contains(&pack) {
                continue;
            }
            if self.source_usable.contains(&pack) {
                self.pack(pack)?;
                continue;
            }
            let moved = self.moves.runs_of(pack);
            if moved.is_empty() {
                return Err(RepositoryError::Damaged {
                    pack,
                    why: "it is missing or marked as damaged; run `repair` first".to_owned(),
                });
            }
            for run in moved {
                // All of the run's: a move that is there says of each of its packs that it may go.
                let record = self.source.vault().move_record(run)?;
                open.extend(record.packs.values().flatten());
                runs.insert(run.clone());
            }
        }
        Ok(runs)
    }

    fn pack(&mut self, pack: PackName) -> Result<(), RepositoryError> {
        let key = self.target.vault().pack_key(pack);
        if self.target_listed.contains(&pack) {
            if !self.target_marked.contains(&pack) {
                return Err(RepositoryError::Invalid(format!(
                    "pack {pack} is needed again and lies in the trash of {}: copy again when a prune there has emptied it (two days at the most, `prune --now` at once)",
                    self.target.store().describe()
                )));
            }
            self.target.store().delete(&key)?;
        }
        let mut blob = self.source.store().fetch(&key)?;
        let mut spool = self.target.store().spool()?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 256 * 1024];
        let failed = |e| RepositoryError::io(format!("copy pack {pack}"), e);
        let mut stream = blob.stream().map_err(failed)?;
        let mut bytes = 0;
        loop {
            let count = stream.read(&mut buffer).map_err(failed)?;
            let Some(piece) = buffer.get(..count).filter(|piece| !piece.is_empty()) else {
                break;
            };
            hash.update(piece);
            spool.write_all(piece).map_err(failed)?;
            bytes += count as u64;
        }
        let found = PackName(hash.finalize().into());
        if found != pack {
            let why = format!("its SHA-256 is {found}");
            self.source.mark_damaged(pack, &why)?;
            return Err(RepositoryError::Damaged { pack, why });
        }
        spool.publish(&key)?;
        if self.target_marked.remove(&pack) {
            self.target.store().delete(&damaged_key(pack))?;
        }
        self.target_listed.insert(pack);
        self.target_usable.insert(pack);
        self.report.packs += 1;
        self.report.pack_bytes += bytes;
        (self.progress)(&key, bytes);
        Ok(())
    }

    /// Sends the parts of the index that one writer put.
    fn index(&mut self, writer: &str) -> Result<(), RepositoryError> {
        let vault = self.source.vault();
        for part in index::parts(vault)? {
            if part
                .rsplit_once('-')
                .is_some_and(|(found, _)| found == writer)
            {
                self.file(&vault.key(&index::key(&part)))?;
            }
        }
        Ok(())
    }

    /// Sends all files of a directory, the one named `last` after the others.
    fn files(&mut self, directory: &str, last: &str) -> Result<(), RepositoryError> {
        let last = format!("{directory}/{last}");
        self.files_but_last(directory, &[&last])?;
        self.file(&last)
    }

    fn files_but_last(&mut self, directory: &str, last: &[&str]) -> Result<(), RepositoryError> {
        for entry in self.source.store().list(directory)? {
            if !last.contains(&entry.key.as_str()) {
                self.file(&entry.key)?;
            }
        }
        Ok(())
    }

    fn file(&mut self, key: &str) -> Result<(), RepositoryError> {
        let bytes = self.source.store().get(key, FILE_LIMIT_BYTES)?;
        match self.target.store().put(key, &bytes) {
            Err(RepositoryError::Exists(_)) => {
                if self.target.store().get(key, FILE_LIMIT_BYTES)? == bytes {
                    return Ok(());
                }
                Err(RepositoryError::Invalid(format!(
                    "{key} in {} is another file than the one to copy, or damaged: delete it there, and copy again",
                    self.target.store().describe()
                )))
            }
            other => other,
        }
    }

    /// Commits the copy; what a prune put in its place goes first, for this run's lease is alive.
    fn manifest(&mut self, id: &str, key: &str, lease: &Lease) -> Result<(), RepositoryError> {
        if self.target.remove_void(id)? {
            lease.check()?;
        }
        self.file(key)
    }
}

impl Repository {
    /// Removes what a prune put where `id` would be committed. For whoever holds the backup's lease.
    fn remove_void(&self, id: &str) -> Result<bool, RepositoryError> {
        let key = self.vault().key(&manifest_name(id));
        let entries = self.store().list(&format!("backups/{id}"))?;
        let is_void = entries.iter().any(|e| e.key == key && lease::is_void(e));
        if is_void {
            self.store().delete(&key)?;
        }
        Ok(is_void)
    }
}

/// Notes that this host is about to take a backup's lease in the target; a lease that a killed run of this
/// host left there is removed. For whoever holds the lock of `state`.
fn note_lease(target: &Repository, state: &Path, id: &str) -> Result<PathBuf, RepositoryError> {
    let place = blake3::hash(target.store().describe().as_bytes()).to_hex();
    let note = state.join(format!("copying-{}", place.get(..16).unwrap_or(&place)));
    if std::fs::read_to_string(&note).is_ok_and(|noted| noted == id) {
        target.store().delete(&format!("leases/{id}"))?;
    }
    durable::write_replace(&note, id.as_bytes(), 0o600).map_err(|e| {
        RepositoryError::io("note in the state directory which backup is copied", e)
    })?;
    Ok(note)
}

fn forget_note(note: &Path) -> Result<(), RepositoryError> {
    durable::remove(note)
        .map(drop)
        .map_err(|e| RepositoryError::io("remove the note of a copy that is complete", e))
}
