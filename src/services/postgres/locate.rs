//! Finds the server, and its data directory as this process sees it, and refuses what a backup cannot use.

use std::path::{Path, PathBuf};

use super::access::{Access, said};
use super::backup::{Source, read_control};
use super::server::{self, ProbeError, SUPPORTED, Server};
use super::session::Session;
use super::wal::Lsn;
use crate::services::{ErrorKind, ServiceError};

/// How often the two views of the control file are compared: a checkpoint may end in between.
const COMPARISONS: u32 = 5;

/// Asks the server what it is.
pub async fn probe(session: &Session, access: &Access) -> Result<Server, ServiceError> {
    session
        .run("ask the server for its settings", |client| {
            Ok(Server::probe(client))
        })
        .await?
        .map_err(|err| probe_error(access, err))
}

/// The server with its data directory, checked to be one and the same cluster.
pub async fn source(
    session: &Session,
    access: &Access,
    server: Server,
) -> Result<Source, ServiceError> {
    let data = data_directory(access, &server)?;
    let source = Source {
        access: access.clone(),
        server,
        data,
    };
    same_cluster(session, &source).await?;
    Ok(source)
}

pub fn unknown_version(version: &str) -> String {
    format!(
        "the server is PostgreSQL {version}; this program knows {} to {}. Use a version of it that knows this one",
        SUPPORTED.start(),
        SUPPORTED.end()
    )
}

/// Why a hot physical backup of this server is impossible, if it is.
pub fn refusal(server: &Server) -> Result<(), String> {
    if !SUPPORTED.contains(&server.major()) {
        return Err(unknown_version(&server.version));
    }
    if server.in_recovery {
        return Err(
            "the server is a standby, or has not finished recovery: back up its primary, or wait until it is one"
                .to_owned(),
        );
    }
    if server.wal_level == "minimal" {
        return Err(
            "the server runs with wal_level = minimal, which no hot backup can be taken from: run ALTER SYSTEM SET wal_level = 'replica'; and restart it, or set POSTGRES_MODE=dump to have its databases dumped"
                .to_owned(),
        );
    }
    if server.segment_size().is_none() {
        return Err(format!(
            "the server says that its WAL segments have {} bytes, which is no size PostgreSQL allows",
            server.segment_bytes
        ));
    }
    Ok(())
}

fn data_directory(access: &Access, server: &Server) -> Result<PathBuf, ServiceError> {
    if let Some(data) = &access.data_override {
        return Ok(data.clone());
    }
    access
        .local_path(Path::new(&server.data_directory), None)
        .ok_or_else(|| {
            access.error(
                ErrorKind::Setup,
                format!(
                    "the server's data directory {} is not mounted here: mount the same volume or directory into Lifeboat's container (below /data), or set POSTGRES_DATA to where it is",
                    server.data_directory
                ),
            )
        })
}

/// Compares the directory's control file with the server's: the cluster, and the position of the latest
/// checkpoint, which tells a stale copy of the same cluster from the live one.
async fn same_cluster(session: &Session, source: &Source) -> Result<(), ServiceError> {
    let access = &source.access;
    let mut before = source.server.checkpoint;
    let mut local = Lsn(0);
    for _ in 0..COMPARISONS {
        let control = tokio::task::block_in_place(|| source.control())?;
        if control.system_identifier != source.server.system_identifier {
            return Err(access.error(
                ErrorKind::Setup,
                format!(
                    "{} is the data directory of another cluster: it has the system identifier {}, the server has {}. Mount this server's own data directory, or set POSTGRES_DATA or POSTGRES_HOST",
                    source.data.display(),
                    control.system_identifier,
                    source.server.system_identifier
                ),
            ));
        }
        let after = session
            .run("read the server's latest checkpoint", |client| {
                Ok(server::checkpoint(client))
            })
            .await?
            .map_err(|err| probe_error(access, err))?;
        local = control.checkpoint;
        if local == before || local == after {
            return Ok(());
        }
        before = after;
    }
    Err(access.error(
        ErrorKind::Setup,
        format!(
            "{} is a copy of the server's data directory, not the one it uses: its latest checkpoint is at {local}, the server's at {before}. Mount the server's own data directory, or set POSTGRES_DATA",
            source.data.display()
        ),
    ))
}

/// Whether the control file below `data` can be read at all, for messages and checks.
pub fn system_identifier(access: &Access, data: &Path) -> Result<u64, ServiceError> {
    read_control(&access.service, data).map(|control| control.system_identifier)
}

fn probe_error(access: &Access, err: ProbeError) -> ServiceError {
    match err {
        ProbeError::Query(err) => super::session::query_error(
            &access.service,
            "ask the server for its settings",
            err,
        ),
        ProbeError::SettingsHidden { user } => access.error(
            ErrorKind::Denied,
            format!(
                "the role \"{user}\" may not read where the data directory is: run GRANT pg_read_all_settings TO {};",
                server::quote(&user)
            ),
        ),
        ProbeError::Odd(what) => access.error(
            ErrorKind::Damaged,
            format!("the server answered what it should not: {what}"),
        ),
    }
}

/// The sentence for a backup that could not be started.
pub fn start_error(source: &Source, err: postgres::Error) -> ServiceError {
    if err.code() == Some(&postgres::error::SqlState::INSUFFICIENT_PRIVILEGE) {
        let rights = server::Rights {
            start: false,
            stop: false,
            slots: true,
        };
        return source
            .access
            .error(
                ErrorKind::Denied,
                format!(
                    "the role \"{}\" may not begin a backup ({}): run {}",
                    source.server.user,
                    said(&err),
                    server::grants(&source.server.user, source.server.major(), rights)
                ),
            )
            .with_source(err);
    }
    super::session::query_error(&source.access.service, "begin the backup", err)
}
