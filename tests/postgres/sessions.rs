//! However a backup ends, the server keeps nothing of it: no session, no slot, no backup mode.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::*;

#[test]
fn a_session_that_ends_ends_the_backup() {
    let mut cluster = Cluster::new();
    let place = Place::new();
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'lifeboat'";
    refused(
        place.backup(&mut service(&cluster), || cluster.sql(end)),
        ErrorKind::Unreachable,
        &["cannot end the backup"],
    );
    assert_nothing_left(&cluster);

    // Given up after `hold`: the server must not go on keeping WAL.
    let mut held = service(&cluster);
    place.block_on(held.hold(&place.run())).unwrap();
    assert_eq!(
        cluster.number("SELECT count(*) FROM pg_replication_slots"),
        1
    );
    place.block_on(held.release()).unwrap();
    place.block_on(held.release()).unwrap();
    assert_nothing_left(&cluster);

    // Dropped without a word, as by a panic.
    let mut dropped = service(&cluster);
    place.block_on(dropped.hold(&place.run())).unwrap();
    drop(dropped);
    assert_nothing_left(&cluster);

    // The server is killed and comes back meanwhile.
    let mut service = service(&cluster);
    place.block_on(service.hold(&place.run())).unwrap();
    cluster.kill();
    cluster.start();
    refused(
        place.block_on(service.freeze()),
        ErrorKind::Unreachable,
        &["cannot end the backup"],
    );
    place.block_on(service.release()).unwrap();
    assert_nothing_left(&cluster);
}

#[test]
fn a_server_that_begins_a_new_timeline_meanwhile_ends_the_backup() {
    let mut cluster = Cluster::new();
    cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS id");
    let place = Place::new();
    let mut held = service(&cluster);
    place.block_on(held.hold(&place.run())).unwrap();
    // A primary can become a standby by a restart only, and that one can be promoted.
    cluster.stop();
    promote(&mut cluster);
    refused(
        place.block_on(held.freeze()),
        ErrorKind::Unreachable,
        &["cannot end the backup"],
    );
    place.block_on(held.release()).unwrap();
    assert_nothing_left(&cluster);
    assert_eq!(place.repository().backups().unwrap().len(), 0);

    let manifest = place.backup(&mut service(&cluster), || ()).unwrap();
    let facts = Facts::of(&manifest.archive("db").unwrap().report).unwrap();
    assert_eq!(facts.timeline, 2);
    let mut target = Cluster::empty();
    place.restore(&mut target);
    assert_eq!(target.number("SELECT count(*) FROM t"), 1000);
}

/// Starts a stopped cluster as a standby, and makes a primary of it again.
fn promote(cluster: &mut Cluster) {
    let signal = cluster.data.join("standby.signal");
    std::fs::write(&signal, "").unwrap();
    own(&signal, 0o600);
    cluster.start();
    cluster.sql("SELECT pg_promote()");
    cluster.wait_for_zero("SELECT pg_is_in_recovery()::int::bigint");
}

#[test]
fn time_outs_of_the_role_do_not_end_the_backup() {
    let cluster = Cluster::new();
    cluster.sql("CREATE ROLE hasty LOGIN SUPERUSER PASSWORD 'h'; ALTER ROLE hasty SET statement_timeout = '25ms'");
    if major() >= 14 {
        cluster.sql("ALTER ROLE hasty SET idle_session_timeout = '50ms'");
    }
    let vars = [("POSTGRES_USER", "hasty"), ("POSTGRES_PASSWORD", "h")];
    let mut service = Postgres::new(&config(&vars), &cluster.stack()).unwrap();
    let busy = "SELECT count(*) FROM (SELECT 1) one WHERE NOT EXISTS (SELECT FROM pg_stat_activity \
                WHERE application_name = 'lifeboat' AND clock_timestamp() - state_change > '200ms')";
    Place::new()
        .backup(&mut service, || cluster.wait_for_zero(busy))
        .unwrap();
}

