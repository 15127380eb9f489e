//! Tables on their way from one database into another.

use tokio::io::AsyncWriteExt;

use super::source::{Source, Table};
use super::{Extraction, Request, Target};
use crate::services::postgres::databases;
use crate::services::postgres::dump::load::{WHOLE, load_call};
use crate::services::postgres::dump::stream::{PIPE_BYTES, dump_call};
use crate::services::postgres::server::{literal, quote};
use crate::services::postgres::tools::Tools;
use crate::services::{ErrorKind, ServiceError};

/// Replaced as a whole or not at all.
const REPLACE: [&str; 4] = [WHOLE, "--clean", "--if-exists", "--single-transaction"];
const ADD: [&str; 2] = [WHOLE, "--single-transaction"];
/// What the tables are, and their rows.
const CONTENT: [&str; 2] = ["--section=pre-data", "--section=data"];
/// Indexes, constraints, triggers.
const REST: &str = "--section=post-data";

/// Statements that make the extensions of a database.
const EXTENSIONS: &str = "SELECT format('CREATE SCHEMA IF NOT EXISTS %I; \
     CREATE EXTENSION IF NOT EXISTS %I SCHEMA %I CASCADE;', n.nspname, e.extname, n.nspname) \
     FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace \
     WHERE n.nspname <> 'pg_catalog' ORDER BY e.oid";
/// Statements that make the enumerations of a database, but for those of its extensions.
const ENUMERATIONS: &str = "SELECT format('CREATE SCHEMA IF NOT EXISTS %I; CREATE TYPE %I.%I AS ENUM (%s);', \
     n.nspname, n.nspname, t.typname, string_agg(quote_literal(e.enumlabel), ', ' ORDER BY e.enumsortorder)) \
     FROM pg_type t JOIN pg_enum e ON e.enumtypid = t.oid JOIN pg_namespace n ON n.oid = t.typnamespace \
     WHERE NOT EXISTS (SELECT FROM pg_depend d \
     WHERE d.classid = 'pg_type'::regclass AND d.objid = t.oid AND d.deptype = 'e') \
     GROUP BY n.nspname, t.typname";

impl Extraction {
    /// Brings tables into the database `name`, which is made when it is not there; all that were brought.
    pub(super) async fn put_tables(
        &mut self,
        source: &Source,
        asked: &[Table],
        name: &str,
        request: &Request,
    ) -> Result<Vec<String>, ServiceError> {
        let (tools, from) = self.origin(source, request);
        let tables = self.resolve(&tools, &from, asked).await?;
        let mut patterns = vec!["--strict-names".to_owned()];
        patterns.extend(tables.iter().map(|table| {
            // In double quotes nothing of a pattern means anything.
            format!("--table={}.{}", quote(&table.schema), quote(&table.name))
        }));
        let exists = databases::exists(&self.session, name).await?;
        if exists {
            let how: &[&str] = if request.target == Target::Replace {
                &REPLACE
            } else {
                &ADD
            };
            self.transfer(&from, &patterns, name, how).await?;
        } else {
            let new = self.make(source.described()).await?;
            self.make_surroundings(&tools, &from, &tables, &new).await?;
            let with = |more: &[&str]| {
                let more = more.iter().map(|argument| (*argument).to_owned());
                patterns.iter().cloned().chain(more).collect::<Vec<_>>()
            };
            self.transfer(&from, &with(&CONTENT), &new, &ADD).await?;
            // A foreign key to a table that was not asked for has nowhere to lead: that is said, no more.
            if let Err(err) = self.transfer(&from, &with(&[REST]), &new, &[]).await {
                self.warnings.push(err.message);
            }
            databases::publish(&self.session, &new, name).await?;
            self.is_published(&new)?;
        }
        Ok(tables.iter().map(ToString::to_string).collect())
    }

    /// The tools that reach the source, and the database's name there.
    fn origin(&self, source: &Source, request: &Request) -> (Tools, String) {
        match (source, &self.throwaway) {
            (Source::Server { .. }, Some(throwaway)) => {
                (throwaway.tools.clone(), request.database.clone())
            }
            (Source::Made { name, .. }, _) => (self.tools.clone(), name.clone()),
            (Source::Server { .. }, None) => (self.tools.clone(), request.database.clone()),
        }
    }

