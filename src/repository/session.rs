//! A backup under way: opens archives, and commits them all at once or not at all.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

use super::crypto::Sealed;
use super::index::{self, IndexWriter};
use super::lease::{self, Lease};
use super::manifest::{ArchiveRecord, Imported, Manifest, Parent, skew_ms};
use super::pace::Pace;
use super::pipeline::{Pipeline, Workers};
pub use super::progress::Progress;
use super::run_id;
pub use super::run_id::new_id;
use super::sink::{SealedArchive, Sink};
use super::table::BlockTable;
use super::throttle::Throttle;
use super::uses::Uses;
use super::vault::Vault;
use super::{
    FORMAT, PackName, Repository, RepositoryError, manifest_name, packs_key, ranges_name,
    sha256_hex,
};
use crate::archive::ArchiveWriter;
use crate::archive::cache::Cache;
use crate::services::{PointInTime, ServiceKind, ServiceReport};
use crate::stack::ContainerRef;

/// What all archives of one backup share.
pub struct Session {
    vault: Arc<Vault>,
    index: Arc<IndexWriter>,
    workers: Workers,
    cache: Mutex<Cache>,
    origin: Origin,
    run: String,
    /// Set when the run is to be given up: the next block fails.
    stop: AtomicBool,
    /// Set when reading is to be held back.
    pace: OnceLock<Pace>,
    /// Set when the services go first.
    throttle: OnceLock<Throttle>,
    pub progress: Progress,
}

impl Session {
    /// Makes every archive of the backup fail at its next new block.
    pub fn request_stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Holds the reading of all archives together back to a rate; the first one said stays.
    pub fn limit_reading(&self, bytes_per_second: u64) {
        self.pace.get_or_init(|| Pace::new(bytes_per_second));
    }

    /// Makes all archives pause while others want the processors; the first one said stays.
    pub fn give_way(&self, throttle: Throttle) {
        self.throttle.get_or_init(|| throttle);
    }

    /// How long archives paused for that, added up.
    pub fn paused(&self) -> Duration {
        self.throttle.get().map_or(Duration::ZERO, Throttle::paused)
    }

    /// Counts bytes of a service's data, and waits where reading is held back.
    pub(super) fn count_read(&self, bytes: u64) {
        self.progress.add_read(bytes);
        if let Some(pace) = self.pace.get() {
            pace.wait(bytes, &|| self.stop.load(Ordering::Relaxed));
        }
        self.pause();
    }

    /// Waits while others want the processors.
    pub(super) fn pause(&self) {
        if let Some(throttle) = self.throttle.get() {
            throttle.wait(&|| self.stop.load(Ordering::Relaxed));
        }
    }

    /// Fails once the run is to be given up.
    pub fn check_stop(&self) -> Result<(), RepositoryError> {
        if self.stop.load(Ordering::Relaxed) {
            Err(RepositoryError::Stopped)
        } else {
            Ok(())
        }
    }

    pub(super) fn pipeline(&self) -> Result<Pipeline, RepositoryError> {
        Pipeline::start(
            Arc::clone(&self.vault),
            Arc::clone(&self.index),
            &self.workers,
        )
    }

    pub(super) fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a pack over that was published beside the archives' pipelines.
    pub(super) fn adopt_pack(
        &self,
        pack: PackName,
        table: &BlockTable,
    ) -> Result<(), RepositoryError> {
        self.index.add(pack, table)?;
        self.cache().learn_pack(pack, table)
    }

    /// What the cache knows an archive's files by.
    pub(super) fn cached_as(&self, archive: &str) -> String {
        match self.origin {
            Origin::Stack => archive.to_owned(),
            // No archive of a stack can be called so.
            Origin::Import => format!("import:{archive}"),
        }
    }

    pub(super) fn run(&self) -> &str {
        &self.run
    }

    pub(super) fn block_hash(&self, bytes: &[u8]) -> blake3::Hash {
        self.vault.secrets.block_hash(bytes)
    }
}

