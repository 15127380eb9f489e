//! A directory that is held open, so that what is read through it cannot be led elsewhere.
//!
//! A running service owns the directories that it shares: at any moment it may move one away and put a
//! symbolic link in its place. A path of several parts is resolved anew by each call, so it may then lead
//! anywhere this process may read. What is below a held directory is found through its descriptor instead.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, RawDir, SeekFrom};

use super::walk::xattrs_of;

/// What one call lists of a directory.
const LIST_BYTES: usize = 32 * 1024;

/// A directory by its descriptor.
#[derive(Debug)]
pub struct HeldDirectory(File);

impl HeldDirectory {
    /// Opens a directory by its path, whose links are followed: for the root of a tree, and for links that
    /// are meant.
    ///
    /// Fails where `/proc` is not mounted, because [`Self::child`] would find nothing there and a file that
    /// is not found counts as one that vanished. Linux containers always have it.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let held = Self(rustix::fs::open(path, flags, Mode::empty())?.into());
        let there = held.metadata()?;
        let seen = std::fs::metadata(held.path()).map_err(|e| {
            io::Error::other(format!(
                "{} cannot be read ({e}): /proc must be mounted in this container",
                held.path().display()
            ))
        })?;
        if (there.dev(), there.ino()) == (seen.dev(), seen.ino()) {
            return Ok(held);
        }
        Err(io::Error::other(
            "/proc/self/fd does not show this process's files: mount /proc in this container",
        ))
    }

    /// Opens a directory in this one; a symbolic link in its place is an error (`ELOOP` or `ENOTDIR`).
    pub fn open_child(&self, name: &OsStr) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&self.0, name, flags, Mode::empty())?;
        Ok(Self(opened.into()))
    }

    /// A path to an entry of this very directory, for as long as it is held. Only its last part can be a
    /// symbolic link that leads on: who opens it must not follow that. Not for people to read.
    pub fn child(&self, name: &OsStr) -> PathBuf {
        self.path().join(name)
    }

    /// What an entry of it is; a symbolic link is not followed.
    ///
    /// Through a descriptor of its own: cheaper than a path through `/proc`, which the kernel resolves anew.
    pub fn look_at(&self, name: &OsStr) -> io::Result<Metadata> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let entry = rustix::fs::openat(&self.0, name, flags, Mode::empty())?;
        File::from(entry).metadata()
    }

    pub fn metadata(&self) -> io::Result<Metadata> {
        self.0.metadata()
    }

    /// The names in it, in no order, without `.` and `..`.
    pub fn names(&self) -> io::Result<Vec<Vec<u8>>> {
        // The descriptor itself is read, which may have been read before.
        rustix::fs::seek(&self.0, SeekFrom::Start(0))?;
        let mut buffer = Vec::with_capacity(LIST_BYTES);
        let mut entries = RawDir::new(&self.0, buffer.spare_capacity_mut());
        let mut names = Vec::new();
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(name.to_vec());
            }
        }
        Ok(names)
    }

    /// Its own extended attributes.
    pub fn xattrs(&self) -> io::Result<Vec<(String, Vec<u8>)>> {
        xattrs_of(&self.0)
    }

    /// The file system's type: `f_type` of fstatfs(2).
    pub fn file_system(&self) -> io::Result<u64> {
        let kind = rustix::fs::fstatfs(&self.0)?.f_type;
        // The field's type and sign differ between architectures; the magic numbers have 32 bits.
        #[allow(clippy::cast_sign_loss, clippy::unnecessary_cast)]
        let kind = (kind as u64) & 0xffff_ffff;
        Ok(kind)
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }
}
