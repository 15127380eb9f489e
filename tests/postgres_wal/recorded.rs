//! A log that a real server wrote, with a record of many sorts in it, and what that server knows of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use lifeboat::services::postgres::control::ControlFile;
use lifeboat::services::postgres::records::{Reading, Records};
use lifeboat::services::postgres::wal::{Lsn, SegmentSize};
use postgres::Client;

use super::cluster::{Cluster, major, own, run};

/// Small segments, so that many records cross from one to the next.
pub const SEGMENT_BYTES: u64 = 1 << 20;

/// A commit, as the session saw it that made it.
pub struct Commit {
    pub xid: u32,
    /// The end of the log before and after.
    pub before: Lsn,
    pub after: Lsn,
}

/// How the server's commit log has a transaction.
#[derive(Debug, PartialEq, Eq)]
pub struct Fate {
    pub committed: bool,
    /// Microseconds since 1970 of a commit that is not replicated.
    pub time: Option<i64>,
}

pub struct Recorded {
    /// A directory of segments, of nothing else.
    pub wal: PathBuf,
    /// The data directory as it was before `start`.
    pub base: PathBuf,
    pub start: Lsn,
    /// The checkpoint that the server wrote last, when it was shut down.
    pub last: Lsn,
    pub system_identifier: u64,
    pub ledger: Vec<Commit>,
    /// Prepared transactions that were committed, and rolled back.
    pub prepared: (Vec<u32>, Vec<u32>),
    pub restore_points: Vec<(String, Lsn)>,
    /// Where segments were switched.
    pub switches: Vec<Lsn>,
    pub fates: BTreeMap<u32, Fate>,
    /// The transaction that asked for them, the last of all.
    pub asked_by: u32,
    /// The end of the log before a record was written whose end was lost.
    pub lost_after: Lsn,
    _home: Cluster,
}

impl Recorded {
    /// One log for all tests that run beside each other; the last one of them removes it.
    pub fn get() -> Arc<Self> {
        static RECORDED: Mutex<Weak<Recorded>> = Mutex::new(Weak::new());
        // A test that failed to make one lets the next one try.
        let mut shared = RECORDED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let recorded = Arc::new(record());
            *shared = Arc::downgrade(&recorded);
            recorded
        })
    }

    pub fn size() -> SegmentSize {
        SegmentSize::new(SEGMENT_BYTES).unwrap()
    }

    pub fn reader(&self, start: Lsn) -> Records {
        Records::new(start, Self::size(), 1, Some(self.system_identifier))
    }

    /// All bytes from the segment on that holds `start`.
    pub fn bytes_from(&self, start: Lsn) -> Vec<u8> {
        let size = Self::size();
        let mut bytes = Vec::new();
        for segment in size.segment_at(start).. {
            let Ok(more) = std::fs::read(self.wal.join(size.name(1, segment))) else {
                break;
            };
            bytes.extend(more);
        }
        assert!(!bytes.is_empty(), "no segment of {start}");
        bytes
    }

    pub fn read(&self, start: Lsn) -> Reading<std::io::Cursor<Vec<u8>>> {
        self.reader(start)
            .read(std::io::Cursor::new(self.bytes_from(start)))
    }
}

/// A session that keeps book.
struct Session {
    client: Client,
    ledger: Vec<Commit>,
}

impl Session {
    fn new(cluster: &Cluster) -> Self {
        Self {
            client: cluster.connect(),
            ledger: Vec::new(),
        }
    }

    fn run(&mut self, sql: &str) {
        self.client.batch_execute(sql).unwrap();
    }

    /// Statements that no transaction can be around.
    fn alone(&mut self, statements: &[&str]) {
        for sql in statements {
            self.run(sql);
        }
    }

    fn text(&mut self, query: &str) -> String {
        self.client.query_one(query, &[]).unwrap().get(0)
    }

    fn lsn(&mut self, function: &str) -> Lsn {
        Lsn::parse(&self.text(&format!("SELECT {function}::text"))).unwrap()
    }

    fn end(&mut self) -> Lsn {
        self.lsn("pg_current_wal_insert_lsn()")
    }

    /// Runs statements in a transaction and ends it by `ending`; returns its xid.
    fn transaction(&mut self, statements: &str, ending: &str) -> u32 {
        self.run(&format!("BEGIN; {statements}"));
        let xid = self.text("SELECT txid_current()::text").parse().unwrap();
        self.run(ending);
        xid
    }

    fn commit(&mut self, statements: &str) {
        let before = self.end();
        let xid = self.transaction(statements, "COMMIT");
        let after = self.end();
        self.ledger.push(Commit { xid, before, after });
    }
}

const BIG_ROW: &str = "(SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 300))";

