#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::fs;
use std::os::unix::fs::symlink;

use super::*;

const VERSION: &str = "PG_15_202209061";

fn touch(root: &Path, name: &str) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, name).unwrap();
}

fn names(
    root: &Path,
    map: &(dyn Fn(&Path) -> Option<PathBuf> + Send + Sync),
) -> Result<Vec<String>, TreeError> {
    let tree = DataTree {
        root,
        map,
        version_directory: VERSION,
    };
    let mut names = Vec::new();
    tree.walk::<TreeError>(&mut |entry| {
        names.push(match entry {
            Entry::Directory { name, .. } => format!("{name}/"),
            Entry::File { name, pages, .. } if pages => format!("{name} (pages)"),
            Entry::File { name, .. } => name,
        });
        Ok(())
    })?;
    Ok(names)
}

#[test]
fn a_data_directory_is_walked_by_the_rules_in_a_stable_order() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    for name in [
        "PG_VERSION",
        "postmaster.pid",
        "backup_label.old",
        "base/5/1259",
        "base/5/1259_fsm",
        "base/5/16400",
        "base/5/16400.1",
        "base/5/16400_init",
        "base/5/t4_16500",
        "base/5/PG_VERSION",
        "base/pgsql_tmp/pgsql_tmp77.0",
        "global/1260",
        "global/pg_control",
        "global/pg_filenode.map",
        "global/pg_internal.init",
        "pg_wal/000000010000000000000001",
        "pg_wal/archive_status/000000010000000000000001.done",
        "pg_replslot/mine/state",
        "pg_xact/0000",
    ] {
        touch(root, name);
    }
    fs::create_dir(root.join("pg_twophase")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(root.join(".s.PGSQL.5432")).unwrap();
    assert_eq!(
        names(root, &|_| None).unwrap(),
        [
            "PG_VERSION",
            "base/",
            "base/5/",
            "base/5/1259 (pages)",
            "base/5/1259_fsm (pages)",
            "base/5/16400_init (pages)",
            "base/5/PG_VERSION",
            "global/",
            "global/1260 (pages)",
            "global/pg_filenode.map",
            "pg_replslot/",
            "pg_twophase/",
            "pg_wal/",
            "pg_wal/archive_status/",
            "pg_xact/",
            "pg_xact/0000",
        ]
    );
}

#[test]
fn tablespaces_and_a_linked_wal_directory_are_followed_through_the_mounts() {
    let dir = tempfile::tempdir().unwrap();
    let (root, elsewhere) = (dir.path().join("data"), dir.path().join("mnt"));
    touch(&root, "PG_VERSION");
    touch(&elsewhere, &format!("ts/{VERSION}/5/16401"));
    touch(&elsewhere, "ts/PG_14_202107181/5/16401");
    touch(&elsewhere, "wal/000000010000000000000001");
    fs::create_dir(elsewhere.join("wal/archive_status")).unwrap();
    fs::create_dir(root.join("pg_tblspc")).unwrap();
    symlink("/srv/ts", root.join("pg_tblspc/16399")).unwrap();
    symlink("/srv/wal", root.join("pg_wal")).unwrap();
    let map = |path: &Path| Some(elsewhere.join(path.strip_prefix("/srv").ok()?));
    assert_eq!(
        names(&root, &map).unwrap(),
        [
            "PG_VERSION".to_owned(),
            "pg_tblspc/".to_owned(),
            "pg_tblspc/16399/".to_owned(),
            format!("pg_tblspc/16399/{VERSION}/"),
            format!("pg_tblspc/16399/{VERSION}/5/"),
            format!("pg_tblspc/16399/{VERSION}/5/16401 (pages)"),
            "pg_wal/".to_owned(),
            "pg_wal/archive_status/".to_owned(),
        ]
    );

    let unmounted = names(&root, &|_| None).unwrap_err().to_string();
    assert!(unmounted.contains("/srv/ts"), "{unmounted}");
    assert!(unmounted.contains("not mounted"), "{unmounted}");
    let wrong = |path: &Path| {
        Some(
            dir.path()
                .join("other")
                .join(path.strip_prefix("/srv").ok()?),
        )
    };
    let wrong = names(&root, &wrong).unwrap_err().to_string();
    assert!(wrong.contains("does not exist here"), "{wrong}");
}