    /// The tables that are asked for, with their partitions and children: without those a partitioned table
    /// would come back empty.
    async fn resolve(
        &self,
        tools: &Tools,
        database: &str,
        asked: &[Table],
    ) -> Result<Vec<Table>, ServiceError> {
        let wanted: Vec<String> = asked
            .iter()
            .map(|t| format!("({}, {})", literal(&t.schema), literal(&t.name)))
            .collect();
        let query = format!(
            "WITH RECURSIVE tree AS (\
             SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE (n.nspname::text, c.relname::text) IN ({}) AND c.relkind IN ('r', 'p', 'm', 'v', 'f', 'S') \
             UNION SELECT i.inhrelid FROM pg_inherits i JOIN tree ON i.inhparent = tree.oid) \
             SELECT coalesce(json_agg(json_build_object('schema', n.nspname, 'name', c.relname)), '[]') \
             FROM tree JOIN pg_class c USING (oid) JOIN pg_namespace n ON n.oid = c.relnamespace",
            wanted.join(", ")
        );
        let json = tools
            .sql(database, "look for the tables in the backup", &query)
            .await?;
        let mut found: Vec<Table> = serde_json::from_str(&json).map_err(|err| {
            let message = format!("the server lists the tables as \"{json}\" ({err})");
            self.access.error(ErrorKind::Damaged, message)
        })?;
        found.sort();
        let missing: Vec<String> = asked
            .iter()
            .filter(|table| !found.contains(table))
            .map(ToString::to_string)
            .collect();
        if missing.is_empty() {
            return Ok(found);
        }
        Err(self.setup(format!(
            "the backup's database has no table {}: names are as they are written, and public's without a schema",
            missing.join(", ")
        )))
    }

    /// Makes the schemas, extensions and enumerations that tables may need in a new database.
    async fn make_surroundings(
        &mut self,
        from: &Tools,
        database: &str,
        tables: &[Table],
        new: &str,
    ) -> Result<(), ServiceError> {
        let schemas: std::collections::BTreeSet<&str> =
            tables.iter().map(|t| t.schema.as_str()).collect();
        let schemas: Vec<String> = schemas
            .into_iter()
            .map(|schema| format!("CREATE SCHEMA IF NOT EXISTS {};", quote(schema)))
            .collect();
        self.tools
            .sql(new, "create the tables' schemas", &schemas.join("\n"))
            .await?;
        for (what, query) in [("extensions", EXTENSIONS), ("enumerations", ENUMERATIONS)] {
            let doing = format!("list the {what} in the backup");
            let statements = from.sql(database, &doing, query).await?;
            if statements.is_empty() {
                continue;
            }
            let doing = format!("create the {what} of the backup");
            if let Err(err) = self.tools.sql(new, &doing, &statements).await {
                // A table that needs one says so itself.
                self.warnings.push(err.message);
            }
        }
        Ok(())
    }

    /// Dumps from the source straight into the live server.
    pub(super) async fn transfer(
        &self,
        from: &str,
        patterns: &[String],
        to: &str,
        how: &[&str],
    ) -> Result<(), ServiceError> {
        let source = self
            .throwaway
            .as_ref()
            .map_or(&self.tools, |throwaway| &throwaway.tools);
        let (mut writer, mut reader) = tokio::io::duplex(PIPE_BYTES);
        let dump = dump_call(from, None).args(patterns.iter().cloned());
        let load = load_call(from, to, &[how, &["--no-tablespaces"]].concat());
        let dumping = async {
            source.run(&dump, None, &mut writer).await?;
            let ended = writer.shutdown().await;
            ended.map_err(|err| self.access.error(ErrorKind::Io, err.to_string()))
        };
        let loading = async {
            let mut nothing = tokio::io::sink();
            self.tools.run(&load, Some(&mut reader), &mut nothing).await
        };
        // The loading first: a dump that nobody takes fails for that reason alone.
        tokio::try_join!(loading, dumping).map(drop)
    }
}
