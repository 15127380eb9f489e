//! Qdrant: one snapshot a collection, made by the server, streamed into the archive and deleted again.
//!
//! Full-storage snapshots can only be restored by a restart with a flag, and copying the directory of a
//! running server breaks its write-ahead log, so neither is used. A snapshot shows all segments of a shard at
//! one instant; what was acknowledged before it was asked for is in it. Collections are not frozen together:
//! their snapshots are asked for as close together as they come. Aliases are in no snapshot; `collections.json`
//! and the manifest keep them, with each collection's configuration and count.

mod backup;
mod names;
mod restore;
mod server;
mod storage;
mod transfer;
mod undo;

use std::collections::BTreeMap;

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::support::archive_failed;
use super::{
    Check, ErrorKind, PointInTime, RunContext, Service, ServiceError, ServiceKind, ServiceReport,
};
use crate::archive::ArchiveWriter;
use crate::config::Config;
use crate::stack::StackService;
use backup::Held;
use server::{Address, Server};

pub use restore::QdrantRestore;
pub use storage::{QdrantStorage, QdrantStorageRestore, is_storage};
pub use undo::{undo_collection, undo_replaced, undo_snapshot};

/// The first version without known corruption under writes and without blocking them for the whole snapshot.
const SOUND: (u64, u64, u64) = (1, 17, 1);

/// One Qdrant server, through its backup.
pub struct Qdrant {
    name: String,
    address: Address,
    opened: Option<Opened>,
    held: Vec<Held>,
    aliases: BTreeMap<String, String>,
    frozen_at: Timestamp,
    warnings: Vec<String>,
}

/// What `hold` finds.
struct Opened {
    server: Server,
    run: RunContext,
    version: String,
}

/// What the manifest and `collections.json` keep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Facts {
    /// The server's version.
    version: String,
    collections: Vec<CollectionFacts>,
    /// Collections by alias.
    aliases: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct CollectionFacts {
    name: String,
    /// Its entry in the archive.
    member: String,
    bytes: u64,
    sha256: String,
    points: PointsSeen,
    /// As the server's REST interface described it.
    info: Value,
}

/// The exact counts seen from just before the snapshot was asked for until it was made.
///
/// Equal without writers. With writers the snapshot's own count lies between them, except for changes that
/// came and went between two looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct PointsSeen {
    least: u64,
    most: u64,
}

impl PointsSeen {
    const fn one(count: u64) -> Self {
        Self {
            least: count,
            most: count,
        }
    }

    fn widen(&mut self, count: u64) {
        self.least = self.least.min(count);
        self.most = self.most.max(count);
    }
}

impl Qdrant {
    pub fn new(config: &Config, service: &StackService) -> Result<Self, ServiceError> {
        Ok(Self {
            name: service.name.clone(),
            address: Address::new(config, service)?,
            opened: None,
            held: Vec::new(),
            aliases: BTreeMap::new(),
            frozen_at: Timestamp::UNIX_EPOCH,
            warnings: Vec::new(),
        })
    }

    fn opened(&self) -> Result<&Opened, ServiceError> {
        self.opened.as_ref().ok_or_else(|| {
            ServiceError::new(&self.name, ErrorKind::Setup, "its backup was not begun")
        })
    }
}

#[async_trait]
impl Service for Qdrant {
    fn kind(&self) -> ServiceKind {
        ServiceKind::Qdrant
    }

    fn name(&self) -> &str {
        &self.name
    }

    async fn check(&self) -> Vec<Check> {
        let subject = |what: &str| format!("{}: {what}", self.name);
        let check = |what: &str, outcome: Result<String, ServiceError>| Check {
            subject: subject(what),
            outcome: outcome.map_err(|e| e.message),
            caution: false,
        };
        let server = match self.address.connect().await {
            Ok(server) => server,
            Err(e) => return vec![Check::bad(subject("connection"), e.message)],
        };
        let shown = server.shown().to_owned();
        let version = server.version().await;
        let warning = version.as_deref().ok().and_then(old_version);
        vec![
            check(
                "connection",
                version.map(|v| format!("Qdrant {v} at {shown}")),
            ),
            match warning {
                Some(sentence) => Check::bad(subject("version"), sentence),
                None => Check::good(subject("version"), "snapshots under writes are sound"),
            },
            check(
                "readiness",
                server.ready().await.map(|()| "ready".to_owned()),
            ),
            check(
                "gRPC",
                server
                    .collections()
                    .await
                    .map(|c| format!("{} collections", c.len())),
            ),
            check(
                "rights",
                server
                    .may_write()
                    .await
                    .map(|()| "the key may make snapshots".to_owned()),
            ),
        ]
    }

    async fn estimate(&self) -> u64 {
        // Only an estimate: what is wrong is said by `check` and `hold`.
        let Ok(server) = self.address.connect().await else {
            return 0;
        };
        let mut bytes = 0_u64;
        for collection in server.collections().await.unwrap_or_default() {
            let info = server.info(&collection).await.unwrap_or_default();
            bytes = bytes.saturating_add(vector_bytes(&info));
        }
        bytes
    }

