//! Crashes by force: a process that works on the repository dies at each of its calls in turn, and many
//! processes die at random among each other. What was committed is there to the byte, nothing half done is
//! listed, and the next backup works.
//!
//! Random schedules are decided by a seed, which a failure names: `LIFEBOAT_CRASH_SEED=<seed>` runs that one
//! alone, `LIFEBOAT_CRASH_SCHEDULES=<count>` another number of them.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "support/members.rs"]
mod members;
#[path = "crash/pairs.rs"]
mod pairs;
#[path = "crash/schedule.rs"]
mod schedule;
#[path = "crash/store.rs"]
mod store;
#[path = "crash/world.rs"]
mod world;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use lifeboat::repository::copy::{copy, reencrypt};
use lifeboat::repository::prune::prune;
use lifeboat::repository::repair::{heal, rebuild_index};
use lifeboat::repository::{Repository, RepositoryError};

use schedule::{Chance, Ends, Schedule};
use store::{Death, Process, SECOND};
use world::{Run, Steady, World};

/// What one process does.
#[derive(Debug, Clone)]
enum Job {
    Backup(Run),
    /// Retention drops a backup.
    Drop(String),
    /// Packs that nothing needs go to the trash, and what lay there for two days is deleted.
    Prune {
        now: bool,
    },
    PruneSecond,
    /// All backups go to the second repository, from a host of this name.
    Copy(&'static str),
    /// The same, to one with keys of its own.
    CopyAnew,
    /// The index, then what damage can be healed.
    Repair,
}

impl Job {
    fn expect(&self, world: &mut World) {
        match self {
            Self::Backup(run) => world.expect_backup(run),
            Self::Drop(id) => world.expect_drop(id),
            _ => {}
        }
    }

    fn note(&self, world: &mut World, copied: Vec<String>) {
        match self {
            Self::Backup(run) => world.note_commit(&run.id),
            Self::Drop(id) => world.note_drop(id),
            _ => world.note_copied(copied),
        }
    }

    fn host(&self) -> &'static str {
        match self {
            Self::Backup(run) => run.host,
            Self::Copy(host) => host,
            Self::CopyAnew => "c",
            _ => "a",
        }
    }

    /// Does it; returns which backups were copied.
    fn perform(
        &self,
        process: &Arc<Process>,
        world: &World,
        steady: &Steady,
    ) -> Result<Vec<String>, RepositoryError> {
        let (keys, state) = (world.keys(self.host()), world.path(self.host()));
        let open = || Repository::open(process.store(), &keys);
        let second = process.at(&world.second_root()).store();
        match self {
            Self::Backup(run) => run.perform(&process.store(), &keys, &state, steady)?,
            Self::Drop(id) => open()?.drop_backup(id)?,
            Self::Prune { now } => drop(prune(&open()?, &world.prune_options(*now))?),
            Self::PruneSecond => {
                let repository = Repository::open(second, &keys)?;
                drop(prune(&repository, &world.prune_options(false))?);
            }
            Self::Copy(_) => {
                let report = copy(&open()?, second, &keys, &state, |_, _| {})?;
                // Nothing is damaged in any of these worlds.
                let said = [report.faults, report.notes].concat();
                assert!(said.is_empty(), "{said:?}");
                return Ok(report.copied);
            }
            Self::CopyAnew => {
                let second = Repository::open_or_init(second, &keys)?;
                let report = reencrypt(&open()?, &second, &state, 1, |_, _| {})?;
                assert_eq!(report.faults, [""; 0]);
                return Ok(report.copied);
            }
            Self::Repair => {
                rebuild_index(&open()?, false, |_, _| {})?;
                drop(heal(&open()?, false, |_, _| {})?);
            }
        }
        Ok(Vec::new())
    }
}

/// Encryption pads headers at random, so that a run may write some pieces more than another.
const MORE_WRITES: usize = 12;

/// Kills a process at every call that `job` makes, in every way; then a backup of each host must work, and
/// everything must be there.
fn kill_everywhere(before: &World, job: &Job, steady: &Steady) -> usize {
    kill_at_each_call(before, job, steady, |world, number| {
        world.check();
        // A dead prune's lock is heeded for a day; then who was killed goes on, and so does the other.
        world.wait(25);
        let mut chance = Chance::new(number as u64);
        world.backup(&Run::new(900, "a", &mut chance), steady);
        world.backup(&Run::new(901, "b", &mut chance), steady);
        world.check();
        world.check_collected();
    })
}

