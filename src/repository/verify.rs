//! Finds damage: missing and changed files, wrong seals, references that lead nowhere, archives that do not
//! read; and says what it costs, down to the files inside the archives.
//!
//! A pack that is gone or damaged is no damage where its pieces were copied elsewhere ([`super::moves`]).
//! A host with public keys only checks what it can (presence, names, seals of what is kept readable for
//! everybody) and says what it could not.

mod cost;
mod files;
mod packs;
mod reading;
mod shared;
mod wal;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io::Read;

use serde::Serialize;

use super::lease;
use super::manifest::{ArchiveRecord, Manifest};
use super::moves::{self, MoveList};
use super::{PackName, Repository, RepositoryError, index, packs_key, reader, recover, sha256_hex};

pub use reading::ReadLog;

/// How deep to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Depth {
    /// Names, sizes, references and seals; no data is read.
    Structure,
    /// That, and every byte of a share of the packs: those that were not read for longest, and among equals
    /// the ones that `seed` picks.
    Sample { percent: u8, seed: u64 },
    /// Every byte: packs against their names, every frame, every archive's stream.
    Full,
}

/// What to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    Everything,
    Backup(String),
    /// Some archives of one backup.
    Archives {
        backup: String,
        archives: BTreeSet<String>,
    },
}

impl Scope {
    fn holds(&self, archive: &str) -> bool {
        match self {
            Self::Archives { archives, .. } => archives.contains(archive),
            Self::Everything | Self::Backup(_) => true,
        }
    }
}

/// What a verification found.
#[derive(Debug, Clone, Serialize)]
pub struct VerifyReport {
    pub depth: Depth,
    pub backups: u64,
    pub archives: u64,
    pub packs: u64,
    pub pack_bytes: u64,
    /// Packs of which every byte was read.
    pub read_packs: u64,
    pub read_bytes: u64,
    /// Packs that are gone or damaged, and of which everything that is needed lies elsewhere.
    pub replaced_packs: u64,
    /// What could not be looked at, as sentences.
    pub unchecked: Vec<String>,
    /// What a person should know and what costs no backup anything, as sentences.
    pub notes: Vec<String>,
    pub damage: Vec<Damage>,
}

/// One fault, and what it costs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// What is wrong, as a sentence.
    pub fault: String,
    /// Backups that cannot be restored whole because of it.
    pub backups: BTreeSet<String>,
    /// Their archives.
    pub archives: BTreeSet<String>,
    /// The first of the files inside them, as `archive: name`.
    pub files: Vec<String>,
    /// How many files there are beyond those.
    pub more_files: u64,
}

impl VerifyReport {
    pub fn is_good(&self) -> bool {
        self.damage.is_empty()
    }

    fn new(depth: Depth) -> Self {
        Self {
            depth,
            backups: 0,
            archives: 0,
            packs: 0,
            pack_bytes: 0,
            read_packs: 0,
            read_bytes: 0,
            replaced_packs: 0,
            unchecked: Vec::new(),
            notes: Vec::new(),
            damage: Vec::new(),
        }
    }

    fn add(&mut self, fault: String, users: impl IntoIterator<Item = (String, String)>) {
        let (backups, archives): (BTreeSet<_>, BTreeSet<_>) = users.into_iter().unzip();
        self.damage.push(Damage {
            fault,
            backups,
            archives: archives.into_iter().filter(|a| !a.is_empty()).collect(),
            files: Vec::new(),
            more_files: 0,
        });
    }
}

/// Verifies what `scope` names; `progress` is told of each pack.
pub fn verify(
    repository: &Repository,
    scope: &Scope,
    depth: Depth,
    progress: impl FnMut(u64, u64),
) -> Result<VerifyReport, RepositoryError> {
    verify_noting(repository, scope, depth, &mut ReadLog::default(), progress)
}

/// The same, and notes in `log` which packs were read; a sample begins with those that were not for longest.
pub fn verify_noting(
    repository: &Repository,
    scope: &Scope,
    depth: Depth,
    log: &mut ReadLog,
    mut progress: impl FnMut(u64, u64),
) -> Result<VerifyReport, RepositoryError> {
    let mut look = Look::new(repository, scope, depth)?;
    let ids = match scope {
        Scope::Everything => repository.backups()?,
        Scope::Backup(id) | Scope::Archives { backup: id, .. } => vec![id.clone()],
    };
    for id in ids {
        look.backup(id)?;
    }
    if *scope == Scope::Everything {
        look.shared_files()?;
    }
    look.packs(log, &mut progress)?;
    look.what_bad_packs_cost()?;
    if depth == Depth::Full && repository.vault().mode.can_read() {
        look.streams();
    }
    Ok(look.report)
}

