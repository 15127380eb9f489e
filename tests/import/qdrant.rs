//! Qdrant's storage as files, back under a server that was stopped.

use lifeboat::restore::{Restore, Way};
use lifeboat::services::qdrant::QdrantStorageRestore;
use lifeboat::services::{ServiceError, ServiceKind};
use qdrant_standin::{Handle, Options};
use serde_json::{Value, json};

use crate::place::{mount, service};
use crate::world::{World, report};

async fn start(world: &World, storage: &str) -> Handle {
    let options = Options::new(world.path(storage), world.path("snapshots"));
    qdrant_standin::start(options).await.unwrap()
}

async fn put(server: &Handle, path: &str, body: Value) {
    let url = format!("{}/collections/{path}", server.http_url);
    let request = reqwest::Client::new().put(url).json(&body);
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), 200);
}

/// What the adapter finds when the server runs again.
async fn settle(world: &World, server: &Handle, id: &str) -> Result<(), ServiceError> {
    let config = world.place.config(&[
        ("QDRANT_URL", &server.http_url),
        ("QDRANT_GRPC_URL", &server.grpc_url),
        ("RESTORE_TIMEOUT", "20s"),
    ]);
    let mut found = service(ServiceKind::Qdrant, "qdrant");
    found.mounts = vec![mount("/qdrant/storage", &world.path("live/qdrant"))];
    let mut adapter = QdrantStorageRestore::new(&config, &found).unwrap();
    let root = world.path("live/qdrant");
    assert_eq!(adapter.way(), Way::Swap { root });
    let repository = world.place.repository();
    let manifest = repository.manifest(id).unwrap();
    let record = manifest.archive("qdrant").unwrap();
    adapter.settle(record, &world.place.run()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn storage_is_swapped_in_under_a_stopped_server_and_its_collections_are_looked_for() {
    let mut world = World::new();
    let server = start(&world, "stack/qdrant").await;
    for (name, size) in [("docs", 4), ("images", 2)] {
        let vectors = json!({"vectors": {"size": size, "distance": "Dot"}});
        put(&server, name, vectors).await;
    }
    let points = json!({"points": [{"id": 1, "vector": [1.0, 2.0, 3.0, 4.0], "payload": {}}]});
    put(&server, "docs/points?wait=true", points).await;
    server.shutdown().await;
    // The stand-in keeps its number in a file of its own; Qdrant keeps it here.
    world.file("stack/qdrant/raft_state.json", "{}");
    let manifest = world.import(&[&world.tar("qdrant.tar.zst", &["."])]);
    let id = manifest["id"].as_str().unwrap();
    assert_eq!(
        report(&manifest, "qdrant")["facts"]["storage_collections"],
        json!(["docs", "images"])
    );

    // Another server's storage is there, and the server stopped.
    start(&world, "live/qdrant").await.shutdown().await;
    world.set("QDRANT_URL", "http://127.0.0.1:9");
    world.good(&["restore", id, "--yes"]);
    let server = start(&world, "live/qdrant").await;
    settle(&world, &server, id).await.unwrap();
    let url = format!("{}/collections/docs/points/count", server.http_url);
    let request = reqwest::Client::new()
        .post(url)
        .json(&json!({"exact": true}));
    let count: Value = request.send().await.unwrap().json().await.unwrap();
    assert_eq!(count["result"]["count"], 1);

    let gone = format!("{}/collections/images", server.http_url);
    let answer = reqwest::Client::new().delete(gone).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let missing = settle(&world, &server, id).await.unwrap_err();
    assert!(missing.message.contains("images"), "{missing}");
}
