//! All collections and aliases, on disk and in memory. Everything here blocks:
//! the protocols call it from blocking threads.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use serde_json::{Value, json};

use crate::collection::Collection;
use crate::config::CollectionConfig;
use crate::error::{Error, Result};
use crate::model::new_uuid;
use crate::options::{Faults, Options};

pub type Shared = Arc<Mutex<Collection>>;

/// One change of the alias table.
#[derive(Debug, Clone)]
pub enum AliasAction {
    Create { collection: String, alias: String },
    Delete { alias: String },
    Rename { old: String, new: String },
}

#[derive(Debug)]
pub struct Store {
    pub(crate) options: Options,
    pub(crate) faults: Arc<Faults>,
    peer_id: u64,
    collections: RwLock<BTreeMap<String, Shared>>,
    aliases: Mutex<BTreeMap<String, String>>,
}

impl Store {
    /// Opens the storage folder, making what is not there, and drops what an
    /// earlier process left half done.
    pub fn open(options: Options) -> Result<Self> {
        let storage = &options.storage_dir;
        for dir in ["collections", "tmp", ".deleted"] {
            if dir != "collections" {
                remove_dir(&storage.join(dir))?;
            }
            fs::create_dir_all(storage.join(dir))?;
        }
        fs::create_dir_all(&options.snapshots_dir)?;
        let aliases = match fs::read(storage.join("aliases.json")) {
            Ok(data) => serde_json::from_slice(&data)?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(e) => return Err(e.into()),
        };
        let mut collections = BTreeMap::new();
        for entry in fs::read_dir(storage.join("collections"))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let collection = Collection::open(&entry.path(), options.segment_points)?;
            collections.insert(name, Arc::new(Mutex::new(collection)));
        }
        let faults = Faults::default();
        faults.apply(options.faults);
        Ok(Self {
            peer_id: peer_id(storage)?,
            options,
            faults: Arc::new(faults),
            collections: RwLock::new(collections),
            aliases: Mutex::new(aliases),
        })
    }

    pub fn peer_id(&self) -> u64 {
        self.peer_id
    }

    pub fn names(&self) -> Vec<String> {
        self.all().keys().cloned().collect()
    }

    /// The collection of that name or alias.
    pub fn get(&self, name: &str) -> Result<Shared> {
        let real = self.real_name(name)?;
        let found = self.all().get(&real).cloned();
        found.ok_or_else(|| Error::no_collection(name))
    }

    /// The collection's own name where `name` may be an alias.
    pub fn real_name(&self, name: &str) -> Result<String> {
        if self.all().contains_key(name) {
            return Ok(name.to_string());
        }
        let target = self.alias_table().get(name).cloned();
        target.ok_or_else(|| Error::no_collection(name))
    }

    pub fn create(&self, name: &str, request: &Value) -> Result<()> {
        check_name(name)?;
        let config = CollectionConfig::from_request(request)?;
        let mut all = self
            .collections
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if all.contains_key(name) || self.alias_table().contains_key(name) {
            return Err(Error::AlreadyExists(format!(
                "Collection `{name}` already exists!"
            )));
        }
        let staged = self.temporary("new")?;
        let collection = Collection::create(&staged, config, self.options.segment_points)?;
        rename_durably(&staged, &self.collection_dir(name))?;
        all.insert(name.to_string(), Arc::new(Mutex::new(collection)));
        Ok(())
    }

    /// Puts a restored collection in its place: as a new one, or over the log
    /// of the present one.
    pub(crate) fn install(&self, name: &str, staged: &Path, restored: Collection) -> Result<()> {
        let mut all = self
            .collections
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let dir = self.collection_dir(name);
        if let Some(present) = all.get(name) {
            let mut present = lock(present);
            fs::rename(staged.join("log.jsonl"), dir.join("log.jsonl"))?;
            File::open(&dir)?.sync_all()?;
            remove_dir(staged)?;
            *present = restored;
        } else {
            rename_durably(staged, &dir)?;
            all.insert(name.to_string(), Arc::new(Mutex::new(restored)));
        }
        Ok(())
    }

    /// Deletes a collection and its aliases; its snapshots stay on disk, as
    /// with the server. `false` when there is none.
    pub fn delete(&self, name: &str) -> Result<bool> {
        let mut all = self
            .collections
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if !all.contains_key(name) {
            return Ok(false);
        }
        let mut aliases = self.alias_table();
        let mut left = aliases.clone();
        left.retain(|_, collection| collection != name);
        self.save_aliases(&left)?;
        *aliases = left;
        let grave = self.options.storage_dir.join(".deleted").join(new_uuid());
        rename_durably(&self.collection_dir(name), &grave)?;
        all.remove(name);
        remove_dir(&grave)?;
        Ok(true)
    }

    /// Alias and collection pairs, of one collection or of all.
    pub fn aliases(&self, of: Option<&str>) -> Vec<(String, String)> {
        let aliases = self.alias_table();
        let wanted = |collection: &String| of.is_none_or(|of| of == collection);
        aliases
            .iter()
            .filter(|(_, collection)| wanted(collection))
            .map(|(alias, collection)| (alias.clone(), collection.clone()))
            .collect()
    }

    /// All of the actions or, on an error, none.
    pub fn update_aliases(&self, actions: Vec<AliasAction>) -> Result<()> {
        let all = self.all();
        let mut aliases = self.alias_table();
        let mut next = aliases.clone();
        for action in actions {
            match action {
                AliasAction::Create { collection, alias } => {
                    if !all.contains_key(&collection) {
                        return Err(Error::no_collection(&collection));
                    }
                    if all.contains_key(&alias) {
                        return Err(Error::AlreadyExists(format!(
                            "Collection `{alias}` already exists!"
                        )));
                    }
                    next.insert(alias, collection);
                }
                AliasAction::Delete { alias } => {
                    next.remove(&alias);
                }
                AliasAction::Rename { old, new } => {
                    let collection = next
                        .remove(&old)
                        .ok_or_else(|| Error::NotFound(format!("Alias {old} does not exists!")))?;
                    next.insert(new, collection);
                }
            }
        }
        self.save_aliases(&next)?;
        *aliases = next;
        Ok(())
    }

    /// A fresh path for work in progress, on the storage's file system. Its
    /// folder may have been deleted under the running server.
    pub(crate) fn temporary(&self, kind: &str) -> Result<PathBuf> {
        let dir = self.options.storage_dir.join("tmp");
        fs::create_dir_all(&dir)?;
        Ok(dir.join(format!("{kind}-{}", new_uuid())))
    }

    fn all(&self) -> RwLockReadGuard<'_, BTreeMap<String, Shared>> {
        self.collections
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn alias_table(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.aliases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn collection_dir(&self, name: &str) -> PathBuf {
        self.options.storage_dir.join("collections").join(name)
    }

    fn save_aliases(&self, aliases: &BTreeMap<String, String>) -> Result<()> {
        let file = self.options.storage_dir.join("aliases.json");
        write_durably(&file, &serde_json::to_vec(aliases)?)
    }
}