/// Kills a process at every call that `job` makes, in every way, and has what is left looked at.
fn kill_at_each_call(
    before: &World,
    job: &Job,
    steady: &Steady,
    look: impl Fn(&mut World, usize),
) -> usize {
    let dry = before.copy();
    let process = Process::new(&dry.root(), None, None);
    job.perform(&process, &dry, steady).unwrap();
    let calls = process.calls();
    let mut cut = BTreeSet::new();
    let numbers = 0..calls.len() + MORE_WRITES;
    for number in std::iter::repeat_n(numbers, 8).flatten() {
        if number == 0 && calls.iter().all(|call| cut.contains(&kind(call))) {
            // Only what the first round missed, for its number moved, needs another.
            break;
        }
        for death in [Death::Before, Death::Half, Death::After] {
            let mut world = before.copy();
            job.expect(&mut world);
            let process = Process::new(&world.root(), Some((number, death)), None);
            let result = job.perform(&process, &world, steady);
            if !process.is_dead() {
                assert!(
                    result.is_ok() && process.calls().len() <= number,
                    "{result:?}"
                );
                continue;
            }
            let last = process.calls().pop().unwrap();
            let looked = std::panic::AssertUnwindSafe(|| look(&mut world, number));
            let check = std::panic::catch_unwind(looked);
            assert!(check.is_ok(), "killed {death:?} call {number}: {last}");
            cut.insert(kind(&last));
        }
    }
    for call in &calls {
        assert!(cut.contains(&kind(call)), "{call} was never cut");
    }
    calls.len()
}

/// A call without what differs from run to run.
fn kind(call: &str) -> String {
    let (verb, key) = call.split_once(' ').unwrap_or((call, ""));
    let (place, key) = match key.strip_prefix(SECOND) {
        Some(key) => (SECOND, key),
        None => ("", key),
    };
    let mut parts = key.split('/');
    match parts.next().unwrap_or_default() {
        "backups" => call.to_owned(),
        _ if verb == "write" => format!("{verb} {place}"),
        first => format!(
            "{verb} {place}{first} {}",
            parts.next_back() == Some("packs")
        ),
    }
}

fn kill_each_actor(encrypted: bool) {
    let steady = Steady::new();
    let mut chance = Chance::new(7);
    let mut world = World::new(encrypted);
    let first = Run::new(1, "a", &mut chance);
    let calls = kill_everywhere(&world, &Job::Backup(first.clone()), &steady);
    assert!(calls > 15, "only {calls} calls of a first backup were cut");
    world.backup(&first, &steady);
    let second = Run::new(2, "a", &mut chance);
    let calls = kill_everywhere(&world, &Job::Backup(second.clone()), &steady);
    assert!(calls > 10, "only {calls} calls of a second backup were cut");
    world.backup(&second, &steady);
    for id in [&first.id, &second.id] {
        let calls = kill_everywhere(&world, &Job::Drop(id.clone()), &steady);
        assert!(calls > 3, "only {calls} calls of a drop were cut");
    }
}

#[test]
fn no_crash_at_any_call_costs_a_committed_backup() {
    kill_each_actor(false);
}

#[test]
fn no_crash_at_any_call_costs_a_committed_backup_of_an_encrypted_repository() {
    kill_each_actor(true);
}

fn kill_each_prune(encrypted: bool) {
    let steady = Steady::new();
    let world = world_to_prune(encrypted, &steady);
    let plan = world.prune_plan();
    assert!(
        plan.repacked.packs > 0 && plan.trashed.packs > 0,
        "{plan:?}"
    );
    for now in [false, true] {
        let calls = kill_everywhere(&world, &Job::Prune { now }, &steady);
        assert!(calls > 10, "only {calls} calls of a prune were cut");
    }
    world.prune();
    world.wait(49);
    let plan = world.prune_plan();
    assert!(plan.deleted.packs > 1, "{plan:?}");
    let calls = kill_everywhere(&world, &Job::Prune { now: false }, &steady);
    assert!(calls > 3, "only {calls} calls of a sweep were cut");
}

#[test]
fn no_crash_of_a_prune_costs_a_committed_backup() {
    kill_each_prune(false);
}

#[test]
fn no_crash_of_a_prune_costs_a_committed_backup_of_an_encrypted_repository() {
    kill_each_prune(true);
}

/// Some packs are dead, some mostly dead, and all of them older than a day.
fn world_to_prune(encrypted: bool, steady: &Steady) -> World {
    let mut world = settled_world(encrypted, steady);
    let mut chance = Chance::new(3);
    for number in 4..7 {
        let run = Run::new(number, "a", &mut chance).with_most_pages_changed(number as u64);
        world.backup(&run, steady);
    }
    for id in world.ids().into_iter().take(4) {
        let job = Job::Drop(id);
        job.expect(&mut world);
        let process = Process::new(&world.root(), None, None);
        let copied = job.perform(&process, &world, steady).unwrap();
        job.note(&mut world, copied);
    }
    world.wait(25);
    world
}

/// Two hosts have backed up before.
fn settled_world(encrypted: bool, steady: &Steady) -> World {
    let mut world = World::new(encrypted);
    let mut chance = Chance::new(u64::from(encrypted));
    for (number, host) in [(1, "a"), (2, "b"), (3, "a")] {
        world.backup(&Run::new(number, host, &mut chance), steady);
    }
    // A prune leaves alone what is younger than a day.
    world.wait(25);
    world
}

