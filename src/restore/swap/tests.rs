#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use tempfile::TempDir;

use super::*;

struct Place {
    dir: TempDir,
    run: RunContext,
}

type Tree = BTreeMap<String, String>;

impl Place {
    /// In memory where there is such a filesystem: thousands of fsyncs follow.
    fn new() -> Self {
        let dir = TempDir::new_in("/dev/shm")
            .or_else(|_| TempDir::new())
            .unwrap();
        let (root, state) = (dir.path().join("root"), dir.path().join("state"));
        fs::create_dir_all(root.join("base/1")).unwrap();
        fs::create_dir(root.join("lost+found")).unwrap();
        fs::create_dir(root.join(".lifeboat-old-before")).unwrap();
        fs::write(root.join("base/1/table"), "old table").unwrap();
        fs::write(root.join("PG_VERSION"), "17").unwrap();
        fs::write(root.join("only old"), "1").unwrap();
        std::os::unix::fs::symlink("base", root.join("link")).unwrap();
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(&state).unwrap();
        let run = RunContext {
            run_id: "r1".to_owned(),
            journal: Arc::new(Journal::open(&state).unwrap()),
            scratch: dir.path().to_owned(),
        };
        Self { dir, run }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root").canonicalize().unwrap()
    }

    fn tree(&self) -> Tree {
        tree(&self.root())
    }

    fn begin(&self, keep_old: bool) -> Swap {
        let swap = Swap::begin("postgres", &self.root(), &self.run, keep_old).unwrap();
        let staging = swap.staging();
        fs::create_dir_all(staging.join("base/2")).unwrap();
        fs::write(staging.join("base/2/table"), "new table").unwrap();
        fs::write(staging.join("PG_VERSION"), "17 new").unwrap();
        fs::write(staging.join("only new"), "2").unwrap();
        fs::write(staging.join("lost+found"), "not a file of the service").unwrap();
        fs::set_permissions(staging, fs::Permissions::from_mode(0o700)).unwrap();
        swap
    }

    /// What `begin` stages, once it is live.
    fn new_tree() -> Tree {
        let place = Self::new();
        let swap = place.begin(false);
        swap.swap().unwrap();
        commit(&place.run).unwrap();
        swap.finish().unwrap();
        place.tree()
    }

    fn undo(&self, files: &Files) -> io::Result<()> {
        let (staging, kept) = paths(&self.root(), "r1");
        undo_with(files, &self.root(), &staging, &kept)
    }
}

/// Every path with its content and mode, the root's included.
fn tree(root: &Path) -> Tree {
    let mut found = Tree::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(path) = waiting.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let content = if meta.is_dir() {
            waiting.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
            String::new()
        } else if meta.is_symlink() {
            fs::read_link(&path).unwrap().display().to_string()
        } else {
            fs::read_to_string(&path).unwrap()
        };
        let name = path.strip_prefix(root).unwrap().display().to_string();
        found.insert(name, format!("{:o} {content}", meta.mode()));
    }
    found
}

fn dies_after(steps: u64) -> Files {
    let files = Files::new();
    files.left.set(steps);
    files
}

#[test]
fn the_new_data_is_live_and_nothing_else_is_left() {
    let place = Place::new();
    let swap = place.begin(false);
    assert_eq!(place.run.journal.pending().unwrap().len(), 1);
    swap.swap().unwrap();
    assert_eq!(
        fs::read_to_string(swap.kept().join("only old")).unwrap(),
        "1"
    );
    commit(&place.run).unwrap();
    swap.finish().unwrap();
    forget_commit(&place.run).unwrap();
    let names: Vec<_> = place.tree().into_keys().collect();
    assert_eq!(
        names,
        [
            "",
            ".lifeboat-old-before",
            "PG_VERSION",
            "base",
            "base/2",
            "base/2/table",
            "lost+found",
            "only new"
        ]
    );
    assert_eq!(place.tree()["PG_VERSION"], "100644 17 new");
    assert_eq!(place.tree()[""], "40700 ", "the root has staging's mode");
    assert!(place.run.journal.pending().unwrap().is_empty());
    assert_eq!(
        fs::read_dir(place.dir.path().join("state"))
            .unwrap()
            .count(),
        1
    );
}

#[test]
fn a_root_that_the_archive_does_not_describe_keeps_its_mode() {
    let place = Place::new();
    let swap = Swap::begin("n8n", &place.root(), &place.run, false).unwrap();
    swap.swap().unwrap();
    assert_eq!(place.tree()[""], "40755 ");
}

#[test]
fn an_empty_root_goes_to_the_owner_of_its_new_entries() {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test gives files away, which needs root"
    );
    for (entries, owner) in [(&["a", "b"][..], 1000), (&["a", "b", "roots"][..], 0)] {
        let place = Place::new();
        let root = place.root();
        fs::remove_dir_all(&root).unwrap();
        fs::create_dir_all(root.join("lost+found")).unwrap();
        let swap = Swap::begin("n8n", &root, &place.run, false).unwrap();
        for name in entries {
            let path = swap.staging().join(name);
            fs::write(&path, name).unwrap();
            let uid = if *name == "roots" { 0 } else { 1000 };
            std::os::unix::fs::chown(&path, Some(uid), Some(uid)).unwrap();
        }
        swap.swap().unwrap();
        assert_eq!(fs::metadata(&root).unwrap().uid(), owner);
        swap.rollback().unwrap();
        assert_eq!(fs::metadata(&root).unwrap().uid(), 0);
    }
}