#[test]
fn a_tablespace_inside_the_data_directory_is_visited_once() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    touch(root, &format!("inner/{VERSION}/5/16401"));
    fs::create_dir(root.join("pg_tblspc")).unwrap();
    symlink("/pgdata/inner", root.join("pg_tblspc/16399")).unwrap();
    let map = |path: &Path| Some(root.join(path.strip_prefix("/pgdata").ok()?));
    assert_eq!(
        names(root, &map).unwrap(),
        [
            "inner/".to_owned(),
            "pg_tblspc/".to_owned(),
            "pg_tblspc/16399/".to_owned(),
            format!("pg_tblspc/16399/{VERSION}/"),
            format!("pg_tblspc/16399/{VERSION}/5/"),
            format!("pg_tblspc/16399/{VERSION}/5/16401 (pages)"),
        ]
    );
}

#[test]
fn other_links_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    touch(dir.path(), "PG_VERSION");
    symlink("/etc/passwd", dir.path().join("server.key")).unwrap();
    let err = names(dir.path(), &|_| None).unwrap_err().to_string();
    assert!(err.contains("server.key is a link to /etc/passwd"), "{err}");
}

#[test]
fn what_vanishes_below_the_root_is_left_out_and_a_missing_root_is_not() {
    let dir = tempfile::tempdir().unwrap();
    touch(dir.path(), "base/5/1259");
    touch(dir.path(), "base/6/1259");
    let tree = DataTree {
        root: dir.path(),
        map: &|_| None,
        version_directory: VERSION,
    };
    let mut seen = Vec::new();
    tree.walk::<TreeError>(&mut |entry| {
        if let Entry::Directory { name, .. } = &entry {
            // Database 6 is dropped while 5 is copied.
            if name == "base/5" {
                fs::remove_dir_all(dir.path().join("base/6")).unwrap();
            }
            seen.push(name.clone());
        }
        Ok(())
    })
    .unwrap();
    assert_eq!(seen, ["base", "base/5"]);
    let gone = names(&dir.path().join("gone"), &|_| None).unwrap_err();
    assert!(gone.to_string().contains("is not there"), "{gone}");
}

#[test]
fn a_directory_swapped_for_a_link_during_the_walk_does_not_lead_out_of_the_tree() {
    let dir = tempfile::tempdir().unwrap();
    let (root, outside) = (dir.path().join("data"), dir.path().join("outside"));
    for name in ["base/5/1259", "base/5/1260", "base/6/1259"] {
        touch(&root, name);
        touch(&outside, &format!("{name}_vm"));
        fs::write(outside.join(name), "secret").unwrap();
    }
    let tree = DataTree {
        root: &root,
        map: &|_| None,
        version_directory: VERSION,
    };
    let mut seen = Vec::new();
    tree.walk::<TreeError>(&mut |entry| {
        if let Entry::File {
            name, path, shown, ..
        } = entry
        {
            assert_eq!(shown, root.join(&name));
            assert_eq!(fs::read_to_string(path).unwrap(), name);
            if seen.is_empty() {
                fs::rename(root.join("base"), root.join("moved")).unwrap();
                symlink(outside.join("base"), root.join("base")).unwrap();
                fs::rename(root.join("moved/5"), root.join("moved/7")).unwrap();
                symlink(outside.join("base/5"), root.join("moved/5")).unwrap();
            }
            seen.push(name);
        }
        Ok(())
    })
    .unwrap();
    assert_eq!(seen, ["base/5/1259", "base/5/1260", "base/6/1259"]);
}

#[test]
fn a_version_directory_that_is_a_link_is_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let (root, elsewhere) = (dir.path().join("data"), dir.path().join("mnt"));
    touch(&elsewhere, "other/5/16401");
    fs::create_dir_all(elsewhere.join("ts")).unwrap();
    symlink(elsewhere.join("other"), elsewhere.join("ts").join(VERSION)).unwrap();
    fs::create_dir_all(root.join("pg_tblspc")).unwrap();
    symlink("/srv/ts", root.join("pg_tblspc/16399")).unwrap();
    let map = |path: &Path| Some(elsewhere.join(path.strip_prefix("/srv").ok()?));
    let err = names(&root, &map).unwrap_err().to_string();
    assert!(err.starts_with("cannot read"), "{err}");
    assert!(err.contains(&format!("ts/{VERSION}")), "{err}");
}

#[test]
fn a_directory_that_is_dropped_between_opening_and_listing_is_empty() {
    let dir = tempfile::tempdir().unwrap();
    let database = dir.path().join("16384");
    touch(&database, "1259");
    let held = HeldDirectory::open(&database).unwrap();
    let place = Place::new(&held, &database);
    assert_eq!(place.list().unwrap(), ["1259"]);
    fs::remove_dir_all(&database).unwrap();
    assert!(place.list().unwrap().is_empty());
    assert!(place.stat("1259").unwrap().is_none());
    // What cannot be read for another reason is said.
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let held = HeldDirectory::open(dir.path()).unwrap();
    let place = Place::new(&held, dir.path());
    assert!(place.stat("file/1259").is_err());
}
