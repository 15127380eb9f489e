//! Clusters that went another way than what is stored: refused, and forgotten by name.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lifeboat::repository::Repository;
use lifeboat::repository::keys::Keys;
use lifeboat::repository::store::LocalStore;
use lifeboat::services::ErrorKind;
use lifeboat::services::postgres::pitr::Target;

use crate::cluster::{Cluster, own, run};
use crate::site::Site;

/// A copy of a cluster's files as they are now.
fn copied(source: &mut Cluster) -> PathBuf {
    source.stop();
    let copy = source.home.path().join("copy");
    run(std::process::Command::new("cp")
        .arg("-a")
        .arg(&source.data)
        .arg(&copy));
    source.start();
    copy
}

/// Goes on from the copy.
fn put_back(source: &mut Cluster, copy: &Path) {
    source.stop();
    std::fs::remove_dir_all(&source.data).unwrap();
    std::fs::rename(copy, &source.data).unwrap();
    own(&source.data, 0o700);
    source.start();
}

#[test]
fn a_server_that_was_put_back_behind_our_back_is_refused() {
    let mut source = Cluster::new();
    source.sql("CREATE TABLE t (id int)");
    let site = Site::new();
    let mut capture = site.capture(&source);
    site.step(&mut capture).unwrap();
    site.place.block_on(capture.close());
    let copy = copied(&mut source);
    source.sql("INSERT INTO t SELECT generate_series(1, 10000)");
    let of_what_is_lost = site.backup(&source);
    let mut capture = site.capture(&source);
    let stored = site.step(&mut capture).unwrap().end;
    site.place.block_on(capture.close());
    put_back(&mut source, &copy);
    let refused = |site: &Site, source: &Cluster| {
        let mut capture = site.capture(source);
        let err = site.step(&mut capture).unwrap_err();
        site.place.block_on(capture.close());
        assert_eq!(err.kind, ErrorKind::Setup);
        assert!(err.message.contains("older state"), "{err}");
    };
    // Shorter than what is stored, then longer, and never the same.
    refused(&site, &source);
    while crate::site::lsn(&source) < stored + 100_000 {
        source.sql("INSERT INTO t SELECT generate_series(1, 1000)");
    }
    refused(&site, &source);

    // What the sentence says is the way on.
    let (ended, said) = site.program(&["pitr", "forget", "--timeline", "1"]);
    assert_eq!(ended, Some(2), "{said}");
    assert!(said.contains("add --yes to drop it"), "{said}");
    refused(&site, &source);
    let (ended, said) = site.program(&["pitr", "forget", "--timeline", "7", "--yes"]);
    assert_eq!(ended, Some(1), "{said}");
    assert!(said.contains("no such WAL of timeline 7"), "{said}");
    let (ended, said) = site.program(&["pitr", "forget", "--timeline", "1", "--yes"]);
    assert_eq!(ended, Some(0), "{said}");
    assert!(said.contains("of WAL of timeline 1"), "{said}");
    assert!(site.repository().wal().unwrap().stretches.is_empty());
    let mut capture = site.capture(&source);
    site.step(&mut capture).unwrap();
    // Its positions fit, and what is in them does not.
    let (from, replay) = site.choose(&Target::Latest, None).unwrap();
    assert_eq!(from.id, of_what_is_lost.id);
    let told = site
        .prepare(&from, replay, &Cluster::empty())
        .err()
        .unwrap();
    assert!(told.message.contains("was put back to before it"), "{told}");
    site.backup(&source);
    source.sql("INSERT INTO t VALUES (-1)");
    site.step(&mut capture).unwrap();
    let restored = site.restore(&Target::Latest, &[]);
    let count = "SELECT count(*) FROM t";
    assert_eq!(restored.number(count), source.number(count));
}

