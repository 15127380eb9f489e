//! How what an interrupted run left is undone, by its kind.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io;
use std::path::Path;

use super::containers::{start, stop};
use crate::config::Config;
use crate::durable;
use crate::restore::swap;
use crate::services::{postgres, qdrant};
use crate::stack::engine::Engine;
use crate::stack::journal::{Entry, Journal, Obligation, QdrantPrevious};
use crate::stack::{ContainerRef, Stack, StackService};

/// What undoing needs.
pub(super) struct Undoing<'a> {
    pub config: &'a Config,
    pub journal: &'a Journal,
    pub engine: Option<&'a Engine>,
    pub stack: &'a Stack,
}

impl Undoing<'_> {
    /// Undoes one obligation; says what was done, or why it could not be.
    pub async fn undo(&self, entry: &Entry) -> Result<String, String> {
        match &entry.obligation {
            Obligation::Stopped { container } => start(self.engine, container).await,
            Obligation::Swap {
                service,
                root,
                staging,
                kept,
            } => self.swap(entry, service, root, [staging, kept]).await,
            Obligation::FileContent { path, original } => {
                self.file_content(entry, path, original.as_deref())
            }
            Obligation::QdrantSnapshot {
                service,
                collection,
                before,
            } => self.qdrant_snapshot(service, collection, before).await,
            Obligation::QdrantCollection {
                service,
                collection,
            } => self.qdrant_collection(service, collection).await,
            Obligation::QdrantReplaced {
                service,
                collection,
                previous,
                aliases,
            } => {
                let previous = previous.as_ref();
                self.qdrant_replaced(entry, service, collection, previous, aliases)
                    .await
            }
            Obligation::PostgresSessions { .. }
            | Obligation::PostgresDatabase { .. }
            | Obligation::PostgresSwitched { .. }
            | Obligation::PostgresGlobals { .. }
            | Obligation::PostgresThrowaway { .. } => self.postgres(entry).await,
        }
    }

    async fn swap(
        &self,
        entry: &Entry,
        service: &str,
        root: &Path,
        [staging, kept]: [&Path; 2],
    ) -> Result<String, String> {
        let shown = root.display();
        let failed =
            |why: String| format!("cannot put back the data of {service} in {shown}: {why}");
        self.stop_users(entry, service).await.map_err(failed)?;
        let (at, from, to) = (root.to_owned(), staging.to_owned(), kept.to_owned());
        tokio::task::spawn_blocking(move || swap::undo(&at, &from, &to))
            .await
            .map_err(|err| failed(err.to_string()))?
            .map_err(|err| failed(err.to_string()))?;
        Ok(format!("ended the restore of {service} in {shown}"))
    }

    fn file_content(
        &self,
        entry: &Entry,
        path: &Path,
        original: Option<&str>,
    ) -> Result<String, String> {
        let shown = path.display();
        if !path.parent().is_some_and(Path::is_dir) {
            return Ok(format!("{shown} is gone with its directory"));
        }
        // Only what still has our settings in it: after a rollback the path names the present's own file.
        let current = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(err) if err.kind() == io::ErrorKind::NotFound => String::new(),
            Err(err) => return Err(format!("cannot read {shown}: {err}")),
        };
        if !postgres::holds_recovery_settings(&current) {
            return Ok(format!("{shown} has nothing of a restore in it"));
        }
        let is_committed = self.is_committed(entry, &shown)?;
        if is_committed && path.with_file_name("recovery.signal").exists() {
            return Err(format!(
                "{shown} still holds recovery's settings, and recovery is not over: start the server, and \
                 they are removed at the next start of lifeboat"
            ));
        }
        match original {
            Some(text) => durable::write_like(path, text.as_bytes()),
            None => durable::remove(path).map(|_| ()),
        }
        .map_err(|err| format!("cannot put back {shown}: {err}"))?;
        Ok(format!("put back {shown}"))
    }

    async fn qdrant_snapshot(
        &self,
        service: &str,
        collection: &str,
        before: &[String],
    ) -> Result<String, String> {
        let what = format!("what is left of a Qdrant snapshot of {collection}");
        let found = self.service(service, &what)?;
        qdrant::undo_snapshot(self.config, found, collection, before)
            .await
            .map_err(|err| format!("cannot delete {what}: {err}"))?;
        Ok(format!("deleted {what}"))
    }

    async fn qdrant_collection(&self, service: &str, collection: &str) -> Result<String, String> {
        let what = format!("the temporary collection {collection}");
        let found = self.service(service, &what)?;
        qdrant::undo_collection(self.config, found, collection)
            .await
            .map_err(|err| format!("cannot delete {what}: {err}"))?;
        Ok(format!("deleted {what}"))
    }

    async fn qdrant_replaced(
        &self,
        entry: &Entry,
        service: &str,
        collection: &str,
        previous: Option<&QdrantPrevious>,
        aliases: &BTreeMap<String, String>,
    ) -> Result<String, String> {
        if self.is_committed(entry, &service)? {
            return Ok(format!("kept the restored collection {collection}"));
        }
        let what = format!("collection {collection} as it was before a restore");
        let found = self.service(service, &what)?;
        qdrant::undo_replaced(self.config, found, collection, previous, aliases)
            .await
            .map_err(|err| format!("cannot put back {what}: {err}"))?;
        Ok(format!("put back {what}"))
    }

    async fn postgres(&self, entry: &Entry) -> Result<String, String> {
        use postgres::undo;
        let what = undo::what(&entry.obligation);
        let failed = |err: &dyn std::fmt::Display| format!("cannot undo {what}: {err}");
        if let Obligation::PostgresThrowaway {
            directory,
            container,
        } = &entry.obligation
        {
            undo::undo_throwaway(self.engine, directory, container.as_deref())
                .await
                .map_err(|err| failed(&err))?;
            return Ok(format!("removed {what}"));
        }
        let name = undo::service_of(&entry.obligation).unwrap_or_default();
        let service = self.service(name, &what)?;
        let is_committed =
            swap::is_committed(self.journal, &entry.run_id).map_err(|err| failed(&err))?;
        undo::undo(self.config, service, &entry.obligation, is_committed)
            .await
            .map_err(|err| failed(&err))
    }

    /// Whether the restore that wrote the entry came to its end.
    fn is_committed(&self, entry: &Entry, of: &impl Display) -> Result<bool, String> {
        swap::is_committed(self.journal, &entry.run_id)
            .map_err(|err| format!("cannot tell whether the restore of {of} is complete: {err}"))
    }

    fn service(&self, service: &str, what: &str) -> Result<&StackService, String> {
        self.stack
            .services
            .iter()
            .find(|s| s.name == service)
            .ok_or_else(|| {
                format!(
                    "cannot undo {what}: service {service} is not in the stack now. Start it, and see that LIFEBOAT_SERVICES, QDRANT_URL or POSTGRES_HOST name it"
                )
            })
    }

    /// Stops the containers that may use a swapped directory: a killed restore may have started them already.
    async fn stop_users(&self, swap: &Entry, service: &str) -> Result<(), String> {
        let entries = self.journal.entries().map_err(|err| err.to_string())?;
        // In the order they were stopped in: oldest first.
        let stopped: Vec<&ContainerRef> = entries
            .iter()
            .rev()
            .filter(|entry| entry.run_id == swap.run_id)
            .filter_map(|entry| match &entry.obligation {
                Obligation::Stopped { container } => Some(container),
                _ => None,
            })
            .collect();
        let Some(engine) = self.engine else {
            return match stopped.first() {
                Some(container) => Err(format!(
                    "container {} may be using it, and without the Docker API it cannot be stopped. Mount the Docker socket again",
                    container.name
                )),
                // A restore without the Docker API: whoever ran it has stopped the service.
                None => Ok(()),
            };
        };
        for container in &stopped {
            stop(engine, container).await?;
        }
        let owner = self
            .stack
            .services
            .iter()
            .find(|s| s.name == service)
            .and_then(|s| s.container.as_ref())
            .filter(|owner| owner.running && !stopped.iter().any(|c| c.id == owner.id));
        if let Some(owner) = owner {
            let obligation = Obligation::Stopped {
                container: owner.clone(),
            };
            self.journal
                .record(&swap.run_id, &obligation)
                .map_err(|err| err.to_string())?;
            stop(engine, owner).await?;
        }
        Ok(())
    }
}
