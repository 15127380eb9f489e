//! Server and sidecar die at random moments: what is lost is never older than the interval and a second.

use std::path::Path;
use std::process::Child;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lifeboat::services::postgres::pitr::Target;

use crate::cluster::{Cluster, PASSWORD};
use crate::site::Site;

const KILLS: usize = 50;
/// How many there are of them, where 50 would take too long.
const KILLS_VARIABLE: &str = "LIFEBOAT_TEST_DISASTERS";
/// The data grows with each: a base backup now and then is what a schedule would make.
const KILLS_PER_BACKUP: usize = 10;
const INTERVAL: Duration = Duration::from_secs(1);

/// The program itself, fetching.
struct Sidecar(Child);

impl Sidecar {
    fn start(site: &Site, cluster: &Cluster, log: &Path) -> Self {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .unwrap();
        let mut command = site.command(&["run"]);
        command
            .env("BACKUP_CRON_EXPRESSION", "0 0 1 1 *")
            .env("PITR", "on")
            .env("PITR_INTERVAL", "1s")
            .env("POSTGRES_HOST", "127.0.0.1")
            .env("POSTGRES_PORT", cluster.port.to_string())
            .env("POSTGRES_USER", "postgres")
            .env("POSTGRES_PASSWORD", PASSWORD)
            .env("POSTGRES_DATA", &cluster.data)
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        Self(command.spawn().unwrap())
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Commits, and when each was acknowledged.
struct Writer {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<Vec<(i64, Instant)>>>,
    thread: JoinHandle<()>,
}

impl Writer {
    fn start(cluster: &Cluster, first: i64) -> Self {
        let mut client = cluster.connect();
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(Mutex::new(Vec::new()));
        let (stopped, told) = (Arc::clone(&stop), Arc::clone(&acknowledged));
        let thread = std::thread::spawn(move || {
            let mut id = first;
            while !stopped.load(Ordering::SeqCst) {
                let insert = "INSERT INTO ledger VALUES ($1, repeat('x', 200))";
                // The server dies under it.
                if client.execute(insert, &[&id]).is_err() {
                    return;
                }
                told.lock().unwrap().push((id, Instant::now()));
                id += 1;
            }
        });
        Self {
            stop,
            acknowledged,
            thread,
        }
    }

    fn end(self) -> Vec<(i64, Instant)> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap();
        std::mem::take(&mut *self.acknowledged.lock().unwrap())
    }
}

fn wait_for_capture(site: &Site, cluster: &Cluster, log: &Path) {
    let wanted = crate::site::lsn(cluster);
    let deadline = Instant::now() + Duration::from_mins(2);
    loop {
        let reached = site
            .choose(&Target::Latest, None)
            .is_ok_and(|(_, replay)| replay.goes_on() && replay.end() >= wanted);
        if reached {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "nothing is fetched: {}",
            std::fs::read_to_string(log).unwrap_or_default()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn no_disaster_costs_more_than_the_interval_and_a_second() {
    let site = Site::new();
    let log = site.place.state().join("log");
    let mut cluster = Cluster::new();
    cluster.sql("CREATE TABLE ledger (id bigint PRIMARY KEY, body text)");
    let mut first = 1;
    let (mut worst, mut written) = (Duration::ZERO, 0);
    let kills = std::env::var(KILLS_VARIABLE).map_or(KILLS, |text| text.parse().unwrap());
    for round in 0..kills {
        if round % KILLS_PER_BACKUP == 0 {
            site.backup(&cluster);
        }
        let sidecar = Sidecar::start(&site, &cluster, &log);
        cluster.sql("CHECKPOINT");
        wait_for_capture(&site, &cluster, &log);
        let writer = Writer::start(&cluster, first);
        std::thread::sleep(Duration::from_millis(rand::random_range(50..2500)));
        // Both at once, as when the machine is gone.
        let death = Instant::now();
        sidecar.kill();
        cluster.kill();
        let acknowledged = writer.end();
        written += acknowledged.len();
        let restored = site.restore(&Target::Latest, &[]);
        let newest = restored.number("SELECT coalesce(max(id), 0) FROM ledger");
        assert_eq!(restored.number("SELECT count(*) FROM ledger"), newest);
        let lost = acknowledged.iter().find(|(id, _)| *id > newest);
        let cost = lost.map_or(Duration::ZERO, |(_, at)| {
            death.saturating_duration_since(*at)
        });
        assert!(
            cost <= INTERVAL + Duration::from_secs(1),
            "round {round}: {cost:?} of acknowledged commits are lost"
        );
        worst = worst.max(cost);
        first = newest + 1;
        cluster = restored;
    }
    eprintln!("{kills} disasters; the worst cost {worst:?} of acknowledged commits");
    // Of a few short lives nothing may be left, but each had commits to lose.
    assert!(written > kills, "{written}");
}

#[test]
fn a_server_that_answers_after_the_sidecar_began_is_backed_up_all_the_same() {
    let site = Site::new();
    let log = site.place.state().join("log");
    let mut cluster = Cluster::new();
    cluster.stop();
    let sidecar = Sidecar::start(&site, &cluster, &log);
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    let deadline = Instant::now() + Duration::from_mins(2);
    let wait_for = |is_there: &dyn Fn() -> bool| {
        while !is_there() {
            assert!(Instant::now() < deadline, "{}", said());
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    // The one that is asked for at once fails.
    wait_for(&|| said().contains("the backup FAILED"));
    cluster.start();
    let backups = site.place.state().with_file_name("repo").join("backups");
    let whole = || {
        let mut all = std::fs::read_dir(&backups).into_iter().flatten().flatten();
        all.any(|backup| backup.path().join("manifest.json").exists())
    };
    wait_for(&whole);
    sidecar.kill();
}
