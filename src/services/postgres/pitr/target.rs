//! From what a person asked for to a base backup, the WAL after it, and where recovery stops.
//!
//! Everything is decided before anything is touched: a target before the end of the base backup would silently
//! give a later state, and one after the last commit would end recovery with an error. So the WAL itself is
//! read for the record that recovery would stop at; where there is none, everything is replayed, which is then
//! the same.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::TimeZone;

pub use super::base::Base;
use super::path::{Leg, Map, Path, parse_history};
use super::replay::{Parts, Replay};
use super::stream::Stream;
use crate::repository::manifest::Manifest;
use crate::repository::wal::{Seen, Stretch, WalList};
use crate::repository::{Repository, RepositoryError};
use crate::services::postgres::records::{self, ReadError, Record, Records};
use crate::services::postgres::wal::Lsn;

/// Which moment is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The end of the backup itself.
    Backup,
    /// As late as there is WAL.
    Latest,
    /// With everything that was committed by then.
    Time(Timestamp),
    /// Everything before the position.
    Lsn(u64),
    /// Everything before the end of this transaction.
    BeforeXid(u32),
}

/// Why a target cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    #[error("{0}")]
    Unreachable(String),
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    #[error(transparent)]
    Wal(#[from] ReadError),
}

/// One way to a target.
struct Way<'b, 'm> {
    base: &'b Base<'m>,
    timeline: u32,
    path: Path,
    /// Moments that it leads to.
    begins: Timestamp,
    ends: Timestamp,
}

/// What is asked, and of what.
pub struct Question<'q, 'm> {
    pub repository: &'q Arc<Repository>,
    pub list: &'q WalList,
    /// Base backups of one service, the newest first.
    pub bases: &'q [Base<'m>],
    /// Only this timeline.
    pub timeline: Option<u32>,
    pub zone: &'q TimeZone,
}

/// A span of time that can be restored to any moment of.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Reachable {
    pub timeline: u32,
    pub from: Timestamp,
    pub to: Timestamp,
    /// WAL is missing after it.
    pub gap: bool,
}

impl<'q, 'm> Question<'q, 'm> {
    /// The backup to begin with, and the rest of the way.
    pub fn choose(&self, target: &Target) -> Result<(&'m Manifest, Replay), TargetError> {
        if *target == Target::Latest {
            return self.latest();
        }
        let mut newer: Option<&Base<'_>> = None;
        for base in self.in_order() {
            let map = self.map(base.system)?;
            for way in self.ways(&map, base)? {
                if let Some(replay) = self.along(&map, &way, target, newer)? {
                    return Ok((base.manifest, replay));
                }
            }
            newer = Some(base);
        }
        Err(TargetError::Unreachable(self.sorry(target)?))
    }

