//! Point-in-time recovery against a real server: every moment that is promised comes back exactly, what cannot
//! is refused with a sentence, and the server is never harmed by what keeps its WAL.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "pitr/branches.rs"]
mod branches;
#[path = "pitr/clock.rs"]
mod clock;
#[path = "postgres/cluster.rs"]
#[allow(dead_code)]
mod cluster;
#[path = "pitr/disasters.rs"]
mod disasters;
#[path = "support/clock.rs"]
mod faked;
#[path = "postgres/load.rs"]
#[allow(dead_code)]
mod load;
#[path = "postgres/mount.rs"]
mod mount;
#[path = "postgres/place.rs"]
#[allow(dead_code)]
mod place;
#[path = "pitr/site.rs"]
mod site;
#[path = "pitr/slots.rs"]
mod slots;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cluster::Cluster;
use jiff::{Timestamp, ToSpan};
use lifeboat::repository::wal::spans;
use lifeboat::services::postgres::pitr::Target;
use load::{Load, check_page_sums, check_structure, check_sums};
use site::{Site, clock, lsn};

const OPTIONS: &[&str] = &["track_commit_timestamp=on"];
const MOMENTS: usize = 20;

/// Rows of the ledger that were committed by then, as the source itself knows.
fn committed(source: &Cluster, time: Timestamp) -> i64 {
    source.number(&format!(
        "SELECT count(*) FROM ledger WHERE pg_xact_commit_timestamp(xmin) <= '{time:.6}'"
    ))
}

#[test]
fn every_moment_comes_back_exact_to_the_commit() {
    let source = Cluster::with(&["--data-checksums"], OPTIONS);
    let site = Site::new();
    let load = Load::start(&source, 2);
    load.wait_for(50);
    let stop = Arc::new(AtomicBool::new(false));
    let mut capture = site.capture(&source);
    site.step(&mut capture).unwrap();
    site.backup(&source);
    let from = clock(&source);
    let stopper = {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_secs(12));
            stop.store(true, Ordering::SeqCst);
        })
    };
    while !stop.load(Ordering::SeqCst) {
        site.step(&mut capture).unwrap();
        std::thread::sleep(Duration::from_millis(300));
    }
    stopper.join().unwrap();
    load.stop();
    let last = site.step(&mut capture).unwrap();
    let until = last.until;
    let span = until.duration_since(from).as_micros();
    assert!(span > 10_000_000);
    for round in 0..MOMENTS {
        let share = rand::random_range(0.0..1.0);
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
        let offset = (share * span as f64) as i64;
        let moment = Timestamp::from_microsecond(from.as_microsecond() + offset).unwrap();
        let restored = site.restore(&Target::Time(moment), OPTIONS);
        let rows = restored.number("SELECT count(*) FROM ledger");
        assert_eq!(rows, committed(&source, moment), "round {round}: {moment}");
        assert_eq!(restored.number("SELECT max(id) FROM ledger"), rows);
        check_sums(&restored);
        if round % 5 == 0 {
            check_structure(&restored);
        }
    }
    // And nothing at all is lost at the end.
    let mut restored = site.restore(&Target::Latest, OPTIONS);
    assert_eq!(
        restored.number("SELECT count(*) FROM ledger"),
        source.number("SELECT count(*) FROM ledger")
    );
    check_structure(&restored);
    check_page_sums(&mut restored);
    for file in ["recovery.signal", "backup_label"] {
        assert!(!restored.data.join(file).exists(), "{file}");
    }
    let left =
        "SELECT count(*) FROM pg_file_settings WHERE name ~ '^recovery_|^restore_|^hot_standby'";
    assert_eq!(restored.number(left), 0);
}

