//! The question before something is changed for good.

use std::io::{BufRead as _, IsTerminal as _};

use anyhow::Context as _;

use super::{Context, Failure};

/// Asks on a terminal; without one, `--yes` must have said it. `act` completes "add --yes to".
pub fn confirm(context: &Context, yes: bool, question: &str, act: &str) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() || context.json {
        return Err(Failure::usage(anyhow::anyhow!(
            "nothing was changed: there is no terminal to ask on, so add --yes to {act}"
        )));
    }
    super::print(&format!("{question} Type yes: "))?;
    let mut answer = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut answer)
        .context("read the answer")?;
    if answer.trim().eq_ignore_ascii_case("yes") {
        return Ok(());
    }
    Err(Failure::sentence("nothing was changed"))
}
