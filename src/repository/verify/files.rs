//! Which files of a tar stream lie on lost bytes: the headers are read, the bodies skipped.

use std::io::Read;
use std::ops::Range as Span;

use tokio_tar::{EntryType, Header};

use super::cost::Lost;
use crate::repository::PackName;
use crate::repository::reader::ArchiveReader;

const RECORD: u64 = 512;
const RECORD_BYTES: usize = 512;
/// No name is longer; a header that claims more is damaged.
const EXTENSION_LIMIT_BYTES: u64 = 1024 * 1024;

/// Tells `visit` of each lost piece's pack and the file that it is a part of. Beyond a header that is lost or
/// damaged nothing can be told apart: then it tells from where on.
pub(super) fn touched(
    stream: ArchiveReader,
    lost: &[Lost],
    mut visit: impl FnMut(PackName, String),
) {
    let mut walk = Walk {
        at: 0,
        length: stream.remaining(),
        stream,
        lost,
    };
    let mut before = None;
    while let Some(from) = lost.iter().find(|piece| piece.bytes.end > walk.at) {
        match walk.next() {
            Ok(Some((name, span))) => {
                for piece in walk.on(&span) {
                    visit(piece.pack, name.clone());
                }
                before = Some(name);
            }
            // The end mark.
            Ok(None) => return,
            Err(Unreadable) => {
                let rest = match &before {
                    Some(name) => format!("everything after {name}"),
                    None => "everything, from the first file on".to_owned(),
                };
                for piece in lost.iter().filter(|p| p.bytes.end > from.bytes.start) {
                    visit(piece.pack, rest.clone());
                }
                return;
            }
        }
    }
}

/// A header is lost or makes no sense.
struct Unreadable;

struct Walk<'a> {
    stream: ArchiveReader,
    lost: &'a [Lost],
    at: u64,
    length: u64,
}

/// What extension headers say of the entry that follows.
#[derive(Default)]
struct Extension {
    path: Option<Vec<u8>>,
    size: Option<u64>,
}

impl<'a> Walk<'a> {
    fn on(&self, span: &Span<u64>) -> impl Iterator<Item = &'a Lost> + use<'a> {
        let (lost, span) = (self.lost, span.clone());
        let first = lost.partition_point(|piece| piece.bytes.end <= span.start);
        lost.iter()
            .skip(first)
            .take_while(move |piece| piece.bytes.start < span.end)
    }

    /// The next file's name and place, extension headers included; `None` at the end.
    fn next(&mut self) -> Result<Option<(String, Span<u64>)>, Unreadable> {
        let start = self.at;
        let mut extension = Extension::default();
        loop {
            if self.at >= self.length {
                return Ok(None);
            }
            let mut record = [0; RECORD_BYTES];
            self.read(&mut record)?;
            if record.iter().all(|byte| *byte == 0) {
                return Ok(None);
            }
            let header = Header::from_byte_slice(&record);
            let sum = record.iter().enumerate().fold(0u32, |sum, (at, byte)| {
                let counted = if (148..156).contains(&at) {
                    b' '
                } else {
                    *byte
                };
                sum + u32::from(counted)
            });
            let size = header.raw_entry_size().map_err(|_| Unreadable)?;
            if header.cksum().map_err(|_| Unreadable)? != sum {
                return Err(Unreadable);
            }
            match header.entry_type() {
                EntryType::XHeader => extension.pax(&self.body(size)?),
                EntryType::GNULongName => {
                    let mut name = self.body(size)?;
                    name.truncate(name.iter().position(|b| *b == 0).unwrap_or(name.len()));
                    extension.path = Some(name);
                }
                EntryType::GNULongLink | EntryType::XGlobalHeader => {
                    self.body(size)?;
                }
                kind => {
                    let has_body = !matches!(
                        kind,
                        EntryType::Link | EntryType::Symlink | EntryType::Directory
                    );
                    let size = extension.size.unwrap_or(size);
                    self.skip(if has_body { size } else { 0 })?;
                    let name = extension
                        .path
                        .unwrap_or_else(|| header.path_bytes().into_owned());
                    let name = String::from_utf8_lossy(&name).escape_debug().to_string();
                    return Ok(Some((name, start..self.at)));
                }
            }
        }
    }

    fn body(&mut self, size: u64) -> Result<Vec<u8>, Unreadable> {
        if size > EXTENSION_LIMIT_BYTES {
            return Err(Unreadable);
        }
        let mut body = vec![0; usize::try_from(size).map_err(|_| Unreadable)?];
        self.read(&mut body)?;
        self.skip(size.next_multiple_of(RECORD) - size)?;
        Ok(body)
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<(), Unreadable> {
        let span = self.at..self.at + bytes.len() as u64;
        if self.on(&span).next().is_some() {
            return Err(Unreadable);
        }
        self.stream.read_exact(bytes).map_err(|_| Unreadable)?;
        self.at = span.end;
        Ok(())
    }

    /// Moves over a body and its padding, unread.
    fn skip(&mut self, size: u64) -> Result<(), Unreadable> {
        let padded = size.checked_next_multiple_of(RECORD).ok_or(Unreadable)?;
        let padded = if self.at.is_multiple_of(RECORD) {
            padded
        } else {
            size
        };
        if padded > self.length - self.at {
            return Err(Unreadable);
        }
        self.stream.skip(padded);
        self.at += padded;
        Ok(())
    }
}

impl Extension {
    /// Takes `path` and `size` of PAX records `length key=value\n`.
    fn pax(&mut self, mut records: &[u8]) {
        while let Some(space) = records.iter().position(|b| *b == b' ') {
            let length = records
                .get(..space)
                .and_then(|n| std::str::from_utf8(n).ok());
            let Some(length) = length.and_then(|n| n.parse::<usize>().ok()) else {
                return;
            };
            let record = records
                .get(space + 1..length.saturating_sub(1))
                .unwrap_or_default();
            if let Some(path) = record.strip_prefix(b"path=") {
                self.path = Some(path.to_vec());
            } else if let Some(size) = record.strip_prefix(b"size=") {
                self.size = std::str::from_utf8(size).ok().and_then(|n| n.parse().ok());
            }
            let Some(rest) = records.get(length.max(space + 1)..) else {
                return;
            };
            records = rest;
        }
    }
}
