//! Brings models back into a running server: blobs first, then the manifests renamed into place.
//!
//! Additive: models that the backup does not have stay. The server reads the manifests anew for each list
//! (`syncManifests` in `server/model_list_cache.go` of Ollama 0.33), so it needs no restart.

use std::collections::{BTreeMap, HashSet};
use std::io::Read as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::beneath::{Dir, put_small};
use super::library::{Library, ModelName, blobs_of};
use super::{Facts, KEYS, Place, digests, endpoint, is_guess, tags};
use crate::archive::unpack::Members;
use crate::config::Config;
use crate::repository::manifest::ArchiveRecord;
use crate::repository::reader::ArchiveReader;
use crate::restore::{Restore, Way};
use crate::services::support::{Endpoint, check_writable, hex, io_failed, sha256_from_hex};
use crate::services::{Check, ErrorKind, RunContext, ServiceError};
use crate::stack::StackService;

/// A manifest or key is small; a larger one is not what a backup wrote.
const MAX_SMALL_BYTES: u64 = 4 << 20;
const MAX_SMALL_FILES: usize = 100_000;
/// All of them are held in memory.
const MAX_SMALL_SUM: usize = 64 << 20;
const PIECE_BYTES: usize = 256 * 1024;
const POLL: Duration = Duration::from_millis(250);

/// Ollama's restore.
#[derive(Debug)]
pub struct OllamaRestore {
    name: String,
    place: Place,
    endpoint: Option<Endpoint>,
    guessed: bool,
    timeout: Duration,
    undo: Undo,
}

/// A file's bytes and mode.
type Content = (Vec<u8>, u32);

/// What a rollback puts back.
#[derive(Debug, Default)]
struct Undo {
    /// Small files as they were; `None` where there was none. In the order they were replaced.
    files: Vec<(Target, Option<Content>)>,
    blobs: Vec<String>,
}

/// What a small file is.
#[derive(Debug)]
enum Target {
    /// Of the server's account, in its own directory.
    Key(&'static str),
    Manifest(ModelName),
}

/// A small file of the archive, kept in memory until all blobs are on disk.
struct Small {
    target: Target,
    bytes: Vec<u8>,
    mode: u32,
}

impl OllamaRestore {
    pub fn new(config: &Config, service: &StackService) -> Result<Self, ServiceError> {
        Ok(Self {
            name: service.name.clone(),
            place: Place::find(config, service)?,
            endpoint: endpoint(config, service)?,
            guessed: is_guess(config, service),
            timeout: config.restore_timeout,
            undo: Undo::default(),
        })
    }

    fn library(&self) -> &Library {
        &self.place.library
    }

    fn facts(&self, record: &ArchiveRecord) -> Result<Facts, ServiceError> {
        serde_json::from_value(record.report.facts.clone()).map_err(|e| {
            self.damaged(format!(
                "the backup's list of models cannot be read ({e}): it was written by another version or is damaged"
            ))
        })
    }

    /// Reads the archive once: blobs are written as they come, small files when all blobs are on disk.
    async fn apply_stream(
        &mut self,
        archive: impl AsyncRead + Unpin + Send,
        facts: &Facts,
    ) -> Result<(), ServiceError> {
        let wanted: HashSet<&str> = facts
            .models
            .iter()
            .flat_map(|m| m.blobs.iter().map(String::as_str))
            .collect();
        let (models, blobs) = tokio::task::block_in_place(|| self.make_directories())?;
        let mut small = Vec::new();
        let mut small_bytes = 0;
        let mut present = HashSet::new();
        let mut members = Members::new(archive).map_err(|e| self.unreadable(&e))?;
        while let Some(entry) = members.next().await.map_err(|e| self.unreadable(&e))? {
            let name = entry
                .path_bytes()
                .map_err(|e| self.unreadable(&e))?
                .into_owned();
            let Ok(name) = String::from_utf8(name) else {
                continue;
            };
            if !entry.header().entry_type().is_file() {
                continue;
            }
            if let Some(blob) = name.strip_prefix("models/blobs/") {
                if wanted.contains(blob) {
                    let size = entry.effective_size();
                    self.put_blob(&models, &blobs, blob, size, entry).await?;
                    present.insert(blob.to_owned());
                }
            } else if let Some(target) = self.small_target(&name, facts) {
                let mode = entry.header().mode().unwrap_or(0o600) & 0o777;
                let bytes = self.read_small(&name, entry).await?;
                small_bytes += bytes.len();
                small.push(Small {
                    target,
                    bytes,
                    mode,
                });
                if small.len() > MAX_SMALL_FILES || small_bytes > MAX_SMALL_SUM {
                    return Err(self.damaged("the archive has too many manifests".to_owned()));
                }
            }
        }
        if let Some(missing) = wanted.iter().find(|blob| !present.contains(**blob)) {
            return Err(self.damaged(format!(
                "the archive lacks blob {missing}, which its models need: the backup is damaged; no model was changed"
            )));
        }
        tokio::task::block_in_place(|| self.publish(&models, small))
    }

