//! Records that end a transaction (`xl_xact_commit` and `xl_xact_abort` in `xact.h`).
//!
//! They can have a list of every subtransaction and of every relation dropped, before the one number that is
//! wanted; so nothing is kept but the field that is coming in.

use jiff::Timestamp;

use super::Kind;
use super::page::Format;
use crate::services::postgres::control::{u32_at, u64_at};

/// What can stand before a prepared transaction's xid, in this order: the flag in `xinfo`, and the bytes of
/// one item of a list, or of it all (`ParseCommitRecord`).
const DATABASE: u32 = 1 << 0;
const SUBTRANSACTIONS: u32 = 1 << 1;
const RELATIONS: u32 = 1 << 2;
const DROPPED_STATISTICS: u32 = 1 << 8;
const INVALIDATIONS: u32 = 1 << 3;
const PREPARED: u32 = 1 << 4;

/// What is read next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Time,
    Flags,
    /// How many items a list has, each of so many bytes.
    Count {
        item_bytes: u32,
    },
    Xid,
    Done,
    /// The record says what cannot be.
    Failed,
}

pub(super) struct EndingFields {
    format: Format,
    /// `XLOG_XACT_OPMASK` of its info.
    operation: u8,
    has_flags: bool,
    step: Step,
    /// Bytes to pass over first.
    skip: u64,
    field: Vec<u8>,
    flags: u32,
    /// How many of the lists are behind.
    lists: usize,
    time: i64,
    prepared_xid: u32,
}

impl EndingFields {
    pub(super) const fn new(format: Format, operation: u8, has_flags: bool) -> Self {
        Self {
            format,
            operation,
            has_flags,
            step: Step::Time,
            skip: 0,
            field: Vec::new(),
            flags: 0,
            lists: 0,
            time: 0,
            prepared_xid: 0,
        }
    }

    const fn is_prepared(&self) -> bool {
        matches!(self.operation, 0x30 | 0x40)
    }

    /// Takes what comes next of the main data.
    pub(super) fn push(&mut self, mut data: &[u8]) {
        loop {
            let skipped = usize::try_from(self.skip)
                .unwrap_or(usize::MAX)
                .min(data.len());
            self.skip -= skipped as u64;
            data = data.get(skipped..).unwrap_or_default();
            let wanted = match self.step {
                Step::Time => 8,
                Step::Flags | Step::Count { .. } | Step::Xid => 4,
                Step::Done | Step::Failed => return,
            };
            let missing = usize::saturating_sub(wanted, self.field.len());
            let (taken, rest) = data.split_at_checked(missing).unwrap_or((data, &[]));
            self.field.extend_from_slice(taken);
            data = rest;
            if self.field.len() < wanted {
                return;
            }
            self.step = self.after_field().unwrap_or(Step::Failed);
            self.field.clear();
        }
    }

    /// Keeps what the field says.
    fn after_field(&mut self) -> Option<Step> {
        match self.step {
            Step::Time => {
                self.time = u64_at(&self.field, 0)?.cast_signed();
                match (self.is_prepared(), self.has_flags) {
                    (false, _) => Some(Step::Done),
                    (true, true) => Some(Step::Flags),
                    (true, false) => None,
                }
            }
            Step::Flags => {
                self.flags = u32_at(&self.field, 0)?;
                self.next_list()
            }
            Step::Count { item_bytes } => {
                // More than there can be is never passed over, and the record then not whole.
                let count = u32_at(&self.field, 0)?;
                self.skip = u64::from(count) * u64::from(item_bytes);
                self.next_list()
            }
            Step::Xid => {
                self.prepared_xid = u32_at(&self.field, 0)?;
                Some(Step::Done)
            }
            other => Some(other),
        }
    }

    fn next_list(&mut self) -> Option<Step> {
        let lists = [
            (DATABASE, 8),
            (SUBTRANSACTIONS, 4),
            (RELATIONS, 12),
            (DROPPED_STATISTICS, self.format.dropped_statistics_bytes),
            (INVALIDATIONS, 16),
        ];
        while let Some((flag, bytes)) = lists.get(self.lists) {
            self.lists += 1;
            if self.flags & flag == 0 {
                continue;
            }
            if *flag != DATABASE {
                return Some(Step::Count { item_bytes: *bytes });
            }
            self.skip += u64::from(*bytes);
        }
        (self.flags & PREPARED != 0).then_some(Step::Xid)
    }

    /// What the record says, when it was whole.
    pub(super) fn kind(&self, xid: u32) -> Option<Kind> {
        if self.step != Step::Done {
            return None;
        }
        let time = timestamp(self.time);
        let prepared = self.prepared_xid;
        Some(match self.operation {
            0x00 => Kind::Commit { time, xid },
            0x20 => Kind::Abort { time, xid },
            0x30 => Kind::CommitPrepared {
                time,
                xid: prepared,
            },
            _ => Kind::AbortPrepared {
                time,
                xid: prepared,
            },
        })
    }
}

/// Seconds from 1970 to 2000, where PostgreSQL's clock begins.
const EPOCH_SECONDS: i64 = 946_684_800;

/// A `TimestampTz`: microseconds since 2000. What lies outside of the calendar becomes its first or last moment.
pub(super) fn timestamp(microseconds: i64) -> Timestamp {
    let since_1970 = microseconds.saturating_add(EPOCH_SECONDS * 1_000_000);
    Timestamp::from_microsecond(since_1970).unwrap_or(if since_1970 < 0 {
        Timestamp::MIN
    } else {
        Timestamp::MAX
    })
}
