//! What a backup's record tells of the cluster.

use std::collections::BTreeMap;

use super::access::Access;
use super::facts::Facts;
use super::room::Unkept;
use super::server::Census;
use super::session::Session;
use super::{Begun, Frozen, label, server};
use crate::services::{ErrorKind, ServiceError, ServiceReport};

impl Begun {
    pub(super) async fn report(&self, mut frozen: Frozen) -> Result<ServiceReport, ServiceError> {
        let source = &self.source;
        let (access, server) = (&source.access, &source.server);
        let mut warnings = self.warnings();
        warnings.extend(self.damaged.sentence());
        for database in frozen.databases.iter_mut().filter(|d| d.counted) {
            match census(access, &database.name).await {
                Ok(census) => {
                    database.tables = Some(census.tables);
                    database.rows_estimate = Some(census.rows);
                    database.extensions = census.extensions;
                }
                Err(err) => warnings.push(format!(
                    "the tables of database \"{}\" could not be counted: {}",
                    database.name, err.message
                )),
            }
        }
        let mut counts = BTreeMap::from([(
            "databases".to_owned(),
            frozen.databases.iter().filter(|d| d.counted).count() as u64,
        )]);
        let tables: Option<u64> = frozen
            .databases
            .iter()
            .filter(|d| d.counted)
            .map(|d| d.tables)
            .sum();
        // A sum with a gap in it would look like a loss.
        counts.extend(tables.map(|tables| ("tables".to_owned(), tables)));
        let facts = self.facts(frozen)?;
        Ok(ServiceReport {
            version: server.version.clone(),
            counts,
            facts: serde_json::to_value(facts).map_err(|err| {
                access.error(ErrorKind::Io, format!("cannot write the report: {err}"))
            })?,
            warnings,
        })
    }

    fn facts(&self, frozen: Frozen) -> Result<Facts, ServiceError> {
        let source = &self.source;
        let server = &source.server;
        let segments = frozen.segments;
        let tablespaces = label::parse_map(&frozen.stopped.tablespace_map).map_err(|why| {
            source.access.error(
                ErrorKind::Damaged,
                format!("the server's tablespace map cannot be read: {why}"),
            )
        })?;
        Ok(Facts {
            system_identifier: server.system_identifier.to_string(),
            major: server.major(),
            catalog_version: server.catalog_version,
            control_version: server.control_version,
            timeline: segments.timeline,
            start_lsn: frozen.label.start.to_string(),
            stop_lsn: frozen.stopped.lsn,
            stopped: frozen.stopped.at,
            first_segment: segments.size.name(segments.timeline, segments.first),
            last_segment: segments.size.name(segments.timeline, segments.last),
            wal_segments: segments.count(),
            wal_segment_bytes: segments.size.bytes(),
            block_bytes: server.block_bytes,
            page_checksums: server.page_checksums,
            data_directory: server.data_directory.clone().into(),
            owner: source.owner()?,
            tablespaces,
            databases: frozen.databases,
            max_connections: server.max_connections.clone(),
            copied: None,
            platform: Some(server.platform.clone()),
            damage: self.damaged.sentence(),
            damaged_pages: (self.damaged.count > 0).then(|| self.damaged.clone()),
        })
    }

    fn warnings(&self) -> Vec<String> {
        let server = &self.source.server;
        let outside = [&server.config_file, &server.hba_file]
            .into_iter()
            .filter(|file| !std::path::Path::new(file).starts_with(&server.data_directory))
            .map(|file| {
                format!("{file} lies outside the data directory and is not in this backup: keep a copy of it")
            });
        let slot = self.unkept().map(Unkept::warning);
        let wal = std::fs::read_link(self.source.data.join("pg_wal"))
            .into_iter()
            .map(|target| {
                format!(
                    "pg_wal is a link to {}: a restore puts the WAL into the data directory",
                    target.display()
                )
            });
        outside.chain(slot).chain(wal).collect()
    }
}

/// Counts the tables of one database, on a connection of its own.
async fn census(access: &Access, database: &str) -> Result<Census, ServiceError> {
    let session = Session::open_at(access, access.attempts_at(database)).await?;
    let counted = session.run("count the tables", server::census).await;
    session.close().await;
    counted
}
