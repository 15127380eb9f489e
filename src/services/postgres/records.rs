//! The records of the write-ahead log, one after the other: where each begins and ends, and what those say
//! that a point in time is chosen by.
//!
//! [`Records`] is fed with the log's bytes in order, from the beginning of the segment that holds its start,
//! in pieces of any size. It keeps no more of them than the beginning of one record (1 KiB): a record can
//! have a gigabyte. What it does with a byte depends on where it stands:
//!
//! ```text
//!            page header: checked, at the start of every page, whatever the state
//! Seeking ──► Skipping ──► Between ──► Head ──► Body ──► Padding ──► Between …
//! (to the     (the rest    (where a    (its 24  (CRC,    (to a multiple of 8; after
//!  start)     of a record   record      bytes)   fields)  a switch, to the segment's
//!             begun before) begins)                       end, page headers included)
//! ```
//!
//! A record is returned only when its CRC-32C and its link to the record before it are right; so what is
//! returned is what PostgreSQL's recovery would replay (`XLogReadRecord` in `xlogreader.c`). PostgreSQL takes
//! everything else for the end of the log. Here it is told apart: zeroes, or a page of another position,
//! are the end ([`Next::End`]): the server zeroes the rest of a page it writes to, and its files are recycled.
//! Anything else was written and is no log: [`Damaged`].

mod body;
mod ending;
mod page;
mod reading;
mod record;
mod search;
#[cfg(test)]
mod tests;

use self::body::Body;
use self::page::{Continuation, Page, PageError, Pages};
use self::record::{CHECKSUM_AT, HEAD_BYTES, Head};
use super::control::u32_at;
use super::wal::{Lsn, SegmentSize};

pub use self::reading::{End, ReadError, Reading};
pub use self::record::{Ending, Kind, Record};
pub use self::search::{find_restore_point, find_xid, first_after, first_at, last_commit};

/// What the bytes so far hold next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    Record(Record),
    /// All of them are taken; the next record is not whole yet.
    NeedMore,
    /// Nothing has been written from here on. A record of which only the beginning has been written is not
    /// part of the log: then this is where it begins.
    End(Lsn),
}

/// Bytes that are neither log nor the empty place after it. Where the server was killed, the last record can
/// be torn within its page; PostgreSQL would end there and write on, so damage in the middle of a log that was
/// kept is real, and damage at its very end, `at` being [`Records::valid_until`], need not be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the write-ahead log is damaged at {at}: {why}")]
pub struct Damaged {
    pub at: Lsn,
    pub why: String,
}

/// Reads the records out of the log's bytes.
pub struct Records {
    start: Lsn,
    pages: Pages,
    /// Of the next byte to be fed.
    position: Lsn,
    /// Where the next page header stands.
    page_end: Lsn,
    /// The page header that is coming in.
    header: Vec<u8>,
    state: State,
    /// The record that is coming in: where it begins, its header, and the rest of it.
    record: Lsn,
    head: Vec<u8>,
    body: Body,
    /// The last whole record.
    previous: Option<Lsn>,
    valid_until: Lsn,
    /// The record whose rest was overwritten, until the record that says so has been read.
    overwritten: Option<Lsn>,
    finished: Option<Result<Lsn, Damaged>>,
}

/// Where the reader stands; see the module's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Seeking,
    Skipping { left: u32 },
    Between,
    Head,
    Body,
    Padding,
}

/// Why there are no more records.
enum Stop {
    Unwritten(Lsn),
    Damaged(Damaged),
}

fn damaged(at: Lsn, why: impl Into<String>) -> Stop {
    let why = why.into();
    Stop::Damaged(Damaged { at, why })
}

/// Higher positions are nonsense, and sums with them could overflow.
const HIGHEST: Lsn = Lsn(1 << 62);

impl Records {
    /// A reader of the records from `start` on: where a record begins, or the beginning of a page or segment;
    /// there the rest of a record that began before is skipped. Pages are refused that belong to a later
    /// timeline than `timeline`, or to another cluster when that is given.
    pub fn new(
        start: Lsn,
        segment_size: SegmentSize,
        timeline: u32,
        system_identifier: Option<u64>,
    ) -> Self {
        let input_start = segment_size.start_of(segment_size.segment_at(start));
        let possible = start.0.is_multiple_of(8) && start <= HIGHEST;
        Self {
            start,
            pages: Pages::new(segment_size, timeline, system_identifier),
            position: input_start,
            page_end: input_start,
            header: Vec::new(),
            state: State::Seeking,
            record: start,
            head: Vec::with_capacity(HEAD_BYTES),
            body: Body::default(),
            previous: None,
            valid_until: start,
            overwritten: None,
            finished: (!possible).then(|| {
                Err(Damaged {
                    at: start,
                    why: "no record can begin at this position".to_owned(),
                })
            }),
        }
    }

