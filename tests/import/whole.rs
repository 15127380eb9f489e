//! A whole stack, in each form that people keep it in.

use std::collections::BTreeMap;
use std::path::Path;

use rusqlite::Connection;

use crate::cluster::Cluster;
use crate::place::files_below;
use crate::world::{TAKEN, World, archives, report, warnings};

const GUIDE: [&str; 3] = ["./data", ".env", "docker-compose.yml"];

fn shut_down_cluster() -> Cluster {
    let mut cluster = Cluster::new();
    cluster.sql("CREATE TABLE t AS SELECT n FROM generate_series(1, 20000) n");
    cluster.stop();
    cluster
}

#[test]
fn a_guides_backup_comes_back_whole_from_every_form_it_was_kept_in() {
    let world = World::new();
    let database = world.stack(&shut_down_cluster());
    let packed = [
        world.tar("backup.tar.gz", &GUIDE),
        world.tar("backup.tar.zst", &GUIDE),
        world.tar("no ending", &GUIDE),
    ];
    let forms = packed.iter().map(|path| (path.clone(), true));
    let mut first_stored = None;
    for (path, is_tar) in forms.chain([(world.path("stack"), false)]) {
        let manifest = world.import(&[&path]);
        assert_eq!(
            archives(&manifest),
            ["n8n", "ollama", "other", "postgres", "project", "qdrant"]
        );
        assert_eq!(manifest["imported"]["from"][0], path.to_str().unwrap());
        // n8n's open database is written to by nobody, and a log's time is when it was made.
        assert_eq!(manifest["finished"], TAKEN, "{}", path.display());
        assert_eq!(manifest["archives"][0]["point"]["at"], TAKEN);
        assert!(
            manifest["id"]
                .as_str()
                .unwrap()
                .starts_with("20250304T050607Z-")
        );
        let stored = manifest["stored_bytes"].as_u64().unwrap();
        let first = *first_stored.get_or_insert(stored);
        assert!(
            stored == first || stored * 20 < first,
            "{stored} of {first} bytes stored again"
        );
        compare(&world, manifest["id"].as_str().unwrap(), is_tar);
        let proven = &report(&manifest, "n8n")["facts"]["key_opens"];
        assert_eq!(proven, "a stored credential");
        assert_eq!(report(&manifest, "qdrant")["counts"]["collections"], 2);
        assert_eq!(report(&manifest, "ollama")["counts"]["models"], 1);
        assert!(!warnings(&manifest, "ollama").contains("set OLLAMA_URL"));
    }
    drop(database);
    let list = world.good(&["list"]);
    assert_eq!(list.matches("imported").count(), 4, "{list}");
    let id = world.json(&["list"])[0]["id"].as_str().unwrap().to_owned();
    let shown = world.good(&["show", &id]);
    assert!(shown.contains("taken     2025-03-04 05:06:07"), "{shown}");
    assert!(
        shown.contains("imported  ") && shown.contains("from /"),
        "{shown}"
    );
    assert!(world.good(&["verify", "--full"]).contains("all good"));
}

/// Everything that was packed is there, but for what no service wants back.
fn compare(world: &World, id: &str, _is_tar: bool) {
    let into = world.unpack(id);
    let dropped = |name: &str| {
        let parts: Vec<&str> = name.split('/').collect();
        name.starts_with("postmaster.")
            || name.ends_with("pg_internal.init")
            || matches!(
                parts.as_slice(),
                ["pg_notify" | "pg_subtrans" | "pg_stat_tmp", _]
            )
    };
    let mut cluster = files_below(&world.path("stack/data/postgres"));
    cluster.retain(|name, _| !dropped(name));
    assert_same(&files_below(&into.join("postgres")), &cluster);
    for service in ["ollama", "qdrant"] {
        let packed = files_below(&world.path("stack/data").join(service));
        assert_same(&files_below(&into.join(service)), &packed);
    }
    let other = files_below(&into.join("other"));
    assert_eq!(
        other.into_iter().collect::<Vec<_>>(),
        [("data/notes/a.txt".to_owned(), b"what nobody knows".to_vec())]
    );
    let project: Vec<_> = files_below(&into.join("project")).into_keys().collect();
    assert_eq!(project, [".env", "docker-compose.yml"]);
    let n8n = into.join("n8n");
    assert!(n8n.join("storage/workflows/w1/binary").exists());
    assert!(!n8n.join("database.sqlite-wal").exists());
    assert_eq!(rows(&n8n.join("database.sqlite")), 50);
}

