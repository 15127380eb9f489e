//! The shapes of stacks people have, as `docker inspect` tells them.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod fixtures;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::{DiscoverError, environment, from_inspected};
use crate::config::Config;
use crate::services::ServiceKind;
use crate::stack::{CompanionRole, Stack, StackService};
use fixtures::{Directories, Inspect, container, kit, sidecar};

fn config(vars: &[(&str, &str)]) -> Config {
    Config::from_vars(vars.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))).unwrap()
}

fn stack_of(
    config: &Config,
    own: Inspect,
    siblings: Vec<Inspect>,
    dirs: &[&str],
) -> Result<Stack, DiscoverError> {
    let siblings: Vec<_> = siblings.into_iter().map(Inspect::build).collect();
    from_inspected(
        config,
        Some(&own.build()),
        &siblings,
        &BTreeMap::new(),
        &Directories::of(dirs),
    )
}

fn find<'a>(stack: &'a Stack, name: &str) -> &'a StackService {
    stack.services.iter().find(|s| s.name == name).unwrap()
}

fn names(stack: &Stack) -> Vec<(&str, ServiceKind)> {
    stack
        .services
        .iter()
        .map(|s| (s.name.as_str(), s.kind))
        .collect()
}

fn roles(stack: &Stack) -> Vec<(&str, CompanionRole)> {
    stack
        .companions
        .iter()
        .map(|c| (c.name.as_str(), c.role))
        .collect()
}

fn local(service: &StackService, target: &str) -> Option<PathBuf> {
    service.local_path(Path::new(target))
}

#[test]
fn the_kit_is_recognised_with_named_volumes() {
    let dirs = [
        "/data/n8n",
        "/data/postgres",
        "/data/ollama",
        "/project",
        "/backup",
    ];
    let stack = stack_of(&config(&[]), sidecar(), kit(), &dirs).unwrap();
    assert_eq!(
        names(&stack),
        [
            ("project", ServiceKind::Project),
            ("ollama-cpu", ServiceKind::Ollama),
            ("postgres", ServiceKind::Postgres),
            ("qdrant", ServiceKind::Qdrant),
            ("n8n", ServiceKind::N8n),
        ]
    );
    assert_eq!(stack.project.as_deref(), Some("kit"));
    assert_eq!(stack.warnings, [""; 0]);
    assert_eq!(
        roles(&stack),
        [
            ("ollama-gpu", CompanionRole::Idle),
            ("ollama-pull-llama-cpu", CompanionRole::OneShot),
            ("n8n-import", CompanionRole::OneShot),
        ]
    );
    let postgres = find(&stack, "postgres");
    assert_eq!(
        local(postgres, "/var/lib/postgresql/data/base").unwrap(),
        Path::new("/data/postgres/base")
    );
    assert_eq!(postgres.ports, [5432]);
    assert_eq!(postgres.hosts, ["kit-postgres-1", "postgres", "172.18.0.9"]);
    assert_eq!(postgres.environment["PGDATA"], "/var/lib/postgresql/data");
    let reference = postgres.container.as_ref().unwrap();
    assert!(reference.has_healthcheck && reference.running);
    assert_eq!(reference.stop_timeout, Some(40));
    let n8n = find(&stack, "n8n");
    assert_eq!(n8n.container.as_ref().unwrap().name, "n8n");
    assert_eq!(
        local(n8n, "/home/node/.n8n").unwrap(),
        Path::new("/data/n8n")
    );
    assert_eq!(n8n.depends_on, ["postgres", "n8n-import"]);
    // Its own mounts only: `shared` is not in the sidecar, and the project's directory is not data.
    assert_eq!(local(n8n, "/data/shared"), None);
    assert_eq!(n8n.all_mount_targets, ["/data/shared", "/home/node/.n8n"]);
}

#[test]
fn what_others_need_starts_first_and_jobs_are_left_out() {
    let mut siblings = kit();
    siblings.push(
        container("n8n-worker", "n8nio/n8n:latest")
            .command("tini", &["--", "/docker-entrypoint.sh", "worker"])
            .volume("kit_n8n_storage", "/home/node/.n8n")
            .depends_on("postgres:service_healthy:false"),
    );
    let stack = stack_of(&config(&[]), sidecar(), siblings, &["/data/n8n"]).unwrap();
    let order: Vec<_> = stack.dependencies_first().iter().map(|m| m.name).collect();
    assert_eq!(
        order,
        ["ollama-cpu", "postgres", "qdrant", "n8n", "n8n-worker"]
    );
}

