//! The steps a swap is made of: each one filesystem operation, so that a test can stop before any of them.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::durable;

/// Owner and mode of a swapped directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootMeta {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

impl RootMeta {
    pub fn of(path: &Path) -> io::Result<Self> {
        let meta = fs::metadata(path).map_err(|e| failed("look at", path, &e))?;
        Ok(Self {
            mode: meta.mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
        })
    }
}

/// Does the steps; in tests it dies after some.
pub struct Files {
    #[cfg(test)]
    pub left: std::cell::Cell<u64>,
}

impl Files {
    pub fn new() -> Self {
        Self {
            #[cfg(test)]
            left: std::cell::Cell::new(u64::MAX),
        }
    }

    #[cfg(test)]
    fn step(&self) -> io::Result<()> {
        let left = self.left.get().checked_sub(1);
        self.left
            .set(left.ok_or_else(|| io::Error::other("killed"))?);
        Ok(())
    }

    #[cfg(not(test))]
    #[allow(clippy::unused_self, clippy::unnecessary_wraps)]
    fn step(&self) -> io::Result<()> {
        Ok(())
    }

    pub fn create_dir(&self, path: &Path, mode: u32) -> io::Result<()> {
        self.step()?;
        durable::create_dir(path, mode)
    }

    pub fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.step()?;
        durable::write_replace(path, bytes, 0o600)
    }

    pub fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        durable::sync_dir(path)
    }

    pub fn set_meta(&self, path: &Path, meta: &RootMeta) -> io::Result<()> {
        self.step()?;
        if RootMeta::of(path)? == *meta {
            return Ok(());
        }
        std::os::unix::fs::chown(path, Some(meta.uid), Some(meta.gid))
            .map_err(|e| failed("set the owner of", path, &e))?;
        self.step()?;
        fs::set_permissions(path, fs::Permissions::from_mode(meta.mode))
            .map_err(|e| failed("set the mode of", path, &e))
    }

    /// Moves every entry; names that exist in `to` are an error. On disk when this returns, with their number.
    pub fn move_entries(&self, from: &Path, to: &Path) -> io::Result<u64> {
        let mut moved = 0;
        each_entry(from, |name| {
            moved += 1;
            self.rename(&from.join(name), &to.join(name)).map_err(|e| {
                let why = match e.kind() {
                    io::ErrorKind::AlreadyExists => {
                        " (something still writes there: stop it and restore again)"
                    }
                    io::ErrorKind::CrossesDevices | io::ErrorKind::ResourceBusy => {
                        " (it is a mount, or lies in a container's own layer)"
                    }
                    _ => "",
                };
                let what = format!(
                    "cannot move {} to {}",
                    from.join(name).display(),
                    to.display()
                );
                io::Error::new(e.kind(), format!("{what}: {e}{why}"))
            })
        })?;
        self.sync_both(from, to)?;
        Ok(moved)
    }

    /// Moves every entry of `root` to `junk`, where one of the same name is as worthless.
    pub fn discard_entries(&self, root: &Path, junk: &Path) -> io::Result<()> {
        each_entry(root, |name| self.discard(root, junk, name))?;
        self.sync_both(root, junk)
    }

    /// Moves every entry of `kept` back to `root`. What has its name there was made since, by something that
    /// should not have run: it gives way.
    pub fn move_entries_back(&self, kept: &Path, root: &Path, junk: &Path) -> io::Result<()> {
        each_entry(kept, |name| {
            let (from, to) = (kept.join(name), root.join(name));
            match self.rename(&from, &to) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                    if !junk.exists() {
                        self.create_dir(junk, 0o700)?;
                    }
                    self.discard(root, junk, name)?;
                    self.rename(&from, &to)
                }
                other => other,
            }
        })?;
        self.sync_both(kept, root)
    }

    fn discard(&self, root: &Path, junk: &Path, name: &OsStr) -> io::Result<()> {
        let (from, to) = (root.join(name), junk.join(name));
        match self.rename(&from, &to) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                self.remove(&to)?;
                self.rename(&from, &to)
            }
            other => other,
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step()?;
        durable::rename_noreplace(from, to)
    }

    /// Syncs where entries went before where they came from, so that none is in neither.
    fn sync_both(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.sync_dir(to)?;
        self.sync_dir(from)
    }

    /// Removes a directory of ours and all in it, `last` as the last; none is fine.
    pub fn remove_dir(&self, dir: &Path, last: Option<&str>) -> io::Result<()> {
        match fs::symlink_metadata(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(failed("look at", dir, &e)),
            Ok(_) => {}
        }
        if let Some(mount) = mounts_below(dir).map_err(io::Error::other)?.first() {
            return Err(io::Error::other(format!(
                "{} is mounted inside {}, so that is not removed: unmount it first",
                mount.display(),
                dir.display()
            )));
        }
        for entry in fs::read_dir(dir).map_err(|e| failed("list", dir, &e))? {
            let entry = entry.map_err(|e| failed("list", dir, &e))?;
            if last.is_none_or(|last| entry.file_name() != last) {
                self.remove(&entry.path())?;
            }
        }
        if let Some(last) = last.map(|last| dir.join(last)).filter(|path| path.exists()) {
            self.sync_dir(dir)?;
            self.remove(&last)?;
        }
        self.step()?;
        durable::remove_tree(dir).map(|_| ())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        let meta = fs::symlink_metadata(path).map_err(|e| failed("look at", path, &e))?;
        let removed = if meta.is_dir() {
            fs::remove_dir_all(path)
        } else {
            fs::remove_file(path)
        };
        removed.map_err(|e| failed("remove", path, &e))
    }
}

