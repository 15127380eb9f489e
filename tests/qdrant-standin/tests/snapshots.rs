//! What a backup tool relies on: layout, freezing, restore, durability, and
//! the faults it is tested with.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use common::{KEY, Server, fixture, fixtures, start, start_in};
use qdrant_standin::FaultPlan;
use reqwest::Method;
use serde_json::{Value, json};

async fn seeded(points: u64, segment_points: usize) -> Server {
    let dir = tempfile::tempdir().expect("temporary folder");
    let server = start_in(dir, segment_points).await;
    let schema = json!({"vectors": {"size": 4, "distance": "Dot"}, "shard_number": 2});
    server
        .ok(Method::PUT, "/collections/kb", Some(schema))
        .await;
    let index = json!({"field_name": "lang", "field_schema": "keyword"});
    server
        .ok(Method::PUT, "/collections/kb/index", Some(index))
        .await;
    write(&server, 0..points).await;
    server
}

async fn write(server: &Server, ids: std::ops::Range<u64>) {
    let points: Vec<Value> = ids.map(point).collect();
    let body = json!({"points": points});
    server
        .ok(Method::PUT, "/collections/kb/points?wait=true", Some(body))
        .await;
}

fn point(id: u64) -> Value {
    json!({
        "id": id, "vector": [id, 0.1, -2.5, 1e-7],
        "payload": {"lang": "de", "n": id, "price": 0.1 + 0.2, "deep": {"list": [1, null, "x"]}},
    })
}

#[tokio::test]
async fn archive_has_the_recorded_layout() {
    let server = start().await;
    for name in ["docs", "images"] {
        let file = format!("{name}.snapshot");
        let recorded = fixture(&file);
        let path = format!("/collections/{name}/snapshots/upload");
        assert_eq!(server.upload(&path, &file, &recorded).await.status(), 200);
        let (_, ours) = server.snapshot(name).await;
        // The indexes' own data is the one thing that is not written.
        let mut expected = members(&recorded);
        expected.retain(|member| {
            !member.contains("payload_index/") || member.contains("payload_index/config.json")
        });
        assert_eq!(members(&ours), expected);
    }
}

#[tokio::test]
async fn real_snapshots_come_back_point_for_point() {
    let server = start().await;
    for (name, points) in [("kb-1", 6000), ("kb-2", 6060)] {
        let compressed = fixtures().join(format!("{name}.snapshot.zst"));
        let file = std::fs::File::open(compressed).expect("fixture");
        let mut decoder = async_compression::tokio::bufread::ZstdDecoder::new(
            tokio::io::BufReader::new(tokio::fs::File::from_std(file)),
        );
        let mut snapshot = Vec::new();
        tokio::io::copy(&mut decoder, &mut snapshot)
            .await
            .expect("zstd");
        let path = format!("/collections/{name}/snapshots/upload?priority=snapshot");
        assert_eq!(
            server
                .upload(&path, "kb.snapshot", &snapshot)
                .await
                .status(),
            200
        );
        assert_eq!(server.count(name).await, points);
        let restored = server.all_points(name).await;
        assert!(
            restored
                .iter()
                .all(|p| p["vector"].as_array().map(Vec::len) == Some(96))
        );
        assert!(restored.iter().all(|p| p["payload"]["lang"].is_string()));
        // Through the stand-in's own writer and reader once more.
        let (_, again) = server.snapshot(name).await;
        let copy = format!("/collections/{name}-copy/snapshots/upload");
        assert_eq!(
            server
                .upload(&copy, "again.snapshot", &again)
                .await
                .status(),
            200
        );
        assert_eq!(server.all_points(&format!("{name}-copy")).await, restored);
    }
}

#[tokio::test]
async fn own_snapshot_restores_everything_but_aliases() {
    let server = seeded(250, 50).await;
    let alias =
        json!({"actions": [{"create_alias": {"collection_name": "kb", "alias_name": "a"}}]});
    server
        .ok(Method::POST, "/collections/aliases", Some(alias))
        .await;
    let gone = json!({"points": [3, 77]});
    server
        .ok(Method::POST, "/collections/kb/points/delete", Some(gone))
        .await;
    let before = server.all_points("kb").await;
    let info = server.ok(Method::GET, "/collections/kb", None).await;
    let (_, snapshot) = server.snapshot("kb").await;
    server.ok(Method::DELETE, "/collections/kb", None).await;

    let path = "/collections/kb/snapshots/upload?priority=snapshot";
    assert_eq!(
        server.upload(path, "kb.snapshot", &snapshot).await.status(),
        200
    );
    assert_eq!(server.all_points("kb").await, before);
    assert_eq!(before.len(), 248);
    assert_eq!(server.ok(Method::GET, "/collections/kb", None).await, info);
    assert_eq!(
        info["payload_schema"]["lang"],
        json!({"data_type": "keyword", "points": 248})
    );
    let aliases = server.ok(Method::GET, "/aliases", None).await;
    assert_eq!(aliases["aliases"], json!([]));
}

