//! A data directory that was copied as files, by `tar`, `cp` or `pg_basebackup`: what it is, and into an
//! archive as it is.
//!
//! Its control file says whether the server was shut down, which is all it takes for a whole copy. A
//! `backup_label` says that it was made within a base backup, whose replay makes it whole. Anything else was
//! read while it changed: PostgreSQL takes it for a crash, and its recovery repairs what a crash leaves, which
//! is not all that such a copy lacks. No server is asked for anything.

use std::io::Read as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use jiff::Timestamp;

use super::backup::read_control;
use super::control::{ControlFile, State};
use super::facts::{Copied, Facts, Owner};
use super::server::SUPPORTED;
use super::wal::{self, Expected, Lsn, SegmentError, SegmentSize};
use super::{label, restore, rules};
use crate::archive::walk::{Entry, EntryKind, Rules, TreeCounts, meta_of, walk};
use crate::archive::{ArchiveWriter, Cut, EntryMeta, OnChange};
use crate::services::support::{archive_failed, io_failed, regular};
use crate::services::volume::{tree_bytes, tree_counts};
use crate::services::{
    Check, ErrorKind, PointInTime, RunContext, Service, ServiceError, ServiceKind, ServiceReport,
};

/// Labels and version files have a few hundred bytes.
const MAX_TEXT_BYTES: u64 = 64 * 1024;

/// One copied data directory, on its way into an archive.
pub struct PostgresFiles {
    name: String,
    data: PathBuf,
    found: Option<Found>,
    counts: TreeCounts,
}

/// What the directory says of itself.
struct Found {
    control: ControlFile,
    major: u32,
    copied: Copied,
    segment_size: SegmentSize,
    /// Where the server will begin to replay, and on which timeline.
    start: (Lsn, u32),
}

impl PostgresFiles {
    pub fn new(name: &str, data: &Path) -> Self {
        Self {
            name: name.to_owned(),
            data: data.to_owned(),
            found: None,
            counts: TreeCounts::default(),
        }
    }

    fn look(&self) -> Result<Found, ServiceError> {
        self.refuse_links()?;
        let control = read_control(&self.name, &self.data)?;
        let segment_size = control
            .segment_size
            .ok_or_else(|| self.damaged("its control file names no size of WAL segments"))?;
        let label = self.text("backup_label")?;
        let start = match &label {
            Some(label) => label::start_of(label)
                .map_err(|why| self.damaged(&format!("{why} in its backup_label")))?,
            None => (control.redo, control.timeline),
        };
        let copied = match (&label, control.state) {
            (Some(_), _) => Copied::BaseBackup,
            (None, State::ShutDown | State::ShutDownInRecovery) => Copied::Cold,
            (None, State::Running) => Copied::Running,
        };
        let found = Found {
            major: self.major()?,
            control,
            copied,
            segment_size,
            start,
        };
        self.check_wal(&found)?;
        Ok(found)
    }

    fn major(&self) -> Result<u32, ServiceError> {
        let text = self.text("PG_VERSION")?.unwrap_or_default();
        match text.trim().parse() {
            Ok(major) if SUPPORTED.contains(&major) => Ok(major),
            _ => Err(ServiceError::new(
                &self.name,
                ErrorKind::Setup,
                format!(
                    "it is a data directory of PostgreSQL \"{}\"; this program knows {} to {}",
                    text.trim().escape_debug(),
                    SUPPORTED.start(),
                    SUPPORTED.end()
                ),
            )),
        }
    }

