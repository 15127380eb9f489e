//! How to start a stand-in, and the switches that make it fail on purpose.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Deserialize;

/// Everything a stand-in needs to know. `Options::new` gives ports chosen by
/// the kernel and no keys.
#[derive(Debug, Clone)]
pub struct Options {
    pub http_addr: SocketAddr,
    pub grpc_addr: SocketAddr,
    /// Collections, aliases and half-made snapshots live here.
    pub storage_dir: PathBuf,
    /// Finished and uploaded snapshots, a folder per collection.
    pub snapshots_dir: PathBuf,
    /// Allows everything. Without any key every request is allowed.
    pub api_key: Option<String>,
    /// Allows reading, listing and downloading.
    pub read_only_api_key: Option<String>,
    /// Points per segment before a new segment is begun: small values give
    /// snapshots with many segments from little data.
    pub segment_points: usize,
    pub faults: FaultPlan,
}

impl Options {
    pub fn new(storage_dir: impl Into<PathBuf>, snapshots_dir: impl Into<PathBuf>) -> Self {
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            http_addr: any_port,
            grpc_addr: any_port,
            storage_dir: storage_dir.into(),
            snapshots_dir: snapshots_dir.into(),
            api_key: None,
            read_only_api_key: None,
            segment_points: 1000,
            faults: FaultPlan::default(),
        }
    }
}

/// Faults as they are asked for: at start, or later by
/// `POST /standin/faults`, where a missing field leaves its switch alone.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultPlan {
    /// Every snapshot creation waits this long after it froze the collection.
    pub snapshot_delay_ms: Option<u64>,
    /// That many snapshot creations answer 500.
    pub fail_snapshots: Option<u64>,
    /// That many downloads break off half-way.
    pub truncate_downloads: Option<u64>,
    /// That many uploads and recoveries answer 500.
    pub fail_uploads: Option<u64>,
    /// That many uploads and recoveries work before `fail_uploads` counts.
    pub pass_uploads: Option<u64>,
    /// That many uploads leave no file among the collection's snapshots.
    pub forget_uploads: Option<u64>,
}

/// The switches of a running stand-in. Counters fall by one per failure.
#[derive(Debug, Default)]
pub struct Faults {
    snapshot_delay_ms: AtomicU64,
    fail_snapshots: AtomicU64,
    truncate_downloads: AtomicU64,
    fail_uploads: AtomicU64,
    pass_uploads: AtomicU64,
    forget_uploads: AtomicU64,
}

impl Faults {
    /// Sets the switches that the plan names.
    pub fn apply(&self, plan: FaultPlan) {
        let pairs = [
            (&self.snapshot_delay_ms, plan.snapshot_delay_ms),
            (&self.fail_snapshots, plan.fail_snapshots),
            (&self.truncate_downloads, plan.truncate_downloads),
            (&self.fail_uploads, plan.fail_uploads),
            (&self.pass_uploads, plan.pass_uploads),
            (&self.forget_uploads, plan.forget_uploads),
        ];
        for (switch, value) in pairs {
            if let Some(value) = value {
                switch.store(value, Ordering::SeqCst);
            }
        }
    }

    pub(crate) fn snapshot_delay_ms(&self) -> u64 {
        self.snapshot_delay_ms.load(Ordering::SeqCst)
    }

    pub(crate) fn takes_snapshot_failure(&self) -> bool {
        takes_one(&self.fail_snapshots)
    }

    pub(crate) fn takes_truncation(&self) -> bool {
        takes_one(&self.truncate_downloads)
    }

    pub(crate) fn takes_upload_failure(&self) -> bool {
        !takes_one(&self.pass_uploads) && takes_one(&self.fail_uploads)
    }

    pub(crate) fn takes_forgotten_upload(&self) -> bool {
        takes_one(&self.forget_uploads)
    }
}

fn takes_one(counter: &AtomicU64) -> bool {
    counter
        .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
            left.checked_sub(1)
        })
        .is_ok()
}