#[tokio::test]
async fn unchanged_segments_are_byte_identical() {
    let server = seeded(1000, 100).await;
    let (_, first) = server.snapshot("kb").await;
    write(&server, 5..6).await;
    let (_, second) = server.snapshot("kb").await;
    let (first, second) = (segments(&first), segments(&second));
    assert!(first.len() >= 10, "{} segments", first.len());
    let changed: Vec<_> = first
        .keys()
        .filter(|path| first[*path] != second[*path])
        .collect();
    assert_eq!(changed.len(), 1, "{changed:?}");

    // Also after a restart, and in a copy made by restoring.
    let dir = stop(server).await;
    let server = start_in(dir, 100).await;
    let (_, third) = server.snapshot("kb").await;
    assert_eq!(segments(&third), second);
    let path = "/collections/copy/snapshots/upload";
    assert_eq!(
        server.upload(path, "kb.snapshot", &third).await.status(),
        200
    );
    let (_, of_copy) = server.snapshot("copy").await;
    assert_eq!(segments(&of_copy), second);
}

#[tokio::test]
async fn acknowledged_points_survive_a_torn_log() {
    let server = seeded(100, 1000).await;
    let before = server.all_points("kb").await;
    // Dropped, not shut down; then a record that was cut off by a crash.
    let Server { handle, dir, .. } = server;
    drop(handle);
    let log = dir.path().join("storage/collections/kb/log.jsonl");
    let mut torn = std::fs::read(&log).expect("log");
    torn.extend_from_slice(b"{\"op\":99,\"at\":1,\"chan");
    std::fs::write(&log, torn).expect("log");
    let server = start_in(dir, 1000).await;
    assert_eq!(server.all_points("kb").await, before);
    write(&server, 100..101).await;
    assert_eq!(server.count("kb").await, 101);
}

#[tokio::test]
async fn snapshot_under_writes_holds_what_was_acknowledged_before_it() {
    let server = seeded(200, 50).await;
    server.handle.faults.apply(FaultPlan {
        snapshot_delay_ms: Some(300),
        ..FaultPlan::default()
    });
    let snapshot = server.snapshot("kb");
    let writer = async {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        for id in 200..220 {
            write(&server, id..id + 1).await;
        }
    };
    let ((_, snapshot), ()) = tokio::join!(snapshot, writer);
    assert_eq!(server.count("kb").await, 220);
    let path = "/collections/copy/snapshots/upload";
    assert_eq!(
        server.upload(path, "kb.snapshot", &snapshot).await.status(),
        200
    );
    // The writes came after the freeze though before the file was there.
    assert_eq!(server.count("copy").await, 200);
}

#[tokio::test]
async fn recovers_from_another_server_and_from_its_own_folder() {
    let (source, target) = (seeded(50, 1000).await, start().await);
    let (made, _) = source.snapshot("kb").await;
    let name = made["name"].as_str().expect("name");
    let location = format!("{}/collections/kb/snapshots/{name}", source.handle.http_url);
    let recover = "/collections/kb/snapshots/recover?wait=true";
    let body = json!({"location": location, "checksum": made["checksum"]});
    let (status, answer) = target.any(Method::PUT, recover, Some(body)).await;
    assert_eq!(status, 400, "without a key: {answer}");
    let body = json!({"location": location, "api_key": KEY, "checksum": "0".repeat(64)});
    let (status, answer) = target.any(Method::PUT, recover, Some(body)).await;
    assert_eq!(status, 400, "with a wrong checksum: {answer}");
    let body = json!({"location": location, "api_key": KEY, "checksum": made["checksum"]});
    target.ok(Method::PUT, recover, Some(body)).await;
    assert_eq!(target.all_points("kb").await, source.all_points("kb").await);
    let left = target
        .ok(Method::GET, "/collections/kb/snapshots", None)
        .await;
    assert_eq!(left, json!([]), "a streamed recovery leaves no file");

    let file = source.dir.path().join("snapshots/kb").join(name);
    let body = json!({"location": format!("file://{}", file.display())});
    source
        .ok(
            Method::PUT,
            "/collections/copy/snapshots/recover",
            Some(body),
        )
        .await;
    assert_eq!(source.count("copy").await, 50);
}

