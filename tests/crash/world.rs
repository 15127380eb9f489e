//! A repository, the hosts that back up to it, and the book of what must be in it.

#[path = "../support/notes.rs"]
mod notes;
#[path = "second.rs"]
mod second;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use age::secrecy::ExposeSecret;
use age::x25519::Identity;
use jiff::Timestamp;
use lifeboat::archive::{Cut, EntryMeta, OnChange};
use lifeboat::config::Secret;
use lifeboat::repository::keys::Keys;
use lifeboat::repository::prune::{Options, Report, prune};
use lifeboat::repository::session::BackupNotes;
use lifeboat::repository::store::{LocalStore, Store};
use lifeboat::repository::verify::{Depth, Scope, verify};
use lifeboat::repository::{Repository, RepositoryError};

use crate::schedule::{Chance, grow_older};
use notes::notes;

const PAGE_BYTES: usize = 512;
const PAGE: Cut = Cut::Pages(512);
const PAGES: usize = 12;

/// What a backup holds: entry names with their archive in front, and their bytes.
pub type Content = BTreeMap<String, Vec<u8>>;

/// A file that is old enough to be spliced in unread, for all worlds.
pub struct Steady {
    dir: tempfile::TempDir,
}

impl Steady {
    pub fn new() -> Self {
        use std::os::unix::fs::MetadataExt;
        let steady = Self { dir: scratch() };
        fs::write(steady.path(), noise(3000, 99)).unwrap();
        let changed = fs::metadata(steady.path()).unwrap().ctime();
        let deadline = Instant::now() + Duration::from_mins(1);
        while Timestamp::now().as_second() <= changed + 3 {
            assert!(Instant::now() < deadline, "the clock stands still");
            std::thread::yield_now();
        }
        steady
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("steady")
    }
}

/// A directory in memory where there is one: what the disk does is not asked here.
pub fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        tempfile::tempdir_in(memory).unwrap()
    } else {
        tempfile::tempdir().unwrap()
    }
}

/// Two hosts and their repository.
pub struct World {
    dir: tempfile::TempDir,
    keys: Option<String>,
    public: Vec<String>,
    /// Everything that was ever tried.
    tried: BTreeMap<String, Content>,
    committed: BTreeSet<String>,
    /// A retention drop was tried.
    doomed: BTreeSet<String>,
    dropped: BTreeSet<String>,
    /// In the second repository.
    copied: BTreeSet<String>,
}

impl World {
    pub fn new(encrypted: bool) -> Self {
        let identity = encrypted.then(Identity::generate);
        let world = Self {
            dir: scratch(),
            public: identity.iter().map(|i| i.to_public().to_string()).collect(),
            keys: identity.map(|i| i.to_string().expose_secret().to_owned()),
            tried: BTreeMap::new(),
            committed: BTreeSet::new(),
            doomed: BTreeSet::new(),
            dropped: BTreeSet::new(),
            copied: BTreeSet::new(),
        };
        for dir in ["repo", "second", "a", "b", "c", "d"] {
            fs::create_dir(world.path(dir)).unwrap();
        }
        // The reserve for a full disk, so that no prune makes one of megabytes.
        for repository in ["repo", "second"] {
            fs::write(world.path(repository).join("reserve"), "reserve").unwrap();
        }
        world
    }

