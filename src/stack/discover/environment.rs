//! The stack as the environment alone tells it, without the Docker API.

use std::path::{Path, PathBuf};

use super::finish::{add_mount, bare, finish};
use super::kinds::default_targets;
use super::{DiscoverError, Surroundings};
use crate::config::Config;
use crate::services::ServiceKind;
use crate::stack::{Stack, StackService};

/// In start order: n8n last.
const KINDS: [ServiceKind; 4] = [
    ServiceKind::Ollama,
    ServiceKind::Postgres,
    ServiceKind::Qdrant,
    ServiceKind::N8n,
];

/// Services that have an address or a directory in the settings, or the usual directory below `LIFEBOAT_DATA`.
pub(super) fn stack(
    config: &Config,
    without_engine: String,
    around: &dyn Surroundings,
) -> Result<Stack, DiscoverError> {
    let mut stack = Stack {
        project: config.project.clone(),
        without_engine: Some(without_engine),
        ..Stack::default()
    };
    let mut claimed = Vec::new();
    for kind in KINDS {
        let usual = config.data.join(kind.as_str());
        let data = configured_data(config, kind).or_else(|| around.is_dir(&usual).then_some(usual));
        let address = configured_address(config, kind);
        if data.is_none() && address.is_none() {
            continue;
        }
        claimed.extend(data.clone());
        stack.services.push(service(kind, data, address, around));
    }
    finish(config, stack, &claimed, around)
}

/// `POSTGRES_DATA`, `OLLAMA_DATA`, `N8N_DATA`; Qdrant's files are never read.
pub(super) fn configured_data(config: &Config, kind: ServiceKind) -> Option<PathBuf> {
    match kind {
        ServiceKind::Postgres => config.postgres.data.clone(),
        ServiceKind::Ollama => config.ollama.data.clone(),
        ServiceKind::N8n => config.n8n.data.clone(),
        ServiceKind::Qdrant | ServiceKind::Volume | ServiceKind::Project => None,
    }
}

fn configured_address(config: &Config, kind: ServiceKind) -> Option<(String, u16)> {
    let url = match kind {
        ServiceKind::Postgres => {
            let host = config.postgres.host.clone()?;
            return Some((host, config.postgres.port.unwrap_or(5432)));
        }
        ServiceKind::Qdrant => config.qdrant.url.as_deref()?,
        ServiceKind::Ollama => config.ollama.url.as_deref()?,
        ServiceKind::N8n => config.n8n.url.as_deref()?,
        ServiceKind::Volume | ServiceKind::Project => return None,
    };
    let url = reqwest::Url::parse(url).ok()?;
    Some((url.host_str()?.to_owned(), url.port_or_known_default()?))
}

fn service(
    kind: ServiceKind,
    data: Option<PathBuf>,
    address: Option<(String, u16)>,
    around: &dyn Surroundings,
) -> StackService {
    // Without an address, the name the kit's compose file gives it.
    let (host, port) = address.unwrap_or_else(|| (kind.as_str().to_owned(), default_port(kind)));
    let mut service = bare(kind, kind.as_str());
    if let Some(local) = data {
        add_mount(&mut service, &target_of(kind, &local, around), &local);
    }
    service.hosts = vec![host];
    service.ports = vec![port];
    service
}

const fn default_port(kind: ServiceKind) -> u16 {
    match kind {
        ServiceKind::Postgres => 5432,
        ServiceKind::Qdrant => 6333,
        ServiceKind::Ollama => 11434,
        ServiceKind::N8n => 5678,
        ServiceKind::Volume | ServiceKind::Project => 0,
    }
}

/// Where the server is taken to have the directory mounted.
///
/// From version 18 on, the postgres image keeps its cluster in `18/docker` below the mount; a mount that is
/// not itself a cluster (no `PG_VERSION`) is therefore `/var/lib/postgresql`.
fn target_of(kind: ServiceKind, local: &Path, around: &dyn Surroundings) -> PathBuf {
    let targets = default_targets(kind);
    let is_parent = kind == ServiceKind::Postgres && !around.exists(&local.join("PG_VERSION"));
    let target = if is_parent {
        targets.last()
    } else {
        targets.first()
    };
    target.map(PathBuf::from).unwrap_or_default()
}
