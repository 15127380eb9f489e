//! Puts staged entries in the place of live ones on a directory that cannot be renamed itself.
//!
//! The data directory of a service is usually the root of a mount, so the entries inside it change places.
//! All of it happens in that directory, on one filesystem, by rename:
//!
//! - `<root>/.lifeboat-new-<run>`, *staging*: where the archive is unpacked,
//! - `<root>/.lifeboat-old-<run>`, *kept*: where the live entries go,
//! - `<kept>/.lifeboat-swap`, the *marker*: how far the swap is, and what owner and mode the root had,
//! - `<state>/committed-<run>`: exists once the restore as a whole has succeeded, for all its services at once.
//!
//! # States
//!
//! | marker | entries of root | entries of kept | undo |
//! |---|---|---|---|
//! | none, no kept | all old | – | remove staging |
//! | none, kept | all old | none | remove staging, kept |
//! | `taking-out` | old | old; with root's: all | kept → root |
//! | `putting-in` | new | all old | root → staging, marker `taking-out`, kept → root |
//! | either, and committed | all new | old, being removed | remove staging, kept |
//!
//! **Invariant:** under `taking-out` no entry of root is new, under `putting-in` none is old. The marker
//! changes only after every rename before it is on disk. So [`undo`] knows from the marker alone what each
//! entry is, wherever the process died, in [`undo`] itself too: it takes the same states backwards, and
//! running it again goes on. The marker is the last file to leave kept.
//!
//! Names that begin with `.lifeboat-` and `lost+found` stay where they are: they belong to this program and
//! to the filesystem. A mount inside root is found before anything is changed ([`preflight`]): what it
//! covers can neither be renamed nor may it be removed with the old data.

mod files;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::services::RunContext;
use crate::stack::journal::{EntryId, Journal, Obligation};
use files::{Files, RootMeta};

const STAGING_PREFIX: &str = ".lifeboat-new-";
const KEPT_PREFIX: &str = ".lifeboat-old-";
const MARKER: &str = ".lifeboat-swap";
/// Staging until the archive or the adapter says what the root's owner and mode are.
const UNDESCRIBED: u32 = 0o1700;

/// One service's data directory on its way back.
#[derive(Debug)]
pub struct Swap {
    root: PathBuf,
    staging: PathBuf,
    kept: PathBuf,
    committed: PathBuf,
    keep_old: bool,
    journal: Arc<Journal>,
    entry: EntryId,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    TakingOut,
    PuttingIn,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Marker {
    state: State,
    /// The root as it was, to be put back.
    root: RootMeta,
    /// Exists once the restore is committed.
    committed: PathBuf,
    /// What is kept stays after the commit.
    keep_old: bool,
}

/// Says why the entries of `root` could not be swapped, without changing anything.
pub fn preflight(root: &Path) -> Result<(), String> {
    files::writable(root)?;
    let mounts = files::mounts_below(root)?;
    if let Some(mount) = mounts.first() {
        return Err(format!(
            "{} is mounted inside {}, so what lies there cannot be swapped: restore with --into and copy it, or \
             run the restore where only {} itself is mounted",
            mount.display(),
            root.display(),
            root.display()
        ));
    }
    Ok(())
}

/// Where the entries of `root` are staged and kept by the run `run_id`.
pub fn paths(root: &Path, run_id: &str) -> (PathBuf, PathBuf) {
    (
        root.join(format!("{STAGING_PREFIX}{run_id}")),
        root.join(format!("{KEPT_PREFIX}{run_id}")),
    )
}

/// The restore `run_id` has succeeded as a whole, for every one of its swaps at once: from here on [`undo`]
/// keeps the new data.
pub fn commit(run: &RunContext) -> io::Result<()> {
    let path = commit_file(&run.journal, &run.run_id)?;
    crate::durable::write_replace(&path, b"", 0o600)
}

/// Forgets the commit once every swap of the run is finished.
pub fn forget_commit(run: &RunContext) -> io::Result<()> {
    let path = commit_file(&run.journal, &run.run_id)?;
    crate::durable::remove(&path).map(|_| ())
}

/// Whether a run's restore is committed: whatever it replaced stays replaced.
pub fn is_committed(journal: &Journal, run_id: &str) -> io::Result<bool> {
    commit_file(journal, run_id)?.try_exists()
}

fn commit_file(journal: &Journal, run_id: &str) -> io::Result<PathBuf> {
    let state = journal.dir().parent().map(Path::canonicalize);
    let state = state.ok_or_else(|| io::Error::other("the journal lies in no directory"))??;
    Ok(state.join(format!("committed-{run_id}")))
}

impl Swap {
    /// Writes the swap down in the journal, then makes the empty staging directory.
    pub fn begin(service: &str, root: &Path, run: &RunContext, keep_old: bool) -> io::Result<Self> {
        preflight(root).map_err(io::Error::other)?;
        let root = root.canonicalize()?;
        let (staging, kept) = paths(&root, &run.run_id);
        let committed = commit_file(&run.journal, &run.run_id)?;
        let entry = run.journal.record(
            &run.run_id,
            &Obligation::Swap {
                service: service.to_owned(),
                root: root.clone(),
                staging: staging.clone(),
                kept: kept.clone(),
            },
        )?;
        if let Err(error) = crate::durable::create_dir(&staging, UNDESCRIBED) {
            run.journal.done(&entry)?;
            return Err(error);
        }
        Ok(Self {
            root,
            staging,
            kept,
            committed,
            keep_old,
            journal: Arc::clone(&run.journal),
            entry,
        })
    }

    /// Where the archive is to be unpacked.
    pub fn staging(&self) -> &Path {
        &self.staging
    }

