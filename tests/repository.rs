//! The repository through its public face: what goes in comes out, economically, and damage is found.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "repository/damage.rs"]
mod damage;
#[path = "support/notes.rs"]
mod notes;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::process::Command;

use jiff::Timestamp;
use lifeboat::archive::{ArchiveWriter, Cut, EntryMeta, FileOutcome, OnChange};
use lifeboat::repository::Repository;
use lifeboat::repository::lease::usable_packs;
use lifeboat::repository::manifest::Manifest;
use lifeboat::repository::session::{BackupNotes, new_id};
use lifeboat::repository::verify::{Depth, Scope, verify};
use notes::notes;

/// A repository, a state directory and a data directory.
struct Place {
    root: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        for dir in ["state", "data"] {
            std::fs::create_dir(root.path().join(dir)).unwrap();
        }
        Self { root }
    }

    fn repository(&self) -> Repository {
        Repository::open_or_init_local(&self.root.path().join("repo")).unwrap()
    }

    fn data(&self) -> std::path::PathBuf {
        self.root.path().join("data")
    }

    fn backup(&self, write: impl FnOnce(&mut ArchiveWriter)) -> Manifest {
        let repository = self.repository();
        let backup = repository
            .begin(
                &new_id(Timestamp::now()),
                &self.root.path().join("state"),
                3,
            )
            .unwrap();
        let mut archive = backup.archive("files").unwrap();
        write(&mut archive);
        let sealed = archive.seal().unwrap();
        backup
            .commit(vec![(sealed, notes())], BackupNotes::default())
            .unwrap()
    }

    fn read(&self, manifest: &Manifest) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.repository()
            .archive(manifest, &manifest.archives[0])
            .unwrap()
            .read_to_end(&mut bytes)
            .unwrap();
        bytes
    }

    /// What GNU tar makes of the archive.
    fn extracted(&self, manifest: &Manifest) -> BTreeMap<String, Vec<u8>> {
        let dir = tempfile::tempdir().unwrap();
        let tar = dir.path().join("a.tar");
        std::fs::write(&tar, self.read(manifest)).unwrap();
        let out = dir.path().join("out");
        std::fs::create_dir(&out).unwrap();
        let status = Command::new("tar")
            .arg("-xf")
            .arg(&tar)
            .arg("-C")
            .arg(&out)
            .status()
            .unwrap();
        assert!(status.success());
        files_below(&out)
    }
}

fn files_below(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                open.push(entry.path());
            } else {
                let name = entry
                    .path()
                    .strip_prefix(root)
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned();
                found.insert(name, std::fs::read(entry.path()).unwrap());
            }
        }
    }
    found
}

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    })
    .take(len)
    .collect()
}

/// Makes a file look old, so that its times are trusted. Its ctime cannot be set: waits until it is old.
fn settle(path: &Path) {
    use std::os::unix::fs::MetadataExt;
    loop {
        let changed = std::fs::metadata(path).unwrap().ctime();
        if Timestamp::now().as_second() > changed + 3 {
            return;
        }
        std::thread::yield_now();
    }
}

#[test]
fn an_archive_reads_back_and_gnu_tar_extracts_it() {
    let place = Place::new();
    let long = format!("{}/{}", "d".repeat(90), "n".repeat(120));
    let body = noise(3_000_000, 1);
    let meta = EntryMeta {
        mode: 0o640,
        uid: 1,
        gid: 1,
        mtime_secs: 1_700_000_000,
        mtime_nanos: 123_456_789,
        xattrs: vec![],
    };
    let manifest = place.backup(|archive| {
        archive
            .directory(
                "dir",
                &EntryMeta {
                    mode: 0o755,
                    ..meta.clone()
                },
            )
            .unwrap();
        archive.bytes("dir/empty", &meta, b"").unwrap();
        archive.bytes("dir/small", &meta, b"hello").unwrap();
        archive.bytes(&long, &meta, b"long name").unwrap();
        let mut member = archive
            .member("dir/streamed", &meta, body.len() as u64, Cut::Members)
            .unwrap();
        for piece in body.chunks(70_000) {
            member.write(piece).unwrap();
        }
        member.finish().unwrap();
    });
    let expected = BTreeMap::from([
        ("dir/empty".to_owned(), vec![]),
        ("dir/small".to_owned(), b"hello".to_vec()),
        (long, b"long name".to_vec()),
        ("dir/streamed".to_owned(), body),
    ]);
    assert_eq!(place.extracted(&manifest), expected);
    assert_eq!(
        manifest.archives[0].raw_bytes,
        place.read(&manifest).len() as u64
    );
}

