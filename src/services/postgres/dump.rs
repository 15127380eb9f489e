//! PostgreSQL as dumps: `pg_dump` of each database and `pg_dumpall --globals-only`, by the server's own tools.
//!
//! For servers whose files cannot be copied (`wal_level = minimal`), for restores into another major version,
//! and to get one table out without a server to put the files under.
//!
//! # The backup
//!
//! ```text
//! hold: a session, the tools found, the tools' sessions journalled
//! freeze: a snapshot of each database, exported, one after the other within milliseconds  ── the instant
//! drain: roles; then each database by `pg_dump --snapshot`, streamed into the archive and proven ([`stream`])
//! release: the snapshots go, sessions of tools that are left are ended
//! ```
//!
//! Invariant: a dump is in the manifest only when `pg_dump` ended well and `pg_restore` read every byte of it.
//! The snapshots hold the instant for as long as dumping takes, and with it the server's old row versions; of
//! the data nothing is staged.
//!
//! # The restore ([`restore`])
//!
//! Into a running server of the same or a later major version: missing roles first ([`globals`]), then each
//! database into one of a name of its own, and when all are whole, all into their places in one transaction
//! (`databases`).

mod both;
pub mod facts;
pub mod globals;
pub mod load;
mod restore;
pub mod stream;

use std::collections::BTreeMap;

use async_trait::async_trait;
use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::access::Access;
use super::server::{self, SUPPORTED};
use super::session::Session;
use super::tools::{Call, Tools};
use super::{databases, locate};
use crate::archive::{ArchiveWriter, EntryMeta};
use crate::config::{Config, PostgresMode};
use crate::services::support::{archive_failed, hex};
use crate::services::{
    Check, ErrorKind, PointInTime, RunContext, Service, ServiceError, ServiceKind, ServiceReport,
};
use crate::stack::StackService;
use crate::stack::journal::{EntryId, Obligation};
use facts::{Described, DumpFacts, Dumped, Globals};

pub use both::PostgresBoth;
pub use restore::PostgresDumpRestore;

/// Whether an archive's dumps are what is restored: where it has nothing else, or where they are asked for.
pub fn restores_dumps(config: &Config, report: &ServiceReport) -> bool {
    let has_dumps = report.facts.get(facts::KEY).is_some();
    facts::is_only_dumps(report) || (has_dumps && config.postgres.mode == PostgresMode::Dump)
}

/// One PostgreSQL server, through a backup by dumps.
pub struct PostgresDump {
    config: Config,
    access: Access,
    /// Where the dumps go in the archive.
    directory: &'static str,
    held: Option<Held>,
}

/// What lives from `hold` to `release`.
struct Held {
    run: RunContext,
    session: Session,
    server: Server,
    tools: Tools,
    /// The obligation to end what the tools leave.
    entry: EntryId,
    at: Timestamp,
    snapshots: Vec<Snapshot>,
}

/// A database at the backup's instant, for as long as the session lives.
struct Snapshot {
    database: Described,
    session: Session,
    id: String,
}

/// What a dump needs to know of a server: less than a physical backup, and no right to its settings.
#[derive(Debug, Clone)]
pub struct Server {
    pub version: String,
    pub major: u32,
    pub is_superuser: bool,
}

impl Server {
    pub async fn ask(session: &Session, access: &Access) -> Result<Self, ServiceError> {
        let (version, number, is_superuser) = session
            .run("ask the server for its version", |client| {
                server::settle_session(client)?;
                let query = "SELECT rolsuper FROM pg_roles WHERE rolname = current_user";
                Ok((
                    server::setting(client, "server_version")?,
                    server::setting(client, "server_version_num")?,
                    client.query_one(query, &[])?.get(0),
                ))
            })
            .await?;
        let number: u32 = number.parse().map_err(|_| {
            let message = format!("the server says that its version is \"{number}\"");
            access.error(ErrorKind::Damaged, message)
        })?;
        let major = number / 10_000;
        if !SUPPORTED.contains(&major) {
            return Err(access.error(ErrorKind::Setup, locate::unknown_version(&version)));
        }
        Ok(Self {
            version,
            major,
            is_superuser,
        })
    }
}

impl PostgresDump {
    pub fn new(config: &Config, stack: &StackService) -> Result<Self, ServiceError> {
        let access = Access::new(config, stack);
        access.attempts()?;
        Ok(Self {
            config: config.clone(),
            access,
            directory: facts::DIRECTORY,
            held: None,
        })
    }

