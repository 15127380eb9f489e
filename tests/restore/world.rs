//! A stack of three services as directories, and what was asked of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use lifeboat::archive::unpack::{UnpackOptions, unpack};
use lifeboat::archive::{EntryMeta, walk::Rules};
use lifeboat::repository::Repository;
use lifeboat::repository::manifest::{ArchiveRecord, Manifest};
use lifeboat::repository::reader::ArchiveReader;
use lifeboat::repository::session::{ArchiveNotes, BackupNotes, new_id};
use lifeboat::restore::apply::{Options, Progress, RestoreError, RestoreReport, Site, apply};
use lifeboat::restore::plan::{Plan, Request, build};
use lifeboat::restore::{Containers, Restore, Way, swap};
use lifeboat::services::{
    Check, ErrorKind, PointInTime, RunContext, ServiceError, ServiceKind, ServiceReport,
};
use lifeboat::stack::journal::{Journal, Obligation};
use lifeboat::stack::{Companion, CompanionRole, ContainerRef, Stack, StackService};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

pub const SERVICES: [(ServiceKind, &str); 3] = [
    (ServiceKind::Postgres, "postgres"),
    (ServiceKind::Qdrant, "qdrant"),
    (ServiceKind::N8n, "n8n"),
];

/// What the adapters and containers were asked, and where they are to break.
#[derive(Default)]
pub struct World {
    pub log: Mutex<Vec<String>>,
    pub running: Mutex<BTreeSet<String>>,
    /// Counts down; the call that takes it to zero breaks.
    pub fuse: AtomicU64,
    /// Whether it hangs, as a killed process does, instead of failing.
    pub hangs: bool,
    pub broke: tokio::sync::Notify,
}

impl World {
    async fn call(&self, what: String) -> Result<(), String> {
        self.log.lock().unwrap().push(what.clone());
        if self.fuse.load(Ordering::SeqCst) > 0 && self.fuse.fetch_sub(1, Ordering::SeqCst) == 1 {
            if self.hangs {
                self.broke.notify_one();
                std::future::pending::<()>().await;
            }
            return Err(format!("{what} broke"));
        }
        Ok(())
    }

    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    pub fn is_running(&self, name: &str) -> bool {
        self.running.lock().unwrap().contains(name)
    }
}

#[async_trait]
impl Containers for World {
    async fn stop(&self, container: &ContainerRef, _: Duration) -> anyhow::Result<()> {
        let outcome = self.call(format!("stop {}", container.name)).await;
        outcome.map_err(anyhow::Error::msg)?;
        self.running.lock().unwrap().remove(&container.name);
        Ok(())
    }

    async fn start(&self, container: &ContainerRef) -> anyhow::Result<()> {
        self.running.lock().unwrap().insert(container.name.clone());
        let outcome = self.call(format!("start {}", container.name)).await;
        outcome.map_err(anyhow::Error::msg)
    }

    async fn wait_healthy(&self, container: &ContainerRef, _: Duration) -> anyhow::Result<()> {
        let outcome = self.call(format!("wait {}", container.name)).await;
        outcome.map_err(anyhow::Error::msg)
    }
}

/// Files in a directory: swapped, or for Qdrant written into a running one and taken out again on rollback.
struct Files {
    name: String,
    root: PathBuf,
    online: bool,
    world: Arc<World>,
}

impl Files {
    async fn call(&self, what: &str) -> Result<(), ServiceError> {
        let outcome = self.world.call(format!("{what} {}", self.name)).await;
        outcome.map_err(|e| ServiceError::new(&self.name, ErrorKind::Setup, e))
    }

    fn replaced(&self) -> PathBuf {
        self.root.with_extension("replaced")
    }
}

#[async_trait]
impl Restore for Files {
    fn name(&self) -> &str {
        &self.name
    }

    fn way(&self) -> Way {
        if self.online {
            Way::Online
        } else {
            Way::Swap {
                root: self.root.clone(),
            }
        }
    }

    async fn preflight(&mut self, _: &ArchiveRecord) -> Vec<Check> {
        vec![match self.call("preflight").await {
            Ok(()) => Check::good(&self.name, "fine"),
            Err(e) => Check::bad(&self.name, e.to_string()),
        }]
    }

    fn unpack_options(&self) -> UnpackOptions {
        UnpackOptions {
            publish_last: vec!["global/pg_control".to_owned()],
            ..UnpackOptions::default()
        }
    }

    async fn prepare(
        &mut self,
        staged: &Path,
        _: &ArchiveRecord,
        _: &RunContext,
    ) -> Result<(), ServiceError> {
        assert!(!self.world.is_running(&self.name));
        fs::write(staged.join("prepared"), "").unwrap();
        self.call("prepare").await
    }

