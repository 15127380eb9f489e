//! Ollama: models as manifests and blobs, each blob verified against its digest while it is read.
//!
//! Blobs are renamed into place before they are verified and manifests are written in place (`server/download.go`,
//! `manifest/manifest.go` of Ollama 0.33), so a model counts as copied when its manifest reads the same before
//! and after its blobs. Blobs that models share are stored once. The archive looks like `~/.ollama`: the keys,
//! `models/blobs/…`, then `models/manifests/…`, so that whoever unpacks it in order never has a manifest
//! without its blobs. History, cache and partial downloads are left out.

mod beneath;
mod library;
mod restore;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use ollama_rs::Ollama as Client;
use serde::{Deserialize, Serialize};

use super::support::{self, Endpoint, archive_failed};
use super::{
    Check, ErrorKind, PointInTime, RunContext, Service, ServiceError, ServiceKind, ServiceReport,
};
use crate::archive::ArchiveError;
use crate::archive::{ArchiveWriter, Cut, FileOutcome, OnChange};
use crate::config::Config;
use crate::stack::StackService;
use library::{Blob, Library, LibraryError, ModelManifest, ModelName};

pub use restore::OllamaRestore;

/// Secret and public key of the server's account at its registry.
const KEYS: [&str; 2] = ["id_ed25519", "id_ed25519.pub"];
const PORT: u16 = 11434;
/// How often a model that is being changed is copied anew.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(300);
const LIST_TIMEOUT: Duration = Duration::from_secs(30);

/// One Ollama server and its directory.
#[derive(Debug)]
pub struct Ollama {
    name: String,
    place: Place,
    endpoint: Option<Endpoint>,
    /// The address is a guess: neither configured nor found through the engine.
    guessed: bool,
    version: Option<String>,
    /// Digests by model name as the server lists them; `None` without its address.
    listed: Option<BTreeMap<String, String>>,
    stored: HashSet<[u8; 32]>,
    names: Vec<ModelName>,
    warnings: Vec<String>,
}

/// Where Ollama's files are.
#[derive(Debug, Clone)]
struct Place {
    /// `~/.ollama`, with the keys; `None` when only the models are mounted.
    home: Option<PathBuf>,
    library: Library,
}

/// What the manifest keeps of the models.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Facts {
    models: Vec<ModelFacts>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct ModelFacts {
    /// As the server shows it.
    name: String,
    /// Path below `models/manifests`.
    path: String,
    digest: String,
    size: u64,
    /// File names below `models/blobs`.
    blobs: Vec<String>,
}

impl Ollama {
    pub fn new(config: &Config, service: &StackService) -> Result<Self, ServiceError> {
        Ok(Self {
            name: service.name.clone(),
            place: Place::find(config, service)?,
            endpoint: endpoint(config, service)?,
            guessed: is_guess(config, service),
            version: None,
            listed: None,
            stored: HashSet::new(),
            names: Vec::new(),
            warnings: Vec::new(),
        })
    }

