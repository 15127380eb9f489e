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
//! README.txt RECOVER.sh config.json        format, id, who can read; how to recover by hand
//! keys/                                    what opens an encrypted repository ([`keys`])
//! packs/ab/<sha256 of the file>.zst[.age]  frames and trailer
//! index/<writer>-<part>[.age]              block tables of the packs that a backup or a repack wrote ([`index`])
//! backups/<id>/<archive>.ranges[.age]      `pack offset length` lines
//! backups/<id>/packs                       which packs the ranges name, for the prune ([`uses`])
//! backups/<id>/manifest.json[.age]         the commit point ([`manifest`])
//! moved/<run>/                             where the pieces of packs went that a run rewrote ([`moves`])
//! damaged/<sha256>                         a pack that verify found damaged: nothing new refers to it
//! leases/<run>  trash/<prune>  locks/gc    who counts on what is there, and what goes ([`lease`])
//! wal/<system>/                            write-ahead log, for recovery to any moment ([`wal`])
//! clock  reserve                           S3: its time tells the bucket's; a disk: room for a prune when full
//! ```
//! Files end with `.age` where the repository is encrypted. What a reader believes carries a seal
//! ([`crypto`]); a pack's name is the SHA-256 of its file, so `sha256sum` verifies packs without a key.
//!
//! # Commit
//!
//! Lease → packs → index → ranges → list of packs → the lease is still good → manifest → lease removed →
//! local cache. Each file is durable before the next is begun. Until the manifest exists, nothing of the
//! backup is listed; what was stored is only unreferenced. A run that takes more than a day finds its
//! manifest's place taken by a prune ([`lease`]). Nothing that is committed is ever changed: a prune deletes
//! what no manifest names, and what it or a repair rewrites is found through `moved/`.

pub mod copy;
pub mod crypto;
pub mod cutter;
mod error;
pub mod frame;
pub mod history;
pub mod index;
pub mod keys;
pub mod lease;
pub mod manifest;
mod members;
pub mod moved;
pub mod moves;
mod pace;
pub mod pack;
mod pipeline;
mod progress;
pub mod prune;
pub mod ranges;
pub mod reader;
mod recover;
pub mod repair;
pub mod run_id;
pub mod session;
pub mod sink;
mod stock;
pub mod store;
pub mod table;
pub mod throttle;
pub mod uses;
pub mod vault;
pub mod verify;
pub mod wal;

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use sha2::{Digest, Sha256};

use crate::config::Secret;
use crypto::Sealed;
pub use error::RepositoryError;
use history::Committed;
use keys::{Keys, RepositoryConfig};
use manifest::{ArchiveRecord, Manifest};
use reader::ArchiveReader;
use store::{LocalStore, Store};
use uses::Uses;
use vault::Vault;

/// The format this program writes and reads.
pub const FORMAT: u32 = 1;
const CONFIG_KEY: &str = "config.json";
/// Bounds for small files: larger ones are damaged or hostile.
const CONFIG_LIMIT_BYTES: u64 = 64 * 1024;
const MANIFEST_LIMIT_BYTES: u64 = 64 * 1024 * 1024;
const RANGES_LIMIT_BYTES: u64 = 64 * 1024 * 1024;

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

/// This machine's name.
pub fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

/// An open repository.
pub struct Repository {
    vault: Arc<Vault>,
    config: RepositoryConfig,
}

impl Repository {
    /// Opens the unencrypted repository in a directory.
    pub fn open_local(dir: &Path) -> Result<Self, RepositoryError> {
        Self::open(Arc::new(LocalStore::new(dir)), &Keys::none())
    }

    /// Opens the unencrypted repository in a directory, or makes one where there is none.
    pub fn open_or_init_local(dir: &Path) -> Result<Self, RepositoryError> {
        Self::open_or_init(Arc::new(LocalStore::new(dir)), &Keys::none())
    }

    /// That this one is still where it was. A directory is empty while its disk is not mounted, or holds another
    /// one's; who writes for days on end asks first.
    pub fn check_present(&self) -> Result<(), RepositoryError> {
        let store = self.store();
        if store.is_remote() || keys::id_in(&**store)? == self.id() {
            return Ok(());
        }
        Err(RepositoryError::NoRepository(store.describe()))
    }

