//! `global/pg_control`: read right, or not at all.
//!
//! The server writes its `ControlFileData` (`src/include/catalog/pg_control.h`) in place, so a reader beside
//! it can meet a torn one; the CRC-32C at its end tells.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::wal::{Lsn, SegmentSize};

/// The file is written with this length, zero-padded (`PG_CONTROL_FILE_SIZE`).
const FILE_BYTES: u64 = 8192;

/// How long a torn file is read again before it counts as damaged: writing it takes microseconds.
const RETRY_FOR: Duration = Duration::from_secs(5);

/// A control file whose checksum is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlFile {
    pub system_identifier: u64,
    pub control_version: u32,
    pub catalog_version: u32,
    /// Whether the server was shut down in order when this was written.
    pub state: State,
    /// Where the latest checkpoint record lies.
    pub checkpoint: Lsn,
    /// Where replay from that checkpoint begins.
    pub redo: Lsn,
    /// The timeline of that checkpoint.
    pub timeline: u32,
    pub max_connections: u32,
    pub block_bytes: u32,
    /// How many blocks a relation's file has before the next one begins.
    pub segment_blocks: u32,
    /// `None` for what is no size of a segment.
    pub segment_size: Option<SegmentSize>,
    pub page_checksums: bool,
    /// The file as read.
    pub bytes: Vec<u8>,
}

/// `DBState`, as far as it matters for a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nothing has to be replayed.
    ShutDown,
    /// The same of a standby, which was still replaying.
    ShutDownInRecovery,
    /// It runs, starts, stops, or was killed.
    Running,
}

impl State {
    const fn of(number: u32) -> Self {
        match number {
            1 => Self::ShutDown,
            2 => Self::ShutDownInRecovery,
            _ => Self::Running,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("cannot read {}: {source}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("it has {0} bytes, too few for a control file")]
    Short(usize),
    #[error(
        "its format is {0}, which is none of PostgreSQL 13 to 18: use a version of this program that knows this server"
    )]
    UnknownVersion(u32),
    #[error("its checksum is wrong: the file is damaged, or was caught while it was written")]
    Checksum,
}

impl ControlFile {
    /// Reads the file below a data directory, again and again while it is torn. Blocks.
    pub fn read(data: &Path) -> Result<Self, ControlError> {
        let path = data.join("global/pg_control");
        let deadline = Instant::now() + RETRY_FOR;
        loop {
            let bytes = read_bounded(&path)?;
            match Self::parse(bytes) {
                Err(ControlError::Checksum | ControlError::Short(_))
                    if Instant::now() < deadline =>
                {
                    std::thread::sleep(Duration::from_millis(2));
                }
                result => return result,
            }
        }
    }

    /// Checks and takes apart what was read.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, ControlError> {
        let short = || ControlError::Short(bytes.len());
        let control_version = u32_at(&bytes, 8).ok_or_else(short)?;
        let crc_offset = match control_version {
            // 13 to 16, and 17.
            1300 | 1700 => 288,
            // 18 added `default_char_signedness`.
            1800 => 292,
            other => return Err(ControlError::UnknownVersion(other)),
        };
        let covered = bytes.get(..crc_offset).ok_or_else(short)?;
        let stored = u32_at(&bytes, crc_offset).ok_or_else(short)?;
        if crc32c::crc32c(covered) != stored {
            return Err(ControlError::Checksum);
        }
        // Fields before the checksum stand where they stood in 13, in all versions.
        let number = |offset| u32_at(&bytes, offset).ok_or_else(short);
        let position = |offset| u64_at(&bytes, offset).map(Lsn).ok_or_else(short);
        Ok(Self {
            system_identifier: u64_at(&bytes, 0).ok_or_else(short)?,
            control_version,
            catalog_version: number(12)?,
            state: State::of(number(16)?),
            checkpoint: position(32)?,
            redo: position(40)?,
            timeline: number(48)?,
            max_connections: number(180)?,
            block_bytes: number(216)?,
            segment_blocks: number(220)?,
            segment_size: SegmentSize::new(number(228)?.into()),
            page_checksums: number(252)? != 0,
            bytes,
        })
    }
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, ControlError> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(FILE_BYTES).read_to_end(&mut bytes))
        .map_err(|source| ControlError::Read {
            path: path.to_owned(),
            source,
        })?;
    Ok(bytes)
}

