//! Hosts that back a relation up into one repository.

#[path = "../support/notes.rs"]
mod notes;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::error::Error;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use jiff::Timestamp;
use lifeboat::archive::{Cut, OnChange};
use lifeboat::repository::keys::Keys;
use lifeboat::repository::manifest::Manifest;
use lifeboat::repository::prune::{Options, Report, prune};
use lifeboat::repository::session::{BackupNotes, new_id};
use lifeboat::repository::store::{LocalStore, Store};
use lifeboat::repository::verify::{Depth, Scope, verify};
use lifeboat::repository::{Repository, RepositoryError};

use super::store::TestStore;
pub use notes::notes;

pub const PAGE: usize = 8192;

pub struct World {
    pub root: tempfile::TempDir,
    pub store: TestStore,
    keys: Keys,
}

impl World {
    pub fn new() -> Self {
        Self::with_keys(Keys::none())
    }

    pub fn with_keys(keys: Keys) -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("repo")).unwrap();
        let store = TestStore::new(LocalStore::new(root.path().join("repo")));
        let world = Self { root, store, keys };
        Repository::open_or_init(Arc::new(world.store.clone()), &world.keys).unwrap();
        world
    }

    pub fn repository(&self) -> Repository {
        self.repository_with(&self.keys)
    }

    pub fn repository_with(&self, keys: &Keys) -> Repository {
        Repository::open(Arc::new(self.store.clone()), keys).unwrap()
    }

    pub fn host(&self, name: &str) -> Host {
        let dir = self.root.path().join(name);
        std::fs::create_dir(&dir).unwrap();
        Host { dir }
    }

    /// A machine that was copied with all that it knows.
    pub fn copy_of(&self, host: &Host, name: &str) -> Host {
        let copy = self.host(name);
        for file in std::fs::read_dir(host.state()).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), copy.state().join(file.file_name())).unwrap();
        }
        copy
    }

    pub fn prune(&self) -> Report {
        prune(&self.repository(), &self.options()).unwrap()
    }

    pub fn prune_now(&self) -> Result<Report, RepositoryError> {
        let options = Options {
            now: true,
            ..self.options()
        };
        prune(&self.repository(), &options)
    }

    pub fn options(&self) -> Options {
        Options {
            dry_run: false,
            now: false,
            state: Some(self.root.path().to_owned()),
            level: 3,
        }
    }

    /// Puts dead packs into the trash and deletes them two days later.
    pub fn prune_through(&self) -> Report {
        self.store.pass_hours(25);
        let first = self.prune();
        self.store.pass_hours(49);
        let mut report = self.prune();
        report.repacked.packs += first.repacked.packs;
        report
    }

    pub fn pack_bytes(&self) -> u64 {
        let packs = self.store.list("packs").unwrap();
        packs.iter().map(|entry| entry.size).sum()
    }

    pub fn packs(&self) -> BTreeSet<String> {
        let packs = self.store.list("packs").unwrap();
        packs.into_iter().map(|entry| entry.key).collect()
    }

    /// Every file of the repository.
    pub fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        let mut open = vec![self.root.path().join("repo")];
        while let Some(dir) = open.pop() {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    open.push(path);
                } else {
                    found.insert(path.clone(), std::fs::read(path).unwrap());
                }
            }
        }
        found
    }

    /// The relation as a backup holds it.
    pub fn restored(&self, id: &str) -> Vec<u8> {
        restored(&self.repository(), id)
    }

    /// The whole archive as the script writes it.
    pub fn recovered(&self, id: &str) -> Vec<u8> {
        let script = self.root.path().join("repo/RECOVER.sh");
        let out = Command::new("sh")
            .arg(script)
            .args([id, "files"])
            .output()
            .unwrap();
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
        out.stdout
    }

    pub fn assert_good(&self) {
        let report = verify(
            &self.repository(),
            &Scope::Everything,
            Depth::Full,
            |_, _| {},
        )
        .unwrap();
        assert!(report.is_good(), "{report:?}");
    }
}

pub fn archive_of(repository: &Repository, id: &str) -> Vec<u8> {
    let manifest = repository.manifest(id).unwrap();
    let mut bytes = Vec::new();
    repository
        .archive(&manifest, &manifest.archives[0])
        .unwrap()
        .read_to_end(&mut bytes)
        .unwrap();
    bytes
}

pub fn restored(repository: &Repository, id: &str) -> Vec<u8> {
    let tar = archive_of(repository, id);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.tar");
    std::fs::write(&path, tar).unwrap();
    let status = Command::new("tar")
        .args(["-xf", "a.tar"])
        .current_dir(dir.path())
        .status()
        .unwrap();
    assert!(status.success());
    std::fs::read(dir.path().join("relation")).unwrap()
}

/// A machine with a state directory and a relation.
pub struct Host {
    dir: PathBuf,
}

impl Host {
    pub fn state(&self) -> &Path {
        &self.dir
    }

    pub fn write(&self, body: &[u8]) {
        std::fs::write(self.dir.join("relation"), body).unwrap();
    }

    pub fn backup(&self, repository: &Repository, body: &[u8]) -> Manifest {
        self.try_backup(repository, body).unwrap()
    }

    pub fn try_backup(
        &self,
        repository: &Repository,
        body: &[u8],
    ) -> Result<Manifest, Box<dyn Error>> {
        self.write(body);
        let backup = repository.begin(&new_id(Timestamp::now()), self.state(), 3)?;
        let mut archive = backup.archive("files")?;
        archive.file(
            "relation",
            &self.dir.join("relation"),
            Cut::Pages(u32::try_from(PAGE).unwrap()),
            OnChange::Repaired,
        )?;
        let sealed = archive.seal()?;
        Ok(backup.commit(vec![(sealed, notes())], BackupNotes::default())?)
    }
}

/// Bytes that do not compress and do not repeat.
pub struct Noise(pub u64);

impl Noise {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap()
    }

    pub fn pages(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count * PAGE);
        while bytes.len() < count * PAGE {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes
    }

    /// Writes some of the pages anew.
    pub fn change(&mut self, body: &mut [u8], pages: impl IntoIterator<Item = usize>) {
        for page in pages {
            let new = self.pages(1);
            body[page * PAGE..(page + 1) * PAGE].copy_from_slice(&new);
        }
    }
}

/// Bytes of the different pages of some bodies.
pub fn distinct_bytes<'a>(bodies: impl IntoIterator<Item = &'a Vec<u8>>) -> u64 {
    let pages: HashSet<&[u8]> = bodies
        .into_iter()
        .flat_map(|body| body.chunks(PAGE))
        .collect();
    pages.iter().map(|page| page.len() as u64).sum()
}
