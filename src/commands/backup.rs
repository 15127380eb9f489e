//! `backup`: hold, copy, freeze, drain, release, commit, and then retention.

mod parts;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use serde::Serialize;

use super::record::Record;
use super::workplace::Workplace;
use super::{Context, Failure, adapters, output, prune};
use crate::archive::{EndedArchive, SealedArchive};
use crate::repository::manifest::Manifest;
use crate::repository::prune::Report;
use crate::repository::session::{ArchiveNotes, BackupNotes, new_id};
use crate::repository::store::{self, Store};
use crate::repository::{Repository, RepositoryError};
use crate::retention::{self, Candidate, Decision};
use parts::Part;

/// Backs up the stack now, while it runs.
#[derive(Debug, Default, clap::Args)]
pub struct Args {
    /// Applies retention although it is frozen because a backup shrank: you have looked.
    #[arg(long)]
    pub accept_shrink: bool,
    /// Begins a new repository although backups were made to another one before.
    #[arg(long)]
    pub new_repository: bool,
}

/// A finished backup and what retention made of the older ones.
#[derive(Debug, Serialize)]
pub struct Outcome {
    pub manifest: Manifest,
    pub retention: Decision,
    /// What the prune gave back; absent when it is turned off or failed.
    pub prune: Option<Report>,
    /// Why the second repository does not have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copy_failed: Option<String>,
}

pub async fn run(context: &Context, args: &Args) -> Result<(), Failure> {
    let outcome = make(context, "backup", args).await?;
    Ok(output::print(context.json, &outcome, text)?)
}

/// Makes one backup, applies retention, and remembers how it went.
pub(super) async fn make(
    context: &Context,
    trigger: &str,
    args: &Args,
) -> Result<Outcome, Failure> {
    let result = backup_and_retain(context, trigger, args)
        .await
        .map_err(Failure::from);
    match &result {
        Ok(outcome) => {
            Record::note_backup(&context.config.state, Ok(&outcome.manifest.id));
            Record::update(&context.config.state, |r| {
                r.retention_frozen.clone_from(&outcome.retention.frozen);
            });
        }
        Err(failure) => Record::note_backup(&context.config.state, Err(&failure.to_string())),
    }
    result
}

async fn backup_and_retain(
    context: &Context,
    trigger: &str,
    args: &Args,
) -> anyhow::Result<Outcome> {
    let place = Workplace::enter(context, trigger).await?;
    Record::note_begin(&context.config.state);
    let repository = open_repository(context, args.new_repository)?;
    repository.store().check_writable()?;
    guard_secrets(context, &repository)?;
    let manifest = backup(context, &place, &repository).await?;
    let retention = retain(context, &repository, &manifest, args.accept_shrink)?;
    let prune = housekeep(context, &repository);
    // The backup exists: that its copy does not is said, and the next run tries again.
    let copy_failed = match &context.config.copy_repository {
        Some(target) => super::copy::send(context, &repository, target, false)
            .and_then(|report| super::copy::complete(&report))
            .err()
            .map(|err| format!("the copy to {target} is not complete: {err}; `copy` tries again")),
        None => None,
    };
    if let Some(failed) = &copy_failed {
        tracing::error!("{failed}");
    }
    Ok(Outcome {
        manifest,
        retention,
        prune,
        copy_failed,
    })
}

/// Prunes what retention has dropped. The backup stands, whatever becomes of this.
fn housekeep(context: &Context, repository: &Repository) -> Option<Report> {
    if !context.config.prune {
        return None;
    }
    match prune::prune(context, repository, &prune::Args::default()) {
        Ok(report) => {
            tracing::info!("pruned: {}", prune::summary(&report));
            if !report.refused.is_empty() {
                tracing::warn!(
                    "the store refuses to delete {} files, so they are kept: `prune` names them",
                    report.refused.len()
                );
            }
            Some(report)
        }
        Err(err) => {
            tracing::error!("the backup is complete, but the prune failed: {err}");
            None
        }
    }
}

