//! What can be done with points, in terms that both protocols share.

use serde_json::{Map, Value, json};

use crate::collection::{Collection, Edit, NewPoint};
use crate::config::{CollectionConfig, Distance};
use crate::error::{Error, Result};
use crate::filter::{Filter, values_at};
use crate::model::{DEFAULT_VECTOR, Payload, Point, PointId, Vectors};
use crate::store::{Store, lock};

/// The points an operation is about.
#[derive(Debug)]
pub enum Selection {
    Ids(Vec<PointId>),
    Filter(Filter),
}

/// A nearest-neighbour search; no filter, no threshold means all points.
#[derive(Debug, Default)]
pub struct Search {
    pub vector: Vec<f32>,
    pub using: String,
    pub filter: Filter,
    pub limit: usize,
    pub offset: usize,
    pub threshold: Option<f32>,
}

/// What `GET /collections/{name}` is made of.
#[derive(Debug)]
pub struct Info {
    pub config: CollectionConfig,
    pub points: usize,
    pub segments: usize,
    /// Schema and number of points with a value, by field.
    pub schema: Vec<(String, Value, usize)>,
}

impl Store {
    pub fn info(&self, collection: &str) -> Result<Info> {
        let shared = self.get(collection)?;
        let collection = lock(&shared);
        let state = collection.state();
        let schema = state.schema().iter().map(|(field, schema)| {
            let with_value = |point: &&Point| !values_at(&point.payload, field).is_empty();
            let points = state.points(None).filter(with_value).count();
            (field.clone(), schema.clone(), points)
        });
        Ok(Info {
            config: state.config()?.clone(),
            points: state.count(),
            segments: state.segments(),
            schema: schema.collect(),
        })
    }

    pub fn upsert(&self, collection: &str, points: Vec<NewPoint>) -> Result<u64> {
        lock(&self.get(collection)?).upsert(points)
    }

    pub fn delete_points(&self, collection: &str, selection: &Selection) -> Result<u64> {
        let shared = self.get(collection)?;
        let mut collection = lock(&shared);
        let ids = select(&collection, selection)?;
        collection.delete(&ids)
    }

    pub fn edit_points(
        &self,
        collection: &str,
        selection: &Selection,
        edit: Edit<'_>,
    ) -> Result<u64> {
        let shared = self.get(collection)?;
        let mut collection = lock(&shared);
        let ids = select(&collection, selection)?;
        collection.edit(&ids, edit)
    }

    pub fn create_index(&self, collection: &str, field: String, schema: Value) -> Result<u64> {
        lock(&self.get(collection)?).create_index(field, schema)
    }

    pub fn drop_index(&self, collection: &str, field: String) -> Result<u64> {
        lock(&self.get(collection)?).drop_index(field)
    }

    /// Always exact.
    pub fn count(&self, collection: &str, filter: &Filter) -> Result<usize> {
        let shared = self.get(collection)?;
        let collection = lock(&shared);
        let mut count = 0;
        for point in collection.state().points(None) {
            count += usize::from(filter.matches(point)?);
        }
        Ok(count)
    }

    /// Up to `limit` points from `offset` on, and where the next page begins.
    pub fn scroll(
        &self,
        collection: &str,
        offset: Option<PointId>,
        limit: usize,
        filter: &Filter,
    ) -> Result<(Vec<Point>, Option<PointId>)> {
        let shared = self.get(collection)?;
        let collection = lock(&shared);
        let mut page = Vec::new();
        for point in collection.state().points(offset) {
            if filter.matches(point)? {
                if page.len() == limit {
                    return Ok((page, Some(point.id)));
                }
                page.push(point.clone());
            }
        }
        Ok((page, None))
    }

    /// The points that are there, in the order of `ids`.
    pub fn retrieve(&self, collection: &str, ids: &[PointId]) -> Result<Vec<Point>> {
        let shared = self.get(collection)?;
        let collection = lock(&shared);
        let state = collection.state();
        let found = ids.iter().filter_map(|id| state.point(*id).cloned());
        Ok(found.collect())
    }

