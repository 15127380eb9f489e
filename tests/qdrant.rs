//! Qdrant: backups and restores against the test stand-in, which answers as Qdrant 1.18.3 was recorded to.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "qdrant/interrupted.rs"]
mod interrupted;
#[path = "adapters/place.rs"]
mod place;
#[path = "qdrant/refused.rs"]
mod refused;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use lifeboat::config::Config;
use lifeboat::repository::manifest::Manifest;
use lifeboat::restore::{Restore, Way};
use lifeboat::services::qdrant::{Qdrant, QdrantRestore, undo_collection, undo_snapshot};
use lifeboat::services::{ErrorKind, RunContext, Service, ServiceError, ServiceKind};
use lifeboat::stack::journal::Obligation;
use lifeboat::stack::undo::undo_all;
use lifeboat::stack::{Stack, StackService};
use place::{Place, service, wait_for};
use qdrant_standin::{FaultPlan, Handle, Options};
use reqwest::Method;
use serde_json::{Value, json};

const KEY: &str = "test-key";
const READ_KEY: &str = "read-key";

/// A stand-in with its directories below the place.
struct Server {
    handle: Handle,
    snapshots: std::path::PathBuf,
    client: reqwest::Client,
}

impl Server {
    async fn start(place: &Place, name: &str) -> Self {
        let snapshots = place.path(&format!("{name}/snapshots"));
        let mut options = Options::new(place.path(&format!("{name}/storage")), &snapshots);
        options.api_key = Some(KEY.into());
        options.read_only_api_key = Some(READ_KEY.into());
        options.segment_points = 50;
        Self {
            handle: qdrant_standin::start(options).await.unwrap(),
            snapshots,
            client: reqwest::Client::new(),
        }
    }

    fn config(&self, place: &Place, key: &str) -> Config {
        place.config(&[
            ("QDRANT_URL", &self.handle.http_url),
            ("QDRANT_GRPC_URL", &self.handle.grpc_url),
            ("QDRANT_API_KEY", key),
            ("RESTORE_TIMEOUT", "20s"),
        ])
    }

    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Value {
        let mut request = self
            .client
            .request(method, format!("{}{path}", self.handle.http_url))
            .header("api-key", KEY);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.unwrap();
        let status = response.status();
        let mut answer: Value = response.json().await.unwrap();
        assert_eq!(status, 200, "{path}: {answer}");
        answer["result"].take()
    }

    async fn create(&self, collection: &str, size: u64) {
        let body = json!({"vectors": {"size": size, "distance": "Dot"}});
        self.call(Method::PUT, &at(collection, ""), Some(body))
            .await;
    }

    async fn upsert(&self, collection: &str, ids: impl Iterator<Item = u64>, note: &str) {
        let size = self.call(Method::GET, &at(collection, ""), None).await;
        let size = size["config"]["params"]["vectors"]["size"]
            .as_u64()
            .unwrap();
        let points: Vec<Value> = ids
            .map(|id| {
                #[allow(clippy::cast_precision_loss)]
                let vector: Vec<f64> = (0..size).map(|n| (id + n) as f64).collect();
                json!({"id": id, "vector": vector, "payload": {"note": note, "lang": "en", "n": id}})
            })
            .collect();
        let body = json!({"points": points});
        self.call(
            Method::PUT,
            &at(collection, "/points?wait=true"),
            Some(body),
        )
        .await;
    }

    async fn alias(&self, alias: &str, collection: &str) {
        let create = json!({"create_alias": {"alias_name": alias, "collection_name": collection}});
        let body = json!({"actions": [create]});
        self.call(Method::POST, "/collections/aliases", Some(body))
            .await;
    }

    async fn drop_collection(&self, collection: &str) {
        self.call(Method::DELETE, &at(collection, ""), None).await;
    }

