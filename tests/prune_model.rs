//! The prune's protocol, searched exhaustively: every order of steps of backups, prunes, a repack and
//! retention, every crash, every sleep, on small universes. In every state every committed backup can be read.
//!
//! Who sleeps is not modelled apart: between any two steps any time may pass and anybody else may act, and a
//! crash is a sleep without end. The decisions are the program's own (`repository::prune::decide`). That the
//! search can find what it looks for is shown by breaking the protocol, one rule at a time.
// The arms of an actor are its program: two steps may do the same.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::match_same_arms)]

#[path = "prune_model/protocol.rs"]
mod protocol;
#[path = "prune_model/prunes.rs"]
mod prunes;
#[path = "prune_model/search.rs"]
mod search;
#[path = "prune_model/world.rs"]
mod world;

use protocol::{Fence, Kind, Protocol, Setting};
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

fn run(name: &str, protocol: Protocol, start: World, actors: &[Kind]) -> Searched {
    let setting = Setting {
        actors: actors.to_vec(),
        protocol,
    };
    let begun = std::time::Instant::now();
    let searched = search(&setting, start);
    eprintln!(
        "{name}: {} states in {:?}",
        searched.states,
        begun.elapsed()
    );
    searched
}

fn holds(name: &str, start: World, actors: &[Kind]) {
    if let Some(trace) = run(name, Protocol::RIGHT, start, actors).violation {
        panic!("{name}: a committed backup is lost:\n{trace}");
    }
}

fn fails(name: &str, protocol: Protocol, start: World, actors: &[Kind]) {
    let trace = run(name, protocol, start, actors).violation;
    let trace = trace.unwrap_or_else(|| panic!("{name}: the search did not find it"));
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
    holds("x", world(A | B, A), &[X, DROP, MARK, SWEEP, SWEEP]);
    holds("xy", world(A | B, A), &[X, Y, DROP, MARK, SWEEP]);
}

#[test]
fn what_is_live_again_is_taken_out_of_the_trash() {
    holds(
        "mark2",
        world(A | B, A),
        &[X, DROP, MARK, MARK_AGAIN, SWEEP, SWEEP],
    );
}

#[test]
fn prunes_that_do_not_wait() {
    holds("now", garbage(A | B), &[X, NOW, NOW_TOO]);
    holds("nowmark", garbage(A | B), &[X, MARK, NOW_TOO, SWEEP]);
    holds("nowxy", garbage(A | B), &[X, Y, NOW]);
    holds("nowdrop", world(A | B, A), &[X, DROP, NOW]);
}

#[test]
fn a_repack_beside_a_backup_and_prunes() {
    holds(
        "repackdrop",
        world(A | B, A),
        &[REPACK, X, DROP, MARK, SWEEP],
    );
    holds(
        "repackmark",
        world(A | B, A),
        &[REPACK, MARK, MARK_AGAIN, SWEEP, SWEEP],
    );
    holds("repacknow", world(A | B, A), &[REPACK, X, NOW]);
    holds(
        "repack2",
        world(A | B, A),
        &[REPACK, REPACK_AGAIN, MARK, SWEEP, SWEEP],
    );
}

#[test]
fn what_was_repacked_is_repacked_again() {
    let mut start = world(A | B | C, A);
    start.commits[1] = Commit::Backup([NONE, 0, NONE]);
    holds(
        "chain",
        start,
        &[REPACK, REPACK_AGAIN, DROP_OTHER, MARK, SWEEP],
    );
}

#[test]
fn every_rule_is_needed() {
    let right = Protocol::RIGHT;
    let of = |change: fn(&mut Protocol)| {
        let mut protocol = right;
        change(&mut protocol);
        protocol
    };
    fails(
        "trash is swept after 12 hours",
        of(|p| p.sweeps_after = Some(1)),
        garbage(A | B),
        &[X, MARK, SWEEP],
    );
    fails(
        "a backup ignores the trash",
        of(|p| p.heeds_trash = false),
        garbage(A | B),
        &[X, MARK, SWEEP],
    );
    fails(
        "backups are listed first",
        of(|p| p.lists_backups_last = false),
        garbage(A | B),
        &[X, MARK, SWEEP],
    );
    fails(
        "dead runs are not fenced",
        of(|p| p.backups = Fence::Nothing),
        garbage(A | B),
        &[X, MARK, SWEEP],
    );
    fails(
        "a run looks at its lease after its commit instead",
        of(|p| p.backups = Fence::LookAfter),
        garbage(A | B),
        &[X, MARK, SWEEP],
    );
    fails(
        "packs of the same content share a name",
        of(|p| p.own_names = false),
        garbage(A | B),
        &[X, MARK, SWEEP],
    );
    fails(
        "a move counts for backups it did not see",
        of(|p| p.moves_name_backups = false),
        world(A | B, A),
        &[REPACK, X, MARK, SWEEP],
    );
    fails(
        "a dead repack is not fenced",
        of(|p| p.moves = Fence::Nothing),
        world(A | B, A),
        &[REPACK, MARK, MARK_AGAIN, SWEEP, SWEEP],
    );
    fails(
        "a prune that does not wait trusts its lock",
        of(|p| p.checks_lock = false),
        garbage(A | B),
        &[X, NOW],
    );
    fails(
        "the trash file goes before its packs",
        of(|p| p.trash_goes_last = false),
        garbage(A | B),
        &[X, MARK, SWEEP],
    );
}
