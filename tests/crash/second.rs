//! The second repository, which copies go to.

use std::path::PathBuf;
use std::sync::Arc;

use lifeboat::repository::copy::{CopyReport, copy, reencrypt};

use super::*;

impl World {
    pub fn second_root(&self) -> PathBuf {
        self.path("second")
    }

    pub fn note_copied(&mut self, ids: Vec<String>) {
        self.copied.extend(ids);
    }

    /// Copies undisturbed, once.
    pub fn copy_once(&mut self) -> CopyReport {
        let second: Arc<dyn Store> = Arc::new(LocalStore::new(self.second_root()));
        let (keys, state) = (self.keys("c"), self.path("c"));
        let report = copy(&self.open(), second, &keys, &state, |_, _| {}).unwrap();
        assert!(
            report.faults.is_empty() && report.notes.is_empty(),
            "{report:?}"
        );
        self.copied.extend(report.copied.iter().cloned());
        report
    }

    /// The same with keys of the second repository's own.
    pub fn copy_anew_once(&mut self) -> CopyReport {
        let second: Arc<dyn Store> = Arc::new(LocalStore::new(self.second_root()));
        let second = Repository::open_or_init(second, &self.keys("c")).unwrap();
        let report = reencrypt(&self.open(), &second, &self.path("c"), 1, |_, _| {}).unwrap();
        assert!(report.faults.is_empty(), "{report:?}");
        self.copied.extend(report.copied.iter().cloned());
        report
    }

    /// Copies, and waits for the trash to be emptied there, until nothing is missing.
    pub fn copy_all(&mut self) {
        let mut report = self.copy_once();
        for _ in 0..2 {
            if report.waiting.is_empty() {
                break;
            }
            let is_trash = |why: &String| why.contains("lies in the trash");
            assert!(report.waiting.iter().all(is_trash), "{report:?}");
            self.wait(49);
            self.prune_second();
            report = self.copy_once();
        }
        assert!(report.waiting.is_empty(), "{report:?}");
        let there = self.open_at(&self.second_root()).backups().unwrap();
        for id in self.open().backups().unwrap() {
            assert!(there.contains(&id), "{id} was not copied: {report:?}");
        }
    }

    /// A backup that is dropped there, and only there.
    pub fn drop_copy(&mut self, id: &str) {
        let second = self.open_at(&self.second_root());
        second.drop_backup(id).unwrap();
        self.copied.remove(id);
    }

    pub fn prune_second(&self) -> Report {
        self.prune_at(&self.second_root())
    }

    /// Every backup that was copied is there, and all that are there read as they were backed up.
    pub fn check_second(&self) {
        self.check_at(&self.second_root(), &self.copied, &BTreeSet::new());
    }

    pub fn check_second_collected(&self) {
        self.check_collected_at(&self.second_root());
        self.check_second();
    }
}
