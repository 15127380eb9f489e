//! The target's directories, opened one component at a time and never through a link.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;

use super::UnpackError;
use super::deferred::Deferred;
use super::entry::{EntryName, PUBLISH_PREFIX, printable};
use crate::archive::EntryMeta;

/// While unpacking, a directory that the archive has not described yet carries the sticky bit: it was made
/// for a file below it and may still be described, once.
const UNDESCRIBED: u32 = 0o1700;
const DESCRIBED: u32 = 0o0700;
pub const STICKY: u32 = 0o1000;

/// The target and the directories below it that are open.
pub struct Tree {
    root: File,
    pub path: PathBuf,
    /// The directories from the target to where the last entry was written.
    open: Vec<(Vec<u8>, OwnedFd)>,
    pub directories: Deferred,
    /// How many of `directories` lie how deep; the target is at 0.
    pub depths: Vec<u64>,
    root_described: bool,
}

impl Tree {
    pub fn open(target: &Path) -> Result<Self, UnpackError> {
        let failed = |source| UnpackError::Write {
            path: target.to_owned(),
            source,
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = fs::open(target, flags, Mode::empty()).map_err(|e| failed(e.into()))?;
        if std::fs::read_dir(target).map_err(failed)?.next().is_some() {
            return Err(failed(io::Error::other(
                "the directory is not empty, and nothing in it would be overwritten",
            )));
        }
        Ok(Self {
            root: File::from(root),
            path: target.to_owned(),
            open: Vec::new(),
            directories: Deferred::new(target),
            depths: Vec::new(),
            root_described: false,
        })
    }

    /// The directory with these components, made where it is missing.
    pub fn enter(&mut self, components: &[&[u8]]) -> Result<BorrowedFd<'_>, UnpackError> {
        let common = self
            .open
            .iter()
            .zip(components)
            .take_while(|((open, _), wanted)| open == *wanted)
            .count();
        self.open.truncate(common);
        for (above, component) in components.iter().enumerate().skip(common) {
            let opened = match self.open_below(component) {
                Err(Errno::NOENT) => {
                    self.make_undescribed(components.get(..=above).unwrap_or_default())?;
                    self.open_below(component)
                }
                other => other,
            };
            let name = || components.get(..=above).unwrap_or_default().join(&b'/');
            let opened = opened.map_err(|e| match e {
                Errno::NOTDIR | Errno::LOOP => UnpackError::Unsafe {
                    name: printable(&components.join(&b'/')),
                    why: format!("{} is not a directory", printable(&name())),
                },
                e => self.failed(&name(), e.into()),
            })?;
            self.open.push(((*component).to_owned(), opened));
        }
        Ok(self.current())
    }

