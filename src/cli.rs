//! The command line: what each type's comments say is the help.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};

use crate::commands::{
    backup, copy, doctor, export, forget, import, key, list, mark, pitr, prune, repair, restore,
    run, show, status, verify,
};

/// Backs up a compose stack of n8n, PostgreSQL, Ollama and Qdrant while it runs, and gets it back.
///
/// Settings come from the environment: `lifeboat variables` lists them.
#[derive(Debug, Parser)]
#[command(name = "lifeboat", version, propagate_version = true)]
pub struct Cli {
    /// Prints one JSON document instead of text.
    #[arg(long, global = true)]
    pub json: bool,

    #[command(subcommand)]
    pub command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs the schedule until it is stopped; what the container does by default.
    Run(run::Args),
    /// Backs up the stack now.
    Backup(backup::Args),
    /// Lists the backups.
    List(list::Args),
    /// Shows what a backup holds.
    Show(show::Args),
    /// Restores the stack, or a part of it, from a backup.
    Restore(restore::Args),
    /// Gives this moment of PostgreSQL a name that a restore can go back to.
    Mark(mark::Args),
    /// Shows which moments of PostgreSQL can be restored, and looks after its WAL.
    Pitr(pitr::Args),
    /// Takes in a backup that was made with tar or cp.
    Import(import::Args),
    /// Drops backups by hand.
    Forget(forget::Args),
    /// Writes a backup's archives as a plain tar file to standard output.
    Export(export::Args),
    /// Checks that backups can be read back.
    Verify(verify::Args),
    /// Shows who can read the repository, or changes its passphrase.
    Key(key::Args),
    /// Gives back the space of what no backup needs any more.
    Prune(prune::Args),
    /// Heals damaged backups from what is left, and makes the index anew.
    Repair(repair::Args),
    /// Copies all backups to a second repository.
    Copy(copy::Args),
    /// Checks configuration, mounts, rights, connections and space.
    Doctor(doctor::Args),
    /// Tells how the last runs went; exits with 1 when a person should look.
    Status(status::Args),
    /// Prints the table of environment variables.
    Variables,
}

impl Command {
    /// Whether it makes backups while the services work.
    pub const fn is_backup(&self) -> bool {
        matches!(self, Self::Run(_) | Self::Backup(_))
    }
}

/// Names under which the program is a command itself: links in the image.
const MULTI_CALL: &[&str] = &[
    "run", "backup", "list", "show", "restore", "import", "forget", "export", "verify", "prune",
    "repair", "copy", "key", "doctor", "status", "mark", "pitr",
];

impl Cli {
    /// Parses arguments; a program name such as `restore` counts as the command.
    pub fn parse_multi_call(args: impl IntoIterator<Item = OsString>) -> Self {
        Self::parse_from(expand(args.into_iter().collect()))
    }
}

fn expand(mut args: Vec<OsString>) -> Vec<OsString> {
    let called = args.first().map(PathBuf::from);
    let name = called
        .as_deref()
        .and_then(Path::file_name)
        .and_then(|name| name.to_str());
    if let Some(name) = name.filter(|name| MULTI_CALL.contains(name)) {
        args.splice(..1, [OsString::from("lifeboat"), OsString::from(name)]);
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_link_named_like_a_command_is_that_command() {
        let expanded = |args: &[&str]| expand(args.iter().map(OsString::from).collect());
        assert_eq!(
            expanded(&["/usr/local/bin/restore", "latest"]),
            ["lifeboat", "restore", "latest"]
        );
        assert_eq!(expanded(&["lifeboat", "list"]), ["lifeboat", "list"]);
    }
}
