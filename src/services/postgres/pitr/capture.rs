//! Copies WAL into the repository as the server writes it.

mod fetch;
mod last;

use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;

use super::guard::{self, Guard, GuardError, Kept};
use crate::config::Config;
use crate::repository::Repository;
use crate::repository::wal::Stretch;
use crate::services::postgres::access::Access;
use crate::services::postgres::locate;
use crate::services::postgres::room::RoomWatch;
use crate::services::postgres::session::{Session, query_error};
use crate::services::postgres::wal::{Lsn, SegmentSize};
use crate::services::{ErrorKind, ServiceError};
use crate::stack::StackService;
use fetch::Fetch;

/// One server's WAL, being fetched.
pub struct Capture {
    access: Access,
    repository: Arc<Repository>,
    guard: Guard,
    most_wal_bytes: u64,
    open: Option<Open>,
}

struct Open {
    session: Session,
    /// The disk is watched between steps, too, and while a repository does not answer.
    room: RoomWatch,
    directory: PathBuf,
    size: SegmentSize,
    system: u64,
    line: Option<Line>,
    /// When the repository was told last that nothing new was there.
    seen: Option<Timestamp>,
}

impl Open {
    async fn close(self) {
        // It is a user of the session, too.
        drop(self.room);
        self.session.close().await;
    }
}

/// The timeline being fetched.
struct Line {
    timeline: u32,
    /// Everything before it is stored.
    end: u64,
    /// The segment that the timeline began in; its first pages may say an earlier one.
    first_segment: Option<u64>,
    /// Stretches of the unit that is not complete yet.
    parts: Vec<Stretch>,
}

/// What one step found and did.
#[derive(Debug, Clone, Serialize)]
pub struct Step {
    pub service: String,
    pub system: u64,
    pub timeline: u32,
    pub end: u64,
    /// Every transaction acknowledged by then is stored.
    pub until: Timestamp,
    pub stored_bytes: u64,
    pub kept: Kept,
    /// WAL that was gone before it could be fetched.
    pub gap: Option<Gap>,
    /// The first step on this timeline since the session began.
    pub is_new: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Gap {
    pub from: u64,
    pub to: u64,
}

impl Capture {
    pub fn new(
        config: &Config,
        stack: &StackService,
        repository: Arc<Repository>,
    ) -> Result<Self, ServiceError> {
        let access = Access::new(config, stack);
        access.attempts()?;
        let own: String = repository.id().chars().take(12).collect();
        Ok(Self {
            guard: Guard {
                state: config.state.clone(),
                service: access.service.clone(),
                slot: format!("lifeboat_pitr_{own}"),
                cap: None,
            },
            access,
            repository,
            most_wal_bytes: config.pitr.max_wal_bytes,
            open: None,
        })
    }

    pub fn service(&self) -> &str {
        &self.access.service
    }

    /// Fetches what is there; `None` while the server is in recovery. After an error the next step begins anew; but
    /// when it is the repository that failed, the server's disk is watched on.
    pub async fn step(&mut self) -> Result<Option<Step>, ServiceError> {
        match self.try_step().await {
            Ok(step) => Ok(step),
            Err(StepError::Repository(err)) => {
                if let Some(open) = &mut self.open {
                    open.line = None;
                }
                Err(err)
            }
            Err(StepError::Server(err)) => {
                if let Some(open) = self.open.take() {
                    open.close().await;
                }
                Err(err)
            }
        }
    }

    /// Whether a session is open, and its server's disk is watched.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Ends the session; the slot stays.
    pub async fn close(mut self) {
        if let Some(open) = self.open.take() {
            open.close().await;
        }
    }

    /// Drops the slot and takes back the cap; says what was done.
    pub async fn give_back(&mut self) -> Result<Vec<String>, ServiceError> {
        let session = Session::open(&self.access).await?;
        let guard = self.guard.clone();
        let told = session
            .run("give the replication slot back", move |client| {
                Ok(guard.give_back(client))
            })
            .await;
        session.close().await;
        told?.map_err(|err| guard_error(&self.access, "give the replication slot back", err))
    }

    async fn try_step(&mut self) -> Result<Option<Step>, StepError> {
        if self.open.is_none() {
            let Some(open) = self.begin().await? else {
                return Ok(None);
            };
            self.open = Some(open);
        }
        let Some(open) = &mut self.open else {
            return Ok(None);
        };
        let guard = self.guard.clone();
        let kept = open
            .session
            .run("look after the replication slot", move |client| {
                Ok(guard.keep(client))
            })
            .await?;
        let kept =
            kept.map_err(|err| guard_error(&self.access, "look after the replication slot", err))?;
        // After the slot: what is looked at may not be removed before it is read.
        let Some(look) = open
            .session
            .run("ask where the WAL ends", guard::look)
            .await?
        else {
            return Ok(None);
        };
        let fetch = Fetch {
            access: &self.access,
            repository: &self.repository,
            look,
            last: last::path(&self.guard.state, &self.access.service),
        };
        let mut whole: Option<Step> = None;
        loop {
            let step = tokio::task::block_in_place(|| fetch.run(open, kept.clone()))?;
            // After each unit: while a long backlog is fetched, the server goes on towards the slot's cap.
            let guard = self.guard.clone();
            let to = open.size.start_of(open.size.segment_at(Lsn(step.end))).0;
            open.session
                .run("advance the replication slot", move |client| {
                    guard.advance(client, to)
                })
                .await?;
            let is_all = step.end >= look.flushed;
            let step = match whole.take() {
                None => step,
                Some(before) => Step {
                    stored_bytes: before.stored_bytes + step.stored_bytes,
                    gap: before.gap.or(step.gap),
                    is_new: before.is_new,
                    ..step
                },
            };
            if is_all {
                return Ok(Some(step));
            }
            whole = Some(step);
        }
    }

    async fn begin(&mut self) -> Result<Option<Open>, ServiceError> {
        let session = Session::open(&self.access).await?;
        let server = locate::probe(&session, &self.access).await?;
        if server.in_recovery {
            session.close().await;
            return Ok(None);
        }
        locate::refusal(&server).map_err(|why| self.access.error(ErrorKind::Setup, why))?;
        let system = server.system_identifier;
        let source = locate::source(&session, &self.access, server).await?;
        let directory = source.wal_directory()?;
        let size = source.server.segment_size().ok_or_else(|| {
            self.access.error(
                ErrorKind::Damaged,
                "the server's WAL segments have an impossible size",
            )
        })?;
        let free = rustix::fs::statvfs(&directory)
            .map_or(0, |space| space.f_bavail.saturating_mul(space.f_frsize));
        self.guard.cap = guard::cap_bytes(free, self.most_wal_bytes);
        let room = RoomWatch::begin(&session, directory.clone(), &self.guard.slot).await?;
        Ok(Some(Open {
            session,
            room,
            directory,
            size,
            system,
            line: None,
            seen: None,
        }))
    }
}

/// Whose failure it was.
enum StepError {
    Server(ServiceError),
    Repository(ServiceError),
}

impl From<ServiceError> for StepError {
    fn from(err: ServiceError) -> Self {
        Self::Server(err)
    }
}

fn guard_error(access: &Access, doing: &str, err: GuardError) -> ServiceError {
    match err {
        GuardError::Query(err) => query_error(&access.service, doing, err),
        GuardError::State(err) => access.error(ErrorKind::Io, err.to_string()),
    }
}
