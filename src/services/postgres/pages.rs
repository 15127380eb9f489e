//! Page checksums, looked at while the pages are read: damage is found by the backup, not by the restore.
//!
//! As the server's own base backup does it (`basebackup.c`; the sum itself is `checksum_impl.h`'s): pages that
//! were never written are passed over, and so are those that changed since the backup began, which replaying
//! the WAL writes anew. A page that looks damaged may have been read while it was written, so it is read again
//! before it is believed to be.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::control::{u16_at, u32_at};
use super::wal::Lsn;
use crate::archive::Watch;

/// Between two looks at a page that the server may be writing.
const WRITTEN_WITHIN: Duration = Duration::from_millis(10);
/// In so many pages of a file damage is not taken for a page that is being written.
const DOUBTED_PAGES: usize = 16;
/// How many pages a report names.
const NAMED_PAGES: usize = 50;

/// What a cluster's pages are like, and when the backup began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRules {
    pub block_bytes: u32,
    pub start: Lsn,
}

/// A page whose checksum is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedPage {
    /// By its name in the archive.
    pub file: String,
    /// Within the file.
    pub block: u32,
}

/// What was found in all files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedPages {
    pub count: u64,
    /// The first of them.
    pub first: Vec<DamagedPage>,
}

impl DamagedPages {
    pub fn add(&mut self, file: &str, blocks: &[u32]) {
        self.count += blocks.len() as u64;
        let room = NAMED_PAGES.saturating_sub(self.first.len());
        self.first
            .extend(blocks.iter().take(room).map(|block| DamagedPage {
                file: file.to_owned(),
                block: *block,
            }));
    }

    /// The sentence for them; `None` when there are none.
    pub fn sentence(&self) -> Option<String> {
        let named = self
            .first
            .iter()
            .map(|page| format!("block {} of {}", page.block, page.file))
            .collect::<Vec<_>>()
            .join(", ");
        let more = match self.count.saturating_sub(self.first.len() as u64) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        (self.count > 0).then(|| {
            format!(
                "{} pages of the data directory have wrong checksums ({named}{more}): the disk or memory damaged them, and this backup holds them as they are. It is kept, and does not count as a good one: see which relations they are (SELECT oid::regclass FROM pg_class WHERE relfilenode = …), and restore from a backup of before the damage, or rebuild what is an index",
                self.count
            )
        })
    }
}

/// Looks at the pages of one file.
#[derive(Debug)]
pub struct PageCheck {
    rules: PageRules,
    /// The number of the file's first block in its relation, which its sum depends on.
    first_block: u32,
    pub damaged: Vec<u32>,
}

impl PageCheck {
    /// `segment_blocks`: how many blocks a file has at most before the relation goes on in another one.
    pub fn new(rules: PageRules, name: &str, segment_blocks: u32) -> Self {
        let number = name
            .rsplit_once('.')
            .and_then(|(_, number)| number.parse::<u32>().ok());
        Self {
            rules,
            first_block: number.unwrap_or(0).wrapping_mul(segment_blocks),
            damaged: Vec::new(),
        }
    }

    fn is_sound(&self, page: &[u8], block: u32) -> bool {
        let written_by = |page| {
            let (high, low) = (u32_at(page, 0)?, u32_at(page, 4)?);
            Some(Lsn((u64::from(high) << 32) | u64::from(low)))
        };
        let number = self.first_block.wrapping_add(block);
        // `pd_upper` is 0 until the page is written: then all of it must be.
        let is_new = u16_at(page, 14) == Some(0) && page.iter().all(|byte| *byte == 0);
        is_new
            || written_by(page).is_some_and(|lsn| lsn >= self.rules.start)
            || u16_at(page, 8) == Some(checksum(page, number))
    }

    /// Whether a page that looks damaged is, or was read while it was written.
    fn is_damaged(&self, file: &File, block: u32) -> bool {
        let mut page = vec![0; self.rules.block_bytes as usize];
        let offset = u64::from(block) * u64::from(self.rules.block_bytes);
        for pause in [Duration::ZERO, WRITTEN_WITHIN] {
            if !pause.is_zero() {
                if self.damaged.len() >= DOUBTED_PAGES {
                    break;
                }
                std::thread::sleep(pause);
            }
            match file.read_exact_at(&mut page, offset) {
                Ok(()) if !self.is_sound(&page, block) => {}
                // Sound, or gone with the end of a truncated file; what cannot be read fails the copy itself.
                _ => return false,
            }
        }
        true
    }
}

impl Watch for PageCheck {
    fn begin(&mut self) {
        self.damaged.clear();
    }

    fn piece(&mut self, file: &File, offset: u64, bytes: &[u8]) {
        let size = self.rules.block_bytes as usize;
        let first = offset / u64::from(self.rules.block_bytes).max(1);
        for (block, page) in (first..).zip(bytes.chunks_exact(size.max(1))) {
            let block = u32::try_from(block).unwrap_or(u32::MAX);
            if !self.is_sound(page, block) && self.is_damaged(file, block) {
                self.damaged.push(block);
            }
        }
    }

    fn approves(&self) -> bool {
        self.damaged.is_empty()
    }
}

const LANES: usize = 32;
const FNV_PRIME: u32 = 16_777_619;
/// `checksumBaseOffsets`.
const LANE_SEEDS: [u32; LANES] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

