//! Sends one backup after another, with what they need.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io::{Read, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::claims::Claims;
use super::{CopyReport, Halt, LOOKS, not_taken, unreadable};
use crate::repository::lease::{self, Lease, PacksSeen, VOID};
use crate::repository::stock::Stock;
use crate::repository::{
    PackName, Repository, RepositoryError, damaged_key, index, manifest_name, moves, packs_key,
};

/// Index parts, ranges, moves and manifests are smaller.
const FILE_LIMIT_BYTES: u64 = 320 * 1024 * 1024;

pub(super) struct Copier<'a, P> {
    source: &'a Repository,
    target: &'a Repository,
    state: &'a Path,
    from: Stock,
    /// As it was when the last lease had been taken.
    to: Stock,
    /// Packs of the source that were found damaged, and why.
    faults: HashMap<PackName, String>,
    pub(super) report: CopyReport,
    progress: P,
}

/// What a backup needs in the target.
#[derive(Default)]
struct Plan {
    /// Packs to send.
    send: Vec<PackName>,
    /// Packs that must be there when the backup is committed.
    needed: Vec<PackName>,
    /// Runs whose moves lead to some of them.
    runs: BTreeSet<String>,
}

/// What became of a pack.
enum Sent {
    Done,
    /// It is not in the source any more.
    Gone,
    Damaged,
}

impl<'a, P: FnMut(&str, u64)> Copier<'a, P> {
    pub(super) fn new(
        source: &'a Repository,
        target: &'a Repository,
        state: &'a Path,
        progress: P,
    ) -> Result<Self, RepositoryError> {
        Ok(Self {
            source,
            target,
            state,
            from: Stock::look(source.vault())?,
            to: Stock::look(target.vault())?,
            faults: HashMap::new(),
            report: CopyReport::default(),
            progress,
        })
    }

    /// Copies one backup, or what is missing of one that is `known` to be there.
    pub(super) fn backup(&mut self, id: &str, known: bool) -> Result<(), Halt> {
        let uses = self.source.uses(id).map_err(unreadable)?;
        let named: Vec<PackName> = uses.packs().map(|(pack, _)| pack).collect();
        if known && self.is_whole_there(id, &named)? {
            return Ok(());
        }
        if !known {
            self.check_genuine(id)?;
        }
        let mut claims = Claims::begin(self.target, self.state)?;
        let taken = claims.take(id, false);
        let lease = taken.map_err(|err| not_taken(err, self.target))?;
        // After the lease: what is usable now stays until it ends.
        self.to = Stock::look(self.target.vault())?;
        let plan = self.packs(id, &named, known)?;
        for writer in plan.runs.iter().map(String::as_str).chain([id]) {
            self.index(writer)?;
        }
        let mut leases = Vec::new();
        for run in &plan.runs {
            leases.extend(self.moves(run, &mut claims)?);
        }
        if !known {
            let manifest = self.source.vault().key(&manifest_name(id));
            let last = [packs_key(id), manifest.clone()];
            self.files_but(&format!("backups/{id}"), &last)?;
            self.file(&packs_key(id))?;
            self.check_there(id, &plan)?;
            self.commit(&manifest, &lease)?;
            tracing::info!(backup = id, "copied to {}", self.target.store().describe());
        }
        drop((leases, lease));
        claims.finish()?;
        Ok(())
    }

