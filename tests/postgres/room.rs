//! A disk that runs full is the backup's failure, and not the server's.

use super::*;
use crate::mount::Mount;

#[test]
fn a_disk_that_fills_during_a_backup_costs_the_backup_and_not_the_server() {
    let disk = Mount::tmpfs(256);
    let cluster = Cluster::with(
        &["--waldir", disk.path().to_str().unwrap()],
        &["min_wal_size=32MB"],
    );
    cluster.sql("CREATE TABLE filler (body text)");
    let place = Place::new();
    let more = "INSERT INTO filler SELECT repeat('x', 1000) FROM generate_series(1, 900)";
    // More than the disk takes.
    let fill = || {
        let mut client = cluster.connect();
        for _ in 0..330 {
            client.batch_execute(more).unwrap();
        }
    };
    refused(
        place.backup(&mut service(&cluster), fill),
        ErrorKind::Setup,
        &[
            "removed the WAL segment",
            "was given up before the server ran out of room",
            "make room where pg_wal lies",
        ],
    );
    assert_nothing_left(&cluster);
    assert_eq!(
        cluster.number("SELECT count(*) FROM filler"),
        330 * 900,
        "{}",
        cluster.log_text()
    );
    // What is written meanwhile must be kept, and there is room for it.
    let less = || cluster.sql(&format!("{more}; {more}; {more}"));
    let manifest = place.backup(&mut service(&cluster), less).unwrap();
    let warnings = &manifest.archive("db").unwrap().report.warnings;
    assert!(
        !warnings.iter().any(|said| said.contains("slot")),
        "{warnings:?}"
    );
}
