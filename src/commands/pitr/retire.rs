//! Drops WAL that is older than any moment that is to be restored: it follows the base backups, one timeline at a time.
//!
//! Every timeline that has moments within the promised time rests on a backup: the last one before that time that
//! leads to the timeline, or the first one there is. WAL from there on stays, on the timeline and on those it branched
//! off. A timeline's number tells nothing about another's: it was left, or a copy of the cluster goes on beside it.
//!
//! Where those end is remembered ([`history`](crate::repository::history)), so that a night reads the manifests
//! that are new. Before anything is dropped, the manifests of the backups are read again that recovery would
//! begin with instead: one that was damaged since is no beginning. A host that can only write knows of its backups
//! when they began, by their ids, and keeps WAL from the newest one on that began before the time that is promised.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::commands::{Context, Failure};
use crate::repository::history::Manifests;
use crate::repository::manifest::Manifest;
use crate::repository::run_id::begun;
use crate::repository::wal::{Stretch, WalList};
use crate::repository::{Repository, RepositoryError};
use crate::retention;
use crate::services::ServiceKind;
use crate::services::postgres::pitr::path::{Switch, parse_history};
use crate::services::postgres::pitr::target::Base;

/// Its name tells its form: another one is due with every change of [`End`] or of what it is made from.
const WHAT: &str = "wal-ends-2";
const DAY: SignedDuration = SignedDuration::from_hours(24);

/// What became of the stored WAL.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Retired {
    pub stretches: u64,
    pub bytes: u64,
}

/// Where a base backup ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct End {
    system: u64,
    timeline: u32,
    /// The segment that it ends in is read from its start.
    segment: u64,
    stop: u64,
    stopped: Timestamp,
}

/// What is known of the base backups.
#[derive(Debug, Default)]
struct Bases {
    /// Where they end, by their ids.
    ends: Vec<(String, End)>,
    /// When those began that cannot be read here.
    unread: Vec<Timestamp>,
}

/// How far back any moment is to be restored.
#[derive(Debug, Clone, Copy)]
struct Promise {
    now: Timestamp,
    keep: SignedDuration,
}

impl Promise {
    /// The oldest moment. A newest backup that came later than the one before it by more than all that is promised,
    /// and than is usual, was made after a long pause, or by a clock that was ahead for a while: then the time of the
    /// one before it counts, and the next one brings the age.
    fn oldest(self, in_order: &[&(String, End)]) -> Timestamp {
        let now = match in_order {
            [.., (_, third), (_, second), (_, newest)]
                if retention::is_odd_pause(
                    [third.stopped, second.stopped, newest.stopped],
                    self.keep,
                ) =>
            {
                second.stopped.min(self.now)
            }
            _ => self.now,
        };
        now - self.keep
    }
}

/// What nothing needs, and why.
#[derive(Debug, Default, PartialEq, Eq)]
struct Decision<'s> {
    drop: Vec<&'s Stretch>,
    /// The backups that recovery begins with instead.
    rests_on: BTreeSet<String>,
}

/// Drops what no moment of the last PITR_KEEP_DAYS needs; with `dry_run` only tells.
pub fn retire(
    context: &Context,
    repository: &Repository,
    dry_run: bool,
) -> Result<Retired, Failure> {
    let list = repository.wal().map_err(anyhow::Error::new)?;
    if list.stretches.is_empty() {
        return Ok(Retired::default());
    }
    let promise = Promise {
        now: repository.vault().now().map_err(anyhow::Error::new)?,
        keep: DAY * i32::try_from(context.config.pitr.keep_days).unwrap_or(i32::MAX),
    };
    let doomed = decide_well(context, repository, &list, promise);
    let mut retired = Retired::default();
    for stretch in doomed.map_err(anyhow::Error::new)? {
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

/// Decides by what is remembered, and anew when that turns out not to hold.
fn decide_well<'s>(
    context: &Context,
    repository: &Repository,
    list: &'s WalList,
    promise: Promise,
) -> Result<Vec<&'s Stretch>, RepositoryError> {
    let branches = branches(repository, list)?;
    let mut known = Manifests::load(repository, &context.config.state, WHAT, ends)?;
    let mut decision = decide(&list.stretches, &all_bases(&mut known)?, &branches, promise);
    if !decision.drop.is_empty() && !known.hold_true(decision.rests_on.iter().map(String::as_str)) {
        decision = decide(&list.stretches, &all_bases(&mut known)?, &branches, promise);
    }
    known.save();
    Ok(decision.drop)
}