/// The server writes its files in its machine's byte order, which is ours.
pub(super) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    let field = bytes.get(offset..offset.checked_add(2)?)?;
    field.try_into().ok().map(u16::from_ne_bytes)
}

pub(super) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    let field = bytes.get(offset..offset.checked_add(4)?)?;
    field.try_into().ok().map(u32::from_ne_bytes)
}

pub(super) fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    let field = bytes.get(offset..offset.checked_add(8)?)?;
    field.try_into().ok().map(u64::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use super::*;

    /// The first 512 bytes, which hold everything, of the file each major version's `initdb` writes.
    const REAL: [(u32, u64, u64, &[u8]); 6] = [
        (
            1300,
            7_711_137_677_371_799_609,
            0x15C_4948,
            include_bytes!("../../../tests/fixtures/postgres/pg_control-13"),
        ),
        (
            1300,
            7_711_137_686_211_545_292,
            0x16E_FE00,
            include_bytes!("../../../tests/fixtures/postgres/pg_control-14"),
        ),
        (
            1300,
            7_711_137_733_069_187_512,
            0x150_0718,
            include_bytes!("../../../tests/fixtures/postgres/pg_control-15"),
        ),
        (
            1300,
            7_711_137_695_332_378_979,
            0x14D_DE18,
            include_bytes!("../../../tests/fixtures/postgres/pg_control-16"),
        ),
        (
            1700,
            7_711_137_711_287_294_341,
            0x14D_89F0,
            include_bytes!("../../../tests/fixtures/postgres/pg_control-17"),
        ),
        (
            1800,
            7_711_137_719_487_052_191,
            0x174_B290,
            include_bytes!("../../../tests/fixtures/postgres/pg_control-18"),
        ),
    ];

    #[test]
    fn control_files_of_13_to_18_are_read() {
        for (version, system_identifier, checkpoint, bytes) in REAL {
            let control = ControlFile::parse(bytes.to_vec()).unwrap();
            assert_eq!(control.control_version, version);
            assert_eq!(control.system_identifier, system_identifier);
            assert_eq!(control.checkpoint, Lsn(checkpoint));
            assert!(control.catalog_version > 202_000_000);
            // As `initdb` leaves a cluster: shut down, with these defaults.
            assert_eq!(control.state, State::ShutDown);
            assert_eq!((control.redo, control.timeline), (control.checkpoint, 1));
            assert_eq!((control.max_connections, control.block_bytes), (100, 8192));
            assert_eq!(control.segment_blocks, 131_072);
            assert_eq!(control.segment_size.unwrap().bytes() % (1 << 20), 0);
        }
    }

    #[test]
    fn a_torn_control_file_is_refused_wherever_it_is_torn() {
        for (version, _, _, bytes) in REAL {
            let end = if version == 1800 { 296 } else { 292 };
            for offset in (0..end).filter(|o| !(8..12).contains(o)) {
                let mut torn = bytes.to_vec();
                torn[offset] ^= 1;
                assert!(
                    matches!(ControlFile::parse(torn), Err(ControlError::Checksum)),
                    "version {version}, byte {offset}"
                );
            }
        }
    }

    #[test]
    fn short_and_unknown_control_files_are_refused() {
        let whole = REAL[2].3.to_vec();
        for length in [0, 9, 287, 290] {
            assert!(matches!(
                ControlFile::parse(whole[..length].to_vec()),
                Err(ControlError::Short(_))
            ));
        }
        let mut future = whole;
        future[8..12].copy_from_slice(&2600_u32.to_ne_bytes());
        assert!(matches!(
            ControlFile::parse(future),
            Err(ControlError::UnknownVersion(2600))
        ));
    }

    #[test]
    fn a_control_file_is_found_below_the_data_directory() {
        let data = tempfile::tempdir().unwrap();
        let missing = ControlFile::read(data.path()).unwrap_err().to_string();
        assert!(missing.contains("global/pg_control"), "{missing}");
        std::fs::create_dir(data.path().join("global")).unwrap();
        std::fs::write(data.path().join("global/pg_control"), REAL[3].3).unwrap();
        assert_eq!(
            ControlFile::read(data.path()).unwrap().system_identifier,
            REAL[3].1
        );
    }
}