    /// For an archive that holds a data directory as well.
    fn beside_files(config: &Config, stack: &StackService) -> Result<Self, ServiceError> {
        Ok(Self {
            directory: facts::BESIDE,
            ..Self::new(config, stack)?
        })
    }

    fn held(&mut self) -> Result<&mut Held, ServiceError> {
        let not_begun = self
            .access
            .error(ErrorKind::Setup, "the backup was not begun");
        self.held.as_mut().ok_or(not_begun)
    }

    /// Dumps all databases at their snapshots, each session given up as soon as its dump is there.
    async fn dump_all(&mut self, archive: &mut ArchiveWriter) -> Result<DumpFacts, ServiceError> {
        let (service, directory) = (self.access.service.clone(), self.directory);
        let held = self.held()?;
        let meta = EntryMeta {
            mode: 0o600,
            mtime_secs: held.at.as_second(),
            ..EntryMeta::default()
        };
        let globals = held
            .dump_globals(&service, archive, (directory, &meta))
            .await?;
        let mut facts = DumpFacts::new(held.server.version.clone(), held.server.major, globals);
        for snapshot in std::mem::take(&mut held.snapshots) {
            let name = snapshot.database.name.clone();
            let call = stream::dump_call(&name, Some(&snapshot.id));
            let member = facts::member(directory, &name);
            let written =
                stream::dump(&held.tools, &call, &service, (&member, &meta), archive).await?;
            let census = snapshot
                .session
                .run("count the tables", server::census)
                .await?;
            snapshot.session.close().await;
            facts.databases.push(Dumped {
                database: snapshot.database,
                member,
                parts: written.parts,
                bytes: written.bytes,
                sha256: written.sha256,
                tables: census.tables,
            });
        }
        Ok(facts)
    }

    /// What the archive's dumps are, beside what else it may hold.
    fn report(&self, facts: &DumpFacts) -> Result<ServiceReport, ServiceError> {
        let mut warnings = Vec::new();
        if !facts.globals.passwords {
            warnings.push(format!(
                "the role \"{}\" is no superuser, so the passwords of the roles are not in this backup",
                self.access.user
            ));
        }
        let document = serde_json::to_value(facts).map_err(|err| {
            self.access
                .error(ErrorKind::Io, format!("cannot write the report: {err}"))
        })?;
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        Ok(ServiceReport {
            version: facts.version.clone(),
            counts: BTreeMap::from([
                ("databases".to_owned(), count(facts.databases.len())),
                (
                    "tables".to_owned(),
                    facts.databases.iter().map(|d| d.tables).sum(),
                ),
            ]),
            facts: serde_json::json!({ facts::KEY: document }),
            warnings,
        })
    }
}

impl Held {
    async fn dump_globals(
        &self,
        service: &str,
        archive: &mut ArchiveWriter,
        (directory, meta): (&str, &EntryMeta),
    ) -> Result<Globals, ServiceError> {
        let passwords = self.server.is_superuser;
        let mut call = Call::new("pg_dumpall", "dump the roles").args([
            "--globals-only",
            "--no-password",
            "--encoding=UTF8",
        ]);
        if !passwords {
            call = call.arg("--no-role-passwords");
        }
        let mut sql = Vec::new();
        self.tools.run(&call, None, &mut sql).await?;
        // The tool ends its script with this line: without it the script is not whole.
        if !String::from_utf8_lossy(&sql).contains("PostgreSQL database cluster dump complete") {
            return Err(ServiceError::new(
                service,
                ErrorKind::Damaged,
                "the dump of the roles was cut short: back up again",
            ));
        }
        let member = format!("{directory}/globals.sql");
        tokio::task::block_in_place(|| {
            let closed = EntryMeta {
                mode: 0o700,
                ..meta.clone()
            };
            archive.directory(directory, &closed)?;
            archive.bytes(&member, meta, &sql)
        })
        .map_err(|err| archive_failed(service, err))?;
        Ok(Globals {
            member,
            bytes: sql.len() as u64,
            sha256: hex(&Sha256::digest(&sql)),
            passwords,
        })
    }
}

#[async_trait]
impl Service for PostgresDump {
    fn kind(&self) -> ServiceKind {
        ServiceKind::Postgres
    }

    fn name(&self) -> &str {
        &self.access.service
    }

