//! The Docker API, as much of it as a backup and a restore need.
//!
//! Engines from 20.10 (API 1.41) to 29 are served. Requests carry no version prefix, so each engine answers
//! in its own version; fields that are used exist in all of them. Every call has a time limit, because a
//! socket proxy may drop what it does not allow instead of refusing it.

mod error;
mod exec;
mod spare;
mod stream;
mod wait;

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use bollard::Docker;
use bollard::models::ContainerInspectResponse;
use bollard::query_parameters::{
    InspectContainerOptions, ListContainersOptionsBuilder, StartContainerOptions,
    StopContainerOptionsBuilder,
};

pub use error::{EngineError, EngineErrorKind};
pub use exec::{Exec, ExecOutput};
pub use spare::Spare;
pub use stream::{Ended, Input, Output, keep_end};
pub(super) use wait::restarts;

use crate::config::Config;
use error::Call;

/// Where the engine's socket is when nothing else is said.
pub const DEFAULT_HOST: &str = "unix:///var/run/docker.sock";

/// A label every container of a compose project carries.
pub const PROJECT_LABEL: &str = "com.docker.compose.project";

/// API 1.41 came with engine 20.10.
const OLDEST_API: (usize, usize) = (1, 41);
const POLL: Duration = Duration::from_millis(250);
/// What the engine may take beyond a container's grace: it waits again after its SIGKILL.
const STOP_MARGIN: Duration = Duration::from_secs(45);

/// How long the engine may take to answer.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The first answer of all.
    pub connect: Duration,
    /// One request; a stop has its container's grace on top.
    pub request: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(15),
            request: Duration::from_mins(2),
        }
    }
}

/// A connection to an engine that has answered.
#[derive(Debug, Clone)]
pub struct Engine {
    docker: Docker,
    host: String,
    limits: Limits,
}

impl Engine {
    /// Connects as configured. `None` when it is not wanted (`DOCKER_HOST=none`), or when nothing was said
    /// and there is no socket; an engine that was named, or whose socket is mounted, must answer.
    pub async fn from_config(config: &Config) -> Result<Option<Self>, EngineError> {
        match config.docker_host.as_deref() {
            Some("none") => Ok(None),
            Some(host) => Self::connect(host, Limits::default()).await.map(Some),
            None => match Self::connect(DEFAULT_HOST, Limits::default()).await {
                Err(err) if err.kind == EngineErrorKind::NoSocket => Ok(None),
                other => other.map(Some),
            },
        }
    }

    /// Connects to `unix://…`, `tcp://…` or `http://…` and asks for the engine's version.
    pub async fn connect(host: &str, limits: Limits) -> Result<Self, EngineError> {
        let call = Call::new(
            host,
            "ask the engine for its version",
            "GET /version",
            "VERSION=1",
        );
        let docker = if host.starts_with("unix://") {
            Docker::connect_with_unix(host, NO_LIMIT, bollard::API_DEFAULT_VERSION)
        } else if host.starts_with("tcp://") || host.starts_with("http://") {
            let host = host.trim_end_matches('/');
            Docker::connect_with_http(host, NO_LIMIT, bollard::API_DEFAULT_VERSION)
        } else {
            return Err(EngineError::new(
                EngineErrorKind::Setup,
                format!(
                    "DOCKER_HOST is \"{host}\": not unix://, tcp:// or http://, nor none; for example \
                     DOCKER_HOST={DEFAULT_HOST}"
                ),
            ));
        };
        let docker = docker.map_err(|err| call.failed(&err))?;
        let docker = call
            .limited(limits.connect, docker.negotiate_version())
            .await?;
        let version = docker.client_version();
        if (version.major_version, version.minor_version) < OLDEST_API {
            return Err(EngineError::new(
                EngineErrorKind::Setup,
                format!(
                    "the Docker engine at {host} speaks API {version}, and 1.41 (engine 20.10) is needed: \
                     update the engine, or set DOCKER_HOST=none to work without it"
                ),
            ));
        }
        Ok(Self {
            docker,
            host: host.to_owned(),
            limits,
        })
    }

    /// As `DOCKER_HOST` says it.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The API version both sides know.
    pub fn api_version(&self) -> String {
        self.docker.client_version().to_string()
    }

    /// Every container of a compose project, running or not, inspected; by id, so that the order is stable.
    pub async fn project_containers(
        &self,
        project: &str,
    ) -> Result<Vec<ContainerInspectResponse>, EngineError> {
        let filters = HashMap::from([("label", vec![format!("{PROJECT_LABEL}={project}")])]);
        let options = ListContainersOptionsBuilder::default()
            .all(true)
            .filters(&filters)
            .build();
        let call = self.call(
            format!("list the containers of compose project {project}"),
            "GET /containers/json",
            "CONTAINERS=1",
        );
        let listed = call
            .limited(
                self.limits.request,
                self.docker.list_containers(Some(options)),
            )
            .await?;
        let mut ids: Vec<String> = listed.into_iter().filter_map(|c| c.id).collect();
        ids.sort();
        let mut found = Vec::with_capacity(ids.len());
        for id in ids {
            match self.inspect(&id).await {
                Ok(container) => found.push(container),
                // It was removed since.
                Err(err) if err.kind == EngineErrorKind::NoSuchContainer => {}
                Err(err) => return Err(err),
            }
        }
        Ok(found)
    }