/// A row of the page: a word for each lane.
type Row = [[u8; 4]; LANES];

/// `pg_checksum_page`: of the page at this block of its relation, without what its own field says.
fn checksum(page: &[u8], block: u32) -> u16 {
    let mut lanes = LANE_SEEDS;
    let (rows, _) = page.as_chunks::<4>().0.as_chunks::<LANES>();
    if let [first, rest @ ..] = rows {
        let mut first = *first;
        // `pd_checksum` is the first half of the third word.
        if let Some([a, b, ..]) = first.get_mut(2) {
            (*a, *b) = (0, 0);
        }
        mix(&mut lanes, &first);
        for row in rest {
            mix(&mut lanes, row);
        }
    }
    let zeros = [[0; 4]; LANES];
    mix(&mut lanes, &zeros);
    mix(&mut lanes, &zeros);
    let folded = lanes.iter().fold(block, |sum, lane| sum ^ lane);
    // Never 0, which would mean that there is none.
    u16::try_from(folded % 65535 + 1).unwrap_or(u16::MAX)
}

fn mix(lanes: &mut [u32; LANES], row: &Row) {
    for (lane, word) in lanes.iter_mut().zip(row) {
        let mixed = *lane ^ u32::from_ne_bytes(*word);
        *lane = mixed.wrapping_mul(FNV_PRIME) ^ (mixed >> 17);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use super::*;

    const RULES: PageRules = PageRules {
        block_bytes: 8192,
        start: Lsn(0x5_0000_0000),
    };

    /// A page as the server would write it to this block.
    fn page(block: u32, lsn: u64) -> Vec<u8> {
        let mut page: Vec<u8> = (0..8192_u32).map(|i| (i * 7 % 251) as u8).collect();
        let half = |bits: u64| u32::try_from(bits & 0xFFFF_FFFF).unwrap().to_ne_bytes();
        page[..4].copy_from_slice(&half(lsn >> 32));
        page[4..8].copy_from_slice(&half(lsn));
        let sum = checksum(&page, block);
        page[8..10].copy_from_slice(&sum.to_ne_bytes());
        page
    }

    fn look(name: &str, body: &[u8]) -> Vec<u32> {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(body, 0).unwrap();
        let mut check = PageCheck::new(RULES, name, 131_072);
        check.begin();
        check.piece(&file, 0, body);
        assert_eq!(check.approves(), check.damaged.is_empty());
        check.damaged
    }

    #[test]
    fn one_flipped_bit_is_found_and_its_block_named() {
        let pages = [page(0, 9), page(1, 9), page(2, 9)];
        let mut body = pages.concat();
        assert_eq!(look("16384", &body), [0; 0]);
        for bit in [0, 77, 8192 * 8 - 1] {
            // Not the position, where it would look like a change since the backup began.
            let at = 8192 + 8 + bit % (8184 * 8) / 8;
            body[at] ^= 1 << (bit % 8);
            assert_eq!(look("16384", &body), [1], "bit {bit}");
            body[at] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn a_page_in_the_wrong_place_is_damaged() {
        let swapped = [page(1, 9), page(0, 9)].concat();
        assert_eq!(look("16384", &swapped), [0, 1]);
        // The third file of a relation goes on counting.
        assert_eq!(look("16384.2", &page(2 * 131_072, 9)), [0; 0]);
        assert_eq!(look("16384.2", &page(0, 9)), [0]);
    }

    #[test]
    fn new_pages_and_those_the_wal_writes_anew_are_passed_over() {
        assert_eq!(look("16384", &[0; 8192]), [0; 0]);
        let mut changed = page(0, RULES.start.0);
        changed[100] ^= 1;
        assert_eq!(look("16384", &changed), [0; 0]);
        let mut before = page(0, RULES.start.0 - 1);
        before[100] ^= 1;
        assert_eq!(look("16384", &before), [0]);
        // Neither new nor written.
        let mut torn = vec![0; 8192];
        torn[5000] = 1;
        assert_eq!(look("16384", &torn), [0]);
        // The end of a file that is being extended.
        assert_eq!(look("16384", &page(0, 9)[..4096]), [0; 0]);
    }

    #[test]
    fn a_page_that_was_read_while_it_was_written_is_read_again() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&page(0, 9), 0).unwrap();
        let mut torn = page(0, 9);
        torn[6000] ^= 1;
        let mut check = PageCheck::new(RULES, "1259_vm", 131_072);
        check.piece(&file, 0, &torn);
        assert_eq!(check.damaged, [0; 0]);
        // Truncated since.
        file.set_len(0).unwrap();
        check.piece(&file, 0, &torn);
        assert_eq!(check.damaged, [0; 0]);
    }

    #[test]
    fn reports_name_the_first_pages_and_count_all() {
        let mut pages = DamagedPages::default();
        assert_eq!(pages.sentence(), None);
        pages.add("base/5/16384", &[3, 7]);
        pages.add("base/5/16385", &(0..100).collect::<Vec<_>>());
        let said = pages.sentence().unwrap();
        assert!(said.starts_with("102 pages"), "{said}");
        assert!(said.contains("block 7 of base/5/16384"), "{said}");
        assert!(said.contains("and 52 more"), "{said}");
    }
}
