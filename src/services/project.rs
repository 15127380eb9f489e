//! The compose project's own files: `.env` and the compose files, without the data beside them.
//!
//! They hold passwords, so they are kept with mode 0600. A restore never changes a file that is there: one
//! that is missing is written, one that differs gets the backed-up text beside it under another name. The
//! containers are started through the engine, so the files have no part in the restore itself.

use std::collections::BTreeSet;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use jiff::Timestamp;
use regex::Regex;
use tokio::io::AsyncReadExt;

use super::support::{archive_failed, io_failed, regular};
use super::{
    Check, ErrorKind, PointInTime, RunContext, Service, ServiceError, ServiceKind, ServiceReport,
};
use crate::archive::unpack::Members;
use crate::archive::{ArchiveWriter, EntryMeta};
use crate::config::Config;
use crate::durable;
use crate::repository::manifest::ArchiveRecord;
use crate::repository::reader::ArchiveReader;
use crate::restore::{Restore, Way};
use crate::stack::StackService;

/// A text file of a project is small; what is larger is data.
const MAX_FILE_BYTES: u64 = 1 << 20;
const MAX_FILES: usize = 200;
/// Label of the engine's containers, and name under which discovery may pass its value on.
const CONFIG_FILES_LABEL: &str = "com.docker.compose.project.config_files";
const WORKING_DIR_LABEL: &str = "com.docker.compose.project.working_dir";
const MODE: u32 = 0o600;

/// The project's directory.
#[derive(Debug)]
pub struct Project {
    name: String,
    root: PathBuf,
    named: Vec<String>,
    /// Links in a person's own project are meant; those in a copy may lead anywhere.
    follows_links: bool,
}

impl Project {
    pub fn new(config: &Config, service: &StackService) -> Result<Self, ServiceError> {
        Ok(Self {
            name: service.name.clone(),
            root: config.project_dir.clone(),
            named: named_by_label(service),
            follows_links: true,
        })
    }

    /// A copy of a project's directory, by whomever.
    pub fn of_copy(name: &str, root: &Path) -> Self {
        Self {
            name: name.to_owned(),
            root: root.to_owned(),
            named: Vec::new(),
            follows_links: false,
        }
    }

    /// Relative names of the project's files, sorted.
    fn files(&self) -> std::io::Result<BTreeSet<String>> {
        let mut found = BTreeSet::new();
        for entry in std::fs::read_dir(&self.root)? {
            // A name that is not UTF-8 is none of compose's.
            if let Ok(name) = entry?.file_name().into_string()
                && is_project_file(&name)
            {
                found.insert(name);
            }
        }
        found.extend(self.named.iter().cloned());
        if self.is_file(".env") {
            found.extend(named_by_env(&self.root.join(".env")));
        }
        found.retain(|name| self.is_file(name));
        Ok(found)
    }

    fn is_file(&self, name: &str) -> bool {
        if self.follows_links {
            return std::fs::metadata(self.root.join(name)).is_ok_and(|stat| stat.is_file());
        }
        let mut path = self.root.clone();
        let mut parts = name.split('/').peekable();
        while let Some(part) = parts.next() {
            path.push(part);
            let stat = std::fs::symlink_metadata(&path);
            let is_last = parts.peek().is_none();
            if !stat.is_ok_and(|stat| {
                if is_last {
                    stat.is_file()
                } else {
                    stat.is_dir()
                }
            }) {
                return false;
            }
        }
        true
    }

    /// Relative names of the project's files, sorted; an error when they are too many.
    pub fn list(&self) -> Result<BTreeSet<String>, ServiceError> {
        let files = self
            .files()
            .map_err(|e| io_failed(&self.name, "list the project's directory", &self.root, e))?;
        if files.len() > MAX_FILES {
            let message = format!(
                "{} names more than {MAX_FILES} compose files: is LIFEBOAT_PROJECT_DIR the project's directory?",
                self.root.display()
            );
            return Err(ServiceError::new(&self.name, ErrorKind::Setup, message));
        }
        Ok(files)
    }

