//! Collections whose points can be recomputed from their ids.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::digest::hex;
use crate::gguf::Noise;
use crate::ledger::{PointId, Write};
use crate::stack::{Service, Stack};
use crate::state::{CollectionState, QdrantState};
use crate::web::Web;

/// One shard, numbered points from 1 without gaps, payload on disk, two payload indexes.
pub const DOCS: &str = "harness_docs";
/// Two shards, UUID points with two named vectors.
pub const IMAGES: &str = "harness_images";
/// The writer overwrites these points of [`DOCS`] again and again.
pub const OVERWRITTEN: u64 = 10;
pub const LANGUAGES: [&str; 4] = ["de", "en", "fr", "ja"];
pub const DOCS_SIZE: usize = 8;

pub struct Qdrant(Web);

/// A point as Qdrant answers with it.
#[derive(Deserialize)]
pub struct Point {
    pub id: PointId,
    pub payload: Map<String, Value>,
    /// A list of numbers, or an object of such lists by name.
    pub vector: Value,
}

impl Point {
    /// Tells whether a vector, `""` for the only one, points where `expected` does.
    ///
    /// Qdrant keeps cosine vectors at length 1, so only the directions are compared.
    pub fn has_vector(&self, name: &str, expected: &[f32]) -> bool {
        let stored = match name {
            "" => Some(&self.vector),
            name => self.vector.get(name),
        };
        let stored = stored.and_then(Value::as_array).into_iter().flatten();
        let stored: Vec<f64> = stored.filter_map(Value::as_f64).collect();
        let expected: Vec<f64> = expected.iter().copied().map(f64::from).collect();
        let length = |vector: &[f64]| vector.iter().map(|x| x * x).sum::<f64>().sqrt();
        let product: f64 = stored.iter().zip(&expected).map(|(a, b)| a * b).sum();
        stored.len() == expected.len()
            && (product / (length(&stored) * length(&expected)) - 1.0).abs() < 1e-6
    }
}

impl Qdrant {
    pub fn new(stack: &Stack, timeout: Duration) -> Result<Self> {
        Self::with(stack, Web::new(&base(stack)?, timeout)?)
    }

    fn with(stack: &Stack, mut web: Web) -> Result<Self> {
        const NAMES: [&str; 2] = ["QDRANT_API_KEY", "QDRANT__SERVICE__API_KEY"];
        if let Some(key) = stack.setting(Service::Qdrant, &NAMES) {
            web.set_header("api-key", key)?;
        }
        Ok(Self(web))
    }

    /// Counts a collection's points exactly.
    pub fn count(&self, collection: &str) -> Result<u64> {
        self.count_with(collection, &json!({"exact": true}))
    }

    /// Counts the points whose field has the value, for which the server uses the field's index.
    pub fn count_where(&self, collection: &str, field: &str, value: &str) -> Result<u64> {
        let filter = json!({"must": [{"key": field, "match": {"value": value}}]});
        self.count_with(collection, &json!({"exact": true, "filter": filter}))
    }

    fn count_with(&self, collection: &str, body: &Value) -> Result<u64> {
        let path = format!("/collections/{collection}/points/count");
        let answer = self.0.post(&path, body)?;
        answer
            .pointer("/result/count")
            .and_then(Value::as_u64)
            .with_context(|| format!("count of {collection} is missing in {answer}"))
    }

    /// Fetches points by id; absent ones are not in the answer.
    pub fn points(&self, collection: &str, ids: &[PointId]) -> Result<HashMap<PointId, Point>> {
        let mut found = HashMap::new();
        for ids in ids.chunks(200) {
            let answer = self.0.post(
                &format!("/collections/{collection}/points"),
                &json!({"ids": ids, "with_payload": true, "with_vector": true}),
            )?;
            let points = answer.get("result").cloned().unwrap_or_default();
            let points: Vec<Point> =
                serde_json::from_value(points).context("read points in Qdrant's answer")?;
            found.extend(points.into_iter().map(|point| (point.id.clone(), point)));
        }
        Ok(found)
    }

    /// Adds the next numbered point, and returns when it is applied.
    pub fn add_doc(&self, id: u64) -> Result<Write> {
        let nonce = crate::write::nonce();
        let mut point = doc(id);
        set_payload(&mut point, "nonce", json!(nonce));
        self.upsert(DOCS, &[point])?;
        Ok(Write::Point {
            collection: DOCS.to_owned(),
            id: PointId::Number(id),
            nonce,
        })
    }