    /// Whether the target has all that its backup needs: where it was, or where the target moved it.
    fn is_whole_there(&mut self, id: &str, named: &[PackName]) -> Result<bool, RepositoryError> {
        let vault = self.target.vault();
        for pack in named {
            if !self.to.holds(vault, *pack, id, PacksSeen::is_whole)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Nothing that is not genuine goes on its way.
    fn check_genuine(&self, id: &str) -> Result<(), Halt> {
        if !self.source.vault().mode.can_read() {
            return Ok(());
        }
        let manifest = self.source.manifest(id).map_err(unreadable)?;
        for record in &manifest.archives {
            let ranges = self.source.ranges_file(&manifest, record);
            ranges.map_err(unreadable)?;
        }
        Ok(())
    }

    /// Sends the packs; where they are in the source may change meanwhile.
    fn packs(&mut self, id: &str, named: &[PackName], known: bool) -> Result<Plan, Halt> {
        let mut looks = 0;
        loop {
            match self.plan(id, named, known) {
                // It may be newer than the last look at the source, or have moved since.
                Err(Halt::Damaged(_)) if looks == 0 => {}
                Err(halt) => return Err(halt),
                Ok(plan) => match self.send(&plan.send)? {
                    Sent::Done => return Ok(plan),
                    Sent::Damaged => continue,
                    Sent::Gone if looks < LOOKS => {}
                    Sent::Gone => {
                        return Err(Halt::Waits(format!(
                            "packs of {} go again and again while they are copied: copy again",
                            self.source.store().describe()
                        )));
                    }
                },
            }
            looks += 1;
            self.from = Stock::look(self.source.vault())?;
        }
    }

    fn plan(&mut self, id: &str, named: &[PackName], known: bool) -> Result<Plan, Halt> {
        let (source, target) = (self.source.vault(), self.target.vault());
        let (mut plan, mut seen) = (Plan::default(), HashSet::new());
        let mut open = named.to_vec();
        while let Some(pack) = open.pop() {
            if !seen.insert(pack)
                || (known && self.to.holds(target, pack, id, PacksSeen::is_whole)?)
            {
                continue;
            }
            if self.to.packs.is_usable(pack) {
                plan.needed.push(pack);
            } else if self.is_whole_here(pack) {
                self.check_trash(pack)?;
                plan.needed.push(pack);
                plan.send.push(pack);
            } else if let Some(run) = self.from.covering(source, pack, id)? {
                open.extend(self.from.places(source, &run, pack)?);
                plan.runs.insert(run);
            } else {
                return Err(self.lost(pack));
            }
        }
        // A move says of each of its packs that it may go, so its other places come along. Those that are gone
        // here nobody needed any more; a prune in the target keeps the pack itself then.
        for run in &plan.runs {
            let record = self.from.record(source, run)?;
            let places = record.into_iter().flat_map(|record| record.packs.values());
            let places: BTreeSet<PackName> = places.flatten().copied().collect();
            for pack in places {
                if !seen.insert(pack) || self.to.packs.is_usable(pack) {
                    continue;
                }
                self.check_trash(pack)?;
                if self.is_whole_here(pack) {
                    plan.send.push(pack);
                }
            }
        }
        Ok(plan)
    }

    fn is_whole_here(&self, pack: PackName) -> bool {
        self.from.packs.is_whole(pack) && !self.faults.contains_key(&pack)
    }

    fn lost(&self, pack: PackName) -> Halt {
        let why = self.faults.get(&pack).cloned();
        let why = why.unwrap_or_else(|| {
            "it is missing or marked as damaged, and what was found of it elsewhere is not all; run `repair` first"
                .to_owned()
        });
        RepositoryError::Damaged { pack, why }.into()
    }

    /// A pack that lies in the trash may be deleted at any time, and so may one that is put in its place.
    fn check_trash(&self, pack: PackName) -> Result<(), Halt> {
        if !self.to.packs.trashed.contains(&pack) {
            return Ok(());
        }
        Err(Halt::Waits(format!(
            "pack {pack} is needed again and lies in the trash of {}: copy again when a prune there has emptied it (after two days, `prune --now` at once)",
            self.target.store().describe()
        )))
    }

    fn send(&mut self, packs: &[PackName]) -> Result<Sent, Halt> {
        for pack in packs {
            match self.pack(*pack)? {
                Sent::Done => {}
                other => return Ok(other),
            }
        }
        Ok(Sent::Done)
    }

    /// Sends a pack. What lies in its place is deleted when a good one is at hand, and not before.
    fn pack(&mut self, pack: PackName) -> Result<Sent, Halt> {
        let (key, store) = (self.target.vault().pack_key(pack), self.target.store());
        let mut blob = match self.source.store().fetch(&key) {
            Err(RepositoryError::Missing(_)) => return Ok(Sent::Gone),
            other => other?,
        };
        let mut spool = store.spool()?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 256 * 1024];
        let mut bytes = 0;
        let read = |err: std::io::Error| err.to_string();
        let mut stream = match blob.stream().map_err(read) {
            Ok(stream) => stream,
            Err(why) => return Ok(self.found_damaged(pack, why)),
        };
        loop {
            let count = match stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(err) if err.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(err) => return Ok(self.found_damaged(pack, err.to_string())),
            };
            let piece = buffer.get(..count).unwrap_or_default();
            hash.update(piece);
            spool
                .write_all(piece)
                .map_err(|e| RepositoryError::io(format!("copy pack {pack}"), e))?;
            bytes += count as u64;
        }
        let found = PackName(hash.finalize().into());
        if found != pack {
            return Ok(self.found_damaged(pack, format!("its SHA-256 is {found}")));
        }
        let is_damaged = self.to.packs.damaged.contains(&pack);
        if is_damaged && self.is_marked(pack)? {
            store.delete(&key)?;
        }
        match spool.publish(&key) {
            // Another host's copy was faster.
            Ok(()) | Err(RepositoryError::Exists(_)) => {}
            Err(other) => return Err(other.into()),
        }
        if is_damaged {
            store.delete(&damaged_key(pack))?;
            self.to.packs.damaged.remove(&pack);
        }
        self.to.packs.listed.insert(pack);
        self.report.packs += 1;
        self.report.pack_bytes += bytes;
        (self.progress)(&key, bytes);
        Ok(Sent::Done)
    }

    /// Whether nobody has replaced the damaged pack in the target since it was looked at.
    fn is_marked(&self, pack: PackName) -> Result<bool, RepositoryError> {
        match self.target.store().open(&damaged_key(pack)) {
            Ok(_) => Ok(true),
            Err(RepositoryError::Missing(_)) => Ok(false),
            Err(other) => Err(other),
        }
    }

