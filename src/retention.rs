//! Which backups stay: decisions only, without a clock and without I/O.
//!
//! A backup is kept when any rule wants it. The newest good one is kept whatever the policy says. Only good
//! backups are counted: one whose manifest cannot be read fills no place, and is never dropped here. When
//! the newest backup shrank beyond the limit, nothing is dropped until a person agrees.

use std::collections::{BTreeMap, BTreeSet};

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use serde::Serialize;

use crate::config::RetentionPolicy;
use crate::repository::manifest::Manifest;

/// A backup as retention sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub id: String,
    pub finished: Timestamp,
    pub raw_bytes: u64,
    /// Counts of each archive, by "archive: count".
    pub counts: BTreeMap<String, u64>,
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

/// Decides over good backups of one project, in any order.
///
/// `accepted` is the newest backup at the time a person last agreed to a shrink: older ones do not freeze.
pub fn decide(
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
    let frozen = shrunk(policy, &newest_first, accepted);
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
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn backup(text: &str) -> Candidate {
        Candidate {
            id: text.to_owned(),
            finished: at(text),
            raw_bytes: 1000,
            counts: BTreeMap::new(),
        }
    }

    fn none() -> RetentionPolicy {
        RetentionPolicy {
            shrink_limit_percent: 50,
            ..RetentionPolicy::default()
        }
    }

    fn kept(decision: &Decision) -> Vec<&str> {
        decision.keep.iter().map(|(id, _)| id.as_str()).collect()
    }

    #[test]
    fn the_newest_backup_stays_whatever_the_policy_says() {
        let policy = RetentionPolicy {
            within_days: Some(1),
            ..none()
        };
        let old = [
            backup("2026-01-01T03:00:00Z"),
            backup("2026-01-02T03:00:00Z"),
        ];
        let decision = decide(
            &policy,
            &old,
            None,
            at("2026-11-22T00:00:00Z"),
            &TimeZone::UTC,
        );
        assert_eq!(kept(&decision), ["2026-01-02T03:00:00Z"]);
    }

    #[test]
    fn without_any_rule_everything_stays() {
        let old = [
            backup("2025-01-01T03:00:00Z"),
            backup("2026-01-02T03:00:00Z"),
        ];
        assert!(
            decide(
                &none(),
                &old,
                None,
                at("2026-11-22T00:00:00Z"),
                &TimeZone::UTC
            )
            .drop
            .is_empty()
        );
    }

    #[test]
    fn days_weeks_and_months_keep_the_newest_of_each_that_has_any() {
        let policy = RetentionPolicy {
            daily: Some(2),
            weekly: Some(2),
            monthly: Some(2),
            ..none()
        };
        let all = [
            "2026-09-30T03:00:00Z",
            "2026-10-31T03:00:00Z",
            "2026-11-12T03:00:00Z",
            "2026-11-13T03:00:00Z",
            "2026-11-20T02:00:00Z",
            "2026-11-20T03:00:00Z",
        ];
        let backups: Vec<_> = all.iter().map(|t| backup(t)).collect();
        let decision = decide(
            &policy,
            &backups,
            None,
            at("2026-11-22T00:00:00Z"),
            &TimeZone::UTC,
        );
        assert_eq!(
            kept(&decision),
            [
                "2026-11-20T03:00:00Z",
                "2026-11-13T03:00:00Z",
                "2026-10-31T03:00:00Z"
            ]
        );
    }

    #[test]
    fn a_late_run_does_not_cost_a_day_and_missed_days_cost_nothing() {
        let policy = RetentionPolicy {
            daily: Some(3),
            ..none()
        };
        let backups: Vec<_> = [
            "2026-11-01T03:00:00Z",
            "2026-11-05T03:00:00Z",
            "2026-11-20T03:00:00Z",
        ]
        .map(backup)
        .into();
        assert!(
            decide(
                &policy,
                &backups,
                None,
                at("2026-11-22T00:00:00Z"),
                &TimeZone::UTC
            )
            .drop
            .is_empty()
        );
    }

    #[test]
    fn days_are_those_of_the_time_zone() {
        let policy = RetentionPolicy {
            daily: Some(1),
            ..none()
        };
        // 23:30 and 00:30 in Berlin: two days there, one in UTC.
        let backups: Vec<_> = ["2026-11-19T22:30:00Z", "2026-11-19T23:30:00Z"]
            .map(backup)
            .into();
        let berlin = TimeZone::get("Europe/Berlin").unwrap();
        let both = RetentionPolicy {
            daily: Some(2),
            ..none()
        };
        assert_eq!(
            decide(
                &policy,
                &backups,
                None,
                at("2026-11-20T00:00:00Z"),
                &TimeZone::UTC
            )
            .keep
            .len(),
            1
        );
        assert_eq!(
            decide(
                &both,
                &backups,
                None,
                at("2026-11-20T00:00:00Z"),
                &TimeZone::UTC
            )
            .keep
            .len(),
            1
        );
        assert_eq!(
            decide(&both, &backups, None, at("2026-11-20T00:00:00Z"), &berlin)
                .keep
                .len(),
            2
        );
    }

    #[test]
    fn a_backup_that_shrank_or_lost_counts_freezes_retention() {
        let policy = RetentionPolicy {
            last: Some(1),
            ..none()
        };
        let old = Candidate {
            counts: BTreeMap::from([("qdrant: points".to_owned(), 100)]),
            ..backup("2026-11-19T03:00:00Z")
        };
        let now = at("2026-11-22T00:00:00Z");
        let good = Candidate {
            counts: old.counts.clone(),
            ..backup("2026-11-20T03:00:00Z")
        };
        assert_eq!(
            decide(
                &policy,
                &[old.clone(), good.clone()],
                None,
                now,
                &TimeZone::UTC
            )
            .drop,
            ["2026-11-19T03:00:00Z"]
        );
        let small = Candidate {
            raw_bytes: 499,
            ..good.clone()
        };
        let emptied = Candidate {
            counts: BTreeMap::new(),
            ..good
        };
        for bad in [small, emptied] {
            let decision = decide(&policy, &[old.clone(), bad], None, now, &TimeZone::UTC);
            assert!(
                decision.drop.is_empty() && decision.frozen.is_some(),
                "{decision:?}"
            );
        }
    }

    #[test]
    fn a_freeze_lasts_until_a_person_agrees() {
        let policy = RetentionPolicy {
            last: Some(1),
            ..none()
        };
        let small = |text: &str| Candidate {
            raw_bytes: 10,
            ..backup(text)
        };
        let backups = [
            backup("2026-11-18T03:00:00Z"),
            small("2026-11-19T03:00:00Z"),
            small("2026-11-20T03:00:00Z"),
        ];
        let now = at("2026-11-22T00:00:00Z");
        let decision = decide(&policy, &backups, None, now, &TimeZone::UTC);
        assert!(
            decision.drop.is_empty() && decision.frozen.is_some(),
            "{decision:?}"
        );
        let decision = decide(
            &policy,
            &backups,
            Some("2026-11-19T03:00:00Z"),
            now,
            &TimeZone::UTC,
        );
        assert_eq!(
            decision.drop,
            ["2026-11-19T03:00:00Z", "2026-11-18T03:00:00Z"]
        );
    }

    #[test]
    fn backups_from_the_future_are_kept_and_take_nobodys_place() {
        let policy = RetentionPolicy {
            last: Some(1),
            ..none()
        };
        let backups = [
            "2027-06-01T03:00:00Z",
            "2026-11-20T03:00:00Z",
            "2026-11-19T03:00:00Z",
        ]
        .map(backup);
        let decision = decide(
            &policy,
            &backups,
            None,
            at("2026-11-22T00:00:00Z"),
            &TimeZone::UTC,
        );
        assert_eq!(
            kept(&decision),
            ["2026-11-20T03:00:00Z", "2027-06-01T03:00:00Z"]
        );
    }
}
