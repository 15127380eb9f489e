//! The ledger: one JSON line per write a service has acknowledged, durable before the next.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::stack::Service;

/// One acknowledged write.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Taken before the request was sent.
    pub before: Timestamp,
    /// Taken after the service had said that the write is done.
    pub after: Timestamp,
    #[serde(flatten)]
    pub write: Write,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "write", rename_all = "snake_case")]
pub enum Write {
    /// A committed transaction: a transfer between two accounts and its row in the ledger table.
    Transfer {
        serial: i64,
        nonce: String,
        from: i32,
        to: i32,
        amount: i64,
    },
    /// A finished n8n execution which was given, and gave back, the nonce.
    Execution { execution: String, nonce: String },
    /// A finished n8n execution that stored a file.
    Binary {
        execution: String,
        nonce: String,
        bytes: u64,
        sha256: String,
    },
    /// A new Qdrant point.
    Point {
        collection: String,
        id: PointId,
        nonce: String,
    },
    /// A Qdrant point's payload written anew.
    Overwrite {
        collection: String,
        id: u64,
        revision: u64,
    },
    /// An Ollama model made or copied, with the digest listed for it afterwards.
    Model { name: String, digest: String },
}

/// Qdrant's two kinds of point ids.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PointId {
    Number(u64),
    Uuid(String),
}

impl Write {
    pub fn service(&self) -> Service {
        match self {
            Self::Transfer { .. } => Service::Postgres,
            Self::Execution { .. } | Self::Binary { .. } => Service::N8n,
            Self::Point { .. } | Self::Overwrite { .. } => Service::Qdrant,
            Self::Model { .. } => Service::Ollama,
        }
    }
}

/// Appends to a ledger file; shared by the writer's threads.
pub struct Ledger(Mutex<File>);

impl Ledger {
    pub fn open(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path);
        let file = file.with_context(|| format!("open ledger {}", path.display()))?;
        Ok(Self(Mutex::new(file)))
    }

    /// Appends one line and returns when it is on disk.
    pub fn append(&self, record: &Record) -> Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(&line).context("append to the ledger")?;
        file.sync_data().context("fsync the ledger")
    }
}

/// Reads a whole ledger; a last line cut off by a killed writer was never acknowledged.
pub fn read(path: &Path) -> Result<Vec<Record>> {
    let file = File::open(path).with_context(|| format!("open ledger {}", path.display()))?;
    let mut lines = BufReader::new(file).split(b'\n').peekable();
    let mut records = Vec::new();
    let mut number = 0;
    while let Some(line) = lines.next() {
        let line = line.with_context(|| format!("read ledger {}", path.display()))?;
        number += 1;
        match serde_json::from_slice(&line) {
            Ok(record) => records.push(record),
            Err(_) if lines.peek().is_none() => break,
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("read line {number} of ledger {}", path.display()));
            }
        }
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use super::*;

    fn record(serial: i64) -> Record {
        Record {
            before: "2026-11-22T10:00:00.5Z".parse().unwrap(),
            after: "2026-11-22T10:00:00.75Z".parse().unwrap(),
            write: Write::Transfer {
                serial,
                nonce: "n".to_owned(),
                from: 1,
                to: 2,
                amount: 3,
            },
        }
    }

    #[test]
    fn a_ledger_reads_back_as_written_and_a_torn_last_line_does_not_count() {
        let path = std::env::temp_dir().join(format!("harness-ledger-{}", std::process::id()));
        let ledger = Ledger::open(&path).unwrap();
        let point = Record {
            write: Write::Point {
                collection: "c".to_owned(),
                id: PointId::Uuid("u".to_owned()),
                nonce: "n".to_owned(),
            },
            ..record(1)
        };
        for record in [&record(1), &point, &record(2)] {
            ledger.append(record).unwrap();
        }
        std::fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(b"{\"before\":\"2026-")
            .unwrap();
        let records = read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(records, [record(1), point, record(2)]);
    }
}
