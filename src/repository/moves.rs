//! Runs that moved pieces of packs elsewhere: a repack, or a repair that saved what was left.
//!
//! ```text
//! moved/<run>/<pack>[.age]   where the pieces of one pack went ([`super::moved`])
//! moved/<run>/packs          the commit point, readable for everybody as a backup's list of packs is:
//!     # lifeboat moves 1
//!     backup <id>            a backup whose pieces were looked at
//!     pack <from> <to>...    a pack, and the packs that its pieces are in now
//!     part <from>            not all of that pack was found: it is needed itself, should it come back
//!     # seal <hex>
//! ```
//! A move holds for the backups that it names: another one, which was committed meanwhile, may want pieces
//! that were not moved, so the pack stays as long as that backup does. Everything of a run lies under names
//! of its own, so that what a run left half done can be told apart and removed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;

use super::crypto::Sealed;
use super::lease::is_void;
use super::moved::Moved;
use super::prune::decide::Move;
use super::store::Entry;
use super::vault::Vault;
use super::{PackName, RepositoryError};

const HEADING: &str = "# lifeboat moves 1";
const RECORD_LIMIT_BYTES: u64 = 256 * 1024 * 1024;
const PIECES_LIMIT_BYTES: u64 = 256 * 1024 * 1024;

/// The committed moves that a listing showed, by pack.
#[derive(Debug, Default)]
pub struct MoveList(HashMap<PackName, Vec<String>>);

impl MoveList {
    /// What a listing of `moved` shows.
    pub fn of(vault: &Vault, entries: &[Entry]) -> Self {
        let committed: BTreeSet<&str> = runs(entries).collect();
        let mut by_pack: HashMap<_, Vec<String>> = HashMap::new();
        for entry in entries {
            let found = (|| {
                let (run, name) = entry.key.strip_prefix("moved/")?.split_once('/')?;
                let pack = name.strip_suffix(vault.mode.suffix())?.parse().ok()?;
                committed.contains(run).then_some((pack, run))
            })();
            if let Some((pack, run)) = found {
                by_pack.entry(pack).or_default().push(run.to_owned());
            }
        }
        Self(by_pack)
    }

    /// Packs that moved.
    pub fn packs(&self) -> impl Iterator<Item = &PackName> {
        self.0.keys()
    }

    pub fn holds(&self, pack: PackName) -> bool {
        self.0.contains_key(&pack)
    }

    /// The runs that moved pieces of `pack`.
    pub fn runs_of(&self, pack: PackName) -> &[String] {
        self.0.get(&pack).map(Vec::as_slice).unwrap_or_default()
    }

    /// Where the pieces of `pack` went; `None` when it never moved.
    ///
    /// Several runs may have moved the same pack. Of those that lead to nothing but packs that are there, any
    /// holds what a backup wants that it was made for; the others may lead to packs that nobody needed any more.
    pub fn find(&self, vault: &Vault, pack: PackName) -> Result<Option<Moved>, RepositoryError> {
        let Some(runs) = self.0.get(&pack) else {
            return Ok(None);
        };
        let mut moves = runs
            .iter()
            .map(|run| vault.pieces(run, pack))
            .collect::<Result<Vec<_>, _>>()?;
        if moves.len() > 1 {
            let (mut known, mut others) = (HashMap::new(), Vec::new());
            let mut whole = Vec::new();
            for moved in moves {
                if self.is_whole(vault, &moved, &mut known)? {
                    whole.push(moved);
                } else {
                    others.push(moved);
                }
            }
            whole.append(&mut others);
            moves = whole;
        }
        Ok(moves.into_iter().reduce(|mut first, next| {
            first.fill(&next);
            first
        }))
    }

