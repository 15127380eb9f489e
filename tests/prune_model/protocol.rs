//! Who does what in which order: each step is one thing that a store does at once.
//!
//! A crash needs no step of its own: an actor that is never moved again has crashed, and so has, for a time,
//! one that is moved late.

use lifeboat::repository::prune::decide;

use super::world::{ACTORS, Actor, BLOCKS, Commit, NONE, World, age, bits};

/// An actor's step when its program has ended.
pub const DONE: u8 = 0xFF;

/// The actors of a universe; packs and runs by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Backs up the blocks `wants`; what is not in the store goes into the pack `fresh`.
    Backup { run: u8, wants: u8, fresh: u8 },
    /// Retention drops a backup.
    Drop { run: u8 },
    /// A prune's first half: puts the trash file.
    Mark { trash: u8 },
    /// Its second half.
    Sweep,
    /// A prune that does not wait.
    Now { trash: u8 },
    /// Copies the live part of a pack into the pack `fresh`.
    Repack { run: u8, fresh: u8 },
}

/// A rule of the protocol that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Breach {
    /// Trash is swept when it is more than 12 hours old, whatever leases there are.
    SweepsEarly,
    IgnoresTrash,
    ListsBackupsFirst,
    /// A pack's name is given by its content.
    SharesNames,
    /// Dead backups are not closed.
    ClosesNoBackup,
    /// The same, but a run looks at its lease again after it has committed.
    LooksAfterCommit,
    /// Dead repacks are not closed.
    ClosesNoRepack,
    /// A move is taken to hold for every backup.
    MovesForAll,
    /// A prune that does not wait does not look at its lock again.
    TrustsLock,
    TrashGoesFirst,
}

/// A universe: who acts, and by which rules.
pub struct Setting {
    pub actors: Vec<Kind>,
    pub breach: Option<Breach>,
}

impl Setting {
    /// Every state that is one step away.
    pub fn successors(&self, world: &World, out: &mut Vec<World>) {
        for (number, kind) in self.actors.iter().enumerate() {
            if world.actors[number].step == DONE {
                continue;
            }
            let mut turn = Turn {
                breach: self.breach,
                number,
                repacks: world.moves() != 0
                    || self
                        .actors
                        .iter()
                        .any(|kind| matches!(kind, Kind::Repack { .. })),
                world: *world,
                out,
            };
            match *kind {
                Kind::Backup { run, wants, fresh } => turn.backup(run, wants, fresh),
                Kind::Drop { run } => turn.retention(run),
                Kind::Mark { trash } => turn.mark(trash),
                Kind::Sweep => turn.sweep(),
                Kind::Now { trash } => turn.now(trash),
                Kind::Repack { run, fresh } => turn.repack(run, fresh),
            }
        }
        out.extend(world.tick());
    }

    /// The state when everybody has died, and one actor alone does all that it does.
    pub fn alone(world: &World, kind: Kind) -> World {
        let setting = Self {
            actors: vec![kind],
            breach: None,
        };
        let mut world = *world;
        world.actors = Default::default();
        let mut next = Vec::new();
        while world.actors[0].step != DONE {
            next.clear();
            setting.successors(&world, &mut next);
            let acted = next.iter().find(|next| next.actors != world.actors);
            match acted {
                Some(acted) => world = *acted,
                // There is nothing for it to do.
                None => break,
            }
        }
        world
    }

    /// One line of a trace.
    pub fn describe(&self, from: &World, to: &World) -> String {
        for number in 0..ACTORS {
            if from.actors[number] != to.actors[number] {
                let step = from.actors[number].step;
                return format!(
                    "{:?} does step {step}: packs {:?} -> {:?}, trash {:?}, leases {:?}, commits {:?}, lock {:?}",
                    self.actors[number],
                    bits(from.present()).collect::<Vec<_>>(),
                    bits(to.present()).collect::<Vec<_>>(),
                    to.trashes.map(|t| t.age.map(|age| (age, t.packs))),
                    to.leases,
                    to.commits,
                    to.lock
                );
            }
        }
        "12 hours pass".to_owned()
    }
}

/// One actor about to do one step.
pub struct Turn<'a> {
    breach: Option<Breach>,
    pub number: usize,
    /// Whether there can be moves.
    repacks: bool,
    pub world: World,
    out: &'a mut Vec<World>,
}

