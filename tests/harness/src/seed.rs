//! Fills a fresh stack through its services' own interfaces.

use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;

use crate::stack::{Service, Stack};
use crate::state::State;
use crate::{n8n, ollama, postgres, qdrant};

/// How much to put into each service.
#[derive(Args)]
pub struct Sizes {
    /// Rows of about one kilobyte in the Postgres table `harness.documents`
    #[arg(long, default_value_t = 20_000)]
    pub rows: i64,
    /// Qdrant points, three quarters of them in the first collection
    #[arg(long, default_value_t = 2_000)]
    pub points: u64,
    /// Megabytes of the blob that two Ollama models share
    #[arg(long, default_value_t = 8)]
    pub model_mb: usize,
    /// Kilobytes of each file that an n8n execution stores
    #[arg(long, default_value_t = 256)]
    pub binary_kb: usize,
}

/// Seeds the services and returns what later commands need to know.
pub fn run(stack: &Stack, services: &[Service], sizes: &Sizes) -> Result<State> {
    let mut state = State::default();
    for service in services {
        let start = Instant::now();
        match service {
            Service::Postgres => postgres::seed(stack, sizes.rows)?,
            Service::N8n => state.n8n = Some(n8n::seed(stack, sizes.binary_kb << 10)?),
            Service::Qdrant => state.images = Some(qdrant::seed(stack, sizes.points)?),
            Service::Ollama => ollama::seed(stack, sizes.model_mb)?,
        }
        println!("seeded {service} in {:.1} s", start.elapsed().as_secs_f64());
    }
    state
        .snapshot
        .refresh(stack, services)
        .context("record what the services hold after seeding")?;
    Ok(state)
}
