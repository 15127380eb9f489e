//! Finds damage: missing and changed files, references that lead nowhere, archives that do not read.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Read;

use serde::Serialize;

use super::frame::Decoder;
use super::manifest::{ArchiveRecord, Manifest};
use super::pack::PackReader;
use super::{PackName, Repository, RepositoryError, reader, sha256_hex};

/// How deep to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Depth {
    /// Names, sizes and references; no data is read.
    Structure,
    /// Every byte: packs against their names, every frame, every archive's stream.
    Full,
}

/// What to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    Everything,
    Backup(String),
    /// Some archives of one backup.
    Archives {
        backup: String,
        archives: BTreeSet<String>,
    },
}

impl Scope {
    fn holds(&self, archive: &str) -> bool {
        match self {
            Self::Archives { archives, .. } => archives.contains(archive),
            Self::Everything | Self::Backup(_) => true,
        }
    }
}

/// What a verification found.
#[derive(Debug, Clone, Serialize)]
pub struct VerifyReport {
    pub depth: Depth,
    pub backups: u64,
    pub archives: u64,
    pub packs: u64,
    pub pack_bytes: u64,
    pub damage: Vec<Damage>,
}

/// One fault, and what it costs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// What is wrong, as a sentence.
    pub fault: String,
    /// Backups that cannot be restored whole because of it.
    pub backups: BTreeSet<String>,
    /// Their archives.
    pub archives: BTreeSet<String>,
}

impl VerifyReport {
    pub fn is_good(&self) -> bool {
        self.damage.is_empty()
    }
}

/// Where a pack is needed.
#[derive(Default)]
struct Need {
    /// The last byte that any archive refers to.
    reach: u64,
    users: BTreeSet<(String, String)>,
}

/// Verifies what `scope` names; `progress` is told of each pack.
pub fn verify(
    repository: &Repository,
    scope: &Scope,
    depth: Depth,
    mut progress: impl FnMut(u64, u64),
) -> Result<VerifyReport, RepositoryError> {
    let ids = match scope {
        Scope::Everything => repository.backups()?,
        Scope::Backup(id) | Scope::Archives { backup: id, .. } => vec![id.clone()],
    };
    let mut report = VerifyReport {
        depth,
        backups: 0,
        archives: 0,
        packs: 0,
        pack_bytes: 0,
        damage: Vec::new(),
    };
    let mut needs: HashMap<PackName, Need> = HashMap::new();
    let mut manifests = Vec::new();
    for id in ids {
        report.backups += 1;
        match repository.manifest(&id) {
            Ok(manifest) => {
                check_parent(repository, &manifest, &mut report);
                for record in manifest.archives.iter().filter(|a| scope.holds(&a.name)) {
                    report.archives += 1;
                    if let Err(err) = collect(repository, &manifest, record, &mut needs) {
                        report
                            .damage
                            .push(damage(err.to_string(), [(id.clone(), record.name.clone())]));
                    }
                }
                manifests.push(manifest);
            }
            Err(err) if matches!(err, RepositoryError::Io { .. }) => return Err(err),
            Err(err) => report
                .damage
                .push(damage(err.to_string(), [(id, String::new())])),
        }
    }
    let total = needs.len() as u64;
    let mut decoder = Decoder::new().map_err(|e| RepositoryError::io("set up zstd", e))?;
    let ordered: BTreeMap<_, _> = needs.into_iter().collect();
    for (name, need) in ordered {
        report.packs += 1;
        progress(report.packs, total);
        match check_pack(repository, name, &need, depth, &mut decoder) {
            Ok(stored_bytes) => report.pack_bytes += stored_bytes,
            Err(err) => {
                // A missing one is known to be; one whose bytes are wrong must be told.
                if let (Depth::Full, RepositoryError::Damaged { pack, why }) = (depth, &err)
                    && let Err(unmarked) = repository.mark_damaged(*pack, why)
                {
                    tracing::warn!("{unmarked}: the next backup may refer to the damaged pack");
                }
                report.damage.push(damage(err.to_string(), need.users));
            }
        }
    }
    if depth == Depth::Full {
        for manifest in &manifests {
            check_streams(repository, manifest, scope, &mut report);
        }
    }
    Ok(report)
}

