//! A restore from a real repository into directories, with containers that only note what is asked of them.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "restore/by_hand.rs"]
mod by_hand;
#[path = "restore/world.rs"]
mod world;

use std::fs;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use lifeboat::repository::manifest::ArchiveRecord;
use lifeboat::restore::Containers;
use lifeboat::restore::apply::{
    Event, Options, Phase, Progress, RestoreError, RestoreReport, into_directory, preflight,
};
use lifeboat::restore::plan::{Request, build_into};
use lifeboat::stack::ContainerRef;
use lifeboat::stack::journal::Obligation;
use world::{Place, World, breaks_at, restored, tree};

#[tokio::test]
async fn a_stack_comes_back_in_order_and_nothing_is_left_behind() {
    let place = Place::new(World::default());
    let site = place.site(Options::default());
    let report = place.restore(&place.plan(&[]), &site).await.unwrap();
    assert_eq!(place.data(), restored(&place));
    assert_eq!(
        place.world.log(),
        [
            "preflight postgres",
            "preflight n8n",
            "preflight qdrant",
            "stop n8n-worker",
            "stop n8n",
            "stop postgres",
            "prepare postgres",
            "prepare n8n",
            "start postgres",
            "settle postgres",
            "wait postgres",
            "apply qdrant",
            "applied qdrant",
            "settle qdrant",
            "start n8n",
            "settle n8n",
            "wait n8n",
            "start n8n-worker",
            "wait n8n-worker",
        ]
    );
    place.assert_everything_runs();
    place.assert_nothing_to_undo();
    assert_eq!(site.progress.done_bytes(), site.progress.total_bytes());
    let phases: Vec<_> = report.phases.iter().map(|p| p.phase).collect();
    assert_eq!(
        phases,
        [
            Phase::Preflight,
            Phase::Stop,
            Phase::Stage,
            Phase::Prepare,
            Phase::Swap,
            Phase::Start,
            Phase::Online,
            Phase::Finish
        ]
    );
    let downtime = report.downtime_seconds.unwrap();
    assert!(downtime > 0.0 && downtime <= report.total_seconds);
    let again: RestoreReport =
        serde_json::from_str(&serde_json::to_string(&report).unwrap()).unwrap();
    assert_eq!(again.services.len(), 3);
    assert!(report.warnings.is_empty(), "{:?}", report.warnings);
}

#[tokio::test]
async fn staging_first_stops_services_only_for_the_swap() {
    let place = Place::new(World::default());
    let mut plan = place.plan(&[]);
    plan.stage_first = true;
    let order = Arc::new(Mutex::new(Vec::new()));
    let phases = Arc::clone(&order);
    let mut site = place.site(Options::default());
    site.progress = Progress::new(move |event| {
        if let Event::Phase(phase) = event {
            phases.lock().unwrap().push(*phase);
        }
    });
    place.restore(&plan, &site).await.unwrap();
    assert_eq!(place.data(), restored(&place));
    let order = order.lock().unwrap();
    assert_eq!(
        order[..4],
        [Phase::Preflight, Phase::Stage, Phase::Stop, Phase::Prepare]
    );
}

#[tokio::test]
async fn one_service_alone_leaves_the_others_as_they_are() {
    let place = Place::new(World::default());
    let before = place.data();
    let site = place.site(Options::default());
    place
        .restore(&place.plan(&["qdrant"]), &site)
        .await
        .unwrap();
    let after = place.data();
    for (path, content) in restored(&place) {
        let expected = if path.starts_with("qdrant/") {
            &content
        } else if let Some(unchanged) = before.get(&path) {
            unchanged
        } else {
            continue;
        };
        assert_eq!(&after[&path], expected, "{path}");
    }
    assert!(
        !place
            .world
            .log()
            .iter()
            .any(|call| call.starts_with("stop"))
    );
}

