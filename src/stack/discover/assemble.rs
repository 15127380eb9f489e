//! Inspected containers to a [`Stack`]: no engine, no clock, and of the filesystem only what it is handed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::container::{Container, Endpoint};
use super::finish::{finish, touches};
use super::kinds::{self, Class};
use super::mounts::{self, Mount};
use super::{DiscoverError, Surroundings};
use crate::config::Config;
use crate::services::ServiceKind;
use crate::stack::order::{Node, start_order};
use crate::stack::{Companion, CompanionRole, SharedMount, Stack, StackService};

/// A server and the container it was found in.
struct Server<'a> {
    kind: ServiceKind,
    container: &'a Container,
}

/// Sorts a project's containers into services and companions, and adds what only the mounts tell.
///
/// `own` is the sidecar's container, when it runs in one.
pub(super) fn assemble(
    config: &Config,
    own: Option<&Container>,
    siblings: &[Container],
    around: &dyn Surroundings,
) -> Result<Stack, DiscoverError> {
    let mut stack = Stack {
        project: own
            .and_then(|o| o.project.clone())
            .or_else(|| config.project.clone()),
        ..Stack::default()
    };
    let siblings: Vec<&Container> = siblings.iter().filter(|c| !is_own_kind(own, c)).collect();
    let own_mounts = usable_mounts(config, own);
    // Below the data directory, what is spoken for, by services or by the label `ignore`.
    let mut claimed: Vec<PathBuf> = Vec::new();
    let mut servers = Vec::new();
    let mut others = Vec::new();
    for container in siblings.iter().copied() {
        match kinds::classify(container)? {
            Class::Ignored => {
                claimed.extend(shared(&own_mounts, container).into_iter().map(|m| m.local));
            }
            Class::Known(kind) => {
                match kinds::beside(kind, container, is_awaited(&siblings, container)) {
                    Some(role) => stack.companions.push(companion(kind, container, role)),
                    None => servers.push(Server { kind, container }),
                }
            }
            Class::Volume => others.push((container, true)),
            Class::Other => others.push((container, false)),
        }
    }
    let servers = one_for_each_data(servers, &mut stack.companions);

    let mut services = Vec::new();
    for server in &servers {
        let mut service = describe(server.kind, server.container, &own_mounts);
        service.hosts = hosts(own, server.container, &siblings);
        if own.is_some() && service.hosts.is_empty() {
            stack.warnings.push(format!(
                "{} shares no network with the sidecar: add the sidecar to one of its networks in the compose file",
                service.name
            ));
        }
        let alone = servers.iter().filter(|s| s.kind == server.kind).count() == 1;
        if alone {
            add_configured_mount(config, server, &mut service, own.is_none(), around);
        }
        claimed.extend(claims(server, &service));
        services.push(service);
    }
    for (container, labelled) in others {
        let mut service = describe(ServiceKind::Volume, container, &own_mounts);
        service.mounts.retain(|m| {
            m.local.starts_with(&config.data)
                && !touches(&claimed, &m.local)
                && around.is_dir(&m.local)
        });
        if service.mounts.is_empty() {
            if labelled {
                stack.warnings.push(format!(
                    "{} is labelled lifeboat.service=volume, but the sidecar has none of its mounts: mount its \
                     data below {} in the sidecar too",
                    container.service,
                    config.data.display()
                ));
            }
            continue;
        }
        service.hosts = hosts(own, container, &siblings);
        claimed.extend(service.mounts.iter().map(|m| m.local.clone()));
        services.push(service);
    }
    stack.services = in_start_order(services, &siblings, &mut stack.companions);
    finish(config, stack, &claimed, around)
}

/// The sidecar itself, its other containers, and what `docker compose run` made of it.
fn is_own_kind(own: Option<&Container>, container: &Container) -> bool {
    own.is_some_and(|own| {
        own.reference.id == container.reference.id
            || (own.project == container.project && own.service == container.service)
            || (!own.reference.image_digest.is_empty()
                && own.reference.image_digest == container.reference.image_digest
                && container.wanted.is_none()
                && kinds::classify(container).is_ok_and(|class| class == Class::Other))
    })
}