    /// What lies elsewhere is not in the copy, so the server would not start on it, or lose data.
    fn refuse_links(&self) -> Result<(), ServiceError> {
        let refused = |what: String| Err(ServiceError::new(&self.name, ErrorKind::Setup, what));
        if let Ok(target) = std::fs::read_link(self.data.join("pg_wal")) {
            return refused(format!(
                "pg_wal is a link to {}, which is not in this copy: put the WAL directory in its place, and import it again",
                target.display()
            ));
        }
        let tablespaces = self.data.join("pg_tblspc");
        let entries = match std::fs::read_dir(&tablespaces) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(io_failed(&self.name, "list", &tablespaces, e)),
        };
        for entry in entries {
            let entry = entry.map_err(|e| io_failed(&self.name, "list", &tablespaces, e))?;
            if let Ok(target) = std::fs::read_link(entry.path()) {
                return refused(format!(
                    "tablespace {} is a link to {}, outside of the data directory, and copies with such tablespaces cannot be imported: start PostgreSQL on this copy, and have `backup` make a backup of it",
                    entry.file_name().to_string_lossy(),
                    target.display()
                ));
            }
        }
        match self.text("tablespace_map")? {
            Some(map) if !map.trim().is_empty() => refused(
                "its tablespace_map names tablespaces outside of the data directory, and base backups with such tablespaces cannot be imported: start PostgreSQL on it, and have `backup` make a backup of it".to_owned(),
            ),
            _ => Ok(()),
        }
    }

    /// The server starts only where the record of the checkpoint can be read.
    fn check_wal(&self, found: &Found) -> Result<(), ServiceError> {
        let (start, timeline) = found.start;
        let mut needed = vec![found.segment_size.segment_at(start)];
        if found.copied != Copied::BaseBackup {
            needed.push(found.segment_size.segment_at(found.control.checkpoint));
        }
        for segment in needed {
            let name = found.segment_size.name(timeline, segment);
            let path = self.data.join("pg_wal").join(&name);
            let missing = |e: std::io::Error| match e.kind() {
                std::io::ErrorKind::NotFound => ServiceError::new(
                    &self.name,
                    ErrorKind::Damaged,
                    format!(
                        "pg_wal/{name} is missing in this copy, and PostgreSQL cannot start on it without: put that file in its pg_wal (pg_basebackup -Ft keeps the WAL in a pg_wal.tar of its own), and import it again"
                    ),
                ),
                _ => io_failed(&self.name, "read", &path, e),
            };
            regular(&path).map_err(missing)?;
            let first = wal::first_timeline(&path).map_err(missing)?;
            let expected = Expected {
                timeline: first.filter(|first| *first <= timeline).unwrap_or(timeline),
                segment,
                size: found.segment_size,
                system_identifier: found.control.system_identifier,
            };
            wal::check_segment(&path, &expected).map_err(|e| match e {
                SegmentError::Read(e) => missing(e),
                SegmentError::Foreign(why) => {
                    self.damaged(&format!("pg_wal/{name} is not what its name says: {why}"))
                }
            })?;
        }
        Ok(())
    }

    /// A small file of the directory; `None` when there is none.
    fn text(&self, file: &str) -> Result<Option<String>, ServiceError> {
        let path = self.data.join(file);
        let failed = |e| io_failed(&self.name, "read", &path, e);
        let file = match regular(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed(e)),
        };
        let mut text = Vec::new();
        file.take(MAX_TEXT_BYTES)
            .read_to_end(&mut text)
            .map_err(failed)?;
        Ok(Some(String::from_utf8_lossy(&text).into_owned()))
    }

    /// Everything but the control file, which makes the rest usable and comes last.
    fn store(&mut self, archive: &mut ArchiveWriter, found: &Found) -> Result<(), ServiceError> {
        let rules = Rules::default();
        let mut control_meta = EntryMeta::default();
        for entry in walk(&self.data, &rules) {
            let entry = entry.map_err(|e| archive_failed(&self.name, e))?;
            let Ok(name) = std::str::from_utf8(&entry.name) else {
                return Err(self.damaged(&format!(
                    "{} has a name that is not UTF-8: PostgreSQL did not make it",
                    entry.shown.display()
                )));
            };
            if name == "global/pg_control" {
                control_meta = meta_of(&entry.path).map_err(|e| archive_failed(&self.name, e))?;
            } else if !rules::dropped_of_copy(name) {
                self.store_entry(archive, name, &entry, found.control.block_bytes)?;
            }
        }
        archive
            .bytes("global/pg_control", &control_meta, &found.control.bytes)
            .map_err(|e| archive_failed(&self.name, e))?;
        self.counts.files += 1;
        Ok(())
    }

    fn store_entry(
        &mut self,
        archive: &mut ArchiveWriter,
        name: &str,
        entry: &Entry,
        block_bytes: u32,
    ) -> Result<(), ServiceError> {
        let failed = |e| archive_failed(&self.name, e);
        match &entry.kind {
            EntryKind::Directory => {
                self.counts.directories += 1;
                archive.directory(name, &entry.meta).map_err(failed)
            }
            EntryKind::File | EntryKind::HardLink { .. } => {
                self.counts.files += 1;
                let (directory, file) = name.rsplit_once('/').unwrap_or(("", name));
                let is_relation =
                    rules::holds_relations(directory) && rules::relation_file(file).is_some();
                let cut = if is_relation {
                    Cut::Pages(block_bytes)
                } else {
                    Cut::Content
                };
                archive
                    .file(name, &entry.path, cut, OnChange::ReadAgain)
                    .map(drop)
                    .map_err(|e| failed(e.shown_as(&entry.shown)))
            }
            EntryKind::Symlink { target } => Err(ServiceError::new(
                &self.name,
                ErrorKind::Setup,
                format!(
                    "{name} is a link to {}: put what it points to in its place, and import it again",
                    target.display()
                ),
            )),
        }
    }

    fn facts(&self, found: &Found) -> Result<Facts, ServiceError> {
        let data = std::fs::metadata(&self.data)
            .map_err(|e| io_failed(&self.name, "read", &self.data, e))?;
        let control = &found.control;
        let (start, timeline) = found.start;
        let first = found.segment_size.segment_at(start);
        Ok(Facts {
            system_identifier: control.system_identifier.to_string(),
            major: found.major,
            catalog_version: control.catalog_version,
            control_version: control.control_version,
            timeline,
            start_lsn: start.to_string(),
            stop_lsn: control.checkpoint.to_string(),
            stopped: String::new(),
            first_segment: found.segment_size.name(timeline, first),
            last_segment: String::new(),
            wal_segments: 0,
            wal_segment_bytes: found.segment_size.bytes(),
            block_bytes: control.block_bytes,
            page_checksums: control.page_checksums,
            // Where it lay is not known; with no tablespaces nothing depends on it.
            data_directory: restore::IMAGE_DATA.into(),
            owner: Owner {
                uid: data.uid(),
                gid: data.gid(),
                mode: data.mode() & 0o7777,
            },
            tablespaces: Vec::new(),
            databases: Vec::new(),
            max_connections: control.max_connections.to_string(),
            copied: Some(found.copied),
            platform: None,
            damage: None,
            damaged_pages: None,
        })
    }

    fn damaged(&self, what: &str) -> ServiceError {
        ServiceError::new(
            &self.name,
            ErrorKind::Damaged,
            format!("this copy of a data directory cannot be used: {what}"),
        )
    }
}