/// A backup that has a lease and no manifest yet. Dropping it leaves only unreferenced packs.
pub struct Backup<'a> {
    repository: &'a Repository,
    session: Arc<Session>,
    /// Removed with the backup, whether it was committed or given up.
    lease: Lease,
    started: Timestamp,
    parent: Option<Parent>,
}

/// Where the files of a backup come from.
///
/// The cache keeps the two apart: what it knows of the stack's live files must outlast an import, and the
/// next import of the same files is compared with the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    Stack,
    Import,
}

/// What a service's adapter says of its archive, for the manifest.
#[derive(Debug, Clone)]
pub struct ArchiveNotes {
    pub kind: ServiceKind,
    pub container: Option<ContainerRef>,
    pub point: PointInTime,
    pub report: ServiceReport,
}

/// What the manifest says of the run as a whole.
#[derive(Debug, Clone, Default)]
pub struct BackupNotes {
    pub host: String,
    /// See [`Manifest::machine`].
    pub machine: Option<String>,
    pub project: Option<String>,
    pub warnings: Vec<String>,
    /// Of an import: when the backup was made, and where it comes from.
    pub imported: Option<(Timestamp, Imported)>,
}

/// How long a backup waits for a prune that has the repository for itself.
const LOCK_PATIENCE: Duration = Duration::from_mins(10);

impl Repository {
    /// Begins a backup: takes its lease and opens the cache in `state`.
    pub fn begin(&self, id: &str, state: &Path, level: i32) -> Result<Backup<'_>, RepositoryError> {
        self.begin_from(Origin::Stack, id, state, level)
    }

    /// Begins to take in a backup that was made without this program; `id` is of the time it was made.
    pub fn begin_import(
        &self,
        id: &str,
        state: &Path,
        level: i32,
    ) -> Result<Backup<'_>, RepositoryError> {
        self.begin_from(Origin::Import, id, state, level)
    }

    fn begin_from(
        &self,
        origin: Origin,
        id: &str,
        state: &Path,
        level: i32,
    ) -> Result<Backup<'_>, RepositoryError> {
        self.store().remove_abandoned()?;
        let lease = Lease::take(self.vault(), id, LOCK_PATIENCE)?;
        self.begin_under(lease, origin, id, state, level)
    }

    /// Begins a backup whose lease was taken.
    pub(super) fn begin_under(
        &self,
        lease: Lease,
        origin: Origin,
        id: &str,
        state: &Path,
        level: i32,
    ) -> Result<Backup<'_>, RepositoryError> {
        let started = Timestamp::now();
        let vault = self.vault();
        self.update_recipients()?;
        if let Err(err) = self.write_texts() {
            tracing::warn!("README.txt and RECOVER.sh are not this version's: {err}");
        }
        let parent = self.newest()?;
        if origin == Origin::Stack
            && let Some(told) = run_id::told_of_the_future(&self.backups()?, started)
        {
            tracing::warn!("{told}");
        }
        // After the lease: what is usable now stays until the lease ends.
        let usable = lease::usable_packs(vault)?;
        let name = format!("{}-{}", self.id(), vault.epoch());
        let moves = vault.moves()?;
        let mut cache = Cache::open(state, &name, &usable, &|pack| moves.find(vault, pack))?;
        cache.begin()?;
        learn(vault, &mut cache, &usable)?;
        let session = Session {
            index: Arc::new(IndexWriter::new(Arc::clone(vault), id)),
            vault: Arc::clone(vault),
            workers: Workers::start(level)?,
            cache: Mutex::new(cache),
            origin,
            run: id.to_owned(),
            stop: AtomicBool::new(false),
            pace: OnceLock::new(),
            throttle: OnceLock::new(),
            progress: Progress::default(),
        };
        Ok(Backup {
            repository: self,
            session: Arc::new(session),
            lease,
            started,
            parent,
        })
    }

    /// The newest backup, which the next one names as its parent.
    fn newest(&self) -> Result<Option<Parent>, RepositoryError> {
        for id in self.backups()?.into_iter().rev() {
            match self.stored_manifest(&id) {
                Ok(manifest) => {
                    let manifest_sha256 = sha256_hex(&manifest);
                    return Ok(Some(Parent {
                        id,
                        manifest_sha256,
                    }));
                }
                // Retention dropped it after the list was made.
                Err(RepositoryError::Missing(_)) => {}
                Err(other) => return Err(other),
            }
        }
        Ok(None)
    }
}

