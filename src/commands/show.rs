//! `show`: what one backup holds.

use std::fmt::Write as _;
use std::time::Duration;

use super::{Context, Failure, output};
use crate::repository::manifest::Manifest;

/// Shows what a backup holds: services, versions, counts, points in time.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A backup's id, the beginning of one, or `latest`.
    #[arg(default_value = "latest")]
    pub backup: String,
}

pub fn run(context: &Context, args: &Args) -> Result<(), Failure> {
    let repository = context.repository().map_err(anyhow::Error::new)?;
    let id = repository
        .resolve(&args.backup)
        .map_err(anyhow::Error::new)?;
    let manifest = repository.manifest(&id).map_err(anyhow::Error::new)?;
    Ok(output::print(context.json, &manifest, |manifest| {
        text(manifest, &context.config.schedule.time_zone)
    })?)
}

fn text(manifest: &Manifest, zone: &str) -> String {
    let took =
        Duration::try_from(manifest.finished.duration_since(manifest.started)).unwrap_or_default();
    let mut out = String::new();
    let mut line = |text: String| {
        out.push_str(&text);
        out.push('\n');
    };
    line(format!("backup    {}", manifest.id));
    match &manifest.imported {
        Some(imported) => {
            line(format!(
                "taken     {}",
                output::time(manifest.finished, zone)
            ));
            line(format!(
                "imported  {}, from {}",
                output::time(imported.at, zone),
                imported.from.join(", ")
            ));
        }
        None => line(format!(
            "finished  {}, after {}",
            output::time(manifest.finished, zone),
            output::duration(took)
        )),
    }
    line(format!(
        "host      {}{}",
        manifest.host,
        manifest
            .project
            .as_deref()
            .map(|p| format!(", project {p}"))
            .unwrap_or_default()
    ));
    line(format!(
        "size      {}, {} read, {} newly stored",
        output::bytes(manifest.raw_bytes),
        output::bytes(manifest.read_bytes),
        output::bytes(manifest.stored_bytes)
    ));
    line(format!(
        "skew      {} ms between the services' points in time",
        manifest.skew_ms
    ));
    let rows: Vec<Vec<String>> = manifest
        .archives
        .iter()
        .map(|archive| {
            let mut counts = String::new();
            for (what, count) in &archive.report.counts {
                // Writing to a String cannot fail.
                write!(
                    counts,
                    "{}{count} {what}",
                    if counts.is_empty() { "" } else { ", " }
                )
                .ok();
            }
            let coordinate = archive
                .point
                .coordinate
                .as_ref()
                .map(|c| format!(" ({c})"))
                .unwrap_or_default();
            vec![
                archive.name.clone(),
                archive.report.version.clone(),
                output::bytes(archive.raw_bytes),
                output::bytes(archive.stored_bytes),
                format!("{}{coordinate}", output::time(archive.point.at, zone)),
                counts,
            ]
        })
        .collect();
    line(String::new());
    line(output::table(
        &[
            "archive",
            "version",
            "size",
            "stored",
            "stands for",
            "counts",
        ],
        &[false, false, true, true, false, false],
        &rows,
    ));
    let warnings = manifest
        .warnings
        .iter()
        .chain(manifest.archives.iter().flat_map(|a| &a.report.warnings));
    for warning in warnings {
        line(format!("warning: {warning}"));
    }
    out
}
