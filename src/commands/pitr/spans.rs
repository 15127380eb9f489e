//! Which moments can be restored.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;

use jiff::tz::TimeZone;
use serde::Serialize;

use crate::commands::{Context, Failure, output};
use crate::repository::Repository;
use crate::repository::manifest::Manifest;
use crate::repository::wal::{Mark, WalList};
use crate::services::ServiceKind;
use crate::services::postgres::pitr::Target;
use crate::services::postgres::pitr::capture::Step;
use crate::services::postgres::pitr::target::{Base, Question, Reachable};

/// One cluster of the backups.
#[derive(Debug, Serialize)]
pub struct Cluster {
    pub service: String,
    pub project: Option<String>,
    pub spans: Vec<Reachable>,
    pub marks: Vec<Mark>,
}

/// All clusters that there is WAL of.
pub fn services(context: &Context, repository: &Arc<Repository>) -> Result<Vec<Cluster>, Failure> {
    let list = repository.wal().map_err(anyhow::Error::new)?;
    // Who holds only public keys cannot tell.
    if list.stretches.is_empty() || !repository.vault().can_read() {
        return Ok(Vec::new());
    }
    let manifests = manifests(repository)?;
    let zone = TimeZone::get(&context.config.schedule.time_zone).unwrap_or(TimeZone::UTC);
    let marks = repository.marks(&list).map_err(anyhow::Error::new)?;
    let mut found = Vec::new();
    for (project, service) in names(&manifests) {
        let bases = bases(&manifests, project.as_deref(), &service);
        let systems: BTreeSet<u64> = bases.iter().map(|base| base.system).collect();
        if !list.systems.iter().any(|system| systems.contains(system)) {
            continue;
        }
        let question = question(repository, &list, &bases, &zone);
        found.push(Cluster {
            spans: question.reachable().map_err(anyhow::Error::new)?,
            marks: marks
                .iter()
                .filter(|mark| systems.contains(&mark.system))
                .cloned()
                .collect(),
            service,
            project,
        });
    }
    Ok(found)
}

/// Whether a backup leads to where a step ended.
pub fn reaches(
    context: &Context,
    repository: &Arc<Repository>,
    step: &Step,
) -> Result<bool, Failure> {
    if !repository.vault().can_read() {
        // It cannot be told: only a loss is a reason then.
        return Ok(step.gap.is_none());
    }
    let list = repository.wal().map_err(anyhow::Error::new)?;
    let manifests = manifests(repository)?;
    let zone = TimeZone::get(&context.config.schedule.time_zone).unwrap_or(TimeZone::UTC);
    for (project, service) in names(&manifests) {
        let mut bases = bases(&manifests, project.as_deref(), &service);
        bases.retain(|base| base.system == step.system);
        let mut question = question(repository, &list, &bases, &zone);
        question.timeline = Some(step.timeline);
        let is_reached = question
            .choose(&Target::Latest)
            .is_ok_and(|(_, replay)| replay.end() >= step.end);
        if is_reached {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The newest first; those that cannot be read are `verify`'s business.
fn manifests(repository: &Repository) -> Result<Vec<Manifest>, Failure> {
    let ids = repository.backups().map_err(anyhow::Error::new)?;
    let read = ids.iter().rev().map(|id| repository.manifest(id));
    Ok(read.filter_map(Result::ok).collect())
}

/// Projects and services that have clusters.
fn names(manifests: &[Manifest]) -> BTreeSet<(Option<String>, String)> {
    let clusters = manifests.iter().flat_map(|manifest| {
        let archives = manifest.archives.iter();
        archives
            .filter(|record| record.kind == ServiceKind::Postgres)
            .map(|record| (manifest.project.clone(), record.name.clone()))
    });
    clusters.collect()
}

fn bases<'m>(manifests: &'m [Manifest], project: Option<&str>, service: &str) -> Vec<Base<'m>> {
    manifests
        .iter()
        .filter(|manifest| manifest.project.as_deref() == project)
        .filter_map(|manifest| Base::of(manifest, service))
        .collect()
}

fn question<'q, 'm>(
    repository: &'q Arc<Repository>,
    list: &'q WalList,
    bases: &'q [Base<'m>],
    zone: &'q TimeZone,
) -> Question<'q, 'm> {
    Question {
        repository,
        list,
        bases,
        timeline: None,
        zone,
    }
}

/// A line for each span.
pub fn text(services: &[Cluster], zone: &str) -> String {
    let mut out = String::new();
    let mut line = |text: String| {
        // Writing to a String cannot fail.
        writeln!(out, "{text}").ok();
    };
    for service in services {
        if service.spans.is_empty() {
            line(format!(
                "{}: WAL is stored, but no backup that it could be replayed after",
                service.service
            ));
        }
        for span in &service.spans {
            line(format!(
                "{}: any moment from {} to {} (timeline {}){}",
                service.service,
                output::time(span.from, zone),
                output::time(span.to, zone),
                span.timeline,
                if span.gap { ", then a GAP" } else { "" }
            ));
        }
        for mark in &service.marks {
            line(format!(
                "{}: mark \"{}\" at {}",
                service.service,
                mark.name,
                output::time(mark.at, zone)
            ));
        }
    }
    out
}
