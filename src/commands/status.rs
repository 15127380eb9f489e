//! `status`: how the last runs went, for people and for the container's health check.

use std::fmt::Write as _;

use jiff::Timestamp;
use serde::Serialize;

use super::pitr::note::{self, Note};
use super::record::{Record, Run};
use super::{Context, Failure, output};

/// Tells how the last runs went; exits with 1 when a person should look.
#[derive(Debug, clap::Args)]
pub struct Args {}

#[derive(Debug, Serialize)]
struct Status {
    #[serde(flatten)]
    record: Record,
    /// How PostgreSQL's WAL is fetched.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    wal: Vec<Note>,
    /// What a person should look at.
    trouble: Vec<String>,
}

/// A scheduled run later than this has not happened: the scheduler hangs or is gone.
const OVERDUE_SECS: i64 = 3600;

pub fn run(context: &Context, _args: &Args) -> Result<(), Failure> {
    let record = Record::load(&context.config.state);
    let (now, pitr) = (Timestamp::now(), &context.config.pitr);
    let mut wal = note::all(&context.config.state);
    wal.retain(|_| pitr.on);
    let mut trouble = trouble(&record, now);
    trouble.extend(wal.iter().flat_map(|note| note.trouble(now, pitr.interval)));
    let status = Status {
        record,
        wal,
        trouble,
    };
    output::print(context.json, &status, |status| {
        text(status, &context.config.schedule.time_zone)
    })?;
    if status.trouble.is_empty() {
        Ok(())
    } else {
        Err(Failure::sentence(status.trouble.join("; ")))
    }
}

fn trouble(record: &Record, now: Timestamp) -> Vec<String> {
    let mut found = Vec::new();
    if let Some(run) = &record.last_backup
        && let Some(error) = &run.error
    {
        found.push(match &run.backup {
            Some(id) => format!("the last backup, {id}, is not a good one: {error}"),
            None => format!("the last backup failed: {error}"),
        });
    }
    // A backup that worked since says that the stack is well again.
    let good_since = |run: &Run| {
        record
            .last_good_backup
            .as_ref()
            .is_some_and(|good| good.finished > run.finished)
    };
    if let Some(run) = record.last_restore.as_ref().filter(|run| !good_since(run))
        && let Some(error) = &run.error
    {
        found.push(format!("the last restore failed: {error}"));
    }
    if let Some(next) = record.next_run
        && now.duration_since(next).as_secs() > OVERDUE_SECS
    {
        found.push(format!(
            "the backup that was due at {next} has not run: see the container's log"
        ));
    }
    if let Some(why) = &record.retention_frozen {
        found.push(format!("retention is frozen: {why}"));
    }
    found
}

fn text(status: &Status, zone: &str) -> String {
    let mut out = String::new();
    let mut line = |what: &str, run: Option<&Run>| {
        let said = match run {
            None => "none yet".to_owned(),
            Some(Run {
                finished,
                backup: Some(backup),
                error: Some(error),
            }) if what == "last backup" => format!(
                "{backup} at {}, DAMAGED: {error}",
                output::time(*finished, zone)
            ),
            Some(Run {
                finished,
                error: Some(error),
                ..
            }) => format!("FAILED at {}: {error}", output::time(*finished, zone)),
            Some(Run {
                finished, backup, ..
            }) => {
                format!(
                    "{} at {}",
                    backup.as_deref().unwrap_or("done"),
                    output::time(*finished, zone)
                )
            }
        };
        // Writing to a String cannot fail.
        writeln!(out, "{what:17} {said}").ok();
    };
    line("last backup", status.record.last_backup.as_ref());
    line("last good backup", status.record.last_good_backup.as_ref());
    line("last restore", status.record.last_restore.as_ref());
    if let Some(next) = status.record.next_run {
        writeln!(out, "{:17} {}", "next backup", output::time(next, zone)).ok();
    }
    for note in &status.wal {
        out.push_str(&note.text(zone));
    }
    out
}
