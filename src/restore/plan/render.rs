//! The plan as a person reads it before saying yes.

use std::fmt;

use crate::services::postgres::dump::facts::is_only_dumps;
use crate::services::postgres::facts::Facts;
use crate::services::{ServiceKind, qdrant};

use super::{Plan, PlannedContainer, PlannedService, PlannedWay};

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let project = self
            .project
            .as_ref()
            .map(|name| format!(" of project {name}"))
            .unwrap_or_default();
        writeln!(
            f,
            "Backup {}{project}, {} to restore",
            self.backup,
            size(self.raw_bytes)
        )?;
        writeln!(f)?;
        let width = |text: fn(&PlannedService) -> &str| {
            self.services
                .iter()
                .map(|s| text(s).chars().count())
                .max()
                .unwrap_or(0)
        };
        let names = width(|s| &s.service);
        for service in &self.services {
            writeln!(
                f,
                "  {:names$}  {:>8}  as of {}  {}",
                service.service,
                size(service.record.raw_bytes),
                service.record.point.at.strftime("%Y-%m-%d %H:%M:%S UTC"),
                how(service)
            )?;
        }
        writeln!(f)?;
        let by_hand = self.without_engine.is_some();
        containers(
            f,
            if by_hand { "You stop " } else { "Stops    " },
            &self.stop,
        )?;
        containers(
            f,
            if by_hand { "You start" } else { "Starts   " },
            &self.start,
        )?;
        if !self.untouched.is_empty() {
            writeln!(f, "Untouched: {}", self.untouched.join(", "))?;
        }
        writeln!(f, "Downtime:  {}", self.downtime)?;
        for note in self.without_engine.iter().chain(&self.notes) {
            writeln!(f, "Note:      {note}")?;
        }
        Ok(())
    }
}

fn how(service: &PlannedService) -> String {
    match &service.way {
        PlannedWay::Online if service.kind == ServiceKind::Project => {
            "missing files are written, differing ones beside what is there".to_owned()
        }
        PlannedWay::Swap { root } => format!("written beside and swapped in {}", root.display()),
        PlannedWay::Online => "brought into the running service".to_owned(),
        PlannedWay::Into { directory } => format!("unpacked into {}", directory.display()),
    }
}

fn containers(
    f: &mut fmt::Formatter<'_>,
    what: &str,
    containers: &[PlannedContainer],
) -> fmt::Result {
    if containers.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = containers.iter().map(|c| c.service.as_str()).collect();
    writeln!(f, "{what}: {}", names.join(", "))
}

/// What is down, and from when to when.
pub fn downtime(
    services: &[PlannedService],
    stop: &[PlannedContainer],
    stage_first: bool,
) -> String {
    let online: Vec<_> = services
        .iter()
        .filter(|s| s.way == PlannedWay::Online && s.kind != ServiceKind::Project)
        .map(|s| s.service.as_str())
        .collect();
    let mut text = if stop.is_empty() {
        "no running service is stopped.".to_owned()
    } else {
        let bytes = services
            .iter()
            .filter(|s| matches!(s.way, PlannedWay::Swap { .. }))
            .map(|s| s.record.raw_bytes)
            .sum();
        let names: Vec<_> = stop.iter().rev().map(|c| c.service.as_str()).collect();
        let from = if stage_first {
            "while the data is swapped".to_owned()
        } else {
            format!("while {} are written and swapped", size(bytes))
        };
        format!("{}: {from}, until healthy.", names.join(", "))
    };
    match online.as_slice() {
        [] => {}
        [one] => text = format!("{text} {one} stays up; what it holds is replaced."),
        several => {
            text = format!(
                "{text} {} stay up; what they hold is replaced.",
                several.join(", ")
            );
        }
    }
    text
}

/// Bytes with a unit, such as `1.4 GB`.
fn size(bytes: u64) -> String {
    let mut unit = 1_u64;
    for name in ["B", "kB", "MB", "GB", "TB"] {
        if bytes < unit.saturating_mul(1000) || name == "TB" {
            let tenths = bytes.saturating_mul(10) / unit;
            return if unit == 1 {
                format!("{bytes} B")
            } else {
                format!("{}.{} {name}", tenths / 10, tenths % 10)
            };
        }
        unit *= 1000;
    }
    format!("{bytes} B")
}

/// How unpacked files get into a service by hand.
pub(super) fn into_note(service: &PlannedService) -> Option<String> {
    let PlannedWay::Into { directory } = &service.way else {
        return None;
    };
    let directory = directory.display();
    match service.kind {
        ServiceKind::Postgres if is_only_dumps(&service.record.report) => Some(format!(
            "{directory} holds dumps of PostgreSQL {}, for this major version or a later one: psql -f \
             dumps/globals.sql makes the roles, cat dumps/NAME.dump.* | pg_restore --create --dbname=postgres a \
             database",
            service.record.report.version
        )),
        ServiceKind::Postgres if is_copied(service) => Some(format!(
            "{directory} is a data directory that was copied as files. To start PostgreSQL {} on it: give it to \
             the server's user (chown -R 999:999, or 70:70 for alpine images) with mode 0700, and start it",
            service.record.report.version
        )),
        ServiceKind::Postgres => Some(format!(
            "{directory} is a base backup with its WAL. To start PostgreSQL {} on it: give it to the server's \
             user (chown -R 999:999, or 70:70 for alpine images) with mode 0700, make an empty file \
             recovery.signal in it, leave backup_label where it is, and start with -c restore_command=false -c \
             recovery_target_action=promote -c hot_standby=off. It is ready once SELECT pg_is_in_recovery() is \
             false",
            service.record.report.version
        )),
        ServiceKind::Qdrant if qdrant::is_storage(&service.record.report) => Some(format!(
            "{directory} is Qdrant's storage as it lay on the disk: stop the server, put it in the place of \
             /qdrant/storage, and start the server again"
        )),
        ServiceKind::Qdrant => Some(format!(
            "{directory} holds one Qdrant snapshot a collection: recover each with POST \
             /collections/NAME/snapshots/upload?priority=snapshot, then make the aliases"
        )),
        ServiceKind::Ollama => Some(format!(
            "{directory} is the content of ~/.ollama: copy models/blobs before models/manifests"
        )),
        _ => None,
    }
}

/// Whether it holds PostgreSQL's files as they lay on the disk.
fn is_copied(service: &PlannedService) -> bool {
    Facts::of(&service.record.report).is_ok_and(|facts| facts.copied.is_some())
}