#[test]
fn bind_mounts_below_one_directory_of_the_sidecar_are_matched() {
    let own = container("backup", "lifeboat")
        .bind("/srv/kit/data", "/data")
        .bind("/srv/kit/shared", "/data/shared");
    let siblings = vec![
        container("db", "registry.example/library/postgres:17@sha256:0a")
            .command("docker-entrypoint.sh", &["postgres"])
            .bind("/srv/kit/data/postgres", "/var/lib/postgresql/data"),
        container("flows", "docker.n8n.io/n8nio/n8n:2.41.1")
            .bind("/srv/kit/data/n8n", "/home/node/.n8n")
            .bind("/srv/kit/shared", "/files"),
        container("webui", "open-webui/open-webui:main").bind("/srv/kit/data/webui", "/app/data"),
        container("proxy", "caddy:2").bind("/srv/kit/Caddyfile", "/etc/caddy/Caddyfile"),
    ];
    let dirs = [
        "/data/postgres",
        "/data/n8n",
        "/data/webui",
        "/data/shared",
        "/data/loose",
    ];
    let stack = stack_of(&config(&[]), own, siblings, &dirs).unwrap();
    assert_eq!(
        names(&stack),
        [
            ("loose", ServiceKind::Volume),
            ("shared", ServiceKind::Volume),
            ("db", ServiceKind::Postgres),
            ("webui", ServiceKind::Volume),
            ("flows", ServiceKind::N8n),
        ]
    );
    assert_eq!(
        local(find(&stack, "webui"), "/app/data").unwrap(),
        Path::new("/data/webui")
    );
    assert!(find(&stack, "webui").container.is_some());
    assert_eq!(
        local(find(&stack, "flows"), "/files").unwrap(),
        Path::new("/data/shared")
    );
}

#[test]
fn the_layout_of_postgres_18_is_followed() {
    let own = container("lifeboat", "lifeboat").volume("pg18", "/data/postgres");
    let db = container("postgres", "postgres:18")
        .env("PGDATA=/var/lib/postgresql/18/docker")
        .volume("pg18", "/var/lib/postgresql");
    let stack = stack_of(&config(&[]), own, vec![db], &["/data/postgres"]).unwrap();
    assert_eq!(names(&stack), [("postgres", ServiceKind::Postgres)]);
    assert_eq!(
        local(find(&stack, "postgres"), "/var/lib/postgresql/18/docker").unwrap(),
        Path::new("/data/postgres/18/docker")
    );
}

#[test]
fn data_in_an_anonymous_volume_is_not_mistaken_for_the_bind_above_it() {
    let own = container("lifeboat", "lifeboat").bind("/srv/pg", "/data/postgres");
    let db = container("postgres", "postgres:16")
        .env("PGDATA=/var/lib/postgresql/data")
        .bind("/srv/pg", "/var/lib/postgresql")
        .volume("3f0a", "/var/lib/postgresql/data");
    let stack = stack_of(&config(&[]), own, vec![db], &["/data/postgres"]).unwrap();
    assert_eq!(
        local(find(&stack, "postgres"), "/var/lib/postgresql/data"),
        None
    );
}

#[test]
fn parts_of_one_volume_are_told_apart() {
    let part = |service, image, path: &str, target: &str| {
        container(service, image).volume("all", target).at(
            "/HostConfig/Mounts",
            json!([{"Type": "volume", "Source": "all", "Target": target,
                        "VolumeOptions": {"Subpath": path}}]),
        )
    };
    let own = container("lifeboat", "lifeboat").volume("all", "/data");
    let siblings = vec![
        part("postgres", "postgres:17", "pg", "/var/lib/postgresql/data"),
        part("n8n", "n8nio/n8n", "n8n", "/home/node/.n8n"),
    ];
    let stack = stack_of(&config(&[]), own, siblings, &["/data/pg", "/data/n8n"]).unwrap();
    assert_eq!(
        names(&stack),
        [
            ("postgres", ServiceKind::Postgres),
            ("n8n", ServiceKind::N8n)
        ]
    );
    assert_eq!(
        local(find(&stack, "postgres"), "/var/lib/postgresql/data").unwrap(),
        Path::new("/data/pg")
    );
}

