//! Work that goes on while a backup runs: pgbench, DDL, and a ledger of what was acknowledged.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread::JoinHandle;

use crate::cluster::{Cluster, client_program, major, newest_installed_major, run};

pub struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicI64>,
    threads: Vec<JoinHandle<()>>,
    bench: Child,
}

impl Load {
    /// Fills the database and begins.
    pub fn start(cluster: &Cluster, scale: u32) -> Self {
        run(cluster
            .client_tool("pgbench")
            .args(["-i", "-q", "-s", &scale.to_string()]));
        cluster.sql("CREATE TABLE ledger (id bigint PRIMARY KEY, body text)");
        let bench = cluster
            .client_tool("pgbench")
            .args(["-n", "-c", "4", "-j", "2", "-T", "600"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicI64::new(0));
        let threads = vec![
            write_ledger(cluster, Arc::clone(&stop), Arc::clone(&acknowledged)),
            churn(cluster, Arc::clone(&stop)),
        ];
        Self {
            stop,
            acknowledged,
            threads,
            bench,
        }
    }

    /// The newest row whose commit the server has confirmed.
    pub fn acknowledged(&self) -> i64 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    pub fn wait_for(&self, rows: i64) {
        while self.acknowledged() < rows {
            std::thread::yield_now();
        }
    }

    pub fn stop(mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        self.bench.kill().unwrap();
        self.bench.wait().unwrap();
    }
}

fn write_ledger(
    cluster: &Cluster,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicI64>,
) -> JoinHandle<()> {
    let mut client = cluster.connect();
    std::thread::spawn(move || {
        let mut id = 0;
        while !stop.load(Ordering::SeqCst) {
            id += 1;
            client
                .execute("INSERT INTO ledger VALUES ($1, repeat('x', 500))", &[&id])
                .unwrap();
            acknowledged.store(id, Ordering::SeqCst);
        }
    })
}

/// Relations and databases come, change their files and go.
fn churn(cluster: &Cluster, stop: Arc<AtomicBool>) -> JoinHandle<()> {
    let mut client = cluster.connect();
    std::thread::spawn(move || {
        let mut round = 0;
        while !stop.load(Ordering::SeqCst) {
            round += 1;
            client
                .batch_execute(
                    "CREATE TABLE churn AS SELECT g AS id, repeat('y', 200) AS body FROM generate_series(1, 5000) g;
                     CREATE INDEX ON churn (id);
                     DELETE FROM churn WHERE id % 3 = 0;
                     CREATE UNLOGGED TABLE churn_unlogged AS SELECT * FROM churn;",
                )
                .unwrap();
            client.batch_execute("VACUUM FULL churn").unwrap();
            client.batch_execute("TRUNCATE churn_unlogged").unwrap();
            client
                .batch_execute("CREATE TEMP TABLE churn_temp AS SELECT * FROM churn; CHECKPOINT")
                .unwrap();
            client
                .batch_execute("DROP TABLE churn, churn_unlogged, churn_temp")
                .unwrap();
            if round % 10 == 1 {
                client.batch_execute("CREATE DATABASE churn_db").unwrap();
                client.batch_execute("DROP DATABASE churn_db").unwrap();
            }
        }
    })
}

/// The sums that every TPC-B transaction keeps equal.
pub fn check_sums(cluster: &Cluster) {
    let sums = "SELECT array[(SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers), \
                (SELECT sum(bbalance) FROM pgbench_branches), (SELECT coalesce(sum(delta), 0) FROM pgbench_history)]::bigint[]";
    let sums: Vec<i64> = cluster.connect().query_one(sums, &[]).unwrap().get(0);
    assert!(sums.iter().all(|sum| *sum == sums[0]), "{sums:?}");
}

/// The server's own check of heap and indexes (pg_amcheck needs 14).
pub fn check_structure(cluster: &Cluster) {
    cluster.sql("CREATE EXTENSION IF NOT EXISTS amcheck");
    if crate::cluster::major() >= 14 {
        run(cluster.client_tool("pg_amcheck").args([
            "--all",
            "--heapallindexed",
            "--parent-check",
            "--exclude-database=template0",
        ]));
    } else {
        cluster.sql("SELECT bt_index_parent_check(c.oid, true) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid \
                     JOIN pg_am a ON a.oid = c.relam WHERE a.amname = 'btree' AND c.relpersistence = 'p' AND i.indisvalid");
    }
}

/// Every page has the checksum that it says, by the server's own tool on the stopped cluster.
pub fn check_page_sums(cluster: &mut Cluster) {
    assert_eq!(cluster.text("SHOW data_checksums"), "on");
    cluster.stop();
    // The form of the control file is one from 13 to 16, and each later version has its own.
    let form = |major: u32| major.max(16);
    if form(major()) == form(newest_installed_major()) {
        let said = run(Command::new(client_program("pg_checksums"))
            .args(["--check", "-D"])
            .arg(&cluster.data));
        assert!(said.contains("Bad checksums:  0"), "{said}");
        cluster.start();
    } else {
        // The server reads all of it anew.
        cluster.start();
        check_structure(cluster);
        let failures = "SELECT coalesce(sum(checksum_failures), -1)::bigint FROM pg_stat_database";
        assert_eq!(cluster.number(failures), 0);
    }
}
