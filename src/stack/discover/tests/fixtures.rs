//! `docker inspect` answers, built up, and a filesystem of directories only.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use bollard::models::ContainerInspectResponse;
use serde_json::{Value, json};

use crate::stack::discover::Surroundings;

/// A filesystem of these directories, each with those above it.
#[derive(Default)]
pub struct Directories(BTreeSet<PathBuf>);

impl Directories {
    pub fn of(paths: &[&str]) -> Self {
        Self(
            paths
                .iter()
                .flat_map(|p| Path::new(p).ancestors().map(PathBuf::from))
                .collect(),
        )
    }
}

impl Surroundings for Directories {
    fn is_dir(&self, path: &Path) -> bool {
        self.0.contains(path)
    }

    fn exists(&self, path: &Path) -> bool {
        self.0.contains(path)
    }

    fn directories(&self, path: &Path) -> Vec<PathBuf> {
        let below = |p: &&PathBuf| p.parent() == Some(path);
        self.0.iter().filter(below).cloned().collect()
    }
}

/// Builds one `docker inspect` answer.
pub struct Inspect(Value);

pub fn container(service: &str, image: &str) -> Inspect {
    let id = blake3::hash(service.as_bytes()).to_hex().to_string();
    Inspect(json!({
        "Id": id,
        "Name": format!("/kit-{service}-1"),
        "Image": format!("sha256:{image}"),
        "Path": "docker-entrypoint.sh",
        "Args": [],
        "State": {"Status": "running", "Running": true, "ExitCode": 0},
        "HostConfig": {"RestartPolicy": {"Name": "unless-stopped"}, "NetworkMode": "kit_demo"},
        "Mounts": [],
        "Config": {
            "Image": image,
            "Env": [],
            "Labels": {
                "com.docker.compose.project": "kit",
                "com.docker.compose.service": service,
                "com.docker.compose.oneoff": "False",
                "com.docker.compose.container-number": "1",
            },
        },
        "NetworkSettings": {"Networks": {
            "kit_demo": {"NetworkID": "net1", "IPAddress": "172.18.0.9"},
        }},
    }))
}

impl Inspect {
    pub fn at(mut self, pointer: &str, value: Value) -> Self {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        self.0.pointer_mut(parent).unwrap()[key] = value;
        self
    }

    pub fn push(mut self, pointer: &str, value: Value) -> Self {
        self.0
            .pointer_mut(pointer)
            .unwrap()
            .as_array_mut()
            .unwrap()
            .push(value);
        self
    }

    pub fn label(self, name: &str, value: &str) -> Self {
        let name = name.replace('/', "~1");
        self.at(&format!("/Config/Labels/{name}"), json!(value))
    }

    pub fn depends_on(self, label: &str) -> Self {
        self.label("com.docker.compose.depends_on", label)
    }

    pub fn env(self, line: &str) -> Self {
        self.push("/Config/Env", json!(line))
    }

    pub fn volume(self, name: &str, target: &str) -> Self {
        self.push(
            "/Mounts",
            json!({"Type": "volume", "Name": name, "Destination": target, "RW": true, "Driver": "local",
                   "Source": format!("/var/lib/docker/volumes/{name}/_data")}),
        )
    }

    pub fn bind(self, source: &str, target: &str) -> Self {
        self.push(
            "/Mounts",
            json!({"Type": "bind", "Source": source, "Destination": target, "RW": true}),
        )
    }

    pub fn command(self, path: &str, args: &[&str]) -> Self {
        self.at("/Path", json!(path)).at("/Args", json!(args))
    }

    pub fn ports(self, ports: &[&str]) -> Self {
        let ports: BTreeMap<_, _> = ports.iter().map(|p| (*p, json!({}))).collect();
        self.at("/Config/ExposedPorts", json!(ports))
    }

    pub fn exited(self) -> Self {
        self.at(
            "/State",
            json!({"Status": "exited", "Running": false, "ExitCode": 0}),
        )
    }

    pub fn no_restart(self) -> Self {
        self.at("/HostConfig/RestartPolicy/Name", json!("no"))
    }

    pub fn build(self) -> ContainerInspectResponse {
        serde_json::from_value(self.0).unwrap()
    }
}

/// The n8n self-hosted AI starter kit, CPU profile, with a left-over GPU container and fixed container names.
pub fn kit() -> Vec<Inspect> {
    let n8n = |service: &str| {
        container(service, "n8nio/n8n:latest")
            .env("DB_TYPE=postgresdb")
            .env("POSTGRES_USER=root")
            .env("POSTGRES_PASSWORD=secret")
    };
    let ollama = |service: &str| {
        container(service, "ollama/ollama:latest")
            .command("/bin/ollama", &["serve"])
            .ports(&["11434/tcp"])
            .volume("kit_ollama_storage", "/root/.ollama")
    };
    vec![
        n8n("n8n")
            .at("/Name", json!("/n8n"))
            .command("tini", &["--", "/docker-entrypoint.sh"])
            .ports(&["5678/tcp"])
            .volume("kit_n8n_storage", "/home/node/.n8n")
            .bind("/srv/kit/shared", "/data/shared")
            .depends_on(
                "postgres:service_healthy:false,n8n-import:service_completed_successfully:false",
            ),
        n8n("n8n-import")
            .at("/Name", json!("/n8n-import"))
            .command(
                "/bin/sh",
                &[
                    "-c",
                    "n8n import:credentials --separate --input=/demo-data/credentials",
                ],
            )
            .bind("/srv/kit/n8n/demo-data", "/demo-data")
            .depends_on("postgres:service_healthy:false")
            .no_restart()
            .exited(),
        container("postgres", "postgres:16-alpine")
            .command("docker-entrypoint.sh", &["postgres"])
            .env("PGDATA=/var/lib/postgresql/data")
            .ports(&["5432/tcp"])
            .at(
                "/Config/Healthcheck",
                json!({"Test": ["CMD-SHELL", "pg_isready"]}),
            )
            .at("/Config/StopTimeout", json!(40))
            .volume("kit_postgres_storage", "/var/lib/postgresql/data"),
        container("qdrant", "qdrant/qdrant")
            .command("./entrypoint.sh", &[])
            .ports(&["6333/tcp", "6334/tcp"])
            .volume("kit_qdrant_storage", "/qdrant/storage"),
        ollama("ollama-cpu"),
        ollama("ollama-gpu").exited(),
        ollama("ollama-pull-llama-cpu")
            .command("/bin/sh", &["-c", "sleep 3; ollama pull llama3.2"])
            .depends_on("ollama-cpu:service_started:false")
            .no_restart()
            .exited(),
    ]
}

pub fn sidecar() -> Inspect {
    container("lifeboat", "lifeboat:latest")
        .volume("kit_n8n_storage", "/data/n8n")
        .volume("kit_postgres_storage", "/data/postgres")
        .volume("kit_ollama_storage", "/data/ollama")
        .bind("/srv/kit/backup", "/backup")
        .bind("/srv/kit", "/project")
}
