//! Stores one Qdrant snapshot as the adapter does, without a server: `store-snapshot REPOSITORY STATE FILE`.
//!
//! For `scripts/bench economy`, which measures given snapshots byte for byte; no server gives back the very
//! bytes it was given.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use anyhow::{Context, bail};
use jiff::Timestamp;
use lifeboat::archive::{ArchiveWriter, Cut, EntryMeta};
use lifeboat::repository::Repository;
use lifeboat::repository::session::{ArchiveNotes, BackupNotes, new_id};
use lifeboat::services::{PointInTime, ServiceKind, ServiceReport};

/// What the server's answers are read in.
const PIECE_BYTES: usize = 64 * 1024;
const LEVEL: i32 = 3;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [repository, state, snapshot] = arguments.as_slice() else {
        bail!("usage: store-snapshot REPOSITORY STATE FILE");
    };
    let repository = Repository::open_or_init_local(Path::new(repository))?;
    let now = Timestamp::now();
    let backup = repository.begin(&new_id(now), Path::new(state), LEVEL)?;
    let mut archive = backup.archive("qdrant")?;
    write_member(&mut archive, Path::new(snapshot))?;
    let notes = ArchiveNotes {
        kind: ServiceKind::Qdrant,
        container: None,
        point: PointInTime {
            at: now,
            coordinate: None,
        },
        report: ServiceReport {
            version: String::new(),
            counts: [("collections".to_owned(), 1)].into(),
            facts: serde_json::json!({}),
            warnings: Vec::new(),
        },
    };
    let manifest = backup.commit(vec![(archive.seal()?, notes)], BackupNotes::default())?;
    let told = serde_json::json!({ "manifest": manifest });
    writeln!(std::io::stdout(), "{told}").context("tell the manifest")
}

fn write_member(archive: &mut ArchiveWriter, snapshot: &Path) -> anyhow::Result<()> {
    let mut file = File::open(snapshot).with_context(|| format!("open {}", snapshot.display()))?;
    let meta = file.metadata().context("read the snapshot's size")?;
    let mut member = archive.member(
        "collections/kb.snapshot",
        &EntryMeta::of(&meta),
        meta.len(),
        Cut::Members,
    )?;
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let got = file.read(&mut piece).context("read the snapshot")?;
        let Some(bytes) = piece.get(..got).filter(|bytes| !bytes.is_empty()) else {
            return Ok(member.finish()?);
        };
        member.write(bytes)?;
    }
}