/// What lies unencrypted is said at each backup; in a remote place it must be agreed to.
fn guard_secrets(context: &Context, repository: &Repository) -> anyhow::Result<()> {
    if repository.is_encrypted() {
        return Ok(());
    }
    let store = &**repository.store();
    refuse_plain_remote(context, store)?;
    tracing::warn!(
        "the repository in {} is not encrypted: whoever reads it reads the stack's passwords and keys; AGE_PASSPHRASE encrypts a new one",
        store.describe()
    );
    Ok(())
}

/// Before a repository is made, too: one that nobody agreed to would be in the way of an encrypted one.
fn refuse_plain_remote(context: &Context, store: &dyn Store) -> anyhow::Result<()> {
    anyhow::ensure!(
        !store.is_remote() || context.config.plaintext_secrets,
        "the repository in {} is remote and would not be encrypted, and a backup holds passwords and keys (.env, n8n's key, Ollama's key): \
         set AGE_PASSPHRASE for a new repository, or agree with BACKUP_PLAINTEXT_SECRETS=yes",
        store.describe()
    );
    Ok(())
}

/// Opens the repository, or makes it; an empty mount point in the place of the known one is neither.
fn open_repository(context: &Context, new_repository: bool) -> anyhow::Result<Repository> {
    let place = &context.config.repository;
    let store = store::connect(&context.config)?;
    let known = Record::load(&context.config.state)
        .repository
        .filter(|_| !new_repository);
    let repository = match (
        Repository::open(Arc::clone(&store), &context.config.keys),
        known,
    ) {
        (Err(RepositoryError::NoRepository(place)), Some(_)) => anyhow::bail!(
            "{place} is empty, but backups were made to a repository there before: is the disk mounted? \
             To begin a new one, run `backup --new-repository`"
        ),
        (Ok(repository), Some(id)) if repository.id() != id => anyhow::bail!(
            "{} holds another repository ({}) than the one backups were made to ({id}): is the right disk mounted? \
             To go on with this one, run `backup --new-repository`",
            place,
            repository.id()
        ),
        (Err(RepositoryError::NoRepository(_)), None) => {
            if !context.config.keys.encrypts() {
                refuse_plain_remote(context, &*store)?;
            }
            Repository::open_or_init(store, &context.config.keys)?
        }
        (opened, _) => opened?,
    };
    Record::update(&context.config.state, |record| {
        record.repository = Some(repository.id().to_owned());
    });
    Ok(repository)
}

async fn backup(
    context: &Context,
    place: &Workplace,
    repository: &Repository,
) -> anyhow::Result<Manifest> {
    let id = new_id(Timestamp::now());
    let run = place.run(&context.config, &id)?;
    let mut parts = Vec::new();
    for found in &place.stack.services {
        let service = adapters::service(&context.config, found)?;
        parts.push(Part::new(service, found.container.clone(), &id));
    }
    anyhow::ensure!(
        !parts.is_empty(),
        "no service was found to back up: set DOCKER_HOST or mount the Docker socket, or name services by POSTGRES_HOST, QDRANT_URL, OLLAMA_URL, N8N_DATA; `doctor` says more"
    );
    tracing::info!(backup = %id, services = parts.len(), "begins");
    let session = repository.begin(&id, &context.config.state, context.config.compression_level)?;
    let stopper = tokio::spawn({
        let (stop, session) = (context.stop.clone(), session.session().clone());
        async move {
            stop.cancelled().await;
            session.request_stop();
        }
    });
    let mut bar = output::BackupBar::hidden();
    if output::BackupBar::is_wanted(context.json) {
        let mut estimate_bytes = 0;
        for part in &parts {
            estimate_bytes += part.service.estimate().await;
        }
        bar = output::BackupBar::start(session.session().clone(), estimate_bytes);
    }
    let stepped = parts::steps(&mut parts, &session, &run, &bar).await;
    // Whatever happened: nothing stays held in a service.
    let released = parts::release(&mut parts).await;
    drop(bar);
    stopper.abort();
    if stepped.is_err() || released.is_err() {
        // The archives are given up while the session still stands.
        parts.clear();
    }
    stepped?;
    released?;
    let archives = seal(parts)?;
    let notes = BackupNotes {
        host: crate::repository::host_name(),
        project: place.stack.project.clone(),
        warnings: place.stack.warnings.clone(),
    };
    let manifest = tokio::task::block_in_place(|| session.commit(archives, notes))
        .context("commit the backup")?;
    tracing::info!(
        backup = %id,
        "done: {} read, {} newly stored, skew {} ms",
        output::bytes(manifest.read_bytes),
        output::bytes(manifest.stored_bytes),
        manifest.skew_ms
    );
    Ok(manifest)
}

