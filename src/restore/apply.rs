//! Does what the plan says, or puts everything back.
//!
//! ```text
//! preflight ─▶ stop (journal) ─▶ stage ─▶ prepare ─▶ swap ─▶ start, settle ─▶ online ─▶ n8n ─▶ commit ─▶ finish
//!                 └───────────────────────── any error: roll back ───────────────────────────┘
//! ```
//!
//! Until the commit everything can be undone: the old data lies beside the new, what an online service
//! replaced is with its adapter, and the journal names each container and each swap. The commit is one file
//! for all services ([`swap::commit`]). With [`Plan::stage_first`](super::plan::Plan) the data is written
//! beside the live data while services still run, and they are down only for the swap.
//!
//! **Without the Docker API** nobody can stop a service that does not come up, so its data cannot be taken
//! away under it again. There the commit comes right after the swap, before a person is asked to start the
//! services; the old data stays until they have settled.

mod checks;
mod finish;
mod into;
mod progress;
mod report;
mod staging;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use super::plan::{Factory, Plan, PlannedContainer, PlannedService, PlannedWay};
use super::swap::{self, Swap};
use super::{Containers, Restore};
use crate::repository::manifest::ArchiveRecord;
use crate::repository::reader::ArchiveReader;
use crate::services::{RunContext, ServiceError, ServiceKind};
use crate::stack::engine::Engine;
use crate::stack::journal::{EntryId, Obligation};
use crate::stack::{ContainerRef, Stack};

pub use into::into_directory;
pub use progress::{Event, Phase, Progress};
pub use report::{PhaseTime, RestoreError, RestoreReport, RestoredService};
use staging::Staging;

/// Opens an archive of the backup.
pub type Open<'a> = dyn Fn(&ArchiveRecord) -> anyhow::Result<ArchiveReader> + Send + Sync + 'a;

/// Where a restore happens, and how.
pub struct Site<'a> {
    pub run: RunContext,
    pub stack: &'a Stack,
    /// `None`: a person stops and starts the services.
    pub containers: Option<&'a dyn Containers>,
    pub options: Options,
    pub progress: Arc<Progress>,
    /// Set by a signal: the restore is rolled back.
    pub cancel: CancellationToken,
}

#[derive(Debug, Clone)]
pub struct Options {
    /// The least grace a container gets to stop.
    pub stop_grace: Duration,
    /// How long one container may take to become healthy.
    pub timeout: Duration,
    /// The old data stays beside the new after success.
    pub keep_old: bool,
    /// The person says that what must be stopped by hand is stopped, whatever it looks like.
    pub services_are_stopped: bool,
    /// Where services are started by hand: wait for them, instead of ending with what is left to do.
    pub wait_for_start: bool,
    /// What of [`crate::services::IGNORABLE`] is to be no reason against the restore.
    pub ignored: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            stop_grace: Duration::from_mins(1),
            timeout: Duration::from_mins(10),
            keep_old: false,
            services_are_stopped: false,
            wait_for_start: true,
            ignored: Vec::new(),
        }
    }
}

#[async_trait]
impl Containers for Engine {
    async fn stop(&self, container: &ContainerRef, grace: Duration) -> anyhow::Result<()> {
        Ok(Self::stop(self, &container.id, grace).await?)
    }

    async fn start(&self, container: &ContainerRef) -> anyhow::Result<()> {
        Ok(Self::start(self, &container.id).await?)
    }

    async fn wait_healthy(&self, container: &ContainerRef, limit: Duration) -> anyhow::Result<()> {
        let deadline = tokio::time::Instant::now() + limit;
        Ok(Self::wait_healthy(self, &container.id, deadline).await?)
    }
}

/// Looks for everything that would make the restore fail, without changing anything: what `--dry-run` shows
/// beside the plan, and what [`apply`] begins with.
pub async fn preflight(
    plan: &Plan,
    factory: &Factory<'_>,
    open: &Open<'_>,
    site: &Site<'_>,
) -> Result<Vec<crate::services::Check>, ServiceError> {
    let mut run = Run::new(plan, factory, open, site)?;
    Ok(run.check().await)
}

/// Restores into the stack. On an error before the commit everything is as it was; the error says whether.
pub async fn apply(
    plan: &Plan,
    factory: &Factory<'_>,
    open: &Open<'_>,
    site: &Site<'_>,
) -> Result<RestoreReport, RestoreError> {
    let mut run = Run::new(plan, factory, open, site)?;
    run.report.begin(Phase::Preflight, &site.progress);
    let failed: Vec<_> = run
        .check()
        .await
        .into_iter()
        .filter(|check| check.outcome.is_err())
        .collect();
    if !failed.is_empty() {
        return Err(RestoreError::Preflight(failed));
    }
    match run.change().await {
        Ok(()) => Ok(run.finish().await),
        Err(why) if run.committed => Err(run.stop_halfway(&why)),
        Err(why) => Err(run.roll_back(&why).await),
    }
}

