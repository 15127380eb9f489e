//! Lists a directory tree in a stable order, by rules.
//!
//! Names are bytes: what Linux and tar both have. A name that is not UTF-8 goes through unchanged; only
//! `exclude_regexp` sees its lossy text. Memory is one directory listing a level, and the names of hard
//! links whose other links have not been met yet, bounded by [`MAX_OPEN_LINKS`].
//!
//! Every directory on the way down is held open, and what is in it is found through it: a service that puts
//! a symbolic link in the place of a directory during the walk leads nobody out of the tree.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::entry::{ArchiveError, EntryMeta};
use super::held::HeldDirectory;
use regex::Regex;
use xattr::FileExt as _;

/// What of a tree goes into an archive, and how.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// Paths relative to the root, `/`-separated, that are left out with everything below them.
    pub exclude: Vec<String>,
    /// `BACKUP_EXCLUDE_REGEXP`, matched against the relative path.
    pub exclude_regexp: Option<Regex>,
    /// Relative paths whose files are cut as pages of this size.
    pub pages: Vec<(String, u32)>,
}

impl Rules {
    /// Whether the entry of this relative name is left out; for a directory, with everything below it.
    pub fn excludes(&self, name: &[u8]) -> bool {
        // What an unfinished or rolled back restore keeps beside the live entries.
        name.starts_with(b".lifeboat-")
            || self
                .exclude
                .iter()
                .any(|rule| rule.trim_matches('/').as_bytes() == name)
            || self
                .exclude_regexp
                .as_ref()
                .is_some_and(|pattern| pattern.is_match(&String::from_utf8_lossy(name)))
    }

    /// The page size of the file of this relative name, when it is cut as pages.
    pub fn page_bytes(&self, name: &[u8]) -> Option<u32> {
        self.pages
            .iter()
            .find(|(rule, _)| rule.trim_matches('/').as_bytes() == name)
            .map(|(_, bytes)| *bytes)
    }
}

/// What a walk met.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TreeCounts {
    pub files: u64,
    pub directories: u64,
    pub bytes: u64,
    /// Sockets, pipes and devices, which no backup holds.
    pub skipped_special: u64,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    Directory,
    File,
    /// Never followed.
    Symlink {
        target: PathBuf,
    },
    /// Another name of the same inode was yielded before, under this relative name.
    HardLink {
        existing: Vec<u8>,
    },
}

/// One entry of the tree.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Relative to the root, `/`-separated.
    pub name: Vec<u8>,
    /// For opening without following, through the directory it was found in; good until the walk goes on.
    pub path: PathBuf,
    /// For people: below the root, as long as nothing was moved.
    pub shown: PathBuf,
    pub kind: EntryKind,
    /// A file's extended attributes are left to whoever reads it: one that is unchanged need not be asked.
    pub meta: EntryMeta,
    /// From `lstat`.
    pub stat: Metadata,
}

/// Hard-linked files whose other names are still to come; beyond this many, further ones are stored as
/// files of their own, which costs no space because equal blocks are stored once.
const MAX_OPEN_LINKS: usize = 64 * 1024;

/// How often an entry that turns from one kind into another is looked at before giving up.
const ATTEMPTS: u32 = 4;

/// Lists the tree below `root`: parents before children, siblings by the bytes of their names.
///
/// The root itself is not yielded ([`meta_of`] reads it). What vanishes while it is listed is left out; what
/// cannot be read is an error, after which the walk ends. The contents of nested `/proc`-like mounts are
/// left out; other nested mounts are walked like directories.
pub fn walk<'a>(root: &Path, rules: &'a Rules) -> Walk<'a> {
    Walk {
        rules,
        root: root.to_owned(),
        levels: Vec::new(),
        started: false,
        links: HashMap::new(),
        counts: TreeCounts::default(),
    }
}

/// A walk on its way: an iterator of entries.
#[derive(Debug)]
pub struct Walk<'a> {
    rules: &'a Rules,
    root: PathBuf,
    levels: Vec<Level>,
    started: bool,
    links: HashMap<(u64, u64), OpenLink>,
    counts: TreeCounts,
}

#[derive(Debug)]
struct Level {
    dir: HeldDirectory,
    shown: PathBuf,
    name: Vec<u8>,
    device: u64,
    /// Sorted descending: the next is popped off the end.
    children: Vec<Vec<u8>>,
}

#[derive(Debug)]
struct OpenLink {
    name: Vec<u8>,
    left: u64,
}