    /// Stores the blobs of a model until its manifest holds still; `None` when the model is gone, or is one
    /// that the server does not offer either.
    fn complete(
        &mut self,
        archive: &mut ArchiveWriter,
        name: &ModelName,
    ) -> Result<Option<ModelManifest>, ServiceError> {
        let mut trouble = String::new();
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                std::thread::sleep(PAUSE);
            }
            let manifest = match self.place.library.read(name) {
                Ok(Some(manifest)) => manifest,
                Ok(None) => return Ok(None),
                Err(LibraryError::Invalid { why, .. }) => {
                    trouble = format!("its manifest cannot be read: {why}");
                    break;
                }
                Err(e) => return Err(self.failed(e)),
            };
            match self.store_blobs(archive, &manifest)? {
                Stored::All => {
                    let again = self.place.library.read(name).map_err(|e| self.failed(e))?;
                    match again {
                        Some(again) if again.bytes == manifest.bytes => return Ok(Some(manifest)),
                        Some(_) => "its manifest keeps changing".clone_into(&mut trouble),
                        None => return Ok(None),
                    }
                }
                Stored::Missing(what) => trouble = what,
            }
        }
        self.incomplete(name, &trouble)
    }

    fn store_blobs(
        &mut self,
        archive: &mut ArchiveWriter,
        manifest: &ModelManifest,
    ) -> Result<Stored, ServiceError> {
        for blob in &manifest.blobs {
            if self.stored.contains(&blob.sha256) {
                continue;
            }
            let file_name = blob.file_name();
            let path = self.place.library.blob_path(&file_name);
            let name = format!("models/blobs/{file_name}");
            match archive.file_with_digest(&name, &path, Cut::Model, &blob.sha256) {
                Ok(FileOutcome::Vanished) => {
                    return Ok(Stored::Missing(format!(
                        "its blob {} is missing",
                        path.display()
                    )));
                }
                Ok(_) => {
                    self.stored.insert(blob.sha256);
                }
                Err(e @ (ArchiveError::Digest { .. } | ArchiveError::KeepsChanging(_))) => {
                    return Ok(Stored::Missing(e.to_string()));
                }
                Err(e) => return Err(archive_failed(&self.name, e)),
            }
        }
        Ok(Stored::All)
    }

    /// A model that cannot be kept whole is an error, unless the server does not offer it either.
    fn incomplete(
        &mut self,
        name: &ModelName,
        trouble: &str,
    ) -> Result<Option<ModelManifest>, ServiceError> {
        let shown = name.to_string();
        let offered = self
            .listed
            .as_ref()
            .is_none_or(|listed| listed.contains_key(&shown));
        if offered {
            let message = format!(
                "model {shown} is damaged: {trouble}. Pull it again (ollama pull {shown}) or remove it (ollama rm {shown})"
            );
            return Err(ServiceError::new(&self.name, ErrorKind::Damaged, message));
        }
        let warning = format!(
            "model {shown} is incomplete on disk and not offered by the server; it is not in the backup: {trouble}"
        );
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
        Ok(None)
    }

    fn store_keys(&mut self, archive: &mut ArchiveWriter) -> Result<(), ServiceError> {
        let Some(home) = &self.place.home else {
            return Ok(());
        };
        for key in KEYS {
            archive
                .file(key, &home.join(key), Cut::Content, OnChange::ReadAgain)
                .map_err(|e| archive_failed(&self.name, e))?;
        }
        Ok(())
    }

    /// Compares the server's models with the directory's: another directory may be mounted here.
    async fn compare_with_server(&mut self) -> Result<(), ServiceError> {
        let Some(endpoint) = &self.endpoint else {
            return Ok(());
        };
        let mut unknown = String::new();
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                tokio::time::sleep(PAUSE).await;
            }
            let listed = tags(endpoint).await?;
            let library = self.place.library.clone();
            let found =
                tokio::task::block_in_place(|| digests(&library)).map_err(|e| self.failed(e))?;
            let missing = listed
                .iter()
                .find(|(name, digest)| found.get(*name) != Some(*digest))
                .map(|(name, _)| name.clone());
            self.listed = Some(listed);
            match missing {
                None => return Ok(()),
                // Pulled or deleted between the two looks: look again.
                Some(name) => unknown = name,
            }
        }
        let message = format!(
            "the server offers model {unknown}, but {} does not hold it: mount the directory that the server uses (OLLAMA_MODELS of its container, OLLAMA_DATA here)",
            self.place.library.root.display()
        );
        Err(ServiceError::new(&self.name, ErrorKind::Setup, message))
    }

    fn failed(&self, error: LibraryError) -> ServiceError {
        ServiceError::new(&self.name, ErrorKind::Io, error.to_string()).with_source(error)
    }
}

enum Stored {
    All,
    Missing(String),
}

#[async_trait]
impl Service for Ollama {
    fn kind(&self) -> ServiceKind {
        ServiceKind::Ollama
    }

    fn name(&self) -> &str {
        &self.name
    }

