//! Where an archive's bytes go: known blocks become ranges, new ones go into frames and packs.
//!
//! The archive is nothing but its list of ranges, so an entry can be taken back ([`Sink::rewind`]): the
//! blocks it stored stay in their pack, named or not.

mod old_pages;

use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3;

use super::frame::{FRAME_RAW_BYTES, MODEL_FRAME_RAW_BYTES, RawFrame};
use super::manifest::ArchiveRecord;
use super::pack::{MODEL_PACK_BYTES, PACK_BLOCKS, PACK_BYTES, PACK_RAW_LIMIT};
use super::pipeline::Pipeline;
use super::ranges::{self, INLINE_LIMIT_BYTES, MAX_DEPTH, Range, RangeList};
use super::session::Session;
use super::table::{BlockId, BlockTable, PageId};
use super::uses::Uses;
use super::{PackName, RepositoryError};
use crate::archive::Cut;
use crate::archive::cache::{CachedFile, KnownFile, PackRef};
pub use old_pages::OldPages;

/// One archive on its way into the repository.
pub struct Sink {
    /// Before the session: the workers, which the session waits for when it goes, end when no pipeline can
    /// send them jobs any more.
    pipeline: Pipeline,
    session: Arc<Session>,
    archive: String,
    /// What the cache knows its files by.
    cached_as: String,
    /// The frame being filled.
    frame: RawFrame,
    frame_limit: usize,
    pack_limit: u64,
    pack: Option<PackRef>,
    pack_raw: u64,
    pack_blocks: usize,
    table: BlockTable,
    stored_bytes: u64,
    ranges: RangeList<PackRef>,
    raw_bytes: u64,
    read_bytes: u64,
    /// Of the whole stream, until something is spliced in unread.
    stream_hash: Option<Xxh3>,
}

/// A block that the repository does not have, by the id that its pack's table gets.
#[derive(Clone, Copy)]
enum New {
    Page(PageId),
    Block(BlockId),
}

/// A place in the stream to come back to.
pub struct Mark {
    ranges: usize,
    last_length: u64,
    raw_bytes: u64,
    stream_hash: Option<Xxh3>,
}

/// A finished archive: proof that all its packs are in the store. The commit asks for it.
#[derive(Debug)]
pub struct SealedArchive {
    pub(super) name: String,
    /// The ranges file.
    pub(super) ranges_text: String,
    /// Bytes of the packs written for it.
    pub(super) stored_bytes: u64,
    /// The packs its ranges name.
    pub(super) uses: Uses,
    pub(super) raw_bytes: u64,
    pub(super) read_bytes: u64,
    pub(super) stream_xxh3: Option<String>,
}

impl SealedArchive {
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn raw_bytes(&self) -> u64 {
        self.raw_bytes
    }

    pub fn read_bytes(&self) -> u64 {
        self.read_bytes
    }

    pub fn stored_bytes(&self) -> u64 {
        self.stored_bytes
    }
}

impl Sink {
    pub(super) fn new(session: Arc<Session>, archive: String) -> Result<Self, RepositoryError> {
        let pipeline = session.pipeline()?;
        Ok(Self {
            cached_as: session.cached_as(&archive),
            session,
            archive,
            pipeline,
            frame: RawFrame::default(),
            frame_limit: FRAME_RAW_BYTES,
            pack_limit: PACK_BYTES,
            pack: None,
            pack_raw: 0,
            pack_blocks: 0,
            table: BlockTable::default(),
            stored_bytes: 0,
            ranges: RangeList::default(),
            raw_bytes: 0,
            read_bytes: 0,
            stream_hash: Some(Xxh3::new()),
        })
    }

    /// Frames and packs take the size that suits the entry that begins.
    pub fn begin_body(&mut self, cut: Cut) {
        (self.frame_limit, self.pack_limit) = match cut {
            Cut::Model => (MODEL_FRAME_RAW_BYTES, MODEL_PACK_BYTES),
            _ => (FRAME_RAW_BYTES, PACK_BYTES),
        };
    }

