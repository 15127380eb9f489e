//! What keeps the WAL: capped, given back, and never the server's ruin.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lifeboat::services::ErrorKind;
use lifeboat::services::postgres::pitr::Target;
use lifeboat::services::postgres::pitr::guard::Kept;
use lifeboat::services::postgres::wal::Lsn;

use crate::cluster::{Cluster, major};
use crate::mount::Mount;
use crate::site::{Site, clock};

const SLOTS: &str = "SELECT count(*) FROM pg_replication_slots";

fn write(cluster: &Cluster, megabytes: usize) {
    for _ in 0..megabytes {
        cluster
            .sql("INSERT INTO filler SELECT repeat('x', 1000) || g FROM generate_series(1, 900) g");
    }
}

#[test]
fn a_slot_is_capped_advanced_and_given_back() {
    let source = Cluster::with(&[], &["checkpoint_timeout=30s"]);
    source.sql("CREATE TABLE filler (body text)");
    let site = Site::new();
    let mut capture = site.capture_with(&source, &[("PITR_MAX_WAL", "300MB")]);
    let step = site.step(&mut capture).unwrap();
    assert!(matches!(step.kept, Kept::Slot { .. }), "{:?}", step.kept);
    assert_eq!(source.text("SHOW max_slot_wal_keep_size"), "300MB");
    write(&source, 40);
    let step = site.step(&mut capture).unwrap();
    // To the start of the segment that is being written.
    let restart = source.text("SELECT restart_lsn::text FROM pg_replication_slots");
    let restart = Lsn::parse(&restart).unwrap();
    assert_eq!(restart.0, step.end - step.end % (16 << 20));
    // The old segments may go: the slot does not hold them.
    write(&source, 80);
    site.step(&mut capture).unwrap();
    source.sql("CHECKPOINT; CHECKPOINT");
    let kept = source.number("SELECT count(*) FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$'");
    assert!(kept <= 8, "{kept} segments");

    let told = site.place.block_on(capture.give_back()).unwrap();
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!(source.number(SLOTS), 0);
    source.sql("SELECT pg_sleep(0.3)");
    assert_eq!(source.text("SHOW max_slot_wal_keep_size"), "-1");
    assert_eq!(site.place.block_on(capture.give_back()).unwrap(), [""; 0]);
}

#[test]
fn the_first_step_finds_all_wal_while_the_server_removes_it() {
    let source = Cluster::with(
        &["--wal-segsize=1"],
        &["min_wal_size=2MB", "max_wal_size=2MB"],
    );
    source.sql("CREATE TABLE filler (body text)");
    let stop = Arc::new(AtomicBool::new(false));
    let removes = {
        let (stop, mut client) = (Arc::clone(&stop), source.connect());
        std::thread::spawn(move || {
            let mut rounds = 0;
            while !stop.load(Ordering::SeqCst) {
                for step in [
                    "INSERT INTO filler VALUES ('one')",
                    "SELECT pg_switch_wal()",
                    "CHECKPOINT",
                ] {
                    client.batch_execute(step).unwrap();
                }
                rounds += 1;
            }
            rounds
        })
    };
    for _ in 0..20 {
        let site = Site::new();
        let mut capture = site.capture(&source);
        let first = site.step(&mut capture);
        site.place.block_on(capture.give_back()).unwrap();
        assert!(first.unwrap().gap.is_none());
    }
    stop.store(true, Ordering::SeqCst);
    assert!(removes.join().unwrap() > 20);
}

#[test]
fn the_slot_of_an_earlier_repository_is_not_forgotten() {
    let source = Cluster::new();
    let (first, second, other) = (Site::new(), Site::new(), Site::new());
    let state = first.place.state();
    let moved = [("LIFEBOAT_STATE", state.to_str().unwrap())];
    let mut before = first.capture(&source);
    first.step(&mut before).unwrap();
    // The same sidecar, with another repository.
    let mut capture = second.capture_with(&source, &moved);
    second.step(&mut capture).unwrap();
    assert_eq!(source.number(SLOTS), 1);
    // Another sidecar came later, and found a cap.
    let mut beside = other.capture(&source);
    other.step(&mut beside).unwrap();
    let capped = source.text("SHOW max_slot_wal_keep_size");
    let told = second.place.block_on(capture.give_back()).unwrap();
    assert!(
        told.iter().any(|said| said.contains("still needs it")),
        "{told:?}"
    );
    source.sql("SELECT pg_sleep(0.3)");
    assert_eq!(source.number(SLOTS), 1);
    assert_eq!(source.text("SHOW max_slot_wal_keep_size"), capped);
}

#[test]
fn a_cap_of_the_administrators_own_is_left_alone() {
    let source = Cluster::new();
    source.sql("ALTER SYSTEM SET max_slot_wal_keep_size = '1GB'; SELECT pg_reload_conf(); SELECT pg_sleep(0.3)");
    let site = Site::new();
    let mut capture = site.capture(&source);
    site.step(&mut capture).unwrap();
    let told = site.place.block_on(capture.give_back()).unwrap();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(source.text("SHOW max_slot_wal_keep_size"), "1GB");
}

