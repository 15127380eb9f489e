//! What follows a record's header: the headers of its parts, then the parts (`xlogrecord.h`).
//!
//! ```text
//! block header (id 0 to 32), [image header], [relation], block number   for each block
//! 253 origin, 252 top-level transaction, 255 or 254 length of the main data
//! image and data of each block
//! main data
//! ```

use super::Kind;
use super::ending::{EndingFields, timestamp};
use super::page::Format;
use crate::services::postgres::control::{u16_at, u32_at, u64_at};
use crate::services::postgres::wal::Lsn;

/// Enough for the headers of 33 blocks, the most there can be, with everything that can go with them.
const HEADERS_BYTES: usize = 1024;

/// `xl_rmid` of the records that are looked into (`rmgrlist.h`).
const XLOG: u8 = 0;
const TRANSACTION: u8 = 1;

/// What a record said.
pub(super) struct Decoded {
    pub kind: Kind,
    pub image_bytes: u32,
}

/// The record that is coming in, without its header.
#[derive(Default)]
pub(super) struct Body {
    left: u32,
    checksum: u32,
    format: Option<Format>,
    /// Its first bytes, in which the headers of its parts are.
    front: Vec<u8>,
    front_bytes: usize,
    /// Known once all of `front` is there.
    parts: Option<Result<Parts, &'static str>>,
    /// Bytes of blocks still to come before the main data.
    skip: u64,
    main: Main,
}

/// What is wanted of the main data.
#[derive(Default)]
enum Main {
    #[default]
    Nothing,
    Switch,
    Prepare,
    Ending(EndingFields),
    /// Its first bytes.
    Fields {
        of: Fields,
        bytes: Vec<u8>,
    },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fields {
    Checkpoint,
    EndOfRecovery,
    RestorePoint,
    Overwrite,
}

impl Fields {
    const fn bytes(self) -> usize {
        match self {
            // `CheckPoint` begins with `redo`, `xl_end_of_recovery` with the time; then the same.
            Self::Checkpoint | Self::EndOfRecovery => 16,
            // The time, and a name of `MAXFNAMELEN`.
            Self::RestorePoint => 8 + 64,
            // The position; the time follows.
            Self::Overwrite => 8,
        }
    }
}

impl Main {
    /// `pg_control.h` and `xact.h` have the numbers.
    fn of(format: Format, resource_manager: u8, info: u8) -> Self {
        let fields = |of| Self::Fields {
            of,
            bytes: Vec::new(),
        };
        match (resource_manager, info & 0xF0) {
            (XLOG, 0x00 | 0x10) => fields(Fields::Checkpoint),
            (XLOG, 0x40) => Self::Switch,
            (XLOG, 0x70) => fields(Fields::RestorePoint),
            (XLOG, 0x90) => fields(Fields::EndOfRecovery),
            (XLOG, 0xD0) => fields(Fields::Overwrite),
            (TRANSACTION, _) => match info & 0x70 {
                0x10 => Self::Prepare,
                operation @ (0x00 | 0x20 | 0x30 | 0x40) => {
                    Self::Ending(EndingFields::new(format, operation, info & 0x80 != 0))
                }
                _ => Self::Nothing,
            },
            _ => Self::Nothing,
        }
    }

    fn push(&mut self, data: &[u8]) {
        match self {
            Self::Nothing | Self::Switch | Self::Prepare => {}
            Self::Ending(fields) => fields.push(data),
            Self::Fields { of, bytes } => {
                let missing = of.bytes().saturating_sub(bytes.len());
                bytes.extend_from_slice(data.get(..missing).unwrap_or(data));
            }
        }
    }

    fn kind(&self, xid: u32) -> Option<Kind> {
        Some(match self {
            Self::Nothing => Kind::Other,
            Self::Switch => Kind::Switch,
            Self::Prepare => Kind::Prepare,
            Self::Ending(fields) => fields.kind(xid)?,
            Self::Fields { of, bytes } if bytes.len() == of.bytes() => match of {
                Fields::Checkpoint => Kind::Checkpoint {
                    timeline: u32_at(bytes, 8)?,
                    previous_timeline: u32_at(bytes, 12)?,
                },
                Fields::EndOfRecovery => Kind::EndOfRecovery {
                    timeline: u32_at(bytes, 8)?,
                    previous_timeline: u32_at(bytes, 12)?,
                },
                Fields::RestorePoint => Kind::RestorePoint {
                    time: timestamp(u64_at(bytes, 0)?.cast_signed()),
                    name: until_zero(bytes.get(8..)?),
                },
                Fields::Overwrite => Kind::Overwrite {
                    lost: Lsn(u64_at(bytes, 0)?),
                },
            },
            Self::Fields { .. } => return None,
        })
    }
}

fn until_zero(bytes: &[u8]) -> String {
    let name = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(name).into_owned()
}

impl Body {
    /// Starts with the next record, of whose body `length` bytes are to come.
    pub(super) fn begin(&mut self, format: Format, resource_manager: u8, info: u8, length: u32) {
        self.left = length;
        self.checksum = 0;
        self.format = Some(format);
        self.front.clear();
        self.front_bytes = (length as usize).min(HEADERS_BYTES);
        self.parts = None;
        self.skip = 0;
        self.main = Main::of(format, resource_manager, info);
        if length == 0 {
            self.parts = Some(Ok(Parts::default()));
        }
    }

    /// How many bytes are to come.
    pub(super) const fn left(&self) -> u32 {
        self.left
    }

