//! `verify`: whether backups can be read back.

use std::fmt::Write as _;

use indicatif::ProgressBar;

use super::{Context, Failure, output};
use crate::repository::verify::{Depth, Scope, VerifyReport, verify};

/// Checks that backups can be read back; exits with 3 when damage is found.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only this backup: an id, the beginning of one, or `latest`. All without it.
    pub backup: Option<String>,
    /// Reads every byte, not only names, sizes and references.
    #[arg(long)]
    pub full: bool,
}

pub fn run(context: &Context, args: &Args) -> Result<(), Failure> {
    let repository = context.repository().map_err(anyhow::Error::new)?;
    let scope = match &args.backup {
        Some(wanted) => Scope::Backup(repository.resolve(wanted).map_err(anyhow::Error::new)?),
        None => Scope::Everything,
    };
    let depth = if args.full {
        Depth::Full
    } else {
        Depth::Structure
    };
    let bar = if output::stderr_is_terminal() && !context.json {
        ProgressBar::new(0)
    } else {
        ProgressBar::hidden()
    };
    let report = verify(&repository, &scope, depth, |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let report = report.map_err(anyhow::Error::new)?;
    output::print(context.json, &report, text)?;
    if report.is_good() {
        return Ok(());
    }
    Err(Failure::damage(format!(
        "{} fault{} found: the backups named above cannot be restored whole. Keep them, make a new backup now, and look at the disk",
        report.damage.len(),
        if report.damage.len() == 1 {
            " was"
        } else {
            "s were"
        }
    )))
}

fn text(report: &VerifyReport) -> String {
    let mut out = String::new();
    for damage in &report.damage {
        let join = |names: &std::collections::BTreeSet<String>| {
            names
                .iter()
                .map(String::as_str)
                .collect::<Vec<_>>()
                .join(", ")
        };
        // Writing to a String cannot fail.
        writeln!(
            out,
            "damage: {}\n  backups: {}\n  archives: {}",
            damage.fault,
            join(&damage.backups),
            join(&damage.archives)
        )
        .ok();
    }
    let how = match report.depth {
        Depth::Structure => "names, sizes and references",
        Depth::Full => "every byte",
    };
    writeln!(
        out,
        "{} backups, {} archives, {} packs with {}: {how} checked, {}",
        report.backups,
        report.archives,
        report.packs,
        output::bytes(report.pack_bytes),
        if report.is_good() {
            "all good"
        } else {
            "damage found"
        }
    )
    .ok();
    out
}