    /// Opens the repository in a store, or makes one where there is none.
    pub fn open_or_init(store: Arc<dyn Store>, keys: &Keys) -> Result<Self, RepositoryError> {
        match Self::open(Arc::clone(&store), keys) {
            Err(RepositoryError::NoRepository(_)) => {}
            other => return other,
        }
        if !store.list("backups")?.is_empty() || !store.list("packs")?.is_empty() {
            return Err(RepositoryError::Invalid(format!(
                "{} holds packs or backups but no config.json: put the file back from a copy of the repository; nothing was changed",
                store.describe()
            )));
        }
        if let Some(expected) = &keys.expected_id {
            return Err(RepositoryError::Invalid(format!(
                "there is no repository in {}, and LIFEBOAT_REPOSITORY_ID asks for {expected}: a new one would have another id; \
                 correct the place, or take the variable away for a new repository",
                store.describe()
            )));
        }
        recover::write(&*store)?;
        match keys::init(&*store, keys)? {
            Some(unlocked) => Self::unlocked(store, keys, unlocked),
            None => Self::open(store, keys),
        }
    }

    /// Opens the repository in a store.
    pub fn open(store: Arc<dyn Store>, keys: &Keys) -> Result<Self, RepositoryError> {
        let unlocked = keys::unlock(&*store, keys)?;
        Self::unlocked(store, keys, unlocked)
    }

    fn unlocked(
        store: Arc<dyn Store>,
        keys: &Keys,
        (config, secrets, mode): keys::Unlocked,
    ) -> Result<Self, RepositoryError> {
        keys::remember_secret(&secrets, keys)?;
        let vault = Arc::new(Vault {
            store,
            mode,
            secrets,
            epoch: AtomicU32::new(config.epoch),
        });
        Ok(Self { vault, config })
    }

    pub fn id(&self) -> &str {
        &self.config.id
    }

    pub fn is_encrypted(&self) -> bool {
        matches!(self.vault.mode, crypto::Mode::Age { .. })
    }

    pub fn store(&self) -> &Arc<dyn Store> {
        &self.vault.store
    }

    pub fn vault(&self) -> &Arc<Vault> {
        &self.vault
    }

    /// Public keys of those who can read what is written now.
    pub fn recipients(&self) -> &[String] {
        &self.config.recipients
    }

    /// Wraps the repository's identity with another passphrase; packs stay as they are.
    pub fn change_passphrase(&self, keys: &Keys, new: &Secret) -> Result<(), RepositoryError> {
        let old = keys.passphrase.as_ref().ok_or_else(|| {
            RepositoryError::Invalid(
                "AGE_PASSPHRASE is not set: there is no passphrase to change".to_owned(),
            )
        })?;
        keys::change_passphrase(&**self.store(), old, new)
    }

