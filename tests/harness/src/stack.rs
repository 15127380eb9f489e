//! Finds a compose project's services through the Docker CLI.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{n8n, ollama, postgres, qdrant};

/// The four services, in the order they are seeded and compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Service {
    Postgres,
    N8n,
    Qdrant,
    Ollama,
}

/// A running compose project.
pub struct Stack {
    pub project: String,
    env: BTreeMap<String, String>,
    containers: BTreeMap<Service, Container>,
}

/// A running container of one of the services, and where this machine reaches it.
#[derive(Clone)]
pub struct Container {
    pub id: String,
    pub image: String,
    pub address: String,
    pub port: u16,
    pub working_dir: String,
    pub mounts: Vec<Mount>,
    env: BTreeMap<String, String>,
}

#[derive(Clone)]
pub struct Mount {
    /// `bind` or `volume`.
    pub kind: String,
    /// The volume's name; empty for a bind mount.
    pub name: String,
    pub source: String,
    pub destination: String,
}

impl Service {
    pub const ALL: [Self; 4] = [Self::Postgres, Self::N8n, Self::Qdrant, Self::Ollama];

    pub fn name(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::N8n => "n8n",
            Self::Qdrant => "qdrant",
            Self::Ollama => "ollama",
        }
    }

    fn port(self) -> u16 {
        match self {
            Self::Postgres => 5432,
            Self::N8n => 5678,
            Self::Qdrant => 6333,
            Self::Ollama => 11434,
        }
    }

    /// Directories the images keep their data in, the more specific first.
    pub fn data_dirs(self) -> &'static [&'static str] {
        match self {
            Self::Postgres => &["/var/lib/postgresql/data", "/var/lib/postgresql"],
            Self::N8n => &["/home/node/.n8n"],
            Self::Qdrant => &["/qdrant/storage"],
            Self::Ollama => &["/root/.ollama"],
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Stack {
    /// Reads the project's `.env` and looks up its running containers.
    pub fn discover(project: &str, env_file: &Path) -> Result<Self> {
        let env = read_env(env_file)?;
        let filter = format!("label=com.docker.compose.project={project}");
        let ids = docker(&["ps", "--quiet", "--no-trunc", "--filter", &filter])?;
        let ids: Vec<&str> = ids.split_whitespace().collect();
        if ids.is_empty() {
            bail!("no container of compose project {project:?} runs; start the stack first");
        }
        let mut arguments = vec!["inspect"];
        arguments.extend(&ids);
        let inspected: Value = serde_json::from_str(&docker(&arguments)?)
            .context("read what docker inspect printed")?;
        let mut containers = BTreeMap::new();
        for container in inspected.as_array().into_iter().flatten() {
            if let Some(service) = service_of(container) {
                containers.insert(service, Container::read(container, service)?);
            }
        }
        Ok(Self {
            project: project.to_owned(),
            env,
            containers,
        })
    }

    pub fn container(&self, service: Service) -> Result<&Container> {
        self.containers
            .get(&service)
            .with_context(|| format!("no {service} container runs in project {:?}", self.project))
    }

    /// Returns a setting from the `.env` file or, failing that, from the container itself.
    pub fn setting(&self, service: Service, names: &[&str]) -> Option<&str> {
        let container = self.containers.get(&service).map(|found| &found.env);
        [Some(&self.env), container]
            .into_iter()
            .flatten()
            .flat_map(|env| names.iter().filter_map(|name| env.get(*name)))
            .find(|value| !value.is_empty())
            .map(String::as_str)
    }

    /// Waits until each of the services answers, or says which one does not and why.
    pub fn wait_ready(&self, services: &[Service], patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        for service in services {
            self.container(*service)?;
            loop {
                let answer = match service {
                    Service::Postgres => postgres::ping(self),
                    Service::N8n => n8n::ping(self),
                    Service::Qdrant => qdrant::ping(self),
                    Service::Ollama => ollama::ping(self),
                };
                match answer {
                    Ok(()) => break,
                    Err(error) if Instant::now() > deadline => {
                        return Err(error.context(format!(
                            "{service} was not ready within {} s",
                            patience.as_secs()
                        )));
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(250)),
                }
            }
        }
        Ok(())
    }
}

impl Container {
    fn read(container: &Value, service: Service) -> Result<Self> {
        let (address, port) = reach(container, service.port())
            .with_context(|| format!("{service} has neither a published port nor an address"))?;
        let mounts = array(container, "/Mounts")
            .map(|mount| Mount {
                kind: text(mount, "/Type"),
                name: text(mount, "/Name"),
                source: text(mount, "/Source"),
                destination: text(mount, "/Destination"),
            })
            .collect();
        let env = array(container, "/Config/Env")
            .filter_map(|line| line.as_str()?.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        Ok(Self {
            id: text(container, "/Id"),
            image: text(container, "/Config/Image"),
            address,
            port,
            working_dir: label(container, "project.working_dir"),
            mounts,
            env,
        })
    }

    pub fn url(&self) -> String {
        format!("http://{}:{}", self.address, self.port)
    }

    /// Runs a command in the container as root and returns what it printed.
    pub fn exec(&self, command: &[&str]) -> Result<String> {
        self.exec_as("0", command)
    }

    pub fn exec_as(&self, user: &str, command: &[&str]) -> Result<String> {
        let mut arguments = vec!["exec", "--user", user, &self.id];
        arguments.extend(command);
        docker(&arguments)
    }
}

/// Runs the Docker CLI and returns its standard output.
pub fn docker(arguments: &[&str]) -> Result<String> {
    let output = Command::new("docker")
        .args(arguments)
        .output()
        .context("run docker; is its command line client installed?")?;
    if !output.status.success() {
        bail!(
            "docker {} failed: {}{}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim(),
            String::from_utf8_lossy(&output.stdout).trim()
        );
    }
    String::from_utf8(output.stdout).context("read what docker printed")
}

/// Tells which service a running container belongs to by its compose service name.
///
/// The kit's variants (`ollama-cpu`, `ollama-gpu`) count; its one-shots (`n8n-import`,
/// `ollama-pull-llama-cpu`) and `n8n-worker` do not.
fn service_of(container: &Value) -> Option<Service> {
    const HELPERS: [&str; 5] = ["import", "pull", "init", "worker", "runner"];
    if label(container, "oneoff") == "True" {
        return None;
    }
    let name = label(container, "service");
    let mut parts = name.split('-');
    let first = parts.next()?;
    if parts.any(|part| HELPERS.contains(&part)) {
        return None;
    }
    Service::ALL
        .into_iter()
        .find(|service| service.name() == first)
}

/// Returns the published port, or else the container's own address on its network.
fn reach(container: &Value, port: u16) -> Option<(String, u16)> {
    let published = array(container, &format!("/NetworkSettings/Ports/{port}~1tcp"))
        .find_map(|binding| text(binding, "/HostPort").parse().ok());
    if let Some(published) = published {
        return Some(("127.0.0.1".to_owned(), published));
    }
    container
        .pointer("/NetworkSettings/Networks")?
        .as_object()?
        .values()
        .map(|network| text(network, "/IPAddress"))
        .find(|address| !address.is_empty())
        .map(|address| (address, port))
}

fn label(container: &Value, name: &str) -> String {
    text(
        container,
        &format!("/Config/Labels/com.docker.compose.{name}"),
    )
}

fn text(value: &Value, pointer: &str) -> String {
    let found = value.pointer(pointer).and_then(Value::as_str);
    found.unwrap_or_default().to_owned()
}

fn array<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> {
    let found = value.pointer(pointer).and_then(Value::as_array);
    found.into_iter().flatten()
}

/// Reads `NAME=value` lines as compose does, quotes and comments included; no interpolation.
fn read_env(path: &Path) -> Result<BTreeMap<String, String>> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("read the stack's environment file {}", path.display()))?;
    Ok(text.lines().filter_map(env_line).collect())
}

fn env_line(line: &str) -> Option<(String, String)> {
    let line = line.trim();
    let line = line.strip_prefix("export ").unwrap_or(line);
    let (name, value) = line.split_once('=')?;
    if name.starts_with('#') {
        return None;
    }
    let value = value.trim();
    let quoted = |quote| {
        let inner = value.strip_prefix(quote)?;
        inner.split_once(quote).map(|(inner, _)| inner)
    };
    let value = quoted('"').or_else(|| quoted('\'')).unwrap_or_else(|| {
        value
            .split_once(" #")
            .map_or(value, |(kept, _)| kept.trim())
    });
    Some((name.trim().to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use serde_json::json;

    use super::*;

    #[test]
    fn env_lines_are_read_as_compose_reads_them() {
        let pair = |name: &str, value: &str| Some((name.to_owned(), value.to_owned()));
        assert_eq!(env_line("A=1"), pair("A", "1"));
        assert_eq!(env_line("export A=b=c # note"), pair("A", "b=c"));
        assert_eq!(env_line("A=\"x # y\" # note"), pair("A", "x # y"));
        assert_eq!(env_line("A='it'"), pair("A", "it"));
        assert_eq!(env_line("# A=1"), None);
        assert_eq!(env_line(""), None);
    }

    #[test]
    fn the_kits_variants_count_and_its_one_shots_do_not() {
        let container = |service: &str, oneoff: &str| {
            json!({"Config": {"Labels": {
                "com.docker.compose.service": service,
                "com.docker.compose.oneoff": oneoff,
            }}})
        };
        assert_eq!(
            service_of(&container("ollama-cpu", "False")),
            Some(Service::Ollama)
        );
        assert_eq!(service_of(&container("n8n", "False")), Some(Service::N8n));
        assert_eq!(service_of(&container("n8n", "True")), None);
        assert_eq!(service_of(&container("n8n-import", "False")), None);
        assert_eq!(
            service_of(&container("ollama-pull-llama-cpu", "False")),
            None
        );
        assert_eq!(service_of(&container("lifeboat", "False")), None);
    }

    #[test]
    fn a_published_port_is_preferred_to_the_networks_address() {
        let mut container = json!({"NetworkSettings": {
            "Ports": {"5432/tcp": [{"HostIp": "0.0.0.0", "HostPort": "49153"}]},
            "Networks": {"demo": {"IPAddress": "172.18.0.2"}},
        }});
        assert_eq!(
            reach(&container, 5432),
            Some(("127.0.0.1".to_owned(), 49153))
        );
        container["NetworkSettings"]["Ports"] = json!({"5432/tcp": null});
        assert_eq!(
            reach(&container, 5432),
            Some(("172.18.0.2".to_owned(), 5432))
        );
    }
}
