//! Where bytes from outside come in: each takes any bytes, and must neither panic, nor write anywhere but where
//! it was told to, nor take memory by what the bytes claim. Fuzzers and `tests/hostile.rs` feed them. They say
//! whether the bytes were believed to their end.

use std::collections::HashMap;
use std::io::{self, Cursor, Read};
use std::path::Path;
use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use lifeboat::archive::unpack::{UnpackOptions, unpack};
use lifeboat::repository::crypto::{Sealed, Secrets};
use lifeboat::repository::frame::Decoder;
use lifeboat::repository::keys::Keys;
use lifeboat::repository::moved::Moved;
use lifeboat::repository::pack::PackReader;
use lifeboat::repository::store::{Blob, Entry, Spool, Store};
use lifeboat::repository::table::BlockTable;
use lifeboat::repository::uses::Uses;
use lifeboat::repository::verify::{Depth, Scope, verify};
use lifeboat::repository::{PackName, Repository, RepositoryError, index, ranges};

const ID: &str = "20260101T000000Z-000001";
const CONFIG: &str = "config.json";

/// Files in memory, to be read.
#[derive(Default)]
struct Files(Mutex<HashMap<String, Vec<u8>>>);

impl Files {
    fn set(&self, key: &str, bytes: &[u8]) {
        self.0
            .lock()
            .unwrap()
            .insert(key.to_owned(), bytes.to_vec());
    }

    fn find(&self, key: &str) -> Result<Vec<u8>, RepositoryError> {
        let files = self.0.lock().unwrap();
        files
            .get(key)
            .cloned()
            .ok_or_else(|| RepositoryError::Missing(key.to_owned()))
    }
}

impl Store for Files {
    fn put(&self, key: &str, bytes: &[u8]) -> Result<(), RepositoryError> {
        if self.find(key).is_ok() {
            return Err(RepositoryError::Exists(key.to_owned()));
        }
        self.set(key, bytes);
        Ok(())
    }

    fn replace(&self, key: &str, bytes: &[u8]) -> Result<(), RepositoryError> {
        self.set(key, bytes);
        Ok(())
    }

    fn spool(&self) -> Result<Box<dyn Spool>, RepositoryError> {
        Err(RepositoryError::Stopped)
    }

    fn get(&self, key: &str, limit_bytes: u64) -> Result<Vec<u8>, RepositoryError> {
        let bytes = self.find(key)?;
        if bytes.len() as u64 > limit_bytes {
            return Err(RepositoryError::Invalid(format!("{key} is too large")));
        }
        Ok(bytes)
    }

    fn open(&self, key: &str) -> Result<Box<dyn Blob>, RepositoryError> {
        Ok(Box::new(Memory(self.find(key)?)))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Entry>, RepositoryError> {
        let files = self.0.lock().unwrap();
        let below = format!("{prefix}/");
        let found = files.iter().filter(|(key, _)| key.starts_with(&below));
        Ok(found
            .map(|(key, bytes)| Entry {
                key: key.clone(),
                size: bytes.len() as u64,
                modified: Timestamp::UNIX_EPOCH,
            })
            .collect())
    }

    fn delete(&self, key: &str) -> Result<(), RepositoryError> {
        self.0.lock().unwrap().remove(key);
        Ok(())
    }

    fn remove_abandoned(&self) -> Result<(), RepositoryError> {
        Ok(())
    }

    fn now(&self) -> Result<Timestamp, RepositoryError> {
        Ok(Timestamp::UNIX_EPOCH)
    }

    fn check_writable(&self) -> Result<(), RepositoryError> {
        Ok(())
    }

    fn free_bytes(&self) -> Option<u64> {
        None
    }

    fn is_remote(&self) -> bool {
        false
    }

    fn describe(&self) -> String {
        "memory".to_owned()
    }
}

struct Memory(Vec<u8>);

impl Blob for Memory {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_exact_at(&mut self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let mut cursor = Cursor::new(&self.0);
        cursor.set_position(offset);
        cursor.read_exact(buf)
    }

    fn stream(&mut self) -> io::Result<Box<dyn Read + '_>> {
        Ok(Box::new(self.0.as_slice()))
    }
}

fn secrets() -> Secrets {
    Secrets::new([7; 32])
}

/// The id that a believed manifest names.
pub fn repository_id() -> String {
    secrets().id()
}

