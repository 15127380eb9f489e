//! The place that a throwaway server's data is unpacked in, and how the server comes up on it.

use std::os::unix::fs::{DirBuilderExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Connection, EntryId, PREFIX, Place, Server, Throwaway, Tools, settings};
use crate::config::Config;
use crate::services::postgres::access::Access;
use crate::services::postgres::facts::Facts;
use crate::services::postgres::label::{Tablespace, render_map};
use crate::services::postgres::recovery::{self, AUTO_CONF};
use crate::services::postgres::{restore, tools};
use crate::services::{ErrorKind, RunContext, ServiceError};
use crate::stack::engine::{Engine, Spare};
use crate::stack::journal::Obligation;
use crate::stack::{ContainerRef, discover};

pub(super) const DATA: &str = "data";
const TABLESPACES: &str = "tablespaces";
const SOCKETS: &str = "s";
const HBA: &str = "hba.conf";
const LOG: &str = "log";
/// Where a container sees the place.
const IN_CONTAINER: &str = "/lifeboat-throwaway";
/// Kept free beyond the data: replaying the WAL makes it grow.
const SPACE_MARGIN_BYTES: u64 = 256 << 20;
/// A socket's whole path, with the name the server gives it (`UNIXSOCK_PATH_BUFLEN`).
const MAX_SOCKET_DIRECTORY: usize = 107 - "/.s.PGSQL.5432".len();

/// A journalled directory for one server, with room for its data.
pub struct Ground {
    config: Config,
    service: String,
    run: RunContext,
    user: String,
    directory: PathBuf,
    place: Where,
    entry: EntryId,
}

// One of them at a time.
#[allow(clippy::large_enum_variant)]
enum Where {
    Container {
        engine: Engine,
        /// The live server's image, as the engine runs it.
        image: String,
        name: String,
        host_path: PathBuf,
    },
    Local,
}

impl Ground {
    /// Chooses a place with room for `bytes`, writes it down, and makes it.
    ///
    /// It must lie where the server can have it: on a mount of this container, or, for a process, where its
    /// user gets to. The state directory and the live data directory are tried, in the order that fits.
    pub async fn prepare(
        config: &Config,
        access: &Access,
        run: &RunContext,
        bytes: u64,
    ) -> Result<Self, ServiceError> {
        let setup = |why: String| access.error(ErrorKind::Setup, why);
        let engine = match &access.stack().container {
            Some(container) if config.postgres.bin.is_none() => Engine::from_config(config)
                .await
                .map_err(|err| setup(err.to_string()))?
                .map(|engine| (engine, container)),
            _ => None,
        };
        let name = format!("{PREFIX}{}", run.run_id);
        let in_state = config.state.join(&name);
        let in_data = restore::data_root(access).map(|root| root.join(&name));
        let candidates: Vec<PathBuf> = if engine.is_some() {
            std::iter::once(in_state).chain(in_data).collect()
        } else {
            in_data.into_iter().chain([in_state]).collect()
        };
        let mut reasons = Vec::new();
        for directory in candidates {
            if let Err(why) = has_room(&directory, bytes) {
                reasons.push(why);
                continue;
            }
            let place = match &engine {
                Some((engine, container)) => in_container(engine, container, &directory, run).await,
                None => fits_socket(&directory).map(|()| Where::Local),
            };
            match place {
                Ok(place) => return Self::make(config, access, run, directory, place),
                Err(why) => reasons.push(why),
            }
        }
        Err(setup(format!(
            "there is no place for a temporary server on the backup's data: {}",
            reasons.join("; ")
        )))
    }

    fn make(
        config: &Config,
        access: &Access,
        run: &RunContext,
        directory: PathBuf,
        place: Where,
    ) -> Result<Self, ServiceError> {
        let container = match &place {
            Where::Container { name, .. } => Some(name.clone()),
            Where::Local => None,
        };
        let obligation = Obligation::PostgresThrowaway {
            directory: directory.clone(),
            container,
        };
        let made = tokio::task::block_in_place(|| {
            let entry = run.journal.record(&run.run_id, &obligation)?;
            std::fs::DirBuilder::new().mode(0o700).create(&directory)?;
            std::fs::DirBuilder::new()
                .mode(0o700)
                .create(directory.join(DATA))?;
            Ok::<_, std::io::Error>(entry)
        });
        let entry = made.map_err(|err| {
            access.error(
                ErrorKind::Io,
                format!("cannot make {}: {err}", directory.display()),
            )
        })?;
        Ok(Self {
            config: config.clone(),
            service: access.service.clone(),
            run: run.clone(),
            user: access.user.clone(),
            directory,
            place,
            entry,
        })
    }

    /// Where the data is to be unpacked: an empty directory.
    pub fn data(&self) -> PathBuf {
        self.directory.join(DATA)
    }

