//! The program as a person calls it, without containers: what it prints, and how it ends.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "support/clock.rs"]
mod clock;
#[path = "support/program.rs"]
mod program;
#[path = "cli/times.rs"]
mod times;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A data directory with one volume in it, a repository and a state directory.
struct Place {
    root: TempDir,
}

impl Place {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("data/notes")).unwrap();
        std::fs::write(root.path().join("data/notes/a.txt"), "first\n").unwrap();
        std::fs::write(root.path().join("data/notes/b.bin"), noise(3_000_000)).unwrap();
        Self { root }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        program::lifeboat(self.root.path(), args)
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    #[track_caller]
    fn good(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The newest backup's id.
    fn latest(&self) -> String {
        let list: serde_json::Value =
            serde_json::from_str(&self.good(&["list", "--json"])).unwrap();
        list.as_array().unwrap().last().unwrap()["id"]
            .as_str()
            .unwrap()
            .to_owned()
    }
}

#[track_caller]
fn failed(output: &Output, code: i32, parts: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    for part in parts {
        assert!(said.contains(part), "\"{part}\" is not said: {said}");
    }
}

fn noise(len: usize) -> Vec<u8> {
    let mut state = 1u64;
    std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    })
    .take(len)
    .collect()
}

#[test]
fn a_volume_goes_round_by_backup_list_show_export_and_restore_into() {
    let place = Place::new();
    failed(
        &place.run(&["list"]),
        1,
        &["no repository in", "the first backup makes it"],
    );
    let said = place.good(&["backup"]);
    assert!(
        said.contains("is complete after") && said.contains("notes"),
        "{said}"
    );
    let id = place.latest();
    let list = place.good(&["list"]);
    assert!(list.contains(&id), "{list}");
    assert!(place.good(&["show"]).contains("notes"));
    assert!(place.good(&["verify", "--full"]).contains("all good"));
    assert!(place.good(&["status"]).contains(&id));

    let into = place.path("into");
    place.good(&["restore", "latest", "--into", into.to_str().unwrap()]);
    assert_eq!(std::fs::read(into.join("notes/a.txt")).unwrap(), b"first\n");
    assert_eq!(
        std::fs::read(into.join("notes/b.bin")).unwrap(),
        noise(3_000_000)
    );

    for (compress, flag) in [("none", "-xf"), ("zst", "-xf"), ("gz", "-xf")] {
        let file = place.path(&format!("{compress}.tar"));
        place.good(&[
            "export",
            &id,
            "notes",
            "--compress",
            compress,
            "--output",
            file.to_str().unwrap(),
        ]);
        let out = place.path(&format!("{compress}.d"));
        std::fs::create_dir(&out).unwrap();
        assert!(
            Command::new("tar")
                .arg(flag)
                .arg(&file)
                .arg("-C")
                .arg(&out)
                .status()
                .unwrap()
                .success()
        );
        assert_eq!(std::fs::read(out.join("b.bin")).unwrap(), noise(3_000_000));
    }
}

#[test]
fn services_that_hold_the_same_file_are_backed_up_together() {
    let place = Place::new();
    let n8n = place.path("data/n8n");
    std::fs::create_dir_all(n8n.join("storage")).unwrap();
    std::fs::write(n8n.join("config"), r#"{"encryptionKey":"k"}"#).unwrap();
    // The volume is written first, and sealed last.
    std::fs::copy(place.path("data/notes/b.bin"), n8n.join("storage/b.bin")).unwrap();
    place.good(&["backup"]);
    let into = place.path("into");
    place.good(&["restore", "latest", "--into", into.to_str().unwrap()]);
    for file in ["notes/b.bin", "n8n/storage/b.bin"] {
        assert_eq!(std::fs::read(into.join(file)).unwrap(), noise(3_000_000));
    }
    assert!(place.good(&["verify", "--full"]).contains("all good"));
}

#[test]
fn a_link_named_like_a_command_is_that_command() {
    let place = Place::new();
    place.good(&["backup"]);
    let link = place.path("list");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_lifeboat"), &link).unwrap();
    let output = Command::new(&link)
        .env("LIFEBOAT_REPOSITORY", place.path("repo"))
        .output()
        .unwrap();
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("notes"),
        "{output:?}"
    );
}

#[test]
fn mistakes_in_settings_and_arguments_are_named_together_and_exit_with_2() {
    let place = Place::new();
    let output = place
        .command(&["backup"])
        .env("BACKUP_JITTER", "soon")
        .env("TZ", "Mars")
        .output()
        .unwrap();
    failed(
        &output,
        2,
        &[
            "2 settings are wrong",
            "BACKUP_JITTER is \"soon\"",
            "TZ is \"Mars\"",
        ],
    );
    failed(&place.run(&["no-such-command"]), 2, &["no-such-command"]);
    place.good(&["backup"]);
    // Without a terminal nothing is restored unasked.
    failed(&place.run(&["restore", "latest"]), 2, &["--yes"]);
    failed(
        &place.run(&["restore", "latest", "--only", "nothing", "--yes"]),
        2,
        &["nothing", "notes"],
    );
}

#[test]
fn what_is_not_there_is_said_with_what_is() {
    let place = Place::new();
    failed(
        &place.run(&["restore", "latest", "--yes"]),
        1,
        &["no repository in"],
    );
    place.good(&["backup"]);
    let id = place.latest();
    failed(
        &place.run(&["show", "20990101"]),
        3,
        &["20990101", "list", &id],
    );
    failed(
        &place.run(&["export", "latest", "postgres"]),
        1,
        &["has no archive \"postgres\"", "notes"],
    );
}

