//! Puts a backup's data directory back: unpacked beside the live one, swapped, recovered by the server.

mod preflight;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use async_trait::async_trait;

use super::access::Access;
use super::backup::read_control;
use super::facts::Facts;
use super::label::BackupLabel;
use super::listing;
use super::pitr::Replay;
use super::recovery::{self, AUTO_CONF};
use super::server::Server;
use super::session::Session;
use super::{locate, server, tablespaces};
use crate::archive::unpack::UnpackOptions;
use crate::config::Config;
use crate::repository::manifest::ArchiveRecord;
use crate::restore::{Restore, Way};
use crate::services::{Check, ErrorKind, RunContext, ServiceError};
use crate::stack::StackService;
use crate::stack::journal::Obligation;

/// How often the server is asked whether recovery is over.
const ASK_EVERY: Duration = Duration::from_millis(300);

/// Bytes of WAL that recovery replays in a second, on the slowest machines.
const SLOWEST_REPLAY_BYTES: u64 = 4 << 20;

/// Where the official image keeps its data when its environment does not say.
pub(super) const IMAGE_DATA: &str = "/var/lib/postgresql/data";

/// One PostgreSQL server, through its restore.
pub struct PostgresRestore {
    access: Access,
    root: PathBuf,
    timeout: Duration,
    /// Owner of the data that is there: the image's, when the backup comes from another.
    live_owner: Option<(u32, u32)>,
    placed: Vec<tablespaces::Placed>,
    /// `postgresql.auto.conf` was not in the backup.
    auto_conf_added: bool,
    /// WAL to go on with, beyond the backup's own.
    replay: Option<Replay>,
}

impl PostgresRestore {
    pub fn new(config: &Config, stack: &StackService) -> Result<Self, ServiceError> {
        let access = Access::new(config, stack);
        let root = data_root(&access).ok_or_else(|| {
            access.error(
                ErrorKind::Setup,
                "the server's data directory is not mounted here: mount the same volume or directory into Lifeboat's container (below /data), or set POSTGRES_DATA to where it is",
            )
        })?;
        let live_owner = std::fs::metadata(root.join("PG_VERSION"))
            .ok()
            .map(|metadata| (metadata.uid(), metadata.gid()));
        Ok(Self {
            access,
            root,
            timeout: config.restore_timeout,
            live_owner,
            placed: Vec::new(),
            auto_conf_added: false,
            replay: None,
        })
    }

    /// Recovers to where this leads, instead of the end of the backup.
    #[must_use]
    pub fn with_replay(mut self, replay: Option<Replay>) -> Self {
        self.replay = replay;
        self
    }

    fn facts(&self, record: &ArchiveRecord) -> Result<Facts, ServiceError> {
        Facts::of(&record.report).map_err(|why| self.access.error(ErrorKind::Damaged, why))
    }

    pub(super) fn owner(&self, facts: &Facts) -> (u32, u32) {
        self.live_owner
            .unwrap_or((facts.owner.uid, facts.owner.gid))
    }

    fn io_error(&self, doing: &str, err: &std::io::Error) -> ServiceError {
        self.access
            .error(ErrorKind::Io, format!("cannot {doing}: {err}"))
    }

    /// Refuses a staged directory that the server would start from with wrong data, or not at all.
    pub(super) fn check_staged(&self, staged: &Path, facts: &Facts) -> Result<(), ServiceError> {
        let damaged = |what: String| {
            self.access.error(
                ErrorKind::Damaged,
                format!("the unpacked backup cannot be started: {what}. Restore another backup"),
            )
        };
        let version = major_of(staged);
        if version != Some(facts.major) {
            return Err(damaged(format!(
                "its PG_VERSION is not {} as recorded",
                facts.major
            )));
        }
        let control = read_control(&self.access.service, staged)?;
        if control.system_identifier.to_string() != facts.system_identifier {
            return Err(damaged("its control file is of another cluster".to_owned()));
        }
        if facts.copied.is_some() {
            // What the server needs to start on it was there when it was imported.
            return Ok(());
        }
        let label = std::fs::read_to_string(staged.join("backup_label"))
            .map_err(|err| damaged(format!("its backup_label cannot be read ({err})")))?;
        let label = BackupLabel::parse(&label)
            .map_err(|why| damaged(format!("{why} in its backup_label")))?;
        if label.start.to_string() != facts.start_lsn || label.timeline != facts.timeline {
            return Err(damaged("its backup_label is of another backup".to_owned()));
        }
        for segment in [&facts.first_segment, &facts.last_segment] {
            if !staged.join("pg_wal").join(segment).is_file() {
                return Err(damaged(format!("the WAL segment {segment} is missing")));
            }
        }
        Ok(())
    }

