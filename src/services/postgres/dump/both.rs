//! Data directory and dumps in one archive: `POSTGRES_MODE=both`.
//!
//! The dumps lie in [`facts::BESIDE`] beside the files, and are left out when the files are restored.

use async_trait::async_trait;

use super::PostgresDump;
use super::facts;
use crate::archive::ArchiveWriter;
use crate::config::{Config, PostgresMode};
use crate::services::postgres::Postgres;
use crate::services::{
    Check, PointInTime, RunContext, Service, ServiceError, ServiceKind, ServiceReport,
};
use crate::stack::StackService;

/// One PostgreSQL server, through a physical backup and its dumps.
pub struct PostgresBoth {
    physical: Postgres,
    dumps: PostgresDump,
}

impl PostgresBoth {
    pub fn new(config: &Config, stack: &StackService) -> Result<Self, ServiceError> {
        debug_assert_eq!(config.postgres.mode, PostgresMode::Both);
        Ok(Self {
            physical: Postgres::new(config, stack)?,
            dumps: PostgresDump::beside_files(config, stack)?,
        })
    }
}

#[async_trait]
impl Service for PostgresBoth {
    fn kind(&self) -> ServiceKind {
        ServiceKind::Postgres
    }

    fn name(&self) -> &str {
        self.physical.name()
    }

    async fn check(&self) -> Vec<Check> {
        let mut checks = self.physical.check().await;
        for check in self.dumps.check().await {
            if !checks.iter().any(|other| other.subject == check.subject) {
                checks.push(check);
            }
        }
        checks
    }

    async fn estimate(&self) -> u64 {
        self.physical
            .estimate()
            .await
            .saturating_add(self.dumps.estimate().await)
    }

    async fn hold(&mut self, run: &RunContext) -> Result<(), ServiceError> {
        self.dumps.hold(run).await?;
        self.physical.hold(run).await
    }

    async fn copy(&mut self, archive: &mut ArchiveWriter) -> Result<(), ServiceError> {
        self.physical.copy(archive).await
    }

    /// The dumps show the same moment, give or take the milliseconds between.
    async fn freeze(&mut self) -> Result<PointInTime, ServiceError> {
        self.dumps.freeze().await?;
        self.physical.freeze().await
    }

    async fn drain(&mut self, archive: &mut ArchiveWriter) -> Result<ServiceReport, ServiceError> {
        let mut report = self.physical.drain(archive).await?;
        let dumped = self.dumps.drain(archive).await?;
        if let (Some(all), Some(dumps)) = (
            report.facts.as_object_mut(),
            dumped.facts.get(facts::KEY).cloned(),
        ) {
            all.insert(facts::KEY.to_owned(), dumps);
        }
        report.warnings.extend(dumped.warnings);
        Ok(report)
    }

    async fn release(&mut self) -> Result<(), ServiceError> {
        let physical = self.physical.release().await;
        self.dumps.release().await?;
        physical
    }
}
