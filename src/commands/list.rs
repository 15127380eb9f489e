//! `list`: the backups, newest last.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;

use super::{Context, Failure, output, pitr};
use crate::repository::manifest::Imported;

/// Lists the backups, newest last.
#[derive(Debug, clap::Args)]
pub struct Args {}

#[derive(Debug, Serialize)]
struct Row {
    id: String,
    finished: Timestamp,
    host: String,
    project: Option<String>,
    raw_bytes: u64,
    stored_bytes: u64,
    skew_ms: u64,
    services: BTreeMap<String, String>,
    warnings: usize,
    /// It holds what was damaged in a service already, and is not a good one.
    damaged: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    imported: Option<Imported>,
}

pub fn run(context: &Context, _args: &Args) -> Result<(), Failure> {
    let repository = Arc::new(context.repository().map_err(anyhow::Error::new)?);
    let mut rows = Vec::new();
    let mut unreadable = Vec::new();
    for id in repository.backups().map_err(anyhow::Error::new)? {
        match repository.manifest(&id) {
            Ok(manifest) => rows.push(Row {
                services: manifest
                    .archives
                    .iter()
                    .map(|a| (a.name.clone(), a.report.version.clone()))
                    .collect(),
                warnings: manifest.warnings.len()
                    + manifest
                        .archives
                        .iter()
                        .map(|a| a.report.warnings.len())
                        .sum::<usize>(),
                damaged: !manifest.damage().is_empty(),
                id: manifest.id,
                finished: manifest.finished,
                host: manifest.host,
                project: manifest.project,
                raw_bytes: manifest.raw_bytes,
                stored_bytes: manifest.stored_bytes,
                skew_ms: manifest.skew_ms,
                imported: manifest.imported,
            }),
            Err(err) => unreadable.push(err.to_string()),
        }
    }
    // What lies between the backups is no row: `pitr --json` has it.
    let moments = if context.json {
        String::new()
    } else {
        let services = pitr::services(context, &repository)?;
        pitr::text(&services, &context.config.schedule.time_zone)
    };
    output::print(context.json, &rows, |rows| {
        text(rows, &context.config.schedule.time_zone) + &moments
    })?;
    if unreadable.is_empty() {
        Ok(())
    } else {
        Err(Failure::damage(unreadable.join("; ")))
    }
}

fn text(rows: &[Row], zone: &str) -> String {
    if rows.is_empty() {
        return "There are no backups yet: `backup` makes one.\n".to_owned();
    }
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            vec![
                row.id.clone(),
                output::time(row.finished, zone),
                output::bytes(row.raw_bytes),
                output::bytes(row.stored_bytes),
                format!("{}.{} s", row.skew_ms / 1000, row.skew_ms % 1000 / 100),
                row.services
                    .keys()
                    .map(String::as_str)
                    .collect::<Vec<_>>()
                    .join(" "),
                remarks(row),
            ]
        })
        .collect();
    output::table(
        &[
            "backup", "finished", "size", "stored", "skew", "services", "",
        ],
        &[false, false, true, true, true, false, false],
        &cells,
    )
}

fn remarks(row: &Row) -> String {
    let imported = row.imported.as_ref().map(|_| "imported".to_owned());
    let warnings = (row.warnings > 0).then(|| format!("{} warnings: see show", row.warnings));
    let damaged = row.damaged.then(|| "DAMAGED".to_owned());
    let remarks: Vec<String> = imported
        .into_iter()
        .chain(damaged)
        .chain(warnings)
        .collect();
    remarks.join(", ")
}
