//! Retention after a backup: decides over all good backups of the project, and drops what nothing wants.
//!
//! What it asks of a manifest is remembered ([`history`](crate::repository::history)), so that a night reads
//! the manifests that are new. Before anything is dropped, the manifests are read again that the decision
//! rests on, as many as an ordinary policy keeps: a backup that was damaged since fills no place, and is not
//! dropped either.

use anyhow::Context as _;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Context;
use super::record::Record;
use crate::repository::history::Manifests;
use crate::repository::manifest::Manifest;
use crate::repository::{Repository, RepositoryError};
use crate::retention::{self, Candidate, Decision};

/// Its name tells its form: another one is due with every change of [`Known`] or of what it is made from.
const WHAT: &str = "retention-2";
/// How many kept backups, the newest of them, are read again before others are dropped. All of them would be
/// the whole history of who keeps a thousand.
const READ_AGAIN: usize = 64;

/// What retention asks of a manifest, but for the backup's id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    project: Option<String>,
    imported: bool,
    candidate: Candidate,
}

impl Known {
    fn of(manifest: &Manifest) -> Self {
        Self {
            project: manifest.project.clone(),
            imported: manifest.imported.is_some(),
            candidate: Candidate {
                id: String::new(),
                ..Candidate::of(manifest)
            },
        }
    }
}

/// Drops the manifests of those backups of the newest one's project that nothing wants.
pub(super) fn retain(
    context: &Context,
    repository: &Repository,
    newest: &Manifest,
    accept_shrink: bool,
) -> anyhow::Result<Decision> {
    let state = &context.config.state;
    if accept_shrink {
        Record::update(state, |record| {
            record.shrink_accepted = Some(newest.id.clone());
        });
    }
    let mut known = Manifests::load(repository, state, WHAT, Known::of)?;
    let mut decision = decide(context, &candidates(&mut known, newest)?);
    if !known.hold_true(rests_on(&decision)) {
        decision = decide(context, &candidates(&mut known, newest)?);
    }
    known.save();
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

/// The good backups of the project.
fn candidates(
    known: &mut Manifests<'_, Known>,
    newest: &Manifest,
) -> Result<Vec<Candidate>, RepositoryError> {
    let mut candidates = Vec::new();
    for (id, backup) in known.of_all()? {
        match backup {
            // What was imported was no part of the schedule: it takes nobody's place, and goes by hand only.
            Ok(backup) if backup.project == newest.project && !backup.imported => {
                candidates.push(Candidate {
                    id,
                    ..backup.candidate
                });
            }
            Ok(_) => {}
            // Not counted, and not dropped: verify says what is wrong with it.
            Err(err) => tracing::error!("{err}: it is not counted by retention; run `verify`"),
        }
    }
    Ok(candidates)
}

fn decide(context: &Context, candidates: &[Candidate]) -> Decision {
    let config = &context.config;
    let accepted = Record::load(&config.state).shrink_accepted;
    let zone =
        jiff::tz::TimeZone::get(&config.schedule.time_zone).unwrap_or(jiff::tz::TimeZone::UTC);
    retention::decide(
        &config.retention,
        candidates,
        accepted.as_deref(),
        Timestamp::now(),
        &zone,
    )
}

/// The backups that must be good for the decision to be right: nobody's, when nothing is dropped.
fn rests_on(decision: &Decision) -> Vec<&str> {
    if decision.drop.is_empty() {
        return Vec::new();
    }
    let kept = decision.keep.iter().map(|(id, _)| id).take(READ_AGAIN);
    kept.chain(&decision.drop).map(String::as_str).collect()
}