    fn found_damaged(&mut self, pack: PackName, why: String) -> Sent {
        // The source may be read-only here.
        if let Err(unmarked) = self.source.mark_damaged(pack, &why) {
            tracing::warn!("{unmarked}: the next backup may refer to the damaged pack");
        }
        self.faults.insert(pack, why);
        Sent::Damaged
    }

    /// Sends the parts of the index that one writer put, as far as they can be believed.
    fn index(&self, writer: &str) -> Result<(), Halt> {
        let vault = self.source.vault();
        for part in index::parts(vault)? {
            let found = part.rsplit_once('-').map(|(found, _)| found);
            if found != Some(writer) {
                continue;
            }
            let read = if vault.mode.can_read() {
                index::read(vault, &part, |_, _| Ok(()))
            } else {
                Ok(())
            };
            match read {
                Ok(()) => self.file(&vault.key(&index::key(&part)))?,
                Err(RepositoryError::Missing(_)) => {}
                Err(err) if err.is_damage() || matches!(err, RepositoryError::Invalid(_)) => {
                    tracing::warn!("a part of the index is not copied: {err}; run `repair index`");
                }
                Err(other) => return Err(other.into()),
            }
        }
        Ok(())
    }

    /// Sends what a run moved. It counts in the target only from the moment its list of packs is there, so that
    /// is put under a lease of the run's name; the lease is for the time until a backup that needs it is there.
    fn moves(&mut self, run: &str, claims: &mut Claims<'_>) -> Result<Option<Lease>, Halt> {
        let (directory, record) = (format!("moved/{run}"), moves::record_key(run));
        let entries = self.source.store().list(&directory)?;
        if !entries.iter().any(|entry| entry.key == record) {
            return Err(RepositoryError::Missing(record).into());
        }
        if entries
            .iter()
            .all(|entry| self.to.moved_files.contains(&entry.key))
        {
            return Ok(None);
        }
        let vault = self.source.vault();
        if let Some(said) = self.from.record(vault, run)?
            && vault.mode.can_read()
        {
            for pack in said.packs.keys() {
                vault.pieces(run, *pack).map_err(unreadable)?;
            }
        }
        let taken = claims.take(run, true);
        let lease = taken.map_err(|err| not_taken(err, self.target))?;
        self.files_but(&directory, std::slice::from_ref(&record))?;
        self.commit(&record, &lease)?;
        Ok(Some(lease))
    }

    /// Sends all files of a directory but the last ones.
    fn files_but(&self, directory: &str, last: &[String]) -> Result<(), Halt> {
        for entry in self.source.store().list(directory)? {
            if !last.contains(&entry.key) {
                self.file(&entry.key)?;
            }
        }
        Ok(())
    }

    fn file(&self, key: &str) -> Result<(), Halt> {
        let bytes = self.source.store().get(key, FILE_LIMIT_BYTES);
        self.put(key, &bytes.map_err(unreadable)?)
    }

    fn put(&self, key: &str, bytes: &[u8]) -> Result<(), Halt> {
        let store = self.target.store();
        match store.put(key, bytes) {
            Ok(()) => return Ok(()),
            Err(RepositoryError::Exists(_)) => {}
            Err(other) => return Err(other.into()),
        }
        match store.get(key, FILE_LIMIT_BYTES)? {
            there if there == bytes => Ok(()),
            there if there == VOID => {
                let key = key.to_owned();
                Err(lease::overtaken(RepositoryError::Exists(key)).into())
            }
            _ => Err(Halt::Waits(format!(
                "{key} in {} is another file than the one to copy, or damaged: delete it there, and copy again",
                store.describe()
            ))),
        }
    }

    /// Commits what everything is in place for; what a prune left there for a copy that died goes first.
    fn commit(&self, key: &str, lease: &Lease) -> Result<(), Halt> {
        let bytes = self.source.store().get(key, FILE_LIMIT_BYTES);
        let bytes = bytes.map_err(unreadable)?;
        lease.reopen(key)?;
        self.put(key, &bytes)
    }

    /// Looks once more: only a copy uses names again that were there before, and a prune that judged by what it
    /// saw before may be deleting them still.
    fn check_there(&self, id: &str, plan: &Plan) -> Result<(), Halt> {
        let (source, target) = (self.source.store(), self.target.store());
        let gone = |what: &str| {
            Halt::Waits(format!(
                "a prune of {} took {what} away while it was copied: copy again",
                target.describe()
            ))
        };
        let vault = self.target.vault();
        let packs = lease::names(vault, "packs", &vault.key(".zst"))?;
        if let Some(pack) = plan.needed.iter().find(|pack| !packs.contains(pack)) {
            return Err(gone(&format!("pack {pack}")));
        }
        let manifest = vault.key(&manifest_name(id));
        let moved = plan.runs.iter().map(|run| format!("moved/{run}"));
        for directory in moved.chain([format!("backups/{id}")]) {
            let there = target.list(&directory)?;
            let there: HashSet<&str> = there.iter().map(|entry| entry.key.as_str()).collect();
            for entry in source.list(&directory)? {
                if entry.key != manifest && !there.contains(entry.key.as_str()) {
                    return Err(gone(&entry.key));
                }
            }
        }
        Ok(())
    }
}
