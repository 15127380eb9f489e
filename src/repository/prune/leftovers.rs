//! Small files that nothing leads to any more.
//!
//! All of them were listed before leases, and those before backups and moves: a file whose run has no lease
//! and has not committed belongs to a run that was given up, or to a backup that was dropped.

use std::collections::{BTreeSet, HashSet};

use super::Report;
use super::survey::Survey;
use super::sweep::delete;
use crate::repository::lease::is_void;
use crate::repository::{PackName, Repository, RepositoryError, damaged_key, index, moves};

/// Removes what is left of given-up runs, dropped backups, and of packs that are `gone`.
pub fn remove(
    repository: &Repository,
    survey: &Survey,
    gone: &BTreeSet<PackName>,
    report: &mut Report,
) -> Result<(), RepositoryError> {
    let mut keys = Vec::new();
    // The order matters only here: a record goes before the pieces it vouches for.
    let useless: BTreeSet<&str> = useless_moves(survey);
    keys.extend(useless.iter().map(|run| moves::record_key(run)));
    keys.extend(
        survey
            .moved_files
            .iter()
            .filter(|entry| !is_void(entry))
            .filter(|entry| {
                is_left(survey, &entry.key, "moved/", |run| {
                    survey.moves.contains_key(run) && !useless.contains(run)
                })
            })
            .map(|entry| entry.key.clone()),
    );
    keys.extend(
        survey
            .backup_files
            .iter()
            .filter(|entry| !is_void(entry))
            .filter(|entry| {
                is_left(survey, &entry.key, "backups/", |id| {
                    survey.backups.contains(id)
                })
            })
            .map(|entry| entry.key.clone()),
    );
    keys.extend(
        survey
            .damaged
            .iter()
            .filter(|pack| !survey.packs.contains_key(pack))
            .map(|pack| damaged_key(*pack)),
    );
    if !gone.is_empty() {
        keys.extend(dead_index_parts(repository, survey, gone)?);
    }
    // A copy may have begun to use what an earlier one left under the same names.
    let leases = repository.store().list("leases")?;
    keys.retain(|key| {
        let run = key.split('/').nth(1).unwrap_or_default();
        let lease = format!("leases/{run}");
        !leases.iter().any(|entry| entry.key == lease)
    });
    let mut seen = BTreeSet::new();
    for key in keys {
        if seen.insert(key.clone()) && delete(repository, &key, report)? {
            report.leftovers += 1;
        }
    }
    Ok(())
}

/// Runs whose moves nobody needs: no backup that they were made for exists, and they saved nothing of a damaged
/// pack. A copy puts moves before the backup that they are for, under a lease of the same name: only what was
/// there before leases were listed can be judged.
fn useless_moves(survey: &Survey) -> BTreeSet<&str> {
    let seen: HashSet<&str> = moves::runs(&survey.moved_files).collect();
    let is_useless = |record: &super::decide::Move<PackName, String>| {
        record.backups.is_disjoint(&survey.backups)
            && !record
                .packs
                .keys()
                .any(|pack| survey.damaged.contains(pack))
    };
    let useless = survey.moves.iter().filter(|(run, record)| {
        seen.contains(run.as_str()) && !survey.is_leased(run) && is_useless(record)
    });
    useless.map(|(run, _)| run.as_str()).collect()
}

fn is_left(survey: &Survey, key: &str, prefix: &str, is_kept: impl Fn(&str) -> bool) -> bool {
    key.strip_prefix(prefix)
        .and_then(|rest| rest.split_once('/'))
        .is_some_and(|(run, _)| !is_kept(run) && !survey.is_leased(run))
}

/// Index parts that name no pack which is there. Only runs that left no backup are looked at: another one's
/// new packs are mostly there.
fn dead_index_parts(
    repository: &Repository,
    survey: &Survey,
    gone: &BTreeSet<PackName>,
) -> Result<Vec<String>, RepositoryError> {
    let vault = repository.vault();
    if !vault.mode.can_read() {
        return Ok(Vec::new());
    }
    let is_there = |pack| survey.packs.contains_key(&pack) && !gone.contains(&pack);
    let mut dead = Vec::new();
    for entry in &survey.index {
        let Some(part) = index::part_of(vault, &entry.key) else {
            continue;
        };
        let writer = part.rsplit_once('-').map_or(part, |(writer, _)| writer);
        if survey.backups.contains(writer) || survey.is_leased(writer) {
            continue;
        }
        match index::names_any(vault, part, is_there) {
            Ok(true) | Err(RepositoryError::Missing(_)) => {}
            Ok(false) => dead.push(entry.key.clone()),
            // Damaged: verify tells, and repair makes it anew.
            Err(err) if err.is_damage() || matches!(err, RepositoryError::Invalid(_)) => {}
            Err(other) => return Err(other),
        }
    }
    Ok(dead)
}
