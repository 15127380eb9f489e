//! One file a command: its arguments, and one function that reads like the recipe.

pub mod backup;
pub mod copy;
pub mod doctor;
pub mod export;
pub mod forget;
pub mod import;
pub mod key;
pub mod list;
pub mod mark;
pub mod pitr;
pub mod prune;
pub mod repair;
pub mod restore;
pub mod run;
pub mod show;
pub mod status;
pub mod verify;

mod adapters;
mod destination;
mod extract;
mod moment;
mod output;
mod parts;
mod question;
mod record;
mod retain;
mod workplace;

use std::fmt;
use std::io::Write;

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::config::{Config, ConfigError};
use crate::repository::store;
use crate::repository::{Repository, RepositoryError};

/// What every command gets.
#[derive(Clone)]
pub struct Context {
    pub config: Config,
    pub json: bool,
    /// Cancelled when the program is asked to stop.
    pub stop: CancellationToken,
}

impl Context {
    /// Opens the repository with the keys that were given.
    pub fn repository(&self) -> Result<Repository, RepositoryError> {
        Repository::open(store::connect(&self.config)?, &self.config.keys)
    }
}

/// A command's failure: printed once, with its exit code.
pub struct Failure {
    pub code: u8,
    error: anyhow::Error,
}

impl Failure {
    /// A mistake of use or configuration: exit code 2.
    pub fn usage(error: impl Into<anyhow::Error>) -> Self {
        Self {
            code: 2,
            error: error.into(),
        }
    }

    /// Damage was found: exit code 3.
    pub fn damage(sentence: String) -> Self {
        Self {
            code: 3,
            error: anyhow::Error::msg(sentence),
        }
    }

    /// Something failed: exit code 1.
    pub fn sentence(sentence: impl Into<String>) -> Self {
        Self {
            code: 1,
            error: anyhow::Error::msg(sentence.into()),
        }
    }

    pub fn print(&self, json: bool) {
        let mut stderr = std::io::stderr().lock();
        // Where standard error is closed, the exit code still tells.
        if json {
            writeln!(
                stderr,
                "{}",
                serde_json::json!({ "error": self.to_string() })
            )
            .ok();
        } else {
            writeln!(stderr, "lifeboat: {self}").ok();
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = String::new();
        for cause in self.error.chain() {
            let text = cause.to_string();
            // What a wrapper quotes already is not repeated.
            if said.contains(&text) {
                continue;
            }
            if !said.is_empty() {
                said.push_str(": ");
            }
            said.push_str(&text);
        }
        f.write_str(&said)
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        let code = if error
            .chain()
            .any(|e| e.downcast_ref::<ConfigError>().is_some())
        {
            2
        } else if error
            .chain()
            .filter_map(|e| e.downcast_ref::<RepositoryError>())
            .any(RepositoryError::is_damage)
        {
            3
        } else {
            1
        };
        Self { code, error }
    }
}

/// A token that SIGTERM or SIGINT cancels: what runs ends in order and gives everything back.
pub fn stop_on_signals() -> anyhow::Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let cancel = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("asked to stop: ending what runs in order");
        cancel.cancel();
    });
    Ok(stop)
}

/// Logs to standard error, as text or JSON; `LOG_LEVEL` may be a filter as `RUST_LOG` is.
pub fn start_logging(config: &Config) {
    let filter = EnvFilter::try_new(format!(
        "{},h2=warn,hyper=warn,tower=warn",
        config.log_level
    ))
    .unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false);
    let started = if config.log_json {
        builder.json().try_init()
    } else {
        builder.with_ansi(output::stderr_is_terminal()).try_init()
    };
    if started.is_err() {
        tracing::debug!("logging was started before");
    }
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
}

/// Leaves CPU and disk to the services first: the calling thread and those it will start.
pub fn give_way() {
    if let Err(err) = crate::priority::lower() {
        tracing::warn!(
            "backups take CPU and disk like the services, for their priority cannot be lowered: {err}"
        );
    }
}

/// Writes text to standard output.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .context("write to standard output")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_sentence_quotes_of_its_causes_is_not_said_twice() {
        let innermost = anyhow::anyhow!("timed out (os error 110)");
        let lost = innermost.context("the connection is lost");
        let said = "cannot end the backup: the connection is lost: timed out (os error 110)";
        assert_eq!(Failure::from(lost.context(said)).to_string(), said);
        let other = anyhow::anyhow!("no space").context("cannot write x");
        assert_eq!(Failure::from(other).to_string(), "cannot write x: no space");
    }
}
