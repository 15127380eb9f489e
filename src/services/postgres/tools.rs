//! The server's own tools, where they fit the server: `pg_dump`, `pg_dumpall`, `pg_restore` and `psql`.
//!
//! In a container the engine runs them inside it, so they always are of the server's version; else they are
//! programs of this machine. Data goes through their standard input and output in pieces. The password goes
//! through the environment alone, and databases are named by quoted connection strings, because a bare name
//! with `=` in it would be read as one ("Connection Strings" in the manual).

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use super::access::Access;
use crate::config::{Config, Secret};
use crate::services::{ErrorKind, ServiceError};
use crate::stack::engine::{Ended, Engine, Exec, Input, Output, keep_end};

/// How much of a tool's complaints is kept.
const COMPLAINT_BYTES: usize = 8 << 10;
const PIECE_BYTES: usize = 64 * 1024;
/// Where packages put the tools, by major version.
const PACKAGED: [&str; 3] = ["/usr/lib/postgresql", "/usr/pgsql-", "/opt/postgresql"];

/// Tools that connect to one server.
#[derive(Debug, Clone)]
pub struct Tools {
    service: String,
    place: Place,
    connection: Connection,
    /// What their sessions are called in the server.
    pub application: String,
}

/// Where the tools are.
#[derive(Debug, Clone)]
pub enum Place {
    Container { engine: Engine, id: String },
    Local { bin: PathBuf },
}

/// How the tools reach the server.
#[derive(Debug, Clone)]
pub struct Connection {
    /// Names, addresses or a directory of sockets, as libpq takes them.
    pub host: String,
    pub port: u16,
    pub user: String,
    pub password: Option<Secret>,
}

/// One call of a tool.
#[derive(Debug, Clone)]
pub struct Call {
    program: &'static str,
    arguments: Vec<String>,
    /// Completes "cannot …".
    doing: String,
}

impl Call {
    pub fn new(program: &'static str, doing: impl Into<String>) -> Self {
        Self {
            program,
            arguments: Vec::new(),
            doing: doing.into(),
        }
    }

    #[must_use]
    pub fn arg(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    #[must_use]
    pub fn args<S: Into<String>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    #[must_use]
    pub fn database(self, name: &str) -> Self {
        let argument = connection_string(name);
        self.arg("--dbname").arg(argument)
    }
}

impl Tools {
    /// The tools of a server, whose sessions are told by the run's id.
    pub async fn of(
        config: &Config,
        access: &Access,
        major: u32,
        run_id: &str,
    ) -> Result<Self, ServiceError> {
        let setup = |why: String| access.error(ErrorKind::Setup, why);
        let engine = match &access.stack().container {
            Some(_) => Engine::from_config(config)
                .await
                .map_err(|err| setup(err.to_string()))?,
            None => None,
        };
        let container = access.stack().container.as_ref();
        let (place, host) = match (engine, container) {
            (Some(engine), Some(container)) if config.postgres.bin.is_none() => {
                let id = container.id.clone();
                (Place::Container { engine, id }, "127.0.0.1".to_owned())
            }
            _ => {
                let bin = find(config, "pg_dump", major).map_err(setup)?;
                (Place::Local { bin }, access.hosts.join(","))
            }
        };
        Ok(Self {
            service: access.service.clone(),
            place,
            connection: Connection {
                host,
                port: access.port,
                user: access.user.clone(),
                password: access.password().cloned(),
            },
            application: application(run_id),
        })
    }

    pub fn at(service: &str, place: Place, connection: Connection, run_id: &str) -> Self {
        Self {
            service: service.to_owned(),
            place,
            connection,
            application: application(run_id),
        }
    }

    pub const fn place(&self) -> &Place {
        &self.place
    }

    /// Runs a tool to its end. Anything but success is an error in the tool's own words.
    pub async fn run(
        &self,
        call: &Call,
        input: Option<Input<'_>>,
        output: Output<'_>,
    ) -> Result<(), ServiceError> {
        let ended = match &self.place {
            Place::Container { engine, id } => {
                let command = std::iter::once(call.program.to_owned());
                let mut exec = Exec::new(command.chain(call.arguments.iter().cloned()));
                exec.environment = self.environment();
                exec.keep_bytes = COMPLAINT_BYTES;
                let ended = engine.exec_streaming(id, exec, input, output).await;
                ended.map_err(|err| {
                    let kind = if err.is_transient() {
                        ErrorKind::Unreachable
                    } else {
                        ErrorKind::Setup
                    };
                    self.failed(kind, call, &err.to_string())
                })?
            }
            Place::Local { bin } => self
                .run_here(bin, call, input, output)
                .await
                .map_err(|err| self.failed(ErrorKind::Io, call, &err.to_string()))?,
        };
        match ended.exit_code {
            0 => Ok(()),
            code => {
                let said = String::from_utf8_lossy(&ended.stderr);
                let words = said.split_whitespace().collect::<Vec<_>>().join(" ");
                let why = if words.is_empty() {
                    format!("{} ended with code {code}", call.program)
                } else {
                    format!("{} ended with code {code}: {words}", call.program)
                };
                Err(self.failed(ErrorKind::Setup, call, &why))
            }
        }
    }

