//! A repository with its state and data directories, and ways to make and harm backups.
#![allow(dead_code, clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "notes.rs"]
mod notes;

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use lifeboat::archive::{ArchiveWriter, EntryMeta};
use lifeboat::config::Secret;
use lifeboat::repository::keys::Keys;
use lifeboat::repository::lease::usable_packs;
use lifeboat::repository::manifest::Manifest;
use lifeboat::repository::session::{BackupNotes, new_id};
use lifeboat::repository::store::{LocalStore, Store};
use lifeboat::repository::verify::{Depth, Scope, VerifyReport, verify};
use lifeboat::repository::{PackName, Repository};
pub use notes::notes;

pub struct Place {
    pub root: tempfile::TempDir,
    pub keys: Keys,
}

impl Place {
    pub fn plain() -> Self {
        let root = tempfile::tempdir().unwrap();
        for dir in ["repo", "state", "data"] {
            std::fs::create_dir(root.path().join(dir)).unwrap();
        }
        let keys = Keys {
            state: Some(root.path().join("state")),
            ..Keys::none()
        };
        Self { root, keys }
    }

    pub fn with_passphrase() -> Self {
        let mut place = Self::plain();
        place.keys.passphrase = Some(Secret::new("correct horse battery staple"));
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub fn store(&self) -> Arc<dyn Store> {
        Arc::new(LocalStore::new(self.path("repo")))
    }

    pub fn repository(&self) -> Repository {
        Repository::open_or_init(self.store(), &self.keys).unwrap()
    }

    pub fn backup(&self, write: impl FnOnce(&mut ArchiveWriter)) -> Manifest {
        backup(&self.repository(), &self.path("state"), write)
    }

    /// A backup of one archive with these files.
    pub fn files(&self, files: &[(&str, &[u8])]) -> Manifest {
        self.backup(|archive| {
            for (name, body) in files {
                archive.bytes(name, &EntryMeta::default(), body).unwrap();
            }
        })
    }

    pub fn packs(&self) -> Vec<PackName> {
        let mut packs: Vec<_> = usable_packs(self.repository().vault())
            .unwrap()
            .into_iter()
            .collect();
        packs.sort_unstable();
        packs
    }

    pub fn pack_path(&self, pack: PackName) -> PathBuf {
        self.path("repo")
            .join(self.repository().vault().pack_key(pack))
    }

    /// Flips a bit.
    pub fn flip(&self, pack: PackName, at: usize) {
        let path = self.pack_path(pack);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[at] ^= 1;
        std::fs::write(path, bytes).unwrap();
    }

    pub fn verify(&self, depth: Depth) -> VerifyReport {
        verify(&self.repository(), &Scope::Everything, depth, |_, _| {}).unwrap()
    }

    pub fn verify_one(&self, id: &str, depth: Depth) -> VerifyReport {
        let scope = Scope::Backup(id.to_owned());
        verify(&self.repository(), &scope, depth, |_, _| {}).unwrap()
    }
}

pub fn backup(
    repository: &Repository,
    state: &std::path::Path,
    write: impl FnOnce(&mut ArchiveWriter),
) -> Manifest {
    let backup = repository
        .begin(&new_id(Timestamp::now()), state, 3)
        .unwrap();
    let mut archive = backup.archive("files").unwrap();
    write(&mut archive);
    let sealed = archive.seal().unwrap();
    backup
        .commit(vec![(sealed, notes())], BackupNotes::default())
        .unwrap()
}

/// A backup's first archive as a tar stream; read in place and read ahead, which must come to the same.
pub fn read(repository: &Repository, manifest: &Manifest) -> std::io::Result<Vec<u8>> {
    let in_place = read_in_place(repository, manifest);
    let ahead = read_ahead(repository, manifest);
    match (&in_place, &ahead) {
        (Ok(bytes), Ok(same)) => assert!(bytes == same, "reading ahead gives other bytes"),
        (Err(fault), Err(same)) => assert_eq!(fault.to_string(), same.to_string()),
        (one, other) => panic!("in place: {one:?}, ahead: {other:?}"),
    }
    in_place
}

fn read_in_place(repository: &Repository, manifest: &Manifest) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    repository
        .archive(manifest, &manifest.archives[0])
        .map_err(std::io::Error::other)?
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

pub fn read_ahead(repository: &Repository, manifest: &Manifest) -> std::io::Result<Vec<u8>> {
    use tokio::io::AsyncReadExt as _;
    let archive = repository
        .archive(manifest, &manifest.archives[0])
        .map_err(std::io::Error::other)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut bytes = Vec::new();
        archive.into_async().read_to_end(&mut bytes).await?;
        Ok(bytes)
    })
}

/// The body of a stream's only file, which is this long.
pub fn only_body(stream: &[u8], len: usize) -> &[u8] {
    let begin = stream.len() - 1024 - len.next_multiple_of(512);
    &stream[begin..begin + len]
}

pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    })
    .take(len)
    .collect()
}
