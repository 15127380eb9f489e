//! Decides what a restore will do, before anything is changed: which archive goes into which service, which
//! containers stop, and in which order.
//!
//! Decisions only: no clock, no network. What [`build`] returns is what [`super::apply`] does.

mod order;
mod render;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::Serialize;

use super::{Restore, Way};
use crate::repository::manifest::{ArchiveRecord, Manifest};
use crate::services::{PointInTime, ServiceError, ServiceKind};
use crate::stack::{ContainerRef, Stack, StackService};
use order::Why;
use render::into_note;

/// Makes the adapter that brings an archive into a service: archives of one kind may want different ones.
pub type Factory<'a> = dyn Fn(&StackService, &ArchiveRecord) -> Result<Box<dyn Restore>, ServiceError>
    + Send
    + Sync
    + 'a;

/// What the person asked for.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Archives, services or kinds; everything in the backup when empty.
    pub only: Vec<String>,
    pub stage_first: bool,
}

/// What a restore will do.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    pub backup: String,
    pub project: Option<String>,
    pub taken: Timestamp,
    /// Length of all archives that are restored.
    pub raw_bytes: u64,
    /// In the order they are restored.
    pub services: Vec<PlannedService>,
    /// Containers in the order they stop.
    pub stop: Vec<PlannedContainer>,
    /// Containers in the order they start, n8n and what needs it last.
    pub start: Vec<PlannedContainer>,
    /// Services of the stack that go on as they are.
    pub untouched: Vec<String>,
    /// Data is written beside the live data before anything stops, not after.
    pub stage_first: bool,
    pub downtime: String,
    /// Why containers are not stopped and started, when they are not.
    pub without_engine: Option<String>,
    /// What a person should know before saying yes.
    pub notes: Vec<String>,
}

/// One archive on its way into one service.
#[derive(Debug, Clone, Serialize)]
pub struct PlannedService {
    pub service: String,
    pub kind: ServiceKind,
    #[serde(flatten)]
    pub way: PlannedWay,
    #[serde(flatten, serialize_with = "archive_in_short")]
    pub record: ArchiveRecord,
}

/// What of an archive a plan shows: its facts are the adapter's business.
fn archive_in_short<S: serde::Serializer>(
    record: &ArchiveRecord,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Short<'a> {
        archive: &'a str,
        point: &'a PointInTime,
        version: &'a str,
        raw_bytes: u64,
    }
    let short = Short {
        archive: &record.name,
        point: &record.point,
        version: &record.report.version,
        raw_bytes: record.raw_bytes,
    };
    short.serialize(serializer)
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "way", rename_all = "kebab-case")]
pub enum PlannedWay {
    Swap { root: PathBuf },
    Online,
    Into { directory: PathBuf },
}

/// A container that stops or starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedContainer {
    pub service: String,
    pub kind: ServiceKind,
    /// `None` without the Docker API: a person does it.
    pub container: Option<ContainerRef>,
    pub why: String,
    /// Starts only after everything else is restored and well.
    pub late: bool,
}

/// Why there is no plan. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error("backup {backup} has no archive \"{name}\"; it has {}", list(.has))]
    NotInBackup {
        backup: String,
        name: String,
        has: Vec<String>,
    },
    #[error(
        "the backup's {kind} archive \"{archive}\" has no service to go into: the stack has {}. Start the \
         service once or configure it, leave it out with --only, or get its files with --into DIR",
        list(.has)
    )]
    NotInStack {
        archive: String,
        kind: ServiceKind,
        has: Vec<String>,
    },
    #[error(
        "\"{name}\" could be {}: name one of them with --only",
        list(.candidates)
    )]
    SeveralCandidates {
        name: String,
        candidates: Vec<String>,
    },
    #[error("the archives {} would both go into service {service}: choose one with --only", list(.archives))]
    SameService {
        service: String,
        archives: Vec<String>,
    },
    #[error("backup {0} has no archives, so there is nothing to restore")]
    Nothing(String),
    #[error(transparent)]
    Service(#[from] ServiceError),
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        "nothing".to_owned()
    } else {
        names.join(", ")
    }
}

