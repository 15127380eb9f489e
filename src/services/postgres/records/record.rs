//! What is known of a record.

use jiff::Timestamp;

use crate::services::postgres::control::{u32_at, u64_at};
use crate::services::postgres::wal::Lsn;

/// One record of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub start: Lsn,
    /// Where the next record can begin; a page header may stand there. After a switch, where the next
    /// segment begins.
    pub end: Lsn,
    /// Where the record before it begins.
    pub previous: Lsn,
    /// The transaction that wrote it, 0 for none.
    pub xid: u32,
    /// `xl_rmid`: whose record it is.
    pub resource_manager: u8,
    /// `xl_info`: which of its records.
    pub info: u8,
    /// Its length without page headers and padding.
    pub bytes: u32,
    /// How many of them are images of pages.
    pub image_bytes: u32,
    pub kind: Kind,
}

impl Record {
    /// What ended here, of a record that ends a transaction.
    pub const fn ending(&self) -> Option<Ending> {
        let (committed, time, xid) = match self.kind {
            Kind::Commit { time, xid } | Kind::CommitPrepared { time, xid } => (true, time, xid),
            Kind::Abort { time, xid } | Kind::AbortPrepared { time, xid } => (false, time, xid),
            _ => return None,
        };
        Some(Ending {
            committed,
            time,
            xid,
        })
    }
}

/// The end of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    pub committed: bool,
    /// By the server's clock; not in order in the log.
    pub time: Timestamp,
    /// Of a prepared transaction, its own and not that of the session that ended it.
    pub xid: u32,
}

/// What a record says, as far as a point in time is chosen by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Commit {
        time: Timestamp,
        xid: u32,
    },
    /// `xid` is that of the prepared transaction.
    CommitPrepared {
        time: Timestamp,
        xid: u32,
    },
    Abort {
        time: Timestamp,
        xid: u32,
    },
    AbortPrepared {
        time: Timestamp,
        xid: u32,
    },
    /// `PREPARE TRANSACTION`; nothing is visible yet.
    Prepare,
    /// `pg_create_restore_point`.
    RestorePoint {
        time: Timestamp,
        name: String,
    },
    Checkpoint {
        timeline: u32,
        previous_timeline: u32,
    },
    /// What a server writes first when it is promoted.
    EndOfRecovery {
        timeline: u32,
        previous_timeline: u32,
    },
    /// The rest of the segment is empty.
    Switch,
    /// Stands in place of the rest of a record that was lost in a crash.
    Overwrite {
        lost: Lsn,
    },
    Other,
}

/// `SizeOfXLogRecord`; the checksum, its last field, does not cover itself.
pub(super) const HEAD_BYTES: usize = 24;
pub(super) const CHECKSUM_AT: usize = 20;

/// `XLogRecord`.
pub(super) struct Head {
    pub total: u32,
    pub xid: u32,
    pub previous: Lsn,
    pub info: u8,
    pub resource_manager: u8,
    pub checksum: u32,
}

impl Head {
    pub(super) fn of(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            total: u32_at(bytes, 0)?,
            xid: u32_at(bytes, 4)?,
            previous: Lsn(u64_at(bytes, 8)?),
            info: *bytes.get(16)?,
            resource_manager: *bytes.get(17)?,
            checksum: u32_at(bytes, CHECKSUM_AT)?,
        })
    }
}
