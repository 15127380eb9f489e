//! Qdrant's storage as it lay on the disk, copied by `tar` or `cp`: into an archive, and back by a swap.
//!
//! A snapshot is taken into a running server, files of its storage are not: they belong to the version that
//! wrote them, and the server must be stopped while they change. Whether it was stopped when they were copied
//! cannot be seen.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::names::is_plain;
use super::restore::ready_within;
use super::server::Address;
use crate::archive::ArchiveWriter;
use crate::archive::walk::{Rules, TreeCounts};
use crate::config::Config;
use crate::repository::manifest::ArchiveRecord;
use crate::restore::{Restore, Way};
use crate::services::support::{archive_failed, check_writable, io_failed};
use crate::services::volume::{skipped_warning, tree_bytes, tree_counts};
use crate::services::{
    Check, ErrorKind, PointInTime, RunContext, Service, ServiceError, ServiceKind, ServiceReport,
};
use crate::stack::StackService;

const STORAGE: &str = "/qdrant/storage";

/// What the manifest keeps of a storage directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct StorageFacts {
    /// Names of the collections' directories; no other record of Qdrant has this field.
    storage_collections: BTreeSet<String>,
}

/// Whether an archive holds Qdrant's storage, and not its snapshots.
pub fn is_storage(report: &ServiceReport) -> bool {
    report.facts.get("storage_collections").is_some()
}

/// A copied storage directory, on its way into an archive.
pub struct QdrantStorage {
    name: String,
    root: PathBuf,
    counts: TreeCounts,
}

impl QdrantStorage {
    pub fn new(name: &str, root: &Path) -> Self {
        Self {
            name: name.to_owned(),
            root: root.to_owned(),
            counts: TreeCounts::default(),
        }
    }

    fn collections(&self) -> Result<BTreeSet<String>, ServiceError> {
        let directory = self.root.join("collections");
        let failed = |e| io_failed(&self.name, "list", &directory, e);
        let mut names = BTreeSet::new();
        for entry in std::fs::read_dir(&directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if !entry.file_type().map_err(failed)?.is_dir() {
                continue;
            }
            let name = entry.file_name().into_string().ok().filter(|n| is_plain(n));
            names.insert(name.ok_or_else(|| {
                let message = format!(
                    "{} is no directory of a collection: Qdrant did not make it",
                    entry.path().display()
                );
                ServiceError::new(&self.name, ErrorKind::Damaged, message)
            })?);
        }
        Ok(names)
    }
}

#[async_trait]
impl Service for QdrantStorage {
    fn kind(&self) -> ServiceKind {
        ServiceKind::Qdrant
    }

    fn name(&self) -> &str {
        &self.name
    }

    async fn check(&self) -> Vec<Check> {
        let subject = format!("{}: storage", self.name);
        vec![match self.collections() {
            Ok(names) => Check::good(subject, format!("{} collections", names.len())),
            Err(e) => Check::bad(subject, e.message),
        }]
    }

    async fn estimate(&self) -> u64 {
        tokio::task::block_in_place(|| tree_bytes(&self.root, &Rules::default()))
    }

    async fn copy(&mut self, archive: &mut ArchiveWriter) -> Result<(), ServiceError> {
        let rules = Rules::default();
        self.counts = tokio::task::block_in_place(|| archive.tree("", &self.root, &rules))
            .map_err(|e| archive_failed(&self.name, e))?;
        Ok(())
    }

    async fn freeze(&mut self) -> Result<PointInTime, ServiceError> {
        Ok(PointInTime::at(Timestamp::now()))
    }

    async fn drain(&mut self, _archive: &mut ArchiveWriter) -> Result<ServiceReport, ServiceError> {
        let collections = self.collections()?;
        let mut counts = tree_counts(&self.counts);
        counts.insert("collections".to_owned(), collections.len() as u64);
        let mut warnings = vec![
            "this is Qdrant's storage as files: whether the server was stopped when they were copied cannot be seen. If it ran, compare the points after a restore"
                .to_owned(),
        ];
        warnings.extend(skipped_warning(&self.counts));
        let facts = StorageFacts {
            storage_collections: collections,
        };
        Ok(ServiceReport {
            version: "unknown".to_owned(),
            counts,
            facts: serde_json::to_value(facts)
                .map_err(|e| ServiceError::new(&self.name, ErrorKind::Io, e.to_string()))?,
            warnings,
        })
    }
}

/// Its restore: the storage directory is swapped while the server is stopped.
pub struct QdrantStorageRestore {
    name: String,
    root: PathBuf,
    address: Address,
    timeout: Duration,
}

impl QdrantStorageRestore {
    pub fn new(config: &Config, service: &StackService) -> Result<Self, ServiceError> {
        let configured = service.environment.get("QDRANT__STORAGE__STORAGE_PATH");
        let storage = match configured.filter(|path| !path.is_empty()) {
            // Relative to the image's working directory.
            Some(path) => Path::new("/qdrant").join(path.trim_start_matches("./")),
            None => PathBuf::from(STORAGE),
        };
        let root = service.local_path(&storage).ok_or_else(|| {
            let message = format!(
                "the backup holds Qdrant's storage as files, and {} of its container is not mounted into this one: mount the same volume or host directory here, at {}, and start this container again; or get the files with --into DIR",
                storage.display(),
                config.data.join("qdrant").display()
            );
            ServiceError::new(&service.name, ErrorKind::Setup, message)
        })?;
        Ok(Self {
            name: service.name.clone(),
            root,
            address: Address::new(config, service)?,
            timeout: config.restore_timeout,
        })
    }

    fn facts(&self, record: &ArchiveRecord) -> Result<StorageFacts, ServiceError> {
        StorageFacts::deserialize(&record.report.facts).map_err(|e| {
            let message = format!("the backup's list of collections cannot be read: {e}");
            ServiceError::new(&self.name, ErrorKind::Damaged, message)
        })
    }
}

#[async_trait]
impl Restore for QdrantStorageRestore {
    fn name(&self) -> &str {
        &self.name
    }

    fn way(&self) -> Way {
        Way::Swap {
            root: self.root.clone(),
        }
    }

    async fn preflight(&mut self, record: &ArchiveRecord) -> Vec<Check> {
        let subject = |what: &str| format!("{}: {what}", self.name);
        vec![
            match self.facts(record) {
                Ok(facts) => Check::good(
                    subject("collections"),
                    format!(
                        "{} to restore, as files: they need the Qdrant version that wrote them, or the next minor one",
                        facts.storage_collections.len()
                    ),
                ),
                Err(e) => Check::bad(subject("collections"), e.message),
            },
            check_writable(subject("storage"), &self.root),
        ]
    }

    async fn settle(
        &mut self,
        record: &ArchiveRecord,
        _run: &RunContext,
    ) -> Result<(), ServiceError> {
        let facts = self.facts(record)?;
        let server = ready_within(&self.address, self.timeout).await?;
        let live = server.collections().await?;
        let missing: Vec<_> = facts
            .storage_collections
            .iter()
            .filter(|name| !live.contains(*name))
            .map(String::as_str)
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let message = format!(
            "the server does not load these collections of the restored storage: {}. See its log: the files may be of another version, or torn",
            missing.join(", ")
        );
        Err(ServiceError::new(&self.name, ErrorKind::Damaged, message))
    }
}