pub fn lock(collection: &Shared) -> MutexGuard<'_, Collection> {
    collection.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Refuses names that could not be folders.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let bad = name.is_empty()
        || name.len() > 255
        || name.contains(['/', '\\', '\0', '<', '>', ':', '"', '|', '?', '*'])
        || matches!(name, "." | "..");
    if bad {
        return Err(Error::BadInput(format!("invalid collection name `{name}`")));
    }
    Ok(())
}

/// Moves a file or folder; durable on return.
pub(crate) fn rename_durably(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::rename(from, to)?;
    if let Some(parent) = to.parent() {
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

fn write_durably(path: &Path, data: &[u8]) -> Result<()> {
    let staged = path.with_extension("tmp");
    fs::write(&staged, data)?;
    File::open(&staged)?.sync_all()?;
    rename_durably(&staged, path)
}

fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e.into()),
        _ => Ok(()),
    }
}

/// The number in snapshots' names: drawn once per storage folder.
fn peer_id(storage: &Path) -> Result<u64> {
    let file = storage.join("standin.json");
    if let Ok(data) = fs::read(&file) {
        let document: Value = serde_json::from_slice(&data)?;
        if let Some(id) = document.get("peer_id").and_then(Value::as_u64) {
            return Ok(id);
        }
    }
    let id = rand::random::<u64>() >> 11;
    let note = "storage of Lifeboat's qdrant-standin, not of Qdrant";
    write_durably(
        &file,
        &serde_json::to_vec(&json!({"peer_id": id, "note": note}))?,
    )?;
    Ok(id)
}
