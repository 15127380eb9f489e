//! Brings dumps into a running server, of the same major version or a later one.
//!
//! ```text
//! roles ─▶ each database into lifeboat_new_… ─▶ all whole ─▶ switch by name ─▶ commit ─▶ drop the old ones
//!            └────────── rollback: names back, new databases and roles dropped ──────────┘
//! ```
//!
//! Until the switch nobody's data is touched. Everything that is made is journalled before. Databases that the
//! backup has not stay.

use std::time::{Duration, Instant};

use async_trait::async_trait;

use super::facts::{DumpFacts, Dumped};
use super::globals::{self, Present};
use super::load::Dumps;
use super::{Server, Session};
use crate::config::Config;
use crate::repository::manifest::ArchiveRecord;
use crate::repository::reader::ArchiveReader;
use crate::restore::{Restore, Way};
use crate::services::postgres::access::Access;
use crate::services::postgres::tools::Tools;
use crate::services::postgres::{databases, server};
use crate::services::{Check, ErrorKind, RunContext, ServiceError};
use crate::stack::StackService;
use crate::stack::journal::{EntryId, Obligation, PostgresSwitch};

const POLL: Duration = Duration::from_millis(300);

/// One PostgreSQL server, through the restore of its dumps.
pub struct PostgresDumpRestore {
    config: Config,
    access: Access,
    keep_old: bool,
    run: Option<RunContext>,
    made: Made,
}

/// What a rollback takes back, with the obligations to do so.
#[derive(Default)]
struct Made {
    sessions: Option<(String, EntryId)>,
    globals: Option<(Vec<String>, Vec<String>, EntryId)>,
    databases: Vec<(String, EntryId)>,
    switched: Option<(Vec<PostgresSwitch>, EntryId)>,
}

impl PostgresDumpRestore {
    pub fn new(
        config: &Config,
        stack: &StackService,
        keep_old: bool,
    ) -> Result<Self, ServiceError> {
        let access = Access::new(config, stack);
        access.attempts()?;
        Ok(Self {
            config: config.clone(),
            access,
            keep_old,
            run: None,
            made: Made::default(),
        })
    }

    fn facts(&self, record: &ArchiveRecord) -> Result<DumpFacts, ServiceError> {
        let facts = DumpFacts::of(&record.report)
            .map_err(|why| self.access.error(ErrorKind::Damaged, why))?;
        facts.ok_or_else(|| {
            self.access
                .error(ErrorKind::Setup, "the backup has no dumps of it")
        })
    }

    fn journal(&self, obligation: &Obligation) -> Result<EntryId, ServiceError> {
        let run = self.run()?;
        tokio::task::block_in_place(|| run.journal.record(&run.run_id, obligation))
            .map_err(|err| self.access.error(ErrorKind::Io, err.to_string()))
    }

    fn strike(&self, entry: &EntryId) -> Result<(), ServiceError> {
        let run = self.run()?;
        tokio::task::block_in_place(|| run.journal.done(entry))
            .map_err(|err| self.access.error(ErrorKind::Io, err.to_string()))
    }

    fn run(&self) -> Result<&RunContext, ServiceError> {
        let not_begun = || {
            self.access
                .error(ErrorKind::Setup, "its restore was not begun")
        };
        self.run.as_ref().ok_or_else(not_begun)
    }

    /// A session, once the server is up: it may have been started a moment ago.
    async fn control(&self) -> Result<Session, ServiceError> {
        let deadline = Instant::now() + self.config.restore_timeout;
        loop {
            match databases::control(&self.access).await {
                Err(err) if err.is_transient() && Instant::now() < deadline => {
                    tokio::time::sleep(POLL).await;
                }
                other => return other,
            }
        }
    }

    /// Makes the roles and tablespaces that are missing; whether all tablespaces of the backup are there.
    async fn restore_globals(&mut self, session: &Session, sql: &str) -> Result<(), ServiceError> {
        let present = Present::of(session).await?;
        let plan = globals::plan(sql, &present);
        let (roles, tablespaces) = (plan.roles.clone(), plan.tablespaces.clone());
        let entry = self.journal(&Obligation::PostgresGlobals {
            service: self.access.service.clone(),
            roles: roles.clone(),
            tablespaces: tablespaces.clone(),
        })?;
        self.made.globals = Some((roles, tablespaces, entry));
        for refused in plan.run(session).await? {
            tracing::warn!(service = %self.access.service, "{refused}");
        }
        Ok(())
    }

