//! A body that arrives in pieces.

use super::{ArchiveWriter, padding};
use crate::archive::entry::ArchiveError;
use crate::repository::cutter::Cutter;

/// A body being streamed in. Dropping it unfinished breaks the archive: it can no longer be sealed.
pub struct Member<'a> {
    pub(super) writer: &'a mut ArchiveWriter,
    pub(super) cutter: Cutter,
    pub(super) name: String,
    pub(super) size: u64,
    pub(super) left: u64,
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
        self.writer.sink.count_read(bytes.len() as u64);
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
