//! One database or table out of a physical backup, and out of dumps.

use super::*;
use lifeboat::services::postgres::extract::{Request, Target};

pub fn request(database: &str, tables: &[&str], target: Target) -> Request {
    Request {
        database: database.to_owned(),
        tables: tables.iter().map(|t| (*t).to_owned()).collect(),
        target,
        keep_old: false,
        replay: None,
    }
}

fn number_in(cluster: &Cluster, database: &str, query: &str) -> i64 {
    let mut client = cluster.try_connect(database).unwrap();
    client.query_one(query, &[]).unwrap().get(0)
}

/// Nothing is left beside the live data, and nobody works for us.
pub fn assert_clean(cluster: &Cluster, place: &Place) {
    assert_nothing_runs(cluster);
    let leftovers = |dir: &Path| {
        std::fs::read_dir(dir)
            .unwrap()
            .filter(|e| {
                let name = e.as_ref().unwrap().file_name();
                name.to_string_lossy().starts_with(".lifeboat")
            })
            .count()
    };
    assert_eq!(leftovers(&cluster.data), 0);
    assert_eq!(leftovers(&place.root().join("state")), 0);
    let made = "SELECT count(*) FROM pg_database WHERE datname LIKE 'lifeboat%'";
    assert_eq!(cluster.number(made), 0);
}

/// The whole way with one kind of backup.
fn round(cluster: &Cluster, place: &Place) {
    let stack = cluster.stack();
    let then = digest(cluster, "app");
    let described = description(cluster, "app");
    let mut app = cluster.try_connect("app").unwrap();
    app.batch_execute("DELETE FROM notes WHERE id > 10; UPDATE people SET name = 'x' WHERE id = 1")
        .unwrap();
    let now = digest(cluster, "app");
    let extract = |database: &str, tables: &[&str], target: Target| {
        place.extract(&stack, &[], &request(database, tables, target))
    };

    // Beside: the live one is not touched, and its session goes on.
    let done = extract("app", &[], Target::Beside).unwrap();
    assert!(done.database.starts_with("app_restored_20"), "{done:?}");
    assert_eq!(done.warnings, [""; 0]);
    assert_eq!(digest(cluster, &done.database), then);
    assert_eq!(description(cluster, &done.database), described);
    assert_eq!(digest(cluster, "app"), now);
    app.batch_execute("SELECT 1").unwrap();
    assert_clean(cluster, place);

    // Under another name, hostile ones too; not over what is there.
    let hostile = format!("to {}", HOSTILE[0]);
    let into = Target::Database(hostile.clone());
    extract(HOSTILE[0], &[], into.clone()).unwrap();
    assert_eq!(
        text_in(cluster, &hostile, "SELECT name FROM here"),
        HOSTILE[0]
    );
    refused(extract(HOSTILE[0], &[], into), &["already", "--replace"]);
    refused(
        extract("nowhere", &[], Target::Beside),
        &["no database \"nowhere\"", "app"],
    );

    // Tables beside, with what they are made of; those that are there are not written over.
    let tables = Target::Database("only tables".to_owned());
    let done = extract("app", &["notes", "many"], tables.clone()).unwrap();
    let named = [
        "public.many",
        "public.many_1",
        "public.many_2",
        "public.notes",
    ];
    assert_eq!(done.tables, named);
    // Its foreign key leads to a table that is not there.
    assert!(done.warnings[0].contains("public.people"), "{done:?}");
    let only = |query: &str| number_in(cluster, "only tables", query);
    assert_eq!(only("SELECT count(*) FROM notes"), 500);
    assert_eq!(only("SELECT count(*) FROM many"), 2000);
    assert_eq!(
        only("SELECT count(*) FROM pg_indexes WHERE indexname = 'notes_pkey'"),
        1
    );
    refused(extract("app", &["many"], tables), &["already exists"]);
    assert_eq!(only("SELECT count(*) FROM many"), 2000);
    refused(extract("app", &["odd"], Target::Beside), &["pair"]);
    let done = extract("app", &["public.people"], Target::Beside).unwrap();
    assert_eq!(done.warnings, [""; 0]);
    let query = "SELECT count(*) FROM people WHERE mood = 'good' AND name % '1234'";
    assert_eq!(number_in(cluster, &done.database, query), 0);
    let query = "SELECT count(*) FROM people";
    assert_eq!(number_in(cluster, &done.database, query), 150_000);
    refused(
        extract("app", &["public.nothing"], Target::Beside),
        &["no table public.nothing"],
    );
    assert_clean(cluster, place);

    // In place: all of it or nothing.
    extract("app", &["notes"], Target::Replace).unwrap();
    assert_eq!(number_in(cluster, "app", "SELECT count(*) FROM notes"), 500);
    refused(
        extract("app", &["people"], Target::Replace),
        &["other objects depend on it"],
    );
    assert_eq!(
        text_in(cluster, "app", "SELECT name FROM people WHERE id = 1"),
        "x"
    );
    assert_clean(cluster, place);

    // The whole database in place; what was there is kept when asked for.
    let keep = Request {
        keep_old: true,
        ..request("app", &[], Target::Replace)
    };
    let done = place.extract(&stack, &[], &keep).unwrap();
    assert_eq!(digest(cluster, "app"), then);
    assert_eq!(description(cluster, "app"), described);
    assert!(app.batch_execute("SELECT 1").is_err());
    let old = databases(cluster)
        .into_iter()
        .find(|name| name.starts_with("lifeboat_old_"))
        .unwrap();
    assert!(done.warnings[0].contains(&old), "{done:?}");
    assert_eq!(
        text_in(cluster, &old, "SELECT name FROM people WHERE id = 1"),
        "x"
    );
    cluster.sql(&format!("DROP DATABASE {}", quote(&old)));
    assert_clean(cluster, place);
}

