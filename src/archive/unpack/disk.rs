//! The writing side: everything happens relative to directories that [`Tree`] has opened, so no name can
//! lead anywhere but below the target.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::Path;

use rustix::fs::{self, AtFlags, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use tokio::sync::mpsc::Receiver;

use super::deferred::{Deferred, Waiting};
use super::entry::{EntryKind, EntryName, Member};
use super::flusher::{FLUSH_BYTES, Flusher};
use super::tree::{STICKY, Tree, split, temporary};
use super::{Op, UnpackError, UnpackOptions, UnpackReport};
use crate::archive::EntryMeta;

/// What a directory becomes that the archive never described.
const DEFAULT_DIRECTORY: u32 = 0o755;

/// Writes what is received until [`Op::Finish`], then completes the tree and syncs it.
pub fn write(
    target: &Path,
    options: &UnpackOptions,
    mut received: Receiver<Op>,
) -> Result<UnpackReport, UnpackError> {
    let mut disk = Disk::open(target, options)?;
    loop {
        match received.blocking_recv() {
            Some(Op::Member(member)) => disk.member(&member, &mut received)?,
            Some(Op::Finish) => return disk.finish(),
            Some(Op::Data(_)) | None => return Err(disk.stopped()),
        }
    }
}

struct Disk<'a> {
    tree: Tree,
    flusher: Flusher,
    options: &'a UnpackOptions,
    symlinks: Deferred,
    /// Which of `options.publish_last` came.
    to_publish: Vec<usize>,
    report: UnpackReport,
}

impl<'a> Disk<'a> {
    fn open(target: &Path, options: &'a UnpackOptions) -> Result<Self, UnpackError> {
        let tree = Tree::open(target)?;
        Ok(Self {
            flusher: Flusher::start().map_err(|e| tree.failed(b"", e))?,
            tree,
            options,
            symlinks: Deferred::new(target),
            to_publish: Vec::new(),
            report: UnpackReport::default(),
        })
    }

    fn stopped(&self) -> UnpackError {
        self.tree
            .failed(b"", io::Error::other("the archive was not read to its end"))
    }

    fn member(&mut self, member: &Member, received: &mut Receiver<Op>) -> Result<(), UnpackError> {
        let Member { name, meta, kind } = member;
        match kind {
            EntryKind::Directory => {
                self.tree.directory(name, meta)?;
                self.report.directories += 1;
            }
            EntryKind::File { size } => self.file(name, meta, *size, received)?,
            EntryKind::Symlink { to } => {
                // Its directory is made now, so that it is among the directories that are finished.
                let (parents, _) = split(name)?;
                self.tree.enter(&parents)?;
                let kept = self.symlinks.push(name, to, Some(meta));
                kept.map_err(|e| self.tree.failed(b"", e))?;
            }
            EntryKind::HardLink { to } => {
                self.tree.hard_link(name, to)?;
                self.report.hard_links += 1;
            }
        }
        Ok(())
    }

    fn file(
        &mut self,
        name: &EntryName,
        meta: &EntryMeta,
        size: u64,
        received: &mut Receiver<Op>,
    ) -> Result<(), UnpackError> {
        let publish = self
            .options
            .publish_last
            .iter()
            .position(|last| last.as_bytes() == name.as_bytes());
        let (parents, last) = split(name)?;
        let last = match publish {
            Some(index) => {
                self.to_publish.push(index);
                temporary(index)
            }
            None => last.to_owned(),
        };
        let mut file = self.tree.create(name, &parents, &last)?;
        let (mut left, mut unflushed) = (size, 0);
        while left > 0 {
            let Some(Op::Data(chunk)) = received.blocking_recv() else {
                return Err(self.stopped());
            };
            let failed = |e| self.tree.failed(name.as_bytes(), e);
            file.write_all(&chunk).map_err(failed)?;
            left = left.saturating_sub(chunk.len() as u64);
            unflushed += chunk.len() as u64;
            if unflushed >= FLUSH_BYTES {
                unflushed = 0;
                self.flusher.flush(&file).map_err(failed)?;
            }
        }
        self.describe(&file, name, Some(meta))?;
        self.report.files += 1;
        self.report.bytes += size;
        Ok(())
    }

