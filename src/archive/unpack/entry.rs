//! One entry, checked: nothing reaches the disk that did not pass here.

use std::fmt;

use tokio::io::AsyncRead;
use tokio_tar::{Entry, EntryType, PaxExtensions};

use super::UnpackError;
use crate::archive::EntryMeta;

/// Linux's `PATH_MAX` and `NAME_MAX`.
const MAX_NAME: usize = 4095;
const MAX_COMPONENT: usize = 255;
/// Each level of the current directory is one open file.
pub const MAX_DEPTH: usize = 255;
/// What a `publish_last` entry is called until it is published; no entry may be called so itself.
pub const PUBLISH_PREFIX: &str = ".lifeboat-publish-";

const XATTR_KEY: &[u8] = b"SCHILY.xattr.";
/// Names an extended attribute without a value: a PAX record with an empty value means something else.
const EMPTY_XATTR_KEY: &[u8] = b"LIFEBOAT.empty-xattr.";

/// An entry as it will be written.
pub struct Member {
    pub name: EntryName,
    pub meta: EntryMeta,
    pub kind: EntryKind,
}

pub enum EntryKind {
    Directory,
    File { size: u64 },
    Symlink { to: Vec<u8> },
    HardLink { to: EntryName },
}

/// A relative, `/`-separated name without `.`, `..`, empty components or NUL. Empty for the target itself.
#[derive(Clone, PartialEq, Eq)]
pub struct EntryName(Vec<u8>);

impl EntryName {
    fn check(raw: &[u8], directory: bool) -> Result<Self, &'static str> {
        if raw.is_empty() {
            return Err("its name is empty");
        }
        if raw.contains(&0) {
            return Err("its name holds a NUL");
        }
        if raw.starts_with(b"/") {
            return Err("its name is absolute");
        }
        if raw.len() > MAX_NAME {
            return Err("its name is longer than a path can be");
        }
        let mut name = if directory {
            raw.strip_suffix(b"/").unwrap_or(raw)
        } else {
            raw
        };
        if directory && name == b"." {
            return Ok(Self(Vec::new()));
        }
        name = name.strip_prefix(b"./").unwrap_or(name);
        let mut depth = 0;
        for component in name.split(|byte| *byte == b'/') {
            check_component(component)?;
            depth += 1;
        }
        if depth > MAX_DEPTH {
            return Err("it lies deeper than 255 directories");
        }
        Ok(Self(name.to_owned()))
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The names of the directories above it, outermost first, and its own; `None` for the target itself.
    pub fn split(&self) -> Option<(Vec<&[u8]>, &[u8])> {
        let mut components: Vec<&[u8]> = self.components().collect();
        let last = components.pop()?;
        Some((components, last))
    }

    pub fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.0
            .split(|byte| *byte == b'/')
            .filter(|component| !component.is_empty())
    }

    /// A name that passed the check before, read back from the spool.
    pub fn trusted(name: Vec<u8>) -> Self {
        Self(name)
    }
}

impl fmt::Display for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            f.write_str("./")
        } else {
            f.write_str(&printable(&self.0))
        }
    }
}

fn check_component(component: &[u8]) -> Result<(), &'static str> {
    match component {
        b"" => Err("its name holds an empty component"),
        b"." => Err("its name holds a \".\" component"),
        b".." => Err("its name holds a \"..\" component"),
        long if long.len() > MAX_COMPONENT => {
            Err("a component of its name is longer than 255 bytes")
        }
        ours if ours.starts_with(PUBLISH_PREFIX.as_bytes()) => {
            Err("its name is one that unpacking itself uses")
        }
        _ => Ok(()),
    }
}

/// A name for messages: control characters escaped, and not endless.
pub fn printable(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    let mut shown: String = text
        .chars()
        .take(256)
        .flat_map(char::escape_debug)
        .collect();
    if text.chars().nth(256).is_some() {
        shown.push('…');
    }
    shown
}

impl Member {
    /// Checks an entry's name, kind and metadata. Its body is not touched.
    pub async fn check<R: AsyncRead + Unpin>(entry: &mut Entry<R>) -> Result<Self, UnpackError> {
        let raw = entry
            .path_bytes()
            .map_err(UnpackError::Archive)?
            .into_owned();
        let refuse = |why: String| UnpackError::Unsafe {
            name: printable(&raw),
            why,
        };
        let kind = entry.header().entry_type();
        let name = EntryName::check(&raw, kind.is_dir()).map_err(|why| refuse(why.to_owned()))?;
        let kind = check_kind(entry, kind).map_err(&refuse)?;
        let mut meta = header_meta(entry).map_err(&refuse)?;
        if let Some(records) = entry.pax_extensions().await.map_err(UnpackError::Archive)? {
            pax_meta(&mut meta, records).map_err(&refuse)?;
        }
        Ok(Self { name, meta, kind })
    }
}

fn check_kind<R: AsyncRead + Unpin>(
    entry: &Entry<R>,
    kind: EntryType,
) -> Result<EntryKind, String> {
    let size = entry.effective_size();
    let checked = match kind {
        EntryType::Regular => return Ok(EntryKind::File { size }),
        EntryType::Directory => EntryKind::Directory,
        EntryType::Symlink => EntryKind::Symlink {
            to: link_target(entry)?,
        },
        EntryType::Link => EntryKind::HardLink {
            to: EntryName::check(&link_target(entry)?, false)
                .map_err(|why| format!("it is a hard link, and of what it links to, {why}"))?,
        },
        EntryType::Char | EntryType::Block => return Err("it is a device".to_owned()),
        EntryType::Fifo => return Err("it is a named pipe".to_owned()),
        EntryType::GNUSparse => return Err(SPARSE.to_owned()),
        EntryType::XGlobalHeader => {
            return Err("it is a global PAX header, which changes every entry after it".to_owned());
        }
        other => {
            return Err(format!(
                "its kind {:?} is unknown",
                char::from(other.as_byte())
            ));
        }
    };
    if size != 0 {
        return Err("only a file can have a body".to_owned());
    }
    Ok(checked)
}

