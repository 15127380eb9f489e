//! One container of the project, reduced to what discovery looks at.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bollard::models::{ContainerInspectResponse, ContainerStateStatusEnum, MountType};

use super::mounts::Mount;
use crate::stack::ContainerRef;
use crate::stack::engine::{PROJECT_LABEL, restarts};

/// What `docker inspect` told, parsed.
#[derive(Debug, Clone)]
pub(super) struct Container {
    pub reference: ContainerRef,
    /// Compose service; the container's name when it has none.
    pub service: String,
    pub project: Option<String>,
    /// Made by `docker compose run`.
    pub one_off: bool,
    /// Which of the service's containers it is, from 1.
    pub number: u32,
    /// `lifeboat.service`, as given.
    pub wanted: Option<String>,
    pub environment: BTreeMap<String, String>,
    /// Entrypoint and arguments together.
    pub command: Vec<String>,
    pub ports: Vec<u16>,
    pub mounts: Vec<Mount>,
    /// Every mount target, of temporary filesystems too.
    pub targets: Vec<String>,
    /// The engine or the user would start it again when it ends.
    pub restarts: bool,
    /// It ran to its end, with exit code 0.
    pub finished: bool,
    pub depends_on: Vec<Dependency>,
    pub networks: BTreeMap<String, Endpoint>,
    pub network_mode: String,
}

/// One part of `com.docker.compose.depends_on`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Dependency {
    pub service: String,
    /// It waits for that service's end, not its start.
    pub until_completed: bool,
}

/// A container in one network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub addresses: Vec<String>,
}

impl Container {
    /// `None` when the engine's answer has no id or name, which it always has.
    pub fn parse(
        inspected: &ContainerInspectResponse,
        digests: &BTreeMap<String, String>,
    ) -> Option<Self> {
        let id = inspected.id.clone()?;
        let name = inspected
            .name
            .as_deref()?
            .trim_start_matches('/')
            .to_owned();
        let config = inspected.config.clone().unwrap_or_default();
        let state = inspected.state.clone().unwrap_or_default();
        let host_config = inspected.host_config.clone().unwrap_or_default();
        let labels = config.labels.unwrap_or_default();
        let label = |key: &str| labels.get(key).filter(|v| !v.is_empty());

        let image_id = inspected.image.clone().unwrap_or_default();
        let reference = ContainerRef {
            id,
            name: name.clone(),
            image: config.image.unwrap_or_default(),
            image_digest: digests.get(&image_id).cloned().unwrap_or(image_id),
            running: state.running.unwrap_or(false),
            stop_timeout: config.stop_timeout.and_then(|s| u64::try_from(s).ok()),
            has_healthcheck: config
                .healthcheck
                .and_then(|h| h.test)
                .is_some_and(|test| test.first().is_some_and(|kind| kind != "NONE")),
        };
        let mut command: Vec<String> = inspected.path.iter().cloned().collect();
        command.extend(inspected.args.iter().flatten().cloned());
        if command.is_empty() {
            command.extend(config.entrypoint.into_iter().flatten());
            command.extend(config.cmd.into_iter().flatten());
        }
        let tmpfs = host_config.tmpfs.iter().flatten().map(|(t, _)| t.clone());
        let mut targets: Vec<String> = inspected
            .mounts
            .iter()
            .flatten()
            .filter_map(|m| m.destination.clone())
            .chain(tmpfs)
            .collect();
        targets.sort();
        targets.dedup();

        Some(Self {
            reference,
            service: label("com.docker.compose.service").cloned().unwrap_or(name),
            project: label(PROJECT_LABEL).cloned(),
            one_off: label("com.docker.compose.oneoff")
                .is_some_and(|v| v.eq_ignore_ascii_case("true")),
            number: label("com.docker.compose.container-number")
                .and_then(|n| n.parse().ok())
                .unwrap_or(1),
            wanted: label("lifeboat.service").cloned(),
            environment: config
                .env
                .iter()
                .flatten()
                .filter_map(|line| line.split_once('='))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            command,
            ports: ports(inspected),
            mounts: mounts(inspected),
            targets,
            restarts: restarts(host_config.restart_policy.and_then(|p| p.name)),
            finished: state.status == Some(ContainerStateStatusEnum::EXITED)
                && state.exit_code == Some(0),
            depends_on: label("com.docker.compose.depends_on")
                .map(|list| parse_depends_on(list))
                .unwrap_or_default(),
            networks: networks(inspected),
            network_mode: host_config.network_mode.unwrap_or_default(),
        })
    }

