//! What a damaged pack still gives, and the new pack that it is saved in.

use super::heal::{Block, clue};
use crate::repository::frame::{Decoder, Encoder, FRAME_RAW_BYTES};
use crate::repository::index::IndexWriter;
use crate::repository::pack::{PackReader, PackWriter};
use crate::repository::table::BlockTable;
use crate::repository::{PackName, Repository, RepositoryError};

const LEVEL: i32 = 3;

/// What the frames of a damaged pack still give.
pub(super) struct OwnFrames<'a> {
    repository: &'a Repository,
    pack: PackName,
    reader: Option<PackReader>,
    start: u64,
    bytes: Vec<u8>,
    /// Where the frame begins that does not decode.
    failed_at: Option<u64>,
}

impl<'a> OwnFrames<'a> {
    pub(super) fn open(
        repository: &'a Repository,
        pack: PackName,
    ) -> Result<Self, RepositoryError> {
        Ok(Self {
            repository,
            pack,
            reader: open(repository, pack)?,
            start: 0,
            bytes: Vec::new(),
            failed_at: None,
        })
    }

    /// The bytes that lie where the block was; nothing is promised of them.
    pub(super) fn block(&mut self, block: &Block, decoder: &mut Decoder) -> Option<&[u8]> {
        let reader = self.reader.as_mut()?;
        let held = self.start..self.start + self.bytes.len() as u64;
        if !held.contains(&block.offset) {
            let frame = reader.frame_start(block.offset)?;
            if self.failed_at == Some(frame) {
                return None;
            }
            match reader.frame_at(block.offset, decoder, &mut self.bytes) {
                Ok(start) => self.start = start,
                Err(err) => {
                    tracing::debug!("{err}");
                    self.bytes.clear();
                    // A stream that failed to decrypt gives nothing more, not even what is whole.
                    self.reader = open(self.repository, self.pack).ok().flatten();
                    self.failed_at = Some(frame);
                    return None;
                }
            }
        }
        let from = usize::try_from(block.offset - self.start).ok()?;
        self.bytes.get(from..from + block.length as usize)
    }
}

/// Opens a damaged pack, when it can be opened at all.
fn open(repository: &Repository, pack: PackName) -> Result<Option<PackReader>, RepositoryError> {
    match PackReader::open(repository.vault(), pack, false) {
        Ok(reader) => Ok(Some(reader)),
        Err(err @ RepositoryError::Remote { .. }) => Err(err),
        Err(_) => Ok(None),
    }
}

/// A new pack for what was saved of a damaged one.
#[derive(Default)]
pub(super) struct Saved {
    open: Option<(PackWriter, Encoder)>,
    frame: Vec<u8>,
    encoded: Vec<u8>,
    table: BlockTable,
    pub(super) raw_bytes: u64,
}

impl Saved {
    pub(super) fn add(
        &mut self,
        repository: &Repository,
        block: &Block,
        bytes: &[u8],
    ) -> Result<(), RepositoryError> {
        if self.open.is_none() {
            let writer = PackWriter::new(repository.vault())?;
            self.open = Some((writer, Encoder::new(LEVEL)?));
        }
        self.raw_bytes += bytes.len() as u64;
        self.frame.extend_from_slice(bytes);
        match <[u8; 32]>::try_from(block.id.as_slice()) {
            Ok(id) => self.table.push_block(block.length, id),
            Err(_) => self.table.push_page(block.length, clue(&block.id)),
        }
        if self.frame.len() >= FRAME_RAW_BYTES {
            self.close_frame()?;
        }
        Ok(())
    }

    fn close_frame(&mut self) -> Result<(), RepositoryError> {
        if let Some((writer, encoder)) = self.open.as_mut().filter(|_| !self.frame.is_empty()) {
            encoder.encode(&self.frame, &mut self.encoded)?;
            writer.append(&self.encoded, self.frame.len())?;
            self.frame.clear();
        }
        Ok(())
    }

    pub(super) fn publish(
        mut self,
        repository: &Repository,
        index: &IndexWriter,
    ) -> Result<Option<PackName>, RepositoryError> {
        self.close_frame()?;
        let Some((writer, _)) = self.open else {
            return Ok(None);
        };
        let published = writer.publish(repository.vault(), &self.table)?;
        index.add(published.name, &self.table)?;
        Ok(Some(published.name))
    }
}
