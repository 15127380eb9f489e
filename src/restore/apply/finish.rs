//! The two ends of a restore: cleaned up, or put back.

use std::path::PathBuf;
use std::sync::Arc;

use super::{Phase, RestoreError, RestoreReport, Run};
use crate::restore::swap;

impl Run<'_> {
    /// After the commit: strikes out the journal and removes what was kept. What fails here is a warning: the
    /// stack is restored and healthy, and the next start goes on with it.
    pub(super) async fn finish(mut self) -> RestoreReport {
        self.report.begin(Phase::Finish, &self.site.progress);
        let journal = &self.site.run.journal;
        let mut failures = Vec::new();
        for (container, entry) in &self.stopped {
            if let Err(e) = journal.done(entry) {
                failures.push(format!(
                    "strike out that {} was stopped: {e}",
                    container.name
                ));
            }
        }
        for job in &mut self.jobs {
            if let Err(e) = job.adapter.finish().await {
                failures.push(e.to_string());
            }
        }
        let mut swaps_left = false;
        for swap in self.jobs.iter().filter_map(|job| job.swap.clone()) {
            // Data that nobody has seen healthy on the new side is the last way back.
            let discard = !self.site.options.keep_old && self.report.unsettled.is_empty();
            let finished = tokio::task::spawn_blocking({
                let swap = Arc::clone(&swap);
                move || {
                    swap.finish()
                        .and_then(|()| if discard { swap.discard() } else { Ok(()) })
                }
            });
            let finished = finished.await.map_err(std::io::Error::other);
            if let Err(e) = finished.and_then(|done| done) {
                failures.push(format!("remove what the swap left: {e}"));
                swaps_left = true;
            }
            if swap.kept().exists() {
                self.report.kept.push(swap.kept().to_owned());
            }
        }
        // An open obligation of this run asks for the commit at the next start.
        if !swaps_left
            && failures.is_empty()
            && let Err(e) = swap::forget_commit(&self.site.run)
        {
            failures.push(e.to_string());
        }
        self.report.warnings.extend(
            failures
                .into_iter()
                .map(|failure| format!("after the restore: {failure}. The next start tries again")),
        );
        self.report.end();
        self.report
    }

    /// An error after the commit, where a person starts the services: the data stays, and so does the old.
    pub(super) fn stop_halfway(self, why: &anyhow::Error) -> RestoreError {
        let mut why = format!("{why:#}");
        let mut kept: Vec<PathBuf> = Vec::new();
        for swap in self.jobs.iter().filter_map(|job| job.swap.as_ref()) {
            if let Err(e) = swap.finish() {
                why = format!("{why}; and {e}");
            }
            kept.push(swap.kept().to_owned());
        }
        RestoreError::AfterCommit { why, kept }
    }

    /// Puts everything back: what was started stops, online services and swapped data go back, and what ran
    /// before starts again.
    pub(super) async fn roll_back(mut self, why: &anyhow::Error) -> RestoreError {
        tracing::warn!("the restore failed and is being rolled back: {why:#}");
        self.report.begin(Phase::RollBack, &self.site.progress);
        let mut failures = Vec::new();
        let running = self.stop_started(&mut failures).await;
        for job in self.jobs.iter_mut().rev() {
            if job.applied
                && let Err(e) = job.adapter.rollback().await
            {
                failures.push(e.to_string());
            }
        }
        let mut without_data = running;
        for job in self.jobs.iter().rev() {
            let Some(swap) = job.swap.clone() else {
                continue;
            };
            let service = &job.planned.service;
            if without_data.contains(service) {
                continue;
            }
            let undone = tokio::task::spawn_blocking(move || swap.rollback()).await;
            let undone = undone.map_err(std::io::Error::other);
            if let Err(e) = undone.and_then(|done| done) {
                failures.push(format!("put the data of {service} back: {e}"));
                without_data.push(service.clone());
            }
        }
        self.start_stopped(&without_data, &mut failures).await;
        let why = format!("{why:#}");
        if failures.is_empty() {
            RestoreError::RolledBack { why }
        } else {
            RestoreError::NotRolledBack { why, failures }
        }
    }

    /// Returns the services that could not be stopped: their data must stay as it is.
    async fn stop_started(&self, failures: &mut Vec<String>) -> Vec<String> {
        let mut running = Vec::new();
        for planned in self.started.iter().rev() {
            let Some((containers, container)) = self.managed(planned) else {
                continue;
            };
            let grace = self.site.options.stop_grace;
            if let Err(e) = containers.stop(container, grace).await {
                failures.push(format!("stop {} again: {e:#}", planned.service));
                running.push(planned.service.clone());
            }
        }
        running
    }

    /// Starts what ran before, in order, but for services whose own data is not back.
    async fn start_stopped(&self, without_data: &[String], failures: &mut Vec<String>) {
        for planned in &self.plan.start {
            let Some((containers, container)) = self.managed(planned) else {
                continue;
            };
            let entry = self.stopped.iter().find(|(c, _)| c.id == container.id);
            let Some((_, entry)) = entry else { continue };
            if without_data.contains(&planned.service) {
                continue;
            }
            let limit = self.site.options.timeout;
            let outcome = match containers.start(container).await {
                Ok(()) => containers.wait_healthy(container, limit).await,
                Err(e) => Err(e),
            };
            match outcome {
                Err(e) => failures.push(format!("start {} again: {e:#}", planned.service)),
                Ok(()) => {
                    if let Err(e) = self.site.run.journal.done(entry) {
                        failures.push(e.to_string());
                    }
                }
            }
        }
    }
}