    /// The same in another directory.
    pub fn copy(&self) -> Self {
        let dir = scratch();
        copy_tree(self.dir.path(), dir.path());
        Self {
            dir,
            keys: self.keys.clone(),
            public: self.public.clone(),
            tried: self.tried.clone(),
            committed: self.committed.clone(),
            doomed: self.doomed.clone(),
            dropped: self.dropped.clone(),
            copied: self.copied.clone(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn root(&self) -> PathBuf {
        self.path("repo")
    }

    pub fn ids(&self) -> Vec<String> {
        self.committed.iter().cloned().collect()
    }

    pub fn keys(&self, host: &str) -> Keys {
        Keys {
            public_keys: self.public.clone(),
            identity: self.keys.clone().map(Secret::new),
            state: Some(self.path(host)),
            ..Keys::none()
        }
    }

    /// Writes down what a run is going to store.
    pub fn expect_backup(&mut self, run: &Run) {
        let known = self.tried.insert(run.id.clone(), run.content.clone());
        assert!(known.is_none(), "{} twice", run.id);
    }

    pub fn note_commit(&mut self, id: &str) {
        self.committed.insert(id.to_owned());
    }

    pub fn expect_drop(&mut self, id: &str) {
        self.doomed.insert(id.to_owned());
    }

    pub fn note_drop(&mut self, id: &str) {
        self.dropped.insert(id.to_owned());
    }

    /// Backs up undisturbed; it must succeed.
    pub fn backup(&mut self, run: &Run, steady: &Steady) {
        self.expect_backup(run);
        let store: Arc<dyn Store> = Arc::new(LocalStore::new(self.root()));
        run.perform(&store, &self.keys(run.host), &self.path(run.host), steady)
            .unwrap();
        self.note_commit(&run.id);
    }

    pub fn prune_options(&self, now: bool) -> Options {
        Options {
            dry_run: false,
            now,
            state: Some(self.path("a")),
            level: 1,
        }
    }

    /// The stores' clocks go forward.
    pub fn wait(&self, hours: u64) {
        for root in [self.root(), self.second_root()] {
            grow_older(&root, Duration::from_hours(hours));
        }
    }

    pub fn open(&self) -> Repository {
        self.open_at(&self.root())
    }

    fn open_at(&self, root: &Path) -> Repository {
        let store: Arc<dyn Store> = Arc::new(LocalStore::new(root));
        Repository::open(store, &self.keys("a")).unwrap()
    }

    pub fn prune(&self) -> Report {
        self.prune_at(&self.root())
    }

    fn prune_at(&self, root: &Path) -> Report {
        prune(&self.open_at(root), &self.prune_options(false)).unwrap()
    }

    /// What a prune would do.
    pub fn prune_plan(&self) -> Report {
        self.plan_at(&self.root())
    }

    /// Whatever the hosts remember, it is what one would do that remembers nothing.
    fn plan_at(&self, root: &Path) -> Report {
        let plan = |state: Option<PathBuf>| {
            let options = Options {
                dry_run: true,
                state,
                ..self.prune_options(false)
            };
            let mut report = prune(&self.open_at(root), &options).unwrap();
            // They grow older meanwhile.
            report.runs.clear();
            report
        };
        let remembered = plan(Some(self.path("a")));
        assert_eq!(remembered, plan(None));
        remembered
    }

    /// What dead runs left is gone after some prunes, and nothing else is.
    pub fn check_collected(&self) {
        self.check_collected_at(&self.root());
        self.check();
    }

    fn check_collected_at(&self, root: &Path) {
        self.plan_at(root);
        self.wait(25);
        for _ in 0..4 {
            self.prune_at(root);
            self.wait(49);
        }
        let repository = self.open_at(root);
        // One that waits for nobody takes over what lock a dead one left.
        let last = prune(&repository, &self.prune_options(true)).unwrap();
        assert_eq!(
            last.stored, last.live,
            "garbage was not collected: {last:?}"
        );
        let store = repository.store();
        store.remove_abandoned().unwrap();
        for dir in ["leases", "locks", "trash"] {
            let left = store.list(dir).unwrap();
            assert!(left.is_empty(), "left over: {left:?}");
        }
        let listed = repository.backups().unwrap();
        for entry in store.list("backups").unwrap() {
            let id = entry.key.split('/').nth(1).unwrap().to_owned();
            let void = entry.size == 5;
            assert!(void || listed.contains(&id), "left over: {}", entry.key);
        }
        assert_eq!(unfinished(root), 0, "unfinished files are left over");
    }

    /// Everything that must be there is, to the byte, and nothing else is listed.
    pub fn check(&self) {
        for id in self.check_at(&self.root(), &self.committed, &self.doomed) {
            assert!(
                !self.dropped.contains(&id),
                "{id} was dropped and is listed"
            );
        }
    }

    /// What is listed there, which reads as it was backed up.
    fn check_at(
        &self,
        root: &Path,
        committed: &BTreeSet<String>,
        doomed: &BTreeSet<String>,
    ) -> BTreeSet<String> {
        let store: Arc<dyn Store> = Arc::new(LocalStore::new(root));
        let repository = match Repository::open(store, &self.keys("a")) {
            // Killed while the repository was made.
            Err(RepositoryError::NoRepository(_)) if committed.is_empty() => {
                return BTreeSet::new();
            }
            other => other.unwrap(),
        };
        let listed: BTreeSet<String> = repository.backups().unwrap().into_iter().collect();
        for id in committed {
            assert!(
                listed.contains(id) || doomed.contains(id),
                "{id} was committed and is not listed"
            );
        }
        for id in &listed {
            let expected = self.tried.get(id).expect("nobody made this backup");
            let found = content(&repository, id);
            assert!(found == *expected, "{id} reads as something else");
        }
        let report = verify(&repository, &Scope::Everything, Depth::Full, |_, _| {}).unwrap();
        assert!(report.is_good(), "{report:?}");
        assert_eq!(report.backups, listed.len() as u64);
        listed
    }
}

/// One backup to make.
#[derive(Clone)]
pub struct Run {
    pub id: String,
    pub host: &'static str,
    content: Content,
    /// The same relation has the same header another time.
    header_stays: bool,
}

impl std::fmt::Debug for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of host {}", self.id, self.host)
    }
}

impl Run {
    /// The host's relation with some pages changed, some of the files that all hosts have, and the steady one.
    pub fn new(number: usize, host: &'static str, chance: &mut Chance) -> Self {
        let mut relation = noise(PAGES * PAGE_BYTES, if host == "a" { 1 } else { 2 });
        for _ in 0..chance.below(4) {
            let page = chance.below(PAGES);
            let body = noise(PAGE_BYTES, 1000 + chance.next() % 8);
            relation[page * PAGE_BYTES..][..PAGE_BYTES].copy_from_slice(&body);
        }
        let mut content = Content::from([
            ("db/relation".to_owned(), relation),
            ("files/steady".to_owned(), noise(3000, 99)),
        ]);
        for file in 0..6 {
            if chance.one_in(2) {
                content.insert(format!("files/{file}"), noise(600 + file, file as u64));
            }
        }
        Self {
            id: Self::id(number),
            host,
            content,
            header_stays: false,
        }
    }

