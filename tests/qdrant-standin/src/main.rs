//! The stand-in as a program, configured by the server's own environment
//! variables and a few of its own (`STANDIN_*`).

use std::env;
use std::net::SocketAddr;
use std::str::FromStr;

use anyhow::{Context, Result};
use qdrant_standin::{FaultPlan, Options};
use tokio::signal::unix::{SignalKind, signal};

const HELP: &str = "\
qdrant-standin: Lifeboat's test stand-in for a Qdrant server. Not Qdrant; for tests only.

It takes no arguments but --help. Environment (defaults in brackets):
  QDRANT__SERVICE__HOST               address to listen on [0.0.0.0]
  QDRANT__SERVICE__HTTP_PORT          [6333]
  QDRANT__SERVICE__GRPC_PORT          [6334]
  QDRANT__SERVICE__API_KEY            key for everything [none]
  QDRANT__SERVICE__READ_ONLY_API_KEY  key for reading [none]
  QDRANT__STORAGE__STORAGE_PATH       [./storage]
  QDRANT__STORAGE__SNAPSHOTS_PATH     [./snapshots]
  STANDIN_SEGMENT_POINTS              points per segment [1000]
  STANDIN_SNAPSHOT_DELAY_MS           every snapshot takes that much longer [0]
  STANDIN_FAIL_SNAPSHOTS              that many snapshot creations answer 500 [0]
  STANDIN_TRUNCATE_DOWNLOADS          that many downloads break off half-way [0]
  STANDIN_FAIL_UPLOADS                that many uploads and recoveries answer 500 [0]
The last four can be set while it runs: POST /standin/faults
  {\"snapshot_delay_ms\": 0, \"fail_snapshots\": 1, \"truncate_downloads\": 0, \"fail_uploads\": 0}
and with it \"pass_uploads\": uploads that work first, \"forget_uploads\": uploads that leave no file
";

#[tokio::main]
async fn main() -> Result<()> {
    if env::args().len() > 1 {
        print!("{HELP}");
        return Ok(());
    }
    let options = options_from_env()?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let handle = qdrant_standin::start(options).await.context("start")?;
    println!(
        "qdrant-standin: Lifeboat's test stand-in, not a Qdrant server. HTTP {}, gRPC {}",
        handle.http_url, handle.grpc_url
    );
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    handle.shutdown().await;
    Ok(())
}

fn options_from_env() -> Result<Options> {
    let storage = text("QDRANT__STORAGE__STORAGE_PATH").unwrap_or("./storage".into());
    let snapshots = text("QDRANT__STORAGE__SNAPSHOTS_PATH").unwrap_or("./snapshots".into());
    let host = text("QDRANT__SERVICE__HOST").unwrap_or("0.0.0.0".into());
    let addr = |name: &str, default: u16| -> Result<SocketAddr> {
        let port = number(name)?.unwrap_or(default);
        let host = host
            .parse()
            .context("QDRANT__SERVICE__HOST is no IP address")?;
        Ok(SocketAddr::new(host, port))
    };
    let mut options = Options::new(storage, snapshots);
    options.http_addr = addr("QDRANT__SERVICE__HTTP_PORT", 6333)?;
    options.grpc_addr = addr("QDRANT__SERVICE__GRPC_PORT", 6334)?;
    options.api_key = text("QDRANT__SERVICE__API_KEY");
    options.read_only_api_key = text("QDRANT__SERVICE__READ_ONLY_API_KEY");
    if let Some(points) = number("STANDIN_SEGMENT_POINTS")? {
        options.segment_points = points;
    }
    options.faults = FaultPlan {
        snapshot_delay_ms: number("STANDIN_SNAPSHOT_DELAY_MS")?,
        fail_snapshots: number("STANDIN_FAIL_SNAPSHOTS")?,
        truncate_downloads: number("STANDIN_TRUNCATE_DOWNLOADS")?,
        fail_uploads: number("STANDIN_FAIL_UPLOADS")?,
        ..FaultPlan::default()
    };
    Ok(options)
}

/// An empty variable counts as unset, as compose files leave them.
fn text(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn number<T: FromStr>(name: &str) -> Result<Option<T>>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let Some(value) = text(name) else {
        return Ok(None);
    };
    let parsed = value
        .parse()
        .with_context(|| format!("read {name}={value}"))?;
    Ok(Some(parsed))
}
