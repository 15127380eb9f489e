//! What an import leaves alone: the cache of live files, and retention; and how it goes.

use std::time::Duration;

use crate::place::files_below;
use crate::world::{World, archives, noise};

fn read_of(manifest: &serde_json::Value, name: &str) -> u64 {
    let archives = manifest["archives"].as_array().unwrap();
    let found = archives.iter().find(|a| a["name"] == name).unwrap();
    found["read_bytes"].as_u64().unwrap()
}

#[test]
fn the_cache_of_live_files_outlasts_an_import_under_the_same_names() {
    let world = World::new();
    world.file("live/other/big", noise(2_000_000));
    // Younger files are read again, because they may change once more without their times telling.
    std::thread::sleep(Duration::from_secs(3));
    world.json(&["backup"]);
    world.ollama("stack/ollama");
    world.file("stack/big", vec![7; 3_000_000]);
    let imported = world.import(&[&world.path("stack")]);
    assert_eq!(archives(&imported), ["ollama", "other"]);
    let backup = world.json(&["backup"]);
    assert_eq!(read_of(&backup["manifest"], "other"), 0);
    // And the next import knows the one before.
    std::thread::sleep(Duration::from_secs(3));
    world.import(&[&world.path("stack")]);
    let again = world.import(&[&world.path("stack")]);
    assert_eq!(read_of(&again, "other"), 0);
    assert!(again["stored_bytes"].as_u64().unwrap() < 10_000, "{again}");
}

#[test]
fn an_import_that_fails_changes_nothing() {
    let world = World::new();
    world.file("live/notes/a", "live");
    world.json(&["backup"]);
    let before = files_below(&world.path("repo/backups"));
    world.file("stack/n8n/config", r#"{"encryptionKey":"x"}"#);
    world.file(
        "stack/n8n/database.sqlite",
        "workflow_entity, but no database",
    );
    let stack = world.path("stack");
    let output = world.run(&["import", stack.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(files_below(&world.path("repo/backups")), before);
    assert!(files_below(&world.path("repo/leases")).is_empty());
    // It is no backup of the schedule, so the sidecar's health does not suffer.
    world.good(&["status"]);
}

#[test]
fn what_a_killed_import_unpacked_is_gone_with_the_next_run() {
    let world = World::new();
    world.file("live/notes/a", "live");
    world.file("state/scratch/import/0/huge", "left behind");
    world.good(&["backup"]);
    world.assert_nothing_is_left_in_staging();
}

#[test]
fn imported_backups_are_not_counted_and_go_by_hand_only() {
    let mut world = World::new();
    for name in [
        "BACKUP_KEEP_DAYS",
        "BACKUP_KEEP_WEEKS",
        "BACKUP_KEEP_MONTHS",
    ] {
        world.set(name, "0");
    }
    world.set("BACKUP_KEEP_LAST", "2");
    world.file("live/notes/a", "live");
    world.ollama("stack/ollama");
    world.age("stack");
    let old = world.import(&[&world.path("stack")])["id"].clone();
    let stack = world.path("stack");
    let newer = world.json(&["import", stack.to_str().unwrap(), "--taken", "2025-06-01"]);
    let newer = &newer["manifest"]["id"];
    for _ in 0..4 {
        world.good(&["backup"]);
    }
    let ids = |world: &World| -> Vec<serde_json::Value> {
        let list = world.json(&["list"]);
        list.as_array()
            .unwrap()
            .iter()
            .map(|row| row["id"].clone())
            .collect()
    };
    let kept = ids(&world);
    assert_eq!(kept.len(), 4, "{kept:?}");
    assert_eq!(&kept[..2], [old.clone(), newer.clone()]);

    let (old, latest) = (old.as_str().unwrap(), kept[3].as_str().unwrap());
    let output = world.run(&["forget", old]);
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains(old) && said.contains("imported"), "{said}");
    assert_eq!(ids(&world), kept);
    let said = world.good(&["forget", old, old, "--yes"]);
    assert!(!said.contains("NEWEST"), "{said}");
    assert_eq!(ids(&world), kept[1..]);
    let said = world.good(&["forget", "latest", "--yes"]);
    assert!(
        said.contains(&format!("{latest} is the NEWEST good backup")),
        "{said}"
    );
    assert_eq!(ids(&world), kept[1..3]);
    let output = world.run(&["forget", old, "--yes"]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    // The space comes back.
    let stored = || {
        let packs = files_below(&world.path("repo/packs"));
        packs.values().map(Vec::len).sum::<usize>()
    };
    assert!(stored() > 3_000_000);
    world.good(&["forget", newer.as_str().unwrap(), "--yes"]);
    world.good(&["prune", "--now"]);
    assert!(stored() < 100_000, "{} bytes", stored());
    world.good(&["verify", "--full"]);
}
