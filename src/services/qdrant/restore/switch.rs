//! From temporary names to the real ones, and back again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::super::server::{Refusal, Server, Snapshot};
use super::super::undo;
use super::{Facts, QdrantRestore, Replaced, Temporary, WayBack};
use crate::services::{ErrorKind, ServiceError};
use crate::stack::journal::{Obligation, QdrantPrevious};

/// How long a snapshot that was asked for, without an answer, is waited for.
const PATIENCE: Duration = Duration::from_mins(1);

impl QdrantRestore {
    /// Replaces the live collections by the verified ones, then the aliases.
    pub(super) async fn switch_all(
        &mut self,
        server: &Server,
        facts: &Facts,
    ) -> Result<(), ServiceError> {
        for n in 0..self.undo.temporary.len() {
            let Some(temporary) = self.undo.temporary.get(n) else {
                continue;
            };
            let (collection, name) = (temporary.collection.clone(), temporary.name.clone());
            let file_name = temporary.file_name.clone();
            let facts = facts.collections.iter().find(|c| c.name == collection);
            let uploaded = facts.map(|c| (file_name, c.sha256.clone()));
            let (file, sha256) = kept_file(server, &name, uploaded).await?;
            let source = server
                .locate(&name, &file, &sha256, &self.directories)
                .await?;
            self.switch(server, &collection, &source, &sha256).await?;
        }
        self.drop_temporary(server).await?;
        self.switch_aliases(server, facts).await
    }

    async fn switch(
        &mut self,
        server: &Server,
        collection: &str,
        source: &str,
        sha256: &str,
    ) -> Result<(), ServiceError> {
        let is_live = server.collections().await?.contains(collection);
        let previous = if is_live {
            Some(self.keep_way_back(server, collection).await?)
        } else {
            None
        };
        self.replacing(collection, previous)?;
        if is_live {
            server.delete_collection(collection).await?;
        } else if self.undo.aliases.contains_key(collection) {
            // The server would take the name for the alias's collection.
            let alias = BTreeSet::from([collection.to_owned()]);
            server.change_aliases(&alias, &BTreeMap::new()).await?;
        }
        server.recover(collection, source, sha256).await?;
        let count = server.count(collection).await?.unwrap_or(0);
        let expected = self.counts.get(collection).copied().unwrap_or(0);
        // More is somebody who writes to it already.
        if count >= expected {
            return Ok(());
        }
        Err(self.damaged(format!(
            "collection {collection} has {count} points after its recovery instead of {expected}"
        )))
    }

    /// Has the server keep the live collection as a snapshot, proven to be recoverable.
    async fn keep_way_back(
        &mut self,
        server: &Server,
        collection: &str,
    ) -> Result<QdrantPrevious, ServiceError> {
        let listed = server.snapshots(collection).await?.unwrap_or_default();
        let before: Vec<String> = listed.into_iter().map(|s| s.name).collect();
        let entry = self.journal(&Obligation::QdrantSnapshot {
            service: self.name.clone(),
            collection: collection.to_owned(),
            before: before.clone(),
        })?;
        self.undo.way_back.push(WayBack {
            collection: collection.to_owned(),
            before: before.clone(),
            snapshot: None,
            entry,
        });
        let made = match server.create_snapshot(collection).await {
            Ok(made) => made,
            Err(Refusal::Silent(error)) => return Err(error),
            Err(Refusal::Answered(error)) => {
                undo::delete_new(server, collection, &before, Duration::ZERO).await?;
                if let Some(way_back) = self.undo.way_back.pop() {
                    self.strike(&way_back.entry)?;
                }
                return Err(error);
            }
        };
        if let Some(way_back) = self.undo.way_back.last_mut() {
            way_back.snapshot = Some(made.name.clone());
        }
        let sha256 = checksum_of(server, &made)?;
        let location = server
            .locate(collection, &made.name, &sha256, &self.directories)
            .await?;
        Ok(QdrantPrevious {
            snapshot: made.name,
            location,
            sha256,
        })
    }