/// Calls `each`, which takes the entry away, for every entry until none is left, in constant memory.
/// Listing a directory while its entries leave may skip some, so it is listed again.
fn each_entry(dir: &Path, mut each: impl FnMut(&OsStr) -> io::Result<()>) -> io::Result<()> {
    loop {
        let mut met = 0_u64;
        for entry in fs::read_dir(dir).map_err(|e| failed("list", dir, &e))? {
            let name = entry.map_err(|e| failed("list", dir, &e))?.file_name();
            if !stays(&name) {
                each(&name)?;
                met += 1;
            }
        }
        if met == 0 {
            return Ok(());
        }
    }
}

/// The owner that all entries of a directory share; `None` when they do not, or there are none.
pub fn common_owner(dir: &Path) -> io::Result<Option<(u32, u32)>> {
    let mut common = None;
    for entry in fs::read_dir(dir).map_err(|e| failed("list", dir, &e))? {
        let entry = entry.map_err(|e| failed("list", dir, &e))?;
        if stays(&entry.file_name()) {
            continue;
        }
        let meta = entry
            .metadata()
            .map_err(|e| failed("look at", &entry.path(), &e))?;
        let owner = (meta.uid(), meta.gid());
        if *common.get_or_insert(owner) != owner {
            return Ok(None);
        }
    }
    Ok(common)
}

/// What is not part of a service's data: ours, and the filesystem's own.
fn stays(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".lifeboat-") || name == "lost+found"
}

/// Says why nothing can be written in `root`.
pub fn writable(root: &Path) -> Result<(), String> {
    let at =
        |e: &dyn std::fmt::Display| format!("cannot swap the entries of {}: {e}", root.display());
    if !fs::metadata(root).map_err(|e| at(&e))?.is_dir() {
        return Err(at(&"it is not a directory"));
    }
    let mount = rustix::fs::statvfs(root).map_err(|e| at(&e))?;
    if mount.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
        return Err(at(
            &"it is mounted read-only: take \":ro\" off the sidecar's mount for the restore",
        ));
    }
    let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    rustix::fs::access(root, access)
        .map_err(|e| at(&format!("{e}: the restore must be able to write in it")))
}

/// Every mount strictly below a directory, as this process sees them.
pub fn mounts_below(dir: &Path) -> Result<Vec<PathBuf>, String> {
    let at = |e: io::Error| format!("cannot tell what is mounted below {}: {e}", dir.display());
    let dir = dir.canonicalize().map_err(at)?;
    let table = fs::read("/proc/self/mountinfo").map_err(at)?;
    Ok(parse_mounts(&table)
        .filter(|mount| *mount != dir && mount.starts_with(&dir))
        .collect())
}

/// Mount points of a mountinfo table, whose fifth field has blanks and backslashes as `\ooo` (proc(5)).
fn parse_mounts(table: &[u8]) -> impl Iterator<Item = PathBuf> + '_ {
    table.split(|byte| *byte == b'\n').filter_map(|line| {
        let point = line.split(|byte| *byte == b' ').nth(4)?;
        let mut path = Vec::with_capacity(point.len());
        let mut rest = point;
        while let Some((byte, after)) = rest.split_first() {
            let escaped = (*byte == b'\\')
                .then(|| after.split_at_checked(3))
                .flatten()
                .and_then(|(digits, after)| {
                    let digits = std::str::from_utf8(digits).ok()?;
                    Some((u8::from_str_radix(digits, 8).ok()?, after))
                });
            let (byte, after) = escaped.unwrap_or((*byte, after));
            path.push(byte);
            rest = after;
        }
        Some(PathBuf::from(std::ffi::OsString::from_vec(path)))
    })
}

fn failed(what: &str, path: &Path, e: &io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("cannot {what} {}: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn mounts_inside_are_found_by_their_unescaped_names() {
        let table = b"36 35 98:0 / /data rw,noatime - ext4 /dev/vda rw\n\
            37 36 98:0 /x /data/with\\040blank\\134 rw - ext4 /dev/vda rw\n\
            38 36 98:0 /x /database rw - ext4 /dev/vda rw\n";
        let mounts: Vec<_> = parse_mounts(table).collect();
        let expected = ["/data", "/data/with blank\\", "/database"];
        assert_eq!(mounts, expected.map(PathBuf::from));
        // Every Linux system has some below its root.
        assert!(!mounts_below(Path::new("/")).unwrap().is_empty());
        let dir = tempfile::tempdir().unwrap();
        assert!(mounts_below(dir.path()).unwrap().is_empty());
    }

    #[test]
    fn a_read_only_or_missing_root_is_a_sentence() {
        assert!(writable(Path::new("/proc/self/mountinfo")).is_err());
        let missing = writable(Path::new("/nowhere")).unwrap_err();
        assert!(missing.contains("/nowhere"), "{missing}");
    }
}