#[tokio::test]
async fn a_failure_at_any_call_puts_everything_back() {
    for fuse in 1.. {
        let place = Place::new(breaks_at(fuse));
        let before = place.data();
        let Err(error) = place.restore_all().await else {
            assert_eq!(fuse, 20, "every call was broken once");
            return;
        };
        assert_eq!(place.data(), before, "{fuse}: {error}");
        place.assert_everything_runs();
        place.assert_nothing_to_undo();
        let text = error.to_string();
        assert!(text.contains(" broke"), "{text}");
        match error {
            RestoreError::Preflight(_) => {
                assert!(fuse <= 3 && text.contains("nothing was changed"), "{text}");
            }
            RestoreError::RolledBack { .. } => assert!(text.contains("put back"), "{text}"),
            other => panic!("{fuse}: {other}"),
        }
    }
}

#[tokio::test]
async fn a_kill_at_any_call_is_undone_by_the_next_start() {
    // Qdrant's part is journalled by its adapter, which is not here.
    for fuse in 1.. {
        let place = Place::new(World {
            hangs: true,
            ..breaks_at(fuse)
        });
        let before = place.data();
        let plan = place.plan(&["postgres", "n8n"]);
        let site = place.site(Options::default());
        tokio::select! {
            done = place.restore(&plan, &site) => {
                done.unwrap();
                assert!(fuse > 10, "{fuse}");
                return;
            }
            () = place.world.broke.notified() => {}
        }
        place.undo();
        assert_eq!(place.data(), before, "{fuse}");
        place.assert_everything_runs();
        assert_eq!(place.journal().pending().unwrap(), []);
    }
}

/// Containers that do not stop any more once PostgreSQL was asked to settle.
struct Stubborn(Arc<World>);
#[async_trait]
impl Containers for Stubborn {
    async fn stop(&self, container: &ContainerRef, grace: Duration) -> anyhow::Result<()> {
        if self.0.log().iter().any(|call| call == "settle postgres") {
            anyhow::bail!("cannot stop {}", container.name);
        }
        self.0.stop(container, grace).await
    }
    async fn start(&self, container: &ContainerRef) -> anyhow::Result<()> {
        self.0.start(container).await
    }
    async fn wait_healthy(&self, c: &ContainerRef, limit: Duration) -> anyhow::Result<()> {
        self.0.wait_healthy(c, limit).await
    }
}

#[tokio::test]
async fn a_service_that_cannot_be_stopped_again_keeps_its_data() {
    let place = Place::new(breaks_at(10));
    // Starting Postgres fails, and so does stopping it: the second break comes two calls later.
    let containers = Stubborn(Arc::clone(&place.world));
    let mut site = place.site(Options::default());
    site.containers = Some(&containers);
    let error = place.restore(&place.plan(&[]), &site).await.unwrap_err();
    assert!(
        matches!(error, RestoreError::NotRolledBack { .. }),
        "{error}"
    );
    assert!(
        error.to_string().contains("cannot stop postgres"),
        "{error}"
    );
    // Its data was not taken away under it, and the journal still knows.
    assert!(place.root("postgres").join("prepared").exists());
    assert!(place.root("n8n").join("made since").exists());
    let pending = place.journal().pending().unwrap();
    assert!(
        pending
            .iter()
            .any(|(_, o)| matches!(o, Obligation::Swap { .. }))
    );
    place.undo();
    assert!(place.root("postgres").join("made since").exists());
}

#[tokio::test]
async fn an_interrupted_restore_is_rolled_back() {
    let place = Place::new(World::default());
    let before = place.data();
    let cancel = place.cancel.clone();
    let mut site = place.site(Options::default());
    site.progress = Progress::new(move |event| {
        if matches!(event, Event::Step { service, .. } if service == "n8n") {
            cancel.cancel();
        }
    });
    let error = place.restore(&place.plan(&[]), &site).await.unwrap_err();
    assert!(error.to_string().contains("interrupted"), "{error}");
    assert_eq!(place.data(), before);
    place.assert_everything_runs();
    place.assert_nothing_to_undo();
}

#[tokio::test]
async fn a_damaged_pack_changes_nothing() {
    let place = Place::new(World::default());
    let before = place.data();
    for (path, mut bytes) in tree(&place.dir.path().join("repo")) {
        if path.starts_with("packs/") && !bytes.is_empty() {
            let middle = bytes.len() / 3;
            bytes[middle] ^= 0x40;
            fs::write(place.dir.path().join("repo").join(path), bytes).unwrap();
        }
    }
    let error = place.restore_all().await.unwrap_err();
    assert_eq!(place.data(), before, "{error}");
    place.assert_everything_runs();
    place.assert_nothing_to_undo();
}

