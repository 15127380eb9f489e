//! Copies of real clusters: shut down, within a base backup, and of a running server.

use std::path::Path;

use lifeboat::restore::Restore;
use lifeboat::services::postgres::PostgresRestore;
use serde_json::Value;

use crate::cluster::{Cluster, config, run};
use crate::world::{World, report, warnings};

/// A cluster with rows in a table, and in one that no crash would leave.
fn cluster() -> Cluster {
    let cluster = Cluster::new();
    cluster.sql("CREATE TABLE t AS SELECT n FROM generate_series(1, 5000) n");
    cluster.sql("CREATE UNLOGGED TABLE u AS SELECT n FROM generate_series(1, 700) n");
    cluster
}

/// Imports a directory as a tar; the manifest.
fn import(world: &World, directory: &Path) -> Value {
    world.copy(directory, "stack/any name");
    let tar = world.tar("postgres.tar.gz", &["."]);
    let manifest = world.import(&[&tar]);
    assert_eq!(report(&manifest, "postgres")["version"], "15");
    manifest
}

/// Restores a backup over a stopped cluster, starts it, and has the adapter look at it.
fn restore(world: &mut World, manifest: &Value, cluster: &mut Cluster) {
    let id = manifest["id"].as_str().unwrap();
    world.set("POSTGRES_DATA", cluster.data.to_str().unwrap());
    world.set("POSTGRES_HOST", "127.0.0.1");
    world.set("POSTGRES_PORT", &cluster.port.to_string());
    let said = world.good(&["restore", id, "--yes"]);
    let is_torn = report(manifest, "postgres")["facts"]["copied"] == "running";
    assert_eq!(said.contains("may be torn"), is_torn, "{said}");
    for file in ["recovery.signal", "postmaster.pid"] {
        assert!(!cluster.data.join(file).exists(), "{file}");
    }
    cluster.start();
    let repository = world.place.repository();
    let manifest = repository.manifest(id).unwrap();
    let record = manifest.archive("postgres").unwrap();
    let config = config(&[("RESTORE_TIMEOUT", "1m")]);
    let mut adapter = PostgresRestore::new(&config, &cluster.stack()).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let settled = runtime.block_on(adapter.settle(record, &world.place.run()));
    assert!(settled.is_ok(), "{settled:?}");
}

#[test]
fn a_cold_copy_is_swapped_in_and_starts_without_recovery() {
    let mut world = World::new();
    let mut cluster = cluster();
    cluster.stop();
    let manifest = import(&world, &cluster.data);
    assert_eq!(report(&manifest, "postgres")["facts"]["copied"], "cold");
    assert_eq!(warnings(&manifest, "postgres"), "null");
    cluster.start();
    cluster.sql("DROP TABLE t; DROP TABLE u");
    cluster.stop();
    restore(&mut world, &manifest, &mut cluster);
    assert_eq!(cluster.number("SELECT count(*) FROM t"), 5000);
    assert_eq!(cluster.number("SELECT count(*) FROM u"), 700);
    assert!(!cluster.log_text().contains("not properly shut down"));
}

#[test]
fn a_cold_copy_of_a_promoted_cluster_starts_on_its_timeline() {
    let mut world = World::new();
    let mut cluster = cluster();
    cluster.stop();
    // Recovery to the end of the log, and a new timeline in the middle of a segment.
    std::fs::write(cluster.data.join("recovery.signal"), "").unwrap();
    let settings = cluster.data.join("postgresql.auto.conf");
    std::fs::write(&settings, "restore_command = 'false'\n").unwrap();
    cluster.start();
    cluster.wait_for_zero("SELECT count(*) FROM (SELECT 1 WHERE pg_is_in_recovery()) x");
    assert_eq!(
        cluster.text("SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 8, 1)"),
        "2"
    );
    cluster.stop();
    let manifest = import(&world, &cluster.data);
    assert_eq!(report(&manifest, "postgres")["facts"]["timeline"], 2);
    restore(&mut world, &manifest, &mut cluster);
    assert_eq!(cluster.number("SELECT count(*) FROM t"), 5000);
}

#[test]
fn a_base_backup_replays_from_its_label() {
    let mut world = World::new();
    let mut cluster = cluster();
    let to = world.path("base");
    let mut tool = cluster.client_tool("pg_basebackup");
    tool.args(["-c", "fast", "-X", "stream", "-D"]).arg(&to);
    run(&mut tool);
    let manifest = import(&world, &to);
    let facts = &report(&manifest, "postgres")["facts"];
    assert_eq!(facts["copied"], "base-backup");
    cluster.sql("DROP TABLE t");
    cluster.stop();
    restore(&mut world, &manifest, &mut cluster);
    assert_eq!(cluster.number("SELECT count(*) FROM t"), 5000);
    assert!(
        !cluster.data.join("backup_label").exists(),
        "it was not used"
    );
}

#[test]
fn a_copy_of_a_running_server_is_taken_with_a_warning_in_plain_words() {
    let mut world = World::new();
    let mut cluster = cluster();
    cluster.sql("CHECKPOINT");
    let manifest = import(&world, &cluster.data);
    assert_eq!(report(&manifest, "postgres")["facts"]["copied"], "running");
    let said = warnings(&manifest, "postgres");
    assert!(
        said.contains("may be torn") && said.contains("pg_amcheck"),
        "{said}"
    );
    cluster.stop();
    restore(&mut world, &manifest, &mut cluster);
    assert_eq!(cluster.number("SELECT count(*) FROM t"), 5000);
    // As after a crash: nothing else is promised for unlogged tables.
    assert_eq!(cluster.number("SELECT count(*) FROM u"), 0);
}

#[test]
fn what_cannot_be_started_is_refused() {
    let world = World::new();
    let mut cluster = cluster();
    let base = world.path("base");
    let mut tool = cluster.client_tool("pg_basebackup");
    tool.args(["-c", "fast", "-X", "none", "-D"]).arg(&base);
    run(&mut tool);
    world.refuses(
        &base,
        &["pg_wal/0000000100000000", "is missing", "pg_wal.tar"],
    );

    let tablespace = cluster.directory("space");
    cluster.sql(&format!(
        "CREATE TABLESPACE s LOCATION '{}'",
        tablespace.display()
    ));
    cluster.stop();
    world.copy(&cluster.data, "stack/pg");
    let tar = world.tar("pg.tar", &["pg"]);
    world.refuses(
        &tar,
        &["tablespace", "is a link to", tablespace.to_str().unwrap()],
    );

    let links = world.path("stack/pg/pg_tblspc");
    std::fs::remove_dir_all(&links).unwrap();
    std::fs::create_dir(&links).unwrap();
    world.file("stack/pg/PG_VERSION", "12\n");
    world.refuses(&world.path("stack/pg"), &["PostgreSQL \"12\"", "13 to 18"]);

    world.file("stack/pg/PG_VERSION", "15\n");
    let control = world.path("stack/pg/global/pg_control");
    let mut bytes = std::fs::read(&control).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&control, bytes).unwrap();
    world.refuses(
        &world.path("stack/pg"),
        &["pg_control", "checksum is wrong"],
    );
}
