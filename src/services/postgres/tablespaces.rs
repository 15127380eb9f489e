//! Puts restored tablespaces back to where the server looks for them.
//!
//! They come out of the archive as `pg_tblspc/<oid>/PG_…` in the staged data directory. Each is moved to its
//! location, or, when that still holds the present's data, to a directory of this restore's own in it: the
//! links belong to the data directory and change with it, so the old ones go on pointing to the old data.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use super::access::Access;
use super::facts::Facts;
use super::label::{Tablespace, render_map};
use crate::durable;

const OWN_PREFIX: &str = "lifeboat-";

/// A tablespace's directory that this restore filled; removed again when it is rolled back.
#[derive(Debug, Clone)]
pub struct Placed {
    version_directory: PathBuf,
    /// Made by this restore, around it.
    own: Option<PathBuf>,
}

impl Placed {
    /// The data of before, which this one was put beside.
    pub fn replaced(&self) -> Option<PathBuf> {
        let beside = self.own.as_ref()?.parent()?;
        Some(beside.join(self.version_directory.file_name()?))
    }
}

/// Where a tablespace goes.
#[derive(Debug, PartialEq, Eq)]
enum Target {
    /// In the data directory itself: below the staged one, at this relative path.
    Inside(PathBuf),
    /// At this path of the server's, which is this one here.
    Outside { location: PathBuf, local: PathBuf },
}

/// Why a tablespace cannot be put back, if one cannot; changes nothing.
pub fn preflight(access: &Access, facts: &Facts, root: &Path) -> Result<(), String> {
    for tablespace in &facts.tablespaces {
        if let Target::Outside { location, local } = target(access, facts, root, tablespace)? {
            let metadata = fs::metadata(&local).map_err(|err| {
                format!(
                    "the tablespace at {} cannot be restored: {}: {err}",
                    location.display(),
                    local.display()
                )
            })?;
            let read_only = access.mount_of(&local).is_some_and(|m| m.read_only);
            if !metadata.is_dir() || read_only {
                return Err(format!(
                    "the tablespace at {} cannot be restored: {} is not a directory that can be written to",
                    location.display(),
                    local.display()
                ));
            }
        }
    }
    Ok(())
}

/// Moves every staged tablespace to its place and links it. Blocks.
///
/// What was placed is added to `placed` before anything is moved, so that it can be undone after an error.
pub fn place(
    access: &Access,
    facts: &Facts,
    (root, staged): (&Path, &Path),
    run_id: &str,
    owner: (u32, u32),
    placed: &mut Vec<Placed>,
) -> io::Result<()> {
    let mut map = Vec::new();
    for tablespace in &facts.tablespaces {
        let inside = Path::new("pg_tblspc").join(tablespace.oid.to_string());
        require_directories(staged, &inside)?;
        let link = staged.join(inside);
        let Some(version) = version_directory(&link)? else {
            continue;
        };
        let (location, directory) =
            match target(access, facts, root, tablespace).map_err(io::Error::other)? {
                Target::Inside(rest) => {
                    require_directories(staged, &rest)?;
                    (tablespace.location.clone(), staged.join(rest))
                }
                Target::Outside { location, local } => {
                    free_place(location, local, &version, run_id, placed)?
                }
            };
        make_directory(&directory, owner)?;
        move_tree(&link.join(&version), &directory.join(&version))?;
        fs::remove_dir(&link)?;
        symlink(&location, &link)?;
        lchown(&link, Some(owner.0), Some(owner.1))?;
        map.push(Tablespace {
            oid: tablespace.oid,
            location,
        });
    }
    if !map.is_empty() {
        durable::sync_dir(&staged.join("pg_tblspc"))?;
        // The server makes the links anew from this, and would else make those of the backup's time.
        super::recovery::replace_content(&staged.join("tablespace_map"), &render_map(&map))?;
    }
    Ok(())
}

/// Removes what [`place`] made.
pub fn remove(placed: &[Placed]) -> io::Result<()> {
    for one in placed {
        durable::remove_tree(&one.version_directory)?;
        if let Some(own) = &one.own {
            durable::remove_tree(own)?;
        }
    }
    Ok(())
}

fn target(
    access: &Access,
    facts: &Facts,
    root: &Path,
    tablespace: &Tablespace,
) -> Result<Target, String> {
    if let Ok(rest) = tablespace.location.strip_prefix(&facts.data_directory) {
        return Ok(Target::Inside(rest.to_owned()));
    }
    // A restored cluster's tablespace lies in a directory of that restore: the next goes beside it.
    let mut location = tablespace.location.clone();
    let own = location
        .file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with(OWN_PREFIX));
    if own {
        location.pop();
    }
    match access.local_path(&location, Some((&facts.data_directory, root))) {
        Some(local) => Ok(Target::Outside { location, local }),
        None => Err(format!(
            "the backup has a tablespace at {}, which is not mounted here: mount it into the server's and into Lifeboat's container",
            location.display()
        )),
    }
}

