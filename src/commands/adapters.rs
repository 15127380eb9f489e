//! From the stack's services to their adapters: the one place that knows them all.

use crate::config::{Config, PostgresMode};
use crate::repository::manifest::ArchiveRecord;
use crate::restore::Restore;
use crate::services::postgres::pitr::Replay;
use crate::services::{
    Service, ServiceError, ServiceKind, n8n, ollama, postgres, project, qdrant, volume,
};
use crate::stack::StackService;

/// The adapter that backs a service up.
pub fn service(config: &Config, found: &StackService) -> Result<Box<dyn Service>, ServiceError> {
    Ok(match found.kind {
        ServiceKind::Postgres => match config.postgres.mode {
            PostgresMode::Physical => Box::new(postgres::Postgres::new(config, found)?),
            PostgresMode::Dump => Box::new(postgres::PostgresDump::new(config, found)?),
            PostgresMode::Both => Box::new(postgres::PostgresBoth::new(config, found)?),
        },
        ServiceKind::Qdrant => Box::new(qdrant::Qdrant::new(config, found)?),
        ServiceKind::Ollama => Box::new(ollama::Ollama::new(config, found)?),
        ServiceKind::N8n => Box::new(n8n::N8n::new(config, found)?),
        ServiceKind::Volume => Box::new(volume::Volume::new(config, found)?),
        ServiceKind::Project => Box::new(project::Project::new(config, found)?),
    })
}

/// The adapter that restores an archive into it.
pub fn restore(
    config: &Config,
    found: &StackService,
    record: &ArchiveRecord,
    replay: Option<&Replay>,
    keep_old: bool,
) -> Result<Box<dyn Restore>, ServiceError> {
    Ok(match found.kind {
        ServiceKind::Postgres if postgres::restores_dumps(config, &record.report) => {
            Box::new(postgres::PostgresDumpRestore::new(config, found, keep_old)?)
        }
        ServiceKind::Postgres => {
            let adapter = postgres::PostgresRestore::new(config, found)?;
            Box::new(adapter.with_replay(replay.cloned()))
        }
        ServiceKind::Qdrant if qdrant::is_storage(&record.report) => {
            Box::new(qdrant::QdrantStorageRestore::new(config, found)?)
        }
        ServiceKind::Qdrant => Box::new(qdrant::QdrantRestore::new(config, found)?),
        ServiceKind::Ollama => Box::new(ollama::OllamaRestore::new(config, found)?),
        ServiceKind::N8n => Box::new(n8n::N8nRestore::new(config, found)?),
        ServiceKind::Volume => Box::new(volume::VolumeRestore::new(config, found)?),
        ServiceKind::Project => Box::new(project::ProjectRestore::new(config, found)?),
    })
}
