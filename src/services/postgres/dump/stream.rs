//! One dump on its way into the archive.
//!
//! A dump's length is not known before its end, and an entry of a tar file has its length in front. So it is
//! written as parts of [`PART_BYTES`], each held in memory until it is full; `cat` puts them together again.
//! They are not compressed here: rows that stay as they are stay the same bytes, which the repository finds
//! again and compresses by itself.

use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::super::tools::{Call, Tools};
use super::facts;
use crate::archive::{ArchiveError, ArchiveWriter, Cut, EntryMeta};
use crate::services::support::{archive_failed, hex};
use crate::services::{ErrorKind, ServiceError};

/// How much of a dump is one member of the archive.
const PART_BYTES: usize = 8 << 20;
/// What lies between a tool and what it feeds.
pub const PIPE_BYTES: usize = 256 << 10;
/// A dump waits no longer for somebody else's lock.
const LOCK_WAIT_MILLISECONDS: u32 = 600_000;

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    pub parts: u32,
    pub bytes: u64,
    pub sha256: String,
}

/// The call that dumps a database as its owner's snapshot shows it.
pub fn dump_call(database: &str, snapshot: Option<&str>) -> Call {
    let call = Call::new("pg_dump", format!("dump database \"{database}\""))
        .args(["--format=custom", "--compress=0", "--no-password"])
        .arg(format!("--lock-wait-timeout={LOCK_WAIT_MILLISECONDS}"))
        .database(database);
    match snapshot {
        Some(id) => call.arg(format!("--snapshot={id}")),
        None => call,
    }
}

/// Dumps one database into the archive.
///
/// The dump counts only when `pg_dump` ended well **and** `pg_restore` read the same bytes from the table of
/// contents to the last row: a stream that was cut at the border of a table would otherwise look whole.
pub async fn dump(
    tools: &Tools,
    call: &Call,
    service: &str,
    (member, meta): (&str, &EntryMeta),
    archive: &mut ArchiveWriter,
) -> Result<Written, ServiceError> {
    let (mut from_dump, mut dumped) = tokio::io::duplex(PIPE_BYTES);
    let (mut for_proof, mut to_proof) = tokio::io::duplex(PIPE_BYTES);
    let dumping = async {
        let ended = tools.run(call, None, &mut from_dump).await;
        // Only after a good end: what reads must not take the end of the pipe for the end of the dump.
        ended?;
        from_dump
            .shutdown()
            .await
            .map_err(|err| ServiceError::new(service, ErrorKind::Io, err.to_string()))
    };
    let proof = Call::new("pg_restore", format!("read the dump {member} back"))
        .args(["--format=custom", "--file=/dev/null"]);
    let proving = async {
        let mut nothing = tokio::io::sink();
        tools.run(&proof, Some(&mut for_proof), &mut nothing).await
    };
    let writing = copy(service, (member, meta), archive, &mut dumped, &mut to_proof);
    let ((), (), written) = tokio::try_join!(dumping, proving, writing)?;
    Ok(written)
}

/// Copies a stream into parts of the archive and into the proof.
async fn copy(
    service: &str,
    (member, meta): (&str, &EntryMeta),
    archive: &mut ArchiveWriter,
    from: &mut DuplexStream,
    proof: &mut DuplexStream,
) -> Result<Written, ServiceError> {
    let failed = |err: ArchiveError| archive_failed(service, err);
    let mut sha256 = Sha256::new();
    let (mut parts, mut bytes) = (0_u32, 0_u64);
    let mut part = Vec::with_capacity(PART_BYTES);
    loop {
        part.clear();
        fill(from, &mut part, proof)
            .await
            .map_err(|err| ServiceError::new(service, ErrorKind::Io, err.to_string()))?;
        if part.is_empty() {
            break;
        }
        tokio::task::block_in_place(|| {
            sha256.update(&part);
            write_part(archive, &facts::part(member, parts), meta, &part)
        })
        .map_err(failed)?;
        parts += 1;
        bytes += part.len() as u64;
    }
    // It has gone already when it found an error, which it tells itself.
    proof.shutdown().await.unwrap_or_default();
    Ok(Written {
        parts,
        bytes,
        sha256: hex(&sha256.finalize()),
    })
}

/// Reads until a part is full or the stream ends.
async fn fill(
    from: &mut DuplexStream,
    part: &mut Vec<u8>,
    proof: &mut DuplexStream,
) -> std::io::Result<()> {
    while part.len() < PART_BYTES {
        let before = part.len();
        let room = (PART_BYTES - before) as u64;
        if (&mut *from).take(room).read_buf(part).await? == 0 {
            break;
        }
        let piece = part.get(before..).unwrap_or_default();
        proof.write_all(piece).await.unwrap_or_default();
    }
    Ok(())
}

fn write_part(
    archive: &mut ArchiveWriter,
    name: &str,
    meta: &EntryMeta,
    part: &[u8],
) -> Result<(), ArchiveError> {
    let mut body = archive.member(name, meta, part.len() as u64, Cut::Content)?;
    for piece in part.chunks(PIPE_BYTES) {
        body.write(piece)?;
    }
    body.finish()
}