/// Plans the restore of a backup into the running stack.
pub fn build(
    manifest: &Manifest,
    stack: &Stack,
    request: &Request,
    factory: &Factory<'_>,
) -> Result<Plan, PlanError> {
    let mut notes = Vec::new();
    let mut matched: Vec<(&ArchiveRecord, &StackService)> = Vec::new();
    for record in select(manifest, stack, &request.only)? {
        let Some(service) = find_service(manifest, record, stack, &mut notes)? else {
            if request.only.is_empty() {
                notes.push(not_put_back(record));
                continue;
            }
            return Err(not_in_stack(record, stack));
        };
        if let Some((other, _)) = matched.iter().find(|(_, s)| s.name == service.name) {
            return Err(PlanError::SameService {
                service: service.name.clone(),
                archives: vec![other.name.clone(), record.name.clone()],
            });
        }
        matched.push((record, service));
    }
    if matched.is_empty() {
        return Err(PlanError::Nothing(manifest.id.clone()));
    }
    let mut services = Vec::new();
    for (record, service) in &matched {
        let way = match factory(service, record)?.way() {
            Way::Swap { root } => PlannedWay::Swap { root },
            Way::Online => PlannedWay::Online,
        };
        services.push(PlannedService {
            service: service.name.clone(),
            kind: service.kind,
            way,
            record: (*record).clone(),
        });
    }
    // Swapped ones first, each group in start order: what others need is there before they start.
    services.sort_by_key(|s| {
        let place = stack
            .services
            .iter()
            .position(|other| other.name == s.service);
        (s.way == PlannedWay::Online, place)
    });
    Ok(assemble(manifest, stack, request, services, notes))
}

/// Plans the unpacking of archives below a directory; no service is needed or touched.
pub fn build_into(
    manifest: &Manifest,
    stack: &Stack,
    request: &Request,
    directory: &Path,
) -> Result<Plan, PlanError> {
    let services: Vec<_> = select(manifest, stack, &request.only)?
        .into_iter()
        .map(|record| PlannedService {
            service: record.name.clone(),
            kind: record.kind,
            way: PlannedWay::Into {
                directory: directory.join(&record.name),
            },
            record: record.clone(),
        })
        .collect();
    if services.is_empty() {
        return Err(PlanError::Nothing(manifest.id.clone()));
    }
    let notes = services.iter().filter_map(into_note).collect();
    let mut plan = assemble(manifest, stack, request, services, notes);
    plan.untouched.clear();
    plan.without_engine = None;
    "No service is stopped or touched.".clone_into(&mut plan.downtime);
    Ok(plan)
}

/// The archives that are asked for, by their own name, by the only one of a kind, or by the service of the
/// stack that they would go into.
fn select<'m>(
    manifest: &'m Manifest,
    stack: &Stack,
    only: &[String],
) -> Result<Vec<&'m ArchiveRecord>, PlanError> {
    if only.is_empty() {
        return Ok(manifest.archives.iter().collect());
    }
    let mut chosen = BTreeSet::new();
    for name in only {
        let index = select_one(manifest, stack, name)?;
        chosen.insert(index);
    }
    Ok(chosen
        .into_iter()
        .filter_map(|index| manifest.archives.get(index))
        .collect())
}

fn select_one(manifest: &Manifest, stack: &Stack, name: &str) -> Result<usize, PlanError> {
    let archives = || manifest.archives.iter().enumerate();
    if let Some((index, _)) = archives().find(|(_, a)| a.name == name) {
        return Ok(index);
    }
    let service = stack.services.iter().find(|s| s.name == name);
    let of_kind: Vec<_> = archives()
        .filter(|(_, a)| a.kind.as_str() == name || service.is_some_and(|s| s.kind == a.kind))
        .collect();
    match of_kind.as_slice() {
        [(index, _)] => Ok(*index),
        [] => Err(PlanError::NotInBackup {
            backup: manifest.id.clone(),
            name: name.to_owned(),
            has: manifest.archives.iter().map(|a| a.name.clone()).collect(),
        }),
        several => Err(PlanError::SeveralCandidates {
            name: name.to_owned(),
            candidates: several.iter().map(|(_, a)| a.name.clone()).collect(),
        }),
    }
}

