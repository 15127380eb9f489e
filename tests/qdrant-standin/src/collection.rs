//! One collection: its state in memory and the log that makes it durable.
//!
//! Every operation is planned into [`Change`]s, appended to the log and
//! fsynced, and only then applied and acknowledged: what a client was told is
//! still there after `kill -9`.

pub mod log;
pub mod state;

use std::collections::HashMap;
use std::path::Path;

use jiff::Timestamp;
use serde_json::Value;

use crate::config::CollectionConfig;
use crate::error::{Error, Result};
use crate::model::{Payload, Point, PointId, Vectors, new_uuid};

use log::Log;
use state::{Change, Location, Record, State};

/// The server starts a shard with as many segments as it has spare cores; the
/// recordings come from one that made two.
const SEGMENTS_AT_START: usize = 2;

/// A point as a client sends it.
#[derive(Debug, Clone)]
pub struct NewPoint {
    pub id: PointId,
    pub vectors: Vectors,
    pub payload: Payload,
}

/// How a payload or vector edit changes one point.
pub type Edit<'a> = &'a dyn Fn(&mut Point) -> Result<()>;

#[derive(Debug)]
pub struct Collection {
    state: State,
    log: Log,
    segment_points: usize,
}

impl Collection {
    /// Makes an empty collection in `dir`, which must not exist.
    pub fn create(dir: &Path, config: CollectionConfig, segment_points: usize) -> Result<Self> {
        let at = now();
        let shards = config.shard_number();
        let mut changes = vec![Change::Config { config }];
        for shard in 0..shards {
            for _ in 0..SEGMENTS_AT_START {
                changes.push(Change::segment(shard, new_uuid(), 0, at));
            }
        }
        Self::create_from(dir, Record { op: 0, at, changes }, segment_points)
    }

    /// Makes a collection in `dir` that holds what one record says: the way a
    /// restored snapshot comes in.
    pub fn create_from(dir: &Path, record: Record, segment_points: usize) -> Result<Self> {
        let log = Log::create(dir, &record)?;
        let mut state = State::default();
        state.apply(record)?;
        Ok(Self {
            state,
            log,
            segment_points,
        })
    }

    /// Reads a collection back from its log.
    pub fn open(dir: &Path, segment_points: usize) -> Result<Self> {
        let (log, records) = Log::open(dir)?;
        let mut state = State::default();
        for record in records {
            state.apply(record)?;
        }
        Ok(Self {
            state,
            log,
            segment_points,
        })
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    /// Inserts or replaces points; returns the operation's number.
    pub fn upsert(&mut self, points: Vec<NewPoint>) -> Result<u64> {
        let op = self.state.op() + 1;
        let config = self.state.config()?;
        let shards = config.shard_number();
        let mut changes = Vec::new();
        let mut planned: HashMap<PointId, Location> = HashMap::new();
        let mut lengths = self.state.segment_lengths();
        for point in points {
            let known = planned
                .get(&point.id)
                .copied()
                .or_else(|| self.state.locate(point.id));
            let location = match known {
                Some(location) => location,
                None => {
                    let shard = point.id.shard(shards);
                    let lengths = lengths.entry(shard).or_default();
                    let (segment, new) = pick_segment(lengths, self.segment_points);
                    if new {
                        changes.push(Change::segment(shard, new_uuid(), op, now()));
                    }
                    let offset = lengths[segment];
                    lengths[segment] += 1;
                    Location {
                        shard,
                        segment,
                        offset,
                    }
                }
            };
            planned.insert(point.id, location);
            changes.push(Change::Put {
                location,
                point: Point {
                    id: point.id,
                    version: op,
                    vectors: config.prepare(point.vectors)?,
                    payload: point.payload,
                },
            });
        }
        self.commit(op, changes)
    }

    /// Deletes points; ids that are not there are no error.
    pub fn delete(&mut self, ids: &[PointId]) -> Result<u64> {
        let present = ids.iter().filter(|id| self.state.locate(**id).is_some());
        let changes = present.map(|id| Change::Delete { id: *id }).collect();
        self.commit(self.state.op() + 1, changes)
    }

    /// Changes points in place. A missing id fails the whole operation, as
    /// the server has it for explicit ids.
    pub fn edit(&mut self, ids: &[PointId], edit: Edit<'_>) -> Result<u64> {
        let op = self.state.op() + 1;
        let config = self.state.config()?;
        let mut changes = Vec::new();
        for id in ids {
            let missing = || Error::NotFound(format!("No point with id {id} found"));
            let location = self.state.locate(*id).ok_or_else(missing)?;
            let mut point = self.state.point(*id).ok_or_else(missing)?.clone();
            edit(&mut point)?;
            point.version = op;
            point.vectors = config.prepare(point.vectors)?;
            changes.push(Change::Put { location, point });
        }
        self.commit(op, changes)
    }

    /// Declares a payload index. The server spends two operations on it.
    pub fn create_index(&mut self, field: String, schema: Value) -> Result<u64> {
        let changes = vec![Change::Index { field, schema }];
        self.commit(self.state.op() + 2, changes)
    }

    pub fn drop_index(&mut self, field: String) -> Result<u64> {
        let changes = vec![Change::DropIndex { field }];
        self.commit(self.state.op() + 2, changes)
    }

    fn commit(&mut self, op: u64, changes: Vec<Change>) -> Result<u64> {
        let record = Record {
            op,
            at: now(),
            changes,
        };
        self.log.append(&record)?;
        self.state.apply(record)?;
        Ok(op)
    }
}

/// The emptiest segment with room, or a new one at the end.
fn pick_segment(lengths: &mut Vec<usize>, segment_points: usize) -> (usize, bool) {
    let open = lengths
        .iter()
        .enumerate()
        .filter(|(_, length)| **length < segment_points)
        .min_by_key(|(_, length)| **length)
        .map(|(segment, _)| segment);
    match open {
        Some(segment) => (segment, false),
        None => {
            lengths.push(0);
            (lengths.len() - 1, true)
        }
    }
}

fn now() -> i64 {
    Timestamp::now().as_second()
}
