//! What unpacking puts on disk, and what it refuses to.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "unpack/hostile.rs"]
mod hostile;
#[path = "support/tarball.rs"]
mod tarball;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use lifeboat::archive::unpack::{UnpackError, UnpackOptions, UnpackReport, unpack};
use lifeboat::archive::walk::Rules;
use lifeboat::repository::Repository;
use lifeboat::repository::session::{ArchiveNotes, BackupNotes, new_id};
use lifeboat::services::{PointInTime, ServiceKind, ServiceReport};
use tarball::{Fields, Tarball};
use tempfile::TempDir;

/// A directory with a target in it and something beside it that must never change.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        Self::below(&std::env::temp_dir())
    }

    fn below(dir: &Path) -> Self {
        let dir = TempDir::new_in(dir).unwrap();
        fs::create_dir(dir.path().join("target")).unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        fs::write(dir.path().join("outside/kept"), "kept").unwrap();
        Self { dir }
    }

    fn target(&self) -> std::path::PathBuf {
        self.dir.path().join("target")
    }

    async fn unpack(&self, tar: &[u8]) -> Result<UnpackReport, UnpackError> {
        self.unpack_with(tar, &UnpackOptions::default()).await
    }

    async fn unpack_with(
        &self,
        tar: &[u8],
        options: &UnpackOptions,
    ) -> Result<UnpackReport, UnpackError> {
        let result = unpack(tar, &self.target(), options).await;
        self.assert_outside_untouched();
        result
    }

    fn assert_outside_untouched(&self) {
        let names: Vec<_> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(names.len(), 2, "something landed outside: {names:?}");
        let outside = self.dir.path().join("outside");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
        assert_eq!(fs::read(outside.join("kept")).unwrap(), b"kept");
    }

    /// Unpacks what must be refused, and returns the sentence.
    async fn refused(&self, tar: &[u8]) -> String {
        match self.unpack(tar).await {
            Err(error @ UnpackError::Unsafe { .. }) => error.to_string(),
            other => panic!("not refused: {other:?}"),
        }
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn files_directories_and_links_come_back_as_recorded() {
    let place = Place::new();
    let setuid = Fields {
        mode: 0o4751,
        size: 3,
        ..Fields::new(b'0')
    };
    let closed = Fields {
        mode: 0o500,
        mtime: 1_600_000_000,
        ..Fields::new(b'5')
    };
    let big = vec![7u8; 3 * 1024 * 1024 + 17];
    let tar = Tarball::new()
        .raw(b"closed/", &closed, b"")
        .directory("closed/inner/")
        .file("closed/inner/big", &big)
        .file("empty", b"")
        .pax(&[("mtime", b"1500000000.123456789")])
        .raw(b"setuid", &setuid, b"abc")
        .symlink("closed/inner/link", "../../empty")
        .hard_link("again", "closed/inner/big")
        .end();
    let report = place.unpack(&tar).await.unwrap();
    assert_eq!(
        report,
        UnpackReport {
            files: 3,
            bytes: big.len() as u64 + 3,
            directories: 2,
            symlinks: 1,
            hard_links: 1,
            xattrs_refused: 0,
        }
    );
    let target = place.target();
    assert_eq!(fs::read(target.join("closed/inner/big")).unwrap(), big);
    assert_eq!(fs::read(target.join("empty")).unwrap(), b"");
    let meta = fs::metadata(target.join("setuid")).unwrap();
    assert_eq!(meta.mode() & 0o7777, 0o4751);
    assert_eq!(
        (meta.mtime(), meta.mtime_nsec()),
        (1_500_000_000, 123_456_789)
    );
    let closed = fs::metadata(target.join("closed")).unwrap();
    assert_eq!(closed.mode() & 0o7777, 0o500);
    assert_eq!(closed.mtime(), 1_600_000_000);
    // A link was made in it after everything else, and its time is the recorded one all the same.
    let inner = fs::metadata(target.join("closed/inner")).unwrap();
    assert_eq!(
        (inner.mode() & 0o7777, inner.mtime()),
        (0o755, 1_700_000_000)
    );
    let link = target.join("closed/inner/link");
    assert_eq!(fs::read_link(&link).unwrap(), Path::new("../../empty"));
    assert_eq!(fs::symlink_metadata(&link).unwrap().mtime(), 1_700_000_000);
    let (a, b) = (
        fs::metadata(target.join("again")).unwrap(),
        fs::metadata(target.join("closed/inner/big")).unwrap(),
    );
    assert_eq!((a.ino(), a.nlink()), (b.ino(), 2));
}

#[tokio::test]
async fn owners_come_back_and_can_be_replaced() {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test gives files away, which needs root"
    );
    let owned = |kind, link: &str| Fields {
        uid: 999,
        gid: 70,
        link: link.into(),
        ..Fields::new(kind)
    };
    let tar = Tarball::new()
        .raw(b"./", &owned(b'5', ""), b"")
        .raw(b"d/", &owned(b'5', ""), b"")
        .raw(b"d/f", &owned(b'0', ""), b"")
        .raw(b"d/l", &owned(b'2', "nowhere"), b"")
        .file("implied/f", b"")
        .end();
    for (owner, expected) in [(None, (999, 70)), (Some((1000, 1001)), (1000, 1001))] {
        let place = Place::new();
        let options = UnpackOptions {
            owner,
            ..UnpackOptions::default()
        };
        place.unpack_with(&tar, &options).await.unwrap();
        for name in ["", "d", "d/f", "d/l"] {
            let meta = fs::symlink_metadata(place.target().join(name)).unwrap();
            assert_eq!((meta.uid(), meta.gid()), expected, "{name}");
        }
        let implied = fs::metadata(place.target().join("implied")).unwrap();
        assert_eq!(implied.uid(), owner.map_or(0, |(uid, _)| uid));
        assert_eq!(implied.mode() & 0o7777, 0o755);
    }
}