    /// The end of the newest timeline, from the last backup that leads there: one on a timeline that was left may be
    /// newer.
    fn latest(&self) -> Result<(&'m Manifest, Replay), TargetError> {
        let bases = self.in_order();
        let Some(newest) = bases.first() else {
            return Err(TargetError::Unreachable(self.sorry(&Target::Latest)?));
        };
        let map = self.map(newest.system)?;
        let mut found: Option<(Way<'_, 'm>, &Base<'m>)> = None;
        for base in bases.iter().filter(|base| base.system == newest.system) {
            for way in self.ways(&map, base)? {
                if found
                    .as_ref()
                    .is_none_or(|(before, _)| way.timeline > before.timeline)
                {
                    found = Some((way, *base));
                }
            }
        }
        if let Some((way, base)) = found
            && let Some(replay) = self.along(&map, &way, &Target::Latest, None)?
        {
            return Ok((base.manifest, replay));
        }
        Err(TargetError::Unreachable(self.sorry(&Target::Latest)?))
    }

    /// The base backups by where they are in the WAL, the last one first; the clock may have been set back between
    /// them. Another cluster's come after those of the newest one's.
    fn in_order(&self) -> Vec<&'q Base<'m>> {
        let cluster = |system| self.bases.iter().position(|base| base.system == system);
        let mut bases: Vec<_> = self.bases.iter().collect();
        bases.sort_by_key(|base| (cluster(base.system), Reverse((base.timeline, base.stop))));
        bases
    }

    /// Everything that can be restored, the newest timeline last.
    pub fn reachable(&self) -> Result<Vec<Reachable>, TargetError> {
        let mut found: BTreeMap<u32, Vec<Reachable>> = BTreeMap::new();
        for base in self.in_order().into_iter().rev() {
            let map = self.map(base.system)?;
            for way in self.ways(&map, base)? {
                let one = Reachable {
                    timeline: way.timeline,
                    from: way.begins,
                    to: way.ends,
                    gap: way.path.gap_at.is_some(),
                };
                let spans = found.entry(way.timeline).or_default();
                match spans.last_mut().filter(|last| one.from <= last.to) {
                    Some(last) => {
                        last.to = last.to.max(one.to);
                        last.gap = one.gap;
                    }
                    None if one.to >= one.from => spans.push(one),
                    None => {}
                }
            }
        }
        Ok(found.into_values().flatten().collect())
    }

    fn map(&self, system: u64) -> Result<Map<'q>, TargetError> {
        let mut histories = BTreeMap::new();
        for timeline in self.list.histories.get(&system).into_iter().flatten() {
            let text = self.repository.wal_history(system, *timeline)?;
            let switches = parse_history(&text).map_err(|why| {
                RepositoryError::Invalid(format!(
                    "the stored history of timeline {timeline} cannot be understood: {why}"
                ))
            })?;
            histories.insert(*timeline, switches);
        }
        Ok(Map {
            system,
            list: self.list,
            histories,
        })
    }

