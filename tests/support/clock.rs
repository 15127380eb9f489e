//! A clock of their own for programs, by libfaketime.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A clock that is off by what a file says.
pub struct Clock {
    file: PathBuf,
    library: PathBuf,
}

impl Clock {
    pub fn new(directory: &Path) -> Self {
        let found = Command::new("find")
            .args(["/usr/lib", "-name", "libfaketimeMT.so.1"])
            .output()
            .unwrap();
        let found = String::from_utf8(found.stdout).unwrap();
        let library = found
            .lines()
            .next()
            .expect("the package faketime is needed");
        let clock = Self {
            file: directory.join("clock"),
            library: PathBuf::from(library),
        };
        clock.set("+0");
        clock
    }

    pub fn set(&self, offset: &str) {
        std::fs::write(&self.file, offset).unwrap();
    }

    pub fn variables(&self) -> Vec<(&'static str, PathBuf)> {
        vec![
            ("LD_PRELOAD", self.library.clone()),
            ("FAKETIME_TIMESTAMP_FILE", self.file.clone()),
            ("FAKETIME_NO_CACHE", "1".into()),
            // The files' times are the kernel's.
            ("NO_FAKE_STAT", "1".into()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
        ]
    }
}
