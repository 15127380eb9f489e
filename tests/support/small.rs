//! A repository of some kilobytes that has everything a repository has, and what must be read from it.

#[path = "notes.rs"]
mod notes;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use lifeboat::archive::{Cut, EntryMeta, OnChange};
use lifeboat::repository::keys::Keys;
use lifeboat::repository::session::BackupNotes;
use lifeboat::repository::store::LocalStore;
use lifeboat::repository::{Repository, RepositoryError};

use crate::members::members;
use notes::notes;

const PAGE_BYTES: usize = 256;

/// Archives as `backup/archive`, each with its whole stream.
pub type Streams = BTreeMap<String, Vec<u8>>;

/// Makes a repository in `root` with two backups of two archives; the second shares most of the first.
pub fn make(root: &Path, keys: &Keys, state: &Path) -> Streams {
    let repository = open_or_init(root, keys);
    let mut relation = noise(6 * PAGE_BYTES, 1);
    let mut files = BTreeMap::from([("a", noise(300, 2)), ("b", b"text\n".repeat(30))]);
    let mut expected = Streams::new();
    for id in ["20260101T010000Z-00000a", "20260102T010000Z-00000b"] {
        backup(&repository, id, state, &relation, &files);
        for (archive, stream) in streams_of(&repository, id).unwrap() {
            let found = members(&stream);
            if archive == "db" {
                assert_eq!(found, [("relation".to_owned(), relation.clone())]);
            } else {
                let named = files
                    .iter()
                    .map(|(name, body)| ((*name).to_owned(), body.clone()));
                assert_eq!(found, named.collect::<Vec<_>>());
            }
            expected.insert(format!("{id}/{archive}"), stream);
        }
        relation[2 * PAGE_BYTES..3 * PAGE_BYTES].copy_from_slice(&noise(PAGE_BYTES, 3));
        files.insert("c", noise(100, 4));
    }
    expected
}

pub fn open_or_init(root: &Path, keys: &Keys) -> Repository {
    Repository::open_or_init(Arc::new(LocalStore::new(root)), keys).unwrap()
}

/// Backs up once more, something else; its archives as they read back.
#[allow(dead_code)]
pub fn another(root: &Path, keys: &Keys, state: &Path, id: &str) -> Streams {
    let repository = open_or_init(root, keys);
    let files = BTreeMap::from([("a", noise(300, 2)), ("z", noise(6000, 9))]);
    backup(&repository, id, state, &noise(6 * PAGE_BYTES, 10), &files);
    streams_of(&repository, id).unwrap()
}

fn backup(
    repository: &Repository,
    id: &str,
    state: &Path,
    relation: &[u8],
    files: &BTreeMap<&str, Vec<u8>>,
) {
    let backup = repository.begin(id, state, 3).unwrap();
    let path = state.join("relation");
    fs::write(&path, relation).unwrap();
    let mut db = backup.archive("db").unwrap();
    let cut = Cut::Pages(u32::try_from(PAGE_BYTES).unwrap());
    db.file("relation", &path, cut, OnChange::Repaired).unwrap();
    let db = db.seal().unwrap();
    let mut archive = backup.archive("files").unwrap();
    for (name, body) in files {
        archive.bytes(name, &EntryMeta::default(), body).unwrap();
    }
    let archives = vec![(db, notes()), (archive.seal().unwrap(), notes())];
    backup.commit(archives, BackupNotes::default()).unwrap();
}

/// Every archive of a backup, by name, or the first error.
pub fn streams_of(repository: &Repository, id: &str) -> Result<Streams, RepositoryError> {
    let manifest = repository.manifest(id)?;
    let mut found = Streams::new();
    for record in &manifest.archives {
        let mut stream = Vec::new();
        repository
            .archive(&manifest, record)?
            .read_to_end(&mut stream)
            .map_err(|e| RepositoryError::Invalid(e.to_string()))?;
        found.insert(record.name.clone(), stream);
    }
    Ok(found)
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

pub fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).unwrap();
        }
    }
}