fn rows(database: &Path) -> i64 {
    let database = Connection::open(database).unwrap();
    let count = "SELECT count(*) FROM ledger WHERE body = 'in the log only'";
    database.query_row(count, [], |row| row.get(0)).unwrap()
}

/// Names first: a difference of contents is not readable.
#[track_caller]
fn assert_same(found: &BTreeMap<String, Vec<u8>>, expected: &BTreeMap<String, Vec<u8>>) {
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(found), names(expected));
    for (name, body) in expected {
        assert!(found[name] == *body, "{name} differs");
    }
}

#[test]
fn one_tar_for_each_volume_and_a_loose_env_file_become_one_backup() {
    let world = World::new();
    let database = world.stack(&shut_down_cluster());
    let volumes = ["postgres", "n8n", "ollama", "qdrant"].map(|service| {
        let stack = world.path("stack");
        let path = world.path(&format!("{service}_storage.tar.gz"));
        let status = std::process::Command::new("tar")
            .arg("-czf")
            .arg(&path)
            .arg("-C")
            .arg(stack.join("data").join(service))
            .arg(".")
            .status();
        assert!(status.unwrap().success());
        path
    });
    drop(database);
    let mut paths: Vec<&Path> = volumes.iter().map(std::path::PathBuf::as_path).collect();
    let (env, more) = (world.path("stack/.env"), world.path("stack/data/notes"));
    paths.extend([env.as_path(), more.as_path()]);
    let manifest = world.import(&paths);
    assert_eq!(
        archives(&manifest),
        ["n8n", "ollama", "other", "postgres", "project", "qdrant"]
    );
    let into = world.unpack(manifest["id"].as_str().unwrap());
    let env = std::fs::read_to_string(into.join("project/.env")).unwrap();
    assert_eq!(env, "POSTGRES_PASSWORD=x\n");
    let note = std::fs::read_to_string(into.join("other/a.txt")).unwrap();
    assert_eq!(note, "what nobody knows");
}

#[test]
fn two_of_a_kind_are_called_by_their_directories() {
    let world = World::new();
    world.ollama("stack/Big Models");
    world.ollama("stack/other");
    world.file("stack/left", "over");
    world.age("stack");
    let tar = world.tar("two.tar", &["."]);
    let manifest = world.import(&[&tar]);
    assert_eq!(archives(&manifest), ["big-models", "other", "other-2"]);
    let into = world.unpack(manifest["id"].as_str().unwrap());
    assert!(into.join("other/models").exists());
    assert!(into.join("other-2/left").exists());
}

#[test]
fn a_given_time_counts_and_must_not_be_in_the_future() {
    let world = World::new();
    world.ollama("stack/ollama");
    let stack = world.path("stack");
    let stack = stack.to_str().unwrap();
    let manifest = world.json(&["import", stack, "--taken", "2024-02-03T04:05:06Z"]);
    assert_eq!(manifest["manifest"]["finished"], "2024-02-03T04:05:06Z");
    for (time, said) in [("soon", "no time"), ("2999-01-01", "in the future")] {
        let output = world.run(&["import", stack, "--taken", time]);
        assert_eq!(output.status.code(), Some(2));
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn what_belongs_to_no_service_is_never_put_in_the_place_of_something_live() {
    let mut world = World::new();
    world.ollama("stack/ollama");
    world.file("stack/left", "over");
    let manifest = world.import(&[&world.path("stack")]);
    let id = manifest["id"].as_str().unwrap();
    std::fs::create_dir_all(world.path("live/ollama/models")).unwrap();
    // A service's directory that is called like the archive.
    let live = world.file("live/other/precious", "as it was");
    let ollama = world.path("live/ollama");
    world.set("OLLAMA_DATA", ollama.to_str().unwrap());
    let said = world.good(&["restore", id, "--yes"]);
    assert!(
        said.contains("archive \"other\"") && said.contains("--into DIR"),
        "{said}"
    );
    assert_eq!(std::fs::read_to_string(live).unwrap(), "as it was");
    assert!(
        ollama
            .join("models/manifests/registry.ollama.ai/library/tiny/latest")
            .exists()
    );
    let output = world.run(&["restore", id, "--only", "other", "--yes"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("--into DIR"), "{error}");
}
