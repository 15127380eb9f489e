//! `restore --database`: one database, or tables of it, into the running server.

use std::collections::BTreeMap;

use anyhow::Context as _;
use jiff::Timestamp;

use super::restore::Args;
use super::workplace::Workplace;
use super::{Context, Failure, output, question};
use crate::repository::Repository;
use crate::repository::manifest::{ArchiveRecord, Manifest};
use crate::repository::session::new_id;
use crate::services::postgres::extract::{Extracted, Extraction, Request, Target};
use crate::services::postgres::pitr::Replay;
use crate::services::{ErrorKind, ServiceError, ServiceKind};
use crate::stack::StackService;

pub async fn run(
    context: &Context,
    args: &Args,
    place: &Workplace,
    repository: &Repository,
    manifest: &Manifest,
    replays: &BTreeMap<String, Replay>,
) -> Result<(), Failure> {
    let Some(database) = &args.database else {
        return Err(Failure::sentence("no database was named"));
    };
    let record = archive(manifest, &args.only)?;
    let service = service(place, record)?;
    let target = match &args.into_database {
        Some(name) => Target::Database(name.clone()),
        None if args.replace => Target::Replace,
        None => Target::Beside,
    };
    if target == Target::Replace {
        let what = if args.table.is_empty() {
            format!("database \"{database}\"")
        } else {
            format!("{} in database \"{database}\"", args.table.join(", "))
        };
        let asked = format!(
            "Replace {what} of {} by what it was at {}?",
            service.name, record.point.at
        );
        question::confirm(context, args.yes, &asked, "replace it")?;
    }
    let request = Request {
        database: database.clone(),
        tables: args.table.clone(),
        target,
        keep_old: args.keep_old,
        replay: replays.get(&record.name).cloned(),
    };
    let run = place.run(&context.config, &new_id(Timestamp::now()))?;
    let mut extraction = Extraction::begin(&context.config, service, &run)
        .await
        .map_err(anyhow::Error::new)?;
    let open = || {
        repository.archive(manifest, record).map_err(|err| {
            ServiceError::new(&service.name, ErrorKind::Io, err.to_string()).with_source(err)
        })
    };
    let done: anyhow::Result<Extracted> = tokio::select! {
        done = extraction.extract(record, open, &request) => done.map_err(anyhow::Error::new),
        () = context.stop.cancelled() => Err(anyhow::Error::msg("the restore was interrupted")),
    };
    let ended = Box::pin(extraction.end()).await;
    let done = done?;
    ended
        .map_err(anyhow::Error::new)
        .context("the data is restored, but not everything that was needed for it could be removed; the next start tries again")?;
    Ok(output::print(context.json, &done, said)?)
}

/// The backup's archive of a PostgreSQL server.
fn archive<'m>(manifest: &'m Manifest, only: &[String]) -> Result<&'m ArchiveRecord, Failure> {
    let found: Vec<&ArchiveRecord> = manifest
        .archives
        .iter()
        .filter(|a| a.kind == ServiceKind::Postgres)
        .filter(|a| {
            only.is_empty()
                || only
                    .iter()
                    .any(|name| *name == a.name || name == "postgres")
        })
        .collect();
    match found.as_slice() {
        [one] => Ok(one),
        [] => Err(Failure::usage(anyhow::Error::msg(format!(
            "backup {} has no such archive of a PostgreSQL server",
            manifest.id
        )))),
        several => {
            let names: Vec<&str> = several.iter().map(|a| a.name.as_str()).collect();
            Err(Failure::usage(anyhow::Error::msg(format!(
                "backup {} has several PostgreSQL servers: name one with --only: {}",
                manifest.id,
                names.join(", ")
            ))))
        }
    }
}

/// The running server it goes into: of the archive's name, or the only one.
fn service<'p>(place: &'p Workplace, record: &ArchiveRecord) -> Result<&'p StackService, Failure> {
    let servers: Vec<&StackService> = place
        .stack
        .services
        .iter()
        .filter(|s| s.kind == ServiceKind::Postgres)
        .collect();
    let named = servers.iter().find(|s| s.name == record.name);
    match (named, servers.as_slice()) {
        (Some(service), _) | (None, [service]) => Ok(service),
        (None, found) => Err(Failure::usage(anyhow::Error::msg(format!(
            "archive \"{}\" goes into none of the stack's {} PostgreSQL servers: start it, or set POSTGRES_HOST",
            record.name,
            found.len()
        )))),
    }
}

fn said(done: &Extracted) -> String {
    let what = if done.tables.is_empty() {
        "restored".to_owned()
    } else {
        format!("restored {}", done.tables.join(", "))
    };
    let notes = done
        .warnings
        .iter()
        .map(|warning| format!("note: {warning}"));
    let mut lines: Vec<String> = notes.collect();
    lines.push(format!("{what} into database \"{}\"\n", done.database));
    lines.join("\n")
}
