//! Brings collections back into a running server, and the server back if that fails.
//!
//! Where the name is free, a collection is uploaded under it. Where it is taken, the upload goes under a
//! temporary name first: recovering over a live collection keeps that one's configuration, and would replace
//! it before anything is verified. Only when the whole archive is on the server and every count is right are
//! the live collections replaced, one after the other: a snapshot is kept as the way back, the collection
//! deleted, and recovered from the file that the upload left on the server. So nothing is staged here.
//!
//! A replaced collection takes its size three times more on the server for a while: the upload's file, the
//! temporary collection, and the snapshot of what was there.

mod switch;
mod upload;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use qdrant_client::qdrant::CollectionStatus;

use super::server::{Address, Server};
use super::transfer::USUAL_DIRECTORY;
use super::{Facts, PointsSeen, names, version_numbers};
use crate::config::Config;
use crate::repository::manifest::ArchiveRecord;
use crate::repository::reader::ArchiveReader;
use crate::restore::{Restore, Way};
use crate::services::{Check, ErrorKind, RunContext, ServiceError};
use crate::stack::StackService;
use crate::stack::journal::{EntryId, Obligation, QdrantPrevious};

const POLL: Duration = Duration::from_millis(250);

/// Qdrant's restore.
pub struct QdrantRestore {
    name: String,
    address: Address,
    timeout: Duration,
    /// Where the server may keep its snapshots, likeliest first.
    directories: Vec<String>,
    run: Option<RunContext>,
    /// Exact counts of what the archive's snapshots hold, by collection.
    counts: BTreeMap<String, u64>,
    undo: Undo,
}

/// What a rollback puts back, and `finish` drops.
#[derive(Default)]
struct Undo {
    /// The server's aliases before anything was changed.
    aliases: BTreeMap<String, String>,
    temporary: Vec<Temporary>,
    replaced: Vec<Replaced>,
    way_back: Vec<WayBack>,
    /// Aliases were changed.
    aliased: bool,
}

/// A collection under a temporary name.
struct Temporary {
    /// The name in the backup.
    collection: String,
    name: String,
    file_name: String,
    entry: EntryId,
}

/// A collection under its own name, new or in another's place.
struct Replaced {
    collection: String,
    previous: Option<QdrantPrevious>,
    entry: EntryId,
}

/// A snapshot of what was live.
struct WayBack {
    collection: String,
    before: Vec<String>,
    snapshot: Option<String>,
    entry: EntryId,
}

impl QdrantRestore {
    pub fn new(config: &Config, service: &StackService) -> Result<Self, ServiceError> {
        let configured = service.environment.get("QDRANT__STORAGE__SNAPSHOTS_PATH");
        let configured = configured.filter(|path| !path.is_empty()).map(|path| {
            // Relative to the image's working directory.
            let path = path.trim_start_matches("./");
            Path::new("/qdrant").join(path).display().to_string()
        });
        let usual = USUAL_DIRECTORY.to_owned();
        let mut directories: Vec<String> = configured.into_iter().collect();
        if !directories.contains(&usual) {
            directories.push(usual);
        }
        Ok(Self {
            name: service.name.clone(),
            address: Address::new(config, service)?,
            timeout: config.restore_timeout,
            directories,
            run: None,
            counts: BTreeMap::new(),
            undo: Undo::default(),
        })
    }

    fn facts(&self, record: &ArchiveRecord) -> Result<Facts, ServiceError> {
        let facts: Facts = serde_json::from_value(record.report.facts.clone()).map_err(|e| {
            self.damaged(format!(
                "the backup's list of collections cannot be read ({e}): it was written by another version or is damaged"
            ))
        })?;
        match facts.collections.iter().find(|c| !names::is_plain(&c.name)) {
            None => Ok(facts),
            Some(bad) => Err(self.damaged(format!(
                "the backup names a collection \"{}\", which no collection can be called",
                bad.name.escape_debug()
            ))),
        }
    }

    async fn ready(&self) -> Result<Server, ServiceError> {
        ready_within(&self.address, self.timeout).await
    }

    fn journal(&self, obligation: &Obligation) -> Result<EntryId, ServiceError> {
        let run = self.run()?;
        tokio::task::block_in_place(|| run.journal.record(&run.run_id, obligation))
            .map_err(|e| self.unjournalled(&e))
    }

    fn strike(&self, entry: &EntryId) -> Result<(), ServiceError> {
        let run = self.run()?;
        tokio::task::block_in_place(|| run.journal.done(entry)).map_err(|e| self.unjournalled(&e))
    }

    fn run(&self) -> Result<&RunContext, ServiceError> {
        self.run.as_ref().ok_or_else(|| {
            ServiceError::new(&self.name, ErrorKind::Setup, "its restore was not begun")
        })
    }

