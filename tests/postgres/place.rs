//! A repository, and the way of a backup into it and out again, as the commands go it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use jiff::Timestamp;
use lifeboat::archive::unpack::unpack;
use lifeboat::repository::Repository;
use lifeboat::repository::manifest::{ArchiveRecord, Manifest};
use lifeboat::repository::session::{ArchiveNotes, BackupNotes, new_id};
use lifeboat::restore::{Restore, Way};
use lifeboat::services::postgres::{Postgres, PostgresRestore};
use lifeboat::services::{RunContext, Service, ServiceError};
use lifeboat::stack::journal::Journal;

use crate::cluster::{Cluster, PASSWORD, config};

pub struct Place {
    root: tempfile::TempDir,
    /// Tests block, as the clients do with which they look at servers.
    runtime: tokio::runtime::Runtime,
}

impl Place {
    pub fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        for dir in ["state", "scratch"] {
            std::fs::create_dir(root.path().join(dir)).unwrap();
        }
        Self {
            root,
            runtime: tokio::runtime::Runtime::new().unwrap(),
        }
    }

    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    pub fn repository(&self) -> Repository {
        Repository::open_or_init_local(&self.root.path().join("repo")).unwrap()
    }

    pub fn state(&self) -> PathBuf {
        self.root.path().join("state")
    }

    /// For the program itself, with this repository and server.
    pub fn environment(&self, command: &mut Command, cluster: &Cluster) {
        let nowhere = self.root.path().join("none");
        command
            .env("DOCKER_HOST", "none")
            .env("BACKUP_PRIORITY", "normal")
            .env("LIFEBOAT_STATE", self.state())
            .env("LIFEBOAT_REPOSITORY", self.root.path().join("repo"))
            .env("LIFEBOAT_PROJECT_DIR", &nowhere)
            .env("LIFEBOAT_DATA", &nowhere)
            .env("POSTGRES_HOST", "127.0.0.1")
            .env("POSTGRES_PORT", cluster.port.to_string())
            .env("POSTGRES_USER", "postgres")
            .env("POSTGRES_PASSWORD", PASSWORD)
            .env("POSTGRES_DATA", &cluster.data);
    }

    pub fn run(&self) -> RunContext {
        RunContext {
            run_id: new_id(Timestamp::now()),
            journal: Arc::new(Journal::open(&self.state()).unwrap()),
            scratch: self.root.path().join("scratch"),
        }
    }

    /// Backs a server up. `during` is called when the tree is copied and the backup not yet ended.
    pub fn backup(
        &self,
        service: &mut Postgres,
        during: impl FnOnce(),
    ) -> Result<Manifest, ServiceError> {
        let done = self.block_on(self.steps(service, during));
        self.block_on(service.release()).unwrap();
        done
    }

    async fn steps(
        &self,
        service: &mut Postgres,
        during: impl FnOnce(),
    ) -> Result<Manifest, ServiceError> {
        let run = self.run();
        let repository = self.repository();
        let backup = repository.begin(&run.run_id, &self.state(), 1).unwrap();
        let mut archive = backup.archive(service.name()).unwrap();
        service.hold(&run).await?;
        service.copy(&mut archive).await?;
        tokio::task::block_in_place(during);
        let point = service.freeze().await?;
        let report = service.drain(&mut archive).await?;
        let notes = ArchiveNotes {
            kind: service.kind(),
            container: None,
            point,
            report,
        };
        let sealed = archive.seal().unwrap();
        let notes = vec![(sealed, notes)];
        Ok(backup.commit(notes, BackupNotes::default()).unwrap())
    }

    /// Unpacks and prepares the newest backup in `staged`.
    pub fn stage(
        &self,
        restore: &mut PostgresRestore,
        staged: &Path,
    ) -> Result<(ArchiveRecord, RunContext), ServiceError> {
        let record = self.unpack(restore, staged);
        let run = self.run();
        self.block_on(restore.prepare(staged, &record, &run))?;
        Ok((record, run))
    }

    pub fn unpack(&self, restore: &PostgresRestore, staged: &Path) -> ArchiveRecord {
        let repository = self.repository();
        let id = repository.resolve("latest").unwrap();
        self.unpack_of(&repository.manifest(&id).unwrap(), restore, staged)
    }

    pub fn unpack_of(
        &self,
        manifest: &Manifest,
        restore: &PostgresRestore,
        staged: &Path,
    ) -> ArchiveRecord {
        let repository = self.repository();
        let record = manifest.archive(restore.name()).unwrap().clone();
        let reader = repository.archive(manifest, &record).unwrap();
        std::fs::create_dir(staged).unwrap();
        self.block_on(async {
            unpack(reader.into_async(), staged, &restore.unpack_options())
                .await
                .unwrap();
        });
        record
    }

    /// Unpacks so many bytes of the newest backup, and is cut short.
    pub fn unpack_first(&self, restore: &PostgresRestore, staged: &Path, bytes: u64) {
        use tokio::io::AsyncReadExt as _;
        let repository = self.repository();
        let id = repository.resolve("latest").unwrap();
        let manifest = repository.manifest(&id).unwrap();
        let record = manifest.archive(restore.name()).unwrap();
        let reader = repository.archive(&manifest, record).unwrap();
        std::fs::create_dir(staged).unwrap();
        let unpacked = self.block_on(async {
            let cut = reader.into_async().take(bytes);
            unpack(cut, staged, &restore.unpack_options()).await
        });
        assert!(unpacked.is_err());
    }

    /// Restores the newest backup onto a stopped server's directory and starts it; what was there is
    /// beside it, as `old`.
    pub fn restore(&self, target: &mut Cluster) -> ArchiveRecord {
        let config = config(&[("RESTORE_TIMEOUT", "2m")]);
        let mut restore = PostgresRestore::new(&config, &target.stack()).unwrap();
        let Way::Swap { root } = restore.way() else {
            panic!("PostgreSQL is restored by a swap");
        };
        assert_eq!(root, target.data);
        let beside = target.data.parent().unwrap();
        let staged = beside.join("staged");
        let (record, run) = self.stage(&mut restore, &staged).unwrap();
        std::fs::rename(&target.data, beside.join("old")).unwrap();
        std::fs::rename(&staged, &target.data).unwrap();
        target.launch();
        let settled = self.block_on(restore.settle(&record, &run));
        assert!(settled.is_ok(), "{settled:?}: {}", target.log_text());
        self.block_on(restore.finish()).unwrap();
        assert_eq!(run.journal.pending().unwrap(), []);
        record
    }
}
