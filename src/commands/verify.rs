//! `verify`: whether backups can be read back.

use std::fmt::Write as _;

use indicatif::ProgressBar;

use super::{Context, Failure, output};
use crate::repository::Repository;
use crate::repository::verify::{Damage, Depth, ReadLog, Scope, VerifyReport, verify_noting};

/// Checks that backups can be read back; exits with 3 when damage is found.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only this backup: an id, the beginning of one, or `latest`. All without it.
    pub backup: Option<String>,
    /// Reads every byte, not only names, sizes, references and seals.
    #[arg(long)]
    pub full: bool,
    /// Reads every byte of this share of the packs: those that were not read for longest.
    #[arg(long, value_name = "PERCENT", conflicts_with = "full", value_parser = clap::value_parser!(u8).range(1..=100))]
    pub sample: Option<u8>,
    /// Repeats the choice of an earlier sample, whose seed was printed.
    #[arg(long, requires = "sample")]
    pub seed: Option<u64>,
}

impl Args {
    fn depth(&self) -> Depth {
        match self.sample {
            Some(percent) => Depth::Sample {
                percent,
                seed: self.seed.unwrap_or_else(rand::random),
            },
            None if self.full => Depth::Full,
            None => Depth::Structure,
        }
    }
}

pub fn run(context: &Context, args: &Args) -> Result<(), Failure> {
    let repository = context.repository().map_err(anyhow::Error::new)?;
    let scope = match &args.backup {
        Some(wanted) => Scope::Backup(repository.resolve(wanted).map_err(anyhow::Error::new)?),
        None => Scope::Everything,
    };
    let report = look(context, &repository, &scope, args.depth())?;
    output::print(context.json, &report, text)?;
    if report.is_good() {
        return Ok(());
    }
    Err(Failure::damage(format!(
        "{} fault{} found: what is named above cannot be restored whole. Keep it, make a new backup now, look at the disk, and run `repair`",
        report.damage.len(),
        if report.damage.len() == 1 {
            " was"
        } else {
            "s were"
        }
    )))
}

/// Verifies with a progress bar, and remembers what was read.
pub(super) fn look(
    context: &Context,
    repository: &Repository,
    scope: &Scope,
    depth: Depth,
) -> anyhow::Result<VerifyReport> {
    let bar = if output::stderr_is_terminal() && !context.json {
        ProgressBar::new(0)
    } else {
        ProgressBar::hidden()
    };
    let state = &context.config.state;
    let mut log = ReadLog::load(state, repository.id());
    let report = tokio::task::block_in_place(|| {
        verify_noting(repository, scope, depth, &mut log, |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        })
    });
    bar.finish_and_clear();
    let report = report?;
    if depth != Depth::Structure {
        let saved = crate::durable::create_dir_all(state, 0o700)
            .map_err(anyhow::Error::new)
            .and_then(|()| Ok(log.save(state, repository.id())?));
        if let Err(err) = saved {
            tracing::warn!("{err:#}: the next sample may read the same packs again");
        }
    }
    Ok(report)
}

pub(super) fn text(report: &VerifyReport) -> String {
    let mut out = damage_text(&report.damage);
    for sentence in &report.unchecked {
        // Writing to a String cannot fail.
        writeln!(out, "not checked: {sentence}").ok();
    }
    for sentence in &report.notes {
        writeln!(out, "note: {sentence}").ok();
    }
    let how = match report.depth {
        Depth::Structure => "names, sizes, references and seals".to_owned(),
        Depth::Sample { percent, seed } => format!(
            "names, sizes, references and seals, and every byte of {} packs with {} ({percent} %, seed {seed})",
            report.read_packs,
            output::bytes(report.read_bytes)
        ),
        Depth::Full => "every byte".to_owned(),
    };
    if report.replaced_packs > 0 {
        writeln!(
            out,
            "{} packs are gone or damaged, and all that is needed of them lies elsewhere",
            report.replaced_packs
        )
        .ok();
    }
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

/// Each fault and what it costs.
pub(super) fn damage_text(damage: &[Damage]) -> String {
    let mut out = String::new();
    for damage in damage {
        let join = |names: &std::collections::BTreeSet<String>| {
            names
                .iter()
                .map(String::as_str)
                .collect::<Vec<_>>()
                .join(", ")
        };
        // Writing to a String cannot fail.
        writeln!(out, "damage: {}", damage.fault).ok();
        for (what, names) in [("backups", &damage.backups), ("archives", &damage.archives)] {
            if !names.is_empty() {
                writeln!(out, "  {what}: {}", join(names)).ok();
            }
        }
        for file in &damage.files {
            writeln!(out, "  file: {file}").ok();
        }
        if damage.more_files > 0 {
            writeln!(out, "  and {} files more", damage.more_files).ok();
        }
    }
    out
}