#[test]
fn a_host_that_cannot_read_does_not_go_on_behind_another_branch() {
    let mut source = Cluster::new();
    source.sql("CREATE TABLE t (id int)");
    let site = Site::new();
    let identity = age::x25519::Identity::generate();
    let keys = Keys {
        public_keys: vec![identity.to_public().to_string()],
        state: Some(site.place.state()),
        ..Keys::none()
    };
    let directory = site.place.state().with_file_name("unreadable");
    let open = || {
        let store = Arc::new(LocalStore::new(&directory));
        Arc::new(Repository::open_or_init(store, &keys).unwrap())
    };
    assert!(!open().vault().can_read());
    let step = |source: &Cluster| {
        let mut capture = site.capture_into(source, open());
        let step = site.step(&mut capture);
        site.place.block_on(capture.close());
        step
    };
    step(&source).unwrap();
    let copy = copied(&mut source);
    source.sql("INSERT INTO t SELECT generate_series(1, 10000)");
    let stored = step(&source).unwrap().end;
    // Another capture of the same goes on.
    assert_eq!(step(&source).unwrap().gap, None);

    put_back(&mut source, &copy);
    while crate::site::lsn(&source) < stored + 100_000 {
        source.sql("INSERT INTO t SELECT generate_series(1, 1000)");
    }
    for _ in 0..2 {
        let told = step(&source).unwrap_err();
        assert!(told.message.contains("older state"), "{told}");
    }
}

#[test]
fn only_the_timeline_that_is_named_is_forgotten() {
    let source = Cluster::new();
    source.sql("CREATE TABLE t (id int)");
    let site = Site::new();
    let mut capture = site.capture(&source);
    site.step(&mut capture).unwrap();
    site.backup(&source);
    source.sql("INSERT INTO t VALUES (1)");
    let first_side = crate::site::lsn(&source);
    site.step(&mut capture).unwrap();
    site.place.block_on(capture.close());
    let second = site.restore(&Target::Latest, &[]);
    second.sql("INSERT INTO t VALUES (20)");
    let mut capture = site.capture(&second);
    site.step(&mut capture).unwrap();
    site.place.block_on(capture.close());
    let timelines = || -> Vec<u32> {
        let list = site.repository().wal().unwrap();
        list.timelines(list.systems[0])
    };
    assert_eq!(timelines(), [1, 2]);

    let (ended, said) = site.program(&["pitr", "forget", "--timeline", "2", "--yes"]);
    assert_eq!(ended, Some(0), "{said}");
    assert_eq!(timelines(), [1]);
    let restored = site.restore(&Target::Lsn(first_side), &[]);
    assert_eq!(restored.number("SELECT sum(id) FROM t"), 1);
    assert!(site.choose(&Target::Latest, Some(2)).is_err());
    // The other side begins anew, with a backup of its own.
    let mut capture = site.capture(&second);
    site.step(&mut capture).unwrap();
    site.backup(&second);
    second.sql("INSERT INTO t VALUES (300)");
    site.step(&mut capture).unwrap();
    assert_eq!(timelines(), [1, 2]);
    let restored = site.restore(&Target::Latest, &[]);
    assert_eq!(restored.number("SELECT sum(id) FROM t"), 321);
}

#[test]
fn of_two_clusters_one_has_to_be_named() {
    let (first, second) = (Cluster::new(), Cluster::new());
    let site = Site::new();
    for source in [&first, &second] {
        let mut capture = site.capture(source);
        source.sql("CREATE TABLE t (id int)");
        site.step(&mut capture).unwrap();
        site.place.block_on(capture.close());
    }
    let system =
        |cluster: &Cluster| cluster.text("SELECT system_identifier::text FROM pg_control_system()");
    let (ended, said) = site.program(&["pitr", "forget", "--timeline", "1", "--yes"]);
    assert_eq!(ended, Some(1), "{said}");
    for cluster in [&first, &second] {
        let named = format!("--system {}", system(cluster));
        assert!(said.contains(&named), "\"{named}\" is not in: {said}");
    }
    let doomed = system(&first);
    let named = ["pitr", "forget", "--timeline", "1", "--yes", "--system"];
    let (ended, said) = site.program(&[&named[..], &[&doomed]].concat());
    assert_eq!(ended, Some(0), "{said}");
    let left = site.repository().wal().unwrap().systems;
    assert_eq!(left, [system(&second).parse::<u64>().unwrap()]);
}