    /// Adds a point under a new UUID, and returns when it is applied.
    pub fn add_image(&self) -> Result<Write> {
        let nonce = crate::write::nonce();
        let mut point = image(&nonce, 0);
        set_payload(&mut point, "nonce", json!(nonce));
        self.upsert(IMAGES, &[point])?;
        Ok(Write::Point {
            collection: IMAGES.to_owned(),
            id: PointId::Uuid(nonce.clone()),
            nonce,
        })
    }

    /// Writes a point anew with a higher revision, and returns when it is applied.
    pub fn overwrite(&self, id: u64, revision: u64) -> Result<Write> {
        let mut point = doc(id);
        set_payload(&mut point, "revision", json!(revision));
        self.upsert(DOCS, &[point])?;
        Ok(Write::Overwrite {
            collection: DOCS.to_owned(),
            id,
            revision,
        })
    }

    pub fn drop_collection(&self, collection: &str) -> Result<()> {
        self.0.delete(&format!("/collections/{collection}"))?;
        Ok(())
    }

    pub fn aliases(&self) -> Result<BTreeMap<String, String>> {
        let answer = self.0.get("/aliases")?;
        let aliases = answer
            .pointer("/result/aliases")
            .and_then(Value::as_array)
            .context("aliases are missing in Qdrant's answer")?;
        Ok(aliases
            .iter()
            .filter_map(|alias| {
                let name = alias.get("alias_name")?.as_str()?;
                let collection = alias.get("collection_name")?.as_str()?;
                Some((name.to_owned(), collection.to_owned()))
            })
            .collect())
    }

    pub fn collection(&self, collection: &str) -> Result<CollectionState> {
        let info = self.0.get(&format!("/collections/{collection}"))?;
        let schema = info
            .pointer("/result/payload_schema")
            .and_then(Value::as_object)
            .with_context(|| format!("payload schema of {collection} is missing"))?;
        Ok(CollectionState {
            points: self.count(collection)?,
            payload_schema: schema
                .iter()
                .map(|(field, index)| {
                    let kind = index.get("data_type").and_then(Value::as_str);
                    (field.clone(), kind.unwrap_or("unknown").to_owned())
                })
                .collect(),
            params: info
                .pointer("/result/config/params")
                .cloned()
                .unwrap_or_default(),
        })
    }

    pub fn collection_names(&self) -> Result<Vec<String>> {
        let answer = self.0.get("/collections")?;
        let collections = answer
            .pointer("/result/collections")
            .and_then(Value::as_array)
            .context("collections are missing in Qdrant's answer")?;
        let mut names: Vec<String> = collections
            .iter()
            .filter_map(|collection| collection.get("name")?.as_str().map(str::to_owned))
            .collect();
        names.sort();
        Ok(names)
    }

    fn upsert(&self, collection: &str, points: &[Value]) -> Result<()> {
        let path = format!("/collections/{collection}/points?wait=true");
        let answer = self.0.put(&path, &json!({"points": points}))?;
        ensure!(
            answer.pointer("/result/status") == Some(&json!("completed")),
            "Qdrant did not complete an upsert into {collection}: {answer}"
        );
        Ok(())
    }
}

/// Connects anew and asks whether the server is ready to serve.
pub fn ping(stack: &Stack) -> Result<()> {
    let web = Web::unpooled(&base(stack)?, Duration::from_secs(5))?;
    web.send(&reqwest::Method::GET, "/readyz", |request| request)?;
    Ok(())
}

/// Connects anew and reads a collection's state, which waits for whatever blocks the collection.
pub fn probe(stack: &Stack) -> Result<()> {
    let web = Web::unpooled(&base(stack)?, Duration::from_secs(5))?;
    let found = Qdrant::with(stack, web)?.points(DOCS, &[PointId::Number(1)])?;
    ensure!(found.len() == 1, "point 1 of {DOCS} is not there");
    Ok(())
}