#[test]
fn an_unchanged_file_is_neither_read_nor_stored_again() {
    let place = Place::new();
    let big = place.data().join("big");
    std::fs::write(&big, noise(5_000_000, 2)).unwrap();
    settle(&big);
    let write = |archive: &mut ArchiveWriter| {
        archive
            .file("big", &big, Cut::Content, OnChange::ReadAgain)
            .unwrap()
    };
    let first =
        place.backup(|archive| assert_eq!(write(archive), FileOutcome::Read { bytes: 5_000_000 }));
    let second = place
        .backup(|archive| assert_eq!(write(archive), FileOutcome::Spliced { bytes: 5_000_000 }));
    assert_eq!((first.read_bytes, second.read_bytes), (5_000_000, 0));
    assert!(
        second.stored_bytes < 2_000,
        "{} bytes stored",
        second.stored_bytes
    );
    assert_eq!(place.extracted(&second), files_below(&place.data()));
    assert!(first.archives[0].stream_xxh3.is_some() && second.archives[0].stream_xxh3.is_none());
}

#[test]
fn changed_pages_alone_are_stored_and_the_rest_is_shared() {
    let place = Place::new();
    let path = place.data().join("relation");
    let mut body = noise(4_000_000 / 8192 * 8192, 3);
    let write = |archive: &mut ArchiveWriter| {
        archive
            .file("relation", &path, Cut::Pages(8192), OnChange::Repaired)
            .unwrap();
    };
    std::fs::write(&path, &body).unwrap();
    let first = place.backup(write);
    for page in [3, 100, 101, 300] {
        body[page * 8192 + 77] ^= 1;
    }
    body.extend_from_slice(&noise(8192, 4));
    std::fs::write(&path, &body).unwrap();
    let second = place.backup(write);
    assert!(first.stored_bytes > 3_900_000);
    assert!(
        (5 * 8192..6 * 8192).contains(&second.stored_bytes),
        "{} bytes stored",
        second.stored_bytes
    );
    assert_eq!(place.extracted(&second)["relation"], body);
    // A third one compares with the second, whose pages lie in two packs.
    body.truncate(200 * 8192);
    body[5 * 8192] ^= 1;
    std::fs::write(&path, &body).unwrap();
    let third = place.backup(write);
    assert!(
        third.stored_bytes < 3 * 8192,
        "{} bytes stored",
        third.stored_bytes
    );
    assert_eq!(place.extracted(&third)["relation"], body);
}

/// Known and new blocks in every mixture, bodies that end anywhere, and entries of other kinds between them.
#[test]
fn files_in_blocks_of_one_length_come_back_whatever_changes() {
    const UNIT: usize = 8192;
    let place = Place::new();
    let mut state = 11u64;
    let mut next = move |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % below
    };
    let cuts = [
        ("1-content", Cut::Content, 90_000),
        ("2-pages", Cut::Pages(8192), 3_000_000),
        ("3-model", Cut::Model, 2_500_000),
        ("4-pages", Cut::Pages(8192), 1_200_000),
        ("5-blocks", Cut::Blocks(8192), 700_000),
        ("6-content", Cut::Content, 150_000),
        ("7-pages", Cut::Pages(8192), 600_000),
    ];
    let mut bodies = cuts.map(|(_, _, length)| noise(length, length as u64));
    // How many of a hundred blocks change.
    for share in [100, 0, 1, 3, 50, 97, 100, 10] {
        let mut changed_bytes = 0;
        for ((_, cut, _), body) in cuts.iter().zip(&mut bodies) {
            let unit = if *cut == Cut::Model { 1 << 20 } else { UNIT };
            for block in body.chunks_mut(unit) {
                if next(100) < share {
                    block[next(block.len())] ^= 1 << next(8);
                    changed_bytes += unit;
                }
            }
            // Its end moves, too, to any byte.
            let length = match next(3) {
                0 => body.len() - next(2 * UNIT),
                1 => body.len() + next(2 * UNIT),
                _ => body.len(),
            };
            if length != body.len() {
                changed_bytes += 3 * unit;
            }
            body.resize(length, u8::try_from(next(256)).unwrap());
        }
        let files: Vec<_> = cuts.iter().zip(&bodies).collect();
        let night = place.backup(|archive| {
            for ((name, cut, _), body) in &files {
                let path = place.data().join(name);
                std::fs::write(&path, body).unwrap();
                archive.file(name, &path, *cut, OnChange::Repaired).unwrap();
            }
        });
        let extracted = place.extracted(&night);
        for ((name, _, _), body) in &files {
            assert!(extracted[*name] == **body, "{name} at {share} %");
        }
        let read = place.read(&night);
        if let Some(told) = &night.archives[0].stream_xxh3 {
            let found = xxhash_rust::xxh3::xxh3_128(&read);
            assert_eq!(*told, format!("{found:032x}"));
        }
        // What did not change is not stored again, but for headers and what is cut by content.
        assert!(
            night.stored_bytes < changed_bytes as u64 + 600_000,
            "{} bytes stored, {changed_bytes} changed, {share} %",
            night.stored_bytes
        );
    }
}

