//! Replays the recording of a real Qdrant 1.18.3, in order, against the
//! stand-in: statuses, headers, bodies, error texts, what is left behind.
//!
//! Compared exactly: status, JSON structure and values, plain texts, and the
//! headers a client acts on. Let vary, but checked for form or against what
//! the stand-in said itself:
//! - `time`, `creation_time`, `etag`, `last-modified`;
//! - the name, size and checksum of a snapshot that the server made, and so
//!   the bytes downloaded (they must have the size and checksum announced);
//! - folders and the random suffix in error texts;
//! - `commit`, where the stand-in must say what it is.
//!
//! Bodies that the recording leaves out are made again: points come from the
//! recorded snapshots, uploads are the recorded snapshots themselves (the
//! checksums in the recorded URLs are theirs).

mod common;

use std::collections::BTreeMap;

use common::{Server, fixture, multipart, multipart_type, sha256, start};
use reqwest::{Method, Response, header};
use serde_json::{Value, json};

/// Lines that cannot be replayed, by number from 1, with the reason. None.
const NOT_REPLAYED: &[(usize, &str)] = &[];
const LINES: usize = 48;
/// The recorded error names the first segment: the cut was inside it.
const TRUNCATED_BYTES: usize = 60_000;

#[tokio::test]
async fn answers_as_recorded() {
    let transcript = String::from_utf8(fixture("transcript.jsonl")).expect("UTF-8");
    let mut replay = Replay {
        server: start().await,
        points: recorded_points().await,
        made: BTreeMap::new(),
    };
    let mut replayed = 0;
    for (number, line) in transcript.lines().enumerate().map(|(i, l)| (i + 1, l)) {
        if NOT_REPLAYED.iter().any(|(skipped, _)| *skipped == number) {
            continue;
        }
        let recorded: Value = serde_json::from_str(line).expect("a JSON line");
        let note = recorded["note"].as_str().unwrap_or_default();
        replay
            .line(&recorded)
            .await
            .unwrap_or_else(|difference| panic!("line {number} ({note}): {difference}"));
        replayed += 1;
    }
    assert_eq!(replayed + NOT_REPLAYED.len(), LINES);
    assert_eq!(replayed, LINES, "not replayed: {NOT_REPLAYED:?}");
}

struct Replay {
    server: Server,
    /// Points of `docs` and `images`.
    points: BTreeMap<String, Value>,
    /// Snapshots made so far: recorded name to our description.
    made: BTreeMap<String, Value>,
}

type Check = Result<(), String>;

impl Replay {
    async fn line(&mut self, recorded: &Value) -> Check {
        let request = &recorded["request"];
        let path = self.ours(request["path"].as_str().expect("path"));
        let method: Method = request["method"]
            .as_str()
            .expect("method")
            .parse()
            .expect("method");
        let mut call = self.server.bare_request(method.clone(), &path);
        for (name, value) in request["headers"].as_object().expect("headers") {
            call = call.header(name, value.as_str().expect("header"));
        }
        if let Some(body) = self.body(recorded, &path) {
            call = call.body(body);
        }
        let response = call.send().await.map_err(|e| e.to_string())?;
        let expected = &recorded["response"];
        same(
            "status",
            &expected["status"],
            &json!(response.status().as_u16()),
        )?;
        self.headers(expected, &response)?;
        let body = response.bytes().await.map_err(|e| e.to_string())?;
        if let Some(text) = expected["text"].as_str() {
            same(
                "text",
                &json!(self.ours(text)),
                &json!(String::from_utf8_lossy(&body)),
            )
        } else if expected["json"].is_object() {
            let answer: Value = serde_json::from_slice(&body).map_err(|e| e.to_string())?;
            if method == Method::POST && path.ends_with("/snapshots?wait=true") {
                self.remember(&expected["json"]["result"], &answer["result"]);
            }
            self.json("", &expected["json"], &answer)
        } else {
            self.file(&path, expected, &body)
        }
    }

    /// The request body: recorded, or made again as the README says.
    fn body(&self, recorded: &Value, path: &str) -> Option<Vec<u8>> {
        let request = &recorded["request"];
        if request["json"].is_object() {
            return Some(request["json"].to_string().into_bytes());
        }
        let note = recorded["note"].as_str().unwrap_or_default();
        match note {
            "400 points" => Some(self.points["docs"].to_string().into_bytes()),
            "150 points, uuid ids" => Some(self.points["images"].to_string().into_bytes()),
            "truncated snapshot" => {
                let whole = fixture("docs.snapshot");
                Some(multipart("docs.snapshot", &whole[..TRUNCATED_BYTES]))
            }
            "two shards into an absent collection" => {
                Some(multipart("images.snapshot", &fixture("images.snapshot")))
            }
            _ if path.contains("/snapshots/upload") => {
                let content_type = request["headers"]["content-type"].as_str();
                assert_eq!(content_type, Some(multipart_type().as_str()));
                Some(multipart("docs.snapshot", &fixture("docs.snapshot")))
            }
            _ => None,
        }
    }