    /// Where a small file of the archive goes; `None` for what is not restored.
    fn small_target(&self, name: &str, facts: &Facts) -> Option<Target> {
        if let Some(key) = KEYS.into_iter().find(|key| *key == name) {
            return self.place.home.is_some().then_some(Target::Key(key));
        }
        let path = name.strip_prefix("models/manifests/")?;
        let model = ModelName::from_path(path)?;
        facts
            .models
            .iter()
            .any(|m| m.path == path)
            .then_some(Target::Manifest(model))
    }

    async fn read_small(
        &self,
        name: &str,
        body: &mut (impl AsyncRead + Unpin),
    ) -> Result<Vec<u8>, ServiceError> {
        let mut bytes = Vec::new();
        body.take(MAX_SMALL_BYTES + 1)
            .read_to_end(&mut bytes)
            .await
            .map_err(|e| self.unreadable(&e))?;
        if bytes.len() as u64 > MAX_SMALL_BYTES {
            return Err(self.damaged(format!("entry {name} is too large for what it is")));
        }
        Ok(bytes)
    }

    /// Writes one blob unless the right one is there already.
    async fn put_blob(
        &mut self,
        models: &Dir,
        blobs: &Dir,
        file_name: &str,
        size: u64,
        body: &mut (impl AsyncRead + Unpin),
    ) -> Result<(), ServiceError> {
        let expected = file_name
            .strip_prefix("sha256-")
            .and_then(sha256_from_hex)
            .ok_or_else(|| self.damaged(format!("{file_name} is not the name of a blob")))?;
        let path = self.library().blob_path(file_name);
        if tokio::task::block_in_place(|| digest_if(blobs, file_name, size))
            .map_err(|e| io_failed(&self.name, "read", &path, e))?
            == Some(expected)
        {
            return Ok(());
        }
        let write_failed = |e| io_failed(&self.name, "write blob", &path, e);
        let mut file =
            tokio::task::block_in_place(|| models.create(0o644)).map_err(write_failed)?;
        let mut hash = Sha256::new();
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let got = body
                .read(&mut piece)
                .await
                .map_err(|e| self.unreadable(&e))?;
            let Some(piece) = piece.get(..got).filter(|p| !p.is_empty()) else {
                break;
            };
            tokio::task::block_in_place(|| {
                hash.update(piece);
                models.named(file.write_all(piece))
            })
            .map_err(write_failed)?;
        }
        let found: [u8; 32] = hash.finalize().into();
        if found != expected {
            return Err(self.damaged(format!(
                "blob {file_name} of the archive has SHA-256 {}: the backup is damaged; no model was changed",
                hex(&found)
            )));
        }
        let existed = tokio::task::block_in_place(|| {
            let existed = blobs.has(file_name)?;
            models.named(blobs.commit(file, file_name))?;
            Ok(existed)
        })
        .map_err(write_failed)?;
        if !existed {
            self.undo.blobs.push(file_name.to_owned());
        }
        Ok(())
    }

