//! Repositories of format 1 as this program once wrote them: every later version lists them, restores them to
//! the byte and finds what is damaged in them, and so does their own `RECOVER.sh`.
//!
//! The files in `tests/fixtures/repository-1` are never made anew for a version that cannot read them any more:
//! that would be another format. To add one, extend [`make_all`] and run
//! `LIFEBOAT_MAKE_GOLDEN=tests/fixtures/repository-1 cargo test --test golden can_be_made`, which writes only
//! what is not there yet.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "support/members.rs"]
mod members;
#[path = "support/small.rs"]
mod small;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use lifeboat::config::Secret;
use lifeboat::repository::keys::Keys;
use lifeboat::repository::prune::{Options, prune};
use lifeboat::repository::store::LocalStore;
use lifeboat::repository::verify::{Depth, Scope, VerifyReport, verify};
use lifeboat::repository::{Repository, RepositoryError, hex};
use sha2::{Digest, Sha256};
use small::Streams;

/// For these fixtures only.
const PASSPHRASE: &str = "golden passphrase";
const IDENTITY: &str = include_str!("fixtures/repository-1/identity.txt");
const DIGESTS: &str = "digests.txt";
const DROPPED: &str = "20251231T010000Z-000009";
const FIRST: &str = "20260101T010000Z-00000a";
const SECOND: &str = "20260102T010000Z-00000b";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lock {
    Plain,
    Passphrase,
    PublicKey,
}

impl Lock {
    const ALL: [Self; 3] = [Self::Plain, Self::Passphrase, Self::PublicKey];

    fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Passphrase => "passphrase",
            Self::PublicKey => "public-key",
        }
    }

    fn keys(self, state: &Path) -> Keys {
        let state = Some(state.to_owned());
        match self {
            Self::Plain => Keys::none(),
            Self::Passphrase => Keys {
                passphrase: Some(Secret::new(PASSPHRASE)),
                state,
                ..Keys::none()
            },
            Self::PublicKey => Keys {
                public_keys: vec![identity().to_public().to_string()],
                identity: Some(Secret::new(IDENTITY)),
                state,
                ..Keys::none()
            },
        }
    }
}

fn identity() -> age::x25519::Identity {
    let line = IDENTITY.lines().find(|line| line.starts_with("AGE-"));
    line.unwrap().parse().unwrap()
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/repository-1")
}

/// A golden repository, unpacked.
struct Golden {
    dir: tempfile::TempDir,
}

