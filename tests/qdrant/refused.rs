//! What cannot work is a sentence before anything is touched.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn refused_keys_are_named_with_what_to_set() {
    let place = Place::new();
    let server = seeded(&place, "server").await;
    for (key, words) in [("wrong", "Invalid API key"), (READ_KEY, "Forbidden")] {
        let config = server.config(&place, key);
        let mut qdrant = Qdrant::new(&config, &qdrant_service()).unwrap();
        let refused = place.backup(&mut qdrant).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Denied);
        assert!(refused.message.contains("QDRANT_API_KEY"), "{refused}");
        assert!(refused.message.contains(words), "{refused}");
        assert!(!refused.to_string().contains(key), "{refused}");

        let checks = qdrant.check().await;
        let bad: Vec<_> = checks.iter().filter(|c| c.outcome.is_err()).collect();
        let subjects: Vec<_> = bad.iter().map(|c| c.subject.as_str()).collect();
        let expected: &[&str] = match key {
            READ_KEY => &["qdrant: rights"],
            _ => &["qdrant: gRPC", "qdrant: rights"],
        };
        assert_eq!(subjects, expected);
    }
    assert_eq!(server.snapshot_files(), [""; 0]);
    assert!(journal_is_empty(&place));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_down_is_a_sentence() {
    let place = Place::new();
    let server = Server::start(&place, "server").await;
    let config = server.config(&place, KEY);
    server.handle.shutdown().await;
    let mut qdrant = Qdrant::new(&config, &qdrant_service()).unwrap();
    let error = place.backup(&mut qdrant).await.unwrap_err();
    assert!(error.is_transient());
    assert!(error.message.contains("QDRANT_URL"), "{error}");
    assert_eq!(qdrant.estimate().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn preflight_refuses_other_versions_and_names_that_clash() {
    let place = Place::new();
    let server = seeded(&place, "server").await;
    let manifest = back_up(&place, &server).await.unwrap();
    server.drop_collection("docs").await;
    server.create("kb", 2).await;
    let config = server.config(&place, KEY);
    let mut adapter = QdrantRestore::new(&config, &qdrant_service()).unwrap();
    let mut record = manifest.archives[0].clone();
    record.report.facts["version"] = "1.16.0".into();
    let bad: Vec<String> = adapter
        .preflight(&record)
        .await
        .into_iter()
        .filter_map(|check| check.outcome.err())
        .collect();
    assert_eq!(bad.len(), 2, "{bad:?}");
    assert!(
        bad[0].contains("1.16.0") && bad[0].contains("1.18.3"),
        "{bad:?}"
    );
    assert!(bad[1].contains("kb is an alias"), "{bad:?}");

    record.report.facts["collections"][0]["name"] = "../docs".into();
    let checks = adapter.preflight(&record).await;
    assert!(
        checks[0]
            .outcome
            .as_ref()
            .unwrap_err()
            .contains("no collection can be called")
    );
}
