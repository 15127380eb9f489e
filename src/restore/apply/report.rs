//! What a restore did, and why it did not.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::progress::{Event, Phase, Progress};
use crate::archive::unpack::UnpackReport;
use crate::services::{Check, ServiceError};

/// A finished restore.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RestoreReport {
    pub backup: String,
    pub run: String,
    pub services: Vec<RestoredService>,
    pub phases: Vec<PhaseTime>,
    /// From the first check to the last clean-up.
    pub total_seconds: f64,
    /// From the first stop to the last service being healthy; absent when nothing was stopped by this run.
    pub downtime_seconds: Option<f64>,
    /// Old data that still lies beside the new, for a person to delete.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept: Vec<PathBuf>,
    /// Services that a person starts, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to_start: Vec<String>,
    /// Of these, those that nobody has seen healthy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unsettled: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    #[serde(skip)]
    clock: Clock,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RestoredService {
    pub service: String,
    pub files: u64,
    pub bytes: u64,
    pub seconds: f64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PhaseTime {
    pub phase: Phase,
    pub seconds: f64,
}

#[derive(Debug, Clone)]
struct Clock {
    begun: Instant,
    phase: Option<(Phase, Instant)>,
    down: Option<Instant>,
    up: Option<Instant>,
}

impl Default for Clock {
    fn default() -> Self {
        Self {
            begun: Instant::now(),
            phase: None,
            down: None,
            up: None,
        }
    }
}

impl RestoreReport {
    pub(super) fn new(backup: &str, run: &str) -> Self {
        Self {
            backup: backup.to_owned(),
            run: run.to_owned(),
            services: Vec::new(),
            phases: Vec::new(),
            total_seconds: 0.0,
            downtime_seconds: None,
            kept: Vec::new(),
            to_start: Vec::new(),
            unsettled: Vec::new(),
            warnings: Vec::new(),
            clock: Clock::default(),
        }
    }

    /// Ends the phase before and begins this one; the same one goes on.
    pub(super) fn begin(&mut self, phase: Phase, progress: &Progress) {
        self.end_phase();
        self.clock.phase = Some((phase, Instant::now()));
        progress.tell(&Event::Phase(phase));
    }

    fn end_phase(&mut self) {
        let Some((phase, since)) = self.clock.phase.take() else {
            return;
        };
        let seconds = since.elapsed().as_secs_f64();
        match self.phases.iter_mut().find(|p| p.phase == phase) {
            Some(before) => before.seconds += seconds,
            None => self.phases.push(PhaseTime { phase, seconds }),
        }
    }

    pub(super) fn end(&mut self) {
        self.end_phase();
        self.total_seconds = self.clock.begun.elapsed().as_secs_f64();
        let since = self.clock.down.zip(self.clock.up);
        self.downtime_seconds = since.map(|(down, up)| up.duration_since(down).as_secs_f64());
    }

    pub(super) fn down(&mut self) {
        self.clock.down.get_or_insert_with(Instant::now);
    }

    pub(super) fn up(&mut self) {
        self.clock.up = Some(Instant::now());
    }

    pub(super) fn unpacked(&mut self, service: &str, unpacked: UnpackReport, took: Duration) {
        if unpacked.xattrs_refused > 0 {
            self.warnings.push(format!(
                "{service}: {} extended attributes were not put back, because the filesystem or the kernel does \
                 not take them",
                unpacked.xattrs_refused
            ));
        }
        self.services.push(RestoredService {
            service: service.to_owned(),
            files: unpacked.files,
            bytes: unpacked.bytes,
            seconds: took.as_secs_f64(),
        });
    }

    pub(super) fn applied(&mut self, service: &str, bytes: u64, took: Duration) {
        self.services.push(RestoredService {
            service: service.to_owned(),
            files: 0,
            bytes,
            seconds: took.as_secs_f64(),
        });
    }
}

/// Why a restore failed, and how the stack is left.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error("the restore was not begun and nothing was changed:{}", sentences(.0))]
    Preflight(Vec<Check>),
    #[error("{why}. Everything was put back as it was before the restore, and runs again")]
    RolledBack { why: String },
    #[error(
        "{why}. Not everything could be put back:{}\nThe journal keeps what is left to do, and the next start of \
         lifeboat tries it again; old data is never removed before that",
        bullets(.failures)
    )]
    NotRolledBack { why: String, failures: Vec<String> },
    #[error(
        "{why}. The restored data is in place and stays; the data from before lies in {}",
        .kept.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
    )]
    AfterCommit { why: String, kept: Vec<PathBuf> },
    #[error(transparent)]
    Service(#[from] ServiceError),
}

fn sentences(checks: &[Check]) -> String {
    let bad = checks.iter().filter_map(|check| {
        let sentence = check.outcome.as_ref().err()?;
        Some(format!("{}: {sentence}", check.subject))
    });
    bullets(&bad.collect::<Vec<_>>())
}

fn bullets(lines: &[String]) -> String {
    lines.iter().fold(String::new(), |mut text, line| {
        // Writing to a string cannot fail.
        write!(text, "\n  - {line}").ok();
        text
    })
}
