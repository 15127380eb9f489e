//! One connection on a thread of its own.
//!
//! `pg_backup_start` and `pg_backup_stop` must be called on one session, which lives as long as the copy;
//! when it ends, the server gives up the backup and drops the temporary slot by itself ("Making a Base
//! Backup Using the Low Level API"). The `postgres` crate blocks, and must not be used on an async thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use postgres::error::SqlState;
use postgres::{CancelToken, Client, NoTls};
use tokio::sync::oneshot;

use super::access::{Access, said};
use crate::services::{ErrorKind, ServiceError};

/// How long a session may take to end before it is left to itself.
const CLOSE_WITHIN: Duration = Duration::from_secs(20);

type Job = Box<dyn FnOnce(&mut Client) + Send>;

/// A connection that takes one job after the other. Dropped, it ends.
pub struct Session {
    line: Line,
    cancel: CancelToken,
    ended: oneshot::Receiver<()>,
}

/// Hands jobs to a session, which lives for as long as there is a line to it.
#[derive(Clone)]
pub struct Line {
    service: String,
    jobs: mpsc::Sender<Job>,
    /// Jobs handed over and not ended.
    busy: Arc<AtomicUsize>,
}

impl Session {
    /// Connects to the first address and database that answers.
    pub async fn open(access: &Access) -> Result<Self, ServiceError> {
        Self::open_at(access, access.attempts()?).await
    }

    /// Connects to the first of these that answers.
    pub async fn open_at(
        access: &Access,
        attempts: Vec<postgres::Config>,
    ) -> Result<Self, ServiceError> {
        let (opened, connected) = oneshot::channel();
        let (jobs, queue) = mpsc::channel::<Job>();
        let (end, ended) = oneshot::channel();
        thread::Builder::new()
            .name("postgres-session".to_owned())
            .spawn(move || {
                match connect(attempts) {
                    Ok(mut client) => {
                        // A caller that went away closes the queue, too.
                        if opened.send(Ok(client.cancel_token())).is_ok() {
                            for job in queue {
                                job(&mut client);
                            }
                        }
                    }
                    Err(err) => {
                        opened.send(Err(err)).ok();
                    }
                }
                end.send(()).ok();
            })
            .map_err(|err| access.error(ErrorKind::Io, format!("cannot start a thread: {err}")))?;
        let cancel = connected
            .await
            .map_err(|_| access.error(ErrorKind::Unreachable, "the connecting thread died"))?
            .map_err(|err| access.connect_error(&err).with_source(err))?;
        Ok(Self {
            line: Line {
                service: access.service.clone(),
                jobs,
                busy: Arc::new(AtomicUsize::new(0)),
            },
            cancel,
            ended,
        })
    }

    pub fn service(&self) -> &str {
        self.line.service()
    }

    /// For a thread beside the session's owner. The session does not end before the line is dropped.
    pub fn line(&self) -> Line {
        self.line.clone()
    }

    /// Runs a job on the session; `doing` completes "cannot …" when it fails.
    pub async fn run<T, F>(&self, doing: &str, job: F) -> Result<T, ServiceError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Client) -> Result<T, postgres::Error> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let line = &self.line;
        line.submit(doing, move |client| answer.send(job(client)).is_ok())?;
        match answered.await {
            Ok(result) => result.map_err(|err| line.failed(doing, err)),
            Err(_) => Err(line.lost(doing)),
        }
    }

    /// [`Self::run`] for a caller that blocks already.
    pub fn run_blocking<T, F>(&self, doing: &str, job: F) -> Result<T, ServiceError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Client) -> Result<T, postgres::Error> + Send + 'static,
    {
        self.line.run_blocking(doing, job)
    }

    /// Cancels what is running and ends the session; the server undoes what the session held.
    pub async fn close(self) {
        if self.line.busy.load(Ordering::Acquire) > 0 {
            let cancel = self.cancel.clone();
            let cancelled = tokio::task::spawn_blocking(move || cancel.cancel_query(NoTls)).await;
            if !matches!(cancelled, Ok(Ok(()))) {
                tracing::debug!(service = %self.line.service, "the running query could not be cancelled");
            }
        }
        let service = self.line.service.clone();
        drop(self.line);
        if tokio::time::timeout(CLOSE_WITHIN, self.ended)
            .await
            .is_err()
        {
            tracing::warn!(service = %service, "the database session does not end; the server drops it when it notices");
        }
    }
}

impl Line {
    pub fn service(&self) -> &str {
        &self.service
    }

    /// Runs a job on the session; `doing` completes "cannot …" when it fails. Blocks.
    pub fn run_blocking<T, F>(&self, doing: &str, job: F) -> Result<T, ServiceError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Client) -> Result<T, postgres::Error> + Send + 'static,
    {
        let (answer, answered) = mpsc::channel();
        self.submit(doing, move |client| answer.send(job(client)).is_ok())?;
        match answered.recv() {
            Ok(result) => result.map_err(|err| self.failed(doing, err)),
            Err(_) => Err(self.lost(doing)),
        }
    }

    fn submit<F>(&self, doing: &str, job: F) -> Result<(), ServiceError>
    where
        F: FnOnce(&mut Client) -> bool + Send + 'static,
    {
        let busy = Arc::clone(&self.busy);
        self.busy.fetch_add(1, Ordering::AcqRel);
        let job: Job = Box::new(move |client| {
            let wanted = job(client);
            busy.fetch_sub(1, Ordering::AcqRel);
            if !wanted {
                tracing::debug!("a database query ended after its caller had gone");
            }
        });
        self.jobs.send(job).map_err(|_| self.lost(doing))
    }

    fn failed(&self, doing: &str, err: postgres::Error) -> ServiceError {
        query_error(&self.service, doing, err)
    }

    fn lost(&self, doing: &str) -> ServiceError {
        ServiceError::new(
            &self.service,
            ErrorKind::Unreachable,
            format!("cannot {doing}: the database session has ended"),
        )
    }
}

/// Tries one after the other until a server lets us in or says why not.
fn connect(attempts: Vec<postgres::Config>) -> Result<Client, postgres::Error> {
    let mut silent = Vec::new();
    let mut failure: Option<postgres::Error> = None;
    for config in attempts {
        if silent.contains(&config.get_hosts().to_vec()) {
            continue;
        }
        let err = match config.connect(NoTls) {
            Ok(client) => return Ok(client),
            Err(err) => err,
        };
        match err.code() {
            // Another database may be there.
            Some(&SqlState::INVALID_CATALOG_NAME) => {}
            Some(_) => return Err(err),
            None => silent.push(config.get_hosts().to_vec()),
        }
        // What a server says is worth more than that another address is silent.
        if failure.as_ref().is_none_or(|first| first.code().is_none()) {
            failure = Some(err);
        }
    }
    // Without any attempt the client itself says what is missing.
    failure.map_or_else(|| postgres::Config::new().connect(NoTls), Err)
}

/// The sentence for a query that failed.
pub fn query_error(service: &str, doing: &str, err: postgres::Error) -> ServiceError {
    let kind = match err.code() {
        Some(&SqlState::INSUFFICIENT_PRIVILEGE) => ErrorKind::Denied,
        Some(code) if code.code().starts_with("57P") || code.code().starts_with("53") => {
            ErrorKind::Unreachable
        }
        Some(_) => ErrorKind::Setup,
        None => ErrorKind::Unreachable,
    };
    ServiceError::new(service, kind, format!("cannot {doing}: {}", said(&err))).with_source(err)
}
