//! A body that arrives in pieces.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::fs::MetadataExt;

use super::{ArchiveWriter, READ_BYTES, padding};
use crate::archive::entry::{ArchiveError, Cut, EntryMeta};
use crate::repository::cutter::Cutter;

/// A body being streamed in. Dropping it unfinished breaks the archive: it can no longer be sealed.
pub struct Member<'a> {
    pub(super) writer: &'a mut ArchiveWriter,
    pub(super) cutter: Cutter,
    pub(super) name: String,
    pub(super) size: u64,
    pub(super) left: u64,
    /// Whether its bytes are a service's data.
    pub(super) counted: bool,
}

impl ArchiveWriter {
    /// A file that this program made itself, and keeps on disk until it is written.
    pub fn spooled(
        &mut self,
        name: &str,
        meta: &EntryMeta,
        spool: &mut File,
    ) -> Result<(), ArchiveError> {
        let failed = |source| ArchiveError::Read {
            path: name.into(),
            source,
        };
        spool.rewind().map_err(failed)?;
        let size = spool.metadata().map_err(failed)?.size();
        let mut member = self.member(name, meta, size, Cut::Content)?;
        member.counted = false;
        let mut piece = vec![0; READ_BYTES];
        loop {
            let got = spool.read(&mut piece).map_err(failed)?;
            match piece.get(..got) {
                Some([]) | None => return member.finish(),
                Some(bytes) => member.write(bytes)?,
            }
        }
    }
}

impl Member<'_> {
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), ArchiveError> {
        self.left =
            self.left
                .checked_sub(bytes.len() as u64)
                .ok_or_else(|| ArchiveError::Entry {
                    name: self.name.clone(),
                    why: format!(
                        "is longer than the {} bytes it was announced with",
                        self.size
                    ),
                })?;
        if self.counted {
            self.writer.sink.count_read(bytes.len() as u64);
        }
        let sink = &mut self.writer.sink;
        self.cutter.feed(bytes, |block| sink.block(block))?;
        Ok(())
    }

    pub fn finish(mut self) -> Result<(), ArchiveError> {
        if self.left > 0 {
            return Err(ArchiveError::Entry {
                name: self.name,
                why: format!(
                    "ended {} bytes before the {} it was announced with",
                    self.left, self.size
                ),
            });
        }
        let padding = padding(self.size);
        let sink = &mut self.writer.sink;
        self.cutter.feed(&padding, |block| sink.block(block))?;
        self.cutter.finish(|block| sink.block(block))?;
        self.writer.torn = false;
        Ok(())
    }
}
