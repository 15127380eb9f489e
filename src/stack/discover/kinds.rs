//! What a container is, by label, image, environment, mounts, ports and command; never by its name.

use std::path::{Path, PathBuf};

use super::DiscoverError;
use super::container::Container;
use crate::services::ServiceKind;
use crate::stack::CompanionRole;

/// What a container is to a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// A server, or the jobs and workers that use its image.
    Known(ServiceKind),
    /// Labelled `lifeboat.service=volume`.
    Volume,
    /// Labelled `lifeboat.service=ignore`.
    Ignored,
    /// A volume if the sidecar sees its data.
    Other,
}

pub(super) fn classify(container: &Container) -> Result<Class, DiscoverError> {
    let Some(wanted) = &container.wanted else {
        return Ok(recognise(container).map_or(Class::Other, Class::Known));
    };
    match wanted.trim().to_ascii_lowercase().as_str() {
        "postgres" => Ok(Class::Known(ServiceKind::Postgres)),
        "qdrant" => Ok(Class::Known(ServiceKind::Qdrant)),
        "ollama" => Ok(Class::Known(ServiceKind::Ollama)),
        "n8n" => Ok(Class::Known(ServiceKind::N8n)),
        "volume" => Ok(Class::Volume),
        "ignore" => Ok(Class::Ignored),
        _ => Err(DiscoverError::Label(format!(
            "compose service {} has the label lifeboat.service={wanted}, which is none of postgres, qdrant, \
             ollama, n8n, volume and ignore: correct it in the compose file and recreate the container",
            container.service
        ))),
    }
}

/// The image's name decides; an image of another name is known by what only that server has.
fn recognise(container: &Container) -> Option<ServiceKind> {
    let has = |name: &str| container.environment.contains_key(name);
    let near = |path: &str| container.mounts_at(Path::new(path));
    let exposes = |port: u16| container.ports.contains(&port);
    match container.image_name() {
        "n8n" => return Some(ServiceKind::N8n),
        "postgres" | "postgis" | "pgvector" => return Some(ServiceKind::Postgres),
        "qdrant" => return Some(ServiceKind::Qdrant),
        "ollama" => return Some(ServiceKind::Ollama),
        _ => {}
    }
    if matches!(container.image_owner(), Some("postgis" | "pgvector")) {
        return Some(ServiceKind::Postgres);
    }
    // The kit hands POSTGRES_* to every service through `.env`, and tools are built on the server's image:
    // only what runs the server is one.
    let runs_postgres = words(&container.command).any(|w| w.rsplit('/').next() == Some("postgres"));
    if runs_postgres && (has("PGDATA") || exposes(5432) || near("/var/lib/postgresql")) {
        return Some(ServiceKind::Postgres);
    }
    if (exposes(6333) && exposes(6334)) || near("/qdrant/storage") {
        return Some(ServiceKind::Qdrant);
    }
    if near("/home/node/.n8n") {
        return Some(ServiceKind::N8n);
    }
    (exposes(11434) || near("/root/.ollama")).then_some(ServiceKind::Ollama)
}

/// Whether a container of a known kind is not its server but something beside it.
///
/// `awaited` says that another service waits for its end (`service_completed_successfully`).
pub(super) fn beside(
    kind: ServiceKind,
    container: &Container,
    awaited: bool,
) -> Option<CompanionRole> {
    if awaited || container.one_off || is_job(kind, &container.command) {
        return Some(CompanionRole::OneShot);
    }
    // n8n's queue mode: `n8n worker` runs executions, `n8n webhook` takes requests.
    let has_word = |word| words(&container.command).any(|w| w == word);
    let is_worker = kind == ServiceKind::N8n && (has_word("worker") || has_word("webhook"));
    is_worker.then_some(CompanionRole::Worker)
}

/// Whether the command uses the server's tools instead of being the server.
fn is_job(kind: ServiceKind, command: &[String]) -> bool {
    let mut words = words(command);
    match kind {
        ServiceKind::N8n => words.any(|w| {
            ["import:", "export:", "user-management:", "db:"]
                .iter()
                .any(|job| w.starts_with(job))
                || w == "execute"
        }),
        ServiceKind::Ollama => {
            let words: Vec<&str> = words.collect();
            let has = |word| words.contains(&word);
            (has("pull") || has("create") || has("run")) && !has("serve")
        }
        ServiceKind::Postgres => words.any(|w| {
            matches!(
                w.rsplit('/').next().unwrap_or(w),
                "psql" | "pg_dump" | "pg_dumpall" | "pg_restore" | "pg_basebackup"
            )
        }),
        _ => false,
    }
}

/// A command's words, also those inside `sh -c "…"`.
fn words(command: &[String]) -> impl Iterator<Item = &str> {
    command
        .iter()
        .flat_map(|part| part.split(|c: char| c.is_whitespace() || matches!(c, ';' | '&' | '|')))
        .filter(|word| !word.is_empty())
}

/// Where a server of the kind keeps its data, in its container.
pub(super) fn data_targets(kind: ServiceKind, container: &Container) -> Vec<PathBuf> {
    let set = |name: &str| {
        container
            .environment
            .get(name)
            .filter(|v| v.starts_with('/'))
            .map(PathBuf::from)
    };
    let mut targets: Vec<PathBuf> = match kind {
        ServiceKind::Postgres => set("PGDATA").into_iter().collect(),
        ServiceKind::Qdrant => [
            "QDRANT__STORAGE__STORAGE_PATH",
            "QDRANT__STORAGE__SNAPSHOTS_PATH",
        ]
        .into_iter()
        .filter_map(set)
        .collect(),
        ServiceKind::Ollama => set("OLLAMA_MODELS").into_iter().collect(),
        ServiceKind::N8n => set("N8N_USER_FOLDER")
            .map(|folder| folder.join(".n8n"))
            .into_iter()
            .collect(),
        ServiceKind::Volume | ServiceKind::Project => Vec::new(),
    };
    targets.extend(default_targets(kind).iter().map(PathBuf::from));
    targets
}

/// Where the images keep their data; the first is where a lone data directory is taken to be mounted.
pub(super) const fn default_targets(kind: ServiceKind) -> &'static [&'static str] {
    match kind {
        ServiceKind::Postgres => &["/var/lib/postgresql/data", "/var/lib/postgresql"],
        ServiceKind::Qdrant => &["/qdrant/storage", "/qdrant/snapshots"],
        ServiceKind::Ollama => &["/root/.ollama"],
        ServiceKind::N8n => &["/home/node/.n8n"],
        ServiceKind::Volume | ServiceKind::Project => &[],
    }
}
