//! Writes a log as a server does, without one.

use crate::services::postgres::records::{Damaged, Next, Record, Records};
use crate::services::postgres::wal::{Lsn, SegmentSize};

pub const SEGMENT: u64 = 1 << 20;
pub const SYSTEM: u64 = 42;
/// The first segment.
pub const BASE: u64 = 5 * SEGMENT;

pub const V14: u16 = 0xD10D;
pub const V15: u16 = 0xD110;
pub const V18: u16 = 0xD118;

pub struct Log {
    pub bytes: Vec<u8>,
    pub magic: u16,
    pub timeline: u32,
    pub page: u64,
    /// The start of the last record.
    pub previous: Lsn,
    /// Added to the next page header.
    pub flags: u16,
}

impl Log {
    pub fn new() -> Self {
        Self {
            bytes: Vec::new(),
            magic: V15,
            timeline: 1,
            page: 8192,
            previous: Lsn(BASE - 64),
            flags: 0,
        }
    }

    pub fn end(&self) -> Lsn {
        Lsn(BASE + self.bytes.len() as u64)
    }

    pub fn size() -> SegmentSize {
        SegmentSize::new(SEGMENT).unwrap()
    }

    /// The header of the page that begins at the end.
    fn header(&mut self, remaining: u32) {
        let address = self.end().0;
        let long = address.is_multiple_of(SEGMENT);
        let info =
            u16::from(remaining > 0) | u16::from(long) << 1 | std::mem::take(&mut self.flags);
        self.bytes.extend(self.magic.to_ne_bytes());
        self.bytes.extend(info.to_ne_bytes());
        self.bytes.extend(self.timeline.to_ne_bytes());
        self.bytes.extend(address.to_ne_bytes());
        self.bytes.extend(u64::from(remaining).to_ne_bytes());
        if long {
            self.bytes.extend(SYSTEM.to_ne_bytes());
            self.bytes
                .extend(u32::try_from(SEGMENT).unwrap().to_ne_bytes());
            self.bytes
                .extend(u32::try_from(self.page).unwrap().to_ne_bytes());
        }
    }

    /// Bytes with page headers where they belong, of which `remaining` are still to come at first.
    pub fn put(&mut self, data: &[u8], mut remaining: u32) {
        for byte in data {
            if self.end().0.is_multiple_of(self.page) {
                self.header(remaining);
            }
            self.bytes.push(*byte);
            remaining -= 1;
        }
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
    }

    /// Where the next record begins.
    pub fn next_start(&mut self) -> Lsn {
        if self.end().0.is_multiple_of(self.page) {
            self.header(0);
        }
        self.end()
    }

    pub fn record(&mut self, manager: u8, info: u8, xid: u32, body: &[u8]) -> Lsn {
        let start = self.next_start();
        let bytes = record(manager, info, xid, self.previous, body);
        self.put(&bytes, u32::try_from(bytes.len()).unwrap());
        self.previous = start;
        start
    }

    /// One with nothing to read in it, of `length` bytes.
    pub fn filler(&mut self, length: usize) -> Lsn {
        assert!(length > 24 + 5);
        let mut body = vec![254];
        body.extend(u32::try_from(length - 24 - 5).unwrap().to_ne_bytes());
        body.resize(length - 24, 7);
        self.record(10, 0, 3, &body)
    }

    /// Records until so many bytes of the page are left.
    pub fn fill_page_up_to(&mut self, left: u64) {
        let now = self.next_start().0 % self.page;
        let length = self.page - now - left;
        self.filler(usize::try_from(length).unwrap());
    }

    pub fn zeroes(&mut self, length: u64) {
        let length = usize::try_from(length).unwrap();
        self.bytes.resize(self.bytes.len() + length, 0);
    }

    /// To the end of the page.
    pub fn finish_page(&mut self) {
        let length = self.bytes.len() as u64;
        self.zeroes(length.next_multiple_of(self.page) - length);
    }

    pub fn reader(start: Lsn) -> Records {
        Records::new(start, Self::size(), 3, Some(SYSTEM))
    }

    pub fn read(&self) -> (Vec<Record>, Result<Next, Damaged>) {
        self.read_from(Lsn(BASE))
    }

    /// All records, and what comes after the last one.
    pub fn read_from(&self, start: Lsn) -> (Vec<Record>, Result<Next, Damaged>) {
        let skipped = usize::try_from(start.0 / SEGMENT * SEGMENT - BASE).unwrap();
        in_pieces(Self::reader(start), &self.bytes[skipped..], usize::MAX)
    }
}

pub fn in_pieces(
    mut reader: Records,
    bytes: &[u8],
    length: usize,
) -> (Vec<Record>, Result<Next, Damaged>) {
    let mut records = Vec::new();
    for mut piece in bytes.chunks(length.min(bytes.len().max(1))) {
        loop {
            match reader.next(&mut piece) {
                Ok(Next::Record(record)) => records.push(record),
                Ok(Next::NeedMore) => break,
                last => return (records, last),
            }
        }
        assert!(piece.is_empty());
    }
    (records, Ok(Next::NeedMore))
}

pub fn record(manager: u8, info: u8, xid: u32, previous: Lsn, body: &[u8]) -> Vec<u8> {
    let mut head = Vec::new();
    head.extend(u32::try_from(24 + body.len()).unwrap().to_ne_bytes());
    head.extend(xid.to_ne_bytes());
    head.extend(previous.0.to_ne_bytes());
    head.extend([info, manager, 0, 0]);
    let checksum = crc32c::crc32c_append(crc32c::crc32c(body), &head);
    head.extend(checksum.to_ne_bytes());
    head.extend(body);
    head
}

/// A body that has nothing but main data.
pub fn main_data(data: &[u8]) -> Vec<u8> {
    if let Ok(length) = u8::try_from(data.len()) {
        return [&[255, length], data].concat();
    }
    let length = u32::try_from(data.len()).unwrap().to_ne_bytes();
    [&[254], length.as_slice(), data].concat()
}
