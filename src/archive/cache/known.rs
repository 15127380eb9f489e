//! Sets of names that the cache holds whole, each by a digest: while the repository lists just these names, they
//! need not be read from the cache one by one.

use rusqlite::{Connection, OptionalExtension, Result, params};

pub(super) const PACKS: &str = "packs";
pub(super) const PARTS: &str = "parts";

pub(super) type Digest = [u8; 32];

/// Of a set, in whatever order it comes.
pub(super) fn digest<T: AsRef<[u8]>>(names: impl IntoIterator<Item = T>) -> Digest {
    let mut names: Vec<T> = names.into_iter().collect();
    names.sort_unstable_by(|a, b| a.as_ref().cmp(b.as_ref()));
    let mut hasher = blake3::Hasher::new();
    for name in &names {
        let name = name.as_ref();
        hasher.update(&(name.len() as u64).to_le_bytes());
        hasher.update(name);
    }
    *hasher.finalize().as_bytes()
}

/// Whether the cache held just the set with this digest when it was last committed.
pub(super) fn is(db: &Connection, what: &str, digest: &Digest) -> Result<bool> {
    let known: Option<Vec<u8>> = db
        .prepare_cached("SELECT digest FROM digests WHERE what = ?1")?
        .query_row([what], |row| row.get(0))
        .optional()?;
    Ok(known.is_some_and(|known| known == digest))
}

/// Notes which set it is now; `None` when that is not known.
pub(super) fn note(db: &Connection, what: &str, digest: Option<Digest>) -> Result<()> {
    match digest {
        Some(digest) => db.execute(
            "INSERT OR REPLACE INTO digests VALUES (?1, ?2)",
            params![what, digest],
        ),
        None => db.execute("DELETE FROM digests WHERE what = ?1", [what]),
    }
    .map(drop)
}
