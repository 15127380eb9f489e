//! Where what is extracted comes from: a database made of its dump, or a server on the backup's files.

use super::{Extraction, Request};
use crate::archive::unpack::{UnpackOptions, unpack};
use crate::repository::manifest::ArchiveRecord;
use crate::repository::reader::ArchiveReader;
use crate::restore::Restore as _;
use crate::services::postgres::PostgresRestore;
use crate::services::postgres::dump::facts::{Described, DumpFacts, describing, parse_described};
use crate::services::postgres::dump::load::Dumps;
use crate::services::postgres::facts::Facts;
use crate::services::postgres::pitr::Replay;
use crate::services::postgres::recovery::{self, AUTO_CONF};
use crate::services::postgres::restore::own_directory;
use crate::services::postgres::server::literal;
use crate::services::postgres::throwaway::Ground;
use crate::services::postgres::tools::Tools;
use crate::services::{ErrorKind, ServiceError};

/// The database as it was.
pub enum Source {
    /// In the live server, under a name of this program's own.
    Made { name: String, described: Described },
    /// In the throwaway server, under its own name.
    Server { described: Described },
}

impl Source {
    pub const fn described(&self) -> &Described {
        match self {
            Self::Made { described, .. } | Self::Server { described } => described,
        }
    }
}

/// A table's schema and name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Deserialize)]
pub struct Table {
    pub schema: String,
    pub name: String,
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

/// Reads `SCHEMA.TABLE`, or `TABLE` for `public`'s; a part in double quotes may hold dots. Letters count as
/// they are written.
pub fn table(text: &str) -> Result<Table, String> {
    let mut parts = vec![String::new()];
    let mut quoted = false;
    for c in text.chars() {
        match c {
            '"' => quoted = !quoted,
            '.' if !quoted => parts.push(String::new()),
            c => parts
                .last_mut()
                .map(|part| part.push(c))
                .unwrap_or_default(),
        }
    }
    let named = match parts.as_slice() {
        [name] => Some(("public".to_owned(), name.clone())),
        [schema, name] => Some((schema.clone(), name.clone())),
        _ => None,
    };
    named
        .filter(|(schema, name)| !quoted && !schema.is_empty() && !name.is_empty())
        .map(|(schema, name)| Table { schema, name })
        .ok_or_else(|| {
            format!(
                "\"{}\" names no table: give SCHEMA.TABLE, a part that holds a dot in double quotes",
                text.escape_debug()
            )
        })
}

impl Extraction {
    /// Loads the database's dump beside the live ones.
    pub(super) async fn read_dumps(
        &mut self,
        dumps: &DumpFacts,
        archive: ArchiveReader,
        request: &Request,
    ) -> Result<Source, ServiceError> {
        let Some(dumped) = dumps.database(&request.database) else {
            let names = dumps.databases.iter().map(|d| d.database.name.as_str());
            return Err(self.no_database(request, names.collect()));
        };
        if dumps.major > self.major {
            return Err(self.setup(format!(
                "the dumps are of PostgreSQL {}, the server is PostgreSQL {}: a server takes dumps of its own major version and of earlier ones",
                dumps.major, self.major
            )));
        }
        let name = self.make(&dumped.database).await?;
        let mut read = Dumps::new(&self.access.service, archive.into_async())?;
        // Where the tablespaces are is the live server's business.
        read.load(dumped, &self.tools, &name, &["--no-tablespaces"])
            .await?;
        Ok(Source::Made {
            name,
            described: dumped.database.clone(),
        })
    }

