//! Services on their way into one backup, through the steps of [`Service`]: hold, copy, freeze, drain, release,
//! seal.
//!
//! What takes long runs for several services side by side: holding and copying before the instants are fixed,
//! after it first the files that go on changing, then what the servers hold still, and the ends of the archives.

use std::sync::Arc;

use anyhow::Context as _;
use tokio::task::JoinSet;
use tracing::Instrument as _;

use super::Context;
use super::output::BackupBar;
use crate::archive::{ArchiveWriter, EndedArchive, SealedArchive};
use crate::repository::session::{ArchiveNotes, Backup, Session};
use crate::services::{PointInTime, RunContext, Service, ServiceKind, ServiceReport};
use crate::stack::ContainerRef;

/// A service on its way into the backup.
pub struct Part {
    service: Box<dyn Service>,
    container: Option<ContainerRef>,
    archive: Option<ArchiveWriter>,
    point: Option<PointInTime>,
    report: Option<ServiceReport>,
    span: tracing::Span,
}

impl Part {
    pub fn new(service: Box<dyn Service>, container: Option<ContainerRef>, backup: &str) -> Self {
        let span = tracing::info_span!("backup", service = %service.name(), backup = %backup);
        Self {
            service,
            container,
            archive: None,
            point: None,
            report: None,
            span,
        }
    }

    async fn take(&mut self, step: Step) -> anyhow::Result<()> {
        let archive = self.archive.as_mut().context("an archive was not begun")?;
        match step {
            Step::Copy(run, session) => {
                self.service.hold(&run).await?;
                // Another may have failed meanwhile.
                session.check_stop()?;
                self.service.copy(archive).await?;
            }
            Step::Drain => self.report = Some(self.service.drain(archive).await?),
        }
        Ok(())
    }
}

/// A step that several services take side by side.
#[derive(Clone)]
enum Step {
    /// Each holds first what it copies: a server that takes its time keeps no other waiting.
    Copy(RunContext, Arc<Session>),
    Drain,
}

/// Makes an archive of each service; what was held in one is released whatever happens.
pub async fn archive(
    context: &Context,
    session: &Backup<'_>,
    run: &RunContext,
    mut parts: Vec<Part>,
) -> anyhow::Result<Vec<(SealedArchive, ArchiveNotes)>> {
    let stopper = tokio::spawn({
        let (stop, session) = (context.stop.clone(), session.session().clone());
        async move {
            stop.cancelled().await;
            session.request_stop();
        }
    });
    let mut bar = BackupBar::hidden();
    if BackupBar::is_wanted(context.json) {
        let mut estimate_bytes = 0;
        for part in &parts {
            estimate_bytes += part.service.estimate().await;
        }
        bar = BackupBar::start(session.session().clone(), estimate_bytes);
    }
    let stepped = steps(&mut parts, session, run, &bar).await;
    // Whatever happened: nothing stays held in a service.
    let released = release(&mut parts).await;
    drop(bar);
    stopper.abort();
    if stepped.is_err() || released.is_err() {
        // The archives are given up while the session still stands.
        parts.clear();
    }
    stepped?;
    released?;
    seal(parts)
}

/// Takes every part through its steps, up to the point where only sealing is left.
async fn steps(
    parts: &mut Vec<Part>,
    session: &Backup<'_>,
    run: &RunContext,
    bar: &BackupBar,
) -> anyhow::Result<()> {
    bar.say("copy");
    for part in &mut *parts {
        part.archive = Some(session.archive(part.service.name())?);
    }
    let copy = Step::Copy(run.clone(), session.session().clone());
    side_by_side(parts, session, &copy, |_| true).await?;
    bar.say("freeze");
    // The instants that matter, as close together as they come.
    parts.sort_by_key(|part| freeze_order(part.service.kind()));
    for part in &mut *parts {
        part.point = Some(part.service.freeze().instrument(part.span.clone()).await?);
    }
    bar.say("drain");
    side_by_side(parts, session, &Step::Drain, goes_on_changing).await?;
    side_by_side(parts, session, &Step::Drain, |kind| !goes_on_changing(kind)).await?;
    parts.sort_by(|a, b| a.service.name().cmp(b.service.name()));
    Ok(())
}

