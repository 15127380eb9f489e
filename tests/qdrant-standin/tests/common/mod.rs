//! A stand-in on free ports and a client for it.

#![allow(dead_code, reason = "each test program uses its part")]

use std::path::{Path, PathBuf};

use qdrant_standin::{Handle, Options};
use reqwest::{Method, Response};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

pub const KEY: &str = "test-key";
pub const READ_KEY: &str = "read-key";
const BOUNDARY: &str = "----lifeboat";

pub struct Server {
    pub handle: Handle,
    pub dir: TempDir,
    client: reqwest::Client,
}

pub async fn start() -> Server {
    start_in(tempfile::tempdir().expect("temporary folder"), 1000).await
}

pub async fn start_in(dir: TempDir, segment_points: usize) -> Server {
    let mut options = Options::new(dir.path().join("storage"), dir.path().join("snapshots"));
    options.api_key = Some(KEY.into());
    options.read_only_api_key = Some(READ_KEY.into());
    options.segment_points = segment_points;
    let handle = qdrant_standin::start(options)
        .await
        .expect("stand-in starts");
    let client = reqwest::Client::new();
    Server {
        handle,
        dir,
        client,
    }
}

impl Server {
    /// A JSON request with the full key that must succeed; gives its `result`.
    pub async fn ok(&self, method: Method, path: &str, body: Option<Value>) -> Value {
        let (status, answer) = self.any(method, path, body).await;
        assert_eq!(status, 200, "{path}: {answer}");
        answer["result"].clone()
    }

    /// A JSON request with the full key; gives status and answer.
    pub async fn any(&self, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
        let mut request = self.request(method, path);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.expect("answer");
        (
            response.status().as_u16(),
            response.json().await.expect("JSON"),
        )
    }

    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.bare_request(method, path).header("api-key", KEY)
    }

    pub fn bare_request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.client
            .request(method, format!("{}{path}", self.handle.http_url))
    }

    pub async fn upload(&self, path: &str, file_name: &str, file: &[u8]) -> Response {
        self.request(Method::POST, path)
            .header("content-type", multipart_type())
            .body(multipart(file_name, file))
            .send()
            .await
            .expect("answer")
    }

    /// Makes a snapshot; gives its description and its bytes.
    pub async fn snapshot(&self, collection: &str) -> (Value, Vec<u8>) {
        let path = format!("/collections/{collection}/snapshots");
        let made = self.ok(Method::POST, &path, None).await;
        let name = made["name"].as_str().expect("name");
        let download = self.request(Method::GET, &format!("{path}/{name}"));
        let bytes = download
            .send()
            .await
            .expect("answer")
            .bytes()
            .await
            .expect("body");
        assert_eq!(made["checksum"], sha256(&bytes));
        (made, bytes.to_vec())
    }

    pub async fn count(&self, collection: &str) -> u64 {
        let path = format!("/collections/{collection}/points/count");
        let body = serde_json::json!({"exact": true});
        let result = self.ok(Method::POST, &path, Some(body)).await;
        result["count"].as_u64().expect("count")
    }

    /// All points with payload and vector, in the order of their ids.
    pub async fn all_points(&self, collection: &str) -> Vec<Value> {
        let path = format!("/collections/{collection}/points/scroll");
        let body = serde_json::json!({"limit": 100_000, "with_vector": true});
        let result = self.ok(Method::POST, &path, Some(body)).await;
        assert_eq!(result["next_page_offset"], Value::Null);
        result["points"].as_array().expect("points").clone()
    }
}

pub fn multipart_type() -> String {
    format!("multipart/form-data; boundary={BOUNDARY}")
}

pub fn multipart(file_name: &str, file: &[u8]) -> Vec<u8> {
    let mut body = format!(
        "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"snapshot\"; filename=\"{file_name}\"\r\nContent-Type: application/octet-stream\r\n\r\n"
    )
    .into_bytes();
    body.extend_from_slice(file);
    body.extend_from_slice(format!("\r\n--{BOUNDARY}--\r\n").as_bytes());
    body
}

pub fn fixture(name: &str) -> Vec<u8> {
    let path = fixtures().join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("read {}: {e}", path.display()))
}

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/qdrant")
}

pub fn sha256(data: &[u8]) -> String {
    Sha256::digest(data)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}
