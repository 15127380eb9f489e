//! n8n: its SQLite database as of one instant, its files, and the key that opens its credentials.
//!
//! The database comes first and the files after it: a file more than the database knows is harmless, one less
//! is not. On PostgreSQL the database is that service's business, and only its rows that prove the key are
//! looked at. Facts by n8n 2.41: the key is `encryptionKey` in `config`, where n8n writes it unless the file
//! exists already (`instance-settings.js`); binary data lie in `storage/`, before in `binaryData/`
//! (`storage.config.js`).

mod database;
mod key;
mod locate;
mod restore;
mod sqlite;
mod version;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::support::{self, Endpoint, archive_failed, io_failed};
use super::{
    Check, ErrorKind, PointInTime, RunContext, Service, ServiceError, ServiceKind, ServiceReport,
};
use crate::archive::walk::{Rules, meta_of};
use crate::archive::{ArchiveWriter, Cut, EntryMeta, OnChange};
use crate::config::Config;
use crate::stack::StackService;
use database::Findings;
use key::Proof;
use locate::{configured_key, endpoint, find_database, find_home, find_key};
use sqlite::SqliteError;

pub use key::proves_key;
pub use restore::N8nRestore;

const HOME: &str = "/home/node/.n8n";
/// Where the archive keeps a key that is not in n8n's own `config`.
const KEY_ENTRY: &str = ".lifeboat/encryption-key";
/// What never comes back: downloads, and the mark by which n8n tells that it crashed.
const NOT_KEPT: [&str; 4] = [".cache", "crash.journal", ".lifeboat", "lost+found"];

/// One n8n instance and its directory.
#[derive(Debug)]
pub struct N8n {
    name: String,
    home: PathBuf,
    database: Database,
    environment: Environment,
    endpoint: Option<Endpoint>,
    image: Option<String>,
    configured_key: Option<String>,
    exclude: Option<regex::Regex>,
    own_directories: Vec<String>,
    key: Option<FoundKey>,
    version: Option<String>,
    scratch: Option<PathBuf>,
    /// Its directory is a copy: the servers that answer are others than those it belonged to.
    is_copy: bool,
    page_bytes: u32,
    warnings: Vec<String>,
}

/// Where n8n keeps its workflows and credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Database {
    /// A file in n8n's directory, by its name relative to it.
    Sqlite {
        file: String,
    },
    Postgres,
}

/// The container's environment as n8n reads it. Prints no values.
#[derive(Clone, Default)]
struct Environment(BTreeMap<String, String>);

/// A key and where it was found.
struct FoundKey {
    value: String,
    place: &'static str,
    in_config_file: bool,
}

/// What the manifest keeps of n8n.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Facts {
    /// `sqlite` or `postgres`.
    database: String,
    /// Name of the SQLite file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    /// The newest migration's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    migration: Option<String>,
    key_fingerprint: String,
    /// What the key was proven on, when it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_opens: Option<String>,
}

impl Environment {
    fn get(&self, name: &str) -> Option<String> {
        self.0.get(name).filter(|v| !v.is_empty()).cloned()
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn table_prefix(&self) -> String {
        self.get("DB_TABLE_PREFIX").unwrap_or_default()
    }
}

impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl std::fmt::Debug for FoundKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "key from {}", self.place)
    }
}

impl N8n {
    pub fn new(config: &Config, service: &StackService) -> Result<Self, ServiceError> {
        let home = find_home(config, service)?;
        let environment = Environment(service.environment.clone());
        let database = find_database(service, &environment, &home)?;
        Ok(Self {
            name: service.name.clone(),
            own_directories: super::volume::own_directories(config, &home),
            home,
            database,
            endpoint: endpoint(config, service, &environment)?,
            environment,
            image: service.container.as_ref().map(|c| c.image.clone()),
            configured_key: configured_key(config),
            exclude: config.exclude.clone(),
            key: None,
            version: None,
            scratch: None,
            is_copy: false,
            page_bytes: 0,
            warnings: Vec::new(),
        })
    }

    /// A copy of an n8n directory, with as much of its environment as is known.
    pub fn of_copy(config: &Config, service: &StackService) -> Result<Self, ServiceError> {
        Ok(Self {
            is_copy: true,
            endpoint: None,
            ..Self::new(config, service)?
        })
    }

    /// The key, from wherever it is; an error when two places disagree, as n8n would not start then.
    fn find_key(&self) -> Result<FoundKey, ServiceError> {
        find_key(
            &self.name,
            &self.home,
            &self.environment,
            self.configured_key.as_deref(),
        )
    }

