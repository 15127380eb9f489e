//! Any other mounted directory, copied as files.
//!
//! Each file is read whole or read again; files may differ in age by as much as the copy took. What needs one
//! instant for all its files (a database of its own) wants its container stopped, or its own dump beside.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use jiff::Timestamp;

use super::support::{self, archive_failed, check_writable};
use super::{
    Check, ErrorKind, PointInTime, RunContext, Service, ServiceError, ServiceKind, ServiceReport,
};
use crate::archive::ArchiveWriter;
use crate::archive::walk::{Rules, TreeCounts, walk};
use crate::config::Config;
use crate::repository::manifest::ArchiveRecord;
use crate::restore::{Restore, Way};
use crate::stack::{StackService, archive_characters};

/// How many entries an estimate looks at before it gives up being exact.
const ESTIMATE_ENTRIES: usize = 200_000;

/// One directory.
#[derive(Debug)]
pub struct Volume {
    name: String,
    root: PathBuf,
    rules: Rules,
    began: Option<Timestamp>,
    counts: TreeCounts,
}

/// Its restore: unpacked beside and swapped in.
#[derive(Debug)]
pub struct VolumeRestore {
    name: String,
    root: PathBuf,
}

/// One service for each mount of a service that has several: an archive holds one directory.
///
/// The names get the last part of the mount's target: `app-uploads`, `app-config`.
pub fn split(service: &StackService) -> Vec<StackService> {
    if service.kind != ServiceKind::Volume || service.mounts.len() < 2 {
        return vec![service.clone()];
    }
    let mut taken: Vec<String> = Vec::new();
    service
        .mounts
        .iter()
        .map(|mount| {
            let base = format!("{}-{}", service.name, slug(&mount.target));
            let name = std::iter::once(base.clone())
                .chain((2..=service.mounts.len() + 1).map(|n| format!("{base}-{n}")))
                .find(|name| !taken.contains(name))
                .unwrap_or(base);
            taken.push(name.clone());
            StackService {
                name,
                mounts: vec![mount.clone()],
                ..service.clone()
            }
        })
        .collect()
}

impl Volume {
    pub fn new(config: &Config, service: &StackService) -> Result<Self, ServiceError> {
        let root = only_mount(service)?;
        let rules = Rules {
            exclude: own_directories(config, &root),
            exclude_regexp: config.exclude.clone(),
            pages: Vec::new(),
        };
        Ok(Self {
            name: service.name.clone(),
            root,
            rules,
            began: None,
            counts: TreeCounts::default(),
        })
    }
}

#[async_trait]
impl Service for Volume {
    fn kind(&self) -> ServiceKind {
        ServiceKind::Volume
    }

    fn name(&self) -> &str {
        &self.name
    }

    async fn check(&self) -> Vec<Check> {
        vec![support::check_directory(
            format!("{}: directory", self.name),
            &self.root,
        )]
    }

    async fn estimate(&self) -> u64 {
        tokio::task::block_in_place(|| tree_bytes(&self.root, &self.rules))
    }

    async fn copy(&mut self, archive: &mut ArchiveWriter) -> Result<(), ServiceError> {
        self.began = Some(Timestamp::now());
        self.counts = tokio::task::block_in_place(|| archive.tree("", &self.root, &self.rules))
            .map_err(|e| archive_failed(&self.name, e))?;
        Ok(())
    }

    /// The instant the copy began: everything written before is in it.
    async fn freeze(&mut self) -> Result<PointInTime, ServiceError> {
        Ok(PointInTime::at(self.began.unwrap_or_else(Timestamp::now)))
    }

    async fn drain(&mut self, _archive: &mut ArchiveWriter) -> Result<ServiceReport, ServiceError> {
        Ok(ServiceReport {
            version: String::new(),
            counts: tree_counts(&self.counts),
            facts: serde_json::json!({}),
            warnings: skipped_warning(&self.counts).into_iter().collect(),
        })
    }
}

