//! The archive into the server, under free or temporary names.

use std::collections::BTreeMap;

use tokio::io::AsyncRead;

use super::super::server::Server;
use super::super::transfer::Upload;
use super::super::{CollectionFacts, Facts, PointsSeen, names};
use super::{QdrantRestore, Temporary};
use crate::archive::unpack::Members;
use crate::services::ServiceError;
use crate::stack::journal::Obligation;

impl QdrantRestore {
    /// Reads the archive once and uploads each collection as it comes.
    pub(super) async fn upload_all(
        &mut self,
        server: &Server,
        archive: impl AsyncRead + Unpin + Send,
        facts: &Facts,
    ) -> Result<(), ServiceError> {
        let live = server.collections().await?;
        let mut missing: BTreeMap<&str, (usize, &CollectionFacts)> = facts
            .collections
            .iter()
            .enumerate()
            .map(|(n, c)| (c.member.as_str(), (n, c)))
            .collect();
        let mut members = Members::new(archive).map_err(|e| self.unreadable(&e))?;
        while let Some(entry) = members.next().await.map_err(|e| self.unreadable(&e))? {
            let path = entry.path_bytes().map_err(|e| self.unreadable(&e))?;
            let path = String::from_utf8_lossy(&path).into_owned();
            let Some((n, collection)) = missing.remove(path.as_str()) else {
                continue;
            };
            let is_taken =
                live.contains(&collection.name) || self.undo.aliases.contains_key(&collection.name);
            self.upload_one(server, n, collection, is_taken, entry)
                .await?;
        }
        match missing.values().next() {
            None => Ok(()),
            Some((_, lacking)) => Err(self.damaged(format!(
                "the archive lacks collection {}: the backup is damaged; no live collection was changed",
                lacking.name
            ))),
        }
    }

    async fn upload_one(
        &mut self,
        server: &Server,
        number: usize,
        collection: &CollectionFacts,
        is_taken: bool,
        body: &mut (impl AsyncRead + Unpin),
    ) -> Result<(), ServiceError> {
        let run_id = self.run()?.run_id.clone();
        let file_name = names::upload(&run_id, number);
        let target = if is_taken {
            let name = names::temporary(&collection.name, &run_id, number);
            let obligation = Obligation::QdrantCollection {
                service: self.name.clone(),
                collection: name.clone(),
            };
            let entry = self.journal(&obligation)?;
            self.undo.temporary.push(Temporary {
                collection: collection.name.clone(),
                name: name.clone(),
                file_name: file_name.clone(),
                entry,
            });
            name
        } else {
            self.replacing(&collection.name, None)?;
            collection.name.clone()
        };
        let upload = Upload {
            collection: &target,
            file_name: &file_name,
            bytes: collection.bytes,
            sha256: &collection.sha256,
        };
        server.upload(&upload, body).await?;
        if !is_taken {
            server.delete_snapshot(&target, &file_name).await?;
        }
        let count = server.count(&target).await?.unwrap_or(0);
        self.judge(&collection.name, collection.points, count)?;
        self.counts.insert(collection.name.clone(), count);
        Ok(())
    }

    /// Compares what came out of a snapshot with the counts around its making.
    ///
    /// Counts that did not move leave no room. Where they moved, points were being written, and changes that
    /// came and went between two looks may have put the snapshot's count outside.
    fn judge(&self, collection: &str, seen: PointsSeen, count: u64) -> Result<(), ServiceError> {
        if (seen.least..=seen.most).contains(&count) {
            return Ok(());
        }
        if seen.least == seen.most || count < seen.least / 2 {
            return Err(self.damaged(format!(
                "collection {collection} has {count} points after the upload, but {} were backed up; no live collection was changed",
                seen.least
            )));
        }
        tracing::warn!(
            "collection {collection} has {count} points in the backup; {} to {} were counted while it was written to",
            seen.least,
            seen.most
        );
        Ok(())
    }
}