#[test]
fn copies_of_a_small_database_file_are_stored_once() {
    let place = Place::new();
    let body = noise(40 * 8192, 8);
    let write = |archive: &mut ArchiveWriter| {
        for name in ["base/1/1255", "base/4/1255", "base/5/1255"] {
            let path = place.data().join(name);
            archive
                .file(name, &path, Cut::Pages(8192), OnChange::Repaired)
                .unwrap();
        }
    };
    for name in ["base/1", "base/4", "base/5"] {
        std::fs::create_dir_all(place.data().join(name)).unwrap();
        std::fs::write(place.data().join(name).join("1255"), &body).unwrap();
    }
    let first = place.backup(write);
    assert!(
        (body.len() as u64..body.len() as u64 + 16_384).contains(&first.stored_bytes),
        "{} bytes stored",
        first.stored_bytes
    );
    let mut changed = body.clone();
    changed[20 * 8192] ^= 1;
    std::fs::write(place.data().join("base/5/1255"), &changed).unwrap();
    let second = place.backup(write);
    assert!(
        (8192..16_384).contains(&second.stored_bytes),
        "{} bytes stored",
        second.stored_bytes
    );
    assert_eq!(place.extracted(&second)["base/5/1255"], changed);
    assert_eq!(place.extracted(&second)["base/4/1255"], body);
}

#[test]
fn without_the_cache_a_backup_is_complete_and_known_good() {
    let place = Place::new();
    std::fs::write(place.data().join("a"), noise(100_000, 5)).unwrap();
    let tree = |archive: &mut ArchiveWriter| {
        archive
            .tree(
                "",
                &place.data(),
                &lifeboat::archive::walk::Rules::default(),
            )
            .unwrap();
    };
    place.backup(tree);
    std::fs::remove_dir_all(place.root.path().join("state")).unwrap();
    std::fs::create_dir(place.root.path().join("state")).unwrap();
    let second = place.backup(tree);
    assert_eq!(place.extracted(&second), files_below(&place.data()));
    let report = verify(
        &place.repository(),
        &Scope::Everything,
        Depth::Full,
        |_, _| {},
    )
    .unwrap();
    assert!(report.is_good(), "{report:?}");
}

#[test]
fn a_scattered_archive_keeps_its_long_list_of_ranges_as_blocks() {
    let place = Place::new();
    let path = place.data().join("relation");
    let mut body = noise(3000 * 1024, 6);
    let write = |archive: &mut ArchiveWriter| {
        archive
            .file("relation", &path, Cut::Pages(1024), OnChange::Repaired)
            .unwrap();
    };
    std::fs::write(&path, &body).unwrap();
    place.backup(write);
    for page in (0..3000).step_by(2) {
        body[page * 1024] ^= 1;
    }
    std::fs::write(&path, &body).unwrap();
    let second = place.backup(write);
    let ranges = place
        .root
        .path()
        .join("repo/backups")
        .join(&second.id)
        .join("files.ranges");
    let text = std::fs::read_to_string(ranges).unwrap();
    assert!(
        text.starts_with("# lifeboat ranges 1 depth 1\n") && text.len() < 2000,
        "{text}"
    );
    assert_eq!(place.extracted(&second)["relation"], body);
}