    /// Looks at one container, by id or name.
    pub async fn inspect(&self, container: &str) -> Result<ContainerInspectResponse, EngineError> {
        let call = self.call(
            format!("inspect container {container}"),
            "GET /containers/{id}/json",
            "CONTAINERS=1",
        );
        let request = self
            .docker
            .inspect_container(container, None::<InspectContainerOptions>);
        call.limited(self.limits.request, request).await
    }

    /// An image's repository digest, such as `postgres@sha256:…`.
    ///
    /// `None` when it was never pushed or pulled, and when looking at images is not allowed: no backup
    /// depends on it, and socket proxies need `IMAGES=1` for it.
    pub async fn repository_digest(&self, image: &str) -> Option<String> {
        let call = self.call(
            format!("inspect image {image}"),
            "GET /images/{name}/json",
            "IMAGES=1",
        );
        let inspected = call
            .limited(self.limits.connect, self.docker.inspect_image(image))
            .await;
        match inspected {
            Ok(image) => image.repo_digests.unwrap_or_default().into_iter().next(),
            Err(err) => {
                tracing::debug!(%err, "no image digest");
                None
            }
        }
    }

    /// Stops a container, with SIGKILL after `grace`; one that does not run is fine.
    pub async fn stop(&self, container: &str, grace: Duration) -> Result<(), EngineError> {
        let seconds = i32::try_from(grace.as_secs()).unwrap_or(i32::MAX);
        let options = StopContainerOptionsBuilder::default().t(seconds).build();
        let call = self.call(
            format!("stop container {container}"),
            "POST /containers/{id}/stop",
            "ALLOW_STOP=1 (or CONTAINERS=1 with POST=1)",
        );
        // The engine answers 304 for a stopped container, which bollard takes as success.
        let request = self.docker.stop_container(container, Some(options));
        let limit = grace.saturating_add(STOP_MARGIN).max(self.limits.request);
        call.limited(limit, request).await
    }

    /// Starts a container; one that runs is fine.
    pub async fn start(&self, container: &str) -> Result<(), EngineError> {
        let call = self.call(
            format!("start container {container}"),
            "POST /containers/{id}/start",
            "ALLOW_START=1 (or CONTAINERS=1 with POST=1)",
        );
        let request = self
            .docker
            .start_container(container, None::<StartContainerOptions>);
        call.limited(self.limits.request, request).await
    }

    /// Freezes a container's processes; a paused one is fine.
    pub async fn pause(&self, container: &str) -> Result<(), EngineError> {
        let call = self.call(
            format!("pause container {container}"),
            "POST /containers/{id}/pause",
            "CONTAINERS=1 with POST=1",
        );
        let paused = call
            .limited(self.limits.request, self.docker.pause_container(container))
            .await;
        self.unless_already(paused, container, true).await
    }

    /// Lets a paused container go on; a running one is fine.
    pub async fn unpause(&self, container: &str) -> Result<(), EngineError> {
        let call = self.call(
            format!("unpause container {container}"),
            "POST /containers/{id}/unpause",
            "CONTAINERS=1 with POST=1",
        );
        let request = self.docker.unpause_container(container);
        let unpaused = call.limited(self.limits.request, request).await;
        self.unless_already(unpaused, container, false).await
    }

    /// Pausing has no 304: the engine refuses what is already so with 409 or, before 25, with 500.
    async fn unless_already(
        &self,
        outcome: Result<(), EngineError>,
        container: &str,
        paused: bool,
    ) -> Result<(), EngineError> {
        match outcome {
            Err(err) if err.kind == EngineErrorKind::Failed => {
                let state = self.inspect(container).await?.state.unwrap_or_default();
                let running = state.running.unwrap_or(false);
                if running && state.paused.unwrap_or(false) == paused {
                    Ok(())
                } else {
                    Err(err)
                }
            }
            other => other,
        }
    }

    fn call(&self, does: impl Into<String>, route: &'static str, permission: &'static str) -> Call {
        Call::new(&self.host, does, route, permission)
    }
}

/// Bollard's own limit, in seconds: out of the way of the limits here.
const NO_LIMIT: u64 = 30 * 24 * 3600;

impl Call {
    /// Runs a request with a time limit, and turns what goes wrong into a sentence.
    async fn limited<T>(
        &self,
        limit: Duration,
        request: impl Future<Output = Result<T, bollard::errors::Error>>,
    ) -> Result<T, EngineError> {
        match tokio::time::timeout(limit, request).await {
            Ok(answer) => answer.map_err(|err| self.failed(&err)),
            Err(_) => Err(self.hung(limit)),
        }
    }
}
