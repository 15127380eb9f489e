//! Preflight: everything that can be known to fail, before anything is changed.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Run, lock_file};
use crate::restore::plan::PlannedWay;
use crate::restore::swap;
use crate::services::Check;

/// How long a service that should be stopped may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// Kept free beyond the archives, for what running services write meanwhile.
const SPACE_MARGIN_BYTES: u64 = 64 * 1024 * 1024;

impl Run<'_> {
    pub(super) async fn check(&mut self) -> Vec<Check> {
        let mut checks = Vec::new();
        for job in &mut self.jobs {
            let record = &job.planned.record;
            let subject = format!("{}: archive", job.planned.service);
            checks.push(match (self.open)(record) {
                Ok(_) => Check::good(subject, format!("{} bytes", record.raw_bytes)),
                Err(e) => Check::bad(subject, format!("{e:#}")),
            });
            let found = job.adapter.preflight(record).await.into_iter();
            checks.extend(found.map(|check| check.unless_ignored(&self.site.options.ignored)));
            if let PlannedWay::Swap { root } = &job.planned.way {
                let subject = format!("{}: data directory", job.planned.service);
                checks.push(match swap::preflight(root) {
                    Ok(()) => Check::good(subject, root.display().to_string()),
                    Err(sentence) => Check::bad(subject, sentence),
                });
            }
        }
        checks.extend(self.check_space());
        checks.extend(self.check_stopped().await);
        checks
    }

    /// Old and new data lie beside each other until the stack is healthy.
    fn check_space(&self) -> Vec<Check> {
        let wanted = self.jobs.iter().filter_map(|job| match &job.planned.way {
            PlannedWay::Swap { root } => Some((root.as_path(), job.planned.record.raw_bytes)),
            _ => None,
        });
        space(wanted)
    }

    /// What a person stops must be stopped, or its files change while they are swapped.
    async fn check_stopped(&self) -> Vec<Check> {
        let mut checks = Vec::new();
        if self.site.options.services_are_stopped {
            return checks;
        }
        for planned in self.by_hand() {
            let subject = format!("{}: stopped", planned.service);
            let lock = self
                .jobs
                .iter()
                .filter(|job| job.planned.service == planned.service)
                .find_map(|job| lock_file(job.planned).filter(|path| path.exists()));
            if let Some(address) = self.answers(&planned.service).await {
                checks.push(Check::bad(
                    subject,
                    format!(
                        "it still answers at {address}, and there is no Docker API to stop it with: stop it and \
                         restore again"
                    ),
                ));
            } else if let Some(lock) = lock {
                checks.push(Check::bad(
                    subject,
                    format!(
                        "{} says that the server runs, or was killed: stop it; if it is stopped, say so with \
                         --services-are-stopped",
                        lock.display()
                    ),
                ));
            } else {
                checks.push(Check::good(subject, "it does not answer"));
            }
        }
        checks
    }

    async fn answers(&self, service: &str) -> Option<String> {
        let found = self
            .site
            .stack
            .services
            .iter()
            .find(|s| s.name == service)?;
        for host in &found.hosts {
            for port in &found.ports {
                let connecting = tokio::net::TcpStream::connect((host.as_str(), *port));
                if let Ok(Ok(_)) = tokio::time::timeout(ANSWER_TIMEOUT, connecting).await {
                    return Some(format!("{host}:{port}"));
                }
            }
        }
        None
    }
}

/// One check a filesystem: whether what is to be written on it fits.
pub(super) fn space<'p>(wanted: impl Iterator<Item = (&'p Path, u64)>) -> Vec<Check> {
    let mut filesystems: BTreeMap<u64, (PathBuf, u64)> = BTreeMap::new();
    let mut checks = Vec::new();
    for (path, bytes) in wanted {
        match std::fs::metadata(path) {
            Ok(meta) => {
                let (_, sum) = filesystems
                    .entry(meta.dev())
                    .or_insert_with(|| (path.to_owned(), 0));
                *sum = sum.saturating_add(bytes);
            }
            Err(e) => checks.push(Check::bad(
                format!("space in {}", path.display()),
                format!("cannot look at it: {e}"),
            )),
        }
    }
    for (path, bytes) in filesystems.into_values() {
        let subject = format!("space in {}", path.display());
        checks.push(match rustix::fs::statvfs(&path) {
            Err(e) => Check::bad(subject, format!("cannot look at its filesystem: {e}")),
            Ok(fs) => {
                let free = fs.f_bavail.saturating_mul(fs.f_frsize);
                let needed = bytes
                    .saturating_add(bytes / 20)
                    .saturating_add(SPACE_MARGIN_BYTES);
                if free >= needed {
                    Check::good(subject, format!("{free} bytes free, {needed} needed"))
                } else {
                    Check::bad(
                        subject,
                        format!(
                            "{needed} bytes are needed to write the restored data beside the old, and {free} are \
                             free: make room, or restore one service at a time with --only"
                        ),
                    )
                }
            }
        });
    }
    checks
}