#[test]
fn recover_sh_rebuilds_every_archive_byte_for_byte() {
    let place = Place::new();
    let path = place.data().join("relation");
    let mut body = noise(3000 * 1024, 7);
    let mut manifests = Vec::new();
    for round in 0..3 {
        for page in (round..3000).step_by(2 + round) {
            body[page * 1024] ^= 1;
        }
        std::fs::write(&path, &body).unwrap();
        std::fs::write(
            place.data().join(format!("text {round}")),
            "line of text\n".repeat(10_000),
        )
        .unwrap();
        manifests.push(place.backup(|archive| {
            archive
                .file("relation", &path, Cut::Pages(1024), OnChange::Repaired)
                .unwrap();
            archive
                .tree(
                    "tree",
                    &place.data(),
                    &lifeboat::archive::walk::Rules::default(),
                )
                .unwrap();
        }));
    }
    let script = place.root.path().join("repo/RECOVER.sh");
    for manifest in &manifests {
        let out = Command::new("sh")
            .arg(&script)
            .args([&manifest.id, "files"])
            .output()
            .unwrap();
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
        assert!(
            out.stdout == place.read(manifest),
            "{} differs",
            manifest.id
        );
    }
    let listed = Command::new("sh").arg(&script).output().unwrap();
    let ids: Vec<_> = manifests.iter().map(|m| m.id.as_str()).collect();
    let mut listed: Vec<_> = std::str::from_utf8(&listed.stdout)
        .unwrap()
        .lines()
        .collect();
    listed.sort_unstable();
    let mut sorted = ids.clone();
    sorted.sort_unstable();
    assert_eq!(listed, sorted);
    for pack in usable_packs(place.repository().vault()).unwrap() {
        let file = place.root.path().join("repo").join(pack.key());
        assert!(
            Command::new("zstd")
                .args(["-tq"])
                .arg(file)
                .status()
                .unwrap()
                .success()
        );
    }
}

#[test]
fn a_backup_that_is_given_up_leaves_nothing_listed() {
    let place = Place::new();
    let repository = place.repository();
    let backup = repository
        .begin(
            "20260101T000000Z-abcdef",
            &place.root.path().join("state"),
            3,
        )
        .unwrap();
    let mut archive = backup.archive("files").unwrap();
    archive
        .bytes("a", &EntryMeta::default(), &noise(500_000, 9))
        .unwrap();
    drop(archive);
    drop(backup);
    assert!(repository.backups().unwrap().is_empty());
    assert!(matches!(repository.resolve("latest"), Err(e) if e.to_string().contains("empty")));
    // The cache must not believe in blocks that were never published.
    let manifest = place.backup(|archive| {
        archive
            .bytes("a", &EntryMeta::default(), &noise(500_000, 9))
            .unwrap();
    });
    assert_eq!(place.extracted(&manifest)["a"], noise(500_000, 9));
}

#[test]
fn archives_written_side_by_side_share_blocks_in_whatever_order_they_are_sealed() {
    let place = Place::new();
    let repository = place.repository();
    let state = place.root.path().join("state");
    let backup = repository
        .begin("20260101T000000Z-abcdef", &state, 3)
        .unwrap();
    let mut archives = ["first", "second"].map(|name| backup.archive(name).unwrap());
    for archive in &mut archives {
        archive
            .bytes("a", &EntryMeta::default(), &noise(100_000, 10))
            .unwrap();
    }
    let [first, second] = archives.map(|archive| archive.end().unwrap());
    // Its blocks are all in the other's pack.
    let sealed = [second, first].map(|archive| (archive.seal().unwrap(), notes()));
    let manifest = backup
        .commit(sealed.into(), BackupNotes::default())
        .unwrap();
    let stored: Vec<_> = manifest.archives.iter().map(|a| a.stored_bytes).collect();
    assert!(stored[0] == 0 && stored[1] > 100_000, "{stored:?}");
    let scope = Scope::Everything;
    assert!(
        verify(&repository, &scope, Depth::Full, |_, _| {})
            .unwrap()
            .is_good()
    );
}

#[test]
fn archives_that_outlive_their_backup_end_without_waiting_for_each_other() {
    let (done, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let place = Place::new();
        let repository = place.repository();
        let mut archives = Vec::new();
        let backup = repository
            .begin(
                "20260101T000000Z-abcdef",
                &place.root.path().join("state"),
                3,
            )
            .unwrap();
        for name in ["one", "two"] {
            let mut archive = backup.archive(name).unwrap();
            archive
                .bytes("a", &EntryMeta::default(), &noise(900_000, 13))
                .unwrap();
            archives.push(archive);
        }
        drop(backup);
        drop(archives);
        done.send(repository.store().list("leases").unwrap().len())
            .unwrap();
    });
    let leases = ended
        .recv_timeout(std::time::Duration::from_mins(1))
        .expect("the archives wait for each other");
    assert_eq!(leases, 0);
}