    /// Makes the recorded aliases; those of collections that the backup has not stay.
    async fn switch_aliases(&mut self, server: &Server, facts: &Facts) -> Result<(), ServiceError> {
        let now = server.aliases().await?;
        let ours: BTreeSet<&str> = facts.collections.iter().map(|c| c.name.as_str()).collect();
        let point: BTreeMap<String, String> = facts
            .aliases
            .iter()
            .filter(|(alias, target)| now.get(*alias) != Some(target))
            .map(|(alias, target)| (alias.clone(), target.clone()))
            .collect();
        let drop: BTreeSet<String> = now
            .iter()
            .filter(|(alias, target)| {
                point.contains_key(*alias)
                    || (ours.contains(target.as_str()) && !facts.aliases.contains_key(*alias))
            })
            .map(|(alias, _)| alias.clone())
            .collect();
        self.undo.aliased = true;
        server.change_aliases(&drop, &point).await?;
        for other in server.collections().await? {
            if !ours.contains(other.as_str()) {
                tracing::warn!("collection {other} is not in the backup and was left as it is");
            }
        }
        Ok(())
    }

    /// Puts everything back as it was; what fails stays in the journal, and can be tried again.
    pub(super) async fn roll_back_all(&mut self, server: &Server) -> Result<(), ServiceError> {
        while let Some(Replaced {
            collection,
            previous,
            ..
        }) = self.undo.replaced.last()
        {
            undo::put_back(server, collection, previous.as_ref()).await?;
            undo::put_aliases_back(server, collection, &self.undo.aliases).await?;
            if let Some(replaced) = self.undo.replaced.pop() {
                self.strike(&replaced.entry)?;
            }
        }
        if self.undo.aliased {
            self.restore_aliases(server).await?;
        }
        self.drop_way_back(server).await?;
        self.drop_temporary(server).await
    }

    async fn restore_aliases(&mut self, server: &Server) -> Result<(), ServiceError> {
        let now = server.aliases().await?;
        let before = &self.undo.aliases;
        let drop = now
            .iter()
            .filter(|(alias, target)| before.get(*alias) != Some(target))
            .map(|(alias, _)| alias.clone())
            .collect();
        let point = before
            .iter()
            .filter(|(alias, target)| now.get(*alias) != Some(target))
            .map(|(alias, target)| (alias.clone(), target.clone()))
            .collect();
        server.change_aliases(&drop, &point).await?;
        self.undo.aliased = false;
        Ok(())
    }

    /// Deletes the snapshots of what was live.
    pub(super) async fn drop_way_back(&mut self, server: &Server) -> Result<(), ServiceError> {
        while let Some(WayBack {
            collection,
            before,
            snapshot,
            ..
        }) = self.undo.way_back.last()
        {
            match snapshot {
                // Somebody else's, made in the same second and so under the same name.
                Some(name) if before.contains(name) => {}
                Some(name) => server.delete_snapshot(collection, name).await?,
                None => {
                    undo::delete_new(server, collection, before, PATIENCE).await?;
                }
            }
            if let Some(way_back) = self.undo.way_back.pop() {
                self.strike(&way_back.entry)?;
            }
        }
        Ok(())
    }

    /// Deletes the temporary collections with their files.
    pub(super) async fn drop_temporary(&mut self, server: &Server) -> Result<(), ServiceError> {
        while let Some(Temporary { name, .. }) = self.undo.temporary.last() {
            undo::delete_with_snapshots(server, name).await?;
            if let Some(temporary) = self.undo.temporary.pop() {
                self.strike(&temporary.entry)?;
            }
        }
        Ok(())
    }
}

/// The file that an upload left on the server, or a snapshot of what it became when it left none.
async fn kept_file(
    server: &Server,
    temporary: &str,
    uploaded: Option<(String, String)>,
) -> Result<(String, String), ServiceError> {
    let listed = server.snapshots(temporary).await?.unwrap_or_default();
    if let Some((file, sha256)) = uploaded
        && listed.iter().any(|s| s.name == file)
    {
        return Ok((file, sha256));
    }
    let made = server.create_snapshot(temporary).await;
    let made = made.map_err(Refusal::into_error)?;
    let sha256 = checksum_of(server, &made)?;
    Ok((made.name, sha256))
}

/// The checksum that the server gave a snapshot: without one it cannot be proven to be recoverable.
fn checksum_of(server: &Server, made: &Snapshot) -> Result<String, ServiceError> {
    let checksum = made.checksum.as_deref().filter(|sum| sum.len() == 64);
    checksum.map(str::to_ascii_lowercase).ok_or_else(|| {
        server.error(
            ErrorKind::Setup,
            "the server names no checksum of its snapshots, as it does when it keeps them in S3, so a live collection could not be put back; nothing was changed. Delete its collections first, or restore into an empty server".to_owned(),
        )
    })
}