    /// Recorded text with our names of the snapshots made so far.
    fn ours(&self, text: &str) -> String {
        let names = self
            .made
            .iter()
            .filter_map(|(r, d)| Some((r, d["name"].as_str()?)));
        names.fold(text.to_string(), |text, (recorded, ours)| {
            text.replace(recorded, ours)
        })
    }

    fn remember(&mut self, recorded: &Value, ours: &Value) {
        if let Some(name) = recorded["name"].as_str() {
            self.made.insert(name.to_string(), ours.clone());
        }
    }

    fn description(&self, name: &str) -> Option<&Value> {
        self.made.values().find(|made| made["name"] == name)
    }

    fn headers(&self, expected: &Value, response: &Response) -> Check {
        let got = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok());
        let recorded = |name: &str| expected["headers"][name].as_str();
        if got("x-standin") != Some("lifeboat test stand-in") {
            return Err("the answer does not say that it comes from a stand-in".into());
        }
        for name in [
            "content-type",
            "vary",
            "accept-ranges",
            "content-encoding",
            "content-disposition",
        ] {
            let recorded = recorded(name).map(|value| self.ours(value));
            same(name, &json!(recorded), &json!(got(name)))?;
        }
        for name in ["etag", "last-modified", "content-length"] {
            same(
                name,
                &json!(recorded(name).is_some()),
                &json!(got(name).is_some()),
            )?;
        }
        if let Some(etag) = got("etag") {
            same("etag's parts", &json!(4), &json!(etag.split(':').count()))?;
        }
        if let Some(date) = got("last-modified") {
            let recorded = recorded("last-modified").unwrap_or_default();
            same(
                "last-modified",
                &json!(shape(recorded)),
                &json!(shape(date)),
            )?;
        }
        match (recorded("content-range"), got("content-range")) {
            (Some(recorded), Some(got)) => {
                let size = recorded.split_once('/').map(|(range, _)| range);
                same(
                    "content-range",
                    &json!(size),
                    &json!(got.split_once('/').map(|(r, _)| r)),
                )
            }
            (recorded, got) => same("content-range", &json!(recorded), &json!(got)),
        }
    }

    /// Compares JSON but for what must differ from server to server.
    fn json(&self, at: &str, expected: &Value, got: &Value) -> Check {
        match (expected, got) {
            (Value::Object(want), Value::Object(have)) => {
                let (keys, ours): (Vec<_>, Vec<_>) = (want.keys().collect(), have.keys().collect());
                same(&format!("{at}: keys"), &json!(keys), &json!(ours))?;
                let made = have.get("name").and_then(Value::as_str);
                let made = made.and_then(|name| self.description(name));
                for (key, value) in want {
                    let at = format!("{at}/{key}");
                    match (key.as_str(), made) {
                        ("time", _) => same(&at, &json!(true), &json!(have[key].is_number()))?,
                        ("creation_time", _) => {
                            let (want, have) = (value.as_str(), have[key].as_str());
                            same(&at, &json!(want.map(shape)), &json!(have.map(shape)))?;
                        }
                        ("commit", _) => {
                            let commit = have[key].as_str().unwrap_or_default();
                            same(&at, &json!(true), &json!(commit.contains("stand-in")))?;
                        }
                        // What creation announced holds from then on.
                        ("size" | "checksum", Some(made)) => same(&at, &made[key], &have[key])?,
                        _ => self.json(&at, value, &have[key])?,
                    }
                }
                Ok(())
            }
            (Value::Array(want), Value::Array(have)) => {
                same(
                    &format!("{at}: length"),
                    &json!(want.len()),
                    &json!(have.len()),
                )?;
                want.iter()
                    .zip(have)
                    .try_for_each(|(want, have)| self.json(at, want, have))
            }
            (Value::String(want), Value::String(have)) => {
                let want = self.without_places(&self.ours(want));
                same(at, &json!(want), &json!(self.without_places(have)))
            }
            _ => same(at, expected, got),
        }
    }

    /// Error texts name folders, and one of them has a random suffix.
    fn without_places(&self, text: &str) -> String {
        let root = self.server.dir.path().canonicalize().expect("folder");
        let mut text = text.replace(&*root.to_string_lossy(), "/qdrant");
        if let Some((_, rest)) = text.split_once("-recovery-") {
            let suffix = rest.get(..6).unwrap_or_default().to_string();
            text = text.replace(&suffix, "XXXXXX");
        }
        text
    }

    /// A downloaded file: whole or a range, as announced at its creation.
    fn file(&self, path: &str, expected: &Value, body: &[u8]) -> Check {
        let name = path.rsplit('/').next().unwrap_or_default();
        let made = self
            .description(name)
            .ok_or("an unknown snapshot was downloaded")?;
        if expected["status"] == 206 {
            return same("bytes", &expected["body_bytes"], &json!(body.len()));
        }
        same("size", &made["size"], &json!(body.len()))?;
        same("sha256", &made["checksum"], &json!(sha256(body)))
    }
}