    /// Takes what comes next; no more than is left.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.left = self
            .left
            .saturating_sub(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        self.checksum = crc32c::crc32c_append(self.checksum, bytes);
        if self.parts.is_some() {
            self.push_parts(bytes);
            return;
        }
        let missing = self.front_bytes.saturating_sub(self.front.len());
        let (front, rest) = bytes.split_at_checked(missing).unwrap_or((bytes, &[]));
        self.front.extend_from_slice(front);
        if self.front.len() < self.front_bytes {
            return;
        }
        let length = self.front.len() + rest.len() + self.left as usize;
        let compressed = self.format.map_or(0, |format| format.compressed);
        let parts = Parts::of(&self.front, length as u64, compressed);
        self.parts = Some(parts);
        if let Ok(parts) = parts {
            self.skip = parts.before_main;
            let front = std::mem::take(&mut self.front);
            self.push_parts(&front);
            self.front = front;
        }
        self.push_parts(rest);
    }

    fn push_parts(&mut self, bytes: &[u8]) {
        let skipped = usize::try_from(self.skip)
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        self.skip -= skipped as u64;
        self.main.push(bytes.get(skipped..).unwrap_or_default());
    }

    /// The checksum as the record has it: of the body, then of the header.
    pub(super) fn checksum_with(&self, header: &[u8]) -> u32 {
        crc32c::crc32c_append(self.checksum, header)
    }

    /// What a record says whose checksum is right.
    pub(super) fn decoded(&self, xid: u32) -> Result<Decoded, &'static str> {
        let parts = self.parts.unwrap_or(Err("the record is cut off"))?;
        let kind = self
            .main
            .kind(xid)
            .ok_or("the record is shorter than its fields")?;
        Ok(Decoded {
            kind,
            image_bytes: parts.image_bytes,
        })
    }
}

/// `BKPBLOCK_*`.
const HAS_IMAGE: u8 = 0x10;
const SAME_RELATION: u8 = 0x80;
/// `BKPIMAGE_HAS_HOLE`.
const HAS_HOLE: u8 = 0x01;
/// `XLR_MAX_BLOCK_ID`, and `XLR_BLOCK_ID_*`.
const MOST_BLOCKS: u8 = 32;
const DATA_SHORT: u8 = 255;
const DATA_LONG: u8 = 254;
const ORIGIN: u8 = 253;
const TOP_LEVEL: u8 = 252;

/// How a record's body is divided.
#[derive(Default, Clone, Copy)]
struct Parts {
    /// Headers and blocks.
    before_main: u64,
    image_bytes: u32,
}

impl Parts {
    /// Reads the headers of the parts of a record (`DecodeXLogRecord`) whose body has `length` bytes and
    /// begins with `front`.
    fn of(front: &[u8], length: u64, compressed: u8) -> Result<Self, &'static str> {
        let mut cursor = Cursor(front);
        let mut blocks = Blocks::default();
        let mut main = 0;
        loop {
            let headers = (front.len() - cursor.0.len()) as u64;
            let data = blocks.data_bytes + main;
            if headers + data == length {
                return Ok(Self {
                    before_main: length - main,
                    image_bytes: blocks.image_bytes,
                });
            }
            if headers + data > length || main > 0 {
                return Err("the lengths of the record's parts do not add up to its own");
            }
            match cursor.byte()? {
                DATA_SHORT => main = cursor.byte()?.into(),
                DATA_LONG => main = cursor.number()?.into(),
                ORIGIN => cursor.skip(2)?,
                TOP_LEVEL => cursor.skip(4)?,
                id @ 0..=MOST_BLOCKS => blocks.read(id, &mut cursor, compressed)?,
                _ => return Err("the record has a part of an unknown sort"),
            }
        }
    }
}

/// What the headers of blocks have said so far.
#[derive(Default)]
struct Blocks {
    /// Their ids only grow.
    next_id: u8,
    relation_known: bool,
    data_bytes: u64,
    image_bytes: u32,
}

impl Blocks {
    fn read(
        &mut self,
        id: u8,
        cursor: &mut Cursor<'_>,
        compressed: u8,
    ) -> Result<(), &'static str> {
        if id < self.next_id {
            return Err("the record's blocks are out of order");
        }
        self.next_id = id + 1;
        let flags = cursor.byte()?;
        self.data_bytes += u64::from(cursor.short()?);
        if flags & HAS_IMAGE != 0 {
            let image = cursor.short()?;
            cursor.skip(2)?;
            let about = cursor.byte()?;
            // The hole's length is only there where it cannot be told from the image's.
            if about & compressed != 0 && about & HAS_HOLE != 0 {
                cursor.skip(2)?;
            }
            self.data_bytes += u64::from(image);
            self.image_bytes += u32::from(image);
        }
        if flags & SAME_RELATION == 0 {
            cursor.skip(12)?;
            self.relation_known = true;
        } else if !self.relation_known {
            return Err("the record's first block is of the relation of the one before it");
        }
        cursor.skip(4)
    }
}

/// Takes fields off the front.
struct Cursor<'b>(&'b [u8]);

impl Cursor<'_> {
    fn skip(&mut self, bytes: usize) -> Result<(), &'static str> {
        self.0 = self
            .0
            .get(bytes..)
            .ok_or("the record ends within the headers of its parts")?;
        Ok(())
    }

    fn byte(&mut self) -> Result<u8, &'static str> {
        let value = self.0.first().copied().unwrap_or_default();
        self.skip(1).map(|()| value)
    }

    fn short(&mut self) -> Result<u16, &'static str> {
        let value = u16_at(self.0, 0).unwrap_or_default();
        self.skip(2).map(|()| value)
    }

    fn number(&mut self) -> Result<u32, &'static str> {
        let value = u32_at(self.0, 0).unwrap_or_default();
        self.skip(4).map(|()| value)
    }
}
