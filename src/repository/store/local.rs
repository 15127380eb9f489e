//! A directory as the store: the default.

use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::num::NonZero;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::file_blob::FileBlob;
use super::{ABANDONED_AFTER, Blob, Entry, RepositoryError, Spool, Store, check_key};
use crate::durable::{self, AtomicFile};

/// Only the owner reads or writes: an unencrypted repository holds secrets.
const FILE_MODE: u32 = 0o600;

/// Written bytes of a pack that the disk is given at once.
const WRITE_BACK_BYTES: u64 = 8 * 1024 * 1024;

/// A repository directory on a local or mounted file system.
#[derive(Debug, Clone)]
pub struct LocalStore {
    root: PathBuf,
}

impl LocalStore {
    /// Uses an existing directory.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn path(&self, key: &str) -> Result<PathBuf, RepositoryError> {
        check_key(key)?;
        Ok(self.root.join(key))
    }

    fn failed(&self, doing: &str, key: &str, err: io::Error) -> RepositoryError {
        match err.kind() {
            io::ErrorKind::NotFound => RepositoryError::Missing(key.to_owned()),
            io::ErrorKind::AlreadyExists => RepositoryError::Exists(key.to_owned()),
            _ => RepositoryError::io(format!("{doing} {}", self.root.join(key).display()), err),
        }
    }
}

impl Store for LocalStore {
    fn put(&self, key: &str, bytes: &[u8]) -> Result<(), RepositoryError> {
        let path = self.path(key)?;
        make_parents(&path)
            .and_then(|()| durable::write_new(&path, bytes, FILE_MODE))
            .map_err(|e| self.failed("write", key, e))
    }

    fn put_all(&self, files: Vec<(String, Vec<u8>)>) -> Result<(), RepositoryError> {
        let mut named = Vec::with_capacity(files.len());
        for (key, bytes) in files {
            let path = self.path(&key)?;
            make_parents(&path).map_err(|e| self.failed("write", &key, e))?;
            named.push((path, bytes));
        }
        durable::write_all_new(&named, FILE_MODE)
            .map_err(|e| RepositoryError::io(format!("write to {}", self.root.display()), e))
    }

    fn replace(&self, key: &str, bytes: &[u8]) -> Result<(), RepositoryError> {
        let path = self.path(key)?;
        make_parents(&path)
            .and_then(|()| durable::write_replace(&path, bytes, FILE_MODE))
            .map_err(|e| self.failed("write", key, e))
    }

    fn spool(&self) -> Result<Box<dyn Spool>, RepositoryError> {
        let dir = self.root.join("packs");
        let file = durable::create_dir_all(&dir, 0o700)
            .and_then(|()| AtomicFile::create(&dir, FILE_MODE))
            .map_err(|e| self.failed("create a file in", "packs", e))?;
        Ok(Box::new(LocalSpool {
            file,
            store: self.clone(),
            written: 0,
            on_its_way: 0,
        }))
    }

