//! Relations cross from one file to the next, and back, while they are copied.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

const SEGMENT_BYTES: u64 = 1 << 30;

/// A table whose first file is all but full, of empty pages that take no room on the disk.
fn nearly_full(cluster: &mut Cluster) -> PathBuf {
    cluster.sql("CREATE TABLE big (id bigint, body text); INSERT INTO big VALUES (0, 'first')");
    let file = cluster
        .data
        .join(cluster.text("SELECT pg_relation_filepath('big')"));
    cluster.stop();
    std::fs::File::options()
        .write(true)
        .open(&file)
        .unwrap()
        .set_len(SEGMENT_BYTES - (64 << 13))
        .unwrap();
    cluster.start();
    file
}

/// Backs up, and does some work between the opening of a file and the end of the copy.
fn while_read(cluster: &Cluster, place: &Place, file: &Path, work: &str) {
    let over = AtomicBool::new(false);
    let open = || {
        let files = std::fs::read_dir("/proc/self/fd").unwrap();
        files
            .filter_map(Result::ok)
            .any(|entry| std::fs::read_link(entry.path()).is_ok_and(|target| target == file))
    };
    let work = || {
        let mut client = cluster.connect();
        while !open() {
            assert!(!over.load(Ordering::SeqCst), "the file was never read");
            std::thread::yield_now();
        }
        for statement in work.split(';') {
            client.batch_execute(statement).unwrap();
        }
    };
    std::thread::scope(|scope| {
        let working = scope.spawn(work);
        let backup = place.backup(&mut service(cluster), || {
            over.store(true, Ordering::SeqCst);
            working.join().unwrap();
        });
        over.store(true, Ordering::SeqCst);
        backup.unwrap()
    });
}

#[test]
fn a_relation_that_grows_past_its_first_file_and_shrinks_below_it_comes_back() {
    let mut cluster = Cluster::with(&[], &["autovacuum=off", "max_wal_size=1GB"]);
    let file = nearly_full(&mut cluster);
    let name = format!("{}.1", file.file_name().unwrap().to_str().unwrap());
    let second = file.with_file_name(name);
    let place = Place::new();
    let rows = |cluster: &Cluster| cluster.text("SELECT count(*) || ', ' || sum(id) FROM big");
    let restored = || {
        let mut target = Cluster::empty();
        target.set_options(&["max_wal_size=1GB"]);
        place.restore(&mut target);
        check_structure(&target);
        rows(&target)
    };

    assert!(!second.exists());
    let more = "INSERT INTO big SELECT g, repeat('x', 1000) FROM generate_series(1, 5000) g";
    while_read(&cluster, &place, &file, more);
    assert!(std::fs::metadata(&second).unwrap().len() > 1 << 20);
    assert_eq!(restored(), "5001, 12502500");

    while_read(
        &cluster,
        &place,
        &file,
        "DELETE FROM big WHERE id > 0; VACUUM big",
    );
    assert_eq!(std::fs::metadata(&second).unwrap().len(), 0);
    assert!(std::fs::metadata(&file).unwrap().len() < 1 << 20);
    assert_eq!(restored(), "1, 0");
}
