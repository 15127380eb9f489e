//! `run`: the scheduler.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::pitr::keep::{Wanted, keep};
use super::record::Record;
use super::workplace::Workplace;
use super::{Context, Failure, backup, pitr};
use crate::schedule::Cron;

/// Runs the schedule until it is stopped.
#[derive(Debug, Default, clap::Args)]
pub struct Args {}

/// The clock may be set or the machine may sleep: look again at least this often.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// A run that is late by less may be under way still.
const MISSED: SignedDuration = SignedDuration::from_mins(1);
/// A clock that went back by more than this was set, and not only held back a little.
const SET_BACK: SignedDuration = SignedDuration::from_mins(1);

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
    let mut at_once = missed(context) || schedule.on_start;
    while !context.stop.is_cancelled() {
        let next = cron.next_after(Timestamp::now(), &zone).context(
            "BACKUP_CRON_EXPRESSION never matches again: correct it, for example to 0 3 * * *",
        )?;
        let due = next + jitter(schedule.jitter);
        // Before a missed one is made: one that kills the process is not begun over and over.
        Record::update(&context.config.state, |record| record.next_run = Some(due));
        if std::mem::take(&mut at_once) {
            make(context).await;
            continue;
        }
        tracing::info!(
            "the next backup is at {}",
            due.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S %Z")
        );
        match wait_until(context, due, &wanted).await {
            Waited::Due => make(context).await,
            Waited::Stopped => {}
            Waited::SetBack => tracing::warn!(
                "the clock was set back: when the next backup is due is decided anew"
            ),
        }
    }
    if let Some(keeping) = keeping
        && let Err(err) = keeping.await
    {
        tracing::error!("fetching WAL ended with a fault: {err}");
    }
    Ok(())
}

/// Whether a backup was due while nobody was there to make it.
fn missed(context: &Context) -> bool {
    let due = Record::load(&context.config.state).next_run;
    let missed = due.filter(|due| Timestamp::now().duration_since(*due) > MISSED);
    if let Some(due) = missed {
        tracing::warn!("the backup that was due at {due:.0} was missed: it is made now");
    }
    missed.is_some()
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

/// Why the scheduler woke up.
enum Waited {
    Due,
    Stopped,
    /// What was due then may be years away now.
    SetBack,
}

/// Sleeps until `due`, or until a backup is wanted.
async fn wait_until(context: &Context, due: Timestamp, wanted: &Wanted) -> Waited {
    let mut before = Timestamp::now();
    loop {
        let now = Timestamp::now();
        if now >= due {
            return Waited::Due;
        }
        if before.duration_since(now) > SET_BACK {
            return Waited::SetBack;
        }
        before = now;
        let left = Duration::try_from(due.duration_since(now)).unwrap_or_default();
        tokio::select! {
            () = context.stop.cancelled() => return Waited::Stopped,
            () = wanted.backup() => return Waited::Due,
            () = tokio::time::sleep(left.min(LOOK_AGAIN)) => {}
        }
    }
}

fn jitter(longest: Duration) -> Duration {
    longest.mul_f64(rand::random::<f64>())
}
