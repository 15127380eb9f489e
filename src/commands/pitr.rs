//! `pitr`: PostgreSQL's write-ahead log, kept so that any moment can be restored.

pub(super) mod keep;
pub(super) mod note;
pub(super) mod retire;
pub(super) mod spans;

use std::fmt::Write as _;
use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;

use super::workplace::Sight;
use super::{Context, Failure, output, question};
use crate::repository::Repository;
use crate::repository::wal::{Stretch, WalList};
use crate::services::ServiceKind;
use crate::services::postgres::pitr::Capture;
use crate::services::postgres::pitr::capture::Step;
use crate::services::postgres::wal::Lsn;
use note::Note;
pub(super) use spans::{Cluster, services, text};

/// Shows which moments of PostgreSQL can be restored, and looks after what makes that possible.
#[derive(Debug, Default, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    pub action: Option<Action>,
}

#[derive(Debug, clap::Subcommand)]
pub enum Action {
    /// Shows which moments can be restored, and how the WAL is kept; the default.
    Status,
    /// Fetches what the server has written until now, at once.
    Now,
    /// Drops the replication slot, and takes back what was set in the server for it. With PITR=on the running
    /// sidecar makes them again.
    Off,
    /// Drops the stored WAL of one timeline: after the server's data was put back behind its back.
    Forget {
        /// Which timeline.
        #[arg(long)]
        timeline: u32,
        /// The cluster's system identifier, where several have a timeline of this number.
        #[arg(long)]
        system: Option<u64>,
        /// Does not ask.
        #[arg(long, short)]
        yes: bool,
    },
}

pub async fn run(context: &Context, args: &Args) -> Result<(), Failure> {
    match &args.action {
        None | Some(Action::Status) => status(context),
        Some(Action::Now) => {
            let steps = fetch(context).await?;
            Ok(output::print(context.json, &steps, |steps| fetched(steps))?)
        }
        Some(Action::Off) => off(context).await,
        Some(Action::Forget {
            timeline,
            system,
            yes,
        }) => forget(context, *timeline, *system, *yes),
    }
}

#[derive(Debug, Serialize)]
struct Status {
    on: bool,
    services: Vec<Cluster>,
    /// How the running sidecar fetches it.
    notes: Vec<Note>,
}

fn status(context: &Context) -> Result<(), Failure> {
    let repository = Arc::new(context.repository().map_err(anyhow::Error::new)?);
    let status = Status {
        on: context.config.pitr.on,
        services: services(context, &repository)?,
        notes: note::all(&context.config.state),
    };
    Ok(output::print(context.json, &status, |status| {
        shown(status, &context.config.schedule.time_zone)
    })?)
}

fn shown(status: &Status, zone: &str) -> String {
    let mut out = text(&status.services, zone);
    for note in &status.notes {
        out.push_str(&note.text(zone));
    }
    if out.is_empty() {
        out.push_str("No WAL is stored.\n");
    }
    if !status.on {
        out.push_str("PITR is off: PITR=on keeps the WAL from now on.\n");
    }
    out
}

/// The captures of all clusters in the stack.
pub(super) async fn captures(
    context: &Context,
    repository: &Arc<Repository>,
) -> anyhow::Result<Vec<Capture>> {
    let sight = Sight::look(context).await?;
    let mut captures = Vec::new();
    for found in &sight.stack.services {
        if found.kind == ServiceKind::Postgres {
            let repository = Arc::clone(repository);
            captures.push(Capture::new(&context.config, found, repository)?);
        }
    }
    Ok(captures)
}

/// One step of every cluster, now.
pub(super) async fn fetch(context: &Context) -> Result<Vec<Step>, Failure> {
    let repository = Arc::new(context.repository().map_err(anyhow::Error::new)?);
    let mut steps = Vec::new();
    for mut capture in captures(context, &repository).await? {
        let step = capture.step().await;
        if let Ok(Some(step)) = &step {
            note::good(&context.config.state, step);
        }
        capture.close().await;
        match step.map_err(anyhow::Error::new)? {
            Some(step) => steps.push(step),
            None => {
                return Err(Failure::sentence(
                    "the server is in recovery: wait until it is over",
                ));
            }
        }
    }
    if steps.is_empty() {
        return Err(Failure::sentence(
            "no PostgreSQL server was found: set POSTGRES_HOST, or give Lifeboat the Docker API",
        ));
    }
    Ok(steps)
}