    /// The ways on from a base backup, along the newest timeline first.
    fn ways<'b>(&self, map: &Map<'_>, base: &'b Base<'m>) -> Result<Vec<Way<'b, 'm>>, TargetError> {
        let mut timelines = map.timelines();
        if !timelines.contains(&base.timeline) {
            timelines.push(base.timeline);
        }
        timelines.retain(|timeline| self.timeline.is_none_or(|only| only == *timeline));
        let seen = self.repository.wal_seen(base.system)?;
        let mut ways = Vec::new();
        for timeline in timelines {
            let Some(path) = map.path(base.timeline, (base.stop, base.covered), timeline) else {
                continue;
            };
            // A gap before the timeline: it cannot be reached.
            if path.legs.last().is_none_or(|leg| leg.timeline != timeline) {
                continue;
            }
            let begins = if timeline == base.timeline {
                base.stopped
            } else {
                let stored = map.list.of(map.system, timeline);
                stored.map(Stretch::at).min().unwrap_or(base.stopped)
            };
            ways.push(Way {
                base,
                timeline,
                begins,
                ends: ends(map, &path, timeline, seen.as_ref()).max(begins),
                path,
            });
        }
        Ok(ways)
    }

    /// The replay along one way, if it leads to the target.
    fn along(
        &self,
        map: &Map<'_>,
        way: &Way<'_, 'm>,
        target: &Target,
        newer: Option<&Base<'_>>,
    ) -> Result<Option<Replay>, TargetError> {
        let mut legs = way.path.legs.clone();
        let mut settings = Vec::new();
        let said = match target {
            Target::Backup => {
                legs.clear();
                if way.timeline != way.base.timeline {
                    return Ok(None);
                }
                format!("to the end of the backup, {}", self.time(way.base.stopped))
            }
            Target::Latest => format!("as late as there is WAL, {}", self.time(way.ends)),
            Target::Time(time) => {
                if *time < way.begins || *time > way.ends {
                    return Ok(None);
                }
                if let Some(record) = self.first_after(map, way, *time)? {
                    settings.push((
                        "recovery_target_time",
                        format!("{time:.6}").replace('T', " ").replace('Z', "+00"),
                    ));
                    settings.push(("recovery_target_inclusive", "true".to_owned()));
                    cut(&mut legs, record.end.0);
                }
                let twice = if stored_along(map, way).is_none() {
                    ", as far as no later commit comes first: the server's clock was set back on the way, and only a mark or --lsn is one place in it"
                } else {
                    ""
                };
                format!("to {}{twice}", self.time(*time))
            }
            Target::Lsn(lsn) => {
                if *lsn < way.base.stop || *lsn > way.path.end() {
                    return Ok(None);
                }
                if let Some(record) = self.first_at(map, way, *lsn)? {
                    settings.push(("recovery_target_lsn", Lsn(*lsn).to_string()));
                    settings.push(("recovery_target_inclusive", "false".to_owned()));
                    cut(&mut legs, record.end.0);
                }
                format!("to {}", Lsn(*lsn))
            }
            Target::BeforeXid(xid) => {
                let Some((index, record)) = self.find_xid(map, way, *xid, newer)? else {
                    return Ok(None);
                };
                settings.push(("recovery_target_xid", xid.to_string()));
                settings.push(("recovery_target_inclusive", "false".to_owned()));
                legs.truncate(index + 1);
                cut(&mut legs, record.end.0);
                format!(
                    "to before transaction {xid} ended, {}",
                    record
                        .ending()
                        .map_or_else(String::new, |e| self.time(e.time))
                )
            }
        };
        let timeline = legs.last().map_or(way.base.timeline, |leg| leg.timeline);
        let mut histories = Vec::new();
        for other in map.histories.keys() {
            histories.push((*other, self.repository.wal_history(map.system, *other)?));
        }
        let gap = way.path.gap_at.filter(|_| *target == Target::Latest);
        let said = match gap {
            Some(gap) => format!(
                "{said}, where WAL is missing (timeline {} from {} on)",
                gap.timeline,
                Lsn(gap.from)
            ),
            None => said,
        };
        let parts = Parts {
            repository: Arc::clone(self.repository),
            list: self.list.clone(),
            system: map.system,
            size: way.base.size,
            timeline,
            legs,
            settings,
            histories,
            said,
        };
        Ok(Some(Replay::new(parts)))
    }

    /// The record that recovery to `time` stops before.
    fn first_after(
        &self,
        map: &Map<'_>,
        way: &Way<'_, '_>,
        time: Timestamp,
    ) -> Result<Option<Record>, TargetError> {
        let Some(leg) = way.path.legs.last() else {
            return Ok(None);
        };
        // What was stored by then was written by then.
        let stored = stored_along(map, way).unwrap_or_default();
        let known = stored.iter().rfind(|stretch| stretch.at() <= time);
        let from = known.map_or(leg.from, |stretch| stretch.end).max(leg.from);
        let found = records::first_after(self.records(map, way, *leg, from), time)?;
        Ok(found)
    }

    fn first_at(
        &self,
        map: &Map<'_>,
        way: &Way<'_, '_>,
        lsn: u64,
    ) -> Result<Option<Record>, TargetError> {
        for leg in way.path.legs.iter().filter(|leg| leg.to >= lsn) {
            let from = lsn.max(leg.from);
            if let Some(record) = records::first_at(self.records(map, way, *leg, from), Lsn(lsn))? {
                return Ok(Some(record));
            }
        }
        Ok(None)
    }

    fn find_xid(
        &self,
        map: &Map<'_>,
        way: &Way<'_, '_>,
        xid: u32,
        newer: Option<&Base<'_>>,
    ) -> Result<Option<(usize, Record)>, TargetError> {
        for (index, leg) in way.path.legs.iter().enumerate() {
            // What is after a newer backup was looked through already.
            let newer = newer.filter(|n| n.system == map.system && n.timeline == leg.timeline);
            let to = newer.map_or(leg.to, |n| leg.to.min(n.stop.max(leg.from)));
            let leg = Leg { to, ..*leg };
            if let Some(record) = records::find_xid(self.records(map, way, leg, leg.from), xid)? {
                return Ok(Some((index, record)));
            }
        }
        Ok(None)
    }

    /// The records of a leg from the beginning of the segment that holds `from`.
    fn records(
        &self,
        map: &Map<'_>,
        way: &Way<'_, '_>,
        leg: Leg,
        from: u64,
    ) -> Box<dyn Iterator<Item = Result<Record, ReadError>> + '_> {
        let size = way.base.size;
        if leg.to <= leg.from {
            return Box::new(std::iter::empty());
        }
        let start = size.start_of(size.segment_at(Lsn(from)));
        let stream = Stream::new(
            self.repository,
            self.list,
            (map.system, leg.timeline),
            start.0,
            leg.to,
        );
        let wanted = leg.from;
        let records = Records::new(start, size, leg.timeline, Some(map.system)).read(stream);
        Box::new(records.filter(move |record| {
            record
                .as_ref()
                .map_or(true, |record| record.start.0 >= wanted)
        }))
    }

    /// Why there is no way, and what there is.
    fn sorry(&self, target: &Target) -> Result<String, TargetError> {
        let what = match target {
            Target::Backup | Target::Latest => {
                "there is no backup that recovery could begin with".to_owned()
            }
            Target::Time(time) => format!("{} cannot be restored", self.time(*time)),
            Target::Lsn(lsn) => format!("the position {} cannot be restored", Lsn(*lsn)),
            Target::BeforeXid(xid) => {
                format!("transaction {xid} did not end in any WAL that is stored after a backup")
            }
        };
        let reachable = self.reachable()?;
        if reachable.is_empty() {
            return Ok(format!(
                "{what}: there is no backup of this cluster with WAL after it (PITR=on keeps it)"
            ));
        }
        let spans: Vec<String> = reachable
            .iter()
            .map(|r| {
                format!(
                    "{} to {} (timeline {})",
                    self.time(r.from),
                    self.time(r.to),
                    r.timeline
                )
            })
            .collect();
        Ok(format!(
            "{what}. What can be restored: {}. `--at latest` is the end of the newest",
            spans.join("; ")
        ))
    }

    fn time(&self, time: Timestamp) -> String {
        time.to_zoned(self.zone.clone())
            .strftime("%Y-%m-%d %H:%M:%S %Z")
            .to_string()
    }
}