    async fn check(&self) -> Vec<Check> {
        let subject = |what: &str| format!("{}: {what}", self.name);
        let models = &self.place.library.root;
        let mut checks = vec![support::check_directory(subject("models"), models)];
        let Some(endpoint) = &self.endpoint else {
            checks.push(Check::good(
                subject("connection"),
                "no OLLAMA_URL: its files are backed up without asking the server",
            ));
            return checks;
        };
        checks.push(match offered(&self.name, endpoint).await {
            Ok((version, models)) => Check::good(
                subject("connection"),
                format!("Ollama {version} with {} models", models.len()),
            ),
            Err(e) if self.guessed => Check::good(
                subject("connection"),
                format!("not asked, files only: {}", e.message),
            ),
            Err(e) => Check::bad(subject("connection"), e.message),
        });
        checks
    }

    async fn estimate(&self) -> u64 {
        let library = self.place.library.clone();
        tokio::task::block_in_place(move || {
            let mut seen = HashSet::new();
            // Only an estimate: what cannot be read is reported by `check` and `copy`.
            let names = library.names().unwrap_or_default();
            let manifests = names.iter().filter_map(|n| library.read(n).ok().flatten());
            manifests
                .flat_map(|m| m.blobs)
                .filter(|blob| seen.insert(blob.sha256))
                .map(|blob| blob.size)
                .sum()
        })
    }

    async fn hold(&mut self, _run: &RunContext) -> Result<(), ServiceError> {
        if self.guessed
            && let Some(endpoint) = &self.endpoint
            && endpoint.base().await.is_err()
        {
            self.endpoint = None;
        }
        if let Some(endpoint) = &self.endpoint {
            self.version = Some(version(endpoint).await?);
            self.listed = Some(tags(endpoint).await?);
        } else {
            self.warnings.push(
                "Ollama's files were copied without asking a server whether these are the models it offers (OLLAMA_URL)"
                    .to_owned(),
            );
        }
        Ok(())
    }

    async fn copy(&mut self, archive: &mut ArchiveWriter) -> Result<(), ServiceError> {
        tokio::task::block_in_place(|| {
            self.store_keys(archive)?;
            let names = self.place.library.names().map_err(|e| self.failed(e))?;
            for name in &names {
                self.complete(archive, name)?;
            }
            Ok(())
        })
    }

    async fn freeze(&mut self) -> Result<PointInTime, ServiceError> {
        self.compare_with_server().await?;
        let at = Timestamp::now();
        self.names = self.place.library.names().map_err(|e| self.failed(e))?;
        Ok(PointInTime::at(at))
    }

    async fn drain(&mut self, archive: &mut ArchiveWriter) -> Result<ServiceReport, ServiceError> {
        let names = std::mem::take(&mut self.names);
        let mut facts = Facts::default();
        let mut blobs = HashSet::new();
        tokio::task::block_in_place(|| {
            let mut manifests = Vec::new();
            for name in &names {
                manifests.extend(self.complete(archive, name)?);
            }
            for manifest in manifests {
                let path = manifest.name.path();
                archive
                    .bytes(
                        &format!("models/manifests/{path}"),
                        &manifest.meta,
                        &manifest.bytes,
                    )
                    .map_err(|e| archive_failed(&self.name, e))?;
                blobs.extend(manifest.blobs.iter().map(|b| b.sha256));
                facts.models.push(ModelFacts {
                    name: manifest.name.to_string(),
                    path,
                    digest: manifest.digest.clone(),
                    size: manifest.size(),
                    blobs: manifest.blobs.iter().map(Blob::file_name).collect(),
                });
            }
            Ok(())
        })?;
        let counts = [("models", facts.models.len()), ("blobs", blobs.len())];
        Ok(ServiceReport {
            version: self.version.clone().unwrap_or_else(|| "unknown".to_owned()),
            counts: counts
                .map(|(name, n)| (name.to_owned(), n as u64))
                .into_iter()
                .collect(),
            facts: serde_json::to_value(&facts)
                .map_err(|e| ServiceError::new(&self.name, ErrorKind::Damaged, e.to_string()))?,
            warnings: std::mem::take(&mut self.warnings),
        })
    }
}