#[test]
fn a_backup_given_up_while_the_server_is_busy_leaves_nothing() {
    let cluster = Cluster::new();
    let place = Place::new();
    let mut blocker = cluster.connect();
    let mut transaction = blocker.transaction().unwrap();
    transaction
        .batch_execute("LOCK TABLE pg_tablespace IN ACCESS EXCLUSIVE MODE")
        .unwrap();
    let mut service = service(&cluster);
    let run = place.run();
    let waits = "SELECT 1 - count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) \
                 WHERE NOT granted AND application_name = 'lifeboat'";
    let (waiting, seen) = tokio::sync::oneshot::channel();
    std::thread::scope(|scope| {
        let transaction = &mut transaction;
        scope.spawn(move || {
            transaction_sees_zero(transaction, waits);
            waiting.send(()).unwrap();
        });
        place.block_on(async {
            tokio::select! {
                held = service.hold(&run) => panic!("it did not wait for the lock: {held:?}"),
                seen = seen => seen.unwrap(),
            }
        });
    });
    place.block_on(service.release()).unwrap();
    // Still locked: it was the release that ended the query.
    transaction_sees_zero(
        &mut transaction,
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'lifeboat'",
    );
    transaction.rollback().unwrap();
    assert_nothing_left(&cluster);
}

/// Waits on a connection that is there already: new ones would wait for the lock, too.
fn transaction_sees_zero(transaction: &mut postgres::Transaction<'_>, query: &str) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    loop {
        transaction
            .batch_execute("SELECT pg_stat_clear_snapshot()")
            .unwrap();
        let left: i64 = transaction.query_one(query, &[]).unwrap().get(0);
        if left == 0 {
            return;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "still {left}: {query}"
        );
        std::thread::yield_now();
    }
}

/// Nothing comes through to a server any more, and nobody is told. Needs root.
struct Silence(u16);

impl Silence {
    fn begin(port: u16) -> Self {
        let silence = Self(port);
        silence.rules("--insert");
        silence
    }

    fn rules(&self, change: &str) {
        for end in ["--dport", "--sport"] {
            run(Command::new("iptables")
                .args(["--wait", change, "INPUT", "--protocol", "tcp", end])
                .args([&self.0.to_string(), "--jump", "DROP"]));
        }
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        self.rules("--delete");
    }
}

#[test]
fn a_network_that_falls_silent_ends_the_backup_on_both_sides() {
    let cluster = Cluster::new();
    cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 100000) AS id");
    let place = Place::new();
    // Beginning a backup makes one.
    let checkpoint = "SELECT checkpoint_lsn::text FROM pg_control_checkpoint()";
    let before = cluster.text(checkpoint);
    let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
    place.environment(&mut command, &cluster);
    let program = command
        .arg("backup")
        // It is cut off in the middle of the copy.
        .env("BACKUP_RATE_LIMIT", "2MB")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    while cluster.text(checkpoint) == before {
        std::thread::yield_now();
    }
    std::thread::sleep(Duration::from_secs(2));
    let silence = Silence::begin(cluster.port);
    let output = program.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("cannot end the backup"), "{said}");
    assert_eq!(place.repository().backups().unwrap().len(), 0);
    // Nor has the server heard that the program is gone.
    let slots = "SELECT count(*) FROM pg_replication_slots";
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'lifeboat'";
    let mut inside = cluster.connect_inside();
    let mut count = |query: &str| inside.query_one(query, &[]).unwrap().get::<_, i64>(0);
    let deadline = Instant::now() + Duration::from_mins(4);
    while count(slots) + count(sessions) > 0 {
        assert!(Instant::now() < deadline, "the server keeps what it had");
        std::thread::sleep(Duration::from_millis(200));
    }
    drop(silence);
    assert_nothing_left(&cluster);
    place.backup(&mut service(&cluster), || ()).unwrap();
}
