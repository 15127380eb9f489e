//! Ollama's model directory: manifests that name blobs.
//!
//! Layout by `manifest/paths.go` and `manifest/manifest.go` of Ollama 0.33: the manifests are exactly the
//! files `manifests/{host}/{namespace}/{model}/{tag}` whose path is a valid model name; a blob's file is its
//! digest with `:` replaced by `-`. `WriteManifest` writes in place, so a manifest can be met half written.

use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::archive::EntryMeta;
use crate::services::support::{hex, regular, sha256_from_hex};

/// Manifests have a few hundred bytes; a larger file is none.
const MAX_MANIFEST_BYTES: u64 = 4 << 20;
/// How long a manifest may stay half written.
const ATTEMPTS: u32 = 10;
const PAUSE: Duration = Duration::from_millis(100);

/// Name of a model: the four parts of its manifest's path.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct ModelName([String; 4]);

impl ModelName {
    /// Parses `{host}/{namespace}/{model}/{tag}` by the patterns of `types/model/name.go`.
    pub(super) fn from_path(path: &str) -> Option<Self> {
        let parts: Vec<&str> = path.split('/').collect();
        let [host, namespace, model, tag] = parts.as_slice() else {
            return None;
        };
        let valid = |part: &str, max: usize, extra: &[u8]| {
            let mut bytes = part.bytes();
            let first = bytes.next();
            part.len() <= max
                && first.is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_')
                && bytes.all(|b| {
                    b.is_ascii_alphanumeric() || b == b'-' || b == b'_' || extra.contains(&b)
                })
        };
        let good = valid(host, 350, b".:")
            && valid(namespace, 80, b"")
            && valid(model, 80, b".")
            && valid(tag, 80, b".");
        good.then(|| Self([host, namespace, model, tag].map(|&part| part.to_owned())))
    }

    /// Path of the manifest below `models/manifests`.
    pub(super) fn path(&self) -> String {
        self.0.join("/")
    }
}

impl fmt::Display for ModelName {
    /// As the server shows it: without the default host and namespace (`DisplayShortest`).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [host, namespace, model, tag] = &self.0;
        if host != "registry.ollama.ai" {
            write!(f, "{host}/{namespace}/")?;
        } else if namespace != "library" {
            write!(f, "{namespace}/")?;
        }
        write!(f, "{model}:{tag}")
    }
}

/// A manifest as read.
#[derive(Debug, Clone)]
pub(super) struct ModelManifest {
    pub(super) name: ModelName,
    pub(super) bytes: Vec<u8>,
    pub(super) meta: EntryMeta,
    /// SHA-256 of the file: what the API calls the model's digest.
    pub(super) digest: String,
    pub(super) blobs: Vec<Blob>,
}

impl ModelManifest {
    pub(super) fn size(&self) -> u64 {
        self.blobs.iter().map(|b| b.size).sum()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blob {
    pub(super) sha256: [u8; 32],
    pub(super) size: u64,
}

impl Blob {
    pub(super) fn file_name(&self) -> String {
        format!("sha256-{}", hex(&self.sha256))
    }
}

#[derive(Debug, thiserror::Error)]
pub(super) enum LibraryError {
    #[error("cannot read {}: {source}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is no model manifest: {why}", path.display())]
    Invalid { path: PathBuf, why: String },
}

/// The directory that `OLLAMA_MODELS` names.
#[derive(Debug, Clone)]
pub(super) struct Library {
    pub(super) root: PathBuf,
}

impl Library {
    pub(super) fn blob_path(&self, file_name: &str) -> PathBuf {
        self.root.join("blobs").join(file_name)
    }

    pub(super) fn manifest_path(&self, name: &ModelName) -> PathBuf {
        self.root.join("manifests").join(name.path())
    }

    /// Names of all models, sorted; none when the directory does not exist.
    pub(super) fn names(&self) -> Result<Vec<ModelName>, LibraryError> {
        let mut found = Vec::new();
        descend(&self.root.join("manifests"), "", 4, &mut found)?;
        found.sort();
        Ok(found)
    }

    /// Reads one manifest, waiting for it to be whole; `None` when there is none.
    pub(super) fn read(&self, name: &ModelName) -> Result<Option<ModelManifest>, LibraryError> {
        let mut last = None;
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                std::thread::sleep(PAUSE);
            }
            match self.read_once(name) {
                Err(e @ LibraryError::Invalid { .. }) => last = Some(e),
                other => return other,
            }
        }
        last.map_or(Ok(None), Err)
    }