#[tokio::test]
async fn long_names_and_names_that_are_not_text_come_back() {
    use std::os::unix::ffi::OsStrExt;
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(250));
    let raw = b"caf\xe9";
    let tar = Tarball::new()
        .pax(&[("path", long.as_bytes())])
        .file("short", b"long")
        .raw(raw, &Fields::new(b'0'), b"")
        .end();
    let place = Place::new();
    place.unpack(&tar).await.unwrap();
    assert_eq!(fs::read(place.target().join(&long)).unwrap(), b"long");
    assert!(
        place
            .target()
            .join(std::ffi::OsStr::from_bytes(raw))
            .exists()
    );
}

#[tokio::test]
async fn a_directory_described_after_its_files_is_described_once() {
    let late = Fields {
        mode: 0o750,
        ..Fields::new(b'5')
    };
    let tar = Tarball::new()
        .file("a/b/c", b"1")
        .raw(b"a/", &late, b"")
        .raw(b"a/b/", &late, b"");
    let place = Place::new();
    place.unpack(&tar.clone().end()).await.unwrap();
    for name in ["a", "a/b"] {
        let meta = fs::metadata(place.target().join(name)).unwrap();
        assert_eq!(meta.mode() & 0o7777, 0o750, "{name}");
    }
    let sentence = Place::new().refused(&tar.directory("a/").end()).await;
    assert!(sentence.contains("twice"), "{sentence}");
}

#[tokio::test]
async fn attributes_come_back_or_are_counted() {
    let tar = Tarball::new()
        .pax(&[
            ("SCHILY.xattr.user.note", b"one\ntwo\0three"),
            ("SCHILY.xattr.nonsense.note", b"x"),
        ])
        .file("f", b"")
        .pax(&[
            ("SCHILY.xattr.user.d", b"dir"),
            ("LIFEBOAT.empty-xattr.user.e", b"1"),
        ])
        .directory("d/")
        .end();
    let place = Place::new();
    let report = place.unpack(&tar).await.unwrap();
    assert_eq!(report.xattrs_refused, 1);
    let f = place.target().join("f");
    assert_eq!(
        xattr::get(&f, "user.note").unwrap().unwrap(),
        b"one\ntwo\0three"
    );
    let d = place.target().join("d");
    assert_eq!(xattr::get(&d, "user.d").unwrap().unwrap(), b"dir");
    assert_eq!(xattr::get(&d, "user.e").unwrap().unwrap(), b"");
}

