#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::io::{self, Write};
use std::sync::atomic::AtomicU32;

use jiff::Timestamp;

use super::*;
use crate::repository::PackName;
use crate::repository::crypto::{Mode, Secrets};
use crate::repository::frame::Decoder;
use crate::repository::pack::PackReader;
use crate::repository::store::{Blob, Entry, LocalStore, Spool, Store};

/// What goes wrong with what the pipeline stores.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// Of a pack's bytes, this many are taken.
    FullAfter(u64),
    PanicAfter(u64),
    Publish,
    PublishPanic,
}

struct Faulty(LocalStore, Fault);

struct FaultySpool {
    spool: Box<dyn Spool>,
    fault: Fault,
    written: u64,
}

impl Write for FaultySpool {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.fault {
            Fault::FullAfter(limit) if self.written >= limit => {
                return Err(io::Error::other("no room at all"));
            }
            Fault::PanicAfter(limit) => assert!(self.written < limit, "as the test wants it"),
            _ => {}
        }
        let count = self.spool.write(bytes)?;
        self.written += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.spool.flush()
    }
}

impl Spool for FaultySpool {
    fn publish(self: Box<Self>, key: &str) -> Result<(), RepositoryError> {
        if self.fault == Fault::Publish {
            return Err(RepositoryError::Invalid("no room at the end".to_owned()));
        }
        assert!(self.fault != Fault::PublishPanic, "as the test wants it");
        self.spool.publish(key)
    }
}

impl Store for Faulty {
    fn spool(&self) -> Result<Box<dyn Spool>, RepositoryError> {
        Ok(Box::new(FaultySpool {
            spool: self.0.spool()?,
            fault: self.1,
            written: 0,
        }))
    }

    fn put(&self, key: &str, bytes: &[u8]) -> Result<(), RepositoryError> {
        self.0.put(key, bytes)
    }
    fn replace(&self, key: &str, bytes: &[u8]) -> Result<(), RepositoryError> {
        self.0.replace(key, bytes)
    }
    fn get(&self, key: &str, limit_bytes: u64) -> Result<Vec<u8>, RepositoryError> {
        self.0.get(key, limit_bytes)
    }
    fn open(&self, key: &str) -> Result<Box<dyn Blob>, RepositoryError> {
        self.0.open(key)
    }
    fn list(&self, prefix: &str) -> Result<Vec<Entry>, RepositoryError> {
        self.0.list(prefix)
    }
    fn delete(&self, key: &str) -> Result<(), RepositoryError> {
        self.0.delete(key)
    }
    fn remove_abandoned(&self) -> Result<(), RepositoryError> {
        self.0.remove_abandoned()
    }
    fn now(&self) -> Result<Timestamp, RepositoryError> {
        self.0.now()
    }
    fn check_writable(&self) -> Result<(), RepositoryError> {
        self.0.check_writable()
    }
    fn free_bytes(&self) -> Option<u64> {
        self.0.free_bytes()
    }
    fn is_remote(&self) -> bool {
        self.0.is_remote()
    }
    fn describe(&self) -> String {
        self.0.describe()
    }
}

struct World {
    dir: tempfile::TempDir,
    vault: Arc<Vault>,
    workers: Workers,
}

impl World {
    fn new(fault: Fault) -> Self {
        Self::with(fault, Workers::start(3).unwrap())
    }

    fn with(fault: Fault, workers: Workers) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let vault = Arc::new(Vault {
            store: Arc::new(Faulty(LocalStore::new(dir.path()), fault)),
            mode: Mode::Plain,
            secrets: Secrets::generate(),
            epoch: AtomicU32::new(1),
        });
        Self {
            dir,
            vault,
            workers,
        }
    }

    fn pipeline(&self) -> Pipeline {
        let index = Arc::new(IndexWriter::new(Arc::clone(&self.vault), "run"));
        Pipeline::start(Arc::clone(&self.vault), index, &self.workers).unwrap()
    }

    /// All files in the directory of packs, unfinished ones too.
    fn files(&self) -> usize {
        let mut open = vec![self.dir.path().join("packs")];
        let mut found = 0;
        while let Some(dir) = open.pop() {
            for entry in std::fs::read_dir(dir).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    open.push(path);
                } else {
                    found += 1;
                }
            }
        }
        found
    }

    fn decoded(&self, pack: PackName) -> Vec<u8> {
        let mut reader = PackReader::open(&self.vault, pack, true).unwrap();
        let (mut all, mut frame) = (Vec::new(), Vec::new());
        let mut decoder = Decoder::new().unwrap();
        reader
            .each_frame(&mut decoder, &mut frame, |_, raw| {
                all.extend_from_slice(raw);
                Ok(())
            })
            .unwrap();
        all
    }
}

/// Frames of many sizes; some compress to nothing, some not at all, so that they are done in another order.
fn frames(seed: u64, count: usize) -> Vec<Vec<u8>> {
    let mut state = seed;
    let mut next = move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    let frame = |_| {
        let length = 1 + usize::try_from(next() % 300_000).unwrap();
        match next() % 3 {
            0 => vec![u8::try_from(next() % 256).unwrap(); length],
            1 => std::iter::repeat_with(|| (next() & 0xFF) as u8)
                .take(length)
                .collect(),
            _ => b"a line that returns\n".repeat(length.div_ceil(20)),
        }
    };
    (0..count).map(frame).collect()
}

fn raw(bytes: &[u8]) -> RawFrame {
    let mut raw = RawFrame::default();
    raw.push(bytes);
    raw
}

