//! Where recovery stops for a target (`recoveryStopsBefore` and `recoveryStopsAfter` in `xlogrecovery.c`, in
//! `xlog.c` up to 14).
//!
//! Only commits and aborts have a time that counts, prepared transactions among them: a restore point or a
//! checkpoint later than the target does not stop recovery. These records are in the order of the log and not
//! of their times, so the first that is later decides.

use jiff::Timestamp;

use super::{Kind, Record};
use crate::services::postgres::wal::Lsn;

/// The record that `recovery_target_time` (inclusive, as is the default) stops before: the first end of a
/// transaction later than `time`. Without one, recovery to this time fails.
pub fn first_after<E>(
    records: impl IntoIterator<Item = Result<Record, E>>,
    time: Timestamp,
) -> Result<Option<Record>, E> {
    first(records, |record| {
        record.ending().is_some_and(|ending| ending.time > time)
    })
}

/// The record that `recovery_target_xid` stops after (inclusive) or before: the end of this very transaction.
pub fn find_xid<E>(
    records: impl IntoIterator<Item = Result<Record, E>>,
    xid: u32,
) -> Result<Option<Record>, E> {
    first(records, |record| {
        record.ending().is_some_and(|ending| ending.xid == xid)
    })
}

/// The record that `recovery_target_name` stops after: the first restore point of this name.
pub fn find_restore_point<E>(
    records: impl IntoIterator<Item = Result<Record, E>>,
    wanted: &str,
) -> Result<Option<Record>, E> {
    first(
        records,
        |record| matches!(&record.kind, Kind::RestorePoint { name, .. } if name == wanted),
    )
}

/// The record that `recovery_target_lsn` stops after (inclusive) or before: the first that begins there or
/// later.
pub fn first_at<E>(
    records: impl IntoIterator<Item = Result<Record, E>>,
    lsn: Lsn,
) -> Result<Option<Record>, E> {
    first(records, |record| record.start >= lsn)
}

/// The last commit in the log, which need not be the one with the latest time.
pub fn last_commit<E>(
    records: impl IntoIterator<Item = Result<Record, E>>,
) -> Result<Option<Record>, E> {
    let mut last = None;
    for record in records {
        let record = record?;
        if record.ending().is_some_and(|ending| ending.committed) {
            last = Some(record);
        }
    }
    Ok(last)
}

fn first<E>(
    records: impl IntoIterator<Item = Result<Record, E>>,
    is_it: impl Fn(&Record) -> bool,
) -> Result<Option<Record>, E> {
    records
        .into_iter()
        .find(|record| record.as_ref().map_or(true, &is_it))
        .transpose()
}
