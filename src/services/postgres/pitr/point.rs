//! A named point in the WAL.

use jiff::Timestamp;
use postgres::error::SqlState;

use super::guard;
use crate::config::Config;
use crate::repository::wal::Mark;
use crate::services::postgres::access::Access;
use crate::services::postgres::locate;
use crate::services::postgres::session::Session;
use crate::services::postgres::wal::Lsn;
use crate::services::{ErrorKind, ServiceError};
use crate::stack::StackService;

/// Brings all that was written onto the server's disk, and so into what is fetched: neither a restore point nor
/// what is before a position of insertion is there by itself. A commit waits for it, whatever the server's
/// settings are, when it has written something of its own.
const FLUSH: &str = "BEGIN READ WRITE; SET LOCAL synchronous_commit = local; \
     SELECT pg_logical_emit_message(true, 'lifeboat', 'mark'); COMMIT";

/// Marks this moment: as a restore point of the server where the role may make one, as a position in any case.
pub async fn mark(config: &Config, stack: &StackService, name: &str) -> Result<Mark, ServiceError> {
    let access = Access::new(config, stack);
    let session = Session::open(&access).await?;
    let server = locate::probe(&session, &access).await?;
    let in_recovery = || {
        access.error(
            ErrorKind::Setup,
            "the server is in recovery: mark the moment on its primary",
        )
    };
    if server.in_recovery {
        session.close().await;
        return Err(in_recovery());
    }
    let named = name.to_owned();
    let marked = session
        .run("mark this moment", move |client| {
            let point = client.query_one("SELECT pg_create_restore_point($1)::text", &[&named]);
            let lsn = match point {
                Err(err) if err.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                    client.query_one("SELECT pg_current_wal_insert_lsn()::text", &[])?
                }
                other => other?,
            };
            let lsn = Lsn::parse(lsn.get(0)).map(|lsn| lsn.0);
            client.batch_execute(FLUSH)?;
            Ok(guard::look(client)?.zip(lsn))
        })
        .await;
    session.close().await;
    let (look, lsn) = marked?.ok_or_else(in_recovery)?;
    Ok(Mark {
        name: name.to_owned(),
        at: Timestamp::now(),
        system: server.system_identifier,
        timeline: look.timeline,
        lsn,
        service: access.service,
    })
}
