//! A small file system of its own, for what happens when it is full. Needs root.

use std::path::Path;
use std::process::Command;

use crate::cluster::{own, run};

pub struct Mount(tempfile::TempDir);

impl Mount {
    /// Belongs to the user that the server runs as. Must outlive the server.
    pub fn tmpfs(megabytes: u32) -> Self {
        let place = tempfile::tempdir().unwrap();
        own(place.path(), 0o755);
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "tmpfs"])
            .arg(place.path()));
        own(place.path(), 0o700);
        Self(place)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Nobody uses it any more, or will see it.
        drop(
            Command::new("umount")
                .args(["--lazy"])
                .arg(self.path())
                .status(),
        );
    }
}
