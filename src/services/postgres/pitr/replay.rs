//! What recovery needs beside a base backup: segments and histories in `pg_wal`, and where to stop.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, chown, fchown};
use std::path::Path;
use std::sync::Arc;

use super::path::Leg;
use super::stream::Stream;
use crate::repository::Repository;
use crate::repository::wal::WalList;
use crate::services::postgres::wal::{Lsn, SegmentSize};

/// Goes beside a staged data directory. Cheap to clone.
#[derive(Clone)]
pub struct Replay(Arc<Inner>);

impl std::fmt::Debug for Replay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Replay({})", self.0.said)
    }
}

struct Inner {
    repository: Arc<Repository>,
    list: WalList,
    system: u64,
    size: SegmentSize,
    timeline: u32,
    legs: Vec<Leg>,
    settings: Vec<(&'static str, String)>,
    /// By timeline, as the servers wrote them.
    histories: Vec<(u32, String)>,
    said: String,
}

/// What a replay is made of.
pub struct Parts {
    pub repository: Arc<Repository>,
    pub list: WalList,
    pub system: u64,
    pub size: SegmentSize,
    /// The timeline that recovery follows.
    pub timeline: u32,
    pub legs: Vec<Leg>,
    /// Where it stops; at the end of the WAL when empty.
    pub settings: Vec<(&'static str, String)>,
    pub histories: Vec<(u32, String)>,
    /// What a person is told.
    pub said: String,
}

impl Replay {
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(Inner {
            repository: parts.repository,
            list: parts.list,
            system: parts.system,
            size: parts.size,
            timeline: parts.timeline,
            legs: parts.legs,
            settings: parts.settings,
            histories: parts.histories,
            said: parts.said,
        }))
    }

    pub fn timeline(&self) -> u32 {
        self.0.timeline
    }

    pub fn settings(&self) -> &[(&'static str, String)] {
        &self.0.settings
    }

    /// Whether it goes beyond the base backup.
    pub fn goes_on(&self) -> bool {
        self.0.legs.iter().any(|leg| leg.to > leg.from)
    }

    pub fn said(&self) -> &str {
        &self.0.said
    }

    /// Bytes of WAL that are replayed after the base backup.
    pub fn bytes(&self) -> u64 {
        self.0.legs.iter().map(|leg| leg.to - leg.from).sum()
    }

    /// The last position that is replayed.
    pub fn end(&self) -> u64 {
        self.0.legs.last().map_or(0, |leg| leg.to)
    }

    /// Bytes of the segments that are written.
    pub fn staged_bytes(&self) -> u64 {
        let size = self.0.size;
        let segments = self
            .0
            .legs
            .iter()
            .filter(|leg| leg.to > leg.from)
            .map(|leg| size.segment_before(Lsn(leg.to)) + 1 - size.segment_at(Lsn(leg.from)));
        segments.sum::<u64>() * size.bytes()
    }

    /// Writes everything into a staged data directory. Blocks.
    pub fn stage(&self, staged: &Path, owner: (u32, u32)) -> io::Result<()> {
        let directory = staged.join("pg_wal");
        let status = directory.join("archive_status");
        match DirBuilder::new().mode(0o700).create(&status) {
            Err(err) if err.kind() != io::ErrorKind::AlreadyExists => return Err(err),
            _ => chown(&status, Some(owner.0), Some(owner.1))?,
        }
        for (timeline, text) in &self.0.histories {
            let name = format!("{timeline:08X}.history");
            write(&directory.join(&name), text.as_bytes(), owner)?;
            done(&status, &name, owner)?;
        }
        if let Some(leg) = self.0.legs.first().filter(|leg| leg.to > leg.from) {
            self.compare(*leg, &directory)?;
        }
        for leg in self.0.legs.iter().filter(|leg| leg.to > leg.from) {
            self.stage_leg(*leg, &directory, &status, owner)?;
        }
        Ok(())
    }

    /// The segment that the backup ends in must be the one that is stored. What was forgotten of a timeline may have
    /// been stored anew, from a cluster that was put back before the backup: recovery would end in the middle of it.
    fn compare(&self, leg: Leg, directory: &Path) -> io::Result<()> {
        let size = self.0.size;
        let segment = size.segment_at(Lsn(leg.from));
        let start = size.start_of(segment).0;
        let of_both = leg.from - start;
        let own = match std::fs::File::open(directory.join(size.name(leg.timeline, segment))) {
            Ok(own) => own,
            // It ends where a segment does.
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(err) => return Err(err),
        };
        let (system, timeline) = (self.0.system, leg.timeline);
        let of = (system, timeline);
        let mut stored = Stream::new(&self.0.repository, &self.0.list, of, start, leg.from);
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        own.take(of_both).read_to_end(&mut ours)?;
        stored.read_to_end(&mut theirs)?;
        if ours == theirs {
            return Ok(());
        }
        Err(io::Error::other(format!(
            "the WAL that is stored of timeline {timeline} is not the one that this backup was made in: the cluster was put back to before it. Choose a moment that a later backup leads to, or restore this backup by its id, without what came after"
        )))
    }

    fn stage_leg(
        &self,
        leg: Leg,
        directory: &Path,
        status: &Path,
        owner: (u32, u32),
    ) -> io::Result<()> {
        let size = self.0.size;
        let (first, last) = (
            size.segment_at(Lsn(leg.from)),
            size.segment_before(Lsn(leg.to)),
        );
        let mut stream = Stream::new(
            &self.0.repository,
            &self.0.list,
            (self.0.system, leg.timeline),
            size.start_of(first).0,
            leg.to,
        );
        for segment in first..=last {
            let name = size.name(leg.timeline, segment);
            let mut file = new_file(&directory.join(&name), owner)?;
            io::copy(&mut Read::by_ref(&mut stream).take(size.bytes()), &mut file)?;
            // A short file would be refused, and what followed in a recycled one is not ours.
            file.set_len(size.bytes())?;
            file.sync_all()?;
            done(status, &name, owner)?;
        }
        Ok(())
    }
}

/// Marks a file as archived: after the restore it must not be archived again.
fn done(status: &Path, name: &str, owner: (u32, u32)) -> io::Result<()> {
    write(&status.join(format!("{name}.done")), b"", owner)
}

fn write(path: &Path, bytes: &[u8], owner: (u32, u32)) -> io::Result<()> {
    let mut file = new_file(path, owner)?;
    io::Write::write_all(&mut file, bytes)?;
    file.sync_all()
}

/// A file of the staged directory, in place of the one that the base backup brought.
fn new_file(path: &Path, owner: (u32, u32)) -> io::Result<std::fs::File> {
    match std::fs::remove_file(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
        _ => {}
    }
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    fchown(&file, Some(owner.0), Some(owner.1))?;
    Ok(file)
}