    /// Brings `config.json` in line with the recipients that were given.
    fn update_recipients(&self) -> Result<(), RepositoryError> {
        let vault = &self.vault;
        let changed =
            keys::update_recipients(&*vault.store, &self.config, &vault.secrets, &vault.mode)?;
        if let Some(config) = changed {
            vault.epoch.store(config.epoch, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Ids of all committed backups, oldest first.
    pub fn backups(&self) -> Result<Vec<String>, RepositoryError> {
        let listed = self.committed()?;
        Ok(listed.into_iter().map(|backup| backup.id).collect())
    }

    /// All committed backups, and how their files are listed now, oldest first.
    pub fn committed(&self) -> Result<Vec<Committed>, RepositoryError> {
        let entries = self.store().list("backups")?;
        Ok(history::committed(&self.vault, &entries))
    }

    /// Reads and checks a backup's manifest.
    pub fn manifest(&self, id: &str) -> Result<Manifest, RepositoryError> {
        let bytes = self
            .vault
            .get(&manifest_name(id), MANIFEST_LIMIT_BYTES)
            .map_err(|e| no_such_backup(id, e))?;
        Manifest::unseal(&self.vault, id, &bytes)
    }

    /// A manifest's file as it is stored: what its child names it by.
    pub(crate) fn stored_manifest(&self, id: &str) -> Result<Vec<u8>, RepositoryError> {
        let key = self.vault.key(&manifest_name(id));
        self.store()
            .get(&key, MANIFEST_LIMIT_BYTES)
            .map_err(|e| no_such_backup(id, e))
    }

    /// The packs that a backup needs.
    pub fn uses(&self, id: &str) -> Result<Uses, RepositoryError> {
        let key = packs_key(id);
        let bytes = self.store().get(&key, RANGES_LIMIT_BYTES)?;
        let sealed = Sealed::Packs(id);
        Uses::decode(
            &self
                .vault
                .unsealed_either(sealed, &key, bytes, RANGES_LIMIT_BYTES)?,
        )
    }

    /// Finds the backup that `wanted` names: an id, the unique beginning of one, or `latest`.
    pub fn resolve(&self, wanted: &str) -> Result<String, RepositoryError> {
        if wanted == "latest" {
            return self.up_to_now()?.last().cloned().ok_or_else(|| {
                RepositoryError::Missing(format!(
                    "a backup (the repository {} is empty: run `backup` first)",
                    self.store().describe()
                ))
            });
        }
        let ids = self.backups()?;
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
        for id in self.up_to_now()? {
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

    /// The newest backup, where there is no doubt whose: for what is not to be done with another project's.
    pub fn latest_of_one(&self) -> Result<String, RepositoryError> {
        let newest = self.resolve("latest")?;
        let mut others = self.backups()?.into_iter().filter(|id| *id != newest);
        let project = self.manifest(&newest)?.project;
        // One that cannot be read may be anybody's.
        match others.find(|id| {
            self.manifest(id)
                .is_ok_and(|other| other.project != project)
        }) {
            Some(other) => Err(RepositoryError::Invalid(format!(
                "the repository holds backups of several projects ({newest} and {other}, for example): say an id instead of `latest`"
            ))),
            None => Ok(newest),
        }
    }

    /// The backups, oldest first, without those that a clock which was ahead gave a later time than now; all, where
    /// there are no others.
    fn up_to_now(&self) -> Result<Vec<String>, RepositoryError> {
        let (all, now) = (self.backups()?, jiff::Timestamp::now());
        let told = run_id::told_of_the_future(&all, now);
        let (_, up_to_now): (Vec<_>, Vec<_>) = all
            .iter()
            .cloned()
            .partition(|id| run_id::is_ahead(id, now));
        if let (Some(told), false) = (&told, up_to_now.is_empty()) {
            tracing::warn!("{told}");
            return Ok(up_to_now);
        }
        Ok(all)
    }

    /// Opens an archive of a backup for reading.
    pub fn archive(
        &self,
        manifest: &Manifest,
        record: &ArchiveRecord,
    ) -> Result<ArchiveReader, RepositoryError> {
        ArchiveReader::open(
            Arc::clone(&self.vault),
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
        reader::resolve(&self.vault, self.ranges_file(manifest, record)?)
    }

    fn ranges_file(
        &self,
        manifest: &Manifest,
        record: &ArchiveRecord,
    ) -> Result<Vec<u8>, RepositoryError> {
        let key = ranges_name(&manifest.id, &record.name);
        let bytes = self.vault.get(&key, RANGES_LIMIT_BYTES)?;
        let found = sha256_hex(&bytes);
        if found != record.ranges_sha256 {
            return Err(RepositoryError::Invalid(format!(
                "{key} is damaged: its SHA-256 is {found}, the manifest says {}",
                record.ranges_sha256
            )));
        }
        Ok(bytes)
    }

    /// Notes that a pack was read and is damaged: the next backup stores again what was in it.
    pub fn mark_damaged(&self, pack: PackName, fault: &str) -> Result<(), RepositoryError> {
        match self.store().put(&damaged_key(pack), fault.as_bytes()) {
            Err(RepositoryError::Exists(_)) => Ok(()),
            other => other,
        }
    }

    /// Writes `README.txt` and `RECOVER.sh` where they are missing or not this version's.
    pub fn write_texts(&self) -> Result<(), RepositoryError> {
        recover::write(&**self.store())
    }

    /// Drops a backup: its manifest first, so that it is gone whole; its packs stay for the prune.
    pub fn drop_backup(&self, id: &str) -> Result<(), RepositoryError> {
        let entries = self.store().list(&format!("backups/{id}"))?;
        self.store().delete(&self.vault.key(&manifest_name(id)))?;
        for entry in entries {
            self.store().delete(&entry.key)?;
        }
        Ok(())
    }
}

fn no_such_backup(id: &str, err: RepositoryError) -> RepositoryError {
    match err {
        RepositoryError::Missing(_) => RepositoryError::Missing(format!("backup {id}")),
        other => other,
    }
}

fn manifest_name(id: &str) -> String {
    format!("backups/{id}/manifest.json")
}

fn ranges_name(id: &str, archive: &str) -> String {
    format!("backups/{id}/{archive}.ranges")
}

/// Plain in every repository.
fn packs_key(id: &str) -> String {
    format!("backups/{id}/packs")
}

fn damaged_key(pack: PackName) -> String {
    format!("damaged/{pack}")
}