/// A verification under way.
struct Look<'a> {
    repository: &'a Repository,
    scope: &'a Scope,
    depth: Depth,
    report: VerifyReport,
    /// Sizes of the packs that are there.
    there: HashMap<PackName, u64>,
    /// Packs that were found damaged before.
    marked: HashSet<PackName>,
    moves: MoveList,
    /// What must be there, and the last byte of it that is referred to.
    needed: BTreeMap<PackName, u64>,
    manifests: Vec<Manifest>,
    /// Where nothing can be decrypted: which packs each backup needs.
    listed: Vec<(String, Vec<PackName>)>,
    bad: BTreeMap<PackName, RepositoryError>,
}

impl<'a> Look<'a> {
    fn new(
        repository: &'a Repository,
        scope: &'a Scope,
        depth: Depth,
    ) -> Result<Self, RepositoryError> {
        let vault = repository.vault();
        let suffix = vault.key(".zst");
        let entries = vault.store.list("packs")?;
        let there = entries.iter().filter_map(|entry| {
            let name = entry.key.rsplit('/').next()?.strip_suffix(&suffix)?;
            Some((name.parse().ok()?, entry.size))
        });
        let mut report = VerifyReport::new(depth);
        if !vault.mode.can_read() {
            report.unchecked.push(
                "this host holds only public keys: manifests, ranges, the index and what is inside packs were not read"
                    .to_owned(),
            );
        }
        Ok(Self {
            repository,
            scope,
            depth,
            report,
            there: there.collect(),
            marked: lease::names(vault, "damaged", "")?,
            moves: vault.moves()?,
            needed: BTreeMap::new(),
            manifests: Vec::new(),
            listed: Vec::new(),
            bad: BTreeMap::new(),
        })
    }

    /// Checks one backup's own files, and notes which packs it needs.
    fn backup(&mut self, id: String) -> Result<(), RepositoryError> {
        self.report.backups += 1;
        let can_read = self.repository.vault().mode.can_read();
        let manifest = if can_read {
            match self.repository.manifest(&id) {
                Ok(manifest) => Some(manifest),
                Err(RepositoryError::Missing(_)) if !self.repository.backups()?.contains(&id) => {
                    // Dropped while we looked.
                    return Ok(());
                }
                Err(err) => {
                    let fault = believable(err)?;
                    self.report
                        .add(fault.to_string(), [(id.clone(), String::new())]);
                    None
                }
            }
        } else {
            None
        };
        let mut listed = self.list_of_packs(&id)?;
        if let Some(manifest) = manifest {
            check_parent(self.repository, &manifest, &mut self.report);
            self.ranges(&manifest, listed.as_ref())?;
            self.manifests.push(manifest);
        }
        if matches!(self.scope, Scope::Archives { .. }) {
            listed = None;
        }
        let listed = listed.unwrap_or_default();
        for pack in &listed {
            self.needed.entry(*pack).or_default();
        }
        if !can_read {
            self.listed.push((id, listed.into_iter().collect()));
        }
        Ok(())
    }

    /// The packs that `backups/<id>/packs` names; `None` when it cannot be believed.
    fn list_of_packs(&mut self, id: &str) -> Result<Option<HashSet<PackName>>, RepositoryError> {
        match self.repository.uses(id) {
            Ok(uses) => Ok(Some(uses.packs().map(|(pack, _)| pack).collect())),
            Err(err) => {
                let fault = format!(
                    "{} cannot be used: {}; `prune` deletes nothing until backup {id} is dropped or copied back",
                    packs_key(id),
                    believable(err)?
                );
                self.report.add(fault, [(id.to_owned(), String::new())]);
                Ok(None)
            }
        }
    }

    /// Notes which packs a backup's archives need, and how much of each.
    fn ranges(
        &mut self,
        manifest: &Manifest,
        listed: Option<&HashSet<PackName>>,
    ) -> Result<(), RepositoryError> {
        let scope = self.scope;
        for record in manifest.archives.iter().filter(|a| scope.holds(&a.name)) {
            self.report.archives += 1;
            let user = || [(manifest.id.clone(), record.name.clone())];
            let ranges = match self.repository.archive_ranges(manifest, record) {
                Ok(ranges) => ranges,
                Err(err) => {
                    let fault = believable(err)?.to_string();
                    self.report.add(fault, user());
                    continue;
                }
            };
            if ranges.length() != record.raw_bytes {
                let fault = format!(
                    "the ranges of archive {} of {} cover {} bytes, its manifest says {}",
                    record.name,
                    manifest.id,
                    ranges.length(),
                    record.raw_bytes
                );
                self.report.add(fault, user());
            }
            let mut unlisted = None;
            for range in ranges.as_slice() {
                let reach = self.needed.entry(range.pack).or_default();
                *reach = (*reach).max(range.offset + range.length);
                if listed.is_some_and(|listed| !listed.contains(&range.pack)) {
                    unlisted = Some(range.pack);
                }
            }
            if let Some(pack) = unlisted {
                let fault = format!(
                    "{} does not name pack {pack}, which archive {} refers to: a prune may delete it",
                    packs_key(&manifest.id),
                    record.name
                );
                self.report.add(fault, user());
            }
        }
        Ok(())
    }

