//! PostgreSQL, hot and physical: the data directory is read beside the running server, inside a backup that
//! the server itself begins and ends ("Making a Base Backup Using the Low Level API" in its manual).
//!
//! [`Service::hold`] begins it on a session of its own ([`session`]) with a temporary slot that keeps the
//! WAL; [`Service::copy`] reads the tree by the server's own exclude rules ([`tree`], [`rules`]);
//! [`Service::freeze`] takes the control file, then ends the backup; [`Service::drain`] writes the control
//! file, the label and the WAL in between. [`restore`] puts all of it back. `BASE_BACKUP` is not used: the
//! official image's `pg_hba.conf` lets no replication connection in.

pub mod access;
pub mod backup;
mod check;
pub mod control;
pub mod databases;
pub mod dump;
pub mod extract;
pub mod facts;
mod files;
pub mod label;
pub mod listing;
mod locate;
pub mod pages;
pub mod pitr;
pub mod platform;
pub mod records;
mod recovery;
mod report;
pub mod restore;
pub mod role;
mod room;
pub mod rules;
pub mod server;
pub mod session;
mod tablespaces;
pub mod throwaway;
pub mod tools;

pub mod tree;
pub mod undo;
pub mod wal;

use async_trait::async_trait;
use jiff::Timestamp;

use self::access::Access;
use self::backup::{CopyError, Noted, SegmentRun, Source};
use self::control::ControlFile;
use self::facts::DatabaseFacts;
use self::label::BackupLabel;
use self::listing::Listing;
use self::pages::DamagedPages;
use self::room::{RoomWatch, Unkept};
use self::server::Stopped;
use self::session::Session;
use self::tree::Entry;
use self::wal::Lsn;
use super::{
    Check, ErrorKind, PointInTime, RunContext, Service, ServiceError, ServiceKind, ServiceReport,
};
use crate::archive::ArchiveWriter;
use crate::config::Config;
use crate::stack::StackService;

pub use self::dump::{PostgresBoth, PostgresDump, PostgresDumpRestore, restores_dumps};
pub use self::facts::Facts;
pub use self::files::PostgresFiles;
pub use self::restore::{PostgresRestore, has_cluster};

/// One PostgreSQL server, through its backup.
pub struct Postgres {
    access: Access,
    held: Option<Held>,
}

/// What lives from `hold` to `release`.
struct Held {
    session: Session,
    /// Present once the backup has begun.
    begun: Option<Begun>,
}

struct Begun {
    source: Source,
    slot: String,
    kept: Kept,
    databases: Vec<DatabaseFacts>,
    tablespaces: Vec<u32>,
    /// The files that are in the archive so far.
    listing: Listing,
    damaged: DamagedPages,
    /// Where replay will begin.
    start: Lsn,
    frozen: Option<Frozen>,
}

/// Whether a slot keeps the WAL until it is copied.
enum Kept {
    Watched(RoomWatch),
    Not(Unkept),
}

/// What `freeze` fixed.
struct Frozen {
    control: ControlFile,
    stopped: Stopped,
    stop: Lsn,
    label: BackupLabel,
    segments: SegmentRun,
    databases: Vec<DatabaseFacts>,
}

impl Postgres {
    pub fn new(config: &Config, stack: &StackService) -> Result<Self, ServiceError> {
        let access = Access::new(config, stack);
        // Without an address nothing below can work: say so before anything is begun.
        access.attempts()?;
        Ok(Self { access, held: None })
    }

    async fn begin(&mut self, run: &RunContext) -> Result<(), ServiceError> {
        let access = self.access.clone();
        let held = self.held.insert(Held {
            session: Session::open(&access).await?,
            begun: None,
        });
        let session = &held.session;
        let server = locate::probe(session, &access).await?;
        locate::refusal(&server).map_err(|why| access.error(ErrorKind::Setup, why))?;
        let source = locate::source(session, &access, server).await?;

        let listing = source.listing(&run.scratch)?;
        let slot = slot_name(&run.run_id);
        let (name, label) = (slot.clone(), format!("lifeboat {}", run.run_id));
        let major = source.server.major();
        // Nothing of this outlives the session, so there is nothing for the journal: the server drops the
        // slot and gives up the backup when the connection ends, however it ends.
        let without_slot = session
            .run("create a replication slot", move |client| {
                server::create_slot(client, &name)
            })
            .await?
            .err();
        let kept = if let Some(why) = without_slot {
            tracing::warn!(service = %access.service, "no replication slot keeps the WAL during the backup: {why}");
            Kept::Not(Unkept::Refused(why))
        } else {
            Kept::Watched(RoomWatch::begin(session, source.wal_directory()?, &slot).await?)
        };
        let (databases, tablespaces) = session
            .run("list the databases", |client| {
                Ok((server::databases(client)?, server::tablespaces(client)?))
            })
            .await?;
        let start = session
            .run("begin the backup", move |client| {
                Ok(server::start(client, major, &label))
            })
            .await?
            .map_err(|err| locate::start_error(&source, err))?;
        let start = Lsn::parse(&start).ok_or_else(|| {
            access.error(
                ErrorKind::Damaged,
                format!("the server began the backup at \"{start}\""),
            )
        })?;
        held.begun = Some(Begun {
            source,
            slot,
            kept,
            databases,
            tablespaces,
            listing,
            damaged: DamagedPages::default(),
            start,
            frozen: None,
        });
        Ok(())
    }