    /// Unpacks the backup's files and brings a server up on them.
    pub(super) async fn read_files(
        &mut self,
        record: &ArchiveRecord,
        facts: &Facts,
        archive: ArchiveReader,
        request: &Request,
        whole: bool,
    ) -> Result<Source, ServiceError> {
        if facts.major != self.major {
            return Err(self.setup(format!(
                "the backup is of PostgreSQL {}, the server is PostgreSQL {}: one database out of a physical backup needs the same major version; POSTGRES_MODE=dump makes backups that later versions take",
                facts.major, self.major
            )));
        }
        let known = facts.databases.iter().map(|d| d.name.as_str());
        let replay = request.replay.as_ref();
        // Later on it may have come.
        let goes_on = replay.is_some_and(Replay::goes_on);
        if !goes_on && !known.clone().any(|name| name == request.database) {
            return Err(self.no_database(request, known.collect()));
        }
        let restore = PostgresRestore::new(&self.config, &self.stack)?;
        let ground = Ground::prepare(
            &self.config,
            &self.access,
            &self.run,
            record.raw_bytes + replay.map_or(0, Replay::staged_bytes),
        )
        .await?;
        let prepared = self.unpack(&ground, facts, archive, &restore, replay).await;
        let (auto_conf, owner) = match prepared {
            Ok(prepared) => prepared,
            Err(err) => {
                ground.remove_after(&err).await;
                return Err(err);
            }
        };
        let throwaway = ground
            .start(auto_conf.as_deref(), owner, facts.major)
            .await?;
        let tools = throwaway.tools.clone();
        self.throwaway = Some(throwaway);
        tracing::info!(service = %self.access.service, whole, "the temporary server has finished recovery");
        let described = self.describe_in(&tools, &request.database).await?;
        Ok(Source::Server { described })
    }

    /// The data directory as recovery wants it; what `postgresql.auto.conf` is to be, and whose it is.
    async fn unpack(
        &self,
        ground: &Ground,
        facts: &Facts,
        archive: ArchiveReader,
        restore: &PostgresRestore,
        replay: Option<&Replay>,
    ) -> Result<(Option<String>, (u32, u32)), ServiceError> {
        let user = rustix::process::geteuid();
        let mine = (user.as_raw(), rustix::process::getegid().as_raw());
        let owner = if user.is_root() {
            restore.owner(facts)
        } else {
            mine
        };
        let options = UnpackOptions {
            owner: Some(owner),
            ..restore.unpack_options()
        };
        let data = ground.data();
        unpack(archive.into_async(), &data, &options)
            .await
            .map_err(|err| self.access.error(ErrorKind::Io, err.to_string()))?;
        tokio::task::block_in_place(|| {
            restore.check_staged(&data, facts)?;
            let auto_conf = || {
                ground.gather_tablespaces(facts, owner)?;
                own_directory(&data, facts, owner)?;
                // A copy replays what it brought, as after a crash.
                if facts.copied.is_some() {
                    return Ok(None);
                }
                let original = match std::fs::read_to_string(data.join(AUTO_CONF)) {
                    Ok(text) => text,
                    Err(err) if err.kind() == std::io::ErrorKind::NotFound => String::new(),
                    Err(err) => return Err(err),
                };
                if let Some(replay) = replay {
                    replay.stage(&data, owner)?;
                }
                let timeline = replay.map_or(facts.timeline, Replay::timeline);
                let target = replay.map_or(&[][..], Replay::settings);
                Ok(Some(recovery::with_settings(&original, timeline, target)))
            };
            let auto_conf = auto_conf().map_err(|err| {
                let message = format!("cannot prepare {}: {err}", data.display());
                self.access.error(ErrorKind::Io, message)
            })?;
            Ok((auto_conf, owner))
        })
    }

    async fn describe_in(&self, tools: &Tools, name: &str) -> Result<Described, ServiceError> {
        let query = describing(&format!("d.datname = {}", literal(name)));
        let json = tools
            .sql("template1", "look for the database in the backup", &query)
            .await?;
        let found =
            parse_described(&json).map_err(|why| self.access.error(ErrorKind::Damaged, why))?;
        let missing = || self.setup(format!("the backup has no database \"{name}\""));
        found.into_iter().next().ok_or_else(missing)
    }

    fn no_database(&self, request: &Request, mut has: Vec<&str>) -> ServiceError {
        has.retain(|name| !name.starts_with("template"));
        self.setup(format!(
            "the backup has no database \"{}\": it has {}",
            request.database.escape_debug(),
            has.join(", ")
        ))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn tables_are_named_with_their_schema() {
        let named = |text: &str| {
            let table = table(text).unwrap();
            (table.schema, table.name)
        };
        assert_eq!(named("a.b"), ("a".into(), "b".into()));
        assert_eq!(named("b"), ("public".into(), "b".into()));
        assert_eq!(named("\"A.x\".\"b c\""), ("A.x".into(), "b c".into()));
        for wrong in ["", ".", "a.", "a.b.c", "\"a.b"] {
            assert!(table(wrong).unwrap_err().contains("names no table"));
        }
    }
}
