//! Tar members with the header fields the server writes, sparse ones included.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use tar::{Archive, Builder, EntryType, Header};

/// The server's files come from mmaps: data is there in whole pages.
const PAGE: usize = 4096;

/// Appends a file that the server generates on the fly: no owner, no time.
pub fn append_generated<W: Write>(tar: &mut Builder<W>, path: &str, data: &[u8]) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_size(length(data.len()));
    tar.append_data(&mut header, path, data)
}

/// Appends a file as it lies on the server's disk.
pub fn append_file<W: Write>(
    tar: &mut Builder<W>,
    path: &str,
    modified: i64,
    data: &[u8],
) -> io::Result<()> {
    let mut header = disk_header(modified);
    header.set_entry_type(EntryType::Regular);
    header.set_size(length(data.len()));
    tar.append_data(&mut header, path, data)
}

/// Appends a GNU sparse file: `data` at its start, a hole up to `real_size`.
pub fn append_sparse<W: Write>(
    tar: &mut Builder<W>,
    path: &str,
    modified: i64,
    data: &[u8],
    real_size: usize,
) -> io::Result<()> {
    let stored = data.len().max(1).next_multiple_of(PAGE).min(real_size);
    let mut padded = data.to_vec();
    padded.resize(stored, 0);
    let mut header = disk_header(modified);
    header.set_entry_type(EntryType::GNUSparse);
    header.set_size(length(stored));
    let gnu = header
        .as_gnu_mut()
        .ok_or_else(|| io::Error::other("not a GNU header"))?;
    gnu.set_real_size(length(real_size));
    gnu.sparse[0].set_offset(0);
    gnu.sparse[0].set_length(length(stored));
    if stored < real_size {
        gnu.sparse[1].set_offset(length(real_size));
        gnu.sparse[1].set_length(0);
    }
    tar.append_data(&mut header, path, &padded[..])
}

/// All regular files of a tar by path. Of a sparse file only the part up to
/// the end of its data is kept.
pub fn read_all<R: Read>(reader: R) -> io::Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    for entry in Archive::new(reader).entries()? {
        let mut entry = entry?;
        let path = entry.path()?.to_string_lossy().into_owned();
        let mut wanted = entry.size();
        if entry.header().entry_type() == EntryType::GNUSparse
            && let Some(gnu) = entry.header().as_gnu()
            && !gnu.is_extended()
        {
            wanted = 0;
            for extent in gnu.sparse.iter().filter(|extent| !extent.is_empty()) {
                let length = extent.length()?;
                if length > 0 {
                    wanted = wanted.max(extent.offset()? + length);
                }
            }
        }
        let mut data = Vec::new();
        let read = entry.by_ref().take(wanted).read_to_end(&mut data)?;
        if length(read) < wanted {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        files.insert(path, data);
    }
    Ok(files)
}

fn disk_header(modified: i64) -> Header {
    let mut header = Header::new_gnu();
    header.set_mode(0o100_644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(u64::try_from(modified).unwrap_or(0));
    header
}

fn length(bytes: usize) -> u64 {
    bytes as u64
}
