//! The service adapters: what each server needs to be read hot and consistent, and to be put back.
//!
//! A backup drives every adapter through the same five steps ([`Service`]); the order across services is
//! the backup command's business: `hold` and `copy` of all side by side (long), then every `freeze` as close
//! together as they come, then `drain`, and `release` whatever happened before.

pub mod n8n;
pub mod ollama;
pub mod postgres;
pub mod project;
pub mod qdrant;
pub(crate) mod support;
pub mod volume;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::archive::ArchiveWriter;
use crate::stack::journal::Journal;

/// Which adapter a service is served by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServiceKind {
    Postgres,
    Qdrant,
    Ollama,
    N8n,
    /// Any other mounted directory, copied as files.
    Volume,
    /// The compose project's own files: `.env` and the compose files.
    Project,
}

impl ServiceKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Qdrant => "qdrant",
            Self::Ollama => "ollama",
            Self::N8n => "n8n",
            Self::Volume => "volume",
            Self::Project => "project",
        }
    }
}

impl fmt::Display for ServiceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a run shares with every adapter.
#[derive(Clone)]
pub struct RunContext {
    /// The backup's (or restore's) id: goes into labels, slot names and the journal.
    pub run_id: String,
    pub journal: Arc<Journal>,
    /// An existing directory for small scratch files (a copy of an SQLite database), emptied after the run.
    pub scratch: std::path::PathBuf,
}

/// The instant a service's archive stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointInTime {
    pub at: Timestamp,
    /// The service's own coordinate, such as a PostgreSQL LSN, where it has one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub coordinate: Option<String>,
}

impl PointInTime {
    /// Of a service that has no coordinate of its own.
    pub const fn at(at: Timestamp) -> Self {
        Self {
            at,
            coordinate: None,
        }
    }
}

/// What an adapter tells the manifest about the service: versions, names, exact counts.
///
/// `facts` is the adapter's own document; restore, drill and the shrink check read it again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceReport {
    pub version: String,
    /// Named exact counts ("collections", "points", "tables"…), compared between backups and by the drill.
    pub counts: std::collections::BTreeMap<String, u64>,
    pub facts: serde_json::Value,
    /// Sentences a person should read although the backup is complete.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

impl ServiceReport {
    /// What was damaged in the service already, as a sentence, which every adapter may have in its `facts`:
    /// the backup is complete and kept, and does not count as a good one.
    pub fn damage(&self) -> Option<&str> {
        self.facts.get("damage")?.as_str()
    }
}

/// One line of `doctor`.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// What was looked at, such as "postgres: connection".
    pub subject: String,
    /// `Err` holds a sentence: what is wrong, where, what to do.
    pub outcome: Result<String, String>,
    /// Good, but a person should read it before saying yes.
    pub caution: bool,
}

/// The checks that a person may have ignored (`restore --ignore`), by the end of their subject.
pub const IGNORABLE: [&str; 2] = ["extensions", "libraries"];

impl Check {
    /// Takes a refusal for a caution when a person says so.
    #[must_use]
    pub fn unless_ignored(self, ignored: &[String]) -> Self {
        let named = ignored.iter().any(|name| {
            let subject = self.subject.strip_suffix(name.as_str());
            IGNORABLE.contains(&name.as_str()) && subject.is_some_and(|s| s.ends_with(": "))
        });
        match &self.outcome {
            Err(why) if named => Self::caution(self.subject.clone(), format!("ignored: {why}")),
            _ => self,
        }
    }

    pub fn good(subject: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            subject: subject.into(),
            outcome: Ok(found.into()),
            caution: false,
        }
    }

    pub fn bad(subject: impl Into<String>, sentence: impl Into<String>) -> Self {
        Self {
            subject: subject.into(),
            outcome: Err(sentence.into()),
            caution: false,
        }
    }

    /// Possible, and not what one would expect.
    pub fn caution(subject: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            caution: true,
            ..Self::good(subject, found)
        }
    }
}

/// One service of the stack, through its backup.
///
/// Contract: `hold` is called once; `copy`, `freeze` and `drain` once each in this order when all before
/// succeeded; `release` always, also after a failure or cancellation, and must be idempotent. Anything
/// created in the service (slot, backup session, Qdrant snapshot) is journalled before it is created.
/// Adapters may call [`ArchiveWriter`]'s blocking methods inside `tokio::task::block_in_place`.
#[async_trait]
pub trait Service: Send {
    fn kind(&self) -> ServiceKind;

    /// The service's name in the stack, and the name of its archive: `[a-z0-9._-]+`.
    fn name(&self) -> &str;

    /// Looks at connection, rights, mounts and versions without changing anything.
    async fn check(&self) -> Vec<Check>;

    /// Bytes a first full backup would read, as far as it is cheap to know: for progress and space checks.
    async fn estimate(&self) -> u64;

    /// Opens sessions and begins what must span the copy (`pg_backup_start`); files alone need none.
    async fn hold(&mut self, _run: &RunContext) -> Result<(), ServiceError> {
        Ok(())
    }

    /// Copies what may be copied while the service changes it.
    async fn copy(&mut self, archive: &mut ArchiveWriter) -> Result<(), ServiceError>;

    /// Fixes the instant the archive stands for (`pg_backup_stop`, Qdrant snapshot, SQLite backup).
    async fn freeze(&mut self) -> Result<PointInTime, ServiceError>;

    /// Writes what belongs to that instant and reports what the archive holds.
    async fn drain(&mut self, archive: &mut ArchiveWriter) -> Result<ServiceReport, ServiceError>;

    /// Undoes `hold` and `freeze` in the service, where they did anything there.
    async fn release(&mut self) -> Result<(), ServiceError> {
        Ok(())
    }
}

/// Why an adapter failed: a sentence that names what failed, why, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{service}: {message}")]
pub struct ServiceError {
    pub service: String,
    pub kind: ErrorKind,
    pub message: String,
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// What callers branch on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// No connection, a timeout, a 5xx: may work in a minute.
    Unreachable,
    /// Wrong password, key or missing right.
    Denied,
    /// A mount, file or setting is not as it must be.
    Setup,
    /// The service answered what its documentation rules out, or data is damaged.
    Damaged,
    /// Reading or writing local files, or the repository, failed.
    Io,
}

impl ServiceError {
    pub fn new(service: impl Into<String>, kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            service: service.into(),
            kind,
            message: message.into(),
            source: None,
        }
    }

    #[must_use]
    pub fn with_source(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.source = Some(source.into());
        self
    }

    pub const fn is_transient(&self) -> bool {
        matches!(self.kind, ErrorKind::Unreachable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_be_ignored_is() {
        let ignored = ["extensions".to_owned(), "version".to_owned()];
        let check = |subject: &str| Check::bad(subject, "no").unless_ignored(&ignored);
        assert!(check("db: extensions").caution);
        assert!(check("db: extensions").outcome.is_ok());
        for kept in ["db: version", "db: libraries", "db: other extensions"] {
            assert!(check(kept).outcome.is_err(), "{kept}");
        }
        assert!(
            !Check::good("db: extensions", "all")
                .unless_ignored(&ignored)
                .caution
        );
    }
}