    fn store(&self, archive: &mut ArchiveWriter, name: &str) -> Result<(), ServiceError> {
        let path = self.root.join(name);
        let failed = |e| io_failed(&self.name, "read", &path, e);
        let file = if self.follows_links {
            std::fs::File::open(&path)
        } else {
            regular(&path)
        };
        let file = file.map_err(failed)?;
        let stat = file.metadata().map_err(failed)?;
        let mut text = Vec::new();
        file.take(MAX_FILE_BYTES + 1)
            .read_to_end(&mut text)
            .map_err(failed)?;
        if text.len() as u64 > MAX_FILE_BYTES {
            let message = format!(
                "{} is larger than 1 MiB, which no compose file is: move it out of the project's directory",
                path.display()
            );
            return Err(ServiceError::new(&self.name, ErrorKind::Setup, message));
        }
        let meta = EntryMeta {
            mode: MODE,
            ..EntryMeta::of(&stat)
        };
        archive
            .bytes(name, &meta, &text)
            .map_err(|e| archive_failed(&self.name, e))
    }
}

#[async_trait]
impl Service for Project {
    fn kind(&self) -> ServiceKind {
        ServiceKind::Project
    }

    fn name(&self) -> &str {
        &self.name
    }

    async fn check(&self) -> Vec<Check> {
        let subject = format!("{}: files", self.name);
        vec![match self.list() {
            Ok(files) if files.is_empty() => Check::bad(
                subject,
                format!(
                    "{} holds neither .env nor a compose file: mount the project's directory there, or set LIFEBOAT_PROJECT_DIR",
                    self.root.display()
                ),
            ),
            Ok(files) => Check::good(subject, files.into_iter().collect::<Vec<_>>().join(", ")),
            Err(e) => Check::bad(subject, e.message),
        }]
    }

    async fn estimate(&self) -> u64 {
        let size = |name: &String| std::fs::metadata(self.root.join(name)).map_or(0, |s| s.len());
        self.files().unwrap_or_default().iter().map(size).sum()
    }

    async fn copy(&mut self, _archive: &mut ArchiveWriter) -> Result<(), ServiceError> {
        Ok(())
    }

    async fn freeze(&mut self) -> Result<PointInTime, ServiceError> {
        Ok(PointInTime::at(Timestamp::now()))
    }

    async fn drain(&mut self, archive: &mut ArchiveWriter) -> Result<ServiceReport, ServiceError> {
        let files = tokio::task::block_in_place(|| {
            let files = self.list()?;
            for name in &files {
                if let Some((parents, _)) = name.rsplit_once('/') {
                    self.store_directories(archive, parents)?;
                }
                self.store(archive, name)?;
            }
            Ok::<_, ServiceError>(files)
        })?;
        let mut warnings = Vec::new();
        if files.is_empty() {
            warnings.push(format!(
                "{} holds neither .env nor a compose file",
                self.root.display()
            ));
        }
        Ok(ServiceReport {
            version: String::new(),
            counts: [("files".to_owned(), files.len() as u64)].into(),
            facts: serde_json::json!({ "files": files }),
            warnings,
        })
    }
}

impl Project {
    fn store_directories(
        &self,
        archive: &mut ArchiveWriter,
        parents: &str,
    ) -> Result<(), ServiceError> {
        let mut name = String::new();
        for part in parents.split('/') {
            if !name.is_empty() {
                name.push('/');
            }
            name.push_str(part);
            let path = self.root.join(&name);
            let stat =
                std::fs::metadata(&path).map_err(|e| io_failed(&self.name, "read", &path, e))?;
            archive
                .directory(&name, &EntryMeta::of(&stat))
                .map_err(|e| archive_failed(&self.name, e))?;
        }
        Ok(())
    }
}

