//! Between gRPC messages and the stand-in's own types. What a message asks
//! for that the stand-in cannot do is an error, never ignored.

use std::collections::HashMap;

use qdrant_client::Payload as GrpcPayload;
use qdrant_client::qdrant as grpc;
use qdrant_client::qdrant::condition::ConditionOneOf;
use qdrant_client::qdrant::r#match::MatchValue;
use qdrant_client::qdrant::point_id::PointIdOptions;
use qdrant_client::qdrant::points_selector::PointsSelectorOneOf;
use qdrant_client::qdrant::vectors_config::Config;
use serde_json::{Map, Value, json};

use crate::collection::NewPoint;
use crate::error::{Error, Result};
use crate::filter::Filter;
use crate::model::{DEFAULT_VECTOR, Payload, PointId, Vectors};
use crate::points::{Info, Parts, Selection};

pub fn point_id(id: Option<grpc::PointId>) -> Result<PointId> {
    let id = match id.and_then(|id| id.point_id_options) {
        Some(PointIdOptions::Num(n)) => json!(n),
        Some(PointIdOptions::Uuid(uuid)) => json!(uuid),
        None => return Err(Error::BadInput("Empty ID is provided".into())),
    };
    PointId::from_json(&id)
}

pub fn point_ids(ids: Vec<grpc::PointId>) -> Result<Vec<PointId>> {
    ids.into_iter().map(|id| point_id(Some(id))).collect()
}

pub fn point_id_out(id: PointId) -> grpc::PointId {
    match id {
        PointId::Num(n) => n.into(),
        PointId::Uuid(_) => id.to_string().into(),
    }
}

pub fn payload(payload: HashMap<String, grpc::Value>) -> Payload {
    GrpcPayload::from(payload).into()
}

pub fn payload_out(payload: Payload) -> HashMap<String, grpc::Value> {
    GrpcPayload::from(payload).into()
}

pub fn new_points(points: Vec<grpc::PointStruct>) -> Result<Vec<NewPoint>> {
    let point = |point: grpc::PointStruct| {
        Ok(NewPoint {
            id: point_id(point.id)?,
            vectors: vectors(point.vectors)?,
            payload: payload(point.payload),
        })
    };
    points.into_iter().map(point).collect()
}

pub fn vectors(vectors: Option<grpc::Vectors>) -> Result<Vectors> {
    use grpc::vectors::VectorsOptions;
    match vectors.and_then(|v| v.vectors_options) {
        None => Ok(Vectors::new()),
        Some(VectorsOptions::Vector(single)) => Ok(Vectors::from([(
            DEFAULT_VECTOR.to_string(),
            dense(single)?,
        )])),
        Some(VectorsOptions::Vectors(named)) => named
            .vectors
            .into_iter()
            .map(|(name, vector)| Ok((name, dense(vector)?)))
            .collect(),
    }
}

pub fn vectors_out(vectors: Vectors) -> grpc::VectorsOutput {
    use grpc::vectors_output::VectorsOptions;
    let output = |data| grpc::VectorOutput {
        vector: Some(grpc::vector_output::Vector::Dense(grpc::DenseVector {
            data,
        })),
        ..grpc::VectorOutput::default()
    };
    let mut named: HashMap<String, grpc::VectorOutput> = vectors
        .into_iter()
        .map(|(name, vector)| (name, output(vector)))
        .collect();
    let options = match named.remove(DEFAULT_VECTOR) {
        Some(single) => VectorsOptions::Vector(single),
        None => VectorsOptions::Vectors(grpc::NamedVectorsOutput { vectors: named }),
    };
    grpc::VectorsOutput {
        vectors_options: Some(options),
    }
}

pub fn payload_parts(selector: Option<grpc::WithPayloadSelector>) -> Parts {
    use grpc::with_payload_selector::SelectorOptions;
    match selector.and_then(|s| s.selector_options) {
        None | Some(SelectorOptions::Enable(false)) => Parts::None,
        Some(SelectorOptions::Enable(true)) => Parts::All,
        Some(SelectorOptions::Include(list)) => Parts::Include(list.fields),
        Some(SelectorOptions::Exclude(list)) => Parts::Exclude(list.fields),
    }
}

pub fn vector_parts(selector: Option<grpc::WithVectorsSelector>) -> Parts {
    use grpc::with_vectors_selector::SelectorOptions;
    match selector.and_then(|s| s.selector_options) {
        None | Some(SelectorOptions::Enable(false)) => Parts::None,
        Some(SelectorOptions::Enable(true)) => Parts::All,
        Some(SelectorOptions::Include(list)) => Parts::Include(list.names),
    }
}

pub fn selection(selector: Option<grpc::PointsSelector>) -> Result<Selection> {
    match selector.and_then(|s| s.points_selector_one_of) {
        Some(PointsSelectorOneOf::Points(list)) => Ok(Selection::Ids(point_ids(list.ids)?)),
        Some(PointsSelectorOneOf::Filter(f)) => Ok(Selection::Filter(filter(Some(f))?)),
        None => Err(Error::BadInput("PointSelector is missing".into())),
    }
}

