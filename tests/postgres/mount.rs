//! A small file system of its own, for what happens when it is full, or damaged. Needs root.

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

    /// A file system in a file. What describes its files lies at its beginning, and no journal in its middle.
    #[allow(dead_code)]
    pub fn image(image: &Path, megabytes: u64) -> Self {
        let place = tempfile::tempdir().unwrap();
        own(place.path(), 0o755);
        std::fs::File::create(image)
            .and_then(|file| file.set_len(megabytes << 20))
            .unwrap();
        run(Command::new("mkfs.ext4")
            .args(["-q", "-O", "^has_journal", "-E", "lazy_itable_init=0"])
            .arg(image));
        let mount = Self(place);
        mount.attach(image);
        own(mount.path(), 0o700);
        mount
    }

    fn attach(&self, image: &Path) {
        run(Command::new("mount")
            .args(["-o", "loop"])
            .arg(image)
            .arg(self.path()));
    }

    /// From here on the device cannot be read, and nothing of it is in memory. Nobody may use it meanwhile.
    #[allow(dead_code)]
    pub fn break_after(&self, image: &Path, megabytes: u64) {
        run(Command::new("umount").arg(self.path()));
        self.attach(image);
        std::fs::File::options()
            .write(true)
            .open(image)
            .and_then(|file| file.set_len(megabytes << 20))
            .unwrap();
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