    async fn apply(
        &mut self,
        archive: ArchiveReader,
        _: &ArchiveRecord,
        _: &RunContext,
    ) -> Result<(), ServiceError> {
        self.call("apply").await?;
        fs::rename(&self.root, self.replaced()).unwrap();
        fs::create_dir(&self.root).unwrap();
        unpack(archive.into_async(), &self.root, &UnpackOptions::default())
            .await
            .unwrap();
        self.call("applied").await
    }

    async fn settle(&mut self, _: &ArchiveRecord, _: &RunContext) -> Result<(), ServiceError> {
        assert!(self.world.is_running(&self.name));
        self.call("settle").await
    }

    async fn rollback(&mut self) -> Result<(), ServiceError> {
        self.call("rollback").await?;
        if self.replaced().exists() {
            fs::remove_dir_all(&self.root).unwrap();
            fs::rename(self.replaced(), &self.root).unwrap();
        }
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), ServiceError> {
        if self.replaced().exists() {
            fs::remove_dir_all(self.replaced()).unwrap();
        }
        Ok(())
    }
}

/// A repository with one backup, and a stack whose data has changed since.
pub struct Place {
    pub dir: TempDir,
    pub world: Arc<World>,
    pub stack: Stack,
    pub manifest: Manifest,
    pub cancel: CancellationToken,
}

pub type Tree = BTreeMap<String, Vec<u8>>;

pub fn tree(root: &Path) -> Tree {
    let mut found = Tree::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(path) = waiting.pop() {
        let content = if path.is_dir() {
            waiting.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
            Vec::new()
        } else {
            fs::read(&path).unwrap()
        };
        found.insert(
            path.strip_prefix(root).unwrap().display().to_string(),
            content,
        );
    }
    found
}

fn container(name: &str, running: bool) -> ContainerRef {
    ContainerRef {
        id: format!("id-{name}"),
        name: name.to_owned(),
        image: "image".to_owned(),
        image_digest: "digest".to_owned(),
        running,
        stop_timeout: None,
        has_healthcheck: true,
    }
}

impl Place {
    pub fn new(world: World) -> Self {
        let dir = TempDir::new_in("/dev/shm")
            .or_else(|_| TempDir::new())
            .unwrap();
        fs::create_dir(dir.path().join("state")).unwrap();
        for (_, name) in SERVICES {
            let root = dir.path().join("data").join(name);
            fs::create_dir_all(root.join("global")).unwrap();
            fs::write(root.join("global/pg_control"), format!("control {name}")).unwrap();
            fs::write(root.join("data"), name.repeat(20_000)).unwrap();
        }
        let manifest = backup(dir.path());
        for (_, name) in SERVICES {
            let root = dir.path().join("data").join(name);
            fs::write(root.join("data"), "changed since").unwrap();
            fs::write(root.join("made since"), name).unwrap();
        }
        let stack = stack();
        let running = stack.services.iter().map(|s| s.name.clone());
        *world.running.lock().unwrap() = running.chain(["n8n-worker".to_owned()]).collect();
        Self {
            dir,
            world: Arc::new(world),
            stack,
            manifest,
            cancel: CancellationToken::new(),
        }
    }

    pub fn root(&self, name: &str) -> PathBuf {
        self.dir.path().join("data").join(name)
    }

    pub fn data(&self) -> Tree {
        tree(&self.dir.path().join("data"))
    }

    pub fn journal(&self) -> Arc<Journal> {
        Arc::new(Journal::open(&self.dir.path().join("state")).unwrap())
    }

    pub fn factory(
        &self,
    ) -> impl Fn(&StackService, &ArchiveRecord) -> Result<Box<dyn Restore>, ServiceError>
    + Send
    + Sync
    + use<> {
        let (data, world) = (self.dir.path().join("data"), Arc::clone(&self.world));
        move |service: &StackService, _: &ArchiveRecord| {
            Ok(Box::new(Files {
                name: service.name.clone(),
                root: data.join(&service.name),
                online: service.kind == ServiceKind::Qdrant,
                world: Arc::clone(&world),
            }) as Box<dyn Restore>)
        }
    }

    pub fn plan(&self, only: &[&str]) -> Plan {
        let request = Request {
            only: only.iter().map(|&o| o.to_owned()).collect(),
            stage_first: false,
        };
        build(&self.manifest, &self.stack, &request, &self.factory()).unwrap()
    }

    pub fn repository(&self) -> Repository {
        Repository::open_or_init_local(&self.dir.path().join("repo")).unwrap()
    }

