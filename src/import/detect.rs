//! Finds the services' directories in a tree by what lies in them, whatever they are called.
//!
//! One walk that follows no links. Inside a service's directory nothing is looked for.

use std::io::Read as _;
use std::path::Path;

use jiff::Timestamp;

use crate::archive::ArchiveError;
use crate::archive::walk::{EntryKind, Rules, walk};
use crate::services::ServiceKind;
use crate::services::support::regular;

/// How deep directories are looked at; guides have their data two or three levels down.
const MAX_DEPTH: usize = 12;
/// n8n's `config` has a few hundred bytes.
const MAX_CONFIG_BYTES: u64 = 64 * 1024;
/// A table of n8n's, by whose name in the schema its database is told from those of others.
const N8N_TABLE: &[u8] = b"workflow_entity";
const READ_BYTES: usize = 256 * 1024;

/// What a tree holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Seen {
    pub services: Vec<Root>,
    /// Directories with `.env` or compose files, relative to the tree.
    pub projects: Vec<String>,
    /// The newest modification among its files.
    pub newest: Option<Timestamp>,
}

/// A directory of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    pub kind: ServiceKind,
    /// Relative to the tree, `/`-separated; empty for the tree's own root.
    pub path: String,
    /// What of the tree its archive takes; what it leaves of these, a backup leaves too.
    pub claims: Vec<String>,
}

/// Looks through a tree; `exclude` are paths in it that are this program's own.
pub fn look(root: &Path, exclude: &[String]) -> Result<Seen, ArchiveError> {
    let mut seen = Seen::default();
    let rules = Rules {
        exclude: exclude.to_vec(),
        ..Rules::default()
    };
    seen.directory(root, "");
    for entry in walk(root, &rules) {
        let entry = entry?;
        match &entry.kind {
            EntryKind::Directory => {
                // Rules are text: what lies below another name is kept with the rest.
                if let Ok(name) = std::str::from_utf8(&entry.name)
                    && name.split('/').count() <= MAX_DEPTH
                {
                    seen.directory(&entry.path, name);
                }
            }
            EntryKind::File | EntryKind::HardLink { .. } => {
                let (seconds, nanos) = (entry.meta.mtime_secs, entry.meta.mtime_nanos);
                let changed = Timestamp::new(seconds, i32::try_from(nanos).unwrap_or(0)).ok();
                seen.newest = seen.newest.max(changed);
            }
            EntryKind::Symlink { .. } => {}
        }
    }
    Ok(seen)
}

/// Whether anything but directories is left of a tree without these paths.
pub fn has_rest(root: &Path, exclude: Vec<String>) -> Result<bool, ArchiveError> {
    let rules = Rules {
        exclude,
        ..Rules::default()
    };
    for entry in walk(root, &rules) {
        if entry?.kind != EntryKind::Directory {
            return Ok(true);
        }
    }
    Ok(false)
}

impl Seen {
    fn directory(&mut self, directory: &Path, name: &str) {
        let mut claims = self.services.iter().flat_map(|root| &root.claims);
        if claims.any(|claim| is_within(name, claim)) {
            return;
        }
        if is_project(directory) {
            self.projects.push(name.to_owned());
        }
        if let Some((kind, claimed)) = recognise(directory) {
            let claims = claimed.iter().map(|part| join(name, part)).collect();
            self.services.push(Root {
                kind,
                path: name.to_owned(),
                claims,
            });
        }
    }
}

/// Whether a path is another, or lies below it.
fn is_within(name: &str, directory: &str) -> bool {
    directory.is_empty()
        || name
            .strip_prefix(directory)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn join(directory: &str, name: &str) -> String {
    match (directory, name) {
        ("", name) => name.to_owned(),
        (directory, "") => directory.to_owned(),
        (directory, name) => format!("{directory}/{name}"),
    }
}

/// Which service's directory this is, and what of it belongs to the service.
fn recognise(directory: &Path) -> Option<(ServiceKind, &'static [&'static str])> {
    const WHOLE: &[&str] = &[""];
    let is_dir = |name: &str| is_directory(&directory.join(name));
    let is_file = |name: &str| is_plain_file(&directory.join(name));
    if is_file("PG_VERSION") && is_dir("global") && is_file("global/pg_control") {
        return Some((ServiceKind::Postgres, WHOLE));
    }
    if is_dir("collections") && (is_file("raft_state.json") || is_dir("aliases")) {
        return Some((ServiceKind::Qdrant, WHOLE));
    }
    if is_dir("models") && is_library(&directory.join("models")) {
        // Beside the models lies what a home directory has, or a whole project.
        let own: &[&str] = &["models", "id_ed25519", "id_ed25519.pub"];
        return Some((ServiceKind::Ollama, own));
    }
    if is_library(directory) {
        return Some((ServiceKind::Ollama, &["manifests", "blobs"]));
    }
    let is_n8n = has_key(&directory.join("config"))
        || is_n8n_database(&directory.join("database.sqlite"))
        || is_n8n_database(&directory.join("database.sqlite-wal"));
    is_n8n.then_some((ServiceKind::N8n, WHOLE))
}

/// Ollama's manifests and blobs; other registries keep blobs in directories.
fn is_library(directory: &Path) -> bool {
    let blobs = directory.join("blobs");
    if !is_directory(&directory.join("manifests")) || !is_directory(&blobs) {
        return false;
    }
    let mut entries = std::fs::read_dir(&blobs).into_iter().flatten().flatten();
    entries.all(|entry| {
        let name = entry.file_name();
        name.to_string_lossy().starts_with("sha256-")
    })
}

fn is_project(directory: &Path) -> bool {
    const NAMES: [&str; 5] = [
        ".env",
        "docker-compose.yml",
        "docker-compose.yaml",
        "compose.yml",
        "compose.yaml",
    ];
    NAMES
        .iter()
        .any(|name| is_plain_file(&directory.join(name)))
}

/// Whether a file is n8n's `config`: JSON with an encryption key.
pub(super) fn has_key(config: &Path) -> bool {
    let mut text = Vec::new();
    let read = regular(config).and_then(|file| file.take(MAX_CONFIG_BYTES).read_to_end(&mut text));
    let settings = read.ok().and_then(|_| {
        serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&text).ok()
    });
    settings.is_some_and(|settings| settings.contains_key("encryptionKey"))
}

/// Whether an SQLite database, or its log, has n8n's tables: other programs call theirs the same.
fn is_n8n_database(path: &Path) -> bool {
    let Ok(mut file) = regular(path) else {
        return false;
    };
    let mut buffer = vec![0; READ_BYTES];
    // The end of the piece before is kept in front: the name may lie across two.
    let mut kept = 0;
    loop {
        let Some(free) = buffer.get_mut(kept..) else {
            return false;
        };
        let got = match file.read(free) {
            Ok(0) | Err(_) => return false,
            Ok(got) => got,
        };
        let filled = buffer.get(..kept + got).unwrap_or_default();
        if filled.windows(N8N_TABLE.len()).any(|w| w == N8N_TABLE) {
            return true;
        }
        let start = filled.len().saturating_sub(N8N_TABLE.len() - 1);
        kept = filled.len() - start;
        buffer.copy_within(start..start + kept, 0);
    }
}

fn is_directory(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|stat| stat.is_dir())
}

fn is_plain_file(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|stat| stat.is_file())
}

#[cfg(test)]
mod tests;
