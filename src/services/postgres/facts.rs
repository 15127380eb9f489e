//! What the manifest keeps of a cluster: the adapter's own document in the service's report.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::label::Tablespace;
use super::pages::DamagedPages;
use super::platform::Platform;
use crate::services::ServiceReport;
use crate::stack::is_plain;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// As text: it does not fit the numbers of every JSON reader.
    pub system_identifier: String,
    pub major: u32,
    pub catalog_version: u32,
    pub control_version: u32,
    pub timeline: u32,
    pub start_lsn: String,
    pub stop_lsn: String,
    /// The server's clock at the stop.
    pub stopped: String,
    pub first_segment: String,
    pub last_segment: String,
    pub wal_segments: u64,
    pub wal_segment_bytes: u64,
    pub block_bytes: u32,
    pub page_checksums: bool,
    /// As the server sees it.
    pub data_directory: PathBuf,
    pub owner: Owner,
    pub tablespaces: Vec<Tablespace>,
    pub databases: Vec<DatabaseFacts>,
    pub max_connections: String,
    /// Set when the files were copied without this program: there is no recovery of its own to set up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copied: Option<Copied>,
    /// Not in records of older versions of this program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// See [`ServiceReport::damage`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damage: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damaged_pages: Option<DamagedPages>,
}

/// How a data directory was copied without this program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Copied {
    /// From a server that was shut down: consistent as it is.
    Cold,
    /// Within a base backup: its `backup_label` tells the server where to replay from.
    BaseBackup,
    /// From a server that ran, or had crashed: only crash recovery can tell whether it is whole.
    Running,
}

/// Owner and mode of the data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
}

/// A database that was there when the backup ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseFacts {
    pub oid: u32,
    pub name: String,
    pub encoding: String,
    pub collate: String,
    pub ctype: String,
    /// The version of the collation library it was made with, from 15 on.
    pub collation_version: Option<String>,
    /// Whether people connect to it: neither a template nor closed.
    pub counted: bool,
    pub tables: Option<u64>,
    /// The planner's, so approximate.
    pub rows_estimate: Option<u64>,
    /// `c` for the C library, `i` for ICU, `b` for the server itself; from 15 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// Names and versions.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub extensions: BTreeMap<String, String>,
}

impl DatabaseFacts {
    /// Whether the order of its text is that of a library, by the letter of [`Self::provider`].
    pub fn sorts_by(&self, provider: char) -> bool {
        let own = self.provider.as_deref().unwrap_or("c");
        let fixed = provider == 'c' && matches!(self.collate.as_str(), "C" | "POSIX");
        own.starts_with(provider) && !fixed
    }
}

impl Facts {
    /// The extensions of all databases: database, name, version.
    pub fn extensions(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        self.databases.iter().flat_map(|database| {
            let of = |(name, version)| (database.name.as_str(), name, version);
            let pairs = database.extensions.iter();
            pairs.map(move |(name, version): (&String, &String)| {
                of((name.as_str(), version.as_str()))
            })
        })
    }

    /// Reads them out of a record.
    ///
    /// Refuses paths that the server cannot have reported: its own are absolute and have no `..`. A restore
    /// makes and moves directories where they lead.
    pub fn of(report: &ServiceReport) -> Result<Self, String> {
        let facts = Self::deserialize(&report.facts).map_err(|err| {
            format!(
                "the backup's record of the PostgreSQL cluster cannot be read ({err}): use the version of this program that wrote it, or a newer one"
            )
        })?;
        let locations = facts.tablespaces.iter().map(|t| t.location.as_path());
        let odd = std::iter::once(facts.data_directory.as_path())
            .chain(locations)
            .find(|path| !is_location(path))
            .map(|path| path.display().to_string());
        match odd {
            Some(path) => Err(format!(
                "the backup's record of the PostgreSQL cluster names the directory \"{path}\", which is not an absolute path without \"..\": the record was not written by this program; restore another backup"
            )),
            None => Ok(facts),
        }
    }
}

fn is_location(path: &Path) -> bool {
    path.is_absolute() && is_plain(path)
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn read(data_directory: &str, location: &str) -> Result<Facts, String> {
        let facts = serde_json::json!({
            "system_identifier": "7",
            "major": 15,
            "catalog_version": 1,
            "control_version": 1,
            "timeline": 1,
            "start_lsn": "0/1",
            "stop_lsn": "0/2",
            "stopped": "",
            "first_segment": "",
            "last_segment": "",
            "wal_segments": 1,
            "wal_segment_bytes": 1,
            "block_bytes": 8192,
            "page_checksums": false,
            "data_directory": data_directory,
            "owner": { "uid": 70, "gid": 70, "mode": 0o700 },
            "tablespaces": [{ "oid": 16399, "location": location }],
            "databases": [],
            "max_connections": "100",
        });
        Facts::of(&ServiceReport {
            version: String::new(),
            counts: std::collections::BTreeMap::new(),
            facts,
            warnings: Vec::new(),
        })
    }

    pub fn facts() -> Facts {
        read("/pg/data", "/srv/ts").unwrap()
    }

    #[test]
    fn forged_directories_are_refused() {
        let facts = read("/pg/data", "/srv/..ts").unwrap();
        assert_eq!(facts.data_directory, Path::new("/pg/data"));
        for (data_directory, location, named) in [
            ("/pg/data", "/pg/data/../../etc", "/pg/data/../../etc"),
            ("/pg/data", "/srv/..", "/srv/.."),
            ("/pg/data", "srv/ts", "srv/ts"),
            ("/pg/../data", "/srv/ts", "/pg/../data"),
            // Every path lies below the empty one.
            ("", "/srv/ts", "\"\""),
        ] {
            let why = read(data_directory, location).unwrap_err();
            assert!(why.contains(named), "{why}");
            assert!(why.contains("not an absolute path"), "{why}");
        }
    }
}
