//! The backup's steps: plan, freeze, download, delete.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::server::{Refusal, Server, Snapshot};
use super::{CollectionFacts, Facts, PointsSeen, Qdrant, names, undo};
use crate::archive::EntryMeta;
use crate::archive::{ArchiveWriter, Cut};
use crate::services::support::{archive_failed, hex};
use crate::services::{ErrorKind, ServiceError};
use crate::stack::journal::{EntryId, Obligation};

/// Snapshots the server makes at the same time: each costs it reading and writing a whole collection.
const AT_ONCE: usize = 4;
/// How often collections that come and go during the freeze are looked at again.
const ROUNDS: usize = 5;
/// A download that brings nothing for so long is given up.
const STALLED: Duration = Duration::from_mins(2);
/// How long a snapshot that was asked for, without an answer, is waited for before it is left to the journal.
const PATIENCE: Duration = Duration::from_mins(1);
/// Between two looks at a collection's count while its snapshot is made.
const COUNT_PAUSE: Duration = Duration::from_millis(100);

/// A collection in the backup.
pub(super) struct Held {
    collection: String,
    /// The obligation to delete its snapshot; `None` when struck out.
    pub(super) entry: Option<EntryId>,
    /// Snapshots that were there already.
    before: Vec<String>,
    state: State,
    points: PointsSeen,
    info: Value,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing was asked of the server.
    Planned,
    /// Asked for, and no answer yet: the server may go on without us.
    Asked,
    Made(Snapshot),
    /// The server said no.
    Refused,
    /// The collection was dropped before its snapshot was made.
    Dropped,
}

impl Qdrant {
    /// Looks at new collections and writes down that their snapshots will have to be deleted.
    async fn plan(&mut self, collections: Vec<String>) -> Result<(), ServiceError> {
        let opened = self.opened()?;
        let (server, run) = (opened.server.clone(), opened.run.clone());
        for collection in collections {
            let Some(listed) = server.snapshots(&collection).await? else {
                continue;
            };
            let Some(points) = server.count(&collection).await? else {
                continue;
            };
            let info = server.info(&collection).await?;
            if info.get("status").and_then(Value::as_str) == Some("red") {
                self.warnings.push(format!(
                    "collection {collection} is red, so its snapshot may not be sound: {}",
                    info.get("optimizer_status").unwrap_or(&Value::Null)
                ));
            }
            let before: Vec<String> = listed.into_iter().map(|s| s.name).collect();
            let obligation = Obligation::QdrantSnapshot {
                service: self.name.clone(),
                collection: collection.clone(),
                before: before.clone(),
            };
            let recorded =
                tokio::task::block_in_place(|| run.journal.record(&run.run_id, &obligation));
            self.held.push(Held {
                entry: Some(recorded.map_err(|e| self.unjournalled(&e))?),
                collection,
                before,
                state: State::Planned,
                points: PointsSeen::one(points),
                info,
            });
        }
        Ok(())
    }

    /// Has the server make the snapshots that are planned, and waits for all of them, also after a failure.
    async fn make_snapshots(&mut self) -> Result<(), ServiceError> {
        let server = self.opened()?.server.clone();
        let mut planned: Vec<BoxFuture<'_, Result<(), ServiceError>>> = Vec::new();
        for held in &mut self.held {
            if held.state == State::Planned {
                planned.push(held.make_snapshot(&server).boxed());
            }
        }
        let outcomes: Vec<Result<(), ServiceError>> = futures_util::stream::iter(planned)
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        outcomes.into_iter().collect()
    }

    /// Snapshots every collection, until there is none that came or went meanwhile.
    pub(super) async fn freeze_all(&mut self) -> Result<(), ServiceError> {
        for _ in 0..ROUNDS {
            let server = self.opened()?.server.clone();
            let live = server.collections().await?;
            let aliases = server.aliases().await?;
            self.forget_dropped(&live).await?;
            let known: BTreeSet<String> = self.held.iter().map(|h| h.collection.clone()).collect();
            let fresh: Vec<String> = live.difference(&known).cloned().collect();
            let is_whole = aliases.values().all(|target| live.contains(target));
            if fresh.is_empty() && is_whole {
                self.aliases = aliases;
                return Ok(());
            }
            self.plan(fresh).await?;
            self.make_snapshots().await?;
        }
        Err(ServiceError::new(
            &self.name,
            ErrorKind::Unreachable,
            "collections or aliases kept changing while it was frozen: back up again when whatever changes them has finished",
        ))
    }

