//! The store of the model, and the one thing that must always hold of it.

use std::collections::{BTreeMap, BTreeSet};

use jiff::SignedDuration;
use lifeboat::repository::prune::decide::{Move, Moves};

/// Packs, blocks, backups and so on are small numbers; sets of them are bit masks.
pub const PACKS: usize = 8;
pub const BLOCKS: usize = 3;
pub const RUNS: usize = 6;
pub const TRASHES: usize = 3;
pub const ACTORS: usize = 6;
/// No pack.
pub const NONE: u8 = 0xF;
/// One tick of the store's clock. Ages stop at [`AGED`] ticks, beyond which nothing changes.
pub const TICK_HOURS: i64 = 12;
pub const AGED: u8 = 5;

pub fn age(ticks: u8) -> SignedDuration {
    SignedDuration::from_hours(i64::from(ticks) * TICK_HOURS)
}

pub fn bits(mask: u8) -> impl Iterator<Item = u8> {
    (0..8).filter(move |bit| mask & (1 << bit) != 0)
}

/// What lies under the key that a run commits with.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Commit {
    #[default]
    Absent,
    /// Nobody can commit here any more.
    Void,
    /// A backup's manifest: which pack each block is read from.
    Backup([u8; BLOCKS]),
    /// A move of `blocks` from one pack to another, for the backups it looked at.
    Move {
        from: u8,
        to: u8,
        blocks: u8,
        backups: u8,
    },
    /// It was there and retention has dropped it.
    Dropped,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Pack {
    pub there: bool,
    /// Which blocks it holds.
    pub blocks: u8,
}

/// A file that only its age and presence matter of.
pub type Aged = Option<u8>;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Trash {
    pub age: Aged,
    pub packs: u8,
}

/// Where an actor is in its program, and what it remembers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Actor {
    pub step: u8,
    pub seen: [u8; 8],
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct World {
    pub packs: [Pack; PACKS],
    /// By run: what it has committed, and its lease.
    pub commits: [Commit; RUNS],
    pub leases: [Aged; RUNS],
    pub trashes: [Trash; TRASHES],
    /// Whose the lock is, and its age.
    pub lock: Option<(u8, u8)>,
    pub actors: [Actor; ACTORS],
}

impl World {
    /// Time passes; `None` when everything is as old as it gets.
    pub fn tick(&self) -> Option<Self> {
        // Beyond a day and a half a lease is dead, and beyond a day a lock means nothing.
        let until = |most: u8| move |age: u8| (age + 1).min(most);
        let older = until(AGED);
        let mut next = *self;
        for lease in &mut next.leases {
            *lease = lease.map(until(3));
        }
        for trash in &mut next.trashes {
            trash.age = trash.age.map(older);
        }
        next.lock = next.lock.map(|(owner, age)| (owner, until(2)(age)));
        (next != *self).then_some(next)
    }

    /// As old as everything gets.
    pub fn aged(&self) -> Self {
        let mut world = *self;
        while let Some(older) = world.tick() {
            world = older;
        }
        world
    }

    pub fn present(&self) -> u8 {
        (0..PACKS)
            .filter(|at| self.packs[*at].there)
            .fold(0, |mask, at| mask | 1 << at)
    }

    /// Runs that have a committed backup.
    pub fn backups(&self) -> u8 {
        self.runs_where(|commit| matches!(commit, Commit::Backup(_)))
    }

    /// Runs that have a committed move.
    pub fn moves(&self) -> u8 {
        self.runs_where(|commit| matches!(commit, Commit::Move { .. }))
    }

    fn runs_where(&self, holds: impl Fn(Commit) -> bool) -> u8 {
        (0..RUNS)
            .filter(|run| holds(self.commits[*run]))
            .fold(0, |mask, run| mask | 1 << run)
    }

    pub fn trashed(&self) -> u8 {
        self.trashes
            .iter()
            .filter(|trash| trash.age.is_some())
            .fold(0, |mask, trash| mask | trash.packs)
    }

    /// The packs that `backups` are read from, when `moves` are known: the program's own decision.
    pub fn live(&self, backups: u8, moves: u8) -> u8 {
        let moves: Vec<(u8, Move<u8, u8>)> = bits(moves)
            .filter_map(|run| match self.commits[usize::from(run)] {
                Commit::Move {
                    from, to, backups, ..
                } => Some((
                    run,
                    Move {
                        packs: BTreeMap::from([(from, BTreeSet::from([to]))]),
                        backups: bits(backups).collect(),
                        incomplete: BTreeSet::new(),
                    },
                )),
                _ => None,
            })
            .collect();
        let moves = Moves::new(moves.iter().map(|(run, one)| (run, one)));
        let mut live = 0;
        for run in bits(backups) {
            if let Commit::Backup(places) = self.commits[usize::from(run)] {
                let named = places.into_iter().filter(|pack| *pack != NONE);
                for pack in moves.reach(&run, named, &BTreeSet::new()) {
                    live |= 1 << pack;
                }
            }
        }
        live
    }

    /// Every committed backup can be read.
    pub fn fault(&self) -> Option<String> {
        for (run, commit) in self.commits.iter().enumerate() {
            let Commit::Backup(places) = commit else {
                continue;
            };
            for (block, pack) in places.iter().enumerate() {
                if *pack != NONE && !self.readable(*pack, block, PACKS) {
                    return Some(format!(
                        "backup {run} is committed and its block {block} of pack {pack} is lost"
                    ));
                }
            }
        }
        None
    }

    /// From the pack itself, or from where it was moved.
    fn readable(&self, pack: u8, block: usize, moves_left: usize) -> bool {
        let held = self.packs[usize::from(pack)];
        if held.there && held.blocks & (1 << block) != 0 {
            return true;
        }
        moves_left > 0
            && self.commits.iter().any(|commit| {
                matches!(commit, Commit::Move { from, to, blocks, .. }
                    if *from == pack
                        && blocks & (1 << block) != 0
                        && self.readable(*to, block, moves_left - 1))
            })
    }

    /// Which blocks of `pack` the backups want, as far as `moves` are known.
    pub fn wanted(&self, pack: u8, backups: u8, moves: u8) -> u8 {
        let mut wanted = 0;
        for run in bits(backups) {
            if let Commit::Backup(places) = self.commits[usize::from(run)] {
                for (block, place) in places.iter().enumerate() {
                    if *place != NONE && self.leads_to(*place, block, pack, moves, PACKS) {
                        wanted |= 1 << block;
                    }
                }
            }
        }
        wanted
    }

    fn leads_to(&self, from: u8, block: usize, pack: u8, moves: u8, moves_left: usize) -> bool {
        from == pack
            || (moves_left > 0 && bits(moves).any(|run| {
                matches!(self.commits[usize::from(run)], Commit::Move { from: left, to, blocks, .. }
                        if left == from
                            && blocks & (1 << block) != 0
                            && self.leads_to(to, block, pack, moves, moves_left - 1))
            }))
    }
}
