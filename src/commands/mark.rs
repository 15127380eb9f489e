//! `mark`: gives this moment a name that `restore --mark` goes back to.

use std::fmt::Write as _;
use std::sync::Arc;

use serde::Serialize;

use super::pitr::spans;
use super::workplace::Sight;
use super::{Context, Failure, output, pitr};
use crate::repository::wal::Mark;
use crate::services::ServiceKind;
use crate::services::postgres::pitr::point;

/// Gives this moment of PostgreSQL a name, such as before-upgrade, for `restore --mark`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Letters, digits, `-`, `_` and `.`.
    pub name: String,
}

#[derive(Debug, Serialize)]
struct Marked {
    marks: Vec<Mark>,
}

const LONGEST_NAME: usize = 63;

pub async fn run(context: &Context, args: &Args) -> Result<(), Failure> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if args.name.is_empty() || args.name.len() > LONGEST_NAME || !args.name.chars().all(is_plain) {
        return Err(Failure::usage(anyhow::anyhow!(
            "\"{}\" is no name for a mark: up to {LONGEST_NAME} letters, digits, -, _ and . make one",
            args.name.escape_debug()
        )));
    }
    if !context.config.pitr.on {
        return Err(Failure::usage(anyhow::Error::msg(
            "a mark is a place in the WAL, and that is not kept: set PITR=on, or make a `backup` instead",
        )));
    }
    let repository = Arc::new(context.repository().map_err(anyhow::Error::new)?);
    let sight = Sight::look(context).await?;
    let mut marks = Vec::new();
    for found in &sight.stack.services {
        if found.kind == ServiceKind::Postgres {
            let mark = point::mark(&context.config, found, &args.name).await;
            marks.push(mark.map_err(anyhow::Error::new)?);
        }
    }
    // What it stands for is in the repository before the mark is.
    let steps = pitr::fetch(context).await?;
    for mark in &marks {
        let stored = steps.iter().find(|step| {
            step.system == mark.system && step.timeline == mark.timeline && step.end >= mark.lsn
        });
        let step = stored.ok_or_else(|| {
            Failure::sentence(format!(
                "{}: the WAL up to the mark is not stored: see `pitr status`, and mark again",
                mark.service
            ))
        })?;
        if !spans::reaches(context, &repository, step)? {
            return Err(Failure::sentence(format!(
                "{}: no backup leads to this moment, so nothing could go back to the mark: run `backup`, and mark again",
                mark.service
            )));
        }
        repository.put_mark(mark).map_err(anyhow::Error::new)?;
    }
    Ok(output::print(context.json, &Marked { marks }, |marked| {
        text(marked, &context.config.schedule.time_zone)
    })?)
}

fn text(marked: &Marked, zone: &str) -> String {
    let mut out = String::new();
    for mark in &marked.marks {
        // Writing to a String cannot fail.
        writeln!(
            out,
            "{}: marked as \"{}\" at {}; `restore --mark {}` goes back to it",
            mark.service,
            mark.name,
            output::time(mark.at, zone),
            mark.name
        )
        .ok();
    }
    out
}
