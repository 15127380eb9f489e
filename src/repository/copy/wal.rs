//! Sends the stored write-ahead log.
//!
//! Stretches never change, so what has the same name is not sent again. Small ones that the source has replaced
//! by a whole one go in the target, too, when that has it.

use std::collections::HashSet;

use super::CopyReport;
use crate::repository::wal::{Stretch, WalList, spans};
use crate::repository::{Repository, RepositoryError};

const FILE_LIMIT_BYTES: u64 = 32 * 1024 * 1024;

/// Sends file by file: the target has the same keys.
pub(super) fn send(
    source: &Repository,
    target: &Repository,
    report: &mut CopyReport,
) -> Result<(), RepositoryError> {
    let there: HashSet<String> = target
        .store()
        .list("wal")?
        .into_iter()
        .map(|e| e.key)
        .collect();
    let seen = source.vault().key("/seen");
    for entry in source.store().list("wal")? {
        let changes = entry.key.ends_with(&seen);
        if there.contains(&entry.key) && !changes {
            continue;
        }
        let bytes = match source.store().get(&entry.key, FILE_LIMIT_BYTES) {
            // Replaced by a whole one, or retired, meanwhile.
            Err(RepositoryError::Missing(_)) => continue,
            other => other?,
        };
        if changes {
            target.store().replace(&entry.key, &bytes)?;
            continue;
        }
        settle(target.store().put(&entry.key, &bytes))?;
        report.wal_files += 1;
        report.wal_bytes += bytes.len() as u64;
    }
    tidy(&source.wal()?, target)
}

/// Decrypts and encrypts anew.
pub(super) fn send_anew(
    source: &Repository,
    target: &Repository,
    report: &mut CopyReport,
) -> Result<(), RepositoryError> {
    let (from, to) = (source.wal()?, target.wal()?);
    let there: HashSet<&Stretch> = to.stretches.iter().collect();
    for (system, timelines) in &from.histories {
        for timeline in timelines {
            let text = source.wal_history(*system, *timeline)?;
            target.put_wal_history(*system, *timeline, &text)?;
        }
    }
    for stretch in from.stretches.iter().filter(|s| !there.contains(s)) {
        let bytes = match source.read_wal(stretch) {
            Err(RepositoryError::Missing(_)) => continue,
            other => other?,
        };
        target.put_wal(stretch, &bytes)?;
        report.wal_files += 1;
        report.wal_bytes += bytes.len() as u64;
    }
    for mark in source.marks(&from)? {
        settle(target.put_mark(&mark))?;
    }
    for system in &from.systems {
        if let Some(seen) = source.wal_seen(*system)? {
            target.note_wal_seen(*system, &seen)?;
        }
    }
    tidy(&from, target)
}

/// Drops stretches of the target that the source has replaced by larger ones.
fn tidy(from: &WalList, target: &Repository) -> Result<(), RepositoryError> {
    let kept: HashSet<&Stretch> = from.stretches.iter().collect();
    let to = target.wal()?;
    for old in to.stretches.iter().filter(|s| !kept.contains(s)) {
        let others = to.of(old.system, old.timeline).filter(|s| kept.contains(s));
        let is_covered = spans(others)
            .iter()
            .any(|span| span.start <= old.start && span.end >= old.end);
        if is_covered {
            match target.drop_wal(old) {
                Err(err) if err.is_refused() => {}
                other => other?,
            }
        }
    }
    Ok(())
}

fn settle(put: Result<(), RepositoryError>) -> Result<(), RepositoryError> {
    match put {
        Err(RepositoryError::Exists(_)) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::config::Secret;
    use crate::repository::keys::Keys;
    use crate::repository::store::LocalStore;
    use crate::repository::wal::{Mark, Seen};
    use jiff::Timestamp;
    use std::sync::Arc;

    fn stretch(start: u64, end: u64, time: i64) -> Stretch {
        Stretch {
            system: 9,
            timeline: 2,
            start,
            end,
            time,
        }
    }

    fn fill(repository: &Repository) {
        repository.put_wal_history(9, 2, "1\t0/10\twhy\n").unwrap();
        repository.put_wal(&stretch(0, 10, 1), &[1; 10]).unwrap();
        repository.put_wal(&stretch(10, 30, 2), &[2; 20]).unwrap();
        let at = Timestamp::from_second(5).unwrap();
        let seen = Seen {
            timeline: 2,
            end: 30,
            at,
        };
        repository.note_wal_seen(9, &seen).unwrap();
        let mark = Mark {
            name: "here".to_owned(),
            at,
            system: 9,
            timeline: 2,
            lsn: 12,
            service: "db".to_owned(),
        };
        repository.put_mark(&mark).unwrap();
    }

    fn sends(
        source: &Repository,
        send: &dyn Fn(&Repository) -> CopyReport,
        target: &dyn Fn() -> Repository,
    ) {
        fill(source);
        assert!(send(source).wal_files >= 2);
        // Two small ones became a whole one.
        let mut whole = vec![1; 10];
        whole.extend([2; 20]);
        source.put_wal(&stretch(0, 30, 3), &whole).unwrap();
        for small in [stretch(0, 10, 1), stretch(10, 30, 2)] {
            source.drop_wal(&small).unwrap();
        }
        assert_eq!(send(source).wal_files, 1);
        assert_eq!(send(source).wal_files, 0);
        let target = target();
        let list = target.wal().unwrap();
        assert_eq!(list.stretches, [stretch(0, 30, 3)]);
        assert_eq!(target.read_wal(&stretch(0, 30, 3)).unwrap(), whole);
        assert_eq!(target.wal_history(9, 2).unwrap(), "1\t0/10\twhy\n");
        assert_eq!(target.marks(&list).unwrap().len(), 1);
        assert_eq!(target.wal_seen(9).unwrap().unwrap().end, 30);
    }

    #[test]
    fn wal_goes_along_with_the_backups() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let state = tempfile::tempdir().unwrap();
        let source = Repository::open_or_init_local(here.path()).unwrap();
        let send = |source: &Repository| {
            let store = Arc::new(LocalStore::new(there.path()));
            crate::repository::copy::copy(source, store, &Keys::none(), state.path(), |_, _| ())
                .unwrap()
        };
        sends(&source, &send, &|| {
            Repository::open_local(there.path()).unwrap()
        });
    }

    #[test]
    fn wal_is_encrypted_anew_for_a_target_with_keys_of_its_own() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let source = Repository::open_or_init_local(here.path()).unwrap();
        let keys = Keys {
            passphrase: Some(Secret::new("another one")),
            ..Keys::none()
        };
        let target = || {
            let store = Arc::new(LocalStore::new(there.path()));
            Repository::open_or_init(store, &keys).unwrap()
        };
        let send = |source: &Repository| {
            let mut report = CopyReport::default();
            send_anew(source, &target(), &mut report).unwrap();
            report
        };
        sends(&source, &send, &target);
    }
}
