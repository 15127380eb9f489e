//! Many backups: what a host remembers of them spares reading, and changes no decision.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "support/program.rs"]
mod program;
#[path = "history/wal.rs"]
mod wal;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use serde_json::Value;
use tempfile::TempDir;

/// Longer than a file must be old to be remembered.
const SETTLED: Duration = Duration::from_millis(3_300);
const PASSPHRASE: &str = "correct horse battery staple";

/// A data directory with one volume in it, a repository and a state directory.
struct Place {
    root: TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self {
            root: tempfile::tempdir().unwrap(),
        };
        fs::create_dir_all(place.path("data/notes")).unwrap();
        for number in 0..60 {
            fs::write(place.file(number), format!("note {number}\n").repeat(50)).unwrap();
        }
        place
    }

    /// The same in another directory, with all times.
    fn copy(&self) -> Self {
        let copy = Self {
            root: tempfile::tempdir().unwrap(),
        };
        let done = Command::new("cp")
            .arg("-a")
            .arg(self.path("."))
            .arg(copy.path("."))
            .status();
        assert!(done.unwrap().success());
        copy
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn file(&self, number: usize) -> PathBuf {
        self.path(&format!("data/notes/{number}.txt"))
    }

    fn command(&self, keep: usize, args: &[&str]) -> Command {
        let mut command = program::lifeboat(self.root.path(), args);
        command
            .env("AGE_PASSPHRASE", PASSPHRASE)
            .env("BACKUP_KEEP_LAST", keep.to_string());
        // The newest of each period is the newest of all, whenever midnight is.
        for period in ["DAYS", "WEEKS", "MONTHS"] {
            command.env(format!("BACKUP_KEEP_{period}"), "1");
        }
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(1000, args).output().unwrap()
    }

    /// Backs up and keeps the last `keep`; returns the backup's id, and the ids that were dropped.
    fn backup(&self, keep: usize) -> (String, Vec<String>) {
        let output = self.command(keep, &["backup", "--json"]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let outcome: Value = serde_json::from_slice(&output.stdout).unwrap();
        let id = outcome["manifest"]["id"].as_str().unwrap().to_owned();
        let dropped = outcome["retention"]["drop"].as_array().unwrap();
        let text = |id: &Value| id.as_str().unwrap().to_owned();
        (id, dropped.iter().map(text).collect())
    }

    /// Backups of a file more that changed each; none is dropped.
    fn nights(&self, numbers: std::ops::Range<usize>) -> Vec<String> {
        let night = |number: usize| {
            fs::write(self.file(number), format!("changed {number}\n")).unwrap();
            self.backup(1000).0
        };
        numbers.map(night).collect()
    }

    /// What retention remembers.
    fn memory(&self) -> PathBuf {
        let files = fs::read_dir(self.path("state")).unwrap();
        let names = files.map(|file| file.unwrap().path());
        let is_it = |path: &PathBuf| {
            let name = path.file_name().unwrap().to_str().unwrap();
            name.starts_with("retention-")
        };
        let mut found: Vec<PathBuf> = names.filter(is_it).collect();
        assert_eq!(found.len(), 1);
        found.remove(0)
    }

    fn manifest(&self, id: &str) -> PathBuf {
        self.path(&format!("repo/backups/{id}/manifest.json.age"))
    }

    /// Bytes that a backup reads, of whatever.
    fn read_by_a_backup(&self) -> u64 {
        let mut child = self
            .command(1000, &["backup"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(Pid::from_child(&child)), ended).unwrap();
        let counters = fs::read_to_string(format!("/proc/{}/io", child.id())).unwrap();
        assert!(child.wait().unwrap().success());
        let read = counters
            .lines()
            .find_map(|line| line.strip_prefix("rchar: "));
        read.unwrap().parse().unwrap()
    }
}

/// Exchanges a byte in the middle; size and time stay.
fn damage(path: &Path) {
    let modified = fs::metadata(path).unwrap().modified().unwrap();
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_modified(modified).unwrap();
}

#[test]
fn no_memory_changes_what_retention_drops() {
    let (place, other) = (Place::new(), Place::new());
    let mut made = place.nights(0..3);
    other.nights(0..2);
    std::thread::sleep(SETTLED);
    made.extend(place.nights(3..4));
    other.nights(2..3);
    let memory = fs::read(place.memory()).unwrap();
    let foreign = fs::read(other.memory()).unwrap();
    let torn = memory[..memory.len() / 2].to_vec();
    let mut text = zstd::decode_all(memory.as_slice()).unwrap();
    // Somebody without the keys lets a backup seem to be of another project.
    let at = String::from_utf8(text.clone()).unwrap();
    let at = at.find("\"project\":null").unwrap();
    text[at..at + 14].copy_from_slice(b"\"project\":\"ab\"");
    let mut forged = zstd::encode_all(text.as_slice(), 3).unwrap();
    // With the seal of what it was.
    forged.extend_from_slice(&memory[memory.len() - 40..]);
    for memory in [Some(memory), None, Some(torn), Some(forged), Some(foreign)] {
        let copy = place.copy();
        match memory {
            Some(bytes) => fs::write(copy.memory(), bytes).unwrap(),
            None => fs::remove_file(copy.memory()).unwrap(),
        }
        let (_, dropped) = copy.backup(2);
        assert_eq!(dropped, [&made[2], &made[1], &made[0]].map(String::clone));
    }
    // It knows of one that is gone.
    let forgotten = place.run(&["forget", "--yes", &made[1]]);
    assert!(forgotten.status.success(), "{forgotten:?}");
    let (_, dropped) = place.backup(2);
    assert_eq!(dropped, [&made[2], &made[0]].map(String::clone));
}

#[test]
fn a_backup_that_was_damaged_after_it_was_remembered_fills_no_place_and_is_not_dropped() {
    let place = Place::new();
    let mut made = place.nights(0..5);
    std::thread::sleep(SETTLED);
    made.extend(place.nights(5..6));
    damage(&place.manifest(&made[1]));
    damage(&place.manifest(&made[4]));
    let (_, dropped) = place.backup(3);
    assert_eq!(dropped, [&made[2], &made[0]].map(String::clone));
    // Whoever reads a backup reads the store.
    fs::copy(place.manifest(&made[5]), place.manifest(&made[3])).unwrap();
    let list = place.run(&["list"]);
    assert_eq!(list.status.code(), Some(3), "{list:?}");
    let said = String::from_utf8(list.stderr).unwrap();
    for id in [&made[1], &made[3], &made[4]] {
        assert!(said.contains(id.as_str()), "{id} is not named: {said}");
    }
    let restore = place.run(&["restore", &made[3], "--into", "/nonexistent", "--yes"]);
    let said = String::from_utf8(restore.stderr).unwrap();
    assert!(
        !restore.status.success() && said.contains(&made[3]),
        "{said}"
    );
}

#[test]
fn what_an_unchanged_backup_reads_does_not_follow_how_many_there_were() {
    let place = Place::new();
    let mut reads = Vec::new();
    let mut made = 0;
    for count in [12, 36] {
        place.nights(made..count);
        made = count;
        // The first run learns what the last nights made, and the second one is as any night.
        for _ in 0..2 {
            std::thread::sleep(SETTLED);
            place.backup(1000);
        }
        reads.push(place.read_by_a_backup());
    }
    eprintln!("{reads:?} bytes read");
    // The cache's log, as long as it may be, and some hundred bytes a backup.
    assert!(reads[1] < reads[0] + 64 * 1024 + 24 * 600, "{reads:?}");
}
