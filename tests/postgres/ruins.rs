//! A cluster that is damaged in every way is restored over, and what was there stays beside the new data.

use std::fs;

use super::*;

/// What befalls a data directory.
type Damage<'a> = &'a dyn Fn(&Path);

/// Bytes that no server wrote.
fn garbage(path: &Path) {
    let size = usize::try_from(fs::metadata(path).unwrap().len()).unwrap();
    fs::write(path, vec![0xA5; size]).unwrap();
}

fn files(directory: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(directory).unwrap();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.is_file());
    files
}

#[test]
fn a_damaged_cluster_is_restored_over_without_a_hand() {
    let source = Cluster::new();
    source.sql("CREATE TABLE t AS SELECT generate_series(1, 20000) AS id");
    let table = source.text("SELECT pg_relation_filepath('t')");
    let place = Place::new();
    let manifest = place.backup(&mut service(&source), || ()).unwrap();
    let record = manifest.archive("db").unwrap();
    let ruins: [(&str, Damage<'_>); 6] = [
        ("bad pages", &|data| garbage(&data.join(&table))),
        ("missing relations", &|data| {
            fs::remove_dir_all(data.join("base")).unwrap();
        }),
        ("broken WAL", &|data| {
            for file in files(&data.join("pg_wal")) {
                garbage(&file);
            }
        }),
        ("no control file", &|data| {
            fs::remove_file(data.join("global/pg_control")).unwrap();
        }),
        ("a broken control file", &|data| {
            garbage(&data.join("global/pg_control"));
        }),
        ("no version, and the lock of a server that died", &|data| {
            fs::remove_file(data.join("PG_VERSION")).unwrap();
            fs::write(data.join("postmaster.pid"), "999999\n").unwrap();
        }),
    ];
    for (ruin, damage) in ruins {
        let mut target = Cluster::new();
        target.sql("CREATE TABLE lost (id int)");
        target.stop();
        let relation = target.data.join(&table);
        if !relation.exists() {
            fs::write(&relation, [1; 8192]).unwrap();
        }
        damage(&target.data);
        let mut restore = PostgresRestore::new(&config(&[]), &target.stack()).unwrap();
        let checks = place.block_on(restore.preflight(record));
        let bad: Vec<_> = checks.iter().filter(|c| c.outcome.is_err()).collect();
        assert!(bad.is_empty(), "{ruin}: {bad:?}");
        let told = target::find(&checks, "cluster").outcome.as_ref().unwrap();
        assert!(!told.contains("no data yet"), "{ruin}: {told}");

        place.restore(&mut target);
        assert_eq!(target.number("SELECT count(*) FROM t"), 20_000, "{ruin}");
        let old = target.data.parent().unwrap().join("old");
        assert!(old.join("global").is_dir(), "{ruin}");
    }
}