#[test]
fn old_data_stays_when_asked_for() {
    let place = Place::new();
    let before = place.tree();
    let swap = place.begin(true);
    swap.swap().unwrap();
    commit(&place.run).unwrap();
    swap.finish().unwrap();
    place.undo(&Files::new()).unwrap();
    let kept = tree(swap.kept());
    for name in ["base/1/table", "PG_VERSION", "only old", "link"] {
        assert_eq!(kept[name], before[name]);
    }
    assert!(place.run.journal.pending().unwrap().is_empty());
}

#[test]
fn what_is_kept_is_removed_only_after_the_commit() {
    let place = Place::new();
    let swap = place.begin(false);
    swap.swap().unwrap();
    swap.finish().unwrap_err();
    assert!(swap.kept().join("only old").exists());
    assert_eq!(place.run.journal.pending().unwrap().len(), 1);
}

#[test]
fn a_kill_at_any_step_of_the_swap_and_of_its_undo_ends_with_the_old_data() {
    let mut swap_steps = 0;
    loop {
        let mut undo_steps = 0;
        let swapped = loop {
            let place = Place::new();
            let before = place.tree();
            let swap = place.begin(false);
            let swapped = swap.swap_with(&dies_after(swap_steps)).is_ok();
            // The next start dies too, and the one after it does not.
            let undone = place.undo(&dies_after(undo_steps)).is_ok();
            place.undo(&Files::new()).unwrap();
            assert_eq!(place.tree(), before, "{swap_steps} {undo_steps}");
            place.undo(&Files::new()).unwrap();
            assert_eq!(place.tree(), before, "again {swap_steps} {undo_steps}");
            if undone {
                break swapped;
            }
            undo_steps += 1;
        };
        if swapped {
            assert!(
                swap_steps > 12 && undo_steps > 15,
                "{swap_steps} {undo_steps}"
            );
            return;
        }
        swap_steps += 1;
    }
}

#[test]
fn a_kill_at_any_step_after_the_commit_ends_with_the_new_data() {
    let expected = Place::new_tree();
    let mut finish_steps = 0;
    loop {
        let mut undo_steps = 0;
        let finished = loop {
            let place = Place::new();
            let swap = place.begin(false);
            swap.swap().unwrap();
            commit(&place.run).unwrap();
            let finished = swap.finish_with(&dies_after(finish_steps)).is_ok();
            let undone = place.undo(&dies_after(undo_steps)).is_ok();
            place.undo(&Files::new()).unwrap();
            assert_eq!(place.tree(), expected, "{finish_steps} {undo_steps}");
            if undone {
                break finished;
            }
            undo_steps += 1;
        };
        if finished {
            assert!(finish_steps > 8, "{finish_steps}");
            return;
        }
        finish_steps += 1;
    }
}

#[test]
fn what_something_made_meanwhile_gives_way_to_the_old_data() {
    // While the old entries are being taken out, one of their names is taken again.
    let place = Place::new();
    let before = place.tree();
    let swap = place.begin(false);
    swap.swap_with(&dies_after(4)).unwrap_err();
    let taken = fs::read_dir(swap.kept())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .find(|name| name != MARKER)
        .unwrap();
    fs::write(place.root().join(&taken), "someone's").unwrap();
    swap.rollback().unwrap();
    assert_eq!(place.tree(), before);

    // A service runs on the new data, and it has to go all the same.
    let place = Place::new();
    let swap = place.begin(false);
    swap.swap().unwrap();
    fs::write(place.root().join("written since"), "x").unwrap();
    fs::create_dir(swap.staging().join("written since")).unwrap();
    swap.rollback().unwrap();
    assert_eq!(place.tree(), before);
    assert!(place.run.journal.pending().unwrap().is_empty());
}

#[test]
fn a_name_in_the_way_is_an_error_that_says_so() {
    let dir = TempDir::new().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    for dir in [&from, &to] {
        fs::create_dir(dir).unwrap();
        fs::write(dir.join("a"), dir.to_str().unwrap()).unwrap();
    }
    let error = Files::new().move_entries(&from, &to).unwrap_err();
    assert!(error.to_string().contains("still writes there"), "{error}");
    assert_eq!(
        fs::read_to_string(to.join("a")).unwrap(),
        to.to_str().unwrap()
    );
}

#[test]
fn half_written_markers_and_unknown_ones_lose_nothing() {
    let place = Place::new();
    let before = place.tree();
    let swap = place.begin(false);
    drop(swap.swap_with(&dies_after(4)));
    fs::write(swap.kept().join(".lifeboat-tmp-abc"), "{").unwrap();
    place.undo(&Files::new()).unwrap();
    assert_eq!(place.tree(), before);

    let place = Place::new();
    let swap = place.begin(false);
    swap.swap().unwrap();
    fs::write(swap.kept().join(MARKER), "not one").unwrap();
    let swapped = place.tree();
    let error = place.undo(&Files::new()).unwrap_err();
    assert!(error.to_string().contains("not understood"), "{error}");
    assert_eq!(place.tree(), swapped);
}

#[test]
fn undo_touches_only_what_a_restore_makes() {
    let place = Place::new();
    let before = place.tree();
    let root = place.root();
    let (staging, kept) = paths(&root, "r1");
    for (staging, kept) in [
        (root.join("base"), kept.clone()),
        (staging.clone(), root.join("base")),
        (root.join("base/.lifeboat-new-r1"), kept.clone()),
        (staging, root.clone()),
    ] {
        undo(&root, &staging, &kept).unwrap_err();
    }
    assert_eq!(place.tree(), before);
}

#[test]
fn a_mount_inside_is_found_before_anything_is_changed() {
    let sentence = preflight(Path::new("/")).unwrap_err();
    assert!(sentence.contains("mounted"), "{sentence}");
}