    fn rules(&self) -> Rules {
        let mut exclude: Vec<String> = NOT_KEPT.map(str::to_owned).into();
        exclude.extend(self.own_directories.iter().cloned());
        // On PostgreSQL, a database file is what a former set-up left.
        let file = match &self.database {
            Database::Sqlite { file } => file,
            Database::Postgres => "database.sqlite",
        };
        exclude.extend(["", "-wal", "-shm", "-journal"].map(|suffix| format!("{file}{suffix}")));
        Rules {
            exclude,
            exclude_regexp: self.exclude.clone(),
            pages: Vec::new(),
        }
    }

    fn scratch_copy(&self) -> Option<PathBuf> {
        let scratch = self.scratch.as_ref()?;
        Some(scratch.join(format!("{}.sqlite", self.name)))
    }

    /// Writes the database's copy, owned as the original is.
    fn store_database(
        &mut self,
        archive: &mut ArchiveWriter,
        file: &str,
        copy: &Path,
    ) -> Result<(), ServiceError> {
        use std::os::unix::fs::MetadataExt;
        let original = self.home.join(file);
        let stat = std::fs::metadata(&original)
            .map_err(|e| io_failed(&self.name, "read", &original, e))?;
        if let Err(e) = std::os::unix::fs::lchown(copy, Some(stat.uid()), Some(stat.gid())) {
            self.warnings.push(format!(
                "the owner of {file} could not be recorded ({e}): run with the capability CHOWN"
            ));
        }
        archive
            .file(file, copy, Cut::Pages(self.page_bytes), OnChange::ReadAgain)
            .map_err(|e| archive_failed(&self.name, e))?;
        Ok(())
    }

    /// What the database holds; a warning instead where PostgreSQL cannot be asked.
    fn look(&mut self) -> Result<Option<Findings>, ServiceError> {
        match &self.database {
            Database::Sqlite { file } => {
                let Some(copy) = self.scratch_copy() else {
                    return Ok(None);
                };
                let original = self.home.join(file);
                let open = sqlite::open_copy(&copy).map_err(|e| self.sqlite_failed(e))?;
                sqlite::check_copy(&open, &original).map_err(|e| self.sqlite_failed(e))?;
                database::read_sqlite(&open, &self.environment)
                    .map(Some)
                    .map_err(|source| {
                        self.sqlite_failed(SqliteError::Copy {
                            path: original,
                            source,
                        })
                    })
            }
            Database::Postgres if self.is_copy => {
                self.warnings.push(
                    "the encryption key was not proven, because n8n's credentials are in PostgreSQL: see after a restore that n8n opens them"
                        .to_owned(),
                );
                Ok(None)
            }
            Database::Postgres => match database::read_postgres(&self.environment) {
                Ok(findings) => Ok(Some(findings)),
                Err(why) => {
                    self.warnings.push(format!(
                        "the encryption key was not proven, because n8n's PostgreSQL database could not be asked: {why}"
                    ));
                    Ok(None)
                }
            },
        }
    }

    /// A key that opens nothing makes the backup worthless: an error.
    fn prove(&self, key: &FoundKey, findings: &Findings) -> Result<Option<String>, ServiceError> {
        match key::prove(&key.value, findings) {
            Proof::Opens(what) => Ok(Some(what.to_owned())),
            Proof::NothingToOpen => Ok(None),
            Proof::OpensNothing => {
                let message = format!(
                    "the encryption key from {} opens none of the stored credentials: a restore could not use them. Give the right key with N8N_ENCRYPTION_KEY",
                    key.place
                );
                Err(ServiceError::new(&self.name, ErrorKind::Setup, message))
            }
        }
    }

    fn note_outside_data(&mut self) {
        for variable in ["N8N_STORAGE_PATH", "N8N_BINARY_DATA_STORAGE_PATH"] {
            if let Some(path) = self.environment.get(variable)
                && !Path::new(&path).starts_with(HOME)
            {
                self.warnings.push(format!(
                    "binary data lie in {path} ({variable}), outside n8n's directory: mount it below /data to have it backed up as a volume"
                ));
            }
        }
    }

    fn sqlite_failed(&self, error: SqliteError) -> ServiceError {
        let kind = match &error {
            SqliteError::Damaged { .. } | SqliteError::NotSqlite(_) => ErrorKind::Damaged,
            SqliteError::Locked { .. } => ErrorKind::Unreachable,
            _ => ErrorKind::Io,
        };
        ServiceError::new(&self.name, kind, error.to_string()).with_source(error)
    }
}

#[async_trait]
impl Service for N8n {
    fn kind(&self) -> ServiceKind {
        ServiceKind::N8n
    }

    fn name(&self) -> &str {
        &self.name
    }

