//! `forget`: drops backups by hand.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::Context as _;
use serde::Serialize;

use super::{Context, Failure, output, question, workplace};
use crate::repository::Repository;
use crate::repository::manifest::Manifest;

/// Drops backups by hand, imported ones too, which retention never drops. `prune` gives their space back.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Ids of backups, the beginnings of some, or `latest`.
    #[arg(required = true)]
    pub backups: Vec<String>,
    /// Does not ask.
    #[arg(long, short)]
    pub yes: bool,
}

#[derive(Debug, Serialize)]
struct Outcome {
    dropped: Vec<String>,
}

pub async fn run(context: &Context, args: &Args) -> Result<(), Failure> {
    let _lock = workplace::lock(context, "forget").await?;
    let repository = context.repository().map_err(anyhow::Error::new)?;
    repository
        .store()
        .check_writable()
        .map_err(anyhow::Error::new)?;
    let mut dropped = Vec::new();
    for wanted in &args.backups {
        let id = match wanted.as_str() {
            "latest" => repository.latest_of_one(),
            id => repository.resolve(id),
        }
        .map_err(anyhow::Error::new)?;
        if !dropped.contains(&id) {
            dropped.push(id);
        }
    }
    let said = describe(context, &repository, &dropped)?;
    if context.json {
        tracing::info!("{}", said.trim_end());
    } else {
        super::print(&said)?;
    }
    let question = "Drop for good what is listed above?";
    question::confirm(context, args.yes, question, "drop what is listed above")?;
    for id in &dropped {
        repository
            .drop_backup(id)
            .with_context(|| format!("drop backup {id}"))?;
        tracing::info!(backup = %id, "dropped by hand");
    }
    Ok(output::print(context.json, &Outcome { dropped }, text)?)
}

/// What is about to go, and what of it a person may not expect.
fn describe(
    context: &Context,
    repository: &Repository,
    dropped: &[String],
) -> anyhow::Result<String> {
    let zone = &context.config.schedule.time_zone;
    let mut newest_good = BTreeMap::new();
    let mut lines = String::new();
    for id in repository.backups()? {
        let manifest = repository.manifest(&id);
        if let Ok(manifest) = &manifest {
            newest_good.insert(manifest.project.clone(), manifest.id.clone());
        }
        if dropped.contains(&id) {
            let line = match manifest {
                Ok(manifest) => line(&manifest, zone),
                Err(err) => format!("{id}: {err}"),
            };
            // Writing to a String cannot fail.
            writeln!(lines, "{line}").ok();
        }
    }
    for (project, newest) in newest_good {
        if !dropped.contains(&newest) {
            continue;
        }
        let of = project.map_or_else(String::new, |name| format!(" of {name}"));
        writeln!(
            lines,
            "{newest} is the NEWEST good backup{of}: after this the stack can only be restored to an older one, if there is any"
        )
        .ok();
    }
    Ok(lines)
}

fn line(manifest: &Manifest, zone: &str) -> String {
    let names: Vec<&str> = manifest.archives.iter().map(|a| a.name.as_str()).collect();
    format!(
        "{}: {}{}, {}, {}{}",
        manifest.id,
        manifest
            .project
            .as_ref()
            .map_or_else(String::new, |name| format!("{name}, ")),
        output::time(manifest.finished, zone),
        output::bytes(manifest.raw_bytes),
        names.join(" "),
        if manifest.imported.is_some() {
            ", imported"
        } else {
            ""
        }
    )
}

fn text(outcome: &Outcome) -> String {
    format!(
        "dropped: {}. `prune` gives their space back\n",
        outcome.dropped.join(", ")
    )
}