    /// The position of the first byte to be fed, or of the next: at first, the beginning of the segment that
    /// holds the start.
    pub const fn position(&self) -> Lsn {
        self.position
    }

    /// Where the last record ended that was returned; before that, where the first
    /// one should begin.
    pub const fn valid_until(&self) -> Lsn {
        self.valid_until
    }

    /// Takes bytes off `input` up to the end of the next record. After an end or an error it returns the same
    /// again.
    pub fn next(&mut self, input: &mut &[u8]) -> Result<Next, Damaged> {
        if self.finished.is_none() {
            match self.advance(input) {
                Ok(Some(record)) => return Ok(Next::Record(record)),
                Ok(None) => return Ok(Next::NeedMore),
                Err(Stop::Unwritten(at)) => self.finished = Some(Ok(at)),
                Err(Stop::Damaged(damaged)) => self.finished = Some(Err(damaged)),
            }
        }
        match &self.finished {
            Some(Err(damaged)) => Err(damaged.clone()),
            Some(Ok(at)) => Ok(Next::End(*at)),
            None => Ok(Next::NeedMore),
        }
    }

    fn advance(&mut self, input: &mut &[u8]) -> Result<Option<Record>, Stop> {
        while !input.is_empty() {
            if self.position >= self.page_end {
                self.take_page_header(input)?;
                continue;
            }
            match self.state {
                State::Seeking => {
                    self.take(input, self.start.0 - self.position.0);
                    // On a page's end its header tells what begins there.
                    if self.position == self.start && self.position < self.page_end {
                        self.state = State::Between;
                    }
                }
                State::Skipping { left } => {
                    let taken = self.take(input, left.into()).len();
                    let left = left.saturating_sub(u32::try_from(taken).unwrap_or(left));
                    self.state = State::Skipping { left };
                    if left == 0 {
                        self.valid_until = aligned(self.position);
                        self.state = State::Padding;
                    }
                }
                State::Between => {
                    self.record = self.position;
                    self.head.clear();
                    self.state = State::Head;
                }
                State::Head => self.take_head(input)?,
                State::Body => {
                    let bytes = self.take(input, self.body.left().into());
                    self.body.push(bytes);
                }
                State::Padding => {
                    self.take(input, self.valid_until.0 - self.position.0);
                }
            }
            if self.state == State::Body && self.body.left() == 0 {
                return self.finish_record().map(Some);
            }
            if self.state == State::Padding && self.position == self.valid_until {
                self.state = State::Between;
            }
        }
        Ok(None)
    }

