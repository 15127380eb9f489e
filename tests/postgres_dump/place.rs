//! A repository, and the way of dumps into it and out again, as the commands go it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use lifeboat::config::Config;
use lifeboat::repository::Repository;
use lifeboat::repository::manifest::{ArchiveRecord, Manifest};
use lifeboat::repository::session::{ArchiveNotes, BackupNotes, new_id};
use lifeboat::restore::{Restore, swap};
use lifeboat::services::postgres::PostgresDumpRestore;
use lifeboat::services::postgres::extract::{Extracted, Extraction, Request};
use lifeboat::services::{ErrorKind, RunContext, Service, ServiceError};
use lifeboat::stack::journal::Journal;
use lifeboat::stack::{Stack, StackService, undo};

use crate::cluster::{Cluster, config};

pub struct Place {
    root: PathBuf,
    /// Tests block, as the clients do with which they look at servers.
    runtime: tokio::runtime::Runtime,
    _kept: Option<tempfile::TempDir>,
}

impl Place {
    pub fn new() -> Self {
        let kept = tempfile::tempdir().unwrap();
        for dir in ["state", "scratch"] {
            std::fs::create_dir(kept.path().join(dir)).unwrap();
        }
        let place = Self::at(kept.path().to_owned());
        Self {
            _kept: Some(kept),
            ..place
        }
    }

    /// Another process's.
    pub fn at(root: PathBuf) -> Self {
        Self {
            root,
            runtime: tokio::runtime::Runtime::new().unwrap(),
            _kept: None,
        }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    pub fn config(&self, vars: &[(&str, &str)]) -> Config {
        let state = self.root.join("state");
        let mut all = vec![
            ("LIFEBOAT_STATE", state.to_str().unwrap()),
            ("DOCKER_HOST", "none"),
            ("RESTORE_TIMEOUT", "2m"),
        ];
        all.extend(vars);
        config(&all)
    }

    pub fn journal(&self) -> Arc<Journal> {
        Arc::new(Journal::open(&self.root.join("state")).unwrap())
    }

    pub fn run(&self) -> RunContext {
        RunContext {
            run_id: new_id(Timestamp::now()),
            journal: self.journal(),
            scratch: self.root.join("scratch"),
        }
    }

    pub fn repository(&self) -> Repository {
        Repository::open_or_init_local(&self.root.join("repo")).unwrap()
    }

    /// Backs a server up. `during` is called between the instant and the dumping.
    pub fn backup(
        &self,
        service: &mut dyn Service,
        during: impl FnOnce(),
    ) -> Result<Manifest, ServiceError> {
        let done = self.block_on(self.steps(service, during));
        self.block_on(service.release()).unwrap();
        assert_eq!(self.journal().pending().unwrap(), []);
        done
    }

    async fn steps(
        &self,
        service: &mut dyn Service,
        during: impl FnOnce(),
    ) -> Result<Manifest, ServiceError> {
        let run = self.run();
        let repository = self.repository();
        let state = self.root.join("state");
        let backup = repository.begin(&run.run_id, &state, 1).unwrap();
        let mut archive = backup.archive(service.name()).unwrap();
        service.hold(&run).await?;
        service.copy(&mut archive).await?;
        let point = service.freeze().await?;
        tokio::task::block_in_place(during);
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

    pub fn newest(&self) -> (Manifest, ArchiveRecord) {
        let repository = self.repository();
        let id = repository.resolve("latest").unwrap();
        let manifest = repository.manifest(&id).unwrap();
        let record = manifest.archive("db").unwrap().clone();
        (manifest, record)
    }

    /// The adapter, after everything was brought in and nothing committed.
    pub fn apply(
        &self,
        target: &Cluster,
        config: &Config,
        keep_old: bool,
    ) -> Result<(PostgresDumpRestore, RunContext), ServiceError> {
        self.apply_to(&target.stack(), config, keep_old)
    }

    pub fn apply_to(
        &self,
        stack: &StackService,
        config: &Config,
        keep_old: bool,
    ) -> Result<(PostgresDumpRestore, RunContext), ServiceError> {
        let (manifest, record) = self.newest();
        let run = self.run();
        let mut restore = PostgresDumpRestore::new(config, stack, keep_old).unwrap();
        self.block_on(async {
            for check in restore.preflight(&record).await {
                check.outcome.map_err(|why| {
                    ServiceError::new("db", ErrorKind::Setup, format!("preflight: {why}"))
                })?;
            }
            let archive = self.repository().archive(&manifest, &record).unwrap();
            let applied = match restore.apply(archive, &record, &run).await {
                Ok(()) => restore.settle(&record, &run).await,
                Err(err) => Err(err),
            };
            if applied.is_err() {
                restore.rollback().await.unwrap();
                assert_eq!(run.journal.pending().unwrap(), []);
            }
            applied
        })?;
        Ok((restore, run))
    }

    /// Restores the newest backup's dumps into a running server, as `restore` does.
    pub fn restore(
        &self,
        target: &Cluster,
        vars: &[(&str, &str)],
        keep_old: bool,
    ) -> Result<(), ServiceError> {
        let (mut restore, run) = self.apply(target, &self.config(vars), keep_old)?;
        swap::commit(&run).unwrap();
        self.block_on(restore.finish()).unwrap();
        swap::forget_commit(&run).unwrap();
        assert_eq!(run.journal.pending().unwrap(), []);
        Ok(())
    }

    /// One database, or tables of it, as `restore --database` does.
    pub fn extract(
        &self,
        stack: &StackService,
        vars: &[(&str, &str)],
        request: &Request,
    ) -> Result<Extracted, ServiceError> {
        let (manifest, record) = self.newest();
        let (config, run) = (self.config(vars), self.run());
        self.block_on(async {
            let mut extraction = Extraction::begin(&config, stack, &run).await?;
            let open = || Ok(self.repository().archive(&manifest, &record).unwrap());
            let done = extraction.extract(&record, open, request).await;
            Box::pin(extraction.end()).await.unwrap();
            assert_eq!(run.journal.pending().unwrap(), []);
            done
        })
    }

    /// What the next start does after a kill.
    pub fn undo(&self, stack: StackService, vars: &[(&str, &str)]) -> undo::Undone {
        let stack = Stack {
            services: vec![stack],
            ..Stack::default()
        };
        let (config, journal) = (self.config(vars), self.journal());
        self.block_on(undo::undo_all(&config, &journal, None, &stack))
            .unwrap()
    }
}