impl VolumeRestore {
    pub fn new(_config: &Config, service: &StackService) -> Result<Self, ServiceError> {
        Ok(Self {
            name: service.name.clone(),
            root: only_mount(service)?,
        })
    }
}

#[async_trait]
impl Restore for VolumeRestore {
    fn name(&self) -> &str {
        &self.name
    }

    fn way(&self) -> Way {
        Way::Swap {
            root: self.root.clone(),
        }
    }

    async fn preflight(&mut self, _record: &ArchiveRecord) -> Vec<Check> {
        vec![check_writable(
            format!("{}: directory", self.name),
            &self.root,
        )]
    }

    async fn settle(
        &mut self,
        _record: &ArchiveRecord,
        _run: &RunContext,
    ) -> Result<(), ServiceError> {
        Ok(())
    }
}

/// What a person should know of entries that no backup holds.
pub(crate) fn skipped_warning(counts: &TreeCounts) -> Option<String> {
    (counts.skipped_special > 0).then(|| {
        format!(
            "{} sockets, pipes or devices are not in the backup: programs make them anew",
            counts.skipped_special
        )
    })
}

pub(crate) fn tree_counts(counts: &TreeCounts) -> std::collections::BTreeMap<String, u64> {
    [("files", counts.files), ("directories", counts.directories)]
        .map(|(name, n)| (name.to_owned(), n))
        .into()
}

/// Bytes of the files of a tree. What cannot be read is left to the copy to report.
pub(crate) fn tree_bytes(root: &Path, rules: &Rules) -> u64 {
    let mut walk = walk(root, rules);
    for entry in walk.by_ref().take(ESTIMATE_ENTRIES) {
        if entry.is_err() {
            break;
        }
    }
    walk.counts().bytes
}

/// Repository and state where they lie below the directory: a backup does not hold itself.
pub(crate) fn own_directories(config: &Config, root: &Path) -> Vec<String> {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let root = real(root);
    config
        .own_directories()
        .filter_map(|path| {
            real(path)
                .strip_prefix(&root)
                .ok()?
                .to_str()
                .map(str::to_owned)
        })
        .filter(|relative| !relative.is_empty())
        .collect()
}

fn only_mount(service: &StackService) -> Result<PathBuf, ServiceError> {
    match service.mounts.as_slice() {
        [mount] => Ok(mount.local.clone()),
        mounts => {
            let message = match mounts.len() {
                0 => "none of its mounts is mounted into this container: mount it below /data here too".to_owned(),
                n => format!("has {n} mounts, and an archive holds one directory: it must be split first"),
            };
            Err(ServiceError::new(&service.name, ErrorKind::Setup, message))
        }
    }
}

/// The last part of a path in an archive's name's alphabet.
pub(crate) fn slug(path: &Path) -> String {
    let last = path.file_name().unwrap_or_default().to_string_lossy();
    let slug = archive_characters(&last);
    match slug.trim_matches(['.', '-']) {
        "" => "root".to_owned(),
        slug => slug.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use super::*;
    use crate::stack::SharedMount;

    #[test]
    fn service_with_several_mounts_is_split_into_distinct_names() {
        let mount = |target: &str| SharedMount {
            target: target.into(),
            local: "/data/x".into(),
            read_only: false,
        };
        let service = StackService {
            kind: ServiceKind::Volume,
            name: "app".into(),
            container: None,
            environment: std::collections::BTreeMap::new(),
            mounts: vec![mount("/a/Up loads"), mount("/b/up loads"), mount("/")],
            all_mount_targets: vec![],
            hosts: vec![],
            ports: vec![],
            depends_on: vec![],
        };
        let names: Vec<_> = split(&service).into_iter().map(|s| s.name).collect();
        assert_eq!(names, ["app-up-loads", "app-up-loads-2", "app-root"]);
        assert!(only_mount(&service).is_err());
        assert!(split(&service).iter().all(|s| only_mount(s).is_ok()));
    }
}