/// Where the timelines branched off, by cluster and number.
type Branches = BTreeMap<(u64, u32), Vec<Switch>>;

/// What can be read of the histories.
fn branches(repository: &Repository, list: &WalList) -> Result<Branches, RepositoryError> {
    let mut branches = Branches::new();
    if !repository.vault().can_read() {
        return Ok(branches);
    }
    for (system, timelines) in &list.histories {
        for timeline in timelines {
            let text = repository.wal_history(*system, *timeline)?;
            // One that cannot be understood is as good as none: everything is kept then.
            if let Ok(switches) = parse_history(&text) {
                branches.insert((*system, *timeline), switches);
            }
        }
    }
    Ok(branches)
}

/// What is known of the base backups. That some are damaged is `verify`'s business.
fn all_bases(known: &mut Manifests<'_, Vec<End>>) -> Result<Bases, RepositoryError> {
    let mut bases = Bases::default();
    for (id, ends) in known.of_all()? {
        match ends {
            Ok(ends) => bases
                .ends
                .extend(ends.into_iter().map(|end| (id.clone(), end))),
            Err(_) => bases.unread.extend(begun(&id)),
        }
    }
    Ok(bases)
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
            segment: base.segment(),
            stop: base.stop,
            stopped: base.stopped,
        })
        .collect()
}

/// What one timeline's moments rest on.
enum Need<'b> {
    /// From a backup on, over the timelines that lead there.
    From(&'b str, End),
    /// Its first backup may be under way.
    Young,
    /// All its moments are older than what is promised.
    Nothing,
}

fn decide<'s>(
    stretches: &'s [Stretch],
    bases: &Bases,
    branches: &Branches,
    promise: Promise,
) -> Decision<'s> {
    let oldest = promise.oldest(&[]);
    let unread = bases.unread.iter().filter(|begun| **begun <= oldest);
    let since = unread.max().copied().unwrap_or(oldest);
    let mut timelines: BTreeSet<(u64, u32)> = BTreeSet::new();
    timelines.extend(stretches.iter().map(|s| (s.system, s.timeline)));
    timelines.extend(bases.ends.iter().map(|(_, end)| (end.system, end.timeline)));
    let needs: Vec<((u64, u32), Need<'_>)> = timelines
        .iter()
        .map(|of| {
            (
                *of,
                need(*of, &timelines, stretches, bases, branches, promise),
            )
        })
        .collect();
    let mut decision = Decision::default();
    for stretch in stretches {
        let own = (stretch.system, stretch.timeline);
        let of_cluster = || {
            needs
                .iter()
                .filter(|((system, _), _)| *system == stretch.system)
        };
        let is_needed = of_cluster().any(|(of, need)| match need {
            Need::From(_, end) => {
                stretch.end > end.segment
                    && stretch.timeline >= end.timeline
                    && (own == *of || leads(branches, stretch.timeline, 0, *of))
            }
            Need::Young => own == *of && stretch.at() >= since,
            Need::Nothing => false,
        });
        if is_needed {
            continue;
        }
        decision.drop.push(stretch);
        decision
            .rests_on
            .extend(of_cluster().filter_map(|(_, need)| match need {
                Need::From(id, _) => Some((*id).to_owned()),
                Need::Young | Need::Nothing => None,
            }));
    }
    decision
}

