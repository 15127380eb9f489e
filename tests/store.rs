//! What every store promises, shown on a directory and on a real S3 server; then what a bad line to the server does.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "store/faults.rs"]
mod faults;
#[path = "store/program.rs"]
mod program;
#[path = "store/proxy.rs"]
mod proxy;
#[path = "store/refusals.rs"]
mod refusals;
#[path = "store/roles.rs"]
mod roles;
#[path = "store/server.rs"]
mod server;

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use jiff::SignedDuration;
use lifeboat::repository::RepositoryError;
use lifeboat::repository::store::{LocalStore, Store};
use server::Server;
use tempfile::TempDir;

/// Where stores are made for one test.
struct Ground {
    dir: TempDir,
    server: Option<Arc<Server>>,
    /// A prefix of its own in the bucket that all tests share.
    prefix: String,
}

impl Ground {
    fn local() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            server: None,
            prefix: String::new(),
        }
    }

    fn s3() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        Self {
            dir: tempfile::tempdir().unwrap(),
            server: Some(Server::shared()),
            prefix: format!("conformance/{}", NEXT.fetch_add(1, Ordering::Relaxed)),
        }
    }

    /// Another handle on the same store, as another host has one.
    fn store(&self) -> Arc<dyn Store> {
        self.named("one")
    }

    fn named(&self, name: &str) -> Arc<dyn Store> {
        match &self.server {
            None => Arc::new(LocalStore::new(self.dir.path().join(name))),
            Some(server) => Arc::new(server::connect(server::options(
                &server.url(),
                &format!("{}/{name}", self.prefix),
                &self.dir.path().join("scratch"),
            ))),
        }
    }
}

