//! Containers that this program makes for itself and removes again.

use std::path::{Path, PathBuf};

use bollard::container::LogOutput;
use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, Mount, MountType, RestartPolicy,
    RestartPolicyNameEnum,
};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, LogsOptionsBuilder, RemoveContainerOptionsBuilder,
};
use futures_util::StreamExt;

use super::stream::keep_end;
use super::{Engine, EngineError, EngineErrorKind};

/// A label that tells these containers from the project's own.
const LABEL: &str = "lifeboat.spare";
/// Bytes of `/dev/shm`; the engine's own 64 MiB are little for a database server.
const SHARED_MEMORY_BYTES: i64 = 256 << 20;

/// A container to make: without a network, without rights, and with one directory of the host's.
#[derive(Debug, Clone)]
pub struct Spare {
    pub name: String,
    pub image: String,
    pub entrypoint: Vec<String>,
    pub command: Vec<String>,
    pub owner: (u32, u32),
    /// The directory as the engine's host knows it, and where the container sees it.
    pub mount: (PathBuf, PathBuf),
}

impl Engine {
    /// Makes a container; it does not run yet.
    pub async fn create_spare(&self, spare: &Spare) -> Result<(), EngineError> {
        let call = self.call(
            format!("create container {}", spare.name),
            "POST /containers/create",
            "CONTAINERS=1 with POST=1",
        );
        let (source, target) = &spare.mount;
        let host = HostConfig {
            network_mode: Some("none".to_owned()),
            mounts: Some(vec![Mount {
                typ: Some(MountType::BIND),
                source: Some(source.display().to_string()),
                target: Some(target.display().to_string()),
                ..Mount::default()
            }]),
            cap_drop: Some(vec!["ALL".to_owned()]),
            security_opt: Some(vec!["no-new-privileges:true".to_owned()]),
            shm_size: Some(SHARED_MEMORY_BYTES),
            restart_policy: Some(RestartPolicy {
                name: Some(RestartPolicyNameEnum::NO),
                ..RestartPolicy::default()
            }),
            ..HostConfig::default()
        };
        let body = ContainerCreateBody {
            image: Some(spare.image.clone()),
            entrypoint: Some(spare.entrypoint.clone()),
            cmd: Some(spare.command.clone()),
            user: Some(format!("{}:{}", spare.owner.0, spare.owner.1)),
            labels: Some([(LABEL.to_owned(), "yes".to_owned())].into()),
            healthcheck: Some(HealthConfig {
                test: Some(vec!["NONE".to_owned()]),
                ..HealthConfig::default()
            }),
            host_config: Some(host),
            ..ContainerCreateBody::default()
        };
        let options = CreateContainerOptionsBuilder::default()
            .name(&spare.name)
            .build();
        let request = self.docker.create_container(Some(options), body);
        call.limited(self.limits.request, request).await.map(drop)
    }

    /// Removes a container, running or not, with the volumes that were made for it; a missing one is fine.
    pub async fn remove_spare(&self, name: &str) -> Result<(), EngineError> {
        let call = self.call(
            format!("remove container {name}"),
            "DELETE /containers/{id}",
            "CONTAINERS=1 with POST=1",
        );
        let options = RemoveContainerOptionsBuilder::default()
            .force(true)
            .v(true)
            .build();
        let request = self.docker.remove_container(name, Some(options));
        match call.limited(self.limits.request, request).await {
            Err(err) if err.kind == EngineErrorKind::NoSuchContainer => Ok(()),
            other => other,
        }
    }

    /// The end of what a container wrote.
    pub async fn log_end(&self, name: &str, keep_bytes: usize) -> Result<String, EngineError> {
        let call = self.call(
            format!("read the log of container {name}"),
            "GET /containers/{id}/logs",
            "CONTAINERS=1",
        );
        let options = LogsOptionsBuilder::default()
            .stdout(true)
            .stderr(true)
            .tail("40")
            .build();
        let mut lines = self.docker.logs(name, Some(options));
        let mut kept = Vec::new();
        while let Some(line) = lines.next().await {
            if let LogOutput::StdErr { message } | LogOutput::StdOut { message } =
                line.map_err(|err| call.failed(&err))?
            {
                keep_end(&mut kept, &message, keep_bytes);
            }
        }
        Ok(String::from_utf8_lossy(&kept).trim().to_owned())
    }

    /// Where a directory of this process lies on the engine's host.
    ///
    /// In a container, through the mount that holds it; outside of one both are the same. `None` for a
    /// directory of the container's own filesystem, which no other container can mount.
    pub async fn host_path(
        &self,
        own: Option<&str>,
        local: &Path,
    ) -> Result<Option<PathBuf>, EngineError> {
        let Some(own) = own else {
            return Ok(Some(local.to_owned()));
        };
        let inspected = self.inspect(own).await?;
        let mounts = inspected.mounts.unwrap_or_default();
        let found = mounts
            .iter()
            .filter_map(|mount| {
                let target = PathBuf::from(mount.destination.as_deref()?);
                let rest = local.strip_prefix(&target).ok()?;
                let source = PathBuf::from(mount.source.as_deref().filter(|s| !s.is_empty())?);
                Some((target.components().count(), source.join(rest)))
            })
            .max_by_key(|(depth, _)| *depth);
        Ok(found.map(|(_, path)| path))
    }
}
