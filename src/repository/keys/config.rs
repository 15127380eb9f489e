//! `config.json`: what a repository is, and who can read it.

use serde::{Deserialize, Serialize};

use crate::repository::crypto::{Mode, Sealed, Secrets};
use crate::repository::store::Store;
use crate::repository::{CONFIG_KEY, CONFIG_LIMIT_BYTES, FORMAT, RepositoryError};

/// The one field of `config.json` that every format has.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

/// `config.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::repository) struct RepositoryConfig {
    pub format: u32,
    pub id: String,
    /// `plain` or `age`.
    pub encryption: String,
    /// To whom new files are encrypted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recipients: Vec<String>,
    /// Counts the times that somebody was added: what was stored before such a time is not referred to
    /// after it, or the new one could not read it.
    pub epoch: u32,
    /// Hexadecimal; only where nothing is encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    pub seal: String,
}

impl RepositoryConfig {
    pub(super) fn new(secrets: &Secrets, mode: &Mode, epoch: u32) -> Self {
        let mut config = Self {
            format: FORMAT,
            id: secrets.id(),
            encryption: "plain".to_owned(),
            recipients: Vec::new(),
            epoch,
            secret: None,
            seal: String::new(),
        };
        match mode {
            Mode::Plain => config.secret = Some(secrets.to_hex()),
            Mode::Age { recipients, .. } => {
                "age".clone_into(&mut config.encryption);
                config.recipients = recipients.iter().map(ToString::to_string).collect();
            }
        }
        config.seal = secrets
            .seal(Sealed::Config, config.sealed_part().as_bytes())
            .to_string();
        config
    }

    pub(super) fn sealed_part(&self) -> String {
        format!(
            "{}\n{}\n{}\n{}\n{}",
            self.format,
            self.id,
            self.encryption,
            self.recipients.join(","),
            self.epoch
        )
    }

    pub(super) fn read(store: &dyn Store) -> Result<Self, RepositoryError> {
        let place = store.describe();
        let bytes = store
            .get(CONFIG_KEY, CONFIG_LIMIT_BYTES)
            .map_err(|e| match e {
                RepositoryError::Missing(_) => RepositoryError::NoRepository(place.clone()),
                other => other,
            })?;
        let unreadable = |e: serde_json::Error| {
            RepositoryError::Invalid(format!("config.json of {place} cannot be understood: {e}"))
        };
        let Format { format } = serde_json::from_slice(&bytes).map_err(unreadable)?;
        if format != FORMAT {
            return Err(RepositoryError::Invalid(format!(
                "the repository has format {format}, this program knows format {FORMAT}: use a newer one"
            )));
        }
        serde_json::from_slice(&bytes).map_err(unreadable)
    }

    pub(super) fn write(&self) -> Result<Vec<u8>, RepositoryError> {
        serde_json::to_vec_pretty(self).map_err(|e| RepositoryError::Invalid(e.to_string()))
    }
}
