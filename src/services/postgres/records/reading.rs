//! Records out of a file, or of one segment after the other.

use std::io::Read;

use super::{Damaged, Next, Record, Records};
use crate::services::postgres::wal::Lsn;

const BUFFER_BYTES: usize = 128 << 10;

/// How the log ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Nothing has been written from here on.
    At(Lsn),
    /// All that there was has been read; the next record begins here and is not whole.
    NeedMore(Lsn),
}

impl End {
    /// Up to where there are whole records.
    pub const fn lsn(self) -> Lsn {
        match self {
            Self::At(lsn) | Self::NeedMore(lsn) => lsn,
        }
    }
}

/// Why there is no next record, other than that the log has ended.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("cannot read the write-ahead log: {0}")]
    Source(#[from] std::io::Error),
    #[error(transparent)]
    Damaged(#[from] Damaged),
}

/// The records of a source of the log's bytes, which begins at [`Records::position`]; one of several files is
/// made by [`Read::chain`]. It ends after an error.
pub struct Reading<R> {
    records: Records,
    source: R,
    buffer: Vec<u8>,
    /// What of the buffer has been read and not been taken.
    pending: std::ops::Range<usize>,
    end: Option<End>,
    failed: bool,
}

impl Records {
    /// Reads all records of a source. Blocks.
    pub fn read<R: Read>(self, source: R) -> Reading<R> {
        Reading {
            records: self,
            source,
            buffer: vec![0; BUFFER_BYTES],
            pending: 0..0,
            end: None,
            failed: false,
        }
    }
}

impl<R: Read> Reading<R> {
    /// How the log ended; `None` until the last record has been asked for, and after an error.
    pub const fn end(&self) -> Option<End> {
        self.end
    }

    /// Where the last record ended that was returned.
    pub const fn valid_until(&self) -> Lsn {
        self.records.valid_until()
    }

    fn advance(&mut self) -> Result<Option<Record>, ReadError> {
        loop {
            let mut input = self.buffer.get(self.pending.clone()).unwrap_or_default();
            let next = self.records.next(&mut input)?;
            self.pending.start = self.pending.end - input.len();
            match next {
                Next::Record(record) => return Ok(Some(record)),
                Next::End(at) => {
                    self.end = Some(End::At(at));
                    return Ok(None);
                }
                Next::NeedMore => {}
            }
            self.pending = 0..read_some(&mut self.source, &mut self.buffer)?;
            if self.pending.is_empty() {
                self.end = Some(End::NeedMore(self.records.valid_until()));
                return Ok(None);
            }
        }
    }
}

fn read_some(source: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    loop {
        match source.read(buffer) {
            Err(err) if err.kind() == std::io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

impl<R: Read> Iterator for Reading<R> {
    type Item = Result<Record, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.end.is_some() {
            return None;
        }
        let next = self.advance().transpose();
        self.failed = matches!(next, Some(Err(_)));
        next
    }
}