    /// Renames manifests and keys into place, remembering what was there.
    fn publish(&mut self, models: &Dir, small: Vec<Small>) -> Result<(), ServiceError> {
        let mut remembered = 0;
        for file in small {
            let path = self.path_of(&file.target);
            let failed = |e| io_failed(&self.name, "write", &path, e);
            let (parent, name) = self.parent_of(models, &file.target).map_err(failed)?;
            let old = parent.read(&name, MAX_SMALL_BYTES).map_err(failed)?;
            if old.as_ref().is_some_and(|(bytes, _)| *bytes == file.bytes) {
                continue;
            }
            remembered += old.as_ref().map_or(0, |(bytes, _)| bytes.len());
            if remembered > MAX_SMALL_SUM {
                return Err(failed(std::io::Error::other(
                    "the manifests that it replaces are too large to be kept for a rollback",
                )));
            }
            self.undo.files.push((file.target, old));
            put_small(models, &parent, &name, &file.bytes, file.mode)
                .map_err(|e| io_failed(&self.name, "write", &path, e))?;
        }
        Ok(())
    }

    /// Where a small file is, for messages.
    fn path_of(&self, target: &Target) -> PathBuf {
        match (target, &self.place.home) {
            (Target::Manifest(model), _) => self.library().manifest_path(model),
            (Target::Key(key), Some(home)) => home.join(key),
            (Target::Key(key), None) => PathBuf::from(key),
        }
    }

    /// Opens the directory of a small file, making it if need be; the file's name in it.
    fn parent_of(&self, models: &Dir, target: &Target) -> std::io::Result<(Dir, String)> {
        match target {
            Target::Manifest(model) => {
                let path = Path::new("manifests").join(model.path());
                let parent = path.parent().unwrap_or(&path);
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                Ok((models.make(parent)?, name.into_owned()))
            }
            Target::Key(key) => {
                let home = self.place.home.as_ref().unwrap_or(&self.library().root);
                Ok((Dir::open(home)?, (*key).to_owned()))
            }
        }
    }

    /// Opens the directory of the models; made when it is missing.
    ///
    /// Below the server's own directory it is the server's, too, so no link leads to it.
    fn open_models(&self) -> std::io::Result<Dir> {
        let root = &self.library().root;
        let below = |home: &PathBuf| Some((home.clone(), root.strip_prefix(home).ok()?));
        match self.place.home.as_ref().and_then(below) {
            Some((home, relative)) => Dir::open(&home)?.make(relative),
            None => Dir::open(root),
        }
    }

    /// The directory of the models and that of their blobs.
    fn make_directories(&self) -> Result<(Dir, Dir), ServiceError> {
        let make = || {
            let models = self.open_models()?;
            let blobs = models.make(Path::new("blobs"))?;
            models.make(Path::new("manifests"))?;
            // Of a restore that was killed; the lock keeps others away.
            models.remove_leftovers()?;
            Ok((models, blobs))
        };
        make().map_err(|e| io_failed(&self.name, "prepare", &self.library().root, e))
    }

    /// Blobs that the models need which are there now.
    fn used_blobs(&self, models: &Dir) -> Result<HashSet<String>, ServiceError> {
        let names = self.library().names();
        let mut used = HashSet::new();
        for name in names.map_err(|e| self.damaged(e.to_string()))? {
            // One that cannot be read names no blob of ours for sure: ours were all readable.
            let read = self
                .parent_of(models, &Target::Manifest(name))
                .and_then(|(parent, name)| parent.read(&name, MAX_SMALL_BYTES));
            let (bytes, _) = read.ok().flatten().unwrap_or_default();
            let blobs = blobs_of(&bytes).unwrap_or_default();
            used.extend(blobs.iter().map(super::Blob::file_name));
        }
        Ok(used)
    }

    fn put_back(
        &self,
        models: &Dir,
        target: &Target,
        old: Option<&Content>,
    ) -> std::io::Result<()> {
        let (parent, name) = self.parent_of(models, target)?;
        match old {
            Some((bytes, mode)) => put_small(models, &parent, &name, bytes, *mode),
            None => parent.remove(&name).map(drop),
        }
    }

    fn damaged(&self, message: String) -> ServiceError {
        ServiceError::new(&self.name, ErrorKind::Damaged, message)
    }

