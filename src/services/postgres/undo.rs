//! Undoes what an interrupted run left in a server or beside it.

use super::access::Access;
use super::{databases, throwaway};
use crate::config::Config;
use crate::services::ServiceError;
use crate::stack::StackService;
use crate::stack::engine::Engine;
use crate::stack::journal::{Obligation, PostgresSwitch};

/// Ends the sessions of tools that outlived their run.
pub async fn undo_sessions(
    config: &Config,
    service: &StackService,
    application: &str,
) -> Result<(), ServiceError> {
    let session = databases::control(&Access::new(config, service)).await?;
    let ended = databases::end_tools(&session, application).await;
    session.close().await;
    ended
}

/// Drops a database that was being made.
pub async fn undo_database(
    config: &Config,
    service: &StackService,
    name: &str,
) -> Result<(), ServiceError> {
    let session = databases::control(&Access::new(config, service)).await?;
    let dropped = databases::drop_own(&session, name).await;
    session.close().await;
    dropped
}

/// Puts replaced databases back or, when the restore was complete, drops them.
pub async fn undo_switched(
    config: &Config,
    service: &StackService,
    switches: &[PostgresSwitch],
    keep_old: bool,
    is_committed: bool,
) -> Result<(), ServiceError> {
    let session = databases::control(&Access::new(config, service)).await?;
    let done = if is_committed {
        databases::discard_old(&session, switches, keep_old).await
    } else {
        databases::put_back(&session, switches).await
    };
    session.close().await;
    done
}

/// Drops roles and tablespaces that a restore made.
pub async fn undo_globals(
    config: &Config,
    service: &StackService,
    roles: &[String],
    tablespaces: &[String],
) -> Result<(), ServiceError> {
    let session = databases::control(&Access::new(config, service)).await?;
    let dropped = databases::drop_globals(&session, roles.to_vec(), tablespaces.to_vec()).await;
    session.close().await;
    dropped
}

/// Ends a server on unpacked data and removes it.
pub async fn undo_throwaway(
    engine: Option<&Engine>,
    directory: &std::path::Path,
    container: Option<&str>,
) -> Result<(), String> {
    throwaway::remove(engine, directory, container).await
}

/// The service that an obligation is about, when it is one of a PostgreSQL server's.
pub fn service_of(obligation: &Obligation) -> Option<&str> {
    match obligation {
        Obligation::PostgresSessions { service, .. }
        | Obligation::PostgresDatabase { service, .. }
        | Obligation::PostgresSwitched { service, .. }
        | Obligation::PostgresGlobals { service, .. } => Some(service),
        _ => None,
    }
}

/// What an obligation is about, for sentences.
pub fn what(obligation: &Obligation) -> String {
    match obligation {
        Obligation::PostgresSessions { .. } => "the sessions of pg_dump and pg_restore".to_owned(),
        Obligation::PostgresDatabase { database, .. } => {
            format!("the half restored database {database}")
        }
        Obligation::PostgresSwitched { databases, .. } => {
            let names: Vec<&str> = databases.iter().map(|s| s.live.as_str()).collect();
            format!("what a restore replaced: {}", names.join(", "))
        }
        Obligation::PostgresGlobals { roles, .. } => {
            format!("the roles that a restore made: {}", roles.join(", "))
        }
        Obligation::PostgresThrowaway { directory, .. } => {
            format!("the temporary server in {}", directory.display())
        }
        _ => String::new(),
    }
}

/// Undoes one obligation of a PostgreSQL server's; what was done, as a sentence.
pub async fn undo(
    config: &Config,
    service: &StackService,
    obligation: &Obligation,
    is_committed: bool,
) -> Result<String, ServiceError> {
    let what = what(obligation);
    match obligation {
        Obligation::PostgresSessions { application, .. } => {
            undo_sessions(config, service, application).await?;
            Ok(format!("ended {what}"))
        }
        Obligation::PostgresDatabase { database, .. } => {
            undo_database(config, service, database).await?;
            Ok(format!("dropped {what}"))
        }
        Obligation::PostgresSwitched {
            databases,
            keep_old,
            ..
        } => {
            undo_switched(config, service, databases, *keep_old, is_committed).await?;
            Ok(if is_committed {
                format!(
                    "ended the restore of {}: the new databases stay",
                    service.name
                )
            } else {
                format!("put back {what}")
            })
        }
        Obligation::PostgresGlobals { .. } if is_committed => Ok(format!("kept {what}")),
        Obligation::PostgresGlobals {
            roles, tablespaces, ..
        } => {
            undo_globals(config, service, roles, tablespaces).await?;
            Ok(format!("dropped {what}"))
        }
        _ => Ok(what),
    }
}
