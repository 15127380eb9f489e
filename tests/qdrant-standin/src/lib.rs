//! A stand-in for a Qdrant server, for Lifeboat's tests. **Not Qdrant.**
//!
//! It answers the routes and gRPC methods that a backup tool, a seeding
//! program and a small application use, the way a real Qdrant 1.18.3 was
//! recorded to answer (`tests/fixtures/qdrant/`). It keeps points durably and
//! writes and restores snapshots in the server's archive layout. It has no
//! index, no optimiser and no cluster; searches are brute force.
//!
//! The flow, in reading order:
//! - [`Options`] say where to listen, where to store, which keys, which faults;
//! - `rest` and `grpc` take requests, check keys (`auth`), and call the store
//!   on blocking threads;
//! - `store` holds collections and aliases, `points` and `snapshots` what can
//!   be done with them;
//! - `collection` logs each operation before it acknowledges it;
//! - `snapshot` is the archive format.
//!
//! Invariants: what was acknowledged survives `kill -9`; a snapshot shows one
//! instant, with everything acknowledged before it was asked for; a segment
//! that did not change is written byte for byte the same; a failed recovery
//! changes no collection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use error::Error;
pub use options::{FaultPlan, Faults, Options};

mod auth;
mod collection;
mod config;
mod error;
mod filter;
mod grpc;
mod model;
mod options;
mod points;
mod rest;
mod snapshot;
mod snapshots;
mod store;

/// Below the ten seconds that `docker stop` gives.
const GRACE: Duration = Duration::from_secs(5);

/// A running stand-in. Dropping it stops the servers without waiting.
#[derive(Debug)]
pub struct Handle {
    /// `http://127.0.0.1:port`, without a slash at the end.
    pub http_url: String,
    /// The same for gRPC.
    pub grpc_url: String,
    /// Makes it fail on purpose, at any time.
    pub faults: Arc<Faults>,
    stop: watch::Sender<bool>,
    servers: Vec<JoinHandle<()>>,
}

impl Handle {
    /// Stops accepting and lets running requests end, for some seconds.
    pub async fn shutdown(mut self) {
        self.stop.send_replace(true);
        let ended = async {
            for server in &mut self.servers {
                // A server that panicked has said so already.
                server.await.unwrap_or_default();
            }
        };
        if tokio::time::timeout(GRACE, ended).await.is_err() {
            eprintln!("qdrant-standin: requests still running after {GRACE:?} are cut off");
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        for server in &self.servers {
            server.abort();
        }
    }
}

/// Opens the storage and starts both servers; they answer when this returns.
pub async fn start(options: Options) -> Result<Handle, Error> {
    let http = TcpListener::bind(options.http_addr).await?;
    let grpc = TcpListener::bind(options.grpc_addr).await?;
    let (http_url, grpc_url) = (url(http.local_addr()?), url(grpc.local_addr()?));
    let opened = tokio::task::spawn_blocking(|| store::Store::open(options)).await;
    let opened = opened.map_err(|e| Error::Internal(format!("task failed: {e}")))??;
    let store = Arc::new(opened);
    let faults = Arc::clone(&store.faults);
    let (stop, stopped) = watch::channel(false);

    let router = rest::router(Arc::clone(&store));
    let http_stopped = until_stopped(stopped.clone());
    let http_server = tokio::spawn(async move {
        let server = axum::serve(http, router).with_graceful_shutdown(http_stopped);
        report("HTTP", server.await);
    });
    let grpc_server = tokio::spawn(async move {
        report(
            "gRPC",
            grpc::serve(store, grpc, until_stopped(stopped)).await,
        );
    });
    Ok(Handle {
        http_url,
        grpc_url,
        faults,
        stop,
        servers: vec![http_server, grpc_server],
    })
}

async fn until_stopped(mut stopped: watch::Receiver<bool>) {
    // An error means that the handle is gone: stop as well.
    stopped
        .wait_for(|stop| *stop)
        .await
        .map(|_| ())
        .unwrap_or_default();
}

fn report(server: &str, result: Result<(), impl std::fmt::Display>) {
    if let Err(error) = result {
        eprintln!("qdrant-standin: the {server} server failed: {error}");
    }
}

fn url(addr: SocketAddr) -> String {
    format!("http://{addr}")
}
