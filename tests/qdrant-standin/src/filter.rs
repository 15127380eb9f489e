//! The part of the filter language that seeding programs and n8n use. What it
//! does not know it refuses rather than ignores.

use serde_json::Value;

use crate::error::{Error, Result};
use crate::model::{Payload, Point, PointId};

/// A filter in the REST notation; gRPC filters are turned into it.
#[derive(Debug, Clone, Default)]
pub struct Filter(Value);

impl Filter {
    /// `None` and JSON `null` let everything through.
    pub fn new(filter: Option<&Value>) -> Self {
        Self(filter.cloned().unwrap_or_default())
    }

    pub fn matches(&self, point: &Point) -> Result<bool> {
        matches_filter(&self.0, point)
    }
}

fn matches_filter(filter: &Value, point: &Point) -> Result<bool> {
    let Some(clauses) = filter.as_object() else {
        return Ok(true);
    };
    for (clause, conditions) in clauses {
        let conditions = match conditions {
            Value::Null => continue,
            Value::Array(list) => list.clone(),
            one => vec![one.clone()],
        };
        let mut hits = 0;
        for condition in &conditions {
            hits += usize::from(matches_condition(condition, point)?);
        }
        let holds = match clause.as_str() {
            "must" => hits == conditions.len(),
            "must_not" => hits == 0,
            "should" => hits > 0 || conditions.is_empty(),
            other => return Err(unsupported(other)),
        };
        if !holds {
            return Ok(false);
        }
    }
    Ok(true)
}

fn matches_condition(condition: &Value, point: &Point) -> Result<bool> {
    if let Some(ids) = condition.get("has_id").and_then(Value::as_array) {
        let ids: Result<Vec<PointId>> = ids.iter().map(PointId::from_json).collect();
        return Ok(ids?.contains(&point.id));
    }
    for (kind, wanted) in [("is_empty", true), ("is_null", false)] {
        if let Some(key) = condition.pointer(&format!("/{kind}/key")) {
            let values = values_at(&point.payload, key.as_str().unwrap_or_default());
            let empty = values.is_empty() || values.iter().all(|v| v.is_null());
            return Ok(if wanted {
                empty
            } else {
                empty && !values.is_empty()
            });
        }
    }
    let Some(key) = condition.get("key").and_then(Value::as_str) else {
        return matches_filter(condition, point);
    };
    let values = values_at(&point.payload, key);
    if let Some(wanted) = condition.get("match") {
        return matches_value(wanted, &values);
    }
    if let Some(range) = condition.get("range").and_then(Value::as_object) {
        let inside = |value: f64| {
            range.iter().all(|(bound, limit)| {
                limit.as_f64().is_none_or(|limit| match bound.as_str() {
                    "lt" => value < limit,
                    "gt" => value > limit,
                    "lte" => value <= limit,
                    _ => value >= limit,
                })
            })
        };
        return Ok(values.iter().filter_map(|v| v.as_f64()).any(inside));
    }
    Err(unsupported(&condition.to_string()))
}

fn matches_value(wanted: &Value, values: &[&Value]) -> Result<bool> {
    if let Some(value) = wanted.get("value") {
        return Ok(values.contains(&value));
    }
    if let Some(any) = wanted.get("any").and_then(Value::as_array) {
        return Ok(values.iter().any(|value| any.contains(value)));
    }
    if let Some(except) = wanted.get("except").and_then(Value::as_array) {
        return Ok(values.iter().any(|value| !except.contains(value)));
    }
    if let Some(text) = wanted.get("text").and_then(Value::as_str) {
        let hit = |value: &&Value| value.as_str().is_some_and(|v| v.contains(text));
        return Ok(values.iter().any(hit));
    }
    Err(unsupported(&wanted.to_string()))
}

/// The values under a dotted key; arrays count element by element.
pub fn values_at<'a>(payload: &'a Payload, key: &str) -> Vec<&'a Value> {
    let (first, rest) = key.split_once('.').unwrap_or((key, ""));
    let mut found: Vec<&Value> = payload
        .get(first.trim_end_matches("[]"))
        .into_iter()
        .collect();
    for part in rest.split('.').filter(|part| !part.is_empty()) {
        let part = part.trim_end_matches("[]");
        found = flatten(found)
            .into_iter()
            .filter_map(|v| v.get(part))
            .collect();
    }
    flatten(found)
}

fn flatten(values: Vec<&Value>) -> Vec<&Value> {
    let mut flat = Vec::new();
    for value in values {
        match value {
            Value::Array(list) => flat.extend(list),
            one => flat.push(one),
        }
    }
    flat
}

fn unsupported(what: &str) -> Error {
    Error::BadInput(format!(
        "filter not supported by Lifeboat's test stand-in: {what}"
    ))
}
