//! `key`: who can read the repository, and its passphrase.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use anyhow::Context as _;
use serde::Serialize;

use super::{Context, Failure, output};
use crate::config::Secret;

/// Shows how the repository is encrypted, or changes its passphrase.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Clone, Copy, clap::Subcommand)]
pub enum Command {
    /// Shows the repository's id and who can read it.
    Show,
    /// Sets a new passphrase, read as one line from standard input; AGE_PASSPHRASE must hold the old one.
    Passphrase,
}

#[derive(Debug, Serialize)]
struct Shown {
    repository: String,
    encrypted: bool,
    recipients: Vec<String>,
    can_read: bool,
}

pub fn run(context: &Context, args: &Args) -> Result<(), Failure> {
    match args.command {
        Command::Show => show(context),
        Command::Passphrase => passphrase(context),
    }
}

fn show(context: &Context) -> Result<(), Failure> {
    let repository = context.repository().map_err(anyhow::Error::new)?;
    let shown = Shown {
        repository: repository.id().to_owned(),
        encrypted: repository.is_encrypted(),
        recipients: repository.recipients().to_vec(),
        can_read: repository.vault().can_read(),
    };
    Ok(output::print(context.json, &shown, text)?)
}

fn text(shown: &Shown) -> String {
    let mut out = format!(
        "repository {}: {}\n",
        shown.repository,
        if shown.encrypted {
            "encrypted with age"
        } else {
            "not encrypted"
        }
    );
    for recipient in &shown.recipients {
        out.push_str("readable by ");
        out.push_str(recipient);
        out.push('\n');
    }
    if !shown.can_read {
        out.push_str("this host writes to it and cannot read it\n");
    }
    out
}

fn passphrase(context: &Context) -> Result<(), Failure> {
    let repository = context.repository().map_err(anyhow::Error::new)?;
    if std::io::stdin().is_terminal() {
        let mut stderr = std::io::stderr().lock();
        // Where standard error is closed nobody reads the question.
        write!(stderr, "New passphrase (it is shown as you type): ").ok();
        stderr.flush().ok();
    }
    let mut line = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut line)
        .context("read the new passphrase from standard input")?;
    let new = line.trim_end_matches(['\n', '\r']);
    if new.is_empty() {
        return Err(Failure::usage(anyhow::anyhow!(
            "no new passphrase came on standard input: give it as one line, as in `key passphrase <FILE`"
        )));
    }
    repository
        .change_passphrase(&context.config.keys, &Secret::new(new))
        .map_err(anyhow::Error::new)?;
    super::print(
        "The passphrase is changed. Set AGE_PASSPHRASE to the new one now: the old one opens nothing any more.\n\
         Whoever had the old one and a copy of the repository can still read that copy.\n",
    )?;
    Ok(())
}
