//! Prune: gives back the space of packs that no backup needs, and deletes nothing that any could need.
//!
//! ```text
//! look     trash → packs → leases, dead runs are closed → moves → backups        [`survey`], [`decide`]
//! sweep    delete what has lain in the trash for two days and is still dead      [`sweep`]
//! repack   copy the live part of packs that are mostly dead                      [`repack`]
//! mark     put what is dead now into the trash; nothing is deleted
//! ```
//! The order of a look is what makes it safe; [`decide`] says why, and `tests/prune_model.rs` searches every
//! order of events for a counterexample. Deletions come first, so that a full disk has room for the rest.
//! A prune that does not wait (`--now`) marks first, then makes sure that nobody was at work meanwhile
//! ([`lock`]), and sweeps at once.

pub mod decide;
mod leftovers;
mod lock;
mod needed;
mod repack;
mod reserve;
mod sizes;
mod survey;
mod sweep;

use std::collections::BTreeSet;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::Serialize;

use super::session::new_id;
use super::{Repository, RepositoryError};
use lock::GcLock;
use survey::{Close, Survey};

/// What to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// Only tells what it would do.
    pub dry_run: bool,
    /// Deletes at once what is dead; refuses while any run is under way.
    pub now: bool,
    /// Where sizes of packs, and which of them backups name, are remembered.
    pub state: Option<PathBuf>,
    /// zstd level of packs that are written anew.
    pub level: i32,
}

/// Some packs, and the bytes they take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Amount {
    pub packs: u64,
    pub bytes: u64,
}

impl Amount {
    fn add(&mut self, bytes: u64) {
        self.packs += 1;
        self.bytes += bytes;
    }
}

/// A run under way, or one that died.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RunSeen {
    pub run: String,
    pub host: String,
    /// Since its lease was put, by the store's clock.
    pub age_seconds: i64,
    /// Younger than a day: what it may count on is left alone.
    pub alive: bool,
}

/// What a prune found and did; with `dry_run`, what it would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    pub dry_run: bool,
    pub backups: u64,
    /// All packs as they were found.
    pub stored: Amount,
    /// Those that backups are read from.
    pub live: Amount,
    /// Deleted.
    pub deleted: Amount,
    /// Put into the trash now: deleted at the earliest two days later.
    pub trashed: Amount,
    /// In the trash, and not due.
    pub waiting: Amount,
    /// Mostly dead packs whose live part was copied; they are among the trashed ones.
    pub repacked: Amount,
    /// What the copies take.
    pub rewritten: Amount,
    /// Needed by no backup, but young or written since a living run began.
    pub left_to_runs: Amount,
    pub runs: Vec<RunSeen>,
    /// Small files of runs that came to nothing.
    pub leftovers: u64,
    /// What the store refused to delete.
    pub refused: Vec<String>,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// Prunes a repository.
pub fn prune(repository: &Repository, options: &Options) -> Result<Report, RepositoryError> {
    let mut report = Report {
        dry_run: options.dry_run,
        ..Report::default()
    };
    if options.dry_run {
        let survey = Survey::look(repository, Close::Nobody, options.state.as_deref())?;
        plan(repository, &survey, options, &mut report)?;
        return Ok(report);
    }
    let store = &**repository.store();
    reserve::give(store)?;
    let done = if options.now {
        at_once(repository, options, &mut report)
    } else {
        in_turn(repository, options, &mut report)
    };
    // It is for the next time: a failure now is no failure of the prune.
    if let Err(err) = reserve::put_back(store) {
        report.notes.push(format!(
            "the reserve for a full disk was not put back: {err}"
        ));
    }
    done.map(|()| report)
}