    /// Blocks.
    fn complete(
        &mut self,
        staged: &Path,
        facts: &Facts,
        run: &RunContext,
    ) -> Result<(), ServiceError> {
        self.check_staged(staged, facts)?;
        let owner = self.owner(facts);
        tablespaces::place(
            &self.access,
            facts,
            (&self.root, staged),
            &run.run_id,
            owner,
            &mut self.placed,
        )
        .map_err(|err| self.io_error("put the tablespaces back", &err))?;
        // A copy replays what it brought, as after a crash: the settings would have it look for an archive.
        if facts.copied.is_none() {
            if let Some(replay) = &self.replay {
                replay
                    .stage(staged, owner)
                    .map_err(|err| self.io_error("put the WAL beside the backup's", &err))?;
            }
            self.auto_conf_added = add_settings(staged, facts, self.replay.as_ref(), owner)
                .map_err(|err| self.io_error("write the settings for recovery", &err))?;
        }
        own_directory(staged, facts, owner)
            .map_err(|err| self.io_error("set owner and mode of the data directory", &err))
    }

    /// Connects until the server has finished recovery.
    async fn recovered(&self) -> Result<(Session, Server), ServiceError> {
        // Replaying takes as long as it takes: a slow disk manages this much at least.
        let replayed = self.replay.as_ref().map_or(0, Replay::bytes);
        let deadline =
            Instant::now() + self.timeout + Duration::from_secs(replayed / SLOWEST_REPLAY_BYTES);
        loop {
            let why = match self.is_primary().await {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => "it is still recovering".to_owned(),
                Err(err) if err.is_transient() => err.message,
                Err(err) => return Err(err),
            };
            if Instant::now() >= deadline {
                return Err(self.access.error(
                    ErrorKind::Unreachable,
                    format!(
                        "the restored server was not ready within {} s: {why}. Its log says more; RESTORE_TIMEOUT allows more time",
                        self.timeout.as_secs()
                    ),
                ));
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    async fn is_primary(&self) -> Result<Option<(Session, Server)>, ServiceError> {
        let session = Session::open(&self.access).await?;
        let server = locate::probe(&session, &self.access).await?;
        if server.in_recovery {
            session.close().await;
            return Ok(None);
        }
        Ok(Some((session, server)))
    }

    /// Waits for the server and compares it with the record.
    async fn compare(&self, facts: &Facts) -> Result<Session, ServiceError> {
        let (session, server) = self.recovered().await?;
        if server.system_identifier.to_string() != facts.system_identifier {
            return Err(self.access.error(
                ErrorKind::Setup,
                format!(
                    "the server that answers is not the restored one: its system identifier is {}, the backup's {}. Does it use the data directory {}?",
                    server.system_identifier,
                    facts.system_identifier,
                    self.root.display()
                ),
            ));
        }
        let live = session.run("list the databases", server::databases).await?;
        // Later on, one may have been dropped.
        let goes_on = self.replay.as_ref().is_some_and(Replay::goes_on);
        let missing: Vec<_> = facts
            .databases
            .iter()
            .filter(|_| !goes_on)
            .filter(|d| !live.iter().any(|l| l.oid == d.oid && l.name == d.name))
            .map(|d| d.name.as_str())
            .collect();
        if !missing.is_empty() {
            return Err(self.access.error(
                ErrorKind::Damaged,
                format!(
                    "the restored server lacks databases that the backup recorded: {}",
                    missing.join(", ")
                ),
            ));
        }
        Ok(session)
    }

    /// Takes the settings out of the live file, byte for byte as it was. Blocks.
    fn remove_settings(&self) -> Result<(), ServiceError> {
        let path = self.root.join(AUTO_CONF);
        let put_back = || match self.before()? {
            Before::Same => Ok(()),
            Before::Content(original) => recovery::replace_content(&path, &original),
            Before::Absent => crate::durable::remove(&path).map(|_| ()),
        };
        put_back().map_err(|err| {
            self.io_error(
                &format!("take the settings for recovery out of {}", path.display()),
                &err,
            )
        })
    }

    /// The list of the backup's files says nothing of a directory that a server has written to.
    fn remove_list(&self) {
        let path = self.root.join(listing::NAME);
        if let Err(err) = crate::durable::remove(&path) {
            tracing::warn!(service = %self.access.service, "{} is of no use any more and cannot be removed: {err}", path.display());
        }
    }

    fn before(&self) -> std::io::Result<Before> {
        let text = match std::fs::read_to_string(self.root.join(AUTO_CONF)) {
            Ok(text) => text,
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok(Before::Same),
            Err(err) => return Err(err),
        };
        Ok(match recovery::without_settings(&text) {
            None => Before::Same,
            Some(text) if text.is_empty() && self.auto_conf_added => Before::Absent,
            Some(text) => Before::Content(text),
        })
    }
}

/// What the live `postgresql.auto.conf` was before the settings were added.
enum Before {
    /// They are not in it.
    Same,
    Absent,
    Content(String),
}

#[async_trait]
impl Restore for PostgresRestore {
    fn name(&self) -> &str {
        &self.access.service
    }

    fn way(&self) -> Way {
        Way::Swap {
            root: self.root.clone(),
        }
    }

    async fn preflight(&mut self, record: &ArchiveRecord) -> Vec<Check> {
        preflight::look(self, record).await
    }

    fn unpack_options(&self) -> UnpackOptions {
        UnpackOptions {
            publish_last: vec!["global/pg_control".to_owned()],
            owner: self.live_owner,
            // A data directory of its own; `POSTGRES_MODE=both` puts dumps beside it.
            except: vec![super::dump::facts::BESIDE.to_owned()],
            ..UnpackOptions::default()
        }
    }

    async fn prepare(
        &mut self,
        staged: &Path,
        record: &ArchiveRecord,
        run: &RunContext,
    ) -> Result<(), ServiceError> {
        let facts = self.facts(record)?;
        tokio::task::block_in_place(|| self.complete(staged, &facts, run))
    }

    /// The settings are journalled here and not by `prepare`: until the swap the path names the present's
    /// own file, which an undo must not overwrite. Before this point undoing the swap removes them with the
    /// restored data.
    async fn settle(
        &mut self,
        record: &ArchiveRecord,
        run: &RunContext,
    ) -> Result<(), ServiceError> {
        let facts = self.facts(record)?;
        let path = self.root.join(AUTO_CONF);
        let journal_error = |err: std::io::Error| self.io_error("write the journal", &err);
        let original = match self.before().map_err(journal_error)? {
            Before::Same => None,
            Before::Absent => Some(None),
            Before::Content(text) => Some(Some(text)),
        };
        let entry = match original {
            Some(original) => {
                let obligation = Obligation::FileContent { path, original };
                let entry = run.journal.record(&run.run_id, &obligation);
                Some(entry.map_err(journal_error)?)
            }
            None => None,
        };
        let compared = self.compare(&facts).await;
        if self.root.join("recovery.signal").exists() {
            // The server removes it when recovery is over: until then it does not start without the settings,
            // and they stay journalled.
            return compared.map(drop);
        }
        tokio::task::block_in_place(|| {
            self.remove_list();
            self.remove_settings()
        })?;
        if let Some(entry) = entry {
            run.journal.done(&entry).map_err(journal_error)?;
        }
        let session = compared?;
        let reloaded = session
            .run("reload the settings", |client| {
                client.execute("SELECT pg_reload_conf()", &[])
            })
            .await;
        session.close().await;
        match reloaded {
            // They have no effect on a primary, and are gone at the next start.
            Err(err) if err.kind == ErrorKind::Denied => {
                tracing::info!(service = %self.access.service, "{}", err.message);
                Ok(())
            }
            other => other.map(|_| ()),
        }
    }

    async fn rollback(&mut self) -> Result<(), ServiceError> {
        tokio::task::block_in_place(|| tablespaces::remove(&self.placed))
            .map_err(|err| self.io_error("remove the restored tablespaces", &err))?;
        self.placed.clear();
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), ServiceError> {
        for placed in self.placed.drain(..) {
            if let Some(beside) = placed.replaced() {
                tracing::warn!(
                    service = %self.access.service,
                    "the tablespace's data from before the restore is still at {}: remove it when it is not needed any more",
                    beside.display()
                );
            }
        }
        Ok(())
    }
}

/// Adds `recovery.signal` and the settings; whether there was no `postgresql.auto.conf`.
fn add_settings(
    staged: &Path,
    facts: &Facts,
    replay: Option<&Replay>,
    owner: (u32, u32),
) -> std::io::Result<bool> {
    let path = staged.join(AUTO_CONF);
    let (original, added) = match std::fs::read_to_string(&path) {
        Ok(text) => (text, false),
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => (String::new(), true),
        Err(err) => {
            let said = format!("cannot read {}: {err}", path.display());
            return Err(std::io::Error::new(err.kind(), said));
        }
    };
    let timeline = replay.map_or(facts.timeline, Replay::timeline);
    let target = replay.map_or(&[][..], Replay::settings);
    let text = recovery::with_settings(&original, timeline, target);
    if added {
        recovery::write_file(&path, &text, 0o600, owner)?;
    } else {
        recovery::replace_content(&path, &text)?;
    }
    recovery::write_file(&staged.join("recovery.signal"), "", 0o600, owner)?;
    Ok(added)
}

/// The server starts from a directory that is its own, and closed to others, only.
pub(super) fn own_directory(
    staged: &Path,
    facts: &Facts,
    owner: (u32, u32),
) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::os::unix::fs::chown(staged, Some(owner.0), Some(owner.1))?;
    let mode = 0o700 | (facts.owner.mode & 0o050);
    std::fs::set_permissions(staged, std::fs::Permissions::from_mode(mode))?;
    crate::durable::sync_dir(staged)
}

/// The major version that a data directory says it is of.
fn major_of(data: &Path) -> Option<u32> {
    std::fs::read_to_string(data.join("PG_VERSION"))
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// Whether a cluster is there that could be started: not after its data was lost.
pub fn has_cluster(config: &Config, stack: &StackService) -> bool {
    let root = data_root(&Access::new(config, stack));
    root.is_some_and(|root| read_control(&stack.name, &root).is_ok())
}

/// The data directory as this process sees it, without asking the server: it may be down.
pub(super) fn data_root(access: &Access) -> Option<PathBuf> {
    if let Some(data) = &access.data_override {
        return Some(data.clone());
    }
    let environment = &access.stack().environment;
    let local = |path: &str| access.local_path(Path::new(path), None);
    if let Some(data) = environment.get("PGDATA").filter(|v| !v.is_empty()) {
        return local(data);
    }
    // From 18 on the image keeps it in a directory of the version's.
    let versioned = environment
        .get("PG_MAJOR")
        .map(|major| format!("/var/lib/postgresql/{major}/docker"));
    [versioned.as_deref(), Some(IMAGE_DATA)]
        .into_iter()
        .flatten()
        .filter_map(local)
        .find(|path| path.is_dir())
        .or_else(|| local(IMAGE_DATA))
}