    fn unreadable(&self, error: &std::io::Error) -> ServiceError {
        ServiceError::new(
            &self.name,
            ErrorKind::Io,
            format!("cannot read the archive: {error}"),
        )
    }

    /// Models of the record whose digest is not what `now` has.
    fn differing(facts: &Facts, now: &BTreeMap<String, String>) -> Vec<String> {
        facts
            .models
            .iter()
            .filter(|m| now.get(&m.name) != Some(&m.digest))
            .map(|m| m.name.clone())
            .collect()
    }
}

#[async_trait]
impl Restore for OllamaRestore {
    fn name(&self) -> &str {
        &self.name
    }

    fn way(&self) -> Way {
        Way::Online
    }

    async fn preflight(&mut self, record: &ArchiveRecord) -> Vec<Check> {
        let subject = |what: &str| format!("{}: {what}", self.name);
        let mut checks = Vec::new();
        match self.facts(record) {
            Ok(facts) => checks.push(Check::good(
                subject("models"),
                format!("{} to restore", facts.models.len()),
            )),
            Err(e) => checks.push(Check::bad(subject("models"), e.message)),
        }
        let root = &self.library().root;
        checks.push(check_writable(subject("directory"), root));
        checks
    }

    async fn apply(
        &mut self,
        archive: ArchiveReader,
        record: &ArchiveRecord,
        _run: &RunContext,
    ) -> Result<(), ServiceError> {
        let facts = self.facts(record)?;
        self.apply_stream(archive.into_async(), &facts).await
    }

    async fn settle(
        &mut self,
        record: &ArchiveRecord,
        _run: &RunContext,
    ) -> Result<(), ServiceError> {
        let facts = self.facts(record)?;
        if self.guessed
            && let Some(endpoint) = &self.endpoint
            && endpoint.base().await.is_err()
        {
            self.endpoint = None;
        }
        let Some(endpoint) = &self.endpoint else {
            let library = self.library();
            let now = digests(library)
                .map_err(|e| ServiceError::new(&self.name, ErrorKind::Io, e.to_string()))?;
            return match Self::differing(&facts, &now).as_slice() {
                [] => Ok(()),
                differing => Err(self.damaged(format!(
                    "after the restore {} does not hold {} as backed up",
                    library.root.display(),
                    differing.join(", ")
                ))),
            };
        };
        let deadline = Instant::now() + self.timeout;
        loop {
            let trouble = match tags(endpoint).await {
                Ok(now) => match Self::differing(&facts, &now).as_slice() {
                    [] => return Ok(()),
                    differing => self.damaged(format!(
                        "the server does not offer {} as backed up: see its log",
                        differing.join(", ")
                    )),
                },
                Err(e) => e,
            };
            if Instant::now() >= deadline {
                return Err(trouble);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn rollback(&mut self) -> Result<(), ServiceError> {
        if self.undo.files.is_empty() && self.undo.blobs.is_empty() {
            return Ok(());
        }
        let (models, blobs) = self.make_directories()?;
        while let Some((target, old)) = self.undo.files.last() {
            self.put_back(&models, target, old.as_ref())
                .map_err(|e| io_failed(&self.name, "put back", &self.path_of(target), e))?;
            self.undo.files.pop();
        }
        let used = self.used_blobs(&models)?;
        for blob in std::mem::take(&mut self.undo.blobs) {
            if !used.contains(&blob) {
                let path = self.library().blob_path(&blob);
                blobs
                    .remove(&blob)
                    .map_err(|e| io_failed(&self.name, "remove", &path, e))?;
            }
        }
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), ServiceError> {
        self.undo = Undo::default();
        Ok(())
    }
}

/// SHA-256 of a file of that size; `None` when there is none.
fn digest_if(dir: &Dir, name: &str, size: u64) -> std::io::Result<Option<[u8; 32]>> {
    let Some(file) = dir.file(name)? else {
        return Ok(None);
    };
    if file.metadata()?.len() != size {
        return Ok(None);
    }
    let mut file = file.take(size);
    let mut hash = Sha256::new();
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(Some(hash.finalize().into())),
            n => hash.update(piece.get(..n).unwrap_or_default()),
        }
    }
}