const SPARSE: &str =
    "it is a sparse file; make the archive without them (GNU tar: leave out --sparse)";

fn link_target<R: AsyncRead + Unpin>(entry: &Entry<R>) -> Result<Vec<u8>, String> {
    let target = entry
        .link_name_bytes()
        .map_err(|e| e.to_string())?
        .unwrap_or_default();
    if target.is_empty() {
        return Err("it is a link to nothing".to_owned());
    }
    if target.contains(&0) || target.len() > MAX_NAME {
        return Err("what it links to cannot be a path".to_owned());
    }
    Ok(target.into_owned())
}

fn header_meta<R: AsyncRead + Unpin>(entry: &Entry<R>) -> Result<EntryMeta, String> {
    let header = entry.header();
    let bad =
        |field: &'static str| move |e: std::io::Error| format!("its {field} is unreadable: {e}");
    // All ones means "leave it" to the kernel.
    let id = |value: u64| match u32::try_from(value) {
        Ok(id) if id != u32::MAX => Ok(id),
        _ => Err(format!("its owner {value} cannot be")),
    };
    Ok(EntryMeta {
        mode: header.mode().map_err(bad("mode"))? & 0o7777,
        uid: id(header.uid().map_err(bad("owner"))?)?,
        gid: id(header.gid().map_err(bad("group"))?)?,
        mtime_secs: i64::try_from(header.mtime().map_err(bad("time"))?)
            .map_err(|_| "its time is out of range".to_owned())?,
        mtime_nanos: 0,
        xattrs: Vec::new(),
    })
}

fn pax_meta(meta: &mut EntryMeta, records: PaxExtensions<'_>) -> Result<(), String> {
    for record in records {
        let record = record.map_err(|e| e.to_string())?;
        let (key, value) = (record.key_bytes(), record.value_bytes());
        if key == b"mtime" {
            (meta.mtime_secs, meta.mtime_nanos) = pax_time(value)
                .ok_or_else(|| format!("its time {:?} is not one", printable(value)))?;
        } else if key.starts_with(b"GNU.sparse.") {
            return Err(SPARSE.to_owned());
        } else if let Some(name) = key.strip_prefix(XATTR_KEY) {
            meta.xattrs.push((xattr_name(name)?, value.to_owned()));
        } else if let Some(name) = key.strip_prefix(EMPTY_XATTR_KEY) {
            meta.xattrs.push((xattr_name(name)?, Vec::new()));
        }
    }
    Ok(())
}

fn xattr_name(name: &[u8]) -> Result<String, String> {
    std::str::from_utf8(name)
        .ok()
        .filter(|name| !name.is_empty() && !name.contains('\0'))
        .map(str::to_owned)
        .ok_or_else(|| format!("its extended attribute {:?} has no name", printable(name)))
}

/// Parses `[-]seconds[.fraction]` into seconds and nanoseconds that count forwards.
fn pax_time(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return None;
    }
    if fraction.contains('.') {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    let nanos: u32 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    Some(match (negative, nanos) {
        (false, _) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use super::*;

    #[test]
    fn names_stay_below_the_target() {
        for good in ["a", "a/b", "./a", "..a/b..", "a/...", ".lifeboat"] {
            assert!(EntryName::check(good.as_bytes(), false).is_ok(), "{good}");
        }
        for bad in [
            "",
            "/",
            "/a",
            "..",
            "../a",
            "a/..",
            "a/../b",
            "a/./b",
            ".",
            "./",
            "a//b",
            "a/",
            "./../a",
            "././a",
            "./",
            ".//a",
            "a\0b",
            ".lifeboat-publish-0",
        ] {
            assert!(EntryName::check(bad.as_bytes(), false).is_err(), "{bad:?}");
        }
        assert!(EntryName::check(&[b'a'; 256], false).is_err());
        assert!(EntryName::check("a/".repeat(256).as_bytes(), true).is_err());
    }

    #[test]
    fn a_directory_may_end_in_a_slash_and_be_the_target_itself() {
        assert_eq!(EntryName::check(b"a/b/", true).unwrap().as_bytes(), b"a/b");
        assert_eq!(EntryName::check(b"./", true).unwrap().as_bytes(), b"");
        assert_eq!(EntryName::check(b".", true).unwrap().as_bytes(), b"");
        for bad in ["a//", "../", "/", "//", "./.", ".//"] {
            assert!(EntryName::check(bad.as_bytes(), true).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn times_keep_their_nanoseconds_and_their_sign() {
        assert_eq!(pax_time(b"12"), Some((12, 0)));
        assert_eq!(pax_time(b"12.5"), Some((12, 500_000_000)));
        assert_eq!(pax_time(b"12.0000000019"), Some((12, 1)));
        assert_eq!(pax_time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(pax_time(b"-3"), Some((-3, 0)));
        for bad in ["", "-", ".5", "1.2.3", "1e5", "+1", "99999999999999999999"] {
            assert_eq!(pax_time(bad.as_bytes()), None, "{bad}");
        }
    }
}