    fn current(&self) -> BorrowedFd<'_> {
        self.open
            .last()
            .map_or(self.root.as_fd(), |(_, dir)| dir.as_fd())
    }

    fn open_below(&self, component: &[u8]) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        fs::openat(self.current(), component, flags, Mode::empty())
    }

    fn make_undescribed(&mut self, components: &[&[u8]]) -> Result<(), UnpackError> {
        let name = EntryName::trusted(components.join(&b'/'));
        let last = components.last().copied().unwrap_or_default();
        fs::mkdirat(self.current(), last, Mode::from_raw_mode(UNDESCRIBED))
            .map_err(|e| self.refused(&name, e))?;
        self.defer(&name, None)
    }

    fn defer(&mut self, name: &EntryName, meta: Option<&EntryMeta>) -> Result<(), UnpackError> {
        let depth = name.components().count();
        if self.depths.len() <= depth {
            self.depths.resize(depth + 1, 0);
        }
        if let Some(count) = self.depths.get_mut(depth) {
            *count += 1;
        }
        self.directories
            .push(name, b"", meta)
            .map_err(|e| self.failed(b"", e))
    }

    pub fn directory(&mut self, name: &EntryName, meta: &EntryMeta) -> Result<(), UnpackError> {
        let Some((parents, last)) = name.split() else {
            if std::mem::replace(&mut self.root_described, true) {
                return Err(self.refused(name, Errno::EXIST));
            }
            return self.defer(name, Some(meta));
        };
        let dir = self.enter(&parents)?;
        let made = match fs::mkdirat(dir, last, Mode::from_raw_mode(DESCRIBED)) {
            Err(Errno::EXIST) => describe_once(dir, last),
            other => other,
        };
        made.map_err(|e| self.refused(name, e))?;
        self.defer(name, Some(meta))
    }

    pub fn create(
        &mut self,
        name: &EntryName,
        parents: &[&[u8]],
        last: &[u8],
    ) -> Result<File, UnpackError> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = self.enter(parents)?;
        let opened = fs::openat(dir, last, flags, Mode::from_raw_mode(0o600));
        opened.map(File::from).map_err(|e| self.refused(name, e))
    }

    pub fn hard_link(&mut self, name: &EntryName, to: &EntryName) -> Result<(), UnpackError> {
        let missing = || UnpackError::Unsafe {
            name: name.to_string(),
            why: format!("it is a hard link to {to}, which is no file unpacked before it"),
        };
        let (to_parents, to_last) = split(to)?;
        // Nothing is made on the way to what must be there already.
        let mut dir = self
            .root
            .try_clone()
            .map(OwnedFd::from)
            .map_err(|e| self.failed(b"", e))?;
        for component in to_parents {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            dir = fs::openat(&dir, component, flags, Mode::empty()).map_err(|_| missing())?;
        }
        let stat = fs::statat(&dir, to_last, AtFlags::SYMLINK_NOFOLLOW).map_err(|_| missing())?;
        if fs::FileType::from_raw_mode(stat.st_mode) != fs::FileType::RegularFile {
            return Err(missing());
        }
        let (parents, last) = split(name)?;
        let here = self.enter(&parents)?;
        fs::linkat(&dir, to_last, here, last, AtFlags::empty()).map_err(|e| self.refused(name, e))
    }

    /// A directory that exists, opened for its metadata.
    pub fn reopen(&mut self, components: &[&[u8]]) -> Result<File, UnpackError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = self.enter(components)?;
        let opened = fs::openat(dir, ".", flags, Mode::empty());
        opened
            .map(File::from)
            .map_err(|e| self.failed(&components.join(&b'/'), e.into()))
    }

    /// Puts a waiting entry under its name, once all else is on disk, and syncs that.
    pub fn publish(&mut self, index: usize, name: &[u8]) -> Result<(), UnpackError> {
        let name = EntryName::trusted(name.to_owned());
        let (parents, last) = split(&name)?;
        let dir = self.reopen(&parents)?;
        let published = || {
            match fs::statat(&dir, last, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => {}
                Ok(_) => return Err(Errno::EXIST),
                Err(e) => return Err(e),
            }
            let before = fs::fstat(&dir)?;
            fs::renameat(&dir, temporary(index).as_slice(), &dir, last)?;
            // The rename must not show in the directory's recorded time.
            fs::futimens(&dir, &stat_times(&before))?;
            fs::fsync(&dir)
        };
        published().map_err(|e| self.refused(&name, e))
    }

    /// Makes everything durable. `syncfs` reports what could not be written back since Linux 5.8.
    pub fn sync(&self) -> Result<(), UnpackError> {
        fs::syncfs(&self.root).map_err(|e| self.failed(b"", e.into()))
    }

    /// What a name that exists already, or a failure to write, means for an entry.
    pub fn refused(&self, name: &EntryName, error: Errno) -> UnpackError {
        match error {
            Errno::EXIST => UnpackError::Unsafe {
                name: name.to_string(),
                why: "the archive holds this name twice".to_owned(),
            },
            error => self.failed(name.as_bytes(), error.into()),
        }
    }

    pub fn failed(&self, name: &[u8], source: io::Error) -> UnpackError {
        use std::os::unix::ffi::OsStrExt;
        let path = if name.is_empty() {
            self.path.clone()
        } else {
            self.path.join(std::ffi::OsStr::from_bytes(name))
        };
        UnpackError::Write { path, source }
    }
}

/// The directories above a name, and its last component.
pub fn split(name: &EntryName) -> Result<(Vec<&[u8]>, &[u8]), UnpackError> {
    name.split().ok_or_else(|| UnpackError::Unsafe {
        name: name.to_string(),
        why: "only a directory can be the target itself".to_owned(),
    })
}

/// Takes the mark off a directory that was made for a file below it; anything else there is a duplicate.
fn describe_once(dir: BorrowedFd<'_>, last: &[u8]) -> Result<(), Errno> {
    let stat = fs::statat(dir, last, AtFlags::SYMLINK_NOFOLLOW)?;
    let directory = fs::FileType::from_raw_mode(stat.st_mode) == fs::FileType::Directory;
    if !directory || stat.st_mode & STICKY == 0 {
        return Err(Errno::EXIST);
    }
    fs::chmodat(dir, last, Mode::from_raw_mode(DESCRIBED), AtFlags::empty())
}

/// What an entry is called until it is published.
pub fn temporary(index: usize) -> Vec<u8> {
    format!("{PUBLISH_PREFIX}{index}").into_bytes()
}

#[allow(clippy::cast_possible_wrap)]
fn stat_times(stat: &fs::Stat) -> Timestamps {
    let time = Timespec {
        tv_sec: stat.st_mtime,
        tv_nsec: stat.st_mtime_nsec as i64,
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}
