//! What is asked of the server, by its version. Everything here blocks, on the session's thread.

use std::collections::BTreeMap;

use postgres::error::SqlState;
use postgres::{Client, Error};

use super::facts::DatabaseFacts;
use super::platform::Platform;
use super::wal::{Lsn, SegmentSize};

/// The versions whose files and functions this program knows.
pub const SUPPORTED: std::ops::RangeInclusive<u32> = 13..=18;

/// What a server says of itself.
#[derive(Debug, Clone)]
pub struct Server {
    /// `server_version_num`, such as 150018.
    pub version_num: u32,
    pub version: String,
    pub in_recovery: bool,
    pub wal_level: String,
    pub archive_mode: String,
    pub data_directory: String,
    pub config_file: String,
    pub hba_file: String,
    pub system_identifier: u64,
    pub control_version: u32,
    pub catalog_version: u32,
    pub checkpoint: Lsn,
    pub segment_bytes: u64,
    pub block_bytes: u32,
    pub page_checksums: bool,
    pub max_connections: String,
    pub user: String,
    pub platform: Platform,
}

/// Why a server could not be asked.
#[derive(Debug)]
pub enum ProbeError {
    Query(Error),
    /// `data_directory` is shown to superusers and members of `pg_read_all_settings` only.
    SettingsHidden {
        user: String,
    },
    Odd(String),
}

impl From<Error> for ProbeError {
    fn from(err: Error) -> Self {
        Self::Query(err)
    }
}

impl Server {
    pub const fn major(&self) -> u32 {
        self.version_num / 10_000
    }

    /// What this server's version calls its directory in a tablespace (`TABLESPACE_VERSION_DIRECTORY`).
    pub fn version_directory(&self) -> String {
        format!("PG_{}_{}", self.major(), self.catalog_version)
    }

    pub fn segment_size(&self) -> Option<SegmentSize> {
        SegmentSize::new(self.segment_bytes)
    }

    /// Asks for all of it.
    pub fn probe(client: &mut Client) -> Result<Self, ProbeError> {
        settle_session(client)?;
        let user: String = client.query_one("SELECT current_user::text", &[])?.get(0);
        let data_directory = match setting(client, "data_directory") {
            Err(err) if err.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                return Err(ProbeError::SettingsHidden { user });
            }
            other => other?,
        };
        let number = setting(client, "server_version_num")?;
        let system = client.query_one(
            "SELECT system_identifier, pg_control_version, catalog_version_no, pg_is_in_recovery() \
             FROM pg_control_system()",
            &[],
        )?;
        let init = client.query_one(
            "SELECT bytes_per_wal_segment, database_block_size, data_page_checksum_version FROM pg_control_init()",
            &[],
        )?;
        Ok(Self {
            version_num: number
                .parse()
                .map_err(|_| ProbeError::Odd(format!("its version is \"{number}\"")))?,
            version: setting(client, "server_version")?,
            in_recovery: system.get(3),
            wal_level: setting(client, "wal_level")?,
            archive_mode: setting(client, "archive_mode")?,
            data_directory,
            config_file: setting(client, "config_file")?,
            hba_file: setting(client, "hba_file")?,
            system_identifier: system.get::<_, i64>(0).cast_unsigned(),
            control_version: system.get::<_, i32>(1).cast_unsigned(),
            catalog_version: system.get::<_, i32>(2).cast_unsigned(),
            checkpoint: checkpoint(client)?,
            segment_bytes: u64::from(init.get::<_, i32>(0).cast_unsigned()),
            block_bytes: init.get::<_, i32>(1).cast_unsigned(),
            page_checksums: init.get::<_, i32>(2) != 0,
            max_connections: setting(client, "max_connections")?,
            user,
            platform: Platform::ask(client)?,
        })
    }
}

/// Settings of the session: nothing may end it while files are copied, and a peer that vanished must be
/// noticed, because its session holds WAL.
pub(super) fn settle_session(client: &mut Client) -> Result<(), Error> {
    client.batch_execute(
        "SET search_path = pg_catalog; SET statement_timeout = 0; SET lock_timeout = 0; \
         SET idle_in_transaction_session_timeout = 0; SET client_min_messages = error; \
         SET tcp_keepalives_idle = 60; SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 6",
    )?;
    // From 14 and 17 on; a time-out that a role or database sets would end the session, and so the backup.
    for name in ["idle_session_timeout", "transaction_timeout"] {
        client.execute(
            "SELECT set_config(name, '0', false) FROM pg_settings WHERE name = $1",
            &[&name],
        )?;
    }
    Ok(())
}

pub(super) fn setting(client: &mut Client, name: &str) -> Result<String, Error> {
    Ok(client
        .query_one("SELECT current_setting($1)", &[&name])?
        .get(0))
}

