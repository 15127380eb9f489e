//! WAL positions, segment names and segment headers.
//!
//! Names are computed here: `pg_walfile_name` of a position on a segment's boundary means the segment before
//! it up to 16 and the one after it from 17.

use std::fmt;
use std::io::Read as _;
use std::path::Path;

use super::control::{u16_at, u32_at, u64_at};

/// A position in the write-ahead log, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// Parses `16/B374D848`.
    pub fn parse(text: &str) -> Option<Self> {
        let (high, low) = text.trim().split_once('/')?;
        let part = |s: &str| {
            let hex = (1..=8).contains(&s.len()) && s.bytes().all(|b| b.is_ascii_hexdigit());
            hex.then(|| u32::from_str_radix(s, 16).ok()).flatten()
        };
        Some(Self((u64::from(part(high)?) << 32) | u64::from(part(low)?)))
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// The size of a cluster's WAL segments (`initdb --wal-segsize`): a power of two, 1 MiB to 1 GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentSize(u64);

impl SegmentSize {
    pub fn new(bytes: u64) -> Option<Self> {
        (bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&bytes)).then_some(Self(bytes))
    }

    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// The number of the segment that holds the byte at `lsn`.
    pub const fn segment_at(self, lsn: Lsn) -> u64 {
        lsn.0 / self.0
    }

    /// The number of the segment that holds the last byte before `lsn`.
    pub const fn segment_before(self, lsn: Lsn) -> u64 {
        lsn.0.saturating_sub(1) / self.0
    }

    /// Where a segment begins.
    pub const fn start_of(self, segment: u64) -> Lsn {
        Lsn(segment * self.0)
    }

    /// The file name of a segment (`XLogFileName` in `xlog_internal.h`).
    pub fn name(self, timeline: u32, segment: u64) -> String {
        let per_id = (1_u64 << 32) / self.0;
        format!(
            "{timeline:08X}{:08X}{:08X}",
            segment / per_id,
            segment % per_id
        )
    }
}

/// Whether a file of `pg_wal` is a timeline history file (`IsTLHistoryFileName`).
pub fn is_history_name(name: &str) -> bool {
    name.strip_suffix(".history").is_some_and(|timeline| {
        timeline.len() == 8
            && timeline
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b))
    })
}

/// What a segment must say of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    pub timeline: u32,
    pub segment: u64,
    pub size: SegmentSize,
    pub system_identifier: u64,
}

/// Why a file is not the segment its name says.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    #[error(transparent)]
    Read(#[from] std::io::Error),
    #[error("{0}")]
    Foreign(String),
}

/// Bytes of `XLogLongPageHeaderData`, which every segment begins with.
const LONG_HEADER_BYTES: u64 = 40;
/// `XLP_LONG_HEADER` in `xlp_info`.
const LONG_HEADER_FLAG: u16 = 0x0002;

/// Reads a segment's header and compares it: `pg_wal` holds recycled files under names of the future, with
/// what they held before.
pub fn check_segment(path: &Path, expected: &Expected) -> Result<(), SegmentError> {
    let file = std::fs::File::open(path)?;
    let length = file.metadata()?.len();
    if length != expected.size.bytes() {
        return Err(SegmentError::Foreign(format!(
            "it has {length} bytes instead of {}",
            expected.size.bytes()
        )));
    }
    let mut header = Vec::new();
    file.take(LONG_HEADER_BYTES).read_to_end(&mut header)?;
    check_header(&header, expected).map_err(SegmentError::Foreign)
}

/// The timeline that a segment's first page was written on: an older one than its name's where the cluster
/// was promoted in the middle of it.
pub fn first_timeline(path: &Path) -> std::io::Result<Option<u32>> {
    let mut header = Vec::new();
    std::fs::File::open(path)?
        .take(LONG_HEADER_BYTES)
        .read_to_end(&mut header)?;
    Ok(u32_at(&header, 4))
}