    /// Where the old data is once swapped.
    pub fn kept(&self) -> &Path {
        &self.kept
    }

    /// Puts the staged entries live. After an error call [`Self::rollback`].
    ///
    /// The root gets staging's owner and mode when the archive or the adapter gave it any; see `new_root`.
    pub fn swap(&self) -> io::Result<()> {
        self.swap_with(&Files::new())
    }

    fn swap_with(&self, files: &Files) -> io::Result<()> {
        let marker = |state| {
            let root = RootMeta::of(&self.root)?;
            io::Result::Ok(Marker {
                state,
                root,
                committed: self.committed.clone(),
                keep_old: self.keep_old,
            })
        };
        let mut marker = marker(State::TakingOut)?;
        files.create_dir(&self.kept, 0o700)?;
        write_marker(files, &self.kept, &marker)?;
        let taken_out = files.move_entries(&self.root, &self.kept)?;
        marker.state = State::PuttingIn;
        write_marker(files, &self.kept, &marker)?;
        files.move_entries(&self.staging, &self.root)?;
        files.set_meta(&self.root, &self.new_root(marker.root, taken_out == 0)?)?;
        files.sync_dir(&self.root)
    }

    /// What the root becomes: as staging was described, else as it is. One that was empty, as the engine
    /// makes it for root when a stack is moved to another machine, goes to the owner its new entries share.
    fn new_root(&self, old: RootMeta, was_empty: bool) -> io::Result<RootMeta> {
        let staged = RootMeta::of(&self.staging)?;
        if staged.mode != UNDESCRIBED {
            return Ok(staged);
        }
        let owner = if was_empty {
            files::common_owner(&self.root)?
        } else {
            None
        };
        let (uid, gid) = owner.unwrap_or((old.uid, old.gid));
        Ok(RootMeta { uid, gid, ..old })
    }

    /// Puts the old data back, wherever the swap is.
    pub fn rollback(&self) -> io::Result<()> {
        undo(&self.root, &self.staging, &self.kept)?;
        self.journal.done(&self.entry)
    }

    /// After [`commit`]: removes what was kept, unless it shall stay, and strikes the swap out.
    pub fn finish(&self) -> io::Result<()> {
        self.finish_with(&Files::new())
    }

    fn finish_with(&self, files: &Files) -> io::Result<()> {
        if !self.committed.exists() {
            return Err(io::Error::other(format!(
                "the swap in {} is not committed, so its old data is not removed",
                self.root.display()
            )));
        }
        remove_staging(files, &self.staging)?;
        if !self.keep_old {
            remove_kept(files, &self.kept)?;
        }
        self.journal.done(&self.entry)
    }

    /// After [`Self::finish`]: removes old data that was kept at first.
    pub fn discard(&self) -> io::Result<()> {
        remove_kept(&Files::new(), &self.kept)
    }
}

/// Ends a swap that an earlier process began: with the old data live and complete, or, when the restore was
/// committed, with the new.
///
/// May be called in any state, any number of times, and be killed at any point. Nothing may use `root`
/// meanwhile: the service must be stopped.
pub fn undo(root: &Path, staging: &Path, kept: &Path) -> io::Result<()> {
    undo_with(&Files::new(), root, staging, kept)
}

fn undo_with(files: &Files, root: &Path, staging: &Path, kept: &Path) -> io::Result<()> {
    check_place(root, staging, STAGING_PREFIX)?;
    check_place(root, kept, KEPT_PREFIX)?;
    let marker = read_marker(kept)?;
    if let Some(marker) = &marker
        && marker.committed.exists()
    {
        remove_staging(files, staging)?;
        return if marker.keep_old {
            Ok(())
        } else {
            remove_kept(files, kept)
        };
    }
    if let Some(mut marker) = marker {
        if marker.state == State::PuttingIn {
            if !staging.exists() {
                files.create_dir(staging, 0o700)?;
            }
            files.discard_entries(root, staging)?;
            marker.state = State::TakingOut;
            write_marker(files, kept, &marker)?;
        }
        files.move_entries_back(kept, root, staging)?;
        files.set_meta(root, &marker.root)?;
        files.sync_dir(root)?;
    }
    remove_staging(files, staging)?;
    remove_kept(files, kept)
}

/// Only what [`paths`] makes is ever moved from or removed.
fn check_place(root: &Path, dir: &Path, prefix: &str) -> io::Result<()> {
    let name = dir.file_name().and_then(|name| name.to_str());
    if dir.parent() == Some(root) && name.is_some_and(|name| name.starts_with(prefix)) {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!(
            "{} is no directory that a restore makes in {}: nothing was changed",
            dir.display(),
            root.display()
        ),
    ))
}

fn remove_staging(files: &Files, staging: &Path) -> io::Result<()> {
    files.remove_dir(staging, None)
}

fn remove_kept(files: &Files, kept: &Path) -> io::Result<()> {
    files.remove_dir(kept, Some(MARKER))
}

fn write_marker(files: &Files, kept: &Path, marker: &Marker) -> io::Result<()> {
    files.write(&kept.join(MARKER), &serde_json::to_vec(marker)?)
}

fn read_marker(kept: &Path) -> io::Result<Option<Marker>> {
    let path = kept.join(MARKER);
    match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "{} is not understood ({e}), so nothing was moved: the old data lies in {} and what is \
                     missing there, beside it",
                    path.display(),
                    kept.display()
                ),
            )
        }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io::Error::new(
            e.kind(),
            format!("cannot read {}: {e}", path.display()),
        )),
    }
}

#[cfg(test)]
mod tests;