    /// Loads one database beside the live ones; what it is called there.
    async fn restore_database<R: tokio::io::AsyncRead + Unpin + Send>(
        &mut self,
        session: &Session,
        tools: &Tools,
        dumps: &mut Dumps<R>,
        dumped: &Dumped,
        arguments: &[&str],
    ) -> Result<String, ServiceError> {
        let name = databases::new_name(&self.run()?.run_id, self.made.databases.len());
        let entry = self.journal(&Obligation::PostgresDatabase {
            service: self.access.service.clone(),
            database: name.clone(),
        })?;
        self.made.databases.push((name.clone(), entry));
        databases::create(session, &name, &dumped.database).await?;
        dumps.load(dumped, tools, &name, arguments).await?;
        let tables = count_tables(&self.access, &name).await?;
        if tables != dumped.tables {
            return Err(self.access.error(
                ErrorKind::Damaged,
                format!(
                    "the restored database \"{}\" has {tables} tables instead of {}; no live database was changed",
                    dumped.database.name, dumped.tables
                ),
            ));
        }
        for refused in databases::describe(session, &name, &dumped.database).await? {
            tracing::warn!(service = %self.access.service, "{refused}");
        }
        Ok(name)
    }

    async fn switch(
        &mut self,
        session: &Session,
        made: Vec<(String, String)>,
    ) -> Result<(), ServiceError> {
        let run_id = self.run()?.run_id.clone();
        let mut switches = Vec::new();
        for (number, (live, new)) in made.into_iter().enumerate() {
            let is_live = databases::exists(session, &live).await?;
            let old = is_live.then(|| databases::old_name(&run_id, number, &live));
            switches.push(PostgresSwitch { live, new, old });
        }
        let entry = self.journal(&Obligation::PostgresSwitched {
            service: self.access.service.clone(),
            databases: switches.clone(),
            keep_old: self.keep_old,
        })?;
        self.made.switched = Some((switches.clone(), entry));
        databases::switch(session, &switches).await
    }

    async fn restore_all(
        &mut self,
        session: &Session,
        archive: ArchiveReader,
        facts: &DumpFacts,
        tools: &Tools,
    ) -> Result<(), ServiceError> {
        let service = self.access.service.clone();
        let mut dumps = Dumps::new(&service, archive.into_async())?;
        let sql = dumps.globals(&facts.globals).await?;
        self.restore_globals(session, &sql).await?;
        let present = Present::of(session).await?;
        let missing = globals::plan(&sql, &present).tablespaces;
        let mut arguments: Vec<&str> = Vec::new();
        if !missing.is_empty() {
            tracing::warn!(
                %service,
                "the server has no tablespaces {}: what was in them goes where the databases are",
                missing.join(", ")
            );
            arguments.push("--no-tablespaces");
        }
        let mut made = Vec::new();
        for dumped in &facts.databases {
            let new = self
                .restore_database(session, tools, &mut dumps, dumped, &arguments)
                .await?;
            made.push((dumped.database.name.clone(), new));
        }
        self.switch(session, made).await
    }

    async fn drop_old(&mut self, session: &Session) -> Result<(), ServiceError> {
        let Some((switches, entry)) = self.made.switched.take() else {
            return Ok(());
        };
        databases::discard_old(session, &switches, self.keep_old).await?;
        self.strike(&entry)
    }
}

async fn count_tables(access: &Access, database: &str) -> Result<u64, ServiceError> {
    let session = Session::open_at(access, access.attempts_at(database)).await?;
    let counted = session.run("count the tables", server::census).await;
    session.close().await;
    Ok(counted?.tables)
}

/// A server takes what older ones dumped, and not what later ones did.
fn fits(backed_up: u32, live: u32) -> Result<(), String> {
    if live >= backed_up {
        return Ok(());
    }
    Err(format!(
        "the dumps are of PostgreSQL {backed_up}, the server is PostgreSQL {live}: a server takes the dumps of its own major version and of earlier ones; use the image of PostgreSQL {backed_up} or later"
    ))
}

#[async_trait]
impl Restore for PostgresDumpRestore {
    fn name(&self) -> &str {
        &self.access.service
    }

    fn way(&self) -> Way {
        Way::Online
    }