    /// Every pack that it names is there, or moved on as a whole.
    fn is_whole(
        &self,
        vault: &Vault,
        moved: &Moved,
        known: &mut HashMap<PackName, bool>,
    ) -> Result<bool, RepositoryError> {
        let packs: BTreeSet<PackName> = moved.pieces().iter().map(|p| p.place.pack).collect();
        for pack in packs {
            if !self.is_there(vault, pack, known)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn is_there(
        &self,
        vault: &Vault,
        pack: PackName,
        known: &mut HashMap<PackName, bool>,
    ) -> Result<bool, RepositoryError> {
        if let Some(there) = known.get(&pack) {
            return Ok(*there);
        }
        // A circle leads nowhere.
        known.insert(pack, false);
        let mut there = match vault.store.open(&vault.pack_key(pack)) {
            Ok(_) => true,
            Err(RepositoryError::Missing(_)) => false,
            Err(other) => return Err(other),
        };
        for run in self.0.get(&pack).into_iter().flatten() {
            there = there || self.is_whole(vault, &vault.pieces(run, pack)?, known)?;
        }
        known.insert(pack, there);
        Ok(there)
    }
}

/// Runs whose moves are committed, in a listing of `moved`.
pub fn runs(entries: &[Entry]) -> impl Iterator<Item = &str> {
    entries
        .iter()
        .filter(|entry| !is_void(entry))
        .filter_map(|entry| entry.key.strip_prefix("moved/")?.strip_suffix("/packs"))
}

/// The key that a run commits its moves with.
pub fn record_key(run: &str) -> String {
    format!("moved/{run}/packs")
}

fn pieces_name(run: &str, pack: PackName) -> String {
    format!("moved/{run}/{pack}")
}

impl Vault {
    /// The committed moves there are now.
    pub fn moves(&self) -> Result<MoveList, RepositoryError> {
        Ok(MoveList::of(self, &self.store.list("moved")?))
    }

    /// Where the pieces of `pack` went; `None` when it never moved.
    pub fn moved(&self, pack: PackName) -> Result<Option<Moved>, RepositoryError> {
        self.moves()?.find(self, pack)
    }

    /// Where a run put the pieces of a pack.
    pub(super) fn pieces(&self, run: &str, pack: PackName) -> Result<Moved, RepositoryError> {
        let name = pieces_name(run, pack);
        let bytes = self.get(&name, PIECES_LIMIT_BYTES)?;
        let what = format!("{run}/{pack}");
        Moved::decode(&self.unsealed_text(Sealed::Moved(&what), &name, bytes)?)
    }

    /// Reads what a committed run says of its moves.
    pub fn move_record(&self, run: &str) -> Result<Move<PackName, String>, RepositoryError> {
        let key = record_key(run);
        let bytes = self.store.get(&key, RECORD_LIMIT_BYTES)?;
        decode(&self.unsealed_text(Sealed::Moved(run), &key, bytes)?)
    }

    /// Commits the moves of a run that holds a lease: the pieces first, and then, in one step, that they count.
    /// What backups want of a pack is in its pieces, unless it is among the `incomplete`.
    ///
    /// `Exists` says that a prune took the run for dead: nothing was moved.
    pub fn commit_moves(
        &self,
        run: &str,
        moved: &BTreeMap<PackName, Moved>,
        incomplete: BTreeSet<PackName>,
        backups: BTreeSet<String>,
    ) -> Result<(), RepositoryError> {
        let mut record = Move {
            packs: BTreeMap::new(),
            backups,
            incomplete,
        };
        for (pack, pieces) in moved {
            let what = format!("{run}/{pack}");
            let text = self.sealed_text(Sealed::Moved(&what), &pieces.encode());
            self.put(&pieces_name(run, *pack), text.as_bytes())?;
            let places = pieces.pieces().iter().map(|p| p.place.pack).collect();
            record.packs.insert(*pack, places);
        }
        let text = self.sealed_text(Sealed::Moved(run), &encode(&record));
        self.store.put(&record_key(run), text.as_bytes())
    }
}

fn encode(record: &Move<PackName, String>) -> String {
    let mut text = format!("{HEADING}\n");
    // Writing to a String cannot fail.
    for backup in &record.backups {
        writeln!(text, "backup {backup}").ok();
    }
    for (pack, places) in &record.packs {
        write!(text, "pack {pack}").ok();
        for place in places {
            write!(text, " {place}").ok();
        }
        text.push('\n');
    }
    for pack in &record.incomplete {
        writeln!(text, "part {pack}").ok();
    }
    text
}

fn decode(text: &str) -> Result<Move<PackName, String>, RepositoryError> {
    let bad = || RepositoryError::Invalid("a list of moved packs is damaged".to_owned());
    let mut record = Move {
        packs: BTreeMap::new(),
        backups: BTreeSet::new(),
        incomplete: BTreeSet::new(),
    };
    let mut lines = text.lines();
    if lines.next() != Some(HEADING) {
        return Err(bad());
    }
    for line in lines {
        let mut fields = line.split(' ');
        match fields.next() {
            Some("backup") => {
                record
                    .backups
                    .insert(fields.next().ok_or_else(bad)?.to_owned());
            }
            Some("pack") => {
                let pack = fields.next().ok_or_else(bad)?.parse()?;
                let places = fields.by_ref().map(str::parse).collect::<Result<_, _>>()?;
                record.packs.insert(pack, places);
            }
            Some("part") => {
                let pack = fields.next().ok_or_else(bad)?.parse()?;
                record.incomplete.insert(pack);
            }
            _ => return Err(bad()),
        }
        if fields.next().is_some() {
            return Err(bad());
        }
    }
    Ok(record)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_record_reads_back_and_disorder_is_refused() {
        let name = |n: u8| PackName([n; 32]);
        let record = Move {
            packs: BTreeMap::from([
                (name(1), BTreeSet::from([name(2), name(3)])),
                (name(4), BTreeSet::new()),
            ]),
            backups: BTreeSet::from(["a".to_owned(), "b".to_owned()]),
            incomplete: BTreeSet::from([name(4)]),
        };
        assert_eq!(decode(&encode(&record)).unwrap(), record);
        for text in [
            "",
            "# lifeboat moves 1\nbackup a b\n",
            "# lifeboat moves 1\npack x\n",
            "# lifeboat moves 1\npart\n",
            "# lifeboat moves 1\nother\n",
        ] {
            decode(text).unwrap_err();
        }
    }
}
