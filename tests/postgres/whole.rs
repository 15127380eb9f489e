//! What a backup holds is what the server had, and only a whole restore starts.

use std::collections::BTreeMap;

use super::*;

/// Sizes and checksums of the files below a directory, by the backup's own list.
fn listed(place: &Place, backup: &Manifest, below: &str) -> BTreeMap<String, (u64, String)> {
    let list: serde_json::Value = serde_json::from_str(&verify::list(place, backup)).unwrap();
    let files = list["Files"].as_array().unwrap();
    let entry = |file: &serde_json::Value| {
        let path = file["Path"].as_str().unwrap().to_owned();
        let sum = file["Checksum"].as_str().unwrap().to_owned();
        (path, (file["Size"].as_u64().unwrap(), sum))
    };
    let all = files.iter().map(entry);
    all.filter(|(path, _)| path.starts_with(below)).collect()
}

#[test]
fn a_backup_by_what_changed_is_equal_to_one_that_reads_everything() {
    let cluster = Cluster::with(&[], &["autovacuum=off"]);
    let filled = "AS SELECT g AS id, repeat('x', 200) AS body FROM generate_series(1, 40000) g";
    cluster.sql(&format!(
        "CREATE TABLE updated {filled}; CREATE TABLE cut {filled}; CREATE TABLE forged {filled}; \
         CREATE TABLE rewritten {filled}; CREATE TABLE still {filled}"
    ));
    cluster.sql("VACUUM FREEZE; CHECKPOINT");
    let path = |table: &str| cluster.text(&format!("SELECT pg_relation_filepath('{table}')"));
    cluster.wait_for_zero(
        "SELECT (clock_timestamp() - checkpoint_time < '4 s')::int::bigint FROM pg_control_checkpoint()",
    );
    let (place, fresh) = (Place::new(), Place::new());
    let first = place.backup(&mut service(&cluster), || ()).unwrap();

    // Visibility cleared, truncated and extended again, rewritten under another number, and copied as files.
    cluster
        .sql("UPDATE updated SET body = 'y' WHERE id % 1000 = 0; DELETE FROM cut WHERE id > 100");
    cluster.sql("VACUUM cut");
    cluster.sql("INSERT INTO cut SELECT g, 'z' FROM generate_series(1, 30000) g");
    cluster.sql("VACUUM FULL rewritten");
    let strategy = if major() >= 15 {
        " STRATEGY file_copy"
    } else {
        ""
    };
    cluster.sql(&format!(
        "CREATE DATABASE copied TEMPLATE template1{strategy}"
    ));
    let forged = cluster.data.join(path("forged"));
    let before = std::fs::metadata(&forged).unwrap().modified().unwrap();
    cluster.sql("UPDATE forged SET body = 'changed' WHERE id = 7");
    cluster.sql("VACUUM FREEZE; CHECKPOINT");
    let file = std::fs::File::options().write(true).open(&forged).unwrap();
    file.set_modified(before).unwrap();

    let second = place.backup(&mut service(&cluster), || ()).unwrap();
    let full = fresh.backup(&mut service(&cluster), || ()).unwrap();
    let read = |manifest: &Manifest| manifest.archive("db").unwrap().read_bytes;
    assert!(read(&second) < read(&full) && read(&second) < read(&first));
    let directory = |name: &str| {
        let oid = cluster.text(&format!(
            "SELECT oid::text FROM pg_database WHERE datname = '{name}'"
        ));
        format!("base/{oid}/")
    };
    for database in ["postgres", "copied"] {
        // Catalogs may get hints of what is committed from whoever reads them.
        let relations = |place: &Place, backup: &Manifest| {
            let mut files = listed(place, backup, &directory(database));
            let own = |path: &str| {
                let name = path.rsplit('/').next().unwrap();
                let node = name.split(['.', '_']).next().unwrap().parse::<u32>();
                database == "copied" || node.is_ok_and(|node| node >= 16384)
            };
            files.retain(|path, _| own(path));
            files
        };
        let (changed, whole) = (relations(&place, &second), relations(&fresh, &full));
        assert!(changed.len() > 5, "{changed:?}");
        assert_eq!(changed, whole);
    }
    verify::accepts(&place);
}

#[test]
fn a_standby_is_refused_as_a_source() {
    let mut cluster = Cluster::new();
    cluster.stop();
    let signal = cluster.data.join("standby.signal");
    std::fs::write(&signal, "").unwrap();
    own(&signal, 0o600);
    cluster.start();
    let place = Place::new();
    refused(
        place.backup(&mut service(&cluster), || ()),
        ErrorKind::Setup,
        &["a standby", "back up its primary"],
    );
    // It is one when it was promoted.
    cluster.sql("SELECT pg_promote()");
    cluster.wait_for_zero("SELECT pg_is_in_recovery()::int::bigint");
    let manifest = place.backup(&mut service(&cluster), || ()).unwrap();
    let facts = Facts::of(&manifest.archive("db").unwrap().report).unwrap();
    assert_eq!(facts.timeline, 2);
    verify::accepts(&place);
}

#[test]
fn a_restore_that_was_cut_short_leaves_nothing_that_starts() {
    let cluster = Cluster::new();
    cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 10000) AS id");
    let place = Place::new();
    let manifest = place.backup(&mut service(&cluster), || ()).unwrap();
    let bytes = manifest.archive("db").unwrap().raw_bytes;
    // In the middle, before the WAL's end, and when all but the control file is there.
    for cut in [bytes / 2, bytes - (8 << 20), bytes - 10_000] {
        let mut target = Cluster::empty();
        let restore = PostgresRestore::new(&config(&[]), &target.stack()).unwrap();
        let staged = target.home.path().join("staged");
        place.unpack_first(&restore, &staged, cut);
        assert!(
            !staged.join("global/pg_control").exists(),
            "{cut} of {bytes}"
        );
        assert!(staged.join("PG_VERSION").exists(), "{cut} of {bytes}");
        std::fs::remove_dir(&target.data).unwrap();
        std::fs::rename(&staged, &target.data).unwrap();
        own(&target.data, 0o700);
        let said = target.refuses_to_start();
        // In the middle its settings are not there either.
        let lacks = ["could not find the database system", "configuration file"];
        assert!(lacks.iter().any(|what| said.contains(what)), "{said}");
    }
}

#[test]
fn segments_of_every_size_come_back() {
    for mib in [1, 64] {
        let cluster = Cluster::with(&[&format!("--wal-segsize={mib}")], &["max_wal_size=1GB"]);
        cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS id");
        // What servers leave of sorts, which no backup holds.
        let sorts = cluster.data.join("base/pgsql_tmp");
        std::fs::create_dir_all(&sorts).unwrap();
        own(&sorts, 0o700);
        std::fs::write(sorts.join("pgsql_tmp1234.0"), "x").unwrap();
        let place = Place::new();
        let more = "INSERT INTO t SELECT generate_series(1001, 50000)";
        let manifest = place
            .backup(&mut service(&cluster), || cluster.sql(more))
            .unwrap();
        assert!(listed(&place, &manifest, "base/pgsql_tmp").is_empty());
        assert!(!listed(&place, &manifest, "base/").is_empty());
        verify::accepts(&place);
        let mut target = Cluster::empty();
        target.set_options(&["max_wal_size=1GB"]);
        place.restore(&mut target);
        assert_eq!(target.number("SELECT count(*) FROM t"), 50_000, "{mib} MiB");
    }
}