    async fn check(&self) -> Vec<Check> {
        let subject = |what: &str| format!("{}: {what}", self.name);
        let mut checks = vec![support::check_directory(subject("directory"), &self.home)];
        checks.push(match self.find_key() {
            Ok(key) => Check::good(subject("encryption key"), format!("from {}", key.place)),
            Err(e) => Check::bad(subject("encryption key"), e.message),
        });
        checks.push(Check::good(
            subject("database"),
            match &self.database {
                Database::Sqlite { file } => format!("SQLite, {}", self.home.join(file).display()),
                Database::Postgres => "PostgreSQL, backed up as that service".to_owned(),
            },
        ));
        if let Some(endpoint) = &self.endpoint {
            checks.push(match endpoint.base().await {
                Ok(base) => Check::good(subject("connection"), base.shown),
                Err(e) => Check::bad(subject("connection"), e.message),
            });
        }
        checks
    }

    async fn estimate(&self) -> u64 {
        let database = match &self.database {
            Database::Sqlite { file } => {
                std::fs::metadata(self.home.join(file)).map_or(0, |stat| stat.len())
            }
            Database::Postgres => 0,
        };
        let rules = self.rules();
        let files = tokio::task::block_in_place(|| super::volume::tree_bytes(&self.home, &rules));
        database + files
    }

    async fn hold(&mut self, run: &RunContext) -> Result<(), ServiceError> {
        self.key = Some(self.find_key()?);
        self.scratch = Some(run.scratch.clone());
        self.version = version::ask(self.endpoint.as_ref()).await;
        self.note_outside_data();
        Ok(())
    }

    async fn copy(&mut self, _archive: &mut ArchiveWriter) -> Result<(), ServiceError> {
        Ok(())
    }

    async fn freeze(&mut self) -> Result<PointInTime, ServiceError> {
        // What is committed before this instant is in the copy, whose transaction begins after it.
        let at = Timestamp::now();
        if let Database::Sqlite { file } = &self.database
            && let Some(copy) = self.scratch_copy()
        {
            let original = self.home.join(file);
            self.page_bytes = tokio::task::block_in_place(|| sqlite::hot_copy(&original, &copy))
                .map_err(|e| self.sqlite_failed(e))?;
        }
        Ok(PointInTime::at(at))
    }

    async fn drain(&mut self, archive: &mut ArchiveWriter) -> Result<ServiceReport, ServiceError> {
        let key = match self.key.take() {
            Some(key) => key,
            None => self.find_key()?,
        };
        let report = tokio::task::block_in_place(|| self.write(archive, &key));
        self.key = Some(key);
        report
    }

    async fn release(&mut self) -> Result<(), ServiceError> {
        match self.scratch_copy() {
            Some(copy) => tokio::task::block_in_place(|| sqlite::remove_all(&copy))
                .map_err(|e| self.sqlite_failed(e)),
            None => Ok(()),
        }
    }
}

impl N8n {
    /// Database, then files, then the key when the files do not hold it.
    fn write(
        &mut self,
        archive: &mut ArchiveWriter,
        key: &FoundKey,
    ) -> Result<ServiceReport, ServiceError> {
        let findings = self.look()?;
        let opens = match &findings {
            Some(findings) => self.prove(key, findings)?,
            None => None,
        };
        if let Database::Sqlite { file } = self.database.clone()
            && let Some(copy) = self.scratch_copy()
        {
            self.store_database(archive, &file, &copy)?;
        }
        let rules = self.rules();
        let counts = archive
            .tree("", &self.home, &rules)
            .map_err(|e| archive_failed(&self.name, e))?;
        self.warnings
            .extend(super::volume::skipped_warning(&counts));
        if !key.in_config_file {
            self.store_key(archive, key)?;
        }
        let findings = findings.unwrap_or_default();
        let version = self
            .version
            .take()
            .or(findings.version)
            .or_else(|| self.image.as_deref().and_then(version::of_image));
        let facts = Facts {
            database: match &self.database {
                Database::Sqlite { .. } => "sqlite".to_owned(),
                Database::Postgres => "postgres".to_owned(),
            },
            file: match &self.database {
                Database::Sqlite { file } => Some(file.clone()),
                Database::Postgres => None,
            },
            migration: findings.migration.map(|(_, name)| name),
            key_fingerprint: key::fingerprint(&key.value),
            key_opens: opens,
        };
        Ok(ServiceReport {
            version: version.unwrap_or_else(|| "unknown".to_owned()),
            counts: findings.counts,
            facts: serde_json::to_value(facts)
                .map_err(|e| ServiceError::new(&self.name, ErrorKind::Damaged, e.to_string()))?,
            warnings: std::mem::take(&mut self.warnings),
        })
    }

    fn store_key(&self, archive: &mut ArchiveWriter, key: &FoundKey) -> Result<(), ServiceError> {
        let failed = |e| archive_failed(&self.name, e);
        let home = meta_of(&self.home).map_err(failed)?;
        let meta = |mode| EntryMeta {
            mode,
            xattrs: Vec::new(),
            ..home.clone()
        };
        archive
            .directory(".lifeboat", &meta(0o700))
            .and_then(|()| archive.bytes(KEY_ENTRY, &meta(0o600), key.value.as_bytes()))
            .map_err(failed)
    }
}
