//! The state file: what seeding made, and what the services held at a known moment.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::n8n::Seeded as N8nSeeded;
use crate::stack::{Service, Stack};
use crate::{ollama, postgres, qdrant};

/// What `seed` made; later commands need it to log in and to know what to look for.
#[derive(Default, Serialize, Deserialize)]
pub struct State {
    pub n8n: Option<N8nSeeded>,
    /// Points of the image collection that can be recomputed from their numbers.
    pub images: Option<u64>,
    pub snapshot: Snapshot,
}

/// What the services held when it was taken; a restored stack must hold the same or more.
#[derive(Default, Serialize, Deserialize)]
pub struct Snapshot {
    pub at: Timestamp,
    pub postgres: Option<PostgresState>,
    pub qdrant: Option<QdrantState>,
    /// Model name to the digest of its manifest.
    pub ollama: Option<BTreeMap<String, String>>,
}

#[derive(Serialize, Deserialize)]
pub struct PostgresState {
    pub accounts: i64,
    pub total: i64,
    pub documents: i64,
    /// Sum over the documents' revisions, which only rise.
    pub revisions: i64,
    pub serial: i64,
}

#[derive(Serialize, Deserialize)]
pub struct QdrantState {
    /// Alias name to collection name.
    pub aliases: BTreeMap<String, String>,
    pub collections: BTreeMap<String, CollectionState>,
}

#[derive(Serialize, Deserialize)]
pub struct CollectionState {
    pub points: u64,
    /// Field name to its index's type.
    pub payload_schema: BTreeMap<String, String>,
    pub params: Value,
}

impl State {
    /// Takes over what an earlier seeding of other services has recorded.
    pub fn adopt(&mut self, earlier: Self) {
        let (now, then) = (&mut self.snapshot, earlier.snapshot);
        self.images = self.images.or(earlier.images);
        self.n8n = self.n8n.take().or(earlier.n8n);
        now.postgres = now.postgres.take().or(then.postgres);
        now.qdrant = now.qdrant.take().or(then.qdrant);
        now.ollama = now.ollama.take().or(then.ollama);
    }

    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path)
            .with_context(|| format!("read state {}; was `harness seed` run?", path.display()))?;
        serde_json::from_slice(&bytes).with_context(|| format!("read state {}", path.display()))
    }

    pub fn write(&self, path: &Path) -> Result<()> {
        let bytes = serde_json::to_vec_pretty(self)?;
        std::fs::write(path, bytes).with_context(|| format!("write state {}", path.display()))
    }
}

impl Snapshot {
    /// Asks each of the services what it holds now, keeping what is known of the others.
    pub fn refresh(&mut self, stack: &Stack, services: &[Service]) -> Result<()> {
        self.at = Timestamp::now();
        for service in services {
            match service {
                Service::Postgres => self.postgres = Some(postgres::state(stack)?),
                Service::Qdrant => self.qdrant = Some(qdrant::state(stack)?),
                Service::Ollama => self.ollama = Some(ollama::digests(stack)?),
                Service::N8n => {}
            }
        }
        Ok(())
    }
}

/// Returns the state file that lies beside the stack's environment file.
pub fn default_path(env_file: &Path) -> PathBuf {
    env_file.with_file_name(".harness-state.json")
}