#[test]
fn a_role_that_lost_its_rights_gives_back_what_it_can() {
    let source = Cluster::new();
    source.sql("CREATE ROLE plain LOGIN REPLICATION PASSWORD 'only for tests'; GRANT pg_read_all_settings TO plain");
    let site = Site::new();
    let mut capture = site.capture(&source);
    site.step(&mut capture).unwrap();
    let capped = source.text("SHOW max_slot_wal_keep_size");
    let vars = [
        ("POSTGRES_USER", "plain"),
        ("POSTGRES_PASSWORD", "only for tests"),
        ("POSTGRES_DB", "postgres"),
    ];
    let mut plain = site.capture_with(&source, &vars);
    let told = site.place.block_on(plain.give_back()).unwrap();
    assert!(
        told.iter()
            .any(|said| said.contains("a superuser takes it back")),
        "{told:?}"
    );
    assert_eq!(source.number(SLOTS), 0);
    assert_eq!(source.text("SHOW max_slot_wal_keep_size"), capped);
    // And does not try for ever.
    assert_eq!(site.place.block_on(plain.give_back()).unwrap(), [""; 0]);
}

#[test]
fn a_sidecar_away_past_the_cap_leaves_the_server_alive_and_says_the_gap() {
    let source = Cluster::with(&[], &["max_slot_wal_keep_size=32MB", "min_wal_size=32MB"]);
    source.sql("CREATE TABLE filler (body text); CREATE TABLE t (id int)");
    let site = Site::new();
    let mut capture = site.capture(&source);
    site.step(&mut capture).unwrap();
    site.backup(&source);
    source.sql("INSERT INTO t VALUES (1)");
    site.step(&mut capture).unwrap();
    let before = clock(&source);
    site.step(&mut capture).unwrap();
    site.place.block_on(capture.close());

    write(&source, 150);
    source.sql("CHECKPOINT; INSERT INTO filler VALUES ('more'); CHECKPOINT");
    assert_eq!(
        source.text("SELECT wal_status FROM pg_replication_slots"),
        "lost"
    );
    let during = clock(&source);
    source.sql("INSERT INTO t VALUES (2)");
    let mut capture = site.capture(&source);
    let step = site.step(&mut capture).unwrap();
    let gap = step.gap.expect("WAL was removed");
    assert!(gap.to > gap.from);
    assert!(matches!(step.kept, Kept::Slot { .. }));
    assert_eq!(
        source.text("SELECT wal_status FROM pg_replication_slots"),
        "reserved"
    );

    // Before the gap all is well; what is after it waits for the next backup.
    let restored = site.restore(&Target::Time(before), &[]);
    assert_eq!(restored.number("SELECT count(*) FROM t"), 1);
    let (_, replay) = site.choose(&Target::Latest, None).unwrap();
    assert!(
        replay.said().contains("WAL is missing"),
        "{}",
        replay.said()
    );
    assert!(site.choose(&Target::Time(during), None).is_err());
    assert!(site.reachable().iter().any(|span| span.gap));
    site.backup(&source);
    source.sql("INSERT INTO t VALUES (3)");
    site.step(&mut capture).unwrap();
    let restored = site.restore(&Target::Latest, &[]);
    assert_eq!(restored.number("SELECT count(*) FROM t"), 3);
}

#[test]
fn a_slot_that_a_crash_sets_back_costs_nothing() {
    let mut source = Cluster::new();
    source.sql("CREATE TABLE filler (body text); CREATE TABLE t (id int)");
    let site = Site::new();
    let mut capture = site.capture(&source);
    site.step(&mut capture).unwrap();
    site.backup(&source);
    // What a slot says is written down by checkpoints only.
    source.sql("CHECKPOINT");
    write(&source, 40);
    let before = site.step(&mut capture).unwrap();
    let restart = |source: &Cluster| {
        Lsn::parse(&source.text("SELECT restart_lsn::text FROM pg_replication_slots")).unwrap()
    };
    let advanced = restart(&source);
    source.kill();
    source.start();
    assert!(restart(&source) < advanced, "the crash did not set it back");

    source.sql("INSERT INTO t VALUES (1)");
    // Its session died with the server; the next step begins another one.
    site.step(&mut capture).unwrap_err();
    let step = site.step(&mut capture).unwrap();
    assert!(step.gap.is_none());
    assert!(step.end > before.end);
    assert!(step.stored_bytes < 16 << 20, "{}", step.stored_bytes);
    assert_eq!(restart(&source).0, step.end - step.end % (16 << 20));
    source.sql("CHECKPOINT; INSERT INTO t VALUES (2)");
    site.step(&mut capture).unwrap();
    let restored = site.restore(&Target::Latest, &[]);
    assert_eq!(restored.number("SELECT count(*) FROM t"), 2);
    assert_eq!(restored.number("SELECT count(*) FROM filler"), 40 * 900);
}