/// The location itself when it is free, else a directory in it.
fn free_place(
    location: PathBuf,
    local: PathBuf,
    version: &str,
    run_id: &str,
    placed: &mut Vec<Placed>,
) -> io::Result<(PathBuf, PathBuf)> {
    let taken = match fs::symlink_metadata(local.join(version)) {
        Ok(_) => true,
        Err(err) if err.kind() == ErrorKind::NotFound => false,
        Err(err) => return Err(err),
    };
    let (location, directory) = if taken {
        let own = format!("{OWN_PREFIX}{run_id}");
        (location.join(&own), local.join(own))
    } else {
        (location, local)
    };
    placed.push(Placed {
        version_directory: directory.join(version),
        own: taken.then(|| directory.clone()),
    });
    Ok((location, directory))
}

/// Refuses a path below the staged data directory that leads through anything but directories, as far as it
/// exists: a forged archive could have put a link there.
fn require_directories(staged: &Path, rest: &Path) -> io::Result<()> {
    let mut path = staged.to_owned();
    for part in rest {
        path.push(part);
        match fs::symlink_metadata(&path) {
            Ok(metadata) => require_directory(&path, &metadata)?,
            Err(err) if err.kind() == ErrorKind::NotFound => return Ok(()),
            Err(err) => return Err(err),
        }
    }
    Ok(())
}

fn require_directory(path: &Path, metadata: &fs::Metadata) -> io::Result<()> {
    if metadata.is_dir() {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "{} is not a directory in the backup, which a tablespace must be: the archive was not written by this program; restore another backup",
        path.display()
    )))
}

/// The name of the one directory in a staged tablespace; `None` when there is no such tablespace.
fn version_directory(link: &Path) -> io::Result<Option<String>> {
    match fs::symlink_metadata(link) {
        Ok(metadata) => require_directory(link, &metadata)?,
        Err(err) if err.kind() == ErrorKind::NotFound => return Ok(None),
        Err(err) => return Err(err),
    }
    for entry in fs::read_dir(link)? {
        let entry = entry?;
        if let Ok(name) = entry.file_name().into_string()
            && name.starts_with("PG_")
            && entry.file_type()?.is_dir()
        {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

fn make_directory(path: &Path, owner: (u32, u32)) -> io::Result<()> {
    durable::create_dir_all(path, 0o700)?;
    lchown(path, Some(owner.0), Some(owner.1))
}

/// Renames, or copies to another filesystem and removes.
fn move_tree(from: &Path, to: &Path) -> io::Result<()> {
    match durable::rename(from, to) {
        Err(err) if err.kind() == ErrorKind::CrossesDevices => {
            copy_tree(from, to)?;
            durable::sync_dir(to.parent().unwrap_or(to))?;
            durable::remove_tree(from).map(|_| ())
        }
        other => other,
    }
}

fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    let metadata = fs::symlink_metadata(from)?;
    if metadata.is_dir() {
        fs::create_dir(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy_tree(&entry.path(), &to.join(entry.file_name()))?;
        }
    } else {
        fs::copy(from, to)?;
    }
    fs::set_permissions(to, fs::Permissions::from_mode(metadata.mode() & 0o7777))?;
    lchown(to, Some(metadata.uid()), Some(metadata.gid()))?;
    if metadata.is_dir() {
        durable::sync_dir(to)
    } else {
        durable::sync_file(to)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn staged_tablespaces_are_directories_and_not_links() {
        let dir = tempfile::tempdir().unwrap();
        let (staged, outside) = (dir.path().join("staged"), dir.path().join("outside"));
        fs::create_dir_all(outside.join("1/PG_15_1")).unwrap();
        fs::create_dir_all(staged.join("pg_tblspc/1/PG_15_1")).unwrap();
        fs::create_dir_all(staged.join("pg_tblspc/2")).unwrap();
        symlink(outside.join("1"), staged.join("pg_tblspc/3")).unwrap();
        symlink(
            outside.join("1/PG_15_1"),
            staged.join("pg_tblspc/2/PG_15_1"),
        )
        .unwrap();
        symlink(&outside, staged.join("way out")).unwrap();

        let version = |oid: &str| version_directory(&staged.join("pg_tblspc").join(oid));
        assert_eq!(version("1").unwrap().as_deref(), Some("PG_15_1"));
        assert_eq!(version("2").unwrap(), None);
        assert_eq!(version("4").unwrap(), None);
        let err = version("3").unwrap_err().to_string();
        assert!(err.contains("pg_tblspc/3 is not a directory"), "{err}");

        let required = |rest: &str| require_directories(&staged, Path::new(rest));
        required("pg_tblspc/1").unwrap();
        required("not/there").unwrap();
        let err = required("way out/1").unwrap_err().to_string();
        assert!(err.contains("way out is not a directory"), "{err}");
    }
}