/// The service an archive goes into: the one of its kind and name, or else the only one of its kind.
///
/// A volume goes only into the one of its own name: another is another's data. `None` for project files
/// where the stack has no such service, and for an import's files that belong to no service.
fn find_service<'s>(
    manifest: &Manifest,
    record: &ArchiveRecord,
    stack: &'s Stack,
    notes: &mut Vec<String>,
) -> Result<Option<&'s StackService>, PlanError> {
    // Its name was made up by the import: a service called so has nothing to do with it.
    if record.kind == ServiceKind::Volume && manifest.imported.is_some() {
        return Ok(None);
    }
    let of_kind: Vec<_> = stack
        .services
        .iter()
        .filter(|service| service.kind == record.kind)
        .collect();
    if let Some(service) = of_kind.iter().find(|s| s.name == record.name) {
        return Ok(Some(service));
    }
    match (record.kind, of_kind.as_slice()) {
        (ServiceKind::Project, []) => Ok(None),
        (ServiceKind::Volume, _) | (_, []) => Err(not_in_stack(record, stack)),
        (_, [service]) => {
            notes.push(format!(
                "archive \"{}\" goes into service \"{}\", the only {} of this stack",
                record.name, service.name, record.kind
            ));
            Ok(Some(service))
        }
        (_, several) => Err(PlanError::SeveralCandidates {
            name: record.name.clone(),
            candidates: several.iter().map(|s| s.name.clone()).collect(),
        }),
    }
}

fn not_put_back(record: &ArchiveRecord) -> String {
    let what = match record.kind {
        ServiceKind::Project => "the project's own files",
        _ => "what the import found to belong to no service",
    };
    format!(
        "archive \"{}\" ({what}) is not put back in place: get it with --only {} --into DIR",
        record.name, record.name
    )
}

fn not_in_stack(record: &ArchiveRecord, stack: &Stack) -> PlanError {
    PlanError::NotInStack {
        archive: record.name.clone(),
        kind: record.kind,
        has: stack
            .services
            .iter()
            .map(|s| format!("{} ({})", s.name, s.kind))
            .collect(),
    }
}

fn assemble(
    manifest: &Manifest,
    stack: &Stack,
    request: &Request,
    services: Vec<PlannedService>,
    mut notes: Vec<String>,
) -> Plan {
    let members = stack.dependencies_first();
    let affected = order::affected(&members, &services);
    let mut start: Vec<_> = affected
        .iter()
        .filter(|(member, why)| match &member.container {
            // One that does not run stays as it is, unless its own data is restored.
            Some(container) => container.running || matches!(why, Why::Restored),
            None => true,
        })
        .map(|(member, why)| order::planned(member, why, &members))
        .collect();
    start.sort_by_key(|planned| planned.late);
    let mut stop: Vec<_> = start
        .iter()
        .filter(|planned| planned.container.as_ref().is_none_or(|c| c.running))
        .cloned()
        .collect();
    stop.reverse();
    let idle: Vec<_> = affected
        .iter()
        .filter(|(member, _)| !start.iter().any(|s| s.service == member.name))
        .map(|(member, _)| member.name)
        .collect();
    if !idle.is_empty() {
        notes.push(format!("not running, and not started: {}", idle.join(", ")));
    }
    let touched = |name: &str| {
        services.iter().any(|s| s.service == name) || start.iter().any(|s| s.service == name)
    };
    let untouched: Vec<_> = members
        .iter()
        .filter(|member| !touched(member.name))
        .map(|member| member.name.to_owned())
        .collect();
    Plan {
        backup: manifest.id.clone(),
        project: manifest.project.clone(),
        taken: manifest.finished,
        raw_bytes: services.iter().map(|s| s.record.raw_bytes).sum(),
        downtime: render::downtime(&services, &stop, request.stage_first),
        services,
        stop,
        start,
        untouched,
        stage_first: request.stage_first,
        without_engine: stack.without_engine.clone(),
        notes,
    }
}

#[cfg(test)]
mod tests;
