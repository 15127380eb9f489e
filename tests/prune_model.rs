//! The prune's protocol, searched exhaustively: every order of steps of backups, prunes, a repack and
//! retention, every crash, every sleep, on small universes. In every state every committed backup can be read.
//!
//! Who sleeps is not modelled apart: between any two steps any time may pass and anybody else may act, and a
//! crash is a sleep without end. The decisions are the program's own (`repository::prune::decide`). That the
//! search can find what it looks for is shown by breaking the protocol, one rule at a time.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "prune_model/protocol.rs"]
mod protocol;
#[path = "prune_model/prunes.rs"]
mod prunes;
#[path = "prune_model/search.rs"]
mod search;
#[path = "prune_model/world.rs"]
mod world;

use protocol::{Breach, Kind, Setting};
use search::{Searched, search};
use world::{Commit, NONE, Pack, World};

/// Runs with lower numbers are backups, the others repacks.
const MOVING_RUNS_FROM: usize = 4;
const A: u8 = 1;
const B: u8 = 2;
const C: u8 = 4;

/// A store with a pack of `blocks`, of which backup 0 refers to `wanted`.
fn world(blocks: u8, wanted: u8) -> World {
    let mut world = World::default();
    world.packs[0] = Pack {
        there: true,
        blocks,
    };
    world.commits[0] = Commit::Backup(std::array::from_fn(|block| {
        if wanted & (1 << block) == 0 { NONE } else { 0 }
    }));
    world
}

/// A store with a pack of `blocks` that nobody refers to any more.
fn garbage(blocks: u8) -> World {
    let mut world = world(blocks, 0);
    world.commits[0] = Commit::Dropped;
    world
}

fn run(breach: Option<Breach>, start: World, actors: &[Kind]) -> Searched {
    let setting = Setting {
        actors: actors.to_vec(),
        breach,
    };
    let searched = search(&setting, start, World::fault);
    eprintln!("{breach:?}, {actors:?}: {} states", searched.states);
    searched
}

fn holds(start: World, actors: &[Kind]) {
    if let Some(trace) = run(None, start, actors).violation {
        panic!("a committed backup is lost:\n{trace}");
    }
}

fn fails(breach: Breach, start: World, actors: &[Kind]) {
    let trace = run(Some(breach), start, actors).violation;
    let trace = trace.unwrap_or_else(|| panic!("{breach:?}: the search did not find it"));
    eprintln!("{trace}");
}

/// Backs up what backup 0 refers to, and what only its cache knows of.
const X: Kind = Kind::Backup {
    run: 2,
    wants: A | B,
    fresh: 2,
};
const Y: Kind = Kind::Backup {
    run: 3,
    wants: A,
    fresh: 3,
};
const DROP: Kind = Kind::Drop { run: 0 };
const DROP_OTHER: Kind = Kind::Drop { run: 1 };
const MARK: Kind = Kind::Mark { trash: 0 };
const MARK_AGAIN: Kind = Kind::Mark { trash: 1 };
const NOW: Kind = Kind::Now { trash: 0 };
const NOW_TOO: Kind = Kind::Now { trash: 1 };
const SWEEP: Kind = Kind::Sweep;
const REPACK: Kind = Kind::Repack { run: 4, fresh: 4 };
const REPACK_AGAIN: Kind = Kind::Repack { run: 5, fresh: 5 };

#[test]
fn backups_beside_retention_and_two_sweeps() {
    holds(world(A | B, A), &[X, DROP, MARK, SWEEP, SWEEP]);
    holds(world(A | B, A), &[X, Y, DROP, MARK, SWEEP]);
}

#[test]
fn what_is_live_again_is_taken_out_of_the_trash() {
    holds(world(A | B, A), &[X, DROP, MARK, MARK_AGAIN, SWEEP, SWEEP]);
}

#[test]
fn prunes_that_do_not_wait() {
    holds(garbage(A | B), &[X, NOW, NOW_TOO]);
    holds(garbage(A | B), &[X, MARK, NOW_TOO, SWEEP]);
    holds(garbage(A | B), &[X, Y, NOW]);
    holds(world(A | B, A), &[X, DROP, NOW]);
}

#[test]
fn a_repack_beside_a_backup_and_prunes() {
    holds(world(A | B, A), &[REPACK, X, DROP, MARK, SWEEP]);
    holds(world(A | B, A), &[REPACK, MARK, MARK_AGAIN, SWEEP, SWEEP]);
    holds(world(A | B, A), &[REPACK, X, NOW]);
    holds(world(A | B, A), &[REPACK, REPACK_AGAIN, MARK, SWEEP, SWEEP]);
}

#[test]
fn what_was_repacked_is_repacked_again() {
    let mut start = world(A | B | C, A);
    start.commits[1] = Commit::Backup([NONE, 0, NONE]);
    holds(start, &[REPACK, REPACK_AGAIN, DROP_OTHER, MARK, SWEEP]);
}

#[test]
fn whatever_dies_is_collected_later() {
    let garbage = |world: &World| {
        let swept = Setting::alone(&world.aged(), SWEEP);
        let marked = Setting::alone(&swept, Kind::Mark { trash: 2 });
        let world = Setting::alone(&marked.aged(), SWEEP);
        let live = world.live(world.backups(), world.moves());
        let left = world.present() & !live;
        (left != 0 || world.trashed() != 0).then(|| format!("packs {left:b} stay for ever"))
    };
    for actors in [
        [X, DROP, MARK, SWEEP],
        [REPACK, DROP, MARK, SWEEP],
        [X, DROP, NOW, SWEEP],
    ] {
        let setting = Setting {
            actors: actors.to_vec(),
            breach: None,
        };
        let searched = search(&setting, world(A | B, A), garbage);
        assert_eq!(searched.violation, None);
    }
}

#[test]
fn every_rule_is_needed() {
    for breach in [
        Breach::SweepsEarly,
        Breach::IgnoresTrash,
        Breach::ListsBackupsFirst,
        Breach::SharesNames,
        Breach::ClosesNoBackup,
        Breach::LooksAfterCommit,
        Breach::TrashGoesFirst,
    ] {
        fails(breach, garbage(A | B), &[X, MARK, SWEEP]);
    }
    fails(Breach::TrustsLock, garbage(A | B), &[X, NOW]);
    let start = world(A | B, A);
    fails(Breach::MovesForAll, start, &[REPACK, X, MARK, SWEEP]);
    fails(
        Breach::ClosesNoRepack,
        start,
        &[REPACK, MARK, MARK_AGAIN, SWEEP, SWEEP],
    );
}
