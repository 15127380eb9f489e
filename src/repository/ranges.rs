//! Ranges: an archive as pieces of packs, in stream order.
//!
//! The file is text a shell can read:
//!
//! ```text
//! # lifeboat ranges 1 depth 0
//! <sha256 of the pack> <offset> <length>
//! ```
//! Offsets and lengths count the pack's *decompressed* bytes. With `depth 1` the named bytes are themselves
//! the text of a ranges file of depth 0, and so on: a long list is kept as blocks, and one night's share of
//! it is what changed.

use std::fmt::Write as _;

use super::{PackName, RepositoryError};

/// Longest list that is written out; above it, the list is stored as blocks.
pub const INLINE_LIMIT_BYTES: usize = 32 * 1024;
/// A list of lists of lists names more than any disk holds.
pub const MAX_DEPTH: u32 = 4;

/// A piece of a pack's decompressed bytes; `P` names the pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range<P> {
    pub pack: P,
    pub offset: u64,
    pub length: u64,
}

/// A list in which neighbours that continue each other are one range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeList<P>(Vec<Range<P>>);

impl<P> Default for RangeList<P> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<P: PartialEq + Copy> RangeList<P> {
    pub fn push(&mut self, range: Range<P>) {
        if range.length == 0 {
            return;
        }
        if let Some(last) = self.0.last_mut()
            && last.pack == range.pack
            && last.offset + last.length == range.offset
        {
            last.length += range.length;
            return;
        }
        self.0.push(range);
    }

    pub fn extend(&mut self, other: &Self) {
        other.0.iter().for_each(|range| self.push(*range));
    }

    pub fn as_slice(&self) -> &[Range<P>] {
        &self.0
    }

    pub fn into_vec(self) -> Vec<Range<P>> {
        self.0
    }

    pub fn length(&self) -> u64 {
        self.0.iter().map(|r| r.length).sum()
    }

    /// The ranges beyond a list that had `count` of them, the last `last_length` long.
    #[must_use]
    pub fn since(&self, count: usize, last_length: u64) -> Self {
        let mut out = Self::default();
        if let Some(last) = count.checked_sub(1).and_then(|at| self.0.get(at)) {
            out.push(Range {
                offset: last.offset + last_length,
                length: last.length - last_length,
                ..*last
            });
        }
        self.0.iter().skip(count).for_each(|range| out.push(*range));
        out
    }

    /// Goes back to a list that had `count` ranges, the last `last_length` long.
    pub fn truncate(&mut self, count: usize, last_length: u64) {
        self.0.truncate(count);
        if let Some(last) = self.0.last_mut() {
            last.length = last_length;
        }
    }

    /// The same list with packs named otherwise.
    pub fn map<Q: PartialEq + Copy>(
        &self,
        mut name: impl FnMut(P) -> Option<Q>,
    ) -> Option<RangeList<Q>> {
        let mut out = Vec::with_capacity(self.0.len());
        for range in &self.0 {
            out.push(Range {
                pack: name(range.pack)?,
                offset: range.offset,
                length: range.length,
            });
        }
        Some(RangeList(out))
    }
}

/// Parts of packs that are gathered before they are merged: keeps memory bounded.
pub(super) const PARTS_MERGED_AT: usize = 1 << 20;

/// Sorts parts, given by begin and end, and joins those that touch.
pub(super) fn merge_parts(parts: &mut Vec<(u64, u64)>) {
    parts.sort_unstable();
    let mut merged: Vec<(u64, u64)> = Vec::new();
    for (begin, end) in parts.drain(..) {
        match merged.last_mut() {
            Some(last) if begin <= last.1 => last.1 = last.1.max(end),
            _ => merged.push((begin, end)),
        }
    }
    *parts = merged;
}

/// The ranges file's text.
pub fn encode(ranges: &RangeList<PackName>, depth: u32) -> String {
    let mut text = format!("# lifeboat ranges 1 depth {depth}\n");
    for range in ranges.as_slice() {
        // Writing to a String cannot fail.
        writeln!(text, "{} {} {}", range.pack, range.offset, range.length).ok();
    }
    text
}

/// Parses a ranges file; returns its depth too.
pub fn decode(text: &str) -> Result<(RangeList<PackName>, u32), RepositoryError> {
    let bad = |line: usize, why: &str| {
        RepositoryError::Invalid(format!("line {line} of a ranges file {why}"))
    };
    let mut lines = text.lines().enumerate();
    let depth = lines
        .next()
        .and_then(|(_, first)| first.strip_prefix("# lifeboat ranges 1 depth "))
        .and_then(|depth| depth.parse::<u32>().ok())
        .filter(|depth| *depth <= MAX_DEPTH)
        .ok_or_else(|| bad(1, "is not its heading"))?;
    let mut ranges = Vec::new();
    for (index, line) in lines {
        let mut fields = line.split(' ');
        let range = (|| {
            let pack = fields.next()?.parse().ok()?;
            let offset = fields.next()?.parse::<u64>().ok()?;
            let length = fields.next()?.parse::<u64>().ok()?;
            offset.checked_add(length)?;
            (fields.next().is_none() && length > 0).then_some(Range {
                pack,
                offset,
                length,
            })
        })();
        ranges.push(range.ok_or_else(|| bad(index + 1, "is not `pack offset length`"))?);
    }
    Ok((RangeList(ranges), depth))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parts_that_touch_are_one() {
        let mut parts = vec![(10, 20), (0, 5), (5, 7), (15, 18), (30, 31)];
        merge_parts(&mut parts);
        assert_eq!(parts, [(0, 7), (10, 20), (30, 31)]);
    }

    #[test]
    fn neighbours_coalesce() {
        let mut list = RangeList::default();
        for (pack, offset, length) in [
            (1, 0, 10),
            (1, 10, 5),
            (1, 16, 1),
            (2, 17, 3),
            (2, 20, 0),
            (2, 20, 4),
        ] {
            list.push(Range {
                pack,
                offset,
                length,
            });
        }
        let expected = [(1, 0, 15), (1, 16, 1), (2, 17, 7)].map(|(pack, offset, length)| Range {
            pack,
            offset,
            length,
        });
        assert_eq!(list.as_slice(), expected);
        assert_eq!(list.length(), 23);
    }

    proptest! {
        #[test]
        fn decode_reverses_encode(items in proptest::collection::vec((any::<[u8; 32]>(), 0u64..1 << 40, 1u64..1 << 30), 0..40), depth in 0u32..3) {
            let mut list = RangeList::default();
            for (pack, offset, length) in items {
                list.push(Range { pack: PackName(pack), offset, length });
            }
            prop_assert_eq!(decode(&encode(&list, depth)).unwrap(), (list, depth));
        }

        #[test]
        fn any_text_decodes_or_fails_without_panic(text in "(# lifeboat ranges 1 depth [0-9]\n)?[0-9a-f \n]{0,200}") {
            let _decoded_or_refused = decode(&text).is_ok();
        }
    }
}
