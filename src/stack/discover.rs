//! Finds the stack: the compose project this process runs in, its services, and where their data is mounted.
//!
//! With the Docker API everything is read from `docker inspect`; without it the settings and the directories
//! below `LIFEBOAT_DATA` tell the same, as far as they can. A service's name alone never decides what it is.

mod assemble;
mod container;
mod environment;
mod finish;
mod kinds;
mod mounts;
mod own;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bollard::models::ContainerInspectResponse;

use super::Stack;
use super::engine::{DEFAULT_HOST, Engine, EngineError, PROJECT_LABEL};
use crate::config::Config;
use crate::services::{ServiceKind, volume};
use container::Container;

/// Why the stack is not known.
#[derive(Debug, thiserror::Error)]
pub enum DiscoverError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A label that means nothing.
    #[error("{0}")]
    Label(String),
    /// `LIFEBOAT_SERVICES` names what is not there.
    #[error("{0}")]
    NoSuchService(String),
    #[error("{0}")]
    NoProject(String),
}

/// Connects to the engine, when there is one, and finds the stack.
pub async fn open(config: &Config) -> Result<(Option<Engine>, Stack), DiscoverError> {
    let engine = Engine::from_config(config).await?;
    let stack = discover(config, engine.as_ref()).await?;
    Ok((engine, stack))
}

/// Finds the stack through the engine, or from the settings alone without one.
pub async fn discover(config: &Config, engine: Option<&Engine>) -> Result<Stack, DiscoverError> {
    let mut stack = find(config, engine).await?;
    // An archive holds one directory: a service with several mounts becomes several.
    stack.services = stack.services.iter().flat_map(volume::split).collect();
    Ok(stack)
}

/// The id of the container that this process runs in, if it is one of the engine's.
pub async fn own_container(engine: &Engine) -> Result<Option<String>, DiscoverError> {
    Ok(own::find(engine).await?.and_then(|own| own.id))
}

async fn find(config: &Config, engine: Option<&Engine>) -> Result<Stack, DiscoverError> {
    let Some(engine) = engine else {
        return environment::stack(config, why_no_engine(config), &LocalFiles);
    };
    let own = own::find(engine).await?;
    let label = own
        .as_ref()
        .and_then(|own| own.config.as_ref()?.labels.as_ref()?.get(PROJECT_LABEL))
        .filter(|project| !project.is_empty());
    let Some(project) = config.project.clone().or_else(|| label.cloned()) else {
        return match own {
            Some(_) => Err(DiscoverError::NoProject(
                "this container belongs to no compose project: name the one to back up with \
                 LIFEBOAT_PROJECT, or set DOCKER_HOST=none to go by the settings alone"
                    .to_owned(),
            )),
            None => environment::stack(
                config,
                format!(
                    "the Docker API at {} is not used: this process runs in none of its containers and \
                     LIFEBOAT_PROJECT does not name a compose project",
                    engine.host()
                ),
                &LocalFiles,
            ),
        };
    };
    let mut found = engine.project_containers(&project).await?;
    if found.is_empty() {
        return Err(DiscoverError::NoProject(format!(
            "compose project {project} has no containers: correct LIFEBOAT_PROJECT (docker compose ls lists \
             the projects), or start the stack"
        )));
    }
    found.retain(|c| c.id != own.as_ref().and_then(|own| own.id.clone()));
    let digests = digests(engine, &found).await;
    let mut stack = from_inspected(config, own.as_ref(), &found, &digests, &LocalFiles)?;
    stack.project = Some(project);
    // Which files compose itself read, for the project's archive.
    let labels = found
        .iter()
        .find_map(|c| c.config.as_ref()?.labels.as_ref());
    for service in stack
        .services
        .iter_mut()
        .filter(|s| s.kind == ServiceKind::Project)
    {
        for name in [
            "com.docker.compose.project.config_files",
            "com.docker.compose.project.working_dir",
        ] {
            if let Some(value) = labels.and_then(|labels| labels.get(name)) {
                service.environment.insert(name.to_owned(), value.clone());
            }
        }
    }
    Ok(stack)
}

/// What discovery asks the filesystem.
pub(crate) trait Surroundings {
    fn is_dir(&self, path: &Path) -> bool;
    fn exists(&self, path: &Path) -> bool;
    /// The directories right below one, by name; none when it cannot be listed.
    fn directories(&self, path: &Path) -> Vec<PathBuf>;
}

struct LocalFiles;

impl Surroundings for LocalFiles {
    fn is_dir(&self, path: &Path) -> bool {
        path.is_dir()
    }

    fn exists(&self, path: &Path) -> bool {
        path.exists()
    }

    fn directories(&self, path: &Path) -> Vec<PathBuf> {
        let mut found: Vec<PathBuf> = std::fs::read_dir(path)
            .into_iter()
            .flatten()
            .filter_map(Result::ok)
            // Not through symbolic links: what they lead to is not mounted here.
            .filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir()))
            .map(|entry| entry.path())
            .filter(|path| path.file_name().is_some_and(|name| name != "lost+found"))
            .collect();
        found.sort();
        found
    }
}

fn from_inspected(
    config: &Config,
    own: Option<&ContainerInspectResponse>,
    siblings: &[ContainerInspectResponse],
    digests: &BTreeMap<String, String>,
    around: &dyn Surroundings,
) -> Result<Stack, DiscoverError> {
    let own = own.and_then(|own| Container::parse(own, digests));
    let siblings: Vec<Container> = siblings
        .iter()
        .filter_map(|c| Container::parse(c, digests))
        .collect();
    assemble::assemble(config, own.as_ref(), &siblings, around)
}

/// Repository digests by image id.
async fn digests(
    engine: &Engine,
    containers: &[ContainerInspectResponse],
) -> BTreeMap<String, String> {
    let mut digests = BTreeMap::new();
    for image in containers.iter().filter_map(|c| c.image.as_ref()) {
        if digests.contains_key(image) {
            continue;
        }
        let digest = engine.repository_digest(image).await;
        digests.insert(image.clone(), digest.unwrap_or_else(|| image.clone()));
    }
    digests
}

fn why_no_engine(config: &Config) -> String {
    let why = match config.docker_host.as_deref() {
        Some(host) => format!("DOCKER_HOST is {host}"),
        None => format!(
            "there is no socket at {}",
            DEFAULT_HOST.trim_start_matches("unix://")
        ),
    };
    format!(
        "the Docker API is not used ({why}): services are taken from the settings and from the directories \
         below {}, and a restore cannot stop and start containers",
        config.data.display()
    )
}