/// One schedule: what runs, who dies when, whose call is next and how time passes come from the seed.
fn run_schedule(seed: u64, worlds: &[World; 2], steady: &Steady, tally: &Seen) {
    let mut chance = Chance::new(seed);
    let mut world = worlds[usize::from(chance.one_in(4))].copy();
    let mut chains: Vec<Vec<Job>> = Vec::new();
    for (at, host) in ["a", "b"].into_iter().enumerate() {
        let runs = 1 + chance.below(2);
        let job = |n| Job::Backup(Run::new(10 * (at + 1) + n, host, &mut chance));
        chains.push((0..runs).map(job).collect());
    }
    let mut drops = world.ids();
    while drops.len() > 2 && chance.one_in(2) {
        drops.remove(chance.below(drops.len()));
    }
    chains.push(drops.into_iter().map(Job::Drop).collect());
    // One that waits for nobody is waited for, in real time: now and then.
    let prunes = 1 + chance.below(3);
    let job = |_| Job::Prune {
        now: chance.one_in(100),
    };
    chains.push((0..prunes).map(job).collect());
    chains.extend(pairs::chains(&mut chance));
    chains
        .iter()
        .flatten()
        .for_each(|job| job.expect(&mut world));
    let roots = vec![world.root(), world.second_root()];
    let schedule = Schedule::new(roots, chance.next(), chains.len());
    let deaths = [Death::Before, Death::Half, Death::After];
    let actors: Vec<_> = chains
        .into_iter()
        .enumerate()
        .map(|(at, chain)| {
            let end = (!chance.one_in(3)).then(|| (chance.below(40), deaths[chance.below(3)]));
            let turns = schedule.turns(at);
            (
                chain,
                Process::new(&world.root(), end, Some(turns.clone())),
                turns,
            )
        })
        .collect();
    let done = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for (chain, process, turns) in actors {
            let (world, done) = (&world, &done);
            scope.spawn(move || {
                let _ends = Ends(turns);
                for job in chain {
                    match job.perform(&process, world, steady) {
                        Ok(copied) => {
                            tally.done.fetch_add(1, Ordering::Relaxed);
                            tally
                                .copied
                                .fetch_add(copied.len() as u64, Ordering::Relaxed);
                            done.lock().unwrap().push((job, copied));
                        }
                        Err(_) if process.is_dead() => {
                            tally.killed.fetch_add(1, Ordering::Relaxed);
                            return;
                        }
                        // It waited too long for its turn.
                        Err(err) if is_void(&err) => {
                            tally.void.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(err) => panic!("{job:?}: {err}"),
                    }
                }
            });
        }
    });
    for (job, copied) in done.into_inner().unwrap() {
        job.note(&mut world, copied);
    }
    world.check();
    world.check_second();
    world.wait(25);
    world.backup(&Run::new(900, "a", &mut chance), steady);
    world.backup(&Run::new(901, "b", &mut chance), steady);
    world.check();
    world.copy_all();
    world.check_second();
    world.check_collected();
    if chance.one_in(4) {
        world.check_second_collected();
    }
}

/// What the schedules came across, to be sure that they are worth something.
#[derive(Debug, Default)]
struct Seen {
    done: AtomicU64,
    killed: AtomicU64,
    void: AtomicU64,
    /// Backups, by copies.
    copied: AtomicU64,
}

/// A run that lived longer than its lease gives up, and a prune that must be alone gives way; they say so.
fn is_void(err: &RepositoryError) -> bool {
    let text = err.to_string();
    let sentences = [
        "the run took too long",
        "took more than a day",
        "deletes without waiting",
        "took so long that it lost locks/gc",
        "locks/gc is held",
    ];
    sentences.iter().any(|sentence| text.contains(sentence))
}

#[test]
fn no_schedule_of_backups_drops_prunes_and_copies_with_crashes_costs_a_committed_backup() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().unwrap());
    let (first, count) = match number("LIFEBOAT_CRASH_SEED") {
        Some(seed) => (seed, 1),
        None => (0, number("LIFEBOAT_CRASH_SCHEDULES").unwrap_or(1000)),
    };
    let steady = Steady::new();
    let worlds = [false, true].map(|encrypted| pairs::copied_world(encrypted, &steady));
    let (next, tally) = (AtomicU64::new(first), Seen::default());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        return;
                    }
                    let run = || run_schedule(seed, &worlds, &steady, &tally);
                    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
                    if let Err(cause) = outcome {
                        next.store(first + count, Ordering::Relaxed);
                        let cause = cause.downcast_ref::<String>().cloned();
                        panic!(
                            "{}\nLIFEBOAT_CRASH_SEED={seed} shows it again",
                            cause.unwrap_or_else(|| "a process failed: see above".to_owned())
                        );
                    }
                }
            });
        }
    });
    let share = |what: &AtomicU64| what.load(Ordering::Relaxed) * 10 / count;
    assert!(
        count < 100
            || (share(&tally.done) > 10
                && share(&tally.killed) > 5
                && share(&tally.void) > 0
                && share(&tally.copied) > 3),
        "the schedules are tame: {tally:?}"
    );
}