impl Walk<'_> {
    /// What was met so far; complete when the iterator is exhausted.
    pub const fn counts(&self) -> TreeCounts {
        self.counts
    }

    fn start(&mut self) -> Result<(), ArchiveError> {
        let failed = |source| read_error(&self.root, source);
        // The root may be a symbolic link: whoever configured it meant what it points to.
        let root = self.root.canonicalize().map_err(failed)?;
        let dir = HeldDirectory::open(&root).map_err(failed)?;
        let device = dir.metadata().map_err(failed)?.dev();
        let children = list(&dir).map_err(failed)?;
        self.levels.push(Level {
            dir,
            shown: root,
            name: Vec::new(),
            device,
            children,
        });
        Ok(())
    }

    fn advance(&mut self) -> Result<Option<Entry>, ArchiveError> {
        if !self.started {
            self.started = true;
            self.start()?;
        }
        loop {
            let Some(level) = self.levels.last_mut() else {
                return Ok(None);
            };
            let Some(child) = level.children.pop() else {
                self.levels.pop();
                continue;
            };
            let mut name = level.name.clone();
            if !name.is_empty() {
                name.push(b'/');
            }
            name.extend_from_slice(&child);
            if self.rules.excludes(&name) {
                continue;
            }
            if let Some(entry) = self.visit(&name, OsStr::from_bytes(&child))? {
                return Ok(Some(entry));
            }
        }
    }

    /// Looks at one name in the last level; `None` when it vanished or no backup holds its kind.
    fn visit(&mut self, name: &[u8], child: &OsStr) -> Result<Option<Entry>, ArchiveError> {
        let Some(level) = self.levels.last() else {
            return Ok(None);
        };
        let shown = level.shown.join(child);
        for _ in 0..ATTEMPTS {
            match self.try_visit(name, child, &shown) {
                Ok(Some(entry)) => return Ok(Some(entry)),
                Ok(None) => return Ok(None),
                Err(Listing::Moved) => {}
                Err(Listing::Failed(source)) if source.kind() == io::ErrorKind::NotFound => {
                    return Ok(None);
                }
                Err(Listing::Failed(source)) => return Err(read_error(&shown, source)),
            }
        }
        Err(ArchiveError::KeepsChanging(shown))
    }

    fn try_visit(
        &mut self,
        name: &[u8],
        child: &OsStr,
        shown: &Path,
    ) -> Result<Option<Entry>, Listing> {
        let Some(parent) = self.levels.last() else {
            return Ok(None);
        };
        let path = parent.dir.child(child);
        let stat = parent.dir.look_at(child)?;
        let kind = stat.file_type();
        let mut meta = EntryMeta::of(&stat);
        let kind = if kind.is_dir() {
            let dir = open(&parent.dir, child, &stat)?;
            meta.xattrs = dir.xattrs()?;
            let pseudo = stat.dev() != parent.device && is_pseudo(&dir)?;
            let children = if pseudo { Vec::new() } else { list(&dir)? };
            self.counts.directories += 1;
            self.levels.push(Level {
                dir,
                shown: shown.to_owned(),
                name: name.to_vec(),
                device: stat.dev(),
                children,
            });
            EntryKind::Directory
        } else if kind.is_symlink() {
            meta.xattrs = xattrs_if_there(&path)?;
            EntryKind::Symlink {
                target: std::fs::read_link(&path).map_err(moved_or_failed)?,
            }
        } else if kind.is_file() {
            self.counts.files += 1;
            if let Some(existing) = self.earlier_link(name, &stat) {
                meta.xattrs = xattrs_if_there(&path)?;
                EntryKind::HardLink { existing }
            } else {
                self.counts.bytes += stat.len();
                EntryKind::File
            }
        } else {
            self.counts.skipped_special += 1;
            return Ok(None);
        };
        Ok(Some(Entry {
            name: name.to_vec(),
            path,
            shown: shown.to_owned(),
            kind,
            meta,
            stat,
        }))
    }

    /// The name an inode was yielded under before; else remembers this one as its first.
    fn earlier_link(&mut self, name: &[u8], stat: &Metadata) -> Option<Vec<u8>> {
        if stat.nlink() < 2 {
            return None;
        }
        let key = (stat.dev(), stat.ino());
        if let Some(open) = self.links.get_mut(&key) {
            open.left = open.left.saturating_sub(1);
            if open.left == 0 {
                return self.links.remove(&key).map(|open| open.name);
            }
            return Some(open.name.clone());
        }
        if self.links.len() < MAX_OPEN_LINKS {
            let open = OpenLink {
                name: name.to_vec(),
                left: stat.nlink() - 1,
            };
            self.links.insert(key, open);
        }
        None
    }
}

impl Iterator for Walk<'_> {
    type Item = Result<Entry, ArchiveError>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.advance();
        if step.is_err() {
            self.levels.clear();
        }
        step.transpose()
    }
}

