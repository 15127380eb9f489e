//! Fetches WAL every so often, for as long as the sidecar runs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::{captures, note, spans};
use crate::commands::record::Record;
use crate::commands::{Context, Failure};
use crate::repository::{Repository, RepositoryError};
use crate::services::postgres::pitr::Capture;
use crate::services::postgres::pitr::capture::Step;
use crate::services::postgres::pitr::guard;

/// The stack is looked at anew when a server does not answer, but not at every step.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// Keys may have been changed: the repository is opened anew.
const OPEN_AGAIN: Duration = Duration::from_hours(1);
/// A backup that was asked for and failed is asked for again after these, the last one over and over: a server that
/// starts together with the sidecar does not answer at once.
const ASK_AGAIN: [Duration; 3] = [
    Duration::from_secs(30),
    Duration::from_mins(2),
    Duration::from_mins(15),
];

/// Asks for a backup: WAL can be replayed after one only.
#[derive(Default)]
pub struct Wanted(Notify);

impl Wanted {
    pub async fn backup(&self) {
        self.0.notified().await;
    }
}

/// Fetches until it is asked to stop.
pub async fn keep(context: Context, wanted: Arc<Wanted>) {
    let mut keeper = Keeper {
        wanted,
        asked: Asked::default(),
        repository: None,
        captures: Vec::new(),
        looked: None,
    };
    loop {
        let began = Instant::now();
        if let Err(failure) = keeper.round(&context).await {
            tracing::warn!("the WAL is not fetched: {failure}");
            note::bad(&context.config.state, "postgres", &failure.to_string());
        }
        let rest = context.config.pitr.interval.saturating_sub(began.elapsed());
        tokio::select! {
            () = context.stop.cancelled() => break,
            () = tokio::time::sleep(rest) => {}
        }
    }
    for capture in keeper.captures {
        capture.close().await;
    }
}

/// With PITR off: what an earlier run made in the servers is taken back.
pub async fn give_back(context: &Context) {
    if !guard::any_made(&context.config.state) {
        return;
    }
    let given = async {
        let repository = Arc::new(context.repository().map_err(anyhow::Error::new)?);
        for mut capture in captures(context, &repository).await? {
            for told in capture.give_back().await.map_err(anyhow::Error::new)? {
                tracing::info!("PITR is off: {told}");
            }
            note::remove(&context.config.state, capture.service());
        }
        Ok::<_, Failure>(())
    };
    if let Err(failure) = given.await {
        tracing::error!(
            "PITR is off, but its replication slot could not be dropped: {failure}. It is tried again at the next start; by hand: SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name LIKE 'lifeboat_pitr_%'"
        );
    }
}

/// A backup that is needed before anything can be restored.
#[derive(Default)]
struct Asked {
    /// When it was asked for last.
    at: Option<Instant>,
    times: usize,
    /// No backup led to the WAL when that was looked at last.
    is_owed: bool,
}

impl Asked {
    fn is_due(&self) -> bool {
        let step = self.times.saturating_sub(1).min(ASK_AGAIN.len() - 1);
        let wait = ASK_AGAIN.get(step).copied().unwrap_or_default();
        self.at.is_none_or(|at| at.elapsed() > wait)
    }

    /// Unless one is being made.
    fn ask(&mut self, context: &Context, wanted: &Wanted, why: &str) {
        if self.is_due() && Record::load(&context.config.state).running.is_none() {
            self.at = Some(Instant::now());
            self.times += 1;
            tracing::info!("a backup is made now: {why}");
            wanted.0.notify_one();
        }
    }
}

struct Keeper {
    wanted: Arc<Wanted>,
    asked: Asked,
    repository: Option<(Instant, Arc<Repository>)>,
    captures: Vec<Capture>,
    looked: Option<Instant>,
}

impl Keeper {
    async fn round(&mut self, context: &Context) -> Result<(), Failure> {
        let Some(repository) = self.repository(context)? else {
            // The first backup makes it.
            self.asked
                .ask(context, &self.wanted, "there is no repository yet");
            return Ok(());
        };
        let is_due = self.looked.is_none_or(|at| at.elapsed() > LOOK_AGAIN);
        if self.captures.is_empty() {
            if !is_due {
                return Ok(());
            }
            self.looked = Some(Instant::now());
            self.captures = captures(context, &repository).await?;
        }
        let mut is_lost = false;
        for capture in &mut self.captures {
            match capture.step().await {
                Ok(Some(step)) => {
                    note::good_if_due(&context.config.state, &step);
                    let is_due = self.asked.is_owed && self.asked.is_due();
                    if step.is_new || step.gap.is_some() || is_due {
                        if spans::reaches(context, &repository, &step)? {
                            self.asked = Asked::default();
                        } else {
                            self.asked.is_owed = true;
                            self.asked.ask(context, &self.wanted, &reason(&step));
                        }
                    }
                }
                Ok(None) => tracing::debug!("{} is in recovery", capture.service()),
                Err(err) => {
                    if err.is_transient() {
                        tracing::info!("the WAL is not fetched: {err}");
                    } else {
                        tracing::error!("the WAL is not fetched: {err}");
                    }
                    note::bad(&context.config.state, capture.service(), &err.to_string());
                    // Where the repository failed, the server's disk is watched on.
                    is_lost |= !capture.is_open();
                }
            }
        }
        if is_lost && is_due {
            // It may have another address now.
            self.captures.clear();
        }
        Ok(())
    }

    fn repository(&mut self, context: &Context) -> Result<Option<Arc<Repository>>, Failure> {
        if let Some((opened, repository)) = &self.repository
            && opened.elapsed() < OPEN_AGAIN
        {
            return Ok(Some(Arc::clone(repository)));
        }
        match (
            tokio::task::block_in_place(|| context.repository()),
            &mut self.repository,
        ) {
            (Ok(repository), _) => {
                let repository = Arc::new(repository);
                self.repository = Some((Instant::now(), Arc::clone(&repository)));
                self.captures.clear();
                self.looked = None;
                Ok(Some(repository))
            }
            // What fetches goes on, and keeps its eye on the servers' disks.
            (Err(err), Some((opened, before))) => {
                tracing::warn!("the repository cannot be opened anew: {err}");
                *opened = Instant::now();
                Ok(Some(Arc::clone(before)))
            }
            (Err(RepositoryError::NoRepository(_)), None) => Ok(None),
            (Err(err), None) => Err(anyhow::Error::new(err).into()),
        }
    }
}

fn reason(step: &Step) -> String {
    let why = if step.gap.is_some() {
        "WAL was lost"
    } else {
        "no backup leads to the WAL that is stored"
    };
    format!(
        "{}: {why}, and only after a backup can WAL be replayed",
        step.service
    )
}
