//! What n8n's database tells about itself, on SQLite and on PostgreSQL.

use std::collections::BTreeMap;
use std::time::Duration;

use postgres::{Client, Config as PostgresSettings, NoTls};
use rusqlite::{Connection, OptionalExtension};

use super::Environment;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const STATEMENT_TIMEOUT: &str = "SET statement_timeout = '10s'";
/// How many credentials a key is tried on.
const CREDENTIALS: u32 = 50;
const COUNTED: [(&str, &str); 3] = [
    ("workflows", "workflow_entity"),
    ("credentials", "credentials_entity"),
    ("users", "user"),
];

/// What the database holds that a backup needs to know.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// Encrypted.
    pub(super) credentials: Vec<String>,
    pub(super) data_keys: Vec<DataKey>,
    /// Timestamp and name of the newest migration.
    pub(super) migration: Option<(i64, String)>,
    /// The newest version that ran on it.
    pub(super) version: Option<String>,
    pub(super) counts: BTreeMap<String, u64>,
}

/// A row of `deployment_key` of type `data_encryption`.
#[derive(Debug)]
pub(super) struct DataKey {
    pub(super) id: String,
    /// Wrapped with n8n's key.
    pub(super) value: String,
    /// What it encrypts with.
    pub(super) algorithm: String,
}

/// Table names as `DB_TABLE_PREFIX` and `DB_POSTGRESDB_SCHEMA` make them.
struct Tables {
    schema: Option<String>,
    prefix: String,
}

impl Tables {
    fn plain(&self, table: &str) -> String {
        format!("{}{table}", self.prefix)
    }

    fn quoted(&self, table: &str) -> String {
        let quote = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
        let table = quote(&self.plain(table));
        match &self.schema {
            Some(schema) => format!("{}.{table}", quote(schema)),
            None => table,
        }
    }

    fn credentials(&self) -> String {
        format!(
            "SELECT data FROM {} WHERE length(data) < 1000000 ORDER BY \"updatedAt\" DESC LIMIT {CREDENTIALS}",
            self.quoted("credentials_entity")
        )
    }

    fn data_keys(&self) -> String {
        format!(
            "SELECT id, value, coalesce(algorithm, '') FROM {} WHERE type = 'data_encryption' AND length(value) < 100000 LIMIT 1000",
            self.quoted("deployment_key")
        )
    }

    /// typeorm's own table; n8n gives it the prefix, too.
    fn migration(&self) -> String {
        format!(
            "SELECT \"timestamp\", name FROM {} ORDER BY \"timestamp\" DESC LIMIT 1",
            self.quoted("migrations")
        )
    }

    fn version(&self) -> String {
        format!(
            "SELECT major, minor, patch FROM {} ORDER BY id DESC LIMIT 1",
            self.quoted("instance_version_history")
        )
    }

    fn count(&self, table: &str) -> String {
        format!("SELECT count(*) FROM {}", self.quoted(table))
    }
}

