//! The only place that renames and fsyncs.
//!
//! What these functions return `Ok` for survives a power cut: content is fsynced before it gets its name,
//! and the directory that holds the name is fsynced after. Every error names the path it is about and keeps
//! the [`ErrorKind`](std::io::ErrorKind) of its cause. All of it blocks: call it from a blocking thread.

mod atomic_file;

use std::collections::BTreeSet;
use std::fmt::Display;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

pub use atomic_file::{AtomicFile, TEMP_PREFIX, is_temp, remove_leftovers};

/// Writes a file that must not exist yet; [`ErrorKind::AlreadyExists`] when it does, which changes nothing.
pub fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = AtomicFile::create(parent_of(path)?, mode)?;
    file.write_all(bytes)?;
    file.commit_new(path)
}

/// Writes files that must not exist yet, each whole before it gets its name; all are on disk when this
/// returns. When it fails, some may be there.
pub fn write_all_new(files: &[(PathBuf, Vec<u8>)], mode: u32) -> io::Result<()> {
    let mut parents = BTreeSet::new();
    for (path, bytes) in files {
        let parent = parent_of(path)?;
        let mut file = AtomicFile::create(parent, mode)?;
        file.write_all(bytes)?;
        file.name_as(path, rename_noreplace)?;
        parents.insert(parent);
    }
    parents.into_iter().try_for_each(sync_dir)
}

/// Writes a file whole, in place of one that may exist: a reader sees the old content or the new one.
pub fn write_replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = AtomicFile::create(parent_of(path)?, mode)?;
    file.write_all(bytes)?;
    file.commit_replacing(path)
}

/// Writes a file whole in place of one that may exist, and waits for no disk: after a power cut it may be the
/// old one, torn or gone. Only for what is checked when it is read, and can be made again.
pub fn write_hint(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let AtomicFile { mut file, temp } = AtomicFile::create(parent_of(path)?, mode)?;
    file.write_all(bytes)
        .map_err(|err| failed("write", path, &err))?;
    temp.persist(path)
        .map_err(|err| failed("write", path, &err.error))
}

/// Writes a file whole as another's heir: in place of one it keeps that one's owner and mode, else it takes the
/// directory's owner and is private. What a server reads must stay the server's own.
pub fn write_like(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = parent_of(path)?;
    let (model, mode) = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_file() => (meta.clone(), meta.mode() & 0o7777),
        Ok(_) => {
            let err = io::Error::from(ErrorKind::InvalidInput);
            return Err(failed("write over what is not a file,", path, &err));
        }
        Err(err) if err.kind() == ErrorKind::NotFound => {
            let meta = fs::metadata(dir).map_err(|err| failed("look at", dir, &err))?;
            (meta, 0o600)
        }
        Err(err) => return Err(failed("look at", path, &err)),
    };
    let mut file = AtomicFile::create(dir, mode)?;
    file.write_all(bytes)?;
    let own = file
        .file
        .metadata()
        .map_err(|err| failed("look at", path, &err))?;
    if (own.uid(), own.gid()) != (model.uid(), model.gid()) {
        fchown(&file.file, Some(model.uid()), Some(model.gid()))
            .and_then(|()| file.file.set_permissions(Permissions::from_mode(mode)))
            .map_err(|err| failed("give its owner to", path, &err))?;
    }
    file.commit_replacing(path)
}

/// Creates one directory with exactly this mode; [`ErrorKind::AlreadyExists`] when something has its name.
pub fn create_dir(path: &Path, mode: u32) -> io::Result<()> {
    make_dir(path, mode)?;
    sync_dir(path)?;
    sync_parent(path)
}

fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new()
        .mode(mode)
        .create(path)
        .and_then(|()| fs::set_permissions(path, Permissions::from_mode(mode)))
        .map_err(|err| failed("create directory", path, &err))
}

/// Creates a directory and what is missing above it; an existing one stays as it is.
///
/// Its name is on disk when this returns; it itself is once a file in it is.
pub fn create_dir_all(path: &Path, mode: u32) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        create_dir_all(parent, mode)?;
    }
    match make_dir(path, mode).and_then(|()| sync_parent(path)) {
        // Another process may have been faster.
        Err(err) if err.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        other => other,
    }
}

/// Renames, replacing what `to` names as rename(2) does; both directories are on disk when this returns.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to).map_err(|err| failed_rename(from, to, &err))?;
    sync_both_parents(from, to)
}

