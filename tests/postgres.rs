//! PostgreSQL's adapter against real servers: what is backed up under load comes back whole, what cannot be
//! backed up is refused with a sentence, and nothing is left behind in the source.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "postgres/boundary.rs"]
mod boundary;
#[path = "postgres/cluster.rs"]
mod cluster;
#[path = "postgres/damage.rs"]
mod damage;
#[path = "postgres/kills.rs"]
mod kills;
#[path = "postgres/load.rs"]
mod load;
#[path = "postgres/mount.rs"]
mod mount;
#[path = "postgres/place.rs"]
mod place;
#[path = "postgres/refusals.rs"]
mod refusals;
#[path = "postgres/role.rs"]
mod role;
#[path = "postgres/room.rs"]
mod room;
#[path = "postgres/ruins.rs"]
mod ruins;
#[path = "postgres/sessions.rs"]
mod sessions;
#[path = "postgres/target.rs"]
mod target;
#[path = "postgres/unreadable.rs"]
mod unreadable;
#[path = "postgres/verify.rs"]
mod verify;
#[path = "postgres/whole.rs"]
mod whole;

use std::path::Path;

use cluster::{Cluster, PASSWORD, config, major, own, run};
use lifeboat::repository::manifest::Manifest;
use lifeboat::restore::Restore;
use lifeboat::services::postgres::facts::Facts;
use lifeboat::services::postgres::wal::{Lsn, SegmentSize};
use lifeboat::services::postgres::{Postgres, PostgresRestore};
use lifeboat::services::{ErrorKind, Service, ServiceError};
use lifeboat::stack::{ContainerRef, SharedMount, StackService};
use load::{Load, check_page_sums, check_structure, check_sums};
use place::Place;

fn service(cluster: &Cluster) -> Postgres {
    Postgres::new(&config(&[]), &cluster.stack()).unwrap()
}

fn mounted(stack: &mut StackService, path: &Path) {
    stack.mounts.push(SharedMount {
        target: path.to_owned(),
        local: path.to_owned(),
        read_only: false,
    });
}

fn container() -> ContainerRef {
    ContainerRef {
        id: "0".repeat(64),
        name: "db".to_owned(),
        image: "postgres:test".to_owned(),
        image_digest: String::new(),
        running: true,
        stop_timeout: None,
        has_healthcheck: false,
    }
}

/// Neither a backup nor a slot nor a session is left.
fn assert_nothing_left(cluster: &Cluster) {
    cluster
        .wait_for_zero("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'lifeboat'");
    cluster.wait_for_zero("SELECT count(*) FROM pg_replication_slots");
    assert!(!cluster.data.join("backup_label").exists());
}

fn refused(result: Result<impl Sized, ServiceError>, kind: ErrorKind, words: &[&str]) {
    let Err(err) = result else {
        panic!("this should have been refused: {words:?}");
    };
    let text = err.to_string();
    assert_eq!(err.kind, kind, "{text}");
    for word in words {
        assert!(text.contains(word), "\"{word}\" is not in: {text}");
    }
    assert!(!text.contains(PASSWORD), "{text}");
}