/// Reads what other writers put into the index since this host last looked, so that nothing is stored that
/// another host has stored.
fn learn(
    vault: &Vault,
    cache: &mut Cache,
    usable: &HashSet<PackName>,
) -> Result<(), RepositoryError> {
    if !vault.mode.can_read() {
        return Ok(());
    }
    let parts = index::current_parts(vault)?;
    for part in cache.unknown_parts(&parts)? {
        let read = index::read(vault, &part, |pack, table| {
            if usable.contains(&pack) {
                cache.learn_pack(pack, &table)?;
            }
            Ok(())
        });
        match read {
            Ok(()) => cache.note_part(&part)?,
            // Pruned meanwhile.
            Err(RepositoryError::Missing(_)) => {}
            Err(err @ RepositoryError::Io { .. }) => return Err(err),
            // What is not known is stored once more; verify tells of the file.
            Err(err) => tracing::warn!("a part of the index is not used: {err}; run `verify`"),
        }
    }
    Ok(())
}

impl Backup<'_> {
    /// Begins an archive.
    pub fn archive(&self, name: &str) -> Result<ArchiveWriter, RepositoryError> {
        if !is_archive_name(name) {
            return Err(RepositoryError::Invalid(format!(
                "\"{}\" cannot name an archive",
                name.escape_debug()
            )));
        }
        Ok(ArchiveWriter::new(Sink::new(
            Arc::clone(&self.session),
            name.to_owned(),
        )?))
    }

    pub fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// Commits: index, ranges, list of packs, manifest, in this order, each durable before the next.
    pub fn commit(
        mut self,
        archives: Vec<(SealedArchive, ArchiveNotes)>,
        notes: BackupNotes,
    ) -> Result<Manifest, RepositoryError> {
        self.repository.check_present()?;
        let id = self.session.run().to_owned();
        let archives: Vec<_> = archives
            .into_iter()
            .map(|(sealed, notes)| {
                let record = record(&sealed, notes);
                (sealed, record)
            })
            .collect();
        // The cache is written meanwhile, which changes nothing before it is committed. What fails, fails again then.
        std::thread::scope(|scope| {
            let writing = || drop(self.session.cache().write_out());
            let thread = std::thread::Builder::new().spawn_scoped(scope, writing);
            if let Err(err) = thread {
                tracing::debug!("no thread writes the cache ahead: {err}");
            }
            self.store_lists(&archives)
        })?;
        let records: Vec<_> = archives.into_iter().map(|(_, record)| record).collect();
        let (started, finished, imported) = match notes.imported {
            Some((taken, imported)) => (taken, taken, Some(imported)),
            None => (self.started, Timestamp::now(), None),
        };
        let manifest = Manifest {
            format: FORMAT,
            id: id.clone(),
            repository: self.repository.id().to_owned(),
            parent: self.parent.take(),
            program_version: env!("CARGO_PKG_VERSION").to_owned(),
            host: notes.host,
            machine: notes.machine,
            project: notes.project,
            started,
            finished,
            skew_ms: skew_ms(&records),
            raw_bytes: records.iter().map(|r| r.raw_bytes).sum(),
            read_bytes: records.iter().map(|r| r.read_bytes).sum(),
            stored_bytes: records.iter().map(|r| r.stored_bytes).sum(),
            archives: records,
            warnings: notes.warnings,
            imported,
        };
        self.put_manifest(&manifest)?;
        Ok(manifest)
    }

    /// Commits the copy of a backup of another repository.
    pub(super) fn commit_copy(
        self,
        of: &Manifest,
        archives: Vec<SealedArchive>,
    ) -> Result<Manifest, RepositoryError> {
        let archives: Vec<_> = archives
            .into_iter()
            .zip(&of.archives)
            .map(|(sealed, record)| {
                let record = ArchiveRecord {
                    stored_bytes: sealed.stored_bytes,
                    ranges_sha256: sha256_hex(sealed.ranges_text.as_bytes()),
                    ..record.clone()
                };
                (sealed, record)
            })
            .collect();
        self.store_lists(&archives)?;
        let parent = of.parent.as_ref().and_then(|parent| {
            // One that was dropped, or not copied, is no parent there.
            let stored = self.repository.stored_manifest(&parent.id).ok()?;
            Some(Parent {
                id: parent.id.clone(),
                manifest_sha256: sha256_hex(&stored),
            })
        });
        let manifest = Manifest {
            repository: self.repository.id().to_owned(),
            parent,
            stored_bytes: archives.iter().map(|(sealed, _)| sealed.stored_bytes).sum(),
            archives: archives.into_iter().map(|(_, record)| record).collect(),
            ..of.clone()
        };
        // As late as can be: a copy that was taken for dead, and sleeps, could commit what is gone.
        let key = self.repository.vault().key(&manifest_name(&manifest.id));
        self.lease.reopen(&key)?;
        self.put_manifest(&manifest)?;
        Ok(manifest)
    }

    /// Puts the index, the ranges and the list of packs.
    fn store_lists(
        &self,
        archives: &[(SealedArchive, ArchiveRecord)],
    ) -> Result<(), RepositoryError> {
        let (id, vault) = (self.session.run(), self.repository.vault());
        self.session.index.flush()?;
        let names: Vec<&str> = archives.iter().map(|(sealed, _)| sealed.name()).collect();
        if names.iter().collect::<BTreeSet<_>>().len() != names.len() {
            return Err(RepositoryError::Invalid(format!(
                "two services have the same name among {}",
                names.join(", ")
            )));
        }
        let (mut uses, mut files) = (Uses::default(), Vec::with_capacity(archives.len() + 1));
        for (sealed, _) in archives {
            let name = ranges_name(id, &sealed.name);
            let stored = vault.mode.encrypt(sealed.ranges_text.as_bytes())?;
            files.push((vault.key(&name), stored));
            uses.extend(&sealed.uses);
        }
        let list = vault.sealed_compressed(Sealed::Packs(id), &uses.encode())?;
        files.push((packs_key(id), list));
        vault.store.put_all(files)
    }

    fn put_manifest(&self, manifest: &Manifest) -> Result<(), RepositoryError> {
        let (id, vault) = (&manifest.id, self.repository.vault());
        let names: Vec<String> = manifest
            .archives
            .iter()
            .map(|archive| self.session.cached_as(&archive.name))
            .collect();
        let sealed = manifest.seal(vault)?;
        self.lease.check()?;
        vault
            .put(&manifest_name(id), &sealed)
            .map_err(lease::overtaken)?;
        // The backup exists. What follows is housekeeping: its failure is said and does not undo it.
        if let Err(err) = self.update_cache(&names) {
            tracing::warn!("the cache was not updated, so the next backup reads more: {err}");
        }
        Ok(())
    }

    /// What this run put into the index is known here without being read.
    fn update_cache(&self, archives: &[String]) -> Result<(), RepositoryError> {
        let mut cache = self.session.cache();
        for part in self.session.index.parts() {
            cache.note_part(&part)?;
        }
        cache.commit(archives)
    }
}

fn record(sealed: &SealedArchive, notes: ArchiveNotes) -> ArchiveRecord {
    ArchiveRecord {
        kind: notes.kind,
        container: notes.container,
        point: notes.point,
        report: notes.report,
        raw_bytes: sealed.raw_bytes,
        read_bytes: sealed.read_bytes,
        stored_bytes: sealed.stored_bytes,
        ranges_sha256: sha256_hex(sealed.ranges_text.as_bytes()),
        stream_xxh3: sealed.stream_xxh3.clone(),
        name: sealed.name.clone(),
    }
}

/// Archive names become file names: `[a-z0-9._-]+`, not beginning with a dot.
pub fn is_archive_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !name.is_empty() && name.len() <= 100 && !name.starts_with('.') && name.chars().all(plain)
}