    async fn hold(&mut self, run: &RunContext) -> Result<(), ServiceError> {
        let server = self.address.connect().await?;
        server.ready().await?;
        let version = server.version().await?;
        self.warnings.extend(old_version(&version));
        // Says now, not after the long copies of other services, what the key lacks.
        server.collections().await?;
        server.may_write().await?;
        let nodes = server.nodes().await;
        if nodes > 1 {
            let message = format!(
                "the server is one of {nodes} nodes of a cluster: a collection snapshot holds one node's shards only, so clusters are not backed up"
            );
            return Err(ServiceError::new(&self.name, ErrorKind::Setup, message));
        }
        self.opened = Some(Opened {
            server,
            run: run.clone(),
            version,
        });
        Ok(())
    }

    async fn copy(&mut self, _archive: &mut ArchiveWriter) -> Result<(), ServiceError> {
        Ok(())
    }

    async fn freeze(&mut self) -> Result<PointInTime, ServiceError> {
        self.frozen_at = Timestamp::now();
        self.freeze_all().await?;
        Ok(PointInTime::at(self.frozen_at))
    }

    async fn drain(&mut self, archive: &mut ArchiveWriter) -> Result<ServiceReport, ServiceError> {
        let facts = self.collect(archive).await?;
        let bad =
            |e: serde_json::Error| ServiceError::new(&self.name, ErrorKind::Damaged, e.to_string());
        let document = serde_json::to_value(&facts).map_err(bad)?;
        let text = serde_json::to_vec_pretty(&document).map_err(bad)?;
        tokio::task::block_in_place(|| {
            archive.bytes("collections.json", &self.entry_meta(), &text)
        })
        .map_err(|e| archive_failed(&self.name, e))?;
        for collection in self.opened()?.server.collections().await? {
            if !facts.collections.iter().any(|c| c.name == collection) {
                self.warnings.push(format!(
                    "collection {collection} was created while the backup ran: it will be in the next one"
                ));
            }
        }
        let points = facts.collections.iter().map(|c| c.points.least).sum();
        let counts = [
            ("collections", facts.collections.len() as u64),
            ("points", points),
            ("aliases", facts.aliases.len() as u64),
        ];
        Ok(ServiceReport {
            version: facts.version,
            counts: counts.map(|(name, n)| (name.to_owned(), n)).into(),
            facts: document,
            warnings: std::mem::take(&mut self.warnings),
        })
    }

    async fn release(&mut self) -> Result<(), ServiceError> {
        let mut first = None;
        for n in 0..self.held.len() {
            if let Err(error) = self.strike(n).await {
                first = first.or(Some(error));
            }
        }
        self.held.retain(|held| held.entry.is_some());
        first.map_or(Ok(()), Err)
    }
}

/// Why a server's snapshots are not to be relied on under writes.
fn old_version(version: &str) -> Option<String> {
    let found = version_numbers(version)?;
    (found < SOUND).then(|| {
        format!(
            "Qdrant {version} is older than 1.17.1: its snapshots may be corrupt when points are written meanwhile (before 1.15.5), or hold up all writes (before 1.17.0); use a newer image"
        )
    })
}

/// Major, minor and patch of `1.18.3` or `v1.19.0-dev`.
fn version_numbers(version: &str) -> Option<(u64, u64, u64)> {
    let plain = version.trim_start_matches('v');
    let plain = plain.split(['-', '+']).next().unwrap_or_default();
    let mut numbers = plain.split('.').map(|n| n.parse::<u64>().ok());
    Some((numbers.next()??, numbers.next()??, numbers.next()??))
}

/// What a collection's dense vectors take, by its configuration and approximate count.
fn vector_bytes(info: &Value) -> u64 {
    let points = info
        .get("points_count")
        .and_then(Value::as_u64)
        .unwrap_or(0);
    let vectors = info.pointer("/config/params/vectors");
    let size = |v: &Value| v.get("size").and_then(Value::as_u64);
    let dimensions = match vectors {
        Some(one) if size(one).is_some() => size(one).unwrap_or(0),
        Some(Value::Object(named)) => named.values().filter_map(size).sum(),
        _ => 0,
    };
    points.saturating_mul(dimensions).saturating_mul(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        assert!(old_version("1.9.2").is_some());
        assert!(old_version("1.17.0").is_some());
        assert!(old_version("1.17.1").is_none());
        assert!(old_version("v1.20.0-dev").is_none());
        assert_eq!(version_numbers("dev"), None);
    }

    #[test]
    fn estimates_count_named_and_unnamed_vectors() {
        let info = |vectors: Value| serde_json::json!({"points_count": 10, "config": {"params": {"vectors": vectors}}});
        assert_eq!(vector_bytes(&info(serde_json::json!({"size": 8}))), 320);
        let named = serde_json::json!({"a": {"size": 4}, "b": {"size": 2}});
        assert_eq!(vector_bytes(&info(named)), 240);
        assert_eq!(vector_bytes(&Value::Null), 0);
    }
}
