//! Takes in a backup that was made without this program: tar files or copied directories of a stack.
//!
//! ```text
//! files and directories → stage (tars unpacked, checked) → detect (services by what lies there)
//!                       → parts (the real adapters, and no server) → an ordinary backup
//! ```
//!
//! Names say nothing here: what a directory is, is seen by what is in it. A file that belongs to no service
//! that was found is kept in an archive of its own ([`rest`]). The files that were given are only read.

mod sniff;
pub mod stage;

mod detect;
mod dotenv;
mod names;

mod parts;
mod rest;

use std::path::PathBuf;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::archive::ArchiveError;
use crate::config::Config;
use crate::services::volume::own_directories;
use crate::services::{Service, ServiceError};
use detect::Seen;
use stage::Tree;

/// What was given, looked through.
pub struct Source {
    tree: Tree,
    /// Paths in it that are this program's own: the repository may lie beside the data.
    own: Vec<String>,
    seen: Seen,
}

/// Stages and looks through what was given. `staging` is an empty directory that the caller removes.
pub async fn look(
    config: &Config,
    paths: &[PathBuf],
    staging: &std::path::Path,
    stop: &CancellationToken,
) -> anyhow::Result<Vec<Source>> {
    let trees = stage::stage(paths, staging, stop).await?;
    let sources = tokio::task::block_in_place(|| {
        trees
            .into_iter()
            .map(|tree| {
                let own = own_directories(config, &tree.root);
                let seen = detect::look(&tree.root, &own)?;
                Ok(Source { tree, own, seen })
            })
            .collect::<Result<Vec<_>, ArchiveError>>()
    })?;
    Ok(sources)
}

/// The newest modification among all files.
pub fn newest(sources: &[Source]) -> Option<Timestamp> {
    sources.iter().filter_map(|source| source.seen.newest).max()
}

/// The adapters that make the archives. None when no service was found and no project.
pub fn services(
    config: &Config,
    sources: &[Source],
) -> Result<Vec<Box<dyn Service>>, ServiceError> {
    parts::services(config, sources)
}