    fn read_once(&self, name: &ModelName) -> Result<Option<ModelManifest>, LibraryError> {
        let path = self.manifest_path(name);
        let failed = |source| LibraryError::Io {
            path: path.clone(),
            source,
        };
        let stat = match std::fs::symlink_metadata(&path) {
            Ok(stat) => stat,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed(e)),
        };
        if !stat.is_file() || stat.len() > MAX_MANIFEST_BYTES {
            return Err(LibraryError::Invalid {
                path,
                why: "it is not a small regular file".to_owned(),
            });
        }
        // It may have been replaced since; a pipe or a device must not hold the backup up.
        let opened = regular(&path).and_then(|file| {
            let mut bytes = Vec::new();
            file.take(MAX_MANIFEST_BYTES).read_to_end(&mut bytes)?;
            Ok(bytes)
        });
        let bytes = match opened {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed(e)),
        };
        let blobs = blobs_of(&bytes).map_err(|why| LibraryError::Invalid { path, why })?;
        Ok(Some(ModelManifest {
            name: name.clone(),
            digest: hex(&Sha256::digest(&bytes)),
            meta: EntryMeta::of(&stat),
            bytes,
            blobs,
        }))
    }
}

/// The blobs that a manifest names, each once.
pub(super) fn blobs_of(manifest: &[u8]) -> Result<Vec<Blob>, String> {
    #[derive(Deserialize)]
    struct Document {
        config: Layer,
        #[serde(default)]
        layers: Option<Vec<Layer>>,
    }
    #[derive(Deserialize)]
    struct Layer {
        #[serde(default)]
        digest: String,
        #[serde(default)]
        size: u64,
    }
    let document: Document = serde_json::from_slice(manifest).map_err(|e| e.to_string())?;
    let mut blobs = Vec::new();
    for layer in std::iter::once(document.config).chain(document.layers.unwrap_or_default()) {
        // RemoveLayers in manifest.go: a layer may have no digest, and then has no blob.
        if layer.digest.is_empty() {
            continue;
        }
        let sha256 = layer
            .digest
            .strip_prefix("sha256:")
            .or_else(|| layer.digest.strip_prefix("sha256-"))
            .and_then(sha256_from_hex)
            .ok_or("a layer's digest is not a SHA-256")?;
        let blob = Blob {
            sha256,
            size: layer.size,
        };
        if !blobs.iter().any(|b: &Blob| b.sha256 == blob.sha256) {
            blobs.push(blob);
        }
    }
    Ok(blobs)
}

fn descend(
    dir: &Path,
    prefix: &str,
    levels: u32,
    found: &mut Vec<ModelName>,
) -> Result<(), LibraryError> {
    let failed = |source| LibraryError::Io {
        path: dir.to_owned(),
        source,
    };
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(e)),
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        // A name that is not UTF-8 is no model's.
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let relative = if prefix.is_empty() {
            name
        } else {
            format!("{prefix}/{name}")
        };
        let kind = entry.file_type().map_err(failed)?;
        if kind.is_dir() && levels > 1 {
            descend(&entry.path(), &relative, levels - 1, found)?;
        } else if kind.is_file() && levels == 1 {
            found.extend(ModelName::from_path(&relative));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use super::*;

    #[test]
    fn names_are_shown_as_the_server_shows_them() {
        for (path, shown) in [
            ("registry.ollama.ai/library/llama3/latest", "llama3:latest"),
            ("registry.ollama.ai/me/bot/v1.2", "me/bot:v1.2"),
            ("hf.co/org/Model-GGUF/Q4_K_M", "hf.co/org/Model-GGUF:Q4_K_M"),
            ("localhost:5000/library/x/y", "localhost:5000/library/x:y"),
        ] {
            let name = ModelName::from_path(path).unwrap();
            assert_eq!(name.to_string(), shown);
            assert_eq!(name.path(), path);
        }
    }

    #[test]
    fn paths_that_are_no_model_names_are_refused() {
        for path in [
            "a/b/c",
            "a/b/c/d/e",
            "../b/c/d",
            "a/../c/d",
            "a/b/c/.lifeboat-tmp-1",
            "a/b//d",
            "a/b/c/d\\n",
            "a/b.c/d/e",
        ] {
            assert_eq!(ModelName::from_path(path), None, "{path}");
        }
    }

    #[test]
    fn blobs_are_named_once_and_digests_are_checked() {
        let digest = "ab".repeat(32);
        let text = format!(
            r#"{{"config":{{"digest":"sha256:{digest}","size":2}},"layers":[{{"digest":"sha256:{digest}","size":2}},{{"digest":"","size":0}}]}}"#
        );
        let blobs = blobs_of(text.as_bytes()).unwrap();
        assert_eq!(blobs.len(), 1);
        assert_eq!(blobs[0].file_name(), format!("sha256-{digest}"));
        for bad in [
            r#"{"layers":[]}"#,
            r#"{"config":{"digest":"sha256:../../x"}}"#,
            "",
            "{",
        ] {
            assert!(blobs_of(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
