//! PostgreSQL's dumps, and single databases and tables out of backups, against real servers.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[allow(dead_code)]
#[path = "postgres/cluster.rs"]
mod cluster;
#[path = "postgres_dump/containers.rs"]
mod containers;
#[path = "postgres_dump/extracts.rs"]
mod extracts;
#[path = "postgres_dump/kills.rs"]
mod kills;
#[path = "postgres_dump/place.rs"]
mod place;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use cluster::{Cluster, PASSWORD, config};
use lifeboat::archive::unpack::unpack;
use lifeboat::restore::Restore;
use lifeboat::services::postgres::dump::facts::{BESIDE, DumpFacts};
use lifeboat::services::postgres::{
    Postgres, PostgresBoth, PostgresDump, PostgresRestore, restores_dumps,
};
use lifeboat::services::{ErrorKind, Service, ServiceError};
use place::Place;
use postgres::Client;

/// Names that mean something to a shell, to SQL, to a path or to libpq.
const HOSTILE: [&str; 3] = ["we\"ird/../'na\\me %", "host=evil user=x", "-é; DROP"];

fn dumps(cluster: &Cluster) -> PostgresDump {
    PostgresDump::new(&config(&[("DOCKER_HOST", "none")]), &cluster.stack()).unwrap()
}

fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn text_in(cluster: &Cluster, database: &str, query: &str) -> String {
    let mut client = cluster.try_connect(database).unwrap();
    client.query_one(query, &[]).unwrap().get(0)
}

fn databases(cluster: &Cluster) -> Vec<String> {
    let text = cluster
        .text("SELECT string_agg(datname, '|' ORDER BY datname COLLATE \"C\") FROM pg_database");
    text.split('|').map(str::to_owned).collect()
}

fn roles(cluster: &Cluster) -> String {
    cluster.text("SELECT string_agg(rolname, '|' ORDER BY rolname COLLATE \"C\") FROM pg_roles")
}

#[track_caller]
fn refused(result: Result<impl Sized, ServiceError>, words: &[&str]) -> ServiceError {
    let Err(err) = result else {
        panic!("this should have been refused: {words:?}");
    };
    let text = err.to_string();
    for word in words {
        assert!(text.contains(word), "\"{word}\" is not in: {text}");
    }
    assert!(!text.contains(PASSWORD), "{text}");
    err
}

/// No session, transaction or tool of ours is left.
fn assert_nothing_runs(cluster: &Cluster) {
    cluster.wait_for_zero(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'lifeboat%'",
    );
}

/// A database of several parts, with an owner, rights, settings, a large object and most kinds of things.
fn fill(cluster: &Cluster) {
    cluster.sql(
        "CREATE ROLE \"own er\" LOGIN PASSWORD 'its own'; CREATE ROLE readers;
         GRANT readers TO \"own er\"; ALTER ROLE \"own er\" SET work_mem = '7MB';
         CREATE DATABASE app OWNER \"own er\" CONNECTION LIMIT 40;
         COMMENT ON DATABASE app IS 'it''s the app';
         ALTER DATABASE app SET search_path = 'Main', public;
         ALTER ROLE readers IN DATABASE app SET statement_timeout = '5min';
         REVOKE CONNECT ON DATABASE app FROM PUBLIC; GRANT CONNECT ON DATABASE app TO readers",
    );
    let mut app = cluster.try_connect("app").unwrap();
    app.batch_execute(
        "SET search_path = public;
         CREATE SCHEMA \"Main\";
         CREATE TYPE mood AS ENUM ('good', 'bad');
         CREATE EXTENSION pg_trgm;
         CREATE TABLE people (id int PRIMARY KEY, name text NOT NULL, mood mood DEFAULT 'good');
         CREATE INDEX people_name ON people USING gin (name gin_trgm_ops);
         INSERT INTO people SELECT n, md5(n::text) || repeat('-', 60) FROM generate_series(1, 150000) n;
         CREATE TABLE notes (id serial PRIMARY KEY, person int REFERENCES people, body text);
         INSERT INTO notes (person, body) SELECT n, 'note' FROM generate_series(1, 500) n;
         CREATE VIEW shouting AS SELECT upper(name) AS name FROM people;
         CREATE MATERIALIZED VIEW counted AS SELECT count(*) FROM people;
         GRANT SELECT ON people TO readers;
         ALTER TABLE notes OWNER TO \"own er\";
         SELECT lo_from_bytea(4711, 'a large object')",
    )
    .unwrap();
    for name in HOSTILE {
        cluster
            .connect()
            .batch_execute(&format!("CREATE DATABASE {}", quote(name)))
            .unwrap();
        let mut client = cluster.try_connect(name).unwrap();
        client
            .batch_execute("CREATE TABLE here (name text)")
            .unwrap();
        client
            .execute("INSERT INTO here VALUES ($1)", &[&name])
            .unwrap();
    }
}