    /// Gives an open file or directory its owner, attributes, mode and time, in the order that keeps each:
    /// a change of owner clears setuid and capabilities, and a list of access rights carries the mode's group.
    fn describe(
        &mut self,
        file: &File,
        name: &EntryName,
        meta: Option<&EntryMeta>,
    ) -> Result<(), UnpackError> {
        let failed = |what: &str, e: Errno, tree: &Tree| {
            let e = io::Error::from(e);
            tree.failed(
                name.as_bytes(),
                io::Error::new(e.kind(), format!("{what}: {e}")),
            )
        };
        if let Some((uid, gid)) = self.owner(meta) {
            fs::fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).map_err(|e| {
                failed(
                    &format!("give it to owner {uid}:{gid} (needs root or CAP_CHOWN)"),
                    e,
                    &self.tree,
                )
            })?;
        }
        for (key, value) in meta.iter().flat_map(|meta| &meta.xattrs) {
            let set = fs::fsetxattr(file, key.as_str(), value, XattrFlags::empty());
            self.count_xattr(set)
                .map_err(|e| failed(&format!("set its attribute {key}"), e, &self.tree))?;
        }
        let mode = meta.map_or(DEFAULT_DIRECTORY, |meta| meta.mode);
        fs::fchmod(file, Mode::from_raw_mode(mode))
            .map_err(|e| failed("set its mode", e, &self.tree))?;
        if let Some(meta) = meta {
            fs::futimens(file, &times(meta)).map_err(|e| failed("set its time", e, &self.tree))?;
        }
        Ok(())
    }

    fn owner(&self, meta: Option<&EntryMeta>) -> Option<(u32, u32)> {
        self.options
            .owner
            .or_else(|| meta.map(|meta| (meta.uid, meta.gid)))
    }

    /// Counts an attribute that is not taken here; anything else, such as a full disk, is an error.
    fn count_xattr(&mut self, set: Result<(), Errno>) -> Result<(), Errno> {
        match set {
            Err(Errno::NOTSUP | Errno::PERM | Errno::ACCESS) => {
                self.report.xattrs_refused += 1;
                Ok(())
            }
            other => other,
        }
    }

    fn finish(mut self) -> Result<UnpackReport, UnpackError> {
        self.make_symlinks()?;
        self.describe_directories()?;
        let flushed = self.flusher.finish();
        flushed.map_err(|e| self.tree.failed(b"", e))?;
        self.tree.sync()?;
        for index in std::mem::take(&mut self.to_publish) {
            if let Some(name) = self.options.publish_last.get(index) {
                self.tree.publish(index, name.as_bytes())?;
            }
        }
        Ok(self.report)
    }

    fn make_symlinks(&mut self) -> Result<(), UnpackError> {
        let mut symlinks = std::mem::replace(&mut self.symlinks, Deferred::new(&self.tree.path));
        let path = self.tree.path.clone();
        let spool = |source| UnpackError::Write {
            path: path.clone(),
            source,
        };
        for waiting in symlinks.read().map_err(spool)? {
            self.symlink(&waiting.map_err(spool)?)?;
            self.report.symlinks += 1;
        }
        Ok(())
    }

    fn symlink(&mut self, link: &Waiting) -> Result<(), UnpackError> {
        let name = &link.name;
        let owner = self.owner(link.meta.as_ref());
        let (parents, last) = split(name)?;
        let last = last.to_owned();
        let dir = self.tree.enter(&parents)?;
        let made = fs::symlinkat(link.to.as_slice(), dir, last.as_slice()).and_then(|()| {
            if let Some((uid, gid)) = owner {
                let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                fs::chownat(dir, last.as_slice(), Some(uid), Some(gid), flags)?;
            }
            Ok(())
        });
        // The kernel has no call that sets a link's attributes relative to a directory.
        let mut here = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
        here.extend_from_slice(&last);
        made.map_err(|e| self.tree.refused(name, e))?;
        let Some(meta) = &link.meta else {
            return Ok(());
        };
        for (key, value) in &meta.xattrs {
            let set = fs::lsetxattr(here.as_slice(), key.as_str(), value, XattrFlags::empty());
            self.count_xattr(set)
                .map_err(|e| self.tree.failed(name.as_bytes(), e.into()))?;
        }
        let dir = self.tree.enter(&parents)?;
        fs::utimensat(
            dir,
            last.as_slice(),
            &times(meta),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .map_err(|e| self.tree.failed(name.as_bytes(), e.into()))
    }

    /// Describes the directories, the deepest first: a mode that locks us out of a directory, or its time,
    /// must not be set before everything below it is done.
    fn describe_directories(&mut self) -> Result<(), UnpackError> {
        let path = self.tree.path.clone();
        let spool = |source| UnpackError::Write {
            path: path.clone(),
            source,
        };
        let depths = std::mem::take(&mut self.tree.depths);
        let mut directories =
            std::mem::replace(&mut self.tree.directories, Deferred::new(&self.tree.path));
        for (depth, _) in depths.iter().enumerate().rev().filter(|(_, n)| **n > 0) {
            for waiting in directories.read().map_err(spool)? {
                let Waiting { name, meta, .. } = waiting.map_err(spool)?;
                if name.components().count() == depth {
                    self.describe_directory(&name, meta.as_ref())?;
                }
            }
        }
        Ok(())
    }

    fn describe_directory(
        &mut self,
        name: &EntryName,
        meta: Option<&EntryMeta>,
    ) -> Result<(), UnpackError> {
        let components: Vec<&[u8]> = name.components().collect();
        let opened = self.tree.reopen(&components)?;
        if meta.is_none() {
            // Made for what is below it; an entry of its own may have come later and described it.
            let stat = fs::fstat(&opened).map_err(|e| self.tree.refused(name, e))?;
            if stat.st_mode & STICKY == 0 {
                return Ok(());
            }
        }
        self.describe(&opened, name, meta)
    }
}

fn times(meta: &EntryMeta) -> Timestamps {
    let time = Timespec {
        tv_sec: meta.mtime_secs,
        tv_nsec: meta.mtime_nanos.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}