/// What the moments of a timeline rest on. Which backup comes first is told by positions, for a clock may have been
/// set back: what was written before a backup is at least as old as it, whatever the clock said then.
fn need<'b>(
    of: (u64, u32),
    timelines: &BTreeSet<(u64, u32)>,
    stretches: &[Stretch],
    bases: &'b Bases,
    branches: &Branches,
    promise: Promise,
) -> Need<'b> {
    let (system, timeline) = of;
    let leads_there =
        |end: &End| end.system == system && leads(branches, end.timeline, end.stop, of);
    let mut own: Vec<_> = bases
        .ends
        .iter()
        .filter(|(_, end)| leads_there(end))
        .collect();
    own.sort_by_key(|(_, end)| (end.timeline, end.stop));
    let Some((first_id, first)) = own.first() else {
        return Need::Young;
    };
    let oldest = promise.oldest(&own);
    let is_newest = !timelines.iter().any(|(s, t)| *s == system && *t > timeline);
    let is_live = is_newest
        || stretches
            .iter()
            .any(|s| (s.system, s.timeline) == of && s.at() >= oldest)
        || own
            .iter()
            .any(|(_, end)| end.timeline == timeline && end.stopped >= oldest);
    if !is_live {
        return Need::Nothing;
    }
    let mut at_least_as_old = Timestamp::MAX;
    for (id, end) in own.iter().rev() {
        at_least_as_old = at_least_as_old.min(end.stopped);
        if at_least_as_old <= oldest {
            return Need::From(id, *end);
        }
    }
    Need::From(first_id, *first)
}

