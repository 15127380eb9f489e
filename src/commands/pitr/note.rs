//! How the WAL of a cluster is being fetched: kept in the state directory for `status`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::commands::output;
use crate::durable;
use crate::services::postgres::pitr::capture::Step;
use crate::services::postgres::pitr::guard::Kept;
use crate::services::postgres::wal::Lsn;

/// While nothing new is stored, and all is well, the note is written anew this often.
const ANEW_EVERY: Duration = Duration::from_secs(20);
/// A server that restarts, or a network that hiccups, is no trouble yet.
const PATIENCE: Duration = Duration::from_mins(2);
const PREFIX: &str = "pitr-note-";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    pub service: String,
    /// Every transaction that was acknowledged by then is stored.
    pub until: Option<Timestamp>,
    /// How far, as PostgreSQL writes it.
    pub end: Option<String>,
    /// When the note was written.
    pub noted: Timestamp,
    /// Since when nothing could be fetched, and why.
    pub failing: Option<Failing>,
    /// Why no slot keeps the WAL meanwhile.
    pub without_slot: Option<String>,
    /// WAL that was lost last, and when that was seen.
    pub gap: Option<(Timestamp, String)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failing {
    pub since: Timestamp,
    pub why: String,
}

/// Notes what a step found.
pub fn good(state: &Path, step: &Step) {
    let before = read(&path(state, &step.service));
    write(state, &after(step, before.as_ref()));
}

/// Notes what one of many steps found: at once when it stored something or anything is new, else now and then.
pub fn good_if_due(state: &Path, step: &Step) {
    let before = read(&path(state, &step.service));
    let note = after(step, before.as_ref());
    let is_young = before.is_some_and(|before| {
        let age = Duration::try_from(note.noted.duration_since(before.noted)).unwrap_or(ANEW_EVERY);
        let same = Note {
            until: note.until,
            end: note.end.clone(),
            noted: note.noted,
            ..before
        };
        age < ANEW_EVERY && same == note
    });
    if step.stored_bytes > 0 || !is_young {
        write(state, &note);
    }
}

fn after(step: &Step, before: Option<&Note>) -> Note {
    let now = Timestamp::now();
    Note {
        service: step.service.clone(),
        until: Some(step.until),
        end: Some(Lsn(step.end).to_string()),
        noted: now,
        failing: None,
        without_slot: match &step.kept {
            Kept::Slot { .. } => None,
            Kept::Nothing { why } => Some(why.clone()),
        },
        gap: step
            .gap
            .map(|gap| (now, format!("{} to {}", Lsn(gap.from), Lsn(gap.to))))
            .or_else(|| before.and_then(|before| before.gap.clone())),
    }
}

/// Notes that a step failed.
pub fn bad(state: &Path, service: &str, why: &str) {
    let before = read(&path(state, service));
    let now = Timestamp::now();
    let since = before
        .as_ref()
        .and_then(|before| before.failing.as_ref())
        .map_or(now, |failing| failing.since.min(now));
    let note = Note {
        failing: Some(Failing {
            since,
            why: why.to_owned(),
        }),
        noted: now,
        ..before.unwrap_or(Note {
            service: service.to_owned(),
            until: None,
            end: None,
            noted: now,
            failing: None,
            without_slot: None,
            gap: None,
        })
    };
    write(state, &note);
}

/// Forgets a service.
pub fn remove(state: &Path, service: &str) {
    if let Err(err) = durable::remove(&path(state, service)) {
        tracing::warn!("{err}");
    }
}

/// The notes of all services.
pub fn all(state: &Path) -> Vec<Note> {
    let mut notes: Vec<Note> = std::fs::read_dir(state)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX))
        .filter_map(|entry| read(&entry.path()))
        .collect();
    notes.sort_by(|a, b| a.service.cmp(&b.service));
    notes
}

impl Note {
    /// What a person should look at.
    pub fn trouble(&self, now: Timestamp, interval: Duration) -> Vec<String> {
        let mut found = Vec::new();
        // A time that is far ahead was noted before the clock was set back.
        let longer =
            |since: Timestamp, than: Duration| now.duration_since(since).unsigned_abs() > than;
        if let Some(failing) = &self.failing {
            if longer(failing.since, PATIENCE) {
                found.push(format!(
                    "the WAL of {} is not fetched since {:.0}: {}",
                    self.service, failing.since, failing.why
                ));
            }
        } else if longer(self.noted, PATIENCE + interval * 3) {
            found.push(format!(
                "the WAL of {} is not fetched since {:.0}: the sidecar does not run, or hangs",
                self.service, self.noted
            ));
        }
        found
    }

