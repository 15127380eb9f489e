//! Puts a backup back: plan, preflight, apply, and roll back when the stack does not become healthy.
//!
//! Two ways: **swap** (a file-based service is stopped, its data written beside the live directory and
//! swapped in by rename) and **online** (a running server takes it through its API or its files).

pub mod apply;
pub mod plan;
pub mod swap;

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;

use crate::archive::unpack::UnpackOptions;
use crate::repository::manifest::ArchiveRecord;
use crate::repository::reader::ArchiveReader;
use crate::services::{Check, ErrorKind, RunContext, ServiceError};
use crate::stack::ContainerRef;

/// How an archive gets back into its service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// Stopped, unpacked beside the live entries of `root`, swapped by rename.
    Swap { root: PathBuf },
    /// Through the running server, or additively into its files.
    Online,
}

/// One service of the stack, through its restore.
///
/// Order: `preflight` for all, then per service either unpack → `prepare` → swap → start → `settle`, or
/// start → `apply` → `settle`. `finish` for all once the whole stack is healthy, `rollback` for all when not.
///
/// What has a default is what files alone need: they are unpacked, swapped in, and that is all. An adapter that
/// goes online has its own `apply` and `rollback`.
#[async_trait]
pub trait Restore: Send {
    fn name(&self) -> &str;

    fn way(&self) -> Way;

    /// Looks for everything that would make the restore fail or do harm, without changing anything:
    /// versions, keys, space, owners. A bad check stops the restore before anything is touched.
    async fn preflight(&mut self, record: &ArchiveRecord) -> Vec<Check>;

    /// Swap only: how the archive is unpacked.
    fn unpack_options(&self) -> UnpackOptions {
        UnpackOptions::default()
    }

    /// Swap only: completes the staged directory (`recovery.signal`, removed `-wal` files) before it goes live.
    async fn prepare(
        &mut self,
        _staged: &Path,
        _record: &ArchiveRecord,
        _run: &RunContext,
    ) -> Result<(), ServiceError> {
        Ok(())
    }

    /// Online only: brings the archive into the running service, beside what is there where it can.
    async fn apply(
        &mut self,
        _archive: ArchiveReader,
        _record: &ArchiveRecord,
        _run: &RunContext,
    ) -> Result<(), ServiceError> {
        Err(ServiceError::new(
            self.name(),
            ErrorKind::Setup,
            "its files cannot be brought into a running server: they are swapped in while it is stopped",
        ))
    }

    /// Waits until the service is up and equal to the record, and removes what only recovery needed.
    async fn settle(
        &mut self,
        record: &ArchiveRecord,
        run: &RunContext,
    ) -> Result<(), ServiceError>;

    /// Online only: puts back what `apply` replaced. Swap is rolled back by the swap itself.
    async fn rollback(&mut self) -> Result<(), ServiceError> {
        Ok(())
    }

    /// Drops what was kept for a rollback.
    async fn finish(&mut self) -> Result<(), ServiceError> {
        Ok(())
    }
}

/// What a restore needs of the container engine.
#[async_trait]
pub trait Containers: Send + Sync {
    /// Stops a container, by force after `grace`; one that does not run is fine.
    async fn stop(&self, container: &ContainerRef, grace: Duration) -> anyhow::Result<()>;

    /// Starts a container; one that runs is fine.
    async fn start(&self, container: &ContainerRef) -> anyhow::Result<()>;

    /// Waits until its health check passes or, without one, until it runs.
    async fn wait_healthy(&self, container: &ContainerRef, limit: Duration) -> anyhow::Result<()>;
}
