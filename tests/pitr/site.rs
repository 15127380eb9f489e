//! A server whose WAL is fetched, and the way back to its moments, as the commands go it.

use std::process::{Command, Stdio};
use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use lifeboat::repository::Repository;
use lifeboat::repository::manifest::{ArchiveRecord, Manifest};
use lifeboat::repository::wal::Mark;
use lifeboat::restore::Restore;
use lifeboat::services::postgres::pitr::capture::Step;
use lifeboat::services::postgres::pitr::target::{Base, Question, Reachable};
use lifeboat::services::postgres::pitr::{Capture, Replay, Target, point};
use lifeboat::services::postgres::{Postgres, PostgresRestore};
use lifeboat::services::{RunContext, ServiceError};

use lifeboat::stack::StackService;

use crate::cluster::{Cluster, config};
use crate::place::Place;

/// What the program calls a server without the Docker API: its own backups are to lead on, too.
const SERVICE: &str = "postgres";

fn stack(cluster: &Cluster) -> StackService {
    StackService {
        name: SERVICE.to_owned(),
        ..cluster.stack()
    }
}

pub struct Site {
    pub place: Place,
}

impl Site {
    pub fn new() -> Self {
        Self {
            place: Place::new(),
        }
    }

    pub fn repository(&self) -> Arc<Repository> {
        Arc::new(self.place.repository())
    }

    pub fn backup(&self, cluster: &Cluster) -> Manifest {
        let mut service = Postgres::new(&config(&[]), &stack(cluster)).unwrap();
        self.place.backup(&mut service, || ()).unwrap()
    }

    pub fn capture(&self, cluster: &Cluster) -> Capture {
        self.capture_with(cluster, &[])
    }

    pub fn capture_with(&self, cluster: &Cluster, vars: &[(&str, &str)]) -> Capture {
        let state = self.place.state();
        let mut all = vec![("LIFEBOAT_STATE", state.to_str().unwrap())];
        all.extend(vars);
        Capture::new(&config(&all), &stack(cluster), self.repository()).unwrap()
    }

    /// Into another repository than the site's own.
    pub fn capture_into(&self, cluster: &Cluster, repository: Arc<Repository>) -> Capture {
        let state = self.place.state();
        let config = config(&[("LIFEBOAT_STATE", state.to_str().unwrap())]);
        Capture::new(&config, &stack(cluster), repository).unwrap()
    }

    pub fn mark(&self, cluster: &Cluster, vars: &[(&str, &str)]) -> Mark {
        let (config, stack) = (config(vars), stack(cluster));
        self.place
            .block_on(point::mark(&config, &stack, "now"))
            .unwrap()
    }

    pub fn step(&self, capture: &mut Capture) -> Result<Step, ServiceError> {
        let step = self.place.block_on(capture.step())?;
        Ok(step.expect("the server is a primary"))
    }

    /// Runs the program on the repository; its exit code, and all that it said.
    pub fn program(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let output = self.command(arguments).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let said = text(&output.stdout) + &text(&output.stderr);
        (output.status.code(), said)
    }

    /// The program, without the Docker API and without a server.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let state = self.place.state();
        let root = state.parent().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
        command
            .args(arguments)
            .env("DOCKER_HOST", "none")
            .env("BACKUP_PRIORITY", "normal")
            .env("LIFEBOAT_STATE", &state)
            .env("LIFEBOAT_REPOSITORY", root.join("repo"))
            .env("LIFEBOAT_PROJECT_DIR", root.join("none"))
            .env("LIFEBOAT_DATA", root.join("none"))
            .stdin(Stdio::null());
        command
    }

    /// The newest first.
    pub fn manifests(&self) -> Vec<Manifest> {
        let repository = self.repository();
        let ids = repository.backups().unwrap();
        ids.iter()
            .rev()
            .map(|id| repository.manifest(id).unwrap())
            .collect()
    }

    pub fn choose(
        &self,
        target: &Target,
        timeline: Option<u32>,
    ) -> Result<(Manifest, Replay), String> {
        self.ask(timeline, |question| {
            let chosen = question.choose(target);
            chosen
                .map(|(manifest, replay)| (manifest.clone(), replay))
                .map_err(|err| err.to_string())
        })
    }

    pub fn reachable(&self) -> Vec<Reachable> {
        self.ask(None, |question| question.reachable().unwrap())
    }

    fn ask<T>(&self, timeline: Option<u32>, answer: impl FnOnce(&Question<'_, '_>) -> T) -> T {
        let (repository, manifests) = (self.repository(), self.manifests());
        let bases: Vec<Base<'_>> = manifests
            .iter()
            .filter_map(|manifest| Base::of(manifest, SERVICE))
            .collect();
        answer(&Question {
            repository: &repository,
            list: &repository.wal().unwrap(),
            bases: &bases,
            timeline,
            zone: &TimeZone::UTC,
        })
    }

    /// Restores to a moment, into a server of its own, with the options that the source has.
    pub fn restore(&self, target: &Target, options: &[&str]) -> Cluster {
        self.restore_along(target, None, options)
    }

    pub fn restore_along(
        &self,
        target: &Target,
        timeline: Option<u32>,
        options: &[&str],
    ) -> Cluster {
        let (manifest, replay) = self.choose(target, timeline).unwrap();
        self.restore_with(&manifest, replay, options)
    }

    pub fn restore_with(&self, manifest: &Manifest, replay: Replay, options: &[&str]) -> Cluster {
        let mut cluster = Cluster::empty();
        cluster.set_options(options);
        let (mut restore, record, run) = self.prepare(manifest, replay, &cluster).unwrap();
        let staged = cluster.data.with_file_name("staged");
        std::fs::remove_dir(&cluster.data).unwrap();
        std::fs::rename(&staged, &cluster.data).unwrap();
        cluster.launch();
        let settled = self.place.block_on(restore.settle(&record, &run));
        assert!(settled.is_ok(), "{settled:?}: {}", cluster.log_text());
        self.place.block_on(restore.finish()).unwrap();
        cluster
    }

    /// Everything up to the moment when the server would be stopped, beside its data.
    pub fn prepare(
        &self,
        manifest: &Manifest,
        replay: Replay,
        cluster: &Cluster,
    ) -> Result<(PostgresRestore, ArchiveRecord, RunContext), ServiceError> {
        let config = config(&[("RESTORE_TIMEOUT", "2m")]);
        let restore = PostgresRestore::new(&config, &stack(cluster)).unwrap();
        let mut restore = restore.with_replay(Some(replay));
        let staged = cluster.data.with_file_name("staged");
        let record = self.place.unpack_of(manifest, &restore, &staged);
        let checks = self.place.block_on(restore.preflight(&record));
        assert!(checks.iter().all(|c| c.outcome.is_ok()), "{checks:?}");
        let run = self.place.run();
        self.place
            .block_on(restore.prepare(&staged, &record, &run))?;
        Ok((restore, record, run))
    }
}

/// The server's own clock. Until when WAL is stored is known to the millisecond, so what is looked at after this is of a
/// later one.
pub fn clock(cluster: &Cluster) -> Timestamp {
    let micros = cluster.number("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint");
    std::thread::sleep(std::time::Duration::from_millis(2));
    Timestamp::from_microsecond(micros).unwrap()
}

pub fn lsn(cluster: &Cluster) -> u64 {
    let text = cluster.text("SELECT pg_current_wal_insert_lsn()::text");
    lifeboat::services::postgres::wal::Lsn::parse(&text)
        .unwrap()
        .0
}
