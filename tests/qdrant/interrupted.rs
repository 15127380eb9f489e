//! Backups and restores that fail or are killed at any step leave the server as it was.

use super::*;

/// A server whose collections and aliases are no longer what was backed up.
async fn changed_since_backup(place: &Place) -> (Server, Manifest, Value) {
    let server = seeded(place, "server").await;
    let manifest = back_up(place, &server).await.unwrap();
    server.upsert("docs", 500..520, "since the backup").await;
    server.drop_collection("my images %").await;
    server.alias("pics", "docs").await;
    server.alias("extra", "docs").await;
    let before = server.state().await;
    (server, manifest, before)
}

/// What the next start does.
async fn undo(place: &Place, server: &Server) {
    let stack = Stack {
        services: vec![qdrant_service()],
        ..Stack::default()
    };
    let config = server.config(place, KEY);
    let undone = undo_all(&config, &place.journal, None, &stack).await;
    assert_eq!(undone.unwrap().open, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_snapshot_fails_the_backup_and_leaves_nothing() {
    let place = Place::new();
    let server = seeded(&place, "server").await;
    server.handle.faults.apply(FaultPlan {
        fail_snapshots: Some(1),
        ..FaultPlan::default()
    });
    let error = back_up(&place, &server).await.unwrap_err();
    assert!(
        error.message.contains("snapshot creation failed"),
        "{error}"
    );
    assert_eq!(server.snapshot_files(), [""; 0]);
    assert!(journal_is_empty(&place));
    back_up(&place, &server).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_breaks_off_fails_the_backup_and_leaves_nothing() {
    let place = Place::new();
    let server = seeded(&place, "server").await;
    server.handle.faults.apply(FaultPlan {
        truncate_downloads: Some(100),
        ..FaultPlan::default()
    });
    let error = back_up(&place, &server).await.unwrap_err();
    assert!(error.message.contains("download"), "{error}");
    assert_eq!(server.snapshot_files(), [""; 0]);
    assert!(journal_is_empty(&place));
    assert_eq!(place.repository().backups().unwrap(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_at_any_step_rolls_back_to_the_old_data() {
    let place = Place::new();
    let (server, manifest, before) = changed_since_backup(&place).await;
    let fault = |passing| FaultPlan {
        pass_uploads: Some(passing),
        fail_uploads: Some(1),
        ..FaultPlan::default()
    };
    let no_way_back = FaultPlan {
        fail_snapshots: Some(1),
        ..FaultPlan::default()
    };
    // The upload beside docs, the one under a free name, the recovery in the place of docs, its way back.
    for plan in [fault(0), fault(1), fault(2), no_way_back] {
        server.handle.faults.apply(plan);
        let (mut adapter, _, outcome) = restore(&place, &server, &manifest).await;
        let failed = outcome.unwrap_err();
        assert!(failed.message.contains("on purpose"), "{failed}");
        adapter.rollback().await.unwrap();
        assert_eq!(server.state().await, before);
        assert_eq!(server.snapshot_files(), [""; 0]);
        assert!(journal_is_empty(&place));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_killed_between_deletion_and_recovery_is_put_back_at_the_next_start() {
    let place = Place::new();
    let (server, manifest, before) = changed_since_backup(&place).await;
    server.handle.faults.apply(FaultPlan {
        pass_uploads: Some(2),
        fail_uploads: Some(1),
        ..FaultPlan::default()
    });
    let (adapter, _, outcome) = restore(&place, &server, &manifest).await;
    outcome.unwrap_err();
    drop(adapter);
    assert!(!server.collections().await.contains(&"docs".to_owned()));
    undo(&place, &server).await;
    assert_eq!(server.state().await, before);
    assert_eq!(server.snapshot_files(), [""; 0]);
    assert!(journal_is_empty(&place));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_complete_restore_can_still_be_rolled_back() {
    let place = Place::new();
    let (server, manifest, before) = changed_since_backup(&place).await;
    let (mut adapter, _, outcome) = restore(&place, &server, &manifest).await;
    outcome.unwrap();
    assert_ne!(server.state().await, before);
    adapter.rollback().await.unwrap();
    assert_eq!(server.state().await, before);
    assert_eq!(server.snapshot_files(), [""; 0]);
    assert!(journal_is_empty(&place));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_backup_is_cleaned_up_by_what_the_journal_says() {
    let place = Place::new();
    let server = seeded(&place, "server").await;
    let by_hand = server
        .call(Method::POST, &at("docs", "/snapshots"), None)
        .await;
    let config = server.config(&place, KEY);
    let mut qdrant = Qdrant::new(&config, &qdrant_service()).unwrap();
    qdrant.hold(&place.run()).await.unwrap();
    // Names carry the second: ours must not fall into that of the one by hand.
    let second = by_hand["creation_time"].clone();
    wait_for("the next second", async || {
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S");
        now.to_string() != second
    })
    .await;
    qdrant.freeze().await.unwrap();
    drop(qdrant);
    assert_eq!(server.snapshot_files().len(), 3);

    for (entry, obligation) in place.journal.pending().unwrap() {
        let Obligation::QdrantSnapshot {
            collection, before, ..
        } = obligation
        else {
            panic!("{obligation:?}");
        };
        undo_snapshot(&config, &qdrant_service(), &collection, &before)
            .await
            .unwrap();
        place.journal.done(&entry).unwrap();
    }
    let by_hand = format!("docs/{}", by_hand["name"].as_str().unwrap());
    assert_eq!(server.snapshot_files(), [by_hand]);
    assert!(journal_is_empty(&place));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_restore_is_put_back_at_the_next_start_and_a_committed_one_stays() {
    let place = Place::new();
    let server = seeded(&place, "server").await;
    let backed_up = server.state().await;
    let manifest = back_up(&place, &server).await.unwrap();
    server.upsert("docs", 500..520, "since the backup").await;
    server.drop_collection("my images %").await;
    let before = server.state().await;
    for is_committed in [false, true] {
        let (adapter, run, outcome) = restore(&place, &server, &manifest).await;
        outcome.unwrap();
        drop(adapter);
        assert!(!journal_is_empty(&place));
        if is_committed {
            lifeboat::restore::swap::commit(&run).unwrap();
        }
        undo(&place, &server).await;
        let expected = if is_committed { &backed_up } else { &before };
        assert_eq!(&server.state().await, expected);
        assert_eq!(server.snapshot_files(), [""; 0]);
        assert!(journal_is_empty(&place));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_temporary_collections_are_deleted_by_name() {
    let place = Place::new();
    let server = seeded(&place, "server").await;
    let config = server.config(&place, KEY);
    let refused = undo_collection(&config, &qdrant_service(), "docs").await;
    assert_eq!(refused.unwrap_err().kind, ErrorKind::Setup);
    server.create("docs.lifeboat-run-0", 2).await;
    let path = at("docs.lifeboat-run-0", "/snapshots");
    server.call(Method::POST, &path, None).await;
    for _ in 0..2 {
        undo_collection(&config, &qdrant_service(), "docs.lifeboat-run-0")
            .await
            .unwrap();
    }
    assert_eq!(server.collections().await, ["docs", "my images %"]);
    assert_eq!(server.snapshot_files(), [""; 0]);
}
