//! n8n: SQLite with a live writer, keys, PostgreSQL, and n8n itself in a container.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "adapters/n8n.rs"]
mod home;
#[path = "adapters/place.rs"]
mod place;

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use home::{Container, Home, KEY, POSTGRES_IMAGE, Writer, run_n8n, schema, start_n8n};
use lifeboat::repository::manifest::Manifest;
use lifeboat::restore::{Restore, Way};
use lifeboat::services::n8n::{N8n, N8nRestore};
use lifeboat::services::{ErrorKind, Service, ServiceKind};
use lifeboat::stack::ContainerRef;
use place::{Place, files_below, mount, service, wait_for};
use rusqlite::Connection;

/// Not a test of its own: the writer's process runs it.
#[test]
fn write_for_another_test() {
    let (Some(database), Some(ledger)) = (
        std::env::var_os("WRITER_DATABASE"),
        std::env::var_os("WRITER_LEDGER"),
    ) else {
        return;
    };
    let database = Connection::open(database).unwrap();
    database.busy_timeout(Duration::from_secs(10)).unwrap();
    let mut ledger = std::fs::File::create(ledger).unwrap();
    for n in 1_u32.. {
        let body = "x".repeat(500 + n as usize % 3000);
        database
            .execute("INSERT INTO ledger VALUES (?1, ?2)", (n, body))
            .unwrap();
        ledger.write_all(b"+").unwrap();
    }
}

fn rows(database: &Path) -> (i64, i64) {
    let database = Connection::open(database).unwrap();
    let ok: String = database
        .query_row("PRAGMA integrity_check", [], |r| r.get(0))
        .unwrap();
    assert_eq!(ok, "ok");
    database
        .query_row(
            "SELECT count(*), coalesce(max(n), 0) FROM ledger",
            [],
            |r| Ok((r.get(0)?, r.get(1)?)),
        )
        .unwrap()
}

