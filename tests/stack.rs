//! The whole stack in containers, through the interfaces its users have. `scripts/test` runs it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "containers/databases.rs"]
mod databases;
#[path = "containers/faults.rs"]
mod faults;
#[path = "containers/imports.rs"]
mod imports;
#[path = "containers/moments.rs"]
mod moments;
#[path = "containers/project.rs"]
mod project;
#[path = "containers/restores.rs"]
mod restores;