/// The sidecar's mounts that may be a service's data: not its own state, repository and project files.
fn usable_mounts(config: &Config, own: Option<&Container>) -> Vec<Mount> {
    own.iter()
        .flat_map(|own| own.mounts.iter())
        .filter(|m| {
            !config
                .own_directories()
                .any(|dir| m.target.starts_with(dir))
        })
        .filter(|m| m.target != config.project_dir || config.data.starts_with(&m.target))
        .cloned()
        .collect()
}

fn is_awaited(siblings: &[&Container], container: &Container) -> bool {
    siblings
        .iter()
        .flat_map(|c| c.depends_on.iter())
        .any(|d| d.until_completed && d.service == container.service)
}

fn companion(kind: ServiceKind, container: &Container, role: CompanionRole) -> Companion {
    Companion {
        name: container.service.clone(),
        kind,
        role,
        container: container.reference.clone(),
        depends_on: dependency_names(container),
    }
}

fn dependency_names(container: &Container) -> Vec<String> {
    container
        .depends_on
        .iter()
        .map(|d| d.service.clone())
        .collect()
}

/// Of servers on the same data (the kit's `ollama-cpu` and `ollama-gpu`) one is the service: the one that runs.
fn one_for_each_data<'a>(
    mut servers: Vec<Server<'a>>,
    companions: &mut Vec<Companion>,
) -> Vec<Server<'a>> {
    servers.sort_by_key(|s| {
        (
            !s.container.reference.running,
            !s.container.restarts,
            s.container.finished,
            s.container.service.clone(),
            s.container.number,
        )
    });
    let mut kept: Vec<Server<'a>> = Vec::new();
    for server in servers {
        let same = kept.iter().any(|k| {
            k.kind == server.kind && shares_data(server.kind, k.container, server.container)
        });
        if !same {
            kept.push(server);
            continue;
        }
        let role = if server.container.reference.running {
            CompanionRole::Worker
        } else if server.container.finished && !server.container.restarts {
            CompanionRole::OneShot
        } else {
            CompanionRole::Idle
        };
        companions.push(companion(server.kind, server.container, role));
    }
    kept
}

fn shares_data(kind: ServiceKind, a: &Container, b: &Container) -> bool {
    let data = |container: &'_ Container| -> Vec<Mount> {
        let targets = kinds::data_targets(kind, container);
        container
            .mounts
            .iter()
            .filter(|m| touches(&targets, &m.target))
            .cloned()
            .collect()
    };
    let (a, b) = (data(a), data(b));
    a.iter().any(|x| b.iter().any(|y| mounts::overlap(x, y)))
}

fn describe(kind: ServiceKind, container: &Container, own_mounts: &[Mount]) -> StackService {
    let name = if container.number > 1 {
        format!("{}-{}", container.service, container.number)
    } else {
        container.service.clone()
    };
    StackService {
        kind,
        name,
        container: Some(container.reference.clone()),
        environment: container.environment.clone(),
        mounts: shared(own_mounts, container),
        all_mount_targets: container.targets.clone(),
        hosts: Vec::new(),
        ports: container.ports.clone(),
        depends_on: dependency_names(container),
    }
}

fn shared(own_mounts: &[Mount], container: &Container) -> Vec<SharedMount> {
    container
        .mounts
        .iter()
        .flat_map(|m| mounts::share(own_mounts, m))
        .collect()
}

/// Takes `POSTGRES_DATA`, `OLLAMA_DATA` or `N8N_DATA` for the data of a service whose mounts do not show it.
///
/// Outside a container there are no mounts to compare: there the directories below `LIFEBOAT_DATA` count.
fn add_configured_mount(
    config: &Config,
    server: &Server<'_>,
    service: &mut StackService,
    outside: bool,
    around: &dyn Surroundings,
) {
    let targets = kinds::data_targets(server.kind, server.container);
    if service.mounts.iter().any(|m| touches(&targets, &m.target)) {
        return;
    }
    let told = super::environment::configured_data(config, server.kind).or_else(|| {
        let usual = config.data.join(server.kind.as_str());
        (outside && around.is_dir(&usual)).then_some(usual)
    });
    if let (Some(local), Some(target)) = (told, targets.into_iter().next()) {
        service.mounts.push(SharedMount {
            target,
            local,
            read_only: false,
        });
    }
}