macro_rules! conformance {
    ($($name:ident)*) => {
        mod local {
            $(#[test] fn $name() { super::$name(&super::Ground::local()); })*
        }
        mod s3 {
            $(#[test] fn $name() { super::$name(&super::Ground::s3()); })*
        }
    };
}

conformance! {
    a_file_is_there_whole_once_it_is_published
    what_exists_is_never_overwritten
    of_many_writers_of_a_key_one_wins
    of_many_publishers_of_a_key_one_wins
    replacing_shows_the_old_or_the_new_content
    a_large_file_reads_back_at_every_position
    an_empty_file_is_a_file
    a_listing_knows_every_file_below
    a_deleted_file_is_gone_and_a_missing_one_is_fine
    times_are_the_stores_own
    stores_side_by_side_do_not_see_each_other
    a_missing_file_is_missing_however_it_is_asked_for
    keys_that_lead_elsewhere_are_refused
    only_old_leases_are_abandoned
    a_store_that_works_says_so
    methods_may_block_inside_of_async_code
}

fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn publish(store: &dyn Store, key: &str, bytes: &[u8]) -> Result<(), RepositoryError> {
    let mut spool = store.spool().unwrap();
    spool.write_all(bytes).unwrap();
    spool.publish(key)
}

fn keys(store: &dyn Store, prefix: &str) -> BTreeSet<String> {
    let entries = store.list(prefix).unwrap();
    let keys: BTreeSet<_> = entries.iter().map(|e| e.key.clone()).collect();
    assert_eq!(keys.len(), entries.len(), "a key is listed twice");
    keys
}

/// Large enough to go up in several parts.
const LARGE: usize = 19 * 1024 * 1024 + 77;

fn a_file_is_there_whole_once_it_is_published(ground: &Ground) {
    let (writer, reader) = (ground.store(), ground.store());
    for (key, length) in [("packs/aa/small", 1000), ("packs/ab/large", LARGE)] {
        let bytes = noise(length, 1);
        let mut spool = writer.spool().unwrap();
        for piece in bytes.chunks(300_000) {
            spool.write_all(piece).unwrap();
        }
        spool.flush().unwrap();
        assert!(!keys(&*reader, "packs").contains(key));
        assert!(matches!(reader.open(key), Err(RepositoryError::Missing(_))));
        spool.publish(key).unwrap();
        let entry = reader.list("packs").unwrap();
        let entry = entry.iter().find(|e| e.key == key).unwrap();
        assert_eq!(entry.size, length as u64);
        assert!(reader.get(key, length as u64).unwrap() == bytes);
    }
    let mut dropped = writer.spool().unwrap();
    dropped.write_all(&noise(100_000, 2)).unwrap();
    drop(dropped);
    assert_eq!(keys(&*reader, "packs").len(), 2);
}

fn what_exists_is_never_overwritten(ground: &Ground) {
    let store = ground.store();
    store.put("leases/one", b"first").unwrap();
    for key in ["packs/aa/small", "packs/aa/middle", "packs/aa/large"] {
        publish(&*store, key, b"first").unwrap();
    }
    let exists = |result| matches!(result, Err(RepositoryError::Exists(key)) if !key.is_empty());
    assert!(exists(store.put("leases/one", b"second")));
    assert!(exists(store.put("leases/one", b"first")));
    assert!(exists(publish(&*store, "packs/aa/small", b"first")));
    assert!(exists(publish(
        &*store,
        "packs/aa/middle",
        &noise(7_000_000, 3)
    )));
    assert!(exists(publish(&*store, "packs/aa/large", &noise(LARGE, 3))));
    for key in [
        "leases/one",
        "packs/aa/small",
        "packs/aa/middle",
        "packs/aa/large",
    ] {
        assert_eq!(store.get(key, 100).unwrap(), b"first");
    }
}

fn of_many_writers_of_a_key_one_wins(ground: &Ground) {
    for round in 0..5 {
        let key = format!("locks/{round}");
        race(
            ground,
            12,
            &key,
            |store, key, mine| store.put(key, mine),
            40,
        );
    }
}

fn of_many_publishers_of_a_key_one_wins(ground: &Ground) {
    race(ground, 6, "packs/aa/small", publish, 5000);
    race(ground, 3, "packs/aa/large", publish, LARGE);
}

/// Writers with content of their own: one is told that it succeeded, and its content is there.
fn race(
    ground: &Ground,
    writers: u64,
    key: &str,
    write: fn(&dyn Store, &str, &[u8]) -> Result<(), RepositoryError>,
    length: usize,
) {
    let start = std::sync::Barrier::new(usize::try_from(writers).unwrap());
    let won: Vec<u64> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..writers)
            .map(|writer| {
                let (store, start) = (ground.store(), &start);
                scope.spawn(move || {
                    let mine = noise(length, writer + 1);
                    start.wait();
                    match write(&*store, key, &mine) {
                        Ok(()) => Some(writer),
                        Err(RepositoryError::Exists(_)) => None,
                        Err(other) => panic!("{other}"),
                    }
                })
            })
            .collect();
        running
            .into_iter()
            .filter_map(|thread| thread.join().unwrap())
            .collect()
    });
    assert_eq!(won.len(), 1, "{won:?}");
    let found = ground.store().get(key, length as u64).unwrap();
    assert!(found == noise(length, won[0] + 1));
}

fn replacing_shows_the_old_or_the_new_content(ground: &Ground) {
    let store = ground.store();
    store.replace("config.json", &noise(50_000, 0)).unwrap();
    let contents: Vec<_> = (0..8).map(|n| noise(50_000, n)).collect();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let reader = ground.store();
            while !done.load(Ordering::Relaxed) {
                let seen = reader.get("config.json", 60_000).unwrap();
                assert!(contents.contains(&seen), "{} bytes", seen.len());
            }
        });
        for content in &contents {
            store.replace("config.json", content).unwrap();
            assert!(store.get("config.json", 60_000).unwrap() == *content);
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(matches!(
        store.put("config.json", b""),
        Err(RepositoryError::Exists(_))
    ));
}

