//! Entries that wait for the end of the stream, in constant memory.

use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use tempfile::SpooledTempFile;

use super::entry::EntryName;
use crate::archive::EntryMeta;

/// Held in memory up to this size, then in an unlinked file.
const IN_MEMORY: usize = 2 * 1024 * 1024;

/// A list of directories or symbolic links, written once and then read any number of times.
pub struct Deferred {
    spool: BufWriter<SpooledTempFile>,
    count: u64,
}

/// A directory (without `to`) or a symbolic link.
pub struct Waiting {
    pub name: EntryName,
    pub to: Vec<u8>,
    /// `None` for a directory that the archive did not describe.
    pub meta: Option<EntryMeta>,
}

impl Deferred {
    /// `dir` takes the spool when it outgrows memory; its file has no name there.
    pub fn new(dir: &Path) -> Self {
        Self {
            spool: BufWriter::new(SpooledTempFile::new_in(IN_MEMORY, dir)),
            count: 0,
        }
    }

    pub fn push(
        &mut self,
        name: &EntryName,
        to: &[u8],
        meta: Option<&EntryMeta>,
    ) -> io::Result<()> {
        let out = &mut self.spool;
        put(out, name.as_bytes())?;
        put(out, to)?;
        out.write_all(&[u8::from(meta.is_some())])?;
        if let Some(meta) = meta {
            for number in [meta.mode, meta.uid, meta.gid, meta.mtime_nanos] {
                out.write_all(&number.to_le_bytes())?;
            }
            out.write_all(&meta.mtime_secs.to_le_bytes())?;
            out.write_all(&length(meta.xattrs.len())?)?;
            for (key, value) in &meta.xattrs {
                put(out, key.as_bytes())?;
                put(out, value)?;
            }
        }
        self.count += 1;
        Ok(())
    }

    /// Reads the list from its start, in the order the entries came.
    pub fn read(&mut self) -> io::Result<impl Iterator<Item = io::Result<Waiting>> + '_> {
        self.spool.flush()?;
        let spool = self.spool.get_mut();
        spool.seek(SeekFrom::Start(0))?;
        let mut input = BufReader::new(spool);
        Ok((0..self.count).map(move |_| read_entry(&mut input)))
    }
}

fn read_entry(input: &mut impl Read) -> io::Result<Waiting> {
    let name = EntryName::trusted(take(input)?);
    let to = take(input)?;
    let [described] = bytes(input)?;
    let meta = if described == 0 {
        None
    } else {
        Some(read_meta(input)?)
    };
    Ok(Waiting { name, to, meta })
}

fn read_meta(input: &mut impl Read) -> io::Result<EntryMeta> {
    let mut meta = EntryMeta {
        mode: u32::from_le_bytes(bytes(input)?),
        uid: u32::from_le_bytes(bytes(input)?),
        gid: u32::from_le_bytes(bytes(input)?),
        mtime_nanos: u32::from_le_bytes(bytes(input)?),
        mtime_secs: i64::from_le_bytes(bytes(input)?),
        xattrs: Vec::new(),
    };
    for _ in 0..u32::from_le_bytes(bytes(input)?) {
        let key = String::from_utf8(take(input)?).map_err(io::Error::other)?;
        meta.xattrs.push((key, take(input)?));
    }
    Ok(meta)
}

fn put(out: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    out.write_all(&length(bytes.len())?)?;
    out.write_all(bytes)
}

fn length(length: usize) -> io::Result<[u8; 4]> {
    Ok(u32::try_from(length)
        .map_err(io::Error::other)?
        .to_le_bytes())
}

fn take(input: &mut impl Read) -> io::Result<Vec<u8>> {
    let length = u32::from_le_bytes(bytes(input)?);
    let mut taken = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    input.read_exact(&mut taken)?;
    Ok(taken)
}

fn bytes<const N: usize>(input: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    input.read_exact(&mut bytes)?;
    Ok(bytes)
}
