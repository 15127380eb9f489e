//! One bit flipped in every byte of a repository, one after another, and files cut at every length: opening
//! refuses or `verify` reports damage, and no archive ever reads as anything but what was backed up.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "support/members.rs"]
mod members;
#[path = "support/small.rs"]
mod small;

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use age::secrecy::{ExposeSecret, SecretString};
use age::x25519::Identity;
use lifeboat::config::Secret;
use lifeboat::repository::Repository;
use lifeboat::repository::keys::Keys;
use lifeboat::repository::manifest::{ArchiveRecord, Manifest};
use lifeboat::repository::store::{LocalStore, Store};
use lifeboat::repository::verify::{Depth, Scope, verify};
use small::{Streams, copy_tree};

struct Place {
    dir: tempfile::TempDir,
    keys: Keys,
    expected: Streams,
}

/// What is done to a file.
#[derive(Debug, Clone, Copy)]
enum Harm {
    /// One bit of this byte is another.
    Flip(usize),
    /// Only so many bytes are left.
    Cut(usize),
}

impl Place {
    fn new(keys: impl FnOnce(&Path) -> Keys) -> Self {
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() {
            tempfile::tempdir_in(memory).unwrap()
        } else {
            tempfile::tempdir().unwrap()
        };
        for name in ["repo", "state"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let keys = keys(&dir.path().join("state"));
        let expected = small::make(&dir.path().join("repo"), &keys, &dir.path().join("state"));
        Self {
            dir,
            keys,
            expected,
        }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("repo")
    }

    /// Every file but the two for people.
    fn keys_of_files(&self) -> Vec<String> {
        let store = LocalStore::new(self.root());
        let mut found = vec!["config.json".to_owned()];
        for dir in fs::read_dir(self.root()).unwrap() {
            let dir = dir.unwrap();
            if dir.file_type().unwrap().is_dir() {
                let entries = store.list(dir.file_name().to_str().unwrap()).unwrap();
                found.extend(entries.into_iter().map(|entry| entry.key));
            }
        }
        found.sort_unstable();
        found
    }

    /// Does every harm in turn to copies of the repository, on several threads.
    fn harm(&self, harms: &[(String, Harm)]) {
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let next = &next;
                scope.spawn(move || {
                    let root = self.dir.path().join(format!("copy-{thread}"));
                    copy_tree(&self.root(), &root);
                    while let Some((key, harm)) = harms.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let path = root.join(key);
                        let good = fs::read(&path).unwrap();
                        let mut bad = good.clone();
                        match *harm {
                            // Another bit each time: all of them come up.
                            Harm::Flip(at) => bad[at] ^= 1 << (at % 8),
                            Harm::Cut(length) => bad.truncate(length),
                        }
                        fs::write(&path, bad).unwrap();
                        if let Err(wrong) = self.judge(&root) {
                            next.store(harms.len(), Ordering::Relaxed);
                            panic!("{key}, {harm:?}: {wrong}");
                        }
                        fs::write(&path, good).unwrap();
                    }
                });
            }
        });
    }

    /// The harm is found, and does none.
    fn judge(&self, root: &Path) -> Result<(), String> {
        let Ok(repository) = Repository::open(Arc::new(LocalStore::new(root)), &self.keys) else {
            return Ok(());
        };
        for id in ["20260101T010000Z-00000a", "20260102T010000Z-00000b"] {
            let Ok(manifest) = repository.manifest(id) else {
                continue;
            };
            for record in &manifest.archives {
                let name = format!("{id}/{}", record.name);
                let expected = self.expected.get(&name).expect("an archive nobody made");
                if read(&repository, &manifest, record).is_some_and(|found| found != *expected) {
                    return Err(format!("{name} reads as something else"));
                }
            }
        }
        let found = verify(&repository, &Scope::Everything, Depth::Full, |_, _| {})
            .map_or(true, |report| !report.is_good());
        let marks = root.join("damaged");
        if marks.exists() {
            fs::remove_dir_all(marks).unwrap();
        }
        if found {
            Ok(())
        } else {
            Err("nobody noticed".to_owned())
        }
    }

    fn flip_every_byte(&self) {
        let mut harms = Vec::new();
        for key in self.keys_of_files() {
            let length = fs::metadata(self.root().join(&key)).unwrap().len();
            let length = usize::try_from(length).unwrap();
            harms.extend((0..length).map(|at| (key.clone(), Harm::Flip(at))));
        }
        assert!(harms.len() > 8000, "only {} bytes", harms.len());
        self.harm(&harms);
    }

    /// Cuts a pack and every manifest.
    fn cut_everywhere(&self) {
        let mut keys = self.keys_of_files();
        let pack = keys.iter().find(|key| key.starts_with("packs/")).cloned();
        keys.retain(|key| key.contains("manifest") || Some(key) == pack.as_ref());
        assert_eq!(keys.len(), 3);
        let mut harms = Vec::new();
        for key in keys {
            let length = fs::metadata(self.root().join(&key)).unwrap().len();
            let length = usize::try_from(length).unwrap();
            harms.extend((0..length).map(|at| (key.clone(), Harm::Cut(at))));
        }
        self.harm(&harms);
    }
}