    fn get(&self, key: &str, limit_bytes: u64) -> Result<Vec<u8>, RepositoryError> {
        let read = || -> io::Result<Vec<u8>> {
            let mut bytes = Vec::new();
            File::open(self.root.join(key))?
                .take(limit_bytes + 1)
                .read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        self.path(key)?;
        let bytes = read().map_err(|e| self.failed("read", key, e))?;
        if bytes.len() as u64 > limit_bytes {
            return Err(RepositoryError::Invalid(format!(
                "{key} is larger than {limit_bytes} bytes: it is damaged"
            )));
        }
        Ok(bytes)
    }

    fn open(&self, key: &str) -> Result<Box<dyn Blob>, RepositoryError> {
        let path = self.path(key)?;
        File::open(&path)
            .and_then(FileBlob::new)
            .map(|blob| Box::new(blob) as Box<dyn Blob>)
            .map_err(|e| self.failed("open", key, e))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Entry>, RepositoryError> {
        let mut found = Vec::new();
        let mut open = vec![(self.path(prefix)?, prefix.to_owned())];
        while let Some((dir, key)) = open.pop() {
            let entries = match fs::read_dir(&dir) {
                Ok(entries) => entries,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(self.failed("list", &key, e)),
            };
            for entry in entries {
                let entry = entry.map_err(|e| self.failed("list", &key, e))?;
                let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
                    continue;
                };
                // Unfinished files begin with a dot.
                if name.starts_with('.') {
                    continue;
                }
                let child = format!("{key}/{name}");
                let meta = match entry.metadata() {
                    Ok(meta) => meta,
                    Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                    Err(e) => return Err(self.failed("list", &child, e)),
                };
                if meta.is_dir() {
                    open.push((entry.path(), child));
                } else {
                    found.push(Entry {
                        size: meta.len(),
                        modified: modified(&meta).map_err(|e| self.failed("list", &child, e))?,
                        key: child,
                    });
                }
            }
        }
        Ok(found)
    }

    fn delete(&self, key: &str) -> Result<(), RepositoryError> {
        let path = self.path(key)?;
        durable::remove(&path)
            .map(drop)
            .map_err(|e| match e.kind() {
                io::ErrorKind::PermissionDenied => RepositoryError::Refused(key.to_owned()),
                _ => self.failed("delete", key, e),
            })
    }

    fn remove_abandoned(&self) -> Result<(), RepositoryError> {
        // By age: another host may be writing here. Any directory may hold what a killed run began.
        let now = self.now()?;
        let mut open = vec![self.root.clone()];
        while let Some(dir) = open.pop() {
            let failed = |e| {
                RepositoryError::io(format!("look for abandoned files in {}", dir.display()), e)
            };
            let entries = match fs::read_dir(&dir) {
                Ok(entries) => entries,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(failed(e)),
            };
            for entry in entries {
                let entry = entry.map_err(failed)?;
                let kind = entry.file_type().map_err(failed)?;
                if kind.is_dir() {
                    open.push(entry.path());
                } else if kind.is_file() && durable::is_temp(&entry.file_name()) {
                    let Ok(meta) = entry.metadata() else { continue };
                    let written = modified(&meta).map_err(failed)?;
                    if now.duration_since(written) > ABANDONED_AFTER {
                        durable::remove(&entry.path()).map_err(failed)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn now(&self) -> Result<Timestamp, RepositoryError> {
        // The file system's clock, which a file server has of its own.
        let read = || -> io::Result<Timestamp> {
            durable::create_dir_all(&self.root, 0o700)?;
            // Empty: a prune asks on a full disk, too.
            let file = AtomicFile::create(&self.root, FILE_MODE)?;
            modified(&file.file().metadata()?)
        };
        read().map_err(|e| {
            RepositoryError::io(format!("read the clock of {}", self.root.display()), e)
        })
    }

    fn check_writable(&self) -> Result<(), RepositoryError> {
        AtomicFile::create(&self.root, FILE_MODE)
            .and_then(|mut file| file.write_all(b"lifeboat"))
            .map_err(|e| self.failed("write to the repository directory", "", e))
    }

    fn free_bytes(&self) -> Option<u64> {
        let stat = rustix::fs::statvfs(&self.root).ok()?;
        Some(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn is_remote(&self) -> bool {
        false
    }

    fn describe(&self) -> String {
        self.root.display().to_string()
    }
}

/// Creates the directories that `path` needs; one that another host makes at the same time is as good.
fn make_parents(path: &Path) -> io::Result<()> {
    path.parent()
        .map_or(Ok(()), |parent| durable::create_dir_all(parent, 0o700))
}

fn modified(meta: &Metadata) -> io::Result<Timestamp> {
    Timestamp::try_from(meta.modified()?).map_err(io::Error::other)
}

struct LocalSpool {
    file: AtomicFile,
    store: LocalStore,
    written: u64,
    /// Of them, what the disk has been given.
    on_its_way: u64,
}

impl LocalSpool {
    /// Has the kernel begin to write what it would otherwise keep until the pack is published: then the disk
    /// is idle no more while the rest of the pack is made, and the last pack is not waited for so long.
    fn write_back(&mut self) {
        let Some(length) = NonZero::new(self.written - self.on_its_way) else {
            return;
        };
        // Of dirty pages it begins the writing; it would only drop what is on disk already.
        let advised = rustix::fs::fadvise(
            self.file.file(),
            self.on_its_way,
            Some(length),
            rustix::fs::Advice::DontNeed,
        );
        if let Err(err) = advised {
            tracing::debug!("the file system takes no advice: {err}");
        }
        self.on_its_way = self.written;
    }
}

impl Write for LocalSpool {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let count = self.file.write(buf)?;
        self.written += count as u64;
        if self.written - self.on_its_way >= WRITE_BACK_BYTES {
            self.write_back();
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Spool for LocalSpool {
    fn publish(self: Box<Self>, key: &str) -> Result<(), RepositoryError> {
        let Self { file, store, .. } = *self;
        let path = store.path(key)?;
        make_parents(&path)
            .and_then(|()| file.commit_new(&path))
            .map_err(|e| match e.kind() {
                // Nobody asked for the key: it is the file behind it that is gone.
                io::ErrorKind::NotFound => RepositoryError::Invalid(format!(
                    "the unfinished {key} is gone from {}: the run took too long (after a day others clear it away), or the directory was unmounted; nothing was committed",
                    store.root.display()
                )),
                _ => store.failed("publish", key, e),
            })
    }
}