impl Golden {
    fn unpack(name: &str) -> Self {
        let golden = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        fs::create_dir(golden.path("state")).unwrap();
        let archive = fixtures().join(format!("{name}.tar.zst"));
        run(Command::new("tar")
            .args(["--zstd", "-xf"])
            .arg(archive)
            .arg("-C")
            .arg(golden.dir.path()));
        golden
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn open(&self, lock: Lock) -> Repository {
        let store = Arc::new(LocalStore::new(self.path("repo")));
        Repository::open(store, &lock.keys(&self.path("state"))).unwrap()
    }
}

fn run(command: &mut Command) -> Vec<u8> {
    let out = command.output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{command:?}: {said}");
    out.stdout
}

/// The SHA-256 of every archive of every golden repository.
fn expected(name: &str) -> Vec<(String, String, String)> {
    let text = fs::read_to_string(fixtures().join(DIGESTS)).unwrap();
    let lines = text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let found: Vec<_> = lines
        .filter(|fields| fields[0] == name)
        .map(|fields| {
            (
                fields[1].to_owned(),
                fields[2].to_owned(),
                fields[3].to_owned(),
            )
        })
        .collect();
    assert_eq!(found.len(), 4);
    found
}

fn look(repository: &Repository) -> VerifyReport {
    verify(repository, &Scope::Everything, Depth::Full, |_, _| {}).unwrap()
}

#[test]
fn golden_repositories_are_read_to_the_byte() {
    for lock in Lock::ALL {
        let golden = Golden::unpack(lock.name());
        let repository = golden.open(lock);
        assert_eq!(repository.backups().unwrap(), [FIRST, SECOND]);
        for (id, archive, digest) in expected(lock.name()) {
            let streams = small::streams_of(&repository, &id).unwrap();
            assert_eq!(hex(&Sha256::digest(&streams[&archive])), digest);
        }
        let report = look(&repository);
        assert!(report.is_good(), "{}: {report:?}", lock.name());
        assert_eq!((report.backups, report.archives), (2, 4));
    }
}

#[test]
fn golden_repositories_are_read_to_the_byte_by_hand() {
    for lock in Lock::ALL {
        let golden = Golden::unpack(lock.name());
        let script = golden.path("repo/RECOVER.sh");
        let key = golden.path("key");
        match lock {
            Lock::Plain => {}
            Lock::PublicKey => fs::write(&key, IDENTITY).unwrap(),
            // `age -d` asks a terminal for the passphrase; what it would give, the crate gives.
            Lock::Passphrase => fs::write(&key, unwrapped(&golden)).unwrap(),
        }
        let listed = run(Command::new("sh").arg(&script));
        assert_eq!(listed, format!("{FIRST}\n{SECOND}\n").as_bytes());
        for (id, archive, digest) in expected(lock.name()) {
            let mut command = Command::new("sh");
            command.arg(&script).args([&id, &archive]);
            if key.exists() {
                command.env("IDENTITY", &key);
            }
            let stream = run(&mut command);
            assert_eq!(
                hex(&Sha256::digest(&stream)),
                digest,
                "{} {id}",
                lock.name()
            );
        }
    }
}

fn unwrapped(golden: &Golden) -> Vec<u8> {
    use std::io::Read;
    let wrapped = fs::read(golden.path("repo/keys/identity.age")).unwrap();
    let identity = age::scrypt::Identity::new(PASSPHRASE.to_owned().into());
    let mut text = Vec::new();
    age::Decryptor::new(wrapped.as_slice())
        .unwrap()
        .decrypt(std::iter::once(&identity as &dyn age::Identity))
        .unwrap()
        .read_to_end(&mut text)
        .unwrap();
    text
}

#[test]
fn a_backup_goes_on_where_a_golden_repository_ends() {
    for lock in Lock::ALL {
        let golden = Golden::unpack(lock.name());
        let keys = lock.keys(&golden.path("state"));
        let id = "20260103T010000Z-00000c";
        let stream = small::another(&golden.path("repo"), &keys, &golden.path("state"), id);
        let repository = golden.open(lock);
        assert_eq!(small::streams_of(&repository, id).unwrap(), stream);
        assert!(look(&repository).is_good());
    }
}

#[test]
fn damage_in_golden_repositories_is_named() {
    for (name, words, unread) in [
        ("damaged-missing-pack", "missing", 2),
        ("damaged-flipped-pack", "SHA-256", 2),
        ("damaged-forged-manifest", "seal", 1),
        ("damaged-truncated-index", "index", 0),
    ] {
        let golden = Golden::unpack(name);
        let repository = golden.open(Lock::Plain);
        let report = look(&repository);
        let told = report.damage.iter().any(|d| d.fault.contains(words));
        assert!(told, "{name}: {report:?}");
        // What is whole reads as ever, and the rest not at all.
        let mut failed = 0;
        for id in [FIRST, SECOND] {
            match small::streams_of(&repository, id) {
                Err(_) => failed += 1,
                Ok(streams) => {
                    for (_, archive, digest) in expected("plain").iter().filter(|e| e.0 == id) {
                        assert_eq!(hex(&Sha256::digest(&streams[archive])), *digest);
                    }
                }
            }
        }
        assert_eq!(failed, unread, "{name}");
    }
}

#[test]
fn golden_repositories_can_be_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    make_all(dir.path());
    if let Ok(target) = std::env::var("LIFEBOAT_MAKE_GOLDEN") {
        for entry in fs::read_dir(dir.path()).unwrap() {
            let entry = entry.unwrap();
            let target = Path::new(&target).join(entry.file_name());
            if !target.exists() {
                fs::copy(entry.path(), target).unwrap();
            }
        }
    }
}

