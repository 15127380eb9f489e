//! The program is killed while it backs up: the server is left with nothing of it, and the repository is whole.

use std::process::{Command, Stdio};
use std::time::Instant;

use super::*;

const KILLS: usize = 10;

#[test]
fn a_program_that_is_killed_leaves_nothing_in_the_server() {
    let cluster = Cluster::new();
    run(cluster.client_tool("pgbench").args(["-i", "-q", "-s", "2"]));
    let place = Place::new();
    let backup = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lifeboat"));
        place.environment(&mut command, &cluster);
        command
            .arg("backup")
            // So that most of the moments are in the copy.
            .env("BACKUP_RATE_LIMIT", "30MB")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let began = Instant::now();
    assert!(backup().wait().unwrap().success());
    let whole = began.elapsed();

    let slots = "SELECT count(*) FROM pg_replication_slots";
    let newest = || place.repository().resolve("latest").unwrap();
    let mut while_held = 0;
    for _ in 0..KILLS {
        // Nothing was changed, and it would have little to read.
        cluster.sql("VACUUM FULL pgbench_accounts");
        let before = newest();
        let mut child = backup();
        std::thread::sleep(whole.mul_f64(rand::random_range(0.0..1.1)));
        while_held += cluster.number(slots);
        child.kill().unwrap();
        let ended = child.wait().unwrap();
        assert!(ended.success() || ended.code().is_none(), "{ended}");
        assert_nothing_left(&cluster);
        // It may have been killed between its last write and its end.
        assert!(!ended.success() || newest() != before);
        let repository = place.repository();
        for backup in repository.backups().unwrap() {
            repository.manifest(&backup).unwrap();
        }
    }
    assert!(while_held > 0, "none of {KILLS} came during a backup");

    place.backup(&mut service(&cluster), || ()).unwrap();
    verify::accepts(&place);
    let mut target = Cluster::empty();
    place.restore(&mut target);
    check_sums(&target);
    check_structure(&target);
}
