//! A collection's configuration: the request merged over the server's defaults.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::model::{DEFAULT_VECTOR, Vectors};

/// The configuration as the server prints it and as `config.json` holds it,
/// with the parts the stand-in acts on picked out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub struct CollectionConfig {
    document: Value,
    vectors: BTreeMap<String, VectorParams>,
    shard_number: u32,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct VectorParams {
    pub size: usize,
    pub distance: Distance,
    #[serde(default)]
    pub on_disk: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
pub enum Distance {
    Cosine,
    Euclid,
    Dot,
    Manhattan,
}

impl CollectionConfig {
    /// Fills a `PUT /collections/{name}` body up with the server's defaults.
    pub fn from_request(request: &Value) -> Result<Self> {
        let vectors = request
            .get("vectors")
            .filter(|vectors| !vectors.is_null())
            .ok_or_else(|| Error::BadRequest("Json deserialize error: missing `vectors`".into()))?;
        for unsupported in ["sparse_vectors", "quantization_config", "sharding_method"] {
            if request.get(unsupported).is_some_and(|v| !v.is_null()) {
                return Err(Error::BadInput(format!(
                    "`{unsupported}` is not supported by Lifeboat's test stand-in"
                )));
            }
        }
        let mut params = json!({
            "vectors": vectors, "shard_number": 1, "replication_factor": 1,
            "write_consistency_factor": 1, "on_disk_payload": true,
        });
        for key in [
            "shard_number",
            "replication_factor",
            "write_consistency_factor",
            "on_disk_payload",
        ] {
            merge(&mut params, key, request.get(key));
        }
        let mut document = json!({
            "params": params,
            "hnsw_config": {
                "m": 16, "ef_construct": 100, "full_scan_threshold": 10000,
                "max_indexing_threads": 0, "on_disk": false,
            },
            "optimizer_config": {
                "deleted_threshold": 0.2, "vacuum_min_vector_number": 1000,
                "default_segment_number": 0, "max_segment_size": null,
                "memmap_threshold": null, "indexing_threshold": 10000,
                "flush_interval_sec": 5, "max_optimization_threads": null,
                "prevent_unoptimized": null,
            },
            "wal_config": {
                "wal_capacity_mb": 32, "wal_segments_ahead": 0, "wal_retain_closed": 1,
            },
            "quantization_config": null,
        });
        for (theirs, ours) in [
            ("hnsw_config", "hnsw_config"),
            ("optimizers_config", "optimizer_config"),
            ("wal_config", "wal_config"),
        ] {
            let Some(Value::Object(diff)) = request.get(theirs) else {
                continue;
            };
            for (key, value) in diff {
                if let Some(section) = document.get_mut(ours) {
                    merge(section, key, Some(value));
                }
            }
        }
        Self::try_from(document)
    }

    /// The document as `GET /collections/{name}` shows it.
    pub fn document(&self) -> &Value {
        &self.document
    }

    /// The document as `config.json` in a snapshot holds it.
    pub fn snapshot_document(&self) -> Value {
        let mut document = self.document.clone();
        if let Some(object) = document.as_object_mut() {
            object.insert("uuid".into(), Value::Null);
        }
        document
    }

    pub fn vectors(&self) -> &BTreeMap<String, VectorParams> {
        &self.vectors
    }

    pub fn shard_number(&self) -> u32 {
        self.shard_number
    }

    pub fn is_single_vector(&self) -> bool {
        self.vectors.contains_key(DEFAULT_VECTOR)
    }

    /// The vectors' parameters in the notation of the server's error texts.
    pub fn describe_vectors(&self) -> String {
        let mut described = self.vectors.iter().map(|(name, params)| {
            let on_disk = params.on_disk;
            let text = format!(
                "VectorParams {{ size: {}, distance: {:?}, hnsw_config: None, quantization_config: None, on_disk: {on_disk:?}, datatype: None, multivector_config: None }}",
                params.size, params.distance
            );
            (name.as_str(), text)
        });
        if self.is_single_vector() {
            let (_, text) = described.next().unwrap_or_default();
            return format!("Single({text})");
        }
        let entries: Vec<_> = described
            .map(|(name, text)| format!("{name:?}: {text}"))
            .collect();
        format!("Multi({{{}}})", entries.join(", "))
    }

    /// Checks names and dimensions; normalises vectors under Cosine, as the
    /// server does when it stores them.
    pub fn prepare(&self, mut vectors: Vectors) -> Result<Vectors> {
        for (name, vector) in &mut vectors {
            let params = self.vectors.get(name).ok_or_else(|| {
                Error::BadInput(format!("Not existing vector name error: {name}"))
            })?;
            if vector.len() != params.size {
                return Err(Error::BadInput(format!(
                    "Vector dimension error: expected dim: {}, got {}",
                    params.size,
                    vector.len()
                )));
            }
            if params.distance == Distance::Cosine {
                normalise(vector);
            }
        }
        Ok(vectors)
    }
}

impl TryFrom<Value> for CollectionConfig {
    type Error = Error;

    fn try_from(mut document: Value) -> Result<Self> {
        if let Some(object) = document.as_object_mut() {
            object.remove("uuid");
        }
        let params = document
            .get("params")
            .ok_or_else(|| Error::Internal("collection config has no `params`".into()))?;
        let vectors = params.get("vectors").cloned().unwrap_or_default();
        let bad = |error: serde_json::Error| {
            Error::BadRequest(format!("Json deserialize error: vectors: {error}"))
        };
        let vectors = if vectors.get("size").is_some_and(Value::is_u64) {
            let single = serde_json::from_value(vectors).map_err(bad)?;
            BTreeMap::from([(DEFAULT_VECTOR.to_string(), single)])
        } else {
            serde_json::from_value(vectors).map_err(bad)?
        };
        let shard_number = params
            .get("shard_number")
            .and_then(Value::as_u64)
            .and_then(|n| u32::try_from(n).ok())
            .filter(|n| *n > 0)
            .ok_or_else(|| Error::BadInput("shard_number must be greater than 0".into()))?;
        Ok(Self {
            document,
            vectors,
            shard_number,
        })
    }
}

impl From<CollectionConfig> for Value {
    fn from(config: CollectionConfig) -> Self {
        config.document
    }
}

fn merge(section: &mut Value, key: &str, value: Option<&Value>) {
    let (Some(section), Some(value)) = (section.as_object_mut(), value) else {
        return;
    };
    if !value.is_null() {
        Map::insert(section, key.to_string(), value.clone());
    }
}

fn normalise(vector: &mut [f32]) {
    let norm = vector.iter().map(|v| v * v).sum::<f32>().sqrt();
    // Already normal within rounding: leave the bits alone, so that what a
    // client reads and writes back stays the same.
    if norm > f32::EPSILON && (norm - 1.0).abs() > 1e-6 {
        for value in vector {
            *value /= norm;
        }
    }
}
