//! `restore`: plan, question, apply; or unpack archives into a directory.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use indicatif::ProgressBar;
use jiff::Timestamp;
use serde::Serialize;

use super::moment::{self, Moment};
use super::record::{Record, Run};
use super::workplace::Workplace;
use super::{Context, Failure, adapters, output, question};
use crate::config::Config;
use crate::repository::Repository;
use crate::repository::manifest::{ArchiveRecord, Manifest};
use crate::repository::session::new_id;
use crate::restore::apply::{self, Event, Options, Progress, RestoreReport, Site};
use crate::restore::plan::{self, Plan, Request};
use crate::services::Check;
use crate::stack::StackService;

/// Restores the stack, or a part of it: shows the plan, asks, and rolls back when it fails.
#[derive(Debug, Clone, clap::Args)]
// Flags of a command line, each on its own.
#[allow(clippy::struct_excessive_bools)]
pub struct Args {
    /// A backup's id, the beginning of one, or `latest`; not needed with a moment.
    pub backup: Option<String>,
    #[command(flatten)]
    pub moment: moment::Args,
    /// Only these archives, services or kinds, such as `postgres` or `n8n,qdrant`.
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<String>,
    /// Shows the plan and what the checks find, and changes nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Does not ask.
    #[arg(long, short)]
    pub yes: bool,
    /// Unpacks the archives below this directory instead; no service is touched.
    #[arg(long, value_name = "DIR", conflicts_with = "dry_run")]
    pub into: Option<PathBuf>,
    /// Keeps the old data beside the new after success.
    #[arg(long)]
    pub keep_old: bool,
    /// Without the Docker API: the services that must be stopped are stopped, whatever it looks like.
    #[arg(long)]
    pub services_are_stopped: bool,
    /// Goes on although this check refuses.
    #[arg(long, value_name = "CHECK", value_delimiter = ',', value_parser = PossibleValuesParser::new(crate::services::IGNORABLE))]
    pub ignore: Vec<String>,
    /// Only this database, into the running PostgreSQL server: beside the live one, as NAME_restored_TIME.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["into", "dry_run"])]
    pub database: Option<String>,
    /// Only this table of the database, with its partitions, as SCHEMA.TABLE; can be given several times.
    #[arg(long, value_name = "SCHEMA.TABLE", requires = "database")]
    pub table: Vec<String>,
    /// Restores into a database of this name; with --table one that exists takes the tables as well.
    #[arg(
        long,
        value_name = "NAME",
        requires = "database",
        conflicts_with = "replace"
    )]
    pub into_database: Option<String>,
    /// Puts the database, or the tables, in the place of the live ones.
    #[arg(long, requires = "database")]
    pub replace: bool,
}

#[derive(Debug, Serialize)]
struct DryRun {
    plan: Plan,
    checks: Vec<Check>,
}

pub async fn run(context: &Context, args: &Args) -> Result<(), Failure> {
    let repository = Arc::new(context.repository().map_err(anyhow::Error::new)?);
    let place = Workplace::enter(context, "restore").await?;
    let Moment {
        manifest,
        replays,
        notes,
    } = moment::find(
        context,
        &place,
        &repository,
        args.backup.as_deref(),
        &args.moment,
    )?;
    let id = manifest.id.clone();
    if args.database.is_some() {
        let taken = super::extract::run(context, args, &place, &repository, &manifest, &replays);
        return Box::pin(taken).await;
    }
    let request = Request {
        only: args.only.clone(),
        // Services are down for the swap only, not while data is written.
        stage_first: true,
    };
    if let Some(directory) = &args.into {
        if args.moment.is_given() {
            return Err(Failure::usage(anyhow::Error::msg(
                "--into unpacks a backup as it is: a moment between backups needs a server to recover it, so leave --into out",
            )));
        }
        let plan = plan::build_into(&manifest, &place.stack, &request, directory)
            .map_err(Failure::usage)?;
        let report = with_site(context, &place, args, async |site| {
            let open = |record: &_| Ok(repository.archive(&manifest, record)?);
            apply::into_directory(&plan, directory, &open, site)
                .await
                .map_err(Failure::from)
        })
        .await?;
        return Ok(output::print(context.json, &report, |report| {
            said(report, &plan.notes)
        })?);
    }

    let config = context.config.clone();
    let keep_old = args.keep_old;
    let factory = move |service: &StackService, record: &ArchiveRecord| {
        let replay = replays.get(&record.name);
        adapters::restore(&config, service, record, replay, keep_old)
    };
    let mut plan =
        plan::build(&manifest, &place.stack, &request, &factory).map_err(Failure::usage)?;
    plan.notes.extend(notes);
    let open = |record: &_| Ok(repository.archive(&manifest, record)?);
    if args.dry_run {
        let checks = with_site(context, &place, args, async |site| {
            apply::preflight(&plan, &factory, &open, site)
                .await
                .map_err(|e| anyhow::Error::new(e).into())
        })
        .await?;
        let good = checks.iter().all(|check| check.outcome.is_ok());
        output::print(context.json, &DryRun { plan, checks }, dry_run)?;
        return if good {
            Ok(())
        } else {
            Err(Failure::sentence(
                "the restore would not begin: see the lines marked ✗",
            ))
        };
    }
    let checks = with_site(context, &place, args, async |site| {
        apply::preflight(&plan, &factory, &open, site)
            .await
            .map_err(|e| anyhow::Error::new(e).into())
    })
    .await?;
    let cautions: Vec<Check> = checks.into_iter().filter(|check| check.caution).collect();
    agree(context, args, &plan, &cautions)?;
    check_packs(context, &repository, &manifest, &plan)?;
    // What a person would not expect to lose is not removed.
    let keeping = Args {
        keep_old: args.keep_old || !cautions.is_empty(),
        ..args.clone()
    };
    let result = with_site(context, &place, &keeping, async |site| {
        apply::apply(&plan, &factory, &open, site)
            .await
            .map_err(|e| anyhow::Error::new(e).into())
    })
    .await;
    note(&context.config, &id, &result);
    Ok(output::print(context.json, &result?, |report| {
        said(report, &plan.notes)
    })?)
}