    pub fn text(&self, zone: &str) -> String {
        let mut out = String::new();
        let mut line = |text: String| {
            // Writing to a String cannot fail.
            writeln!(out, "{}: {text}", self.service).ok();
        };
        if let (Some(until), Some(end)) = (self.until, &self.end) {
            line(format!(
                "WAL is stored up to {} ({end})",
                output::time(until, zone)
            ));
        }
        if let Some(failing) = &self.failing {
            line(format!(
                "nothing could be fetched since {}: {}",
                output::time(failing.since, zone),
                failing.why
            ));
        }
        if let Some(why) = &self.without_slot {
            line(format!(
                "no slot keeps the WAL, so an absence longer than the server keeps it anyway (wal_keep_size) leaves a gap: {why}"
            ));
        }
        if let Some((at, gap)) = &self.gap {
            line(format!(
                "WAL was lost before it could be fetched, {gap} (seen {})",
                output::time(*at, zone)
            ));
        }
        out
    }
}

fn path(state: &Path, service: &str) -> PathBuf {
    state.join(format!("{PREFIX}{service}.json"))
}

fn read(path: &Path) -> Option<Note> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

fn write(state: &Path, note: &Note) {
    let written = serde_json::to_vec(note)
        .map_err(std::io::Error::other)
        .and_then(|bytes| durable::write_replace(&path(state, &note.service), &bytes, 0o600));
    if let Err(err) = written {
        tracing::warn!("how the WAL is fetched cannot be noted: {err}");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use jiff::ToSpan;

    #[test]
    fn what_is_stored_is_said_at_once_and_that_nothing_is_now_and_then() {
        let state = tempfile::tempdir().unwrap();
        let step = |second: i64, stored_bytes| Step {
            service: "db".to_owned(),
            system: 7,
            timeline: 1,
            end: 0x500_0000,
            until: Timestamp::from_second(second).unwrap(),
            stored_bytes,
            kept: Kept::Slot {
                restart: 0,
                safe_bytes: None,
            },
            gap: None,
            is_new: false,
        };
        let until = || {
            let [note] = all(state.path()).try_into().unwrap();
            note.until.unwrap().as_second()
        };
        for (second, stored_bytes, said) in [(10, 0, 10), (20, 0, 10), (30, 8, 30), (40, 0, 30)] {
            good_if_due(state.path(), &step(second, stored_bytes));
            assert_eq!(until(), said, "at {second}");
        }
        // Somebody asked.
        good(state.path(), &step(50, 0));
        assert_eq!(until(), 50);
        // Another state of things is said at once.
        let why = "no right to it".to_owned();
        let kept = Kept::Nothing { why };
        good_if_due(
            state.path(),
            &Step {
                kept,
                ..step(60, 0)
            },
        );
        assert_eq!(until(), 60);
    }

    #[test]
    fn a_failure_is_trouble_when_it_lasts() {
        let state = tempfile::tempdir().unwrap();
        bad(state.path(), "db", "no connection");
        let first = all(state.path());
        bad(state.path(), "db", "still none");
        let [note] = all(state.path()).try_into().unwrap();
        assert_eq!(
            note.failing.as_ref().unwrap().since,
            first.first().unwrap().noted
        );
        let interval = Duration::from_secs(10);
        // Noted by a clock that was ahead: nobody knows for how long.
        let ahead = Note {
            failing: note.failing.clone().map(|failing| Failing {
                since: Timestamp::now() + 24.hours(),
                ..failing
            }),
            ..note.clone()
        };
        assert_eq!(ahead.trouble(Timestamp::now(), interval).len(), 1);
        assert_eq!(note.trouble(Timestamp::now(), interval), [""; 0]);
        let later = Timestamp::now() + 10.minutes();
        let [said] = note.trouble(later, interval).try_into().unwrap();
        assert!(said.contains("still none"), "{said}");
        // A sidecar that went away without a word is noticed, too.
        let silent = Note {
            failing: None,
            ..note
        };
        assert_eq!(silent.trouble(later, interval).len(), 1);
    }
}
