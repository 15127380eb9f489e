//! Snapshot files: made, listed, deleted, uploaded and recovered from.

use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::collection::Collection;
use crate::error::{Error, Result};
use crate::snapshot::archive;
use crate::store::{Store, check_name, lock, rename_durably};

/// What the listing says of one snapshot. Uploaded files have no checksum.
#[derive(Debug, Clone, Serialize)]
pub struct Description {
    pub name: String,
    /// UTC to the second, without a zone, as the server prints it.
    pub creation_time: Option<String>,
    pub size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checksum: Option<String>,
}

impl Store {
    /// Freezes the collection, writes its archive and lists it. Writers go on
    /// meanwhile. Names carry a second: two in one second collide, as with
    /// the server.
    pub fn create_snapshot(&self, collection: &str) -> Result<Description> {
        let name = self.real_name(collection)?;
        let frozen = lock(&self.get(&name)?).state().freeze()?;
        let now = Timestamp::now();
        std::thread::sleep(Duration::from_millis(self.faults.snapshot_delay_ms()));
        if self.faults.takes_snapshot_failure() {
            return Err(Error::Internal(
                "File IO error: snapshot creation failed on purpose (stand-in fault)".into(),
            ));
        }
        // Beside where it goes: storage and snapshots may be on two file systems.
        fs::create_dir_all(&self.options.snapshots_dir)?;
        let staged = self
            .options
            .snapshots_dir
            .join(format!(".{}.tmp", crate::model::new_uuid()));
        let out = HashingWriter::new(BufWriter::new(File::create_new(&staged)?));
        let written = archive::write(&frozen, self.peer_id(), out)
            .map_err(Error::from)
            .and_then(HashingWriter::finish);
        let checksum = match written {
            Ok(checksum) => checksum,
            Err(error) => {
                fs::remove_file(&staged)?;
                return Err(error);
            }
        };
        let stamp = now.to_zoned(TimeZone::UTC).strftime("%Y-%m-%d-%H-%M-%S");
        let file_name = format!("{name}-{}-{stamp}.snapshot", self.peer_id());
        let dir = self.snapshot_dir(&name);
        fs::create_dir_all(&dir)?;
        fs::write(dir.join(format!("{file_name}.checksum")), &checksum)?;
        rename_durably(&staged, &dir.join(&file_name))?;
        describe(&dir.join(&file_name))
    }

