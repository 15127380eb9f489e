//! The packs that the cache knows, by their numbers.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};

use rusqlite::{Connection, OptionalExtension, params};

use super::{PackRef, failed, known};
use crate::repository::moved::{Moved, WhereMoved};
use crate::repository::ranges::{Range, RangeList};
use crate::repository::{PackName, RepositoryError};

/// Which packs there are.
///
/// While the repository lists just the packs that the cache holds, they are read as they are asked for;
/// otherwise all are read, and those that are gone are forgotten.
pub(super) struct Packs {
    /// As far as they were read; `None` where a number has none.
    names: RefCell<HashMap<PackRef, Option<PackName>>>,
    numbers: HashMap<PackName, PackRef>,
    /// Numbers that are known to be of packs of the repository, or of this run.
    live: HashSet<PackRef>,
    /// Where packs went that are not live.
    moved: HashMap<PackRef, Moved>,
    /// All that the repository lists, when the cache holds just these.
    listed: Option<HashSet<PackName>>,
}

impl Packs {
    /// Forgets packs that are not among `listed`.
    pub fn open(
        db: &Connection,
        listed: &HashSet<PackName>,
        where_moved: &WhereMoved<'_>,
    ) -> Result<Self, RepositoryError> {
        let digest = known::digest(listed.iter().map(|pack| pack.0));
        let are_all = known::is(db, known::PACKS, &digest).map_err(failed)?;
        let mut packs = Self {
            names: RefCell::default(),
            numbers: HashMap::new(),
            live: HashSet::new(),
            moved: HashMap::new(),
            listed: are_all.then(|| listed.clone()),
        };
        if !are_all {
            // Until the run commits it is not known what the cache holds.
            known::note(db, known::PACKS, None).map_err(failed)?;
            packs.forget_missing(db, listed, where_moved)?;
        }
        Ok(packs)
    }

    fn forget_missing(
        &mut self,
        db: &Connection,
        listed: &HashSet<PackName>,
        where_moved: &WhereMoved<'_>,
    ) -> Result<(), RepositoryError> {
        let (mut gone, mut away) = (Vec::new(), Vec::new());
        let known = |db: &Connection| -> rusqlite::Result<Vec<(PackRef, Option<[u8; 32]>)>> {
            db.prepare("SELECT id, name FROM packs")?
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect()
        };
        for (id, name) in known(db).map_err(failed)? {
            match name.map(PackName) {
                Some(name) if listed.contains(&name) => {
                    self.live(id, name);
                }
                Some(name) => away.push((id, name)),
                None => gone.push(id),
            }
        }
        for (id, name) in away {
            let moved = where_moved(name).and_then(|moved| {
                moved
                    .map(|moved| moved.settle(listed, where_moved))
                    .transpose()
            });
            match moved {
                Ok(Some(moved)) => self.follow(db, id, moved).map_err(failed)?,
                Ok(None) => gone.push(id),
                // This host cannot read, or the file is damaged: what was in the pack is stored once more.
                Err(err) if !matches!(err, RepositoryError::Io { .. }) => gone.push(id),
                Err(err) => return Err(err),
            }
        }
        for id in gone {
            forget_blocks(db, id)
                .and_then(|()| db.execute("DELETE FROM packs WHERE id = ?1", [id]))
                .map_err(failed)?;
        }
        Ok(())
    }

    /// Blocks of a moved pack are learnt from the index of whoever moved them; files are translated as they
    /// are looked up.
    fn follow(&mut self, db: &Connection, id: PackRef, moved: Moved) -> rusqlite::Result<()> {
        forget_blocks(db, id)?;
        for piece in moved.pieces() {
            self.number_of(db, piece.place.pack)?;
        }
        self.moved.insert(id, moved);
        Ok(())
    }

    fn live(&mut self, id: PackRef, name: PackName) {
        self.live.insert(id);
        self.names.get_mut().insert(id, Some(name));
        self.numbers.insert(name, id);
    }