#[test]
fn a_backup_under_load_restores_whole() {
    let source = Cluster::with(&["--data-checksums"], &[]);
    source.sql("ALTER SYSTEM SET work_mem = '5MB'; CREATE DATABASE second; CREATE DATABASE third");
    source.sql("CREATE UNLOGGED TABLE unlogged AS SELECT generate_series(1, 1000) AS id");
    let load = Load::start(&source, 3);
    load.wait_for(200);
    let place = Place::new();

    let mut acknowledged = 0;
    let manifest = place
        .backup(&mut service(&source), || {
            load.wait_for(load.acknowledged() + 200);
            acknowledged = load.acknowledged();
        })
        .unwrap();
    load.stop();
    assert_nothing_left(&source);
    check_sums(&source);

    let record = manifest.archive("db").unwrap();
    let facts = Facts::of(&record.report).unwrap();
    assert_eq!(facts.major, major());
    assert_eq!(
        record.point.coordinate.as_deref(),
        Some(facts.stop_lsn.as_str())
    );
    // The one that comes and goes may have been there.
    assert!((3..=4).contains(&record.report.counts["databases"]));
    for name in ["postgres", "second", "third", "template1"] {
        assert!(facts.databases.iter().any(|d| d.name == name), "{facts:?}");
    }
    assert!(
        record.report.counts["tables"] >= 6,
        "{:?}",
        record.report.counts
    );
    assert_eq!(record.report.warnings, [""; 0]);

    verify::accepts(&place);
    // Into an empty place, as on another machine.
    let mut target = Cluster::empty();
    let root_before = std::fs::read_dir(&target.data).unwrap().count();
    assert_eq!(root_before, 0);
    place.restore(&mut target);
    check_sums(&target);
    check_structure(&target);
    let newest = target.number("SELECT coalesce(max(id), 0) FROM ledger");
    assert!(newest >= acknowledged, "{newest} < {acknowledged}");
    assert_eq!(target.number("SELECT count(*) FROM ledger"), newest);
    assert_eq!(target.number("SELECT count(*) FROM unlogged"), 0);
    assert_eq!(
        target.number("SELECT count(*) FROM pg_database WHERE datname IN ('second', 'third')"),
        2
    );
    // A timeline of its own, and nothing left that only recovery needed.
    assert!(
        target
            .text("SELECT pg_walfile_name(pg_current_wal_lsn())")
            .starts_with("00000002")
    );
    for file in [
        "recovery.signal",
        "backup_label",
        "tablespace_map",
        "backup_manifest",
    ] {
        assert!(!target.data.join(file).exists(), "{file}");
    }
    assert_eq!(
        std::fs::read(target.data.join("postgresql.auto.conf")).unwrap(),
        std::fs::read(source.data.join("postgresql.auto.conf")).unwrap()
    );
    assert_eq!(target.text("SHOW work_mem"), "5MB");
    let left =
        "SELECT count(*) FROM pg_file_settings WHERE name ~ '^recovery_|^restore_|^hot_standby'";
    assert_eq!(target.number(left), 0);

    // And it goes on from there, to the next backup and restore.
    target.sql("INSERT INTO ledger VALUES (-1, 'after')");
    let manifest = place.backup(&mut service(&target), || ()).unwrap();
    let facts = Facts::of(&manifest.archive("db").unwrap().report).unwrap();
    assert_eq!(facts.timeline, 2);
    verify::accepts(&place);
    let mut again = Cluster::empty();
    place.restore(&mut again);
    assert_eq!(again.number("SELECT count(*) FROM ledger WHERE id = -1"), 1);
    check_sums(&again);
    check_page_sums(&mut again);
}

#[test]
fn tablespaces_and_unlogged_tables_come_back_beside_what_is_there() {
    let mut source = Cluster::new();
    let (outside, inside) = (source.directory("fast"), source.data.join("inside"));
    std::fs::create_dir(&inside).unwrap();
    own(&inside, 0o700);
    source.sql(&format!(
        "CREATE TABLESPACE fast LOCATION '{}'; CREATE TABLESPACE inside LOCATION '{}'",
        outside.display(),
        inside.display()
    ));
    source.sql(
        "CREATE TABLE there TABLESPACE fast AS SELECT generate_series(1, 10000) AS id;
         CREATE UNLOGGED TABLE fleeting TABLESPACE fast AS SELECT generate_series(1, 100) AS id;
         CREATE TABLE here TABLESPACE inside AS SELECT generate_series(1, 5000) AS id",
    );
    let mut stack = source.stack();
    let place = Place::new();
    // As in a container: what is not mounted cannot be seen.
    stack.container = Some(container());
    let checks = place.block_on(Postgres::new(&config(&[]), &stack).unwrap().check());
    let bad: Vec<_> = checks
        .iter()
        .filter_map(|c| c.outcome.as_ref().err())
        .collect();
    assert_eq!(bad.len(), 1, "{checks:?}");
    assert!(
        bad[0].contains(&format!("points to {}", outside.display())),
        "{bad:?}"
    );

    mounted(&mut stack, &outside);
    let mut service = Postgres::new(&config(&[]), &stack).unwrap();
    let manifest = place.backup(&mut service, || ()).unwrap();
    let facts = Facts::of(&manifest.archive("db").unwrap().report).unwrap();
    assert_eq!(facts.tablespaces.len(), 2);
    verify::accepts(&place);

    // What happened since is gone after the restore, and back after the rollback.
    source.sql(
        "CREATE TABLE since TABLESPACE fast AS SELECT 1 AS id; DELETE FROM there; DELETE FROM here",
    );
    source.stop();
    let mut restore = PostgresRestore::new(&config(&[]), &stack).unwrap();
    let staged = source.home.path().join("staged");
    let (record, run) = place.stage(&mut restore, &staged).unwrap();
    let old = source.home.path().join("old");
    std::fs::rename(&source.data, &old).unwrap();
    std::fs::rename(&staged, &source.data).unwrap();
    source.launch();
    place.block_on(restore.settle(&record, &run)).unwrap();
    assert_eq!(source.number("SELECT count(*) FROM there"), 10_000);
    assert_eq!(source.number("SELECT count(*) FROM here"), 5_000);
    assert_eq!(source.number("SELECT count(*) FROM fleeting"), 0);
    assert_eq!(
        source.number("SELECT count(*) FROM pg_class WHERE relname = 'since'"),
        0
    );
    check_structure(&source);
    // It can be backed up again as it is now, and restored once more.
    let location =
        source.text("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'fast'");
    assert_eq!(
        location,
        outside
            .join(format!("lifeboat-{}", run.run_id))
            .to_str()
            .unwrap()
    );
    place.backup(&mut service, || ()).unwrap();
    source.stop();

    std::fs::remove_dir_all(&source.data).unwrap();
    std::fs::rename(&old, &source.data).unwrap();
    place.block_on(restore.rollback()).unwrap();
    source.start();
    assert_eq!(source.number("SELECT count(*) FROM since"), 1);
    assert_eq!(source.number("SELECT count(*) FROM there"), 0);
    check_structure(&source);
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
    source.stop();
    std::fs::remove_dir_all(&source.data).unwrap();
    std::fs::create_dir(&source.data).unwrap();
    own(&source.data, 0o700);
    let mut restore = PostgresRestore::new(&config(&[]), &stack).unwrap();
    let (record, run) = place.stage(&mut restore, &staged).unwrap();
    std::fs::remove_dir(&source.data).unwrap();
    std::fs::rename(&staged, &source.data).unwrap();
    source.launch();
    place.block_on(restore.settle(&record, &run)).unwrap();
    assert_eq!(source.number("SELECT count(*) FROM there"), 10_000);
}

