//! PostgreSQL's write-ahead log beside the backups: what recovery to any moment reads after a base backup.
//!
//! ```text
//! wal/<system>/<timeline>/<start>-<end>-<time>.zst[.age]   a stretch: the WAL's bytes from start up to end
//! wal/<system>/<timeline>.history[.age]                    where a timeline branched off, as the server wrote it
//! wal/<system>/seen[.age]                                  the last moment the server was looked at
//! wal/<system>/marks/<time>[.age]                          a moment that a person gave a name
//! ```
//! `system` is the cluster's identifier; it, the timeline, `start` and `end` are hexadecimal, `time` is in
//! milliseconds: by then the server had flushed its WAL up to `end` at least.
//!
//! # Invariant
//!
//! A stretch is what the server's WAL holds between its two positions, and that never changes within a
//! timeline. So stretches may overlap, and any of them may be stored again: several small ones are replaced by
//! one of the whole unit, which is stored before they go. Names alone tell which positions can be replayed
//! ([`spans`]). A writer that is killed leaves a complete stretch or none.
//!
//! A file is a zstd frame, then the seal of that frame in a skippable frame: `zstd -d` reads it as it is.

mod stretch;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::crypto::Sealed;
use super::vault::Vault;
use super::{Repository, RepositoryError};
use stretch::hexadecimal;
pub use stretch::{STRETCH_BYTES, Span, Stretch, spans};

/// `ZSTD_MAGIC_SKIPPABLE_START`, and the length of a seal.
const SEAL_FRAME_HEADER: [u8; 8] = [0x50, 0x2A, 0x4D, 0x18, 32, 0, 0, 0];
const SEAL_BYTES: usize = 32;
const COMPRESSION_LEVEL: i32 = 3;
const SMALL_LIMIT_BYTES: u64 = 1024 * 1024;
const ROOT: &str = "wal";

/// The last moment a server was looked at: its WAL had been flushed up to `end`, and all of that is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    pub timeline: u32,
    pub end: u64,
    pub at: Timestamp,
}

/// A moment with a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    pub name: String,
    pub at: Timestamp,
    pub system: u64,
    pub timeline: u32,
    /// Everything before it belongs to the moment.
    pub lsn: u64,
    /// The service, as the stack calls it.
    pub service: String,
}

/// What is stored of all clusters' WAL.
#[derive(Debug, Clone, Default)]
pub struct WalList {
    pub stretches: Vec<Stretch>,
    /// By cluster: timelines whose history is stored.
    pub histories: BTreeMap<u64, Vec<u32>>,
    pub systems: Vec<u64>,
    pub(crate) marks: Vec<String>,
}

impl WalList {
    /// The stretches of one timeline of a cluster.
    pub fn of(&self, system: u64, timeline: u32) -> impl Iterator<Item = &Stretch> {
        self.stretches
            .iter()
            .filter(move |s| s.system == system && s.timeline == timeline)
    }

    /// The timelines that a cluster has WAL of.
    pub fn timelines(&self, system: u64) -> Vec<u32> {
        let mut found: Vec<u32> = self
            .stretches
            .iter()
            .filter(|s| s.system == system)
            .map(|s| s.timeline)
            .collect();
        found.sort_unstable();
        found.dedup();
        found
    }
}

impl Repository {
    /// Lists the WAL that is stored.
    pub fn wal(&self) -> Result<WalList, RepositoryError> {
        let suffix = self.vault().key("");
        let mut list = WalList::default();
        for entry in self.store().list(ROOT)? {
            let Some(name) = entry.key.strip_suffix(&suffix) else {
                continue;
            };
            if let Some(stretch) = Stretch::parse(name) {
                list.systems.push(stretch.system);
                list.stretches.push(stretch);
            } else if let Some((system, timeline)) = history_of(name) {
                list.histories.entry(system).or_default().push(timeline);
            } else if name.split('/').nth(2) == Some("marks") {
                list.marks.push(name.to_owned());
            }
        }
        list.stretches.sort_unstable();
        list.systems.sort_unstable();
        list.systems.dedup();
        Ok(list)
    }

    /// Stores a stretch; one that is there already is fine.
    pub fn put_wal(&self, stretch: &Stretch, bytes: &[u8]) -> Result<(), RepositoryError> {
        if bytes.len() as u64 != stretch.bytes() || bytes.len() as u64 > STRETCH_BYTES {
            return Err(RepositoryError::Invalid(format!(
                "{} bytes are not the stretch {}",
                bytes.len(),
                stretch.name()
            )));
        }
        let name = stretch.name();
        let file = encode(self.vault(), &name, bytes)?;
        settled(self.vault().put(&name, &file))
    }

