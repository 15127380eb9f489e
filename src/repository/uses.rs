//! Which packs a backup needs: `backups/<id>/packs`, kept readable for everybody.
//!
//! ```text
//! # lifeboat packs 1
//! <pack> <bytes of it that the backup's ranges name>
//! ```
//! The text is a zstd frame, for it grows with every night whose packs are still needed, and half of it is the
//! hexadecimal digits; a skippable frame 0x184D2A51 follows with the 32 bytes of the seal of the frame. The
//! first versions wrote it as it is, with a last line `# seal <hex>`: that is read as well.
//!
//! It lets a host that cannot decrypt anything prune, and a prune need not read every range of every backup.
//! It tells an onlooker no more than the times of the packs do.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::ranges::RangeList;
use super::{PackName, RepositoryError};

const HEADING: &str = "# lifeboat packs 1";

/// Packs and how many of their decompressed bytes are named.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Uses(BTreeMap<PackName, u64>);

impl Uses {
    /// Adds the bytes that a list names, each once.
    pub fn add(&mut self, ranges: &RangeList<PackName>) {
        let mut parts: Vec<(PackName, u64, u64)> = ranges
            .as_slice()
            .iter()
            .map(|range| (range.pack, range.offset, range.offset + range.length))
            .collect();
        parts.sort_unstable();
        let (mut pack, mut reach) = (None, 0);
        for (name, begin, end) in parts {
            if pack != Some(name) {
                (pack, reach) = (Some(name), 0);
            }
            *self.0.entry(name).or_default() += end.saturating_sub(begin.max(reach));
            reach = reach.max(end);
        }
    }

    pub fn extend(&mut self, other: &Self) {
        for (pack, bytes) in &other.0 {
            *self.0.entry(*pack).or_default() += bytes;
        }
    }

    pub fn packs(&self) -> impl Iterator<Item = (PackName, u64)> + '_ {
        self.0.iter().map(|(pack, bytes)| (*pack, *bytes))
    }

    pub fn encode(&self) -> String {
        let mut text = format!("{HEADING}\n");
        for (pack, bytes) in &self.0 {
            // Writing to a String cannot fail.
            writeln!(text, "{pack} {bytes}").ok();
        }
        text
    }

    pub fn decode(text: &str) -> Result<Self, RepositoryError> {
        let mut lines = text.lines();
        if lines.next() != Some(HEADING) {
            return Err(bad());
        }
        lines
            .map(|line| {
                let (pack, bytes) = line.split_once(' ').ok_or_else(bad)?;
                Ok((pack.parse()?, bytes.parse().map_err(|_| bad())?))
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

fn bad() -> RepositoryError {
    RepositoryError::Invalid("a list of packs is damaged".to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::repository::ranges::Range;

    #[test]
    fn decode_reverses_encode_and_counts_add_up() {
        let mut list = RangeList::default();
        for (pack, offset, length) in [(1, 0, 10), (2, 5, 6), (1, 20, 5), (1, 2, 8), (1, 24, 1)] {
            list.push(Range {
                pack: PackName([pack; 32]),
                offset,
                length,
            });
        }
        let mut uses = Uses::default();
        uses.add(&list);
        let mut twice = Uses::default();
        twice.extend(&uses);
        assert_eq!(Uses::decode(&twice.encode()).unwrap(), uses);
        assert_eq!(
            uses.packs().collect::<Vec<_>>(),
            [(PackName([1; 32]), 15), (PackName([2; 32]), 6)]
        );
        Uses::decode("# lifeboat packs 1\nnonsense\n").unwrap_err();
        Uses::decode("").unwrap_err();
    }
}
