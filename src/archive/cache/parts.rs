//! The parts of the index that the cache has learnt.

use std::collections::HashSet;

use rusqlite::Connection;

use super::known;

/// Which parts were learnt, once it was asked for.
#[derive(Default)]
pub(super) struct Parts(Option<HashSet<String>>);

impl Parts {
    /// Those of `listed` that were not learnt yet; others are forgotten that are not listed.
    pub fn unknown(&mut self, db: &Connection, listed: &[String]) -> rusqlite::Result<Vec<String>> {
        if known::is(db, known::PARTS, &known::digest(listed))? {
            self.0 = Some(listed.iter().cloned().collect());
            return Ok(Vec::new());
        }
        let learnt: HashSet<String> = db
            .prepare("SELECT name FROM parts")?
            .query_map([], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        let there: HashSet<&String> = listed.iter().collect();
        let (stay, gone): (HashSet<_>, HashSet<_>) =
            learnt.into_iter().partition(|part| there.contains(part));
        for part in gone {
            db.execute("DELETE FROM parts WHERE name = ?1", [part])?;
        }
        let unknown = listed.iter().filter(|part| !stay.contains(*part)).cloned();
        let unknown = unknown.collect();
        self.0 = Some(stay);
        Ok(unknown)
    }

    pub fn learn(&mut self, db: &Connection, part: &str) -> rusqlite::Result<()> {
        db.execute("INSERT OR IGNORE INTO parts VALUES (?1)", [part])?;
        if let Some(learnt) = &mut self.0 {
            learnt.insert(part.to_owned());
        }
        Ok(())
    }

    /// Notes which parts were learnt by now.
    pub fn note(&self, db: &Connection) -> rusqlite::Result<()> {
        known::note(db, known::PARTS, self.0.as_ref().map(known::digest))
    }
}
