//! Snapshot download: ranges, ETags, and compression when it is asked for.

use std::fs::Metadata;
use std::io::SeekFrom;
use std::os::unix::fs::MetadataExt;

use async_compression::tokio::bufread::{GzipEncoder, ZstdEncoder};
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::response::Builder;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt, BufReader};
use tokio_util::io::ReaderStream;

use super::{App, text_header};
use crate::error::Error;

pub async fn download(
    State(app): State<App>,
    Path((name, snapshot)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    match send(&app, &name, &snapshot, &headers).await {
        Ok(response) => response,
        // This route answers in plain text, unlike all others.
        Err(error) => (error.http_status(), error.to_string()).into_response(),
    }
}

async fn send(
    app: &App,
    name: &str,
    snapshot: &str,
    headers: &HeaderMap,
) -> Result<Response, Error> {
    let path = app.snapshot_path(name, snapshot)?;
    let mut file = File::open(path).await?;
    let metadata = file.metadata().await?;
    let size = metadata.len();
    let etag = etag(&metadata);
    if text_header(headers, "if-match").is_some_and(|given| given != "*" && given != etag) {
        return build(
            Response::builder().status(StatusCode::PRECONDITION_FAILED),
            Body::empty(),
        );
    }
    let common = Response::builder()
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::ACCEPT_RANGES, "bytes")
        .header(
            header::CONTENT_DISPOSITION,
            format!("attachment; filename=\"{snapshot}\""),
        )
        .header(header::ETAG, &etag)
        .header(header::LAST_MODIFIED, http_date(&metadata));

    // A range of a file that changed meanwhile is answered with all of it.
    let fresh = text_header(headers, "if-range").is_none_or(|given| given == etag);
    if let Some(range) = text_header(headers, "range").filter(|_| fresh) {
        let Some((first, last)) = parse_range(range, size) else {
            let refused = common
                .status(StatusCode::RANGE_NOT_SATISFIABLE)
                .header(header::CONTENT_RANGE, format!("bytes */{size}"));
            return build(refused, Body::empty());
        };
        let length = last - first + 1;
        file.seek(SeekFrom::Start(first)).await?;
        let partial = common
            .status(StatusCode::PARTIAL_CONTENT)
            .header(
                header::CONTENT_RANGE,
                format!("bytes {first}-{last}/{size}"),
            )
            .header(header::CONTENT_ENCODING, "identity")
            .header(header::CONTENT_LENGTH, length);
        return build(partial, body(app, file, length));
    }
    let coding = text_header(headers, "accept-encoding").and_then(pick_coding);
    match coding {
        Some("gzip") => {
            let body = Body::from_stream(ReaderStream::new(GzipEncoder::new(BufReader::new(file))));
            build(common.header(header::CONTENT_ENCODING, "gzip"), body)
        }
        Some("zstd") => {
            let body = Body::from_stream(ReaderStream::new(ZstdEncoder::new(BufReader::new(file))));
            build(common.header(header::CONTENT_ENCODING, "zstd"), body)
        }
        _ => build(
            common.header(header::CONTENT_LENGTH, size),
            body(app, file, size),
        ),
    }
}

/// `length` bytes from where the file stands. Under the truncation fault it
/// breaks off half-way, though the headers promised all.
fn body(app: &App, file: File, length: u64) -> Body {
    if !app.faults.takes_truncation() {
        return Body::from_stream(ReaderStream::new(file.take(length)));
    }
    let broken = || -> std::io::Result<Bytes> {
        Err(std::io::Error::other("cut off on purpose (stand-in fault)"))
    };
    let half = ReaderStream::new(file.take(length / 2));
    Body::from_stream(half.chain(stream::once(async move { broken() })))
}

fn build(response: Builder, body: Body) -> Result<Response, Error> {
    response
        .body(body)
        .map_err(|e| Error::Internal(format!("bad response header: {e}")))
}

/// Inode, size and time, as the server makes it.
fn etag(metadata: &Metadata) -> String {
    format!(
        "\"{:x}:{:x}:{:x}:{:x}\"",
        metadata.ino(),
        metadata.len(),
        metadata.mtime(),
        metadata.mtime_nsec()
    )
}

fn http_date(metadata: &Metadata) -> String {
    Timestamp::from_second(metadata.mtime())
        .unwrap_or(Timestamp::UNIX_EPOCH)
        .to_zoned(TimeZone::UTC)
        .strftime("%a, %d %b %Y %H:%M:%S GMT")
        .to_string()
}

/// First and last byte of a single `bytes=` range, if it can be satisfied.
fn parse_range(range: &str, size: u64) -> Option<(u64, u64)> {
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    let end = size.checked_sub(1)?;
    if first.is_empty() {
        let suffix: u64 = last.parse().ok().filter(|n| *n > 0)?;
        return Some((size.saturating_sub(suffix), end));
    }
    let first: u64 = first.parse().ok()?;
    let last = if last.is_empty() {
        end
    } else {
        last.parse::<u64>().ok()?.min(end)
    };
    (first <= last).then_some((first, last))
}

/// The coding the client takes, of those offered; `None` for identity.
fn pick_coding(accepted: &str) -> Option<&'static str> {
    let refused = |params: &str| matches!(params.replace(' ', "").as_str(), "q=0" | "q=0.0");
    let named: Vec<&str> = accepted
        .split(',')
        .filter_map(|item| {
            let (coding, params) = item.split_once(';').unwrap_or((item, ""));
            (!refused(params)).then_some(coding.trim())
        })
        .collect();
    ["gzip", "zstd"]
        .into_iter()
        .find(|coding| named.contains(coding))
}