impl Turn<'_> {
    pub fn breaks(&self, rule: Breach) -> bool {
        self.breach == Some(rule)
    }

    pub fn me(&mut self) -> &mut Actor {
        &mut self.world.actors[self.number]
    }

    pub fn step(&self) -> u8 {
        self.world.actors[self.number].step
    }

    pub fn seen(&self, at: usize) -> u8 {
        self.world.actors[self.number].seen[at]
    }

    pub fn note(&mut self, at: usize, what: u8) {
        self.me().seen[at] = what;
    }

    /// The step that lists moves, or the one after it where there are none.
    pub fn list_moves(&self, step: u8) -> u8 {
        if self.repacks { step } else { step + 1 }
    }

    /// Ends the step; the program goes on at `step`.
    pub fn go(&mut self, step: u8) {
        self.me().step = step;
        if step == DONE {
            self.me().seen = [0; 8];
        }
        self.out.push(self.world);
    }

    fn put_lease(&mut self, run: u8) {
        self.world.leases[usize::from(run)] = Some(0);
    }

    pub fn delete_lease(&mut self, run: u8) {
        self.world.leases[usize::from(run)] = None;
    }

    pub fn lock_is_heeded(&self) -> bool {
        self.world
            .lock
            .is_some_and(|(_, ticks)| decide::lock_is_heeded(age(ticks)))
    }

    fn lease_lives(&self, run: u8) -> bool {
        self.world.leases[usize::from(run)].is_some_and(|ticks| !decide::is_dead(age(ticks)))
    }

    /// Puts what commits a run, unless something is there.
    pub fn commit(&mut self, run: u8, what: Commit) -> bool {
        let place = &mut self.world.commits[usize::from(run)];
        let free = *place == Commit::Absent;
        if free {
            *place = what;
        }
        free
    }

    fn backup(&mut self, run: u8, wants: u8, fresh: u8) {
        let step = self.step();
        match step {
            0 => {
                self.put_lease(run);
                self.go(1);
            }
            1 if self.lock_is_heeded() => self.go(9),
            1 => self.go(2),
            2 => {
                let trashed = self.world.trashed();
                self.note(
                    0,
                    if self.breaks(Breach::IgnoresTrash) {
                        0
                    } else {
                        trashed
                    },
                );
                self.go(3);
            }
            3 => {
                let usable = self.world.present() & !self.seen(0);
                self.note(0, 0);
                self.choose(0, wants, usable, fresh);
            }
            4 => self.publish(fresh),
            5 if self.lease_lives(run) => self.go(6),
            6 => {
                let places = std::array::from_fn(|block| self.seen(1 + block));
                let committed = self.commit(run, Commit::Backup(places));
                let look_after = self.breaks(Breach::LooksAfterCommit);
                self.go(match (committed, look_after) {
                    (false, _) => 10,
                    (true, true) => 7,
                    (true, false) => 8,
                });
            }
            7 if !self.lease_lives(run) => {
                self.world.commits[usize::from(run)] = Commit::Dropped;
                self.go(10);
            }
            5 => self.go(10),
            7 => self.go(8),
            9 => {
                self.delete_lease(run);
                self.go(0);
            }
            _ => {
                self.delete_lease(run);
                self.go(DONE);
            }
        }
    }

    /// Each block from each usable pack that holds it, or else stored anew.
    fn choose(&mut self, block: usize, wants: u8, usable: u8, fresh: u8) {
        if block == BLOCKS {
            let stores = (0..BLOCKS).any(|block| self.seen(1 + block) == fresh);
            self.go(if stores { 4 } else { 5 });
            return;
        }
        let before = self.world;
        let holding =
            bits(usable).filter(|pack| before.packs[usize::from(*pack)].blocks & (1 << block) != 0);
        let mut places: Vec<u8> = holding.collect();
        if wants & (1 << block) == 0 {
            places = vec![NONE];
        } else if places.is_empty() {
            places = vec![fresh];
        }
        for place in places {
            self.world = before;
            self.note(1 + block, place);
            self.choose(block + 1, wants, usable, fresh);
        }
    }

    fn publish(&mut self, fresh: u8) {
        let blocks = (0..BLOCKS)
            .filter(|block| self.seen(1 + block) == fresh)
            .fold(0, |mask, block| mask | 1 << block);
        let mut name = fresh;
        if self.breaks(Breach::SharesNames) {
            let same = self
                .world
                .packs
                .iter()
                .position(|pack| pack.blocks == blocks);
            name = same.map_or(fresh, |at| u8::try_from(at).unwrap());
            for block in 0..BLOCKS {
                if self.seen(1 + block) == fresh {
                    self.note(1 + block, name);
                }
            }
        }
        let pack = &mut self.world.packs[usize::from(name)];
        (pack.there, pack.blocks) = (true, blocks);
        self.go(5);
    }

    fn retention(&mut self, run: u8) {
        let place = &mut self.world.commits[usize::from(run)];
        if matches!(place, Commit::Backup(_)) {
            *place = Commit::Dropped;
            self.go(DONE);
        }
    }

    fn repack(&mut self, run: u8, fresh: u8) {
        match self.step() {
            0 => {
                self.put_lease(run);
                self.go(1);
            }
            1 if self.lock_is_heeded() => self.go(11),
            1 => self.go(2),
            2 => {
                self.note(0, self.world.trashed());
                self.go(3);
            }
            3 => {
                self.note(1, self.world.moves());
                self.go(4);
            }
            4 => {
                let (backups, moves) = (self.world.backups(), self.seen(1));
                let before = self.world;
                for pack in bits(before.present() & !self.seen(0)) {
                    let wanted = before.wanted(pack, backups, moves);
                    if wanted == 0 || wanted == before.packs[usize::from(pack)].blocks {
                        continue;
                    }
                    self.world = before;
                    self.me().seen = [0, 0, backups, pack, wanted, 0, 0, 0];
                    self.go(5);
                }
                // Nothing to repack: it need not have begun.
            }
            5 if self.world.packs[usize::from(self.seen(3))].there => {
                let blocks = self.seen(4);
                let pack = &mut self.world.packs[usize::from(fresh)];
                (pack.there, pack.blocks) = (true, blocks);
                self.go(6);
            }
            6 if self.lease_lives(run) => self.go(7),
            7 => {
                let for_all = self.breaks(Breach::MovesForAll);
                let what = Commit::Move {
                    from: self.seen(3),
                    to: fresh,
                    blocks: self.seen(4),
                    backups: if for_all { 0xFF } else { self.seen(2) },
                };
                let committed = self.commit(run, what);
                self.go(if committed { 8 } else { 10 });
            }
            5 | 6 => self.go(10),
            11 => {
                self.delete_lease(run);
                self.go(0);
            }
            _ => {
                self.delete_lease(run);
                self.go(DONE);
            }
        }
    }
}
