//! Encryption and genuineness: who can read a repository, who can write to it, and that nobody else can.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "support/notes.rs"]
mod notes;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use age::secrecy::ExposeSecret;
use age::x25519::Identity;
use jiff::Timestamp;
use lifeboat::archive::EntryMeta;
use lifeboat::config::Secret;
use lifeboat::repository::keys::Keys;
use lifeboat::repository::manifest::Manifest;
use lifeboat::repository::session::{BackupNotes, new_id};
use lifeboat::repository::store::LocalStore;
use lifeboat::repository::verify::{Depth, Scope, verify};
use lifeboat::repository::{Repository, RepositoryError};
use notes::notes;

const NEEDLE: &str = "N8N_ENCRYPTION_KEY=the needle in the haystack";

struct Place {
    root: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        for dir in ["repo", "state"] {
            std::fs::create_dir(root.path().join(dir)).unwrap();
        }
        Self { root }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Keys of a host whose state directory is `state`.
    fn keys(&self, state: &str) -> Keys {
        Keys {
            state: Some(self.path(state)),
            ..Keys::default()
        }
    }

    fn with_passphrase(&self, passphrase: &str) -> Keys {
        Keys {
            passphrase: Some(Secret::new(passphrase)),
            ..self.keys("state")
        }
    }

    fn with_public_keys(&self, identities: &[&Identity]) -> Keys {
        Keys {
            public_keys: identities
                .iter()
                .map(|i| i.to_public().to_string())
                .collect(),
            ..self.keys("state")
        }
    }

    fn with_identity(&self, identity: &Identity) -> Keys {
        Keys {
            identity: Some(Secret::new(format!(
                "# created: today\n{}\n",
                identity.to_string().expose_secret()
            ))),
            ..self.keys("elsewhere")
        }
    }

    fn open(&self, keys: &Keys) -> Result<Repository, RepositoryError> {
        Repository::open(Arc::new(LocalStore::new(self.path("repo"))), keys)
    }

    fn backup(&self, keys: &Keys, body: &str) -> Manifest {
        let store = Arc::new(LocalStore::new(self.path("repo")));
        let repository = Repository::open_or_init(store, keys).unwrap();
        let backup = repository
            .begin(&new_id(Timestamp::now()), &self.path("state"), 3)
            .unwrap();
        let mut archive = backup.archive("files").unwrap();
        archive
            .bytes("env", &EntryMeta::default(), body.as_bytes())
            .unwrap();
        let sealed = archive.seal().unwrap();
        backup
            .commit(vec![(sealed, notes())], BackupNotes::default())
            .unwrap()
    }

    /// Every file of the repository with its content.
    fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        let mut open = vec![self.path("repo")];
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

    fn file(&self, part: &str) -> PathBuf {
        let mut paths: Vec<_> = self.files().into_keys().collect();
        paths.retain(|path| path.to_str().unwrap().contains(part));
        assert_eq!(paths.len(), 1, "{part}: {paths:?}");
        paths.remove(0)
    }
}

fn read(repository: &Repository, id: &str) -> Result<Vec<u8>, String> {
    let manifest = repository.manifest(id).map_err(|e| e.to_string())?;
    let mut bytes = Vec::new();
    repository
        .archive(&manifest, &manifest.archives[0])
        .map_err(|e| e.to_string())?
        .read_to_end(&mut bytes)
        .map_err(|e| e.to_string())?;
    Ok(bytes)
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|w| w == text.as_bytes())
}

#[track_caller]
fn refused<T>(result: Result<T, RepositoryError>, parts: &[&str]) {
    let text = result.err().expect("it was not refused").to_string();
    for part in parts {
        assert!(text.contains(part), "\"{part}\" is not in: {text}");
    }
}

#[test]
fn a_passphrase_opens_the_repository_and_nothing_else_does() {
    let place = Place::new();
    let keys = place.with_passphrase("correct horse battery staple");
    let manifest = place.backup(&keys, NEEDLE);
    // A second one stores only its own header and metadata.
    assert!(place.backup(&keys, NEEDLE).stored_bytes < 2_000);
    let repository = place.open(&keys).unwrap();
    assert!(holds(&read(&repository, &manifest.id).unwrap(), NEEDLE));
    for (path, bytes) in place.files() {
        assert!(!holds(&bytes, NEEDLE), "{}", path.display());
    }
    refused(
        place.open(&place.with_passphrase("wrong")),
        &["AGE_PASSPHRASE does not open"],
    );
    refused(
        place.open(&place.keys("state")),
        &["is encrypted", "AGE_PASSPHRASE"],
    );
    refused(
        place.open(&place.with_identity(&Identity::generate())),
        &["was made with a passphrase"],
    );
    let report = verify(&repository, &Scope::Everything, Depth::Full, |_, _| {}).unwrap();
    assert!(report.is_good(), "{report:?}");
}

