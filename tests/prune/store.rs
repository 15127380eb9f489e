//! A real directory as the store, with a clock, a size and a temper that the test sets.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use jiff::{SignedDuration, Timestamp};
use lifeboat::repository::RepositoryError;
use lifeboat::repository::store::{Blob, Entry, LocalStore, Spool, Store};

/// Far from this machine's time, so that whoever asks the machine is found out.
const BEGIN_SECONDS: i64 = 1_000_000_000;

type Hook = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    seconds: AtomicI64,
    /// When each key was written.
    written: Mutex<HashMap<String, Timestamp>>,
    /// Bytes the store can hold; 0 for any number.
    quota_bytes: AtomicU64,
    refuses_deletes: AtomicBool,
    /// Done right before the first put of a key that ends so.
    before_put: Mutex<Option<(String, Hook)>>,
    /// Done right before the first deletion of a key that begins so.
    before_delete: Mutex<Option<(String, Hook)>>,
    /// Keys that begin so cannot be read for now.
    unreadable: Mutex<Option<String>>,
    /// Keys of the small files that were read.
    reads: Mutex<Vec<String>>,
}

#[derive(Clone)]
pub struct TestStore {
    inner: LocalStore,
    state: Arc<State>,
}

impl TestStore {
    pub fn new(inner: LocalStore) -> Self {
        Self {
            inner,
            state: Arc::default(),
        }
    }

    /// Time passes in the store.
    pub fn pass_hours(&self, hours: i64) {
        self.state.seconds.fetch_add(hours * 3600, Ordering::SeqCst);
    }

    pub fn set_quota(&self, bytes: u64) {
        self.state.quota_bytes.store(bytes, Ordering::SeqCst);
    }

    pub fn refuse_deletes(&self, refuse: bool) {
        self.state.refuses_deletes.store(refuse, Ordering::SeqCst);
    }

    pub fn before_put(&self, end: &str, hook: impl FnOnce() + Send + 'static) {
        *self.state.before_put.lock().unwrap() = Some((end.to_owned(), Box::new(hook)));
    }

    // Not every test that has this store needs it.
    #[allow(dead_code)]
    pub fn before_delete(&self, start: &str, hook: impl FnOnce() + Send + 'static) {
        *self.state.before_delete.lock().unwrap() = Some((start.to_owned(), Box::new(hook)));
    }

    // Not every test that has this store needs it.
    #[allow(dead_code)]
    pub fn set_unreadable(&self, start: Option<&str>) {
        *self.state.unreadable.lock().unwrap() = start.map(str::to_owned);
    }

    /// The small files that were read since it was asked last.
    // Not every test that has this store needs it.
    #[allow(dead_code)]
    pub fn take_reads(&self) -> Vec<String> {
        std::mem::take(&mut *self.state.reads.lock().unwrap())
    }

    pub fn used_bytes(&self) -> u64 {
        [
            "packs", "index", "backups", "moved", "trash", "leases", "locks",
        ]
        .iter()
        .flat_map(|prefix| self.inner.list(prefix).unwrap())
        .chain(self.inner.open("reserve").ok().map(|blob| Entry {
            key: String::new(),
            size: blob.size(),
            modified: Timestamp::UNIX_EPOCH,
        }))
        .map(|entry| entry.size)
        .sum()
    }

    fn time(&self) -> Timestamp {
        let seconds = self.state.seconds.load(Ordering::SeqCst);
        Timestamp::from_second(BEGIN_SECONDS + seconds).unwrap()
    }

    fn stamp(&self, key: &str) {
        let mut written = self.state.written.lock().unwrap();
        written.insert(key.to_owned(), self.time());
    }

    fn room_for(&self, bytes: usize) -> Result<(), RepositoryError> {
        if self.free_bytes().is_none_or(|free| free >= bytes as u64) {
            return Ok(());
        }
        Err(RepositoryError::Io {
            what: "write".to_owned(),
            source: io::ErrorKind::StorageFull.into(),
        })
    }
}

impl Store for TestStore {
    fn put(&self, key: &str, bytes: &[u8]) -> Result<(), RepositoryError> {
        let hook = {
            let mut hook = self.state.before_put.lock().unwrap();
            hook.take_if(|(end, _)| key.ends_with(end.as_str()))
        };
        if let Some((_, hook)) = hook {
            hook();
        }
        self.room_for(bytes.len())?;
        // Before the file is there: who lists it finds its time.
        let before = self.state.written.lock().unwrap().get(key).copied();
        if before.is_none() {
            self.stamp(key);
        }
        self.inner.put(key, bytes)
    }

    fn replace(&self, key: &str, bytes: &[u8]) -> Result<(), RepositoryError> {
        self.room_for(bytes.len())?;
        self.stamp(key);
        self.inner.replace(key, bytes)
    }

    fn spool(&self) -> Result<Box<dyn Spool>, RepositoryError> {
        Ok(Box::new(TestSpool {
            inner: self.inner.spool()?,
            bytes: 0,
            store: self.clone(),
        }))
    }

    fn get(&self, key: &str, limit_bytes: u64) -> Result<Vec<u8>, RepositoryError> {
        let unreadable = self.state.unreadable.lock().unwrap().clone();
        if unreadable.is_some_and(|start| key.starts_with(&start)) {
            return Err(RepositoryError::Io {
                what: format!("read {key}"),
                source: io::Error::other("the disk is out of order"),
            });
        }
        self.state.reads.lock().unwrap().push(key.to_owned());
        self.inner.get(key, limit_bytes)
    }

    fn open(&self, key: &str) -> Result<Box<dyn Blob>, RepositoryError> {
        self.inner.open(key)
    }

    fn list(&self, prefix: &str) -> Result<Vec<Entry>, RepositoryError> {
        let mut entries = self.inner.list(prefix)?;
        let written = self.state.written.lock().unwrap();
        for entry in &mut entries {
            entry.modified = written.get(&entry.key).copied().unwrap_or(self.time());
        }
        Ok(entries)
    }

    fn delete(&self, key: &str) -> Result<(), RepositoryError> {
        if key.starts_with("packs/") && self.state.refuses_deletes.load(Ordering::SeqCst) {
            return Err(RepositoryError::Refused(key.to_owned()));
        }
        let hook = {
            let mut hook = self.state.before_delete.lock().unwrap();
            hook.take_if(|(start, _)| key.starts_with(start.as_str()))
        };
        if let Some((_, hook)) = hook {
            hook();
        }
        self.inner.delete(key)?;
        self.state.written.lock().unwrap().remove(key);
        Ok(())
    }

    fn remove_abandoned(&self) -> Result<(), RepositoryError> {
        Ok(())
    }

    fn now(&self) -> Result<Timestamp, RepositoryError> {
        // A moment later than what was just written.
        Ok(self.time() + SignedDuration::from_millis(1))
    }

    fn check_writable(&self) -> Result<(), RepositoryError> {
        self.inner.check_writable()
    }

    fn free_bytes(&self) -> Option<u64> {
        let quota = self.state.quota_bytes.load(Ordering::SeqCst);
        (quota > 0).then(|| quota.saturating_sub(self.used_bytes()))
    }

    fn is_remote(&self) -> bool {
        false
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }
}

struct TestSpool {
    inner: Box<dyn Spool>,
    bytes: usize,
    store: TestStore,
}

impl Write for TestSpool {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(buf)?;
        self.bytes += count;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl Spool for TestSpool {
    fn publish(self: Box<Self>, key: &str) -> Result<(), RepositoryError> {
        self.store.room_for(self.bytes)?;
        self.store.stamp(key);
        self.inner.publish(key)
    }
}