/// Hands frames over, a pack for each `each` of them.
fn hand_over(
    pipeline: &mut Pipeline,
    frames: &[Vec<u8>],
    each: usize,
) -> Result<(), RepositoryError> {
    for (number, pack) in frames.chunks(each).enumerate() {
        let mut table = BlockTable::default();
        for frame in pack {
            table.push_block(u32::try_from(frame.len()).unwrap(), [0; 32]);
            pipeline.frame(raw(frame))?;
        }
        pipeline.close(i64::try_from(number).unwrap(), table)?;
    }
    Ok(())
}

#[test]
fn frames_of_several_archives_lie_in_their_packs_in_the_order_they_were_handed_over() {
    let world = World::new(Fault::None);
    let lanes: Vec<_> = (1..5).map(|seed| frames(seed, 150)).collect();
    let packs: Vec<Packs> = std::thread::scope(|scope| {
        let threads: Vec<_> = lanes
            .iter()
            .enumerate()
            .map(|(lane, frames)| {
                let world = &world;
                scope.spawn(move || {
                    let mut pipeline = world.pipeline();
                    hand_over(&mut pipeline, frames, 7 + lane).unwrap();
                    pipeline.finish().unwrap()
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    for (lane, (frames, packs)) in lanes.iter().zip(packs).enumerate() {
        let wanted: Vec<_> = frames.chunks(7 + lane).map(<[_]>::concat).collect();
        assert_eq!(packs.len(), wanted.len());
        for (at, (number, pack)) in packs.iter().enumerate() {
            assert_eq!(*number, i64::try_from(at).unwrap());
            assert!(world.decoded(pack.name) == wanted[at], "pack {at}");
        }
    }
}

#[test]
fn a_store_that_is_full_fails_the_archive_and_leaves_nothing() {
    for fault in [Fault::FullAfter(0), Fault::FullAfter(3_000_000)] {
        let world = World::new(fault);
        let mut pipeline = world.pipeline();
        let handed = hand_over(&mut pipeline, &frames(1, 200), 1000);
        let outcome = handed.and_then(|()| pipeline.finish().map(drop));
        assert!(outcome.unwrap_err().to_string().contains("no room at all"));
        // It stays failed.
        assert!(pipeline.frame(raw(&[1])).is_err());
        drop(pipeline);
        assert_eq!(world.files(), 0);
    }
}

#[test]
fn a_pack_that_cannot_be_published_fails_the_archive_and_leaves_nothing() {
    let world = World::new(Fault::Publish);
    for count in [3, 200] {
        let mut pipeline = world.pipeline();
        let handed = hand_over(&mut pipeline, &frames(2, count), 3);
        let outcome = handed.and_then(|()| pipeline.finish().map(drop));
        assert!(
            outcome
                .unwrap_err()
                .to_string()
                .contains("no room at the end")
        );
        drop(pipeline);
        assert_eq!(world.files(), 0);
    }
}

#[test]
fn an_archive_that_is_given_up_leaves_nothing_and_harms_no_other() {
    let world = World::new(Fault::None);
    let (given_up, kept) = (frames(3, 40), frames(4, 40));
    let mut other = world.pipeline();
    for _ in 0..20 {
        let mut pipeline = world.pipeline();
        // Its pack stays open.
        for frame in &given_up {
            pipeline.frame(raw(frame)).unwrap();
        }
        drop(pipeline);
        assert_eq!(world.files(), 0);
    }
    hand_over(&mut other, &kept, 40).unwrap();
    let packs = other.finish().unwrap();
    assert!(world.decoded(packs[0].1.name) == kept.concat());
}

#[test]
fn a_caller_works_for_its_own_archive_and_for_no_other() {
    let world = World::with(Fault::None, Workers::with_threads(3, 0).unwrap());
    let (mut waiting, mut busy) = (world.pipeline(), world.pipeline());
    let (few, many) = (vec![vec![7; 1000]; 3], frames(6, 100));
    hand_over(&mut waiting, &few, 3).unwrap();
    hand_over(&mut busy, &many, 100).unwrap();
    assert!(busy.written() == 0 && world.files() > 0);
    let packs = busy.finish().unwrap();
    assert!(world.decoded(packs[0].1.name) == many.concat());
    // Nobody but the other's own caller has touched them.
    assert_eq!(world.files(), 1);
    let packs = waiting.finish().unwrap();
    assert!(world.decoded(packs[0].1.name) == few.concat());
}

#[test]
fn an_archive_that_has_ended_takes_nothing_more() {
    let world = World::new(Fault::None);
    let mut pipeline = world.pipeline();
    hand_over(&mut pipeline, &frames(7, 3), 3).unwrap();
    pipeline.finish().unwrap();
    assert!(pipeline.frame(raw(&[1])).is_err());
    assert!(pipeline.close(1, BlockTable::default()).is_err());
    assert!(pipeline.finish().is_err());
    assert_eq!(world.files(), 1);
}

#[test]
fn a_thread_that_panics_fails_the_archive_and_keeps_nobody_waiting() {
    for (fault, each) in [
        (Fault::PanicAfter(2_000_000), 1000),
        (Fault::PublishPanic, 3),
    ] {
        let world = World::new(fault);
        let frames = frames(5, 200);
        let outcome = std::thread::scope(|scope| {
            let run = || {
                let mut pipeline = world.pipeline();
                hand_over(&mut pipeline, &frames, each)?;
                pipeline.finish().map(drop)
            };
            scope.spawn(run).join()
        });
        // The caller itself may have been the thread.
        if let Ok(outcome) = outcome {
            assert!(outcome.unwrap_err().to_string().contains("unexpectedly"));
        }
        assert_eq!(world.files(), 0);
    }
}