    /// Writes down what a collection was, before it is replaced or made.
    fn replacing(
        &mut self,
        collection: &str,
        previous: Option<QdrantPrevious>,
    ) -> Result<(), ServiceError> {
        let entry = self.journal(&Obligation::QdrantReplaced {
            service: self.name.clone(),
            collection: collection.to_owned(),
            previous: previous.clone(),
            aliases: self.undo.aliases.clone(),
        })?;
        self.undo.replaced.push(Replaced {
            collection: collection.to_owned(),
            previous,
            entry,
        });
        Ok(())
    }

    /// What is not yet as the record says; `None` when everything is. Yellow and grey come back as sentences.
    async fn trouble(
        &self,
        server: &Server,
        facts: &Facts,
    ) -> Result<Option<Trouble>, ServiceError> {
        server.ready().await?;
        for collection in &facts.collections {
            let name = &collection.name;
            let Some(count) = server.count(name).await? else {
                return Ok(Some(Trouble::Wrong(format!(
                    "collection {name} is missing"
                ))));
            };
            let seen = match self.counts.get(name) {
                Some(exact) => PointsSeen::one(*exact),
                None => collection.points,
            };
            if count < seen.least {
                return Ok(Some(Trouble::Wrong(format!(
                    "collection {name} has {count} points instead of {}",
                    seen.least
                ))));
            }
            if count > seen.most {
                tracing::info!("collection {name} is being written to again: {count} points");
            }
        }
        let aliases = server.aliases().await?;
        for (alias, collection) in &facts.aliases {
            if aliases.get(alias) != Some(collection) {
                return Ok(Some(Trouble::Wrong(format!(
                    "alias {alias} does not point to {collection}"
                ))));
            }
        }
        let mut busy = BTreeSet::new();
        for collection in &facts.collections {
            let name = &collection.name;
            match server.status(name).await? {
                Some((CollectionStatus::Green, _)) => {}
                // Waits for a write before it optimises: green will not come by itself.
                Some((CollectionStatus::Grey, _)) => {
                    tracing::info!("collection {name} is grey: it is optimised at the next write");
                }
                Some((CollectionStatus::Yellow, _)) => {
                    busy.insert(name.clone());
                }
                Some((_, why)) => {
                    return Ok(Some(Trouble::Wrong(format!(
                        "collection {name} is not healthy: {why}"
                    ))));
                }
                None => {
                    return Ok(Some(Trouble::Wrong(format!(
                        "collection {name} is missing"
                    ))));
                }
            }
        }
        Ok((!busy.is_empty()).then(|| Trouble::Busy(busy.into_iter().collect())))
    }

    fn damaged(&self, message: String) -> ServiceError {
        ServiceError::new(&self.name, ErrorKind::Damaged, message)
    }

    fn unreadable(&self, error: &std::io::Error) -> ServiceError {
        let message = format!("cannot read the archive: {error}");
        ServiceError::new(&self.name, ErrorKind::Io, message)
    }

    fn unjournalled(&self, error: &std::io::Error) -> ServiceError {
        ServiceError::new(&self.name, ErrorKind::Io, error.to_string())
    }
}

/// The server once it is ready: it may have been started a moment ago.
pub(super) async fn ready_within(
    address: &Address,
    timeout: Duration,
) -> Result<Server, ServiceError> {
    let deadline = Instant::now() + timeout;
    loop {
        let trouble = match address.connect().await {
            Ok(server) => match server.ready().await {
                Ok(()) => return Ok(server),
                Err(e) => e,
            },
            Err(e) => e,
        };
        if !trouble.is_transient() || Instant::now() >= deadline {
            return Err(trouble);
        }
        tokio::time::sleep(POLL).await;
    }
}

enum Trouble {
    Wrong(String),
    /// Collections still being optimised.
    Busy(Vec<String>),
}

#[async_trait]
impl Restore for QdrantRestore {
    fn name(&self) -> &str {
        &self.name
    }

    fn way(&self) -> Way {
        Way::Online
    }

    async fn preflight(&mut self, record: &ArchiveRecord) -> Vec<Check> {
        let subject = |what: &str| format!("{}: {what}", self.name);
        let mut checks = Vec::new();
        let facts = match self.facts(record) {
            Ok(facts) => facts,
            Err(e) => return vec![Check::bad(subject("collections"), e.message)],
        };
        checks.push(Check::good(
            subject("collections"),
            format!("{} to restore", facts.collections.len()),
        ));
        let server = match self.address.connect().await {
            Ok(server) => server,
            Err(e) => {
                checks.push(Check::bad(subject("connection"), e.message));
                return checks;
            }
        };
        let version = server.version().await.and_then(|live| {
            fits(&facts.version, &live).map_err(|why| server.error(ErrorKind::Setup, why))?;
            Ok(format!(
                "backed up from {}, restored into {live}",
                facts.version
            ))
        });
        let rights = server.may_write().await;
        let names = self.names_fit(&server, &facts).await;
        let outcomes = [
            ("version", version),
            ("rights", rights.map(|()| "the key may restore".to_owned())),
            ("names and space", names),
        ];
        checks.extend(outcomes.map(|(what, outcome)| Check {
            subject: subject(what),
            outcome: outcome.map_err(|e| e.message),
            caution: false,
        }));
        checks
    }

