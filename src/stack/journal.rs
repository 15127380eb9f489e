//! What must be undone if this process dies: written down before it is done.
//!
//! One file an obligation below `<state>/journal/`, created durably (temp file, fsync, rename, fsync of the
//! directory) before the thing it names is done, removed after it is undone.

mod obligation;

use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::durable;
pub use obligation::{Obligation, PostgresSwitch, QdrantPrevious};

/// Identifies one obligation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct EntryId(pub String);

/// An obligation as it was written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub id: EntryId,
    pub run_id: String,
    pub at: Timestamp,
    pub obligation: Obligation,
}

/// The journal of one state directory.
#[derive(Debug)]
pub struct Journal {
    dir: PathBuf,
    /// The newest number given out: names must order also when the clock was set back.
    newest: Mutex<u64>,
}

/// What a file of the journal holds.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: u32,
    run: String,
    at: Timestamp,
    obligation: Obligation,
}

const FORMAT: u32 = 1;
/// An obligation is small; a larger file was not written by this program.
const MAX_FILE_BYTES: u64 = 4 << 20;
const MAX_ENTRIES: usize = 10_000;
const SUFFIX: &str = ".json";

impl Journal {
    pub fn open(state: &Path) -> io::Result<Self> {
        let dir = state.join("journal");
        // An obligation may hold a file's content, and that a password.
        durable::create_dir_all(&dir, 0o700)?;
        let journal = Self {
            dir,
            newest: Mutex::new(0),
        };
        let newest = journal.numbers()?.into_iter().max().unwrap_or(0);
        *journal
            .newest
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = newest;
        Ok(journal)
    }

    /// Writes an obligation down; on disk when this returns.
    pub fn record(&self, run_id: &str, obligation: &Obligation) -> io::Result<EntryId> {
        let at = Timestamp::now();
        let document = Document {
            format: FORMAT,
            run: run_id.to_owned(),
            at,
            obligation: obligation.clone(),
        };
        let bytes = serde_json::to_vec_pretty(&document)?;
        if bytes.len() as u64 > MAX_FILE_BYTES {
            return Err(io::Error::new(
                ErrorKind::FileTooLarge,
                format!(
                    "cannot write down in {} what must be undone: {} bytes are more than the {MAX_FILE_BYTES} \
                     that an entry may have",
                    self.dir.display(),
                    bytes.len()
                ),
            ));
        }
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            *newest = number_for(at).max(newest.saturating_add(1));
            let id = EntryId(format!("{:016x}", *newest));
            match durable::write_new(&self.path(&id), &bytes, 0o600) {
                // Another process writes in the same journal: the next number is as good.
                Err(err) if err.kind() == ErrorKind::AlreadyExists && *newest < u64::MAX => {}
                Err(err) => return Err(err),
                Ok(()) => return Ok(id),
            }
        }
    }

    /// Strikes an obligation out; a missing one is fine.
    pub fn done(&self, entry: &EntryId) -> io::Result<()> {
        if parse_number(&entry.0).is_none() {
            return Err(io::Error::new(
                ErrorKind::InvalidInput,
                format!("\"{}\" is not an entry of the journal", entry.0),
            ));
        }
        durable::remove(&self.path(entry)).map(|_| ())
    }

    /// All open obligations, newest first: the order to undo them in.
    pub fn pending(&self) -> io::Result<Vec<(EntryId, Obligation)>> {
        let entries = self.entries()?;
        Ok(entries.into_iter().map(|e| (e.id, e.obligation)).collect())
    }

    /// As [`Self::pending`], with the run that wrote each one and when.
    pub fn entries(&self) -> io::Result<Vec<Entry>> {
        let mut numbers = self.numbers()?;
        numbers.sort_unstable_by(|a, b| b.cmp(a));
        numbers
            .into_iter()
            .map(|number| self.read(EntryId(format!("{number:016x}"))))
            .collect()
    }

    /// Where the journal is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn path(&self, id: &EntryId) -> PathBuf {
        self.dir.join(format!("{}{SUFFIX}", id.0))
    }

    /// The numbers of all entries, in no order; a file that is none is an error.
    fn numbers(&self) -> io::Result<Vec<u64>> {
        let list = |err| {
            io::Error::new(
                io::Error::kind(&err),
                format!("cannot list the journal {}: {err}", self.dir.display()),
            )
        };
        let mut numbers = Vec::new();
        for entry in std::fs::read_dir(&self.dir).map_err(list)? {
            let name = entry.map_err(list)?.file_name();
            if durable::is_temp(&name) {
                // Not committed, so what it names was not done.
                continue;
            }
            let number = name
                .to_str()
                .and_then(|name| parse_number(name.strip_suffix(SUFFIX)?))
                .ok_or_else(|| self.unknown(&self.dir.join(&name), "its name is not an entry's"))?;
            numbers.push(number);
            if numbers.len() > MAX_ENTRIES {
                return Err(self.unknown(
                    &self.dir,
                    &format!("it has more than {MAX_ENTRIES} entries"),
                ));
            }
        }
        Ok(numbers)
    }

    fn read(&self, id: EntryId) -> io::Result<Entry> {
        let path = self.path(&id);
        let meta = std::fs::symlink_metadata(&path)
            .map_err(|err| self.unknown(&path, &err.to_string()))?;
        if !meta.is_file() {
            return Err(self.unknown(&path, "it is not a regular file"));
        }
        let mut bytes = Vec::new();
        std::fs::File::open(&path)
            .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes))
            .map_err(|err| self.unknown(&path, &err.to_string()))?;
        if bytes.len() as u64 > MAX_FILE_BYTES {
            return Err(self.unknown(&path, &format!("it is larger than {MAX_FILE_BYTES} bytes")));
        }
        let document: Document = serde_json::from_slice(&bytes)
            .map_err(|err| self.unknown(&path, &format!("it does not read as an entry ({err})")))?;
        if document.format != FORMAT {
            return Err(self.unknown(
                &path,
                &format!("it has format {}, not {FORMAT}", document.format),
            ));
        }
        Ok(Entry {
            id,
            run_id: document.run,
            at: document.at,
            obligation: document.obligation,
        })
    }

    fn unknown(&self, path: &Path, why: &str) -> io::Error {
        io::Error::new(
            ErrorKind::InvalidData,
            format!(
                "cannot tell what an interrupted run left to be undone: {} is not understood: {why}. \
                 See that the stack's containers run and its data is in place, then move that file out of {}",
                path.display(),
                self.dir.display()
            ),
        )
    }
}

