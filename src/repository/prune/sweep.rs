//! Puts dead packs into the trash, and deletes what was in it long enough.

use std::collections::BTreeSet;

use super::survey::{Survey, TrashFile};
use super::{Report, new_run};
use crate::repository::lease::Trash;
use crate::repository::store::Store;
use crate::repository::{PackName, Repository, RepositoryError, damaged_key};

/// Names `packs` in a new trash file: from now on no run that begins refers to them.
pub fn mark(repository: &Repository, packs: &BTreeSet<PackName>) -> Result<(), RepositoryError> {
    if packs.is_empty() {
        return Ok(());
    }
    let trash = Trash {
        packs: packs.iter().map(ToString::to_string).collect(),
    };
    let text = serde_json::to_vec(&trash)
        .map_err(|e| RepositoryError::Invalid(format!("encode a trash file: {e}")))?;
    repository
        .store()
        .put(&format!("trash/{}", new_run()), &text)
}

/// Deletes the dead packs of `due` trash files; returns those that are gone.
///
/// A file goes when all its dead packs are gone, so that nobody refers to one that may still be deleted. It is
/// looked at before each: once another prune has been through, a copy may put a pack of that name back.
pub fn sweep(
    repository: &Repository,
    survey: &Survey,
    due: &[&TrashFile],
    report: &mut Report,
) -> Result<BTreeSet<PackName>, RepositoryError> {
    let (store, vault) = (repository.store(), repository.vault());
    let mut gone = BTreeSet::new();
    for file in due {
        let mut all_gone = true;
        for pack in survey.doomed(&[*file]) {
            if !gone.contains(&pack) {
                if !is_there(&**store, &file.key)? {
                    all_gone = false;
                    break;
                }
                let key = vault.pack_key(pack);
                if !delete(repository, &key, report)? {
                    all_gone = false;
                    continue;
                }
                report.deleted.add(survey.size(pack));
                gone.insert(pack);
            }
            if survey.damaged.contains(&pack) {
                delete(repository, &damaged_key(pack), report)?;
            }
        }
        if all_gone {
            store.delete(&file.key).or_else(refused_is_fine)?;
        }
    }
    Ok(gone)
}

fn is_there(store: &dyn Store, key: &str) -> Result<bool, RepositoryError> {
    match store.open(key) {
        Ok(_) => Ok(true),
        Err(RepositoryError::Missing(_)) => Ok(false),
        Err(other) => Err(other),
    }
}

/// Deletes a file; `false` when the store refuses to, which is said.
pub fn delete(
    repository: &Repository,
    key: &str,
    report: &mut Report,
) -> Result<bool, RepositoryError> {
    match repository.store().delete(key) {
        Ok(()) => Ok(true),
        Err(err) if err.is_refused() => {
            report.refused.push(key.to_owned());
            Ok(false)
        }
        Err(other) => Err(other),
    }
}

fn refused_is_fine(err: RepositoryError) -> Result<(), RepositoryError> {
    if err.is_refused() { Ok(()) } else { Err(err) }
}
