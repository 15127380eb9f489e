//! The probe: asks every service on a new connection every 100 ms, and notes who did not answer.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use jiff::Timestamp;
use serde::Serialize;

use crate::stack::{Service, Stack};
use crate::write::{Failure, stopped};
use crate::{n8n, ollama, postgres, qdrant};

#[derive(Serialize)]
pub struct Report {
    pub from: Timestamp,
    pub to: Timestamp,
    pub services: Vec<Answers>,
}

/// How one service answered.
#[derive(Serialize)]
pub struct Answers {
    pub service: Service,
    pub requests: u64,
    pub failures: Vec<Failure>,
    pub longest_ms: u64,
    /// When the request that took longest was sent.
    pub longest_at: Timestamp,
    pub median_ms: u64,
    pub p99_ms: u64,
}

/// Probes each service from a thread of its own until the file `stop` exists.
pub fn run(stack: &Stack, services: &[Service], every: Duration, stop: &Path) -> Result<Report> {
    let from = Timestamp::now();
    let services = std::thread::scope(|scope| {
        let threads: Vec<_> = services
            .iter()
            .map(|service| scope.spawn(move || probe(stack, *service, every, stop)))
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .map_err(|_| anyhow!("a probe's thread panicked"))
            })
            .collect::<Result<Vec<Answers>>>()
    })?;
    Ok(Report {
        from,
        to: Timestamp::now(),
        services,
    })
}

fn probe(stack: &Stack, service: Service, every: Duration, stop: &Path) -> Answers {
    let mut failures = Vec::new();
    let mut latencies = Vec::new();
    let mut longest = (0, Timestamp::now());
    loop {
        let at = Timestamp::now();
        let start = Instant::now();
        if let Err(error) = ask(stack, service) {
            failures.push(Failure {
                at,
                error: format!("{error:#}"),
            });
        }
        let took = start.elapsed();
        let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        latencies.push(took_ms);
        if took_ms > longest.0 {
            longest = (took_ms, at);
        }
        if stopped(stop, every.saturating_sub(took)) {
            break;
        }
    }
    latencies.sort_unstable();
    Answers {
        service,
        requests: latencies.len() as u64,
        failures,
        longest_ms: longest.0,
        longest_at: longest.1,
        median_ms: percentile(&latencies, 50),
        p99_ms: percentile(&latencies, 99),
    }
}

/// One cheap request that the service can only answer when it serves its data.
fn ask(stack: &Stack, service: Service) -> Result<()> {
    match service {
        Service::Postgres => postgres::probe(stack),
        Service::N8n => n8n::ping(stack),
        Service::Qdrant => qdrant::probe(stack),
        Service::Ollama => ollama::ping(stack),
    }
}

fn percentile(sorted: &[u64], percent: usize) -> u64 {
    let index = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(index).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_taken_from_the_nearest_rank() {
        let sorted: Vec<u64> = (1..=200).collect();
        assert_eq!(percentile(&sorted, 50), 100);
        assert_eq!(percentile(&sorted, 99), 198);
        assert_eq!(percentile(&[7], 99), 7);
        assert_eq!(percentile(&[], 50), 0);
    }
}
