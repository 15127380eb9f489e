//! Moved packs: `moved/<run>/<pack>` says where the pieces of a pack went that a run rewrote ([`super::moves`]).
//!
//! ```text
//! # lifeboat moved 1
//! <offset> <length> <pack> <offset there>
//! # seal <hex>
//! ```
//! Manifests and ranges never change. What a repack or a repair copies elsewhere is found through this file
//! when the run is committed; a piece may move again. Pieces are in order and do not overlap. Bytes
//! that no piece covers are lost, or nobody wanted them.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;

use super::ranges::{Range, RangeList};
use super::{PackName, RepositoryError};

const HEADING: &str = "# lifeboat moved 1";
/// How often a piece may have moved; more is a circle.
pub const MOVES_LIMIT: u32 = 64;

/// Asks the repository where a pack's pieces went.
pub type WhereMoved<'a> = dyn Fn(PackName) -> Result<Option<Moved>, RepositoryError> + 'a;

/// A piece of a pack, and where it is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    pub offset: u64,
    pub place: Range<PackName>,
}

/// Where the pieces of one pack went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Moved(Vec<Piece>);

impl Moved {
    /// Adds the next piece; neighbours that stayed together are one.
    pub fn push(&mut self, offset: u64, place: Range<PackName>) {
        if let Some(last) = self.0.last_mut()
            && last.offset + last.place.length == offset
            && last.place.pack == place.pack
            && last.place.offset + last.place.length == place.offset
        {
            last.place.length += place.length;
            return;
        }
        if place.length > 0 {
            self.0.push(Piece { offset, place });
        }
    }

    pub fn pieces(&self) -> &[Piece] {
        &self.0
    }

    /// Where the front of `length` bytes at `offset` is: as much of it as stayed together.
    pub fn find(&self, offset: u64, length: u64) -> Option<Range<PackName>> {
        let after = self
            .0
            .partition_point(|piece| piece.offset + piece.place.length <= offset);
        let piece = self.0.get(after).filter(|piece| piece.offset <= offset)?;
        let skip = offset - piece.offset;
        Some(Range {
            pack: piece.place.pack,
            offset: piece.place.offset + skip,
            length: length.min(piece.place.length - skip),
        })
    }

    /// All that is known of a range, in its pieces.
    pub fn within(&self, offset: u64, length: u64) -> Vec<Range<PackName>> {
        let end = offset + length;
        let first = self
            .0
            .partition_point(|piece| piece.offset + piece.place.length <= offset);
        let pieces = self.0.get(first..).unwrap_or_default();
        pieces
            .iter()
            .take_while(|piece| piece.offset < end)
            .map(|piece| {
                let from = piece.offset.max(offset);
                Range {
                    pack: piece.place.pack,
                    offset: piece.place.offset + (from - piece.offset),
                    length: end.min(piece.offset + piece.place.length) - from,
                }
            })
            .collect()
    }

    /// Where all of `length` bytes at `offset` are, in pieces; `None` when a part of it is lost.
    pub fn locate(&self, mut offset: u64, mut length: u64) -> Option<RangeList<PackName>> {
        let mut out = RangeList::default();
        while length > 0 {
            let found = self.find(offset, length)?;
            offset += found.length;
            length -= found.length;
            out.push(found);
        }
        Some(out)
    }

    /// The same pieces where they are in the end: only in packs that are `there`. What is lost on the way is
    /// left out.
    pub fn settle(
        self,
        there: &HashSet<PackName>,
        where_moved: &WhereMoved<'_>,
    ) -> Result<Self, RepositoryError> {
        let (mut moved, mut asked) = (self, HashMap::new());
        for _ in 0..MOVES_LIMIT {
            if moved
                .0
                .iter()
                .all(|piece| there.contains(&piece.place.pack))
            {
                return Ok(moved);
            }
            let mut next = Self::default();
            for Piece { mut offset, place } in moved.0 {
                if there.contains(&place.pack) {
                    next.push(offset, place);
                    continue;
                }
                if let Entry::Vacant(entry) = asked.entry(place.pack) {
                    entry.insert(where_moved(place.pack)?);
                }
                let found = asked.get(&place.pack).and_then(Option::as_ref);
                let found = found.and_then(|moved| moved.locate(place.offset, place.length));
                for range in found.unwrap_or_default().as_slice() {
                    next.push(offset, *range);
                    offset += range.length;
                }
            }
            moved = next;
        }
        Ok(Self::default())
    }

    /// Adds what `other` has and this one has not.
    pub fn fill(&mut self, other: &Self) {
        let mut pieces = std::mem::take(&mut self.0);
        let own = pieces.clone();
        for Piece { offset, place } in &other.0 {
            let (mut at, end) = (*offset, offset + place.length);
            let mut add = |from: u64, to: u64| {
                if from < to {
                    pieces.push(Piece {
                        offset: from,
                        place: Range {
                            pack: place.pack,
                            offset: place.offset + (from - offset),
                            length: to - from,
                        },
                    });
                }
            };
            for piece in &own {
                if piece.offset >= end {
                    break;
                }
                add(at, piece.offset.min(end));
                at = at.max(piece.offset + piece.place.length);
            }
            add(at, end);
        }
        pieces.sort_by_key(|piece| piece.offset);
        self.0 = pieces;
    }