/// The restore of the project's files.
#[derive(Debug)]
pub struct ProjectRestore {
    name: String,
    root: PathBuf,
    written: Vec<PathBuf>,
}

impl ProjectRestore {
    pub fn new(config: &Config, service: &StackService) -> Result<Self, ServiceError> {
        Ok(Self {
            name: service.name.clone(),
            root: config.project_dir.clone(),
            written: Vec::new(),
        })
    }

    fn is_writable(&self) -> bool {
        rustix::fs::access(&self.root, rustix::fs::Access::WRITE_OK).is_ok()
    }

    /// Writes one file unless it is there; beside it when it differs.
    fn put(&mut self, name: &str, text: &[u8], run_id: &str) -> std::io::Result<()> {
        let target = self.root.join(name);
        let target = match std::fs::read(&target) {
            Ok(present) if present == text => return Ok(()),
            Ok(_) => durable::sibling(&target, &format!(".restored-{run_id}")),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => target,
            Err(e) => return Err(e),
        };
        let parent = target.parent().unwrap_or(&self.root);
        durable::create_dir_all(parent, 0o755)?;
        durable::write_new(&target, text, MODE)?;
        self.written.push(target.clone());
        let owner = std::fs::metadata(parent)?;
        std::os::unix::fs::lchown(&target, Some(owner.uid()), Some(owner.gid()))
    }
}

#[async_trait]
impl Restore for ProjectRestore {
    fn name(&self) -> &str {
        &self.name
    }

    fn way(&self) -> Way {
        Way::Online
    }

    async fn preflight(&mut self, _record: &ArchiveRecord) -> Vec<Check> {
        let found = if self.is_writable() {
            "missing files are written, differing ones beside what is there"
        } else {
            "the directory is mounted read-only: its files stay as they are (`export` shows the backed-up ones)"
        };
        vec![Check::good(format!("{}: files", self.name), found)]
    }

    async fn apply(
        &mut self,
        archive: ArchiveReader,
        _record: &ArchiveRecord,
        run: &RunContext,
    ) -> Result<(), ServiceError> {
        if !self.is_writable() {
            return Ok(());
        }
        let unreadable = |name: &str, e: std::io::Error| {
            ServiceError::new(name, ErrorKind::Io, format!("cannot read the archive: {e}"))
        };
        let service = self.name.clone();
        let mut members =
            Members::new(archive.into_async()).map_err(|e| unreadable(&service, e))?;
        while let Some(entry) = members.next().await.map_err(|e| unreadable(&service, e))? {
            let name = entry.path_bytes().map_err(|e| unreadable(&service, e))?;
            let name = String::from_utf8_lossy(&name).into_owned();
            if !entry.header().entry_type().is_file() {
                continue;
            }
            if !is_plain_relative(&name) || entry.effective_size() > MAX_FILE_BYTES {
                let message = format!(
                    "entry {} is not one that a backup writes: the archive is damaged or forged",
                    name.escape_debug()
                );
                return Err(ServiceError::new(&service, ErrorKind::Damaged, message));
            }
            let mut text = Vec::new();
            entry
                .read_to_end(&mut text)
                .await
                .map_err(|e| unreadable(&service, e))?;
            let path = self.root.join(&name);
            tokio::task::block_in_place(|| self.put(&name, &text, &run.run_id))
                .map_err(|e| io_failed(&service, "write", &path, e))?;
        }
        Ok(())
    }

    async fn settle(
        &mut self,
        _record: &ArchiveRecord,
        _run: &RunContext,
    ) -> Result<(), ServiceError> {
        Ok(())
    }

    async fn rollback(&mut self) -> Result<(), ServiceError> {
        while let Some(path) = self.written.last() {
            durable::remove(path).map_err(|e| io_failed(&self.name, "remove", path, e))?;
            self.written.pop();
        }
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), ServiceError> {
        self.written.clear();
        Ok(())
    }
}

