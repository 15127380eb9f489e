//! `doctor`: whether a backup would work, and what to do when not.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use super::{Context, Failure, adapters, output};
use crate::config::Config;
use crate::repository::store::{self, Store};
use crate::repository::{Repository, RepositoryError};
use crate::services::postgres::role;
use crate::services::{Check, ServiceKind};
use crate::stack::discover;
use crate::stack::engine::Engine;

/// Checks configuration, mounts, rights, connections and space; changes nothing.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Prints SQL for psql that makes a PostgreSQL role with no more rights than backups need, and checks nothing.
    #[arg(long, value_name = "NAME", num_args = 0..=1, default_missing_value = "lifeboat")]
    pub role_sql: Option<String>,
}

#[derive(Debug, Serialize)]
struct Script {
    service: String,
    sql: String,
}

#[derive(Debug, Serialize)]
struct Report {
    good: bool,
    checks: Vec<Check>,
}

pub async fn run(context: &Context, args: &Args) -> Result<(), Failure> {
    let config = &context.config;
    if let Some(name) = &args.role_sql {
        return print_role(context, name).await;
    }
    let mut checks = vec![Check::good("configuration", "every setting is understood")];
    checks.extend(
        config
            .warnings
            .iter()
            .map(|warning| Check::bad("configuration", warning.clone())),
    );
    checks.push(writable("state directory", &config.state, "LIFEBOAT_STATE"));
    let store = store::connect(config);
    checks.push(match &store {
        Ok(store) => repository(config, store),
        Err(err) => Check::bad("repository", err.to_string()),
    });
    let mut estimate_bytes = 0;
    match Engine::from_config(config).await {
        Err(err) => checks.push(Check::bad("docker", err.to_string())),
        Ok(engine) => {
            match &engine {
                Some(engine) => checks.push(Check::good(
                    "docker",
                    format!("{}, API {}", engine.host(), engine.api_version()),
                )),
                None => checks.push(Check::good(
                    "docker",
                    "not used: a restore asks you to stop and start the services",
                )),
            }
            match discover::discover(config, engine.as_ref()).await {
                Err(err) => checks.push(Check::bad("stack", err.to_string())),
                Ok(stack) => {
                    checks.extend(
                        stack
                            .warnings
                            .iter()
                            .map(|warning| Check::bad("stack", warning.clone())),
                    );
                    if stack.services.is_empty() {
                        checks.push(Check::bad("stack", "no service was found: mount the Docker socket, or name the services by POSTGRES_HOST, QDRANT_URL, OLLAMA_URL, N8N_DATA"));
                    }
                    for found in &stack.services {
                        match adapters::service(config, found) {
                            Ok(service) => {
                                checks.extend(service.check().await);
                                estimate_bytes += service.estimate().await;
                            }
                            Err(err) => checks.push(Check::bad(found.name.clone(), err.message)),
                        }
                    }
                }
            }
        }
    }
    if let Ok(store) = &store {
        checks.push(space(&**store, estimate_bytes));
    }
    let report = Report {
        good: checks.iter().all(|check| check.outcome.is_ok()),
        checks,
    };
    output::print(context.json, &report, text)?;
    if report.good {
        Ok(())
    } else {
        Err(Failure::sentence(
            "a backup would not work yet: see the lines marked ✗",
        ))
    }
}

async fn print_role(context: &Context, name: &str) -> Result<(), Failure> {
    let config = &context.config;
    let engine = Engine::from_config(config)
        .await
        .map_err(anyhow::Error::new)?;
    let stack = discover::discover(config, engine.as_ref())
        .await
        .map_err(anyhow::Error::new)?;
    let mut scripts = Vec::new();
    for service in &stack.services {
        if service.kind == ServiceKind::Postgres {
            let sql = role::script_for(config, service, name)
                .await
                .map_err(anyhow::Error::new)?;
            scripts.push(Script {
                service: service.name.clone(),
                sql,
            });
        }
    }
    if scripts.is_empty() {
        return Err(Failure::sentence(
            "no PostgreSQL was found: mount the Docker socket, or set POSTGRES_HOST",
        ));
    }
    Ok(output::print(context.json, &scripts, |scripts| {
        scripts.iter().map(|script| script.sql.as_str()).collect()
    })?)
}

fn writable(subject: &str, dir: &Path, variable: &str) -> Check {
    let tried = crate::durable::create_dir_all(dir, 0o700)
        .and_then(|()| crate::durable::AtomicFile::create(dir, 0o600));
    match tried {
        Ok(_) => Check::good(subject, dir.display().to_string()),
        Err(err) => Check::bad(
            subject,
            format!(
                "{err}: mount a writable directory at {} or set {variable}",
                dir.display()
            ),
        ),
    }
}

fn repository(config: &Config, store: &Arc<dyn Store>) -> Check {
    let subject = "repository";
    match config.repository.directory() {
        Some(dir) => {
            let writable = writable(subject, dir, "LIFEBOAT_REPOSITORY");
            if writable.outcome.is_err() {
                return writable;
            }
        }
        None => {
            if let Err(err) = store.check_writable() {
                return Check::bad(subject, err.to_string());
            }
        }
    }
    let place = store.describe();
    match Repository::open(Arc::clone(store), &config.keys) {
        Ok(repository) => match repository.backups() {
            Ok(backups) => Check::good(
                subject,
                format!(
                    "{place}, {} backups; {}",
                    backups.len(),
                    if repository.is_encrypted() {
                        "encrypted"
                    } else {
                        "not encrypted: keep it private, or set AGE_PASSPHRASE for a new one"
                    }
                ),
            ),
            Err(err) => Check::bad(subject, err.to_string()),
        },
        Err(RepositoryError::NoRepository(_)) => {
            Check::good(subject, format!("{place}, new: the first backup makes it"))
        }
        Err(err) => Check::bad(subject, err.to_string()),
    }
}

/// A first backup compresses to well below its size; half of it is asked for.
fn space(store: &dyn Store, estimate_bytes: u64) -> Check {
    let subject = "space";
    match store.free_bytes() {
        Some(free) if free < estimate_bytes / 2 => Check::bad(
            subject,
            format!(
                "{} free in the repository, the stack holds {}: a first backup may not fit; free some space or use a larger disk",
                output::bytes(free),
                output::bytes(estimate_bytes)
            ),
        ),
        Some(free) => Check::good(
            subject,
            format!(
                "{} free in the repository, the stack holds {}",
                output::bytes(free),
                output::bytes(estimate_bytes)
            ),
        ),
        None if store.is_remote() => Check::good(
            subject,
            format!(
                "{} has no limit that can be asked for, the stack holds {}",
                store.describe(),
                output::bytes(estimate_bytes)
            ),
        ),
        None => Check::bad(
            subject,
            format!("{} cannot be asked for its free space", store.describe()),
        ),
    }
}

fn text(report: &Report) -> String {
    lines(&report.checks)
}

/// One line a check, marked good or bad.
pub(super) fn lines(checks: &[Check]) -> String {
    let color = std::io::IsTerminal::is_terminal(&std::io::stdout());
    let mark = |good: bool| match (good, color) {
        (true, true) => "\u{1b}[32m✓\u{1b}[0m",
        (true, false) => "✓",
        (false, true) => "\u{1b}[31m✗\u{1b}[0m",
        (false, false) => "✗",
    };
    let mut out = String::new();
    for check in checks {
        let (Ok(said) | Err(said)) = &check.outcome;
        // Writing to a String cannot fail.
        writeln!(
            out,
            "{} {}: {said}",
            mark(check.outcome.is_ok()),
            check.subject
        )
        .ok();
    }
    out
}