    async fn apply(
        &mut self,
        archive: ArchiveReader,
        record: &ArchiveRecord,
        run: &RunContext,
    ) -> Result<(), ServiceError> {
        let facts = self.facts(record)?;
        self.run = Some(run.clone());
        let server = self.ready().await?;
        fits(&facts.version, &server.version().await?)
            .map_err(|why| server.error(ErrorKind::Setup, why))?;
        self.undo.aliases = server.aliases().await?;
        self.upload_all(&server, archive.into_async(), &facts)
            .await?;
        self.switch_all(&server, &facts).await
    }

    async fn settle(
        &mut self,
        record: &ArchiveRecord,
        _run: &RunContext,
    ) -> Result<(), ServiceError> {
        let facts = self.facts(record)?;
        let deadline = Instant::now() + self.timeout;
        let server = self.ready().await?;
        loop {
            let is_late = Instant::now() >= deadline;
            match self.trouble(&server, &facts).await {
                Ok(None) => return Ok(()),
                Ok(Some(Trouble::Busy(names))) if is_late => {
                    tracing::warn!(
                        "still being optimised after {} s, and usable meanwhile: {}",
                        self.timeout.as_secs(),
                        names.join(", ")
                    );
                    return Ok(());
                }
                Ok(Some(Trouble::Wrong(why))) if is_late => {
                    return Err(self.damaged(format!("after the restore {why}: see its log")));
                }
                Err(e) if is_late || !e.is_transient() => return Err(e),
                _ => {}
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn rollback(&mut self) -> Result<(), ServiceError> {
        if self.run.is_none() {
            return Ok(());
        }
        let server = self.ready().await?;
        self.roll_back_all(&server).await
    }

    async fn finish(&mut self) -> Result<(), ServiceError> {
        if self.run.is_none() {
            return Ok(());
        }
        // From here on the new collections stay, also after a kill.
        for replaced in std::mem::take(&mut self.undo.replaced) {
            self.strike(&replaced.entry)?;
        }
        let server = self.ready().await?;
        self.drop_way_back(&server).await?;
        self.drop_temporary(&server).await
    }
}

impl QdrantRestore {
    /// Whether the backup's names are free for it, and what it takes on the server.
    async fn names_fit(&self, server: &Server, facts: &Facts) -> Result<String, ServiceError> {
        let live = server.collections().await?;
        let ours: BTreeSet<&str> = facts.collections.iter().map(|c| c.name.as_str()).collect();
        let clash = facts
            .aliases
            .keys()
            .find(|alias| live.contains(*alias) && !ours.contains(alias.as_str()));
        if let Some(alias) = clash {
            return Err(self.damaged(format!(
                "{alias} is an alias in the backup and a collection on the server: rename or delete that collection first"
            )));
        }
        let (mut total, mut replaced) = (0_u64, 0_u64);
        for collection in &facts.collections {
            total += collection.bytes;
            if live.contains(&collection.name) {
                replaced += collection.bytes;
            }
        }
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        Ok(format!(
            "the server needs about {} MiB of free disk for a while, and {} MiB for good; {} collections are replaced",
            mib(total * 2 + replaced * 2),
            mib(total),
            facts
                .collections
                .iter()
                .filter(|c| live.contains(&c.name))
                .count()
        ))
    }
}

/// The server's rule for snapshots: the same minor version, or the next.
fn fits(backed_up: &str, live: &str) -> Result<(), String> {
    let (Some(old), Some(new)) = (version_numbers(backed_up), version_numbers(live)) else {
        return Err(format!(
            "cannot compare the backup's Qdrant version ({backed_up}) with the server's ({live})"
        ));
    };
    if old.0 == new.0 && (new.1 == old.1 || new.1 == old.1 + 1) {
        return Ok(());
    }
    Err(format!(
        "the backup comes from Qdrant {backed_up} and the server is {live}: a snapshot can be restored by the same or the next minor version; set the image to v{}.{} or v{0}.{}, restore, then upgrade step by step",
        old.0,
        old.1,
        old.1 + 1
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_or_the_next_minor_version_takes_a_snapshot() {
        assert!(fits("1.18.3", "1.18.0").is_ok());
        assert!(fits("1.18.3", "v1.19.2").is_ok());
        let refused = fits("1.18.3", "1.20.0").err().unwrap_or_default();
        assert!(refused.contains("v1.18 or v1.19"), "{refused}");
        assert!(fits("1.18.3", "1.17.9").is_err());
        assert!(fits("1.18.3", "2.18.3").is_err());
        assert!(fits("1.18.3", "dev").is_err());
    }
}
