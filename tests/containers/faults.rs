//! What goes wrong is said in a sentence, fails, and leaves nothing lost, stopped or behind.

use crate::project::{Project, wait_for};

#[test]
fn mistakes_and_outages_are_sentences_and_leave_nothing_behind() {
    let project = Project::new("faults", "bind", "postgres");
    project.up();
    project.harness(&["seed", "--rows", "5000"]).good();
    project.sidecar_up();
    project.backup();
    let running = project.running();

    let wrong = |env: &str, parts: &[&str]| {
        project
            .lifeboat_with(&[env], &["backup"])
            .failed_with(1, parts);
    };
    wrong("POSTGRES_PASSWORD=wrong", &["postgres", "password"]);
    wrong("QDRANT_API_KEY=wrong", &["qdrant", "key"]);
    wrong(
        "POSTGRES_DATA=/data/nowhere",
        &["postgres", "/data/nowhere"],
    );
    wrong("DOCKER_HOST=tcp://127.0.0.1:9", &["127.0.0.1:9"]);
    project
        .lifeboat_with(&["BACKUP_JITTER=soon"], &["backup"])
        .failed_with(2, &["BACKUP_JITTER", "soon", "BACKUP_JITTER=10m"]);
    project
        .lifeboat(&["restore", "20990101", "--yes"])
        .failed_with(3, &["20990101", "list"]);

    // A service that is down fails the backup; nothing is committed.
    project.compose(&["stop", "qdrant"]).good();
    let down = project.lifeboat(&["backup"]);
    down.failed_with(1, &["qdrant"]);
    project
        .lifeboat(&["status"])
        .failed_with(1, &["the last backup failed"]);
    project.compose(&["start", "qdrant"]).good();
    wait_for("a backup to work again", || {
        project.lifeboat(&["backup"]).code == Some(0)
    });
    project.lifeboat(&["status"]).good();

    assert_eq!(project.running(), running);
    assert_eq!(listed(&project), 2);
    nothing_is_left_in_the_services(&project);

    // A damaged pack is found, named, and stops a restore before anything is touched.
    let pack = largest_pack(&project);
    let good = std::fs::read(&pack).unwrap();
    let mut damaged = good.clone();
    damaged[good.len() / 2] ^= 1;
    std::fs::write(&pack, &damaged).unwrap();
    project
        .lifeboat(&["verify", "--full"])
        .failed_with(3, &["cannot be restored whole"]);
    let refused = project.lifeboat(&["restore", "latest", "--yes"]);
    assert_ne!(refused.code, Some(0), "{refused:?}");
    assert_eq!(project.running(), running);
    project.harness(&["compare"]).good();
    std::fs::write(&pack, &good).unwrap();
    project.lifeboat(&["verify", "--full"]).good();
}

#[test]
fn a_sidecar_killed_in_a_backup_or_a_restore_cleans_up_at_its_next_start() {
    let project = Project::new("killed", "bind", "postgres");
    project.up();
    project.harness(&["seed", "--rows", "100000"]).good();
    project.sidecar_up();
    project.backup();
    project.harness(&["snapshot-state"]).good();
    let running = project.running();

    for attempt in 0..3u32 {
        let mut backup = project.background(&["backup"]);
        park(200 + 300 * u64::from(attempt));
        project.kill_sidecar();
        drop(backup.wait());
        project.sidecar_up();
        wait_for("the next start to clean up", || {
            project.lifeboat(&["status"]).code.is_some()
        });
    }
    let listed_before = listed(&project);
    project.lifeboat(&["backup"]).good();
    assert_eq!(listed(&project), listed_before + 1);
    nothing_is_left_in_the_services(&project);

    for attempt in 0..4u32 {
        let mut restore = project.background(&["restore", "latest", "--yes"]);
        park(1500 + 2500 * u64::from(attempt));
        project.kill_sidecar();
        drop(restore.wait());
        project.sidecar_up();
        wait_for("every service to run again", || {
            project.running() == running
        });
    }
    project.lifeboat(&["restore", "latest", "--yes"]).good();
    project.harness(&["compare"]).good();
    nothing_is_left_in_the_services(&project);
}

fn park(millis: u64) {
    std::thread::park_timeout(std::time::Duration::from_millis(millis));
}

fn listed(project: &Project) -> usize {
    let out = project.lifeboat(&["list", "--json"]).good();
    serde_json::from_str::<serde_json::Value>(&out)
        .unwrap()
        .as_array()
        .unwrap()
        .len()
}

fn nothing_is_left_in_the_services(project: &Project) {
    assert_eq!(
        project.sql("SELECT count(*) FROM pg_replication_slots"),
        "0"
    );
    assert_eq!(project.qdrant_snapshots(), 0);
    for data in ["postgres", "n8n", "ollama"] {
        let left = std::fs::read_dir(project.path().join("data").join(data)).unwrap();
        for entry in left {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(!name.starts_with(".lifeboat-"), "{data}/{name} is left");
        }
    }
}

fn largest_pack(project: &Project) -> std::path::PathBuf {
    let mut open = vec![project.repository().join("packs")];
    let mut packs = Vec::new();
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                packs.push((path.metadata().unwrap().len(), path));
            }
        }
    }
    packs.into_iter().max().unwrap().1
}
