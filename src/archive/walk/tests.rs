#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::fs;
use std::os::unix::fs::symlink;

use super::*;

fn names(root: &Path, rules: &Rules) -> Vec<String> {
    walk(root, rules)
        .map(|e| String::from_utf8_lossy(&e.unwrap().name).into_owned())
        .collect()
}

#[test]
fn walk_is_sorted_with_parents_first_and_leaves_out_what_rules_exclude() {
    let dir = tempfile::tempdir().unwrap();
    for d in ["b/inner", "a", "cache/deep"] {
        fs::create_dir_all(dir.path().join(d)).unwrap();
    }
    for f in ["b/inner/z", "b/inner/y.log", "a.txt", "a/1", "cache/deep/x"] {
        fs::write(dir.path().join(f), f).unwrap();
    }
    let rules = Rules {
        exclude: vec!["cache".into()],
        exclude_regexp: Some(Regex::new(r"\.log$").unwrap()),
        pages: vec![("a.txt".into(), 4096)],
    };
    assert_eq!(
        names(dir.path(), &rules),
        ["a", "a/1", "a.txt", "b", "b/inner", "b/inner/z"]
    );
    assert_eq!(rules.page_bytes(b"a.txt"), Some(4096));
    let mut walk = walk(dir.path(), &rules);
    for entry in walk.by_ref() {
        entry.unwrap();
    }
    let expected = TreeCounts {
        files: 3,
        directories: 3,
        bytes: 17,
        skipped_special: 0,
    };
    assert_eq!(walk.counts(), expected);
}

#[test]
fn hard_links_point_to_the_first_name_and_symlinks_are_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "s").unwrap();
    fs::write(dir.path().join("one"), "data").unwrap();
    fs::hard_link(dir.path().join("one"), dir.path().join("three")).unwrap();
    fs::hard_link(dir.path().join("one"), dir.path().join("two")).unwrap();
    symlink(outside.path(), dir.path().join("way out")).unwrap();
    symlink("nowhere", dir.path().join("broken")).unwrap();
    let rules = Rules::default();
    let found: Vec<_> = walk(dir.path(), &rules)
        .map(|e| e.unwrap())
        .map(|e| (String::from_utf8(e.name).unwrap(), e.kind))
        .collect();
    let link = || EntryKind::HardLink {
        existing: b"one".to_vec(),
    };
    let to = |target: &Path| EntryKind::Symlink {
        target: target.to_owned(),
    };
    let expected = [
        ("broken", to(Path::new("nowhere"))),
        ("one", EntryKind::File),
        ("three", link()),
        ("two", link()),
        ("way out", to(outside.path())),
    ]
    .map(|(name, kind)| (name.to_owned(), kind));
    assert_eq!(found, expected);
}

#[test]
fn a_link_from_outside_the_tree_is_a_plain_file() {
    let dir = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("f"), "x").unwrap();
    fs::hard_link(outside.path().join("f"), dir.path().join("f")).unwrap();
    let rules = Rules::default();
    let kinds: Vec<_> = walk(dir.path(), &rules).map(|e| e.unwrap().kind).collect();
    assert_eq!(kinds, [EntryKind::File]);
}

#[test]
fn names_that_are_not_utf8_keep_their_bytes_and_special_files_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let odd = OsStr::from_bytes(b"caf\xe9 \xff\n");
    fs::create_dir(dir.path().join(odd)).unwrap();
    fs::write(dir.path().join(odd).join("f"), "x").unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("sock")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        dir.path().join("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    let rules = Rules::default();
    let mut walk = walk(dir.path(), &rules);
    let names: Vec<_> = walk.by_ref().map(|e| e.unwrap().name).collect();
    assert_eq!(
        names,
        [b"caf\xe9 \xff\n".to_vec(), b"caf\xe9 \xff\n/f".to_vec()]
    );
    assert_eq!(walk.counts().skipped_special, 2);
}

#[test]
fn meta_holds_mode_owner_nanoseconds_and_extended_attributes() {
    let dir = tempfile::tempdir_in(".").unwrap();
    let file = dir.path().join("f");
    fs::write(&file, "x").unwrap();
    fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o2640)).unwrap();
    let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_700_000_000, 123_456_789);
    fs::File::options()
        .append(true)
        .open(&file)
        .unwrap()
        .set_modified(time)
        .unwrap();
    xattr::set(&file, "user.b", b"two\0").unwrap();
    xattr::set(&file, "user.a", b"").unwrap();
    let rules = Rules::default();
    let entry = walk(dir.path(), &rules).next().unwrap().unwrap();
    assert_eq!(entry.meta.mode, 0o2640);
    assert_eq!(
        (entry.meta.mtime_secs, entry.meta.mtime_nanos),
        (1_700_000_000, 123_456_789)
    );
    assert_eq!(
        (entry.meta.uid, entry.meta.gid),
        (entry.stat.uid(), entry.stat.gid())
    );
    let expected = [
        ("user.a".to_owned(), Vec::new()),
        ("user.b".to_owned(), b"two\0".to_vec()),
    ];
    let whole = meta_of(&file).unwrap();
    assert_eq!(whole.xattrs, expected);
    // A file's are for whoever reads it; what has no body has them here.
    assert_eq!(
        entry.meta,
        EntryMeta {
            xattrs: Vec::new(),
            ..whole
        }
    );
    fs::remove_file(&file).unwrap();
    let inner = dir.path().join("d");
    fs::create_dir(&inner).unwrap();
    xattr::set(&inner, "user.b", b"two\0").unwrap();
    xattr::set(&inner, "user.a", b"").unwrap();
    let entry = walk(dir.path(), &rules).next().unwrap().unwrap();
    assert_eq!(entry.meta, meta_of(&inner).unwrap());
    assert_eq!(entry.meta.xattrs, expected);
}