/// What of the app must be the same wherever it is.
fn digest(cluster: &Cluster, database: &str) -> String {
    text_in(cluster, database, &digest_query())
}

fn digest_query() -> String {
    "SELECT concat_ws('|', (SELECT md5(string_agg(p::text, ',' ORDER BY id)) FROM public.people p), \
     (SELECT md5(string_agg(n::text, ',' ORDER BY id)) FROM public.notes n), \
     (SELECT count(*) FROM public.shouting), (SELECT count FROM public.counted), \
     convert_from(lo_get(4711), 'UTF8'), \
     (SELECT string_agg(indexdef, ',' ORDER BY indexname) FROM pg_indexes WHERE schemaname = 'public'), \
     (SELECT string_agg(conname, ',' ORDER BY conname) FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype IN ('p', 'f')), \
     (SELECT pg_get_userbyid(relowner) FROM pg_class WHERE relname = 'people'), \
     has_table_privilege('readers', 'public.people', 'SELECT'), \
     has_table_privilege('readers', 'public.people', 'INSERT'), \
     (SELECT pg_get_userbyid(relowner) FROM pg_class WHERE relname = 'notes'))"
        .to_owned()
}

/// What of a database stands outside of it.
fn description(cluster: &Cluster, database: &str) -> String {
    let mut client = cluster.connect();
    let query = "SELECT concat_ws('|', pg_get_userbyid(d.datdba), d.datconnlimit, d.datcollate, \
         pg_encoding_to_char(d.encoding), shobj_description(d.oid, 'pg_database'), \
         (SELECT string_agg(coalesce(r.rolname, '-') || ':' || s.setconfig::text, ',' ORDER BY r.rolname) \
          FROM pg_db_role_setting s LEFT JOIN pg_roles r ON r.oid = s.setrole WHERE s.setdatabase = d.oid), \
         (SELECT string_agg(coalesce(g.rolname, '-') || a.privilege_type, ',' \
          ORDER BY g.rolname, a.privilege_type) FROM aclexplode(d.datacl) a LEFT JOIN pg_roles g ON g.oid = a.grantee)) \
         FROM pg_database d WHERE d.datname = $1";
    client.query_one(query, &[&database]).unwrap().get(0)
}