    /// Checks the seals of what belongs to no backup: the index and the lists of moves.
    fn shared_files(&mut self) -> Result<(), RepositoryError> {
        for fault in shared::faults(self.repository)? {
            self.report.add(fault, []);
        }
        let (faults, read) = wal::faults(self.repository, self.depth)?;
        for fault in faults {
            self.report.add(fault, []);
        }
        self.report.read_bytes += read;
        self.report.notes = recover::notes(&**self.repository.store())?;
        let vault = self.repository.vault();
        let entries = vault.store.list("moved")?;
        for run in moves::runs(&entries) {
            if let Err(err) = vault.move_record(run) {
                let fault = format!("moved/{run}/packs cannot be used: {}", believable(err)?);
                self.report.add(fault, []);
            }
        }
        if !vault.mode.can_read() {
            return Ok(());
        }
        let moved: Vec<PackName> = self.moves.packs().copied().collect();
        for pack in moved {
            if let Err(err) = self.moves.find(vault, pack) {
                let fault = format!(
                    "where the pieces of pack {pack} went cannot be read: {}",
                    believable(err)?
                );
                self.report.add(fault, []);
            }
        }
        for part in index::parts(vault)? {
            match index::read(vault, &part, |_, _| Ok(())) {
                // Pruned while we looked.
                Ok(()) | Err(RepositoryError::Missing(_)) => {}
                Err(err) => {
                    let fault = format!(
                        "a part of the index is damaged, `repair index` makes it anew: {}",
                        believable(err)?
                    );
                    self.report.add(fault, []);
                }
            }
        }
        Ok(())
    }

    /// Reads the streams whose digest is known.
    fn streams(&mut self) {
        let known: HashSet<(String, String)> = self
            .report
            .damage
            .iter()
            .flat_map(|d| {
                d.backups
                    .iter()
                    .flat_map(|b| d.archives.iter().map(|a| (b.clone(), a.clone())))
            })
            .collect();
        for manifest in &self.manifests {
            for record in manifest
                .archives
                .iter()
                .filter(|a| self.scope.holds(&a.name))
            {
                let user = (manifest.id.clone(), record.name.clone());
                let Some(expected) = &record.stream_xxh3 else {
                    continue;
                };
                if known.contains(&user) {
                    continue;
                }
                let fault = match stream_digest(self.repository, manifest, record) {
                    Ok(found) if found == *expected => continue,
                    Ok(found) => format!(
                        "archive {} of {} reads as {found}, not as the {expected} it was written",
                        record.name, manifest.id
                    ),
                    Err(err) => format!(
                        "archive {} of {} cannot be read: {err}",
                        record.name, manifest.id
                    ),
                };
                self.report.add(fault, [user]);
            }
        }
    }
}

/// A fault of the repository's content; that the store cannot be reached says nothing about it.
fn believable(err: RepositoryError) -> Result<RepositoryError, RepositoryError> {
    match err {
        err @ (RepositoryError::Remote { .. } | RepositoryError::NoIdentity) => Err(err),
        other => Ok(other),
    }
}

/// A manifest names its parent by content: one that was replaced is found by its child.
fn check_parent(repository: &Repository, manifest: &Manifest, report: &mut VerifyReport) {
    let Some(parent) = &manifest.parent else {
        return;
    };
    // A parent that retention dropped is no fault, nor is one that was not copied and whose place is closed.
    if let Ok(bytes) = repository.stored_manifest(&parent.id)
        && bytes != lease::VOID
        && sha256_hex(&bytes) != parent.manifest_sha256
    {
        report.add(
            format!(
                "the manifest of {} is not the one that {} was made after: it was changed",
                parent.id, manifest.id
            ),
            [(parent.id.clone(), String::new())],
        );
    }
}

fn stream_digest(
    repository: &Repository,
    manifest: &Manifest,
    record: &ArchiveRecord,
) -> Result<String, RepositoryError> {
    let mut stream = repository.archive(manifest, record)?;
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    let mut buffer = vec![0; reader::PIECE_BYTES];
    loop {
        let count = stream
            .read(&mut buffer)
            .map_err(|e| RepositoryError::io("read the archive", e))?;
        match buffer.get(..count) {
            Some([]) | None => return Ok(format!("{:032x}", hash.digest128())),
            Some(piece) => {
                hash.update(piece);
            }
        }
    }
}
