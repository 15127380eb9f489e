//! What a run can leave behind it, by kind.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::stack::ContainerRef;

/// Something a run did outside its own memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Obligation {
    /// A container that was running was stopped; to be started again.
    Stopped { container: ContainerRef },
    /// A Qdrant snapshot is being made, or was; `before` lists the snapshots that were there already.
    QdrantSnapshot {
        service: String,
        collection: String,
        before: Vec<String>,
    },
    /// Entries of `root` are being swapped with those of `staging`; what was live goes to `kept`.
    Swap {
        service: String,
        root: PathBuf,
        staging: PathBuf,
        kept: PathBuf,
    },
    /// A collection restored under a temporary name; to be deleted.
    QdrantCollection { service: String, collection: String },
    /// A collection that a restore replaces, or adds; to be as it was before.
    QdrantReplaced {
        service: String,
        collection: String,
        /// What it held; `None` where there was no collection of that name.
        previous: Option<QdrantPrevious>,
        /// All aliases as they were: deleting a collection deletes those that point to it.
        aliases: BTreeMap<String, String>,
    },
    /// A file to be put back byte for byte: what recovery alone needed was added to it.
    FileContent {
        path: PathBuf,
        original: Option<String>,
    },
    /// Sessions of PostgreSQL's tools, by the name they give themselves; to be ended.
    PostgresSessions {
        service: String,
        application: String,
    },
    /// A database under a name of this program's own; to be dropped.
    PostgresDatabase { service: String, database: String },
    /// Databases that a restore puts into the places of others; to be as they were before.
    PostgresSwitched {
        service: String,
        databases: Vec<PostgresSwitch>,
        /// The replaced ones stay when the restore is complete.
        keep_old: bool,
    },
    /// Roles and tablespaces that were not there before a restore; to be dropped.
    PostgresGlobals {
        service: String,
        roles: Vec<String>,
        tablespaces: Vec<String>,
    },
    /// A server on a backup's unpacked data; to be ended and removed with all of it.
    PostgresThrowaway {
        directory: PathBuf,
        /// Its name, when it runs in a container.
        container: Option<String>,
    },
}

/// One database that takes another's name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostgresSwitch {
    pub live: String,
    /// What it is called while it is made.
    pub new: String,
    /// What the one of before is called from then on; `None` where there was none.
    pub old: Option<String>,
}

/// A snapshot on the Qdrant server that holds a collection as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QdrantPrevious {
    pub snapshot: String,
    /// The `file:` URL under which the server itself reads it.
    pub location: String,
    pub sha256: String,
}