#[tokio::test]
async fn fails_on_purpose_and_leaves_nothing_behind() {
    let server = seeded(50, 1000).await;
    let list = "/collections/kb/snapshots";
    let plan = json!({"fail_snapshots": 1, "truncate_downloads": 1, "fail_uploads": 1});
    server.ok(Method::POST, "/standin/faults", Some(plan)).await;
    assert_eq!(server.any(Method::POST, list, None).await.0, 500);
    assert_eq!(server.ok(Method::GET, list, None).await, json!([]));

    let made = server.ok(Method::POST, list, None).await;
    let path = format!("{list}/{}", made["name"].as_str().expect("name"));
    let broken = server
        .request(Method::GET, &path)
        .send()
        .await
        .expect("headers");
    assert_eq!(broken.content_length(), made["size"].as_u64());
    assert!(
        broken.bytes().await.is_err(),
        "the download was to break off"
    );
    let whole = server
        .request(Method::GET, &path)
        .send()
        .await
        .expect("answer");
    let whole = whole.bytes().await.expect("body");

    let upload = "/collections/copy/snapshots/upload";
    assert_eq!(
        server.upload(upload, "kb.snapshot", &whole).await.status(),
        500
    );
    let (status, _) = server.any(Method::GET, "/collections/copy", None).await;
    assert_eq!(status, 404);
    assert_eq!(
        server.upload(upload, "kb.snapshot", &whole).await.status(),
        200
    );
}

#[tokio::test]
async fn download_resumes_and_compresses_only_when_asked() {
    let server = seeded(50, 1000).await;
    let (made, whole) = server.snapshot("kb").await;
    let path = format!(
        "/collections/kb/snapshots/{}",
        made["name"].as_str().expect("name")
    );
    let head = server
        .request(Method::GET, &path)
        .header("range", "bytes=0-9999");
    let head = head.send().await.expect("answer");
    let etag = head.headers()["etag"].clone();
    let mut joined = head.bytes().await.expect("body").to_vec();
    let tail = server
        .request(Method::GET, &path)
        .header("range", "bytes=10000-");
    let tail = tail.header("if-range", etag).send().await.expect("answer");
    assert_eq!(tail.status(), 206);
    joined.extend_from_slice(&tail.bytes().await.expect("body"));
    assert!(joined == whole, "the parts make the whole");
    let stale = server
        .request(Method::GET, &path)
        .header("range", "bytes=10000-");
    let stale = stale
        .header("if-range", "\"other\"")
        .send()
        .await
        .expect("answer");
    assert_eq!(stale.status(), 200);

    let packed = server
        .request(Method::GET, &path)
        .header("accept-encoding", "gzip, br");
    let packed = packed.send().await.expect("answer");
    assert_eq!(packed.headers()["content-encoding"], "gzip");
    assert!(!packed.headers().contains_key("content-length"));
    assert!(packed.bytes().await.expect("body").len() < whole.len() / 2);
    let plain = server
        .request(Method::GET, &path)
        .header("accept-encoding", "identity");
    let plain = plain
        .send()
        .await
        .expect("answer")
        .bytes()
        .await
        .expect("body");
    assert!(plain == whole);
}

async fn stop(server: Server) -> tempfile::TempDir {
    let Server { handle, dir, .. } = server;
    handle.shutdown().await;
    dir
}

/// Paths and kinds of all members, inner tars opened, uuids left out.
fn members(archive: &[u8]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in tar::Archive::new(archive).entries().expect("tar") {
        let mut entry = entry.expect("member");
        let kind = entry.header().entry_type();
        let path = entry.path().expect("path").to_string_lossy().into_owned();
        if let Some((shard, _)) = path.split_once("/segments/") {
            let mut inner = Vec::new();
            entry.read_to_end(&mut inner).expect("inner tar");
            let inner = members(&inner).into_iter();
            found.extend(inner.map(|member| format!("{shard}/segments/*.tar/{member}")));
        } else {
            let sparse = if kind.is_gnu_sparse() {
                entry.size()
            } else {
                0
            };
            found.insert(format!("{path} sparse={sparse}"));
        }
    }
    found
}

/// The inner tars by path.
fn segments(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in tar::Archive::new(archive).entries().expect("tar") {
        let mut entry = entry.expect("member");
        let path = entry.path().expect("path").to_string_lossy().into_owned();
        if path.contains("/segments/") {
            let mut data = Vec::new();
            entry.read_to_end(&mut data).expect("inner tar");
            found.insert(path, data);
        }
    }
    found
}
