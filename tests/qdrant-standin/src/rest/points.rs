//! Points: writing, reading, counting, searching by brute force.

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::{App, parse, run};
use crate::collection::NewPoint;
use crate::error::{Error, Result};
use crate::filter::Filter;
use crate::model::{DEFAULT_VECTOR, Payload, Point, PointId};
use crate::points::{Parts, Search, Selection, vectors_from_json, vectors_to_json};
use crate::store::Store;

pub async fn upsert(State(app): State<App>, Path(name): Path<String>, body: Bytes) -> Response {
    run(app, move |store| {
        let points = points_from_json(&parse(&body)?)?;
        completed(store.upsert(&name, points))
    })
    .await
}

pub async fn retrieve(State(app): State<App>, Path(name): Path<String>, body: Bytes) -> Response {
    run(app, move |store| {
        let body = parse(&body)?;
        let ids = ids_from_json(body.get("ids"))?;
        let points = store.retrieve(&name, &ids)?;
        let records: Vec<Value> = points
            .iter()
            .map(|p| record(p, &body, Parts::All))
            .collect();
        Ok(json!(records))
    })
    .await
}

pub async fn retrieve_one(
    State(app): State<App>,
    Path((name, id)): Path<(String, String)>,
) -> Response {
    run(app, move |store| {
        let value = id.parse::<u64>().map_or_else(|_| json!(id), |n| json!(n));
        let id = PointId::from_json(&value)?;
        let points = store.retrieve(&name, &[id])?;
        let everything = json!({"with_vector": true});
        match points.first() {
            Some(point) => Ok(record(point, &everything, Parts::All)),
            None => Err(Error::NotFound(format!(
                "Point with id {id} does not exists!"
            ))),
        }
    })
    .await
}

/// `POST …/points/{verb}`: the verbs that share one shape of route.
pub async fn verb(
    State(app): State<App>,
    Path((name, verb)): Path<(String, String)>,
    body: Bytes,
) -> Response {
    run(app, move |store| {
        let body = parse(&body)?;
        match verb.as_str() {
            "count" => count(store, &name, &body),
            "scroll" => scroll(store, &name, &body),
            "delete" => completed(store.delete_points(&name, &selection(&body)?)),
            "search" => search(store, &name, &body),
            "query" => Ok(json!({"points": search(store, &name, &body)?})),
            other => Err(Error::NotFound(format!(
                "points/{other} is not implemented by Lifeboat's test stand-in"
            ))),
        }
    })
    .await
}

pub async fn set_payload(
    State(app): State<App>,
    Path(name): Path<String>,
    body: Bytes,
) -> Response {
    edit_payload(app, name, body, |payload, new| {
        payload.extend(new.clone());
    })
    .await
}

pub async fn overwrite_payload(
    State(app): State<App>,
    Path(name): Path<String>,
    body: Bytes,
) -> Response {
    edit_payload(app, name, body, |payload, new| payload.clone_from(new)).await
}

/// `POST …/points/payload/delete` and `…/clear`.
pub async fn payload_verb(
    State(app): State<App>,
    Path((name, verb)): Path<(String, String)>,
    body: Bytes,
) -> Response {
    run(app, move |store| {
        let body = parse(&body)?;
        let keys: Vec<String> = match (verb.as_str(), body.get("keys")) {
            ("delete", Some(keys)) => serde_json::from_value(keys.clone())?,
            ("clear", _) => Vec::new(),
            _ => return Err(Error::BadRequest(format!("payload/{verb}: bad request"))),
        };
        completed(store.edit_points(&name, &selection(&body)?, &|point| {
            point
                .payload
                .retain(|key, _| verb == "delete" && !keys.contains(key));
            Ok(())
        }))
    })
    .await
}

pub async fn update_vectors(
    State(app): State<App>,
    Path(name): Path<String>,
    body: Bytes,
) -> Response {
    run(app, move |store| {
        let points = points_from_json(&parse(&body)?)?;
        let ids = points.iter().map(|point| point.id).collect();
        completed(store.edit_points(&name, &Selection::Ids(ids), &|point| {
            for new in points.iter().filter(|new| new.id == point.id) {
                point.vectors.extend(new.vectors.clone());
            }
            Ok(())
        }))
    })
    .await
}

pub async fn create_index(
    State(app): State<App>,
    Path(name): Path<String>,
    body: Bytes,
) -> Response {
    run(app, move |store| {
        let body = parse(&body)?;
        let field = body.get("field_name").and_then(Value::as_str);
        let schema = body.get("field_schema").or(body.get("field_type"));
        match (field, schema) {
            (Some(field), Some(schema)) => {
                completed(store.create_index(&name, field.to_string(), schema.clone()))
            }
            _ => Err(Error::BadRequest(
                "Format error in JSON body: field_name and field_schema are needed".into(),
            )),
        }
    })
    .await
}

pub async fn drop_index(
    State(app): State<App>,
    Path((name, field)): Path<(String, String)>,
) -> Response {
    run(app, move |store| completed(store.drop_index(&name, field))).await
}

async fn edit_payload(
    app: App,
    name: String,
    body: Bytes,
    edit: impl Fn(&mut Payload, &Payload) + Send + 'static,
) -> Response {
    run(app, move |store| {
        let body = parse(&body)?;
        let new = body.get("payload").and_then(Value::as_object);
        let new = new.ok_or_else(|| {
            Error::BadRequest("Format error in JSON body: missing field `payload`".into())
        })?;
        completed(store.edit_points(&name, &selection(&body)?, &|point| {
            edit(&mut point.payload, new);
            Ok(())
        }))
    })
    .await
}

