//! Undoes what an interrupted run left, at the next start, newest first.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use super::engine::{Engine, EngineErrorKind};
use super::journal::{Entry, Journal, Obligation};
use super::{ContainerRef, Stack, StackService};
use crate::config::Config;
use crate::durable;
use crate::restore::swap;
use crate::services::{postgres, qdrant};

/// What came of it, one sentence an obligation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Undone {
    pub undone: Vec<String>,
    /// Still to be undone: each sentence says why, and the journal keeps the obligation.
    pub open: Vec<String>,
    /// Of these, those that leave a service's data half restored: nothing may be backed up or restored.
    pub open_data: Vec<String>,
}

/// How long a started container may take to become healthy before the next one is started all the same.
const HEALTHY_WITHIN: Duration = Duration::from_mins(1);
/// A database may have much to write when it is stopped.
const STOP_GRACE: Duration = Duration::from_secs(90);

/// Undoes every pending obligation; for whoever holds the state directory's lock.
///
/// One that cannot be undone now stays, and is logged as an error; the others go on. Data comes first, with
/// the containers that may use it stopped, then the containers are started. After data could not be put back
/// they stay stopped: a server started on half of its data would write to it.
pub async fn undo_all(
    config: &Config,
    journal: &Journal,
    engine: Option<&Engine>,
    stack: &Stack,
) -> io::Result<Undone> {
    durable::remove_leftovers(journal.dir())?;
    let undoing = Undoing {
        config,
        journal,
        engine,
        stack,
    };
    let mut outcome = Undone::default();
    let mut broken: Vec<Broken> = Vec::new();
    for entry in journal.entries()? {
        if matches!(entry.obligation, Obligation::Stopped { .. }) {
            continue;
        }
        let undone = undoing.undo(&entry).await;
        if undone.is_err() {
            broken.extend(Broken::by(&entry));
        }
        outcome.add(journal, &entry, undone)?;
    }
    // Read again: a container may have been stopped for its data just now.
    for entry in journal.entries()? {
        if let Obligation::Stopped { container } = &entry.obligation {
            let is_held = broken
                .iter()
                .any(|b| b.concerns(&entry.run_id, container, stack));
            let undone = if is_held {
                Err(format!(
                    "container {} stays stopped, because data it may use could not be put back",
                    container.name
                ))
            } else {
                start(engine, container).await
            };
            outcome.add(journal, &entry, undone)?;
        }
    }
    Ok(outcome)
}

impl Undone {
    fn add(
        &mut self,
        journal: &Journal,
        entry: &Entry,
        undone: Result<String, String>,
    ) -> io::Result<()> {
        let run = format!("left by run {} at {:.0}", entry.run_id, entry.at);
        match undone {
            Ok(sentence) => {
                journal.done(&entry.id)?;
                tracing::info!("{sentence} ({run})");
                self.undone.push(sentence);
            }
            Err(why) => {
                tracing::error!("{why} ({run}); it is tried again at the next start");
                let sentence = format!("{why} ({run})");
                if matches!(
                    entry.obligation,
                    Obligation::Swap { .. }
                        | Obligation::FileContent { .. }
                        | Obligation::QdrantReplaced { .. }
                        | Obligation::PostgresSwitched { .. }
                ) {
                    self.open_data.push(sentence.clone());
                }
                self.open.push(sentence);
            }
        }
        Ok(())
    }
}

/// Data that is not as it was.
struct Broken {
    run_id: String,
    /// The service whose data it is, when the obligation says so.
    service: Option<String>,
}

impl Broken {
    fn by(entry: &Entry) -> Option<Self> {
        let service = match &entry.obligation {
            Obligation::Swap { service, .. } => Some(service.clone()),
            Obligation::FileContent { .. } => None,
            _ => return None,
        };
        Some(Self {
            run_id: entry.run_id.clone(),
            service,
        })
    }

    /// Whether the container may use that data; when it cannot be told, it may.
    fn concerns(&self, run_id: &str, container: &ContainerRef, stack: &Stack) -> bool {
        if self.run_id != run_id {
            return false;
        }
        let owner = self.service.as_ref().and_then(|name| {
            let service = stack.services.iter().find(|s| s.name == *name)?;
            service.container.as_ref()
        });
        owner.is_none_or(|owner| owner.id == container.id)
    }
}

