//! Where n8n's directory, database, address and key are.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::{Database, Environment, FoundKey, HOME};
use crate::config::Config;
use crate::services::support::{self, Endpoint, io_failed};
use crate::services::{ErrorKind, ServiceError};
use crate::stack::StackService;

const PORT: u16 = 5678;
/// `config` has a few hundred bytes.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

pub(super) fn find_home(config: &Config, service: &StackService) -> Result<PathBuf, ServiceError> {
    let folder = service
        .environment
        .get("N8N_USER_FOLDER")
        .filter(|folder| !folder.is_empty());
    let in_container = match folder {
        Some(folder) => Path::new(folder).join(".n8n"),
        None => PathBuf::from(HOME),
    };
    support::data_directory(
        config,
        service,
        config.n8n.data.as_ref(),
        &in_container,
        "n8n",
        "N8N_DATA",
    )
}

pub(super) fn find_database(
    service: &StackService,
    environment: &Environment,
    home: &Path,
) -> Result<Database, ServiceError> {
    let setup = |message| ServiceError::new(&service.name, ErrorKind::Setup, message);
    let file = environment
        .get("DB_SQLITE_DATABASE")
        .unwrap_or_else(|| "database.sqlite".to_owned());
    match environment.get("DB_TYPE").as_deref() {
        Some("postgresdb") => return Ok(Database::Postgres),
        Some("sqlite") => {}
        Some(other) => {
            return Err(setup(format!(
                "DB_TYPE is {other}: n8n 2 knows sqlite and postgresdb, and so does this program"
            )));
        }
        // Without the container's environment, the file tells.
        None if environment.is_empty() && !home.join(&file).exists() => {
            return Ok(Database::Postgres);
        }
        None => {}
    }
    if is_plain_relative(Path::new(&file)) {
        return Ok(Database::Sqlite { file });
    }
    Err(setup(format!(
        "its database is {file} (DB_SQLITE_DATABASE), outside n8n's directory: move it there"
    )))
}

pub(super) fn is_plain_relative(path: &Path) -> bool {
    let is_name = |part| matches!(part, std::path::Component::Normal(_));
    path.file_name().is_some() && path.components().all(is_name)
}

pub(super) fn endpoint(
    config: &Config,
    service: &StackService,
    environment: &Environment,
) -> Result<Option<Endpoint>, ServiceError> {
    let port = environment.get("N8N_PORT").and_then(|p| p.parse().ok());
    let url = config.n8n.url.as_deref();
    Endpoint::new(service, url, port.unwrap_or(PORT), "N8N_URL", "/healthz")
}

pub(super) fn configured_key(config: &Config) -> Option<String> {
    let key = config.n8n.encryption_key.as_ref()?;
    Some(key.reveal().to_owned())
}

/// The key of an n8n directory and its environment.
pub(super) fn find_key(
    service: &str,
    home: &Path,
    environment: &Environment,
    configured: Option<&str>,
) -> Result<FoundKey, ServiceError> {
    let setup = |message| ServiceError::new(service, ErrorKind::Setup, message);
    let file = key_of_config_file(service, &home.join("config"))?;
    let places = [
        ("n8n's config file", file.clone()),
        (
            "N8N_ENCRYPTION_KEY of its container",
            environment.get("N8N_ENCRYPTION_KEY"),
        ),
        ("N8N_ENCRYPTION_KEY", configured.map(str::to_owned)),
    ];
    let mut found: Option<FoundKey> = None;
    for (place, value) in places {
        let Some(value) = value else {
            continue;
        };
        match &found {
            Some(first) if first.value != value => {
                return Err(setup(format!(
                    "the encryption keys from {} and from {place} differ: n8n does not start that way, so one of them is wrong",
                    first.place
                )));
            }
            Some(_) => {}
            None => {
                found = Some(FoundKey {
                    value,
                    place,
                    in_config_file: file.is_some(),
                });
            }
        }
    }
    found.ok_or_else(|| {
        setup(format!(
            "its encryption key is neither in {} nor in its container's environment, and without it a restored n8n opens no credential: set N8N_ENCRYPTION_KEY",
            home.join("config").display()
        ))
    })
}

pub(super) fn key_of_config_file(
    service: &str,
    path: &Path,
) -> Result<Option<String>, ServiceError> {
    let failed = |e| io_failed(service, "read", path, e);
    let file = match support::regular(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let mut text = Vec::new();
    file.take(MAX_CONFIG_BYTES + 1)
        .read_to_end(&mut text)
        .map_err(failed)?;
    if text.len() as u64 > MAX_CONFIG_BYTES {
        let message = format!("{} is too large for what it is", path.display());
        return Err(ServiceError::new(service, ErrorKind::Setup, message));
    }
    // The error of the parser could quote the key.
    let settings: serde_json::Value = serde_json::from_slice(&text).map_err(|_| {
        let message = format!(
            "{} is not valid JSON: n8n does not start that way",
            path.display()
        );
        ServiceError::new(service, ErrorKind::Setup, message)
    })?;
    let key = settings.get("encryptionKey").and_then(|key| key.as_str());
    Ok(key.filter(|key| !key.is_empty()).map(str::to_owned))
}
