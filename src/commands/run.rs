//! `run`: the scheduler.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::pitr::keep::{Wanted, keep};
use super::record::Record;
use super::workplace::Workplace;
use super::{Context, Failure, backup, pitr};
use crate::schedule::Cron;

/// Runs the schedule until it is stopped.
#[derive(Debug, Default, clap::Args)]
pub struct Args {}

/// The clock may be set or the machine may sleep: look again at least this often.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

pub async fn run(context: &Context, _args: &Args) -> Result<(), Failure> {
    let schedule = &context.config.schedule;
    let cron = Cron::parse(&schedule.cron).map_err(anyhow::Error::msg)?;
    let zone = TimeZone::get(&schedule.time_zone).context("find the time zone")?;
    // What a run that died left behind is undone now, not at the next backup.
    if let Err(err) = Workplace::enter(context, "start").await {
        if context.stop.is_cancelled() {
            return Ok(());
        }
        tracing::error!("{}", Failure::from(err));
    }
    let wanted = Arc::new(Wanted::default());
    let keeping = if context.config.pitr.on {
        Some(tokio::spawn(keep(context.clone(), Arc::clone(&wanted))))
    } else {
        pitr::keep::give_back(context).await;
        None
    };
    if schedule.on_start {
        make(context).await;
    }
    while !context.stop.is_cancelled() {
        let next = cron.next_after(Timestamp::now(), &zone).context(
            "BACKUP_CRON_EXPRESSION never matches again: correct it, for example to 0 3 * * *",
        )?;
        let due = next + jitter(schedule.jitter);
        Record::update(&context.config.state, |record| record.next_run = Some(due));
        tracing::info!(
            "the next backup is at {}",
            due.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S %Z")
        );
        if wait_until(context, due, &wanted).await {
            make(context).await;
        }
    }
    if let Some(keeping) = keeping
        && let Err(err) = keeping.await
    {
        tracing::error!("fetching WAL ended with a fault: {err}");
    }
    Record::update(&context.config.state, |record| record.next_run = None);
    Ok(())
}

/// A failed backup is said and remembered; the schedule goes on.
async fn make(context: &Context) {
    match backup::make(context, "scheduled backup", &backup::Args::default()).await {
        Ok(_) => {}
        Err(failure) if context.stop.is_cancelled() => {
            tracing::warn!("the backup was given up: {failure}");
        }
        Err(failure) => tracing::error!("the backup FAILED: {failure}"),
    }
}

/// Sleeps until `due`, or until a backup is wanted; `false` when asked to stop first.
async fn wait_until(context: &Context, due: Timestamp, wanted: &Wanted) -> bool {
    loop {
        let Ok(left) = Duration::try_from(due.duration_since(Timestamp::now())) else {
            return true;
        };
        if left.is_zero() {
            return true;
        }
        tokio::select! {
            () = context.stop.cancelled() => return false,
            () = wanted.backup() => return true,
            () = tokio::time::sleep(left.min(LOOK_AGAIN)) => {}
        }
    }
}

fn jitter(longest: Duration) -> Duration {
    longest.mul_f64(rand::random::<f64>())
}