/// What is stored of the last leg, in order; `None` when the server's clock was set back meanwhile.
fn stored_along<'s>(map: &Map<'s>, way: &Way<'_, '_>) -> Option<Vec<&'s Stretch>> {
    let leg = way.path.legs.last()?;
    let stored = map.list.of(map.system, leg.timeline);
    let mut stretches: Vec<_> = stored.filter(|s| s.end <= leg.to).collect();
    stretches.sort_by_key(|stretch| stretch.end);
    stretches
        .is_sorted_by_key(|stretch| stretch.at())
        .then_some(stretches)
}

/// The last moment that a path leads to.
fn ends(map: &Map<'_>, path: &Path, timeline: u32, seen: Option<&Seen>) -> Timestamp {
    // What was stored before the backup was made tells nothing: the clock may have been ahead then.
    let last = path.legs.last().into_iter().flat_map(|leg| {
        let stored = map.list.of(map.system, timeline);
        stored.filter(|s| s.end > leg.from && s.start < leg.to)
    });
    let looked = seen.filter(|seen| seen.timeline == timeline && seen.end == path.end());
    last.map(Stretch::at)
        .chain(looked.map(|seen| seen.at))
        .max()
        .unwrap_or(Timestamp::MIN)
}

/// Ends the legs at a position.
fn cut(legs: &mut Vec<Leg>, end: u64) {
    while let Some(leg) = legs.last_mut() {
        if leg.from < end || legs.len() == 1 {
            if let Some(leg) = legs.last_mut() {
                leg.to = leg.to.min(end.max(leg.from));
            }
            return;
        }
        legs.pop();
    }
}
