//! Brings what is written onto the disk while more is being written.
//!
//! The kernel would keep gigabytes of it until the `syncfs` at the end, and nothing else would happen while that
//! waits for the disk. What is not flushed here, because the disk is busy with what came before, is still the
//! end's. A failure is not: the kernel tells of it once, so it is kept until [`Flusher::finish`].

use std::fs::File;
use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

/// Written bytes of one file that are worth a call.
pub const FLUSH_BYTES: u64 = 32 * 1024 * 1024;

pub struct Flusher {
    files: Option<SyncSender<File>>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Flusher {
    pub fn start() -> io::Result<Self> {
        // One waits while one is under way.
        let (files, queue) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("flush".to_owned())
            .spawn(move || flush(&queue))?;
        Ok(Self {
            files: Some(files),
            thread: Some(thread),
        })
    }

    /// Has a file's bytes brought onto the disk, unless that has enough to do.
    pub fn flush(&self, file: &File) -> io::Result<()> {
        if let Some(files) = &self.files {
            // Full, or ended by a failure that the end tells.
            drop(files.try_send(file.try_clone()?));
        }
        Ok(())
    }

    /// Waits for what is under way.
    pub fn finish(&mut self) -> io::Result<()> {
        self.files = None;
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(flushed)) => flushed,
            Some(Err(_)) => Err(io::Error::other("the flushing thread panicked")),
            None => Ok(()),
        }
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        // Given up already: what could not be written is removed.
        drop(self.finish());
    }
}

fn flush(queue: &Receiver<File>) -> io::Result<()> {
    queue.iter().try_for_each(|file| file.sync_data())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_failure_is_told_at_the_end() {
        let mut flusher = Flusher::start().unwrap();
        flusher.flush(&tempfile::tempfile().unwrap()).unwrap();
        flusher.finish().unwrap();
        let mut flusher = Flusher::start().unwrap();
        // A pipe cannot be synced.
        let (pipe, _end) = std::io::pipe().unwrap();
        let pipe = File::from(std::os::fd::OwnedFd::from(pipe));
        flusher.flush(&pipe).unwrap();
        assert_eq!(
            flusher.finish().unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
    }
}