#[test]
fn a_stack_with_nothing_in_it_is_no_success() {
    let place = Place::new();
    std::fs::remove_dir_all(place.path("data")).unwrap();
    failed(&place.run(&["backup"]), 1, &["no service was found"]);
    failed(&place.run(&["status"]), 1, &["the last backup failed"]);
    failed(&place.run(&["doctor"]), 1, &["would not work"]);
}

#[test]
fn a_damaged_pack_is_found_with_what_it_costs_and_exits_with_3() {
    let place = Place::new();
    place.good(&["backup"]);
    let id = place.latest();
    let pack = files_below(&place.path("repo/packs")).pop().unwrap();
    let mut bytes = std::fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&pack, bytes).unwrap();
    place.good(&["verify"]);
    let output = place.run(&["verify", "--full"]);
    failed(&output, 3, &["cannot be restored whole"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains(&id));
    let into = place.path("into");
    let output = place.run(&["restore", "latest", "--into", into.to_str().unwrap()]);
    assert_ne!(output.status.code(), Some(0));
    assert!(
        !into.join("notes").exists(),
        "a damaged archive was left half unpacked"
    );
}

/// A small file system of its own; needs root.
struct Mount(PathBuf);

impl Mount {
    fn tmpfs(at: &Path, options: &str) -> Self {
        std::fs::create_dir_all(at).unwrap();
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(at)
            .status()
            .unwrap();
        assert!(status.success(), "mounting a tmpfs needs root");
        Self(at.to_owned())
    }

    fn read_only(&self) {
        assert!(
            Command::new("mount")
                .args(["-o", "remount,ro"])
                .arg(&self.0)
                .status()
                .unwrap()
                .success()
        );
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        drop(Command::new("umount").arg(&self.0).status());
    }
}

#[test]
fn a_full_disk_fails_the_backup_and_leaves_the_ones_before_whole() {
    let place = Place::new();
    let _mount = Mount::tmpfs(&place.path("repo"), "size=5m");
    place.good(&["backup"]);
    let id = place.latest();
    std::fs::write(
        place.path("data/notes/c.bin"),
        noise(9_000_000).split_off(3_000_000),
    )
    .unwrap();
    failed(
        &place.run(&["backup"]),
        1,
        &["the disk is full", "nothing was committed"],
    );
    assert_eq!(place.latest(), id);
    assert!(place.good(&["verify", "--full"]).contains("all good"));
    let temporary = files_below(&place.path("repo"))
        .into_iter()
        .filter(|p| p.file_name().unwrap().to_str().unwrap().starts_with('.'));
    assert_eq!(temporary.count(), 0);
}

#[test]
fn what_retention_drops_is_pruned_on_a_full_disk_too() {
    let place = Place::new();
    let repo = place.path("repo");
    let _mount = Mount::tmpfs(&repo, "size=48m");
    let backup = |place: &Place| {
        let output = place
            .command(&["backup", "--json"])
            .env("BACKUP_KEEP_LAST", "1")
            .env("BACKUP_KEEP_DAYS", "1")
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let first = backup(&place);
    assert_eq!(
        first["prune"]["stored"]["bytes"],
        first["prune"]["live"]["bytes"]
    );
    std::fs::write(
        place.path("data/notes/b.bin"),
        noise(6_000_000).split_off(3_000_000),
    )
    .unwrap();
    let second = backup(&place);
    assert_eq!(second["retention"]["drop"].as_array().unwrap().len(), 1);
    // Young packs are left alone: a run whose lease was not seen may own them.
    assert_eq!(second["prune"]["deleted"]["packs"], 0);
    assert_eq!(second["prune"]["trashed"]["packs"], 0);
    let plan = place.good(&["prune", "--now", "--dry-run"]);
    assert!(plan.contains("would be deleted"), "{plan}");
    // Not a byte is left.
    let mut filler = std::fs::File::create(repo.join("filler")).unwrap();
    let full = std::io::copy(&mut std::io::repeat(1), &mut filler).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    let pruned: serde_json::Value =
        serde_json::from_str(&place.good(&["prune", "--now", "--json"])).unwrap();
    assert!(
        pruned["deleted"]["bytes"].as_u64().unwrap() > 3_000_000,
        "{pruned}"
    );
    assert_eq!(pruned["backups"], 1);
    drop(filler);
    std::fs::remove_file(repo.join("filler")).unwrap();
    assert!(place.good(&["verify", "--full"]).contains("all good"));
    let text = place.good(&["prune"]);
    assert!(text.contains("put into the trash"), "{text}");
    assert!(repo.join("reserve").exists(), "{text}");
}

#[test]
fn a_read_only_repository_is_said_to_be_so() {
    let place = Place::new();
    let mount = Mount::tmpfs(&place.path("repo"), "size=20m");
    place.good(&["backup"]);
    mount.read_only();
    failed(&place.run(&["backup"]), 1, &["read-only"]);
    failed(&place.run(&["doctor"]), 1, &["would not work"]);
    place.good(&["list"]);
}

#[test]
fn a_backup_that_is_terminated_gives_up_in_order() {
    let place = Place::new();
    std::fs::write(place.path("data/notes/big.bin"), noise(200_000_000)).unwrap();
    let mut child = place
        .command(&["backup"])
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_mins(1);
    while files_below(&place.path("repo"))
        .iter()
        .all(|p| !p.to_str().unwrap().contains("packs"))
    {
        assert!(
            std::time::Instant::now() < deadline,
            "the backup does not begin"
        );
        std::thread::yield_now();
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(1));
    assert!(place.good(&["list"]).contains("no backups yet"));
    std::fs::remove_file(place.path("data/notes/big.bin")).unwrap();
    place.good(&["backup"]);
}

fn files_below(root: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let Ok(entries) = std::fs::read_dir(root) else {
        return files;
    };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else {
            files.push(path);
        }
    }
    files
}
