//! The header that every page of the log begins with.

use crate::services::postgres::control::{u16_at, u32_at, u64_at};
use crate::services::postgres::wal::{Lsn, SegmentSize};

/// `XLogPageHeaderData`, and `XLogLongPageHeaderData` at the beginning of a segment (`xlog_internal.h`).
const SHORT_BYTES: u64 = 24;
const LONG_BYTES: u64 = 40;

/// `xlp_info`.
const CONTINUES: u16 = 0x0001;
const LONG: u16 = 0x0002;
const OVERWRITTEN: u16 = 0x0008;
const ALL_FLAGS: u16 = 0x000F;

/// `XLOG_BLCKSZ` that PostgreSQL can be built with.
const PAGE_BYTES: std::ops::RangeInclusive<u32> = 1 << 10..=1 << 16;

/// What differs between the versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Format {
    /// The bits of `bimg_info` that say that an image is compressed.
    pub compressed: u8,
    /// Bytes of an `xl_xact_stats_item`.
    pub dropped_statistics_bytes: u32,
}

impl Format {
    /// The format that goes with a page's `XLOG_PAGE_MAGIC`.
    const fn of(magic: u16) -> Option<Self> {
        let (compressed, dropped_statistics_bytes) = match magic {
            // 13 and 14; they have no such items.
            0xD106 | 0xD10D => (0x02, 0),
            // 15, 16 and 17: a bit for each of pglz, lz4 and zstd.
            0xD110 | 0xD113 | 0xD116 => (0x1C, 12),
            // 18 made the objects' ids twice as long.
            0xD118 => (0x1C, 16),
            _ => return None,
        };
        Some(Self {
            compressed,
            dropped_statistics_bytes,
        })
    }
}

/// What a page begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Continuation {
    None,
    /// The rest of a record, of which so many bytes are still to come.
    Of(u32),
    /// A record in place of the rest of another one.
    Overwritten,
}

pub(super) struct Page {
    /// With its header.
    pub bytes: u64,
    pub continuation: Continuation,
}

pub(super) enum PageError {
    /// The page has not been written since the file was made or recycled.
    Unwritten,
    Foreign(String),
}

/// What the pages of one log have in common.
pub(super) struct Pages {
    segment_size: SegmentSize,
    timeline: u32,
    /// Of the page before.
    newest_timeline: u32,
    system_identifier: Option<u64>,
    /// As the first page has it.
    shape: Option<Shape>,
}

#[derive(Clone, Copy)]
struct Shape {
    magic: u16,
    page_bytes: u32,
    format: Format,
}

impl Pages {
    pub(super) const fn new(
        segment_size: SegmentSize,
        timeline: u32,
        system_identifier: Option<u64>,
    ) -> Self {
        Self {
            segment_size,
            timeline,
            newest_timeline: 0,
            system_identifier,
            shape: None,
        }
    }

    /// The length of the header of the page that begins at `at`.
    pub(super) const fn header_bytes(&self, at: Lsn) -> u64 {
        if at.0.is_multiple_of(self.segment_size.bytes()) {
            LONG_BYTES
        } else {
            SHORT_BYTES
        }
    }

    pub(super) const fn segment_end(&self, lsn: Lsn) -> Lsn {
        Lsn(lsn.0.next_multiple_of(self.segment_size.bytes()))
    }

    /// Of the pages so far; there is one before there can be a record.
    pub(super) fn format(&self) -> Format {
        self.shape.map_or(
            Format {
                compressed: 0,
                dropped_statistics_bytes: 0,
            },
            |shape| shape.format,
        )
    }

    /// Takes a header apart that has the length of [`Pages::header_bytes`] (`XLogReaderValidatePageHeader`).
    pub(super) fn check(&mut self, header: &[u8], at: Lsn) -> Result<Page, PageError> {
        let fields = || {
            Some((
                u16_at(header, 0)?,
                u16_at(header, 2)?,
                u32_at(header, 4)?,
                u64_at(header, 8)?,
                u32_at(header, 16)?,
            ))
        };
        let foreign = |why: String| Err(PageError::Foreign(why));
        let Some((magic, info, timeline, address, remaining)) = fields() else {
            return foreign("the page header is cut off".to_owned());
        };
        if header.iter().all(|byte| *byte == 0) {
            return Err(PageError::Unwritten);
        }
        if magic & 0xFF00 != 0xD100 || info & !ALL_FLAGS != 0 {
            return foreign("no page of the log begins here".to_owned());
        }
        if address < at.0 {
            return Err(PageError::Unwritten);
        }
        if address > at.0 {
            return foreign(format!("the page says that it is that of {}", Lsn(address)));
        }
        if timeline > self.timeline {
            return foreign(format!(
                "the page belongs to timeline {timeline}, after {}",
                self.timeline
            ));
        }
        if timeline < self.newest_timeline {
            return foreign(format!(
                "the page belongs to timeline {timeline}, the one before it to {}",
                self.newest_timeline
            ));
        }
        let page_bytes = self
            .check_shape(header, at, magic, info)
            .map_err(PageError::Foreign)?;
        self.newest_timeline = timeline;
        let continuation = if info & OVERWRITTEN != 0 {
            Continuation::Overwritten
        } else if info & CONTINUES != 0 {
            if remaining == 0 {
                return foreign("the page continues a record with no bytes".to_owned());
            }
            Continuation::Of(remaining)
        } else {
            Continuation::None
        };
        Ok(Page {
            bytes: page_bytes.into(),
            continuation,
        })
    }

    /// Compares what is the same on all pages; returns their length.
    fn check_shape(
        &mut self,
        header: &[u8],
        at: Lsn,
        magic: u16,
        info: u16,
    ) -> Result<u32, String> {
        let long = self.header_bytes(at) == LONG_BYTES;
        if (info & LONG != 0) != long {
            return Err("the page header has the wrong length".to_owned());
        }
        if let Some(shape) = self.shape
            && shape.magic != magic
        {
            return Err(format!(
                "the page has the format {magic:04X}, those before it {:04X}",
                shape.magic
            ));
        }
        if !long {
            return self
                .shape
                .map(|shape| shape.page_bytes)
                .ok_or_else(|| "it is not the beginning of a segment".to_owned());
        }
        let format = Format::of(magic).ok_or_else(|| {
            format!(
                "the page has the format {magic:04X}, which is none of PostgreSQL 13 to 18: \
                 use a version of this program that knows this server"
            )
        })?;
        let cut_off = || "the page header is cut off".to_owned();
        let system_identifier = u64_at(header, 24).ok_or_else(cut_off)?;
        let segment_bytes = u32_at(header, 32).ok_or_else(cut_off)?;
        let page_bytes = u32_at(header, 36).ok_or_else(cut_off)?;
        if let Some(expected) = self.system_identifier
            && system_identifier != expected
        {
            return Err(format!(
                "the page belongs to the cluster {system_identifier} instead of {expected}"
            ));
        }
        if u64::from(segment_bytes) != self.segment_size.bytes() {
            return Err(format!(
                "the page is of a cluster with segments of {segment_bytes} bytes"
            ));
        }
        let same = self
            .shape
            .is_none_or(|shape| shape.page_bytes == page_bytes);
        if !same || !page_bytes.is_power_of_two() || !PAGE_BYTES.contains(&page_bytes) {
            return Err(format!("the page says that it has {page_bytes} bytes"));
        }
        self.system_identifier = Some(system_identifier);
        self.shape = Some(Shape {
            magic,
            page_bytes,
            format,
        });
        Ok(page_bytes)
    }
}