/// Owner, mode, times and extended attributes of one path; a symbolic link is not followed.
pub fn meta_of(path: &Path) -> Result<EntryMeta, ArchiveError> {
    let failed = |source| read_error(path, source);
    let stat = std::fs::symlink_metadata(path).map_err(failed)?;
    Ok(EntryMeta {
        xattrs: xattrs(path).map_err(failed)?,
        ..EntryMeta::of(&stat)
    })
}

/// The extended attributes of a path, sorted by name; a symbolic link is not followed.
///
/// Those the kernel makes up anew where the file lands (`security.selinux`, `system.nfs4_acl`…) are left
/// out; POSIX ACLs, capabilities and `user.*` are kept. None where the file system has none.
pub fn xattrs(path: &Path) -> io::Result<Vec<(String, Vec<u8>)>> {
    portable_xattrs(xattr::list(path), |name| xattr::get(path, name))
}

/// The same of an open file or directory.
pub(super) fn xattrs_of(file: &File) -> io::Result<Vec<(String, Vec<u8>)>> {
    portable_xattrs(file.list_xattr(), |name| file.get_xattr(name))
}

/// The extended attributes of a listing whose values `get` tells.
fn portable_xattrs(
    listed: io::Result<xattr::XAttrs>,
    get: impl Fn(&OsStr) -> io::Result<Option<Vec<u8>>>,
) -> io::Result<Vec<(String, Vec<u8>)>> {
    let names = match listed {
        Ok(names) => names,
        Err(e) if lacks_xattrs(&e) => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut found = Vec::new();
    for name in names {
        let text = name.to_str().ok_or_else(|| {
            io::Error::other("it has an extended attribute whose name is not UTF-8: remove that attribute (see getfattr)")
        })?;
        if !is_portable(text) {
            continue;
        }
        match get(&name) {
            Ok(Some(value)) => found.push((text.to_owned(), value)),
            // Removed between the listing and here.
            Ok(None) => {}
            Err(e) if lacks_xattrs(&e) => {}
            Err(e) => return Err(e),
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Of what may have vanished since, or be of another kind now: what is read of it later decides.
fn xattrs_if_there(path: &Path) -> io::Result<Vec<(String, Vec<u8>)>> {
    match xattrs(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other,
    }
}

fn is_portable(xattr: &str) -> bool {
    xattr.starts_with("user.")
        || xattr == "security.capability"
        || xattr == "system.posix_acl_access"
        || xattr == "system.posix_acl_default"
}

fn lacks_xattrs(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::NOTSUP, Errno::OPNOTSUPP, Errno::NOSYS]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Why a directory could not be listed.
enum Listing {
    /// It is not what `lstat` saw any more: look again.
    Moved,
    Failed(io::Error),
}

impl From<io::Error> for Listing {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

/// Opens a directory in another without following, and only the one `stat` tells of.
fn open(parent: &HeldDirectory, child: &OsStr, stat: &Metadata) -> Result<HeldDirectory, Listing> {
    let dir = parent.open_child(child).map_err(moved_or_failed)?;
    let opened = dir.metadata()?;
    if (opened.dev(), opened.ino()) != (stat.dev(), stat.ino()) {
        return Err(Listing::Moved);
    }
    Ok(dir)
}

/// Names in a directory, sorted descending.
fn list(dir: &HeldDirectory) -> io::Result<Vec<Vec<u8>>> {
    let mut names = dir.names()?;
    names.sort_unstable_by(|a, b| b.cmp(a));
    Ok(names)
}

fn moved_or_failed(error: io::Error) -> Listing {
    use rustix::io::Errno;
    let moved = [Errno::NOTDIR, Errno::LOOP, Errno::INVAL]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()));
    if moved {
        Listing::Moved
    } else {
        Listing::Failed(error)
    }
}

/// File systems whose files are the kernel's own state, by `f_type` of statfs(2).
const PSEUDO: [u64; 15] = [
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x0027_e0eb, // cgroup
    0x6367_7270, // cgroup2
    0x1cd1,      // devpts
    0x1980_0202, // mqueue
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x7363_6673, // securityfs
    0xcafe_4a11, // bpf
    0x6573_5546, // fuse control
    0x6265_6570, // configfs
    0x9584_58f6, // hugetlbfs
    0x6165_676c, // pstore
    0x6e73_6673, // nsfs
];

fn is_pseudo(dir: &HeldDirectory) -> io::Result<bool> {
    Ok(PSEUDO.contains(&dir.file_system()?))
}

fn read_error(path: &Path, source: io::Error) -> ArchiveError {
    ArchiveError::Read {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests;