/// Whether a position of a timeline is on the way to another; where the way is not known, it may be.
fn leads(branches: &Branches, timeline: u32, position: u64, to: (u64, u32)) -> bool {
    match branches.get(&to) {
        _ if timeline == to.1 => true,
        Some(switches) => switches
            .iter()
            .any(|switch| switch.timeline == timeline && switch.at >= position),
        None => timeline < to.1,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

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
            segment: stop,
            stop,
            stopped: at(days),
        }
    }

    /// Thirty days back to that moment.
    fn since(oldest: Timestamp) -> Promise {
        let keep = DAY * 30;
        Promise {
            now: oldest + keep,
            keep,
        }
    }

    /// Whether a stretch stays.
    fn is_kept(stretch: Stretch, bases: &Bases, oldest: Timestamp) -> bool {
        decide(&[stretch], bases, &Branches::new(), since(oldest))
            .drop
            .is_empty()
    }

    fn read(ends: impl Into<Vec<(String, End)>>) -> Bases {
        Bases {
            ends: ends.into(),
            unread: Vec::new(),
        }
    }

    #[test]
    fn wal_is_kept_from_the_newest_backup_before_the_time_that_is_promised() {
        let ends = [
            end(1, 100, 0),
            end(1, 200, 5),
            end(1, 300, 10),
            end(2, 400, 12),
        ]
        .map(|end| (format!("of {}", end.stop), end));
        let bases = read(ends);
        let kept = |s: Stretch, oldest| is_kept(s, &bases, at(oldest));
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
        // What must hold for that.
        let all = [stretch(1, 150, 4), stretch(1, 290, 9)];
        let decision = decide(&all, &bases, &Branches::new(), since(at(7)));
        assert_eq!(decision.drop, [&all[0]]);
        assert_eq!(decision.rests_on, ["of 200".to_owned()].into());
    }

    #[test]
    fn a_clock_that_was_wrong_for_a_while_drops_nothing_too_early_and_keeps_nothing_for_ever() {
        // Set back by four days before the second, and far ahead at the fourth.
        let ends = [
            end(1, 100, 5),
            end(1, 200, 1),
            end(1, 300, 6),
            end(1, 400, 9000),
            end(1, 500, 10),
        ]
        .map(|end| (format!("of {}", end.stop), end));
        let bases = read(ends);
        let kept = |s: Stretch, oldest| is_kept(s, &bases, at(oldest));
        assert!(kept(stretch(1, 110, 5), 0));
        assert!(kept(stretch(1, 210, 1), 2));
        assert!(!kept(stretch(1, 110, 5), 2));
        assert!(kept(stretch(1, 310, 6), 9));
        assert!(!kept(stretch(1, 210, 1), 9));
        assert!(!kept(stretch(1, 410, 9000), 10));
        assert!(kept(stretch(1, 510, 10), 10));
    }

    #[test]
    fn one_backup_by_a_clock_that_is_far_ahead_drops_nothing() {
        let ends = [end(1, 100, 0), end(1, 200, 7), end(1, 300, 9000)];
        let bases = read(ends.map(|end| (format!("of {}", end.stop), end)));
        assert!(is_kept(stretch(1, 110, 0), &bases, at(9000 - 30)));
        // Nor does a backup after a pause of months drop what was promised before it.
        let next = end(1, 400, 9001);
        let mut bases = bases;
        bases.ends.push(("of 400".to_owned(), next));
        assert!(!is_kept(stretch(1, 110, 0), &bases, at(9001 - 30)));
        assert!(is_kept(stretch(1, 210, 7), &bases, at(9001 - 30)));
    }

    #[test]
    fn each_timeline_keeps_what_leads_to_its_own_moments() {
        // Restored from the first backup to 300, before the second one.
        let ends = [end(1, 100, 0), end(1, 500, 5), end(2, 400, 7)];
        let bases = read(ends.map(|end| (format!("of {}", end.stop), end)));
        let switch = Switch {
            timeline: 1,
            at: 300,
        };
        let branches = Branches::from([((7, 2), vec![switch])]);
        let kept = |wal: &[Stretch], of: usize, oldest| {
            let decision = decide(wal, &bases, &branches, since(at(oldest)));
            !decision.drop.contains(&&wal[of])
        };
        // The first one alone leads to what was before the third.
        let wal = [
            stretch(1, 200, 2),
            stretch(1, 510, 5),
            stretch(2, 310, 6),
            stretch(2, 410, 9),
        ];
        assert!(kept(&wal, 0, 6) && kept(&wal, 2, 6) && kept(&wal, 3, 6));
        assert!(!kept(&wal, 0, 8) && !kept(&wal, 1, 8) && !kept(&wal, 2, 8));
        // What was left goes when its moments are too old.
        assert!(kept(&wal, 1, 4));
        assert!(!kept(&wal, 1, 7));
        // A copy of the cluster that lives on beside it does not take its WAL away.
        let wal = [stretch(1, 950, 11), stretch(2, 410, 12)];
        assert!(kept(&wal, 0, 10) && kept(&wal, 1, 10));
    }

    #[test]
    fn the_segment_that_a_backup_ends_in_is_kept_from_its_start() {
        let large = End {
            segment: 1000,
            ..end(1, 1020, 0)
        };
        let bases = read([("of 1020".to_owned(), large)]);
        assert!(is_kept(stretch(1, 1000, 0), &bases, at(5)));
        assert!(!is_kept(stretch(1, 985, 0), &bases, at(5)));
    }

    #[test]
    fn wal_without_any_backup_waits_for_the_first() {
        assert!(is_kept(stretch(1, 0, 5), &Bases::default(), at(3)));
        assert!(!is_kept(stretch(1, 0, 2), &Bases::default(), at(3)));
        let other = End {
            system: 8,
            ..end(1, 1000, 9)
        };
        let other = read([("other".to_owned(), other)]);
        assert!(is_kept(stretch(1, 0, 5), &other, at(3)));
    }

    #[test]
    fn a_host_that_cannot_read_its_backups_keeps_wal_from_where_one_began() {
        let id = crate::repository::session::new_id;
        let unread = [0, 5, 10].iter().filter_map(|day| begun(&id(at(*day))));
        let bases = Bases {
            ends: Vec::new(),
            unread: unread.collect(),
        };
        assert_eq!(bases.unread, [at(0), at(5), at(10)]);
        // Promised from day 7 on, and the backup of day 5 is where that begins.
        assert!(is_kept(stretch(1, 0, 6), &bases, at(7)));
        assert!(is_kept(stretch(1, 0, 5), &bases, at(7)));
        assert!(!is_kept(stretch(1, 0, 4), &bases, at(7)));
        // Nothing is that old.
        assert!(!is_kept(stretch(1, 0, -4), &bases, at(-3)));
    }
}