fn archive_names(place: &Place, manifest: &Manifest) -> Vec<String> {
    let out = place.path("listed");
    place.extract(manifest, &out);
    files_below(&out).into_keys().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn copy_under_a_writer_is_one_instant_and_holds_all_that_was_committed() {
    let place = Place::new();
    let home = Home::new(&place);
    let writer = Writer::start(&place, &home.database()).await;
    for round in 0..3 {
        let mut n8n = N8n::new(&place.config(&[]), &home.service(&[])).unwrap();
        let before = writer.acknowledged();
        let manifest = place.backup(&mut n8n).await.unwrap();
        let out = place.path(&format!("out{round}"));
        place.extract(&manifest, &out);
        let (count, newest) = rows(&out.join("database.sqlite"));
        assert_eq!(count, newest, "rows without a gap");
        assert!(
            count >= before,
            "{count} rows of {before} acknowledged before"
        );
    }
    let at = writer.acknowledged();
    wait_for("the writer to go on", async || writer.acknowledged() > at).await;
    assert!(
        std::fs::read_dir(place.path("scratch"))
            .unwrap()
            .next()
            .is_none()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_database_with_and_without_a_log_left_behind() {
    let place = Place::new();
    let home = Home::new(&place);
    let mut writer = Writer::start(&place, &home.database()).await;
    writer.child.kill().unwrap();
    writer.child.wait().unwrap();
    let written = writer.acknowledged();
    // As on a read-only mount after a crash: the log is there, the shared memory is not.
    let shm = home.0.join("database.sqlite-shm");
    std::fs::remove_file(&shm).unwrap();
    let main = std::fs::read(home.database()).unwrap();

    let mut n8n = N8n::new(&place.config(&[]), &home.service(&[])).unwrap();
    let manifest = place.backup(&mut n8n).await.unwrap();
    place.extract(&manifest, &place.path("out"));
    assert!(rows(&place.path("out/database.sqlite")).0 >= written);
    assert!(!shm.exists(), "nothing is created beside the database");
    assert_eq!(
        std::fs::read(home.database()).unwrap(),
        main,
        "nothing is checkpointed"
    );

    // Shut down cleanly: no log either.
    drop(
        Connection::open(home.database()).unwrap().query_row(
            "SELECT 1 FROM ledger",
            [],
            |_| Ok(()),
        ),
    );
    assert!(!home.0.join("database.sqlite-wal").exists());
    let mut n8n = N8n::new(&place.config(&[]), &home.service(&[])).unwrap();
    let manifest = place.backup(&mut n8n).await.unwrap();
    place.extract(&manifest, &place.path("clean"));
    assert!(rows(&place.path("clean/database.sqlite")).0 >= written);
}

#[tokio::test(flavor = "multi_thread")]
async fn archive_holds_files_and_facts_but_not_the_log_and_the_crash_mark() {
    let place = Place::new();
    let home = Home::new(&place);
    let mut n8n = N8n::new(&place.config(&[]), &home.service(&[("DB_TYPE", "sqlite")])).unwrap();
    let manifest = place.backup(&mut n8n).await.unwrap();
    let expected = [
        "config",
        "database.sqlite",
        "n8nEventLog.log",
        "storage/workflows/w1/binary",
    ];
    assert_eq!(archive_names(&place, &manifest), expected);
    let report = &manifest.archives[0].report;
    assert_eq!(report.version, "2.41.1");
    assert_eq!(
        (report.counts["workflows"], report.counts["credentials"]),
        (2, 1)
    );
    assert_eq!(report.facts["migration"], "Newest1789995003141");
    assert_eq!(report.facts["key_opens"], "a stored credential");
    assert!(!report.facts.to_string().contains(KEY));
    assert!(report.warnings.is_empty(), "{:?}", report.warnings);
}

#[tokio::test(flavor = "multi_thread")]
async fn unchanged_pages_of_the_database_are_stored_once() {
    let place = Place::new();
    let home = Home::new(&place);
    let database = Connection::open(home.database()).unwrap();
    for n in 0..400 {
        let body = format!("{n:08}").repeat(800);
        database
            .execute("INSERT INTO ledger VALUES (?1, ?2)", (n, body))
            .unwrap();
    }
    drop(database);
    let mut n8n = N8n::new(&place.config(&[]), &home.service(&[])).unwrap();
    let first = place.backup(&mut n8n).await.unwrap();
    let database = Connection::open(home.database()).unwrap();
    database
        .execute("UPDATE ledger SET body = 'small' WHERE n = 200", [])
        .unwrap();
    drop(database);
    let mut n8n = N8n::new(&place.config(&[]), &home.service(&[])).unwrap();
    let second = place.backup(&mut n8n).await.unwrap();
    assert!(first.raw_bytes > 2_000_000);
    assert!(
        second.stored_bytes < 60_000,
        "{} bytes for one changed row",
        second.stored_bytes
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_missing_and_contradicting_keys_are_refused_without_telling_them() {
    let wrong = "another-key-altogether";
    for (config_key, environment, part) in [
        (Some(wrong), None, "opens none of the stored credentials"),
        (None, None, "set N8N_ENCRYPTION_KEY"),
        (Some(KEY), Some(wrong), "differ"),
    ] {
        let place = Place::new();
        let home = Home::new(&place);
        match config_key {
            Some(key) => home.config(key),
            None => std::fs::remove_file(home.0.join("config")).unwrap(),
        }
        let environment: Vec<_> = environment
            .map(|key| ("N8N_ENCRYPTION_KEY", key))
            .into_iter()
            .collect();
        let mut n8n = N8n::new(&place.config(&[]), &home.service(&environment)).unwrap();
        let error = place.backup(&mut n8n).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Setup);
        assert!(error.message.contains(part), "{error}");
        let said = format!("{error:?} {n8n:?}");
        assert!(!said.contains(wrong) && !said.contains(KEY), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn links_and_pipes_in_place_of_n8ns_files_are_refused_at_once() {
    for file in ["config", "database.sqlite", "database.sqlite-wal"] {
        for target in ["", "/dev/zero"] {
            let place = Place::new();
            let home = Home::new(&place);
            let path = home.0.join(file);
            if path.exists() {
                std::fs::remove_file(&path).unwrap();
            }
            if target.is_empty() {
                let made = std::process::Command::new("mkfifo").arg(&path).status();
                assert!(made.unwrap().success());
            } else {
                std::os::unix::fs::symlink(target, &path).unwrap();
            }
            let mut n8n = N8n::new(&place.config(&[]), &home.service(&[])).unwrap();
            let error = tokio::time::timeout(Duration::from_secs(20), place.backup(&mut n8n))
                .await
                .unwrap()
                .unwrap_err();
            let said = error.message;
            assert!(
                said.contains(file) && said.contains("no regular file"),
                "{said}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn key_of_the_environment_is_kept_and_comes_back_as_n8ns_config() {
    let place = Place::new();
    let home = Home::new(&place);
    std::fs::remove_file(home.0.join("config")).unwrap();
    let found = home.service(&[("N8N_ENCRYPTION_KEY", KEY)]);
    let config = place.config(&[]);
    let manifest = place
        .backup(&mut N8n::new(&config, &found).unwrap())
        .await
        .unwrap();
    let staged = place.path("staged");
    place.extract(&manifest, &staged);
    assert_eq!(
        std::fs::read_to_string(staged.join(".lifeboat/encryption-key")).unwrap(),
        KEY
    );
    for left in ["database.sqlite-wal", "database.sqlite-shm"] {
        std::fs::write(staged.join(left), "of another state").unwrap();
    }

    let (_, record) = place.archive(&manifest);
    let mut restore = N8nRestore::new(&config, &home.service(&[])).unwrap();
    assert_eq!(
        restore.way(),
        Way::Swap {
            root: home.0.clone()
        }
    );
    for check in restore.preflight(&record).await {
        check.outcome.unwrap();
    }
    restore
        .prepare(&staged, &record, &place.run())
        .await
        .unwrap();
    let names: Vec<_> = files_below(&staged).into_keys().collect();
    assert_eq!(
        names,
        [
            "config",
            "database.sqlite",
            "n8nEventLog.log",
            "storage/workflows/w1/binary"
        ]
    );
    let restored: serde_json::Value =
        serde_json::from_slice(&std::fs::read(staged.join("config")).unwrap()).unwrap();
    assert_eq!(restored["encryptionKey"], KEY);
    assert!(!staged.join(".lifeboat").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn preflight_refuses_older_versions_other_databases_and_other_keys() {
    let place = Place::new();
    let home = Home::new(&place);
    let config = place.config(&[]);
    let manifest = place
        .backup(&mut N8n::new(&config, &home.service(&[])).unwrap())
        .await
        .unwrap();
    let (_, record) = place.archive(&manifest);
    let image = |tag: &str| ContainerRef {
        id: String::new(),
        name: "n8n".into(),
        image: format!("n8nio/n8n:{tag}"),
        image_digest: String::new(),
        running: false,
        stop_timeout: None,
        has_healthcheck: false,
    };
    for (tag, environment, bad) in [
        ("2.41.1", ("DB_TYPE", "sqlite"), None),
        ("2.100.0", ("DB_TYPE", "sqlite"), None),
        ("latest", ("N8N_ENCRYPTION_KEY", KEY), None),
        ("2.9.9", ("DB_TYPE", "sqlite"), Some("older n8n")),
        ("2.41.1", ("DB_TYPE", "postgresdb"), Some("uses postgres")),
        (
            "2.41.1",
            ("N8N_ENCRYPTION_KEY", "other"),
            Some("not the key of the backup"),
        ),
    ] {
        let mut found = home.service(&[environment]);
        found.container = Some(image(tag));
        let mut restore = N8nRestore::new(&config, &found).unwrap();
        let checks = restore.preflight(&record).await;
        let sentences: Vec<_> = checks.into_iter().filter_map(|c| c.outcome.err()).collect();
        match bad {
            None => assert!(sentences.is_empty(), "{sentences:?}"),
            Some(part) => {
                assert_eq!(sentences.len(), 1, "{sentences:?}");
                assert!(sentences[0].contains(part), "{sentences:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn key_is_proven_on_postgres_with_n8ns_own_login() {
    let place = Place::new();
    let home = Home::new(&place);
    let password = "POSTGRES_PASSWORD=p ss'w\"rd";
    let server = Container::run(&[
        "-e",
        password,
        "-e",
        "POSTGRES_DB=n8n",
        "-p",
        "127.0.0.1::5432",
        POSTGRES_IMAGE,
    ]);
    let ready = [
        "psql",
        "-h",
        "127.0.0.1",
        "-U",
        "postgres",
        "-d",
        "n8n",
        "-c",
        "SELECT 1",
    ];
    let password_variable = "PGPASSWORD=p ss'w\"rd";
    wait_for("PostgreSQL", async || {
        server.docker(&["exec", "-e", password_variable], &ready).0
    })
    .await;
    let (made, said) = server.docker(
        &["exec", "-u", "postgres"],
        &[
            "psql",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            "n8n",
            "-c",
            &schema(),
        ],
    );
    assert!(made, "{said}");

    let address = server.address("5432/tcp");
    let (host, port) = address.rsplit_once(':').unwrap();
    let right = [
        ("DB_TYPE", "postgresdb"),
        ("DB_POSTGRESDB_HOST", host),
        ("DB_POSTGRESDB_PORT", port),
        ("DB_POSTGRESDB_USER", "postgres"),
        ("DB_POSTGRESDB_PASSWORD", "p ss'w\"rd"),
    ];
    let config = place.config(&[]);
    let manifest = place
        .backup(&mut N8n::new(&config, &home.service(&right)).unwrap())
        .await
        .unwrap();
    let report = &manifest.archives[0].report;
    assert_eq!(report.version, "2.41.1");
    assert_eq!(report.counts["workflows"], 2);
    assert_eq!(report.facts["database"], "postgres");
    assert_eq!(report.facts["key_opens"], "a stored credential");
    assert!(report.warnings.is_empty(), "{:?}", report.warnings);
    let names = archive_names(&place, &manifest);
    assert!(
        !names.iter().any(|name| name.contains("database.sqlite")),
        "{names:?}"
    );

    let mut wrong = right;
    wrong[4].1 = "not it";
    let manifest = place
        .backup(&mut N8n::new(&config, &home.service(&wrong)).unwrap())
        .await
        .unwrap();
    let warnings = &manifest.archives[0].report.warnings;
    assert!(warnings[0].contains("was not proven"), "{warnings:?}");
    assert!(!warnings[0].contains("not it"));

    home.config("another-key-altogether");
    let error = place
        .backup(&mut N8n::new(&config, &home.service(&right)).unwrap())
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::Setup);
}

#[tokio::test(flavor = "multi_thread")]
async fn real_n8n_opens_its_credentials_after_a_hot_backup_and_a_restore() {
    let place = Place::new();
    let home = place.path("data/n8n");
    std::fs::create_dir(&home).unwrap();
    std::os::unix::fs::chown(&home, Some(1000), Some(1000)).unwrap();
    let server = start_n8n(&home);
    let url = format!("http://{}", server.address("5678/tcp"));
    let config = place.config(&[("N8N_URL", &url), ("RESTORE_TIMEOUT", "3m")]);
    let mut found = service(ServiceKind::N8n, "n8n");
    found.mounts = vec![mount("/home/node/.n8n", &home)];
    found.environment = [("NODE_ENV".to_owned(), "production".to_owned())].into();
    let ready = async |url: &str| {
        reqwest::get(format!("{url}/healthz/readiness"))
            .await
            .is_ok_and(|r| r.status().is_success())
    };
    wait_for("n8n", async || ready(&url).await).await;
    let credential = r#"[{"id":"c1","name":"demo","type":"httpHeaderAuth","data":{"name":"X-Key","value":"s3cret"}}]"#;
    std::fs::write(home.join("in.json"), credential).unwrap();
    let (imported, said) = server.docker(
        &["exec"],
        &[
            "n8n",
            "import:credentials",
            "--input=/home/node/.n8n/in.json",
        ],
    );
    assert!(imported, "{said}");

    let mut n8n = N8n::new(&config, &found).unwrap();
    for check in n8n.check().await {
        check.outcome.unwrap();
    }
    let manifest = place.backup(&mut n8n).await.unwrap();
    let report = &manifest.archives[0].report;
    assert!(report.version.starts_with("2."), "{}", report.version);
    assert_eq!(report.facts["key_opens"], "a stored credential");
    assert_eq!(report.counts["credentials"], 1);
    assert!(report.warnings.is_empty(), "{:?}", report.warnings);
    assert!(ready(&url).await, "n8n goes on");
    drop(server);

    let staged = place.path("data/staged");
    std::fs::create_dir(&staged).unwrap();
    std::os::unix::fs::chown(&staged, Some(1000), Some(1000)).unwrap();
    place.extract(&manifest, &staged);
    let (_, record) = place.archive(&manifest);
    let mut restore = N8nRestore::new(&config, &found).unwrap();
    let run = place.run();
    restore.prepare(&staged, &record, &run).await.unwrap();
    std::fs::remove_dir_all(&home).unwrap();
    std::fs::rename(&staged, &home).unwrap();
    let server = start_n8n(&home);
    let url = format!("http://{}", server.address("5678/tcp"));
    let config = place.config(&[("N8N_URL", &url), ("RESTORE_TIMEOUT", "3m")]);
    let mut restore = N8nRestore::new(&config, &found).unwrap();
    restore.settle(&record, &run).await.unwrap();
    drop(server);
    let decrypted = run_n8n(&home, &["export:credentials", "--all", "--decrypted"]);
    assert!(decrypted.contains("s3cret"), "{decrypted}");
}
