//! Directories that belong to a running server, entered without following a link.
//!
//! Whoever is root and writes there by path writes wherever the server points a link to. So each directory is
//! opened from the one above it with `O_NOFOLLOW`, and files are reached through `/proc/self/fd/<n>/`, which
//! stays the opened directory whatever happens to its name.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::durable::{self, AtomicFile};
use crate::services::support::regular;

/// An opened directory.
#[derive(Debug)]
pub(super) struct Dir {
    file: File,
    /// Its name for messages.
    shown: PathBuf,
}

impl Dir {
    /// Opens a directory as it is configured, links on the way to it included. What is missing is made.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let existing = path
            .ancestors()
            .find(|above| above.is_dir())
            .unwrap_or(path);
        let dir = Self {
            file: File::open(existing)?,
            shown: existing.to_owned(),
        };
        dir.make(path.strip_prefix(existing).unwrap_or(Path::new("")))
    }

    /// Enters a directory below, making what is missing with the owner of the directory it is made in.
    pub(super) fn make(&self, relative: &Path) -> io::Result<Self> {
        let mut dir = self.again()?;
        for name in relative.components() {
            let name = plain(name, relative)?;
            dir = match dir.step(name) {
                Err(e) if e.kind() == ErrorKind::NotFound => {
                    dir.named(durable::create_dir(&dir.path().join(name), 0o755))?;
                    let made = dir.step(name)?;
                    own_like(&made.file, &dir)?;
                    made
                }
                other => other?,
            };
        }
        Ok(dir)
    }

    fn again(&self) -> io::Result<Self> {
        Ok(Self {
            file: self.file.try_clone()?,
            shown: self.shown.clone(),
        })
    }

    fn step(&self, name: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let shown = self.shown.join(name);
        match rustix::fs::openat(&self.file, name, flags, Mode::empty()) {
            Ok(fd) => Ok(Self {
                file: File::from(fd),
                shown,
            }),
            // With O_DIRECTORY, openat(2) answers ENOTDIR to a link, too.
            Err(Errno::LOOP | Errno::NOTDIR) => Err(io::Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "{} is a symbolic link or no directory, and a restore writes through neither: put a real directory there (OLLAMA_DATA may name another place)",
                    shown.display()
                ),
            )),
            Err(e) => Err(e.into()),
        }
    }

    /// Where files of this directory are reached as long as it is open.
    pub(super) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// Puts the directory's name back into messages.
    pub(super) fn named<T>(&self, result: io::Result<T>) -> io::Result<T> {
        result.map_err(|e| {
            let (handle, shown) = (self.path(), self.shown.display());
            let text = e
                .to_string()
                .replace(&format!("{}/", handle.display()), &format!("{shown}/"))
                .replace(&format!("{}:", handle.display()), &format!("{shown}:"));
            io::Error::new(e.kind(), text)
        })
    }

    pub(super) fn same_filesystem(&self, other: &Self) -> io::Result<bool> {
        Ok(self.file.metadata()?.dev() == other.file.metadata()?.dev())
    }

    /// A new file in this directory; it must be committed before this directory is closed.
    pub(super) fn create(&self, mode: u32) -> io::Result<AtomicFile> {
        self.named(AtomicFile::create(&self.path(), mode))
    }

    /// Gives a file that was created here or in another directory its name in this one, and this one's owner.
    pub(super) fn commit(&self, file: AtomicFile, name: &str) -> io::Result<()> {
        own_like(file.file(), self)?;
        self.named(file.commit_replacing(&self.path().join(name)))
    }

    pub(super) fn remove(&self, name: &str) -> io::Result<bool> {
        self.named(durable::remove(&self.path().join(name)))
    }

    pub(super) fn remove_leftovers(&self) -> io::Result<usize> {
        self.named(durable::remove_leftovers(&self.path()))
    }

    /// Whether the name is taken, by whatever it is.
    pub(super) fn has(&self, name: &str) -> io::Result<bool> {
        match rustix::fs::statat(&self.file, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Opens a regular file to read it; `None` when there is none.
    pub(super) fn file(&self, name: &str) -> io::Result<Option<File>> {
        match regular(&self.path().join(name)) {
            Ok(file) => Ok(Some(file)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The bytes and mode of a file that may have `limit` bytes; `None` when there is none.
    pub(super) fn read(&self, name: &str, limit: u64) -> io::Result<Option<(Vec<u8>, u32)>> {
        let Some(file) = self.file(name)? else {
            return Ok(None);
        };
        let mode = file.metadata()?.mode() & 0o777;
        let mut bytes = Vec::new();
        file.take(limit + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > limit {
            return Err(io::Error::new(
                ErrorKind::InvalidData,
                "it is too large for what it is, so it is not replaced: move it away",
            ));
        }
        Ok(Some((bytes, mode)))
    }
}

/// Writes a small file by rename, from outside the directories that the server lists.
pub(super) fn put_small(
    models: &Dir,
    parent: &Dir,
    name: &str,
    bytes: &[u8],
    mode: u32,
) -> std::io::Result<()> {
    // A key may be on another file system than the models; a rename cannot leave one.
    let scratch = if parent.same_filesystem(models)? {
        models
    } else {
        parent
    };
    let mut file = scratch.create(mode)?;
    scratch.named(file.write_all(bytes))?;
    scratch.named(parent.commit(file, name))
}

/// A component that leads down.
fn plain<'a>(name: Component<'a>, path: &Path) -> io::Result<&'a Path> {
    match name {
        Component::Normal(name) => Ok(Path::new(name)),
        _ => Err(io::Error::new(
            ErrorKind::InvalidInput,
            format!("{} leads out of its directory", path.display()),
        )),
    }
}

/// Gives an open file or directory to the owner of a directory.
fn own_like(file: &File, model: &Dir) -> io::Result<()> {
    let (is, should) = (file.metadata()?, model.file.metadata()?);
    if (is.uid(), is.gid()) == (should.uid(), should.gid()) {
        return Ok(());
    }
    fchown(file, Some(should.uid()), Some(should.gid())).map_err(|e| {
        io::Error::new(
            e.kind(),
            format!(
                "cannot give it to user {} and group {}: {e}; run with the capability CHOWN",
                should.uid(),
                should.gid()
            ),
        )
    })
}