fn a_large_file_reads_back_at_every_position(ground: &Ground) {
    let store = ground.store();
    let bytes = noise(LARGE, 5);
    publish(&*store, "packs/aa/large", &bytes).unwrap();
    for mut blob in [
        store.open("packs/aa/large").unwrap(),
        store.fetch("packs/aa/large").unwrap(),
    ] {
        assert_eq!(blob.size(), LARGE as u64);
        let part = 8 * 1024 * 1024;
        for (from, length) in [
            (0, 1),
            (LARGE - 1, 1),
            (part - 3, 6),
            (part, 100_000),
            (12_345, part + 10),
            (LARGE, 0),
        ] {
            let mut buf = vec![0; length];
            blob.read_exact_at(&mut buf, from as u64).unwrap();
            assert!(buf == bytes[from..from + length], "{length} from {from}");
        }
        let mut buf = [0; 10];
        assert!(blob.read_exact_at(&mut buf, LARGE as u64 - 9).is_err());
        assert!(blob.read_exact_at(&mut buf, u64::MAX - 2).is_err());
        let mut whole = Vec::new();
        blob.stream().unwrap().read_to_end(&mut whole).unwrap();
        assert!(whole == bytes);
    }
    let err = store.get("packs/aa/large", 1000).unwrap_err();
    assert!(err.to_string().contains("larger than 1000"), "{err}");
}

fn an_empty_file_is_a_file(ground: &Ground) {
    let store = ground.store();
    store.put("damaged/put", b"").unwrap();
    publish(&*store, "damaged/published", b"").unwrap();
    for key in ["damaged/put", "damaged/published"] {
        assert_eq!(store.get(key, 10).unwrap(), b"");
        assert_eq!(store.open(key).unwrap().size(), 0);
        let mut blob = store.fetch(key).unwrap();
        let mut all = Vec::new();
        blob.stream().unwrap().read_to_end(&mut all).unwrap();
        assert!(all.is_empty());
    }
    assert_eq!(keys(&*store, "damaged").len(), 2);
}

fn a_listing_knows_every_file_below(ground: &Ground) {
    let store = ground.store();
    let wanted: BTreeSet<String> = (0..1100)
        .map(|n| format!("packs/{:02x}/{n:064x}.zst.age", n % 16))
        .collect();
    let all: Vec<_> = wanted.iter().collect();
    std::thread::scope(|scope| {
        for share in all.chunks(140) {
            let store = ground.store();
            scope.spawn(move || {
                for key in share {
                    store.put(key, key.as_bytes()).unwrap();
                }
            });
        }
    });
    for other in [
        "packs-of-cards/x",
        "pack",
        "backups/a/manifest.json",
        "backups/ab/manifest.json",
    ] {
        store.put(other, b"x").unwrap();
    }
    assert_eq!(keys(&*store, "packs"), wanted);
    assert_eq!(
        keys(&*store, "packs/0a"),
        wanted
            .iter()
            .filter(|k| k.starts_with("packs/0a/"))
            .cloned()
            .collect()
    );
    assert_eq!(keys(&*store, "backups/a").len(), 1);
    assert!(keys(&*store, "nothing/here").is_empty());
    assert!(
        store
            .list("packs")
            .unwrap()
            .iter()
            .all(|e| e.size == e.key.len() as u64)
    );
}

fn a_deleted_file_is_gone_and_a_missing_one_is_fine(ground: &Ground) {
    let store = ground.store();
    store.put("index/a", b"a").unwrap();
    store.put("index/b", b"b").unwrap();
    store.delete("index/a").unwrap();
    store.delete("index/a").unwrap();
    store.delete("never/was").unwrap();
    assert_eq!(
        keys(&*store, "index"),
        BTreeSet::from(["index/b".to_owned()])
    );
    store.put("index/a", b"again").unwrap();
    assert_eq!(store.get("index/a", 10).unwrap(), b"again");
}