/// Nanoseconds since 1970, good until the year 2554.
fn number_for(at: Timestamp) -> u64 {
    u64::try_from(at.as_nanosecond()).unwrap_or(0)
}

fn parse_number(id: &str) -> Option<u64> {
    let is_entry = id.len() == 16 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    is_entry.then(|| u64::from_str_radix(id, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use super::*;
    use crate::stack::ContainerRef;

    fn collection(name: &str) -> Obligation {
        Obligation::QdrantCollection {
            service: "qdrant".into(),
            collection: name.into(),
        }
    }

    fn all_kinds() -> Vec<Obligation> {
        vec![
            Obligation::Stopped {
                container: ContainerRef {
                    id: "ab".repeat(32),
                    name: "n8n".into(),
                    image: "n8nio/n8n:latest".into(),
                    image_digest: "sha256:1".into(),
                    running: true,
                    stop_timeout: Some(30),
                    has_healthcheck: false,
                },
            },
            Obligation::QdrantSnapshot {
                service: "qdrant".into(),
                collection: "docs".into(),
                before: vec!["docs-1.snapshot".into()],
            },
            Obligation::Swap {
                service: "postgres".into(),
                root: "/data/postgres".into(),
                staging: "/data/postgres/.lifeboat-new".into(),
                kept: "/data/postgres/.lifeboat-old".into(),
            },
            collection("docs-new"),
            Obligation::QdrantReplaced {
                service: "qdrant".into(),
                collection: "docs".into(),
                previous: Some(QdrantPrevious {
                    snapshot: "docs-2.snapshot".into(),
                    location: "file:///qdrant/snapshots/docs/docs-2.snapshot".into(),
                    sha256: "00".repeat(32),
                }),
                aliases: [("kb".to_owned(), "docs".to_owned())].into(),
            },
            Obligation::FileContent {
                path: "/data/postgres/postgresql.auto.conf".into(),
                original: Some("# nothing\n".into()),
            },
            Obligation::FileContent {
                path: "/data/postgres/recovery.signal".into(),
                original: None,
            },
            Obligation::PostgresSessions {
                service: "postgres".into(),
                application: "lifeboat run-1".into(),
            },
            Obligation::PostgresDatabase {
                service: "postgres".into(),
                database: "lifeboat_new_run-1_0".into(),
            },
            Obligation::PostgresSwitched {
                service: "postgres".into(),
                databases: vec![PostgresSwitch {
                    live: "n8n".into(),
                    new: "lifeboat_new_run-1_0".into(),
                    old: None,
                }],
                keep_old: true,
            },
            Obligation::PostgresGlobals {
                service: "postgres".into(),
                roles: vec!["app".into()],
                tablespaces: vec![],
            },
            Obligation::PostgresThrowaway {
                directory: "/var/lib/lifeboat/throwaway-run-1".into(),
                container: Some("lifeboat-throwaway-run-1".into()),
            },
        ]
    }

    #[test]
    fn obligations_come_back_newest_first_after_a_restart() {
        let state = tempfile::tempdir().unwrap();
        let journal = Journal::open(state.path()).unwrap();
        for obligation in all_kinds() {
            journal.record("run-1", &obligation).unwrap();
        }
        drop(journal);
        let journal = Journal::open(state.path()).unwrap();
        let found: Vec<_> = journal
            .pending()
            .unwrap()
            .into_iter()
            .map(|(_, o)| o)
            .collect();
        let expected: Vec<_> = all_kinds().into_iter().rev().collect();
        assert_eq!(found, expected);
        assert_eq!(journal.entries().unwrap()[0].run_id, "run-1");
    }

    #[test]
    fn a_struck_out_obligation_is_gone_and_may_be_struck_out_again() {
        let state = tempfile::tempdir().unwrap();
        let journal = Journal::open(state.path()).unwrap();
        let first = journal.record("r", &collection("a")).unwrap();
        let second = journal.record("r", &collection("b")).unwrap();
        journal.done(&first).unwrap();
        journal.done(&first).unwrap();
        assert_eq!(journal.pending().unwrap(), [(second, collection("b"))]);
    }

    #[test]
    fn names_order_when_the_clock_was_set_back() {
        let state = tempfile::tempdir().unwrap();
        let journal = Journal::open(state.path()).unwrap();
        let first = journal.record("r", &collection("future")).unwrap();
        let future = format!("{:016x}", u64::MAX - 10);
        std::fs::rename(journal.path(&first), journal.path(&EntryId(future.clone()))).unwrap();
        let journal = Journal::open(state.path()).unwrap();
        let next = journal.record("r", &collection("now")).unwrap();
        assert!(next > EntryId(future));
        assert_eq!(journal.pending().unwrap()[0].1, collection("now"));
    }

    #[test]
    fn two_writers_never_overwrite_each_other() {
        let state = tempfile::tempdir().unwrap();
        let journals: Vec<_> = (0..4)
            .map(|_| Journal::open(state.path()).unwrap())
            .collect();
        std::thread::scope(|scope| {
            for journal in &journals {
                scope.spawn(|| {
                    for n in 0..20 {
                        journal.record("r", &collection(&n.to_string())).unwrap();
                    }
                });
            }
        });
        assert_eq!(journals[0].pending().unwrap().len(), 80);
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (name, content) in [
            ("0000000000000001.json", "{"),
            (
                "0000000000000001.json",
                r#"{"format":1,"run":"r","at":"2026-01-01T00:00:00Z","obligation":{"kind":"later"}}"#,
            ),
            (
                "0000000000000001.json",
                r#"{"format":2,"run":"r","at":"2026-01-01T00:00:00Z",
                    "obligation":{"kind":"qdrant-collection","service":"q","collection":"c"}}"#,
            ),
        ] {
            let state = tempfile::tempdir().unwrap();
            let journal = Journal::open(state.path()).unwrap();
            std::fs::write(journal.dir().join(name), content).unwrap();
            let err = journal.pending().unwrap_err();
            assert_eq!(err.kind(), ErrorKind::InvalidData);
            assert!(err.to_string().contains(name), "{err}");
        }
        let state = tempfile::tempdir().unwrap();
        let journal = Journal::open(state.path()).unwrap();
        std::fs::write(journal.dir().join("notes.txt"), "").unwrap();
        let err = journal.pending().unwrap_err();
        assert!(err.to_string().contains("notes.txt"), "{err}");
    }

    #[test]
    fn an_uncommitted_entry_was_never_promised() {
        let state = tempfile::tempdir().unwrap();
        let journal = Journal::open(state.path()).unwrap();
        let temp = format!("{}x", durable::TEMP_PREFIX);
        std::fs::write(journal.dir().join(temp), "{").unwrap();
        assert_eq!(journal.pending().unwrap(), []);
    }

    #[test]
    fn an_oversized_obligation_is_refused_before_it_is_promised() {
        let state = tempfile::tempdir().unwrap();
        let journal = Journal::open(state.path()).unwrap();
        let original = "x".repeat(usize::try_from(MAX_FILE_BYTES).unwrap());
        let err = journal
            .record(
                "r",
                &Obligation::FileContent {
                    path: "/f".into(),
                    original: Some(original),
                },
            )
            .unwrap_err();
        assert_eq!(err.kind(), ErrorKind::FileTooLarge);
        assert_eq!(journal.pending().unwrap(), []);
    }

    #[test]
    fn entries_are_private() {
        use std::os::unix::fs::PermissionsExt;
        let state = tempfile::tempdir().unwrap();
        let journal = Journal::open(state.path()).unwrap();
        let id = journal.record("r", &collection("a")).unwrap();
        let mode = std::fs::metadata(journal.path(&id)).unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
        let err = journal
            .done(&EntryId("../../etc/passwd".into()))
            .unwrap_err();
        assert_eq!(err.kind(), ErrorKind::InvalidInput);
    }
}
