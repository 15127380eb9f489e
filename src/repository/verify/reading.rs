//! Which packs were read whole, and when: so that nightly samples cover everything in time.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::durable;
use crate::repository::{PackName, RepositoryError};

/// When each pack was last read whole and found good. A hint: without it a sample begins anew.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReadLog(BTreeMap<PackName, i64>);

impl ReadLog {
    /// Reads what the state directory has for a repository.
    pub fn load(state: &Path, repository_id: &str) -> Self {
        let path = path(state, repository_id);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Self::default(),
            Err(e) => {
                tracing::warn!(
                    "{} cannot be read ({e}): which packs were read before is not known",
                    path.display()
                );
                return Self::default();
            }
        };
        let line = |line: &str| {
            let (pack, seconds) = line.split_once(' ')?;
            Some((pack.parse().ok()?, seconds.parse().ok()?))
        };
        Self(text.lines().filter_map(line).collect())
    }

    pub fn save(&self, state: &Path, repository_id: &str) -> Result<(), RepositoryError> {
        let mut text = String::new();
        for (pack, seconds) in &self.0 {
            // Writing to a String cannot fail.
            writeln!(text, "{pack} {seconds}").ok();
        }
        durable::write_replace(&path(state, repository_id), text.as_bytes(), 0o600).map_err(|e| {
            RepositoryError::io(
                "remember in the state directory (LIFEBOAT_STATE) which packs were read",
                e,
            )
        })
    }

    pub(super) fn note(&mut self, pack: PackName) {
        self.0.insert(pack, Timestamp::now().as_second());
    }

    pub(super) fn keep(&mut self, is_there: impl Fn(&PackName) -> bool) {
        self.0.retain(|pack, _| is_there(pack));
    }

    /// Packs that make up `percent` of the bytes of all, at least one: those that were not read for longest,
    /// and among equals in an order that `seed` gives.
    pub(super) fn choose(
        &self,
        packs: Vec<(PackName, u64)>,
        percent: u8,
        seed: u64,
    ) -> HashSet<PackName> {
        let total: u64 = packs.iter().map(|(_, bytes)| *bytes).sum();
        let wanted = u128::from(total) * u128::from(percent) / 100;
        // A time that is still to come was noted by a clock that was ahead.
        let now = Timestamp::now().as_second();
        let read = |pack: PackName| self.0.get(&pack).copied().filter(|read| *read <= now);
        let mut ordered: Vec<_> = packs
            .into_iter()
            .map(|(pack, bytes)| (read(pack), draw(seed, pack), pack, bytes))
            .collect();
        ordered.sort_unstable();
        let mut chosen = HashSet::new();
        let mut bytes = 0;
        for (_, _, pack, size) in ordered {
            if bytes >= wanted && !chosen.is_empty() {
                break;
            }
            bytes += u128::from(size);
            chosen.insert(pack);
        }
        chosen
    }
}

fn draw(seed: u64, pack: PackName) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.update(&pack.0);
    hasher.finalize().into()
}

fn path(state: &Path, repository_id: &str) -> PathBuf {
    state.join(format!("verified-{repository_id}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn samples_cover_everything_in_time_and_a_seed_repeats_one() {
        let packs: Vec<_> = (0..20u8).map(|n| (PackName([n; 32]), 10)).collect();
        let mut log = ReadLog::default();
        let first = log.choose(packs.clone(), 25, 7);
        assert_eq!(first, log.choose(packs.clone(), 25, 7));
        assert_ne!(first, log.choose(packs.clone(), 25, 8));
        let mut covered = HashSet::new();
        for seed in 0..4 {
            let chosen = log.choose(packs.clone(), 25, seed);
            assert_eq!(chosen.len(), 5);
            for pack in &chosen {
                log.note(*pack);
            }
            covered.extend(chosen);
        }
        assert_eq!(covered.len(), 20);
        assert_eq!(log.choose(packs, 0, 1).len(), 1);
    }

    #[test]
    fn what_was_read_is_remembered() {
        let state = tempfile::tempdir().unwrap();
        let mut log = ReadLog::load(state.path(), "r");
        log.note(PackName([1; 32]));
        log.note(PackName([2; 32]));
        log.keep(|pack| *pack != PackName([2; 32]));
        log.save(state.path(), "r").unwrap();
        assert_eq!(ReadLog::load(state.path(), "r"), log);
    }
}
