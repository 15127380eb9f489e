//! Snapshots: creation, listing, deletion, upload, recovery by location.

use std::path::{Path as FilePath, PathBuf};
use std::time::Instant;

use axum::body::Bytes;
use axum::extract::{Multipart, Path, Query, State};
use axum::response::Response;
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use super::{App, accepted, envelope, parse, run};
use crate::error::{Error, Result};
use crate::options::FaultPlan;
use crate::store::Store;

#[derive(Debug, Deserialize)]
pub struct Wait {
    wait: Option<bool>,
    priority: Option<String>,
    checksum: Option<String>,
}

impl Wait {
    /// All priorities come to the same on a single node.
    fn check(&self) -> Result<()> {
        check_priority(self.priority.as_deref())
    }
}

pub async fn list(State(app): State<App>, Path(name): Path<String>) -> Response {
    run(app, move |store| Ok(json!(store.list_snapshots(&name)?))).await
}

/// The work goes on when the client hangs up: it leaves its file behind.
pub async fn create(
    State(app): State<App>,
    Path(name): Path<String>,
    Query(wait): Query<Wait>,
) -> Response {
    run_or_accept(app, wait.wait, move |store| {
        Ok(json!(store.create_snapshot(&name)?))
    })
    .await
}

pub async fn delete(
    State(app): State<App>,
    Path((name, snapshot)): Path<(String, String)>,
) -> Response {
    run(app, move |store| {
        store.delete_snapshot(&name, &snapshot).map(|()| true)
    })
    .await
}

pub async fn upload(
    State(app): State<App>,
    Path(name): Path<String>,
    Query(query): Query<Wait>,
    form: Multipart,
) -> Response {
    let started = Instant::now();
    let staged = match app.temporary("upload") {
        Ok(staged) => staged,
        Err(error) => return envelope(Err(error), started),
    };
    let received = match query.check() {
        Ok(()) => receive(form, &staged).await,
        Err(error) => Err(error),
    };
    let file_name = match received {
        Ok(file_name) => file_name,
        Err(error) => {
            discard(&staged).await;
            return envelope(Err(error), started);
        }
    };
    run_or_accept(app, query.wait, move |store| {
        let (file, sum) = (file_name.as_deref(), query.checksum.as_deref());
        let recovered = store.recover_upload(&name, &staged, file, sum);
        std::fs::remove_file(&staged)?;
        recovered.map(|()| Value::Bool(true))
    })
    .await
}

pub async fn recover(
    State(app): State<App>,
    Path(name): Path<String>,
    Query(query): Query<Wait>,
    body: Bytes,
) -> Response {
    let started = Instant::now();
    let source = match read_source(&app, &body).await {
        Ok(source) => source,
        Err(error) => return envelope(Err(error), started),
    };
    run_or_accept(app, query.wait, move |store| {
        let sum = source.checksum.as_deref();
        let recovered = if source.fetched {
            let recovered = store.recover_download(&name, &source.path, sum);
            std::fs::remove_file(&source.path)?;
            recovered
        } else {
            store.recover_file(&name, &source.path, sum)
        };
        recovered.map(|()| Value::Bool(true))
    })
    .await
}

/// `POST /standin/faults`: the stand-in's own route, for tests that run it in
/// a container.
pub async fn set_faults(State(app): State<App>, body: Bytes) -> Response {
    run(app, move |store| {
        let plan: FaultPlan = serde_json::from_value(parse(&body)?)
            .map_err(|e| Error::BadRequest(format!("Format error in JSON body: {e}")))?;
        store.faults.apply(plan);
        Ok(true)
    })
    .await
}

/// Where a recovery reads from.
struct Source {
    path: PathBuf,
    checksum: Option<String>,
    /// Ours to delete.
    fetched: bool,
}

