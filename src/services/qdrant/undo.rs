//! Undoes what an interrupted run left on the server.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::names::{is_temporary, is_upload};
use super::server::{Address, Listed, Server};
use crate::config::Config;
use crate::services::{ErrorKind, ServiceError};
use crate::stack::StackService;
use crate::stack::journal::QdrantPrevious;

/// After a kill the server goes on with the snapshot that was asked for: it is waited for this long.
const PATIENCE: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(250);

/// Deletes the snapshot of a collection that an interrupted run had the server make.
///
/// `before` lists the snapshots that were there already. Only one is deleted: the oldest of those that came
/// since, because others may have been made by somebody else in the meantime.
pub async fn undo_snapshot(
    config: &Config,
    service: &StackService,
    collection: &str,
    before: &[String],
) -> Result<(), ServiceError> {
    let server = Address::new(config, service)?.connect().await?;
    if !delete_new(&server, collection, before, PATIENCE).await? {
        tracing::info!("no snapshot of {collection} was left behind");
    }
    Ok(())
}

/// Deletes a collection that an interrupted restore brought in under a temporary name, and its snapshots.
pub async fn undo_collection(
    config: &Config,
    service: &StackService,
    collection: &str,
) -> Result<(), ServiceError> {
    let server = Address::new(config, service)?.connect().await?;
    if !is_temporary(collection) {
        let message = format!("{collection} is not a temporary collection: it is left alone");
        return Err(ServiceError::new(&service.name, ErrorKind::Setup, message));
    }
    delete_with_snapshots(&server, collection).await
}

/// Puts a collection that an interrupted restore replaced back, with the aliases of the server.
pub async fn undo_replaced(
    config: &Config,
    service: &StackService,
    collection: &str,
    previous: Option<&QdrantPrevious>,
    aliases: &BTreeMap<String, String>,
) -> Result<(), ServiceError> {
    let server = Address::new(config, service)?.connect().await?;
    put_back(&server, collection, previous).await?;
    put_aliases_back(&server, collection, aliases).await
}

/// Deletes what a restore made of a collection and recovers what was there.
pub(super) async fn put_back(
    server: &Server,
    collection: &str,
    previous: Option<&QdrantPrevious>,
) -> Result<(), ServiceError> {
    if reach(server, collection).await? {
        delete_uploads(server, collection).await?;
        server.delete_collection(collection).await?;
    }
    if let Some(previous) = previous {
        server
            .recover(collection, &previous.location, &previous.sha256)
            .await?;
    }
    Ok(())
}

/// Points the aliases that a collection's replacement took away or moved where they pointed before.
pub(super) async fn put_aliases_back(
    server: &Server,
    collection: &str,
    before: &BTreeMap<String, String>,
) -> Result<(), ServiceError> {
    let (live, now) = (server.collections().await?, server.aliases().await?);
    // Collections that are not back yet bring theirs when they are.
    let point: BTreeMap<String, String> = before
        .iter()
        .filter(|(alias, target)| live.contains(*target) && now.get(*alias) != Some(target))
        .map(|(alias, target)| (alias.clone(), target.clone()))
        .collect();
    let drop: BTreeSet<String> = now
        .iter()
        .filter(|(alias, target)| {
            point.contains_key(*alias)
                || (target.as_str() == collection && !before.contains_key(*alias))
        })
        .map(|(alias, _)| alias.clone())
        .collect();
    server.change_aliases(&drop, &point).await
}

/// Deletes a collection with all snapshots of it: they would stay on disk, out of reach.
pub(super) async fn delete_with_snapshots(
    server: &Server,
    collection: &str,
) -> Result<(), ServiceError> {
    if !reach(server, collection).await? {
        return Ok(());
    }
    for snapshot in server.snapshots(collection).await?.unwrap_or_default() {
        server.delete_snapshot(collection, &snapshot.name).await?;
    }
    server.delete_collection(collection).await
}

/// Whether a collection is there for its files to be deleted; made for that when there is none.
///
/// A failed upload into a new collection leaves its file, and no collection through which it could be
/// deleted.
async fn reach(server: &Server, collection: &str) -> Result<bool, ServiceError> {
    if server.collections().await?.contains(collection) {
        return Ok(true);
    }
    if server.aliases().await?.contains_key(collection) {
        return Ok(false);
    }
    if let Err(error) = server.create_empty(collection).await {
        tracing::warn!(
            "an uploaded file may be left in the server's snapshots directory below {collection}: {error}"
        );
        return Ok(false);
    }
    Ok(true)
}

/// Deletes the files that uploads into a collection left behind.
pub(super) async fn delete_uploads(server: &Server, collection: &str) -> Result<(), ServiceError> {
    let listed = server.snapshots(collection).await?.unwrap_or_default();
    for snapshot in listed.iter().filter(|s| is_upload(&s.name)) {
        server.delete_snapshot(collection, &snapshot.name).await?;
    }
    Ok(())
}

/// Deletes the oldest snapshot that is not among `before`, waiting for it to appear; `false` when none did.
pub(super) async fn delete_new(
    server: &Server,
    collection: &str,
    before: &[String],
    patience: Duration,
) -> Result<bool, ServiceError> {
    let deadline = Instant::now() + patience;
    loop {
        let Some(listed) = server.snapshots(collection).await? else {
            tracing::warn!(
                "collection {collection} is gone: a snapshot of it may be left in the server's snapshots directory, where the API does not reach it"
            );
            return Ok(true);
        };
        if let Some(ours) = oldest_new(listed, collection, before) {
            server.delete_snapshot(collection, &ours.name).await?;
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The server names snapshots `{collection}-{peer}-{time}.snapshot`; uploads are called as they came.
fn oldest_new(listed: Vec<Listed>, collection: &str, before: &[String]) -> Option<Listed> {
    let made_here = format!("{collection}-");
    listed
        .into_iter()
        .filter(|s| s.name.starts_with(&made_here) && !before.contains(&s.name))
        .min_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn only_the_oldest_new_snapshot_is_taken_for_ours() {
        let listed = |name: &str, created| Listed {
            name: name.to_owned(),
            created: Some(created),
        };
        let all = vec![
            listed("docs-1-2026-11-22-22-01-31.snapshot", 31),
            listed("docs-1-2026-11-22-22-01-30.snapshot", 30),
            listed("docs-1-2026-11-22-22-01-29.snapshot", 29),
            listed("by-hand.snapshot", 1),
        ];
        let before = ["docs-1-2026-11-22-22-01-29.snapshot".to_owned()];
        let ours = oldest_new(all.clone(), "docs", &before).unwrap();
        assert_eq!(ours.name, "docs-1-2026-11-22-22-01-30.snapshot");
        let every: Vec<String> = all.iter().map(|s| s.name.clone()).collect();
        assert_eq!(oldest_new(all, "docs", &every), None);
    }
}
