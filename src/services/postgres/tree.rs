//! Walks a live data directory in a stable order and hands over what a backup holds of it.
//!
//! Every directory on the way down is held open, and what is in it is found through it: links that take the
//! place of a directory meanwhile are not followed. Only the root, the WAL directory and the locations of
//! tablespaces may be links.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::Metadata;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::rules;
use crate::archive::held::HeldDirectory;

/// A data directory as this process sees it.
pub struct DataTree<'a> {
    pub root: &'a Path,
    /// Maps a path in the server's filesystem to this process's view of it.
    pub map: &'a (dyn Fn(&Path) -> Option<PathBuf> + Send + Sync),
    /// The directory this server's version uses in a tablespace: `PG_<major>_<catalog version>`.
    pub version_directory: &'a str,
}

/// One entry of the archive.
#[derive(Debug)]
pub enum Entry {
    Directory {
        name: String,
        metadata: Metadata,
    },
    File {
        name: String,
        /// For opening without following, through the directory it was found in; good during the visit.
        path: PathBuf,
        /// For people.
        shown: PathBuf,
        /// It consists of the server's pages: a relation's file.
        pages: bool,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    #[error("cannot read {}: {source}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{0}")]
    Refused(String),
}

impl DataTree<'_> {
    /// Visits every entry, a directory before what is in it, each directory's entries by name.
    ///
    /// What vanishes on the way is left out: replaying the WAL makes up for it.
    pub fn walk<E: From<TreeError>>(
        &self,
        visit: &mut dyn FnMut(Entry) -> Result<(), E>,
    ) -> Result<(), E> {
        let Some(root) = found(self.root, HeldDirectory::open(self.root))? else {
            return Err(E::from(TreeError::Refused(format!(
                "the data directory {} is not there",
                self.root.display()
            ))));
        };
        let walk = Walk {
            tree: self,
            inside: self.tablespaces_inside(&root)?,
        };
        walk.directory("", &Place::new(&root, self.root), visit)
    }

    /// The WAL directory, which may be a link to another place.
    pub fn wal_directory(&self) -> Result<PathBuf, TreeError> {
        let path = self.root.join("pg_wal");
        match std::fs::read_link(&path) {
            Ok(target) => self.mapped(&path, &target),
            // EINVAL: not a link.
            Err(_) => Ok(path),
        }
    }

    /// Names of the version directories of tablespaces that lie in the data directory itself (which the
    /// server warns of, but takes): they are visited below `pg_tblspc`, not twice.
    fn tablespaces_inside(&self, root: &HeldDirectory) -> Result<HashSet<String>, TreeError> {
        let shown = self.root.join("pg_tblspc");
        let mut inside = HashSet::new();
        let Some(links) = found(&shown, root.open_child(OsStr::new("pg_tblspc")))? else {
            return Ok(inside);
        };
        let links = Place::new(&links, &shown);
        for oid in links.list()? {
            // EINVAL: a tablespace in place, which is a directory.
            let Ok(target) = std::fs::read_link(links.path(&oid)) else {
                continue;
            };
            let local = (self.map)(&target);
            let name = local
                .as_deref()
                .and_then(|local| local.strip_prefix(self.root).ok())
                .and_then(Path::to_str);
            inside.extend(name.map(|name| format!("{name}/{}", self.version_directory)));
        }
        Ok(inside)
    }

    fn mapped(&self, link: &Path, target: &Path) -> Result<PathBuf, TreeError> {
        (self.map)(target).ok_or_else(|| {
            TreeError::Refused(format!(
                "{} points to {} in the server's container, which is not mounted here: mount the same volume or directory into this container too",
                link.display(),
                target.display()
            ))
        })
    }
}

/// A directory of the tree, and what people call it.
struct Place<'a> {
    dir: &'a HeldDirectory,
    shown: &'a Path,
}

impl<'a> Place<'a> {
    const fn new(dir: &'a HeldDirectory, shown: &'a Path) -> Self {
        Self { dir, shown }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.child(OsStr::new(file))
    }

    /// `lstat` of an entry; `None` when it is gone.
    fn stat(&self, file: &str) -> Result<Option<Metadata>, TreeError> {
        let stat = std::fs::symlink_metadata(self.path(file));
        found(&self.shown.join(file), stat)
    }