    /// Lets go of collections that were dropped during the freeze, which no backup has to hold.
    async fn forget_dropped(&mut self, live: &BTreeSet<String>) -> Result<(), ServiceError> {
        for n in 0..self.held.len() {
            if let Some(held) = self.held.get_mut(n)
                && !live.contains(&held.collection)
            {
                held.state = State::Dropped;
                self.strike(n).await?;
            }
        }
        self.held.retain(|held| held.state != State::Dropped);
        Ok(())
    }

    /// Streams one snapshot into the archive; returns its SHA-256.
    async fn download(
        &self,
        archive: &mut ArchiveWriter,
        collection: &str,
        snapshot: &Snapshot,
    ) -> Result<String, ServiceError> {
        let server = &self.opened()?.server;
        let what = format!("download the snapshot of {collection}");
        let damaged = |why: String| server.damaged(format!("cannot {what}: {why}; back up again"));
        let mut response = server.download(collection, snapshot).await?;
        let member = names::member(collection);
        let meta = self.entry_meta();
        let mut body = tokio::task::block_in_place(|| {
            archive.member(&member, &meta, snapshot.size, Cut::Members)
        })
        .map_err(|e| archive_failed(&self.name, e))?;
        let mut sha256 = Sha256::new();
        let mut bytes = 0_u64;
        loop {
            let piece = tokio::time::timeout(STALLED, response.chunk())
                .await
                .map_err(|_| {
                    let message = format!(
                        "cannot {what}: nothing came from {} for {} s, after {bytes} of {} bytes",
                        server.shown(),
                        STALLED.as_secs(),
                        snapshot.size
                    );
                    server.error(ErrorKind::Unreachable, message)
                })?
                .map_err(|e| server.failed(&what, &e))?;
            let Some(piece) = piece else { break };
            bytes += piece.len() as u64;
            if bytes > snapshot.size {
                return Err(damaged(format!(
                    "more came than the {} bytes it was made with",
                    snapshot.size
                )));
            }
            tokio::task::block_in_place(|| {
                sha256.update(&piece);
                body.write(&piece)
            })
            .map_err(|e| archive_failed(&self.name, e))?;
        }
        if bytes < snapshot.size {
            return Err(damaged(format!(
                "it ended after {bytes} of {} bytes",
                snapshot.size
            )));
        }
        let found = hex(&sha256.finalize());
        if let Some(made) = &snapshot.checksum
            && !made.eq_ignore_ascii_case(&found)
        {
            return Err(damaged(format!(
                "its SHA-256 is {found}, but it was made with {made}"
            )));
        }
        tokio::task::block_in_place(|| body.finish()).map_err(|e| archive_failed(&self.name, e))?;
        Ok(found)
    }

