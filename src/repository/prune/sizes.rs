//! How many decompressed bytes packs hold: read from their trailers once, and remembered.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::durable;
use crate::repository::pack::PackReader;
use crate::repository::vault::Vault;
use crate::repository::{PackName, RepositoryError};

/// Trailers read in one prune where each is a round trip.
const REMOTE_LIMIT: usize = 2000;

/// Decompressed sizes of packs; a hint that can be read again.
pub struct Sizes {
    file: Option<PathBuf>,
    known: BTreeMap<PackName, u64>,
}

impl Sizes {
    /// What is remembered in `state` of the packs that are there.
    pub fn load(state: Option<&Path>, id: &str, is_there: impl Fn(PackName) -> bool) -> Self {
        let file = state.map(|dir| dir.join(format!("pack-sizes-{id}")));
        let text = file
            .as_deref()
            .and_then(|file| match std::fs::read_to_string(file) {
                Ok(text) => Some(text),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
                Err(e) => {
                    tracing::warn!("{} is not used: {e}", file.display());
                    None
                }
            })
            .unwrap_or_default();
        let known = text
            .lines()
            .filter_map(|line| {
                let (pack, bytes) = line.split_once(' ')?;
                let pack = pack.parse().ok()?;
                is_there(pack).then_some((pack, bytes.parse().ok()?))
            })
            .collect();
        Self { file, known }
    }

    /// Reads the sizes that are not known yet, as far as that is quick.
    pub fn read(
        &mut self,
        vault: &Vault,
        packs: &BTreeSet<PackName>,
    ) -> Result<(), RepositoryError> {
        let limit = if vault.store.is_remote() {
            REMOTE_LIMIT
        } else {
            usize::MAX
        };
        let unknown: Vec<PackName> = packs
            .iter()
            .filter(|pack| !self.known.contains_key(pack))
            .take(limit)
            .copied()
            .collect();
        for pack in &unknown {
            match PackReader::open(vault, *pack, false) {
                Ok(reader) => {
                    self.known.insert(*pack, reader.raw_bytes());
                }
                // Verify tells.
                Err(err) if err.is_damage() => {}
                Err(other) => return Err(other),
            }
        }
        if !unknown.is_empty() {
            self.save();
        }
        Ok(())
    }

    pub fn get(&self, pack: PackName) -> Option<u64> {
        self.known.get(&pack).copied()
    }

    fn save(&self) {
        let Some(file) = &self.file else { return };
        let mut text = String::new();
        for (pack, bytes) in &self.known {
            // Writing to a String cannot fail.
            writeln!(text, "{pack} {bytes}").ok();
        }
        if let Err(err) = durable::write_replace(file, text.as_bytes(), 0o600) {
            tracing::warn!("the sizes of packs are read again the next time: {err}");
        }
    }
}