/// Shows the plan and asks, on a terminal; without one, `--yes` must say it.
fn agree(context: &Context, args: &Args, plan: &Plan, cautions: &[Check]) -> Result<(), Failure> {
    if !context.json {
        super::print(&format!("{plan}\n{}", super::doctor::lines(cautions)))?;
    }
    for check in cautions {
        let (Ok(said) | Err(said)) = &check.outcome;
        tracing::warn!(
            "{}: {said}; the old data is kept beside the new",
            check.subject
        );
    }
    let question = "Restore as planned?";
    question::confirm(context, args.yes, question, "restore as planned")
}

/// Reads every byte of the archives that are restored: damage is found before anything is stopped.
fn check_packs(
    context: &Context,
    repository: &Repository,
    manifest: &Manifest,
    plan: &Plan,
) -> Result<(), Failure> {
    use crate::repository::verify::{Depth, Scope, verify};
    let bar = if output::stderr_is_terminal() && !context.json {
        ProgressBar::new(0)
    } else {
        ProgressBar::hidden()
    };
    bar.set_message("verify");
    let archives = plan
        .services
        .iter()
        .map(|s| s.record.name.clone())
        .collect();
    let scope = Scope::Archives {
        backup: manifest.id.clone(),
        archives,
    };
    let report = tokio::task::block_in_place(|| {
        verify(repository, &scope, Depth::Full, |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        })
    });
    bar.finish_and_clear();
    let report = report.map_err(anyhow::Error::new)?;
    if report.is_good() {
        return Ok(());
    }
    let faults: Vec<&str> = report
        .damage
        .iter()
        .map(|damage| damage.fault.as_str())
        .collect();
    Err(Failure::damage(format!(
        "nothing was changed, because the backup is damaged: {}. Restore another backup (`list`), or the archives that are whole with --only (`verify --full` names the others)",
        faults.join("; ")
    )))
}

/// Runs `work` at the restore's site, with a progress bar on a terminal and log lines elsewhere.
async fn with_site<T>(
    context: &Context,
    place: &Workplace,
    args: &Args,
    work: impl AsyncFnOnce(&Site<'_>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let bar = if output::stderr_is_terminal() && !context.json {
        ProgressBar::new(1)
    } else {
        ProgressBar::hidden()
    };
    let tell = bar.clone();
    let progress = Progress::new(move |event| match event {
        Event::Phase(phase) => tell.set_message(format!("{phase:?}")),
        Event::Step { service, what } => {
            tell.set_message(format!("{service}: {what}"));
            tracing::info!(service, "{what}");
        }
        Event::StartByHand(services) => {
            tracing::warn!("start these now, in this order: {}", services.join(", "));
        }
    });
    let site = Site {
        run: place.run(&context.config, &new_id(Timestamp::now()))?,
        stack: &place.stack,
        containers: place
            .engine
            .as_ref()
            .map(|engine| engine as &dyn crate::restore::Containers),
        options: Options {
            stop_grace: context.config.stop_grace,
            timeout: context.config.restore_timeout,
            keep_old: args.keep_old,
            services_are_stopped: args.services_are_stopped,
            // Nobody is there to start them: the report says what is left to do.
            wait_for_start: place.engine.is_some() || std::io::stdin().is_terminal(),
            ignored: args.ignore.clone(),
        },
        progress: Arc::clone(&progress),
        cancel: context.stop.clone(),
    };
    let ticker = tokio::spawn({
        let bar = bar.clone();
        async move {
            loop {
                bar.set_length(progress.total_bytes().max(1));
                bar.set_position(progress.done_bytes());
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    });
    let result = work(&site).await;
    ticker.abort();
    bar.finish_and_clear();
    result
}

fn note(config: &Config, id: &str, result: &Result<RestoreReport, Failure>) {
    let error = result.as_ref().err().map(ToString::to_string);
    let run = Run {
        finished: Timestamp::now(),
        backup: Some(id.to_owned()),
        error,
    };
    Record::update(&config.state, |record| record.last_restore = Some(run));
}

fn dry_run(dry: &DryRun) -> String {
    format!("{}\n{}", dry.plan, super::doctor::lines(&dry.checks))
}

fn said(report: &RestoreReport, notes: &[String]) -> String {
    let seconds = |s: f64| output::duration(Duration::try_from_secs_f64(s).unwrap_or_default());
    let mut out = String::new();
    let mut line = |text: String| {
        // Writing to a String cannot fail.
        writeln!(out, "{text}").ok();
    };
    for service in &report.services {
        line(format!(
            "{}: {} in {}",
            service.service,
            output::bytes(service.bytes),
            seconds(service.seconds)
        ));
    }
    for warning in report.warnings.iter().chain(notes) {
        line(format!("note: {warning}"));
    }
    for kept in &report.kept {
        line(format!("the old data is kept in {}", kept.display()));
    }
    if !report.to_start.is_empty() {
        line(format!(
            "start these now, in this order: {}",
            report.to_start.join(", ")
        ));
    }
    let down = report
        .downtime_seconds
        .map(|s| format!(", {} of it with services stopped", seconds(s)))
        .unwrap_or_default();
    line(format!(
        "restored backup {} in {}{down}",
        report.backup,
        seconds(report.total_seconds)
    ));
    out
}