fn damage(fault: String, users: impl IntoIterator<Item = (String, String)>) -> Damage {
    let (backups, archives): (BTreeSet<_>, BTreeSet<_>) = users.into_iter().unzip();
    Damage {
        fault,
        backups,
        archives: archives
            .into_iter()
            .filter(|name| !name.is_empty())
            .collect(),
    }
}

/// A manifest names its parent by content: one that was replaced is found by its child.
fn check_parent(repository: &Repository, manifest: &Manifest, report: &mut VerifyReport) {
    let Some(parent) = &manifest.parent else {
        return;
    };
    // A parent that retention dropped is no fault.
    if let Ok(bytes) = repository.stored_manifest(&parent.id)
        && sha256_hex(&bytes) != parent.manifest_sha256
    {
        report.damage.push(damage(
            format!(
                "the manifest of {} is not the one that {} was made after: it was changed",
                parent.id, manifest.id
            ),
            [(parent.id.clone(), String::new())],
        ));
    }
}

/// Notes which packs an archive needs, and how much of each.
fn collect(
    repository: &Repository,
    manifest: &Manifest,
    record: &ArchiveRecord,
    needs: &mut HashMap<PackName, Need>,
) -> Result<(), RepositoryError> {
    for range in repository.archive_ranges(manifest, record)?.as_slice() {
        let need = needs.entry(range.pack).or_default();
        need.reach = need.reach.max(range.offset + range.length);
        need.users
            .insert((manifest.id.clone(), record.name.clone()));
    }
    Ok(())
}

fn check_pack(
    repository: &Repository,
    name: PackName,
    need: &Need,
    depth: Depth,
    decoder: &mut Decoder,
) -> Result<u64, RepositoryError> {
    let mut pack = match PackReader::open(repository.vault(), name, depth == Depth::Full) {
        Err(RepositoryError::Missing(_)) => {
            return Err(RepositoryError::Damaged {
                pack: name,
                why: "it is missing".to_owned(),
            });
        }
        other => other?,
    };
    if pack.raw_bytes() < need.reach {
        return Err(RepositoryError::Damaged {
            pack: name,
            why: format!("it ends before byte {}", need.reach),
        });
    }
    if depth == Depth::Full {
        pack.decode_all(decoder)?;
        pack.table()?;
    }
    Ok(pack.stored_bytes())
}

/// Reads the streams whose digest is known.
fn check_streams(
    repository: &Repository,
    manifest: &Manifest,
    scope: &Scope,
    report: &mut VerifyReport,
) {
    for record in manifest.archives.iter().filter(|a| scope.holds(&a.name)) {
        let Some(expected) = &record.stream_blake3 else {
            continue;
        };
        let read = || -> Result<String, RepositoryError> {
            let mut stream = repository.archive(manifest, record)?;
            let mut hash = blake3::Hasher::new();
            let mut buffer = vec![0; reader::PIECE_BYTES];
            loop {
                let count = stream
                    .read(&mut buffer)
                    .map_err(|e| RepositoryError::io("read the archive", e))?;
                match buffer.get(..count) {
                    Some([]) | None => return Ok(hash.finalize().to_string()),
                    Some(piece) => {
                        hash.update(piece);
                    }
                }
            }
        };
        let fault = match read() {
            Ok(found) if found == *expected => continue,
            Ok(found) => format!(
                "archive {} of {} reads as {found}, not as the {expected} it was written",
                record.name, manifest.id
            ),
            Err(err) => format!(
                "archive {} of {} cannot be read: {err}",
                record.name, manifest.id
            ),
        };
        report
            .damage
            .push(damage(fault, [(manifest.id.clone(), record.name.clone())]));
    }
}