/// What undoing needs.
struct Undoing<'a> {
    config: &'a Config,
    journal: &'a Journal,
    engine: Option<&'a Engine>,
    stack: &'a Stack,
}

impl Undoing<'_> {
    async fn undo(&self, entry: &Entry) -> Result<String, String> {
        match &entry.obligation {
            Obligation::Stopped { container } => start(self.engine, container).await,
            Obligation::QdrantSnapshot {
                service,
                collection,
                before,
            } => {
                let what = format!("what is left of a Qdrant snapshot of {collection}");
                let found = self.service(service, &what)?;
                qdrant::undo_snapshot(self.config, found, collection, before)
                    .await
                    .map_err(|err| format!("cannot delete {what}: {err}"))?;
                Ok(format!("deleted {what}"))
            }
            Obligation::QdrantCollection {
                service,
                collection,
            } => {
                let what = format!("the temporary collection {collection}");
                let found = self.service(service, &what)?;
                qdrant::undo_collection(self.config, found, collection)
                    .await
                    .map_err(|err| format!("cannot delete {what}: {err}"))?;
                Ok(format!("deleted {what}"))
            }
            Obligation::QdrantReplaced {
                service,
                collection,
                previous,
                aliases,
            } => {
                let is_committed =
                    swap::is_committed(self.journal, &entry.run_id).map_err(|err| {
                        format!("cannot tell whether the restore of {service} is complete: {err}")
                    })?;
                if is_committed {
                    return Ok(format!("kept the restored collection {collection}"));
                }
                let what = format!("collection {collection} as it was before a restore");
                let found = self.service(service, &what)?;
                let previous = previous.as_ref();
                qdrant::undo_replaced(self.config, found, collection, previous, aliases)
                    .await
                    .map_err(|err| format!("cannot put back {what}: {err}"))?;
                Ok(format!("put back {what}"))
            }
            Obligation::Swap {
                service,
                root,
                staging,
                kept,
            } => {
                let failed = |why: String| {
                    format!(
                        "cannot put back the data of {service} in {}: {why}",
                        root.display()
                    )
                };
                self.stop_users(entry, service).await.map_err(failed)?;
                let (at, from, to) = (root.clone(), staging.clone(), kept.clone());
                tokio::task::spawn_blocking(move || swap::undo(&at, &from, &to))
                    .await
                    .map_err(|err| failed(err.to_string()))?
                    .map_err(|err| failed(err.to_string()))?;
                Ok(format!(
                    "ended the restore of {service} in {}",
                    root.display()
                ))
            }
            Obligation::FileContent { path, original } => {
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
                let is_committed =
                    swap::is_committed(self.journal, &entry.run_id).map_err(|err| {
                        format!("cannot tell whether the restore of {shown} is complete: {err}")
                    })?;
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
            Obligation::PostgresSessions { .. }
            | Obligation::PostgresDatabase { .. }
            | Obligation::PostgresSwitched { .. }
            | Obligation::PostgresGlobals { .. }
            | Obligation::PostgresThrowaway { .. } => self.postgres(entry).await,
        }
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

async fn stop(engine: &Engine, container: &ContainerRef) -> Result<(), String> {
    let grace = Duration::from_secs(container.stop_timeout.unwrap_or(0)).max(STOP_GRACE);
    match engine.stop(&container.id, grace).await {
        Err(err) if err.kind != EngineErrorKind::NoSuchContainer => Err(err.to_string()),
        _ => Ok(()),
    }
}

async fn start(engine: Option<&Engine>, container: &ContainerRef) -> Result<String, String> {
    let name = &container.name;
    let Some(engine) = engine else {
        return Err(format!(
            "container {name} was stopped and cannot be started without the Docker API: docker start {name}"
        ));
    };
    match engine.start(&container.id).await {
        Ok(()) => {}
        Err(err) if err.kind == EngineErrorKind::NoSuchContainer => {
            return Ok(format!(
                "container {name} was stopped and has been removed since: nothing to start"
            ));
        }
        Err(err) => return Err(err.to_string()),
    }
    // The next container may need this one: n8n exits when its database does not answer.
    let deadline = Instant::now() + HEALTHY_WITHIN;
    Ok(match engine.wait_healthy(&container.id, deadline).await {
        Ok(()) => format!("started container {name} again"),
        Err(err) => format!("started container {name} again, but {err}"),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use super::*;

    fn config() -> Config {
        Config::from_vars([("DOCKER_HOST".to_owned(), "none".to_owned())]).unwrap()
    }

    fn stopped(name: &str) -> Obligation {
        Obligation::Stopped {
            container: ContainerRef {
                id: name.repeat(8),
                name: name.into(),
                image: "x".into(),
                image_digest: "x".into(),
                running: true,
                stop_timeout: None,
                has_healthcheck: false,
            },
        }
    }

    fn file(path: &Path, original: Option<&str>) -> Obligation {
        Obligation::FileContent {
            path: path.to_owned(),
            original: original.map(str::to_owned),
        }
    }

    async fn run(journal: &Journal) -> Undone {
        undo_all(&config(), journal, None, &Stack::default())
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn files_get_their_content_back_and_added_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        let (conf, added) = (dir.path().join("conf"), dir.path().join("added"));
        let settings = "\n# Begin of what Lifeboat's restore needs; removed when recovery is over.\na = 'b'\n# End of what Lifeboat's restore needs.\n";
        std::fs::write(&conf, format!("changed{settings}")).unwrap();
        std::fs::write(&added, settings).unwrap();
        journal.record("r", &file(&conf, Some("first"))).unwrap();
        // The present's own file, back after a rollback: nothing of a restore is in it.
        let present = dir.path().join("present");
        std::fs::write(&present, "by ALTER SYSTEM").unwrap();
        journal
            .record("r", &file(&present, Some("second")))
            .unwrap();
        journal.record("r", &file(&added, None)).unwrap();
        let lost = dir.path().join("lost/conf");
        journal.record("r", &file(&lost, Some("x"))).unwrap();
        let outcome = run(&journal).await;
        assert_eq!(outcome.open, [""; 0]);
        assert_eq!(std::fs::read_to_string(&conf).unwrap(), "first");
        assert_eq!(
            std::fs::read_to_string(&present).unwrap(),
            "by ALTER SYSTEM"
        );
        assert!(!added.exists());
        assert_eq!(outcome.undone.len(), 4);
        assert_eq!(journal.pending().unwrap(), []);
    }

    #[tokio::test]
    async fn what_cannot_be_undone_stays_and_the_others_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        let conf = dir.path().join("conf");
        let settings = "\n# Begin of what Lifeboat's restore needs; removed when recovery is over.\n# End of what Lifeboat's restore needs.\n";
        std::fs::write(&conf, settings).unwrap();
        journal.record("run-7", &file(&conf, Some("x"))).unwrap();
        journal.record("run-7", &stopped("n8n")).unwrap();
        let snapshot = Obligation::QdrantSnapshot {
            service: "qdrant".into(),
            collection: "docs".into(),
            before: vec![],
        };
        journal.record("run-7", &snapshot).unwrap();
        let outcome = run(&journal).await;
        assert_eq!(std::fs::read_to_string(&conf).unwrap(), "x");
        assert_eq!(outcome.open.len(), 2);
        assert!(outcome.open[0].contains("docs"), "{:?}", outcome.open);
        assert!(
            outcome.open[1].contains("docker start n8n"),
            "{:?}",
            outcome.open
        );
        assert!(outcome.open[1].contains("run-7"), "{:?}", outcome.open);
        let left: Vec<_> = journal
            .pending()
            .unwrap()
            .into_iter()
            .map(|p| p.1)
            .collect();
        assert_eq!(left, [snapshot, stopped("n8n")]);
    }

    #[tokio::test]
    async fn no_container_is_started_on_data_that_could_not_be_put_back() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        journal.record("r", &stopped("postgres")).unwrap();
        // A directory where the file should be cannot be written over.
        journal.record("r", &file(dir.path(), Some("x"))).unwrap();
        journal.record("other", &stopped("ollama")).unwrap();
        let outcome = run(&journal).await;
        assert_eq!(outcome.undone, [""; 0]);
        assert!(
            outcome.open[0].contains("cannot read"),
            "{:?}",
            outcome.open
        );
        assert!(
            outcome.open[1].contains("docker start ollama"),
            "{:?}",
            outcome.open
        );
        assert!(
            outcome.open[2].contains("postgres stays stopped"),
            "{:?}",
            outcome.open
        );
    }
}