    /// Up to `most` bytes of what there is of this page.
    fn take<'b>(&mut self, input: &mut &'b [u8], most: u64) -> &'b [u8] {
        let most = most.min(self.page_end.0 - self.position.0);
        let taken = take_off(input, most);
        self.position.0 += taken.len() as u64;
        taken
    }

    fn take_page_header(&mut self, input: &mut &[u8]) -> Result<(), Stop> {
        let length = self.pages.header_bytes(self.page_end);
        let missing = length.saturating_sub(self.header.len() as u64);
        let taken = take_off(input, missing);
        self.position.0 += taken.len() as u64;
        self.header.extend_from_slice(taken);
        if (self.header.len() as u64) < length {
            return Ok(());
        }
        let page = self.page_end;
        let checked = self.pages.check(&self.header, page);
        self.header.clear();
        match checked {
            Ok(checked) => {
                self.page_end = Lsn(page.0 + checked.bytes);
                self.enter(page, &checked)
            }
            Err(PageError::Foreign(why)) => Err(damaged(page, why)),
            Err(PageError::Unwritten) => Err(match self.state {
                State::Head | State::Body => Stop::Unwritten(self.record),
                State::Seeking if self.start > self.position => {
                    damaged(self.start, format!("it has been written only up to {page}"))
                }
                _ => Stop::Unwritten(self.valid_until),
            }),
        }
    }

    /// Compares what a page says it begins with and what has to come.
    fn enter(&mut self, at: Lsn, page: &Page) -> Result<(), Stop> {
        let continued = match page.continuation {
            Continuation::Of(bytes) => bytes,
            Continuation::None | Continuation::Overwritten => 0,
        };
        let left = match self.state {
            State::Seeking if self.start == at => {
                self.state = if continued == 0 {
                    State::Between
                } else {
                    State::Skipping { left: continued }
                };
                return Ok(());
            }
            State::Seeking => {
                let first = aligned(Lsn(self.position.0 + u64::from(continued)));
                return if self.start < first.min(self.page_end) {
                    Err(damaged(self.start, "no record begins here"))
                } else {
                    Ok(())
                };
            }
            State::Skipping { left } => left,
            State::Between | State::Padding => 0,
            State::Head => {
                let total = u32_at(&self.head, 0).unwrap_or(0);
                total.saturating_sub(u32::try_from(self.head.len()).unwrap_or(0))
            }
            State::Body => self.body.left(),
        };
        if page.continuation == Continuation::Overwritten {
            if self.state == State::Head || self.state == State::Body {
                self.overwritten = Some(self.record);
            }
            self.state = State::Between;
            return Ok(());
        }
        if continued != left {
            return Err(damaged(
                at,
                format!("{left} bytes of a record should follow, the page says {continued}"),
            ));
        }
        Ok(())
    }

    fn take_head(&mut self, input: &mut &[u8]) -> Result<(), Stop> {
        let missing = HEAD_BYTES.saturating_sub(self.head.len());
        let taken = self.take(input, missing as u64);
        self.head.extend_from_slice(taken);
        match u32_at(&self.head, 0) {
            Some(0) => return Err(Stop::Unwritten(self.record)),
            Some(total) if (total as usize) < HEAD_BYTES => {
                return Err(damaged(
                    self.record,
                    format!("{total} is no length of a record"),
                ));
            }
            _ => {}
        }
        let Some(head) = Head::of(&self.head) else {
            return Ok(());
        };
        let linked = self
            .previous
            .map_or(head.previous < self.record, |previous| {
                head.previous == previous
            });
        if !linked {
            return Err(damaged(
                self.record,
                format!("the record links back to {}", head.previous),
            ));
        }
        let length = head
            .total
            .saturating_sub(u32::try_from(HEAD_BYTES).unwrap_or(0));
        let format = self.pages.format();
        self.body
            .begin(format, head.resource_manager, head.info, length);
        self.state = State::Body;
        Ok(())
    }

    fn finish_record(&mut self) -> Result<Record, Stop> {
        let at = self.record;
        let header = self.head.get(..CHECKSUM_AT).unwrap_or_default();
        let head = Head::of(&self.head)
            .filter(|head| head.checksum == self.body.checksum_with(header))
            .ok_or_else(|| damaged(at, "the record's checksum is wrong"))?;
        let decoded = self
            .body
            .decoded(head.xid)
            .map_err(|why| damaged(at, why))?;
        if let Some(lost) = self.overwritten.take()
            && decoded.kind != (Kind::Overwrite { lost })
        {
            return Err(damaged(
                at,
                format!("it should say that the record of {lost} was lost"),
            ));
        }
        self.valid_until = aligned(self.position);
        if decoded.kind == Kind::Switch {
            self.valid_until = self.pages.segment_end(self.valid_until);
            self.page_end = self.valid_until;
        }
        self.previous = Some(at);
        self.state = State::Padding;
        if self.position == self.valid_until {
            self.state = State::Between;
        }
        Ok(Record {
            start: at,
            end: self.valid_until,
            previous: head.previous,
            xid: head.xid,
            resource_manager: head.resource_manager,
            info: head.info,
            bytes: head.total,
            image_bytes: decoded.image_bytes,
            kind: decoded.kind,
        })
    }
}

/// Up to `most` bytes from the front of `input`.
fn take_off<'b>(input: &mut &'b [u8], most: u64) -> &'b [u8] {
    let most = usize::try_from(most).unwrap_or(usize::MAX).min(input.len());
    let (taken, rest) = input.split_at_checked(most).unwrap_or((*input, &[]));
    *input = rest;
    taken
}

/// Records begin at multiples of 8 (`MAXALIGN`).
const fn aligned(lsn: Lsn) -> Lsn {
    Lsn(lsn.0.next_multiple_of(8))
}
