//! A process's way to the store, which can be cut at any call that changes something.
//!
//! Every such call has a number. At the chosen one the process dies: before the call, half way through it as
//! far as the backend knows a half, or right after it. A dead process changes nothing any more, whatever its
//! destructors try; what it had open stays behind as a killed one's would.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use lifeboat::durable::TEMP_PREFIX;
use lifeboat::repository::RepositoryError;
use lifeboat::repository::store::{Blob, Entry, LocalStore, Spool, Store};

use crate::schedule::Turns;

/// Begins what a call to the second repository names.
pub const SECOND: &str = "second/";

/// When the process dies at its last call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    Before,
    Half,
    After,
}

/// One process that works on a repository, or on two.
pub struct Process {
    root: PathBuf,
    /// Tells its calls from those to the first repository.
    place: &'static str,
    inner: LocalStore,
    turns: Option<Turns>,
    life: Arc<Mutex<Life>>,
}

#[derive(Default)]
struct Life {
    /// What was changed, in order.
    calls: Vec<String>,
    end: Option<(usize, Death)>,
    dead: bool,
}

impl Process {
    /// Dies at the call with the number `end`, counted from 0; never without one.
    pub fn new(root: &Path, end: Option<(usize, Death)>, turns: Option<Turns>) -> Arc<Self> {
        Arc::new(Self {
            root: root.to_owned(),
            place: "",
            inner: LocalStore::new(root),
            turns,
            life: Arc::new(Mutex::new(Life {
                end,
                ..Life::default()
            })),
        })
    }

    /// The same process at another repository: its calls are counted together.
    pub fn at(self: &Arc<Self>, root: &Path) -> Arc<Self> {
        Arc::new(Self {
            root: root.to_owned(),
            place: SECOND,
            inner: LocalStore::new(root),
            turns: self.turns.clone(),
            life: Arc::clone(&self.life),
        })
    }

    pub fn store(self: &Arc<Self>) -> Arc<dyn Store> {
        Arc::new(ProcessStore(Arc::clone(self)))
    }

    pub fn is_dead(&self) -> bool {
        self.life().dead
    }

    pub fn calls(&self) -> Vec<String> {
        self.life().calls.clone()
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the turn of the process, if others run beside it.
    fn wait(&self) -> Result<(), RepositoryError> {
        if let Some(turns) = &self.turns
            && !self.is_dead()
        {
            turns.wait();
        }
        if self.is_dead() {
            Err(killed())
        } else {
            Ok(())
        }
    }

    fn change<T>(
        &self,
        verb: &str,
        what: &str,
        half: impl FnOnce() -> io::Result<()>,
        act: impl FnOnce() -> Result<T, RepositoryError>,
    ) -> Result<T, RepositoryError> {
        self.wait()?;
        let death = {
            let mut life = self.life();
            let number = life.calls.len();
            life.calls.push(format!("{verb} {}{what}", self.place));
            life.end.filter(|(at, _)| *at == number).map(|(_, how)| how)
        };
        let Some(death) = death else {
            return act();
        };
        match death {
            Death::Before => {}
            Death::Half => half().unwrap(),
            // Whether it succeeded nobody learns.
            Death::After => drop(act()),
        }
        self.life().dead = true;
        Err(killed())
    }

    /// The files that were begun and have no name yet.
    fn unfinished(&self) -> BTreeSet<PathBuf> {
        let Ok(entries) = fs::read_dir(self.root.join("packs")) else {
            return BTreeSet::new();
        };
        entries
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.file_name().is_some_and(lifeboat::durable::is_temp))
            .collect()
    }

    /// What a killed `put` leaves: a part of the bytes under a name that means nothing.
    fn leave_half(&self, key: &str, bytes: &[u8]) -> io::Result<()> {
        let path = self.root.join(key);
        let dir = path.parent().unwrap_or(&self.root);
        fs::create_dir_all(dir)?;
        let number = self.life().calls.len();
        let name = format!("{TEMP_PREFIX}half-{number}-{}", bytes.len());
        fs::write(
            dir.join(name),
            bytes.get(..bytes.len() / 2).unwrap_or_default(),
        )
    }
}