fn times_are_the_stores_own(ground: &Ground) {
    let store = ground.store();
    store.put("leases/first", b"").unwrap();
    let before = store.now().unwrap();
    store.put("leases/second", b"").unwrap();
    let after = store.now().unwrap();
    // S3 tells its time to the second.
    let grain = SignedDuration::from_secs(1);
    let entries = store.list("leases").unwrap();
    let time = |key: &str| entries.iter().find(|e| e.key == key).unwrap().modified;
    assert!(time("leases/first") <= time("leases/second"));
    assert!(before <= time("leases/second") && before + grain >= time("leases/first"));
    assert!(time("leases/second") <= after + grain);
    assert!(before <= after);
    // The question itself leaves nothing where files are listed.
    for dir in ["leases", "packs", "backups", "locks", "trash"] {
        assert!(keys(&*store, dir).len() <= 2);
    }
}

fn stores_side_by_side_do_not_see_each_other(ground: &Ground) {
    let (one, other) = (ground.named("host"), ground.named("host-2"));
    one.put("leases/x", b"one").unwrap();
    other.put("leases/x", b"other").unwrap();
    other.put("leases/y", b"other").unwrap();
    assert_eq!(
        keys(&*one, "leases"),
        BTreeSet::from(["leases/x".to_owned()])
    );
    assert_eq!(one.get("leases/x", 10).unwrap(), b"one");
    one.delete("leases/y").unwrap();
    one.delete("leases/x").unwrap();
    assert_eq!(keys(&*other, "leases").len(), 2);
    assert_ne!(one.describe(), other.describe());
}

fn a_missing_file_is_missing_however_it_is_asked_for(ground: &Ground) {
    let store = ground.store();
    for result in [
        store.get("packs/aa/none", 10).map(drop),
        store.open("packs/aa/none").map(drop),
        store.fetch("packs/aa/none").map(drop),
    ] {
        assert!(
            matches!(&result, Err(RepositoryError::Missing(key)) if key == "packs/aa/none"),
            "{result:?}"
        );
    }
}

fn keys_that_lead_elsewhere_are_refused(ground: &Ground) {
    let store = ground.store();
    for key in ["", "/etc/passwd", "../up", "a/../../b", "a//b", "a/", "./a"] {
        assert!(
            matches!(store.put(key, b"x"), Err(RepositoryError::Invalid(_))),
            "{key}"
        );
        assert!(
            matches!(store.get(key, 1), Err(RepositoryError::Invalid(_))),
            "{key}"
        );
        assert!(
            matches!(store.delete(key), Err(RepositoryError::Invalid(_))),
            "{key}"
        );
        assert!(
            matches!(store.replace(key, b"x"), Err(RepositoryError::Invalid(_))),
            "{key}"
        );
        assert!(
            matches!(
                publish(&*store, key, b"x"),
                Err(RepositoryError::Invalid(_))
            ),
            "{key}"
        );
        assert!(
            matches!(store.list(key), Err(RepositoryError::Invalid(_))),
            "{key}"
        );
    }
}

fn only_old_leases_are_abandoned(ground: &Ground) {
    let store = ground.store();
    store.remove_abandoned().unwrap();
    store.put("leases/living", b"{}").unwrap();
    store.remove_abandoned().unwrap();
    assert_eq!(keys(&*store, "leases").len(), 1);
}

fn a_store_that_works_says_so(ground: &Ground) {
    let store = ground.store();
    store.put("config.json", b"{}").unwrap();
    store.check_writable().unwrap();
    store.check_writable().unwrap();
    assert_eq!(store.is_remote(), ground.server.is_some());
    assert_eq!(store.free_bytes().is_none(), ground.server.is_some());
}

fn methods_may_block_inside_of_async_code(ground: &Ground) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let store = ground.store();
        publish(&*store, "packs/aa/x", &noise(9_000_000, 1)).unwrap();
        assert_eq!(
            store.get("packs/aa/x", 10_000_000).unwrap().len(),
            9_000_000
        );
        drop(store);
    });
}