#[tokio::test]
async fn only_what_is_asked_for_is_written() {
    let tar = Tarball::new()
        .directory("a/")
        .directory("a/b/")
        .file("a/b/wanted", b"1")
        .file("a/other", &[1; 5000])
        .directory("c/")
        .file("c/d", b"2")
        .file("e", b"3")
        .end();
    let place = Place::new();
    let options = UnpackOptions {
        only: vec!["a/b/".to_owned(), "e".to_owned()],
        ..UnpackOptions::default()
    };
    let report = place.unpack_with(&tar, &options).await.unwrap();
    assert_eq!(report.files, 2);
    assert_eq!(names(&place.target()), ["a", "e"]);
    assert_eq!(names(&place.target().join("a")), ["b"]);
    assert_eq!(fs::read(place.target().join("a/b/wanted")).unwrap(), b"1");
}

#[tokio::test]
async fn what_is_published_last_is_not_there_before_the_end() {
    let options = UnpackOptions {
        publish_last: vec!["global/pg_control".to_owned()],
        ..UnpackOptions::default()
    };
    let tar = Tarball::new()
        .directory("global/")
        .file("global/pg_control", b"control")
        .file("base", &[1; 1000]);
    let place = Place::new();
    place
        .unpack_with(&tar.clone().end(), &options)
        .await
        .unwrap();
    let global = place.target().join("global");
    assert_eq!(names(&global), ["pg_control"]);
    assert_eq!(fs::read(global.join("pg_control")).unwrap(), b"control");
    assert_eq!(fs::metadata(&global).unwrap().mtime(), 1_700_000_000);

    let place = Place::new();
    place.unpack_with(&tar.cut(), &options).await.unwrap_err();
    assert!(!place.target().join("global/pg_control").exists());
}

#[tokio::test]
async fn a_target_that_is_not_an_empty_directory_is_left_alone() {
    let tar = Tarball::new().file("a", b"1").end();
    let place = Place::new();
    fs::write(place.target().join("mine"), "mine").unwrap();
    let error = place.unpack(&tar).await.unwrap_err();
    assert!(error.to_string().contains("not empty"), "{error}");
    assert_eq!(names(&place.target()), ["mine"]);
    let options = UnpackOptions::default();
    unpack(&tar[..], &place.dir.path().join("missing"), &options)
        .await
        .unwrap_err();
    let link = place.target().join("link");
    std::os::unix::fs::symlink("../outside", &link).unwrap();
    unpack(&tar[..], &link, &options).await.unwrap_err();
    place.assert_outside_untouched();
}

#[tokio::test]
async fn very_many_directories_and_links_spill_to_disk() {
    let mut tar = Tarball::new();
    let name = "n".repeat(80);
    for i in 0..20_000 {
        tar = tar.directory(&format!("{i:05}{name}/"));
        tar = tar.symlink(&format!("{i:05}{name}/l"), &name);
    }
    // In memory, where there is such a filesystem: what a disk takes for it is of no interest.
    let shm = Path::new("/dev/shm");
    let place = if shm.is_dir() {
        Place::below(shm)
    } else {
        Place::new()
    };
    let report = place.unpack(&tar.end()).await.unwrap();
    assert_eq!((report.directories, report.symlinks), (20_000, 20_000));
    let shown = names(&place.target());
    assert_eq!(shown.len(), 20_000);
    for name in [&shown[0], &shown[19_999]] {
        let dir = place.target().join(name);
        assert_eq!(fs::metadata(&dir).unwrap().mtime(), 1_700_000_000);
        assert!(fs::symlink_metadata(dir.join("l")).unwrap().is_symlink());
    }
}

