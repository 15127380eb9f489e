//! Reads an archive's tar stream back out of the packs.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::{self, Read};
use std::sync::Arc;

use futures_util::stream;
use tokio::io::AsyncRead;
use tokio_util::bytes::Bytes;
use tokio_util::io::StreamReader;

use super::frame::Decoder;
use super::moved::{MOVES_LIMIT, Moved};
use super::moves::MoveList;
use super::pack::PackReader;
use super::ranges::{self, Range, RangeList};
use super::vault::Vault;
use super::{PackName, RepositoryError};

/// Packs kept open, and decoded frames kept: a file's ranges go back and forth between few of them.
const OPEN_PACKS: usize = 32;
const KEPT_FRAMES: usize = 16;
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

    /// Reads ahead on a blocking thread through a bounded channel.
    pub fn into_async(mut self) -> impl AsyncRead + Unpin + Send + 'static {
        let (pieces, receiver) = tokio::sync::mpsc::channel::<io::Result<Bytes>>(READ_AHEAD_PIECES);
        tokio::task::spawn_blocking(move || {
            loop {
                let mut piece = vec![0; PIECE_BYTES];
                let step = match self.read(&mut piece) {
                    Ok(0) => return,
                    Ok(n) => {
                        piece.truncate(n);
                        Ok(Bytes::from(piece))
                    }
                    Err(err) => Err(err),
                };
                let failed = step.is_err();
                // A closed channel means the reader is gone, and so is the need.
                if pieces.blocking_send(step).is_err() || failed {
                    return;
                }
            }
        });
        StreamReader::new(Box::pin(stream::unfold(receiver, |mut receiver| async {
            receiver.recv().await.map(|piece| (piece, receiver))
        })))
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

/// Open packs and decoded frames, most recently used last.
///
/// A pack's SHA-256 is compared with its name when it is first opened: a restore hands out what was backed
/// up or an error, never anything else. A pack that is gone or damaged is looked for where it moved to.
pub(super) struct Packs {
    vault: Arc<Vault>,
    decoder: Decoder,
    open: VecDeque<(PackName, PackReader)>,
    genuine: HashSet<PackName>,
    moves: MoveList,
    moved: HashMap<PackName, Moved>,
    frames: VecDeque<KeptFrame>,
}

struct KeptFrame {
    pack: PackName,
    start: u64,
    bytes: Vec<u8>,
}

impl KeptFrame {
    fn holds(&self, pack: PackName, offset: u64) -> bool {
        self.pack == pack && offset >= self.start && offset - self.start < self.bytes.len() as u64
    }

    /// The front of `range`, as far as this frame reaches.
    fn piece(&self, range: Range<PackName>) -> &[u8] {
        let skip = usize::try_from(range.offset - self.start).unwrap_or(usize::MAX);
        let available = self.bytes.get(skip..).unwrap_or_default();
        let wanted = usize::try_from(range.length).unwrap_or(usize::MAX);
        available
            .get(..wanted.min(available.len()))
            .unwrap_or_default()
    }
}

impl Packs {
    pub(super) fn new(vault: Arc<Vault>) -> io::Result<Self> {
        Ok(Self {
            vault,
            decoder: Decoder::new()?,
            open: VecDeque::new(),
            genuine: HashSet::new(),
            moves: MoveList::default(),
            moved: HashMap::new(),
            frames: VecDeque::new(),
        })
    }

    /// Reads all of `range`.
    pub(super) fn read(
        &mut self,
        range: Range<PackName>,
        out: &mut Vec<u8>,
    ) -> Result<(), RepositoryError> {
        out.clear();
        out.resize(usize::try_from(range.length).unwrap_or(0), 0);
        let mut done = 0;
        while let Some(rest) = out.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let taken = done as u64;
            let left = Range {
                offset: range.offset + taken,
                length: range.length - taken,
                ..range
            };
            done += self.copy(left, rest)?;
        }
        Ok(())
    }

    /// Copies the front of `range` into `out`, as far as one frame and `out` reach.
    fn copy(&mut self, range: Range<PackName>, out: &mut [u8]) -> Result<usize, RepositoryError> {
        let place = self.load(range)?;
        let frame = self
            .frames
            .iter()
            .find(|f| f.holds(place.pack, place.offset));
        let piece = frame.map(|f| f.piece(place)).unwrap_or_default();
        let count = piece.len().min(out.len());
        if count == 0 {
            return Err(RepositoryError::Damaged {
                pack: range.pack,
                why: format!("it ends before byte {}", range.offset),
            });
        }
        if let (Some(to), Some(from)) = (out.get_mut(..count), piece.get(..count)) {
            to.copy_from_slice(from);
        }
        Ok(count)
    }

    /// Makes sure that the frame at the front of `range` is kept; returns where its bytes are now.
    fn load(&mut self, mut range: Range<PackName>) -> Result<Range<PackName>, RepositoryError> {
        for _ in 0..MOVES_LIMIT {
            if let Some(moved) = self.moved.get(&range.pack) {
                range = find(moved, range)?;
                continue;
            }
            let kept = |f: &KeptFrame| f.holds(range.pack, range.offset);
            if self.frames.iter().any(kept) {
                return Ok(range);
            }
            let fault = match self.decode(range) {
                Ok(()) => return Ok(range),
                Err(fault) => fault,
            };
            if !fault.is_damage() {
                return Err(fault);
            }
            let Some(moved) = self.moved_on(range.pack)? else {
                return Err(missing_as_damage(range.pack, fault));
            };
            self.moved.insert(range.pack, moved);
        }
        Err(RepositoryError::Damaged {
            pack: range.pack,
            why: "the files below moved/ lead in a circle".to_owned(),
        })
    }

    /// Where a pack went; the list of moves is read again when it does not tell, for a prune may be at work.
    fn moved_on(&mut self, pack: PackName) -> Result<Option<Moved>, RepositoryError> {
        match self.moves.find(&self.vault, pack) {
            Ok(None) | Err(RepositoryError::Missing(_)) => {}
            found => return found,
        }
        self.moves = self.vault.moves()?;
        self.moves.find(&self.vault, pack)
    }

    fn decode(&mut self, range: Range<PackName>) -> Result<(), RepositoryError> {
        let mut bytes = if self.frames.len() >= KEPT_FRAMES {
            self.frames.pop_front().map(|f| f.bytes)
        } else {
            None
        }
        .unwrap_or_default();
        let pack = range.pack;
        let at = self.open.iter().position(|(name, _)| *name == pack);
        let mut reader = match at.and_then(|at| self.open.remove(at)) {
            Some((_, reader)) => reader,
            None => PackReader::open(&self.vault, pack, !self.genuine.contains(&pack))?,
        };
        self.genuine.insert(pack);
        let start = reader.frame_at(range.offset, &mut self.decoder, &mut bytes)?;
        if self.open.len() >= OPEN_PACKS {
            self.open.pop_front();
        }
        self.open.push_back((pack, reader));
        self.frames.push_back(KeptFrame { pack, start, bytes });
        Ok(())
    }
}

fn find(moved: &Moved, range: Range<PackName>) -> Result<Range<PackName>, RepositoryError> {
    moved
        .find(range.offset, range.length)
        .ok_or_else(|| RepositoryError::Damaged {
            pack: range.pack,
            why: format!(
                "byte {} of it is lost: it was not among what was saved",
                range.offset
            ),
        })
}

fn missing_as_damage(pack: PackName, fault: RepositoryError) -> RepositoryError {
    match fault {
        RepositoryError::Missing(_) => RepositoryError::Damaged {
            pack,
            why: "it is missing".to_owned(),
        },
        other => other,
    }
}