/// Takes the parts of some kinds through a step, each on a task of its own. When one fails, the others are
/// asked to stop, and the first failure is told.
async fn side_by_side(
    parts: &mut Vec<Part>,
    session: &Backup<'_>,
    step: &Step,
    which: fn(ServiceKind) -> bool,
) -> anyhow::Result<()> {
    let (chosen, others) = std::mem::take(parts)
        .into_iter()
        .partition(|part: &Part| which(part.service.kind()));
    *parts = others;
    let mut tasks = JoinSet::new();
    for mut part in chosen {
        let (span, step) = (part.span.clone(), step.clone());
        let taken = async move {
            let result = part.take(step).await;
            (part, result)
        };
        tasks.spawn(taken.instrument(span));
    }
    let mut outcome = Ok(());
    while let Some(joined) = tasks.join_next().await {
        let result = match joined {
            Ok((part, result)) => {
                parts.push(part);
                result
            }
            // What it held is in the journal: the next run undoes it.
            Err(died) => Err(died).context("a service's step ended unexpectedly"),
        };
        if result.is_err() {
            session.session().request_stop();
        }
        outcome = outcome.and(result);
    }
    outcome
}

/// Gives back what the services hold; the first failure, after all were tried.
async fn release(parts: &mut [Part]) -> anyhow::Result<()> {
    let mut first = None;
    for part in parts {
        if let Err(err) = part.service.release().instrument(part.span.clone()).await {
            tracing::error!(
                service = part.service.name(),
                "cannot be released: {err}; the next run tries again"
            );
            first = first.or(Some(err));
        }
    }
    first.map_or(Ok(()), |err| Err(err).context("release a service"))
}

/// Ends all archives, each on a thread of its own because it waits for the disk, and seals them.
fn seal(parts: Vec<Part>) -> anyhow::Result<Vec<(SealedArchive, ArchiveNotes)>> {
    let (mut archives, mut all_notes) = (Vec::new(), Vec::new());
    for part in parts {
        archives.push(part.archive.context("an archive was not begun")?);
        let notes = ArchiveNotes {
            kind: part.service.kind(),
            container: part.container,
            point: part.point.context("a service was not frozen")?,
            report: part.report.context("a service did not report")?,
        };
        for warning in &notes.report.warnings {
            if notes.report.damage() == Some(warning.as_str()) {
                tracing::error!(service = part.service.name(), "{warning}");
            } else {
                tracing::warn!(service = part.service.name(), "{warning}");
            }
        }
        all_notes.push(notes);
    }
    tokio::task::block_in_place(|| {
        // They share blocks: only when all are ended, every pack has its name.
        let sealed: Vec<SealedArchive> = ArchiveWriter::end_all(archives)?
            .into_iter()
            .map(EndedArchive::seal)
            .collect::<Result<_, _>>()?;
        Ok(sealed.into_iter().zip(all_notes).collect())
    })
}

/// n8n last: what its files name is then in the databases that were frozen just before.
const fn freeze_order(kind: ServiceKind) -> u8 {
    match kind {
        ServiceKind::Project => 0,
        ServiceKind::Ollama => 1,
        ServiceKind::Qdrant => 2,
        ServiceKind::Postgres => 3,
        ServiceKind::N8n => 4,
        ServiceKind::Volume => 5,
    }
}

/// Files that nothing holds still after the instant; what a server holds for us can wait.
const fn goes_on_changing(kind: ServiceKind) -> bool {
    match kind {
        ServiceKind::N8n | ServiceKind::Volume | ServiceKind::Project => true,
        ServiceKind::Postgres | ServiceKind::Qdrant | ServiceKind::Ollama => false,
    }
}