    async fn aliases(&self) -> BTreeMap<String, String> {
        let answer = self.call(Method::GET, "/aliases", None).await;
        let text = |v: &Value| v.as_str().unwrap().to_owned();
        answer["aliases"]
            .as_array()
            .unwrap()
            .iter()
            .map(|a| (text(&a["alias_name"]), text(&a["collection_name"])))
            .collect()
    }

    async fn collections(&self) -> Vec<String> {
        let answer = self.call(Method::GET, "/collections", None).await;
        let all = answer["collections"].as_array().unwrap();
        let mut names: Vec<String> = all
            .iter()
            .map(|c| c["name"].as_str().unwrap().to_owned())
            .collect();
        names.sort();
        names
    }

    async fn points(&self, collection: &str) -> Vec<Value> {
        let body = json!({"limit": 100_000, "with_vector": true, "with_payload": true});
        let path = at(collection, "/points/scroll");
        let answer = self.call(Method::POST, &path, Some(body)).await;
        answer["points"].as_array().unwrap().clone()
    }

    /// Everything a restore must bring back: configuration, indexes, points, aliases.
    async fn state(&self) -> Value {
        let mut collections = BTreeMap::new();
        for name in self.collections().await {
            let info = self.call(Method::GET, &at(&name, ""), None).await;
            let kept = json!({
                "config": info["config"],
                "payload_schema": info["payload_schema"],
                "points": self.points(&name).await,
            });
            collections.insert(name, kept);
        }
        json!({"collections": collections, "aliases": self.aliases().await})
    }

    /// Every file below the snapshots directory, but for checksums.
    fn snapshot_files(&self) -> Vec<String> {
        let all = place::files_below(&self.snapshots);
        let names = all.into_keys().filter(|name| !name.ends_with(".checksum"));
        names.collect()
    }
}

fn at(collection: &str, rest: &str) -> String {
    let name = collection.replace('%', "%25").replace(' ', "%20");
    format!("/collections/{name}{rest}")
}

fn qdrant_service() -> StackService {
    service(ServiceKind::Qdrant, "qdrant")
}

/// Two collections, a payload index, an alias for each.
async fn seeded(place: &Place, name: &str) -> Server {
    let server = Server::start(place, name).await;
    for (collection, size, count) in [("docs", 8, 120), ("my images %", 4, 30)] {
        server.create(collection, size).await;
        server.upsert(collection, 1..=count, "as backed up").await;
    }
    let index = json!({"field_name": "lang", "field_schema": "keyword"});
    server
        .call(Method::PUT, &at("docs", "/index?wait=true"), Some(index))
        .await;
    server.alias("kb", "docs").await;
    server.alias("pics", "my images %").await;
    server
}

async fn back_up(place: &Place, server: &Server) -> Result<Manifest, ServiceError> {
    let config = server.config(place, KEY);
    let mut qdrant = Qdrant::new(&config, &qdrant_service()).unwrap();
    place.backup(&mut qdrant).await
}

/// Drives a restore as the restore command does.
async fn restore(
    place: &Place,
    server: &Server,
    manifest: &Manifest,
) -> (QdrantRestore, RunContext, Result<(), ServiceError>) {
    let config = server.config(place, KEY);
    let mut adapter = QdrantRestore::new(&config, &qdrant_service()).unwrap();
    assert_eq!(adapter.way(), Way::Online);
    let run = place.run();
    let (archive, record) = place.archive(manifest);
    for check in adapter.preflight(&record).await {
        assert!(check.outcome.is_ok(), "{check:?}");
    }
    let outcome = async {
        adapter.apply(archive, &record, &run).await?;
        adapter.settle(&record, &run).await
    }
    .await;
    (adapter, run, outcome)
}

fn journal_is_empty(place: &Place) -> bool {
    place.journal.pending().unwrap().is_empty()
}

