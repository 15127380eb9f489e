//! A base backup, as the beginning of recovery.

use jiff::Timestamp;

use crate::repository::manifest::{ArchiveRecord, Manifest};
use crate::services::postgres::facts::Facts;
use crate::services::postgres::wal::{Lsn, SegmentSize};

/// A base backup of one cluster.
pub struct Base<'a> {
    pub manifest: &'a Manifest,
    pub record: &'a ArchiveRecord,
    pub system: u64,
    pub timeline: u32,
    pub stop: u64,
    /// Its own WAL goes on to here: ending a backup ends the segment, and that is in the backup as a whole.
    pub covered: u64,
    pub stopped: Timestamp,
    pub size: SegmentSize,
}

impl<'a> Base<'a> {
    /// Of a backup's archive; `None` when it is none that WAL can be replayed after.
    pub fn of(manifest: &'a Manifest, archive: &str) -> Option<Self> {
        let record = manifest.archive(archive)?;
        let facts = Facts::of(&record.report).ok()?;
        if facts.copied.is_some() {
            return None;
        }
        let stop = Lsn::parse(&facts.stop_lsn)?;
        let size = SegmentSize::new(facts.wal_segment_bytes)?;
        Some(Self {
            manifest,
            record,
            system: facts.system_identifier.parse().ok()?,
            timeline: facts.timeline,
            stop: stop.0,
            covered: size.start_of(size.segment_before(stop) + 1).0,
            stopped: facts.stopped.parse().unwrap_or(record.point.at),
            size,
        })
    }

    /// Where the segment begins that the backup ends in: recovery reads it from there.
    pub fn segment(&self) -> u64 {
        self.size.start_of(self.size.segment_at(Lsn(self.stop))).0
    }
}
