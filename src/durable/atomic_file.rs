//! Files that get their names when they are complete.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::TempPath;

use super::{failed, rename_noreplace, sync_parent};

/// How the names of files begin that were not committed yet; whoever lists a directory leaves them out.
pub const TEMP_PREFIX: &str = ".lifeboat-tmp-";

/// A file that gets its name only when it is complete: written through, then committed.
///
/// Dropped without a commit, or when the commit fails, it is removed. After `kill -9` it stays behind under
/// a name that begins with [`TEMP_PREFIX`]; see [`remove_leftovers`].
#[derive(Debug)]
pub struct AtomicFile {
    pub(super) file: File,
    pub(super) temp: TempPath,
}

impl AtomicFile {
    /// Opens a new file in `dir`, which must be on the filesystem of the path it is committed to.
    pub fn create(dir: &Path, mode: u32) -> io::Result<Self> {
        let temp = tempfile::Builder::new()
            .prefix(TEMP_PREFIX)
            .permissions(Permissions::from_mode(mode))
            .tempfile_in(dir)
            .map_err(|err| failed("create a file in", dir, &err))?;
        let (file, temp) = temp.into_parts();
        // The creation mode was narrowed by the umask.
        file.set_permissions(Permissions::from_mode(mode))
            .map_err(|err| failed("set the mode of", &temp, &err))?;
        Ok(Self { file, temp })
    }

    /// The open file: to read back what was written, or to write at an offset.
    pub const fn file(&self) -> &File {
        &self.file
    }

    /// Where it is until it is committed.
    pub fn temp_path(&self) -> &Path {
        &self.temp
    }

    /// Gives it its name, which must be free; [`ErrorKind::AlreadyExists`] when it is not.
    pub fn commit_new(self, path: &Path) -> io::Result<()> {
        self.commit_with(path, rename_noreplace)
    }

    /// Gives it its name, replacing the file that may have it.
    pub fn commit_replacing(self, path: &Path) -> io::Result<()> {
        self.commit_with(path, |from, to| fs::rename(from, to))
    }

    fn commit_with(
        self,
        path: &Path,
        rename: impl FnOnce(&Path, &Path) -> io::Result<()>,
    ) -> io::Result<()> {
        self.name_as(path, rename)?;
        // The temporary name's own directory can wait: should that name come back after a power failure,
        // it is a leftover as any other.
        sync_parent(path)
    }

    /// Its content is on disk when this returns, and the name is once the directory is synced.
    pub(super) fn name_as(
        self,
        path: &Path,
        rename: impl FnOnce(&Path, &Path) -> io::Result<()>,
    ) -> io::Result<()> {
        // After a failed fsync the kernel may have dropped the pages: trying again would lie.
        self.file
            .sync_all()
            .map_err(|err| failed("sync", path, &err))?;
        rename(&self.temp, path).map_err(|err| failed("commit", path, &err))?;
        self.temp
            .keep()
            .map(drop)
            .map_err(|err| failed("commit", path, &err.error))
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file
            .write(bytes)
            .map_err(|err| failed("write", &self.temp, &err))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Removes the uncommitted files that a killed process left in `dir`; their number.
///
/// Only for whoever holds the lock under which files are written there: it cannot tell a living writer's.
pub fn remove_leftovers(dir: &Path) -> io::Result<usize> {
    let list = |err| failed("list", dir, &err);
    let mut removed = 0;
    for entry in fs::read_dir(dir).map_err(list)? {
        let entry = entry.map_err(list)?;
        if is_temp(&entry.file_name()) && !entry.file_type().map_err(list)?.is_dir() {
            let path = entry.path();
            fs::remove_file(&path).map_err(|err| failed("remove", &path, &err))?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// Whether a file name is that of an uncommitted file.
pub fn is_temp(file_name: &std::ffi::OsStr) -> bool {
    file_name
        .as_encoded_bytes()
        .starts_with(TEMP_PREFIX.as_bytes())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::durable::create_dir_all;
    use crate::durable::tests::names;

    #[test]
    fn an_uncommitted_file_vanishes_and_a_killed_writers_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = AtomicFile::create(dir.path(), 0o600).unwrap();
        file.write_all(b"half").unwrap();
        assert!(is_temp(file.temp_path().file_name().unwrap()));
        drop(file);
        assert_eq!(names(dir.path()), [""; 0]);

        let killed = AtomicFile::create(dir.path(), 0o600).unwrap();
        std::mem::forget(killed);
        fs::write(dir.path().join("kept"), "").unwrap();
        assert_eq!(remove_leftovers(dir.path()).unwrap(), 1);
        assert_eq!(names(dir.path()), ["kept"]);
    }

    #[test]
    fn a_file_is_committed_into_another_directory() {
        let dir = tempfile::tempdir().unwrap();
        create_dir_all(&dir.path().join("x/y"), 0o700).unwrap();
        let mut file = AtomicFile::create(dir.path(), 0o600).unwrap();
        file.write_all(b"pack").unwrap();
        file.commit_new(&dir.path().join("x/y/pack")).unwrap();
        assert_eq!(fs::read(dir.path().join("x/y/pack")).unwrap(), b"pack");
        assert_eq!(names(dir.path()), ["x"]);
    }
}