#[tokio::test(flavor = "multi_thread")]
async fn backup_restores_into_an_empty_server_with_nothing_left_behind() {
    let place = Place::new();
    let server = seeded(&place, "old").await;
    let before = server.state().await;
    let manifest = back_up(&place, &server).await.unwrap();

    let report = &manifest.archives[0].report;
    assert_eq!(report.version, "1.18.3");
    assert_eq!(report.warnings, [""; 0]);
    let counts: Vec<_> = report
        .counts
        .iter()
        .map(|(k, v)| (k.as_str(), *v))
        .collect();
    assert_eq!(
        counts,
        [("aliases", 2), ("collections", 2), ("points", 150)]
    );
    assert_eq!(server.snapshot_files(), [""; 0]);
    assert!(journal_is_empty(&place));
    assert_eq!(server.state().await, before);

    let target = place.path("extracted");
    place.extract(&manifest, &target);
    let names: Vec<String> = place::files_below(&target).into_keys().collect();
    assert_eq!(
        names,
        [
            "collections.json",
            "collections/docs.snapshot",
            "collections/my%20images%20%25.snapshot"
        ]
    );
    let listed = std::fs::read(target.join("collections.json")).unwrap();
    let listed: Value = serde_json::from_slice(&listed).unwrap();
    assert_eq!(listed, report.facts);
    assert_eq!(listed["aliases"]["kb"], "docs");
    assert_eq!(
        listed["collections"][0]["points"],
        json!({"least": 120, "most": 120})
    );

    let new = Server::start(&place, "new").await;
    let (mut adapter, _, outcome) = restore(&place, &new, &manifest).await;
    outcome.unwrap();
    adapter.finish().await.unwrap();
    assert_eq!(new.state().await, before);
    assert_eq!(new.snapshot_files(), [""; 0]);
    assert!(journal_is_empty(&place));
}

