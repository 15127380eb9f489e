//! The repository, format 1: an economical store that can be opened by hand.
//!
//! # Units
//!
//! - A **block** is the unit of identity: a database page, a 16 KiB piece of a Qdrant snapshot's member, a
//!   content-defined chunk of anything else ([`cutter`]). What is new is decided block by block.
//! - A **frame** is the unit of compression: new blocks in stream order, 128 KiB of them (1 MiB for models)
//!   ([`frame`]).
//! - A **pack** is the unit of storage: frames, closed by a trailer that describes them ([`pack`], [`table`]).
//! - An **archive** is a list of **ranges** of packs' decompressed bytes ([`ranges`]); read in order they are
//!   a tar stream.
//!
//! # Layout
//!
//! ```text
//! README.txt RECOVER.sh config.json        format, repository id, block key; how to recover by hand
//! packs/ab/<sha256 of the file>.zst        frames and trailer; `zstd -d` opens it
//! index/<backup>                           the block tables of the packs this backup wrote
//! backups/<id>/<archive>.ranges            `pack offset length` lines
//! backups/<id>/manifest.json               the commit point
//! leases/<id>                              a backup under way
//! damaged/<sha256>                         a pack that verify found damaged: nothing new refers to it
//! ```
//! `index/<backup>` is zstd over `pack name (32 bytes), u32 length, block table` for each pack, in order.
//!
//! # Commit
//!
//! Lease → packs → index → ranges → manifest → lease removed → local cache. Each file is durable before the
//! next is begun. Until the manifest exists, nothing of the backup is listed; what was stored is only
//! unreferenced. A name is the SHA-256 of the stored bytes, so `sha256sum` verifies packs without a key.

pub mod cutter;
pub mod frame;
pub mod manifest;
mod members;
pub mod pack;
mod pipeline;
pub mod ranges;
pub mod reader;
mod recover;
pub mod session;
pub mod sink;
pub mod store;
pub mod table;
pub mod verify;

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use manifest::{ArchiveRecord, Manifest};
use reader::ArchiveReader;
use store::{LocalStore, Store};

/// The format this program writes and reads.
pub const FORMAT: u32 = 1;
const CONFIG_KEY: &str = "config.json";
/// Bounds for small files: larger ones are damaged or hostile.
const CONFIG_LIMIT_BYTES: u64 = 64 * 1024;
const MANIFEST_LIMIT_BYTES: u64 = 64 * 1024 * 1024;
const RANGES_LIMIT_BYTES: u64 = 64 * 1024 * 1024;

/// What went wrong with the repository.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    #[error("{0}")]
    Invalid(String),
    #[error("{what}: {source}")]
    Io {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error(
        "there is no repository in {0} yet: the first backup makes it. If there should be one, check the mount and LIFEBOAT_REPOSITORY"
    )]
    NoRepository(String),
    #[error("{0} is not in the repository")]
    Missing(String),
    #[error("{0} exists already")]
    Exists(String),
    #[error("the run was asked to stop; nothing was committed")]
    Stopped,
    #[error("pack {pack} is damaged: {why}")]
    Damaged { pack: PackName, why: String },
}

impl RepositoryError {
    pub(crate) fn io(what: impl Into<String>, source: io::Error) -> Self {
        let mut what = what.into();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                what.push_str(" (the disk is full: free some space, or lower BACKUP_KEEP_*; nothing was committed)");
            }
            io::ErrorKind::ReadOnlyFilesystem => {
                what.push_str(" (it is mounted read-only: mount it writable)");
            }
            io::ErrorKind::PermissionDenied => {
                what.push_str(" (check the owner and mode of the mounted directory)");
            }
            _ => {}
        }
        Self::Io { what, source }
    }

    /// The repository's content, not the way to it, is at fault.
    pub const fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::Missing(_))
    }
}

/// A pack's name: the SHA-256 of its file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PackName(pub [u8; 32]);

impl PackName {
    pub fn key(&self) -> String {
        let name = self.to_string();
        let (shard, _) = name.split_at(2);
        format!("packs/{shard}/{name}.zst")
    }
}

impl fmt::Display for PackName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for PackName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for PackName {
    type Err = RepositoryError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || {
            RepositoryError::Invalid(format!("\"{}\" is not a pack's name", text.escape_debug()))
        };
        let (pairs, []) = text.as_bytes().as_chunks::<2>() else {
            return Err(bad());
        };
        let mut name = [0u8; 32];
        if pairs.len() != name.len() {
            return Err(bad());
        }
        for (byte, [high, low]) in name.iter_mut().zip(pairs) {
            let digit = |c: u8| {
                char::from(c)
                    .to_digit(16)
                    .filter(|_| !c.is_ascii_uppercase())
            };
            let value = digit(*high).zip(digit(*low)).map(|(h, l)| h * 16 + l);
            *byte = value.and_then(|v| u8::try_from(v).ok()).ok_or_else(bad)?;
        }
        Ok(Self(name))
    }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|b| [b >> 4, b & 15])
        .filter_map(|n| char::from_digit(u32::from(n), 16))
        .collect()
}

pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// `config.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct RepositoryConfig {
    format: u32,
    id: String,
    /// Key of the block ids, hexadecimal: ids of two repositories cannot be compared.
    block_key: String,
}

/// An open repository.
pub struct Repository {
    store: Arc<dyn Store>,
    config: RepositoryConfig,
    block_key: [u8; 32],
}

impl Repository {
    /// Opens the repository in a directory.
    pub fn open_local(dir: &Path) -> Result<Self, RepositoryError> {
        Self::open(Arc::new(LocalStore::new(dir)))
    }

    /// Opens the repository in a directory, or makes one where there is none.
    pub fn open_or_init_local(dir: &Path) -> Result<Self, RepositoryError> {
        crate::durable::create_dir_all(dir, 0o700).map_err(|e| {
            RepositoryError::io(
                format!("create the repository directory {}", dir.display()),
                e,
            )
        })?;
        let store: Arc<dyn Store> = Arc::new(LocalStore::new(dir));
        match Self::open(Arc::clone(&store)) {
            Err(RepositoryError::NoRepository(_)) => {}
            other => return other,
        }
        if !store.list("backups")?.is_empty() || !store.list("packs")?.is_empty() {
            return Err(RepositoryError::Invalid(format!(
                "{} holds packs or backups but no config.json: put the file back from a copy of the repository; nothing was changed",
                store.describe()
            )));
        }
        Self::init(&*store)?;
        Self::open(store)
    }

    fn init(store: &dyn Store) -> Result<(), RepositoryError> {
        let config = RepositoryConfig {
            format: FORMAT,
            id: hex(&rand::random::<[u8; 8]>()),
            block_key: hex(&rand::random::<[u8; 32]>()),
        };
        let text = serde_json::to_vec_pretty(&config)
            .map_err(|e| RepositoryError::Invalid(e.to_string()))?;
        for (key, bytes) in [
            ("README.txt", recover::README.as_bytes()),
            ("RECOVER.sh", recover::SCRIPT.as_bytes()),
            (CONFIG_KEY, &text),
        ] {
            match store.put(key, bytes) {
                // Two hosts may begin at once: the first one's config holds.
                Ok(()) | Err(RepositoryError::Exists(_)) => {}
                Err(other) => return Err(other),
            }
        }
        Ok(())
    }

    fn open(store: Arc<dyn Store>) -> Result<Self, RepositoryError> {
        let bytes = store
            .get(CONFIG_KEY, CONFIG_LIMIT_BYTES)
            .map_err(|e| match e {
                RepositoryError::Missing(_) => RepositoryError::NoRepository(store.describe()),
                other => other,
            })?;
        let config: RepositoryConfig = serde_json::from_slice(&bytes).map_err(|e| {
            RepositoryError::Invalid(format!(
                "config.json of {} cannot be understood: {e}",
                store.describe()
            ))
        })?;
        if config.format != FORMAT {
            return Err(RepositoryError::Invalid(format!(
                "the repository has format {}, this program knows format {FORMAT}: use a newer one",
                config.format
            )));
        }
        // A pack's name and the key have the same shape.
        let block_key = config.block_key.parse::<PackName>().map_err(|_| {
            RepositoryError::Invalid(
                "the block_key in config.json is not 64 hexadecimal digits".to_owned(),
            )
        })?;
        Ok(Self {
            store,
            config,
            block_key: block_key.0,
        })
    }

    pub fn id(&self) -> &str {
        &self.config.id
    }

    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Ids of all committed backups, oldest first.
    pub fn backups(&self) -> Result<Vec<String>, RepositoryError> {
        let mut ids: Vec<String> = self
            .store
            .list("backups")?
            .iter()
            .filter_map(|entry| {
                entry
                    .key
                    .strip_prefix("backups/")?
                    .strip_suffix("/manifest.json")
                    .map(str::to_owned)
            })
            .collect();
        ids.sort_unstable();
        Ok(ids)
    }

