//! The packs that backups are read from, and how much of each.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::decide::Moves;
use crate::repository::PackName;
use crate::repository::history::PackUses;

/// Follows what backups name to where it is now.
pub struct Needed<'a> {
    moves: &'a Moves<'a, PackName, String>,
    damaged: &'a BTreeSet<PackName>,
    live: HashSet<PackName>,
    /// The most of a pack's decompressed bytes that one backup names.
    used_bytes: HashMap<PackName, u64>,
}

impl<'a> Needed<'a> {
    pub fn new(moves: &'a Moves<'a, PackName, String>, damaged: &'a BTreeSet<PackName>) -> Self {
        Self {
            moves,
            damaged,
            live: HashSet::new(),
            used_bytes: HashMap::new(),
        }
    }

    /// Adds what one backup names, or a part of it.
    pub fn add(&mut self, id: &str, packs: impl IntoIterator<Item = (PackName, u64)>) {
        let mut moved_to: HashMap<PackName, u64> = HashMap::new();
        for (pack, bytes) in packs {
            if !self.moves.holds(&pack) {
                self.use_some(pack, bytes);
                continue;
            }
            for place in self.moves.reach(id, [pack], self.damaged) {
                // An upper bound when the pack's pieces went to several places.
                *moved_to.entry(place).or_default() += bytes;
            }
        }
        for (pack, bytes) in moved_to {
            self.use_some(pack, bytes);
        }
    }

    /// Adds all that is remembered. Where a pack went that moved depends on the backup; of the others it is all
    /// the same who names them.
    pub fn add_remembered(&mut self, memory: &PackUses<'_>) {
        for (pack, bytes) in memory.named() {
            if !self.moves.holds(&pack) {
                self.use_some(pack, bytes);
            }
        }
        if !self.moves.is_empty() {
            for (id, packs) in memory.of_each(|pack| self.moves.holds(&pack)) {
                self.add(id, packs);
            }
        }
    }

    /// The packs, and of each the most that one backup names.
    pub fn into_parts(self) -> (HashSet<PackName>, HashMap<PackName, u64>) {
        (self.live, self.used_bytes)
    }

    fn use_some(&mut self, pack: PackName, bytes: u64) {
        self.live.insert(pack);
        let most = self.used_bytes.entry(pack).or_default();
        *most = (*most).max(bytes);
    }
}