    async fn check(&self) -> Vec<Check> {
        let line = |what: &str| format!("{}: {what}", self.access.service);
        let session = match Session::open(&self.access).await {
            Ok(session) => session,
            Err(err) => return vec![Check::bad(line("connection"), err.message)],
        };
        let asked = Server::ask(&session, &self.access).await;
        session.close().await;
        let server = match asked {
            Ok(server) => server,
            Err(err) => return vec![Check::bad(line("server"), err.message)],
        };
        let connected = format!(
            "PostgreSQL {} as user \"{}\"",
            server.version, self.access.user
        );
        let mut checks = vec![Check::good(line("connection"), connected)];
        let mut version = Vec::new();
        let tried = async {
            let tools = Tools::of(&self.config, &self.access, server.major, "doctor").await?;
            let call = Call::new("pg_dump", "find pg_dump").arg("--version");
            tools.run(&call, None, &mut version).await
        };
        checks.push(match tried.await {
            Ok(()) => Check::good(
                line("tools"),
                String::from_utf8_lossy(&version).trim().to_owned(),
            ),
            Err(err) => Check::bad(line("tools"), err.message),
        });
        if !server.is_superuser {
            checks.push(Check::caution(
                line("rights"),
                format!(
                    "the role \"{}\" is no superuser: passwords of roles are not backed up, and tables that it may not read fail the backup",
                    self.access.user
                ),
            ));
        }
        checks
    }

    async fn estimate(&self) -> u64 {
        let asked = async {
            let session = Session::open(&self.access).await?;
            let bytes = session
                .run("ask for the databases' sizes", |client| {
                    let query = "SELECT coalesce(sum(pg_database_size(oid)), 0)::bigint FROM pg_database \
                                 WHERE datallowconn AND NOT datistemplate";
                    Ok(client.query_one(query, &[])?.get::<_, i64>(0))
                })
                .await;
            session.close().await;
            bytes
        };
        match asked.await {
            Ok(bytes) => u64::try_from(bytes).unwrap_or(0),
            Err(err) => {
                tracing::debug!(%err, "the size of the databases is not known");
                0
            }
        }
    }

    async fn hold(&mut self, run: &RunContext) -> Result<(), ServiceError> {
        let session = Session::open(&self.access).await?;
        let server = Server::ask(&session, &self.access).await?;
        let tools = Tools::of(&self.config, &self.access, server.major, &run.run_id).await?;
        let obligation = Obligation::PostgresSessions {
            service: self.access.service.clone(),
            application: tools.application.clone(),
        };
        let entry = tokio::task::block_in_place(|| run.journal.record(&run.run_id, &obligation))
            .map_err(|err| self.access.error(ErrorKind::Io, err.to_string()))?;
        self.held = Some(Held {
            run: run.clone(),
            session,
            server,
            tools,
            entry,
            at: Timestamp::now(),
            snapshots: Vec::new(),
        });
        Ok(())
    }

    async fn copy(&mut self, _archive: &mut ArchiveWriter) -> Result<(), ServiceError> {
        Ok(())
    }

    async fn freeze(&mut self) -> Result<PointInTime, ServiceError> {
        let access = self.access.clone();
        let held = self.held()?;
        let json = held
            .session
            .run("list the databases", |client| {
                let query = facts::describing(facts::DUMPED);
                Ok(client.query_one(&query, &[])?.get::<_, String>(0))
            })
            .await?;
        let described =
            facts::parse_described(&json).map_err(|why| access.error(ErrorKind::Damaged, why))?;
        for database in described {
            let session = Session::open_at(&access, access.attempts_at(&database.name)).await?;
            let doing = format!("take a snapshot of \"{}\"", database.name);
            let id = session
                .run(&doing, |client| {
                    server::settle_session(client)?;
                    client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")?;
                    let query = "SELECT pg_catalog.pg_export_snapshot()";
                    Ok(client.query_one(query, &[])?.get::<_, String>(0))
                })
                .await?;
            held.snapshots.push(Snapshot {
                database,
                session,
                id,
            });
        }
        held.at = Timestamp::now();
        Ok(PointInTime::at(held.at))
    }

    async fn drain(&mut self, archive: &mut ArchiveWriter) -> Result<ServiceReport, ServiceError> {
        let facts = self.dump_all(archive).await?;
        self.report(&facts)
    }

    async fn release(&mut self) -> Result<(), ServiceError> {
        let Some(held) = self.held.take() else {
            return Ok(());
        };
        for snapshot in held.snapshots {
            snapshot.session.close().await;
        }
        held.session.close().await;
        // On a session of its own: the one of before may be what failed.
        let session = Session::open(&self.access).await?;
        let ended = databases::end_tools(&session, &held.tools.application).await;
        session.close().await;
        ended?;
        tokio::task::block_in_place(|| held.run.journal.done(&held.entry))
            .map_err(|err| self.access.error(ErrorKind::Io, err.to_string()))
    }
}