pub fn filter(filter: Option<grpc::Filter>) -> Result<Filter> {
    let json = filter.map(filter_json).transpose()?;
    Ok(Filter::new(json.as_ref()))
}

fn filter_json(filter: grpc::Filter) -> Result<Value> {
    if filter.min_should.is_some() {
        return Err(unsupported("filter with min_should"));
    }
    let mut clauses = Map::new();
    for (name, conditions) in [
        ("must", filter.must),
        ("should", filter.should),
        ("must_not", filter.must_not),
    ] {
        let conditions: Result<Vec<Value>> = conditions.into_iter().map(condition_json).collect();
        clauses.insert(name.into(), conditions?.into());
    }
    Ok(clauses.into())
}

fn condition_json(condition: grpc::Condition) -> Result<Value> {
    match condition.condition_one_of {
        Some(ConditionOneOf::Field(field)) => field_json(field),
        Some(ConditionOneOf::IsEmpty(c)) => Ok(json!({"is_empty": {"key": c.key}})),
        Some(ConditionOneOf::IsNull(c)) => Ok(json!({"is_null": {"key": c.key}})),
        Some(ConditionOneOf::HasId(c)) => Ok(json!({"has_id": point_ids(c.has_id)?})),
        Some(ConditionOneOf::Filter(nested)) => filter_json(nested),
        _ => Err(unsupported("this kind of filter condition")),
    }
}

fn field_json(field: grpc::FieldCondition) -> Result<Value> {
    let key = field.key;
    if let Some(range) = field.range {
        let bounds = [
            ("lt", range.lt),
            ("gt", range.gt),
            ("gte", range.gte),
            ("lte", range.lte),
        ];
        let bounds = bounds
            .into_iter()
            .filter_map(|(k, v)| Some((k.to_string(), json!(v?))));
        return Ok(json!({"key": key, "range": Map::from_iter(bounds)}));
    }
    let wanted = match field.r#match.and_then(|m| m.match_value) {
        Some(MatchValue::Keyword(value)) => json!({"value": value}),
        Some(MatchValue::Integer(value)) => json!({"value": value}),
        Some(MatchValue::Boolean(value)) => json!({"value": value}),
        Some(MatchValue::Text(text)) => json!({"text": text}),
        Some(MatchValue::Keywords(any)) => json!({"any": any.strings}),
        Some(MatchValue::Integers(any)) => json!({"any": any.integers}),
        Some(MatchValue::ExceptKeywords(except)) => json!({"except": except.strings}),
        Some(MatchValue::ExceptIntegers(except)) => json!({"except": except.integers}),
        _ => return Err(unsupported("this kind of field condition")),
    };
    Ok(json!({"key": key, "match": wanted}))
}

/// A creation request as the body of its REST twin.
pub fn create_request(request: &grpc::CreateCollection) -> Result<Value> {
    if request.sparse_vectors_config.is_some() || request.quantization_config.is_some() {
        return Err(unsupported("sparse vectors or quantization"));
    }
    let config = request
        .vectors_config
        .as_ref()
        .and_then(|c| c.config.as_ref());
    let vectors = match config {
        Some(Config::Params(params)) => vector_params_json(params)?,
        Some(Config::ParamsMap(named)) => {
            let named: Result<Map<String, Value>> = named
                .map
                .iter()
                .map(|(name, params)| Ok((name.clone(), vector_params_json(params)?)))
                .collect();
            named?.into()
        }
        None => json!({}),
    };
    let mut body = json!({
        "vectors": vectors,
        "shard_number": request.shard_number,
        "replication_factor": request.replication_factor,
        "write_consistency_factor": request.write_consistency_factor,
    });
    #[allow(deprecated)]
    let on_disk_payload = request.on_disk_payload;
    body["on_disk_payload"] = json!(on_disk_payload);
    if let Some(hnsw) = &request.hnsw_config {
        body["hnsw_config"] = json!({
            "m": hnsw.m, "ef_construct": hnsw.ef_construct,
            "full_scan_threshold": hnsw.full_scan_threshold, "payload_m": hnsw.payload_m,
        });
    }
    if let Some(optimizers) = &request.optimizers_config {
        body["optimizers_config"] = json!({
            "deleted_threshold": optimizers.deleted_threshold,
            "indexing_threshold": optimizers.indexing_threshold,
            "default_segment_number": optimizers.default_segment_number,
            "flush_interval_sec": optimizers.flush_interval_sec,
        });
    }
    Ok(body)
}

fn vector_params_json(params: &grpc::VectorParams) -> Result<Value> {
    let distance = grpc::Distance::try_from(params.distance)
        .map_err(|_| Error::BadInput(format!("unknown distance {}", params.distance)))?;
    if params.multivector_config.is_some() || params.quantization_config.is_some() {
        return Err(unsupported("multivectors or quantization"));
    }
    let mut json = json!({"size": params.size, "distance": distance.as_str_name()});
    #[allow(deprecated)]
    if let Some(on_disk) = params.on_disk {
        json["on_disk"] = json!(on_disk);
    }
    Ok(json)
}

