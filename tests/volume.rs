//! Plain directories and the project's own files, through a real repository and back.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "adapters/place.rs"]
mod place;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use lifeboat::restore::{Restore, Way};
use lifeboat::services::project::{Project, ProjectRestore};
use lifeboat::services::volume::{Volume, VolumeRestore};
use lifeboat::services::{ErrorKind, Service, ServiceKind};
use lifeboat::stack::StackService;
use place::{Place, files_below, mount, service};

fn volume(root: &Path) -> StackService {
    let mut found = service(ServiceKind::Volume, "files");
    found.mounts = vec![mount("/srv/files", root)];
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_entry_comes_back_as_it_was() {
    let place = Place::new();
    let root = place.path("data/files");
    std::fs::create_dir_all(root.join("sub/empty")).unwrap();
    std::fs::write(root.join("plain"), "plain text").unwrap();
    std::fs::hard_link(root.join("plain"), root.join("sub/link")).unwrap();
    symlink("../plain", root.join("sub/sym")).unwrap();
    let odd = OsStr::from_bytes(b"na\xefve \xff");
    std::fs::write(root.join(odd), "odd").unwrap();
    let long = "n".repeat(200);
    std::fs::write(root.join("sub").join(&long), "long").unwrap();
    let sparse = std::fs::File::create(root.join("hole")).unwrap();
    sparse.set_len(3_000_000).unwrap();
    std::fs::set_permissions(root.join("plain"), std::fs::Permissions::from_mode(0o4640)).unwrap();
    std::os::unix::fs::chown(root.join("hole"), Some(70), Some(71)).unwrap();
    xattr::set(root.join("plain"), "user.note", b"kept\0whole").unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();

    let mut files = Volume::new(&place.config(&[]), &volume(&root)).unwrap();
    assert!(files.estimate().await >= 3_000_000);
    let manifest = place.backup(&mut files).await.unwrap();
    let report = &manifest.archives[0].report;
    assert_eq!(
        report.counts,
        [("files".to_owned(), 5), ("directories".to_owned(), 2)].into()
    );
    assert!(
        report.warnings[0].contains("1 sockets"),
        "{:?}",
        report.warnings
    );

    let out = place.path("out");
    place.extract(&manifest, &out);
    assert_eq!(files_below(&out), files_below(&root));
    assert_eq!(std::fs::read(out.join(odd)).unwrap(), b"odd");
    assert_eq!(
        std::fs::read_link(out.join("sub/sym")).unwrap(),
        Path::new("../plain")
    );
    assert!(out.join("sub/empty").is_dir());
    let (plain, link) = (
        out.join("plain").metadata().unwrap(),
        out.join("sub/link").metadata().unwrap(),
    );
    assert_eq!((plain.ino(), plain.nlink()), (link.ino(), 2));
    assert_eq!(plain.mode() & 0o7777, 0o4640);
    let original = root.join("plain").metadata().unwrap();
    assert_eq!(
        (plain.mtime(), plain.mtime_nsec()),
        (original.mtime(), original.mtime_nsec())
    );
    assert_eq!(
        xattr::get(out.join("plain"), "user.note").unwrap().unwrap(),
        b"kept\0whole"
    );
    let hole = out.join("hole").metadata().unwrap();
    assert_eq!((hole.uid(), hole.gid()), (70, 71));

    let restore = VolumeRestore::new(&place.config(&[]), &volume(&root)).unwrap();
    assert_eq!(restore.way(), Way::Swap { root });
}

#[tokio::test(flavor = "multi_thread")]
async fn repository_inside_the_directory_and_excluded_paths_are_left_out() {
    let place = Place::new();
    let root = place.root.path().to_owned();
    std::fs::write(root.join("data/keep.txt"), "keep").unwrap();
    std::fs::write(root.join("data/drop.log"), "drop").unwrap();
    let repository = place.path("repo");
    let config = place.config(&[
        ("LIFEBOAT_REPOSITORY", repository.to_str().unwrap()),
        ("LIFEBOAT_STATE", place.path("state").to_str().unwrap()),
        ("BACKUP_EXCLUDE_REGEXP", r"\.log$"),
    ]);
    place.repository();
    let mut files = Volume::new(&config, &volume(&root)).unwrap();
    let manifest = place.backup(&mut files).await.unwrap();
    place.extract(&manifest, &place.path("out"));
    let names: Vec<_> = files_below(&place.path("out")).into_keys().collect();
    assert_eq!(names, ["data/keep.txt"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_directory_is_an_error_that_names_it() {
    let place = Place::new();
    let gone = place.path("data/gone");
    let mut files = Volume::new(&place.config(&[]), &volume(&gone)).unwrap();
    let error = place.backup(&mut files).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Io);
    assert!(error.message.contains("data/gone"), "{error}");
    assert!(files.check().await[0].outcome.is_err());
    let nothing = service(ServiceKind::Volume, "files");
    assert_eq!(
        Volume::new(&place.config(&[]), &nothing).unwrap_err().kind,
        ErrorKind::Setup
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn project_keeps_its_own_files_and_not_the_data_beside_them() {
    let place = Place::new();
    let project = place.path("project");
    std::fs::create_dir_all(project.join("data/postgres")).unwrap();
    std::fs::create_dir_all(project.join("sub")).unwrap();
    for (name, text) in [
        (
            ".env",
            "PASSWORD=x\nCOMPOSE_FILE=docker-compose.yml:sub/gpu.yml\n",
        ),
        ("docker-compose.yml", "services: {}"),
        ("compose.override.yml", "services: {}"),
        ("sub/gpu.yml", "services: {}"),
        ("data/postgres/docker-compose.yml", "not the project's"),
        ("README.md", "no"),
    ] {
        std::fs::write(project.join(name), text).unwrap();
    }
    let found = service(ServiceKind::Project, "project");
    let config = place.config(&[]);
    let mut backup = Project::new(&config, &found).unwrap();
    let manifest = place.backup(&mut backup).await.unwrap();
    let out = place.path("out");
    place.extract(&manifest, &out);
    let names: Vec<_> = files_below(&out).into_keys().collect();
    assert_eq!(
        names,
        [
            ".env",
            "compose.override.yml",
            "docker-compose.yml",
            "sub/gpu.yml"
        ]
    );
    assert_eq!(out.join(".env").metadata().unwrap().mode() & 0o777, 0o600);

    // One file is lost, one has been changed since.
    std::fs::remove_file(project.join("sub/gpu.yml")).unwrap();
    std::fs::write(project.join(".env"), "PASSWORD=new").unwrap();
    let present = files_below(&project);
    let (reader, record) = place.archive(&manifest);
    let mut restore = ProjectRestore::new(&config, &found).unwrap();
    let run = place.run();
    restore.apply(reader, &record, &run).await.unwrap();
    let restored = files_below(&project);
    assert_eq!(restored["sub/gpu.yml"], b"services: {}");
    assert_eq!(restored[".env"], b"PASSWORD=new");
    assert!(restored[&format!(".env.restored-{}", run.run_id)].starts_with(b"PASSWORD=x"));
    assert_eq!(restored.len(), present.len() + 2);
    restore.rollback().await.unwrap();
    assert_eq!(files_below(&project), present);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_too_large_for_a_project_is_refused() {
    let place = Place::new();
    let project = place.path("project");
    std::fs::create_dir(&project).unwrap();
    std::fs::write(project.join("compose.yml"), vec![b'#'; 2 << 20]).unwrap();
    let found = service(ServiceKind::Project, "project");
    let mut backup = Project::new(&place.config(&[]), &found).unwrap();
    let error = place.backup(&mut backup).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Setup);
    assert!(error.message.contains("compose.yml"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_swaps_a_directory_for_a_link_leads_no_backup_out_of_its_own() {
    let place = Place::new();
    let (root, outside) = (place.path("data/files"), place.path("outside"));
    let storage = root.join("storage");
    for (top, text) in [(&storage, "own"), (&outside, "secret")] {
        std::fs::create_dir_all(top.join("deep")).unwrap();
        std::fs::write(top.join("later"), text).unwrap();
        std::fs::write(top.join("deep/later"), text).unwrap();
    }
    let large = storage.join("a large file");
    let file = std::fs::File::create(&large).unwrap();
    file.set_len(256 << 20).unwrap();
    drop(file);

    // While the first file is read, its directory goes away and a link out of the tree takes its place.
    let swapper = std::thread::spawn({
        let moved = root.join("zz");
        move || {
            let deadline = Instant::now() + Duration::from_mins(1);
            while !is_open(&large) {
                assert!(Instant::now() < deadline, "the file was never read");
                std::thread::yield_now();
            }
            std::fs::rename(&storage, &moved).unwrap();
            symlink(&outside, &storage).unwrap();
            // The swap is done in time: the file is still being read.
            is_open(&moved.join("a large file"))
        }
    });
    let mut files = Volume::new(&place.config(&[]), &volume(&root)).unwrap();
    let manifest = place.backup(&mut files).await.unwrap();
    assert!(swapper.join().unwrap(), "the swap came too late");
    let out = place.path("out");
    place.extract(&manifest, &out);
    let found = files_below(&out);
    for name in ["storage/later", "storage/deep/later"] {
        assert_eq!(found[name], b"own", "{name}");
    }
}

/// Whether this process has the file open.
fn is_open(path: &Path) -> bool {
    std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .any(|open| open == path)
}