    /// Reads a stretch, which must be genuine.
    pub fn read_wal(&self, stretch: &Stretch) -> Result<Vec<u8>, RepositoryError> {
        let name = stretch.name();
        let limit = STRETCH_BYTES + STRETCH_BYTES / 8;
        let file = self.vault().get(&name, limit)?;
        let bytes = decode(self.vault(), &name, &file, stretch.bytes())?;
        Ok(bytes)
    }

    /// Removes a stretch.
    pub fn drop_wal(&self, stretch: &Stretch) -> Result<(), RepositoryError> {
        self.store().delete(&self.vault().key(&stretch.name()))
    }

    /// Stores a timeline's history, as the server wrote it.
    pub fn put_wal_history(
        &self,
        system: u64,
        timeline: u32,
        text: &str,
    ) -> Result<(), RepositoryError> {
        settled(self.put_sealed(&history_name(system, timeline), text))
    }

    /// Removes a timeline's history.
    pub fn drop_wal_history(&self, system: u64, timeline: u32) -> Result<(), RepositoryError> {
        let key = self.vault().key(&history_name(system, timeline));
        self.store().delete(&key)
    }

    pub fn wal_history(&self, system: u64, timeline: u32) -> Result<String, RepositoryError> {
        self.get_sealed(&history_name(system, timeline))
    }

    /// Notes that a server was looked at.
    pub fn note_wal_seen(&self, system: u64, seen: &Seen) -> Result<(), RepositoryError> {
        let name = seen_name(system);
        let file = self.sealed_document(&name, seen)?;
        let vault = self.vault();
        vault
            .store
            .replace(&vault.key(&name), &vault.mode.encrypt(file.as_bytes())?)
    }

    /// When a server was looked at last; `None` when that is not known.
    pub fn wal_seen(&self, system: u64) -> Result<Option<Seen>, RepositoryError> {
        let name = seen_name(system);
        match self.get_sealed(&name) {
            Ok(text) => document(&name, &text).map(Some),
            Err(RepositoryError::Missing(_)) => Ok(None),
            Err(err) => Err(err),
        }
    }

    pub fn put_mark(&self, mark: &Mark) -> Result<(), RepositoryError> {
        let name = format!(
            "{ROOT}/{:016x}/marks/{}",
            mark.system,
            mark.at.as_millisecond()
        );
        let file = self.sealed_document(&name, mark)?;
        self.vault().put(&name, file.as_bytes())
    }

    /// All marks, oldest first.
    pub fn marks(&self, list: &WalList) -> Result<Vec<Mark>, RepositoryError> {
        let mut marks = Vec::new();
        for name in &list.marks {
            let text = self.get_sealed(name)?;
            marks.push(document::<Mark>(name, &text)?);
        }
        marks.sort_by_key(|mark| mark.at);
        Ok(marks)
    }

    fn sealed_document(
        &self,
        name: &str,
        value: &impl Serialize,
    ) -> Result<String, RepositoryError> {
        let text = serde_json::to_string(value)
            .map_err(|e| RepositoryError::Invalid(format!("encode {name}: {e}")))?;
        Ok(self
            .vault()
            .sealed_text(Sealed::Wal(name), &format!("{text}\n")))
    }

    fn put_sealed(&self, name: &str, text: &str) -> Result<(), RepositoryError> {
        let line_end = if text.ends_with('\n') { "" } else { "\n" };
        let sealed = self
            .vault()
            .sealed_text(Sealed::Wal(name), &format!("{text}{line_end}"));
        self.vault().put(name, sealed.as_bytes())
    }

    fn get_sealed(&self, name: &str) -> Result<String, RepositoryError> {
        let bytes = self.vault().get(name, SMALL_LIMIT_BYTES)?;
        self.vault()
            .unsealed_text(Sealed::Wal(name), &self.vault().key(name), bytes)
    }
}

fn history_name(system: u64, timeline: u32) -> String {
    format!("{ROOT}/{system:016x}/{timeline:08x}.history")
}

fn history_of(name: &str) -> Option<(u64, u32)> {
    let (system, file) = name.strip_prefix("wal/")?.split_once('/')?;
    let timeline = hexadecimal(file.strip_suffix(".history")?, 8)?;
    Some((hexadecimal(system, 16)?, u32::try_from(timeline).ok()?))
}

fn seen_name(system: u64) -> String {
    format!("{ROOT}/{system:016x}/seen")
}

fn settled(put: Result<(), RepositoryError>) -> Result<(), RepositoryError> {
    match put {
        Err(RepositoryError::Exists(_)) => Ok(()),
        other => other,
    }
}

fn document<T: for<'de> Deserialize<'de>>(name: &str, text: &str) -> Result<T, RepositoryError> {
    serde_json::from_str(text)
        .map_err(|e| RepositoryError::Invalid(format!("{name} cannot be understood: {e}")))
}

