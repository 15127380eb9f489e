#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeMap;

use async_trait::async_trait;

use super::*;
use crate::services::{Check, PointInTime, RunContext, ServiceReport};
use crate::stack::{Companion, CompanionRole};

/// An adapter that only says which way it goes.
struct OnlyWay {
    name: String,
    way: Way,
}

#[async_trait]
impl Restore for OnlyWay {
    fn name(&self) -> &str {
        &self.name
    }
    fn way(&self) -> Way {
        self.way.clone()
    }
    async fn preflight(&mut self, _: &ArchiveRecord) -> Vec<Check> {
        Vec::new()
    }
    async fn settle(&mut self, _: &ArchiveRecord, _: &RunContext) -> Result<(), ServiceError> {
        Ok(())
    }
}

// The shape of a `Factory`.
#[allow(clippy::unnecessary_wraps)]
fn factory(service: &StackService, _: &ArchiveRecord) -> Result<Box<dyn Restore>, ServiceError> {
    let online = matches!(service.kind, ServiceKind::Qdrant | ServiceKind::Ollama);
    let root = PathBuf::from(format!("/data/{}", service.name));
    Ok(Box::new(OnlyWay {
        name: service.name.clone(),
        way: if online {
            Way::Online
        } else {
            Way::Swap { root }
        },
    }))
}

fn container(name: &str, running: bool) -> ContainerRef {
    ContainerRef {
        id: format!("id-{name}"),
        name: name.to_owned(),
        image: "image".to_owned(),
        image_digest: "digest".to_owned(),
        running,
        stop_timeout: None,
        has_healthcheck: true,
    }
}

fn service(kind: ServiceKind, name: &str, depends_on: &[&str]) -> StackService {
    StackService {
        kind,
        name: name.to_owned(),
        container: Some(container(name, true)),
        environment: BTreeMap::new(),
        mounts: Vec::new(),
        all_mount_targets: Vec::new(),
        hosts: Vec::new(),
        ports: Vec::new(),
        depends_on: depends_on.iter().map(|&d| d.to_owned()).collect(),
    }
}

fn companion(kind: ServiceKind, name: &str, role: CompanionRole) -> Companion {
    Companion {
        name: name.to_owned(),
        kind,
        role,
        container: container(name, role == CompanionRole::Worker),
        depends_on: vec!["postgres".to_owned()],
    }
}

/// Shaped like the self-hosted AI starter kit, with a worker and something in front of n8n.
fn kit() -> Stack {
    Stack {
        project: Some("demo".to_owned()),
        services: vec![
            service(ServiceKind::Ollama, "ollama", &[]),
            service(ServiceKind::Postgres, "postgres", &[]),
            service(ServiceKind::Qdrant, "qdrant", &[]),
            service(ServiceKind::N8n, "n8n", &["postgres", "n8n-import"]),
            service(ServiceKind::Volume, "caddy", &["n8n"]),
        ],
        companions: vec![
            companion(ServiceKind::N8n, "n8n-worker", CompanionRole::Worker),
            companion(ServiceKind::N8n, "n8n-import", CompanionRole::OneShot),
            companion(ServiceKind::Ollama, "ollama-gpu", CompanionRole::Idle),
        ],
        ..Stack::default()
    }
}

fn record(kind: ServiceKind, name: &str) -> ArchiveRecord {
    ArchiveRecord {
        name: name.to_owned(),
        kind,
        container: None,
        point: PointInTime::at(Timestamp::UNIX_EPOCH),
        report: ServiceReport {
            version: "17.6".to_owned(),
            counts: BTreeMap::new(),
            facts: serde_json::json!({ "private": "fact" }),
            warnings: Vec::new(),
        },
        raw_bytes: 1_500_000_000,
        read_bytes: 0,
        stored_bytes: 1,
        stream_xxh3: None,
        ranges_sha256: String::new(),
    }
}

fn backup(archives: &[(ServiceKind, &str)]) -> Manifest {
    Manifest {
        format: 1,
        id: "b1".to_owned(),
        repository: "r".to_owned(),
        parent: None,
        program_version: "0".to_owned(),
        machine: None,
        host: "h".to_owned(),
        project: Some("demo".to_owned()),
        started: Timestamp::UNIX_EPOCH,
        finished: Timestamp::UNIX_EPOCH,
        skew_ms: 0,
        archives: archives.iter().map(|(k, n)| record(*k, n)).collect(),
        raw_bytes: 0,
        read_bytes: 0,
        stored_bytes: 0,
        warnings: Vec::new(),
        imported: None,
    }
}