    /// Adds a block that may be anywhere in the repository already.
    pub fn block(&mut self, bytes: &[u8]) -> Result<(), RepositoryError> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.session.check_stop()?;
        self.pass(bytes);
        match self.unknown_block(bytes)? {
            Some(new) => self.append(new, bytes),
            None => Ok(()),
        }
    }

    /// Adds a block of a file's body: a page when it is a whole one of a file cut into pages.
    pub fn body_block(
        &mut self,
        cut: Cut,
        bytes: &[u8],
        old: &mut OldPages<'_>,
        pages: &mut Vec<PageId>,
    ) -> Result<(), RepositoryError> {
        match cut {
            Cut::Pages(unit) if bytes.len() == unit as usize => {
                self.pass(bytes);
                match self.unknown_page(bytes, old, pages) {
                    Some(new) => self.append(new, bytes),
                    None => Ok(()),
                }
            }
            _ => self.block(bytes),
        }
    }

    /// Room for the next blocks of a body whose blocks are all `unit` long and of which `left` bytes, at least
    /// one block, are left: as much as fills the frame, or half of one, so that blocks which are known and fill
    /// none are not read one by one. [`Self::take_room`] must follow when it is filled.
    pub fn room(&mut self, unit: usize, left: u64) -> &mut [u8] {
        let missing = self.frame_limit.saturating_sub(self.frame.len());
        let missing = missing.max(self.frame_limit / 2);
        let whole = usize::try_from(left).unwrap_or(usize::MAX) / unit * unit;
        self.frame.room(missing.next_multiple_of(unit).min(whole))
    }

    /// Adds the blocks that were read into the room, like [`Self::body_block`] each, and copies none of them
    /// that stays where it is.
    pub fn take_room(
        &mut self,
        cut: Cut,
        (unit, length): (usize, usize),
        old: &mut OldPages<'_>,
        pages: &mut Vec<PageId>,
    ) -> Result<(), RepositoryError> {
        self.session.check_stop()?;
        let mut frame = std::mem::take(&mut self.frame);
        let begin = frame.len();
        self.pass(frame.beyond(begin, length));
        let mut take = |at: usize| {
            let bytes = frame.beyond(at, unit);
            let new = match cut {
                Cut::Pages(_) => self.unknown_page(bytes, old, pages),
                _ => self.unknown_block(bytes)?,
            };
            if let Some(new) = new {
                self.place(new, unit)?;
                frame.keep(at, unit);
            }
            Ok(())
        };
        let taken = (begin..begin + length)
            .step_by(unit)
            .try_for_each(&mut take);
        self.frame = frame;
        taken.and_then(|()| self.settle_frame())
    }

    /// What a block is to be called, unless it is known: then its place is noted.
    fn unknown_block(&mut self, bytes: &[u8]) -> Result<Option<New>, RepositoryError> {
        let id = *self.session.block_hash(bytes).as_bytes();
        let known = self.session.cache().block(&id)?;
        if let Some(range) = known.filter(|range| range.length == bytes.len() as u64) {
            self.ranges.push(range);
            return Ok(None);
        }
        Ok(Some(New::Block(id)))
    }

    fn unknown_page(
        &mut self,
        bytes: &[u8],
        old: &mut OldPages<'_>,
        pages: &mut Vec<PageId>,
    ) -> Option<New> {
        let hash = self.session.block_hash(bytes);
        let id = hash.as_bytes().first_chunk().copied().unwrap_or_default();
        pages.push(id);
        (!old.next_is(id, &mut self.ranges)).then_some(New::Page(id))
    }

    /// Adds an unchanged entry by its ranges, unread.
    pub fn splice(&mut self, name: &[u8], known: &KnownFile) -> Result<(), RepositoryError> {
        self.session.check_stop()?;
        let ranges = &known.file.ranges;
        self.stream_hash = None;
        self.session.pause();
        self.raw_bytes += ranges.length();
        self.session.progress.add_raw(ranges.length());
        self.ranges.extend(ranges);
        self.session.cache().keep_file(&self.cached_as, name, known)
    }

    pub fn cached_file(&self, name: &[u8]) -> Result<Option<KnownFile>, RepositoryError> {
        self.session.cache().file(&self.cached_as, name)
    }

    /// The pages that a cached file had.
    pub fn cached_pages(&self, name: &[u8]) -> Result<Vec<PageId>, RepositoryError> {
        self.session.cache().pages(&self.cached_as, name)
    }

    /// Keeps what is needed to splice or compare the file next time.
    pub fn remember(
        &self,
        name: &[u8],
        file: &CachedFile,
        pages: &[PageId],
    ) -> Result<(), RepositoryError> {
        self.session
            .cache()
            .put_file(&self.cached_as, name, file, pages)
    }

    pub fn mark(&self) -> Mark {
        let ranges = self.ranges.as_slice();
        Mark {
            ranges: ranges.len(),
            last_length: ranges.last().map_or(0, |r| r.length),
            raw_bytes: self.raw_bytes,
            stream_hash: self.stream_hash.clone(),
        }
    }

    /// The ranges added since `mark`.
    pub fn since(&self, mark: &Mark) -> RangeList<PackRef> {
        self.ranges.since(mark.ranges, mark.last_length)
    }

    /// Takes back everything since `mark`.
    pub fn rewind(&mut self, mark: Mark) {
        self.ranges.truncate(mark.ranges, mark.last_length);
        self.raw_bytes = mark.raw_bytes;
        self.stream_hash = mark.stream_hash;
    }

    /// Takes an archive over whose packs are in the store already.
    pub(super) fn adopt(
        &mut self,
        ranges: &RangeList<PackName>,
        record: &ArchiveRecord,
    ) -> Result<(), RepositoryError> {
        let mut cache = self.session.cache();
        for range in ranges.as_slice() {
            self.ranges.push(Range {
                pack: cache.adopt_pack(range.pack)?,
                offset: range.offset,
                length: range.length,
            });
        }
        self.stream_hash = None;
        self.raw_bytes = record.raw_bytes;
        Ok(())
    }

    /// Counts bytes that were read from a service's data.
    pub fn count_read(&mut self, bytes: u64) {
        self.read_bytes += bytes;
        self.session.count_read(bytes);
    }

    /// Publishes what is open: from here on other archives of the backup can name its packs.
    pub fn end(mut self) -> Result<EndedSink, RepositoryError> {
        self.publish_open()?;
        Ok(EndedSink(self))
    }

    fn seal(mut self) -> Result<SealedArchive, RepositoryError> {
        let stream_xxh3 = self
            .stream_hash
            .take()
            .map(|hash| format!("{:032x}", hash.digest128()));
        let (raw_bytes, read_bytes) = (self.raw_bytes, self.read_bytes);
        let (mut depth, mut uses) = (0, Uses::default());
        let mut list = self.named(&self.ranges)?;
        uses.add(&list);
        let mut text = ranges::encode(&list, depth);
        while text.len() > INLINE_LIMIT_BYTES && depth < MAX_DEPTH {
            depth += 1;
            self.pipeline = self.session.pipeline()?;
            self.begin_body(Cut::Content);
            self.ranges = RangeList::default();
            let mut cutter = super::cutter::Cutter::new(Cut::Content, text.len() as u64);
            cutter.feed(text.as_bytes(), |block| self.block(block))?;
            cutter.finish(|block| self.block(block))?;
            self.publish_open()?;
            list = self.named(&self.ranges)?;
            uses.add(&list);
            text = ranges::encode(&list, depth);
        }
        Ok(SealedArchive {
            name: self.archive,
            ranges_text: text,
            stored_bytes: self.stored_bytes,
            uses,
            raw_bytes,
            read_bytes,
            stream_xxh3,
        })
    }

    fn named(&self, ranges: &RangeList<PackRef>) -> Result<RangeList<PackName>, RepositoryError> {
        let cache = self.session.cache();
        ranges.map(|pack| cache.pack_name(pack)).ok_or_else(|| {
            RepositoryError::Invalid(
                "an archive names a pack that was never published: nothing was committed"
                    .to_owned(),
            )
        })
    }

    /// Accounts for bytes that pass into the stream.
    fn pass(&mut self, bytes: &[u8]) {
        self.raw_bytes += bytes.len() as u64;
        self.session.progress.add_raw(bytes.len() as u64);
        if let Some(hash) = &mut self.stream_hash {
            hash.update(bytes);
        }
    }

    fn append(&mut self, new: New, bytes: &[u8]) -> Result<(), RepositoryError> {
        self.place(new, bytes.len())?;
        self.frame.push(bytes);
        self.settle_frame()
    }

    /// Notes the place of a block that the current frame gets next.
    fn place(&mut self, new: New, length: usize) -> Result<(), RepositoryError> {
        let pack = match self.pack {
            Some(pack) => pack,
            None => *self.pack.insert(self.session.cache().new_pack()?),
        };
        let range = Range {
            pack,
            offset: self.pack_raw,
            length: length as u64,
        };
        let table_length = u32::try_from(length).unwrap_or(u32::MAX);
        match new {
            New::Page(id) => self.table.push_page(table_length, id),
            New::Block(id) => {
                self.table.push_block(table_length, id);
                self.session.cache().add_block(&id, range)?;
            }
        }
        self.ranges.push(range);
        self.pack_raw += length as u64;
        self.pack_blocks += 1;
        Ok(())
    }

    /// Hands over a full frame, and closes a full pack.
    fn settle_frame(&mut self) -> Result<(), RepositoryError> {
        if self.frame.len() < self.frame_limit {
            return Ok(());
        }
        self.hand_over_frame()?;
        if self.pipeline.written() >= self.pack_limit
            || self.pack_raw >= PACK_RAW_LIMIT
            || self.pack_blocks >= PACK_BLOCKS
        {
            self.close_pack()?;
        }
        Ok(())
    }

    fn hand_over_frame(&mut self) -> Result<(), RepositoryError> {
        if !self.frame.is_empty() {
            let raw = std::mem::take(&mut self.frame);
            self.frame = self.pipeline.frame(raw)?;
        }
        Ok(())
    }

    fn close_pack(&mut self) -> Result<(), RepositoryError> {
        self.hand_over_frame()?;
        if let Some(pack) = self.pack.take() {
            self.pipeline.close(pack, std::mem::take(&mut self.table))?;
        }
        self.pack_raw = 0;
        self.pack_blocks = 0;
        Ok(())
    }

    /// Ends the pipeline: every pack so far is published and named.
    fn publish_open(&mut self) -> Result<(), RepositoryError> {
        self.close_pack()?;
        let published = self.pipeline.finish()?;
        let mut cache = self.session.cache();
        for (pack, published) in published {
            cache.name_pack(pack, published.name)?;
            self.session.progress.add_stored(published.stored_bytes);
            self.stored_bytes += published.stored_bytes;
        }
        Ok(())
    }
}

/// An archive whose packs are published, and whose ranges may name those of archives that are not ended yet.
pub struct EndedSink(Sink);

impl EndedSink {
    /// Writes the ranges file, as blocks when it is long. Archives share blocks, so all that were written at
    /// the same time must be ended before.
    pub fn seal(self) -> Result<SealedArchive, RepositoryError> {
        self.0.seal()
    }
}
