//! One database, or some of its tables, out of a backup and into the running server.
//!
//! # The way
//!
//! ```text
//! dumps:     archive ───────────────────────────────▶ lifeboat_new_… (the database as it was)
//! physical:  archive ─▶ throwaway server ─ pg_dump ─▶ lifeboat_new_…
//!                                └── tables: pg_dump --table ─▶ the target
//! the target: a new database beside (made as lifeboat_new_…, renamed when whole),
//!             the live database of that name (switched by name, `databases`),
//!             or tables in a live database (one transaction of pg_restore's)
//! ```
//!
//! Invariant: nothing live is touched before what replaces it is whole. A table is replaced by
//! `pg_restore --clean --if-exists --single-transaction`: dropped and made anew in one transaction, with its
//! indexes, constraints and triggers. Where something else depends on it (a foreign key of another table, a
//! view), the server refuses the drop and nothing is changed; then these tables are to be named as well.
//!
//! Tables need what they are made of. In a new database schemas, extensions and enumerations are made first;
//! other types and functions are not, and where they are needed the whole database has to be taken. A foreign
//! key to a table that is not among them is left out there, and said.

mod source;
mod target;

use jiff::Timestamp;

use super::access::Access;
use super::databases;
use super::dump::Server;
use super::dump::facts::{self, DumpFacts};
use super::dump::load;
use super::facts::Facts;
use super::pitr::Replay;
use super::session::Session;
use super::throwaway::Throwaway;
use super::tools::Tools;
use crate::config::Config;
use crate::repository::manifest::ArchiveRecord;
use crate::repository::reader::ArchiveReader;
use crate::restore::swap;
use crate::services::{ErrorKind, RunContext, ServiceError};
use crate::stack::StackService;
use crate::stack::journal::{EntryId, Obligation, PostgresSwitch};

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Request {
    pub database: String,
    /// As `SCHEMA.TABLE`; the whole database when there are none.
    pub tables: Vec<String>,
    pub target: Target,
    pub keep_old: bool,
    /// To another moment than the end of a physical backup.
    pub replay: Option<Replay>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A new database, named after the one it comes from and the time.
    Beside,
    Database(String),
    /// The live database, or the tables in it.
    Replace,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Extracted {
    /// Where it is now.
    pub database: String,
    /// With the partitions and children of those that were asked for; empty for a whole database.
    pub tables: Vec<String>,
    pub warnings: Vec<String>,
}

/// One extraction, with what it made so far.
pub struct Extraction {
    config: Config,
    stack: StackService,
    access: Access,
    run: RunContext,
    session: Session,
    tools: Tools,
    major: u32,
    sessions: EntryId,
    /// Databases under names of this program's own, dropped at the end unless they were renamed.
    made: Vec<(String, EntryId)>,
    switched: Option<(Vec<PostgresSwitch>, EntryId)>,
    throwaway: Option<Throwaway>,
    warnings: Vec<String>,
}

impl Extraction {
    pub async fn begin(
        config: &Config,
        stack: &StackService,
        run: &RunContext,
    ) -> Result<Self, ServiceError> {
        let access = Access::new(config, stack);
        let session = databases::control(&access).await?;
        let server = Server::ask(&session, &access).await?;
        let tools = Tools::of(config, &access, server.major, &run.run_id).await?;
        let obligation = Obligation::PostgresSessions {
            service: access.service.clone(),
            application: tools.application.clone(),
        };
        let sessions = tokio::task::block_in_place(|| run.journal.record(&run.run_id, &obligation))
            .map_err(|err| access.error(ErrorKind::Io, err.to_string()))?;
        Ok(Self {
            config: config.clone(),
            stack: stack.clone(),
            access,
            run: run.clone(),
            session,
            tools,
            major: server.major,
            sessions,
            made: Vec::new(),
            switched: None,
            throwaway: None,
            warnings: Vec::new(),
        })
    }

    /// Does what is asked for. [`Self::end`] must follow, whatever came of it.
    pub async fn extract(
        &mut self,
        record: &ArchiveRecord,
        archive: impl FnOnce() -> Result<ArchiveReader, ServiceError>,
        request: &Request,
    ) -> Result<Extracted, ServiceError> {
        let asked = request
            .tables
            .iter()
            .map(|text| source::table(text))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|why| self.setup(why))?;
        let name = self.target_name(request).await?;
        let dumps = DumpFacts::of(&record.report)
            .map_err(|why| self.access.error(ErrorKind::Damaged, why))?;
        let whole = asked.is_empty();
        let source = if let Some(dumps) = dumps {
            self.read_dumps(&dumps, archive()?, request).await?
        } else {
            let facts = Facts::of(&record.report)
                .map_err(|why| self.access.error(ErrorKind::Damaged, why))?;
            Box::pin(self.read_files(record, &facts, archive()?, request, whole)).await?
        };
        let mut tables = Vec::new();
        if whole {
            self.put_database(&source, &name, request).await?;
        } else {
            tables = self.put_tables(&source, &asked, &name, request).await?;
        }
        Ok(Extracted {
            database: name,
            tables,
            warnings: std::mem::take(&mut self.warnings),
        })
    }

    /// Takes away everything that was made on the way; the first failure, after all was tried.
    ///
    /// What fails stays in the journal, and the next start tries again.
    pub async fn end(mut self) -> Result<(), ServiceError> {
        let mut first = Ok(());
        if let Some(throwaway) = self.throwaway.take() {
            first = first.and(throwaway.remove().await);
        }
        let application = self.tools.application.clone();
        let ended = databases::end_tools(&self.session, &application).await;
        first = first.and(ended.and_then(|()| self.strike(&self.sessions)));
        if let Some((switches, entry)) = self.switched.take() {
            let back = databases::put_back(&self.session, &switches).await;
            first = first.and(back.and_then(|()| self.strike(&entry)));
        }
        for (name, entry) in std::mem::take(&mut self.made) {
            let dropped = databases::drop_own(&self.session, &name).await;
            first = first.and(dropped.and_then(|()| self.strike(&entry)));
        }
        self.session.close().await;
        first
    }

    /// Which database it goes into, checked against what there is before anything is read.
    async fn target_name(&self, request: &Request) -> Result<String, ServiceError> {
        let name = match &request.target {
            Target::Beside => beside(&request.database, Timestamp::now()),
            Target::Database(name) => name.clone(),
            Target::Replace => request.database.clone(),
        };
        if name.is_empty() || name.len() > facts::MAX_NAME_BYTES || name.contains('\0') {
            return Err(self.setup(format!(
                "no database can be called \"{}\": a name has 1 to {} bytes",
                name.escape_debug(),
                facts::MAX_NAME_BYTES
            )));
        }
        let exists = databases::exists(&self.session, &name).await?;
        let is_whole = request.tables.is_empty();
        match (&request.target, exists) {
            (Target::Replace, false) if !is_whole => Err(self.setup(format!(
                "there is no database \"{name}\" now whose tables could be replaced: leave out --replace"
            ))),
            (Target::Beside | Target::Database(_), true) if is_whole => Err(self.setup(format!(
                "there is a database \"{name}\" already: name another with --into-database, or put the backup's in its place with --replace"
            ))),
            _ => Ok(name),
        }
    }

    /// Puts a whole database in its place: it is there under a name of its own, or comes from a server.
    async fn put_database(
        &mut self,
        source: &source::Source,
        name: &str,
        request: &Request,
    ) -> Result<(), ServiceError> {
        let new = match source {
            source::Source::Made { name, .. } => name.clone(),
            source::Source::Server { described } => {
                let new = self.make(described).await?;
                let from = &request.database;
                self.transfer(from, &[], &new, &[load::WHOLE]).await?;
                new
            }
        };
        let described = source.described();
        let refused = databases::describe(&self.session, &new, described).await?;
        self.warnings.extend(refused);
        let exists = databases::exists(&self.session, name).await?;
        if request.target != Target::Replace || !exists {
            databases::publish(&self.session, &new, name).await?;
            return self.is_published(&new);
        }
        let old = databases::old_name(&self.run.run_id, 0, name);
        self.switch(&new, name, &old, request.keep_old).await
    }

    async fn switch(
        &mut self,
        new: &str,
        live: &str,
        old: &str,
        keep_old: bool,
    ) -> Result<(), ServiceError> {
        let switches = vec![PostgresSwitch {
            live: live.to_owned(),
            new: new.to_owned(),
            old: Some(old.to_owned()),
        }];
        let entry = self.record(&Obligation::PostgresSwitched {
            service: self.access.service.clone(),
            databases: switches.clone(),
            keep_old,
        })?;
        self.switched = Some((switches.clone(), entry.clone()));
        databases::switch(&self.session, &switches).await?;
        let io = |err: std::io::Error| self.access.error(ErrorKind::Io, err.to_string());
        tokio::task::block_in_place(|| swap::commit(&self.run)).map_err(io)?;
        // From here on the new one stays.
        self.switched = None;
        self.is_published(new)?;
        databases::discard_old(&self.session, &switches, keep_old).await?;
        if keep_old {
            self.warnings
                .push(format!("the database of before is kept as \"{old}\""));
        }
        self.strike(&entry)?;
        let io = |err: std::io::Error| self.access.error(ErrorKind::Io, err.to_string());
        tokio::task::block_in_place(|| swap::forget_commit(&self.run)).map_err(io)
    }

    /// A database that was made has the name it is to have: nothing of it is left to be dropped.
    fn is_published(&mut self, new: &str) -> Result<(), ServiceError> {
        let place = self.made.iter().position(|(name, _)| name == new);
        let Some(place) = place else { return Ok(()) };
        let (_, entry) = self.made.remove(place);
        self.strike(&entry)
    }

    /// Makes an empty database under a name of this program's own, written down before.
    async fn make(&mut self, like: &facts::Described) -> Result<String, ServiceError> {
        let name = databases::new_name(&self.run.run_id, self.made.len());
        let entry = self.record(&Obligation::PostgresDatabase {
            service: self.access.service.clone(),
            database: name.clone(),
        })?;
        self.made.push((name.clone(), entry));
        databases::create(&self.session, &name, like).await?;
        Ok(name)
    }

    fn record(&self, obligation: &Obligation) -> Result<EntryId, ServiceError> {
        let run = &self.run;
        tokio::task::block_in_place(|| run.journal.record(&run.run_id, obligation))
            .map_err(|err| self.access.error(ErrorKind::Io, err.to_string()))
    }

    fn strike(&self, entry: &EntryId) -> Result<(), ServiceError> {
        tokio::task::block_in_place(|| self.run.journal.done(entry))
            .map_err(|err| self.access.error(ErrorKind::Io, err.to_string()))
    }

    fn setup(&self, why: impl Into<String>) -> ServiceError {
        self.access.error(ErrorKind::Setup, why)
    }
}

/// `NAME_restored_20261123_104500`, as long as a name may be.
fn beside(database: &str, now: Timestamp) -> String {
    let suffix = now.strftime("_restored_%Y%m%d_%H%M%S").to_string();
    let mut end = (facts::MAX_NAME_BYTES - suffix.len()).min(database.len());
    while !database.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{suffix}", database.get(..end).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_name_beside_tells_what_it_is_and_fits() {
        let now: Timestamp = "2026-11-23T10:45:00Z".parse().unwrap();
        assert_eq!(beside("n8n", now), "n8n_restored_20261123_104500");
        let long = beside(&"é".repeat(31), now);
        assert!(long.len() <= 63 && long.ends_with("_104500"), "{long}");
    }
}