#[async_trait]
impl Service for PostgresFiles {
    fn kind(&self) -> ServiceKind {
        ServiceKind::Postgres
    }

    fn name(&self) -> &str {
        &self.name
    }

    async fn check(&self) -> Vec<Check> {
        let subject = format!("{}: data directory", self.name);
        vec![match tokio::task::block_in_place(|| self.look()) {
            Ok(found) => Check::good(subject, format!("PostgreSQL {}", found.major)),
            Err(e) => Check::bad(subject, e.message),
        }]
    }

    async fn estimate(&self) -> u64 {
        tokio::task::block_in_place(|| tree_bytes(&self.data, &Rules::default()))
    }

    async fn hold(&mut self, _run: &RunContext) -> Result<(), ServiceError> {
        self.found = Some(tokio::task::block_in_place(|| self.look())?);
        Ok(())
    }

    async fn copy(&mut self, archive: &mut ArchiveWriter) -> Result<(), ServiceError> {
        let Some(found) = self.found.take() else {
            return Err(self.damaged("it was not looked at"));
        };
        tokio::task::block_in_place(|| self.store(archive, &found))?;
        self.found = Some(found);
        Ok(())
    }

    async fn freeze(&mut self) -> Result<PointInTime, ServiceError> {
        Ok(PointInTime {
            at: Timestamp::now(),
            coordinate: self
                .found
                .as_ref()
                .map(|f| f.control.checkpoint.to_string()),
        })
    }

    async fn drain(&mut self, _archive: &mut ArchiveWriter) -> Result<ServiceReport, ServiceError> {
        let Some(found) = &self.found else {
            return Err(self.damaged("it was not looked at"));
        };
        let facts = serde_json::to_value(self.facts(found)?).map_err(|e| {
            let message = format!("cannot write the report: {e}");
            ServiceError::new(&self.name, ErrorKind::Io, message)
        })?;
        Ok(ServiceReport {
            version: found.major.to_string(),
            counts: tree_counts(&self.counts),
            facts,
            warnings: warnings(found),
        })
    }
}

fn warnings(found: &Found) -> Vec<String> {
    let mut warnings = Vec::new();
    if found.copied == Copied::Running {
        warnings.push(
            "this is a copy of a running PostgreSQL without a base backup: its files were read one after the other while they changed, so it may be torn. \
             PostgreSQL will start on it as after a crash; that may fail, or leave damage that shows later. After a restore check it with \
             pg_amcheck --all --heapallindexed, and see that pg_dumpall goes through"
                .to_owned(),
        );
    }
    if found.control.state == State::ShutDownInRecovery {
        warnings.push("this is a copy of a standby: restored, it is a primary".to_owned());
    }
    warnings
}
