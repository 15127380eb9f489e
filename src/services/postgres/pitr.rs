//! Point-in-time recovery without touching the server's configuration: the WAL is copied out of `pg_wal` all
//! the time, its current end included, and recovery replays it after a base backup.
//!
//! ```text
//! capture ─▶ repository::wal ─▶ path (which positions a base backup can be replayed to)
//!                                 └─▶ target (what a person asked for) ─▶ replay (files and settings)
//! ```
//!
//! # The slot
//!
//! A physical slot keeps WAL that was not fetched yet. A forgotten slot fills the disk and stops the server, so
//! there is never one without a cap:
//!
//! ```text
//! no slot ──(max_slot_wal_keep_size is finite, or could be set)──▶ reserved ──advance──▶ reserved …
//!    ▲                                                              │
//!    ├──── lost, or the disk runs short: dropped, the gap is said ◀─┤
//!    ├──── another repository: dropped before it is forgotten ◀─────┤
//!    └──── `pitr off`, or PITR=off at the next start: dropped ◀─────┘
//!          and the cap that was set for it is taken back, unless another repository's slot is left
//! ```
//! It is advanced after each unit that is stored, and one that is close to its cap is used first. The disk is watched
//! for as long as a session is open, also while the repository fails.
//!
//! Before a slot or a cap is made, the state directory says so ([`guard`]): what is undone after a crash is what
//! stands there.
//!
//! # Invariants
//!
//! 1. The slot is advanced only to where the repository holds the WAL durably; what it holds is read from the
//!    repository at each start, never remembered. The server's slot may go back after a crash: no harm.
//! 2. A stretch holds only WAL that the server had flushed, read from a segment whose header was checked before
//!    and after. The moment in its name was read from the server's clock before its position was.
//! 3. A timeline's history is stored before its first stretch, and every restore lays all histories it knows
//!    beside the data: so the server never gives one number to two timelines.
//! 4. What was stored is never contradicted: a server whose WAL ends before what is stored of its timeline, or
//!    differs from it, is refused with a sentence. A host with public keys only compares with what it
//!    remembers of the last stretch. A restore compares the segment that its backup ends in with what is stored.
//! 5. Where a step fetches to is asked for when the slot is there: what is asked for cannot be removed.
//! 6. Which of two backups or stretches comes first is told by their positions. Times tell ages, and may go back.

mod base;
pub mod capture;
pub mod guard;
pub mod path;
pub mod point;
pub mod replay;
mod stream;
pub mod target;

pub use capture::Capture;
pub use replay::Replay;
pub use target::Target;