/// Renames to a name that must be free; [`ErrorKind::AlreadyExists`] when it is not, which changes nothing.
pub fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    rename_noreplace(from, to).map_err(|err| failed_rename(from, to, &err))?;
    sync_both_parents(from, to)
}

/// Removes a file or symbolic link; `false` when there was none.
pub fn remove(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => sync_parent(path).map(|()| true),
        Err(err) if err.kind() == ErrorKind::NotFound => Ok(false),
        Err(err) => Err(failed("remove", path, &err)),
    }
}

/// Removes a directory and all below it, following no symbolic link; `false` when there was none.
pub fn remove_tree(path: &Path) -> io::Result<bool> {
    match fs::remove_dir_all(path) {
        Ok(()) => sync_parent(path).map(|()| true),
        Err(err) if err.kind() == ErrorKind::NotFound => Ok(false),
        Err(err) => Err(failed("remove directory", path, &err)),
    }
}

/// Brings a directory's entries (names, not the files' content) onto the disk.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    let synced = File::open(path).and_then(|dir| dir.sync_all());
    match synced {
        // fsync(2): EINVAL says that the filesystem has no such thing for directories (some network and
        // FUSE filesystems); there is no stronger promise to be had from it.
        Err(err) if is_any(&err, &[Errno::INVAL, Errno::NOTSUP]) => Ok(()),
        other => other.map_err(|err| failed("sync directory", path, &err)),
    }
}

/// Brings a file's content onto the disk.
pub fn sync_file(path: &Path) -> io::Result<()> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(|err| failed("sync", path, &err))
}

/// Renames if the new name is free, as atomically as the filesystem can, and syncs nothing.
///
/// For many renames between the same two directories: the caller syncs both with [`sync_dir`] after the last.
pub fn rename_noreplace(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // renameat2(2): the filesystem (NFS, some FUSE ones) or the kernel does not know the flag.
        Err(Errno::INVAL | Errno::NOSYS) => link_or_check(from, to),
        other => Ok(other?),
    }
}

fn link_or_check(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        Ok(()) => fs::remove_file(from),
        // link(2): a directory, or a filesystem without hard links. The lock keeps other runs away, so
        // looking first is enough.
        Err(err) if is_any(&err, &[Errno::PERM, Errno::NOTSUP, Errno::NOSYS]) => {
            if fs::symlink_metadata(to).is_ok() {
                return Err(Errno::EXIST.into());
            }
            fs::rename(from, to)
        }
        Err(err) => Err(err),
    }
}

fn sync_both_parents(from: &Path, to: &Path) -> io::Result<()> {
    sync_parent(to)?;
    if parent_of(from)? != parent_of(to)? {
        sync_parent(from)?;
    }
    Ok(())
}

fn sync_parent(path: &Path) -> io::Result<()> {
    sync_dir(parent_of(path)?)
}

fn parent_of(path: &Path) -> io::Result<&Path> {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Ok(Path::new(".")),
        Some(parent) => Ok(parent),
        None => Err(io::Error::new(
            ErrorKind::InvalidInput,
            format!("{} has no directory above it", path.display()),
        )),
    }
}

fn is_any(err: &io::Error, codes: &[Errno]) -> bool {
    codes
        .iter()
        .any(|code| err.raw_os_error() == Some(code.raw_os_error()))
}

fn failed(what: &str, path: &Path, err: &io::Error) -> io::Error {
    with_context(err, format_args!("cannot {what} {}", path.display()))
}

fn failed_rename(from: &Path, to: &Path, err: &io::Error) -> io::Error {
    let what = format_args!("cannot rename {} to {}", from.display(), to.display());
    with_context(err, what)
}

fn with_context(err: &io::Error, what: impl Display) -> io::Error {
    io::Error::new(err.kind(), format!("{what}: {err}"))
}

