//! Changes a fraction of the documents, to see what the next backup stores for it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use crate::postgres;
use crate::stack::Stack;

/// Where in the table the changed rows lie.
#[derive(Clone, Copy, ValueEnum)]
pub enum Pattern {
    /// Evenly over the whole table: the most pages are touched.
    Spread,
    /// Side by side at the table's end, like the newest rows.
    Range,
}

/// Writes new bodies into a fraction of the documents and returns how many.
pub fn run(stack: &Stack, fraction: f64, pattern: Pattern) -> Result<u64> {
    ensure!(
        fraction > 0.0 && fraction <= 1.0,
        "--fraction must be above 0 and at most 1, such as 0.01"
    );
    let mut client = postgres::connect(stack, Duration::from_secs(10))?;
    let chosen = match pattern {
        Pattern::Spread => "floor(id * $1::float8) > floor((id - 1) * $1::float8)",
        Pattern::Range => {
            "id > (SELECT max(id) - ceil(count(*) * $1::float8) FROM harness.documents)"
        }
    };
    let update = format!(
        "UPDATE harness.documents AS d
         SET revision = d.revision + 1, body = made.body,
             digest = md5((d.revision + 1) || made.body)
         FROM harness.documents AS old,
              LATERAL (SELECT string_agg(md5(old.id || ':' || old.revision + 1 || ':' || k), '')
                       AS body FROM generate_series(1, 32) k) made
         WHERE old.id = d.id AND d.id IN (SELECT id FROM harness.documents WHERE {chosen})"
    );
    let changed = client
        .execute(&update, &[&fraction])
        .context("change documents")?;
    client
        .batch_execute("CHECKPOINT")
        .context("checkpoint, so that the data files hold the change")?;
    Ok(changed)
}