    fn id(number: usize) -> String {
        format!("20260101T{number:06}Z-{number:06x}")
    }

    /// Little is left of the packs before it.
    pub fn with_most_pages_changed(mut self, seed: u64) -> Self {
        let relation = self.content.get_mut("db/relation").unwrap();
        relation[..(PAGES - 3) * PAGE_BYTES]
            .copy_from_slice(&noise((PAGES - 3) * PAGE_BYTES, 50 + seed));
        self
    }

    /// The same content under another name.
    pub fn again(&self, number: usize, host: &'static str) -> Self {
        Self {
            id: Self::id(number),
            host,
            ..self.clone()
        }
    }

    pub fn with_lasting_header(mut self) -> Self {
        self.header_stays = true;
        self
    }

    /// With a file that fills several frames.
    pub fn with_large_file(mut self, seed: u64) -> Self {
        let large = noise(600_000, seed);
        self.content.insert("files/large".to_owned(), large);
        self
    }

    /// The whole backup, as the command makes it.
    pub fn perform(
        &self,
        store: &Arc<dyn Store>,
        keys: &Keys,
        state: &Path,
        steady: &Steady,
    ) -> Result<(), RepositoryError> {
        let repository = Repository::open_or_init(Arc::clone(store), keys)?;
        let backup = repository.begin(&self.id, state, 1)?;
        let mut sealed = Vec::new();
        for name in ["db", "files"] {
            let mut archive = backup.archive(name)?;
            for (entry, bytes) in &self.content {
                let Some(entry) = entry.strip_prefix(&format!("{name}/")) else {
                    continue;
                };
                match entry {
                    "relation" => {
                        let path = state.join("relation");
                        fs::write(&path, bytes).unwrap();
                        if self.header_stays {
                            let file = fs::File::options().append(true).open(&path).unwrap();
                            file.set_modified(UNIX_EPOCH).unwrap();
                        }
                        archive
                            .file(entry, &path, PAGE, OnChange::Repaired)
                            .map_err(plain)?;
                    }
                    "steady" => {
                        archive
                            .file(entry, &steady.path(), Cut::Content, OnChange::ReadAgain)
                            .map_err(plain)?;
                    }
                    _ => archive
                        .bytes(entry, &EntryMeta::default(), bytes)
                        .map_err(plain)?,
                }
            }
            sealed.push((archive.seal().map_err(plain)?, notes()));
        }
        backup.commit(sealed, BackupNotes::default()).map(drop)
    }
}

/// Files that were begun and never named.
fn unfinished(dir: &Path) -> usize {
    let entries = fs::read_dir(dir).unwrap().map(Result::unwrap);
    entries
        .map(|entry| {
            if entry.file_type().unwrap().is_dir() {
                unfinished(&entry.path())
            } else {
                usize::from(lifeboat::durable::is_temp(&entry.file_name()))
            }
        })
        .sum()
}

fn plain(err: impl std::error::Error) -> RepositoryError {
    RepositoryError::Invalid(err.to_string())
}

/// Reads every archive of a backup to its end.
pub fn content(repository: &Repository, id: &str) -> Content {
    readable(repository, id).expect("it does not read to its end")
}

/// The same, where it can be read.
pub fn readable(repository: &Repository, id: &str) -> Option<Content> {
    let manifest = repository.manifest(id).unwrap();
    let mut found = Content::new();
    for record in &manifest.archives {
        let mut stream = Vec::new();
        let mut archive = repository.archive(&manifest, record).ok()?;
        archive.read_to_end(&mut stream).ok()?;
        for (name, body) in crate::members::members(&stream) {
            let twice = found.insert(format!("{}/{name}", record.name), body);
            assert!(twice.is_none());
        }
    }
    Some(found)
}

pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut chance = Chance::new(seed);
    std::iter::repeat_with(|| chance.next().to_be_bytes())
        .flatten()
        .take(len)
        .collect()
}

pub fn copy_tree(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir_all(&target).unwrap();
            copy_tree(&entry.path(), &target);
        } else {
            let modified = entry.metadata().unwrap().modified().unwrap();
            fs::copy(entry.path(), &target).unwrap();
            fs::File::options()
                .append(true)
                .open(&target)
                .and_then(|file| file.set_modified(modified))
                .unwrap();
        }
    }
}