/// Tells what would be done, by the same decisions.
fn plan(
    repository: &Repository,
    survey: &Survey,
    options: &Options,
    report: &mut Report,
) -> Result<(), RepositoryError> {
    note_found(survey, report);
    if options.now {
        refuse_beside_runs(survey)?;
    }
    let due = survey.due(!options.now);
    for pack in survey.doomed(&due) {
        report.deleted.add(survey.size(pack));
    }
    let mut dead = survey.dead();
    if options.now {
        for pack in dead.drain_all() {
            report.deleted.add(survey.size(pack));
        }
    }
    for pack in &dead.packs {
        report.trashed.add(survey.size(*pack));
    }
    note_kept(survey, &dead, !options.now, report);
    repack::plan(repository, survey, options, report)
}

fn in_turn(
    repository: &Repository,
    options: &Options,
    report: &mut Report,
) -> Result<(), RepositoryError> {
    let state = options.state.as_deref();
    let mut survey = Survey::look(repository, Close::DeadRuns, state)?;
    note_found(&survey, report);
    let due = survey.due(true);
    let swept = sweep::sweep(repository, &survey, &due, report)?;
    leftovers::remove(repository, &survey, &swept, report)?;
    if repack::repack(repository, &survey, options, report)? {
        survey = Survey::look(repository, Close::DeadRuns, state)?;
    }
    let dead = survey.dead();
    sweep::mark(repository, &dead.packs)?;
    for pack in &dead.packs {
        report.trashed.add(survey.size(*pack));
    }
    note_kept(&survey, &dead, true, report);
    Ok(())
}

/// Marks, makes sure that nobody else was at work, and sweeps without waiting.
fn at_once(
    repository: &Repository,
    options: &Options,
    report: &mut Report,
) -> Result<(), RepositoryError> {
    let state = options.state.as_deref();
    let mut first = true;
    loop {
        let lock = GcLock::take(repository.vault())?;
        let survey = Survey::look(repository, Close::DeadRuns, state)?;
        if first {
            note_found(&survey, report);
        }
        refuse_beside_runs(&survey)?;
        let mut dead = survey.dead();
        sweep::mark(repository, &dead.drain_all())?;
        // Before the lock is looked at: trash that comes later may be of a prune that lost its lock.
        let files: BTreeSet<String> = survey::trash_keys(repository)?;
        lock.check()?;
        let survey = Survey::look(repository, Close::DeadRuns, state)?;
        let mut due = survey.due(false);
        due.retain(|file| files.contains(&file.key));
        let swept = sweep::sweep(repository, &survey, &due, report)?;
        leftovers::remove(repository, &survey, &swept, report)?;
        drop(lock);
        // What repacking leaves behind is deleted in a second round.
        if !first || !repack::repack(repository, &survey, options, report)? {
            return Ok(());
        }
        first = false;
    }
}

fn refuse_beside_runs(survey: &Survey) -> Result<(), RepositoryError> {
    let alive: Vec<String> = survey
        .runs
        .iter()
        .filter(|run| run.alive)
        .map(|run| {
            format!(
                "{} on {} for {} minutes",
                run.run,
                run.host,
                run.age_seconds / 60
            )
        })
        .collect();
    if alive.is_empty() {
        return Ok(());
    }
    Err(RepositoryError::Invalid(format!(
        "`prune --now` deletes without waiting, so nobody may be at work, and there is {}: wait for it to end, or prune without --now. \
         A run that died is out of the way a day after it began",
        alive.join(", ")
    )))
}

fn note_found(survey: &Survey, report: &mut Report) {
    report.backups = survey.backups.len() as u64;
    for (pack, found) in &survey.packs {
        report.stored.add(found.size);
        if survey.live.contains(pack) {
            report.live.add(found.size);
        }
    }
    report.runs.clone_from(&survey.runs);
}

/// Accounts for dead packs that neither go now nor are put into the trash.
fn note_kept(survey: &Survey, dead: &survey::Dead, waits: bool, report: &mut Report) {
    for pack in &dead.fresh {
        report.left_to_runs.add(survey.size(*pack));
    }
    let doomed = survey.doomed(&survey.due(waits));
    for pack in survey.trashed_and_dead().difference(&doomed) {
        report.waiting.add(survey.size(*pack));
    }
}

/// A name for a run of this prune.
fn new_run() -> String {
    new_id(Timestamp::now())
}