/// Reads a copy of the SQLite database.
pub(super) fn read_sqlite(
    database: &Connection,
    environment: &Environment,
) -> Result<Findings, rusqlite::Error> {
    let tables = Tables {
        schema: None,
        prefix: environment.table_prefix(),
    };
    let has = |table: &str| {
        database.query_row(
            "SELECT count(*) > 0 FROM sqlite_master WHERE type = 'table' AND name = ?1",
            [tables.plain(table)],
            |row| row.get::<_, bool>(0),
        )
    };
    let mut findings = Findings::default();
    if has("credentials_entity")? {
        let mut query = database.prepare(&tables.credentials())?;
        let rows = query.query_map([], |row| row.get(0))?;
        findings.credentials = rows.collect::<Result<_, _>>()?;
    }
    if has("deployment_key")? {
        let mut query = database.prepare(&tables.data_keys())?;
        let rows = query.query_map([], |row| {
            Ok(DataKey {
                id: row.get(0)?,
                value: row.get(1)?,
                algorithm: row.get(2)?,
            })
        })?;
        findings.data_keys = rows.collect::<Result<_, _>>()?;
    }
    if has("migrations")? {
        findings.migration = database
            .query_row(&tables.migration(), [], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .optional()?;
    }
    if has("instance_version_history")? {
        findings.version = database
            .query_row(&tables.version(), [], |row| {
                let part = |n| row.get::<_, i64>(n);
                Ok(format!("{}.{}.{}", part(0)?, part(1)?, part(2)?))
            })
            .optional()?;
    }
    for (name, table) in COUNTED {
        if has(table)? {
            let count: i64 = database.query_row(&tables.count(table), [], |row| row.get(0))?;
            let count = u64::try_from(count).unwrap_or(0);
            findings.counts.insert(name.to_owned(), count);
        }
    }
    Ok(findings)
}

/// Reads n8n's PostgreSQL database with n8n's own login, over a short connection. Blocks.
pub(super) fn read_postgres(environment: &Environment) -> Result<Findings, String> {
    let settings = settings(environment)?;
    // The client runs a runtime of its own, which must not be nested in another.
    let environment = environment.clone();
    std::thread::spawn(move || query(&settings, &environment).map_err(|e| describe(&e)))
        .join()
        .map_err(|_| "the query failed unexpectedly".to_owned())?
}

fn settings(environment: &Environment) -> Result<PostgresSettings, String> {
    let value = |name: &str| environment.get(name);
    if value("DB_POSTGRESDB_SSL_ENABLED").is_some_and(|v| v == "true")
        || value("DB_POSTGRESDB_SSL_CA").is_some()
    {
        return Err("n8n's connection to PostgreSQL uses TLS".to_owned());
    }
    let host = value("DB_POSTGRESDB_HOST").unwrap_or_else(|| "localhost".to_owned());
    if host == "localhost" && environment.is_empty() {
        return Err("DB_POSTGRESDB_HOST of its container is not known".to_owned());
    }
    let port = value("DB_POSTGRESDB_PORT").unwrap_or_else(|| "5432".to_owned());
    let port = port
        .parse()
        .map_err(|_| "DB_POSTGRESDB_PORT is not a port".to_owned())?;
    let mut settings = PostgresSettings::new();
    settings
        .host(&host)
        .port(port)
        .user(&value("DB_POSTGRESDB_USER").unwrap_or_else(|| "postgres".to_owned()))
        .dbname(&value("DB_POSTGRESDB_DATABASE").unwrap_or_else(|| "n8n".to_owned()))
        .application_name("lifeboat key check")
        .connect_timeout(CONNECT_TIMEOUT);
    if let Some(password) = value("DB_POSTGRESDB_PASSWORD") {
        settings.password(password);
    }
    Ok(settings)
}

fn query(
    settings: &PostgresSettings,
    environment: &Environment,
) -> Result<Findings, postgres::Error> {
    let mut client = settings.connect(NoTls)?;
    client.batch_execute(STATEMENT_TIMEOUT)?;
    let tables = Tables {
        schema: Some(
            environment
                .get("DB_POSTGRESDB_SCHEMA")
                .unwrap_or_else(|| "public".to_owned()),
        ),
        prefix: environment.table_prefix(),
    };
    let has = |client: &mut Client, table: &str| -> Result<bool, postgres::Error> {
        let row = client.query_one(
            "SELECT to_regclass($1) IS NOT NULL",
            &[&tables.quoted(table)],
        )?;
        row.try_get(0)
    };
    let mut findings = Findings::default();
    if has(&mut client, "credentials_entity")? {
        for row in client.query(&tables.credentials(), &[])? {
            findings.credentials.push(row.try_get(0)?);
        }
    }
    if has(&mut client, "deployment_key")? {
        for row in client.query(&tables.data_keys(), &[])? {
            findings.data_keys.push(DataKey {
                id: row.try_get(0)?,
                value: row.try_get(1)?,
                algorithm: row.try_get(2)?,
            });
        }
    }
    if has(&mut client, "migrations")?
        && let Some(row) = client.query_opt(&tables.migration(), &[])?
    {
        findings.migration = Some((row.try_get(0)?, row.try_get(1)?));
    }
    if has(&mut client, "instance_version_history")?
        && let Some(row) = client.query_opt(&tables.version(), &[])?
    {
        let part = |n| row.try_get::<_, i32>(n);
        findings.version = Some(format!("{}.{}.{}", part(0)?, part(1)?, part(2)?));
    }
    for (name, table) in COUNTED {
        if has(&mut client, table)? {
            let count: i64 = client.query_one(&tables.count(table), &[])?.try_get(0)?;
            let count = u64::try_from(count).unwrap_or(0);
            findings.counts.insert(name.to_owned(), count);
        }
    }
    Ok(findings)
}

/// The server's own words; the driver's text alone says only "db error".
fn describe(error: &postgres::Error) -> String {
    match error.as_db_error() {
        Some(said) => said.message().to_owned(),
        None => crate::services::support::cause(error),
    }
}