    pub(super) async fn collect(
        &mut self,
        archive: &mut ArchiveWriter,
    ) -> Result<Facts, ServiceError> {
        let mut collections = Vec::new();
        for n in 0..self.held.len() {
            let Some((collection, snapshot)) = self.held.get(n).and_then(Held::made) else {
                continue;
            };
            let sha256 = match self.download(archive, &collection, &snapshot).await {
                Ok(sha256) => sha256,
                Err(e) => return Err(self.unless_dropped(&collection, e).await),
            };
            self.strike(n).await?;
            let Some(held) = self.held.get_mut(n) else {
                continue;
            };
            collections.push(CollectionFacts {
                member: names::member(&collection),
                name: collection,
                bytes: snapshot.size,
                sha256,
                points: held.points,
                info: std::mem::take(&mut held.info),
            });
        }
        collections.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Facts {
            version: self.opened()?.version.clone(),
            collections,
            aliases: std::mem::take(&mut self.aliases),
        })
    }

    /// A failure of a collection that is gone has another reason than it says.
    async fn unless_dropped(&self, collection: &str, error: ServiceError) -> ServiceError {
        let Ok(opened) = self.opened() else {
            return error;
        };
        match opened.server.collections().await {
            Ok(live) if !live.contains(collection) => {
                let message = format!(
                    "collection {collection} was dropped while it was backed up, so this backup would lack it: back up again"
                );
                ServiceError::new(&self.name, ErrorKind::Unreachable, message).with_source(error)
            }
            _ => error,
        }
    }

    /// Deletes what a collection's backup left on the server, then the obligation.
    pub(super) async fn strike(&mut self, n: usize) -> Result<(), ServiceError> {
        let Some(opened) = &self.opened else {
            return Ok(());
        };
        let Some(held) = self.held.get_mut(n) else {
            return Ok(());
        };
        let Some(entry) = held.entry.clone() else {
            return Ok(());
        };
        let (server, collection) = (&opened.server, held.collection.as_str());
        match &held.state {
            State::Planned => {}
            // Names carry the second: one that somebody made in the same second was overwritten by ours,
            // and stays in its place.
            State::Made(snapshot) if held.before.contains(&snapshot.name) => {}
            State::Made(snapshot) => server.delete_snapshot(collection, &snapshot.name).await?,
            State::Refused | State::Dropped => {
                undo::delete_new(server, collection, &held.before, Duration::ZERO).await?;
            }
            State::Asked => {
                let found = undo::delete_new(server, collection, &held.before, PATIENCE).await?;
                if !found {
                    let message = format!(
                        "a snapshot of {collection} was asked for and has not appeared within {} s; it is looked for again at the next start",
                        PATIENCE.as_secs()
                    );
                    return Err(server.error(ErrorKind::Unreachable, message));
                }
            }
        }
        tokio::task::block_in_place(|| opened.run.journal.done(&entry))
            .map_err(|e| self.unjournalled(&e))?;
        if let Some(held) = self.held.get_mut(n) {
            held.entry = None;
        }
        Ok(())
    }

    pub(super) fn entry_meta(&self) -> EntryMeta {
        EntryMeta {
            mode: 0o600,
            mtime_secs: self.frozen_at.as_second(),
            ..EntryMeta::default()
        }
    }

    fn unjournalled(&self, error: &std::io::Error) -> ServiceError {
        ServiceError::new(&self.name, ErrorKind::Io, error.to_string())
    }
}

impl Held {
    fn made(&self) -> Option<(String, Snapshot)> {
        match &self.state {
            State::Made(snapshot) => Some((self.collection.clone(), snapshot.clone())),
            _ => None,
        }
    }

    /// Has the server make the snapshot, and counts while it does.
    async fn make_snapshot(&mut self, server: &Server) -> Result<(), ServiceError> {
        self.state = State::Asked;
        let collection = self.collection.clone();
        let mut making = std::pin::pin!(server.create_snapshot(&collection));
        let mut pause = Duration::ZERO;
        let made = loop {
            tokio::select! {
                biased;
                made = &mut making => break made,
                (count, took) = count_after(server, &collection, pause) => {
                    // A count that fails is made up for by the last one.
                    if let Ok(Some(count)) = count {
                        self.points.widen(count);
                    }
                    pause = COUNT_PAUSE.max(took * 4);
                }
            }
        };
        match made {
            Ok(snapshot) => self.state = State::Made(snapshot),
            Err(refusal) => {
                let error = match refusal {
                    Refusal::Answered(error) => {
                        self.state = State::Refused;
                        error
                    }
                    // The server may still be at work.
                    Refusal::Silent(error) => error,
                };
                if server.collections().await?.contains(&collection) {
                    return Err(error);
                }
                self.state = State::Dropped;
                return Ok(());
            }
        }
        if let Some(count) = server.count(&collection).await? {
            self.points.widen(count);
        }
        Ok(())
    }
}

async fn count_after(
    server: &Server,
    collection: &str,
    pause: Duration,
) -> (Result<Option<u64>, ServiceError>, Duration) {
    tokio::time::sleep(pause).await;
    let begun = std::time::Instant::now();
    (server.count(collection).await, begun.elapsed())
}
