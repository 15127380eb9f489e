//! Drops WAL that is older than any moment that is to be restored: it follows the base backups.

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::spans::manifests;
use crate::commands::{Context, Failure};
use crate::repository::Repository;
use crate::repository::manifest::Manifest;
use crate::repository::wal::Stretch;
use crate::services::ServiceKind;
use crate::services::postgres::pitr::target::Base;

const DAY: SignedDuration = SignedDuration::from_hours(24);

/// What became of the stored WAL.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Retired {
    pub stretches: u64,
    pub bytes: u64,
}

/// Where a base backup ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct End {
    system: u64,
    timeline: u32,
    stop: u64,
    stopped: Timestamp,
}

/// Drops what no moment of the last PITR_KEEP_DAYS needs; with `dry_run` only tells.
pub fn retire(
    context: &Context,
    repository: &Repository,
    dry_run: bool,
) -> Result<Retired, Failure> {
    let list = repository.wal().map_err(anyhow::Error::new)?;
    let mut retired = Retired::default();
    if list.stretches.is_empty() {
        return Ok(retired);
    }
    let ends: Vec<End> = manifests(repository)?.iter().flat_map(ends).collect();
    let now = repository.vault().now().map_err(anyhow::Error::new)?;
    let oldest = now - DAY * i32::try_from(context.config.pitr.keep_days).unwrap_or(i32::MAX);
    for stretch in &list.stretches {
        if is_needed(stretch, &ends, oldest) {
            continue;
        }
        retired.stretches += 1;
        retired.bytes += stretch.end - stretch.start;
        if !dry_run {
            match repository.drop_wal(stretch) {
                Err(err) if err.is_refused() => tracing::warn!("{err}"),
                other => other.map_err(anyhow::Error::new)?,
            }
        }
    }
    Ok(retired)
}

fn ends(manifest: &Manifest) -> Vec<End> {
    let clusters = manifest
        .archives
        .iter()
        .filter(|record| record.kind == ServiceKind::Postgres);
    clusters
        .filter_map(|record| Base::of(manifest, &record.name))
        .map(|base| End {
            system: base.system,
            timeline: base.timeline,
            stop: base.stop,
            stopped: base.stopped,
        })
        .collect()
}

/// Whether recovery to a moment since `oldest` could read it: the newest backup before that, or else the oldest
/// one there is, is where such a recovery begins.
fn is_needed(stretch: &Stretch, ends: &[End], oldest: Timestamp) -> bool {
    let own = || ends.iter().filter(|end| end.system == stretch.system);
    let before = own()
        .filter(|end| end.stopped <= oldest)
        .max_by_key(|end| end.stopped);
    match before.or_else(|| own().min_by_key(|end| end.stopped)) {
        Some(first) => {
            stretch.timeline > first.timeline
                || (stretch.timeline == first.timeline && stretch.end > first.stop)
        }
        // Its first backup may be under way.
        None => stretch.at() >= oldest,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn at(days: i64) -> Timestamp {
        Timestamp::from_second(1_760_000_000 + days * 86_400).unwrap()
    }

    fn stretch(timeline: u32, start: u64, days: i64) -> Stretch {
        Stretch {
            system: 7,
            timeline,
            start,
            end: start + 10,
            time: at(days).as_millisecond(),
        }
    }

    fn end(timeline: u32, stop: u64, days: i64) -> End {
        End {
            system: 7,
            timeline,
            stop,
            stopped: at(days),
        }
    }

    #[test]
    fn wal_is_kept_from_the_newest_backup_before_the_time_that_is_promised() {
        let ends = [
            end(1, 100, 0),
            end(1, 200, 5),
            end(1, 300, 10),
            end(2, 400, 12),
        ];
        let kept = |s: Stretch, oldest| is_needed(&s, &ends, at(oldest));
        // Promised from day 7 on: the backup of day 5 is where that begins.
        assert!(!kept(stretch(1, 150, 4), 7));
        assert!(!kept(stretch(1, 190, 4), 7));
        assert!(kept(stretch(1, 195, 5), 7));
        assert!(kept(stretch(1, 290, 9), 7));
        assert!(kept(stretch(2, 310, 11), 7));
        // From day 12 on it is the one on the second timeline.
        assert!(!kept(stretch(1, 290, 9), 12));
        assert!(kept(stretch(2, 395, 12), 12));
        assert!(!kept(stretch(2, 380, 12), 12));
        // Nothing is that old: the oldest backup.
        assert!(kept(stretch(1, 95, 0), -3));
        assert!(!kept(stretch(1, 85, 0), -3));
    }

    #[test]
    fn wal_without_any_backup_waits_for_the_first() {
        assert!(is_needed(&stretch(1, 0, 5), &[], at(3)));
        assert!(!is_needed(&stretch(1, 0, 2), &[], at(3)));
        let other = End {
            system: 8,
            ..end(1, 1000, 9)
        };
        assert!(is_needed(&stretch(1, 0, 5), &[other], at(3)));
    }
}