    pub fn site(&self, options: Options) -> Site<'_> {
        let managed = self.stack.without_engine.is_none();
        Site {
            run: RunContext {
                run_id: "r1".to_owned(),
                journal: self.journal(),
                scratch: self.dir.path().to_owned(),
            },
            stack: &self.stack,
            containers: managed.then_some(&*self.world as &dyn Containers),
            options,
            progress: Progress::new(|_| {}),
            cancel: self.cancel.clone(),
        }
    }

    pub async fn restore(
        &self,
        plan: &Plan,
        site: &Site<'_>,
    ) -> Result<RestoreReport, RestoreError> {
        let repository = self.repository();
        let open = |record: &ArchiveRecord| Ok(repository.archive(&self.manifest, record)?);
        apply(plan, &self.factory(), &open, site).await
    }

    pub async fn restore_all(&self) -> Result<RestoreReport, RestoreError> {
        let site = self.site(Options::default());
        self.restore(&self.plan(&[]), &site).await
    }

    pub fn assert_everything_runs(&self) {
        let running = self.world.running.lock().unwrap().clone();
        let expected = ["n8n", "n8n-worker", "postgres", "qdrant"];
        assert_eq!(running, expected.map(str::to_owned).into());
    }

    pub fn assert_nothing_to_undo(&self) {
        assert_eq!(self.journal().pending().unwrap(), []);
        let state: Vec<_> = tree(&self.dir.path().join("state")).into_keys().collect();
        assert!(
            !state.iter().any(|name| name.contains("committed")),
            "{state:?}"
        );
    }

    /// What the next start does after a kill: what runs on swapped data stops, data goes back, all starts.
    pub fn undo(&self) {
        let journal = self.journal();
        for (entry, obligation) in journal.pending().unwrap() {
            match obligation {
                Obligation::Swap {
                    service,
                    root,
                    staging,
                    kept,
                } => {
                    self.world.running.lock().unwrap().remove(&service);
                    swap::undo(&root, &staging, &kept).unwrap();
                }
                Obligation::Stopped { container } => {
                    self.world.running.lock().unwrap().insert(container.name);
                }
                other => panic!("{other:?}"),
            }
            journal.done(&entry).unwrap();
        }
    }
}

fn stack() -> Stack {
    let services = SERVICES.map(|(kind, name)| StackService {
        kind,
        name: name.to_owned(),
        container: Some(container(name, true)),
        environment: BTreeMap::new(),
        mounts: Vec::new(),
        all_mount_targets: Vec::new(),
        hosts: Vec::new(),
        ports: Vec::new(),
        depends_on: Vec::new(),
    });
    let companion = |name: &str, role| Companion {
        name: name.to_owned(),
        kind: ServiceKind::N8n,
        role,
        container: container(name, role == CompanionRole::Worker),
        depends_on: vec!["postgres".to_owned()],
    };
    Stack {
        project: Some("demo".to_owned()),
        services: services.into(),
        companions: vec![
            companion("n8n-worker", CompanionRole::Worker),
            companion("n8n-import", CompanionRole::OneShot),
        ],
        ..Stack::default()
    }
}

fn backup(dir: &Path) -> Manifest {
    let repository = Repository::open_or_init_local(&dir.join("repo")).unwrap();
    let session = repository
        .begin(&new_id(Timestamp::now()), &dir.join("state"), 1)
        .unwrap();
    let mut sealed = Vec::new();
    for (kind, name) in SERVICES {
        let mut archive = session.archive(name).unwrap();
        let root = dir.join("data").join(name);
        archive.tree("", &root, &Rules::default()).unwrap();
        archive
            .bytes(
                "from the archive",
                &EntryMeta {
                    mode: 0o640,
                    ..own()
                },
                b"x",
            )
            .unwrap();
        let notes = ArchiveNotes {
            kind,
            container: None,
            point: PointInTime::at(Timestamp::UNIX_EPOCH),
            report: ServiceReport {
                version: "1".to_owned(),
                counts: BTreeMap::new(),
                facts: serde_json::Value::Null,
                warnings: Vec::new(),
            },
        };
        sealed.push((archive.seal().unwrap(), notes));
    }
    session.commit(sealed, BackupNotes::default()).unwrap()
}

fn own() -> EntryMeta {
    EntryMeta {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        ..EntryMeta::default()
    }
}

pub fn breaks_at(fuse: u64) -> World {
    World {
        fuse: AtomicU64::new(fuse),
        ..World::default()
    }
}

/// What the stack's data is after a restore.
pub fn restored(place: &Place) -> Tree {
    let mut expected = Tree::new();
    expected.insert(String::new(), Vec::new());
    for (kind, name) in SERVICES {
        expected.insert(name.to_owned(), Vec::new());
        let mut add = |path: &str, content: &str| {
            expected.insert(format!("{name}/{path}"), content.as_bytes().to_vec());
        };
        add("data", &name.repeat(20_000));
        add("from the archive", "x");
        add("global", "");
        add("global/pg_control", &format!("control {name}"));
        if kind != ServiceKind::Qdrant {
            add("prepared", "");
        }
    }
    assert_eq!(place.manifest.archives.len(), SERVICES.len());
    expected
}
