//! What cannot be backed up or restored is refused with a sentence that says what to do.

use super::*;

#[test]
fn a_server_that_cannot_be_reached_or_entered_is_a_sentence() {
    let cluster = Cluster::new();
    let place = Place::new();
    let attempt = |vars: &[(&str, &str)]| {
        let mut service = Postgres::new(&config(vars), &cluster.stack()).unwrap();
        place.backup(&mut service, || ())
    };
    refused(
        attempt(&[("POSTGRES_PASSWORD", "wrong secret")]),
        ErrorKind::Denied,
        &["password of user \"postgres\"", "POSTGRES_PASSWORD"],
    );
    refused(
        attempt(&[("POSTGRES_USER", "nobody"), ("POSTGRES_PASSWORD", "x")]),
        ErrorKind::Denied,
        &["\"nobody\""],
    );
    refused(
        attempt(&[("POSTGRES_PORT", "1")]),
        ErrorKind::Unreachable,
        &["127.0.0.1, port 1", "Is it running"],
    );
    refused(
        attempt(&[("POSTGRES_HOST", "no-such-host.invalid")]),
        ErrorKind::Unreachable,
        &["no-such-host.invalid"],
    );
    // The database is of no importance: another is tried.
    attempt(&[("POSTGRES_DB", "not there")]).unwrap();
    assert_nothing_left(&cluster);
}

#[test]
fn only_the_servers_own_data_directory_is_taken() {
    let (cluster, other) = (Cluster::new(), Cluster::new());
    let place = Place::new();
    let mut stack = cluster.stack();
    let attempt = |stack: &StackService, vars: &[(&str, &str)]| {
        place.backup(&mut Postgres::new(&config(vars), stack).unwrap(), || ())
    };
    stack.mounts.clear();
    refused(
        attempt(&stack, &[]),
        ErrorKind::Setup,
        &[
            "is not mounted here",
            cluster.data.to_str().unwrap(),
            "POSTGRES_DATA",
        ],
    );
    refused(
        attempt(&stack, &[("POSTGRES_DATA", other.data.to_str().unwrap())]),
        ErrorKind::Setup,
        &["another cluster", "system identifier"],
    );
    refused(
        attempt(&stack, &[("POSTGRES_DATA", "/usr")]),
        ErrorKind::Setup,
        &["/usr is not PostgreSQL's data directory"],
    );
    // A copy from before the latest checkpoint: the same cluster, stale.
    let copy = cluster.home.path().join("copy");
    run(std::process::Command::new("cp")
        .arg("-a")
        .arg(&cluster.data)
        .arg(&copy));
    cluster.sql("CREATE TABLE since (id int); CHECKPOINT");
    refused(
        attempt(&stack, &[("POSTGRES_DATA", copy.to_str().unwrap())]),
        ErrorKind::Setup,
        &["is a copy of the server's data directory"],
    );
    attempt(&stack, &[("POSTGRES_DATA", cluster.data.to_str().unwrap())]).unwrap();
    assert_nothing_left(&cluster);
}

#[test]
fn a_server_with_minimal_wal_is_refused() {
    let cluster = Cluster::with(&[], &["wal_level=minimal", "max_wal_senders=0"]);
    let place = Place::new();
    refused(
        place.backup(&mut service(&cluster), || ()),
        ErrorKind::Setup,
        &["wal_level = minimal", "ALTER SYSTEM SET wal_level"],
    );
    let checks = place.block_on(service(&cluster).check());
    assert!(
        checks
            .iter()
            .any(|c| c.outcome.as_ref().is_err_and(|e| e.contains("wal_level")))
    );
}

#[test]
fn a_role_with_the_rights_the_check_names_can_back_up() {
    let cluster = Cluster::new();
    cluster.sql("CREATE ROLE backup LOGIN PASSWORD 'b'");
    let place = Place::new();
    let as_role = || {
        let vars = [("POSTGRES_USER", "backup"), ("POSTGRES_PASSWORD", "b")];
        Postgres::new(&config(&vars), &cluster.stack()).unwrap()
    };
    refused(
        place.backup(&mut as_role(), || ()),
        ErrorKind::Denied,
        &["GRANT pg_read_all_settings TO \"backup\""],
    );
    // Each sentence says what to run; running it leads on to the next, and in the end to a backup.
    let mut granted = 0;
    loop {
        let checks = place.block_on(as_role().check());
        let Some(sentence) = checks.into_iter().find_map(|c| c.outcome.err()) else {
            break;
        };
        let (_, statements) = sentence.split_once("run ").unwrap();
        cluster.sql(statements.trim_end_matches(';'));
        granted += 1;
        assert!(granted < 5, "{sentence}");
    }
    assert_eq!(granted, 2);
    let manifest = place.backup(&mut as_role(), || ()).unwrap();
    assert_eq!(manifest.archive("db").unwrap().report.warnings, [""; 0]);
    assert_nothing_left(&cluster);

    // Without slots it works, too, and is said.
    cluster.sql("ALTER ROLE backup NOREPLICATION");
    let manifest = place.backup(&mut as_role(), || ()).unwrap();
    let warnings = &manifest.archive("db").unwrap().report.warnings;
    assert!(warnings[0].contains("no replication slot"), "{warnings:?}");
}