#[test]
fn dumps_of_an_instant_come_back_in_an_empty_server() {
    let source = Cluster::new();
    fill(&source);
    let (digest_then, described) = (digest(&source, "app"), description(&source, "app"));
    let place = Place::new();
    let manifest = place
        .backup(&mut dumps(&source), || {
            // After the instant and before anything is dumped: in none of them.
            let mut app = source.try_connect("app").unwrap();
            app.batch_execute("DELETE FROM notes; UPDATE people SET name = 'changed' WHERE id < 9")
                .unwrap();
        })
        .unwrap();
    assert_nothing_runs(&source);
    let record = manifest.archive("db").unwrap();
    let facts = DumpFacts::of(&record.report).unwrap().unwrap();
    let names: Vec<&str> = facts
        .databases
        .iter()
        .map(|d| d.database.name.as_str())
        .collect();
    assert_eq!(names.len(), 5, "{names:?}");
    assert!(HOSTILE.iter().all(|name| names.contains(name)), "{names:?}");
    assert!(facts.database("app").unwrap().parts >= 2, "{facts:?}");
    assert_eq!(record.report.counts["databases"], 5);
    assert_eq!(record.report.counts["tables"], 6, "{:?}", record.report);
    assert_eq!(record.report.warnings, [""; 0]);

    let target = Cluster::new();
    let password = "SELECT rolpassword FROM pg_authid WHERE rolname = 'postgres'";
    let own_password = target.text(password);
    place.restore(&target, &[], false).unwrap();
    assert_nothing_runs(&target);
    assert_eq!(databases(&target), databases(&source));
    assert_eq!(digest(&target, "app"), digest_then);
    assert_eq!(description(&target, "app"), described);
    assert_eq!(
        text_in(&target, "app", "SHOW search_path"),
        "\"Main\", public"
    );
    for name in HOSTILE {
        assert_eq!(text_in(&target, name, "SELECT name FROM here"), name);
    }
    // Roles with what belongs to them; the one that was there is the present's.
    assert_eq!(roles(&target), roles(&source));
    let verifier = "SELECT a.rolpassword || r.rolconfig::text || pg_has_role('own er', 'readers', 'member') \
                    FROM pg_authid a JOIN pg_roles r USING (oid) WHERE a.rolname = 'own er'";
    assert_eq!(target.text(verifier), source.text(verifier));
    assert_eq!(target.text(password), own_password);
}

#[test]
fn parts_put_together_are_a_dump_for_pg_restore() {
    let source = Cluster::new();
    fill(&source);
    let place = Place::new();
    let manifest = place.backup(&mut dumps(&source), || ()).unwrap();
    let out = place.root().join("out");
    std::fs::create_dir(&out).unwrap();
    let record = manifest.archive("db").unwrap();
    let archive = place.repository().archive(&manifest, record).unwrap();
    place.block_on(async {
        unpack(
            archive.into_async(),
            &out,
            &lifeboat::archive::unpack::UnpackOptions::default(),
        )
        .await
        .unwrap();
    });
    let pg_restore = source.client_tool("pg_restore");
    let script = format!(
        "cat {}/dumps/app.dump.* | {} --list",
        out.display(),
        Path::new(pg_restore.get_program()).display()
    );
    let listed = cluster::run(Command::new("sh").args(["-c", &script]));
    assert!(listed.contains("TABLE DATA public people"), "{listed}");
    let sql = std::fs::read_to_string(out.join("dumps/globals.sql")).unwrap();
    assert!(sql.contains("CREATE ROLE \"own er\""), "{sql}");
}

#[test]
fn a_restore_replaces_whole_databases_or_nothing() {
    let cluster = Cluster::new();
    fill(&cluster);
    let place = Place::new();
    place.backup(&mut dumps(&cluster), || ()).unwrap();
    let digest_then = digest(&cluster, "app");
    cluster.sql("CREATE DATABASE since");
    let mut app = cluster.try_connect("app").unwrap();
    app.batch_execute("DELETE FROM notes; CREATE TABLE since (id int)")
        .unwrap();
    let (changed, names, all_roles) = (
        digest(&cluster, "app"),
        databases(&cluster),
        roles(&cluster),
    );

    // Brought in and rolled back before the commit: the session of before was ended, no more.
    let (mut restore, run) = place.apply(&cluster, &place.config(&[]), false).unwrap();
    assert_eq!(digest(&cluster, "app"), digest_then);
    assert!(app.batch_execute("SELECT 1").is_err());
    place.block_on(restore.rollback()).unwrap();
    assert_eq!(run.journal.pending().unwrap(), []);
    assert_eq!(digest(&cluster, "app"), changed);
    assert_eq!(
        (databases(&cluster), roles(&cluster)),
        (names.clone(), all_roles.clone())
    );

    // Killed before the commit, and undone by the next start.
    let (killed, _) = place.apply(&cluster, &place.config(&[]), false).unwrap();
    drop(killed);
    let undone = place.undo(cluster.stack(), &[]);
    assert_eq!(undone.open, [""; 0]);
    assert_eq!(digest(&cluster, "app"), changed);
    assert_eq!(
        (databases(&cluster), roles(&cluster)),
        (names.clone(), all_roles)
    );

    // Kept for good, what was there.
    place.restore(&cluster, &[], true).unwrap();
    assert_eq!(digest(&cluster, "app"), digest_then);
    let kept: Vec<String> = databases(&cluster)
        .into_iter()
        .filter(|name| name.starts_with("lifeboat_old_"))
        .collect();
    assert_eq!(kept.len(), 5, "{kept:?}");
    let old = kept.iter().find(|name| name.ends_with("_app")).unwrap();
    assert_eq!(digest(&cluster, old), changed);
    // What the backup has not stays.
    assert!(databases(&cluster).contains(&"since".to_owned()));

    // Killed after the commit: the new ones stay, and the old ones go.
    for name in &kept {
        let drop = format!("DROP DATABASE {}", quote(name));
        cluster.connect().batch_execute(&drop).unwrap();
    }
    let (killed, run) = place.apply(&cluster, &place.config(&[]), false).unwrap();
    lifeboat::restore::swap::commit(&run).unwrap();
    drop(killed);
    assert_eq!(place.undo(cluster.stack(), &[]).open, [""; 0]);
    assert_eq!(digest(&cluster, "app"), digest_then);
    assert_eq!(databases(&cluster), names);
}