fn record() -> Recorded {
    let mut cluster = Cluster::with(
        &["--wal-segsize=1"],
        &[
            "wal_keep_size=1GB",
            "wal_level=logical",
            "track_commit_timestamp=on",
            "max_prepared_transactions=10",
            "autovacuum=off",
        ],
    );
    cluster.stop();
    let base = cluster.home.path().join("base");
    run(Command::new("cp").arg("-a").args([&cluster.data, &base]));
    cluster.start();
    let mut session = Session::new(&cluster);
    let system_identifier = session
        .text("SELECT system_identifier::text FROM pg_control_system()")
        .parse()
        .unwrap();
    let start = session.end();
    ordinary(&mut session);
    compressed(&mut session);
    large(&mut session);
    replicated(&mut session);
    let mut prepared = two_phases(&mut session);
    let (mut restore_points, mut switches) = marks(&mut session);
    let mut ledger = std::mem::take(&mut session.ledger);
    let lost_after = lose_half_a_record(&mut cluster, session);
    let mut session = Session::new(&cluster);
    ordinary_again(&mut session);
    let more = two_phases(&mut session);
    prepared.0.extend(more.0);
    prepared.1.extend(more.1);
    let (more_points, more_switches) = marks(&mut session);
    restore_points.extend(more_points);
    switches.extend(more_switches);
    ledger.append(&mut session.ledger);
    let fates = fates(&mut session, ledger[0].xid);
    drop(session);
    cluster.stop();
    let last = ControlFile::read(&cluster.data).unwrap().checkpoint;
    let wal = cluster.home.path().join("wal");
    keep_segments(&cluster, &wal);
    Recorded {
        wal,
        base,
        start,
        last,
        system_identifier,
        ledger,
        prepared,
        restore_points,
        switches,
        asked_by: fates.keys().max().unwrap() + 1,
        fates,
        lost_after,
        _home: cluster,
    }
}