fn read(repository: &Repository, manifest: &Manifest, record: &ArchiveRecord) -> Option<Vec<u8>> {
    let mut stream = Vec::new();
    let mut reader = repository.archive(manifest, record).ok()?;
    reader.read_to_end(&mut stream).ok()?;
    Some(stream)
}

fn public_keys(state: &Path) -> Keys {
    let identity = Identity::generate();
    Keys {
        public_keys: vec![identity.to_public().to_string()],
        identity: Some(Secret::new(identity.to_string().expose_secret())),
        state: Some(state.to_owned()),
        ..Keys::none()
    }
}

/// A repository with a passphrase whose key is wrapped so cheaply that it can be unwrapped thousands of times.
fn passphrase() -> Place {
    let mut place = Place::new(|state| Keys {
        passphrase: Some(Secret::new("correct horse")),
        state: Some(state.to_owned()),
        ..Keys::none()
    });
    let path = place.root().join("keys/identity.age");
    let secret = SecretString::from("correct horse".to_owned());
    let mut text = String::new();
    age::Decryptor::new(fs::read(&path).unwrap().as_slice())
        .unwrap()
        .decrypt(std::iter::once(
            &age::scrypt::Identity::new(secret.clone()) as &dyn age::Identity
        ))
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    let mut recipient = age::scrypt::Recipient::new(secret);
    recipient.set_work_factor(2);
    let mut wrapped =
        age::Encryptor::with_recipients(std::iter::once(&recipient as &dyn age::Recipient))
            .unwrap()
            .wrap_output(Vec::new())
            .unwrap();
    wrapped.write_all(text.as_bytes()).unwrap();
    fs::write(&path, wrapped.finish().unwrap()).unwrap();
    place.keys.state = None;
    place
}

#[test]
fn no_flipped_bit_of_a_repository_goes_unnoticed() {
    Place::new(|_| Keys::none()).flip_every_byte();
}

#[test]
fn no_flipped_bit_of_a_repository_with_public_keys_goes_unnoticed() {
    Place::new(public_keys).flip_every_byte();
}

#[test]
fn no_flipped_bit_of_a_wrapped_key_goes_unnoticed() {
    let place = passphrase();
    let key = "keys/identity.age".to_owned();
    let length = fs::metadata(place.root().join(&key)).unwrap().len();
    let flips = (0..usize::try_from(length).unwrap()).map(|at| (key.clone(), Harm::Flip(at)));
    place.harm(&flips.collect::<Vec<_>>());
}

#[test]
fn no_file_that_was_cut_off_goes_unnoticed() {
    Place::new(|_| Keys::none()).cut_everywhere();
}

#[test]
fn no_encrypted_file_that_was_cut_off_goes_unnoticed() {
    Place::new(public_keys).cut_everywhere();
}
