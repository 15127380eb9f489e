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

/// Marks this moment: as a restore point of the server where the role may make one, as a position in any case.
pub async fn mark(config: &Config, stack: &StackService, name: &str) -> Result<Mark, ServiceError> {
    let access = Access::new(config, stack);
    let session = Session::open(&access).await?;
    let server = locate::probe(&session, &access).await?;
    let named = name.to_owned();
    let marked = session
        .run("mark this moment", move |client| {
            let point = client.query_one("SELECT pg_create_restore_point($1)::text", &[&named]);
            match point {
                Err(err) if err.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {}
                Err(err) => return Err(err),
                Ok(row) => {
                    let lsn = Lsn::parse(row.get(0)).map(|lsn| lsn.0);
                    return Ok(guard::look(client)?.zip(lsn));
                }
            }
            let look = guard::look(client)?;
            let insert = client.query_one("SELECT pg_current_wal_insert_lsn()::text", &[])?;
            let lsn = Lsn::parse(insert.get(0)).map(|lsn| lsn.0);
            // What is inserted and not flushed yet would not be fetched.
            client.batch_execute("SELECT txid_current()")?;
            Ok(look.zip(lsn))
        })
        .await;
    session.close().await;
    let (look, lsn) = marked?.ok_or_else(|| {
        access.error(
            ErrorKind::Setup,
            "the server is in recovery: mark the moment on its primary",
        )
    })?;
    Ok(Mark {
        name: name.to_owned(),
        at: Timestamp::now(),
        system: server.system_identifier,
        timeline: look.timeline,
        lsn,
        service: access.service,
    })
}
