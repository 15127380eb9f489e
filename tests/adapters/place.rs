//! A repository, a state directory and what the adapters' tests do with both.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lifeboat::config::Config;
use lifeboat::repository::Repository;
use lifeboat::repository::manifest::{ArchiveRecord, Manifest};
use lifeboat::repository::reader::ArchiveReader;
use lifeboat::repository::session::{ArchiveNotes, BackupNotes, new_id};
use lifeboat::services::{RunContext, Service, ServiceError, ServiceKind};
use lifeboat::stack::journal::Journal;
use lifeboat::stack::{SharedMount, StackService};

pub struct Place {
    pub root: tempfile::TempDir,
    pub journal: Arc<Journal>,
}

impl Place {
    pub fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        for dir in ["state", "scratch", "data"] {
            std::fs::create_dir(root.path().join(dir)).unwrap();
        }
        let journal = Arc::new(Journal::open(&root.path().join("state")).unwrap());
        Self { root, journal }
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.root.path().join(below)
    }

    pub fn run(&self) -> RunContext {
        RunContext {
            run_id: new_id(Timestamp::now()),
            journal: Arc::clone(&self.journal),
            scratch: self.path("scratch"),
        }
    }

    /// A configuration with these variables, and directories of its own for the rest.
    pub fn config(&self, vars: &[(&str, &str)]) -> Config {
        let own = [
            ("LIFEBOAT_DATA", "data"),
            ("LIFEBOAT_PROJECT_DIR", "project"),
        ]
        .map(|(name, dir)| (name.to_owned(), self.path(dir).to_str().unwrap().to_owned()));
        let given = vars.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
        Config::from_vars(own.into_iter().chain(given)).unwrap()
    }

    pub fn repository(&self) -> Repository {
        Repository::open_or_init_local(&self.path("repo")).unwrap()
    }

    /// Drives one service through its backup as the backup command does.
    pub async fn backup(&self, service: &mut impl Service) -> Result<Manifest, ServiceError> {
        let run = self.run();
        let repository = self.repository();
        let backup = repository
            .begin(&run.run_id, &self.path("state"), 3)
            .unwrap();
        let mut archive = backup.archive(service.name()).unwrap();
        let outcome = async {
            service.hold(&run).await?;
            service.copy(&mut archive).await?;
            let point = service.freeze().await?;
            let report = service.drain(&mut archive).await?;
            Ok((point, report))
        }
        .await;
        service.release().await?;
        let (point, report) = outcome?;
        let notes = ArchiveNotes {
            kind: service.kind(),
            container: None,
            point,
            report,
        };
        let sealed = tokio::task::block_in_place(|| archive.seal()).unwrap();
        Ok(backup
            .commit(vec![(sealed, notes)], BackupNotes::default())
            .unwrap())
    }

    pub fn archive(&self, manifest: &Manifest) -> (ArchiveReader, ArchiveRecord) {
        let record = manifest.archives.first().unwrap();
        let reader = self.repository().archive(manifest, record).unwrap();
        (reader, record.clone())
    }

    /// Has GNU tar extract the archive.
    pub fn extract(&self, manifest: &Manifest, target: &Path) {
        let (mut reader, _) = self.archive(manifest);
        let tar = self.path("archive.tar");
        std::io::copy(&mut reader, &mut std::fs::File::create(&tar).unwrap()).unwrap();
        std::fs::create_dir_all(target).unwrap();
        let status = Command::new("tar")
            .args(["--xattrs", "--same-owner", "-xpf"])
            .arg(&tar)
            .arg("-C")
            .arg(target)
            .status()
            .unwrap();
        assert!(status.success());
        std::fs::remove_file(tar).unwrap();
    }
}

pub fn service(kind: ServiceKind, name: &str) -> StackService {
    StackService {
        kind,
        name: name.to_owned(),
        container: None,
        environment: BTreeMap::new(),
        mounts: Vec::new(),
        all_mount_targets: Vec::new(),
        hosts: Vec::new(),
        ports: Vec::new(),
        depends_on: Vec::new(),
    }
}

pub fn mount(target: &str, local: &Path) -> SharedMount {
    SharedMount {
        target: target.into(),
        local: local.to_owned(),
        read_only: false,
    }
}

/// Relative names and contents of all regular files.
pub fn files_below(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                open.push(entry.path());
            } else if entry.file_type().unwrap().is_file() {
                let path = entry.path();
                let name = path.strip_prefix(root).unwrap().to_string_lossy();
                found.insert(name.into_owned(), std::fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// Waits until `condition` holds; fails after three minutes.
pub async fn wait_for(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_mins(3);
    while !condition().await {
        assert!(
            Instant::now() < deadline,
            "{what} did not happen within three minutes"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