pub fn info(info: &Info) -> grpc::CollectionInfo {
    let config = info.config.document();
    let number = |path: &str| config.pointer(path).and_then(Value::as_u64);
    let small = |path: &str| number(path).and_then(|n| u32::try_from(n).ok());
    let mut params = grpc::CollectionParams {
        shard_number: info.config.shard_number(),
        vectors_config: Some(vectors_config(info)),
        replication_factor: small("/params/replication_factor"),
        write_consistency_factor: small("/params/write_consistency_factor"),
        ..grpc::CollectionParams::default()
    };
    #[allow(deprecated)]
    {
        let on_disk = config.pointer("/params/on_disk_payload");
        params.on_disk_payload = on_disk.and_then(Value::as_bool).unwrap_or(true);
    }
    let schema = info.schema.iter().map(|(field, schema, points)| {
        let name = schema
            .get("type")
            .unwrap_or(schema)
            .as_str()
            .unwrap_or_default();
        let entry = grpc::PayloadSchemaInfo {
            data_type: schema_type(name).into(),
            params: None,
            points: Some(*points as u64),
        };
        (field.clone(), entry)
    });
    grpc::CollectionInfo {
        status: grpc::CollectionStatus::Green.into(),
        optimizer_status: Some(grpc::OptimizerStatus {
            ok: true,
            error: String::new(),
        }),
        segments_count: info.segments as u64,
        points_count: Some(info.points as u64),
        indexed_vectors_count: Some(0),
        payload_schema: schema.collect(),
        update_queue: Some(grpc::UpdateQueueInfo::default()),
        config: Some(grpc::CollectionConfig {
            params: Some(params),
            hnsw_config: Some(grpc::HnswConfigDiff {
                m: number("/hnsw_config/m"),
                ef_construct: number("/hnsw_config/ef_construct"),
                full_scan_threshold: number("/hnsw_config/full_scan_threshold"),
                max_indexing_threads: number("/hnsw_config/max_indexing_threads"),
                ..grpc::HnswConfigDiff::default()
            }),
            optimizer_config: Some(grpc::OptimizersConfigDiff {
                indexing_threshold: number("/optimizer_config/indexing_threshold"),
                flush_interval_sec: number("/optimizer_config/flush_interval_sec"),
                ..grpc::OptimizersConfigDiff::default()
            }),
            wal_config: Some(grpc::WalConfigDiff {
                wal_capacity_mb: number("/wal_config/wal_capacity_mb"),
                wal_segments_ahead: number("/wal_config/wal_segments_ahead"),
                wal_retain_closed: number("/wal_config/wal_retain_closed"),
            }),
            ..grpc::CollectionConfig::default()
        }),
        ..grpc::CollectionInfo::default()
    }
}

fn vectors_config(info: &Info) -> grpc::VectorsConfig {
    let params = info.config.vectors().iter().map(|(name, params)| {
        let distance = format!("{:?}", params.distance);
        let distance = grpc::Distance::from_str_name(&distance).unwrap_or_default();
        let mut out = grpc::VectorParams {
            size: params.size as u64,
            distance: distance.into(),
            ..grpc::VectorParams::default()
        };
        #[allow(deprecated)]
        {
            out.on_disk = params.on_disk;
        }
        (name.clone(), out)
    });
    let mut named: HashMap<String, grpc::VectorParams> = params.collect();
    let config = match named.remove(DEFAULT_VECTOR) {
        Some(single) => Config::Params(single),
        None => Config::ParamsMap(grpc::VectorParamsMap { map: named }),
    };
    grpc::VectorsConfig {
        config: Some(config),
    }
}

/// The REST name of a field's type, from its gRPC number.
pub fn field_type(field_type: Option<i32>) -> Result<Value> {
    let known = field_type.and_then(|number| grpc::FieldType::try_from(number).ok());
    let name = known.map(|known| known.as_str_name().trim_start_matches("FieldType"));
    match name {
        Some(name) => Ok(json!(name.to_lowercase())),
        None => Err(Error::BadInput("field_type is missing".into())),
    }
}

fn schema_type(name: &str) -> grpc::PayloadSchemaType {
    let mut capitalised = name.to_string();
    if let Some(first) = capitalised.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    grpc::PayloadSchemaType::from_str_name(&capitalised).unwrap_or_default()
}

fn dense(vector: grpc::Vector) -> Result<Vec<f32>> {
    match vector.vector {
        Some(grpc::vector::Vector::Dense(dense)) => Ok(dense.data),
        Some(_) => Err(unsupported("a vector that is not dense")),
        // Clients before 1.16 send the plain list.
        #[allow(deprecated)]
        None => Ok(vector.data),
    }
}

fn unsupported(what: &str) -> Error {
    Error::BadInput(format!(
        "{what} is not supported by Lifeboat's test stand-in"
    ))
}