    pub(super) fn log(&self) -> PathBuf {
        self.directory.join(LOG)
    }

    pub(super) fn error(&self, kind: ErrorKind, message: impl Into<String>) -> ServiceError {
        ServiceError::new(&self.service, kind, message)
    }

    /// This process's directory as the server sees it.
    fn view(&self) -> PathBuf {
        match &self.place {
            Where::Container { .. } => PathBuf::from(IN_CONTAINER),
            Where::Local => self.directory.clone(),
        }
    }

    /// Gathers unpacked tablespaces in the place, instead of where they are of old. Blocks.
    pub fn gather_tablespaces(&self, facts: &Facts, owner: (u32, u32)) -> std::io::Result<()> {
        if facts.tablespaces.is_empty() {
            return Ok(());
        }
        let gathered = self.directory.join(TABLESPACES);
        make_owned(&gathered, owner)?;
        let mut map = Vec::new();
        for tablespace in &facts.tablespaces {
            let oid = tablespace.oid.to_string();
            let link = self.data().join("pg_tblspc").join(&oid);
            if !link.symlink_metadata().is_ok_and(|found| found.is_dir()) {
                continue;
            }
            std::fs::rename(&link, gathered.join(&oid))?;
            let location = self.view().join(TABLESPACES).join(&oid);
            symlink(&location, &link)?;
            lchown(&link, Some(owner.0), Some(owner.1))?;
            map.push(Tablespace {
                oid: tablespace.oid,
                location,
            });
        }
        let file = self.data().join("tablespace_map");
        if file.exists() {
            recovery::replace_content(&file, &render_map(&map))?;
        }
        Ok(())
    }

    /// Brings a server up on the prepared data and waits until recovery is over.
    ///
    /// `auto_conf` becomes the whole of `postgresql.auto.conf`: the settings of recovery, such as
    /// [`recovery::with_settings`] makes. With it goes `recovery.signal`; without it the server starts as
    /// after a crash. When this fails, the place is removed.
    pub async fn start(
        self,
        auto_conf: Option<&str>,
        owner: (u32, u32),
        major: u32,
    ) -> Result<Throwaway, ServiceError> {
        let written = tokio::task::block_in_place(|| self.write_files(auto_conf, owner));
        let launched = match written {
            Ok(()) => self.launch(owner, major).await,
            Err(err) => {
                let message = format!("cannot prepare the temporary server's files: {err}");
                Err(self.error(ErrorKind::Io, message))
            }
        };
        let (server, place) = match launched {
            Ok(launched) => launched,
            Err(err) => {
                self.remove_after(&err).await;
                return Err(err);
            }
        };
        let connection = Connection {
            host: self.view().join(SOCKETS).display().to_string(),
            port: 5432,
            user: self.user.clone(),
            password: None,
        };
        let tools = Tools::at(&self.service, place, connection, &self.run.run_id);
        let within = self.config.restore_timeout;
        let mut throwaway = Throwaway {
            ground: self,
            server,
            tools,
        };
        match throwaway.recovered(within).await {
            Ok(()) => Ok(throwaway),
            Err(err) => {
                throwaway.end().await;
                throwaway.ground.remove_after(&err).await;
                Err(err)
            }
        }
    }

    /// Removes the place after something failed; what fails as well is left to the journal.
    pub async fn remove_after(self, why: &ServiceError) {
        if let Err(also) = self.remove().await {
            tracing::warn!("after \"{why}\": {also}; the next start tries again");
        }
    }

    fn write_files(&self, auto_conf: Option<&str>, owner: (u32, u32)) -> std::io::Result<()> {
        let data = self.data();
        if let Some(text) = auto_conf {
            recovery::write_file(&data.join(AUTO_CONF), text, 0o600, owner)?;
            recovery::write_file(&data.join("recovery.signal"), "", 0o600, owner)?;
        }
        // Where a distribution keeps it elsewhere, there is none in the data directory.
        let main = data.join("postgresql.conf");
        if !main.exists() {
            recovery::write_file(&main, "", 0o600, owner)?;
        }
        let hba = self.directory.join(HBA);
        recovery::write_file(&hba, "local all all trust\n", 0o600, owner)?;
        make_owned(&self.directory.join(SOCKETS), owner)?;
        chown_unless_ours(&data, owner)?;
        chown_unless_ours(&self.directory, owner)
    }