/// The position that the server's own control file has at this moment.
pub fn checkpoint(client: &mut Client) -> Result<Lsn, ProbeError> {
    let text: String = client
        .query_one(
            "SELECT checkpoint_lsn::text FROM pg_control_checkpoint()",
            &[],
        )?
        .get(0);
    Lsn::parse(&text).ok_or_else(|| ProbeError::Odd(format!("its checkpoint is at \"{text}\"")))
}

/// The functions' names and arguments, as `GRANT EXECUTE ON FUNCTION` takes them.
pub const fn functions(major: u32) -> [&'static str; 2] {
    // Renamed in 15, when exclusive backups went.
    if major >= 15 {
        ["pg_backup_start(text, boolean)", "pg_backup_stop(boolean)"]
    } else {
        [
            "pg_start_backup(text, boolean, boolean)",
            "pg_stop_backup(boolean, boolean)",
        ]
    }
}

/// Creates the temporary slot that keeps the WAL from now on until the session ends.
///
/// `Ok(Err(why))` when this server or role cannot have one: the backup may do without.
pub fn create_slot(client: &mut Client, name: &str) -> Result<Result<(), String>, Error> {
    let made = client.execute(
        "SELECT pg_create_physical_replication_slot($1::text::name, true, true)",
        &[&name],
    );
    match made {
        Ok(_) => Ok(Ok(())),
        Err(err) => match err.code() {
            // No right to it; all slots in use; max_replication_slots = 0.
            Some(
                &SqlState::INSUFFICIENT_PRIVILEGE
                | &SqlState::CONFIGURATION_LIMIT_EXCEEDED
                | &SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
            ) => Ok(Err(super::access::said(&err))),
            _ => Err(err),
        },
    }
}

/// How much WAL the slot keeps that would go without it, at most.
pub fn kept_by_slot(client: &mut Client, name: &str) -> Result<u64, Error> {
    let row = client.query_opt(
        "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint \
         FROM pg_replication_slots WHERE slot_name = $1::text::name",
        &[&name],
    )?;
    // Without a position it keeps nothing: the server has given it up.
    let kept: Option<i64> = row.and_then(|row| row.get(0));
    Ok(kept.and_then(|kept| u64::try_from(kept).ok()).unwrap_or(0))
}

/// `max_wal_size`: about as much is written from one checkpoint to the next.
pub fn max_wal_bytes(client: &mut Client) -> Result<u64, Error> {
    // Its unit is a megabyte.
    let megabytes: i64 = client
        .query_one(
            "SELECT setting::bigint FROM pg_settings WHERE name = 'max_wal_size'",
            &[],
        )?
        .get(0);
    Ok(u64::try_from(megabytes).unwrap_or(0) << 20)
}

/// Drops the slot, if it is there and no other session uses it.
pub fn drop_slot(client: &mut Client, name: &str) -> Result<(), Error> {
    client
        .execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
             WHERE slot_name = $1::text::name AND (NOT active OR active_pid = pg_backend_pid())",
            &[&name],
        )
        .map(|_| ())
}

/// Begins the backup, with a checkpoint at once; the position where replay will begin.
pub fn start(client: &mut Client, major: u32, label: &str) -> Result<String, Error> {
    let call = if major >= 15 {
        "SELECT pg_backup_start($1, fast => true)::text"
    } else {
        "SELECT pg_start_backup($1, true, false)::text"
    };
    Ok(client.query_one(call, &[&label])?.get(0))
}

/// What the end of a backup returns.
#[derive(Debug, Clone)]
pub struct Stopped {
    pub lsn: String,
    pub label: String,
    pub tablespace_map: String,
    /// The server's clock, UTC.
    pub at: String,
    /// The name of the segment being written, for its timeline.
    pub segment: String,
}

/// Ends the backup without waiting for an archiver: the segments are copied out of `pg_wal`.
pub fn stop(client: &mut Client, major: u32) -> Result<Stopped, Error> {
    let call = if major >= 15 {
        "pg_backup_stop(wait_for_archive => false)"
    } else {
        "pg_stop_backup(false, false)"
    };
    let row = client.query_one(
        &format!(
            "SELECT lsn::text, labelfile, spcmapfile, \
             to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') FROM {call}"
        ),
        &[],
    )?;
    let segment = client.query_one("SELECT pg_walfile_name(pg_current_wal_insert_lsn())", &[])?;
    Ok(Stopped {
        lsn: row.get(0),
        label: row.get(1),
        tablespace_map: row.get::<_, Option<String>>(2).unwrap_or_default(),
        at: row.get(3),
        segment: segment.get(0),
    })
}

