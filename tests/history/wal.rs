//! WAL beside many backups: where they end is remembered, too.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CStr;
use std::fs;
use std::mem::MaybeUninit;

use jiff::{Timestamp, ToSpan};
use lifeboat::config::Secret;
use lifeboat::repository::Repository;
use lifeboat::repository::keys::Keys;
use lifeboat::repository::session::{ArchiveNotes, BackupNotes, new_id};
use lifeboat::repository::wal::Stretch;
use lifeboat::services::{PointInTime, ServiceKind, ServiceReport};
use rustix::fs::inotify;
use rustix::io::Errno;

use crate::{PASSPHRASE, Place, SETTLED, damage};

const SYSTEM: u64 = 7_100_000_000_000_000_042;
const SEGMENT: u64 = 16 << 20;

fn days_ago(days: i64) -> Timestamp {
    Timestamp::now() - (24 * days).hours()
}

impl Place {
    fn repository(&self) -> Repository {
        let keys = Keys {
            passphrase: Some(Secret::new(PASSPHRASE)),
            ..Keys::none()
        };
        let store = lifeboat::repository::store::LocalStore::new(self.path("repo"));
        Repository::open_or_init(std::sync::Arc::new(store), &keys).unwrap()
    }

    /// A backup of a cluster that ended then, at the end of this segment; its id.
    fn cluster(&self, days: i64, segment: u64) -> String {
        let (at, id) = (days_ago(days), new_id(days_ago(days)));
        fs::create_dir_all(self.path("state")).unwrap();
        let repository = self.repository();
        let backup = repository.begin(&id, &self.path("state"), 1).unwrap();
        let archive = backup.archive("db").unwrap().seal().unwrap();
        let notes = ArchiveNotes {
            kind: ServiceKind::Postgres,
            container: None,
            point: PointInTime::at(at),
            report: ServiceReport {
                version: "17".to_owned(),
                counts: BTreeMap::new(),
                facts: facts(at, segment),
                warnings: Vec::new(),
            },
        };
        backup
            .commit(vec![(archive, notes)], BackupNotes::default())
            .unwrap();
        id
    }

    /// A segment of the cluster's WAL, stored then.
    fn wal(&self, days: i64, segment: u64) -> std::path::PathBuf {
        let stretch = Stretch {
            system: SYSTEM,
            timeline: 1,
            start: segment * SEGMENT,
            end: (segment + 1) * SEGMENT,
            time: days_ago(days).as_millisecond(),
        };
        let bytes = vec![0; usize::try_from(SEGMENT).unwrap()];
        self.repository().put_wal(&stretch, &bytes).unwrap();
        let file = self.path(&format!("repo/{}.age", stretch.name()));
        assert!(file.exists(), "{}", file.display());
        file
    }

    /// Runs it; the backups whose manifests it opened.
    fn opens(&self, args: &[&str]) -> BTreeSet<String> {
        let queue = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
        let mut watched = BTreeMap::new();
        for entry in fs::read_dir(self.path("repo/backups")).unwrap() {
            let dir = entry.unwrap();
            let watch = inotify::add_watch(&queue, dir.path(), inotify::WatchFlags::OPEN).unwrap();
            watched.insert(watch, dir.file_name().into_string().unwrap());
        }
        let output = self.run(args);
        assert!(output.status.success(), "{output:?}");
        let mut space = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&queue, &mut space);
        let mut opened = BTreeSet::new();
        loop {
            let event = match events.next() {
                Ok(event) => event,
                Err(err) => {
                    assert_eq!(err, Errno::WOULDBLOCK);
                    return opened;
                }
            };
            let is_manifest = |name: &CStr| name.to_bytes() == b"manifest.json.age";
            assert!(!event.events().contains(inotify::ReadFlags::QUEUE_OVERFLOW));
            if event.file_name().is_some_and(is_manifest) {
                opened.insert(watched[&event.wd()].clone());
            }
        }
    }
}

fn facts(stopped: Timestamp, segment: u64) -> serde_json::Value {
    let stop = (segment + 1) * SEGMENT;
    serde_json::json!({
        "system_identifier": SYSTEM.to_string(),
        "major": 17,
        "catalog_version": 1,
        "control_version": 1,
        "timeline": 1,
        "start_lsn": "0/1",
        "stop_lsn": format!("{:X}/{:X}", stop >> 32, stop & 0xFFFF_FFFF),
        "stopped": stopped.to_string(),
        "first_segment": "",
        "last_segment": "",
        "wal_segments": 1,
        "wal_segment_bytes": SEGMENT,
        "block_bytes": 8192,
        "page_checksums": false,
        "data_directory": "/pg/data",
        "owner": { "uid": 70, "gid": 70, "mode": 0o700 },
        "tablespaces": [],
        "databases": [],
        "max_connections": "100",
    })
}

#[test]
fn a_night_with_wal_reads_no_manifest_that_is_remembered() {
    let place = Place::new();
    let clusters = [(3, 7), (2, 8), (1, 9)];
    let mut old: BTreeSet<String> = clusters
        .map(|(days, segment)| place.cluster(days, segment))
        .into();
    old.extend(place.nights(0..3));
    let kept = place.wal(1, 9);
    std::thread::sleep(SETTLED);
    let learning = place.opens(&["backup"]);
    assert!(learning.is_superset(&old), "{learning:?}");
    let night = place.opens(&["backup"]);
    // The backup before, which is younger than what is remembered, is where this one goes on from.
    assert!(night.is_disjoint(&old), "{night:?} of {old:?}");
    assert!(kept.exists());
}

#[test]
fn a_backup_that_was_damaged_since_is_no_beginning_of_a_recovery() {
    let place = Place::new();
    place.cluster(20, 1);
    let newer = place.cluster(9, 5);
    let (before, after) = (place.wal(10, 4), place.wal(1, 6));
    std::thread::sleep(SETTLED);
    // Learns where they end, and drops nothing.
    let told = place.run(&["prune", "--dry-run"]);
    let said = String::from_utf8(told.stdout.clone()).unwrap();
    assert!(said.contains("16.8 MB of WAL"), "{told:?}");

    let whole = place.copy();
    let within = |file: &std::path::Path| {
        let name = file.strip_prefix(place.path("."));
        whole.path(name.unwrap().to_str().unwrap())
    };
    assert!(whole.run(&["prune"]).status.success());
    assert!(!within(&before).exists());
    assert!(within(&after).exists());

    damage(&place.manifest(&newer));
    let pruned = place.run(&["prune"]);
    assert!(pruned.status.success(), "{pruned:?}");
    assert!(before.exists() && after.exists());
}
