//! Checks packs: that they are there, and whole when they are read.

use std::collections::{BTreeMap, HashSet};

use super::{Depth, Look, ReadLog, Scope, believable};
use crate::repository::frame::Decoder;
use crate::repository::pack::PackReader;
use crate::repository::{PackName, RepositoryError};

impl Look<'_> {
    /// Checks every pack that is needed; what is bad is looked for where it moved.
    pub(super) fn packs(
        &mut self,
        log: &mut ReadLog,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), RepositoryError> {
        let everything = *self.scope == Scope::Everything;
        if everything && self.depth != Depth::Structure {
            // A later backup may come to need the others.
            for pack in self.there.keys() {
                self.needed.entry(*pack).or_default();
            }
        }
        let deep = self.to_read(log);
        let mut decoder = Decoder::new().map_err(|e| RepositoryError::io("set up zstd", e))?;
        let mut open: Vec<(PackName, u64)> = self.needed.iter().map(|(p, r)| (*p, *r)).collect();
        let (mut done, mut total) = (0, open.len() as u64);
        open.reverse();
        while let Some((pack, reach)) = open.pop() {
            done += 1;
            progress(done, total);
            let is_read = deep.contains(&pack);
            match self.check_pack(pack, reach, is_read, &mut decoder) {
                Ok(stored_bytes) => {
                    self.report.packs += 1;
                    self.report.pack_bytes += stored_bytes;
                    if is_read {
                        self.report.read_packs += 1;
                        self.report.read_bytes += stored_bytes;
                        log.note(pack);
                    }
                }
                Err(err) => {
                    let fault = believable(err)?;
                    self.mark(pack, is_read, &fault);
                    self.bad.insert(pack, fault);
                    for (place, reach) in self.places(pack) {
                        let known = self.needed.entry(place).or_default();
                        if *known < reach {
                            *known = reach;
                            total += 1;
                            open.push((place, reach));
                        }
                    }
                }
            }
        }
        log.keep(|pack| self.there.contains_key(pack));
        Ok(())
    }

    /// The packs to read whole.
    fn to_read(&self, log: &ReadLog) -> HashSet<PackName> {
        let all = self.needed.keys().copied();
        match self.depth {
            Depth::Structure => HashSet::new(),
            Depth::Full => all.chain(self.there.keys().copied()).collect(),
            Depth::Sample { percent, seed } => {
                let sized = all.filter_map(|pack| Some((pack, *self.there.get(&pack)?)));
                log.choose(sized.collect(), percent, seed)
            }
        }
    }

    /// Where the pieces of a bad pack went, and how far into each place they reach.
    fn places(&self, pack: PackName) -> Vec<(PackName, u64)> {
        let vault = self.repository.vault();
        if !vault.mode.can_read() {
            return Vec::new();
        }
        let mut places: BTreeMap<PackName, u64> = BTreeMap::new();
        // One that cannot be read is reported with the other shared files.
        if let Ok(Some(moved)) = self.moves.find(vault, pack) {
            for piece in moved.pieces() {
                let reach = places.entry(piece.place.pack).or_default();
                *reach = (*reach).max(piece.place.offset + piece.place.length);
            }
        }
        places.into_iter().collect()
    }

    fn check_pack(
        &self,
        pack: PackName,
        reach: u64,
        is_read: bool,
        decoder: &mut Decoder,
    ) -> Result<u64, RepositoryError> {
        let vault = self.repository.vault();
        let damaged = |why: String| RepositoryError::Damaged { pack, why };
        let size = self.there.get(&pack).copied();
        let size = size.ok_or_else(|| damaged("it is missing".to_owned()))?;
        if !is_read && self.marked.contains(&pack) {
            return Err(damaged("it was found damaged when it was read".to_owned()));
        }
        let gone = |err| match err {
            RepositoryError::Missing(_) => damaged("it is missing".to_owned()),
            other => other,
        };
        if !vault.mode.can_read() {
            if is_read {
                PackReader::verify_name(vault, pack).map_err(gone)?;
            }
            return Ok(size);
        }
        let mut reader = PackReader::open(vault, pack, is_read).map_err(gone)?;
        if reader.raw_bytes() < reach {
            return Err(damaged(format!("it ends before byte {reach}")));
        }
        if is_read {
            reader.decode_all(decoder)?;
            reader.table()?;
        }
        Ok(reader.stored_bytes())
    }

    /// A pack whose bytes are wrong must be told of: nothing new may refer to it. A missing one is known.
    fn mark(&self, pack: PackName, is_read: bool, fault: &RepositoryError) {
        if let (true, RepositoryError::Damaged { why, .. }) = (is_read, fault)
            && self.there.contains_key(&pack)
            && let Err(unmarked) = self.repository.mark_damaged(pack, why)
        {
            tracing::warn!("{unmarked}: the next backup may refer to the damaged pack");
        }
    }
}