#[test]
fn a_restore_that_fails_halfway_leaves_the_server_as_it_was() {
    let source = Cluster::new();
    fill(&source);
    let place = Place::new();
    place.backup(&mut dumps(&source), || ()).unwrap();
    // Every extension is refused here, in the middle of the second database.
    let target = Cluster::new();
    target.sql("CREATE DATABASE app; CREATE ROLE limited LOGIN CREATEDB CREATEROLE PASSWORD 'x'");
    target.sql("GRANT CONNECT ON DATABASE template1 TO limited");
    let (names, all_roles) = (databases(&target), roles(&target));
    let vars = [("POSTGRES_USER", "limited"), ("POSTGRES_PASSWORD", "x")];
    refused(place.restore(&target, &vars, false), &["db: cannot"]);
    assert_nothing_runs(&target);
    assert_eq!((databases(&target), roles(&target)), (names, all_roles));
}

#[test]
fn a_dump_that_was_cut_short_is_none() {
    let source = Cluster::new();
    source.sql("CREATE DATABASE app");
    source
        .try_connect("app")
        .unwrap()
        .batch_execute(
            "CREATE TABLE big AS SELECT n, repeat(md5(n::text), 20) AS t FROM generate_series(1, 200000) n; \
             CREATE TABLE small AS SELECT 1 AS n",
        )
        .unwrap();
    let place = Place::new();

    // The server ends the session in the middle.
    let mut service = dumps(&source);
    std::thread::scope(|scope| {
        let source = &source;
        scope.spawn(move || end_copy(&mut source.connect()));
        refused(place.backup(&mut service, || ()), &["cannot dump", "app"]);
    });
    assert_nothing_runs(&source);

    // A tool that says it is done and was not: at a border that the format does not show, and in a table.
    let real = PathBuf::from(source.client_tool("pg_dump").get_program().to_owned());
    for cut in ["head -c 20000000", "head -c 1000", "head -c 0"] {
        let bin = place.root().join("bin");
        std::fs::create_dir_all(&bin).unwrap();
        for tool in ["pg_dumpall", "pg_restore", "psql"] {
            let link = bin.join(tool);
            if !link.exists() {
                std::os::unix::fs::symlink(real.with_file_name(tool), link).unwrap();
            }
        }
        let script = format!("#!/bin/sh\n'{}' \"$@\" | {cut}\nexit 0\n", real.display());
        std::fs::write(bin.join("pg_dump"), script).unwrap();
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(bin.join("pg_dump"), mode).unwrap();
        let vars = [("POSTGRES_BIN", bin.to_str().unwrap())];
        let mut service = PostgresDump::new(&config(&vars), &source.stack()).unwrap();
        refused(
            place.backup(&mut service, || ()),
            &["cannot read the dump dumps/app.dump back"],
        );
        assert_nothing_runs(&source);
    }
    // None of these is a backup.
    assert!(place.repository().resolve("latest").is_err());
}