    pub fn encode(&self) -> String {
        let mut text = format!("{HEADING}\n");
        for Piece { offset, place } in &self.0 {
            // Writing to a String cannot fail.
            writeln!(
                text,
                "{offset} {} {} {}",
                place.length, place.pack, place.offset
            )
            .ok();
        }
        text
    }

    pub fn decode(text: &str) -> Result<Self, RepositoryError> {
        let bad = || RepositoryError::Invalid("a list of moved pieces is damaged".to_owned());
        let mut lines = text.lines();
        if lines.next() != Some(HEADING) {
            return Err(bad());
        }
        let mut pieces: Vec<Piece> = Vec::new();
        for line in lines {
            let fields: Vec<&str> = line.split(' ').collect();
            let [offset, length, pack, there] = fields.as_slice() else {
                return Err(bad());
            };
            let number = |text: &str| text.parse::<u64>().map_err(|_| bad());
            let piece = Piece {
                offset: number(offset)?,
                place: Range {
                    pack: pack.parse()?,
                    offset: number(there)?,
                    length: number(length)?,
                },
            };
            let ends = piece.offset.checked_add(piece.place.length);
            let there_ends = piece.place.offset.checked_add(piece.place.length);
            let begins = pieces
                .last()
                .map_or(0, |last| last.offset + last.place.length);
            if ends.is_none()
                || there_ends.is_none()
                || piece.place.length == 0
                || piece.offset < begins
            {
                return Err(bad());
            }
            pieces.push(piece);
        }
        Ok(Self(pieces))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn at(pack: u8, offset: u64, length: u64) -> Range<PackName> {
        Range {
            pack: PackName([pack; 32]),
            offset,
            length,
        }
    }

    fn moved() -> Moved {
        let mut moved = Moved::default();
        moved.push(0, at(7, 100, 10));
        moved.push(10, at(7, 110, 10));
        moved.push(50, at(8, 0, 5));
        moved
    }

    #[test]
    fn a_range_is_found_in_its_pieces_or_not_at_all() {
        let moved = moved();
        assert_eq!(moved.pieces().len(), 2);
        assert_eq!(moved.find(5, 100), Some(at(7, 105, 15)));
        assert_eq!(moved.find(52, 2), Some(at(8, 2, 2)));
        assert_eq!(moved.find(20, 1), None);
        assert_eq!(moved.within(15, 37), [at(7, 115, 5), at(8, 0, 2)]);
        assert_eq!(moved.locate(0, 20).unwrap().length(), 20);
        assert_eq!(moved.locate(15, 10), None);
    }

    #[test]
    fn pieces_settle_where_they_are_in_the_end() {
        let mut again = Moved::default();
        again.push(100, at(9, 0, 10));
        again.push(110, at(10, 7, 10));
        let there = HashSet::from([8, 9, 10].map(|n| PackName([n; 32])));
        let seven = PackName([7; 32]);
        let settled = moved()
            .settle(&there, &|pack| Ok((pack == seven).then(|| again.clone())))
            .unwrap();
        let mut expected = Moved::default();
        expected.push(0, at(9, 0, 10));
        expected.push(10, at(10, 7, 10));
        expected.push(50, at(8, 0, 5));
        assert_eq!(settled, expected);
        let lost = moved().settle(&there, &|_| Ok(None)).unwrap();
        assert_eq!(lost.pieces().len(), 1);
    }

    #[test]
    fn gaps_are_filled_and_nothing_else() {
        let mut filled = moved();
        let mut other = Moved::default();
        other.push(10, at(9, 0, 50));
        other.push(70, at(9, 60, 5));
        filled.fill(&other);
        let mut expected = moved();
        expected.0.insert(
            1,
            Piece {
                offset: 20,
                place: at(9, 10, 30),
            },
        );
        expected.0.push(Piece {
            offset: 55,
            place: at(9, 45, 5),
        });
        expected.0.push(Piece {
            offset: 70,
            place: at(9, 60, 5),
        });
        assert_eq!(filled, expected);
        assert_eq!(Moved::decode(&filled.encode()).unwrap(), expected);
    }

    #[test]
    fn decode_reverses_encode_and_refuses_disorder() {
        assert_eq!(Moved::decode(&moved().encode()).unwrap(), moved());
        let pack = PackName([1; 32]);
        for lines in [
            format!("5 5 {pack} 0\n0 5 {pack} 0\n"),
            format!("0 0 {pack} 0\n"),
            format!("{} 2 {pack} 0\n", u64::MAX),
            "x\n".to_owned(),
        ] {
            Moved::decode(&format!("{HEADING}\n{lines}")).unwrap_err();
        }
    }
}
