//! Collections and aliases.

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::{App, parse, run};
use crate::error::{Error, Result};
use crate::points::Info;
use crate::store::AliasAction;

pub async fn list(State(app): State<App>) -> Response {
    run(app, |store| {
        let names = store.names().into_iter();
        let names: Vec<Value> = names.map(|name| json!({"name": name})).collect();
        Ok(json!({"collections": names}))
    })
    .await
}

pub async fn info(State(app): State<App>, Path(name): Path<String>) -> Response {
    run(app, move |store| Ok(info_json(&store.info(&name)?))).await
}

pub async fn exists(State(app): State<App>, Path(name): Path<String>) -> Response {
    run(app, move |store| {
        Ok(json!({"exists": store.get(&name).is_ok()}))
    })
    .await
}

pub async fn create(State(app): State<App>, Path(name): Path<String>, body: Bytes) -> Response {
    run(app, move |store| {
        store.create(&name, &parse(&body)?).map(|()| true)
    })
    .await
}

pub async fn delete(State(app): State<App>, Path(name): Path<String>) -> Response {
    run(app, move |store| store.delete(&name)).await
}

pub async fn aliases(State(app): State<App>) -> Response {
    run(app, |store| Ok(aliases_json(store.aliases(None)))).await
}

pub async fn aliases_of(State(app): State<App>, Path(name): Path<String>) -> Response {
    run(app, move |store| {
        let name = store.real_name(&name)?;
        Ok(aliases_json(store.aliases(Some(&name))))
    })
    .await
}

pub async fn update_aliases(State(app): State<App>, body: Bytes) -> Response {
    run(app, move |store| {
        let body = parse(&body)?;
        let actions = body.get("actions").and_then(Value::as_array);
        let actions = actions.map(Vec::as_slice).unwrap_or_default();
        let actions: Result<Vec<AliasAction>> = actions.iter().map(alias_action).collect();
        store.update_aliases(actions?).map(|()| true)
    })
    .await
}

fn alias_action(action: &Value) -> Result<AliasAction> {
    let text = |pointer: &str| {
        action
            .pointer(pointer)
            .and_then(Value::as_str)
            .map(String::from)
    };
    if let (Some(collection), Some(alias)) = (
        text("/create_alias/collection_name"),
        text("/create_alias/alias_name"),
    ) {
        return Ok(AliasAction::Create { collection, alias });
    }
    if let Some(alias) = text("/delete_alias/alias_name") {
        return Ok(AliasAction::Delete { alias });
    }
    if let (Some(old), Some(new)) = (
        text("/rename_alias/old_alias_name"),
        text("/rename_alias/new_alias_name"),
    ) {
        return Ok(AliasAction::Rename { old, new });
    }
    Err(Error::BadRequest(format!(
        "Format error in JSON body: unknown alias action {action}"
    )))
}

fn aliases_json(aliases: Vec<(String, String)>) -> Value {
    let entry = |(alias, collection)| json!({"alias_name": alias, "collection_name": collection});
    let aliases: Vec<Value> = aliases.into_iter().map(entry).collect();
    json!({"aliases": aliases})
}

fn info_json(info: &Info) -> Value {
    let schema = info.schema.iter().map(|(field, schema, points)| {
        let mut entry = json!({"data_type": schema, "points": points});
        if schema.is_object() {
            entry = json!({"data_type": schema.get("type"), "params": schema, "points": points});
        }
        (field.clone(), entry)
    });
    json!({
        "status": "green", "optimizer_status": "ok", "indexed_vectors_count": 0,
        "points_count": info.points, "segments_count": info.segments,
        "config": info.config.document(), "payload_schema": Map::from_iter(schema),
        "update_queue": {"length": 0},
    })
}
