//! A role that may make backups and little else, as a script for `psql`.

use super::access::Access;
use super::server::{self, SUPPORTED};
use super::session::Session;
use crate::config::Config;
use crate::services::{ErrorKind, ServiceError};
use crate::stack::StackService;

/// The script for the server that answers, which any role that may connect can ask for.
pub async fn script_for(
    config: &Config,
    stack: &StackService,
    name: &str,
) -> Result<String, ServiceError> {
    let access = Access::new(config, stack);
    let session = Session::open(&access).await?;
    let asked = session
        .run("ask the server for its version", |client| {
            let row = client.query_one(
                "SELECT current_setting('server_version_num'), current_database()::text",
                &[],
            )?;
            Ok((row.get::<_, String>(0), row.get::<_, String>(1)))
        })
        .await;
    session.close().await;
    let (number, connected) = asked?;
    let major = number.parse::<u32>().map_or(0, |number| number / 10_000);
    if !SUPPORTED.contains(&major) {
        return Err(access.error(
            ErrorKind::Setup,
            format!(
                "the server is of version {number}; this program knows PostgreSQL {} to {}",
                SUPPORTED.start(),
                SUPPORTED.end()
            ),
        ));
    }
    // Without POSTGRES_DB the new role finds no database of its name, and connects to `postgres`.
    let database = match access.named_database() {
        Some(_) => connected,
        None => "postgres".to_owned(),
    };
    Ok(script(name, major, &database))
}

/// The script for a major version. Rights to functions are each database's own, so it begins with the one that
/// backups connect to.
pub fn script(name: &str, major: u32, database: &str) -> String {
    let role = server::quote(name);
    let literal = format!("'{}'", name.replace('\'', "''"));
    let connect = server::quote(database);
    let [start, stop] = server::functions(major);
    let dump = if major >= 14 {
        format!("-- GRANT pg_read_all_data TO {role};")
    } else {
        "-- Before 14 only a superuser, or who owns everything, can dump everything.".to_owned()
    };
    format!(
        "-- A role that may back up this server, PostgreSQL {major}: for psql, as a superuser.\n\
         \\connect {connect}\n\
         \\set ON_ERROR_STOP on\n\
         DO $lifeboat$ BEGIN\n\
         \x20 IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = {literal}) THEN\n\
         \x20   CREATE ROLE {role};\n\
         \x20 END IF;\n\
         END $lifeboat$;\n\
         -- To log in, and to have the server keep the WAL that a backup needs.\n\
         ALTER ROLE {role} LOGIN REPLICATION;\n\
         -- Where the data directory is.\n\
         GRANT pg_read_all_settings TO {role};\n\
         -- To begin and end a backup.\n\
         GRANT EXECUTE ON FUNCTION pg_catalog.{start}, pg_catalog.{stop} TO {role};\n\
         -- For points in time: to end a segment of the WAL, and to name a point.\n\
         GRANT EXECUTE ON FUNCTION pg_catalog.pg_switch_wal(), pg_catalog.pg_create_restore_point(text) TO {role};\n\
         -- Only for dumps (POSTGRES_MODE=dump or both):\n\
         {dump}\n\
         -- Now give it a password (\\password {role}), and set POSTGRES_USER and POSTGRES_PASSWORD for Lifeboat.\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_speaks_the_servers_version_and_quotes_names() {
        let old = script("back'up \"x\"", 13, "app");
        assert!(old.contains("\\connect \"app\""), "{old}");
        assert!(old.contains("rolname = 'back''up \"x\"'"), "{old}");
        assert!(
            old.contains("pg_start_backup(text, boolean, boolean), pg_catalog.pg_stop_backup(boolean, boolean) TO \"back'up \"\"x\"\"\";"),
            "{old}"
        );
        assert!(!old.contains("pg_read_all_data"), "{old}");
        let new = script("lifeboat", 18, "postgres");
        assert!(new.contains("pg_backup_start(text, boolean)"), "{new}");
        assert!(
            new.contains("-- GRANT pg_read_all_data TO \"lifeboat\";"),
            "{new}"
        );
    }
}