    /// The number of a pack of the repository.
    pub fn number_of(&mut self, db: &Connection, name: PackName) -> rusqlite::Result<PackRef> {
        if let Some(id) = self.numbers.get(&name) {
            return Ok(*id);
        }
        let is_held = self.listed.as_ref().is_some_and(|all| all.contains(&name));
        let held: Option<PackRef> = if is_held {
            db.prepare_cached("SELECT id FROM packs WHERE name = ?1")?
                .query_row([name.0], |row| row.get(0))
                .optional()?
        } else {
            None
        };
        let id = if let Some(id) = held {
            id
        } else {
            db.execute("INSERT INTO packs (name) VALUES (?1)", [name.0])?;
            db.last_insert_rowid()
        };
        self.live(id, name);
        Ok(id)
    }

    /// A number for a pack that has no name yet.
    pub fn add(&mut self, db: &Connection) -> rusqlite::Result<PackRef> {
        db.execute("INSERT INTO packs (name) VALUES (NULL)", [])?;
        let id = db.last_insert_rowid();
        self.live.insert(id);
        Ok(id)
    }

    /// Names a published pack.
    pub fn set_name(
        &mut self,
        db: &Connection,
        pack: PackRef,
        name: PackName,
    ) -> rusqlite::Result<()> {
        db.execute(
            "UPDATE packs SET name = ?2 WHERE id = ?1",
            params![pack, name.0],
        )?;
        self.live(pack, name);
        Ok(())
    }

    /// The name of a pack of the repository.
    pub fn name(&self, db: &Connection, pack: PackRef) -> Option<PackName> {
        if let Some(name) = self.names.borrow().get(&pack) {
            return *name;
        }
        let listed = self.listed.as_ref()?;
        let read = |db: &Connection| -> rusqlite::Result<Option<[u8; 32]>> {
            db.prepare_cached("SELECT name FROM packs WHERE id = ?1")?
                .query_row([pack], |row| row.get(0))
                .optional()
                .map(Option::flatten)
        };
        // A pack that cannot be looked up is not known.
        let name = read(db).ok().flatten().map(PackName);
        let name = name.filter(|name| listed.contains(name));
        self.names.borrow_mut().insert(pack, name);
        name
    }

    /// Whether a run may refer to it.
    pub fn is_live(&self, db: &Connection, pack: PackRef) -> bool {
        self.live.contains(&pack) || self.name(db, pack).is_some()
    }

    /// The ranges with moved pieces where they are now; `None` when any is gone.
    pub fn translate(
        &self,
        db: &Connection,
        ranges: RangeList<PackRef>,
    ) -> Option<RangeList<PackRef>> {
        let stays = |pack: PackRef| self.is_live(db, pack);
        if ranges.as_slice().iter().all(|r| stays(r.pack)) {
            return Some(ranges);
        }
        let mut out = RangeList::default();
        for range in ranges.as_slice() {
            if stays(range.pack) {
                out.push(*range);
                continue;
            }
            let moved = self.moved.get(&range.pack)?;
            for piece in moved.locate(range.offset, range.length)?.as_slice() {
                out.push(Range {
                    pack: *self.numbers.get(&piece.pack)?,
                    offset: piece.offset,
                    length: piece.length,
                });
            }
        }
        Some(out)
    }

    /// Notes which packs the cache holds now. Beside those that moved away it never holds just what is listed.
    pub fn note(&self, db: &Connection) -> rusqlite::Result<()> {
        let held: HashSet<&PackName> = self
            .listed
            .iter()
            .flatten()
            .chain(self.numbers.keys())
            .collect();
        let digest = known::digest(held.into_iter().map(|pack| pack.0));
        known::note(db, known::PACKS, self.moved.is_empty().then_some(digest))
    }
}

fn forget_blocks(db: &Connection, id: PackRef) -> rusqlite::Result<()> {
    db.execute("DELETE FROM blocks WHERE pack = ?1", [id])
        .map(drop)
}