/// `.env`, `.env.*`, `compose*.y*ml` and `docker-compose*.y*ml`; not what a restore put beside them.
pub(crate) fn is_project_file(name: &str) -> bool {
    if name == ".env" {
        return true;
    }
    if name.contains(".restored-") {
        return false;
    }
    let is_yaml = Path::new(name)
        .extension()
        .is_some_and(|ext| ext == "yml" || ext == "yaml");
    name.starts_with(".env.")
        || (is_yaml && (name.starts_with("compose") || name.starts_with("docker-compose")))
}

/// Files that the engine says the project was started with, as far as they are below its directory.
fn named_by_label(service: &StackService) -> Vec<String> {
    let label = |name: &str| service.environment.get(name);
    let Some(files) = label(CONFIG_FILES_LABEL) else {
        return Vec::new();
    };
    let working_dir = label(WORKING_DIR_LABEL).map_or("", String::as_str);
    files
        .split(',')
        .filter_map(|file| match file.strip_prefix('/') {
            Some(_) if working_dir.is_empty() => Path::new(file).file_name()?.to_str(),
            Some(_) => Path::new(file).strip_prefix(working_dir).ok()?.to_str(),
            None => Some(file.trim_start_matches("./")),
        })
        .filter(|name| is_plain_relative(name))
        .map(str::to_owned)
        .collect()
}

/// Files that `COMPOSE_FILE` and `COMPOSE_ENV_FILES` in `.env` name.
fn named_by_env(env: &Path) -> Vec<String> {
    // `.env` itself is among the files: when it cannot be read, its copy says so.
    let mut text = String::new();
    let read = std::fs::File::open(env)
        .and_then(|file| file.take(MAX_FILE_BYTES).read_to_string(&mut text));
    if read.is_err() {
        return Vec::new();
    }
    let value = |name: &str| {
        let pattern = format!(r#"(?m)^\s*(?:export\s+)?{name}\s*=\s*["']?([^"'\r\n#]*)"#);
        let found = Regex::new(&pattern).ok()?.captures(&text)?;
        Some(found.get(1)?.as_str().trim().to_owned())
    };
    let files = value("COMPOSE_FILE").unwrap_or_default();
    let separator = value("COMPOSE_PATH_SEPARATOR").unwrap_or_else(|| ":".to_owned());
    let env_files = value("COMPOSE_ENV_FILES").unwrap_or_default();
    files
        .split(separator.as_str())
        .chain(env_files.split(','))
        .map(|name| name.trim().trim_start_matches("./"))
        .filter(|name| is_plain_relative(name))
        .map(str::to_owned)
        .collect()
}

fn is_plain_relative(name: &str) -> bool {
    !name.is_empty()
        && name
            .split('/')
            .all(|part| !part.is_empty() && part != "." && part != "..")
        && !name.contains('\0')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use super::*;

    #[test]
    fn only_the_projects_own_text_files_are_meant() {
        for name in [
            ".env",
            ".env.prod",
            "compose.yml",
            "compose.override.yaml",
            "docker-compose.gpu.yml",
        ] {
            assert!(is_project_file(name), "{name}");
        }
        for name in [
            "data",
            "compose.txt",
            "env",
            "my-compose.yml",
            ".env.restored-1",
            "compose.yml.restored-2.yml",
        ] {
            assert!(!is_project_file(name), "{name}");
        }
    }

    #[test]
    fn compose_file_of_env_names_files_below_the_project_only() {
        let dir = tempfile::tempdir().unwrap();
        let env = dir.path().join(".env");
        std::fs::write(
            &env,
            "A=1\nexport COMPOSE_FILE=\"./stack.yml:sub/gpu.yml:../outside.yml:/etc/passwd\" # why\nCOMPOSE_ENV_FILES=a.env,b.env\n",
        )
        .unwrap();
        assert_eq!(
            named_by_env(&env),
            ["stack.yml", "sub/gpu.yml", "a.env", "b.env"]
        );
    }
}