    fn begun(&mut self) -> Result<(&Session, &mut Begun), ServiceError> {
        let not_begun = self
            .access
            .error(ErrorKind::Setup, "the backup was not begun");
        match &mut self.held {
            Some(Held {
                session,
                begun: Some(begun),
            }) => Ok((session, begun)),
            _ => Err(not_begun),
        }
    }
}

#[async_trait]
impl Service for Postgres {
    fn kind(&self) -> ServiceKind {
        ServiceKind::Postgres
    }

    fn name(&self) -> &str {
        &self.access.service
    }

    async fn check(&self) -> Vec<Check> {
        check::check(&self.access).await
    }

    async fn estimate(&self) -> u64 {
        match estimate(&self.access).await {
            Ok(bytes) => bytes,
            Err(err) => {
                tracing::debug!(%err, "the size of the data directory is not known");
                0
            }
        }
    }

    async fn hold(&mut self, run: &RunContext) -> Result<(), ServiceError> {
        self.begin(run).await
    }

    async fn copy(&mut self, archive: &mut ArchiveWriter) -> Result<(), ServiceError> {
        let (session, begun) = self.begun()?;
        let mut heartbeat = || {
            session
                .run_blocking("reach the server during the copy", |client| {
                    client.batch_execute("SELECT 1")
                })
                .map_err(|err| ServiceError {
                    message: format!(
                        "{}; its end ended the backup, which has to begin anew",
                        err.message
                    ),
                    ..err
                })
        };
        let Begun {
            source,
            listing,
            damaged,
            start,
            ..
        } = begun;
        let mut noted = Noted { listing, damaged };
        tokio::task::block_in_place(|| source.copy(archive, *start, &mut noted, &mut heartbeat))
    }

    async fn freeze(&mut self) -> Result<PointInTime, ServiceError> {
        let (session, begun) = self.begun()?;
        // The last file of the copy, still inside the backup.
        let control = tokio::task::block_in_place(|| begun.source.control())?;
        let major = begun.source.server.major();
        let stopped = session
            .run("end the backup", move |client| server::stop(client, major))
            .await?;
        let at = Timestamp::now();
        let (databases, tablespaces) = session
            .run("list the databases", |client| {
                Ok((server::databases(client)?, server::tablespaces(client)?))
            })
            .await?;
        let frozen = begun.frozen_at(control, stopped, databases, &tablespaces)?;
        let point = PointInTime {
            at,
            coordinate: Some(frozen.stopped.lsn.clone()),
        };
        begun.frozen = Some(frozen);
        Ok(point)
    }

    async fn drain(&mut self, archive: &mut ArchiveWriter) -> Result<ServiceReport, ServiceError> {
        let access = self.access.clone();
        let (session, begun) = self.begun()?;
        let Some(frozen) = begun.frozen.take() else {
            return Err(access.error(ErrorKind::Setup, "the backup was not ended"));
        };
        tokio::task::block_in_place(|| begun.write_last(&frozen, archive))?;
        let slot = begun.slot.clone();
        session
            .run("drop the replication slot", move |client| {
                server::drop_slot(client, &slot)
            })
            .await?;
        begun.report(frozen).await
    }

    async fn release(&mut self) -> Result<(), ServiceError> {
        if let Some(held) = self.held.take() {
            // What watches over the slot is a user of the session, too.
            drop(held.begun);
            held.session.close().await;
        }
        Ok(())
    }
}

impl Begun {
    fn unkept(&self) -> Option<&Unkept> {
        match &self.kept {
            Kept::Watched(watch) => watch.given_up(),
            Kept::Not(unkept) => Some(unkept),
        }
    }

