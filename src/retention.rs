//! Which backups stay: decisions only, without a clock and without I/O.
//!
//! A backup is kept when any rule wants it. The newest good one is kept whatever the policy says. Only good
//! backups are counted: one whose manifest cannot be read fills no place, and is never dropped here; one of
//! data that was damaged already takes no good one's place, and has places of its own. When
//! the newest backup shrank beyond the limit, nothing is dropped until a person agrees.

use std::collections::{BTreeMap, BTreeSet};

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use serde::{Deserialize, Serialize};

use crate::config::RetentionPolicy;
use crate::repository::manifest::Manifest;

/// A backup as retention sees it. It is remembered by its fields' names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// Whoever remembers it knows it by its backup.
    #[serde(skip)]
    pub id: String,
    pub finished: Timestamp,
    pub raw_bytes: u64,
    /// Counts of each archive, by "archive: count".
    pub counts: BTreeMap<String, u64>,
    /// It holds what was damaged in a service already.
    pub damaged: bool,
    /// See [`Manifest::machine`].
    #[serde(default)]
    pub machine: Option<String>,
}

impl Candidate {
    pub fn of(manifest: &Manifest) -> Self {
        let counts = manifest.archives.iter().flat_map(|archive| {
            let name = &archive.name;
            archive
                .report
                .counts
                .iter()
                .map(move |(what, count)| (format!("{name}: {what}"), *count))
        });
        Self {
            id: manifest.id.clone(),
            finished: manifest.finished,
            raw_bytes: manifest.raw_bytes,
            counts: counts.collect(),
            damaged: !manifest.damage().is_empty(),
            machine: manifest.machine.clone(),
        }
    }
}

/// What to keep and what to drop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// Kept backups, newest first, with the rules that want each.
    pub keep: Vec<(String, Vec<String>)>,
    pub drop: Vec<String>,
    /// Why nothing is dropped although the policy would, as a sentence.
    pub frozen: Option<String>,
}

/// The first day of the period a day is in.
type FirstDay = fn(Date) -> Date;

/// Decides over backups of one project, in any order.
///
/// `accepted` is the newest backup at the time a person last agreed to a shrink: older ones do not freeze.
pub fn decide(
    policy: &RetentionPolicy,
    backups: &[Candidate],
    accepted: Option<&str>,
    now: Timestamp,
    zone: &TimeZone,
) -> Decision {
    let (damaged, good): (Vec<_>, Vec<_>) = backups.iter().cloned().partition(|b| b.damaged);
    let mut decision = decide_alike(policy, &good, accepted, now, zone);
    let newest_good = good.iter().map(|b| b.finished).max();
    // What damage took away is no shrink.
    let no_limit = RetentionPolicy {
        shrink_limit_percent: 0,
        ..policy.clone()
    };
    let beside = decide_alike(&no_limit, &damaged, None, now, zone);
    decision.drop.extend(beside.drop);
    for (id, mut why) in beside.keep {
        let finished = damaged.iter().find(|b| b.id == id).map(|b| b.finished);
        if finished < newest_good {
            why.retain(|reason| reason != "newest");
        }
        match (why.is_empty(), &decision.frozen) {
            (false, _) => decision.keep.push((id, why)),
            (true, Some(_)) => decision.keep.push((id, vec!["frozen".to_owned()])),
            (true, None) => decision.drop.push(id),
        }
    }
    decision
}

