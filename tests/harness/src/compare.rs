//! Compares what the services hold with what they had acknowledged before a backup began.

use std::time::Duration;

use jiff::Timestamp;

use crate::ledger::{Record, Write};
use crate::stack::{Service, Stack};
use crate::state::State;
use crate::table::Check;

mod n8n;
mod ollama;
mod postgres;
mod qdrant;

/// What a comparison is made against.
pub struct Truth<'a> {
    pub state: &'a State,
    /// In the order they were acknowledged in, per service.
    pub records: &'a [Record],
    pub backup_start: Timestamp,
    /// When the backup had ended; nothing sent later may be in it.
    pub backup_end: Option<Timestamp>,
}

impl<'a> Truth<'a> {
    /// Returns a service's records.
    fn of(&self, service: Service) -> impl Iterator<Item = &'a Record> {
        self.records
            .iter()
            .filter(move |record| record.write.service() == service)
    }

    /// Returns a service's writes that were acknowledged before the backup's start: all must be there.
    fn acknowledged(&self, service: Service) -> impl Iterator<Item = &'a Write> {
        let start = self.backup_start;
        self.of(service)
            .filter(move |record| record.after < start)
            .map(|record| &record.write)
    }

    /// Returns a service's writes that were sent after the backup's end: none may be there.
    fn too_late(&self, service: Service) -> impl Iterator<Item = &'a Write> {
        let end = self.backup_end.unwrap_or(Timestamp::MAX);
        self.of(service)
            .filter(move |record| record.before > end)
            .map(|record| &record.write)
    }
}

/// Checks each of the services; one that cannot be checked is a check that fails.
pub fn run(stack: &Stack, services: &[Service], truth: &Truth, patience: Duration) -> Vec<Check> {
    let mut checks = Vec::new();
    for service in services {
        let ready = stack.wait_ready(&[*service], patience);
        let made = ready.and_then(|()| match service {
            Service::Postgres => postgres::compare(stack, truth, &mut checks),
            Service::N8n => n8n::compare(stack, truth, &mut checks),
            Service::Qdrant => qdrant::compare(stack, truth, &mut checks),
            Service::Ollama => ollama::compare(stack, truth, &mut checks),
        });
        if let Err(error) = made {
            checks.push(Check::failed(*service, "answers the comparison", &error));
        }
    }
    checks
}

/// Says how many of the expected are there: `n of n` when all are.
fn presence(service: Service, what: &str, expected: usize, found: usize) -> Check {
    Check::equal(service, what, &expected, &found)
}
