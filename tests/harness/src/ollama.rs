//! Models made from tiny files through Ollama's own API.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reqwest::Method;
use serde_json::{Value, json};

use crate::digest::sha256;
use crate::gguf;
use crate::ledger::Write;
use crate::stack::{Service, Stack, docker};
use crate::web::Web;

/// The model made from a file; [`SHARED`] is made from it and shares its largest blob.
pub const BASE: &str = "harness-base:latest";
pub const SHARED: &str = "harness-shared:latest";

pub struct Ollama(Web);

impl Ollama {
    pub fn new(stack: &Stack, timeout: Duration) -> Result<Self> {
        let container = stack.container(Service::Ollama)?;
        Ok(Self(Web::new(&container.url(), timeout)?))
    }

    /// Lists the models: name to digest of the manifest.
    pub fn digests(&self) -> Result<BTreeMap<String, String>> {
        let answer = self.0.get("/api/tags")?;
        let models = answer.get("models").and_then(Value::as_array);
        Ok(models
            .context("models are missing in Ollama's answer")?
            .iter()
            .filter_map(|model| {
                let name = model.get("name")?.as_str()?;
                let digest = model.get("digest")?.as_str()?;
                Some((name.to_owned(), digest.to_owned()))
            })
            .collect())
    }

    /// Copies the base model under a new name.
    pub fn copy(&self) -> Result<Write> {
        let name = format!("harness-copy-{}:latest", crate::write::nonce());
        let body = json!({"source": BASE, "destination": name});
        self.0
            .send(&Method::POST, "/api/copy", |request| request.json(&body))?;
        self.acknowledged(name)
    }

    /// Makes a model which adds a blob of its own to the base model's.
    pub fn create(&self) -> Result<Write> {
        let nonce = crate::write::nonce();
        let name = format!("harness-note-{nonce}:latest");
        self.create_from(&name, &format!("Note {nonce}."))?;
        self.acknowledged(name)
    }

    /// Reads a model's details, for which the server opens its manifest and blobs.
    pub fn show(&self, name: &str) -> Result<Value> {
        self.0.post("/api/show", &json!({"model": name}))
    }

    fn create_from(&self, name: &str, system: &str) -> Result<()> {
        let body = json!({"model": name, "from": BASE, "system": system, "stream": false});
        let answer = self.0.post("/api/create", &body)?;
        ensure!(
            answer.get("status") == Some(&json!("success")),
            "Ollama did not create {name}: {answer}"
        );
        Ok(())
    }

    fn acknowledged(&self, name: String) -> Result<Write> {
        let digest = self.digests()?.remove(&name);
        let digest = digest.with_context(|| format!("Ollama does not list {name}"))?;
        Ok(Write::Model { name, digest })
    }

    /// Uploads bytes as a blob, which the server checks against the digest it is given.
    fn upload(&self, bytes: Vec<u8>) -> Result<Value> {
        let digest = format!("sha256:{}", sha256(&bytes));
        let size = bytes.len();
        self.0
            .send(&Method::POST, &format!("/api/blobs/{digest}"), |request| {
                request.body(bytes)
            })
            .context("upload a blob to Ollama")?;
        Ok(json!({"digest": digest, "size": size}))
    }
}

/// Connects anew and lists the models.
pub fn ping(stack: &Stack) -> Result<()> {
    let container = stack.container(Service::Ollama)?;
    let web = Web::unpooled(&container.url(), Duration::from_secs(5))?;
    web.get("/api/tags")?;
    Ok(())
}

/// Makes two models that share a blob of `megabytes`.
pub fn seed(stack: &Stack, megabytes: usize) -> Result<()> {
    let ollama = Ollama::new(stack, Duration::from_mins(10))?;
    let model = ollama.upload(gguf::build(megabytes << 20, 1))?;
    let config = ollama.upload(serde_json::to_vec(&json!({
        "model_format": "gguf",
        "model_family": "llama",
        "model_families": ["llama"],
        "file_type": "F32",
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [model.get("digest")]},
    }))?)?;
    install_manifest(stack, &manifest(&model, &config))?;
    ollama.create_from(SHARED, "Answer in one word.")
}

fn manifest(model: &Value, config: &Value) -> Value {
    let typed = |blob: &Value, kind: &str| json!({"mediaType": kind, "digest": blob.get("digest"), "size": blob.get("size")});
    json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": typed(config, "application/vnd.docker.container.image.v1+json"),
        "layers": [typed(model, "application/vnd.ollama.image.model")],
    })
}

/// Puts the base model's manifest where a pull would have put it.
///
/// `/api/create` from a file needs llama.cpp's tools in the image and a model they can load;
/// the server itself lists, shows, copies and derives from any manifest whose blobs are there.
fn install_manifest(stack: &Stack, manifest: &Value) -> Result<()> {
    let container = stack.container(Service::Ollama)?;
    let models = models_dir(stack);
    let (name, tag) = BASE.split_once(':').unwrap_or((BASE, "latest"));
    let directory = format!("{models}/manifests/registry.ollama.ai/library/{name}");
    container.exec(&["mkdir", "-p", &directory])?;
    let file = std::env::temp_dir().join(format!("harness-manifest-{}", std::process::id()));
    std::fs::write(&file, serde_json::to_vec(manifest)?).context("write a manifest to copy")?;
    let copied = docker(&[
        "cp",
        &file.to_string_lossy(),
        &format!("{}:{directory}/{tag}", container.id),
    ]);
    std::fs::remove_file(&file).context("remove the copied manifest")?;
    copied.map(drop)
}

/// Lists the models: name to digest of the manifest.
pub fn digests(stack: &Stack) -> Result<BTreeMap<String, String>> {
    Ollama::new(stack, Duration::from_secs(30))?.digests()
}

/// Directory in the container that holds `manifests` and `blobs`.
pub fn models_dir(stack: &Stack) -> &str {
    let models = stack.setting(Service::Ollama, &["OLLAMA_MODELS"]);
    models.unwrap_or("/root/.ollama/models")
}