/// Every path below a directory with kind, mode, owner, time, link target and content.
fn listing(root: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(path) = waiting.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let what = if meta.is_dir() {
            waiting.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
            "directory".to_owned()
        } else if meta.is_symlink() {
            format!("link to {}", fs::read_link(&path).unwrap().display())
        } else {
            format!("{:x?}", fs::read(&path).unwrap())
        };
        let attributes: Vec<_> = xattr::list(&path)
            .unwrap()
            .map(|name| (name.clone(), xattr::get(&path, &name).unwrap()))
            .collect();
        found.insert(
            path.strip_prefix(root).unwrap().display().to_string(),
            format!(
                "{:o} {}:{} {}.{} {attributes:?} {what}",
                meta.mode(),
                meta.uid(),
                meta.gid(),
                meta.mtime(),
                meta.mtime_nsec()
            ),
        );
    }
    found
}

/// Everything a backup can meet, in one tree.
fn varied_tree(root: &Path) {
    fs::create_dir_all(root.join("deep/er")).unwrap();
    fs::create_dir(root.join("pg_twophase")).unwrap();
    fs::write(root.join("deep/er/file"), vec![3; 70_000]).unwrap();
    fs::write(root.join("n".repeat(180)), "long").unwrap();
    fs::hard_link(root.join("deep/er/file"), root.join("deep/again")).unwrap();
    std::os::unix::fs::symlink("x".repeat(150), root.join("link")).unwrap();
    xattr::set(root.join("deep/er/file"), "user.a", b"b\nc").unwrap();
    fs::set_permissions(root.join("deep/er"), fs::Permissions::from_mode(0o2550)).unwrap();
}

#[tokio::test]
async fn what_a_backup_holds_comes_back_the_same() {
    let place = Place::new();
    let source = TempDir::new().unwrap();
    let root = source.path().join("data");
    varied_tree(&root);
    let repository = Repository::open_or_init_local(&source.path().join("repo")).unwrap();
    let id = new_id(jiff::Timestamp::now());
    let backup = repository.begin(&id, source.path(), 3).unwrap();
    let mut archive = backup.archive("data").unwrap();
    archive.tree("", &root, &Rules::default()).unwrap();
    let notes = ArchiveNotes {
        kind: ServiceKind::Volume,
        container: None,
        point: PointInTime::at(jiff::Timestamp::UNIX_EPOCH),
        report: ServiceReport {
            version: String::new(),
            counts: BTreeMap::new(),
            facts: serde_json::Value::Null,
            warnings: Vec::new(),
        },
    };
    let manifest = backup
        .commit(
            vec![(archive.seal().unwrap(), notes)],
            BackupNotes::default(),
        )
        .unwrap();
    let stream = repository
        .archive(&manifest, &manifest.archives[0])
        .unwrap();
    unpack(
        stream.into_async(),
        &place.target(),
        &UnpackOptions::default(),
    )
    .await
    .unwrap();
    // The archive of a tree does not hold its root.
    let (mut found, mut expected) = (listing(&place.target()), listing(&root));
    found.remove("");
    expected.remove("");
    assert_eq!(found, expected);
}

#[tokio::test]
async fn what_gnu_tar_packs_comes_back_the_same() {
    let place = Place::new();
    let source = TempDir::new().unwrap();
    let root = source.path().join("data");
    varied_tree(&root);
    let packed = Command::new("tar")
        .args([
            "--create",
            "--format=posix",
            "--xattrs",
            "--file=-",
            "--directory",
        ])
        .arg(&root)
        .arg(".")
        .output()
        .unwrap();
    assert!(packed.status.success(), "{packed:?}");
    place.unpack(&packed.stdout).await.unwrap();
    assert_eq!(listing(&place.target()), listing(&root));
}