#[tokio::test(flavor = "multi_thread")]
async fn restore_replaces_changed_collections_and_leaves_others_alone() {
    let place = Place::new();
    let server = seeded(&place, "server").await;
    let before = server.state().await;
    let manifest = back_up(&place, &server).await.unwrap();

    // Other vectors, other points, another target of an alias, and an alias in a collection's place.
    server.drop_collection("docs").await;
    server.create("docs", 3).await;
    server.upsert("docs", 1000..1010, "changed since").await;
    server.drop_collection("my images %").await;
    server.create("later", 2).await;
    server.upsert("later", 1..5, "not in the backup").await;
    server.alias("kb", "later").await;
    server.alias("my images %", "later").await;
    server.alias("mine", "later").await;
    server.alias("extra", "docs").await;
    let by_hand = server
        .call(Method::POST, &at("docs", "/snapshots"), None)
        .await;
    let later = server.state().await["collections"]["later"].clone();

    let (mut adapter, _, outcome) = restore(&place, &server, &manifest).await;
    outcome.unwrap();
    adapter.finish().await.unwrap();

    let mut expected = before.clone();
    expected["collections"]["later"] = later;
    expected["aliases"]["mine"] = "later".into();
    assert_eq!(server.state().await, expected);
    let by_hand = format!("docs/{}", by_hand["name"].as_str().unwrap());
    assert_eq!(server.snapshot_files(), [by_hand]);
    assert!(journal_is_empty(&place));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_before_the_freeze_is_lost_under_a_writer() {
    let place = Place::new();
    let server = Arc::new(seeded(&place, "server").await);
    server.handle.faults.apply(FaultPlan {
        snapshot_delay_ms: Some(300),
        ..FaultPlan::default()
    });
    let (acknowledged, stop) = (
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let writer = tokio::spawn({
        let (server, acknowledged) = (Arc::clone(&server), Arc::clone(&acknowledged));
        let stop = Arc::clone(&stop);
        async move {
            let mut id = 10_000;
            while !stop.load(Ordering::SeqCst) {
                server.upsert("docs", id..=id, "from the writer").await;
                id += 1;
                acknowledged.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    wait_for("the writer's first points", async || {
        acknowledged.load(Ordering::SeqCst) > 3
    })
    .await;
    let before = acknowledged.load(Ordering::SeqCst);
    let manifest = back_up(&place, &server).await.unwrap();
    let after = acknowledged.load(Ordering::SeqCst);
    stop.store(true, Ordering::SeqCst);
    writer.await.unwrap();
    assert!(after > before, "the writer was blocked");
    let seen = &manifest.archives[0].report.facts["collections"][0]["points"];
    assert!(seen["most"].as_u64() > seen["least"].as_u64(), "{seen}");

    let new = Server::start(&place, "new").await;
    let (mut adapter, _, outcome) = restore(&place, &new, &manifest).await;
    outcome.unwrap();
    adapter.finish().await.unwrap();
    let ids: Vec<u64> = new
        .points("docs")
        .await
        .iter()
        .map(|p| p["id"].as_u64().unwrap())
        .filter(|id| *id >= 10_000)
        .collect();
    assert!(ids.len() as u64 >= before);
    // Without a hole: the snapshot shows one instant.
    assert_eq!(ids, (10_000..10_000 + ids.len() as u64).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn check_is_green_with_the_containers_own_key_and_estimates_from_counts() {
    let place = Place::new();
    let server = seeded(&place, "server").await;
    let mut found = qdrant_service();
    let key = ("QDRANT__SERVICE__API_KEY".to_owned(), KEY.to_owned());
    found.environment.extend([key]);
    let config = place.config(&[
        ("QDRANT_URL", &server.handle.http_url),
        ("QDRANT_GRPC_URL", &server.handle.grpc_url),
    ]);
    let qdrant = Qdrant::new(&config, &found).unwrap();
    for check in qdrant.check().await {
        assert!(check.outcome.is_ok(), "{check:?}");
    }
    assert_eq!(qdrant.estimate().await, 120 * 8 * 4 + 30 * 4 * 4);
    assert_eq!(server.snapshot_files(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn collections_that_come_and_go_are_noticed() {
    let place = Place::new();
    let server = seeded(&place, "server").await;
    let config = server.config(&place, KEY);
    let repository = place.repository();

    for dropped in [false, true] {
        let run = place.run();
        let backup = repository
            .begin(&run.run_id, &place.path("state"), 3)
            .unwrap();
        let mut archive = backup.archive("qdrant").unwrap();
        let mut qdrant = Qdrant::new(&config, &qdrant_service()).unwrap();
        qdrant.hold(&run).await.unwrap();
        qdrant.copy(&mut archive).await.unwrap();
        qdrant.freeze().await.unwrap();
        if dropped {
            server.drop_collection("docs").await;
        } else {
            server.create("fresh", 2).await;
        }
        let outcome = qdrant.drain(&mut archive).await;
        qdrant.release().await.unwrap();
        if dropped {
            let error = outcome.unwrap_err();
            assert!(error.message.contains("docs was dropped"), "{error}");
        } else {
            let report = outcome.unwrap();
            assert_eq!(report.counts["collections"], 2);
            assert!(
                report.warnings[0].contains("fresh"),
                "{:?}",
                report.warnings
            );
            assert_eq!(server.snapshot_files(), [""; 0]);
        }
        assert!(journal_is_empty(&place));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_keeps_no_uploads_is_restored_too() {
    let place = Place::new();
    let server = seeded(&place, "server").await;
    let before = server.state().await;
    let manifest = back_up(&place, &server).await.unwrap();
    server.upsert("docs", 500..520, "since the backup").await;
    server.handle.faults.apply(FaultPlan {
        forget_uploads: Some(2),
        ..FaultPlan::default()
    });
    let (mut adapter, _, outcome) = restore(&place, &server, &manifest).await;
    outcome.unwrap();
    adapter.finish().await.unwrap();
    assert_eq!(server.state().await, before);
    assert_eq!(server.snapshot_files(), [""; 0]);
    assert!(journal_is_empty(&place));
}
