//! The writer: keeps writing to every service and records what each has acknowledged.

use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use jiff::Timestamp;
use serde::Serialize;

use crate::ledger::{Ledger, Record, Write};
use crate::n8n::N8n;
use crate::ollama::Ollama;
use crate::qdrant::{DOCS, OVERWRITTEN, Qdrant};
use crate::stack::{Service, Stack};
use crate::{postgres, qdrant};

/// Pauses between one service's writes.
#[derive(Args)]
pub struct Pauses {
    /// Milliseconds between Postgres transfers
    #[arg(long, default_value_t = 10)]
    pub postgres_ms: u64,
    /// Milliseconds between n8n executions, of which each tenth stores a file
    #[arg(long, default_value_t = 250)]
    pub n8n_ms: u64,
    /// Milliseconds between Qdrant upserts
    #[arg(long, default_value_t = 50)]
    pub qdrant_ms: u64,
    /// Milliseconds between Ollama models, copied and created in turn
    #[arg(long, default_value_t = 2_000)]
    pub ollama_ms: u64,
}

/// What one service's writes came to.
#[derive(Serialize)]
pub struct Outcome {
    pub service: Service,
    pub acknowledged: u64,
    pub failures: Vec<Failure>,
    pub longest_ms: u64,
}

#[derive(Serialize)]
pub struct Failure {
    pub at: Timestamp,
    pub error: String,
}

/// Writes to each service from a thread of its own until the file `stop` exists.
pub fn run(
    stack: &Stack,
    services: &[Service],
    pauses: &Pauses,
    ledger: &Path,
    stop: &Path,
) -> Result<Vec<Outcome>> {
    let ledger = Ledger::open(ledger)?;
    let outcomes = Mutex::new(Vec::new());
    std::thread::scope(|scope| -> Result<()> {
        let mut threads = Vec::new();
        for service in services.iter().copied() {
            let (ledger, outcomes) = (&ledger, &outcomes);
            let thread = std::thread::Builder::new().name(service.to_string());
            let job = move || -> Result<()> {
                let outcome = write_to(stack, service, pauses, ledger, stop)?;
                lock(outcomes).push(outcome);
                Ok(())
            };
            threads.push(thread.spawn_scoped(scope, job)?);
        }
        for thread in threads {
            thread
                .join()
                .map_err(|_| anyhow::anyhow!("a writer's thread panicked"))??;
        }
        Ok(())
    })?;
    let mut outcomes = outcomes.into_inner().unwrap_or_default();
    outcomes.sort_by_key(|outcome: &Outcome| outcome.service);
    Ok(outcomes)
}

fn write_to(
    stack: &Stack,
    service: Service,
    pauses: &Pauses,
    ledger: &Ledger,
    stop: &Path,
) -> Result<Outcome> {
    let mut source =
        source(stack, service).with_context(|| format!("start writing to {service}"))?;
    let pause = Duration::from_millis(match service {
        Service::Postgres => pauses.postgres_ms,
        Service::N8n => pauses.n8n_ms,
        Service::Qdrant => pauses.qdrant_ms,
        Service::Ollama => pauses.ollama_ms,
    });
    let mut outcome = Outcome {
        service,
        acknowledged: 0,
        failures: Vec::new(),
        longest_ms: 0,
    };
    for turn in 0.. {
        let before = Timestamp::now();
        let start = Instant::now();
        match source(turn) {
            Ok(write) => {
                let after = Timestamp::now();
                ledger.append(&Record {
                    before,
                    after,
                    write,
                })?;
                outcome.acknowledged += 1;
            }
            Err(error) => outcome.failures.push(Failure {
                at: before,
                error: format!("{error:#}"),
            }),
        }
        let took = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        outcome.longest_ms = outcome.longest_ms.max(took);
        if stopped(stop, pause) {
            break;
        }
    }
    Ok(outcome)
}

type Source = Box<dyn FnMut(u64) -> Result<Write>>;

/// Returns the function that makes a service's next write; it is given the turn's number.
fn source(stack: &Stack, service: Service) -> Result<Source> {
    Ok(match service {
        Service::Postgres => postgres_source(stack)?,
        Service::N8n => {
            let n8n = N8n::new(stack, Duration::from_mins(1))?;
            Box::new(move |turn| match turn % 10 {
                9 => n8n.store_file(64 << 10),
                _ => n8n.echo(),
            })
        }
        Service::Qdrant => qdrant_source(stack)?,
        Service::Ollama => {
            let ollama = Ollama::new(stack, Duration::from_mins(1))?;
            Box::new(move |turn| match turn % 2 {
                0 => ollama.copy(),
                _ => ollama.create(),
            })
        }
    })
}

/// After an error the next transfer is made over a new connection.
fn postgres_source(stack: &Stack) -> Result<Source> {
    let mut connector = postgres::Connector::new(stack)?;
    let mut client = Some(connector.connect(Duration::from_secs(10))?);
    Ok(Box::new(move |_| {
        let mut open = match client.take() {
            Some(open) => open,
            None => connector.connect(Duration::from_secs(10))?,
        };
        let done = postgres::transfer(&mut open)?;
        client = Some(open);
        Ok(done)
    }))
}

/// Numbered points follow on from those that are there; every fifth write overwrites one.
fn qdrant_source(stack: &Stack) -> Result<Source> {
    let qdrant = Qdrant::new(stack, Duration::from_mins(1))?;
    let mut next = qdrant.count(DOCS)? + 1;
    let mut revision = qdrant::highest_revision(&qdrant)?;
    Ok(Box::new(move |turn| match turn % 5 {
        3 => qdrant.add_image(),
        4 => {
            revision += 1;
            qdrant.overwrite(1 + revision % OVERWRITTEN, revision)
        }
        _ => {
            let done = qdrant.add_doc(next)?;
            next += 1;
            Ok(done)
        }
    }))
}

/// Waits for the pause, and returns at once with `true` when the file `stop` exists.
pub fn stopped(stop: &Path, pause: Duration) -> bool {
    let deadline = Instant::now() + pause;
    loop {
        if stop.exists() {
            return true;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        std::thread::sleep(left.min(Duration::from_millis(100)));
    }
}

/// A random UUID, which Qdrant takes as a point's id.
pub fn nonce() -> String {
    let bits: u128 = rand::random();
    let bits = bits & !(0xf << 76) | (0x4 << 76);
    let bits = bits & !(0x3 << 62) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    let part = |range| hex.get(range).unwrap_or_default();
    [
        part(0..8),
        part(8..12),
        part(12..16),
        part(16..20),
        part(20..32),
    ]
    .join("-")
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use super::*;

    #[test]
    fn nonces_are_version_4_uuids() {
        let nonce = nonce();
        let lengths: Vec<usize> = nonce.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12]);
        assert_eq!(nonce.as_bytes()[14], b'4');
        assert!(b"89ab".contains(&nonce.as_bytes()[19]));
    }
}
