//! The compose stack the sidecar belongs to: its services, their containers and where their data is mounted.
//!
//! Found through the Docker API ([`discover`]) or, without it, from the environment alone.

pub mod discover;
pub mod engine;
pub mod journal;
pub mod lock;
pub mod order;
pub mod undo;

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::services::ServiceKind;

/// The services of one compose project, in start order: dependencies first, n8n last.
#[derive(Debug, Clone, Default)]
pub struct Stack {
    /// The compose project's name; `None` without the Docker API and without `LIFEBOAT_PROJECT`.
    pub project: Option<String>,
    pub services: Vec<StackService>,
    /// Why the Docker API is not used, as a sentence, when it is not.
    pub without_engine: Option<String>,
    /// What was odd but does not prevent work.
    pub warnings: Vec<String>,
    /// Containers beside the services: a restore stops workers and never starts jobs.
    pub companions: Vec<Companion>,
}

/// A container that uses a service's image or data without being that service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Companion {
    /// Compose service name.
    pub name: String,
    pub kind: ServiceKind,
    pub role: CompanionRole,
    pub container: ContainerRef,
    pub depends_on: Vec<String>,
}

/// What becomes of a companion in a restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CompanionRole {
    /// Runs to its end (`n8n-import`, a model pull, `docker compose run`): never started.
    OneShot,
    /// Runs on the service's data or queue (`n8n worker`): stopped before it, started after it.
    Worker,
    /// Shares its data with a service and does not run (another profile's): left as it is.
    Idle,
}

/// One service, as found.
#[derive(Debug, Clone)]
pub struct StackService {
    pub kind: ServiceKind,
    /// Compose service name, or the kind's name when configured by the environment alone.
    pub name: String,
    pub container: Option<ContainerRef>,
    /// The container's environment, for credentials and settings. Never logged.
    pub environment: BTreeMap<String, String>,
    /// Each mount of the container that the sidecar can reach too.
    pub mounts: Vec<SharedMount>,
    /// Every mount target of the container, reachable here or not: to say what is missing.
    pub all_mount_targets: Vec<String>,
    /// Names and addresses under which the sidecar can reach the service, best first.
    pub hosts: Vec<String>,
    /// Ports the container exposes.
    pub ports: Vec<u16>,
    /// Compose services this one depends on.
    pub depends_on: Vec<String>,
}

/// A container of the service, as inspected.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct ContainerRef {
    pub id: String,
    pub name: String,
    pub image: String,
    /// Repository digest when the image has one, else the image id.
    pub image_digest: String,
    pub running: bool,
    /// Seconds of grace its own `stop_grace_period` asks for, when set.
    pub stop_timeout: Option<u64>,
    pub has_healthcheck: bool,
}

/// A directory seen by the service at `target` and by the sidecar at `local`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedMount {
    pub target: PathBuf,
    pub local: PathBuf,
    pub read_only: bool,
}

impl StackService {
    /// Maps a path in the service's container to the sidecar's view of it, through the longest matching mount.
    ///
    /// `None` also when the path lies in a mount that the sidecar does not have, below one that it has, and
    /// for a path with `..`, which would lead out of the mount.
    pub fn local_path(&self, in_container: &Path) -> Option<PathBuf> {
        if !is_plain(in_container) {
            return None;
        }
        let shared = self
            .mounts
            .iter()
            .filter(|m| in_container.starts_with(&m.target))
            .max_by_key(|m| m.target.components().count())?;
        let hidden = self.all_mount_targets.iter().map(Path::new).any(|target| {
            in_container.starts_with(target)
                && target.starts_with(&shared.target)
                && target != shared.target
        });
        if hidden {
            return None;
        }
        let rest = in_container.strip_prefix(&shared.target).ok()?;
        Some(if rest.as_os_str().is_empty() {
            shared.local.clone()
        } else {
            shared.local.join(rest)
        })
    }
}

/// Whether a path has only plain parts: with `..` in it, its prefixes say nothing of where it leads.
pub fn is_plain(path: &Path) -> bool {
    path.components()
        .all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
}

/// The path `rest` below `base`: `base` itself, without a slash at its end, when there is none.
pub(crate) fn joined(base: &Path, rest: impl AsRef<Path>) -> PathBuf {
    let rest = rest.as_ref();
    if rest.as_os_str().is_empty() {
        base.to_owned()
    } else {
        base.join(rest)
    }
}

/// A name in the characters that an archive's may have, `[a-z0-9._-]`, each other one as `-`.
pub(crate) fn archive_characters(name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    name.to_ascii_lowercase()
        .chars()
        .map(|c| if plain(c) { c } else { '-' })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn paths_are_mapped_through_the_closest_mount_that_both_have() {
        let mount = |target: &str, local: &str| SharedMount {
            target: target.into(),
            local: local.into(),
            read_only: false,
        };
        let service = StackService {
            kind: ServiceKind::Postgres,
            name: "postgres".into(),
            container: None,
            environment: BTreeMap::new(),
            mounts: vec![
                mount("/var/lib", "/data/lib"),
                mount("/var/lib/pg", "/data/pg"),
            ],
            all_mount_targets: vec![
                "/var/lib".into(),
                "/var/lib/pg".into(),
                "/var/lib/pg/anonymous".into(),
            ],
            hosts: vec![],
            ports: vec![],
            depends_on: vec![],
        };
        let local = |path: &str| service.local_path(Path::new(path));
        assert_eq!(local("/var/lib/pg").unwrap(), Path::new("/data/pg"));
        assert_eq!(
            local("/var/lib/pg/base/1").unwrap(),
            Path::new("/data/pg/base/1")
        );
        assert_eq!(
            local("/var/lib/other").unwrap(),
            Path::new("/data/lib/other")
        );
        assert_eq!(local("/var/lib/pg/anonymous/x"), None);
        assert_eq!(local("/etc"), None);
        assert_eq!(local("/var/lib/pg/../../../etc"), None);
        assert_eq!(local("/var/lib/pg/.."), None);
        assert_eq!(local("/var/lib/pg/..a/b."), Some("/data/pg/..a/b.".into()));
    }
}