fn full_backup() -> Manifest {
    backup(&[
        (ServiceKind::N8n, "n8n"),
        (ServiceKind::Ollama, "ollama"),
        (ServiceKind::Postgres, "postgres"),
        (ServiceKind::Project, "project"),
        (ServiceKind::Qdrant, "qdrant"),
    ])
}

fn only(names: &[&str]) -> Request {
    Request {
        only: names.iter().map(|&n| n.to_owned()).collect(),
        stage_first: false,
    }
}

fn plan(manifest: &Manifest, stack: &Stack, names: &[&str]) -> Result<Plan, PlanError> {
    build(manifest, stack, &only(names), &factory)
}

fn names(containers: &[PlannedContainer]) -> Vec<&str> {
    containers.iter().map(|c| c.service.as_str()).collect()
}

fn services(plan: &Plan) -> Vec<&str> {
    plan.services.iter().map(|s| s.service.as_str()).collect()
}

#[test]
fn a_whole_stack_stops_writers_first_and_starts_n8n_last() {
    let plan = plan(&full_backup(), &kit(), &[]).unwrap();
    assert_eq!(services(&plan), ["postgres", "n8n", "ollama", "qdrant"]);
    assert_eq!(
        names(&plan.start),
        ["postgres", "n8n", "caddy", "n8n-worker"]
    );
    assert_eq!(
        names(&plan.stop),
        ["n8n-worker", "caddy", "n8n", "postgres"]
    );
    let late: Vec<_> = plan.start.iter().map(|c| c.late).collect();
    assert_eq!(late, [false, true, true, true]);
    assert!(plan.untouched.is_empty(), "{:?}", plan.untouched);
    assert!(plan.notes.iter().any(|n| n.contains("project")), "{plan}");
    let text = plan.to_string();
    assert!(
        !text.contains("n8n-import") && !text.contains("ollama-gpu"),
        "{text}"
    );
}

#[test]
fn n8n_and_its_workers_stop_when_their_database_is_restored() {
    let plan = plan(&full_backup(), &kit(), &["postgres"]).unwrap();
    assert_eq!(services(&plan), ["postgres"]);
    assert_eq!(
        names(&plan.stop),
        ["n8n-worker", "caddy", "n8n", "postgres"]
    );
    assert_eq!(plan.untouched, ["ollama", "qdrant"]);
    assert!(plan.stop[0].why.contains("postgres"), "{:?}", plan.stop);
}

#[test]
fn nothing_stops_for_what_a_running_server_takes() {
    let plan = plan(&full_backup(), &kit(), &["qdrant"]).unwrap();
    assert!(plan.stop.is_empty() && plan.start.is_empty());
    assert_eq!(plan.services[0].way, PlannedWay::Online);
    assert!(
        plan.downtime.contains("no running service"),
        "{}",
        plan.downtime
    );
}

#[test]
fn what_did_not_run_is_started_only_when_its_own_data_is_restored() {
    let mut stack = kit();
    for service in &mut stack.services {
        service.container.as_mut().unwrap().running = false;
    }
    let plan = plan(&full_backup(), &stack, &["postgres"]).unwrap();
    assert_eq!(names(&plan.start), ["postgres", "n8n-worker"]);
    assert_eq!(names(&plan.stop), ["n8n-worker"]);
    assert!(
        plan.notes
            .iter()
            .any(|n| n.contains("not started: n8n, caddy")),
        "{:?}",
        plan.notes
    );
}

#[test]
fn a_single_service_of_the_kind_may_have_another_name() {
    let mut stack = kit();
    stack.services[1].name = "db".to_owned();
    let manifest = backup(&[(ServiceKind::Postgres, "postgres")]);
    for asked in [&[][..], &["postgres"], &["db"]] {
        let plan = plan(&manifest, &stack, asked).unwrap();
        assert_eq!(services(&plan), ["db"]);
        assert!(plan.notes[0].contains("\"db\""), "{:?}", plan.notes);
    }
}

