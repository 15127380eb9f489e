//! Qdrant's snapshot archive, written and read.
//!
//! An uncompressed tar: `{shard}/segments/{uuid}.tar` (tars themselves),
//! `{shard}/wal/*` as GNU sparse entries, then the collection's small JSON
//! files. The layout is that of the recorded archives, down to the segments'
//! storage files, so that real snapshots of plain segments can be read too.

pub mod archive;
mod gridstore;
pub mod segment;
pub mod tar_files;
