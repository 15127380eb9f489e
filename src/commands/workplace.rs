//! What every command that touches the stack begins with: the lock, a clean journal, the stack.

use std::sync::Arc;

use anyhow::Context as _;

use super::Context;
use super::record::Record;
use crate::services::RunContext;
use crate::stack::Stack;
use crate::stack::engine::Engine;
use crate::stack::journal::Journal;
use crate::stack::lock::RunLock;
use crate::stack::{discover, undo};

/// Takes the lock of the state directory: one run at a time.
pub async fn lock(context: &Context, command: &str) -> anyhow::Result<RunLock> {
    let config = &context.config;
    crate::durable::create_dir_all(&config.state, 0o700).with_context(|| {
        format!(
            "create the state directory {} (LIFEBOAT_STATE)",
            config.state.display()
        )
    })?;
    let lock = RunLock::acquire(&config.state, command, config.lock_timeout, |holder| {
        if let Some(holder) = holder {
            tracing::info!(
                "waiting for {} (process {}, since {})",
                holder.command,
                holder.pid,
                holder.since
            );
        }
    });
    tokio::select! {
        lock = lock => Ok(lock?),
        () = context.stop.cancelled() => anyhow::bail!("stopped while waiting for another run"),
    }
}

/// The stack, for those who change nothing in it and take no lock.
pub struct Sight {
    pub stack: Stack,
}

impl Sight {
    pub async fn look(context: &Context) -> anyhow::Result<Self> {
        let engine = Engine::from_config(&context.config).await?;
        let stack = discover::discover(&context.config, engine.as_ref()).await?;
        Ok(Self { stack })
    }
}

/// The right to work on the stack, and the stack.
pub struct Workplace {
    pub engine: Option<Engine>,
    pub stack: Stack,
    pub journal: Arc<Journal>,
    _lock: RunLock,
}

impl Workplace {
    /// Takes the lock, finds the stack and undoes what a run that died left behind.
    pub async fn enter(context: &Context, command: &str) -> anyhow::Result<Self> {
        let (place, ()) = Self::enter_beside(context, command, || Ok(())).await?;
        Ok(place)
    }

    /// The same, and does other `work` under the lock meanwhile.
    pub async fn enter_beside<T: Send + 'static>(
        context: &Context,
        command: &str,
        work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<(Self, T)> {
        let lock = lock(context, command).await?;
        // Nobody else runs now: a backup that is noted as running was killed.
        Record::note_killed(&context.config.state);
        let working = tokio::task::spawn_blocking(work);
        let place = Self::with(context, lock).await;
        // It is waited for in any case: what it does is done under the lock.
        let worked = working
            .await
            .context("a thread of the start ended unexpectedly");
        Ok((place?, worked??))
    }

    async fn with(context: &Context, lock: RunLock) -> anyhow::Result<Self> {
        let config = &context.config;
        let journal = Arc::new(Journal::open(&config.state).context("open the journal")?);
        let engine = Engine::from_config(config).await?;
        let stack = discover::discover(config, engine.as_ref()).await?;
        for warning in &stack.warnings {
            tracing::warn!("{warning}");
        }
        if let Some(why) = &stack.without_engine {
            tracing::info!("{why}");
        }
        let undone = undo::undo_all(config, &journal, engine.as_ref(), &stack).await?;
        anyhow::ensure!(
            undone.open_data.is_empty(),
            "an interrupted restore could not be undone yet, so nothing was begun: {}",
            undone.open_data.join("; ")
        );
        Ok(Self {
            engine,
            stack,
            journal,
            _lock: lock,
        })
    }

    /// What adapters share in a run. Scratch files of earlier runs are gone.
    pub fn run(&self, config: &crate::config::Config, id: &str) -> anyhow::Result<RunContext> {
        let scratch = config.state.join("scratch");
        match std::fs::remove_dir_all(&scratch) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).context("empty the scratch directory");
            }
            _ => {}
        }
        crate::durable::create_dir_all(&scratch, 0o700).context("create the scratch directory")?;
        Ok(RunContext {
            run_id: id.to_owned(),
            journal: Arc::clone(&self.journal),
            scratch,
        })
    }
}