    /// Brute force over all points, best first.
    pub fn search(&self, collection: &str, search: &Search) -> Result<Vec<(Point, f32)>> {
        let shared = self.get(collection)?;
        let collection = lock(&shared);
        let config = collection.state().config()?;
        let using = search.using.clone();
        let query = config.prepare(Vectors::from([(using, search.vector.clone())]))?;
        let (Some(query), Some(params)) = (
            query.get(&search.using),
            config.vectors().get(&search.using),
        ) else {
            return Ok(Vec::new());
        };
        let mut hits = Vec::new();
        for point in collection.state().points(None) {
            let Some(vector) = point.vectors.get(&search.using) else {
                continue;
            };
            if search.filter.matches(point)? {
                hits.push((point, score(params.distance, query, vector)));
            }
        }
        let smaller_is_better = matches!(params.distance, Distance::Euclid | Distance::Manhattan);
        if let Some(threshold) = search.threshold {
            hits.retain(|(_, score)| (*score <= threshold) == smaller_is_better);
        }
        hits.sort_by(|(_, a), (_, b)| {
            let order = a.total_cmp(b);
            if smaller_is_better {
                order
            } else {
                order.reverse()
            }
        });
        let page = hits.into_iter().skip(search.offset).take(search.limit);
        Ok(page.map(|(point, score)| (point.clone(), score)).collect())
    }
}

fn select(collection: &Collection, selection: &Selection) -> Result<Vec<PointId>> {
    let filter = match selection {
        Selection::Ids(ids) => return Ok(ids.clone()),
        Selection::Filter(filter) => filter,
    };
    let mut ids = Vec::new();
    for point in collection.state().points(None) {
        if filter.matches(point)? {
            ids.push(point.id);
        }
    }
    Ok(ids)
}

/// Reads a point's `vector` in REST notation: a list, or lists by name.
pub fn vectors_from_json(value: Option<&Value>) -> Result<Vectors> {
    let list = |value: &Value| -> Result<Vec<f32>> {
        serde_json::from_value(value.clone()).map_err(|_| {
            Error::BadRequest(
                "Lifeboat's test stand-in takes dense vectors only: lists of numbers".into(),
            )
        })
    };
    match value {
        None | Some(Value::Null) => Ok(Vectors::new()),
        Some(Value::Object(named)) => named
            .iter()
            .map(|(name, value)| Ok((name.clone(), list(value)?)))
            .collect(),
        Some(single) => Ok(Vectors::from([(DEFAULT_VECTOR.to_string(), list(single)?)])),
    }
}

/// Writes vectors in REST notation.
pub fn vectors_to_json(vectors: &Vectors) -> Value {
    match vectors.get(DEFAULT_VECTOR) {
        Some(single) => json!(single),
        None => json!(vectors),
    }
}

/// Which parts of a payload (or which named vectors) an answer carries.
#[derive(Debug, Clone)]
pub enum Parts {
    All,
    None,
    Include(Vec<String>),
    Exclude(Vec<String>),
}

impl Parts {
    /// `true`, `false`, a list, or `include`/`exclude` with a list.
    pub fn from_json(value: Option<&Value>, default: Self) -> Self {
        let list = |value: &Value| serde_json::from_value(value.clone()).unwrap_or_default();
        match value {
            None | Some(Value::Null) => default,
            Some(Value::Bool(true)) => Self::All,
            Some(Value::Bool(false)) => Self::None,
            Some(value) => match (value.get("include"), value.get("exclude")) {
                (Some(include), _) => Self::Include(list(include)),
                (_, Some(exclude)) => Self::Exclude(list(exclude)),
                _ => Self::Include(list(value)),
            },
        }
    }

    pub fn wants(&self, name: &str) -> bool {
        let listed = |names: &[String]| names.iter().any(|n| n == name);
        match self {
            Self::All => true,
            Self::None => false,
            Self::Include(names) => listed(names),
            Self::Exclude(names) => !listed(names),
        }
    }

    pub fn payload(&self, payload: &Payload) -> Payload {
        let kept = payload.iter().filter(|(key, _)| self.wants(key));
        Map::from_iter(kept.map(|(key, value)| (key.clone(), value.clone())))
    }

    pub fn vectors(&self, vectors: &Vectors) -> Vectors {
        let kept = vectors.iter().filter(|(name, _)| self.wants(name));
        kept.map(|(name, vector)| (name.clone(), vector.clone()))
            .collect()
    }
}

fn score(distance: Distance, a: &[f32], b: &[f32]) -> f32 {
    let pairs = a.iter().zip(b);
    match distance {
        Distance::Cosine | Distance::Dot => pairs.map(|(a, b)| a * b).sum(),
        Distance::Euclid => pairs.map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt(),
        Distance::Manhattan => pairs.map(|(a, b)| (a - b).abs()).sum(),
    }
}