/// The path of a file next to `path`, for a caller that must name one itself.
pub fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use super::*;

    pub(super) fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_new_file_has_its_content_and_mode_and_nothing_stays_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write_new(&path, b"one", 0o640).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"one");
        assert_eq!(mode(&path), 0o640);
        assert_eq!(names(dir.path()), ["a"]);
    }

    #[test]
    fn a_new_file_never_replaces_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write_new(&path, b"one", 0o600).unwrap();
        let err = write_new(&path, b"two", 0o600).unwrap_err();
        assert_eq!(err.kind(), ErrorKind::AlreadyExists);
        assert!(err.to_string().contains(path.to_str().unwrap()), "{err}");
        assert_eq!(fs::read(&path).unwrap(), b"one");
        assert_eq!(names(dir.path()), ["a"]);
    }

    #[test]
    fn filesystems_without_renameat2_are_served_by_links_and_by_looking_first() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to, third) = (
            dir.path().join("from"),
            dir.path().join("to"),
            dir.path().join("third"),
        );
        fs::write(&from, "1").unwrap();
        link_or_check(&from, &to).unwrap();
        assert_eq!(names(dir.path()), ["to"]);
        fs::write(&from, "2").unwrap();
        let err = link_or_check(&from, &to).unwrap_err();
        assert_eq!(err.kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&to).unwrap(), b"1");
        // A directory cannot be linked, which is how a filesystem without links answers too.
        let sub = dir.path().join("sub");
        fs::create_dir(&sub).unwrap();
        let err = link_or_check(&sub, &to).unwrap_err();
        assert_eq!(err.kind(), ErrorKind::AlreadyExists);
        link_or_check(&sub, &third).unwrap();
        assert_eq!(names(dir.path()), ["from", "third", "to"]);
    }

    #[test]
    fn replacing_takes_the_new_content_and_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write_replace(&path, b"one", 0o644).unwrap();
        write_replace(&path, b"two", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(mode(&path), 0o600);
    }

    #[test]
    fn an_heir_keeps_owner_and_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("postgresql.auto.conf");
        write_new(&path, b"one", 0o640).unwrap();
        let is_root = fs::metadata(&path).unwrap().uid() == 0;
        if is_root {
            std::os::unix::fs::chown(&path, Some(999), Some(998)).unwrap();
        }
        let before = fs::metadata(&path).unwrap();
        write_like(&path, b"two").unwrap();
        let after = fs::metadata(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(mode(&path), 0o640);
        assert_eq!((after.uid(), after.gid()), (before.uid(), before.gid()));

        let new = dir.path().join("new");
        write_like(&new, b"x").unwrap();
        assert_eq!(mode(&new), 0o600);
        write_like(dir.path(), b"x").unwrap_err();
        assert_eq!(names(dir.path()), ["new", "postgresql.auto.conf"]);
    }

    #[test]
    fn directories_are_made_with_their_mode_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b");
        create_dir_all(&deep, 0o750).unwrap();
        create_dir_all(&deep, 0o700).unwrap();
        assert_eq!(mode(&deep), 0o750);
        let err = create_dir(&deep, 0o700).unwrap_err();
        assert_eq!(err.kind(), ErrorKind::AlreadyExists);
    }

    #[test]
    fn rename_new_keeps_what_has_the_name() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b, c) = (
            dir.path().join("a"),
            dir.path().join("b"),
            dir.path().join("c"),
        );
        fs::create_dir(&a).unwrap();
        fs::create_dir(&b).unwrap();
        let err = rename_new(&a, &b).unwrap_err();
        assert_eq!(err.kind(), ErrorKind::AlreadyExists);
        rename_new(&a, &c).unwrap();
        fs::write(&a, "file").unwrap();
        let d = dir.path().join("d");
        fs::write(&d, "old").unwrap();
        rename(&a, &d).unwrap();
        assert_eq!(fs::read(&d).unwrap(), b"file");
        assert_eq!(names(dir.path()), ["b", "c", "d"]);
    }

    #[test]
    fn removing_tells_whether_there_was_something() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        assert!(!remove(&path).unwrap());
        fs::write(&path, "").unwrap();
        assert!(remove(&path).unwrap());
        assert!(!remove_tree(&path).unwrap());
        create_dir_all(&path.join("b"), 0o700).unwrap();
        assert!(remove_tree(&path).unwrap());
        assert_eq!(sibling(&path, ".old"), dir.path().join("a.old"));
    }

    #[test]
    fn a_missing_directory_is_named() {
        let err = write_new(Path::new("/nowhere/at/all"), b"", 0o600).unwrap_err();
        assert_eq!(err.kind(), ErrorKind::NotFound);
        assert!(err.to_string().contains("/nowhere/at"), "{err}");
    }
}
