//! The two files that make a repository readable without this program.
//!
//! They lie open and carry no seal, and nothing but a person reads them. Whoever makes a backup, repairs or
//! copies there writes the ones of its own version in place of others.

use super::RepositoryError;
use super::store::Store;

const TEXTS: [(&str, &str); 2] = [
    ("README.txt", include_str!("README.txt")),
    ("RECOVER.sh", include_str!("RECOVER.sh")),
];
/// A longer file is another one.
const LIMIT_BYTES: u64 = 1024 * 1024;

/// What a look at one of the files shows.
enum Found {
    Own,
    Other,
    Nothing,
}

fn look(store: &dyn Store, key: &str, text: &str) -> Result<Found, RepositoryError> {
    match store.get(key, LIMIT_BYTES) {
        Ok(bytes) if bytes == text.as_bytes() => Ok(Found::Own),
        Ok(_) | Err(RepositoryError::Invalid(_)) => Ok(Found::Other),
        Err(RepositoryError::Missing(_)) => Ok(Found::Nothing),
        Err(other) => Err(other),
    }
}

/// Writes the files where they are missing or not this version's.
pub(super) fn write(store: &dyn Store) -> Result<(), RepositoryError> {
    for (key, text) in TEXTS {
        match look(store, key, text)? {
            Found::Own => {}
            Found::Other => store.replace(key, text.as_bytes())?,
            Found::Nothing => match store.put(key, text.as_bytes()) {
                Ok(()) | Err(RepositoryError::Exists(_)) => {}
                Err(other) => return Err(other),
            },
        }
    }
    Ok(())
}

/// What is to be said of the files; no data is lost with them.
pub(super) fn notes(store: &dyn Store) -> Result<Vec<String>, RepositoryError> {
    let mut notes = Vec::new();
    for (key, text) in TEXTS {
        let what = match look(store, key, text)? {
            Found::Own => continue,
            Found::Other => {
                "is not the one that this version of the program writes: it is another version's, or was changed, so look at it before you run it"
            }
            Found::Nothing => "is missing",
        };
        notes.push(format!(
            "{key} {what}; the next backup or `repair` writes it anew"
        ));
    }
    Ok(notes)
}