#[test]
fn what_cannot_be_matched_is_a_sentence() {
    let mut two = kit();
    two.services
        .push(service(ServiceKind::Postgres, "other", &[]));
    two.services[1].name = "db".to_owned();
    let postgres = backup(&[(ServiceKind::Postgres, "postgres")]);
    let error = plan(&postgres, &two, &[]).unwrap_err();
    assert!(
        matches!(error, PlanError::SeveralCandidates { .. }),
        "{error}"
    );
    assert!(error.to_string().contains("db, other"), "{error}");

    let error = plan(&full_backup(), &kit(), &["redis"]).unwrap_err();
    assert!(matches!(error, PlanError::NotInBackup { .. }), "{error}");

    let error = plan(&postgres, &Stack::default(), &[]).unwrap_err();
    assert!(matches!(error, PlanError::NotInStack { .. }), "{error}");
    let error = plan(&full_backup(), &kit(), &["project"]).unwrap_err();
    assert!(error.to_string().contains("--into"), "{error}");

    // Another volume is another's data.
    let volume = backup(&[(ServiceKind::Volume, "uploads")]);
    let error = plan(&volume, &kit(), &[]).unwrap_err();
    assert!(matches!(error, PlanError::NotInStack { .. }), "{error}");

    let twice = backup(&[(ServiceKind::Postgres, "a"), (ServiceKind::Postgres, "b")]);
    let error = plan(&twice, &kit(), &[]).unwrap_err();
    assert!(matches!(error, PlanError::SameService { .. }), "{error}");
    let error = plan(&twice, &kit(), &["postgres"]).unwrap_err();
    assert!(error.to_string().contains("a, b"), "{error}");

    let error = plan(&backup(&[]), &kit(), &[]).unwrap_err();
    assert!(matches!(error, PlanError::Nothing(_)), "{error}");
}

#[test]
fn without_the_docker_api_a_person_is_told_what_to_stop() {
    let mut stack = kit();
    stack.without_engine = Some("there is no Docker API".to_owned());
    stack.companions.clear();
    for service in &mut stack.services {
        service.container = None;
    }
    let plan = plan(&full_backup(), &stack, &[]).unwrap();
    assert_eq!(names(&plan.stop), ["caddy", "n8n", "postgres"]);
    let text = plan.to_string();
    assert!(text.contains("You stop : caddy, n8n, postgres"), "{text}");
    assert!(text.contains("there is no Docker API"), "{text}");
}

#[test]
fn into_a_directory_needs_no_service_and_explains_postgres() {
    let plan = build_into(
        &full_backup(),
        &Stack::default(),
        &only(&["postgres", "project"]),
        Path::new("/tmp/out"),
    )
    .unwrap();
    assert_eq!(services(&plan), ["postgres", "project"]);
    assert!(plan.stop.is_empty() && plan.start.is_empty());
    let text = plan.to_string();
    assert!(text.contains("/tmp/out/postgres"), "{text}");
    assert!(text.contains("recovery.signal"), "{text}");
}

#[test]
fn the_plan_is_text_and_json_without_an_adapters_facts() {
    let plan = plan(&full_backup(), &kit(), &[]).unwrap();
    let text = plan.to_string();
    assert!(text.contains("1.5 GB  as of 1970-01-01"), "{text}");
    assert!(
        text.contains("Starts   : postgres, n8n, caddy, n8n-worker"),
        "{text}"
    );
    assert!(text.contains("while 3.0 GB are written"), "{text}");
    let json = serde_json::to_value(&plan).unwrap();
    assert_eq!(json["services"][0]["way"], "swap");
    assert_eq!(json["services"][0]["root"], "/data/postgres");
    assert_eq!(json["services"][0]["archive"], "postgres");
    assert!(!json.to_string().contains("private"), "{json}");
}

#[test]
fn what_uses_a_server_that_takes_dumps_stops_and_starts_after_it() {
    let online = |service: &StackService, record: &ArchiveRecord| {
        if service.kind != ServiceKind::Postgres {
            return factory(service, record);
        }
        Ok(Box::new(OnlyWay {
            name: service.name.clone(),
            way: Way::Online,
        }) as Box<dyn Restore>)
    };
    let plan = build(&full_backup(), &kit(), &only(&["postgres"]), &online).unwrap();
    assert_eq!(plan.services[0].way, PlannedWay::Online);
    let names = |planned: &[PlannedContainer]| {
        let names = planned.iter().map(|p| p.service.clone());
        names.collect::<std::collections::BTreeSet<_>>()
    };
    let users = ["n8n", "n8n-worker", "caddy"].map(str::to_owned).into();
    assert_eq!(names(&plan.stop), users);
    assert_eq!(names(&plan.start), users);
    assert!(plan.start.iter().all(|planned| planned.late), "{plan:?}");
}