fn fetched(steps: &[Step]) -> String {
    let mut out = String::new();
    for step in steps {
        // Writing to a String cannot fail.
        writeln!(
            out,
            "{}: {} stored, up to {} of timeline {}",
            step.service,
            output::bytes(step.stored_bytes),
            Lsn(step.end),
            step.timeline
        )
        .ok();
    }
    out
}

async fn off(context: &Context) -> Result<(), Failure> {
    let repository = Arc::new(context.repository().map_err(anyhow::Error::new)?);
    let mut told = Vec::new();
    for mut capture in captures(context, &repository).await? {
        let service = capture.service().to_owned();
        let done = capture.give_back().await.map_err(anyhow::Error::new)?;
        note::remove(&context.config.state, &service);
        told.extend(done.into_iter().map(|what| format!("{service}: {what}")));
    }
    if told.is_empty() {
        told.push("there was nothing to take back".to_owned());
    }
    if context.config.pitr.on {
        told.push("PITR is on in this environment: set PITR=off and start the sidecar anew, or it begins again".to_owned());
    }
    Ok(output::print(context.json, &told, |told| {
        told.join("\n") + "\n"
    })?)
}

fn forget(context: &Context, timeline: u32, system: Option<u64>, yes: bool) -> Result<(), Failure> {
    let repository = context.repository().map_err(anyhow::Error::new)?;
    let list = repository.wal().map_err(anyhow::Error::new)?;
    let system = forgettable(&list, timeline, system, &context.config.schedule.time_zone)
        .map_err(Failure::sentence)?;
    let doomed: Vec<_> = list.of(system, timeline).collect();
    let bytes: u64 = doomed.iter().map(|s| s.end - s.start).sum();
    let asked = format!(
        "Drop {} of WAL of timeline {timeline}? No moment on it between backups can be restored then.",
        output::bytes(bytes)
    );
    question::confirm(context, yes, &asked, "drop it")?;
    for stretch in &doomed {
        repository.drop_wal(stretch).map_err(anyhow::Error::new)?;
    }
    let histories = list.histories.get(&system);
    if histories.is_some_and(|timelines| timelines.contains(&timeline)) {
        repository
            .drop_wal_history(system, timeline)
            .map_err(anyhow::Error::new)?;
    }
    let told = format!(
        "dropped {} of WAL of timeline {timeline}",
        output::bytes(bytes)
    );
    Ok(output::print(context.json, &told, |told| {
        format!("{told}\n")
    })?)
}

/// Whose WAL of a timeline is meant. Each cluster counts its timelines from 1.
fn forgettable(
    list: &WalList,
    timeline: u32,
    system: Option<u64>,
    zone: &str,
) -> Result<u64, String> {
    let newest = |of: u64| list.of(of, timeline).map(Stretch::at).max();
    let having: Vec<(u64, Timestamp)> = list
        .systems
        .iter()
        .filter(|of| system.is_none_or(|wanted| wanted == **of))
        .filter_map(|of| newest(*of).map(|at| (*of, at)))
        .collect();
    match having.as_slice() {
        [(only, _)] => Ok(*only),
        [] => {
            let there = list.systems.iter().flat_map(|of| {
                let timelines = list.timelines(*of);
                timelines
                    .into_iter()
                    .map(move |timeline| format!("{timeline} (--system {of})"))
            });
            Err(format!(
                "no such WAL of timeline {timeline} is stored; there is WAL of these: {}",
                there.collect::<Vec<_>>().join(", ")
            ))
        }
        several => {
            let named = several.iter().map(|(of, at)| {
                format!("--system {of} (fetched until {})", output::time(*at, zone))
            });
            Err(format!(
                "several clusters have WAL of timeline {timeline}: say whose is to be dropped, {}",
                named.collect::<Vec<_>>().join(" or ")
            ))
        }
    }
}