#[test]
fn servers_under_other_names_are_known_by_what_only_they_have() {
    let siblings = vec![
        container("a", "acme/db:1")
            .env("PGDATA=/pgdata")
            .command(
                "/usr/local/bin/docker-entrypoint.sh",
                &["postgres", "-c", "wal_level=logical"],
            )
            .ports(&["5432/tcp"]),
        container("b", "acme/vectors:1").ports(&["6333/tcp", "6334/tcp"]),
        container("c", "acme/llm:1").volume("models", "/root/.ollama"),
        container("d", "acme/flows:1").volume("flows", "/home/node/.n8n"),
        container("e", "pgvector/pgvector:pg17"),
        container("f", "postgis/postgis:17-3.5-alpine"),
        // Built on the server's image, with all it brings along, but not a server.
        container("g", "acme/postgres-backup:17")
            .env("PGDATA=/var/lib/postgresql/data")
            .env("PG_MAJOR=17")
            .ports(&["5432/tcp"])
            .command("/init.sh", &[])
            .volume("4e11", "/var/lib/postgresql/data"),
        // `.env` handed to everything.
        container("h", "caddy:2")
            .env("POSTGRES_PASSWORD=x")
            .env("N8N_ENCRYPTION_KEY=y"),
        container("postgres", "adminer"),
    ];
    let own = container("lifeboat", "lifeboat");
    let stack = stack_of(&config(&[]), own, siblings, &[]).unwrap();
    let mut found = names(&stack);
    found.sort_unstable();
    assert_eq!(
        found,
        [
            ("a", ServiceKind::Postgres),
            ("b", ServiceKind::Qdrant),
            ("c", ServiceKind::Ollama),
            ("d", ServiceKind::N8n),
            ("e", ServiceKind::Postgres),
            ("f", ServiceKind::Postgres),
        ]
    );
}

#[test]
fn labels_override_what_is_recognised() {
    let own = container("lifeboat", "lifeboat")
        .volume("a", "/data/a")
        .volume("b", "/data/b");
    let siblings = vec![
        container("legacy", "postgres:12")
            .label("lifeboat.service", "ignore")
            .volume("a", "/var/lib/postgresql/data"),
        container("files", "qdrant/qdrant")
            .label("lifeboat.service", "volume")
            .volume("b", "/qdrant/storage"),
        container("strange", "acme/x").label("lifeboat.service", "postgres"),
        container("nothing", "acme/y").label("lifeboat.service", "volume"),
    ];
    let stack = stack_of(&config(&[]), own, siblings, &["/data/a", "/data/b"]).unwrap();
    assert_eq!(
        names(&stack),
        [
            ("files", ServiceKind::Volume),
            ("strange", ServiceKind::Postgres)
        ]
    );
    assert!(
        stack.warnings[0].contains("nothing is labelled"),
        "{:?}",
        stack.warnings
    );

    let wrong = vec![container("db", "postgres").label("lifeboat.service", "postgresql")];
    let err = stack_of(&config(&[]), container("l", "lifeboat"), wrong, &[]).unwrap_err();
    assert!(
        err.to_string().contains("lifeboat.service=postgresql"),
        "{err}"
    );
}

#[test]
fn two_databases_and_scaled_services_have_names_of_their_own() {
    let siblings = vec![
        container("app-db", "postgres:17"),
        container("n8n-db", "postgres:16"),
        container("n8n-db", "postgres:16")
            .at("/Id", json!("ff".repeat(32)))
            .label("com.docker.compose.container-number", "2"),
        container("N8N.Main", "n8nio/n8n"),
    ];
    let own = container("lifeboat", "lifeboat");
    let stack = stack_of(&config(&[]), own, siblings, &[]).unwrap();
    let found: Vec<_> = stack.services.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(found, ["app-db", "n8n-db", "n8n-db-2", "n8n.main"]);
}

#[test]
fn only_wanted_services_are_kept_and_an_unknown_one_is_named() {
    let config_of = |list| config(&[("LIFEBOAT_SERVICES", list)]);
    let stack = stack_of(
        &config_of("Postgres,qdrant"),
        sidecar(),
        kit(),
        &["/project"],
    )
    .unwrap();
    assert_eq!(
        names(&stack),
        [
            ("postgres", ServiceKind::Postgres),
            ("qdrant", ServiceKind::Qdrant)
        ]
    );
    // n8n can still be stopped.
    assert!(roles(&stack).contains(&("n8n", CompanionRole::Worker)));
    let err = stack_of(&config_of("postgres,mysql"), sidecar(), kit(), &[]).unwrap_err();
    assert!(err.to_string().contains("\"mysql\""), "{err}");
    assert!(err.to_string().contains("ollama-cpu (ollama)"), "{err}");
}

#[test]
fn a_service_in_no_common_network_is_warned_of_and_a_borrowed_network_is_followed() {
    let network = |id: &str, ip: &str| json!({"n": {"NetworkID": id, "IPAddress": ip}});
    let siblings = vec![
        container("qdrant", "qdrant/qdrant")
            .at("/NetworkSettings/Networks", network("net2", "10.0.0.2")),
        container("vpn", "acme/vpn").at("/NetworkSettings/Networks", network("net1", "172.18.0.3")),
        container("ollama", "ollama/ollama")
            .at("/NetworkSettings/Networks", json!({}))
            .at(
                "/HostConfig/NetworkMode",
                json!(format!("container:{}", blake3::hash(b"vpn").to_hex())),
            ),
    ];
    let own = container("lifeboat", "lifeboat");
    let stack = stack_of(&config(&[]), own, siblings, &[]).unwrap();
    assert_eq!(
        find(&stack, "ollama").hosts,
        ["kit-vpn-1", "vpn", "172.18.0.3"]
    );
    assert_eq!(find(&stack, "qdrant").hosts, [""; 0]);
    assert!(
        stack.warnings[0].contains("qdrant shares no network"),
        "{:?}",
        stack.warnings
    );
}

