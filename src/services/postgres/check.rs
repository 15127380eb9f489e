//! What `doctor` says of a server: each line good, or a sentence with what to do.

use super::access::Access;
use super::backup::{CopyError, Source};
use super::locate;
use super::server::{self, SUPPORTED, Server};
use super::session::Session;
use super::tree::{Entry, TreeError};
use crate::services::{Check, ErrorKind, ServiceError};

/// Looks at everything a backup will need, and changes nothing.
pub async fn check(access: &Access) -> Vec<Check> {
    let mut checks = Checks {
        name: access.service.clone(),
        lines: Vec::new(),
    };
    let session = match Session::open(access).await {
        Ok(session) => session,
        Err(err) => {
            checks.bad("connection", err.message);
            return checks.lines;
        }
    };
    match locate::probe(&session, access).await {
        Ok(server) => look(&mut checks, &session, access, server).await,
        Err(err) => checks.bad("rights", err.message),
    }
    session.close().await;
    checks.lines
}

struct Checks {
    name: String,
    lines: Vec<Check>,
}

impl Checks {
    fn good(&mut self, what: &str, found: impl Into<String>) {
        self.lines
            .push(Check::good(format!("{}: {what}", self.name), found));
    }

    fn bad(&mut self, what: &str, sentence: impl Into<String>) {
        self.lines
            .push(Check::bad(format!("{}: {what}", self.name), sentence));
    }
}

async fn look(checks: &mut Checks, session: &Session, access: &Access, server: Server) {
    checks.good(
        "connection",
        format!("PostgreSQL {} as user \"{}\"", server.version, server.user),
    );
    match locate::refusal(&server) {
        Ok(()) => checks.good(
            "server",
            format!("a primary with wal_level = {}", server.wal_level),
        ),
        Err(sentence) => checks.bad("server", sentence),
    }
    if SUPPORTED.contains(&server.major()) {
        look_at_rights(checks, session, &server).await;
    }
    match locate::source(session, access, server).await {
        Ok(source) => {
            let read = tokio::task::block_in_place(|| look_at_files(&source));
            match read {
                Ok(found) => checks.good("data directory", found),
                Err(err) => checks.bad("data directory", err.message),
            }
        }
        Err(err) => checks.bad("data directory", err.message),
    }
}

async fn look_at_rights(checks: &mut Checks, session: &Session, server: &Server) {
    let major = server.major();
    let rights = session
        .run("ask for the role's rights", move |client| {
            server::rights(client, major)
        })
        .await;
    match rights {
        Ok(rights) if rights.start && rights.stop && rights.slots => {
            checks.good("rights", "backup functions and replication slots");
        }
        Ok(rights) => checks.bad(
            "rights",
            format!(
                "the role \"{}\" lacks rights for a backup: run {}",
                server.user,
                server::grants(&server.user, major, rights)
            ),
        ),
        Err(err) => checks.bad("rights", err.message),
    }
}

/// Walks the whole tree, which follows every tablespace, and opens each directory's first file.
fn look_at_files(source: &Source) -> Result<String, ServiceError> {
    let (mut files, mut opened_in) = (0_u64, None);
    source
        .walk::<CopyError>(&mut |entry| {
            if let Entry::File { path, shown, .. } = entry {
                files += 1;
                let parent = shown.parent().map(std::path::Path::to_path_buf);
                if opened_in != parent {
                    opened_in = parent;
                    open(&path, &shown)?;
                }
            }
            Ok(())
        })
        .map_err(|err| source.copy_error(err))?;
    let wal = source.wal_directory()?;
    std::fs::read_dir(&wal).map_err(|err| {
        source.access.error(
            ErrorKind::Io,
            format!("cannot read {}: {err}", wal.display()),
        )
    })?;
    Ok(format!(
        "{} ({files} files; the server calls it {})",
        source.data.display(),
        source.server.data_directory
    ))
}

fn open(path: &std::path::Path, shown: &std::path::Path) -> Result<(), TreeError> {
    match std::fs::File::open(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(TreeError::Read {
            path: shown.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}