    async fn launch(&self, owner: (u32, u32), major: u32) -> Result<(Server, Place), ServiceError> {
        let view = self.view();
        let mut arguments = vec!["-D".to_owned(), view.join(DATA).display().to_string()];
        arguments.extend(settings(&view.join(SOCKETS), &view.join(HBA)));
        match &self.place {
            Where::Container {
                engine,
                image,
                name,
                host_path,
            } => {
                let spare = Spare {
                    name: name.clone(),
                    image: image.clone(),
                    entrypoint: vec!["postgres".to_owned()],
                    command: arguments,
                    owner,
                    mount: (host_path.clone(), view),
                };
                let failed = |err: crate::stack::engine::EngineError| {
                    self.error(ErrorKind::Setup, err.to_string())
                };
                engine.create_spare(&spare).await.map_err(failed)?;
                engine.start(name).await.map_err(failed)?;
                let server = Server::Container {
                    engine: engine.clone(),
                    name: name.clone(),
                };
                let place = Place::Container {
                    engine: engine.clone(),
                    id: name.clone(),
                };
                Ok((server, place))
            }
            Where::Local => self.launch_here(&arguments, owner, major),
        }
    }

    fn launch_here(
        &self,
        arguments: &[String],
        owner: (u32, u32),
        major: u32,
    ) -> Result<(Server, Place), ServiceError> {
        let setup = |why: String| self.error(ErrorKind::Setup, why);
        let bin = tools::find(&self.config, "postgres", major).map_err(setup)?;
        let clients = tools::find(&self.config, "psql", major)
            .or_else(|_| tools::find_anywhere("psql", major))
            .map_err(setup)?;
        let launched = || {
            let log = std::fs::File::create(self.log())?;
            let mut command = tokio::process::Command::new(bin.join("postgres"));
            command
                .args(arguments)
                .stdin(std::process::Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .kill_on_drop(true);
            if rustix::process::geteuid().is_root() {
                command.uid(owner.0).gid(owner.1);
            }
            command.spawn()
        };
        let child = launched().map_err(|err| {
            let message = format!("cannot start {}: {err}", bin.join("postgres").display());
            self.error(ErrorKind::Setup, message)
        })?;
        Ok((Server::Child(child), Place::Local { bin: clients }))
    }

    /// Removes what runs here, the directory, and the obligation.
    pub async fn remove(self) -> Result<(), ServiceError> {
        let (engine, container) = match &self.place {
            Where::Container { engine, name, .. } => (Some(engine), Some(name.as_str())),
            Where::Local => (None, None),
        };
        super::remove(engine, &self.directory, container)
            .await
            .map_err(|why| {
                let message = format!("cannot remove the temporary server: {why}");
                self.error(ErrorKind::Io, message)
            })?;
        let journal = Arc::clone(&self.run.journal);
        tokio::task::block_in_place(|| journal.done(&self.entry))
            .map_err(|err| self.error(ErrorKind::Io, err.to_string()))
    }
}

async fn in_container(
    engine: &Engine,
    container: &ContainerRef,
    directory: &Path,
    run: &RunContext,
) -> Result<Where, String> {
    let own = discover::own_container(engine)
        .await
        .map_err(|err| err.to_string())?;
    let host_path = engine
        .host_path(own.as_deref(), directory)
        .await
        .map_err(|err| err.to_string())?
        .ok_or_else(|| {
            format!(
                "{} is on no mount of this container, so no other can have it: mount a volume there",
                directory.display()
            )
        })?;
    let live = engine
        .inspect(&container.id)
        .await
        .map_err(|err| err.to_string())?;
    Ok(Where::Container {
        engine: engine.clone(),
        // The tag may stand for another image by now.
        image: live.image.unwrap_or_else(|| container.image.clone()),
        name: format!("lifeboat-throwaway-{}", run.run_id),
        host_path,
    })
}

fn has_room(directory: &Path, bytes: u64) -> Result<(), String> {
    let parent = directory.parent().unwrap_or(directory);
    let failed = |err: &dyn std::fmt::Display| format!("{}: {err}", parent.display());
    rustix::fs::access(parent, rustix::fs::Access::WRITE_OK).map_err(|err| failed(&err))?;
    let found = rustix::fs::statvfs(parent).map_err(|err| failed(&err))?;
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    let needed = bytes.saturating_add(SPACE_MARGIN_BYTES);
    if free >= needed {
        return Ok(());
    }
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    Err(format!(
        "{} has {} MiB free, {} MiB are needed",
        parent.display(),
        mib(free),
        mib(needed)
    ))
}

fn fits_socket(directory: &Path) -> Result<(), String> {
    let length = directory.join(SOCKETS).as_os_str().len();
    if length <= MAX_SOCKET_DIRECTORY {
        return Ok(());
    }
    Err(format!(
        "the path {} is too long for a socket in it",
        directory.display()
    ))
}

fn make_owned(directory: &Path, owner: (u32, u32)) -> std::io::Result<()> {
    std::fs::DirBuilder::new().mode(0o700).create(directory)?;
    chown_unless_ours(directory, owner)
}

fn chown_unless_ours(path: &Path, owner: (u32, u32)) -> std::io::Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    let now = std::fs::metadata(path)?;
    if (now.uid(), now.gid()) == owner {
        return Ok(());
    }
    chown(path, Some(owner.0), Some(owner.1))
}