    /// Checks what the server said at the end.
    fn frozen_at(
        &self,
        control: ControlFile,
        stopped: Stopped,
        mut databases: Vec<DatabaseFacts>,
        tablespaces: &[u32],
    ) -> Result<Frozen, ServiceError> {
        let access = &self.source.access;
        let odd = |what: String| {
            access.error(
                ErrorKind::Damaged,
                format!("the server ended the backup with what cannot be restored: {what}"),
            )
        };
        let label = BackupLabel::parse(&stopped.label)
            .map_err(|why| odd(format!("{why} in its backup label")))?;
        let stop = Lsn::parse(&stopped.lsn)
            .ok_or_else(|| odd(format!("it stopped at \"{}\"", stopped.lsn)))?;
        let timeline = stopped
            .segment
            .get(..8)
            .and_then(|hex| u32::from_str_radix(hex, 16).ok())
            .ok_or_else(|| odd(format!("it writes the WAL segment \"{}\"", stopped.segment)))?;
        if label.from_standby || label.timeline != timeline || stop < label.start {
            return Err(access.error(
                ErrorKind::Setup,
                format!(
                    "the server changed its role during the backup (timeline {} at {}, then {timeline} at {stop}): back up again",
                    label.timeline, label.start
                ),
            ));
        }
        if *tablespaces != *self.tablespaces {
            // Replaying that would touch the tablespace's live directory.
            return Err(access.error(
                ErrorKind::Unreachable,
                "a tablespace was created or dropped during the backup: back up again",
            ));
        }
        let size = self
            .source
            .server
            .segment_size()
            .ok_or_else(|| odd("its WAL segments have an impossible size".to_owned()))?;
        // What was there before and after was there at the stop.
        databases.retain(|after| {
            self.databases
                .iter()
                .any(|before| before.oid == after.oid && before.name == after.name)
        });
        Ok(Frozen {
            segments: SegmentRun::between(timeline, size, label.start, stop),
            control,
            stopped,
            stop,
            label,
            databases,
        })
    }

    /// Writes what makes the copy restorable.
    fn write_last(
        &mut self,
        frozen: &Frozen,
        archive: &mut ArchiveWriter,
    ) -> Result<(), ServiceError> {
        let source = &self.source;
        let meta = source.small_file_meta()?;
        let write = |archive: &mut ArchiveWriter, name: &str, body: &[u8]| {
            archive
                .bytes(name, &meta, body)
                .map_err(|err| source.copy_error(CopyError::from(err)))
        };
        let (label, map) = (&frozen.stopped.label, &frozen.stopped.tablespace_map);
        let control = ("global/pg_control", frozen.control.bytes.as_slice());
        let mut first = vec![("backup_label", label.as_bytes())];
        if !map.trim().is_empty() {
            first.push(("tablespace_map", map.as_bytes()));
        }
        let unlisted = |err| source.copy_error(CopyError::Listing(err));
        for (name, body) in first.iter().chain([&control]) {
            let added = self.listing.add_bytes(name, meta.mtime_secs, body);
            added.map_err(unlisted)?;
        }
        for (name, body) in first {
            write(archive, name, body)?;
        }
        source.write_wal(archive, &frozen.segments, &|| self.unkept().cloned())?;
        let list = self
            .listing
            .finish(frozen.label.timeline, frozen.label.start, frozen.stop)
            .map_err(unlisted)?;
        archive
            .spooled(listing::NAME, &meta, list)
            .map_err(|err| source.copy_error(CopyError::from(err)))?;
        write(archive, control.0, control.1)
    }
}

async fn estimate(access: &Access) -> Result<u64, ServiceError> {
    let session = Session::open(access).await?;
    let source = match locate::probe(&session, access).await {
        Ok(server) => locate::source(&session, access, server).await,
        Err(err) => Err(err),
    };
    session.close().await;
    let source = source?;
    tokio::task::block_in_place(|| {
        let mut bytes = 0_u64;
        source
            .walk::<CopyError>(&mut |entry| {
                if let Entry::File { path, .. } = entry {
                    // A file that vanished has no size.
                    bytes += std::fs::symlink_metadata(&path).map_or(0, |m| m.len());
                }
                Ok(())
            })
            .map_err(|err| source.copy_error(err))?;
        Ok(bytes)
    })
}

/// A slot's name holds lower-case letters, digits and underscores, at most 63.
fn slot_name(run_id: &str) -> String {
    let id = run_id.chars().map(|c| match c.to_ascii_lowercase() {
        c @ ('a'..='z' | '0'..='9') => c,
        _ => '_',
    });
    "lifeboat_".chars().chain(id).take(63).collect()
}

/// Whether a configuration file still holds what only a restore's recovery needs.
pub(crate) fn holds_recovery_settings(text: &str) -> bool {
    recovery::without_settings(text).is_some()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use super::*;

    #[test]
    fn slot_names_are_names_the_server_takes() {
        assert_eq!(
            slot_name("20261122T230333Z-a1B2c3"),
            "lifeboat_20261122t230333z_a1b2c3"
        );
        assert_eq!(slot_name(&"ö-".repeat(60)).chars().count(), 63);
        assert!(slot_name(&"ö-".repeat(60)).is_ascii());
    }
}
