//! `prune`: gives back the space of what no backup needs.

use std::fmt::Write as _;

use super::pitr::retire::retire;
use super::{Context, Failure, output};
use crate::repository::Repository;
use crate::repository::prune::{self, Amount, Options, Report};

/// Gives back the space of packs that no backup needs any more.
///
/// What nobody needs goes into the repository's trash, and is deleted by a prune two days later: safe beside
/// running backups of any host. Each backup prunes when it is done (BACKUP_PRUNE).
#[derive(Debug, Default, clap::Args)]
pub struct Args {
    /// Only tells what would be done, and how many bytes it would give back.
    #[arg(long)]
    pub dry_run: bool,
    /// Deletes at once, without two days in the trash; refuses while a backup of any host is under way.
    #[arg(long)]
    pub now: bool,
}

pub fn run(context: &Context, args: &Args) -> Result<(), Failure> {
    let repository = context.repository().map_err(anyhow::Error::new)?;
    let mut report = prune(context, &repository, args).map_err(anyhow::Error::new)?;
    let retired = retire(context, &repository, args.dry_run)?;
    if retired.stretches > 0 {
        report.notes.push(format!(
            "{} of WAL that no moment of the last {} days needs {}",
            output::bytes(retired.bytes),
            context.config.pitr.keep_days,
            if args.dry_run {
                "would be dropped"
            } else {
                "dropped"
            }
        ));
    }
    Ok(output::print(context.json, &report, text)?)
}

pub(super) fn prune(
    context: &Context,
    repository: &Repository,
    args: &Args,
) -> Result<Report, crate::repository::RepositoryError> {
    let options = Options {
        dry_run: args.dry_run,
        now: args.now,
        state: Some(context.config.state.clone()),
        level: context.config.compression_level,
    };
    tokio::task::block_in_place(|| prune::prune(repository, &options))
}

/// What a prune did, in one line for the log.
pub(super) fn summary(report: &Report) -> String {
    format!(
        "{} deleted, {} put into the trash, {} waiting there, {} repacked; {} of {} are needed by {} backups",
        output::bytes(report.deleted.bytes),
        output::bytes(report.trashed.bytes),
        output::bytes(report.waiting.bytes),
        output::bytes(report.repacked.bytes),
        output::bytes(report.live.bytes),
        output::bytes(report.stored.bytes),
        report.backups
    )
}

fn text(report: &Report) -> String {
    let (deleted, trashed, repacked) = if report.dry_run {
        (
            "would be deleted",
            "would go into the trash",
            "would be repacked",
        )
    } else {
        ("deleted", "put into the trash", "repacked")
    };
    let row = |what: &str, amount: Amount| {
        vec![
            what.to_owned(),
            amount.packs.to_string(),
            output::bytes(amount.bytes),
        ]
    };
    let mut rows = vec![
        row("found", report.stored),
        row("needed by backups", report.live),
        row(deleted, report.deleted),
        row(trashed, report.trashed),
        row("in the trash, not two days old", report.waiting),
        row(repacked, report.repacked),
    ];
    if report.rewritten.packs > 0 {
        rows.push(row("written instead", report.rewritten));
    }
    if report.left_to_runs.packs > 0 {
        rows.push(row(
            "left alone: young, or a run may need it",
            report.left_to_runs,
        ));
    }
    let mut out = output::table(&["", "packs", "size"], &[false, true, true], &rows);
    for run in &report.runs {
        // Writing to a String cannot fail.
        writeln!(
            out,
            "run {} on {}: {} minutes old{}",
            run.run,
            run.host,
            run.age_seconds / 60,
            if run.alive { "" } else { ", it died" }
        )
        .ok();
    }
    for key in &report.refused {
        writeln!(out, "kept, for the store refuses to delete it: {key}").ok();
    }
    for note in &report.notes {
        writeln!(out, "{note}").ok();
    }
    out
}
