//! Prune: gives back the space of packs that no backup needs.

pub mod decide;
