//! A backup under way: opens archives, and commits them all at once or not at all.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

use super::manifest::{ArchiveRecord, Manifest, Parent};
use super::pipeline::{Pipeline, Workers};
use super::sink::{SealedArchive, Sink};
use super::store::Store;
use super::{
    FORMAT, Repository, RepositoryError, index_key, lease_key, manifest_key, ranges_key, sha256_hex,
};
use crate::archive::ArchiveWriter;
use crate::archive::cache::Cache;
use crate::services::{PointInTime, ServiceKind, ServiceReport};
use crate::stack::ContainerRef;

/// Counters, in bytes, that a progress bar reads while the backup runs.
#[derive(Debug, Default)]
pub struct Progress {
    raw: AtomicU64,
    read: AtomicU64,
    stored: AtomicU64,
}

impl Progress {
    pub(super) fn add_raw(&self, bytes: u64) {
        self.raw.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn add_read(&self, bytes: u64) {
        self.read.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn add_stored(&self, bytes: u64) {
        self.stored.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes of tar streams written so far.
    pub fn raw_bytes(&self) -> u64 {
        self.raw.load(Ordering::Relaxed)
    }

    pub fn read_bytes(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    pub fn stored_bytes(&self) -> u64 {
        self.stored.load(Ordering::Relaxed)
    }
}

/// What all archives of one backup share.
pub struct Session {
    store: Arc<dyn Store>,
    workers: Workers,
    cache: Mutex<Cache>,
    run: String,
    block_key: [u8; 32],
    /// Set when the run is to be given up: the next block fails.
    stop: AtomicBool,
    pub progress: Progress,
}

impl Session {
    /// Makes every archive of the backup fail at its next new block.
    pub fn request_stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    pub(super) fn check_stop(&self) -> Result<(), RepositoryError> {
        if self.stop.load(Ordering::Relaxed) {
            Err(RepositoryError::Stopped)
        } else {
            Ok(())
        }
    }

    pub(super) fn pipeline(&self) -> Result<Pipeline, RepositoryError> {
        Pipeline::start(Arc::clone(&self.store), &self.workers)
    }

    pub(super) fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn run(&self) -> &str {
        &self.run
    }

    pub(super) fn block_hash(&self, bytes: &[u8]) -> blake3::Hash {
        blake3::keyed_hash(&self.block_key, bytes)
    }
}

/// A backup that has a lease and no manifest yet. Dropping it leaves only unreferenced packs.
pub struct Backup<'a> {
    repository: &'a Repository,
    session: Arc<Session>,
    started: Timestamp,
    parent: Option<Parent>,
    committed: bool,
}

impl Drop for Backup<'_> {
    /// A backup that was given up needs its lease no longer.
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        if let Err(err) = self.repository.store.delete(&lease_key(self.session.run())) {
            tracing::warn!(
                "the lease of {} could not be removed: {err}",
                self.session.run()
            );
        }
    }
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
    pub project: Option<String>,
    pub warnings: Vec<String>,
}

/// A new backup's id: sorts by time, and is unique among hosts.
pub fn new_id(now: Timestamp) -> String {
    format!(
        "{}-{}",
        now.strftime("%Y%m%dT%H%M%SZ"),
        super::hex(&rand::random::<[u8; 3]>())
    )
}

impl Repository {
    /// Begins a backup: writes its lease and opens the cache in `state`.
    pub fn begin(&self, id: &str, state: &Path, level: i32) -> Result<Backup<'_>, RepositoryError> {
        let started = Timestamp::now();
        self.store.remove_abandoned()?;
        let parent = match self.backups()?.last() {
            Some(id) => Some(Parent {
                id: id.clone(),
                manifest_sha256: sha256_hex(&self.manifest_bytes(id)?),
            }),
            None => None,
        };
        let lease = serde_json::json!({ "backup": id, "started": started, "parent": parent });
        self.store
            .put(&lease_key(id), lease.to_string().as_bytes())?;
        let mut cache = Cache::open(state, self.id(), &self.packs()?)?;
        cache.begin()?;
        let session = Session {
            store: Arc::clone(&self.store),
            workers: Workers::start(level)?,
            cache: Mutex::new(cache),
            run: id.to_owned(),
            block_key: self.block_key,
            stop: AtomicBool::new(false),
            progress: Progress::default(),
        };
        Ok(Backup {
            repository: self,
            session: Arc::new(session),
            started,
            parent,
            committed: false,
        })
    }
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