#[test]
fn what_vanishes_during_the_walk_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a", "b", "c"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    let rules = Rules::default();
    let mut walk = walk(dir.path(), &rules);
    walk.next().unwrap().unwrap();
    fs::remove_dir(dir.path().join("b")).unwrap();
    let rest: Vec<_> = walk.map(|e| e.unwrap().name).collect();
    assert_eq!(rest, [b"c".to_vec()]);
}

#[test]
fn a_directory_that_became_a_symlink_is_yielded_as_one() {
    let dir = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "s").unwrap();
    fs::create_dir(dir.path().join("a")).unwrap();
    // While the first one is there: a directory made later may get its inode.
    fs::create_dir(dir.path().join("b")).unwrap();
    let stat = fs::symlink_metadata(dir.path().join("a")).unwrap();
    fs::remove_dir(dir.path().join("a")).unwrap();
    symlink(outside.path(), dir.path().join("a")).unwrap();
    let held = HeldDirectory::open(dir.path()).unwrap();
    for name in ["a", "b"] {
        let opened = open(&held, OsStr::new(name), &stat);
        assert!(matches!(opened, Err(Listing::Moved)), "{name}");
    }
    fs::remove_dir(dir.path().join("b")).unwrap();
    assert_eq!(names(dir.path(), &Rules::default()), ["a"]);
}

#[test]
fn a_directory_swapped_for_a_link_during_the_walk_does_not_lead_out_of_the_tree() {
    let dir = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    let (root, storage) = (dir.path().join("root"), dir.path().join("root/storage"));
    fs::create_dir_all(storage.join("deep/er")).unwrap();
    fs::create_dir_all(outside.path().join("deep/er")).unwrap();
    for name in ["1 first", "deep/er/file", "deep/file", "later"] {
        fs::write(storage.join(name), "own").unwrap();
        fs::write(outside.path().join(name), "secret").unwrap();
        fs::write(outside.path().join(format!("{name} more")), "secret").unwrap();
    }
    let rules = Rules::default();
    let mut walk = walk(&root, &rules);
    let mut found = Vec::new();
    for entry in walk.by_ref() {
        let entry = entry.unwrap();
        let name = String::from_utf8(entry.name).unwrap();
        assert_eq!(entry.shown, root.canonicalize().unwrap().join(&name));
        if entry.kind == EntryKind::File {
            assert_eq!(fs::read(&entry.path).unwrap(), b"own", "{name}");
        }
        // As a service does that owns the directory: once below it, once in a directory of it.
        match name.as_str() {
            "storage/1 first" => {
                fs::rename(&storage, dir.path().join("root/moved")).unwrap();
                symlink(outside.path(), &storage).unwrap();
            }
            "storage/deep" => {
                let moved = dir.path().join("root/moved");
                fs::rename(moved.join("deep"), moved.join("moved")).unwrap();
                symlink(outside.path().join("deep"), moved.join("deep")).unwrap();
            }
            _ => {}
        }
        found.push(name);
    }
    assert_eq!(
        found,
        [
            "storage",
            "storage/1 first",
            "storage/deep",
            "storage/deep/er",
            "storage/deep/er/file",
            "storage/deep/file",
            "storage/later"
        ]
    );
    assert_eq!(walk.counts().bytes, 4 * 3);
}

#[test]
fn a_missing_root_is_an_error_and_ends_the_walk() {
    let dir = tempfile::tempdir().unwrap();
    let rules = Rules::default();
    let mut walk = walk(&dir.path().join("gone"), &rules);
    assert!(matches!(
        walk.next(),
        Some(Err(ArchiveError::Read { path, .. })) if path.ends_with("gone")
    ));
    assert!(walk.next().is_none());
}

#[test]
fn kernel_file_systems_are_told_from_real_ones() {
    let held = |path: &str| HeldDirectory::open(Path::new(path)).unwrap();
    assert!(is_pseudo(&held("/proc")).unwrap());
    assert!(!is_pseudo(&held("/")).unwrap());
}

#[test]
fn open_links_stay_bounded() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), "x").unwrap();
    fs::hard_link(dir.path().join("f"), dir.path().join("g")).unwrap();
    let stat = fs::symlink_metadata(dir.path().join("f")).unwrap();
    let rules = Rules::default();
    let mut walk = walk(dir.path(), &rules);
    for n in 0..MAX_OPEN_LINKS as u64 {
        let open = OpenLink {
            name: Vec::new(),
            left: 1,
        };
        walk.links.insert((u64::MAX, n), open);
    }
    assert_eq!(walk.earlier_link(b"f", &stat), None);
    assert_eq!(walk.links.len(), MAX_OPEN_LINKS);
}

#[test]
fn errors_name_entries_as_people_know_them() {
    let dir = tempfile::tempdir_in(".").unwrap();
    let file = dir.path().join("sub/f");
    let inner = dir.path().join("sub/inner");
    fs::create_dir_all(&inner).unwrap();
    xattr::set(&inner, OsStr::from_bytes(b"user.\xff"), b"").unwrap();
    let rules = Rules::default();
    let error = walk(dir.path(), &rules).find_map(Result::err).unwrap();
    let text = error.to_string();
    assert!(
        text.contains("sub/inner") && !text.contains("/proc/"),
        "{text}"
    );

    let opened = ArchiveError::KeepsChanging("/proc/self/fd/3/f".into());
    let text = opened.shown_as(&file).to_string();
    assert!(text.contains("sub/f") && !text.contains("/proc/"), "{text}");
}
