//! Reads an archive's tar stream back out of the packs.

mod ahead;
mod kept;
mod packs;

use std::io::{self, Read};
use std::sync::Arc;

use futures_util::stream;
use tokio::io::AsyncRead;
use tokio_util::bytes::Bytes;
use tokio_util::io::StreamReader;

use super::ranges::{self, Range, RangeList};
use super::vault::Vault;
use super::{PackName, RepositoryError};
use ahead::ReadAhead;

pub(super) use packs::Packs;

/// A list of ranges that is itself kept as blocks is read whole.
const RANGES_TEXT_LIMIT_BYTES: u64 = 1 << 30;
const READ_AHEAD_PIECES: usize = 8;
pub(super) const PIECE_BYTES: usize = 256 * 1024;

/// One archive as a stream of bytes, each frame checked as it is read.
pub struct ArchiveReader {
    packs: Packs,
    ranges: std::vec::IntoIter<Range<PackName>>,
    /// What is left of the range being read.
    current: Option<Range<PackName>>,
    left: u64,
}

impl ArchiveReader {
    /// Opens the archive that a ranges file describes; its length must be `raw_bytes`.
    pub(super) fn open(
        vault: Arc<Vault>,
        ranges_file: Vec<u8>,
        raw_bytes: u64,
    ) -> Result<Self, RepositoryError> {
        let ranges = resolve(&vault, ranges_file)?;
        if ranges.length() != raw_bytes {
            return Err(RepositoryError::Invalid(format!(
                "the ranges of an archive cover {} bytes, its manifest says {raw_bytes}",
                ranges.length()
            )));
        }
        Self::over(vault, ranges)
    }

    pub(super) fn over(
        vault: Arc<Vault>,
        ranges: RangeList<PackName>,
    ) -> Result<Self, RepositoryError> {
        let left = ranges.length();
        let packs = Packs::new(vault).map_err(|e| RepositoryError::io("set up zstd", e))?;
        Ok(Self {
            packs,
            ranges: ranges.into_vec().into_iter(),
            current: None,
            left,
        })
    }

    /// Bytes not read yet.
    pub fn remaining(&self) -> u64 {
        self.left
    }

    /// Moves over bytes unread, to the end at most.
    pub(super) fn skip(&mut self, mut bytes: u64) {
        while bytes > 0 {
            let Some(range) = self.current.take().or_else(|| self.ranges.next()) else {
                return;
            };
            let taken = range.length.min(bytes);
            if taken < range.length {
                self.current = Some(Range {
                    offset: range.offset + taken,
                    length: range.length - taken,
                    ..range
                });
            }
            bytes -= taken;
            self.left -= taken;
        }
    }

    /// Reads ahead, decoding on every core, through bounded channels.
    pub fn into_async(self) -> impl AsyncRead + Unpin + Send + 'static {
        let (pieces, receiver) = tokio::sync::mpsc::channel::<io::Result<Bytes>>(READ_AHEAD_PIECES);
        tokio::task::spawn_blocking(move || {
            let mut ahead = match self.ahead() {
                Ok(ahead) => ahead,
                Err(err) => {
                    // A closed channel means the reader is gone, and so is the need.
                    drop(pieces.blocking_send(Err(io::Error::other(err))));
                    return;
                }
            };
            loop {
                let mut piece = vec![0; PIECE_BYTES];
                let step = match ahead.read(&mut piece) {
                    Ok(0) => return,
                    Ok(n) => {
                        piece.truncate(n);
                        Ok(Bytes::from(piece))
                    }
                    Err(err) => Err(err),
                };
                let failed = step.is_err();
                if pieces.blocking_send(step).is_err() || failed {
                    return;
                }
            }
        });
        StreamReader::new(Box::pin(stream::unfold(receiver, |mut receiver| async {
            receiver.recv().await.map(|piece| (piece, receiver))
        })))
    }

    /// The rest of the stream, read ahead.
    fn ahead(self) -> Result<ReadAhead, RepositoryError> {
        let rest: Vec<_> = self.current.into_iter().chain(self.ranges).collect();
        ReadAhead::start(self.packs, rest)
    }
}

impl Read for ArchiveReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            let Some(range) = self.current.take().or_else(|| self.ranges.next()) else {
                break;
            };
            let Some(out) = buf.get_mut(done..) else {
                break;
            };
            let copied = self.packs.copy(range, out).map_err(io::Error::other)?;
            let taken = copied as u64;
            if taken < range.length {
                self.current = Some(Range {
                    offset: range.offset + taken,
                    length: range.length - taken,
                    ..range
                });
            }
            done += copied;
            self.left -= taken;
        }
        Ok(done)
    }
}

/// Follows a ranges file down to depth 0.
pub(super) fn resolve(
    vault: &Arc<Vault>,
    file: Vec<u8>,
) -> Result<RangeList<PackName>, RepositoryError> {
    resolve_visiting(vault, file, &mut |_| Ok(()))
}

/// Follows a ranges file down to depth 0 and shows the list of each depth.
pub(super) fn resolve_visiting(
    vault: &Arc<Vault>,
    file: Vec<u8>,
    visit: &mut dyn FnMut(&RangeList<PackName>) -> Result<(), RepositoryError>,
) -> Result<RangeList<PackName>, RepositoryError> {
    let text = |bytes| {
        String::from_utf8(bytes).map_err(|_| {
            RepositoryError::Invalid("a ranges file is not text: it is damaged".to_owned())
        })
    };
    let (mut list, mut depth) = ranges::decode(&text(file)?)?;
    visit(&list)?;
    while depth > 0 {
        if list.length() > RANGES_TEXT_LIMIT_BYTES {
            return Err(RepositoryError::Invalid(format!(
                "a list of ranges claims {} bytes",
                list.length()
            )));
        }
        let mut bytes = Vec::new();
        ArchiveReader::over(Arc::clone(vault), list)?
            .read_to_end(&mut bytes)
            .map_err(|e| RepositoryError::io("read a list of ranges", e))?;
        let (inner, inner_depth) = ranges::decode(&text(bytes)?)?;
        if inner_depth + 1 != depth {
            return Err(RepositoryError::Invalid(
                "a list of ranges has the wrong depth: it is damaged".to_owned(),
            ));
        }
        (list, depth) = (inner, inner_depth);
        visit(&list)?;
    }
    Ok(list)
}