    async fn preflight(&mut self, record: &ArchiveRecord) -> Vec<Check> {
        let name = self.access.service.clone();
        let subject = |what: &str| format!("{name}: {what}");
        let facts = match self.facts(record) {
            Ok(facts) => facts,
            Err(err) => return vec![Check::bad(subject("dumps"), err.message)],
        };
        let looked = async {
            let session = databases::control(&self.access).await?;
            let server = Server::ask(&session, &self.access).await;
            let mut replaced = 0;
            for dumped in &facts.databases {
                replaced += u32::from(databases::exists(&session, &dumped.database.name).await?);
            }
            session.close().await;
            Ok::<_, ServiceError>((server?, replaced))
        };
        let (server, replaced) = match looked.await {
            Ok(found) => found,
            Err(err) => return vec![Check::bad(subject("connection"), err.message)],
        };
        let bytes: u64 = facts.databases.iter().map(|d| d.bytes).sum();
        let mut checks = vec![
            Check::good(
                subject("dumps"),
                format!(
                    "{} databases of PostgreSQL {}, {replaced} of them are replaced; the server needs room for both meanwhile ({} MiB of dumps)",
                    facts.databases.len(),
                    facts.version,
                    bytes.div_ceil(1 << 20)
                ),
            ),
            match fits(facts.major, server.major) {
                Ok(()) => Check::good(
                    subject("version"),
                    format!("into PostgreSQL {}", server.version),
                ),
                Err(why) => Check::bad(subject("version"), why),
            },
        ];
        checks.push(if server.is_superuser {
            Check::good(subject("rights"), "a superuser")
        } else {
            Check::caution(
                subject("rights"),
                format!(
                    "the role \"{}\" is no superuser: roles, owners and extensions may be refused, and then nothing is changed",
                    self.access.user
                ),
            )
        });
        let tools = Tools::of(&self.config, &self.access, server.major, "doctor").await;
        checks.push(match tools {
            Ok(_) => Check::good(subject("tools"), "found"),
            Err(err) => Check::bad(subject("tools"), err.message),
        });
        checks
    }

    async fn apply(
        &mut self,
        archive: ArchiveReader,
        record: &ArchiveRecord,
        run: &RunContext,
    ) -> Result<(), ServiceError> {
        let facts = self.facts(record)?;
        self.run = Some(run.clone());
        let session = self.control().await?;
        let server = Server::ask(&session, &self.access).await?;
        fits(facts.major, server.major).map_err(|why| self.access.error(ErrorKind::Setup, why))?;
        let tools = Tools::of(&self.config, &self.access, server.major, &run.run_id).await?;
        let entry = self.journal(&Obligation::PostgresSessions {
            service: self.access.service.clone(),
            application: tools.application.clone(),
        })?;
        self.made.sessions = Some((tools.application.clone(), entry));
        let restored = self.restore_all(&session, archive, &facts, &tools).await;
        session.close().await;
        restored
    }

    async fn settle(
        &mut self,
        record: &ArchiveRecord,
        _run: &RunContext,
    ) -> Result<(), ServiceError> {
        for dumped in &self.facts(record)?.databases {
            let name = &dumped.database.name;
            let tables = count_tables(&self.access, name).await?;
            if tables < dumped.tables {
                return Err(self.access.error(
                    ErrorKind::Damaged,
                    format!(
                        "database \"{name}\" has {tables} tables after the restore instead of {}",
                        dumped.tables
                    ),
                ));
            }
        }
        Ok(())
    }

    async fn rollback(&mut self) -> Result<(), ServiceError> {
        if self.run.is_none() {
            return Ok(());
        }
        let session = self.control().await?;
        if let Some((application, entry)) = self.made.sessions.take() {
            databases::end_tools(&session, &application).await?;
            self.strike(&entry)?;
        }
        if let Some((switches, entry)) = self.made.switched.take() {
            databases::put_back(&session, &switches).await?;
            self.strike(&entry)?;
        }
        while let Some((name, entry)) = self.made.databases.pop() {
            databases::drop_own(&session, &name).await?;
            self.strike(&entry)?;
        }
        if let Some((roles, tablespaces, entry)) = self.made.globals.take() {
            databases::drop_globals(&session, roles, tablespaces).await?;
            self.strike(&entry)?;
        }
        session.close().await;
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), ServiceError> {
        if self.run.is_none() {
            return Ok(());
        }
        let session = self.control().await?;
        for (_, entry) in std::mem::take(&mut self.made.databases) {
            self.strike(&entry)?;
        }
        if let Some((_, _, entry)) = self.made.globals.take() {
            self.strike(&entry)?;
        }
        if let Some((_, entry)) = self.made.sessions.take() {
            self.strike(&entry)?;
        }
        self.drop_old(&session).await?;
        session.close().await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_server_takes_the_dumps_of_an_earlier_one() {
        assert!(fits(15, 15).is_ok() && fits(15, 18).is_ok());
        let why = fits(17, 15).err().unwrap_or_default();
        assert!(why.contains("PostgreSQL 17 or later"), "{why}");
    }
}
