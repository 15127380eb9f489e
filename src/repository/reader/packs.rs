//! Packs by name: opened once, proven genuine, and followed where their pieces moved.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;

use super::kept::Kept;
use crate::repository::frame::Decoder;
use crate::repository::moved::{MOVES_LIMIT, Moved};
use crate::repository::moves::MoveList;
use crate::repository::pack::{PackReader, StoredFrame};
use crate::repository::ranges::Range;
use crate::repository::vault::Vault;
use crate::repository::{PackName, RepositoryError};

/// Packs kept open: more than the nights that most files are made of.
const OPEN_PACKS: u64 = 256;
/// Decoded frames kept, in bytes: one frame of each open pack, and some.
pub(super) const KEPT_FRAMES_BYTES: u64 = 48 * 1024 * 1024;
/// A whole pack as one part of itself.
const WHOLE: u64 = u64::MAX;

/// Finds frames: in open packs, most recently used last, and where moved pieces are now.
///
/// A pack's SHA-256 is compared with its name when it is first opened: a restore hands out what was backed
/// up or an error, never anything else. A pack that is gone or damaged is looked for where it moved to.
pub(super) struct Finder {
    vault: Arc<Vault>,
    open: Kept<PackReader>,
    genuine: HashSet<PackName>,
    moves: MoveList,
    moved: HashMap<PackName, Moved>,
}

impl Finder {
    pub fn new(vault: Arc<Vault>) -> Self {
        Self {
            vault,
            open: Kept::new(OPEN_PACKS),
            genuine: HashSet::new(),
            moves: MoveList::default(),
            moved: HashMap::new(),
        }
    }

    /// The vault it reads from.
    pub fn vault(&self) -> &Arc<Vault> {
        &self.vault
    }

    /// Where a range's front is now, as far as moves are known.
    pub fn place(&self, mut range: Range<PackName>) -> Result<Range<PackName>, RepositoryError> {
        for _ in 0..MOVES_LIMIT {
            match self.moved.get(&range.pack) {
                None => return Ok(range),
                Some(moved) => range = find(moved, range)?,
            }
        }
        Err(in_a_circle(range.pack))
    }

    /// Reads the frame that holds the front of `range`; returns where that is now, too.
    pub fn stored(
        &mut self,
        range: Range<PackName>,
    ) -> Result<(StoredFrame, Range<PackName>), RepositoryError> {
        for _ in 0..MOVES_LIMIT {
            let place = self.place(range)?;
            match self.read(place) {
                Ok(frame) => return Ok((frame, place)),
                Err(fault) => self.look_elsewhere(place.pack, fault)?,
            }
        }
        Err(in_a_circle(range.pack))
    }

    /// Learns where a pack went that is gone or damaged; its fault when it went nowhere.
    pub fn look_elsewhere(
        &mut self,
        pack: PackName,
        fault: RepositoryError,
    ) -> Result<(), RepositoryError> {
        if !fault.is_damage() {
            return Err(fault);
        }
        match self.moved_on(pack)? {
            Some(moved) => {
                self.moved.insert(pack, moved);
                Ok(())
            }
            None => Err(missing_as_damage(pack, fault)),
        }
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

    fn read(&mut self, range: Range<PackName>) -> Result<StoredFrame, RepositoryError> {
        let pack = range.pack;
        if let Some((_, _, reader)) = self.open.get(pack, range.offset) {
            return reader.stored_frame(range.offset);
        }
        let mut reader = PackReader::open(&self.vault, pack, !self.genuine.contains(&pack))?;
        self.genuine.insert(pack);
        let frame = reader.stored_frame(range.offset)?;
        self.open.insert((pack, 0), WHOLE, 1, reader);
        Ok(frame)
    }
}

/// Finds and decodes; keeps the last decoded frames.
pub(in crate::repository) struct Packs {
    finder: Finder,
    decoder: Decoder,
    frames: Kept<Vec<u8>>,
    /// A frame's buffer that can be used again.
    spare: Vec<u8>,
}

/// The front of `place`, as far as a frame reaches whose bytes begin at `start`.
pub(super) fn piece(bytes: &[u8], start: u64, place: Range<PackName>) -> &[u8] {
    let skip = usize::try_from(place.offset - start).unwrap_or(usize::MAX);
    let available = bytes.get(skip..).unwrap_or_default();
    let wanted = usize::try_from(place.length).unwrap_or(usize::MAX);
    available
        .get(..wanted.min(available.len()))
        .unwrap_or_default()
}

impl Packs {
    pub(in crate::repository) fn new(vault: Arc<Vault>) -> io::Result<Self> {
        Ok(Self {
            finder: Finder::new(vault),
            decoder: Decoder::new()?,
            frames: Kept::new(KEPT_FRAMES_BYTES),
            spare: Vec::new(),
        })
    }

    pub(super) fn vault(&self) -> &Arc<Vault> {
        self.finder.vault()
    }

    /// Reads all of `range`.
    pub(in crate::repository) fn read(
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
    pub(super) fn copy(
        &mut self,
        range: Range<PackName>,
        out: &mut [u8],
    ) -> Result<usize, RepositoryError> {
        let place = self.load(range)?;
        let frame = self.frames.get(place.pack, place.offset);
        let piece = frame
            .map(|(start, _, bytes)| piece(bytes, start, place))
            .unwrap_or_default();
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
    fn load(&mut self, range: Range<PackName>) -> Result<Range<PackName>, RepositoryError> {
        for _ in 0..MOVES_LIMIT {
            let place = self.finder.place(range)?;
            if self.frames.get(place.pack, place.offset).is_some() {
                return Ok(place);
            }
            let (frame, place) = self.finder.stored(range)?;
            let mut bytes = std::mem::take(&mut self.spare);
            match frame.decode(&mut self.decoder, &mut bytes) {
                Ok(()) => {
                    let length = bytes.len() as u64;
                    let at = (frame.pack, frame.start);
                    self.spare = self
                        .frames
                        .insert(at, length, length, bytes)
                        .unwrap_or_default();
                    return Ok(place);
                }
                Err(fault) => self.finder.look_elsewhere(place.pack, fault)?,
            }
        }
        Err(in_a_circle(range.pack))
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

fn in_a_circle(pack: PackName) -> RepositoryError {
    RepositoryError::Damaged {
        pack,
        why: "the files below moved/ lead in a circle".to_owned(),
    }
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