    /// Reads and checks a backup's manifest.
    pub fn manifest(&self, id: &str) -> Result<Manifest, RepositoryError> {
        let bytes = self.manifest_bytes(id)?;
        let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|e| {
            RepositoryError::Invalid(format!("the manifest of {id} cannot be understood: {e}"))
        })?;
        manifest.check(id, self.id())?;
        Ok(manifest)
    }

    pub(crate) fn manifest_bytes(&self, id: &str) -> Result<Vec<u8>, RepositoryError> {
        self.store
            .get(&manifest_key(id), MANIFEST_LIMIT_BYTES)
            .map_err(|e| match e {
                RepositoryError::Missing(_) => RepositoryError::Missing(format!("backup {id}")),
                other => other,
            })
    }

    /// Finds the backup that `wanted` names: an id, the unique beginning of one, or `latest`.
    pub fn resolve(&self, wanted: &str) -> Result<String, RepositoryError> {
        let ids = self.backups()?;
        if wanted == "latest" {
            return ids.last().cloned().ok_or_else(|| {
                RepositoryError::Missing(format!(
                    "a backup (the repository {} is empty: run `backup` first)",
                    self.store.describe()
                ))
            });
        }
        let mut matching = ids
            .iter()
            .filter(|id| !wanted.is_empty() && id.starts_with(wanted));
        match (matching.next(), matching.next()) {
            (Some(id), None) => Ok(id.clone()),
            (Some(a), Some(b)) => Err(RepositoryError::Invalid(format!(
                "\"{wanted}\" could be {a} or {b}: give more of the id"
            ))),
            _ => Err(RepositoryError::Missing(format!(
                "backup \"{}\" (`list` shows what there is{})",
                wanted.escape_debug(),
                ids.last()
                    .map(|id| format!("; the newest is {id}"))
                    .unwrap_or_default()
            ))),
        }
    }

    /// The newest backup of a compose project; of another one only where all are of that one.
    pub fn latest_of(&self, project: Option<&str>) -> Result<String, RepositoryError> {
        let newest = self.resolve("latest")?;
        let mut projects = std::collections::BTreeMap::new();
        for id in self.backups()? {
            projects.insert(self.manifest(&id)?.project, id);
        }
        match projects.get(&project.map(str::to_owned)) {
            Some(id) => Ok(id.clone()),
            None if projects.len() == 1 => Ok(newest),
            None => Err(RepositoryError::Invalid(format!(
                "the repository holds backups of several projects and none of {}: give the id of the one to restore ({})",
                project.unwrap_or("this one"),
                projects
                    .iter()
                    .map(|(name, id)| format!("{}: {id}", name.as_deref().unwrap_or("no name")))
                    .collect::<Vec<_>>()
                    .join(", ")
            ))),
        }
    }

    /// Opens an archive of a backup for reading.
    pub fn archive(
        &self,
        manifest: &Manifest,
        record: &ArchiveRecord,
    ) -> Result<ArchiveReader, RepositoryError> {
        ArchiveReader::open(
            Arc::clone(&self.store),
            self.ranges_file(manifest, record)?,
            record.raw_bytes,
        )
    }

    /// The pieces of packs that an archive is made of.
    pub(crate) fn archive_ranges(
        &self,
        manifest: &Manifest,
        record: &ArchiveRecord,
    ) -> Result<ranges::RangeList<PackName>, RepositoryError> {
        reader::resolve(&self.store, self.ranges_file(manifest, record)?)
    }

    fn ranges_file(
        &self,
        manifest: &Manifest,
        record: &ArchiveRecord,
    ) -> Result<Vec<u8>, RepositoryError> {
        let key = ranges_key(&manifest.id, &record.name);
        let bytes = self.store.get(&key, RANGES_LIMIT_BYTES)?;
        let found = sha256_hex(&bytes);
        if found != record.ranges_sha256 {
            return Err(RepositoryError::Invalid(format!(
                "{key} is damaged: its SHA-256 is {found}, the manifest says {}",
                record.ranges_sha256
            )));
        }
        Ok(bytes)
    }

    /// Names of all packs in the store that are not known to be damaged: what a new backup may refer to.
    pub fn packs(&self) -> Result<HashSet<PackName>, RepositoryError> {
        let names = |prefix: &str| -> Result<HashSet<PackName>, RepositoryError> {
            let entries = self.store.list(prefix)?;
            Ok(entries
                .iter()
                .filter_map(|e| {
                    e.key
                        .rsplit('/')
                        .next()?
                        .trim_end_matches(".zst")
                        .parse()
                        .ok()
                })
                .collect())
        };
        let damaged = names("damaged")?;
        Ok(names("packs")?
            .into_iter()
            .filter(|pack| !damaged.contains(pack))
            .collect())
    }

    /// Notes that a pack was read and is damaged: the next backup stores again what was in it.
    pub fn mark_damaged(&self, pack: PackName, fault: &str) -> Result<(), RepositoryError> {
        match self.store.put(&damaged_key(pack), fault.as_bytes()) {
            Err(RepositoryError::Exists(_)) => Ok(()),
            other => other,
        }
    }

    /// Drops a backup: its manifest first, so that it is gone whole; its packs stay for the prune.
    pub fn drop_backup(&self, id: &str) -> Result<(), RepositoryError> {
        let entries = self.store.list(&format!("backups/{id}"))?;
        self.store.delete(&manifest_key(id))?;
        for entry in entries {
            self.store.delete(&entry.key)?;
        }
        self.store.delete(&index_key(id))
    }
}

fn manifest_key(id: &str) -> String {
    format!("backups/{id}/manifest.json")
}

fn ranges_key(id: &str, archive: &str) -> String {
    format!("backups/{id}/{archive}.ranges")
}

fn index_key(id: &str) -> String {
    format!("index/{id}")
}

fn damaged_key(pack: PackName) -> String {
    format!("damaged/{pack}")
}

fn lease_key(id: &str) -> String {
    format!("leases/{id}")
}