#[test]
fn positions_transactions_and_times_without_a_later_commit_are_reached() {
    let source = Cluster::with(&[], OPTIONS);
    let site = Site::new();
    source.sql("CREATE TABLE t (id int)");
    let mut capture = site.capture(&source);
    site.step(&mut capture).unwrap();
    let too_early = clock(&source);
    source.sql("INSERT INTO t VALUES (0)");
    site.backup(&source);
    source.sql("INSERT INTO t VALUES (1)");
    let after_one = lsn(&source);
    let xid = source
        .number("WITH x AS (INSERT INTO t VALUES (2) RETURNING 1) SELECT txid_current() FROM x");
    source.sql("INSERT INTO t VALUES (3)");
    site.step(&mut capture).unwrap();
    let quiet = clock(&source);
    // The server writes a record of its own now and then.
    let mut steps = (0..20).map(|_| {
        std::thread::sleep(Duration::from_millis(50));
        site.step(&mut capture).unwrap()
    });
    let step = steps.find(|step| step.stored_bytes == 0);
    let step = step.expect("it is never quiet");
    let rows =
        |cluster: &Cluster| cluster.number("SELECT coalesce(sum(10 ^ id), 0)::bigint FROM t");

    assert_eq!(rows(&site.restore(&Target::Lsn(after_one), OPTIONS)), 11);
    let xid = u32::try_from(xid).unwrap();
    assert_eq!(rows(&site.restore(&Target::BeforeXid(xid), OPTIONS)), 11);
    assert_eq!(
        rows(&site.restore(&Target::BeforeXid(xid + 1), OPTIONS)),
        111
    );
    // Nothing was committed after it: recovery without a target is the same, one with it would fail.
    assert_eq!(rows(&site.restore(&Target::Time(quiet), OPTIONS)), 1111);
    assert_eq!(rows(&site.restore(&Target::Latest, OPTIONS)), 1111);
    assert_eq!(rows(&site.restore(&Target::Lsn(step.end), OPTIONS)), 1111);

    for (target, word) in [
        (Target::Time(too_early), "cannot be restored"),
        (Target::Time(clock(&source) + 1.hours()), "`--at latest`"),
        (Target::Lsn(step.end + (1 << 20)), "cannot be restored"),
        (Target::Lsn(16), "cannot be restored"),
        (Target::BeforeXid(xid + 1000), "did not end"),
    ] {
        let why = site.choose(&target, None).err().unwrap();
        assert!(
            why.contains(word) && why.contains("What can be restored"),
            "{why}"
        );
    }
}

#[test]
fn both_sides_of_a_branch_can_be_restored() {
    let source = Cluster::with(&[], OPTIONS);
    let site = Site::new();
    source.sql("CREATE TABLE t (id int)");
    let mut capture = site.capture(&source);
    site.step(&mut capture).unwrap();
    site.backup(&source);
    source.sql("INSERT INTO t VALUES (1)");
    let one = lsn(&source);
    source.sql("INSERT INTO t VALUES (2)");
    let first_side = clock(&source);
    source.sql("INSERT INTO t VALUES (3)");
    site.step(&mut capture).unwrap();
    // The newest backup is on the side that is left.
    site.backup(&source);
    site.step(&mut capture).unwrap();
    site.place.block_on(capture.close());

    // Back to one, and on from there.
    let second = site.restore(&Target::Lsn(one), OPTIONS);
    second.sql("INSERT INTO t VALUES (20)");
    let mut capture = site.capture(&second);
    let step = site.step(&mut capture).unwrap();
    assert_eq!((step.timeline, step.is_new), (2, true));
    let second_side = clock(&second);
    second.sql("INSERT INTO t VALUES (30)");
    site.step(&mut capture).unwrap();
    site.place.block_on(capture.close());
    let sum = |cluster: &Cluster| cluster.number("SELECT sum(id) FROM t");

    assert_eq!(sum(&site.restore(&Target::Latest, OPTIONS)), 1 + 20 + 30);
    assert_eq!(
        sum(&site.restore(&Target::Time(second_side), OPTIONS)),
        1 + 20
    );
    assert_eq!(
        sum(&site.restore(&Target::Time(first_side), OPTIONS)),
        1 + 2
    );
    // From the first side a third timeline: the number of the second is never given again.
    let third = site.restore_along(&Target::Latest, Some(1), OPTIONS);
    assert_eq!(sum(&third), 1 + 2 + 3);
    third.sql("INSERT INTO t VALUES (100)");
    let mut capture = site.capture(&third);
    assert_eq!(site.step(&mut capture).unwrap().timeline, 3);
    assert_eq!(
        sum(&site.restore(&Target::Latest, OPTIONS)),
        1 + 2 + 3 + 100
    );
    // A base backup on the third is where the way begins from now on.
    let manifest = site.backup(&third);
    third.sql("INSERT INTO t VALUES (1000)");
    site.step(&mut capture).unwrap();
    assert_eq!(
        site.choose(&Target::Latest, None).unwrap().0.id,
        manifest.id
    );
    assert_eq!(sum(&site.restore(&Target::Latest, OPTIONS)), 1106);
    let timelines: Vec<u32> = site.reachable().iter().map(|r| r.timeline).collect();
    assert_eq!(timelines, [1, 2, 3]);
}

