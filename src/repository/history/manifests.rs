//! What was made of manifests.

use std::collections::BTreeMap;
use std::path::Path;

use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Committed, Memory};
use crate::repository::manifest::Manifest;
use crate::repository::{Repository, RepositoryError};

/// A `T` of each manifest that was read, remembered under a name that tells its form.
pub struct Manifests<'a, T> {
    repository: &'a Repository,
    memory: Memory<'a>,
    make: fn(&Manifest) -> T,
    /// As it was written, by the backups' marks.
    written: BTreeMap<u64, T>,
    /// Of backups that were asked for, by their ids: their marks, and what was made.
    known: BTreeMap<String, (u64, T)>,
    now: Timestamp,
    is_changed: bool,
}

/// A backup's id, and what was made of its manifest.
pub type MadeOf<T> = (String, Result<T, RepositoryError>);

impl<'a, T: Clone + PartialEq + Serialize + DeserializeOwned> Manifests<'a, T> {
    /// What is remembered in `state` as `what`; a new name is due when `make` comes to make something else.
    pub fn load(
        repository: &'a Repository,
        state: &Path,
        what: &'static str,
        make: fn(&Manifest) -> T,
    ) -> Result<Self, RepositoryError> {
        // Before anything is listed or read.
        let now = repository.vault().now()?;
        let memory = Memory::of(repository.vault(), state, what);
        Ok(Self {
            repository,
            make,
            written: memory.load().unwrap_or_default(),
            known: BTreeMap::new(),
            memory,
            now,
            is_changed: false,
        })
    }

    /// What is made of each backup's manifest, oldest first; those that are not listed any more are forgotten.
    pub fn of_all(&mut self) -> Result<Vec<MadeOf<T>>, RepositoryError> {
        let listed = self.repository.committed()?;
        self.is_changed |= self.written.len() != listed.len();
        self.known.clear();
        let mut found = Vec::with_capacity(listed.len());
        for backup in listed {
            // Its list of packs is not asked.
            let backup = Committed {
                packs: None,
                ..backup
            };
            let mark = self.memory.mark(&backup)?;
            let made = match self.written.get(&mark).cloned() {
                Some(made) => {
                    self.known.insert(backup.id.clone(), (mark, made.clone()));
                    Ok(made)
                }
                None => self.read(&backup, mark),
            };
            found.push((backup.id, made));
        }
        Ok(found)
    }

    fn read(&mut self, backup: &Committed, mark: u64) -> Result<T, RepositoryError> {
        let made = (self.make)(&self.repository.manifest(&backup.id)?);
        if backup.manifest.is_settled(self.now) {
            self.known.insert(backup.id.clone(), (mark, made.clone()));
            self.is_changed = true;
        }
        Ok(made)
    }

    /// Reads the manifests of `ids` again; `false` when one of them does not say any more what is remembered,
    /// and then nothing is remembered of any.
    pub fn hold_true<'b>(&mut self, ids: impl IntoIterator<Item = &'b str>) -> bool {
        let is_same = |id: &str| {
            self.known.get(id).is_none_or(|(_, known)| {
                let read = self.repository.manifest(id);
                read.is_ok_and(|manifest| (self.make)(&manifest) == *known)
            })
        };
        let all = ids.into_iter().all(is_same);
        if !all {
            self.written.clear();
            self.known.clear();
            self.is_changed = true;
        }
        all
    }

    /// Keeps it for the next run.
    pub fn save(&mut self) {
        if std::mem::take(&mut self.is_changed) {
            let known: BTreeMap<u64, &T> = self
                .known
                .values()
                .map(|(mark, made)| (*mark, made))
                .collect();
            self.memory.save(&known);
        }
    }
}