fn killed() -> RepositoryError {
    RepositoryError::Remote {
        what: "use the store".to_owned(),
        why: "the process was killed".to_owned(),
        transient: false,
    }
}

struct ProcessStore(Arc<Process>);

impl Store for ProcessStore {
    fn put(&self, key: &str, bytes: &[u8]) -> Result<(), RepositoryError> {
        let half = || self.0.leave_half(key, bytes);
        let act = || self.0.inner.put(key, bytes);
        self.0.change("put", key, half, act)
    }

    fn replace(&self, key: &str, bytes: &[u8]) -> Result<(), RepositoryError> {
        let half = || self.0.leave_half(key, bytes);
        let act = || self.0.inner.replace(key, bytes);
        self.0.change("replace", key, half, act)
    }

    fn spool(&self) -> Result<Box<dyn Spool>, RepositoryError> {
        let process = &self.0;
        process.change(
            "spool",
            "",
            || Ok(()),
            || {
                let before = process.unfinished();
                let spool = process.inner.spool()?;
                let temp = process.unfinished().difference(&before).next().cloned();
                Ok(Box::new(ProcessSpool {
                    inner: Some(spool),
                    process: Arc::clone(process),
                    temp: temp.expect("a spool is a file"),
                }) as Box<dyn Spool>)
            },
        )
    }

    fn get(&self, key: &str, limit_bytes: u64) -> Result<Vec<u8>, RepositoryError> {
        self.0.wait()?;
        self.0.inner.get(key, limit_bytes)
    }

    fn open(&self, key: &str) -> Result<Box<dyn Blob>, RepositoryError> {
        self.0.wait()?;
        self.0.inner.open(key)
    }

    fn list(&self, prefix: &str) -> Result<Vec<Entry>, RepositoryError> {
        self.0.wait()?;
        self.0.inner.list(prefix)
    }

    fn delete(&self, key: &str) -> Result<(), RepositoryError> {
        let act = || self.0.inner.delete(key);
        self.0.change("delete", key, || Ok(()), act)
    }

    fn remove_abandoned(&self) -> Result<(), RepositoryError> {
        let act = || self.0.inner.remove_abandoned();
        self.0.change("remove", "abandoned files", || Ok(()), act)
    }

    fn now(&self) -> Result<Timestamp, RepositoryError> {
        self.0.wait()?;
        self.0.inner.now()
    }

    fn check_writable(&self) -> Result<(), RepositoryError> {
        self.0.wait()?;
        self.0.inner.check_writable()
    }

    fn free_bytes(&self) -> Option<u64> {
        self.0.inner.free_bytes()
    }

    fn is_remote(&self) -> bool {
        false
    }

    fn describe(&self) -> String {
        self.0.inner.describe()
    }
}

struct ProcessSpool {
    inner: Option<Box<dyn Spool>>,
    process: Arc<Process>,
    temp: PathBuf,
}

impl Write for ProcessSpool {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let inner = Mutex::new(self.inner.as_mut().expect("not published yet"));
        let write = |bytes: &[u8]| inner.lock().unwrap().write_all(bytes);
        let half = || write(buf.get(..buf.len() / 2).unwrap_or_default());
        let act = || {
            write(buf).map_err(|source| RepositoryError::Io {
                what: "write".to_owned(),
                source,
            })
        };
        self.process
            .change("write", &format!("{} bytes", buf.len()), half, act)
            .map_err(io::Error::other)?;
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Spool for ProcessSpool {
    fn publish(mut self: Box<Self>, key: &str) -> Result<(), RepositoryError> {
        let inner = Mutex::new(self.inner.take());
        let act = || {
            inner
                .lock()
                .unwrap()
                .take()
                .expect("published once")
                .publish(key)
        };
        let result = self.process.change("publish", key, || Ok(()), act);
        self.inner = inner.into_inner().unwrap();
        result
    }
}

impl Drop for ProcessSpool {
    fn drop(&mut self) {
        // A killed process removes nothing: the file stays under another name.
        if self.process.is_dead() && self.temp.exists() {
            let mut left = self.temp.clone().into_os_string();
            left.push("-left");
            fs::hard_link(&self.temp, left).unwrap();
        }
    }
}