#[test]
fn a_mark_that_no_backup_leads_to_is_refused() {
    let source = Cluster::new();
    let site = Site::new();
    // A repository, and a backup of another cluster in it.
    site.backup(&Cluster::new());
    let mark = || {
        let mut command = site.command(&["mark", "before-upgrade"]);
        command
            .env("PITR", "on")
            .env("POSTGRES_HOST", "127.0.0.1")
            .env("POSTGRES_PORT", source.port.to_string())
            .env("POSTGRES_USER", "postgres")
            .env("POSTGRES_PASSWORD", cluster::PASSWORD)
            .env("POSTGRES_DATA", &source.data);
        let output = command.output().unwrap();
        (
            output.status.success(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let (is_made, said) = mark();
    assert!(
        !is_made && said.contains("no backup leads to this moment"),
        "{said}"
    );
    site.backup(&source);
    let (is_made, said) = mark();
    assert!(is_made, "{said}");
}

#[test]
fn a_mark_on_a_server_where_nothing_happens_is_stored_with_the_next_step() {
    // Nothing but a commit of its own flushes what the mark stands for.
    let source = Cluster::with(&[], &["wal_writer_delay=10s", "synchronous_commit=off"]);
    source.sql(
        "CREATE ROLE plain LOGIN PASSWORD 'only for tests'; GRANT pg_read_all_settings TO plain",
    );
    source.sql("CREATE TABLE t (id int)");
    let site = Site::new();
    let mut capture = site.capture(&source);
    site.step(&mut capture).unwrap();
    site.backup(&source);
    let plain = [
        ("POSTGRES_USER", "plain"),
        ("POSTGRES_PASSWORD", "only for tests"),
        ("POSTGRES_DB", "postgres"),
    ];
    // With the right to a restore point, and without it.
    for (row, vars) in [(1, &[][..]), (2, &plain)] {
        source.sql(&format!("INSERT INTO t VALUES ({row})"));
        let mark = site.mark(&source, vars);
        let step = site.step(&mut capture).unwrap();
        assert_eq!(step.timeline, mark.timeline);
        assert!(step.end >= mark.lsn, "{} of {}", step.end, mark.lsn);
        source.sql("INSERT INTO t VALUES (100)");
        site.step(&mut capture).unwrap();
        let restored = site.restore(&Target::Lsn(mark.lsn), &[]);
        let count = |ids: &str| restored.number(&format!("SELECT count(*) FROM t WHERE id {ids}"));
        assert_eq!((count("< 100"), count("= 100")), (row, row - 1));
    }
}

#[test]
fn small_and_large_segments_are_put_together_again() {
    for mib in ["1", "64"] {
        let options = ["track_commit_timestamp=on", "max_wal_size=256MB"];
        let source = Cluster::with(&["--wal-segsize", mib], &options);
        let site = Site::new();
        source.sql("CREATE TABLE t (body text)");
        let mut capture = site.capture(&source);
        site.step(&mut capture).unwrap();
        site.backup(&source);
        for _ in 0..25 {
            source
                .sql("INSERT INTO t SELECT repeat('x', 1000) || g FROM generate_series(1, 1000) g");
            site.step(&mut capture).unwrap();
        }
        let stored = site.repository().wal().unwrap();
        // What is complete is one stretch.
        let system = stored.systems[0];
        let all: Vec<_> = stored.of(system, 1).collect();
        let found = spans(all.iter().copied());
        assert_eq!(found.len(), 1, "{found:?}");
        let bytes = found[0].end - found[0].start;
        assert!(bytes > 25_000_000);
        assert!(all.len() < 20, "{} stretches", all.len());
        let restored = site.restore(&Target::Latest, &options);
        assert_eq!(restored.number("SELECT count(*) FROM t"), 25_000, "{mib}");
    }
}