    /// Runs SQL by `psql`; what it prints, unaligned.
    pub async fn sql(
        &self,
        database: &str,
        doing: &str,
        sql: &str,
    ) -> Result<String, ServiceError> {
        let call = Call::new("psql", doing)
            .args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-f", "-"])
            .database(database);
        let mut printed = Vec::new();
        let mut text = sql.as_bytes();
        self.run(&call, Some(&mut text), &mut printed).await?;
        Ok(String::from_utf8_lossy(&printed).trim_end().to_owned())
    }

    fn environment(&self) -> Vec<(String, Secret)> {
        let connection = &self.connection;
        let mut variables = vec![
            ("PGHOST", connection.host.clone()),
            ("PGPORT", connection.port.to_string()),
            ("PGUSER", connection.user.clone()),
            ("PGAPPNAME", self.application.clone()),
            ("PGCONNECT_TIMEOUT", "20".to_owned()),
            // Errors are quoted in sentences.
            ("LC_MESSAGES", "C".to_owned()),
        ];
        let password = connection.password.as_ref();
        variables.extend(password.map(|secret| ("PGPASSWORD", secret.reveal().to_owned())));
        variables
            .into_iter()
            .map(|(name, value)| (name.to_owned(), Secret::new(value)))
            .collect()
    }

    async fn run_here(
        &self,
        bin: &Path,
        call: &Call,
        mut input: Option<Input<'_>>,
        output: Output<'_>,
    ) -> std::io::Result<Ended> {
        let mut command = Command::new(bin.join(call.program));
        command
            .args(&call.arguments)
            .envs(self.environment().iter().map(|(k, v)| (k, v.reveal())))
            .env_remove("PGDATABASE")
            .env_remove("PGSERVICE")
            .env_remove("PGOPTIONS")
            .stdin(if input.is_some() {
                Stdio::piped()
            } else {
                Stdio::null()
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn()?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (mut stdin, Some(mut stdout), Some(mut stderr)) = pipes else {
            return Err(std::io::Error::other("a pipe is missing"));
        };
        let feed = async {
            if let (Some(input), Some(stdin)) = (&mut input, &mut stdin) {
                let mut piece = vec![0; PIECE_BYTES];
                loop {
                    let got = input.read(&mut piece).await?;
                    let Some(bytes) = piece.get(..got).filter(|bytes| !bytes.is_empty()) else {
                        break;
                    };
                    // A tool that ends without reading all of it has its own exit code to tell.
                    if stdin.write_all(bytes).await.is_err() {
                        break;
                    }
                }
            }
            drop(stdin.take());
            Ok::<_, std::io::Error>(())
        };
        let take = async { tokio::io::copy(&mut stdout, output).await.map(drop) };
        let complain = async {
            let (mut kept, mut piece) = (Vec::new(), vec![0; 4096]);
            loop {
                let got = stderr.read(&mut piece).await?;
                match piece.get(..got).filter(|bytes| !bytes.is_empty()) {
                    Some(bytes) => keep_end(&mut kept, bytes, COMPLAINT_BYTES),
                    None => return Ok::<_, std::io::Error>(kept),
                }
            }
        };
        let ((), (), stderr) = tokio::try_join!(feed, take, complain)?;
        let status = child.wait().await?;
        Ok(Ended {
            exit_code: i64::from(status.code().unwrap_or(-1)),
            stderr,
        })
    }

    fn failed(&self, kind: ErrorKind, call: &Call, why: &str) -> ServiceError {
        ServiceError::new(&self.service, kind, format!("cannot {}: {why}", call.doing))
    }
}

/// The directory of this machine that has a tool for servers of this major version, else for the newest.
pub fn find(config: &Config, program: &str, major: u32) -> Result<PathBuf, String> {
    let has = |bin: &PathBuf| bin.join(program).is_file();
    if let Some(bin) = &config.postgres.bin {
        return if has(bin) {
            Ok(bin.clone())
        } else {
            Err(format!(
                "POSTGRES_BIN is {}, and there is no {program}: correct it",
                bin.display()
            ))
        };
    }
    find_anywhere(program, major)
}

/// As [`find`], whatever `POSTGRES_BIN` says: a server's own directory may be without the client tools.
pub fn find_anywhere(program: &str, major: u32) -> Result<PathBuf, String> {
    let has = |bin: &PathBuf| bin.join(program).is_file();
    let of = |major: u32| {
        [
            format!("{}/{major}/bin", PACKAGED[0]),
            format!("{}{major}/bin", PACKAGED[1]),
            format!("{}/{major}/bin", PACKAGED[2]),
        ]
    };
    let newest_first = (13..=major.max(30)).rev().filter(|other| *other != major);
    let packaged = std::iter::once(major)
        .chain(newest_first)
        .flat_map(of)
        .map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    packaged
        .chain(std::env::split_paths(&path))
        .find(has)
        .ok_or_else(|| {
            format!(
                "{program} is not on this machine: install PostgreSQL {major}'s client tools, name their directory with POSTGRES_BIN, or give Lifeboat the Docker API, so that the server's own are used"
            )
        })
}

/// Names a database so that none of its characters mean anything.
fn connection_string(database: &str) -> String {
    let quoted = database.replace('\\', r"\\").replace('\'', r"\'");
    format!("dbname='{quoted}'")
}

/// Names are cut by the server after 63 bytes.
fn application(run_id: &str) -> String {
    format!("lifeboat {run_id}").chars().take(63).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_databases_are_names_only() {
        assert_eq!(connection_string("app"), "dbname='app'");
        assert_eq!(
            connection_string(r"host=evil o'c\x"),
            r"dbname='host=evil o\'c\\x'"
        );
    }
}
