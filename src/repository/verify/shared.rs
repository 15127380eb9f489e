//! Files that no backup names and that a run still believes: keys, the marks of dead runs, the trash.

use crate::repository::lease::{self, Trash, VOID};
use crate::repository::{PackName, Repository, RepositoryError, keys};

/// What is wrong with them, as sentences.
pub(super) fn faults(repository: &Repository) -> Result<Vec<String>, RepositoryError> {
    let mut faults = Vec::new();
    let vault = repository.vault();
    if vault.can_read()
        && let Err(err) = keys::check_secret_file(&*vault.store, &vault.secrets, &vault.mode)
    {
        faults.push(super::believable(err)?.to_string());
    }
    marks(repository, &mut faults)?;
    trash(repository, &mut faults)?;
    Ok(faults)
}

/// A file is taken for the mark of a dead run by its length: a manifest that was cut to it would be no backup
/// any more, and nobody would miss it.
fn marks(repository: &Repository, faults: &mut Vec<String>) -> Result<(), RepositoryError> {
    let vault = repository.vault();
    let manifest = vault.key("/manifest.json");
    for (prefix, end) in [("backups", manifest.as_str()), ("moved", "/packs")] {
        for entry in vault.store.list(prefix)? {
            if !entry.key.ends_with(end) || !lease::is_void(&entry) {
                continue;
            }
            match vault.store.get(&entry.key, entry.size) {
                Ok(bytes) if bytes == VOID => {}
                Err(RepositoryError::Missing(_)) => {}
                Ok(_) => faults.push(format!(
                    "{} is neither whole nor the mark of a run that died: it was cut off or changed",
                    entry.key
                )),
                Err(err) => faults.push(super::believable(err)?.to_string()),
            }
        }
    }
    Ok(())
}

/// A file of the trash that cannot be understood keeps every backup from beginning.
fn trash(repository: &Repository, faults: &mut Vec<String>) -> Result<(), RepositoryError> {
    let store = repository.store();
    for entry in store.list("trash")? {
        let bytes = match store.get(&entry.key, lease::TRASH_LIMIT_BYTES) {
            Err(RepositoryError::Missing(_)) => continue,
            other => other?,
        };
        let understood = serde_json::from_slice::<Trash>(&bytes).is_ok_and(|trash| {
            trash
                .packs
                .iter()
                .all(|pack| pack.parse::<PackName>().is_ok())
        });
        if !understood {
            faults.push(format!(
                "{} cannot be understood: delete it, and the next prune judges anew",
                entry.key
            ));
        }
    }
    Ok(())
}