/// The sidecar's directories that hold a server's data, and so are no volumes of their own.
fn claims(server: &Server<'_>, service: &StackService) -> Vec<PathBuf> {
    let targets = kinds::data_targets(server.kind, server.container);
    // A database's further mounts (tablespaces, snapshots) are its own business too: copied alone while it
    // runs, they would be torn. The entrypoint's scripts are plain files.
    let whole = matches!(server.kind, ServiceKind::Postgres | ServiceKind::Qdrant);
    let is_plain = |target: &Path| target.starts_with("/docker-entrypoint-initdb.d");
    service
        .mounts
        .iter()
        .filter(|m| touches(&targets, &m.target) || (whole && !is_plain(&m.target)))
        .map(|m| m.local.clone())
        .collect()
}

/// Names and addresses that reach a container from the sidecar, best first.
///
/// The container's name before the compose service's: in a network of several projects only the first is
/// unique. Addresses last, because they change with a restart.
fn hosts(own: Option<&Container>, container: &Container, all: &[&Container]) -> Vec<String> {
    // `network_mode: service:x` is x's network.
    let container = match container.network_mode.strip_prefix("container:") {
        Some(id) => match all.iter().find(|c| c.reference.id == id) {
            Some(other) => *other,
            None => container,
        },
        None => container,
    };
    let on_host = |c: &Container| c.network_mode == "host";
    let addresses = |endpoints: Vec<&Endpoint>| {
        endpoints
            .into_iter()
            .flat_map(|e| e.addresses.iter().cloned())
            .collect::<Vec<_>>()
    };
    match own {
        Some(own) if !on_host(own) => {
            let common: Vec<&Endpoint> = container
                .networks
                .iter()
                .filter(|(id, _)| own.networks.contains_key(*id))
                .map(|(_, endpoint)| endpoint)
                .collect();
            if common.is_empty() || on_host(container) {
                return Vec::new();
            }
            let mut hosts = vec![container.reference.name.clone(), container.service.clone()];
            hosts.extend(addresses(common));
            hosts.dedup();
            hosts
        }
        // On the engine's host: bridges are routed, names are not known.
        _ if on_host(container) => vec!["127.0.0.1".to_owned()],
        _ => addresses(container.networks.values().collect()),
    }
}

fn in_start_order(
    mut services: Vec<StackService>,
    siblings: &[&Container],
    companions: &mut [Companion],
) -> Vec<StackService> {
    let late: BTreeSet<&str> = services
        .iter()
        .filter(|s| s.kind == ServiceKind::N8n)
        .filter_map(|s| s.container.as_ref())
        .map(|c| c.id.as_str())
        .collect();
    let mut nodes: BTreeMap<String, Node> = BTreeMap::new();
    for container in siblings {
        let node = nodes.entry(container.service.clone()).or_default();
        node.depends_on.extend(dependency_names(container));
        node.late |= late.contains(container.reference.id.as_str());
    }
    let order = start_order(&nodes);
    let place = |compose: Option<&String>| {
        compose
            .and_then(|name| order.iter().position(|o| o == name))
            .unwrap_or(0)
    };
    let compose_name = |id: Option<&str>| {
        siblings
            .iter()
            .find(|c| Some(c.reference.id.as_str()) == id)
            .map(|c| &c.service)
    };
    services.sort_by_key(|s| {
        let id = s.container.as_ref().map(|c| c.id.as_str());
        (place(compose_name(id)), s.name.clone())
    });
    companions.sort_by_key(|c| (place(Some(&c.name)), c.container.name.clone()));
    services
}