fn seal(parts: Vec<Part>) -> anyhow::Result<Vec<(SealedArchive, ArchiveNotes)>> {
    let mut ended_archives = Vec::with_capacity(parts.len());
    for part in parts {
        let archive = part.archive.context("an archive was not begun")?;
        let ended = tokio::task::block_in_place(|| archive.end())?;
        let notes = ArchiveNotes {
            kind: part.service.kind(),
            container: part.container,
            point: part.point.context("a service was not frozen")?,
            report: part.report.context("a service did not report")?,
        };
        for warning in &notes.report.warnings {
            tracing::warn!(service = part.service.name(), "{warning}");
        }
        ended_archives.push((ended, notes));
    }
    // They share blocks: only now every pack has its name.
    tokio::task::block_in_place(|| {
        let sealed = |(ended, notes): (EndedArchive, _)| Ok((ended.seal()?, notes));
        ended_archives.into_iter().map(sealed).collect()
    })
}

/// Decides over all good backups of the project, and drops the manifests of those that nothing wants.
fn retain(
    context: &Context,
    repository: &Repository,
    newest: &Manifest,
    accept_shrink: bool,
) -> anyhow::Result<Decision> {
    let mut candidates = Vec::new();
    for id in repository.backups()? {
        match repository.manifest(&id) {
            Ok(manifest) if manifest.project == newest.project => {
                candidates.push(Candidate::of(&manifest));
            }
            Ok(_) => {}
            // Not counted, and not dropped: verify says what is wrong with it.
            Err(err) => tracing::error!("{err}: it is not counted by retention; run `verify`"),
        }
    }
    if accept_shrink {
        Record::update(&context.config.state, |record| {
            record.shrink_accepted = Some(newest.id.clone());
        });
    }
    let accepted = Record::load(&context.config.state).shrink_accepted;
    let policy = &context.config.retention;
    let zone = jiff::tz::TimeZone::get(&context.config.schedule.time_zone)
        .unwrap_or(jiff::tz::TimeZone::UTC);
    let decision = retention::decide(
        policy,
        &candidates,
        accepted.as_deref(),
        Timestamp::now(),
        &zone,
    );
    if let Some(why) = &decision.frozen {
        tracing::error!(
            "retention is frozen: {why}; when it is right, run `backup --accept-shrink`"
        );
    }
    for id in &decision.drop {
        repository
            .drop_backup(id)
            .with_context(|| format!("drop backup {id}"))?;
        tracing::info!(backup = %id, "dropped by retention");
    }
    Ok(decision)
}

fn text(outcome: &Outcome) -> String {
    let manifest = &outcome.manifest;
    let took =
        Duration::try_from(manifest.finished.duration_since(manifest.started)).unwrap_or_default();
    let rows: Vec<Vec<String>> = manifest
        .archives
        .iter()
        .map(|a| {
            vec![
                a.name.clone(),
                output::bytes(a.raw_bytes),
                output::bytes(a.read_bytes),
                output::bytes(a.stored_bytes),
            ]
        })
        .collect();
    format!(
        "{}backup {} is complete after {}: {} in all, {} newly stored, {} ms between the services' points in time\n",
        output::table(
            &["service", "size", "read", "stored"],
            &[false, true, true, true],
            &rows
        ),
        manifest.id,
        output::duration(took),
        output::bytes(manifest.raw_bytes),
        output::bytes(manifest.stored_bytes),
        manifest.skew_ms
    )
}