#[test]
fn wal_that_is_gone_is_noticed_before_the_backup_is_called_one() {
    let cluster = Cluster::with(
        &["--wal-segsize=1"],
        &[
            "max_replication_slots=0",
            "max_wal_senders=0",
            "min_wal_size=2MB",
            "wal_recycle=on",
        ],
    );
    cluster.sql(
        "CREATE TABLE filler AS SELECT repeat('z', 1000) AS body FROM generate_series(1, 5000)",
    );

    // Several segments in a backup.
    let place = Place::new();
    let fill = "INSERT INTO filler SELECT repeat('z', 1000) FROM generate_series(1, 5000)";
    let manifest = place
        .backup(&mut service(&cluster), || cluster.sql(fill))
        .unwrap();
    let facts = Facts::of(&manifest.archive("db").unwrap().report).unwrap();
    assert!(facts.wal_segments > 3, "{facts:?}");
    let mut target = Cluster::empty();
    place.restore(&mut target);
    assert_eq!(target.number("SELECT count(*) FROM filler"), 10_000);

    // Without a slot the server removes what the backup needs: found at the end, and no backup.
    let lose = || {
        for _ in 0..3 {
            cluster.sql(&format!("{fill}; {fill}; CHECKPOINT"));
        }
    };
    refused(
        place.backup(&mut service(&cluster), lose),
        ErrorKind::Setup,
        &["removed the WAL segment", "wal_keep_size"],
    );
    assert_nothing_left(&cluster);
}

#[test]
fn a_half_restored_directory_is_not_prepared() {
    let cluster = Cluster::new();
    let place = Place::new();
    place.backup(&mut service(&cluster), || ()).unwrap();
    let target = Cluster::empty();
    let mut restore = PostgresRestore::new(&config(&[]), &target.stack()).unwrap();
    let staged = target.home.path().join("staged");
    let record = place.unpack(&restore, &staged);
    let facts = Facts::of(&record.report).unwrap();
    let wal = format!("pg_wal/{}", facts.first_segment);
    for (file, word) in [
        ("backup_label", "backup_label"),
        ("global/pg_control", "pg_control"),
        ("PG_VERSION", "PG_VERSION"),
        (wal.as_str(), "WAL segment"),
    ] {
        let (path, aside) = (staged.join(file), staged.join("aside"));
        std::fs::rename(&path, &aside).unwrap();
        let prepared = place.block_on(restore.prepare(&staged, &record, &place.run()));
        let text = prepared.unwrap_err().to_string();
        assert!(text.contains(word), "{file}: {text}");
        std::fs::rename(&aside, &path).unwrap();
    }
    std::fs::write(staged.join("backup_label"), "").unwrap();
    let prepared = place.block_on(restore.prepare(&staged, &record, &place.run()));
    refused(prepared, ErrorKind::Damaged, &["START WAL LOCATION"]);
}

#[test]
fn preflight_refuses_another_version_and_tells_of_another_cluster() {
    let (cluster, other) = (Cluster::new(), Cluster::new());
    let place = Place::new();
    let manifest = place.backup(&mut service(&cluster), || ()).unwrap();
    let record = manifest.archive("db").unwrap();
    let look = |stack: &StackService| {
        let mut restore = PostgresRestore::new(&config(&[]), stack).unwrap();
        place.block_on(restore.preflight(record))
    };
    let find = |checks: &[lifeboat::services::Check], what: &str| {
        let check = checks.iter().find(|c| c.subject.ends_with(what)).unwrap();
        check.outcome.clone()
    };
    let same = look(&cluster.stack());
    assert!(same.iter().all(|c| c.outcome.is_ok()), "{same:?}");
    assert!(find(&same, "cluster").unwrap().contains("that is there"));

    let foreign = look(&other.stack());
    assert!(find(&foreign, "cluster").unwrap().contains("ANOTHER"));

    let mut newer = cluster.stack();
    newer.environment.insert("PG_MAJOR".into(), "99".into());
    let why = find(&look(&newer), "version").unwrap_err();
    assert!(why.contains("PostgreSQL 99"), "{why}");

    let mut read_only = cluster.stack();
    read_only.mounts[0].read_only = true;
    let why = find(&look(&read_only), "data directory").unwrap_err();
    assert!(why.contains("read-only"), "{why}");

    let empty = look(&Cluster::empty().stack());
    assert_eq!(find(&empty, "cluster").unwrap(), "there is no data yet");
}
