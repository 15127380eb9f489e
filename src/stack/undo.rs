//! Undoes what an interrupted run left, at the next start, newest first.

mod containers;
mod obligations;

use std::io;

use super::engine::Engine;
use super::journal::{Entry, Journal, Obligation};
use super::{ContainerRef, Stack};
use crate::config::Config;
use crate::durable;
use containers::start;
use obligations::Undoing;

/// What came of it, one sentence an obligation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Undone {
    pub undone: Vec<String>,
    /// Still to be undone: each sentence says why, and the journal keeps the obligation.
    pub open: Vec<String>,
    /// Of these, those that leave a service's data half restored: nothing may be backed up or restored.
    pub open_data: Vec<String>,
}

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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use std::path::Path;

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
