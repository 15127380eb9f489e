//! Which positions the stored WAL leads to from a base backup, over the timelines in between.

use std::collections::BTreeMap;

use crate::repository::wal::{WalList, spans};

/// A branch: the timeline that was left, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Switch {
    pub timeline: u32,
    pub at: u64,
}

/// Reads a timeline's history file: the timelines before it, oldest first.
pub fn parse_history(text: &str) -> Result<Vec<Switch>, String> {
    let mut switches: Vec<Switch> = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let mut fields = line.split_whitespace();
        let switch = fields
            .next()
            .and_then(|t| t.parse().ok())
            .zip(fields.next().and_then(super::super::wal::Lsn::parse))
            .map(|(timeline, at)| Switch { timeline, at: at.0 })
            .ok_or_else(|| {
                format!(
                    "the line \"{}\" names no timeline and position",
                    line.escape_debug()
                )
            })?;
        if let Some(last) = switches.last()
            && (last.timeline >= switch.timeline || last.at > switch.at)
        {
            return Err(format!(
                "the line \"{}\" is out of order",
                line.escape_debug()
            ));
        }
        switches.push(switch);
    }
    Ok(switches)
}

/// WAL of one timeline on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leg {
    pub timeline: u32,
    pub from: u64,
    pub to: u64,
}

/// How far a base backup can be replayed along one timeline and those before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    pub legs: Vec<Leg>,
    /// Where WAL is missing before the stored end of the timeline.
    pub gap_at: Option<Leg>,
}

impl Path {
    pub fn end(&self) -> u64 {
        self.legs.last().map_or(0, |leg| leg.to)
    }
}

/// What is known of one cluster's WAL.
pub struct Map<'a> {
    pub system: u64,
    pub list: &'a WalList,
    /// By timeline.
    pub histories: BTreeMap<u32, Vec<Switch>>,
}

