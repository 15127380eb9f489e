//! `status`: how the last runs went, for people and for the container's health check.

use std::fmt::Write as _;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;

use super::pitr::note::{self, Note};
use super::record::{Record, Run};
use super::{Context, Failure, output};
use crate::config::Schedule;
use crate::schedule::Cron;

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
    trouble.extend(missing(&record, &context.config.schedule, now));
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
    let made_since = |due: Timestamp| {
        let good = record.last_good_backup.as_ref();
        good.is_some_and(|good| good.finished > due)
    };
    if let Some(next) = record.next_run.filter(|next| !made_since(*next))
        && now.duration_since(next).as_secs() > OVERDUE_SECS
    {
        found.push(format!(
            "the backup that was due at {next} has not run: see the container's log"
        ));
    }
    if let Some(why) = &record.retention_frozen {
        found.push(format!("retention is frozen: {why}"));
    }
    found.extend(record.copy_failed.clone());
    // Once, another host may have been at it.
    if let Some((times, why)) = record.prune_failed.as_ref().filter(|(times, _)| *times > 1) {
        found.push(format!("after {times} backups in a row {why}"));
    }
    found
}

/// That no good backup is as new as the schedule promises, where nothing else says so.
fn missing(record: &Record, schedule: &Schedule, now: Timestamp) -> Option<String> {
    let good = record.last_good_backup.as_ref()?.finished;
    // Without a scheduler somebody else is to see to it.
    record.next_run?;
    if good.duration_since(now).as_secs() > OVERDUE_SECS {
        return Some(format!(
            "the last good backup was noted at {good:.0}, which is still to come: the clock was set back, so nothing tells how old it is until the next one"
        ));
    }
    let (cron, zone) = (
        Cron::parse(&schedule.cron).ok()?,
        TimeZone::get(&schedule.time_zone).ok()?,
    );
    // The first of them may be under way.
    let first = cron.next_after(good, &zone)?;
    let second = cron.next_after(first, &zone)?;
    (now.duration_since(second).as_secs() > OVERDUE_SECS).then(|| {
        format!("the last good backup is of {good:.0}, and more than one was due since: see the container's log")
    })
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::config::Config;

    const NOW: &str = "2026-06-15T12:00:00Z";

    /// What a person should look at, with a backup each night at three.
    fn told(record: &Record) -> Vec<String> {
        let schedule = Config::from_vars([]).unwrap().schedule;
        let now = NOW.parse().unwrap();
        let mut found = trouble(record, now);
        found.extend(missing(record, &schedule, now));
        found
    }

    fn good(finished: &str) -> Record {
        let run = Run {
            finished: finished.parse().unwrap(),
            backup: Some("one".to_owned()),
            error: None,
        };
        Record {
            last_backup: Some(run.clone()),
            last_good_backup: Some(run),
            next_run: Some("2026-06-16T03:00:00Z".parse().unwrap()),
            ..Record::default()
        }
    }

    #[test]
    fn silence_while_all_is_well() {
        assert_eq!(told(&good("2026-06-15T03:04:00Z")), [""; 0]);
        // Tonight's may be under way for long.
        assert_eq!(told(&good("2026-06-14T03:04:00Z")), [""; 0]);
        assert_eq!(told(&Record::default()), [""; 0]);
        let by_hand = Record {
            next_run: Some("2026-06-01T03:00:00Z".parse().unwrap()),
            ..good("2026-06-15T11:00:00Z")
        };
        assert_eq!(told(&by_hand), [""; 0]);
    }

    #[test]
    fn nights_without_a_backup_are_told_although_none_failed() {
        let [told] = told(&good("2026-06-12T03:04:00Z")).try_into().unwrap();
        assert!(told.contains("2026-06-12T03:04:00Z"), "{told}");
    }

    #[test]
    fn a_record_of_the_future_tells_nothing_and_says_so() {
        let [told] = told(&good("2035-01-01T03:04:00Z")).try_into().unwrap();
        assert!(told.contains("clock was set back"), "{told}");
    }

    #[test]
    fn a_copy_that_failed_is_told_at_once_and_a_prune_the_second_time() {
        let record = Record {
            copy_failed: Some("the copy to /mnt is not complete".to_owned()),
            prune_failed: Some((1, "the prune failed".to_owned())),
            ..good("2026-06-15T03:04:00Z")
        };
        assert_eq!(told(&record), ["the copy to /mnt is not complete"]);
        let twice = Record {
            prune_failed: Some((2, "the prune failed".to_owned())),
            ..good("2026-06-15T03:04:00Z")
        };
        assert_eq!(told(&twice), ["after 2 backups in a row the prune failed"]);
    }
}