#[test]
fn a_small_disk_is_not_filled_by_what_the_slot_keeps() {
    // On the smaller one there is no room for a slot, on the other for a quarter of what is free.
    for (megabytes, written) in [(200, 250), (320, 400)] {
        let disk = Mount::tmpfs(megabytes);
        let source = Cluster::with(
            &["--waldir", disk.path().to_str().unwrap()],
            &["min_wal_size=32MB"],
        );
        source.sql("CREATE TABLE filler (body text)");
        let site = Site::new();
        let mut capture = site.capture(&source);
        let step = site.step(&mut capture).unwrap();
        if megabytes == 200 {
            let Kept::Nothing { why } = &step.kept else {
                panic!("{:?}", step.kept);
            };
            assert!(why.contains("too little free space"), "{why}");
            assert_eq!(source.number(SLOTS), 0);
        } else {
            assert!(matches!(step.kept, Kept::Slot { .. }), "{:?}", step.kept);
            let cap = source.text("SHOW max_slot_wal_keep_size");
            assert!(["7", "8"].iter().any(|ten| cap.starts_with(ten)), "{cap}");
        }
        site.place.block_on(capture.close());
        // Away, while more is written than the disk takes.
        write(&source, written);
        source.sql("CHECKPOINT; INSERT INTO filler VALUES ('alive'); CHECKPOINT");
        let mut capture = site.capture(&source);
        assert!(site.step(&mut capture).unwrap().gap.is_some());
        site.backup(&source);
        let restored = site.restore(&Target::Latest, &[]);
        let alive = "SELECT count(*) FROM filler WHERE body = 'alive'";
        assert_eq!(restored.number(alive), 1);
    }
}

#[test]
fn a_cap_that_the_disk_is_too_small_for_does_not_cost_the_server() {
    let disk = Mount::tmpfs(256);
    // With checksums, reading rows for the first time writes all their pages to the WAL once more, faster than anybody
    // could make room on so small a disk.
    let plain: &[&str] = if major() >= 18 {
        &["--no-data-checksums"]
    } else {
        &[]
    };
    let source = Cluster::with(
        &[&["--waldir", disk.path().to_str().unwrap()], plain].concat(),
        &["min_wal_size=32MB", "max_slot_wal_keep_size=10GB"],
    );
    source.sql("CREATE TABLE filler (body text)");
    let site = Site::new();
    let mut capture = site.capture(&source);
    let step = site.step(&mut capture).unwrap();
    assert!(matches!(step.kept, Kept::Slot { .. }), "{:?}", step.kept);
    // The repository is away meanwhile.
    let repository = site.place.state().with_file_name("repo");
    let away = repository.with_file_name("away");
    std::fs::rename(&repository, &away).unwrap();
    for _ in 0..2 {
        write(&source, 1);
        let failed = site.step(&mut capture).unwrap_err();
        assert_eq!(failed.kind, ErrorKind::Io, "{failed}");
    }
    write(&source, 330);
    assert_eq!(source.number(SLOTS), 0);
    std::fs::rename(&away, &repository).unwrap();
    source.sql("CHECKPOINT; INSERT INTO filler VALUES ('alive'); CHECKPOINT");
    let step = site.step(&mut capture).unwrap();
    assert!(step.gap.is_some());
    assert!(matches!(step.kept, Kept::Slot { .. }), "{:?}", step.kept);
    // That one is watched as well.
    write(&source, 330);
    assert_eq!(source.number(SLOTS), 0);
    assert_eq!(source.number("SELECT count(*) FROM filler"), 595_801);
}

#[test]
fn without_the_right_to_a_slot_wal_is_fetched_all_the_same() {
    let source = Cluster::new();
    source.sql(
        "CREATE ROLE plain LOGIN PASSWORD 'only for tests'; GRANT pg_read_all_settings TO plain; CREATE TABLE t (id int)",
    );
    let site = Site::new();
    let vars = [
        ("POSTGRES_USER", "plain"),
        ("POSTGRES_PASSWORD", "only for tests"),
        ("POSTGRES_DB", "postgres"),
    ];
    let mut capture = site.capture_with(&source, &vars);
    let step = site.step(&mut capture).unwrap();
    let Kept::Nothing { why } = &step.kept else {
        panic!("{:?}", step.kept);
    };
    assert!(why.contains("max_slot_wal_keep_size"), "{why}");
    // With a cap there still is no right to a slot.
    source.sql("ALTER SYSTEM SET max_slot_wal_keep_size = '1GB'; SELECT pg_reload_conf(); SELECT pg_sleep(0.3)");
    let step = site.step(&mut capture).unwrap();
    let Kept::Nothing { why } = &step.kept else {
        panic!("{:?}", step.kept);
    };
    assert!(why.contains("REPLICATION"), "{why}");
    assert_eq!(source.number(SLOTS), 0);
    site.backup(&source);
    source.sql("INSERT INTO t VALUES (1)");
    site.step(&mut capture).unwrap();
    let restored = site.restore(&Target::Latest, &[]);
    assert_eq!(restored.number("SELECT count(*) FROM t"), 1);
}