fn count(store: &Store, name: &str, body: &Value) -> Result<Value> {
    let count = store.count(name, &Filter::new(body.get("filter")))?;
    Ok(json!({"count": count}))
}

fn scroll(store: &Store, name: &str, body: &Value) -> Result<Value> {
    let offset = body.get("offset").filter(|offset| !offset.is_null());
    let offset = offset.map(PointId::from_json).transpose()?;
    let filter = Filter::new(body.get("filter"));
    let (points, next) = store.scroll(name, offset, number(body, "limit", 10), &filter)?;
    let points: Vec<Value> = points.iter().map(|p| record(p, body, Parts::All)).collect();
    Ok(json!({"points": points, "next_page_offset": next.map(PointId::to_json)}))
}

/// Both `search` (a `vector`, perhaps named) and `query` (a `query`, `using`).
fn search(store: &Store, name: &str, body: &Value) -> Result<Value> {
    let query = body.get("vector").or(body.get("query")).cloned();
    let query = query.unwrap_or_default();
    let query_vector = query
        .get("vector")
        .or(query.get("nearest"))
        .unwrap_or(&query);
    let using = body
        .get("using")
        .or(query.get("name"))
        .and_then(Value::as_str);
    let vector = serde_json::from_value(query_vector.clone()).map_err(|_| {
        Error::BadInput("Lifeboat's test stand-in searches by a dense vector only".into())
    })?;
    let threshold = body.get("score_threshold").cloned().unwrap_or_default();
    let hits = store.search(
        name,
        &Search {
            vector,
            using: using.unwrap_or(DEFAULT_VECTOR).to_string(),
            filter: Filter::new(body.get("filter")),
            limit: number(body, "limit", 10),
            offset: number(body, "offset", 0),
            threshold: serde_json::from_value(threshold)?,
        },
    )?;
    let scored = hits.iter().map(|(point, score)| {
        let mut record = record(point, body, Parts::None);
        if let Some(record) = record.as_object_mut() {
            record.insert("score".into(), json!(score));
            record.insert("version".into(), json!(point.version));
        }
        record
    });
    Ok(Value::from_iter(scored))
}

fn record(point: &Point, request: &Value, payload_default: Parts) -> Value {
    let payload = Parts::from_json(request.get("with_payload"), payload_default);
    let vectors = request.get("with_vector").or(request.get("with_vectors"));
    let vectors = Parts::from_json(vectors, Parts::None);
    let mut record = Map::new();
    record.insert("id".into(), point.id.to_json());
    if !matches!(payload, Parts::None) {
        record.insert("payload".into(), payload.payload(&point.payload).into());
    }
    if !matches!(vectors, Parts::None) {
        let kept = vectors.vectors(&point.vectors);
        record.insert("vector".into(), vectors_to_json(&kept));
    }
    record.into()
}

/// `points` as a list, or `batch` as columns.
fn points_from_json(body: &Value) -> Result<Vec<NewPoint>> {
    if let Some(points) = body.get("points").and_then(Value::as_array) {
        return points.iter().map(point_from_json).collect();
    }
    let Some(batch) = body.get("batch") else {
        return Err(Error::BadRequest(
            "Format error in JSON body: `points` or `batch` is needed".into(),
        ));
    };
    let ids = ids_from_json(batch.get("ids"))?;
    let vectors = batch.get("vectors").cloned().unwrap_or_default();
    let points = ids.into_iter().enumerate().map(|(row, id)| {
        let vector = match &vectors {
            Value::Object(columns) => {
                let cells = columns
                    .iter()
                    .filter_map(|(k, c)| Some((k.clone(), c.get(row)?.clone())));
                Some(Value::from(Map::from_iter(cells)))
            }
            rows => rows.get(row).cloned(),
        };
        let payload = batch.get("payloads").and_then(|payloads| payloads.get(row));
        Ok(NewPoint {
            id,
            vectors: vectors_from_json(vector.as_ref())?,
            payload: payload
                .and_then(Value::as_object)
                .cloned()
                .unwrap_or_default(),
        })
    });
    points.collect()
}

fn point_from_json(point: &Value) -> Result<NewPoint> {
    Ok(NewPoint {
        id: PointId::from_json(point.get("id").unwrap_or(&Value::Null))?,
        vectors: vectors_from_json(point.get("vector"))?,
        payload: point
            .get("payload")
            .and_then(Value::as_object)
            .cloned()
            .unwrap_or_default(),
    })
}

fn selection(body: &Value) -> Result<Selection> {
    if body.get("points").is_some() {
        return Ok(Selection::Ids(ids_from_json(body.get("points"))?));
    }
    match body.get("filter") {
        Some(filter) => Ok(Selection::Filter(Filter::new(Some(filter)))),
        None => Err(Error::BadRequest(
            "Format error in JSON body: `points` or `filter` is needed".into(),
        )),
    }
}

fn ids_from_json(ids: Option<&Value>) -> Result<Vec<PointId>> {
    let ids = ids.and_then(Value::as_array);
    let ids = ids.map(Vec::as_slice).unwrap_or_default();
    ids.iter().map(PointId::from_json).collect()
}

fn number(body: &Value, key: &str, default: usize) -> usize {
    let number = body.get(key).and_then(Value::as_u64);
    number
        .and_then(|n| usize::try_from(n).ok())
        .unwrap_or(default)
}

fn completed(operation: Result<u64>) -> Result<Value> {
    let operation_id = operation?;
    Ok(json!({"operation_id": operation_id, "status": "completed"}))
}