impl Map<'_> {
    /// The way from a base backup on `timeline` to the end of `target`; `None` when that does not descend from it.
    /// `base` is where the backup ends, and how far its own WAL goes on.
    pub fn path(&self, timeline: u32, base: (u64, u64), target: u32) -> Option<Path> {
        let (base, own) = base;
        let mut legs = Vec::new();
        let mut from = base;
        let none = Vec::new();
        let switches = match self.histories.get(&target) {
            Some(switches) => switches,
            None if target == timeline => &none,
            None => return None,
        };
        if target != timeline
            && !switches
                .iter()
                .any(|s| s.timeline == timeline && s.at >= base)
        {
            return None;
        }
        for switch in switches.iter().filter(|s| s.timeline >= timeline) {
            legs.push(Leg {
                timeline: switch.timeline,
                from,
                to: switch.at,
            });
            from = from.max(switch.at);
        }
        legs.push(Leg {
            timeline: target,
            from,
            to: u64::MAX,
        });
        Some(self.covered(legs, own))
    }

    /// The legs as far as there is WAL.
    fn covered(&self, legs: Vec<Leg>, own: u64) -> Path {
        let mut path = Path {
            legs: Vec::new(),
            gap_at: None,
        };
        let last = legs.len().saturating_sub(1);
        for (index, leg) in legs.into_iter().enumerate() {
            let all = spans(self.list.of(self.system, leg.timeline));
            // What the backup brought itself need not be stored.
            let known = if index == 0 {
                own.max(leg.from)
            } else {
                leg.from
            };
            let found = all
                .iter()
                .find(|span| span.start <= known && span.end >= leg.from);
            let end = found
                .map_or(leg.from, |span| span.end)
                .max(known)
                .min(leg.to);
            let from = found.map_or(end, |span| span.start.clamp(leg.from, end));
            path.legs.push(Leg {
                from,
                to: end,
                ..leg
            });
            let is_whole = if index == last {
                !all.iter().any(|span| span.start > end)
            } else {
                end == leg.to
            };
            if !is_whole {
                path.gap_at = Some(Leg { from: end, ..leg });
                return path;
            }
        }
        path
    }

    /// Timelines that have WAL or a history, the newest first.
    pub fn timelines(&self) -> Vec<u32> {
        let mut all = self.list.timelines(self.system);
        all.extend(self.histories.keys());
        all.sort_unstable_by(|a, b| b.cmp(a));
        all.dedup();
        all
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::repository::wal::Stretch;

    fn list(parts: &[(u32, u64, u64)]) -> WalList {
        WalList {
            stretches: parts
                .iter()
                .map(|(timeline, start, end)| Stretch {
                    system: 1,
                    timeline: *timeline,
                    start: *start,
                    end: *end,
                    time: 0,
                })
                .collect(),
            ..WalList::default()
        }
    }

    fn legs(path: &Path) -> Vec<(u32, u64, u64)> {
        path.legs
            .iter()
            .map(|l| (l.timeline, l.from, l.to))
            .collect()
    }

    #[test]
    fn a_history_is_read_as_the_server_writes_it() {
        let text =
            "1\t0/3000098\tno recovery target specified\n\n2\t0/5000000\tbefore 2026-01-01 # x\n";
        let switches = parse_history(text).unwrap();
        let expected = [(1, 0x0300_0098), (2, 0x0500_0000)];
        assert!(switches.iter().map(|s| (s.timeline, s.at)).eq(expected));
        assert_eq!(parse_history(""), Ok(Vec::new()));
        for bad in [
            "1",
            "x\t0/1",
            "1\tnowhere",
            "2\t0/5\tx\n1\t0/6\ty",
            "1\t0/5\tx\n2\t0/4\ty",
        ] {
            assert!(parse_history(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_base_backup_reaches_as_far_as_there_is_no_gap() {
        let whole = list(&[(1, 0, 160), (1, 160, 200)]);
        let map = |list| Map {
            system: 1,
            list,
            histories: BTreeMap::new(),
        };
        let path = map(&whole).path(1, (100, 100), 1).unwrap();
        assert_eq!((legs(&path), path.gap_at), (vec![(1, 100, 200)], None));
        let holed = list(&[(1, 0, 160), (1, 176, 200)]);
        let path = map(&holed).path(1, (100, 100), 1).unwrap();
        assert_eq!(legs(&path), [(1, 100, 160)]);
        assert_eq!(path.gap_at.map(|leg| leg.from), Some(160));
        // The WAL begins after the backup's end.
        let late = list(&[(1, 112, 200)]);
        let path = map(&late).path(1, (100, 100), 1).unwrap();
        assert_eq!(
            (legs(&path), path.gap_at.is_some()),
            (vec![(1, 100, 100)], true)
        );
        // The backup's own WAL goes on to where it begins, or to where the next timeline does.
        let path = map(&late).path(1, (100, 112), 1).unwrap();
        assert_eq!((legs(&path), path.gap_at), (vec![(1, 112, 200)], None));
        // None at all: the backup itself is the end.
        let none = WalList::default();
        let path = map(&none).path(1, (100, 100), 1).unwrap();
        assert_eq!((legs(&path), path.gap_at), (vec![(1, 100, 100)], None));
        assert_eq!(map(&whole).path(1, (100, 100), 2), None);
    }

    #[test]
    fn a_path_crosses_timelines_where_they_branched() {
        let switch = |timeline, at| Switch { timeline, at };
        let stored = list(&[(1, 0, 300), (2, 192, 260), (3, 240, 400)]);
        let map = Map {
            system: 1,
            list: &stored,
            histories: BTreeMap::from([
                (2, vec![switch(1, 200)]),
                (3, vec![switch(1, 200), switch(2, 250)]),
            ]),
        };
        let to = |target| {
            map.path(1, (100, 100), target)
                .map(|p| (legs(&p), p.gap_at.is_some()))
        };
        assert_eq!(to(1), Some((vec![(1, 100, 300)], false)));
        assert_eq!(to(2), Some((vec![(1, 100, 200), (2, 200, 260)], false)));
        let whole = vec![(1, 100, 200), (2, 200, 250), (3, 250, 400)];
        assert_eq!(to(3), Some((whole, false)));
        // A backup from after the branch is of another future.
        assert_eq!(map.path(1, (220, 220), 2), None);
        let path = map.path(2, (210, 210), 3).unwrap();
        assert_eq!(legs(&path), [(2, 210, 250), (3, 250, 400)]);
        assert_eq!(map.timelines(), [3, 2, 1]);
    }
}