/// Waits for a tool's COPY and ends its session.
fn end_copy(client: &mut Client) {
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
               WHERE application_name LIKE 'lifeboat %' AND query LIKE 'COPY public.big%'";
    let deadline = Instant::now() + Duration::from_mins(1);
    loop {
        let ended: i64 = client.query_one(end, &[]).unwrap().get(0);
        if ended > 0 {
            return;
        }
        assert!(Instant::now() < deadline, "pg_dump was not seen");
        std::thread::yield_now();
    }
}

#[test]
fn a_server_without_wal_for_backups_is_dumped() {
    let cluster = Cluster::with(&[], &["wal_level=minimal", "max_wal_senders=0"]);
    cluster.sql("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS id");
    let place = Place::new();
    let mut physical = Postgres::new(&config(&[]), &cluster.stack()).unwrap();
    refused(
        place.backup(&mut physical, || ()),
        &["wal_level = minimal", "POSTGRES_MODE=dump"],
    );
    place.backup(&mut dumps(&cluster), || ()).unwrap();
    cluster.sql("DROP TABLE kept");
    place.restore(&cluster, &[], false).unwrap();
    assert_eq!(cluster.number("SELECT count(*) FROM kept"), 1000);
}

#[test]
fn both_are_in_one_archive_and_each_can_be_restored() {
    let source = Cluster::new();
    fill(&source);
    let place = Place::new();
    let config = place.config(&[("POSTGRES_MODE", "both")]);
    let mut both = PostgresBoth::new(&config, &source.stack()).unwrap();
    for check in place.block_on(both.check()) {
        check.outcome.unwrap();
    }
    let manifest = place.backup(&mut both, || ()).unwrap();
    assert_nothing_runs(&source);
    let record = manifest.archive("db").unwrap();
    assert!(!restores_dumps(&config, &record.report));
    let digest_then = digest(&source, "app");

    // The files, without the dumps among them.
    let mut physical = Cluster::empty();
    let mut restore = PostgresRestore::new(&config, &physical.stack()).unwrap();
    let staged = physical.home.path().join("staged");
    std::fs::create_dir(&staged).unwrap();
    let run = place.run();
    place.block_on(async {
        let archive = place.repository().archive(&manifest, record).unwrap();
        unpack(archive.into_async(), &staged, &restore.unpack_options())
            .await
            .unwrap();
        restore.prepare(&staged, record, &run).await.unwrap();
    });
    assert!(!staged.join(BESIDE).exists());
    std::fs::remove_dir(&physical.data).unwrap();
    std::fs::rename(&staged, &physical.data).unwrap();
    physical.launch();
    place.block_on(restore.settle(record, &run)).unwrap();
    assert_eq!(digest(&physical, "app"), digest_then);

    // The dumps.
    let asked = place.config(&[("POSTGRES_MODE", "dump")]);
    assert!(restores_dumps(&asked, &record.report));
    let target = Cluster::new();
    place.restore(&target, &[], false).unwrap();
    assert_eq!(digest(&target, "app"), digest_then);
    assert!(matches!(
        dumps(&target).kind(),
        lifeboat::services::ServiceKind::Postgres
    ));
}

#[test]
fn what_the_server_refuses_is_said_before_anything_is_done() {
    let cluster = Cluster::new();
    let place = Place::new();
    let vars = [("POSTGRES_BIN", "/nowhere")];
    let mut service = PostgresDump::new(&config(&vars), &cluster.stack()).unwrap();
    let err = refused(
        place.backup(&mut service, || ()),
        &["POSTGRES_BIN", "/nowhere"],
    );
    assert_eq!(err.kind, ErrorKind::Setup);
    let checks = place.block_on(service.check());
    assert!(
        checks.iter().any(|c| c
            .outcome
            .as_ref()
            .is_err_and(|why| why.contains("POSTGRES_BIN"))),
        "{checks:?}"
    );
}
