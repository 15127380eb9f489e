//! The role that `doctor --role-sql` prints has the rights that a backup needs, and not more.

use std::io::Write as _;
use std::process::Stdio;

use super::*;
use lifeboat::services::postgres::role;

/// As a person does it.
fn psql(cluster: &Cluster, script: &str) {
    let mut command = cluster.client_tool("psql");
    let mut psql = command
        .args(["-X", "-q", "-v", "ON_ERROR_STOP=1"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    psql.stdin
        .take()
        .unwrap()
        .write_all(script.as_bytes())
        .unwrap();
    assert!(psql.wait().unwrap().success(), "{script}");
}

#[test]
fn the_printed_role_makes_whole_backups_and_can_do_little_else() {
    let cluster = Cluster::new();
    cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS id; CREATE DATABASE app");
    let place = Place::new();
    for (database, vars) in [("postgres", vec![]), ("app", vec![("POSTGRES_DB", "app")])] {
        let name = format!("back\"up of {database}");
        let script = place
            .block_on(role::script_for(&config(&vars), &cluster.stack(), &name))
            .unwrap();
        assert!(
            script.contains(&format!("\\connect \"{database}\"")),
            "{script}"
        );
        psql(&cluster, &script);
        // It may be run again.
        psql(&cluster, &script);
        cluster.sql(&format!(
            "ALTER ROLE \"back\"\"up of {database}\" PASSWORD 'b'"
        ));

        let vars: Vec<_> = vars
            .into_iter()
            .chain([("POSTGRES_USER", name.as_str()), ("POSTGRES_PASSWORD", "b")])
            .collect();
        let mut service = Postgres::new(&config(&vars), &cluster.stack()).unwrap();
        let checks = place.block_on(service.check());
        assert!(
            checks.iter().all(|check| check.outcome.is_ok()),
            "{checks:?}"
        );
        let manifest = place.backup(&mut service, || ()).unwrap();
        let record = manifest.archive("db").unwrap();
        assert_eq!(record.report.warnings, [""; 0]);
        assert_nothing_left(&cluster);

        let mut own = postgres::Config::new()
            .host("127.0.0.1")
            .port(cluster.port)
            .user(&name)
            .password("b")
            .dbname(database)
            .connect(postgres::NoTls)
            .unwrap();
        own.batch_execute("SELECT pg_create_restore_point('before'); SELECT pg_switch_wal()")
            .unwrap();
        let rights = own
            .query_one(
                "SELECT rolsuper OR rolcreaterole OR rolcreatedb OR rolbypassrls FROM pg_roles WHERE rolname = current_user",
                &[],
            )
            .unwrap();
        assert!(!rights.get::<_, bool>(0));
        if database == "postgres" {
            let read = own.query("SELECT * FROM t", &[]).unwrap_err();
            assert!(
                lifeboat::services::postgres::access::said(&read).contains("permission denied")
            );
        }
    }
    let mut target = Cluster::empty();
    place.restore(&mut target);
    assert_eq!(target.number("SELECT count(*) FROM t"), 1000);
}
