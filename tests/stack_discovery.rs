//! Discovery, the engine's calls and the undoing of an interrupted run, against a real Docker engine.
//!
//! Each test brings up a throwaway compose project of sleeping containers and takes it down again.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "stack_discovery/project.rs"]
mod project;
#[path = "stack_discovery/proxy.rs"]
mod proxy;
#[path = "stack_discovery/refused.rs"]
mod refused;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lifeboat::config::{Config, Secret};
use lifeboat::restore::swap::Swap;
use lifeboat::services::{RunContext, ServiceKind};
use lifeboat::stack::engine::{Engine, EngineErrorKind, Exec, Limits};
use lifeboat::stack::journal::{Journal, Obligation};
use lifeboat::stack::{CompanionRole, ContainerRef, Stack, StackService, discover, undo};
use project::{Project, connect, docker, docker_host, inside};
use proxy::Proxy;
use serde_json::{Value, json};
use tokio::time::Instant;

const STACK: &str = r#"
services:
  lifeboat:
    <<: *sleeper
    volumes:
      - pg:/data/postgres
      - ./n8n:/data/n8n
      - ./uploads:/data/uploads
      - ./backup:/backup
      - /var/run/docker.sock:/var/run/docker.sock
  db:
    <<: *sleeper
    command: sh -c "touch /tmp/well && exec sleep infinity"
    stop_grace_period: 7s
    labels: { lifeboat.service: postgres }
    environment: { PGDATA: /var/lib/postgresql/data, POSTGRES_PASSWORD: hidden }
    expose: ["5432"]
    volumes: ["pg:/var/lib/postgresql/data"]
    healthcheck: { test: [CMD, test, -e, /tmp/well], interval: 1s, retries: 30 }
  vectors:
    <<: *sleeper
    expose: ["6333", "6334"]
  import:
    <<: *sleeper
    command: "true"
    volumes: ["./n8n:/home/node/.n8n"]
    depends_on: { db: { condition: service_healthy } }
  flows:
    <<: *sleeper
    container_name: ${NAME}-fixed
    volumes: ["./n8n:/home/node/.n8n"]
    depends_on:
      db: { condition: service_healthy }
      import: { condition: service_completed_successfully }
  flows-worker:
    <<: *sleeper
    command: ["sleep", "infinity", "worker"]
    entrypoint: ["sh", "-c", "exec sleep infinity", "n8n"]
    volumes: ["./n8n:/home/node/.n8n"]
    depends_on: [db]
volumes:
  pg:
"#;

const ONE: &str = r#"
services:
  one:
    <<: *sleeper
    command: sh -c "touch /tmp/well && exec sleep infinity"
    healthcheck: { test: [CMD-SHELL, "test -e /tmp/well || { echo not well; false; }"], interval: 1s, retries: 2 }
  brief:
    <<: *sleeper
    command: sh -c "exit 3"
"#;

fn config(vars: &[(&str, &str)]) -> Config {
    Config::from_vars(vars.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))).unwrap()
}

fn find<'a>(stack: &'a Stack, name: &str) -> &'a StackService {
    stack.services.iter().find(|s| s.name == name).unwrap()
}