fn fill_more(cluster: &Cluster) {
    fill(cluster);
    cluster
        .try_connect("app")
        .unwrap()
        .batch_execute(
            "SET search_path = public; \
             CREATE TYPE pair AS (a int, b int); CREATE TABLE odd (p pair); CREATE TABLE many (id int) PARTITION BY RANGE (id); \
             CREATE TABLE many_1 PARTITION OF many FOR VALUES FROM (0) TO (1000); \
             CREATE TABLE many_2 PARTITION OF many FOR VALUES FROM (1000) TO (9000); \
             INSERT INTO many SELECT generate_series(1, 2000)",
        )
        .unwrap();
}

#[test]
fn databases_and_tables_come_out_of_a_physical_backup() {
    let cluster = Cluster::new();
    fill_more(&cluster);
    let fast = cluster.directory("fast");
    cluster.sql(&format!(
        "CREATE TABLESPACE fast LOCATION '{}'",
        fast.display()
    ));
    cluster
        .try_connect("app")
        .unwrap()
        .batch_execute("ALTER TABLE notes SET TABLESPACE fast")
        .unwrap();
    let place = Place::new();
    let mut service = Postgres::new(&config(&[]), &cluster.stack()).unwrap();
    place.backup(&mut service, || ()).unwrap();
    round(&cluster, &place);
}

#[test]
fn databases_and_tables_come_out_of_dumps() {
    let cluster = Cluster::new();
    fill_more(&cluster);
    let place = Place::new();
    place.backup(&mut dumps(&cluster), || ()).unwrap();
    round(&cluster, &place);
}

#[test]
fn a_temporary_server_that_does_not_come_up_is_removed() {
    let cluster = Cluster::new();
    fill(&cluster);
    let place = Place::new();
    let mut service = Postgres::new(&config(&[]), &cluster.stack()).unwrap();
    place.backup(&mut service, || ()).unwrap();
    cluster.sql("ALTER SYSTEM SET shared_preload_libraries = 'nothing_like_it'");
    // Ids tell seconds apart: the next one is to be the newest.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    place.backup(&mut service, || ()).unwrap();
    refused(
        place.extract(&cluster.stack(), &[], &request("app", &[], Target::Beside)),
        &["temporary server", "nothing_like_it"],
    );
    assert_clean(&cluster, &place);
}