    /// The image's name without registry, tag and digest: its path's last part.
    pub fn image_name(&self) -> &str {
        let image = &self.reference.image;
        let image = image
            .split_once('@')
            .map_or(image.as_str(), |(name, _)| name);
        let last = image.rsplit('/').next().unwrap_or(image);
        last.split_once(':').map_or(last, |(name, _)| name)
    }

    /// The last of the directories above the image's name, such as `postgis` of `postgis/postgis`.
    pub fn image_owner(&self) -> Option<&str> {
        let image = &self.reference.image;
        let image = image
            .split_once('@')
            .map_or(image.as_str(), |(name, _)| name);
        image.rsplit('/').nth(1)
    }

    /// Whether it has a mount at the path or below it.
    pub fn mounts_at(&self, path: &Path) -> bool {
        self.targets
            .iter()
            .any(|target| Path::new(target).starts_with(path))
    }
}

/// Reads `db:service_healthy:true,import:service_completed_successfully:false`; early compose 2 has names only.
pub(super) fn parse_depends_on(label: &str) -> Vec<Dependency> {
    label
        .split(',')
        .filter_map(|part| {
            let mut fields = part.trim().split(':');
            let service = fields.next().filter(|s| !s.is_empty())?;
            Some(Dependency {
                service: service.to_owned(),
                until_completed: fields.next() == Some("service_completed_successfully"),
            })
        })
        .collect()
}

/// Ports the image exposes or the project publishes; TCP only.
fn ports(inspected: &ContainerInspectResponse) -> Vec<u16> {
    let exposed = inspected
        .config
        .iter()
        .flat_map(|c| c.exposed_ports.iter().flatten());
    let published = inspected
        .network_settings
        .iter()
        .flat_map(|n| n.ports.iter().flatten().map(|(port, _)| port));
    let mut ports: Vec<u16> = exposed
        .chain(published)
        .filter_map(|port| match port.split_once('/') {
            Some((number, "tcp")) => number.parse().ok(),
            Some(_) => None,
            None => port.parse().ok(),
        })
        .collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

fn mounts(inspected: &ContainerInspectResponse) -> Vec<Mount> {
    // A volume's part that is mounted is told with the request only: the mount's source is the whole volume.
    let subpath = |target: &str| {
        inspected
            .host_config
            .iter()
            .flat_map(|h| h.mounts.iter().flatten())
            .filter(|m| m.typ == Some(MountType::VOLUME) && m.target.as_deref() == Some(target))
            .find_map(|m| m.volume_options.as_ref()?.subpath.clone())
    };
    inspected
        .mounts
        .iter()
        .flatten()
        .filter_map(|m| {
            let target = m.destination.clone()?;
            let is_volume = m.typ.as_deref() == Some("volume");
            if !is_volume && m.typ.as_deref() != Some("bind") {
                return None;
            }
            let inside = subpath(&target).unwrap_or_default();
            Some(Mount {
                target: PathBuf::from(target),
                volume: m.name.clone().filter(|n| is_volume && !n.is_empty()),
                source: m
                    .source
                    .clone()
                    .filter(|s| !s.is_empty())
                    .map(PathBuf::from),
                inside: PathBuf::from(inside.trim_matches('/')),
                read_only: m.rw == Some(false),
            })
        })
        .collect()
}

fn networks(inspected: &ContainerInspectResponse) -> BTreeMap<String, Endpoint> {
    inspected
        .network_settings
        .iter()
        .flat_map(|n| n.networks.iter().flatten())
        .map(|(name, endpoint)| {
            let id = endpoint.network_id.clone().filter(|id| !id.is_empty());
            let addresses = [&endpoint.ip_address, &endpoint.global_ipv6_address]
                .into_iter()
                .flatten()
                .filter(|ip| !ip.is_empty())
                .cloned()
                .collect();
            (id.unwrap_or_else(|| name.clone()), Endpoint { addresses })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_the_depends_on_label_are_read() {
        let dependency = |service: &str, until_completed| Dependency {
            service: service.to_owned(),
            until_completed,
        };
        assert_eq!(
            parse_depends_on("db:service_healthy:true,import:service_completed_successfully:false"),
            [dependency("db", false), dependency("import", true)]
        );
        assert_eq!(
            parse_depends_on("db, cache"),
            [dependency("db", false), dependency("cache", false)]
        );
        assert_eq!(parse_depends_on(""), []);
    }
}
