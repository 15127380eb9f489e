//! The repository that a run writes to: the one that is known, and fit for secrets.

use std::sync::Arc;

use super::Context;
use super::record::Record;
use crate::repository::store::{self, Store};
use crate::repository::{Repository, RepositoryError};

/// Opens or makes the repository, and refuses one that cannot take what a backup holds.
pub fn open(context: &Context, new_repository: bool) -> anyhow::Result<Repository> {
    let repository = open_repository(context, new_repository)?;
    repository.store().check_writable()?;
    guard_secrets(context, &repository)?;
    Ok(repository)
}

/// What lies unencrypted is said at each backup; in a remote place it must be agreed to.
fn guard_secrets(context: &Context, repository: &Repository) -> anyhow::Result<()> {
    if repository.is_encrypted() {
        return Ok(());
    }
    let store = &**repository.store();
    refuse_plain_remote(context, store)?;
    tracing::warn!(
        "the repository in {} is not encrypted: whoever reads it reads the stack's passwords and keys; AGE_PASSPHRASE encrypts a new one",
        store.describe()
    );
    Ok(())
}

/// Before a repository is made, too: one that nobody agreed to would be in the way of an encrypted one.
fn refuse_plain_remote(context: &Context, store: &dyn Store) -> anyhow::Result<()> {
    anyhow::ensure!(
        !store.is_remote() || context.config.plaintext_secrets,
        "the repository in {} is remote and would not be encrypted, and a backup holds passwords and keys (.env, n8n's key, Ollama's key): \
         set AGE_PASSPHRASE for a new repository, or agree with BACKUP_PLAINTEXT_SECRETS=yes",
        store.describe()
    );
    Ok(())
}

/// Opens the repository, or makes it; an empty mount point in the place of the known one is neither.
fn open_repository(context: &Context, new_repository: bool) -> anyhow::Result<Repository> {
    let place = &context.config.repository;
    let store = store::connect(&context.config)?;
    let known = Record::load(&context.config.state)
        .repository
        .filter(|_| !new_repository);
    let repository = match (
        Repository::open(Arc::clone(&store), &context.config.keys),
        known,
    ) {
        (Err(RepositoryError::NoRepository(place)), Some(_)) => anyhow::bail!(
            "{place} is empty, but backups were made to a repository there before: is the disk mounted? \
             To begin a new one, run `backup --new-repository`"
        ),
        (Ok(repository), Some(id)) if repository.id() != id => anyhow::bail!(
            "{} holds another repository ({}) than the one backups were made to ({id}): is the right disk mounted? \
             To go on with this one, run `backup --new-repository`",
            place,
            repository.id()
        ),
        (Err(RepositoryError::NoRepository(_)), None) => {
            if !context.config.keys.encrypts() {
                refuse_plain_remote(context, &*store)?;
            }
            Repository::open_or_init(store, &context.config.keys)?
        }
        (opened, _) => opened?,
    };
    Record::update(&context.config.state, |record| {
        record.repository = Some(repository.id().to_owned());
    });
    Ok(repository)
}
