//! A collection in memory: shards of segments of points.
//!
//! Segments are shared by reference count and copied on write, so a snapshot
//! freezes a collection by cloning pointers under the lock while writers go on.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::CollectionConfig;
use crate::error::{Error, Result};
use crate::model::{Point, PointId};

/// One acknowledged operation, as the log keeps it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    pub op: u64,
    /// Unix seconds; becomes the mtime of the segments it touches.
    pub at: i64,
    pub changes: Vec<Change>,
}

/// What an operation did, in terms that replay to the same bytes.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    Config {
        config: CollectionConfig,
    },
    Segment {
        shard: u32,
        id: String,
        version: u64,
        modified: i64,
    },
    Put {
        #[serde(flatten)]
        location: Location,
        point: Point,
    },
    Delete {
        id: PointId,
    },
    Index {
        field: String,
        schema: Value,
    },
    DropIndex {
        field: String,
    },
    /// Puts a restored segment's version and time back after its points.
    Stamp {
        shard: u32,
        segment: usize,
        version: u64,
        modified: i64,
    },
}

impl Change {
    pub fn segment(shard: u32, id: String, version: u64, modified: i64) -> Self {
        Self::Segment {
            shard,
            id,
            version,
            modified,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Location {
    pub shard: u32,
    pub segment: usize,
    pub offset: usize,
}

/// Points at fixed offsets; a deleted one leaves a hole. `version` and
/// `modified` are those of the last operation that touched the segment, so an
/// untouched one is written byte for byte the same again.
#[derive(Debug, Clone, Default)]
pub struct Segment {
    pub id: String,
    pub version: u64,
    pub modified: i64,
    pub slots: Vec<Option<Arc<Point>>>,
}

/// A collection at one instant.
#[derive(Debug, Clone)]
pub struct Frozen {
    pub config: CollectionConfig,
    pub schema: BTreeMap<String, Value>,
    pub shards: BTreeMap<u32, Vec<Arc<Segment>>>,
}

#[derive(Debug, Default)]
pub struct State {
    config: Option<CollectionConfig>,
    schema: BTreeMap<String, Value>,
    shards: BTreeMap<u32, Vec<Arc<Segment>>>,
    index: BTreeMap<PointId, Location>,
    op: u64,
}

impl State {
    pub fn op(&self) -> u64 {
        self.op
    }

    pub fn config(&self) -> Result<&CollectionConfig> {
        self.config
            .as_ref()
            .ok_or_else(|| Error::Internal("collection log holds no configuration".into()))
    }

    pub fn schema(&self) -> &BTreeMap<String, Value> {
        &self.schema
    }

    pub fn count(&self) -> usize {
        self.index.len()
    }

    pub fn segments(&self) -> usize {
        self.shards.values().map(Vec::len).sum()
    }

    pub fn locate(&self, id: PointId) -> Option<Location> {
        self.index.get(&id).copied()
    }

    pub fn point(&self, id: PointId) -> Option<&Point> {
        self.at(self.locate(id)?)
    }

    /// All points from `offset` on, in the order of their ids.
    pub fn points(&self, offset: Option<PointId>) -> impl Iterator<Item = &Point> {
        let first = offset.unwrap_or(PointId::Num(0));
        self.index
            .range(first..)
            .filter_map(|(_, location)| self.at(*location))
    }

    /// Slots in use (holes included) per segment, by shard.
    pub fn segment_lengths(&self) -> BTreeMap<u32, Vec<usize>> {
        self.shards
            .iter()
            .map(|(shard, segments)| (*shard, segments.iter().map(|s| s.slots.len()).collect()))
            .collect()
    }

    /// The collection as it is now; costs one pointer per segment.
    pub fn freeze(&self) -> Result<Frozen> {
        Ok(Frozen {
            config: self.config()?.clone(),
            schema: self.schema.clone(),
            shards: self.shards.clone(),
        })
    }

    pub fn apply(&mut self, record: Record) -> Result<()> {
        for change in record.changes {
            self.apply_change(change, record.op, record.at)?;
        }
        self.op = record.op;
        Ok(())
    }

    fn apply_change(&mut self, change: Change, op: u64, at: i64) -> Result<()> {
        match change {
            Change::Config { config } => self.config = Some(config),
            Change::Segment {
                shard,
                id,
                version,
                modified,
            } => {
                let segment = Segment {
                    id,
                    version,
                    modified,
                    slots: Vec::new(),
                };
                self.shards
                    .entry(shard)
                    .or_default()
                    .push(Arc::new(segment));
            }
            Change::Put { location, point } => {
                let id = point.id;
                let segment = self.segment_mut(location.shard, location.segment)?;
                if segment.slots.len() <= location.offset {
                    segment.slots.resize(location.offset + 1, None);
                }
                segment.slots[location.offset] = Some(Arc::new(point));
                (segment.version, segment.modified) = (op, at);
                self.index.insert(id, location);
            }
            Change::Delete { id } => {
                if let Some(location) = self.index.remove(&id) {
                    let segment = self.segment_mut(location.shard, location.segment)?;
                    if let Some(slot) = segment.slots.get_mut(location.offset) {
                        *slot = None;
                    }
                    (segment.version, segment.modified) = (op, at);
                }
            }
            Change::Index { field, schema } => {
                self.schema.insert(field, schema);
                self.touch_all(op, at);
            }
            Change::DropIndex { field } => {
                self.schema.remove(&field);
                self.touch_all(op, at);
            }
            Change::Stamp {
                shard,
                segment,
                version,
                modified,
            } => {
                let segment = self.segment_mut(shard, segment)?;
                (segment.version, segment.modified) = (version, modified);
            }
        }
        Ok(())
    }

    /// Every segment carries the index configuration, so all of them change.
    fn touch_all(&mut self, op: u64, at: i64) {
        for segment in self.shards.values_mut().flatten() {
            let segment = Arc::make_mut(segment);
            (segment.version, segment.modified) = (op, at);
        }
    }

    fn at(&self, location: Location) -> Option<&Point> {
        let segment = self.shards.get(&location.shard)?.get(location.segment)?;
        segment.slots.get(location.offset)?.as_deref()
    }

    fn segment_mut(&mut self, shard: u32, segment: usize) -> Result<&mut Segment> {
        self.shards
            .get_mut(&shard)
            .and_then(|segments| segments.get_mut(segment))
            .map(Arc::make_mut)
            .ok_or_else(|| Error::Internal(format!("no segment {segment} in shard {shard}")))
    }
}

impl Frozen {
    /// The record that rebuilds this state: what a restore writes as its log.
    pub fn into_record(self, at: i64) -> Record {
        let mut changes = vec![Change::Config {
            config: self.config,
        }];
        let mut op = 0;
        for (field, schema) in self.schema {
            changes.push(Change::Index { field, schema });
        }
        for (shard, segments) in self.shards {
            for (number, segment) in segments.into_iter().enumerate() {
                op = op.max(segment.version);
                let (version, modified) = (segment.version, segment.modified);
                changes.push(Change::segment(
                    shard,
                    segment.id.clone(),
                    version,
                    modified,
                ));
                for (offset, slot) in segment.slots.iter().enumerate() {
                    let Some(point) = slot else { continue };
                    let location = Location {
                        shard,
                        segment: number,
                        offset,
                    };
                    let point = Point::clone(point);
                    changes.push(Change::Put { location, point });
                }
                changes.push(Change::Stamp {
                    shard,
                    segment: number,
                    version,
                    modified,
                });
            }
        }
        Record { op, at, changes }
    }
}