/// Writes every fixture into `out`.
fn make_all(out: &Path) {
    let mut digests = String::new();
    for lock in Lock::ALL {
        let dir = tempfile::tempdir().unwrap();
        for name in ["repo", "state"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let (root, state) = (dir.path().join("repo"), dir.path().join("state"));
        let keys = lock.keys(&state);
        let _dropped = small::another(&root, &keys, &state, DROPPED);
        let streams = small::make(&root, &keys, &state);
        move_pieces(&root, &keys, &state, &streams);
        for (name, stream) in &streams {
            let (id, archive) = name.split_once('/').unwrap();
            let digest = hex(&Sha256::digest(stream));
            writeln!(digests, "{} {id} {archive} {digest}", lock.name()).unwrap();
        }
        pack(dir.path(), lock.name(), out);
        if lock == Lock::Plain {
            damage_all(&root, out);
        }
    }
    fs::write(out.join(DIGESTS), digests).unwrap();
}

/// Lets a prune rewrite what is left of the first backup's packs, so that the repository holds moved pieces.
fn move_pieces(root: &Path, keys: &Keys, state: &Path, streams: &Streams) {
    let repository = small::open_or_init(root, keys);
    repository.drop_backup(DROPPED).unwrap();
    let options = Options {
        dry_run: false,
        now: true,
        state: Some(state.to_owned()),
        level: 3,
    };
    let report = prune(&repository, &options).unwrap();
    assert!(report.repacked.packs > 0, "{report:?}");
    fs::remove_file(root.join("reserve")).unwrap();
    for id in [FIRST, SECOND] {
        for (archive, stream) in small::streams_of(&repository, id).unwrap() {
            assert!(stream == streams[&format!("{id}/{archive}")]);
        }
    }
}

fn pack(dir: &Path, name: &str, out: &Path) {
    run(Command::new("tar")
        .args(["--zstd", "--owner=0", "--group=0", "--sort=name", "-cf"])
        .arg(out.join(format!("{name}.tar.zst")))
        .arg("-C")
        .arg(dir)
        .arg("repo"));
}

/// The plain repository with one fault each.
fn damage_all(root: &Path, out: &Path) {
    let harm = |name: &str, file: &Path, change: &dyn Fn(&Path)| {
        let dir = tempfile::tempdir().unwrap();
        small::copy_tree(root, &dir.path().join("repo"));
        change(
            &dir.path()
                .join("repo")
                .join(file.strip_prefix(root).unwrap()),
        );
        pack(dir.path(), name, out);
    };
    let repository = small::open_or_init(root, &Keys::none());
    let shared = shared_pack(&repository, root);
    harm("damaged-missing-pack", &shared, &|path| {
        fs::remove_file(path).unwrap();
    });
    harm("damaged-flipped-pack", &shared, &|path| {
        let mut bytes = fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).unwrap();
    });
    let manifest = root.join("backups").join(SECOND).join("manifest.json");
    harm("damaged-forged-manifest", &manifest, &|path| {
        let text = fs::read_to_string(path).unwrap();
        let forged = text.replace("\"skew_ms\":0", "\"skew_ms\":1");
        assert_ne!(text, forged);
        fs::write(path, forged).unwrap();
    });
    let index = fs::read_dir(root.join("index")).unwrap().next().unwrap();
    harm("damaged-truncated-index", &index.unwrap().path(), &|path| {
        let bytes = fs::read(path).unwrap();
        fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
    });
}

/// A pack that both backups need.
fn shared_pack(repository: &Repository, root: &Path) -> PathBuf {
    let packs = |id: &str| -> Result<Vec<_>, RepositoryError> {
        Ok(repository.uses(id)?.packs().map(|(pack, _)| pack).collect())
    };
    let (first, second) = (packs(FIRST).unwrap(), packs(SECOND).unwrap());
    let shared = first.iter().filter(|pack| second.contains(pack));
    shared
        .map(|pack| root.join(pack.key()))
        .find(|path| path.exists())
        .unwrap()
}
