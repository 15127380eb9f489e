//! What makes the target a clone of the source: the same configuration and the same wrapped keys.

use serde::Deserialize;

use crate::repository::keys::{self, Keys};
use crate::repository::store::Store;
use crate::repository::{CONFIG_KEY, CONFIG_LIMIT_BYTES, Repository, RepositoryError, recover};

/// What two configurations are compared by; their seals are checked when the repositories are opened.
#[derive(Deserialize)]
struct Config {
    id: String,
    epoch: u32,
}

/// Makes the target a clone of the source that holds no backups; the source's newest keys count. Returns what a
/// person should know.
///
/// A key that lies in the target may be the only good one that is left: it is replaced by one that was opened
/// here, and by no other.
pub(super) fn send(
    source: &Repository,
    target: &dyn Store,
    given: &Keys,
) -> Result<Vec<String>, RepositoryError> {
    let place = target.describe();
    let mut notes = Vec::new();
    let config = source.store().get(CONFIG_KEY, CONFIG_LIMIT_BYTES)?;
    let there = match target.get(CONFIG_KEY, CONFIG_LIMIT_BYTES) {
        Ok(there) => Some(there),
        Err(RepositoryError::Missing(_)) => None,
        Err(other) => return Err(other),
    };
    let is_newer_there = match &there {
        Some(there) => compare(source, &config, there, &place)?,
        None => false,
    };
    if there.is_none() && (!target.list("packs")?.is_empty() || !target.list("backups")?.is_empty())
    {
        return Err(RepositoryError::Invalid(format!(
            "{place} holds packs or backups but no config.json: it is not an empty place; nothing was changed. If it is this repository's copy, put {CONFIG_KEY} of {} there",
            source.store().describe()
        )));
    }
    recover::write(target)?;
    for entry in source.store().list("keys")? {
        let (vault, key) = (source.vault(), &entry.key);
        let bytes = source.store().get(key, CONFIG_LIMIT_BYTES)?;
        match target.get(key, CONFIG_LIMIT_BYTES) {
            Ok(there) if there == bytes => {}
            Err(RepositoryError::Missing(_)) => target.replace(key, &bytes)?,
            Ok(_) if keys::is_proven(&**source.store(), key, given, &vault.secrets, &vault.mode)? => {
                target.replace(key, &bytes)?;
            }
            Ok(_) => notes.push(format!(
                "{key} in {place} is another one than here, and was left: nothing that is set here opens it to tell which of them is good. Copy once with AGE_PASSPHRASE or AGE_IDENTITY_FILE set"
            )),
            Err(other) => return Err(other),
        }
    }
    if is_newer_there {
        notes.push(format!(
            "{CONFIG_KEY} in {place} is newer than the one here, and was left: somebody made backups there with other keys"
        ));
    } else if there.as_ref() != Some(&config) {
        target.replace(CONFIG_KEY, &config)?;
    }
    Ok(notes)
}

/// Whether the target's configuration is the newer one; refuses another repository's.
fn compare(
    source: &Repository,
    here: &[u8],
    there: &[u8],
    place: &str,
) -> Result<bool, RepositoryError> {
    let Ok(found) = serde_json::from_slice::<Config>(there) else {
        return Err(RepositoryError::Invalid(format!(
            "{CONFIG_KEY} in {place} cannot be understood: if it is this repository's copy, put {CONFIG_KEY} of {} there",
            source.store().describe()
        )));
    };
    if found.id != source.id() {
        return Err(RepositoryError::Invalid(format!(
            "{place} holds another repository than the one to copy ({}): give an empty place, or copy with --reencrypt",
            source.id()
        )));
    }
    let here = serde_json::from_slice::<Config>(here)
        .map_err(|_| RepositoryError::Forged(CONFIG_KEY.to_owned()))?;
    Ok(found.epoch > here.epoch)
}