#[test]
fn segments_of_every_size_have_the_servers_names() {
    for mib in [1, 16, 64] {
        let cluster = Cluster::with(&[&format!("--wal-segsize={mib}")], &["max_wal_size=1GB"]);
        let size = SegmentSize::new(mib << 20).unwrap();
        for lsn in [
            "0/1500718",
            "0/5500718",
            "1/1",
            "16/B374D848",
            "16/FFFFFFFF",
            "FFF/12345678",
        ] {
            let name = cluster.text(&format!("SELECT pg_walfile_name('{lsn}')"));
            let ours = size.name(1, size.segment_at(Lsn::parse(lsn).unwrap()));
            assert_eq!(ours, name, "{lsn} at {mib} MiB");
        }
    }
}

#[test]
fn a_linked_wal_directory_is_followed_where_it_is_mounted() {
    let mut cluster = Cluster::new();
    cluster.sql("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS id");
    cluster.stop();
    let (wal, link) = (cluster.home.path().join("wal"), cluster.data.join("pg_wal"));
    std::fs::rename(&link, &wal).unwrap();
    std::os::unix::fs::symlink(&wal, &link).unwrap();
    cluster.start();
    let place = Place::new();
    let mut stack = cluster.stack();
    stack.container = Some(container());
    let attempt = |stack: &StackService| {
        place.backup(&mut Postgres::new(&config(&[]), stack).unwrap(), || ())
    };
    refused(
        attempt(&stack),
        ErrorKind::Setup,
        &["pg_wal points to", "not mounted here"],
    );
    mounted(&mut stack, &wal);
    let manifest = attempt(&stack).unwrap();
    let warnings = &manifest.archive("db").unwrap().report.warnings;
    assert!(warnings[0].contains("pg_wal is a link"), "{warnings:?}");
    let mut target = Cluster::empty();
    place.restore(&mut target);
    assert_eq!(target.number("SELECT count(*) FROM kept"), 1000);
    assert_nothing_left(&cluster);
}

#[test]
fn an_unchanged_cluster_is_not_read_again() {
    let cluster = Cluster::new();
    run(cluster.client_tool("pgbench").args(["-i", "-q", "-s", "5"]));
    cluster.sql("VACUUM FREEZE ANALYZE; CHECKPOINT");
    // Until the files are old enough for their times to be trusted.
    cluster.wait_for_zero(
        "SELECT (clock_timestamp() - checkpoint_time < '4 s')::int::bigint FROM pg_control_checkpoint()",
    );
    let place = Place::new();
    let first = place.backup(&mut service(&cluster), || ()).unwrap();
    let second = place.backup(&mut service(&cluster), || ()).unwrap();
    let sizes = |m: &Manifest| (m.raw_bytes, m.read_bytes, m.stored_bytes);
    eprintln!(
        "raw, read, stored: {:?} {:?}",
        sizes(&first),
        sizes(&second)
    );
    assert!(first.raw_bytes > 80 << 20);
    // What is read are one or two WAL segments and the files that a checkpoint writes.
    assert!(second.read_bytes < 40 << 20, "{:?}", sizes(&second));
    assert!(second.stored_bytes < 1 << 20, "{:?}", sizes(&second));
    // What was not read has the sums of when it was.
    verify::accepts(&place);
    let mut target = Cluster::empty();
    place.restore(&mut target);
    check_sums(&target);
    check_structure(&target);
}
