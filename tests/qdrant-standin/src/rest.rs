//! The HTTP side: routes, keys, and the envelope around every answer.

mod collections;
mod download;
mod points;
mod snapshots;

use std::sync::Arc;
use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use axum::{Json, Router};
use serde_json::{Value, json};

use crate::auth;
use crate::error::{Error, Result};
use crate::store::Store;

/// The version whose recorded behaviour is imitated.
pub const IMITATED_VERSION: &str = "1.18.3";
/// Stands where the server prints its commit.
pub const COMMIT: &str = "lifeboat-test-stand-in-not-a-qdrant-server";
const STANDIN_HEADER: &str = "x-standin";
const STANDIN: HeaderValue = HeaderValue::from_static("lifeboat test stand-in");
const VARY: HeaderValue = HeaderValue::from_static(
    "Origin, Access-Control-Request-Method, Access-Control-Request-Headers",
);

pub type App = Arc<Store>;

pub fn router(app: App) -> Router {
    let probes = Router::new()
        .route("/", get(version))
        .route("/healthz", get(|| async { "healthz check passed" }))
        .route("/livez", get(|| async { "healthz check passed" }))
        .route("/readyz", get(|| async { "all shards are ready" }));
    let guarded = Router::new()
        .route("/collections", get(collections::list))
        .route("/collections/aliases", post(collections::update_aliases))
        .route("/aliases", get(collections::aliases))
        .route(
            "/collections/{name}",
            get(collections::info)
                .put(collections::create)
                .delete(collections::delete),
        )
        .route("/collections/{name}/exists", get(collections::exists))
        .route("/collections/{name}/aliases", get(collections::aliases_of))
        .route("/collections/{name}/index", put(points::create_index))
        .route(
            "/collections/{name}/index/{field}",
            delete(points::drop_index),
        )
        .route(
            "/collections/{name}/points",
            put(points::upsert).post(points::retrieve),
        )
        .route(
            "/collections/{name}/points/{verb}",
            get(points::retrieve_one).post(points::verb),
        )
        .route(
            "/collections/{name}/points/payload",
            post(points::set_payload).put(points::overwrite_payload),
        )
        .route(
            "/collections/{name}/points/payload/{verb}",
            post(points::payload_verb),
        )
        .route(
            "/collections/{name}/points/vectors",
            put(points::update_vectors),
        )
        .route(
            "/collections/{name}/snapshots",
            get(snapshots::list).post(snapshots::create),
        )
        .route(
            "/collections/{name}/snapshots/{snapshot}",
            get(download::download).delete(snapshots::delete),
        )
        .route(
            "/collections/{name}/snapshots/upload",
            post(snapshots::upload),
        )
        .route(
            "/collections/{name}/snapshots/recover",
            put(snapshots::recover),
        )
        .route("/standin/faults", post(snapshots::set_faults))
        .fallback(|| async { StatusCode::NOT_FOUND })
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn_with_state(app.clone(), check_key));
    probes
        .merge(guarded)
        .layer(axum::middleware::map_response(mark))
        .with_state(app)
}

/// Runs a blocking operation and wraps what it gives in the server's envelope.
async fn run<T, F>(app: App, operation: F) -> Response
where
    T: Into<Value>,
    F: FnOnce(&Store) -> Result<T> + Send + 'static,
{
    let started = Instant::now();
    let job = tokio::task::spawn_blocking(move || operation(&app).map(Into::into));
    let result = match job.await {
        Ok(result) => result,
        Err(e) => Err(Error::Internal(format!("task failed: {e}"))),
    };
    envelope(result, started)
}

fn envelope(result: Result<Value>, started: Instant) -> Response {
    let time = started.elapsed().as_secs_f64();
    match result {
        Ok(result) => Json(json!({"result": result, "status": "ok", "time": time})).into_response(),
        Err(error) => {
            let body = json!({"status": {"error": error.to_string()}, "time": time});
            (error.http_status(), Json(body)).into_response()
        }
    }
}

/// The answer to `wait=false`: the work goes on, its outcome is not told.
fn accepted(started: Instant) -> Response {
    let body = json!({"status": "accepted", "time": started.elapsed().as_secs_f64()});
    (StatusCode::ACCEPTED, Json(body)).into_response()
}

fn parse(body: &Bytes) -> Result<Value> {
    serde_json::from_slice(body)
        .map_err(|e| Error::BadRequest(format!("Format error in JSON body: {e}")))
}

async fn version() -> Json<Value> {
    Json(json!({
        "title": "qdrant - vector search engine",
        "version": IMITATED_VERSION,
        "commit": COMMIT,
    }))
}

async fn check_key(State(app): State<App>, request: Request, next: Next) -> Response {
    let access = {
        let header = |name: &str| text_header(request.headers(), name);
        auth::check(&app.options, header("api-key"), header("authorization"))
    };
    match access {
        Err(message) => {
            let mut refused = Response::new(Body::from(message));
            *refused.status_mut() = StatusCode::UNAUTHORIZED;
            refused
        }
        Ok(access) if needs_manage(request.method(), request.uri().path()) => {
            match access.require_manage() {
                Ok(()) => next.run(request).await,
                Err(error) => envelope(Err(error), Instant::now()),
            }
        }
        Ok(_) => next.run(request).await,
    }
}

/// Some POSTs only read.
fn needs_manage(method: &Method, path: &str) -> bool {
    let reading_posts = ["/points", "/count", "/scroll", "/search", "/query"];
    let reads = method == Method::POST && reading_posts.iter().any(|end| path.ends_with(end));
    method != Method::GET && !reads
}

fn text_header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

async fn mark(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(STANDIN_HEADER, STANDIN);
    headers.insert(header::VARY, VARY);
    response
}