async fn read_source(app: &Store, body: &Bytes) -> Result<Source> {
    let body = parse(body)?;
    let text = |key: &str| body.get(key).and_then(Value::as_str).map(String::from);
    check_priority(text("priority").as_deref())?;
    let checksum = text("checksum");
    let location = text("location").ok_or_else(|| {
        Error::BadRequest("Format error in JSON body: missing field `location`".into())
    })?;
    if location.starts_with("file:") {
        // Percent signs in names are encoded, as in any URL.
        let path = reqwest::Url::parse(&location).ok();
        let path = path.and_then(|url| url.to_file_path().ok());
        let path = path.ok_or_else(|| {
            Error::BadRequest(format!("Invalid snapshot URI {location}: not a local path"))
        })?;
        return Ok(Source {
            path,
            checksum,
            fetched: false,
        });
    }
    if !location.starts_with("http://") && !location.starts_with("https://") {
        let scheme = location.split(':').next().unwrap_or_default();
        return Err(Error::BadRequest(format!(
            "URL {location} with scheme {scheme} is not supported"
        )));
    }
    let path = app.temporary("download")?;
    if let Err(error) = fetch(&location, text("api_key"), &path).await {
        discard(&path).await;
        return Err(error);
    }
    Ok(Source {
        path,
        checksum,
        fetched: true,
    })
}

async fn fetch(location: &str, api_key: Option<String>, to: &FilePath) -> Result<()> {
    let failed = |e: reqwest::Error| {
        Error::Internal(format!("Failed to download snapshot from {location}: {e}"))
    };
    let mut request = reqwest::Client::new().get(location);
    if let Some(key) = api_key {
        request = request.header("api-key", key);
    }
    let response = request.send().await.map_err(failed)?;
    if !response.status().is_success() {
        return Err(Error::BadInput(format!(
            "Failed to download snapshot from {location}: status - {}",
            response.status()
        )));
    }
    let mut file = tokio::fs::File::create_new(to).await?;
    let mut body = response.bytes_stream();
    while let Some(chunk) = body.next().await {
        file.write_all(&chunk.map_err(failed)?).await?;
    }
    file.flush().await?;
    Ok(())
}

/// Writes the field `snapshot` to `staged`; gives the name it came under.
async fn receive(mut form: Multipart, staged: &FilePath) -> Result<Option<String>> {
    let bad = |e: axum::extract::multipart::MultipartError| {
        Error::BadRequest(format!("Multipart error: {e}"))
    };
    while let Some(mut field) = form.next_field().await.map_err(bad)? {
        if field.name() != Some("snapshot") {
            continue;
        }
        let file_name = field.file_name().map(String::from);
        let mut file = tokio::fs::File::create_new(staged).await?;
        while let Some(chunk) = field.chunk().await.map_err(bad)? {
            file.write_all(&chunk).await?;
        }
        file.flush().await?;
        return Ok(file_name);
    }
    Err(Error::BadRequest("Field `snapshot` is required".into()))
}

async fn run_or_accept<F>(app: App, wait: Option<bool>, operation: F) -> Response
where
    F: FnOnce(&Store) -> Result<Value> + Send + 'static,
{
    if wait.unwrap_or(true) {
        return run(app, operation).await;
    }
    tokio::task::spawn_blocking(move || {
        if let Err(error) = operation(&app) {
            eprintln!("qdrant-standin: a request with wait=false failed: {error}");
        }
    });
    accepted(Instant::now())
}

fn check_priority(priority: Option<&str>) -> Result<()> {
    match priority {
        None | Some("snapshot" | "replica" | "no_sync") => Ok(()),
        Some(other) => Err(Error::BadRequest(format!(
            "unknown variant `{other}`, expected one of `no_sync`, `snapshot`, `replica`"
        ))),
    }
}

/// What is left of a failed transfer; there may be nothing.
async fn discard(staged: &FilePath) {
    if let Err(error) = tokio::fs::remove_file(staged).await
        && error.kind() != std::io::ErrorKind::NotFound
    {
        eprintln!("qdrant-standin: {} stays behind: {error}", staged.display());
    }
}