    /// The names, sorted. A directory that was removed while it was held (its database was dropped) has none.
    fn list(&self) -> Result<Vec<String>, TreeError> {
        let names = found(self.shown, self.dir.names())?;
        let mut names = names
            .unwrap_or_default()
            .into_iter()
            .map(|name| {
                String::from_utf8(name).map_err(|err| {
                    TreeError::Refused(format!(
                        "{} has a file whose name is not UTF-8 ({}): PostgreSQL did not make it; move it away",
                        self.shown.display(),
                        String::from_utf8_lossy(err.as_bytes())
                    ))
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        names.sort_unstable();
        Ok(names)
    }
}

/// One walk through a tree.
struct Walk<'a> {
    tree: &'a DataTree<'a>,
    inside: HashSet<String>,
}

impl Walk<'_> {
    /// Visits what is in a directory that was visited itself.
    fn directory<E: From<TreeError>>(
        &self,
        name: &str,
        place: &Place<'_>,
        visit: &mut dyn FnMut(Entry) -> Result<(), E>,
    ) -> Result<(), E> {
        let files = place.list()?;
        let relations = rules::holds_relations(name);
        let unlogged = if relations {
            unlogged(&files)
        } else {
            HashSet::new()
        };
        for file in &files {
            if rules::excluded(name, file) {
                continue;
            }
            let relation = relations.then(|| rules::relation_file(file)).flatten();
            if relation.is_some_and(|r| r.temporary || (unlogged.contains(r.node) && !r.init_fork))
            {
                continue;
            }
            self.entry(name, place, file, relation.is_some(), visit)?;
        }
        Ok(())
    }

    fn entry<E: From<TreeError>>(
        &self,
        directory: &str,
        parent: &Place<'_>,
        file: &str,
        pages: bool,
        visit: &mut dyn FnMut(Entry) -> Result<(), E>,
    ) -> Result<(), E> {
        let name = if directory.is_empty() {
            file.to_owned()
        } else {
            format!("{directory}/{file}")
        };
        if self.inside.contains(&name) {
            return Ok(());
        }
        let Some(metadata) = parent.stat(file)? else {
            return Ok(());
        };
        let (path, shown) = (parent.path(file), parent.shown.join(file));
        let kind = metadata.file_type();
        if kind.is_dir() {
            let open = || parent.dir.open_child(OsStr::new(file));
            self.subdirectory(&name, &shown, metadata, &open, visit)
        } else if kind.is_file() {
            visit(Entry::File {
                name,
                path,
                shown,
                pages,
            })
        } else if kind.is_symlink() {
            self.link(&name, &path, &shown, visit)
        } else {
            // A socket, pipe or device: nothing a restore could use.
            Ok(())
        }
    }

    fn subdirectory<E: From<TreeError>>(
        &self,
        name: &str,
        shown: &Path,
        metadata: Metadata,
        open: &dyn Fn() -> io::Result<HeldDirectory>,
        visit: &mut dyn FnMut(Entry) -> Result<(), E>,
    ) -> Result<(), E> {
        visit(Entry::Directory {
            name: name.to_owned(),
            metadata,
        })?;
        let dropped = rules::contents_dropped(name);
        if dropped && name != "pg_wal" {
            return Ok(());
        }
        // A dropped database vanishes.
        let Some(dir) = found(shown, open())? else {
            return Ok(());
        };
        let place = Place::new(&dir, shown);
        if name == "pg_wal" {
            // The server expects it, and the segments' marks go there.
            if let Some(metadata) = place.stat("archive_status")? {
                visit(Entry::Directory {
                    name: format!("{name}/archive_status"),
                    metadata,
                })?;
            }
        }
        if dropped {
            return Ok(());
        }
        self.directory(name, &place, visit)
    }

    /// Follows the two kinds of links a data directory has: tablespaces and `pg_wal`.
    fn link<E: From<TreeError>>(
        &self,
        name: &str,
        path: &Path,
        shown: &Path,
        visit: &mut dyn FnMut(Entry) -> Result<(), E>,
    ) -> Result<(), E> {
        let Some(target) = found(shown, std::fs::read_link(path))? else {
            return Ok(());
        };
        let tablespace = name
            .strip_prefix("pg_tblspc/")
            .is_some_and(rules::all_digits);
        if !tablespace && name != "pg_wal" {
            return Err(E::from(TreeError::Refused(format!(
                "{} is a link to {}: of links only pg_wal and tablespaces can be backed up; move what it points to into the data directory",
                shown.display(),
                target.display()
            ))));
        }
        let local = self.tree.mapped(shown, &target)?;
        let missing = |local: &Path| missing_target(path, shown, &target, local).map_err(E::from);
        let Some(metadata) = found(&local, std::fs::symlink_metadata(&local))? else {
            return missing(&local);
        };
        let open = || HeldDirectory::open(&local);
        if !tablespace {
            return self.subdirectory(name, &local, metadata, &open, visit);
        }
        let Some(location) = found(&local, open())? else {
            return missing(&local);
        };
        let version = local.join(self.tree.version_directory);
        let inside = Place::new(&location, &local);
        let Some(version_metadata) = inside.stat(self.tree.version_directory)? else {
            return missing(&version);
        };
        visit(Entry::Directory {
            name: name.to_owned(),
            metadata,
        })?;
        let name = format!("{name}/{}", self.tree.version_directory);
        let open = || location.open_child(OsStr::new(self.tree.version_directory));
        self.subdirectory(&name, &version, version_metadata, &open, visit)
    }
}

/// Fine when the tablespace was dropped meanwhile; else the mount is the wrong one.
fn missing_target(link: &Path, shown: &Path, target: &Path, local: &Path) -> Result<(), TreeError> {
    if found(shown, std::fs::symlink_metadata(link))?.is_none() {
        return Ok(());
    }
    Err(TreeError::Refused(format!(
        "{} points to {}, but {} does not exist here: mount the directory that the server uses",
        shown.display(),
        target.display(),
        local.display()
    )))
}

/// The relations of a directory that have an `_init` fork.
fn unlogged(files: &[String]) -> HashSet<&str> {
    files
        .iter()
        .filter_map(|file| rules::relation_file(file))
        .filter(|relation| relation.init_fork)
        .map(|relation| relation.node)
        .collect()
}

/// `None` for what is gone.
fn found<T>(path: &Path, result: io::Result<T>) -> Result<Option<T>, TreeError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(err) if err.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TreeError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests;
