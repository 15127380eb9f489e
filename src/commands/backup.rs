//! `backup`: hold, copy, freeze, drain, release, commit, and then retention.

use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use serde::Serialize;

use super::parts::{self, Part};
use super::pitr::retire::retire;
use super::record::Record;
use super::retain::retain;
use super::workplace::Workplace;
use super::{Context, Failure, adapters, destination, output, prune};
use crate::config::Priority;
use crate::repository::Repository;
use crate::repository::manifest::Manifest;
use crate::repository::prune::Report;
use crate::repository::session::{BackupNotes, new_id};
use crate::repository::throttle::Throttle;
use crate::retention::Decision;

/// Shorter pauses are nobody's concern.
const WORTH_TELLING: Duration = Duration::from_secs(10);

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
    /// Why nothing was, where it should have been.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prune_failed: Option<String>,
    /// Why the second repository does not have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copy_failed: Option<String>,
}

pub async fn run(context: &Context, args: &Args) -> Result<(), Failure> {
    let outcome = make(context, "backup", args).await?;
    output::print(context.json, &outcome, text)?;
    match outcome.manifest.damage() {
        damage if damage.is_empty() => Ok(()),
        damage => Err(Failure::damage(damage.join("; "))),
    }
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
            let damage = outcome.manifest.damage();
            Record::note_backup(&context.config.state, Ok(&outcome.manifest.id), &damage);
            Record::update(&context.config.state, |r| {
                r.retention_frozen.clone_from(&outcome.retention.frozen);
                r.copy_failed.clone_from(&outcome.copy_failed);
                let times = r.prune_failed.take().map_or(0, |(times, _)| times);
                let failed = outcome.prune_failed.clone();
                r.prune_failed = failed.map(|why| (times.saturating_add(1), why));
            });
        }
        Err(failure) => Record::note_backup(&context.config.state, Err(&failure.to_string()), &[]),
    }
    result
}

async fn backup_and_retain(
    context: &Context,
    trigger: &str,
    args: &Args,
) -> anyhow::Result<Outcome> {
    // Opening the repository takes a while, for a passphrase is made expensive to try; that counts as load, too.
    let opening = {
        let (context, new_repository) = (context.clone(), args.new_repository);
        move || {
            Record::note_begin(&context.config.state);
            let throttle = (context.config.priority == Priority::Low).then(Throttle::start);
            Ok((destination::open(&context, new_repository)?, throttle))
        }
    };
    let (place, (repository, throttle)) =
        Workplace::enter_beside(context, trigger, opening).await?;
    let manifest = backup(context, &place, &repository, throttle).await?;
    let retention = retain(context, &repository, &manifest, args.accept_shrink)?;
    let (prune, prune_failed) = match housekeep(context, &repository) {
        Ok(report) => (report, None),
        Err(why) => {
            tracing::error!("the backup is complete, but {why}");
            (None, Some(why))
        }
    };
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
        prune_failed,
        copy_failed,
    })
}

/// Prunes what retention has dropped. The backup stands, whatever becomes of this.
fn housekeep(context: &Context, repository: &Repository) -> Result<Option<Report>, String> {
    if !context.config.prune {
        return Ok(None);
    }
    let wal = retire(context, repository, false);
    if let Ok(retired) = &wal
        && retired.stretches > 0
    {
        tracing::info!("dropped {} of old WAL", output::bytes(retired.bytes));
    }
    let report = prune::prune(context, repository, &prune::Args::default())
        .map_err(|err| format!("the prune failed: {err}"))?;
    tracing::info!("pruned: {}", prune::summary(&report));
    if !report.refused.is_empty() {
        tracing::warn!(
            "the store refuses to delete {} files, so they are kept: `prune` names them",
            report.refused.len()
        );
    }
    wal.map_err(|err| format!("old WAL was not dropped: {err}"))?;
    Ok(Some(report))
}

async fn backup(
    context: &Context,
    place: &Workplace,
    repository: &Repository,
    throttle: Option<Throttle>,
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
    if let Some(rate) = context.config.rate_limit {
        session.session().limit_reading(rate);
    }
    if let Some(throttle) = throttle {
        session.session().give_way(throttle);
    }
    let archives = parts::archive(context, &session, &run, parts).await?;
    let notes = BackupNotes {
        host: crate::repository::host_name(),
        machine: Record::machine(&context.config.state),
        project: place.stack.project.clone(),
        warnings: place.stack.warnings.clone(),
        imported: None,
    };
    let paused = session.session().paused();
    let manifest = tokio::task::block_in_place(|| session.commit(archives, notes))
        .context("commit the backup")?;
    tracing::info!(
        backup = %id,
        "done: {} read, {} newly stored, skew {} ms",
        output::bytes(manifest.read_bytes),
        output::bytes(manifest.stored_bytes),
        manifest.skew_ms
    );
    if paused > WORTH_TELLING {
        tracing::info!(
            backup = %id,
            "archives paused for {} s, added up, while the services kept the processors busy; with BACKUP_PRIORITY=normal they do not",
            paused.as_secs()
        );
    }
    Ok(manifest)
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