    pub fn list_snapshots(&self, collection: &str) -> Result<Vec<Description>> {
        let name = self.real_name(collection)?;
        let dir = self.snapshot_dir(&name);
        if !dir.exists() {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.extension().is_none_or(|e| e != "checksum") && path.is_file() {
                found.push(describe(&path)?);
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// Where a listed snapshot lies.
    pub fn snapshot_path(&self, collection: &str, snapshot: &str) -> Result<PathBuf> {
        let name = self.real_name(collection)?;
        let plain = Path::new(snapshot).file_name().and_then(|n| n.to_str()) == Some(snapshot);
        let path = self.snapshot_dir(&name).join(snapshot);
        if !plain || snapshot.ends_with(".checksum") || !path.is_file() {
            return Err(Error::no_snapshot(snapshot));
        }
        Ok(path)
    }

    pub fn delete_snapshot(&self, collection: &str, snapshot: &str) -> Result<()> {
        let path = self.snapshot_path(collection, snapshot)?;
        fs::remove_file(&path)?;
        match fs::remove_file(checksum_path(&path)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e.into()),
            _ => Ok(()),
        }
    }

    /// Takes an uploaded file over and recovers from it. A wrong checksum
    /// leaves nothing behind; from then on the file stays among the
    /// collection's snapshots, whether the recovery works or not.
    pub fn recover_upload(
        &self,
        collection: &str,
        staged: &Path,
        file_name: Option<&str>,
        checksum: Option<&str>,
    ) -> Result<()> {
        check_name(collection)?;
        if let Some(given) = checksum {
            check_hash(staged, given)?;
        }
        let name = self
            .real_name(collection)
            .unwrap_or_else(|_| collection.to_string());
        let plain = file_name
            .and_then(|n| Path::new(n).file_name())
            .and_then(|n| n.to_str())
            .map_or_else(crate::model::new_uuid, str::to_string);
        let dir = self.snapshot_dir(&name);
        fs::create_dir_all(&dir)?;
        let path = dir.join(plain);
        fs::copy(staged, &path)?;
        self.recover(&name, &path)?;
        if self.faults.takes_forgotten_upload() {
            fs::remove_file(&path)?;
        }
        Ok(())
    }

    /// Recovers from a file that must lie in the snapshots folder.
    pub fn recover_file(
        &self,
        collection: &str,
        path: &Path,
        checksum: Option<&str>,
    ) -> Result<()> {
        if !path.exists() {
            return Err(Error::BadRequest(format!(
                "Snapshot file {path:?} does not exist"
            )));
        }
        let allowed = fs::canonicalize(&self.options.snapshots_dir)?;
        let path = fs::canonicalize(path)?;
        if !path.starts_with(&allowed) {
            return Err(Error::Forbidden(format!(
                "Snapshot file path must be inside the snapshots directory {allowed:?}"
            )));
        }
        self.recover_download(collection, &path, checksum)
    }

    /// Recovers from a file that the stand-in itself fetched.
    pub fn recover_download(
        &self,
        collection: &str,
        path: &Path,
        checksum: Option<&str>,
    ) -> Result<()> {
        check_name(collection)?;
        if let Some(expected) = checksum {
            let got = hash_file(path)?;
            if !got.eq_ignore_ascii_case(expected) {
                return Err(Error::BadInput(format!(
                    "Snapshot checksum mismatch: expected {expected}, got {got}"
                )));
            }
        }
        let name = self
            .real_name(collection)
            .unwrap_or_else(|_| collection.to_string());
        self.recover(&name, path)
    }

    /// Reads the archive whole before anything changes: on an error the
    /// collection is as it was.
    fn recover(&self, name: &str, path: &Path) -> Result<()> {
        if self.faults.takes_upload_failure() {
            return Err(Error::Internal(
                "File IO error: recovery failed on purpose (stand-in fault)".into(),
            ));
        }
        let suffix: String = crate::model::new_uuid().chars().take(6).collect();
        let unpack_dir = self
            .options
            .storage_dir
            .join(format!("tmp/col-{name}-recovery-{suffix}"));
        let mut frozen = archive::read(File::open(path)?, &unpack_dir)?;
        if let Ok(present) = self.get(name) {
            let present = lock(&present);
            let config = present.state().config()?;
            if config.vectors() != frozen.config.vectors() {
                return Err(Error::BadInput(format!(
                    "Snapshot is not compatible with existing collection: Collection vectors: {} Snapshot Vectors: {}",
                    config.describe_vectors(),
                    frozen.config.describe_vectors()
                )));
            }
            if config.shard_number() != frozen.config.shard_number() {
                return Err(Error::BadInput(format!(
                    "Snapshot is not compatible with existing collection: Collection shard number: {} Snapshot shard number: {}",
                    config.shard_number(),
                    frozen.config.shard_number()
                )));
            }
            frozen.config = config.clone();
        }
        let record = frozen.into_record(Timestamp::now().as_second());
        let staged = self.temporary("recovered")?;
        let restored = Collection::create_from(&staged, record, self.options.segment_points)?;
        self.install(name, &staged, restored)
    }

    fn snapshot_dir(&self, collection: &str) -> PathBuf {
        self.options.snapshots_dir.join(collection)
    }
}

fn describe(path: &Path) -> Result<Description> {
    let metadata = fs::metadata(path)?;
    let modified = metadata.modified()?.duration_since(UNIX_EPOCH);
    let seconds = modified.map_or(0, |d| d.as_secs());
    let time = Timestamp::from_second(i64::try_from(seconds).unwrap_or(0)).ok();
    let name = path.file_name().unwrap_or_default();
    Ok(Description {
        name: name.to_string_lossy().into_owned(),
        creation_time: time.map(|time| {
            let utc = time.to_zoned(TimeZone::UTC);
            utc.strftime("%Y-%m-%dT%H:%M:%S").to_string()
        }),
        size: metadata.len(),
        checksum: fs::read_to_string(checksum_path(path)).ok(),
    })
}

fn checksum_path(snapshot: &Path) -> PathBuf {
    let mut path = snapshot.as_os_str().to_owned();
    path.push(".checksum");
    path.into()
}

fn check_hash(path: &Path, given: &str) -> Result<()> {
    let file = hash_file(path)?;
    if !file.eq_ignore_ascii_case(given) {
        let given = given.to_string();
        return Err(Error::Checksum { file, given });
    }
    Ok(())
}

fn hash_file(path: &Path) -> Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        hasher.update(&buffer[..read]);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Hashes what goes through it on its way to the file.
struct HashingWriter {
    out: BufWriter<File>,
    hasher: Sha256,
}

impl HashingWriter {
    fn new(out: BufWriter<File>) -> Self {
        let hasher = Sha256::new();
        Self { out, hasher }
    }

    /// Flushes and syncs the file; returns the hash in hex.
    fn finish(mut self) -> Result<String> {
        self.out.flush()?;
        self.out.get_ref().sync_all()?;
        Ok(hex(&self.hasher.finalize()))
    }
}

impl Write for HashingWriter {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        let written = self.out.write(data)?;
        self.hasher.update(&data[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}