/// Compares a long page header with what it must be; `Err` says what differs.
pub fn check_header(header: &[u8], expected: &Expected) -> Result<(), String> {
    let fields = || {
        Some((
            u16_at(header, 0)?,
            u16_at(header, 2)?,
            u32_at(header, 4)?,
            u64_at(header, 8)?,
            u64_at(header, 24)?,
            u32_at(header, 32)?,
        ))
    };
    let (magic, info, timeline, address, system_identifier, size) =
        fields().ok_or("it is shorter than a page header")?;
    // `XLOG_PAGE_MAGIC` has been 0xD1xx since 13; the rest changes with the major version.
    if magic & 0xFF00 != 0xD100 || info & LONG_HEADER_FLAG == 0 {
        return Err("it does not begin with a WAL page header".to_owned());
    }
    let start = expected.size.start_of(expected.segment);
    if address != start.0 {
        return Err(format!("it begins at {} instead of {start}", Lsn(address)));
    }
    if timeline != expected.timeline {
        return Err(format!(
            "it belongs to timeline {timeline} instead of {}",
            expected.timeline
        ));
    }
    if system_identifier != expected.system_identifier {
        return Err(format!(
            "it belongs to the cluster {system_identifier} instead of {}",
            expected.system_identifier
        ));
    }
    if u64::from(size) != expected.size.bytes() {
        return Err(format!("it is of a cluster with segments of {size} bytes"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn positions_are_parsed_and_printed() {
        assert_eq!(Lsn::parse("0/0"), Some(Lsn(0)));
        assert_eq!(Lsn::parse("16/B374D848"), Some(Lsn(0x16_B374_D848)));
        // From 19 on the low half is padded.
        assert_eq!(Lsn::parse("16/000000FF"), Some(Lsn(0x16_0000_00FF)));
        assert_eq!(Lsn(0x16_B374_D848).to_string(), "16/B374D848");
        for wrong in ["", "1", "/", "1/", "g/1", "1/123456789", "+1/2", "1/-2"] {
            assert_eq!(Lsn::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn only_sizes_that_initdb_allows_are_sizes() {
        for good in [1, 2, 16, 64, 1024] {
            assert!(SegmentSize::new(good * MIB).is_some());
        }
        for bad in [0, 1, MIB / 2, 3 * MIB, 2048 * MIB] {
            assert!(SegmentSize::new(bad).is_none());
        }
    }

    #[test]
    fn segments_are_named_as_the_server_names_them() {
        // The same is asked of real servers in `tests/postgres.rs`.
        let cases = [
            (1, 0x0_0150_0718_u64, 1, "000000010000000000000015"),
            (16, 0x0_0150_0718, 1, "000000010000000000000001"),
            (64, 0x0_0550_0718, 1, "000000010000000000000001"),
            (1, 0x1_0000_0001, 2, "000000020000000100000000"),
            (16, 0x16_B374_D848, 0x1F, "0000001F00000016000000B3"),
            (64, 0x16_B374_D848, 1, "00000001000000160000002C"),
            (1, 0x16_FFFF_FFFF, 1, "000000010000001600000FFF"),
            (16, 0x16_FFFF_FFFF, 1, "0000000100000016000000FF"),
            (64, 0x16_FFFF_FFFF, 1, "00000001000000160000003F"),
        ];
        for (mib, lsn, timeline, name) in cases {
            let size = SegmentSize::new(mib * MIB).unwrap();
            assert_eq!(size.name(timeline, size.segment_at(Lsn(lsn))), name);
        }
    }

    #[test]
    fn a_stop_on_a_boundary_needs_the_segment_before_it() {
        let size = SegmentSize::new(16 * MIB).unwrap();
        let boundary = size.start_of(7);
        assert_eq!(size.segment_at(boundary), 7);
        assert_eq!(size.segment_before(boundary), 6);
        assert_eq!(size.segment_before(Lsn(boundary.0 + 1)), 7);
    }

    #[test]
    fn history_files_are_told_from_others() {
        assert!(is_history_name("00000002.history"));
        assert!(is_history_name("0000001F.history"));
        for other in [
            "00000002.history.tmp",
            "0000001f.history",
            "2.history",
            "000000010000000000000001",
            "archive_status",
        ] {
            assert!(!is_history_name(other), "{other}");
        }
    }

    fn header(timeline: u32, address: u64, system: u64, size: u32) -> Vec<u8> {
        let mut bytes = vec![0; 40];
        bytes[0..2].copy_from_slice(&0xD110_u16.to_ne_bytes());
        bytes[2..4].copy_from_slice(&LONG_HEADER_FLAG.to_ne_bytes());
        bytes[4..8].copy_from_slice(&timeline.to_ne_bytes());
        bytes[8..16].copy_from_slice(&address.to_ne_bytes());
        bytes[24..32].copy_from_slice(&system.to_ne_bytes());
        bytes[32..36].copy_from_slice(&size.to_ne_bytes());
        bytes
    }

    #[test]
    fn a_segment_is_taken_only_when_it_says_that_it_is_the_one() {
        let mib16 = 16 << 20;
        let expected = Expected {
            timeline: 1,
            segment: 5,
            size: SegmentSize::new(16 * MIB).unwrap(),
            system_identifier: 42,
        };
        let start = 5 * 16 * MIB;
        assert_eq!(
            check_header(&header(1, start, 42, mib16), &expected),
            Ok(())
        );
        for (foreign, word) in [
            // A recycled file: renamed ahead, with what it held before.
            (header(1, 2 * 16 * MIB, 42, mib16), "begins at 0/2000000"),
            (header(2, start, 42, mib16), "timeline 2"),
            (header(1, start, 43, mib16), "cluster 43"),
            (header(1, start, 42, 1 << 20), "1048576 bytes"),
            (vec![0; 40], "page header"),
            (vec![0; 10], "shorter"),
        ] {
            let why = check_header(&foreign, &expected).unwrap_err();
            assert!(why.contains(word), "{why}");
        }
    }

    #[test]
    fn a_segment_file_of_another_length_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("000000010000000000000005");
        let expected = Expected {
            timeline: 1,
            segment: 5,
            size: SegmentSize::new(MIB).unwrap(),
            system_identifier: 42,
        };
        assert!(matches!(
            check_segment(&path, &expected),
            Err(SegmentError::Read(_))
        ));
        let mut body = header(1, 5 * MIB, 42, 1 << 20);
        std::fs::write(&path, &body).unwrap();
        assert!(matches!(
            check_segment(&path, &expected),
            Err(SegmentError::Foreign(_))
        ));
        body.resize(1 << 20, 0);
        std::fs::write(&path, &body).unwrap();
        check_segment(&path, &expected).unwrap();
    }
}