#[test]
fn the_passphrase_changes_without_touching_a_pack() {
    let place = Place::new();
    let old = place.with_passphrase("old");
    let manifest = place.backup(&old, NEEDLE);
    let before = place.files();
    place
        .open(&old)
        .unwrap()
        .change_passphrase(&old, &Secret::new("new"))
        .unwrap();
    refused(place.open(&old), &["does not open"]);
    let repository = place.open(&place.with_passphrase("new")).unwrap();
    assert!(holds(&read(&repository, &manifest.id).unwrap(), NEEDLE));
    let changed: Vec<_> = place
        .files()
        .into_iter()
        .filter(|(path, bytes)| before.get(path) != Some(bytes))
        .map(|(path, _)| path)
        .collect();
    assert_eq!(changed, [place.path("repo/keys/identity.age")]);
}

#[test]
fn a_host_with_public_keys_writes_and_its_identity_reads() {
    let place = Place::new();
    let identity = Identity::generate();
    let writer = place.with_public_keys(&[&identity]);
    let first = place.backup(&writer, NEEDLE);
    let second = place.backup(&writer, NEEDLE);
    assert!(second.stored_bytes < 2_000, "{}", second.stored_bytes);
    let blind = place.open(&writer).unwrap();
    assert_eq!(blind.backups().unwrap().len(), 2);
    refused(blind.manifest(&first.id), &["AGE_IDENTITY_FILE"]);
    // It knows nonetheless which packs are needed.
    assert!(blind.uses(&second.id).unwrap().packs().count() >= 1);

    let reader = place.open(&place.with_identity(&identity)).unwrap();
    for id in [&first.id, &second.id] {
        assert!(holds(&read(&reader, id).unwrap(), NEEDLE));
    }
    refused(
        place.open(&place.with_identity(&Identity::generate())),
        &["encrypted to other keys"],
    );
    refused(
        place.open(&Keys {
            public_keys: vec!["age1nonsense".to_owned()],
            ..place.keys("state")
        }),
        &["age1nonsense", "is not an age public key"],
    );

    // The state directory is lost: the identity, given once, brings the secret back.
    std::fs::remove_dir_all(place.path("state")).unwrap();
    std::fs::create_dir(place.path("state")).unwrap();
    refused(
        place.open(&writer),
        &["state directory", "AGE_IDENTITY_FILE"],
    );
    let both = Keys {
        public_keys: writer.public_keys.clone(),
        state: Some(place.path("state")),
        ..place.with_identity(&identity)
    };
    place.open(&both).unwrap();
    place.open(&writer).unwrap();
}

#[test]
fn recipients_that_are_added_read_what_is_written_from_then_on() {
    let place = Place::new();
    let (one, two) = (Identity::generate(), Identity::generate());
    let first = place.backup(&place.with_public_keys(&[&one]), NEEDLE);
    refused(
        place.open(&place.with_identity(&two)),
        &["encrypted to other keys"],
    );
    let second = place.backup(
        &place.with_public_keys(&[&one, &two]),
        "other content entirely",
    );
    let reader = place.open(&place.with_identity(&two)).unwrap();
    assert!(holds(&read(&reader, &second.id).unwrap(), "other content"));
    let err = read(&reader, &first.id).unwrap_err();
    assert!(err.contains("encrypted to other keys"), "{err}");
    let third = place.backup(&place.with_public_keys(&[&two]), "the third content");
    let reader = place.open(&place.with_identity(&two)).unwrap();
    assert!(holds(&read(&reader, &third.id).unwrap(), "third content"));
    refused(
        place.open(&place.with_identity(&one)),
        &["encrypted to other keys"],
    );
}

#[test]
fn a_key_for_an_unencrypted_repository_is_refused_and_the_other_way_round() {
    let place = Place::new();
    place.backup(&place.keys("state"), NEEDLE);
    refused(
        place.open(&place.with_passphrase("x")),
        &["is not encrypted", "copy"],
    );
    let known = place.open(&place.keys("state")).unwrap().id().to_owned();
    let exchanged = Place::new();
    exchanged.backup(&exchanged.keys("state"), "another");
    let keys = Keys {
        expected_id: Some(known),
        ..exchanged.keys("state")
    };
    refused(exchanged.open(&keys), &["LIFEBOAT_REPOSITORY_ID"]);
    // A new one would have another id, so none is made.
    let empty = tempfile::tempdir().unwrap();
    let store = Arc::new(LocalStore::new(empty.path()));
    refused(
        Repository::open_or_init(store, &keys),
        &["no repository", "LIFEBOAT_REPOSITORY_ID"],
    );
    assert_eq!(std::fs::read_dir(empty.path()).unwrap().count(), 0);
}

/// The public keys are no secret: whoever can write to the store can encrypt to them.
fn forge(path: &Path, change: impl FnOnce(String) -> String, reader: &Identity, to: &[&Identity]) {
    let stored = std::fs::read(path).unwrap();
    let text = age::decrypt(reader, &stored).unwrap();
    let text = String::from_utf8(text).unwrap();
    let changed = change(text.clone());
    assert_ne!(changed, text);
    let recipients: Vec<_> = to.iter().map(|i| i.to_public()).collect();
    let encryptor =
        age::Encryptor::with_recipients(recipients.iter().map(|r| r as &dyn age::Recipient))
            .unwrap();
    let mut out = encryptor.wrap_output(Vec::new()).unwrap();
    std::io::Write::write_all(&mut out, changed.as_bytes()).unwrap();
    std::fs::write(path, out.finish().unwrap()).unwrap();
}

