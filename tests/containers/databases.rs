//! Dumps, and single databases and tables, through the sidecar; PostgreSQL alone of the stack.

use std::process::Command;

use crate::project::{Project, wait_for};

fn servers(project: &Project) -> String {
    // Made by this project's sidecar: others may be at work beside it.
    let out = Command::new("docker")
        .args(["ps", "--all", "--no-trunc", "--filter"])
        .args(["label=lifeboat.spare", "--format", "{{.Names}} {{.Mounts}}"])
        .output()
        .unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let volume = format!("{}_lifeboat_state", project.name);
    let ours = text.lines().filter(|line| line.contains(&volume));
    ours.collect::<Vec<_>>().join("\n")
}

#[test]
fn databases_and_tables_come_back_through_the_sidecar_and_a_kill_leaves_nothing() {
    let project = Project::new("databases", "volumes", "postgres");
    project.set("LIFEBOAT_SERVICES", "postgres");
    project.compose(&["up", "-d", "--wait", "postgres"]).good();
    project.sql(
        "CREATE TABLE many AS SELECT n, repeat(md5(n::text), 8) AS t FROM generate_series(1, 100000) n; \
         CREATE TABLE few (id int PRIMARY KEY); INSERT INTO few SELECT generate_series(1, 7); \
         CREATE ROLE app LOGIN PASSWORD 'x'",
    );
    project.sidecar_up();
    project.backup();
    project.sql("DROP TABLE few; DELETE FROM many WHERE n > 5");

    // Out of the data directory, through a server of its own.
    let table = ["--database", "n8n", "--table", "few", "--replace", "--yes"];
    project
        .lifeboat(&[&["restore", "latest"], table.as_slice()].concat())
        .good();
    assert_eq!(project.sql("SELECT count(*) FROM few"), "7");
    assert_eq!(project.sql("SELECT count(*) FROM many"), "5");
    let beside = [
        "restore",
        "latest",
        "--database",
        "n8n",
        "--into-database",
        "past",
    ];
    project.lifeboat(&beside).good();
    let past = |sql: &str| {
        let psql = ["exec", "-T", "postgres", "psql", "-U", "root", "-d", "past"];
        let out = project.compose(&[&psql[..], &["-Atc", sql]].concat());
        out.good().trim().to_owned()
    };
    assert_eq!(past("SELECT count(*) FROM many"), "100000");
    assert_eq!(servers(&project), "");
    project
        .lifeboat(&beside)
        .failed_with(1, &["past", "already"]);

    // Killed while that server runs.
    let mut killed = project.background(&["restore", "latest", "--database", "n8n"]);
    wait_for("the temporary server", || !servers(&project).is_empty());
    project.kill_sidecar();
    killed.wait().unwrap();
    project.sidecar_up();

    // Dumps, and all of them back. Whatever runs first ends what was left.
    project
        .lifeboat_with(&["POSTGRES_MODE=dump"], &["backup"])
        .good();
    assert_eq!(servers(&project), "");
    let names =
        "SELECT string_agg(datname, ' ' ORDER BY datname) FROM pg_database WHERE NOT datistemplate";
    let before = project.sql(names);
    assert!(
        !before.contains("lifeboat_") && !before.contains("restored"),
        "{before}"
    );
    project.sql("TRUNCATE few, many; DROP ROLE app");
    project.lifeboat(&["restore", "latest", "--yes"]).good();
    assert_eq!(project.sql("SELECT count(*) FROM few"), "7");
    assert_eq!(project.sql("SELECT count(*) FROM many"), "5");
    assert_eq!(past("SELECT count(*) FROM many"), "100000");
    assert_eq!(project.sql(names), before);
    assert_eq!(
        project.sql("SELECT count(*) FROM pg_roles WHERE rolname = 'app'"),
        "1"
    );
}
