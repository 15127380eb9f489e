//! A directory as the guides have it, ways to pack it, and the program as a person calls it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rusqlite::Connection;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::cluster::Cluster;
use crate::home::{Home, KEY};
use crate::place::Place;

/// When everything in [`World::stack`] was last changed.
pub const TAKEN: &str = "2025-03-04T05:06:07Z";

pub struct World {
    pub place: Place,
    env: Vec<(String, String)>,
}

impl World {
    pub fn new() -> Self {
        Self {
            place: Place::new(),
            env: Vec::new(),
        }
    }

    pub fn set(&mut self, name: &str, value: &str) {
        self.env.push((name.to_owned(), value.to_owned()));
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.place.path(below)
    }

    pub fn file(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = crate::program::lifeboat(&self.path(""), args);
        command
            .env("LIFEBOAT_DATA", self.path("live"))
            .env("LIFEBOAT_PROJECT_DIR", self.path("no project"));
        command.envs(self.env.iter().cloned());
        command
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    #[track_caller]
    pub fn good(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.good(&[args, &["--json"]].concat())).unwrap()
    }

    /// Imports paths; the manifest.
    #[track_caller]
    pub fn import(&self, paths: &[&Path]) -> Value {
        let paths = paths.iter().map(|path| path.to_str().unwrap());
        let args: Vec<&str> = std::iter::once("import").chain(paths).collect();
        let manifest = self.json(&args)["manifest"].take();
        self.assert_nothing_is_left_in_staging();
        manifest
    }

    /// Fails with a sentence that has these parts, and leaves nothing behind.
    #[track_caller]
    pub fn refuses(&self, path: &Path, parts: &[&str]) {
        let output = self.run(&["import", path.to_str().unwrap()]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        for part in parts {
            assert!(said.contains(part), "\"{part}\" is not said: {said}");
        }
        assert!(!said.contains(KEY), "{said}");
        assert_eq!(self.json(&["list"]), serde_json::json!([]));
        self.assert_nothing_is_left_in_staging();
    }

    #[track_caller]
    pub fn assert_nothing_is_left_in_staging(&self) {
        let left: Vec<_> = std::fs::read_dir(self.path("state/scratch"))
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().path())
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }

    /// Unpacks a backup; where.
    pub fn unpack(&self, id: &str) -> PathBuf {
        let into = self.path(&format!("into-{id}"));
        self.good(&["restore", id, "--into", into.to_str().unwrap()]);
        into
    }

    /// Packs directories and files of `stack` with GNU tar, and compresses them by the file's name.
    pub fn tar(&self, file: &str, entries: &[&str]) -> PathBuf {
        let path = self.path(file);
        let compression: &[&str] = match path.extension().and_then(|e| e.to_str()) {
            Some("gz") => &["-z"],
            Some("zst") => &["--zstd"],
            _ => &[],
        };
        let status = Command::new("tar")
            .args(compression)
            .arg("-cf")
            .arg(&path)
            .arg("-C")
            .arg(self.path("stack"))
            .args(entries)
            .status()
            .unwrap();
        assert!(status.success());
        path
    }

    /// A project directory with data of every service in `stack`, all as old as [`TAKEN`]. The cluster is shut
    /// down; n8n's database is open, so that rows are in its log only.
    pub fn stack(&self, cluster: &Cluster) -> Connection {
        self.copy(&cluster.data, "stack/data/postgres");
        let n8n = self.n8n();
        self.ollama("stack/data/ollama");
        self.qdrant();
        self.file("stack/data/notes/a.txt", "what nobody knows");
        self.file("stack/.env", "POSTGRES_PASSWORD=x\n");
        self.file("stack/docker-compose.yml", "services: {}\n");
        self.age("stack");
        n8n
    }

    pub fn copy(&self, from: &Path, to: &str) {
        let to = self.path(to);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        let status = Command::new("cp").arg("-a").arg(from).arg(to).status();
        assert!(status.unwrap().success());
    }

    /// Sets the time of every file.
    pub fn age(&self, below: &str) {
        let status = Command::new("find")
            .arg(self.path(below))
            .args(["-type", "f", "-exec", "touch", "-d", TAKEN, "{}", "+"])
            .status();
        assert!(status.unwrap().success());
    }

    fn n8n(&self) -> Connection {
        drop(Home::new(&self.place));
        let home = self.path("stack/data/n8n");
        std::fs::create_dir_all(home.parent().unwrap()).unwrap();
        std::fs::rename(self.path("data/n8n"), &home).unwrap();
        let database = Connection::open(home.join("database.sqlite")).unwrap();
        database
            .pragma_update(None, "wal_autocheckpoint", 0)
            .unwrap();
        for n in 0..50 {
            let row = (n, "in the log only");
            database
                .execute("INSERT INTO ledger VALUES (?1, ?2)", row)
                .unwrap();
        }
        assert!(home.join("database.sqlite-wal").metadata().unwrap().len() > 0);
        database
    }

    /// A model of two blobs.
    pub fn ollama(&self, below: &str) {
        let blob = |body: &[u8]| {
            let digest = lifeboat::repository::hex(&Sha256::digest(body));
            self.file(&format!("{below}/models/blobs/sha256-{digest}"), body);
            serde_json::json!({"digest": format!("sha256:{digest}"), "size": body.len()})
        };
        let manifest =
            serde_json::json!({"config": blob(b"{}"), "layers": [blob(&noise(3_000_000))]});
        self.file(
            &format!("{below}/models/manifests/registry.ollama.ai/library/tiny/latest"),
            manifest.to_string(),
        );
        self.file(&format!("{below}/id_ed25519"), "a key");
    }

    fn qdrant(&self) {
        self.file("stack/data/qdrant/raft_state.json", "{}");
        self.file("stack/data/qdrant/aliases/data.json", "{}");
        for name in ["docs", "images"] {
            let below = format!("stack/data/qdrant/collections/{name}/0/segments/s");
            self.file(&format!("{below}/vectors"), noise(100_000));
        }
    }
}

/// Bytes that do not compress.
pub fn noise(len: usize) -> Vec<u8> {
    let mut state = 1_u64;
    std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    })
    .take(len)
    .collect()
}

/// Names of a manifest's archives.
pub fn archives(manifest: &Value) -> Vec<&str> {
    let mut names: Vec<_> = manifest["archives"]
        .as_array()
        .unwrap()
        .iter()
        .map(|archive| archive["name"].as_str().unwrap())
        .collect();
    names.sort_unstable();
    names
}

/// What a manifest says of one archive.
pub fn report<'m>(manifest: &'m Value, name: &str) -> &'m Value {
    let archives = manifest["archives"].as_array().unwrap();
    let found = archives.iter().find(|a| a["name"] == name);
    &found.unwrap_or_else(|| panic!("no archive {name}: {manifest}"))["report"]
}

pub fn warnings(manifest: &Value, name: &str) -> String {
    report(manifest, name)["warnings"].to_string()
}