#[test]
fn the_sidecars_other_containers_are_not_services() {
    let own = sidecar()
        .at("/Id", json!("aa".repeat(32)))
        .label("com.docker.compose.oneoff", "True");
    let mut siblings = kit();
    siblings.push(sidecar());
    siblings.push(container("nightly", "lifeboat:latest").volume("kit_n8n_storage", "/data/n8n"));
    let stack = stack_of(&config(&[]), own, siblings, &["/data/n8n"]).unwrap();
    assert!(!stack.services.iter().any(|s| s.kind == ServiceKind::Volume));
}

#[test]
fn outside_a_container_the_usual_directories_and_addresses_are_taken() {
    let siblings: Vec<_> = kit().into_iter().map(Inspect::build).collect();
    let config = config(&[
        ("LIFEBOAT_DATA", "/srv/kit/data"),
        ("OLLAMA_DATA", "/models"),
    ]);
    let dirs = Directories::of(&["/srv/kit/data/postgres", "/srv/kit/data/n8n"]);
    let stack = from_inspected(&config, None, &siblings, &BTreeMap::new(), &dirs).unwrap();
    assert_eq!(
        local(find(&stack, "postgres"), "/var/lib/postgresql/data").unwrap(),
        Path::new("/srv/kit/data/postgres")
    );
    assert_eq!(
        local(find(&stack, "ollama-cpu"), "/root/.ollama").unwrap(),
        Path::new("/models")
    );
    assert_eq!(find(&stack, "qdrant").hosts, ["172.18.0.9"]);
    assert!(!stack.services.iter().any(|s| s.kind == ServiceKind::Volume));
}

#[test]
fn without_the_engine_settings_and_directories_tell_the_stack() {
    let config = config(&[
        ("POSTGRES_HOST", "db.internal"),
        ("POSTGRES_PORT", "5433"),
        ("QDRANT_URL", "https://vectors:443"),
        ("OLLAMA_DATA", "/models"),
    ]);
    let dirs = Directories::of(&[
        "/data/n8n",
        "/data/postgres/18/docker/PG_VERSION",
        "/data/uploads",
        "/project",
        "/models",
    ]);
    let stack = environment::stack(&config, "no socket".into(), &dirs).unwrap();
    assert_eq!(
        names(&stack),
        [
            ("project", ServiceKind::Project),
            ("uploads", ServiceKind::Volume),
            ("ollama", ServiceKind::Ollama),
            ("postgres", ServiceKind::Postgres),
            ("qdrant", ServiceKind::Qdrant),
            ("n8n", ServiceKind::N8n),
        ]
    );
    assert_eq!(stack.without_engine.as_deref(), Some("no socket"));
    let postgres = find(&stack, "postgres");
    assert_eq!(
        (postgres.hosts[0].as_str(), postgres.ports[0]),
        ("db.internal", 5433)
    );
    assert_eq!(
        local(postgres, "/var/lib/postgresql/18/docker").unwrap(),
        Path::new("/data/postgres/18/docker")
    );
    let qdrant = find(&stack, "qdrant");
    assert_eq!(
        (qdrant.hosts[0].as_str(), qdrant.ports[0]),
        ("vectors", 443)
    );
    assert_eq!(qdrant.mounts, []);
    assert_eq!(
        local(find(&stack, "n8n"), "/home/node/.n8n").unwrap(),
        Path::new("/data/n8n")
    );
    assert!(stack.services.iter().all(|s| s.container.is_none()));
}

#[test]
fn nothing_found_is_said() {
    let stack = environment::stack(&config(&[]), "x".into(), &Directories::default()).unwrap();
    assert!(stack.services.is_empty());
    assert!(
        stack.warnings[0].contains("POSTGRES_HOST"),
        "{:?}",
        stack.warnings
    );
}

#[test]
fn the_repository_is_not_a_volume_when_it_lies_below_the_data() {
    let config = config(&[
        ("LIFEBOAT_REPOSITORY", "/data/backup"),
        ("LIFEBOAT_STATE", "/data/state"),
        ("OLLAMA_URL", "http://ollama:11434"),
    ]);
    let dirs = Directories::of(&["/data/backup", "/data/state", "/data/x"]);
    let stack = environment::stack(&config, "x".into(), &dirs).unwrap();
    assert_eq!(
        names(&stack),
        [("x", ServiceKind::Volume), ("ollama", ServiceKind::Ollama)]
    );
}