#[tokio::test]
async fn old_data_is_kept_when_asked_for() {
    let place = Place::new(World::default());
    let options = Options {
        keep_old: true,
        ..Options::default()
    };
    let report = place
        .restore(&place.plan(&["postgres"]), &place.site(options))
        .await
        .unwrap();
    assert_eq!(report.kept.len(), 1);
    assert_eq!(
        fs::read_to_string(report.kept[0].join("data")).unwrap(),
        "changed since"
    );
    place.assert_nothing_to_undo();
}

#[tokio::test]
async fn a_dry_run_shows_what_would_fail_and_changes_nothing() {
    let place = Place::new(World::default());
    fs::remove_dir_all(place.root("postgres")).unwrap();
    let before = place.data();
    let repository = place.repository();
    let open = |record: &ArchiveRecord| Ok(repository.archive(&place.manifest, record)?);
    let site = place.site(Options::default());
    let checks = preflight(&place.plan(&[]), &place.factory(), &open, &site)
        .await
        .unwrap();
    let bad: Vec<_> = checks.iter().filter(|c| c.outcome.is_err()).collect();
    assert!(!bad.is_empty() && bad.iter().all(|c| format!("{c:?}").contains("postgres")));
    assert_eq!(place.data(), before);
}

#[tokio::test]
async fn into_a_directory_touches_no_service() {
    let place = Place::new(World::default());
    let before = place.data();
    let out = place.dir.path().join("out");
    let site = place.site(Options::default());
    let plan = build_into(&place.manifest, &place.stack, &Request::default(), &out).unwrap();
    let repository = place.repository();
    let open = |record: &ArchiveRecord| Ok(repository.archive(&place.manifest, record)?);
    let report = into_directory(&plan, &out, &open, &site).await.unwrap();
    assert_eq!(report.services.len(), 3);
    let unpacked = tree(&out);
    for (path, content) in restored(&place) {
        if !path.ends_with("/prepared") {
            assert_eq!(unpacked[&path], content, "{path}");
        }
    }
    assert!(!unpacked.keys().any(|path| path.contains(".lifeboat")));
    assert_eq!(place.data(), before);
    assert!(place.world.log().is_empty());
    // Again: nothing is overwritten.
    let error = into_directory(&plan, &out, &open, &site).await.unwrap_err();
    assert!(error.to_string().contains("exists already"), "{error}");
    assert_eq!(tree(&out), unpacked);
    // Interrupted: nothing is left.
    place.cancel.cancel();
    let other = place.dir.path().join("other");
    let plan = build_into(&place.manifest, &place.stack, &Request::default(), &other).unwrap();
    into_directory(&plan, &other, &open, &site)
        .await
        .unwrap_err();
    assert_eq!(tree(&other).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_fails_ends_the_others_before_anything_is_removed() {
    let place = Place::new(World::default());
    let repository = place.repository();
    let site = place.site(Options::default());
    for failing in ["postgres", "n8n", "qdrant"] {
        let out = place.dir.path().join(failing);
        let plan = build_into(&place.manifest, &place.stack, &Request::default(), &out).unwrap();
        let opened = Mutex::new(Vec::new());
        let open = |record: &ArchiveRecord| {
            opened.lock().unwrap().push(record.name.clone());
            if record.name == failing {
                anyhow::bail!("this one fails");
            }
            Ok(repository.archive(&place.manifest, record)?)
        };
        let error = into_directory(&plan, &out, &open, &site).await.unwrap_err();
        let said = format!("{error:#}");
        assert_eq!(said, format!("open archive {failing}: this one fails"));
        assert!(opened.into_inner().unwrap().contains(&failing.to_owned()));
        // What still wrote would make its directory anew, or could not.
        assert_eq!(tree(&out).len(), 1, "{failing}");
    }
    assert!(place.world.log().is_empty());
}
