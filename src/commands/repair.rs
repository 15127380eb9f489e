//! `repair`: the index from the packs, and lost pieces from wherever else they are.

use std::fmt::Write as _;

use indicatif::ProgressBar;
use serde::Serialize;

use super::{Context, Failure, output, verify};
use crate::repository::RepositoryError;
use crate::repository::repair::{Healed, IndexRepair, heal, rebuild_index};
use crate::repository::verify::{Depth, Scope, VerifyReport};

/// Makes the index anew where it is lost or damaged, and heals packs that `verify` found missing or damaged
/// from what other packs hold and from what is left of them. Run `backup` first: what it stores again heals
/// older backups too. Exits with 3 when something stays lost.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only this part of the repository.
    pub what: Option<What>,
    /// Changes nothing and tells what could be done.
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum What {
    Index,
}

#[derive(Debug, Serialize)]
struct Outcome {
    dry_run: bool,
    index: IndexRepair,
    packs: Vec<Healed>,
    /// What `verify` says afterwards.
    verify: Option<VerifyReport>,
}

pub async fn run(context: &Context, args: &Args) -> Result<(), Failure> {
    let _lock = super::workplace::lock(context, "repair").await?;
    let repository = context.repository().map_err(anyhow::Error::new)?;
    let bar = if output::stderr_is_terminal() && !context.json {
        ProgressBar::new(0)
    } else {
        ProgressBar::hidden()
    };
    let show = |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    };
    let repaired = tokio::task::block_in_place(|| -> Result<_, RepositoryError> {
        if !args.dry_run {
            repository.write_texts()?;
        }
        let index = rebuild_index(&repository, args.dry_run, show)?;
        let packs = match args.what {
            Some(What::Index) => Vec::new(),
            None => heal(&repository, args.dry_run, show)?,
        };
        Ok((index, packs))
    });
    bar.finish_and_clear();
    let (index, packs) = repaired.map_err(anyhow::Error::new)?;
    let verify = match args.what {
        Some(What::Index) => None,
        None => Some(verify::look(
            context,
            &repository,
            &Scope::Everything,
            Depth::Structure,
        )?),
    };
    let outcome = Outcome {
        dry_run: args.dry_run,
        index,
        packs,
        verify,
    };
    output::print(context.json, &outcome, text)?;
    match &outcome.verify {
        Some(report) if !report.is_good() && !args.dry_run => Err(Failure::damage(format!(
            "{} fault{} stay: what is named above is lost, unless a later backup stores it again; then run `repair` once more",
            report.damage.len(),
            if report.damage.len() == 1 { "" } else { "s" }
        ))),
        Some(report) if !report.is_good() => Err(Failure::damage(
            "nothing was changed: run it without --dry-run".to_owned(),
        )),
        _ => Ok(()),
    }
}

fn text(outcome: &Outcome) -> String {
    let mut out = String::new();
    let (would, index) = (
        if outcome.dry_run { "would be " } else { "" },
        &outcome.index,
    );
    // Writing to a String cannot fail.
    writeln!(
        out,
        "index: {} packs {would}added, {} damaged parts {would}removed",
        index.packs_added,
        index.parts_removed.len()
    )
    .ok();
    for pack in &index.packs_damaged {
        writeln!(out, "index: pack {pack} is damaged and was left out").ok();
    }
    for healed in &outcome.packs {
        let pack = &healed.pack;
        if healed.is_whole {
            writeln!(out, "pack {pack}: whole again").ok();
        } else if healed.is_unknown {
            writeln!(
                out,
                "pack {pack}: what it held is not known, so nothing of it can be healed"
            )
            .ok();
        } else {
            writeln!(
                out,
                "pack {pack}: {} found in other packs, {} {would}saved from it, {} nowhere",
                output::bytes(healed.found_bytes),
                output::bytes(healed.saved_bytes),
                output::bytes(healed.lost_bytes)
            )
            .ok();
        }
    }
    if let Some(report) = &outcome.verify {
        out.push_str(&verify::text(report));
    }
    out
}