fn encode(vault: &Vault, name: &str, bytes: &[u8]) -> Result<Vec<u8>, RepositoryError> {
    let failed = |e| RepositoryError::io("compress WAL", e);
    let mut file = zstd::bulk::compress(bytes, COMPRESSION_LEVEL).map_err(failed)?;
    // What is stored is decoded once before it is.
    let check = zstd::bulk::decompress(&file, bytes.len()).map_err(failed)?;
    if check != bytes {
        return Err(RepositoryError::Invalid(
            "compressed WAL does not decode to what went in: memory or the processor is faulty; nothing was stored".to_owned(),
        ));
    }
    let seal = vault.secrets.seal(Sealed::Wal(name), &file);
    file.extend_from_slice(&SEAL_FRAME_HEADER);
    file.extend_from_slice(seal.as_bytes());
    Ok(file)
}

fn decode(
    vault: &Vault,
    name: &str,
    file: &[u8],
    raw_bytes: u64,
) -> Result<Vec<u8>, RepositoryError> {
    let forged = || RepositoryError::Forged(vault.key(name));
    let (frame, trailer) = file
        .len()
        .checked_sub(SEAL_FRAME_HEADER.len() + SEAL_BYTES)
        .and_then(|at| file.split_at_checked(at))
        .ok_or_else(forged)?;
    let seal: [u8; SEAL_BYTES] = trailer
        .strip_prefix(&SEAL_FRAME_HEADER)
        .and_then(|seal| seal.try_into().ok())
        .ok_or_else(forged)?;
    // Compared in constant time.
    if blake3::Hash::from_bytes(seal) != vault.secrets.seal(Sealed::Wal(name), frame) {
        return Err(forged());
    }
    let capacity = usize::try_from(raw_bytes).unwrap_or(0);
    let bytes = zstd::bulk::decompress(frame, capacity)
        .map_err(|e| RepositoryError::Invalid(format!("{name} does not decompress: {e}")))?;
    if bytes.len() != capacity {
        return Err(RepositoryError::Invalid(format!(
            "{name} holds {} bytes instead of {capacity}",
            bytes.len()
        )));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use super::stretch::tests::stretch;
    use super::*;

    #[test]
    fn what_is_stored_comes_back_and_nothing_else_does() {
        let directory = tempfile::tempdir().unwrap();
        let repository = Repository::open_or_init_local(directory.path()).unwrap();
        let bytes: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        let one = stretch(4096, 4096 + bytes.len() as u64, 77);
        repository.put_wal(&one, &bytes).unwrap();
        repository.put_wal(&one, &bytes).unwrap();
        assert!(repository.put_wal(&one, &bytes[1..]).is_err());
        repository
            .put_wal_history(one.system, 2, "1\t0/5000\tno recovery target")
            .unwrap();
        let list = repository.wal().unwrap();
        assert_eq!(list.stretches, [one]);
        assert_eq!(list.histories[&one.system], [2]);
        assert_eq!(repository.read_wal(&one).unwrap(), bytes);
        assert_eq!(
            repository.wal_history(one.system, 2).unwrap(),
            "1\t0/5000\tno recovery target\n"
        );

        // Under another name it is not what that name says, and a changed one is not genuine.
        let path = directory.path().join(one.name());
        let other = stretch(8192, 8192 + bytes.len() as u64, 78);
        std::fs::copy(&path, directory.path().join(other.name())).unwrap();
        assert!(matches!(
            repository.read_wal(&other),
            Err(RepositoryError::Forged(_))
        ));
        let whole = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        for at in (0..whole.len()).step_by(997).chain([whole.len() - 1]) {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            std::fs::write(&path, &changed).unwrap();
            assert!(repository.read_wal(&one).is_err(), "byte {at}");
        }
        std::fs::write(&path, &whole[..20]).unwrap();
        assert!(repository.read_wal(&one).is_err());
    }

    #[test]
    fn marks_and_the_last_look_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let repository = Repository::open_or_init_local(directory.path()).unwrap();
        assert_eq!(repository.wal_seen(3).unwrap(), None);
        for end in [5, 6] {
            let seen = Seen {
                timeline: 1,
                end,
                at: Timestamp::now(),
            };
            repository.note_wal_seen(3, &seen).unwrap();
            assert_eq!(repository.wal_seen(3).unwrap(), Some(seen));
        }
        let mark = |name: &str, at: i64| Mark {
            name: name.to_owned(),
            at: Timestamp::from_millisecond(at).unwrap(),
            system: 3,
            timeline: 1,
            lsn: 77,
            service: "postgres".to_owned(),
        };
        repository.put_mark(&mark("later", 20)).unwrap();
        repository.put_mark(&mark("before-upgrade", 5)).unwrap();
        let list = repository.wal().unwrap();
        let names: Vec<_> = repository
            .marks(&list)
            .unwrap()
            .into_iter()
            .map(|m| m.name)
            .collect();
        assert_eq!(names, ["before-upgrade", "later"]);
    }
}
