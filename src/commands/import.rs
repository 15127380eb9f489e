//! `import`: takes an older backup in, made with tar or cp.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;

use super::parts::{self, Part};
use super::workplace::Workplace;
use super::{Context, Failure, destination, output};
use crate::durable;
use crate::import;
use crate::repository::Repository;
use crate::repository::manifest::{Imported, Manifest};
use crate::repository::session::{BackupNotes, new_id};

/// Takes in a backup that was made without this program: tars of a stack's data, or copies of its directories.
///
/// All that is given becomes one backup, which `restore` restores as any other. A tar may be plain or
/// compressed with gzip or zstd. The files are only read. Retention neither counts nor drops what was imported:
/// `forget` does.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Tar files, directories, and files of the compose project such as `.env`.
    #[arg(required = true, value_name = "FILE|DIR")]
    pub paths: Vec<PathBuf>,
    /// When it was made, such as `2026-05-01` or `2026-05-01T03:00:00Z`; the newest file in it tells otherwise.
    #[arg(long, value_name = "TIME")]
    pub taken: Option<String>,
    /// Begins a new repository although backups were made to another one before.
    #[arg(long)]
    pub new_repository: bool,
}

#[derive(Debug, Serialize)]
struct Outcome {
    manifest: Manifest,
}

pub async fn run(context: &Context, args: &Args) -> Result<(), Failure> {
    let taken = match &args.taken {
        Some(text) => Some(time_of(text, &context.config.schedule.time_zone)?),
        None => None,
    };
    let place = Workplace::enter(context, "import").await?;
    let repository = destination::open(context, args.new_repository)?;
    let manifest = import(context, &place, &repository, args, taken).await?;
    Ok(output::print(context.json, &Outcome { manifest }, |o| {
        text(&o.manifest, &context.config.schedule.time_zone)
    })?)
}

/// A time in the past: an instant, or a date or time of the configured zone.
fn time_of(text: &str, zone: &str) -> Result<Timestamp, Failure> {
    let zone = TimeZone::get(zone).unwrap_or(TimeZone::UTC);
    let civil = || {
        let civil: jiff::civil::DateTime = text.parse().ok()?;
        Some(civil.to_zoned(zone).ok()?.timestamp())
    };
    let taken = text.parse().ok().or_else(civil);
    match taken {
        None => Err(Failure::usage(anyhow::anyhow!(
            "--taken is \"{}\", which is no time: give one like 2026-05-01 or 2026-05-01T03:00:00Z",
            text.escape_debug()
        ))),
        Some(taken) if taken > Timestamp::now() => Err(Failure::usage(anyhow::anyhow!(
            "--taken is {taken}, which is in the future: give the time at which the backup was made"
        ))),
        Some(taken) => Ok(taken),
    }
}

async fn import(
    context: &Context,
    place: &Workplace,
    repository: &Repository,
    args: &Args,
    taken: Option<Timestamp>,
) -> anyhow::Result<Manifest> {
    // A run that is killed leaves its scratch directory to the next one, which empties it.
    let run = place.run(&context.config, &new_id(Timestamp::now()))?;
    let staging = run.scratch.join("import");
    durable::create_dir(&staging, 0o700)?;
    let imported = async {
        let sources = import::look(&context.config, &args.paths, &staging, &context.stop).await?;
        let Some(newest) = import::newest(&sources) else {
            anyhow::bail!("{} holds no files: nothing was imported", given(args));
        };
        let taken = taken.unwrap_or(newest).min(Timestamp::now());
        let services = import::services(&context.config, &sources)?;
        anyhow::ensure!(
            !services.is_empty(),
            "nothing in {} looks like data of PostgreSQL, n8n, Ollama or Qdrant, or like a compose project: nothing was imported. PostgreSQL is known by PG_VERSION and global/pg_control, n8n by its config or database.sqlite, Ollama by manifests and blobs, Qdrant by collections with raft_state.json or aliases",
            given(args)
        );
        let id = new_id(taken);
        let parts = services
            .into_iter()
            .map(|service| Part::new(service, None, &id))
            .collect();
        let (state, level) = (&context.config.state, context.config.compression_level);
        let session = repository.begin_import(&id, state, level)?;
        let mut archives = parts::archive(context, &session, &run, parts).await?;
        for (_, notes) in &mut archives {
            notes.point.at = taken;
        }
        let notes = BackupNotes {
            host: crate::repository::host_name(),
            machine: None,
            project: place.stack.project.clone(),
            warnings: Vec::new(),
            imported: Some((taken, origin(args))),
        };
        tokio::task::block_in_place(|| session.commit(archives, notes))
            .context("commit the import")
    }
    .await;
    let removed = remove(&staging);
    let manifest = imported?;
    removed?;
    Ok(manifest)
}

fn remove(staging: &Path) -> anyhow::Result<()> {
    tokio::task::block_in_place(|| durable::remove_tree(staging))
        .context("remove what was unpacked; the next run tries again")?;
    Ok(())
}

fn origin(args: &Args) -> Imported {
    Imported {
        from: args
            .paths
            .iter()
            .map(|path| path.display().to_string())
            .collect(),
        at: Timestamp::now(),
    }
}

fn given(args: &Args) -> String {
    origin(args).from.join(", ")
}

fn text(manifest: &Manifest, zone: &str) -> String {
    let rows: Vec<Vec<String>> = manifest
        .archives
        .iter()
        .map(|archive| {
            vec![
                archive.name.clone(),
                archive.kind.to_string(),
                archive.report.version.clone(),
                output::bytes(archive.raw_bytes),
                output::bytes(archive.stored_bytes),
            ]
        })
        .collect();
    let mut text = output::table(
        &["archive", "kind", "version", "size", "stored"],
        &[false, false, false, true, true],
        &rows,
    );
    for archive in &manifest.archives {
        for warning in &archive.report.warnings {
            // Writing to a String cannot fail.
            writeln!(text, "warning: {}: {warning}", archive.name).ok();
        }
    }
    writeln!(
        text,
        "imported as backup {}, of {}: `restore {}` restores it",
        manifest.id,
        output::time(manifest.finished, zone),
        manifest.id
    )
    .ok();
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn times_are_instants_or_of_the_zone() {
        let time = |text: &str| time_of(text, "Europe/Berlin").map_err(|e| (e.code, e.to_string()));
        for (text, expected) in [
            ("2026-05-01T03:00:00Z", "2026-05-01T03:00:00Z"),
            ("2026-05-01T03:00:00+02:00", "2026-05-01T01:00:00Z"),
            ("2026-05-01", "2026-04-30T22:00:00Z"),
            ("2026-05-01 12:30", "2026-05-01T10:30:00Z"),
        ] {
            assert_eq!(time(text).unwrap().to_string(), expected, "{text}");
        }
        for (text, said) in [("yesterday", "no time"), ("2999-01-01", "in the future")] {
            let (code, why) = time(text).unwrap_err();
            assert!(code == 2 && why.contains(said), "{why}");
        }
    }
}