struct Run<'a> {
    plan: &'a Plan,
    open: &'a Open<'a>,
    site: &'a Site<'a>,
    jobs: Vec<Job<'a>>,
    /// Containers that ran before, with their journal entries, in the order they were stopped.
    stopped: Vec<(ContainerRef, EntryId)>,
    /// Containers that were started, perhaps in vain.
    started: Vec<&'a PlannedContainer>,
    committed: bool,
    report: RestoreReport,
}

/// One service being restored.
struct Job<'a> {
    planned: &'a PlannedService,
    adapter: Box<dyn Restore>,
    swap: Option<Arc<Swap>>,
    /// An online service may have been changed.
    applied: bool,
}

impl<'a> Run<'a> {
    fn new(
        plan: &'a Plan,
        factory: &Factory<'_>,
        open: &'a Open<'a>,
        site: &'a Site<'a>,
    ) -> Result<Self, ServiceError> {
        let mut jobs = Vec::new();
        for planned in &plan.services {
            let service = site
                .stack
                .services
                .iter()
                .find(|s| s.name == planned.service);
            // The plan was made from this stack.
            let Some(service) = service else { continue };
            jobs.push(Job {
                planned,
                adapter: factory(service, &planned.record)?,
                swap: None,
                applied: false,
            });
        }
        site.progress.expect(plan.raw_bytes);
        Ok(Self {
            plan,
            open,
            site,
            jobs,
            stopped: Vec::new(),
            started: Vec::new(),
            committed: false,
            report: RestoreReport::new(&plan.backup, &site.run.run_id),
        })
    }

    /// A container that this run stops and starts itself.
    fn managed(
        &self,
        planned: &'a PlannedContainer,
    ) -> Option<(&'a dyn Containers, &'a ContainerRef)> {
        self.site.containers.zip(planned.container.as_ref())
    }

