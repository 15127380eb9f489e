//! The manifest: the document whose existence makes a backup.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::RepositoryError;
use super::crypto::Sealed;
use super::vault::Vault;
use crate::services::{PointInTime, ServiceKind, ServiceReport};
use crate::stack::ContainerRef;

/// One committed backup.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The repository format, 1.
    pub format: u32,
    pub id: String,
    /// Identity of the repository it was written for.
    pub repository: String,
    /// The backup before it in the same repository and project, and the SHA-256 of that manifest.
    pub parent: Option<Parent>,
    pub program_version: String,
    pub host: String,
    /// The state directory that it was made with: two machines may give their stacks one name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    pub project: Option<String>,
    pub started: Timestamp,
    pub finished: Timestamp,
    /// Between the first and the last service's point in time.
    pub skew_ms: u64,
    pub archives: Vec<ArchiveRecord>,
    pub raw_bytes: u64,
    /// Bytes of data files that were read for it; the rest was spliced.
    pub read_bytes: u64,
    /// Bytes of packs written for it.
    pub stored_bytes: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Made without this program, and taken in later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imported: Option<Imported>,
}

/// Where an imported backup comes from. Its `started` and `finished` are when it was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    /// The files and directories, as they were named.
    pub from: Vec<String>,
    /// When it was taken into the repository.
    pub at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    pub id: String,
    pub manifest_sha256: String,
}

/// One service's archive in a backup.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ArchiveRecord {
    /// The archive's name, which is the service's.
    pub name: String,
    pub kind: ServiceKind,
    /// The container as it ran, when the Docker API told.
    pub container: Option<ContainerRef>,
    pub point: PointInTime,
    pub report: ServiceReport,
    /// Length of the tar stream.
    pub raw_bytes: u64,
    pub read_bytes: u64,
    pub stored_bytes: u64,
    /// XXH3 (128 bits) of the whole stream; absent when unchanged files were spliced in unread. It shows a
    /// stream put together wrongly, no more: what vouches for the bytes are seals and the names of packs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream_xxh3: Option<String>,
    /// SHA-256 of the ranges file.
    pub ranges_sha256: String,
}

/// The file: the manifest's text as it was written, and what vouches for it.
#[derive(Serialize, Deserialize)]
struct Envelope {
    manifest: Box<RawValue>,
    seal: String,
}

impl Manifest {
    /// The file's content.
    pub(super) fn seal(&self, vault: &Vault) -> Result<Vec<u8>, RepositoryError> {
        let encode =
            |e: serde_json::Error| RepositoryError::Invalid(format!("encode the manifest: {e}"));
        let manifest = serde_json::value::to_raw_value(self).map_err(encode)?;
        let seal = vault
            .secrets
            .seal(Sealed::Manifest(&self.id), manifest.get().as_bytes())
            .to_string();
        serde_json::to_vec(&Envelope { manifest, seal }).map_err(encode)
    }

    /// Believes a file only when its seal is right and it is what it is taken for.
    pub(super) fn unseal(vault: &Vault, id: &str, bytes: &[u8]) -> Result<Self, RepositoryError> {
        let unreadable = |e: serde_json::Error| {
            RepositoryError::Invalid(format!("the manifest of {id} cannot be understood: {e}"))
        };
        let envelope: Envelope = serde_json::from_slice(bytes).map_err(unreadable)?;
        let text = envelope.manifest.get();
        if !vault
            .secrets
            .is_sealed(Sealed::Manifest(id), text.as_bytes(), &envelope.seal)
        {
            return Err(RepositoryError::Forged(format!("the manifest of {id}")));
        }
        let manifest: Self = serde_json::from_str(text).map_err(unreadable)?;
        manifest.check(id, &vault.secrets.id())?;
        Ok(manifest)
    }

    /// What must hold before anything in it is believed.
    fn check(&self, id: &str, repository: &str) -> Result<(), RepositoryError> {
        let fault = if self.format != super::FORMAT {
            Some(format!("has format {}", self.format))
        } else if self.id != id {
            Some(format!("belongs to backup {}", self.id))
        } else if self.repository != repository {
            Some(format!("belongs to repository {}", self.repository))
        } else {
            self.archives
                .iter()
                .find(|archive| !super::session::is_archive_name(&archive.name))
                .map(|archive| format!("names an archive \"{}\"", archive.name.escape_debug()))
        };
        match fault {
            None => Ok(()),
            Some(fault) => Err(RepositoryError::Invalid(format!(
                "the manifest of {id} {fault}: it is damaged or misplaced"
            ))),
        }
    }

    /// What was damaged in the services already, a sentence for each.
    pub fn damage(&self) -> Vec<String> {
        let said = |archive: &ArchiveRecord| {
            let damage = archive.report.damage()?;
            Some(format!("{}: {damage}", archive.name))
        };
        self.archives.iter().filter_map(said).collect()
    }

    pub fn archive(&self, name: &str) -> Option<&ArchiveRecord> {
        self.archives.iter().find(|archive| archive.name == name)
    }
}

/// Time between the first and the last service's instant.
pub(super) fn skew_ms(records: &[ArchiveRecord]) -> u64 {
    let points = || {
        records
            .iter()
            .filter(|r| r.kind != ServiceKind::Project)
            .map(|r| r.point.at.as_millisecond())
    };
    let (first, last) = (points().min().unwrap_or(0), points().max().unwrap_or(0));
    u64::try_from(last - first).unwrap_or(0)
}
