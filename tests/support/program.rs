//! The program itself, with nothing of the caller's settings.

use std::path::Path;
use std::process::{Command, Stdio};

/// Works below `root`, without the Docker API. It gives way to nobody, for every test is somebody else to another
/// one's backup, which would wait for it.
pub fn lifeboat(root: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
    command
        .args(args)
        .env_clear()
        .stdin(Stdio::null())
        .env("BACKUP_PRIORITY", "normal")
        .env("DOCKER_HOST", "none")
        .env("PATH", "/usr/bin:/bin");
    for (name, directory) in [
        ("LIFEBOAT_REPOSITORY", "repo"),
        ("LIFEBOAT_STATE", "state"),
        ("LIFEBOAT_DATA", "data"),
        ("LIFEBOAT_PROJECT_DIR", "project"),
    ] {
        command.env(name, root.join(directory));
    }
    command
}