/// The bodies of "400 points" and "150 points, uuid ids", from the snapshots
/// that were taken of them, checked against their description.
async fn recorded_points() -> BTreeMap<String, Value> {
    let server = start().await;
    let mut bodies = BTreeMap::new();
    for name in ["docs", "images"] {
        let file = format!("{name}.snapshot");
        let path = format!("/collections/{name}/snapshots/upload?wait=true&priority=snapshot");
        let answer = server.upload(&path, &file, &fixture(&file)).await;
        assert_eq!(answer.status(), 200);
        bodies.insert(
            name.to_string(),
            json!({"points": server.all_points(name).await}),
        );
    }
    let docs = bodies["docs"]["points"].as_array().expect("points");
    assert_eq!(docs.len(), 400);
    for (point, id) in docs.iter().zip(1..) {
        assert_eq!(point["id"], json!(id));
        assert_eq!(
            point["payload"]["text"],
            format!("doc {}", point["payload"]["n"])
        );
        assert!(point["payload"]["lang"].is_string());
        let norm: f64 = vector(&point["vector"]).iter().map(|v| v * v).sum();
        assert!(
            (norm - 1.0).abs() < 1e-5,
            "point {id} is not normalised: {norm}"
        );
    }
    let images = bodies["images"]["points"].as_array().expect("points");
    assert_eq!(images.len(), 150);
    for point in images {
        assert_eq!(point["id"].as_str().map(str::len), Some(36));
        assert!(point["payload"]["k"].is_number());
        for name in ["img", "txt"] {
            assert_eq!(vector(&point["vector"][name]).len(), 4);
        }
    }
    bodies
}

fn vector(value: &Value) -> Vec<f64> {
    let numbers = value.as_array().expect("a vector").iter();
    numbers
        .map(|number| number.as_f64().expect("a number"))
        .collect()
}

/// A text with every digit and letter of a kind made the same.
fn shape(text: &str) -> String {
    let kind = |c: char| match c {
        c if c.is_ascii_digit() => '9',
        c if c.is_ascii_lowercase() => 'a',
        c => c,
    };
    let zone = text.ends_with("GMT");
    let text: String = text.chars().map(kind).collect();
    // Names of days and months begin with any capital.
    if zone {
        text.to_lowercase()
            .replace(|c: char| c.is_ascii_lowercase(), "a")
    } else {
        text
    }
}

fn same(what: &str, expected: &Value, got: &Value) -> Check {
    if expected == got {
        return Ok(());
    }
    Err(format!("{what}: recorded {expected}, got {got}"))
}

#[test]
fn recorded_header_names_are_known() {
    // The replay above looks at all of these but `connection`, which is the
    // recording client's choice.
    let known = [
        header::CONTENT_LENGTH,
        header::CONNECTION,
        header::CONTENT_TYPE,
        header::VARY,
        header::ACCEPT_RANGES,
        header::CONTENT_DISPOSITION,
        header::ETAG,
        header::LAST_MODIFIED,
        header::CONTENT_RANGE,
        header::CONTENT_ENCODING,
    ];
    let transcript = String::from_utf8(fixture("transcript.jsonl")).expect("UTF-8");
    for line in transcript.lines() {
        let recorded: Value = serde_json::from_str(line).expect("a JSON line");
        let headers = recorded["response"]["headers"]
            .as_object()
            .expect("headers");
        for name in headers.keys() {
            assert!(
                known.iter().any(|known| known.as_str() == name),
                "{name} is not compared"
            );
        }
    }
}