/// Decides over backups that are all good, or all damaged.
fn decide_alike(
    policy: &RetentionPolicy,
    backups: &[Candidate],
    accepted: Option<&str>,
    now: Timestamp,
    zone: &TimeZone,
) -> Decision {
    let leeway = jiff::SignedDuration::try_from(policy.leeway).unwrap_or(jiff::SignedDuration::MAX);
    // Made while a clock was ahead: kept, and they take nobody's place.
    let (future, mut newest_first): (Vec<&Candidate>, Vec<&Candidate>) = backups
        .iter()
        .partition(|backup| backup.finished.duration_since(now) > leeway);
    newest_first.sort_by(|a, b| b.finished.cmp(&a.finished).then_with(|| b.id.cmp(&a.id)));
    let mut reasons: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut want = |backup: &'_ Candidate, why: &str| {
        // The key must live as long as the backups.
        if let Some(found) = backups.iter().find(|b| b.id == backup.id) {
            reasons.entry(&found.id).or_default().push(why.to_owned());
        }
    };
    if let Some(newest) = newest_first.first() {
        want(newest, "newest");
    }
    for backup in newest_first.iter().take(policy.last.unwrap_or(0) as usize) {
        want(backup, "last");
    }
    if let Some(days) = policy.within_days {
        let age = jiff::SignedDuration::from_hours(24 * i64::from(days)).saturating_add(leeway);
        let now = match newest_first.as_slice() {
            [newest, second, third, ..]
                if is_odd_pause([third.finished, second.finished, newest.finished], age) =>
            {
                second.finished
            }
            _ => now,
        };
        for backup in &newest_first {
            if now.duration_since(backup.finished) <= age {
                want(backup, "days");
            }
        }
    }
    let date = |backup: &Candidate| backup.finished.to_zoned(zone.clone()).date();
    let periods: [(&str, Option<u32>, FirstDay); 3] = [
        ("daily", policy.daily, |date| date),
        ("weekly", policy.weekly, |date| {
            let back = i64::from(date.weekday().to_monday_zero_offset());
            date.checked_sub(back.days()).unwrap_or(date)
        }),
        ("monthly", policy.monthly, |date| date.first_of_month()),
    ];
    for (name, count, period) in periods {
        let mut seen = BTreeSet::new();
        for backup in &newest_first {
            if seen.len() >= count.unwrap_or(0) as usize {
                break;
            }
            // The newest of each period that has any: a missed day costs no backup.
            if seen.insert(period(date(backup))) {
                want(backup, name);
            }
        }
    }
    let keep_all = policy.last.is_none()
        && policy.within_days.is_none()
        && policy.daily.is_none()
        && policy.weekly.is_none()
        && policy.monthly.is_none();
    let frozen =
        shrunk(policy, &newest_first, accepted).or_else(|| in_turn(&newest_first, accepted));
    let (mut keep, mut drop) = (Vec::new(), Vec::new());
    for backup in newest_first {
        match reasons.remove(backup.id.as_str()) {
            Some(why) => keep.push((backup.id.clone(), why)),
            None if keep_all => keep.push((backup.id.clone(), vec!["no rule".to_owned()])),
            None if frozen.is_some() => keep.push((backup.id.clone(), vec!["frozen".to_owned()])),
            None => drop.push(backup.id.clone()),
        }
    }
    keep.extend(
        future
            .into_iter()
            .map(|backup| (backup.id.clone(), vec!["from the future".to_owned()])),
    );
    Decision { keep, drop, frozen }
}

/// Why a backup looks as if data had been lost: compared with the one before it, back to what a person accepted.
fn shrunk(
    policy: &RetentionPolicy,
    newest_first: &[&Candidate],
    accepted: Option<&str>,
) -> Option<String> {
    newest_first
        .windows(2)
        .take_while(|pair| {
            pair.first()
                .is_none_or(|newer| accepted != Some(newer.id.as_str()))
        })
        .find_map(|pair| match pair {
            [newer, before] => shrunk_since(policy, newer, before),
            _ => None,
        })
}

/// How many of the newest backups tell whether two machines take turns.
const TURNS: usize = 6;

/// Why backups look like those of two stacks under one name: each would drop the other's. One that moved to another
/// machine does not come back.
fn in_turn(newest_first: &[&Candidate], accepted: Option<&str>) -> Option<String> {
    let known: Vec<_> = newest_first
        .iter()
        .filter(|backup| backup.machine.is_some())
        .take(TURNS)
        .collect();
    let newest = known.first().filter(|b| accepted != Some(b.id.as_str()))?;
    let other = known.iter().position(|b| b.machine != newest.machine)?;
    let is_back = known
        .iter()
        .skip(other)
        .any(|b| b.machine == newest.machine);
    let other = known.get(other).filter(|_| is_back)?;
    Some(format!(
        "backups under this project's name come from two machines in turn ({} from one, {} from the other), and each would drop the other's: give one of them a name of its own (LIFEBOAT_PROJECT) or a repository of its own",
        newest.id, other.id
    ))
}

/// Whether the newest of three came after a pause that is longer than all that is kept by age, and than is usual: a
/// machine that was off for long, or a clock that was ahead for a while. Then nothing is too old yet.
pub fn is_odd_pause([third, second, newest]: [Timestamp; 3], kept: jiff::SignedDuration) -> bool {
    let pause = newest.duration_since(second);
    pause > kept && pause > second.duration_since(third).saturating_mul(2)
}

fn shrunk_since(policy: &RetentionPolicy, newer: &Candidate, before: &Candidate) -> Option<String> {
    let limit = u128::from(policy.shrink_limit_percent);
    let below = |new: u64, old: u64| u128::from(new) * 100 < u128::from(old) * limit;
    let until =
        "nothing is dropped until you have looked (`backup --accept-shrink` when it is right)";
    if below(newer.raw_bytes, before.raw_bytes) {
        return Some(format!(
            "{} holds {} bytes, less than {limit} % of the {} of {}: {until}",
            newer.id, newer.raw_bytes, before.raw_bytes, before.id
        ));
    }
    before.counts.iter().find_map(|(what, old)| {
        // A count that could not be taken this time is not a loss; a whole archive that is gone is one.
        let archive = what.split(": ").next().unwrap_or_default();
        let archive_is_there = newer
            .counts
            .keys()
            .any(|other| other.split(": ").next() == Some(archive));
        let new = match newer.counts.get(what) {
            Some(new) => *new,
            None if archive_is_there => return None,
            None => 0,
        };
        below(new, *old).then(|| {
            format!(
                "{} counts {new} for \"{what}\", less than {limit} % of the {old} of {}: {until}",
                newer.id, before.id
            )
        })
    })
}

#[cfg(test)]
mod tests;
