//! Cuts the body of one entry into blocks.
//!
//! A cutter is fed the body in pieces of any size and calls back with whole blocks, in order; the blocks'
//! concatenation is the body. Blocks begin anew at each entry, so that what moves inside a stream keeps its
//! blocks.

use crate::archive::Cut;

/// Content-defined chunks: large enough to keep the index small, and so small that a record of a kilobyte or
/// three that is overwritten in a mapped file costs little more than itself. With 1 % of a file's vectors
/// overwritten at random, 10 % (768 dimensions) to 17 % (384) of the file is new; chunks of 64 KiB make it 28 %
/// to 45 %.
const CONTENT_MIN: usize = 4 * 1024;
const CONTENT_AVG: usize = 16 * 1024;
const CONTENT_MAX: usize = 64 * 1024;
/// Model blobs are immutable: large blocks keep their index small.
const MODEL_BLOCK: usize = 1024 * 1024;

/// The length of all blocks of a body but the last, where they have one.
pub fn unit(cut: Cut) -> Option<usize> {
    match cut {
        Cut::Pages(unit) | Cut::Blocks(unit) => Some(unit.max(512) as usize),
        Cut::Model => Some(MODEL_BLOCK),
        Cut::Content | Cut::Members => None,
    }
}

/// Turns a body into blocks.
pub struct Cutter {
    way: Way,
    buffer: Vec<u8>,
}

enum Way {
    Fixed(usize),
    Content,
    Members(Box<super::members::Members>),
}

impl Cutter {
    pub fn new(cut: Cut, body_len: u64) -> Self {
        let way = match (unit(cut), cut) {
            (Some(unit), _) => Way::Fixed(unit),
            (None, Cut::Members) => Way::Members(Box::new(super::members::Members::new(body_len))),
            (None, _) => Way::Content,
        };
        Self {
            way,
            buffer: Vec::new(),
        }
    }

    /// Adds a piece of the body; `emit` gets each block that is complete.
    pub fn feed<E>(
        &mut self,
        piece: &[u8],
        mut emit: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        // Whole pages straight from the reader's buffer need no copy.
        if let (Way::Fixed(unit), true) = (&self.way, self.buffer.is_empty()) {
            let mut blocks = piece.chunks_exact(*unit);
            blocks.by_ref().try_for_each(&mut emit)?;
            self.buffer.extend_from_slice(blocks.remainder());
            return Ok(());
        }
        self.buffer.extend_from_slice(piece);
        self.drain(false, emit)
    }

    /// Ends the body: what is left is the last block.
    pub fn finish<E>(&mut self, emit: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        self.drain(true, emit)
    }

    fn drain<E>(
        &mut self,
        last: bool,
        mut emit: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut done = 0;
        while let Some(rest) = self.buffer.get(done..).filter(|rest| !rest.is_empty()) {
            let length = match &mut self.way {
                Way::Fixed(unit) if rest.len() >= *unit => *unit,
                Way::Content if rest.len() >= CONTENT_MAX || last => {
                    fastcdc::v2020::FastCDC::new(rest, CONTENT_MIN, CONTENT_AVG, CONTENT_MAX)
                        .cut(0, rest.len())
                        .1
                }
                Way::Members(members) => match members.next_block(rest) {
                    Some(length) => length,
                    None if last => rest.len(),
                    None => break,
                },
                _ if last => rest.len(),
                _ => break,
            };
            let length = length.clamp(1, rest.len());
            emit(rest.get(..length).unwrap_or(rest))?;
            done += length;
        }
        self.buffer.drain(..done);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;
    use std::convert::Infallible;

    fn blocks(cut: Cut, body: &[u8], piece: usize) -> Vec<Vec<u8>> {
        let mut cutter = Cutter::new(cut, body.len() as u64);
        let mut out = Vec::new();
        let mut emit = |block: &[u8]| {
            out.push(block.to_vec());
            Ok::<(), Infallible>(())
        };
        for part in body.chunks(piece) {
            cutter.feed(part, &mut emit).unwrap();
        }
        cutter.finish(&mut emit).unwrap();
        out
    }

    fn noise(len: usize, seed: u64) -> Vec<u8> {
        let mut state = seed;
        std::iter::repeat_with(|| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            state.to_be_bytes()[0]
        })
        .take(len)
        .collect()
    }

    #[test]
    fn blocks_are_the_body_and_do_not_depend_on_how_it_arrives() {
        let body = noise(1_500_000, 7);
        for cut in [
            Cut::Pages(8192),
            Cut::Blocks(4096),
            Cut::Content,
            Cut::Members,
            Cut::Model,
        ] {
            let whole = blocks(cut, &body, body.len());
            assert_eq!(whole.concat(), body);
            for piece in [1000, 8192, 70_001] {
                assert_eq!(
                    blocks(cut, &body, piece),
                    whole,
                    "{cut:?} in pieces of {piece}"
                );
            }
        }
    }

    #[test]
    fn an_insertion_changes_few_content_blocks() {
        let before = noise(3_000_000, 1);
        let mut after = before.clone();
        after.splice(1_000_000..1_000_000, noise(500, 2));
        let old: std::collections::HashSet<_> =
            blocks(Cut::Content, &before, 65536).into_iter().collect();
        let new: usize = blocks(Cut::Content, &after, 65536)
            .iter()
            .filter(|b| !old.contains(*b))
            .map(Vec::len)
            .sum();
        assert!(new <= 3 * CONTENT_MAX, "{new} new bytes");
    }

    #[test]
    fn records_overwritten_in_place_change_little_more_than_themselves() {
        let (size, record) = (8_000_000, 3072);
        let before = noise(size, 3);
        let mut after = before.clone();
        // One record of a hundred, each a hundred or so from the next.
        for number in (0..size / record).filter(|number| number * 7919 % 100 == 1) {
            let at = number * record;
            after[at..at + record].copy_from_slice(&noise(record, number as u64 + 9));
        }
        let old: std::collections::HashSet<_> =
            blocks(Cut::Content, &before, 65536).into_iter().collect();
        let new: usize = blocks(Cut::Content, &after, 65536)
            .iter()
            .filter(|b| !old.contains(*b))
            .map(Vec::len)
            .sum();
        assert!(new < size / 8, "{new} new bytes of {size}");
    }
}
