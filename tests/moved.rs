//! `copy` and `repair` beside prunes: packs that moved before or meanwhile, and names that are used again.
// Both worlds bring the same notes.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::duplicate_mod)]

#[path = "moved/copies.rs"]
mod copies;
#[path = "moved/repairs.rs"]
mod repairs;
#[path = "support/repo.rs"]
mod repo;
#[path = "prune/store.rs"]
#[allow(dead_code)]
mod store;
#[path = "prune/world.rs"]
#[allow(dead_code)]
mod world;