/// Creates both collections with about `points` points in all, their indexes and aliases.
///
/// Returns how many of the points are images.
pub fn seed(stack: &Stack, points: u64) -> Result<u64> {
    let qdrant = Qdrant::new(stack, Duration::from_mins(1))?;
    let web = &qdrant.0;
    web.put(
        &format!("/collections/{DOCS}"),
        &json!({
            "vectors": {"size": DOCS_SIZE, "distance": "Cosine"},
            "hnsw_config": {"m": 8},
            "on_disk_payload": true,
        }),
    )?;
    web.put(
        &format!("/collections/{IMAGES}"),
        &json!({
            "vectors": {
                "img": {"size": 4, "distance": "Dot"},
                "txt": {"size": 4, "distance": "Euclid"},
            },
            "shard_number": 2,
        }),
    )?;
    for (field, kind) in [("lang", "keyword"), ("n", "integer")] {
        web.put(
            &format!("/collections/{DOCS}/index?wait=true"),
            &json!({"field_name": field, "field_schema": kind}),
        )?;
    }
    let docs = (points * 3 / 4).max(OVERWRITTEN);
    let images = (points / 4).max(1);
    let ids: Vec<u64> = (1..=docs).collect();
    for ids in ids.chunks(500) {
        qdrant.upsert(DOCS, &ids.iter().copied().map(doc).collect::<Vec<_>>())?;
    }
    let numbers: Vec<u64> = (1..=images).collect();
    for numbers in numbers.chunks(500) {
        let batch = numbers.iter().map(|n| image(&image_id(*n), *n));
        qdrant.upsert(IMAGES, &batch.collect::<Vec<_>>())?;
    }
    web.post(
        "/collections/aliases",
        &json!({"actions": [
            {"create_alias": {"collection_name": DOCS, "alias_name": "harness_kb"}},
            {"create_alias": {"collection_name": IMAGES, "alias_name": "harness_pics"}},
        ]}),
    )?;
    Ok(images)
}

/// Says what Qdrant holds now: every collection and alias, not ours alone.
pub fn state(stack: &Stack) -> Result<QdrantState> {
    let qdrant = Qdrant::new(stack, Duration::from_mins(1))?;
    let mut collections = BTreeMap::new();
    for name in qdrant.collection_names()? {
        let state = qdrant.collection(&name)?;
        collections.insert(name, state);
    }
    Ok(QdrantState {
        aliases: qdrant.aliases()?,
        collections,
    })
}

/// Returns the highest revision the writer has given to a point.
pub fn highest_revision(qdrant: &Qdrant) -> Result<u64> {
    let ids: Vec<PointId> = (1..=OVERWRITTEN).map(PointId::Number).collect();
    let revisions = qdrant.points(DOCS, &ids)?;
    let revisions = revisions
        .values()
        .filter_map(|point| point.payload.get("revision")?.as_u64());
    Ok(revisions.max().unwrap_or(0))
}

/// Language of a numbered point; the keyword index is checked against it.
pub fn language(id: u64) -> &'static str {
    let slot = usize::try_from(id % 4).unwrap_or(0);
    LANGUAGES.get(slot).copied().unwrap_or("de")
}

/// Text of a numbered point.
pub fn text(id: u64) -> String {
    format!("document {id} {}", hex(&Noise(id).bytes(96)))
}

/// UUID of a seeded image.
pub fn image_id(n: u64) -> String {
    format!("00000000-0000-4000-8000-{n:012x}")
}

fn doc(id: u64) -> Value {
    json!({
        "id": id,
        "vector": vector(id, DOCS_SIZE),
        "payload": {"lang": language(id), "n": id, "text": text(id), "revision": 0},
    })
}

fn image(id: &str, n: u64) -> Value {
    json!({
        "id": id,
        "vector": {"img": vector(n, 4), "txt": vector(n + 1, 4)},
        "payload": {"k": n},
    })
}

/// Vector made from a seed; a numbered point's seed is its id.
pub fn vector(seed: u64, size: usize) -> Vec<f32> {
    Noise(seed).floats(size)
}

fn set_payload(point: &mut Value, field: &str, value: Value) {
    if let Some(payload) = point.pointer_mut("/payload").and_then(Value::as_object_mut) {
        payload.insert(field.to_owned(), value);
    }
}

fn base(stack: &Stack) -> Result<String> {
    Ok(stack.container(Service::Qdrant)?.url())
}
