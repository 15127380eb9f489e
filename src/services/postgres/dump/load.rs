//! Dumps out of an archive and into a server.

use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::super::tools::{Call, Tools};
use super::facts::{self, Dumped, Globals};
use super::stream::PIPE_BYTES;
use crate::archive::unpack::Members;
use crate::services::support::hex;
use crate::services::{ErrorKind, ServiceError};

/// Roles and tablespaces of a cluster are no more than this.
const MAX_GLOBALS_BYTES: u64 = 64 << 20;

/// The dumps of one archive, read once from its beginning to its end.
pub struct Dumps<R: AsyncRead + Unpin> {
    service: String,
    members: Members<R>,
}

impl<R: AsyncRead + Unpin + Send> Dumps<R> {
    pub fn new(service: &str, archive: R) -> Result<Self, ServiceError> {
        let members = Members::new(archive).map_err(|err| unreadable(service, &err))?;
        Ok(Self {
            service: service.to_owned(),
            members,
        })
    }

    /// The SQL that makes roles and tablespaces.
    pub async fn globals(&mut self, globals: &Globals) -> Result<String, ServiceError> {
        let service = self.service.clone();
        let mut bytes = Vec::new();
        let body = self.next(&globals.member).await?;
        body.take(MAX_GLOBALS_BYTES)
            .read_to_end(&mut bytes)
            .await
            .map_err(|err| unreadable(&service, &err))?;
        let found = hex(&Sha256::digest(&bytes));
        if found != globals.sha256 {
            return Err(differs(&service, &globals.member));
        }
        String::from_utf8(bytes).map_err(|_| differs(&service, &globals.member))
    }

    /// Loads one database's dump into a database that is there and empty.
    ///
    /// The bytes are those that were backed up, to the last one, or this is an error.
    pub async fn load(
        &mut self,
        dumped: &Dumped,
        tools: &Tools,
        target: &str,
        arguments: &[&str],
    ) -> Result<(), ServiceError> {
        let service = self.service.clone();
        let (mut to, mut from) = tokio::io::duplex(PIPE_BYTES);
        let arguments = [&[WHOLE], arguments].concat();
        let call = load_call(&dumped.database.name, target, &arguments);
        let feeding = async {
            self.feed(dumped, &mut to).await?;
            let ended = to.shutdown().await;
            ended.map_err(|err| unreadable(&service, &err))
        };
        let loading = async {
            let mut nothing = tokio::io::sink();
            tools.run(&call, Some(&mut from), &mut nothing).await?;
            // What it leaves unread is summed up as well.
            let mut rest = tokio::io::sink();
            let read = tokio::io::copy(&mut from, &mut rest).await;
            read.map(drop).map_err(|err| unreadable(&service, &err))
        };
        tokio::try_join!(loading, feeding).map(drop)
    }

    async fn feed(&mut self, dumped: &Dumped, to: &mut DuplexStream) -> Result<(), ServiceError> {
        let service = self.service.clone();
        let failed = |err: &std::io::Error| unreadable(&service, err);
        let (mut sha256, mut bytes) = (Sha256::new(), 0_u64);
        let mut piece = vec![0; PIPE_BYTES];
        for number in 0..dumped.parts {
            let body = self.next(&facts::part(&dumped.member, number)).await?;
            loop {
                let got = body.read(&mut piece).await.map_err(|err| failed(&err))?;
                let Some(read) = piece.get(..got).filter(|read| !read.is_empty()) else {
                    break;
                };
                sha256.update(read);
                bytes += got as u64;
                to.write_all(read).await.map_err(|err| failed(&err))?;
            }
        }
        if bytes != dumped.bytes || hex(&sha256.finalize()) != dumped.sha256 {
            return Err(differs(&service, &dumped.member));
        }
        Ok(())
    }

    /// Moves on to a member, over those before it.
    async fn next(
        &mut self,
        wanted: &str,
    ) -> Result<&mut (impl AsyncRead + Unpin + use<R>), ServiceError> {
        let service = self.service.clone();
        loop {
            // Asked for anew in each round: what is given away is given away for good.
            let found = match self.members.next().await {
                Ok(Some(entry)) => {
                    entry
                        .path_bytes()
                        .map_err(|err| unreadable(&service, &err))?
                        .as_ref()
                        == wanted.as_bytes()
                }
                Ok(None) => {
                    return Err(ServiceError::new(
                        service,
                        ErrorKind::Damaged,
                        format!("the archive lacks {wanted}: the backup is damaged"),
                    ));
                }
                Err(err) => return Err(unreadable(&service, &err)),
            };
            if found {
                break;
            }
        }
        self.members.current().ok_or_else(|| {
            let message = format!("the archive lacks {wanted}: the backup is damaged");
            ServiceError::new(&self.service, ErrorKind::Damaged, message)
        })
    }
}

/// The call that loads a dump. With [`WHOLE`] among its arguments the first error ends it.
pub fn load_call(database: &str, target: &str, arguments: &[&str]) -> Call {
    Call::new("pg_restore", format!("restore database \"{database}\""))
        .args(["--format=custom", "--no-password"])
        .args(arguments.iter().copied())
        .database(target)
}

/// Everything, or an error.
pub const WHOLE: &str = "--exit-on-error";

fn unreadable(service: &str, err: &std::io::Error) -> ServiceError {
    let message = format!("cannot read the archive: {err}");
    ServiceError::new(service, ErrorKind::Io, message)
}

fn differs(service: &str, member: &str) -> ServiceError {
    ServiceError::new(
        service,
        ErrorKind::Damaged,
        format!(
            "{member} is not what was backed up: the backup is damaged; no live database was changed. `verify` says what else is"
        ),
    )
}
