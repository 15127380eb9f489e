//! A server for a while, on a backup's data, beside the live one: to read something out of the past.
//!
//! Made of the live server's own image by the engine, without a network, with one mount: the directory that
//! the data is in. Without a container it is a process of this machine that listens on a socket in that
//! directory alone. It runs as the data's owner, asks nobody for a password, and starts no jobs: neither
//! replication workers nor background workers of extensions get a slot.
//!
//! # States
//!
//! ```text
//! journal ─▶ directory ─▶ (caller: data in it) ─▶ container or process ─▶ recovered ─▶ removed ─▶ struck out
//! ```
//!
//! The obligation is written before the directory is made and names all there can be, so [`remove`] takes away
//! whatever a killed run left: container or process first, then the directory.

mod ground;

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::tools::{Connection, Place, Tools};
use crate::durable;
use crate::services::{ErrorKind, ServiceError};
use crate::stack::engine::Engine;
use crate::stack::journal::EntryId;

pub use self::ground::Ground;

/// How its directories are called; the leading dot keeps those in a data directory out of backups.
const PREFIX: &str = ".lifeboat-throwaway-";
const POLL: Duration = Duration::from_millis(300);
const END_WITHIN: Duration = Duration::from_secs(20);
/// How much of its log goes into a sentence.
const LOG_BYTES: usize = 3000;

/// A server that has finished recovery.
pub struct Throwaway {
    ground: Ground,
    server: Server,
    pub tools: Tools,
}

enum Server {
    Container { engine: Engine, name: String },
    Child(tokio::process::Child),
}

impl Throwaway {
    /// Ends the server and removes its data.
    pub async fn remove(mut self) -> Result<(), ServiceError> {
        self.end().await;
        self.ground.remove().await
    }

    /// Ends a process; a container is ended when it is removed.
    async fn end(&mut self) {
        if let Server::Child(child) = &mut self.server {
            end_child(child).await;
        }
    }

    /// Waits until the server has replayed what it is to replay, and takes writes.
    async fn recovered(&mut self, within: Duration) -> Result<(), ServiceError> {
        let deadline = Instant::now() + within;
        loop {
            let doing = "ask the temporary server whether recovery is over";
            let asked = self
                .tools
                .sql("template1", doing, "SELECT pg_is_in_recovery()")
                .await;
            let why = match asked {
                Ok(answer) if answer == "f" => return Ok(()),
                Ok(_) => "it is still recovering".to_owned(),
                Err(err) => err.message,
            };
            let ended = self.has_ended().await;
            if ended || Instant::now() >= deadline {
                let log = self.log().await;
                let what = if ended {
                    "the temporary server on the backup's data ended".to_owned()
                } else {
                    format!(
                        "the temporary server on the backup's data was not ready within {} s ({why}); RESTORE_TIMEOUT allows more time",
                        within.as_secs()
                    )
                };
                return Err(self.ground.error(
                    ErrorKind::Setup,
                    format!("{what}. The end of its log: {log}"),
                ));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn has_ended(&mut self) -> bool {
        match &mut self.server {
            Server::Child(child) => !matches!(child.try_wait(), Ok(None)),
            Server::Container { engine, name } => match engine.inspect(name).await {
                Ok(found) => !found.state.and_then(|s| s.running).unwrap_or(false),
                Err(_) => false,
            },
        }
    }

    async fn log(&self) -> String {
        let text = match &self.server {
            Server::Child(_) => {
                let text = std::fs::read(self.ground.log()).unwrap_or_default();
                let from = text.len().saturating_sub(LOG_BYTES);
                String::from_utf8_lossy(text.get(from..).unwrap_or_default()).into_owned()
            }
            Server::Container { engine, name } => engine
                .log_end(name, LOG_BYTES)
                .await
                .unwrap_or_else(|err| err.to_string()),
        };
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

/// The settings of a server that only this program talks to; they win over those of the backup.
///
/// Memory is bounded, because the live server has its own; durability is nobody's need here. `hot_standby`
/// stays what the caller's settings say.
fn settings(sockets: &Path, hba: &Path) -> Vec<String> {
    let (sockets, hba) = (sockets.display(), hba.display());
    [
        "listen_addresses=".to_owned(),
        "port=5432".to_owned(),
        format!("unix_socket_directories={sockets}"),
        "unix_socket_permissions=0700".to_owned(),
        format!("hba_file={hba}"),
        "external_pid_file=".to_owned(),
        "ssl=off".to_owned(),
        "archive_mode=off".to_owned(),
        "synchronous_standby_names=".to_owned(),
        "primary_conninfo=".to_owned(),
        "shared_buffers=64MB".to_owned(),
        "huge_pages=off".to_owned(),
        "fsync=off".to_owned(),
        "autovacuum=off".to_owned(),
        "max_worker_processes=0".to_owned(),
        "max_logical_replication_workers=0".to_owned(),
        "max_parallel_workers=0".to_owned(),
        "logging_collector=off".to_owned(),
        "log_destination=stderr".to_owned(),
        "lc_messages=C".to_owned(),
    ]
    .into_iter()
    .flat_map(|setting| ["-c".to_owned(), setting])
    .collect()
}

/// Ends whatever runs in a directory of a throwaway server's, and removes both.
pub async fn remove(
    engine: Option<&Engine>,
    directory: &Path,
    container: Option<&str>,
) -> Result<(), String> {
    let is_own = directory
        .file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
    if !is_own {
        return Err(format!(
            "{} is not a directory that this program made",
            directory.display()
        ));
    }
    match (container, engine) {
        (Some(name), Some(engine)) => engine
            .remove_spare(name)
            .await
            .map_err(|err| err.to_string())?,
        (Some(name), None) => {
            return Err(format!(
                "container {name} cannot be removed without the Docker API: docker rm --force --volumes {name}"
            ));
        }
        (None, _) => end_process(&directory.join(ground::DATA)).await?,
    }
    let directory = directory.to_owned();
    tokio::task::spawn_blocking(move || durable::remove_tree(&directory))
        .await
        .map_err(|err| err.to_string())?
        .map(drop)
        .map_err(|err| err.to_string())
}

/// Ends the server whose data directory this is: the process that its lock file names and that works in it.
async fn end_process(data: &Path) -> Result<(), String> {
    let Some(pid) = running(data) else {
        return Ok(());
    };
    // It may have ended just now.
    kill_process(pid, Signal::QUIT).unwrap_or_default();
    let deadline = Instant::now() + END_WITHIN;
    while running(data).is_some() {
        if Instant::now() >= deadline {
            return Err(format!(
                "process {} on {} does not end",
                pid.as_raw_nonzero(),
                data.display()
            ));
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

fn running(data: &Path) -> Option<Pid> {
    let text = std::fs::read_to_string(data.join("postmaster.pid")).ok()?;
    let pid = Pid::from_raw(text.lines().next()?.trim().parse().ok()?)?;
    let works_in = std::fs::read_link(format!("/proc/{}/cwd", pid.as_raw_nonzero())).ok()?;
    (works_in == std::fs::canonicalize(data).ok()?).then_some(pid)
}

async fn end_child(child: &mut tokio::process::Child) {
    let pid = child
        .id()
        .and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    if let Some(pid) = pid {
        // At once: nobody needs its data any more.
        kill_process(pid, Signal::QUIT).unwrap_or_default();
        if tokio::time::timeout(END_WITHIN, child.wait()).await.is_ok() {
            return;
        }
    }
    if let Err(err) = child.kill().await {
        tracing::warn!("the temporary server does not end: {err}");
    }
}