fn limits(request: Duration) -> Limits {
    Limits {
        connect: request,
        request,
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_mins(1)
}

async fn is_running(engine: &Engine, id: &str) -> bool {
    let state = engine.inspect(id).await.unwrap().state.unwrap();
    state.running.unwrap()
}

#[tokio::test]
async fn the_sidecar_finds_itself_and_its_stack() {
    let project = Project::up(STACK);
    let seen = inside(&project.container("lifeboat"), "0", "tells_the_stack");
    assert_eq!(seen["project"], json!(project.name));
    assert_eq!(seen["warnings"], json!([]));
    let names: Vec<_> = seen["services"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| (s["name"].as_str().unwrap(), s["kind"].as_str().unwrap()))
        .collect();
    assert_eq!(
        names,
        [
            ("uploads", "volume"),
            ("db", "postgres"),
            ("vectors", "qdrant"),
            ("flows", "n8n"),
        ]
    );
    let db = &seen["services"][1];
    assert_eq!(
        db["mounts"],
        json!([{"target": "/var/lib/postgresql/data", "local": "/data/postgres", "read_only": false}])
    );
    assert_eq!(db["hosts"][0], json!(project.container("db")));
    assert_eq!(db["hosts"][1], json!("db"));
    // The names do resolve and the address is that container's.
    let resolved = docker(&[
        "exec",
        &project.container("lifeboat"),
        "getent",
        "hosts",
        "db",
    ]);
    assert!(
        resolved.starts_with(db["hosts"][2].as_str().unwrap()),
        "{resolved}"
    );
    let reference: ContainerRef = serde_json::from_value(db["container"].clone()).unwrap();
    assert!(reference.running && reference.has_healthcheck);
    assert_eq!(reference.stop_timeout, Some(7));
    assert!(reference.image_digest.contains("sha256:"), "{reference:?}");
    let companions: Vec<_> = seen["companions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| (c["name"].as_str().unwrap(), c["role"].as_str().unwrap()))
        .collect();
    assert_eq!(
        companions,
        [("flows-worker", "worker"), ("import", "one-shot")]
    );
    assert_eq!(
        seen["start_order"],
        json!(["uploads", "db", "vectors", "flows", "flows-worker"])
    );
}

/// The half of these tests that runs in a container, started by [`inside`]: tells what it finds.
#[tokio::test]
#[ignore = "started inside a container by the other tests"]
async fn tells_the_stack() {
    let config = Config::from_env().unwrap();
    let told = match discover::open(&config).await {
        Err(err) => json!({"error": err.to_string()}),
        Ok((_, stack)) => tell(&stack),
    };
    project::hand_out(&told);
}

fn tell(stack: &Stack) -> Value {
    let services: Vec<_> = stack
        .services
        .iter()
        .map(|s| {
            json!({"name": s.name, "kind": s.kind, "mounts": s.mounts, "hosts": s.hosts,
                   "container": s.container})
        })
        .collect();
    let start_order: Vec<_> = stack.dependencies_first().iter().map(|m| m.name).collect();
    json!({
        "project": stack.project,
        "warnings": stack.warnings,
        "services": services,
        "companions": stack.companions,
        "start_order": start_order,
    })
}

#[tokio::test]
async fn outside_a_container_the_project_is_found_by_its_name() {
    let project = Project::up(STACK);
    let engine = connect().await;
    let data = project.dir().join("data");
    std::fs::create_dir_all(data.join("n8n")).unwrap();
    let config_of = |name: &str| {
        config(&[
            ("LIFEBOAT_PROJECT", name),
            ("LIFEBOAT_DATA", data.to_str().unwrap()),
            ("LIFEBOAT_PROJECT_DIR", project.dir().to_str().unwrap()),
        ])
    };
    let stack = discover::discover(&config_of(&project.name), Some(&engine))
        .await
        .unwrap();
    let flows = find(&stack, "flows");
    assert_eq!(
        flows.local_path(Path::new("/home/node/.n8n")).unwrap(),
        data.join("n8n")
    );
    assert_eq!(
        find(&stack, "db").environment["POSTGRES_PASSWORD"],
        "hidden"
    );
    assert_eq!(find(&stack, "project").kind, ServiceKind::Project);
    let worker = stack
        .companions
        .iter()
        .find(|c| c.role == CompanionRole::Worker)
        .unwrap();
    assert_eq!(worker.name, "flows-worker");

    let err = discover::discover(&config_of("no-such-project"), Some(&engine))
        .await
        .unwrap_err();
    assert!(err.to_string().contains("no-such-project"), "{err}");
    // Without a name there is nothing to go by but the settings.
    let config = config(&[("OLLAMA_URL", "http://ollama:11434")]);
    let stack = discover::discover(&config, Some(&engine)).await.unwrap();
    assert!(stack.without_engine.unwrap().contains("LIFEBOAT_PROJECT"));
    assert_eq!(stack.services[0].kind, ServiceKind::Ollama);
}

#[tokio::test]
async fn containers_stop_start_and_pause_and_doing_it_twice_is_fine() {
    let project = Project::up(ONE);
    let engine = connect().await;
    let one = project.container("one");
    engine.wait_healthy(&one, soon()).await.unwrap();
    for _ in 0..2 {
        engine.pause(&one).await.unwrap();
    }
    let err = engine
        .wait_running(&one, Instant::now() + Duration::from_millis(300))
        .await
        .unwrap_err();
    assert_eq!(err.kind, EngineErrorKind::Timeout);
    assert!(err.to_string().contains("it is paused"), "{err}");
    for _ in 0..2 {
        engine.unpause(&one).await.unwrap();
    }
    for _ in 0..2 {
        engine.stop(&one, Duration::from_secs(20)).await.unwrap();
    }
    assert!(!is_running(&engine, &one).await);
    let err = engine.pause(&one).await.unwrap_err();
    assert!(err.to_string().contains("cannot pause"), "{err}");
    for _ in 0..2 {
        engine.start(&one).await.unwrap();
    }
    engine.wait_running(&one, soon()).await.unwrap();
    engine.wait_healthy(&one, soon()).await.unwrap();
}

#[tokio::test]
async fn containers_that_do_not_become_healthy_are_told_with_the_reason() {
    let project = Project::up(ONE);
    let engine = connect().await;
    let one = project.container("one");
    engine.wait_healthy(&one, soon()).await.unwrap();
    let unwell = Exec::new(["rm", "/tmp/well"]);
    assert_eq!(engine.exec(&one, unwell).await.unwrap().exit_code, 0);
    let begin = Instant::now();
    let sentence = loop {
        let err = engine
            .wait_healthy(&one, Instant::now() + Duration::from_millis(500))
            .await;
        match err {
            Err(err) => break err.to_string(),
            Ok(()) => assert!(begin.elapsed() < Duration::from_mins(1), "stays healthy"),
        }
    };
    assert!(sentence.contains("not well"), "{sentence}");
    assert!(
        sentence.contains(&format!("docker logs {one}")),
        "{sentence}"
    );

    let brief = project.container("brief");
    let err = engine.wait_healthy(&brief, soon()).await.unwrap_err();
    assert_eq!(err.kind, EngineErrorKind::Failed);
    assert!(err.to_string().contains("exited with code 3"), "{err}");
    let err = engine.start("no-such-container").await.unwrap_err();
    assert_eq!(err.kind, EngineErrorKind::NoSuchContainer);
    assert!(err.to_string().contains("no-such-container"), "{err}");
}

#[tokio::test]
async fn commands_run_in_containers() {
    let project = Project::up(ONE);
    let engine = connect().await;
    let one = project.container("one");
    let mut exec = Exec::new(["sh", "-c", "cat; echo $WORD >&2; id -u; exit 5"]);
    exec.environment = vec![("WORD".into(), Secret::new("hidden"))];
    exec.user = Some("65534".into());
    exec.stdin = Some(b"fed\n".to_vec());
    let output = engine.exec(&one, exec).await.unwrap();
    assert_eq!(output.exit_code, 5);
    assert_eq!(output.stdout, b"fed\n65534\n");
    assert_eq!(output.stderr, b"hidden\n");
    assert!(!output.truncated);

    let mut long = Exec::new(["head", "-c", "3000000", "/dev/zero"]);
    long.keep_bytes = 1000;
    let output = engine.exec(&one, long).await.unwrap();
    assert_eq!((output.stdout.len(), output.truncated), (1000, true));
    assert_eq!(output.exit_code, 0);

    // Much input that nobody reads does not hang it.
    let mut deaf = Exec::new(["true"]);
    deaf.stdin = Some(vec![b'x'; 4 << 20]);
    assert_eq!(engine.exec(&one, deaf).await.unwrap().exit_code, 0);

    let mut endless = Exec::new(["sleep", "600"]);
    endless.timeout = Duration::from_millis(700);
    let err = engine.exec(&one, endless).await.unwrap_err();
    assert_eq!(err.kind, EngineErrorKind::Timeout);
    assert!(err.to_string().contains("run sleep in container"), "{err}");

    let missing = engine.exec(&one, Exec::new(["no-such-program"])).await;
    let refused = match missing {
        Ok(output) => output.exit_code != 0,
        Err(err) => err.to_string().contains("no-such-program"),
    };
    assert!(refused);
}

#[tokio::test]
async fn a_stopped_container_is_started_at_the_next_start() {
    let project = Project::up(ONE);
    let engine = connect().await;
    let state = tempfile::tempdir().unwrap();
    let journal = Journal::open(state.path()).unwrap();
    let (config, stack) = stack_of(&project, &engine).await;
    let container = reference(&engine, &project.container("one")).await;
    let mut removed = container.clone();
    removed.id = "0".repeat(64);
    for container in [container.clone(), removed] {
        journal
            .record("r", &Obligation::Stopped { container })
            .unwrap();
    }
    engine
        .stop(&container.id, Duration::from_secs(20))
        .await
        .unwrap();
    let journal = Journal::open(state.path()).unwrap();
    let outcome = undo::undo_all(&config, &journal, Some(&engine), &stack)
        .await
        .unwrap();
    assert_eq!(outcome.open, [""; 0]);
    assert!(outcome.undone[0].contains("removed since"), "{outcome:?}");
    assert!(is_running(&engine, &container.id).await);
    assert_eq!(journal.pending().unwrap(), []);
}

#[tokio::test]
async fn data_is_put_back_only_while_its_server_is_stopped() {
    let project = Project::up(STACK);
    let engine = connect().await;
    let state = tempfile::tempdir().unwrap();
    let journal = Arc::new(Journal::open(state.path()).unwrap());
    let (config, stack) = stack_of(&project, &engine).await;
    let root = project.dir().join("n8n");
    std::fs::write(root.join("live"), "old").unwrap();
    let run = RunContext {
        run_id: "r".into(),
        journal: Arc::clone(&journal),
        scratch: state.path().join("scratch"),
    };
    let swap = Swap::begin("flows", &root, &run, false).unwrap();
    std::fs::write(swap.staging().join("restored"), "new").unwrap();
    swap.swap().unwrap();
    assert!(root.join("restored").exists() && !root.join("live").exists());
    // The process dies here, with n8n started on the new data.
    drop((swap, run));
    let flows = find(&stack, "flows").container.clone().unwrap();
    let started = |inspected: bollard::models::ContainerInspectResponse| {
        inspected.state.unwrap().started_at.unwrap()
    };
    let before = started(engine.inspect(&flows.id).await.unwrap());

    let outcome = undo::undo_all(&config, &journal, None, &stack)
        .await
        .unwrap();
    assert_eq!(
        outcome.open, [""; 0],
        "no engine, and nothing that was stopped through one"
    );
    assert!(root.join("live").exists());
    assert_eq!(started(engine.inspect(&flows.id).await.unwrap()), before);

    let run = RunContext {
        run_id: "s".into(),
        journal: Arc::clone(&journal),
        scratch: state.path().join("scratch"),
    };
    let swap = Swap::begin("flows", &root, &run, false).unwrap();
    std::fs::write(swap.staging().join("restored"), "new").unwrap();
    swap.swap().unwrap();
    drop((swap, run));
    let outcome = undo::undo_all(&config, &journal, Some(&engine), &stack)
        .await
        .unwrap();
    assert_eq!(outcome.open, [""; 0]);
    assert_eq!(std::fs::read_to_string(root.join("live")).unwrap(), "old");
    assert!(!root.join("restored").exists());
    assert!(is_running(&engine, &flows.id).await);
    assert_ne!(started(engine.inspect(&flows.id).await.unwrap()), before);
    assert_eq!(journal.pending().unwrap(), []);
}

async fn stack_of(project: &Project, engine: &Engine) -> (Config, Stack) {
    let config = config(&[
        ("LIFEBOAT_PROJECT", &project.name),
        ("DOCKER_HOST", &docker_host()),
    ]);
    let stack = discover::discover(&config, Some(engine)).await.unwrap();
    (config, stack)
}

async fn reference(engine: &Engine, name: &str) -> ContainerRef {
    let inspected = engine.inspect(name).await.unwrap();
    ContainerRef {
        id: inspected.id.unwrap(),
        name: name.to_owned(),
        image: project::IMAGE.to_owned(),
        image_digest: inspected.image.unwrap(),
        running: true,
        stop_timeout: None,
        has_healthcheck: true,
    }
}
