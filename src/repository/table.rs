//! The block table: which blocks lie in a pack, in order.
//!
//! ```text
//! "LBT1"  run*                                   all numbers little endian
//! run  =  01  u32 unit  u32 count  count × id[8]            pages of `unit` bytes
//!      |  02  u32 count  count × (u32 length, id[32])       blocks
//! ```
//! A block's offset is the sum of the lengths before it. An id is keyed BLAKE3 of the block, cut to 8 bytes
//! for pages: those are only ever compared with the page at the same position of the same file, so 64 bits
//! leave a chance of 2⁻⁶⁴ per changed page. Blocks are looked up among all others and carry all 256 bits.

use super::RepositoryError;

pub const MAGIC: &[u8; 4] = b"LBT1";
const RUN_PAGES: u8 = 1;
const RUN_BLOCKS: u8 = 2;
/// Keeps a run's count field honest and a reader's memory bounded.
const RUN_LIMIT: u32 = 1 << 24;

pub type PageId = [u8; 8];
pub type BlockId = [u8; 32];

/// One run of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Run {
    Pages { unit: u32, ids: Vec<PageId> },
    Blocks(Vec<(u32, BlockId)>),
}

/// The blocks of one pack, in stream order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BlockTable {
    runs: Vec<Run>,
}

impl BlockTable {
    pub fn push_page(&mut self, unit: u32, id: PageId) {
        if let Some(Run::Pages { unit: last, ids }) = self.runs.last_mut()
            && *last == unit
        {
            ids.push(id);
            return;
        }
        self.runs.push(Run::Pages {
            unit,
            ids: vec![id],
        });
    }

    pub fn push_block(&mut self, length: u32, id: BlockId) {
        if let Some(Run::Blocks(blocks)) = self.runs.last_mut() {
            blocks.push((length, id));
            return;
        }
        self.runs.push(Run::Blocks(vec![(length, id)]));
    }

    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// Decoded bytes of all blocks.
    pub fn raw_bytes(&self) -> u64 {
        self.runs
            .iter()
            .map(|run| match run {
                Run::Pages { unit, ids } => u64::from(*unit) * ids.len() as u64,
                Run::Blocks(blocks) => blocks.iter().map(|(length, _)| u64::from(*length)).sum(),
            })
            .sum()
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        for run in &self.runs {
            match run {
                Run::Pages { unit, ids } => {
                    out.push(RUN_PAGES);
                    out.extend_from_slice(&unit.to_le_bytes());
                    out.extend_from_slice(&count(ids.len()).to_le_bytes());
                    out.extend_from_slice(ids.as_flattened());
                }
                Run::Blocks(blocks) => {
                    out.push(RUN_BLOCKS);
                    out.extend_from_slice(&count(blocks.len()).to_le_bytes());
                    for (length, id) in blocks {
                        out.extend_from_slice(&length.to_le_bytes());
                        out.extend_from_slice(id);
                    }
                }
            }
        }
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, RepositoryError> {
        let mut input = bytes
            .strip_prefix(MAGIC.as_slice())
            .ok_or_else(|| bad("does not begin with LBT1"))?;
        let mut runs = Vec::new();
        while let Some((kind, rest)) = input.split_first() {
            input = rest;
            match *kind {
                RUN_PAGES => {
                    let unit = take_u32(&mut input)?;
                    let count = take_count(&mut input)?;
                    let mut ids = Vec::with_capacity(count.min(input.len() / 8));
                    for _ in 0..count {
                        ids.push(take(&mut input)?);
                    }
                    runs.push(Run::Pages { unit, ids });
                }
                RUN_BLOCKS => {
                    let count = take_count(&mut input)?;
                    let mut blocks = Vec::with_capacity(count.min(input.len() / 36));
                    for _ in 0..count {
                        blocks.push((take_u32(&mut input)?, take(&mut input)?));
                    }
                    runs.push(Run::Blocks(blocks));
                }
                other => return Err(bad(&format!("has a run of unknown kind {other}"))),
            }
        }
        Ok(Self { runs })
    }
}

fn bad(why: &str) -> RepositoryError {
    RepositoryError::Invalid(format!("a block table {why}"))
}

/// A pack holds far fewer blocks than `RUN_LIMIT`.
fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

fn take<const N: usize>(input: &mut &[u8]) -> Result<[u8; N], RepositoryError> {
    let (head, rest) = input
        .split_first_chunk::<N>()
        .ok_or_else(|| bad("ends too early"))?;
    *input = rest;
    Ok(*head)
}

fn take_u32(input: &mut &[u8]) -> Result<u32, RepositoryError> {
    take(input).map(u32::from_le_bytes)
}

fn take_count(input: &mut &[u8]) -> Result<usize, RepositoryError> {
    match take_u32(input)? {
        n if n <= RUN_LIMIT => Ok(n as usize),
        n => Err(bad(&format!("claims {n} blocks in one run"))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn decode_reverses_encode(items in proptest::collection::vec((any::<bool>(), 1u32..3, any::<[u8; 32]>()), 0..60)) {
            let mut table = BlockTable::default();
            for (page, unit, id) in items {
                if page {
                    table.push_page(unit * 4096, id[..8].try_into().unwrap());
                } else {
                    table.push_block(unit * 100, id);
                }
            }
            prop_assert_eq!(BlockTable::decode(&table.encode()).unwrap(), table);
        }

        #[test]
        fn any_bytes_decode_or_fail_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut with_magic = MAGIC.to_vec();
            with_magic.extend_from_slice(&bytes);
            let _decoded_or_refused = BlockTable::decode(&with_magic).is_ok();
        }
    }
}