impl Place {
    /// By `OLLAMA_DATA`, else by the container's mounts, `OLLAMA_MODELS` of its environment included.
    fn find(config: &Config, service: &StackService) -> Result<Self, ServiceError> {
        let models_variable = service
            .environment
            .get("OLLAMA_MODELS")
            .filter(|v| !v.is_empty());
        if config.ollama.data.is_none()
            && let Some(variable) = models_variable
        {
            let root = service.local_path(Path::new(variable)).ok_or_else(|| {
                let message = format!(
                    "its models are in {variable} (OLLAMA_MODELS), which is not mounted into this container: mount the same volume or host directory here too"
                );
                ServiceError::new(&service.name, ErrorKind::Setup, message)
            })?;
            return Ok(Self {
                home: service.local_path(Path::new("/root/.ollama")),
                library: Library { root },
            });
        }
        let home = support::data_directory(
            config,
            service,
            config.ollama.data.as_ref(),
            Path::new("/root/.ollama"),
            "ollama",
            "OLLAMA_DATA",
        )?;
        let models = home.join("models");
        if !models.exists() && home.join("manifests").is_dir() && home.join("blobs").is_dir() {
            return Ok(Self {
                home: None,
                library: Library { root: home },
            });
        }
        Ok(Self {
            home: Some(home),
            library: Library { root: models },
        })
    }
}

fn endpoint(config: &Config, service: &StackService) -> Result<Option<Endpoint>, ServiceError> {
    let url = config.ollama.url.as_deref();
    Endpoint::new(service, url, PORT, "OLLAMA_URL", "/api/version")
}

/// Whether an address would be a guess: neither configured nor found through the engine.
fn is_guess(config: &Config, service: &StackService) -> bool {
    config.ollama.url.is_none() && service.container.is_none()
}

/// Version and models, through `ollama-rs`.
async fn offered(
    service: &str,
    endpoint: &Endpoint,
) -> Result<(String, Vec<String>), ServiceError> {
    let version = version(endpoint).await?;
    let base = endpoint.base().await?;
    let unreachable = |message: String| ServiceError::new(service, ErrorKind::Unreachable, message);
    let client = Client::try_new(base.url.as_str())
        .map_err(|e| unreachable(format!("OLLAMA_URL is not an address: {e}")))?;
    let models = tokio::time::timeout(LIST_TIMEOUT, client.list_local_models())
        .await
        .map_err(|_| unreachable(format!("{} did not list its models in time", base.shown)))?
        .map_err(|e| unreachable(format!("cannot list models at {}: {e}", base.shown)))?;
    Ok((version, models.into_iter().map(|m| m.name).collect()))
}

async fn version(endpoint: &Endpoint) -> Result<String, ServiceError> {
    let base = endpoint.base().await?;
    let answer = base
        .json("read Ollama's version", base.get("/api/version"))
        .await?;
    let version = answer.get("version").and_then(|v| v.as_str());
    Ok(version.unwrap_or("unknown").to_owned())
}

/// Digests by name as the server lists them. `ollama-rs` has no digests.
async fn tags(endpoint: &Endpoint) -> Result<BTreeMap<String, String>, ServiceError> {
    let base = endpoint.base().await?;
    let answer = base.json("list models", base.get("/api/tags")).await?;
    let models = answer.get("models").and_then(|v| v.as_array());
    let text = |model: &serde_json::Value, key: &str| model.get(key)?.as_str().map(str::to_owned);
    Ok(models
        .into_iter()
        .flatten()
        .filter_map(|m| Some((text(m, "name")?, text(m, "digest")?)))
        .collect())
}

/// Digests by name as the directory holds them.
fn digests(library: &Library) -> Result<BTreeMap<String, String>, LibraryError> {
    let mut found = BTreeMap::new();
    for name in library.names()? {
        match library.read(&name) {
            Ok(Some(manifest)) => {
                found.insert(name.to_string(), manifest.digest);
            }
            // The server skips what it cannot read, too.
            Ok(None) | Err(LibraryError::Invalid { .. }) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(found)
}
