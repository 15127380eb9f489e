//! What of an import belongs to no service that was found: one archive of all of it, with its paths.

use async_trait::async_trait;
use jiff::Timestamp;

use super::stage::Tree;
use crate::archive::ArchiveWriter;
use crate::archive::walk::{Rules, TreeCounts};
use crate::services::support::archive_failed;
use crate::services::volume::{skipped_warning, tree_bytes, tree_counts};
use crate::services::{Check, PointInTime, Service, ServiceError, ServiceKind, ServiceReport};

/// The rests of several trees.
pub struct Rest {
    name: String,
    /// Each with where it goes in the archive, and without what the services' archives take.
    trees: Vec<(String, Tree, Rules)>,
    counts: TreeCounts,
}

impl Rest {
    /// Each tree gets a directory of its own in the archive, unless there is one only.
    pub fn new(name: &str, trees: Vec<(Tree, Vec<String>)>) -> Self {
        let is_only = trees.len() == 1;
        let trees = trees
            .into_iter()
            .map(|(tree, exclude)| {
                let prefix = if is_only { "" } else { tree.name.as_str() };
                let rules = Rules {
                    exclude,
                    ..Rules::default()
                };
                (prefix.to_owned(), tree, rules)
            })
            .collect();
        Self {
            name: name.to_owned(),
            trees,
            counts: TreeCounts::default(),
        }
    }
}

#[async_trait]
impl Service for Rest {
    fn kind(&self) -> ServiceKind {
        ServiceKind::Volume
    }

    fn name(&self) -> &str {
        &self.name
    }

    async fn check(&self) -> Vec<Check> {
        Vec::new()
    }

    async fn estimate(&self) -> u64 {
        let bytes = |(_, tree, rules): &(String, Tree, Rules)| tree_bytes(&tree.root, rules);
        tokio::task::block_in_place(|| self.trees.iter().map(bytes).sum())
    }

    async fn copy(&mut self, archive: &mut ArchiveWriter) -> Result<(), ServiceError> {
        for (prefix, tree, rules) in &self.trees {
            let counts = tokio::task::block_in_place(|| archive.tree(prefix, &tree.root, rules))
                .map_err(|e| archive_failed(&self.name, e))?;
            self.counts.files += counts.files;
            self.counts.directories += counts.directories;
            self.counts.bytes += counts.bytes;
            self.counts.skipped_special += counts.skipped_special;
        }
        Ok(())
    }

    async fn freeze(&mut self) -> Result<PointInTime, ServiceError> {
        Ok(PointInTime::at(Timestamp::now()))
    }

    async fn drain(&mut self, _archive: &mut ArchiveWriter) -> Result<ServiceReport, ServiceError> {
        Ok(ServiceReport {
            version: String::new(),
            counts: tree_counts(&self.counts),
            facts: serde_json::json!({}),
            warnings: skipped_warning(&self.counts).into_iter().collect(),
        })
    }
}