    /// Commits: index, ranges, manifest, in this order, each durable before the next.
    pub fn commit(
        mut self,
        archives: Vec<(SealedArchive, ArchiveNotes)>,
        notes: BackupNotes,
    ) -> Result<Manifest, RepositoryError> {
        let id = self.session.run().to_owned();
        let store = &*self.repository.store;
        self.write_index(&id, &archives)?;
        let names: Vec<String> = archives
            .iter()
            .map(|(sealed, _)| sealed.name.clone())
            .collect();
        if names.iter().collect::<BTreeSet<_>>().len() != names.len() {
            return Err(RepositoryError::Invalid(format!(
                "two services have the same name among {}",
                names.join(", ")
            )));
        }
        let mut records = Vec::with_capacity(archives.len());
        for (sealed, notes) in archives {
            store.put(
                &ranges_key(&id, &sealed.name),
                sealed.ranges_text.as_bytes(),
            )?;
            records.push(ArchiveRecord {
                kind: notes.kind,
                container: notes.container,
                point: notes.point,
                report: notes.report,
                raw_bytes: sealed.raw_bytes,
                read_bytes: sealed.read_bytes,
                stored_bytes: sealed.stored_bytes(),
                ranges_sha256: sha256_hex(sealed.ranges_text.as_bytes()),
                stream_sha256: sealed.stream_sha256,
                name: sealed.name,
            });
        }
        let manifest = Manifest {
            format: FORMAT,
            id: id.clone(),
            repository: self.repository.id().to_owned(),
            parent: self.parent.take(),
            program_version: env!("CARGO_PKG_VERSION").to_owned(),
            host: notes.host,
            project: notes.project,
            started: self.started,
            finished: Timestamp::now(),
            skew_ms: skew_ms(&records),
            raw_bytes: records.iter().map(|r| r.raw_bytes).sum(),
            read_bytes: records.iter().map(|r| r.read_bytes).sum(),
            stored_bytes: records.iter().map(|r| r.stored_bytes).sum(),
            archives: records,
            warnings: notes.warnings,
        };
        let text = serde_json::to_vec_pretty(&manifest)
            .map_err(|e| RepositoryError::Invalid(format!("encode the manifest: {e}")))?;
        store.put(&manifest_key(&id), &text)?;
        self.committed = true;
        // The backup exists. What follows is housekeeping: its failure is said and does not undo it.
        if let Err(err) = store.delete(&lease_key(&id)) {
            tracing::warn!("the lease of {id} could not be removed: {err}");
        }
        if let Err(err) = self.session.cache().commit(&id, &names) {
            tracing::warn!("the cache was not updated, so the next backup reads more: {err}");
        }
        Ok(manifest)
    }

    fn write_index(
        &self,
        id: &str,
        archives: &[(SealedArchive, ArchiveNotes)],
    ) -> Result<(), RepositoryError> {
        let failed = |e| RepositoryError::io("compress the index", e);
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 3).map_err(failed)?;
        for published in archives.iter().flat_map(|(sealed, _)| &sealed.published) {
            let table = published.table.encode();
            let length = u32::try_from(table.len()).map_err(|_| {
                RepositoryError::Invalid("a block table is larger than 4 GiB".to_owned())
            })?;
            for part in [published.name.0.as_slice(), &length.to_le_bytes(), &table] {
                std::io::Write::write_all(&mut encoder, part).map_err(failed)?;
            }
        }
        self.repository
            .store
            .put(&index_key(id), &encoder.finish().map_err(failed)?)
    }
}

/// Time between the first and the last service's instant.
fn skew_ms(records: &[ArchiveRecord]) -> u64 {
    let points = || {
        records
            .iter()
            .filter(|r| r.kind != ServiceKind::Project)
            .map(|r| r.point.at.as_millisecond())
    };
    let (first, last) = (points().min().unwrap_or(0), points().max().unwrap_or(0));
    u64::try_from(last - first).unwrap_or(0)
}

/// Archive names become file names: `[a-z0-9._-]+`, not beginning with a dot.
pub fn is_archive_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !name.is_empty() && name.len() <= 100 && !name.starts_with('.') && name.chars().all(plain)
}