    fn by_hand(&self) -> Vec<&'a PlannedContainer> {
        let plan = self.plan;
        plan.start
            .iter()
            .filter(|planned| self.managed(planned).is_none())
            .collect()
    }

    async fn change(&mut self) -> anyhow::Result<()> {
        if self.plan.stage_first {
            self.stage().await?;
            self.stop().await?;
        } else {
            self.stop().await?;
            self.stage().await?;
        }
        self.prepare().await?;
        self.swap().await?;
        self.start(false).await?;
        self.apply_online().await?;
        if !self.by_hand().is_empty() {
            self.commit()?;
            self.wait_for_hand().await?;
        }
        self.start(true).await?;
        self.cancelled()?;
        self.commit()
    }

    async fn stop(&mut self) -> anyhow::Result<()> {
        self.report.begin(Phase::Stop, &self.site.progress);
        for planned in &self.plan.stop {
            self.cancelled()?;
            let Some((containers, container)) = self.managed(planned) else {
                continue;
            };
            self.step(&planned.service, "stopping");
            let stopped = Obligation::Stopped {
                container: container.clone(),
            };
            let journal = &self.site.run.journal;
            let entry = journal
                .record(&self.site.run.run_id, &stopped)
                .context("write the journal")?;
            self.stopped.push((container.clone(), entry));
            self.report.down();
            let own = Duration::from_secs(container.stop_timeout.unwrap_or(0));
            containers
                .stop(container, own.max(self.site.options.stop_grace))
                .await
                .with_context(|| format!("stop {}", planned.service))?;
        }
        Ok(())
    }

    /// Writes the archives beside the live data.
    async fn stage(&mut self) -> anyhow::Result<()> {
        self.report.begin(Phase::Stage, &self.site.progress);
        let keep_old = self.site.options.keep_old || !self.by_hand().is_empty();
        let mut all = Vec::new();
        for job in &mut self.jobs {
            let planned = job.planned;
            let PlannedWay::Swap { root } = &planned.way else {
                continue;
            };
            let service = &planned.service;
            let swap = Swap::begin(service, root, &self.site.run, keep_old)
                .with_context(|| format!("make room for {service} in {}", root.display()))?;
            all.push(Staging {
                service,
                record: &planned.record,
                directory: swap.staging().to_owned(),
                options: job.adapter.unpack_options(),
            });
            job.swap = Some(Arc::new(swap));
        }
        let unpacked = staging::unpack_all(&all, self.open, self.site).await?;
        for (staging, (unpacked, took)) in all.iter().zip(unpacked) {
            self.report.unpacked(staging.service, unpacked, took);
        }
        Ok(())
    }

    /// Lets each adapter complete its staged data.
    async fn prepare(&mut self) -> anyhow::Result<()> {
        self.report.begin(Phase::Prepare, &self.site.progress);
        for job in &mut self.jobs {
            let Some(swap) = &job.swap else { continue };
            job.adapter
                .prepare(swap.staging(), &job.planned.record, &self.site.run)
                .await?;
            // What the adapter wrote must be as durable as what was unpacked before it goes live.
            sync(swap.staging())
                .with_context(|| format!("sync the data of {}", job.planned.service))?;
        }
        Ok(())
    }

    async fn swap(&mut self) -> anyhow::Result<()> {
        self.report.begin(Phase::Swap, &self.site.progress);
        for index in 0..self.jobs.len() {
            self.cancelled()?;
            let Some(job) = self.jobs.get(index) else {
                continue;
            };
            let Some(swap) = job.swap.clone() else {
                continue;
            };
            let service = &job.planned.service;
            self.step(service, "swapping");
            tokio::task::spawn_blocking(move || swap.swap())
                .await?
                .with_context(|| format!("swap the data of {service}"))?;
        }
        Ok(())
    }

    /// Starts the early or the late containers in order, each one settled before the next may need it.
    async fn start(&mut self, late: bool) -> anyhow::Result<()> {
        self.report.begin(Phase::Start, &self.site.progress);
        let plan = self.plan;
        for planned in plan.start.iter().filter(|planned| planned.late == late) {
            self.cancelled()?;
            let Some((containers, container)) = self.managed(planned) else {
                continue;
            };
            self.step(&planned.service, "starting");
            self.started.push(planned);
            containers
                .start(container)
                .await
                .with_context(|| format!("start {}", planned.service))?;
            self.settle(&planned.service).await?;
            let healthy = containers.wait_healthy(container, self.site.options.timeout);
            self.unless_cancelled(healthy)
                .await?
                .with_context(|| format!("wait for {}", planned.service))?;
            self.report.up();
        }
        Ok(())
    }

    /// Waits until a swapped service has taken its data up; nothing for one that is not restored.
    async fn settle(&mut self, service: &str) -> anyhow::Result<()> {
        let job = self
            .jobs
            .iter_mut()
            .find(|job| job.swap.is_some() && job.planned.service == service);
        let Some(job) = job else { return Ok(()) };
        self.site.progress.tell(&Event::Step {
            service: service.to_owned(),
            what: "waiting until it has taken its data up",
        });
        let settled = job.adapter.settle(&job.planned.record, &self.site.run);
        tokio::select! {
            settled = settled => Ok(settled?),
            () = self.site.cancel.cancelled() => Err(interrupted()),
        }
    }

    async fn apply_online(&mut self) -> anyhow::Result<()> {
        self.report.begin(Phase::Online, &self.site.progress);
        for index in 0..self.jobs.len() {
            self.cancelled()?;
            let Some(job) = self.jobs.get_mut(index) else {
                continue;
            };
            if job.planned.way != PlannedWay::Online {
                continue;
            }
            let record = &job.planned.record;
            let service = &job.planned.service;
            self.site.progress.tell(&Event::Step {
                service: service.clone(),
                what: "bringing its data in",
            });
            let began = Instant::now();
            let archive =
                (self.open)(record).with_context(|| format!("open archive {}", record.name))?;
            job.applied = true;
            let online = async {
                job.adapter.apply(archive, record, &self.site.run).await?;
                job.adapter.settle(record, &self.site.run).await
            };
            tokio::select! {
                done = online => done?,
                () = self.site.cancel.cancelled() => return Err(interrupted()),
            }
            self.site.progress.advance(record.raw_bytes);
            self.report
                .applied(service, record.raw_bytes, began.elapsed());
        }
        Ok(())
    }

    /// From here on the new data stays, whatever happens.
    fn commit(&mut self) -> anyhow::Result<()> {
        if !self.committed {
            swap::commit(&self.site.run).context("commit the restore")?;
            self.committed = true;
        }
        Ok(())
    }

    /// Asks for the services that a person starts, and waits for them when told to.
    async fn wait_for_hand(&mut self) -> anyhow::Result<()> {
        let names: Vec<_> = self.by_hand().iter().map(|p| p.service.clone()).collect();
        self.report.to_start.clone_from(&names);
        self.site.progress.tell(&Event::StartByHand(names.clone()));
        if !self.site.options.wait_for_start {
            self.report.unsettled = names;
            return Ok(());
        }
        for name in names {
            self.settle(&name).await?;
        }
        Ok(())
    }

    fn step(&self, service: &str, what: &'static str) {
        self.site.progress.tell(&Event::Step {
            service: service.to_owned(),
            what,
        });
    }

    fn cancelled(&self) -> anyhow::Result<()> {
        if self.site.cancel.is_cancelled() {
            return Err(interrupted());
        }
        Ok(())
    }

    async fn unless_cancelled<T>(&self, work: impl Future<Output = T>) -> anyhow::Result<T> {
        tokio::select! {
            done = work => Ok(done),
            () = self.site.cancel.cancelled() => Err(interrupted()),
        }
    }
}

fn interrupted() -> anyhow::Error {
    anyhow::Error::msg("the restore was interrupted")
}

fn sync(dir: &Path) -> std::io::Result<()> {
    let dir = std::fs::File::open(dir)?;
    Ok(rustix::fs::syncfs(dir)?)
}

/// A service's data directory may be PostgreSQL's: its lock file says that it runs, or died.
fn lock_file(planned: &PlannedService) -> Option<std::path::PathBuf> {
    match &planned.way {
        PlannedWay::Swap { root } if planned.kind == ServiceKind::Postgres => {
            Some(root.join("postmaster.pid"))
        }
        _ => None,
    }
}