#[test]
fn what_an_intruder_writes_is_not_believed() {
    let place = Place::new();
    let identity = Identity::generate();
    let keys = place.with_public_keys(&[&identity]);
    let first = place.backup(&keys, NEEDLE);
    let second = place.backup(&keys, "the second content");
    let reading = place.with_identity(&identity);
    let good = place.files();
    let restore = || {
        for (path, bytes) in &good {
            std::fs::write(path, bytes).unwrap();
        }
    };
    let manifest = |id: &str| place.path(&format!("repo/backups/{id}/manifest.json.age"));

    // A changed manifest, freshly encrypted.
    forge(
        &manifest(&second.id),
        |text| text.replace("\"skew_ms\":0", "\"skew_ms\":1"),
        &identity,
        &[&identity],
    );
    let repository = place.open(&reading).unwrap();
    refused(
        repository.manifest(&second.id),
        &[second.id.as_str(), "seal is wrong"],
    );
    let report = verify(&repository, &Scope::Everything, Depth::Structure, |_, _| {}).unwrap();
    assert!(!report.is_good());
    restore();

    // An old manifest in the place of a new one.
    std::fs::copy(manifest(&first.id), manifest(&second.id)).unwrap();
    refused(repository.manifest(&second.id), &["seal is wrong"]);
    restore();

    // Other ranges, and a pack exchanged for another that is well made.
    std::fs::copy(
        place.path(&format!("repo/backups/{}/files.ranges.age", first.id)),
        place.path(&format!("repo/backups/{}/files.ranges.age", second.id)),
    )
    .unwrap();
    assert!(
        read(&repository, &second.id)
            .unwrap_err()
            .contains("SHA-256")
    );
    restore();
    let packs: Vec<_> = good
        .keys()
        .filter(|path| path.to_str().unwrap().contains("/packs/"))
        .collect();
    assert!(packs.len() >= 2);
    std::fs::copy(packs[0], packs[1]).unwrap();
    let errors = [&first, &second].map(|m| read(&repository, &m.id).err());
    assert!(
        errors.iter().flatten().any(|e| e.contains("SHA-256")),
        "{errors:?}"
    );
    restore();

    // A list of packs, which a prune would believe.
    let list = place.path(&format!("repo/backups/{}/packs", second.id));
    std::fs::write(&list, "# lifeboat packs 1\n# seal 00\n").unwrap();
    refused(repository.uses(&second.id), &["seal is wrong"]);
    restore();

    // A recipient of the intruder's own.
    let config = place.path("repo/config.json");
    let text = String::from_utf8(good[&config].clone()).unwrap();
    let intruder = Identity::generate().to_public().to_string();
    let own = identity.to_public().to_string();
    std::fs::write(&config, text.replace(&own, &intruder)).unwrap();
    refused(place.open(&reading), &["config.json", "seal is wrong"]);
    restore();

    // A secret of the intruder's own makes another repository of it, which no manifest belongs to.
    let secret = place.file("keys/secret-");
    forge(
        &secret,
        |_| format!("secret {}\n", "ab".repeat(32)),
        &identity,
        &[&identity],
    );
    refused(place.open(&reading), &["config.json", "seal is wrong"]);
    restore();
    assert!(holds(
        &read(&repository, &second.id).unwrap(),
        "second content"
    ));
}

#[test]
fn an_encrypted_repository_is_recovered_by_hand() {
    let place = Place::new();
    let identity = Identity::generate();
    let keys = place.with_public_keys(&[&identity]);
    let manifest = place.backup(&keys, NEEDLE);
    let expected = read(
        &place.open(&place.with_identity(&identity)).unwrap(),
        &manifest.id,
    )
    .unwrap();
    let file = place.path("identity");
    std::fs::write(&file, identity.to_string().expose_secret()).unwrap();
    let recovered = |place: &Place, id: &str, file: &Path| {
        let out = Command::new("sh")
            .arg(place.path("repo/RECOVER.sh"))
            .args([id, "files"])
            .env("IDENTITY", file)
            .output()
            .unwrap();
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
        out.stdout
    };
    assert!(recovered(&place, &manifest.id, &file) == expected);

    // What is inside keys/identity.age is a file that age takes as an identity.
    let place = Place::new();
    let keys = place.with_passphrase("by hand");
    let manifest = place.backup(&keys, NEEDLE);
    let wrapped = std::fs::read(place.path("repo/keys/identity.age")).unwrap();
    let passphrase = age::scrypt::Identity::new("by hand".to_owned().into());
    std::fs::write(
        place.path("identity"),
        age::decrypt(&passphrase, &wrapped).unwrap(),
    )
    .unwrap();
    let expected = read(&place.open(&keys).unwrap(), &manifest.id).unwrap();
    assert!(recovered(&place, &manifest.id, &place.path("identity")) == expected);
}