/// Kills the server and takes away the segments with the end of a long record, as if they had not reached the
/// disk; it starts again and writes over it. Returns where the log ended before that record.
fn lose_half_a_record(cluster: &mut Cluster, mut session: Session) -> Lsn {
    session.run("CHECKPOINT");
    let before = session.end();
    session.alone(&[
        "SELECT pg_logical_emit_message(false, 'lost', repeat('z', 3000000))",
        // So that it is written.
        "CREATE TABLE lost (id int)",
    ]);
    drop(session);
    cluster.kill();
    let size = Recorded::size();
    let lost = size.name(1, size.segment_at(before) + 2);
    for entry in std::fs::read_dir(cluster.data.join("pg_wal")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if name.len() == 24 && name >= lost {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
    cluster.start();
    before
}

fn keep_segments(cluster: &Cluster, wal: &std::path::Path) {
    std::fs::create_dir(wal).unwrap();
    own(wal, 0o755);
    for entry in std::fs::read_dir(cluster.data.join("pg_wal")).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name().len() == 24 {
            let copy = wal.join(entry.file_name());
            std::fs::copy(entry.path(), &copy).unwrap();
            own(&copy, 0o644);
        }
    }
}

fn ordinary(session: &mut Session) {
    session.commit("CREATE TABLE things (id int PRIMARY KEY, words text, place point)");
    session.commit("ALTER TABLE things ALTER words SET STORAGE EXTERNAL");
    session.commit("CREATE INDEX ON things USING gist (place); CREATE SEQUENCE numbers");
    session
        .commit("CREATE INDEX ON things USING hash (id); CREATE INDEX ON things USING brin (id)");
    session.commit("CREATE INDEX ON things USING gin (to_tsvector('simple', words))");
    ordinary_again(session);
    // More subtransactions than a snapshot has room for, which are logged as they come.
    let many = (0..150).fold(String::new(), |all, i| {
        format!("{all} SAVEPOINT s{i}; UPDATE things SET place = point({i}, 1) WHERE id = {i};")
    });
    session.commit(&many);
    session.transaction(&many, "ROLLBACK");
    session.alone(&[
        "VACUUM (FREEZE) things",
        "VACUUM FULL things",
        "REINDEX TABLE things",
    ]);
    let strategy = if major() >= 15 {
        "STRATEGY file_copy"
    } else {
        ""
    };
    session.alone(&[
        "CREATE DATABASE short_lived",
        &format!("CREATE DATABASE copied {strategy}"),
        "DROP DATABASE short_lived",
    ]);
}

/// Can be repeated.
fn ordinary_again(session: &mut Session) {
    session.commit(
        "DELETE FROM things; INSERT INTO things SELECT i, repeat(md5(i::text), 20), point(i, i) \
         FROM generate_series(1, 400) i",
    );
    for i in 0..40 {
        session.commit(&format!(
            "INSERT INTO things SELECT {}, {BIG_ROW}; SELECT nextval('numbers')",
            1000 + i
        ));
    }
    session.transaction("DELETE FROM things WHERE id < 100", "ROLLBACK");
    session.commit(
        "SAVEPOINT a; DELETE FROM things WHERE id = 5; ROLLBACK TO a; SAVEPOINT b; \
         UPDATE things SET words = 'b' WHERE id = 6; RELEASE b",
    );
    session.commit(
        "SELECT * FROM things WHERE id < 10 FOR SHARE; SAVEPOINT c; \
         SELECT * FROM things WHERE id < 10 FOR UPDATE",
    );
    session.commit("CREATE TABLE gone AS SELECT * FROM things; TRUNCATE gone");
    session.commit("DROP TABLE gone");
}

/// Images of pages with every compression that this server has.
fn compressed(session: &mut Session) {
    let methods = session.text(
        "SELECT coalesce(array_to_string(enumvals, ' '), 'on off') FROM pg_settings \
         WHERE name = 'wal_compression'",
    );
    for method in methods.split(' ') {
        session.alone(&[&format!("SET wal_compression = {method}"), "CHECKPOINT"]);
        session.commit("UPDATE things SET words = left(words, 10) WHERE id % 3 = 0");
        session.commit("UPDATE things SET place = point(2, 2) WHERE id % 7 = 0");
        session.run("REINDEX TABLE things");
    }
    session.run("RESET wal_compression");
}

/// Records of several segments, and of about a page.
fn large(session: &mut Session) {
    session.commit("SELECT pg_logical_emit_message(true, 'large', repeat('x', 3500000))");
    session.commit("SELECT pg_logical_emit_message(false, 'large', repeat(E'\\x01', 1048576))");
    for length in (8100..8200).step_by(3).chain(1..40) {
        session.run(&format!(
            "SELECT pg_logical_emit_message(false, '', repeat('y', {length}))"
        ));
    }
}

/// Commits that name where they come from.
fn replicated(session: &mut Session) {
    session.run("SELECT pg_replication_origin_create('elsewhere')");
    session.run("SELECT pg_replication_origin_session_setup('elsewhere')");
    session.run(
        "BEGIN; SELECT pg_replication_origin_xact_setup('1/2', '2001-02-03'); \
         UPDATE things SET words = 'from elsewhere' WHERE id = 1; COMMIT",
    );
    session.run("SELECT pg_replication_origin_session_reset()");
}

/// Everything that can stand before the xid of a prepared transaction; returns those.
fn two_phases(session: &mut Session) -> (Vec<u32>, Vec<u32>) {
    let statements = [
        "UPDATE things SET words = 'prepared' WHERE id = 2",
        "CREATE TABLE prepared (id int, words text)",
        "DROP TABLE prepared",
        "SAVEPOINT a; CREATE TABLE other (id int PRIMARY KEY); SAVEPOINT b; INSERT INTO other VALUES (1)",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "DROP TABLE other; SAVEPOINT c; DROP FUNCTION f()",
    ];
    let (mut committed, mut rolled_back) = (Vec::new(), Vec::new());
    for sql in statements {
        let xid = session.transaction(sql, "PREPARE TRANSACTION 'back'");
        session.run("ROLLBACK PREPARED 'back'");
        rolled_back.push(xid);
        let xid = session.transaction(sql, "PREPARE TRANSACTION 'forth'");
        session.commit("UPDATE things SET words = 'in between' WHERE id = 3");
        session.run("COMMIT PREPARED 'forth'");
        committed.push(xid);
    }
    (committed, rolled_back)
}

/// Restore points and where segments were switched.
fn marks(session: &mut Session) -> (Vec<(String, Lsn)>, Vec<Lsn>) {
    let (mut points, mut switches) = (Vec::new(), Vec::new());
    for name in ["before lunch", "zwölf Uhr", "before lunch"] {
        let at = session.lsn(&format!("pg_create_restore_point('{name}')"));
        points.push((name.to_owned(), at));
        session.commit("UPDATE things SET words = 'x' WHERE id = 4");
        switches.push(session.lsn("pg_switch_wal()"));
        session.commit("UPDATE things SET words = 'y' WHERE id = 4");
        session.run("CHECKPOINT");
    }
    (points, switches)
}

/// What the server says of every transaction that has ended.
fn fates(session: &mut Session, first: u32) -> BTreeMap<u32, Fate> {
    let rows = session
        .client
        .query(
            "SELECT xid::int8, txid_status(xid) = 'committed', \
                extract(epoch FROM date_trunc('second', t))::int8 * 1000000 \
                    + extract(microseconds FROM t)::int8 % 1000000, \
                t < '2002-01-01' \
             FROM generate_series($1::int8, txid_current() - 1) AS xid, \
                LATERAL (SELECT pg_xact_commit_timestamp(xid::text::xid) AS t) AS times",
            &[&i64::from(first)],
        )
        .unwrap();
    rows.iter()
        .map(|row| {
            let replicated: Option<bool> = row.get(3);
            let fate = Fate {
                committed: row.get(1),
                time: row
                    .get::<_, Option<i64>>(2)
                    .filter(|_| replicated != Some(true)),
            };
            (u32::try_from(row.get::<_, i64>(0)).unwrap(), fate)
        })
        .collect()
}
