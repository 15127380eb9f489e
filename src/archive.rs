//! One service's data as one tar stream: written entry by entry on backup, read and unpacked on restore.
//!
//! [`ArchiveWriter`] turns entries ([`entry`]) into tar bytes ([`writer`]) and hands them to the repository's
//! cutter; a file that has not changed since the parent backup is spliced in by its ranges without being read
//! ([`cache`]). [`walk`] lists a directory tree; [`unpack`] writes a stream back below one directory and
//! nowhere else.

pub mod cache;
pub mod entry;
pub mod header;
pub mod held;
pub mod unpack;
pub mod walk;
pub mod writer;

pub use entry::{ArchiveError, Cut, EntryMeta, FileOutcome, OnChange};
pub use writer::{ArchiveWriter, EndedArchive, FileSum, Member, SealedArchive, Watch};