/// An unencrypted repository whose secret is known, so that hostile files can be sealed.
fn repository() -> (Arc<Files>, Repository) {
    let files = Arc::new(Files::default());
    let secrets = secrets();
    // As `config.json` is sealed: format, id, encryption, recipients, epoch.
    let id = secrets.id();
    let sealed = format!("1\n{id}\nplain\n\n0");
    let seal = secrets.seal(Sealed::Config, sealed.as_bytes());
    let secret = secrets.to_hex();
    let text = format!(
        r#"{{"format":1,"id":"{id}","encryption":"plain","epoch":0,"secret":"{secret}","seal":"{seal}"}}"#
    );
    files.set(CONFIG, text.as_bytes());
    let repository = Repository::open(Arc::clone(&files) as Arc<dyn Store>, &Keys::none()).unwrap();
    (files, repository)
}

/// `config.json`.
pub fn config(bytes: &[u8]) -> bool {
    let files = Arc::new(Files::default());
    files.set(CONFIG, bytes);
    Repository::open(files, &Keys::none()).is_ok()
}

/// A manifest, as it is and under a right seal; and a whole backup with its ranges and list of packs.
pub fn manifest(bytes: &[u8]) -> bool {
    let (files, repository) = repository();
    let key = format!("backups/{ID}/manifest.json");
    files.set(&key, bytes);
    drop(repository.manifest(ID));
    let seal = secrets().seal(Sealed::Manifest(ID), bytes);
    let text = String::from_utf8_lossy(bytes);
    let envelope = format!(r#"{{"manifest":{text},"seal":"{seal}"}}"#);
    files.set(&key, envelope.as_bytes());
    let manifest = repository.manifest(ID);
    if let Ok(manifest) = &manifest {
        for record in &manifest.archives {
            drop(repository.archive(manifest, record));
        }
    }
    drop(verify(
        &repository,
        &Scope::Everything,
        Depth::Full,
        |_, _| {},
    ));
    manifest.is_ok()
}

/// A ranges file, a list of packs, of moved pieces and of moved packs: all are lines of text.
pub fn text(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let moved = Moved::decode(&text);
    if let Ok(moved) = &moved {
        drop(moved.locate(0, u64::MAX));
        for piece in moved.pieces() {
            assert!(moved.find(piece.offset, u64::MAX).is_some());
        }
    }
    let (files, repository) = repository();
    let record = repository.vault().sealed_text(Sealed::Moved(ID), &text);
    files.set(&format!("moved/{ID}/packs"), record.as_bytes());
    let record = repository.vault().move_record(ID);
    moved.is_ok()
        || record.is_ok()
        || ranges::decode(&text).is_ok()
        || Uses::decode(&text).is_ok()
        || text.parse::<PackName>().is_ok()
}

/// A pack whose name is not asked about: trailer, seek table, frames, block table.
pub fn pack(bytes: &[u8]) -> bool {
    let (files, repository) = repository();
    let name = PackName([9; 32]);
    files.set(&name.key(), bytes);
    let Ok(mut pack) = PackReader::open(repository.vault(), name, false) else {
        return false;
    };
    let mut decoder = Decoder::new().unwrap();
    let mut out = Vec::new();
    for offset in [0, 1, pack.raw_bytes() / 2, u64::MAX] {
        drop(pack.frame_at(offset, &mut decoder, &mut out));
    }
    let frames = pack.decode_all(&mut decoder);
    let table = pack.table();
    frames.is_ok() && table.is_ok()
}

/// A block table as it lies in a pack and in the index.
pub fn table(bytes: &[u8]) -> bool {
    let Ok(table) = BlockTable::decode(bytes) else {
        return false;
    };
    let _raw_bytes = table.raw_bytes();
    assert_eq!(BlockTable::decode(&table.encode()).unwrap(), table);
    true
}

/// A part of the index, compressed and sealed as it must be, with any tables in it.
pub fn index_part(bytes: &[u8]) -> bool {
    let (files, repository) = repository();
    let part = index_part_name();
    let read = |body: &[u8]| {
        let mut file = body.to_vec();
        let seal = secrets().seal(Sealed::Index(&part), body);
        file.extend_from_slice(&[0x51, 0x2A, 0x4D, 0x18, 32, 0, 0, 0]);
        file.extend_from_slice(seal.as_bytes());
        files.set(&format!("index/{part}"), &file);
        index::read(repository.vault(), &part, |_, _| Ok(())).is_ok()
    };
    let as_it_is = read(bytes);
    read(&zstd::bulk::compress(bytes, 1).unwrap()) || as_it_is
}

fn index_part_name() -> String {
    format!("{ID}-0001.0")
}

/// A tar stream that is unpacked into `target`.
pub fn tar(bytes: &[u8], target: &Path) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let unpacked = runtime.block_on(unpack(bytes, target, &UnpackOptions::default()));
    unpacked.is_ok()
}
