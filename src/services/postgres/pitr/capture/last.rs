//! What was stored last, for a host with public keys only: it cannot read that again, and still must not go on behind
//! it with the WAL of another branch.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::durable;
use crate::repository::hex;
use crate::repository::wal::Stretch;

/// In the state directory.
pub(super) fn path(state: &Path, service: &str) -> PathBuf {
    state.join(format!("wal-last-{service}.json"))
}

/// A stretch, and what its bytes were.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Last {
    pub system: u64,
    pub timeline: u32,
    pub start: u64,
    pub end: u64,
    sha256: String,
}

impl Last {
    pub fn of(stretch: &Stretch, bytes: &[u8]) -> Self {
        Self {
            system: stretch.system,
            timeline: stretch.timeline,
            start: stretch.start,
            end: stretch.end,
            sha256: hex(&Sha256::digest(bytes)),
        }
    }

    pub fn is_of(&self, bytes: &[u8]) -> bool {
        self.sha256 == hex(&Sha256::digest(bytes))
    }

    /// `None` when nothing is remembered, or nothing that can be understood.
    pub fn load(path: &Path) -> Option<Self> {
        let bytes = std::fs::read(path).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    pub fn save(&self, path: &Path) -> std::io::Result<()> {
        durable::write_replace(path, &serde_json::to_vec(self)?, 0o600)
    }
}
