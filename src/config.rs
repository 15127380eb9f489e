//! The configuration: the only reader of the environment.
//!
//! Every variable is defined once ([`Variable::all`]): the parser, `NAME_FILE`, the README's table and the
//! hint for a misspelt name all come from there. All mistakes are reported at once.

mod parse;
mod place;
mod variables;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use regex::Regex;
use serde::Deserialize;

use crate::repository::keys::Keys;

pub use place::RepositoryPlace;
pub use variables::{Variable, markdown_table};

/// Everything the program was told, parsed and checked.
#[derive(Debug, Clone)]
pub struct Config {
    pub repository: RepositoryPlace,
    /// What opens a copy with keys of its own.
    pub target_keys: Keys,
    /// Where each backup is copied to as well.
    pub copy_repository: Option<RepositoryPlace>,
    pub s3: S3Config,
    /// What opens the repository.
    pub keys: Keys,
    /// Secrets may lie unencrypted in a remote repository.
    pub plaintext_secrets: bool,
    /// Whether each backup prunes when it is done.
    pub prune: bool,
    pub state: PathBuf,
    pub data: PathBuf,
    pub project_dir: PathBuf,
    pub project: Option<String>,
    pub services: Option<Vec<String>>,
    pub docker_host: Option<String>,

    pub schedule: Schedule,
    pub retention: RetentionPolicy,
    pub exclude: Option<Regex>,
    pub compression_level: i32,
    /// Bytes that a backup reads of the services' data in a second.
    pub rate_limit: Option<u64>,
    pub priority: Priority,
    pub lock_timeout: Duration,
    pub stop_grace: Duration,
    pub restore_timeout: Duration,
    pub log_level: String,
    pub log_json: bool,

    pub postgres: PostgresConfig,
    pub pitr: PitrConfig,
    pub qdrant: QdrantConfig,
    pub ollama: OllamaConfig,
    pub n8n: N8nConfig,

    /// Odd but harmless: unknown variables with a name close to a known one.
    pub warnings: Vec<String>,
}

/// The way into S3, by the names that AWS's own tools read.
#[derive(Debug, Clone, Default)]
pub struct S3Config {
    /// `None`: AWS itself.
    pub endpoint: Option<String>,
    pub region: Option<String>,
    pub path_style: bool,
    /// Certificates to trust beside the system's.
    pub ca_bundle: Option<PathBuf>,
    pub credentials: S3Credentials,
}

/// Where the credentials come from.
#[derive(Debug, Clone)]
pub enum S3Credentials {
    Keys {
        id: String,
        secret: Secret,
        session_token: Option<Secret>,
    },
    /// One profile of a shared credentials file, read when the store is opened.
    File { path: PathBuf, profile: String },
    /// A token that an orchestrator puts into a file, exchanged for keys.
    WebIdentity {
        token_file: PathBuf,
        role_arn: String,
        session_name: Option<String>,
        sts_endpoint: Option<String>,
    },
    /// A container's role, by the address that ECS gives.
    Task { relative_uri: String },
    /// A container's role, by the address and token that EKS gives.
    Pod {
        full_uri: String,
        token_file: PathBuf,
    },
    /// The role of the machine, if it has one; `None`: asked for where every machine of AWS is.
    Machine { endpoint: Option<String> },
}

impl Default for S3Credentials {
    fn default() -> Self {
        Self::Machine { endpoint: None }
    }
}

/// What backups take of CPU and disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// What the services leave.
    Low,
    /// As much as they do.
    Normal,
}

#[derive(Debug, Clone)]
pub struct Schedule {
    pub cron: String,
    pub jitter: Duration,
    pub on_start: bool,
    pub time_zone: String,
}

/// How many backups are kept; a backup is kept when any rule wants it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RetentionPolicy {
    /// `BACKUP_RETENTION_DAYS`: everything younger is kept.
    pub within_days: Option<u32>,
    pub last: Option<u32>,
    pub daily: Option<u32>,
    pub weekly: Option<u32>,
    pub monthly: Option<u32>,
    /// `BACKUP_PRUNING_LEEWAY`: added to the age limit.
    pub leeway: Duration,
    /// A backup smaller than this share (percent) of the one before freezes retention.
    pub shrink_limit_percent: u32,
}

#[derive(Debug, Clone, Default)]
pub struct PostgresConfig {
    pub host: Option<String>,
    pub port: Option<u16>,
    pub database: Option<String>,
    pub user: Option<String>,
    pub password: Option<Secret>,
    /// The data directory as the sidecar sees it, when it cannot be found through mounts.
    pub data: Option<PathBuf>,
    pub mode: PostgresMode,
    /// Where the server's tools are when it runs in no container.
    pub bin: Option<PathBuf>,
}

/// What a backup of PostgreSQL holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PostgresMode {
    /// The data directory, with the WAL it needs.
    #[default]
    Physical,
    /// A dump of each database, and the roles.
    Dump,
    Both,
}

/// Point-in-time recovery of PostgreSQL.
#[derive(Debug, Clone)]
pub struct PitrConfig {
    pub on: bool,
    pub interval: Duration,
    pub keep_days: u32,
    /// What the slot may make the server keep.
    pub max_wal_bytes: u64,
}

#[derive(Debug, Clone, Default)]
pub struct QdrantConfig {
    pub url: Option<String>,
    pub grpc_url: Option<String>,
    pub api_key: Option<Secret>,
}

#[derive(Debug, Clone, Default)]
pub struct OllamaConfig {
    pub url: Option<String>,
    pub data: Option<PathBuf>,
}

#[derive(Debug, Clone, Default)]
pub struct N8nConfig {
    pub url: Option<String>,
    pub data: Option<PathBuf>,
    pub encryption_key: Option<Secret>,
}

/// A value that never shows itself.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value itself: for the one call that needs it, never for a message.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Every mistake in the environment, one sentence each.
#[derive(Debug, thiserror::Error)]
#[error("{}", render(.0))]
pub struct ConfigError(pub Vec<String>);

fn render(mistakes: &[String]) -> String {
    let mut text = match mistakes.len() {
        1 => "one setting is wrong:".to_owned(),
        n => format!("{n} settings are wrong:"),
    };
    for mistake in mistakes {
        text.push_str("\n  - ");
        text.push_str(mistake);
    }
    text
}

impl Config {
    /// Reads the process's environment.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::from_vars(
            std::env::vars_os()
                .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))),
        )
    }

    /// The directories that hold the program's own files: they are in no backup.
    pub fn own_directories(&self) -> impl Iterator<Item = &Path> {
        self.repository
            .directory()
            .into_iter()
            .chain(
                self.copy_repository
                    .as_ref()
                    .and_then(RepositoryPlace::directory),
            )
            .chain([self.state.as_path()])
    }

    /// Reads the given variables; what tests and [`Self::from_env`] use.
    pub fn from_vars(
        vars: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        parse::parse(vars.into_iter().collect::<BTreeMap<_, _>>())
    }
}

#[cfg(test)]
mod tests;