/// The tablespaces that lie outside the data directory, by oid.
pub fn tablespaces(client: &mut Client) -> Result<Vec<u32>, Error> {
    let rows = client.query(
        "SELECT oid FROM pg_tablespace WHERE spcname NOT IN ('pg_default', 'pg_global') ORDER BY oid",
        &[],
    )?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// The databases, by oid: a name may be given to another one.
pub fn databases(client: &mut Client) -> Result<Vec<DatabaseFacts>, Error> {
    // `datcollversion` came with 15.
    let has_version: bool = client
        .query_one(
            "SELECT EXISTS (SELECT FROM pg_attribute \
             WHERE attrelid = 'pg_database'::regclass AND attname = 'datcollversion')",
            &[],
        )?
        .get(0);
    let (version, provider) = if has_version {
        ("datcollversion", "datlocprovider::text")
    } else {
        ("NULL::text", "NULL::text")
    };
    let rows = client.query(
        &format!(
            "SELECT oid, datname::text, pg_encoding_to_char(encoding)::text, datcollate::text, datctype::text, \
             {version}, datallowconn AND NOT datistemplate, {provider} FROM pg_database ORDER BY oid"
        ),
        &[],
    )?;
    Ok(rows
        .iter()
        .map(|row| DatabaseFacts {
            oid: row.get(0),
            name: row.get(1),
            encoding: row.get(2),
            collate: row.get(3),
            ctype: row.get(4),
            collation_version: row.get(5),
            counted: row.get(6),
            tables: None,
            rows_estimate: None,
            provider: row.get(7),
            extensions: BTreeMap::new(),
        })
        .collect())
}

/// What is counted in one database.
#[derive(Debug)]
pub struct Census {
    pub tables: u64,
    /// The planner's estimate.
    pub rows: u64,
    pub extensions: BTreeMap<String, String>,
}

/// Looks at the connected database.
pub fn census(client: &mut Client) -> Result<Census, Error> {
    client.batch_execute("SET search_path = pg_catalog; SET statement_timeout = '30s'")?;
    let row = client.query_one(
        "SELECT count(*), coalesce(sum(greatest(c.reltuples, 0)) FILTER (WHERE c.relkind <> 'p'), 0)::bigint \
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relkind IN ('r', 'p', 'm') AND c.relpersistence <> 't' \
         AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'",
        &[],
    )?;
    let count = |i: usize| u64::try_from(row.get::<_, i64>(i)).unwrap_or(0);
    Ok(Census {
        tables: count(0),
        rows: count(1),
        extensions: super::platform::extensions(client)?,
    })
}

/// The rights a backup needs, as this role has them.
#[derive(Debug, Clone, Copy)]
pub struct Rights {
    pub start: bool,
    pub stop: bool,
    pub slots: bool,
}

pub fn rights(client: &mut Client, major: u32) -> Result<Rights, Error> {
    let [start, stop] = functions(major);
    let row = client.query_one(
        "SELECT has_function_privilege($1::text, 'EXECUTE'), has_function_privilege($2::text, 'EXECUTE'), \
         (SELECT rolsuper OR rolreplication FROM pg_roles WHERE rolname = current_user)",
        &[&start, &stop],
    )?;
    Ok(Rights {
        start: row.get(0),
        stop: row.get(1),
        slots: row.get(2),
    })
}

/// The statements that give a role what it lacks.
pub fn grants(user: &str, major: u32, rights: Rights) -> String {
    let user = quote(user);
    let mut statements = Vec::new();
    if !rights.start || !rights.stop {
        let [start, stop] = functions(major);
        statements.push(format!(
            "GRANT EXECUTE ON FUNCTION pg_catalog.{start}, pg_catalog.{stop} TO {user};"
        ));
    }
    if !rights.slots {
        statements.push(format!("ALTER ROLE {user} REPLICATION;"));
    }
    statements.join(" ")
}

/// Quotes an identifier.
pub fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Quotes a string.
pub fn literal(text: &str) -> String {
    let escaped = text.replace('\'', "''");
    if escaped.contains('\\') {
        return format!("E'{}'", escaped.replace('\\', r"\\"));
    }
    format!("'{escaped}'")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use super::*;

    #[test]
    fn strings_are_quoted_whatever_the_servers_settings() {
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal(r"a\'b"), r"E'a\\''b'");
    }

    #[test]
    fn grants_name_what_is_missing_in_the_servers_own_words() {
        let none = Rights {
            start: false,
            stop: false,
            slots: false,
        };
        assert_eq!(
            grants("back\"up", 17, none),
            "GRANT EXECUTE ON FUNCTION pg_catalog.pg_backup_start(text, boolean), \
             pg_catalog.pg_backup_stop(boolean) TO \"back\"\"up\"; ALTER ROLE \"back\"\"up\" REPLICATION;"
        );
        let slots = Rights {
            slots: true,
            ..none
        };
        assert!(grants("b", 13, slots).contains("pg_start_backup(text, boolean, boolean)"));
        assert!(!grants("b", 13, slots).contains("REPLICATION"));
    }
}
